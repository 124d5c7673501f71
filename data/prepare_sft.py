"""Question–answer pairs → blocks to fine-tune on: question, answer mark, answer, EOT.

    python data/prepare_sft.py --input=sft/sft_saves.jsonl --dataset=data/processed_sft
    python data/prepare_sft.py --input=qa/ --block_size=256 --layout=pad

Read are .jsonl (an object a line: `question`, `answer`; optional `id`) and .json (a list of such
objects), each also as .gz. `id` names the entry that a pair is about: all its pairs go to train, or
all to val. Only the answer and its EOT are learned. A pair that is longer than a block is dropped
and counted, never cut. block_size should be the one of pretraining.

The folder holds the same files as data/prepare.py writes, with the held-out pairs in val.jsonl.
"""

import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))

from config.configurator import configure, run
from minigpt.preparation import QuestionAnswers, command_line, prepare, table


class Settings:
    """The knobs of this script alone."""

    input: str = ""  # files or folders, comma-separated
    dataset: str = "data/processed_sft"  # the folder to write
    val_fraction: float | None = None  # share of the entries held out; none: 10 %, but no more
    #                             than makes some 3,000 pairs
    skip_bad: bool = False  # true: copy bad records to rejects.jsonl instead of stopping
    workers: int = 0  # processes; 0 takes every core


def main():
    """Settings → dataset folder, and a table of what it holds."""
    settings = configure(Settings, shared="tokenizer block_size layout", doc=__doc__)
    meta = prepare(
        QuestionAnswers(),
        settings.input,
        settings.dataset,
        settings.tokenizer,
        settings.block_size,
        settings.layout,
        workers=settings.workers,
        val_fraction=settings.val_fraction,
        skip_bad=settings.skip_bad,
        command=command_line("data/prepare_sft.py"),
    )
    print(table(meta))


if __name__ == "__main__":
    run(main)
