"""The processes of a run: one, or one of several that torchrun started.

    distributed = Distributed()               # who am I?  .rank, .world_size, .is_main
    device = distributed.start("auto")        # this process's device; joins the others
    totals = distributed.sum(values)          # over all processes
    distributed.sum_gradients(weights)        # once a step, in buckets
    distributed.stop()

With one process every method returns what it was given: the trainer has no second path.
"""

import contextlib
import os

import torch
import torch.distributed as dist

from minigpt.common.errors import UserError
from minigpt.models.device import pick_device

BUCKET = 25 * 2**20  # bytes of gradients in one all-reduce, as in PyTorch's DistributedDataParallel


class Distributed:
    """rank: this process's number, 0 to world_size - 1. Rank 0 is the main one: it alone prints,
    logs and writes checkpoints. device: where it computes; None before start()."""

    def __init__(self):
        self.rank = int(os.environ.get("RANK", 0))
        self.world_size = int(os.environ.get("WORLD_SIZE", 1))
        self.device = None

    @property
    def is_main(self):
        """Whether this process prints, logs and writes checkpoints."""
        return self.rank == 0

    def start(self, device):
        """Pick the device (see pick_device), connect to the other processes; returns the device."""
        self.device = pick_device(device)
        if self.world_size > 1 and self.device == "cuda":
            self.device = f"cuda:{os.environ['LOCAL_RANK']}"
        if self.device.startswith("cuda:"):
            torch.cuda.set_device(self.device)
        if self.world_size > 1:
            dist.init_process_group("nccl" if self.device.startswith("cuda") else "gloo")
        return self.device

    def stop(self):
        """Leave the other processes."""
        if dist.is_initialized():
            dist.destroy_process_group()

    def sum(self, values):
        """The sum of a CPU tensor over all processes, on the CPU."""
        if self.world_size == 1:
            return values
        values = values.to(self.device)
        with lost_process():
            dist.all_reduce(values)
        return values.cpu()

    def gather(self, value):
        """Every process's `value` (anything that can be pickled), in the order of ranks."""
        if self.world_size == 1:
            return [value]
        values = [None] * self.world_size
        with lost_process():
            dist.all_gather_object(values, value)
        return values

    def sum_gradients(self, weights):
        """Replace the gradient of each weight by its sum over all processes.

        It is a sum and no mean, because each loss is already divided by the target count of all
        processes. The reduction runs once a step, whatever the accumulation. Buckets of one dtype
        save the launch of a reduction for every weight.
        """
        if self.world_size == 1:
            return
        pending = []
        with lost_process():
            for bucket in buckets([w.grad for w in weights if w.grad is not None]):
                flat = torch.cat([gradient.flatten() for gradient in bucket])
                pending.append((bucket, flat, dist.all_reduce(flat, async_op=True)))
            for bucket, flat, work in pending:
                work.wait()
                parts = flat.split([gradient.numel() for gradient in bucket])
                for gradient, part in zip(bucket, parts, strict=True):
                    gradient.copy_(part.view_as(gradient))


def buckets(tensors, most=BUCKET):
    """The tensors in lists of one dtype and of at most `most` bytes (a larger tensor is alone)."""
    found, size = [], 0
    for tensor in tensors:
        if not found or size + tensor.nbytes > most or tensor.dtype != found[-1][0].dtype:
            found.append([])
            size = 0
        found[-1].append(tensor)
        size += tensor.nbytes
    return found


@contextlib.contextmanager
def lost_process():
    """Within it, the end of another process becomes a UserError that says how to go on."""
    try:
        yield
    except RuntimeError as error:
        reason = str(error).strip().splitlines()[0][:200]
        raise UserError(
            f"another process of this run has ended ({reason}); the last checkpoint is intact: "
            "continue with --init_from=resume, on any number of processes that divides a step's "
            "batches evenly"
        ) from None
