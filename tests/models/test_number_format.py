"""The number format of training: which one is chosen, and what one trial measures."""

import math
from dataclasses import replace

import pytest
import torch
from torch.nn import functional as F

from minigpt.models.number_format import Format, Trial, fastest, try_step
from model import GPT, GPTConfig

FLOAT32, BFLOAT16, FLOAT16 = map(Format, (torch.float32, torch.bfloat16, torch.float16))
BASE = Trial(loss=9.0, norm=2.0, seconds=1.0)


@pytest.mark.parametrize(
    ("trials", "chosen", "says"),
    [
        (dict(seconds=0.5), BFLOAT16, "bfloat16: 500 ms a step"),
        (dict(seconds=0.95), FLOAT32, "950 ms"),  # not worth its rounding
        (dict(seconds=0.5, loss=9.05), BFLOAT16, "500 ms"),
        (dict(seconds=0.5, loss=9.2), FLOAT32, "but its loss is 9.2, not 9"),
        (dict(seconds=0.5, loss=math.nan), FLOAT32, "but its loss is nan"),
        (dict(seconds=0.5, norm=1.0), FLOAT32, "but its gradient norm is 1, not 2"),
        (dict(seconds=0.5, norm=math.inf), FLOAT32, "gradient norm is inf"),
        (TypeError("unsupported\non this device"), FLOAT32, "bfloat16: not here (unsupported)"),
        (AssertionError(), FLOAT32, "not here (AssertionError)"),
    ],
)
def test_a_format_has_to_be_faster_and_right(trials, chosen, says):
    def attempt(each):
        if each == FLOAT32:
            return BASE
        if isinstance(trials, Exception):
            raise trials
        return replace(BASE, **trials)

    found, lines = fastest([FLOAT32, BFLOAT16], attempt)
    assert found == chosen and says in lines[1]


def test_the_fastest_of_several():
    seconds = {FLOAT32: 1.0, BFLOAT16: 0.6, FLOAT16: 0.5}
    found, lines = fastest(list(seconds), lambda each: replace(BASE, seconds=seconds[each]))
    assert found == FLOAT16 and len(lines) == 3


def test_an_error_of_float32_is_an_error():
    with pytest.raises(ZeroDivisionError):
        fastest([FLOAT32, BFLOAT16], lambda each: 1 / 0)


@pytest.fixture
def model():
    torch.manual_seed(0)
    return GPT(GPTConfig(64, 16, n_layer=2, n_head=2, n_embd=32)).eval()


def step_loss(model):
    ids = torch.arange(32).view(2, 16)
    return F.cross_entropy(model(ids).flatten(0, 1).float(), ids.flatten())


def test_a_trial_measures_and_changes_nothing(model):
    before = {name: value.clone() for name, value in model.state_dict().items()}
    trials = {each: try_step(model, step_loss, "cpu", each) for each in (FLOAT32, BFLOAT16)}
    step_loss(model).backward()
    norm = math.sqrt(sum(float(w.grad.square().sum()) for w in model.parameters()))
    assert trials[FLOAT32].norm == pytest.approx(norm, rel=1e-5)
    assert trials[FLOAT32].loss == pytest.approx(step_loss(model).item(), rel=1e-6)
    assert trials[BFLOAT16].loss == pytest.approx(trials[FLOAT32].loss, rel=1e-2)
    assert trials[BFLOAT16].loss != trials[FLOAT32].loss  # it was another format
    assert all(trial.seconds > 0 for trial in trials.values())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_float16_scales_the_loss(model):
    """The norm is that of the unscaled gradients."""
    half, full = (try_step(model, step_loss, "cpu", each) for each in (FLOAT16, FLOAT32))
    assert half.norm == pytest.approx(full.norm, rel=0.05)
