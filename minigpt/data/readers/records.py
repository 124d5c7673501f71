"""Text → records: a document is cut into chunks, and chunks become records.

    for chunk in cut_into_chunks(document, Decoding()):
        for line, record in records_in(chunk):   # record: a dict, or a Reject
            …

Of JSON a record is an object: one a line, or an item of a list. A string is the record {"text": …},
a list of messages {"messages": …} or {"conversations": …}. Of a table it is a row, of prose an
entry of about 2,000 characters, cut at the ends of chapters or paragraphs. Reading and cutting is
fast and done in one process; parsing is slow, so other processes can take the chunks. Memory does
not grow with the file.
"""

import itertools
import json
import re
from pathlib import PurePosixPath

from minigpt.common.errors import UserError
from minigpt.common.json_text import MOST_DEPTH, is_deep, parse_json
from minigpt.common.text import replace_lone_surrogates
from minigpt.data.readers.chunks import LONGEST, Chunk, Reject
from minigpt.data.readers.containers import HEAD, READ_SIZE, suffixes
from minigpt.data.readers.encodings import Undecodable, to_utf8
from minigpt.data.readers.json_values import is_json_values, json_chunks
from minigpt.data.readers.prose import ENTRY, last_break, split_prose
from minigpt.data.readers.tables import arrow_chunks, csv_chunks, rows_of

# -- a document as chunks --------------------------------------------------------------------------


def cut_into_chunks(document, decoding):
    """Document → Chunks. A text is decoded, and `decoding` then describes it."""
    if document.kind in ("parquet", "arrow", "arrow stream"):
        yield from arrow_chunks(document)
        return
    name, line = document.name, 1
    try:
        for chunk in _text_chunks(name, document.kind, to_utf8(document.blocks(), decoding)):
            line = chunk.line
            yield chunk
    except Undecodable as error:
        line = decoding.first or line
        yield Chunk(name, "reject", line, Reject(name, line, str(error), error.beginning))


def _text_chunks(name, kind, blocks):
    """Blocks of UTF-8 → chunks. kind: of KINDS, or None."""
    head = b""
    while len(head) < HEAD and (block := next(blocks, b"")):
        head += block
    blocks = itertools.chain([head] if head else [], blocks)
    beginning = head[: 16 * HEAD].decode("utf-8", "ignore").lstrip()
    if kind != "json" and _is_json(beginning):
        kind = "json"  # whatever the name is
    if kind == "json" and is_json_values(beginning):
        yield from json_chunks(name, blocks)
    elif kind == "json":
        yield from _lines(name, blocks)
    elif kind in ("csv", "tsv"):
        yield from csv_chunks(name, blocks, kind)
    else:
        yield from _prose(name, blocks)


def _is_json(beginning):
    """Whether a text without the name of JSON begins with a JSON object, or a list of such."""
    try:
        found, _ = json.JSONDecoder().raw_decode(beginning)
    except json.JSONDecodeError as error:
        # An object that is longer than the beginning, or over several lines.
        return bool(re.match(r'(\[\s*)?\{\s*"[^"]*"\s*:', beginning)) and error.pos > HEAD // 8
    except RecursionError:
        return False
    if isinstance(found, list):
        return len(found) > 1 and all(isinstance(item, dict | list | str) for item in found)
    return isinstance(found, dict)


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
        tail = buffer[start:].decode()
        cut = start + len(tail[: last_break(tail)].encode())
        yield Chunk(name, "prose", number, buffer[:cut])
        number += buffer.count(b"\n", 0, cut)
        buffer = buffer[cut:]
    if buffer:
        yield Chunk(name, "prose", number, buffer)


# -- chunks as records -----------------------------------------------------------------------------


def records_in(chunk):
    """Yield (number, dict or Reject) for each record of a chunk; numbers count chunk.unit.

    A record of prose is {"text", "title", "id"}; of other files, the JSON object or the row.
    """
    if chunk.kind == "reject":
        yield chunk.line, chunk.data
    elif chunk.kind == "prose":
        yield from _prose_records(chunk)
    elif chunk.kind == "rows":
        yield from chunk.data
    elif chunk.kind == "arrow":
        yield from enumerate(rows_of(chunk.data), start=chunk.line)
    elif chunk.kind == "items":
        yield from _json_records(chunk, chunk.data)
    else:
        found = _whole_lines(chunk.data)
        if found is not None:
            yield from enumerate(found, start=chunk.line)
            return
        lines = chunk.data.decode().split("\n")
        yield from _json_records(chunk, enumerate(lines, start=chunk.line))


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


def _json_records(chunk, lines):
    for number, line in lines:
        if isinstance(line, Reject):
            yield number, line
        elif line and not line.isspace():
            yield number, _json_record(chunk, number, line)


def _json_record(chunk, number, line):
    """JSON → a record, or a Reject."""
    reason = None
    try:
        record = parse_json(line)
    except ValueError as error:
        where = f"column {error.colno}" if isinstance(error, json.JSONDecodeError) else error
        reason = f"no JSON ({where})"
    else:
        if isinstance(record, str):
            record = {"text": record}
        elif isinstance(record, list) and all(isinstance(item, dict) for item in record):
            if record and {"role", "content"} <= set(record[0]):
                record = {"messages": record}
            elif record and {"from", "value"} <= set(record[0]):
                record = {"conversations": record}
        if not isinstance(record, dict):
            reason = "expected a JSON object, {…}"
    if reason:
        size = len(line.encode("utf-8", "replace"))
        return Reject(chunk.source, number, reason, line.strip()[:200], chunk.unit, size)
    return _writable(record) if "\\u" in line else record


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


def _prose_records(chunk):
    text, line = chunk.data.decode(), chunk.line
    title, _ = suffixes(PurePosixPath(chunk.source).name)
    for start, end in split_prose(text):
        yield line, {"text": text[start:end], "title": title, "id": f"{title}:{line}"}
        line += text.count("\n", start, end)
