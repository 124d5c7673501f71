"""Preference pairs → blocks for train.py --stage=dpo.

    python data/prepare_dpo.py --input=preferences.jsonl --dataset=data/processed_dpo
    python data/prepare_dpo.py --input=chats.jsonl --template=chat --dataset=data/chat_dpo
    python data/prepare_dpo.py --from_qa=sft/sft_saves.jsonl --input=preferences.jsonl

Reads the same files as data/prepare.py. A record has these fields, in any case, and optionally
`id`:

{formats}

A text may also be a whole conversation in the form "Human: … Assistant: …", as Anthropic's HH has
it. --template is that of the model that will be trained, as in data/prepare_sft.py: for qa the
prompt is one question, for the others it may be several messages.

The arena's preferences.jsonl is such a file. --from_qa makes one from question–answer pairs: their
answers are chosen, and rejected are answers that are known to be wrong (the answer to another
question, a cut one, one that repeats itself).

Learned are both answers, each with its end. `id` names what a preference is about: all with that id
go to train, or all to val; where there is none, all with that prompt. Preferences that are too long
for a block are dropped, and so are those with an empty side or with equal answers; all are counted.
Blocks 2i and 2i + 1 are a preference. val.jsonl has the held-out ones as data/prepare_sft.py writes
them, with the field `rejected`.
"""

import pathlib
import sys
from typing import Literal

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))

from config.configurator import configure
from minigpt.common.errors import UserError, preflight, run
from minigpt.data.formats import Preference, any_of, describe, field_names, formats_of

FORMATS = formats_of(Preference)


class Settings:
    """The knobs of this script alone."""

    input: str = ""  # files or folders, comma-separated; with from_qa, the one file to write first
    encoding: str = "auto"  # of the files; auto: recognized for each of them
    from_qa: str = ""  # question–answer pairs, of which preference pairs are made
    seed: int = 0  # of what from_qa draws
    template: str = "auto"  # of the model to be trained: qa, chat, alpaca, vicuna, gemma or
    #                             FILE.jinja; auto: qa, or chat where the first prompts have several
    #                             messages
    format: Literal["auto", "qa", "chat"] = "auto"  # the older name of template
    prompt_field: str = ""  # the name that this field has in your records, if it is another one
    chosen_field: str = ""  # as prompt_field
    rejected_field: str = ""  # as prompt_field
    dataset: str = "data/processed_dpo"  # the folder to write
    val_fraction: float | None = None  # share of the entries held out; none: 10 %, but no more
    #                             than makes some 3,000 pairs
    skip_bad: bool = False  # true: copy bad records to rejects.jsonl instead of stopping
    workers: int = 0  # processes; 0 takes every core


def read_settings():
    """The settings, checked."""
    doc = __doc__.replace("{formats}", describe(FORMATS.values()))
    return configure(Settings, shared="tokenizer block_size", doc=doc, quiet=True)


if __name__ == "__main__":
    preflight(read_settings)  # --help and mistakes, before the imports below, which take seconds

from minigpt.common.report import check_writable, write_jsonl
from minigpt.data.block_format import PREFERENCES
from minigpt.data.encoders import PreferenceEncoder
from minigpt.data.pipeline import (
    PrepareOptions,
    command_line,
    prepare,
    prompt_format_of,
    table,
)
from minigpt.evaluation.examples import read_pairs
from minigpt.synthesis.preferences import make_preferences
from minigpt.tokenizer.chat_template import find_template


def main():
    """Settings → dataset folder, and a table of what it holds."""
    settings = read_settings()
    print(settings.describe(), flush=True)
    if settings.from_qa:
        write_made(settings)
    format = any_of(FORMATS, field_names(settings))
    template = settings.format if settings.template == "auto" else settings.template
    if template == "auto":
        prompt_format = prompt_format_of(settings.input, format, settings.encoding)
    else:
        prompt_format = find_template(template)
    options = PrepareOptions(
        input=settings.input,
        dataset=settings.dataset,
        format=format,
        encoder=PreferenceEncoder(prompt_format),
        tokenizer=settings.tokenizer,
        block_size=settings.block_size,
        layout="pad",  # a preference is two blocks: nothing else may be in them
        encoding=settings.encoding,
        val_fraction=settings.val_fraction,
        skip_bad=settings.skip_bad,
        workers=settings.workers,
        command=command_line("data/prepare_dpo.py"),
        facts=PREFERENCES,
    )
    print(table(prepare(options)))


def write_made(settings):
    """Write the preference pairs that question–answer pairs make. UserError where --input names no
    file of its own for them."""
    path = pathlib.Path(settings.input)
    if path.suffix != ".jsonl":
        raise UserError(f"--input={settings.input}: expected FILE.jsonl, to write the pairs to")
    if path.resolve() == pathlib.Path(settings.from_qa).resolve():
        raise UserError(
            f"--input={settings.input}: the pairs that --from_qa reads; --input names another "
            f"file, to write the preferences to"
        )
    if path.exists():
        raise UserError(
            f"{path}: is there already; leave --from_qa out to take it as it is, or give another "
            f"--input to write the pairs to"
        )
    check_writable(path)
    records = make_preferences(read_pairs(settings.from_qa), settings.seed)
    write_jsonl(path, records)
    print(f"{path}: {len(records):,} preference pairs, made of {settings.from_qa}")


if __name__ == "__main__":
    run(main)
