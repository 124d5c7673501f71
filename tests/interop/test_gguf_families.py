"""GGUF files of imported families as the package gguf reads them: architecture, RoPE, biases, and
the order of the rows that llama.cpp's "llama" expects."""

import pytest
import torch
from test_hf_export import SHAPES, tokenizer_called

from minigpt.common.errors import UserError
from minigpt.interop.gguf_export import neighbouring, write_gguf
from minigpt.models import checkpoint
from model import apply_rotary, rotary_frequencies

gguf = pytest.importorskip("gguf", reason="pip install gguf")


@pytest.fixture
def write(tmp_path, tiny_model):
    """write(**shape): (the model, a GGUFReader of its file)."""

    def make(architecture=None, **shape):
        tokenizer = tokenizer_called("llama-bpe")
        model = tiny_model(padded_vocab_size=tokenizer.padded_vocab_size, **shape)
        meta = {"prompt_format": "plain", "architecture": architecture}
        write_gguf(tmp_path / "it.gguf", checkpoint.Checkpoint(tmp_path, model, tokenizer, meta))
        return model, gguf.GGUFReader(tmp_path / "it.gguf")

    return make


def tensors_of(reader):
    return {tensor.name: torch.tensor(tensor.data).float() for tensor in reader.tensors}


def value(reader, key):
    return reader.get_field(key).contents()


def test_rows_of_llama_rotate_as_neighbours():
    """The scores of llama.cpp's rotation, of channels 2i and 2i + 1, with the rows as written are
    those of our rotation with the rows as they are."""
    torch.manual_seed(0)
    heads, hs, width, T = 3, 8, 5, 6
    x, (wq, wk) = torch.randn(T, width), torch.randn(2, heads * hs, width)
    angle = torch.arange(T)[:, None] * 0.7 ** torch.arange(hs // 2)  # (T, hs/2)
    cos, sin = angle.cos()[None, :, None], angle.sin()[None, :, None]

    def ours(weight):
        return apply_rotary((x @ weight.T).view(1, T, heads, hs), cos, sin)[0]

    def llama_cpp(weight):
        a, b = (x @ neighbouring(weight, hs).T).view(T, heads, hs // 2, 2).unbind(-1)
        c, s = angle.cos()[:, None], angle.sin()[:, None]
        return torch.stack((a * c - b * s, b * c + a * s), dim=-1).flatten(2)

    scores, theirs = (
        torch.einsum("tnh,snh->nts", rotated(wq), rotated(wk)) for rotated in (ours, llama_cpp)
    )
    torch.testing.assert_close(theirs, scores)
    bias = torch.arange(16.0)
    assert neighbouring(bias, 8)[:8].tolist() == [0, 4, 1, 5, 2, 6, 3, 7]


@pytest.mark.parametrize("architecture", ["LlamaForCausalLM", "MistralForCausalLM"])
def test_llama_and_mistral(write, architecture):
    model, reader = write(architecture, **SHAPES["llama"])
    assert value(reader, "general.architecture") == "llama"
    assert value(reader, "llama.rope.dimension_count") == 8
    assert value(reader, "llama.attention.head_count_kv") == 2
    tensors, attn = tensors_of(reader), model.blocks[1].attn.qkv
    q, k, v = attn.weight.detach().half().float().split(attn.sizes)
    assert torch.equal(tensors["blk.1.attn_q.weight"], neighbouring(q, 8))
    assert torch.equal(tensors["blk.1.attn_k.weight"], neighbouring(k, 8))
    assert torch.equal(tensors["blk.1.attn_v.weight"], v)


def test_llama_3_with_biases(write):
    model, reader = write(**SHAPES["llama, biases, long"])
    tensors, attn = tensors_of(reader), model.blocks[0].attn
    q, _, v = attn.qkv.bias.detach().split(attn.sizes)
    assert torch.equal(tensors["blk.0.attn_q.bias"], neighbouring(q, 8))
    assert torch.equal(tensors["blk.0.attn_v.bias"], v)
    assert torch.equal(tensors["blk.0.ffn_down.bias"], model.blocks[0].mlp.proj.bias.detach())
    plain = 500.0 ** -(torch.arange(4) / 4)
    factors = tensors["rope_freqs.weight"]  # llama.cpp divides each frequency by its factor
    torch.testing.assert_close(plain / factors, rotary_frequencies(model.config))
    assert 1 < factors[0] < 4 and factors[1:].tolist() == [4, 4, 4]


def test_qwen2_with_yarn(write):
    model, reader = write(**SHAPES["qwen2, long"])
    assert value(reader, "general.architecture") == "qwen2"
    assert value(reader, "qwen2.rope.scaling.type") == "yarn"
    assert value(reader, "qwen2.rope.scaling.factor") == 4
    assert value(reader, "qwen2.rope.scaling.original_context_length") == 16
    tensors, attn = tensors_of(reader), model.blocks[0].attn
    q = attn.qkv.bias.detach().split(attn.sizes)[0]
    assert torch.equal(tensors["blk.0.attn_q.bias"], q) and "blk.0.attn_output.bias" not in tensors


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        (dict(qkv_bias=True, bias=True, mlp_bias=False), "qwen3 has no biases in attention"),
        (dict(rope_scaling=SHAPES["llama, biases, long"]["rope_scaling"]), "of type llama3"),
        (
            dict(rope_scaling=SHAPES["qwen2, long"]["rope_scaling"] | {"attention_factor": 1.0}),
            "yarn with attention_factor=1; use --format=hf",
        ),
    ],
)
def test_what_llama_cpp_does_not_compute_is_refused(write, tmp_path, shape, message):
    with pytest.raises(UserError, match=message):
        write(**shape)
    assert not (tmp_path / "it.gguf").exists()
