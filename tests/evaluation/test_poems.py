"""What is counted in a poem, against poems whose form, rhyme and tones are known, and against slow
ways of counting; and tools/evaluations-poems.py, as a user runs it."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_run import run_here, save_run, save_scripted_run, write_jsonl

from minigpt.evaluation.poem_figures import distinct_pairs
from minigpt.evaluation.poems import (
    GROUPS,
    book_rhyme,
    form,
    heads,
    novelty,
    repeated,
    rhyme,
    sound,
    tones,
)
from minigpt.tokenizer.tokenizer import load_tokenizer

HERON = "白日依山尽，黄河入海流。\n欲穷千里目，更上一层楼。"  # 登鹳雀楼: regulated, rhymes in -iou
NIGHT = "床前明月光，疑是地上霜。\n举头望明月，低头思故乡。"
FIVE = {"lines": 4, "characters": 5}


# -- form and heads --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "record", "share"),
    [
        (HERON, FIVE, 1),
        (HERON.replace("\n", ""), FIVE, 1),
        (HERON, {}, 1),
        (HERON, {"lines": 8, "characters": 5}, 0.5),
        (HERON, {"lines": 4, "characters": 7}, 0),
        (HERON + "\n" + HERON, FIVE, 0.5),  # four lines too many
        (HERON.replace("目", ""), FIVE, 0.75),
        (HERON.replace("目", "A"), FIVE, 0.75),  # a character that is not Chinese
        (HERON.replace("，", "，，", 1), FIVE, 0.8),  # an empty line
        (HERON.partition("，")[2], FIVE | {"given": "白日依山尽，"}, 1),
        (HERON.partition("，")[2], FIVE, 0.75),
        ("白日依山尽，黄河入海流。更上一层楼。", {}, 0.75),  # an odd number: one is missing
        ("白日依山尽，朝辞白帝彩云间。", {}, 0.5),
        ("黄河入海流。", {"lines": 1, "characters": 5}, 1),
        ("", FIVE, 0),
        ("", {}, 0),
        ("。。。。", {}, 0),
        ("it rains", {}, 0),
    ],
)
def test_form(text, record, share):
    assert form(text, record) == pytest.approx(share)


@pytest.mark.parametrize(
    ("text", "asked", "share"),
    [
        (HERON, "白黄欲更", 1),
        (HERON, "春黄欲更", 0.75),
        (HERON, "白", 0.25),
        (HERON, "白黄欲更白黄欲更", 0.5),
        (HERON, "", 1),
        ("", "白黄", 0),
    ],
)
def test_heads(text, asked, share):
    assert heads(text, {"heads": asked}) == pytest.approx(share)
    assert heads(text, {}) == 1


# -- sound -----------------------------------------------------------------------------------------


def test_rhyme():
    assert rhyme(HERON) == 1  # liú, lóu
    assert rhyme(NIGHT) == 1  # shuāng, xiāng
    assert rhyme(HERON.replace("楼", "台")) == 0
    assert rhyme(HERON.replace("楼", "流")) == 0  # the same character twice is no rhyme
    assert rhyme(NIGHT + "\n" + HERON) == 0.5  # two and two
    assert rhyme("白日依山尽，黄河入海流。") == rhyme("") == 0  # one even line has no partner


def test_rhyme_by_the_rhyme_book():
    assert book_rhyme(HERON) == book_rhyme(NIGHT) == 1  # 尤, 阳
    spring = "远上寒山石径斜，白云生处有人家。\n停车坐爱枫林晚，霜叶红于二月花。"
    assert book_rhyme(spring) == rhyme(spring) == 1  # 麻
    home = "何处望乡台，悠悠远客杯。\n秋来江上住，春去不同归。"
    assert book_rhyme(home) == 0  # 灰 and 微
    valley = "空山不见人，但闻人语响。\n返景入深林，复照青苔上。"
    assert book_rhyme(valley) == 0  # 响 and 上 are oblique


def test_the_groups_are_all_finals_of_mandarin():
    finals = [final for _, group in GROUPS for final in group.split()]
    assert len(GROUPS) == 13 and len(set(finals)) == len(finals)
    for character, group, tone in [
        ("知", "一七", 1),
        ("儿", "一七", 2),
        ("去", "一七", 4),
        ("翁", "中东", 1),
        ("雄", "中东", 2),
        ("月", "乜斜", 4),
        ("女", "一七", 3),
    ]:
        assert sound(character) == (group, tone)
    assert sound("A") == sound("，") == (None, None)


def test_tones():
    assert tones(HERON) == 1
    assert tones(HERON.replace("楼", "树")) == pytest.approx(9 / 10)  # an even line ends level
    assert tones(HERON.replace("层", "片")) == pytest.approx(9 / 10)  # 上 and 片 are oblique
    assert tones(HERON.replace("穷", "破")) == pytest.approx(7 / 10)  # 破里, 河破, 破上
    assert tones(NIGHT + "\n" + HERON + "\n" + HERON) == tones("") == 0  # no regulated form


def test_without_pypinyin_one_line_says_what_to_install(monkeypatch):
    import sys

    from minigpt.common.errors import UserError

    monkeypatch.setitem(sys.modules, "pypinyin", None)
    sound.cache_clear()
    with pytest.raises(UserError, match="pip install pypinyin"):
        rhyme(HERON)


# -- words -----------------------------------------------------------------------------------------


def test_repeated():
    assert repeated(HERON) == repeated("") == 0
    assert repeated(NIGHT) == pytest.approx(3 / 20)  # 明, 月 and 头
    assert repeated("萧萧班马鸣。") == 0  # one word


LINES = st.lists(st.text("春山月", min_size=1, max_size=6), max_size=4)
POEMS = st.lists(LINES.map("，".join), max_size=4)


@given(POEMS, POEMS)
@settings(max_examples=150, deadline=None)
def test_novelty_is_what_a_search_finds(texts, training):
    whole = [poem.replace("，", "") for poem in training]
    lines = {line for poem in training for line in poem.split("，")}
    for text, found in zip(texts, novelty(texts, training), strict=True):
        own = text.split("，") if text else []
        joined = text.replace("，", "")
        runs = [
            end - start
            for start in range(len(joined))
            for end in range(start + 1, len(joined) + 1)
            if any(joined[start:end] in poem for poem in whole)
        ]
        assert found.longest == max(runs, default=0)
        assert found.lines == len(own) and found.copied == sum(line in lines for line in own)


def test_distinct_pairs():
    assert distinct_pairs(["春山春山", "春山。月"]) == pytest.approx(2 / 4)  # 春山 山春 春山, 春山
    assert distinct_pairs([]) == 1


# -- the script ------------------------------------------------------------------------------------


@pytest.fixture
def data(tmp_path):
    """A folder as data/prepare_poems.py writes it."""
    folder = tmp_path / "poems"
    folder.mkdir()
    write_jsonl(folder / "poems.jsonl", [{"author": "李白", "text": NIGHT}])
    asked = {"id": HERON, "answer": HERON, **FIVE}
    tests = [
        {"kind": "form", "question": "以“山”为题写一首五言绝句。", **asked},
        {"kind": "heads", "question": "藏头：白黄欲更", **asked, "heads": "白黄欲更"},
        {"kind": "next", "question": "下一句？", "id": HERON, "answer": "黄河入海流。"},
    ]
    tests[2] |= {"lines": 1, "characters": 5}
    write_jsonl(folder / "test.jsonl", tests)
    return folder


def poems(*words):
    return run_here("tools/evaluations-poems.py", *words)


def test_a_run_that_writes_one_line(tmp_path, data):
    run = save_scripted_run(tmp_path / "run", load_tokenizer("zh"), "山河。", block_size=64)
    code, out, err = poems(f"--out_dir={run}", f"--data={data}", "--temperature=0,0.5")
    assert code == 0, err
    figures = json.loads((run / "poems.json").read_text(encoding="utf-8"))["figures"]
    *of_run, real = figures
    assert [each["temperature"] for each in figures] == [0, 0.5, "real"]
    for each in of_run:
        assert each["poems"] == 3 and each["form"] == each["rhyme"] == each["copied"] == 0
        assert each["heads"] == 0 and each["longest"] == 0
    assert real["form"] == real["rhyme"] == real["tones"] == real["heads"] == 1
    assert real["by_kind"]["next"] == {"poems": 1, "form": 1, "rhyme": None, "book_rhyme": None}
    assert real["copied"] == 0 and real["longest"] == pytest.approx(2 / 3)  # 上, in two of three
    rows = [json.loads(line) for line in (run / "poems.jsonl").read_text("utf-8").splitlines()]
    assert [row["text"] for row in rows[:3]] == ["山河。"] * 3 and rows[-1]["text"]
    assert (run / "poems.md").read_text("utf-8").startswith("| temperature | poems | form |")
    assert (run / "poems.png").stat().st_size > 1000
    assert "100.0%" in out


def test_a_pretrained_run_continues_poems(tmp_path, data, byte_tokenizer, tiny_model):
    run = save_run(
        tmp_path / "run", tiny_model(padded_vocab_size=320, block_size=64), byte_tokenizer
    )
    code, _, err = poems(f"--out_dir={run}", f"--data={data}", "--max_new_tokens=4")
    assert code == 0, err
    rows = [json.loads(line) for line in (run / "poems.jsonl").read_text("utf-8").splitlines()]
    assert [row["prompt"] for row in rows] == ["白日"] * 2  # of three tests about one poem
    assert rows[1]["text"] == HERON[2:] and rows[1]["form"] == 1


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["--data=nowhere"], "nowhere/test.jsonl: no such file"),
        (["--number=0"], "number=0: expected at least 1"),
        (["--temperature=warm"], "--temperature: warm: expected float values"),
    ],
)
def test_mistakes_are_one_line(tmp_path, words, line):
    run = save_scripted_run(tmp_path / "run", load_tokenizer("zh"), "山。")
    code, _, err = poems(f"--out_dir={run}", *words)
    assert code == 2 and line in err and "Traceback" not in err
