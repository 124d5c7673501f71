"""FSDP2: every process keeps a part of each weight, of its gradient and of its optimizer state.

    shards = Shards(model, "cpu", torch.float32, is_main)   # before the optimizers are made
    shards.whole_model()                                    # to save, or to sample with

A weight of m rows becomes a DTensor: of W processes each holds the next ceil(m / W) rows, so the
last ones may hold fewer, or none. A block's matrices are gathered when it computes, forward and
backward, and their gradients are averaged and cut as soon as they are known.
"""

import copy

import torch
import torch.distributed as dist
from torch.nn import Linear

# What of torch.distributed takes a second to import is imported where it is used.


class Shards:
    """The weights of a GPT, cut over all processes; `model` is changed in place.

    device: of this process. dtype: of the forward pass. Every process must construct it with the
    same weights, and then call the model the same number of times.
    """

    def __init__(self, model, device, dtype, is_main):
        from torch.distributed.device_mesh import init_device_mesh
        from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

        self.model, self.is_main = model, is_main
        self._outline = without_weights(model) if is_main else None
        kind = device.split(":")[0]
        mesh = init_device_mesh(kind, (dist.get_world_size(),))
        # autocast alone would keep a copy of all weights in `dtype` from the forward to the
        # backward pass. As with autocast, embeddings, norms and the residual stream are float32.
        half = MixedPrecisionPolicy(dtype, torch.float32, cast_forward_inputs=False)
        policy = MixedPrecisionPolicy() if dtype == torch.float32 else half
        groups = [[m for m in block.modules() if isinstance(m, Linear)] for block in model.blocks]
        for group in groups:
            fully_shard(group, mesh=mesh, mp_policy=policy)
        fully_shard(model, mesh=mesh)
        for module in (model, *(group[0] for group in groups)):
            module.set_force_sum_reduction_for_comms(True)  # gloo has no mean

    def whole_model(self):
        """A GPT with all weights on the CPU, in the main process; None in the others. All processes
        must call it."""
        from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict

        options = StateDictOptions(full_state_dict=True, cpu_offload=True)
        weights = get_model_state_dict(self.model, options=options)
        if not self.is_main:
            return None
        return with_weights(self._outline, weights)


def without_weights(model):
    """A copy of a model on the CPU, whose parameters are on the meta device: without memory."""
    memo = {id(buffer): buffer.cpu() for buffer in model.buffers()}
    memo |= {id(weight): _parameter(weight, weight.to("meta")) for weight in model.parameters()}
    return copy.deepcopy(model, memo)


def with_weights(outline, weights):
    """A copy of a model with these weights, {name: tensor}. Parameters that two modules share stay
    shared."""
    named = outline.named_parameters()
    return copy.deepcopy(outline, {id(p): _parameter(p, weights[name]) for name, p in named})


def _parameter(like, values):
    return torch.nn.Parameter(values.detach(), requires_grad=like.requires_grad)


# -- tensors ---------------------------------------------------------------------------------------


def is_sharded(tensor):
    """Whether a tensor is cut over the processes: a DTensor."""
    return hasattr(tensor, "device_mesh")


def local(tensor):
    """The rows of a tensor that this process holds; a tensor that is not cut is returned itself."""
    return tensor.to_local() if is_sharded(tensor) else tensor


def whole(tensor):
    """All rows of a tensor, on the CPU where it is cut. All processes must call it."""
    return tensor.full_tensor().cpu() if is_sharded(tensor) else tensor


def cut_like(tensor, weight):
    """A whole tensor, cut as a weight of its shape is."""
    if not is_sharded(weight):
        return tensor
    from torch.distributed.tensor import distribute_tensor

    tensor = tensor.to(weight.device)
    return distribute_tensor(tensor, weight.device_mesh, weight.placements, src_data_rank=None)


# -- whole matrices --------------------------------------------------------------------------------


def on_whole_matrices(weights, rows, compute):
    """Replace each of `rows`, this process's rows of some matrices, by the same rows of the result.

    weights: of the same shapes as the whole matrices, cut or not. compute(indices, matrices)
    changes whole matrices in place: those with these indices. Where they are cut, each process
    computes every W-th of them, from the largest on: two exchanges, and each is computed once.
    """
    if not rows:
        return
    if not is_sharded(weights[0]):
        compute(range(len(rows)), rows)
        return
    group = weights[0].device_mesh.get_group()
    world, rank = dist.get_world_size(group), dist.get_rank(group)
    order = sorted(range(len(rows)), key=lambda i: -weights[i].numel())
    owned = [order[r::world] for r in range(world)]  # of each process
    order, mine = [i for theirs in owned for i in theirs], owned[rank]
    heights = [chunk_sizes(len(weight), world) for weight in weights]  # rows of each process
    widths = [weight.size(1) for weight in weights]

    # Sent: by owner, then by matrix. Received: by sender, then by matrix.
    sizes = [rows[i].numel() for i in order]
    sent_to = [sum(rows[i].numel() for i in theirs) for theirs in owned]
    got_from = [sum(heights[i][r] * widths[i] for i in mine) for r in range(world)]
    sent = torch.cat([rows[i].flatten() for i in order])
    got = sent.new_empty(sum(got_from))
    dist.all_to_all_single(got, sent, got_from, sent_to, group=group)
    parts = []
    for sender, values in enumerate(got.split(got_from)):
        each = values.split([heights[i][sender] * widths[i] for i in mine])
        parts += [part.view(-1, widths[i]) for i, part in zip(mine, each, strict=True)]
    matrices = [torch.cat(parts[k :: len(mine)]) for k in range(len(mine))]
    compute(mine, matrices)
    for k, (i, matrix) in enumerate(zip(mine, matrices, strict=True)):
        for part, result in zip(parts[k :: len(mine)], matrix.split(heights[i]), strict=True):
            part.copy_(result)
    dist.all_to_all_single(sent, got, sent_to, got_from, group=group)
    for i, result in zip(order, sent.split(sizes), strict=True):
        rows[i].copy_(result.view_as(rows[i]))


def chunk_sizes(n, world):
    """How many of n rows each of `world` processes holds, as torch.chunk cuts them."""
    most = -(-n // world)
    return [min(most, max(0, n - r * most)) for r in range(world)]
