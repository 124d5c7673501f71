"""The Host allow-list, alone and in both servers, against requests with a forged Host header."""

import contextlib
import http.client
import socket
import threading

import pytest

from minigpt.common.errors import UserError
from minigpt.serving.allowed_hosts import AllowedHosts
from minigpt.serving.app import make_app
from minigpt.serving.service import Options, Service
from minigpt.serving.wsgi import flush, listen


@pytest.mark.parametrize(
    "header",
    [
        *("localhost", "localhost:5000", "LOCALHOST:5000", "localhost.", "localhost.:80"),
        *("arena.localhost", "127.0.0.1", "127.0.0.1:7860", "127.9.9.9", "192.168.1.20:5000"),
        *(
            "203.0.113.9",
            "127.0.0.1.",
            "[::1]",
            "[::1]:5000",
            "[2001:db8::7]:80",
            "[::ffff:127.0.0.1]:80",
        ),
        *("[2001:db8::7]:80", "[::ffff:127.0.0.1]:80", None, "", "localhost:"),
    ],
)
def test_names_of_this_machine_and_addresses(header):
    assert AllowedHosts().allows(header)


@pytest.mark.parametrize(
    "header",
    [
        *("evil.example", "evil.example:5000", "localhost.evil.example", "127.0.0.1.evil.example"),
        *("evil-localhost", "notlocalhost:80", "1e100", "0x7f.1", "127.1.evil"),
        *("localhost, evil.example", "evil.example, localhost", "localhost:80:80", "::1", "[::1"),
        *("localhost@evil.example", "evil.example/localhost", "localhost evil", "local\thost"),
        *("[evil.example]", "[]", ":80", ".", "..", "a..b", "localhost:x", "é" * 300, "\x00"),
    ],
)
def test_other_names_and_garbage(header):
    assert not AllowedHosts().allows(header)
    line = AllowedHosts().refusal(header)
    assert "--allowed_hosts=" in line and len(line) < 300 and line.isprintable()


def test_own_and_further_names(monkeypatch):
    monkeypatch.setattr(socket, "gethostname", lambda: "Lab-PC.example.org")
    hosts = AllowedHosts(["arena.example.net", "bücher.example", "proxy:8443"], host="box")
    for name in ("lab-pc", "lab-pc.local", "lab-pc.example.org", "arena.example.net.", "box:1"):
        assert hosts.allows(name), name
    assert hosts.allows("xn--bcher-kva.example") and hosts.allows("PROXY")
    for name in ("lab-pc.evil.example", "sub.arena.example.net", "example.net"):
        assert not hosts.allows(name), name
    assert AllowedHosts(["*"]).allows("evil.example")


def test_what_is_no_name():
    with pytest.raises(UserError) as caught:
        AllowedHosts(["http://a.example", "a.example/b", "good.example", ""])
    assert str(caught.value).count("expected a host name") == 3


# -- in the servers --------------------------------------------------------------------------------


def ask(port, host, path="/", method="GET", at="127.0.0.1", **headers):
    """(status, headers, text) of a request with this Host header; None: without one."""
    connection = http.client.HTTPConnection(at, port, timeout=20)
    with contextlib.closing(connection):
        connection.putrequest(method, path, skip_host=True)
        if host is not None:
            connection.putheader("Host", host)
        for name, value in headers.items():
            connection.putheader(name.replace("_", "-"), value)
        connection.endheaders()
        answer = connection.getresponse()
        return answer.status, answer.headers, answer.read().decode()


@pytest.fixture
def serve_api():
    """serve_api(options, host): the port of an API without models."""
    servers = []

    def start(options, host="127.0.0.1"):
        server = listen(make_app(Service(options)), host, 0, threads=4)
        servers.append(server)
        threading.Thread(target=server.run, daemon=True).start()
        return server.effective_port

    yield start
    for server in servers:
        flush(server)


def test_the_api_refuses_a_rebinding_page(serve_api):
    port = serve_api(Options(api_key="hush", cors_origins=("http://notes.example",)))
    for path in ("/", "/openapi.json", "/v1/models", "/nowhere"):  # with a key or without
        status, _, text = ask(port, f"evil.example:{port}", path)
        assert status == 403 and "--allowed_hosts=evil.example" in text
    status, headers, text = ask(port, "evil.example", "/v1/models")
    assert headers["Content-Type"] == "application/json; charset=utf-8"
    assert '"host_not_allowed"' in text
    assert ask(port, "localhost, evil.example")[0] == 403
    assert ask(port, "bad host")[0] == 403
    for host in ("localhost", f"127.0.0.1:{port}", "[::1]", "10.0.0.9"):
        assert ask(port, host)[0] == 200
    assert ask(port, "localhost", "/v1/models")[0] == 401  # the key is still asked for


def test_a_preflight_of_an_allowed_origin(serve_api):
    port = serve_api(Options(cors_origins=("http://notes.example",)))
    asks = {"Origin": "http://notes.example", "Access_Control_Request_Method": "POST"}
    status, headers, _ = ask(port, f"localhost:{port}", "/v1/completions", "OPTIONS", **asks)
    assert status == 200 and headers["Access-Control-Allow-Origin"] == "http://notes.example"
    assert ask(port, "evil.example", "/v1/completions", "OPTIONS", **asks)[0] == 403


def test_a_name_that_its_owner_allows(serve_api):
    port = serve_api(Options(allowed_hosts=AllowedHosts(["llm.example"])))
    assert ask(port, "llm.example:8443")[0] == 200
    assert ask(port, "other.example")[0] == 403


def test_the_api_on_ipv6(serve_api):
    with socket.socket(socket.AF_INET6) as probe:
        try:
            probe.bind(("::1", 0))
        except OSError:
            pytest.skip("this machine has no IPv6")
    port = serve_api(Options(), "::1")
    assert ask(port, f"[::1]:{port}", at="::1")[0] == 200
    assert ask(port, "evil.example", at="::1")[0] == 403
