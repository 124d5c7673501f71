"""Find files: paths → the files that are read, and those that are passed over.

for path in find_files("wiki,novel.txt.gz"):
    source = SourceFile(path)
    for document in documents(source):    # containers.py
        …
    print(source.size, source.sha256)     # of the file on the disk
"""

import glob
import hashlib
import os
from pathlib import Path
from typing import NamedTuple

from minigpt.common.errors import UserError
from minigpt.data.readers.containers import (
    CONTAINERS,
    HEAD,
    KINDS,
    READ_SIZE,
    reason_to_pass_over,
)

SUFFIXES = f"{' '.join(KINDS)} {' '.join(CONTAINERS)} (each also .gz .bz2 .xz .zst .zip)"


class Found(NamedTuple):
    """files: paths to read.  passed_over: [(path, reason)] of other files in the same folders."""

    files: list
    passed_over: list


def find_files(paths):
    """Return the files under `paths` (a comma-separated string, a path, or a list of paths).

    Files are sorted within each folder, and each is listed once. A path may have * and ?. A folder
    is walked recursively, without hidden files and folders, and without prepared datasets (their
    val.jsonl would be in both splits). A file is read by its suffix; where that is unknown, by its
    first bytes. UserError where a path is missing, or a folder has nothing to read.
    """
    return search(paths).files


def search(paths):
    """Return Found: what find_files() returns, and what it passes over."""
    if isinstance(paths, str) and not os.path.exists(paths):
        paths = [part.strip() for part in paths.split(",") if part.strip()]
    if isinstance(paths, str | os.PathLike):
        paths = [paths]
    paths = [Path(each) for path in paths if str(path) for each in _matches(path)]
    if not paths:
        raise UserError(f"no input: give --input=PATH[,PATH…], files or folders with {SUFFIXES}")
    files, passed_over = {}, {}
    for path in paths:
        if path.is_dir():
            found, others = _search_folder(path)
        elif not path.exists():
            raise UserError(f"{path}: no such file or folder; expected either, with {SUFFIXES}")
        elif not path.is_file():
            raise UserError(f"{path}: expected a file or a folder; save the data to a file first")
        else:
            found, others = [path], []
        files.update({file.resolve(): file for file in found if file.resolve() not in files})
        passed_over.update({file.resolve(): (file, reason) for file, reason in others})
    left = [about for resolved, about in passed_over.items() if resolved not in files]
    return Found(list(files.values()), left)


def _matches(path):
    """The files that a path with * or ? names, sorted; the path itself where it has none or names
    a file."""
    path = os.path.expanduser(path)
    if os.path.exists(path) or not set("*?") & set(path):
        return [path]
    return sorted(glob.glob(path, recursive=True)) or [path]


def _search_folder(folder):
    found, others = [], []
    for path, reason in _walk(folder):
        (others.append((path, reason)) if reason else found.append(path))
    if not found:
        seen = ", ".join(f"{path.name} ({reason})" for path, reason in others[:5])
        has = f"; it has {seen}{', …' * (len(others) > 5)}" if others else ""
        raise UserError(f"{folder}: no file in this folder can be read: expected {SUFFIXES}{has}")
    return found, others


def _walk(folder):
    """Yield (path, None, or the reason to pass it over) in an order that does not depend on the
    file system."""
    for parent, folders, names in os.walk(folder):
        if "train.bin" in names:
            folders.clear()
            yield Path(parent), "a prepared dataset"
            continue
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(names):
            path = Path(parent, name)
            if name.startswith("."):
                continue
            if not path.is_file():
                yield path, "no file"
            else:
                yield path, reason_to_pass_over(name, _head(path))


def _head(path):
    try:
        with open(path, "rb") as file:
            return file.read(HEAD)
    except OSError:
        return b""  # the error is reported when it is read


# -- open ------------------------------------------------------------------------------------------


class SourceFile:
    """A file on the disk. `size` counts the bytes that were read so far, at most those of the file;
    after finish() `size` and `sha256` are of the whole file."""

    def __init__(self, path):
        self.path = Path(path)
        self.size = 0
        self.passed_over = []  # (name, reason) of members of a .zip
        self.notes = []  # for the report
        self._digest = hashlib.sha256()
        self._file = None
        self._in_order = True

    @property
    def name(self):
        """The path as the user gave it, with / on every system."""
        return self.path.as_posix()

    @property
    def sha256(self):
        """Hex digits over the bytes read so far."""
        return self._digest.hexdigest()

    def read(self, size=-1):
        """Return the next bytes as they are on the disk."""
        if self._file is None:
            self._file = open(self.path, "rb")
        data = self._file.read(size)
        self._digest.update(data)
        self.size += len(data)
        return data

    def open_seekable(self):
        """Return the file for readers that jump in it. Its reads advance `size`, too."""
        self._in_order = False
        return _Seekable(self.path, self)

    def finish(self):
        """Read the rest of the file, for its hash, and close it."""
        if not self._in_order:
            self.close()
            self.size, self._digest = 0, hashlib.sha256()
        while self.read(READ_SIZE):
            pass
        self.close()

    def close(self):
        if self._file is not None:
            self._file.close()
            self._file = None


class _Seekable:
    """A file that adds what is read of it to the `size` of its source."""

    def __init__(self, path, source):
        self._file, self._source = open(path, "rb"), source
        self._most = os.path.getsize(path)

    def read(self, size=-1):
        data = self._file.read(size)
        self._source.size = min(self._most, self._source.size + len(data))
        return data

    def __getattr__(self, name):  # seek, tell, close, closed, …
        return getattr(self._file, name)
