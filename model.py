"""The network, and nothing else: a GPT whose knobs reach from GPT-2 to Qwen3.

GPT-2's shape (learned positions, LayerNorm, GELU, biases) computes what Hugging Face's
GPT2LMHeadModel computes; the modern shape (RoPE, RMSNorm, QK-norm, grouped-query attention,
SwiGLU) what its Qwen3ForCausalLM computes, tensor for tensor (tests/test_model.py).
"""

import math
from dataclasses import asdict, dataclass
from typing import Literal

import torch
import torch.nn as nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F
from torch.nn.attention.varlen import varlen_attn
from torch.utils.checkpoint import checkpoint

# An MLP's inner values, from this many on, are made anew in the backward pass: that costs no more
# than fetching them from memory does. Fewer are still in the cache, and keeping them is quicker.
LARGE = 2**23
LONGEST_BLOCK = 2**18  # tokens; the tables of rotary positions then have 134 MB at head_dim=64


@dataclass
class GPTConfig:
    """A model's shape; the knobs of config/train_config.py by the same names."""

    n_rows: int  # rows of the embedding: the vocabulary, rounded up to a multiple of 64
    block_size: int = 512
    n_layer: int = 12
    n_head: int = 12
    n_kv_head: int | None = None
    n_embd: int = 768
    head_dim: int | None = None
    n_hidden: int | None = None
    position: Literal["rope", "learned"] = "rope"
    norm: Literal["rmsnorm", "layernorm"] = "rmsnorm"
    mlp: Literal["swiglu", "gelu"] = "swiglu"
    qk_norm: bool = True
    bias: bool = False
    tie_embeddings: bool = True
    rope_theta: float = 10000.0
    norm_eps: float = 1e-6
    dropout: float = 0.0

    def __post_init__(self):
        self.n_kv_head = self.n_kv_head or self.n_head
        self.head_dim = self.head_dim or self.n_embd // max(1, self.n_head)
        if self.n_hidden is None:
            # Three matrices of 8/3 weigh as much as two of 4; a multiple of 64 suits the hardware.
            wide = 4 * self.n_embd if self.mlp == "gelu" else 64 * math.ceil(self.n_embd / 24)
            self.n_hidden = wide

    def problems(self):
        """What makes this shape impossible, a line each; an empty list where nothing does."""
        found = []
        sizes = ("n_rows", "n_layer", "n_head", "n_kv_head", "n_embd", "head_dim", "n_hidden")
        sizes += ("block_size",)
        for name in sizes:
            if getattr(self, name) < 1:
                found.append(f"{name}={getattr(self, name)}: expected at least 1")
        if self.block_size == 1:
            found.append("block_size=1: expected at least 2, a token and the one after it")
        if self.block_size > LONGEST_BLOCK:
            found.append(f"block_size={self.block_size}: expected at most {LONGEST_BLOCK}")
        for name in ("rope_theta", "norm_eps"):
            if getattr(self, name) <= 0:
                found.append(f"{name}={getattr(self, name):g}: expected more than 0")
        if not 0 <= self.dropout < 1:
            found.append(f"dropout={self.dropout:g}: expected 0 to below 1")
        if not found and self.n_head % self.n_kv_head:
            found.append(f"n_kv_head={self.n_kv_head} does not divide n_head={self.n_head}")
        if not found and self.position == "rope" and self.head_dim % 2:
            found.append(f"head_dim={self.head_dim}: rope turns pairs, so it must be even")
        return found

    def as_dict(self):
        return asdict(self)


class UnitSize(torch.autograd.Function):
    """y = x · r · weight with r = 1 / rms(x), of float32 x (…, C). For the backward pass it keeps x
    and r: PyTorch's own, step by step on a CPU, keeps x · r besides, and takes longer."""

    @staticmethod
    def forward(ctx, x, weight, eps):
        length = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
        r = torch.rsqrt(length.square() / x.size(-1) + eps)  # (…, 1)
        ctx.save_for_backward(x, weight, r)
        return (x * r).mul_(weight)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        x, weight, r = ctx.saved_tensors
        product = (grad * x).flatten(0, -2)  # (N, C)
        grad_weight = r.flatten() @ product if ctx.needs_input_grad[1] else None
        if not ctx.needs_input_grad[0]:
            return None, grad_weight, None
        # A change of x along itself is undone by r: that part of the gradient is taken off.
        along = (product @ weight).view_as(r).mul_(r**3 / x.size(-1))
        return (grad * weight).mul_(r).addcmul_(x, along, value=-1), grad_weight, None


class RMSNorm(nn.RMSNorm):
    """nn.RMSNorm; where a CPU trains in float32 and nothing is compiled, by UnitSize."""

    def forward(self, x):
        eager = torch.is_grad_enabled() and not torch.compiler.is_compiling()
        if eager and x.device.type == "cpu" and x.dtype == torch.float32:
            return UnitSize.apply(x, self.weight, self.eps)
        return super().forward(x)


def make_norm(config, width=None):
    """LayerNorm or RMSNorm over `width` channels."""
    width = width or config.n_embd
    if config.norm == "layernorm":
        return nn.LayerNorm(width, config.norm_eps, bias=config.bias)
    return RMSNorm(width, config.norm_eps)


class Rotary(nn.Module):
    """Rotary position embedding (Su et al. 2021), in the half-split form of GPT-NeoX and Qwen."""

    def __init__(self, config):
        super().__init__()
        exponent = torch.arange(0, config.head_dim, 2).float() / config.head_dim
        angle = torch.outer(torch.arange(config.block_size), config.rope_theta**-exponent)
        self.register_buffer("cos", angle.cos(), persistent=False)  # (block_size, hs/2)
        self.register_buffer("sin", angle.sin(), persistent=False)

    def _apply(self, fn, recurse=True):
        # They go where the model goes, but stay float32: in bfloat16 far positions blur.
        cos, sin = self.cos, self.sin
        super()._apply(fn, recurse)
        self.cos, self.sin = cos.to(self.cos.device), sin.to(self.sin.device)
        return self

    def forward(self, positions):
        """positions (B, T) or (1, T) → cos and sin, each (B, T, 1, hs/2)."""
        return self.cos[positions].unsqueeze(2), self.sin[positions].unsqueeze(2)


def rotate(x, rotary):
    """x (B, T, nh, hs) turned by its positions' angles."""
    cos, sin = rotary
    a, b = x.float().chunk(2, dim=-1)
    return torch.cat((a * cos - b * sin, b * cos + a * sin), dim=-1).type_as(x)


class Ends:
    """Causal attention within pieces by PyTorch's kernel for sequences of any length, which reads
    no mask: 0 and where each piece ends in all rows one after the other, (n + 1,) int32."""

    def __init__(self, ends):
        self.ends = ends

    def attend(self, q, k, v):
        """q (B, nh, T, hs), k and v (B, n_kv, T, hs) → (B, T, nh · hs)."""
        B, nh, T, hs = q.shape
        flat = [x.transpose(1, 2).flatten(0, 1).to(v.dtype) for x in (q, k, v)]
        past = dict(window_size=(-1, 0), enable_gqa=k.size(1) != nh)  # no later token is seen
        return varlen_attn(*flat, self.ends, self.ends, T, T, **past).reshape(B, T, nh * hs)


class Attention(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.config = config
        q, kv = config.n_head * config.head_dim, config.n_kv_head * config.head_dim
        self.qkv = nn.Linear(config.n_embd, q + 2 * kv, bias=config.bias)
        self.qkv.split = (q, kv, kv)  # three matrices in one: the optimizer and exports part them
        self.proj = nn.Linear(q, config.n_embd, bias=config.bias)
        self.q_norm = make_norm(config, config.head_dim) if config.qk_norm else nn.Identity()
        self.k_norm = make_norm(config, config.head_dim) if config.qk_norm else nn.Identity()

    def forward(self, x, mask, rotary, cache=None, positions=None):
        B, T, C = x.size()
        config = self.config
        q, k, v = self.qkv(x).split(self.qkv.split, dim=-1)
        q = self.q_norm(q.view(B, T, config.n_head, config.head_dim))
        k = self.k_norm(k.view(B, T, config.n_kv_head, config.head_dim))
        if rotary is not None:
            q, k = rotate(q, rotary), rotate(k, rotary)
        v = v.view(B, T, config.n_kv_head, config.head_dim)
        q, k, v = q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)  # (B, nh or n_kv, T, hs)
        if cache is not None and cache.kernels and T == 1:
            return self.proj(cache.attend(q, k, v, positions))
        if cache is not None:
            k, v = cache.update(k, v, positions)  # (B, n_kv, L, hs), L >= T
        if isinstance(mask, Ends):
            return self.proj(mask.attend(q, k, v))
        y = F.scaled_dot_product_attention(
            q,
            k,
            v,
            attn_mask=mask,
            is_causal=mask is None and T > 1,
            dropout_p=config.dropout if self.training else 0.0,
            enable_gqa=config.n_kv_head != config.n_head,
        )
        y = y.transpose(1, 2).reshape(B, T, config.n_head * config.head_dim)
        return self.proj(y)


class MLP(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.swiglu = config.mlp == "swiglu"
        parts = 2 if self.swiglu else 1
        self.fc = nn.Linear(config.n_embd, parts * config.n_hidden, bias=config.bias)
        self.fc.split = (config.n_hidden,) * parts  # SwiGLU: gate, then up
        self.proj = nn.Linear(config.n_hidden, config.n_embd, bias=config.bias)

    def forward(self, x):
        hidden = self.fc(x)
        learns = torch.is_grad_enabled() and self.proj.weight.requires_grad
        if learns and hidden.numel() >= LARGE and not torch.compiler.is_compiling():
            return checkpoint(self.write, hidden, use_reentrant=False, preserve_rng_state=False)
        return self.write(hidden)

    def write(self, hidden):
        """What fc made (B, T, parts · n_hidden) → (B, T, C)."""
        if self.swiglu:
            gate, up = hidden.chunk(2, dim=-1)
            return self.proj(F.silu(gate) * up)
        return self.proj(F.gelu(hidden, approximate="tanh"))  # GPT-2's own approximation


class Block(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.attn_norm = make_norm(config)
        self.attn = Attention(config)
        self.mlp_norm = make_norm(config)
        self.mlp = MLP(config)
        self.config = config

    def forward(self, x, mask, rotary, cache=None, positions=None):
        drop = self.config.dropout
        y = self.attn(self.attn_norm(x), mask, rotary, cache, positions)
        x = x + F.dropout(y, drop, self.training)
        return x + F.dropout(self.mlp(self.mlp_norm(x)), drop, self.training)


class LayerCache:
    """Keys and values of one layer, (n_slots, n_kv, capacity, hs) each, of which the rows of a
    batch have `slots`: a slice, or a tensor of numbers (B,). kernels: those of
    minigpt/inference/kernels.py, or None."""

    def __init__(self, k, v, slots, length, kernels):
        self.k, self.v, self.slots, self.length, self.kernels = k, v, slots, length, kernels

    def numbers(self):
        """The slots (B,) by number."""
        if isinstance(self.slots, slice):
            return torch.arange(self.slots.start, self.slots.stop, device=self.k.device)
        return self.slots

    def attend(self, q, k, v, positions):
        """Attention of one token a row: q (B, nh, 1, hs), k and v (B, n_kv, 1, hs) →
        (B, 1, nh · hs); k and v are written at `positions` (B, 1)."""
        one = q.squeeze(2), k.squeeze(2), v.squeeze(2)
        y = self.kernels.attend(*one, self.k, self.v, self.numbers(), positions.squeeze(1))
        return y.unsqueeze(1)

    def update(self, k, v, positions):
        """Write k, v (B, n_kv, T, hs) at `positions` (B, T); return all up to `length`."""
        rows = self.numbers().unsqueeze(1)  # (B, 1)
        self.k[rows, :, positions] = k.transpose(1, 2).to(self.k.dtype)
        self.v[rows, :, positions] = v.transpose(1, 2).to(self.v.dtype)
        whole = self.slots, slice(None), slice(self.length)  # (B, n_kv, L, hs)
        return self.k[whole].to(k.dtype), self.v[whole].to(v.dtype)


class KVCache:
    """Preallocated keys and values: (n_layer, n_slots, n_kv_head, block_size, head_dim) each.

    kernels: C++ that reads them one token at a time (minigpt/inference/kernels.py), float32 on a
    CPU."""

    def __init__(self, config, n_slots, device="cpu", dtype=torch.float32, kernels=None):
        self.kernels = kernels
        shape = (config.n_layer, n_slots, config.n_kv_head, config.block_size, config.head_dim)
        self.k = torch.zeros(shape, device=device, dtype=dtype)
        self.v = torch.zeros(shape, device=device, dtype=dtype)

    def rows(self, slots, length):
        """One LayerCache a layer over `slots`, a slice or a list of different numbers, reaching
        `length` positions far. Of a slice nothing is copied."""
        if not isinstance(slots, slice):
            slots = torch.tensor(slots, device=self.k.device)
        layers = zip(self.k, self.v, strict=True)
        return [LayerCache(k, v, slots, length, self.kernels) for k, v in layers]

    def move(self, source, target, length):
        """Copy the first `length` positions of slots `source` over those of slots `target`: two
        numbers, or two lists of as many."""
        for part in (self.k, self.v):
            part[:, target, :, :length] = part[:, source, :, :length]


class GPT(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.config = config
        self.kernels = None  # C++ for generation on a CPU (inference/quantization.py sets it)
        self.varlen = False  # a kernel for pieces, on CUDA (minigpt/models/device.py tells where)
        self.wte = nn.Embedding(config.n_rows, config.n_embd)
        if config.position == "learned":
            self.wpe = nn.Embedding(config.block_size, config.n_embd)
        else:
            self.rotary = Rotary(config)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.n_layer))
        self.norm = make_norm(config)
        self.lm_head = nn.Linear(config.n_embd, config.n_rows, bias=False)
        if config.tie_embeddings:
            self.lm_head.weight = self.wte.weight
        self.apply(self._init_weights)
        for block in self.blocks:
            # The residual stream sums 2 n_layer parts; GPT-2 scales each so that the sum keeps
            # its size.
            for proj in (block.attn.proj, block.mlp.proj):
                nn.init.normal_(proj.weight, std=0.02 / math.sqrt(2 * config.n_layer))

    @staticmethod
    def _init_weights(module):
        if isinstance(module, nn.Linear | nn.Embedding):
            nn.init.normal_(module.weight, std=0.02)
        if isinstance(module, nn.Linear) and module.bias is not None:
            nn.init.zeros_(module.bias)

    def forward(self, x, pieces=None, positions=None, cache=None, ends=None):
        """Tokens x (B, T) → hidden states (B, T, C) after the last norm; logits() reads them out.

        pieces (B, T): a token attends only to tokens of its own piece. positions (B, T): places
        within the piece; None counts from 0. cache: what KVCache.rows gave; then positions say
        where the new tokens stand, and they attend to all that the cache holds before them. ends
        (n + 1,) int32: 0 and where each piece ends in the rows one after the other; where `varlen`
        is set and there is no dropout, they are read in place of `pieces`.
        """
        B, T = x.size()
        if positions is None:
            positions = torch.arange(T, device=x.device).unsqueeze(0)  # (1, T)
        mask = None
        if cache is not None:
            places = torch.arange(cache[0].length, device=x.device)
            hidden = (places > positions.unsqueeze(-1)).unsqueeze(1)  # (B, 1, T, L)
            # Added to the scores: as bools, every layer would make this of them anew.
            mask = torch.zeros(hidden.shape, device=x.device, dtype=self.wte.weight.dtype)
            mask.masked_fill_(hidden, -math.inf)
        elif self.varlen and ends is not None and not (self.training and self.config.dropout):
            mask = Ends(ends)
        elif pieces is not None:
            same = pieces.unsqueeze(2) == pieces.unsqueeze(1)  # (B, T, T)
            mask = same.tril().unsqueeze(1)  # (B, 1, T, T): causal, within the piece
        h = self.wte(x)
        rotary = None
        if self.config.position == "learned":
            h = h + self.wpe(positions)
        else:
            rotary = self.rotary(positions)
        h = F.dropout(h, self.config.dropout, self.training)
        for i, block in enumerate(self.blocks):
            h = block(h, mask, rotary, cache[i] if cache is not None else None, positions)
        return self.norm(h)

    def logits(self, h):
        """Hidden states (…, C) → logits (…, n_rows); of a model in half precision in float32, for
        in bfloat16 a logit near 16 is rounded to eighths, and the likeliest tokens tie."""
        if h.dtype in (torch.bfloat16, torch.float16):
            return F.linear(h.float(), self.lm_head.weight.float())
        return self.lm_head(h)

    def n_params(self, positions=True):
        """Number of weights; tied ones count once; without the position table if asked."""
        count = sum(p.numel() for p in self.parameters())
        if not positions and self.config.position == "learned":
            count -= self.wpe.weight.numel()
        return count

    def flops_per_token(self, supervised=1.0):
        """Operations of a forward and backward pass a token (PaLM, appendix B): 6 for each weight
        of a matrix (4 for a frozen one, at most) plus 12 · n_layer · width · block_size for
        attention (an upper bound: causal attention needs half of it). The output layer runs on the
        `supervised` share of tokens."""

        def operations(weight):
            return (6 if weight.requires_grad else 4) * weight.numel()

        config = self.config
        matrices = sum(operations(p) for p in self.blocks.parameters() if p.dim() == 2)
        matrices += supervised * operations(self.lm_head.weight)
        attention = config.n_layer * config.n_head * config.head_dim * config.block_size
        return matrices + 12 * attention
