"""Loss curves as SVG: it follows the page's colours and grows with the page.

svg = curves_svg([Curve("pretrain", 0, train=[(1, 9.1), …], val=[(250, 5.2), …])], "steps")
"""

import math
from html import escape
from typing import NamedTuple

import numpy as np

WIDTH, HEIGHT = 520, 290  # of the picture, in its own units
LEFT, RIGHT, TOP, BOTTOM = 40, 10, 10, 34
MAX_POINTS = 300  # of a line
COLORS = ("#2563eb", "#ea580c", "#16a34a", "#db2777", "#9333ea", "#0891b2", "#a16207", "#64748b")

CSS = """
.curves { max-width: 760px; }
.curves svg { width: 100%; height: auto; display: block; }
.curves text { font: 11px system-ui, sans-serif; fill: var(--body-text-color-subdued); }
.curves .grid { stroke: var(--border-color-primary); stroke-width: 1; }
@media (max-width: 640px) { .curves text { font-size: 17px; } }
.curves polyline { fill: none; stroke-linejoin: round; }
.curves .train { stroke-width: 1.5; opacity: .75; }
.curves .val { stroke-width: 1.6; stroke-dasharray: 4 3; }
.runs-legend { display: flex; flex-wrap: wrap; gap: 4px 16px; color: var(--body-text-color); }
.runs-legend i { display: inline-block; width: 14px; height: 4px; border-radius: 2px;
  margin-right: 6px; vertical-align: middle; }
"""


class Curve(NamedTuple):
    """The losses of a run: train (n, 2) and val (m, 2), arrays of x and loss; NaN is left out.
    color: an index into COLORS."""

    color: int
    train: np.ndarray
    val: np.ndarray


def curves_svg(curves, x_label):
    """The picture of several Curves; "" if they have no point."""
    lines = [(curve, _means(curve.train), _means(curve.val)) for curve in curves]
    points = np.concatenate([line for _, *both in lines for line in both] or [np.empty((0, 2))])
    if not len(points):
        return ""
    x_ticks = ticks(min(0.0, points[:, 0].min()), points[:, 0].max())
    y_ticks = ticks(points[:, 1].min(), points[:, 1].max())
    frame = _Frame(x_ticks[0], max(x_ticks[-1], points[:, 0].max()), y_ticks[0], y_ticks[-1])
    parts = [_grid(frame, x_ticks, y_ticks, x_label)]
    for curve, train, val in lines:
        color = COLORS[curve.color % len(COLORS)]
        for kind, line in (("train", train), ("val", val)):
            path = " ".join(f"{frame.x(x):.1f},{frame.y(y):.1f}" for x, y in line)
            parts.append(f'<polyline class="{kind}" stroke="{color}" points="{path}"/>')
        dots = (f'<circle cx="{frame.x(x):.1f}" cy="{frame.y(y):.1f}" r="2.4"/>' for x, y in val)
        parts.append(f'<g fill="{color}">{"".join(dots)}</g>')
    size = f'viewBox="0 0 {WIDTH} {HEIGHT}" role="img"'
    return f'<div class="curves"><svg {size}>{"".join(parts)}</svg></div>'


class _Frame(NamedTuple):
    """The ranges of the axes."""

    x_low: float
    x_high: float
    y_low: float
    y_high: float

    def x(self, value):
        share = (value - self.x_low) / ((self.x_high - self.x_low) or 1)
        return LEFT + share * (WIDTH - LEFT - RIGHT)

    def y(self, value):
        share = (value - self.y_low) / ((self.y_high - self.y_low) or 1)
        return HEIGHT - BOTTOM - share * (HEIGHT - TOP - BOTTOM)


def _grid(frame, x_ticks, y_ticks, x_label):
    parts = []
    for tick in y_ticks:
        y = frame.y(tick)
        parts.append(f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y}" y2="{y}"/>')
        parts.append(f'<text x="{LEFT - 5}" y="{y + 4}" text-anchor="end">{tick:g}</text>')
    for tick in x_ticks:
        place = f'x="{frame.x(tick)}" y="{HEIGHT - BOTTOM + 14}"'
        parts.append(f'<text {place} text-anchor="middle">{_count(tick)}</text>')
    place = f'x="{WIDTH - RIGHT}" y="{HEIGHT - 4}" text-anchor="end"'
    parts.append(f"<text {place}>{escape(x_label)}</text>")
    return "".join(parts)


def ticks(low, high, n=5):
    """About n round numbers, 1, 2 or 5 times a power of ten apart: the first is at most `low`, the
    last at least `high`."""
    span = (high - low) or abs(high) or 1.0
    power = 10.0 ** math.floor(math.log10(span / n))
    step = next(m * power for m in (1, 2, 5, 10) if m * power * n >= span)
    first, last = math.floor(low / step), math.ceil(high / step)
    return [round(i * step, 12) for i in range(first, max(last, first + 1) + 1)]


def _means(points):
    """At most MAX_POINTS points (n, 2): the mean of each stretch of a longer line. What is not
    finite is left out."""
    points = np.asarray(points, np.float64).reshape(-1, 2)
    points = points[np.isfinite(points).all(axis=1)]
    if len(points) <= MAX_POINTS:
        return points
    return np.stack([part.mean(axis=0) for part in np.array_split(points, MAX_POINTS)])


def _count(value):
    for size, letter in ((1e9, "B"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= size:
            return f"{value / size:g}{letter}"
    return f"{value:g}"
