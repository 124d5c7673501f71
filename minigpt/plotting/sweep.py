"""The picture of tools/sweep.py: val loss of every trial, the best ones in color."""

from pathlib import Path

import numpy as np
from matplotlib.lines import Line2D

from minigpt.plotting.axes import choose_scales, set_loss_axis, set_x_axis
from minigpt.plotting.fonts import drawable
from minigpt.plotting.style import PALETTE, WIDTH, new_figure, styled
from minigpt.training.log import TRAIN, VAL, RunLog

MOST_COLORED = 6  # of the best trials
OTHER_COLOR = "#c4c4c4"


def sweep_figure(trials, names, metric):
    """A Figure: the val loss of every trial over its tokens, the best in color, the others grey.

    trials: [(label, score, curves)], best first; `curves` has [(tokens, val_loss), …] per seed.
    names:  the settings whose values the labels are.   metric: the name of the score
    Returns (figure, notes) as loss_figure() does. Lines have gids "trial:0:1": the trial's rank
    and the index of its curve.
    """
    labels, families, notes = drawable([label for label, _, _ in trials])
    runs = [[_as_run_log(curve) for curve in curves] for _, _, curves in trials]
    all_runs = [run for of_trial in runs for run in of_trial]
    with styled(families):
        figure = new_figure((WIDTH + 2, 5.16))
        figure.get_layout_engine().set(w_pad=0.12, h_pad=0.12)  # inches
        axes = figure.subplots()
        for rank, of_trial in enumerate(runs):
            best = rank < MOST_COLORED
            line = dict(
                color=PALETTE[rank] if best else OTHER_COLOR,
                linewidth=1.6 if best else 1.0,
                zorder=4 - rank / len(runs) if best else 2,
            )
            for i, run in enumerate(of_trial):
                xs, ys = run.val["tokens"], run.val["val_loss"]
                axes.plot(xs, ys, gid=f"trial:{rank}:{i}", **line)
        log_x, log_y = choose_scales(all_runs, "tokens", "auto")
        set_x_axis(axes, all_runs, "tokens", log_x)
        set_loss_axis(axes, all_runs, "tokens", log_x, log_y)
        axes.set_xlabel("tokens")
        axes.set_ylabel("val loss (nats per token)")
        _add_ranking(figure, labels, [score for _, score, _ in trials], f"{names}:\n{metric}")
    return figure, notes


def _add_ranking(figure, labels, scores, title):
    """A legend beside the picture: the best trials by name, and what the grey lines are."""
    handles = [Line2D([], [], color=color, linewidth=3) for color in PALETTE[: len(labels)]]
    texts = [f"{label}: {score:.3f}" for label, score in zip(labels, scores, strict=True)]
    handles, texts = handles[:MOST_COLORED], texts[:MOST_COLORED]
    if len(labels) > MOST_COLORED:
        handles.append(Line2D([], [], color=OTHER_COLOR, linewidth=3))
        texts.append(f"{len(labels) - MOST_COLORED} others, up to {scores[-1]:.3f}")
    legend = figure.legend(
        handles,
        texts,
        title=title,
        loc="outside right upper",
        borderaxespad=1,
        handlelength=1.2,
        labelspacing=0.7,
    )
    legend.set_alignment("left")
    legend.set_gid("ranking")


def _as_run_log(curve):
    """[(tokens, val_loss), …] as a RunLog without train rows."""
    empty = np.empty(0)
    points = np.array(curve, np.float64).reshape(-1, 2)  # (evaluations, 2)
    val = {name: np.zeros(len(points)) for name in VAL} | {"best": np.ones(len(points))}
    val["tokens"], val["val_loss"] = points.T
    return RunLog(Path(), dict.fromkeys(TRAIN, empty), val)
