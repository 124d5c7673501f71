"""The look that all pictures share: colors, sizes, text styles.

    with styled(families):
        figure = new_figure(size)
        axes = figure.subplots()

Figures are made without pyplot: they need no display and leave no global state behind.
"""

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.style import context as style_context

# The color-blind safe palette of Okabe and Ito, without its yellow, which is too light on white.
PALETTE = ["#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#444444"]
TEXT_COLOR, LABEL_COLOR, GRID_COLOR = "#222222", "#6b6b6b", "#e6e6e6"
WIDTH = 9.0  # inches

STYLE = {
    "font.size": 10.5,
    "text.color": TEXT_COLOR,
    "text.parse_math": False,  # a folder's name may contain a $
    "axes.edgecolor": "#b0b0b0",
    "axes.linewidth": 0.8,
    "axes.labelcolor": LABEL_COLOR,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.unicode_minus": False,
    "grid.color": GRID_COLOR,
    "grid.linewidth": 0.8,
    "xtick.color": "#b0b0b0",
    "ytick.color": "#b0b0b0",
    "xtick.labelcolor": LABEL_COLOR,
    "ytick.labelcolor": LABEL_COLOR,
    "legend.frameon": False,
    "legend.borderpad": 0,
    "legend.borderaxespad": 0,
    "legend.fontsize": 9.5,
    "lines.solid_capstyle": "round",
    "lines.solid_joinstyle": "round",
    "savefig.facecolor": "white",
    "svg.hashsalt": "minigpt",  # the same data gives the same file
}


def styled(families=("DejaVu Sans",)):
    """A context manager: matplotlib draws in our style, with these font families, and ignores the
    user's matplotlibrc."""
    return style_context(["default", STYLE, {"font.family": list(families)}])


def new_figure(size, layout="constrained"):
    """An empty Figure of `size` (width, height) in inches. Text can be measured before saving."""
    figure = Figure(figsize=size, layout=layout)
    FigureCanvasAgg(figure)
    return figure


def set_title(figure, title):
    """The figure's title, above all panels."""
    figure.suptitle(title, fontsize=12, fontweight="bold")


def set_panel_title(axes, title):
    """A small title above one panel."""
    axes.set_title(title, fontsize=9.5, loc="left", color=LABEL_COLOR)
    axes.tick_params(length=0)


def format_count(value):
    """4000 → 4,000; 2500000 → 2.5M; 0.25 → 0.25."""
    for size, suffix in ((1e9, "B"), (1e6, "M")):
        if value >= size:
            return f"{value / size:.4g}{suffix}"
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"
