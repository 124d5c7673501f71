"""Answers of OpenAI-compatible servers: the one place that reads chunks and whole answers.

    for part in read_parts(response, streamed=True):
        part.text, part.finish_reason, part.usage
    whole = joined(read_parts(response, streamed=False))

Server output is untrusted; anything malformed raises ApiError.
"""

import itertools
from typing import NamedTuple

from minigpt.common.json_text import parse_json
from minigpt.common.report import one_line
from minigpt.common.text import SurrogateJoiner, replace_lone_surrogates
from minigpt.openai.errors import ApiError, error_in
from minigpt.openai.events import DONE, EventReader

USAGE = ("prompt_tokens", "completion_tokens", "total_tokens")
_BLANK = b" \t\r\n\xef\xbb\xbf"
_JSON_OR_PAGE = (b"{", b"[", b"<")  # first bytes of a body that is no event stream
CUT_REASONS = ("length", "max_tokens")  # the answer hit the token limit


class AnswerPart(NamedTuple):
    """What a chunk or a whole answer holds. reasoning: what the model wrote before its answer;
    finish_reason: why the text ended, None until then; usage: token counts by name, those of USAGE
    that the server reports, or None; refusal: what the model wrote instead of an answer."""

    text: str = ""
    reasoning: str = ""
    finish_reason: str | None = None
    usage: dict | None = None
    refusal: str = ""

    @property
    def is_cut(self):
        """Whether the text ended because it hit the token limit."""
        return self.finish_reason in CUT_REASONS


def read_parts(response, streamed):
    """Yield the AnswerParts of a transport.Response, whole if its first byte says so (some servers
    name another Content-Type), else streamed as asked for. No text holds half a surrogate pair.
    Raises ApiError."""
    chunks = response.chunks()
    begin = b""
    while not begin.strip(_BLANK) and (data := next(chunks, None)) is not None:
        begin += data
    streamed = streamed or response.content_type == "text/event-stream"
    if streamed and begin.strip(_BLANK)[:1] not in _JSON_OR_PAGE:
        parts = _stream_parts(itertools.chain([begin], chunks))
    else:
        parts = [read_part(decode(b"".join([begin, *chunks])), "message")]
    joiner = SurrogateJoiner()
    for part in parts:
        yield part._replace(text=joiner.push(part.text))
    rest = joiner.push("", final=True)
    if rest:
        yield AnswerPart(rest)


def joined(parts):
    """AnswerParts as one."""
    parts = list(parts)
    last = dict(finish_reason=None, usage=None)
    for part in parts:
        last = {name: getattr(part, name) or value for name, value in last.items()}
    texts = ("".join(getattr(part, name) for part in parts) for name in ("text", "reasoning"))
    return AnswerPart(*texts, **last, refusal="".join(part.refusal for part in parts))


def _stream_parts(chunks):
    """Yield the AnswerPart of each event, up to [DONE]."""
    events, has_ended = EventReader(), False
    for data in itertools.chain(chunks, [None]):
        for event in events.finish() if data is None else events.push(data):
            if event.strip() == DONE:
                return
            if event.strip():
                part = read_part(event, "delta")
                has_ended = has_ended or part.finish_reason is not None
                yield part
    if not has_ended:
        raise ApiError("broken off", "it ended in the middle of the answer")


def read_part(data, field):
    """The AnswerPart in `data` (JSON text). field: "delta" of a chunk, which may have no choice
    (it reports the usage, or only that the server is there), or "message" of a whole answer, which
    has one. Some servers send a chunk's text as "message" or "text"."""
    answer = read_json(data)
    error = error_in(answer)
    if error is not None:
        raise error
    try:
        choices = answer["choices"] if field == "message" else answer.get("choices")
        choice = choices[0] if choices or field == "message" else {}
        message = choice[field] if field == "message" else _message_of(choice)
        content = message.get("content")
        reasoning = message.get("reasoning_content") or message.get("reasoning")
        reasoning = _text_of(reasoning) or _thoughts_in(content)
        reason = choice.get("finish_reason")
        return AnswerPart(
            _text_of(content),
            replace_lone_surrogates(reasoning),
            one_line(str(reason), 40) if reason else None,
            _counts(answer.get("usage")),
            replace_lone_surrogates(_text_of(message.get("refusal"))),
        )
    except (AttributeError, KeyError, IndexError, TypeError):
        raise ApiError("garbage", f"it sent no answer: {data}") from None


def read_json(data):
    """The value in JSON text; ApiError where it is not JSON."""
    try:
        return parse_json(data)
    except ValueError:
        raise ApiError("garbage", f"it sent no JSON: {data}") from None


def decode(data):
    """The bytes of a body as text."""
    return data.decode("utf-8-sig", "replace")


def _message_of(choice):
    return choice.get("delta") or choice.get("message") or {"content": choice.get("text")}


def _thoughts_in(content):
    """The thoughts among the parts of a message's content."""
    parts = content if isinstance(content, list) else []
    thoughts = (part.get("thinking") for part in parts if isinstance(part, dict))
    return "".join(_text_of(each) for each in thoughts)


def _text_of(content):
    """The text of a message's content: a string, a list of parts, or nothing."""
    if content is None or isinstance(content, str):
        return content or ""
    if not isinstance(content, list):
        raise TypeError
    texts = [part if isinstance(part, str) else part.get("text") for part in content]
    return "".join(text for text in texts if isinstance(text, str))


def _counts(usage):
    if not isinstance(usage, dict):
        return None
    counts = {name: usage.get(name) for name in USAGE}
    return {name: n for name, n in counts.items() if type(n) is int and 0 <= n < 2**31}
