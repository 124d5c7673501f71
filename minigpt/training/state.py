"""TrainState: the one list of what a resumed run needs besides its weights and settings.

It is what <run>/state.pt holds, field by field (tensors and plain values only).
"""

import math
import typing
from dataclasses import dataclass, field, fields

import torch

from minigpt.common.errors import UserError
from minigpt.training.sharding import cut_like, whole


@dataclass
class TrainState:
    """The counters are up to date after every step; the snapshots are taken by capture()."""

    # -- position: batches, and so the data order, follow from the step
    step: int = 0  # steps of the optimizers
    tokens: int = 0  # that the network has read
    minutes: float = 0.0  # of training, without evaluations and saves
    spent: float = 0.0  # minutes with them: what max_minutes limits
    reserve: float = 0.0  # minutes of an evaluation with its sample and save: the last step is
    #                       followed by one
    # -- evaluations
    val_loss: float | None = None  # of the last one; None before the first
    evaluated: int = -1  # the step of the last one
    best: float = math.inf  # the lowest val loss
    stale: int = 0  # evaluations since then
    guard_start: float | None = None  # loss over guard_dataset at the first evaluation
    forgetting: float = 1.0  # perplexity there now / perplexity there at the first evaluation
    # -- what the data order depends on
    world: int = 1  # processes
    blocks: int = 0  # in the training data
    # -- snapshots
    optimizers: list = field(default_factory=list)  # a state_dict each
    scaler: dict = field(default_factory=dict)  # of the loss scaler; {} without float16
    rng: list = field(default_factory=list)  # PyTorch's on the CPU, one for each process
    cuda_rng: list = field(default_factory=list)  # on the GPU, one for each process, or None
    batches: list = field(default_factory=list)  # of Rollouts, one for each process, or None

    def capture(self, optimizers, scaler, distributed, batches=None):
        """Take the snapshots. Every process must call it; the main one then has all. batches: the
        state of this process's batches."""
        on_cuda = distributed.device.startswith("cuda")
        cuda_rng = torch.cuda.get_rng_state(distributed.device) if on_cuda else None
        self.rng = distributed.gather(torch.get_rng_state())
        self.cuda_rng = distributed.gather(cuda_rng)
        self.batches = distributed.gather(batches)
        self.optimizers = [_whole_state(optimizer, distributed.is_main) for optimizer in optimizers]
        self.scaler = scaler.state_dict()

    def restore(self, optimizers, scaler, distributed, folder):
        """Set optimizers, loss scaler and random generators to the snapshots of the run in
        `folder`, and drop these. Returns the state of this process's batches; None where there is
        none, and where the run had another number of processes.

        The learning rate and weight decay of the optimizers stay as they are: the settings may have
        changed. A process that the saved run did not have keeps its own seed. UserError where a
        snapshot does not fit.
        """
        try:
            for optimizer, saved in zip(optimizers, self.optimizers, strict=True):
                _load_moments(optimizer, saved)
            if scaler.is_enabled() and self.scaler:
                scaler.load_state_dict(self.scaler)
            if distributed.rank < self.world:
                torch.set_rng_state(self.rng[distributed.rank])
                cuda_rng = self.cuda_rng[distributed.rank]
                if distributed.device.startswith("cuda") and cuda_rng is not None:
                    torch.cuda.set_rng_state(cuda_rng, distributed.device)
        except (LookupError, TypeError, ValueError, RuntimeError, AttributeError) as error:
            reason = str(error).splitlines()[0][:150]
            raise UserError(
                f"{folder}/state.pt: does not fit this run ({reason}); {_remedy(folder)}"
            ) from None
        is_same = self.world == distributed.world_size == len(self.batches)
        batches = self.batches[distributed.rank] if is_same else None
        self.world = distributed.world_size
        self.optimizers, self.scaler, self.rng, self.cuda_rng, self.batches = [], {}, [], [], []
        return batches

    def as_dict(self):
        """What state.pt holds."""
        return {part.name: getattr(self, part.name) for part in fields(self)}

    @classmethod
    def from_dict(cls, saved, folder):
        """The TrainState from what state.pt in `folder` holds; fields that an older version did not
        have get their defaults. UserError where a value is missing or wrong."""
        kinds = typing.get_type_hints(cls)
        newer = ("guard_start", "forgetting", "spent", "reserve", "batches")
        wrong = [
            name
            for name, kind in kinds.items()
            if not (name in newer and name not in saved) and not _is(saved.get(name, ...), kind)
        ]
        if not wrong:
            counts = saved["step"], saved["tokens"], saved["blocks"], saved["world"] - 1
            wrong += ["a count below 0"] * (min(counts) < 0)
            wrong += ["rng"] * (not len(saved["rng"]) == len(saved["cuda_rng"]) == saved["world"])
        if wrong:
            raise UserError(
                f"{folder}/state.pt: {', '.join(wrong)}: missing, or not as train.py writes it; "
                f"{_remedy(folder)}"
            )
        return cls(**{name: saved[name] for name in kinds if name in saved})


def _remedy(folder):
    return f"start another run from its weights with --init_from={folder} --out_dir=…"


def _is(value, kind):
    """Whether a value has the type of an annotation; a bool is no number."""
    return isinstance(value, kind) and not isinstance(value, bool)


def _whole_state(optimizer, keep):
    """The state_dict of an optimizer with whole tensors, which all processes must call for. keep:
    whether this one needs it; else they are dropped one by one."""

    def gathered(value):
        value = whole(value)
        return value if keep else None

    saved = optimizer.state_dict()
    state = {
        i: {name: gathered(value) for name, value in moments.items()}
        for i, moments in saved["state"].items()
    }
    return {**saved, "state": state}


def _load_moments(optimizer, saved):
    """Give an optimizer the moments of a saved state_dict, but not its learning rate and decay."""
    weights = [weight for group in optimizer.param_groups for weight in group["params"]]
    state = {
        i: {
            name: cut_like(value, weights[i]) if torch.is_tensor(value) and value.dim() else value
            for name, value in moments.items()
        }
        for i, moments in saved["state"].items()
    }
    groups = optimizer.state_dict()["param_groups"]
    optimizer.load_state_dict({**saved, "state": state, "param_groups": groups})
    for weight, moments in optimizer.state.items():
        for name, value in moments.items():
            if torch.is_tensor(value) and value.dim() and value.shape != weight.shape:
                raise ValueError(f"{name} {tuple(value.shape)}, expected {tuple(weight.shape)}")
