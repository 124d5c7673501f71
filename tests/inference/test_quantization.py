"""int8, kernels and memory layout: numbers worked by hand, neighbours, PyTorch's own products."""

import shutil
import subprocess
import sys

import pytest
import torch
import torch.nn as nn
from conftest import ROOT
from tiny_run import save_run

from minigpt.common.errors import UserError
from minigpt.evaluation.quantization_cost import load_for_generation
from minigpt.inference import backends
from minigpt.inference.backends import Choice
from minigpt.inference.engine import Engine, Request
from minigpt.inference.kernels import build
from minigpt.inference.quantization import Int4Linear, Int8Linear, KernelLinear


def linear_of(weight, bias=None):
    linear = nn.Linear(len(weight[0]), len(weight), bias=bias is not None)
    with torch.no_grad():
        linear.weight.copy_(torch.tensor(weight))
        if bias is not None:
            linear.bias.copy_(torch.tensor(bias))
    return linear


def test_int8_by_hand():
    """127ths: the rows' largest are 127 and 254, so ŵ is exact; of x, 1 of 254 is half a step."""
    linear = linear_of([[127.0, -1.0], [254.0, 6.0]], [0.5, 0.0])
    y = Int8Linear(linear)(torch.tensor([[254.0, 4.0], [0.0, 0.0]]))
    # x̂ = (127, 2), s_x = 2; ŵ = (127, -1), (127, 3), s_w = 1, 2
    assert y.tolist() == [[2 * (127 * 127 - 2) + 0.5, 2 * 2 * (127 * 127 + 6)], [0.5, 0.0]]
    coarse = Int8Linear(linear)(torch.tensor([[254.0, 0.9]]))  # 0.45 steps: nothing is left of it
    assert coarse.tolist() == [[2 * 127 * 127 + 0.5, 4 * 127 * 127]]


def test_int8_is_near_and_of_any_shape():
    torch.manual_seed(0)
    linear = nn.Linear(96, 40)
    x = torch.randn(2, 3, 96)
    with torch.no_grad():
        found, wanted = Int8Linear(linear)(x), linear(x)
    assert found.shape == wanted.shape
    assert float((found - wanted).norm() / wanted.norm()) < 0.02


def test_neighbours_do_not_change_a_row():
    torch.manual_seed(0)
    linear, x = Int8Linear(nn.Linear(64, 48)), torch.randn(8, 64)
    loud = torch.cat([x[:1], 1000 * torch.randn(7, 64)])  # a scale for all would drown the first
    assert torch.equal(linear(x)[0], linear(loud)[0])
    assert torch.equal(linear(x)[0], linear(x[:1])[0])


@pytest.fixture(scope="module")
def kernels():
    if not shutil.which("g++"):
        pytest.skip("the kernels need a C++ compiler: apt-get install g++")
    return build()


@pytest.mark.parametrize("bias", [False, True])
def test_kernels_equal_torch(kernels, bias):
    torch.manual_seed(0)
    for n_in, n_out in ((1, 1), (7, 3), (96, 40), (768, 513)):
        linear = nn.Linear(n_in, n_out, bias=bias).requires_grad_(False)
        int8, by_kernel = Int8Linear(linear), Int8Linear(linear, kernels)
        for n in (1, 2, 3, 7, 8, 16, 17):
            x = 3 * torch.randn(n, n_in)
            close = dict(atol=1e-4, rtol=1e-5)
            torch.testing.assert_close(KernelLinear(linear, kernels)(x), linear(x), **close)
            # Whole numbers add up alike in any order; a bias may be added in one rounding, or two.
            torch.testing.assert_close(by_kernel(x), int8(x), atol=1e-6 if bias else 0, rtol=0)
            assert torch.equal(by_kernel(x[:1]), by_kernel(x)[:1])
    x = torch.randn(2, 3, 768)[:, :, ::2]  # rows that do not lie side by side
    linear = nn.Linear(384, 5, bias=False).requires_grad_(False)
    torch.testing.assert_close(KernelLinear(linear, kernels)(x), linear(x), **close)
    assert torch.equal(Int8Linear(linear, kernels)(x), Int8Linear(linear)(x))


def test_int4_by_hand(kernels):
    """Scales of 1 and 1/2 from the largest values, -8 and 4, so ŵ is exact but for 0.6 and -0.7."""
    weight = torch.zeros(2, 40)
    weight[0, :4] = torch.tensor([-8.0, 7.0, 0.6, 3.0])
    weight[1, 30:36] = torch.tensor([-4.0, 0.5, 1.0, 4.0, -0.7, 0.0])
    x = torch.zeros(2, 40)
    x[0, :4] = torch.tensor([1.0, 2.0, 4.0, 127.0])  # s_x = 1
    x[1, 30:36] = torch.tensor([254.0, 4.0, 2.0, -6.0, 8.0, 100.0])  # s_x = 2
    y = Int4Linear(linear_of(weight.tolist(), [0.5, 0.0]), kernels)(x)
    # ŵ = -8, 7, 1, 3; and of two groups -4, 0.5 and, with the scale -1/2, 1, 4, -0.5, 0
    first = -8 + 2 * 7 + 4 * 1 + 127 * 3 + 0.5
    second = 254 * -4 + 4 * 0.5 + 2 * 1 - 6 * 4 + 8 * -0.5
    assert y.tolist() == [[first, 0.0], [0.5, second]]


@pytest.mark.parametrize("bias", [False, True])
def test_int4_by_kernels(kernels, bias):
    """Near the float32 layer, for any shape; a row's bits do not depend on the other rows."""
    torch.manual_seed(0)
    for n_in, n_out in ((1, 1), (33, 3), (96, 40), (768, 513)):
        linear = nn.Linear(n_in, n_out, bias=bias).requires_grad_(False)
        layer = Int4Linear(linear, kernels)
        x = torch.randn(17, n_in) * torch.logspace(-3, 3, 17)[:, None]
        y = layer(x)
        if n_in > 1:
            bias_free = y - linear.bias if bias else y
            wanted = x @ linear.weight.T
            assert float((bias_free - wanted).norm() / wanted.norm()) < 0.15
        for n in range(17):
            assert torch.equal(layer(x[n : n + 1])[0], y[n])
            assert torch.equal(layer(x[: n + 1]), y[: n + 1])
    assert layer(x.view(1, 17, 768)).shape == (1, 17, 513)


def test_a_killed_build_blocks_nobody(kernels):
    """PyTorch waits forever for a lock file that a killed build left behind."""
    code = (
        "from pathlib import Path; from torch.utils import cpp_extension\n"
        "from minigpt.inference.kernels import _name, build\n"
        "folder = Path(cpp_extension._get_build_directory(_name(), verbose=False))\n"
        "(folder / 'lock').touch(); build(); assert not (folder / 'lock').exists()"
    )
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, timeout=120)


SHAPES = {
    "default": {},
    "grouped": dict(n_kv_head=2, qkv_bias=True, rope_scaling=dict(rope_type="linear", factor=2.0)),
    "gpt2": dict(position="learned", norm="layernorm", mlp="gelu", qk_norm=False, bias=True),
    "mixed": dict(norm="layernorm", bias=True, mlp_bias=False, n_head=3, head_dim=10, n_embd=30),
}


@pytest.mark.parametrize("shape", SHAPES)
def test_a_step_in_int4_equals_its_layers(kernels, tiny_model, shape):
    """The step of all blocks in one call, and the same layers called by PyTorch's modules."""
    by_layers, by_step = tiny_model(**SHAPES[shape]), tiny_model(**SHAPES[shape])
    choice = Choice("int4", "kernels", kernels)
    backends.convert_linear(by_layers, choice)
    backends.convert(by_step, choice)
    requests = [Request([3 + i, 4] + [5] * i, 20, temperature=0) for i in range(5)]
    expected, found, alone = (
        [ticket.ids for ticket in Engine(model, n_slots=n).generate(requests)]
        for model, n in ((by_layers, 3), (by_step, 3), (by_step, 1))
    )
    assert found == expected and alone == expected


@pytest.mark.parametrize("dtype", ["float32", "int8"])
@pytest.mark.parametrize("shape", SHAPES)
def test_a_step_by_kernels_equals_torch(kernels, tiny_model, shape, dtype):
    """Texts that outgrow the block, beside others and alone; without kernels the same."""
    by_torch, by_kernels = tiny_model(**SHAPES[shape]), tiny_model(**SHAPES[shape])
    backends.convert(by_torch, Choice(dtype, "torch" if dtype == "float32" else "int_mm"))
    backends.convert(by_kernels, Choice(dtype, "kernels", kernels))
    requests = [Request([3 + i, 4] + [5] * i, 20, temperature=0, logprobs=1) for i in range(5)]
    expected, found, alone = (
        Engine(model, n_slots=n).generate(requests)
        for model, n in ((by_torch, 3), (by_kernels, 3), (by_kernels, 1))
    )
    assert [ticket.ids for ticket in found] == [ticket.ids for ticket in expected]
    # The prompts are padded to one length, and so are read in other batches: the sixth digit.
    for tickets in zip(expected, found, alone, strict=True):
        logprobs = [[token.logprob for token in ticket.tokens] for ticket in tickets]
        torch.testing.assert_close(*map(torch.tensor, logprobs[:2]), atol=1e-3, rtol=1e-3)
        torch.testing.assert_close(*map(torch.tensor, logprobs[1:]), atol=1e-3, rtol=1e-3)


@pytest.fixture
def run(tmp_path, byte_tokenizer, tiny_model):
    """The folder of a saved run."""
    model = tiny_model(padded_vocab_size=320, block_size=32, tie_embeddings=False, n_kv_head=2)
    return save_run(tmp_path / "run", model, byte_tokenizer)


def test_a_run_written_by_kernels(kernels, run):
    request = Request([3, 4, 5], 12, temperature=0, logprobs=1)
    for dtype in ("float32", "int8"):
        slow = "int_mm" if dtype == "int8" else "false"
        plain, fast = (load_for_generation(run, "cpu", dtype, name) for name in (slow, True))
        one, two = (Engine(each.model, 261).generate([request])[0] for each in (plain, fast))
        assert one.ids == two.ids
        for ours, theirs in zip(one.tokens, two.tokens, strict=True):
            assert ours.logprob == pytest.approx(
                theirs.logprob, abs=1e-4 if dtype == "float32" else 0.05
            )


def test_kernels_that_cannot_be_built(run, monkeypatch):
    build.cache_clear()
    monkeypatch.setattr("minigpt.inference.kernels.SOURCE", "nowhere/kernels.cpp")
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(UserError, match=r"kernels=true: .*pip install ninja"):
        load_for_generation(run, "cpu", "float32", kernels=True)
    build.cache_clear()


def test_the_layout_changes_no_value(tiny_model):
    model = tiny_model(n_kv_head=2)
    x = torch.randint(64, (2, 16), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        before = model.logits(model(x))
        backends.convert(model, Choice("float32", "torch"))
        torch.testing.assert_close(model.logits(model(x)), before, atol=1e-5, rtol=1e-5)
    assert model.blocks[0].mlp.fc.weight.stride(0) == 1
    assert model.lm_head.weight is model.wte.weight  # still tied
