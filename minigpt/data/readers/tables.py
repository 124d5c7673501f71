"""Tables → records: the rows of .csv and .tsv, and of .parquet and .arrow.

    for chunk in csv_chunks(name, blocks, "csv"): …      # blocks of UTF-8; the first row names
    for chunk in arrow_chunks(document): …               # the columns

Rows of a CSV are parsed where they are read, because only that finds their ends. Of Parquet and
Arrow the batches are cut, and other processes turn them into records.
"""

import codecs
import csv
import math

from minigpt.common.errors import UserError
from minigpt.data.readers.chunks import LONGEST, Chunk, Reject
from minigpt.data.readers.containers import READ_SIZE, unpacking

_DELIMITERS = ",;\t|"
_ROWS = 1024  # of Parquet, decoded at once


# -- CSV -------------------------------------------------------------------------------------------


def csv_chunks(name, blocks, kind):
    """Blocks of UTF-8 → chunks of rows, (line, {column: cell}). kind: "csv" or "tsv"; the delimiter
    is the one that the first row has most of."""
    lines = _Lines(blocks)
    delimiter = _delimiter(lines.peek(), kind)
    rows, size, header = [], 0, None
    for line, row, text in _rows(lines, delimiter):
        if not any(row or ()) and not isinstance(row, str):
            continue
        if isinstance(row, str):
            record = Reject(name, line, row, text[:200])
        elif header is None:
            header = [cell.strip() for cell in row]
            continue
        elif (len(row) != len(header) and any(row[len(header) :])) or len(row) < len(header):
            reason = f"{len(row)} fields, but the first row names {len(header)}"
            record = Reject(name, line, reason, text[:200])
        else:
            record = dict(zip(header, row, strict=False))
        rows.append((line, record))
        size += len(text)
        if size >= READ_SIZE // 2:
            yield Chunk(name, "rows", rows[0][0], rows)
            rows, size = [], 0
    if rows:
        yield Chunk(name, "rows", rows[0][0], rows)


def _delimiter(first, kind):
    usual = "\t" if kind == "tsv" else ","
    return max(_DELIMITERS, key=lambda mark: (first.count(mark), mark == usual))


def _rows(lines, delimiter):
    """Yield (number of the first line, cells or the reason why there are none, text) of each row.

    A row that is no CSV is its first line alone: reading continues with the next line.
    """
    while lines.peek():
        reader = csv.reader(lines, delimiter=delimiter, strict=True)
        while True:
            lines.taken.clear()
            start = lines.number + 1
            usual = csv.field_size_limit(LONGEST)  # of all readers in the process
            try:
                row = next(reader, None)
            except csv.Error:
                first = lines.rewind_to(start + 1)
                cells = first.rstrip("\r\n").split(delimiter)
                # A tab is hardly ever part of a text: marks at the start of a cell may be text.
                is_plain = delimiter == "\t" and len(cells) > 1
                reason = 'a quote (") that is not closed, or is not doubled inside a cell'
                yield start, cells if is_plain else reason, first
                break
            finally:
                csv.field_size_limit(usual)
            if row is None:
                return
            yield start, row, "".join(lines.taken)


class _Lines:
    """The lines of a text, with their line breaks. Lines that were taken can be given back."""

    def __init__(self, blocks):
        self._blocks, self._decoder = blocks, codecs.getincrementaldecoder("utf-8")()
        self._ready, self._rest = [], ""  # lines that wait, the next one last
        self.taken = []
        self.number = 0  # of lines that were taken

    def __iter__(self):
        return self

    def __next__(self):
        if not self.peek():
            raise StopIteration
        line = self._ready.pop()
        self.taken.append(line)
        self.number += 1
        return line

    def peek(self):
        """Return the next line, "" at the end."""
        parts = [self._rest]
        while not self._ready:
            block = next(self._blocks, None)
            parts.append(self._decoder.decode(block or b"", final=block is None))
            if block is None or "\n" in parts[-1]:
                *whole, self._rest = "".join(parts).split("\n")
                self._ready = [line + "\n" for line in whole]
                if block is None and self._rest:
                    self._ready.append(self._rest)
                    self._rest = ""
                self._ready.reverse()
                parts = [self._rest]
                if block is None:
                    break
        return self._ready[-1] if self._ready else ""

    def rewind_to(self, number):
        """Give back the taken lines from this number on; return the one before."""
        n = self.number - number + 1
        kept = len(self.taken) - n
        self._ready += reversed(self.taken[kept:])
        self.number -= n
        first = self.taken[kept - 1]
        self.taken.clear()
        return first


# -- Parquet and Arrow -----------------------------------------------------------------------------


def arrow_chunks(document):
    """A Document with a table → chunks of rows, as the bytes of an Arrow stream; numbers are those
    of rows. Parquet is read a row group at a time. UserError where pyarrow is missing, or the file
    is broken."""
    pa = _pyarrow(document)
    row = 1
    try:
        with unpacking(document.name):
            for batch in _batches(pa, document):
                step = max(1, batch.num_rows * READ_SIZE // max(1, batch.nbytes))
                for start in range(0, batch.num_rows, step):
                    part = batch.slice(start, step)
                    yield Chunk(document.name, "arrow", row, _to_bytes(pa, part), unit="row")
                    row += part.num_rows
    except pa.ArrowException as error:
        reason = str(error).splitlines()[0][:200]
        raise UserError(f"{document.name}: cannot be read ({reason}): copy it again") from None


def _pyarrow(document):
    try:
        import pyarrow
        import pyarrow.ipc
    except ImportError:
        raise UserError(
            f"{document.name}: a table of the kind {document.kind}; to read it: pip install pyarrow"
        ) from None
    return pyarrow


def _batches(pa, document):
    if document.kind == "parquet":
        import pyarrow.parquet

        file = pyarrow.parquet.ParquetFile(document.stream, buffer_size=2**20)
        for group in range(file.num_row_groups):
            yield from file.iter_batches(_ROWS, row_groups=[group])
    elif document.kind == "arrow":
        file = pa.ipc.open_file(document.stream)
        yield from map(file.get_batch, range(file.num_record_batches))
    else:
        yield from pa.ipc.open_stream(document.stream)


def _to_bytes(pa, batch):
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, batch.schema) as writer:
        writer.write_batch(batch)
    return sink.getvalue().to_pybytes()


def rows_of(data):
    """The bytes of an Arrow stream → [{column: value}], with values as JSON has them."""
    import pyarrow.ipc

    rows = pyarrow.ipc.open_stream(data).read_all().to_pylist()
    return [{name: _plain(value) for name, value in row.items()} for row in rows]


def _plain(value):
    """A value as JSON has it: text for bytes and dates, None for NaN."""
    if value is None or type(value) in (str, int, bool):
        return value
    if type(value) is float:
        return None if math.isnan(value) else value
    if isinstance(value, list):
        return [_plain(item) for item in value]
    if isinstance(value, dict):
        return {name: _plain(item) for name, item in value.items()}
    return value.decode("utf-8", "ignore") if isinstance(value, bytes) else str(value)
