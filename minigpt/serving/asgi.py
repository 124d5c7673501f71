"""The ASGI server of the arena: uvicorn, with timeouts, connection limits and a bounded shutdown.

    serve(app, "127.0.0.1", 7860)        # until Ctrl-C or SIGTERM, then it returns

Uvicorn alone waits forever for the head of a request. At shutdown it waits for every event stream,
and a browser keeps one open as long as the page is open.
"""

import asyncio
import time
from functools import partial

import h11
import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from minigpt.serving.connections import Connections, Waiting, connection_limits

BUSY = 500  # concurrent requests: each open page has one or two event streams
GRACE_SECONDS = 3.0  # after the signal, for running requests
CANCEL_SECONDS = 3.0  # after that, for handlers whose client is gone
# Connections that asyncio accepts before it reads from one: few, or clients with a request wait
# behind idle ones.
ACCEPTED_AT_ONCE = 16
QUEUE = 1024  # the listen backlog of the system
TOO_MANY = (
    b"HTTP/1.1 503 Service Unavailable\r\nContent-Type: text/plain; charset=utf-8\r\n"
    b"Connection: close\r\n\r\ntoo many connections are open: close some, and try again\n"
)


def serve(app, host, port, limits=None, grace_seconds=GRACE_SECONDS):
    """Serve an ASGI app on host:port until Ctrl-C or SIGTERM.

    Then it accepts no connection, and running requests have `grace_seconds` to finish. Remaining
    connections are closed, as if the client had disconnected; a second signal closes them at once.
    Handlers that still run are cancelled after another CANCEL_SECONDS.
    limits: ConnectionLimits; None: derived from BUSY and this machine.
    """
    connections = Connections(limits or connection_limits(BUSY))
    config = uvicorn.Config(
        _without_cancelled(app),
        host=host,
        port=port,
        http=partial(_Protocol, connections),
        ws="none",  # the page has no WebSocket
        log_level="warning",
        backlog=ACCEPTED_AT_ONCE,
    )
    _Server(config, connections, grace_seconds).run()


def _without_cancelled(app):
    """The app, without the CancelledError of shutdown, which uvicorn would log as an error."""

    async def run(scope, receive, send):
        try:
            await app(scope, receive, send)
        except asyncio.CancelledError:
            if scope["type"] == "lifespan":
                raise

    return run


class _Server(uvicorn.Server):
    def __init__(self, config, table, grace_seconds):
        super().__init__(config)
        self._table, self._grace_seconds = table, grace_seconds

    def handle_exit(self, sig, frame):
        """The signal handler. Uvicorn's own handler stores the signal and raises it again after
        shutdown, which kills the process; this one does not, so the exit code is 0."""
        if self.should_exit:
            self._grace_seconds = 0
        self.should_exit = True

    async def startup(self, sockets=None):
        """Called by uvicorn: listens. asyncio's `backlog` sets both ACCEPTED_AT_ONCE and QUEUE."""
        await super().startup(sockets)
        for server in self.servers:
            for sock in server.sockets:
                with sock.dup() as same:
                    same.listen(QUEUE)

    async def on_tick(self, counter):
        """Called by uvicorn ten times a second."""
        if counter % 5 == 0:
            for connection in self._table.overdue(time.monotonic()):
                connection.end()
        return await super().on_tick(counter)

    async def shutdown(self, sockets=None):
        """Called by uvicorn after a signal: waits until all requests are finished or cancelled."""
        print(f"stopping; running requests have {self._grace_seconds:g} s", flush=True)
        end = asyncio.create_task(self._end_after_grace())
        await super().shutdown(sockets)
        end.cancel()

    async def _end_after_grace(self):
        began = time.monotonic()
        while time.monotonic() - began < self._grace_seconds:
            await asyncio.sleep(0.05)
        for connection in list(self.server_state.connections):
            connection.end()
        await asyncio.sleep(CANCEL_SECONDS)
        for task in list(self.server_state.tasks):
            task.cancel()
        await asyncio.sleep(1)
        self.force_exit = True  # remaining tasks must not block the exit


class _Protocol(H11Protocol):
    """A connection that reports what it waits for (minigpt/serving/connections.py)."""

    def __init__(self, table, **of_uvicorn):
        super().__init__(**of_uvicorn)
        self._table = table
        self._head_began = time.monotonic()  # None: no byte of the next request has arrived
        self._progressed = (
            self._head_began
        )  # time of the client's last byte or of the last response's end

    def connection_made(self, transport):
        super().connection_made(transport)
        for connection in self._table.admit(self, self.client[0] if self.client else ""):
            connection.end(TOO_MANY if connection is self else b"")

    def connection_lost(self, exc):
        self._table.remove(self)
        super().connection_lost(exc)

    def data_received(self, data):
        self._progressed = time.monotonic()
        if self._head_began is None and self.conn.their_state is h11.IDLE:
            self._head_began = self._progressed
        super().data_received(data)
        if self.conn.their_state is not h11.IDLE:
            self._head_began = None

    def on_response_complete(self):
        self._progressed = time.monotonic()
        super().on_response_complete()

    def waiting(self):
        """What the connection waits for, or None while a request is being answered."""
        if self.conn.their_state is h11.IDLE:
            if self._head_began is not None:
                return Waiting("head", self._head_began)
            return Waiting("idle", self._progressed)
        # If reading is paused, the app is slow, not the client.
        if self.conn.their_state is h11.SEND_BODY and not self.flow.read_paused:
            return Waiting("body", self._progressed)
        return None

    def end(self, final_response=b""):
        """Close the connection. Unsent data is lost; `final_response` is sent."""
        if final_response:
            self.transport.write(final_response)
            self.transport.close()
        else:
            self.transport.abort()
