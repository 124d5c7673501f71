"""Plans: the memory of a step against steps that were measured, the way that fits, the recipe."""

import re
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from tiny_run import run_here

import model as model_module
from bench.steps import PeakMemory
from config.configurator import configure
from data_utils import IS_START, TARGET, Batch
from minigpt.models.device import CARDS, autocast, find_card
from minigpt.training import optim
from minigpt.training.losses import next_token
from minigpt.training.optim import make_optimizers
from minigpt.training.planning import memory
from minigpt.training.planning.fit import best_fit, largest, recipe, tokens_per_second, ways
from minigpt.training.planning.memory import Work, memory_of_step
from minigpt.training.settings import check_ranges
from model import GPT, GPTConfig

GPT2 = dict(position="learned", norm="layernorm", mlp="gelu", qk_norm=False, bias=True)
GROUPED = dict(n_kv_head=2, head_dim=24, n_hidden=96, tie_embeddings=False)
GIVEN = dict(learning_rate=1e-3, embedding_lr_ratio=1.0, weight_decay=0.1, beta1=0.9, beta2=0.95)


def outline(**shape):
    """A small model without weights."""
    small = dict(padded_vocab_size=512, block_size=64, n_layer=3, n_head=4, n_embd=64)
    with torch.device("meta"):
        return GPT(GPTConfig(**small | shape))


def measured(config, work, n_batches, dtype):
    """The peak, in bytes of tensors, of the second of two training steps."""
    settings = SimpleNamespace(**GIVEN, optimizer=work.optimizer, muon_momentum=0.95)
    generator = np.random.default_rng(0)
    with PeakMemory() as found:
        model = GPT(config)
        model.activation_checkpointing = work.activation_checkpointing
        optimizers = make_optimizers(model, settings, "cpu")
        for _ in range(2):
            found.peak = 0
            for _ in range(n_batches):
                shape = work.batch_size, config.block_size
                mask = np.full(shape, TARGET, np.uint8)
                mask[:, :: config.block_size // 2] |= IS_START
                batch = Batch.of(generator.integers(0, 300, shape), mask, work.masked)
                with autocast("cpu", dtype):
                    loss, count = next_token(model, batch)
                (loss / count).backward()
            for optimizer in optimizers:
                optimizer.step()
            model.zero_grad(set_to_none=True)
    return found.peak


CASES = [
    ({}, dict(optimizer="adamw"), 1),
    ({}, dict(activation_checkpointing=True), 1),
    (dict(n_layer=6), dict(activation_checkpointing=True, optimizer="adamw"), 2),
    (dict(padded_vocab_size=4096), dict(), 2),
    (dict(padded_vocab_size=8192, n_layer=1), dict(batch_size=16), 1),  # two chunks of logits
    (dict(padded_vocab_size=8192, block_size=16), dict(batch_size=1, optimizer="adamw"), 2),
    (dict(n_layer=6, n_hidden=64), dict(batch_size=1), 2),  # Muon's step is the peak
    (dict(n_layer=2, n_embd=128), dict(batch_size=1), 1),
    (dict(n_layer=6), dict(masked=True), 1),
    (dict(dropout=0.1), dict(masked=True), 1),
    (GPT2, dict(optimizer="adamw"), 2),
    (GROUPED, dict(batch_size=8), 2),
    ({}, dict(mlp_recomputed=True), 1),
    (dict(mlp="gelu"), dict(mlp_recomputed=True, optimizer="adamw"), 2),
    (dict(qk_norm=False), dict(low_precision=True, muon_float32=True), 1),
]


@pytest.mark.parametrize(("shape", "work", "n_batches"), CASES)
def test_memory_is_that_of_measured_steps(shape, work, n_batches, monkeypatch):
    """Within 4 % of all tensors that are alive at a time. mlp_recomputed: as for large batches."""
    work = dict(work)
    if work.pop("mlp_recomputed", False):
        for module in (model_module, memory):
            monkeypatch.setattr(module, "ACTIVATION_CHECKPOINTING_FROM", 1)
    model = outline(**shape)
    work = Work(**{"batch_size": 4, **work}, accumulates=n_batches > 1)
    dtype = torch.bfloat16 if work.low_precision else torch.float32
    peak = measured(model.config, work, n_batches, dtype)
    assert memory_of_step(model, work).peak == pytest.approx(peak, rel=0.04)


def test_frozen_weights_need_no_gradients_and_no_states():
    model = outline()
    everything = memory_of_step(model, Work(4))
    model.blocks[:2].requires_grad_(False)
    upper = memory_of_step(model, Work(4))
    assert upper.weights == everything.weights and upper.gradients < everything.gradients
    assert upper.activations == everything.activations  # the embeddings learn through them
    model.wte.requires_grad_(False)
    last = memory_of_step(model, Work(4))
    assert last.activations < upper.activations / 2
    block = 4 * sum(weight.numel() for weight in model.blocks[2].parameters())
    assert last.gradients == block + 4 * 64  # and the norm after it


def test_fsdp_divides_what_ddp_repeats():
    model = outline(n_layer=12)
    ddp, fsdp = (memory_of_step(model, Work(1, processes=4, sharded=s)) for s in (False, True))
    buffers = sum(buffer.nbytes for buffer in model.buffers())
    assert fsdp.gradients == ddp.gradients / 4 and fsdp.optimizer == ddp.optimizer / 4
    assert fsdp.weights - buffers == (ddp.weights - buffers) / 4
    assert fsdp.activations == ddp.activations and ddp.gathered == 0 < fsdp.gathered
    many = memory_of_step(model, Work(1, processes=4096, sharded=True))
    assert many.peak >= ddp.weights - buffers  # each starts with the whole model


def test_the_first_way_that_fits_with_the_largest_batches():
    model, work = outline(n_layer=12), Work(1, processes=2)
    needs = [memory_of_step(model, way).peak for way in ways(work)]
    plain, checkpointing, sharded, both = ways(work)
    assert not plain.sharded and not plain.activation_checkpointing
    assert both.sharded and both.activation_checkpointing
    assert best_fit(model, ways(work), 24, 1e12).work.batch_size == 12  # of each process
    assert best_fit(model, ways(work), 24, 0) is None
    fit = best_fit(model, ways(work), 24, needs[0])
    assert not fit.work.sharded and not fit.work.activation_checkpointing
    nine = memory_of_step(model, replace(sharded, batch_size=9)).peak
    fit = largest(model, sharded, 24, nine)  # 9 does not divide the 12 blocks of a process
    assert (fit.work.batch_size, fit.accumulation, fit.blocks_per_step) == (6, 2, 24)
    assert fit.needs.peak <= nine
    assert largest(model, plain, 25, 1e12).blocks_per_step == 26  # 13 each


def test_speed_is_the_stated_share_of_the_peak():
    model = outline(n_layer=8)
    plain = tokens_per_second(model, Work(1, processes=4), tflops=100, mfu=0.5)
    assert plain == pytest.approx(4 * 100e12 * 0.5 / model.flops_per_token())
    again = tokens_per_second(model, Work(1, 4, activation_checkpointing=True), 100, 0.5)
    assert plain / 4 * 0.74 < again < plain / 4 * 0.8  # 3 of 4 passes, but for the output layer


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("4090", "RTX 4090"),
        ("rtx4090", "RTX 4090"),
        ("NVIDIA GeForce RTX 4090 D", "RTX 4090 D"),
        ("a100", "A100"),
        ("NVIDIA A100-SXM4-80GB", "A100"),
        ("h100 pcie", "H100 PCIe"),
        ("4070ti", "RTX 4070 Ti"),
        ("2080 Ti", "RTX 2080 Ti"),
        ("Tesla T4", "T4"),
        ("A1000", None),
        ("", None),
    ],
)
def test_cards_by_the_names_that_people_use(name, words):
    assert find_card(name) == (CARDS[words] if words else None)


# -- tools/plan.py ---------------------------------------------------------------------------------


def test_a_recipe_reads_back_as_it_was_planned(tmp_path):
    words = ["config/cpu_small.py", "--sample_prompt=“引号”", "--val_dataset=none"]
    settings = configure(shared="all", argv=words, quiet=True)
    path = tmp_path / "planned.py"
    changes = dict(batch_size=3, max_iters=77, activation_checkpointing=None)
    path.write_text(recipe(settings, changes, "A title."), encoding="utf-8")
    again = configure(shared="all", argv=[str(path)], quiet=True)
    assert again.as_dict() == settings.as_dict() | dict(batch_size=3, max_iters=77)


def test_the_script_plans_and_train_reads_its_recipe(tmp_path):
    path = tmp_path / "billion.py"
    words = ["--n_layer=24", "--n_embd=2048", "--gpus=8", "--gpu_memory=24", "--gpu=4090"]
    code, out, err = run_here("tools/plan.py", "config/train_config.py", *words, f"--output={path}")
    assert code == 0, err
    assert "1,231.1M parameters" in out and "24.6 billion tokens (20 a parameter)" in out
    assert "data: 49.2 GB of tokens (uint16)" in out
    rows = [line for line in out.splitlines() if line.startswith(("ddp", "fsdp"))]
    assert len(rows) == 4
    planned = configure(shared="all", argv=[str(path)], quiet=True)
    check_ranges(planned)
    assert (planned.n_layer, planned.n_embd, planned.n_head) == (24, 2048, 32)
    step = 8 * planned.batch_size * planned.gradient_accumulation_steps
    assert step == 32 * 4  # the tokens of the default's step
    assert planned.max_iters == pytest.approx(20 * 1.2311e9 / (step * 512), rel=1e-4)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--n_layer=30", "--n_embd=3072", "--gpu=3090"], r"nothing fits: .* such GPUs"),
        (["--gpu=voodoo2"], "--gpu=voodoo2: unknown; give its --tflops and --gpu_memory"),
        ([], "--gpu: which card?"),
        (["--gpu=4090", "--mfu=2", "--gpus=0"], "gpus=0: expected at least 1\n--mfu=2: expected"),
        (["--gpu=4090", "--stage=dpo", "--init_from=x"], "--stage: a plan is only for stage=lm"),
        (["--gpu=4090", "--n_layer=0"], "n_layer=0"),
        (["--gpu=4090", "--init_from=nowhere"], "nowhere: no trained run here"),
    ],
)
def test_what_cannot_be_planned_is_one_clear_message(words, message):
    code, _, err = run_here("tools/plan.py", *words)
    assert code == 2 and re.search(message, err), err


def test_only_what_is_asked_for(tmp_path):
    words = ["--gpu=h100", "--activation_checkpointing=true", "--parallel=fsdp"]
    for gpus in (1, 2):
        code, out, _ = run_here("tools/plan.py", *words, f"--gpus={gpus}")
        assert code == 0 and "activation_checkpointing = True" in out
        assert ('parallel = "fsdp"' in out) == (gpus == 2)
    code, out, _ = run_here(
        "tools/plan.py", "--tflops=10", "--gpu_memory=8", "--vocab_size=50257", "--tokens=1e9"
    )
    assert code == 0 and "1.0 billion tokens (--tokens)" in out and "50,304" in out
    words = ["config/cpu_small.py", "--device=cpu", "--gpu_memory=4", "--tflops=0.1"]
    code, out, err = run_here("tools/plan.py", *words)
    assert code == 0, err
    (row,) = (line for line in out.splitlines() if line.startswith("one GPU  "))
    model = outline(n_layer=4, n_head=4, n_embd=256, block_size=256, padded_vocab_size=8192)
    assert f" {memory_of_step(model, Work(8, masked=True)).peak / 1e9:.2f} " in row


def test_muon_takes_no_more_than_a_stack_at_a_time(monkeypatch):
    """With stacks of two matrices; the result is the same as with all of them in one."""
    model, work = outline(n_layer=6), Work(1, accumulates=False)
    whole = memory_of_step(model, work)
    for module in (memory, optim):
        monkeypatch.setattr(module, "STACK", 2 * 64 * 192)
    less = memory_of_step(model, work)
    matrices = list(torch.randn(6, 64, 192, generator=torch.Generator().manual_seed(0)))
    copies = [matrix.clone() for matrix in matrices]
    optim.orthogonal_steps(matrices, [(64,)] * 6, torch.float32)
    monkeypatch.setattr(optim, "STACK", 2**26)
    optim.orthogonal_steps(copies, [(64,)] * 6, torch.float32)
    torch.testing.assert_close(matrices, copies)
    monkeypatch.setattr(optim, "STACK", 2 * 64 * 192)
    assert less.step < whole.step
    assert less.peak == pytest.approx(measured(model.config, work, 1, torch.float32), rel=0.04)
