"""Question–answer pairs, instructions or conversations → blocks to fine-tune on.

    python data/prepare_sft.py --input=sft/sft_saves.jsonl --dataset=data/processed_sft
    python data/prepare_sft.py --input=qa/ --block_size=256 --layout=pad
    python data/prepare_sft.py --input=alpaca.json --format=alpaca --dataset=data/alpaca
    python data/prepare_sft.py --input=chats.jsonl --format=chat --dataset=data/chat

Reads .jsonl (a record a line) and .json (a list of records), each also as .gz. --format names the
fields of a record, beside an optional `id`:

{formats}

Learned are the answer and its EOT, or what the assistant says in each turn and the turn's end. `id`
names the entry that a pair or a conversation is about: all with that id go to train, or all to val.
A pair that is longer than a block is dropped and counted, never cut; a conversation loses its last
turns, each whole, and is dropped where no turn of the assistant is left. block_size should be the
one of pretraining.

The folder has the same files as one of data/prepare.py, with the held-out samples in val.jsonl.
"""

import pathlib
import sys
from typing import Literal

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))

from config.configurator import configure
from minigpt.common.errors import preflight, run
from minigpt.data.formats import Conversation, Pair, describe, formats_of

FORMATS = formats_of(Pair, Conversation)


class Settings:
    """The knobs of this script alone."""

    input: str = ""  # files or folders, comma-separated
    format: Literal[tuple(FORMATS)] = "qa"  # what they hold
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

from minigpt.data.pipeline import PrepareOptions, command_line, prepare, table


def main():
    """Settings → dataset folder, and a table of what it holds."""
    settings = read_settings()
    print(settings.describe(), flush=True)
    options = PrepareOptions(
        input=settings.input,
        dataset=settings.dataset,
        format=FORMATS[settings.format],
        tokenizer=settings.tokenizer,
        block_size=settings.block_size,
        layout=settings.layout,
        val_fraction=settings.val_fraction,
        skip_bad=settings.skip_bad,
        workers=settings.workers,
        command=command_line("data/prepare_sft.py"),
    )
    print(table(prepare(options)))


if __name__ == "__main__":
    run(main)
