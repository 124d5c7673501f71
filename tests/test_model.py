"""The network against Hugging Face's, and against itself: packed = padded, cached = whole."""

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

import model as model_module
from data_utils import IS_START, Batch
from minigpt.inference.kv_cache import KVCache
from minigpt.interop.hf_import import from_hf
from model import GPT, GPTConfig, has_varlen_attention, varlen_attention_agrees


def randomized(reference, seed=0):
    """A Hugging Face model in eval mode with every tensor at random, norms and biases too."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for weight in reference.parameters():
            weight.copy_(torch.randn(weight.shape, generator=generator) * 0.3)
    return reference.eval()


def assert_same_logits(model, reference, n_tokens, block_size):
    """And the same gradients of all weights, for random gradients of the logits."""
    generator = torch.Generator().manual_seed(1)
    x = torch.randint(n_tokens, (3, block_size), generator=generator)
    ours, theirs = model.logits(model(x)), reference(x).logits
    with torch.no_grad():  # generation: RMSNorm takes another path
        no_grad = model.logits(model(x))
    assert theirs.std() > 0.1  # the compared numbers differ from one another
    torch.testing.assert_close(no_grad, theirs.detach(), atol=1e-4, rtol=0)
    torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=0)
    grad = torch.randn(theirs.shape, generator=generator) / theirs.numel()
    ours.backward(grad)
    theirs.backward(grad)
    gradients = {name: weight.grad for name, weight in reference.state_dict(keep_vars=True).items()}
    expected = from_hf(reference.config.to_dict(), gradients)  # with our names and layout
    for (name, weight), gradient in zip(
        model.named_parameters(), expected.parameters(), strict=True
    ):
        torch.testing.assert_close(weight.grad, gradient, atol=1e-6, rtol=1e-3, msg=name)


@pytest.mark.parametrize("tied", [True, False])
def test_equals_gpt2_of_transformers(tied):
    from transformers import GPT2Config, GPT2LMHeadModel

    shape = dict(n_layer=3, n_head=4, n_embd=48)
    reference = randomized(
        GPT2LMHeadModel(
            GPT2Config(vocab_size=70, n_positions=24, tie_word_embeddings=tied, **shape)
        )
    )
    model = from_hf(reference.config.to_dict(), reference.state_dict())
    config = GPTConfig(
        padded_vocab_size=70,
        block_size=24,
        position="learned",
        norm="layernorm",
        mlp="gelu",
        qk_norm=False,
        bias=True,
        norm_eps=1e-5,
        tie_embeddings=tied,
        **shape,
    )
    assert model.config == config
    assert_same_logits(model, reference, 70, 24)


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize(("n_kv_head", "theta"), [(2, 10000.0), (1, 500.0), (6, 1e6)])
def test_equals_qwen3_of_transformers(tied, n_kv_head, theta):
    from transformers import Qwen3Config, Qwen3ForCausalLM

    reference = Qwen3ForCausalLM(
        Qwen3Config(
            vocab_size=70,
            hidden_size=48,
            num_hidden_layers=3,
            num_attention_heads=6,
            num_key_value_heads=n_kv_head,
            head_dim=12,  # not 48 / 6
            intermediate_size=80,
            max_position_embeddings=24,
            rms_norm_eps=1e-6,
            rope_parameters={"rope_type": "default", "rope_theta": theta},
            tie_word_embeddings=tied,
        )
    )
    model = from_hf(reference.config.to_dict(), randomized(reference).state_dict())
    config = GPTConfig(
        padded_vocab_size=70,
        block_size=24,
        n_layer=3,
        n_head=6,
        n_kv_head=n_kv_head,
        n_embd=48,
        head_dim=12,
        n_hidden=80,
        rope_theta=theta,
        tie_embeddings=tied,
    )
    assert model.config == config
    assert_same_logits(model, reference, 70, 24)


# -- sizes -----------------------------------------------------------------------------------------

CLASSIC = dict(position="learned", norm="layernorm", mlp="gelu", qk_norm=False, norm_eps=1e-5)


def test_the_reports_count():
    """123.59M: GPT-2's shape, 50,304 rows, no biases, positions not counted."""
    with torch.device("meta"):
        model = GPT(GPTConfig(padded_vocab_size=50304, block_size=512, **CLASSIC))
    by_hand = 50304 * 768 + 12 * (4 + 8) * 768**2 + (2 * 12 + 1) * 768
    assert model.n_params(positions=False) == by_hand == 123_587_328
    assert model.n_params() == by_hand + 512 * 768


def test_the_modern_shape_weighs_about_the_same():
    config = GPTConfig(padded_vocab_size=50304)
    assert config.n_hidden == 2048 and (config.n_kv_head, config.head_dim) == (12, 64)
    with torch.device("meta"):
        model = GPT(config)
    assert model.n_params() == model.n_params(positions=False)
    norms = (2 * 12 + 1) * 768 + 12 * 2 * 64
    assert model.n_params() == 50304 * 768 + 12 * (4 + 8) * 768**2 + norms


def test_flops_by_hand(tiny_model):
    model = tiny_model(
        padded_vocab_size=64, block_size=16, n_layer=2, n_embd=32, head_dim=8, n_hidden=64
    )
    matrices = 2 * (32 * 96 + 32 * 32 + 32 * 128 + 64 * 32) + 64 * 32
    assert model.flops_per_token() == 6 * matrices + 12 * 2 * 32 * 16
    assert model.flops_per_token(0.25) == model.flops_per_token() - 0.75 * 6 * 64 * 32


def test_impossible_shapes_are_named():
    assert GPTConfig(padded_vocab_size=64).problems() == []
    (line,) = GPTConfig(padded_vocab_size=64, n_head=12, n_kv_head=5).problems()
    assert "n_kv_head=5" in line and "n_head=12" in line
    (line,) = GPTConfig(padded_vocab_size=64, head_dim=5).problems()
    assert "head_dim=5" in line and "even" in line
    for name in ("n_layer", "n_head", "n_embd", "block_size", "n_hidden"):
        found = GPTConfig(padded_vocab_size=64, **{name: 0}).problems()
        assert any(f"{name}=0" in line for line in found), name
    assert len(GPTConfig(padded_vocab_size=64, n_layer=-1, block_size=0).problems()) == 2


# -- what attends to what --------------------------------------------------------------------------

SHAPES = {
    "modern": dict(n_kv_head=2, head_dim=12),
    "classic": dict(bias=True, **CLASSIC),
    "untied": dict(tie_embeddings=False, qk_norm=False),
}


@pytest.fixture(params=SHAPES, scope="module")
def model(request, tiny_model):
    return tiny_model(**SHAPES[request.param])


def read_out(model, *words, **keywords):
    with torch.no_grad():
        return model.logits(model(*words, **keywords))


@given(cut=st.integers(1, 15), seed=st.integers(0, 99))
@settings(max_examples=20)
def test_a_later_token_changes_nothing_before_it(model, cut, seed):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randint(64, (2, 16), generator=generator)
    changed = x.clone()
    changed[:, cut:] = (x[:, cut:] + 1 + torch.randint(62, (2, 16 - cut), generator=generator)) % 64
    before, after = read_out(model, x), read_out(model, changed)
    torch.testing.assert_close(before[:, :cut], after[:, :cut], atol=1e-6, rtol=0)
    assert (before[:, cut:] - after[:, cut:]).abs().amax(-1).min() > 1e-3


@given(lengths=st.lists(st.integers(1, 8), min_size=1, max_size=6), seed=st.integers(0, 99))
@settings(max_examples=20)
def test_packed_equals_padded_segment_by_segment(model, lengths, seed):
    while sum(lengths) > 16:
        lengths.pop()
    x = torch.randint(64, (1, sum(lengths)), generator=torch.Generator().manual_seed(seed))
    numbers = torch.arange(len(lengths)).repeat_interleave(torch.tensor(lengths))
    positions = torch.cat([torch.arange(length) for length in lengths])
    packed = read_out(model, x, numbers[None], positions[None])[0]
    for segment, logits in zip(x[0].split(lengths), packed.split(lengths), strict=True):
        padded = torch.zeros(1, 16, dtype=torch.int64)
        padded[0, : len(segment)] = segment
        alone = read_out(model, padded)[0, : len(segment)]
        torch.testing.assert_close(logits, alone, atol=1e-5, rtol=1e-5)


def varlen_reference(q, k, v, cu_q, cu_k, max_q, max_k, window_size, enable_gqa):
    """What torch.nn.attention.varlen.varlen_attn computes, which runs on CUDA only: attention of
    each sequence in q, k and v (tokens, heads, hs) by itself, causal if window_size says so."""
    assert cu_q is cu_k and max_q == max_k
    out = torch.empty_like(q)
    causal = {(-1, 0): True, (-1, -1): False}[window_size]
    for start, end in itertools.pairwise(cu_q.tolist()):
        part = [x[start:end].transpose(0, 1) for x in (q, k, v)]
        if start < end:
            y = F.scaled_dot_product_attention(*part, is_causal=causal, enable_gqa=enable_gqa)
            out[start:end] = y.transpose(0, 1)
    return out


@given(is_start=st.lists(st.booleans(), min_size=32, max_size=32), seed=st.integers(0, 99))
@settings(max_examples=10)
def test_varlen_attention_equals_masked_attention(model, is_start, seed):
    x = torch.randint(64, (2, 16), generator=torch.Generator().manual_seed(seed))
    mask = np.array(is_start, np.uint8).reshape(2, 16) * IS_START
    batch = Batch.of(x.numpy(), mask, isolated=True).padded(8, 8)
    masked = read_out(model, x, batch.segment_ids, batch.positions)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("torch.nn.attention.varlen.varlen_attn", varlen_reference)
        patch.setattr(model, "use_varlen_attention", True)
        # segment_ids are not read: here they would hide what the kernel does.
        fast = read_out(model, x, 0 * batch.segment_ids, batch.positions, batch.cu_seqlens)
    torch.testing.assert_close(fast, masked, atol=1e-5, rtol=1e-5)


def test_varlen_attention_is_not_used_where_it_cannot_be(tiny_model, monkeypatch):
    """The kernel has no dropout, and cannot read a cache; on this machine it does not run."""
    monkeypatch.setattr("torch.nn.attention.varlen.varlen_attn", None)  # a call fails
    model = tiny_model(dropout=0.5).train()
    model.use_varlen_attention = True
    x, cu_seqlens = torch.zeros(1, 16, dtype=torch.int64), torch.tensor([0, 16])
    read_out(model, x, torch.ones_like(x), None, cu_seqlens)
    rows = KVCache(model.eval().config, 1).rows(slice(0, 1), 16)
    read_out(model, x, None, torch.arange(16)[None], cu_seqlens, rows)
    with pytest.raises(TypeError):
        read_out(model, x, None, None, cu_seqlens)
    assert not has_varlen_attention("cpu", torch.bfloat16, 64)
    assert not has_varlen_attention("cuda", torch.float32, 64)


def not_causal(*words, window_size, **rest):
    return varlen_reference(*words, window_size=(-1, -1), **rest)


def loses_a_gradient(q, k, v, *words, **rest):
    return varlen_reference(q, k, v.detach() + 0 * v, *words, **rest)


def missing(*words, **rest):
    raise NotImplementedError


@pytest.mark.parametrize(
    ("kernel", "agrees"),
    [(varlen_reference, True), (not_causal, False), (loses_a_gradient, False), (missing, False)],
)
def test_the_self_test_of_varlen_attention(monkeypatch, kernel, agrees):
    monkeypatch.setattr("torch.nn.attention.varlen.varlen_attn", kernel)
    assert varlen_attention_agrees("cpu", torch.float32, 8) == agrees


@given(
    steps=st.lists(st.integers(1, 6), min_size=1, max_size=8),
    seed=st.integers(0, 99),
)
@settings(max_examples=20)
def test_cached_equals_whole(model, steps, seed):
    """Tokens fed in steps of any size, in slots 1 and 2 of 4, over random old contents."""
    while sum(steps) > 16:
        steps.pop()
    x = torch.randint(64, (2, sum(steps)), generator=torch.Generator().manual_seed(seed))
    cache = KVCache(model.config, n_slots=4)
    cache.k.normal_(generator=torch.Generator().manual_seed(seed))
    cache.v.normal_(generator=torch.Generator().manual_seed(seed))
    others = cache.k[:, [0, 3]].clone()
    parts, place = [], 0
    for part in x.split(steps, dim=1):
        positions = torch.arange(place, place + part.size(1)).expand(2, -1)
        place += part.size(1)
        rows = cache.rows(slice(1, 3), place)
        parts.append(read_out(model, part, positions=positions, cache=rows))
    torch.testing.assert_close(torch.cat(parts, 1), read_out(model, x), atol=1e-5, rtol=1e-5)
    assert torch.equal(cache.k[:, [0, 3]], others)  # other slots are unchanged


def test_rows_of_different_lengths_share_a_step(model):
    """One text is 3 tokens long, the other 9; both take their next token in one forward."""
    x = torch.randint(64, (2, 10), generator=torch.Generator().manual_seed(5))
    cache = KVCache(model.config, n_slots=2)
    for slot, length in ((0, 3), (1, 9)):
        rows, positions = cache.rows(slice(slot, slot + 1), length), torch.arange(length)[None]
        read_out(model, x[slot, None, :length], positions=positions, cache=rows)
    last = torch.stack((x[0, 3:4], x[1, 9:10]))
    logits = read_out(
        model, last, positions=torch.tensor([[3], [9]]), cache=cache.rows(slice(0, 2), 10)
    )
    for slot, length in ((0, 4), (1, 10)):
        whole = read_out(model, x[slot, None, :length])[0, -1]
        torch.testing.assert_close(logits[slot, 0], whole, atol=1e-5, rtol=1e-5)
    before = cache.k[:, 0].clone()
    cache.move(1, 0, 7)
    for part in (cache.k, cache.v):
        assert torch.equal(part[:, 0, :, :7], part[:, 1, :, :7])
    assert torch.equal(cache.k[:, 0, :, 7:], before[:, :, 7:])


# -- the start -------------------------------------------------------------------------------------


def test_the_start_follows_the_seed_and_is_small():
    config = dict(
        padded_vocab_size=320, block_size=32, n_layer=8, n_head=4, n_embd=64, bias=True, **CLASSIC
    )
    torch.manual_seed(3)
    one = GPT(GPTConfig(**config))
    torch.manual_seed(3)
    two = GPT(GPTConfig(**config))
    for a, b in zip(one.parameters(), two.parameters(), strict=True):
        assert torch.equal(a, b)
    assert abs(one.wte.weight.std() - 0.02) < 0.001
    # 0.02 / sqrt(2 · 8 parts in the residual stream) = 0.005
    assert abs(one.blocks[3].mlp.proj.weight.std() - 0.005) < 0.0005
    assert one.blocks[0].mlp.fc.bias.abs().max() == 0
    x, y = torch.randint(320, (2, 4, 32))
    loss = F.cross_entropy(read_out(one.eval(), x).flatten(0, 1), y.flatten())
    assert abs(loss - math.log(320)) < 0.1  # it predicts all tokens equally


def test_dropout_acts_in_training_alone(tiny_model):
    model = tiny_model(dropout=0.5)
    x = torch.zeros(1, 16, dtype=torch.int64)
    assert torch.equal(read_out(model, x), read_out(model, x))
    model.train()
    assert not torch.equal(read_out(model, x), read_out(model, x))
    model.eval()


def stored_by(module, x):
    """(output, bytes that it stores for the backward pass, weights excluded)."""
    kept = {}

    def keep(tensor):
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        y = module(x)
    weights = {weight.untyped_storage().data_ptr() for weight in module.parameters()}
    return y, sum(size for place, size in kept.items() if place not in weights)


@given(shape=st.lists(st.integers(1, 6), min_size=2, max_size=4), seed=st.integers(0, 99))
@settings(max_examples=20)
def test_rmsnorm_as_pytorch_has_it(shape, seed):
    generator = torch.Generator().manual_seed(seed)
    ours, theirs = model_module.RMSNorm(shape[-1], 1e-3), nn.RMSNorm(shape[-1], 1e-3)
    with torch.no_grad():
        for norm in (ours, theirs):
            norm.weight.copy_(torch.linspace(-1, 2, shape[-1]))
    x, worth = torch.randn(2, *shape, generator=generator)
    found = []
    for norm in (ours, theirs):
        at = x.clone().requires_grad_()
        y = norm(at)
        (y * worth).sum().backward()
        found.append((y, at.grad, norm.weight.grad))
    for own, expected in zip(*found, strict=True):
        torch.testing.assert_close(own, expected, atol=1e-5, rtol=1e-4)


def test_rmsnorm_stores_its_input_only_and_respects_frozen_weights():
    norm, x = model_module.RMSNorm(8, 1e-6), torch.randn(2, 5, 8)
    y, stored = stored_by(norm, x)
    assert stored == 4 * (x.numel() + 2 * 5)
    y.sum().backward()
    assert norm.weight.grad is not None and x.grad is None
    norm.zero_grad()
    norm.weight.requires_grad_(False)
    norm(x.requires_grad_()).square().sum().backward()
    assert norm.weight.grad is None and x.grad is not None


@pytest.mark.parametrize("shape", [CLASSIC, {}], ids=["gelu", "swiglu"])
def test_activation_checkpointing_of_an_mlp(tiny_model, shape, monkeypatch):
    monkeypatch.setattr(model_module, "ACTIVATION_CHECKPOINTING_FROM", 2 * 16)
    mlp = tiny_model(**shape).blocks[0].mlp
    x = torch.randn(2, 16, mlp.fc.in_features)
    y, stored = stored_by(mlp, x)
    # Stored: the input and the output of fc. The activations are recomputed.
    assert stored == 4 * (x.numel() + 2 * 16 * mlp.fc.out_features)
    y.square().sum().backward()
    lean = [weight.grad.clone() for weight in mlp.parameters()]
    mlp.zero_grad()
    mlp.activate_and_project(mlp.fc(x)).square().sum().backward()
    for gradient, weight in zip(lean, mlp.parameters(), strict=True):
        assert torch.equal(gradient, weight.grad)


@pytest.mark.parametrize("shape", [CLASSIC, {}, dict(dropout=0.2)], ids=["gpt2", "ours", "dropout"])
def test_activation_checkpointing_of_blocks(tiny_model, shape):
    """The same loss and gradients, with the same dropout; each block computes twice."""
    model = tiny_model(n_layer=3, **shape).train()
    x = torch.randint(0, 64, (2, 16), generator=torch.Generator().manual_seed(1))
    calls, found = [], []
    for block in model.blocks:
        block.register_forward_pre_hook(lambda *_: calls.append(model.activation_checkpointing))
    for model.activation_checkpointing in (False, True):
        torch.manual_seed(2)
        y = model(x)
        y.square().sum().backward()
        found.append((y.detach(), [weight.grad for weight in model.parameters()]))
        model.zero_grad()
    assert calls.count(False) == 3 and calls.count(True) == 6
    assert torch.equal(found[0][0], found[1][0])
    for a, b in zip(found[0][1], found[1][1], strict=True):
        assert a is b is None or torch.equal(a, b)


def test_rotary_angles_stay_float32():
    exact = GPT(GPTConfig(64, 512, n_layer=1, n_head=1, n_embd=8)).rotary
    model = GPT(GPTConfig(64, 512, n_layer=1, n_head=1, n_embd=8)).to(torch.bfloat16)
    assert model.wte.weight.dtype == torch.bfloat16
    # bfloat16 keeps 8 bits: its cosine of position 500 would be off in the third digit.
    assert torch.equal(model.rotary.cos, exact.cos) and torch.equal(model.rotary.sin, exact.sin)


def test_logits_of_half_precision_are_not_rounded_to_it(tiny_model):
    model = tiny_model().to(torch.bfloat16)
    h = 3 * torch.randn(5, 32, generator=torch.Generator().manual_seed(1)).bfloat16()
    logits = model.logits(h)
    exact = h.double() @ model.lm_head.weight.double().T
    assert logits.dtype == torch.float32
    torch.testing.assert_close(logits.double(), exact, rtol=1e-5, atol=1e-5)
    assert (exact.bfloat16().double() - exact).abs().max() > 1e-2  # what rounding would cost
