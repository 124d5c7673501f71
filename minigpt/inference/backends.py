"""Backends: what computes a model's matrix products on this CPU. The fastest one is timed.

    choice = choose(model, "int8", "auto")             # Choice("int8", "fbgemm", …)
    convert(model, choice)                             # every nn.Linear becomes the backend's

The knob `kernels` names one, or which of them are timed:

    auto      PyTorch's own; for int8 also the C++ kernels (kernels.py) if they have been built; for
              int4 these kernels alone, built if necessary
    true      the C++ kernels, built if necessary
    false     PyTorch's own
    fbgemm, int_mm    this one, for int8

int8 and int4 are taken only where they are faster than float32, or where a backend is named.
"""

import copy
import dataclasses
import functools
import time
from dataclasses import dataclass, field

import torch
import torch.nn as nn

from minigpt.common.errors import UserError
from minigpt.inference.decoder import Decoder
from minigpt.inference.kernels import build, built_before
from minigpt.inference.kv_cache import KVCache
from minigpt.inference.quantization import (
    FbgemmLinear,
    Int4Linear,
    Int8Linear,
    KernelLinear,
    by_column,
    has_fbgemm,
)
from minigpt.models.device import pick_device

# dtype → backend → its layer, made of an nn.Linear and the kernels. A later one is taken only if it
# is GAIN times as fast as those before it, so that noise seldom changes the choice.
LAYERS = {
    "float32": {"torch": lambda linear, kernels: by_column(linear), "kernels": KernelLinear},
    "int8": {
        "fbgemm": lambda linear, kernels: FbgemmLinear(linear),
        "kernels": Int8Linear,
        "int_mm": lambda linear, kernels: Int8Linear(linear),
    },
    "int4": {"kernels": Int4Linear},
}
FIRST = "float32", "torch"
GAIN = 1.1
ROUNDS = 5  # of all backends, alternating
OTHER_WEIGHTS = 2**24  # 64 MB, more than most caches


@dataclass(frozen=True)
class Choice:
    """A backend for a model. kernels: the compiled module, or None. rates: (dtype, backend) → how
    many times as fast as PyTorch's float32 it is; empty if there was nothing to choose from."""

    dtype: str
    backend: str
    kernels: object = None
    rates: dict = field(default_factory=dict)

    def __str__(self):
        """One line: the backend and its speed, then those of the others."""
        own = self.dtype, self.backend
        line = _name(own)
        if own != FIRST and self.rates:
            line += f": {self.rates[own]:.2g} × {_name(FIRST)}"
        others = [
            f"{_name(key)} {rate:.2g} ×"
            for key, rate in self.rates.items()
            if key not in (own, FIRST)
        ]
        return line + (f" ({', '.join(others)})" if others else "")


def _name(key):
    return " by ".join(key)


def pick_kernels(device, dtype, kernels):
    """(device, the compiled kernels or None), for the knobs of these names. UserError if they
    contradict each other, or if the kernels cannot be built."""
    device, kernels = pick_device(device), _word(kernels)
    if device != "cpu":
        if dtype in ("int8", "int4"):
            raise UserError(f"dtype={dtype}: made for a CPU; on {device} leave dtype at auto")
        if kernels not in ("auto", "false"):
            raise UserError(f"kernels={kernels}: made for a CPU; on {device} leave kernels out")
        return device, None
    if kernels in LAYERS["int8"]:
        if dtype != "int8":
            raise UserError(f"kernels={kernels}: for dtype=int8 alone; leave kernels out")
        if kernels == "fbgemm" and not has_fbgemm():
            raise UserError("kernels=fbgemm: this PyTorch has none; leave kernels out")
    if dtype == "int4":
        if kernels == "false":
            raise UserError("kernels=false: int4 is by the C++ kernels alone; take dtype=int8")
        return device, _built("dtype=int4", "take dtype=int8")
    if kernels == "auto":
        # float32 is by PyTorch: the same seed writes the same text, whatever has been built here.
        return device, built_before() if dtype == "int8" else None
    return device, _built("kernels=true", "leave kernels out") if kernels == "true" else None


def _built(setting, remedy):
    """The compiled kernels, or UserError about the setting that takes them."""
    try:
        return build()
    except UserError as error:
        raise UserError(f"{setting}: {error}; or {remedy}") from None


def choose(model, dtype="float32", kernels="auto", built=None):
    """The Choice for `model`, in float32 on a CPU. kernels: the knob; built: by pick_kernels().

    Where backends are to be timed it takes a quarter of a second at the 124M shape. For "int8" and
    "int4" the choice may be one of float32: they are slower here.
    """
    named = {"true": "kernels", "fbgemm": "fbgemm", "int_mm": "int_mm"}.get(_word(kernels))
    if named:
        return Choice(dtype, named, built)
    keys = [(kind, backend) for kind in {"float32": 0, dtype: 0} for backend in LAYERS[kind]]
    unusable = {"kernels": built is None, "fbgemm": not has_fbgemm()}
    keys = [key for key in keys if not unusable.get(key[1])]
    if keys == [FIRST]:
        return Choice(*FIRST)
    seconds = time_layer(model, keys, built)
    rates = {key: seconds[FIRST] / seconds[key] for key in keys}
    best = {}  # dtype → key
    for key in keys:
        if key[0] not in best or rates[key] > GAIN * rates[best[key[0]]]:
            best[key[0]] = key
    return Choice(*max(best.values(), key=rates.get), built, rates)


def _word(kernels):
    """The knob as a word: True and False are "true" and "false"."""
    return str(bool(kernels)).lower() if isinstance(kernels, bool | int) else kernels


@torch.inference_mode()
def time_layer(model, keys, kernels=None):
    """key → seconds that one token takes in the model's first block, the best of ROUNDS.

    Between two of them other memory is read, as much as the model's other weights take up to
    OTHER_WEIGHTS: a real step finds few weights in the cache.
    """
    config = dataclasses.replace(model.config, n_layer=1)
    position = torch.tensor([[config.block_size // 2]])
    cache = KVCache(config, 1).rows(slice(0, 1), int(position) + 1)
    h, rotary = torch.randn(1, 1, config.n_embd), None
    if config.position == "rope":
        rotary = model.rotary(position)
    blocks = {}
    for key in keys:
        block = convert_linear(copy.deepcopy(model.blocks[0]), Choice(*key, kernels))
        blocks[key] = functools.partial(block, h, rotary, position, cache=cache[0])
        if key[1] == "kernels":
            decoder = Decoder([block], config, kernels)
            blocks[key] = functools.partial(decoder, h.clone(), rotary, position, cache)
    other = torch.zeros(min(OTHER_WEIGHTS, model.n_params()))
    best = dict.fromkeys(keys, float("inf"))
    for number in range(1 + ROUNDS):  # the first round warms up
        for key, step in blocks.items():
            other.sum()
            start = time.perf_counter()
            step()
            if number:
                best[key] = min(best[key], time.perf_counter() - start)
    return best


def convert(model, choice):
    """Make `model` compute by the backend. The embedding stays as it is."""
    convert_linear(model, choice)
    if choice.backend == "kernels":
        model.decoder = Decoder(model.blocks, model.config, choice.kernels)


def convert_linear(module, choice):
    """`module` with every nn.Linear replaced by the backend's layer."""
    make = LAYERS[choice.dtype][choice.backend]
    for part in list(module.modules()):
        for name, linear in list(part.named_children()):
            if isinstance(linear, nn.Linear):
                setattr(part, name, make(linear, choice.kernels))
    return module
