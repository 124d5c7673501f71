"""The WSGI server: waitress, with JSON errors and connection limits.

server = listen(app, "127.0.0.1", 5000, threads=32)
server.run()

Waitress alone stops accepting connections at its limit, so idle ones block all other clients. Here
waiting connections are limited, per address and in total, and closed after a timeout.
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
    """Waitress's own errors (a malformed request line, headers too large, …) as OpenAI's JSON."""

    def execute(self):
        error = self.request.error
        reason = "the request is larger than this server accepts" if error.code == 413 else None
        refused = RequestRefused(error.code, reason or f"{error.reason}: not a valid HTTP request")
        body = json.dumps(refused.as_dict()).encode()
        self.status = f"{error.code} {error.reason}"
        self.response_headers.append(("Content-Type", "application/json; charset=utf-8"))
        self.set_close_on_finish()
        self.content_length = len(body)
        self.write(body)


class _Parser(HTTPRequestParser):
    """Accepts a URL with raw UTF-8 bytes, as curl sends it. They are percent-encoded here, because
    waitress accepts only ASCII."""

    def parse_header(self, header_plus):
        line, end, headers = header_plus.partition(b"\r\n")
        line = re.sub(rb"[\x80-\xff]", lambda byte: b"%%%02X" % ord(byte[0]), line)
        super().parse_header(line + end + headers)


class _Channel(HTTPChannel):
    """A connection that reports what it waits for (see minigpt/serving/connections.py)."""

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
        if self._head_began is not None:  # the next request began meanwhile: its timeout starts now
            self._head_began = time.time()

    def waiting(self):
        """What the connection waits for, or None while a request is being answered."""
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
        # Waitress closes it when the socket is writable: never, if the client reads nothing.
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
        """Called by waitress once a second: closes the channels that have waited too long."""
        for channel in self.connections.overdue(now):
            channel.end()


def listen(app, host, port, threads, body_bytes=1 << 20, limits=None):
    """A waitress server that listens on host:port (0: any free port); run() serves requests.
    UserError if it cannot listen there.

    threads: one for each request that may run or wait, and some for short requests.
    limits: ConnectionLimits; None: derived from `threads` and this machine.
    """
    limits = limits or connection_limits(threads)
    try:
        # The first address: a name such as localhost may have several.
        *_, (address, *_) = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        settings = Adjustments(
            listen=urls.address(address, port),
            threads=threads,
            connection_limit=2 * limits.total + 100,  # never reached: `limits` are lower
            cleanup_interval=1,
            asyncore_use_poll=hasattr(select, "poll"),  # select() is limited to 1,024 files
            channel_request_lookahead=4,  # to detect a disconnected client
            # A body that is slightly too large is read, so that the client receives the error.
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
    """Wait until all responses are sent, at most `seconds`. Call it after drain()."""
    deadline = time.monotonic() + seconds
    server.task_dispatcher.shutdown(timeout=seconds)
    while time.monotonic() < deadline and any(
        channel.total_outbufs_len for channel in list(server.active_channels.values())
    ):
        time.sleep(0.05)
