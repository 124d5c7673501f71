"""Ratings of models from battles between them: Bradley–Terry, on the Elo scale.

    ratings([Decided(("base", "sft"), 1), …], seed=0)      # [Rating], the best first
    win_rates(battles)                                     # (names, share of wins, comparisons)

The model: A beats B with odds 10^((A − B) / 400) (Bradley and Terry, 1952). The ratings are the
maximum a posteriori estimate under a weak prior: each model also has half a win and half a loss
against a virtual average model, so the rating of a model that never lost stays finite.
"""

import math
from collections import Counter
from itertools import combinations
from typing import NamedTuple

import numpy as np

MEAN = 1000.0
POINTS = 400 / math.log(10)  # rating points per unit of natural log odds


class Decided(NamedTuple):
    """A battle with its vote: the models of the sides in order, and the index of the best side,
    "tie" (each has half a win over each other) or "none" (no comparison)."""

    names: tuple
    choice: int | str


def vote_choices(sides):
    """The possible votes on a battle: the best of `sides` (the indices of those that have an
    answer), "tie" (of two), "none". Empty if there are fewer than two."""
    if len(sides) < 2:
        return []
    return [*sides, *(["tie"] if len(sides) == 2 else []), "none"]


class Rating(NamedTuple):
    """A model's rating, its 95 % interval from `low` to `high`, and its number of battles."""

    name: str
    rating: float
    low: float
    high: float
    battles: int


def ratings(battles, seed, n_samples=200):
    """The Ratings of the models from Decided battles, best first; their mean is 1000.

    The interval is the middle 95 % of the ratings of `n_samples` bootstrap samples of the battles,
    and always contains the rating. It depends on `seed`, but not on the order of the battles. With
    a handful of battles it is too narrow, since the samples hardly differ.
    """
    battles = list(battles)
    if not battles:
        return []
    counts = Counter(name for battle in battles for name in set(battle.names))
    names = sorted(counts)
    outcomes, times = _outcomes(battles, names)
    odds = _fit(_wins(outcomes, times[None], len(names)), np.zeros((1, len(names))))
    # A bootstrap sample of the battles is a multinomial sample of the counts of their outcomes.
    rng = np.random.default_rng(seed)
    samples = rng.multinomial(len(battles), times / len(battles), size=n_samples)
    sampled = _fit(_wins(outcomes, samples, len(names)), np.repeat(odds, n_samples, axis=0))
    points = _points(odds)[0]
    low, high = np.quantile(_points(sampled), (0.025, 0.975), axis=0)
    low, high = np.minimum(low, points), np.maximum(high, points)
    table = [
        Rating(name, float(points[i]), float(low[i]), float(high[i]), counts[name])
        for i, name in enumerate(names)
    ]
    return sorted(table, key=lambda row: (-row.rating, row.name))


def win_rates(battles):
    """(names, rates, counts): names in alphabetical order; rates[a, b] is the share of the
    comparisons of a and b that a won, a tie counting as half a win, NaN if there is none;
    counts[a, b] is the number of comparisons."""
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
    """The comparisons in a battle: sorted (winner, loser, share of a win), without those of a model
    with itself."""
    names, choice = battle
    if choice == "none":
        return ()
    if choice == "tie":
        pairs = [(a, b, 0.5) for pair in combinations(names, 2) for a, b in (pair, pair[::-1])]
    elif choice in range(len(names)):
        others = (name for side, name in enumerate(names) if side != choice)
        pairs = [(names[choice], name, 1.0) for name in others]
    else:
        raise ValueError(f"choice={choice!r}: expected the index of a side, 'tie' or 'none'")
    return tuple(sorted(pair for pair in pairs if pair[0] != pair[1]))


def _outcomes(battles, names):
    """(outcomes, times): the distinct outcomes of battles, sorted, each a tuple of (winner, loser,
    share) with models as indices; and how often each occurs, int (n_outcomes,)."""
    index = {name: i for i, name in enumerate(names)}
    counts = Counter(map(_comparisons, battles))
    distinct = sorted(counts)
    outcomes = [tuple((index[a], index[b], share) for a, b, share in each) for each in distinct]
    return outcomes, np.array([counts[each] for each in distinct], dtype=int)


def _wins(outcomes, times, n):
    """Wins of each model over each other (R, n, n), where sample r has outcome k times[r, k] times.
    times: (R, n_outcomes)."""
    flat = [(k, a * n + b, share) for k, each in enumerate(outcomes) for a, b, share in each]
    which, cell, share = np.array(flat, dtype=float).reshape(-1, 3).T
    weights = times[:, which.astype(int)] * share
    rows = [np.bincount(cell.astype(int), weights=row, minlength=n * n) for row in weights]
    return np.array(rows, float).reshape(len(times), n, n)


# -- the fit ---------------------------------------------------------------------------------------


def _fit(wins, start):
    """The most likely log odds (R, n) for wins (R, n, n) and the prior, by Newton's method.

    Each step p is scaled by ln(1 + d) / d, where d is the range of the values of p: then each step
    increases the likelihood, and the method converges from any start (Sun and Tran-Dinh,
    "Generalized self-concordant functions: a recipe for Newton-type methods", 2019, for ν = 2).
    """
    odds, compared = start.copy(), wins + wins.swapaxes(1, 2)  # (R, n), (R, n, n)
    diagonal = np.arange(odds.shape[1])
    spread = np.inf
    while np.any(spread > 1e-6):  # the remaining error is about its square
        difference = odds[:, :, None] - odds[:, None, :]  # (R, n, n)
        win, lose = _sigmoid(difference), _sigmoid(-difference)
        win_prior = _sigmoid(odds)  # (R, n): against the virtual average model
        gradient = (wins * lose - wins.swapaxes(1, 2) * win).sum(2) + 0.5 - win_prior
        hessian = -compared * win * lose  # of the negative log likelihood
        hessian[:, diagonal, diagonal] = win_prior * _sigmoid(-odds) - hessian.sum(2)
        step = np.linalg.solve(hessian, gradient[:, :, None])[:, :, 0]
        spread = np.maximum(step.max(1), 0) - np.minimum(step.min(1), 0)
        spread = np.maximum(spread, 1e-12)  # no division by 0
        odds += step * (np.log1p(spread) / spread)[:, None]
    return odds


def _sigmoid(odds):
    """The probability of a win at these log odds, exact near 0 and near 1, without overflow."""
    return np.exp(-np.logaddexp(0, -odds))


def _points(odds):
    """Log odds (R, n) as ratings with mean 1000."""
    return MEAN + POINTS * (odds - odds.mean(1, keepdims=True))
