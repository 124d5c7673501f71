"""Tables whose first line names their columns: CSV, and with tabs, semicolons or | in between.

    found = read_table("reviews.tsv", wanted=["text", "label"])
    found.delimiter, found.columns             # "\\t", ["label", "text"]
    for line, cells in found.rows:             # the line where a row begins; column → text
        …

Quotes are those of CSV: a quoted cell may have delimiters and line breaks, and "" in it is a quote.
A table with tabs in which quotes are plain characters is read as that.
"""

import csv
import io
from pathlib import Path
from typing import NamedTuple

from minigpt.common.errors import UserError
from minigpt.common.presets import read_text

DELIMITERS = {",": "comma", "\t": "tab", ";": "semicolon", "|": "vertical bar"}
SAMPLE = 50  # rows by which a delimiter is chosen


class Table(NamedTuple):
    """The rows of a table, (line, column → text), and what was found out about its form."""

    columns: list[str]
    rows: list
    delimiter: str
    quoted: bool  # False: quotes are characters like others


def read_table(path, wanted=()):
    """The Table in a file; empty lines are left out.

    wanted: names of columns that it must have. UserError, with the line, for a quote that is not
    closed and for a row with more or fewer cells than columns; for a missing column it says which
    there are.
    """
    path = Path(path)
    text = read_text(path)
    csv.field_size_limit(max(csv.field_size_limit(), len(text) + 1))  # 131,072 by default
    delimiter = choose_delimiter(text, wanted)
    quoted = True
    try:
        rows = list(_rows(path, text, delimiter, quoted))
    except UserError:
        if delimiter != "\t" or not _is_plain(path, text):
            raise
        quoted = False
        rows = list(_rows(path, text, delimiter, quoted))
    columns = [name.strip() for name in rows[0][1]] if rows else []
    _check_columns(path, columns, wanted, delimiter)
    while columns and not columns[-1] and not any(cells[-1:] != [""] for _, cells in rows):
        columns, rows = columns[:-1], [(line, cells[:-1]) for line, cells in rows]
    found = []
    for line, cells in rows[1:]:
        if len(cells) != len(columns):
            raise UserError(
                f"{path}, line {line}: {len(cells)} cells, but the first line names "
                f"{len(columns)} columns: a text that has a {DELIMITERS[delimiter]} needs quotes"
            )
        found.append((line, dict(zip(columns, cells, strict=True))))
    return Table(columns, found, delimiter, quoted)


def _check_columns(path, columns, wanted, delimiter):
    missing = [name for name in wanted if name not in columns]
    if missing:
        raise UserError(
            f"{path}: no column {', '.join(missing)}; its first line names "
            f"{', '.join(columns) or 'nothing'} (delimiter: {DELIMITERS[delimiter]})"
        )
    twice = [name for name in wanted if columns.count(name) > 1]
    if twice:
        raise UserError(f"{path}: several columns are called {', '.join(twice)}: rename them")


def choose_delimiter(text, wanted=()):
    """The one of DELIMITERS that separates the cells: one by which the first line names all
    `wanted` columns, else one that gives most rows the same number of cells, two or more."""

    def rank(delimiter):
        rows = []
        reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter)
        try:
            for cells in reader:
                if any(cells):
                    rows.append(cells)
                if len(rows) == SAMPLE:
                    break
        except csv.Error:
            pass
        header = [name.strip() for name in rows[0]] if rows else []
        alike = sum(len(cells) == len(header) for cells in rows) if len(header) > 1 else 0
        return bool(wanted) and set(wanted) <= set(header), alike, len(header)

    return max(DELIMITERS, key=rank)  # of equal ones the first


def _rows(path, text, delimiter, quoted):
    """Yield (line, cells) of each row that is not empty; line: where it begins, from 1 on."""
    quoting = csv.QUOTE_MINIMAL if quoted else csv.QUOTE_NONE
    lines = io.StringIO(text, newline="")
    reader = csv.reader(lines, delimiter=delimiter, quoting=quoting, strict=True)
    while True:
        line = reader.line_num + 1
        try:
            cells = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            raise UserError(_what_is_wrong(path, line, reader.line_num, error)) from None
        if any(cell.strip() for cell in cells):
            yield line, cells


def _what_is_wrong(path, line, end, error):
    """An error of the csv module in the user's terms; the row begins at `line`, and was read up to
    line `end`."""
    if "unexpected end" in str(error):
        return (
            f"{path}, line {line}: a quote is opened and never closed: close it, or write a quote "
            'within a text twice ("")'
        )
    if "expected after" in str(error):
        what = f"up to line {end} " if end > line else ""
        return (
            f"{path}, line {line}: {what}there is text after a closing quote: close the quote "
            'where its cell ends, and write a quote within a text twice ("")'
        )
    return f"{path}, line {line}: cannot be read ({error})"


def _is_plain(path, text):
    """Whether the quotes of a table with tabs are plain characters: then every row has as many
    cells as the first one, and most cells that begin with a quote do not end with one."""
    rows = [cells for _, cells in _rows(path, text, "\t", quoted=False)]
    opened = [cell for cells in rows for cell in cells if cell.startswith('"')]
    closed = sum(len(cell) > 1 and cell.endswith('"') for cell in opened)
    return len(set(map(len, rows))) == 1 and 2 * closed < len(opened)
