"""Answers of OpenAI-compatible servers: the one place that reads chunks and whole answers.

    for part in read_parts(response, streamed=True):
        part.text, part.finish_reason, part.usage
    whole = joined(read_parts(response, streamed=False))

Server output is untrusted; anything malformed raises ApiError.
"""

from typing import NamedTuple

from minigpt.common.json_text import parse_json
from minigpt.common.report import one_line
from minigpt.common.text import SurrogateJoiner, replace_lone_surrogates
from minigpt.openai.errors import ApiError, error_in
from minigpt.openai.events import DONE, EventReader

USAGE = ("prompt_tokens", "completion_tokens", "total_tokens")
CUT_REASONS = ("length", "max_tokens")  # the answer hit the token limit


class AnswerPart(NamedTuple):
    """What a chunk or a whole answer holds. reasoning: what the model wrote before its answer;
    finish_reason: why the text ended, None until then; usage: token counts by name, those of USAGE
    that the server reports, or None."""

    text: str = ""
    reasoning: str = ""
    finish_reason: str | None = None
    usage: dict | None = None

    @property
    def is_cut(self):
        """Whether the text ended because it hit the token limit."""
        return self.finish_reason in CUT_REASONS


def read_parts(response, streamed):
    """Yield the AnswerParts of a transport.Response, streamed or whole as its Content-Type says.
    streamed: what was asked for, the fallback if Content-Type is inconclusive. No text holds half
    a surrogate pair. Raises ApiError."""
    kind = response.content_type
    if kind == "text/event-stream" or (streamed and "json" not in kind):
        parts = _stream_parts(response.chunks())
    else:
        parts = [read_part(decode(response.read()), "message")]
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
    text = "".join(part.text for part in parts)
    return AnswerPart(text, "".join(part.reasoning for part in parts), **last)


def _stream_parts(chunks):
    """Yield the AnswerPart of each event, up to [DONE]."""
    events, has_ended = EventReader(), False
    for data in chunks:
        for event in events.push(data):
            if event.strip() == DONE:
                return
            part = read_part(event, "delta")
            has_ended = has_ended or part.finish_reason is not None
            yield part
    if not has_ended:
        raise ApiError("broken off", "it ended in the middle of the answer")


def read_part(data, field):
    """The AnswerPart in `data` (JSON text). field: "delta" of a chunk, which may have no choice
    (then it reports the usage), or "message" of a whole answer, which has one."""
    answer = read_json(data)
    error = error_in(answer)
    if error is not None:
        raise error
    try:
        choices = answer["choices"]
        choice = choices[0] if choices or field == "message" else {}
        message = choice[field] if field == "message" else choice.get(field) or {}
        reasoning = message.get("reasoning_content") or message.get("reasoning")
        reason = choice.get("finish_reason")
        if not isinstance(reason, str | None):
            raise TypeError
        return AnswerPart(
            _text_of(message.get("content")),
            replace_lone_surrogates(_text_of(reasoning)),
            reason and one_line(reason, 40),
            _counts(answer.get("usage")),
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
