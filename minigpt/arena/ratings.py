"""Ratings of models from battles between them: Bradley–Terry, on the Elo scale.

    ratings([Decided(("base", "sft"), 1), …], seed=0)      # [Rating], the best first
    win_rates(battles)                                     # (names, share of wins, comparisons)
    length_controlled(battles, lengths)                    # with the answers' length held constant

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
    wins = _wins_of(battles, names)
    counts = wins + wins.T
    rates = np.full_like(wins, np.nan)
    np.divide(wins, counts, out=rates, where=counts > 0)
    return names, rates, np.rint(counts).astype(int)


class LengthControlled(NamedTuple):
    """Ratings by name with the length of the answers held constant, and the length's own effect:
    the rating points by which an answer that is twice as long as the other one has an advantage."""

    by_name: dict
    points_of_twice: float


def length_controlled(battles, lengths):
    """LengthControlled for Decided battles; lengths: of the answers of each, in the same order.

    Bradley–Terry with a covariate: the log odds that answer i beats j are θ_i − θ_j + β x, where x
    is the normalized length difference (l_i − l_j) / (l_i + l_j), between −1 and 1 (LMArena's style
    control, with the length alone). β has the prior of the models: half a win and half a loss of an
    answer over an empty one, x = 1. Without battles, by_name is empty.
    """
    names = sorted({name for battle in battles for name in battle.names})
    if not names:
        return LengthControlled({}, 0.0)
    index = {name: i for i, name in enumerate(names)}
    rows, shares = [], []
    for battle, of_sides in zip(battles, lengths, strict=True):
        for a, b, share in _pairs_of_sides(battle):
            row = np.zeros(len(names) + 1)
            row[index[battle.names[a]]] += 1
            row[index[battle.names[b]]] -= 1
            row[-1] = (of_sides[a] - of_sides[b]) / ((of_sides[a] + of_sides[b]) or 1)
            rows.append(row)
            shares.append(share)
    prior = np.eye(len(names) + 1)
    rows, shares = np.array([*rows, *prior, *-prior]), np.array([*shares, *[0.5] * 2 * len(prior)])
    found = _fit_logistic(rows, shares)
    odds, effect = found[:-1], found[-1]
    by_name = dict(zip(names, _points(odds[None])[0].tolist(), strict=True))
    return LengthControlled(by_name, float(effect * POINTS / 3))  # twice as long: x = 1/3


def odds_without(battles_of_groups):
    """(names, log odds): row g has the fitted log odds of all battles but those of group g, shape
    (n_groups, n_names). battles_of_groups: for each group a list of Decided battles."""
    battles = [battle for group in battles_of_groups for battle in group]
    names = sorted({name for battle in battles for name in battle.names})
    all_wins = _wins_of(battles, names)
    others = np.array([all_wins - _wins_of(group, names) for group in battles_of_groups])
    start = np.zeros((len(battles_of_groups), len(names)))
    return names, _fit(others.reshape(*start.shape, len(names)), start)


# -- from battles to wins --------------------------------------------------------------------------


def _comparisons(battle):
    """The comparisons in a battle: sorted (winner, loser, share of a win), without those of a model
    with itself."""
    names = battle.names
    pairs = [(names[a], names[b], share) for a, b, share in _pairs_of_sides(battle)]
    return tuple(sorted(pair for pair in pairs if pair[0] != pair[1]))


def _pairs_of_sides(battle):
    """The comparisons in a battle by the indices of its sides: (winner, loser, share of a win)."""
    names, choice = battle
    sides = range(len(names))
    if choice == "none":
        return []
    if choice == "tie":
        return [(a, b, 0.5) for pair in combinations(sides, 2) for a, b in (pair, pair[::-1])]
    if choice in sides:
        return [(choice, side, 1.0) for side in sides if side != choice]
    raise ValueError(f"choice={choice!r}: expected the index of a side, 'tie' or 'none'")


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


def _wins_of(battles, names):
    """Wins of each model over each other, (n, n), in these battles."""
    outcomes, times = _outcomes(battles, names)
    return _wins(outcomes, times[None], len(names))[0]


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


def _fit_logistic(rows, shares):
    """The most likely parameters (n,) of a logistic regression whose outcomes are all wins: rows
    (m, n) of covariates with weights `shares` (m,), by the same method as _fit()."""
    found, spread = np.zeros(rows.shape[1]), np.inf
    while spread > 1e-6:
        win, lose = _sigmoid(rows @ found), _sigmoid(-rows @ found)
        hessian = (rows * (shares * win * lose)[:, None]).T @ rows
        step = np.linalg.solve(hessian, rows.T @ (shares * lose))
        spread = max(np.abs(rows @ step).max(), 1e-12)
        found += step * (np.log1p(spread) / spread)
    return found


def _sigmoid(odds):
    """The probability of a win at these log odds, exact near 0 and near 1, without overflow."""
    return np.exp(-np.logaddexp(0, -odds))


def _points(odds):
    """Log odds (R, n) as ratings with mean 1000."""
    return MEAN + POINTS * (odds - odds.mean(1, keepdims=True))
