"""Progress of long loops, at a terminal and in a pipe."""

import io
import sys

import pytest

from minigpt.common import report
from minigpt.common.report import progress


@pytest.fixture
def clock(monkeypatch):
    """clock(seconds): time.monotonic() advances by so much with each item from now on."""
    now = [0.0]
    monkeypatch.setattr(report.time, "monotonic", lambda: now[0])

    def advance(seconds):
        now[0] += seconds

    return advance


def lines_of(capsys):
    return capsys.readouterr().err.splitlines()


def test_in_a_pipe_each_tenth_has_a_line(capsys, clock):
    with progress(50, "texts") as advance:
        for _ in range(50):
            clock(2)
            advance()
    lines = lines_of(capsys)
    assert lines[0] == "texts: 5 of 50, 10s, 1m 30s left"
    assert lines[1:-1] == [
        f"texts: {n} of 50, {report.duration(2 * n)}, {report.duration(100 - 2 * n)} left"
        for n in range(10, 50, 5)
    ]
    assert lines[-1] == "texts: 50 of 50, 1m 40s"


def test_a_fast_loop_has_a_line_a_second_at_most_and_one_at_the_end(capsys, clock):
    with progress(1000, "texts") as advance:
        for _ in range(1000):
            clock(0.002)
            advance()
    assert [line.split(",")[0] for line in lines_of(capsys)] == [
        "texts: 100 of 1",
        "texts: 600 of 1",
        "texts: 1",
    ]


def test_a_terminal_has_a_bar(monkeypatch):
    terminal = io.StringIO()
    terminal.isatty = lambda: True
    monkeypatch.setattr(sys, "stderr", terminal)
    with progress(3, "texts") as advance:
        for _ in range(3):
            advance()
    assert "texts:" in terminal.getvalue() and "\r" in terminal.getvalue()
    assert " of 3" not in terminal.getvalue()
