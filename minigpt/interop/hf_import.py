"""Models of Hugging Face as ours: GPT-2 of any size, and Qwen3 (dense).

    parent = load("hf:gpt2")                      # or "hf:FOLDER": what train.py starts from
    model = from_hf(config, tensors)              # config.json as a dict, {tensor name: tensor}
    config, tensors = to_hf(model)                # and back

Weights are safetensors, in one file or several with an index; bfloat16 and float16 become float32.
The vocabulary is the source's own (minigpt/tokenizer/huggingface.py). Special ids that it lacks
(padding, the answer mark, perhaps the chat marks) get ids behind its last one, and a row each.
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
# In a file beside the weights, and no weights: causal masks, rotary frequencies.
_BUFFERS = re.compile(r"(attn\.(bias|masked_bias)|rotary_emb\.inv_freq)$")


def load(source, block_size=None):
    """The model that `source` ("hf:FOLDER" or "hf:NAME") names, as a Checkpoint of step 0 whose
    name for the tokenizer is `source`.

    block_size: the longest context that it is to have; None: 512, or the source's where that is
    shorter. UserError for what is missing, damaged, or of another architecture.
    """
    folder = source_folder(source, (*TOKENIZER_FILES, *WEIGHT_FILES))
    config = read_json(folder / "config.json")
    if block_size is None:
        longest = config.get("n_positions", config.get("max_position_embeddings"))
        block_size = min(GPTConfig.block_size, longest or GPTConfig.block_size)
    tokenizer = load_tokenizer(source)
    try:
        model = from_hf(config, _read_tensors(folder), block_size)
    except UserError as error:
        raise UserError(f"{folder}: {error}") from None
    _add_rows(model, read_vocabulary(folder).n_source, tokenizer)
    meta = dict(model=asdict(model.config), settings={"tokenizer": source}, step=0)
    return Checkpoint(Path(source), model, tokenizer, meta)


# -- weights ---------------------------------------------------------------------------------------


def from_hf(config, tensors, block_size=None):
    """Our GPT of theirs, float32, in eval mode; its rows are the source's.

    config: config.json as a dict; tensors: {their name: tensor}. block_size: None takes the
    source's; learned positions beyond it are left out, and there are no more of them than the
    source has. UserError names an architecture or a setting that we do not have, and tensors that
    are missing, too many, or of another size.
    """
    name = (config.get("architectures") or ["none"])[0]
    known = {"gpt2": "GPT2LMHeadModel", "qwen3": "Qwen3ForCausalLM"}
    if config.get("architectures") is None:
        name = known.get(config.get("model_type"), f"model_type={config.get('model_type')}")
    if name not in SHAPES:
        raise UserError(
            f"its architecture is {name}; those that can be taken over: {', '.join(SHAPES)}"
        )
    is_gpt2 = name == "GPT2LMHeadModel"
    try:
        shape = _gpt2_shape(config) if is_gpt2 else _qwen3_shape(config)
        wrong = [f"{k}={v!r}" for k, v in shape.items() if not isinstance(v, int | float | None)]
        if wrong:
            raise UserError(f"config.json: {', '.join(wrong)}: expected a number; copy it again")
        longest = shape["block_size"]
        shape["block_size"] = block_size or longest
        ours = GPTConfig(**shape, **SHAPES[name])
        problems = ours.problems()
    except (KeyError, TypeError) as error:
        raise UserError(f"config.json: {type(error).__name__}: {error}; copy it again") from None
    if is_gpt2 and ours.block_size > longest:
        problems.append(
            f"block_size={block_size}: its table of learned positions has {longest} rows; take at "
            f"most --block_size={longest}"
        )
    if problems:
        raise UserError("\n".join(problems))
    tensors = {re.sub(r"^(transformer|model)\.", "", key): t for key, t in tensors.items()}
    theirs = _gpt2_names(ours) if is_gpt2 else _qwen3_names(ours)
    lacks = [part for parts in theirs.values() for part in parts if part not in tensors]
    also = set(tensors) - {part for parts in theirs.values() for part in parts}
    also = sorted(key for key in also if not _BUFFERS.search(key))
    if ours.tie_embeddings and "lm_head.weight" in also:
        also.remove("lm_head.weight")  # the same once more
    if lacks or also:
        raise UserError(f"its weights lack {_few(lacks)}, and have besides: {_few(also)}")
    model = GPT(ours).eval()
    with torch.no_grad():
        for key, weight in model.named_parameters():
            parts = [tensors[part] for part in theirs[key]]
            # GPT-2's Conv1D keeps its matrices as (in, out).
            parts = [
                part.t() if ".c_" in at and part.dim() == 2 else part
                for at, part in zip(theirs[key], parts, strict=True)
            ]
            found = torch.cat(parts)
            if key == "wpe.weight":
                found = found[: ours.block_size]
            if found.shape != weight.shape:
                raise UserError(
                    f"{' + '.join(theirs[key])}: {tuple(found.shape)}, where config.json says "
                    f"{tuple(weight.shape)}"
                )
            weight.copy_(found)
    return model


def _few(names):
    """Some of `names`, for a message."""
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return ", ".join(names[:3]) + more if names else "nothing"


def _demand(config, **wanted):
    """UserError for a setting of theirs by which their model computes what ours does not."""
    wrong = [
        f"{name}={config[name]}"
        for name, values in wanted.items()
        if name in config and config[name] not in values
    ]
    if wrong:
        raise UserError(f"config.json: {', '.join(wrong)}: our network has no such thing")


def _gpt2_shape(config):
    """The sizes of a GPTConfig; what config.json leaves out has transformers' default."""
    _demand(
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
    _demand(
        config,
        hidden_act=("silu",),
        attention_bias=(False,),
        use_sliding_window=(False,),
    )
    kind = rope.get("rope_type", rope.get("type", "default"))
    if kind != "default" or rope.get("partial_rotary_factor", 1) != 1:
        raise UserError(f"config.json: rope_type={kind}: our network has plain rotary positions")
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
    """Our tensors' names → [theirs], without the first part ("transformer.")."""
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
    """See _gpt2_names; several of theirs stand below one another in one of ours."""
    names = {"wte.weight": ["embed_tokens.weight"], "norm.weight": ["norm.weight"]}
    for i in range(config.n_layer):
        for ours, theirs in QWEN3_NAMES.items():
            names[f"blocks.{i}.{ours}.weight"] = [f"layers.{i}.{part}.weight" for part in theirs]
    if not config.tie_embeddings:
        names["lm_head.weight"] = ["lm_head.weight"]
    return names


def _read_tensors(folder):
    """{name: tensor} of model.safetensors, or of the files that the index names."""
    names = ["model.safetensors"]
    if (folder / INDEX).is_file():
        parts = read_json(folder / INDEX).get("weight_map")
        if not isinstance(parts, dict) or not parts:
            raise UserError(f"{INDEX}: has no weight_map; copy it again")
        names = sorted(set(parts.values()))
    tensors = {}
    for name in names:
        try:
            tensors |= load_file(folder / name)
        except FileNotFoundError:
            raise UserError(
                f"{name}: missing (weights are read from safetensors alone); copy the model's "
                "whole folder"
            ) from None
        except (OSError, SafetensorError) as error:
            raise UserError(f"{name}: cannot be read ({error}); copy it again") from None
    return tensors


def _add_rows(model, n_source, tokenizer):
    """Give `model` a row for every id of the tokenizer, in a table of a multiple of 64 rows.

    A new id starts as the mean of the source's rows: its logit is then an average one, so that the
    softmax over the old ids stays what it was but for a hair, where a row of any other size could
    take their probability. A little noise makes the new rows differ, so that they can learn apart.
    """
    old = model.config.padded_vocab_size
    size = -(-max(old, tokenizer.n_vocab) // 64) * 64
    # An id behind the source's last is new even where its table has a row, which was never trained.
    fresh = [i for i in range(size) if i >= old or n_source <= i < tokenizer.n_vocab]
    with torch.no_grad():
        tables = [model.wte] if model.config.tie_embeddings else [model.wte, model.lm_head]
        for seed, table in enumerate(tables):
            rows = table.weight[: min(old, n_source)]
            whole = torch.empty(size, rows.size(1))
            whole[:old] = table.weight
            generator = torch.Generator().manual_seed(seed)  # in every process the same
            noise = torch.randn(len(fresh), rows.size(1), generator=generator)
            whole[fresh] = rows.mean(0) + 0.01 * rows.std(0) * noise
            table.weight = nn.Parameter(whole)
    model.wte.num_embeddings = model.lm_head.out_features = size
    if model.config.tie_embeddings:
        model.lm_head.weight = model.wte.weight
    model.config.padded_vocab_size = size
