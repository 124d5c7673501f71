"""The judge: asks a model whether answers follow from the text that they were written from.

    judge = Judge(ask)                                  # ask(messages, attempt) → an Answer
    judgement = judge(title, text, pairs)               # pairs: QAs
    judgement.kept, judgement.findings, judgement.usage

The rules of minigpt/synthesis/filters.py compare words, and no rule knows what they say. The judge
reads. It says yes or no to each pair, and a yes has to quote the words of the text that support it:
a quote that is not in the text is a no.
"""

import re
import threading
from typing import NamedTuple

from minigpt.common.errors import UserError
from minigpt.common.report import one_line
from minigpt.openai.errors import QuestionRefused
from minigpt.synthesis.dedup import comparable
from minigpt.synthesis.filters import Finding
from minigpt.synthesis.parsing import objects_in

RULE = "does not follow"  # the name of the broken rule, in progress and statistics
TRIES = 3  # of one entry, until every pair has its verdict
SILENT = 10  # entries in a row without a verdict: this model is no judge
LEAST_QUOTE = 2  # characters, of comparable()

SYSTEM = "你是事实核对员。你只依据给出的条目判断，不用条目以外的知识。你只输出 JSON。"
PROMPT = """\
下面有一个条目和{n}组编了号的问答。逐组判断：只读条目，能不能确定这个答案是对的？
数字、时间、人名、地名、先后、因果、否定、范围都要与条目一致；条目没有说的，算“no”；答非所问，也算“no”。

每组写一个对象，原文逐字照抄，no不必引：
{{"n": 编号, "follows": "yes"或"no", "quote": "支持答案的原文"}}

标题：{title}

正文：
{text}

问答：
{pairs}

现在只输出 JSON：{{"verdicts": [……]}}"""
REMINDER = "还缺第{missing}组的判断，或者格式不对。请把{n}组的判断全部写出，只输出 JSON。"

_VERDICT = {
    "type": "object",
    "properties": {
        "n": {"type": "integer"},
        "follows": {"type": "string", "enum": ["yes", "no"]},
        "quote": {"type": "string"},
    },
    "required": ["n", "follows", "quote"],
    "additionalProperties": False,
}
SCHEMA = {
    "type": "object",
    "properties": {"verdicts": {"type": "array", "items": _VERDICT}},
    "required": ["verdicts"],
    "additionalProperties": False,
}
_YES = {"yes", "true", "是", "能", "可以", "对", "y", "1"}
_NO = {"no", "false", "否", "不能", "不可以", "不对", "不是", "n", "0"}


class Usage(NamedTuple):
    """What judging cost. uncounted: answers of which the server reports no tokens."""

    answers: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    uncounted: int = 0

    def plus(self, other):
        """The sum of two Usages."""
        return Usage(*map(sum, zip(self, other, strict=True)))


def _usage_of(answer):
    tokens = answer.prompt_tokens, answer.completion_tokens
    return Usage(1, *(n or 0 for n in tokens), None in tokens)


class Judgement(NamedTuple):
    """kept: the pairs that follow from the text; findings: a Finding for each other one."""

    kept: list
    findings: list
    usage: Usage


class NoVerdict(QuestionRefused):
    """The judge did not judge every pair. usage: what it cost nevertheless."""

    def __init__(self, message, usage):
        super().__init__(message, (None, "no verdict"))
        self.usage = usage


class Judge:
    """See the module's docstring. Any thread may call it."""

    def __init__(self, ask):
        self._ask, self._lock, self._silent = ask, threading.Lock(), 0

    def __call__(self, title, text, pairs):
        """The Judgement of pairs about a text. NoVerdict where the model gives none on some pair,
        UserError where it has given none on SILENT entries in a row."""
        source = comparable(f"{title}\n{text}")
        messages, usage, verdicts = _messages(title, text, pairs), Usage(), {}
        for attempt in range(TRIES):
            try:
                answer = self._ask(messages, attempt)
            except QuestionRefused as error:
                raise NoVerdict(f"the judge: {error}", usage) from None
            usage = usage.plus(_usage_of(answer))
            verdicts |= _verdicts_in(answer.text, answer.cut, len(pairs), source)
            missing = [str(n) for n in range(1, len(pairs) + 1) if n not in verdicts]
            if not missing:
                self._count(answer, True)
                return _judgement(pairs, verdicts, usage)
            messages = [
                *messages,
                {"role": "assistant", "content": answer.text.strip() or "{}"},
                {
                    "role": "user",
                    "content": REMINDER.format(missing="、".join(missing), n=len(pairs)),
                },
            ]
        self._count(answer, bool(verdicts))
        raise NoVerdict(f"the judge gave no verdict on {len(missing)} of {len(pairs)} pairs", usage)

    def _count(self, answer, has_judged):
        with self._lock:
            self._silent = 0 if has_judged else self._silent + 1
            if self._silent >= SILENT:
                raise UserError(
                    f"{answer.server}: as a judge it gave no verdict on {SILENT} entries in a row; "
                    f"take another model (--verify_model). Its last reply: {one_line(answer.text)}"
                )


def _messages(title, text, pairs):
    numbered = "\n".join(f"{i}. 问：{q}\n   答：{a}" for i, (q, a) in enumerate(pairs, start=1))
    user = PROMPT.format(n=len(pairs), title=title, text=text, pairs=numbered)
    return [{"role": "system", "content": SYSTEM}, {"role": "user", "content": user}]


def _judgement(pairs, verdicts, usage):
    kept, findings = [], []
    for n, pair in enumerate(pairs, start=1):
        if verdicts[n]:
            kept.append(pair)
        else:
            reason = "答案不能由条目得出，请只写条目中明说的事实。"
            findings.append(Finding(RULE, pair.question, reason))
    return Judgement(kept, findings, usage)


def _verdicts_in(text, cut, n_pairs, source):
    """{number of a pair: whether it follows} of a reply."""
    found = {}
    for value in objects_in(text, cut):
        waiting = [value]
        while waiting:
            value = waiting.pop()
            if isinstance(value, dict) and "follows" in value:
                number, verdict = str(value.get("n", "")), _verdict(value, source)
                if number.isascii() and number.isdigit() and 1 <= int(number[:9]) <= n_pairs:
                    found.update({int(number): verdict} if verdict is not None else {})
            elif isinstance(value, dict | list):
                waiting += value.values() if isinstance(value, dict) else value
    return found


def _verdict(value, source):
    """True, False, or None where the object holds no verdict."""
    word = str(value["follows"]).strip().casefold()
    if word in _NO:
        return False
    return _is_quoted(str(value.get("quote", "")), source) if word in _YES else None


def _is_quoted(quote, source):
    """Whether a quote is in the text, word for word; what … leaves out apart."""
    parts = [comparable(part) for part in re.split(r"…+|\.{3,}", quote)]
    parts = [part for part in parts if part]
    return sum(map(len, parts)) >= LEAST_QUOTE and all(part in source for part in parts)
