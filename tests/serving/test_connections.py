"""Limits of connections: as a table, and in both servers through real sockets.

Each server under test has small limits, so that a few dozen sockets and fractions of a second do.
"""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from dataclasses import replace

import pytest
from conftest import ROOT

from minigpt.serving.connections import ConnectionLimits, Connections, Waiting, fit, network_of
from minigpt.serving.wsgi import flush, listen

PATIENCE = 30  # seconds: a generous deadline for what takes a fraction of one
SMALL = ConnectionLimits(
    total=40,
    per_address=20,
    waiting_per_address=10,
    head_seconds=0.3,
    body_seconds=1.0,
    idle_seconds=2.0,
    reader_seconds=60.0,
)
PATIENT = replace(SMALL, head_seconds=60, body_seconds=60, idle_seconds=60)
HALF = b"GET / HTTP/1.1\r\nHost: localhost\r\nX-Rest: "


# -- the table -------------------------------------------------------------------------------------


class Fake:
    """A connection; it waits since `since`, or is answered (None)."""

    def __init__(self, since, what="head"):
        self.since, self.what = since, what

    def waiting(self):
        return None if self.since is None else Waiting(self.what, self.since)


def fill(table, address, n, since=None):
    made = [Fake(None if since is None else since + i) for i in range(n)]
    for each in made:
        assert table.admit(each, address) == []
    return made


def test_the_longest_wait_of_an_address_ends_first():
    table = Connections(SMALL)
    idle = fill(table, "10.0.0.1", 10, since=5)
    idle[3].since = 1
    others = fill(table, "10.0.0.2", 10, since=0)
    assert table.admit(Fake(20), "10.0.0.1") == [idle[3]]
    assert table.admit(Fake(21), "10.0.0.1") == [idle[0]]
    table.remove(idle[1])  # one that ended makes room
    table.remove(idle[1])
    assert table.admit(Fake(22), "10.0.0.1") == []
    assert table.admit(Fake(23), "10.0.0.2") == [others[0]]


def test_what_is_answered_is_never_ended():
    table = Connections(SMALL)
    fill(table, "10.0.0.1", 20)
    new = Fake(1)
    assert table.admit(new, "10.0.0.1") == [new]
    assert table.admit(Fake(1), "10.0.0.2") == []
    assert table.overdue(1e9) != [] and all(c.since for c in table.overdue(1e9))


def test_the_total():
    table = Connections(SMALL)
    fill(table, "10.0.0.1", 15)
    fill(table, "10.0.0.2", 15)
    few, many = fill(table, "10.0.0.3", 4, since=1), fill(table, "10.0.0.4", 6, since=5)
    assert table.admit(Fake(30), "10.0.0.5") == [many[0]]
    for each in few + many[1:]:
        each.since = None
    last = table.admit(Fake(40), "10.0.0.6")  # the one of 10.0.0.5 is all that waits
    assert [each.since for each in last] == [30]


def test_a_slow_reader_is_not_ended_for_others():
    table = Connections(SMALL)
    readers = [Fake(0, "reader") for _ in range(20)]
    for each in readers:
        assert table.admit(each, "10.0.0.1") == []
    new = Fake(5)
    assert table.admit(new, "10.0.0.1") == [new]
    assert table.overdue(59.9) == [] and table.overdue(60.1) == readers


@pytest.mark.parametrize(("what", "seconds"), [("head", 0.3), ("body", 1.0), ("idle", 2.0)])
def test_how_long_one_may_wait(what, seconds):
    table = Connections(SMALL)
    waiting = Fake(10, what)
    table.admit(waiting, "::1")
    assert table.overdue(10 + seconds - 0.01) == []
    assert table.overdue(10 + seconds + 0.01) == [waiting]


def test_one_client_is_an_ipv4_address_or_an_ipv6_network():
    assert network_of("10.0.0.1") != network_of("10.0.0.2")
    assert network_of("::ffff:10.0.0.1") == network_of("10.0.0.1")
    assert network_of("2001:db8:0:1::5") == network_of("2001:db8:0:1:9::5")
    assert network_of("2001:db8:0:1::5") != network_of("2001:db8:0:2::5")
    assert network_of("fe80::1%eth0") == network_of("fe80::1") and network_of("") == ""


@pytest.mark.parametrize("files", [64, 256, 1024, 8192])
def test_limits_stay_below_the_limit_of_open_files(files):
    limits = fit(ConnectionLimits(), files)
    assert 0 < limits.waiting_per_address < limits.per_address < limits.total
    assert files - limits.total >= min(400, files // 2)


# -- the servers -----------------------------------------------------------------------------------

PAGE = """
import asyncio, sys, time
import anyio
from minigpt.serving.connections import ConnectionLimits
from minigpt.serving.asgi import serve

async def app(scope, receive, send):
    if scope["type"] == "lifespan":
        while (await receive())["type"] != "lifespan.shutdown":
            await send({"type": "lifespan.startup.complete"})
        return await send({"type": "lifespan.shutdown.complete"})
    body, more = b"", True
    while more:
        message = await receive()
        if message["type"] == "http.disconnect":
            return
        body, more = body + message["body"], message["more_body"]
    await send({"type": "http.response.start", "status": 200, "headers": []})
    path = scope["path"]
    if path == "/stubborn":
        await anyio.to_thread.run_sync(time.sleep, 600)
    if path == "/stream":
        gone = asyncio.ensure_future(receive())
        while not gone.done():
            await send({"type": "http.response.body", "body": b"tick ", "more_body": True})
            await asyncio.wait([gone], timeout=0.05)
        return
    if path == "/think":
        await asyncio.sleep(3)
    if path == "/soon":
        await send({"type": "http.response.body", "body": b"begun ", "more_body": True})
        await asyncio.sleep(1)
    text = b"%d bytes" % len(body) if path != "/large" else bytes(1 << 24)
    await send({"type": "http.response.body", "body": text})

print("up", flush=True)
serve(app, "127.0.0.1", int(sys.argv[1]), ConnectionLimits(**eval(sys.argv[2])), float(sys.argv[3]))
print("served", flush=True)
import os; os._exit(0)
"""


class Page:
    """minigpt/serving/asgi.py in a process of its own, over a small ASGI app."""

    def __init__(self, limits, grace=1.0):
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        words = [str(self.port), repr(vars(limits)), str(grace)]
        self.process = subprocess.Popen(
            [sys.executable, "-c", PAGE, *words],
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            encoding="utf-8",
            env={**os.environ, "PYTHONPATH": str(ROOT)},
        )

    def stop(self):
        self.process.kill()
        self.process.wait()
        self.process.stdout.close()


class Api:
    """minigpt/serving/wsgi.py in a thread, over a small WSGI app."""

    def __init__(self, limits):
        self.server = listen(self.app, "127.0.0.1", 0, threads=30, limits=limits)
        self.port = self.server.effective_port
        self.over = threading.Event()
        threading.Thread(target=self.server.run, daemon=True).start()

    def app(self, environ, start_response):
        body = environ["wsgi.input"].read()
        if environ["PATH_INFO"] == "/think":
            self.over.wait(3)
        start_response("200 OK", [("Content-Type", "text/plain")])
        if environ["PATH_INFO"] == "/stream":
            return self.ticks(environ["waitress.client_disconnected"])
        if environ["PATH_INFO"] == "/large":
            return [bytes(1 << 24)]
        return [b"%d bytes" % len(body)]

    def ticks(self, is_gone):
        while not is_gone() and not self.over.wait(0.05):
            yield b"tick "

    def stop(self):
        self.over.set()
        flush(self.server)


@pytest.fixture(params=[Api, Page])
def start(request):
    """start(limits): a running server of either kind."""
    with contextlib.ExitStack() as stack:

        def start(limits):
            server = request.param(limits)
            stack.callback(server.stop)
            until_up(server)
            return server

        yield start


def until(condition, seconds=PATIENCE):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def until_up(server):
    def is_up():
        with contextlib.suppress(OSError), connect(server) as sock:
            return sock is not None

    until(is_up)


def connect(server, raw=b""):
    sock = socket.create_connection(("127.0.0.1", server.port), PATIENCE)
    sock.sendall(raw)
    return sock


def request(path, length=0, head=b""):
    first = b"POST" if length else b"GET"
    return b"%s %s HTTP/1.1\r\nHost: localhost\r\n" % (
        first,
        path.encode(),
    ) + b"Content-Length: %d\r\nConnection: close\r\n%s\r\n" % (length, head)


def answer_of(sock):
    """All that is sent until the end."""
    data = b""
    with contextlib.suppress(ConnectionResetError):
        while more := sock.recv(1 << 16):
            data += more
    return data


def ask(server, path="/"):
    with connect(server, request(path)) as sock:
        return answer_of(sock)


def is_open(sock):
    """Whether the server still holds the connection, on which it has sent nothing."""
    sock.setblocking(False)
    try:
        return sock.recv(1) != b""
    except BlockingIOError:
        return True
    except ConnectionResetError:
        return False


def n_open(socks):
    return sum(map(is_open, socks))


@pytest.mark.parametrize("first", [b"", HALF], ids=["idle", "half"])
def test_many_connections_that_ask_nothing(start, first):
    server = start(PATIENT)
    with contextlib.ExitStack() as stack:
        socks = [stack.enter_context(connect(server, first)) for _ in range(80)]
        until(lambda: n_open(socks) <= 10)
        assert n_open(socks[-5:]) == 5  # the oldest were ended
        for _ in range(20):
            assert b"0 bytes" in ask(server)


def test_a_head_that_is_never_complete(start):
    server = start(SMALL)
    with connect(server) as idle, connect(server, HALF) as half:
        until(lambda: not is_open(idle) and not is_open(half))
    with connect(server, HALF) as dripping, contextlib.suppress(ConnectionError):
        deadline = time.monotonic() + PATIENCE
        while is_open(dripping):  # a byte now and then changes nothing
            dripping.sendall(b"x")
            time.sleep(0.05)
            assert time.monotonic() < deadline


def test_a_head_that_is_never_complete_after_an_answer(start):
    server = start(replace(SMALL, idle_seconds=60))
    with connect(server, b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n") as sock:
        data = b""
        while b"0 bytes" not in data:
            data += sock.recv(1000)
        sock.sendall(HALF)
        time.sleep(0.05)
        # Long before the 60 seconds (or uvicorn's 5) that an idle connection has.
        answer_of(sock)
    assert b"0 bytes" in ask(server)


def test_a_body_that_stalls_and_one_that_is_slow(start):
    server = start(SMALL)
    with connect(server, request("/", 1000) + b"x" * 100) as stalled:
        until(lambda: not is_open(stalled))
    with connect(server, request("/", 1000)) as slow:
        for _ in range(20):  # three times as long as a stalled one has
            slow.sendall(b"x" * 50)
            time.sleep(0.15)
        assert b"1000 bytes" in answer_of(slow)


def test_a_late_answer_a_long_stream_and_a_slow_reader_are_not_cut(start):
    server = start(SMALL)
    with (
        connect(server, request("/think")) as late,
        connect(server, request("/stream")) as stream,
        connect(server, request("/large")) as slow,
    ):
        began, received, ticks = time.monotonic(), 0, b""
        while time.monotonic() - began < 4:  # twice as long as anything may wait
            ticks += stream.recv(1 << 16)
            received += len(slow.recv(1 << 12))
            time.sleep(0.01)
        assert b"0 bytes" in answer_of(late)
        assert stream.recv(1 << 16) and ticks.count(b"tick") > 20
        assert received + len(answer_of(slow)) > 1 << 24


def test_too_many_that_are_answered(start):
    server = start(PATIENT)
    with contextlib.ExitStack() as stack:
        streams = []
        for _ in range(20):
            streams.append(stack.enter_context(connect(server, request("/stream"))))
            assert streams[-1].recv(1000)
        assert b"200 OK" not in ask(server)
        assert all(stream.recv(1000) for stream in streams)
        streams.pop().close()
        until(lambda: b"0 bytes" in ask(server))


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_the_page_while_streams_are_open(number):
    server = Page(PATIENT)
    try:
        until_up(server)
        with connect(server, request("/stream")) as stream, connect(server, request("/soon")) as s:
            assert stream.recv(1000)
            assert b"200 OK" in s.recv(1000)
            server.process.send_signal(number)
            assert answer_of(s).endswith(b"0 bytes\r\n0\r\n\r\n")  # it was finished
            text, _ = server.process.communicate(timeout=PATIENCE)
            assert server.process.returncode == 0
            assert "served" in text and "Traceback" not in text and "ERROR" not in text
    finally:
        server.stop()


def test_a_handler_that_does_not_end_does_not_hold_the_page():
    server = Page(PATIENT, grace=60)
    try:
        until_up(server)
        with connect(server, request("/stubborn")) as sock:
            assert b"200 OK" in sock.recv(1000)
            server.process.send_signal(signal.SIGTERM)
            time.sleep(0.3)
            server.process.send_signal(signal.SIGTERM)  # the grace ends at once
            text, _ = server.process.communicate(timeout=PATIENCE)
        assert server.process.returncode == 0 and "Traceback" not in text
    finally:
        server.stop()
