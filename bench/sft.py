"""Speed of fine-tuning by layout: padding, sorted padding, concat, packed.

    python bench/sft.py --input=PAIRS.jsonl            # config/cpu_small.py's model, blocks of 512

Prepares the pairs in each layout with data/prepare_sft.py, then times whole training steps
(forward, backward, clipping, optimizer): --rounds times --batches batches of each layout,
alternating; medians are shown. "sorted" means padded blocks sorted by length, each batch cut to its
longest pair.

The gain over padding is at most (T b + s h) / (L b + s h): T the block size, L the mean length of a
pair, s its supervised tokens, b and h the operations of the blocks per token and of the output
layer per supervised token. "loss" is that of the untrained model over all pairs: equal in all
layouts that isolate pairs.
"""

import pathlib
import statistics
import sys
import time

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))


from config.configurator import configure
from minigpt.common.errors import preflight, run

CASES = {"pad": "pad", "sorted": "pad", "concat": "concat", "packed": "packed"}  # name → layout


class Settings:
    input: str = ""  # pairs for data/prepare_sft.py
    n_layer: int = 4  # shape of the model
    n_head: int = 4
    n_embd: int = 256
    batches: int = 6  # timed per round, spread over the epoch
    rounds: int = 3
    out_dir: str = "out/bench_sft"  # the prepared pairs


def read_settings():
    """The settings, checked."""
    knobs = "block_size batch_size optimizer learning_rate embedding_lr_ratio weight_decay beta1 "
    return configure(Settings, shared=knobs + "beta2 muon_momentum", doc=__doc__, quiet=True)


if __name__ == "__main__":
    preflight(read_settings)  # --help and mistakes, before the imports below, which take seconds

import numpy as np
import torch

from data_utils import Batch, Blocks
from minigpt.common.report import table
from minigpt.common.scripts import call
from minigpt.data.block_format import TARGET
from minigpt.training.losses import next_token
from minigpt.training.optim import make_optimizers
from model import GPT, GPTConfig


def main():
    settings = read_settings()
    print(settings.describe(), flush=True)
    epochs = {name: epoch(settings, name) for name in CASES}
    torch.manual_seed(0)
    shape = {name: getattr(settings, name) for name in ("n_layer", "n_head", "n_embd")}
    padded = Blocks(pathlib.Path(settings.out_dir) / f"pad{settings.block_size}", "train")
    n_rows = 64 * -(-padded.meta["n_vocab"] // 64)
    model = GPT(GPTConfig(padded_vocab_size=n_rows, block_size=settings.block_size, **shape))
    losses = {name: mean_loss(model, batches) for name, batches in epochs.items()}
    optimizers = make_optimizers(model, settings, "cpu")
    seconds = {name: [] for name in CASES}  # of one epoch
    for number in range(settings.rounds):
        for name, batches in epochs.items():
            seconds[name].append(time_of(model, optimizers, batches, settings.batches))
            print(f"round {number + 1}: {name}: {seconds[name][-1]:.1f} s per epoch", flush=True)
    length = float(lengths_of(np.array(padded.mask)).mean())
    show(settings, model, length, epochs, losses, seconds)


def epoch(settings, name):
    """All batches of one epoch in a layout."""
    folder = pathlib.Path(settings.out_dir) / f"{CASES[name]}{settings.block_size}"
    if not folder.exists():
        words = [f"--input={settings.input}", f"--dataset={folder}", f"--layout={CASES[name]}"]
        words.append(f"--block_size={settings.block_size}")
        call("data/prepare_sft.py", *words)
    blocks = Blocks(folder, "train")
    tokens, mask = np.array(blocks.tokens), np.array(blocks.mask)
    lengths = lengths_of(mask)
    order = np.random.default_rng(0).permutation(len(tokens))
    if name == "sorted":
        order = np.argsort(lengths, kind="stable")
    size, batches = settings.batch_size, []
    for i in range(0, len(tokens), size):
        rows = order[i : i + size]
        width = lengths[rows].max() if name == "sorted" else tokens.shape[1]
        batches.append(Batch.of(tokens[rows, :width], mask[rows, :width], blocks.isolated))
    return batches


def lengths_of(mask):
    """(n_blocks,) tokens of each block up to its last target, without padding."""
    return mask.shape[1] - (mask[:, ::-1] & TARGET).argmax(axis=1)


@torch.no_grad()
def mean_loss(model, batches):
    """The mean loss per supervised token, in nats."""
    found = [next_token(model, batch) for batch in batches]
    return sum(float(loss) for loss, _ in found) / sum(count for _, count in found)


def time_of(model, optimizers, batches, n_timed):
    """Seconds per epoch, estimated from batches at even distances, short and long ones."""
    n_timed = min(n_timed, len(batches))
    chosen = [batches[(2 * i + 1) * len(batches) // (2 * n_timed)] for i in range(n_timed)]
    times = []
    for batch in [chosen[0], *chosen]:  # the first one is warm-up
        start = time.perf_counter()
        loss, count = next_token(model, batch)
        (loss / max(1, count)).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer in optimizers:
            for group in optimizer.param_groups:
                group["lr"] = 0.0  # keep the weights: all layouts are timed on the same ones
            optimizer.step()
        model.zero_grad(set_to_none=True)
        times.append(time.perf_counter() - start)
    return statistics.mean(times[1:]) * len(batches)


def show(settings, model, length, epochs, losses, seconds):
    """Print the table of bench/README.md."""
    config, T = model.config, settings.block_size
    pairs = sum(len(batch.x) for batch in epochs["pad"])
    targets = sum(batch.count for batch in epochs["pad"])
    body = 6 * sum(p.numel() for p in model.blocks.parameters() if p.dim() == 2)
    head, s = 6 * config.padded_vocab_size * config.n_embd, targets / pairs
    limit = (T * body + s * head) / (length * body + s * head)
    medians = {name: statistics.median(each) for name, each in seconds.items()}
    rows = []
    for name, batches in epochs.items():
        count = sum(batch.count for batch in batches)
        gain = medians["pad"] / medians[name]
        rows.append(
            [name, str(sum(len(batch.x) for batch in batches)), f"{count:,}"]
            + [f"{medians[name]:.1f}", f"{count / medians[name]:,.0f}", f"{gain:.2f}"]
            + [f"{gain / limit:.2f}", f"{losses[name]:.4f}"]
        )
    header = ["layout", "blocks", "supervised", "s per epoch", "supervised/s", "÷ pad"]
    print(table([*header, "of the limit", "loss"], rows))
    print(f"{pairs} pairs, {length:.1f} tokens and {s:.1f} supervised ones each; limit {limit:.2f}")


if __name__ == "__main__":
    run(main)
