"""Stop strings: find them in a text that comes in pieces, and never show the beginning of one."""


class StopStrings:
    """Text in piece by piece, out what is certainly no part of a stop string.

    stops: the strings, none of them empty. The one that is complete first ends the text, which is
    cut where it begins; of those that are complete at the same character, the longest. However a
    text is cut into pieces, what comes out joins to the same.
    """

    def __init__(self, stops):
        self.stops = tuple(stops)
        self.hit = None  # the stop string that has ended the text; nothing comes out after it
        self._held = ""  # it may be the beginning of a stop string

    def push(self, text):
        """The text that can be shown now."""
        if self.hit is not None:
            return ""
        text = self._held + text
        found = [
            (text.index(stop) + len(stop), -len(stop), stop) for stop in self.stops if stop in text
        ]
        if found:
            end, _, self.hit = min(found)
            self._held = ""
            return text[: end - len(self.hit)]
        keep = len(text) - max((_overlap(text, stop) for stop in self.stops), default=0)
        self._held = text[keep:]
        return text[:keep]

    def flush(self):
        """What was held back, once it is certain that no more text comes."""
        held, self._held = self._held, ""
        return held


def _overlap(text, stop):
    """How many characters at the end of `text` are a beginning of `stop`, but not all of it."""
    longest = min(len(text), len(stop) - 1)
    return next((n for n in range(longest, 0, -1) if text.endswith(stop[:n])), 0)
