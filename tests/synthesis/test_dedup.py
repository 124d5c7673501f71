"""Deduplicator: estimates against the Jaccard similarity itself, computed here from the sets."""

import os
import random
import subprocess
import sys

import pytest
from conftest import ROOT
from hypothesis import given
from hypothesis import strategies as st

from minigpt.common.errors import UserError
from minigpt.evaluation.examples import read_pairs
from minigpt.synthesis.dedup import Deduplicator, comparable

HAN = "".join(map(chr, range(0x4E00, 0x4E00 + 500)))


def similarity(*texts):
    """Jaccard, of sets of four characters in a row."""
    one, other = ({text[i : i + 4] for i in range(len(text) - 3)} for text in texts)
    return len(one & other) / len(one | other)


@pytest.mark.parametrize(
    ("text", "other"),
    [
        *(("黄河 有多长？", "黄河有多长?"), ("ＡＢＣ，１", "abc1"), ("《论语》——是", "论语是")),
        *(("\u200b甲\n乙\x00", "甲乙"), ("Straße", "STRASSE"), ("", "。，！")),
    ],
)
def test_bare_is_the_same(text, other):
    assert comparable(text) == comparable(other)


@pytest.mark.parametrize(
    ("text", "other"), [("C#", "C"), ("C++", "C"), ("A&B", "AB"), ("50%", "50"), ("甲", "乙")]
)
def test_bare_is_another(text, other):
    assert comparable(text) != comparable(other)


def test_exact_whatever_the_answer():
    doubles = Deduplicator()
    assert doubles.add("黄河有多长？", "黄河全长约5464千米。") is None
    assert doubles.add(" 黄河，有多长?", "不知道。") == "exact"
    assert doubles.add("长江有多长？", "长江全长约6300千米。") is None
    assert doubles.add("长江有多长", "") == "exact"


def test_near():
    doubles = Deduplicator()
    answer = (
        "黄河发源于青藏高原的巴颜喀拉山脉，流经青海、四川、甘肃、宁夏、内蒙古、陕西、山西、河南和"
        "山东九个省区，注入渤海，全长约五千四百六十四千米，是中国第二长的河流。"
    )
    assert doubles.add("黄河流经哪里？", answer) is None
    assert doubles.add("黄河流过哪里？", answer) == "near"
    assert doubles.add("黄河流经何处？", answer.replace("，", "")) == "near"
    # What was a double is not remembered, so that likeness does not spread from one to the next.
    assert doubles.add("黄河流过哪里？", "九个省区。") is None


def test_few_characters():
    doubles = Deduplicator()
    assert doubles.add("？", "") is None and doubles.add("？", "甲") == "exact"
    assert doubles.add("！", "") == "near"  # nothing is left of either
    assert doubles.add("甲", "乙") is None and doubles.add("乙", "丙") is None
    assert doubles.add("甲乙", "") == "near"


@pytest.mark.parametrize(
    ("changed", "low", "high"), [(0, 1, 1), (1, 0.95, 1), (2, 0.8, 0.95), (6, 0, 0.05), (20, 0, 0)]
)
def test_the_threshold_between(changed, low, high):
    """200 pairs of 120 characters, `changed` of which differ."""
    generator, found = random.Random(changed), []
    for _ in range(200):
        text = generator.choices(HAN, k=120)
        other = list(text)
        for i in generator.sample(range(30, 120), changed):
            other[i] = "新"
        doubles = Deduplicator()
        doubles.add("甲" + "".join(text[:30]), "".join(text[30:]))
        found.append(doubles.add("乙" + "".join(other[:30]), "".join(other[30:])) == "near")
        exact = similarity("甲" + "".join(text), "乙" + "".join(other))
        assert exact > 0.85 if changed <= 2 else exact < 0.75
    assert low <= sum(found) / 200 <= high


@given(st.integers(0, 2**32), st.floats(0.2, 0.95))
def test_estimates_are_near_the_similarity(seed, share):
    """An estimate from 64 values errs by 0.06 on average at most: five of these are never seen."""
    generator, doubles = random.Random(seed), Deduplicator()
    common = "".join(generator.choices(HAN, k=300))
    texts = [common[: int(300 * share)] + "".join(generator.choices(HAN, k=40)) for _ in range(2)]
    one, other = (doubles._sketch(text) for text in texts)
    assert (one == other).mean() == pytest.approx(similarity(*texts), abs=0.3)


def test_the_threshold_is_a_knob():
    answer = "黄河发源于青藏高原的巴颜喀拉山脉，流经九个省区。"
    for threshold, expected in ((0.5, "near"), (0.95, None)):
        doubles = Deduplicator(threshold)
        doubles.add("黄河流经哪里？", answer)
        assert doubles.add("黄河流过何处？", answer) == expected


def test_the_same_in_every_process():
    """Python's own hashes differ from process to process."""
    code = (
        "import random, sys; sys.path.insert(0, '.')\n"
        "from minigpt.synthesis.dedup import Deduplicator\n"
        "draw, doubles = random.Random(0), Deduplicator(0.5)\n"
        "text = ''.join(draw.choices('甲乙丙丁', k=900))\n"
        "starts = [draw.randrange(860) for _ in range(300)]\n"
        "print([doubles.add(text[i:i + 12], text[i + 12:i + 40]) for i in starts])"
    )
    outputs = [
        subprocess.run(
            [sys.executable, "-c", code],
            cwd=ROOT,
            env={**os.environ, "PYTHONHASHSEED": seed},
            capture_output=True,
            check=True,
        ).stdout
        for seed in ("1", "2")
    ]
    assert outputs[0] == outputs[1] and all(
        word in outputs[0] for word in (b"None", b"exact", b"near")
    )


@given(st.lists(st.tuples(st.text(max_size=20), st.text(max_size=20)), max_size=5))
def test_what_was_added_is_a_double(pairs):
    doubles = Deduplicator()
    for pair in pairs:
        doubles.add(*pair)
    assert all(doubles.add(*pair) for pair in pairs)


def test_half_characters():
    doubles = Deduplicator()
    assert doubles.add("甲\ud800？", "乙") is None and doubles.add("甲\ud800？", "乙") == "exact"


def test_our_own_pairs_are_different(root):
    doubles = Deduplicator()
    pairs = read_pairs(root / "sft" / "sft_saves.jsonl")
    found = [doubles.add(question, answer) for _, question, answer in pairs]
    assert len(pairs) == 959 and not any(found)
    assert all(doubles.add(question, answer) == "exact" for _, question, answer in pairs)


def test_without_datasketch(monkeypatch):
    monkeypatch.setitem(sys.modules, "datasketch", None)
    with pytest.raises(UserError, match="pip install datasketch"):
        Deduplicator()
