"""Poems → texts to pretrain on, instructions made from them, and a test set.

    git clone --depth=1 https://github.com/chinese-poetry/chinese-poetry
    python data/prepare_poems.py --input="chinese-poetry/全唐诗/poet.tang.*.json" --simplify=true
    python data/prepare_poems.py --input=my_poems.jsonl --output=data/mine --test_fraction=0.05

Reads records with an author, a title, and `paragraphs` (a list of couplets) or `text` (a couplet a
line), in any file that data/prepare.py reads. Poems with lost characters (□) or with characters
that are not Chinese are left out and counted; of equal poems the first is kept. The folder has

    poems.jsonl     id, title, author, text: to pretrain on (data/prepare.py)
    pairs.jsonl     question, answer: instructions to fine-tune on (data/prepare_sft.py)
    rhymes.jsonl    question, answer: which characters rhyme, by the rhyme book; fine-tuned on as
                    well, they teach what the line ends of a few thousand poems do not
    test.jsonl      the same, made from the poems that are in neither of the others

Each pair is of one of these kinds. All but title need a poem of four or eight lines, of five or
seven characters each:

    title   write a poem with this title            next    the next line of a line
    form    write a quatrain about this theme       heads   an acrostic (藏头诗): the first
    first   continue a poem from its first line             character of each line is given
    style   write in the style of an author of at least --author_poems poems

Beside question and answer it has its `kind` and what the question asks for, as far as it does, for
tools/evaluations-poems.py and for rewards: `lines`, `characters` (of each), `heads`, and `given`,
the line before the answer. Its `id` is the text of its poem: with the same --val_fraction,
data/prepare.py and data/prepare_sft.py hold out the same poems.
"""

import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))

from config.configurator import configure
from minigpt.common.errors import UserError, preflight, run


class Settings:
    input: str = ""  # files or folders, comma-separated; * and ? in a name match any
    output: str = "data/poems"  # the folder to write
    simplify: bool = False  # true: traditional characters become simplified ones; needs opencc
    pairs: int = 1  # instructions made from each poem, at most one of each kind
    author_poems: int = 100  # so many poems make an author's style
    test_fraction: float = 0.02  # of the poems


def read_settings():
    """The settings, checked."""
    settings = configure(Settings, doc=__doc__, quiet=True)
    problems = settings.below(pairs=0, author_poems=1)
    if not 0 < settings.test_fraction < 1:
        problems.append(f"--test_fraction={settings.test_fraction}: expected above 0, below 1")
    if problems:
        raise UserError("\n".join(problems))
    return settings


if __name__ == "__main__":
    preflight(read_settings)  # --help and mistakes, before the imports below, which take seconds

from collections import Counter

from minigpt.common.report import check_writable, table, write_jsonl
from minigpt.data.hashing import is_val
from minigpt.data.pipeline import read_records
from minigpt.data.shapes.instructions import KINDS, Collection, instructions, rhyme_pair
from minigpt.data.shapes.poems import parse_verse

FILES = ("poems", "pairs", "rhymes", "test")


def main():
    settings = read_settings()
    print(settings.describe(), flush=True)
    folder = pathlib.Path(settings.output)
    outputs = {name: folder / f"{name}.jsonl" for name in FILES}
    for path in outputs.values():
        check_writable(path)
    poems = read_poems(settings.input, simplifier() if settings.simplify else str)
    train, test = [], []
    for poem in poems:
        # Another hash than that of data/prepare.py, which holds out a part of `train`.
        (test if is_val(f"test {poem.text}", settings.test_fraction) else train).append(poem)
    if not (train and test):
        raise UserError(
            f"{settings.input}: {len(poems)} poems make {len(train)} to learn from and {len(test)} "
            "to test; expected some of each: give more poems, or another --test_fraction"
        )
    collection = Collection(train, settings.author_poems)
    made = {
        "pairs": [
            pair for poem in train for pair in instructions(poem, collection, settings.pairs)
        ],
        "rhymes": [pair for poem in train if (pair := rhyme_pair(poem))],
        "test": [pair for poem in test for pair in instructions(poem, collection, 1)],
    }
    write_jsonl(outputs["poems"], [poem._asdict() for poem in train])
    for name, pairs in made.items():
        write_jsonl(outputs[name], pairs)
    counts = {name: Counter(pair["kind"] for pair in pairs) for name, pairs in made.items()}
    rows = [["poems", len(train), len(test)]]
    rows += [[kind, counts["pairs"][kind], counts["test"][kind]] for kind in KINDS]
    rows.append(["rhymes", len(made["rhymes"]), 0])
    print(table(["", "train", "test"], [[row[0], *(f"{n:,}" for n in row[1:])] for row in rows]))
    print(f"authors of {settings.author_poems} poems or more: {len(collection.authors)}")
    print("wrote " + ", ".join(path.as_posix() for path in outputs.values()))


def read_poems(paths, simplified):
    """The different Poems under `paths`, in order, with their texts, titles and authors through
    simplified(). What is left out is counted and printed."""
    found, n_read = {}, 0
    for _, poem, _ in read_records(paths, parse_verse):
        poem, n_read = poem._replace(**{n: simplified(getattr(poem, n)) for n in SHOWN}), n_read + 1
        found.setdefault(poem.text, poem)
    print(f"read {n_read:,} poems = kept {len(found):,} + duplicates {n_read - len(found):,}")
    return list(found.values())


SHOWN = ("title", "author", "text")


def simplifier():
    """A function traditional text → simplified. UserError if OpenCC is not installed."""
    try:
        from opencc import OpenCC
    except ImportError:
        raise UserError("--simplify=true needs the package opencc: pip install opencc") from None
    return OpenCC("t2s").convert


if __name__ == "__main__":
    run(main)
