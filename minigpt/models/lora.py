"""LoRA (Hu et al. 2021): each frozen matrix W gets a trainable low-rank update s · B A.

    attach(model, LoRA(rank=8, alpha=16.0))    # trains A and B only; B is 0 at the start
    merge(model)                               # W + s · B A: a plain GPT again

    python train.py config/train_config_sft.py --init_from=out/pretrain --lora_rank=8

minigpt/models/checkpoint.py saves adapters without their base and merges them on loading;
minigpt/interop/peft.py exchanges them with peft. Each part of a FusedLinear (qkv; SwiGLU's gate and
up) has adapters of its own, as Hugging Face's q_proj, k_proj, … have.
"""

import math
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn as nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from minigpt.common.errors import UserError
from model import FusedLinear

# A block's matrices by their usual names: the module, and the index of the part (-1: the last).
PARTS = {
    "q": ("attn.qkv", 0),
    "k": ("attn.qkv", 1),
    "v": ("attn.qkv", 2),
    "o": ("attn.proj", 0),
    "gate": ("mlp.fc", 0),  # SwiGLU only
    "up": ("mlp.fc", -1),
    "down": ("mlp.proj", 0),
}
GROUPS = {"attention": ("q", "k", "v", "o"), "mlp": ("gate", "up", "down"), "all": tuple(PARTS)}


@dataclass
class LoRA:
    """Settings of a set of adapters: config.json's "lora", and the base that they belong to."""

    rank: int
    alpha: float = 16.0  # B A is scaled by alpha / rank
    dropout: float = 0.0  # on the adapters' input, in training
    targets: tuple = ("all",)  # names of PARTS and GROUPS
    first_block: int = 0  # blocks before this one have no adapters
    base: Path | None = None  # the run with the frozen weights
    base_hash: str = ""  # its checkpoint.weights_hash()

    @property
    def scale(self):
        return self.alpha / self.rank


def target_parts(targets, config):
    """The names of PARTS that `targets` select in a model of this shape, in the order of PARTS.

    UserError lists the valid names if one is unknown or the shape has no such part.
    """
    present = [name for name in PARTS if name != "gate" or config.mlp == "swiglu"]
    known = [*present, *GROUPS]
    unknown = [name for name in targets if name not in known]
    if unknown or not targets:
        raise UserError(
            f"lora_targets={','.join(targets)}: {unknown[0] if unknown else 'nothing'} is not a "
            f"part of this model; it has {', '.join(known)}"
        )
    chosen = {part for name in targets for part in GROUPS.get(name, (name,))}
    return [name for name in present if name in chosen]


def part_sizes(linear):
    """The output widths of a linear layer's parts: one, or the sizes of a FusedLinear."""
    return linear.sizes if isinstance(linear, FusedLinear) else (linear.out_features,)


class LoRALinear(FusedLinear):
    """A linear layer with a frozen weight and adapters for the P parts `names` (keys of PARTS).

    A (P · rank, n_in) and B (rows of the adapted parts, rank) hold the parts one below the other.
    `spans` has the first row and the number of rows of each adapted part in the weight.
    """

    def __init__(self, linear, names, lora):
        nn.Module.__init__(self)  # it takes over the weight of `linear`
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self.weight, self.bias = linear.weight, linear.bias
        self.names, self.lora = names, lora
        self.sizes = sizes = part_sizes(linear)
        indices = [PARTS[name][1] % len(sizes) for name in names]
        self.spans = [(sum(sizes[:i]), sizes[i]) for i in indices]
        rows = sum(size for _, size in self.spans)
        self.A = nn.Parameter(linear.weight.new_empty(len(names) * lora.rank, self.in_features))
        self.B = nn.Parameter(linear.weight.new_zeros(rows, lora.rank))
        nn.init.kaiming_uniform_(self.A, a=math.sqrt(5))  # ±1 / sqrt(n_in)

    def parts(self):
        """{name: (A_p (rank, n_in), B_p (rows, rank))} of the adapted parts."""
        sizes = [size for _, size in self.spans]
        pairs = zip(self.A.split(self.lora.rank), self.B.split(sizes), strict=True)
        return dict(zip(self.names, pairs, strict=True))

    def block_diagonal_B(self):
        """(n_out, P · rank): B with each part in its own rows and columns and zeros elsewhere, so
        that one product gives B A of all parts."""
        return _block_diagonal(self.B, self.spans, self.out_features)

    def forward(self, x):
        autocast = torch.is_autocast_enabled(x.device.type)
        dropout = self.training and self.lora.dropout
        if torch.is_grad_enabled() and not autocast and not dropout:
            options = self.spans, self.lora.scale
            return _MergedLinear.apply(x, self.weight, self.bias, self.A, self.B, *options)
        # Not W + s · B A: bfloat16 would round the update away, and for a few tokens (generation)
        # the sum takes longer than its use.
        y = F.linear(x, self.weight, self.bias)
        z = F.linear(F.dropout(x, self.lora.dropout, self.training), self.A)  # (…, P · rank)
        return y + F.linear(z, self.block_diagonal_B() * self.lora.scale)

    @torch.no_grad()
    def merged_weight(self):
        """W + s · B A (n_out, n_in)."""
        return torch.addmm(self.weight, self.block_diagonal_B(), self.A, alpha=self.lora.scale)


class _MergedLinear(torch.autograd.Function):
    """x (…, n_in) times W + s · B A, a sum that is recomputed in each pass.

    On a CPU the product of many tokens with a narrow matrix is far slower than its FLOPs suggest;
    this avoids most such products. The gradient of W is never computed.
    """

    @staticmethod
    def forward(ctx, x, weight, bias, A, B, spans, scale):
        ctx.save_for_backward(x, weight, A, B)
        ctx.spans, ctx.scale = spans, scale
        wide = _block_diagonal(B, spans, len(weight))
        return F.linear(x, torch.addmm(weight, wide, A, alpha=scale), bias)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        x, weight, A, B = ctx.saved_tensors
        rank, n_in = B.size(1), weight.size(1)
        g, rows = grad.reshape(-1, len(weight)), x.reshape(-1, n_in)  # (N, n_out), (N, n_in)
        wide = _block_diagonal(B, ctx.spans, len(weight)).mul_(ctx.scale)  # (n_out, P · rank)
        grad_x = None
        if ctx.needs_input_grad[0]:
            # One product for both: a few more columns are cheap, a narrow product is not.
            both = g @ torch.cat((torch.addmm(weight, wide, A), wide), dim=1)
            grad_x, grad_z = both.split((n_in, len(A)), dim=1)
            grad_x = grad_x.reshape(x.shape)
        else:
            grad_z = g @ wide  # (N, P · rank)
        every = (rows @ A.T).T @ g  # (P · rank, n_out): every A_p with every part of the output
        grad_B = [
            every[i * rank : (i + 1) * rank, start : start + size].T
            for i, (start, size) in enumerate(ctx.spans)
        ]
        grad_B = torch.cat(grad_B).mul_(ctx.scale)
        return grad_x, None, None, grad_z.T @ rows, grad_B, None, None


def _block_diagonal(B, spans, n_out):
    """See LoRALinear.block_diagonal_B()."""
    parts = B.split([size for _, size in spans])
    wide = B.new_zeros(n_out, len(spans) * B.size(1))
    for i, ((start, size), part) in enumerate(zip(spans, parts, strict=True)):
        wide[start : start + size, i * B.size(1) : (i + 1) * B.size(1)] = part
    return wide


def attach(model, lora):
    """Freeze `model`, add adapters to its blocks, and set model.lora.

    A is random (PyTorch's generator) and B is 0, so the outputs do not change. UserError for
    targets that the model does not have, a rank below 1, and a first_block beyond the last block.
    """
    chosen = target_parts(lora.targets, model.config)
    if lora.rank < 1:
        raise UserError(f"lora_rank={lora.rank}: expected at least 1")
    if lora.first_block >= len(model.blocks):
        raise UserError(
            f"freeze_layers={lora.first_block}: the model has {len(model.blocks)} blocks, so no "
            "block is left for adapters"
        )
    model.requires_grad_(False)
    for block in model.blocks[lora.first_block :]:
        for path in dict.fromkeys(PARTS[name][0] for name in chosen):
            linear = block.get_submodule(path)
            names = [name for name in chosen if PARTS[name][0] == path]
            block.set_submodule(path, LoRALinear(linear, names, lora))
    model.lora = lora


def adapters(model):
    """{parameter name in the model: tensor} of the adapters; empty for a plain GPT."""
    if getattr(model, "lora", None) is None:
        return {}
    linears = {n: m for n, m in model.named_modules() if isinstance(m, LoRALinear)}
    return {f"{n}.{name}": getattr(m, name) for n, m in linears.items() for name in ("A", "B")}


def merge(model):
    """Make `model` a plain GPT with the weights W + s · B A, all of them trainable."""
    for block in model.blocks:
        linears = [(n, m) for n, m in block.named_modules() if isinstance(m, LoRALinear)]
        for path, linear in linears:
            plain = FusedLinear(linear.in_features, linear.sizes, bias=False, device="meta")
            plain.weight, plain.bias = nn.Parameter(linear.merged_weight()), linear.bias
            block.set_submodule(path, plain)
    model.lora = None
    model.requires_grad_(True)
