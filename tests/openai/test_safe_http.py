"""What may be connected to: networks, names that change their address, TLS, and ending a wait."""

import contextlib
import http.client
import ipaddress
import shutil
import socket
import ssl
import subprocess
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from socket import AF_INET, AF_INET6

import pytest
from hypothesis import given
from hypothesis import strategies as st

from minigpt.common.errors import UserError
from minigpt.openai.safe_http import (
    ANYWHERE,
    Allowed,
    CheckedConnection,
    Forbidden,
    ProxyError,
    UnknownHost,
)

PATIENCE = 20  # seconds: a generous deadline for what takes a fraction of one
EVERYTHING = Allowed(["0.0.0.0/0", "::/0"])


def is_allowed(allowed, address):
    try:
        allowed.check(address)
    except Forbidden:
        return False
    return True


# -- networks --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "address",
    [
        *("127.0.0.1", "127.255.255.254", "::1", "10.0.0.1", "172.16.0.1", "172.31.255.255"),
        *("192.168.1.20", "fd12::1", "100.64.0.1", "100.127.255.255", "::ffff:192.168.1.20"),
    ],
)
def test_this_machine_and_private_networks_are_allowed(address):
    assert is_allowed(Allowed(), address)


@pytest.mark.parametrize(
    "address",
    [
        *("8.8.8.8", "172.32.0.1", "172.15.255.255", "192.169.0.1", "100.128.0.0", "11.0.0.1"),
        *("2606:4700::1111", "::ffff:8.8.8.8", "64:ff9b::808:808", "2002:7f00:1::", "fe00::1"),
    ],
)
def test_public_addresses_need_a_network_that_holds_them(address):
    assert not is_allowed(Allowed(), address)
    assert is_allowed(EVERYTHING, address)


@pytest.mark.parametrize(
    "address",
    [
        *("169.254.169.254", "169.254.0.1", "fe80::1", "fe80::1%1", "fd00:ec2::254"),
        *("100.100.100.200", "168.63.129.16", "fd20:ce::254", "224.0.0.1", "239.255.255.250"),
        *("ff02::1", "0.0.0.0", "0.1.2.3", "::", "255.255.255.255"),
        *("::ffff:169.254.169.254", "::ffff:100.100.100.200", "::ffff:0.0.0.0"),
        *("::ffff:224.0.0.1", "64:ff9b::169.254.169.254", "2002:a9fe:a9fe::1"),
    ],
)
def test_these_are_never_allowed(address):
    named = Allowed([f"{address.partition('%')[0]}"])
    for allowed in (Allowed(), EVERYTHING, named):
        assert not is_allowed(allowed, address)


@given(st.integers(0, 2**32 - 1))
def test_an_address_and_its_mapped_form_are_the_same(number):
    plain = ipaddress.IPv4Address(number)
    for allowed in (Allowed(), EVERYTHING):
        assert is_allowed(allowed, str(plain)) == is_allowed(allowed, f"::ffff:{plain}")


@given(st.ip_addresses())
def test_the_default_agrees_with_the_standard_library(address):
    """Python's own tables (IANA's registries): nothing public, link-local or multicast passes."""
    plain = getattr(address, "ipv4_mapped", None) or address
    if is_allowed(Allowed(), str(address)):
        assert not (plain.is_global or plain.is_link_local or plain.is_multicast)
        assert not (plain.is_unspecified or (plain.is_reserved and not plain.is_loopback))


def test_wrong_networks_are_named_together():
    with pytest.raises(UserError) as error:
        Allowed(["10.0.0.0/8", "10.0.0.0/33", "lab"])
    assert [line.split(":")[0] for line in str(error.value).splitlines()] == [
        "'10.0.0.0/33'",
        "'lab'",
    ]


# -- names -----------------------------------------------------------------------------------------


class Names:
    """A name server whose answers change: each look-up takes the next list of addresses."""

    def __init__(self, monkeypatch, *answers):
        self.answers, self.asked = list(answers), 0
        monkeypatch.setattr(socket, "getaddrinfo", self)

    def __call__(self, host, port, *more, **keywords):
        self.asked += 1
        return [
            (AF_INET6 if ":" in each else AF_INET, socket.SOCK_STREAM, 6, "", (each, port))
            for each in self.answers[min(self.asked, len(self.answers)) - 1]
        ]


def test_an_address_is_its_own_name():
    assert Allowed().resolve("127.0.0.1", 80) == [(AF_INET, "127.0.0.1")]
    with pytest.raises(Forbidden, match="no network setting"):
        EVERYTHING.resolve("169.254.169.254", 80)


@pytest.mark.parametrize("host", ["2130706433", "0x7f000001", "127.1"])
def test_other_spellings_are_checked_as_what_they_mean(host):
    with pytest.raises(Forbidden, match=r"127\.0\.0\.1 is outside"):
        Allowed(["10.0.0.0/8"]).resolve(host, 80)


def test_forbidden_addresses_of_a_name_are_left_out(monkeypatch):
    Names(monkeypatch, ["169.254.169.254", "10.0.0.7", "10.0.0.7", "fd00::7", "8.8.8.8"])
    expected = [(AF_INET, "10.0.0.7"), (AF_INET6, "fd00::7")]
    assert Allowed().resolve("lab", 80) == expected


def test_a_name_without_an_address(monkeypatch):
    Names(monkeypatch, [])
    with pytest.raises(UnknownHost, match="lab has no address"):
        Allowed().resolve("lab", 80)


def test_a_name_that_cannot_be_one():
    with pytest.raises(UnknownHost):
        Allowed().resolve("a" * 300, 80)


def test_a_look_up_that_takes_too_long(monkeypatch):
    answer = threading.Event()
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: answer.wait(PATIENCE) and [])
    with pytest.raises(TimeoutError, match=r"more than 0\.1 s"):
        Allowed().resolve("lab", 80, seconds=0.1)
    answer.set()


# -- connections -----------------------------------------------------------------------------------


class Hello(BaseHTTPRequestHandler):
    """Answers with the Host header that it was sent."""

    def do_GET(self):
        body = self.headers["Host"].encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


@pytest.fixture
def hello():
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hello)
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


def ask(connection):
    try:
        connection.request("GET", "/")
        response = connection.getresponse()
        with response:
            return response.status, response.read().decode()
    finally:
        connection.release()


def test_the_connection_goes_to_the_address_that_was_checked(monkeypatch, hello):
    """A name that means another machine at each look-up: there is only one, and its Host header
    stays the URL's."""
    names = Names(monkeypatch, ["127.0.0.1"], ["169.254.169.254"])
    connection = CheckedConnection("http", "rebind.test", hello.server_port, Allowed())
    assert ask(connection) == (200, f"rebind.test:{hello.server_port}")
    assert names.asked == 1
    with pytest.raises(Forbidden):
        ask(CheckedConnection("http", "rebind.test", hello.server_port, Allowed()))


def test_the_next_address_is_tried(monkeypatch, hello):
    """As localhost needs it where the server listens on 127.0.0.1 alone."""
    Names(monkeypatch, ["::1", "127.0.0.2", "127.0.0.1"])
    assert ask(CheckedConnection("http", "lab", hello.server_port, Allowed()))[0] == 200


def test_nobody_listens():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
        with pytest.raises(ConnectionRefusedError):
            ask(CheckedConnection("http", "127.0.0.1", port, Allowed()))


def test_proxies_of_the_environment_are_not_used(monkeypatch, hello):
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    assert ask(CheckedConnection("http", "127.0.0.1", hello.server_port, Allowed()))[0] == 200


@pytest.fixture
def certificate(tmp_path):
    """A self-signed certificate for lab.test and its key, in one file."""
    if shutil.which("openssl") is None:
        pytest.skip("there is no openssl here to make a certificate")
    file = tmp_path / "lab.pem"
    subprocess.run(
        [
            *("openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2"),
            *("-keyout", file, "-out", tmp_path / "cert.pem", "-subj", "/CN=lab.test"),
            *("-addext", "subjectAltName=DNS:lab.test"),
        ],
        check=True,
        capture_output=True,
    )
    file.write_text(file.read_text() + (tmp_path / "cert.pem").read_text())
    return file


def test_tls_is_checked_against_the_name_of_the_url(monkeypatch, hello, certificate):
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    asked_for = []
    context.sni_callback = lambda sock, name, _: asked_for.append(name)
    hello.socket = context.wrap_socket(hello.socket, server_side=True)
    port = hello.server_port

    Names(monkeypatch, ["127.0.0.1"])
    with pytest.raises(ssl.SSLCertVerificationError):  # nobody has said that it is to be trusted
        ask(CheckedConnection("https", "lab.test", port, Allowed()))
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
    assert ask(CheckedConnection("https", "lab.test", port, Allowed()))[0] == 200
    assert asked_for == ["lab.test", "lab.test"]
    with pytest.raises(ssl.SSLCertVerificationError):
        ask(CheckedConnection("https", "other.test", port, Allowed()))


def aborted(connection, in_the_meantime):
    """What a request raises when it is aborted while it waits, and how long that took."""
    raised, waiting = [], threading.Event()

    def work():
        waiting.set()
        try:
            ask(connection)
        except (OSError, http.client.HTTPException) as error:
            raised.append(error)

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    waiting.wait(PATIENCE)
    in_the_meantime()
    began = time.monotonic()
    connection.abort()
    thread.join(PATIENCE)
    assert not thread.is_alive() and raised
    return time.monotonic() - began


@pytest.mark.parametrize("scheme", ["http", "https"])
def test_abort_ends_a_read_that_blocks(scheme):
    """Of the answer, and of what opens a TLS connection."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        port = silent.getsockname()[1]
        connection = CheckedConnection(scheme, "127.0.0.1", port, Allowed(), 30)
        accepted = []

        def wait_for_the_request():
            accepted.append(silent.accept()[0])
            assert accepted[0].recv(1)

        assert aborted(connection, wait_for_the_request) < 1
        accepted[0].close()


@pytest.mark.skipif(not hasattr(socket, "SO_REUSEPORT"), reason="the backlog is a Unix's")
def test_abort_ends_a_connecting():
    with socket.socket() as full, socket.socket() as first, socket.socket() as second:
        full.bind(("127.0.0.1", 0))
        full.listen(0)
        for filler in (first, second):  # nobody accepts them, and there is no room for another
            filler.setblocking(False)
            filler.connect_ex(full.getsockname())
        port = full.getsockname()[1]
        connection = CheckedConnection("http", "127.0.0.1", port, Allowed(), connect_seconds=30)
        assert aborted(connection, lambda: time.sleep(0.3)) < 5


def test_abort_before_the_connection_and_twice(hello):
    connection = CheckedConnection("http", "127.0.0.1", hello.server_port, Allowed())
    connection.abort()
    with pytest.raises(ConnectionAbortedError):
        ask(connection)
    connection.abort()
    connection.release()


# -- proxies ---------------------------------------------------------------------------------------


@pytest.fixture
def proxy():
    """A proxy that passes CONNECT on to this machine, whatever the name: (its URL, the heads that
    it was sent). Without a password it refuses."""
    heads = []

    def copy(source, target):
        with contextlib.suppress(OSError):
            while data := source.recv(1 << 16):
                target.sendall(data)
            target.shutdown(socket.SHUT_WR)

    def serve(client):
        with client, client.makefile("rb", 0) as file:
            heads.append(b"".join(iter(file.readline, b"\r\n")).decode())
            if "Proxy-Authorization: Basic bWU6c2U6Y3JldA==" not in heads[-1]:
                return client.sendall(b"HTTP/1.1 407 Who are you\r\n\r\n")
            port = int(heads[-1].split()[1].rpartition(":")[2])
            with socket.create_connection(("127.0.0.1", port)) as server:
                client.sendall(b"HTTP/1.1 200 OK\r\n\r\n")
                threading.Thread(target=copy, args=(client, server), daemon=True).start()
                copy(server, client)

    def accept():
        with contextlib.suppress(OSError):
            while True:
                client, _ = listening.accept()
                threading.Thread(target=serve, args=(client,), daemon=True).start()

    with socket.create_server(("127.0.0.1", 0)) as listening:
        threading.Thread(target=accept, daemon=True).start()
        yield f"127.0.0.1:{listening.getsockname()[1]}", heads
        listening.shutdown(socket.SHUT_RDWR)


def test_tls_through_a_proxy_is_checked_against_the_server_s_name(hello, certificate, proxy):
    """The proxy gets the name to look up, and its password, and sees nothing else."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    hello.socket = context.wrap_socket(hello.socket, server_side=True)
    (address, heads), port = proxy, hello.server_port
    trust = ssl.create_default_context(cafile=certificate)

    def through(url, name="lab.test"):
        return ask(CheckedConnection("https", name, port, ANYWHERE, tls=trust, proxy=url))

    assert through(f"http://me:se%3Acret@{address}") == (200, f"lab.test:{port}")
    assert heads[0].startswith(f"CONNECT lab.test:{port} ")
    with pytest.raises(ssl.SSLCertVerificationError):
        through(f"http://me:se%3Acret@{address}", "other.test")
    with pytest.raises(ProxyError, match="407 Who are you"):
        through(f"http://{address}")
