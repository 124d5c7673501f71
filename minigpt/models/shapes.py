"""Shapes of weights: what a config implies, and what the header of a .safetensors file has.

    config = model_config(facts, "out/run/config.json")     # types and ranges
    check_weights(config, "out/run/model.safetensors", "out/run/config.json")

A checkpoint may be from anywhere. Everything is compared before a model is built or a tensor is
read: the header alone is read, and the expected shapes are those of a model on the meta device,
which allocates nothing. So what a load allocates is bounded by the size of the file.
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
_BLOCK = re.compile(r"blocks\.(\d{1,9})\.")


def config_to_json(config):
    """A GPTConfig as config.json has it under "model"."""
    return {JSON_NAMES.get(name, name): value for name, value in dataclasses.asdict(config).items()}


def model_config(facts, where):
    """The GPTConfig that `facts` (a dict from a JSON file called `where`) describe, by the names in
    config.json or those of GPTConfig. UserError with a line for every value of another type or
    outside its range, and for every unknown name; it uses the names of `facts`."""
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
        problems = [f"{where}: {line}" for line in config.problems()]
    if problems:
        lines = problems if "padded_vocab_size" in given else map(_in_json, problems)
        raise UserError("\n".join(lines))
    return config


def _in_json(line):
    """An error message with the names that config.json has."""
    for name, theirs in JSON_NAMES.items():
        line = line.replace(f"{name}=", f"{theirs}=")
    return line


def read_shapes(path, remedy):
    """{name: shape} of the tensors in a .safetensors file, from its header alone. UserError, with
    the remedy, where the file is missing, torn or no .safetensors, and for tensors of no float
    type."""
    try:
        with safe_open(path, "pt") as file:
            tensors = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118
            shapes = {name: tuple(tensor.get_shape()) for name, tensor in tensors.items()}
            strange = [name for name, tensor in tensors.items() if tensor.get_dtype() not in FLOATS]
    except (OSError, SafetensorError, ValueError, OverflowError) as error:
        raise UserError(f"{path}: cannot be read ({error}); {remedy}") from None
    if strange:
        raise UserError(f"{path}: {few(strange)}: no floating-point numbers; {remedy}")
    return shapes


def check_weights(config, path, where, remedy="train the run again"):
    """UserError unless the file has the tensors that `config`, from `where`, implies."""
    found = read_shapes(path, remedy)
    problems = size_problems(config, found)
    blocks = {int(match[1]) for match in map(_BLOCK.match, found) if match}
    if len(blocks) != config.n_layer:
        problems.append(f"n_layer={config.n_layer}: the weights have {len(blocks)} blocks")
    if problems:
        raise UserError("\n".join(f"{where}: {_in_json(line)} ({path})" for line in problems))
    compare(of_model(config), found, path, where)


def check_adapters(config, lora, path, where, remedy="train the run again"):
    """UserError unless the file has the adapters of a LoRA beside a model of this config, whose own
    weights were checked."""
    found = read_shapes(path, remedy)
    largest = _largest(found)
    problems = []
    if not 1 <= lora.rank <= largest:
        problems.append(f"rank={lora.rank}: expected 1 to {largest}, the largest size in {path}")
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
    compare(expected, found, path, where)


def compare(expected, found, path, where):
    """UserError, one line, unless two {name: shape} are equal."""
    lacks = [name for name in expected if name not in found]
    also = [name for name in found if name not in expected]
    other = [
        f"{name} {found[name]} where it implies {shape}"
        for name, shape in expected.items()
        if name in found and found[name] != shape
    ]
    parts = [f"lacks {few(lacks)}"] * bool(lacks) + [f"has also {few(also)}"] * bool(also)
    parts += [f"has {few(other)}"] * bool(other)
    if parts:
        raise UserError(f"{path}: does not fit {where}: {'; '.join(parts)}")


def few(names):
    """Some of `names`, for a message."""
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return ", ".join(name[:120] for name in names[:3]) + more if names else "nothing"


def size_problems(config, found):
    """A line for each size of the config that is larger than any side of the tensors `found` (name
    → shape): such a model need not even be laid out."""
    largest = _largest(found)
    return [
        f"{name}={getattr(config, name)}: no tensor of the weights has a side above {largest}"
        for name in SIZES
        if getattr(config, name) > largest
    ]


def _largest(found):
    return max((max(shape, default=0) for shape in found.values()), default=0)


def of_model(config):
    """{name: shape} of the parameters of a GPT. UserError where its sizes are beyond any tensor."""
    return _of_model(dataclasses.astuple(config))


@functools.lru_cache(maxsize=8)
def _of_model(values):
    try:
        with torch.device("meta"):
            model = GPT(GPTConfig(*values))
    except (RuntimeError, OverflowError) as error:
        raise UserError(f"config: no such model can be built ({_first_line(error)})") from None
    return {name: tuple(weight.shape) for name, weight in model.named_parameters()}


def _first_line(error):
    return str(error).splitlines()[0][:150]
