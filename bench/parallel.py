"""What a process holds of a model in training, and the time of a step: one process, DDP, FSDP.

    python bench/parallel.py
    torchrun --nproc_per_node=2 bench/parallel.py
    torchrun --nproc_per_node=2 bench/parallel.py --parallel=fsdp

Steps of train.py on random tokens: forward, backward, clipping, optimizer. Weights, gradients and
optimizer state are the bytes of their tensors after a step, before the gradients are dropped. The
peak is that of the whole process, with Python and PyTorch. Milliseconds are the median.
"""

import pathlib
import statistics
import sys
import time

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))


from config.configurator import configure
from minigpt.common.errors import UserError, preflight, run


class Settings:
    shape: str = "cpu_small"  # or 124M, 350M
    n_rows: int = 8256  # rows of the embedding: `zh`, rounded up
    batch_size: int = 4  # blocks of a process
    steps: int = 5  # timed steps, after one that is not


def read_settings():
    """The settings, checked."""
    knobs = "parallel device optimizer learning_rate embedding_lr_ratio weight_decay beta1 beta2 "
    return configure(Settings, shared=knobs + "muon_momentum", doc=__doc__, quiet=True)


if __name__ == "__main__":
    preflight(read_settings)  # --help and mistakes, before the imports below, which take seconds

import numpy as np
import torch

from bench.steps import SHAPES, peak_memory
from data_utils import Batch
from minigpt.common.report import table
from minigpt.data.block_format import TARGET
from minigpt.training.distributed import Distributed
from minigpt.training.objectives.next_token import NextToken
from minigpt.training.optim import make_optimizers
from minigpt.training.sharding import local
from minigpt.training.trainer import StepLoss
from model import GPT, GPTConfig


def main():
    settings = read_settings()
    if settings.shape not in SHAPES:
        raise UserError(f"shape={settings.shape}: expected {', '.join(SHAPES)}")
    if problems := settings.below(steps=1, batch_size=1):
        raise UserError("\n".join(problems))
    distributed = Distributed()
    device = distributed.start(settings.device)
    found = distributed.gather(measure(settings, distributed, device))
    if distributed.is_main:
        print(settings.describe())
        names = ("weights", "gradients", "optimizer state", "peak", "ms a step")
        rows = [[str(rank), *map("{:,.1f}".format, figures)] for rank, figures in enumerate(found)]
        print(table(["process, MB", *names], rows))
    distributed.stop()


def measure(settings, distributed, device):
    """MB of weights, gradients, optimizer state, and at the peak; milliseconds of a step."""
    torch.manual_seed(0)
    config = GPTConfig(padded_vocab_size=settings.n_rows, **SHAPES[settings.shape])
    model = GPT(config).to(device)
    if settings.parallel == "fsdp":
        distributed.shard(model, torch.float32)
    optimizers = make_optimizers(model, settings, device)
    step_loss = distributed.wrap(StepLoss(model, NextToken()))
    dice, seconds = np.random.default_rng(distributed.rank), []
    for _ in range(1 + settings.steps):
        tokens = dice.integers(settings.n_rows, size=(settings.batch_size, config.block_size))
        batch = Batch.of(tokens, np.full(tokens.shape, TARGET, np.uint8), False).to(device)
        start = time.perf_counter()
        loss, count = step_loss(batch)
        (loss / count).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer in optimizers:
            optimizer.step()
        gradients = size(weight.grad for weight in model.parameters())
        model.zero_grad(set_to_none=True)
        seconds.append(time.perf_counter() - start)
    moments = [m for o in optimizers for state in o.state.values() for m in state.values()]
    sizes = [size(model.parameters()), gradients, size(moments), 1000 * peak_memory(device)]
    return [*sizes, 1000 * statistics.median(seconds[1:])]


def size(tensors):
    """MB of tensors, or of this process's parts of them."""
    return sum(local(tensor).nbytes for tensor in tensors) / 1e6


if __name__ == "__main__":
    run(main)
