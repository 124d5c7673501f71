"""The picture of tools/evaluations-classification.py: confusion matrices."""

import numpy as np

from minigpt.plotting.fonts import drawable
from minigpt.plotting.style import LABEL_COLOR, TEXT_COLOR, new_figure, set_panel_title, styled

MATRIX_SIZE = 15.0  # inches, at most, for the cells of a matrix
MOST_CLASSES_WITH_COUNTS = 30  # larger matrices show colors only


def confusion_figure(panels, labels):
    """A Figure: a confusion matrix per panel; rows are true labels, columns predicted ones.

    panels: heading → counts (n, n + 1), lists or arrays. The last column is "none"; it is drawn if
    any panel has a count in it. The darker a cell, the greater its fraction of the row.
    Returns (figure, notes) as loss_figure() does. Matrices have gids "confusion:HEADING".
    """
    names, families, notes = drawable(list(labels))
    tables = {heading: np.asarray(counts) for heading, counts in panels.items()}
    with_none = any(counts[:, -1].any() for counts in tables.values())
    columns = [*names, "none"] if with_none else names
    n_across = min(2, len(tables))
    n_down = -(-len(tables) // n_across)
    cell = min(0.62, MATRIX_SIZE / len(columns))  # inches
    size = n_across * (cell * len(columns) + 1.7), n_down * (cell * len(names) + 1.5)
    with styled(families):
        figure = new_figure(size)
        grid = figure.subplots(n_down, n_across, squeeze=False)
        for axes, (heading, counts) in zip(grid.flat, tables.items(), strict=False):
            _draw_matrix(axes, counts[:, : len(columns)], names, columns, heading)
        for axes in grid.flat[len(tables) :]:
            axes.remove()
        figure.supxlabel("label given", color=LABEL_COLOR, fontsize=10)
        figure.supylabel("true label", color=LABEL_COLOR, fontsize=10)
    return figure, notes


def _draw_matrix(axes, counts, names, columns, heading):
    fractions = counts / np.maximum(counts.sum(1, keepdims=True), 1)
    axes.imshow(fractions, cmap="Blues", vmin=0, vmax=1, aspect="equal", gid=f"confusion:{heading}")
    for row, column in np.ndindex(*counts.shape):
        if counts[row, column] and len(columns) <= MOST_CLASSES_WITH_COUNTS:
            color = "white" if fractions[row, column] > 0.55 else TEXT_COLOR
            text = dict(ha="center", va="center", color=color, fontsize=9.5)
            axes.text(column, row, f"{counts[row, column]:,}", **text)
    font_size = max(3.0, min(10.0, 72 * 0.9 * MATRIX_SIZE / len(columns)))  # one line per cell
    rotation = 40 if len(columns) <= MOST_CLASSES_WITH_COUNTS else 90
    rotated = dict(rotation=rotation, ha="right", va="center", rotation_mode="anchor")
    axes.set_xticks(range(len(columns)), columns, fontsize=font_size, **rotated)
    axes.set_yticks(range(len(names)), names, fontsize=font_size)
    axes.grid(False)
    axes.spines[:].set_visible(False)
    set_panel_title(axes, heading)
