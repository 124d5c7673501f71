"""The picture of tools/evaluations-repetition.py: measurements over a grid of settings."""

import math

import numpy as np

from minigpt.plotting.fonts import drawable
from minigpt.plotting.style import (
    PALETTE,
    TEXT_COLOR,
    WIDTH,
    new_figure,
    set_panel_title,
    set_title,
    styled,
)


def grid_figure(name, title, axes, panels, top=None, references=None):
    """A Figure of measurements of the run `name` over a grid of one or two settings.

    axes:   setting → its values, for one setting or two
    panels: heading → measurements, lists or arrays with an entry for each combination. One
            setting: a line per panel. Two: a heat map per panel, the first setting is its rows.
    top:    the upper end of the scale; None takes the highest value
    references: heading → a value to compare a line with, drawn as a dashed line
    Returns (figure, notes) as loss_figure() does. Lines and maps have gids "grid:HEADING".
    """
    (name,), families, notes = drawable([name])
    title = f"{name}\n{title}"
    panels = {heading: np.asarray(values, float) for heading, values in panels.items()}
    highest = max(values.max() for values in panels.values()) or 1.0
    with styled(families):
        if len(axes) == 1:
            figure = _lines(*axes.items(), panels, top or highest, references or {})
        else:
            figure = _heat_maps(*axes.items(), panels, top or highest)
        set_title(figure, title)
    return figure, notes


def _lines(setting, panels, top, references):
    name, values = setting
    figure = new_figure((WIDTH, 4.2))
    axes = figure.subplots()
    xs, order = np.asarray(values, float), np.argsort(values)
    labels = [f"{value:g}" for value in values]
    if name == "top_k":  # 1, 5, 50 …; 0 means all tokens, so it is the largest
        order = np.argsort([value or math.inf for value in values])
        labels = [label if label != "0" else "0 (all)" for label in labels]
        xs = np.argsort(order).astype(float)  # evenly spaced
    for (heading, measured), color in zip(panels.items(), PALETTE, strict=False):
        line = dict(color=color, marker="o", markersize=4, linewidth=1.6, clip_on=False)
        axes.plot(xs[order], measured[order], label=heading, gid=f"grid:{heading}", **line)
        if heading in references:
            axes.axhline(references[heading], color=color, linewidth=1, linestyle="--")
    axes.set_ylim(0, 1.04 * top)
    axes.set_xlabel(name)
    axes.set_xticks(xs, labels)
    figure.legend(loc="outside lower center", ncols=3, handlelength=1.6)
    return figure


def _heat_maps(rows, columns, panels, top):
    row_name, row_values = rows
    column_name, column_values = columns
    n_across = min(3, len(panels))
    n_down = -(-len(panels) // n_across)
    cell = 0.72  # inches
    width = n_across * (cell * len(column_values) + 1.1) + 0.4
    height = n_down * (0.62 * cell * len(row_values) + 1.1) + 0.5
    figure = new_figure((max(width, 4.6), height))
    grid = figure.subplots(n_down, n_across, squeeze=False)
    for axes, (heading, measured) in zip(grid.flat, panels.items(), strict=False):
        image = dict(cmap="Blues", vmin=0, vmax=top, aspect="auto", gid=f"grid:{heading}")
        axes.imshow(measured, **image)
        for (row, column), value in np.ndenumerate(measured):
            color = "white" if value > 0.55 * top else TEXT_COLOR
            text = f"{value:.2f}" if top <= 1 else f"{value:.0f}"
            axes.text(column, row, text, ha="center", va="center", color=color, fontsize=9.5)
        axes.set_yticks(range(len(row_values)), [f"{value:g}" for value in row_values])
        axes.set_xticks(range(len(column_values)), [f"{value:g}" for value in column_values])
        axes.set_ylabel(row_name)
        axes.set_xlabel(column_name)
        axes.grid(False)
        axes.spines[:].set_visible(False)
        set_panel_title(axes, heading)
    for axes in grid.flat[len(panels) :]:
        axes.remove()
    return figure
