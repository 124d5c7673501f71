"""Rewards: each function by hand, expressions, files of the user's own, sums that are made."""

import random
import re
from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from minigpt.common.errors import UserError
from minigpt.rewards.expression import load_reward, parse
from minigpt.rewards.functions import REWARDS
from minigpt.rewards.made import make_sums


def worth(name, said, /, **record):
    return REWARDS[name]("问？", said, {"prompt": "问？"} | record)


# -- functions -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "answer, reference, value",
    [
        ("495", "495", 1),
        (" 495\n", "495 ", 1),
        ("496", "495", 0),
        ("", "495", 0),
        ("4 95", "495", 0),
    ],
)
def test_exact(answer, reference, value):
    assert worth("exact", answer, answer=reference) == value


@pytest.mark.parametrize(
    "answer, reference, value",
    [
        ("一共是 1,024 个。", "1024", 1),
        ("1024.0", "1024", 1),
        ("0.50", "0.5", 1),
        ("-7", "7", 0),
        ("−7", "-7", 1),
        ("3-10=-7", "-7", 1),
        ("2024-12", "12", 1),
        ("先 3 后 4", "4", 1),
        ("先 4 后 3", "4", 0),
        ("０４", "4", 1),
        ("-0", "0", 1),
        ("没有", "4", 0),
        ("4", "没有", 0),
        ("9" * 9000, "1", 0),
    ],
)
def test_number(answer, reference, value):
    assert worth("number", answer, answer=reference) == value


@given(st.decimals(-(10**9), 10**9, places=3), st.text("甲乙 =，", max_size=5))
def test_a_number_is_found_in_any_spelling(number, before):
    for spelled in (f"{number}", f"{number:,}", f"{number.normalize():f}"):
        assert worth("number", f"{before} {spelled}", answer=str(number)) == 1
    assert worth("number", str(number + Decimal("0.001")), answer=str(number)) == 0


def test_rouge_is_the_projects_own():
    assert worth("rouge", "黄河很长", answer="黄河很长") == pytest.approx(1)
    assert worth("rouge", "长江", answer="黄河") == 0
    assert worth("rouge", "黄河", answer="黄河很长") == pytest.approx(2 / 3, abs=1e-3)


def test_pattern():
    assert worth("pattern", " 是。\n", pattern="[是否]。") == 1
    assert worth("pattern", "是。是。", pattern="[是否]。") == 0
    with pytest.raises(UserError, match=r"reward pattern: \[是: no regular expression"):
        worth("pattern", "是", pattern="[是")


def test_length():
    assert [worth("length", "字" * n, length=10) for n in (10, 5, 20, 0)] == [1, 0.5, 0.5, 0]
    assert worth("length", "四个汉字", answer="两个") == 0.5
    assert worth("length", "", length=0) == 1


def test_repetition():
    assert worth("repetition", "春江花月夜") == 1
    assert worth("repetition", "花" * 103) == pytest.approx(0.01)


POEM = "春风吹晓水，玉树满山烟。\n江上花如雪，楼前月在天。"


def test_rhyme_counts_only_in_the_form_that_was_asked():
    asked = dict(lines=4, characters=5)
    assert worth("rhyme", POEM, **asked) == worth("rhyme", POEM) == 1
    assert worth("rhyme", POEM + "\n春风吹晓水，玉树满山边。", **asked) == 0
    assert worth("rhyme", POEM[7:], given=POEM[:7], **asked) == 1
    assert worth("rhyme", POEM.replace("天", "烟"), **asked) == 0  # a repeated character


def test_a_rhyme_is_credited_to_the_ends_of_even_lines():
    score = load_reward("form+2*rhyme")("问", POEM, {"lines": 4, "characters": 5})
    assert score.total == 3 and set(score.places) == {"rhyme"}
    value, places = score.places["rhyme"]
    assert value == 2 and [POEM[at] for at in places] == ["烟", "天"]
    given = {"given": POEM[:6], "lines": 4, "characters": 5}
    _, places = load_reward("rhyme")("问", POEM[6:], given).places["rhyme"]
    assert [POEM[6:][at] for at in places] == ["烟", "天"]
    assert load_reward("form")("问", POEM, given).places == {}


@pytest.mark.parametrize("name", ["exact", "number", "rouge", "pattern", "length"])
def test_a_missing_field_is_named_with_the_remedy(name):
    with pytest.raises(UserError) as caught:
        worth(name, "答")
    text = str(caught.value)
    assert text.startswith(f"reward {name}: the field `") and "is missing, expected a" in text
    assert "the prompt: 问？" in text and "data/prepare_prompts.py" in text
    field = re.search("`(.*?)`", text)[1]
    with pytest.raises(UserError, match="expected a"):
        worth(name, "答", **{field: ["list"]})


# -- expressions -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text, terms",
    [
        ("exact", [(1, "exact")]),
        ("exact+0.5*rouge", [(1, "exact"), (0.5, "rouge")]),
        (" 2 * exact - .25*length + number ", [(2, "exact"), (-0.25, "length"), (1, "number")]),
        ("-repetition", [(-1, "repetition")]),
    ],
)
def test_an_expression_is_a_weighted_sum(text, terms):
    assert parse(text, REWARDS) == terms


@pytest.mark.parametrize(
    "text",
    ["", "exact rouge", "exact+", "exact**2", "exact*2", "(exact)", "exact+exact", "nothing", "+"]
    + ["__import__('os')", "1e3*exact", "exact;number", "2"],
)
def test_what_is_no_expression_is_one_line(text):
    with pytest.raises(UserError) as caught:
        parse(text, REWARDS)
    assert str(caught.value).startswith(f"--reward={text}") and "\n" not in str(caught.value)


def test_a_score_has_the_parts_before_their_weights():
    reward = load_reward("exact+0.5*length")
    score = reward("问", "12", {"answer": "1234", "prompt": "问"})
    assert score.total == 0.25 and score.parts == {"exact": 0.0, "length": 0.5}
    assert reward.scores([("问", "12", {"answer": "12", "prompt": "问"})] * 2)[1].total == 1.5


def own(tmp_path, text):
    path = tmp_path / "own.py"
    path.write_text(text, encoding="utf-8")
    return load_reward(str(path))


def test_a_file_of_the_users_own(tmp_path):
    reward = own(tmp_path, "def reward(prompt, answer, record):\n    return len(answer)\n")
    assert reward("问", "四个汉字", {}) == (4.0, {"own": 4.0})
    reward = own(
        tmp_path,
        "def reward(prompt, answer, record):\n"
        "    return {'right': answer == record['x'], 'asked': 0.5}\n",
    )
    assert reward("问", "a", {"x": "a"}) == (1.5, {"right": 1.0, "asked": 0.5})


@pytest.mark.parametrize(
    "body, message",
    [
        ("return 1 / 0", "ZeroDivisionError: division by zero (own.py:2)"),
        ("return None", "returned None: expected a number, or a dict of them"),
        ("return float('nan')", "nan: expected a number"),
        ("return 'good'", "returned 'good': expected a number"),
        ("return {'a': []}", "returned []: expected a number"),
        ("raise ValueError('two\\nlines')", "ValueError: two lines (own.py:2)"),
    ],
)
def test_what_a_function_does_wrong_is_one_line(tmp_path, body, message):
    reward = own(tmp_path, f"def reward(prompt, answer, record):\n    {body}\n")
    with pytest.raises(UserError) as caught:
        reward("黄河？", "五千\n公里", {})
    text = str(caught.value)
    assert text.startswith(f"reward own: {message}") and "\n" not in text
    assert text.endswith("the prompt: 黄河？; the answer: 五千 公里")


@pytest.mark.parametrize(
    "text, message",
    [
        ("x = 1\n", "has no function reward(prompt, answer, record)"),
        ("def reward(:\n", "SyntaxError"),
        ("import nowhere\n", "No module named 'nowhere'"),
        ("exit(3)\n", "SystemExit: 3"),
    ],
)
def test_a_file_without_a_reward_is_one_line(tmp_path, text, message):
    with pytest.raises(UserError) as caught:
        own(tmp_path, text)
    assert message in str(caught.value) and "\n" not in str(caught.value)


# -- sums ------------------------------------------------------------------------------------------


def test_sums_are_different_and_right():
    records = make_sums(500, seed=3)
    assert len({record["prompt"] for record in records}) == 500 and records == make_sums(500, 3)
    sizes = set()
    for record in random.Random(1).sample(records, 100):
        a, b = map(int, record["prompt"].removesuffix("=").split("+"))
        assert int(record["answer"]) == a + b and record["id"] == f"{a}+{b}"
        sizes.add((len(str(a)), len(str(b))))
    assert sizes == {(2, 2), (2, 3), (3, 2), (3, 3)}
