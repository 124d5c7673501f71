"""Open: a file → its documents, unpacked. The first bytes decide; a suffix may be missing or wrong.

for document in documents(source):       # a SourceFile: one document, or the members of a .zip
    document.kind                        # "json", "csv", "tsv", "prose", "parquet", "arrow", …
    for block in document.blocks():      # unpacked bytes, about READ_SIZE at a time
        …

Compression is removed whatever the name is, also twice. pyarrow (.parquet, .arrow) and zstandard
(.zst) are imported where they are needed.
"""

import bz2
import contextlib
import gzip
import io
import lzma
import re
import tempfile
import zipfile
import zlib
from dataclasses import dataclass
from pathlib import PurePosixPath

from minigpt.common.errors import UserError

READ_SIZE = 2**18  # bytes per read: some 60 ms of work for the process that encodes them
HEAD = 2**12  # bytes at the beginning that tell what a file is
MOST_LAYERS = 3  # of compression
# A file that unpacks to more than both is no text, but an attack on the disk or on time.
MOST_UNPACKED, MOST_RATIO = 2**30, 500

# How text is read, by its suffix; other names: by the first bytes.
KINDS = {
    **{".jsonl": "json", ".json": "json", ".ndjson": "json"},
    **{".csv": "csv", ".tsv": "tsv", ".txt": "prose", ".md": "prose"},
}
CONTAINERS = {".parquet": "parquet", ".arrow": "arrow"}
# What a folder of Hugging Face `datasets`, or a repository, has beside its data.
_METADATA = re.compile(
    r"(readme|license|changelog|contributing)(\.\w+)?|dataset_(info|infos|dict)\.json|state\.json"
    r"|(cache-|indices).*\.arrow",
    re.IGNORECASE,
)
_COMPRESSED = re.compile(r"\.(gz|bz2|xz|zst|zip)$", re.IGNORECASE)
_WIKI_EXTRACTOR = re.compile(r"wiki_\d+")  # WikiExtractor --json: an object a line, no suffix

_MAGIC = (
    (b"\x1f\x8b", "gzip"),
    (b"BZh", "bzip2"),
    (b"\xfd7zXZ\0", "xz"),
    (b"\x28\xb5\x2f\xfd", "zstd"),
    (b"PK\3\4", "zip"),
    (b"PK\5\6", "zip"),  # empty
    (b"PAR1", "parquet"),
    (b"ARROW1\0\0", "arrow"),
    (b"\xff\xff\xff\xff", "arrow stream"),
)
# Recognized only to be refused by name.
_REFUSED = (
    (b"%PDF-", "a PDF document"),
    (b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1", "a Word or Excel document"),
    (b"{\\rtf", "an RTF document"),
    (b"7z\xbc\xaf\x27\x1c", "a 7-Zip archive"),
    (b"Rar!\x1a\x07", "a RAR archive"),
    (b"SQLite format 3\0", "an SQLite database"),
)
_ERRORS = (OSError, EOFError, zlib.error, lzma.LZMAError, zipfile.BadZipFile, NotImplementedError)


def suffixes(name):
    """Return (name without suffixes, its last suffix in lower case) after those of compression:
    ("wiki", ".jsonl") of "wiki.jsonl.gz"."""
    path = PurePosixPath(name)
    while _COMPRESSED.search(path.name) and path.stem:
        path = path.with_suffix("")
    return path.stem, path.suffix.lower()


def kind_of_name(name):
    """Return how a file of this name is read (a value of KINDS or CONTAINERS, or "zip"), or None
    where the name does not tell."""
    stem, suffix = suffixes(name)
    if _WIKI_EXTRACTOR.fullmatch(stem) and not suffix:
        return "json"
    if name.lower().endswith(".zip"):
        return "zip"
    return KINDS.get(suffix) or CONTAINERS.get(suffix)


def container_of(head):
    """Return what these first bytes of a file are by _MAGIC, or None."""
    for magic, kind in _MAGIC:
        # bzip2: its mark is text; the digit and the six bytes after it are not.
        if head.startswith(magic) and (kind != "bzip2" or head[4:10] in _BZIP2):
            return kind
    return None


_BZIP2 = (b"1AY&SY", b"\x17\x72\x45\x38\x50\x90")


def reason_to_pass_over(name, head):
    """Return why a file in a folder or in a .zip is not read, None if it is. head: its first bytes.

    It is read by its name, or else if its first bytes are of a container or of records in JSON.
    """
    if _METADATA.fullmatch(name):
        return "metadata"
    if kind_of_name(name) or _is_data(head, name):
        return None
    return "no known suffix, and neither JSON nor a known container"


def _is_data(head, name):
    try:
        for _ in range(MOST_LAYERS):
            kind = container_of(head)
            if kind not in _UNPACKERS:
                return bool(kind) or bool(_JSON.match(head))
            head = _UNPACKERS[kind](io.BytesIO(head), name).read(HEAD // 8)
    except UserError:
        return True  # a package is missing: say so when the file is read
    except _ERRORS:
        pass
    return False


_JSON = re.compile(rb'(?:\xef\xbb\xbf)?\s*(?:\{\s*"|\[\s*[\[{"])')


# -- documents -------------------------------------------------------------------------------------


@dataclass
class Document:
    """A text or a table in a file.

    name:   of the file; of a member in a .zip "FILE.zip/MEMBER"
    kind:   a value of KINDS, "parquet", "arrow", "arrow stream", or None: decided by the text
    stream: a file object with the unpacked bytes; of "parquet" and "arrow" one that can seek
    """

    name: str
    kind: str | None
    stream: object

    def blocks(self):
        """Yield the bytes, about READ_SIZE at a time. UserError where they cannot be unpacked."""
        with unpacking(self.name):
            while block := self.stream.read(READ_SIZE):
                yield block


@contextlib.contextmanager
def unpacking(name):
    """Turn what goes wrong with a file or its compression into a UserError."""
    try:
        yield
    except _ERRORS as error:
        packed = not isinstance(error, OSError) or isinstance(error, gzip.BadGzipFile)
        if packed or error.errno is None:  # of bz2: an OSError without a number
            message = str(error) or type(error).__name__
            raise UserError(f"{name}: cannot be unpacked ({message}): copy it again") from None
        raise UserError(f"{name}: cannot be read ({error.strerror or error})") from None


def documents(source):
    """Yield the Documents of a SourceFile. What is passed over in a .zip is added to
    source.passed_over. UserError where it cannot be read or unpacked."""
    with unpacking(source.name):
        yield from _documents(source.name, source, 0, source)
        source.finish()


def _documents(name, stream, layers, source):
    """Yield the documents of an open stream, which is `source` or was unpacked from it."""
    head = stream.read(HEAD)
    kind = container_of(head)
    if (kind in _UNPACKERS or kind == "zip") and layers == MOST_LAYERS:
        raise UserError(f"{name}: compressed more than {MOST_LAYERS} times; unpack it first")
    if kind in _UNPACKERS:
        unpacked = _UNPACKERS[kind](_Prefixed(head, stream), name)
        bounded = _Bounded(unpacked, name, lambda: stream.size)
        yield from _documents(name, bounded, layers + 1, source)
    elif kind in ("zip", "parquet", "arrow"):
        with _seekable(head, stream, source) as file:
            if kind == "zip":
                yield from _members(name, file, layers, source)
            else:
                yield Document(name, kind, file)
    else:
        _refuse(name, head)
        known = kind or kind_of_name(PurePosixPath(name).name)
        known = None if known in ("zip", *CONTAINERS.values()) else known
        yield Document(name, known, _Prefixed(head, stream))


def _refuse(name, head):
    for magic, what in _REFUSED:
        if head.startswith(magic):
            raise UserError(f"{name}: {what}; expected text: save its text as .txt first")
    if head[257:262] == b"ustar":
        raise UserError(f"{name}: a tar archive; unpack it, and give the folder")


def _members(name, file, layers, source):
    """Yield the documents of the members of a .zip. They are never written under their names."""
    with zipfile.ZipFile(file) as archive:
        members = [member for member in archive.infolist() if not member.is_dir()]
        if {"[Content_Types].xml", "mimetype"} & {member.filename for member in members}:
            raise UserError(
                f"{name}: an office document or an e-book; expected text: save it as .txt first"
            )
        for member in members:
            path = PurePosixPath(member.filename)
            inner = f"{name}/{path}"
            if any(part.startswith((".", "__MACOSX")) for part in path.parts):
                continue
            if member.flag_bits & 1:
                raise UserError(f"{inner}: needs a password; unpack it first")
            with archive.open(member) as stream:
                size = member.compress_size
                stream = _Bounded(stream, inner, lambda size=size: size)
                head = stream.read(HEAD)
                if reason := reason_to_pass_over(path.name, head):
                    source.passed_over.append((inner, reason))
                else:
                    yield from _documents(inner, _Prefixed(head, stream), layers + 1, source)


@contextlib.contextmanager
def _seekable(head, stream, source):
    """A stream as a file that can seek: the source itself, or a temporary copy."""
    if stream is source:
        with contextlib.closing(source.open_seekable()) as file:
            yield file
        return
    with tempfile.TemporaryFile(prefix="minigpt_") as copy:
        copy.write(head)
        while block := stream.read(READ_SIZE):
            copy.write(block)
        copy.seek(0)
        yield copy


# -- streams ---------------------------------------------------------------------------------------


class _Prefixed(io.RawIOBase):
    """A stream whose first bytes have been read already. Fewer bytes than wanted are its end."""

    def __init__(self, head, stream):
        self._head, self._stream = head, stream

    @property
    def size(self):
        """The bytes that were read of the stream."""
        return self._stream.size

    def readable(self):
        return True

    def read(self, size=-1):
        parts, wanted = [], float("inf") if size is None or size < 0 else size
        while wanted > 0:
            data = self._head or self._stream.read(min(wanted, READ_SIZE))
            if not data:
                break
            data, self._head = (data, b"") if len(data) <= wanted else (data[:size], data[size:])
            parts.append(data)
            wanted -= len(data)
        return b"".join(parts)


class _Bounded:
    """An unpacked stream. UserError where it becomes too large for what it was unpacked from.

    packed: () → the number of bytes that it was unpacked from.
    """

    def __init__(self, stream, name, packed):
        self._stream, self._name, self._packed = stream, name, packed
        self.size = 0

    def read(self, size=-1):
        data = self._stream.read(size)
        self.size += len(data)
        if self.size > MOST_UNPACKED and self.size > MOST_RATIO * self._packed():
            raise UserError(
                f"{self._name}: unpacks to more than {MOST_RATIO} times its size; expected text"
            )
        return data


class _Zstd:
    """The unpacked bytes of a .zst, of one or several frames."""

    def __init__(self, stream, name):
        try:
            import zstandard
        except ImportError:
            raise UserError(
                f"{name}: compressed by Zstandard; to read it: pip install zstandard"
            ) from None
        self._stream, self._error = stream, zstandard.ZstdError
        # The window of `zstd --long=31`, in which some large dumps are packed.
        self._frame = zstandard.ZstdDecompressor(max_window_size=2**31).decompressobj
        self._unpacker = None
        self._rest = b""  # packed bytes, not unpacked yet

    def read(self, size):
        try:
            # A frame may unpack to thousands of times its size: it gets little at once.
            while data := self._rest[:HEAD] or self._stream.read(HEAD):
                self._rest = self._rest[HEAD:]
                self._unpacker = self._unpacker or self._frame()
                unpacked = self._unpacker.decompress(data)
                if self._unpacker.eof:
                    self._rest = self._unpacker.unused_data + self._rest
                    self._unpacker = None
                if unpacked:
                    return unpacked
        except self._error as error:
            raise EOFError(str(error)) from None
        if self._unpacker:
            raise EOFError("it ends too early")
        return b""


_UNPACKERS = {
    "gzip": lambda stream, name: gzip.GzipFile(fileobj=stream, mode="rb"),
    "bzip2": lambda stream, name: bz2.BZ2File(stream),
    "xz": lambda stream, name: lzma.LZMAFile(stream),
    "zstd": _Zstd,
}
