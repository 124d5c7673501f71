"""Local runs: models of this process that answer as the servers of minigpt.arena.endpoints do.

    run = LocalRun("sft", "qa")                       # it can be listed before its model is loaded
    run.start(LocalModel(scheduler, tokenizer, encode, end_ids))
    for text in run.side().stream(messages, {"max_tokens": 50}): …

This module does not load PyTorch, so the page can be open before PyTorch is.
"""

import threading
from typing import Any, NamedTuple

from minigpt.arena.endpoints import MAX_THOUGHTS, SETTINGS, EndpointError, Health
from minigpt.arena.thoughts import ThoughtSplitter
from minigpt.common.errors import UserError
from minigpt.inference.request import QueueFull, Request, SchedulerStopped
from minigpt.openai.answers import USAGE

WAIT_SECONDS = 0.25  # a stream that waits for its model looks so often whether it is closed


class LocalModel(NamedTuple):
    """host: the RequestScheduler that has the model under the run's name. encode([(role, text),
    …]): the ids to continue for a conversation; UserError where it has none. end_ids: the ids that
    end an answer."""

    host: Any
    tokenizer: Any
    encode: Any
    end_ids: Any


class LocalRun:
    """A run of this machine, used as an Endpoint is. What needs its model waits until it is loaded.

    name: the engine's in the scheduler. prompt_format: "plain", "qa" or "chat", None if unknown.
    """

    takes = SETTINGS - {"stop"}
    is_alive = True

    def __init__(self, name, prompt_format=None):
        self.name, self.model, self.prompt_format = name, name, prompt_format
        self._loaded, self._ready, self._problem = None, threading.Event(), None

    def __repr__(self):
        return f"LocalRun({self.name!r})"

    def start(self, model):
        """Answer with a LocalModel from now on. Returns the run."""
        self._loaded = model
        self._ready.set()
        return self

    def fail(self, problem):
        """The model cannot be loaded: all that wait for it get an EndpointError that says why."""
        self.is_alive, self._problem = False, problem
        self._ready.set()

    def wait(self, seconds=None):
        """Wait for the model, at most so many seconds; returns whether loading has ended."""
        return self._ready.wait(seconds)

    @property
    def loaded(self):
        """The LocalModel, once it is loaded. EndpointError if it cannot be."""
        self._ready.wait()
        if self._loaded is None:
            raise EndpointError("not loaded", f"{self.name}: {self._problem}")
        return self._loaded

    host = property(lambda self: self.loaded.host)
    tokenizer = property(lambda self: self.loaded.tokenizer)

    def side(self):
        """A LocalStream, to write one text."""
        return LocalStream(self)

    def probe(self):
        """A Health, at once."""
        if not self._ready.is_set():
            return Health("loading", (self.name,), 0.0)
        if self._problem:
            return Health("not loaded", (), 0.0, self._problem)
        return Health("stopping" if self.host.draining else "ok", (self.name,), 0.0)

    def request(self, messages, settings):
        """The engine's Request for a conversation. Settings that are absent or None take the
        engine's defaults, which leave probabilities as the model has them."""
        given = {name: value for name, value in settings.items() if value is not None}
        if given.keys() - self.takes:
            unknown = ", ".join(sorted(given.keys() - self.takes))
            raise EndpointError("rejected", f"{self.name}: it does not take {unknown}")
        if "max_tokens" in given:
            given["max_new_tokens"] = given.pop("max_tokens")
        model = self.loaded
        try:
            ids = model.encode([(message["role"], message["content"]) for message in messages])
        except UserError as error:
            raise EndpointError("rejected", f"{self.name}: {error}") from None
        return Request(ids, stop_ids=model.end_ids, **given)

    def submit(self, request):
        """The host's stream of tokens for a Request."""
        try:
            (stream,) = self.host.submit(self.name, [request])
            return stream
        except UserError as error:
            kinds = {QueueFull: "busy", SchedulerStopped: "stopping"}
            kind = kinds.get(type(error), "rejected")
            raise EndpointError(kind, f"{self.name}: {error}") from None


class LocalStream:
    """One text of a LocalRun, used as an EndpointStream is."""

    def __init__(self, local):
        self._local, self.finish_reason, self.usage = local, None, None
        self.thoughts, self._closed = "", threading.Event()

    takes = property(lambda self: self._local.takes)

    def again(self):
        """See minigpt.arena.battles."""
        return self._local.side()

    def close(self):
        """End what stream() writes, from any thread and for good: it looks four times a second."""
        self._closed.set()

    def stream(self, messages, settings):
        """As EndpointStream.stream()."""
        while not self._local.wait(WAIT_SECONDS):
            if self._closed.is_set():
                self.finish_reason = "cancelled"
                return
        request = self._local.request(messages, settings)
        tokens = self._local.submit(request)
        n_written, decoder, splitter = 0, self._local.tokenizer.stream(), ThoughtSplitter()
        try:
            for token in self._until_closed(tokens):
                n_written += 1
                yield from self._split(splitter, decoder.push(token.id))
            rest = "\ufffd" if decoder.flush() else ""
            yield from self._split(splitter, rest, final=True)
        finally:
            tokens.cancel()
            n_prompt = len(request.ids)
            counts = (n_prompt, n_written, n_prompt + n_written)
            self.usage = dict(zip(USAGE, counts, strict=True))
        self._end(tokens)

    def _split(self, splitter, text, final=False):
        text, thoughts = splitter.push(text, final)
        self.thoughts = (self.thoughts + thoughts)[:MAX_THOUGHTS]
        if text:
            yield text

    def _until_closed(self, tokens):
        for token in tokens:
            if self._closed.is_set():
                return
            if token is not None:
                yield token

    def _end(self, tokens):
        """Set the finish_reason, or raise what ended the text."""
        reason, name = tokens.finish_reason, self._local.name
        if reason in ("stop", "length"):
            self.finish_reason = reason
        elif self._closed.is_set():
            self.finish_reason = "cancelled"
        elif reason == "cancelled":
            raise EndpointError("stopping", f"{name}: its host was stopped")
        else:
            raise EndpointError(reason, f"{name}: {tokens.error}")
