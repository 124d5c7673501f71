"""config.json of Hugging Face's models: which families our GPT can be, their shapes and ours.

    config, family = read_config(json, block_size=512)    # a GPTConfig, and a key of FAMILIES
    json = write_config(config, family)                   # the reverse
    family = family_of(config)                            # what a GPT can be exported as

A setting that our model does not have is refused by name.
"""

import math
from dataclasses import dataclass, field

from minigpt.common.errors import UserError
from minigpt.models.shapes import ROPE_SCALING, model_config

_ROPE = dict(position="rope", norm="rmsnorm", mlp="swiglu")
# What transformers takes for fields that config.json does not have.
_DEFAULTS = dict(
    hidden_act="silu",
    num_key_value_heads=None,
    head_dim=None,
    attention_bias=False,
    mlp_bias=False,
    rms_norm_eps=1e-6,
    rope_theta=10000.0,
    tie_word_embeddings=False,
)
_WINDOW = dict(sliding_window=4096)


@dataclass(frozen=True)
class Family:
    """A family of models, by its class in transformers.

    model_type: in config.json. gguf: llama.cpp's name of the architecture. shape: the fields of
    GPTConfig that it requires. defaults: of its fields in config.json.
    """

    model_type: str
    gguf: str
    shape: dict
    defaults: dict = field(default_factory=dict)


FAMILIES = {
    "GPT2LMHeadModel": Family(
        "gpt2", "gpt2", dict(position="learned", norm="layernorm", mlp="gelu", qk_norm=False)
    ),
    "Qwen3ForCausalLM": Family(
        "qwen3",
        "qwen3",
        _ROPE | dict(qk_norm=True, mlp_bias=False),
        _DEFAULTS | _WINDOW | dict(num_key_value_heads=32, head_dim=128, use_sliding_window=False),
    ),
    "LlamaForCausalLM": Family("llama", "llama", _ROPE | dict(qk_norm=False), _DEFAULTS),
    "Qwen2ForCausalLM": Family(
        "qwen2",
        "qwen2",
        _ROPE | dict(qk_norm=False, qkv_bias=True, bias=False, mlp_bias=False),
        _DEFAULTS | _WINDOW | dict(num_key_value_heads=32, use_sliding_window=False),
    ),
    "MistralForCausalLM": Family(
        "mistral",
        "llama",
        _ROPE | dict(qk_norm=False, qkv_bias=False, bias=False, mlp_bias=False),
        _DEFAULTS | _WINDOW | dict(num_key_value_heads=8),
    ),
}
# Fields of config.json that count the experts of a mixture.
_EXPERTS = ("num_experts", "num_local_experts", "n_routed_experts", "use_moe")
# Fields of rope_parameters that change nothing, beside those of ROPE_SCALING.
_ROPE_FIELDS = {"rope_type", "type", "rope_theta", "partial_rotary_factor", "finetuned"}
_ROPE_FIELDS |= {"mscale", "mscale_all_dim", "truncate"} | set.union(*ROPE_SCALING.values())


# -- which family ----------------------------------------------------------------------------------


def family_of(config, first=None):
    """The family, a key of FAMILIES, that computes what a GPTConfig describes: `first` if it does,
    else the first that does. UserError names the settings that the closest one lacks."""
    misfits = {name: _misfits(config, name) for name in FAMILIES}
    fitting = [name for name, wrong in misfits.items() if not wrong]
    if fitting:
        return first if first in fitting else fitting[0]
    closest = min(misfits, key=lambda name: len(misfits[name]))
    wrong = ", ".join(f"{name}={getattr(config, name)}" for name in misfits[closest])
    raise UserError(f"Hugging Face has no such model: its closest, {closest}, has no {wrong}")


def _misfits(config, name):
    """The fields of a GPTConfig with values that a family does not have."""
    shape = FAMILIES[name].shape
    wrong = [key for key, value in shape.items() if getattr(config, key) != value]
    if name == "GPT2LMHeadModel":
        wrong += ["n_kv_head"] * (config.n_kv_head != config.n_head)
        wrong += ["head_dim"] * (config.head_dim * config.n_head != config.n_embd)
    elif "qkv_bias" not in shape:
        wrong += ["qkv_bias"] * (config.qkv_bias != config.bias)  # one setting: attention_bias
    if name == "LlamaForCausalLM":
        wrong += ["n_head"] * (config.n_embd % config.n_head != 0)  # transformers refuses it
    return wrong


def _family_in(config):
    """The family that a config.json names."""
    names = config.get("architectures")
    name = names[0] if isinstance(names, list) and names else names
    if name is None:
        kind = str(config.get("model_type"))
        by_type = {family.model_type: name for name, family in FAMILIES.items()}
        name = by_type.get(kind, f"model_type={kind[:60]}")
    if any(config.get(key) for key in _EXPERTS) or "moe" in str(name).lower():
        raise UserError(
            f"its architecture is {str(name)[:60]}, a mixture of experts (MoE), which our model "
            "does not have"
        )
    if not isinstance(name, str) or name not in FAMILIES:
        hint = ""
        if "minimind" in str(name).lower():
            hint = "; scripts/convert_model.py of MiniMind writes its models as Qwen3 or Llama"
        known = ", ".join(FAMILIES)
        raise UserError(f"its architecture is {str(name)[:60]}; supported: {known}{hint}")
    if config.get("quantization_config"):
        raise UserError(
            "config.json: quantization_config: the weights are quantized; take the model with "
            "weights in bfloat16, float16 or float32"
        )
    return name


# -- config.json → GPTConfig -----------------------------------------------------------------------


def context_length(config):
    """The number of positions in a config.json, or None."""
    length = config.get("n_positions", config.get("max_position_embeddings"))
    return length if type(length) is int and length > 0 else None


def read_config(config, block_size=None):
    """(GPTConfig, family) of config.json as a dict; block_size: None takes the source's.

    UserError names an architecture or a setting that our model does not have, and sizes of a wrong
    type.
    """
    name = _family_in(config)
    config = FAMILIES[name].defaults | config
    longest = context_length(config)
    if longest is None:
        found = config.get("n_positions", config.get("max_position_embeddings"))
        raise UserError(
            f"config.json: block_size={str(found)[:40]!r}: expected a number; copy it again"
        )
    try:
        if name == "GPT2LMHeadModel":
            shape = _gpt2_shape(config)
            if block_size and block_size > longest:
                raise UserError(
                    f"block_size={block_size}: its table of learned positions has {longest} rows; "
                    f"take at most --block_size={longest}"
                )
        else:
            shape = _rope_shape(config) | _rope(config, longest)
            _check_window(config, name, block_size or longest)
    except KeyError as error:
        raise UserError(f"config.json: lacks {error.args[0]}; copy it again") from None
    except (IndexError, TypeError, AttributeError, ValueError, ArithmeticError) as error:
        raise UserError(f"config.json: {type(error).__name__}: {error}; copy it again") from None
    shape["block_size"] = block_size or longest
    return model_config(shape | FAMILIES[name].shape, "config.json"), name


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
        n_layer=config["n_layer"],
        n_head=config["n_head"],
        n_embd=config["n_embd"],
        n_hidden=config.get("n_inner"),
        bias=True,
        norm_eps=config.get("layer_norm_epsilon", 1e-5),
        tie_embeddings=config.get("tie_word_embeddings", True),
    )


def _rope_shape(config):
    """See _gpt2_shape."""
    _require(config, hidden_act=("silu", "swish"))
    return dict(
        padded_vocab_size=config["vocab_size"],
        n_layer=config["num_hidden_layers"],
        n_head=config["num_attention_heads"],
        n_kv_head=config["num_key_value_heads"],
        n_embd=config["hidden_size"],
        head_dim=config["head_dim"],
        n_hidden=config["intermediate_size"],
        bias=config["attention_bias"],
        qkv_bias=config["attention_bias"],
        mlp_bias=config["mlp_bias"],
        norm_eps=config["rms_norm_eps"],
        tie_embeddings=config["tie_word_embeddings"],
    )


def _rope(config, longest):
    """rope_theta and rope_scaling of a GPTConfig. transformers 5 writes both as rope_parameters,
    earlier versions as two fields."""
    rope = config.get("rope_scaling") or config.get("rope_parameters") or {}
    kind = rope.get("rope_type", rope.get("type", "default"))
    if any(isinstance(value, dict) for value in rope.values()):
        raise UserError("config.json: rope_parameters that differ by layer: our model has one kind")
    if kind not in ("default", *ROPE_SCALING):
        known = ", ".join(("default", *ROPE_SCALING))
        raise UserError(f"config.json: rope_type={str(kind)[:40]}: our model has {known}")
    unknown = sorted(name for name in rope if name not in _ROPE_FIELDS)
    unknown += ["truncate"] * (rope.get("truncate", True) is not True)
    share = rope.get("partial_rotary_factor", config.get("partial_rotary_factor"))
    unknown += ["partial_rotary_factor"] * (share not in (None, 1))
    if unknown:
        raise UserError(
            f"config.json: rope_parameters: {unknown[0]}={str(rope.get(unknown[0], share))[:40]}: "
            "our model does not support it"
        )
    theta = rope.get("rope_theta", config["rope_theta"])
    if kind == "default":
        return dict(rope_theta=theta)
    original = config.get("original_max_position_embeddings", longest)
    found = {"original_max_position_embeddings": original} | rope
    if "original_max_position_embeddings" in config:  # transformers prefers it
        found["original_max_position_embeddings"] = original
    if kind == "yarn":
        found |= _yarn(found, longest)
    names = ROPE_SCALING[kind] & found.keys()
    return dict(rope_theta=theta, rope_scaling={"rope_type": kind} | {n: found[n] for n in names})


def _yarn(rope, longest):
    """The fields of YaRN that a config.json need not have."""
    factor = rope.get("factor") or longest / rope["original_max_position_embeddings"]
    mscale, mscale_all_dim = rope.get("mscale"), rope.get("mscale_all_dim")
    attention = rope.get("attention_factor")
    if attention is None and mscale and mscale_all_dim:  # DeepSeek's
        attention = yarn_attention(factor, mscale) / yarn_attention(factor, mscale_all_dim)
    elif attention is None:
        attention = yarn_attention(factor)
    limits = dict(beta_slow=rope.get("beta_slow") or 1, beta_fast=rope.get("beta_fast") or 32)
    return dict(factor=factor, attention_factor=attention) | limits


def yarn_attention(factor, scale=1.0):
    """YaRN's usual scale of q and k (Peng et al. 2023, equation 15)."""
    return 0.1 * scale * math.log(factor) + 1.0 if factor > 1 else 1.0


def _check_window(config, name, block_size):
    """UserError if attention has a sliding window that is shorter than a block."""
    window = config["sliding_window"] if "sliding_window" in FAMILIES[name].defaults else None
    if "use_sliding_window" in FAMILIES[name].defaults and not _some_windows(config):
        window = None
    if window is not None and window < block_size:
        raise UserError(
            f"config.json: sliding_window={window}: our model has no sliding window; take at most "
            f"--block_size={window}"
        )


def _some_windows(config):
    """Whether any layer of a Qwen model has a sliding window."""
    if not config["use_sliding_window"]:
        return False
    if config.get("layer_types"):
        return set(config["layer_types"]) != {"full_attention"}
    return config.get("max_window_layers", 28) < config["num_hidden_layers"]


# -- GPTConfig → config.json -----------------------------------------------------------------------


def write_config(config, name):
    """config.json as a dict for a GPTConfig of the family `name`."""
    family = FAMILIES[name]
    about = dict(architectures=[name], model_type=family.model_type)
    about |= dict(vocab_size=config.padded_vocab_size, tie_word_embeddings=config.tie_embeddings)
    if name == "GPT2LMHeadModel":
        return about | dict(
            n_positions=config.block_size,
            n_layer=config.n_layer,
            n_head=config.n_head,
            n_embd=config.n_embd,
            n_inner=config.n_hidden,
            activation_function="gelu_new",
            layer_norm_epsilon=config.norm_eps,
            resid_pdrop=config.dropout,
            embd_pdrop=config.dropout,
            attn_pdrop=config.dropout,
        )
    about |= dict(
        max_position_embeddings=config.block_size,
        num_hidden_layers=config.n_layer,
        num_attention_heads=config.n_head,
        num_key_value_heads=config.n_kv_head,
        hidden_size=config.n_embd,
        head_dim=config.head_dim,
        intermediate_size=config.n_hidden,
        hidden_act="silu",
        rms_norm_eps=config.norm_eps,
        attention_dropout=config.dropout,
    )
    if "qkv_bias" not in family.shape:
        about["attention_bias"] = config.bias
    if "mlp_bias" not in family.shape:
        about["mlp_bias"] = config.mlp_bias
    if "sliding_window" in family.defaults:
        about["sliding_window"] = None
    # transformers 5 reads rope_parameters; transformers 4 and vLLM read the two older fields.
    scaling = config.rope_scaling or {"rope_type": "default"}
    about["rope_parameters"] = scaling | dict(rope_theta=config.rope_theta)
    about["rope_theta"] = config.rope_theta
    if config.rope_scaling:
        about["rope_scaling"] = scaling
    return about
