"""Speed of a training step, compared with transformers' model of the same shape in the same run.

    python bench/train.py                        # cpu_small: 4 layers of width 256
    python bench/train.py --shape=124M           # 12 layers of width 768; 6 GB, takes minutes
    python bench/train.py --peers=CLONES         # also nanoGPT and minimind, cloned into CLONES

Whole steps on random tokens: forward, backward, clipping, optimizer. Ours in GPT-2's shape,
transformers' GPT2LMHeadModel and nanoGPT compute the same with AdamW; "default" is the default of
train.py (Qwen3's shape, Muon), MiniMind has that shape with AdamW. With --isa=avx2 PyTorch, oneDNN
and MKL compute as on a processor with AVX2 alone. Each case is a process of its own, so that its
memory can be measured. Rounds alternate; medians are shown. Operations are counted by
GPT.flops_per_token() (6 for each weight of a matrix, and attention) for all of them, whatever they
really compute; the peak is the best of the float32 matrix products measured after each round.
"""

import json
import os
import pathlib
import statistics
import sys
import time
from typing import Literal

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))


from config.configurator import configure
from minigpt.common.errors import UserError, preflight, run

CASES = ("ours, default", "ours, GPT-2", "transformers GPT-2")
COMPILED = ("ours, default, compiled", "ours, GPT-2, compiled")
PEERS = ("nanoGPT", "minimind")


class Settings:
    shape: str = "cpu_small"  # or 124M
    n_rows: int = 8256  # rows of the embedding: `zh`, rounded up; 50304 for GPT-2's
    batch_size: int = 0  # blocks per step; 0: 8
    steps: int = 0  # timed steps per round; 0: 20, or 3 at 124M
    rounds: int = 3
    peers: str = ""  # a folder with clones of nanoGPT and minimind; "": without them
    compile: bool = False  # also time ours with torch.compile
    isa: Literal["native", "avx2"] = "native"
    case: str = ""  # only this case, output as JSON; the script runs itself with it


def read_settings():
    """The settings, checked."""
    knobs = "learning_rate embedding_lr_ratio weight_decay beta1 beta2 muon_momentum"
    return configure(Settings, shared=knobs, doc=__doc__, quiet=True)


if __name__ == "__main__":
    preflight(read_settings)  # --help and mistakes, before the imports below, which take seconds
    if read_settings().isa == "avx2":  # PyTorch, oneDNN and MKL read these when they are loaded
        os.environ |= dict(ATEN_CPU_CAPABILITY="avx2", DNNL_MAX_CPU_ISA="AVX2")
        os.environ["MKL_ENABLE_INSTRUCTIONS"] = "AVX2"

import torch

from bench.peers import minimind_step, nanogpt_step
from bench.steps import GPT2, SHAPES, our_step, peak_memory, transformers_step
from minigpt.common.report import table
from minigpt.common.scripts import figures_of
from minigpt.models.device import matmul_flops
from model import GPT, GPTConfig


def main():
    settings = read_settings()
    print(settings.describe(), flush=True)
    if settings.shape not in SHAPES:
        raise UserError(f"shape={settings.shape}: expected {' or '.join(SHAPES)}")
    if problems := settings.below(rounds=1, steps=0, batch_size=0):
        raise UserError("\n".join(problems))
    if settings.case:
        print(json.dumps(measure(settings)))
        return
    cases = (*CASES, *COMPILED * settings.compile, *PEERS * bool(settings.peers))
    found = {name: [] for name in cases}
    for number in range(settings.rounds):
        for name in found:
            found[name].append(figures_of(__file__, *sys.argv[1:], f"--case={name}"))
            rate, memory = found[name][-1]["rate"], found[name][-1]["memory"]
            print(f"round {number + 1}: {name}: {rate:,.0f} tokens/s, {memory:.2f} GB", flush=True)
    show(found)


def measure(settings):
    """One case: tokens per second, operations per token, peak memory (GB), the machine's peak."""
    torch.manual_seed(0)
    batch_size = settings.batch_size or 8
    is_default = "default" in settings.case or settings.case == "minimind"
    shape = {**SHAPES[settings.shape], **({} if is_default else GPT2)}
    ours = GPTConfig(padded_vocab_size=settings.n_rows, **shape)
    flops = GPT(ours).flops_per_token()
    settings.optimizer = "muon" if is_default else "adamw"
    peers = pathlib.Path(settings.peers)
    if "transformers" in settings.case:
        step = transformers_step(ours, "cpu", torch.float32)
    elif settings.case == "nanoGPT":
        step = nanogpt_step(peers / "nanoGPT", ours)
    elif settings.case == "minimind":
        step = minimind_step(peers / "minimind", ours)
    else:
        compiled = settings.case in COMPILED
        step = our_step(GPT(ours), settings, "cpu", torch.float32, compiled=compiled)
    tokens = torch.randint(0, settings.n_rows, (batch_size, ours.block_size)).numpy()
    for _ in range(2):
        step(tokens)
    peak = matmul_flops("cpu")
    times = []
    for _ in range(settings.steps or (20 if settings.shape == "cpu_small" else 3)):
        start = time.perf_counter()
        float(step(tokens))
        times.append(time.perf_counter() - start)
    rate = batch_size * ours.block_size / statistics.median(times)
    return dict(
        rate=rate, flops=flops, memory=peak_memory("cpu"), peak=max(peak, matmul_flops("cpu"))
    )


def show(found):
    """Print the table of bench/README.md."""
    peak = max(each["peak"] for rounds in found.values() for each in rounds)
    rates = {
        name: statistics.median(each["rate"] for each in rounds) for name, rounds in found.items()
    }
    rows = []
    for name, rounds in found.items():
        rate = rates[name]
        memory = statistics.median(each["memory"] for each in rounds)
        work = rate * rounds[0]["flops"]
        rows.append(
            [name, f"{rate:,.0f}"]
            + [
                f"{rate / rates[peer]:.2f}"
                for peer in ("transformers GPT-2", *PEERS)
                if peer in rates
            ]
            + [f"{work / 1e9:.1f}", f"{work / peak:.0%}", f"{memory:.2f} GB"]
        )
    peers = ["÷ transformers", *(f"÷ {name}" for name in PEERS if name in rates)]
    header = ["", "tokens/s", *peers, "GFLOP/s", "of the peak", "memory"]
    print(table(header, rows))
    print(f"peak: {peak / 1e9:.1f} GFLOP/s, float32, {torch.get_num_threads()} threads")


if __name__ == "__main__":
    run(main)
