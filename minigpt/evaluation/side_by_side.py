"""Answers of several models side by side: Markdown, a page in HTML, and lines for the terminal.

rows and figures are those of comparison.measured() and comparison.summaries(). What a model wrote
is shown as text: nothing in it is interpreted.
"""

import itertools
from html import escape

from minigpt.common.report import ENDED_AT_ONCE, markdown_line, markdown_table, one_line, table

COLUMNS = {  # figure → its heading
    "answers": "answers",
    "characters": "length",
    "repeated_4": "repeated",
    "recurring_4": "recurring",
    "rouge_l_chars": "Rouge-L characters",
    "rouge_l_words": "Rouge-L words",
}
EXPLAINED = (
    "length: characters, mean; repeated: 4-grams of words that occurred before; recurring: those "
    "that occur more than once"
)
NO_ANSWER = "(no answer)"
SHOWN = 100  # characters of a text in the terminal
CSS = """
body { font-family: system-ui, sans-serif; margin: 1.5em; }
table { border-collapse: collapse; margin: 1em 0; }
th, td { border: 1px solid #bbb; padding: 6px 9px; text-align: left; vertical-align: top; }
td { white-space: pre-wrap; overflow-wrap: anywhere; min-width: 6em; max-width: 36em; }
td small, p { color: #666; }
"""


def figure_table(figures):
    """(header, rows) of texts: a row for each model, without the columns that no model has."""
    names = [name for name in COLUMNS if any(each[name] is not None for each in figures)]
    header = ["model", *(COLUMNS[name] for name in names)]
    return header, [[each["model"], *(_shown(each, name) for name in names)] for each in figures]


def _shown(figures, name):
    value = figures[name]
    if value is None:
        return "–"
    if name == "answers":
        return f"{value} of {figures['asked']}"
    return f"{value:.0f}" if name == "characters" else f"{value:.3f}"


def remarks(figures):
    """Lines about each model: where its answers are from, and what is missing, cut or empty."""
    lines = []
    for each in figures:
        facts = [each["source"], *each["notes"]]
        if each["cut"]:
            facts.append(f"{each['cut']} answers end at the longest length")
        if each["empty"]:
            facts.append(f"{each['empty']} empty answers: {ENDED_AT_ONCE}")
        lines.append(f"{each['model']}: {'; '.join(facts)}")
    return lines


def by_question(rows):
    """Yield (number, question, reference, rows of its answers), in order."""
    for number, group in itertools.groupby(rows, lambda row: row["number"]):
        group = list(group)
        yield number, group[0]["question"], group[0]["reference"], group


def side_by_side(rows):
    """(header, lines): a line of texts for each question, a column for each model. An answer that
    has a reference is followed by its Rouge-L over characters."""
    with_reference = any(row["reference"] for row in rows)
    header, lines = [], []
    for number, question, reference, group in by_question(rows):
        header = ["", "question", *(["reference"] if with_reference else [])]
        header += [row["model"] for row in group]
        line = [str(number), question, *([reference] if with_reference else [])]
        lines.append(line + [_answer_cell(row) for row in group])
    return header, lines


def _answer_cell(row):
    if row["answer"] is None:
        return NO_ANSWER
    rouge = f"\n[{row['rouge_l_chars']:.3f}]" if "rouge_l_chars" in row else ""
    return (row["answer"] or "(empty)") + rouge


def as_markdown(title, rows, figures):
    """The figures and the answers as a Markdown document."""
    header, lines = figure_table(figures)
    parts = [f"# {markdown_line(title)}\n", markdown_table(*_cells(header, lines))]
    parts.append(f"{EXPLAINED}.\n")
    parts.append("".join(f"- {markdown_line(line)}\n" for line in remarks(figures)))
    parts.append(markdown_table(*_cells(*side_by_side(rows)), align=":---"))
    return "\n".join(parts)


def _cells(header, lines):
    """The texts as cells of a Markdown table."""
    return list(map(_cell, header)), [list(map(_cell, line)) for line in lines]


def _cell(text):
    return "<br>".join(markdown_line(line) for line in text.splitlines())


def as_html(title, rows, figures):
    """The figures and the answers as a page that loads nothing."""
    notes = "".join(f"<p>{escape(line)}</p>\n" for line in [EXPLAINED, *remarks(figures)])
    return (
        f'<!DOCTYPE html>\n<html lang="zh">\n<meta charset="utf-8">\n'
        f"<title>{escape(title)}</title>\n<style>{CSS}</style>\n<h1>{escape(title)}</h1>\n"
        f"{_html_table(*figure_table(figures))}{notes}{_html_table(*side_by_side(rows))}</html>\n"
    )


def _html_table(header, lines):
    head = "".join(f"<th>{escape(text)}</th>" for text in header)
    body = "".join(
        f"<tr>{''.join(f'<td>{escape(text)}</td>' for text in line)}</tr>\n" for line in lines
    )
    return f"<table>\n<tr>{head}</tr>\n{body}</table>\n"


def as_lines(rows, figures):
    """Lines for the terminal: each question with the beginning of each answer, then the figures."""
    width = max(len(row["model"]) for row in rows)
    lines = []
    for number, question, reference, group in by_question(rows):
        lines.append(f"{number}. {one_line(question, SHOWN)}")
        if reference:
            lines.append(f"   {'reference':<{width}}  {one_line(reference, SHOWN)}")
        for row in group:
            rouge = f"{row['rouge_l_chars']:.3f}  " if "rouge_l_chars" in row else ""
            text = NO_ANSWER if row["answer"] is None else one_line(row["answer"], SHOWN)
            lines.append(f"   {row['model']:<{width}}  {rouge}{text or '(empty)'}")
    lines += ["", table(*figure_table(figures)), EXPLAINED, *remarks(figures)]
    return "\n".join(lines)
