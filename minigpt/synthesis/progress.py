"""Progress: the results of entries, counted from their progress lines, and shown.

counts = ProgressCounts(price_in=0.5, price_out=2.0)      # per million tokens, in any currency
counts.add(record)                              # a line of FILE.progress.jsonl
print(counts.line(left=400, in_flight=8))        # one line during the run
print(summary({"this run": counts, "in all": other}))
"""

import shutil
import sys
import threading
import time
from collections import Counter

from minigpt.common.report import duration, table
from minigpt.synthesis.filters import RULES

LINE_SECONDS = 30.0  # between two lines of progress where the output is not a terminal
REDRAW_SECONDS = 0.5  # where it is one


class ProgressCounts:
    """Counts of entries, pairs, tokens and broken rules.

    outcomes: Counter of "done", "rejected", "refused".  doubles: Counter of "exact" and "near".
    first, last: Counters of rules that first and last replies broke.  uncounted: answers of which
    the server reports no tokens.  judging: Counter of the judge's Usage.
    """

    def __init__(self, price_in=None, price_out=None):
        self._prices = price_in, price_out
        self.judging, self.uncounted = Counter(), 0
        self._began = time.monotonic()
        self.outcomes, self.doubles, self.first, self.last = (Counter() for _ in range(4))
        self.pairs = self.attempts = self.prompt_tokens = self.completion_tokens = self.cut = 0

    def add(self, record):
        """Count a progress line. A missing field (of a run that was killed) counts as 0."""
        self.outcomes[record["outcome"]] += 1
        self.pairs += record["pairs"]
        for name in ("attempts", "prompt_tokens", "completion_tokens"):
            setattr(self, name, getattr(self, name) + record.get(name, 0))
        for name in ("doubles", "first", "last"):
            getattr(self, name).update(record.get(name, {}))
        self.cut += "left_out" in record
        self.uncounted += record.get("uncounted", 0)
        self.judging.update(record.get("judging", {}))

    @property
    def entries(self):
        """How many are finished."""
        return self.outcomes.total()

    @property
    def success(self):
        """The share of the finished entries that gave enough pairs; 1.0 where there are none."""
        return self.outcomes["done"] / self.entries if self.entries else 1.0

    @property
    def cost(self):
        """What the counted tokens cost, those of the judge apart; None where no price is known."""
        return self._cost_of(self.prompt_tokens, self.completion_tokens)

    @property
    def judging_cost(self):
        """The same of the judge, at the same prices."""
        return self._cost_of(self.judging["prompt_tokens"], self.judging["completion_tokens"])

    def _cost_of(self, *tokens):
        if self._prices == (None, None):
            return None
        return sum(n * (price or 0) for n, price in zip(tokens, self._prices, strict=True)) / 1e6

    def line(self, total, left, in_flight):
        """The progress line of this run: of `total` entries `left` are not finished,
        `in_flight` are being asked."""
        seconds = time.monotonic() - self._began
        parts = [
            f"{total - left:,}/{total:,} entries",
            f"{duration(seconds / self.entries * left)} left" if self.entries else "",
            f"{self.pairs:,} pairs",
            f"{self.success:.0%} passed",
            f"{self.entries - self.outcomes['done']:,} rejected",
            f"{self.completion_tokens / max(seconds, 1e-9):,.0f} tok/s",
            f"{in_flight} in flight",
            "" if self.cost is None else f"cost {self.shown_cost()}",
        ]
        return " | ".join(filter(None, parts))

    def shown_cost(self):
        """The cost as text: "unknown" where the server reports no tokens."""
        return _shown(f"{self.cost:.2f}", self.uncounted, self.attempts)


def _shown(figure, uncounted, answers):
    """A figure from tokens, of which some answers report none."""
    if uncounted and uncounted >= answers:
        return "unknown"
    return f"{figure} + unknown" if uncounted else figure


def summary(columns):
    """The tables at the end; columns: {"this run": ProgressCounts, …}."""
    every = list(columns.values())

    def row(name, show):
        return [name, *map(show, every)]

    rows = [row("entries finished", lambda t: f"{t.entries:,}")]
    for outcome in ("done", "rejected", "refused"):
        rows.append(row(f"  {outcome}", lambda t, o=outcome: f"{t.outcomes[o]:,}"))
    rows += [
        row("pairs", lambda t: f"{t.pairs:,}"),
        row("duplicates left out, exact", lambda t: f"{t.doubles['exact']:,}"),
        row("duplicates left out, near", lambda t: f"{t.doubles['near']:,}"),
        row("answers", lambda t: f"{t.attempts:,}"),
        row("tokens read", lambda t: _shown(f"{t.prompt_tokens:,}", t.uncounted, t.attempts)),
        row(
            "tokens written", lambda t: _shown(f"{t.completion_tokens:,}", t.uncounted, t.attempts)
        ),
    ]
    if any(counts.uncounted for counts in every):
        rows.append(row("answers without a count of tokens", lambda t: f"{t.uncounted:,}"))
    if any(counts.cut for counts in every):
        rows.append(row("entries cut at text_max", lambda t: f"{t.cut:,}"))
    if any(counts.cost is not None for counts in every):
        rows.append(row("cost", lambda t: t.shown_cost()))
    if any(counts.judging["answers"] for counts in every):
        rows += _judging_rows(row, every)
    return table(["", *columns], rows) + "\n\n" + rules_table(every[-1])


def _judging_rows(row, every):
    """Rows of the table about the judge."""

    def figure(name, by=lambda n: f"{n:,}"):
        return lambda t: _shown(by(t.judging[name]), t.judging["uncounted"], t.judging["answers"])

    rows = [
        row("judge: answers", lambda t: f"{t.judging['answers']:,}"),
        row("judge: tokens read", figure("prompt_tokens")),
        row("judge: tokens written", figure("completion_tokens")),
    ]
    if any(counts.judging_cost is not None for counts in every):
        rows.append(
            row(
                "judge: cost at these prices",
                lambda t: figure("", lambda _: f"{t.judging_cost:.2f}")(t),
            )
        )
    return rows


def rules_table(counts):
    """How often each rule was broken in first and last replies, the worst first."""
    names = [name for name in RULES if counts.first[name] or counts.last[name]]
    names += sorted((counts.first.keys() | counts.last.keys()) - set(names))  # of other versions
    names.sort(key=lambda name: -counts.first[name])
    if not names:
        return "no rule was broken"
    rows = [[name, f"{counts.first[name]:,}", f"{counts.last[name]:,}"] for name in names]
    return table(["broken rule", "first replies", "last replies"], rows)


class ProgressLine:
    """A progress line on stderr: redrawn on a terminal, elsewhere printed again every
    LINE_SECONDS."""

    def __init__(self, stream=None):
        self._stream = stream or sys.stderr
        self._is_terminal = self._stream.isatty()
        self._lock = threading.Lock()  # other threads print warnings
        self._shown, self._next = 0, 0.0 if self._is_terminal else time.monotonic() + LINE_SECONDS

    def show(self, make):
        """Show make(), if it is time to."""
        if time.monotonic() < self._next:
            return
        self._next = time.monotonic() + (REDRAW_SECONDS if self._is_terminal else LINE_SECONDS)
        line = make()
        with self._lock:
            if self._is_terminal:
                line = line[: shutil.get_terminal_size().columns - 1]  # what wraps stays there
                print("\r" + line.ljust(self._shown), end="", file=self._stream, flush=True)
                self._shown = len(line)
            else:
                print(line, file=self._stream, flush=True)

    def say(self, text):
        """Print a message on lines of its own. Any thread may call it."""
        self.clear()
        with self._lock:
            print(text, file=self._stream, flush=True)

    def clear(self):
        """Leave the terminal's line empty for what is printed next."""
        with self._lock:
            if self._shown:
                print("\r" + " " * self._shown + "\r", end="", file=self._stream, flush=True)
                self._shown = 0
