"""Decode: bytes in the encoding of a file → bytes in UTF-8.

    for block in to_utf8([b"…", b"…"]):
        …

Known are UTF-8, with or without BOM, and GB18030 (which includes GBK and GB2312).
"""

import codecs
import itertools


class Undecodable(ValueError):
    """A file that is in no known encoding. `beginning` shows how it begins."""

    def __init__(self, reason, beginning):
        super().__init__(reason)
        self.beginning = beginning


def to_utf8(blocks):
    """Yield blocks of bytes in UTF-8 or GB18030 as UTF-8.

    A byte that is valid in neither stays as it is: the line with it is rejected when it is read.
    Undecodable where the first block has zero bytes or the mark of UTF-16.
    """
    blocks = iter(blocks)
    first = next(blocks, b"").removeprefix(codecs.BOM_UTF8)
    if first.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)) or b"\0" in first:
        reason = "no text in UTF-8 or GB18030 (zero bytes, or a UTF-16 mark): save it as UTF-8"
        raise Undecodable(reason, first[:60].decode("ascii", "replace"))
    is_ascii, decoder = True, None
    for block in itertools.chain([first], blocks):
        if is_ascii and not block.isascii():
            # Decided at the first character that is not ASCII: before it all encodings agree.
            is_ascii = False
            if not _is_utf8(block):
                decoder = codecs.getincrementaldecoder("gb18030")("surrogateescape")
        if decoder:
            block = decoder.decode(block).encode("utf-8", "surrogateescape")
        yield block
    if decoder:
        yield decoder.decode(b"", final=True).encode("utf-8", "surrogateescape")


def _is_utf8(block):
    """Decide by the lines of a block, so that one broken line does not make a UTF-8 file GB18030.
    A line of Chinese in GB18030 is hardly ever valid UTF-8."""
    lines = [line for line in block.split(b"\n") if not line.isascii()]
    as_utf8 = sum(_decodes(line, "utf-8") for line in lines)
    return 2 * as_utf8 >= len(lines) or as_utf8 >= sum(_decodes(line, "gb18030") for line in lines)


def _decodes(data, encoding):
    try:
        # Not final: a character that the end of the block cuts in two is no error.
        codecs.getincrementaldecoder(encoding)("strict").decode(data)
    except UnicodeDecodeError:
        return False
    return True
