"""The tensors of Hugging Face's models as ours, and the reverse.

    model = from_hf(config, tensors)              # config.json as a dict, {tensor name: tensor}
    config, tensors = to_hf(model)                # the reverse

The families and their config.json are in minigpt/interop/hf_config.py.
"""

import re
from dataclasses import replace

import torch

from minigpt.common.errors import UserError
from minigpt.interop.hf_config import family_of, read_config, write_config
from minigpt.models.shapes import few, model_shapes, size_problems
from model import GPT, FusedLinear

# Our modules by their names in Hugging Face's classes, without the prefix. Several of theirs are
# the rows of one FusedLinear.
GPT2_NAMES = {
    "wte": ["wte"],
    "wpe": ["wpe"],
    "blocks": "h",
    "attn_norm": ["ln_1"],
    "attn.qkv": ["attn.c_attn"],
    "attn.proj": ["attn.c_proj"],
    "mlp_norm": ["ln_2"],
    "mlp.fc": ["mlp.c_fc"],
    "mlp.proj": ["mlp.c_proj"],
    "norm": ["ln_f"],
    "lm_head": ["lm_head"],
}
LLAMA_NAMES = {
    "wte": ["embed_tokens"],
    "blocks": "layers",
    "attn_norm": ["input_layernorm"],
    "attn.qkv": ["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"],
    "attn.q_norm": ["self_attn.q_norm"],
    "attn.k_norm": ["self_attn.k_norm"],
    "attn.proj": ["self_attn.o_proj"],
    "mlp_norm": ["post_attention_layernorm"],
    "mlp.fc": ["mlp.gate_proj", "mlp.up_proj"],
    "mlp.proj": ["mlp.down_proj"],
    "norm": ["norm"],
    "lm_head": ["lm_head"],
}
# Tensors in the files that are not weights: causal masks, rotary frequencies.
BUFFERS = re.compile(r"(\battn\.(bias|masked_bias)|rotary_emb\.inv_freq)$")


def tensor_names(config):
    """{our name: [theirs]} of the parameters of a GPT with this config, without their prefix
    ("transformer." of GPT-2, "model." of the others)."""
    names = GPT2_NAMES if config.position == "learned" else LLAMA_NAMES
    found = {}
    for ours in model_shapes(config):
        path, _, kind = ours.rpartition(".")  # kind: weight or bias
        match = re.fullmatch(r"blocks\.(\d+)\.(.+)", path)
        block = f"{names['blocks']}.{match[1]}." if match else ""
        found[ours] = [f"{block}{part}.{kind}" for part in names[match[2] if match else path]]
    return found


# -- theirs → ours ---------------------------------------------------------------------------------


def from_hf(config, tensors, block_size=None):
    """Their model as our GPT, float32, in eval mode, with the embedding rows of the source.

    config: config.json as a dict; tensors: {their name: tensor}. block_size: None takes the
    source's. Learned positions beyond block_size are dropped, and block_size may not exceed their
    number. UserError names an unsupported architecture or setting, and tensors that are missing,
    unexpected, or of the wrong shape.
    """
    shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    ours, theirs = plan(config, shapes, block_size)
    tensors = {_short(name): tensor for name, tensor in tensors.items()}
    model = GPT(ours).eval()
    with torch.no_grad():
        for key, weight in model.named_parameters():
            # GPT-2's Conv1D keeps its matrices as (in, out).
            parts = [
                tensors[at].t() if ".c_" in at and tensors[at].dim() == 2 else tensors[at]
                for at in theirs[key]
            ]
            weight.copy_(torch.cat(parts)[: len(weight)])  # learned positions: the first block_size
    return model


def plan(config, shapes, block_size):
    """(GPTConfig, our tensors' names → [theirs]) for from_hf(); nothing is allocated.

    shapes: {their name: shape}. UserError as in from_hf().
    """
    ours, _ = read_config(config, block_size)
    shapes = {_short(name): shape for name, shape in shapes.items()}
    problems = size_problems(ours, shapes)
    if ours.n_layer > len(shapes):
        problems.append(f"n_layer={ours.n_layer}: the weights have {len(shapes)} tensors")
    if problems:
        raise UserError("\n".join(problems))
    theirs = tensor_names(ours)
    lacks = [part for parts in theirs.values() for part in parts if part not in shapes]
    also = set(shapes) - {part for parts in theirs.values() for part in parts}
    also = sorted(key for key in also if not BUFFERS.search(key))
    if ours.tie_embeddings and "lm_head.weight" in also:
        also.remove("lm_head.weight")  # a copy of wte.weight
    if lacks or also:
        raise UserError(f"its weights lack {few(lacks)}; unexpected: {few(also)}")
    for key, expected in model_shapes(ours).items():
        found = _joined_shape(theirs[key], shapes)
        if key == "wpe.weight" and len(found) == 2:
            found = min(found[0], ours.block_size), found[1]
        if found != expected:
            raise UserError(
                f"{' + '.join(theirs[key])}: {found}, where config.json says {expected}"
            )
    return ours, theirs


def _short(name):
    """A tensor's name without the prefix, which not every file has."""
    return re.sub(r"^(transformer|model)\.", "", name)


def _joined_shape(names, shapes):
    """The shape of the tensors `names` concatenated along dim 0; () if they do not match."""
    parts = [
        shapes[name][::-1] if ".c_" in name and len(shapes[name]) == 2 else shapes[name]
        for name in names
    ]
    if not all(parts) or len({part[1:] for part in parts}) > 1:
        return ()
    return sum(part[0] for part in parts), *parts[0][1:]


# -- ours → theirs ---------------------------------------------------------------------------------


def to_hf(model, family=None):
    """(config.json as a dict, {name: tensor}) of a GPT. Tied weights are there once, and no two
    tensors share memory. family: the preferred key of FAMILIES. UserError for a shape that no
    family has."""
    family, config = family_of(model.config, family), model.config
    is_gpt2 = family == "GPT2LMHeadModel"
    if is_gpt2:  # it always has biases
        config = replace(config, bias=True, qkv_bias=True, mlp_bias=True)
    shapes, found = model_shapes(config), {}
    weights = {name: weight.detach() for name, weight in model.named_parameters()}
    for ours, theirs in tensor_names(config).items():
        weight = weights[ours] if ours in weights else torch.zeros(shapes[ours])
        module = model.get_submodule(ours.rpartition(".")[0])
        fused = isinstance(module, FusedLinear) and len(theirs) > 1
        for name, part in zip(
            theirs, weight.split(module.sizes) if fused else [weight], strict=True
        ):
            # GPT-2's Conv1D stores its matrices as (n_in, n_out).
            part = part.t() if ".c_" in name and part.dim() == 2 else part
            prefix = "" if name.startswith("lm_head") else ("transformer." if is_gpt2 else "model.")
            # safetensors has no views.
            found[prefix + name] = part.clone(memory_format=torch.contiguous_format)
    return write_config(model.config, family), found
