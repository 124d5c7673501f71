"""Parsing: the question–answer pairs in a reply of a model.

    parse_reply('好的：```json\\n[{"question": "黄河有多长？", "answer": "5464千米。"}]\\n```')
    → [QA(question='黄河有多长？', answer='5464千米。')]

The prompt asks for JSON and models write something like it. Each object is parsed by itself, so
that a mistake in one costs no other: as JSON, then with ASCII punctuation, then by json-repair.
A string that runs to the end of the reply is never repaired, whatever the server says about the
end: that would invent the end of an answer.
"""

import json
import re
from typing import NamedTuple

from minigpt.tokenizer.normalization import normalize

LONGEST = 100_000  # characters of a reply that are read, its thinking left out
BROKEN = 200  # objects that may fail to parse; a reply with more holds no pairs
REPAIRED = 4_000  # characters of an object that is repaired: json-repair's time is their square …
REPAIRED_IN_ALL = 16_000  # … and of all of them in a reply

QUESTION = ("question", "q", "问题", "問題", "问", "問")
ANSWER = ("answer", "a", "答案", "回答", "答")
NAMES = QUESTION, ANSWER

QUOTE = "[\"'“”‘’＂]"
BEGINS = re.compile(rf"\{{\s{{0,99}}{QUOTE}?\w[\w .-]{{0,30}}{QUOTE}?\s{{0,99}}[:：]")
ENDS = re.compile(rf"(?:{QUOTE}|\d)\s*(?:[,，]\s*)?\}}(?=[\s,，;；\]}}`]|$)")

# Numbers stay as strings: 3.10 is a version, and a huge one would be refused.
_DECODER = json.JSONDecoder(
    strict=False, parse_int=str, parse_float=str, parse_constant=lambda name: None
)


class QA(NamedTuple):
    """A question and its answer, without spaces at their ends."""

    question: str
    answer: str


def parse_reply(text, cut=False):
    """The pairs in a reply, [] where none can be parsed. Never raises.

    Parses JSON of any shape (a list, an object with a list somewhere in it, one object, an object
    a line), alone, in fences or between prose, with full-width quotes, colons and commas, inner
    quotes that are not escaped, commas too many or too few. Numbers become strings; an object whose
    question or answer is anything else is skipped. A <think> part is dropped. Of an object that
    the reply's end breaks off nothing is kept.
    cut: the server says that the reply broke off; without it, an object that lacks only its last
    brace is whole.
    """
    return [pair for value in objects_in(text, cut) for pair in _pairs(value)]


def breaks_off(text):
    """Whether a reply ends within an object, so that its end is missing."""
    text = _without_thinking(text)[:LONGEST]
    starts = [begins.start() for begins in BEGINS.finditer(text)]
    return bool(starts) and not ENDS.search(text, starts[-1])


def objects_in(text, cut=False):
    """Yield the value of each object in a reply that begins as JSON does; see parse_reply()."""
    text = _without_thinking(text)
    cut, text = cut or len(text) > LONGEST, text[:LONGEST]
    place, broken, budget = 0, 0, REPAIRED_IN_ALL
    end = len(text)  # no object begins after it
    while broken < BROKEN and (begins := BEGINS.search(text, place, end)):
        start = begins.start()
        try:
            value, place = _DECODER.raw_decode(text, start)
            yield value
            continue
        except RecursionError:
            problem = None
        except ValueError as error:
            problem = error
        broken, place = broken + 1, begins.end()
        lacks_brace = not cut and _lacks_brace(problem, text)
        if _runs_out(problem, text) and not lacks_brace:
            # Behind the quote that opens the last string is nothing but that string.
            end = problem.pos if problem.msg.startswith("Unterminated") else end
            continue
        following = BEGINS.search(text, place, end)
        part = text[start : following.start() if following else end]
        part = _closed(part, cut or not (following or lacks_brace))
        if len(part) <= min(REPAIRED, budget):
            budget -= len(part)
            yield _repaired(part)


def _without_thinking(text):
    text = text.lstrip("\ufeff \t\r\n")
    if text.startswith("<think>"):
        return text.partition("</think>")[2]
    # Some templates write <think> into the prompt, so that the reply has but its end.
    return text if text.startswith(("{", "[", "`")) else text.rpartition("</think>")[2]


def _runs_out(problem, text):
    """Whether an object is not JSON only because its text ends: a JSONDecodeError says where."""
    if problem is None:
        return False
    return (
        problem.msg.startswith("Unterminated")
        or problem.pos >= len(text.rstrip())
        or ("uXXXX" in problem.msg and problem.pos > len(text) - 6)
    )


def _lacks_brace(problem, text):
    """Whether an object at the end of a reply is JSON but for its last brace: its last string is
    closed."""
    is_at_end = problem is not None and problem.pos >= len(text.rstrip())
    return is_at_end and "delimiter" in problem.msg and text.rstrip().endswith('"')


def _closed(part, may_be_cut):
    """`part` up to the brace that ends its object: the last one behind a value; else, but not where
    the object may be cut, the last one, or all of it."""
    ends = [match.end() for match in ENDS.finditer(part)]
    if ends or may_be_cut:
        return part[: ends[-1]] if ends else ""
    return part[: part.rfind("}") + 1] or part


def _repaired(part):
    """The probable value of an object that is not JSON; None where there is none."""
    part = _with_ascii_syntax(part)
    try:
        return _DECODER.decode(part)
    except (ValueError, RecursionError):
        import json_repair  # imported here: most replies need no repair

        try:
            return json_repair.loads(part, skip_json_loads=True)
        except Exception:  # whatever a repair raises, it costs one object
            return None


_BEFORE = rf"(\{{\s*|(?:{QUOTE}|\d)\s*[,，]\s*)"  # a key
_KEY = r'"\w{1,20}": '  # as the first step leaves it
_SYNTAX = [
    (re.compile(rf"{_BEFORE}{QUOTE}(\w{{1,20}}){QUOTE}\s*[:：]\s*"), r'\1"\2": '),
    (re.compile(rf"({_KEY}){QUOTE}"), r'\1"'),
    (re.compile(rf"{QUOTE}\s*[,，](?=\s*{_KEY})"), '",'),
    (re.compile(rf"{QUOTE}(?=\s*(?:[,，]\s*)?\}}\s*$)"), '"'),
    (re.compile(r"，(?=\s*\}\s*$)"), ","),
]


def _with_ascii_syntax(part):
    """An object's quotes, colons and commas as JSON has them, those within its strings unchanged:
    the ones beside a key or an end are syntax."""
    for pattern, replacement in _SYNTAX:
        part = pattern.sub(replacement, part)
    return part


def _pairs(value):
    """Every pair in what JSON gave, in order."""
    found, waiting = [], [value]
    while waiting:
        value = waiting.pop()
        if isinstance(value, dict):
            named = {normalize("NFKC", key).strip().casefold(): key for key in value}
            keys = [next((named[n] for n in names if n in named), None) for names in NAMES]
            if None not in keys:
                texts = [_text(value[key]) for key in keys]
                if None not in texts:
                    found.append(QA(*texts))
                continue
            value = list(value.values())
        if isinstance(value, list):
            waiting += reversed(value)
    return found


def _text(value):
    """A string of a string or a number, None of anything else."""
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return str(value).strip() if is_number or isinstance(value, str) else None
