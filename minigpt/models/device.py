"""The machine: which device and number format, and how fast it multiplies matrices."""

import contextlib
import re
import time

import torch

from minigpt.common.errors import UserError

# Dense bfloat16/float16 peak with float32 accumulation, in TFLOP/s, from the makers' data sheets.
# The first name that the device's own name contains, as words of its own, counts.
PEAK_TFLOPS = {
    "H200": 989,
    "H100 PCIe": 756,
    "H100 NVL": 835,
    "H100": 989,
    "A100": 312,
    "L40S": 362,
    "L40": 181,
    "L4": 121,
    "A10": 125,
    "V100": 125,
    "T4": 65,
    "RTX 4090": 165,
    "RTX 4080": 97,
    "RTX 4070 Ti": 80,
    "RTX 3090": 71,
}


def pick_device(name="auto"):
    """ "auto" → cuda, then mps, then cpu; other names are checked. UserError names what exists.

    Also turns cuDNN's attention off in this process.
    """
    # PyTorch's first choice of attention on an H100 makes a plan for every new shape, half a second
    # each, and generation has a new one with every token; the others read any shape at once.
    torch.backends.cuda.enable_cudnn_sdp(False)
    if name == "auto":
        if torch.cuda.is_available():
            return "cuda"
        return "mps" if torch.backends.mps.is_available() else "cpu"
    kind = None
    with contextlib.suppress(RuntimeError, AssertionError, NotImplementedError):
        torch.empty(1, device=name)
        kind = torch.device(name).type
    if kind in (None, "meta"):  # the latter holds no numbers
        there = ["cpu"]
        there += [f"cuda:{i}" for i in range(torch.cuda.device_count())]
        there += ["mps"] if torch.backends.mps.is_available() else []
        raise UserError(f"device={name}: not on this machine, which has {', '.join(there)}")
    return "cpu" if kind == "cpu" else name  # there is one, whatever its number


def pick_dtype(name, device):
    """ "auto" → bfloat16 on GPUs that have it, float16 on older ones, float32 elsewhere.

    UserError for "int8": minigpt/inference/quantization.py makes that of a model that only writes.
    """
    if name == "int8":
        raise UserError("dtype=int8: for writing alone (sample.py, server.py); leave dtype at auto")
    if name != "auto":
        if name != "float32" and device == "cpu":
            raise UserError(f"dtype={name}: on a CPU only float32 is fast; leave dtype at auto")
        return getattr(torch, name)
    if device.startswith("cuda"):
        # Turing and older only emulate bfloat16.
        new = torch.cuda.get_device_capability(device)[0] >= 8
        return torch.bfloat16 if new else torch.float16
    return torch.float32


def autocast(device, dtype):
    """The context in which a forward pass runs in `dtype`."""
    if dtype == torch.float32:
        return contextlib.nullcontext()
    return torch.autocast(device.split(":")[0], dtype)


def peak_flops(device):
    """FLOP/s that this device reaches at best, or None where unknown: data sheet or, on a CPU,
    the best of a few float32 matrix products measured now (a tenth of a second)."""
    if device.startswith("cuda"):
        name = torch.cuda.get_device_name(device)
        fits = (p for part, p in PEAK_TFLOPS.items() if re.search(rf"\b{part}\b", name))
        return next((1e12 * peak for peak in fits), None)
    return matmul_flops(device) if device == "cpu" else None


def fewest_threads(work, gain=1.3, rounds=3):
    """How many threads PyTorch should take for work(): twice as many only where that makes it
    `gain` times as fast, for others need the processor too. It is measured, best of `rounds`."""
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
    generator = torch.Generator(device).manual_seed(0)  # the run's own randomness is left alone
    shape = dict(device=device, dtype=dtype, generator=generator)
    a, b = (torch.randn(size, size, **shape) for _ in range(2))
    best = float("inf")
    for _ in range(rounds):
        start = time.perf_counter()
        float((a @ b)[0, 0])  # reading a value waits for the device
        best = min(best, time.perf_counter() - start)
    return 2 * size**3 / best
