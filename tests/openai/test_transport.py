"""The transport and the readers of answers, where both clients use them alike: connections that are
kept, proxies of the environment, answers of another type than was asked for."""

import json
import select
import socket
import threading

import pytest
from scripted_server import ScriptedServer, body, error, good

from minigpt.common.errors import UserError
from minigpt.openai.answers import AnswerPart, joined, read_parts
from minigpt.openai.errors import ApiError
from minigpt.openai.events import END_OF_STREAM, HEARTBEAT, encode_event
from minigpt.openai.transport import Caps, Transport, proxy_of_environment

pytestmark = pytest.mark.usefixtures("no_proxy")
CAPS = Caps()
ROUTE = "/v1/chat/completions"
BODY = {"model": "scripted", "messages": []}


def read(transport, streamed=False, caps=CAPS):
    with transport.exchange("POST", ROUTE, BODY, caps=caps) as response:
        return joined(read_parts(response, streamed))


def test_a_connection_is_kept_after_an_error_too_and_replaced_when_the_server_closed_it():
    with ScriptedServer(
        lambda asked: good("x") if asked.number % 2 else error(429, "no")
    ) as server:
        transport = Transport(server.base_url, keep=2)
        for turn in range(4):
            if turn % 2:
                with pytest.raises(ApiError, match="429"):
                    read(transport)
            else:
                read(transport)
        assert server.connections == 1
        server.die()
        server.revive()
        select.select([transport._idle[0].sock], [], [], 20)  # until it is closed here
        assert read(transport).text == "x" and server.connections == 2
        transport.close()


def test_what_is_not_read_to_its_end_is_not_kept(serve):
    """The rest of the first answer, which is still to come, would be taken for the second one."""

    def script(asked):
        if asked.number > 1:
            return good("x")
        return lambda reply: (reply.send(reply.head(200, 99) + b"{"), reply.wait(20))

    server = serve(script=script)
    transport = Transport(server.base_url, keep=2)
    with transport.exchange("POST", ROUTE, BODY) as response:
        next(response.chunks())
    assert read(transport).text == "x" and server.connections == 2


@pytest.mark.parametrize("streamed", [True, False])
def test_the_content_type_says_how_an_answer_is_read(serve, streamed):
    """Whatever was asked for: some servers cannot stream, and some cannot but stream."""
    chunks = [{"content": "北"}, {"content": "京", "reasoning_content": "嗯"}]
    events = [encode_event({"choices": [{"delta": delta}]}) for delta in chunks]
    stream = (HEARTBEAT + HEARTBEAT.join(events) + END_OF_STREAM).encode()
    head = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nContent-Length: %d\r\n\r\n"
    server = serve(lambda reply: reply.send(head % len(stream) + stream))
    assert read(Transport(server.base_url), streamed) == AnswerPart("北京", "嗯")
    assert read(Transport(serve(good("北京")).base_url), streamed).text == "北京"


def test_an_error_names_its_status_and_what_was_said(serve):
    said = {"error": {"message": "up", "code": 503}}
    with pytest.raises(ApiError) as caught:
        read(Transport(serve(body(json.dumps(said).encode())).base_url))
    assert (caught.value.kind, caught.value.status, caught.value.said) == ("error", 503, "up")


def test_a_body_that_is_shorter_than_it_says_is_broken_off(serve):
    server = serve(lambda reply: (reply.send(reply.head(200, 99) + b"{}"), reply.close()))
    with pytest.raises(ApiError) as caught:
        read(Transport(server.base_url))
    assert caught.value.kind == "broken off"


def test_a_connection_that_is_never_made_is_unreachable(monkeypatch):
    looked_up, answer = threading.Event(), threading.Event()

    def silent(*_, **__):
        looked_up.set()
        answer.wait(20)
        raise OSError

    monkeypatch.setattr(socket, "getaddrinfo", silent)
    with pytest.raises(ApiError, match="no connection") as caught:
        read(Transport("http://silent.test/v1"), caps=Caps(connect_seconds=0.1))
    answer.set()
    assert caught.value.kind == "unreachable" and looked_up.is_set()


def test_the_proxy_of_the_environment(monkeypatch):
    monkeypatch.setenv("https_proxy", "proxy.test:8080")
    monkeypatch.setenv("all_proxy", "socks5://127.0.0.1:1080")
    monkeypatch.setenv("no_proxy", "lab.test,192.168.0.0/16, 10.1.0.0/16")
    assert proxy_of_environment("https://far.test/v1") == "http://proxy.test:8080"
    for near in ("localhost:1234", "127.0.0.1", "lab.test", "192.168.1.20:5000", "10.1.2.3"):
        assert proxy_of_environment(f"http://{near}/v1") is None
    with pytest.raises(UserError, match="a proxy of kind socks5: expected http://HOST:PORT"):
        proxy_of_environment("http://10.2.0.1/v1")
