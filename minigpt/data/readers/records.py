"""Text → records: UTF-8 bytes are cut into chunks, and chunks become records.

    for chunk in cut_into_chunks(to_utf8(source.blocks()), source.name, source.kind):
        for line, record in records_in(chunk):   # record: a dict, or a Reject
            …

A .jsonl has an object a line, a .json a list of objects, a .txt entries of about 2,000 characters,
cut at the ends of chapters or paragraphs. Reading and cutting is fast and done in one process;
parsing is slow, so other processes can take the chunks. Memory does not grow with the file.
"""

import codecs
import itertools
import json
import re
from pathlib import Path
from typing import NamedTuple

from minigpt.common.errors import UserError
from minigpt.common.json_text import MOST_DEPTH, is_deep, parse_json
from minigpt.common.text import replace_lone_surrogates
from minigpt.data.readers.encodings import Undecodable
from minigpt.data.readers.files import READ_SIZE, without_gz
from minigpt.data.readers.prose import ENTRY, last_break, split_prose

LONGEST = 2**26  # bytes in a line or an item of a list; a longer one is no record but an error


class Reject(NamedTuple):
    """A record that cannot be used: where it is, why, and how it begins."""

    source: str
    line: int
    reason: str
    text: str

    def message(self):
        """Return the one line of an error."""
        return f'{self.source}, line {self.line}: {self.reason}; it begins "{self.text[:60]}"'


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


# -- a file as chunks ------------------------------------------------------------------------------


def cut_into_chunks(text, name, kind):
    """Blocks of UTF-8 bytes of a file, as to_utf8() yields them → Chunks. kind: see file_kind()."""
    try:
        first = next(text, b"")
    except Undecodable as error:
        yield Chunk(name, "reject", 1, Reject(name, 1, str(error), error.beginning))
        return
    text = itertools.chain([first], text)
    if kind == "prose":
        yield from _prose(name, text)
    elif kind != "json":
        raise ValueError(f"{name}: unknown kind {kind!r}")
    elif first.lstrip().startswith(b"["):  # a list, whatever the file's name is
        yield from _list_items(name, text)
    else:
        yield from _lines(name, text)


def _lines(name, blocks):
    """Blocks of bytes → chunks of whole lines."""
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
    """Blocks of a JSON list, or of several lists in a row → chunks of items, each with the number
    of its first line."""
    decoder = codecs.getincrementaldecoder("utf-8")("surrogateescape")
    scan = json.JSONDecoder().raw_decode
    buffer, at, line, items, size = "", 0, 1, [], 0
    inside = ended = False
    while True:
        # buffer[at] is the start of an item, the closing bracket, or not read yet.
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
            # An object or a string is complete; a number at the end of the buffer may continue.
            whole = ended or end < len(buffer) or buffer[end - 1] in '}"]'
        except (ValueError, RecursionError) as error:
            if ended or len(buffer) - at > LONGEST or not _cut_short(error, buffer):
                break
        if whole:
            items.append((line, buffer[at:end]))
            size += end - at
            line += buffer.count("\n", at, end)
            at = end
            if size >= READ_SIZE // 2:
                yield Chunk(name, "items", items[0][0], items)
                items, size = [], 0
        else:
            # Read at least as much again as is waiting: an item that is read one block at a time
            # would be parsed from its start for each of them, in the square of its length.
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
        reason = broken if inside else "text after the end of the list"
        yield Chunk(name, "reject", line, Reject(name, line, reason, rest))


def _cut_short(error, buffer):
    """Return whether the JSON may only be incomplete, because the buffer ends too early."""
    if not isinstance(error, json.JSONDecodeError):
        return False
    return error.msg.startswith("Unterminated string") or error.pos >= len(buffer) - 16


def _prose(name, blocks):
    """Blocks of bytes → chunks that end where an entry may end."""
    number, buffer = 1, b""
    for block in blocks:
        buffer += block
        if len(buffer) < READ_SIZE:
            continue
        start = max(0, len(buffer) - 8 * ENTRY)  # at least 2 × ENTRY characters
        while start < len(buffer) - 4 * ENTRY and buffer[start] & 0xC0 == 0x80:  # in a character
            start += 1
        tail = buffer[start:].decode("utf-8", "surrogateescape")
        cut = start + len(tail[: last_break(tail)].encode("utf-8", "surrogateescape"))
        yield Chunk(name, "prose", number, buffer[:cut])
        number += buffer.count(b"\n", 0, cut)
        buffer = buffer[cut:]
    if buffer:
        yield Chunk(name, "prose", number, buffer)


# -- chunks as records -----------------------------------------------------------------------------

_BROKEN_REASON = "neither UTF-8 nor GB18030"


def records_in(chunk):
    """Yield (line, dict or Reject) for each record of a chunk.

    A record of a .txt is {"text", "title", "id"}; of other files, the JSON object.
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
    """Parse all lines of a chunk as one JSON list, which is twice as fast. None where a line is
    anything but an object: then the lines must be parsed one by one."""
    if _ESCAPE.search(data):
        return None
    lines = data.rstrip(b"\r\n")
    try:
        # A string of JSON has no line break in it, so each line break is between two objects.
        # decode() is strict: json.loads() would accept surrogates in bytes (CESU-8).
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
    """Return whether a text has no lone surrogate (surrogateescape makes one of a broken byte)."""
    try:
        text.encode()  # many times faster than to search for one
    except UnicodeEncodeError:
        return False
    return True


def _writable(value):
    """Return a value of JSON with U+FFFD in place of lone surrogates (a \\ud83d without its
    partner)."""
    if isinstance(value, str):
        return replace_lone_surrogates(value)
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
                line = ""  # its line break stays, so that the numbers of other lines are right
            good.append(line)
        text = "\n".join(good)
    title = without_gz(Path(chunk.source)).stem
    line = chunk.line
    for start, end in split_prose(text):
        yield line, {"text": text[start:end], "title": title, "id": f"{title}:{line}"}
        line += text.count("\n", start, end)
