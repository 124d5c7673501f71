"""Cleaning: every rule by its example, what must stay, and that clean text stays as it is."""

import json
import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from minigpt.data import cleaning
from minigpt.data.cleaning import (
    LIGHT,
    RULES,
    Change,
    Changes,
    clean,
    clean_all,
    clean_light,
    is_wiki,
)

examples = pytest.mark.parametrize("rule", RULES, ids=[rule.example for rule in RULES])
# Everything that rules look at, so that rules meet each other.
leftovers = st.text(
    alphabet="甲乙语aB1 \n\t\r（）()「」『』《》〈〉【】[]“”‘’{}-|;:<>/=&#"
    "，、；：。…！?zh\u200b\u3000\xa0𠮷",
    max_size=24,
) | st.lists(
    st.sampled_from(
        ["-{", "}-", "zh-hans:", "zh-cn:", "zh-hant:", ";", "|", "甲", "（", "）", "<br>", "&lt;"]
        + ["br>", "&amp;", "<!--", "-->", "<div class=a>", "</div>", "\n\n", " ", "end", "，"]
    ),
    max_size=12,
).map("".join)


@examples
def test_a_rule_does_what_its_example_says(rule):
    before, after = rule.example.split(" → ")
    assert clean(before) == after
    assert clean_all([before], [""]) == [after]


@examples
def test_a_rule_is_needed_for_its_example(rule, monkeypatch):
    before, after = rule.example.split(" → ")
    others = [s for s, r in zip(cleaning._STEPS, RULES, strict=True) if r is not rule]
    monkeypatch.setattr(cleaning, "_STEPS", others)
    assert clean(before) != after


@pytest.mark.parametrize(
    "leftover",
    [
        "（）",
        "()",
        "「」",
        "（；）",
        "（，）",
        "《》",
        "“”",
        "-{}-",
        "<div>",
        "</div>",
        "<br/>",
        "\n",
    ]
    + [
        "（ ）",
        "（、；）",
        "( , )",
        "「 」",
        "（《》）",
        "（（））",
        "\u200b",
        "\ufeff",
        "<span class='a'>",
    ]
    + [
        "\r\n",
        "\n\n",
        "（；\u200b）",
        "<!-- 注 -->",
        "-{（）}-",
        "（<br>）",
        "&lt;br&gt;",
        "『』",
        "\u2028",
    ],
)
def test_leftovers_vanish(leftover):
    assert clean(f"甲{leftover}乙") == "甲乙"
    assert clean_all([f"甲{leftover}乙"], [""]) == ["甲乙"]


@pytest.mark.parametrize(
    "text",
    [
        "“……”他不说话。",
        "她问：「？！」",
        "书名《论语》（孔子）和(b)。",
        "vector<int> a; if (a<b and c>d) return;",
        "标记“<cls>”和“<pad>”",
        "x{i} [1] 3 > 2 & 1 < 2",
        "to be or not to be",
        "一家人👨👩𠮷",
        "第（一）章：开始；结束。",
    ],
)
def test_text_stays(text):
    assert clean(text) == text


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("-{zh-hans:甲;zh-hant:乙}-", "甲"),
        ("-{zh-hant:乙;zh-hans:甲}-", "甲"),
        ("-{zh-hk:丙; zh-tw:乙; zh-cn:甲;}-", "甲"),
        ("-{zh-cn:丁;zh-hans:甲}-", "甲"),
        ("-{zh-sg:甲;zh-tw:乙}-", "甲"),
        ("-{zh-tw:乙;zh-hk:丙}-", "乙"),
        ("-{赫舍里氏}-", "赫舍里氏"),
        ("-{A|zh-hans:甲;zh-hant:乙}-", "甲"),
        ("-{T|zh-hans:甲;zh-hant:乙}-文", "文"),
        ("-{H|甲=>zh-tw:乙}-文", "文"),
        ("-{甲=>zh-cn:丁;甲=>zh-tw:乙}-", "丁"),
        ("-{zh-hans:-{甲}-二;zh-hant:-{zh-hans:丙;zh-hant:丁}-二}-", "甲二"),
        ("-{zh-hans:http://甲;zh-hant:乙}-", "http://甲"),
        ("比-{10:3}-大", "比10:3大"),
    ],
)
def test_conversion_marks_resolve_to_the_simplified_form(before, after):
    assert clean(before) == after


@pytest.mark.parametrize(
    ("text", "title", "after"),
    [
        ("题\n\n文。", "题", "文。"),
        ("题 \r\n\r\n文。", "题", "文。"),
        ("题\n文。", "题", "题文。"),  # no blank line: the text's own first line
        ("题\n文。\n文。", "题", "题文。文。"),
        ("题\n", "题", "题"),
        ("题二\n\n文。", "题", "题二文。"),
        ("文。\n\n题\n\n文。", "题", "文。题文。"),
        ("题\n\n文。", "", "题文。"),
        ("题\n\n题\n\n文。", "题", "题文。"),  # only the first
        ("题\n\n", "题", ""),
    ],
)
def test_the_title_line(text, title, after):
    assert clean(text, title) == after
    assert clean_all([text, "甲"], [title, "题"]) == [after, "甲"]


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("甲\n乙", "甲乙"),
        ("one\ntwo", "one two"),
        ("one,\n two", "one, two"),
        ("été\nétat", "été état"),
        ("one\n乙", "one乙"),
        ("甲\ntwo", "甲two"),
        ("one<br>two", "one two"),
        ("　　甲。\n\n　　乙。", "甲。乙。"),
        ("a  b　　c", "a b c"),
    ],
)
def test_line_breaks_and_blanks(before, after):
    assert clean(before) == after


@settings(deadline=None)
@given(leftovers)
def test_cleaning_what_is_clean_changes_nothing(text):
    assert clean(clean(text)) == clean(text)


@settings(deadline=None)
@given(
    st.lists(st.tuples(leftovers | st.text(max_size=9), st.sampled_from(["", "甲"])), max_size=6)
)
def test_many_at_once_is_each_alone(pairs):
    texts, titles = [text for text, _ in pairs], [title for _, title in pairs]
    assert clean_all(texts, titles) == [clean(*pair) for pair in pairs]


def test_many_texts_at_once_with_separators():
    assert clean_all(["甲\uffff（）乙", "丙（）"], ["", ""]) == ["甲\uffff乙", "丙"]


def test_hidden_characters_do_not_print():
    # The rules that need HIDDEN are only tried where a text has a character that does not print.
    hidden = f"[{cleaning.INVISIBLE}{cleaning.BREAK}\t\xa0\u3000]"
    found = re.findall(hidden, "".join(map(chr, range(2**16))))
    assert len(found) > 50 and not any(character.isprintable() for character in found)


@pytest.mark.parametrize(
    "piece", ["（", "-{", "<!--", "\n ", "，", "<b a=1 ", "&lt;", "{{", "（，"]
)
def test_long_runs_take_no_time(piece):
    clean(piece * 20_000)  # a pattern that tries every start to the end would take minutes


def test_real_wiki_text(shared_data):
    texts, titles = [], []
    for line in (shared_data / "wiki/cmrc2018.jsonl").read_text(encoding="utf-8").splitlines():
        record = json.loads(line)
        texts.append(record["text"])
        titles.append(record["title"])
    cleaned = clean_all(texts, titles)
    left = re.compile(
        r"（[，；、\s]*）|\(\s*\)|「」|《》|“”|-\{|</?(?:br|div|ref|nowiki)\b|[\n\u200b]"
    )
    assert sum(bool(left.search(text)) for text in texts) == len(texts)
    assert not any(left.search(text) for text in cleaned)
    assert not any(t.startswith(title + "\n") for t, title in zip(cleaned, titles, strict=True))
    assert sum(map(len, cleaned)) > 0.95 * sum(map(len, texts))


# -- light cleaning --------------------------------------------------------------------------------

light_examples = pytest.mark.parametrize("rule", LIGHT, ids=[rule.name for rule in LIGHT])


@light_examples
def test_a_light_rule_does_what_its_example_says(rule, monkeypatch):
    before, after = rule.example.split(" → ")
    assert clean_light(before) == after
    others = [s for s, r in zip(cleaning._LIGHT_STEPS, LIGHT, strict=True) if r is not rule]
    monkeypatch.setattr(cleaning, "_LIGHT_STEPS", others)
    assert clean_light(before) != after


@pytest.mark.parametrize(
    "text",
    [
        "床前明月光，\n疑是地上霜。\n\n    举头望明月，\n",
        "```cpp\nvector<b> x[] = {};\n\tif (a<b && c>d) f( );\n```\n",
        "黄河的长度是（  ）。（　　）‘，’“。”",
        "| 甲 | 乙 |\n|---|---|\n- [ ] 待办\n<think>\n\n</think>",
        "用 `&lt;` 和 `&nbsp;`；\n```html\n&amp;amp;\n```",
        "👨‍👩‍👧 ❤️ می‌خواهم  क्‍ष",
        "  两端的空白　",
    ],
)
def test_light_cleaning_changes_nothing_else(text):
    assert clean_light(text) == text


@settings(deadline=None)
@given(leftovers | st.text(max_size=9))
def test_light_cleaning_is_idempotent_and_leaves_no_control_character(text):
    once = clean_light(text)
    assert clean_light(once) == once
    assert not set(once) & set("\x00\x07\x1b\r\u200b\ufeff\u2028\x85\x0c")


# -- by the shape of the source --------------------------------------------------------------------


@pytest.mark.parametrize(
    ("record", "expected"),
    [
        ({"id": "1", "url": "", "title": "题", "text": "文。"}, True),
        ({"id": "1", "revid": "2", "url": "u", "title": "题", "text": "文。"}, True),
        ({"title": "黄河", "text": "黄河\n\n黄河是第二长河。"}, True),
        ({"text": "黄河\n\n“黄河”是第二长河。"}, True),
        ({"title": "静夜思", "text": "静夜思\n\n床前明月光，\n疑是地上霜。"}, False),
        ({"id": 1, "title": "题", "author": "李白", "text": "床前明月光，\n疑是地上霜。"}, False),
        ({"url": "u", "title": "题", "text": "代码\n", "score": 3}, False),
        ({"text": "文。"}, False),
        ({"content": "文。"}, False),
    ],
)
def test_a_wiki_dump_is_known_by_its_records(record, expected):
    assert is_wiki([record] * 5) is expected
    assert not is_wiki([])


@pytest.mark.parametrize(
    ("text", "after"),
    [
        ("黄河\n\n黄河是长河。\n很长。", "黄河是长河。很长。"),
        ("黄河\n\n《黄河》是歌。", "《黄河》是歌。"),
        ("黄河\n黄河是长河。", "黄河黄河是长河。"),  # no blank line
        ("黄河\n\n长江是长河。", "黄河长江是长河。"),
        ("长" * 99 + "\n\n" + "长" * 99, "长" * 198),  # too long for a title
    ],
)
def test_a_title_line_without_a_title(text, after):
    assert clean(text) == after
    assert clean_all([text], [""]) == [after]


# -- what is changed is counted --------------------------------------------------------------------


def test_changes_are_counted_by_rule():
    changes = Changes(examples=2)
    texts = ["题\n\n文（）字。", "甲（）乙（；）", "干净。", "丙（）丁"]
    assert clean_all(texts, ["题", "", "", ""], changes) == ["文字。", "甲乙", "干净。", "丙丁"]
    empty = changes["empty （）"]
    assert (empty.entries, empty.characters, len(empty.examples)) == (3, 9, 2)
    assert changes["title line"] == Change(1, 3, [("题\n\n文（）字。", "文（）字。")])
    other = Changes()
    clean_light("a\u200bb&nbsp;c", other)
    changes.merge(other)
    assert changes["invisible characters"].characters == 1
    assert changes["entities"] == Change(1, 5, [("a\u200bb&nbsp;c", "a\u200bb c")])
