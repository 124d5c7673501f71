"""Compare pre-tokenization patterns for Chinese: tokens per character on held-out text.

    python bench/tokenizer_patterns.py --data=texts

Trains a vocabulary for each pattern and size on nine tenths of four folders (wiki, qa, handbook,
novels) and counts tokens per character on the held-out tenth. "unseen": the wiki folder, with a
vocabulary trained without it and without the questions about it; "traditional": traditional
characters, also unseen. "within": the fraction of word borders (by jieba, held-out wiki) that are
inside a token. It takes minutes per row.
"""

import logging
import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))


from config.configurator import configure
from minigpt.common.errors import preflight, run

FOLDERS = ("wiki", "qa", "handbook", "novels")


class Settings:
    data: str = "texts"  # a folder that holds wiki, qa, handbook, novels, wiki_traditional
    sizes: str = "8192,16384"  # vocabulary sizes, comma-separated
    weight: int = 1  # weight of wiki and qa, the modern prose


def read_settings():
    """The settings, checked."""
    return configure(Settings, doc=__doc__, quiet=True)


if __name__ == "__main__":
    preflight(read_settings)  # --help and mistakes, before the imports below, which take seconds

import jieba

from minigpt.common.report import table
from minigpt.data.hashing import is_val
from minigpt.data.readers.files import SourceFile, find_files
from minigpt.data.train_bpe import Statistics, sentences, token_ranks, train_bpe, training_texts
from minigpt.tokenizer.tokenizer import PATTERNS, SPECIAL_NAMES, Tokenizer


def main():
    settings = read_settings()
    print(settings.describe(), flush=True)
    jieba.setLogLevel(logging.WARNING)
    texts = {f: read(f"{settings.data}/{f}") for f in (*FOLDERS, "wiki_traditional")}
    train = {f: [t for t in texts[f] if not is_val(t, 0.1)] for f in FOLDERS}
    held_out = {f: [t for t in texts[f] if is_val(t, 0.1)] for f in FOLDERS}
    for folder in ("wiki", "qa"):
        train[folder] *= settings.weight
    columns = "pattern ids wiki qa handbook novels unseen traditional within"
    rows = []
    for size in map(int, settings.sizes.split(",")):
        for pattern in PATTERNS:
            tokenizer = trained(train.values(), size, pattern)
            blind = trained([train["handbook"], train["novels"]], size, pattern)
            rates = [tokens_a_character(tokenizer, held_out[f]) for f in FOLDERS]
            rates.append(tokens_a_character(blind, texts["wiki"]))
            rates.append(tokens_a_character(tokenizer, texts["wiki_traditional"]))
            rates.append(borders_within(tokenizer, held_out["wiki"]))
            rows.append([pattern, size, *(f"{rate:.3f}" for rate in rates)])
            print(*rows[-1], flush=True)
    print("\n" + table(columns.split(), rows))


def read(folder):
    """All texts of a folder; questions and answers are separate texts."""
    sources = map(SourceFile, find_files(folder))
    chunks = (chunk for source in sources for chunk in training_texts(source, 0.0, Statistics()))
    return [text for texts, _ in chunks for text in texts]


def trained(folders, size, pattern):
    """A Tokenizer trained on lists of texts."""
    parts = (part for texts in folders for text in texts for part in sentences(text))
    ranks = token_ranks(train_bpe(parts, size - len(SPECIAL_NAMES), pattern))
    special = {name: len(ranks) + i for i, name in enumerate(SPECIAL_NAMES)}
    return Tokenizer(pattern, ranks, PATTERNS[pattern], special)


def tokens_a_character(tokenizer, texts):
    """Tokens per character of all texts."""
    return sum(map(len, tokenizer.encode_batch(texts))) / sum(map(len, texts))


def borders_within(tokenizer, texts):
    """The fraction of word borders that are inside a token."""
    within = borders = 0
    for text in texts:
        ends = ends_of(word.encode() for word in jieba.cut(text))
        tokens = ends_of(tokenizer.decode_bytes([i]) for i in tokenizer.encode(text))
        within += len(ends - tokens)
        borders += len(ends)
    return within / borders


def ends_of(parts):
    """The ends of the parts, in bytes from the start."""
    ends, place = set(), 0
    for part in parts:
        place += len(part)
        ends.add(place)
    return ends


if __name__ == "__main__":
    run(main)
