"""Text → blocks to train on: clean, drop duplicates, hold out val, encode, cut, pack.

    python data/prepare.py --input=data/sample --dataset=data/processed
    python data/prepare.py --input=wiki/,novel.txt,more.jsonl.gz --block_size=256
    python data/prepare.py config/classic.py --input=wiki/ --dataset=data/classic

Reads .jsonl (a record a line), .json (a list of records) and .txt (split into entries of about
2,000 characters at chapter or paragraph ends), each also as .gz, in UTF-8 or GB18030; folders are
walked recursively. A record has these fields, and optionally `id`:

{formats}

The dataset folder then has train.bin, val.bin and their masks (see data_utils.py), val.jsonl (the
held-out entries as text) and meta.json. It is written under a temporary name and renamed when it is
complete: if the run is interrupted, the old data stays.
"""

import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))

from config.configurator import configure
from minigpt.common.errors import preflight, run
from minigpt.data.formats import FORMATS, describe


class Settings:
    """The knobs of this script alone."""

    input: str = ""  # files or folders, comma-separated
    clean: bool = True  # remove title lines, line breaks and the leftovers of wiki dumps
    val_fraction: float | None = None  # share of the entries held out; none: so many that val gets
    #                             about 100,000 characters, 10 % at most
    skip_bad: bool = False  # true: copy bad records to rejects.jsonl instead of stopping
    workers: int = 0  # processes; 0 takes every core


def read_settings():
    """The settings, checked."""
    doc = __doc__.replace("{formats}", describe([FORMATS["text"]]))
    return configure(Settings, shared="dataset tokenizer block_size layout", doc=doc, quiet=True)


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
        format=FORMATS["text"],
        tokenizer=settings.tokenizer,
        block_size=settings.block_size,
        layout=settings.layout,
        clean=settings.clean,
        val_fraction=settings.val_fraction,
        skip_bad=settings.skip_bad,
        workers=settings.workers,
        command=command_line("data/prepare.py"),
    )
    print(table(prepare(options)))


if __name__ == "__main__":
    run(main)
