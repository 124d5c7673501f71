"""A battle: two to four sides answer the same prompt at the same time, each on its own.

    names = choose_pair(["base", "sft", "teammate"], ledger.pair_counts(names), random.Random())
    battle = Battle("黄河发源于哪里？", {"temperature": 0.8}, sides, deadline_seconds=60)
    while not battle.ended:
        show(battle.snapshot())            # from any thread, as often as one likes
    battle.stop()                          # ends what still runs

A side is an object that serves this battle alone, with
    takes                          the names of the settings that it understands
    stream(messages, settings)     an iterator over pieces of its answer (str), which may block;
                                   messages: OpenAI's list of {"role": …, "content": …}
    close()                        called once, when the side has ended, by itself or from outside:
                                   from another thread, before, during or after stream(), which it
                                   ends, a blocking read too
    finish_reason, usage           after the stream, if it has them: why the text ended, and
                                   {"completion_tokens": …}
and whatever it does, it harms no other side: it may fail, wait, write or block for ever. No network
is known here, and no page.
"""

import codecs
import logging
import re
import threading
import time
from itertools import combinations
from typing import NamedTuple

from minigpt.common.errors import UserError

# What anyone may read of an end that is not the text's own, by its end reason: it tells nothing of
# who the side is.
MESSAGES = {
    "failed": "this answer broke off",
    "deadline": "this answer took too long",
    "stopped": "this answer was stopped",
}

_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")

log = logging.getLogger("minigpt")


def choose_pair(names, counts, rng, how="random"):
    """Two of `names`, in random order: any pair, or with how="least" one of those that have met
    least often.

    counts: frozenset of two names → how often they have met; what is absent is 0. rng: a
    random.Random. UserError where there are no two names.
    """
    pairs = list(combinations(names, 2))
    if not pairs:
        raise UserError(f"a battle needs two models, and there is {len(names)}: add another")
    if how == "least":
        fewest = min(counts.get(frozenset(pair), 0) for pair in pairs)
        pairs = [pair for pair in pairs if counts.get(frozenset(pair), 0) == fewest]
    return tuple(rng.sample(rng.choice(pairs), 2))


def common_settings(settings, sides):
    """(the settings that every side takes, the names of the others): what one side would not
    follow, no side gets."""
    left_out = [name for name in settings if not all(name in side.takes for side in sides)]
    return {name: settings[name] for name in settings if name not in left_out}, left_out


class SideState(NamedTuple):
    """How a side stands. `error` is for the log and for after the vote; `message` is for anyone."""

    text: str  # so far
    status: str  # "waiting", "writing", "done", "failed" or "stopped"
    first_token_seconds: float | None  # from the start of the battle
    elapsed: float  # seconds, to its end or to now
    pieces: int  # that were not empty
    tokens: int | None  # written; known at the end, if at all
    end_reason: str | None  # "too long", "failed", "deadline", "stopped" or the side's own
    error: str | None  # None: it runs, or is done
    message: str | None

    @property
    def tokens_per_second(self):
        """After the first; pieces stand for tokens where those are not known. None: too few, or all
        in one piece, which tells nothing of how they were written."""
        written = self.pieces if self.tokens is None else self.tokens
        if self.first_token_seconds is None or written < 2 or self.pieces < 2:
            return None
        seconds = self.elapsed - self.first_token_seconds
        return (written - 1) / seconds if seconds > 0 else None


class Battle:
    """See the module's docstring. It starts at once, with the settings that all sides take.

    deadline_seconds: how long a side may take in all. cap_chars: how long its text may get; what
    goes beyond is cut, and the side closed.
    """

    def __init__(self, prompt, settings, sides, deadline_seconds=120.0, cap_chars=20_000):
        self.prompt = prompt
        self.settings, self.left_out = common_settings(settings, sides)
        self._runners = [
            _Runner(side, prompt, self.settings, deadline_seconds, cap_chars) for side in sides
        ]
        for runner in self._runners:
            runner.start()

    def snapshot(self):
        """A SideState for each side, in their order."""
        return [runner.state() for runner in self._runners]

    @property
    def ended(self):
        """Whether all sides have ended: what snapshot() says no longer changes."""
        return all(runner.ended.is_set() for runner in self._runners)

    def wait(self, seconds):
        """Wait until all sides have ended, at most so long; returns whether they have."""
        until = time.monotonic() + seconds
        return all(r.ended.wait(max(0.0, until - time.monotonic())) for r in self._runners)

    def stop(self):
        """End the sides that still run. Returns at once, and harms nothing that has ended."""
        for runner in self._runners:
            runner.end("stopped", "stopped", "stopped before its end")


class Shown:
    """Text that comes in pieces, made fit to show: control characters other than line feed and tab
    are dropped, half a character becomes U+FFFD, and after `cap` characters it ends.

    However a text is cut into pieces, even within a surrogate pair, it becomes the same.
    """

    def __init__(self, cap):
        self.cap, self._parts, self._length = cap, [], 0
        self.overflowed = False  # there was more than `cap`
        self._decoder = codecs.getincrementaldecoder("utf-16-le")("replace")

    def __bool__(self):
        """Whether there is any text."""
        return self._length > 0

    @property
    def text(self):
        """The text so far."""
        return "".join(self._parts)

    def push(self, piece, final=False):
        """Add a piece; `final` says that no other follows."""
        whole = self._decoder.decode(piece.encode("utf-16-le", "surrogatepass"), final)
        text = _CONTROL.sub("", whole)
        room = self.cap - self._length
        self.overflowed |= len(text) > room
        self._parts.append(text[:room])
        self._length += len(self._parts[-1])


class _Runner:
    """A side, the thread that reads it, and the timer that ends it. The first end counts; what the
    side does afterwards is not seen."""

    def __init__(self, side, prompt, settings, deadline_seconds, cap_chars):
        self.ended = threading.Event()
        self._side, self._settings = side, settings
        self._messages = [{"role": "user", "content": prompt}]
        self._shown, self._lock = Shown(cap_chars), threading.Lock()
        self._status, self._pieces, self._tokens = "waiting", 0, None
        self._first = self._elapsed = self._end_reason = self._error = None
        self._reader = threading.Thread(target=self._read, name="side", daemon=True)
        late = "deadline", f"no end within {deadline_seconds:g} s"
        self._timer = threading.Timer(deadline_seconds, self.end, ("failed", *late))
        self._timer.daemon = True

    def start(self):
        self._began = time.monotonic()
        self._timer.start()
        self._reader.start()

    def state(self):
        with self._lock:
            return SideState(
                self._shown.text,
                self._status,
                self._first,
                self._now() if self._elapsed is None else self._elapsed,
                self._pieces,
                self._tokens,
                self._end_reason,
                self._error,
                None if self._error is None else MESSAGES[self._end_reason],
            )

    def end(self, status, reason, error=None, tokens=None):
        """End the side, unless it has ended, and close it. Returns at once."""
        with self._lock:
            if self.ended.is_set():
                return
            self._shown.push("", final=True)
            self._status, self._end_reason, self._error = status, reason, error
            self._tokens, self._elapsed = tokens, self._now()
            self.ended.set()
        self._timer.cancel()
        # In a thread of its own: closing may block too.
        threading.Thread(target=self._close, name="closing", daemon=True).start()

    def _now(self):
        return time.monotonic() - self._began

    def _read(self):
        try:
            for piece in self._side.stream(self._messages, dict(self._settings)):
                if not self._add(piece):
                    return
            tokens = (getattr(self._side, "usage", None) or {}).get("completion_tokens")
            reason = getattr(self._side, "finish_reason", None) or "stop"
            self.end("done", reason, tokens=tokens)
        except Exception as error:  # whatever a side does is that side's own affair
            self.end("failed", "failed", f"{type(error).__name__}: {error}")

    def _add(self, piece):
        """Take a piece in; returns whether the side may go on."""
        with self._lock:
            if self.ended.is_set():
                return False
            self._shown.push(piece)
            self._pieces += piece != ""
            if self._first is None and self._shown:
                self._first, self._status = self._now(), "writing"
        if self._shown.overflowed:
            self.end("done", "too long")
        return not self._shown.overflowed

    def _close(self):
        try:
            self._side.close()
        except Exception as error:
            log.info(f"a side would not close: {type(error).__name__}: {error}")
