"""The memory of training steps, as minigpt/training/planning/memory.py computes it and as measured.

    python bench/memory.py
    python bench/memory.py --shapes=124M --batch_size=8

On the CPU, in float32, with Muon and AdamW, without and with activation checkpointing. Each case is
a process of its own that takes two steps. "tensors" is the most that was allocated in tensors at a
time; "process" how much the process has grown at most (resident memory), from before the model is
built.
"""

import json
import os
import pathlib
import sys
from dataclasses import replace

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))

from config.configurator import configure
from minigpt.common.errors import UserError, preflight, run


class Settings:
    shapes: list[str] = ["cpu_small", "124M", "350M"]  # of cpu_small, 124M, 350M
    n_rows: int = 8192  # rows of the embedding
    batch_size: int = 4  # blocks per step
    case: str = ""  # only this case, output as JSON; the script runs itself with it


def read_settings():
    """The settings, checked."""
    knobs = "learning_rate embedding_lr_ratio weight_decay beta1 beta2 muon_momentum"
    return configure(Settings, shared=knobs, doc=__doc__, quiet=True)


if __name__ == "__main__":
    preflight(read_settings)  # --help and mistakes, before the imports below, which take seconds

import torch

from bench.steps import SHAPES, PeakMemory, our_step, peak_memory
from minigpt.common.report import table
from minigpt.common.scripts import figures_of
from minigpt.training.planning.memory import Work, memory_of_step
from model import GPT, GPTConfig

CASES = [f"{how}{optimizer}" for how in ("", "checkpointing ") for optimizer in ("muon", "adamw")]


def main():
    settings = read_settings()
    if unknown := set(settings.shapes) - set(SHAPES):
        raise UserError(f"shapes={','.join(unknown)}: expected some of {', '.join(SHAPES)}")
    if problems := settings.below(batch_size=1, n_rows=1):
        raise UserError("\n".join(problems))
    if settings.case:
        print(json.dumps(measure(settings)))
        return
    # glibc returns freed memory of tensors to the system at once, so that "process" does not count
    # it.
    os.environ |= {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}
    rows = []
    for shape in settings.shapes:
        for case in CASES:
            words = [*sys.argv[1:], f"--shapes={shape}", f"--case={case}"]
            found = figures_of(__file__, *words)
            computed = found.pop("computed")
            rows.append([f"{shape}, {case}", f"{computed / 1e6:,.1f}"])
            for value in found.values():
                rows[-1] += [f"{value / 1e6:,.1f}", f"{computed / value - 1:+.1%}"]
    print(table(["MB", "computed", "tensors", "", "process", ""], rows))


def measure(settings):
    """One case: bytes that were computed, and measured in tensors and for the process."""
    torch.set_flush_denormal(True)
    settings.optimizer = settings.case.split()[-1]
    config = GPTConfig(padded_vocab_size=settings.n_rows, **SHAPES[settings.shapes[-1]])
    tiny = replace(config, n_layer=1, n_embd=64, n_hidden=64, head_dim=16, padded_vocab_size=64)
    two_steps(tiny, settings)  # the code of PyTorch that training needs is in memory then
    before = 1e9 * peak_memory("cpu")
    with PeakMemory() as memory:
        model = two_steps(config, settings)
    work = Work(
        settings.batch_size,
        accumulates=False,
        optimizer=settings.optimizer,
        activation_checkpointing=model.activation_checkpointing,
    )
    computed = memory_of_step(model, work).peak
    return dict(computed=computed, tensors=memory.peak, process=1e9 * peak_memory("cpu") - before)


def two_steps(config, settings):
    """A GPT after two steps of the case."""
    model = GPT(config)
    model.activation_checkpointing = "checkpointing" in settings.case
    step = our_step(model, settings, "cpu", torch.float32)
    for _ in range(2):
        shape = settings.batch_size, config.block_size
        step(torch.randint(0, config.padded_vocab_size, shape).numpy())
    return model


if __name__ == "__main__":
    run(main)
