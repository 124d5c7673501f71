"""Preset prompts, which examples.csv offers to users who do not know what to ask."""

import contextlib
import csv
import io
from pathlib import Path
from typing import NamedTuple

from minigpt.common.errors import UserError

FORMATS = ("plain", "qa", "chat")


class PresetPrompt(NamedTuple):
    """A prompt, the prompt format of the models that it suits ("plain", "qa", "chat"; "": of all;
    another word: of fine-tuned models whose name begins with it, such as "poems"), and the group in
    whose ranking its battles count."""

    text: str
    format: str = ""
    group: str = ""


def prompts_for(prompts, prompt_format, name=""):
    """The texts of the PresetPrompts that suit a model. prompt_format: its; None: unknown. name:
    its; prompts for models of this name alone are offered instead of the others. A model of
    conversations is asked what one of questions is. All of them, if none suits."""
    of_models = [prompt for prompt in prompts if prompt.format not in ("", *FORMATS)]
    own = [text for text, form, _ in of_models if name.startswith(form)]
    if own and prompt_format != "plain":
        return own
    suited = {prompt_format, "qa"} if prompt_format == "chat" else {prompt_format}
    texts = [
        text
        for text, form, _ in prompts
        if form in suited or not form or (form in FORMATS and not prompt_format)
    ]
    return texts or [prompt.text for prompt in prompts]


def prompts_for_any(prompts, models):
    """The texts that suit one of several models, [(prompt format, name), …]; without models as for
    an unknown one."""
    models = models or [(None, "")]
    return list(dict.fromkeys(text for model in models for text in prompts_for(prompts, *model)))


def read_prompts(path):
    """The different PresetPrompts in the columns `prompt`, `format` and `group` of a .csv file, in
    order; the last two may be absent, the group is then the format. UTF-8 with or without BOM, or
    GB18030. A missing file gives []. UserError if the file cannot be read or has no column
    `prompt`."""
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
        text, form = ((row.get(name) or "").strip() for name in ("prompt", "format"))
        group = (row.get("group") or "").strip() if "group" in rows.fieldnames else form
        if text:
            found.setdefault(text, PresetPrompt(text, form, group))
    return list(found.values())
