"""Prose → entries: a long text is split at chapters, paragraphs or sentences.

[text[start:end] for start, end in split_prose(text)]     # of about 2,000 characters each
"""

import re

ENTRY = 2000  # characters in an entry, about

# A heading of a chapter: 第十二回 …, 卷三：…, Chapter 7, 楔子.
_NUMBER = "[0-9０-９零〇○一二三四五六七八九十百千两]+"
_HEADING = re.compile(
    rf"^[ \t\u3000]*(?:(?:正文 *)?第{_NUMBER}[章回节節卷部集篇幕](?=[\s：:、.．]|$)"
    rf"|卷{_NUMBER}(?=[\s：:、]|$)|(?i:chapter|part|book)[ \t]+(?:\d+|[IVXLC]+)\b"
    r"|(?:楔子|引子|序|序[章言幕]|前言|尾声|后记|後記|番外)[ \t\u3000]*$)",
    re.MULTILINE,
)
# Where prose may be split, the best first: after a line that ends a sentence (a line that is
# wrapped at a width does not), after any line, after a sentence, after a clause. Blank lines belong
# to the text before them, an indent to the text after it.
_BREAKS = [
    re.compile(r"(?<=[。！？．…；.!?：:”」』’）)】])(?:[ \t\u3000\r]*\n)+"),
    re.compile(r"\n(?:[ \t\u3000\r]*\n)*"),
    re.compile(r"[。！？．…!?]+[”」』’）)]*|\.(?=\s)"),
    re.compile(r"[，、；：,;:\s]"),
]


def split_prose(text, about=ENTRY):
    """Return [(start, end)] of entries of about `about` characters; joined they are `text`.

    A heading begins a new entry (unless the entry before it would have less than a quarter of
    `about`). The entries of a chapter have similar lengths: each ends at the end of the paragraph
    that is nearest to an even share.
    """
    spans, start = [], 0
    while start < len(text):
        end = _entry_end(text, start, about)
        spans.append((start, end))
        start = end
    return spans


def _entry_end(text, start, about):
    limit = start + about * 7 // 2  # a shorter rest is divided evenly
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


def last_break(text):
    """Return the last index where an entry may end: the best kind of break in the last 2 × ENTRY
    characters."""
    low = len(text) - 2 * ENTRY
    for pattern in [_HEADING, *_BREAKS]:
        at_start = pattern is _HEADING
        indices = [m.start() if at_start else m.end() for m in pattern.finditer(text, low)]
        indices = [index for index in indices if low < index < len(text)]
        if indices:
            return indices[-1]
    return low
