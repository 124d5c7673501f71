"""Decode: the bytes of a file in any encoding → bytes in UTF-8.

    decoding = Decoding("a.txt")                 # encoding="auto", or the name of one
    for block in to_utf8([b"…", b"…"], decoding):
        …
    decoding.notes()                             # what was recognized, and left out

UTF-16 and UTF-32 are recognized by their mark, or by where their bytes are zero; other encodings by
chardet, over the lines of a sample that are not UTF-8. Lines in UTF-8 are read in a file of another
encoding, and the other way round.
"""

import codecs
import re
from collections import Counter
from dataclasses import dataclass, field

from minigpt.common.errors import UserError
from minigpt.common.text import replace_lone_surrogates

SAMPLE = 2**18  # bytes that decide, from the first block on that is not ASCII
DETECTED = 2**13  # bytes of it for chardet, which reads some 50 KB/s
FEW = 16  # broken bytes that any file may have; more are at most one in a hundred
_LONGEST_LINE = 2**20  # bytes; a longer one is cut, where no character is torn
_MARKS = (
    (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF32_LE, "utf-32-le"),  # before that of UTF-16, with which it begins
    (codecs.BOM_UTF32_BE, "utf-32-be"),
    (codecs.BOM_UTF16_LE, "utf-16-le"),
    (codecs.BOM_UTF16_BE, "utf-16-be"),
)
# Name by chardet → Python's codec, a superset where there is one.
_CODECS = {
    **{"gb2312": "gb18030", "gbk": "gb18030", "euc-kr": "cp949", "cp949": "cp949"},
    **{"iso-8859-1": "cp1252", "ascii": "utf-8"},
}
# What a codec cannot decode is tried in Microsoft's extension of it, which has other characters in
# a few places.
_EXTENSION = {"big5": "cp950", "shift_jis": "cp932"}


class Undecodable(ValueError):
    """A text that is in no known encoding, or not in the one that was recognized. `beginning`
    shows how it begins there."""

    def __init__(self, reason, beginning):
        super().__init__(reason)
        self.beginning = beginning


@dataclass
class Decoding:
    """How the bytes of a text become characters, and what was found.

    encoding:  "auto", or the name of a codec (see check_encoding)
    found:     the encoding that was recognized; None while all is ASCII
    lines:     encoding → lines in an encoding other than `found`
    zeros:     NUL bytes, which are left out.  broken: bytes that are no character, left out, too
    first:     the line of the first of them.  line: the number of lines so far
    """

    encoding: str = "auto"
    found: str | None = None
    lines: Counter = field(default_factory=Counter)
    zeros: int = 0
    broken: int = 0
    first: int = 0
    line: int = 0
    size: int = 0

    def notes(self):
        """Lines for the report: all that is not plain UTF-8."""
        notes = []
        if self.found not in (None, "utf-8"):
            notes.append(f"read as {_shown_name(self.found)}")
        for name, n in self.lines.items():
            notes.append(f"{n:,} line{'s' * (n > 1)} read as {_shown_name(name)}")
        for n, what in ((self.zeros, "NUL"), (self.broken, "broken")):
            if n:
                notes.append(
                    f"{n:,} {what} byte{'s' * (n > 1)} left out, the first in line {self.first:,}"
                )
        return notes

    def lost(self, zeros=0, broken=0, lines=0, data=b""):
        """Count what is left out, in the line that is `lines` after the current one."""
        if (zeros or broken) and not self.first:
            self.first = self.line + lines + 1
        self.zeros += zeros
        self.broken += broken
        if self.broken > FEW and self.broken * 100 > self.size:
            name = _shown_name(self.found or self.encoding)
            raise Undecodable(
                f"no text in {name}, as which it was read: {self.broken:,} bytes are no character; "
                f"give its encoding, as --encoding=NAME",
                data[:60].decode("ascii", "replace"),
            )


def check_encoding(name):
    """UserError unless `name` is "auto" or a text encoding that Python knows."""
    try:
        if name != "auto" and not codecs.lookup(name)._is_text_encoding:
            raise LookupError
    except LookupError:
        raise UserError(
            f"--encoding={name}: no known encoding; expected auto, or a name such as utf-8, "
            f"gb18030, big5, shift_jis, euc-kr, utf-16, latin-1"
        ) from None


def to_utf8(blocks, decoding):
    """Yield blocks of bytes as blocks of bytes in UTF-8, and fill `decoding`.

    NUL bytes, and a few bytes that are no character, are left out and counted. Undecodable where
    the encoding is not recognized, or more bytes are broken than FEW and one in a hundred.
    """
    blocks = iter(blocks)
    if decoding.encoding != "auto":
        decoding.found = codecs.lookup(decoding.encoding).name
        yield from _whole(blocks, decoding)
        return
    first = next(blocks, b"")
    while len(first) < 4 and (more := next(blocks, b"")):
        first += more
    for mark, name in _MARKS:
        if first.startswith(mark):
            decoding.found = name
            blocks = _again(first[len(mark) :], blocks)
            yield from (_lines if name == "utf-8" else _whole)(blocks, decoding)
            return
    blocks = _again(first, blocks)
    for block in blocks:
        # Decided at the first byte that is not ASCII: before it most encodings agree.
        if block.isascii() and b"\0" not in block:
            decoding.size += len(block)
            decoding.line += block.count(b"\n")
            yield block
            continue
        sample = [block]
        while sum(map(len, sample)) < SAMPLE and (more := next(blocks, b"")):
            sample.append(more)
        sample = b"".join(sample)
        decoding.found = _recognize(sample)
        blocks = _again(sample, blocks)
        wide = decoding.found.startswith(("utf-16", "utf-32"))
        yield from (_whole if wide else _lines)(blocks, decoding)
        return


def _again(block, blocks):
    yield block
    yield from blocks


# -- decoding --------------------------------------------------------------------------------------


def _whole(blocks, decoding):
    """Decode with one codec, whatever the lines are."""
    name = "utf-8-sig" if decoding.found == "utf-8" else decoding.found
    decoder = codecs.getincrementaldecoder(name)("replace")
    for block in _again_with_end(blocks):
        text = decoder.decode(block, final=not block)
        decoding.size += len(block)
        zeros, broken = text.count("\0"), text.count("\ufffd")
        if zeros or broken:
            first = min(i for i in (text.find("\0"), text.find("\ufffd")) if i >= 0)
            decoding.lost(zeros, broken, text.count("\n", 0, first), block)
            text = text.replace("\0", "").replace("\ufffd", "")
        decoding.line += text.count("\n")
        if text:
            yield text.encode("utf-8", "replace")


def _again_with_end(blocks):
    yield from blocks
    yield b""


def _lines(blocks, decoding):
    """Decode line by line where a block is not all valid in UTF-8."""
    is_utf8, other, kept, tries = decoding.found == "utf-8", None, b"", 8
    for block in _again_with_end(blocks):
        decoding.size += len(block)
        data = kept + block
        cut = _cut(data) if block else len(data)
        data, kept = data[:cut], data[cut:]
        if b"\0" in data:
            before = data.index(b"\0")
            decoding.lost(zeros=data.count(b"\0"), lines=data.count(b"\n", 0, before))
            data = data.replace(b"\0", b"")
        if not data.isascii() and not (is_utf8 and _is_valid(data)):
            parts = []
            lines = data.split(b"\n")
            if is_utf8 and not other and tries:
                tries -= 1
                others = [line for line in lines if not _is_utf8(line)]
                # A few bytes are damage, not another encoding.
                if sum(byte >= 0x80 for line in others for byte in line) >= 8:
                    other = _detect(others)
            for number, line in enumerate(lines):
                text, name, broken = _decode_line(line, decoding.found, other)
                if broken:
                    decoding.lost(broken=broken, lines=number, data=line)
                if name not in (None, decoding.found):
                    decoding.lines[name] += 1
                parts.append(text)
            data = b"\n".join(parts)
        decoding.line += data.count(b"\n")
        if data:
            yield data


def _cut(data):
    """Where to cut a block so that no line is torn; no character if there is no line's end."""
    cut = data.rfind(b"\n") + 1
    if cut or len(data) < _LONGEST_LINE:
        return cut
    # In all these encodings bytes below 0x30 are characters of their own.
    cut = max(data.rfind(byte) for byte in (b" ", b'"', b",", b".", b"!", b"-")) + 1
    if not cut:
        cut = len(data)
        while cut > len(data) - 4 and data[cut - 1] >= 0x80:  # none of UTF-8 is torn
            cut -= 1
            if data[cut] >= 0xC0:
                break
    return cut


def _decode_line(line, found, other):
    """Return (the line in UTF-8, its encoding or None for ASCII, its broken bytes).

    found: the encoding of the file.  other: of its lines that are not UTF-8, if it is UTF-8.
    """
    if line.isascii():
        return line, None, 0
    is_valid, is_utf8 = _is_valid(line), found == "utf-8"
    codec = other if is_utf8 else found
    # 小 in GB18030 is valid UTF-8, a character of two bytes; but one of three bytes is no chance.
    if is_valid and (is_utf8 or _THREE.search(line) or _without_broken(line, codec)[1]):
        return line, "utf-8", 0
    good, broken = _without_broken(line, codec or "utf-8")
    if codec and not (broken and _is_utf8(line)) and not (is_utf8 and _is_utf8(line)):
        return good, codec, broken
    try:  # CESU-8: a character beyond U+FFFF as two surrogates
        return replace_lone_surrogates(line.decode("utf-8", "surrogatepass")).encode(), "utf-8", 0
    except UnicodeDecodeError:
        good, broken = _without_broken(line, "utf-8")
        return good, "utf-8", broken


_THREE = re.compile(rb"[\xe0-\xf4][\x80-\xbf]{2}")


def _without_broken(data, codec):
    """Return (the characters of `data` in UTF-8, the number of broken bytes; of other encodings
    than UTF-8 the number of places with such)."""
    good = data.decode(codec, "ignore")
    if codec == "utf-8":
        good = good.encode()
        return good, len(data) - len(good)
    broken = data.decode(codec, "replace").count("\ufffd") - good.count("\ufffd")
    if broken and codec in _EXTENSION:
        return _without_broken(data, _EXTENSION[codec])
    return good.encode("utf-8", "replace"), broken


def _is_utf8(line):
    """Whether a line is in UTF-8, maybe with some broken bytes, or with surrogates (CESU-8)."""
    try:
        line.decode("utf-8", "surrogatepass")
        return True
    except UnicodeDecodeError:
        pass
    good, broken = _without_broken(line, "utf-8")
    letters = _ASCII.sub(b"", good)
    if len(letters) < 3 * broken:
        return False
    # Two bytes may be a character of UTF-8 by chance: 甲甲 in GB18030 has one in its middle.
    three = sum(byte >= 0xE0 for byte in letters)
    return 12 * three > len(letters) or bool(_without_broken(line, "gb18030")[1])


def _is_valid(data):
    try:
        data.decode()
    except UnicodeDecodeError:
        return False
    return True


# -- recognizing -----------------------------------------------------------------------------------


def _recognize(sample):
    """Return the codec of a text by a sample with bytes that are not ASCII. Undecodable where it
    is not recognized."""
    if wide := _recognize_wide(sample[: sample.rfind(b"\n") // 4 * 4 or None]):
        return wide
    data = sample.replace(b"\0", b"")
    beginning = sample[:60].decode("ascii", "replace")
    if len(_CONTROL.findall(data)) * 10 > len(data):
        raise Undecodable("no text, but binary data; expected text in any encoding", beginning)
    lines = [line for line in data.split(b"\n") if not line.isascii()]
    others = [line for line in lines if not _is_utf8(line)]
    if 2 * len(others) <= len(lines):
        return "utf-8"
    codec = _detect(others)
    if codec is None:
        reason = "no text in UTF-8, and its encoding is not recognized; give it as --encoding=NAME"
        raise Undecodable(reason, beginning)
    return codec


_CONTROL = re.compile(rb"[\x01-\x08\x0e-\x1a\x1c-\x1f\x7f]")


def _detect(lines):
    """Return the codec of lines that are neither ASCII nor UTF-8, or None."""
    data = b"\n".join(lines)[:DETECTED]
    codec, confidence = _by_chardet(data)
    letters = _ASCII.sub(b"", data)
    if len(letters) <= 64 and confidence < 0.9:
        # Too little to count letters: Chinese, if all characters are of the 3,755 most common.
        common = all(0xA1 <= byte <= 0xD7 for byte in letters[::2])
        if common and not _without_broken(data, "gb18030")[1]:
            return "gb18030"
    if codec is None:  # it may be confused by a few broken bytes: ask for the parts
        parts = [data[i : i + DETECTED // 8] for i in range(0, len(data), DETECTED // 8)]
        found = Counter(_by_chardet(part)[0] for part in parts)
        codec = max(found, key=lambda name: (name is not None, found[name]))
    if codec is None or _without_broken(data, codec)[1] * 50 > max(len(letters), 100):
        return None
    # Any bytes are characters where each is one; but those of a text are mostly letters.
    text = letters.decode(codec, "ignore")
    is_likely = len(text) < len(letters) or sum(map(str.isalpha, text)) >= 0.7 * len(text)
    return codec if is_likely else None


_ASCII = re.compile(rb"[\x00-\x7f]+")


def _by_chardet(data):
    """Return (codec or None, confidence)."""
    import chardet  # only if it is needed

    found = chardet.detect(data)
    name = (found["encoding"] or "").lower()
    try:
        return codecs.lookup(_CODECS.get(name, name)).name, found["confidence"]
    except LookupError:
        return None, 0.0


def _recognize_wide(data):
    """Return the codec of UTF-16 or UTF-32 without a mark, or None."""
    n = len(data) // 4
    zeros = [data[i : 4 * n : 4].count(0) for i in range(4)]
    for codec, high, low in (("utf-32-le", (2, 3), 0), ("utf-32-be", (0, 1), 3)):
        if n and all(zeros[i] >= 0.9 * n for i in high) and zeros[low] < 0.5 * n:
            return codec
    for codec, high in (("utf-16-le", 1), ("utf-16-be", 0)):
        on, off = zeros[high] + zeros[high + 2], zeros[1 - high] + zeros[3 - high]
        try:
            text = data[: len(data) // 2 * 2].decode(codec)
        except UnicodeDecodeError:
            continue
        if on >= max(4, 0.15 * len(text)) and off * 10 <= on:
            return codec
        # Chinese and Japanese have hardly any zeros. But pairs of ASCII are Chinese in UTF-16, too,
        # and so are the kana of Shift-JIS.
        is_chinese = len(text) >= 4 and len(_CHINESE.findall(text)) > 0.97 * len(text)
        is_ascii = len(b"".join(_ASCII.findall(data))) > 0.9 * len(data)
        is_ascii = is_ascii and len(_KANA.findall(text)) < 0.2 * len(text)
        is_kana = sum(byte in b"\x82\x83" for byte in data[high::2]) > 0.2 * len(text)
        if is_chinese and not is_ascii and not is_kana:
            return codec
    return None


_KANA = re.compile(r"[\u3000-\u30ff]")
_CHINESE = re.compile(r"[\u4e00-\u9fff\u3000-\u30ff\uff00-\uff9f\u2010-\u2026\t\n\r -~]")


def _shown_name(codec):
    return _SHOWN.get(codec, codec.upper())


_SHOWN = {
    **{"big5": "Big5", "cp949": "EUC-KR (CP949)", "shift_jis": "Shift-JIS", "utf-8": "UTF-8"},
    **{"gb18030": "GB18030", "cp1252": "Latin-1 (Windows-1252)", "utf-16-le": "UTF-16 LE"},
    **{"utf-16-be": "UTF-16 BE", "utf-32-le": "UTF-32 LE", "utf-32-be": "UTF-32 BE"},
}
