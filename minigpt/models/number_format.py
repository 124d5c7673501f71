"""The number format of training on a device that was not measured before: found by trying.

    formats = [Format(torch.float32), Format(torch.bfloat16), Format(torch.float16)]
    chosen, lines = fastest(formats, lambda each: try_step(model, step_loss, device, each))

On a Mac's GPU it depends on chip, macOS and PyTorch whether half precision is faster, and whether
it gives the right gradients. So each format takes a few training steps without an update; one that
fails, or whose loss or gradient is not that of float32, is not used.
"""

import math
import time
from dataclasses import dataclass

import torch

from minigpt.models.device import autocast

LOSS_MARGIN = 0.01  # relative difference from float32 that rounding explains
NORM_MARGIN = 0.1  # of the gradient's norm
GAIN = 1.1  # how much faster than float32 a format has to be
SCALE = 2.0**16  # of the loss in float16 at the start
ROUNDS = 3  # timed steps; the first one, which warms up, is not


@dataclass(frozen=True)
class Format:
    """dtype: of the forward pass. compile: whether torch.compile fuses its operators."""

    dtype: torch.dtype
    compile: bool = False

    def __str__(self):
        return str(self.dtype).removeprefix("torch.") + (" compiled" if self.compile else "")


@dataclass(frozen=True)
class Trial:
    """What some steps in a Format gave: loss, norm of the gradient, and seconds of the fastest."""

    loss: float
    norm: float
    seconds: float


def fastest(formats, attempt):
    """(the Format to use, lines that say why).

    formats: the first is the reference. attempt(format): a Trial; what it raises, other than of the
    reference, means that the device cannot use the format. One that is not GAIN times as fast as
    the reference is not worth its rounding.
    """
    reference, *others = formats
    base = attempt(reference)
    best, best_seconds = reference, base.seconds / GAIN
    lines = [f"{reference}: {base.seconds * 1000:.0f} ms a step"]
    for each in others:
        try:
            trial = attempt(each)
        except Exception as error:  # of any backend, in any of its types
            reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
            lines.append(f"{each}: not here ({reason[:100]})")
            continue
        fault = _fault(trial, base)
        lines.append(f"{each}: {trial.seconds * 1000:.0f} ms a step{fault and ', ' + fault}")
        if not fault and trial.seconds < best_seconds:
            best, best_seconds = each, trial.seconds
    return best, lines


def _fault(trial, base):
    """How a trial's results differ from those of float32; "" if rounding explains it."""
    for name, margin in (("loss", LOSS_MARGIN), ("norm", NORM_MARGIN)):
        value, expected = getattr(trial, name), getattr(base, name)
        # Written so that nan is a fault.
        if not abs(value - expected) <= margin * abs(expected):
            called = {"loss": "loss", "norm": "gradient norm"}[name]
            return f"but its {called} is {value:.4g}, not {expected:.4g}"
    return ""


def try_step(model, step_loss, device, number_format):
    """The Trial of a Format: some steps without an update. Gradients are None afterwards.

    model: on `device`. step_loss(model): a scalar loss, the same at every call.
    """
    # As with the trainer's loss scaler, float16 gradients that overflow halve the scale.
    scale = SCALE if number_format.dtype == torch.float16 else 1.0
    called = torch.compile(model) if number_format.compile else model
    times = []
    while len(times) < 1 + ROUNDS:
        model.zero_grad(set_to_none=True)
        start = time.perf_counter()
        with autocast(device, number_format.dtype):
            loss = step_loss(called)
        (loss * scale).backward()
        gradients = [weight.grad for weight in model.parameters() if weight.grad is not None]
        # Reading a value waits for the device.
        norm = float(torch.nn.utils.get_total_norm(gradients)) / scale
        if not math.isfinite(norm) and scale > 1:
            scale /= 2
        else:
            times.append(time.perf_counter() - start)
    model.zero_grad(set_to_none=True)
    return Trial(loss.item(), norm, min(times[1:]))
