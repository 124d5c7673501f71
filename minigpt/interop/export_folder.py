"""Where an export lands: whole or not at all, and never over anything but an earlier export.

    check_target("out/sft/hf", hf_export.stranger)      # before the work
    with exported("out/sft/hf") as partial:             # a path beside it, renamed at the end
        …

And the number formats that weights are exported in.
"""

import contextlib
import errno
from pathlib import Path

import torch

from minigpt.common.errors import UserError
from minigpt.common.files import written_whole
from minigpt.common.locks import beside, locked

NAME = "MiniGPT"  # by which an export says whose it is
DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


def check_target(target, stranger):
    """UserError where an export to `target` would overwrite anything but an earlier one.

    stranger: target → what lies there and is no export, in words, or None.
    """
    target = Path(target)
    try:
        found = stranger(target) if target.exists() else None
    except OSError as error:
        raise _unwritable(target, error) from None
    if found:
        raise UserError(
            f"{target}: {found}; only an earlier export is replaced: give another --output"
        )


@contextlib.contextmanager
def exported(target):
    """files.written_whole(), with UserError where nothing can be written or another process writes
    there."""
    try:
        with locked(beside(target), target, "--output"), written_whole(target) as partial:
            yield partial
    except OSError as error:
        if error.errno == errno.ENOSPC:
            raise  # configurator.run says it
        raise _unwritable(target, error) from None


def _unwritable(path, error):
    return UserError(
        f"{path}: cannot be written ({error.strerror or error}); give another --output"
    )


def converted(name, weight, dtype):
    """`weight` as torch's `dtype`. UserError for one that float16 cannot hold."""
    small = weight.to(dtype)
    if not torch.isfinite(small).all():
        largest = weight.abs().max().item()
        raise UserError(
            f"--dtype={str(dtype).removeprefix('torch.')}: {name} holds {largest:.3g}, which is "
            "outside its range: take bfloat16 or float32"
        )
    return small.contiguous()
