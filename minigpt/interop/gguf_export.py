"""Export of a run to one GGUF file, which llama.cpp, Ollama and LM Studio run.

    write_gguf("sft.gguf", checkpoint.load("out/sft"), "q8_0", name="sft")    # pip install gguf

The file has the weights, the vocabulary and the chat template. The architecture is llama.cpp's
"gpt2", "llama" (Mistral too), "qwen2" or "qwen3"; the tokenizer's pattern must be one that
llama.cpp has (tokenizer.PATTERNS).
"""

from dataclasses import replace
from pathlib import Path

from minigpt.common.errors import UserError
from minigpt.interop.export_folder import DTYPES, NAME, converted, exported
from minigpt.interop.hf_config import FAMILIES, yarn_attention
from minigpt.interop.hf_weights import to_hf
from minigpt.tokenizer.chat_template import kind_of, load_template
from minigpt.tokenizer.export import (
    answer_mark_text,
    chat_template,
    end_id,
    end_ids,
    merges,
    special_texts,
    token_texts,
)
from minigpt.tokenizer.huggingface import SPECIAL_TEXTS
from minigpt.tokenizer.tokenizer import PATTERNS
from model import rotary_frequencies

KINDS = (*DTYPES, "q8_0")
_OURS = "minigpt.exported"  # a key by which stranger() recognises an export
_HEAD = 4096  # bytes from the start of the file within which the key is
# llama.cpp's "llama" rotates neighbouring channels, all others the two halves of a head.
_PERMUTED = ("self_attn.q_proj", "self_attn.k_proj")
_TRANSPOSED = (".c_attn.weight", ".c_proj.weight", ".c_fc.weight")  # Conv1D has (n_in, n_out)


def stranger(path):
    """Why `path` is not an earlier export, as the end of a sentence; None if it is one."""
    path = Path(path)
    if path.is_dir():
        return "is a folder, but a GGUF export is a file"
    with open(path, "rb") as file:
        head = file.read(_HEAD)
    return None if head.startswith(b"GGUF") and _OURS.encode() in head else "is another file"


def need_gguf():
    """The package gguf. UserError if it is not installed."""
    try:
        import gguf
    except ImportError:
        raise UserError("--format=gguf needs the package gguf: pip install gguf") from None
    return gguf


def write_gguf(path, trained, kind="float16", name="minigpt"):
    """Write the run `trained` (a Checkpoint on the CPU) to the file `path`, its matrices as `kind`
    (one of KINDS); vectors and learned positions stay float32. UserError if llama.cpp does not have
    the architecture or the tokenizer's pattern."""
    gguf = need_gguf()
    config, weights = to_hf(trained.model, trained.meta.get("architecture"))
    architecture = FAMILIES[config["architectures"][0]].gguf
    _check_shape(trained, architecture)
    patterns = {pattern: name for name, pattern in PATTERNS.items()}
    if trained.tokenizer.pattern not in patterns:
        raise UserError(
            f"{trained.folder}: its tokenizer has a pattern that llama.cpp does not know (it knows "
            f"{', '.join(PATTERNS)}); use --format=hf"
        )
    if not merges(trained.tokenizer):
        raise UserError(
            f"{trained.folder}: its tokenizer has only the 256 bytes and no merges, which "
            "llama.cpp does not support; use --format=hf"
        )
    with exported(path) as partial:
        writer = gguf.GGUFWriter(partial, architecture)
        writer.add_string(_OURS, NAME)
        writer.add_name(name)
        _add_shape(gguf, writer, trained.model.config, architecture)
        writer.add_file_type(_file_type(gguf, kind))
        writer.add_tokenizer_pre(patterns[trained.tokenizer.pattern])
        _add_vocabulary(gguf, writer, trained)
        layers = trained.model.config.n_layer
        names = gguf.get_tensor_name_map(getattr(gguf.MODEL_ARCH, architecture.upper()), layers)
        for theirs, weight in weights.items():
            own = names.get_name(theirs, try_suffixes=(".weight", ".bias"))
            weight = weight.t() if theirs.endswith(_TRANSPOSED) else weight
            if architecture == "llama" and theirs.rpartition(".")[0].endswith(_PERMUTED):
                weight = neighbouring(weight, trained.model.config.head_dim)
            _add_weight(gguf, writer, own, weight, kind)
        try:
            writer.write_header_to_file()
            writer.write_kv_data_to_file()
            writer.write_tensors_to_file()
        finally:
            writer.close()


def _check_shape(trained, architecture):
    """UserError for what llama.cpp does not compute in this architecture."""
    config, scaling = trained.model.config, trained.model.config.rope_scaling or {}
    wrong = []
    if architecture == "qwen3" and config.qkv_bias:
        wrong.append("biases in attention")
    if architecture != "llama" and scaling.get("rope_type") == "llama3":
        wrong.append("rope_scaling of type llama3")
    if scaling.get("rope_type") == "yarn":
        usual = dict(beta_slow=1, beta_fast=32, attention_factor=yarn_attention(scaling["factor"]))
        wrong += [
            f"yarn with {name}={scaling[name]:g}"
            for name, value in usual.items()
            if abs(scaling[name] - value) > 1e-6
        ]
    if wrong:
        raise UserError(
            f"{trained.folder}: llama.cpp's {architecture} has no {', '.join(wrong)}; use "
            "--format=hf"
        )


def neighbouring(weight, head_dim):
    """Rows of q or k, a weight or a bias, in the order in which the two channels that RoPE rotates
    together are neighbours: channel i of a head and channel i + head_dim / 2."""
    halves = weight.view(-1, 2, head_dim // 2, *weight.shape[1:])  # (heads, 2, hs/2, …)
    return halves.transpose(1, 2).reshape(weight.shape)


def _add_rope(gguf, writer, config, architecture):
    writer.add_rope_freq_base(config.rope_theta)
    if architecture == "llama":
        writer.add_rope_dimension_count(config.head_dim)
    scaling = config.rope_scaling
    if scaling is None:
        return
    if scaling["rope_type"] == "llama3":
        plain = rotary_frequencies(replace(config, rope_scaling=None))
        factors = plain / rotary_frequencies(config)  # (hs/2,)
        writer.add_tensor("rope_freqs.weight", factors.numpy())
        return
    kinds = dict(linear=gguf.RopeScalingType.LINEAR, yarn=gguf.RopeScalingType.YARN)
    writer.add_rope_scaling_type(kinds[scaling["rope_type"]])
    writer.add_rope_scaling_factor(scaling["factor"])
    if scaling["rope_type"] == "yarn":
        writer.add_rope_scaling_orig_ctx_len(int(scaling["original_max_position_embeddings"]))


def _add_shape(gguf, writer, config, architecture):
    writer.add_context_length(config.block_size)
    writer.add_embedding_length(config.n_embd)
    writer.add_feed_forward_length(config.n_hidden)
    writer.add_block_count(config.n_layer)
    writer.add_head_count(config.n_head)
    writer.add_vocab_size(config.padded_vocab_size)
    if architecture == "gpt2":
        writer.add_layer_norm_eps(config.norm_eps)
    else:
        writer.add_head_count_kv(config.n_kv_head)
        writer.add_key_length(config.head_dim)
        writer.add_value_length(config.head_dim)
        writer.add_layer_norm_rms_eps(config.norm_eps)
        _add_rope(gguf, writer, config, architecture)


def _add_vocabulary(gguf, writer, trained):
    tokenizer, prompt_format = trained.tokenizer, trained.prompt_format
    texts = list(token_texts(tokenizer))
    types = [
        gguf.TokenType.NORMAL if tokenizer.decode_bytes([i]) else gguf.TokenType.UNUSED
        for i in range(len(texts))
    ]
    for i in special_texts(tokenizer):
        types[i] = gguf.TokenType.CONTROL
    for i in range(len(texts), trained.model.config.padded_vocab_size):  # imported
        texts.append(f"<|unused_{i}|>")
        types.append(gguf.TokenType.UNUSED)
    writer.add_tokenizer_model("gpt2")  # byte-level BPE
    writer.add_token_list(texts)
    writer.add_token_types(types)
    writer.add_token_merges([" ".join(pair) for pair in merges(tokenizer)])
    # Our texts start without a BOS token, but a reader that finds no BOS id uses 11.
    writer.add_bos_token_id(tokenizer.eot)
    writer.add_add_bos_token(False)
    writer.add_eos_token_id(end_id(tokenizer, prompt_format))
    writer.add_array("tokenizer.ggml.eos_token_ids", end_ids(tokenizer))  # Ollama's
    writer.add_eot_token_id(tokenizer.eot)
    writer.add_pad_token_id(tokenizer.pad)
    writer.add_chat_template(chat_template(tokenizer, prompt_format))


def _file_type(gguf, kind):
    names = dict(float32="ALL_F32", float16="MOSTLY_F16", bfloat16="MOSTLY_BF16")
    return getattr(gguf.LlamaFileType, names.get(kind, "MOSTLY_Q8_0"))


def _add_weight(gguf, writer, name, weight, kind):
    if weight.dim() < 2 or name == "position_embd.weight":
        kind = "float32"
    elif kind == "q8_0" and weight.size(-1) % 32:
        kind = "float16"  # Q8_0 has a scale for every 32 values of a row
    types = dict(float32="F32", float16="F16", bfloat16="BF16", q8_0="Q8_0")
    raw = getattr(gguf.GGMLQuantizationType, types[kind])
    if kind in DTYPES:
        converted(name, weight, DTYPES[kind])  # or a UserError
    data = gguf.quants.quantize(weight.detach().float().contiguous().numpy(), raw)
    writer.add_tensor(name, data, raw_dtype=raw)


def _around_question(trained):
    """The texts before and after a question in a prompt of one turn."""
    if kind_of(trained.prompt_format) == "chat":
        turns = (("user", "\0"),)
        parts = load_template(trained.prompt_format).parts(turns, generate=True)
        return "".join(part.text for part in parts).split("\0")
    return "", answer_mark_text(trained.tokenizer) if trained.prompt_format == "qa" else ""


def modelfile(path, trained):
    """The text of Ollama's Modelfile for the GGUF file `path`. Ollama reads this Go template, not
    the Jinja template in the file. Only in ChatML it has the earlier turns of a conversation."""
    if trained.prompt_format == "chat":
        start, end = SPECIAL_TEXTS["IM_START"], SPECIAL_TEXTS["IM_END"]
        turn = f"{start}{{{{ .Role }}}}\n{{{{ .Content }}}}{end}\n"
        template = f"{{{{ range .Messages }}}}{turn}{{{{ end }}}}{start}assistant\n"
    else:
        before, after = _around_question(trained)
        template = (
            "{{ range $i, $_ := .Messages }}{{ if eq (len (slice $.Messages $i)) 1 }}"
            f"{before}{{{{ .Content }}}}{after}{{{{ end }}}}{{{{ end }}}}"
        )
    return f'''FROM ./{Path(path).name}
TEMPLATE """{template}"""
PARAMETER num_ctx {trained.model.config.block_size}
PARAMETER temperature 0.1
PARAMETER top_k 20
PARAMETER repeat_penalty 1'''
