"""Import and export of peft adapters, which PeftModel.from_pretrained adds to an exported base.

    write_peft("out/lora/peft", checkpoint.load("out/lora", merged=False).model)
    load_peft("some/folder", model)      # adds the adapters to a plain GPT

Values are converted exactly. In Hugging Face's GPT-2, q, k and v are one matrix with one pair of
adapters: ours are exported as a block-diagonal B with three times the rank. Adapters with several
ranks and scales are imported with the highest rank, B padded with zeros, and one scale.
"""

import errno
import json
import math
import re
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file

from minigpt.common.errors import UserError
from minigpt.common.files import read_json
from minigpt.common.types import typed
from minigpt.interop.export_folder import NAME, check_target, exported
from minigpt.interop.hf_config import family_of
from minigpt.models.lora import PARTS, LoRA, LoRALinear, attach, part_sizes
from minigpt.models.shapes import LARGEST_ALPHA, read_shapes

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
# The matrices of a block, by their names in Hugging Face's classes.
LLAMA = {part: f"self_attn.{part}_proj" for part in "qkvo"}  # and Mistral, Qwen2, Qwen3
LLAMA |= {part: f"mlp.{part}_proj" for part in ("gate", "up", "down")}
GPT2 = dict.fromkeys("qkv", "attn.c_attn") | {"o": "attn.c_proj"}
GPT2 |= {"up": "mlp.c_fc", "down": "mlp.c_proj"}
# The required fields of adapter_config.json, and the optional ones that are read.
ABOUT = dict(peft_type=str, r=int, lora_alpha=float)
MORE_ABOUT = dict(lora_dropout=float | None, alpha_pattern=dict | None, bias=str)
REPEATS, LONGEST_PATTERN = 3, 1000  # limits of a regular expression of alpha_pattern
# Variants of peft that are more than W + s · B A: not supported.
UNSUPPORTED = ("use_dora", "lora_bias", "modules_to_save", "trainable_token_indices", "use_qalora")
UNSUPPORTED += ("layer_replication", "target_parameters", "alora_invocation_tokens", "use_bdlora")
UNSUPPORTED += ("velora_config", "monteclora_config", "arrow_config", "kasa_config")


def _names(config):
    """(the prefix of a block's modules, the names of its matrices) in Hugging Face's class."""
    if family_of(config) == "GPT2LMHeadModel":
        return "transformer.h", GPT2
    return "model.layers", LLAMA


# -- export ----------------------------------------------------------------------------------------


def write_peft(folder, model):
    """Write the adapters of `model` as a peft folder for the base that tools/export.py writes.

    UserError if the model has no Hugging Face architecture, or if `folder` has files other than an
    earlier export.
    """
    check_target(folder, stranger)
    where, names = _names(model.config)
    tensors, ranks = {}, {}
    for i, block in enumerate(model.blocks):
        for path, linear in block.named_modules():
            for name, a, b in _pairs(linear, path, names):
                key = f"base_model.model.{where}.{i}.{name}"
                tensors[f"{key}.lora_A.weight"] = a.detach().contiguous()
                tensors[f"{key}.lora_B.weight"] = b.detach().contiguous()
                ranks[name] = len(a)
    lora = model.lora
    higher = {name: rank for name, rank in ranks.items() if rank != lora.rank}
    config = dict(
        peft_type="LORA",
        task_type="CAUSAL_LM",
        # The default output of tools/export.py.
        base_model_name_or_path=(lora.base / "hf").as_posix() if lora.base else "",
        r=lora.rank,
        lora_alpha=lora.alpha,
        lora_dropout=lora.dropout,
        target_modules=sorted(ranks),
        rank_pattern=higher,
        alpha_pattern={name: lora.scale * rank for name, rank in higher.items()},
        fan_in_fan_out=names is GPT2,  # its Conv1D has (n_in, n_out)
        bias="none",
        inference_mode=True,
    )
    if lora.first_block:
        config["layers_to_transform"] = list(range(lora.first_block, len(model.blocks)))
    with exported(folder) as partial:
        partial.mkdir()
        text = json.dumps(config, ensure_ascii=False, indent=2) + "\n"
        (partial / CONFIG).write_text(text, encoding="utf-8")
        try:
            save_file(tensors, partial / WEIGHTS, {"format": "pt", "exported_by": NAME})
        except SafetensorError as error:  # raised when a write fails
            raise OSError(errno.EIO, f"is the disk full? {error}") from None


def stranger(folder):
    """Why `folder` is not an earlier export, in words; None if it is one."""
    folder = Path(folder)
    if not folder.is_dir():
        return "is a file, and peft adapters are a folder"
    there = {path.name for path in folder.iterdir()}
    if others := sorted(there - {CONFIG, WEIGHTS}):
        return f"holds {others[0]}"
    return "holds adapters of another program" if there and not _is_ours(folder / WEIGHTS) else None


def _is_ours(path):
    try:
        with safe_open(path, "pt") as file:
            return (file.metadata() or {}).get("exported_by") == NAME
    except (OSError, SafetensorError):
        return False


def _pairs(linear, path, names):
    """(peft's name, A, B) of each matrix with adapters in the module `linear` at `path`."""
    if not isinstance(linear, LoRALinear):
        return
    if path == "attn.qkv" and len({names[part] for part in "qkv"}) == 1:
        yield names["q"], linear.A, linear.block_diagonal_B()
    else:
        for part, (a, b) in linear.parts().items():
            yield names[part], a, b


# -- import ----------------------------------------------------------------------------------------


def load_peft(folder, model):
    """Add the adapters in a peft folder to `model`, a plain GPT; its LoRA has no base yet.

    UserError if the folder has no adapters, if they do not fit the model, or if they are more than
    W + s · B A on the matrices of its blocks.
    """
    folder = Path(folder)
    about, weights = _read(folder)
    where, names = _names(model.config)
    keys = {re.sub(r"\.lora_[AB]\.weight$", "", key) for key in weights}
    found = {}  # (block, part) → A (r, n_in), s · B (rows, r)
    for key in sorted(keys):
        match = re.fullmatch(rf"base_model\.model\.({re.escape(where)}\.(\d+)\.(.+))", key)
        parts = [part for part, name in names.items() if match and name == match[3]]
        if not parts or int(match[2]) >= len(model.blocks):
            raise UserError(f"{folder}: adapters of {key}: this model's blocks have no such matrix")
        try:
            a, b = (weights[f"{key}.lora_{half}.weight"].float() for half in "AB")
        except KeyError as error:
            raise UserError(f"{folder}/{WEIGHTS}: lacks {error}") from None
        linear = model.blocks[int(match[2])].get_submodule(PARTS[parts[0]][0])
        sizes = part_sizes(linear)
        sizes = sizes if len(parts) > 1 else [sizes[PARTS[parts[0]][1]]]
        fits = a.dim() == b.dim() == 2 and a.shape == (b.size(1), linear.in_features)
        if not fits or len(b) != sum(sizes):
            shapes = f"A {tuple(a.shape)}, B {tuple(b.shape)}"
            raise UserError(f"{folder}: adapters of {key} ({shapes}) do not fit this model")
        try:
            b = b * _scale(about, match[1], b.size(1))
        except (ValueError, re.error) as error:
            raise UserError(f"{folder}/{CONFIG}: alpha_pattern: {error}") from None
        for part, rows in zip(parts, b.split(list(sizes)), strict=True):
            # Block-diagonal B: each part takes the columns that are not all zero.
            used = rows.any(dim=0) if len(parts) > 1 and rows.any() else slice(None)
            found[int(match[2]), part] = a[used], rows[:, used]
    if not found:
        raise UserError(f"{folder}/{WEIGHTS}: holds no adapters")
    _attach(model, found, about)


def _attach(model, found, about):
    """Attach the adapters `found` to the model, with one rank and one scale."""
    rank = max(len(a) for a, _ in found.values())
    scale = about["lora_alpha"] / about["r"] or 1.0
    targets = [part for part in PARTS if any(part == other for _, other in found)]
    first = min(i for i, _ in found)
    dropout = about.get("lora_dropout") or 0.0
    attach(model, LoRA(rank, scale * rank, dropout, targets, first))
    with torch.no_grad():
        for i, block in enumerate(model.blocks):
            linears = [m for m in block.modules() if isinstance(m, LoRALinear)]
            for part, (a, b) in (pair for m in linears for pair in m.parts().items()):
                if (i, part) in found:  # B of the others stays 0
                    their_a, their_b = found[i, part]
                    a[: len(their_a)] = their_a
                    b[:, : len(their_a)] = their_b / scale


def _scale(about, name, rank):
    """The factor of B A for the matrix `name` with adapters of this rank, looked up as in peft."""

    def value(patterns, default):
        fits = (key for key in patterns or {} if re.match(rf"(.*\.)?({key})$", name))
        return patterns[key] if (key := next(fits, None)) is not None else default

    alpha = value(about.get("alpha_pattern"), about["lora_alpha"])
    return alpha / (math.sqrt(rank) if about.get("use_rslora") else rank)


def _about_problems(about, where):
    """An error line, which starts with `where`, for each bad value in adapter_config.json."""
    problems = [] if about["r"] > 0 else [f"{where}: r={about['r']}: expected more than 0"]
    if abs(about["lora_alpha"]) > LARGEST_ALPHA:
        problems.append(
            f"{where}: lora_alpha={about['lora_alpha']:g}: expected at most {LARGEST_ALPHA:g}"
        )
    if not 0 <= (about.get("lora_dropout") or 0) < 1:
        problems.append(f"{where}: lora_dropout={about['lora_dropout']}: expected 0 to below 1")
    for key, value in (about.get("alpha_pattern") or {}).items():
        is_number = type(value) in (int, float) and abs(value) <= LARGEST_ALPHA
        if not _is_simple(key) or not is_number:
            problems.append(
                f"{where}: alpha_pattern: {key[:60]!r}: expected a regular expression of at most "
                f"{LONGEST_PATTERN} characters and {REPEATS} repetitions, none of a group, and a "
                "number"
            )
    return problems


def _is_simple(pattern):
    """Whether an untrusted regular expression is valid, short, and at most polynomial in time: it
    has few repetitions, of single characters only. Names of matrices are short."""
    if len(pattern) > LONGEST_PATTERN:
        return False
    try:
        re.compile(pattern)
    except (re.error, RecursionError, OverflowError):
        return False
    repeats = len(re.findall(r"[*+?{]", pattern))
    return repeats <= REPEATS and not re.search(r"\)[*+?{]", pattern)


def _read(folder):
    """(adapter_config.json as a dict, the tensors); UserError for unsupported adapters."""
    path = folder / CONFIG
    try:
        about = read_json(path, "export the adapters again")
    except FileNotFoundError:
        raise UserError(f"{folder}: no peft adapters: {CONFIG} is missing") from None
    if not ABOUT.keys() <= about.keys():
        raise UserError(f"{path}: not a peft config: expected peft_type, r …")
    where = f"{path}: not a peft config"
    about, problems = typed(about, ABOUT | MORE_ABOUT, where)
    problems = problems or _about_problems(about, where)
    if problems:
        raise UserError("\n".join(problems))
    kind = about["peft_type"]
    unsupported = [name for name in UNSUPPORTED if about.get(name)]
    unsupported += ["bias"] if about.get("bias", "none") != "none" else []
    if kind != "LORA" or unsupported:
        what = (
            f"{unsupported[0]}={about[unsupported[0]]}" if kind == "LORA" else f"peft_type={kind}"
        )
        raise UserError(f"{folder}: adapters with {what}: expected plain LoRA, W + s · B A")
    read_shapes(folder / WEIGHTS, "export the adapters again")  # complete, and floating-point
    try:
        return about, load_file(folder / WEIGHTS)
    except (OSError, SafetensorError) as error:
        raise UserError(f"{folder}/{WEIGHTS}: cannot be read ({error})") from None
