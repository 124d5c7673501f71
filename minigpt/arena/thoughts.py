"""Thoughts in the text of an answer: what a model writes between <think> and </think> before it.

    splitter = ThoughtSplitter()
    for chunk in chunks:
        text, thoughts = splitter.push(chunk)
    text, thoughts = splitter.push("", final=True)

Servers that separate them send them in a field of their own (minigpt.openai.answers).
"""

OPEN, CLOSE = "<think>", "</think>"


class ThoughtSplitter:
    """Separates the thoughts at the beginning of a text from the rest. The result does not depend
    on where the chunks are cut. A tag later in the text is text."""

    def __init__(self):
        self._state, self._rest = "start", ""  # the rest may be a part of a tag

    def push(self, chunk, final=False):
        """(text, thoughts) that `chunk` adds. final: it is the last chunk."""
        if self._state == "text":
            return chunk, ""
        self._rest += chunk
        if self._state == "start":
            self._begin(final)
        return self._split(final)

    def _begin(self, final):
        """Decide whether the text begins with thoughts, once enough of it has arrived."""
        begin = self._rest.lstrip()
        if begin.startswith(OPEN):
            self._state, self._rest = "thoughts", begin[len(OPEN) :]
        elif final or not OPEN.startswith(begin):
            self._state = "text"

    def _split(self, final):
        rest, self._rest = self._rest, ""
        if self._state == "start":
            self._rest = rest
            return "", ""
        if self._state == "text":
            return rest, ""
        if self._state == "gap":  # between the thoughts and the answer: blank lines
            return self._skip_gap(rest), ""
        thoughts, tag, text = rest.partition(CLOSE)
        if tag:
            self._state = "gap"
            return self._skip_gap(text), thoughts
        kept = 0 if final else _overlap(thoughts, CLOSE)
        self._rest = thoughts[len(thoughts) - kept :]
        return "", thoughts[: len(thoughts) - kept]

    def _skip_gap(self, text):
        text = text.lstrip("\n")
        if text:
            self._state = "text"
        return text


def _overlap(text, tag):
    """The length of the longest end of `text` that `tag` begins with."""
    lengths = range(min(len(text), len(tag) - 1), 0, -1)
    return next((n for n in lengths if text.endswith(tag[:n])), 0)
