"""Text → records: UTF-8 bytes are cut into chunks, and chunks become records.

    for chunk in read_chunks(SourceFile("a.jsonl")):
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
from minigpt.data.readers.encodings import Undecodable, to_utf8
from minigpt.data.readers.files import BLOCK

LONGEST = 2**26  # bytes in a line or an item of a list; a longer one is no record but an error
ENTRY = 2000  # characters in an entry of a .txt, about


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


def read_chunks(source):
    """Yield the Chunks of a SourceFile: open it, decode it, cut it between records. UserError where
    it cannot be read or unpacked."""
    blocks, reported = source.blocks(), 0
    for chunk in _cut(source, to_utf8(blocks)):
        yield chunk._replace(size=source.size - reported)
        reported = source.size
    for _ in blocks:  # where cutting stopped early: the hash is of the whole file
        pass


def _cut(source, text):
    try:
        first = next(text, b"")
    except Undecodable as error:
        reject = Reject(source.name, 1, str(error), error.beginning)
        yield Chunk(source.name, "reject", 1, reject)
        return
    text = itertools.chain([first], text)
    if source.type == "txt":
        yield from _prose(source.name, text)
    elif first.lstrip().startswith(b"["):  # a list, whatever the file's name is
        yield from _list_items(source.name, text)
    else:
        yield from _lines(source.name, text)


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
            if size >= BLOCK // 2:
                yield Chunk(name, "items", items[0][0], items)
                items, size = [], 0
        else:
            block = next(blocks, None)
            ended = block is None
            buffer, at = buffer[at:] + decoder.decode(block or b"", final=ended), 0
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
        if len(buffer) < BLOCK:
            continue
        start = max(0, len(buffer) - 8 * ENTRY)  # at least 2 × ENTRY characters
        while buffer[start] & 0xC0 == 0x80:  # within a character
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


def records_in(chunk):
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
    good = len(found) == lines.count(b"\n") + 1 and all(type(item) is dict for item in found)
    return found if good else None


def _json_records(source, lines):
    for number, line in lines:
        if not line or line.isspace():
            continue
        try:
            record = json.loads(line)
        except (ValueError, RecursionError) as error:
            where = f" (column {error.colno})" if isinstance(error, json.JSONDecodeError) else ""
            record = Reject(source, number, f"no JSON{where}", _shown(line))
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
