"""Weights in a folder of Hugging Face's: safetensors or pytorch_model.bin, in one file or several.

    shapes = read_shapes(folder)      # {name: shape}, before any tensor is read
    tensors = read_tensors(folder)    # {name: tensor}

The files are untrusted input. A .bin file is a pickle: only tensors are unpickled (weights_only),
and those of a file that torch wrote since 2020 are mapped, not read.
"""

import re

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from minigpt.common.errors import UserError
from minigpt.interop.hf_weights import BUFFERS
from minigpt.models import shapes
from minigpt.tokenizer.huggingface import read_json

SAFETENSORS = ("model.safetensors.index.json", "model.safetensors", "model-*-of-*.safetensors")
PICKLES = ("pytorch_model.bin.index.json", "pytorch_model.bin", "pytorch_model-*-of-*.bin")
_AGAIN = "copy it again"
_FLOATS = (torch.float64, torch.float32, torch.float16, torch.bfloat16)


def has_safetensors(folder):
    """Whether the weights in `folder` are safetensors."""
    return any((folder / name).is_file() for name in SAFETENSORS[:2])


def read_shapes(folder):
    """{name: shape} of all weights, of safetensors from the headers. UserError for files that are
    missing or damaged, or hold other numbers than floating-point ones."""
    found = {}
    for name in weight_files(folder):
        if not (folder / name).is_file():
            raise _missing(name)
        if name.endswith(".safetensors"):
            found |= shapes.read_shapes(folder / name, _AGAIN)
        else:
            found |= {
                key: tuple(tensor.shape) for key, tensor in _read_pickle(folder / name).items()
            }
    return found


def read_tensors(folder):
    """{name: tensor} of all weights. UserError as in read_shapes()."""
    tensors = {}
    for name in weight_files(folder):
        try:
            if name.endswith(".safetensors"):
                tensors |= load_file(folder / name)
            else:
                tensors |= _read_pickle(folder / name)
        except FileNotFoundError:
            raise _missing(name) from None
        except (OSError, SafetensorError) as error:
            raise UserError(f"{name}: cannot be read ({error}); {_AGAIN}") from None
    return tensors


def weight_files(folder):
    """The names of the weight files: those that an index lists, or one; safetensors first."""
    index, whole = SAFETENSORS[:2] if has_safetensors(folder) else PICKLES[:2]
    if not (folder / index).is_file():
        return [whole if (folder / whole).is_file() else SAFETENSORS[1]]
    parts = read_json(folder / index).get("weight_map")
    if not isinstance(parts, dict) or not parts:
        raise UserError(f"{index}: has no weight_map; {_AGAIN}")
    suffix = whole.rpartition(".")[2]
    for part in parts.values():
        if not isinstance(part, str) or not re.fullmatch(rf"\w[\w.-]{{0,200}}\.{suffix}", part):
            raise UserError(
                f"{index}: {str(part)[:60]!r}: expected the name of a .{suffix} file in the same "
                f"folder; {_AGAIN}"
            )
    return sorted(set(parts.values()))


def _missing(name):
    return UserError(
        f"{name}: missing (weights are read from model.safetensors or pytorch_model.bin, one file "
        "or several with an index); copy the model's whole folder"
    )


def _read_pickle(path):
    """{name: tensor} of a .bin file, without masks. UserError for anything but tensors."""
    try:
        found = _unpickle(path)
    except FileNotFoundError:
        raise
    except Exception as error:  # a damaged file can raise anything in the unpickler
        reason = (str(error).strip() or type(error).__name__).splitlines()[0][:150]
        raise UserError(f"{path}: cannot be read as weights ({reason}); {_AGAIN}") from None
    if not isinstance(found, dict) or not found or not all(isinstance(name, str) for name in found):
        raise UserError(f"{path}: expected tensors by their names; {_AGAIN}")
    found = {name: tensor for name, tensor in found.items() if not BUFFERS.search(name)}
    wrong = [name for name, tensor in found.items() if not _is_weight(tensor)]
    if wrong:
        raise UserError(f"{path}: {shapes.few(wrong)}: expected floating-point numbers; {_AGAIN}")
    return found


def _unpickle(path):
    options = dict(map_location="cpu", weights_only=True)
    try:
        return torch.load(path, mmap=True, **options)
    except RuntimeError as error:
        if "mmap" not in str(error):
            raise
        return torch.load(path, **options)  # the format before torch 1.6


def _is_weight(tensor):
    """Whether it is a dense tensor of floating-point numbers, all of which the file has: a stride
    of 0 could claim any size."""
    dense = isinstance(tensor, torch.Tensor) and tensor.layout == torch.strided
    if not dense or tensor.dtype not in _FLOATS:
        return False
    return tensor.numel() * tensor.element_size() <= tensor.untyped_storage().nbytes()
