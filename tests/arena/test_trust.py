"""Voters whose votes look like none: by hand, by simulation, and what does not count."""

import math

import numpy as np
import pytest

from minigpt.arena.classroom.trust import SUSPICIOUS, evidence
from minigpt.arena.ratings import Decided
from minigpt.arena.store import Vote


def vote(voter, names, choice):
    return Vote(voter, Decided(tuple(names), choice), (1,) * len(names))


def test_by_hand():
    # The others: a won 3 of 4 against b, 5,000 times over, so the prior is nothing: p(a) = 3/4.
    others = [vote("o", "ab", 0)] * 15_000 + [vote("o", "ab", 1)] * 5_000
    own = [vote("v", "ab", 0), vote("v", "ba", 0), vote("v", "ba", 0), vote("v", "ab", "tie")]
    # 1/(2 · 3/4) · 1/(2 · 1/4) · 1/(2 · 1/4) = 2/3 · 2 · 2
    assert evidence(others + own)["v"] == pytest.approx(8 / 3, abs=1e-3)


def test_own_votes_are_no_evidence_for_themselves():
    # Nobody else has voted: every vote has p = 1/2, however often it is repeated.
    assert evidence([vote("v", "ab", 0)] * 50) == {"v": pytest.approx(1.0)}
    assert evidence([]) == {}


def test_of_three_answers_a_coin_chooses_a_third():
    others = [vote("o", "ab", i % 2) for i in range(4000)]
    others += [vote("o", "bc", i % 2) for i in range(4000)]
    assert evidence([*others, vote("v", "abc", 1)])["v"] == pytest.approx(1.0, abs=1e-3)


def test_ties_and_none_speak_neither_for_nor_against():
    others = [vote("o", "ab", 0)] * 100
    assert evidence([*others, vote("v", "ab", "tie"), vote("v", "ab", "none")])["v"] == 1.0


def test_an_endless_contrary_voter_is_a_finite_number():
    votes = [vote("o", "ab", 0)] * 3000 + [vote("v", "ab", 1)] * 3000
    assert math.isfinite(evidence(votes)["v"]) and evidence(votes)["v"] > SUSPICIOUS


def simulated(rng, voter, n, truth, is_random):
    for _ in range(n):
        one, other = rng.choice(len(truth), 2, replace=False).tolist()
        chance = 1 / (1 + math.exp(truth[other] - truth[one]))
        first = rng.random() < (0.5 if is_random else chance)
        yield vote(voter, (f"m{one}", f"m{other}"), int(not first))


def test_a_coin_is_found_and_an_honest_class_is_not():
    rng, truth = np.random.default_rng(3), [0.0, 1.0, 2.0, 3.0]
    found, wrong = 0, 0
    for _ in range(10):
        votes = list(simulated(rng, "coin", 40, truth, True))
        for i in range(15):
            votes += simulated(rng, f"honest {i}", 40, truth, False)
        ratios = evidence(votes)
        found += ratios.pop("coin") > SUSPICIOUS
        wrong += sum(ratio > SUSPICIOUS for ratio in ratios.values())
    assert found >= 9 and wrong <= 150 / 20
