"""The request scheduler: one thread owns the models. Requests come from many threads, and each gets
a stream of tokens.

    scheduler = RequestScheduler({"sft": engine})
    (stream,) = scheduler.submit("sft", [Request(ids)])
    for token in stream: …     # each Token when it is generated; None now and then while waiting
    stream.finish_reason       # "stop", "length", "cancelled", "timeout" or "error"
    scheduler.drain(30)        # refuse new requests, wait for the running ones, stop

One thread steps all engines in turn: matrix products in two threads would compete for the same
cores.
"""

import contextlib
import queue
import threading
import time
import traceback
from dataclasses import dataclass

import torch

from minigpt.inference.request import QueueFull, Request, SchedulerStopped
from minigpt.models.device import fewest_threads

POLL = 0.25  # seconds after which a waiting reader gets None


@dataclass(frozen=True)
class QueueLimits:
    """max_waiting: requests that may wait for a slot, over all models. queue_seconds: how long one
    may wait. total_seconds: how long one may take in all."""

    max_waiting: int = 64
    queue_seconds: float = 60.0
    total_seconds: float = 600.0


def set_threads(engines, threads=0):
    """Set PyTorch's number of threads for the engines (name → Engine) that are on a CPU; 0: the
    fewest that are about as fast as all, because the server needs processor time too."""

    def generate_a_little():
        for engine in engines.values():
            engine.generate([Request([0], 5, temperature=0)] * min(8, engine.n_slots))

    if any(engine.device.type == "cpu" for engine in engines.values()):
        torch.set_num_threads(threads or fewest_threads(generate_a_little))


class Stream:
    """The tokens of one request. Iterate over it in one thread."""

    def __init__(self, scheduler, engine, ticket):
        self._scheduler, self._engine, self._ticket = scheduler, engine, ticket
        self._tokens = queue.SimpleQueue()
        self._has_end = threading.Event()  # whether _END is among them
        self._delivered = 0
        self.submitted = time.monotonic()
        self.first_token = self.ended = None  # time.monotonic() of each
        self.finish_reason = None  # may be set before the reader has all tokens
        self.error = None  # for "timeout" and "error": what happened, for the client

    @property
    def ticket(self):
        """The engine's Ticket. Read it after the stream has ended."""
        return self._ticket

    def batches(self, pause=lambda: 0):
        """Yield ([Token, …], ended): the tokens that were generated since the last batch, and
        whether they are the last ones; none after each POLL seconds without any, so that the
        reader can check whether its own client is still connected. After the first token of a
        batch it waits pause() seconds for more, or until the text ends."""
        ended = False
        while not ended:
            tokens = take(self._tokens, lambda: self._has_end.wait(pause()))
            ended = tokens[-1:] == [_END]
            yield tokens[:-1] if ended else tokens, ended

    def __iter__(self):
        """Yield each Token when it is generated, and None after each POLL seconds without one."""
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
        """End the request; its slot is free before the next step. No effect after its end."""
        self._scheduler._call_soon(lambda: self._scheduler._finish(self, "cancelled"))


_END = object()


def take(items, wait):
    """All that is in a SimpleQueue, as a list: at least one item, or none if POLL seconds bring
    none. wait() is called when the first one is there."""
    found = []
    with contextlib.suppress(queue.Empty):
        found.append(items.get(timeout=POLL))
        wait()
        while True:
            found.append(items.get_nowait())
    return found


class RequestScheduler:
    """See the module's docstring. engines: name → Engine; only the scheduler may use them."""

    def __init__(self, engines, limits=QueueLimits()):
        self.engines, self.limits = dict(engines), limits
        self._lock = threading.Condition()
        self._commands = []  # functions that this thread calls before its next step
        self._streams = {}  # ticket → Stream, of requests that have not ended
        self._n_open = 0  # how many have not ended; other threads read it under the lock
        self._draining = self._stopped = False
        self._thread = threading.Thread(target=self._run, name="engines", daemon=True)
        self._thread.start()

    # -- called from any thread --------------------------------------------------------------------

    def add(self, name, engine):
        """Take one more Engine; only the scheduler may use it from now on."""
        self.engines = {**self.engines, name: engine}  # a new dict: the thread may be reading it

    def submit(self, name, requests):
        """Queue requests to the engine called `name`, all or none; returns a Stream for each.

        UserError names every invalid setting; QueueFull if too many wait already; SchedulerStopped
        after drain().
        """
        engine = self.engines[name]
        for request in requests:
            engine.check(request)
        slots = sum(engine.n_slots for engine in self.engines.values())
        with self._lock:
            if self._draining or self._stopped:
                raise SchedulerStopped("the server is stopping: no new requests")
            if self._n_open + len(requests) > slots + self.limits.max_waiting:
                raise QueueFull(f"{self._n_open} requests are running or waiting: try again later")
            self._n_open += len(requests)
            streams = [Stream(self, engine, None) for _ in requests]
            self._commands.append(lambda: self._begin(streams, requests))
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
        """Refuse new requests, wait up to `seconds` for the others, then cancel those that still
        run, and stop. Returns how many were cancelled."""
        with self._lock:
            self._draining = True
            self._lock.wait_for(lambda: not self._n_open or self._stopped, timeout=seconds)
            left, self._stopped = self._n_open, True
            self._lock.notify_all()
        self._thread.join(10)
        return left

    # -- called in the scheduler's thread ----------------------------------------------------------

    def _call_soon(self, command):
        with self._lock:
            if self._stopped:
                return
            self._commands.append(command)
            self._lock.notify()

    def _run(self):
        while True:
            with self._lock:
                while not (self._commands or self._streams or self._stopped):
                    self._lock.wait()
                commands, self._commands = self._commands, []
                stopped = self._stopped
            for command in commands:
                command()
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
            self._deliver(stream)  # a request for no tokens has ended already

    def _step(self, engine):
        if not (engine.active or engine.waiting):
            return
        try:
            engine.step()
        except Exception:
            # The thread must survive: all requests of this engine end, and the next ones find it
            # empty.
            traceback.print_exc()
            for stream in self._of(engine):
                self._finish(stream, "error", "the model failed while it was writing this text")
            return
        for stream in self._of(engine):
            self._deliver(stream)

    def _of(self, engine):
        return [stream for stream in self._streams.values() if stream._engine is engine]

    def _deliver(self, stream):
        """Pass the ticket's new tokens to the stream, and its end."""
        ticket = stream._ticket
        while stream._delivered < len(ticket.tokens):
            stream.first_token = stream.first_token or time.monotonic()
            stream._tokens.put(ticket.tokens[stream._delivered])
            stream._delivered += 1
        if ticket.finish_reason is not None:
            self._finish(stream, ticket.finish_reason)

    def _finish(self, stream, reason, error=None):
        """End a stream, and its ticket if it still runs."""
        if self._streams.pop(stream._ticket, None) is None:
            return
        stream._engine.cancel(stream._ticket)
        stream.ended = time.monotonic()
        stream.finish_reason, stream.error = reason, error
        stream._tokens.put(_END)
        stream._has_end.set()
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
