"""Completions: what a client makes of servers that answer well, and in each way badly, on a real
socket."""

import json
import socket
import threading
import time
from email.utils import formatdate

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scripted_server import ScriptedServer, body, drip, error, garbage, good, half, reset, stall

from minigpt.common.errors import UserError
from minigpt.common.report import one_line
from minigpt.openai import client as client_module
from minigpt.openai.client import Client, listed
from minigpt.openai.errors import QuestionRefused, ServerUnusable, TemporaryError

KEY = "sk-very-secret-0123456789"
QUESTION = {"model": "scripted", "messages": [{"role": "user", "content": "首都？"}]}
SCHEMA = {"type": "json_schema", "json_schema": {"name": "answer", "schema": {}}}


pytestmark = pytest.mark.usefixtures("no_proxy")


def client(server, key=None, timeout=20, **more):
    return Client(server.base_url, key, timeout=timeout, **more)


def failure(server, kinds, **more):
    with pytest.raises(kinds) as caught:
        client(server, **more).ask(QUESTION)
    return caught.value


# -- answers ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("action", "text", "cut"),
    [
        (good("北京。"), "北京。", False),
        (good("北", finish_reason="length"), "北", True),
        (good("北", finish_reason="max_tokens"), "北", True),
        (good("北京。", reasoning_content="嗯"), "北京。", False),
        (good(None, reasoning_content="北京。"), "北京。", False),
        (good(" \n", reasoning="北京。"), "北京。", False),
        (good(None, finish_reason="length", reasoning_content="我想"), "", True),
        (good(None), "", False),
        (good([{"type": "text", "text": "北"}, "京", {"type": "image"}]), "北京", False),
        (good("\ud83d\ude00 \ud83d"), "😀 \ufffd", False),
        (body(b'\xef\xbb\xbf{"choices":[{"message":{"content":"\xff"}}]}'), "\ufffd", False),
    ],
)
def test_what_a_server_wrote(serve, action, text, cut):
    server = serve(action)
    answer = client(server, name="lab").ask(QUESTION)
    assert (answer.text, answer.cut, answer.server) == (text, cut, "lab")
    assert 0 < answer.seconds < 20


def test_tokens_are_counted_where_the_server_does(serve):
    assert client(serve(good("四个字。"))).ask(QUESTION)[2:4] == (100, 4)
    for usage in (
        None,
        [],
        {"prompt_tokens": -1, "completion_tokens": True},
        {"prompt_tokens": 1e9},
    ):
        said = {"choices": [{"message": {"content": "x"}}], "usage": usage}
        answer = client(serve(body(json.dumps(said).encode()))).ask(QUESTION)
        assert answer[2:4] == (None, None)


def test_what_is_sent(serve):
    server = serve(good("x"), key=KEY)
    question = dict(QUESTION, temperature=0.5, messages=[{"role": "user", "content": "\ud83d"}])
    client(server, KEY).ask(question)
    (asked,) = server.seen
    assert asked.body == question
    assert asked.headers["authorization"] == f"Bearer {KEY}"
    assert asked.headers["content-type"] == "application/json"


def test_connections_are_kept(serve):
    server = serve(good("x"))
    lab = client(server)
    for _ in range(5):
        lab.ask(QUESTION)
    assert server.connections == 1


def test_models(serve):
    server = serve(good("x"), models=("a", "b\n"))
    assert client(server).models() == ["a", "b"]
    assert client(serve(good("x"), lists_models=False)).models() is None


# -- the environment -------------------------------------------------------------------------------


def test_a_password_in_netrc_is_not_sent(serve, tmp_path, monkeypatch):
    netrc = tmp_path / "netrc"
    netrc.write_text("machine 127.0.0.1 login me password secret\n", encoding="utf-8")
    monkeypatch.setenv("NETRC", str(netrc))
    server = serve(good("x"))
    client(server).ask(QUESTION)
    client(server, KEY).ask(QUESTION)
    assert [asked.headers.get("authorization") for asked in server.seen] == [None, f"Bearer {KEY}"]


def test_proxies_are_for_other_machines(serve, monkeypatch):
    proxy = serve(good("x"))
    monkeypatch.setenv("http_proxy", proxy.base_url.removesuffix("/v1"))
    far = Client("http://far.invalid/v1", timeout=20)
    with pytest.raises(ServerUnusable, match="Not Found"):  # so says the proxy, which is none
        far.ask(QUESTION)
    assert proxy.connections == 1
    assert client(serve(good("near"))).ask(QUESTION).text == "near"
    assert proxy.connections == 1
    monkeypatch.setenv("no_proxy", "far.invalid")
    with pytest.raises(TemporaryError, match="has no address"):
        Client("http://far.invalid/v1", timeout=20).ask(QUESTION)
    monkeypatch.setenv("http_proxy", f"http://127.0.0.1:{unused_port()}")
    with pytest.raises(TemporaryError, match="through the proxy"):
        Client("http://other.invalid/v1", timeout=20).ask(QUESTION)


def unused_port():
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return sock.getsockname()[1]


def test_a_bundle_of_certificates_is_taken_from_the_environment(monkeypatch):
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", "")
    Client("https://far.invalid/v1")
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", "absent.pem")
    with pytest.raises(UserError, match=r"absent\.pem: no certificates"):
        Client("https://far.invalid/v1")


# -- what goes wrong on the way --------------------------------------------------------------------


@pytest.mark.parametrize(
    ("action", "kind", "message"),
    [
        (garbage(), "garbage", "it sent no JSON: <html>"),
        (half(), "garbage", "it sent no JSON"),
        (body(b"[]"), "garbage", "it sent no answer: []"),
        (body(b'{"choices": []}'), "garbage", "it sent no answer"),
        (body(b'{"choices": [{"message": null}]}'), "garbage", "it sent no answer"),
        (body(b'{"choices": [{"message": {"content": 7}}]}'), "garbage", "it sent no answer"),
        (body(b"[" * 200_000), "garbage", "it sent no JSON"),
        (body(b""), "garbage", "it sent no JSON"),
        (reset(), "broken off", ""),
        (reset(after=0.05, sent=0), "broken off", ""),
        (stall(0.05), "broken off", "it closed the connection"),
        (lambda reply: reply.send(b"SSH-2.0-x\r\n\r\n") or reply.close(), "garbage", "HTTP"),
        (body(b"1" * 10, headers={"Content-Encoding": "gzip"}), "garbage", "it sent no answer"),
        (lambda reply: (reply.send(reply.head(200, 99) + b"{"), reply.close()), "broken off", ""),
        (body(b"no", 500), "http 500", "500 no"),
        (body(b"<p>nginx</p>", 502), "http 502", "502 nginx"),
        (body(b'{"error": {"code": 502, "message": "up"}}'), "http 502", "up"),
        (body(b'{"error": "down"}'), "http 500", "down"),
        (body(b'{"error": {"code": "x"}}'), "http 500", '{"code": "x"}'),
        (error(408, "slow"), "http 408", "408 slow"),
        (error(409, "again"), "http 409", "409 again"),
    ],
)
def test_what_may_go_well_another_time(serve, action, kind, message):
    caught = failure(serve(action), TemporaryError)
    assert caught.kind == kind and message in str(caught)
    assert caught.retry_after is None and caught.overload == (kind == "http 408")


@pytest.mark.parametrize("action", [stall(), drip(), drip(part="head")])
def test_what_trickles_in_has_an_end(serve, action):
    server, began = serve(action), time.monotonic()
    caught = failure(server, TemporaryError, timeout=0.3)
    assert caught.kind == "timeout" and "0.3 s" in str(caught) and caught.overload
    assert 0.3 <= time.monotonic() - began < 5


def test_an_answer_without_length_is_no_answer_when_it_was_cut_off(serve):
    def endless(reply):
        said = {"choices": [{"message": {"content": "x"}}]}
        reply.send(b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n" + json.dumps(said).encode())
        reply.wait(10)

    assert failure(serve(endless), TemporaryError, timeout=0.3).kind == "timeout"


def test_the_end_of_one_question_leaves_the_next_alone(serve):
    server = serve(good("x"))
    lab = client(server, timeout=0.5)
    lab.ask(QUESTION)
    time.sleep(0.6)
    lab.ask(QUESTION)
    assert server.connections == 1  # the one that was kept is still there
    client(server).ask(QUESTION)
    deadline = time.monotonic() + 10
    while any(isinstance(thread, threading.Timer) for thread in threading.enumerate()):
        assert time.monotonic() < deadline, "threads that wait for nothing"
        time.sleep(0.01)


def test_an_answer_has_a_size(serve, monkeypatch):
    server = serve(good("x" * 5000))
    assert len(client(server).ask(QUESTION).text) == 5000
    monkeypatch.setattr(client_module, "MAX_BYTES", 5000)
    assert failure(server, TemporaryError).kind == "too long"

    def endless(reply):
        reply.send(b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n")
        while not reply.wait(0.001):
            reply.send(b" " * 1000)

    assert failure(serve(endless), TemporaryError, timeout=10).kind == "too long"


def test_nobody_is_there():
    for url, kind in (
        (f"http://127.0.0.1:{unused_port()}/v1", "refused"),
        ("http://far.invalid/v1", "unknown host"),
    ):
        with pytest.raises(TemporaryError) as caught:
            Client(url, timeout=20).ask(QUESTION)
        assert caught.value.kind == kind and not caught.value.overload


def test_no_tls_there(serve):
    server = serve(good("x"))
    with pytest.raises(TemporaryError) as caught:
        Client(server.base_url.replace("http:", "https:"), timeout=20).ask(QUESTION)
    assert caught.value.kind == "tls"


def test_another_address_is_not_followed(serve):
    other = serve(good("x"))
    moved = serve(error(307, "gone", {"Location": other.base_url + "/chat/completions"}))
    assert "which is not followed" in str(failure(moved, TemporaryError, key=KEY))
    assert other.connections == 0


@pytest.mark.parametrize("status", [429, 503])
def test_retry_after(serve, status):
    def wait(text):
        return failure(
            serve(error(status, "slow", {"Retry-After": text})), TemporaryError
        ).retry_after

    assert wait("7") == 7 and wait("0.5") == 0.5 and wait("-3") == 0
    assert 55 < wait(formatdate(time.time() + 60, usegmt=True)) <= 60
    assert wait("Wed, 21 Oct 2015 07:28:00 GMT") == 0
    assert wait("soon") is None and wait("nan") is None and wait("") is None
    assert failure(serve(error(status, "slow")), TemporaryError).overload


# -- what a server says ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("status", "said", "kind", "message"),
    [
        (401, "no", ServerUnusable, "it wants a key: name its variable in api_key_env (401 no)"),
        (403, "no", ServerUnusable, "it wants a key"),
        (403, "your input was flagged", QuestionRefused, "403 your input was flagged"),
        (400, "API key not valid. Please pass one", ServerUnusable, "it wants a key"),
        (
            402,
            "Insufficient Balance",
            ServerUnusable,
            "it wants to be paid (402 Insufficient Balance)",
        ),
        (
            404,
            "model 'x' not found, try pulling it",
            ServerUnusable,
            "it has no model scripted, but scripted",
        ),
        (405, "Method Not Allowed", ServerUnusable, "it has no model"),
        (400, "Model Not Exist", ServerUnusable, "it has no model"),
        (400, "Invalid model: qwen2.5", ServerUnusable, "it has no model"),
        (400, "qwen/x is not a valid model ID", ServerUnusable, "it has no model"),
        (400, "The model `qwen2.5-7b` does not exist", ServerUnusable, "it has no model"),
        (400, "No models loaded. Please load one", ServerUnusable, "it has no model"),
        (400, "模型不存在，请检查模型代码。", ServerUnusable, "it has no model"),
        (
            400,
            "This model's maximum context length is 4096 tokens",
            QuestionRefused,
            "context length",
        ),
        (400, "max_tokens or max_completion_tokens is too large: 9", QuestionRefused, "too large"),
        (413, "too large", QuestionRefused, "413 too large"),
        (422, "Unprocessable", QuestionRefused, "422 Unprocessable"),
        (429, "Rate limit: the model does not exist for you", TemporaryError, "429 Rate limit"),
        (503, "Loading model", TemporaryError, "503 Loading model"),
    ],
)
def test_what_an_error_means(serve, status, said, kind, message):
    question = dict(QUESTION, max_tokens=9)
    with pytest.raises((ServerUnusable, QuestionRefused, TemporaryError)) as caught:
        client(serve(error(status, said))).ask(question)
    assert type(caught.value) is kind and message in str(caught.value)


def test_no_api_there(serve):
    server = serve(good("x"), lists_models=False)
    nowhere = Client(server.base_url + "/elsewhere", timeout=20)
    with pytest.raises(ServerUnusable, match="no model scripted, or no OpenAI API at this address"):
        nowhere.ask(QUESTION)


@pytest.mark.parametrize(
    ("said", "message"),
    [
        ({"error": {"message": "m"}}, "422 m"),
        ({"error": "m"}, "422 m"),
        ({"object": "error", "message": "m"}, "422 m"),
        ({"detail": [{"loc": ["body"], "msg": "m"}]}, '422 [{"loc": ["body"], "msg": "m"}]'),
        ({"error": {"message": "a\x1b[31m\n b\u202e"}}, "422 a [31m b"),
        ({"error": {"message": "长" * 999}}, "422 " + "长" * 296 + "…"),
        ([], "422 []"),
    ],
)
def test_error_messages(serve, said, message):
    server = serve(error(422, said))
    assert str(failure(server, QuestionRefused)) == f"{server.base_url}: {message}"


def test_the_key_is_never_printed(serve):
    sent = f"You sent Bearer {KEY} to us"
    actions = [error(status, sent) for status in (400, 401, 403, 404, 429, 500)]
    actions += [
        *(body(sent.encode()), body(sent.encode(), 500), body(json.dumps([sent]).encode())),
        *(body(b" " * 150 + (KEY * 20).encode()), error(400, {"detail": [sent]})),
        error(400, "x" * 290 + KEY),
        lambda reply: (reply.send(f"{KEY}\r\n\r\n".encode()), reply.close()),
    ]
    for action in actions:
        caught = failure(serve(action, models=(KEY, "scripted")), Exception, key=KEY)
        assert KEY[:8] not in str(caught) and KEY[:8] not in repr(caught)
    assert KEY not in repr(Client("http://localhost/v1", KEY))


# -- fields that a server does not take ------------------------------------------------------------


def picky(field, message, status=400):
    """A script that refuses what has this field."""
    return lambda asked: error(status, message) if field in asked.body else good("x")


@pytest.mark.parametrize(
    ("field", "value", "status", "message"),
    [
        ("response_format", SCHEMA, 400, "'response_format.type' must be 'text'"),
        ("response_format", SCHEMA, 422, "json_schema: extra fields not permitted"),
        ("response_format", SCHEMA, 500, "failed to parse grammar"),
        ("seed", 7, 422, {"detail": [{"loc": ["body", "seed"], "msg": "Extra inputs"}]}),
        ("max_tokens", 50, 400, "Unsupported: 'max_tokens'. Use 'max_completion_tokens' instead."),
    ],
)
def test_a_field_that_it_does_not_take(serve, field, value, status, message):
    server, news = serve(script=picky(field, message, status)), []
    lab = client(server, name="lab", warn=news.append)
    question = {**QUESTION, "temperature": 0.5, field: value}
    assert lab.ask(question).text == lab.ask(question).text == "x"
    without = dict(QUESTION, temperature=0.5)
    if field == "max_tokens":
        without["max_completion_tokens"] = value
    assert [asked.body for asked in server.seen] == [question, without, without]
    assert news == [f"lab: it does not take {field}; it is asked without from now on"]


def test_fields_are_left_out_for_good_only_if_that_helped(serve):
    server, news = serve(error(400, "bad structured question")), []
    lab = client(server, warn=news.append)
    for _ in range(2):
        with pytest.raises(QuestionRefused):
            lab.ask(dict(QUESTION, response_format=SCHEMA))
    assert ["response_format" in asked.body for asked in server.seen] == [True, False] * 2
    assert not news


def test_several_fields(serve):
    def script(asked):
        wrong = {"seed": "seed?", "response_format": "json_schema?"}
        said = [text for name, text in wrong.items() if name in asked.body]
        return error(400, said[0]) if said else good("x")

    server = serve(script=script)
    client(server, warn=lambda text: None).ask(dict(QUESTION, seed=1, response_format=SCHEMA))
    assert len(server.seen) == 3 and server.seen[-1].body == QUESTION


# -- whatever comes --------------------------------------------------------------------------------

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["choices", "message", "content", "error", "code", "usage", "text"]),
            inner,
            max_size=3,
        )
    ),
    max_leaves=12,
)


@given(st.binary(max_size=40) | JSON.map(lambda value: json.dumps(value).encode()), st.booleans())
def test_whatever_comes_is_an_answer_or_one_of_the_errors(any_server, data, is_error):
    server, lab = any_server
    server.script = lambda asked: body(data, 418 if is_error else 200)
    try:
        assert isinstance(lab.ask(QUESTION).text, str)
    except (TemporaryError, QuestionRefused, ServerUnusable) as caught:
        assert str(caught).isprintable() and len(str(caught)) < 500


@pytest.fixture(scope="module")
def any_server():
    with ScriptedServer(None) as server:
        yield server, Client(server.base_url, timeout=20)


@given(st.text(max_size=50), st.integers(1, 20))
def test_one_line_is_one(text, most):
    line = one_line(text, most)
    assert line.isprintable() and len(line) <= most + 1 and "  " not in line
    assert one_line(line, most + 1) == line


def test_long_lists_of_models_are_cut():
    assert listed([]) == "none"
    assert listed([str(n) for n in range(20)]).endswith("18, 19")
    assert listed([str(n) for n in range(25)]).endswith("18, 19 and 5 more")
