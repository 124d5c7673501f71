"""Adapters to and from peft: what PeftModel.from_pretrained loads beside an exported base.

    write_peft("out/lora/peft", checkpoint.load("out/lora", merged=False).model)
    load_peft("some/folder", model)      # its adapters beside the weights of a plain GPT

Values are carried over exactly. GPT-2's q, k and v are one matrix there, with one pair of adapters:
ours become its blocks on a diagonal, of a rank three times as high. What peft holds at several
ranks and scales takes the highest rank here, B filled up with zeros, and one scale.
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
from minigpt.interop.hf_weights import architecture
from minigpt.models.lora import PARTS, LoRA, LoRALinear, attach, part_sizes
from minigpt.models.shapes import LARGEST_ALPHA, read_shapes

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
# The matrices of a block, by the names that Hugging Face's classes give them.
QWEN3 = {part: f"self_attn.{part}_proj" for part in "qkvo"}
QWEN3 |= {part: f"mlp.{part}_proj" for part in ("gate", "up", "down")}
GPT2 = dict.fromkeys("qkv", "attn.c_attn") | {"o": "attn.c_proj"}
GPT2 |= {"up": "mlp.c_fc", "down": "mlp.c_proj"}
NAMES = {
    "Qwen3ForCausalLM": ("model.layers", QWEN3),
    "GPT2LMHeadModel": ("transformer.h", GPT2),
}
# What adapter_config.json must hold, and what of the rest is read.
ABOUT = dict(peft_type=str, r=int, lora_alpha=float)
MORE_ABOUT = dict(lora_dropout=float | None, alpha_pattern=dict | None, bias=str)
REPEATS, LONGEST_PATTERN = 3, 1000  # limits of a regular expression of alpha_pattern
# What peft may put into adapters beside W + s · B A.
STRANGE = ("use_dora", "lora_bias", "modules_to_save", "trainable_token_indices", "use_qalora")
STRANGE += ("layer_replication", "target_parameters", "alora_invocation_tokens", "use_bdlora")
STRANGE += ("velora_config", "monteclora_config", "arrow_config", "kasa_config")


# -- out -------------------------------------------------------------------------------------------


def write_peft(folder, model):
    """Write the adapters of `model` as a peft folder, for the base that tools/export.py exports.

    UserError if no architecture of Hugging Face fits the model, and if `folder` has anything but an
    earlier export.
    """
    check_target(folder, stranger)
    kind = architecture(model.config)
    where, names = NAMES[kind]
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
        fan_in_fan_out=kind == "GPT2LMHeadModel",  # its Conv1D has (n_in, n_out)
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
        except SafetensorError as error:  # this is how it says that a write failed
            raise OSError(errno.EIO, f"is the disk full? {error}") from None


def stranger(folder):
    """What in `folder` is no adapters of peft, in words; None where all of it is."""
    folder = Path(folder)
    if not folder.is_dir():
        return "is a file, and adapters of peft are a folder"
    there = {path.name for path in folder.iterdir()}
    if others := sorted(there - {CONFIG, WEIGHTS}):
        return f"holds {others[0]}"
    return "holds adapters from elsewhere" if there and not _is_ours(folder / WEIGHTS) else None


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


# -- in --------------------------------------------------------------------------------------------


def load_peft(folder, model):
    """Give `model`, a plain GPT, the adapters in a folder of peft's; they have no base yet.

    UserError for a folder that holds none, for adapters that do not fit the model, and for those
    that are more than W + s · B A on the matrices of its blocks.
    """
    folder = Path(folder)
    about, weights = _read(folder)
    where, names = NAMES[architecture(model.config)]
    keys = {re.sub(r"\.lora_[AB]\.weight$", "", key) for key in weights}
    found = {}  # (block, part) → A (r, n_in), s · B (rows, r)
    for key in sorted(keys):
        match = re.fullmatch(rf"base_model\.model\.({re.escape(where)}\.(\d+)\.(.+))", key)
        parts = [part for part, name in names.items() if match and name == match[3]]
        if not parts or int(match[2]) >= len(model.blocks):
            raise UserError(
                f"{folder}: adapters of {key}, which is no matrix of this model's blocks"
            )
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
            # Of blocks on a diagonal each part takes its own: columns of zeros add nothing.
            used = rows.any(dim=0) if len(parts) > 1 and rows.any() else slice(None)
            found[int(match[2]), part] = a[used], rows[:, used]
    if not found:
        raise UserError(f"{folder}/{WEIGHTS}: holds no adapters")
    _attach(model, found, about)


def _attach(model, found, about):
    """Give the model adapters of one rank and scale that are those `found`."""
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
                if (i, part) in found:  # elsewhere B is 0
                    their_a, their_b = found[i, part]
                    a[: len(their_a)] = their_a
                    b[:, : len(their_a)] = their_b / scale


def _scale(about, name, rank):
    """By which B A of the matrix `name`, of this rank, is multiplied: as peft looks it up."""

    def value(patterns, default):
        fits = (key for key in patterns or {} if re.match(rf"(.*\.)?({key})$", name))
        return patterns[key] if (key := next(fits, None)) is not None else default

    alpha = value(about.get("alpha_pattern"), about["lora_alpha"])
    return alpha / (math.sqrt(rank) if about.get("use_rslora") else rank)


def _about_problems(about, where):
    """What is wrong with the values in adapter_config.json, a line each, which `where` begins."""
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
    """Whether an untrusted regular expression is valid, short, and takes at most polynomial time:
    it has few repetitions, of single characters only. Names of matrices are short."""
    if len(pattern) > LONGEST_PATTERN:
        return False
    try:
        re.compile(pattern)
    except (re.error, RecursionError, OverflowError):
        return False
    repeats = len(re.findall(r"[*+?{]", pattern))
    return repeats <= REPEATS and not re.search(r"\)[*+?{]", pattern)


def _read(folder):
    """(adapter_config.json as a dict, the tensors); UserError for what cannot be taken over."""
    path = folder / CONFIG
    try:
        about = read_json(path, "export the adapters again")
    except FileNotFoundError:
        raise UserError(f"{folder}: no adapters of peft: {CONFIG} is not there") from None
    if not ABOUT.keys() <= about.keys():
        raise UserError(f"{path}: no settings of peft: expected peft_type, r …")
    where = f"{path}: no settings of peft"
    about, problems = typed(about, ABOUT | MORE_ABOUT, where)
    problems = problems or _about_problems(about, where)
    if problems:
        raise UserError("\n".join(problems))
    kind = about["peft_type"]
    strange = [name for name in STRANGE if about.get(name)]
    strange += ["bias"] if about.get("bias", "none") != "none" else []
    if kind != "LORA" or strange:
        what = f"{strange[0]}={about[strange[0]]}" if kind == "LORA" else f"peft_type={kind}"
        raise UserError(f"{folder}: adapters with {what}; here they are plain LoRA's W + s · B A")
    read_shapes(folder / WEIGHTS, "export the adapters again")  # whole, and floating-point numbers
    try:
        return about, load_file(folder / WEIGHTS)
    except (OSError, SafetensorError) as error:
        raise UserError(f"{folder}/{WEIGHTS}: cannot be read ({error})") from None
