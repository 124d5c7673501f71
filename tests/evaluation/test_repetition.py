"""Repetition: measures by hand and against plain counting; the grid; the script as a user runs it.

python -m pytest tests/evaluation/test_repetition.py
"""

import csv
import json
import random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from matplotlib.image import imread
from tiny_run import run_here, save_run, save_scripted_run, write_jsonl

from minigpt.common.errors import UserError
from minigpt.evaluation.repetition import (
    MEASURES,
    Cell,
    distinct,
    generate_texts,
    grid,
    measure,
    nearby,
    pictures,
    read_questions,
    read_values,
    recurring,
    repeated,
    summaries,
)
from minigpt.inference.engine import Engine
from minigpt.plotting.grid import grid_figure

ONE = dict(temperature=[1.0], top_p=[1.0], top_k=[0], repetition_penalty=[1.0], num_beams=[1])


# -- measures --------------------------------------------------------------------------------------


def test_the_docstrings_example():
    ids = [1, 2, 3, 4, 1, 2, 3, 4, 1, 2, 3, 4, 9]
    assert nearby(ids) == pytest.approx(0.6)
    # Within 4 positions the outer two 1234 see one other, the middle one two: 10 / 2 / 10.
    assert nearby(ids, window=4) == pytest.approx(0.5)
    assert nearby(ids, window=3) == 0
    assert repeated(ids) == pytest.approx(1 - 5 / 10)
    assert recurring(ids) == pytest.approx(9 / 10)  # all but 2349
    assert (distinct(ids, 1), distinct(ids, 2)) == (5 / 13, 5 / 12)


def test_the_edge_of_the_window():
    apart = [*range(100), 0, 1, 2, 3]
    assert nearby(apart, window=99) == 0 and repeated(apart) == pytest.approx(1 / 101)
    assert nearby(apart, window=100) == pytest.approx(2 / 101)
    assert nearby([*range(50), *range(4)]) == pytest.approx(2 / 51)  # 50 positions still count
    assert nearby([*range(51), *range(4)]) == 0


def test_texts_without_an_ngram():
    for ids in ([], [1], [1, 1, 1]):
        assert (repeated(ids), recurring(ids), nearby(ids)) == (0, 0, 0)
    assert distinct([], 1) == distinct([7], 2) == 1
    assert nearby([1] * 9) == 1 and repeated([1] * 9) == pytest.approx(1 - 1 / 6)


def test_a_text_that_is_written_twice():
    """101 different tokens, twice: 199 4-grams, of which three cross the seam and occur once."""
    ids = [*range(101)] * 2
    assert recurring(ids) == pytest.approx(196 / 199)  # 0.985
    assert repeated(ids) == pytest.approx(98 / 199)  # 0.492


def test_without_repetition_the_weighted_measure_is_0():
    """A count that includes the 4-gram itself is 1 for each, so that its average is 1."""
    assert nearby([*range(60)]) == 0


TEXTS = st.lists(st.integers(0, 3), max_size=60)


@given(ids=TEXTS, n=st.integers(1, 5), window=st.integers(1, 20))
def test_against_plain_counting(ids, n, window):
    grams = [tuple(ids[i : i + n]) for i in range(len(ids) - n + 1)]
    counts = [
        sum(i != j and abs(i - j) <= window and g == h for j, h in enumerate(grams))
        for i, g in enumerate(grams)
    ]
    wanted = np.mean([count / max(counts) for count in counts]) if any(counts) else 0
    assert nearby(ids, n, window) == pytest.approx(wanted)
    again = sum(gram in grams[:i] for i, gram in enumerate(grams))
    assert repeated(ids, n) == pytest.approx(again / len(grams) if grams else 0)
    twice = sum(grams.count(gram) > 1 for gram in grams)
    assert recurring(ids, n) == pytest.approx(twice / len(grams) if grams else 0)


@given(ids=TEXTS)
def test_shares_are_shares(ids):
    found = measure(ids)
    assert list(found) == list(MEASURES) and found["tokens"] == len(ids)
    assert all(0 <= value <= 1 for name, value in found.items() if name != "tokens")


@given(ids=st.lists(st.integers(0, 10**4), min_size=4, max_size=45, unique=True))
def test_a_text_without_repetition_and_the_same_twice(ids):
    assert repeated(ids) == recurring(ids) == nearby(ids) == 0 and distinct(ids, 1) == 1
    twice = ids + ids
    assert repeated(twice) > 0 and nearby(twice) > 0 and distinct(twice, 1) == 0.5


# -- questions -------------------------------------------------------------------------------------


def test_questions_of_every_kind_of_file(tmp_path):
    lines = tmp_path / "q.txt"
    lines.write_bytes("黄河\n\n  长江 \r\n黄河\n".encode("gb18030"))
    assert read_questions(lines, "plain") == ["黄河", "长江"]
    records = [{"question": "一？"}, {"prompt": "二"}, {"text": "三"}, {"question": "一？", "x": 1}]
    assert read_questions(write_jsonl(tmp_path / "q.jsonl", records), "qa") == ["一？", "二", "三"]
    table = tmp_path / "q.csv"
    table.write_text("prompt,format\na,plain\nb,qa\nc,chat\nd,\n", encoding="utf-8-sig")
    wanted = {"plain": ["a", "d"], "qa": ["b", "d"], "chat": ["b", "c", "d"]}
    assert {kind: read_questions(table, kind) for kind in wanted} == wanted
    table.write_text('question\n"one, two"\n', encoding="utf-8")
    assert read_questions(table, "qa") == ["one, two"]


def test_the_shipped_questions(root):
    plain, qa = (read_questions(root / "examples.csv", kind) for kind in ("plain", "qa"))
    assert len(plain) >= 3 and len(qa) >= 3 and not set(plain) & set(qa)


@pytest.mark.parametrize(
    ("name", "content", "complaint"),
    [
        ("q.txt", " \n", "nothing here to ask a run whose prompt format is qa"),
        ("q.csv", "prompt,format\na,plain\n", "nothing here to ask"),
        ("q.csv", "frage\na\n", "no column `prompt` or `question`"),
        ("q.csv", "prompt\n" + "长" * 200_000, "line 1: cannot be read"),
        ("q.csv", "长" * 200_000, "line 0: cannot be read"),
        ("q.jsonl", '{"answer": "a"}\n', "line 1: expected a field `question`, `prompt`"),
        ("q.md", "a\n", "expected a name that ends in .txt, .csv, .jsonl or .json"),
        ("q.txt", None, "q.txt: cannot be read"),
    ],
)
def test_questions_that_cannot_be_read(tmp_path, name, content, complaint):
    if content is not None:
        (tmp_path / name).write_text(content, encoding="utf-8")
    with pytest.raises(UserError) as caught:
        read_questions(tmp_path / name, "qa")
    assert complaint in str(caught.value) and name in str(caught.value)
    assert "\n" not in str(caught.value)


# -- the grid --------------------------------------------------------------------------------------


def test_what_writes_the_same_is_one_cell():
    values = ONE | dict(temperature=[0.0, 0.5], top_p=[0.5, 1.0], num_beams=[1, 3])
    assert grid(**values) == [
        Cell(0.0, 1.0, 0, 1.0, 1),
        Cell(0.0, 1.0, 0, 1.0, 3),
        Cell(0.5, 0.5, 0, 1.0, 1),
        Cell(0.5, 1.0, 0, 1.0, 1),
    ]
    assert len(grid(**ONE | dict(temperature=[0.3, 0.85], top_k=[0, 5, 20]))) == 6


def test_all_wrong_values_are_named_at_once():
    with pytest.raises(UserError) as caught:
        grid(**ONE | dict(temperature=[0.5, -1.0], top_p=[0.0], top_k=[], num_beams=[0, 2]))
    assert str(caught.value).splitlines() == [
        "--temperature=-1.0: expected 0 (greedy) or more",
        "--top_p=0.0: expected above 0, up to 1 (all)",
        "--top_k: expected at least one value",
        "--num_beams=0: expected 1 (none) or more",
    ]
    assert read_values("top_k", ["5", "7", "5"], int) == [5, 7]
    with pytest.raises(UserError, match=r"--top_k: 1\.5: expected int values, commas between"):
        read_values("top_k", ["5", "1.5"], int)


@pytest.fixture
def written(tiny_model, byte_tokenizer):
    """written(questions, n_slots=4, **values): (rows, figures) of a tiny random model."""
    model = tiny_model(padded_vocab_size=320, block_size=32)

    def write(questions, n_slots=4, seeds=2, **values):
        cells = grid(**ONE | values)
        engine = Engine(model, byte_tokenizer.n_vocab, n_slots)
        ended = []
        words = (byte_tokenizer, "plain", questions, cells, seeds, 20)
        rows = generate_texts(engine, *words, on_end=lambda: ended.append(1))
        assert len(ended) == len(rows)
        return rows, summaries(rows, cells)

    return write


def test_neither_the_order_of_the_questions_nor_the_slots_change_the_figures(written):
    questions = [f"{i}" for i in range(7)]
    rows, figures = written(questions, temperature=[0.0, 0.9], repetition_penalty=[1.0, 1.3])
    random.Random(0).shuffle(questions)
    others, again = written(questions, 9, temperature=[0.0, 0.9], repetition_penalty=[1.0, 1.3])
    assert again == figures
    assert sorted(map(str, others)) == sorted(map(str, rows))
    # A cell alone is what it is in the grid.
    (lonely,) = written(questions, temperature=[0.9], repetition_penalty=[1.3])[1]
    assert lonely == figures[-1]


def test_the_greedy_and_the_beams_write_once_and_draws_differ(written):
    rows, figures = written(["a", "b"], seeds=3, temperature=[0.0, 1.5], num_beams=[1, 3])
    assert [figure["texts"] for figure in figures] == [2, 2, 6]
    drawn = [row["text"] for row in rows if row["temperature"] == 1.5]
    assert len(set(drawn)) == 6
    for row in rows:
        assert row["tokens"] <= 20 and row["finish_reason"] in ("stop", "length")
    for figure in figures:
        own = [r for r in rows if all(r[name] == figure[name] for name in Cell._fields)]
        assert figure["distinct_2"] == pytest.approx(np.mean([r["distinct_2"] for r in own]))
        assert figure["ended"] == pytest.approx(1 - figure["cut"])


# -- pictures --------------------------------------------------------------------------------------


def figures_of(values):
    """Figures of a made-up grid: repeated_4 says which cell it is."""
    fixed = dict.fromkeys([*MEASURES, "ended", "cut"], 0.5) | dict(texts=1)
    return [
        {**cell._asdict(), **fixed, "repeated_4": i / 100, "tokens": 10.0 * i}
        for i, cell in enumerate(grid(**values))
    ]


def test_nothing_is_drawn_of_one_cell():
    assert pictures(figures_of(ONE), ONE) == {}


def test_one_setting_gives_lines():
    values = ONE | dict(temperature=[0.85, 0.1, 1.5])
    drawn = pictures(figures_of(values), values)
    shares, lengths = drawn["shares"], drawn["tokens"]
    assert shares.panels["4-grams that occurred before"] == [0, 0.01, 0.02]
    figure, notes = grid_figure("run", *shares)
    assert not notes
    lines = {line.get_gid(): line.get_xydata().tolist() for line in figure.axes[0].get_lines()}
    assert lines["grid:4-grams that occurred before"] == [
        [0.1, 0.01],
        [0.85, 0],
        [1.5, 0.02],
    ]  # in order
    assert figure.get_suptitle() == "run\nrepetition"
    assert len(lines) == 6 and figure.axes[0].get_xlabel() == "temperature"
    assert lengths.panels == {"mean length in tokens": [0, 10, 20]}


def test_all_tokens_are_the_most_of_top_k():
    values = ONE | dict(top_k=[50, 0, 1])
    figure, _ = grid_figure("run", *pictures(figures_of(values), values)["shares"])
    (axes,) = figure.axes
    lines = {line.get_gid(): line.get_xydata().tolist() for line in axes.get_lines()}
    assert lines["grid:4-grams that occurred before"] == [[0, 0.02], [1, 0], [2, 0.01]]
    shown = dict(zip(axes.get_xticks(), axes.get_xticklabels(), strict=True))
    assert {x: label.get_text() for x, label in shown.items()} == {0: "1", 1: "50", 2: "0 (all)"}


def test_two_settings_give_maps_and_a_third_panels():
    values = ONE | dict(temperature=[0.0, 0.5], top_p=[0.5, 0.9, 1.0], num_beams=[1, 2])
    found = pictures(figures_of(values), values)
    # Cells in their order: greedy, greedy with beams, then 0.5 with each top_p. Where nothing is
    # drawn, all top_p are one cell.
    wanted = {"num_beams 1": [[0] * 3, [0.02, 0.03, 0.04]], "num_beams 2": [[0.01] * 3] * 2}
    assert found["repeated_4"].panels == wanted
    figure, _ = grid_figure("run", *found["repeated_4"])
    maps = {image.get_gid(): image for axes in figure.axes for image in axes.get_images()}
    assert maps["grid:num_beams 1"].get_array().tolist() == wanted["num_beams 1"]
    first = figure.axes[0]
    assert (first.get_ylabel(), first.get_xlabel()) == ("temperature", "top_p")
    assert [text.get_text() for text in first.get_yticklabels()] == ["0", "0.5"]
    assert sorted(text.get_text() for text in first.texts) == ["0.00"] * 3 + [
        "0.02",
        "0.03",
        "0.04",
    ]
    assert found["tokens"].top is None and len(found) == 7


# -- the script ------------------------------------------------------------------------------------


def repetition(*words):
    return run_here("tools/evaluations-repetition.py", *words)


def test_a_run_that_goes_round_and_one_that_ends(tmp_path, byte_tokenizer):
    asked = tmp_path / "q.txt"
    asked.write_text("甲。\n乙。\n", encoding="utf-8")
    words = [f"--questions={asked}", "--temperature=0.1", "--seeds=3", "--max_new_tokens=30"]
    round_run = save_scripted_run(tmp_path / "a", byte_tokenizer, "黄河", "plain", cycle=True)
    code, out, err = repetition(f"--out_dir={round_run}", *words)
    assert code == 0, err
    found = json.loads((round_run / "repetition.json").read_text(encoding="utf-8"))
    (cell,) = found["cells"]
    # Thirty tokens of a round of six: of 27 4-grams six are new. Three of the six stand five times,
    # three four times; all of one text is within 50 positions.
    assert cell["repeated_4"] == pytest.approx(1 - 6 / 27)
    assert cell["recurring_4"] == 1
    assert cell["nearby_4"] == pytest.approx((3 * 5 * 4 + 3 * 4 * 3) / 4 / 27)
    assert (cell["tokens"], cell["ended"], cell["cut"], cell["texts"]) == (30, 0, 1, 6)
    assert found["questions"] == ["甲。", "乙。"] and found["step"] == 7
    lines = (round_run / "repetition.jsonl").read_text(encoding="utf-8").splitlines()
    assert [json.loads(line)["text"] for line in lines] == ["黄河" * 5] * 6
    assert not list(round_run.glob("*.png"))

    ending = save_scripted_run(tmp_path / "b", byte_tokenizer, "黄河", "plain")
    folder = tmp_path / "new" / "figures"
    code, out, err = repetition(f"--out_dir={ending}", f"--output={folder}", *words, "--top_k=0,5")
    assert code == 0, err
    with open(folder / "repetition.csv", encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["top_k"] for row in rows] == ["0", "5"]
    assert [(row["tokens"], row["ended"], row["repeated_4"]) for row in rows] == [
        ("6.0", "1.0", "0.0")
    ] * 2
    shown = (folder / "repetition.md").read_text(encoding="utf-8").splitlines()
    assert shown[0].startswith("| top_k | texts | tokens | repeated_4 |") and len(shown) == 4
    assert shown[3].startswith("| 5 | 6 | 6.0 | 0.000 |")
    assert "\ntop_k  texts  tokens" in out
    for name in ("shares", "tokens"):
        assert imread(folder / f"repetition_{name}.png").shape[2] == 4
    assert sorted(path.name for path in ending.glob("repetition*")) == []


def test_a_grid_of_a_random_run_is_drawn(tmp_path, byte_tokenizer, tiny_model):
    model = tiny_model(padded_vocab_size=320, block_size=32)
    run = save_run(tmp_path / "run", model, byte_tokenizer)
    (run / "repetition_shares.png").touch()  # of a grid before
    (run / "repetition_shares_kept.png").touch()  # somebody's own
    words = ["--temperature=0.5,1.5", "--top_p", "0.5,1", "--num_beams=1,3", "--batch_size=2"]
    words += ["--questions=examples.csv", "--seeds=1", "--max_new_tokens=8"]
    code, out, err = repetition(f"--out_dir={run}", *words)
    assert code == 0, err
    assert "6 questions, 5 cells, 30 texts" in out
    drawn = {path.name for path in run.glob("repetition_*.png")}
    assert "repetition_repeated_4.png" in drawn and "repetition_tokens.png" in drawn
    assert len(drawn) == 8 and "repetition_shares.png" not in drawn
    assert "repetition_shares_kept.png" in drawn


@pytest.mark.parametrize(
    ("words", "lines"),
    [
        (["--out_dir=nowhere"], ["nowhere: no trained run here"]),
        (
            ["--temperature=0.5,x", "--seeds=0", "--top_k=1.5"],
            [
                "seeds=0: expected at least 1",
                "--temperature: x: expected float",
                "--top_k: 1.5: expected",
            ],
        ),
        (["--top_p=0"], ["--top_p=0.0: expected above 0"]),
        (["--num_beams=1,0"], ["--num_beams=0: expected 1 (none) or more"]),
    ],
)
def test_mistakes(words, lines):
    code, out, err = repetition(*words)
    assert code == 2 and len(err.splitlines()) == len(lines)
    for found, line in zip(err.splitlines(), lines, strict=True):
        assert line in found
