"""Progress: the statistics of a run, and the lines that print them."""

import io

import pytest

from minigpt.common.report import duration
from minigpt.synthesis.progress import ProgressCounts, ProgressLine, rules_table, summary


def record(outcome="done", pairs=4, **about):
    return dict(entry="0", generation="g", outcome=outcome, pairs=pairs, **about)


def test_what_lines_of_progress_add_up_to():
    tally = ProgressCounts(price_in=2.0, price_out=10.0)
    first, last = {"pronoun": 2, "too few": 1}, {"pronoun": 1}
    tally.add(record(attempts=2, prompt_tokens=900, completion_tokens=300, first=first, last=last))
    tally.add(record("rejected", 0, attempts=3, prompt_tokens=100, first={"pronoun": 1}))
    tally.add(record("refused", 0, left_out=70))
    tally.add(record("done", 2, doubles={"exact": 1, "near": 2}))
    tally.add(record("done", 3))  # what the log knows of an entry whose line was lost
    assert (tally.entries, tally.pairs, tally.attempts, tally.cut) == (5, 9, 5, 1)
    assert tally.outcomes == {"done": 3, "rejected": 1, "refused": 1}
    assert tally.first == {"pronoun": 3, "too few": 1} and tally.last == {"pronoun": 1}
    assert tally.doubles == {"exact": 1, "near": 2} and tally.success == 0.6
    assert tally.cost == pytest.approx((1000 * 2 + 300 * 10) / 1e6)


def test_nothing_yet():
    assert ProgressCounts().success == 1.0 and ProgressCounts().cost is None
    assert ProgressCounts(price_out=3.0).cost == 0.0
    assert "0/10 entries | 0 pairs" in ProgressCounts().line(
        10, 10, 2
    ) and "left" not in ProgressCounts().line(9, 9, 0)


def test_the_line_tells_the_time_left_by_the_pace(monkeypatch):
    clock = iter([100.0, 160.0])
    monkeypatch.setattr("minigpt.synthesis.progress.time.monotonic", lambda: next(clock))
    tally = ProgressCounts(price_in=1.0)
    for outcome in ("done", "done", "done", "rejected"):
        tally.add(record(outcome, completion_tokens=150, prompt_tokens=500_000))
    # 4 entries and 600 tokens in a minute; 20 of them are left
    assert tally.line(30, 20, 3) == (
        "10/30 entries | 5m 00s left | 16 pairs | 75% passed | 1 rejected | 10 tok/s | 3 in flight"
        " | cost 2.00"
    )


def test_the_tables_at_the_end():
    now, in_all = ProgressCounts(), ProgressCounts()
    for tally in (now, in_all, in_all):
        tally.add(record(first={"pronoun": 2, "own rule": 5}, last={"pronoun": 1}, left_out=3))
    text = summary({"this run": now, "in all": in_all})
    rows = {
        line.rsplit(None, 2)[0].strip(): line.split()[-2:] for line in text.splitlines() if line
    }
    assert rows["entries finished"] == ["1", "2"] and rows["pairs"] == ["4", "8"]
    assert rows["entries cut at text_max"] == ["1", "2"] and "cost" not in text
    assert rows["own rule"] == ["10", "0"] and rows["pronoun"] == ["4", "2"]
    assert text.index("own rule") < text.index("pronoun")  # the worst first
    assert rules_table(ProgressCounts()) == "no rule was broken"


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [(0.9, "0s"), (59, "59s"), (60, "1m 00s"), (3599, "59m 59s"), (12000, "3h 20m")]
    + [(86399, "23h 59m"), (187200, "2d 04h")],
)
def test_durations(seconds, shown):
    assert duration(seconds) == shown


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_a_terminal_shows_one_line(monkeypatch):
    now = [0.0]
    monkeypatch.setattr("minigpt.synthesis.progress.time.monotonic", lambda: now[0])
    monkeypatch.setenv("COLUMNS", "20")
    line = ProgressLine(Terminal())
    line.show(lambda: "a" * 30)
    line.show(lambda: "too soon")
    now[0] = 0.6
    line.show(lambda: "short")
    line.say("news")
    assert line._stream.getvalue() == (
        "\r" + "a" * 19 + "\rshort" + " " * 14 + "\r" + " " * 5 + "\rnews\n"
    )


def test_a_file_gets_a_line_now_and_then(monkeypatch):
    now = [0.0]
    monkeypatch.setattr("minigpt.synthesis.progress.time.monotonic", lambda: now[0])
    line = ProgressLine(io.StringIO())
    for second in range(65):
        now[0] = float(second)
        line.show(lambda second=second: f"after {second}")
    assert line._stream.getvalue() == "after 30\nafter 60\n"
