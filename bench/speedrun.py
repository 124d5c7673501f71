"""How soon is a model as good? Held-out bits per character over training time, recipe by recipe.

    python bench/speedrun.py --input=TEXTS                                # 10 minutes, three seeds
    python bench/speedrun.py --input=TEXTS --minutes=30 --seeds=1337,1338,1339
    python bench/speedrun.py --input=TEXTS --body=124M --out_dir=out/speedrun_gpu

Three recipes of one body (config/cpu_small.py, or the 124M of config/train_config.py) learn the
same texts on the same cores, one after the other, each for --minutes of training:

    classic   GPT-2's vocabulary and shape, a text a block, AdamW, cosine (config/classic.py)
    adamw     the `zh` vocabulary and split blocks with GPT-2's shape and AdamW, as a sweep tuned it
    default   the body's recipe as it stands; its schedule may end sooner: --default_minutes

A run is stopped a few times on the way (train.py saves, and goes on to the bit), scored over the
same held-out characters, and resumed, so that scoring takes none of its time. Prints when each
reached the others' last values, and draws the curves to OUT_DIR/speedrun.png. Finished runs are
kept: the same command again goes on where it was ended.
"""

import json
import pathlib
import shutil
import signal
import statistics
import subprocess
import sys
import time

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))

from config.configurator import ROOT, UserError, configure, run
from minigpt.plots import race_figure, write_figure
from minigpt.report import table, write_json
from minigpt.runlog import read_runlog

GPT2 = ["--position=learned", "--norm=layernorm", "--mlp=gelu", "--qk_norm=false", "--bias=true"]
BODIES = {
    # Learning rates of the others are for 124M parameters; at this size AdamW's best is near 1e-3.
    "cpu_small": (["config/cpu_small.py"], "--learning_rate=1e-3", "--learning_rate=2e-3"),
    "124M": (["--compile=true"], "--learning_rate=6e-4", "--learning_rate=6e-4"),
}


class Settings:
    input: str = ""  # texts, as data/prepare.py takes them
    minutes: float = 10.0  # of training a run
    default_minutes: float | None = None  # of the default recipe; none: as many
    seeds: str = "1337,1338,1339"
    marks: str = "0.05,0.1,0.2,0.35,0.5,0.7,0.85,1"  # shares of a run at which it is scored
    recipes: str = "classic,adamw,default"
    body: str = "cpu_small"  # or 124M
    adamw: str | None = None  # flags for it; none: what the sweep found
    out_dir: str = "out/speedrun"  # data and runs


def main():
    settings = configure(Settings, doc=__doc__)
    names = settings.recipes.split(",")
    if settings.body not in BODIES:
        raise UserError(f"body={settings.body}: expected {' or '.join(BODIES)}")
    body, classic, adamw = BODIES[settings.body]
    adamw = (adamw if settings.adamw is None else settings.adamw).split()
    recipes = {
        "classic": ["config/classic.py", *body, classic],
        "adamw": [*body, *GPT2, "--optimizer=adamw", "--layout=split", *adamw],
        "default": body,
    }
    if unknown := set(names) - set(recipes):
        raise UserError(f"recipes: {', '.join(unknown)}: expected some of {', '.join(recipes)}")
    folder = pathlib.Path(settings.out_dir)
    for name in {"default", *names}:  # the default's held-out entries judge all
        if not (folder / f"data_{name}").exists():
            words = [word for word in recipes[name] if not word.startswith("--")]
            words += [word for word in recipes[name] if word.startswith("--layout")]
            words += [f"--input={settings.input}", f"--dataset={folder}/data_{name}"]
            call("data/prepare.py", *words)
    curves = {name: [] for name in names}
    for seed in settings.seeds.split(","):
        for name in names:
            minutes = settings.minutes
            if name == "default" and settings.default_minutes:
                minutes = settings.default_minutes
            out_dir = folder / f"{name}_{minutes:g}_{seed}"
            curves[name].append(race(settings, name, recipes[name], seed, minutes, out_dir))
    report(curves)
    figure, _ = race_figure(curves)
    write_figure(figure, [folder / "speedrun.png"])


def race(settings, name, recipe, seed, minutes, out_dir):
    """[(minutes of training, bits per character)] of one run, trained and scored mark by mark."""
    note = out_dir / "speedrun.json"
    points = json.loads(note.read_text()) if note.exists() else []
    for mark in [float(mark) for mark in settings.marks.split(",")][len(points) :]:
        words = [*recipe, f"--dataset={settings.out_dir}/data_{name}", f"--seed={seed}"]
        words += [f"--max_minutes={minutes:g}", "--max_iters=1000000", "--log_interval=1"]
        words += ["--eval_interval=1000000", "--overwrite=true"]  # it is scored here
        if points:
            words = ["--init_from=resume"]
        else:
            shutil.rmtree(out_dir, ignore_errors=True)  # what a killed run had left
        until = mark * minutes if mark < 1 else None
        train_until(until, [*words, f"--out_dir={out_dir}"], out_dir)
        texts = f"--text={settings.out_dir}/data_default/val.jsonl"
        call("evaluations-perplexity.py", f"--out_dir={out_dir}", texts)
        score = json.loads((out_dir / "perplexity.json").read_text(encoding="utf-8"))
        points.append((minutes_of(out_dir), score["text"]["bits_per_char"]))
        print(f"{name}, seed {seed}: {points[-1][0]:.2f} min, {points[-1][1]:.3f} bits/char")
        write_json(note, points)
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


def minutes_of(out_dir):
    """Minutes of training that a run's log tells of."""
    try:
        return read_runlog(out_dir).end("minutes")
    except UserError:  # no step yet
        return 0.0


def call(*words):
    """Run one of the project's scripts, shown as a person would type it."""
    show(*words)
    subprocess.run([sys.executable, *words], cwd=ROOT, check=True, stdout=subprocess.DEVNULL)


def show(*words):
    print("$ python", *words, flush=True)


# -- what it tells ---------------------------------------------------------------------------------


def mean_curve(curves):
    """One curve of several: mark by mark the mean of minutes and of bits."""
    return [
        tuple(map(statistics.mean, zip(*points, strict=True)))
        for points in zip(*curves, strict=True)
    ]


def reached(curve, bits):
    """The minutes after which a curve has come down to `bits`, between two points on the straight
    line; None where it never does."""
    before, above = None, None
    for after, below in curve:
        if below <= bits:
            if before is None:
                return after
            return before + (above - bits) / (above - below) * (after - before)
        before, above = after, below
    return None


def report(curves):
    """The table that stands in bench/README.md."""
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


if __name__ == "__main__":
    run(main)
