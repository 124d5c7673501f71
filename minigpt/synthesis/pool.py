"""The pool: OpenAI-compatible servers that share the work of answering, for days.

    servers = read_servers(["localhost:1234", "https://api.example.com/v1"], ["none", "SOME_KEY"])
    pool = Pool(servers, "qwen3-8b", workers=8)
    pool.check()                            # before the first question: what is wrong, at once
    answer = pool.ask(messages, temperature=0.45, max_tokens=2048, schema=schema)  # from any thread
    answer.text, answer.cut, answer.completion_tokens, answer.server
    pool.snapshot()                         # what each server is doing
    pool.close()                            # from any thread: whoever waits ends with PoolClosed

A question goes to the server that has least to do. How much each may have at a time grows with its
answers and halves when it is overloaded; what fails is tried again, there or elsewhere, after a
random pause; a server that keeps failing is left alone for a while. A wrong key or an unknown model
takes a server out for good. How one question is asked stands in minigpt/openai/client.py.
"""

import itertools
import math
import random
import sys
import threading
import time
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass
from typing import NamedTuple

from minigpt.common.errors import UserError
from minigpt.openai.client import Answer, Client, listed
from minigpt.openai.errors import QuestionRefused, ServerUnusable, TemporaryError
from minigpt.synthesis.backoff import CircuitBreaker, ConcurrencyLimit, RetryPolicy

PING = {"messages": [{"role": "user", "content": "1"}], "max_tokens": 1}
# Failures that the question has no part in, whatever it is.
_OF_SERVER = {"refused", "unreachable", "unknown host", "proxy", "tls", "http 429", "http 503"}


class PoolClosed(UserError):
    """The pool was closed before there was an answer."""


class Unreachable(UserError):
    """No server has answered for as long as one was ready to wait."""


class State(NamedTuple):
    """What snapshot() tells about a server.

    state: "up"; "paused" (it asked for time); "down" (it kept failing, and is left alone) and
    "probing" (one question finds out whether it still does); "out" (for good).
    requests: questions sent there, repeated ones too; failures: kind → how many of them.
    """

    name: str
    in_flight: int
    limit: int
    state: str
    requests: int
    failures: dict


class Clock:
    """Time as the pool sees it; a test may have one of its own."""

    now = staticmethod(time.monotonic)

    @staticmethod
    def wait(condition, seconds):
        """Wait until the Condition is notified, `seconds` at most (None: for ever)."""
        condition.wait(seconds)


# -- a server with its questions -------------------------------------------------------------------


class _Lane:
    """A server with what it has to do. The pool's lock guards it."""

    def __init__(self, client, limit, policy):
        self.client, self.limit, self.breaker = client, limit, CircuitBreaker(policy)
        self.in_flight = self.requests = self.turn = 0
        self.failures, self.last = Counter(), "not asked"
        self.paused, self.out = -math.inf, None  # until when; why

    @property
    def name(self):
        return self.client.name

    def admits(self, now):
        has_room = self.in_flight < self.limit.n
        return not self.out and has_room and now >= self.paused and self.breaker.admits(now)

    def opens(self):
        """When it may take a question again, apart from those that it has."""
        return self.paused if self.breaker.is_closed else max(self.paused, self.breaker.until)

    def state(self, now):
        """The State that snapshot() tells."""
        if self.out:
            state = "out"
        elif not self.breaker.is_closed:
            state = "probing" if self.breaker.is_probing else "down"
        else:
            state = "paused" if now < self.paused else "up"
        facts = self.in_flight, self.limit.n, state, self.requests, dict(self.failures)
        return State(self.name, *facts)


@dataclass
class _Trial:
    """What a call of ask() has been through. ready: when it may be asked again; failed: how often
    it did; doubted: how often that could be its own fault; blamed: how often others were answered
    meanwhile; answered: the pool's answers at its last failure; lane: where that was."""

    began: float
    ready: float
    failed: int = 0
    doubted: int = 0
    blamed: int = 0
    answered: int = 0
    lane: _Lane | None = None


class _Visit(NamedTuple):
    """A question that is with a server."""

    lane: _Lane
    began: float
    is_probe: bool


# -- the pool --------------------------------------------------------------------------------------


def _say(text):
    print(text, file=sys.stderr, flush=True)


class Pool:
    """See the module's docstring.

    model: its name at all servers; None: check() finds the only one that they serve, or says which
    there are. workers: questions with the servers at a time, over all. timeout: seconds for an
    answer. structured: ask for JSON by the schema, where a server can. patience: seconds without
    any answer after which ask() gives up. warn(text): told what the user should know while it goes
    on. policy, clock, rng (a random.Random): for those who need others.
    """

    def __init__(
        self,
        servers,
        model=None,
        *,
        workers=4,
        timeout=120.0,
        structured=True,
        patience=3600.0,
        warn=_say,
        policy=None,
        clock=Clock,
        rng=None,
    ):
        if not servers:
            raise UserError("base_url: expected at least one server")
        for name, value in (("workers", workers), ("timeout", timeout), ("patience", patience)):
            if not value > 0:
                raise UserError(f"{name}={value}: expected more than 0")
        self.model = model
        self._workers, self._structured, self._patience = workers, structured, patience
        self._warn, self._policy, self._clock = warn, policy or RetryPolicy(), clock
        self._random = rng or random.Random()
        share = -(-workers // len(servers))
        self._lanes = [
            _Lane(
                Client(
                    server.name, server.key, name, connections=workers, timeout=timeout, warn=warn
                ),
                ConcurrencyLimit(share, workers),
                self._policy,
            )
            for server, name in zip(servers, _names(servers), strict=True)
        ]
        self._changed = threading.Condition()
        self._closed, self._turn = False, itertools.count(1)
        self._answers, self._trouble = 0, None  # since when nothing was answered, but asked

    def check(self):
        """Ask each server what it serves, and find the model where none was given.

        UserError where no server is of use now, with all their reasons. Where some are, `warn`
        hears of the others: one that cannot be reached may come back, one with a wrong key is out.
        """
        served, problems = {}, []
        for lane in self._lanes:
            self._examine(lane, problems, lambda lane: served.update({lane: lane.client.models()}))
        if self.model is None and served:
            self.model = _only_model(served.values())
        for lane, names in served.items():
            # Names have short forms, and lists are not always whole: the server has the last word.
            if self.model not in (names or ()):
                self._examine(lane, problems, self._ping)
        if len(problems) == len(self._lanes):
            raise UserError("\n".join(problems))
        for problem in problems:
            self._warn(f"{problem}; the other servers go on without it")

    def _examine(self, lane, problems, call):
        try:
            call(lane)
        except ServerUnusable as error:
            lane.out = f"{lane.name}: {error}"
            problems.append(lane.out)
        except TemporaryError as error:
            lane.last = f"{lane.name}: {error}"
            problems.append(lane.last)

    def _ping(self, lane):
        with suppress(QuestionRefused):  # a question so short may be refused; the model is there
            lane.client.ask(dict(PING, model=self.model))

    def ask(self, messages, *, temperature=None, max_tokens=None, schema=None, seed=None):
        """The Answer to a conversation; returns when there is one, however long that takes.

        messages: [{"role": …, "content": …}, …]. What is None is left to the server. schema: a JSON
        schema that the answer should follow; a server that cannot is asked without. Raises
        QuestionRefused for this question alone; for the whole run PoolClosed, Unreachable, and
        UserError where no server is left.
        """
        if self.model is None:
            raise UserError("model: expected a name, or check() before the first question")
        question = dict(model=self.model, messages=messages, stream=False)
        given = dict(temperature=temperature, max_tokens=max_tokens, seed=seed)
        question.update({name: value for name, value in given.items() if value is not None})
        if schema is not None and self._structured:
            wanted = {"name": "answer", "strict": True, "schema": schema}
            question["response_format"] = {"type": "json_schema", "json_schema": wanted}
        now = self._clock.now()
        trial = _Trial(now, now)
        while True:
            visit = self._enter(trial)
            # It failed often, and nothing was answered since: is it this question, or is it all?
            is_ping = trial.doubted >= self._policy.tries and trial.answered == self._answers
            try:
                asked = dict(PING, model=self.model) if is_ping else question
                outcome = visit.lane.client.ask(asked)
            except BaseException as error:
                outcome = error
            for text in self._leave(visit, outcome, trial):
                self._warn(text)
            if is_ping and isinstance(outcome, (Answer, QuestionRefused)):
                continue
            if isinstance(outcome, Answer):
                return outcome
            if trial.blamed >= self._policy.tries:
                raise QuestionRefused(
                    f"{trial.lane.last} (failure {trial.failed}; others were answered)"
                )
            if not isinstance(outcome, (TemporaryError, ServerUnusable)):
                raise outcome

    def close(self):
        """Take no more questions: those that wait end with PoolClosed, those that are with a server
        may finish."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        for lane in self._lanes:
            lane.client.close()

    def snapshot(self):
        """A State for each server, in their order."""
        with self._changed:
            now = self._clock.now()
            return [lane.state(now) for lane in self._lanes]

    # -- to a server, and back --

    def _enter(self, trial):
        """Wait for a server that takes the question: a _Visit."""
        with self._changed:
            while True:
                now = self._clock.now()
                self._check_end(trial, now)
                lane = self._choose(trial, now)
                if lane:
                    lane.turn = next(self._turn)
                    lane.in_flight += 1
                    lane.requests += 1
                    return _Visit(lane, now, lane.breaker.enter())
                wake = self._wake(trial, now)
                self._clock.wait(self._changed, None if wake is None else wake - now)

    def _check_end(self, trial, now):
        """Raise what ends a question that waits."""
        if self._closed:
            raise PoolClosed("the pool of servers was closed")
        if all(lane.out for lane in self._lanes):
            raise UserError("\n".join(lane.out for lane in self._lanes))
        if self._trouble is not None and now >= self._give_up(trial):
            reasons = [lane.out or lane.last for lane in self._lanes]
            waited = f"no server has answered for {self._patience:g} s; what was written is safe"
            raise Unreachable("\n".join([f"{waited}: run it again to go on", *reasons]))

    def _give_up(self, trial):
        return max(self._trouble, trial.began) + self._patience

    def _choose(self, trial, now):
        """The least busy server that takes a question now; not the one where it failed last, if
        another does; of equals the one whose last turn is the longest ago."""
        if now < trial.ready or sum(lane.in_flight for lane in self._lanes) >= self._workers:
            return None
        lanes = [lane for lane in self._lanes if lane.admits(now)]
        return min(
            lanes,
            key=lambda lane: (lane is trial.lane, lane.in_flight / lane.limit.n, lane.turn),
            default=None,
        )

    def _wake(self, trial, now):
        """When something changes though nobody says so, or None."""
        times = [trial.ready, *(lane.opens() for lane in self._lanes if not lane.out)]
        if self._trouble is not None:
            times.append(self._give_up(trial))
        return min((time for time in times if time > now), default=None)

    def _leave(self, visit, outcome, trial):
        """Note how a visit ended. Returns what the user should hear, a list of texts."""
        lane, news = visit.lane, []
        with self._changed:
            now = self._clock.now()
            lane.in_flight -= 1
            if isinstance(outcome, (Answer, QuestionRefused)):
                self._answers += 1
                self._trouble = None
                if lane.breaker.answered():
                    news.append(f"{lane.name}: it answers again")
                if isinstance(outcome, Answer):
                    lane.limit.answered()
            elif isinstance(outcome, TemporaryError):
                lane.last = f"{lane.name}: {outcome}"
                lane.failures[outcome.kind] += 1
                if self._trouble is None:
                    self._trouble = visit.began
                if outcome.overload:
                    lane.limit.overloaded(visit.began, now)
                if outcome.retry_after is not None:
                    pause = min(outcome.retry_after, self._policy.longest_retry_after)
                    lane.paused = max(lane.paused, now + pause)
                if lane.breaker.failed(now, visit.is_probe):
                    news.append(f"{lane.last}; it is left alone for a while")
                self._count(trial, lane, outcome.kind, now)
            else:
                lane.breaker.left(visit.is_probe)
                if isinstance(outcome, ServerUnusable) and not lane.out:
                    lane.out = f"{lane.name}: {outcome}"
                    if not all(other.out for other in self._lanes):  # else it ends the run
                        news.append(f"{lane.out}; it is asked no more")
            self._changed.notify_all()
        return news

    def _count(self, trial, lane, kind, now):
        """Note a failure of a question, and when it may be asked again: after a random time up to
        one that doubles, so that many do not come back together ("full jitter")."""
        if kind not in _OF_SERVER:
            trial.blamed += bool(trial.doubted) and trial.answered < self._answers
            trial.doubted += 1
        longest = self._policy.pause * 2 ** min(trial.failed, 30)
        pause = self._random.uniform(0, min(longest, self._policy.longest_pause))
        trial.ready, trial.lane = now + pause, lane
        trial.failed, trial.answered = trial.failed + 1, self._answers


def _names(servers):
    """What they are called: those at the same address, with keys of their own, by a number."""
    names = [server.name for server in servers]
    return [
        f"{name} ({names[: i + 1].count(name)})" if names.count(name) > 1 else name
        for i, name in enumerate(names)
    ]


def _only_model(lists):
    """The one model that servers serve, those that only make embeddings apart. UserError where
    there is not one."""
    lists = [names for names in lists if names is not None]
    names = list(dict.fromkeys(name for names in lists for name in names))
    writers = [name for name in names if "embed" not in name.lower()]
    if len(writers) != 1:
        raise UserError(f"model: expected its name; there is {listed(writers or names)}")
    return writers[0]
