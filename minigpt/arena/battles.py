"""A battle: one to four sides answer the same conversation at the same time, independently. (The
chat is a battle with one side.)

    names = choose_pair(["base", "sft", "teammate"], ledger.pair_counts(names), random.Random())
    messages = [{"role": "user", "content": "黄河发源于哪里？"}]
    battle = Battle(messages, {"temperature": 0.8}, sides, deadline_seconds=60)
    while not battle.ended:
        show(battle.snapshot())            # from any thread, at any time
    battle.stop()                          # stops the sides that still run

A side is an object that is used by this battle only, with
    takes                          the names of the settings that it supports
    stream(messages, settings)     an iterator over chunks of its answer (str), which may block;
                                   messages: OpenAI's list of {"role": …, "content": …}
    close()                        called once, when the side has ended or is stopped: from another
                                   thread, before, during or after stream(). It ends stream(), even
                                   one that blocks in a read
    thoughts, refusal              if it has them, so far: what the model wrote before its answer,
                                   and what it wrote instead of one
    finish_reason, usage           after the stream, if it has them: why the text ended, and
                                   {"completion_tokens": …}
    again()                        another side of the same model. It is called if a side of the
                                   battle raises SettingRefused
A side may fail, wait, write or block for ever: no other side is affected. This module uses neither
the network nor the page.
"""

import logging
import re
import threading
import time
from itertools import combinations
from typing import NamedTuple

from minigpt.arena.i18n import ArenaError
from minigpt.common.text import SurrogateJoiner

# Public messages by end reason, for a side that did not end by itself. They do not reveal who the
# side is.
MESSAGES = {
    "failed": "this answer was interrupted",
    "deadline": "this answer took too long",
    "stopped": "this answer was stopped",
}

# Why a text ended, if a filter ended it: OpenAI's word and those of other providers.
FILTERED = ("content_filter", "sensitive", "content_filtered", "safety", "SAFETY")

_CONTROL = re.compile(r"[\ufffd\x00-\x08\x0b-\x1f\x7f-\x9f]")

log = logging.getLogger("minigpt")


def choose_pair(names, counts, rng, pairing="random"):
    """Two of `names`, in random order: any pair, or with pairing="least" one of the pairs that have
    met least often.

    counts: frozenset of two names → how often they have met (0 if absent). rng: a random.Random.
    UserError if there are fewer than two names.
    """
    pairs = list(combinations(names, 2))
    if not pairs:
        raise ArenaError("few_models", n=len(names))
    if pairing == "least":
        fewest = min(counts.get(frozenset(pair), 0) for pair in pairs)
        pairs = [pair for pair in pairs if counts.get(frozenset(pair), 0) == fewest]
    return tuple(rng.sample(rng.choice(pairs), 2))


def common_settings(settings, sides):
    """(the settings that all sides support, the names of the others): a setting that one side does
    not support is given to no side."""
    unsupported = [name for name in settings if not all(name in side.takes for side in sides)]
    return {name: settings[name] for name in settings if name not in unsupported}, unsupported


class SettingRefused(Exception):
    """A side's model refuses the setting `name`, before it has written anything. The battle begins
    again without it, for all sides: answers are compared that have the same settings."""

    def __init__(self, name):
        super().__init__(name)
        self.name = name


class SideState(NamedTuple):
    """The state of a side. `error` is for the log and for after the vote; `message` is public."""

    text: str  # so far
    status: str  # "waiting", "writing", "done", "failed" or "stopped"
    first_token_seconds: float | None  # from the start of the battle
    elapsed: float  # seconds, to its end or to now
    chunks: int  # not counting empty ones
    tokens: int | None  # generated; known at the end, if at all
    end_reason: str | None  # "too long", "failed", "deadline", "stopped" or its finish_reason
    error: str | None  # None: it is running or done
    message: str | None
    thoughts: str = ""  # before the answer: no part of it
    refusal: str = ""  # instead of an answer

    @property
    def answered(self):
        """Whether there is an answer to vote on."""
        return self.status == "done" and bool(self.text.strip())

    @property
    def blank_reason(self):
        """Why a side that ended by itself has no answer, as the key of a string
        (minigpt.arena.i18n); None if it has one, or did not end by itself."""
        if self.status != "done" or self.answered:
            return None
        if self.refusal.strip():
            return "blank_refusal"
        if self.end_reason in FILTERED:
            return "blank_filtered"
        if self.end_reason in ("tool_calls", "function_call"):
            return "blank_tool_calls"
        return "blank_thoughts" if self.thoughts.strip() else "blank_empty"

    @property
    def tokens_per_second(self):
        """Tokens per second after the first token; chunks are counted if the number of tokens of
        the answer is unknown. None: too few tokens, or all in one chunk, which says nothing about
        the speed."""
        # The number of tokens includes the thoughts, which are before the first token.
        n_tokens = self.chunks if self.tokens is None or self.thoughts else self.tokens
        if self.first_token_seconds is None or n_tokens < 2 or self.chunks < 2:
            return None
        seconds = self.elapsed - self.first_token_seconds
        return (n_tokens - 1) / seconds if seconds > 0 else None


class Battle:
    """See the module's docstring. It starts at once, with the settings that all sides support.

    messages: the conversation, whose last message is the question. deadline_seconds: total time of
    a side. max_chars: of a side's text; a longer text is cut, and the side is closed.
    settings, unsupported: those that the answers have, and the names of those that they lack
    because a side does not support them. Both change when a side refuses a setting.
    """

    def __init__(self, messages, settings, sides, deadline_seconds=120.0, max_chars=20_000):
        self.settings, self.unsupported = common_settings(settings, sides)
        self._messages, self._limits = messages, (deadline_seconds, max_chars)
        self._lock = threading.Lock()  # of _runners, which a refused setting replaces
        self._runners = [self._runner(side) for side in sides]
        for runner in self._runners:
            runner.start()

    def _runner(self, side):
        return _Runner(side, self._messages, self.settings, *self._limits, self._leave_out)

    def _leave_out(self, refusing, name):
        """The side of the runner `refusing` refuses a setting: begin again without it. Sides that
        have failed stay as they are."""
        with self._lock:
            if not refusing.end("failed", "failed", f"it refuses the setting {name}"):
                return  # it was stopped meanwhile, or another side has refused a setting
            if name not in self.settings:
                return  # it would be refused again and again
            self.settings = {key: self.settings[key] for key in self.settings if key != name}
            self.unsupported = [*self.unsupported, name]
            before, self._runners = self._runners, []
            for runner in before:
                goes_on = runner is refusing or not runner.has_failed
                self._runners.append(self._runner(runner.side.again()) if goes_on else runner)
            for old, new in zip(before, self._runners, strict=True):
                if old is not new:
                    old.end("stopped", "stopped", name)
                    new.start()

    def snapshot(self):
        """A SideState for each side, in their order."""
        with self._lock:
            return [runner.state() for runner in self._runners]

    @property
    def ended(self):
        """Whether all sides have ended; then snapshot() no longer changes."""
        with self._lock:
            return all(runner.ended.is_set() for runner in self._runners)

    def wait(self, seconds):
        """Wait until all sides have ended, for at most `seconds` (None: for ever); returns whether
        they have. Each side has a deadline, so they do end."""
        until = None if seconds is None else time.monotonic() + seconds
        while not self.ended:
            with self._lock:
                running = next((r for r in self._runners if not r.ended.is_set()), None)
            left = None if until is None else max(0.0, until - time.monotonic())
            if running and not running.ended.wait(left):
                return False
        return True

    def stop(self):
        """Stop the sides that still run. Returns at once; sides that have ended do not change."""
        with self._lock:
            for runner in self._runners:
                runner.end("stopped", "stopped", "stopped before its end")


class DisplayText:
    """A text that arrives in chunks, cleaned for display: control characters other than line feed
    and tab and half characters are removed, and only `max_chars` characters are kept.

    The result does not depend on where the text is cut, not even within a surrogate pair.
    """

    def __init__(self, max_chars):
        self.max_chars, self._parts, self._length = max_chars, [], 0
        self.overflowed = False  # there were more than `max_chars`
        self._joiner = SurrogateJoiner()

    def __bool__(self):
        """Whether there is any text."""
        return self._length > 0

    @property
    def text(self):
        """The text so far."""
        return "".join(self._parts)

    def push(self, chunk, final=False):
        """Add a chunk; final: it is the last one."""
        text = _CONTROL.sub("", self._joiner.push(chunk, final))
        room = self.max_chars - self._length
        self.overflowed |= len(text) > room
        self._parts.append(text[:room])
        self._length += len(self._parts[-1])


class _Runner:
    """A side, the thread that reads it and the timer that ends it. Only the first end counts: what
    the side does afterwards is ignored. on_refusal(runner, name): called if the side refuses a
    setting; it ends the runner."""

    def __init__(self, side, messages, settings, deadline_seconds, max_chars, on_refusal):
        self.ended = threading.Event()
        self.side, self._settings, self._on_refusal = side, settings, on_refusal
        self._messages = [dict(message) for message in messages]
        self._max_chars = max_chars
        self._text, self._lock = DisplayText(max_chars), threading.Lock()
        self._status, self._chunks, self._tokens = "waiting", 0, None
        self._first_token_seconds = self._elapsed = self._end_reason = self._error = None
        self._reader = threading.Thread(target=self._read, name="side", daemon=True)
        timeout = ("failed", "deadline", f"no end within {deadline_seconds:g} s")
        self._timer = threading.Timer(deadline_seconds, self.end, timeout)
        self._timer.daemon = True
        self._began = time.monotonic()

    @property
    def has_failed(self):
        """Whether it has ended without an answer of its own."""
        return self.ended.is_set() and self._status != "done"

    def start(self):
        self._began = time.monotonic()
        self._timer.start()
        self._reader.start()

    def state(self):
        with self._lock:
            return SideState(
                text=self._text.text,
                status=self._status,
                first_token_seconds=self._first_token_seconds,
                elapsed=self._now() if self._elapsed is None else self._elapsed,
                chunks=self._chunks,
                tokens=self._tokens,
                end_reason=self._end_reason,
                error=self._error,
                message=None if self._error is None else MESSAGES[self._end_reason],
                thoughts=self._extra("thoughts"),
                refusal=self._extra("refusal"),
            )

    def _extra(self, name):
        """One of the side's optional texts, cleaned for display."""
        return _CONTROL.sub("", getattr(self.side, name, "")[: self._max_chars])

    def end(self, status, reason, error=None, tokens=None):
        """End the side and close it, unless it has ended already; returns whether it had not.
        Returns at once."""
        with self._lock:
            if self.ended.is_set():
                return False
            self._text.push("", final=True)
            self._status, self._end_reason, self._error = status, reason, error
            self._tokens, self._elapsed = tokens, self._now()
            self.ended.set()
        self._timer.cancel()
        # In its own thread, because closing may block too.
        threading.Thread(target=self._close, name="closing", daemon=True).start()
        return True

    def _now(self):
        return time.monotonic() - self._began

    def _read(self):
        try:
            for chunk in self.side.stream(self._messages, dict(self._settings)):
                if not self._add(chunk):
                    return
            tokens = (getattr(self.side, "usage", None) or {}).get("completion_tokens")
            reason = getattr(self.side, "finish_reason", None) or "stop"
            self.end("done", reason, tokens=tokens)
        except SettingRefused as refused:
            self._on_refusal(self, refused.name)
        except Exception as error:  # of any kind: it must not affect the other sides
            reason = getattr(error, "message", None) or f"{type(error).__name__}: {error}"
            self.end("failed", "failed", reason)

    def _add(self, chunk):
        """Add a chunk; returns whether the side may continue."""
        with self._lock:
            if self.ended.is_set():
                return False
            self._text.push(chunk)
            self._chunks += chunk != ""
            if self._first_token_seconds is None and self._text:
                self._first_token_seconds, self._status = self._now(), "writing"
        if self._text.overflowed:
            self.end("done", "too long")
        return not self._text.overflowed

    def _close(self):
        try:
            self.side.close()
        except Exception as error:
            log.info(f"a side could not be closed: {type(error).__name__}: {error}")
