"""Which batches fit into the memory of a GPU, and how long the training takes.

fit = best_fit(model, work, blocks_per_step=128, limit=23e9)     # None: nothing fits
rate = tokens_per_second(model, fit.work, n_gpus=8, tflops=165, mfu=0.35)
print(recipe(settings, fit, max_iters, title))
"""

import json
import math
from dataclasses import dataclass, replace

from minigpt.training.planning.memory import Memory, Work, memory_of_step

# Bytes that CUDA's context and libraries take. GB are 10⁹ bytes here, and a card of 24 GB has 24
# GiB: the 7 % more are for fragmentation.
RESERVED = 1e9
MOST_GPUS = 4096


@dataclass(frozen=True)
class Fit:
    """A way to train: the Work of a process, batches in a step, and the Memory that it needs."""

    work: Work
    accumulation: int
    needs: Memory

    @property
    def blocks_per_step(self):
        """Blocks in a step of all processes."""
        return self.work.batch_size * self.accumulation * self.work.processes


def ways(work):
    """The ways to do `work`, from the fastest to the one that needs the least memory: DDP or one
    GPU, then FSDP, each without and with activation checkpointing."""
    shardings = [False, True] if work.processes > 1 else [False]
    return [
        replace(work, sharded=sharded, activation_checkpointing=checkpointing)
        for sharded in shardings
        for checkpointing in (False, True)
    ]


def largest(model, work, blocks_per_step, limit):
    """The Fit of `work` with the largest batches below `limit` bytes, such that the processes take
    blocks_per_step blocks in a step (rounded up to whole batches); None if one block is too much.
    """
    share = -(-blocks_per_step // work.processes)
    for batch_size in range(share, 0, -1):
        if share % batch_size:
            continue
        accumulation = share // batch_size
        tried = replace(work, batch_size=batch_size, accumulates=accumulation > 1)
        needs = memory_of_step(model, tried)
        if needs.peak <= limit:
            return Fit(tried, accumulation, needs)
    return None


def best_fit(model, allowed, blocks_per_step, limit):
    """The first of the ways `allowed` that fits, as a Fit; None if none does."""
    fits = (largest(model, work, blocks_per_step, limit) for work in allowed)
    return next((fit for fit in fits if fit), None)


def gpus_that_fit(model, work, limit):
    """The least power of two of GPUs on which a block fits with FSDP and activation checkpointing;
    None if there is none up to MOST_GPUS."""
    for n in (2**k for k in range(1, int(math.log2(MOST_GPUS)) + 1)):
        tried = replace(work, processes=n, sharded=True, activation_checkpointing=True)
        if memory_of_step(model, replace(tried, batch_size=1)).peak <= limit:
            return n
    return None


def tokens_per_second(model, work, tflops, mfu):
    """Tokens a second of all processes. mfu: FLOPs of the model (PaLM, appendix B) as a share of
    the peak; the forward pass that activation checkpointing repeats is not among them."""
    flops = model.flops_per_token(work.supervised)
    if work.activation_checkpointing:
        blocks = sum(p.numel() for p in model.blocks.parameters() if p.dim() == 2)
        config = model.config
        attention = config.n_layer * config.n_head * config.head_dim * config.block_size
        flops += 2 * blocks + 4 * attention  # a third of forward and backward
    return work.processes * tflops * 1e12 * mfu / flops


def recipe(settings, changes, title):
    """The text of a recipe: what `settings` have beside the defaults, and `changes` (name → value;
    None: leave it out)."""
    names = [name for name in settings.as_dict() if settings.origin(name) != "default"]
    kept = {name: getattr(settings, name) for name in names if name not in changes}
    planned = {name: value for name, value in changes.items() if value is not None}
    lines = [f"{name} = {_literal(value)}" for name, value in (kept | planned).items()]
    return "\n".join([f'"""{title}\n"""', "", *lines]) + "\n"


def _literal(value):
    """A value as Python, texts in double quotes."""
    return json.dumps(value, ensure_ascii=False) if isinstance(value, str) else repr(value)
