"""The picture of a finding: a dot for each seed, the mean of each arm, and val-loss curves."""

from matplotlib.ticker import MaxNLocator

from minigpt.plotting.fonts import drawable
from minigpt.plotting.style import PALETTE, WIDTH, new_figure, set_title, styled

CURVES_HEIGHT = 2.9  # inches


def finding_figure(title, panels, curves=None):
    """A Figure of what an experiment measured of each arm.

    panels: measure → arm → values, one per seed. An arm may be missing from a panel.
    curves: arm → [(steps, val losses), …] per seed, drawn below; None: no such panel
    Returns (figure, notes): notes are lines to print for the user. Dots have gids
    "seeds:MEASURE:ARM", means "mean:MEASURE:ARM", curves "curve:ARM:0", the index of the seed.
    """
    arms = list(dict.fromkeys(arm for by_arm in panels.values() for arm in by_arm))
    labels, families, notes = drawable(arms)
    colors = {arm: PALETTE[i % len(PALETTE)] for i, arm in enumerate(arms)}
    height = 1.2 + 0.42 * len(arms)  # inches, of the panels
    with styled(families):
        figure = new_figure((WIDTH, height + 0.5 + (CURVES_HEIGHT if curves else 0)))
        top = figure
        if curves:
            top, bottom = figure.subfigures(2, 1, height_ratios=[height, CURVES_HEIGHT])
            _draw_curves(bottom.subplots(), curves, dict(zip(arms, labels, strict=True)), colors)
        row = top.subplots(1, len(panels), sharey=True, squeeze=False)[0]
        for axes, (measure, by_arm) in zip(row, panels.items(), strict=True):
            for arm, values in by_arm.items():
                _draw_values(axes, measure, arm, values, arms.index(arm), colors[arm])
            axes.set_yticks(range(len(arms)), labels)
            axes.set_ylim(len(arms) - 0.4, -0.75)
            axes.xaxis.set_major_locator(MaxNLocator(4))
            axes.ticklabel_format(axis="x", useOffset=False)
            axes.margins(x=0.15)
            axes.set_xlabel(measure)
        set_title(figure, title)
    return figure, notes


def _draw_values(axes, measure, arm, values, y, color):
    mean = sum(values) / len(values)
    style = dict(color=color, linestyle="")
    gid = f"{measure}:{arm}"
    axes.plot(values, [y] * len(values), "o", alpha=0.55, gid=f"seeds:{gid}", **style)
    axes.plot(mean, y, "|", ms=20, mew=2.4, gid=f"mean:{gid}", **style)
    axes.annotate(
        f"{mean:.4g}",
        (mean, y),
        (0, 13),
        textcoords="offset points",
        ha="center",
        fontsize=9,
        color=color,
    )


def _draw_curves(axes, curves, labels, colors):
    for arm, seeds in curves.items():
        for i, (steps, losses) in enumerate(seeds):
            label = None if i else labels[arm]
            line = dict(color=colors[arm], linewidth=1.4, gid=f"curve:{arm}:{i}")
            axes.plot(steps, losses, label=label, **line)
    axes.set_xlabel("step")
    axes.set_ylabel("val loss (nats per token)")
    axes.legend()
