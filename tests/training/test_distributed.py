"""Processes that are joined: sums, gathered values, gradients in buckets, one reduction a step."""

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
from minigpt.training.distributed import Distributed, buckets
from minigpt.training.trainer import Trainer


@pytest.mark.parametrize("most", [1, 40, 100, 1000])
def test_buckets_hold_every_tensor_once_in_order(most):
    sizes = [3, 1, 9, 2, 30, 4, 4]
    tensors = [torch.zeros(n, dtype=torch.float64 if n == 2 else torch.float32) for n in sizes]
    found = buckets(tensors, most)
    assert [len(t) for bucket in found for t in bucket] == sizes
    for bucket in found:
        assert len({t.dtype for t in bucket}) == 1
        assert len(bucket) == 1 or sum(t.nbytes for t in bucket) <= most


def test_one_process_gets_back_what_it_gave():
    alone = Distributed()
    assert alone.is_main and alone.start("cpu") == "cpu"
    values, weight = torch.ones(3), torch.nn.Parameter(torch.ones(2))
    weight.grad = torch.ones(2)
    alone.sum_gradients([weight])
    assert alone.sum(values) is values and alone.gather("x") == ["x"]
    assert weight.grad.tolist() == [1, 1]


@needs_fork
def test_two_processes(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "BUCKET", 40)

    def work():
        both = Distributed()
        both.start("cpu")
        weights = [torch.nn.Parameter(torch.zeros(n)) for n in (3, 20, 1, 2)]
        for i, weight in enumerate(weights[:3]):  # the last one has no gradient
            weight.grad = torch.arange(len(weight)) + i + 10.0 * both.rank
        both.sum_gradients(weights)
        total = both.sum(torch.tensor([1.0, both.rank], dtype=torch.float64))
        gradients = [w.grad.tolist() for w in weights if w.grad is not None]
        print(json.dumps([total.tolist(), both.gather(f"r{both.rank}"), gradients]))
        both.stop()

    results = forked(work, tmp_path, world_size=2)
    wanted = [[10.0 + 2 * (k + i) for k in range(n)] for i, n in enumerate((3, 20, 1))]
    for code, output in results:
        assert code == 0, output
        assert json.loads(output.splitlines()[-1]) == [[2.0, 1.0], ["r0", "r1"], wanted]


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
        both.sum(torch.ones(1))

    (code, output), _ = forked(work, tmp_path, world_size=2)
    assert code == 2 and "has ended or hangs" in output and "--init_from=resume" in output


@needs_fork
def test_a_step_has_one_reduction_beside_those_of_the_gradients(
    tmp_path,
    train,  # noqa: F811
    monkeypatch,
    tiny,  # noqa: F811
):
    """Stop flag, target count, loss and clocks travel together; the tiny model is one bucket."""
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
            gradients, packed = json.loads(line.partition(" ")[2])
            assert packed == 6 and gradients > 10_000
