"""Findings: a claim, the experiment that tests it, and the statistical verdict.

arms = {"at random": Arm(Run(wiki)), "in order": Arm(Run(wiki, if_trav=True))}
judge(Check("bits/char", "at random", "in order"), values)    # holds, does not hold, or neither
"""

import math
import statistics
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

from findings.experiments import KINDS
from minigpt.common.errors import UserError

HOLDS, FAILS, UNDECIDED = "holds", "does not hold", "too small to tell"


class Arm:
    """One side of a comparison: a run, and options for the measures."""

    def __init__(self, made_of, **asked):
        self.made_of, self.asked = made_of, asked


class Check(NamedTuple):
    """A part of a claim about one measure: `low` is below `high`, each the name of an arm or a
    number. With `within` they are equal, up to that fraction of `high`."""

    measure: str
    low: str | float
    high: str | float
    within: float | None = None

    def __str__(self):
        if self.within is None:
            return f"{self.measure}: {self.low} below {self.high}"
        return f"{self.measure}: {self.low} within {self.within:.0%} of {self.high}"


@dataclass
class Finding:
    """A claim and the experiment that tests it.

    measures: name → measure(lab, arm, seed), a number. checks: what the claim says about them; the
    claim holds if all checks hold. curve: the figure also shows the val loss of the arms.
    """

    number: int
    name: str
    source: str  # the sentence of the report in our words, after its letter
    claim: str  # as tested: one sentence
    run: str  # one sentence
    arms: dict[str, Arm]
    measures: dict[str, Callable]
    checks: list[Check]
    differs: str = ""  # how the test differs from the report's, its size apart
    curve: bool = False

    @property
    def needs(self):
        """The kinds of texts that are required."""
        asked = [value for arm in self.arms.values() for value in arm.asked.values()]
        things = [arm.made_of for arm in self.arms.values()] + asked
        return set().union(*(getattr(thing, "needs", set()) for thing in things))

    def measure(self, lab, seeds):
        """measure → arm → a value for each seed. A measure that returns None leaves the arm out.
        UserError if texts are missing."""
        for kind in sorted(self.needs - set(lab.places)):
            part, _, what = KINDS[kind]
            raise UserError(f"{self.name} needs {what}: give --input=FOLDER that has {part}")
        values = {name: {} for name in self.measures}
        for seed in seeds:  # an interruption leaves whole seeds
            for arm_name, arm in self.arms.items():
                for name, measure in self.measures.items():
                    value = measure(lab, arm, seed)
                    if value is not None:
                        values[name].setdefault(arm_name, []).append(float(value))
        return values


class Judgement(NamedTuple):
    """The result of a Check: the mean over seeds of high - low, half the width of its confidence
    interval, and the verdict."""

    difference: float
    half: float | None  # None: one seed gives no interval
    verdict: str


# The 95 % quantile of Student's t with 1, 2, … degrees of freedom.
T95 = (6.314, 2.920, 2.353, 2.132, 2.015, 1.943, 1.895, 1.860, 1.833)
MOST_SEEDS = len(T95) + 1


def judge(check, values):
    """The Judgement of a Check over `values`, measure → arm → a value for each seed.

    Arms share seeds, so their differences are taken seed by seed, high - low. With d their mean and
    h = t · s / √n (t: T95), [d - h, d + h] is a 90 % confidence interval of the true difference.
    "Below" holds if d - h > 0 and fails if d + h < 0. "Within" (m: that fraction of the mean of
    high) holds if |d| + h < m and fails if |d| - h > m. Else the experiment is too small to tell.
    """
    of_arm = values[check.measure]
    low, high = (
        of_arm[side] if isinstance(side, str) else [side] * max(map(len, of_arm.values()))
        for side in (check.low, check.high)
    )
    differences = [b - a for a, b in zip(low, high, strict=True)]
    mean, n = statistics.mean(differences), len(differences)
    if n < 2 or not all(map(math.isfinite, differences)):
        return Judgement(mean, None, UNDECIDED)
    half = T95[n - 2] * statistics.stdev(differences) / math.sqrt(n)
    if check.within is None:
        holds, fails = mean - half > 0, mean + half < 0
    else:
        margin = check.within * abs(statistics.mean(high))
        holds, fails = abs(mean) + half < margin, abs(mean) - half > margin
    return Judgement(mean, half, HOLDS if holds else FAILS if fails else UNDECIDED)


def verdict(judgements):
    """The verdict of a whole claim: it holds if every part holds, and fails if one fails."""
    found = {judgement.verdict for judgement in judgements}
    if FAILS in found:
        return FAILS
    return HOLDS if found == {HOLDS} else UNDECIDED
