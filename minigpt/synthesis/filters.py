"""Quality filters for generated question–answer pairs; each filter is a named rule.

    kept, findings = filter_pairs(pairs, title + "\\n" + text, Rules(question_max=20))
    if findings:
        ask_again(feedback(findings))           # the reasons are in Chinese, for the model

A rule checks the form of one pair, or whether the source text supports it. No rule knows the
facts. RULES lists all rules in the order in which they run.
"""

import functools
import re
import unicodedata
from dataclasses import dataclass, field
from decimal import Decimal
from typing import NamedTuple

from minigpt.synthesis.dedup import comparable
from minigpt.tokenizer.normalization import normalize


@dataclass(frozen=True)
class Rules:
    """The limits of a reply: pairs per entry, characters of a question and of an answer.

    grounding: the minimum share of an answer's character bigrams (of comparable()) that occur in
    the text. At 0.3 all 6,743 answers of CMRC 2018 and DRCD pass against their own paragraph, and
    99.2 % of the 959 reworded answers in sft/sft_saves.jsonl. Against a random other paragraph
    5.3 % pass, mostly short numbers, and 1.8 % with the other rules about the text. Of clauses
    from another paragraph 0.7 % and 0.3 % pass.
    """

    n_min: int = 3
    n_max: int = 6
    question_min: int = 1
    question_max: int = 15
    answer_min: int = 1
    answer_max: int = 300
    grounding: float = 0.3


class Finding(NamedTuple):
    """A broken rule. question: that of the pair, "" for the whole reply; reason: a Chinese sentence
    for the model."""

    rule: str
    question: str
    reason: str


RULES = {
    "too few": "fewer valid pairs than an entry needs",
    "too many": "more valid pairs than the maximum; the first ones are kept",
}
_CHECKS = {}  # rule → function (pair, _Context) → reason or None


def filter_pairs(pairs, text, rules, earlier=()):
    """(kept, findings): the valid pairs, at most `rules.n_max` together with `earlier`, and the
    broken rules of the other pairs and of the reply.

    text: the source text, with its title as the first line; None: no rule compares with a text.
    earlier: pairs of this entry that were kept before.
    """
    context = _Context(rules, None if text is None else _Source(text))
    context.asked.update(comparable(question) for question, _ in earlier)
    kept, findings = [], []
    for pair in pairs:
        reasons = {name: rule(pair, context) for name, rule in _CHECKS.items()}
        found = [Finding(name, pair.question, reason) for name, reason in reasons.items() if reason]
        findings += found
        if not found:
            kept.append(pair)
            context.asked.add(comparable(pair.question))
    room = max(0, rules.n_max - len(earlier))
    if len(kept) > room:
        reason = f"问答太多，只取前{rules.n_max}组。"
        findings.append(Finding("too many", "", reason))
    kept = kept[:room]
    count = len(earlier) + len(kept)
    if count < rules.n_min:
        reason = f"合格的问答只有{count}组，至少要有{rules.n_min}组。"
        if not pairs:
            reason = "没有读到问答，请只输出 JSON。"
        findings.insert(0, Finding("too few", "", reason))
    return kept, findings


LISTED = 8  # findings in one message: small models cannot follow more
SHOWN = 40  # characters of a quoted question


def feedback(findings):
    """The retry message for the model: the errors, and what to write instead."""
    lines = []
    for finding in findings[:LISTED]:
        quoted = finding.question.encode("utf-8", "replace").decode()[:SHOWN]
        lines.append(f"- “{quoted}”：{finding.reason}" if quoted else f"- {finding.reason}")
    return (
        "上面的回答有这些问题：\n"
        + "\n".join(lines)
        + "\n请把有问题的改正，或者换成另外的问答；其余要求不变，仍然只输出 JSON。"
    )


# -- the source text -------------------------------------------------------------------------------


class _Source:
    """The features of a text that the rules use."""

    def __init__(self, text):
        self.text = normalize("NFKC", text)
        self.title = text.partition("\n")[0].strip()
        self.bigrams = _bigrams(text)
        self.numbers = {value for _, value in _numbers(self.text)}
        self.latin = set(_latin(self.text))
        simplified, traditional = _scripts()
        counts = [sum(c in script for c in text) for script in (simplified, traditional)]
        names = "繁体", "简体"
        self.foreign = frozenset(), ""  # the characters of the other script, and its name
        if counts[0] != counts[1]:
            is_simplified = counts[0] > counts[1]
            others = traditional if is_simplified else simplified
            self.foreign = others - set(text), names[not is_simplified]


@dataclass
class _Context:
    """The state of the rules. asked: the questions kept so far, as comparable() strings."""

    rules: Rules
    source: _Source | None
    asked: set = field(default_factory=set)

    def has(self, words):
        """Whether these words are in the source text."""
        return self.source is not None and normalize("NFKC", words) in self.source.text


_SCALES = {"百": 100, "千": 1000, "万": 10_000, "萬": 10_000, "亿": 10**8, "億": 10**8}
_DIGITS = {c: i for i, c in enumerate("零一二三四五六七八九")} | {"〇": 0, "两": 2, "兩": 2}
_TENS = {"十": 10, "廿": 20, "卅": 30}
# The 千 of 千米 belongs to the unit: 5千米 is 5公里.
_ARABIC = r"(?:\d{1,3}(?:,\d{3}){1,9}(?!\d)|\d{1,30})(?:\.\d{1,30})?"
_SCALE = r"(?:[万萬亿億]|[百千](?![米克瓦卡帕赫伏])){0,4}"
_CHINESE = "".join([*_DIGITS, *_TENS, *_SCALES])
_NUMBER = re.compile(rf"({_ARABIC})\s?({_SCALE})|([{_CHINESE}]{{1,20}})")


def _number(match):
    """The value of a match of _NUMBER, in Arabic or Chinese numerals; None for a single numeral
    that is usually not a number, such as 一 or 百."""
    digits, scales, chinese = match.groups()
    if chinese:
        is_number = len(chinese) > 1 or chinese in "二三四五六七八九"
        return Decimal(_value(chinese)) if is_number else None
    value = Decimal(digits.replace(",", ""))
    for scale in scales:
        value *= _SCALES[scale]
    return value


def _numbers(text):
    """[(as written, value)] of the numbers of an NFKC text."""
    found = [(match[0].strip(), _number(match)) for match in _NUMBER.finditer(text)]
    return [(written, value) for written, value in found if value is not None]


def _bigrams(text):
    """The set of character bigrams of comparable(text), with all numbers in digits; the character
    itself if there is only one."""

    def in_digits(match):
        value = _number(match)
        return match[0] if value is None else f"{value.normalize():f}"

    text = comparable(_NUMBER.sub(in_digits, normalize("NFKC", text)))
    return {text[i : i + 2] for i in range(len(text) - 1)} or {text}


def _value(numeral):
    """The value of a Chinese numeral: 一千零五 = 1005, 二十三 = 23, 一九九四 = 1994."""
    if all(c in _DIGITS for c in numeral):
        return int("".join(str(_DIGITS[c]) for c in numeral))
    whole = part = digit = 0  # of 三十二万零五: whole 320000, part 0, digit 5
    for c in numeral:
        if c in _DIGITS:
            digit = _DIGITS[c]
        elif c in _TENS:
            part, digit = part + (digit or 1) * _TENS[c], 0
        elif _SCALES[c] < 10_000:
            part, digit = part + (digit or 1) * _SCALES[c], 0
        elif part + digit and whole > _SCALES[c]:  # 一亿二千万
            whole, part, digit = whole + (part + digit) * _SCALES[c], 0, 0
        else:  # 三十二万亿
            whole, part, digit = (whole + part + digit or 1) * _SCALES[c], 0, 0
    return whole + part + digit


def _latin(text):
    """The Latin words of an NFKC text, case-folded, without accents."""
    plain = normalize("NFD", text)
    plain = "".join(c for c in plain if not unicodedata.combining(c))
    return [word.casefold() for word in re.findall(r"[A-Za-z\u00c0-\u024f]+", plain)]


@functools.cache
def _scripts():
    """(simplified, traditional): the characters of only one script: those in GB 2312 but not in
    Big5, and vice versa."""

    def holds(c, codec):
        try:
            return bool(c.encode(codec))
        except UnicodeEncodeError:
            return False

    han = [chr(code) for code in range(0x4E00, 0xA000)]
    in_gb = {c for c in han if holds(c, "gb2312")}
    in_big5 = {c for c in han if holds(c, "big5")}
    return frozenset(in_gb - in_big5), frozenset(in_big5 - in_gb)


# -- the rules for one pair ------------------------------------------------------------------------


def _rule(name):
    """Register a function (pair, context) as a rule; its docstring describes the error."""

    def add(rule):
        RULES[name], _CHECKS[name] = rule.__doc__, rule
        return rule

    return add


@_rule("characters")
def _characters(pair, context):
    """surrogates, control, private-use or invisible characters"""
    for c in pair.question + pair.answer:
        is_whole = unicodedata.category(c) not in ("Cc", "Cf", "Cs", "Co") or c == "\n"
        if not is_whole or c == "\ufffd" or ord(c) & 0xFFFE == 0xFFFE:
            return f"含有不该有的字符U+{ord(c):04X}。"


@_rule("question length")
def _question_length(pair, context):
    """a question that is too long or too short"""
    least, most = context.rules.question_min, context.rules.question_max
    if not least <= len(pair.question) <= most:
        return f"问题有{len(pair.question)}个字，应为{least}到{most}个字。"


@_rule("answer length")
def _answer_length(pair, context):
    """an answer that is too long or too short"""
    least, most = context.rules.answer_min, context.rules.answer_max
    if not least <= len(pair.answer) <= most:
        return f"答案有{len(pair.answer)}个字，应为{least}到{most}个字。"


@_rule("no question")
def _no_question(pair, context):
    """the question does not end with a question mark"""
    if not pair.question.rstrip("”’」』）)\"' \n").endswith(("？", "?")):
        return "问题应以问号结尾。"


# Words that may precede the subject, and pronouns without a referent. Words that only start like a
# pronoun are excluded by (?!…): 其他, 他人, 他信, 他山之石, 该隐, 该亚, 此外, 那不勒斯.
_BEFORE = re.compile(
    "(?:请问|請問|为什么|為什麼|為甚麼|为何|為何|如何|怎么|怎麼|怎样|怎樣|什么时候|什麼時候|何时|何時"
    "|何年|哪一?[年天个個位些里裡]|关于|關於|对于|對於|根据|根據|截至|自从|自從|除了|因为|因為"
    "|[在当當从從由对對与與和跟被把给給除因自到至为為谁誰\\s，、：])*"
)
_PRONOUN = re.compile(
    "[他她它牠祂](?!人|国|國|乡|鄉|者|信|山之石)[们們]?"
    "|其(?!他|它|余|餘|实|實|乐|樂)"
    "|[该該](?!隐|隱|亚|亞|死)"
    "|此(?!外|起彼)"
    "|[这這]"
    "|那(?=[个個些位座部条條次年天种種场場本首只支名里裡儿兒时時样樣一两兩几幾人件项項段])"
    "|本(?=[书書片剧劇届屆次作站校季人])"
)


@_rule("pronoun")
def _pronoun(pair, context):
    """a pronoun instead of the subject: 他, 它, 这, 该 …"""
    title = context.source.title if context.source else ""
    for name, text in (("问题", pair.question), ("答案", pair.answer)):
        # The subject of an answer after 因为 is in the question.
        start = _BEFORE.match(text).end() if name == "问题" else 0
        found = _PRONOUN.match(text, start)
        if found and not (title and text.startswith(title, start)):
            return f"{name}以代词“{found[0]}”代替主语，应写出名称。"


_TEXT = "(?:文章|文本|文段|原文|短文|材料|资料|資料|条目|條目|词条|詞條|段落|内容|內容|信息|描述)"
_POINTING = re.compile(
    "(?<![中英法德俄日韩韓外古汉漢诗詩散论論作课課经經条條译譯正])文[中内內]"
    "|[上下前后後本该該此这這](?:述文字|文(?![化件字明学學体體艺藝本献獻武官科人]))"
    "|[上前]述"
    f"|(?<![”」』》])[这這本该該此](?:[段篇][话話文]|一?[段篇个個条條则則]?{_TEXT})|以上{_TEXT}"
    f"|(?:根据|根據|按照|依据|依據|据|據)(?:所给|所給|给出|給出|提供)?的?{_TEXT}"
    f"|(?<![\u4e00-\u9fff]){_TEXT}(?:[中里裡内內]|提到|提及|指出|说|說|介绍|介紹)"
)


@_rule("points at the text")
def _points_at_the_text(pair, context):
    """words that refer to the source text: 文中, 上文, 根据材料 …"""
    # Each phrase once, because a search scans the whole text.
    found = _POINTING.finditer(pair.question + "\n" + pair.answer)
    for words in dict.fromkeys(match[0] for match in found):
        if not context.has(words):
            return f"“{words}”离开原文就看不懂，应直接写出所指的内容。"


_MODEL = "(?:大型?)?(?:AI|人工智能|人工智慧|语言模型|語言模型|智能助手|聊天机器人|聊天機器人)"
_ITSELF = re.compile(
    f"作[为為](?:一[个個名款位种種])?{_MODEL}(?:助手|助理|模型|系统|程序|语言模型)?(?=[，,我])"
    f"|我(?:只|仅)?是(?:一[个個名款位种種])?{_MODEL}"
    "|(?:抱歉|对不起|對不起|不好意思)[，,。！!]?\\s?我"
    "|我(?:无法|無法|不能|没有办法|沒有辦法|没办法)(?:回答|提供|确定|確定|访问|判断|判斷|给出|給出)"
    "|我的(?:训练数据|訓練資料|知识库|知識庫)"
    "|as an ai\\b|language model,? i\\b",
    re.IGNORECASE,
)


@_rule("talks of itself")
def _talks_of_itself(pair, context):
    """the model speaks of itself: 作为AI, 很抱歉，我 …"""
    found = _ITSELF.search(pair.question + "\n" + pair.answer)
    if found and not context.has(found[0]):
        return "不要谈论自己，只写条目里的事实。"


LOOP_LEAST = 12  # minimum number of 4-grams of a loop
LOOP_SHARE = 0.4  # minimum share of repeated 4-grams


@_rule("repetition")
def _repetition(pair, context):
    """the same words repeated many times"""
    for text in pair:
        text = re.sub(r"\d+", "0", comparable(text))  # a number with many zeros is not a loop
        grams = [text[i : i + 4] for i in range(len(text) - 3)]
        if len(grams) >= LOOP_LEAST and len(set(grams)) < (1 - LOOP_SHARE) * len(grams):
            return "反复写了同样的话。"


@_rule("answer is the question")
def _answer_is_the_question(pair, context):
    """the answer repeats the question"""
    if comparable(pair.answer) == comparable(pair.question):
        return "答案只是重复了问题。"


@_rule("same question")
def _same_question(pair, context):
    """the question of an earlier pair"""
    if comparable(pair.question) in context.asked:
        return "这个问题已经问过，请问别的事。"


@_rule("script")
def _script(pair, context):
    """traditional characters for a simplified text, or vice versa"""
    if context.source:
        others, name = context.source.foreign
        found = [c for c in dict.fromkeys(pair.question + pair.answer) if c in others]
        if found:
            return f"“{''.join(found[:5])}”是{name}字，应与原文的字体一致。"


@_rule("number not in text")
def _number_not_in_text(pair, context):
    """a number in the answer that is not in the text"""
    if context.source:
        for written, value in dict.fromkeys(_numbers(normalize("NFKC", pair.answer))):
            if value not in context.source.numbers and not _is_numeral_in(
                written, context.source.text
            ):
                return f"答案里的数字“{written}”在原文里没有。"


def _is_numeral_in(written, text):
    """Whether a Chinese numeral is a substring of the text, maybe within a word: 四川, 三国."""
    return written[0] in _CHINESE and written in text


@_rule("Latin not in text")
def _latin_not_in_text(pair, context):
    """a word in Latin letters in the answer that is not in the text"""
    if context.source:
        for word in _latin(normalize("NFKC", pair.answer)):
            if word not in context.source.latin:
                return f"答案里的“{word[:30]}”在原文里没有。"


@_rule("ungrounded")
def _ungrounded(pair, context):
    """the answer has too few bigrams in common with the text"""
    if context.source:
        grams = _bigrams(pair.answer)
        found = sum(gram in context.source.bigrams for gram in grams)
        is_character = len(comparable(pair.answer)) == 1 and context.has(comparable(pair.answer))
        if found < context.rules.grounding * len(grams) and not is_character:
            return "答案在原文里找不到依据，应只用原文里的内容。"
