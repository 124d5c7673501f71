"""What fine-tuning gains or loses by how conversations fill blocks: the same start, epochs, steps.

    python bench/layouts.py --input=ALPACA.json                     # a base of its own first
    python bench/layouts.py --input=PAIRS.jsonl --init_from=out/cpu_small --limit=500

Four ways: pad (one conversation a block), packed (one stream, cut anywhere), concat (several in a
block, attention kept inside each), and the same blocks with isolate=false, where each sees the ones
before it. All are judged on ONE padded val set. A batch has --batch_size blocks of concat, and of
the others so many (rounded) as make the same number of steps: what differs is the layout alone.

Without --init_from a vocabulary and a base of config/cpu_small.py's shape are trained first, on the
texts of the training part. Prints every command (what they print goes to OUT_DIR/bench.log), what
each run answers to the first held-out instruction, and the table. A speed is that of the machine at
that moment; where something else runs beside it, only the losses count.
"""

import json
import pathlib
import statistics
import sys
from typing import NamedTuple

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))

from config.configurator import configure
from minigpt.common.errors import run
from minigpt.common.report import table, write_jsonl
from minigpt.common.scripts import call
from minigpt.data.encoders import ConversationEncoder
from minigpt.data.formats import FORMATS
from minigpt.data.hashing import is_val
from minigpt.data.pipeline import PrepareOptions, prepare
from minigpt.evaluation.examples import read_conversations
from minigpt.models import checkpoint

# name → layout, isolate
CASES = {
    "pad": ("pad", True),
    "packed": ("packed", True),
    "concat": ("concat", True),
    "concat, isolate=false": ("concat", False),
}
CHAT = ConversationEncoder()
VAL_FRACTION = 0.2


class Settings:
    input: str = ""  # instructions, conversations or pairs, as data/prepare_sft.py takes them
    init_from: str = ""  # a run to start from; "": one that is trained here
    limit: int | None = None  # only so many of them, the first ones; none: all
    base_steps: int = 600  # of the base's training, 2,048 tokens each
    vocab_size: int = 4096  # of its vocabulary
    epochs: float = 3.0  # of fine-tuning
    batch_size: int = 8  # blocks of concat in a step
    seeds: int = 1  # runs of each case: how far apart they lie is the noise
    out_dir: str = "out/bench_layouts"  # data and runs


class Tuned(NamedTuple):
    """One run of a case: its steps, supervised tokens a second, the val loss at each evaluation,
    and what it wrote at the last one."""

    steps: int
    rate: float
    val_losses: list
    sample: str


def main():
    settings = configure(Settings, doc=__doc__)
    bench = Bench(settings)
    base = settings.init_from or bench.train_base()
    bench.prepare(base)
    seeds = range(1337, 1337 + settings.seeds)
    bench.show({name: [bench.tune(base, name, seed) for seed in seeds] for name in CASES})


class Bench:
    """The project's own steps, from instructions to runs, in one folder."""

    def __init__(self, settings):
        self.settings, self.folder = settings, pathlib.Path(settings.out_dir)
        self.folder.mkdir(parents=True, exist_ok=True)
        self.conversations = read_conversations(settings.input)[: settings.limit]
        self.chats = self.folder / "chats.jsonl"
        write_jsonl(self.chats, map(CHAT.to_json, self.conversations))
        self.counts = {}  # layout → split → counts

    def train_base(self):
        """A vocabulary and a base, of the training part's texts alone; returns the run's folder."""
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
        """The conversations in every layout, in the base's tokens and blocks."""
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
        """Train a case; returns a Tuned."""
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
        """What the runs wrote, and the table."""
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
    """The mean, and how far the runs of one case lie apart."""
    apart = f" ± {(max(values) - min(values)) / 2:.4f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.4f}{apart}"


if __name__ == "__main__":
    run(main)
