"""The default recipe beside the classic one: same texts, same body, same training time.

    python bench/recipes.py --input=TEXTS --pairs=PAIRS.jsonl

Takes the whole way twice, with config/cpu_small.py alone and on top of config/classic.py: prepare,
pretrain for --minutes, fine-tune for --sft_minutes, score. Both are scored over the same held-out
characters and the same held-out pairs. Prints every command, then the table that stands in
bench/README.md, and draws the loss curves.
"""

import json
import pathlib
import subprocess
import sys

ROOT = pathlib.Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from config.configurator import configure, run
from minigpt.report import table


class Settings:
    input: str = ""  # texts, as data/prepare.py takes them
    pairs: str = ""  # question–answer pairs, as data/prepare_sft.py takes them
    minutes: float = 20.0  # of pretraining
    sft_minutes: float = 10.0  # of fine-tuning
    out_dir: str = "out/recipes"  # data and runs of both


RECIPES = {
    "default": (["config/cpu_small.py"], ["config/cpu_small_sft.py"]),
    "classic": (
        ["config/classic.py", "config/cpu_small.py", "--warmup_iters=100"],
        ["config/classic_sft.py", "config/cpu_small_sft.py", "--learning_rate=1e-4"],
    ),
}


def main():
    settings = configure(Settings, doc=__doc__)
    folder = pathlib.Path(settings.out_dir)
    rows = [
        one_recipe(settings, folder, name, pretrain, sft)
        for name, (pretrain, sft) in RECIPES.items()
    ]
    runs = ",".join(f"{folder}/{name}{part}" for name in RECIPES for part in ("", "_sft"))
    call("visualize.py", f"--runs={runs}", f"--output={folder}/loss.png", "--x=minutes")
    header = ["recipe", "tokenizer", "steps", "bits/char", "SFT bits/char", "Rouge-L held out"]
    print(table([*header, "Rouge-L seen"], rows))


def one_recipe(settings, folder, name, pretrain, sft):
    """Both trainings and all scores of one recipe; returns its row of the table."""
    data, sft_data = folder / f"data_{name}", folder / f"data_{name}_sft"
    base, tuned = folder / name, folder / f"{name}_sft"
    # The default recipe's held-out texts and pairs are everybody's: the hash of an entry decides.
    texts, pairs = folder / "data_default/val.jsonl", folder / "data_default_sft/val.jsonl"
    call("data/prepare.py", *pretrain, f"--input={settings.input}", f"--dataset={data}")
    budget = [f"--max_minutes={settings.minutes}", "--max_iters=1000000", "--overwrite=true"]
    call("train.py", *pretrain, f"--dataset={data}", f"--out_dir={base}", *budget)
    call("evaluations-perplexity.py", f"--out_dir={base}", f"--text={texts}")

    call("data/prepare_sft.py", *sft, f"--input={settings.pairs}", f"--dataset={sft_data}")
    budget = [f"--max_minutes={settings.sft_minutes}", "--epochs=none", "--max_iters=1000000"]
    where = [f"--dataset={sft_data}", f"--out_dir={tuned}", f"--init_from={base}"]
    call("train.py", *sft, *where, *budget, "--overwrite=true")
    call("evaluations-perplexity.py", f"--out_dir={tuned}")
    for split, source in (("held_out", pairs), ("seen", settings.pairs)):
        words = [f"--out_dir={tuned}", f"--input={source}", "--limit=300"]
        call("evaluations-RougeL.py", *words, f"--output={tuned}/{split}.jsonl")

    bits = read(base / "perplexity.json")["text"]["bits_per_char"]
    sft_bits = read(tuned / "perplexity.json")["text"]["bits_per_char"]
    rouge = [read(tuned / "held_out.json")["all"], read(tuned / "seen.json")["seen in training"]]
    return [
        name,
        read(base / "config.json")["tokenizer"],
        f"{read(base / 'config.json')['step']:,}",
        f"{bits:.3f}",
        f"{sft_bits:.3f}",
        *(f"{figures['rouge_l_chars']['mean']:.3f}" for figures in rouge),
    ]


def read(path):
    return json.loads(path.read_text(encoding="utf-8"))


def call(*words):
    """Run one of the project's scripts, shown as a person would type it."""
    print("$ python", *words, flush=True)
    subprocess.run([sys.executable, *words], cwd=ROOT, check=True)


if __name__ == "__main__":
    run(main)
