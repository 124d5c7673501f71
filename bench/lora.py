"""Speed and memory of a training step when only a part of the model is trained.

    python bench/lora.py                         # cpu_small: 4 layers of width 256
    python bench/lora.py --shape=124M            # 12 layers of width 768; takes minutes
    python bench/lora.py --optimizer=adamw       # instead of Muon for full fine-tuning

Whole steps on random tokens: forward, backward, clipping, optimizer. "upper half" freezes the
embeddings and the lower half of the blocks. A frozen weight has no gradient and no optimizer state.
A step has three matrix products for each weight; a frozen one needs two, and below the first
trained weight one. So LoRA cannot be more than 1.5 times as fast as training all weights, apart
from the optimizer. Each case is a process of its own, so that its memory can be measured. Rounds
alternate; medians are shown.
"""

import multiprocessing
import pathlib
import statistics
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from types import SimpleNamespace

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))


from config.configurator import configure
from minigpt.common.errors import UserError, preflight, run

CASES = ("all weights", "embeddings frozen", "upper half", "LoRA", "LoRA, attention")
CASES += ("LoRA, upper half",)


class Settings:
    shape: str = "cpu_small"  # or 124M
    n_rows: int = 8256  # rows of the embedding: `zh`, rounded up
    batch_size: int = 8  # blocks per step
    lora_rank: int = 8  # of the adapters
    steps: int = 0  # timed steps per round; 0: 20, or 3 at 124M
    rounds: int = 5


def read_settings():
    """The settings, checked."""
    knobs = "optimizer learning_rate embedding_lr_ratio weight_decay beta1 beta2 muon_momentum"
    return configure(Settings, shared=knobs, doc=__doc__, quiet=True)


if __name__ == "__main__":
    preflight(read_settings)  # --help and mistakes, before the imports below, which take seconds

import torch

from bench.steps import SHAPES, our_step, peak_memory
from minigpt.common.report import table
from minigpt.models.lora import LoRA, attach
from model import GPT, GPTConfig


def main():
    settings = read_settings()
    print(settings.describe(), flush=True)
    if settings.shape not in SHAPES:
        raise UserError(f"shape={settings.shape}: expected {' or '.join(SHAPES)}")
    found = {case: [] for case in CASES}
    for number in range(settings.rounds):
        for case in CASES:
            with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as process:
                done = process.submit(measure, case, settings.as_dict()).result()
            found[case].append(done)
            print(
                f"round {number + 1}: {case}: {done['seconds'] * 1000:.0f} ms, "
                f"{done['memory']:.2f} GB",
                flush=True,
            )
    show(found)


def measure(case, settings):
    """One case: trained weights, seconds per step, peak memory (GB)."""
    settings = SimpleNamespace(**settings)
    torch.manual_seed(0)
    config = GPTConfig(settings.n_rows, **SHAPES[settings.shape])
    model = GPT(config)
    choose(model, case, settings.lora_rank)
    step = our_step(model, settings, "cpu", torch.float32)
    tokens = torch.randint(
        0, config.padded_vocab_size, (settings.batch_size, config.block_size)
    ).numpy()
    times = []
    for _ in range(2 + (settings.steps or (20 if settings.shape == "cpu_small" else 3))):
        start = time.perf_counter()
        step(tokens)
        times.append(time.perf_counter() - start)
    moving = sum(weight.numel() for weight in model.parameters() if weight.requires_grad)
    seconds = statistics.median(times[2:])  # the first two are warm-up
    return dict(moving=moving, seconds=seconds, memory=peak_memory("cpu"))


def choose(model, case, rank):
    """Freeze the weights that this case does not train."""
    half = len(model.blocks) // 2
    if case.startswith("LoRA"):
        targets = ["attention"] if "attention" in case else ["all"]
        attach(model, LoRA(rank, targets=targets, first_block=half if "half" in case else 0))
    elif case != "all weights":
        model.wte.requires_grad_(False)
        model.blocks[: half if "half" in case else 0].requires_grad_(False)


def show(found):
    """Print the table of bench/README.md."""
    most = {case: statistics.median(each["seconds"] for each in found[case]) for case in found}
    rows = []
    for case, rounds in found.items():
        memory = statistics.median(each["memory"] for each in rounds)
        rows.append(
            [case, f"{rounds[0]['moving'] / 1e6:.2f}M", f"{most[case] * 1000:.0f} ms"]
            + [f"{most[CASES[0]] / most[case]:.2f}", f"{memory:.2f} GB"]
        )
    print(table(["trained part", "weights", "time per step", "speed-up", "memory"], rows))
    print(f"float32, {torch.get_num_threads()} threads")


if __name__ == "__main__":
    run(main)
