"""A text's ids as pieces that fit a block, cut where a sentence ends.

    cutter = Cutter(tokenizer, block_size=512)
    pieces = cutter.pieces(text)          # all of the text, the last piece with EOT
    found = cutter.first_sentences(text)  # the classic recipe: what fits one block, or None

Both take the text's ids too, as array("I"), where many texts were encoded together. A piece's ids
are what the tokenizer gives for the piece's own text, so no token is torn where it reaches over a
sentence's end; and the pieces' texts joined are the text.
"""

import re
from array import array

import numpy as np

from minigpt.tokenizer.tokenizer import PATTERNS

# Where a piece may end, the best first. The second and third serve a sentence that is longer than
# a block; where it has none of them, it is cut between any two characters.
ENDS = [
    re.compile(pattern)
    for pattern in (
        # a full stop only before a blank: not in 3.14
        r"(?:[。！？．…!?]+|\.(?=[\"')\]]*(?:\s|$)))[」』”’）】》〉］〕\"')\]]*[\r\n]*",
        r"[，、；：—]|[,;:](?=\s)|[\r\n]+",
        r"\s+",
    )
]
# A seam: a letter before a mark. No pattern of pre-tokenisation that we know lets a token reach
# over it, for a run of letters ends where a mark begins. With some patterns a run of marks ends
# where a letter begins as well, so there most sentences begin at a seam.
_LETTER, _MARK = r"[A-Za-z\u4e00-\u9fff]", "[,.;:!?，。、；：！？．…”』」》）]"
_SEAM = re.compile(f"{_LETTER}(?={_MARK})")
_EITHER_SEAM = re.compile(f"{_LETTER}(?={_MARK})|{_MARK}(?={_LETTER})")
_EITHER = {PATTERNS["gpt-2"], PATTERNS["smollm"]}
_SLACK = 8  # tokens by which a piece's own ids may be fewer than its share of the whole text's
SMALLEST_BLOCK = 16  # any character fits, and so does what stands beside it


class Cutter:
    """Cuts texts for one tokenizer and one block size (at least SMALLEST_BLOCK)."""

    def __init__(self, tokenizer, block_size):
        self.tokenizer, self.block_size = tokenizer, block_size
        self._seam = _EITHER_SEAM if tokenizer.pattern in _EITHER else _SEAM
        tokens = [tokenizer.decode_bytes([i]) for i in range(tokenizer.n_vocab)]
        # In UTF-8 the bytes 0x80 … 0xbf go on with a character, all others begin one.
        self._begun = np.array([sum(byte & 0xC0 != 0x80 for byte in token) for token in tokens])
        self._goes_on = np.array([token[:1] and token[0] & 0xC0 == 0x80 for token in tokens], bool)

    def encode(self, text):
        """The ids of a text as array("I")."""
        return array("I", self.tokenizer.encode(text))

    def pieces(self, text, ids=None):
        """[ids, …] of at most block_size ids each; EOT ends the last, where the text really ends.

        Each piece but the last takes as many sentences as fit; nothing of the text is lost.
        """
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
        """(ids, characters) of the sentences that fit one block together with EOT, which ends the
        ids; None where no sentence ends within the block."""
        ids = self.encode(text) if ids is None else ids
        if not ids:
            return None
        long = self._long(text, ids)
        end, ids = long.last_end(ENDS[0], 0, self.block_size - 1, len(text))
        if not end:
            return None
        ids.append(self.tokenizer.eot)
        return ids, end

    def _long(self, text, ids):
        numbers = np.frombuffer(ids, np.uintc)
        begun, goes_on = self._begun[numbers], self._goes_on[numbers]
        return _LongText(self.encode, self._seam, text, ids, begun, goes_on, self.block_size)


class _LongText:
    """A text with its ids, of which stretches are taken. Places are numbers of characters.

    The ids of a stretch are those of the whole text between its first and its last seam; only what
    stands outside these is encoded anew. So cutting costs little, however long the text.

    begun:      (n,) how many characters begin in each token
    goes_on:    (n,) bool, whether a token begins within a character
    block_size: no stretch has more tokens
    """

    def __init__(self, encode, seam, text, ids, begun, goes_on, block_size):
        self._encode, self._seam, self._text, self._ids = encode, seam, text, ids
        self._goes_on = goes_on
        self._stops = np.cumsum(begun)  # how many characters have begun at the end of each token
        self._last_head = -1, None
        self._most = block_size + _SLACK

    def rest(self, start, room):
        """The ids of all from `start` on, or None where they are more than `room`."""
        if len(self._ids) - self._count(start) > room + _SLACK:
            return None
        ids = self._stretch(start, len(self._text))
        return ids if len(ids) <= room else None

    def cut(self, start, room):
        """(end, ids) of the stretch from `start` that takes as much as fits into `room` ids but
        ends before the text does, at the best kind of end that there is."""
        for pattern in ENDS:
            end, ids = self.last_end(pattern, start, room, len(self._text) - 1)
            if end:
                return end, ids
        end = min(self._reach(start, room), len(self._text) - 1)
        while len(ids := self._stretch(start, end)) > room:
            end -= 1
        return end, ids

    def last_end(self, pattern, start, room, at_most):
        """(end, ids) of the longest stretch from `start` of at most `room` ids that ends with
        `pattern` at `at_most` or before; (None, None) where there is none."""
        high = min(self._reach(start, room + _SLACK), at_most)
        for low in _ever_lower(start, high):
            # Sought a little further than `high`, so that what ends there is seen to its end.
            ends = [match.end() for match in pattern.finditer(self._text, low, high + 20)]
            for end in reversed(ends):
                if end <= high and len(ids := self._stretch(start, end)) <= room:
                    return end, ids
            high = min(high, low + 20)
        return None, None

    def _count(self, place):
        """How many tokens of the whole text end at `place` or before."""
        return int(self._stops.searchsorted(place, side="right"))

    def _reach(self, start, tokens):
        """How far so many tokens of the whole text reach from `start`."""
        return int(self._stops[min(self._count(start) + tokens, len(self._ids)) - 1])

    def _stretch(self, start, end):
        """The tokenizer's ids for the text from `start` to `end`."""
        if self._last_head[0] != start:
            self._last_head = start, self._head(start)
        head, tail = self._last_head[1], self._tail(start, end)
        if head and tail and head[1] <= tail[0]:
            return head[0] + self._ids[head[1] : tail[0]] + tail[1]
        return self._encode(self._text[start:end])

    def _head(self, start):
        """(ids from `start` to the next seam, number of the token after it), or None."""
        if start == 0:
            return array("I"), 0
        if count := self._tokens_before_seam(start):
            return array("I"), count
        # A seam behind the longest stretch is of no use, and seeking it would take as long as the
        # text. One character more, for what a seam stands before.
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
        for low in _ever_lower(start, end):
            # One character more, for what a seam stands before.
            for match in reversed(list(self._seam.finditer(self._text, low, end + 1))):
                count = self._tokens_before(match.end())
                if count:
                    return count, self._encode(self._text[match.end() : end])
        return None

    def _tokens_before_seam(self, place):
        """How many tokens stand before `place`, where it is a seam; None where it is not."""
        return self._tokens_before(place) if self._seam.match(self._text, place - 1) else None

    def _tokens_before(self, place):
        """How many tokens stand before `place`; None where it is within a token."""
        count = self._count(place)
        if not count or self._stops[count - 1] != place:
            return None
        return None if count < len(self._ids) and self._goes_on[count] else count


def _ever_lower(start, end):
    """Places from which to look for the last of something before `end`: most often it is near."""
    return [*(end - far for far in (64, 512, 4096) if end - far > start), start]
