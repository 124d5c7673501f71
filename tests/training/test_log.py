"""The log of a run as train.py writes it; tests/plotting/test_visualize.py has its reader."""

import json
import sys
from types import SimpleNamespace

import pytest

from minigpt.common.errors import UserError
from minigpt.training.log import Log, read_runlog
from minigpt.training.state import TrainState
from minigpt.training.trainer import StepResult


def settings(**changed):
    return SimpleNamespace(**{**dict(max_iters=20, log_interval=2, tensorboard=False), **changed})


def take_steps(log, first, last):
    for step in range(first, last + 1):
        state = TrainState(step=step, tokens=100 * step, minutes=step / 90, spent=step / 60)
        log.step(state, StepResult(1 / step, 0.1, 100, 0.5, dict(margin=0.25)), step / 20)


def test_progress_lines_average_over_their_interval(tmp_path, capsys):
    log = Log(tmp_path, settings(), peak_rate=1000)
    take_steps(log, 1, 4)
    lines = capsys.readouterr().out.splitlines()
    assert [line[:14] for line in lines] == [f"step {step:>6}/20" for step in (1, 2, 4)]
    assert "| margin 0.250 | lr 1.00e-01 |      200 tok/s | mfu  20% | 16s left" in lines[-1]
    found = read_runlog(tmp_path).train
    assert found["step"].tolist() == [1, 2, 4] and found["rate"].tolist() == [200] * 3


def test_a_resumed_log_drops_the_steps_that_are_taken_again(tmp_path):
    log = Log(tmp_path, settings(log_interval=1))
    take_steps(log, 1, 3)
    log.evaluation(TrainState(step=3, val_loss=2.5), dict(forgetting=1.0), True)
    log.sample(3, "甲\nstep 9: no sample begins here")
    log.sample(3, "")
    before = log.path.read_bytes()
    with open(log.path, "a", encoding="utf-8") as file:
        file.write('{"step": 4, "loss": 1}\n{"step": 5, "lo')
    Log(tmp_path, settings(), resumed_at=3)
    assert log.path.read_bytes() == before
    assert json.loads(before.splitlines()[-1])["best"] is True
    log.path.write_text('{"pets": 4}\n', encoding="utf-8")
    with pytest.raises(UserError, match=r"train\.py did not write this"):
        Log(tmp_path, settings(), resumed_at=3)


def test_tensorboard_that_is_not_installed(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(UserError, match="pip install tensorboard"):
        Log(tmp_path, settings(tensorboard=True))


def test_tensorboard_gets_every_figure(tmp_path, monkeypatch):
    """Against a stand-in for SummaryWriter: the real one is not among the requirements."""
    calls = []

    class SummaryWriter:
        def __init__(self, folder, purge_step):
            calls.append(purge_step)

        def add_scalar(self, name, value, step):
            calls.append((name, value, step))

        def close(self):
            calls.append("closed")

    stand_in = SimpleNamespace(SummaryWriter=SummaryWriter)
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", stand_in)
    log = Log(tmp_path, settings(tensorboard=True), resumed_at=4)
    log.evaluation(TrainState(step=6, val_loss=2.5), {}, False)
    log.close()
    assert calls == [5, ("tokens", 0, 6), ("minutes", 0.0, 6), ("val_loss", 2.5, 6), "closed"]
