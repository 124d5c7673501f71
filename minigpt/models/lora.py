"""LoRA (Hu et al. 2021): beside each frozen matrix W a thin product s · B A, which alone learns.

    attach(model, LoRA(rank=8, alpha=16.0))    # what moves now is A and B; at the start B = 0
    merge(model)                               # W + s · B A: a plain GPT again

    python train.py config/train_config_sft.py --init_from=out/pretrain --lora_rank=8

minigpt/models/checkpoint.py saves the adapters apart from their base and merges them on loading;
minigpt/interop/peft.py exchanges them with peft. Our qkv and SwiGLU's fc are several matrices in
one; each of those has adapters of its own, as Hugging Face's q_proj, k_proj, … have.
"""

import math
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn as nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from minigpt.common.errors import UserError

# A block's matrices by their usual names: the module, and which of its parts (-1: the last).
PARTS = {
    "q": ("attn.qkv", 0),
    "k": ("attn.qkv", 1),
    "v": ("attn.qkv", 2),
    "o": ("attn.proj", 0),
    "gate": ("mlp.fc", 0),  # of SwiGLU alone
    "up": ("mlp.fc", -1),
    "down": ("mlp.proj", 0),
}
GROUPS = {"attention": ("q", "k", "v", "o"), "mlp": ("gate", "up", "down"), "all": tuple(PARTS)}


@dataclass
class LoRA:
    """What a set of adapters is: config.json's "lora", with the base they belong to."""

    rank: int
    alpha: float = 16.0  # B A counts alpha / rank times
    dropout: float = 0.0  # on the adapters' input, in training
    targets: tuple = ("all",)  # names of PARTS and GROUPS
    first_block: int = 0  # the blocks below have none
    base: Path | None = None  # the run whose weights are frozen
    base_hash: str = ""  # checkpoint.weights_hash() of it

    @property
    def scale(self):
        return self.alpha / self.rank


def target_parts(targets, config):
    """The names of PARTS that `targets` choose in a model of this shape, in the order of PARTS.

    UserError, naming what there is, for an unknown name and for parts that the shape lacks.
    """
    there = [name for name in PARTS if name != "gate" or config.mlp == "swiglu"]
    known = [*there, *GROUPS]
    unknown = [name for name in targets if name not in known]
    if unknown or not targets:
        raise UserError(
            f"lora_targets={','.join(targets)}: {unknown[0] if unknown else 'nothing'} is no part "
            f"of this model; it has {', '.join(known)}"
        )
    chosen = {part for name in targets for part in GROUPS.get(name, (name,))}
    return [name for name in there if name in chosen]


class LoRALinear(nn.Linear):
    """nn.Linear whose frozen weight has adapters beside the parts `names`, some of PARTS.

    A (P · rank, n_in) and B (rows of the P adapted parts, rank): part by part, one below the other.
    `spans` are the first row and the number of rows of each adapted part in the weight.
    """

    def __init__(self, linear, names, lora):
        nn.Module.__init__(self)  # the weight is there already
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self.weight, self.bias = linear.weight, linear.bias
        self.names, self.lora = names, lora
        sizes = getattr(linear, "split", (linear.out_features,))
        if hasattr(linear, "split"):
            self.split = linear.split
        numbers = [PARTS[name][1] % len(sizes) for name in names]
        self.spans = [(sum(sizes[:number]), sizes[number]) for number in numbers]
        rows = sum(size for _, size in self.spans)
        self.A = nn.Parameter(linear.weight.new_empty(len(names) * lora.rank, self.in_features))
        self.B = nn.Parameter(linear.weight.new_zeros(rows, lora.rank))
        nn.init.kaiming_uniform_(self.A, a=math.sqrt(5))  # ±1 / sqrt(n_in)

    def parts(self):
        """name → A_p (rank, n_in), B_p (rows, rank) of each adapted part."""
        sizes = [size for _, size in self.spans]
        halves = zip(self.A.split(self.lora.rank), self.B.split(sizes), strict=True)
        return dict(zip(self.names, halves, strict=True))

    def wide(self):
        """(n_out, P · rank): B with each part in its own rows and columns, zeros elsewhere, so that
        B A of all parts is one product."""
        return _block_diagonal(self.B, self.spans, self.out_features)

    def forward(self, x):
        low = torch.is_autocast_enabled(x.device.type)
        dropout = self.training and self.lora.dropout
        if torch.is_grad_enabled() and not low and not dropout:
            where = self.spans, self.lora.scale
            return _MergedLinear.apply(x, self.weight, self.bias, self.A, self.B, *where)
        # In bfloat16 a sum W + s B A would round the adapters away; and where few tokens come (a
        # text being written), making it costs more than using it.
        y = F.linear(x, self.weight, self.bias)
        z = F.linear(F.dropout(x, self.lora.dropout, self.training), self.A)  # (…, P · rank)
        return y + F.linear(z, self.wide() * self.lora.scale)

    @torch.no_grad()
    def merged_weight(self):
        """W + s · B A (n_out, n_in)."""
        return torch.addmm(self.weight, self.wide(), self.A, alpha=self.lora.scale)


class _MergedLinear(torch.autograd.Function):
    """x (…, n_in) through W + s · B A, made anew each time: a product of many tokens with thin
    matrices takes a CPU far longer than their size says, and this spares it most of them. The
    gradient is that of A and B alone; that of W is never computed."""

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
            # One product for both: columns more cost next to nothing, a thin product does.
            both = g @ torch.cat((torch.addmm(weight, wide, A), wide), dim=1)
            grad_x, grad_z = both.split((n_in, len(A)), dim=1)
            grad_x = grad_x.reshape(x.shape)
        else:
            grad_z = g @ wide  # (N, P · rank)
        across = (rows @ A.T).T @ g  # (P · rank, n_out): of all parts with all; its blocks count
        grad_B = [
            across[i * rank : (i + 1) * rank, start : start + size].T
            for i, (start, size) in enumerate(ctx.spans)
        ]
        grad_B = torch.cat(grad_B).mul_(ctx.scale)
        return grad_x, None, None, grad_z.T @ rows, grad_B, None, None


def _block_diagonal(B, spans, n_out):
    """LoRALinear.wide()."""
    parts = B.split([size for _, size in spans])
    wide = B.new_zeros(n_out, len(spans) * B.size(1))
    for i, ((start, size), part) in enumerate(zip(spans, parts, strict=True)):
        wide[start : start + size, i * B.size(1) : (i + 1) * B.size(1)] = part
    return wide


def attach(model, lora):
    """Freeze `model` and give its blocks adapters, as `lora` says; model.lora is `lora` then.

    A is drawn from PyTorch's randomness, B is 0: the model computes what it computed. UserError for
    targets that the model lacks, a rank below 1, and where no block is left for adapters.
    """
    chosen = target_parts(lora.targets, model.config)
    if lora.rank < 1:
        raise UserError(f"lora_rank={lora.rank}: expected at least 1")
    if lora.first_block >= len(model.blocks):
        raise UserError(
            f"freeze_layers={lora.first_block}: the model has {len(model.blocks)} blocks, so none "
            "is left for adapters"
        )
    model.requires_grad_(False)
    for block in model.blocks[lora.first_block :]:
        for path in dict.fromkeys(PARTS[name][0] for name in chosen):
            linear = block.get_submodule(path)
            names = [name for name in chosen if PARTS[name][0] == path]
            block.set_submodule(path, LoRALinear(linear, names, lora))
    model.lora = lora


def adapters(model):
    """The adapters' tensors by their names in the model; empty for a plain GPT."""
    if getattr(model, "lora", None) is None:
        return {}
    linears = {n: m for n, m in model.named_modules() if isinstance(m, LoRALinear)}
    return {f"{n}.{half}": getattr(m, half) for n, m in linears.items() for half in ("A", "B")}


def merge(model):
    """Make `model` a plain GPT whose weights are W + s · B A; what was frozen may move again."""
    for block in model.blocks:
        linears = [(n, m) for n, m in block.named_modules() if isinstance(m, LoRALinear)]
        for path, linear in linears:
            plain = nn.Linear(linear.in_features, linear.out_features, bias=False, device="meta")
            plain.weight, plain.bias = nn.Parameter(linear.merged_weight()), linear.bias
            if hasattr(linear, "split"):
                plain.split = linear.split
            block.set_submodule(path, plain)
    model.lora = None
    model.requires_grad_(True)
