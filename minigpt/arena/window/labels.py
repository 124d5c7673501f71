"""Tokens as text for people: half characters, and what cannot be seen, as codes."""

import re

MAX_LABEL_CHARS = 40  # of one token


def label(data):
    """The bytes of a token as text for people: what is no whole character as ⟨E4 B8⟩, and what
    cannot be seen by its code."""
    text = data.decode("utf-8", "surrogateescape")
    text = re.sub("[\udc80-\udcff]+", lambda found: _codes(found[0]), text)
    return visible(text)


def visible(text):
    """The text of a token: as visible_text(), at most MAX_LABEL_CHARS."""
    shown = visible_text(text)
    return shown if len(shown) <= MAX_LABEL_CHARS else shown[:MAX_LABEL_CHARS] + "…"


def visible_text(text):
    """A text whose characters can all be seen, but for blanks and line breaks: others are written
    as ⟨U+202E⟩. A half character, which decoding has lost, is ⟨?⟩."""
    return "".join(_visible_character(c) for c in text)


def _visible_character(c):
    if c == "\ufffd":
        return "⟨?⟩"
    return c if c.isprintable() or c in "\n\t\u3000" else f"⟨U+{ord(c):04X}⟩"


def _codes(escaped):
    return f"⟨{' '.join(f'{ord(c) - 0xDC00:02X}' for c in escaped)}⟩"
