"""Files → entries: what data/prepare.py, data/prepare_sft.py and data/train_tokenizer.py read.

    for entry in read_entries("data/sample"):
        print(entry.id, entry.title, entry.text)

Read are .jsonl (an object a line), .json (a list of objects) and .txt (split into entries of about
2,000 characters at chapter or paragraph ends), each also as .gz, in UTF-8 with or without BOM, or
in GB18030; and files called wiki_00, wiki_01 …, as WikiExtractor's --json writes them. A file is
read as chunks, which other processes can turn into records; so memory does not grow with the file.
"""

import codecs
import gzip
import hashlib
import itertools
import json
import math
import os
import re
import zlib
from pathlib import Path
from typing import NamedTuple

import numpy as np

from minigpt.common.errors import UserError
from minigpt.common.json_text import MOST_DEPTH, is_deep, parse_json
from minigpt.data.cleaning import clean as clean_text

SUFFIXES = (".jsonl", ".json", ".txt")
_EXTRACTED = re.compile(r"wiki_\d+")  # WikiExtractor's --json, an object a line, has no suffix
CHUNK = 2**18  # bytes of text in a chunk: some 60 ms of work for the process that encodes it
LONGEST = 2**26  # bytes in a line or an item of a list; longer is not a record but a mistake
ENTRY = 2000  # characters, about, in an entry of a .txt
ROLES = ("system", "user", "assistant")  # who speaks in a conversation


class Entry(NamedTuple):
    """A text with where it comes from: `id` as the file says, else "FILE:LINE"."""

    id: str
    title: str
    text: str


class Pair(NamedTuple):
    """A question with its answer; `id` names the entry they are about, None where none is given."""

    id: str | None
    question: str
    answer: str


class Conversation(NamedTuple):
    """What was said in turn: `turns` is ((role, content), …), the roles of ROLES; `id` as the file
    gives it, None where it gives none."""

    id: str | None
    turns: tuple


class Reject(NamedTuple):
    """A record that cannot be used: where it stands, why, and how it begins."""

    source: str
    line: int
    reason: str
    text: str

    def message(self):
        """The one line that an error says."""
        return (
            f'{self.source}, line {self.line}: {self.reason}; it begins "{self.text[:60]}". '
            "Mend it, or leave such lines out with --skip_bad=true"
        )


class Chunk(NamedTuple):
    """A part of a file, cut between records.

    kind: "lines" (data: UTF-8 bytes, a JSON object a line), "items" (data: a list of (line, str), a
    JSON object each), "prose" (data: UTF-8 bytes) or "reject" (data: a Reject).
    line: the number of its first line.  size: bytes on the disk that were read for it.
    """

    source: str
    kind: str
    line: int
    data: object
    size: int = 0


# -- files -----------------------------------------------------------------------------------------


def find_files(paths):
    """The files under `paths` (a comma-separated string, a path, or a list of them), sorted within
    each folder, each once. A folder is walked recursively, without hidden files and folders and
    without prepared datasets (their val.jsonl would stand on both sides). UserError where a path
    is missing, is of no known kind, or holds nothing to read."""
    if isinstance(paths, str) and not os.path.exists(paths):
        paths = [part.strip() for part in paths.split(",") if part.strip()]
    if isinstance(paths, str | os.PathLike):
        paths = [paths]
    kinds = ", ".join(SUFFIXES) + " (each also .gz)"
    if not [path for path in paths if str(path)]:
        raise UserError(f"no input: give --input=PATH[,PATH…], files or folders with {kinds}")
    files = {}
    for path in map(Path, paths):
        if path.is_dir():
            found = [file for file in _walk(path) if _kind(file)]
            if not found:
                raise UserError(f"{path}: no file in this folder ends in {kinds}")
        elif not path.exists():
            raise UserError(f"{path}: no such file or folder; expected either, with {kinds}")
        elif not _kind(path):
            raise UserError(f"{path}: expected a name that ends in {kinds}; rename the file")
        else:
            found = [path]
        files.update({file.resolve(): file for file in found if file.resolve() not in files})
    return list(files.values())


def _walk(folder):
    """The files under a folder in an order that does not depend on the file system."""
    for parent, folders, names in os.walk(folder):
        if "train.bin" in names:
            folders.clear()
            continue
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        yield from (Path(parent, name) for name in sorted(names) if not name.startswith("."))


def _kind(file):
    """ "jsonl", "json" or "txt", or None."""
    if _EXTRACTED.fullmatch(file.name):
        return "jsonl"
    suffix = file.with_suffix("").suffix if file.suffix.lower() == ".gz" else file.suffix
    return suffix.lower()[1:] if suffix.lower() in SUFFIXES else None


# -- a file as chunks ------------------------------------------------------------------------------


class Source:
    """A file to be read once; afterwards `size` (bytes on the disk) and `sha256` describe it."""

    def __init__(self, path):
        self.path = Path(path)
        self.size = 0
        self._digest = hashlib.sha256()

    @property
    def name(self):
        """The path as the user gave it, with / on every system."""
        return self.path.as_posix()

    @property
    def sha256(self):
        """Hex digits over the bytes read so far."""
        return self._digest.hexdigest()

    def read(self, size=-1):
        """The next bytes of the file as it lies on the disk (gzip reads through this too)."""
        data = self._file.read(size)
        self._digest.update(data)
        self.size += len(data)
        return data

    def chunks(self):
        """Yield the file's Chunks. UserError where it cannot be read or unpacked."""
        reported = 0
        try:
            with open(self.path, "rb") as self._file:
                blocks = self._blocks()
                for chunk in self._chunks(blocks):
                    yield chunk._replace(size=self.size - reported)
                    reported = self.size
                for _ in blocks:  # where the reading stopped early: hash what is left as well
                    pass
        except (gzip.BadGzipFile, EOFError, zlib.error) as error:
            raise UserError(f"{self.name}: cannot be unpacked ({error}): copy it again") from None
        except OSError as error:
            raise UserError(f"{self.name}: cannot be read ({error.strerror or error})") from None

    def _blocks(self):
        """Yield the file's bytes, unpacked, about CHUNK at a time."""
        packed = self.path.suffix.lower() == ".gz"
        file = gzip.GzipFile(fileobj=self, mode="rb") if packed else self
        while block := file.read(CHUNK):
            yield block

    def _chunks(self, blocks):
        first = next(blocks, b"").removeprefix(codecs.BOM_UTF8)
        if first.startswith((b"\xff\xfe", b"\xfe\xff")) or b"\0" in first:
            reason = "no text in UTF-8 or GB18030 (zero bytes, or a UTF-16 mark): save it as UTF-8"
            shown = first[:60].decode("ascii", "replace")
            yield Chunk(self.name, "reject", 1, Reject(self.name, 1, reason, shown))
            return
        text = _utf8(itertools.chain([first], blocks))
        if _kind(self.path) == "txt":
            yield from _prose(self.name, text)
        elif first.lstrip().startswith(b"["):  # a list, whatever the file is called
            yield from _list_items(self.name, text)
        else:
            yield from _lines(self.name, text)


def _utf8(blocks):
    """Blocks of bytes in UTF-8 or GB18030 → in UTF-8. What fits neither stays as it is: the line
    that holds it is found out when it is read."""
    ascii_so_far, decoder = True, None
    for block in blocks:
        if ascii_so_far and not block.isascii():
            # Decided where the first character tells: until then all encodings agree.
            ascii_so_far = False
            if not _is_utf8(block):
                decoder = codecs.getincrementaldecoder("gb18030")("surrogateescape")
        if decoder:
            block = decoder.decode(block).encode("utf-8", "surrogateescape")
        yield block
    if decoder:
        yield decoder.decode(b"", final=True).encode("utf-8", "surrogateescape")


def _is_utf8(block):
    """By the lines of a block, so that one broken line does not make a UTF-8 file GB18030; a line
    of Chinese in GB18030 hardly ever passes for UTF-8."""
    lines = [line for line in block.split(b"\n") if not line.isascii()]
    as_utf8 = sum(_decodes(line, "utf-8") for line in lines)
    return 2 * as_utf8 >= len(lines) or as_utf8 >= sum(_decodes(line, "gb18030") for line in lines)


def _decodes(data, encoding):
    try:
        # Not final: a character that the end of the block cut in two is no fault.
        codecs.getincrementaldecoder(encoding)("strict").decode(data)
    except UnicodeDecodeError:
        return False
    return True


def _lines(name, blocks):
    """Blocks → chunks of whole lines."""
    number, kept, size = 1, [], 0
    for block in blocks:
        cut = block.rfind(b"\n") + 1
        size += len(block)
        if not cut:
            kept.append(block)
            if size > LONGEST:
                raise UserError(f"{name}, line {number}: longer than {LONGEST >> 20} MB")
            continue
        data = b"".join([*kept, block[:cut]])
        kept = [block[cut:]]
        size = len(kept[0])
        yield Chunk(name, "lines", number, data)
        number += data.count(b"\n")
    if data := b"".join(kept):
        yield Chunk(name, "lines", number, data)


_BETWEEN_ITEMS = re.compile(r"[\s,]*")


def _list_items(name, blocks):
    """Blocks of a JSON list, or of several one after the other → chunks of items, each with the
    number of its first line."""
    decoder = codecs.getincrementaldecoder("utf-8")("surrogateescape")
    scan = json.JSONDecoder().raw_decode
    buffer, at, line, items, size = "", 0, 1, [], 0
    inside = ended = False
    while True:
        # `at` stands before an item, the closing bracket, or what has not been read yet.
        skipped = _BETWEEN_ITEMS.match(buffer, at).end()
        line += buffer.count("\n", at, skipped)
        at = skipped
        if buffer.startswith("]" if inside else "[", at):
            inside, at = not inside, at + 1
            continue
        if not inside and at < len(buffer):
            break
        whole = False
        try:
            _, end = scan(buffer, at)
            # An object or a string ends itself; a number at the very end may go on.
            whole = ended or end < len(buffer) or buffer[end - 1] in '}"]'
        except (ValueError, RecursionError) as error:
            if ended or len(buffer) - at > LONGEST or not _cut_short(error, buffer):
                break
        if whole:
            items.append((line, buffer[at:end]))
            size += end - at
            line += buffer.count("\n", at, end)
            at = end
            if size >= CHUNK // 2:
                yield Chunk(name, "items", items[0][0], items)
                items, size = [], 0
        else:
            # As much again as waits already: what is read one block at a time would be parsed from
            # its start for each, in the square of its length.
            more, wanted = [], max(1, len(buffer) - at)
            while wanted > 0 and not ended:
                block = next(blocks, None)
                ended = block is None
                more.append(decoder.decode(block or b"", final=ended))
                wanted -= len(more[-1])
            buffer, at = "".join([buffer[at:], *more]), 0
    if items:
        yield Chunk(name, "items", items[0][0], items)
    rest = buffer[at : at + 200]
    if inside or rest:
        broken = "no JSON from here on" if rest else "the list ends without ]"
        reason = broken if inside else "text behind the end of the list"
        yield Chunk(name, "reject", line, Reject(name, line, reason, rest))


def _cut_short(error, buffer):
    """Could more text make this JSON whole?"""
    if not isinstance(error, json.JSONDecodeError):
        return False
    return error.msg.startswith("Unterminated string") or error.pos >= len(buffer) - 16


def _prose(name, blocks):
    """Blocks → chunks that end where an entry may end."""
    number, buffer = 1, b""
    for block in blocks:
        buffer += block
        if len(buffer) < CHUNK:
            continue
        start = max(0, len(buffer) - 8 * ENTRY)  # at least 2 × ENTRY characters
        while start < len(buffer) - 4 * ENTRY and buffer[start] & 0xC0 == 0x80:  # in a character
            start += 1
        tail = buffer[start:].decode("utf-8", "surrogateescape")
        cut = start + len(tail[: _last_break(tail)].encode("utf-8", "surrogateescape"))
        yield Chunk(name, "prose", number, buffer[:cut])
        number += buffer.count(b"\n", 0, cut)
        buffer = buffer[cut:]
    if buffer:
        yield Chunk(name, "prose", number, buffer)


# -- prose as entries ------------------------------------------------------------------------------

# A line that opens a chapter: 第十二回 …, 卷三：…, Chapter 7, 楔子.
_NUMBER = "[0-9０-９零〇○一二三四五六七八九十百千两]+"
_HEADING = re.compile(
    rf"^[ \t\u3000]*(?:(?:正文 *)?第{_NUMBER}[章回节節卷部集篇幕](?=[\s：:、.．]|$)"
    rf"|卷{_NUMBER}(?=[\s：:、]|$)|(?i:chapter|part|book)[ \t]+(?:\d+|[IVXLC]+)\b"
    r"|(?:楔子|引子|序|序[章言幕]|前言|尾声|后记|後記|番外)[ \t\u3000]*$)",
    re.MULTILINE,
)
# Where prose may be cut, the best first: after a line that ends a sentence (lines broken at a
# width do not), after any line, after a sentence, after a clause. Blank lines go with what is
# before them, an indent with what is behind it.
_BREAKS = [
    re.compile(r"(?<=[。！？．…；.!?：:”」』’）)】])(?:[ \t\u3000\r]*\n)+"),
    re.compile(r"\n(?:[ \t\u3000\r]*\n)*"),
    re.compile(r"[。！？．…!?]+[”」』’）)]*|\.(?=\s)"),
    re.compile(r"[，、；：,;:\s]"),
]


def split_prose(text, about=ENTRY):
    """[(start, end)] of entries of about `about` characters; joined they are `text`.

    A chapter's heading begins an entry (unless the one before would hold less than a quarter of
    `about`), and a chapter's entries are much alike in length: each ends at the paragraph's end
    that is nearest to its share.
    """
    spans, start = [], 0
    while start < len(text):
        end = _entry_end(text, start, about)
        spans.append((start, end))
        start = end
    return spans


def _entry_end(text, start, about):
    limit = start + about * 7 // 2  # what is shorter than this is divided evenly
    heading = _HEADING.search(text, start + max(1, about // 4), limit)
    end = heading.start() if heading else len(text)
    length = about
    if end <= limit:
        parts = max(1, round((end - start) / about))
        if parts == 1:
            return end
        length = (end - start) // parts
    low, high = start + length - about // 2, start + min(length + about // 2, about * 3 // 2)
    for pattern in _BREAKS:
        ends = [match.end() for match in pattern.finditer(text, low, high)]
        if ends:
            return min(ends, key=lambda end: abs(end - start - length))
    return start + length


def _last_break(text):
    """The last place where an entry may end: one of the best kind in the last 2 × ENTRY."""
    low = len(text) - 2 * ENTRY
    for pattern in [_HEADING, *_BREAKS]:
        at_start = pattern is _HEADING
        places = [m.start() if at_start else m.end() for m in pattern.finditer(text, low)]
        places = [place for place in places if low < place < len(text)]
        if places:
            return places[-1]
    return low


# -- chunks as records -----------------------------------------------------------------------------

_BROKEN_REASON = "neither UTF-8 nor GB18030"


def records(chunk):
    """Yield (line, dict or Reject) for each record of a chunk.

    A record of a .txt is {"text", "title", "id"}; of the others, the object as it stands there.
    """
    if chunk.kind == "reject":
        yield chunk.line, chunk.data
    elif chunk.kind == "prose":
        yield from _prose_records(chunk)
    elif chunk.kind == "items":
        yield from _json_records(chunk.source, chunk.data)
    else:
        found = _whole_lines(chunk.data)
        if found is not None:
            yield from enumerate(found, start=chunk.line)
            return
        lines = chunk.data.decode("utf-8", "surrogateescape").split("\n")
        yield from _json_records(chunk.source, enumerate(lines, start=chunk.line))


_ESCAPE = re.compile(rb"\\u")  # \ud83d may be half a character


def _whole_lines(data):
    """The objects of a chunk's lines, read in one go as one list, which is twice as fast; None
    where any line is not simply an object: then they have to be read one by one."""
    if _ESCAPE.search(data):
        return None
    lines = data.rstrip(b"\r\n")
    try:
        # No string of JSON holds a line break: each one stands between two lines.
        # Strictly: json.loads() takes half characters in bytes (CESU-8) for good ones.
        found = json.loads((b"[%b]" % lines.replace(b"\n", b",")).decode())
    except (ValueError, RecursionError):
        return None
    n_lines = lines.count(b"\n") + 1
    may_be_deep = lines.count(b"{") + lines.count(b"[") > n_lines + MOST_DEPTH
    good = len(found) == n_lines and all(type(item) is dict for item in found)
    return found if good and not (may_be_deep and is_deep(found)) else None


def _json_records(source, lines):
    for number, line in lines:
        if not line or line.isspace():
            continue
        try:
            record = parse_json(line)
        except ValueError as error:
            where = f"column {error.colno}" if isinstance(error, json.JSONDecodeError) else error
            record = Reject(source, number, f"no JSON ({where})", _shown(line))
        else:
            if not isinstance(record, dict):
                record = Reject(source, number, "expected a JSON object, {…}", _shown(line))
        if not _is_whole(line):
            record = Reject(source, number, _BROKEN_REASON, _shown(line))
        elif isinstance(record, dict) and "\\u" in line:
            record = _writable(record)
        yield number, record


def _is_whole(text):
    """Does it hold no lone surrogate (which surrogateescape makes of a broken byte)?"""
    try:
        text.encode()  # many times faster than looking for one
    except UnicodeEncodeError:
        return False
    return True


def _writable(value):
    """A value of JSON with U+FFFD for the lone surrogates in its texts (a \\ud83d without its
    partner)."""
    if isinstance(value, str):
        return value.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
    if isinstance(value, list):
        return [_writable(item) for item in value]
    if isinstance(value, dict):
        return {key: _writable(item) for key, item in value.items()}
    return value


def _shown(line):
    return line.encode("utf-8", "surrogateescape").decode("utf-8", "replace").strip()


def _prose_records(chunk):
    text = chunk.data.decode("utf-8", "surrogateescape")
    if not _is_whole(text):
        good = []
        for number, line in enumerate(text.split("\n"), start=chunk.line):
            if not _is_whole(line):
                yield number, Reject(chunk.source, number, _BROKEN_REASON, _shown(line))
                line = ""  # its line break stays, for the numbers of the others
            good.append(line)
        text = "\n".join(good)
    title = Path(chunk.source.removesuffix(".gz")).stem
    line = chunk.line
    for start, end in split_prose(text):
        yield line, {"text": text[start:end], "title": title, "id": f"{title}:{line}"}
        line += text.count("\n", start, end)


def entry_of(record, source, line):
    """A record as an Entry (not cleaned), or a Reject: field `text`; optional `title`, `id`."""
    text, title, id_ = record.get("text"), record.get("title"), record.get("id")
    if reason := _no_text("field `text`", text):
        return Reject(source, line, reason, _as_line(record))
    id_ = f"{source}:{line}" if id_ is None else str(id_)
    return Entry(id_, title if isinstance(title, str) else "", text)


def pair_of(record, source, line):
    """A record as a Pair, blanks at both ends dropped, or a Reject: fields `question` and `answer`
    (neither empty); optional `id`."""
    values = {}
    for field in ("question", "answer"):
        value = record.get(field)
        if reason := _no_words(f"field `{field}`", value):
            return Reject(source, line, reason + _looks_like(record, "qa"), _as_line(record))
        values[field] = value.strip()
    return Pair(_id_of(record), **values)


def instruction_of(record, source, line):
    """A record in Alpaca's fields as a Conversation of two turns, or a Reject: `instruction` and
    `output` (neither empty); optional `input`, which follows the instruction and a blank line, and
    `id`."""
    values = {}
    for field in ("instruction", "input", "output"):
        value = record.get(field)
        if field == "input" and (value is None or not str(value).strip()):
            continue  # there is none
        if reason := _no_words(f"field `{field}`", value):
            return Reject(source, line, reason + _looks_like(record, "alpaca"), _as_line(record))
        values[field] = value.strip()
    output = values.pop("output")
    turns = ("user", "\n\n".join(values.values())), ("assistant", output)
    return Conversation(_id_of(record), turns)


def conversation_of(record, source, line):
    """A record as a Conversation, blanks at both ends of each content dropped, or a Reject: field
    `messages`, a list of {"role": one of ROLES, "content": text}, no content empty, and behind a
    user's turn one of the assistant; optional `id`."""
    if reason := _no_conversation(record):
        return Reject(source, line, reason, _as_line(record))
    turns = [(message["role"], message["content"].strip()) for message in record["messages"]]
    return Conversation(_id_of(record), tuple(turns))


def _no_conversation(record):
    """Why a record is none; None where it is one."""
    messages = record.get("messages")
    if messages is None:
        return "field `messages` is missing" + _looks_like(record, "chat")
    if not isinstance(messages, list):
        return f"field `messages`: expected a list, found {type(messages).__name__}"
    for number, message in enumerate(messages, start=1):
        if not isinstance(message, dict):
            return f"message {number}: expected a JSON object, found {type(message).__name__}"
        role = message.get("role")
        if role not in ROLES:
            return f"message {number}: its role is {role!r}; expected one of {', '.join(ROLES)}"
        if reason := _no_words(f"message {number}: `content`", message.get("content")):
            return reason
    roles = [message["role"] for message in messages]
    if "assistant" not in itertools.dropwhile(lambda role: role != "user", roles):
        return "no turn of the assistant behind one of a user"
    return None


# The field by which each format of data/prepare_sft.py is known.
_FIELDS = {"qa": "question", "alpaca": "instruction", "chat": "messages"}


def _looks_like(record, wanted):
    """What to add where `record` is not of the format `wanted`: the one that it may be of."""
    found = [name for name, field in _FIELDS.items() if field in record]
    if not found or wanted in found:
        return ""
    return f" (it looks like --format={found[0]} of data/prepare_sft.py)"


def _no_text(name, value):
    """Why a value is no text; None where it is one."""
    if value is None:
        return f"{name} is missing"
    if not isinstance(value, str):
        return f"{name}: expected text, found {type(value).__name__}"
    return None


def _no_words(name, value):
    """Why a value is no text with something in it; None where it is one."""
    empty = isinstance(value, str) and not value.strip()
    return f"{name} is empty" if empty else _no_text(name, value)


def _id_of(record):
    """What `id` says as text; None where it is absent."""
    id_ = record.get("id")
    return None if id_ is None else str(id_)


def _as_line(record):
    return json.dumps(record, ensure_ascii=False)


def read_records(paths, make):
    """Yield (kind of chunk, what `make` makes of a record, the record) over the files under `paths`
    (see find_files), in order, one process, a chunk at a time. make: entry_of, pair_of,
    instruction_of or conversation_of. UserError names file, line and beginning of a record that
    cannot be used."""
    for file in find_files(paths):
        for chunk in Source(file).chunks():
            for line, record in records(chunk):
                made = record if isinstance(record, Reject) else make(record, chunk.source, line)
                if isinstance(made, Reject):
                    raise UserError(
                        f"{made.source}, line {made.line}: {made.reason}; it begins "
                        f'"{made.text[:60]}"'
                    )
                yield chunk.kind, made, record


def read_entries(paths, clean=True):
    """Yield the Entries under `paths`. UserError as in read_records().

    clean: drop title lines and leftovers (minigpt/data/cleaning.py). Entries with nothing left are
    passed over; exact duplicates are not.
    """
    for _, entry, _ in read_records(paths, entry_of):
        text = clean_text(entry.text, entry.title) if clean else entry.text
        if text.strip():
            yield entry._replace(text=text)


# -- train or val ----------------------------------------------------------------------------------


def hash_all(keys):
    """(n,) uint64: of each key the first 8 bytes of BLAKE2b over its UTF-8, as a number."""
    digests = [hashlib.blake2b(key.encode()).digest()[:8] for key in keys]
    return np.frombuffer(b"".join(digests), ">u8").astype(np.uint64)


def is_val(key, fraction):
    """Is the entry with this key held out? By its hash alone, so in every file, order and run
    alike; what a small fraction holds out, a larger one does too."""
    return bool(below(hash_all([key]), fraction)[0])


def below(hashes, fraction):
    """(n,) bool: which of `hashes` are in the lowest `fraction` (0 … 1, not 1) of all numbers."""
    return hashes < np.uint64(math.ceil(fraction * 2**64))
