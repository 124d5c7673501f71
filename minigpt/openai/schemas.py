"""What goes over the wire: the requests and answers as pydantic models, and how JSON is read.

    request = parse(ChatRequest, read_json(body))      # RequestRefused says what is wrong, and where
    openapi(limits, defaults, names, has_key)          # /openapi.json, from the same models

A field that would change the answer and cannot be honoured is refused by name; one that changes
nothing (`user`, `metadata`, …) is accepted; an unknown one is refused.
"""

import itertools
import json
import math
import re
from dataclasses import dataclass
from typing import Annotated, Any, Literal
from urllib.parse import parse_qsl

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    WithJsonSchema,
    model_validator,
)
from pydantic.json_schema import models_json_schema

from minigpt.inference.engine import MOST_LOGPROBS

MAX_DEPTH = 32  # of nested lists and objects in a body
MAX_DIGITS = 20  # of an integer: 64 bits have 19 or 20


class RequestRefused(Exception):
    """A request that gets no answer: the HTTP status, a message for its sender, the parameter
    that is wrong and a code, where there are any."""

    def __init__(self, status, message, param=None, code=None):
        super().__init__(message)
        self.status, self.message, self.param, self.code = status, message, param, code

    def as_dict(self):
        """The error as OpenAI's clients read it."""
        kinds = {401: "authentication_error", 429: "rate_limit_error"}
        kind = "server_error" if self.status >= 500 else "invalid_request_error"
        kind = kinds.get(self.status, kind)
        error = dict(message=self.message, type=kind, param=self.param, code=self.code)
        return {"error": error}


@dataclass(frozen=True)
class RequestLimits:
    """How much one request may ask for."""

    body_bytes: int = 1 << 20
    prompt_tokens: int | None = None  # none: as many as the model sees at once
    max_tokens: int = 4096
    default_max_tokens: int = 225  # where a request does not say
    n: int = 8


# -- reading JSON ----------------------------------------------------------------------------------


def read_json(body):
    """The object that `body` (bytes) holds. RequestRefused (400) where it is no UTF-8, no JSON or no
    object, where it is nested deeply, or holds NaN, infinity or an integer beyond 64 bits."""
    try:
        text = body.decode("utf-8")
        _check_depth(text)
        value = json.loads(
            text, parse_int=_integer, parse_float=_real, parse_constant=_no_such_number
        )
        if "\\u" in text:  # half of a surrogate pair can be spelled, but is no character
            json.dumps(value, ensure_ascii=False).encode("utf-8")
    except UnicodeError as error:
        raise RequestRefused(400, f"the body is not UTF-8: {error.reason}") from None
    except ValueError as error:
        raise RequestRefused(400, f"the body is not JSON: {error}") from None
    if not isinstance(value, dict):
        raise RequestRefused(400, "the body is not a JSON object: expected {…}")
    return value


# A string that nobody closes goes on to the end, so that no text is searched twice.
_STRING = re.compile(r'"[^"\\]*(?:\\.[^"\\]*)*"?', re.DOTALL)


def _check_depth(text):
    # Before the parser sees it: that one calls itself for each level.
    brackets = re.findall(r"[\[{}\]]", _STRING.sub("", text))
    steps = (1 if bracket in "[{" else -1 for bracket in brackets)
    if max(itertools.accumulate(steps), default=0) > MAX_DEPTH:
        raise ValueError(f"nested more than {MAX_DEPTH} deep")


def _integer(digits):
    if len(digits.lstrip("-")) > MAX_DIGITS:
        raise ValueError(f"an integer of more than {MAX_DIGITS} digits")
    return int(digits)


def _real(digits):
    value = float(digits)
    if not math.isfinite(value):
        raise ValueError("a number too large for a float")
    # JSON knows one kind of number: 5.0 is as good as 5.
    return int(value) if value.is_integer() and abs(value) < 2**53 else value


def _no_such_number(name):
    raise ValueError(f"{name} is no JSON number")


def read_form(*parts):
    """The fields, name → text, of a query string and a form's body (bytes). RequestRefused (400) where
    they are no UTF-8, and where a field is given twice."""
    fields = {}
    for part in parts:
        try:
            pairs = parse_qsl(part.decode("utf-8"), keep_blank_values=True, errors="strict")
        except UnicodeError as error:
            raise RequestRefused(400, f"the request is not UTF-8: {error.reason}") from None
        for name, value in pairs:
            if name in fields:
                raise RequestRefused(400, f"{name[:100]}: given more than once", name[:100])
            fields[name] = value
    return fields


def parse(model, values):
    """`values` as a `model`. RequestRefused (400) names each wrong field, up to three of them."""
    return _checked(model.model_validate, values)


def parse_strings(model, values):
    """The same for values that are all text, as a query string or a form has them."""
    return _checked(model.model_validate_strings, values)


def _checked(validate, values):
    try:
        return validate(values)
    except ValidationError as error:
        errors = error.errors(include_url=False, include_input=False, include_context=False)
        found = {_param(each["loc"], values): each for each in reversed(errors)}
        # By field: a union complains once for each of its types, and the first says enough.
        lines = [_complaint(param, each) for param, each in reversed(found.items())]
        message = "; ".join(lines[:3]) + ("; …" if len(lines) > 3 else "")
        raise RequestRefused(400, message, param=next(reversed(found)) or None) from None


def _param(place, values):
    """The dotted name of a field, without the names of types that pydantic puts behind it."""
    names = []
    for part in place:
        known = isinstance(values, dict) and (part in values or part == place[-1])
        if not known and not (isinstance(values, list) and isinstance(part, int)):
            continue
        names.append(str(part))
        values = values.get(part) if isinstance(values, dict) else values[part]
    return ".".join(names)


def _complaint(param, error):
    shown = param if len(param) <= 100 else param[:100] + "…"
    if error["type"] == "extra_forbidden":
        return f"{shown}: unknown field"
    return f"{shown}: {error['msg'].removeprefix('Value error, ')}"


# -- requests --------------------------------------------------------------------------------------


def _only(*values):
    """A field that may say what the server does anyway, and nothing else."""

    def check(value):
        if not any(type(value) is type(v) and value == v for v in values):
            raise ValueError("not supported by this server; leave it out")
        return value

    return Annotated[Any, AfterValidator(check), WithJsonSchema({"enum": list(values)})]


def _listed(kind, most):
    """A list of at least one and at most `most`; its first mistake is enough."""
    return Annotated[list[kind], Field(min_length=1, max_length=most, fail_fast=True)]


Id = Annotated[int, Field(ge=0, lt=2**31)]
StopString = Annotated[str, Field(min_length=1, max_length=128)]
# A 1 MB body holds no more ids or texts than this.
PromptText = Annotated[str, Field(min_length=1)]
Ids, Texts = _listed(Id, 1 << 20), _listed(PromptText, 1024)


class Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)


class Sampling(Strict):
    """How a text is drawn. What is absent or null takes the server's default."""

    max_tokens: Annotated[int, Field(ge=0)] | None = None
    temperature: Annotated[float, Field(ge=0, le=100)] | None = None
    top_k: Annotated[int, Field(ge=0, le=2**31)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    min_p: Annotated[float, Field(ge=0, le=1)] | None = None
    repetition_penalty: Annotated[float, Field(ge=0.01, le=100)] | None = None
    presence_penalty: Annotated[float, Field(ge=-2, le=2)] | None = None
    frequency_penalty: Annotated[float, Field(ge=-2, le=2)] | None = None
    seed: Annotated[int, Field(ge=-(2**63), lt=2**63)] | None = None
    stop: StopString | _listed(StopString, 16) | None = None

    @property
    def stops(self):
        """The stop strings as a list."""
        return [self.stop] if isinstance(self.stop, str) else self.stop or []


class GenerateRequest(Sampling):
    """A person's request: the prompt, and whatever else they care to set."""

    prompt: PromptText
    model: str | None = Field(None, description="needed where several models are served")


class StreamOptions(Strict):
    include_usage: bool | None = None
    include_obfuscation: _only(None, False) = None


class OpenAIRequest(Sampling):
    """What chat and completions share."""

    model: str | None = Field(None, description="needed where several models are served")
    n: Annotated[int, Field(ge=1)] | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    logit_bias: _only(None, {}) = None
    # Accepted, for they change no answer:
    user: str | None = None
    metadata: dict[str, str] | None = None
    store: bool | None = None
    service_tier: str | None = None
    safety_identifier: str | None = None
    prompt_cache_key: str | None = None
    prompt_cache_retention: str | None = None
    prompt_cache_options: dict | None = None

    @model_validator(mode="after")
    def _options_of_a_stream(self):
        if self.stream_options is not None and not self.stream:
            raise RequestRefused(400, "stream_options: only with stream=true", "stream_options")
        return self

    @property
    def wants_usage(self):
        """Whether a stream ends with a chunk that tells the usage."""
        return bool(self.stream_options and self.stream_options.include_usage)


class TextPart(Strict):
    type: Literal["text"]
    text: str


class Message(Strict):
    role: Literal["system", "developer", "user", "assistant"]
    content: str | _listed(TextPart, 1024)
    # As a client hands back what it was answered:
    refusal: _only(None) = None
    annotations: _only(None, []) = None
    audio: _only(None) = None
    tool_calls: _only(None, []) = None
    function_call: _only(None) = None

    @property
    def turn(self):
        """(role, text), as a prompt format reads it."""
        role = "system" if self.role == "developer" else self.role
        content = self.content
        return role, content if isinstance(content, str) else "".join(p.text for p in content)


class ChatRequest(OpenAIRequest):
    messages: _listed(Message, 4096)
    max_completion_tokens: Annotated[int, Field(ge=0)] | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=MOST_LOGPROBS)] | None = None
    truncate: Literal["oldest"] | None = Field(
        None, description='"oldest": a conversation that is too long loses its oldest turns'
    )
    parallel_tool_calls: bool | None = None
    tools: _only(None, []) = None
    tool_choice: _only(None, "none", "auto") = None
    functions: _only(None, []) = None
    function_call: _only(None, "none", "auto") = None
    response_format: _only(None, {"type": "text"}) = None
    modalities: _only(None, ["text"]) = None
    audio: _only(None) = None
    prediction: _only(None) = None
    reasoning_effort: _only(None, "none") = None
    verbosity: _only(None) = None
    web_search_options: _only(None) = None

    @model_validator(mode="after")
    def _fields_agree(self):
        if self.top_logprobs is not None and not self.logprobs:
            raise RequestRefused(400, "top_logprobs: only with logprobs=true", "top_logprobs")
        limits = {self.max_tokens, self.max_completion_tokens} - {None}
        if len(limits) > 1:
            message = "max_completion_tokens: max_tokens is its older name and says another number"
            raise RequestRefused(400, message, "max_completion_tokens")
        self.max_tokens = limits.pop() if limits else None
        return self


class CompletionRequest(OpenAIRequest):
    """Texts to continue as they are, whatever the model's prompt format."""

    prompt: PromptText | Texts | Ids | _listed(Ids, 1024)
    echo: bool | None = None
    logprobs: Annotated[int, Field(ge=0, le=MOST_LOGPROBS)] | None = None
    best_of: Annotated[int, Field(ge=1)] | None = None
    suffix: _only(None, "") = None

    @model_validator(mode="after")
    def _fields_agree(self):
        if self.best_of not in (None, self.n or 1):
            raise RequestRefused(400, "best_of: not supported beyond n; leave it out", "best_of")
        return self

    @property
    def prompts(self):
        """A list of texts or of lists of ids."""
        one = isinstance(self.prompt, str) or isinstance(self.prompt[0], int)
        return [self.prompt] if one else self.prompt


class TokenizeRequest(Strict):
    prompt: str
    model: str | None = Field(None, description="needed where tokenizers differ")
    add_special_tokens: bool | None = Field(None, description="there are none to add")


class DetokenizeRequest(Strict):
    tokens: Annotated[list[Id], Field(max_length=1 << 20, fail_fast=True)]
    model: str | None = Field(None, description="needed where tokenizers differ")


# -- answers ---------------------------------------------------------------------------------------
# The server sends plain dicts; these say of which shape, and the tests hold it to them.


class Error(Strict):
    message: str
    type: str
    param: str | None
    code: str | None


class ErrorAnswer(Strict):
    error: Error


class Health(Strict):
    status: Literal["ok", "loading", "draining"]
    running: int
    waiting: int


class Model(Strict):
    id: str
    object: Literal["model"]
    created: int
    owned_by: str
    prompt_format: str
    description: str
    max_model_len: int
    n_params: int
    step: int


class Models(Strict):
    object: Literal["list"]
    data: list[Model]


class Usage(Strict):
    prompt_tokens: int
    completion_tokens: int
    total_tokens: int


class TopLogprob(Strict):
    token: str
    logprob: float
    bytes: list[int] | None


class TokenLogprob(TopLogprob):
    top_logprobs: list[TopLogprob]


class ChatLogprobs(Strict):
    content: list[TokenLogprob]
    refusal: None


class AnswerMessage(Strict):
    role: Literal["assistant"]
    content: str
    refusal: None


FinishReason = Literal["stop", "length"]


class ChatChoice(Strict):
    index: int
    message: AnswerMessage
    logprobs: ChatLogprobs | None
    finish_reason: FinishReason


class ChatAnswer(Strict):
    id: str
    object: Literal["chat.completion"]
    created: int
    model: str
    choices: list[ChatChoice]
    usage: Usage


class Delta(Strict):
    role: Literal["assistant"] = "assistant"
    content: str = ""


class ChatChunkChoice(Strict):
    index: int
    delta: Delta
    logprobs: ChatLogprobs | None
    finish_reason: FinishReason | None


class ChatChunk(Strict):
    id: str
    object: Literal["chat.completion.chunk"]
    created: int
    model: str
    choices: list[ChatChunkChoice]
    usage: Usage | None = None


class Logprobs(Strict):
    tokens: list[str]
    token_logprobs: list[float | None]
    top_logprobs: list[dict[str, float] | None]
    text_offset: list[int]


class CompletionChoice(Strict):
    index: int
    text: str
    logprobs: Logprobs | None
    finish_reason: FinishReason | None


class CompletionAnswer(Strict):
    """A whole answer, with its usage, or a chunk of a stream."""

    id: str
    object: Literal["text_completion"]
    created: int
    model: str
    choices: list[CompletionChoice]
    usage: Usage | None = None


class Tokens(Strict):
    tokens: list[int]
    count: int
    max_model_len: int


class Text(Strict):
    prompt: str


class TokenizerInfo(Strict):
    tokenizer: str
    hash: str
    n_vocab: int
    eos_token: str
    bos_token: None
    pad_token: str
    chat_template: None


# -- the description -------------------------------------------------------------------------------

# method, path, what it does, request, answers by content type, further statuses
_COMMON = (401, 404, 503)
_BODY = (400, 401, 404, 413, 415, 503)
_WRITING = (*_BODY, 429, 500)
_SSE = "text/event-stream"
OPERATIONS = [
    ("get", "/", "how to use this server", None, {"text/plain": None}, ()),
    ("get", "/health", "whether requests are taken", None, {"application/json": Health}, (503,)),
    ("get", "/v1/models", "what is served", None, {"application/json": Models}, (401, 503)),
    ("get", "/v1/models/{model}", "one model", None, {"application/json": Model}, _COMMON),
    (
        *("post", "/v1/chat/completions", "answer a conversation", ChatRequest),
        *({"application/json": ChatAnswer, _SSE: ChatChunk}, _WRITING),
    ),
    (
        *("post", "/v1/completions", "continue texts", CompletionRequest),
        *({"application/json": CompletionAnswer, _SSE: CompletionAnswer}, (*_WRITING, 422)),
    ),
    (
        *("post", "/tokenize", "the ids of a text", TokenizeRequest),
        *({"application/json": Tokens}, _BODY),
    ),
    (
        *("post", "/detokenize", "the text of ids", DetokenizeRequest),
        *({"application/json": Text}, (*_BODY, 422)),
    ),
    (
        *("get", "/tokenizer_info", "what ends a text", None),
        *({"application/json": TokenizerInfo}, (400, *_COMMON)),
    ),
    ("get", "/generate", "write, for people", None, {"text/plain": None}, _WRITING),
    ("post", "/generate", "write, for people", GenerateRequest, {"text/plain": None}, _WRITING),
    ("get", "/openapi.json", "this description", None, {"application/json": None}, ()),
]
MEANINGS = {
    200: "the answer; streamed where `stream` is true",
    400: "the request is wrong; the message names the field",
    401: "the key is missing or wrong",
    403: "the Host header is not a name of this server",
    404: "there is no such model",
    413: "the body is too large",
    415: "the body is no application/json",
    422: "an id is outside the vocabulary",
    429: "too many requests wait already; Retry-After says when to come again",
    500: "the model failed",
    503: "loading, stopping, or out of time; Retry-After says when to come again",
}


def openapi(limits, defaults, names, has_key):
    """The OpenAPI 3.1 description as a dict, with this server's limits, defaults (name → value)
    and the names of its models."""
    models = {o[3] for o in OPERATIONS if o[3]} | {ErrorAnswer}
    models |= {model for o in OPERATIONS for model in o[4].values() if model}
    wanted = [(model, "validation") for model in sorted(models, key=lambda m: m.__name__)]
    _, schema = models_json_schema(wanted, ref_template="#/components/schemas/{model}")
    components = {"schemas": schema["$defs"]}
    _fill_in(components["schemas"], limits, defaults, names)
    paths = {}
    for method, path, summary, request, answers, statuses in OPERATIONS:
        operation = dict(summary=summary, operationId=f"{method} {path}")
        operation["responses"] = _responses(path, answers, statuses, has_key)
        _describe_input(operation, method, path, request, components["schemas"], names)
        if has_key and 401 in statuses:
            operation["security"] = [{"key": []}]
        paths.setdefault(path, {})[method] = operation
    if has_key:
        components["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer"}}
    info = dict(title="MiniGPT", version="1", description="OpenAI's HTTP API for trained runs")
    return dict(openapi="3.1.0", info=info, paths=paths, components=components)


def _fill_in(schemas, limits, defaults, names):
    """Write this server's limits, defaults and models into the requests' schemas."""
    for model in (ChatRequest, CompletionRequest, GenerateRequest):
        fields = schemas[model.__name__]["properties"]
        for name, value in {**defaults, "max_tokens": limits.default_max_tokens}.items():
            fields[name]["default"] = value
        most = {"max_tokens": limits.max_tokens, "max_completion_tokens": limits.max_tokens}
        for name, value in {**most, "n": limits.n}.items():
            if name in fields:
                fields[name]["anyOf"][0]["maximum"] = value
    writing = (ChatRequest, CompletionRequest, GenerateRequest)
    for model in (*writing, TokenizeRequest, DetokenizeRequest):
        schemas[model.__name__]["properties"]["model"]["anyOf"][0]["enum"] = names
    if len(names) > 1:
        for model in writing:
            schemas[model.__name__]["required"].append("model")


def _responses(path, answers, statuses, has_key):
    content = {kind: {"schema": _schema_of(kind, model)} for kind, model in answers.items()}
    responses = {"200": dict(description=MEANINGS[200], content=content)}
    for status in sorted({403, *statuses} - (set() if has_key else {401})):
        if path == "/generate":
            content = {"text/plain": {"schema": {"type": "string"}}}
        else:
            model = Health if path == "/health" and status == 503 else ErrorAnswer
            content = {"application/json": {"schema": _schema_of("application/json", model)}}
        responses[str(status)] = dict(description=MEANINGS[status], content=content)
    return responses


def _schema_of(kind, model):
    if model is None:
        return {"type": "object" if kind == "application/json" else "string"}
    schema = {"$ref": f"#/components/schemas/{model.__name__}"}
    if kind == "application/json":
        return schema
    what = f"each event is a {model.__name__}, or an error; the last one of a text is [DONE]"
    schema = {"anyOf": [schema, {"$ref": "#/components/schemas/ErrorAnswer"}]}
    chunk = dict(type="string", contentMediaType="application/json", contentSchema=schema)
    data = {"anyOf": [{"const": "[DONE]"}, chunk]}
    return dict(type="object", description=what, required=["data"], properties={"data": data})


def _describe_input(operation, method, path, request, schemas, names):
    """The path's and the query's parameters, and the body."""
    name = {"name": "model", "schema": {"type": "string", "enum": names}}
    if path == "/v1/models/{model}":
        operation["parameters"] = [{**name, "in": "path", "required": True}]
    if path == "/tokenizer_info":
        operation["parameters"] = [{**name, "in": "query"}]
    if path == "/generate" and method == "get":
        form = _form_schema(schemas)
        operation["parameters"] = [
            dict(name=field, required=field in form["required"], schema=schema, **{"in": "query"})
            for field, schema in form["properties"].items()
        ]
    if request is not None:
        schema = {"$ref": f"#/components/schemas/{request.__name__}"}
        content = {"application/json": {"schema": schema}}
        if path == "/generate":
            content["application/x-www-form-urlencoded"] = {"schema": _form_schema(schemas)}
        operation["requestBody"] = dict(required=True, content=content)


def _form_schema(schemas):
    """What a form or a query can spell of a GenerateRequest: every field without its null."""
    schema = schemas[GenerateRequest.__name__]
    fields = {
        name: field["anyOf"][0] if "anyOf" in field else field
        for name, field in schema["properties"].items()
    }
    return {**schema, "properties": fields}
