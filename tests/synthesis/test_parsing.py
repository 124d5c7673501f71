"""Replies: every shape that models give, by hand; what JSON writes comes back, cut anywhere."""

import json
import time

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from minigpt.synthesis.parsing import (
    LONGEST,
    QA,
    REPAIRED,
    REPAIRED_IN_ALL,
    breaks_off,
    parse_reply,
)

TWO = [QA("黄河有多长？", "5464千米。"), QA("长江有多长？", "6300千米。")]
OBJECTS = [pair._asdict() for pair in TWO]
LIST = json.dumps(OBJECTS, ensure_ascii=False)
LINES = "\n".join(json.dumps(one, ensure_ascii=False) for one in OBJECTS)
FULL_WIDTH = (
    "[{“question”：“黄河有多长？”，“answer”：“5464千米。”}，"
    "\n {“question”：“长江有多长？”，“answer”：“6300千米。”}]"
)


@pytest.mark.parametrize(
    "text",
    [
        LIST,
        json.dumps(OBJECTS, indent=2),
        json.dumps({"pairs": OBJECTS}),
        json.dumps({"n": 2, "数据": {"list": OBJECTS}}),
        json.dumps({"1": OBJECTS[0], "2": OBJECTS[1]}),
        LINES,
        LINES.replace("\n", "\r\n\r\n"),
        LINES.replace("\n", ""),
        LIST.replace("}, {", "}; {"),
        f"```json\n{LIST}\n```",
        f"```\n{LINES}\n```",
        f"好的，以下是 2 组问答 [1]：\n{LIST}\n希望对您有帮助 {{^_^}}！",
        f"事实：{{黄河：长}}\n{LINES}",
        FULL_WIDTH,
        FULL_WIDTH.replace("“", "”"),
        FULL_WIDTH.replace("：", ":").replace("，", ", "),
        LIST.replace(":", "：").replace(",", "，"),
        LIST.replace('"', "'"),
        LIST.replace('"question"', "question").replace('"answer"', "answer"),
        LIST.replace("}", ",}").replace("]", ",]"),
        LIST.replace('？",', '？"'),
        LIST.replace("}, {", "} {"),
        LIST.replace("question", "问题").replace("answer", "答案"),
        LIST.replace("question", "Question").replace("answer", " ANSWER "),
        LIST.replace("question", "q").replace("answer", "a"),
        LIST.replace('"question"', '"id": 7, "question"'),
        FULL_WIDTH.replace("“question”", "“id”：7，“question”"),
        f'<think>也许 {{"question": "a", "answer": "b"}}？</think>\n{LIST}',
        f'也许 {{"question": "a", "answer": "b"}}？\n</think>\n{LIST}',
        f"\ufeff\n{LIST}",
        LIST.replace("？", "？ ").replace("。", "。\n"),
    ],
)
@pytest.mark.parametrize("cut", [False, True])
def test_every_shape(text, cut):
    """Whole objects all of them, so `cut` takes none."""
    assert parse_reply(text, cut) == TWO


@pytest.mark.parametrize(
    ("text", "question", "answer"),
    [
        (
            '{"question": "何为"道"？", "answer": "道是"万物"，也是"无"。"}',
            *('何为"道"？', '道是"万物"，也是"无"。'),
        ),
        ('{"question": "他说？", "answer": "他说："好。""}', "他说？", '他说："好。"'),
        ('{"question": "谁写"道"？", "answer": ""老子"写"}', '谁写"道"？', '"老子"写'),
        ("{“question”：“何为“道”？”，“answer”：“是“无”。”}", "何为“道”？", "是“无”。"),
        ("{“问”：“甲，“乙”：丙？”，“答”：“丁，戊”，}", "甲，“乙”：丙？", "丁，戊"),
        ('{"question": "a？", "answer": "他说“好”"}', "a？", "他说“好”"),
        ('{"question": "a？", "answer": "b\nc\td"}', "a？", "b\nc\td"),
        ('{"question": "a？", "answer": "\\( x \\)"}', "a？", "\\( x \\)"),
        ('{"question": "a？", "answer": "甲{乙}"} 完 {丙}', "a？", "甲{乙}"),
        ('[{"question": "a？", "answer": "b",}]} 完', "a？", "b"),
    ],
)
def test_quotes_within_quotes(text, question, answer):
    assert parse_reply(text) == parse_reply(text, True) == [QA(question, answer)]


@pytest.mark.parametrize("text", ["", "没有。", "[]", "{}", "[[[", '"', '{"question": "a"}'])
def test_where_nothing_can_be_read(text):
    assert parse_reply(text) == []


@pytest.mark.parametrize(
    ("value", "read"),
    [
        ('"b"', "b"),
        ("3.10", "3.10"),
        ("-7", "-7"),
        ("1" * 5000, "1" * 5000),
        ('""', ""),
        *((value, None) for value in ("null", "true", "NaN", "[1]", '{"b": "c"}')),
    ],
)
def test_values_that_are_no_strings(value, read):
    others = '{"question": "c", "answer": "d"}'
    text = f'[{others}, {{"question": "a", "answer": {value}}}, {others}]'
    assert [answer for _, answer in parse_reply(text)] == ["d", *([read] * (read is not None)), "d"]


def test_a_mistake_in_one_object_costs_no_other():
    good = '{"question": "a", "answer": "b"}'
    text = (
        f'[{good}, {{"question": "x": "y" oops, {good}, {{"question": 1, "answer": {{}}}}, {good}'
    )
    assert parse_reply(text).count(QA("a", "b")) == 3


# -- cut -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "whole",
    [LIST, LINES, FULL_WIDTH, json.dumps({"pairs": OBJECTS}), LIST.replace("有多长", '有"多"长')],
)
def test_cut_the_last_object_is_dropped_before_any_repair(whole):
    pairs = parse_reply(whole)
    assert len(pairs) == 2
    ends = [i for i, character in enumerate(whole, 1) if character == "}"][:2]
    for i in range(len(whole) + 1):
        expected = sum(end <= i for end in ends)
        assert parse_reply(whole[:i], cut=True) == pairs[:expected], whole[:i]
        # Without the server's word that it was cut: half an answer is none, either.
        found = parse_reply(whole[:i])
        assert found == pairs[: len(found)] and len(found) >= expected, whole[:i]
    assert not breaks_off(whole) and breaks_off(whole[: ends[1] - 4])


def test_cut_within_a_string_that_shows_an_object():
    text = '{"question": "怎么写？", "answer": "写{“question”：“x”，“answer”：“y”}，再'
    assert parse_reply(text, cut=True) == parse_reply(text) == []


def test_cut_while_it_was_thinking():
    assert parse_reply(f"<think>{LIST}", cut=True) == []


def test_only_so_much_is_repaired():
    def broken(n):
        text = '{"question": "a", "answer": "b"c"}'
        return text.replace("c", "c" * (n - len(text) + 1))

    assert len(parse_reply(broken(REPAIRED))) == 1 and parse_reply(broken(REPAIRED + 1)) == []
    times = REPAIRED_IN_ALL // REPAIRED
    assert len(parse_reply(broken(REPAIRED) * (times + 1))) == times
    assert len(parse_reply(broken(REPAIRED) * (times + 1) + LINES)) == times + 2


def test_longer_than_what_is_read():
    last = '{"question": "z", "answer": "' + "z" * LONGEST
    assert parse_reply(LINES + last) == TWO


# -- properties ------------------------------------------------------------------------------------

texts = st.text(max_size=30) | st.text('"\\{}[],:“”：，\n answerquestion1', max_size=30)
pairs_lists = st.lists(st.builds(lambda q, a: QA(q.strip(), a.strip()), texts, texts), max_size=5)


def written(pairs, shape, **dumps):
    objects = [pair._asdict() for pair in pairs]
    if shape == "lines":
        return "\n".join(json.dumps(one, **dumps) for one in objects)
    return json.dumps(objects if shape == "list" else {"pairs": objects}, **dumps)


shapes = st.sampled_from(["list", "object", "lines"])


@given(pairs_lists, shapes, st.booleans(), st.sampled_from([None, 1]))
def test_what_json_wrote_comes_back(pairs, shape, is_ascii, indent):
    text = written(pairs, shape, ensure_ascii=is_ascii, indent=indent)
    assert parse_reply(text) == parse_reply(text, cut=True) == pairs


@given(pairs_lists, shapes, st.booleans(), st.data())
@example([QA("a", '"}')], "list", True, None)
@example([QA("a", '{"question": "b", "answer": "c"}]')], "object", True, None)
@example([QA("a", '"} 一')], "lines", True, None)
def test_cut_anywhere_gives_the_first_pairs(pairs, shape, is_ascii, data):
    whole = written(pairs, shape, ensure_ascii=is_ascii)
    for end in [data.draw(st.integers(0, len(whole)))] if data else range(len(whole)):
        found = parse_reply(whole[:end], cut=True)
        assert found == pairs[: len(found)]
        # As many as were whole: by the lengths that json itself writes.
        if shape == "lines":
            whole_ones = [written(pairs[: i + 1], shape, ensure_ascii=is_ascii) for i in range(5)]
            assert len(found) == sum(len(w) <= end for w in whole_ones[: len(pairs)])


@given(
    st.text() | texts | st.lists(st.sampled_from([*LIST, '{"q":', "```", "<think>"])).map("".join)
)
def test_it_never_raises(text):
    for cut in (False, True):
        assert all(isinstance(part, str) for pair in parse_reply(text, cut) for part in pair)


MILLION = 1_000_000


@pytest.mark.parametrize(
    "text",
    [
        *("[" * MILLION, '"' * MILLION, "{" * MILLION, "\0" * MILLION, "{" + " " * MILLION),
        *('{"a":' * 200_000, '[{"a":' * 200_000, '{"a":1' * 200_000, "{“a”：" * 200_000),
        ('{"a":' + '{"a"' * 900) * 300,
        ('{"a":' + "(" * 3500) * 300,
        ('{"a":"' + '",' * 1900) * 300,
        '{"a":' + "{'" * MILLION,
        "<think>" * 200_000,
    ],
)
def test_hostile_text_takes_no_time(text):
    began = time.monotonic()
    parse_reply(text), parse_reply(text, cut=True)
    assert time.monotonic() - began < 10  # it is a tenth of a second; a square of it would be hours
