"""CSV that a spreadsheet shows as it is: what others wrote never becomes a formula."""

_FORMULA = ("=", "+", "-", "@", "\t", "\r")  # how a cell begins that spreadsheets compute (OWASP)


def csv_cell(value):
    """A value for csv.writer: text that a spreadsheet would take for a formula gets an apostrophe
    before it, by which it is known for text. Numbers, and None, stay as they are."""
    return f"'{value}" if isinstance(value, str) and value.startswith(_FORMULA) else value


def csv_row(values):
    """A row of csv_cell()s."""
    return [csv_cell(value) for value in values]
