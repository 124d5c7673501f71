"""A judge: another model, behind an OpenAI address, marks answers from 1 to 10.

    judge = make_judge("http://localhost:1234/v1", model="", key_env="")
    judge("黄河有多长？", "五千多公里。", record)        # 0.8: eight of ten

An answer is asked about once (a cache of MOST_CACHED), at most TRIES times, and its mark is at most
MOST_TOKENS long. An answer without a mark counts 0; after SILENT of them in a row the run stops.
"""

import os
import re
import threading
import time
from collections import OrderedDict

from minigpt.common.errors import UserError
from minigpt.common.report import one_line
from minigpt.common.urls import api_path, is_key, is_variable, problem_of_url, with_scheme
from minigpt.openai.client import Client
from minigpt.openai.errors import QuestionRefused, ServerUnusable, TemporaryError

TRIES, PAUSE = 3, 2.0  # of one answer; seconds before the second one, then twice as many
SILENT = 20  # answers in a row without a mark: this model is no judge
MOST_CACHED, MOST_TOKENS, TIMEOUT = 100_000, 512, 120.0
_MARK = re.compile(r"评分\D{0,9}?(10|[1-9])(?![\d.])")
_BARE = re.compile(r"(?<![\d.])(10|[1-9])(?![\d.])")

SYSTEM = "你是严格的阅卷老师。你只给分，不解释。"
PROMPT = """\
请给下面的回答打分：1 分最差，10 分最好。看它是否切题、正确、通顺。{reference}

问题：
{prompt}

回答：
{answer}

只输出一行：评分：N（N 是 1 到 10 的整数）"""


class Judge:
    """See the module's docstring. ask(messages) → the text of a reply; it raises TemporaryError,
    QuestionRefused or ServerUnusable. Any thread may call it."""

    def __init__(self, ask):
        self._ask, self._lock, self._silent = ask, threading.Lock(), 0
        self._marks = OrderedDict()  # (prompt, answer) → mark, the oldest first

    def __call__(self, prompt, answer, record):
        """The mark divided by 10. UserError where the server cannot be used."""
        key = prompt, answer
        with self._lock:
            if key in self._marks:
                return self._marks[key]
        mark = self._mark(prompt, answer, str(record.get("answer", "")))
        with self._lock:
            self._silent = 0 if mark else self._silent + 1
            if self._silent >= SILENT:
                raise UserError(
                    f"the judge gave no mark for {SILENT} answers in a row; take another model "
                    f"(--judge_model)"
                )
            self._marks[key] = mark / 10
            if len(self._marks) > MOST_CACHED:
                self._marks.popitem(last=False)
        return mark / 10

    def _mark(self, prompt, answer, reference):
        """1 to 10; 0 where the model gives no mark."""
        reference = f"\n参考答案：{reference}" if reference else ""
        asked = PROMPT.format(prompt=prompt, answer=answer, reference=reference)
        messages = [{"role": "system", "content": SYSTEM}, {"role": "user", "content": asked}]
        for attempt in range(TRIES):
            try:
                if mark := mark_in(self._ask(messages)):
                    return mark
            except TemporaryError as error:
                if attempt == TRIES - 1:
                    raise UserError(
                        f"the judge does not answer ({one_line(str(error))}); the last checkpoint "
                        f"is intact: continue with --init_from=resume"
                    ) from None
                time.sleep(PAUSE * 2**attempt)
            except ServerUnusable as error:
                raise UserError(f"--judge_url: {one_line(str(error))}") from None
            except QuestionRefused:
                return 0
        return 0


def mark_in(text):
    """The mark in a judge's reply, 1 to 10: after 评分, or the first number of the last line; 0
    where there is none."""
    if found := _MARK.findall(text):
        return int(found[-1])
    lines = [line for line in text.splitlines() if line.strip()]
    found = _BARE.search(lines[-1]) if lines else None
    return int(found[1]) if found else 0


def make_judge(url, model="", key_env=""):
    """The Judge at an address. model: "": the first one that the server lists. key_env: the
    environment variable with its key. UserError where the address or the key is none, or where the
    server cannot be used."""
    url = with_scheme(url.strip()) if url.strip() else ""
    problem = problem_of_url(url) if url else "missing"
    if problem:
        raise UserError(
            f"--judge_url: {problem}; --reward=judge asks a server, such as "
            f"http://localhost:1234/v1"
        )
    if key_env and not is_variable(key_env):
        raise UserError("--judge_key_env: expected the NAME of an environment variable")
    key = os.environ.get(key_env, "").strip() if key_env else None
    if key_env and not is_key(key):
        raise UserError(f"--judge_key_env: the environment variable {key_env} holds no key")
    base = url.split("/", 3)
    client = Client("/".join(base[:3]) + api_path(url), key, url, timeout=TIMEOUT)
    try:
        model = model or (client.models() or [""])[0]
    except (TemporaryError, ServerUnusable) as error:
        raise UserError(f"--judge_url={url}: {one_line(str(error))}") from None

    def ask(messages):
        question = dict(model=model, messages=messages, max_tokens=MOST_TOKENS, temperature=0)
        return client.ask(question).text

    return Judge(ask)
