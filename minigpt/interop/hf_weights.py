"""A GPT as Hugging Face's GPT2LMHeadModel or Qwen3ForCausalLM: their config and tensor names.

config, weights = to_hf(model)      # config.json as a dict, {tensor name: tensor}
"""

import torch

from minigpt.common.errors import UserError

# The settings that an architecture requires; architecture() requires sizes of GPT-2, too.
SHAPES = {
    "GPT2LMHeadModel": dict(position="learned", norm="layernorm", mlp="gelu", qk_norm=False),
    "Qwen3ForCausalLM": dict(
        position="rope", norm="rmsnorm", mlp="swiglu", qk_norm=True, bias=False
    ),
}
GPT2_NAMES = {
    "attn_norm": "ln_1",
    "attn.qkv": "attn.c_attn",
    "attn.proj": "attn.c_proj",
    "mlp_norm": "ln_2",
    "mlp.fc": "mlp.c_fc",
    "mlp.proj": "mlp.c_proj",
}
QWEN3_NAMES = {
    "attn_norm": ["input_layernorm"],
    "attn.qkv": ["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"],
    "attn.q_norm": ["self_attn.q_norm"],
    "attn.k_norm": ["self_attn.k_norm"],
    "attn.proj": ["self_attn.o_proj"],
    "mlp_norm": ["post_attention_layernorm"],
    "mlp.fc": ["mlp.gate_proj", "mlp.up_proj"],
    "mlp.proj": ["mlp.down_proj"],
}


def architecture(config):
    """The architecture, a key of SHAPES, that computes what a GPTConfig describes. UserError names
    the settings that neither has."""
    reasons = []
    for name, shape in SHAPES.items():
        wrong = [field for field, value in shape.items() if getattr(config, field) != value]
        if name == "GPT2LMHeadModel":
            wrong += ["n_kv_head"] * (config.n_kv_head != config.n_head)
            wrong += ["head_dim"] * (config.head_dim * config.n_head != config.n_embd)
        if not wrong:
            return name
        reasons.append(f"{name} has no {', '.join(f'{k}={getattr(config, k)}' for k in wrong)}")
    raise UserError(f"Hugging Face has no such model: {'; '.join(reasons)}")


def to_hf(model):
    """(config.json as a dict, {name: tensor}) of a GPT. Tied weights are there once, and no two
    tensors share memory. UserError for a shape that neither architecture has."""
    name = architecture(model.config)
    weights = {name: weight.detach() for name, weight in model.named_parameters()}
    return (_to_gpt2 if name == "GPT2LMHeadModel" else _to_qwen3)(model.config, weights)


def _to_gpt2(config, weights):
    found = {
        "transformer.wte.weight": weights["wte.weight"],
        "transformer.wpe.weight": weights["wpe.weight"],
    }
    parts = {
        f"blocks.{i}.{ours}": f"transformer.h.{i}.{theirs}"
        for i in range(config.n_layer)
        for ours, theirs in GPT2_NAMES.items()
    }
    for ours, theirs in {**parts, "norm": "transformer.ln_f"}.items():
        weight = weights[f"{ours}.weight"]
        bias = weights.get(f"{ours}.bias", torch.zeros(weight.size(0)))  # GPT-2 always has one
        # GPT-2's Conv1D stores its matrices as (n_in, n_out).
        found[f"{theirs}.weight"] = weight.t().contiguous() if ".c_" in theirs else weight
        found[f"{theirs}.bias"] = bias
    if not config.tie_embeddings:
        found["lm_head.weight"] = weights["lm_head.weight"]
    config_json = dict(
        architectures=["GPT2LMHeadModel"],
        model_type="gpt2",
        vocab_size=config.padded_vocab_size,
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
        tie_word_embeddings=config.tie_embeddings,
    )
    return config_json, found


def _to_qwen3(config, weights):
    found = {
        "model.embed_tokens.weight": weights["wte.weight"],
        "model.norm.weight": weights["norm.weight"],
    }
    q, kv = config.n_head * config.head_dim, config.n_kv_head * config.head_dim
    sizes = {"attn.qkv": (q, kv, kv), "mlp.fc": (config.n_hidden, config.n_hidden)}  # FusedLinear
    for i in range(config.n_layer):
        for ours, theirs in QWEN3_NAMES.items():
            weight = weights[f"blocks.{i}.{ours}.weight"]
            split = weight.split(sizes[ours]) if ours in sizes else [weight]
            for name, part in zip(theirs, split, strict=True):
                found[f"model.layers.{i}.{name}.weight"] = part.clone()  # safetensors has no views
    if not config.tie_embeddings:
        found["lm_head.weight"] = weights["lm_head.weight"]
    config_json = dict(
        architectures=["Qwen3ForCausalLM"],
        model_type="qwen3",
        vocab_size=config.padded_vocab_size,
        max_position_embeddings=config.block_size,
        num_hidden_layers=config.n_layer,
        num_attention_heads=config.n_head,
        num_key_value_heads=config.n_kv_head,
        hidden_size=config.n_embd,
        head_dim=config.head_dim,
        intermediate_size=config.n_hidden,
        hidden_act="silu",
        rms_norm_eps=config.norm_eps,
        rope_theta=config.rope_theta,  # transformers 4 and vLLM
        rope_parameters=dict(rope_type="default", rope_theta=config.rope_theta),  # transformers 5
        attention_bias=False,
        attention_dropout=config.dropout,
        tie_word_embeddings=config.tie_embeddings,
    )
    return config_json, found
