"""Text → blocks to train on: clean, drop duplicates, hold out val, encode, cut, pack.

    python data/prepare.py --input=data/sample --dataset=data/processed
    python data/prepare.py --input=wiki/,novel.txt,more.jsonl.gz --block_size=256
    python data/prepare.py config/classic.py --input=wiki/ --dataset=data/classic

Reads .jsonl, .json, .csv, .tsv, .parquet and .arrow (records), .txt and .md (split into entries of
about 2,000 characters at chapter or paragraph ends), each also as .gz, .bz2, .xz, .zst or .zip, in
any encoding; the first bytes decide where a name is missing or wrong. Folders, also those of
Hugging Face `datasets`, are walked recursively; what is passed over is listed. A record has these
fields, and optionally `id`:

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
from typing import Literal

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))

from config.configurator import configure
from minigpt.common.errors import UserError, preflight, run
from minigpt.data.formats import (
    TEXTS,
    Conversation,
    Entry,
    Pair,
    any_of,
    describe,
    formats_of,
    text_format,
)


class Settings:
    """The knobs of this script alone."""

    input: str = ""  # files or folders, comma-separated
    encoding: str = "auto"  # of the files; auto: recognized for each of them
    text_field: str = ""  # the field of a record that is the text; "": text, content, 正文, …
    title_field: str = ""  # the field that is its title; "": title, 标题, …
    conversations: str = "none"  # none: only texts; plain: conversations as texts as well; or the
    #                             template in which they are learned, as in data/prepare_sft.py
    conversations_share: float = 1.0  # the share of them that is taken, drawn at random …
    seed: int = 0  # … from this seed
    clean: Literal["auto", "wiki", "light", "none", "true", "false"] = "auto"  # wiki: remove title
    #                             lines, line breaks and the leftovers of wiki dumps; light: only
    #                             invisible characters and entities, line breaks and code stay;
    #                             auto: wiki for files in the shape of a wiki dump, else light.
    #                             true and false are the older names of wiki and none
    show_cleaning: int = 0  # print so many places that cleaning has changed
    val_fraction: float | None = None  # share of the entries held out; none: so many that val gets
    #                             about 100,000 characters, 10 % at most
    skip_bad: bool = False  # true: copy bad records to rejects.jsonl instead of stopping
    workers: int = 0  # processes; 0 takes every core
    engine: Literal["processes", "ray"] = "processes"  # ray: the work is done on the Ray cluster of
    #                             RAY_ADDRESS, or on one of this machine (pip install ray)


def read_settings():
    """The settings, checked."""
    doc = __doc__.replace("{formats}", describe(formats_of(Entry).values()))
    shared = "dataset tokenizer block_size layout"
    settings = configure(Settings, shared=shared, doc=doc, quiet=True)
    if problems := settings.below(show_cleaning=0):
        raise UserError("\n".join(problems))
    return settings


if __name__ == "__main__":
    preflight(read_settings)  # --help and mistakes, before the imports below, which take seconds

from minigpt.data.encoders import MixedEncoder
from minigpt.data.pipeline import (
    CLEANING_NAMES,
    PrepareOptions,
    cleaning_examples,
    command_line,
    prepare,
    table,
)
from minigpt.tokenizer.chat_template import find_template


def main():
    """Settings → dataset folder, and a table of what it holds."""
    settings = read_settings()
    print(settings.describe(), flush=True)
    format, encoder = text_format(settings.text_field, settings.title_field), None
    if settings.conversations != "none":
        texts = format.formats if format is TEXTS else {"text": format}
        format = any_of(texts | formats_of(Pair, Conversation))
        encoder = conversations_encoder(settings)
    options = PrepareOptions(
        input=settings.input,
        dataset=settings.dataset,
        format=format,
        encoder=encoder,
        tokenizer=settings.tokenizer,
        block_size=settings.block_size,
        layout=settings.layout,
        clean=CLEANING_NAMES.get(settings.clean, settings.clean),
        encoding=settings.encoding,
        show_cleaning=max(1, settings.show_cleaning),
        val_fraction=settings.val_fraction,
        skip_bad=settings.skip_bad,
        workers=settings.workers,
        engine=settings.engine,
        command=command_line("data/prepare.py"),
    )
    meta = prepare(options)
    if settings.show_cleaning:
        print("\n".join(cleaning_examples(meta, settings.show_cleaning)))
    print(table(meta))


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
