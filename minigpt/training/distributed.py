"""The processes of a run: one, or one of several that torchrun started.

    distributed = Distributed()               # who am I?  .rank, .world_size, .is_main
    device = distributed.start("auto")        # this process's device; joins the others
    distributed.shard(model, dtype)           # with --parallel=fsdp, before the optimizers
    module = distributed.wrap(module)         # its backward pass averages the gradients
    totals = distributed.sum(values)          # over all processes
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
from torch.nn.parallel import DistributedDataParallel

from minigpt.common.errors import UserError
from minigpt.models.device import pick_device
from minigpt.training.sharding import Shards

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
        self._shards = None

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
        dist.all_reduce(values)
        return values.cpu()

    def gather(self, value):
        """Every process's `value` (anything that can be pickled), in the order of ranks."""
        if self.world_size == 1:
            return [value]
        values = [None] * self.world_size
        dist.all_gather_object(values, value)
        return values

    # -- gradients ---------------------------------------------------------------------------------

    @property
    def is_sharded(self):
        """Whether each process keeps only a part of the model: then every process must call it as
        often as the others do."""
        return self._shards is not None

    def shard(self, model, dtype):
        """Cut the weights of a GPT over the processes; see Shards."""
        if self.world_size > 1:
            self._shards = Shards(model, self.device, dtype, self.is_main)

    def whole_model(self, model):
        """`model` with all its weights; see Shards."""
        return self._shards.whole_model() if self.is_sharded else model

    def wrap(self, module):
        """A module, called as `module` is, whose backward pass leaves each gradient as its mean
        over all processes. Buckets are reduced during the backward pass."""
        if self.world_size == 1 or self.is_sharded:  # a sharded model does it by itself
            return module
        # The buffers are constants. Gradients are views of the buckets: no second copy.
        options = dict(forward_sync_buffers=False, gradient_as_bucket_view=True)
        return DistributedDataParallel(module, **options)


def accumulate(module):
    """The context manager in which the gradients of a module from wrap() are added up in each
    process without a reduction. A sharded model reduces all the same: to keep sums of whole
    gradients would take the memory that it saves."""
    is_wrapped = isinstance(module, DistributedDataParallel)
    return module.no_sync() if is_wrapped else contextlib.nullcontext()


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


@contextlib.contextmanager
def lost_process():
    """Within it, the end of another process becomes a UserError that says how to go on, and so does
    one that has not answered for TIMEOUT."""
    try:
        yield
    except RuntimeError as error:
        # Gloo has no class of errors of its own.
        if not isinstance(error, dist.DistError) and "gloo" not in str(error):
            raise
        raise UserError(
            f"another process of this run has ended or hangs ({_first_line(error)}); the last "
            "checkpoint is intact: continue with --init_from=resume, on any number of processes "
            "that divides a step's batches evenly"
        ) from None


def _first_line(error):
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
