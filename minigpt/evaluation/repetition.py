"""Repetition: how much a run repeats itself, for each combination of sampling settings.

    questions = read_questions("examples.csv", "qa")
    cells = grid(temperature=[0.1, 0.85], top_p=[1.0], top_k=[0], …)      # Cells
    rows = generate_texts(engine, tokenizer, "qa", questions, cells, seeds=4)   # a dict a text
    figures = summaries(rows, cells)                                      # one for each cell

All measures are over the generated token ids, without the prompt: they compare runs with the same
tokenizer.
"""

import bisect
import csv
import io
import itertools
import math
from collections import Counter, defaultdict
from pathlib import Path
from typing import NamedTuple

from minigpt.common.errors import UserError
from minigpt.common.presets import read_text
from minigpt.common.spreadsheet import csv_cell
from minigpt.data.formats import BadRecord
from minigpt.data.hashing import hash_all
from minigpt.data.pipeline import read_records
from minigpt.data.prompts import prompt_ids, stop_ids
from minigpt.inference.engine import Request

WINDOW = 50  # positions; see nearby()
MEASURES = (
    "tokens",
    "repeated_4",
    "recurring_4",
    "nearby_4",
    "distinct_1",
    "distinct_2",
    "distinct_3",
)
ENDS = ("ended", "cut")  # fractions of texts
PLOTTED = {  # measure → its name in the pictures
    "repeated_4": "4-grams that occurred before",
    "recurring_4": "4-grams that occur more than once",
    "nearby_4": "4-gram repetition, weighted by distance",
    "distinct_1": "distinct tokens",
    "distinct_2": "distinct 2-grams",
    "ended": "texts that end by themselves",
    "tokens": "mean length in tokens",
}


# -- one text --------------------------------------------------------------------------------------


def ngrams(ids, n):
    """The n-grams of `ids`, in order."""
    return list(zip(*(ids[i:] for i in range(n)), strict=False))


def distinct(ids, n):
    """Different n-grams as a fraction of all n-grams (Li et al. 2016); 1 if the text has none."""
    grams = ngrams(ids, n)
    return len(set(grams)) / len(grams) if grams else 1.0


def repeated(ids, n=4):
    """The fraction of n-grams that occurred before (Welleck et al. 2019): 1 - distinct. The first
    occurrence of an n-gram does not count."""
    return 1 - distinct(ids, n)


def recurring(ids, n=4):
    """The fraction of n-grams that occur more than once. All their occurrences count, also the
    first: a text that is written twice has about 1 here and about ½ in repeated()."""
    grams = ngrams(ids, n)
    counts = Counter(grams)
    return sum(counts[gram] > 1 for gram in grams) / len(grams) if grams else 0.0


def nearby(ids, n=4, window=WINDOW):
    """Repetition weighted by distance: for each n-gram the number of its other occurrences within
    `window` positions, divided by the highest such number of the text, averaged over all n-grams.

    An n-gram does not count itself: 0 if nothing is repeated nearby, 1 if the whole text is one
    loop. A count that includes the n-gram itself also gives 1 if nothing is repeated, because all
    counts are then the highest one. By hand, n = 4: in
    1 2 3 4 1 2 3 4 1 2 3 4 9 the 4-gram 1234 occurs three times, each time with two others nearby;
    2341, 3412 and 4123 occur twice, with one other each; 2349 once. Divided by the highest, 2:
    3 · 1 + 6 · ½ + 0 = 6, over ten 4-grams: 0.6.
    """
    positions = defaultdict(list)
    grams = ngrams(ids, n)
    for position, gram in enumerate(grams):
        positions[gram].append(position)
    counts = []
    for own in positions.values():
        for position in own:
            first = bisect.bisect_left(own, position - window)
            end = bisect.bisect_right(own, position + window)
            counts.append(end - first - 1)
    highest = max(counts, default=0)
    return sum(counts) / highest / len(counts) if highest else 0.0


def measure(ids):
    """All MEASURES of a text's ids."""
    return dict(
        tokens=len(ids),
        repeated_4=repeated(ids),
        recurring_4=recurring(ids),
        nearby_4=nearby(ids),
        **{f"distinct_{n}": distinct(ids, n) for n in (1, 2, 3)},
    )


# -- questions -------------------------------------------------------------------------------------


def read_questions(path, prompt_format):
    """The questions for a run with this prompt format, without duplicates, in the file's order.

    A .txt has one a line; a .csv has the column `prompt` or `question` and optionally `format`
    (rows for other formats are left out; "chat" runs get those for "qa" too); a .jsonl or .json has
    the field `question`, `prompt` or `text`. UserError if there are none.
    """
    suffix = Path(path).suffix.lower()
    if suffix == ".txt":
        found = read_text(path).splitlines()
    elif suffix == ".csv":
        found = _csv_questions(path, prompt_format)
    elif suffix in (".jsonl", ".json"):
        found = [question for _, question, _ in read_records([path], _question_of)]
    else:
        raise UserError(f"{path}: expected a name that ends in .txt, .csv, .jsonl or .json")
    questions = list(dict.fromkeys(filter(None, map(str.strip, found))))
    if not questions:
        raise UserError(f"{path}: nothing here to ask a run whose prompt format is {prompt_format}")
    return questions


def _csv_questions(path, prompt_format):
    rows = csv.DictReader(io.StringIO(read_text(path), newline=""))
    wanted = ("qa", "chat") if prompt_format == "chat" else (prompt_format,)
    try:
        columns = [name for name in ("prompt", "question") if name in (rows.fieldnames or ())]
        if not columns:
            raise UserError(f"{path}: its first line has no column `prompt` or `question`")
        column = columns[0]
        return [row[column] or "" for row in rows if (row.get("format") or wanted[0]) in wanted]
    except csv.Error as error:
        raise UserError(f"{path}, line {rows.line_num}: cannot be read ({error})") from None


def _question_of(record):
    for name in ("question", "prompt", "text"):
        if isinstance(record.get(name), str):
            return record[name]
    raise BadRecord("expected a field `question`, `prompt` or `text`")


# -- the grid --------------------------------------------------------------------------------------


class Cell(NamedTuple):
    """One combination of sampling settings, named as in Request."""

    temperature: float
    top_p: float
    top_k: int
    repetition_penalty: float
    num_beams: int

    @property
    def draws(self):
        """Whether the text depends on the seed."""
        return self.temperature > 0

    def canonical(self):
        """The representative of all cells with the same texts: beam search and temperature 0 ignore
        top_p and top_k."""
        if self.num_beams > 1 or self.temperature == 0:
            return self._replace(temperature=0.0, top_p=1.0, top_k=0)
        return self


def grid(**values):
    """Every combination of `values` (a list for each field of Cell), equivalent ones once.
    UserError names every invalid value."""
    problems = []
    for name in Cell._fields:
        problems += [f"--{name}: expected at least one value"] if not values[name] else []
        for value in values[name]:
            settings = {"temperature": 0, name: value}  # beams require temperature 0
            problems += [f"--{line}" for line in Request([0], **settings).problems()]
    if problems:
        raise UserError("\n".join(problems))
    cells = itertools.starmap(Cell, itertools.product(*(values[name] for name in Cell._fields)))
    return list(dict.fromkeys(cell.canonical() for cell in cells))


def read_values(name, words, kind):
    """The words of a knob as numbers of `kind`, without duplicates. UserError names wrong words."""
    values, wrong = {}, []
    for word in words:
        try:
            values[kind(word)] = None
        except ValueError:
            wrong.append(word)
    if wrong:
        raise UserError(
            f"--{name}: {', '.join(wrong)}: expected {kind.__name__} values, commas between them"
        )
    return list(values)


# -- generating and measuring ----------------------------------------------------------------------


def generate_texts(
    engine, tokenizer, prompt_format, questions, cells, seeds=1, max_new_tokens=225, on_end=None
):
    """A run's texts for each question in each cell, `seeds` of them if the cell samples: a dict a
    text, with the cell's settings, its number, the text and its measures. The seed depends on the
    question and the number only, so neither the order of the questions nor the rest of the grid
    changes a text. on_end() is called as each text ends.
    """
    asked = [
        (cell, question, number)
        for cell in cells
        for question in questions
        for number in range(seeds if cell.draws else 1)
    ]
    ids = {question: prompt_ids(tokenizer, prompt_format, question) for question in questions}
    stops = stop_ids(tokenizer)
    requests = [
        Request(
            ids[question],
            max_new_tokens,
            seed=int(hash_all([f"{number} {question}"])[0]),
            stop_ids=stops,
            **cell._asdict(),
        )
        for cell, question, number in asked
    ]
    tickets = engine.generate(requests, lambda ticket: on_end and on_end())
    return [
        dict(
            question=question,
            **cell._asdict(),
            number=number,
            finish_reason=ticket.finish_reason,
            **measure(ticket.ids),
            text=tokenizer.decode(ticket.ids).rstrip("\ufffd"),
        )
        for (cell, question, number), ticket in zip(asked, tickets, strict=True)
    ]


def summaries(rows, cells):
    """For each cell a dict: its settings, the number of texts, the means of MEASURES, and the
    fractions of texts that ended with EOT ("ended") and at max_new_tokens ("cut")."""
    by_cell = defaultdict(list)
    for row in rows:
        by_cell[Cell(*(row[name] for name in Cell._fields))].append(row)
    return [{**cell._asdict(), **_summary(by_cell[cell])} for cell in cells]


def _summary(rows):
    # fsum: the result does not depend on the order of the questions.
    means = {name: math.fsum(row[name] for row in rows) / len(rows) for name in MEASURES}
    ended = sum(row["finish_reason"] == "stop" for row in rows) / len(rows)
    return dict(texts=len(rows), **means, ended=ended, cut=1 - ended)


# -- tables and pictures ---------------------------------------------------------------------------


def as_table(figures):
    """(header, rows) of a table: the settings that differ between cells, then the measures."""
    varied = [name for name in Cell._fields if len({figure[name] for figure in figures}) > 1]
    header = [*varied, "texts", *MEASURES, *ENDS]
    return header, [[_shown(name, figure[name]) for name in header] for figure in figures]


def _shown(name, value):
    if name == "tokens":
        return f"{value:.1f}"
    return f"{value:.3f}" if name in MEASURES or name in ENDS else f"{value:g}"


def as_markdown(header, rows):
    """A Markdown table, numbers right-aligned."""
    lines = [header, ["---:"] * len(header), *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def as_csv(figures):
    """All figures with all digits as CSV, one line a cell."""
    text = io.StringIO()
    writer = csv.DictWriter(text, list(figures[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows({name: csv_cell(value) for name, value in row.items()} for row in figures)
    return text.getvalue()


class Picture(NamedTuple):
    """What minigpt.plotting.grid.grid_figure() draws."""

    title: str
    axes: dict
    panels: dict
    top: float | None


def pictures(figures, values):
    """The Pictures, name → Picture, of a grid over `values` (a list for each field of Cell).

    One setting with several values: the fractions as lines over it, and the lengths. Two or more: a
    picture for each measure, with a heat map over the first two settings for each combination of
    the others. None: no picture.
    """
    found = {Cell(*(figure[name] for name in Cell._fields)): figure for figure in figures}
    varied = {name: values[name] for name in Cell._fields if len(values[name]) > 1}
    axes = dict(itertools.islice(varied.items(), 2))
    others = {name: varied[name] for name in varied if name not in axes}
    first = {name: values[name][0] for name in Cell._fields}

    def over(axes, measure, chosen):
        """Nested lists with an entry for each combination of the axes' values."""
        if not axes:
            return found[Cell(**first | chosen).canonical()][measure]
        name, *rest = axes
        return [over(rest, measure, chosen | {name: value}) for value in values[name]]

    if not axes:
        return {}
    if len(axes) == 1:
        lines = {label: over(axes, name, {}) for name, label in PLOTTED.items()}
        length = {PLOTTED["tokens"]: lines.pop(PLOTTED["tokens"])}
        return {
            "shares": Picture("repetition", axes, lines, 1.0),
            "tokens": Picture(PLOTTED["tokens"], axes, length, None),
        }
    maps = {}
    for name, label in PLOTTED.items():
        panels = {}
        for combination in itertools.product(*others.values()):
            chosen = dict(zip(others, combination, strict=True))
            heading = ", ".join(f"{setting} {value:g}" for setting, value in chosen.items())
            panels[heading] = over(axes, name, chosen)
        maps[name] = Picture(label, axes, panels, None if name == "tokens" else 1.0)
    return maps
