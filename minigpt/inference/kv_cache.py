"""The key/value cache of generation, which Attention in model.py reads and writes.

    cache = KVCache(model.config, n_slots=4)
    h = model(x, positions=positions, cache=cache.rows(slice(0, 1), length=8))

Here x (1, T) are the tokens at `positions` (1, T), of which the last is 7.
"""

import torch


class KVCache:
    """Preallocated keys and values: (n_layer, n_slots, n_kv, block_size, hs) each.

    A slot holds one text. kernels: C++ that attends from one token to a slot
    (minigpt/inference/kernels.py), for float32 on a CPU.
    """

    def __init__(self, config, n_slots, device="cpu", dtype=torch.float32, kernels=None):
        self.kernels = kernels
        shape = (config.n_layer, n_slots, config.n_kv_head, config.block_size, config.head_dim)
        self.k = torch.zeros(shape, device=device, dtype=dtype)
        self.v = torch.zeros(shape, device=device, dtype=dtype)

    def rows(self, slots, length):
        """One LayerCache a layer for a batch whose row i uses slot slots[i], up to position
        `length`. slots: a slice, of which nothing is copied, or a list of different numbers."""
        if not isinstance(slots, slice):
            slots = torch.tensor(slots, device=self.k.device)
        layers = zip(self.k, self.v, strict=True)
        return [LayerCache(k, v, slots, length, self.kernels) for k, v in layers]

    def move(self, source, target, length):
        """Copy the first `length` positions of slots `source` to slots `target`: two numbers, or
        two lists of the same length."""
        for part in (self.k, self.v):
            part[:, target, :, :length] = part[:, source, :, :length]


class LayerCache:
    """One layer of a KVCache, k and v (n_slots, n_kv, block_size, hs), for the rows of a batch."""

    def __init__(self, k, v, slots, length, kernels):
        self.k, self.v, self.slots, self.length, self.kernels = k, v, slots, length, kernels

    def slot_ids(self):
        """The slots as a tensor (B,)."""
        if isinstance(self.slots, slice):
            return torch.arange(self.slots.start, self.slots.stop, device=self.k.device)
        return self.slots

    def update(self, k, v, positions):
        """Write k and v (B, n_kv, T, hs) at `positions` (B, T); return all up to `length`."""
        rows = self.slot_ids().unsqueeze(1)  # (B, 1)
        self.k[rows, :, positions] = k.transpose(1, 2).to(self.k.dtype)
        self.v[rows, :, positions] = v.transpose(1, 2).to(self.v.dtype)
        filled = self.slots, slice(None), slice(self.length)
        return self.k[filled].to(k.dtype), self.v[filled].to(v.dtype)  # (B, n_kv, L, hs)

    def attend(self, q, k, v, positions):
        """Attention from one token a row, by the kernels, which also write k and v.

        q (B, nh, 1, hs), k and v (B, n_kv, 1, hs), positions (B, 1) → (B, 1, nh · hs).
        """
        token = q.squeeze(2), k.squeeze(2), v.squeeze(2)
        y = self.kernels.attend(*token, self.k, self.v, self.slot_ids(), positions.squeeze(1))
        return y.unsqueeze(1)
