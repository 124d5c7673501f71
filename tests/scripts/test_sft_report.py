"""sft/sft_report.py: what it counts, prints and draws, of our own files and of any other pairs."""

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tiny_run import run_here, write_jsonl

from minigpt.common.errors import UserError
from minigpt.plotting.pairs import pairs_figure
from minigpt.synthesis.dedup import Deduplicator
from minigpt.synthesis.journal import Finished, PairsLog, beside, entry_hash
from minigpt.synthesis.statistics import (
    KINDS,
    OTHER,
    collect_statistics,
    describe,
    opening,
    quantile,
    question_kind,
)

PAIRS = [
    ("黄河发源于哪里？", "青藏高原。", "1"),
    ("《史记》的作者是谁？", "司马迁。", "2"),
    ("黄河有多长？", "约5464千米。", "1"),
    ("黄河有多长？", "五千多千米。", "1"),
    ("黄河流经几个省？", "九个。", None),
]


@pytest.fixture
def pairs(tmp_path):
    rows = [dict(question=q, answer=a, id=i) for q, a, i in PAIRS]
    return write_jsonl(tmp_path / "pairs.jsonl", rows)


@pytest.fixture
def source(tmp_path):
    """Three entries: of 1 and 2 there are pairs."""
    entries = [dict(id=str(i), title=f"题{i}", text=f"题{i}\n\n第{i}篇（）。") for i in (1, 2, 3)]
    return write_jsonl(tmp_path / "wiki.jsonl", entries)


@pytest.fixture
def written(tmp_path):
    """A file as sft_generate.py writes it, of the entries 1 and 3; 2 was rejected."""
    log = PairsLog(tmp_path / "made.jsonl", {"model": "qwen", "template": "facts"})
    for i, outcome in ((1, "done"), (2, "rejected"), (3, "done")):
        entry = entry_hash(f"题{i}", f"第{i}篇。")
        made = [(f"第{i}篇讲什么？", f"讲{i}。"), (f"谁写了第{i}篇？", "甲。")]
        log.add(Finished(entry, f"row {i}", outcome, made, dict(first={"pronoun": i})))
    log.close()
    return log.path


# -- counting --------------------------------------------------------------------------------------


def test_the_statistics_of_any_pairs(pairs):
    statistics = collect_statistics(pairs, Deduplicator())
    assert (statistics.pairs, statistics.unnamed, statistics.progress, statistics.input) == (
        5,
        1,
        None,
        None,
    )
    assert statistics.questions == {8: 2, 10: 1, 6: 2} and statistics.answers[5] == 1
    assert statistics.openings == {"黄河": 4, "史记": 1}  # without the book's brackets
    assert statistics.per_entry == {1: 1, 3: 1} and statistics.doubles == {"exact": 1}
    assert statistics.kinds == {"哪里 where": 1, "谁 who": 1, "多少 how many": 3}


def test_the_statistics_of_our_own_file(written, source):
    statistics = collect_statistics(written, source=source)
    assert statistics.models == {"qwen": 4} and statistics.per_entry == {2: 2}
    assert statistics.progress.outcomes == {"done": 2, "rejected": 1}
    assert statistics.progress.first == {"pronoun": 6}
    assert statistics.input == (3, 2)  # by the hash of the cleaned text: the ids are others


def test_coverage_by_ids_and_by_topics(pairs, source, tmp_path):
    assert collect_statistics(pairs, source=source).input == (3, 2)
    rows = [
        dict(question="甲？", answer="乙。", id=f"题{i}#{round_}", entry=entry_hash(str(round_)))
        for i, round_ in ((1, 1), (1, 2), (3, 1))
    ]
    assert collect_statistics(write_jsonl(tmp_path / "t.jsonl", rows), source=source).input == (
        3,
        2,
    )


def test_a_run_may_be_writing_its_progress(written):
    progress = beside(written)[0]
    progress.write_bytes(progress.read_bytes() + b'{"entry": "0')
    assert collect_statistics(written).progress.entries == 3
    progress.write_text("\n" + progress.read_text("utf-8") + "\n", "utf-8")
    with pytest.raises(UserError, match=r"progress.jsonl, line \d+: no JSON"):
        collect_statistics(written)


@pytest.mark.parametrize(
    ("question", "label"),
    [
        ("为什么天是蓝的？", "为什么 why"),
        ("长城為何而建？", "为什么 why"),
        ("火药如何制成？", "怎么 how"),
        ("长江有多长？", "多少 how many"),
        ("北京有多少人？", "多少 how many"),
        ("《谁是最可爱的人》写于哪一年？", "何时 when"),  # 谁 is part of a name
        ("清朝何时灭亡？", "何时 when"),
        ("他出生在什么地方？", "哪里 where"),
        ("《红楼梦》作者是哪位？", "谁 who"),
        ("长江流入哪个海？", "哪 which"),
        ("水的化学式是什么？", "什么 what"),
        ("水的化學式是什麼？", "什么 what"),
        ("地球是圆的吗？", "吗 yes or no"),
        ("请介绍长城。", OTHER),
    ],
)
def test_kinds_of_questions(question, label):
    assert question_kind(question) == label


def test_openings():
    assert opening("“一国两制”是什么？") == "一国" and opening("《") == "" and opening("谁") == "谁"
    assert len({label for label, _ in KINDS}) == len(KINDS)


@given(st.lists(st.integers(1, 50), min_size=1), st.sampled_from([0, 0.1, 0.5, 0.9, 1]))
def test_quantiles(lengths, share):
    counts = {n: lengths.count(n) for n in lengths}
    expected = np.quantile(lengths, share, method="inverted_cdf")
    assert quantile(counts, share) == expected


def test_the_description(written, source):
    text = describe(collect_statistics(written, Deduplicator(), source))
    for part in (
        "made.jsonl: 4 pairs about 2 entries, 2.00 an entry",
        "written by qwen: 4",
        "entries of the source: 3, with pairs 2 (66.7%)",
        "2 done, 1 rejected, 0 refused",
    ):
        assert part in text
    rows = [line.split() for line in text.splitlines()]
    assert ["questions", *"777777"] in rows and ["pronoun", "6", "0"] in rows
    assert ["谁", "who", "2", "50.0%"] in rows and ["2", "2", "100.0%"] in rows


def test_bad_lines_are_named(tmp_path):
    path = tmp_path / "bad.jsonl"
    path.write_text('{"question": "q", "answer": "a"}\n{"question": 3}\n')
    with pytest.raises(UserError, match=r"bad\.jsonl, line 2: field `answer`"):
        collect_statistics(path)


# -- the picture -----------------------------------------------------------------------------------


def bars(figure):
    """gid → (heights or lengths, labels) of each panel."""
    found = {}
    for axes in figure.axes:
        for container in axes.containers:
            gid = container[0].get_gid()
            sizes = [b.get_width() if gid == "rules" else b.get_height() for b in container]
            found[gid] = sizes, [text.get_text() for text in axes.get_yticklabels()]
    return found


def test_the_picture_shows_the_counts():
    lengths, rules = {8: 2, 10: 2}, [("pronoun", 6), ("short", 1)]
    figure, notes = pairs_figure("made.jsonl", lengths, {5: 3, 6: 1}, {2: 2}, rules)
    found = bars(figure)
    assert set(found) == {"questions", "answers", "per_entry", "rules"} and notes == []
    assert found["questions"][0][8:] == [2, 0, 2] and sum(found["answers"][0]) == 4
    assert found["per_entry"][0] == [2] and found["rules"] == ([6, 1], ["pronoun", "short"])
    assert figure.get_suptitle() == "made.jsonl: 4 pairs"


def test_a_panel_without_data_is_left_out():
    assert set(bars(pairs_figure("a.jsonl", {8: 1}, {5: 1}, {})[0])) == {"questions", "answers"}


def test_a_few_long_answers_do_not_squeeze_the_others():
    answers = {5: 600, 9: 399, 3000: 1}
    heights = bars(pairs_figure("a.jsonl", {8: 1000}, answers, {})[0])["answers"][0]
    assert len(heights) == 10 and heights[5] == 600 and heights[9] == 400


# -- the script ------------------------------------------------------------------------------------


def test_the_script(written, source, tmp_path):
    code, out, err = run_here("sft/sft_report.py", written, f"--input={source}")
    assert (code, err) == (0, "")
    assert "with pairs 2 (66.7%)" in out and f"wrote {tmp_path / 'made.png'}" in out
    assert (tmp_path / "made.png").read_bytes().startswith(b"\x89PNG")
    code, out, _ = run_here("sft/sft_report.py", written, f"--png={tmp_path / 'a' / 'b.svg'}")
    assert code == 0 and (tmp_path / "a" / "b.svg").read_text(encoding="utf-8").startswith("<?xml")


def test_several_files_side_by_side(written, pairs, tmp_path):
    """What generators wrote about the same texts; each figure by hand."""
    loops = [dict(question="黄河有多长？", answer="很长很长很长很长。", id="1"), *[]]
    write_jsonl(tmp_path / "loops.jsonl", loops)
    code, out, err = run_here("sft/sft_report.py", written, pairs, tmp_path / "loops.jsonl")
    assert (code, err) == (0, "") and not list(tmp_path.glob("*.png"))
    rows = {line[:42].strip(): line[42:].split() for line in out.splitlines()}
    assert rows["pairs"] == ["4", "5", "1"] and rows["written by"] == ["qwen", "unknown", "unknown"]
    assert rows["pairs of an entry"] == ["2.00", "2.00", "1.00"]
    assert rows["duplicates, exact"] == ["0.0%", "20.0%", "0.0%"]
    assert rows["entries rejected"] == ["33.3%", "-", "-"]
    assert rows["in an earlier file"] == ["0.0%", "0.0%", "100.0%"]
    # 很长很长很长很长: five 4-grams, two of them different.
    assert rows["repeated 4-grams in an answer"] == ["0.0%", "0.0%", "60.0%"]
    assert "pronoun (6)" in out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "no file given"),
        (["a.jsonl", "b.jsonl", "--png=a.png"], "a picture shows one file, and 2 are given"),
        (["a.jsonl", "b.jsonl"], "a.jsonl: no such file"),
        (["none.jsonl"], "none.jsonl: no such file"),
        (["none.jsonl", "--png=a.gif"], "ends in .png or .svg"),
        (["none.jsonl", "--pgn=a.png"], "did you mean png?"),
    ],
)
def test_mistakes(words, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code, out, err = run_here("sft/sft_report.py", *words)
    assert (code, out) == (2, "") and message in err and err.count("\n") == 1


def test_an_empty_file(tmp_path):
    path = tmp_path / "pairs.jsonl"
    path.write_text("")
    code, _, err = run_here("sft/sft_report.py", path)
    assert code == 2 and "no pairs in it yet" in err


def test_the_sample(root, tmp_path):
    lines = (root / "sft/sft_saves.jsonl").read_text(encoding="utf-8").splitlines()
    questions = [json.loads(line)["question"] for line in lines]
    statistics = collect_statistics(root / "sft/sft_saves.jsonl")
    assert statistics.pairs == len(lines) and statistics.kinds.total() == len(lines)
    assert statistics.openings.most_common(1)[0][1] >= max(map(questions.count, questions))
