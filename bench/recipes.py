"""Compare the default recipe with the classic one: same texts, same model size, same time.

    python bench/recipes.py --input=TEXTS --pairs=PAIRS.jsonl

Runs the whole pipeline twice, with config/cpu_small.py and with the classic recipe at its size:
prepare, pretrain for --minutes, fine-tune for --sft_minutes, evaluate. Both run at the same time,
on one core each, and are evaluated over the same held-out characters and pairs. Prints every
command (their output goes to OUT_DIR/RECIPE.log), then the table of bench/README.md, and
draws the loss curves.
"""

import json
import pathlib
import sys
from concurrent.futures import ThreadPoolExecutor

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))

from config.configurator import configure
from minigpt.common.errors import preflight, run


class Settings:
    input: str = ""  # texts for data/prepare.py
    pairs: str = ""  # question–answer pairs for data/prepare_sft.py
    minutes: float = 20.0  # of pretraining
    sft_minutes: float = 10.0  # of fine-tuning
    threads: int = 1  # per process
    out_dir: str = "out/recipes"  # datasets and runs of both


def read_settings():
    """The settings, checked."""
    return configure(Settings, doc=__doc__, quiet=True)


if __name__ == "__main__":
    preflight(read_settings)  # --help and mistakes, before the imports below, which take seconds

from minigpt.common.report import table
from minigpt.common.scripts import call

RECIPES = {
    "default": (["config/cpu_small.py"], ["config/cpu_small_sft.py"]),
    "classic": (
        ["config/classic.py", "config/cpu_small.py", "config/classic_small.py"],
        # classic_sft.py's learning rate is for 124M parameters; a smaller model can take more.
        ["config/classic_sft.py", "config/cpu_small_sft.py", "--learning_rate=3e-4"],
    ),
}


def main():
    settings = read_settings()
    print(settings.describe(), flush=True)
    with ThreadPoolExecutor(len(RECIPES)) as pool:
        # Datasets first: both recipes are evaluated on the default recipe's held-out entries.
        list(pool.map(lambda name: Pipeline(settings, name).prepare(), RECIPES))
        rows = list(pool.map(lambda name: Pipeline(settings, name).train_and_score(), RECIPES))
    for name in RECIPES:  # a picture each: losses per token of two tokenizers cannot be compared
        pipeline = Pipeline(settings, name)
        words = [f"--runs={pipeline.base},{pipeline.tuned}", "--x=minutes", "--smooth=0.6"]
        pipeline.call("visualize.py", *words, f"--output={pipeline.folder}/loss_{name}.png")
    header = ["recipe", "tokenizer", "steps", "bits/char", "answers: bits/char"]
    print(table([*header, "Rouge-L held out", "Rouge-L seen"], rows))


class Pipeline:
    """One recipe's pipeline from texts to scores."""

    def __init__(self, settings, name):
        self.settings, self.name = settings, name
        self.pretraining, self.tuning = RECIPES[name]
        self.folder = pathlib.Path(settings.out_dir)
        self.base, self.tuned = self.folder / name, self.folder / f"{name}_sft"
        self.data, self.pairs = self.folder / f"data_{name}", self.folder / f"data_{name}_sft"

    def prepare(self):
        """Prepare texts and pairs."""
        self.folder.mkdir(parents=True, exist_ok=True)
        inputs = f"--input={self.settings.input}", f"--input={self.settings.pairs}"
        self.call("data/prepare.py", *self.pretraining, inputs[0], f"--dataset={self.data}")
        self.call("data/prepare_sft.py", *self.tuning[:2], inputs[1], f"--dataset={self.pairs}")

    def train_and_score(self):
        """Train, fine-tune and evaluate; return the recipe's row of the table."""
        texts, pairs = (self.folder / f"data_default{part}/val.jsonl" for part in ("", "_sft"))
        settings, base, tuned = self.settings, self.base, self.tuned
        endless = ["--max_iters=1000000", "--overwrite=true"]  # --max_minutes ends it
        where = [f"--dataset={self.data}", f"--out_dir={base}"]
        budget = f"--max_minutes={settings.minutes}"
        self.call("train.py", *self.pretraining, *where, budget, *endless)
        self.call("evaluations-perplexity.py", f"--out_dir={base}", f"--text={texts}")

        where = [f"--dataset={self.pairs}", f"--out_dir={tuned}", f"--init_from={base}"]
        budget = f"--max_minutes={settings.sft_minutes}"
        self.call("train.py", *self.tuning, *where, budget, *endless)
        self.call("evaluations-perplexity.py", f"--out_dir={tuned}/best")
        for split, source in (("held_out", pairs), ("seen", settings.pairs)):
            words = [f"--out_dir={tuned}", f"--input={source}", "--limit=300"]
            self.call("evaluations-RougeL.py", *words, f"--output={tuned}/{split}.jsonl")

        config = read(base / "config.json")
        held_out = read(tuned / "held_out.json")["all"]
        seen = read(tuned / "seen.json")["seen in training"]
        return [
            self.name,
            config["tokenizer"],
            f"{config['step']:,}",
            f"{read(base / 'perplexity.json')['text']['bits_per_char']:.3f}",
            f"{read(tuned / 'best' / 'perplexity.json')['text']['bits_per_char']:.3f}",
            f"{held_out['rouge_l_chars']['mean']:.3f}",
            f"{seen['rouge_l_chars']['mean']:.3f}",
        ]

    def call(self, *words):
        """Run one of the project's scripts with this recipe's threads and log."""
        threads = str(self.settings.threads)
        call(*words, log=self.folder / f"{self.name}.log", OMP_NUM_THREADS=threads)


def read(path):
    return json.loads(path.read_text(encoding="utf-8"))


if __name__ == "__main__":
    run(main)
