"""Train a byte-level BPE vocabulary on your own text.

    python data/train_tokenizer.py --input=wiki,novels --vocab_size=8192 --output=out/mine
    python data/prepare.py --input=wiki,novels --tokenizer=out/mine.tiktoken

Reads what data/prepare.py and data/prepare_sft.py read: texts, and records in these formats, each
recognized by its fields:

{formats}

What those scripts hold out for validation is left out. Two files are written: OUTPUT.tiktoken, the
ranks, and OUTPUT.json, the pattern, the special ids and what it was trained on.
"""

import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))

from collections import Counter
from typing import Literal

from config.configurator import configure
from minigpt.common.errors import UserError, preflight, run
from minigpt.data.formats import TRAINED_ON, describe, summary


class Settings:
    input: str = ""  # files or folders, comma-separated; named twice, a text counts twice
    output: str = "out/tokenizer"  # where to write, without suffix
    vocab_size: int = 8192  # all ids, the 256 bytes and the 5 special ones included; up to 65536.
    #                         Few tokens a text, or a small embedding: 4k to 32k suit small models
    characters: bool = False  # true: no token is longer than a character, which suits verse
    min_frequency: int = 2  # how often a pair of tokens must occur in the texts to become a token
    pattern: Literal["gpt-2", "smollm", "qwen2", "llama-bpe"] = "gpt-2"  # the pre-tokenization,
    #                         by llama.cpp's name. gpt-2: runs of letters, of digits, of marks.
    #                         smollm: each digit alone. qwen2, llama-bpe: a mark may join the word
    #                         after it; digits alone, or up to three
    clean: Literal["auto", "wiki", "light", "none", "true", "false"] = "auto"  # as data/prepare.py
    encoding: str = "auto"  # of the files; auto: recognized for each of them
    text_field: str = ""  # the field of a record that is the text; "": text, content, 正文, …
    val_fraction: float = 0.1  # the share not trained on; the default is the most that
    #                             data/prepare.py and data/prepare_sft.py hold out by themselves


def read_settings():
    """The settings, checked."""
    doc = __doc__.replace("{formats}", describe(TRAINED_ON.values()))
    return configure(Settings, doc=doc, quiet=True)


if __name__ == "__main__":
    preflight(read_settings)  # --help and mistakes, before the imports below, which take seconds

from tqdm import tqdm

from minigpt.common.locks import lock_path, locked
from minigpt.common.report import check_writable
from minigpt.data.pipeline import CLEANING_NAMES
from minigpt.data.readers.encodings import check_encoding
from minigpt.data.readers.files import SourceFile, find_files
from minigpt.data.train_bpe import Statistics, sentences, token_ranks, train_bpe, training_texts
from minigpt.tokenizer.tokenizer import SPECIAL_NAMES, save_tokenizer


def main():
    settings = read_settings()
    print(settings.describe(), flush=True)
    check(settings)
    check_writable(f"{settings.output}.tiktoken")
    with locked(lock_path(settings.output.removesuffix(".tiktoken")), settings.output, "--output"):
        train(settings)


def train(settings):
    """Read the texts, train, and write the two files."""
    weights = Counter(part.strip() for part in settings.input.split(",") if part.strip())
    files = {part: find_files(part) for part in weights or [""]}
    statistics = {part: Statistics() for part in files}
    texts = read(files, weights, statistics, settings)
    n_ranks = settings.vocab_size - len(SPECIAL_NAMES)
    bpe = train_bpe(texts, n_ranks, settings.pattern, settings.min_frequency)
    report_reading(statistics)

    ranks = token_ranks(bpe)
    special = {name: len(ranks) + i for i, name in enumerate(SPECIAL_NAMES)}
    about = {
        "trained_on": [
            {
                "name": pathlib.Path(part).name,
                "weight": weights[part],
                "texts": counts.texts,
                "characters": counts.characters,
            }
            for part, counts in statistics.items()
        ],
        "val_fraction": settings.val_fraction,
        "min_frequency": settings.min_frequency,
        "characters": settings.characters,
    }
    tokenizer = save_tokenizer(settings.output, ranks, settings.pattern, special, about)
    if len(ranks) < n_ranks:
        print(f"no further pair occurs {settings.min_frequency} times: {tokenizer.n_vocab} ids")
    print(f"wrote {tokenizer.name} and .json: {tokenizer.n_vocab} ids, hash {tokenizer.hash}")
    print(f"use it with --tokenizer={tokenizer.name}")


def check(settings):
    """UserError with everything that is wrong with the numbers."""
    least = 256 + len(SPECIAL_NAMES)
    problems = []
    if not least <= settings.vocab_size <= 65536:
        problems.append(
            f"vocab_size={settings.vocab_size}: expected {least} (the bytes and the special ids) "
            "to 65536 (what two bytes a token can hold)"
        )
    if settings.min_frequency < 1:
        problems.append(f"min_frequency={settings.min_frequency}: expected 1 or more")
    if not 0 <= settings.val_fraction < 1:
        problems.append(f"val_fraction={settings.val_fraction}: expected 0 or more, below 1")
    if problems:
        raise UserError("\n".join(problems))
    check_encoding(settings.encoding)


def read(files, weights, statistics, settings):
    """Yield the sentences to train on, with a progress bar."""
    total = sum(file.stat().st_size for found in files.values() for file in found)
    clean = CLEANING_NAMES.get(settings.clean, settings.clean)
    options = dict(clean=clean, encoding=settings.encoding, text_field=settings.text_field)
    with tqdm(total=total, unit="B", unit_scale=True, desc="reading") as bar:
        for part, found in files.items():
            for source in map(SourceFile, found):
                chunks = training_texts(source, settings.val_fraction, statistics[part], **options)
                for texts, size in chunks:
                    for text in texts:
                        # Of single characters, no pair crosses the end of one.
                        for each in text if settings.characters else sentences(text):
                            yield from [each] * weights[part]
                    bar.update(size)
                for note in source.notes:
                    print(note)


def report_reading(statistics):
    """Print what was read, held out and unusable."""
    for part, counts in statistics.items():
        print(
            f"{part}: {counts.texts:,} texts, {counts.characters:,} characters; "
            f"held out {counts.held_out:,}, unusable {counts.unusable:,}"
        )
    if not any(counts.characters for counts in statistics.values()):
        raise UserError(
            f"input={','.join(statistics)}: no text to train on; expected .txt files, or records "
            f"in one of the formats {summary(TRAINED_ON.values())}"
        )


if __name__ == "__main__":
    run(main)
