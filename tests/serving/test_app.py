"""The HTTP API, through a real server: OpenAI's own client, requests, raw sockets, a fuzzer that
reads /openapi.json, an evaluation harness; and server.py as its user runs it."""

import asyncio
import contextlib
import json
import signal
import socket
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import pytest
import requests
import torch
from api_server import ASK, BLOCK, PATIENCE, chat, events, raw, until
from conftest import ROOT
from hypothesis import HealthCheck, given, settings
from hypothesis.errors import Unsatisfiable
from tiny_run import run_here

from minigpt.common.errors import UserError
from minigpt.inference import request
from minigpt.inference.scheduler import QueueLimits
from minigpt.models.folders import model_names
from minigpt.openai import schemas
from minigpt.openai.request_reader import RequestLimits, parse
from minigpt.serving.app import make_app
from minigpt.serving.service import Options, Served, Service
from minigpt.serving.wsgi import flush, listen

pytest_plugins = ["api_server"]


# -- the official client ---------------------------------------------------------------------------


def test_a_chat(client):
    answer = client.chat.completions.create(**chat())
    assert answer.choices[0].message.content == "北京。"
    assert answer.choices[0].finish_reason == "stop" and answer.model == "sft"
    assert answer.usage.prompt_tokens == 10 and answer.usage.completion_tokens == 9


def test_a_chat_as_a_stream(client):
    chunks = list(client.chat.completions.create(**chat(stream=True)))
    assert chunks[0].choices[0].delta.role == "assistant"
    parts = [c.choices[0].delta.content for c in chunks[1:-1]]
    assert "".join(parts) == "北京。" and all(parts)  # one each, or more where the machine is busy
    reasons = [c.choices[0].finish_reason for c in chunks]
    assert reasons[-1] == "stop" and set(reasons[:-1]) == {None}
    assert len({(c.id, c.model, c.created) for c in chunks}) == 1
    assert all(c.usage is None for c in chunks)


def test_the_usage_of_a_stream(client):
    options = {"include_usage": True}
    chunks = list(client.chat.completions.create(**chat(stream=True, stream_options=options)))
    assert [c.usage for c in chunks[:-1]] == [None] * (len(chunks) - 1)
    assert chunks[-1].choices == [] and chunks[-1].usage.total_tokens == 19


def test_the_end_of_a_stream_is_sent_at_once(api):
    """finish_reason, usage and [DONE] in one write, which is an HTTP chunk: each costs the readers
    of other answers some time."""
    asked = chat(stream=True, stream_options={"include_usage": True})
    with requests.post(f"{api.url}/v1/chat/completions", json=asked, stream=True) as answer:
        last = list(answer.iter_content(None))[-1].decode()
    *_, reason, usage, done = last.split("data: ")
    assert json.loads(reason)["choices"][0]["finish_reason"] == "stop"
    assert json.loads(usage)["usage"]["total_tokens"] == 19 and done == "[DONE]\n\n"


def test_the_async_client(api):
    openai = pytest.importorskip("openai")

    async def talk():
        async with openai.AsyncOpenAI(base_url=f"{api.url}/v1", api_key="none") as client:
            answers = await asyncio.gather(
                *(client.chat.completions.create(**chat()) for _ in range(4))
            )
            text = ""
            async for chunk in await client.chat.completions.create(**chat(stream=True)):
                text += chunk.choices[0].delta.content or ""
            return [answer.choices[0].message.content for answer in answers], text

    assert asyncio.run(talk()) == (["北京。"] * 4, "北京。")


def test_several_answers(client):
    sampling = dict(model="plain", messages=ASK, temperature=1, seed=5, max_tokens=6, n=3)
    answer = client.chat.completions.create(**sampling)
    texts = [choice.message.content for choice in answer.choices]
    assert [choice.index for choice in answer.choices] == [0, 1, 2]
    assert len(set(texts)) == 3 and answer.usage.completion_tokens <= 18
    streamed = ["", "", ""]
    for chunk in client.chat.completions.create(**sampling, stream=True):
        streamed[chunk.choices[0].index] += chunk.choices[0].delta.content or ""
    assert streamed == texts  # and the same seed wrote the same


@pytest.mark.parametrize("stream", [False, True])
def test_stop_strings(client, stream):
    asked = dict(model="loop", messages=ASK, stop=["a天a", "x"], max_tokens=50, stream=stream)
    answer = client.chat.completions.create(**asked)
    if stream:
        chunks = list(answer)
        text = "".join(c.choices[0].delta.content or "" for c in chunks)
        assert text == "天" and chunks[-1].choices[0].finish_reason == "stop"
    else:
        assert answer.choices[0].message.content == "天"
        assert answer.choices[0].finish_reason == "stop"


def test_what_is_held_back_is_flushed(client):
    answer = client.chat.completions.create(**chat(stop=["。\n"], stream=True))
    assert "".join(c.choices[0].delta.content or "" for c in answer) == "北京。"


def test_never_half_a_character(client):
    asked = dict(model="sft", messages=ASK, max_tokens=4, stream=True)
    texts = [c.choices[0].delta.content or "" for c in client.chat.completions.create(**asked)]
    assert "".join(texts) == "北\ufffd"  # the end of the text is in the middle of a character


def test_logprobs_of_a_chat(client):
    asked = dict(model="loop", messages=ASK, max_tokens=8, logprobs=True, top_logprobs=2)
    content = client.chat.completions.create(**asked).choices[0].logprobs.content
    assert bytes(b for token in content for b in token.bytes).decode() == "天a天a"
    assert content[0].token == "bytes:\\xe5" and content[3].token == "a"
    assert all(t.top_logprobs[0].logprob == t.logprob for t in content)
    assert all(len(t.top_logprobs) == 2 for t in content)
    chunks = list(client.chat.completions.create(**asked, stream=True))
    streamed = [t for c in chunks if c.choices[0].logprobs for t in c.choices[0].logprobs.content]
    assert streamed == content


@pytest.mark.parametrize("stream", [False, True])
def test_what_a_stop_string_cuts_away_is_not_reported(client, stream):
    asked = dict(model="loop", messages=ASK, logprobs=True, stop="a天a", stream=stream)
    answer = client.chat.completions.create(**asked)
    parts = [c.choices[0] for c in answer] if stream else answer.choices
    content = [t for part in parts if part.logprobs for t in part.logprobs.content]
    assert bytes(b for token in content for b in token.bytes).decode() == "天"


def test_errors_have_the_clients_classes(client, api, make_server):
    openai = pytest.importorskip("openai")
    completions, chats = client.completions, client.chat.completions
    with pytest.raises(openai.BadRequestError, match="temperature"):
        chats.create(**chat(temperature=-1))
    with pytest.raises(openai.NotFoundError, match="no 'nobody' here"):
        chats.create(model="nobody", messages=ASK)
    with pytest.raises(openai.UnprocessableEntityError, match="300 is no id"):
        completions.create(model="sft", prompt=[1, 300])
    with pytest.raises(openai.APIError, match="the model failed") as caught:
        list(chats.create(model="broken", messages=ASK, stream=True))
    assert "somebody" not in str(caught.value)
    with pytest.raises(openai.InternalServerError, match="the model failed"):
        chats.create(model="broken", messages=ASK)


def test_models(client):
    listed = {model.id: model for model in client.models.list()}
    assert set(listed) == {"sft", "loop", "broken", "plain", "chat"}
    assert "last user message alone" in listed["sft"].description
    assert "all turns" in client.models.retrieve("chat").description
    assert listed["sft"].max_model_len == BLOCK


# -- completions -----------------------------------------------------------------------------------


def token_texts(tokenizer):
    return Served("x", tokenizer, "plain", BLOCK, 1, 7, 0).token_texts


def direct_logprobs(ids, tiny_model, byte_tokenizer):
    """(len(ids) - 1, n_vocab): the log probabilities after each id, from the model itself."""
    model = tiny_model(padded_vocab_size=byte_tokenizer.padded_vocab_size, block_size=BLOCK)
    with torch.inference_mode():
        logits = model.logits(model(torch.tensor([ids])))[0, :-1, : byte_tokenizer.n_vocab]
    return logits.float().log_softmax(-1)


def test_echo_and_logprobs(client, tiny_model, byte_tokenizer):
    asked = dict(model="plain", prompt="天a", echo=True, logprobs=3, max_tokens=2, temperature=0)
    choice = client.completions.create(**asked).choices[0]
    found, ids = choice.logprobs, byte_tokenizer.encode("天a")
    assert choice.text.startswith("天a") and len(found.tokens) == len(ids) + 2
    assert found.tokens[:4] == ["bytes:\\xe5", "bytes:\\xa4", "bytes:\\xa9", "a"]
    assert found.text_offset[:5] == [0, 0, 0, 1, 2]
    assert found.token_logprobs[0] is None and found.top_logprobs[0] is None
    texts = token_texts(byte_tokenizer)
    spelled = {texts[i]: i for i in range(byte_tokenizer.n_vocab)}
    ids += [spelled[token] for token in found.tokens[len(ids) :]]
    expected = direct_logprobs(ids, tiny_model, byte_tokenizer)
    for row, i, logprob, top in zip(
        expected, ids[1:], found.token_logprobs[1:], found.top_logprobs[1:], strict=True
    ):
        assert logprob == pytest.approx(float(row[i]), abs=1e-4)
        assert top[texts[i]] == logprob  # to the bit
        assert max(top.values()) == pytest.approx(float(row.max()), abs=1e-4)
        assert 3 <= len(top) <= 4


def test_echo_of_a_stream_is_that_of_the_whole(client):
    asked = dict(model="plain", prompt="天a", echo=True, logprobs=1, max_tokens=5, temperature=0)
    whole = client.completions.create(**asked).choices[0]
    chunks = [c.choices[0] for c in client.completions.create(**asked, stream=True)]
    assert "".join(c.text for c in chunks) == whole.text
    for name in ("tokens", "token_logprobs", "top_logprobs", "text_offset"):
        joined = [each for c in chunks for each in getattr(c.logprobs, name)]
        assert joined == getattr(whole.logprobs, name)
    assert chunks[-1].finish_reason == whole.finish_reason


def test_echo_alone_writes_nothing(client):
    answer = client.completions.create(
        model="plain", prompt="天a", echo=True, logprobs=0, max_tokens=0
    )
    choice = answer.choices[0]
    assert choice.text == "天a" and len(choice.logprobs.tokens) == 4
    assert answer.usage.completion_tokens == 0 and choice.finish_reason == "length"
    assert client.completions.create(model="plain", prompt="天a", echo=True, max_tokens=0)


def test_the_token_that_ends_a_text_is_listed_with_echo(client, byte_tokenizer):
    """A harness drops the last token that it gets: it must not be one of the prompt's."""
    ids = byte_tokenizer.encode("。")
    answer = client.completions.create(model="sft", prompt=ids, echo=True, logprobs=1, max_tokens=1)
    choice = answer.choices[0]
    assert choice.logprobs.tokens[-1] == "<|endoftext|>" and len(choice.logprobs.tokens) == 4
    assert choice.text == "。" and choice.finish_reason == "stop"


def test_prompts_of_every_kind(api, byte_tokenizer):
    ids = byte_tokenizer.encode("天")
    for prompt in ("天", ["天"], ids, [ids]):
        body = dict(model="loop", prompt=prompt, max_tokens=5)
        (choice,) = api.post("/v1/completions", body).json()["choices"]
        assert choice["text"] == "a天a"
    body = dict(model="loop", prompt=["天", "a"], max_tokens=3, n=2)
    answer = api.post("/v1/completions", body).json()
    assert [c["text"] for c in answer["choices"]] == ["a\ufffd"] * 2 + ["天"] * 2
    assert [c["index"] for c in answer["choices"]] == [0, 1, 2, 3]
    assert answer["usage"] == dict(prompt_tokens=4, completion_tokens=12, total_tokens=16)


def test_token_strings_are_unique(byte_tokenizer):
    names = [token_texts(byte_tokenizer)[i] for i in range(byte_tokenizer.n_vocab)]
    assert len(set(names)) == len(names)
    special = {name: names[i] for name, i in byte_tokenizer.special.items()}
    assert special == {  # as exported tokenizers call them
        "EOT": "<|endoftext|>",
        "PAD": "<|pad|>",
        "A": "<|answer|>",
        "IM_START": "<|im_start|>",
        "IM_END": "<|im_end|>",
    }


# -- chat formats ----------------------------------------------------------------------------------


def test_a_conversation_that_is_too_long(api):
    turns = [dict(role="user", content=f"{i}" * 20) for i in range(5)]
    body = dict(model="chat", messages=turns, max_tokens=2)
    refused = api.post("/v1/chat/completions", body)
    error = refused.json()["error"]
    assert refused.status_code == 400 and error["code"] == "context_length_exceeded"
    assert str(BLOCK) in error["message"] and error["param"] == "messages"
    answer = api.post("/v1/chat/completions", {**body, "truncate": "oldest"})
    assert answer.status_code == 200 and answer.json()["usage"]["prompt_tokens"] <= BLOCK


def test_parts_of_text_and_turns_that_come_back(api):
    parts = [{"type": "text", "text": "首"}, {"type": "text", "text": "都？"}]
    before = {"role": "assistant", "content": "x", "refusal": None, "tool_calls": None}
    body = dict(model="sft", messages=[before, {"role": "user", "content": parts}])
    answer = api.post("/v1/chat/completions", body).json()
    assert answer["usage"]["prompt_tokens"] == 10  # the last user message alone


# -- what is refused -------------------------------------------------------------------------------

BROKEN = {
    "no JSON": (b"{", "JSON"),
    "nothing": (b"", "JSON"),
    "a list": (b"[]", "object"),
    "NaN": (b'{"temperature": NaN}', "NaN"),
    "infinity": (b'{"temperature": -Infinity}', "Infinity"),
    "a huge float": (b'{"temperature": 1e999}', "float"),
    "a huge integer": (b'{"seed": ' + b"9" * 5000 + b"}", "digits"),
    "deep": (b"[" * 100_000, "deep"),
    "deep but closed": (b'{"a":' * 50 + b"1" + b"}" * 50, "deep"),
    "half a character": (b'{"model": "\xe4\xb8"}', "UTF-8"),
    "half a pair": (b'{"model": "\\ud800"}', "UTF-8"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_broken_json(api, name):
    body, word = BROKEN[name]
    for path in ("/v1/chat/completions", "/v1/completions", "/tokenize"):
        refused = api.post(path, data=body, headers={"Content-Type": "application/json"})
        assert refused.status_code == 400 and word in refused.json()["error"]["message"]
    assert api.get("/health").json()["status"] == "ok"


def test_a_string_that_nobody_closes_costs_no_time(api):
    body = b'{"a": "' + b'\\"' * 500_000
    assert api.post(
        "/tokenize", data=body, headers={"Content-Type": "application/json"}
    ).status_code in (400, 413)


WRONG = [
    (dict(temperature=True), "temperature"),
    (dict(temperature="1"), "temperature"),
    (dict(max_tokens=1.5), "max_tokens"),
    (dict(max_tokens=10**7), "max_tokens"),
    (dict(n=0), "n"),
    (dict(n=9), "n"),
    (dict(top_p=0), "top_p"),
    (dict(seed=2**64), "seed"),
    (dict(stop=["a", ""]), "stop"),
    (dict(stop=["a"] * 17), "stop"),
    (dict(logit_bias={"5": 1}), "logit_bias"),
    (dict(stream_options={}), "stream_options"),
    (dict(temprature=1), "temprature"),
]
WRONG_CHAT = [
    (dict(tools=[{"type": "function"}]), "tools"),
    (dict(functions=[{}]), "functions"),
    (dict(tool_choice="required"), "tool_choice"),
    (dict(response_format={"type": "grammar"}), "response_format"),
    (dict(response_format={"type": "json_schema"}), "response_format"),
    (dict(response_format={"type": "json_schema", "json_schema": {}, "x": 1}), "response_format"),
    (dict(num_beams=0), "num_beams"),
    (dict(num_beams=5), "num_beams"),
    (dict(num_beams=2, stream=True), "num_beams"),
    (dict(num_beams=2, temperature=0.5), "num_beams"),
    (dict(num_beams=2, n=2), "num_beams"),
    (dict(num_beams=2, response_format={"type": "json_object"}), "num_beams"),
    (dict(length_penalty=2), "length_penalty"),
    (dict(top_logprobs=2), "top_logprobs"),
    (dict(logprobs=True, top_logprobs=21), "top_logprobs"),
    (dict(messages=[]), "messages"),
    (dict(messages=[{"role": "tool", "content": "x"}]), "messages.0.role"),
    (dict(messages=[{"role": "system", "content": "x"}]), "messages"),
    (dict(messages=[{"role": "user", "content": "x" * 100}]), "messages"),
    (dict(max_tokens=1, max_completion_tokens=2), "max_completion_tokens"),
    (dict(truncate="newest"), "truncate"),
]
WRONG_COMPLETION = [
    (dict(prompt=""), "prompt"),
    (dict(prompt=[]), "prompt"),
    (dict(prompt=["a", 1]), "prompt"),
    (dict(prompt=[True]), "prompt"),
    (dict(prompt="x" * 100), "prompt"),
    (dict(prompt=["a"] * 100), "prompt"),
    (dict(suffix="x"), "suffix"),
    (dict(best_of=2), "best_of"),
    (dict(logprobs=True), "logprobs"),
]


@pytest.mark.parametrize(("more", "name"), WRONG + WRONG_CHAT, ids=str)
def test_what_a_chat_may_not_say(api, more, name):
    refused = api.post("/v1/chat/completions", {**chat(), **more})
    assert refused.status_code == 400
    error = refused.json()["error"]
    assert error["param"].startswith(name) and name in error["message"]


@pytest.mark.parametrize(("more", "name"), WRONG + WRONG_COMPLETION, ids=str)
def test_what_a_completion_may_not_say(api, more, name):
    refused = api.post("/v1/completions", {"model": "sft", "prompt": "a", **more})
    assert refused.status_code == 400
    assert refused.json()["error"]["param"].startswith(name)


def test_what_changes_no_answer_is_accepted(api):
    more = dict(user="me", metadata={"a": "b"}, store=True, service_tier="auto", tools=[])
    more |= dict(prompt_cache_retention="24h", prompt_cache_options={"mode": "implicit"})
    more |= dict(parallel_tool_calls=True, response_format={"type": "text"}, logit_bias={}, n=None)
    answer = api.post("/v1/chat/completions", chat(**more))
    assert answer.json()["choices"][0]["message"]["content"] == "北京。"


def test_statuses(api):
    assert api.get("/nowhere").status_code == 404
    assert api.get("/v1/models/nobody").json()["error"]["code"] == "model_not_found"
    refused = api.get("/v1/completions")
    assert refused.status_code == 405 and "POST" in refused.headers["Allow"]
    assert api.post("/v1/completions", data="{}").status_code == 415
    large = api.post("/v1/completions", dict(model="sft", prompt="x" * 2**20))
    assert large.status_code == 413 and "larger" in large.json()["error"]["message"]
    assert requests.head(f"{api.url}/generate?prompt=x&model=sft", timeout=PATIENCE).text == ""
    assert "GET" in requests.options(f"{api.url}/health", timeout=PATIENCE).headers["Allow"]
    for answer in (refused, large):
        assert "Server" not in answer.headers


def test_a_fault_tells_nothing(make_server, monkeypatch):
    server = make_server()
    monkeypatch.setattr(server.service, "models", None)
    refused = server.get("/v1/models")
    assert refused.status_code == 500 and "NoneType" not in refused.text
    assert refused.json()["error"]["type"] == "server_error"


def test_keys(make_server):
    server = make_server(Options(api_key="秘s"))
    assert server.get("/health").ok and server.get("/").ok and server.get("/openapi.json").ok
    for headers in ({}, {"Authorization": "Bearer s"}, {"Authorization": b"Bearer \xff"}):
        for path in ("/v1/models", "/tokenizer_info", "/generate?prompt=x&model=sft"):
            refused = server.get(path, headers=headers)
            assert refused.status_code == 401 and "Bearer" in refused.headers["WWW-Authenticate"]


def test_the_right_key(make_server):
    openai = pytest.importorskip("openai")
    server = make_server(Options(api_key="secret"))
    good = openai.OpenAI(base_url=f"{server.url}/v1", api_key="secret")
    assert good.chat.completions.create(**chat()).choices[0].message.content == "北京。"
    bad = openai.OpenAI(base_url=f"{server.url}/v1", api_key="secre")
    with pytest.raises(openai.AuthenticationError):
        bad.models.list()


def test_origins(make_server):
    server = make_server(Options(cors_origins=("http://a.example",), api_key="k"))
    asked = {"Origin": "http://a.example", "Access-Control-Request-Headers": "authorization"}
    answer = requests.options(f"{server.url}/v1/models", headers=asked, timeout=PATIENCE)
    assert answer.headers["Access-Control-Allow-Origin"] == "http://a.example"
    assert answer.headers["Access-Control-Allow-Headers"] == "authorization" and answer.ok
    other = server.get("/health", headers={"Origin": "http://b.example"})
    assert "Access-Control-Allow-Origin" not in other.headers


# -- for people ------------------------------------------------------------------------------------


def test_generate(api):
    for answer in (
        api.get("/generate?prompt=首都？&model=sft&temperature=0"),
        api.post("/generate", dict(prompt="首都？", model="sft", temperature=0)),
        api.post("/generate", data=dict(prompt="首都？", model="sft", temperature=0)),
        api.post("/generate?prompt=首都？&model=sft"),
    ):
        assert answer.content.decode() == "北京。\n"
        assert answer.headers["Content-Type"] == "text/plain; charset=utf-8"


def test_generate_reads_what_curl_sends(api):
    """curl sends the bytes of a URL as they were typed."""
    query = "prompt=首都？&model=sft".encode()
    with contextlib.closing(api.connect(b"GET /generate?" + query + b" HTTP/1.0\r\n\r\n")) as sock:
        received = b""
        while data := sock.recv(65536):
            received += data
    assert received.endswith("北京。\n".encode())


def test_generate_streams_whole_characters(api):
    with api.get("/generate?prompt=x&model=loop&max_tokens=80", stream=True) as answer:
        pieces = list(answer.iter_content(None))
    assert len(pieces) > 10 and all(piece.decode() for piece in pieces)


@pytest.mark.parametrize(
    ("query", "status", "word"),
    [
        ("model=sft", 400, "prompt"),
        ("prompt=x", 400, "model"),
        ("prompt=x&model=nobody", 404, "nobody"),
        ("prompt=x&model=sft&temperature=warm", 400, "temperature"),
        ("prompt=x&model=sft&temperature=nan", 400, "temperature"),
        ("prompt=x&prompt=y&model=sft", 400, "prompt"),
        ("prompt=x&model=sft&stop=", 400, "stop"),
        ("prompt=x&model=sft&colour=red", 400, "colour"),
        ("prompt=%E4%B8&model=sft", 400, "UTF-8"),
        ("prompt=" + "x" * 100 + "&model=sft", 400, str(BLOCK)),
    ],
)
def test_a_persons_mistake_gets_a_line(api, query, status, word):
    refused = api.get(f"/generate?{query}")
    assert refused.status_code == status and word in refused.text
    assert refused.text.count("\n") == 1 and refused.headers["Content-Type"].startswith("text/")


def test_generate_that_fails_says_so(api):
    answer = api.get("/generate?prompt=x&model=broken").text
    assert answer.startswith("天a") and answer.endswith(
        "[the model failed while it was writing " + "this text]\n"
    )


def test_index_and_description(api):
    lines = api.get("/").text.splitlines()
    assert len(lines) == 2 and "/v1" in lines[0] and "temperature=0.1" in lines[0]
    assert "curl -N" in lines[1]
    described = api.get("/openapi.json").json()
    fields = described["components"]["schemas"]["ChatRequest"]["properties"]
    assert fields["temperature"]["default"] == 0.1 and "sft" in fields["model"]["anyOf"][0]["enum"]


def test_what_cannot_fit_is_refused_before_it_is_encoded(api, byte_tokenizer, monkeypatch):
    def encode(self, text):
        assert len(text) < 1000, "this text was encoded"
        return encode_(self, text)

    encode_ = type(byte_tokenizer).encode
    monkeypatch.setattr(type(byte_tokenizer), "encode", encode)
    long = " " * 300_000
    for path, body in (
        ("/v1/completions", dict(model="plain", prompt=long)),
        ("/v1/completions", dict(model="plain", prompt=["a", long])),
        ("/v1/chat/completions", dict(model="chat", messages=[dict(role="user", content=long)])),
        ("/generate", dict(model="sft", prompt=long)),
        ("/tokenize", dict(prompt=long)),
    ):
        refused = api.post(path, body)
        assert refused.status_code == 400
        assert f"at least 300000 tokens; this model takes up to {BLOCK}" in refused.text
    turns = [dict(role="user", content=long), dict(role="user", content="天")]
    body = dict(model="chat", messages=turns, truncate="oldest", max_tokens=1)
    assert api.post("/v1/chat/completions", body).status_code == 200


def test_tokenize(api, byte_tokenizer):
    ids = api.post("/tokenize", dict(prompt="天a", add_special_tokens=False)).json()["tokens"]
    assert ids == byte_tokenizer.encode("天a")
    assert api.post("/detokenize", dict(tokens=ids)).json() == {"prompt": "天a"}
    assert api.post("/detokenize", dict(tokens=[300])).status_code == 422
    eos = api.get("/tokenizer_info").json()["eos_token"]
    assert api.post("/tokenize", dict(prompt=eos)).json()["tokens"] == [byte_tokenizer.eot]


def test_the_limit_of_logprobs_is_the_engines():
    assert schemas.MOST_LOGPROBS == request.MOST_LOGPROBS


def test_answers_have_the_described_shape(api):
    def check(model, value):
        parse(model, value)

    asked = chat(logprobs=True, top_logprobs=1)
    check(schemas.ChatAnswer, api.post("/v1/chat/completions", asked).json())
    options = dict(stream=True, stream_options=dict(include_usage=True))
    for event in events(api.post("/v1/chat/completions", {**asked, **options})):
        check(schemas.ChatChunk, event)
    asked = dict(model="plain", prompt="a", logprobs=1, echo=True, max_tokens=3)
    check(schemas.CompletionAnswer, api.post("/v1/completions", asked).json())
    for event in events(api.post("/v1/completions", {**asked, **options})):
        check(schemas.CompletionAnswer, event)
    check(schemas.ErrorAnswer, api.get("/nowhere").json())


def test_utf8_is_not_escaped(api):
    assert "北京" in api.post("/v1/chat/completions", chat()).content.decode()
    assert "北" in api.post("/v1/chat/completions", chat(stream=True)).content.decode()


# -- clients that go away --------------------------------------------------------------------------


ENDLESS = dict(model="loop", messages=ASK, max_tokens=10**6)


@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_leaves_while_it_is_answered(api, stream):
    until(api.is_idle)
    sock = api.connect(raw("/v1/chat/completions", {**ENDLESS, "stream": stream}))
    until(lambda: api.host.counts()[0] == 1)
    if stream:
        sock.recv(1000)
    sock.close()
    until(api.is_idle)


@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_leaves_the_queue(make_server, stream):
    server = make_server(Options(limits=RequestLimits(max_tokens=10**6)), n_slots=1)
    first = server.connect(raw("/v1/chat/completions", ENDLESS))
    until(lambda: server.host.counts() == (1, 0))
    second = server.connect(raw("/v1/chat/completions", {**ENDLESS, "stream": stream, "n": 2}))
    until(lambda: server.host.counts() == (1, 2))
    second.close()
    until(lambda: server.host.counts() == (1, 0))
    first.close()
    until(server.is_idle)


def test_a_client_that_leaves_while_its_prompt_is_read(make_server, monkeypatch):
    server = make_server()
    engine = server.host.engines["plain"]
    reading = threading.Event()

    def read_slowly():  # as a long prompt on a slow machine: steps that write nothing
        engine._admit()
        reading.set()
        time.sleep(0.01)

    monkeypatch.setattr(engine, "step", read_slowly)
    sock = server.connect(raw("/v1/chat/completions", {**ENDLESS, "model": "plain"}))
    assert reading.wait(PATIENCE)
    sock.close()
    until(server.is_idle)


def test_a_slow_reader_holds_nobody_up(api):
    until(api.is_idle)
    slow = api.connect(raw("/v1/chat/completions", {**ENDLESS, "stream": True}))
    slow.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1024)
    until(lambda: api.host.counts()[0] == 1)
    for _ in range(5):
        assert api.post("/v1/chat/completions", chat()).ok
    slow.close()
    until(api.is_idle)


def test_requests_one_behind_the_other(api):
    """HTTP pipelining: both are answered, in their order."""
    sock = api.connect(
        raw("/v1/chat/completions", chat()) + raw("/tokenize", dict(prompt="a", model="sft"))
    )
    received = b""
    while b'"max_model_len"' not in received:
        received += sock.recv(65536)
    assert received.index(b"chat.completion") < received.index(b'"tokens"')
    sock.close()


@pytest.mark.parametrize(
    "lines",
    [
        b"nonsense\r\n\r\n",
        b"GET / HTTP/1.1\r\nContent-Length: x\r\n\r\n",
        b"POST /tokenize HTTP/1.1\r\nTransfer-Encoding: nonsense\r\n\r\n",
        b"POST /tokenize HTTP/1.1\r\nContent-Length: 99999999999\r\n\r\n",
    ],
)
def test_what_is_no_http(api, lines):
    sock, received = api.connect(lines), b""
    while data := sock.recv(65536):
        received += data
    head, _, body = received.partition(b"\r\n\r\n")
    assert head.split()[1][:1] in b"45" and json.loads(body)["error"]["message"]
    assert b"aitress" not in received
    assert api.get("/health").ok


def test_a_body_that_never_comes(api):
    head = b"POST /tokenize HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100\r\n\r\n{"
    with contextlib.closing(api.connect(head)):
        assert api.get("/health").ok


# -- limits and ends -------------------------------------------------------------------------------


def test_a_full_queue(make_server):
    openai = pytest.importorskip("openai")
    options, limits = Options(limits=RequestLimits(max_tokens=10**6)), QueueLimits(max_waiting=1)
    server = make_server(options, limits, n_slots=1)  # five models: five slots, and one waits
    with contextlib.ExitStack() as stack:
        for _ in range(6):
            sock = server.connect(raw("/v1/chat/completions", ENDLESS))
            stack.enter_context(contextlib.closing(sock))
        until(lambda: server.host.counts() == (1, 5))
        refused = server.post("/v1/chat/completions", ENDLESS)
        assert refused.status_code == 429 and int(refused.headers["Retry-After"]) > 0
        client = openai.OpenAI(base_url=f"{server.url}/v1", api_key="x", max_retries=0)
        with pytest.raises(openai.RateLimitError):
            client.chat.completions.create(**chat())
        assert server.get("/health").json() == dict(status="ok", running=1, waiting=5)
    until(server.is_idle)


@pytest.mark.parametrize("stream", [False, True])
def test_out_of_time(make_server, stream):
    options = Options(limits=RequestLimits(max_tokens=10**6))
    server = make_server(options, QueueLimits(total_seconds=0.3))
    answer = server.post("/v1/chat/completions", {**ENDLESS, "stream": stream})
    if stream:
        last = answer.text.strip().split("\n\n")[-1]
        assert json.loads(last.removeprefix("data: "))["error"]["code"] == "timeout"
    else:
        assert answer.status_code == 503 and answer.headers["Retry-After"]
        assert answer.json()["error"]["code"] == "timeout"


def test_a_stream_that_waits_says_so(make_server, monkeypatch):
    monkeypatch.setattr("minigpt.serving.app.KEEP_ALIVE_SECONDS", 0.2)
    server = make_server(Options(limits=RequestLimits(max_tokens=10**6)), n_slots=1)
    with contextlib.closing(server.connect(raw("/v1/chat/completions", ENDLESS))):
        until(lambda: server.host.counts() == (1, 0))
        waiting = {**ENDLESS, "stream": True}
        with server.post("/v1/chat/completions", waiting, stream=True) as answer:
            assert any(line.startswith(b":") for line in answer.iter_lines())
    until(server.is_idle)


def test_many_clients_at_once(api):
    def ask(i):
        if i % 4 == 0:
            return api.get("/health").json()["status"] == "ok"
        return api.post("/v1/chat/completions", chat(n=2)).json()["choices"][1]["message"]

    with ThreadPoolExecutor(24) as pool:
        assert all(pool.map(ask, range(48)))
    until(api.is_idle)


def test_loading_and_draining(make_server):
    server = make_server(loaded=False)
    health = server.get("/health")
    assert health.status_code == 503 and health.json()["status"] == "loading"
    assert server.post("/v1/chat/completions", chat()).status_code == 503
    assert server.get("/v1/models").status_code == 503 and server.get("/").ok
    assert server.get("/openapi.json").ok
    server.open()
    assert server.get("/health").ok and server.post("/v1/chat/completions", chat()).ok
    with server.get("/generate?prompt=x&model=loop&max_tokens=400", stream=True) as running:
        until(lambda: server.host.counts()[0] == 1)
        drain = threading.Thread(target=server.host.drain, args=(PATIENCE,))
        drain.start()
        until(lambda: server.host.draining)
        assert server.get("/health").json()["status"] == "draining"
        refused = server.post("/v1/chat/completions", chat())
        assert refused.status_code == 503 and refused.headers["Retry-After"]
        assert running.content.decode().count("天") == 100  # it was finished
        drain.join()


def test_a_log_line_a_request(make_server, caplog):
    caplog.set_level("INFO", logger="minigpt")
    server = make_server()
    answer = server.post("/v1/chat/completions", chat()).json()
    until(lambda: answer["id"] in caplog.text)
    (line,) = [r.getMessage() for r in caplog.records if answer["id"] in r.getMessage()]
    assert "127.0.0.1 sft 10 tokens in 9 out" in line and line.endswith("stop")
    assert "北京" not in caplog.text and "首都" not in caplog.text
    server = make_server(Options(log_text=True))
    server.post("/v1/chat/completions", chat())
    until(lambda: "北京" in caplog.text and "首都" in caplog.text)


def test_what_is_written_is_sent_before_the_end():
    body = bytes(1 << 24)  # more than a socket takes at once

    def app(environ, start_response):
        start_response("200 OK", [("Content-Length", str(len(body)))])
        return [body]

    server = listen(app, "127.0.0.1", 0, threads=2)
    threading.Thread(target=server.run, daemon=True).start()
    with socket.create_connection(("127.0.0.1", server.effective_port), PATIENCE) as slow:
        slow.sendall(b"GET / HTTP/1.0\r\n\r\n")
        until(lambda: any(c.total_outbufs_len for c in list(server.active_channels.values())))
        end = threading.Thread(target=flush, args=(server, 60))
        end.start()
        end.join(1)
        assert end.is_alive()
        received = 0
        while data := slow.recv(1 << 20):
            received += len(data)
    assert received > len(body)
    end.join(PATIENCE)
    assert not end.is_alive()


# -- the fuzzer and the harness --------------------------------------------------------------------


def test_the_description_is_true(make_server):
    """schemathesis asks what the description allows, and what it does not."""
    schemathesis = pytest.importorskip("schemathesis")
    from schemathesis.checks import CHECKS, load_all_checks

    small = RequestLimits(max_tokens=8, default_max_tokens=4, n=2)
    server = make_server(Options(limits=small))
    server.service.models.pop("broken")  # 500 is what it would rightly answer
    schema = schemathesis.openapi.from_url(f"{server.url}/openapi.json")
    load_all_checks()
    # A well-formed request may still be too long, or name ids that are none.
    excluded = [CHECKS.get_one("positive_data_acceptance")]
    rejection = CHECKS.get_one("negative_data_rejection")

    for result in schema.get_all_operations():
        operation = result.ok()

        for mode in (schemathesis.GenerationMode.POSITIVE, schemathesis.GenerationMode.NEGATIVE):

            @given(case=operation.as_strategy(generation_mode=mode))
            @settings(max_examples=8, database=None, suppress_health_check=list(HealthCheck))
            def check(case):
                response = case.call(timeout=PATIENCE)
                # It does not know that a wrong body may be refused because it is too large.
                skipped = [*excluded, rejection] if response.status_code == 413 else excluded
                case.validate_response(response, excluded_checks=skipped)

            with contextlib.suppress(Unsatisfiable):  # no parameter, nothing to get wrong
                check()
    until(server.is_idle)


def test_the_harness_measures_what_the_model_says(
    api, tmp_path, monkeypatch, tiny_model, byte_tokenizer
):
    monkeypatch.setenv("HF_DATASETS_OFFLINE", "1")
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    lm_eval = pytest.importorskip("lm_eval")
    from lm_eval.tasks import TaskManager

    numbers = torch.randint(0, 10, (24, 5), generator=torch.Generator().manual_seed(1)).tolist()
    records = [
        dict(question=f"{a}+{b}=", choices=[str(c), f"{d}{c}", "天"], label=e % 3)
        for a, b, c, d, e in numbers
    ]
    (tmp_path / "q.jsonl").write_text("\n".join(map(json.dumps, records)), encoding="utf-8")
    task = dict(
        task="sums",
        dataset_path="json",
        dataset_kwargs=dict(
            data_files={"test": str(tmp_path / "q.jsonl")}, cache_dir=str(tmp_path / "cache")
        ),
        test_split="test",
        output_type="multiple_choice",
        doc_to_text="{{question}}",
        doc_to_choice="{{choices}}",
        doc_to_target="label",
        metric_list=[dict(metric="acc")],
    )
    arguments = dict(
        model="plain",
        base_url=f"{api.url}/v1/completions",
        tokenizer_backend="auto",
        max_length=BLOCK,
        batch_size=3,
        max_retries=1,
    )
    found = lm_eval.simple_evaluate(
        "local-completions",
        model_args=arguments,
        tasks=[task],
        task_manager=TaskManager(include_defaults=False),
        bootstrap_iters=0,
        log_samples=True,
    )

    def score(record, choice):
        before = byte_tokenizer.encode(record["question"])
        ids = before + byte_tokenizer.encode(f" {choice}")
        rows = direct_logprobs(ids, tiny_model, byte_tokenizer)
        picked = rows[torch.arange(len(ids) - 1), torch.tensor(ids[1:])]
        return float(picked[len(before) - 1 :].sum())

    right = 0
    for record, sample in zip(records, found["samples"]["sums"], strict=True):
        scores = [score(record, choice) for choice in record["choices"]]
        logprobs = [float(response[0]) for response in sample["filtered_resps"]]
        assert logprobs == pytest.approx(scores, abs=1e-3)
        right += max(range(3), key=scores.__getitem__) == record["label"]
    assert found["results"]["sums"]["acc,none"] == right / len(records)
    assert 0 < right < len(records)


# -- the script ------------------------------------------------------------------------------------


@pytest.fixture
def start(runs):
    """start(*flags): server.py as a process, and its address once it takes requests."""
    processes = []

    def begin(*flags):
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        command = [sys.executable, str(ROOT / "server.py"), f"--port={port}", *flags]
        process = subprocess.Popen(
            command,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            encoding="utf-8",
        )
        processes.append(process)
        url = f"http://127.0.0.1:{port}"

        def is_up():
            assert process.poll() is None, process.stdout.read()
            with contextlib.suppress(requests.ConnectionError):
                return requests.get(f"{url}/health", timeout=PATIENCE).ok

        until_up = time.monotonic() + 60
        while not is_up():
            assert time.monotonic() < until_up
            time.sleep(0.1)
        return SimpleNamespace(process=process, url=url, port=port)

    yield begin
    for process in processes:
        process.kill()
        process.wait()


def test_the_script_serves_and_finishes_what_runs(start, runs):
    """SIGTERM while a text is being written: it is written to its end, and the exit is clean."""
    server = start(f"--out_dir={runs / 'sft'},{runs / 'loop'}", "--api_key=hush", "--host=0.0.0.0")
    key = {"Authorization": "Bearer hush"}
    listed = requests.get(f"{server.url}/v1/models", headers=key, timeout=PATIENCE).json()
    assert [model["id"] for model in listed["data"]] == ["sft", "loop"]
    assert all(model["n_params"] > 1000 and model["step"] == 7 for model in listed["data"])
    asked = f"{server.url}/generate?prompt=x&model=loop&max_tokens=4000"
    with requests.get(asked, headers=key, stream=True, timeout=PATIENCE) as answer:
        pieces = answer.iter_content(64)
        text = next(pieces)
        server.process.send_signal(signal.SIGTERM)
        text += b"".join(pieces)
    assert text.decode().count("天a") == 1000
    output, _ = server.process.communicate(timeout=60)
    assert server.process.returncode == 0 and "Traceback" not in output
    assert "teammates:" in output and "hush" not in output and "WARNING" not in output


def test_the_script_warns_and_stops_by_ctrl_c(start, runs):
    server = start(f"--out_dir={runs / 'sft'}", "--host=0.0.0.0", "--drain_seconds=0.2")
    answer = requests.get(f"{server.url}/generate?prompt=x", timeout=PATIENCE)
    assert answer.content.decode() == "北京。\n"  # one model: its name may be left out
    server.process.send_signal(signal.SIGINT)
    output, _ = server.process.communicate(timeout=60)
    assert server.process.returncode == 0 and "WARNING: no key is set" in output


def test_a_port_in_use(runs):
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        code, _, stderr = run_here("server.py", f"--out_dir={runs / 'sft'}", f"--port={port}")
    assert code == 2 and f"--port={port + 1}" in stderr and "Traceback" not in stderr


def test_all_wrong_settings_are_reported(runs):
    flags = ("--slots=0", "--temperature=-1", "--max_tokens=5", "--port=70000")
    code, _, stderr = run_here("server.py", f"--out_dir={runs / 'sft'}", *flags)
    assert code == 2 and "Traceback" not in stderr
    for name in ("slots", "temperature", "default_max_tokens", "port"):
        assert f"{name}=" in stderr


def test_names_of_runs(tmp_path, monkeypatch):
    (tmp_path / "out" / "mine").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "out" / "mine")
    assert model_names([".", "/"]) == ["mine", "model"]
    assert model_names(["out/sft"]) == ["sft"]
    assert model_names(["/home/me/out/sft/best", "out/b/"]) == ["sft/best", "b"]
    assert model_names(["runs/a", "elsewhere/a", "runs/a/best"]) == [
        "a",
        "a-2",
        "a/best",
    ]


def test_a_host_that_is_none():
    with pytest.raises(UserError, match="cannot listen"):
        listen(make_app(Service(Options())), "256.0.0.1", 0, threads=1)
