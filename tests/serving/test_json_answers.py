"""response_format: a random model's answer is JSON by the schema, or it hit the token limit.

jsonschema_rs, which schemathesis brings, is the independent judge.
"""

import json
import sys
from typing import Literal

import pytest
import torch
from api_server import chat, events, until
from pydantic import BaseModel, Field

from minigpt.common.errors import UserError
from minigpt.data.prompts import stop_ids
from minigpt.inference.engine import Engine, Request
from minigpt.serving.json_constraint import MOST_SCHEMA, JsonConstraint, token_table
from minigpt.tokenizer.tokenizer import load_tokenizer

pytest.importorskip("llguidance")
jsonschema_rs = pytest.importorskip("jsonschema_rs")
pytest_plugins = ["api_server"]

CITY = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 3},
        "kind": {"enum": ["首都", "city"]},
        "rivers": {"type": "array", "items": {"type": "boolean"}, "maxItems": 2},
    },
    "required": ["name", "kind"],
    "additionalProperties": False,
}
SCHEMAS = {
    "object": CITY,
    "enum": {"enum": ["黄河", 7, None, {"a": [1]}]},
    "union": {"anyOf": [{"type": "boolean"}, {"const": "长江"}]},
    "pattern": {"type": "string", "pattern": "^[ab]{1,4}$"},
    "date": {"type": "string", "format": "date"},
    "range": {"type": "integer", "minimum": -5, "maximum": 120},
    "recursive": {
        "$defs": {"n": {"type": "array", "items": {"$ref": "#/$defs/n"}, "maxItems": 1}},
        "$ref": "#/$defs/n",
    },
    "two members": {
        "type": "object",
        "properties": {"x": {"type": "null"}},
        "patternProperties": {"^y": {"type": "boolean"}},
        "additionalProperties": False,
    },
}


def by(schema, **more):
    return {"type": "json_schema", "json_schema": {"name": "answer", "schema": schema, **more}}


def ask(schema, **more):
    asked = dict(temperature=1, top_k=0, max_tokens=60, response_format=by(schema))
    return {**chat(), **asked, **more}


@pytest.mark.parametrize("name", SCHEMAS)
def test_a_random_model_writes_what_the_schema_says(api, name):
    """Many at once, of every length: the requests share the engine's steps."""
    schema, whole = SCHEMAS[name], 0
    for model in ("plain", "chat"):
        answer = api.post("/v1/chat/completions", ask(schema, model=model, n=8, seed=3)).json()
        for choice in answer["choices"]:
            if choice["finish_reason"] == "stop":
                jsonschema_rs.validate(schema, json.loads(choice["message"]["content"]))
                whole += 1
            else:
                assert choice["finish_reason"] == "length"
    assert whole  # of sixteen


def test_any_object(api):
    for wanted in ({"type": "json_object"}, {"type": "json_schema", "json_schema": {"name": "x"}}):
        body = ask(None, model="plain", response_format=wanted, n=8, seed=1, max_tokens=40)
        texts = []
        for choice in api.post("/v1/chat/completions", body).json()["choices"]:
            texts.append(choice["message"]["content"])
            if choice["finish_reason"] == "stop":
                assert isinstance(json.loads(texts[-1]), dict)
        assert all(text.startswith("{") for text in texts)


def test_a_stream_is_that_of_the_whole(api):
    body = ask(CITY, model="plain", seed=11, max_tokens=80)
    whole = api.post("/v1/chat/completions", body).json()["choices"][0]
    chunks = [
        c["choices"][0] for c in events(api.post("/v1/chat/completions", {**body, "stream": True}))
    ]
    assert "".join(c["delta"].get("content", "") for c in chunks) == whole["message"]["content"]
    assert chunks[-1]["finish_reason"] == whole["finish_reason"]


def test_the_limit_and_stop_strings_still_end_a_text(api):
    cut = api.post("/v1/chat/completions", ask(CITY, model="plain", max_tokens=3)).json()
    assert cut["choices"][0]["finish_reason"] == "length"
    assert cut["choices"][0]["message"]["content"] == '{"n'
    stopped = api.post("/v1/chat/completions", ask(CITY, model="plain", stop="me")).json()
    assert stopped["choices"][0]["finish_reason"] == "stop"
    assert stopped["choices"][0]["message"]["content"] == '{"na'


def test_a_completion_by_a_schema(api):
    schema = SCHEMAS["enum"]
    body = dict(model="plain", prompt=["a", "b"], n=2, response_format=by(schema), temperature=1)
    for choice in api.post("/v1/completions", body).json()["choices"]:
        assert choice["finish_reason"] == "stop"
        jsonschema_rs.validate(schema, json.loads(choice["text"]))
    refused = api.post("/v1/completions", {**body, "echo": True})
    assert refused.status_code == 400 and "echo" in refused.json()["error"]["message"]


class River(BaseModel):
    name: Literal["黄河", "长江"]
    length: int = Field(ge=0, le=10_000)


def test_the_official_client_parses_a_class(client):
    answer = client.chat.completions.parse(
        model="plain", messages=chat()["messages"], response_format=River, temperature=1, seed=2
    )
    assert isinstance(answer.choices[0].message.parsed, River)


UNSUPPORTED = [
    {"type": "array", "uniqueItems": True},
    {"not": {"type": "string"}},
    {"type": "string", "format": "nonsense"},
    {"type": "string", "pattern": "(?=a)b"},
    {"$ref": "http://127.0.0.1:9/schema"},
    {"$ref": "#/$defs/none"},
    {"type": "nonsense"},
    {"type": "integer", "minimum": 5, "maximum": 3},
    {"enum": []},
    {"type": "string", "description": "x" * MOST_SCHEMA},
]


@pytest.mark.parametrize("schema", UNSUPPORTED, ids=lambda schema: str(schema)[:40])
def test_what_cannot_be_kept_to_is_refused(api, schema):
    refused = api.post("/v1/chat/completions", ask(schema))
    error = refused.json()["error"]
    assert refused.status_code == 400 and error["param"] == "response_format"
    assert error["message"].startswith("response_format: ") and "\n" not in error["message"]


def test_without_the_library_one_line_says_what_to_install(make_server, monkeypatch):
    monkeypatch.setitem(sys.modules, "llguidance", None)
    server = make_server()
    refused = server.post("/v1/chat/completions", ask(CITY))
    assert refused.status_code == 400 and "pip install llguidance" in refused.text
    assert server.post("/v1/chat/completions", chat(response_format={"type": "text"})).ok


def test_a_schema_that_becomes_too_complex_is_an_error_of_its_request(make_server, monkeypatch):
    """The matcher fails in the middle of a text: no answer passes for whole, and others go on."""
    monkeypatch.setattr("minigpt.serving.json_constraint.MOST_LEXER_STATES", 20)
    server = make_server()
    schema = {"type": "string", "pattern": "^[ab]*a[ab]{12}$"}
    body = ask(schema, model="plain", max_tokens=400, seed=1)
    for more in ({}, {"stream": True}):
        assert "too complex" in server.post("/v1/chat/completions", {**body, **more}).text
    assert server.post("/v1/chat/completions", dict(chat(), model="plain", max_tokens=2)).ok
    until(server.is_idle)


# -- the engine's part -----------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["zh", "gpt2"])
def test_the_tokens_of_real_vocabularies(name):
    """Tokens of several characters and of parts of one, drawn at random among those allowed."""
    tokenizer = load_tokenizer(name)
    ends = stop_ids(tokenizer)
    table, generator = token_table(tokenizer, ends), torch.Generator().manual_seed(0)
    for _ in range(5):
        constraint, ids = JsonConstraint.of_schema(table, CITY, ends), []
        while not ids or ids[-1] not in ends:
            allowed = constraint.allowed(ids)
            assert allowed.shape == (tokenizer.n_vocab,) and allowed.any()
            noise = torch.rand(len(allowed), generator=generator)
            ids.append(int((noise * allowed).argmax()))
        jsonschema_rs.validate(CITY, json.loads(tokenizer.decode(ids)))


def test_a_copy_is_of_the_schema_alone(byte_tokenizer):
    ends = stop_ids(byte_tokenizer)
    table = token_table(byte_tokenizer, ends)
    first = JsonConstraint.of_schema(table, {"enum": ["ab"]}, ends)
    assert first.allowed([]).nonzero().tolist() == [[ord('"')]]
    second = first.copy()
    assert first.allowed(list(b'"a')).nonzero().tolist() == [[ord("b")]]
    assert second.allowed([]).nonzero().tolist() == [[ord('"')]]
    done = first.allowed(list(b'"ab"'))
    assert sorted(done.nonzero().flatten().tolist()) == sorted(ends)


class Even:
    """A constraint of another kind: even ids."""

    def __init__(self, n_vocab):
        self.seen, self.n_vocab = [], n_vocab

    def allowed(self, generated):
        self.seen.append(list(generated))
        return torch.arange(self.n_vocab) % 2 == 0


def test_the_engine_asks_each_constraint_for_its_own_text(tiny_model):
    """Beside free requests, whose texts stay what they are alone; at any temperature."""
    engine, n = Engine(tiny_model(), n_slots=3), 64
    constraints = [Even(n), Even(n)]
    requests = [
        Request([1, 2], 6, temperature=1, seed=4),
        Request([1, 2, 3], 6, temperature=1, seed=4, constraint=constraints[0]),
        Request([5], 4, temperature=0, repetition_penalty=1.5, constraint=constraints[1]),
    ]
    free, *bound = engine.generate(requests)
    assert free.ids == Engine(tiny_model()).generate(requests[:1])[0].ids
    for ticket, constraint in zip(bound, constraints, strict=True):
        assert ticket.ids and all(i % 2 == 0 for i in ticket.ids)
        assert constraint.seen == [ticket.ids[:i] for i in range(len(ticket.ids))]


def test_beams_take_no_constraint(tiny_model):
    with pytest.raises(UserError, match="constraint"):
        Engine(tiny_model()).submit(Request([1], temperature=0, num_beams=2, constraint=Even(64)))
