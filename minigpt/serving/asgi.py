"""The socket under the arena's page: uvicorn, with timeouts, limits of connections, and an end.

    serve(app, "127.0.0.1", 7860)        # until Ctrl-C or SIGTERM, then it returns

Uvicorn alone waits forever for the head of a request, and at its end for every event stream, of
which a browser keeps one open as long as the page is.
"""

import asyncio
import time
from functools import partial

import h11
import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from minigpt.serving.connections import Connections, Waiting, connection_limits

BUSY = 500  # requests answered at once: each open page holds an event stream or two
GRACE_SECONDS = 3.0  # after the signal, for what is being answered
CANCEL_SECONDS = 3.0  # more, for handlers whose client is gone
# asyncio accepts so many connections before it reads from one of them: few, or those that ask
# something wait like those that do not.
ACCEPTED_AT_ONCE = 16
QUEUE = 1024  # connections that the system holds until they are accepted
TOO_MANY = (
    b"HTTP/1.1 503 Service Unavailable\r\nContent-Type: text/plain; charset=utf-8\r\n"
    b"Connection: close\r\n\r\ntoo many connections are open: close some, and try again\n"
)


def serve(app, host, port, limits=None, grace_seconds=GRACE_SECONDS):
    """Serve an ASGI app on host:port until Ctrl-C or SIGTERM.

    Then no connection is accepted; what is being answered has `grace_seconds` to end. What is
    left is closed, as if its client had gone; a second signal closes it at once. Handlers that
    continue all the same are cancelled after CANCEL_SECONDS more.
    limits: ConnectionLimits; None: those that suit the page and this machine.
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
    """The app, whose handlers may be cancelled at the end: uvicorn would log that as an error."""

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
        """The signal handler. It does not keep the signal, as uvicorn's does: at the end uvicorn
        raises it again, and the process would die by it instead of ending with exit code 0."""
        if self.should_exit:
            self._grace_seconds = 0
        self.should_exit = True

    async def startup(self, sockets=None):
        """Called by uvicorn: listens. asyncio's `backlog` is both of the numbers above."""
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
        """Called by uvicorn after a signal: waits until all is answered or cancelled."""
        print(f"stopping; what is being answered has {self._grace_seconds:g} s", flush=True)
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
        self.force_exit = True  # whatever is left, it does not hold the process


class _Protocol(H11Protocol):
    """A connection of uvicorn that knows what it waits for (minigpt/serving/connections.py)."""

    def __init__(self, table, **of_uvicorn):
        super().__init__(**of_uvicorn)
        self._table = table
        self._head_began = time.monotonic()  # None: no byte of the next request has arrived
        self._progressed = self._head_began  # the last byte of the client, or end of an answer

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
        """What the client has to send next, or None while it is answered."""
        if self.conn.their_state is h11.IDLE:
            if self._head_began is not None:
                return Waiting("head", self._head_began)
            return Waiting("idle", self._progressed)
        # Where reading is paused, it is the app that is slow.
        if self.conn.their_state is h11.SEND_BODY and not self.flow.read_paused:
            return Waiting("body", self._progressed)
        return None

    def end(self, last_words=b""):
        """Close the connection; what was not sent yet is lost, but `last_words`."""
        if last_words:
            self.transport.write(last_words)
            self.transport.close()
        else:
            self.transport.abort()
