"""The objective against PyTorch's own cross-entropy: sums, counts, both gradients."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from data_utils import IS_START, TARGET, Batch
from minigpt.training import losses as objectives
from minigpt.training.losses import LinearCrossEntropy, next_token


def example(n, c=12, v=37, seed=0, dtype=torch.float32):
    """h (n, c), weight (v, c) and targets (n,), the first two wanting gradients."""
    generator = torch.Generator().manual_seed(seed)
    h = torch.randn(n, c, generator=generator, dtype=dtype).requires_grad_()
    weight = torch.randn(v, c, generator=generator, dtype=dtype).requires_grad_()
    return h, weight, torch.randint(v, (n,), generator=generator)


def reference(h, weight, targets, factor=1.0):
    """PyTorch's sum, and the gradients of factor × sum by h and weight."""
    h, weight = h.detach().requires_grad_(), weight.detach().requires_grad_()
    loss = F.cross_entropy(h @ weight.T, targets, reduction="sum")
    return loss.detach(), *torch.autograd.grad(factor * loss, (h, weight))


@given(n=st.integers(1, 20), rows=st.integers(1, 25), seed=st.integers(0, 99))
@settings(max_examples=30)
def test_equals_cross_entropy_in_any_number_of_chunks(n, rows, seed):
    h, weight, targets = example(n, seed=seed)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(objectives, "FEWEST_ROWS", 1)
        patch.setattr(objectives, "CPU_CHUNK", rows * 37 + 5)  # `rows` rows of logits at once
        loss = LinearCrossEntropy.apply(h, weight, targets)
        (0.3 * loss).backward()
    wanted, grad_h, grad_weight = reference(h, weight, targets, 0.3)
    torch.testing.assert_close(loss.detach(), wanted)
    torch.testing.assert_close(h.grad, grad_h, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(weight.grad, grad_weight, atol=1e-5, rtol=1e-4)


def test_no_chunk_holds_more_logits_than_it_may(monkeypatch):
    """A vocabulary wider than a chunk still works, a row at a time."""
    monkeypatch.setattr(objectives, "FEWEST_ROWS", 1)
    monkeypatch.setattr(objectives, "CPU_CHUNK", 10)
    h, weight, targets = example(4)
    loss = LinearCrossEntropy.apply(h, weight, targets)
    torch.testing.assert_close(loss.detach(), reference(h, weight, targets)[0])


def test_large_logits_stay_finite():
    h, weight, targets = example(6)
    h, weight = h.detach() * 1e3, weight.detach() * 1e3
    loss = LinearCrossEntropy.apply(h, weight, targets)
    assert loss.isfinite()
    torch.testing.assert_close(loss, F.cross_entropy(h @ weight.T, targets, reduction="sum"))


def test_nothing_to_learn_sums_to_zero():
    h, weight, targets = example(0)
    loss = LinearCrossEntropy.apply(h, weight, targets)
    loss.backward()
    assert loss == 0 and h.grad.shape == (0, 12) and weight.grad.abs().max() == 0


def test_a_frozen_weight_gets_no_gradient_and_h_still_its_own():
    h, weight, targets = example(9)
    _, grad_h, grad_weight = reference(h, weight, targets)
    weight.requires_grad_(False)
    LinearCrossEntropy.apply(h, weight, targets).backward()
    torch.testing.assert_close(h.grad, grad_h)
    assert weight.grad is None
    weight.requires_grad_(True)
    LinearCrossEntropy.apply(h.detach(), weight, targets).backward()
    torch.testing.assert_close(weight.grad, grad_weight)


@pytest.mark.parametrize("h_dtype", [torch.float32, torch.bfloat16])
def test_under_autocast_as_a_linear_layer_under_autocast(h_dtype):
    h, weight, targets = example(16, seed=2)
    h = h.detach().to(h_dtype).requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        loss = LinearCrossEntropy.apply(h, weight, targets)
        logits = F.linear(h, weight)
        assert logits.dtype == torch.bfloat16
        wanted = F.cross_entropy(logits.float(), targets, reduction="sum")
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, wanted, rtol=1e-3, atol=0)
    grads = torch.autograd.grad(loss, (h, weight))
    wanted_grads = torch.autograd.grad(wanted, (h, weight))
    for grad, wanted_grad in zip(grads, wanted_grads, strict=True):
        assert grad.dtype == wanted_grad.dtype
        torch.testing.assert_close(grad, wanted_grad, rtol=0.03, atol=0.03)


# -- next_token over batches -----------------------------------------------------------------------


def a_batch(tokens, mask, isolated=True):
    return Batch.of(torch.as_tensor(tokens).numpy(), torch.as_tensor(mask).numpy(), isolated)


def some_rows(n=6, length=12, n_rows=64, seed=0):
    """Tokens and masks (n, length): rows of two segments each, half of their tokens are targets."""
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.randint(n_rows, (n, length), generator=generator)
    mask = (torch.rand(n, length, generator=generator) < 0.5).int() * TARGET
    mask[:, 0] = IS_START
    mask[:, 5] = IS_START
    return tokens, mask.to(torch.uint8)


def test_next_token_by_hand(tiny_model):
    """Against a plain loop over segments: all logits, PyTorch's cross-entropy, a mask."""
    model = tiny_model()
    tokens, mask = some_rows()
    total, count = 0.0, 0
    with torch.no_grad():
        for row, bits in zip(tokens, mask, strict=True):
            for piece, marks in ((row[:5], bits[:5]), (row[5:], bits[5:])):
                logits = model.logits(model(piece[None]))[0]
                losses = F.cross_entropy(logits[:-1], piece[1:], reduction="none")
                total += float(losses[marks[1:] == TARGET].sum())
                count += int((marks[1:] == TARGET).sum())
    loss, found = next_token(model, a_batch(tokens, mask))
    assert found == count
    assert loss.item() == pytest.approx(total, rel=1e-5)


def gradient(model, batches):
    """Mean loss over all targets of the batches, and its gradient, as train.py takes it."""
    model.zero_grad()
    count = sum(batch.count for batch in batches)
    total = 0.0
    for batch in batches:
        loss = next_token(model, batch)[0] / count
        loss.backward()
        total += loss.item()
    return total, [weight.grad.clone() for weight in model.parameters()]


def assert_same(one, two):
    assert one[0] == pytest.approx(two[0], rel=1e-5)
    for a, b in zip(one[1], two[1], strict=True):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-4)


def test_padded_target_indices_do_not_count(tiny_model):
    model, batch = tiny_model(), a_batch(*some_rows())
    padded = batch.padded(targets=batch.count + 5)
    assert len(padded.target_indices) > batch.count
    assert_same(gradient(model, [padded]), gradient(model, [batch]))


def test_accumulation_and_padding_change_nothing(tiny_model):
    model = tiny_model()
    tokens, mask = some_rows()
    mask[:3, 6:] = 0  # so that micro-batches differ in how much they have to learn
    whole = gradient(model, [a_batch(tokens, mask)])
    for size in (1, 2, 4):
        parts = zip(tokens.split(size), mask.split(size), strict=True)
        assert_same(gradient(model, [a_batch(*part) for part in parts]), whole)
    # The same rows with padding at the end, a segment of its own that is never a target.
    padding, marks = torch.zeros(6, 4, dtype=torch.int64), torch.zeros(6, 4, dtype=torch.uint8)
    marks[:, 0] = IS_START
    padded = a_batch(torch.cat((tokens, padding), 1), torch.cat((mask, marks), 1))
    assert_same(gradient(model, [padded]), whole)
    # One segment a row instead of two: the same segments, so the same loss.
    split_tokens, split_mask = torch.zeros(12, 12, dtype=torch.int64), torch.zeros(12, 12)
    split_tokens[:6, :5], split_tokens[6:, :7] = tokens[:, :5], tokens[:, 5:]
    split_mask[:6, :5], split_mask[6:, :7] = mask[:, :5], mask[:, 5:]
    apart = a_batch(split_tokens, split_mask.to(torch.uint8), isolated=False)
    assert_same(gradient(model, [apart]), whole)


def test_evaluating_takes_no_gradient(tiny_model, monkeypatch):
    """Under no_grad the output layer's gradient, as costly as the forward pass, is not computed."""
    model = tiny_model()
    batch = a_batch(*some_rows())
    made = []
    zeros_like = torch.zeros_like
    monkeypatch.setattr(torch, "zeros_like", lambda *a, **k: made.append(a) or zeros_like(*a, **k))
    with torch.no_grad():
        next_token(model, batch)
    assert not made
    loss, _ = next_token(model, batch)
    loss.backward()
    assert made  # and in training it is
