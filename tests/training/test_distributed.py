"""Processes that are joined: sums, gathered values, gradients, one reduction a step."""

import json
import os
import time
from datetime import timedelta

import pytest
import torch
import torch.distributed as dist
from forks import forked, needs_fork
from test_train import dataset, tiny, train  # noqa: F401

from minigpt.common.errors import UserError
from minigpt.training import distributed as module
from minigpt.training.distributed import Distributed, accumulate, lost_process
from minigpt.training.trainer import Trainer


def test_one_process_gets_back_what_it_gave():
    alone = Distributed()
    assert alone.is_main and alone.start("cpu") == "cpu"
    values, module = torch.ones(3), torch.nn.Linear(2, 1)
    assert alone.sum(values) is values and alone.gather("x") == ["x"]
    alone.shard(module, torch.float32)
    assert alone.wrap(module) is module and alone.whole_model(module) is module
    with accumulate(module):
        module(torch.ones(1, 2)).sum().backward()
    assert module.weight.grad.tolist() == [[1, 1]]


@needs_fork
def test_two_processes(tmp_path):
    """Gradients of two batches of each process, added up, then averaged; frozen ones are none."""

    def work():
        both = Distributed()
        both.start("cpu")
        total = both.sum(torch.tensor([1.0, both.rank], dtype=torch.float64))
        module = torch.nn.Linear(2, 1)
        module.bias.requires_grad_(False)
        wrapped = both.wrap(module)
        with accumulate(wrapped):
            wrapped(torch.tensor([[1.0, 2.0]])).sum().backward()
        alone = module.weight.grad.clone()
        wrapped(torch.full((1, 2), 10.0 * both.rank)).sum().backward()
        gradients = [alone.tolist(), module.weight.grad.tolist(), module.bias.grad]
        print(json.dumps([total.tolist(), both.gather(f"r{both.rank}"), gradients]))
        both.stop()

    for code, output in forked(work, tmp_path, world_size=2):
        assert code == 0, output
        wanted = [[2.0, 1.0], ["r0", "r1"], [[[1, 2]], [[6, 7]], None]]
        assert json.loads(output.splitlines()[-1]) == wanted


@needs_fork
def test_processes_that_start_again_do_not_find_the_old_ones(tmp_path, monkeypatch):
    """torchrun's store, which stays over restarts, has the addresses of processes that ended."""
    agents = dist.TCPStore("127.0.0.1", 0, is_master=True)

    def work():
        os.environ.update(MASTER_PORT=str(agents.port), TORCHELASTIC_USE_AGENT_STORE="True")
        both = Distributed()
        both.start("cpu")
        print(both.gather(both.rank))

    for _ in range(3):  # they end without a farewell
        assert [code for code, _ in forked(work, tmp_path, world_size=2)] == [0, 0]


def test_a_process_that_does_not_come_is_an_error(monkeypatch):
    monkeypatch.setattr(module, "TIMEOUT", timedelta(seconds=0.3))
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    monkeypatch.setenv("MASTER_PORT", "0")
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(UserError, match="the 2 processes of this run do not find each other"):
        Distributed().start("cpu")


@needs_fork
def test_a_process_that_hangs_is_an_error_after_the_timeout(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "TIMEOUT", timedelta(seconds=3))

    def work():
        both = Distributed()
        both.start("cpu")
        both.sum(torch.ones(1))
        if both.rank == 1:
            time.sleep(8)
            return
        with lost_process():
            both.sum(torch.ones(1))

    (code, output), _ = forked(work, tmp_path, world_size=2)
    assert code == 2 and "has ended or hangs" in output and "--init_from=resume" in output


def test_other_errors_stay_what_they_are():
    with pytest.raises(RuntimeError, match="a matrix"), lost_process():
        raise RuntimeError("a matrix of another shape")


@needs_fork
def test_a_step_has_one_reduction_beside_those_of_the_gradients(
    tmp_path,
    train,  # noqa: F811
    monkeypatch,
    tiny,  # noqa: F811
):
    """Stop flag, target count, loss and clocks travel together."""
    calls, reduce, train_step = [], dist.all_reduce, Trainer.train_step

    def counting(values, **options):
        calls.append(values.numel())
        return reduce(values, **options)

    def counted(trainer):
        calls.clear()
        result = train_step(trainer)
        print(f"reductions {json.dumps(calls)}")
        return result

    monkeypatch.setattr(dist, "all_reduce", counting)
    monkeypatch.setattr(Trainer, "train_step", counted)
    words = [*tiny, "--max_iters=2", f"--out_dir={tmp_path / 'run'}"]
    for code, output in forked(lambda: train(*words), tmp_path, world_size=2):
        assert code == 0, output
        lines = [line for line in output.splitlines() if line.startswith("reductions")]
        assert len(lines) == 2
        for line in lines:
            assert json.loads(line.partition(" ")[2]) == [6]  # DDP's are not by dist.all_reduce
