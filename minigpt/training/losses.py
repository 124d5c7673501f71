"""Training objectives: each returns the SUM of its losses and the COUNT of what it summed over.

train.py divides by the count over all micro-batches and processes, so that gradient accumulation,
padding and the number of GPUs do not change the gradient.
"""

import torch
from torch.autograd.function import once_differentiable

from minigpt.models.device import autocast

# The number of logits in memory at once. A GPU needs large products (256 MB of float32). On a CPU
# they should fit into its cache (8 MB), but every chunk costs a pass over the weight's gradient, so
# with a large vocabulary a chunk still has FEWEST_ROWS rows.
CHUNK, CPU_CHUNK, FEWEST_ROWS = 2**26, 2**21, 256
IGNORED = -1  # a target that does not count


def rows_of_chunk(n_vocab, on_gpu):
    """The number of rows of logits that are in memory at once."""
    return max(FEWEST_ROWS, (CHUNK if on_gpu else CPU_CHUNK) // n_vocab)


class LinearCrossEntropy(torch.autograd.Function):
    """The sum of the cross-entropies of logits h @ weight.T and `targets`, in chunks of rows.

    h (N, C), weight (V, C), targets (N,) int64 or IGNORED → scalar float32. The forward pass also
    computes the gradient of each chunk, softmax minus one-hot, from its logits: all (N, V) logits
    are never in memory, and no matrix product is computed twice.
    """

    @staticmethod
    def forward(ctx, h, weight, targets):
        device = h.device.type
        dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else h.dtype
        if dtype == torch.float16:
            # Probabilities below 6e-8 are 0 in float16, and loss scaling does not reach them.
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
        rows = rows_of_chunk(V, h.device.type != "cpu")
        logits = grad = None
        for i in range(0, N, rows):
            del logits, grad  # before those of the next chunk are computed
            part, target = h[i : i + rows].to(dtype), targets[i : i + rows, None]
            counts = (target != IGNORED).float()  # (rows, 1)
            target = target.clamp(min=0)
            logits = (part @ w.T).float()  # (rows, V)
            of_target = logits.gather(1, target)  # (rows, 1)
            highest = logits.amax(dim=1, keepdim=True)  # subtracted, so that exp() cannot overflow
            grad = logits.sub_(highest).exp_()  # (rows, V)
            z = grad.sum(dim=1, keepdim=True)  # (rows, 1)
            total += (counts * (z.log() + highest - of_target)).sum()
            if not (need_h or need_weight):
                continue
            grad.mul_(counts / z)
            grad.scatter_add_(1, target, -counts)
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
        # Nothing else uses the two, and backward runs once, so they can be scaled in place.
        return (
            None if grad_h is None else grad_h.mul_(grad),
            None if grad_weight is None else grad_weight.mul_(grad.to(grad_weight.dtype)),
            None,
        )


def next_token(model, batch):
    """Cross-entropy of the next token in nats, summed over the targets of the batch.

    model: a GPT, compiled or not. Returns (sum, count): a scalar tensor and an int.
    """
    indices = batch.target_indices  # (N,)
    h = model(batch.x, batch.segment_ids, batch.positions, batch.cu_seqlens)  # (B, T, C)
    # Not h[indices]: for its gradient a GPU sorts the indices, for that of index_select it adds.
    h = h.flatten(0, 1).index_select(0, indices)  # (N, C)
    targets = batch.y.flatten()[indices]  # (N,)
    targets = targets.where(batch.loss_mask.flatten()[indices], IGNORED)  # padding is ignored
    weight = model.lm_head.weight
    if not torch.is_grad_enabled():
        weight = weight.detach()  # else the function, to which no_grad is invisible, computes it
    loss = LinearCrossEntropy.apply(h, weight, targets)
    return loss, batch.count


@torch.no_grad()
def total_loss(objective, model, batches, device, dtype=torch.float32):
    """(sum, count) of an objective over all `batches`, computed in `dtype`.

    model: in evaluation mode, compiled or not, on `device` like the batches.
    """
    total, n = 0.0, 0
    for batch in batches:
        with autocast(device, dtype):
            loss, count = objective(model, batch)
        total += float(loss)
        n += count
    return total, n
