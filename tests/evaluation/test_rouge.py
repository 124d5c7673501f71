"""Rouge-L against hand-worked longest common subsequences."""

import json
import subprocess
import sys
from unittest import mock

import jieba
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from minigpt.evaluation.rouge import bootstrap_mean, characters, rouge_l, score, summary, words


@pytest.mark.parametrize(
    ("prediction", "reference", "common"),
    [
        ("abcd", "abcd", 4),
        ("abcd", "acbd", 3),  # abd or acd
        ("xaybzc", "abc", 3),
        ("abc", "cba", 1),
        ("aab", "aaab", 3),  # a repeated token counts as often as both contain it
        ("abc", "xyz", 0),
        ("黄河很长。是吗？", "黄河长。是。", 5),  # 黄河长。是: a sentence's end is a token too
    ],
)
def test_rouge_l_is_the_f1_of_the_longest_common_subsequence(prediction, reference, common):
    precision, recall = common / len(prediction), common / len(reference)
    expected = 2 * precision * recall / (precision + recall) if common else 0
    assert rouge_l(list(prediction), list(reference)) == pytest.approx(expected, abs=1e-6)


@settings(deadline=None)
@given(*[st.lists(st.sampled_from("黄河长江"), min_size=1, max_size=40)] * 2)
def test_long_texts_are_scored_as_short_ones(prediction, reference):
    with mock.patch("minigpt.evaluation.rouge.MOST_CELLS", 0):
        ours = rouge_l(prediction, reference)
    assert ours == pytest.approx(rouge_l(prediction, reference), abs=1e-9)


def test_words_and_characters_leave_blanks_out():
    assert words("黄河 发源于\u3000青海省。\n") == ["黄河", "发源", "于", "青海省", "。"]
    assert characters(" 黄 河\u3000\n") == ["黄", "河"]


def test_words_are_those_of_jieba(tmp_path):
    cutter = jieba.Tokenizer()
    cutter.tmp_dir = str(tmp_path)  # for its cache
    text = "《战国无双3》是由光荣和ω-force开发的战国无双系列的正统第三续作，3.14……"
    assert words(text) == [word for word in cutter.lcut(text) if word.strip()]


@pytest.mark.parametrize("blank", ["", " ", "\n\u3000"])
def test_what_is_empty_counts_as_nothing(blank):
    nothing = dict(rouge_l_words=0.0, rouge_l_chars=0.0, exact=False)
    assert score(blank, "黄河") == score("黄河", blank) == score(blank, blank) == nothing


@pytest.mark.parametrize("marks", ["。", "，，，。", "（）", "……", "!?", "《 》\n", "★ →", "🙂。"])
def test_punctuation_alone_is_no_answer(marks):
    assert score(marks, "黄河，长江。（★！）…… →?!《》🙂")["rouge_l_chars"] == 0
    assert score(marks, marks)["rouge_l_chars"] == pytest.approx(1)  # a reference of marks alone
    assert score(marks + "河", "河，" + marks)["rouge_l_chars"] > 0.3


def test_score_by_hand():
    # words: 黄河 发源 于 青海省 / 黄河 在 青海省: 2 in common of 4 and 3; characters: 5 of 8 and 6
    found = score("黄河发源于青海省", "黄河在青海省")
    assert found["rouge_l_words"] == pytest.approx(2 * 2 / (4 + 3), abs=1e-6)
    assert found["rouge_l_chars"] == pytest.approx(2 * 5 / (8 + 6), abs=1e-6)
    assert not found["exact"]
    assert score(" 黄河\n", "黄河")["exact"]


@settings(deadline=None)
@given(st.text(max_size=30), st.text(max_size=30))
def test_any_text_is_scored_and_text_that_says_the_same_scores_one(prediction, reference):
    found = score(prediction, reference)
    assert 0 <= found["rouge_l_words"] <= 1 and 0 <= found["rouge_l_chars"] <= 1
    same = score(reference, reference)
    full = pytest.approx(1 if reference.strip() else 0, abs=1e-6)
    assert same["rouge_l_chars"] == full and same["rouge_l_words"] == full


def test_bootstrap_of_constant_data_has_no_width():
    assert list(bootstrap_mean([0.25] * 30).values()) == [0.25, 0.25, 0.25]


def test_bootstrap_interval_of_a_coin():
    # The mean of n fair coins spreads by 0.5 / sqrt(n); 95 % lie within 1.96 of that.
    found = bootstrap_mean([0, 1] * 200, seed=3)
    assert found["mean"] == 0.5
    assert found["high"] - 0.5 == pytest.approx(1.96 * 0.5 / 20, rel=0.15)
    assert 0.5 - found["low"] == pytest.approx(1.96 * 0.5 / 20, rel=0.15)
    assert found == bootstrap_mean([0, 1] * 200, seed=3) != bootstrap_mean([0, 1] * 200, seed=4)


def test_summary_by_hand():
    rows = [
        dict(prediction="黄河", reference="黄河", **score("黄河", "黄河")),
        dict(prediction="", reference="长江是河", **score("", "长江是河")),
    ]
    found = summary(rows)
    assert (found["count"], found["exact_match"]) == (2, 0.5)
    assert found["length_ratio"] == pytest.approx(2 / 6)
    assert found["rouge_l_chars"]["mean"] == pytest.approx(0.5)


def test_jieba_says_nothing_and_needs_no_temporary_folder():
    code = """
import json, tempfile
def refuse(*args, **kwargs): raise FileNotFoundError("no temporary folder")
tempfile.gettempdir = tempfile.mkstemp = refuse
from minigpt.evaluation.rouge import words
print(json.dumps(words("黄河很长")))
"""
    command = [sys.executable, "-W", "default::UserWarning", "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, encoding="utf-8")
    assert (done.returncode, done.stderr) == (0, "")
    assert json.loads(done.stdout) == ["黄河", "很长"]
