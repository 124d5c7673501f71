"""The hardware: which device and dtype a run uses, and how fast it multiplies matrices."""

import contextlib
import re
import time

import torch

from minigpt.common.errors import UserError

# Peak of dense bfloat16/float16 products with float32 accumulation, in TFLOP/s, from data sheets.
# The first entry counts whose words are in the name of the device.
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
        name = torch.cuda.get_device_name(device)
        found = (p for part, p in PEAK_TFLOPS.items() if re.search(rf"\b{part}\b", name))
        return next((1e12 * peak for peak in found), None)
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
