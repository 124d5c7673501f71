"""Training steps to time: ours, and transformers' at the same shape.

    step = our_step(GPT(config), settings, "cpu", torch.float32)
    step(tokens)                    # forward, backward, clipping, optimizer

Nothing here is used in training: train.py has the one training loop.
"""

import sys
import weakref

import numpy as np
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter

from data_utils import Batch
from minigpt.common.errors import UserError
from minigpt.data.block_format import IS_START, TARGET
from minigpt.models.device import autocast
from minigpt.training.losses import next_token
from minigpt.training.optim import make_optimizers
from model import has_varlen_attention

GPT2 = dict(position="learned", norm="layernorm", mlp="gelu", qk_norm=False, bias=True)
SHAPES = {
    "cpu_small": dict(n_layer=4, n_head=4, n_embd=256, block_size=256),
    "124M": dict(n_layer=12, n_head=12, n_embd=768, block_size=512),
    "350M": dict(n_layer=24, n_head=16, n_embd=1024, block_size=512),
}


def our_step(model, settings, device, dtype, piece=None, compiled=False):
    """A function that takes one step of a GPT, moved to `device`, on an array of tokens (B, T).

    settings: those of the optimizer. piece: tokens per segment, as in the layout `concat`; None:
    one segment per row. Returns the loss as a tensor, without waiting for the GPU.
    """
    model.to(device)
    model.use_varlen_attention = has_varlen_attention(device, dtype, model.config.head_dim)
    optimizers = make_optimizers(model, settings, device)
    network = torch.compile(model) if compiled else model

    def step(tokens):
        mask = np.full(tokens.shape, TARGET, np.uint8)
        if piece:
            mask[:, ::piece] = IS_START
        batch = Batch.of(tokens, mask, isolated=piece is not None).to(device)
        with autocast(device, dtype):
            loss, count = next_token(network, batch)
        loss = loss / count
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer in optimizers:
            optimizer.step()
        model.zero_grad(set_to_none=True)
        return loss.detach()

    return step


def transformers_gpt2(config, **rest):
    """transformers' GPT2LMHeadModel of a GPTConfig's size, with random weights and no EOT; `rest`
    goes to GPT2Config. UserError if transformers is not installed."""
    try:
        from transformers import GPT2Config, GPT2LMHeadModel
    except ImportError:
        raise UserError("transformers: not installed; first, pip install transformers") from None
    shape = dict(n_layer=config.n_layer, n_head=config.n_head, n_embd=config.n_embd)
    size = dict(vocab_size=config.padded_vocab_size, n_positions=config.block_size)
    size |= dict(bos_token_id=None, eos_token_id=None)
    return GPT2LMHeadModel(GPT2Config(**shape, **size, **rest))


def transformers_step(config, device, dtype, compiled=False):
    """A function that takes one step of transformers' GPT2LMHeadModel of the same shape."""
    rest = dict(resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0, use_cache=False)
    model = transformers_gpt2(config, **rest).train().to(device)
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=1e-3, betas=(0.9, 0.95), weight_decay=0.1, fused=True
    )
    network = torch.compile(model) if compiled else model

    def step(tokens):
        x = torch.from_numpy(tokens.astype(np.int64))
        if device.startswith("cuda"):
            x = x.pin_memory()  # as ours: the copy is asynchronous
        x = x.to(device, non_blocking=True)
        with autocast(device, dtype):
            loss = network(input_ids=x, labels=x).loss  # it shifts the labels itself
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        model.zero_grad(set_to_none=True)
        return loss.detach()

    return step


class PeakMemory(TorchDispatchMode):
    """Within it, counts the bytes of all tensors that operators make, until they are freed. peak:
    the most at a time. Not counted: what an operator needs for itself while it runs."""

    def __init__(self):
        super().__init__()
        self.live = self.peak = 0
        self._known = {}  # storage → a weak reference to it

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        for tensor in tree_iter(result):
            if isinstance(tensor, torch.Tensor):
                self.count(tensor)
        self.peak = max(self.peak, self.live)
        return result

    def count(self, tensor):
        """Count a tensor that was made outside."""
        storage = tensor.untyped_storage()
        key, size = storage._cdata, storage.nbytes()
        if key in self._known:
            return

        def freed(_):
            self.live -= size
            del self._known[key]

        self._known[key] = weakref.ref(storage, freed)
        self.live += size


def peak_memory(device):
    """The peak memory of this process in GB, on the GPU or in RAM; 0 on Windows."""
    if device.startswith("cuda"):
        return torch.cuda.max_memory_allocated(device) / 1e9
    try:
        import resource
    except ImportError:  # Windows
        return 0.0
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most / 1e9 if sys.platform == "darwin" else most * 1024 / 1e9
