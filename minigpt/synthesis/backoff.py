"""How hard a server is asked: how many questions at a time, how long it is not asked at all, and
how long a question waits before it is asked again. Times are seconds of a monotonic clock."""

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class RetryPolicy:
    """When failed questions are asked again. Pauses are in seconds."""

    pause: float = 0.5  # before a question is asked again, at most; doubles with each failure
    max_pause: float = 60.0
    max_retry_after: float = 300.0  # what a server can ask for
    down_after: int = 5  # failures in a row, after which a server is not asked
    down: float = 1.0  # for so long; doubles each time it still fails
    max_down: float = 60.0
    tries: int = 10  # of one question, while others are answered
    refusals: int = 10  # in a row for one reason, after which a server is out


class ConcurrencyLimit:
    """How many questions a server may have at a time, between 1 and `most`: one more after as many
    answers as that, half as many when it is overloaded (AIMD)."""

    def __init__(self, start, most):
        self.n, self._most = min(start, most), most
        self._answers, self._halved = 0, -math.inf

    def answered(self):
        """A question was answered."""
        self._answers += 1
        if self._answers >= self.n:
            self.n, self._answers = min(self.n + 1, self._most), 0

    def overloaded(self, began, now):
        """A question that was sent at `began` was too much. One that was on its way before the last
        halving says nothing about the limit since: so it halves at most once a round trip."""
        if began > self._halved:
            self.n, self._answers, self._halved = max(1, self.n // 2), 0, now


class CircuitBreaker:
    """Whether a server is asked. Closed, it is; after so many failures in a row it is open
    for a while; then it is half open: one question goes through, the probe. An answer closes it, a
    failed probe opens it again, for twice as long."""

    def __init__(self, policy):
        self._policy = policy
        self._failures = self._times = 0  # in a row; how often it was opened since an answer
        self.until, self.is_probing = None, False  # open until then, at least; None: closed

    @property
    def is_closed(self):
        """Whether questions go through as they come."""
        return self.until is None

    def admits(self, now):
        """Whether a question may go through."""
        return self.is_closed or (now >= self.until and not self.is_probing)

    def enter(self):
        """A question goes through. Returns whether it is the probe."""
        self.is_probing = not self.is_closed
        return self.is_probing

    def answered(self):
        """A question was answered. Returns whether that closes it."""
        closes = not self.is_closed
        self._failures = self._times = 0
        self.until, self.is_probing = None, False
        return closes

    def failed(self, now, is_probe):
        """A question has failed. Returns whether that opens it, having been closed."""
        self._failures += 1
        is_enough = self._failures >= self._policy.down_after
        opens = is_enough if self.is_closed else is_probe  # what was sent before changes nothing
        self.left(is_probe)
        if opens:
            pause = self._policy.down * 2 ** min(self._times, 30)
            self.until = now + min(pause, self._policy.max_down)
            self._times += 1
        return opens and self._times == 1

    def left(self, is_probe):
        """A question has ended, whatever that says."""
        if is_probe:
            self.is_probing = False


class RefusalStreak:
    """The refusals in a row of a server: so many for one reason are no matter of the questions.
    str(): why the server is out, with what may help."""

    def __init__(self, policy):
        self._most, self._n, self._last = policy.refusals, 0, None

    @property
    def is_long(self):
        """Whether there are too many."""
        return self._n >= self._most

    def answered(self):
        """A question was answered."""
        self._n = 0

    def refused(self, refusal, is_new=True):
        """A question was refused. is_new: not by an earlier run as well."""
        if not is_new or refusal.reason is None:
            return
        is_same = self._n > 0 and refusal.reason == self._last.reason
        self._n, self._last = self._n + 1 if is_same else 1, refusal

    def __str__(self):
        said = str(self._last).partition(": ")[2]
        remedy = f"; {self._last.remedy}" if self._last.remedy else ""
        return f"it refused {self._n} questions in a row for one reason ({said}{remedy})"
