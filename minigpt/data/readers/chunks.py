"""Chunk and Reject: what readers cut a file into, and what cannot be used of it."""

from typing import NamedTuple

LONGEST = 2**26  # bytes in a line, a row, or an item of a list; a longer one is no record


class Reject(NamedTuple):
    """A record that cannot be used: where it is, why, and how it begins.

    line: its number, counted in `unit`: "line", "item" (of a JSON list on one line) or "row" (of a
    table).  size: the bytes that are lost with it.
    """

    source: str
    line: int
    reason: str
    text: str
    unit: str = "line"
    size: int = 0

    def message(self):
        """Return the one line of an error."""
        where = f"{self.source}, {self.unit} {self.line}"
        return f'{where}: {self.reason}; it begins "{self.text[:60]}"'


class Chunk(NamedTuple):
    """A part of a file, cut between records.

    kind: "lines" (data: UTF-8 bytes, a JSON value a line), "items" (data: a list of (number, str,
    JSON, or a Reject)), "rows" (data: a list of (line, dict or Reject)), "arrow" (data: the bytes
    of an Arrow stream), "prose" (data: UTF-8 bytes) or "reject" (data: a Reject).
    line: the number of its first record, counted in `unit` (see Reject).
    size: bytes on the disk that were read for it.  wiki: whether its file is a dump of a wiki.
    """

    source: str
    kind: str
    line: int
    data: object
    size: int = 0
    unit: str = "line"
    wiki: bool = False
