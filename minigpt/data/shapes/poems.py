"""Poems: their lines, and the names of their forms.

    lines_of("春风吹晓水，玉树满山烟。")     # ["春风吹晓水", "玉树满山烟"]
    form_name(4, 5)                      # "五言绝句"

A line is what stands between two marks of punctuation: a couplet (联) has two.
"""

import re
from collections import Counter

HAN = "\u3005\u3007\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"
MARKS = "，。？！；：、,.?!;:"
_END = re.compile(rf"[{MARKS}]\s*|\s+")
_LINE = re.compile(rf"[{HAN}]+")
# (lines, characters a line) → the name; the two lengths of regulated verse.
FORMS = {(4, 5): "五言绝句", (4, 7): "七言绝句", (8, 5): "五言律诗", (8, 7): "七言律诗"}


def lines_of(text):
    """The lines of a poem, without their punctuation. Two marks in a row have an empty line between
    them, so a text with surplus marks has lines that are too short."""
    lines = _END.split(text.strip())
    return lines[:-1] if lines and not lines[-1] else lines


def is_line(line, characters):
    """Whether a line has so many characters, all of them Chinese."""
    return len(line) == characters and _LINE.fullmatch(line) is not None


def measure_of(lines):
    """(lines, characters of each), or None where the lines are not of one length."""
    lengths = Counter(map(len, lines))
    if len(lengths) != 1:
        return None
    (characters,) = lengths
    return (len(lines), characters) if is_line(lines[0], characters) else None


def form_name(lines, characters):
    """The name of a form of regulated verse, or None."""
    return FORMS.get((lines, characters))
