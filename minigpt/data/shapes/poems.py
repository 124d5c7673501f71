"""Poems: records of the collection chinese-poetry, and what a poem consists of.

    parse_poem({"title": "静夜思", "author": "李白", "paragraphs": ["床前明月光，疑是地上霜。"]})
    lines_of("春风吹晓水，玉树满山烟。")     # ["春风吹晓水", "玉树满山烟"]
    measure_of(lines)                    # (2, 5)

A line (句) is the text between two punctuation marks. A couplet (联) is two of them; a text has a
line break after each couplet.
"""

import re
from typing import NamedTuple

from minigpt.data.shapes.fields import as_list, first_name, id_of, is_empty, optional_text, text_of
from minigpt.data.shapes.samples import BadRecord, Entry, LeftOut

PARAGRAPHS, AUTHOR = ("paragraphs",), ("author", "作者")
TITLE = ("title", "rhythmic", "标题", "標題")  # a song (词) has the name of its tune
ABOUT_AUTHOR = ("desc", "description")
HOLES = "□■●○◆"  # for characters that are lost
HAN = "\u3005\u3007\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"
MARKS = "，。？！；：、,.?!;:"
_END = re.compile(rf"[{MARKS}]\s*|\s+")
_LINE = re.compile(rf"[{HAN}]+")
# (lines, characters of a line) → the name of the form: those of regulated verse.
FORMS = {(4, 5): "五言绝句", (4, 7): "七言绝句", (8, 5): "五言律诗", (8, 7): "七言律诗"}


def parse_poem(record):
    """`paragraphs` (a list of couplets) and `author`, optional title and id → Entry; its text has
    a line for each couplet. LeftOut where a character is lost (□)."""
    text = _text_of(record)
    if first_name(record, AUTHOR) is None:
        raise BadRecord(f"field `{AUTHOR[0]}` is missing")
    check_whole(text)
    return Entry(id_of(record), optional_text(record, *TITLE), text)


def _text_of(record):
    """The couplets of a record as lines. LeftOut where there are none."""
    name = first_name(record, PARAGRAPHS)
    if name is None:
        raise BadRecord(f"field `{PARAGRAPHS[0]}` is missing")
    couplets = as_list(f"field `{name}`", record[name])
    if not all(isinstance(couplet, str) for couplet in couplets):
        raise BadRecord(f"field `{name}`: expected a list of texts")
    text = "\n".join(couplet.strip() for couplet in couplets if not is_empty(couplet))
    if not text:
        raise LeftOut("empty poem")
    return text


def check_whole(text):
    """LeftOut where a character of a poem is lost."""
    if any(hole in text for hole in HOLES):
        raise LeftOut(f"poem with lost characters ({HOLES[0]})")


def lines_of(text):
    """The lines of a poem, without their punctuation. Between two marks in a row there is an empty
    line, so surplus marks make lines that are too short."""
    lines = _END.split(text.strip())
    return lines[:-1] if lines and not lines[-1] else lines


def is_line(line, characters):
    """Whether a line has so many characters, all of them Chinese."""
    return len(line) == characters and _LINE.fullmatch(line) is not None


def measure_of(lines):
    """(lines, characters of each), or None where the lines are not of one length."""
    length = len(lines[0]) if lines else 0
    return (len(lines), length) if lines and all(is_line(each, length) for each in lines) else None


# -- one poem, whatever its record is called -------------------------------------------------------


class Poem(NamedTuple):
    """A poem; `text` has a line for each couplet."""

    id: str | None
    title: str
    author: str
    text: str


def parse_verse(record):
    """`paragraphs` or `text`, author and title, optional → Poem, without editors' notes, brackets,
    blanks and quotation marks. LeftOut where a character is lost or not Chinese, and for the
    collection's records of authors, which are in the same folder."""
    has_couplets = first_name(record, PARAGRAPHS) is not None
    if not has_couplets and first_name(record, ("name",)) and first_name(record, ABOUT_AUTHOR):
        raise LeftOut("record of an author")
    text = _text_of(record) if has_couplets else text_of(record, "text", "content")
    check_whole(text)
    text = _QUOTES.sub("", _NOTES.sub("", text)).replace("\r\n", "\n").strip()
    if not text:
        raise LeftOut("empty poem")
    if _OTHER.search(text):
        raise LeftOut("poem with characters that are not Chinese")
    title, author = optional_text(record, *TITLE), optional_text(record, *AUTHOR)
    return Poem(id_of(record), title, author, text)


# A note of the editors is in brackets; […] is around a character that they supply.
_NOTES = re.compile(r"（[^（）]*）|\([^()]*\)|〈[^〈〉]*〉")
_QUOTES = re.compile(r"[\[\]［］「」『』“”‘’《》〔〕 \t\u3000]")
_OTHER = re.compile(rf"[^{HAN}{MARKS}\n]")
