"""Fine-tuning on few pairs, by the README's commands: does the model learn what it is taught?

    python bench/short_sets.py --init_from=out/cpu_small --pairs=PAIRS.jsonl
    python bench/short_sets.py --init_from=out/cpu_small --pairs=PAIRS.jsonl --sizes=50 --seeds=1337

For each size the first so many pairs are prepared and trained on with config/cpu_small_sft.py. Then
the run answers some of the pairs that it was trained on, and all held-out ones. Prints the table of
bench/README.md. A run that is there already is only answered for again.
"""

import itertools
import json
import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))

from config.configurator import configure
from minigpt.common.errors import UserError, preflight, run

RECIPE = "config/cpu_small_sft.py"


class Settings:
    init_from: str = ""  # the base: a run of config/cpu_small.py
    pairs: str = ""  # question–answer pairs, a .jsonl file
    sizes: list[str] = ["50", "200", "1000", "5000"]  # numbers of pairs
    seeds: list[str] = ["1337", "1338", "1339"]
    answers: int = 150  # questions that each run answers
    out_dir: str = "out/short_sets"  # datasets and runs


def read_settings():
    """(settings, sizes): the settings, checked, and the numbers of pairs as ints."""
    settings = configure(Settings, doc=__doc__, quiet=True)
    problems = [
        f"--{name}: missing" for name in ("init_from", "pairs") if not settings.as_dict()[name]
    ]
    if not all(size.isdigit() and int(size) >= 2 for size in settings.sizes):
        problems.append(f"--sizes={','.join(settings.sizes)}: expected numbers of pairs")
    if problems:
        raise UserError("\n".join(problems))
    return settings, [int(size) for size in settings.sizes]


if __name__ == "__main__":
    preflight(read_settings)  # --help and mistakes, before the imports below, which take seconds

from minigpt.common.report import table
from minigpt.common.scripts import call
from minigpt.models import checkpoint
from minigpt.training.log import read_runlog


def main():
    settings, sizes = read_settings()
    print(settings.describe(), flush=True)
    folder = pathlib.Path(settings.out_dir)
    rows = []
    for size in sizes:
        pairs, data = first_pairs(settings.pairs, size, folder), folder / f"data{size}"
        if not (data / "meta.json").exists():
            call("data/prepare_sft.py", RECIPE, f"--input={pairs}", f"--dataset={data}")
        for seed in settings.seeds:
            out_dir = folder / f"run{size}_{seed}"
            if not checkpoint.exists(out_dir):
                words = [f"--init_from={settings.init_from}", f"--dataset={data}"]
                call("train.py", RECIPE, *words, f"--seed={seed}", f"--out_dir={out_dir}")
            rows.append(row_of(out_dir, size, seed, pairs, settings.answers))
            print("  ".join(map(str, rows[-1])), flush=True)
    header = ["pairs", "seed", "blocks a step", "epochs", "steps", "minutes"]
    print(table([*header, "Rouge-L taught", "held out"], rows))


def first_pairs(path, size, folder):
    """A file of the first `size` pairs. UserError if there are fewer."""
    with open(path, encoding="utf-8") as file:
        lines = list(itertools.islice(file, size))
    if len(lines) < size:
        raise UserError(f"{path}: {len(lines)} pairs, expected {size}; leave it out of --sizes")
    folder.mkdir(parents=True, exist_ok=True)
    found = folder / f"pairs{size}.jsonl"
    found.write_text("".join(lines), encoding="utf-8")
    return found


def row_of(out_dir, size, seed, pairs, n_answers):
    """The row of one run; it answers taught and held-out questions."""
    words = [f"--out_dir={out_dir}", f"--input={pairs}", f"--limit={n_answers}", "--show=0"]
    call("evaluations-RougeL.py", *words)
    figures = json.loads((out_dir / "rouge.json").read_text(encoding="utf-8"))
    taught, held_out = (
        f"{figures[part]['rouge_l_chars']['mean']:.3f}" if part in figures else "–"
        for part in ("seen in training", "held out")
    )
    used = checkpoint.read_meta(out_dir)["settings"]
    minutes = f"{read_runlog(out_dir).end('minutes'):.1f}"
    cells = [size, seed, used["batch_size"], f"{used['epochs']:g}", used["max_iters"], minutes]
    return [*cells, taught, held_out]


if __name__ == "__main__":
    run(main)
