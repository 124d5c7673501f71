"""The pool: OpenAI-compatible servers that share the work of answering, for days.

    servers = read_servers(["localhost:1234", "https://api.example.com/v1"], ["none", "SOME_KEY"])
    pool = Pool(servers, "qwen3-8b", workers=8)
    pool.check()                            # before the first question: what is wrong, at once
    answer = pool.ask(messages, temperature=0.45, max_tokens=2048, schema=schema)  # from any thread
    answer.text, answer.cut, answer.completion_tokens, answer.server
    pool.snapshot()                         # what each server is doing
    pool.close()                            # from any thread: questions that wait raise PoolClosed

A question goes to the least busy server. How many a server gets at a time grows with its answers
and halves when it is overloaded. What fails is tried again, there or elsewhere, after a random
pause; a server that keeps failing is not asked for a while. What one server refuses is asked of the
others. A wrong key, an unknown model, or so many refusals in a row for one reason take a server out
for the rest of the run. minigpt/openai/errors.py says what a failure means,
minigpt/synthesis/backoff.py (RetryPolicy) how often and how long; minigpt/openai/client.py asks one
question.
"""

import itertools
import math
import random
import sys
import threading
import time
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass, field
from typing import NamedTuple

from minigpt.common.errors import UserError
from minigpt.openai.client import Answer, Client, UnsupportedFields, listed
from minigpt.openai.errors import QuestionRefused, ServerUnusable, TemporaryError
from minigpt.synthesis.backoff import (
    CircuitBreaker,
    ConcurrencyLimit,
    RefusalStreak,
    RetryPolicy,
)

PING = {"messages": [{"role": "user", "content": "1"}], "max_tokens": 1}
FAILED_OFTEN = (None, "failed often")  # a reason of QuestionRefused


class PoolClosed(UserError):
    """The pool was closed before there was an answer."""


class Unreachable(UserError):
    """No server has answered for `patience` seconds."""


class ServerState(NamedTuple):
    """What snapshot() reports of a server.

    state: "up"; "paused" (it asked for time); "down" (it kept failing, and is not asked) and
    "probing" (one question finds out whether it still fails); "out" (for the rest of the run).
    requests: questions sent there, repeated ones too; failures: kind → how many of them.
    """

    name: str
    in_flight: int
    limit: int
    state: str
    requests: int
    failures: dict


class Clock:
    """Time for the pool; tests replace it."""

    now = staticmethod(time.monotonic)

    @staticmethod
    def wait(condition, seconds):
        """Wait until the Condition is notified, `seconds` at most (None: for ever)."""
        condition.wait(seconds)


# -- a server with its questions -------------------------------------------------------------------


class _PoolServer:
    """A server and its questions in flight. The pool's lock guards it."""

    def __init__(self, client, address, limit, policy):
        self.address = address  # several servers, each with a key, may have the same
        self.client, self.limit, self.breaker = client, limit, CircuitBreaker(policy)
        self.refusals = RefusalStreak(policy)
        self.in_flight = self.requests = self.turn = 0
        self.failures, self.last = Counter(), "not asked"
        self.paused, self.out = -math.inf, None  # until when; why

    @property
    def name(self):
        return self.client.name

    def admits(self, now):
        # After a streak of refusals it is not asked until the answers in flight have decided.
        has_room = self.in_flight < self.limit.n and not self.refusals.is_long
        return not self.out and has_room and now >= self.paused and self.breaker.admits(now)

    def opens(self):
        """When it may take a question again, if its limit allows it."""
        return self.paused if self.breaker.is_closed else max(self.paused, self.breaker.until)

    def state(self, now):
        """The ServerState for snapshot()."""
        if self.out:
            state = "out"
        elif not self.breaker.is_closed:
            state = "probing" if self.breaker.is_probing else "down"
        else:
            state = "paused" if now < self.paused else "up"
        facts = self.in_flight, self.limit.n, state, self.requests, dict(self.failures)
        return ServerState(self.name, *facts)


@dataclass
class _Retries:
    """The failures of one call of ask(). ready: when the question may be asked again; failed: how
    often it failed; doubted: how often the question itself may be the cause; blamed: how often
    others were answered meanwhile; answered: the pool's answers at its last failure; server: where
    that was; refused: the servers that refused it → their QuestionRefused; is_new: whether a
    refusal says something about the server."""

    began: float
    ready: float
    is_new: bool = True
    failed: int = 0
    doubted: int = 0
    blamed: int = 0
    answered: int = 0
    server: _PoolServer | None = None
    refused: dict = field(default_factory=dict)


class _Attempt(NamedTuple):
    """A question that is with a server. is_ping: a question of the pool's own went in its place."""

    server: _PoolServer
    began: float
    is_probe: bool
    is_ping: bool


# -- the pool --------------------------------------------------------------------------------------


def _say(text):
    print(text, file=sys.stderr, flush=True)


class Pool:
    """See the module's docstring.

    model: its name at all servers; None: check() finds the only one that they serve, or says which
    there are. workers: questions with the servers at a time, over all. timeout: seconds for an
    answer. structured: ask for JSON by the schema, where a server can. extra: further fields of
    every request, as a provider wants them. patience: seconds without any answer after which ask()
    gives up. warn(text): called with what the user should know.
    policy (a RetryPolicy), clock, rng (a random.Random): for tests.
    """

    def __init__(
        self,
        servers,
        model=None,
        *,
        workers=4,
        timeout=120.0,
        structured=True,
        extra=None,
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
        self._extra = extra or {}
        self._warn, self._policy, self._clock = warn, policy or RetryPolicy(), clock
        self._random = rng or random.Random()
        share = -(-workers // len(servers))
        more = dict(connections=workers, timeout=timeout, warn=warn)
        fields = {server.name: UnsupportedFields() for server in servers}
        self._servers = [
            _PoolServer(
                Client(server.name, server.key, name, fields=fields[server.name], **more),
                server.name,
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

        UserError where no server can be used now, with all their reasons. Where some can, `warn` is
        called for the others: one that cannot be reached may come back, one with a wrong key is
        out.
        """
        served, problems = {}, []
        for server in self._servers:
            self._examine(server, problems, lambda s: served.update({s: s.client.models()}))
        if self.model is None and served:
            self.model = _only_model(served.values())
        for server, names in served.items():
            # Names have short forms, and lists are not always whole: the server has the last word.
            if self.model not in (names or ()):
                self._examine(server, problems, self._ping)
        if len(problems) == len(self._servers):
            raise UserError("\n".join(problems))
        for problem in problems:
            self._warn(f"{problem}; the other servers go on without it")

    def _examine(self, server, problems, call):
        try:
            call(server)
        except ServerUnusable as error:
            server.out = f"{server.name}: {error}"
            problems.append(server.out)
        except TemporaryError as error:
            server.last = f"{server.name}: {error}"
            problems.append(server.last)

    def _ping(self, server):
        with suppress(QuestionRefused):  # a question so short may be refused; the model is there
            server.client.ask(self._ping_question())

    def _ping_question(self):
        return PING | self._extra | {"model": self.model}

    def _question(self, messages, schema, given):
        question = dict(model=self.model, messages=messages, stream=False)
        question.update({name: value for name, value in given.items() if value is not None})
        if schema is not None and self._structured:
            wanted = {"name": "answer", "strict": True, "schema": schema}
            question["response_format"] = {"type": "json_schema", "json_schema": wanted}
        return question | self._extra

    def ask(self, messages, *, schema=None, refused_before=False, **given):
        """The Answer to a conversation; returns when there is one, however long that takes.

        messages: [{"role": …, "content": …}, …]. given: temperature, top_p, max_tokens, seed; what
        is None is left to the server. schema: a JSON schema that the answer should follow; a server
        that cannot is asked without. refused_before: by an earlier run, so that another refusal
        says nothing about the server. Raises QuestionRefused for this question alone, when every
        server that can be asked has refused it; for the whole run PoolClosed, Unreachable, and
        UserError where no server is left.
        """
        if self.model is None:
            raise UserError("model: expected a name, or check() before the first question")
        question = self._question(messages, schema, given)
        now = self._clock.now()
        retries = _Retries(now, now, is_new=not refused_before)
        while True:
            attempt = self._enter(retries)
            try:
                asked = self._ping_question() if attempt.is_ping else question
                outcome = attempt.server.client.ask(asked)
            except BaseException as error:
                outcome = error
            for text in self._leave(attempt, outcome, retries):
                self._warn(text)
            if attempt.is_ping and isinstance(outcome, (Answer, QuestionRefused)):
                continue
            if isinstance(outcome, Answer):
                return outcome
            if retries.blamed >= self._policy.tries:
                often = f"(failure {retries.failed}; others were answered)"
                raise QuestionRefused(f"{retries.server.last} {often}", FAILED_OFTEN)
            if not isinstance(outcome, (TemporaryError, ServerUnusable, QuestionRefused)):
                raise outcome

    def close(self):
        """Take no more questions: those that wait end with PoolClosed, those that are with a server
        may finish."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        for server in self._servers:
            server.client.close()

    def snapshot(self):
        """A ServerState for each server, in their order."""
        with self._changed:
            now = self._clock.now()
            return [server.state(now) for server in self._servers]

    # -- to a server, and back --

    def _enter(self, retries):
        """Wait for a server that takes the question; returns an _Attempt."""
        with self._changed:
            while True:
                now = self._clock.now()
                self._check_end(retries, now)
                server = self._choose(retries, now)
                if server:
                    server.turn = next(self._turn)
                    server.in_flight += 1
                    server.requests += 1
                    # It failed often, and nothing was answered since: is it this question, or all?
                    often = retries.doubted >= self._policy.tries
                    is_ping = often and retries.answered == self._answers
                    return _Attempt(server, now, server.breaker.enter(), is_ping)
                wake = self._wake(retries, now)
                self._clock.wait(self._changed, None if wake is None else wake - now)

    def _check_end(self, retries, now):
        """Raise what ends a question that waits."""
        if self._closed:
            raise PoolClosed("the pool of servers was closed")
        if all(server.out for server in self._servers):
            raise UserError("\n".join(server.out for server in self._servers))
        if self._is_refused(retries):
            raise list(retries.refused.values())[-1]
        if self._trouble is not None and now >= self._give_up(retries):
            reasons = [server.out or server.last for server in self._servers]
            waited = f"no server has answered for {self._patience:g} s; what was written is safe"
            raise Unreachable("\n".join([f"{waited}: run it again to go on", *reasons]))

    def _is_refused(self, retries):
        """Whether the question is given up: a server that counts refused it, and no other one can
        be asked now."""
        others = [s for s in self._servers if s not in retries.refused and not s.out]
        has_verdict = any(not s.out and not s.refusals.is_long for s in retries.refused)
        return has_verdict and not any(server.breaker.is_closed for server in others)

    def _give_up(self, retries):
        return max(self._trouble, retries.began) + self._patience

    def _choose(self, retries, now):
        """The least busy server that takes a question now; not the one where it failed last, if
        another does; of equals the one whose last turn is the longest ago."""
        if (
            now < retries.ready
            or sum(server.in_flight for server in self._servers) >= self._workers
        ):
            return None
        free = [s for s in self._servers if s.admits(now) and s not in retries.refused]
        return min(
            free,
            key=lambda s: (s is retries.server, s.in_flight / s.limit.n, s.turn),
            default=None,
        )

    def _wake(self, retries, now):
        """When the next change by time alone is due, or None."""
        times = [retries.ready, *(server.opens() for server in self._servers if not server.out)]
        if self._trouble is not None:
            times.append(self._give_up(retries))
        return min((time for time in times if time > now), default=None)

    def _leave(self, attempt, outcome, retries):
        """Record how an attempt ended. Returns warnings for the user, a list of texts."""
        server, news = attempt.server, []
        with self._changed:
            now = self._clock.now()
            server.in_flight -= 1
            if isinstance(outcome, (Answer, QuestionRefused)):
                self._answers += 1
                self._trouble = None
                if server.breaker.answered():
                    news.append(f"{server.name}: it answers again")
                if isinstance(outcome, Answer):
                    server.limit.answered()
                    server.refusals.answered()
                elif not attempt.is_ping:
                    retries.refused |= dict.fromkeys(self._refusers(server, outcome), outcome)
                    server.refusals.refused(outcome, retries.is_new)
            elif isinstance(outcome, TemporaryError):
                server.last = f"{server.name}: {outcome}"
                server.failures[outcome.kind] += 1
                if self._trouble is None:
                    self._trouble = attempt.began
                if outcome.overload:
                    server.limit.overloaded(attempt.began, now)
                if outcome.retry_after is not None:
                    pause = min(outcome.retry_after, self._policy.max_retry_after)
                    server.paused = max(server.paused, now + pause)
                if server.breaker.failed(now, attempt.is_probe):
                    news.append(f"{server.last}; it is not asked for a while")
                self._count(retries, server, outcome, now)
            else:
                server.breaker.left(attempt.is_probe)
                if isinstance(outcome, ServerUnusable):
                    news += self._take_out(server, outcome)
            if server.refusals.is_long and not server.in_flight:
                news += self._take_out(server, server.refusals)
            self._changed.notify_all()
        return news

    def _refusers(self, server, refusal):
        """The servers that refuse what one has refused: moderation is that of the address, all else
        may be a matter of the key."""
        if refusal.reason is not None:
            return [server]
        return [other for other in self._servers if other.address == server.address]

    def _take_out(self, server, why):
        """Ask a server no more; returns warnings."""
        if server.out:
            return []
        server.out = f"{server.name}: {why}"
        ends_run = all(other.out for other in self._servers)  # whose error says it
        return [] if ends_run else [f"{server.out}; it is not asked any more"]

    def _count(self, retries, server, outcome, now):
        """Note a failure of a question, and when it may be asked again: after a random time up to
        one that doubles, so that many do not come back together ("full jitter")."""
        if not outcome.is_of_server:
            retries.blamed += bool(retries.doubted) and retries.answered < self._answers
            retries.doubted += 1
        longest = self._policy.pause * 2 ** min(retries.failed, 30)
        pause = self._random.uniform(0, min(longest, self._policy.max_pause))
        retries.ready, retries.server = now + pause, server
        retries.failed, retries.answered = retries.failed + 1, self._answers


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
