"""Stop strings: found in streamed text, without ever releasing the beginning of one."""


class StopStrings:
    """Takes streamed text and releases what cannot be part of a stop string.

    stops: the strings, none of them empty. The first complete one ends the text, which is cut where
    it begins; of several that end at the same character, the longest. The released text does not
    depend on how the text is cut into pieces. The time is linear in the text,
    however long the stop strings are (Knuth, Morris and Pratt 1977).
    """

    def __init__(self, stops):
        self.stops = tuple(stops)
        self.hit = None  # the stop string that ended the text; nothing is released after it
        self._borders = [_borders(stop) for stop in self.stops]
        self._matched = [0] * len(self.stops)  # how much of each stop the text so far ends with
        # What is held back is the beginning of a stop string: which one, and how much of it.
        self._held = "", 0

    def push(self, text):
        """The text that can be shown now."""
        if self.hit is not None:
            return ""
        for i, character in enumerate(text):
            complete = self._complete_with(character)
            if complete:
                self.hit = max(complete, key=len)
                return self._taken(text, i + 1 - len(self.hit), ("", 0))
        n_held, stop = max(zip(self._matched, self.stops, strict=True), default=(0, ""))
        return self._taken(text, len(text) - n_held, (stop, n_held))

    def flush(self):
        """The held-back text, once no more text comes."""
        self._matched = [0] * len(self.stops)
        return self._taken("", 0, ("", 0))

    def _complete_with(self, character):
        """The stop strings that one more character completes."""
        complete = []
        for number, (stop, borders) in enumerate(zip(self.stops, self._borders, strict=True)):
            n = self._matched[number]
            while n and stop[n] != character:
                n = borders[n - 1]
            n += stop[n] == character
            self._matched[number] = n
            if n == len(stop):
                complete.append(stop)
        return complete

    def _taken(self, text, end, held):
        """The text held back so far and `text`, up to place `end` of `text`; below 0 that is within
        what was held back. From now on `held` is."""
        stop, n = self._held
        self._held = held
        return stop[:n] + text[:end] if end > 0 else stop[: n + end]


def _borders(stop):
    """For each beginning of `stop` the length of its longest border: what it both begins and ends
    with, short of itself."""
    borders, n = [0], 0
    for character in stop[1:]:
        while n and stop[n] != character:
            n = borders[n - 1]
        n += stop[n] == character
        borders.append(n)
    return borders
