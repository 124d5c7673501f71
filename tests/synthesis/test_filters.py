"""Checks: each rule with pairs that keep it and pairs that break it, by hand; then real pairs."""

import json
import random
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from minigpt.data.cleaning import clean
from minigpt.data.pipeline import read_entries
from minigpt.evaluation.examples import read_pairs
from minigpt.synthesis.filters import LISTED, RULES, Finding, Rules, feedback, filter_pairs
from minigpt.synthesis.parsing import QA

TEXT = (
    "都江堰\n都江堰位于四川省都江堰市城西的岷江上，约公元前256年由秦国蜀郡太守李冰父子主持修建。"
    "工程由鱼嘴、飞沙堰和宝瓶口三部分组成，两千多年来一直发挥着防洪和灌溉的作用，使成都平原成为"
    "“天府之国”，灌溉面积约1,000万亩。2000年，都江堰与青城山一起被联合国教科文组织（UNESCO）列入"
    "世界文化遗产名录。城中有Müller，干渠长1.5万米，第三十二条最长。"
)
WIDE = Rules(n_min=1, n_max=99, question_max=60)


def broken(question, answer, text=TEXT, rules=WIDE, earlier=()):
    """The names of the rules that one pair breaks; what concerns the whole reply apart."""
    kept, findings = filter_pairs([QA(question, answer)], text, rules, earlier)
    names = [finding.rule for finding in findings if finding.question]
    assert len(kept) == (not names) and set(names) <= set(RULES)
    return names


def answered(answer, text=TEXT):
    return broken("都江堰怎么样？", answer, text)


def asked(question, text=TEXT):
    return broken(question, "都江堰位于岷江上。", text)


# -- the whole reply -------------------------------------------------------------------------------

GOOD = [
    QA("都江堰在哪条江上？", "都江堰在岷江上。"),
    QA("都江堰由谁主持修建？", "都江堰由李冰父子主持修建。"),
    QA("都江堰由哪三部分组成？", "都江堰由鱼嘴、飞沙堰和宝瓶口组成。"),
    QA("都江堰有什么作用？", "都江堰有防洪和灌溉的作用。"),
]


def test_a_good_reply():
    assert filter_pairs(GOOD, TEXT, Rules()) == (GOOD, [])


def test_too_few():
    kept, findings = filter_pairs(GOOD[:2], TEXT, Rules())
    assert kept == GOOD[:2] and [f.rule for f in findings] == ["too few"]
    assert "只有2组，至少要有3组" in findings[0].reason
    assert filter_pairs(GOOD[:2], TEXT, Rules(n_min=2))[1] == []
    assert filter_pairs(GOOD[2:3], TEXT, Rules(), GOOD[:2]) == (GOOD[2:3], [])
    (finding,) = filter_pairs([], TEXT, Rules())[1]
    assert finding.rule == "too few" and "JSON" in finding.reason


def test_too_many_is_said_and_costs_nothing():
    kept, findings = filter_pairs(GOOD, TEXT, Rules(n_max=3))
    assert kept == GOOD[:3] and [f.rule for f in findings] == ["too many"]
    kept, findings = filter_pairs(GOOD[1:], TEXT, Rules(n_max=3), GOOD[:1])
    assert kept == GOOD[1:3] and [f.rule for f in findings] == ["too many"]
    assert filter_pairs(GOOD, TEXT, Rules(n_max=4))[1] == []


def test_one_bad_pair_costs_no_other():
    bad = QA("它有什么作用？", "防洪和发电。")
    kept, findings = filter_pairs([*GOOD[:2], bad, *GOOD[2:]], TEXT, Rules())
    assert kept == GOOD and {f.question for f in findings} == {bad.question}


# -- one pair --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("question", "answer", "rules", "expected"),
    [
        ("都江堰在四川省哪一条大江上呢？", "岷江", dict(question_max=15), []),
        ("都江堰在四川省哪一条大江上呢？", "岷江", dict(question_max=14), ["question length"]),
        ("？", "岷江", dict(question_min=2), ["question length"]),
        ("谁？", "李冰父子主持修建", dict(answer_max=7), ["answer length"]),
        ("谁？", "李冰父子主持修建", dict(answer_max=8), []),
        ("谁？", "李冰", dict(answer_min=3), ["answer length"]),
    ],
)
def test_lengths(question, answer, rules, expected):
    assert broken(question, answer, rules=Rules(n_min=1, **rules)) == expected


def test_reasons_name_the_limits():
    findings = filter_pairs([QA("问" * 18 + "？", "岷" * 301)], TEXT, Rules())[1]
    assert "19个字，应为1到15个字" in findings[1].reason
    assert "301个字，应为1到300个字" in findings[2].reason


def test_an_empty_pair():
    kept, findings = filter_pairs([QA("", "")], TEXT, Rules())
    names = {finding.rule for finding in findings}
    assert not kept and {"question length", "answer length", "no question"} <= names


@pytest.mark.parametrize("end", ["？", "?", "？”", "？」", "?）", "？ "])
def test_a_question(end):
    assert asked("都江堰在哪里" + end) == []


@pytest.mark.parametrize("end", ["", "。", "？。", "吗", "？\n都江堰"])
def test_no_question(end):
    assert asked("都江堰在哪里" + end) == ["no question"]


@pytest.mark.parametrize(
    "question",
    [
        *(
            "他是谁？",
            "她们是谁？",
            "它有什么作用？",
            "牠吃什么？",
            "他的父亲是谁？",
            "其作用是什么？",
        ),
        *("该工程由谁修建？", "該片由誰執導？", "此工程有何作用？", "这座城在哪里？", "這是什麼？"),
        *("那个人是谁？", "那时谁在位？", "本片的导演是谁？", "本届比赛在哪里？"),
        *(
            "为什么他离开北京？",
            "在该剧中谁是主角？",
            "哪一年，它建成？",
            "请问这是什么？",
            "从此怎样？",
        ),
    ],
)
def test_a_pronoun_as_subject(question):
    assert "pronoun" in asked(question)


@pytest.mark.parametrize(
    "question",
    [
        *(
            "其他国家有哪些？",
            "其它的堰在哪里？",
            "其余部分是什么？",
            "他山之石可以做什么？",
            "他人是谁？",
        ),
        *("该隐杀了谁？", "那不勒斯在哪里？", "那曲在哪里？", "此外还有什么？", "他信是哪国人？"),
        *("李冰为什么修建它？", "《他来了》是谁写的？", "本草是什么？", "本田是哪国公司？"),
        *("《这个杀手不太冷》好吗？", "“他”怎么写？", "都江堰与其他的堰有何不同？"),
    ],
)
def test_no_pronoun_as_subject(question):
    assert asked(question) == []


def test_a_pronoun_in_an_answer_and_as_a_title():
    assert answered("它位于岷江上。") == answered("该堰位于岷江上。") == ["pronoun"]
    assert answered("李冰父子主持修建它。") == answered("因为它防洪和灌溉。") == []
    title = "那个年代"
    assert broken("那个年代是谁写的？", "李冰", f"{title}\n李冰所作。") == []
    assert broken("那个年代是谁写的？", "李冰", "别的\n李冰所作。") == ["pronoun"]
    assert broken("那个年代是谁写的？", "李冰", "\n李冰所作。") == ["pronoun"]


@pytest.mark.parametrize(
    "question",
    [
        *(
            "文中提到了谁？",
            "请问上文讲了什么？",
            "本文的作者是谁？",
            "该文写于何时？",
            "李冰在文中是谁？",
        ),
        *(
            "根据文章，谁修了堰？",
            "根据所给材料，堰在哪？",
            "材料中提到哪条江？",
            "上述工程在哪里？",
        ),
        *(
            "都江堰在这段文字里如何？",
            "按照以上内容，谁主持？",
            "原文说了什么？",
            "根据上文，堰在哪？",
        ),
        *(
            "文章里的堰在哪里？",
            "據條目，誰主持修建？",
            "李冰在該條目中是誰？",
            "都江堰在本篇文章里？",
        ),
    ],
)
def test_points_at_the_text(question):
    assert "points at the text" in asked(question)


@pytest.mark.parametrize(
    "question",
    [
        *(
            "中文中如何称呼都江堰？",
            "都江堰用什么材料修建？",
            "日本文化有何特点？",
            "都江堰说明了什么？",
        ),
        *("“天府之国。”这段话出自哪里？", "都江堰的内容有哪些？", "论文中如何称呼都江堰？"),
        *("复合材料中有什么？", "上文化课要带什么？", "都江堰在历史文献里叫什么？", "谁是后述人？"),
    ],
)
def test_does_not_point_at_the_text(question):
    assert asked(question) == []


def test_words_of_the_text_itself_point_at_nothing():
    text = TEXT + "石碑上刻着，原文说是李冰所立，作为AI，我很高兴。"
    assert asked("原文说是谁立的？", text) == [] and asked("原文说是谁立的？") != []
    assert answered("作为AI，我很高兴。", text) == []


@pytest.mark.parametrize(
    "answer",
    [
        *(
            "作为AI，都江堰在岷江上。",
            "作为一个人工智能助手，我只知道岷江",
            "作為大型語言模型，都江堰",
        ),
        *("我是一个AI，都江堰在岷江上", "很抱歉，我找不到都江堰的位置", "对不起我不知道都江堰"),
        *("我无法回答都江堰的问题", "我的训练数据里没有都江堰", "As an AI, 都江堰"),
    ],
)
def test_talks_of_itself(answer):
    assert "talks of itself" in answered(answer)
    assert "talks of itself" in broken("都江堰？", answer, text=None)


@pytest.mark.parametrize(
    "answer",
    ["作为人工智能的分支，机器学习发展很快", "李冰很抱歉", "人工智能是一门学科", "我国的都江堰"],
)
def test_does_not_talk_of_itself(answer):
    assert broken("都江堰怎么样？", answer, text=None) == []


@pytest.mark.parametrize(
    ("answer", "is_loop"),
    [
        ("都江堰" * 5, True),
        ("都江堰在岷江上，" * 4, True),
        ("哈" * 15, True),
        ("都江堰由李冰父子主持修建。" + "防洪和灌溉、" * 8, True),
        ("哈" * 14, False),  # short: perhaps a name
        ("都江堰都江堰", False),
        ("约有1" + "0" * 30, False),
        ("都江堰在岷江上，都江堰由李冰父子主持修建，都江堰有防洪和灌溉的作用。", False),
        ("防洪和灌溉，防洪和灌溉。", False),
    ],
)
def test_repetition(answer, is_loop):
    assert ("repetition" in broken("怎样？", answer, text=None)) == is_loop
    assert ("repetition" in broken(answer + "？", "岷江", text=None)) == is_loop


def test_a_question_asked_twice():
    rules = Rules(n_min=1)
    again = QA("都江堰 在哪条江上?", "在岷江上。")
    kept, findings = filter_pairs([GOOD[0], again, GOOD[1]], TEXT, rules)
    assert kept == GOOD[:2] and [(f.rule, f.question) for f in findings] == [
        ("same question", again.question)
    ]
    assert broken(*again, earlier=GOOD[:1]) == ["same question"]
    assert broken(*again, earlier=GOOD[1:]) == []
    # The first of the two was no good: the second is the only one.
    kept, _ = filter_pairs([QA(GOOD[0].question, "黄河"), GOOD[0]], TEXT, rules)
    assert kept == GOOD[:1]


def test_the_question_as_answer():
    assert broken("都江堰位于哪里？", "都江堰位于哪里") == ["answer is the question"]
    assert broken("都江堰位于哪里？", "都江堰位于岷江") == []


@pytest.mark.parametrize(
    "character",
    ["\ufffd", "\ud83d", "\x00", "\x1b", "\t", "\ue000", "\u200b", "\ufeff", "\u202e", "\uffff"],
)
def test_characters_that_should_not_be(character):
    assert "characters" in broken("都江堰在哪条江上？", f"岷{character}江")
    assert "characters" in asked(f"都江堰{character}在哪里？")


def test_characters_that_may_be():
    assert broken("都江堰？", "岷江，\n𠮷😀é“ ”·—", text=None) == []


# -- against the text ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "answer",
    [
        *(
            "公元前256年",
            "３部分",
            "三个部分",
            "3部分",
            "灌溉面积约1000万亩",
            "1千万亩",
            "10000000亩",
        ),
        *("二千年世界文化遗产", "二〇〇〇年世界文化遗产", "15000米", "1.50万米", "一万五千米"),
        *("第32条", "第三十二条", "两千多年", "四川省", "一个世界文化遗产", "百姓灌溉"),
    ],
)
def test_numbers_of_the_text(answer):
    assert "number not in text" not in answered(answer)


@pytest.mark.parametrize(
    ("answer", "number"),
    [
        *(
            ("公元前257年", "257"),
            ("约25年", "25"),
            ("四部分", None),
            ("五部分", "五"),
            ("32万", "32万"),
        ),
        *(("二十三条", "二十三"), ("1,001万亩", "1,001万"), ("1.4万米", "1.4万"), ("５条", "5")),
    ],
)
def test_numbers_that_are_not_in_the_text(answer, number):
    findings = filter_pairs([QA("多少？", answer)], TEXT, WIDE)[1]
    found = [f.reason for f in findings if f.rule == "number not in text"]
    # 四 is in the text, in 四川: a numeral within a word looks like a number.
    assert [f"“{number}”" in reason for reason in found] == [True] * (number is not None)


@pytest.mark.parametrize(
    ("numeral", "value"),
    [
        *(
            ("二十三", "23"),
            ("十万零三", "100003"),
            ("十五", "15"),
            ("一百零五", "105"),
            ("三百二十", "320"),
        ),
        *(
            ("一千零一", "1001"),
            ("两万五千", "25000"),
            ("三十二万零五", "320005"),
            ("十万", "100000"),
        ),
        *(
            ("一亿二千万", "120000000"),
            ("三万亿", "3000000000000"),
            ("一九九四", "1994"),
            ("二〇〇八", "2008"),
            ("廿四", "24"),
        ),
        ("三亿", "300,000,000"),
    ],
)
def test_chinese_numerals(numeral, value):
    assert broken("多少？", f"约有{numeral}人", f"题\n约有{value}人") == []
    assert broken("多少？", f"约有{value}人", f"题\n约有{numeral}人") == []
    assert "number not in text" in broken("多少？", f"约有{numeral}人", "题\n约有7人")


def test_a_unit_is_no_scale():
    assert broken("多长？", "约长5千米", "题\n约长5公里") == []


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        ("联合国教科文组织UNESCO", []),
        ("联合国教科文组织Unesco", []),
        ("城中有MULLER", []),
        ("联合国教科文组织UNICEF", ["Latin not in text"]),
        ("联合国教科文组织NES", ["Latin not in text"]),
    ],
)
def test_latin(answer, expected):
    assert answered(answer) == expected


@pytest.mark.parametrize(
    ("question", "answer", "expected"),
    [
        ("都江堰在哪里？", "四川省岷江", []),
        ("都江堰在哪裡？", "四川省岷江", ["script"]),
        ("都江堰在哪里？", "都江堰發揮防洪和灌溉的作用", ["script"]),
    ],
)
def test_a_simplified_text(question, answer, expected):
    assert broken(question, answer) == expected


def test_a_traditional_text():
    text = "都江堰\n都江堰發揮著灌溉的作用，簡體字寫作“发”。"
    assert broken("都江堰有什麼作用？", "發揮灌溉的作用", text) == []
    assert broken("都江堰發揮作用吗？", "發揮灌溉的作用", text) == ["script"]
    assert broken("發的簡體字寫作什麼？", "簡體字寫作“发”。", text) == []  # the text has it
    reason = filter_pairs([QA("有吗？", "發揮著灌溉的作用")], text, WIDE)[1][1].reason
    assert "“吗”是简体字" in reason
    assert broken("發吗？", "山水", "山水\n山水") == []  # a text that could be either


REWORDED = """都江堰建在岷江上。
都江堰的修建者是李冰父子。
都江堰可以防洪，还可以灌溉农田。
都江堰分为鱼嘴、飞沙堰、宝瓶口这三个部分。
因为都江堰长期防洪、灌溉，成都平原才被叫做“天府之国”。
和都江堰同时列入世界遗产的还有青城山。
李冰是秦国的蜀郡太守。
都江堰已经使用了两千多年。
主持修建都江堰的太守名叫李冰，李冰来自秦国。
有防洪和灌溉两种作用。
位于岷江。
堰"""
INVENTED = """都江堰由隋炀帝下令开凿。
都江堰全长约二十公里，是古代最大的运河。
都江堰每年吸引数百万游客前来参观。
都江堰是诸葛亮北伐时修建的军事工程。
都江堰的水流来自长江三峡水库。
李冰死后葬在四川省什邡市，后人尊李冰为川主。
长城东起山海关，西到嘉峪关。
桥"""


@pytest.mark.parametrize("answer", REWORDED.splitlines())
def test_what_the_text_says_in_other_words(answer):
    assert answered(answer) == []


@pytest.mark.parametrize("answer", INVENTED.splitlines())
def test_what_the_text_does_not_say(answer):
    assert "ungrounded" in answered(answer)
    assert broken("都江堰怎么样？", answer, text=None) == []


def test_grounding_is_a_knob():
    answer = REWORDED.splitlines()[2]  # 4 of 12 different bigrams
    assert broken("怎样？", answer, rules=Rules(n_min=1, grounding=0.33)) == []
    assert broken("怎样？", answer, rules=Rules(n_min=1, grounding=0.34)) == ["ungrounded"]
    assert broken("怎样？", INVENTED.splitlines()[0], rules=Rules(n_min=1, grounding=0.1)) == []


# -- feedback to the model -------------------------------------------------------------------------


def test_feedback_says_what_was_wrong():
    _, findings = filter_pairs([QA("它在哪里？", "黄河。"), GOOD[0]], TEXT, Rules())
    message = feedback(findings)
    assert "只有1组，至少要有3组" in message and "“它在哪里？”：问题以代词“它”代替主语" in message
    assert GOOD[0].question not in message and "JSON" in message


def test_feedback_is_short():
    longest = [Finding("x", "\ud800问" * 5000, "因。")] * 50
    message = feedback(longest)
    assert message.count("因。") == LISTED and len(message) < 1000
    message.encode()  # no half character goes to a server
    pairs = [QA("问" * 50_000, "a" * 50_000), QA("问？", "7" * 50_000)]
    assert len(feedback(filter_pairs(pairs, TEXT, Rules())[1])) < 1000


@given(st.text(), st.text(), st.text() | st.none())
def test_it_never_raises(question, answer, text):
    filter_pairs([QA(question, answer)], text, Rules())


@given(st.text("〇零一二三四五六七八九十百千万亿两廿0123456789,. 亩", max_size=60))
def test_a_text_has_its_own_numbers(text):
    assert "number not in text" not in broken("多少？", text, f"题\n{text}")


def test_every_rule_is_explained():
    assert list(RULES)[:2] == ["too few", "too many"] and len(RULES) == 16
    assert all(explanation and "\n" not in explanation for explanation in RULES.values())


# -- real pairs ------------------------------------------------------------------------------------


def alarms(texts, pairs):
    """Rule → pairs of a list that break it, each against the text of its id."""
    rules, by_id, found = Rules(n_min=0, n_max=10**6, question_max=100), {}, Counter()
    for id_, question, answer in pairs:
        by_id.setdefault(id_, []).append(QA(question, answer))
    for id_, asked in by_id.items():
        found.update(finding.rule for finding in filter_pairs(asked, texts[id_], rules)[1])
    return found


ABOUT_THE_TEXT = ("ungrounded", "number not in text", "Latin not in text", "script")


def test_our_own_pairs(root):
    """Their answers are reworded, so this is what a good model's reply looks like."""
    texts = {e.id: f"{e.title}\n{e.text}" for e in read_entries(root / "data" / "sample")}
    pairs = read_pairs(root / "sft" / "sft_saves.jsonl")
    found = alarms(texts, pairs)
    assert len(pairs) == 959 and found.pop("ungrounded") <= 0.01 * len(pairs)
    assert found.pop("pronoun") <= 6 and not found


MOST = {
    "cmrc2018": {"pronoun": 48, "no question": 8, "points at the text": 4, "question length": 1},
    "drcd": {"points at the text": 24, "pronoun": 7, "no question": 2, "number not in text": 2},
}


@pytest.mark.parametrize(("folder", "name"), [("", "cmrc2018"), ("_traditional", "drcd")])
def test_pairs_from_elsewhere(shared_data, folder, name):
    """Answers there are cut out of the text; what is found was looked at, and is right."""
    texts = {}
    for line in (shared_data / f"wiki{folder}/{name}.jsonl").read_text("utf-8").splitlines():
        record = json.loads(line)
        texts[record["id"]] = f"{record['title']}\n{clean(record['text'], record['title'])}"
    pairs = read_pairs(shared_data / f"qa{folder}/{name}.jsonl")
    assert not alarms(texts, pairs) - Counter(MOST[name])
    # The same pairs about another paragraph.
    generator, passed = random.Random(0), 0
    titles = {id_: text.partition("\n")[0] for id_, text in texts.items()}
    for id_, question, answer in pairs[::8]:
        others = [generator.choice(list(texts)) for _ in range(3)]
        other = next(other for other in others if titles[other] != titles[id_])
        passed += not set(ABOUT_THE_TEXT) & set(alarms(texts, [(other, question, answer)]))
    assert passed <= 0.03 * len(pairs[::8])
