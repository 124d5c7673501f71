"""Files and folders that are whole, or as they were.

with written_whole("out/run/perplexity.json") as partial:
    partial.write_text("…")
"""

import contextlib
import os
import shutil
from pathlib import Path


@contextlib.contextmanager
def written_whole(path):
    """Give a path beside `path` to write a file or a folder to; it takes the place of `path` when
    the block has ended well.

    Whatever stops the writing (an error, Ctrl-C, kill -9, a full disk), `path` keeps what it held;
    what was half written is removed at once, or by the next who writes there. OSError where
    nothing can be written. A device or a pipe is given as it is.
    """
    path = Path(path)
    if path.exists() and not (path.is_file() or path.is_dir()):
        yield path
        return
    path = Path(os.path.realpath(path))  # of a link: what it leads to is replaced
    partial, old = beside(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if old.exists() and not path.exists():
            old.rename(path)  # a writer was killed between the two renames below
        for leftover in (partial, old):
            _remove(leftover)
        yield partial
        if path.is_dir() and partial.is_dir():
            _swap(path, partial, old)
        else:
            partial.replace(path)  # refused by the system where one is a folder
    finally:
        with contextlib.suppress(OSError):
            _remove(partial)


def beside(path):
    """The two paths that written_whole() may leave beside `path` when it is killed: of what was
    half written, and of what stood there before."""
    return path.with_name(f".{path.name}.partial"), path.with_name(f".{path.name}.old")


def _swap(folder, partial, old):
    # A folder cannot be renamed over another one.
    folder.rename(old)
    try:
        partial.rename(folder)
    except OSError:
        old.rename(folder)
        raise
    shutil.rmtree(old, ignore_errors=True)


def _remove(path):
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
