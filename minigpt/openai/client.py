"""The client of sft_generate.py: whole answers of a server that speaks OpenAI's HTTP API.

    client = Client("http://localhost:1234/v1", key=None, timeout=120)
    client.models()                          # ["qwen3-8b", …]
    answer = client.ask({"model": "qwen3-8b", "messages": messages, "max_tokens": 2048})
    answer.text, answer.cut, answer.completion_tokens

What goes wrong is a TemporaryError (worth another try), QuestionRefused (this question) or
ServerUnusable (this server), by the table in minigpt/openai/errors.py, with what the server said:
bounded, printable, without the key. The server is the user's own choice;
minigpt/arena/endpoints.py streams from those that strangers name.
"""

import os
import threading
import time
from contextlib import suppress
from typing import NamedTuple
from urllib.parse import urlsplit

from minigpt.common.report import one_line
from minigpt.openai.answers import decode, joined, read_json, read_parts
from minigpt.openai.errors import (
    REMEDIES,
    ApiError,
    Fault,
    QuestionRefused,
    ServerUnusable,
    TemporaryError,
    without,
)
from minigpt.openai.transport import Caps, Transport, proxy_of_environment

CONNECT_SECONDS = 10.0
MODELS_SECONDS = 30.0  # for the list of models
MAX_BYTES = 8 << 20  # of one answer, what a model thinks beforehand included
MAX_NAMES = 20  # of models, in a message
CHAT = "/chat/completions"
# A text with one of these as finish_reason ended by itself. None says nothing, any other one says
# that the text broke off.
ENDED = ("stop", "eos", "eos_token", "end_turn", "stop_sequence", "complete", "completed", "normal")
ENDED += ("tool_calls", "function_call", "")


class Answer(NamedTuple):
    """What a server wrote. cut: it says that the text broke off; tokens: None where it does not
    count them; seconds: from asking to its end; server: the client's name; finish_reason: why the
    text ended, None where it does not say."""

    text: str
    cut: bool
    prompt_tokens: int | None
    completion_tokens: int | None
    seconds: float
    server: str
    finish_reason: str | None = None


class UnsupportedFields:
    """The fields that a server does not take. The clients of one address, each with its key, may
    share it."""

    def __init__(self):
        self._lock, self.names = threading.Lock(), frozenset()

    def add(self, names):
        """Add names; returns those that are new, sorted."""
        with self._lock:
            news = names - self.names
            self.names |= news
        return sorted(news)


class Client:
    """A server's API at `url` (…/v1, or the full address …/chat/completions). Any number of threads
    may use it.

    name: how messages call it. connections: how many are kept. timeout: seconds for an answer, from
    its first byte to its last. fields: UnsupportedFields. warn(text): called when the server has to
    be asked another way.
    """

    def __init__(
        self, url, key=None, name=None, *, connections=4, timeout=120.0, fields=None, warn=print
    ):
        self.name, self._key, self._warn = name or url, key, warn
        self._caps = _caps(timeout)
        self._path = urlsplit(url).path.removesuffix(CHAT)
        self._transport = Transport(
            url,
            proxy=proxy_of_environment(url),
            keep=connections,
            ca_bundle=os.environ.get("REQUESTS_CA_BUNDLE") or None,
        )
        self._unsupported, self._has_answered = fields or UnsupportedFields(), False

    def close(self):
        """Close the idle connections; requests that run may finish."""
        self._transport.close()

    def models(self):
        """The names of what it serves; None where it does not list them. Raises TemporaryError,
        ServerUnusable."""
        try:
            names = self._models()
        except ApiError as error:
            if error.status in (404, 405, 501):
                return None
            raise self._consequence(error, error.meaning()[0], None) from None
        return names and [one_line(without(self._key, name), 80) for name in names]

    def _models(self):
        caps = _caps(min(MODELS_SECONDS, self._caps.total_seconds))
        path = self._path + "/models"
        with self._transport.exchange("GET", path, key=self._key, caps=caps) as response:
            listed = read_json(decode(response.read()))
        try:
            return [model["id"] for model in listed["data"] if isinstance(model["id"], str)]
        except (KeyError, TypeError):
            return None

    def ask(self, question):
        """The Answer to `question`, the fields of a chat completion. A field that the server turns
        out not to support (errors.FIELDS: temperature, seed, the name max_tokens …) is left out.
        Raises TemporaryError, QuestionRefused, ServerUnusable."""
        left_out = self._unsupported.names
        while True:
            body = _without(question, left_out)
            try:
                answer = self._post(body)
            except ApiError as error:
                fault, field = error.meaning(body)
                if fault is not Fault.FIELD or field in left_out:
                    raise self._consequence(error, fault, body) from None
                left_out = left_out | {field}
                continue
            self._has_answered = True
            # Without these fields it answered, so the next questions are asked without.
            for name in self._unsupported.add(left_out):
                self._warn(f"{self.name}: it does not take {name}; it is asked without from now on")
            return answer

    def _post(self, body):
        began = time.monotonic()
        request = "POST", self._path + CHAT, body
        with self._transport.exchange(*request, key=self._key, caps=self._caps) as response:
            whole = joined(read_parts(response, streamed=body.get("stream", False)))
        reason, usage = whole.finish_reason, whole.usage or {}
        is_cut = reason is not None and reason.lower() not in ENDED
        # Some servers take all that a model wrote for its thoughts, if it never ends them.
        text = whole.text if whole.text.strip() or is_cut else whole.reasoning
        tokens = usage.get("prompt_tokens"), usage.get("completion_tokens")
        return Answer(text, is_cut, *tokens, time.monotonic() - began, self.name, reason)

    def _consequence(self, error, fault, question):
        """The TemporaryError, QuestionRefused or ServerUnusable that an ApiError and its Fault
        mean. question: None where none was asked."""
        if error.status is None:
            return TemporaryError(error.kind, error.message, fault is Fault.BUSY)
        # The key and the model were right before, so this is about the question, or the moment.
        if self._has_answered and fault in (Fault.ACCESS, Fault.MODEL):
            fault = {Fault.ACCESS: Fault.UNKNOWN, Fault.MODEL: Fault.DOWN}[fault]
        message = one_line(f"{error.status} {error.said}")
        if fault in (Fault.BUSY, Fault.DOWN):
            kind = f"http {error.status}"
            return TemporaryError(kind, message, fault is Fault.BUSY, error.retry_after)
        if fault in (Fault.KEY, Fault.ACCESS):
            wants = "it wants a key: name its variable in api_key_env"
            return ServerUnusable(f"{'it refuses the key' if self._key else wants} ({message})")
        if fault is Fault.CREDIT:
            return ServerUnusable(f"it wants to be paid ({message})")
        if fault is Fault.MODEL:
            return ServerUnusable(self._no_model(message, question))
        message = f"{self.name}: {message}"
        if fault is Fault.ENTRY:
            return QuestionRefused(message)
        return QuestionRefused(message, error.reason, REMEDIES.get(fault, REMEDIES[Fault.UNKNOWN]))

    def _no_model(self, message, question):
        """Why there is no such route, or no such model."""
        if question is None:
            return f"it lists no models ({message})"
        names, model = None, question.get("model")
        with suppress(TemporaryError, ServerUnusable):
            names = self.models()
        if names:
            return f"it has no model {model}, but {listed(names)} ({message})"
        return f"no model {model}, or no OpenAI API at this address ({message})"


def _caps(seconds):
    return Caps(min(CONNECT_SECONDS, seconds), seconds, seconds, MAX_BYTES)


def _without(question, left_out):
    """The question as a server takes it: max_tokens has another name, no stream is a stream, the
    rest has no substitute."""
    more = {}
    if "max_tokens" in left_out and "max_tokens" in question:
        more["max_completion_tokens"] = question["max_tokens"]
    if "stream" in left_out:
        more |= {"stream": True, "stream_options": {"include_usage": True}}
    body = {name: value for name, value in question.items() if name not in left_out}
    return body | {name: value for name, value in more.items() if name not in left_out - {"stream"}}


def listed(names):
    """Names of models as a message has them."""
    more = f" and {len(names) - MAX_NAMES} more" if len(names) > MAX_NAMES else ""
    return ", ".join(names[:MAX_NAMES]) + more if names else "none"
