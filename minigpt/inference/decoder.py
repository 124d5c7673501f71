"""A model's blocks for the C++ kernels, which take one token of each text through all of them.

    model.decoder = Decoder(model.blocks, model.config, kernels)
    h = model.decoder(h, rotary, positions, cache)      # what the blocks compute for T = 1

GPT.forward() in model.py calls it. A step of a 124M model in PyTorch has some 600 small operators;
here one call does all of them.
"""

import torch.nn as nn

from minigpt.inference.quantization import Int4Linear, Int8Linear


class Decoder:
    """Blocks whose linear layers are Int8Linear or KernelLinear, both by the kernels."""

    def __init__(self, blocks, config, kernels):
        self.kernels = kernels
        parts = [self._block(block) for block in blocks]
        self.blocks = kernels.Decoder(parts, config.n_head, config.n_kv_head)

    def __call__(self, h, rotary, positions, cache):
        """h (B, 1, C) at positions (B, 1) → (B, 1, C). cache: a CacheRows."""
        h = h.squeeze(1)
        cos, sin = (part.reshape(len(h), -1) for part in rotary) if rotary else (None, None)
        k, v = cache.cache.k, cache.cache.v
        self.blocks.step(h, cos, sin, k, v, cache.slot_ids, positions.reshape(-1))
        return h.unsqueeze(1)

    def _block(self, block):
        attn, mlp = block.attn, block.mlp
        return self.kernels.Block(
            self._norm(block.attn_norm),
            self._linear(attn.qkv),
            self._norm(attn.q_norm),
            self._norm(attn.k_norm),
            self._linear(attn.proj),
            self._norm(block.mlp_norm),
            self._linear(mlp.fc),
            self._linear(mlp.proj),
            mlp.swiglu,
        )

    def _linear(self, layer):
        if isinstance(layer, Int8Linear | Int4Linear):
            return self.kernels.Linear(layer.q, layer.scale, layer.bias, layer.n_out)
        return self.kernels.Linear(layer.weight, None, layer.bias, len(layer.weight))

    def _norm(self, norm):
        if isinstance(norm, nn.Identity):
            return None
        centered = isinstance(norm, nn.LayerNorm)
        return self.kernels.Norm(norm.weight, norm.bias if centered else None, norm.eps, centered)
