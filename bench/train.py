"""How fast a training step is, beside transformers' model of the same shape in the same run.

    python bench/train.py                        # cpu_small: 4 layers of width 256
    python bench/train.py --shape=124M           # 12 layers of width 768; 6 GB, some minutes

Whole steps on random tokens: forward, backward, clipping, optimizer. Ours in GPT-2's shape and
transformers' GPT2LMHeadModel compute the same with AdamW; "default" is what train.py takes where
nothing is said (Qwen3's shape, Muon). Each is a process of its own, for its memory's sake; rounds
go through all in turn, and medians are shown. Operations are counted by
GPT.flops_per_token() (6 for each weight of a matrix, and attention) for all of them, whatever they
really compute; the peak is the best of the float32 matrix products measured beside each round.
"""

import json
import pathlib
import statistics
import subprocess
import sys
import time

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))

import numpy as np
import torch

from config.configurator import UserError, configure, run
from data_utils import Batch
from minigpt.blockfile import TARGET
from minigpt.hardware import matmul_flops
from minigpt.objectives import next_token
from minigpt.optim import make_optimizers
from minigpt.report import table
from model import GPT, GPTConfig

SHAPES = {
    "cpu_small": dict(n_layer=4, n_head=4, n_embd=256, block_size=256, batch_size=8),
    "124M": dict(n_layer=12, n_head=12, n_embd=768, block_size=512, batch_size=8),
}
GPT2 = dict(position="learned", norm="layernorm", mlp="gelu", qk_norm=False, bias=True)
CASES = ("ours, default", "ours, GPT-2", "transformers GPT-2")


class Settings:
    shape: str = "cpu_small"  # or 124M
    n_rows: int = 8256  # of the embedding: `zh`, rounded up; 50304 for GPT-2's
    batch_size: int = 0  # blocks a step; 0: 8
    steps: int = 0  # that are timed in a round; 0: 20, or 3 at 124M
    rounds: int = 3
    case: str = ""  # one of them alone, as JSON: what the processes of this script are asked


def main():
    knobs = "optimizer learning_rate embedding_lr_ratio weight_decay beta1 beta2 muon_momentum"
    settings = configure(Settings, shared=knobs, doc=__doc__)
    if settings.shape not in SHAPES:
        raise UserError(f"shape={settings.shape}: expected {' or '.join(SHAPES)}")
    if settings.case:
        print(json.dumps(measure(settings)))
        return
    found = {name: [] for name in CASES}
    for number in range(settings.rounds):
        for name in CASES:
            found[name].append(in_a_process(name))
            rate, memory = found[name][-1]["rate"], found[name][-1]["memory"]
            print(f"round {number + 1}: {name}: {rate:,.0f} tokens/s, {memory:.2f} GB", flush=True)
    show(found)


def in_a_process(name):
    """What measure() gives for one case, in a process of its own."""
    command = [sys.executable, __file__, *sys.argv[1:], f"--case={name}"]
    done = subprocess.run(command, stdout=subprocess.PIPE, encoding="utf-8", check=False)
    if done.returncode:
        raise UserError(f"{name}: its process ended with exit code {done.returncode}")
    return json.loads(done.stdout.splitlines()[-1])


def measure(settings):
    """One case: tokens a second, operations a token, peak memory (GB), the machine's peak."""
    torch.manual_seed(0)
    shape = dict(SHAPES[settings.shape])
    batch_size = settings.batch_size or shape.pop("batch_size")
    shape.pop("batch_size", None)
    ours = GPTConfig(
        n_rows=settings.n_rows, **shape, **({} if "default" in settings.case else GPT2)
    )
    flops = GPT(ours).flops_per_token()
    step = (with_transformers if "transformers" in settings.case else with_ours)(ours, settings)
    x = torch.randint(0, settings.n_rows, (batch_size, ours.block_size))
    for _ in range(2):
        step(x)
    peak = matmul_flops("cpu")
    times = []
    for _ in range(settings.steps or (20 if settings.shape == "cpu_small" else 3)):
        start = time.perf_counter()
        step(x)
        times.append(time.perf_counter() - start)
    rate = batch_size * ours.block_size / statistics.median(times)
    return dict(rate=rate, flops=flops, memory=peak_memory(), peak=max(peak, matmul_flops("cpu")))


def with_ours(config, settings):
    """A function that takes one step of our model."""
    settings.set("optimizer", "muon" if "default" in settings.case else "adamw", "the case")
    model = GPT(config)
    optimizers = make_optimizers(model, settings, "cpu")

    def step(x):
        batch = Batch.of(x.numpy(), np.full(x.shape, TARGET, np.uint8), isolated=False)
        loss, count = next_token(model, batch)
        (loss / count).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer in optimizers:
            optimizer.step()
        model.zero_grad(set_to_none=True)

    return step


def with_transformers(config, settings):
    """A function that takes one step of transformers' model of the same shape."""
    from transformers import GPT2Config, GPT2LMHeadModel

    shape = dict(n_layer=config.n_layer, n_head=config.n_head, n_embd=config.n_embd)
    rest = dict(resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0, use_cache=False)
    size = dict(vocab_size=config.n_rows, n_positions=config.block_size)
    model = GPT2LMHeadModel(GPT2Config(**shape, **size, **rest)).train()
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=1e-3, betas=(0.9, 0.95), weight_decay=0.1, fused=True
    )

    def step(x):
        # As its own Trainer does: it shifts the labels itself.
        model(input_ids=x, labels=x).loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        model.zero_grad(set_to_none=True)

    return step


def peak_memory():
    """The most memory that this process has held, in GB; 0 where the system does not tell."""
    try:
        import resource
    except ImportError:  # Windows
        return 0.0
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most / 1e9 if sys.platform == "darwin" else most * 1024 / 1e9


def show(found):
    """The table that stands in bench/README.md."""
    peak = max(each["peak"] for rounds in found.values() for each in rounds)
    rows, peer = [], statistics.median(each["rate"] for each in found[CASES[-1]])
    for name, rounds in found.items():
        rate = statistics.median(each["rate"] for each in rounds)
        memory = statistics.median(each["memory"] for each in rounds)
        work = rate * rounds[0]["flops"]
        rows.append(
            [name, f"{rate:,.0f}", f"{rate / peer:.2f}", f"{work / 1e9:.1f}", f"{work / peak:.0%}"]
            + [f"{memory:.2f} GB"]
        )
    header = ["", "tokens/s", "÷ transformers", "GFLOP/s", "of the peak", "memory"]
    print(table(header, rows))
    print(f"peak: {peak / 1e9:.1f} GFLOP/s, float32, {torch.get_num_threads()} threads")


if __name__ == "__main__":
    run(main)
