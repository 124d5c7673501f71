"""The socket: waitress under the API, with refusals of its own in the API's form.

server = listen(app, "127.0.0.1", 5000, threads=32)
server.run()
"""

import errno
import json
import re
import select
import socket
import time

from waitress.channel import HTTPChannel
from waitress.parser import HTTPRequestParser
from waitress.server import create_server
from waitress.task import ErrorTask

from minigpt.common import urls
from minigpt.common.errors import UserError
from minigpt.openai.schemas import Refused


class _JsonErrorTask(ErrorTask):
    """Waitress's own refusals (a broken request line, headers too large, …) as OpenAI's JSON."""

    def execute(self):
        error = self.request.error
        reason = "the request is larger than this server takes" if error.code == 413 else None
        refused = Refused(error.code, reason or f"{error.reason}: no HTTP request")
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
    parser_class = _Parser
    error_task_class = _JsonErrorTask


def listen(app, host, port, threads, body_bytes=1 << 20):
    """A waitress server that listens on host:port (0: any free one) and serves once its run() is
    called. UserError where the port cannot be had.

    threads: one for each request that may run or wait, and some for short questions.
    """
    try:
        # The first of its addresses: a name such as localhost may have several.
        *_, (address, *_) = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        server = create_server(
            app,
            listen=urls.address(address, port),
            threads=threads,
            connection_limit=threads + 500,
            asyncore_use_poll=hasattr(select, "poll"),  # select() ends at 1,024 connections
            channel_request_lookahead=4,  # or nobody sees that a client has gone
            # What is a little too large is read, so that its sender reads why it is refused.
            max_request_body_size=16 * body_bytes,
            ident=None,
            log_socket_errors=False,
        )
    except (OSError, ValueError) as error:
        raise UserError(_no_port(host, port, error)) from None
    server.channel_class = _Channel
    return server


def _no_port(host, port, error):
    if getattr(error, "errno", None) != errno.EADDRINUSE:
        return f"--host={host} --port={port}: cannot listen there ({error})"
    return (
        f"--port={port}: another program listens there (on a Mac, port 5000 is AirPlay's: System "
        f"Settings → General → AirDrop & Handoff → AirPlay Receiver); take another one, such as "
        f"--port={port + 1}"
    )


def flush(server, seconds=10):
    """Wait until what has been answered has been sent, at most so long: after Host.drain()."""
    deadline = time.monotonic() + seconds
    server.task_dispatcher.shutdown(timeout=seconds)
    while time.monotonic() < deadline and any(
        channel.total_outbufs_len for channel in list(server.active_channels.values())
    ):
        time.sleep(0.05)
