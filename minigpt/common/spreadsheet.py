"""CSV cells with untrusted text, which a spreadsheet must not run as formulas."""

_FORMULA = ("=", "+", "-", "@", "\t", "\r")  # the first character of a formula (OWASP)


def csv_cell(value):
    """A value for csv.writer. Text that a spreadsheet would take for a formula gets an apostrophe
    before it, which marks it as text. Numbers and None are not changed."""
    return f"'{value}" if isinstance(value, str) and value.startswith(_FORMULA) else value


def csv_row(values):
    """Every value as csv_cell()."""
    return [csv_cell(value) for value in values]
