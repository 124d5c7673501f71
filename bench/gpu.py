"""Training speed on a GPU, compared with transformers' model of the same shape in the same run.

    python bench/gpu.py                               # 124M and 350M at block 1024, compiled
    python bench/gpu.py --shapes=124M --compile=false
    python bench/gpu.py --device=cpu --shapes=cpu_small --block_size=64 --batch_size=2 --steps=2

Whole steps on random tokens: forward, backward, clipping, optimizer, in train.py's dtype. "default"
is the default of train.py (Qwen3's shape, Muon), with one segment per row, and with segments of
--piece tokens that are isolated in attention as in the layout `concat`: by PyTorch's kernel for
sequences of variable length if it runs, else by a mask. Each case is a process of its own. Rounds
alternate; medians are shown. MFU is GPT.flops_per_token() × tokens per second over the data sheet's
peak (on a CPU: over the best measured matrix product).

For quality over training time: python bench/speedrun.py --body=124M
"""

import json
import pathlib
import statistics
import sys
import time

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))


from config.configurator import configure
from minigpt.common.errors import UserError, preflight, run

CASES = ("ours, default", "ours, default, pieces", "ours, GPT-2", "transformers GPT-2")


class Settings:
    shapes: list[str] = ["124M", "350M"]  # of cpu_small, 124M, 350M
    block_size: int = 1024
    n_rows: int = 50304  # rows of the embedding; 8256 for `zh`
    batch_size: int = 32  # blocks per step
    piece: int = 200  # tokens per segment
    steps: int = 20  # timed steps per round
    rounds: int = 3
    compile: bool = True  # torch.compile, in all cases
    case: str = ""  # only this case, output as JSON; the script runs itself with it


def read_settings():
    """The settings, checked."""
    knobs = "device dtype learning_rate embedding_lr_ratio weight_decay"
    return configure(Settings, shared=knobs + " beta1 beta2 muon_momentum", doc=__doc__, quiet=True)


if __name__ == "__main__":
    preflight(read_settings)  # --help and mistakes, before the imports below, which take seconds

import torch

from bench.steps import GPT2, SHAPES, our_step, peak_memory, transformers_step
from minigpt.common.report import table
from minigpt.common.scripts import figures_of
from minigpt.models.device import peak_flops, pick_device, pick_dtype
from model import GPT, GPTConfig, has_varlen_attention


def main():
    settings = read_settings()
    print(settings.describe(), flush=True)
    if unknown := set(settings.shapes) - set(SHAPES):
        raise UserError(f"shapes={','.join(unknown)}: expected some of {', '.join(SHAPES)}")
    device = pick_device(settings.device)
    if problems := settings.below(rounds=1, steps=1, batch_size=1):
        raise UserError("\n".join(problems))
    if settings.case:
        print(json.dumps(measure(settings, device)))
        return
    if settings.device == "auto" and not device.startswith("cuda"):
        raise UserError("no GPU here (CUDA); --device=cpu tries this script, bench/train.py times")
    dtype = pick_dtype(settings.dtype, device)
    name = torch.cuda.get_device_name(device) if device.startswith("cuda") else device
    print(f"{name}, {dtype}, PyTorch {torch.__version__}")
    for shape in settings.shapes:
        found = {name: [] for name in CASES}
        for number in range(settings.rounds):
            for name in CASES:
                words = [*sys.argv[1:], f"--shapes={shape}", f"--case={name}"]
                found[name].append(figures_of(__file__, *words))
                print(f"{shape}, round {number + 1}: {name}: {found[name][-1]['rate']:,.0f} tok/s")
        show(shape, found)
    head_dim = SHAPES[settings.shapes[0]]["n_embd"] // SHAPES[settings.shapes[0]]["n_head"]
    pieces = "the kernel for pieces" if has_varlen_attention(device, dtype, head_dim) else "a mask"
    print(f"pieces are kept apart by {pieces}")


def measure(settings, device):
    """One case: tokens per second, MFU, peak memory (GB)."""
    torch.manual_seed(0)
    torch.set_float32_matmul_precision("high")
    dtype = pick_dtype(settings.dtype, device)
    shape = {**SHAPES[settings.shapes[-1]], "block_size": settings.block_size}
    shape |= {} if "default" in settings.case else GPT2
    config = GPTConfig(padded_vocab_size=settings.n_rows, **shape)
    flops = GPT(config).flops_per_token()
    settings.optimizer = "muon" if "default" in settings.case else "adamw"
    if "transformers" in settings.case:
        torch.backends.cuda.enable_cudnn_sdp(True)  # PyTorch's default; pick_device() disables it
        step = transformers_step(config, device, dtype, settings.compile)
    else:
        piece = settings.piece if "pieces" in settings.case else None
        step = our_step(GPT(config), settings, device, dtype, piece, settings.compile)
    tokens = torch.randint(0, settings.n_rows, (settings.batch_size, settings.block_size)).numpy()
    for _ in range(5):
        float(step(tokens))  # compilation and warm-up
    start = time.perf_counter()
    for _ in range(settings.steps):
        float(step(tokens))  # waits for the GPU, as train.py does once per step
    seconds = (time.perf_counter() - start) / settings.steps
    rate = settings.batch_size * settings.block_size / seconds
    peak = peak_flops(device)
    return dict(rate=rate, mfu=rate * flops / peak if peak else None, memory=peak_memory(device))


def show(shape, found):
    """Print the table of one shape."""
    peer = statistics.median(each["rate"] for each in found[CASES[-1]])
    rows = []
    for name, rounds in found.items():
        rate = statistics.median(each["rate"] for each in rounds)
        memory = statistics.median(each["memory"] for each in rounds)
        mfu = [each["mfu"] for each in rounds if each["mfu"] is not None]
        share = f"{statistics.median(mfu):.1%}" if mfu else "–"
        rows.append([name, f"{rate:,.0f}", f"{rate / peer:.2f}", share, f"{memory:.2f} GB"])
    print(table([shape, "tokens/s", "÷ transformers", "MFU", "memory"], rows))


if __name__ == "__main__":
    run(main)
