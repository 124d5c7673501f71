"""Figures of many poems: what a run was asked, what it wrote, and how real poems measure.

tests = read_tests("data/poems/test.jsonl", "qa", number=200)      # Tests
rows = written(engine, tokenizer, "qa", tests, [0.8], 1.0, 100)      # a dict a poem
figures = summaries(rows, training)                              # a dict a temperature
"""

import math
from collections import defaultdict
from typing import NamedTuple

from minigpt.common.errors import UserError
from minigpt.data.hashing import hash_all
from minigpt.data.pipeline import read_records
from minigpt.data.shapes.fields import text_of
from minigpt.data.shapes.poems import lines_of, parse_verse
from minigpt.evaluation.poems import (
    RHYMES,
    book_rhyme,
    form,
    heads,
    novelty,
    repeated,
    rhyme,
    tones,
)
from minigpt.evaluation.repetition import distinct, generate_texts, grid

BEGINNING = 2  # characters of a poem that a run of plain text is given
REAL = "real"  # the temperature of the poems of the test set
# Name → what it is, for the table in the documents and the picture.
MEASURES = {
    "form": "form as asked",
    "rhyme": "rhyming poems",
    "book_rhyme": "rhyming by the rhyme book",
    "tones": "tone rules kept",
    "heads": "head characters kept",
    "repeated": "characters repeated",
    "copied": "lines copied",
    "longest": "longest copied run",
    "distinct_2": "distinct 2-grams",
}


class Test(NamedTuple):
    """A prompt, what it asks for (the record of form(), heads()), and a real poem's text."""

    prompt: str
    record: dict
    real: str


def read_tests(path, prompt_format, number):
    """`number` Tests of the file that data/prepare_poems.py wrote, drawn by their hashes; all if
    there are fewer. A run of plain text is given the first BEGINNING characters of a poem, and only
    asked for a form. UserError if there is none."""
    tests = {}
    for _, record, _ in read_records([path], dict):
        pair = text_of(record, "question"), text_of(record, "answer")
        if prompt_format == "plain":
            poem = text_of(record, "id")
            pair = poem[:BEGINNING], poem[BEGINNING:]
            record = {"kind": "plain", "given": pair[0]}
        tests.setdefault(pair[0], Test(pair[0], record, pair[1]))
    if not tests:
        raise UserError(f"{path}: no pairs; expected test.jsonl as data/prepare_poems.py writes it")
    found = list(tests.values())
    keys = hash_all([test.prompt for test in found]).tolist()
    return [test for _, test in sorted(zip(keys, found, strict=True))[:number]]


def read_training(path):
    """Yield the texts of the poems in poems.jsonl."""
    for _, poem, _ in read_records([path], parse_verse):
        yield poem.text


# -- writing and measuring -------------------------------------------------------------------------


def written(engine, tokenizer, prompt_format, tests, temperatures, top_p, most, on_end=None):
    """Rows of a run's poems and, last, of the real ones: dicts with temperature, kind, prompt, text
    and measures. most: tokens of a poem."""
    one = dict(top_k=[0], repetition_penalty=[1.0], num_beams=[1])
    cells = grid(temperature=temperatures, top_p=[top_p], **one)
    prompts = [test.prompt for test in tests]
    texts = generate_texts(engine, tokenizer, prompt_format, prompts, cells, 1, most, on_end)
    asked = {test.prompt: test.record for test in tests}
    rows = [
        _row(made["temperature"], made["question"], asked[made["question"]], made["text"])
        for made in texts
    ]
    return rows + [_row(REAL, test.prompt, test.record, test.real) for test in tests]


def _row(temperature, prompt, record, text):
    whole = (record.get("given") or "") + text
    return dict(
        temperature=temperature,
        kind=record.get("kind", ""),
        prompt=prompt,
        text=text,
        form=form(text, record),
        rhyme=rhyme(whole),
        book_rhyme=book_rhyme(whole),
        tones=tones(whole),
        heads=heads(text, record) if record.get("heads") else None,
        repeated=repeated(whole),
    )


def summaries(rows, training):
    """A dict for each temperature, the real poems last: the number of poems and MEASURES. To each
    row is added how new its text is.

    form:       share of the poems that keep the form exactly
    rhyme:      share that rhyme, of all but those of the kind `next`, which are one line
    book_rhyme: the same by the rhyme book
    tones:      mean of tones() of those that keep the form and that have tone rules
    heads:      mean of heads() of those that were asked for heads
    repeated:   mean of repeated()
    copied:     share of the lines that are in the training poems
    longest:    mean of the longest runs of characters that are there
    distinct_2: different pairs of neighbouring characters, as a share of all pairs in these poems
    by_kind:    {kind: {poems, form, rhyme, book_rhyme}}
    """
    found = novelty([row["text"] for row in rows], training)
    for row, new in zip(rows, found, strict=True):
        row |= new._asdict()
    by_temperature = defaultdict(list)
    for row in rows:
        by_temperature[row["temperature"]].append(row)
    return [{"temperature": name} | _summary(of) for name, of in by_temperature.items()]


def _summary(rows):
    by_kind = defaultdict(list)
    for row in rows:
        by_kind[row["kind"]].append(row)
    whole = [row for row in rows if row["form"] == 1 and row["tones"] > 0]
    pairs = distinct_pairs(row["text"] for row in rows)
    n_lines = sum(row["lines"] for row in rows)
    return dict(
        poems=len(rows),
        **_form_and_rhyme(rows),
        tones=_mean(row["tones"] for row in whole),
        heads=_mean(row["heads"] for row in rows if row["heads"] is not None),
        repeated=_mean(row["repeated"] for row in rows),
        copied=sum(row["copied"] for row in rows) / n_lines if n_lines else None,
        longest=_mean(row["longest"] for row in rows),
        distinct_2=pairs,
        by_kind={
            kind: {"poems": len(of)} | _form_and_rhyme(of) for kind, of in sorted(by_kind.items())
        },
    )


def _form_and_rhyme(rows):
    poems = [row for row in rows if row["kind"] != "next"]
    return dict(
        form=_mean(row["form"] == 1 for row in rows),
        rhyme=_mean(row["rhyme"] >= RHYMES for row in poems),
        book_rhyme=_mean(row["book_rhyme"] >= RHYMES for row in poems),
    )


def distinct_pairs(texts):
    """Different pairs of neighbouring characters in lines, as a share of all pairs."""
    pairs = [
        line[i : i + 2] for text in texts for line in lines_of(text) for i in range(len(line) - 1)
    ]
    return distinct(pairs, 1)


def _mean(values):
    values = list(values)
    return math.fsum(values) / len(values) if values else None


# -- tables and pictures ---------------------------------------------------------------------------


def as_table(figures):
    """(header, rows) of a table: a row for each temperature."""
    header = ["temperature", "poems", *MEASURES]
    return header, [[_shown(name, figure[name]) for name in header] for figure in figures]


def _shown(name, value):
    if value is None:
        return "–"
    if name == "longest":
        return f"{value:.1f}"
    return f"{value:.1%}" if name in MEASURES else str(value)
