"""Unicode normalization in linear time.

text = normalize("NFC", text)        # what unicodedata.normalize() returns

unicodedata puts combining marks into canonical order with an insertion sort, so its time grows with
the square of the longest run of marks. Here long runs are sorted first.
"""

import functools
import re
import unicodedata

_LONG_RUN = 32  # marks; real text has four or five in a row


def normalize(form, text):
    """`text` in the normalization form "NFC", "NFD", "NFKC" or "NFKD"."""
    if len(text) >= _LONG_RUN and not text.isascii():
        decomposition = "NFKD" if "K" in form else "NFD"
        text = _long_runs(decomposition).sub(lambda run: _ordered(decomposition, run[0]), text)
    return unicodedata.normalize(form, text)


def _ordered(decomposition, run):
    """A run of marks, decomposed and in canonical order."""
    marks = "".join(unicodedata.normalize(decomposition, mark) for mark in run)
    return "".join(sorted(marks, key=unicodedata.combining))  # stable, as Unicode requires


@functools.cache
def _long_runs(decomposition):
    """A pattern for a long run of characters that decompose into combining marks only."""
    marks = "".join(c for c in map(chr, range(0x300, 0x1F000)) if _is_mark(decomposition, c))
    return re.compile(f"[{marks}]{{{_LONG_RUN},}}")


def _is_mark(decomposition, character):
    return unicodedata.combining(unicodedata.normalize(decomposition, character)[0]) > 0
