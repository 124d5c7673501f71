"""JSON that is not an object a line → chunks of its records: lists, objects over several lines,
values in a row, and objects that hold a list of records, as {"version": 1, "data": […]}.

    for chunk in json_chunks("a.json", blocks): …      # blocks of UTF-8

Memory does not grow with the file: a list is read item by item. Behind a broken item reading goes
on where the next one begins.
"""

import codecs
import json
import re

from minigpt.data.readers.chunks import LONGEST, Chunk, Reject
from minigpt.data.readers.containers import READ_SIZE

_BETWEEN = re.compile(r"[\s,]*")
_KEY = r'"(?:[^"\\]|\\.)*"\s*:\s*'
# The names of a list of records in an object, as in {"version": 1, "data": [{…}, …]}; before it
# there may be values without lists of objects.
_LIST = (
    r'"(?:data|rows|records|items|examples|samples|entries|texts|articles|documents|docs|dataset'
    r'|corpus|list|results|train|valid|validation|val|dev|test)"\s*:\s*\[\s*(?=[{\["])'
)
_WRAPPER = re.compile(
    rf'\{{\s*(?:{_KEY}(?:"(?:[^"\\]|\\.)*"|[-+.\w]+|\{{[^{{}}]*\}}|\[[^][{{}}]*\])\s*,\s*){{0,20}}'
    + _LIST,
    re.IGNORECASE,
)
_NEXT_LIST = re.compile(_LIST, re.IGNORECASE)
_LIST_OF_OBJECTS = re.compile(r"\[\s*(?=\{)")
_MEMBER = re.compile(rf"{_KEY}(?=\S)")
_TURN = ({"role", "content"}, {"from", "value"})  # the fields of a message in a conversation
_START = re.compile(r'\{\s*"(?:[^"\\]|\\.)*"')
_scan = json.JSONDecoder().raw_decode


def is_json_values(head):
    """Return whether a text that begins with `head` (str) is read by json_chunks(): a list, an
    object over several lines or with a list of records, or several objects on the first line. Else
    it has a value a line."""
    head = head.lstrip()
    if head.startswith("[") or _WRAPPER.match(head):
        return True
    if not head.startswith("{"):
        return False
    first, line_end, rest = head.partition("\n")
    try:
        _, end = _scan(first)
    except (ValueError, RecursionError):
        # Broken, or over several lines. Then the next line does not begin an object.
        return bool(line_end) and not rest.lstrip().startswith("{")
    rest = first[end:].strip()
    return rest == "," or rest.lstrip(", ").startswith("{")


def json_chunks(name, blocks):
    """Blocks of UTF-8 → chunks of items. An item is an object, a string, or a list: each is a
    record. Of a conversation that is a list of messages, the whole list is an item."""
    items, size, unit = [], 0, None
    for line, number, text in _values(name, _Text(blocks)):
        items.append((line, number, text))
        size += len(text.text if isinstance(text, Reject) else text)
        if size >= READ_SIZE // 2 and len(items) > 1:
            unit = unit or _unit(items)
            yield _chunk(name, items, unit)
            items, size = [], 0
    if items:
        yield _chunk(name, items, unit or _unit(items))


def _unit(items):
    """What items are counted by: by lines, unless several begin on one."""
    lines = [line for line, _, text in items if not isinstance(text, Reject)]
    return "item" if len(set(lines)) < len(lines) else "line"


def _chunk(name, items, unit):
    data = []
    for line, number, text in items:
        place = number if unit == "item" else line
        if isinstance(text, Reject):
            text = text._replace(line=place, unit=unit)
        data.append((place, text))
    return Chunk(name, "items", data[0][0], data, unit=unit)


# -- the values ------------------------------------------------------------------------------------


def _values(name, text):
    """Yield (line, number, JSON text or a Reject) of each record. The number counts from 1."""
    number, first = 0, None  # first: how the first object begins, to find the next one by it
    within = []  # the brackets that are open: of a list "]", of an object that holds one "}"
    while True:
        text.skip(_BETWEEN)
        if text.at_end():
            break
        character = text.peek()
        if within and character == within[-1]:
            within.pop()
            text.advance(text.at + 1)
        elif within and within[-1] == "}":
            _enter_member(text, within)
        elif not within and character == "[" and not _is_conversation(text):
            within.append("]")
            text.advance(text.at + 1)
        elif not within and character == "{" and (match := text.match(_WRAPPER)):
            within += ["}", "]"]
            text.advance(match.end())
        else:
            number += 1
            line, (value, error) = text.line, text.value()
            if value is None:
                yield line, number, text.skip_broken(name, error, first, bool(within))
            else:
                first = first or ((match := _START.match(value)) and match[0])
                yield line, number, value
    if within:
        reason = "the list ends without ]" if "]" in within else "the object ends without }"
        yield text.line, number + 1, Reject(name, text.line, reason, "")


def _enter_member(text, within):
    """In an object that holds lists of records, after one of them: enter the next one, or skip a
    member that is none."""
    if match := text.match(_NEXT_LIST):
        within.append("]")
        text.advance(match.end())
    elif match := text.match(_MEMBER):
        text.advance(match.end())
        text.value()
    else:
        within.clear()


def _is_conversation(text):
    """Whether the list that begins here is of messages. A list of records begins otherwise."""
    match = text.match(_LIST_OF_OBJECTS)
    if not match:
        return False
    try:
        first, _ = _scan(text.buffer, match.end())
    except (ValueError, RecursionError):
        return False
    return any(fields <= set(first) for fields in _TURN)


class _Text:
    """A text that is read as far as it is needed: buffer[at] is its next character."""

    def __init__(self, blocks):
        self._blocks, self._decoder = blocks, codecs.getincrementaldecoder("utf-8")()
        self.buffer, self.at, self.line, self.ended = "", 0, 1, False

    def at_end(self):
        return self.ended and self.at >= len(self.buffer)

    def peek(self):
        return self.buffer[self.at] if self.at < len(self.buffer) else ""

    def advance(self, end):
        """Go on to buffer[end]."""
        self.line += self.buffer.count("\n", self.at, end)
        self.at = end

    def skip(self, pattern):
        """Skip what `pattern` matches, which may be long."""
        while True:
            self.advance(pattern.match(self.buffer, self.at).end())
            if self.at < len(self.buffer) or self.ended:
                break
            self.more()
        while len(self.buffer) - self.at < 2**12 and not self.ended:
            self.more()  # enough for match()

    def match(self, pattern):
        return pattern.match(self.buffer, self.at)

    def more(self):
        """Read at least as much again as is waiting: a value that is read one block at a time would
        be parsed from its start for each of them, in the square of its length."""
        more, wanted = [], max(1, len(self.buffer) - self.at)
        while wanted > 0 and not self.ended:
            block = next(self._blocks, None)
            self.ended = block is None
            more.append(self._decoder.decode(block or b"", final=self.ended))
            wanted -= len(more[-1])
        self.buffer, self.at = "".join([self.buffer[self.at :], *more]), 0

    def value(self):
        """Return (the JSON text of the next value, None), or (None, the error) if it is broken."""
        while True:
            try:
                _, end = _scan(self.buffer, self.at)
                # An object or a string is complete; a number at the end of the buffer may continue.
                if self.ended or end < len(self.buffer) or self.buffer[end - 1] in '}"]':
                    found = self.buffer[self.at : end]
                    self.advance(end)
                    return found, None
            except (ValueError, RecursionError) as error:
                is_long = len(self.buffer) - self.at > LONGEST
                if self.ended or is_long or not _cut_short(error, self.buffer):
                    return None, error
            self.more()

    def skip_broken(self, name, error, first, is_list):
        """Skip a broken value, up to where the next one seems to begin: as the first one did, or on
        a new line. Return a Reject."""
        shown, line = self.buffer[self.at : self.at + 200], self.line
        if first is None:
            match = _START.match(self.buffer, self.at)
            first = match[0] if match else None
        # After the error, or a little before it: a string that is not closed continues in the next.
        behind = max(getattr(error, "pos", self.at) - 64, self.at + 1)
        following = re.compile(re.escape(first) if first else r'(?<=\n)\s*[{\["]')
        size = 0
        while True:
            match = following.search(self.buffer, min(behind, len(self.buffer)))
            end = match.start() if match else len(self.buffer)
            if not match and not self.ended:
                end = max(self.at, end - 256)  # it may be cut in two by the end of the buffer
            size += len(self.buffer[self.at : end].encode("utf-8", "replace"))
            self.advance(end)
            if match or self.ended:
                break
            self.more()
            behind = 0
        where = f"column {error.colno}" if isinstance(error, json.JSONDecodeError) else "too deep"
        reason = f"no JSON ({where})" if match else "no JSON from here on"
        return Reject(name, line, reason, shown, size=size)


def _cut_short(error, buffer):
    """Return whether the JSON may only be incomplete, because the buffer ends too early."""
    if not isinstance(error, json.JSONDecodeError):
        return False
    return error.msg.startswith("Unterminated string") or error.pos >= len(buffer) - 16
