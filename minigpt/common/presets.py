"""Preset prompts, which examples.csv offers to users who do not know what to ask."""

import contextlib
import csv
import io
from pathlib import Path
from typing import NamedTuple

from minigpt.common.errors import UserError


class PresetPrompt(NamedTuple):
    """A prompt, and the prompt format of the models that it suits: "plain", "qa", "chat"; "": of
    all."""

    text: str
    format: str = ""


def prompts_for(prompts, prompt_format):
    """The texts of the PresetPrompts that suit a model. prompt_format: its; None: unknown. A model
    of conversations is asked what one of questions is. All of them, if none suits."""
    suited = {prompt_format, "qa"} if prompt_format == "chat" else {prompt_format}
    texts = [text for text, format in prompts if format in suited or not (format and prompt_format)]
    return texts or [text for text, _ in prompts]


def read_prompts(path):
    """The different PresetPrompts in the columns `prompt` and `format` of a .csv file, in order;
    `format` may be absent, other columns are ignored. UTF-8 with or without BOM, or GB18030. A
    missing file gives []. UserError if the file cannot be read or has no column `prompt`."""
    path = Path(path)
    if not path.is_file():
        return []
    try:
        return _prompts(path, read_text(path))
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


def _prompts(path, text):
    rows = csv.DictReader(io.StringIO(text, newline=""))
    if "prompt" not in (rows.fieldnames or ()):
        raise UserError(f"{path}: its first line has no column `prompt`")
    found = {}
    for row in rows:
        text = (row["prompt"] or "").strip()
        if text:
            found.setdefault(text, (row.get("format") or "").strip())
    return [PresetPrompt(*each) for each in found.items()]
