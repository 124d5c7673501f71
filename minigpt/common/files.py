"""Atomic writing of files and folders, and reading while another process replaces them.

    with written_whole("out/run/perplexity.json") as partial:
        partial.write_text("…")
    facts = read_json("out/run/config.json", "train the run again")

Writing means: a temporary name in the same folder, fsync of the data, rename, fsync of the folder.
So there is either the old or the new content, even after a power cut.
"""

import contextlib
import errno
import os
import re
import secrets
import shutil
import time
from pathlib import Path

from minigpt.common import locks
from minigpt.common.errors import UserError
from minigpt.common.json_text import parse_json

PATIENCE = 5.0  # seconds that a reader or a second writer waits for a writer
LARGEST_JSON = 2**27  # bytes; the tokenizer.json of a vocabulary of 250,000 has 2**25
_partials = set()  # temporary names that this process is writing


# -- writing ---------------------------------------------------------------------------------------


@contextlib.contextmanager
def written_whole(path):
    """Yield a temporary path in the same folder, to write a file or a folder to. It replaces `path`
    when the block ends without an error.

    Whatever stops the writing (an error, Ctrl-C, kill -9, a full disk, a power cut), `path` keeps
    its old content, and the temporary file is removed at once, or by the next process that writes
    there. One process writes at a time (minigpt/common/locks.py): a second one waits PATIENCE
    seconds, then gets a UserError. OSError if nothing can be written. A device or a pipe is yielded
    itself.
    """
    path = Path(path)
    if path.exists() and not (path.is_file() or path.is_dir()):
        yield path
        return
    path = Path(os.path.realpath(path))  # of a link: its target is replaced
    partial = path.with_name(f".{path.name}.{secrets.token_hex(4)}.partial")
    with locks.locked(locks.lock_path(path), path, wait=PATIENCE) as alone:
        if alone:
            _clear(path)
        _partials.add(partial)
        try:
            yield partial
            if partial.is_dir():
                share(partial)
            sync(partial)
            if path.is_dir() and partial.is_dir():
                _swap(path, partial)
            else:
                partial.replace(path)  # the system refuses if one is a folder
            sync_folder(path.parent)
        finally:
            _partials.discard(partial)
            with contextlib.suppress(OSError):
                _remove(partial)


def set_aside(path):
    """Where the old folder is between the two renames of _swap()."""
    return path.with_name(f".{path.name}.old")


def leftovers(path):
    """What a killed written_whole() may have left in the folder of `path`."""
    name = re.compile(rf"\.{re.escape(path.name)}\.(([0-9a-f]{{8}}\.)?partial|old)")
    try:
        return [found for found in path.parent.iterdir() if name.fullmatch(found.name)]
    except FileNotFoundError:
        return []


def share(folder):
    """Give the files in a new folder the permissions that the umask allows, as open() does: some
    libraries create files that only their owner can read."""
    mode = folder.stat().st_mode & 0o666  # mkdir() gave it 0o777 without the umask
    for path in folder.iterdir():
        if path.is_file():
            path.chmod(mode)


def sync(path):
    """fsync a file, or a folder with everything in it."""
    if path.is_dir():
        for inner in path.iterdir():
            sync(inner)
        sync_folder(path)
    else:
        sync_file(path)


def sync_file(path):
    """fsync a file."""
    with open(path, "rb+" if os.name == "nt" else "rb") as file:
        os.fsync(file.fileno())


def sync_folder(path):
    """fsync a folder, so that a rename in it survives a power cut. Windows has no such call."""
    if os.name == "nt":
        return
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP, errno.EBADF):  # some network disks
            raise
    finally:
        os.close(fd)


def _clear(path):
    """Clean up after a killed writer. Only call it while holding the lock."""
    old = set_aside(path)
    if old.exists() and not path.exists():
        old.rename(path)  # it was killed between the two renames below
    for leftover in leftovers(path):
        if leftover not in _partials:
            _remove(leftover)


def _swap(folder, partial):
    # A folder cannot be renamed over another one.
    old = set_aside(folder)
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


# -- reading ---------------------------------------------------------------------------------------


def read_unchanged(read, paths, pending=lambda: None):
    """Call read() again until no file of `paths` changes meanwhile, so that all are from one save.

    pending(): None, or the reason why the files cannot be read yet. An error of read() is raised
    only if no file changed meanwhile. UserError if this does not end within PATIENCE seconds.
    """
    end = time.monotonic() + PATIENCE
    while True:
        before, why, error = _stamps(paths), pending(), None
        if not why:
            try:
                found = read()
            except (UserError, OSError) as caught:
                error = caught
            if _stamps(paths) == before:
                if error:
                    raise error
                return found
        if time.monotonic() > end:
            raise UserError(why or f"{paths[0].parent}: its files change all the time; try again")
        time.sleep(0.01)


def _stamps(paths):
    """File facts that change when a file is replaced or written."""
    found = []
    for path in paths:
        try:
            facts = os.stat(path)
            found.append((facts.st_dev, facts.st_ino, facts.st_size, facts.st_mtime_ns))
        except OSError:
            found.append(None)
    return found


def read_json(path, remedy):
    """The JSON object in an untrusted file, as a dict. UserError, with the remedy, if the file is
    too large, not JSON, nested too deeply, or not an object. FileNotFoundError if it is missing."""
    path = Path(path)
    try:
        if path.stat().st_size > LARGEST_JSON:
            raise UserError(f"{path}: larger than {LARGEST_JSON >> 20} MB; {remedy}")
        found = parse_json(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); {remedy}") from None
    except ValueError as error:
        raise UserError(f"{path}: not JSON ({str(error)[:100]}); {remedy}") from None
    if not isinstance(found, dict):
        raise UserError(f"{path}: expected a JSON object, found {type(found).__name__}; {remedy}")
    return found
