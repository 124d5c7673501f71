"""The thread that owns the models: requests from many threads in, streams of tokens out.

    host = Host({"sft": engine})
    (stream,) = host.submit("sft", [Request(ids)])
    for token in stream: …     # each Token as it is written; None now and then while waiting
    stream.finish_reason       # "stop", "length", "cancelled", "timeout" or "error"
    host.drain(30)             # no new ones; wait for those that run; stop

All engines are stepped by one thread in turn: two threads of matrix products on the same cores
would only take them from one another.
"""

import queue
import threading
import time
import traceback
from dataclasses import dataclass

import torch

from minigpt.common.errors import UserError
from minigpt.inference.engine import Request
from minigpt.models.device import fewest_threads

POLL = 0.25  # seconds between two looks of a reader that waits


class Busy(UserError):
    """So many requests wait already that one more would wait too long: come again later."""


class Closed(UserError):
    """The host is draining or has stopped: no new requests."""


@dataclass(frozen=True)
class Limits:
    """max_waiting: requests that may wait for a slot, over all models. queue_seconds: how long one
    may wait. total_seconds: how long one may take in all."""

    max_waiting: int = 64
    queue_seconds: float = 60.0
    total_seconds: float = 600.0


def set_threads(engines, threads=0):
    """Let PyTorch take so many threads for the engines (name → Engine) that are on a CPU; 0: as
    many as pay, for those who read what is written need some of the processor too."""

    def write_a_little():
        for engine in engines.values():
            engine.generate([Request([0], 5, temperature=0)] * min(8, engine.n_slots))

    if any(engine.device.type == "cpu" for engine in engines.values()):
        torch.set_num_threads(threads or fewest_threads(write_a_little))


class Stream:
    """What becomes of one request. Read it in one thread, by iterating."""

    def __init__(self, host, engine, ticket):
        self._host, self._engine, self._ticket = host, engine, ticket
        self._tokens = queue.SimpleQueue()
        self._delivered = 0
        self.submitted = time.monotonic()
        self.first_token = self.ended = None  # time.monotonic() of each
        self.finish_reason = None  # set before the last token has been read: see __iter__
        self.error = None  # for "timeout" and "error": what happened, for the client

    @property
    def ticket(self):
        """The engine's Ticket; to be read when the stream has ended."""
        return self._ticket

    @property
    def ready(self):
        """Whether the next token, or the end, can be read without waiting."""
        return not self._tokens.empty()

    def __iter__(self):
        """Yield each Token when it is written, and None whenever POLL seconds brought none, so that
        the reader can look whether its own client is still there."""
        while True:
            try:
                token = self._tokens.get(timeout=POLL)
            except queue.Empty:
                yield None
                continue
            if token is _END:
                return
            yield token

    def cancel(self):
        """End the request; its slot is free before the next step. Harmless when it has ended."""
        self._host._tell(lambda: self._host._finish(self, "cancelled"))


_END = object()


class Host:
    """See the module's docstring. engines: name → Engine. Nobody else may touch them afterwards."""

    def __init__(self, engines, limits=Limits()):
        self.engines, self.limits = dict(engines), limits
        self._lock = threading.Condition()
        self._orders = []  # what other threads ask this one to do before its next step
        self._streams = {}  # ticket → Stream of each that has not ended
        self._n_open = 0  # the same, as other threads may read it: submitted and not ended
        self._draining = self._stopped = False
        self._thread = threading.Thread(target=self._run, name="engines", daemon=True)
        self._thread.start()

    # -- for any thread ----------------------------------------------------------------------------

    def submit(self, name, requests):
        """Queue requests to the engine called `name`, all or none; returns a Stream for each.

        UserError names every invalid setting; Busy where too many wait already; Closed after
        drain().
        """
        engine = self.engines[name]
        for request in requests:
            engine.check(request)
        slots = sum(engine.n_slots for engine in self.engines.values())
        with self._lock:
            if self._draining or self._stopped:
                raise Closed("the server is stopping: no new requests")
            if self._n_open + len(requests) > slots + self.limits.max_waiting:
                raise Busy(f"{self._n_open} requests are running or waiting: try again later")
            self._n_open += len(requests)
            streams = [Stream(self, engine, None) for _ in requests]
            self._orders.append(lambda: self._begin(streams, requests))
            self._lock.notify()
        return streams

    def counts(self):
        """(running, waiting): requests that have a slot, and that wait for one."""
        running = sum(len(engine.active) for engine in self.engines.values())
        with self._lock:
            return running, max(0, self._n_open - running)

    @property
    def draining(self):
        """Whether new requests are refused."""
        return self._draining or self._stopped

    def drain(self, seconds):
        """Refuse new requests, wait up to `seconds` for the others, then stop; what still runs is
        cancelled. Returns how many that were."""
        with self._lock:
            self._draining = True
            self._lock.wait_for(lambda: not self._n_open or self._stopped, timeout=seconds)
            left, self._stopped = self._n_open, True
            self._lock.notify_all()
        self._thread.join(10)
        return left

    # -- in the thread -----------------------------------------------------------------------------

    def _tell(self, order):
        with self._lock:
            if self._stopped:
                return
            self._orders.append(order)
            self._lock.notify()

    def _run(self):
        while True:
            with self._lock:
                while not (self._orders or self._streams or self._stopped):
                    self._lock.wait()
                orders, self._orders = self._orders, []
                stopped = self._stopped
            for order in orders:
                order()
            if stopped:
                for stream in list(self._streams.values()):
                    self._finish(stream, "cancelled")
                return
            self._enforce_limits()
            for engine in self.engines.values():
                self._step(engine)

    def _begin(self, streams, requests):
        for stream, request in zip(streams, requests, strict=True):
            stream._ticket = stream._engine.submit(request)
            self._streams[stream._ticket] = stream
            self._deliver(stream)  # one that asks for no token has ended already

    def _step(self, engine):
        if not (engine.active or engine.waiting):
            return
        try:
            engine.step()
        except Exception:
            # A fault here must not silence every other reader for good: all of this engine's
            # requests end, and the next ones find it empty.
            traceback.print_exc()
            for stream in self._of(engine):
                self._finish(stream, "error", "the model failed while it was writing this text")
            return
        for stream in self._of(engine):
            self._deliver(stream)

    def _of(self, engine):
        return [stream for stream in self._streams.values() if stream._engine is engine]

    def _deliver(self, stream):
        """Hand over what the ticket has written since the last time, and its end."""
        ticket = stream._ticket
        while stream._delivered < len(ticket.tokens):
            stream.first_token = stream.first_token or time.monotonic()
            stream._tokens.put(ticket.tokens[stream._delivered])
            stream._delivered += 1
        if ticket.finish_reason is not None:
            self._finish(stream, ticket.finish_reason)

    def _finish(self, stream, reason, error=None):
        """End a stream, and its ticket if that still runs."""
        if self._streams.pop(stream._ticket, None) is None:
            return
        stream._engine.cancel(stream._ticket)
        stream.ended = time.monotonic()
        stream.finish_reason, stream.error = reason, error
        stream._tokens.put(_END)
        with self._lock:
            self._n_open -= 1
            self._lock.notify_all()

    def _enforce_limits(self):
        now, limits = time.monotonic(), self.limits
        for stream in list(self._streams.values()):
            waited = now - stream.submitted
            if stream._ticket in stream._engine.waiting and waited > limits.queue_seconds:
                why = f"no slot became free within {limits.queue_seconds:g} s"
                self._finish(stream, "timeout", why)
            elif waited > limits.total_seconds:
                self._finish(stream, "timeout", f"it took more than {limits.total_seconds:g} s")
