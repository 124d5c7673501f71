"""Where an export is written: completely or not at all, and only an earlier export is replaced.

    check_target("out/sft/hf", hf_export.stranger)      # before the work
    with exported("out/sft/hf") as partial:             # a path beside it, renamed at the end
        …

Also the dtypes in which weights are exported.
"""

import contextlib
import errno
from pathlib import Path

import torch

from minigpt.common.errors import UserError
from minigpt.common.files import written_whole
from minigpt.common.locks import lock_path, locked

NAME = "MiniGPT"  # written into an export, to recognise it
DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


def check_target(target, stranger):
    """UserError if an export to `target` would overwrite anything but an earlier export.

    stranger: a function of `target` that returns why it is not an export, or None if it is one.
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
    """files.written_whole(), with a UserError if `target` cannot be written or another process
    writes there."""
    try:
        with locked(lock_path(target), target, "--output"), written_whole(target) as partial:
            yield partial
    except OSError as error:
        if error.errno == errno.ENOSPC:
            raise  # errors.run reports it
        raise _unwritable(target, error) from None


def _unwritable(path, error):
    return UserError(
        f"{path}: cannot be written ({error.strerror or error}); give another --output"
    )


def converted(name, weight, dtype):
    """`weight` as the torch dtype `dtype`. UserError if a value is outside its range."""
    small = weight.to(dtype)
    if not torch.isfinite(small).all():
        largest = weight.abs().max().item()
        raise UserError(
            f"--dtype={str(dtype).removeprefix('torch.')}: {name} has {largest:.3g}, which is "
            "outside its range; use bfloat16 or float32"
        )
    return small.contiguous()
