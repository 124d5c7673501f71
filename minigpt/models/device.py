"""The hardware: which device and dtype a run uses, and how fast it multiplies matrices."""

import contextlib
import re
import time
from typing import NamedTuple

import torch

from minigpt.common.errors import UserError


class Card(NamedTuple):
    """A GPU. tflops: peak of dense products in bfloat16, or float16 where it has no bfloat16, with
    float32 accumulation, in TFLOP/s; gigabytes: of memory, the least that is sold. Data sheets."""

    tflops: float
    gigabytes: int
    bfloat16: bool = True


# The first entry counts whose words are in the name of the device.
CARDS = {
    "B200": Card(2250, 180),
    "H200": Card(989, 141),
    "H100 PCIe": Card(756, 80),
    "H100 NVL": Card(835, 94),
    "H100": Card(989, 80),
    "H800": Card(989, 80),
    "H20": Card(148, 96),
    "A100": Card(312, 40),
    "A800": Card(312, 80),
    "L40S": Card(362, 48),
    "L40": Card(181, 48),
    "L20": Card(119, 48),
    "L4": Card(121, 24),
    "A40": Card(150, 48),
    "A30": Card(165, 24),
    "A10": Card(125, 24),
    "RTX A6000": Card(155, 48),
    "V100": Card(125, 16, bfloat16=False),
    "T4": Card(65, 16, bfloat16=False),
    "RTX 5090": Card(210, 32),
    "RTX 5080": Card(113, 16),
    "RTX 5070 Ti": Card(88, 16),
    "RTX 5070": Card(62, 12),
    "RTX 4090 D": Card(147, 24),
    "RTX 4090": Card(165, 24),
    "RTX 4080": Card(97, 16),
    "RTX 4070 Ti": Card(80, 12),
    "RTX 4070": Card(58, 12),
    "RTX 4060 Ti": Card(44, 8),
    "RTX 4060": Card(30, 8),
    "RTX 3090": Card(71, 24),
    "RTX 3080": Card(59, 10),
    "RTX 3070": Card(41, 8),
    "RTX 3060": Card(25, 12),
    "RTX 2080 Ti": Card(54, 11, bfloat16=False),
}


def find_card(name):
    """The Card of a device by PyTorch's name for it, or by the short name that people use ("4090",
    "a100"); None if it is not one of CARDS."""
    short = re.sub(r"nvidia|geforce|rtx|tesla|[^a-z0-9]", "", name.lower())
    for words, card in CARDS.items():
        if short == re.sub(r"rtx|[^a-z0-9]", "", words.lower()):
            return card
    found = (card for words, card in CARDS.items() if re.search(rf"\b{words}\b", name, re.I))
    return next(found, None)


def pick_device(name="auto"):
    """The device for `name`: "auto" is cuda, else mps, else cpu. UserError lists what exists.

    It also disables cuDNN's attention in this process.
    """
    # On an H100 PyTorch prefers cuDNN's attention, which plans half a second for every new shape,
    # and generation has a new shape with every token. The other kernels need no plan.
    torch.backends.cuda.enable_cudnn_sdp(False)
    if name == "auto":
        if torch.cuda.is_available():
            return "cuda"
        return "mps" if torch.backends.mps.is_available() else "cpu"
    kind = None
    with contextlib.suppress(RuntimeError, AssertionError, NotImplementedError):
        torch.empty(1, device=name)
        kind = torch.device(name).type
    if kind in (None, "meta"):  # meta tensors have no data
        present = ["cpu"]
        present += [f"cuda:{i}" for i in range(torch.cuda.device_count())]
        present += ["mps"] if torch.backends.mps.is_available() else []
        raise UserError(f"device={name}: not on this machine, which has {', '.join(present)}")
    return "cpu" if kind == "cpu" else name  # "cpu:0" is "cpu"


def pick_dtype(name, device):
    """The dtype for `name`: "auto" is bfloat16 on GPUs that have it, float16 on older ones, else
    float32.

    UserError for "int8" and "int4", which are for generation only
    (minigpt/inference/quantization.py).
    """
    if name in ("int8", "int4"):
        raise UserError(f"dtype={name}: only for generation (sample.py, server.py); use dtype=auto")
    if name != "auto":
        if name != "float32" and device == "cpu":
            raise UserError(f"dtype={name}: on a CPU only float32 is fast; use dtype=auto")
        return getattr(torch, name)
    if device.startswith("cuda"):
        # Turing and older only emulate bfloat16.
        new = torch.cuda.get_device_capability(device)[0] >= 8
        return torch.bfloat16 if new else torch.float16
    return torch.float32


def autocast(device, dtype):
    """The context manager in which a forward pass computes in `dtype`."""
    if dtype == torch.float32:
        return contextlib.nullcontext()
    return torch.autocast(device.split(":")[0], dtype)


def peak_flops(device):
    """The highest FLOP/s of this device, or None if unknown: of a GPU from its data sheet, of a CPU
    the best of a few float32 matrix products measured now (a tenth of a second)."""
    if device.startswith("cuda"):
        card = find_card(torch.cuda.get_device_name(device))
        return 1e12 * card.tflops if card else None
    return matmul_flops(device) if device == "cpu" else None


def fewest_threads(work, gain=1.3, rounds=3):
    """How many threads PyTorch should use for work(), measured, best of `rounds`. The number is
    doubled only if work() gets `gain` times as fast: other processes need the cores, too."""
    most = torch.get_num_threads()

    def seconds(threads):
        torch.set_num_threads(threads)
        times = []
        for _ in range(1 + rounds):  # the first round warms up
            start = time.perf_counter()
            work()
            times.append(time.perf_counter() - start)
        return min(times[1:])

    try:
        threads, took = 1, seconds(1)
        while threads < most:
            more = min(2 * threads, most)
            faster = seconds(more)
            if took < gain * faster:
                break
            threads, took = more, faster
    finally:
        torch.set_num_threads(most)
    return threads


def matmul_flops(device, dtype=torch.float32, size=1024, rounds=5):
    """FLOP/s of a (size, size) matrix product, the best of `rounds`."""
    generator = torch.Generator(device).manual_seed(0)  # leaves the run's own randomness alone
    options = dict(device=device, dtype=dtype, generator=generator)
    a, b = (torch.randn(size, size, **options) for _ in range(2))
    best = float("inf")
    for _ in range(rounds):
        start = time.perf_counter()
        float((a @ b)[0, 0])  # reading a value synchronizes with the device
        best = min(best, time.perf_counter() - start)
    return 2 * size**3 / best
