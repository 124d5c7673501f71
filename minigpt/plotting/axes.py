"""Axes of loss pictures: limits, linear or logarithmic scales, ticks.

`runs` are minigpt.training.log.RunLogs; `x` is a key of X_COLUMNS.
"""

import numpy as np
from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator, NullLocator

from minigpt.plotting.style import format_count

X_LABELS = {"steps": "step", "tokens": "tokens", "minutes": "minutes of training"}
X_COLUMNS = {"steps": "step", "tokens": "tokens", "minutes": "minutes"}  # of a RunLog
LOSS_LABEL = "loss (nats per token)"


def choose_scales(runs, x, log):
    """(log_x, log_y) for the loss panel, as `log` says: "none", "x", "y" or "both". "auto" takes a
    logarithmic axis where runs differ so much that a linear one would squeeze one of them flat."""
    if log != "auto":
        return log in ("x", "both"), log in ("y", "both")
    ends = [run.end(X_COLUMNS[x]) for run in runs]
    lows = [np.nanmin(_losses(run)) for run in runs if np.isfinite(_losses(run)).any()]
    log_x = max(ends) > 8 * min(ends)
    log_y = bool(lows) and max(lows) > 4 * min(lows) > 0
    return log_x, log_y


def set_x_axis(axes, runs, x, log_x):
    """Limits and ticks of the x axis, from 0 to the end of the longest run."""
    end = max(run.end(X_COLUMNS[x]) for run in runs)
    if not log_x:
        axes.set_xlim(-0.007 * (end or 1), 1.012 * (end or 1))
        axes.xaxis.set_major_locator(MaxNLocator(8, steps=[1, 2, 2.5, 5, 10]))
    else:
        # The evaluation before the first step is at 0, so the axis is linear up to `first`.
        columns = [rows[X_COLUMNS[x]] for run in runs for rows in (run.train, run.val)]
        first = min(
            (column[column > 0].min() for column in columns if (column > 0).any()), default=1
        )
        axes.set_xscale("symlog", linthresh=first, linscale=0.3)
        axes.set_xlim(-0.15 * first, 1.1 * max(end, 10 * first))
        axes.xaxis.set_major_locator(FixedLocator([0, *log_ticks(first, max(end, first), "x")]))
        axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: format_count(value)))


def set_loss_axis(axes, runs, x, log_x, log_y):
    """Limits and ticks of the loss axis. They may cut off the first fall of the loss.

    Losses start near ln(vocabulary) and halve within the first percents of a run. On a linear
    x axis that fall is a vertical line, which would take most of the height.
    """
    losses = np.concatenate([_losses(run) for run in runs])
    losses = losses[np.isfinite(losses)]
    if not len(losses):
        return
    low, high = losses.min(), losses.max()
    if not log_x:
        late = []
        for run in runs:
            xs = np.concatenate([run.train[X_COLUMNS[x]], run.val[X_COLUMNS[x]]])
            late.append(_losses(run)[xs > 0.05 * run.end(X_COLUMNS[x])])
        late = np.concatenate(late)
        late = late[np.isfinite(late)]
        if len(late):
            high = min(high, low + 1.8 * (late.max() - low))
    if log_y and low > 0:
        axes.set_yscale("log")
        margin = (high / low) ** 0.05 if high > low else 1.1
        axes.set_ylim(low / margin**1.6, high * margin)
        axes.yaxis.set_major_locator(FixedLocator(log_ticks(low / margin, high * margin, "y")))
        axes.yaxis.set_minor_locator(NullLocator())
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    else:
        margin = 0.05 * (high - low) or 0.1
        # The larger margin below is for the label of the best point.
        axes.set_ylim(low - 1.6 * margin, high + margin)
        axes.yaxis.set_major_locator(MaxNLocator(9, steps=[1, 2, 2.5, 5, 10]))


def set_lr_axis(axes, runs):
    """Limits and ticks of the learning-rate axis."""
    peaks = [run.train["lr"].max() for run in runs if len(run.train["lr"])]
    peaks = [peak for peak in peaks if peak > 0]
    if peaks and max(peaks) > 4 * min(peaks):
        # Fine-tuning uses a fraction of pretraining's rate; on a linear axis it would be near zero.
        axes.set_yscale("log")
        bottom, top = min(peaks) / 30, max(peaks) * 1.6
        axes.set_ylim(bottom, top)
        axes.yaxis.set_major_locator(FixedLocator(log_ticks(bottom, top, "decades")))
        axes.yaxis.set_minor_locator(NullLocator())
    elif peaks:
        axes.set_ylim(0, max(peaks) * 1.15)
        axes.yaxis.set_major_locator(MaxNLocator(2, steps=[1, 2, 5, 10]))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: _format_lr(value)))


def log_ticks(low, high, kind):
    """Round numbers between two positive limits: decades, and 1, 2, 5 where decades are few.
    kind: "x" and "y" axes differ in how many labels fit; "decades" gives decades only."""
    decades = np.log10(high / low)
    if kind == "decades" or decades > 5:
        steps = [1]
    elif decades > 2.2:
        steps = [1, 3] if kind == "x" else [1, 2, 5]
    elif decades >= 1.2:
        steps = [1, 2, 5]
    elif decades > 0.7:
        steps = [1, 1.5, 2, 3, 4, 5, 7]
    else:
        steps = [1, 1.5, 2, 2.5, 3, 3.5, 4, 5, 6, 7, 8]
    exponents = range(int(np.floor(np.log10(low))), int(np.ceil(np.log10(high))) + 1)
    ticks = [step * 10.0**exponent for exponent in exponents for step in steps]
    return [tick for tick in ticks if low <= tick <= high]


def _losses(run):
    return np.concatenate([run.train["loss"], run.val["val_loss"]])


def _format_lr(value):
    """0.0003 → 3e-4."""
    if value <= 0:
        return "0"
    mantissa, exponent = f"{value:.1e}".split("e")
    return f"{mantissa.removesuffix('.0')}e{int(exponent)}"
