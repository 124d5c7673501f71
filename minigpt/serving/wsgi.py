"""The socket: waitress under the API, with refusals of its own in the API's form.

server = listen(app, "127.0.0.1", 5000, threads=32)
server.run()

Waitress alone stops accepting at its limit of connections, so that idle ones block everybody else.
Here those that wait are limited, for each address and in all, and ended when they wait too long.
"""

import contextlib
import errno
import json
import re
import select
import socket
import time

from waitress.adjustments import Adjustments
from waitress.channel import HTTPChannel
from waitress.parser import HTTPRequestParser
from waitress.server import TcpWSGIServer
from waitress.task import ErrorTask

from minigpt.common import urls
from minigpt.common.errors import UserError
from minigpt.openai.request_reader import RequestRefused
from minigpt.serving.connections import Connections, Waiting, connection_limits


class _JsonErrorTask(ErrorTask):
    """Waitress's own refusals (a broken request line, headers too large, …) as OpenAI's JSON."""

    def execute(self):
        error = self.request.error
        reason = "the request is larger than this server takes" if error.code == 413 else None
        refused = RequestRefused(error.code, reason or f"{error.reason}: no HTTP request")
        body = json.dumps(refused.as_dict()).encode()
        self.status = f"{error.code} {error.reason}"
        self.response_headers.append(("Content-Type", "application/json"))
        self.set_close_on_finish()
        self.content_length = len(body)
        self.write(body)


class _Parser(HTTPRequestParser):
    """Takes a URL as curl sends it, in the bytes that were typed: they are percent-encoded here,
    for waitress takes ASCII alone."""

    def parse_header(self, header_plus):
        line, end, headers = header_plus.partition(b"\r\n")
        line = re.sub(rb"[\x80-\xff]", lambda byte: b"%%%02X" % ord(byte[0]), line)
        super().parse_header(line + end + headers)


class _Channel(HTTPChannel):
    """A connection that knows what it waits for (see minigpt/serving/connections.py)."""

    parser_class = _Parser
    error_task_class = _JsonErrorTask

    def __init__(self, server, *of_waitress, **more):
        self._head_began = time.time()  # None: no byte of the next request has arrived
        super().__init__(server, *of_waitress, **more)
        for channel in server.connections.admit(self, self.addr[0]):
            channel.end()

    def received(self, data):
        before = self.request
        result = super().received(data)
        if self.request is None:
            self._head_began = None
        elif self.request is not before:
            self._head_began = time.time()
        return result

    def service(self):
        super().service()
        if self._head_began is not None:  # a next request began meanwhile: its time begins now
            self._head_began = time.time()

    def waiting(self):
        """What the client has to do next, or None while it is answered."""
        if self.requests:
            return None
        if self.total_outbufs_len:
            return Waiting("reader", self.last_activity)
        if self._head_began is None:
            return Waiting("idle", self.last_activity)
        if self.request is None or not self.request.headers_finished:
            return Waiting("head", self._head_began)
        return Waiting("body", self.last_activity)

    def end(self):
        """Close the connection, in the next round of the server's loop."""
        self.will_close = True
        # Waitress closes it when it can be written to; a client that reads nothing never lets it.
        with contextlib.suppress(OSError):
            self.socket.shutdown(socket.SHUT_RDWR)

    def del_channel(self, map=None):
        self.server.connections.remove(self)
        super().del_channel(map)


class _Server(TcpWSGIServer):
    channel_class = _Channel

    def __init__(self, limits, *of_waitress, **more):
        self.connections = Connections(limits)
        super().__init__(*of_waitress, **more)

    def maintenance(self, now):
        """Called by waitress once a second: ends the channels that have waited too long."""
        for channel in self.connections.overdue(now):
            channel.end()


def listen(app, host, port, threads, body_bytes=1 << 20, limits=None):
    """A waitress server that listens on host:port (0: any free one) and serves once its run() is
    called. UserError where the port cannot be had.

    threads: one for each request that may run or wait, and some for short questions.
    limits: ConnectionLimits; None: those that suit the threads and this machine.
    """
    limits = limits or connection_limits(threads)
    try:
        # The first of its addresses: a name such as localhost may have several.
        *_, (address, *_) = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        settings = Adjustments(
            listen=urls.address(address, port),
            threads=threads,
            connection_limit=2 * limits.total + 100,  # never reached: `limits` are narrower
            cleanup_interval=1,
            asyncore_use_poll=hasattr(select, "poll"),  # select() ends at 1,024 connections
            channel_request_lookahead=4,  # or nobody sees that a client has gone
            # What is a little too large is read, so that its sender reads why it is refused.
            max_request_body_size=16 * body_bytes,
            ident=None,
            log_socket_errors=False,
        )
        return _Server(limits, app, map={}, adj=settings, sockinfo=settings.listen[0])
    except (OSError, ValueError) as error:
        raise UserError(_no_port(host, port, error)) from None


def _no_port(host, port, error):
    if getattr(error, "errno", None) != errno.EADDRINUSE:
        return f"--host={host} --port={port}: cannot listen there ({error})"
    return (
        f"--port={port}: another program listens there (on a Mac, port 5000 is AirPlay's: System "
        f"Settings → General → AirDrop & Handoff → AirPlay Receiver); take another one, such as "
        f"--port={port + 1}"
    )


def flush(server, seconds=10):
    """Wait until what has been answered has been sent, at most so long: after drain()."""
    deadline = time.monotonic() + seconds
    server.task_dispatcher.shutdown(timeout=seconds)
    while time.monotonic() < deadline and any(
        channel.total_outbufs_len for channel in list(server.active_channels.values())
    ):
        time.sleep(0.05)
