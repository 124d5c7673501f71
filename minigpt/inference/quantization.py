"""Linear layers for generation on a CPU, in int8 or float32.

    Int8Linear(linear, kernels)       # by our C++ kernels; kernels None: by PyTorch's _int_mm
    FbgemmLinear(linear)              # by FBGEMM, which PyTorch ships for x86
    KernelLinear(linear, kernels)     # float32 by our kernels
    by_column(linear)                 # float32 in a layout that BLAS reads faster

Generating one token reads every weight once; int8 weights are a quarter of the bytes. Which layer
is fastest depends on the processor: backends.py times them. In int8 each row of activations has its
own scale, and so has each row of a matrix: a row's result does not depend on the rest of the batch.
minigpt/evaluation/quantization_cost.py measures its cost in quality.
"""

import contextlib
import functools
import warnings

import torch
import torch.nn as nn
from torch.nn import functional as F

from minigpt.inference.kernels import FEW

GROUP = 32  # numbers with one scale in 4 bits


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
        self.kernels, self.n_out = kernels, linear.out_features
        self.register_buffer("q", kernels.pack_int8(q) if kernels else q)
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


class Int4Linear(nn.Module):
    """nn.Linear with weights in 4 bits, by the kernels: x (…, n_in) float32 → (…, n_out) float32.

    As Int8Linear, but each GROUP numbers of a row of the weights have a scale of their own, in
    bfloat16, and are rounded to -8 … 7. The number with the largest absolute value becomes -8, as
    in llama.cpp's q4_0.
    """

    def __init__(self, linear, kernels):
        super().__init__()
        groups = _groups(linear.weight.detach().float())  # (n_out, n_in/GROUP, GROUP)
        largest = groups.gather(2, groups.abs().argmax(dim=2, keepdim=True))
        scales = (largest / -8).bfloat16().float()
        q = (groups / torch.where(scales == 0, 1, scales)).round_().clamp_(-8, 7).to(torch.int8)
        packed, scales = kernels.pack_int4(q.flatten(1), scales[..., 0])
        self.kernels, self.n_out, self.bias = kernels, linear.out_features, linear.bias
        self.register_buffer("q", packed)
        self.register_buffer("scale", scales)

    def forward(self, x):
        rows = x.reshape(-1, x.size(-1)).contiguous()
        y = self.kernels.linear_int4(rows, self.q, self.scale, self.bias, self.n_out)
        return y.view(*x.shape[:-1], -1)


def _groups(weight):
    """weight (O, K) → (O, ⌈K/GROUP⌉, GROUP), filled up with zeros."""
    return F.pad(weight, (0, -weight.size(1) % GROUP)).view(len(weight), -1, GROUP)


class FbgemmLinear(nn.Module):
    """nn.Linear by FBGEMM's packed int8 product: x (…, n_in) float32 → (…, n_out) float32.

    As Int8Linear, but FBGEMM rounds x itself, with one scale for all rows. So each row is divided
    by its largest absolute value first, and the result multiplied by it. x has 255 levels; where
    the processor saturates (levels()), 127.
    """

    def __init__(self, linear):
        super().__init__()
        self.packed = _pack(linear.weight.detach().float())
        self.bias = linear.bias
        self.levels = levels()

    def forward(self, x):
        rows = x.reshape(-1, x.size(-1))
        largest = rows.abs().amax(dim=1, keepdim=True)  # (N, 1)
        # A row of zeros becomes NaN, then whole numbers, then 0 again: they are multiplied by 0.
        y = _product(rows / largest, self.levels, self.packed)
        y = y.mul_(largest) if self.bias is None else torch.addcmul(self.bias, y, largest)
        return y.view(*x.shape[:-1], -1)


def has_fbgemm():
    """Whether this PyTorch has FBGEMM: builds for x86 do. It is tried: PyTorch announced that it
    will remove quantized tensors (issue 184982), which the packing takes."""
    try:
        return levels() > 0
    except (RuntimeError, AttributeError, NotImplementedError):
        return False


@functools.cache
def levels():
    """The largest value to which FBGEMM may round x: 127, or 63 on processors without VNNI, which
    add pairs of products in 16 bits that saturate."""
    ones, largest = torch.ones(1, 64), torch.full((1, 64), 127.0)
    full = _product(ones, 127, _pack(largest))
    return 127 if abs(float(full) - 64 * 127) < 1 else 63


def _product(x, levels, packed):
    """x (N, K) of -1 to 1 times packed weights → (N, O), x rounded to multiples of 1/levels."""
    product = torch.ops.quantized.linear_with_input_q_dq_qweight_dq_output_fp32
    return product(x, 1 / levels, levels + 1, packed)


def _pack(weight):
    """weight (O, K) in int8, a scale for each row, in FBGEMM's layout."""
    scale = _scale(weight)[:, 0]
    zeros = torch.zeros(len(scale), dtype=torch.int64)
    with warnings.catch_warnings(), _fbgemm():
        warnings.simplefilter("ignore")  # that quantized tensors will be removed
        q = torch.quantize_per_channel(weight, scale, zeros, 0, torch.qint8)
        return torch.ops.quantized.linear_prepack(q)


@contextlib.contextmanager
def _fbgemm():
    """PyTorch's quantized engine is FBGEMM meanwhile."""
    before = torch.backends.quantized.engine
    torch.backends.quantized.engine = "fbgemm"
    try:
        yield
    finally:
        torch.backends.quantized.engine = before


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


def by_column(linear):
    """`linear` itself, with its weights stored column by column if that is the faster layout: BLAS
    multiplies it with a vector 1.5 times as fast."""
    if linear.weight.size(0) >= linear.weight.size(1):
        linear.weight.data = linear.weight.data.T.contiguous().T
    return linear
