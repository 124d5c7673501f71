"""A text's ids as pieces that fit a block, cut where a sentence ends.

    cutter = Cutter(tokenizer, block_size=512)
    pieces = cutter.pieces(text)          # all of the text, the last piece with EOT
    found = cutter.first_sentences(text)  # the classic recipe: what fits one block, or None

Both take the ids of the text, too, as array("I"), if many texts were encoded together. The ids of a
piece are those that the tokenizer gives for the text of the piece, so no token is torn at the end
of a sentence. The texts of the pieces joined are the text.
"""

import re
from array import array

import numpy as np

from minigpt.tokenizer.tokenizer import PATTERNS

# Where a piece may end, the best first. The others are for a sentence that is longer than a block,
# and for verse and code; a sentence without any of them is cut between any two characters.
ENDS = [
    re.compile(pattern)
    for pattern in (
        # a full stop only before a blank: not in 3.14; a mark not before =: not in x != y
        r"(?:[。！？．…!?]+(?!=)|\.(?=[\"')\]]*(?:\s|$)))[」』”’）】》〉］〕\"')\]]*[\r\n]*",
        r"[\r\n]+",
        r"[，、；：—]|[,;:](?=\s)",
        r"\s+",
    )
]
# A seam: a boundary between a letter and a punctuation mark. In no known pre-tokenization pattern a
# token crosses it, because a run of letters ends before a mark. With some patterns a run of marks
# also ends before a letter, so with these most sentences start at a seam.
_LETTER, _MARK = r"[A-Za-z\u4e00-\u9fff]", "[,.;:!?，。、；：！？．…”』」》）]"
_SEAM = re.compile(f"{_LETTER}(?={_MARK})")
_EITHER_SEAM = re.compile(f"{_LETTER}(?={_MARK})|{_MARK}(?={_LETTER})")
_EITHER = {PATTERNS["gpt-2"], PATTERNS["smollm"]}
_SLACK = 8  # a piece encoded alone may have so many tokens fewer than within the whole text
SMALLEST_BLOCK = 16  # any character fits, with the special tokens beside it


class Cutter:
    """Cuts texts for one tokenizer and one block size (at least SMALLEST_BLOCK)."""

    def __init__(self, tokenizer, block_size):
        self.tokenizer, self.block_size = tokenizer, block_size
        self._seam = _EITHER_SEAM if tokenizer.pattern in _EITHER else _SEAM
        stops = np.cumsum([len(token) for token in tokenizer.tokens])
        starts = np.append(0, stops[:-1])
        # In UTF-8 the bytes 0x80 … 0xbf continue a character, all others start one.
        begins = np.frombuffer(b"".join(tokenizer.tokens), np.uint8) & 0xC0 != 0x80
        count = np.append(0, np.cumsum(begins))  # how many characters begin before each byte
        self._begun = count[stops] - count[starts]  # of each token: characters that begin in it
        # Whether a token begins within a character.
        self._goes_on = ((stops > starts) & ~np.append(begins, True)[starts]).tolist()

    def encode(self, text):
        """Return the ids of a text as array("I")."""
        return array("I", self.tokenizer.encode(text))

    def pieces(self, text, ids=None):
        """Return [ids, …] of at most block_size ids each; the last ends with EOT, the end of the
        text. Each piece but the last has as many sentences as fit; no text is lost."""
        ids = self.encode(text) if ids is None else ids
        if len(ids) < self.block_size:
            ids.append(self.tokenizer.eot)
            return [ids]
        long = self._long(text, ids)
        pieces, start = [], 0
        while (rest := long.rest(start, self.block_size - 1)) is None:
            start, ids = long.cut(start, self.block_size)
            pieces.append(ids)
        rest.append(self.tokenizer.eot)
        return [*pieces, rest]

    def first_sentences(self, text, ids=None):
        """Return (ids, characters) of the sentences that fit into one block together with EOT, the
        last id; where none ends within the block, of the lines; None where no line does either."""
        ids = self.encode(text) if ids is None else ids
        if not ids:
            return None
        long = self._long(text, ids)
        for pattern in ENDS[:2]:
            end, ids = long.last_end(pattern, 0, self.block_size - 1, len(text))
            if end:
                break
        if not end:
            return None
        ids.append(self.tokenizer.eot)
        return ids, end

    def _long(self, text, ids):
        stops = self._begun[np.frombuffer(ids, np.uintc)].cumsum()
        return _LongText(self.encode, self._seam, text, ids, stops, self._goes_on, self.block_size)


class _LongText:
    """A text with its ids, from which spans are taken. Indices count characters.

    The ids of a span are those of the whole text between its first and its last seam; only the
    characters outside these are encoded again. So a cut is cheap in a text of any length.

    stops:      (n,) how many characters have begun at the end of each token
    goes_on:    of each id of the vocabulary, whether it begins within a character
    block_size: no stretch has more tokens
    """

    def __init__(self, encode, seam, text, ids, stops, goes_on, block_size):
        self._encode, self._seam, self._text, self._ids = encode, seam, text, ids
        self._stops, self._goes_on = stops, goes_on
        self._last_head = -1, None
        self._counts = {}  # of _count(): the end of a span is the start of the next
        self._most = block_size + _SLACK

    def rest(self, start, room):
        """Return the ids from `start` to the end of the text; None if more than `room`."""
        if len(self._ids) - self._count(start) > room + _SLACK:
            return None
        return self._span(start, len(self._text), room)

    def cut(self, start, room):
        """(end, ids) of the span from `start` that takes as much as fits into `room` ids but
        ends before the text does, at the best kind of end that there is."""
        for pattern in ENDS:
            end, ids = self.last_end(pattern, start, room, len(self._text) - 1)
            if end:
                return end, ids
        end = min(self._reach(start, room), len(self._text) - 1)
        while (ids := self._span(start, end, room)) is None:
            end -= 1
        return end, ids

    def last_end(self, pattern, start, room, at_most):
        """(end, ids) of the longest span from `start` of at most `room` ids that ends with
        `pattern` at `at_most` or before; (None, None) where there is none."""
        high = min(self._reach(start, room + _SLACK), at_most)
        for low in _search_starts(start, high):
            # Search a little further than `high`, so that a match that ends there is complete.
            ends = [match.end() for match in pattern.finditer(self._text, low, high + 20)]
            for end in reversed(ends):
                if end <= high and (ids := self._span(start, end, room)) is not None:
                    return end, ids
            high = min(high, low + 20)
        return None, None

    def _count(self, index):
        """How many tokens of the whole text end at `index` or before."""
        count = self._counts.get(index)
        if count is None:
            count = self._counts[index] = int(self._stops.searchsorted(index, side="right"))
        return count

    def _reach(self, start, tokens):
        """The index that so many tokens of the whole text reach from `start`."""
        return int(self._stops[min(self._count(start) + tokens, len(self._ids)) - 1])

    def _span(self, start, end, room):
        """The tokenizer's ids for the text from `start` to `end`; None if more than `room`."""
        if self._last_head[0] != start:
            self._last_head = start, self._head(start)
        head, tail = self._last_head[1], self._tail(start, end)
        if head and tail and head[1] <= tail[0]:
            if len(head[0]) + tail[0] - head[1] + len(tail[1]) > room:
                return None
            return head[0] + self._ids[head[1] : tail[0]] + tail[1]
        ids = self._encode(self._text[start:end])
        return ids if len(ids) <= room else None

    def _head(self, start):
        """(ids from `start` to the next seam, number of the token after it), or None."""
        if start == 0:
            return array("I"), 0
        if count := self._tokens_before_seam(start):
            return array("I"), count
        # A seam after the longest stretch is of no use, and a search for it would scan the whole
        # text. One more character, because a seam's pattern may look ahead.
        end = self._reach(start, self._most) + 1
        for match in self._seam.finditer(self._text, start, end):
            count = self._tokens_before(match.end())
            if count:
                return self._encode(self._text[start : match.end()]), count
        return None

    def _tail(self, start, end):
        """(number of the token after the last seam up to `end`, ids from there to `end`)."""
        if end == len(self._text):
            return len(self._ids), array("I")
        if count := self._tokens_before_seam(end):
            return count, array("I")
        for low in _search_starts(start, end):
            # One character more: a seam is a boundary, and needs the character after it.
            for match in reversed(list(self._seam.finditer(self._text, low, end + 1))):
                count = self._tokens_before(match.end())
                if count:
                    return count, self._encode(self._text[match.end() : end])
        return None

    def _tokens_before_seam(self, index):
        """How many tokens are before `index`, if it is a seam; else None."""
        return self._tokens_before(index) if self._seam.match(self._text, index - 1) else None

    def _tokens_before(self, index):
        """How many tokens are before `index`; None if it is within a token."""
        count = self._count(index)
        if not count or self._stops[count - 1] != index:
            return None
        return None if count < len(self._ids) and self._goes_on[self._ids[count]] else count


def _search_starts(start, end):
    """Indices from which to search for the last match before `end`: near ones first."""
    return [*(end - far for far in (64, 512, 4096) if end - far > start), start]
