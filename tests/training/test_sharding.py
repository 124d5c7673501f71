"""DDP and FSDP: any number of processes makes what one makes; what is cut, and what is refused."""

import copy
import functools
import importlib
import json
import os
import signal
import sys

import pytest
import torch
from forks import forked, needs_fork
from test_train import (  # noqa: F401
    assert_equal_losses,
    at_step,
    dataset,
    log_of,
    tiny,
    train,
    uneven,
)
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Shard, distribute_tensor

from minigpt.common.errors import UserError
from minigpt.models import checkpoint
from minigpt.models.device import autocast
from minigpt.training.distributed import Distributed
from minigpt.training.optim import Muon
from minigpt.training.sharding import local, whole
from minigpt.training.trainer import Trainer
from model import GPT, GPTConfig

pytestmark = needs_fork
BATCHES = 4  # in a step, of all processes


@pytest.fixture(scope="module")
def alone(tmp_path_factory, uneven):  # noqa: F811
    """alone(*flags): the folder of a run of one process, made once."""

    @functools.cache
    def start(*flags):
        folder = tmp_path_factory.mktemp("alone") / "run"
        words = [*uneven, f"--gradient_accumulation_steps={BATCHES}", *flags]
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(sys, "argv", ["train.py", *words, f"--out_dir={folder}"])
            importlib.import_module("train").main()
        return folder

    return start


@pytest.fixture
def run(train, uneven, tmp_path):  # noqa: F811
    """run(world, *flags): the folder of a run on so many processes."""

    def start(world, *flags):
        folder = tmp_path / f"run-{len(list(tmp_path.glob('run-*')))}"
        share = f"--gradient_accumulation_steps={BATCHES // world}"
        words = [*uneven, share, *flags, f"--out_dir={folder}"]
        results = forked(lambda: train(*words), tmp_path, world_size=world)
        assert [code for code, _ in results] == [0] * world, results
        return folder

    return start


def assert_same_run(one, two):
    assert_equal_losses(log_of(one), log_of(two))
    weights = dict(checkpoint.load(two).model.named_parameters())
    for name, weight in checkpoint.load(one).model.named_parameters():
        torch.testing.assert_close(weight, weights[name], atol=1e-4, rtol=1e-3)


STEPS = ["--max_iters=4", "--eval_interval=2"]
RUNS = {"muon": [("ddp", 4), ("fsdp", 4)], "adamw": [("fsdp", 2)]}


@pytest.mark.parametrize("optimizer", RUNS)
def test_any_number_of_processes_is_one(alone, run, optimizer):
    """Targets are unequal, and of the two val batches two of four processes have none."""
    flags = [*STEPS, f"--optimizer={optimizer}"]
    one = alone(*flags)
    for parallel, world in RUNS[optimizer]:
        two = run(world, *flags, f"--parallel={parallel}")
        assert_same_run(one, two)
        state, of_one = (checkpoint.load_state(folder) for folder in (two, one))
        for ours, theirs in zip(state["optimizers"], of_one["optimizers"], strict=True):
            assert ours["state"].keys() == theirs["state"].keys()
            for i, moments in theirs["state"].items():
                for name, value in moments.items():
                    torch.testing.assert_close(ours["state"][i][name], value, atol=1e-5, rtol=1e-3)


FEW = ["--max_iters=2", "--eval_interval=2", "--eval_iters=1", "--sample_prompt="]
KINDS = {
    "lora": ["--init_from=BASE", "--lora_rank=2", "--freeze_layers=1"],
    "frozen": ["--init_from=BASE", "--freeze_layers=1", "--freeze_embeddings=true"],
    "recomputed": ["--activation_checkpointing=true"],
    "distilled": ["--stage=distill", "--teacher=BASE", "--tie_embeddings=false"],
}


@pytest.mark.parametrize("kind, parallel", [("lora", "ddp"), *((kind, "fsdp") for kind in KINDS)])
def test_adapters_frozen_weights_and_a_teacher(alone, run, kind, parallel):
    base = alone(*FEW, "--max_iters=0")
    flags = [*FEW, *(word.replace("BASE", str(base)) for word in KINDS[kind])]
    assert_same_run(alone(*flags), run(2, *flags, f"--parallel={parallel}"))


@pytest.mark.parametrize("before, after", [(2, 1), (1, 2)])
def test_another_number_of_processes_resumes(
    alone,
    run,
    train,  # noqa: F811
    monkeypatch,
    tmp_path,
    before,
    after,
):
    """A run with FSDP is continued by one process, and the other way round."""
    flags = [*STEPS, "--optimizer=muon"]
    with monkeypatch.context() as patch:
        at_step(patch, 2, lambda: os.kill(os.getpid(), signal.SIGTERM))
        folder = run(before, *flags, "--parallel=fsdp")
    assert checkpoint.load_state(folder)["step"] == 3
    words = [f"--out_dir={folder}", "--init_from=resume"]
    results = forked(lambda: train(*words), tmp_path, world_size=after)
    assert [code for code, _ in results] == [0] * after, results
    assert_same_run(alone(*flags), folder)


def test_a_process_keeps_its_share(run, monkeypatch, tmp_path):
    """Of two processes each has half of the weights, gradients and moments."""
    update = Trainer._update

    def counting(trainer):
        weights = list(trainer.model.parameters())
        found = [sum(local(w).numel() for w in weights)]
        found.append(sum(local(w.grad).numel() for w in weights))
        update(trainer)
        moments = [m for o in trainer.optimizers for s in o.state.values() for m in s.values()]
        found.append(sum(local(m).numel() for m in moments if m.dim()))
        found += [sum(w.numel() for w in weights), sum(m.numel() for m in moments if m.dim())]
        (tmp_path / f"share-{trainer.distributed.rank}").write_text(json.dumps(found))

    monkeypatch.setattr(Trainer, "_update", counting)
    run(2, *FEW, "--parallel=fsdp")
    counts = [json.loads((tmp_path / f"share-{rank}").read_text()) for rank in range(2)]
    all_weights, all_moments = counts[0][3:]
    for weights, gradients, moments, *_ in counts:
        assert weights == gradients == pytest.approx(all_weights / 2, rel=0.01)
        assert moments == pytest.approx(all_moments / 2, rel=0.01)


def test_blocks_compute_in_bfloat16_on_float32_weights(tmp_path):
    """As autocast does on one device; weights, gradients and embeddings stay float32."""
    config = GPTConfig(padded_vocab_size=64, block_size=16, n_layer=2, n_head=2, n_embd=32)
    torch.manual_seed(0)
    model, x = GPT(config), torch.arange(16).unsqueeze(0)

    def gradients(model):
        with autocast("cpu", torch.bfloat16):
            h = model(x)
            assert h.dtype == torch.float32
        (h * torch.arange(32.0)).sum().backward()
        return {name: whole(weight.grad) for name, weight in model.named_parameters()}

    expected = gradients(copy.deepcopy(model))

    def work():
        both = Distributed()
        both.start("cpu")
        both.shard(model, torch.bfloat16)
        seen = []
        proj = model.blocks[0].mlp.proj
        proj.register_forward_pre_hook(lambda module, _: seen.append(module.weight.dtype))
        for name, gradient in gradients(model).items():
            assert gradient.dtype == torch.float32
            difference = (gradient - expected[name]).norm() / expected[name].norm()
            assert difference < 0.02, name
        assert seen == [torch.bfloat16] and proj.weight.dtype == torch.float32

    results = forked(work, tmp_path, world_size=2)
    assert [code for code, _ in results] == [0, 0], results


@pytest.mark.parametrize("world", [2, 3])
def test_muon_on_rows_is_muon_on_matrices(tmp_path, world):
    """Three processes have 3, 3 and 1 rows of a matrix of 7, and 1, 1 and 0 of one of 2."""
    shapes = [(7, 5), (2, 6), (8, 3), (9, 9)]
    sizes = [None, None, (4, 2, 2), (3, 6)]

    def random(shape, seed):
        return torch.randn(shape, generator=torch.Generator().manual_seed(seed))

    def steps(cut):
        weights = [
            cut(torch.randn(s, generator=torch.manual_seed(i))) for i, s in enumerate(shapes)
        ]
        weights = [torch.nn.Parameter(weight) for weight in weights]
        optimizer = Muon(list(zip(weights, sizes, strict=True)), lr=0.1)
        for step in range(3):
            for i, weight in enumerate(weights):
                weight.grad = cut(random(shapes[i], 10 * step + i))
            optimizer.step()
        return [whole(weight.detach()) for weight in weights]

    expected = steps(lambda tensor: tensor)

    def work():
        all_of_them = Distributed()
        all_of_them.start("cpu")
        mesh = init_device_mesh("cpu", (world,))
        found = steps(lambda tensor: distribute_tensor(tensor, mesh, [Shard(0)]))
        for one, two in zip(found, expected, strict=True):
            torch.testing.assert_close(one, two, atol=1e-5, rtol=1e-5)

    results = forked(work, tmp_path, world_size=world)
    assert [code for code, _ in results] == [0] * world, results


def test_different_checkpoints_are_refused(train, uneven, monkeypatch, tmp_path):  # noqa: F811
    """As of two machines without a shared disk."""
    begin = Trainer.begin

    def elsewhere(trainer):
        trainer.state.step = 4 * trainer.distributed.rank
        begin(trainer)

    monkeypatch.setattr(Trainer, "begin", elsewhere)
    words = [*uneven, f"--out_dir={tmp_path / 'run'}"]
    for code, output in forked(lambda: train(*words), tmp_path, world_size=2):
        assert code == 2 and "have read different checkpoints, of steps 0, 4: with" in output


def test_grpo_is_refused_by_name(train, tmp_path):  # noqa: F811
    words = ["--stage=grpo", "--init_from=out/sft", "--reward=exact", "--parallel=fsdp"]
    with pytest.raises(UserError, match="parallel=fsdp: expected ddp with stage=grpo"):
        train(*words, f"--out_dir={tmp_path / 'run'}")
