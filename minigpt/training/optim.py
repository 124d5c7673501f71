"""Optimizers and the learning rate's course."""

import math

import torch

from minigpt.models.device import pick_dtype
from minigpt.models.lora import adapters

# Coefficients of Newton–Schulz's quintic iteration (Jordan et al. 2024, "Muon"): they trade
# exactness for slope at zero, so that five steps lift every singular value to between 0.7 and 1.2.
NS_COEFFICIENTS = (3.4445, -4.7750, 2.0315)
NS_STEPS = 5


def orthogonalize(matrices, eps=1e-7):
    """The nearest matrices with singular values near 1, for `matrices` (N, m, n), m ≤ n."""
    a, b, c = NS_COEFFICIENTS
    # Singular values into [0, 1], where the iteration converges.
    x = matrices / torch.linalg.matrix_norm(matrices, keepdim=True).clamp(min=eps)
    for _ in range(NS_STEPS):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x


class Muon(torch.optim.Optimizer):
    """Momentum whose step is made orthogonal, for hidden matrices (Jordan et al. 2024).

    As torch.optim.Muon with adjust_lr_fn="match_rms_adamw" (the step has the size of AdamW's, so
    they share a learning rate), with two changes: the iteration runs in float32 where the hardware
    has no bfloat16 (torch's takes seconds a step there), and a matrix that is several in one
    (qkv; gate and up) is made orthogonal part by part. Parts of one shape are iterated together: a
    GPU would wait for the launch of so many small products. params: a list of (weight, split)
    pairs, split a tuple of row counts or None.
    """

    def __init__(self, params, lr, momentum=0.95, weight_decay=0.1, dtype=torch.float32):
        groups = [{"params": [weight], "split": split} for weight, split in params]
        super().__init__(groups, dict(lr=lr, momentum=momentum, weight_decay=weight_decay))
        self.dtype = dtype

    @torch.no_grad()
    def step(self):
        alike = {}  # (shape, rate) → [(rows of a weight, their update)], each lying down
        for group in self.param_groups:
            for weight in group["params"]:
                if weight.grad is None:
                    continue
                state = self.state[weight]
                if not state:
                    state["momentum"] = torch.zeros_like(weight)
                average = state["momentum"].lerp_(weight.grad, 1 - group["momentum"])
                update = weight.grad.lerp(average, group["momentum"])  # Nesterov's look ahead
                weight.mul_(1 - group["lr"] * group["weight_decay"])
                split = group["split"] or (len(weight),)
                for rows, part in zip(weight.split(split), update.split(split), strict=True):
                    if len(part) > part.size(1):
                        rows, part = rows.T, part.T
                    alike.setdefault((part.shape, group["lr"]), []).append((rows, part))
        for (shape, lr), pairs in alike.items():
            size = 0.2 * math.sqrt(max(shape))  # AdamW's usual RMS (Liu et al. 2025)
            parts = torch.stack([part for _, part in pairs]).to(self.dtype)
            for (rows, _), direction in zip(pairs, orthogonalize(parts), strict=True):
                rows.add_(direction.to(rows.dtype), alpha=-lr * size)


def make_optimizers(model, settings, device):
    """A list of optimizers over the weights that may move; each group has its `base_lr`.

    Adapters (minigpt/models/lora.py) always get AdamW, by which they learned faster than by Muon.
    """
    split = {m.weight: m.split for m in model.modules() if hasattr(m, "split")}
    embeddings = {m.weight for m in model.modules() if isinstance(m, torch.nn.Embedding)}
    embeddings.add(model.lm_head.weight)
    beside = set(adapters(model).values())
    thin, hidden, tables, vectors = [], [], [], []
    for weight in model.parameters():
        if weight.requires_grad:
            kind = tables if weight in embeddings else hidden if weight.dim() == 2 else vectors
            (thin if weight in beside else kind).append(weight)
    adamw = [
        dict(params=thin),
        dict(params=tables, lr=settings.learning_rate * settings.embedding_lr_ratio),
        dict(params=vectors, weight_decay=0.0),
    ]
    optimizers = []
    if settings.optimizer == "muon" and hidden:
        new = pick_dtype("auto", device) == torch.bfloat16  # older GPUs only emulate it
        dtype = torch.bfloat16 if new else torch.float32
        pairs = [(weight, split.get(weight)) for weight in hidden]
        muon = Muon(
            pairs, settings.learning_rate, settings.muon_momentum, settings.weight_decay, dtype
        )
        optimizers.append(muon)
    else:
        adamw.append(dict(params=hidden))
    adamw = [group for group in adamw if group["params"]]
    if adamw:
        optimizers.append(
            torch.optim.AdamW(
                adamw,
                lr=settings.learning_rate,
                betas=(settings.beta1, settings.beta2),
                weight_decay=settings.weight_decay,
                fused=True,
            )
        )
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["base_lr"] = group["lr"]
    return optimizers


def lr_scale(step, progress, settings):
    """The learning rate as a share of its peak.

    step: steps taken so far, for the warmup; progress: how much of the run is done, 0 to 1.
    """
    low = settings.min_lr_ratio
    warmup = min(1.0, (step + 1) / (settings.warmup_iters + 1))
    if settings.schedule == "cosine":
        scale = low + (1 - low) * 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))
    elif settings.schedule == "wsd":
        left = (1 - min(1.0, progress)) / max(settings.decay_fraction, 1e-9)
        scale = low + (1 - low) * min(1.0, left)
    else:
        scale = 1.0
    return warmup * scale


def set_lr(optimizers, scale):
    """Set every group's learning rate to `scale` of its base."""
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["lr"] = group["base_lr"] * scale
