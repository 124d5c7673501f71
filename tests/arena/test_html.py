"""The page's HTML: texts of models are escaped, and all strings exist in both languages.

The standard library's parser reads the HTML back.
"""

import re
from html.parser import HTMLParser
from string import Formatter

import pytest
from conftest import ROOT
from hypothesis import given, settings
from hypothesis import strategies as st

from minigpt.arena import html
from minigpt.arena.battles import MESSAGES, SideState
from minigpt.arena.endpoints import Health
from minigpt.arena.i18n import CHINESE, ENGLISH, strings_for
from minigpt.arena.ratings import Decided, LengthControlled, Rating, win_rates
from minigpt.arena.store import BattleRecord, SideRecord


class Reader(HTMLParser):
    """tags: (name, names of its attributes) of each, in their order; text: all between them."""

    def __init__(self, source):
        super().__init__()
        self.tags, self.text, self.classes, self.cells = [], "", [], []
        self.feed(source)
        self.close()

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, [name for name, _ in attributes]))
        self.classes.append(dict(attributes).get("class"))
        if tag in ("td", "th"):
            self.cells.append("")

    def handle_endtag(self, tag):
        self.tags.append(f"/{tag}")

    def handle_data(self, data):
        self.text += data
        if self.cells:
            self.cells[-1] += data

    def handle_comment(self, data):
        self.tags.append("comment")

    handle_decl = handle_pi = unknown_decl = handle_comment


def state(text="甲", status="done", end_reason="stop", error=None, **other):
    facts = dict(first_token_seconds=0.5, elapsed=2.5, chunks=3, tokens=41, message=None)
    return SideState(
        **{**facts, **other}, text=text, status=status, end_reason=end_reason, error=error
    )


def side(model="m", answer="甲"):
    return SideRecord(model, "e", None, answer, 0.1, 9.0, 4, "stop")


def battle(prompt="问", sides=(), kind="open", choice=None):
    return BattleRecord(kind, prompt, {}, 1, "v", tuple(sides), 5, 1.7e9, choice)


# -- escaping --------------------------------------------------------------------------------------

DRAWINGS = {
    "a side's text": lambda t: html.side_card(ENGLISH, state(t), 0),
    "a side's name": lambda t: html.side_card(ENGLISH, state(), 1, t, True, True),
    "an end reason": lambda t: html.side_card(
        ENGLISH, state(end_reason=t), 0, "m", show_facts=True
    ),
    "a note": html.note,
    "a rated model": lambda t: html.leaderboard(
        ENGLISH, [Rating(t, 1000.0, 900.0, 1100.0, 3)], LengthControlled({t: 1000.0}, 0.0)
    ),
    "a pair": lambda t: html.heat_map(ENGLISH, [t, "z"], [[0, 0.9], [0.1, 0]], [[0, 9], [9, 0]]),
    "a question": lambda t: html.history(CHINESE, [battle(t, [side()])]),
    "an answer": lambda t: html.history(CHINESE, [battle(sides=[side(answer=t)], choice=0)]),
    "a model": lambda t: html.history(CHINESE, [battle(sides=[side(t)])]),
    "an endpoint": lambda t: html.endpoints(ENGLISH, [(t, "http://x", None)]),
    "its address": lambda t: html.endpoints(ENGLISH, [("n", t, None)]),
    "its models": lambda t: html.endpoints(ENGLISH, [("n", None, Health("ok", (t,), 1.0))]),
    "its status": lambda t: html.endpoints(ENGLISH, [("n", None, Health(t, (), 1.0))]),
    "its trouble": lambda t: html.endpoints(ENGLISH, [("n", None, Health("e", (), 1.0, t))]),
}
PIECES = ["<", ">", '"', "'", "&", "&lt;", "&#60;", "<script>", "</div>", "<!--", "<![CDATA[", "/>"]
PIECES += ["<img src=x onerror=alert(1)>", "{", "}", "{x}", "%s", "<br", "=", "</td></table>"]
TEXT = st.lists(st.sampled_from(PIECES) | st.text(max_size=5), min_size=1).map("".join)
TEXT = TEXT.filter(lambda text: text and text != "too long")


@pytest.mark.parametrize("what", DRAWINGS)
@settings(max_examples=25)
@given(text=TEXT)
def test_no_text_opens_a_tag(what, text):
    plain, drawn = Reader(DRAWINGS[what]("x")), Reader(DRAWINGS[what](text))
    assert drawn.tags == plain.tags
    assert text in drawn.text


# -- a side of a battle ----------------------------------------------------------------------------


@pytest.mark.parametrize("strings", [ENGLISH, CHINESE])
@pytest.mark.parametrize("end", [*MESSAGES, "too long", "stop", "length"])
def test_a_blind_card_does_not_reveal_the_model(strings, end):
    status = {"failed": "failed", "deadline": "failed", "stopped": "stopped"}.get(end, "done")
    error = None if status == "done" else "EndpointError: lab-3 (http://10.0.0.9): it answered 500"
    hidden = Reader(html.side_card(strings, state("甲", status, end, error), 1)).text
    assert hidden.startswith("B甲")
    assert not re.search(r"lab-3|10\.0|500|Error|0\.50|2\.5|41|20", hidden)
    if error:
        assert strings[end] in hidden  # the message without server details


def test_a_card_with_its_facts():
    drawn = Reader(html.side_card(ENGLISH, state(), 0, "sft", is_chosen=True, show_facts=True))
    # 41 tokens, the first after half a second: the other 40 in 2 s.
    facts = "first token 0.50 s · 20 tokens/s · 2.5 s in total"
    assert drawn.text == f"A sft甲{facts}" and drawn.classes[0] == "card chosen"


def test_a_card_during_generation():
    nothing = dict(first_token_seconds=None, end_reason=None)
    waiting = Reader(html.side_card(ENGLISH, state("", "waiting", **nothing), 0))
    assert waiting.text == "Awaiting …"
    assert "正在写" in html.side_card(CHINESE, state("甲", "writing", None), 0)


def test_a_failed_card_keeps_its_text():
    drawn = Reader(html.side_card(ENGLISH, state("北", "failed", "deadline", "x"), 0))
    assert drawn.text == f"A北{ENGLISH['deadline']}" and drawn.classes[0] == "card failed"


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (dict(), "空回答：模型一开始就结束了"),
        (dict(thoughts="想<b>"), "只写了思考过程"),
        (dict(end_reason="sensitive"), "内容过滤"),
        (dict(end_reason="tool_calls"), "调用工具"),
        (dict(refusal="抱歉<i>"), "拒绝：抱歉<i>"),
    ],
)
def test_a_blank_answer_says_why(change, words):
    drawn = Reader(html.side_card(CHINESE, state(" \n")._replace(**change), 0))
    assert words in drawn.text and drawn.classes[0] == "card failed"
    assert ("/details" in drawn.tags) == ("thoughts" in change)


def test_the_end_of_an_answer_is_in_the_language_of_the_page():
    for reason, words in (("length", "达到长度上限"), ("stop", ""), ("odd<b>", "odd<b>")):
        text = Reader(
            html.side_card(CHINESE, state(end_reason=reason), 0, "m", show_facts=True)
        ).text
        assert words in text and "stop" not in text
    assert "内容过滤截断" in html.side_card(CHINESE, state(end_reason="content_filter"), 0)


# -- tables ----------------------------------------------------------------------------------------


def test_the_leaderboard():
    table = [Rating("sft", 1100.0, 1050.0, 1200.0, 25), Rating("base", 900.0, 800.0, 1000.4, 9)]
    source = html.leaderboard(
        ENGLISH, table, LengthControlled({"base": 955.4, "sft": 1044.6}, -12.3)
    )
    cells = Reader(source).cells[8:]
    assert cells[:8] == ["1", "sft", "1100", "", "1050 – 1200", "1045", "25", ""]
    assert cells[8:] == [
        "2",
        "base",
        "900",
        "",
        "800 – 1000",
        "955",
        "9",
        f"too few votes{ENGLISH['rating_help']} {ENGLISH['length_help'].format(points='-12')}",
    ]
    # All on one scale from 800 to 1200.
    assert "left:62.5%;right:0.0%" in source and "left:75.0%" in source
    assert "left:0.0%;right:49.9%" in source and "left:25.0%" in source


def test_a_leaderboard_of_one_point_and_of_nothing():
    one = [Rating("a", 1000.0, 1000.0, 1000.0, 1)]
    assert "left:0.0%" in html.leaderboard(ENGLISH, one, LengthControlled({"a": 1000.0}, 0.0))
    assert (
        Reader(html.leaderboard(CHINESE, [], LengthControlled({}, 0.0))).text == CHINESE["no_votes"]
    )


def test_the_heat_map():
    battles = [Decided(("a", "b"), 0)] * 3 + [Decided(("b", "a"), 0), Decided(("c", "a"), "none")]
    source = html.heat_map(ENGLISH, *win_rates(battles))
    cells = Reader(source).cells
    assert cells[:4] == ["", "a", "b", "c"]
    assert cells[4:] == ["a", "–", "75 % (4)", "–", "b", "25 % (4)", "–", "–", "c", "–", "–", "–"]
    blue, red = source.index("rgba(37, 99, 235"), source.index("rgba(220, 38, 38")
    assert blue < source.index("75 %") < red < source.index("25 %")
    assert html.heat_map(ENGLISH, *win_rates([])) == ""


def test_the_history():
    sides = [side("sft", "甲"), side("base", "乙")]
    drawn = Reader(html.history(ENGLISH, [battle("问", sides, "blind", 1), battle("二", sides)]))
    assert re.search(r"#5 · 20\d\d-\d\d-\d\d \d\d:\d\d · blind", drawn.text)
    assert drawn.text.count("chosen") == 1
    assert drawn.text.index("base") < drawn.text.index("chosen") < drawn.text.index("乙")
    assert drawn.classes.count("card chosen") == 1 and drawn.classes.count("card") == 3
    assert Reader(html.history(CHINESE, [])).text == CHINESE["nothing_found"]


@pytest.mark.parametrize("choice", [None, "tie", "none"])
def test_a_history_without_a_chosen_side(choice):
    drawn = Reader(html.history(ENGLISH, [battle("问", [side(), side("b")], "open", choice)]))
    assert "card chosen" not in drawn.classes and "chosen" not in drawn.text


def test_the_endpoints():
    source = html.endpoints(
        ENGLISH,
        [
            ("run", None, Health("ok", ("run",), 0.0)),
            ("far", "http://far", Health("slow", ("x", "y"), 1500.4)),
            ("off", "http://off", Health("refused", (), 3.0, "nothing listens there")),
            ("new", "http://new", None),
        ],
    )
    drawn = Reader(source)
    assert drawn.cells[5:] == [
        *("run", "ok", "0 ms", "run", "this machine"),
        *("far", "slow", "1500 ms", "x, y", "http://far"),
        *("off", "down (refused)", "3 ms", "nothing listens there", "http://off"),
        *("new", "not checked yet", "", "", "http://new"),
    ]
    badges = [name for name in drawn.classes if name and name.startswith("badge")]
    assert badges == ["badge ok", "badge slow", "badge bad", "badge unknown"]


# -- strings ---------------------------------------------------------------------------------------


def test_both_languages_have_the_same_strings():
    def places(text):
        return sorted(field for _, field, _, _ in Formatter().parse(text) if field is not None)

    assert ENGLISH.keys() == CHINESE.keys()
    for key, text in ENGLISH.items():
        assert places(text) == places(CHINESE[key]), key


def test_every_string_is_used_and_none_is_missing():
    files = [ROOT / "sample_gradio.py", *(ROOT / "minigpt" / "arena").rglob("*.py")]
    source = "".join(p.read_text(encoding="utf-8") for p in files if p.name != "i18n.py")
    used = r"\b(?:i18n\(|(?:strings|strings_of\(\w+\)|ENGLISH)\[)[\"'](\w+)[\"']"
    assert set(re.findall(used, source)) <= ENGLISH.keys()
    literals = set(re.findall(r"[\"'](\w+)[\"']", source))
    assert ENGLISH.keys() <= literals, ENGLISH.keys() - literals


@pytest.mark.parametrize(
    ("header", "expected"),
    [
        ("zh-CN,zh;q=0.9,en;q=0.8", CHINESE),
        ("zh", CHINESE),
        ("ZH-tw", CHINESE),
        ("en-US,en;q=0.9,zh;q=0.8", ENGLISH),
        ("de", ENGLISH),
        ("", ENGLISH),
        (None, ENGLISH),
    ],
)
def test_the_browser_s_language(header, expected):
    assert strings_for(header) is expected


def test_the_history_shows_votes_for_no_side():
    side = SideRecord("m", "e", None, "text", 0.1, 5.0, 3, "stop")
    for choice, n, key in (
        ("tie", 2, "vote_tie"),
        ("none", 2, "vote_none_of_2"),
        ("none", 3, "vote_none"),
    ):
        battle = BattleRecord("open", "q", {}, None, "v", (side,) * n, 7, 0.0, choice)
        assert f"open · {ENGLISH[key]}" in html.history(ENGLISH, [battle])
    voted = BattleRecord("blind", "q", {}, None, "v", (side,) * 2, 7, 0.0, 1)
    assert " · blind</div>" in html.history(ENGLISH, [voted])
