"""The network, and nothing else: a GPT whose settings range from GPT-2 to Llama 3 and Qwen3.

With GPT-2's settings (learned positions, LayerNorm, GELU, biases) it computes what Hugging Face's
GPT2LMHeadModel computes; with the defaults (RoPE, RMSNorm, QK-norm, grouped-query attention,
SwiGLU) what its Qwen3ForCausalLM computes, tensor for tensor (tests/test_model.py). Without QK-norm
it is Llama or Mistral, and with biases in q, k and v Qwen2.

Shapes in the comments: B sequences of T tokens, C = n_embd channels, nh query heads and n_kv
key/value heads of hs = head_dim channels each, L cached positions.
"""

import math
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn as nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint as activation_checkpoint

# Activation checkpointing: an MLP with this many hidden values or more recomputes its activations
# in the backward pass. That takes no longer than reading them back from memory; smaller activations
# fit in cache, where storing them is faster.
ACTIVATION_CHECKPOINTING_FROM = 2**23
LONGEST_BLOCK = 2**18  # tokens; the two tables of rotary positions then take 67 MB at head_dim=64


@dataclass
class GPTConfig:
    """A model's shape; config/train_config.py has settings of the same names."""

    padded_vocab_size: int  # rows of the embedding: the vocabulary rounded up to a multiple of 64
    block_size: int = 512
    n_layer: int = 12
    n_head: int = 12
    n_kv_head: int | None = None  # None: n_head
    n_embd: int = 768
    head_dim: int | None = None  # None: n_embd / n_head
    n_hidden: int | None = None  # width of the MLP; None: 4 · n_embd, for SwiGLU 8/3 · n_embd
    position: Literal["rope", "learned"] = "rope"
    norm: Literal["rmsnorm", "layernorm"] = "rmsnorm"
    mlp: Literal["swiglu", "gelu"] = "swiglu"
    qk_norm: bool = True
    bias: bool = False
    qkv_bias: bool | None = None  # None: bias. Qwen2 has biases in q, k and v only
    mlp_bias: bool | None = None  # None: bias
    tie_embeddings: bool = True
    rope_theta: float = 10000.0
    rope_scaling: dict | None = None  # of a longer context; see rotary_frequencies()
    norm_eps: float = 1e-6
    dropout: float = 0.0

    def __post_init__(self):
        self.n_kv_head = self.n_kv_head or self.n_head
        self.head_dim = self.head_dim or self.n_embd // max(1, self.n_head)
        self.qkv_bias = self.bias if self.qkv_bias is None else self.qkv_bias
        self.mlp_bias = self.bias if self.mlp_bias is None else self.mlp_bias
        if self.n_hidden is None:
            # SwiGLU's three matrices of 8/3 · n_embd have as many weights as two of 4 · n_embd.
            # A multiple of 64 suits the hardware.
            swiglu = 64 * math.ceil(self.n_embd / 24)
            self.n_hidden = 4 * self.n_embd if self.mlp == "gelu" else swiglu

    def problems(self):
        """List of config errors: messages; empty if the model can be built."""
        found = []
        sizes = ("padded_vocab_size", "n_layer", "n_head", "n_kv_head", "n_embd", "head_dim")
        sizes += ("n_hidden", "block_size")
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
            found.append(f"head_dim={self.head_dim}: expected an even number, RoPE rotates pairs")
        return found


def reciprocal_rms(x, eps):
    """1 / sqrt(mean(x²) + eps) of the last dimension: (…, C) → (…, 1)."""
    length = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
    return torch.rsqrt(length.square() / x.size(-1) + eps)


class RMSNormFunction(torch.autograd.Function):
    """y = x · r · weight with r = 1 / sqrt(mean(x²) + eps), for float32 x (…, C).

    It stores x and r for the backward pass. On a CPU PyTorch's own RMSNorm also stores x · r, and
    is slower.
    """

    @staticmethod
    def forward(ctx, x, weight, eps):
        r = reciprocal_rms(x, eps)  # (…, 1)
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
        # r cancels a change of x along x itself, so that part of the gradient is subtracted.
        along = (product @ weight).view_as(r).mul_(r**3 / x.size(-1))
        return (grad * weight).mul_(r).addcmul_(x, along, value=-1), grad_weight, None


class RMSNorm(nn.RMSNorm):
    """nn.RMSNorm that is faster in eager float32 on a CPU: PyTorch's takes about 15 operators."""

    def forward(self, x):
        if torch.compiler.is_compiling() or x.device.type != "cpu" or x.dtype != torch.float32:
            return super().forward(x)
        if torch.is_grad_enabled():
            return RMSNormFunction.apply(x, self.weight, self.eps)
        return (x * reciprocal_rms(x, self.eps)).mul_(self.weight)


def make_norm(config, width=None):
    """LayerNorm or RMSNorm over `width` channels (None: n_embd)."""
    width = width or config.n_embd
    if config.norm == "layernorm":
        return nn.LayerNorm(width, config.norm_eps, bias=config.bias)
    return RMSNorm(width, config.norm_eps)


def rotary_frequencies(config):
    """The angle (hs/2,) by which one position turns each pair of channels.

    config.rope_scaling stretches the positions of a longer context to those of the original one:
    all frequencies are divided by `factor` (linear); or the high ones, which turn many times within
    the original context, are kept, and those between two limits are interpolated (Llama 3.1; YaRN,
    Peng et al. 2023, equation 13).
    """
    hs = config.head_dim
    frequency = config.rope_theta ** -(torch.arange(0, hs, 2).float() / hs)  # (hs/2,)
    scaling = config.rope_scaling
    if scaling is None:
        return frequency
    keep = torch.zeros(hs // 2)  # the share of the unscaled frequency; linear: none
    if scaling["rope_type"] == "llama3":
        low, high = scaling["low_freq_factor"], scaling["high_freq_factor"]
        turns = scaling["original_max_position_embeddings"] * frequency / (2 * math.pi)
        keep = ((turns - low) / (high - low)).clamp(0, 1)
    elif scaling["rope_type"] == "yarn":

        def index(turns):  # of the pair that turns this often within the original context
            length = scaling["original_max_position_embeddings"] / (2 * math.pi * turns)
            return hs * math.log(length) / (2 * math.log(config.rope_theta))

        first = max(math.floor(index(scaling["beta_fast"])), 0)
        last = min(math.ceil(index(scaling["beta_slow"])), hs - 1)
        width = last - first or 0.001
        keep = 1 - ((torch.arange(hs // 2) - first) / width).clamp(0, 1)
    return frequency * keep + frequency / scaling["factor"] * (1 - keep)


class Rotary(nn.Module):
    """Rotary position embedding (Su et al. 2021), in the half-split form of GPT-NeoX and Qwen."""

    def __init__(self, config):
        super().__init__()
        angle = torch.outer(torch.arange(config.block_size), rotary_frequencies(config))
        # YaRN scales q and k, which is a temperature of the attention.
        scale = (config.rope_scaling or {}).get("attention_factor", 1.0)
        self.register_buffer("cos", angle.cos() * scale, persistent=False)  # (block_size, hs/2)
        self.register_buffer("sin", angle.sin() * scale, persistent=False)

    def _apply(self, fn, recurse=True):
        # Follow the model to its device, but stay float32: bfloat16 blurs far positions.
        cos, sin = self.cos, self.sin
        super()._apply(fn, recurse)
        self.cos, self.sin = cos.to(self.cos.device), sin.to(self.sin.device)
        return self

    def forward(self, positions):
        """positions (B, T) or (1, T) → cos and sin, each (B, T, 1, hs/2)."""
        return self.cos[positions].unsqueeze(2), self.sin[positions].unsqueeze(2)


def apply_rotary(x, cos, sin):
    """Rotate x (B, T, nh, hs) by the angles of its positions."""
    a, b = x.float().chunk(2, dim=-1)  # each (B, T, nh, hs/2)
    return torch.cat((a * cos - b * sin, b * cos + a * sin), dim=-1).type_as(x)


class FusedLinear(nn.Linear):
    """Several linear layers with the same input as one: `sizes` are their output widths.

    Their weights are the rows of one matrix (sum of sizes, n_in), so one product computes them all.
    Muon, LoRA and the exports read `sizes` to treat them as separate matrices.
    """

    def __init__(self, n_in, sizes, bias=True, device=None):
        super().__init__(n_in, sum(sizes), bias=bias, device=device)
        self.sizes = tuple(sizes)


def segment_mask(segment_ids):
    """(B, T) → (B, 1, T, T) bool: which tokens a token attends to, the earlier of its segment."""
    same = segment_ids.unsqueeze(2) == segment_ids.unsqueeze(1)  # (B, T, T)
    return same.tril().unsqueeze(1)


def cache_mask(positions, length, dtype):
    """positions (B, T) of new tokens → (B, 1, T, L) in `dtype`, added to the attention scores."""
    later = torch.arange(length, device=positions.device) > positions.unsqueeze(-1)  # (B, T, L)
    # Not bool: every layer would convert it to numbers again.
    mask = torch.zeros(later.shape, device=positions.device, dtype=dtype)
    return mask.masked_fill_(later, -math.inf).unsqueeze(1)


def varlen_attention(q, k, v, cu_seqlens):
    """Causal attention within segments without a mask, by PyTorch's variable-length kernel.

    q (B, nh, T, hs), k and v (B, n_kv, T, hs), cu_seqlens (n + 1,) int32 → (B, T, nh · hs).
    """
    from torch.nn.attention import varlen  # here: it takes a second that no CPU run needs

    B, nh, T, hs = q.shape
    flat = [x.transpose(1, 2).flatten(0, 1).to(v.dtype) for x in (q, k, v)]  # (B · T, heads, hs)
    causal = dict(window_size=(-1, 0), enable_gqa=k.size(1) != nh)  # all earlier tokens, no later
    return varlen.varlen_attn(*flat, cu_seqlens, cu_seqlens, T, T, **causal).reshape(B, T, nh * hs)


def has_varlen_attention(device, dtype, head_dim):
    """Whether varlen_attention() runs on this device. It is tried, forward and backward: PyTorch
    has no API to query this."""
    half = dtype in (torch.bfloat16, torch.float16)
    return device.startswith("cuda") and half and varlen_attention_agrees(device, dtype, head_dim)


def varlen_attention_agrees(device, dtype, head_dim):
    """Whether varlen_attention() and masked attention give the same values and gradients."""
    generator = torch.Generator(device).manual_seed(0)  # does not touch the global RNG
    options = dict(device=device, dtype=dtype, generator=generator)
    q, k, v = (torch.randn(1, 2, 64, head_dim, **options, requires_grad=True) for _ in range(3))
    cu_seqlens = torch.tensor([0, 20, 64, 64], dtype=torch.int32, device=device)
    mask = segment_mask(torch.arange(64, device=device).ge(20).unsqueeze(0))
    masked = F.scaled_dot_product_attention(q, k, v, attn_mask=mask).transpose(1, 2).flatten(2)
    grad = torch.randn(masked.shape, **options)
    try:
        y = varlen_attention(q, k, v, cu_seqlens)
        actual = y, *torch.autograd.grad(y, (q, k, v), grad)
    except (RuntimeError, NotImplementedError, ValueError):
        return False  # this PyTorch or this GPU has no such kernel
    expected = masked, *torch.autograd.grad(masked, (q, k, v), grad)
    pairs = zip(actual, expected, strict=True)
    return all(torch.allclose(a.float(), b.float(), rtol=0.02, atol=0.05) for a, b in pairs)


class Attention(nn.Module):
    """Causal self-attention; each key/value head serves n_head / n_kv_head query heads."""

    def __init__(self, config):
        super().__init__()
        self.config = config
        q, kv = config.n_head * config.head_dim, config.n_kv_head * config.head_dim
        self.sizes = q, kv, kv
        self.qkv = FusedLinear(config.n_embd, self.sizes, bias=config.qkv_bias)
        self.proj = nn.Linear(q, config.n_embd, bias=config.bias)
        self.q_norm = make_norm(config, config.head_dim) if config.qk_norm else nn.Identity()
        self.k_norm = make_norm(config, config.head_dim) if config.qk_norm else nn.Identity()

    def forward(self, x, rotary, positions, mask=None, cu_seqlens=None, cache=None):
        B, T, _ = x.size()
        nh, n_kv, hs = self.config.n_head, self.config.n_kv_head, self.config.head_dim
        q, k, v = self.qkv(x).split(self.sizes, dim=-1)
        q = self.q_norm(q.view(B, T, nh, hs))  # (B, T, nh, hs)
        k = self.k_norm(k.view(B, T, n_kv, hs))  # (B, T, n_kv, hs)
        if rotary is not None:
            q, k = apply_rotary(q, *rotary), apply_rotary(k, *rotary)
        v = v.view(B, T, n_kv, hs)  # (B, T, n_kv, hs)
        q, k, v = q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)  # (B, nh or n_kv, T, hs)
        if cache is not None:
            k, v = cache.update(k, v, positions)  # (B, n_kv, L, hs)
        if cu_seqlens is not None:
            return self.proj(varlen_attention(q, k, v, cu_seqlens))  # (B, T, C)
        y = F.scaled_dot_product_attention(
            q,
            k,
            v,
            attn_mask=mask,
            is_causal=mask is None and T > 1,
            dropout_p=self.config.dropout if self.training else 0.0,
            enable_gqa=n_kv != nh,
        )  # (B, nh, T, hs)
        y = y.transpose(1, 2).reshape(B, T, nh * hs)
        return self.proj(y)  # (B, T, C)


class MLP(nn.Module):
    """SwiGLU (Shazeer 2020), or GELU as in GPT-2."""

    def __init__(self, config):
        super().__init__()
        self.swiglu = config.mlp == "swiglu"
        sizes = (config.n_hidden,) * (2 if self.swiglu else 1)  # SwiGLU: gate, up
        self.fc = FusedLinear(config.n_embd, sizes, bias=config.mlp_bias)
        self.proj = nn.Linear(config.n_hidden, config.n_embd, bias=config.mlp_bias)

    def forward(self, x):
        h = self.fc(x)  # (B, T, sum of sizes)
        trained = torch.is_grad_enabled() and self.proj.weight.requires_grad
        large = h.numel() >= ACTIVATION_CHECKPOINTING_FROM
        if trained and large and not torch.compiler.is_compiling():
            options = dict(use_reentrant=False, preserve_rng_state=False)  # no randomness inside
            return activation_checkpoint(self.activate_and_project, h, **options)
        return self.activate_and_project(h)

    def activate_and_project(self, h):
        """(B, T, sum of sizes) → (B, T, C)."""
        if self.swiglu:
            gate, up = h.chunk(2, dim=-1)  # each (B, T, n_hidden)
            return self.proj(F.silu(gate) * up)
        return self.proj(F.gelu(h, approximate="tanh"))  # the approximation that GPT-2 uses


class Block(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.attn_norm = make_norm(config)
        self.attn = Attention(config)
        self.mlp_norm = make_norm(config)
        self.mlp = MLP(config)
        self.config = config

    def forward(self, x, rotary, positions, mask=None, cu_seqlens=None, cache=None):
        dropout = self.config.dropout
        y = self.attn(self.attn_norm(x), rotary, positions, mask, cu_seqlens, cache)
        x = x + F.dropout(y, dropout, self.training)
        return x + F.dropout(self.mlp(self.mlp_norm(x)), dropout, self.training)


class GPT(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.config = config
        self.decoder = None  # C++ that generates on a CPU, set by minigpt/inference/backends.py
        self.use_varlen_attention = False  # set it where has_varlen_attention() is true
        self.activation_checkpointing = False  # recompute each block in the backward pass
        self.wte = nn.Embedding(config.padded_vocab_size, config.n_embd)
        if config.position == "learned":
            self.wpe = nn.Embedding(config.block_size, config.n_embd)
        else:
            self.rotary = Rotary(config)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.n_layer))
        self.norm = make_norm(config)
        self.lm_head = nn.Linear(config.n_embd, config.padded_vocab_size, bias=False)
        if config.tie_embeddings:
            self.lm_head.weight = self.wte.weight
        self.apply(self._init_weights)
        for block in self.blocks:
            # GPT-2's scaled init: the residual stream is a sum of 2 · n_layer projections, and this
            # keeps its variance independent of n_layer.
            for proj in (block.attn.proj, block.mlp.proj):
                nn.init.normal_(proj.weight, std=0.02 / math.sqrt(2 * config.n_layer))

    @staticmethod
    def _init_weights(module):
        if isinstance(module, nn.Linear | nn.Embedding):
            nn.init.normal_(module.weight, std=0.02)
        if isinstance(module, nn.Linear) and module.bias is not None:
            nn.init.zeros_(module.bias)

    def forward(self, x, segment_ids=None, positions=None, cu_seqlens=None, cache=None):
        """Tokens x (B, T) → hidden states (B, T, C) after the last norm; see logits().

        segment_ids (B, T): a token attends only to its own segment; None: a row is one segment.
        positions (B, T): positions within the segment, or in the cache; None: 0 … T - 1.
        cu_seqlens (n + 1,) int32: the same segments, as cumulative lengths over all B · T tokens;
            read in place of segment_ids if self.use_varlen_attention is set.
        cache: CacheRows (minigpt/inference/kv_cache.py); new tokens also attend to cached tokens
            before `positions`.
        """
        B, T = x.size()
        if positions is None:
            positions = torch.arange(T, device=x.device).unsqueeze(0)  # (1, T)
        dropout = self.config.dropout if self.training else 0.0
        if cache is not None or dropout or not self.use_varlen_attention:
            cu_seqlens = None  # the kernel has neither dropout nor the KV cache
        by_decoder = cache is not None and T == 1 and self.decoder is not None
        mask = None  # plain causal attention
        if cache is not None and not by_decoder:
            mask = cache_mask(positions, cache.length, self.wte.weight.dtype)  # (B, 1, T, L)
        elif segment_ids is not None and cu_seqlens is None:
            mask = segment_mask(segment_ids)  # (B, 1, T, T)
        h = self.wte(x)  # (B, T, C)
        rotary = None
        if self.config.position == "learned":
            h = h + self.wpe(positions)
        else:
            rotary = self.rotary(positions)
        h = F.dropout(h, dropout, self.training)
        if by_decoder:
            return self.norm(self.decoder(h, rotary, positions, cache))
        recomputed = self.activation_checkpointing and torch.is_grad_enabled()
        for i, block in enumerate(self.blocks):
            inputs = (h, rotary, positions, mask, cu_seqlens)
            if recomputed and cache is None:
                h = activation_checkpoint(block, *inputs, use_reentrant=False)
            else:
                h = block(*inputs, cache[i] if cache is not None else None)
        return self.norm(h)

    def logits(self, h):
        """Hidden states (…, C) → logits (…, padded_vocab_size).

        A half-precision model's logits are float32: bfloat16 rounds a logit near 16 to a multiple
        of 1/8, so that the most likely tokens could become equal.
        """
        if h.dtype in (torch.bfloat16, torch.float16):
            return F.linear(h.float(), self.lm_head.weight.float())
        return self.lm_head(h)

    def n_params(self, positions=True):
        """Number of weights, tied ones once; positions=False: without learned positions."""
        count = sum(p.numel() for p in self.parameters())
        if not positions and self.config.position == "learned":
            count -= self.wpe.weight.numel()
        return count

    def flops_per_token(self, supervised=1.0):
        """FLOPs of a forward and backward pass per token (PaLM, appendix B).

        6 for each matrix weight (4 for a frozen one, at most), plus 12 · n_layer · width ·
        block_size for attention (an upper bound: causal attention needs half). The output layer
        runs on the `supervised` fraction of the tokens.
        """

        def flops(weight):
            return (6 if weight.requires_grad else 4) * weight.numel()

        config = self.config
        matrices = sum(flops(p) for p in self.blocks.parameters() if p.dim() == 2)
        matrices += supervised * flops(self.lm_head.weight)
        attention = config.n_layer * config.n_head * config.head_dim * config.block_size
        return matrices + 12 * attention
