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
import secrets
import time
from datetime import timedelta

import torch
import torch.distributed as dist
from torch.distributed.rendezvous import rendezvous

from minigpt.common.errors import UserError
from minigpt.models.device import pick_device

BUCKET = 25 * 2**20  # bytes of gradients in one all-reduce, as in PyTorch's DistributedDataParallel
# How long a process waits for the others. They wait while the main one writes a sample and a
# checkpoint, so it has to be longer than that.
TIMEOUT = timedelta(minutes=10)


class Distributed:
    """rank: this process's number, 0 to world_size - 1. Rank 0 is the main one: it alone prints,
    logs and writes checkpoints. is_restarted: whether torchrun started the processes again, because
    one of them had failed (--max_restarts). device: where it computes; None before start()."""

    def __init__(self):
        self.rank = int(os.environ.get("RANK", 0))
        self.world_size = int(os.environ.get("WORLD_SIZE", 1))
        self.is_restarted = int(os.environ.get("TORCHELASTIC_RESTART_COUNT", 0)) > 0
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
            backend = "nccl" if self.device.startswith("cuda") else "gloo"
            self._join(backend)
        return self.device

    def _join(self, backend):
        """Connect to the other processes. UserError if that fails."""
        members = dict(rank=self.rank, world_size=self.world_size)
        try:
            store = fresh_store(**members)
            dist.init_process_group(backend, store=store, timeout=TIMEOUT, **members)
        except RuntimeError as error:
            raise UserError(
                f"the {self.world_size} processes of this run do not find each other "
                f"({_first_line(error)}); see the output of the others; with several machines "
                "also check --nnodes, --node_rank, --master_addr, --master_port and firewalls"
            ) from None

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


def fresh_store(rank, world_size):
    """The store by which the processes find each other, without what others left there before a
    restart. RuntimeError if some of them do not come within TIMEOUT.

    torchrun keeps one store over all restarts. PyTorch would find the addresses of processes there
    that have ended, and connect to them. So the main process draws a prefix for the keys, and hands
    it to the processes of now: each has a random name, which the main one reads until it has got
    the prefix, because it may read the name of one that has ended.
    """
    name, deadline = secrets.token_hex(8), time.monotonic() + TIMEOUT.total_seconds()
    store, _, _ = next(rendezvous("env://", timeout=TIMEOUT))
    if rank > 0:
        store.set(f"name/{rank}", name)
        prefix = store.get(f"prefix/{name}").decode()  # waits for it
        store.set(f"joined/{prefix}/{rank}", "")
        return dist.PrefixStore(prefix, store)
    missing = set(range(1, world_size))
    while missing:
        for other in sorted(missing):
            if store.check([f"name/{other}"]):
                store.set(f"prefix/{store.get(f'name/{other}').decode()}", name)
            if store.check([f"joined/{name}/{other}"]):
                missing.remove(other)
        if missing and time.monotonic() > deadline:
            raise RuntimeError(f"number {min(missing)} has not come")
        time.sleep(0.02)
    return dist.PrefixStore(name, store)


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
    """Within it, the end of another process becomes a UserError that says how to go on, and so does
    one that has not answered for TIMEOUT."""
    try:
        yield
    except RuntimeError as error:
        raise UserError(
            f"another process of this run has ended or hangs ({_first_line(error)}); the last "
            "checkpoint is intact: continue with --init_from=resume, on any number of processes "
            "that divides a step's batches evenly"
        ) from None


def _first_line(error):
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
