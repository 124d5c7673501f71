"""Weight shapes: those that a config implies, and those in the header of a .safetensors file.

    config = model_config(facts, "out/run/config.json")     # types and ranges
    check_weights(config, "out/run/model.safetensors", "out/run/config.json")

A checkpoint is untrusted input. All shapes are compared before a model is built or a tensor is
read: only the header is read, and the expected shapes are those of a model on the meta device,
which allocates no memory. So the size of the file bounds the memory of a load.
"""

import dataclasses
import functools
import re

import torch
from safetensors import SafetensorError, safe_open

from minigpt.common.errors import UserError
from minigpt.common.types import typed
from minigpt.models.lora import adapters, attach
from model import GPT, GPTConfig

LARGEST_ALPHA = 1e9
FLOATS = ("F64", "F32", "F16", "BF16")
SIZES = ("padded_vocab_size", "n_head", "n_kv_head", "n_embd", "head_dim", "n_hidden")
JSON_NAMES = {"padded_vocab_size": "n_rows"}  # other names of fields in config.json (format 1)
# The fields of GPTConfig.rope_scaling by rope_type: numbers, named as in Hugging Face's files.
ROPE_SCALING = {
    "linear": {"factor"},
    "llama3": {"factor", "original_max_position_embeddings", "low_freq_factor", "high_freq_factor"},
    "yarn": {"factor", "original_max_position_embeddings", "beta_slow", "beta_fast"}
    | {"attention_factor"},
}
_BLOCK = re.compile(r"blocks\.(\d{1,9})\.")


def config_to_json(config):
    """A GPTConfig as the field "model" of config.json."""
    return {JSON_NAMES.get(name, name): value for name, value in dataclasses.asdict(config).items()}


def model_config(facts, where):
    """The GPTConfig for `facts`, a dict from the JSON file `where` with the names of config.json or
    of GPTConfig. UserError with a line for every wrong type, value out of range and unknown name;
    the lines use the names in `facts`."""
    fields = {field.name: field.type for field in dataclasses.fields(GPTConfig)}
    names = {theirs: name for name, theirs in JSON_NAMES.items()}
    facts, given = {names.get(name, name): value for name, value in facts.items()}, facts
    values, problems = typed(facts, fields, where)
    unknown = sorted(name[:60] for name in set(facts) - set(fields))
    if unknown:
        problems.append(
            f"{where}: a model with {few(unknown)}, which this version does not know; use the "
            "version of MiniGPT that trained it"
        )
    if "padded_vocab_size" not in facts:
        problems.append(f"{where}: lacks n_rows, the number of embedding rows")
    if not problems:
        config = GPTConfig(**values)
        problems = [f"{where}: {line}" for line in config.problems() + _rope_problems(config)]
    if problems:
        lines = problems if "padded_vocab_size" in given else map(_in_json, problems)
        raise UserError("\n".join(lines))
    return config


def _rope_problems(config):
    """List of errors in config.rope_scaling: a message, or nothing."""
    scaling = config.rope_scaling
    if scaling is None:
        return []
    kind = scaling.get("rope_type")
    if not isinstance(kind, str) or kind not in ROPE_SCALING:
        known = ", ".join(ROPE_SCALING)
        return [f"rope_scaling: rope_type={str(kind)[:40]}: expected {known}"]
    numbers = {name: value for name, value in scaling.items() if name != "rope_type"}
    if numbers.keys() != ROPE_SCALING[kind]:
        expected, found = (", ".join(sorted(names)) for names in (ROPE_SCALING[kind], numbers))
        return [f"rope_scaling: {kind} with {found[:200] or 'nothing'}: expected {expected}"]
    for name, value in numbers.items():
        if type(value) not in (int, float) or not 0 < value < LARGEST_ALPHA:
            return [f"rope_scaling: {name}={str(value)[:40]}: expected a number above 0"]
    limits = {"llama3": ("low_freq_factor", "high_freq_factor"), "yarn": ("beta_slow", "beta_fast")}
    if kind in limits:
        low, high = limits[kind]
        if scaling[low] >= scaling[high]:
            return [f"rope_scaling: {low}={scaling[low]:g}: expected less than {high}"]
    if kind == "yarn" and config.rope_theta <= 1:
        return [f"rope_theta={config.rope_theta:g}: expected more than 1 with yarn"]
    return []


def _in_json(line):
    """An error message with the names of config.json."""
    for name, theirs in JSON_NAMES.items():
        line = line.replace(f"{name}=", f"{theirs}=")
    return line


def read_shapes(path, remedy):
    """{name: shape} of the tensors in a .safetensors file; only the header is read. UserError, with
    the remedy, if the file is missing, truncated or not .safetensors, or if a tensor has no
    floating-point dtype."""
    try:
        with safe_open(path, "pt") as file:
            tensors = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118
            shapes = {name: tuple(tensor.get_shape()) for name, tensor in tensors.items()}
            unsupported = [
                name for name, tensor in tensors.items() if tensor.get_dtype() not in FLOATS
            ]
    except (OSError, SafetensorError, ValueError, OverflowError) as error:
        raise UserError(f"{path}: cannot be read ({error}); {remedy}") from None
    if unsupported:
        raise UserError(f"{path}: {few(unsupported)}: expected floating-point numbers; {remedy}")
    return shapes


def check_weights(config, path, where, remedy="train the run again"):
    """UserError unless the file has the tensors that `config` (read from `where`) implies."""
    found = read_shapes(path, remedy)
    problems = size_problems(config, found)
    blocks = {int(match[1]) for match in map(_BLOCK.match, found) if match}
    if len(blocks) != config.n_layer:
        problems.append(f"n_layer={config.n_layer}: the weights have {len(blocks)} blocks")
    if problems:
        raise UserError("\n".join(f"{where}: {_in_json(line)} ({path})" for line in problems))
    compare_shapes(model_shapes(config), found, path, where)


def check_adapters(config, lora, path, where, remedy="train the run again"):
    """UserError unless the file has the adapters of `lora` for a model with this config. It does
    not check the weights of the model."""
    found = read_shapes(path, remedy)
    largest_dim = _largest_dim(found)
    problems = []
    if not 1 <= lora.rank <= largest_dim:
        problems.append(
            f"rank={lora.rank}: expected 1 to {largest_dim}, the largest_dim size in {path}"
        )
    if not 0 <= lora.first_block < config.n_layer:
        problems.append(f"first_block={lora.first_block}: expected 0 to {config.n_layer - 1}")
    if abs(lora.alpha) > LARGEST_ALPHA:
        problems.append(f"alpha={lora.alpha:g}: expected at most {LARGEST_ALPHA:g}")
    if not 0 <= lora.dropout < 1:
        problems.append(f"dropout={lora.dropout}: expected 0 to below 1")
    if problems:
        raise UserError("\n".join(f"{where}: lora: {line}" for line in problems))
    try:
        with torch.device("meta"):
            model = GPT(config)
            attach(model, lora)
    except (RuntimeError, OverflowError) as error:
        raise UserError(f"{where}: no such model can be built ({_first_line(error)})") from None
    expected = {name: tuple(weight.shape) for name, weight in adapters(model).items()}
    compare_shapes(expected, found, path, where)


def compare_shapes(expected, found, path, where):
    """UserError, one line, unless two dicts {name: shape} are equal."""
    lacks = [name for name in expected if name not in found]
    also = [name for name in found if name not in expected]
    other = [
        f"{name} {found[name]}, expected {shape}"
        for name, shape in expected.items()
        if name in found and found[name] != shape
    ]
    parts = [f"lacks {few(lacks)}"] * bool(lacks) + [f"has also {few(also)}"] * bool(also)
    parts += [f"has {few(other)}"] * bool(other)
    if parts:
        raise UserError(f"{path}: does not fit {where}: {'; '.join(parts)}")


def few(names):
    """The first three of `names`, for a message."""
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return ", ".join(name[:120] for name in names[:3]) + more if names else "nothing"


def size_problems(config, found):
    """An error line for each size of the config that exceeds every dimension of the tensors `found`
    (name → shape). Such a config is rejected before a model is built."""
    largest_dim = _largest_dim(found)
    return [
        f"{name}={getattr(config, name)}: the largest dimension of the weights is {largest_dim}"
        for name in SIZES
        if getattr(config, name) > largest_dim
    ]


def _largest_dim(found):
    return max((max(shape, default=0) for shape in found.values()), default=0)


def model_shapes(config):
    """{name: shape} of the parameters of a GPT. UserError if a size is too large for a tensor."""
    # Scaled frequencies are no parameters, and a dict is no key of a cache.
    return _model_shapes(dataclasses.astuple(dataclasses.replace(config, rope_scaling=None)))


@functools.lru_cache(maxsize=8)
def _model_shapes(values):
    try:
        with torch.device("meta"):
            model = GPT(GPTConfig(*values))
    except (RuntimeError, OverflowError) as error:
        raise UserError(f"config: no such model can be built ({_first_line(error)})") from None
    return {name: tuple(weight.shape) for name, weight in model.named_parameters()}


def _first_line(error):
    return str(error).splitlines()[0][:150]
