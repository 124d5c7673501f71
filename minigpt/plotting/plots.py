"""Pictures of runs and of pairs, drawn without a screen and written whole or not at all.

Figures are built from matplotlib.figure.Figure alone, never through pyplot: no window system is
asked for, and no global state is left behind.
"""

import contextlib
import io
import logging
import math
from pathlib import Path

import numpy as np
from matplotlib import font_manager, patheffects
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.style import context as style_context
from matplotlib.ticker import (
    FixedLocator,
    FuncFormatter,
    MaxNLocator,
    NullFormatter,
    NullLocator,
)
from matplotlib.transforms import Bbox

from minigpt.common.errors import UserError
from minigpt.common.files import written_whole
from minigpt.training.log import TRAIN, VAL, RunLog, run_names

# Fonts with Chinese often have no bold face; their regular one serves without a warning.
logging.getLogger("matplotlib.font_manager").setLevel(logging.ERROR)

# Okabe and Ito's colours, which remain apart for the colour-blind; without their yellow, which is
# lost on white.
PALETTE = ["#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#444444"]
INK, QUIET, GRID = "#222222", "#6b6b6b", "#e6e6e6"
FORMATS = (".png", ".svg")
X_LABELS = {"steps": "step", "tokens": "tokens", "minutes": "minutes of training"}
X_COLUMNS = {"steps": "step", "tokens": "tokens", "minutes": "minutes"}

WIDTH, PANELS = 9.0, 4.6  # inches: the picture's width, the height of both panels
LEFT, RIGHT, BOTTOM = 0.78, 0.3, 0.56  # inches: the margins round the panels
TITLE_ROW, KEY_ROW, RUN_ROW = 0.5, 0.34, 0.44  # inches: the rows above them
NAME_LENGTH = 30  # characters of a run's name that the legend shows

STYLE = {
    "font.size": 10.5,
    "text.color": INK,
    "text.parse_math": False,  # a folder's name may hold a $
    "axes.edgecolor": "#b0b0b0",
    "axes.linewidth": 0.8,
    "axes.labelcolor": QUIET,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.unicode_minus": False,
    "grid.color": GRID,
    "grid.linewidth": 0.8,
    "xtick.color": "#b0b0b0",
    "ytick.color": "#b0b0b0",
    "xtick.labelcolor": QUIET,
    "ytick.labelcolor": QUIET,
    "legend.frameon": False,
    "legend.borderpad": 0,
    "legend.borderaxespad": 0,
    "legend.fontsize": 9.5,
    "lines.solid_capstyle": "round",
    "lines.solid_joinstyle": "round",
    "savefig.facecolor": "white",
    "svg.hashsalt": "minigpt",  # the same log makes the same file
}

# Fonts with Chinese that systems come with, the likeliest and best-looking first.
CJK_FONTS = [
    "Noto Sans CJK SC",
    "Noto Sans SC",
    "Source Han Sans SC",
    "PingFang SC",
    "Microsoft YaHei",
    "Hiragino Sans GB",
    "Heiti SC",
    "WenQuanYi Micro Hei",
    "WenQuanYi Zen Hei",
    "SimHei",
    "SimSun",
    "Arial Unicode MS",
]


# -- what is drawn ---------------------------------------------------------------------------------


def smoothed(values, beta):
    """Exponential moving average, bias-corrected: s_t = Σ_i β^(t−i) v_i / Σ_i β^(t−i), i ≤ t.

    values: (n,); beta in [0, 1), 0 leaves them as they are. Returns (n,) float64. Dividing by the
    weights' sum keeps the first values from being drawn towards zero.
    """
    result = np.empty(len(values))
    total = weight = 0.0
    for i, value in enumerate(values):
        total = beta * total + (1 - beta) * value
        weight = beta * weight + (1 - beta)
        result[i] = total / weight
    return result


def choose_scales(runs, x, log):
    """(log_x, log_y) for the loss panel: as `log` says ("none", "x", "y", "both"), or by "auto" a
    logarithm where a linear axis would squeeze one run flat beside another."""
    if log != "auto":
        return log in ("x", "both"), log in ("y", "both")
    ends = [run.end(X_COLUMNS[x]) for run in runs]
    lows = [np.nanmin(_losses(run)) for run in runs if np.isfinite(_losses(run)).any()]
    log_x = max(ends) > 8 * min(ends)
    log_y = bool(lows) and max(lows) > 4 * min(lows) > 0
    return log_x, log_y


def loss_figure(runs, x="steps", smooth=0.9, log="auto"):
    """A Figure: train and val loss above, learning rate below, over a shared x axis.

    runs:   RunLogs, at most len(PALETTE)
    x:      "steps", "tokens" or "minutes"
    smooth: β of the moving average over the train loss; the raw curve stays visible behind it
    log:    "auto", "none", "x", "y" or "both"; see choose_scales()
    Returns (figure, notes): notes are lines for the user, such as a name that no font can draw.

    Lines carry gids "raw:0", "train:0", "val:0", "best:0", "lr:0", the number being the run's.
    """
    if len(runs) > len(PALETTE):
        raise UserError(
            f"{len(runs)} runs: a picture of more than {len(PALETTE)} cannot be read; draw several"
        )
    names, families, notes = drawable(run_names([run.folder for run in runs]))
    with style_context(["default", STYLE, {"font.family": families}]):
        figure = Figure(figsize=(WIDTH, PANELS + BOTTOM + TITLE_ROW))
        FigureCanvasAgg(figure)  # text is measured while the picture is laid out
        grid = figure.add_gridspec(2, 1, height_ratios=[4, 1], hspace=0.09)
        loss, lr = grid.subplots(sharex=True)
        scales = choose_scales(runs, x, log)
        for i, run in enumerate(runs):
            _draw_run(loss, lr, run, i, x, smooth, single=len(runs) == 1)
        _set_x(loss, runs, x, scales[0])
        _set_loss_axis(loss, runs, x, *scales)
        _set_lr_axis(lr, runs)
        loss.tick_params(axis="x", length=0, labelbottom=False)
        lr.set_xlabel(X_LABELS[x])
        loss.set_ylabel("loss (nats per token)")
        lr.set_ylabel("learning rate")
        figure.align_ylabels()
        _add_header(figure, runs, names, x, smooth)
        _label_best_points(figure, loss, runs)
    return figure, notes


def _colours(i, single):
    """(train, val): one hue a run; a run that stands alone has one for each of its curves."""
    return (PALETTE[0], PALETTE[1]) if single else (PALETTE[i], PALETTE[i])


def _draw_run(loss, lr, run, i, x, smooth, single):
    train_colour, val_colour = _colours(i, single)
    xs, vs = run.train[X_COLUMNS[x]], run.val[X_COLUMNS[x]]
    if smooth > 0:
        raw = dict(color=train_colour, alpha=0.25, linewidth=0.8, zorder=2)
        loss.plot(xs, run.train["loss"], gid=f"raw:{i}", **raw)
    line = dict(color=train_colour, linewidth=1.6 if smooth > 0 else 1.0, zorder=3 + 0.01 * i)
    loss.plot(xs, smoothed(run.train["loss"], smooth), gid=f"train:{i}", **line)
    loss.plot(
        vs,
        run.val["val_loss"],
        gid=f"val:{i}",
        color=val_colour,
        zorder=4 + 0.01 * i,
        # Markers stand apart by a share of the axes where evaluations are many.
        markevery=0.04 if single else 0.06,
        **VAL_LINE,
    )
    if run.best is not None:
        loss.plot(
            vs[run.best],
            run.val["val_loss"][run.best],
            gid=f"best:{i}",
            color=val_colour,
            zorder=5,
            clip_on=False,  # whole, even at the axes' edge
            **BEST_POINT,
        )
    lr_colour = QUIET if single else train_colour
    lr.plot(xs, run.train["lr"], gid=f"lr:{i}", color=lr_colour, linewidth=1.6)


VAL_LINE = dict(
    linewidth=1.5, linestyle=(0, (3.5, 1.6)), marker="o", markersize=3.6, markerfacecolor="white"
)
BEST_POINT = dict(
    marker="o", markersize=8, markeredgecolor="white", markeredgewidth=1.4, linestyle=""
)


# -- axes ------------------------------------------------------------------------------------------


def _losses(run):
    return np.concatenate([run.train["loss"], run.val["val_loss"]])


def _set_x(axes, runs, x, log_x):
    end = max(run.end(X_COLUMNS[x]) for run in runs)
    if not log_x:
        axes.set_xlim(-0.007 * (end or 1), 1.012 * (end or 1))
        axes.xaxis.set_major_locator(MaxNLocator(8, steps=[1, 2, 2.5, 5, 10]))
    else:
        # The evaluation before the first step stands at 0: a short linear stretch leads there.
        columns = [rows[X_COLUMNS[x]] for run in runs for rows in (run.train, run.val)]
        first = min(
            (column[column > 0].min() for column in columns if (column > 0).any()), default=1
        )
        axes.set_xscale("symlog", linthresh=first, linscale=0.3)
        axes.set_xlim(-0.15 * first, 1.1 * max(end, 10 * first))
        axes.xaxis.set_major_locator(FixedLocator([0, *_log_ticks(first, max(end, first), "x")]))
        axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: _show_count(value)))


def _set_loss_axis(axes, runs, x, log_x, log_y):
    """Limits that give the height to what happens after the first plunge.

    Losses start near ln(vocabulary) and fall by half within the first percents of a run. On a
    linear x axis that plunge is a vertical stroke, so the curve may enter from above.
    """
    every = np.concatenate([_losses(run) for run in runs])
    every = every[np.isfinite(every)]
    if not len(every):
        return
    low, high = every.min(), every.max()
    if not log_x:
        late = []
        for run in runs:
            past = np.concatenate([run.train[X_COLUMNS[x]], run.val[X_COLUMNS[x]]])
            late.append(_losses(run)[past > 0.05 * run.end(X_COLUMNS[x])])
        late = np.concatenate(late)
        late = late[np.isfinite(late)]
        if len(late):
            high = min(high, low + 1.8 * (late.max() - low))
    if log_y and low > 0:
        axes.set_yscale("log")
        room = (high / low) ** 0.05 if high > low else 1.1
        axes.set_ylim(low / room**1.6, high * room)
        axes.yaxis.set_major_locator(FixedLocator(_log_ticks(low / room, high * room, "y")))
        axes.yaxis.set_minor_locator(NullLocator())
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    else:
        room = 0.05 * (high - low) or 0.1
        axes.set_ylim(low - 1.6 * room, high + room)  # below: room for the best point's value
        axes.yaxis.set_major_locator(MaxNLocator(9, steps=[1, 2, 2.5, 5, 10]))


def _set_lr_axis(axes, runs):
    peaks = [run.train["lr"].max() for run in runs if len(run.train["lr"])]
    peaks = [peak for peak in peaks if peak > 0]
    if peaks and max(peaks) > 4 * min(peaks):
        # Fine-tuning's rate is a fraction of pretraining's; on a linear axis it would lie at zero.
        axes.set_yscale("log")
        bottom, top = min(peaks) / 30, max(peaks) * 1.6
        axes.set_ylim(bottom, top)
        axes.yaxis.set_major_locator(FixedLocator(_log_ticks(bottom, top, "decades")))
        axes.yaxis.set_minor_locator(NullLocator())
    elif peaks:
        axes.set_ylim(0, max(peaks) * 1.15)
        axes.yaxis.set_major_locator(MaxNLocator(2, steps=[1, 2, 5, 10]))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: _show_lr(value)))


def _log_ticks(low, high, kind):
    """Round numbers between two positive limits: decades, with 1–2–5 where decades are few."""
    decades = np.log10(high / low)
    if kind == "decades" or decades > 5:
        steps = [1]
    elif decades > 2.2:
        steps = [1, 3] if kind == "x" else [1, 2, 5]
    else:
        steps = [1, 2, 5]
        if decades < 1.2:
            steps = (
                [1, 1.5, 2, 3, 4, 5, 7]
                if decades > 0.7
                else [1, 1.5, 2, 2.5, 3, 3.5, 4, 5, 6, 7, 8]
            )
    exponents = range(int(np.floor(np.log10(low))), int(np.ceil(np.log10(high))) + 1)
    ticks = [step * 10.0**exponent for exponent in exponents for step in steps]
    return [tick for tick in ticks if low <= tick <= high]


# -- numbers as text -------------------------------------------------------------------------------


def _show_count(value):
    """4000 → 4,000; 2500000 → 2.5M; 0.25 → 0.25."""
    for size, suffix in ((1e9, "B"), (1e6, "M")):
        if value >= size:
            return f"{value / size:.4g}{suffix}"
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def _show_lr(value):
    """0.0003 → 3e-4."""
    if value <= 0:
        return "0"
    mantissa, exponent = f"{value:.1e}".split("e")
    return f"{mantissa.removesuffix('.0')}e{int(exponent)}"


def show_loss(value):
    """A loss as the picture and the table print it: three decimals, or two digits if tiny."""
    return f"{value:.3f}" if value >= 0.1 else f"{value:.2g}"


def show_place(run, x):
    """Where the best evaluation stands: "step 4,000", "65.5M tokens" or "12.5 min"."""
    value = run.val[X_COLUMNS[x]][run.best]
    if x == "steps":
        return f"step {value:,.0f}"
    return f"{_show_count(value)} tokens" if x == "tokens" else f"{value:.1f} min"


# -- what stands above and beside the curves -------------------------------------------------------


def _add_header(figure, runs, names, x, smooth):
    """The title and what each kind of line means; for several runs a row of their names."""
    single = len(runs) == 1
    title = f"{names[0]}: train and val loss" if single else "Train and val loss"

    train_colour, val_colour = _colours(0, True) if single else (QUIET, QUIET)
    keys = [("train", Line2D([], [], color=train_colour, linewidth=1.6))]
    if smooth > 0:
        keys = [
            ("train", Line2D([], [], color=train_colour, alpha=0.35, linewidth=0.9)),
            ("train, smoothed", Line2D([], [], color=train_colour, linewidth=1.6)),
        ]
    keys.append(("val", Line2D([], [], color=val_colour, **VAL_LINE)))
    best = "best val"
    if single and runs[0].best is not None:
        best += f", at {show_place(runs[0], x)}"
    keys.append((best, Line2D([], [], color=val_colour, **BEST_POINT)))
    heading = figure.text(0, 0, title, fontsize=12, fontweight="bold", va="center")
    key = figure.legend(
        [handle for _, handle in keys],
        [label for label, _ in keys],
        ncols=len(keys),
        loc="center right",
        handlelength=1.9,
        handletextpad=0.5,
        columnspacing=1.3,
        labelcolor=QUIET,
    )
    key.set_gid("key")

    # All is measured before it is placed: names may be long, and Chinese is wide.
    room = (WIDTH - LEFT - RIGHT) * figure.dpi
    together = heading.get_window_extent().width + key.get_window_extent().width
    key_row = KEY_ROW if together > room - 0.2 * figure.dpi else 0
    rows, legend = (0, None) if single else _run_legend(figure, runs, names, x, room)

    header = TITLE_ROW + key_row + RUN_ROW * rows
    height = PANELS + BOTTOM + header
    left, right = LEFT / WIDTH, 1 - RIGHT / WIDTH
    figure.set_size_inches(WIDTH, height)
    figure.subplots_adjust(left, BOTTOM / height, right, 1 - header / height)
    middle = 1 - 0.5 * TITLE_ROW / height
    heading.set_position((left, middle))
    key.set_bbox_to_anchor((right, middle - 0.8 * key_row / height))
    if legend:
        legend.set_bbox_to_anchor((left, 1 - (TITLE_ROW + key_row) / height))


def _run_legend(figure, runs, names, x, room):
    """(rows, legend): colour, name and best val of each run, in as few rows as `room` allows."""
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
        # matplotlib drops a label that begins with _ from a legend, but not a text set later.
        for text, label in zip(legend.get_texts(), labels, strict=True):
            text.set_text(label)
        if columns == 1 or legend.get_window_extent().width <= room:
            legend.set_gid("runs")
            return rows, legend
        legend.remove()


def _run_label(run, name, x):
    if run.best is None:
        return f"{name}\nno val loss yet"
    return f"{name}\n{show_loss(run.val['val_loss'][run.best])} at {show_place(run, x)}"


def _label_best_points(figure, axes, runs):
    """Write each best value beside its point, where it covers least of curves and other labels."""
    renderer = figure.canvas.get_renderer()
    by_gid = {line.get_gid(): line for line in axes.get_lines()}
    to_pixels = axes.transData.transform
    ink = np.concatenate(
        [_along(to_pixels(line.get_xydata())) for gid, line in by_gid.items() if ":" in gid]
    )  # (points, 2) in pixels
    points = [line for gid, line in by_gid.items() if gid.startswith("best:")]
    taken = [Bbox(to_pixels(p.get_xydata())[[0, 0]]).padded(0.06 * figure.dpi) for p in points]
    frame = axes.get_window_extent()
    for i, run in enumerate(runs):
        if run.best is None:
            continue
        point = by_gid[f"best:{i}"]
        best = None
        for right, up, far in LABEL_PLACES:
            label = axes.annotate(
                show_loss(run.val["val_loss"][run.best]),
                point.get_xydata()[0],
                xytext=(9 * right * far, 10 * up * far),
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
            covered = ((ink > box.min) & (ink < box.max)).all(axis=1).sum()
            clashes = sum(box.overlaps(other) for other in taken)
            outside = not (frame.x0 <= box.x0 and box.x1 <= frame.x1 and frame.y0 <= box.y0)
            cost = covered + 1000 * clashes + 10000 * outside
            if best is None or cost < best[0]:
                if best:
                    best[1].remove()
                best = cost, label, box
            else:
                label.remove()
        taken.append(best[2])


# Where a label may stand beside its point: (right, up, distance), the likeliest to be free first.
LABEL_PLACES = [
    (right, up, far)
    for far in (1, 2.6)
    for right, up in [(0, -1), (1, -1), (-1, -1), (0, 1), (1, 1), (-1, 1), (1, 0), (-1, 0)]
]


def _along(points, gap=3.0):
    """Points at most about `gap` pixels apart along the line through `points` (n, 2)."""
    points = points[np.isfinite(points).all(axis=1)]
    if len(points) < 2:
        return points
    lengths = np.hypot(*np.diff(points, axis=0).T)
    travelled = np.concatenate([[0], np.cumsum(lengths)])
    wanted = np.arange(0, travelled[-1] + gap, gap)
    return np.stack([np.interp(wanted, travelled, points[:, k]) for k in (0, 1)], axis=1)


# -- names that the usual font cannot write --------------------------------------------------------


def drawable(names):
    """(names, families, notes): `names` as they can be drawn, with these font families.

    An installed font is looked for that has every character which matplotlib's own lacks. Where
    there is none, a name with such characters becomes "run 2", and a note says so.
    """
    own = font_manager.get_font(font_manager.findfont("DejaVu Sans"))
    names = _apart(names)
    lacking = {c for name in names for c in name if not own.get_char_index(ord(c))}
    if not lacking:
        return names, ["DejaVu Sans"], []
    family = find_font(lacking)
    if family:
        return names, ["DejaVu Sans", family], []
    notes = []
    for i, name in enumerate(names):
        if lacking & set(name):
            notes.append(f"{name} is called run {i + 1}")
            names[i] = f"run {i + 1}"
    note = f"note: no installed font can write these names, so {', '.join(notes)} in the picture; "
    return names, ["DejaVu Sans"], [note + "install one that has Chinese, such as Noto Sans CJK SC"]


def find_font(characters):
    """The family of an installed font that has all `characters`, or None."""
    known = sorted(
        font_manager.fontManager.ttflist,
        key=lambda font: CJK_FONTS.index(font.name) if font.name in CJK_FONTS else len(CJK_FONTS),
    )
    for font in known:
        if _has(font.fname, characters) and "Last Resort" not in font.name:  # which is all boxes
            return font.name
    # matplotlib keeps its list of fonts in a cache, which one installed since is not in.
    listed = {font.fname for font in known}
    for path in font_manager.findSystemFonts():
        if path not in listed and "lastresort" not in Path(path).name.lower():
            with contextlib.suppress(Exception):  # a damaged font is no font
                if _has(path, characters):
                    font_manager.fontManager.addfont(path)
                    return font_manager.fontManager.ttflist[-1].name
    return None


def _has(path, characters):
    try:
        font = font_manager.get_font(path)
        return all(font.get_char_index(ord(c)) for c in characters)
    except (OSError, RuntimeError):
        return False


def _shortened(name):
    half = NAME_LENGTH // 2
    return name if len(name) <= NAME_LENGTH else f"{name[: half - 1]}…{name[-half:]}"


def _apart(names):
    """Names shortened, but so that different ones stay different: where their middle tells them
    apart, what they begin with alike goes."""
    short = {name: _shortened(name) for name in names}
    for alike in {short[name] for name in names}:
        group = [name for name in short if short[name] == alike]
        if len(group) > 1:
            # To four characters before the first place where they are not all the same.
            columns = enumerate(zip(*group, strict=False))
            shared = max(0, next((i for i, column in columns if len(set(column)) > 1), 0) - 4)
            tails = [f"…{name[shared:]}" for name in group]
            tails = [t if len(t) <= NAME_LENGTH else f"{t[: NAME_LENGTH - 1]}…" for t in tails]
            short |= zip(group, tails if len(set(tails)) == len(tails) else group, strict=True)
    return [short[name] for name in names]


# -- files -----------------------------------------------------------------------------------------


def output_paths(text):
    """The files that `--output=a.png,b.svg` names, checked. UserError lists every mistake."""
    paths = [Path(part.strip()) for part in text.split(",") if part.strip()]
    problems = [
        f"--output: {path}: expected a name that ends in {' or '.join(FORMATS)}"
        for path in paths
        if path.suffix.lower() not in FORMATS
    ]
    problems += [f"--output: {path}: is a folder" for path in paths if path.is_dir()]
    if not paths:
        problems.append("--output: names no file; write --output=loss.png")
    if problems:
        raise UserError("\n".join(problems))
    return paths


def write_figure(figure, paths, dpi=200):
    """Write `figure` to each of `paths`, PNG or SVG by the suffix; folders are made as needed.

    An interruption leaves the old picture. UserError where a file cannot be written.
    """
    for path in map(Path, paths):
        picture = io.BytesIO()
        kind = path.suffix.lower()[1:]
        metadata = {"Date": None} if kind == "svg" else {}
        with style_context(["default", STYLE]):
            figure.savefig(picture, format=kind, dpi=dpi, metadata=metadata)
        try:
            with written_whole(path) as partial:
                partial.write_bytes(picture.getvalue())
        except OSError as error:
            raise UserError(f"{path}: cannot be written ({error.strerror or error})") from None


# -- a file of pairs -------------------------------------------------------------------------------

CENSUS_SIZE = (11.0, 6.4)  # inches
MOST_BARS = 12  # of a panel whose labels are text


def census_figure(census):
    """A Figure of a PairStatistics (minigpt.synthesis.statistics): how long questions and answers
    are, how many pairs an entry has, what is asked for, how questions begin, which rules replies
    broke.

    Returns (figure, notes) as loss_figure() does. Bars carry gids "questions", "answers",
    "per_entry", "kinds", "openings", "rules"; a panel with nothing to show is left out.
    """
    (title,), families, notes = drawable([census.path.name])
    kinds, openings = census.kinds.most_common(MOST_BARS), census.openings.most_common(MOST_BARS)
    chinese = {c for label, _ in [*kinds, *openings] for c in label if not c.isascii()}
    family = find_font(chinese) if chinese else None
    if family:
        families = [*families, family]
    elif chinese:
        # Each kind has an English name too; openings are words of the language itself.
        kinds = [(label.rpartition(" ")[0] and label.partition(" ")[2], n) for label, n in kinds]
        openings = [(f"no. {i}", n) for i, (_, n) in enumerate(openings, start=1)]
        notes = [
            "note: no installed font has Chinese: the picture numbers the openings listed here"
        ]
    rules = census.progress.first.most_common(MOST_BARS) if census.progress else []
    with style_context(["default", STYLE, {"font.family": families}]):
        figure = Figure(figsize=CENSUS_SIZE, layout="constrained")
        FigureCanvasAgg(figure)
        figure.suptitle(f"{title}: {census.pairs:,} pairs", fontsize=12, fontweight="bold")
        (questions, answers, per_entry), lower = figure.subplots(2, 3)
        _length_bars(questions, census.questions, "questions", PALETTE[0])
        _length_bars(answers, census.answers, "answers", PALETTE[1])
        _count_bars(per_entry, census.per_entry)
        for axes, bars, gid, heading, colour in (
            (lower[0], kinds, "kinds", "what is asked for", PALETTE[2]),
            (lower[1], openings, "openings", "how questions begin", PALETTE[3]),
            (lower[2], rules, "rules", "rules that first replies broke", PALETTE[4]),
        ):
            _label_bars(axes, bars, gid, heading, colour)
    return figure, notes


def _length_bars(axes, lengths, gid, colour):
    """A histogram of length → pairs over at most 40 bars of equal width; the longest hundredth
    stands in the last."""
    total, far, limit = sum(lengths.values()), 0, 1
    for limit in sorted(lengths):
        far += lengths[limit]
        if far >= 0.99 * total:
            break
    width = -(-limit // 40)
    heights = np.zeros(limit // width + 1)
    for length, n in lengths.items():
        heights[min(length, limit) // width] += n
    places = (np.arange(len(heights)) + 0.5) * width - 0.5
    axes.bar(places, heights, width * 0.92, color=colour, gid=gid)
    more = " (last bar: more)" if max(lengths, default=0) > limit else ""
    _name_panel(axes, f"characters of {gid}{more}")
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: _show_count(value)))


def _count_bars(axes, counts):
    if not counts:
        axes.remove()
        return
    places = sorted(counts)
    axes.bar(places, [counts[n] for n in places], 0.85, color=PALETTE[5], gid="per_entry")
    _name_panel(axes, "entries by their number of pairs")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: _show_count(value)))


def _label_bars(axes, bars, gid, heading, colour):
    """Bars that lie, the greatest above, each with its label."""
    if not bars:
        axes.remove()
        return
    axes.barh(range(len(bars)), [n for _, n in bars], 0.78, color=colour, gid=gid)
    axes.set_yticks(range(len(bars)), [_shortened(label) for label, _ in bars])
    axes.invert_yaxis()
    axes.tick_params(axis="y", length=0)
    axes.grid(False, axis="y")
    axes.xaxis.set_major_locator(MaxNLocator(4))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: _show_count(value)))
    _name_panel(axes, heading)


def _name_panel(axes, name):
    axes.set_title(name, fontsize=9.5, loc="left", color=QUIET)
    axes.tick_params(length=0)


# -- the trials of a sweep -------------------------------------------------------------------------

IN_COLOUR = 6  # so many of the best trials
OTHERS = "#c4c4c4"


def sweep_figure(trials, names, metric):
    """A Figure: the val loss of every trial over its tokens, the best in colour, the others grey.

    trials: [(label, score, curves)], best first; curves has one [(tokens, val_loss), …] a seed.
    names:  what the labels are values of.   metric: what the score is called
    Returns (figure, notes) as loss_figure() does. Lines carry gids "trial:0:1": the trial's rank,
    the number of its curve.
    """
    labels, families, notes = drawable([label for label, _, _ in trials])
    runs = [[_val_alone(curve) for curve in curves] for _, _, curves in trials]
    every = [run for of_trial in runs for run in of_trial]
    with style_context(["default", STYLE, {"font.family": families}]):
        figure = Figure(figsize=(WIDTH + 2, PANELS + BOTTOM), layout="constrained")
        figure.get_layout_engine().set(w_pad=0.12, h_pad=0.12)  # inches
        FigureCanvasAgg(figure)
        axes = figure.subplots()
        for rank, of_trial in enumerate(runs):
            best = rank < IN_COLOUR
            look = dict(
                color=PALETTE[rank] if best else OTHERS,
                linewidth=1.6 if best else 1.0,
                zorder=4 - rank / len(runs) if best else 2,
            )
            for i, run in enumerate(of_trial):
                xs, ys = run.val["tokens"], run.val["val_loss"]
                axes.plot(xs, ys, gid=f"trial:{rank}:{i}", **look)
        scales = choose_scales(every, "tokens", "auto")
        _set_x(axes, every, "tokens", scales[0])
        _set_loss_axis(axes, every, "tokens", *scales)
        axes.set_xlabel("tokens")
        axes.set_ylabel("val loss (nats per token)")
        _add_ranking(figure, labels, [score for _, score, _ in trials], f"{names}:\n{metric}")
    return figure, notes


def _add_ranking(figure, labels, scores, title):
    """Beside the picture the best trials by name, and what the grey ones are."""
    handles = [Line2D([], [], color=colour, linewidth=3) for colour in PALETTE[: len(labels)]]
    texts = [f"{label}: {score:.3f}" for label, score in zip(labels, scores, strict=True)]
    handles, texts = handles[:IN_COLOUR], texts[:IN_COLOUR]
    if len(labels) > IN_COLOUR:
        handles.append(Line2D([], [], color=OTHERS, linewidth=3))
        texts.append(f"{len(labels) - IN_COLOUR} others, up to {scores[-1]:.3f}")
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


def _val_alone(curve):
    """[(tokens, val_loss), …] as a RunLog without progress lines."""
    empty = np.empty(0)
    points = np.array(curve, np.float64).reshape(-1, 2)  # (evaluations, 2)
    val = {name: np.zeros(len(points)) for name in VAL} | {"best": np.ones(len(points))}
    val["tokens"], val["val_loss"] = points.T
    return RunLog(Path(), dict.fromkeys(TRAIN, empty), val)


# -- a race ----------------------------------------------------------------------------------------


def race_figure(curves):
    """A Figure: bits per character over minutes of training, a colour for each recipe.

    curves: name → [[(minutes, bits), …] of each seed]. Returns (figure, notes) as loss_figure()
    does. A recipe's name stands at the mean of where its seeds end. Lines carry gids "race:NAME:0",
    the number of the seed.
    """
    labels, families, notes = drawable(list(curves))
    with style_context(["default", STYLE, {"font.family": families}]):
        figure = Figure(figsize=(WIDTH, 4.2), layout="constrained")
        FigureCanvasAgg(figure)
        axes = figure.subplots()
        for i, (label, (name, seeds)) in enumerate(zip(labels, curves.items(), strict=True)):
            for j, points in enumerate(seeds):
                look = dict(color=PALETTE[i], gid=f"race:{name}:{j}")
                axes.plot(*zip(*points, strict=True), marker="o", markersize=3, **look)
            minutes, bits = np.mean([points[-1] for points in seeds], axis=0)
            axes.annotate(
                f" {label} {bits:.2f}", (minutes, bits), color=PALETTE[i], va="center", fontsize=9
            )
        axes.set_xscale("log")
        ticks = [first * 10.0**n for n in range(-3, 5) for first in (1, 2, 5)]
        axes.xaxis.set_major_locator(FixedLocator(ticks))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axes.xaxis.set_minor_formatter(NullFormatter())
        axes.margins(x=0.12)
        axes.set_xlabel("minutes of training")
        axes.set_ylabel("held-out bits per character")
    return figure, notes


# -- a confusion matrix ----------------------------------------------------------------------------

MATRIX = 15.0  # inches, at most, that the cells of a matrix take
WRITTEN_CELLS = 30  # classes, at most, of a matrix in whose cells the counts are written


def confusion_figure(panels, labels):
    """A Figure: a confusion matrix for each panel, rows true labels and columns given ones.

    panels: heading → counts (n, n + 1), lists or arrays, whose last column is "none": it is drawn
    where any panel has something in it. A cell is the darker the greater its share of the row.
    Returns (figure, notes) as loss_figure() does. Matrices carry gids "confusion:HEADING".
    """
    names, families, notes = drawable(list(labels))
    tables = {heading: np.asarray(counts) for heading, counts in panels.items()}
    with_none = any(counts[:, -1].any() for counts in tables.values())
    columns = [*names, "none"] if with_none else names
    across = min(2, len(tables))
    down = -(-len(tables) // across)
    cell = min(0.62, MATRIX / len(columns))  # inches
    size = across * (cell * len(columns) + 1.7), down * (cell * len(names) + 1.5)
    with style_context(["default", STYLE, {"font.family": families}]):
        figure = Figure(figsize=size, layout="constrained")
        FigureCanvasAgg(figure)
        grid = figure.subplots(down, across, squeeze=False)
        for axes, (heading, counts) in zip(grid.flat, tables.items(), strict=False):
            _draw_confusion(axes, counts[:, : len(columns)], names, columns, heading)
        for axes in grid.flat[len(tables) :]:
            axes.remove()
        figure.supxlabel("label given", color=QUIET, fontsize=10)
        figure.supylabel("true label", color=QUIET, fontsize=10)
    return figure, notes


def _draw_confusion(axes, counts, names, columns, heading):
    shares = counts / np.maximum(counts.sum(1, keepdims=True), 1)
    axes.imshow(shares, cmap="Blues", vmin=0, vmax=1, aspect="equal", gid=f"confusion:{heading}")
    for row, column in np.ndindex(*counts.shape):
        if counts[row, column] and len(columns) <= WRITTEN_CELLS:
            colour = "white" if shares[row, column] > 0.55 else INK
            place = dict(ha="center", va="center", color=colour, fontsize=9.5)
            axes.text(column, row, f"{counts[row, column]:,}", **place)
    look = dict(fontsize=max(3.0, min(10.0, 72 * 0.9 * MATRIX / len(columns))))  # a line a cell
    rotated = dict(rotation=40 if len(columns) <= WRITTEN_CELLS else 90, ha="right", va="center")
    axes.set_xticks(range(len(columns)), columns, rotation_mode="anchor", **rotated, **look)
    axes.set_yticks(range(len(names)), names, **look)
    axes.grid(False)
    axes.spines[:].set_visible(False)
    _name_panel(axes, heading)


# -- a grid of settings ----------------------------------------------------------------------------


def grid_figure(name, title, axes, panels, top=None):
    """A Figure of what was measured of the run called `name` over a grid of settings.

    axes: setting → values, of one setting or of two. panels: heading → measured, lists or arrays
    with an entry for each combination. One setting: a line for each panel. Two: a heat map for
    each, the first setting downwards. top: the scale's upper end; None takes the highest value.
    Returns (figure, notes) as loss_figure() does. Lines and maps carry gids "grid:HEADING".
    """
    (name,), families, notes = drawable([name])
    title = f"{name}\n{title}"
    panels = {heading: np.asarray(values, float) for heading, values in panels.items()}
    highest = max(values.max() for values in panels.values()) or 1.0
    top = top or highest
    with style_context(["default", STYLE, {"font.family": families}]):
        if len(axes) == 1:
            figure = _grid_lines(title, *axes.items(), panels, top)
        else:
            figure = _grid_maps(title, *axes.items(), panels, top)
    return figure, notes


def _grid_lines(title, setting, panels, top):
    name, values = setting
    figure = Figure(figsize=(WIDTH, 4.2), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    xs, order = np.asarray(values, float), np.argsort(values)
    labels = [f"{value:g}" for value in values]
    if name == "top_k":  # 1, 5, 50 …; 0 takes all, which is the most
        order = np.argsort([value or math.inf for value in values])
        labels = [label if label != "0" else "0 (all)" for label in labels]
        xs = np.argsort(order).astype(float)  # places, evenly spaced
    for (heading, measured), colour in zip(panels.items(), PALETTE, strict=False):
        look = dict(color=colour, marker="o", markersize=4, linewidth=1.6, clip_on=False)
        axes.plot(xs[order], measured[order], label=heading, gid=f"grid:{heading}", **look)
    axes.set_ylim(0, 1.04 * top)
    axes.set_xlabel(name)
    axes.set_xticks(xs, labels)
    figure.suptitle(title, fontsize=12, fontweight="bold")
    figure.legend(loc="outside lower center", ncols=3, handlelength=1.6)
    return figure


def _grid_maps(title, down, right, panels, top):
    across = min(3, len(panels))
    rows = -(-len(panels) // across)
    cell = 0.72  # inches
    width = across * (cell * len(right[1]) + 1.1) + 0.4
    height = rows * (0.62 * cell * len(down[1]) + 1.1) + 0.5
    figure = Figure(figsize=(max(width, 4.6), height), layout="constrained")
    FigureCanvasAgg(figure)
    grid = figure.subplots(rows, across, squeeze=False)
    for axes, (heading, measured) in zip(grid.flat, panels.items(), strict=False):
        look = dict(cmap="Blues", vmin=0, vmax=top, aspect="auto", gid=f"grid:{heading}")
        axes.imshow(measured, **look)
        for place, value in np.ndenumerate(measured):
            colour = "white" if value > 0.55 * top else INK
            text = f"{value:.2f}" if top <= 1 else f"{value:.0f}"
            axes.text(*place[::-1], text, ha="center", va="center", color=colour, fontsize=9.5)
        axes.set_yticks(range(len(down[1])), [f"{value:g}" for value in down[1]])
        axes.set_xticks(range(len(right[1])), [f"{value:g}" for value in right[1]])
        axes.set_ylabel(down[0])
        axes.set_xlabel(right[0])
        axes.grid(False)
        axes.spines[:].set_visible(False)
        _name_panel(axes, heading)
    for axes in grid.flat[len(panels) :]:
        axes.remove()
    figure.suptitle(title, fontsize=12, fontweight="bold")
    return figure


# -- a finding -------------------------------------------------------------------------------------


def finding_figure(title, panels, curves=None):
    """A Figure: what was measured of each arm of an experiment, a dot for each seed and their mean.

    panels: measure → arm → values, one for each seed; not every arm need be in every panel.
    curves: arm → [(steps, val losses) of each seed], drawn below; None: no such panel.
    Returns (figure, notes) as loss_figure() does. Dots carry gids "seeds:MEASURE:ARM", means
    "mean:MEASURE:ARM", curves "curve:ARM:0", the number of the seed.
    """
    arms = list(dict.fromkeys(arm for of_arm in panels.values() for arm in of_arm))
    labels, families, notes = drawable(arms)
    colours = {arm: PALETTE[i % len(PALETTE)] for i, arm in enumerate(arms)}
    rows = 1.2 + 0.42 * len(arms)  # inches: the panels' height
    with style_context(["default", STYLE, {"font.family": families}]):
        size = WIDTH, rows + 0.5 + (2.9 if curves else 0)
        figure = Figure(figsize=size, layout="constrained")
        FigureCanvasAgg(figure)
        parts = figure.subfigures(2, 1, height_ratios=[rows, 2.9]) if curves else [figure]
        row = parts[0].subplots(1, len(panels), sharey=True, squeeze=False)[0]
        for axes, (measure, of_arm) in zip(row, panels.items(), strict=True):
            for arm, values in of_arm.items():
                place, mean = arms.index(arm), sum(values) / len(values)
                look = dict(color=colours[arm], linestyle="")
                gid = f"{measure}:{arm}"
                axes.plot(
                    values, [place] * len(values), "o", alpha=0.55, gid=f"seeds:{gid}", **look
                )
                axes.plot(mean, place, "|", ms=20, mew=2.4, gid=f"mean:{gid}", **look)
                axes.annotate(
                    f"{mean:.4g}",
                    (mean, place),
                    (0, 13),
                    textcoords="offset points",
                    ha="center",
                    fontsize=9,
                    color=colours[arm],
                )
            axes.set_yticks(range(len(arms)), labels)
            axes.set_ylim(len(arms) - 0.4, -0.75)
            axes.xaxis.set_major_locator(MaxNLocator(4))
            axes.ticklabel_format(axis="x", useOffset=False)
            axes.margins(x=0.15)
            axes.set_xlabel(measure)
        if curves:
            below = parts[1].subplots()
            for arm, seeds in curves.items():
                for i, (steps, losses) in enumerate(seeds):
                    look = dict(color=colours[arm], linewidth=1.4, gid=f"curve:{arm}:{i}")
                    name = labels[arms.index(arm)]
                    below.plot(steps, losses, label=None if i else name, **look)
            below.set_xlabel("step")
            below.set_ylabel("val loss (nats per token)")
            below.legend()
        figure.suptitle(title, fontsize=12, fontweight="bold")
    return figure, notes
