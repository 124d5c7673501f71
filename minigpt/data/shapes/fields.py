"""The fields of a record: their names in any case, what is empty, what is text.

record = normalized({"Question": "谁？", "ans": 7}, {"answer": "ans"})    # names of the user's own
text_of(record, "question")         # "谁？"; BadRecord if missing, LeftOut if empty
"""

import functools
import math

from minigpt.common.json_text import parse_json
from minigpt.data.shapes.samples import BadRecord, LeftOut

OPTIONAL = ("system", "history", "input", "title")  # fields that a record may lack


def normalized(record, names=None):
    """A record with its field names in lower case; those that `names` (ours → theirs) lists have
    our names. BadRecord where the record lacks one of theirs that is not OPTIONAL."""
    fields = record
    if not _all_lower(tuple(record)):
        fields = {}
        for name, value in record.items():
            fields.setdefault(str(name).strip().lower(), value)
    if names:
        fields = dict(fields)
        for ours, theirs in names.items():
            if theirs not in record and theirs.lower() not in fields:
                if ours in OPTIONAL:
                    fields.pop(ours, None)
                    continue
                has = ", ".join(map(str, record))
                raise BadRecord(f"field `{theirs}` (--{ours}_field) is missing; it has {has}")
            value = record[theirs] if theirs in record else fields[theirs.lower()]
            fields.pop(theirs.lower(), None)
            fields[ours] = value
    return fields


@functools.lru_cache(maxsize=1024)  # the records of a file have the same few sets of names
def _all_lower(names):
    return all(type(name) is str and name.islower() for name in names)


def is_empty(value):
    """Whether a cell holds nothing: null, NaN (also as the text "nan", as tables write it), blanks,
    an empty list or object."""
    if isinstance(value, str):
        text = value.strip()
        return not text or (len(text) == 3 and text.lower() == "nan")
    if isinstance(value, float):
        return math.isnan(value)
    return value is None or value in ([], {}, ())


def first_name(record, names):
    """The first of `names` that the record has, and that is not empty if there is one; or None."""
    found = [name for name in names if name in record]
    full = (name for name in found if not is_empty(record[name]))
    return next(full, found[0] if found else None)


def text_of(record, *names):
    """The text of the first field of `names` that holds something, blanks at both ends removed.
    BadRecord where all are missing or it is no text, LeftOut where it is empty."""
    name = first_name(record, names)
    if name is None:
        raise BadRecord(f"field `{names[0]}` is missing")
    value = as_text(f"field `{name}`", record[name])
    if not value:
        raise LeftOut(f"empty {names[0]}")
    return value


def optional_text(record, *names):
    """As text_of(), but "" where the fields are missing or empty."""
    name = first_name(record, names)
    return "" if name is None else as_text(f"field `{name}`", record[name])


def as_text(where, value):
    """A cell as text, stripped; "" where it is empty. A number becomes its digits."""
    if is_empty(value):
        return ""
    if isinstance(value, int | float) and not isinstance(value, bool):
        return str(value)
    if not isinstance(value, str):
        raise BadRecord(f"{where}: expected text, found {type(value).__name__}")
    return value.strip()


def as_list(where, value):
    """A list, which the cell of a table may hold as JSON; [] where the cell is empty."""
    if is_empty(value):
        return []
    if isinstance(value, str) and value.lstrip().startswith("["):
        try:
            value = parse_json(value)
        except ValueError:
            raise BadRecord(f"{where}: expected a list, found text that is no JSON") from None
    if not isinstance(value, list | tuple):
        raise BadRecord(f"{where}: expected a list, found {type(value).__name__}")
    return list(value)


def id_of(record):
    """The record's id as text, or None."""
    return None if is_empty(record.get("id")) else str(record["id"])
