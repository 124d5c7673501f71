"""Distillation: the loss by hand, its gradient, and runs of train.py with a teacher."""

import json
import math

import numpy as np
import pytest
import torch
from tiny_run import run_here, save_run

from data_utils import Batch
from minigpt.models import checkpoint
from minigpt.training import losses
from minigpt.training.losses import next_token
from minigpt.training.objectives.distill import Distill
from model import GPT, GPTConfig

SIZE = 16


def of_probabilities(tiny_model, rows):
    """A model that gives these probabilities (of ids 0, 1, …) after every token; the others' are
    about 0."""
    model = tiny_model(tie_embeddings=False, norm="layernorm", bias=True)
    with torch.no_grad():
        model.norm.weight.zero_()
        model.norm.bias.zero_()
        model.norm.bias[0] = 1.0
        model.lm_head.weight.zero_()
        model.lm_head.weight[:, 0] = -50.0
        model.lm_head.weight[: len(rows), 0] = torch.tensor(rows).log()
    return model


def batch(n=3):
    tokens = np.zeros((1, SIZE), np.int64)
    mask = np.zeros((1, SIZE), np.uint8)
    mask[0, 2 : 2 + n] = 1
    tokens[0, 2 : 2 + n] = 1
    return Batch.of(tokens, mask, False)


def test_loss_by_hand(tiny_model):
    """Teacher (1/2, 1/4, 1/4), student (1/8, 5/8, 1/4), the text's token is 1: a cross-entropy of
    ln 8/5, a divergence of 1/2 ln 4 + 1/4 ln 2/5."""
    teacher = of_probabilities(tiny_model, [0.5, 0.25, 0.25])
    student = of_probabilities(tiny_model, [0.125, 0.625, 0.25])
    for text in (0.0, 0.3, 1.0):
        objective = Distill(teacher, text, 64)
        loss, count = objective(student, batch())
        kl = math.log(4) / 2 + math.log(2 / 5) / 4
        by_hand = text * math.log(8 / 5) + (1 - text) * kl
        assert count == 3 and loss.item() == pytest.approx(3 * by_hand, abs=1e-4)
        metrics = objective.metrics(objective.metric_sums().tolist())
        assert metrics == pytest.approx(dict(text=math.log(8 / 5), kl=kl), abs=1e-4)
        assert objective.metrics(objective.metric_sums().tolist()) == {}


def random_batch():
    dice = np.random.default_rng(1)
    tokens = dice.integers(0, 60, (4, SIZE))
    mask = dice.integers(0, 2, tokens.shape).astype(np.uint8)
    return Batch.of(tokens, mask, False)


def test_the_text_alone_is_next_token(tiny_model):
    student, given = tiny_model(1), random_batch()
    loss, count = Distill(tiny_model(2), 1.0, 60)(student, given)
    expected, n = next_token(student, given)
    assert count == n and loss.item() == pytest.approx(expected.item(), rel=1e-5)
    objective = Distill(tiny_model(2), 0.0, 60)
    held_out, _ = objective.held_out(student, given)
    assert held_out.item() == pytest.approx(expected.item(), rel=1e-6)


def test_the_gradient_is_that_of_the_divergence_in_any_chunks(tiny_model, monkeypatch):
    """Over the ids in use alone, and where positions are padded."""
    teacher, student, given = tiny_model(2), tiny_model(1), random_batch()
    names = ["x", "segment_ids", "positions", "cu_seqlens"]
    h, taught = (
        model(*(getattr(given, name) for name in names)).flatten(0, 1)[given.target_indices]
        for model in (student, teacher)
    )
    p, q = (
        torch.nn.functional.linear(each, model.lm_head.weight[:60]).log_softmax(-1)
        for each, model in ((taught.detach(), teacher), (h, student))
    )
    expected = torch.nn.functional.kl_div(q, p.detach(), reduction="sum", log_target=True)
    wanted = torch.autograd.grad(expected, student.wte.weight)
    for rows, padded in ((256, given), (5, given), (7, given.padded(64))):
        monkeypatch.setattr(losses, "FEWEST_ROWS", rows)
        monkeypatch.setattr(losses, "CPU_CHUNK", 1)
        loss, _ = Distill(teacher, 0.0, 60)(student, padded)
        torch.testing.assert_close(loss, expected, rtol=1e-4, atol=1e-4)
        found = torch.autograd.grad(loss, student.wte.weight)
        torch.testing.assert_close(found, wanted, rtol=1e-3, atol=1e-4)
    assert all(weight.grad is None for weight in teacher.parameters())


# -- runs ------------------------------------------------------------------------------------------

TINY = """
    --stage=distill --batch_size=4 --gradient_accumulation_steps=1 --max_iters=60 --device=cpu
    --eval_interval=30 --eval_iters=2 --log_interval=10 --warmup_iters=0 --learning_rate=1e-2
    --n_layer=1 --n_head=2 --n_embd=16 --block_size=16 --sample_prompt= --optimizer=adamw
"""


@pytest.fixture(scope="module")
def teacher(tmp_path_factory, byte_tokenizer):
    torch.manual_seed(7)
    model = GPT(GPTConfig(320, SIZE, n_layer=2, n_head=2, n_embd=32))
    return save_run(tmp_path_factory.mktemp("teacher") / "big", model, byte_tokenizer)


@pytest.fixture(scope="module")
def texts(tmp_path_factory, write_blocks, byte_tokenizer):
    dice = np.random.default_rng(3)
    blocks = [
        (97 + (dice.integers(0, 20, (n, 1)) + np.arange(SIZE)) % 26, np.ones((n, SIZE), np.uint8))
        for n in (40, 8)
    ]
    return write_blocks(tmp_path_factory.mktemp("texts") / "data", byte_tokenizer, *blocks)


def test_a_student_comes_nearer_to_its_teacher(tmp_path, texts, teacher, byte_tokenizer):
    out = tmp_path / "student"
    flags = [*TINY.split(), f"--dataset={texts}", f"--tokenizer={byte_tokenizer.name}"]
    code, _, err = run_here("train.py", *flags, f"--teacher={teacher}", f"--out_dir={out}")
    assert code == 0, err
    lines = (out / "log.jsonl").read_text(encoding="utf-8").splitlines()
    steps = [line for line in map(json.loads, lines) if "loss" in line]
    assert steps[0]["loss"] == pytest.approx((steps[0]["text"] + steps[0]["kl"]) / 2, abs=1e-4)
    assert steps[-1]["text"] < steps[0]["text"]
    val = [line["val_loss"] for line in map(json.loads, lines) if "val_loss" in line]
    assert val[0] == pytest.approx(steps[0]["text"], abs=0.2) and val[-1] < val[0]
    meta = checkpoint.read_meta(out)
    assert meta["teacher_hash"] == checkpoint.weights_hash(teacher)


def test_what_cannot_be(tmp_path, texts, teacher, byte_tokenizer):
    flags = [*TINY.split(), f"--dataset={texts}", f"--out_dir={tmp_path / 'out'}"]
    own = [*flags, f"--tokenizer={byte_tokenizer.name}"]
    code, _, err = run_here("train.py", *own)
    assert code == 2 and "teacher=none" in err.lower() and "stage=distill learns" in err
    code, _, err = run_here("train.py", *own, f"--teacher={tmp_path / 'nowhere'}")
    assert code == 2 and "nowhere" in err and err.count("\n") == 1
    other = tmp_path / "other"
    from minigpt.tokenizer.tokenizer import load_tokenizer

    zh = load_tokenizer("zh")
    save_run(other, GPT(GPTConfig(zh.padded_vocab_size, 32, n_layer=1, n_head=1, n_embd=8)), zh)
    code, _, err = run_here("train.py", *own, f"--teacher={other}")
    assert code == 2 and "different vocabularies cannot be compared" in err
    code, _, err = run_here("train.py", *own, "--stage=lm", f"--teacher={teacher}")
    assert code == 2 and "expected --stage=distill with it" in err
