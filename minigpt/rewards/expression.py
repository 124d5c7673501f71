"""The setting `reward` → a Reward: a weighted sum of the registry's rewards, or a file of the user.

    reward = load_reward("form+0.5*rhyme")          # names of functions.REWARDS
    reward = load_reward("my_reward.py")            # its function reward(prompt, answer, record)
    score = reward("37+458=", "495", record)        # Score(total=1.0, parts={"exact": 1.0})

An expression is parsed, never evaluated. A file is the user's own code, which is run.
"""

import math
import re
import runpy
import traceback
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

from minigpt.common.errors import UserError
from minigpt.common.report import one_line
from minigpt.rewards.functions import PLACES, REWARDS

_TERM = re.compile(r"\s*([+-])?\s*(?:(\d+(?:\.\d+)?|\.\d+)\s*\*\s*)?([a-z_]\w*)\s*", re.ASCII)
JUDGE = "judge"  # the reward of judge.py
THREADS = 8  # questions that it is asked at the same time


class Score(NamedTuple):
    """What an answer is worth. parts: name → value before its weight. places: name → (weighted
    value, indices of characters), of the parts that depend on these characters alone."""

    total: float
    parts: dict
    places: dict = {}


class Reward:
    """A reward by its terms: [(weight, name, function), …]. UserError, with prompt and answer,
    where a function fails or returns no number."""

    def __init__(self, terms):
        self.terms = terms

    def scores(self, items):
        """The Scores of [(prompt, answer, record), …]; a server is asked several at once."""
        if all(name != JUDGE for _, name, _ in self.terms):
            return [self(*item) for item in items]
        with ThreadPoolExecutor(THREADS) as pool:
            return list(pool.map(lambda item: self(*item), items))

    def __call__(self, prompt, answer, record):
        """The Score of an answer."""
        total, parts, places = 0.0, {}, {}
        for weight, name, function in self.terms:
            try:
                found = function(prompt, answer, record)
            except UserError:
                raise
            except Exception as error:  # a function of the user may raise anything
                raise UserError(_failed(name, _where(error), prompt, answer)) from None
            found = found if isinstance(found, dict) else {name: found}
            for part, value in found.items():
                parts[str(part)] = value = _number(value, name, prompt, answer)
                total += weight * value
                if part in PLACES and function is REWARDS.get(part):
                    places[part] = weight * value, PLACES[part](prompt, answer, record)
        return Score(total, parts, places)


def load_reward(text, make_judge=None):
    """The Reward that a setting names. make_judge(): the function of the reward `judge`; called
    where the expression names it. UserError where the text is neither an expression nor a file."""
    if text.endswith(".py"):
        return Reward([(1.0, Path(text).stem, _function_of(Path(text).expanduser()))])
    terms = parse(text, [*REWARDS, JUDGE])
    known = REWARDS | ({JUDGE: make_judge()} if JUDGE in [name for _, name in terms] else {})
    return Reward([(weight, name, known[name]) for weight, name in terms])


def parse(text, known):
    """An expression such as form+0.5*rhyme-0.1*length as [(weight, name), …]. UserError where it is
    none, and for names that are not in `known`."""
    terms, at = [], 0
    while at < len(text):
        match = _TERM.match(text, at)
        if not match or (terms and not match[1]):
            raise UserError(
                f"--reward={one_line(text, 80)}: cannot be read from character {at + 1} on; "
                f"expected names with weights, such as exact or form+0.5*rhyme, or FILE.py"
            )
        sign, weight, name = match.groups()
        terms.append((float(weight or 1) * (-1 if sign == "-" else 1), name))
        at = match.end()
    names = [name for _, name in terms]
    wrong = [name for name in names if name not in known]
    if wrong or not terms or len(set(names)) < len(names):
        problem = f"no reward {wrong[0]}" if wrong else "names twice" if terms else "empty"
        raise UserError(
            f"--reward={one_line(text, 80)}: {problem}; expected a sum of {', '.join(known)}, such "
            f"as exact+0.1*length, or FILE.py with a function reward(prompt, answer, record)"
        )
    return terms


def _function_of(path):
    try:
        found = runpy.run_path(str(path), run_name=path.stem)
    except FileNotFoundError:
        raise UserError(f"--reward={path}: no such file") from None
    except (Exception, SystemExit) as error:
        raise UserError(f"--reward={path}: {_where(error)}") from None
    function = found.get("reward")
    if not callable(function):
        raise UserError(f"--reward={path}: has no function reward(prompt, answer, record)")
    return function


def _where(error):
    """An exception in one line, with the last line of code that it came through."""
    place = traceback.extract_tb(error.__traceback__)[-1]
    name = type(error).__name__
    return f"{name}: {one_line(str(error), 120)} ({Path(place.filename).name}:{place.lineno})"


def _number(value, name, prompt, answer):
    try:
        value = float(value)
    except (TypeError, ValueError, OverflowError):
        value = f"returned {one_line(repr(value), 60)}"
    else:
        if math.isfinite(value):
            return value
    raise UserError(_failed(name, f"{value}: expected a number, or a dict of them", prompt, answer))


def _failed(name, why, prompt, answer):
    return (
        f"reward {name}: {why}; the prompt: {one_line(prompt, 120)}; the answer: "
        f"{one_line(answer, 120)}"
    )
