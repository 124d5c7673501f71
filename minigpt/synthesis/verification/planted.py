"""Planted errors: pairs that are known to be wrong, to measure what finds them.

    for kind, pair in plant_errors(pairs, seed=0): …          # pairs: formats.Pair, with ids

Each error keeps the form of a good pair: what changes is what it says.
"""

import random
import re
from collections import defaultdict

_NUMBER = re.compile(r"\d+")
# The first of these in an answer is turned into its opposite.
_OPPOSITES = {
    **{"不是": "是", "没有": "有", "不能": "能", "是": "不是", "有": "没有", "能": "不能"},
    **{
        "最大": "最小",
        "最小": "最大",
        "第一": "最后",
        "东": "西",
        "西": "东",
        "南": "北",
        "北": "南",
    },
    **{"增加": "减少", "减少": "增加", "早于": "晚于", "支持": "反对", "反对": "支持"},
}
_OPPOSITE = re.compile("|".join(sorted(_OPPOSITES, key=len, reverse=True)))
KINDS = {
    "another text": "the answer of a pair about another text",
    "another question": "the answer of another pair about the same text",
    "number": "a number in the answer is changed",
    "opposite": "a word in the answer is turned into its opposite",
}


def plant_errors(pairs, seed=0):
    """[(kind of KINDS, Pair)], an error for each kind that a pair allows."""
    draw, by_id = random.Random(seed), defaultdict(list)
    for pair in pairs:
        by_id[pair.id].append(pair)
    found = []
    for pair in pairs:
        others = [other for other in by_id[pair.id] if _differ(other.answer, pair.answer)]
        stranger = draw.choice(pairs)
        is_other = stranger.id != pair.id and _differ(stranger.answer, pair.answer)
        wrong = {
            "another text": stranger.answer if is_other else None,
            "another question": draw.choice(others).answer if others else None,
            "number": _other_number(pair.answer, draw),
            "opposite": _opposite(pair.answer),
        }
        found += [(kind, pair._replace(answer=text)) for kind, text in wrong.items() if text]
    return found


def _differ(one, other):
    """Whether neither answer is a part of the other one, which could be right, too."""
    return one not in other and other not in one


def _other_number(answer, draw):
    """The answer with its first number changed by a little; None where it has none."""
    number = _NUMBER.search(answer)
    if number is None or len(number[0]) > 9:
        return None
    changed = int(number[0]) + draw.choice((-2, -1, 1, 2, 10))
    return f"{answer[: number.start()]}{abs(changed)}{answer[number.end() :]}"


def _opposite(answer):
    found = _OPPOSITE.search(answer)
    return found and answer[: found.start()] + _OPPOSITES[found[0]] + answer[found.end() :]
