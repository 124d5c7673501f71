"""Endpoints: servers that answer a conversation with a stream of text, and the list of endpoints.

    side = Endpoint("lab", "http://192.168.1.20:5000", "sft").side()
    messages = [{"role": "user", "content": "黄河发源于哪里？"}]
    for text in side.stream(messages, {"max_tokens": 50}): …
    side.finish_reason, side.usage     # "stop", {"prompt_tokens": …, "completion_tokens": …, …}
    side.close()                       # from any thread: a read that blocks ends at once

A LocalRun (minigpt.arena.local_runs) has the same interface. What a server sends is untrusted: its
text is passed on as it is, bounded in size and time; every failure is an EndpointError.
"""

import contextlib
import csv
import io
import os
import threading
import time
from dataclasses import replace
from typing import NamedTuple

from minigpt.arena.battles import SettingRefused
from minigpt.arena.i18n import ArenaError
from minigpt.arena.thoughts import ThoughtSplitter
from minigpt.common.errors import UserError
from minigpt.common.presets import read_text
from minigpt.common.report import one_line
from minigpt.common.urls import (
    api_path,
    is_key,
    is_variable,
    problem_of_url,
    root_path,
    with_scheme,
)
from minigpt.openai.answers import decode, read_json, read_parts
from minigpt.openai.errors import ApiError
from minigpt.openai.safe_http import Allowed
from minigpt.openai.schemas import Sampling
from minigpt.openai.transport import Caps, Transport

SETTINGS = frozenset(Sampling.model_fields)  # what a setting may be called
PRIVATE = Allowed()  # this machine and private networks
CAUTIOUS = frozenset({"temperature", "top_p", "max_tokens", "stop"})  # what every server takes
CHAT_ROUTE = "/v1/chat/completions"
SLOW_MS = 1000.0  # a server that takes longer to list its models is called slow
PROBE_SECONDS = 5.0
MAX_MODELS = 100  # of a server's list that are shown
MAX_THOUGHTS = 20_000  # characters of a model's thoughts that are kept
# Kinds of an ApiError after which nobody answers at an address.
UNREACHABLE = {"unknown host", "refused", "unreachable", "proxy", "tls", "timeout", "broken off"}
NO_LIST = {"http 404", "http 405", "http 501"}  # a server without a list of models


class EndpointError(Exception):
    """Why there is no text, or no more: `message` for the owner, with the endpoint's name and
    address, and `kind`: that of an ApiError, "no key", "which model", and of a local run "busy",
    "stopping", "rejected". cause: the ApiError, or None."""

    def __init__(self, kind, message, cause=None):
        super().__init__(message)
        self.kind, self.message, self.cause = kind, message, cause


class Health(NamedTuple):
    """What probe() found. status: "ok", "slow", "loading", or the kind of an EndpointError; models:
    what it serves; latency_ms: of its list of models; message: for people, or ""."""

    status: str
    models: tuple[str, ...]
    latency_ms: float
    message: str = ""


# -- a server --------------------------------------------------------------------------------------


class Endpoint:
    """A server that speaks OpenAI's API: ours, llama.cpp, vLLM, LM Studio, a cloud's.

    name, base_url, model, api_key_env: as in endpoints.csv (Preset). Fixed, so that a key goes only
    to the address that it was stored with; UserError says what is wrong with them. The key itself
    is read from its environment variable for each request and kept nowhere. allowed: networks that
    may be connected to; caps: how much an answer may cost, None: Caps().
    """

    def __init__(self, name, base_url, model=None, api_key_env=None, allowed=PRIVATE, caps=None):
        self._preset = Preset(name, base_url, model, api_key_env)
        problems = self._preset.problems()
        if problems:
            raise UserError("\n".join(problems))
        self._transport, self.caps = Transport(base_url, allowed=allowed), caps or Caps()
        self._fields = None  # of a chat request, by the server's own description, where it has one
        self._refused = set()  # settings that the server has refused
        self.health = None  # the Health of the last probe()
        self.prompt_format = None  # of its model, if its server says so: ours does

    name = property(lambda self: self._preset.name)
    base_url = property(lambda self: self._preset.base_url)
    model = property(lambda self: self._preset.model)

    @property
    def takes(self):
        """Names of the settings that the server takes. A cautious few until probe() has read its
        /openapi.json; where it has none (or it does not list them) it stays with these. Not those
        that it has refused. A server that does not answer takes them all: it restricts nobody else
        in a battle."""
        if self._fields is not None:
            return (SETTINGS & self._fields) - self._refused
        return CAUTIOUS - self._refused if self.is_alive else SETTINGS

    def refuse(self, name):
        """Remember that the server refuses a setting."""
        self._refused = self._refused | {name}

    @property
    def is_alive(self):
        """Whether it answered the last probe(), be it with an error; True before the first."""
        return self.health is None or self.health.status not in UNREACHABLE

    def __repr__(self):
        return f"Endpoint({self.name!r}, {self.base_url!r}, model={self.model!r})"

    def side(self):
        """An EndpointStream, to write one text."""
        return EndpointStream(self)

    # -- requests --

    def body(self, messages, settings, started):
        """The JSON of a chat request. See EndpointStream.stream(); started: see exchange()."""
        given = {name: value for name, value in settings.items() if value is not None}
        model = self.model or self._only_model(started)
        body = dict(given, model=model, messages=messages, stream=True)
        if self._fields is None or "stream_options" in self._fields:
            body["stream_options"] = {"include_usage": True}
        if self._fields and "truncate" in self._fields:
            body["truncate"] = "oldest"  # our own server's: a long conversation stays possible
        return body

    @contextlib.contextmanager
    def exchange(self, method, path, caps, body=None, *, with_key=True, started=None):
        """As Transport.exchange(). path: under the API's version. What goes wrong is an
        EndpointError that names the endpoint."""
        key = self._key() if with_key else None
        try:
            with self._transport.exchange(
                method, path, body, key=key, caps=caps, started=started
            ) as response:
                yield response
        except ApiError as error:
            message = one_line(f"{self.name} ({self.base_url}): {error.message}")
            raise EndpointError(error.kind, message, error) from None

    def api(self, route):
        """The path of a route of the API, with its version: /v1 where the address has none."""
        return api_path(self.base_url) + route

    def _key(self):
        """The key, or None where the endpoint has none."""
        variable = self._preset.api_key_env
        if variable is None:
            return None
        key = os.environ.get(variable, "").strip()
        if not is_key(key):
            how = "is not set" if not key else "holds no key (a space, or no ASCII)"
            raise EndpointError("no key", f"{self.name}: the environment variable {variable} {how}")
        return key

    def _only_model(self, started):
        models = tuple(self._models(self.caps, started))
        if len(models) != 1:
            there_is = one_line(", ".join(models)) or "none"
            raise EndpointError("which model", f"{self.name}: say which model; it has {there_is}")
        return models[0]

    def _models(self, caps, started=None):
        """Name of each model → its prompt format, None if the server does not say it."""
        with self.exchange("GET", self.api("/models"), caps, started=started) as response:
            listed = read_json(decode(response.read()))
            try:
                found = {model["id"]: model.get("prompt_format") for model in listed["data"]}
            except (AttributeError, KeyError, TypeError):
                found = {None: None}
            if not all(isinstance(name, str) for name in found):
                raise ApiError("garbage", "it sent no list of models")
        return found

    # -- its health --

    def probe(self):
        """Ask what it serves, and learn which settings it takes: a Health, never an exception.
        Takes at most PROBE_SECONDS twice; a text that is being written is not touched."""
        self.health = self._probe()
        return self.health

    def _probe(self):
        caps = replace(self.caps, total_seconds=PROBE_SECONDS)
        began = time.monotonic()
        try:
            found = self._models(caps)
            models = tuple(found)
        except EndpointError as error:
            if error.kind in NO_LIST and self.model:  # it may answer all the same
                return Health("ok", (), _ms_since(began), f"{self.name}: it lists no models")
            return Health(error.kind, (), _ms_since(began), error.message)
        latency = _ms_since(began)
        self._fields = self._described_fields(caps)
        only = models[0] if len(models) == 1 else None
        self.prompt_format = found.get(self.model or only)
        message = ""
        if self.model and self.model not in models:
            message = f"{self.name}: {self.model} is not among its models: {', '.join(models)}"
        models = tuple(one_line(model, 80) for model in models[:MAX_MODELS])
        return Health("slow" if latency > SLOW_MS else "ok", models, latency, one_line(message))

    def _described_fields(self, caps):
        """The fields of a chat request, where the server describes itself; else None."""
        path = root_path(self.base_url) + "/openapi.json"
        try:
            with self.exchange("GET", path, caps, with_key=False) as response:
                described = read_json(decode(response.read()))
            chat = described["paths"][CHAT_ROUTE]["post"]
            schema = chat["requestBody"]["content"]["application/json"]["schema"]
            name = schema.get("$ref", "").removeprefix("#/components/schemas/")
            schema = described["components"]["schemas"][name] if name else schema
            return frozenset(schema["properties"])
        except (EndpointError, AttributeError, KeyError, TypeError):
            return None


def _ms_since(began):
    return 1000 * (time.monotonic() - began)


class EndpointStream:
    """One text of an Endpoint. takes: as the endpoint's; finish_reason, usage: of the text, None
    before its end or where the server does not report them; thoughts, refusal: what the model has
    written so far before its answer, and instead of one."""

    def __init__(self, endpoint):
        self._endpoint, self.finish_reason, self.usage = endpoint, None, None
        self.thoughts, self.refusal = "", ""
        self._closed, self._lock = threading.Event(), threading.Lock()
        self._connection = None  # the one that close() ends

    takes = property(lambda self: self._endpoint.takes)

    def close(self):
        """End what stream() reads, from any thread and for good; it returns without an error, its
        finish_reason "cancelled"."""
        with self._lock:
            self._closed.set()
            if self._connection:
                self._connection.abort()

    def stream(self, messages, settings):
        """Yield the text of the answer in pieces, as they come. EndpointError where it fails;
        SettingRefused, before any text, where the server refuses one of the settings.

        messages: [{"role": …, "content": …}, …]; settings: name → value, None for the server's own.
        """
        try:
            yield from self._answer(self._endpoint.body(messages, settings, self._start))
        except EndpointError as error:
            # A text that has its end is whole, should the connection not have one.
            is_whole = self.finish_reason is not None and error.kind in ("timeout", "broken off")
            if not (is_whole or self._closed.is_set()):
                raise
        if self._closed.is_set() and self.finish_reason is None:
            self.finish_reason = "cancelled"

    def again(self):
        """See minigpt.arena.battles."""
        return self._endpoint.side()

    def _answer(self, body):
        while True:
            try:
                yield from self._read(body)
                return
            except EndpointError as error:
                refused = _refused_field(body, error)
                if refused is None:
                    raise
            value = body.pop(refused)
            if refused == "max_tokens":
                body["max_completion_tokens"] = value
            elif refused in SETTINGS or refused == "max_completion_tokens":
                name = refused.replace("_completion", "")
                self._endpoint.refuse(name)
                raise SettingRefused(name)

    def _read(self, body):
        request = "POST", self._endpoint.api("/chat/completions"), self._endpoint.caps, body
        splitter = ThoughtSplitter()
        with self._endpoint.exchange(*request, started=self._start) as response:
            for part in read_parts(response, streamed=True):
                text, thoughts = splitter.push(part.text)
                self._keep(part.reasoning + thoughts, part.refusal)
                self.finish_reason = part.finish_reason or self.finish_reason
                self.usage = part.usage or self.usage
                if text:
                    yield text
        text, thoughts = splitter.push("", final=True)
        self._keep(thoughts, "")
        if text:
            yield text

    def _keep(self, thoughts, refusal):
        self.thoughts = (self.thoughts + thoughts)[:MAX_THOUGHTS]
        self.refusal = (self.refusal + refusal)[:MAX_THOUGHTS]

    def _start(self, connection):
        with self._lock:
            self._connection = connection
            if self._closed.is_set():
                raise ApiError("cancelled", "closed")


def _refused_field(body, error):
    """The field of `body` that a server refused, if its error names one, else None. Some refuse to
    be asked for the usage (Mistral's): then it stays unknown."""
    refused = error.cause and error.cause.meaning(body)[1]
    if refused:
        return refused
    is_refused = error.kind in ("http 400", "http 422") and "stream_options" in body
    return "stream_options" if is_refused else None


# -- the list --------------------------------------------------------------------------------------


class Preset(NamedTuple):
    """A row of endpoints.csv: what people call it, its address with or without /v1, the model to
    ask for (None: its only one), and the environment variable that holds its key (None: none)."""

    name: str
    base_url: str
    model: str | None = None
    api_key_env: str | None = None

    def problems(self):
        """What is wrong, a line each."""
        found = []
        if not (self.name and self.name.isprintable() and len(self.name) <= 60):
            found.append(f"name={self.name!r}: expected up to 60 characters of text")
        wrong = problem_of_url(self.base_url)
        if wrong:
            found.append(f"base_url: {wrong}; expected one such as http://192.168.1.20:5000")
        if self.api_key_env is not None and not is_variable(self.api_key_env):
            # Its value is not shown: it may be a key in the wrong column.
            found.append("api_key_env: expected the NAME of an environment variable, not the key")
        return found


_COLUMNS = Preset._fields


def read_presets(path):
    """The rows of an endpoints.csv, in UTF-8 (with a byte order mark or without) or GB18030.

    Returns Presets. Columns name and base_url, in any order; model and api_key_env may be absent or
    empty. UserError with every mistake, a line each.
    """
    rows, problems, lines_of = [], [], {}
    header = None
    for line, cells in _rows(path, problems):
        if header is None:
            header = cells
            problems += [f"{path}, line {line}: {wrong}" for wrong in _wrong_header(header)]
            if problems:
                break
            continue
        if len(cells) != len(header):
            problems.append(f"{path}, line {line}: {len(cells)} cells, expected {len(header)}")
            continue
        values = dict(zip(header, cells, strict=True))
        preset = Preset(*(values.get(column) or None for column in _COLUMNS))
        base_url = with_scheme(preset.base_url) if preset.base_url else ""
        preset = preset._replace(name=preset.name or "", base_url=base_url)
        problems += [f"{path}, line {line}: {wrong}" for wrong in preset.problems()]
        first = lines_of.setdefault(preset.name, line)
        if first != line:
            problems.append(f"{path}, line {line}: name={preset.name!r} is taken by line {first}")
        rows.append(preset)
    if header is None and not problems:
        problems.append(f"{path}: empty; expected a first line {','.join(_COLUMNS)}")
    if problems:
        raise UserError("\n".join(problems))
    return rows


def _wrong_header(header):
    expected = f"expected the columns {','.join(_COLUMNS)} (the last two may be absent)"
    missing = [column for column in _COLUMNS[:2] if column not in header]
    unknown = [repr(column) for column in header if column not in _COLUMNS]
    if missing:
        yield f"no column {' and '.join(missing)}; {expected}"
    if unknown:
        yield f"unknown column {', '.join(unknown)}; {expected}"
    if len(set(header)) < len(header):
        yield f"a column is there twice; {expected}"


def _rows(path, problems):
    """Yield (line, cells) of each row that is not empty; what is no CSV is added to `problems`."""
    reader = csv.reader(io.StringIO(read_text(path), newline=""), strict=True)
    while True:
        line = reader.line_num + 1
        try:
            cells = [cell.strip() for cell in next(reader)]
        except StopIteration:
            return
        except csv.Error as error:
            problems.append(f"{path}, line {line}: no CSV ({error})")
            return
        if any(cells):
            yield line, cells


class Endpoints:
    """The endpoints by name, in the order in which they were added. For any thread."""

    def __init__(self, endpoints=()):
        self._lock, self._by_name = threading.Lock(), {}
        for endpoint in endpoints:
            self.add(endpoint)

    def add(self, endpoint):
        """Add an Endpoint or LocalRun. UserError where its name is taken."""
        with self._lock:
            if endpoint.name in self._by_name:
                raise ArenaError("known_endpoint", name=endpoint.name)
            self._by_name[endpoint.name] = endpoint

    def remove(self, name):
        """Remove one from the list; texts that it is writing continue."""
        with self._lock:
            if self._by_name.pop(name, None) is None:
                raise ArenaError("unknown_endpoint", name=name)

    def get(self, name):
        """The one with this name; its side() writes a text."""
        with self._lock:
            if name not in self._by_name:
                raise ArenaError("unknown_endpoint", name=name)
            return self._by_name[name]

    def all(self):
        """All of them."""
        with self._lock:
            return list(self._by_name.values())

    def first_alive(self):
        """The name of the first that answers; of the first, if none does; None if there is none."""
        entries = sorted(self.all(), key=lambda entry: not entry.is_alive)
        return entries[0].name if entries else None

    def names(self):
        """All names."""
        with self._lock:
            return list(self._by_name)
