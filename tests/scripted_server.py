"""A server of OpenAI's API that answers by a script, on a real socket, for tests of its clients.

    def answer(asked):                        # an Asked: what came, and the how-manieth it is
        if asked.number % 5 == 0:
            return error(429, "slow down", {"Retry-After": "1"})
        return good('[{"question": "…", "answer": "…"}]', after=0.05)

    with ScriptedServer(answer) as server:
        … server.base_url, server.models[0] …
        server.seen, server.most_in_flight    # every Asked in order; how many there were at once
        server.die(); server.revive()         # connections are reset, none accepted; the same port

A script is called for each chat completion, by several threads at once, and returns an action:
good(), error(), garbage(), half(), stall(), reset(), drip() or body(). GET /v1/models, a wrong key
(key=) and an unknown model are answered without it, as servers do. A mistake in the script is
raised at the end of the with block.
"""

import contextlib
import json
import socket
import struct
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from socketserver import TCPServer
from typing import NamedTuple

STALL_SECONDS = 60.0  # longer than any test; die() and the end of the block cut it short


class Asked(NamedTuple):
    """A request. number: from 1 on; body: its JSON; headers: names in lower case."""

    number: int
    body: dict
    headers: dict

    @property
    def text(self):
        """What the last message says."""
        return self.body["messages"][-1]["content"]


# -- actions: what happens to the socket of a request ----------------------------------------------


def good(text, finish_reason="stop", after=0.0, **message):
    """A chat completion that says `text`, after some seconds. message: further fields of it."""
    said = {"role": "assistant", "content": text, **message}
    usage = {"prompt_tokens": 100, "completion_tokens": len(text or ""), "total_tokens": 0}
    choice = {"index": 0, "message": said, "finish_reason": finish_reason}
    answer = {"object": "chat.completion", "choices": [choice], "usage": usage}
    return body(json.dumps(answer).encode(), after=after)


def error(status, message, headers=None, after=0.0):
    """An error in OpenAI's form; message: a text, or the whole JSON."""
    said = {"error": {"message": message}} if isinstance(message, str) else message
    return body(json.dumps(said).encode(), status, headers, after)


def garbage(after=0.0):
    """A page instead of JSON."""
    return body("<html><body>网关 gateway</body></html>".encode(), after=after)


def half(text="黄河", after=0.0):
    """The beginning of an answer in an HTTP message that is whole."""
    said = {"choices": [{"message": {"content": text}, "finish_reason": "stop"}]}
    return body(json.dumps(said).encode()[:-12], after=after)


def body(data, status=200, headers=None, after=0.0):
    """Any bytes, with their length."""

    def act(reply):
        if not reply.wait(after):
            reply.end()
            reply.send(reply.head(status, len(data), headers) + data)

    return act


def stall(seconds=STALL_SECONDS):
    """Nothing comes, then the connection is closed."""
    return lambda reply: (reply.wait(seconds), reply.close())


def reset(after=0.0, sent=40):
    """The beginning of an answer, then RST."""

    def act(reply):
        if not reply.wait(after):
            reply.end()
            reply.send(reply.head(200, 1000) + b'{"choices": [' + b" " * sent)
        reply.reset()

    return act


def drip(pause=0.02, part="body"):
    """A blank every `pause` seconds, for ever; part: "head" or "body"."""

    def act(reply):
        is_head = part == "head"
        reply.send(b"HTTP/1.1 200 OK\r\nX-Blank:" if is_head else reply.head(200, 1 << 20))
        deadline = time.monotonic() + STALL_SECONDS
        while time.monotonic() < deadline and not reply.wait(pause):
            reply.send(b" ")

    return act


# -- the server ------------------------------------------------------------------------------------


class ScriptedServer:
    """See the module's docstring.

    script: Asked → action; models: what it serves; key: that clients have to send, None: any;
    lists_models: whether there is a GET /v1/models.
    """

    def __init__(self, script, models=("scripted",), key=None, lists_models=True):
        self.script, self.models, self.key = script, tuple(models), key
        self.lists_models = lists_models
        self.seen, self.errors = [], []
        self.in_flight = self.most_in_flight = self.connections = 0
        self._lock = threading.Lock()
        self._port, self._listener = 0, None
        self.revive()

    @property
    def base_url(self):
        """With /v1."""
        return f"http://127.0.0.1:{self._port}/v1"

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.die()
        if self.errors:
            raise self.errors[0]

    def revive(self):
        """Listen, on the port of the last time."""
        assert self._listener is None
        self._listener = _Listener(("127.0.0.1", self._port), self)
        self._port = self._listener.server_address[1]
        self._thread = threading.Thread(target=self._listener.serve_forever, args=(0.01,))
        self._thread.daemon = True
        self._thread.start()

    def die(self):
        """Reset every connection, and accept none."""
        listener, self._listener = self._listener, None
        if listener is not None:
            listener.gone.set()
            listener.shutdown()
            listener.server_close()
            self._thread.join()
            for connection in listener.open_ones():
                _reset(connection)

    def _begin(self, request, headers):
        with self._lock:
            asked = Asked(len(self.seen) + 1, request, headers)
            self.seen.append(asked)
            self.in_flight += 1
            self.most_in_flight = max(self.most_in_flight, self.in_flight)
            return asked

    def _end(self, n):
        with self._lock:
            self.in_flight -= n


class _Listener(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128  # with fewer, some systems refuse what comes all at once

    def __init__(self, address, scripted):
        self.scripted, self.gone = scripted, threading.Event()
        self._open, self._lock = set(), threading.Lock()
        super().__init__(address, _Handler)

    def server_bind(self):
        TCPServer.server_bind(self)  # HTTPServer's looks its own name up, which may take seconds

    def open_ones(self):
        """The sockets that are open."""
        with self._lock:
            return list(self._open)

    def process_request(self, request, client_address):
        with self._lock:
            self._open.add(request)
        self.scripted.connections += 1
        super().process_request(request, client_address)

    def shutdown_request(self, request):
        with self._lock:
            self._open.discard(request)
        super().shutdown_request(request)

    def handle_error(self, request, client_address):
        """A client that went away, or a socket that was reset, is part of the play."""
        mistake = sys.exc_info()[1]
        if not isinstance(mistake, OSError):
            self.scripted.errors.append(mistake)


def _reset(sock):
    """End a connection with RST, as a process that was killed does."""
    with contextlib.suppress(OSError):
        linger = struct.pack("hh" if sys.platform == "win32" else "ii", 1, 0)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
        sock.shutdown(socket.SHUT_RD)  # wakes the thread that reads, and sends nothing
    with contextlib.suppress(OSError):
        sock.close()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"  # connections are kept
    disable_nagle_algorithm = True
    _n = 0  # requests of this connection that are in flight

    def do_GET(self):
        """What is served."""
        scripted = self.server.scripted
        if not self._is_welcome():
            return
        if self.path != "/v1/models" or not scripted.lists_models:
            return error(404, "Not Found")(self)
        listed = {"object": "list", "data": [{"id": name} for name in scripted.models]}
        body(json.dumps(listed).encode())(self)

    def do_POST(self):
        """A chat completion, by the script."""
        scripted = self.server.scripted
        length = int(self.headers["Content-Length"])
        data = self.rfile.read(length)
        if len(data) < length:
            return self.close()  # the server died meanwhile
        request = json.loads(data)
        if not self._is_welcome():
            return
        if self.path != "/v1/chat/completions":
            return error(404, "Not Found")(self)
        if request["model"] not in scripted.models:
            return error(404, f"The model `{request['model']}` does not exist")(self)
        headers = {name.lower(): value for name, value in self.headers.items()}
        asked, self._n = scripted._begin(request, headers), 1
        try:
            scripted.script(asked)(self)
        except OSError:
            self.close()  # the client is gone
        except Exception as mistake:
            scripted.errors.append(mistake)
            error(500, "the script has a mistake")(self)
        finally:
            self.end()

    def _is_welcome(self):
        key = self.server.scripted.key
        sent = self.headers.get("Authorization")
        if key is None or sent == f"Bearer {key}":
            return True
        error(401, f"Incorrect API key provided: {sent}")(self)
        return False

    # -- what actions use --

    def head(self, status, length, headers=None):
        """The bytes before the body."""
        lines = [f"HTTP/1.1 {status} Scripted", "Content-Type: application/json"]
        lines += [f"{name}: {value}" for name, value in (headers or {}).items()]
        return "\r\n".join([*lines, f"Content-Length: {length}", "", ""]).encode()

    def send(self, data):
        """Write bytes."""
        self.wfile.write(data)

    def end(self):
        """It is in flight no longer. To be said before its last byte, or who reads that may ask
        again before it is counted."""
        self.server.scripted._end(self._n)
        self._n = 0

    def wait(self, seconds):
        """Sleep; True where the server dies meanwhile."""
        return self.server.gone.wait(seconds)

    def close(self):
        """Keep the connection no longer."""
        self.close_connection = True

    def reset(self):
        """End the connection with RST."""
        self.close()
        _reset(self.connection)

    def log_message(self, *_):
        """Nobody reads it."""
