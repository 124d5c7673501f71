"""Where an export lands: whole or not at all, and never over anything but an earlier export.

    check_target("out/sft/hf", hf_export.stranger)      # before the work
    with written_whole("out/sft/hf") as unfinished:     # a path beside it, renamed at the end
        …

And the number formats that weights are exported in.
"""

import contextlib
import errno
import os
import shutil
from pathlib import Path

import torch

from config.configurator import UserError

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
def written_whole(target):
    """Give a path beside `target` to write a file or a folder to; it takes the place of `target`
    when all is written. If anything fails, what stood there stays. UserError where nothing can be
    written."""
    target = Path(os.path.realpath(target))  # of a link: what it leads to is replaced
    unfinished = target.with_name(f".{target.name}.unfinished")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        _remove(unfinished)  # of an export that was killed
        yield unfinished
        if target.is_dir():
            # A folder cannot be renamed over another one.
            old = target.with_name(f".{target.name}.old")
            _remove(old)
            target.rename(old)
            try:
                unfinished.rename(target)
            except OSError:
                old.rename(target)
                raise
            _remove(old)
        else:
            unfinished.replace(target)
    except OSError as error:
        if error.errno == errno.ENOSPC:
            raise  # configurator.run says it
        raise _unwritable(target, error) from None
    finally:
        with contextlib.suppress(OSError):
            _remove(unfinished)


def _remove(path):
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


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
