"""Fine-tuning by layout of the blocks, with the same base, epochs and steps.

    python bench/layouts.py --input=ALPACA.json                     # trains a base first
    python bench/layouts.py --input=PAIRS.jsonl --init_from=out/cpu_small --limit=500

Four cases: pad (one conversation per block), packed (one stream, cut anywhere), concat (several per
block, isolated), and concat with isolate=false, where each also attends to the ones before it. All
are evaluated on one padded val set. A batch has --batch_size blocks in concat; in the other layouts
it has as many as give the same number of steps, so only the layout differs.

Without --init_from a vocabulary and a base of config/cpu_small.py's shape are trained first, on the
texts of the training part. Prints every command (what they print goes to OUT_DIR/bench.log), each
run's answer to the first held-out instruction, and the table. If other work runs on the machine,
the speeds mean nothing, only the losses.
"""

import json
import pathlib
import statistics
import sys
from typing import NamedTuple

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))

from config.configurator import configure
from minigpt.common.errors import preflight, run

# name → layout, isolate
CASES = {
    "pad": ("pad", True),
    "packed": ("packed", True),
    "concat": ("concat", True),
    "concat, isolate=false": ("concat", False),
}
VAL_FRACTION = 0.2


class Settings:
    input: str = ""  # instructions, conversations or pairs for data/prepare_sft.py
    init_from: str = ""  # the base; "": train one
    limit: int | None = None  # use only the first so many; none: all
    base_steps: int = 600  # of pretraining the base, 2,048 tokens each
    vocab_size: int = 4096  # of its vocabulary
    epochs: float = 3.0  # of fine-tuning
    batch_size: int = 8  # blocks of concat in a step
    seeds: int = 1  # runs per case; their spread is the noise
    out_dir: str = "out/bench_layouts"  # data and runs


def read_settings():
    """The settings, checked."""
    return configure(Settings, doc=__doc__, quiet=True)


if __name__ == "__main__":
    preflight(read_settings)  # --help and mistakes, before the imports below, which take seconds

from minigpt.common.report import table, write_jsonl
from minigpt.common.scripts import call
from minigpt.data.encoders import ConversationEncoder
from minigpt.data.formats import FORMATS
from minigpt.data.hashing import is_val
from minigpt.data.pipeline import PrepareOptions, prepare
from minigpt.evaluation.examples import read_conversations
from minigpt.models import checkpoint

CHAT = ConversationEncoder()


class Tuned(NamedTuple):
    """One run of a case: its steps, supervised tokens per second, the val loss at each evaluation,
    and its last sample."""

    steps: int
    rate: float
    val_losses: list
    sample: str


def main():
    settings = read_settings()
    print(settings.describe(), flush=True)
    bench = Bench(settings)
    base = settings.init_from or bench.train_base()
    bench.prepare(base)
    seeds = range(1337, 1337 + settings.seeds)
    bench.show({name: [bench.tune(base, name, seed) for seed in seeds] for name in CASES})


class Bench:
    """Runs the project's scripts, from instructions to fine-tuned runs, in one folder."""

    def __init__(self, settings):
        self.settings, self.folder = settings, pathlib.Path(settings.out_dir)
        self.folder.mkdir(parents=True, exist_ok=True)
        self.conversations = read_conversations(settings.input)[: settings.limit]
        self.chats = self.folder / "chats.jsonl"
        write_jsonl(self.chats, map(CHAT.to_json, self.conversations))
        self.counts = {}  # layout → split → counts

    def train_base(self):
        """Train a vocabulary and a base on the training part; return the run's folder."""
        texts, vocabulary = self.folder / "texts.jsonl", self.folder / "vocabulary"
        seen = [
            each for each in self.conversations if not is_val(CHAT.split_key(each), VAL_FRACTION)
        ]
        contents = ["\n".join(content for _, content in each.turns) for each in seen]
        write_jsonl(texts, [{"text": text} for text in contents])
        size = f"--vocab_size={self.settings.vocab_size}"
        self.call("data/train_tokenizer.py", f"--input={texts}", f"--output={vocabulary}", size)
        tokenizer, data, base = (
            f"{vocabulary}.tiktoken",
            self.folder / "texts",
            self.folder / "base",
        )
        more = dict(tokenizer=tokenizer, block_size=256, workers=1)
        prepare(PrepareOptions(texts, data, FORMATS["text"], clean=False, **more))
        words = [f"--tokenizer={tokenizer}", f"--dataset={data}", f"--out_dir={base}"]
        words += [f"--max_iters={self.settings.base_steps}", "--overwrite=true"]
        self.call("train.py", "config/cpu_small.py", *words)
        return base

    def prepare(self, base):
        """Prepare the conversations in every layout, with the base's tokenizer and block_size."""
        trained = checkpoint.load(base)
        files = trained.tokenizer.files
        tokenizer = str(files[0]) if files else trained.tokenizer.name
        size = trained.model.config.block_size
        for layout in dict(CASES.values()):
            more = dict(tokenizer=tokenizer, block_size=size, layout=layout, workers=1)
            more["val_fraction"] = VAL_FRACTION
            meta = prepare(PrepareOptions(self.chats, self.data(layout), FORMATS["chat"], **more))
            self.counts[layout] = meta["counts"]

    def data(self, layout):
        return self.folder / layout

    def tune(self, base, name, seed):
        """Train a case; return a Tuned."""
        settings, (layout, isolate) = self.settings, CASES[name]
        counts = self.counts[layout]["train"]
        share = counts["blocks"] / self.counts["concat"]["train"]["blocks"]
        size = max(1, round(settings.batch_size * share))
        steps = settings.epochs * counts["blocks"] / size
        out_dir = self.folder / f"{layout}_{'apart' if isolate else 'joined'}_{seed}"
        words = [f"--init_from={base}", f"--dataset={self.data(layout)}", f"--out_dir={out_dir}"]
        words += [f"--val_dataset={self.data('pad')}", f"--isolate={str(isolate).lower()}"]
        words += [f"--epochs={settings.epochs}", f"--batch_size={size}", f"--seed={seed}"]
        words += [f"--eval_interval={max(1, round(steps / 3))}", "--eval_iters=100000"]
        self.call("train.py", "config/cpu_small_sft.py", *words, "--overwrite=true")
        lines = (out_dir / "log.jsonl").read_text(encoding="utf-8").splitlines()
        lines = [json.loads(line) for line in lines]
        samples = (out_dir / "samples.txt").read_text(encoding="utf-8")
        return Tuned(
            steps=lines[-1]["step"],
            rate=settings.epochs * counts["targets"] / (60 * lines[-1]["minutes"]),
            val_losses=[line["val_loss"] for line in lines if "val_loss" in line],
            sample=samples.rpartition("\nstep ")[2].strip(),
        )

    def show(self, found):
        """Print the samples of the runs and the table."""
        for name, (first, *_) in found.items():
            print(f"\n{name}: step {first.sample}")
        rows = []
        for name, runs in found.items():
            counts = self.counts[CASES[name][0]]["train"]
            best, last = [min(run.val_losses) for run in runs], [run.val_losses[-1] for run in runs]
            rows.append(
                [name, f"{counts['blocks']:,}", f"{runs[0].steps:,}", f"{counts['targets']:,}"]
                + [f"{statistics.mean(run.rate for run in runs):,.0f}", shown(best), shown(last)]
            )
        header = ["layout", "blocks", "steps", "supervised", "supervised/s", "best val loss"]
        print("\n" + table([*header, "last val loss"], rows))
        before = next(iter(found.values()))[0].val_losses[0]
        entries = self.counts["pad"]["val"]["entries"]
        print(f"val loss before the first step: {before:.4f}; {entries} held-out conversations")

    def call(self, *words):
        call(*words, log=self.folder / "bench.log")


def is_held_out(conversation):
    """Whether prepare() puts a conversation into val."""
    return is_val(CHAT.split_key(conversation), VAL_FRACTION)


def shown(values):
    """The mean, and the spread of the runs of one case."""
    apart = f" ± {(max(values) - min(values)) / 2:.4f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.4f}{apart}"


if __name__ == "__main__":
    run(main)
