"""Weights for generation on a CPU: int8, or float32 in a layout or by kernels that are faster.

    trained = load("out/sft")                # a Checkpoint whose model is ready to generate
    quantize(model, kernels)                 # every nn.Linear becomes int8
    make_ready(model, kernels)               # float32 on a CPU, faster; the values stay the same

Generating one token reads every weight once; int8 weights are a quarter of the bytes. On processors
with AVX-512 VNNI that is faster than float32; with AVX2 alone the int8 products are slower. Each
row of activations has its own scale, and so has each row of a matrix: a row's result does not
depend on the rest of the batch. minigpt/evaluation/quantization_cost.py measures its cost in
quality.
"""

import torch
import torch.nn as nn
from torch.nn import functional as F

from minigpt.common.errors import UserError
from minigpt.inference.kernels import FEW, build
from minigpt.models import checkpoint
from minigpt.models.device import pick_device, pick_dtype


def load(folder, device="auto", dtype="auto", kernels=False):
    """The run in `folder` as a Checkpoint that is ready to generate, not to be trained.

    dtype as in pick_dtype(). kernels: on a CPU, multiply by C++ kernels (inference/kernels.py).
    UserError if there is no such run or device, or if the kernels cannot be built.
    """
    device, built = pick_kernels(device, kernels)
    trained = checkpoint.load(folder, device, pick_dtype(dtype, device))
    make_ready(trained.model, built)
    return trained


def pick_kernels(device, kernels):
    """(device, the compiled kernels or None). UserError if kernels are wanted on a GPU."""
    device = pick_device(device)
    if kernels and device != "cpu":
        raise UserError(f"kernels=true: they are for a CPU; on {device} leave them out")
    return device, build() if kernels else None


class Int8Linear(nn.Module):
    """nn.Linear with weights in int8: x (…, n_in) float32 → (…, n_out) float32.

    y = (x̂ · ŵᵀ) s_x s_w + b, where x̂ = round(x / s_x) and s_x = max |x| / 127 of each row, and
    the same for each row of the weights: absmax quantisation (Dettmers et al. 2022).
    """

    def __init__(self, linear, kernels=None):
        super().__init__()
        weight = linear.weight.detach().float()
        scale = _scale(weight)  # (n_out, 1)
        q = (weight / scale).round_().to(torch.int8)  # (n_out, n_in)
        self.kernels = kernels if kernels and kernels.has_int8 else None
        self.register_buffer("q", self.kernels.pack(q) if self.kernels else q)
        self.register_buffer("scale", scale[:, 0].contiguous())  # (n_out,)
        self.bias = linear.bias

    def forward(self, x):
        rows = x.reshape(-1, x.size(-1))
        if self.kernels:
            y = self.kernels.linear_int8(rows.contiguous(), self.q, self.scale, self.bias)
        else:
            y = self._by_blas(rows)
        return y.view(*x.shape[:-1], -1)

    def _by_blas(self, rows):
        scale = _scale(rows)  # (N, 1)
        quantized = (rows / scale).round_().to(torch.int8)
        if len(rows) == 1:  # matrix times column: a sixth faster, and integer sums are exact
            sums = torch._int_mm(self.q, quantized.T).T  # (1, n_out) int32
        else:
            sums = torch._int_mm(quantized, self.q.T)  # (N, n_out) int32
        y = (sums * scale).mul_(self.scale)
        if self.bias is not None:
            y += self.bias
        return y


class KernelLinear(nn.Module):
    """nn.Linear in float32; products with a few rows use the kernels."""

    def __init__(self, linear, kernels):
        super().__init__()
        self.weight, self.bias, self.kernels = linear.weight, linear.bias, kernels

    def forward(self, x):
        rows = x.reshape(-1, x.size(-1))
        if len(rows) > FEW:
            return F.linear(x, self.weight, self.bias)
        y = self.kernels.linear(rows.contiguous(), self.weight, self.bias)
        return y.view(*x.shape[:-1], -1)


def _scale(rows):
    """(N, 1): the largest absolute value of each row (N, K) / 127."""
    return rows.abs().amax(dim=1, keepdim=True).div_(127).clamp_(min=1e-30)


def quantize(model, kernels=None):
    """Replace every nn.Linear of `model` by an Int8Linear. The embedding stays as it is."""
    model.kernels = kernels
    _replace(model, lambda linear: Int8Linear(linear, kernels))


def make_ready(model, kernels=None):
    """On a CPU, make the matrix products of `model` faster. The values stay the same."""
    if model.wte.weight.device.type != "cpu":
        return
    if kernels:
        model.kernels = kernels
        _replace(model, lambda linear: KernelLinear(linear, kernels))
        return
    for part in model.modules():
        if isinstance(part, nn.Linear) and part.weight.size(0) >= part.weight.size(1):
            # Stored column by column: BLAS multiplies it with a vector 1.5 times as fast.
            part.weight.data = part.weight.data.T.contiguous().T


def _replace(model, make):
    """Replace every nn.Linear by make(linear)."""
    for module in list(model.modules()):
        for name, part in list(module.named_children()):
            if isinstance(part, nn.Linear):
                setattr(module, name, make(part))
