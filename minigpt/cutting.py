"""A text's ids as pieces that fit a block, cut where a sentence ends.

    cutter = Cutter(tokenizer, block_size=512)
    pieces = cutter.pieces(text)          # all of the text, the last piece with EOT
    ids = cutter.first_sentences(text)    # the classic recipe: what fits one block, or None

A piece's ids are what the tokenizer gives for the piece's own text, so no token is torn where it
reaches over a sentence's end; and the pieces' texts joined are the text.
"""

import re

import numpy as np

# All patterns are for UTF-8 bytes: tokens are counted in bytes, and in UTF-8 no character is
# mistaken for a part of another.
_CLOSING = "(?:[\"')\\]]|」|』|”|’|）|】|》|〉|［|］|〕)*"
_SENTENCE = f"(?:(?:[!?]|。|！|？|．|…)+|\\.(?=[\"')\\]]*(?:\\s|$))){_CLOSING}[\r\n]*"  # not 3.14
_CLAUSE = "，|、|；|：|——|[,;:](?=\\s)|[\r\n]+"
_BLANK = "[ \t]+|\u3000"
# Where a piece may end, the best first. The others serve a sentence that is longer than a block;
# where it has none of them, it is cut between any two characters.
ENDS = [re.compile(pattern.encode()) for pattern in (_SENTENCE, _CLAUSE, _BLANK)]
# A seam: a letter (ideographs are U+4E00 … U+9FFF) before a mark. No pattern of pre-tokenisation
# that we know lets a token reach over it, for a run of letters ends where a mark begins.
_SEAM = re.compile(
    rb"(?:[A-Za-z]|(?:\xe4[\xb8-\xbf]|[\xe5-\xe9][\x80-\xbf])[\x80-\xbf])"
    + "(?=[,.;:!?]|，|。|、|；|：|！|？|．|…|”|』|」|）|》)".encode()
)
_SLACK = 8  # tokens by which a piece's own ids may be fewer than its share of the whole text's
SMALLEST_BLOCK = 16  # any character fits, and so does what stands beside it


class Cutter:
    """Cuts texts for one tokenizer and one block size (at least SMALLEST_BLOCK)."""

    def __init__(self, tokenizer, block_size):
        self.tokenizer, self.block_size = tokenizer, block_size
        sizes = [len(tokenizer.decode_bytes([i])) for i in range(tokenizer.n_vocab)]
        self._token_sizes = np.array(sizes)

    def pieces(self, text):
        """[ids, …] of at most block_size ids each; EOT ends the last, where the text really ends.

        Each piece but the last takes as many sentences as fit; nothing of the text is lost.
        """
        ids = self.tokenizer.encode(text)
        if len(ids) < self.block_size:
            ids.append(self.tokenizer.eot)
            return [ids]
        text = _LongText(self.tokenizer.encode, text, ids, self._token_sizes)
        pieces, start = [], 0
        while (rest := text.rest(start, self.block_size - 1)) is None:
            start, ids = text.cut(start, self.block_size)
            pieces.append(ids)
        return [*pieces, [*rest, self.tokenizer.eot]]

    def first_sentences(self, text):
        """(ids, characters) of the sentences that fit one block together with EOT, which ends the
        ids; None where no sentence ends within the block."""
        ids = self.tokenizer.encode(text)
        text = _LongText(self.tokenizer.encode, text, ids, self._token_sizes)
        end, ids = text.last_end(ENDS[0], 0, self.block_size - 1, len(text.data))
        return ([*ids, self.tokenizer.eot], len(text.data[:end].decode())) if end else None


class _LongText:
    """A text with its ids, of which stretches are taken. All places are bytes of its UTF-8.

    The ids of a stretch are those of the whole text between its first and its last seam; only what
    stands outside these is encoded anew. So cutting costs little, however long the text.
    """

    def __init__(self, encode, text, ids, token_sizes):
        self._encode, self._ids = encode, ids
        self.data = text.encode()
        self._stops = np.cumsum(token_sizes[ids])  # where each token ends
        self._last_head = -1, None

    def rest(self, start, room):
        """The ids of all from `start` on, or None where they are more than `room`."""
        if len(self._ids) - self._count(start) > room + _SLACK:
            return None
        ids = self._stretch(start, len(self.data))
        return ids if len(ids) <= room else None

    def cut(self, start, room):
        """(end, ids) of the stretch from `start` that takes as much as fits into `room` ids but
        ends before the text does, at the best kind of end that there is."""
        for pattern in ENDS:
            end, ids = self.last_end(pattern, start, room, len(self.data) - 1)
            if end:
                return end, ids
        end = min(self._reach(start, room), len(self.data) - 1)
        while True:
            while self.data[end] & 0xC0 == 0x80:  # within a character
                end -= 1
            ids = self._stretch(start, end)
            if len(ids) <= room:
                return end, ids
            end -= 1

    def last_end(self, pattern, start, room, at_most):
        """(end, ids) of the longest stretch from `start` of at most `room` ids that ends with
        `pattern` at `at_most` or before; (None, None) where there is none."""
        high = min(self._reach(start, room + _SLACK), at_most)
        for low in _ever_lower(start, high):
            # Sought a little further than `high`, so that what ends there is seen to its end.
            ends = [match.end() for match in pattern.finditer(self.data, low, high + 64)]
            for end in reversed(ends):
                if end <= high and len(ids := self._stretch(start, end)) <= room:
                    return end, ids
            high = min(high, low + 64)
        return None, None

    def _count(self, place):
        """How many tokens of the whole text end at `place` or before."""
        return int(np.searchsorted(self._stops, place, side="right"))

    def _reach(self, start, tokens):
        """How far so many tokens of the whole text reach from `start`."""
        return int(self._stops[min(self._count(start) + tokens, len(self._ids)) - 1])

    def _stretch(self, start, end):
        """The tokenizer's ids for the text from `start` to `end`."""
        if self._last_head[0] != start:
            self._last_head = start, self._head(start)
        head, tail = self._last_head[1], self._tail(start, end)
        if head and tail and head[1] <= tail[0]:
            return [*head[0], *self._ids[head[1] : tail[0]], *tail[1]]
        return self._encode(self.data[start:end].decode())

    def _head(self, start):
        """(ids from `start` to the next seam, number of the token after it), or None."""
        if start == 0:
            return [], 0
        for match in _SEAM.finditer(self.data, start):
            count = self._tokens_before(match.end())
            if count is not None:
                return self._encode(self.data[start : match.end()].decode()), count
        return None

    def _tail(self, start, end):
        """(number of the token after the last seam up to `end`, ids from there to `end`)."""
        if end == len(self.data):
            return len(self._ids), []
        for low in _ever_lower(start, end):
            for match in reversed(list(_SEAM.finditer(self.data, low, end + 3))):
                count = self._tokens_before(match.end()) if match.end() <= end else None
                if count is not None:
                    return count, self._encode(self.data[match.end() : end].decode())
        return None

    def _tokens_before(self, place):
        """How many tokens stand before `place`; None where it is within a token."""
        count = self._count(place)
        return count if count and self._stops[count - 1] == place else None


def _ever_lower(start, end):
    """Places from which to look for the last of something before `end`: most often it is near."""
    return [*(end - far for far in (256, 2048, 16384) if end - far > start), start]
