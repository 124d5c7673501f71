"""Ratings of models from battles between them: Bradley–Terry, on the Elo scale.

    ratings([Decided(("base", "sft"), 1), …], seed=0)      # [Rating], the best first
    win_rates(battles)                                     # (names, share of wins, comparisons)

The model: A beats B with the odds 10^((A − B) / 400) (Bradley and Terry, 1952). The ratings are the
likeliest ones under a weak prior: each model also has half a win and half a defeat against a
virtual one that stands at the middle, so that who has never been beaten does not rise for ever.
"""

import math
from collections import Counter
from itertools import combinations
from typing import NamedTuple

import numpy as np

MEAN = 1000.0
POINTS = 400 / math.log(10)  # rating points in a natural logarithm of odds


class Decided(NamedTuple):
    """A battle with its vote: the sides' models in their order, and the number of the best side,
    "tie" (half a win for each over each other) or "none" (no comparison)."""

    names: tuple
    choice: int | str


class Rating(NamedTuple):
    """A model's rating, its 95 % interval from `low` to `high`, and how many battles it was in."""

    name: str
    rating: float
    low: float
    high: float
    battles: int


def ratings(battles, seed, rounds=200):
    """The models' Ratings from Decided battles, the best first; their mean is 1000.

    The interval is the middle 95 % of the ratings that `rounds` bootstrap samples of the battles
    give, and always holds the rating itself; `seed` makes it the same again, whatever the order of
    the battles. Of a handful of battles it is too narrow: that all went the same way is all that
    they know.
    """
    battles = list(battles)
    if not battles:
        return []
    counts = Counter(name for battle in battles for name in set(battle.names))
    names = sorted(counts)
    outcomes, times = _outcomes(battles, names)
    odds = _fit(_wins(outcomes, times[None], len(names)), np.zeros((1, len(names))))
    # Drawing battles is drawing how often each of their different outcomes occurs.
    drawn = np.random.default_rng(seed).multinomial(len(battles), times / len(battles), size=rounds)
    sampled = _fit(_wins(outcomes, drawn, len(names)), np.repeat(odds, rounds, axis=0))
    points = _points(odds)[0]
    low, high = np.quantile(_points(sampled), (0.025, 0.975), axis=0)
    low, high = np.minimum(low, points), np.maximum(high, points)
    table = [
        Rating(name, float(points[i]), float(low[i]), float(high[i]), counts[name])
        for i, name in enumerate(names)
    ]
    return sorted(table, key=lambda row: (-row.rating, row.name))


def win_rates(battles):
    """(names, rates, counts): in alphabetical order; rates[a, b] is the share of its comparisons
    with b that a has won, a tie being half of one, NaN where there is none; counts[a, b] is how
    many there are."""
    battles = list(battles)
    names = sorted({name for battle in battles for name in battle.names})
    outcomes, times = _outcomes(battles, names)
    wins = _wins(outcomes, times[None], len(names))[0]
    counts = wins + wins.T
    rates = np.full_like(wins, np.nan)
    np.divide(wins, counts, out=rates, where=counts > 0)
    return names, rates, np.rint(counts).astype(int)


# -- from battles to wins --------------------------------------------------------------------------


def _comparisons(battle):
    """What a battle says: sorted (winner, loser, share of a win). A model against itself says
    nothing."""
    names, choice = battle
    if choice == "none":
        return ()
    if choice == "tie":
        pairs = [(a, b, 0.5) for pair in combinations(names, 2) for a, b in (pair, pair[::-1])]
    else:
        others = (name for side, name in enumerate(names) if side != choice)
        pairs = [(names[choice], name, 1.0) for name in others]
    return tuple(sorted(pair for pair in pairs if pair[0] != pair[1]))


def _outcomes(battles, names):
    """(outcomes, times): the different outcomes of battles, sorted, each a tuple of (winner, loser,
    share) with models by their number; and how often each occurs, int (n_outcomes,)."""
    number = {name: i for i, name in enumerate(names)}
    tally = Counter(map(_comparisons, battles))
    found = sorted(tally)
    outcomes = [tuple((number[a], number[b], share) for a, b, share in each) for each in found]
    return outcomes, np.array([tally[each] for each in found], dtype=int)


def _wins(outcomes, times, n):
    """Wins of each model over each other (R, n, n), where sample r has each outcome times[r, k]
    times. times: (R, n_outcomes)."""
    flat = [(k, a * n + b, share) for k, each in enumerate(outcomes) for a, b, share in each]
    which, cell, share = np.array(flat, dtype=float).reshape(-1, 3).T
    weights = times[:, which.astype(int)] * share
    rows = [np.bincount(cell.astype(int), weights=row, minlength=n * n) for row in weights]
    return np.array(rows, float).reshape(len(times), n, n)


# -- the fit ---------------------------------------------------------------------------------------


def _fit(wins, start):
    """The likeliest log odds (R, n) for wins (R, n, n) and the prior, by Newton's method.

    Each step p is shortened by ln(1 + d) / d, where d is the widest spread of p: so it always
    climbs and always arrives, even from where the curve is flat (Sun and Tran-Dinh, "Generalized
    self-concordant functions: a recipe for Newton-type methods", 2019, for ν = 2).
    """
    odds, compared = start.copy(), wins + wins.swapaxes(1, 2)  # (R, n), (R, n, n)
    diagonal = np.arange(odds.shape[1])
    spread = np.inf
    while np.any(spread > 1e-6):  # the error that is left is about the square of it
        above = odds[:, :, None] - odds[:, None, :]  # (R, n, n)
        win, lose = _chance(above), _chance(-above)
        middle = _chance(odds)  # (R, n): to win against the virtual model
        slope = (wins * lose - wins.swapaxes(1, 2) * win).sum(2) + 0.5 - middle
        curve = -compared * win * lose
        curve[:, diagonal, diagonal] = middle * _chance(-odds) - curve.sum(2)
        step = np.linalg.solve(curve, slope[:, :, None])[:, :, 0]
        spread = np.maximum(step.max(1), 0) - np.minimum(step.min(1), 0)
        spread = np.maximum(spread, 1e-12)  # no division by 0
        odds += step * (np.log1p(spread) / spread)[:, None]
    return odds


def _chance(odds):
    """The chance of a win at these log odds, exact near 0 and near 1, without overflow."""
    return np.exp(-np.logaddexp(0, -odds))


def _points(odds):
    """Log odds (R, n) as ratings of mean 1000."""
    return MEAN + POINTS * (odds - odds.mean(1, keepdims=True))
