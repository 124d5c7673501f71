"""What a model of each size reaches in some minutes: the table behind --budget_minutes.

    python bench/dial.py --input=TEXTS                        # 5, 20, 60 and 180 minutes: 18 hours
    python bench/dial.py --input=TEXTS --minutes=2,5          # what a coffee allows

Trains each size of --sizes (indices of SHAPES in minigpt/training/planning/dial.py) for each number
of minutes with the settings that the dial gives it, and prints bits per held-out character, the
best size of each budget, and the constants of Law that fit the losses best. Finished runs are kept:
the same command continues after an interruption.
"""

import json
import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))

from config.configurator import configure
from minigpt.common.errors import UserError, preflight, run

ALPHA = 0.34  # the exponent of the parameters (Hoffmann et al. 2022)


class Settings:
    input: str = ""  # texts for data/prepare.py
    minutes: list[str] = ["5", "20", "60", "180"]
    sizes: list[str] = ["0", "1", "2", "3"]
    out_dir: str = "out/dial"  # the dataset and the runs


def read_settings():
    """The settings, checked."""
    return configure(Settings, doc=__doc__, quiet=True)


if __name__ == "__main__":
    preflight(read_settings)  # --help and mistakes, before the imports below, which take seconds

import numpy as np

from data_utils import read_meta
from minigpt.common.report import table
from minigpt.common.scripts import call
from minigpt.models import checkpoint
from minigpt.training.planning.dial import SHAPES, worth


def main():
    settings = read_settings()
    try:
        minutes = sorted(map(float, settings.minutes))
        shapes = [SHAPES[int(word)] for word in settings.sizes]
    except (ValueError, IndexError):
        raise UserError(
            f"minutes and sizes: expected numbers, sizes of 0 to {len(SHAPES) - 1}"
        ) from None
    folder = pathlib.Path(settings.out_dir)
    data = folder / "data"
    if not (data / "meta.json").exists():
        call(
            "data/prepare.py",
            "config/cpu_small.py",
            f"--input={settings.input}",
            f"--dataset={data}",
        )
    points = [measure(shape, each, data, folder) for each in minutes for shape in shapes]
    report(points, shapes, minutes)
    fit(points)


def measure(shape, minutes, data, folder):
    """Train one size, and evaluate it over the held-out text; a dict of what it reached."""
    out_dir = folder / f"{shape[0]}x{shape[2]}_{minutes:g}"
    note = out_dir / "dial.json"
    if not note.exists():
        flags = dict(zip(("n_layer", "n_head", "n_embd"), shape, strict=True))
        flags |= dict(dataset=data, out_dir=out_dir, block_size=256, budget_minutes=f"{minutes:g}")
        flags |= dict(eval_interval=1000000, eval_iters=1, overwrite="true", sample_tokens=0)
        call("train.py", *(f"--{name}={value}" for name, value in flags.items()))
        call("evaluations-perplexity.py", f"--out_dir={out_dir}")
        score = json.loads((out_dir / "perplexity.json").read_text(encoding="utf-8"))
        meta = checkpoint.read_meta(out_dir)
        unique = read_meta(data)["counts"]["train"]["targets"]
        found = dict(shape=shape, minutes=minutes, tokens=meta["tokens"])
        found |= dict(loss=score["tokens"]["loss"], bits=score["text"]["bits_per_char"])
        found |= dict(n_params=checkpoint.load(out_dir).model.n_params())
        found |= dict(seen_once=worth(meta["tokens"], unique))
        note.write_text(json.dumps(found), encoding="utf-8")
    return json.loads(note.read_text(encoding="utf-8"))


def report(points, shapes, minutes):
    """Print bits per character by size and minutes."""
    rows = []
    for shape in shapes:
        mine = [point for point in points if tuple(point["shape"]) == shape]
        row = [f"{shape[0]} × {shape[2]}", f"{mine[0]['n_params'] / 1e6:.1f}M"]
        rows.append(row + [f"{point['bits']:.3f} ({point['tokens'] / 1e6:.1f}M)" for point in mine])
    header = ["layers × width", "parameters", *(f"{each:g} min: bits (tokens)" for each in minutes)]
    print(table(header, rows))


def fit(points):
    """Print the Law that fits the points best: beta on a grid, the rest by least squares. ALPHA is
    given: few sizes, all small, do not determine it."""
    n, d, y = (
        np.array([point[key] for point in points]) for key in ("n_params", "seen_once", "loss")
    )
    best = None
    for beta in np.arange(0.1, 0.71, 0.02):
        parts = np.stack([np.ones_like(y), n**-ALPHA, d**-beta], 1)
        found = np.linalg.lstsq(parts / y[:, None], np.ones_like(y), rcond=None)[0]
        error = float(np.square(parts @ found / y - 1).mean() ** 0.5)
        if min(found) >= 0 and (best is None or error < best[0]):
            best = (error, *found, beta)
    if best is None:
        raise UserError("no law fits these points: measure more sizes and minutes")
    error, floor, a, b, beta = best
    print(f"LAW = Law(floor={floor:.3f}, a={a:.4g}, alpha={ALPHA}, b={b:.4g}, beta={beta:.2f})")
    print(f"typical error of the fit: {error:.2%} of the loss, {len(points)} points")


if __name__ == "__main__":
    run(main)
