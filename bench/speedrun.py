"""Quality over training time: held-out bits per character of three recipes.

    python bench/speedrun.py --input=TEXTS                                # 10 minutes, three seeds
    python bench/speedrun.py --input=TEXTS --minutes=30 --seeds=1337,1338,1339
    python bench/speedrun.py --input=TEXTS --body=124M

Three recipes of one model size (config/cpu_small.py, or the 124M of config/train_config.py) train
on the same texts and cores, one after the other, each for --minutes of training:

    classic   GPT-2's vocabulary and shape, one text per block, AdamW, cosine (config/classic.py)
    adamw     the `zh` vocabulary and split blocks with GPT-2's shape and AdamW, tuned by a sweep
              (at 124M not tuned)
    default   the default recipe of this size; --default_minutes can shorten its schedule

A run is stopped a few times (train.py saves, and resumes bit-exactly), evaluated over the same
held-out characters, and resumed, so evaluation takes none of its time. Prints when each recipe
reached the others' final values, and draws the curves to OUT_DIR/BODY/speedrun.png. Finished runs
are kept: the same command continues after an interruption.
"""

import json
import math
import pathlib
import shutil
import signal
import statistics
import subprocess
import sys
import time
import zlib

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))

from config.configurator import configure
from minigpt.common.errors import ROOT, UserError, preflight, run

# Size → the default recipe, what the classic recipe adds to it, the flags of AdamW.
BODIES = {
    "cpu_small": (
        ["config/cpu_small.py"],
        ["config/classic_small.py"],
        ["--learning_rate=1.5e-4", "--embedding_lr_ratio=108"],  # LOG.md has the sweep
    ),
    "124M": (["--compile=true"], [], ["--learning_rate=6e-4"]),
}


class Settings:
    input: str = ""  # texts for data/prepare.py
    minutes: float = 10.0  # of training per run
    default_minutes: float | None = None  # of the default recipe; none: the same
    seeds: list[str] = ["1337", "1338", "1339"]
    marks: list[str] = ["0.02", "0.06", "0.15", "0.3", "0.5", "1"]  # fractions of a run at
    #                             which it is evaluated
    recipes: list[str] = ["classic", "adamw", "default"]
    body: str = "cpu_small"  # or 124M
    adamw: str | None = None  # flags of `adamw`; none: what the sweep found
    out_dir: str = "out/speedrun"  # datasets and runs, a folder for each body


def read_settings():
    """The settings, checked."""
    return configure(Settings, doc=__doc__, quiet=True)


if __name__ == "__main__":
    preflight(read_settings)  # --help and mistakes, before the imports below, which take seconds

import numpy as np
from matplotlib.ticker import FixedLocator, FuncFormatter, NullFormatter

from bench.steps import GPT2
from minigpt.common.report import table, write_json
from minigpt.common.scripts import call, show
from minigpt.models import checkpoint
from minigpt.plotting.fonts import drawable
from minigpt.plotting.output import write_figure
from minigpt.plotting.style import PALETTE, WIDTH, new_figure, styled
from minigpt.training.log import read_runlog

GPT2_SHAPE = [f"--{name}={str(value).lower()}" for name, value in GPT2.items()]


def main():
    settings = read_settings()
    print(settings.describe(), flush=True)
    recipes, marks = check(settings)
    folder = pathlib.Path(settings.out_dir) / settings.body
    for name in {
        "default",
        *settings.recipes,
    }:  # all are evaluated on the default's val.jsonl
        words = [word for word in recipes[name] if not word.startswith("--")]
        words += [word for word in recipes[name] if word.startswith("--layout")]
        words += [f"--input={settings.input}", f"--dataset={folder}/data_{name}"]
        if is_new(folder / f"data_{name}.json", words):
            call("data/prepare.py", *words)
            write_json(folder / f"data_{name}.json", dict(words=words))
    curves = {name: [] for name in settings.recipes}
    for seed in settings.seeds:
        for name in settings.recipes:
            minutes = settings.minutes
            if name == "default" and settings.default_minutes:
                minutes = settings.default_minutes
            out_dir = folder / f"{name}_{minutes:g}_{seed}"
            words = [*recipes[name], f"--dataset={folder}/data_{name}", f"--seed={seed}"]
            curves[name].append(race(words, minutes, marks, out_dir))
    report(curves)
    figure, _ = race_figure(curves)
    write_figure(figure, [folder / "speedrun.png"])


def check(settings):
    """(name → the arguments of a recipe, the marks). UserError lists all mistakes."""
    problems = []
    if settings.body not in BODIES:
        raise UserError(f"body={settings.body}: expected {' or '.join(BODIES)}")
    body, classic, adamw = BODIES[settings.body]
    adamw = adamw if settings.adamw is None else settings.adamw.split()
    recipes = {
        "classic": ["config/classic.py", *body, *classic],
        "adamw": [*body, *GPT2_SHAPE, "--optimizer=adamw", "--layout=split", *adamw],
        "default": body,
    }
    if unknown := set(settings.recipes) - set(recipes):
        problems.append(f"recipes: {', '.join(unknown)}: expected some of {', '.join(recipes)}")
    problems += [
        f"{name}: expected at least one"
        for name in ("recipes", "seeds")
        if not getattr(settings, name)
    ]
    try:
        marks = list(map(float, settings.marks))
    except ValueError:
        marks = []
    if not marks or marks != sorted(set(marks)) or marks[0] <= 0 or marks[-1] != 1:
        problems.append(
            f"marks={','.join(settings.marks)}: expected rising fractions that end with 1"
        )
    if problems:
        raise UserError("\n".join(problems))
    return recipes, marks


def is_new(note, words):
    """Whether there is no note yet. UserError if it has other arguments."""
    if not note.exists():
        return True
    before = json.loads(note.read_text(encoding="utf-8"))["words"]
    if before != words:
        raise UserError(
            f"{note}: made by {' '.join(before)}, asked for {' '.join(words)}: "
            "give another --out_dir, or delete that one"
        )
    return False


def race(words, minutes, marks, out_dir):
    """[(minutes of training, bits per character), …] of one run, trained from mark to mark."""
    words = [*words, f"--max_minutes={minutes:g}", "--max_iters=1000000", "--log_interval=1"]
    words += ["--eval_interval=1000000", "--overwrite=true"]  # it is evaluated here
    note = out_dir / "speedrun.json"
    made_of, points = [*words, f"marks={','.join(map(str, marks))}"], []
    recipes = [word for word in words if not word.startswith("--")]  # a changed file is another run
    made_of += [f"{path} {zlib.crc32((ROOT / path).read_bytes()):08x}" for path in recipes]
    if is_new(note, made_of):
        shutil.rmtree(out_dir, ignore_errors=True)  # the rest of a killed run
    else:
        points = json.loads(note.read_text(encoding="utf-8"))["points"]
    for mark in marks[len(points) :]:
        until = mark * minutes if mark < 1 else None
        # A run that is already there was killed during its evaluation.
        if until is None or saved_minutes(out_dir) < until:
            again = ["--init_from=resume"] if points else words
            train_until(until, [*again, f"--out_dir={out_dir}"], out_dir)
        texts = f"--text={out_dir.parent}/data_default/val.jsonl"
        call("evaluations-perplexity.py", f"--out_dir={out_dir}", texts)
        score = json.loads((out_dir / "perplexity.json").read_text(encoding="utf-8"))
        points.append((saved_minutes(out_dir), score["text"]["bits_per_char"]))
        print(f"{out_dir.name}: {points[-1][0]:.2f} min, {points[-1][1]:.3f} bits/char", flush=True)
        write_json(note, dict(words=made_of, points=points))
    return [tuple(point) for point in points]


def train_until(minutes, words, out_dir):
    """Train, and stop the run after so many minutes of training; None: where it ends itself."""
    show("train.py", *words)
    running = subprocess.Popen(
        [sys.executable, "train.py", *words], cwd=ROOT, stdout=subprocess.DEVNULL
    )
    while running.poll() is None:
        time.sleep(0.2)
        if minutes is not None and minutes_of(out_dir) >= minutes:
            running.send_signal(signal.SIGINT)
            running.wait()
    if running.returncode:
        raise UserError(f"{out_dir}: train.py ended with exit code {running.returncode}")


def minutes_of(out_dir, step=math.inf):
    """Minutes of training up to a step, from the log; 0 before the first step."""
    try:
        rows = read_runlog(out_dir).train
    except UserError:
        return 0.0
    return float(rows["minutes"][rows["step"] <= step].max(initial=0))


def saved_minutes(out_dir):
    """Minutes of training of the saved weights."""
    if not checkpoint.exists(out_dir):
        return 0.0
    return minutes_of(out_dir, checkpoint.read_meta(out_dir)["step"])


# -- reports ---------------------------------------------------------------------------------------


def mean_curve(curves):
    """The mean of several curves: of minutes and of bits at each mark."""
    return [
        tuple(map(statistics.mean, zip(*points, strict=True)))
        for points in zip(*curves, strict=True)
    ]


def reached(curve, bits):
    """The minutes at which a curve reaches `bits`, interpolated linearly; None if it never does."""
    before, above = None, None
    for after, below in curve:
        if below <= bits:
            if before is None:
                return after
            return before + (above - bits) / (above - below) * (after - before)
        before, above = after, below
    return None


def report(curves):
    """Print the table of bench/README.md."""
    means = {name: mean_curve(each) for name, each in curves.items()}
    rows = []
    for name, curve in means.items():
        lasts = [each[-1][1] for each in curves[name]]
        spread = f" ± {(max(lasts) - min(lasts)) / 2:.3f}" if len(lasts) > 1 else ""
        row = [name, f"{curve[-1][0]:.1f}", f"{curve[-1][1]:.3f}{spread}"]
        for other in means.values():
            when = reached(curve, other[-1][1])
            row.append("–" if when is None else f"{when:.2f} ({when / other[-1][0]:.3f})")
        rows.append(row)
    header = [
        "recipe",
        "minutes",
        "bits/char",
        *(f"reaches {name} (of its time)" for name in means),
    ]
    print(table(header, rows))


def race_figure(curves):
    """A Figure: bits per character over minutes of training, a color for each recipe.

    curves: name → [[(minutes, bits), …] of each seed]. A recipe's name is at the mean of where its
    seeds end. Returns (figure, notes) as loss_figure() does.
    """
    labels, families, notes = drawable(list(curves))
    with styled(families):
        figure = new_figure((WIDTH, 4.2))
        axes = figure.subplots()
        for label, seeds, color in zip(labels, curves.values(), PALETTE, strict=False):
            for points in seeds:
                axes.plot(*zip(*points, strict=True), marker="o", markersize=3, color=color)
            minutes, bits = np.mean([points[-1] for points in seeds], axis=0)
            text = f" {label} {bits:.2f}"
            axes.annotate(text, (minutes, bits), color=color, va="center", fontsize=9)
        axes.set_xscale("log")
        ticks = [first * 10.0**n for n in range(-3, 5) for first in (1, 2, 5)]
        axes.xaxis.set_major_locator(FixedLocator(ticks))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axes.xaxis.set_minor_formatter(NullFormatter())
        axes.margins(x=0.12)
        axes.set_xlabel("minutes of training")
        axes.set_ylabel("held-out bits per character")
    return figure, notes


if __name__ == "__main__":
    run(main)
