"""Server-sent events, both ways: the bytes of a stream that we write, and the events of one that
we read.

    yield encode_event(chunk); yield HEARTBEAT; yield END_OF_STREAM     # server.py
    events = EventReader()
    for data in events.push(some_bytes): …                              # the clients

A heartbeat is a comment: it keeps proxies and clients from giving a silent stream up, and every
reader skips it.
"""

import codecs
import io
import json

DONE = "[DONE]"  # the data of the last event
HEARTBEAT = ": still here\n\n"
END_OF_STREAM = f"data: {DONE}\n\n"


def encode_event(value):
    """A JSON value as one event."""
    return f"data: {json.dumps(value, ensure_ascii=False, allow_nan=False)}\n\n"


class EventReader:
    """Server-sent events: takes bytes, cut anywhere, and gives the data of each complete event.

    Parses as the HTML standard says: any line end, a byte order mark, comments, bytes that are not
    UTF-8. Some servers name the field "error" instead of "data".
    """

    def __init__(self):
        utf8 = codecs.getincrementaldecoder("utf-8-sig")("replace")
        self._text = io.IncrementalNewlineDecoder(utf8, translate=True)
        self._line, self._data = [], []  # parts of the incomplete line and of the incomplete event

    def push(self, data):
        """Yield the data (str) of each event that `data` (bytes) completes."""
        *lines, rest = self._text.decode(data).split("\n")
        for line in lines:
            yield from self._read("".join([*self._line, line]))
            self._line = []
        self._line.append(rest)

    def finish(self):
        """Yield the data of an event that the stream's end completes. (The standard drops it; some
        servers do not end their last line.)"""
        rest, self._line = "".join(self._line), []
        yield from self._read(rest)
        yield from self._read("")

    def _read(self, line):
        field, _, value = line.partition(":")
        if field in ("data", "error"):
            self._data.append(value.removeprefix(" "))
        elif not line and self._data:
            yield "\n".join(self._data)
            self._data = []
