"""Prompt lookup: drafts of the next tokens, copied from where the last tokens occurred before.

    lookup = PromptLookup(text)      # a list of ids that grows at its end
    draft = lookup.draft(8)          # 8 ids; [] where the last tokens are new
    lookup.verified(8, 3)            # the first three of them were right

An answer often quotes its question, and a text repeats its names. The engine reads a draft in one
forward pass and keeps what the model would have written itself (Saxena 2023; speculative decoding:
Leviathan et al. 2023).
"""

FEWEST, MOST = 3, 16  # last tokens that must agree with an earlier place


class PromptLookup:
    """See the module's docstring. A new token takes constant time, whatever the text's length.

    A pass with a wrong draft takes up to twice as long as one without. So after each draft of which
    less than half was right, twice as many tokens must agree before the next one.
    """

    def __init__(self, text):
        self._text = text
        self._after = {}  # FEWEST tokens → index of the token that followed them the last time
        self._n_indexed = FEWEST - 1  # tokens before the first that follows no key of self._after
        self._must_agree = FEWEST

    def draft(self, most):
        """`most` ids that may follow; [] if none are expected."""
        text, n = self._text, self._must_agree
        for end in range(self._n_indexed + 1, len(text)):  # not the end of the text itself
            self._after[tuple(text[end - FEWEST : end])] = end
        self._n_indexed = max(self._n_indexed, len(text) - 1)
        start = self._after.get(tuple(text[-FEWEST:]), 0)
        if start < n or text[start - n : start] != text[-n:]:
            return []
        # A copy that reaches the end of the text continues within itself: a text that repeats k
        # tokens repeats them again.
        period = len(text) - start
        return [text[start + i % period] for i in range(most)]

    def verified(self, n_drafted, n_accepted):
        """Note how many tokens of a draft were right."""
        if 2 * n_accepted < n_drafted:
            self._must_agree = min(MOST, 2 * self._must_agree)
        elif n_accepted == n_drafted:
            self._must_agree = max(FEWEST, self._must_agree // 2)
