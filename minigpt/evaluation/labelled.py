"""Labelled texts: read from a table, without duplicates, and split for training and test.

rows, notes = read_labelled_table("reviews.csv", ["title", "content"], "category")
rows, duplicates, contradicted = without_duplicates(rows, 750)
train, test = split(rows, 0.2, seed)                   # of each class the same fraction
"""

import re
from collections import Counter
from pathlib import Path
from typing import NamedTuple

import numpy as np

from minigpt.common.errors import UserError
from minigpt.data.formats import BadRecord, Entry
from minigpt.data.pipeline import read_records

SHOWN = 5  # rows that a note names


class Labelled(NamedTuple):
    """A text with its label; `id` names its source."""

    id: str
    text: str
    label: str


# -- reading ---------------------------------------------------------------------------------------


def read_labelled_table(path, text_columns, label_column):
    """(rows, notes): the Labelled texts of a table, white space normalized, and lines about what
    was left out.

    The table is any file that data/prepare.py reads as records, such as a .csv, .tsv, .parquet or
    .jsonl; its columns are their fields. A text is that of all `text_columns`, a line for each.
    Rows without text or label are left out. UserError for a missing column, and for a table that
    cannot be read.
    """
    wanted, known = [*text_columns, label_column], set()

    def parse(record):
        known.update(record)
        if label_column not in record or not any(name in record for name in text_columns):
            missing = [name for name in wanted if name not in record]
            raise BadRecord(
                f"no column {', '.join(missing)}; its columns are {', '.join(map(str, record))}"
            )
        text = "\n".join(filter(None, (_normalized(record.get(name)) for name in text_columns)))
        return Entry(None, _normalized(record[label_column]), text)

    entries = [entry for _, entry, _ in read_records([path], parse)]
    missing = [name for name in wanted if entries and name not in known]
    if missing:
        raise UserError(
            f"{path}: no column {', '.join(missing)}; its columns are {', '.join(map(str, known))}"
        )
    # read_records() calls an entry PATH:LINE.
    named = [(f"{Path(path).name}:{e.id.rpartition(':')[2]}", e.text, e.title) for e in entries]
    rows = [Labelled(*each) for each in named if all(each)]
    empty = [id_ for id_, text, label in named if not (text and label)]
    more = ", …" if len(empty) > SHOWN else ""
    note = f"{len(empty)} rows without text or label left out: {', '.join(empty[:SHOWN])}{more}"
    return rows, [note] if empty else []


def _normalized(cell):
    """A cell as text, without blanks at its ends, and with one blank in place of several."""
    return "" if cell is None else " ".join(str(cell).split())


# -- choosing --------------------------------------------------------------------------------------


def without_duplicates(rows, length):
    """(rows, duplicates, contradicted): of texts with the same first `length` characters (all that
    a question shows) the first one, or none if their labels differ. The two numbers are the rows
    dropped for each reason."""
    first, labels = {}, {}
    for row in rows:
        beginning = excerpts(row.text, length)[0]
        first.setdefault(beginning, row)
        labels.setdefault(beginning, []).append(row.label)
    kept = [row for beginning, row in first.items() if len(set(labels[beginning])) == 1]
    contradicted = sum(len(given) for given in labels.values() if len(set(given)) > 1)
    return kept, len(rows) - len(kept) - contradicted, contradicted


def split(rows, test_fraction, seed):
    """(train, test) in the order of `rows`, stratified: of each class the same fraction is for the
    test, at least one text and never all. UserError for a class with one text."""
    generator = np.random.default_rng(seed)
    test = set()
    for label, count in sorted(Counter(row.label for row in rows).items()):
        if count < 2:
            raise UserError(f"class {label}: one text; expected two or more, to learn and to test")
        indices = [i for i, row in enumerate(rows) if row.label == label]
        n_test = min(max(round(count * test_fraction), 1), count - 1)
        test.update(generator.permutation(indices)[:n_test].tolist())
    return (
        [row for i, row in enumerate(rows) if i not in test],
        [row for i, row in enumerate(rows) if i in test],
    )


def excerpts(text, length):
    """The text in parts of at most `length` characters, each cut at a blank if its second half has
    one."""
    return [text[start:end] for start, end in _excerpt_spans(text, length)]


def _excerpt_spans(text, length):
    """Yield (start, end) of each of the excerpts()."""
    start = 0
    while start < len(text):
        end = len(text)
        if end - start > length:
            blank = text.rfind(" ", start, start + length + 1)
            end = blank if blank - start > length // 2 else start + length
        yield start, end
        start = _NO_BLANK.search(text, end).start()


_NO_BLANK = re.compile(r"\S|\Z")
