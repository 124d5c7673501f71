"""Rewards: what an answer is worth, by rules that a program can check.

    REWARDS["exact"]("37+458=", "495", {"answer": "495"})     # 1.0

A reward is a plain function (prompt, answer, record) → float, here from 0 to 1. prompt: the text of
the last question; answer: what the model wrote; record: a line of the prompts' train.jsonl, with
the reference as `answer` and every other field that the user gave. To add one, write such a
function and name it in REWARDS. A function of your own needs no place here: --reward=my_reward.py.
"""

import functools
import re

from minigpt.common.errors import UserError
from minigpt.common.report import one_line
from minigpt.evaluation import poems
from minigpt.evaluation.repetition import distinct
from minigpt.evaluation.rouge import characters, rouge_l

_NUMBER = re.compile(r"(?:(?<!\d)[-−])?\d[\d,，]*(?:\.\d+)?")
MOST_DIGITS = 100  # of a number: longer ones are compared as text


def field(record, name, kind, reward):
    """The field of a record that a reward needs. UserError where it is missing or another kind."""
    value = record.get(name)
    if not isinstance(value, kind) or isinstance(value, bool):
        expected = "a text" if kind is str else "a number"
        found = "is missing" if value is None else f"is {one_line(repr(value), 60)}"
        raise UserError(
            f"reward {reward}: the field `{name}` of a prompt {found}, expected {expected}; the "
            f"prompt: {one_line(str(record.get('prompt')), 80)}; give it in the records and "
            f"prepare them again (data/prepare_prompts.py), or take another reward"
        )
    return value


# -- against a reference ---------------------------------------------------------------------------


def exact(prompt, answer, record):
    """1 where the answer is the reference, blanks at both ends apart."""
    return float(answer.strip() == field(record, "answer", str, "exact").strip())


def number(prompt, answer, record):
    """1 where the last number of the answer is the last number of the reference: 1,024 is 1024.0.
    0 where either has none."""
    wanted = _last_number(field(record, "answer", str, "number"))
    return float(wanted is not None and _last_number(answer) == wanted)


def _last_number(text):
    """The last number in a text, in a form of which there is one for each number; or None."""
    found = _NUMBER.findall(text)
    if not found:
        return None
    whole, _, part = found[-1].replace(",", "").replace("，", "").replace("−", "-").partition(".")
    sign, whole = ("-" if whole.startswith("-") else ""), whole.lstrip("-")
    # int() reads the digits of all scripts; not of more than 4,300 at once.
    whole = str(int(whole)) if len(whole) <= MOST_DIGITS else whole.lstrip("0")
    part = part.rstrip("0")
    return "0" if whole == "0" and not part else f"{sign}{whole}.{part}"


def rouge(prompt, answer, record):
    """ROUGE-L of the characters of the answer and the reference (minigpt/evaluation/rouge.py)."""
    reference = field(record, "answer", str, "rouge")
    return rouge_l(characters(answer), characters(reference))


# -- without one -----------------------------------------------------------------------------------


def pattern(prompt, answer, record):
    """1 where the whole answer, blanks at both ends apart, matches record["pattern"], a regular
    expression. UserError where it is none."""
    wanted = _compiled(field(record, "pattern", str, "pattern"))
    return float(bool(wanted.fullmatch(answer.strip())))


@functools.lru_cache(1024)
def _compiled(text):
    try:
        return re.compile(text, re.DOTALL)
    except (re.error, OverflowError, RecursionError) as error:
        raise UserError(
            f"reward pattern: {one_line(text, 80)}: no regular expression ({error})"
        ) from None


def length(prompt, answer, record):
    """How near the number of characters is to record["length"] (or to that of the reference): 1 −
    |difference| / the larger of both; 1 at the same length."""
    if "length" in record:
        wanted = field(record, "length", int | float, "length")
    else:
        wanted = len(field(record, "answer", str, "length"))
    longer = max(wanted, len(answer))
    return 1 - abs(wanted - len(answer)) / longer if longer > 0 else 1.0


def repetition(prompt, answer, record):
    """1 − the share of the characters' 4-grams that occurred before: 1 where nothing repeats."""
    return distinct(answer, 4)


# -- poems -----------------------------------------------------------------------------------------
# What data/prepare_poems.py asks for is in the records: `lines`, `characters`, `heads`, `given`.


def form(prompt, answer, record):
    """The share of the lines that have the asked number of characters (evaluation/poems.py)."""
    return poems.form(answer, record)


def rhyme(prompt, answer, record):
    """The share of the even lines that end in the same rhyme. 0 where a form was asked and is not
    kept: else surplus lines would pay."""
    asked = record.get("lines") or record.get("characters")
    if asked and poems.form(answer, record) < 1:
        return 0.0
    return poems.rhyme((record.get("given") or "") + answer)


def rhyme_places(prompt, answer, record):
    """The indices of the characters of the answer by which rhyme() judges it."""
    given = record.get("given") or ""
    return [at - len(given) for at in poems.rhyme_places(given + answer) if at >= len(given)]


def heads(prompt, answer, record):
    """The share of the lines that begin with the character asked for them; 1 where none were."""
    return poems.heads(answer, record)


REWARDS = {
    "exact": exact,
    "number": number,
    "rouge": rouge,
    "pattern": pattern,
    "length": length,
    "repetition": repetition,
    "form": form,
    "rhyme": rhyme,
    "heads": heads,
}
# The rewards that depend on a few characters: only these learn from them.
PLACES = {"rhyme": rhyme_places}
