"""Question–answer pairs, instructions or conversations → blocks to fine-tune on.

    python data/prepare_sft.py --input=sft/sft_saves.jsonl --dataset=data/processed_sft
    python data/prepare_sft.py --input=qa/ --block_size=256 --layout=pad
    python data/prepare_sft.py --input=alpaca.json --template=alpaca --dataset=data/alpaca
    python data/prepare_sft.py --input=mine.csv --question_field=ask --answer_field=say

Reads the same files as data/prepare.py. The shape of each record is recognized by its fields, in
any case, beside an optional `id`; the table at the end says which ones in how many records:

{formats}

A record with an empty question or answer is left out and counted. What tools are called with, and
what they return, is learned as text in the turns.

--template is how a model reads a conversation: qa (question, answer mark, answer), chat (ChatML),
alpaca, vicuna, gemma, or FILE.jinja, a chat template as Hugging Face has them. The run keeps it.

Learned are the answer and its end, or what the assistant says in each turn and the turn's end; with
--learn_prompt=true all of it. `id` names the entry that a pair or a conversation is about: all with
that id go to train, or all to val. A pair that is longer than a block is dropped and counted; a
conversation loses its last turns, each whole, and is dropped where no turn of the assistant is
left. With --too_long=truncate both are cut at the end of the block. block_size should be the one of
pretraining.

The folder has the same files as one of data/prepare.py, with the held-out samples in val.jsonl.
"""

import pathlib
import sys
from typing import Literal

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))

from config.configurator import configure
from minigpt.common.errors import preflight, run
from minigpt.data.formats import Conversation, Pair, any_of, describe, field_names, formats_of

FORMATS = formats_of(Pair, Conversation)


class Settings:
    """The knobs of this script alone."""

    input: str = ""  # files or folders, comma-separated
    encoding: str = "auto"  # of the files; auto: recognized for each of them
    format: Literal[("auto", *FORMATS)] = "auto"  # the shape of every record; auto: of each its own
    template: str = "auto"  # qa, chat, alpaca, vicuna, gemma or FILE.jinja; auto: qa, or chat where
    #                             the first records are instructions or have several turns
    learn_prompt: bool = False  # true: the prompt is a target, too
    too_long: Literal["drop", "truncate"] = "drop"  # what is longer than a block: dropped, or cut
    question_field: str = ""  # the name that this field has in your records, if it is another one
    answer_field: str = ""  # as question_field
    input_field: str = ""  # more text for the question, after a blank line
    system_field: str = ""  # what the model is to be
    history_field: str = ""  # earlier turns
    messages_field: str = ""  # the list of messages
    dataset: str = "data/processed_sft"  # the folder to write
    val_fraction: float | None = None  # share of the entries held out; none: 10 %, but no more
    #                             than makes some 3,000 pairs or conversations
    skip_bad: bool = False  # true: copy bad records to rejects.jsonl instead of stopping
    workers: int = 0  # processes; 0 takes every core


def read_settings():
    """The settings, checked."""
    doc = __doc__.replace("{formats}", describe(FORMATS.values()))
    return configure(Settings, shared="tokenizer block_size layout", doc=doc, quiet=True)


if __name__ == "__main__":
    preflight(read_settings)  # --help and mistakes, before the imports below, which take seconds

from minigpt.data.encoders import DialogueEncoder
from minigpt.data.pipeline import (
    PrepareOptions,
    command_line,
    prepare,
    prompt_format_of,
    table,
)
from minigpt.tokenizer.chat_template import find_template


def main():
    """Settings → dataset folder, and a table of what it holds."""
    settings = read_settings()
    print(settings.describe(), flush=True)
    formats = FORMATS if settings.format == "auto" else {settings.format: FORMATS[settings.format]}
    format = any_of(formats, field_names(settings))
    if settings.template == "auto":
        prompt_format = prompt_format_of(settings.input, format, settings.encoding)
    else:
        prompt_format = find_template(settings.template)
    options = PrepareOptions(
        input=settings.input,
        dataset=settings.dataset,
        format=format,
        encoder=DialogueEncoder(prompt_format, settings.learn_prompt, settings.too_long),
        tokenizer=settings.tokenizer,
        block_size=settings.block_size,
        layout=settings.layout,
        encoding=settings.encoding,
        val_fraction=settings.val_fraction,
        skip_bad=settings.skip_bad,
        workers=settings.workers,
        command=command_line("data/prepare_sft.py"),
    )
    print(table(prepare(options)))


if __name__ == "__main__":
    run(main)
