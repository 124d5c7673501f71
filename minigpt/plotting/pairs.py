"""The picture of sft/sft_report.py: what is in a file of question–answer pairs."""

import numpy as np
from matplotlib.ticker import FuncFormatter, MaxNLocator

from minigpt.plotting.fonts import drawable, shorten
from minigpt.plotting.style import (
    PALETTE,
    format_count,
    new_figure,
    set_panel_title,
    set_title,
    styled,
)

SIZE = (9.0, 6.4)  # inches
MOST_BARS = 12  # of the panel whose labels are text
COUNTS = FuncFormatter(lambda value, _: format_count(value))


def pairs_figure(name, questions, answers, per_entry, rules=()):
    """A Figure of the pairs in the file `name`.

    questions, answers: length in characters → pairs
    per_entry:          number of pairs → entries that have so many
    rules:              [(rule, first replies that broke it), …], greatest first
    Returns (figure, notes) as loss_figure() does. Bars have gids "questions", "answers",
    "per_entry", "rules"; a panel without data is left out.
    """
    n_pairs = sum(questions.values())
    (name,), families, notes = drawable([name])
    with styled(families):
        figure = new_figure(SIZE)
        set_title(figure, f"{name}: {n_pairs:,} pairs")
        grid = figure.subplots(2, 2)
        _length_histogram(grid[0, 0], questions, "questions", PALETTE[0])
        _length_histogram(grid[0, 1], answers, "answers", PALETTE[1])
        _per_entry_bars(grid[1, 0], per_entry)
        _rule_bars(grid[1, 1], list(rules)[:MOST_BARS])
    return figure, notes


def _length_histogram(axes, lengths, gid, color):
    """Pairs by length, in at most 40 bars of equal width; the last one holds the longest 1 %."""
    total, cumulated, limit = sum(lengths.values()), 0, 1
    for limit in sorted(lengths):
        cumulated += lengths[limit]
        if cumulated >= 0.99 * total:
            break
    width = -(-limit // 40)
    heights = np.zeros(limit // width + 1)
    for length, n in lengths.items():
        heights[min(length, limit) // width] += n
    centers = (np.arange(len(heights)) + 0.5) * width - 0.5
    axes.bar(centers, heights, width * 0.92, color=color, gid=gid)
    more = " (last bar: more)" if max(lengths, default=0) > limit else ""
    set_panel_title(axes, f"characters of {gid}{more}")
    axes.yaxis.set_major_formatter(COUNTS)


def _per_entry_bars(axes, counts):
    if not counts:
        axes.remove()
        return
    ns = sorted(counts)
    axes.bar(ns, [counts[n] for n in ns], 0.85, color=PALETTE[5], gid="per_entry")
    set_panel_title(axes, "entries by their number of pairs")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.yaxis.set_major_formatter(COUNTS)


def _rule_bars(axes, rules):
    """Horizontal bars, the greatest at the top, each with its label."""
    if not rules:
        axes.remove()
        return
    axes.barh(range(len(rules)), [n for _, n in rules], 0.78, color=PALETTE[4], gid="rules")
    axes.set_yticks(range(len(rules)), [shorten(rule) for rule, _ in rules])
    axes.invert_yaxis()
    axes.tick_params(axis="y", length=0)
    axes.grid(False, axis="y")
    axes.xaxis.set_major_locator(MaxNLocator(4))
    axes.xaxis.set_major_formatter(COUNTS)
    set_panel_title(axes, "rules that first replies broke")
