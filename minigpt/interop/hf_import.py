"""Import of Hugging Face models: GPT-2 of any size, and Qwen3 (dense).

    parent = load("hf:gpt2")                      # or "hf:FOLDER": what train.py starts from
    model = from_hf(config, tensors)              # config.json as a dict, {tensor name: tensor}
    config, tensors = to_hf(model)                # the reverse

Weights are safetensors, in one file or several with an index; bfloat16 and float16 become float32.
The vocabulary is the source's own (minigpt/tokenizer/huggingface.py). Missing special
tokens (padding, the answer mark, chat marks) get ids after its last one, and an embedding row each.
"""

import re
from dataclasses import asdict
from pathlib import Path

import torch
import torch.nn as nn
from safetensors import SafetensorError
from safetensors.torch import load_file

from minigpt.common.errors import UserError
from minigpt.interop.hf_weights import GPT2_NAMES, QWEN3_NAMES, SHAPES, to_hf
from minigpt.models.checkpoint import Checkpoint
from minigpt.models.shapes import few, model_config, model_shapes, read_shapes, size_problems
from minigpt.tokenizer.huggingface import (
    PREFIX,
    TOKENIZER_FILES,
    read_json,
    read_vocabulary,
    source_folder,
)
from minigpt.tokenizer.tokenizer import load_tokenizer
from model import GPT, GPTConfig

__all__ = ["PREFIX", "from_hf", "load", "to_hf"]

INDEX = "model.safetensors.index.json"
WEIGHT_FILES = ("config.json", INDEX, "model.safetensors", "model-*-of-*.safetensors")
# Tensors in the files that are not weights: causal masks, rotary frequencies.
_BUFFERS = re.compile(r"(attn\.(bias|masked_bias)|rotary_emb\.inv_freq)$")


def load(source, block_size=None):
    """The model `source` ("hf:FOLDER" or "hf:NAME") as a Checkpoint of step 0, with `source` as the
    name of its tokenizer.

    block_size: the context length; None: 512, or the source's if that is shorter. UserError if
    files are missing or damaged, or if the architecture is not supported.
    """
    folder = source_folder(source, (*TOKENIZER_FILES, *WEIGHT_FILES))
    config = read_json(folder / "config.json")
    if block_size is None:
        longest = config.get("n_positions", config.get("max_position_embeddings"))
        good = type(longest) is int and longest > 0  # else _plan() reports the error
        block_size = min(GPTConfig.block_size, longest) if good else GPTConfig.block_size
    try:
        _plan(config, _read_shapes(folder), block_size)  # from headers, before tensors are read
        tokenizer = load_tokenizer(source)
        model = from_hf(config, _read_tensors(folder), block_size)
    except UserError as error:
        where = "" if str(folder) in str(error) else f"{folder}: "
        raise UserError(f"{where}{error}") from None
    _add_rows(model, read_vocabulary(folder).n_source, tokenizer)
    meta = dict(model=asdict(model.config), settings={"tokenizer": source}, step=0)
    return Checkpoint(Path(source), model, tokenizer, meta)


# -- weights ---------------------------------------------------------------------------------------


def from_hf(config, tensors, block_size=None):
    """Their model as our GPT, float32, in eval mode, with the embedding rows of the source.

    config: config.json as a dict; tensors: {their name: tensor}. block_size: None takes the
    source's. Learned positions beyond block_size are dropped, and block_size may not exceed their
    number. UserError names an unsupported architecture or setting, and tensors that are missing,
    unexpected, or of the wrong shape.
    """
    shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    ours, theirs = _plan(config, shapes, block_size)
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


def _plan(config, shapes, block_size):
    """(GPTConfig, our tensors' names → [theirs]) for from_hf(); nothing is allocated.

    shapes: {their name: shape}. UserError as in from_hf().
    """
    ours, longest = _config(config, block_size)
    shapes = {_short(name): shape for name, shape in shapes.items()}
    problems = size_problems(ours, shapes)
    if ours.n_layer > len(shapes):
        problems.append(f"n_layer={ours.n_layer}: the weights have {len(shapes)} tensors")
    if ours.position == "learned" and ours.block_size > longest:
        problems.append(
            f"block_size={block_size}: its table of learned positions has {longest} rows; take at "
            f"most --block_size={longest}"
        )
    if problems:
        raise UserError("\n".join(problems))
    theirs = _gpt2_names(ours) if ours.position == "learned" else _qwen3_names(ours)
    lacks = [part for parts in theirs.values() for part in parts if part not in shapes]
    also = set(shapes) - {part for parts in theirs.values() for part in parts}
    also = sorted(key for key in also if not _BUFFERS.search(key))
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


def _config(config, block_size):
    """(GPTConfig, the source's context length) of their config.json."""
    names = config.get("architectures")
    name = names[0] if isinstance(names, list) and names else names or "none"
    known = {"gpt2": "GPT2LMHeadModel", "qwen3": "Qwen3ForCausalLM"}
    if names is None:
        kind = str(config.get("model_type"))
        name = known.get(kind, f"model_type={kind[:60]}")
    if not isinstance(name, str) or name not in SHAPES:
        raise UserError(f"its architecture is {str(name)[:60]}; supported: {', '.join(SHAPES)}")
    try:
        shape = _gpt2_shape(config) if name == "GPT2LMHeadModel" else _qwen3_shape(config)
    except (LookupError, TypeError, AttributeError) as error:
        raise UserError(f"config.json: {type(error).__name__}: {error}; copy it again") from None
    # The two architectures have different names for the context length in config.json.
    longest = shape["block_size"]
    if type(longest) is not int:
        raise UserError(
            f"config.json: block_size={str(longest)[:40]!r}: expected a number; copy it again"
        )
    shape["block_size"] = block_size or longest
    return model_config(shape | SHAPES[name], "config.json"), longest


def _require(config, **wanted):
    """UserError if a setting of theirs has a value that our model does not support."""
    wrong = [
        f"{name}={config[name]}"
        for name, values in wanted.items()
        if name in config and config[name] not in values
    ]
    if wrong:
        raise UserError(f"config.json: {', '.join(wrong)}: our model does not support it")


def _gpt2_shape(config):
    """The sizes of a GPTConfig; missing fields get the default of transformers."""
    _require(
        config,
        activation_function=("gelu_new", "gelu_pytorch_tanh"),
        scale_attn_weights=(True,),
        scale_attn_by_inverse_layer_idx=(False,),
        add_cross_attention=(False,),
    )
    return dict(
        padded_vocab_size=config["vocab_size"],
        block_size=config["n_positions"],
        n_layer=config["n_layer"],
        n_head=config["n_head"],
        n_embd=config["n_embd"],
        n_hidden=config.get("n_inner"),
        bias=True,
        norm_eps=config.get("layer_norm_epsilon", 1e-5),
        tie_embeddings=config.get("tie_word_embeddings", True),
    )


def _qwen3_shape(config):
    """See _gpt2_shape."""
    rope = config.get("rope_parameters") or config.get("rope_scaling") or {}
    _require(
        config,
        hidden_act=("silu",),
        attention_bias=(False,),
        use_sliding_window=(False,),
    )
    kind = rope.get("rope_type", rope.get("type", "default"))
    if kind != "default" or rope.get("partial_rotary_factor", 1) != 1:
        raise UserError(f"config.json: rope_type={kind}: our model has plain rotary positions")
    return dict(
        padded_vocab_size=config["vocab_size"],
        block_size=config["max_position_embeddings"],
        n_layer=config["num_hidden_layers"],
        n_head=config["num_attention_heads"],
        n_kv_head=config.get("num_key_value_heads"),
        n_embd=config["hidden_size"],
        head_dim=config.get("head_dim", 128),
        n_hidden=config["intermediate_size"],
        rope_theta=rope.get("rope_theta", config.get("rope_theta", 10000.0)),
        norm_eps=config.get("rms_norm_eps", 1e-6),
        tie_embeddings=config.get("tie_word_embeddings", False),
    )


def _gpt2_names(config):
    """Our tensors' names → [theirs], without the prefix ("transformer.")."""
    names = {"wte.weight": ["wte.weight"], "wpe.weight": ["wpe.weight"]}
    parts = {"norm": "ln_f"}
    for i in range(config.n_layer):
        parts |= {f"blocks.{i}.{ours}": f"h.{i}.{theirs}" for ours, theirs in GPT2_NAMES.items()}
    for ours, theirs in parts.items():
        names |= {f"{ours}.{kind}": [f"{theirs}.{kind}"] for kind in ("weight", "bias")}
    if not config.tie_embeddings:
        names["lm_head.weight"] = ["lm_head.weight"]
    return names


def _qwen3_names(config):
    """See _gpt2_names; several of theirs are concatenated in one of ours."""
    names = {"wte.weight": ["embed_tokens.weight"], "norm.weight": ["norm.weight"]}
    for i in range(config.n_layer):
        for ours, theirs in QWEN3_NAMES.items():
            names[f"blocks.{i}.{ours}.weight"] = [f"layers.{i}.{part}.weight" for part in theirs]
    if not config.tie_embeddings:
        names["lm_head.weight"] = ["lm_head.weight"]
    return names


def _weight_files(folder):
    """model.safetensors, or the names of the files that the index lists."""
    if not (folder / INDEX).is_file():
        return ["model.safetensors"]
    parts = read_json(folder / INDEX).get("weight_map")
    if not isinstance(parts, dict) or not parts:
        raise UserError(f"{INDEX}: has no weight_map; copy it again")
    strange = [part for part in parts.values() if not _is_file_name(part)]
    if strange:
        raise UserError(
            f"{INDEX}: {str(strange[0])[:60]!r}: expected the name of a .safetensors file in the "
            "same folder; copy it again"
        )
    return sorted(set(parts.values()))


def _is_file_name(part):
    return isinstance(part, str) and re.fullmatch(r"\w[\w.-]{0,200}\.safetensors", part)


def _read_shapes(folder):
    """{name: shape} of all weights, from the headers of their files."""
    shapes = {}
    for name in _weight_files(folder):
        if not (folder / name).is_file():
            raise _missing(name)
        shapes |= read_shapes(folder / name, "copy it again")
    return shapes


def _missing(name):
    return UserError(
        f"{name}: missing (weights are read from safetensors alone); copy the model's whole folder"
    )


def _read_tensors(folder):
    """{name: tensor} of all weights."""
    tensors = {}
    for name in _weight_files(folder):
        try:
            tensors |= load_file(folder / name)
        except FileNotFoundError:
            raise _missing(name) from None
        except (OSError, SafetensorError) as error:
            raise UserError(f"{name}: cannot be read ({error}); copy it again") from None
    return tensors


def _add_rows(model, n_source, tokenizer):
    """Add embedding rows to `model` for every id of the tokenizer, padded to a multiple of 64.

    A new row starts as the mean of the source's rows. Its logit is then an average one, so the
    probabilities of the old ids hardly change; a row of another norm could take most of the
    probability. A little noise makes the new rows differ, so that they get different gradients.
    """
    old = model.config.padded_vocab_size
    size = -(-max(old, tokenizer.n_vocab) // 64) * 64
    # An id after the source's last is new even if its table has a row: that row was never trained.
    fresh = [i for i in range(size) if i >= old or n_source <= i < tokenizer.n_vocab]
    with torch.no_grad():
        tables = [model.wte] if model.config.tie_embeddings else [model.wte, model.lm_head]
        for seed, table in enumerate(tables):
            rows = table.weight[: min(old, n_source)]
            whole = torch.empty(size, rows.size(1))
            whole[:old] = table.weight
            generator = torch.Generator().manual_seed(seed)  # the same in every process
            noise = torch.randn(len(fresh), rows.size(1), generator=generator)
            whole[fresh] = rows.mean(0) + 0.01 * rows.std(0) * noise
            table.weight = nn.Parameter(whole)
    model.wte.num_embeddings = model.lm_head.out_features = size
    if model.config.tie_embeddings:
        model.lm_head.weight = model.wte.weight
    model.config.padded_vocab_size = size
