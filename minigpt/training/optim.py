"""Optimizers (Muon and AdamW) and the learning-rate schedule."""

import math

import torch

from minigpt.models.device import pick_dtype
from minigpt.models.lora import adapters
from minigpt.training.run_length import WARMUP_SHARE
from minigpt.training.sharding import local, on_whole_matrices
from model import FusedLinear

# Odd polynomials a·s + b·s³ + c·s⁵ of the singular values, one for each step, as in Polar Express
# (Amsel et al. 2025): each has the smallest maximum of |1 - p(s)| over the values that the steps
# before it leave of 0.003 … 1. The four bring these to 0.80 … 1.20, which Muon's five equal steps
# (Jordan et al. 2024) do less exactly (0.68 … 1.20).
POLYNOMIALS = (
    (8.3837, -24.7659, 18.3571),
    (4.0434, -3.0114, 0.5695),
    (3.5056, -2.6267, 0.5257),
    (2.4901, -1.8343, 0.4368),
)
WIDE = 1.5  # n / m from which the iteration on m × m matrices is faster
STACK = 2**26  # values of the matrices that are orthogonalized at a time: more take memory


def orthogonalize(matrices, eps=1e-7):
    """Bring all singular values of `matrices` (N, m, n), m ≤ n, near 1."""
    # Scale the singular values into [0, 1], where the polynomials hold.
    x = matrices / torch.linalg.matrix_norm(matrices, keepdim=True).clamp(min=eps)
    # bfloat16 keeps too few digits of the squares of small singular values.
    if x.size(-1) >= WIDE * x.size(-2) and x.dtype == torch.float32:
        return _polar_factor(x @ x.mT) @ x
    for a, b, c in POLYNOMIALS:
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x


def _polar_factor(gram):
    """The (N, m, m) matrices that orthogonalize() multiplies x by, from gram = x @ x.mT: the same
    polynomials, for p(x) = q(gram) @ x, and all q(gram) commute."""
    step = factor = None
    for a, b, c in POLYNOMIALS:
        if step is not None:
            gram = step @ gram @ step  # of the x that the last step gave
        step = torch.baddbmm(gram, gram, gram, beta=b, alpha=c)
        step.diagonal(dim1=-2, dim2=-1).add_(a)
        factor = step if factor is None else step @ factor
    return factor


class Muon(torch.optim.Optimizer):
    """Momentum with orthogonalized steps, for hidden matrices (Jordan et al. 2024).

    Like torch.optim.Muon with adjust_lr_fn="match_rms_adamw" (the step is as large as AdamW's, so
    both share a learning rate), with three differences. The iteration has other POLYNOMIALS. It
    runs in `dtype`: float32 on hardware without bfloat16, where torch's takes seconds a step. And
    each part of a FusedLinear is orthogonalized by itself. Parts of the same shape are stacked, to
    launch few kernels on a GPU.

    params: a list of (weight, sizes), sizes a tuple of row counts or None for a single matrix.
    """

    def __init__(self, params, lr, momentum=0.95, weight_decay=0.1, dtype=torch.float32):
        # The key "split" is part of state.pt's format.
        groups = [{"params": [weight], "split": sizes} for weight, sizes in params]
        super().__init__(groups, dict(lr=lr, momentum=momentum, weight_decay=weight_decay))
        self.dtype = dtype

    @torch.no_grad()
    def step(self):
        weights, updates, sizes, rates = [], [], [], []
        for group in self.param_groups:
            for weight in group["params"]:
                if weight.grad is None:
                    continue
                state = self.state[weight]
                if not state:
                    state["momentum"] = torch.zeros_like(weight)
                # With FSDP a process has some rows of each matrix.
                grad, rows = local(weight.grad), local(weight)
                average = local(state["momentum"]).lerp_(grad, 1 - group["momentum"])
                rows.mul_(1 - group["lr"] * group["weight_decay"])
                weights.append(weight)
                updates.append(grad.lerp(average, group["momentum"]))  # Nesterov momentum
                sizes.append(group["split"] or (len(weight),))
                rates.append(group["lr"])

        def compute(indices, matrices):
            orthogonal_steps(matrices, [sizes[i] for i in indices], self.dtype)

        on_whole_matrices(weights, updates, compute)
        for weight, update, rate in zip(weights, updates, rates, strict=True):
            local(weight).add_(update, alpha=-rate)


def orthogonal_steps(matrices, sizes, dtype):
    """Orthogonalize matrices in place, each of their parts (`sizes`: rows) by itself, and scale
    them so that a step is as large as AdamW's."""
    stacks = {}  # shape → parts, transposed to m ≤ n
    for matrix, split in zip(matrices, sizes, strict=True):
        for part in matrix.split(split):
            part = part.T if len(part) > part.size(1) else part
            stacks.setdefault(part.shape, []).append(part)
    for shape, parts in stacks.items():
        n = max(1, STACK // shape.numel())
        for i in range(0, len(parts), n):
            _orthogonal_step(parts[i : i + n], dtype)


def _orthogonal_step(parts, dtype):
    """orthogonal_steps() of matrices of one shape, in one stack."""
    rms = 0.2 * math.sqrt(max(parts[0].shape))  # makes the step's RMS AdamW's usual one (Liu 2025)
    for part, direction in zip(parts, orthogonalize(torch.stack(parts).to(dtype)), strict=True):
        part.copy_(direction).mul_(rms)


def make_optimizers(model, settings, device):
    """A list of optimizers for the trainable weights; each parameter group has its `base_lr`.

    optimizer=muon trains hidden matrices with Muon, all else with AdamW. Adapters
    (minigpt/models/lora.py) always get AdamW, with which they learned faster.
    """
    groups = parameter_groups(model)
    adamw = [
        dict(params=groups["adapters"]),
        dict(params=groups["embeddings"], lr=settings.learning_rate * settings.embedding_lr_ratio),
        dict(params=groups["vectors"], weight_decay=0.0),
    ]
    optimizers = []
    if settings.optimizer == "muon":
        if groups["matrices"]:
            optimizers.append(_make_muon(model, groups["matrices"], settings, device))
    elif settings.optimizer == "adamw":
        adamw.append(dict(params=groups["matrices"]))
    else:
        raise ValueError(f"optimizer={settings.optimizer!r}: make_optimizers() does not know it")
    adamw_groups = [group for group in adamw if group["params"]]
    if adamw_groups:
        optimizers.append(
            torch.optim.AdamW(
                adamw_groups,
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


def parameter_groups(model):
    """The trainable weights by kind: adapters, embeddings (and the output layer), hidden matrices,
    vectors (norms and biases)."""
    embeddings = {m.weight for m in model.modules() if isinstance(m, torch.nn.Embedding)}
    embeddings.add(model.lm_head.weight)
    adapter_weights = set(adapters(model).values())
    groups = {"adapters": [], "embeddings": [], "matrices": [], "vectors": []}
    for weight in model.parameters():
        if not weight.requires_grad:
            continue
        if weight in adapter_weights:
            kind = "adapters"
        elif weight in embeddings:
            kind = "embeddings"
        else:
            kind = "matrices" if weight.dim() == 2 else "vectors"
        groups[kind].append(weight)
    return groups


def muon_parts(model, weights):
    """Yield the shapes (rows, columns) of the matrices that Muon orthogonalizes for `weights`: each
    part of a FusedLinear is one."""
    sizes = {m.weight: m.sizes for m in model.modules() if isinstance(m, FusedLinear)}
    for weight in weights:
        for rows in sizes.get(weight, (len(weight),)):
            yield rows, weight.size(1)


def _make_muon(model, weights, settings, device):
    sizes = {m.weight: m.sizes for m in model.modules() if isinstance(m, FusedLinear)}
    # GPUs for which pick_dtype() does not choose bfloat16 only emulate it.
    fast = pick_dtype("auto", device) == torch.bfloat16
    return Muon(
        [(weight, sizes.get(weight)) for weight in weights],
        settings.learning_rate,
        settings.muon_momentum,
        settings.weight_decay,
        torch.bfloat16 if fast else torch.float32,
    )


def lr_scale(step, progress, settings):
    """The learning rate as a fraction of its maximum.

    step: optimizer steps taken, for the warmup. progress: the fraction of the run done, 0 … 1.
    Where minutes limit the run, the warmup ends after a tenth of it: their steps are not known.
    """
    low = settings.min_lr_ratio
    warmup = (step + 1) / (settings.warmup_iters + 1)
    if settings.max_minutes is not None:
        warmup = max(warmup, progress / WARMUP_SHARE)
    warmup = min(1.0, warmup)
    if settings.schedule == "cosine":
        scale = low + (1 - low) * 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))
    elif settings.schedule == "linear":
        scale = low + (1 - low) * (1 - min(1.0, progress))
    elif settings.schedule == "wsd":  # warmup, stable, decay
        left = (1 - min(1.0, progress)) / max(settings.decay_fraction, 1e-9)
        scale = low + (1 - low) * min(1.0, left)
    elif settings.schedule == "constant":
        scale = 1.0
    else:
        raise ValueError(f"schedule={settings.schedule!r}: lr_scale() has no branch for it")
    return warmup * scale


def set_lr(optimizers, scale):
    """Set the learning rate of every parameter group to `scale` times its base_lr."""
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["lr"] = group["base_lr"] * scale
