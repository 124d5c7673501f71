"""Text → blocks to train on: clean, drop duplicates, hold out val, encode, cut, pack.

    python data/prepare.py --input=data/sample --dataset=data/processed
    python data/prepare.py --input=wiki/,novel.txt,more.jsonl.gz --block_size=256
    python data/prepare.py config/classic.py --input=wiki/ --dataset=data/classic

Reads .jsonl (a record a line), .json (a list of records) and .txt (split into entries of about
2,000 characters at chapter or paragraph ends), each also as .gz, in UTF-8 or GB18030; folders are
walked recursively. A record has these fields, and optionally `id`:

{formats}

With --conversations=plain pairs and conversations (the shapes of data/prepare_sft.py) are texts,
too: the contents of their turns, with blank lines between. With --conversations=chat, alpaca,
vicuna, gemma or FILE.jinja they are in that template. --conversations_share=0.1 takes a tenth of
them, drawn at random.

The dataset folder then has train.bin, val.bin and their masks (see data_utils.py), val.jsonl (the
held-out entries as text) and meta.json. It is written under a temporary name and renamed when it is
complete: if the run is interrupted, the old data stays.
"""

import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))

from config.configurator import configure
from minigpt.common.errors import UserError, run
from minigpt.data.encoders import MixedEncoder
from minigpt.data.formats import FORMATS, Conversation, Pair, any_of, describe, formats_of
from minigpt.data.pipeline import PrepareOptions, command_line, prepare, table
from minigpt.tokenizer.chat_template import find_template


class Settings:
    """The knobs of this script alone."""

    input: str = ""  # files or folders, comma-separated
    conversations: str = "none"  # none: only texts; plain: conversations as texts as well; or the
    #                             template in which they are learned, as in data/prepare_sft.py
    conversations_share: float = 1.0  # the share of them that is taken, drawn at random …
    seed: int = 0  # … from this seed
    clean: bool = True  # remove title lines, line breaks and the leftovers of wiki dumps
    val_fraction: float | None = None  # share of the entries held out; none: so many that val gets
    #                             about 100,000 characters, 10 % at most
    skip_bad: bool = False  # true: copy bad records to rejects.jsonl instead of stopping
    workers: int = 0  # processes; 0 takes every core


def main():
    """Settings → dataset folder, and a table of what it holds."""
    doc = __doc__.replace("{formats}", describe([FORMATS["text"]]))
    settings = configure(Settings, shared="dataset tokenizer block_size layout", doc=doc)
    format, encoder = FORMATS["text"], None
    if settings.conversations != "none":
        format = any_of({"text": format} | formats_of(Pair, Conversation))
        encoder = conversations_encoder(settings)
    options = PrepareOptions(
        input=settings.input,
        dataset=settings.dataset,
        format=format,
        encoder=encoder,
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


def conversations_encoder(settings):
    """The encoder of texts and conversations. UserError for settings that cannot be."""
    share = settings.conversations_share
    if not 0 < share <= 1:
        raise UserError(f"--conversations_share={share}: expected a share above 0, up to 1")
    template = settings.conversations
    if template != "plain":
        template = find_template(template, "--conversations")
    return MixedEncoder(template, share, settings.seed)


if __name__ == "__main__":
    run(main)
