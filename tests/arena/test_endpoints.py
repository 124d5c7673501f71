"""Endpoints: real servers that behave and misbehave, our own server, local runs,
and the list that people write."""

import contextlib
import json
import socket
import threading
import time
from types import SimpleNamespace

import pytest
import requests
from hypothesis import given
from hypothesis import strategies as st
from local_server import serve_runs
from tiny_run import save_scripted_run

from minigpt.arena.battles import Battle, SettingRefused
from minigpt.arena.endpoints import (
    CAUTIOUS,
    SETTINGS,
    Endpoint,
    EndpointError,
    Endpoints,
    Preset,
    read_presets,
)
from minigpt.arena.local_runs import LocalModel, LocalRun
from minigpt.common.errors import UserError
from minigpt.data.prompts import chat_ids, stop_ids
from minigpt.inference.engine import Engine
from minigpt.inference.scheduler import QueueLimits, RequestScheduler
from minigpt.models import checkpoint
from minigpt.openai.events import EventReader
from minigpt.openai.safe_http import Allowed
from minigpt.openai.transport import Caps

PATIENCE = 20  # seconds: a generous deadline for what takes a fraction of one
ASK = [{"role": "user", "content": "首都？"}]
KEY = "sk-very-secret-0123456789"


def until(condition):
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


# -- servers of bytes ------------------------------------------------------------------------------


class Raw:
    """A server whose every answer is written by hand. script(sock, path) writes to the socket;
    `requests` are the (head, body) that came."""

    def __init__(self, script):
        self.script, self.requests = script, []
        self.listening = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self.listening.getsockname()[1]}"
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self):
        with contextlib.suppress(OSError):
            while True:
                sock, _ = self.listening.accept()
                threading.Thread(target=self._serve, args=(sock,), daemon=True).start()

    def _serve(self, sock):
        with sock, contextlib.suppress(OSError), sock.makefile("rb") as file:
            head = b"".join(iter(file.readline, b"\r\n")).decode()
            length = int(head.lower().partition("content-length:")[2].split("\r\n")[0] or 0)
            self.requests.append((head, json.loads(file.read(length) or "null")))
            self.script(sock, head.split()[1])


@pytest.fixture
def serve():
    """serve(script or bytes): a Raw server, stopped at the end."""
    servers = []

    def start(script):
        data = script if isinstance(script, bytes) else None
        servers.append(Raw(script if data is None else lambda sock, path: sock.sendall(data)))
        return servers[-1]

    yield start
    for server in servers:
        with contextlib.suppress(OSError):  # wakes the thread that accepts
            server.listening.shutdown(socket.SHUT_RDWR)
        server.listening.close()


SSE_HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream; charset=utf-8\r\n\r\n"
DONE = b"data: [DONE]\n\n"


def answer(body, status="200 OK", kind="application/json"):
    body = body if isinstance(body, bytes) else json.dumps(body).encode()
    head = f"HTTP/1.1 {status}\r\nContent-Type: {kind}\r\nContent-Length: {len(body)}\r\n\r\n"
    return head.encode() + body


def chunk(text=None, reason=None, **more):
    delta = {} if text is None else {"content": text}
    return {"choices": [{"index": 0, "delta": delta, "finish_reason": reason}], **more}


def event(value, end="\n"):
    return f"data: {json.dumps(value, ensure_ascii=False)}{end}{end}".encode()


def streamed(*texts, reason="stop"):
    """The bytes of a stream that writes these texts."""
    chunks = [*map(chunk, texts), chunk(reason=reason)]
    return SSE_HEAD + b"".join(map(event, chunks)) + DONE


def endpoint(server, model="m", **more):
    url = server if isinstance(server, str) else server.url
    return Endpoint("lab", url, model, **more)


def read(server, **more):
    """(text, the side) of one answer."""
    side = endpoint(server, **more).side()
    return "".join(side.stream(ASK, {})), side


def failure(server, **more):
    with pytest.raises(EndpointError) as caught:
        read(server, **more)
    assert caught.value.message.startswith("lab (http") and len(caught.value.message) < 400
    assert caught.value.message == str(caught.value)
    return caught.value


# -- streams that are right ------------------------------------------------------------------------


def test_a_stream(serve):
    server = serve(streamed("北", "京", "。"))
    side = endpoint(server).side()
    assert list(side.stream(ASK, {"temperature": 0.5, "seed": None})) == ["北", "京", "。"]
    assert side.finish_reason == "stop" and side.usage is None
    head, body = server.requests[0]
    assert head.startswith("POST /v1/chat/completions HTTP/1.1\r\n") and "Authorization" not in head
    assert body == dict(
        model="m",
        messages=ASK,
        stream=True,
        temperature=0.5,
        stream_options={"include_usage": True},
    )


@pytest.mark.parametrize(
    "base, path",
    [
        *(("", "/v1"), ("/", "/v1"), ("/v1", "/v1"), ("/v1/", "/v1"), ("/llm", "/llm/v1")),
        *(("/api/paas/v4", "/api/paas/v4"), ("/v1beta/openai", "/v1beta/openai")),
        ("/v1/chat/completions", "/v1"),
    ],
)
def test_the_address_with_or_without_its_version(serve, base, path):
    server = serve(streamed("a"))
    assert read(server.url + base)[0] == "a"
    assert server.requests[0][0].split()[1] == f"{path}/chat/completions"


def test_the_usage(serve):
    counts = {"prompt_tokens": 5, "completion_tokens": 3, "total_tokens": 8, "details": {"x": 1}}
    last = event({"choices": [], "usage": counts})
    server = serve(SSE_HEAD + event(chunk("a", usage=None)) + event(chunk(None, "length")) + last)
    text, side = read(server)
    assert (text, side.finish_reason) == ("a", "length")
    assert side.usage == {"prompt_tokens": 5, "completion_tokens": 3, "total_tokens": 8}


def test_comments_and_other_line_ends_and_a_byte_order_mark(serve):
    first = event(chunk("天"), end="\r\n")
    last = event(chunk("地", "stop"), end="\r")
    between = b": still here\r\n\r\nid: 7\nevent: chunk\nretry: 5\n\n"
    server = serve(SSE_HEAD + b"\xef\xbb\xbf" + first + between + last + DONE)
    assert read(server)[0] == "天地"


def test_chunked_and_cut_anywhere(serve):
    def script(sock, _):
        sock.sendall(SSE_HEAD[:-2] + b"Transfer-Encoding: chunked\r\n\r\n")
        for byte in event(chunk("天😀")) + event(chunk("地", "stop")):
            for part in (b"1\r", b"\n" + bytes([byte]), b"\r\n"):
                sock.sendall(part)
        sock.sendall(b"0\r\n\r\n")

    assert read(serve(script))[0] == "天😀地"


@given(
    st.lists(st.text(st.characters(exclude_categories=["Cs"]), max_size=5), max_size=6),
    st.sampled_from(["\n", "\r\n", "\r"]),
    st.lists(st.integers(1, 9), min_size=1),
)
def test_events_are_the_same_however_they_are_cut(values, end, sizes):
    data = b"".join(event(value, end) + f": x{end}".encode() for value in values) + b"x"
    events, found, at = EventReader(), [], 0
    while at < len(data):
        size = sizes[at % len(sizes)]
        found += events.push(data[at : at + size])
        at += size
    assert [json.loads(each) for each in found] == values


def test_half_characters(serve):
    """Half a UTF-8 character, and surrogate pairs that JSON spells in halves."""
    broken = event(chunk("X")).replace(b"X", b"\xe5\xa4")
    halves = event(chunk("H")).replace(b"H", rb"a\ud83d") + event(chunk("H")).replace(
        b"H", rb"\ude00\ud83d"
    )
    text, _ = read(serve(SSE_HEAD + broken + halves + event(chunk("", "stop"))))
    assert text == "\ufffda😀\ufffd"
    text.encode()


def test_an_answer_in_one_piece(serve):
    message = {"role": "assistant", "content": "北京。"}
    usage = {"prompt_tokens": 1, "completion_tokens": 2, "total_tokens": 3}
    body = {"choices": [{"message": message, "finish_reason": "stop"}], "usage": usage}

    def script(sock, _):  # and a server that does not close the connection when it has answered
        sock.sendall(answer(body, kind="application/json; charset=utf-8"))
        sock.recv(1)

    text, side = read(serve(script))
    assert (text, side.finish_reason, side.usage) == ("北京。", "stop", usage)


def test_no_text_and_fields_that_we_do_not_know(serve):
    thinking = {"choices": [{"delta": {"role": "assistant", "content": None, "reasoning": "…"}}]}
    assert read(serve(SSE_HEAD + event(thinking) + event(chunk(None, "stop"))))[0] == ""


def test_a_long_conversation_of_surrogates_can_be_sent(serve):
    server = serve(streamed("a"))
    side = endpoint(server).side()
    list(side.stream([{"role": "user", "content": "x\ud800y"}], {}))
    assert server.requests[0][1]["messages"][0]["content"] == "x\ud800y"


def test_what_comes_after_the_text_cannot_spoil_it(serve):
    server = serve(SSE_HEAD + event(chunk("all", "stop")))
    assert read(server)[0] == "all"

    def script(sock, _):
        sock.sendall(SSE_HEAD + event(chunk("all", "stop")))
        sock.recv(1)

    assert read(serve(script), caps=Caps(idle_seconds=0.2))[1].finish_reason == "stop"


def test_a_server_that_refuses_to_tell_the_usage(serve):
    refused = {"detail": [{"loc": ["body", "stream_options"], "msg": "Extra inputs"}]}

    def script(sock, _):
        asked = "stream_options" in server.requests[-1][1]
        sock.sendall(answer(refused, "422 Unprocessable Content") if asked else streamed("a"))

    server = serve(script)
    assert read(server)[0] == "a" and len(server.requests) == 2


def unsupported(name):
    """OpenAI's answer to a setting that a model does not take."""
    message = f"Unsupported parameter: '{name}' is not supported with this model."
    error = dict(message=message, type="invalid_request_error", param=name)
    error["code"] = "unsupported_parameter"
    return answer({"error": error}, "400 Bad Request")


def refusing(serve, *names):
    """A server that refuses these settings, one after the other."""

    def script(sock, path):
        if path.endswith("/models"):
            return sock.sendall(answer({"data": [{"id": "m"}]}))
        asked = server.requests[-1][1]
        refused = next((name for name in names if name in asked), None)
        sock.sendall(unsupported(refused) if refused else streamed("甲", "乙"))

    server = serve(script)
    return server


def settings_asked(server):
    """The sampling settings of each answer that was asked for."""
    bodies = [body for _, body in server.requests if body]
    return [sorted(set(body) & {*SETTINGS, "max_completion_tokens"}) for body in bodies]


def test_a_setting_that_one_server_refuses_is_left_out_for_all(serve):
    """In this battle, which begins again, and in the next, which does not."""
    strict, open_minded = refusing(serve, "temperature", "top_p"), refusing(serve)
    pair = [Endpoint("strict", strict.url, "m"), Endpoint("free", open_minded.url, "m")]
    wanted = {"temperature": 0.5, "top_p": 0.9, "max_tokens": 20}
    for n_asked in (3, 4):
        battle = Battle(ASK, wanted, [each.side() for each in pair], 20)
        assert battle.wait(20)
        assert [state.text for state in battle.snapshot()] == ["甲乙", "甲乙"]
        assert battle.settings == {"max_tokens": 20}
        assert battle.unsupported == ["temperature", "top_p"]
        assert len(settings_asked(strict)) == n_asked
        assert settings_asked(strict)[-1] == settings_asked(open_minded)[-1] == ["max_tokens"]
    assert pair[0].takes == {"max_tokens", "stop"} and "top_p" in pair[1].takes


def test_the_newer_name_of_the_length_is_no_refusal(serve):
    server = refusing(serve, "max_tokens")
    side = endpoint(server).side()
    assert "".join(side.stream(ASK, {"max_tokens": 20})) == "甲乙"
    assert settings_asked(server) == [["max_tokens"], ["max_completion_tokens"]]
    server = refusing(serve, "max_tokens", "max_completion_tokens")
    with pytest.raises(SettingRefused, match="max_tokens"):
        list(endpoint(server).side().stream(ASK, {"max_tokens": 20}))


# -- streams that are wrong ------------------------------------------------------------------------


@pytest.fixture
def nobody():
    """An address where nothing listens."""
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        yield f"http://127.0.0.1:{held.getsockname()[1]}"


def test_nothing_listens(nobody):
    error = failure(nobody)
    assert error.kind == "refused" and "is the server running?" in error.message


@pytest.mark.parametrize(
    "sent, kind",
    [
        (b"", "broken off"),
        (b"SSH-2.0-OpenSSH_9.6\r\n\r\n", "garbage"),
        (b"HTTP/1.1 abc\r\n\r\n", "garbage"),
        (b"HTTP/1.1 200 OK\r\n" + b"A: b\r\n" * 200 + b"\r\n", "garbage"),
        (b"HTTP/1.1 200 OK\r\nA: " + b"x" * 100_000, "garbage"),
        (answer(b"<html>hello"), "garbage"),
        (answer(b"[" * 100_000), "garbage"),
        (answer(b"[1]"), "garbage"),
        (answer({"hello": 1}), "garbage"),
        (answer({"choices": [{"message": {"content": 7}}]}), "garbage"),
        (answer({"error": {"message": "no"}}), "error"),
        (answer(b"<html>hello", kind="text/html"), "garbage"),
        (SSE_HEAD, "broken off"),
        (SSE_HEAD + event(chunk("a")), "broken off"),
        (SSE_HEAD + b"data: {no json}\n\n", "garbage"),
        (SSE_HEAD + b"data: [" + b"[" * 100_000 + b"\n\n", "garbage"),
        (SSE_HEAD + event([1]), "garbage"),
        (SSE_HEAD + event({"choices": {"a": 1}}), "garbage"),
        (SSE_HEAD + event({"choices": [{"delta": "text"}]}), "garbage"),
        (SSE_HEAD + event(chunk({"a": 1})), "garbage"),
        (SSE_HEAD[:-2] + b"Transfer-Encoding: chunked\r\n\r\nzz\r\nabc", "broken off"),
        (SSE_HEAD[:-2] + b"Transfer-Encoding: chunked\r\n\r\nff\r\nabc", "broken off"),
    ],
)
def test_what_is_no_answer(serve, sent, kind):
    assert failure(serve(sent)).kind == kind


@pytest.mark.parametrize(
    "said",
    [
        event({"error": {"message": "out of memory", "code": 500}}),
        event({"error": "out of memory"}),
        event({"object": "error", "message": "out of memory"}),
        event({"error": {"message": "out of memory"}}).replace(b"data:", b"error:"),
    ],
)
def test_an_error_in_mid_stream(serve, said):
    side = endpoint(serve(SSE_HEAD + event(chunk("天")) + said + DONE)).side()
    texts = side.stream(ASK, {})
    assert next(texts) == "天"
    with pytest.raises(EndpointError, match="out of memory") as caught:
        next(texts)
    assert caught.value.kind == "error" and side.finish_reason is None


@pytest.mark.parametrize(
    "sent, kind, words",
    [
        (answer({"error": {"message": "no such model"}}, "404 Not Found"), "http 404", "no such m"),
        (answer(b"\xff\x00\x1b[31mred", "500 Oh No"), "http 500", "500 Oh No"),
        (answer(b"x" * 10_000_000, "502 Bad Gateway"), "http 502", "xxx"),
        (answer({"detail": "busy"}, "429 Too Many"), "http 429", "busy"),
        (answer(b"", "204 No Content"), "http 204", "204 No Content"),
        (b"HTTP/1.1 503 Down\r\nTransfer-Encoding: chunked\r\n\r\nq", "http 503", "503 Down"),
    ],
)
def test_http_errors_with_any_body(serve, sent, kind, words):
    error = failure(serve(sent))
    assert error.kind == kind and words in error.message and error.message.isprintable()


def test_redirects_are_not_followed(serve):
    other = serve(streamed("never"))
    moved = f"HTTP/1.1 307 Moved\r\nLocation: {other.url}/v1/chat/completions\r\n\r\n".encode()
    error = failure(serve(moved))
    assert error.kind == "http 307" and "not followed" in error.message and not other.requests


def test_a_line_of_ten_megabytes(serve):
    line = b"data: " + b"x" * 10_000_000
    assert failure(serve(SSE_HEAD + line)).kind == "too long"
    assert failure(serve(answer(b'"' + b"x" * 10_000_000))).kind == "too long"


def test_a_stream_without_end(serve):
    def script(sock, _):
        sock.sendall(SSE_HEAD)
        while True:
            sock.sendall(event(chunk("啊" * 100)))

    error = failure(serve(script), caps=Caps(max_bytes=100_000))
    assert error.kind == "too long" and "0.0954 MB" in error.message


def test_silence(serve):
    def script(sock, _):
        sock.sendall(SSE_HEAD + event(chunk("a")))
        sock.recv(1)

    error = failure(serve(script), caps=Caps(idle_seconds=0.2))
    assert error.kind == "timeout" and "0.2 s of silence" in error.message


@pytest.mark.parametrize("opening", [b"", b"HTTP/1.1 200 OK\r\nA: ", SSE_HEAD])
def test_drops_that_never_end(serve, opening):
    """Bytes that keep coming are no silence: then the whole time counts, in the head too."""

    def script(sock, _):
        sock.sendall(opening)
        while True:
            sock.sendall(b":")
            time.sleep(0.02)

    began = time.monotonic()
    error = failure(serve(script), caps=Caps(total_seconds=0.3))
    assert error.kind == "timeout" and "more than 0.3 s" in error.message
    assert time.monotonic() - began < PATIENCE


def test_networks_that_are_not_allowed(serve):
    server = serve(streamed("a"))
    assert failure(server, allowed=Allowed(["10.0.0.0/8"])).kind == "forbidden"
    assert failure("http://169.254.169.254").kind == "forbidden"
    assert not server.requests


# -- keys ------------------------------------------------------------------------------------------


def test_a_key_is_read_when_it_is_needed(serve, monkeypatch):
    server = serve(streamed("a"))
    lab = endpoint(server, api_key_env="LAB_KEY")
    for wrong in ("", "two words", "ключ", "a\nb"):
        monkeypatch.setenv("LAB_KEY", wrong)
        with pytest.raises(EndpointError, match="variable LAB_KEY") as caught:
            list(lab.side().stream(ASK, {}))
        assert caught.value.kind == "no key" and not server.requests
    monkeypatch.setenv("LAB_KEY", KEY)
    assert "".join(lab.side().stream(ASK, {})) == "a"
    assert f"\r\nAuthorization: Bearer {KEY}\r\n" in server.requests[0][0]
    assert KEY not in repr(lab) + str(vars(lab))


@pytest.mark.parametrize("padding", range(0, 320, 20))
def test_a_key_is_in_no_error(serve, monkeypatch, padding):
    """Wherever in its error a server repeats it, also where the message is cut."""
    monkeypatch.setenv("LAB_KEY", KEY)
    wrong = answer({"error": {"message": "x" * padding + KEY}}, "401 Unauthorized")
    for sent in (wrong, SSE_HEAD + f"data: {'x' * padding}{KEY}\n\n".encode()):
        error = failure(serve(sent), api_key_env="LAB_KEY")
        assert "sk-" not in error.message


def test_a_key_goes_only_where_it_belongs(serve, monkeypatch):
    monkeypatch.setenv("LAB_KEY", KEY)
    server = serve(answer({"data": [{"id": "m"}]}))
    lab = endpoint(server, api_key_env="LAB_KEY")
    lab.probe()
    sent = {head.split()[1]: KEY in head for head, _ in server.requests}
    assert sent == {"/v1/models": True, "/openapi.json": False}
    with pytest.raises(AttributeError):
        lab.base_url = "http://10.0.0.1"


# -- closing ---------------------------------------------------------------------------------------


def reading(side):
    """Read a side in a thread: its texts so far, and the thread."""
    found = SimpleNamespace(texts=[], error=None)

    def work():
        try:
            for text in side.stream(ASK, {"max_tokens": 100_000}):
                found.texts.append(text)
        except EndpointError as error:
            found.error = error

    found.thread = threading.Thread(target=work, daemon=True)
    found.thread.start()
    return found


def close_in_time(side, found):
    began = time.monotonic()
    side.close()
    found.thread.join(PATIENCE)
    assert not found.thread.is_alive() and time.monotonic() - began < 1
    assert found.error is None and side.finish_reason == "cancelled"


@pytest.mark.parametrize("opening", [b"", b"HTTP/1.1 200 OK\r\n", SSE_HEAD])
def test_close_ends_a_read_that_blocks(serve, opening):
    reached, gone = threading.Event(), threading.Event()

    def script(sock, _):
        sock.sendall(opening)
        reached.set()
        assert sock.recv(1) == b""
        gone.set()

    side = endpoint(serve(script)).side()
    found = reading(side)
    assert reached.wait(PATIENCE)
    time.sleep(0.1)
    close_in_time(side, found)
    assert gone.wait(PATIENCE)  # the server has seen it, too


def test_close_before_the_stream_and_after_it(serve):
    server = serve(streamed("a"))
    side = endpoint(server).side()
    side.close()
    assert list(side.stream(ASK, {})) == [] and side.finish_reason == "cancelled"
    assert not server.requests
    _, done = read(server)
    done.close()
    assert done.finish_reason == "stop"


def test_a_side_that_is_closed_leaves_the_others(serve):
    server = serve(streamed("a"))
    lab = endpoint(server)
    lab.side().close()
    assert list(lab.side().stream(ASK, {})) == ["a"]


def test_a_reader_that_goes_away_ends_the_connection(serve):
    gone = threading.Event()

    def script(sock, _):
        sock.sendall(SSE_HEAD + event(chunk("a")))
        sock.recv(1)
        gone.set()

    texts = endpoint(serve(script)).side().stream(ASK, {})
    assert next(texts) == "a"
    texts.close()
    assert gone.wait(PATIENCE)


def test_an_error_that_is_kept_keeps_no_connection(serve):
    gone = threading.Event()

    def script(sock, _):
        sock.sendall(SSE_HEAD + event({"error": "no"}))
        sock.recv(1)
        gone.set()

    error = failure(serve(script))
    assert gone.wait(PATIENCE) and error.kind == "error"


# -- health ----------------------------------------------------------------------------------------


def test_health(serve):
    listed = answer({"object": "list", "data": [{"id": "m"}, {"id": "n"}]})
    found = endpoint(serve(listed)).probe()
    assert found.status == "ok" and found.models == ("m", "n") and found.message == ""
    assert 0 < found.latency_ms < 1000 * PATIENCE
    assert "x is not among its models: m, n" in endpoint(serve(listed), model="x").probe().message


def test_health_of_a_slow_server(serve, monkeypatch):
    monkeypatch.setattr("minigpt.arena.endpoints.SLOW_MS", 50)

    def script(sock, _):
        time.sleep(0.06)
        sock.sendall(answer({"data": []}))

    assert endpoint(serve(script), model=None).probe().status == "slow"


@pytest.mark.parametrize(
    "sent, status",
    [
        (b"", "broken off"),
        (answer(b"loading", "503 Service Unavailable"), "http 503"),
        (answer({"data": "abc"}), "garbage"),
        (answer({"data": [{"id": 1}]}), "garbage"),
        (answer(b"hello"), "garbage"),
    ],
)
def test_health_of_a_server_that_is_not_well(serve, sent, status):
    found = endpoint(serve(sent)).probe()
    assert found.status == status and found.models == () and found.message.startswith("lab (")


def test_health_where_nothing_listens_or_nothing_answers(serve, nobody, monkeypatch):
    monkeypatch.setattr("minigpt.arena.endpoints.PROBE_SECONDS", 0.2)
    server = serve(lambda sock, path: sock.recv(1))
    assert endpoint(server).probe().status == "timeout"
    assert endpoint(nobody).probe().status == "refused"


@pytest.mark.parametrize(
    "described",
    [
        *(b"no json", b"[]", b'{"paths": {}}', b'{"paths": {"/v1/chat/completions": null}}'),
        b'{"paths": {"/v1/chat/completions": {"post": {"requestBody": {"content": {"application/'
        b'json": {"schema": {"$ref": "#/components/schemas/X"}}}}}}}}',
    ],
)
def test_without_a_description_little_is_taken(serve, described):
    def script(sock, path):
        known = path == "/openapi.json"
        sock.sendall(answer(described) if known else answer({"data": []}))

    lab = endpoint(serve(script))
    assert lab.takes == CAUTIOUS
    lab.probe()
    assert lab.takes == CAUTIOUS


def test_takes_is_learned_from_the_description(serve):
    """Inline, as some frameworks write it; what we do not know is no setting. What it does not
    list is not sent, and a server that can shorten a conversation, ours, is asked to."""
    schema = {"properties": {"messages": {}, "top_k": {}, "seed": {}, "truncate": {}, "x": {}}}
    content = {"application/json": {"schema": schema}}
    paths = {"/v1/chat/completions": {"post": {"requestBody": {"content": content}}}}

    def script(sock, path):
        answers = {"/v1/models": answer({"data": []}), "/openapi.json": answer({"paths": paths})}
        sock.sendall(answers.get(path, streamed("a")))

    server = serve(script)
    lab = endpoint(server)
    lab.probe()
    assert lab.takes == {"top_k", "seed"} == lab.side().takes
    assert list(lab.side().stream(ASK, {"top_k": 3})) == ["a"]
    expected = dict(model="m", messages=ASK, stream=True, top_k=3, truncate="oldest")
    assert server.requests[-1][1] == expected


def test_what_a_server_calls_its_models_is_shown_with_care(serve):
    """Half a character would break the page for all, and a name may have any length."""
    server = serve(answer({"data": [{"id": "\ud800a\nb" + "c" * 500}]}))
    (name,) = endpoint(server).probe().models
    assert name == "a b" + "c" * 77 + "…"


def test_the_only_model(serve):
    def script(sock, path):
        listed = {"data": [{"id": name} for name in names]}
        sock.sendall(answer(listed) if path == "/v1/models" else streamed("a"))

    names = ["one"]
    server = serve(script)
    assert read(server, model=None)[0] == "a" and server.requests[1][1]["model"] == "one"
    names = ["one", "two"]
    with pytest.raises(EndpointError, match="it has one, two") as caught:
        read(server, model=None)
    assert caught.value.kind == "which model"


# -- the real server -------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def runs(tmp_path_factory, byte_tokenizer):
    """The folder of two scripted runs: "sft" answers 北京。, "loop" writes 天a天a… for ever."""
    out = tmp_path_factory.mktemp("runs") / "out"
    save_scripted_run(out / "sft", byte_tokenizer, "北京。", block_size=64)
    save_scripted_run(out / "loop", byte_tokenizer, "天a", cycle=True, block_size=64)
    return out


@pytest.fixture(scope="module")
def real(runs, byte_tokenizer):
    """Our server with a key, in this process; its address."""
    with serve_runs([runs / "sft", runs / "loop"], byte_tokenizer, KEY) as url:
        yield url


@pytest.fixture
def with_key(monkeypatch):
    monkeypatch.setenv("LAB_KEY", KEY)
    return {"api_key_env": "LAB_KEY"}


def test_our_server(real, with_key):
    lab = endpoint(real, model="sft", **with_key)
    found = lab.probe()
    assert found.status in ("ok", "slow") and found.models == ("sft", "loop")
    assert lab.takes == SETTINGS
    side = lab.side()
    settings = dict(temperature=0.5, top_k=5, top_p=0.9, repetition_penalty=1.0, seed=3)
    assert "".join(side.stream(ASK, {**settings, "max_tokens": 50})) == "北京。"
    assert side.finish_reason == "stop"
    assert side.usage == {"prompt_tokens": 10, "completion_tokens": 9, "total_tokens": 19}


def test_our_server_before_it_was_probed(real, with_key):
    side = endpoint(real, model="sft", **with_key).side()
    assert "".join(side.stream(ASK, {"max_tokens": 3})) == "北"
    assert side.finish_reason == "length" and side.usage["completion_tokens"] == 3


def test_our_server_refuses(real, with_key):
    assert failure(real, model="sft").kind == "http 401"
    assert failure(real, model="nobody", **with_key).kind == "http 404"
    assert endpoint(real).probe().status == "http 401"
    side = endpoint(real, model="sft", **with_key).side()
    with pytest.raises(EndpointError, match="min_p"):
        list(side.stream(ASK, {"min_p": -1}))


def test_close_ends_our_server_s_writing(real, with_key):
    side = endpoint(real, model="loop", **with_key).side()
    found = reading(side)
    until(lambda: len(found.texts) > 5)
    assert requests.get(f"{real}/health", timeout=PATIENCE).json()["running"] == 1
    close_in_time(side, found)
    until(lambda: requests.get(f"{real}/health", timeout=PATIENCE).json()["running"] == 0)


# -- local runs ------------------------------------------------------------------------------------


def local_run(host, name, tokenizer, prompt_format):
    def encode(turns):
        return chat_ids(tokenizer, prompt_format, turns, 64, truncate="oldest")

    return LocalRun(name).start(LocalModel(host, tokenizer, encode, stop_ids(tokenizer)))


@pytest.fixture
def make_local(runs, byte_tokenizer):
    """make_local(name, limits, kind): a LocalRun over an engine of one slot; stopped at the end."""
    hosts = []

    def make(name, limits=None, kind=Engine):
        model = checkpoint.load(runs / name).model
        engine = kind(model, byte_tokenizer.n_vocab, 1)
        hosts.append(RequestScheduler({name: engine}, limits or QueueLimits()))
        return local_run(hosts[-1], name, byte_tokenizer, "qa")

    yield make
    for host in hosts:
        host.drain(0)


def test_a_local_run(make_local):
    local = make_local("sft")
    assert local.probe() == ("ok", ("sft",), 0.0, "")
    side = local.side()
    settings = dict(temperature=0.5, top_k=5, seed=3, max_tokens=50, min_p=None)
    assert list(side.stream(ASK, settings)) == ["北", "京", "。"]
    assert side.finish_reason == "stop"
    assert side.usage == {"prompt_tokens": 10, "completion_tokens": 9, "total_tokens": 19}


@pytest.mark.parametrize("max_tokens", [1, 3, 4, 8])
def test_a_local_run_and_a_server_write_the_same(make_local, real, with_key, max_tokens):
    sides = make_local("sft").side(), endpoint(real, model="sft", **with_key).side()
    settings = dict(temperature=0.0, max_tokens=max_tokens)
    texts = ["".join(side.stream(ASK, settings)) for side in sides]
    assert texts[0] == texts[1] and len(texts[0]) > 0
    assert sides[0].finish_reason == sides[1].finish_reason == "length"
    assert sides[0].usage == sides[1].usage


def test_close_ends_a_local_run(make_local):
    local = make_local("loop")
    side = local.side()
    found = reading(side)
    until(lambda: len(found.texts) > 5)
    waiting = local.side()  # there is one slot
    found_waiting = reading(waiting)
    time.sleep(0.1)
    close_in_time(waiting, found_waiting)
    assert found_waiting.texts == []
    close_in_time(side, found)
    until(lambda: local.host.counts() == (0, 0))
    early = local.side()
    early.close()
    assert len(list(early.stream(ASK, {}))) == 0 and early.finish_reason == "cancelled"


def test_a_reader_that_goes_away_ends_a_local_run(make_local):
    local = make_local("loop")
    texts = local.side().stream(ASK, {"max_tokens": 100_000})
    assert next(texts) == "天"
    texts.close()
    until(lambda: local.host.counts() == (0, 0))


def test_a_local_run_loses_the_oldest_turns(make_local, byte_tokenizer):
    host = make_local("loop").host
    local = local_run(host, "loop", byte_tokenizer, "chat")
    turns = [{"role": "user", "content": "x" * 30}, {"role": "assistant", "content": "y" * 30}]
    side = local.side()
    list(side.stream([*turns, {"role": "user", "content": "?"}], {"max_tokens": 2}))
    # <start>assistant\nyyy…<end>\n, <start>user\n?<end>\n, <start>assistant\n: a byte a token.
    # The first turn, 38 tokens, had to go.
    assert side.usage["prompt_tokens"] == 43 + 9 + 11


class BrokenEngine(Engine):
    """Fails after its fifth token."""

    def step(self):
        if any(len(ticket.tokens) == 5 for ticket in self.active):
            raise RuntimeError("a secret detail")
        return super().step()


def local_failure(local, messages=ASK, **settings):
    with pytest.raises(EndpointError) as caught:
        list(local.side().stream(messages, settings))
    return caught.value


def test_a_local_run_that_fails(make_local):
    error = local_failure(make_local("sft", kind=BrokenEngine))
    assert error.kind == "error" and "sft: the model failed" in error.message


def test_a_local_run_that_takes_too_long(make_local):
    local = make_local("loop", QueueLimits(total_seconds=0.2))
    assert local_failure(local, max_tokens=100_000).kind == "timeout"


def test_what_a_local_run_does_not_take(make_local):
    local = make_local("loop", QueueLimits(max_waiting=0))
    assert local_failure(local, temperature=-1).kind == "rejected"
    assert local_failure(local, [{"role": "user", "content": "x" * 100}]).kind == "rejected"
    assert local_failure(local, []).kind == "rejected"
    assert local_failure(local, stop="x").message == "loop: it does not take stop"
    side = local.side()
    found = reading(side)
    until(lambda: found.texts)
    assert local_failure(local).kind == "busy"
    local.host.drain(0)
    found.thread.join(PATIENCE)
    assert found.error.kind == "stopping" and local.probe().status == "stopping"
    assert local_failure(local).kind == "stopping"


# -- the list --------------------------------------------------------------------------------------

TABLE = """\
name,base_url,model,api_key_env
实验室,http://192.168.1.20:5000,sft,

cloud,https://api.example.com/v1,"big, new",CLOUD_KEY
six,http://[fd00::7]:8080/,,
"""


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "gb18030"])
@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_presets(tmp_path, encoding, end):
    path = tmp_path / "endpoints.csv"
    path.write_bytes(TABLE.replace("\n", end).encode(encoding))
    rows = read_presets(path)
    assert rows == [
        Preset("实验室", "http://192.168.1.20:5000", "sft"),
        Preset("cloud", "https://api.example.com/v1", "big, new", "CLOUD_KEY"),
        Preset("six", "http://[fd00::7]:8080/"),
    ]
    assert [Endpoint(*row).name for row in rows] == ["实验室", "cloud", "six"]


def mistakes(path, text):
    path.write_text(text, encoding="utf-8")
    with pytest.raises(UserError) as caught:
        read_presets(path)
    return str(caught.value).splitlines()


def test_every_error_names_its_line(tmp_path):
    found = mistakes(
        tmp_path / "e.csv",
        "name,base_url,model,api_key_env\n"
        "good,http://lab:5000,,\n"
        ",ftp://lab,,\n"
        "good,http://lab,,sk-12345\n"
        "few,http://lab\n"
        'many,http://lab,"a\nb",,\n'
        "key,http://somebody:hunter2@lab,,\n",
    )
    places = [line.removeprefix(f"{tmp_path}/e.csv, line ").split(":")[0] for line in found]
    assert places == ["3", "3", "4", "4", "5", "6", "8"]
    assert "taken by line 2" in found[3] and "2 cells, expected 4" in found[4]
    assert not any("hunter2" in line or "sk-1" in line for line in found)


@pytest.mark.parametrize(
    "text, words",
    [
        ("", "empty"),
        ("name,base_url,color\n", "unknown column 'color'"),
        ("lab，http://lab\n", "no column name and base_url"),
        ("name,base_url,name\n", "is there twice"),
        ('name,base_url\n"lab,http://lab\n', "line 2: no CSV"),
        ("name,base_url\nlab,http://l\x00ab\n", "line 2: "),
    ],
)
def test_what_is_no_table(tmp_path, text, words):
    assert words in mistakes(tmp_path / "e.csv", text)[0]


def test_a_table_that_cannot_be_read(tmp_path):
    with pytest.raises(UserError, match="cannot be read"):
        read_presets(tmp_path / "absent.csv")
    (tmp_path / "e.csv").write_bytes(b"\xff\xff\xff")
    with pytest.raises(UserError, match="save it as UTF-8"):
        read_presets(tmp_path / "e.csv")


@pytest.mark.parametrize(
    "url",
    [
        *("", "lab:5000", "//lab", "http://", "http://:80", "http:///v1", "file:///etc/passwd"),
        *("ftp://lab", "http://lab:", "http://lab:0", "http://lab:99999", "http://lab:x"),
        *("http://lab?x=1", "http://lab/#v1", "http://lab?", "http://a b", "http://lab/\n/v1"),
        *("http://u@lab", "http://u:p@lab", "http://lab\\@evil", "http://[::1", "http://::1:80"),
        *("http://lab/../x", "http://lab/a b", "http://例子.cn", "http://lab/%2e", " http://lab"),
        *("http://lab//x", "http://[fe80::1%25eth0]/", "http://lab\x00"),
    ],
)
def test_addresses_that_are_none(url):
    with pytest.raises(UserError, match="base_url: "):
        Endpoint("lab", url)


@pytest.mark.parametrize(
    "url",
    [
        *("http://lab", "http://lab/", "HTTP://Lab:80/v1", "https://api.example.com/a/b-c/v4/"),
        *("http://127.0.0.1:5000", "http://[::1]:5000/v1", "http://lab_pc.local"),
    ],
)
def test_addresses_that_are_some(url):
    Endpoint("lab", url)


def test_the_list():
    first, second = Endpoint("a", "http://a"), Endpoint("b", "http://b")
    listed = Endpoints([first])
    listed.add(second)
    assert listed.names() == ["a", "b"] and listed.get("b") is second
    with pytest.raises(UserError, match="called a already"):
        listed.add(Endpoint("a", "http://elsewhere"))
    listed.remove("a")
    assert listed.names() == ["b"]
    for missing in (listed.get, listed.remove):
        with pytest.raises(UserError, match="no endpoint called a"):
            missing("a")


def test_the_list_from_many_threads():
    listed = Endpoints()

    def work(number):
        for turn in range(50):
            listed.add(Endpoint(f"{number}-{turn}", "http://a"))
            listed.names()
            if turn % 2:
                listed.remove(f"{number}-{turn}")

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(listed.names()) == 4 * 25
