"""TrainState: what state.pt holds, and files that do not fit."""

import math

import pytest
import torch

from minigpt.common.errors import UserError
from minigpt.training.distributed import Distributed
from minigpt.training.state import TrainState

# The keys of state.pt since the first version that wrote one.
KEYS = "optimizers scaler rng cuda_rng world blocks step best stale val_loss evaluated minutes"
KEYS += " batches tokens guard_start forgetting spent reserve"


@pytest.fixture
def distributed():
    alone = Distributed()
    alone.start("cpu")
    return alone


def make(width=3, seed=0):
    """(weight, optimizer, scaler) after one step."""
    generator = torch.Generator().manual_seed(seed)
    weight = torch.nn.Parameter(torch.randn(width, generator=generator))
    optimizer = torch.optim.AdamW([weight], lr=0.1)
    weight.grad = torch.randn(width, generator=generator)
    optimizer.step()
    return weight, optimizer, torch.amp.GradScaler("cpu", enabled=False)


def saved_by(distributed, **counters):
    _, optimizer, scaler = make()
    state = TrainState(blocks=4, **counters)
    state.capture([optimizer], scaler, distributed)
    return state


def test_the_file_format_is_what_it_was(distributed):
    assert set(saved_by(distributed).as_dict()) == set(KEYS.split())


def test_what_is_saved_is_restored(distributed):
    saved = saved_by(distributed, step=7, best=1.5, val_loss=2.0, minutes=0.5).as_dict()
    drawn = torch.rand(2)
    state = TrainState.from_dict(saved, "out/run")
    _, optimizer, scaler = make(seed=1)
    optimizer.param_groups[0]["lr"] = 0.7
    state.restore([optimizer], scaler, distributed, "out/run")
    assert torch.equal(torch.rand(2), drawn)
    found, wanted = optimizer.state_dict(), saved["optimizers"][0]
    assert torch.equal(found["state"][0]["exp_avg"], wanted["state"][0]["exp_avg"])
    assert found["param_groups"][0]["lr"] == 0.7  # that of the settings
    assert (state.step, state.best, state.val_loss, state.minutes) == (7, 1.5, 2.0, 0.5)
    assert state.optimizers == state.rng == []  # what is in use need not be kept twice


def test_fields_that_older_versions_lack(distributed):
    saved = saved_by(distributed).as_dict()
    for name in ("guard_start", "forgetting", "spent", "reserve", "batches"):
        del saved[name]
    state = TrainState.from_dict(saved, "out/run")
    assert state.guard_start is None and state.forgetting == 1 and state.best == math.inf


@pytest.mark.parametrize(
    "wrong",
    [
        dict(step="7"),
        dict(step=True),
        dict(tokens=-1),
        dict(minutes=None),
        dict(world=0),
        dict(world=2),  # but one random state
        dict(rng=[]),
        dict(optimizers={}),
    ],
)
def test_values_that_train_did_not_write(distributed, wrong):
    saved = saved_by(distributed).as_dict()
    with pytest.raises(UserError, match=r"out/run/state.pt: .*--init_from=out/run"):
        TrainState.from_dict({**saved, **wrong}, "out/run")
    for name in ("step", "optimizers"):
        with pytest.raises(UserError, match=name):
            TrainState.from_dict({k: v for k, v in saved.items() if k != name}, "out/run")


def test_snapshots_of_another_model(distributed):
    state = saved_by(distributed)
    _, optimizer, scaler = make(width=4)
    with pytest.raises(UserError, match=r"state.pt: does not fit this run \(exp_avg \(3,\)"):
        state.restore([optimizer], scaler, distributed, "out/run")
    with pytest.raises(UserError, match="does not fit"):
        saved_by(distributed).restore([], scaler, distributed, "out/run")
