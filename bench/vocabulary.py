"""Compare vocabulary sizes of a small model: held-out bits per character after equal time.

    python bench/vocabulary.py --input=TEXTS --pairs=PAIRS.jsonl --out_dir=out/vocabulary

For each size: train a tokenizer on the training part of the texts, cut them into blocks, train
config/cpu_small.py's model, and evaluate the held-out characters. The budget is processor time (12
minutes are 6 on two cores). A step is timed on one thread before training, and the schedule has as
many steps as fit; so other work on the machine hardly changes the result. Prints the table of
bench/README.md. A finished size is not trained again: another --input or budget needs another
--out_dir.
"""

import json
import pathlib
import sys
import time

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))


from config.configurator import configure
from minigpt.common.errors import ROOT, preflight, run


class Settings:
    input: str = ""  # texts for data/prepare.py
    pairs: str = ""  # question–answer pairs, only to train the tokenizer
    sizes: str = "4096,8192,16384,32768"  # vocabulary sizes, special ids included
    seeds: str = "1337"  # one run each
    cpu_minutes: float = 12.0  # processor time of training, per run
    learning_rate: float = 2e-3  # peak, the same for all
    batch_size: int = 8  # blocks of 256 tokens a step
    out_dir: str = "out/vocabulary"  # tokenizers, blocks and runs


def read_settings():
    """The settings, checked."""
    return configure(Settings, doc=__doc__, quiet=True)


if __name__ == "__main__":
    preflight(read_settings)  # --help and mistakes, before the imports below, which take seconds

import torch

from data_utils import Batches, Blocks, read_meta
from minigpt.common.report import table
from minigpt.common.scripts import call
from minigpt.tokenizer.tokenizer import load_tokenizer
from minigpt.training.losses import next_token
from minigpt.training.optim import make_optimizers
from model import GPT, GPTConfig


def main():
    settings = read_settings()
    print(settings.describe(), flush=True)
    folder = pathlib.Path(settings.out_dir)
    rows = []
    for size in settings.sizes.split(","):
        tokenizer = folder / f"zh{size}.tiktoken"
        data = folder / f"data{size}"
        corpus = ",".join(filter(None, (settings.input, settings.pairs)))
        if not tokenizer.exists():
            call(
                "data/train_tokenizer.py",
                f"--input={corpus}",
                f"--vocab_size={size}",
                f"--output={tokenizer}",
                "--val_fraction=0.1",  # prepare.py never holds out more
            )
        if not data.exists():
            call(
                "data/prepare.py",
                "config/cpu_small.py",
                f"--input={settings.input}",
                f"--tokenizer={tokenizer}",
                f"--dataset={data}",
            )
        for seed in settings.seeds.split(","):
            out_dir = folder / f"run{size}_{seed}"
            rows.append(one_run(settings, size, seed, tokenizer, data, out_dir))
    header = ["vocabulary", "seed", "tokens/char", "parameters", "steps", "characters seen"]
    print(table([*header, "bits/char"], rows))


def one_run(settings, size, seed, tokenizer, data, out_dir):
    """Train and evaluate one model; return its row of the table."""
    note = out_dir / "bench.json"
    if not note.exists():
        seconds, parameters = seconds_a_step(settings, tokenizer, data)
        steps = int(settings.cpu_minutes * 60 / seconds)
        call(
            "train.py",
            "config/cpu_small.py",
            f"--tokenizer={tokenizer}",
            f"--dataset={data}",
            f"--out_dir={out_dir}",
            "--overwrite=true",
            f"--seed={seed}",
            f"--max_iters={steps}",
            f"--learning_rate={settings.learning_rate}",
            f"--batch_size={settings.batch_size}",
            "--eval_interval=500",
            "--log_interval=100",
        )
        call("evaluations-perplexity.py", f"--out_dir={out_dir}")
        note.write_text(json.dumps(dict(steps=steps, parameters=parameters)))
    found = json.loads(note.read_text())
    text = json.loads((out_dir / "perplexity.json").read_text(encoding="utf-8"))["text"]
    counts = read_meta(data)["counts"]["train"]
    tokens = found["steps"] * settings.batch_size * read_meta(data)["block_size"]
    characters = tokens * counts["characters"] / (counts["tokens"] + counts["padding"])
    return [
        size,
        seed,
        f"{text['tokens_per_char']:.3f}",
        f"{found['parameters'] / 1e6:.2f}M",
        found["steps"],
        f"{characters / 1e6:.2f}M",
        f"{text['bits_per_char']:.4f}",
    ]


def seconds_a_step(settings, tokenizer_path, data):
    """(median processor seconds of a training step, number of parameters)."""
    recipe = str(ROOT / "config" / "cpu_small.py")
    knobs = configure(shared="all", argv=[recipe], quiet=True)
    tokenizer = load_tokenizer(tokenizer_path)
    config = GPTConfig(
        tokenizer.padded_vocab_size,
        knobs.block_size,
        knobs.n_layer,
        knobs.n_head,
        n_embd=knobs.n_embd,
    )
    torch.set_flush_denormal(True)
    torch.set_num_threads(1)  # a waiting second thread would count as work
    model = GPT(config)
    optimizers = make_optimizers(model, knobs, "cpu")
    batches = Batches(Blocks(data, "train", tokenizer), settings.batch_size)
    times = []
    for i in range(12):
        start = time.process_time()
        loss, count = next_token(model, batches[i])
        (loss / count).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), knobs.grad_clip)
        for optimizer in optimizers:
            optimizer.step()
        model.zero_grad()
        times.append(time.process_time() - start)
    return sorted(times)[len(times) // 2], model.n_params()


if __name__ == "__main__":
    run(main)
