"""The picture of visualize.py: train and val loss, learning rate, the best evaluation of runs."""

import numpy as np
from matplotlib import patheffects
from matplotlib.lines import Line2D
from matplotlib.transforms import Bbox

from minigpt.common.errors import UserError
from minigpt.plotting.axes import (
    LOSS_LABEL,
    X_COLUMNS,
    X_LABELS,
    choose_scales,
    set_loss_axis,
    set_lr_axis,
    set_x_axis,
)
from minigpt.plotting.fonts import drawable
from minigpt.plotting.style import LABEL_COLOR, PALETTE, WIDTH, format_count, new_figure, styled
from minigpt.training.log import run_names

PANELS_HEIGHT = 4.6  # inches, of both panels
LEFT, RIGHT, BOTTOM = 0.78, 0.3, 0.56  # inches: the margins around the panels
TITLE_ROW, KEY_ROW, RUN_ROW = 0.5, 0.34, 0.44  # inches: the rows above them

VAL_LINE = dict(
    linewidth=1.5, linestyle=(0, (3.5, 1.6)), marker="o", markersize=3.6, markerfacecolor="white"
)
BEST_POINT = dict(
    marker="o", markersize=8, markeredgecolor="white", markeredgewidth=1.4, linestyle=""
)
# Where a label can be beside its point: (right, up, distance), in order of preference.
LABEL_POSITIONS = [
    (right, up, distance)
    for distance in (1, 2.6)
    for right, up in [(0, -1), (1, -1), (-1, -1), (0, 1), (1, 1), (-1, 1), (1, 0), (-1, 0)]
]


def smoothed(values, beta):
    """Exponential moving average, bias-corrected: s_t = Σ_i β^(t−i) v_i / Σ_i β^(t−i), i ≤ t.

    values: (n,); beta in [0, 1), 0 leaves them as they are. Returns (n,) float64. The division by
    the sum of the weights keeps the first values from being pulled towards zero.
    """
    result = np.empty(len(values))
    total = weight = 0.0
    for i, value in enumerate(values):
        total = beta * total + (1 - beta) * value
        weight = beta * weight + (1 - beta)
        result[i] = total / weight
    return result


def loss_figure(runs, x="steps", smooth=0.9, log="auto"):
    """A Figure: train and val loss above, learning rate below, over a shared x axis.

    runs:   RunLogs, at most len(PALETTE)
    x:      "steps", "tokens" or "minutes"
    smooth: β of the moving average of the train loss; the raw curve stays visible behind it
    log:    "auto", "none", "x", "y" or "both"; see choose_scales()
    Returns (figure, notes): notes are lines to print for the user, such as a name that no font has.

    Lines have gids "raw:0", "train:0", "val:0", "best:0", "lr:0"; the number is the run's index.
    """
    if len(runs) > len(PALETTE):
        raise UserError(
            f"{len(runs)} runs: a picture of more than {len(PALETTE)} cannot be read; draw several"
        )
    names, families, notes = drawable(run_names([run.folder for run in runs]))
    with styled(families):
        figure = new_figure((WIDTH, PANELS_HEIGHT + BOTTOM + TITLE_ROW), layout=None)
        grid = figure.add_gridspec(2, 1, height_ratios=[4, 1], hspace=0.09)
        loss, lr = grid.subplots(sharex=True)
        log_x, log_y = choose_scales(runs, x, log)
        for i, run in enumerate(runs):
            _draw_run(loss, lr, run, i, x, smooth, single=len(runs) == 1)
        set_x_axis(loss, runs, x, log_x)
        set_loss_axis(loss, runs, x, log_x, log_y)
        set_lr_axis(lr, runs)
        loss.tick_params(axis="x", length=0, labelbottom=False)
        lr.set_xlabel(X_LABELS[x])
        has_reward = all(run.has_reward for run in runs)
        loss.set_ylabel("− reward" if has_reward else LOSS_LABEL)
        lr.set_ylabel("learning rate")
        figure.align_ylabels()
        _add_header(figure, runs, names, x, smooth)
        _label_best_points(figure, loss, runs)
    return figure, notes


def format_loss(value):
    """A loss in the picture and in the table: three decimals, or two digits if tiny."""
    return f"{value:.3f}" if abs(value) >= 0.1 else f"{value:.2g}"


def best_position(run, x):
    """Where the best evaluation is: "step 4,000", "65.5M tokens" or "12.5 min"."""
    value = run.val[X_COLUMNS[x]][run.best]
    if x == "steps":
        return f"step {value:,.0f}"
    return f"{format_count(value)} tokens" if x == "tokens" else f"{value:.1f} min"


# -- curves ----------------------------------------------------------------------------------------


def _colors(i, single):
    """(train, val): one color per run; a single run has one for each of its curves."""
    return (PALETTE[0], PALETTE[1]) if single else (PALETTE[i], PALETTE[i])


def _draw_run(loss, lr, run, i, x, smooth, single):
    train_color, val_color = _colors(i, single)
    xs, vs = run.train[X_COLUMNS[x]], run.val[X_COLUMNS[x]]
    if smooth > 0:
        raw = dict(color=train_color, alpha=0.25, linewidth=0.8, zorder=2)
        loss.plot(xs, run.train["loss"], gid=f"raw:{i}", **raw)
    line = dict(color=train_color, linewidth=1.6 if smooth > 0 else 1.0, zorder=3 + 0.01 * i)
    loss.plot(xs, smoothed(run.train["loss"], smooth), gid=f"train:{i}", **line)
    loss.plot(
        vs,
        run.val["val_loss"],
        gid=f"val:{i}",
        color=val_color,
        zorder=4 + 0.01 * i,
        markevery=0.04 if single else 0.06,  # markers do not touch where evaluations are many
        **VAL_LINE,
    )
    if run.best is not None:
        loss.plot(
            vs[run.best],
            run.val["val_loss"][run.best],
            gid=f"best:{i}",
            color=val_color,
            zorder=5,
            clip_on=False,  # whole, also at the edge of the axes
            **BEST_POINT,
        )
    lr_color = LABEL_COLOR if single else train_color
    lr.plot(xs, run.train["lr"], gid=f"lr:{i}", color=lr_color, linewidth=1.6)


# -- title and legends -----------------------------------------------------------------------------


def _add_header(figure, runs, names, x, smooth):
    """The title, the legend of line kinds, and for several runs a legend of their names."""
    single = len(runs) == 1
    title = f"{names[0]}: train and val loss" if single else "Train and val loss"
    heading = figure.text(0, 0, title, fontsize=12, fontweight="bold", va="center")
    key = _line_legend(figure, runs, x, smooth)

    # Measure everything before placing it: names can be long, and Chinese is wide.
    available = (WIDTH - LEFT - RIGHT) * figure.dpi
    needed = heading.get_window_extent().width + key.get_window_extent().width
    key_row = KEY_ROW if needed > available - 0.2 * figure.dpi else 0
    rows, legend = (0, None) if single else _run_legend(figure, runs, names, x, available)

    header = TITLE_ROW + key_row + RUN_ROW * rows
    height = PANELS_HEIGHT + BOTTOM + header
    left, right = LEFT / WIDTH, 1 - RIGHT / WIDTH
    figure.set_size_inches(WIDTH, height)
    figure.subplots_adjust(left, BOTTOM / height, right, 1 - header / height)
    middle = 1 - 0.5 * TITLE_ROW / height
    heading.set_position((left, middle))
    key.set_bbox_to_anchor((right, middle - 0.8 * key_row / height))
    if legend:
        legend.set_bbox_to_anchor((left, 1 - (TITLE_ROW + key_row) / height))


def _line_legend(figure, runs, x, smooth):
    """What each kind of line means."""
    single = len(runs) == 1
    train_color, val_color = _colors(0, True) if single else (LABEL_COLOR, LABEL_COLOR)
    keys = [("train", Line2D([], [], color=train_color, linewidth=1.6))]
    if smooth > 0:
        keys = [
            ("train", Line2D([], [], color=train_color, alpha=0.35, linewidth=0.9)),
            ("train, smoothed", Line2D([], [], color=train_color, linewidth=1.6)),
        ]
    keys.append(("val", Line2D([], [], color=val_color, **VAL_LINE)))
    best = "best val"
    if single and runs[0].best is not None:
        best += f", at {best_position(runs[0], x)}"
    keys.append((best, Line2D([], [], color=val_color, **BEST_POINT)))
    legend = figure.legend(
        [handle for _, handle in keys],
        [label for label, _ in keys],
        ncols=len(keys),
        loc="center right",
        handlelength=1.9,
        handletextpad=0.5,
        columnspacing=1.3,
        labelcolor=LABEL_COLOR,
    )
    legend.set_gid("key")
    return legend


def _run_legend(figure, runs, names, x, available):
    """(rows, legend): color, name and best val of each run, in as few rows as fit the width
    `available` (pixels)."""
    handles = [Line2D([], [], color=PALETTE[i], linewidth=3) for i in range(len(runs))]
    labels = [_run_label(run, name, x) for run, name in zip(runs, names, strict=True)]
    for rows in range(-(-len(runs) // 4), len(runs) + 1):
        columns = -(-len(runs) // rows)
        legend = figure.legend(
            handles,
            ["run"] * len(runs),
            ncols=columns,
            loc="upper left",
            handlelength=1.2,
            columnspacing=2,
            labelspacing=0.7,
        )
        # matplotlib drops labels that begin with _, but keeps a text that is set later.
        for text, label in zip(legend.get_texts(), labels, strict=True):
            text.set_text(label)
        if columns == 1 or legend.get_window_extent().width <= available:
            legend.set_gid("runs")
            return rows, legend
        legend.remove()


def _run_label(run, name, x):
    if run.best is None:
        return f"{name}\nno val loss yet"
    return f"{name}\n{format_loss(run.val['val_loss'][run.best])} at {best_position(run, x)}"


# -- labels of the best evaluations ----------------------------------------------------------------


def _label_best_points(figure, axes, runs):
    """Write each best value beside its point, where it covers least of curves and other labels."""
    lines = {line.get_gid(): line for line in axes.get_lines()}
    to_pixels = axes.transData.transform
    curves = np.concatenate(
        [_resample(to_pixels(line.get_xydata())) for gid, line in lines.items() if ":" in gid]
    )  # (points, 2) in pixels
    points = [line for gid, line in lines.items() if gid.startswith("best:")]
    taken = [Bbox(to_pixels(p.get_xydata())[[0, 0]]).padded(0.06 * figure.dpi) for p in points]
    for i, run in enumerate(runs):
        if run.best is not None:
            text = format_loss(run.val["val_loss"][run.best])
            taken.append(_place_label(figure, axes, lines[f"best:{i}"], text, i, curves, taken))


def _place_label(figure, axes, point, text, i, curves, taken):
    """Add `text` at the cheapest of LABEL_POSITIONS around `point`; return its box in pixels."""
    frame, renderer = axes.get_window_extent(), figure.canvas.get_renderer()
    best = None
    for right, up, distance in LABEL_POSITIONS:
        label = axes.annotate(
            text,
            point.get_xydata()[0],
            xytext=(9 * right * distance, 10 * up * distance),
            textcoords="offset points",
            ha=("right", "center", "left")[right + 1],
            va=("top", "center", "bottom")[up + 1],
            color=point.get_color(),
            fontsize=9.5,
            fontweight="bold",
            zorder=6,
            path_effects=[patheffects.withStroke(linewidth=3, foreground="white")],
            gid=f"label:{i}",
        )
        box = label.get_window_extent(renderer).padded(0.02 * figure.dpi)
        covered = ((curves > box.min) & (curves < box.max)).all(axis=1).sum()
        overlaps = sum(box.overlaps(other) for other in taken)
        outside = not (frame.x0 <= box.x0 and box.x1 <= frame.x1 and frame.y0 <= box.y0)
        cost = covered + 1000 * overlaps + 10000 * outside
        if best is None or cost < best[0]:
            if best:
                best[1].remove()
            best = cost, label, box
        else:
            label.remove()
    return best[2]


def _resample(points, gap=3.0):
    """Points at most about `gap` pixels apart along the line through `points` (n, 2)."""
    points = points[np.isfinite(points).all(axis=1)]
    if len(points) < 2:
        return points
    lengths = np.hypot(*np.diff(points, axis=0).T)
    distances = np.concatenate([[0], np.cumsum(lengths)])
    wanted = np.arange(0, distances[-1] + gap, gap)
    return np.stack([np.interp(wanted, distances, points[:, k]) for k in (0, 1)], axis=1)
