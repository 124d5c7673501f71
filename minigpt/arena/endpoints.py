"""Endpoints: whoever answers a conversation with a stream of text, a server or a run of our own.

    side = Endpoint("lab", "http://192.168.1.20:5000", "sft").side()
    messages = [{"role": "user", "content": "黄河发源于哪里？"}]
    for text in side.stream(messages, {"max_tokens": 50}): …
    side.finish_reason, side.usage     # "stop", {"prompt_tokens": …, "completion_tokens": …, …}
    side.close()                       # from any thread: a read that blocks ends at once

A LocalRun has the same face. What a server sends is untrusted: its text is handed on as it is, of
a bounded size in a bounded time; all that goes wrong is an EndpointError.
"""

import codecs
import contextlib
import copy
import csv
import http.client
import io
import json
import os
import ssl
import threading
import time
from dataclasses import dataclass, replace
from typing import NamedTuple
from urllib.parse import urlsplit

from minigpt.arena.safe_http import Allowed, CheckedConnection, Forbidden, UnknownHost
from minigpt.common.errors import UserError
from minigpt.common.json_text import parse_json
from minigpt.common.presets import read_text
from minigpt.common.report import one_line
from minigpt.common.urls import api_path, is_key, is_variable, problem_of_url, root_path
from minigpt.data.prompts import chat_ids, stop_ids
from minigpt.inference.engine import Request
from minigpt.inference.scheduler import QueueFull, SchedulerStopped
from minigpt.openai.schemas import Sampling

SETTINGS = frozenset(Sampling.model_fields)  # what a setting may be called
PRIVATE = Allowed()  # this machine and private networks
CAUTIOUS = frozenset({"temperature", "top_p", "max_tokens", "stop"})  # what every server takes
USAGE = ("prompt_tokens", "completion_tokens", "total_tokens")
CHAT_ROUTE = "/v1/chat/completions"
SLOW_MS = 1000.0  # a server that takes longer to say what it serves is called slow
PROBE_SECONDS = 5.0
_PIECE = 1 << 16  # bytes that one read asks for
_ERROR_BYTES = 1 << 16  # of an HTTP error's body, which may be of any kind
_MOST_MODELS = 100  # of which a server's list shows the names


class EndpointError(Exception):
    """Why there is no text, or no more: `message` for the owner, with the endpoint's name and
    address, and `kind`:

    "forbidden" (its network is not allowed), "unknown host", "refused" (nothing listens),
    "unreachable", "tls", "timeout", "broken off", "http 500" (any status but 200), "garbage" (not
    what the API says), "too long" (more bytes than it may send), "error" (the server says so
    itself), "no key", "which model", and of a local run "busy", "stopping", "rejected".
    """

    def __init__(self, kind, message):
        super().__init__(message)
        self.kind, self.message = kind, message


@dataclass(frozen=True)
class Caps:
    """How much an endpoint may cost: seconds to connect, of silence, and for an answer in all;
    bytes of an answer as they come over the wire (some 200 for a token)."""

    connect_seconds: float = 5.0
    idle_seconds: float = 60.0
    total_seconds: float = 600.0
    max_bytes: int = 4 << 20


class Health(NamedTuple):
    """What probe() found. status: "ok", "slow", or the kind of an EndpointError; models: what it
    serves; latency_ms: until it had said so; message: what there is to say, or ""."""

    status: str
    models: tuple[str, ...]
    latency_ms: float
    message: str = ""


# -- what a server sends ---------------------------------------------------------------------------


class Events:
    """Server-sent events: bytes in, cut anywhere, out the data of each event that is complete.

    As the HTML standard parses them: any line end, a byte order mark, comments, bytes that are no
    UTF-8. Some servers name the field "error" instead of "data".
    """

    def __init__(self):
        utf8 = codecs.getincrementaldecoder("utf-8-sig")("replace")
        self._text = io.IncrementalNewlineDecoder(utf8, translate=True)
        self._line, self._data = [], []  # parts of what is not complete

    def push(self, data):
        """Yield the data of each event that `data` (bytes) completes."""
        *lines, rest = self._text.decode(data).split("\n")
        for line in lines:
            yield from self._read("".join([*self._line, line]))
            self._line = []
        self._line.append(rest)

    def _read(self, line):
        field, _, value = line.partition(":")
        if field in ("data", "error"):
            self._data.append(value.removeprefix(" "))
        elif not line and self._data:
            yield "\n".join(self._data)
            self._data = []


class Part(NamedTuple):
    """What an answer or a chunk of one says."""

    text: str
    finish_reason: str | None
    usage: dict | None


def _read_part(data, field):
    """The Part in `data` (JSON text); field: "delta" of a chunk, "message" of a whole answer."""
    answer = _read_json(data)
    complaint = _complaint(answer)
    if complaint is not None:
        raise EndpointError("error", complaint)
    try:
        choice = (answer["choices"] or [{}])[0]  # a chunk that tells the usage has none
        text = (choice.get(field) or {}).get("content") or ""
        reason, usage = choice.get("finish_reason"), answer.get("usage")
        if not isinstance(text, str) or not isinstance(reason, str | None):
            raise TypeError
        return Part(text, reason and one_line(reason, 40), _counts(usage) if usage else None)
    except (AttributeError, KeyError, IndexError, TypeError):
        raise EndpointError("garbage", f"it sent no answer: {data}") from None


def _counts(usage):
    counts = {name: usage.get(name) for name in USAGE}
    return {name: n for name, n in counts.items() if type(n) is int and 0 <= n < 2**31}


def _read_json(data):
    try:
        return parse_json(data)
    except ValueError:
        raise EndpointError("garbage", f"it sent no JSON: {data}") from None


def _complaint(answer):
    """What an answer says that is an error, or None: OpenAI's form, and what others make of it."""
    if not isinstance(answer, dict):
        return None
    error = answer if answer.get("object") == "error" else answer.get("error")
    if not error:
        return None
    message = error.get("message") if isinstance(error, dict) else error
    return message if isinstance(message, str) else json.dumps(error, ensure_ascii=False)


def _pairs():
    """A function that joins halves of surrogate pairs which come in two strings, as JSON can spell
    them; a half that stays alone becomes U+FFFD."""
    decoder = codecs.getincrementaldecoder("utf-16-le")("replace")
    return lambda text, final=False: decoder.decode(
        text.encode("utf-16-le", "surrogatepass"), final
    )


# -- a server --------------------------------------------------------------------------------------


class Endpoint:
    """A server that speaks OpenAI's API: ours, llama.cpp, vLLM, LM Studio, a cloud's.

    name, base_url, model, api_key_env: as in endpoints.csv (Preset). Fixed for good, so that a key
    goes only to the address that it was stored with; UserError says what is wrong with them. The
    key itself is read from its environment variable for each request and kept nowhere.

    takes: names of settings that its server takes. A cautious few until probe() has read its
    /openapi.json; where it has none (or it is not known to list them) they stay.
    finish_reason, usage: of the text that stream() wrote; None before its end or if not told.
    """

    def __init__(self, name, base_url, model=None, api_key_env=None, allowed=PRIVATE, caps=Caps()):
        self._preset = Preset(name, base_url, model, api_key_env)
        problems = self._preset.problems()
        if problems:
            raise UserError("\n".join(problems))
        self._url, self._allowed, self._caps = urlsplit(base_url), allowed, caps
        self._fields = None  # what the server's description lists, where it has one
        self._begin()

    name = property(lambda self: self._preset.name)
    base_url = property(lambda self: self._preset.base_url)
    model = property(lambda self: self._preset.model)

    @property
    def takes(self):
        """See the class."""
        return CAUTIOUS if self._fields is None else SETTINGS & self._fields

    def __repr__(self):
        return f"Endpoint({self.name!r}, {self.base_url!r}, model={self.model!r})"

    def side(self):
        """The same endpoint, to write one text: close() ends that one and no other."""
        side = copy.copy(self)
        side._begin()
        return side

    def _begin(self):
        self.finish_reason = self.usage = None
        self._closed = threading.Event()
        self._lock = threading.Lock()
        self._connection = None  # the one that close() ends

    def close(self):
        """End what stream() reads, from any thread and for good; it returns without an error, its
        finish_reason "cancelled"."""
        with self._lock:
            self._closed.set()
            if self._connection:
                self._connection.abort()

    def stream(self, messages, settings):
        """Yield the text of the answer in pieces, as they come. EndpointError where it fails.

        messages: [{"role": …, "content": …}, …]; settings: name → value, None for the server's own.
        """
        self.finish_reason = self.usage = None
        try:
            yield from self._answer(self._body(messages, settings))
        except EndpointError as error:
            # A text that has its end is whole, should the connection not have one.
            is_whole = self.finish_reason is not None and error.kind in ("timeout", "broken off")
            if not (is_whole or self._closed.is_set()):
                raise
        if self._closed.is_set() and self.finish_reason is None:
            self.finish_reason = "cancelled"

    def _body(self, messages, settings):
        given = {name: value for name, value in settings.items() if value is not None}
        body = dict(given, model=self.model or self._only_model(), messages=messages, stream=True)
        if self._fields is None or "stream_options" in self._fields:
            body["stream_options"] = {"include_usage": True}
        if self._fields and "truncate" in self._fields:
            body["truncate"] = "oldest"  # our own server's: a long conversation stays possible
        return body

    def _only_model(self):
        models = self._models(self._caps, stoppable=True)
        if len(models) != 1:
            there_is = one_line(", ".join(models)) or "none"
            raise EndpointError("which model", f"{self.name}: say which model; it has {there_is}")
        return models[0]

    def _answer(self, body):
        try:
            yield from self._read(body)
        except EndpointError as error:
            # Some servers refuse to be asked for the usage (Mistral's): then it stays unknown.
            is_refused = error.kind in ("http 400", "http 422")
            if not (is_refused and body.pop("stream_options", None)):
                raise
            yield from self._read(body)

    def _read(self, body):
        join = _pairs()
        where = "POST", self._api + "/chat/completions"
        with self._exchange(*where, self._caps, body, with_key=True, stoppable=True) as response:
            if "json" in response.headers.get_content_type():
                parts = [_read_part(self._whole(response), "message")]
            else:
                parts = self._parts(response)
            for part in parts:
                text = join(part.text)
                if text:
                    yield text
                self.finish_reason = part.finish_reason or self.finish_reason
                self.usage = part.usage or self.usage
            if join("", True):
                yield "\ufffd"

    def _parts(self, response):
        """Yield the Part of each event, up to [DONE]."""
        events = Events()
        for data in self._bytes(response):
            for event in events.push(data):
                if event.strip() == "[DONE]":
                    return
                yield _read_part(event, "delta")
        if self.finish_reason is None:
            raise EndpointError("broken off", "it ended in the middle of the answer")

    # -- over the wire --

    @property
    def _api(self):
        """The path of the API: with its version, which is /v1 where the address has none."""
        return api_path(self.base_url)

    @property
    def _key(self):
        """The key, or None where the endpoint has none."""
        if self._preset.api_key_env is None:
            return None
        key = os.environ.get(self._preset.api_key_env, "").strip()
        if not is_key(key):
            variable = self._preset.api_key_env
            how = "is not set" if not key else "holds no key (a space, or no ASCII)"
            raise EndpointError("no key", f"{self.name}: the environment variable {variable} {how}")
        return key

    @contextlib.contextmanager
    def _exchange(self, method, path, caps, body=None, with_key=False, stoppable=False):
        """A request and its answer (an http.client.HTTPResponse with status 200). Whatever goes
        wrong, inside the with block too, is an EndpointError that says who it was."""
        key = self._key if with_key else None
        connection = CheckedConnection(
            *(self._url.scheme, self._url.hostname, self._url.port, self._allowed),
            *(caps.connect_seconds, caps.idle_seconds),
        )
        late = threading.Event()
        watchdog = threading.Timer(caps.total_seconds, lambda: (late.set(), connection.abort()))
        watchdog.daemon = True
        watchdog.start()
        response = None
        try:
            if stoppable:
                self._hold(connection)
            response = self._request(connection, method, path, body, key)
            yield response
        except (EndpointError, UserError, http.client.HTTPException, OSError, ValueError) as error:
            raise self._told(error, key, caps, late.is_set()) from None
        finally:
            watchdog.cancel()
            if response:
                response.close()
            connection.release()

    def _hold(self, connection):
        with self._lock:
            self._connection = connection
            if self._closed.is_set():
                raise EndpointError("cancelled", "closed")

    def _request(self, connection, method, path, body, key):
        headers = {"Accept": "text/event-stream, application/json", "Connection": "close"}
        if body is not None:
            # As ASCII: a lone surrogate in what a person pasted can be spelled so, too.
            body, headers["Content-Type"] = json.dumps(body).encode(), "application/json"
        if key is not None:
            headers["Authorization"] = f"Bearer {key}"
        connection.request(method, path, body, headers)
        response = connection.getresponse()
        if response.status != 200:
            with contextlib.closing(response):
                raise EndpointError(f"http {response.status}", _http_message(response))
        return response

    def _told(self, error, key, caps, late):
        """The error as the owner reads it: whose, and without the key if a server repeats it."""
        if late:
            kind, message = "timeout", f"it took more than {caps.total_seconds:g} s"
        else:
            kind, message = _kind_and_message(error, caps)
        if key is not None:
            message = message.replace(key, "(the key)")
        return EndpointError(kind, one_line(f"{self.name} ({self.base_url}): {message}"))

    def _bytes(self, response):
        """Yield what the answer holds as it comes. EndpointError beyond max_bytes."""
        left = self._caps.max_bytes
        while data := response.read1(_PIECE):
            left -= len(data)
            if left < 0:
                size = f"{self._caps.max_bytes / 2**20:.3g} MB"
                raise EndpointError("too long", f"it sent more than {size}")
            yield data

    def _whole(self, response):
        return b"".join(self._bytes(response)).decode("utf-8-sig", "replace")

    # -- its health --

    def probe(self):
        """Ask what it serves, and learn which settings it takes: a Health, never an exception.
        Lasts at most PROBE_SECONDS twice; a text that is being written is not touched."""
        caps = replace(self._caps, total_seconds=PROBE_SECONDS)
        began = time.monotonic()
        try:
            models = self._models(caps)
        except EndpointError as error:
            return Health(error.kind, (), _ms_since(began), error.message)
        latency = _ms_since(began)
        self._fields = self._described_fields(caps)
        message = ""
        if self.model and self.model not in models:
            message = f"{self.name}: {self.model} is not among its models: {', '.join(models)}"
        models = tuple(one_line(model, 80) for model in models[:_MOST_MODELS])
        return Health("slow" if latency > SLOW_MS else "ok", models, latency, one_line(message))

    def _models(self, caps, stoppable=False):
        where = "GET", self._api + "/models"
        with self._exchange(*where, caps, with_key=True, stoppable=stoppable) as response:
            listed = _read_json(self._whole(response))
            try:
                names = tuple(model["id"] for model in listed["data"])
            except (KeyError, TypeError):
                names = (None,)
            if not all(isinstance(name, str) for name in names):
                raise EndpointError("garbage", "it sent no list of models")
        return names

    def _described_fields(self, caps):
        """The fields of a chat request, where the server describes itself; else None."""
        where = "GET", root_path(self.base_url) + "/openapi.json"
        try:
            with self._exchange(*where, caps) as response:
                described = _read_json(self._whole(response))
            chat = described["paths"][CHAT_ROUTE]["post"]
            schema = chat["requestBody"]["content"]["application/json"]["schema"]
            name = schema.get("$ref", "").removeprefix("#/components/schemas/")
            schema = described["components"]["schemas"][name] if name else schema
            return frozenset(schema["properties"])
        except (EndpointError, AttributeError, KeyError, TypeError):
            return None


def _ms_since(began):
    return 1000 * (time.monotonic() - began)


def _http_message(response):
    """What the body of an HTTP error says, whatever it is."""
    try:
        body = response.read(_ERROR_BYTES).decode("utf-8", "replace")
    except (OSError, http.client.HTTPException):
        body = ""
    with contextlib.suppress(EndpointError):
        body = _complaint(_read_json(body)) or body
    moved = " (another address, which is not followed)" if 300 <= response.status < 400 else ""
    return f"it answered {response.status} {response.reason}{moved}: {body}"


def _kind_and_message(error, caps):
    """(kind, message) of whatever a connection can raise."""
    if isinstance(error, EndpointError):
        return error.kind, error.message
    if isinstance(error, TimeoutError):
        waits = f"{caps.connect_seconds:g} s to connect, {caps.idle_seconds:g} s of silence"
        return "timeout", f"it does not answer (given were {waits})"
    for kinds, kind, message in (
        (Forbidden, "forbidden", str(error)),
        (UnknownHost, "unknown host", str(error)),
        (ConnectionRefusedError, "refused", "nothing listens there: is the server running?"),
        (ssl.SSLError, "tls", f"no TLS connection: {error}"),
        (ConnectionError, "broken off", "it closed the connection"),
        (http.client.IncompleteRead, "broken off", "it ended in the middle of the answer"),
        (OSError, "unreachable", f"there is no way to it: {error}"),
    ):
        if isinstance(error, kinds):
            return kind, message
    return "garbage", f"it does not speak HTTP ({type(error).__name__})"


# -- a run of our own ------------------------------------------------------------------------------


class LocalRun:
    """A model of a RequestScheduler in this process as an endpoint: the same face as Endpoint's.

    name: the engine's in the host; block_size: how many tokens a prompt may have. A conversation
    that is longer loses its oldest turns, as with our server.
    """

    takes = SETTINGS - {"stop"}

    def __init__(self, host, name, tokenizer, prompt_format, block_size):
        self._host, self.name, self.model = host, name, name
        self._tokenizer, self._prompt_format = tokenizer, prompt_format
        self._block_size = block_size
        self._begin()

    def __repr__(self):
        return f"LocalRun({self.name!r})"

    def side(self):
        """The same run, to write one text: close() ends that one and no other."""
        side = copy.copy(self)
        side._begin()
        return side

    def _begin(self):
        self.finish_reason = self.usage = None
        self._closed = threading.Event()

    def close(self):
        """End what stream() writes, from any thread and for good: it looks four times a second."""
        self._closed.set()

    def stream(self, messages, settings):
        """As Endpoint.stream(). Settings that are absent or None take the engine's defaults, which
        leave probabilities as the model has them."""
        self.finish_reason = self.usage = None
        request = self._request(messages, settings)
        (stream,) = self._submit(request)
        n_written, decoder = 0, self._tokenizer.stream()
        try:
            for token in self._tokens(stream):
                n_written += 1
                text = decoder.push(token.id)
                if text:
                    yield text
            if decoder.flush():
                yield "\ufffd"
        finally:
            stream.cancel()
            n_prompt = len(request.ids)
            counts = (n_prompt, n_written, n_prompt + n_written)
            self.usage = dict(zip(USAGE, counts, strict=True))
        self._end(stream)

    def _request(self, messages, settings):
        given = {name: value for name, value in settings.items() if value is not None}
        if given.keys() - self.takes:
            unknown = ", ".join(sorted(given.keys() - self.takes))
            raise EndpointError("rejected", f"{self.name}: it does not take {unknown}")
        if "max_tokens" in given:
            given["max_new_tokens"] = given.pop("max_tokens")
        turns = [(message["role"], message["content"]) for message in messages]
        kind = self._prompt_format
        try:
            ids = chat_ids(self._tokenizer, kind, turns, self._block_size, truncate="oldest")
        except UserError as error:
            raise EndpointError("rejected", f"{self.name}: {error}") from None
        return Request(ids, stop_ids=stop_ids(self._tokenizer), **given)

    def _submit(self, request):
        try:
            return self._host.submit(self.name, [request])
        except UserError as error:
            kinds = {QueueFull: "busy", SchedulerStopped: "stopping"}
            kind = kinds.get(type(error), "rejected")
            raise EndpointError(kind, f"{self.name}: {error}") from None

    def _tokens(self, stream):
        for token in stream:
            if self._closed.is_set():
                return
            if token is not None:
                yield token

    def _end(self, stream):
        """Tell how it ended."""
        reason = stream.finish_reason
        if reason in ("stop", "length"):
            self.finish_reason = reason
        elif self._closed.is_set():
            self.finish_reason = "cancelled"
        elif reason == "cancelled":
            raise EndpointError("stopping", f"{self.name}: its host was stopped")
        else:
            raise EndpointError(reason, f"{self.name}: {stream.error}")

    def probe(self):
        """A Health, at once."""
        return Health("stopping" if self._host.draining else "ok", (self.name,), 0.0)


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
            # Its value is not shown: it may be a key that stands in the wrong place.
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
        preset = preset._replace(name=preset.name or "", base_url=preset.base_url or "")
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
        yield f"a column stands twice; {expected}"


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
                raise UserError(f"there is an endpoint called {endpoint.name} already")
            self._by_name[endpoint.name] = endpoint

    def remove(self, name):
        """Take one off the list; what it writes at the moment goes on."""
        with self._lock:
            if self._by_name.pop(name, None) is None:
                raise UserError(f"there is no endpoint called {name}")

    def get(self, name):
        """The one called so; its side() writes a text."""
        with self._lock:
            if name not in self._by_name:
                raise UserError(f"there is no endpoint called {name}")
            return self._by_name[name]

    def names(self):
        """All names."""
        with self._lock:
            return list(self._by_name)
