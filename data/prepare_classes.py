"""A table of labelled texts → training data, and a test set for a classifier.

    python data/prepare_classes.py --input=bbc_news.csv --output=data/bbc
    python data/prepare_classes.py --input=reviews.csv --text=review --label=stars --ask=评分：
    python data/prepare_classes.py --input=news.tsv --text=title,content --label=topic \\
        --instruction="Sort the article into one of: {labels}"

Reads a table whose first line names its columns (.csv, .tsv; commas, tabs, semicolons or | between
the cells), or any other file of records, such as a .jsonl or .parquet. Of texts with the same
beginning the first is kept, and none if their labels differ. One text in five of each class goes to
the test set. The folder then has

    train.jsonl     id, text, label: to pretrain on (data/prepare.py) and for examples in a prompt
    pairs.jsonl     the same as questions and answers, to fine-tune on (data/prepare_sft.py)
    test.jsonl      id, text, label of the test set, for tools/evaluations-classification.py alone
    task.json       the labels, and how a text becomes a question

A question is the beginning of a text and, on a line of its own, --ask; the answer is the label.
--instruction is put before the text. No test text is in the other files, so no tokenizer and no
model has seen it.
"""

import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))

from config.configurator import configure
from minigpt.common.errors import UserError, preflight, run


class Settings:
    input: str = ""  # the table: a .csv, .tsv, .jsonl, .parquet, …
    output: str = "data/classes"  # the folder to write
    text: list[str] = ["content"]  # the column with the texts, or several, such as title,content
    label: str = "category"  # the column with their labels
    ask: str = "Category:"  # the line between a text and its label
    instruction: str = ""  # what is before each text; {labels} in it is the list of the labels
    letters: bool = False  # answer with a letter for each label: A, B, … are each one id of any
    #                        vocabulary, so the labels are ranked by the logits of these ids
    length: int = 750  # characters of a text that a question shows: some 190 English tokens
    excerpts: int = 1  # questions made from a training text: its beginning, the part after it, …
    test_fraction: float = 0.2  # of each class
    seed: int = 1337  # draws the test set


def read_settings():
    """The settings, checked."""
    settings = configure(Settings, doc=__doc__, quiet=True)
    check(settings)
    return settings


def check(settings):
    """UserError with everything that is wrong with the settings."""
    rules = [
        ("input", settings.input, "a table, such as FILE.csv"),
        ("text", settings.text, "a column"),
        ("ask", settings.ask.strip(), "some text"),
        ("length", settings.length >= 1, "1 or more"),
        ("excerpts", settings.excerpts >= 1, "1 or more"),
        ("test_fraction", 0 < settings.test_fraction < 1, "above 0, below 1"),
        ("seed", settings.seed >= 0, "0 or more"),
    ]
    problems = [
        f"--{name}={getattr(settings, name)}: expected {expected}"
        for name, good, expected in rules
        if not good
    ]
    if problems:
        raise UserError("\n".join(problems))


if __name__ == "__main__":
    preflight(read_settings)  # --help and mistakes, before the imports below, which take seconds

from minigpt.common.report import table
from minigpt.data.pipeline import command_line
from minigpt.evaluation.classification import Task, write_task
from minigpt.evaluation.labelled import read_labelled_table, split, without_duplicates


def main():
    settings = read_settings()
    print(settings.describe(), flush=True)
    found, notes = read_labelled_table(settings.input, settings.text, settings.label)
    for note in notes:
        print(note)
    rows, doubles, contradicted = without_duplicates(found, settings.length)
    train, test = split(rows, settings.test_fraction, settings.seed)
    labels = tuple(sorted({row.label for row in rows}))
    if not rows:
        raise UserError(
            f"{settings.input}: no text is left to learn from: {doubles:,} are duplicates, "
            f"{contradicted:,} have two labels; expected a row for each text"
        )
    if len(labels) < 2:
        raise UserError(
            f"{settings.input}: column {settings.label} has the one label {labels[0]!r}; expected "
            f"two or more"
        )
    task = Task(
        labels,
        settings.ask,
        settings.length,
        settings.instruction.replace("\\n", "\n"),
        letters=settings.letters,
    )
    if problems := task.problems():
        raise UserError("\n".join(f"--{line}" for line in problems))
    made_by = dict(
        source=pathlib.Path(settings.input).name,
        test_fraction=settings.test_fraction,
        seed=settings.seed,
        command=command_line("data/prepare_classes.py"),
    )
    n_pairs = write_task(settings.output, task, train, test, settings.excerpts, made_by)

    count = len(rows) + doubles + contradicted
    print(
        f"read {count:,} = kept {len(rows):,} + duplicate {doubles:,} + two labels {contradicted:,}"
    )
    counts = [
        [sum(row.label == label for row in part) for part in (train, test)] for label in labels
    ]
    figures = [[label, *of_label] for label, of_label in zip(labels, counts, strict=True)]
    print(table(["", "train", "test"], [*figures, ["all", len(train), len(test)]]))
    print(f"{settings.output}: {n_pairs:,} questions to learn from, {len(test):,} texts to test")


if __name__ == "__main__":
    run(main)
