"""Preset prompts, which examples.csv offers to users who do not know what to ask."""

import contextlib
import csv
import io
from pathlib import Path

from minigpt.common.errors import UserError


def read_prompts(path):
    """The different prompts in the column `prompt` of a .csv file, in order; other columns are
    ignored. UTF-8 with or without BOM, or GB18030. A missing file gives []. UserError if the file
    cannot be read or has no column `prompt`."""
    return list(read_groups(path))


def read_groups(path):
    """prompt → its group, for the prompts of read_prompts(): the text in the column `group`, or in
    `format` where there is no such column; "" if it has none."""
    path = Path(path)
    if not path.is_file():
        return {}
    try:
        return _groups(path, read_text(path))
    except csv.Error as error:
        raise UserError(f"{path}: cannot be read ({error})") from None


def read_text(path):
    """A small text file, in an encoding that spreadsheets save: UTF-8 with or without BOM, or
    GB18030. UserError if it cannot be read or decoded."""
    try:
        data = Path(path).read_bytes()
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from None
    for encoding in ("utf-8-sig", "gb18030"):
        with contextlib.suppress(UnicodeDecodeError):
            return data.decode(encoding)
    raise UserError(f"{path}: neither UTF-8 nor GB18030: save it as UTF-8")


def _groups(path, text):
    rows = csv.DictReader(io.StringIO(text, newline=""))
    if "prompt" not in (rows.fieldnames or ()):
        raise UserError(f"{path}: its first line has no column `prompt`")
    column = "group" if "group" in rows.fieldnames else "format"
    groups = {}
    for row in rows:
        prompt = (row["prompt"] or "").strip()
        if prompt:
            groups.setdefault(prompt, (row.get(column) or "").strip())
    return groups
