"""The key/value cache of generation, which Attention in model.py reads and writes.

    cache = KVCache(model.config, n_slots=4)
    h = model(x, positions=positions, cache=cache.rows(slice(0, 1), length=8))

Here x (1, T) are the tokens at `positions` (1, T), of which the last is 7.
"""

import torch


class KVCache:
    """Preallocated keys and values: (n_layer, n_slots, n_kv, block_size, hs) each.

    A slot holds one text.
    """

    def __init__(self, config, n_slots, device="cpu", dtype=torch.float32):
        shape = (config.n_layer, n_slots, config.n_kv_head, config.block_size, config.head_dim)
        self.k = torch.zeros(shape, device=device, dtype=dtype)
        self.v = torch.zeros(shape, device=device, dtype=dtype)

    def rows(self, slots, length):
        """The CacheRows of a batch whose row i uses slot slots[i], up to position `length`.
        slots: a slice, of which nothing is copied, or a list of different numbers."""
        return CacheRows(self, slots, length)

    def move(self, source, target, length):
        """Copy the first `length` positions of slots `source` to slots `target`: two numbers, or
        two lists of the same length."""
        for part in (self.k, self.v):
            part[:, target, :, :length] = part[:, source, :, :length]


class CacheRows:
    """The slots of a KVCache that the B rows of a batch use. rows[i] is layer i, a LayerCache."""

    def __init__(self, cache, slots, length):
        self.cache, self.length = cache, length
        device = cache.k.device
        if isinstance(slots, slice):
            self.slots = slots
            self.slot_ids = torch.arange(slots.start, slots.stop, device=device)  # (B,)
        else:
            self.slots = self.slot_ids = torch.tensor(slots, device=device)

    def __getitem__(self, layer):
        return LayerCache(self, self.cache.k[layer], self.cache.v[layer])


class LayerCache:
    """One layer of CacheRows: k and v (n_slots, n_kv, block_size, hs)."""

    def __init__(self, rows, k, v):
        self.rows, self.k, self.v = rows, k, v

    def update(self, k, v, positions):
        """Write k and v (B, n_kv, T, hs) at `positions` (B, T); return all up to `length`."""
        slots = self.rows.slot_ids.unsqueeze(1)  # (B, 1)
        self.k[slots, :, positions] = k.transpose(1, 2).to(self.k.dtype)
        self.v[slots, :, positions] = v.transpose(1, 2).to(self.v.dtype)
        filled = self.rows.slots, slice(None), slice(self.rows.length)
        return self.k[filled].to(k.dtype), self.v[filled].to(v.dtype)  # (B, n_kv, L, hs)
