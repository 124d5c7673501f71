"""Repair half surrogate pairs: JSON can spell them (\\ud83d), UTF-8 cannot hold them.

replace_lone_surrogates("a\\ud83d")    # "a\ufffd"

joiner = SurrogateJoiner()             # for a text that arrives in chunks
for chunk in chunks:
    show(joiner.push(chunk))
show(joiner.push("", final=True))
"""

import codecs


def replace_lone_surrogates(text):
    """`text` with U+FFFD in place of each unpaired half of a surrogate pair."""
    return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")


class SurrogateJoiner:
    """Joins surrogate pairs that are split across chunks; unpaired halves become U+FFFD."""

    def __init__(self):
        self._decoder = codecs.getincrementaldecoder("utf-16-le")("replace")

    def push(self, chunk, final=False):
        """The text that is complete: without a half at the end of a chunk that may still get its
        other half. final: this is the last chunk."""
        return self._decoder.decode(chunk.encode("utf-16-le", "surrogatepass"), final)
