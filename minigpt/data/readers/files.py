"""Find files, and open them: paths → files → bytes.

for path in find_files("wiki,novel.txt.gz"):
    source = SourceFile(path)
    for block in source.blocks():      # unpacked bytes, about READ_SIZE at a time
        …
    print(source.size, source.sha256)  # of the file on the disk
"""

import gzip
import hashlib
import os
import re
import zlib
from pathlib import Path

from minigpt.common.errors import UserError

# How a file is read, by its suffix: "json" (a list or an object a line) or "prose".
KINDS = {".jsonl": "json", ".json": "json", ".txt": "prose"}
_WIKI_EXTRACTOR = re.compile(r"wiki_\d+")  # WikiExtractor --json: an object a line, no suffix
READ_SIZE = 2**18  # bytes per read: some 60 ms of work for the process that encodes them


# -- find ------------------------------------------------------------------------------------------


def find_files(paths):
    """Return the files under `paths` (a comma-separated string, a path, or a list of paths).

    Files are sorted within each folder, and each is listed once. A folder is walked recursively,
    without hidden files and folders, and without prepared datasets (their val.jsonl would be in
    both splits). UserError where a path is missing, has an unknown suffix, or has nothing to read.
    """
    if isinstance(paths, str) and not os.path.exists(paths):
        paths = [part.strip() for part in paths.split(",") if part.strip()]
    if isinstance(paths, str | os.PathLike):
        paths = [paths]
    suffixes = ", ".join(KINDS) + " (each also .gz)"
    if not [path for path in paths if str(path)]:
        raise UserError(f"no input: give --input=PATH[,PATH…], files or folders with {suffixes}")
    files = {}
    for path in map(Path, paths):
        if path.is_dir():
            found = [file for file in _walk(path) if file_kind(file)]
            if not found:
                raise UserError(f"{path}: no file in this folder ends in {suffixes}")
        elif not path.exists():
            raise UserError(f"{path}: no such file or folder; expected either, with {suffixes}")
        elif not file_kind(path):
            raise UserError(f"{path}: expected a name that ends in {suffixes}; rename the file")
        else:
            found = [path]
        files.update({file.resolve(): file for file in found if file.resolve() not in files})
    return list(files.values())


def _walk(folder):
    """Yield the files under a folder in an order that does not depend on the file system."""
    for parent, folders, names in os.walk(folder):
        if "train.bin" in names:
            folders.clear()
            continue
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        yield from (Path(parent, name) for name in sorted(names) if not name.startswith("."))


def file_kind(path):
    """Return the kind of a file (see KINDS) by its name, or None."""
    if _WIKI_EXTRACTOR.fullmatch(path.name):
        return "json"
    return KINDS.get(without_gz(path).suffix.lower())


def is_gzip(path):
    """Return whether the name of a file ends in .gz, in upper or lower case."""
    return path.suffix.lower() == ".gz"


def without_gz(path):
    """Return a path without the suffix .gz."""
    return path.with_suffix("") if is_gzip(path) else path


# -- open ------------------------------------------------------------------------------------------


class SourceFile:
    """A file that is read once. Afterwards `size` (bytes on the disk) and `sha256` describe it."""

    def __init__(self, path):
        self.path = Path(path)
        self.size = 0
        self._digest = hashlib.sha256()

    @property
    def name(self):
        """The path as the user gave it, with / on every system."""
        return self.path.as_posix()

    @property
    def kind(self):
        """See file_kind()."""
        return file_kind(self.path)

    @property
    def sha256(self):
        """Hex digits over the bytes read so far."""
        return self._digest.hexdigest()

    def read(self, size=-1):
        """Return the next bytes as they are on the disk (gzip reads through this, too)."""
        data = self._file.read(size)
        self._digest.update(data)
        self.size += len(data)
        return data

    def blocks(self):
        """Yield the unpacked bytes, about READ_SIZE at a time. UserError where the file cannot be
        read or unpacked."""
        try:
            with open(self.path, "rb") as self._file:
                file = gzip.GzipFile(fileobj=self, mode="rb") if is_gzip(self.path) else self
                while block := file.read(READ_SIZE):
                    yield block
        except (gzip.BadGzipFile, EOFError, zlib.error) as error:
            raise UserError(f"{self.name}: cannot be unpacked ({error}): copy it again") from None
        except OSError as error:
            raise UserError(f"{self.name}: cannot be read ({error.strerror or error})") from None
