"""Streaming: tokens from the RequestScheduler in, pieces of text out.

generation = Generation(service, served, "chatcmpl", requests, reader, stops)
for piece in generation.pieces(): …      # None while there is nothing new
generation.usage(); generation.close()
"""

import logging
import queue
import threading
import time
import uuid
from collections import deque
from collections.abc import Callable
from typing import NamedTuple

from minigpt.common.errors import UserError
from minigpt.inference.scheduler import QueueFull, SchedulerStopped, take
from minigpt.openai.request_reader import RequestRefused
from minigpt.openai.stop_strings import StopStrings

FEW_READERS = 8  # where more than so many read at once, pieces come …
PACE, MAX_PACE = 0.003, 0.1  # … this many seconds apart for each reader, and at most

log = logging.getLogger("minigpt")


class Piece(NamedTuple):
    """New text of one choice, its tokens as (Token, offset of its text), and at the end the
    finish_reason."""

    index: int
    text: str
    tokens: list
    finish_reason: str | None = None


class Choice:
    """One text of an answer: tokens in, pieces of whole characters out, up to a stop string.

    end_ids: ids that end the text, where the engine itself does not end it.
    """

    def __init__(self, index, tokenizer, stops, end_ids=()):
        self.index, self.end_ids = index, end_ids
        self.tokens, self.finish_reason = [], None  # all that was released
        self._texts = []  # and its text, in parts
        self.n_tokens = 0  # generated, released or not
        self.echoed = False
        self._decoder, self._stops = tokenizer.stream(), StopStrings(stops)
        self._n_decoded = self._n_released = 0  # characters
        self._waiting = deque()  # tokens whose text is not released

    @property
    def text(self):
        """The released text."""
        return "".join(self._texts)

    def echo(self, tokens):
        """The Piece of the prompt's tokens: a part of the text in which no stop string counts."""
        self.echoed = True
        return self._release("".join(self._decode(token) for token in tokens))

    def push(self, token):
        """The Piece that a generated token adds; a stop string ends the text."""
        self.n_tokens += 1
        if token.id in self.end_ids:
            self._waiting.append((token, self._n_decoded))
            return self.finish("stop")
        piece = self._release(self._stops.push(self._decode(token)))
        if self._stops.hit is None:
            return piece
        self.finish_reason = "stop"
        return piece._replace(finish_reason="stop")

    def finish(self, reason):
        """The last Piece: what was held back."""
        text = self._stops.push(self._decoder.flush())
        if self._stops.hit is None:
            text += self._stops.flush()
        piece = self._release(text, all_tokens=self._stops.hit is None)
        self.finish_reason = "stop" if self._stops.hit is not None else reason
        return piece._replace(finish_reason=self.finish_reason)

    def _decode(self, token):
        text = self._decoder.push(token.id)
        self._waiting.append((token, self._n_decoded))
        self._n_decoded += len(text)
        return text

    def _release(self, text, all_tokens=False):
        """Release text, and each token with its first character; a stop string's are not."""
        self._texts.append(text)
        self._n_released += len(text)
        tokens = []
        while self._waiting and (all_tokens or self._waiting[0][1] < self._n_released):
            tokens.append(self._waiting.popleft())
        self.tokens += tokens
        return Piece(self.index, text, tokens)


class Reader(NamedTuple):
    """The client that reads an answer: its address, for the log, and gone(), whether it left."""

    address: str
    gone: Callable[[], bool]


class Generation:
    """A running request: its choices, and the token streams that they are made of."""

    def __init__(
        self, service, served, kind, requests, reader, stops=(), end_ids=(), echo=False, n_dropped=0
    ):
        """Submits the engine requests, a choice for each. RequestRefused where the host refuses.
        n_dropped: how many of the conversation's turns are not in the prompt, for the log."""
        self.id, self.created = f"{kind}-{uuid.uuid4().hex}", int(time.time())
        self.served, self.requests, self.echo = served, requests, echo
        self._n_dropped = n_dropped
        self.choices = [
            Choice(index, served.tokenizer, stops, end_ids) for index in range(len(requests))
        ]
        self._log_text = service.options.log_text
        self._reader = reader
        self._outcome = "client gone"
        self._released_at = 0.0  # time.monotonic() of the last piece
        self._host = service.host
        self._streams = _submit(self._host, served.name, requests)

    def pieces(self):
        """Yield each Piece of any choice as it is written, and None now and then while there is
        none; what is ready together is one Piece. RequestRefused where the host ends one of them;
        stops where the client has gone."""
        held = {}  # index → the Piece that more is ready to be added to
        try:
            for events in _merged(self._streams, self._pause):
                if self._reader.gone():
                    return
                if not events:
                    yield None
                for index, token in events:
                    if self.choices[index].finish_reason is None:
                        for piece in self._read(index, token):
                            held[index] = _joined(held.get(index), piece)
                self._released_at = time.monotonic()
                yield from held.values()
                held.clear()
            self._outcome = ",".join(sorted({choice.finish_reason for choice in self.choices}))
        except RequestRefused as refused:
            yield from held.values()
            self._outcome = f"error: {refused.message}"
            raise

    @property
    def ended(self):
        """Whether all choices are complete."""
        return all(choice.finish_reason is not None for choice in self.choices)

    def _pause(self):
        """Seconds until the next piece. Where many clients read at once, some time after the last
        one: sending a token takes longer than generating it, and several in one piece cost as much
        as one."""
        readers = self._host.counts()[0]
        if readers <= FEW_READERS:
            return 0.0
        pause = min(PACE * readers, MAX_PACE)
        return max(0.0, self._released_at + pause - time.monotonic())

    def _read(self, index, token):
        """The pieces that a token of a choice makes, or (None) its end."""
        choice, stream = self.choices[index], self._streams[index]
        if token is None and stream.finish_reason not in ("stop", "length"):
            raise _failure(stream)
        if token is None:
            _check_constraint(self.requests[index])
        if self.echo and not choice.echoed:
            yield choice.echo(self._prompt_tokens(index))
        piece = choice.finish(stream.finish_reason) if token is None else choice.push(token)
        if choice.finish_reason is not None:
            stream.cancel()
        if piece.text or piece.tokens or piece.finish_reason:
            yield piece

    def _prompt_tokens(self, index):
        """With logprobs from the engine, which has read the prompt when it writes."""
        reported = self._streams[index].ticket.prompt_tokens
        return reported or [_Plain(i) for i in self.requests[index].ids]

    def finish(self):
        """Read all pieces; returns whether the client is still there."""
        for _ in self.pieces():
            pass
        return self._outcome != "client gone"

    def usage(self):
        """Token counts. A prompt counts once, however many choices continue it."""
        prompts = {id(each.ids): len(each.ids) for each in self.requests}
        n_prompt, n_written = sum(prompts.values()), sum(c.n_tokens for c in self.choices)
        return dict(
            prompt_tokens=n_prompt,
            completion_tokens=n_written,
            total_tokens=n_prompt + n_written,
        )

    def close(self):
        """Cancel what still runs, and log the request."""
        for stream in self._streams:
            stream.cancel()
        usage, now = self.usage(), time.monotonic()
        began = min(stream.submitted for stream in self._streams)
        first = min((s.first_token for s in self._streams if s.first_token), default=None)
        n_in, n_out = usage["prompt_tokens"], usage["completion_tokens"]
        speed = "no token"
        if first is not None:
            speed = (
                f"first after {first - began:.2f} s, {n_out / max(now - first, 1e-3):.0f} tokens/s"
            )
        dropped = f"{self._n_dropped} oldest turns dropped, " if self._n_dropped else ""
        log.info(
            f"{self.id} {self._reader.address} {self.served.name} {n_in} tokens in {n_out} out, "
            f"{dropped}{speed}, {self._outcome}"
        )
        if self._log_text:
            for sent, choice in zip(self.requests, self.choices, strict=True):
                prompt = self.served.tokenizer.decode(sent.ids)
                log.info(f"{self.id} {prompt!r} → {choice.text!r}")


class _Plain(NamedTuple):
    """A token of a prompt without logprobs."""

    id: int


def _submit(host, name, requests):
    """The host's token streams; RequestRefused where it takes no request."""
    most = host.engines[name].n_slots + host.limits.max_waiting
    if len(requests) > most:
        raise RequestRefused(
            400, f"{len(requests)} texts at once; this server takes {most}", "prompt"
        )
    try:
        return host.submit(name, requests)
    except QueueFull as error:
        raise RequestRefused(429, str(error), code="rate_limit_exceeded") from None
    except SchedulerStopped as error:
        raise RequestRefused(503, str(error), code="draining") from None
    except UserError as error:
        raise RequestRefused(400, str(error)) from None


def _check_constraint(request):
    """RequestRefused where the text of an engine request is not what its constraint promises."""
    error = request.constraint and request.constraint.error
    if error:
        message = f"response_format: the schema became too complex: {error}"
        raise RequestRefused(500, message, "response_format", "model_failed")


def _failure(stream):
    """The RequestRefused for a stream that failed."""
    if stream.finish_reason == "error":
        return RequestRefused(500, stream.error or "the model failed", code="model_failed")
    if stream.finish_reason == "timeout":
        return RequestRefused(503, stream.error or "out of time", code="timeout")
    return RequestRefused(503, "the server is stopping", code="draining")


def _joined(first, second):
    """Two Pieces of a choice, or the second alone, as one."""
    if first is None:
        return second
    return second._replace(text=first.text + second.text, tokens=first.tokens + second.tokens)


def _merged(streams, pause):
    """Yield lists of events: what the streams have since the last list; none whenever POLL seconds
    brought nothing. An event is (index, Token), or (index, None) when that stream has ended.
    pause(): how many seconds to wait for more after the first event of a list."""
    if len(streams) == 1:
        for tokens, ended in streams[0].batches(pause):
            yield [(0, token) for token in tokens] + [(0, None)] * ended
        return
    events = queue.SimpleQueue()
    for index, stream in enumerate(streams):
        threading.Thread(target=_pump, args=(index, stream, events), daemon=True).start()
    running = len(streams)
    while running:
        found = take(events, lambda: time.sleep(pause()))
        running -= sum(token is None for _, token in found)
        yield found


def _pump(index, stream, events):
    for token in stream:
        if token is not None:
            events.put((index, token))
    events.put((index, None))
