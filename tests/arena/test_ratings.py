"""Ratings: hand-worked battles, another library's fit, what must change nothing, and coverage."""

import math
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from minigpt.arena.ratings import MEAN, Decided, length_controlled, ratings, win_rates

NAMES = "abcde"
SIDES = st.lists(st.sampled_from(NAMES), min_size=2, max_size=4)
BATTLES = st.lists(
    SIDES.flatmap(
        lambda names: st.builds(
            Decided,
            st.just(tuple(names)),
            st.sampled_from([*range(len(names)), "tie", "none"]),
        )
    ),
    min_size=1,
    max_size=30,
)


def points(battles, **options):
    """name → rating."""
    return {row.name: row.rating for row in ratings(battles, 0, **{"n_samples": 5, **options})}


# -- by hand ---------------------------------------------------------------------------------------


def test_one_win():
    # The odds z² of a over b: 1 / (1 + z²) = z / (1 + z) − 1/2, that is z³ − z² − z − 3 = 0.
    z = 2.1303954347672787
    assert z**3 - z**2 - z - 3 == pytest.approx(0, abs=1e-12)
    found = points([Decided(("a", "b"), 0)])
    assert found == pytest.approx(
        {"a": MEAN + 400 * math.log10(z), "b": MEAN - 400 * math.log10(z)}, abs=1e-6
    )


def test_three_wins_in_four_approach_odds_of_three():
    # Of many battles the prior is nothing: 400 log10(3) = 190.8 points lie between the two.
    battles = [Decided(("a", "b"), 0), Decided(("b", "a"), 1), Decided(("a", "b"), 0)]
    found = points([*battles, Decided(("a", "b"), 1)] * 5000)
    assert found["a"] - found["b"] == pytest.approx(190.8485, abs=0.05)


def test_an_unknown_choice_is_no_vote():
    for choice in ("best", None, 2, -1):
        with pytest.raises(ValueError, match="expected the index of a side"):
            points([Decided(("a", "b"), choice)])


def test_a_tie_is_half_a_win_for_each():
    halves = [Decided(("a", "b"), "tie")] * 2
    wins = [Decided(("a", "b"), 0), Decided(("a", "b"), 1)]
    more = [Decided(("a", "c"), 0)] * 3
    assert points(halves) == pytest.approx({"a": MEAN, "b": MEAN})
    assert points(halves + more) == pytest.approx(points(wins + more))


def test_both_bad_is_a_battle_but_no_comparison():
    battles = [Decided(("a", "b"), 0), Decided(("a", "b"), "none"), Decided(("a", "c"), "none")]
    found = {row.name: row for row in ratings(battles, 0)}
    assert [found[name].battles for name in "abc"] == [3, 2, 1]
    # Against whom one has never been compared, one is as good as the middle.
    assert found["c"].rating == pytest.approx(MEAN)
    assert found["a"].rating == pytest.approx(points(battles[:1])["a"])
    names, rates, counts = win_rates(battles)
    assert names == ["a", "b", "c"]
    assert counts.tolist() == [[0, 1, 0], [1, 0, 0], [0, 0, 0]]
    assert rates[0, 1] == 1 and rates[1, 0] == 0 and np.isnan(rates).sum() == 7


def test_the_best_of_several_beats_each_other():
    several = [Decided(("a", "b", "c"), 1), Decided(("c", "a", "b", "d"), 0)]
    pairs = [("b", "a"), ("b", "c"), ("c", "a"), ("c", "b"), ("c", "d")]
    assert points(several) == pytest.approx(points([Decided(pair, 0) for pair in pairs]))
    assert {row.name: row.battles for row in ratings(several, 0)} == dict(a=2, b=2, c=2, d=1)
    _, _, counts = win_rates(several)
    assert counts.sum() == 2 * len(pairs)


def test_win_rates():
    battles = [
        *[Decided(("b", "a"), 0)] * 3,
        Decided(("a", "b"), 0),
        Decided(("a", "b"), "tie"),
        Decided(("a", "c"), "tie"),
    ]
    names, rates, counts = win_rates(battles)
    assert names == ["a", "b", "c"] and counts.tolist() == [[0, 5, 1], [5, 0, 0], [1, 0, 0]]
    assert rates[0, 1] == pytest.approx(1.5 / 5) and rates[1, 0] == pytest.approx(3.5 / 5)
    assert rates[0, 2] == rates[2, 0] == 0.5


def test_no_battles_and_a_model_against_itself():
    assert ratings([], 0) == []
    names, rates, counts = win_rates([])
    assert names == [] and rates.shape == counts.shape == (0, 0)
    (row,) = ratings([Decided(("a", "a"), 0)] * 3, 0)
    assert row == ("a", MEAN, MEAN, MEAN, 3)
    assert win_rates([Decided(("a", "a"), "tie")])[2].tolist() == [[0]]


def test_an_unbeaten_model_has_a_finite_rating():
    chain = [Decided((f"{i:02}", f"{i + 1:02}"), 0) for i in range(12) for _ in range(3000)]
    table = ratings(chain, 0, n_samples=5)
    assert [row.name for row in table] == [f"{i:02}" for i in range(13)]
    assert all(math.isfinite(value) for row in table for value in row[1:])


# -- against another fit ---------------------------------------------------------------------------


def fit_by_sklearn(battles, names):
    """Ratings by logistic regression: a row for each comparison, and the prior's for each model."""
    linear_model = pytest.importorskip("sklearn.linear_model", reason="pip install scikit-learn")
    rows, won, weight = [], [], []

    def compare(a, b, share):
        rows.append([(name == a) - (name == b) for name in names])
        won.append(1)
        weight.append(share)
        rows.append([-value for value in rows[-1]])
        won.append(0)
        weight.append(share)

    for sides, choice in battles:
        for i, a in enumerate(sides):
            for b in sides[i + 1 :]:
                if choice == "tie":
                    compare(a, b, 0.5)
                    compare(b, a, 0.5)
                elif choice in (sides.index(a), sides.index(b)):
                    best = sides[choice]
                    compare(best, b if best == a else a, 1)
    for name in names:
        compare(name, None, 0.5)
        compare(None, name, 0.5)
    fit = linear_model.LogisticRegression(
        C=np.inf, fit_intercept=False, solver="newton-cholesky", tol=1e-10
    )
    odds = fit.fit(np.array(rows, float), won, sample_weight=weight).coef_[0]
    found = 1000 + 400 / math.log(10) * (odds - odds.mean())
    return dict(zip(names, found, strict=True))


@pytest.mark.parametrize("seed", range(4))
def test_another_fit_agrees(seed):
    rng = np.random.default_rng(seed)
    battles = []
    for _ in range(120):
        sides = tuple(rng.choice(list(NAMES), rng.integers(2, 5), replace=False).tolist())
        choices = [*range(len(sides)), 0, 0, "tie", "none"]  # the first is the better one
        battles.append(Decided(sides, choices[rng.integers(len(choices))]))
    assert points(battles) == pytest.approx(fit_by_sklearn(battles, NAMES), abs=0.01)


# -- what changes nothing --------------------------------------------------------------------------


@given(BATTLES, st.randoms(use_true_random=False))
@settings(max_examples=25)
def test_the_order_of_battles_and_of_sides_changes_nothing(battles, rng):
    mixed = []
    for names, choice in rng.sample(battles, len(battles)):
        order = rng.sample(range(len(names)), len(names))
        chosen = order.index(choice) if isinstance(choice, int) else choice
        mixed.append(Decided(tuple(names[i] for i in order), chosen))
    assert ratings(mixed, 7, n_samples=20) == ratings(battles, 7, n_samples=20)
    for one, other in zip(win_rates(mixed), win_rates(battles), strict=True):
        np.testing.assert_array_equal(one, other)


@given(BATTLES, st.permutations(NAMES))
@settings(max_examples=25)
def test_names_change_nothing(battles, others):
    called = dict(zip(NAMES, others, strict=True))
    renamed = [Decided(tuple(called[name] for name in names), c) for names, c in battles]
    expected = {called[name]: rating for name, rating in points(battles).items()}
    assert points(renamed) == pytest.approx(expected, abs=1e-6)


@given(BATTLES)
@settings(max_examples=25)
def test_what_always_holds(battles):
    table = ratings(battles, 3, n_samples=30)
    assert sum(row.rating for row in table) == pytest.approx(MEAN * len(table))
    assert all(row.low <= row.rating <= row.high for row in table)
    assert [row.rating for row in table] == sorted((row.rating for row in table), reverse=True)
    more = points([*battles, Decided(("a", "b"), 0)])
    before = points([*battles, Decided(("a", "b"), "none")])
    assert more["a"] - more["b"] > before["a"] - before["b"]  # a win helps


# -- the intervals ---------------------------------------------------------------------------------


def test_intervals_hold_the_truth_about_as_often_as_they_say():
    truth = {"a": 1150.0, "b": 1000.0, "c": 850.0}
    rng = np.random.default_rng(0)
    hits = 0
    for seed in range(100):
        battles = []
        for _ in range(120):
            one, other = rng.choice(list(truth), 2, replace=False).tolist()
            chance = 1 / (1 + 10 ** ((truth[other] - truth[one]) / 400))
            battles.append(Decided((one, other), int(rng.random() >= chance)))
        hits += sum(row.low <= truth[row.name] <= row.high for row in ratings(battles, seed))
    assert 0.90 <= hits / 300 <= 0.99


def test_more_battles_narrow_the_interval_as_their_root():
    few = [Decided(("a", "b"), choice) for choice in [0, 0, 1, "tie"] * 25]
    widths = [np.mean([row.high - row.low for row in ratings(few * n, 0, 500)]) for n in (1, 16)]
    assert widths[0] / widths[1] == pytest.approx(4, rel=0.2)


def test_ten_thousand_battles_are_fast():
    rng = np.random.default_rng(1)
    sides = [tuple(rng.choice(10, 2, replace=False).tolist()) for _ in range(10_000)]
    battles = [Decided(tuple(map(str, pair)), int(rng.integers(2))) for pair in sides]
    began = time.monotonic()
    assert len(ratings(battles, 0)) == 10
    assert time.monotonic() - began < 20  # about 0.1 s on an idle core


# -- length held constant --------------------------------------------------------------------------


def controlled_by_sklearn(battles, lengths, names):
    """(name → rating, effect of x) by logistic regression, with the prior's rows."""
    linear_model = pytest.importorskip("sklearn.linear_model", reason="pip install scikit-learn")
    rows, won, weight = [], [], []

    def compare(row, share):
        for sign, outcome in ((1, 1), (-1, 0)):  # a win seen from both sides
            rows.append(sign * np.array(row, float))
            won.append(outcome)
            weight.append(share / 2)

    for (sides, choice), of_sides in zip(battles, lengths, strict=True):
        for i, a in enumerate(sides):
            for j, b in enumerate(sides):
                won_it = {"tie": 0.5, "none": 0}.get(choice, float(choice == i))
                if i != j and won_it:
                    x = (of_sides[i] - of_sides[j]) / (of_sides[i] + of_sides[j])
                    compare([(name == a) - (name == b) for name in names] + [x], won_it)
    for unit in np.eye(len(names) + 1):
        compare(unit, 0.5)
        compare(-unit, 0.5)
    fit = linear_model.LogisticRegression(
        C=np.inf, fit_intercept=False, solver="newton-cholesky", tol=1e-10
    )
    *odds, effect = fit.fit(np.array(rows), won, sample_weight=weight).coef_[0]
    found = 1000 + 400 / math.log(10) * (np.array(odds) - np.mean(odds))
    return dict(zip(names, found, strict=True)), effect


@pytest.mark.parametrize("seed", range(3))
def test_another_fit_agrees_on_length_control(seed):
    rng = np.random.default_rng(seed)
    battles, lengths = [], []
    for _ in range(150):
        sides = tuple(rng.choice(list(NAMES), rng.integers(2, 5), replace=False).tolist())
        of_sides = tuple(rng.integers(1, 400, len(sides)).tolist())
        choices = [*range(len(sides)), *[int(np.argmax(of_sides))] * 3, "tie", "none"]
        battles.append(Decided(sides, choices[rng.integers(len(choices))]))
        lengths.append(of_sides)
    found = length_controlled(battles, lengths)
    by_name, effect = controlled_by_sklearn(battles, lengths, list(NAMES))
    assert found.by_name == pytest.approx(by_name, abs=0.01)
    assert found.points_of_twice == pytest.approx(effect * 400 / math.log(10) / 3, abs=0.01)
    assert found.points_of_twice > 50


def test_a_model_that_wins_by_length_alone_is_no_better():
    """b's answers are longer in 300 battles of 400; the longer answer wins three times of four."""
    rng = np.random.default_rng(0)
    battles, lengths = [], []
    for i in range(4000):
        of_sides = (100, 200) if i % 4 else (200, 100)
        longer_wins = rng.random() < 0.75
        battles.append(Decided(("a", "b"), of_sides.index(200 if longer_wins else 100)))
        lengths.append(of_sides)
    plain, found = points(battles), length_controlled(battles, lengths)
    assert plain["b"] - plain["a"] > 80
    assert abs(found.by_name["b"] - found.by_name["a"]) < 25
    assert found.points_of_twice == pytest.approx(400 * math.log10(3), abs=25)


def test_equal_lengths_change_nothing():
    battles = [Decided(("a", "b"), 0), Decided(("b", "c"), "tie"), Decided(("a", "b", "c"), 2)]
    found = length_controlled(battles, [(7,) * len(battle.names) for battle in battles])
    assert found.by_name == pytest.approx(points(battles), abs=1e-6)
    assert found.points_of_twice == pytest.approx(0, abs=1e-9)
    assert length_controlled([], []).by_name == {}


def test_length_control_is_finite_where_the_longer_answer_always_wins():
    battles = [Decided(("a", "b"), i % 2) for i in range(500)]
    lengths = [(200, 1) if i % 2 == 0 else (1, 200) for i in range(500)]
    found = length_controlled(battles, lengths)
    assert math.isfinite(found.points_of_twice) and found.points_of_twice > 200
