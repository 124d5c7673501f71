"""Find files, and open them: paths → files → bytes.

for path in find_files("wiki,novel.txt.gz"):
    source = SourceFile(path)
    for block in source.blocks():      # unpacked bytes, about BLOCK at a time
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

SUFFIXES = (".jsonl", ".json", ".txt")
_WIKI_EXTRACTOR = re.compile(r"wiki_\d+")  # WikiExtractor --json: an object a line, no suffix
BLOCK = 2**18  # bytes that are read at once: some 60 ms of work for the process that encodes them


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
    suffixes = ", ".join(SUFFIXES) + " (each also .gz)"
    if not [path for path in paths if str(path)]:
        raise UserError(f"no input: give --input=PATH[,PATH…], files or folders with {suffixes}")
    files = {}
    for path in map(Path, paths):
        if path.is_dir():
            found = [file for file in _walk(path) if file_type(file)]
            if not found:
                raise UserError(f"{path}: no file in this folder ends in {suffixes}")
        elif not path.exists():
            raise UserError(f"{path}: no such file or folder; expected either, with {suffixes}")
        elif not file_type(path):
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


def file_type(path):
    """Return "jsonl", "json" or "txt" by the file's name, or None."""
    if _WIKI_EXTRACTOR.fullmatch(path.name):
        return "jsonl"
    suffix = path.with_suffix("").suffix if path.suffix.lower() == ".gz" else path.suffix
    return suffix.lower()[1:] if suffix.lower() in SUFFIXES else None


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
    def type(self):
        """See file_type()."""
        return file_type(self.path)

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
        """Yield the unpacked bytes, about BLOCK at a time. UserError where the file cannot be read
        or unpacked."""
        packed = self.path.suffix.lower() == ".gz"
        try:
            with open(self.path, "rb") as self._file:
                file = gzip.GzipFile(fileobj=self, mode="rb") if packed else self
                while block := file.read(BLOCK):
                    yield block
        except (gzip.BadGzipFile, EOFError, zlib.error) as error:
            raise UserError(f"{self.name}: cannot be unpacked ({error}): copy it again") from None
        except OSError as error:
            raise UserError(f"{self.name}: cannot be read ({error.strerror or error})") from None
