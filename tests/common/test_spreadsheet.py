"""Cells of CSV that a spreadsheet must not compute."""

import csv
import importlib
import io

import pytest

from minigpt.arena.store import BattleRecord, Ledger, SideRecord
from minigpt.common.spreadsheet import csv_cell, csv_row
from minigpt.evaluation.repetition import as_csv


@pytest.mark.parametrize("text", ["=1+2", "+1", "-1", "@SUM(A1)", "\t=1", "\r=1"])
def test_what_would_be_a_formula_is_text(text):
    assert csv_cell(text) == "'" + text


@pytest.mark.parametrize("value", ["", "黄河", "a=b", "1-2", -1, -0.5, 3, None])
def test_other_text_and_numbers_stay(value):
    assert csv_cell(value) is value
    assert csv_row([value, "=x"]) == [value, "'=x"]


def test_the_leaderboard(tmp_path):
    arena = importlib.import_module("sample_gradio")
    ledger = Ledger(tmp_path / "arena.sqlite")
    names = ('=HYPERLINK("http://x")', "sft")
    sides = tuple(SideRecord(name, name, None, "答", None, None, None, "stop") for name in names)
    number = ledger.add_battle(BattleRecord("blind", "问", {}, None, "v", sides))
    ledger.vote(number, "v", 1)
    text = arena._leaderboard_csv(ledger).removeprefix("\ufeff")
    header, *rows = csv.reader(io.StringIO(text))
    assert {row[1] for row in rows} == {"'" + names[0], "sft"}
    assert all(isinstance(float(cell), float) for row in rows for cell in row[2:])  # still numbers


def test_figures_of_repetition():
    assert as_csv([dict(name="@x", change=-0.5)]) == "name,change\n'@x,-0.5\n"
