"""The requests and answers of the HTTP API as pydantic models.

A field that would change the answer and cannot be honoured is refused by name. One that changes
nothing (`user`, `metadata`, …) is no field of these models: minigpt/openai/ignored_fields.py leaves
it out before they read the request.
"""

from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Discriminator,
    Field,
    Tag,
    WithJsonSchema,
    model_validator,
)

from minigpt.openai.ignored_fields import is_off
from minigpt.openai.request_reader import RequestRefused

MOST_LOGPROBS = 20  # likeliest tokens that a request may ask to see: OpenAI's limit


# -- requests --------------------------------------------------------------------------------------


def _only(*values):
    """A field that may say what the server does anyway, and nothing else."""

    def check(value):
        if not any(type(value) is type(v) and value == v for v in values):
            raise ValueError("not supported by this server; leave it out")
        return value

    return Annotated[Any, AfterValidator(check), WithJsonSchema({"enum": list(values)})]


def _off():
    """A field that may say nothing, such as {} or zeros."""

    def check(value):
        if not is_off(value):
            raise ValueError("not supported by this server; leave it out")
        return value

    return Annotated[Any, AfterValidator(check), WithJsonSchema({"enum": [None, {}]})]


def _listed(kind, most):
    """A list of at least one and at most `most`; its first mistake is enough."""
    return Annotated[list[kind], Field(min_length=1, max_length=most, fail_fast=True)]


Id = Annotated[int, Field(ge=0, lt=2**31)]
MaxTokens = Annotated[int, Field(ge=-1)]  # -1: as many as the server allows
StopString = Annotated[str, Field(min_length=1, max_length=128)]
# A 1 MB body holds no more ids or texts than this.
PromptText = Annotated[str, Field(min_length=1)]


def _or_none(stop):
    """None for stop strings that are none: "", [], [""]."""
    return None if stop in ("", [], [""], [None]) else stop


Ids, Texts = _listed(Id, 1 << 20), _listed(PromptText, 1024)


class Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)


class Open(Strict):
    """Fields that are none of these may be there, if they change nothing (ignored_fields.py)."""

    model_config = ConfigDict(json_schema_extra={"additionalProperties": True})


class Sampling(Strict):
    """How a text is drawn. What is absent or null takes the server's default."""

    max_tokens: MaxTokens | None = None
    temperature: Annotated[float, Field(ge=0, le=100)] | None = None
    top_k: Annotated[int, Field(ge=-1, le=2**31)] | None = None  # 0 and -1: all
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


class StreamOptions(Open):
    include_usage: bool | None = None


class JsonSchema(Strict):
    name: str | None = None
    description: str | None = None
    strict: bool | None = None  # the schema is kept to either way
    schema_: dict | None = Field(None, alias="schema")  # none: any object


class ResponseFormat(Strict):
    type: Literal["text", "json_object", "json_schema"]
    json_schema: JsonSchema | None = None
    schema_: dict | None = Field(None, alias="schema")  # of a json_object, as llama.cpp

    @model_validator(mode="after")
    def _has_its_schema(self):
        if self.type == "json_schema" and self.json_schema is None:
            message = "response_format.json_schema: expected an object with the schema"
            raise RequestRefused(400, message, "response_format.json_schema")
        return self

    @property
    def wanted(self):
        """The JSON schema of the answer; None: any text."""
        if self.type == "text":
            return None
        schema = self.json_schema.schema_ if self.type == "json_schema" else self.schema_
        return {"type": "object"} if schema is None else schema


class OpenAIRequest(Sampling, Open):
    """What chat and completions share."""

    stop: Annotated[StopString | _listed(StopString, 16) | None, BeforeValidator(_or_none)] = None
    model: str | None = Field(None, description="needed where several models are served")
    n: Annotated[int, Field(ge=1)] | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    logit_bias: _off() = None
    response_format: ResponseFormat | None = Field(
        None, description="JSON by constrained decoding: any object, or what a schema describes"
    )
    num_beams: Annotated[int, Field(ge=1)] | None = Field(
        None, description="above 1: beam search, at temperature 0, not streamed"
    )
    length_penalty: Annotated[float, Field(ge=-10, le=10)] | None = Field(
        None, description="of beam search: above 0 favours long texts"
    )

    @model_validator(mode="after")
    def _options_agree(self):
        if self.stream_options is not None and not self.stream:
            raise RequestRefused(400, "stream_options: only with stream=true", "stream_options")
        if self.num_beams not in (None, 1):
            self._check_beams()
        elif self.length_penalty not in (None, 1):
            message = "length_penalty: only with num_beams above 1"
            raise RequestRefused(400, message, "length_penalty")
        return self

    def _check_beams(self):
        """RequestRefused where a setting does not go with beam search, which draws nothing, has
        its text only at the end, and gives the best one."""
        cannot = {
            "stream=true": self.stream,
            "a temperature above 0": self.temperature,
            "n above 1": (self.n or 1) > 1,
            "a response_format": self.schema_wanted is not None,
        }
        for setting, is_given in cannot.items():
            if is_given:
                message = f"num_beams: beam search does not go with {setting}"
                raise RequestRefused(400, message, "num_beams")

    @property
    def schema_wanted(self):
        """The JSON schema of the answer; None: any text."""
        return self.response_format and self.response_format.wanted

    @property
    def wants_usage(self):
        """Whether a stream ends with a chunk with the usage."""
        return bool(self.stream_options and self.stream_options.include_usage)


class TextPart(Open):
    type: Literal["text", "input_text", "output_text"]
    text: str


def _as_text_part(part):
    """A part as a TextPart spells it: a string, and a refusal that a client hands back, are text.
    ValueError for what is no text, by its type."""
    if isinstance(part, str):
        return dict(type="text", text=part)
    kind = part.get("type") if isinstance(part, dict) else None
    if kind == "refusal":
        return dict(type="text", text=part.get("refusal"))
    if isinstance(kind, str) and kind not in ("text", "input_text", "output_text"):
        raise ValueError(f"{kind[:100]}: not supported by this server, which reads text alone")
    return part


Part = Annotated[TextPart, BeforeValidator(_as_text_part)]
Parts = Annotated[list[Part], Field(max_length=1024, fail_fast=True)]
# The tags keep a list from being reported as a text that it is not.
Content = Annotated[
    Annotated[str, Tag("text")] | Annotated[Parts, Tag("parts")],
    Discriminator(lambda content: "parts" if isinstance(content, list) else "text"),
]


class Message(Open):
    role: Literal["system", "developer", "user", "assistant"]
    content: Content | None = None
    refusal: str | None = None  # as a client hands back what it was answered

    @model_validator(mode="after")
    def _says_something(self):
        if self.content is None and self.role != "assistant":
            raise ValueError("content: expected a text")
        return self

    @property
    def turn(self):
        """(role, text), as a prompt format reads it."""
        role = "system" if self.role == "developer" else self.role
        content = self.content or self.refusal or ""
        return role, content if isinstance(content, str) else "".join(p.text for p in content)


class ChatRequest(OpenAIRequest):
    messages: _listed(Message, 4096)
    max_completion_tokens: MaxTokens | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=MOST_LOGPROBS)] | None = None
    truncate: Literal["oldest"] | None = Field(
        None, description='"oldest": a conversation that is too long loses its oldest turns'
    )
    tools: _only(None, []) = None
    tool_choice: _only(None, "none", "auto") = None
    functions: _only(None, []) = None
    function_call: _only(None, "none", "auto") = None
    modalities: _only(None, ["text"]) = None
    audio: _only(None) = None
    reasoning_effort: _only(None, "none") = None
    verbosity: _only(None, "medium") = None
    moderation: _only(None) = None
    web_search_options: _only(None) = None

    @model_validator(mode="after")
    def _fields_agree(self):
        if self.top_logprobs and not self.logprobs:
            raise RequestRefused(400, "top_logprobs: only with logprobs=true", "top_logprobs")
        limits = {self.max_tokens, self.max_completion_tokens} - {None}
        if len(limits) > 1:
            message = "max_completion_tokens: max_tokens is its older name and says another number"
            raise RequestRefused(400, message, "max_completion_tokens")
        self.max_tokens = limits.pop() if limits else None
        return self


# False is a chat's way to want none.
LogprobCount = Annotated[
    Annotated[int, Field(ge=0, le=MOST_LOGPROBS)] | None,
    BeforeValidator(lambda value: None if value is False else value),
]


class CompletionRequest(OpenAIRequest):
    """Texts to continue as they are, whatever the model's prompt format."""

    prompt: PromptText | Texts | Ids | _listed(Ids, 1024)
    echo: bool | None = None
    logprobs: LogprobCount = None
    best_of: Annotated[int, Field(ge=1)] | None = None
    suffix: _only(None, "") = None

    @model_validator(mode="after")
    def _fields_agree(self):
        if self.best_of not in (None, self.n or 1):
            raise RequestRefused(400, "best_of: not supported beyond n; leave it out", "best_of")
        if self.echo and self.schema_wanted is not None:
            message = "response_format: does not go with echo=true"
            raise RequestRefused(400, message, "response_format")
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


class HealthAnswer(Strict):
    status: Literal["ok", "loading", "draining"]
    running: int
    waiting: int


class Model(Strict):
    id: str
    object: Literal["model"]
    created: int
    owned_by: str
    name: str
    prompt_format: str
    description: str
    max_model_len: int
    context_length: int
    max_output_tokens: int
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
