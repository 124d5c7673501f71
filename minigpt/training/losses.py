"""What training minimises: the SUM of losses and the COUNT of what it summed over.

train.py divides by the count over all micro-batches and processes, so that neither gradient
accumulation nor padding nor the number of GPUs changes the gradient.
"""

import torch
from torch.autograd.function import once_differentiable

from minigpt.models.device import autocast

# Logits that stand in memory at once. A GPU wants large products (256 MB of float32); on a CPU what
# is done to them is quicker while they lie in its cache (8 MB), but each chunk costs a pass over
# the weights' gradient, so it has some rows even where the vocabulary is large.
CHUNK, CPU_CHUNK, FEWEST_ROWS = 2**26, 2**21, 256
IGNORED = -1  # a target that counts for nothing


class LinearCrossEntropy(torch.autograd.Function):
    """Sum of the cross-entropies of `h @ weight.T` against `targets`, a chunk of rows at a time.

    h (N, C), weight (V, C), targets (N,) int64 or IGNORED → scalar float32. A chunk's gradient,
    softmax minus one-hot, is taken while its logits are at hand in the forward pass: (N, V) logits
    never stand in memory and no matrix product is done twice.
    """

    @staticmethod
    def forward(ctx, h, weight, targets):
        device = h.device.type
        dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else h.dtype
        if dtype == torch.float16:
            # Probabilities below 6e-8 vanish in float16, and no loss scale helps in here.
            dtype = torch.float32
        with torch.autocast(device, enabled=False):
            return LinearCrossEntropy._forward(ctx, h, weight, targets, dtype)

    @staticmethod
    def _forward(ctx, h, weight, targets, dtype):
        N, V = h.size(0), weight.size(0)
        need_h, need_weight = ctx.needs_input_grad[:2]
        w = weight.to(dtype)
        grad_h = torch.empty_like(h) if need_h else None
        grad_weight = torch.zeros_like(weight) if need_weight else None
        total = torch.zeros((), device=h.device, dtype=torch.float32)
        rows = max(FEWEST_ROWS, (CPU_CHUNK if h.device.type == "cpu" else CHUNK) // V)
        for i in range(0, N, rows):
            part, target = h[i : i + rows].to(dtype), targets[i : i + rows, None]
            learned = (target != IGNORED).float()  # (rows, 1)
            target = target.clamp(min=0)
            logits = (part @ w.T).float()  # (rows, V)
            chosen = logits.gather(1, target)  # (rows, 1)
            most = logits.amax(dim=1, keepdim=True)  # taken off, so that no exp() overflows
            grad = logits.sub_(most).exp_()
            z = grad.sum(dim=1, keepdim=True)
            total += (learned * (z.log() + most - chosen)).sum()
            if not (need_h or need_weight):
                continue
            grad.mul_(learned / z)
            grad.scatter_add_(1, target, -learned)
            grad = grad.to(dtype)
            if need_h:
                grad_h[i : i + rows] = grad @ w
            if need_weight and dtype == grad_weight.dtype:
                grad_weight.addmm_(grad.T, part)
            elif need_weight:
                grad_weight += (grad.T @ part).to(grad_weight.dtype)
        ctx.save_for_backward(grad_h, grad_weight)
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        grad_h, grad_weight = ctx.saved_tensors
        # The forward pass may have been the only use of both: scaling them in place is safe once.
        return (
            None if grad_h is None else grad_h.mul_(grad),
            None if grad_weight is None else grad_weight.mul_(grad.to(grad_weight.dtype)),
            None,
        )


def next_token(model, batch):
    """Cross-entropy of the next token in nats, summed over the batch's supervised positions.

    model: a GPT, compiled or not. Returns (sum, count): a scalar tensor and an int.
    """
    h = model(batch.x, batch.segment_ids, batch.positions, cu_seqlens=batch.cu_seqlens).flatten(
        0, 1
    )
    h = h.index_select(
        0, batch.target_indices
    )  # its gradient is a sum; that of h[at] a GPU would sort for
    learned = batch.loss_mask.flatten()[batch.target_indices]
    targets = batch.y.flatten()[batch.target_indices].where(
        learned, IGNORED
    )  # (N,), as h is (N, C)
    weight = model.lm_head.weight
    if not torch.is_grad_enabled():
        weight = weight.detach()  # the function cannot see no_grad: it would take the gradient
    loss = LinearCrossEntropy.apply(h, weight, targets)
    return loss, batch.count


@torch.no_grad()
def total_loss(objective, model, batches, device, dtype=torch.float32):
    """(sum, count) of an objective over all of `batches`, computed in `dtype`.

    model: in evaluation mode, compiled or not, with the batches on `device`.
    """
    total, n = 0.0, 0
    for batch in batches:
        with autocast(device, dtype):
            loss, count = objective(model, batch)
        total += float(loss)
        n += count
    return total, n
