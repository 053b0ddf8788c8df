"""Agreement against the krippendorff package, annotators against planted truths, and the laws of both models."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize
from scipy.special import expit, log_expit

from druthers import stats, votes
from druthers.stats import Interval, Undefined
from druthers.votes import Votes

LAW = settings(max_examples=40, deadline=None, derandomize=True)
METRICS: tuple[votes.Metric, ...] = ("nominal", "ordinal", "interval")
CODERS = """
1 2 3 3 2 1 4 1 2 . . .
1 2 3 3 2 2 4 1 2 5 . 3
. 3 3 3 2 3 4 2 2 5 1 .
1 2 3 3 2 4 4 1 2 5 1 .
"""
"""Four coders of twelve units; Krippendorff 2011, section C."""


def interval(found: stats.Estimate) -> Interval:
    assert isinstance(found, Interval), found
    return found


def columns(table: np.ndarray[Any, Any]) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """Units and values of a table of coders by units, NaN where a coder gave none."""
    coder, unit = np.nonzero(np.isfinite(table))
    return unit, table[coder, unit]


def planted(
    accuracy: list[float] | np.ndarray[Any, Any], *, items: int, each: int, seed: int, tied: float = 0.0
) -> tuple[Votes, np.ndarray[Any, Any]]:
    """Votes of annotators who each see `each` random items; of ties they see 60 %, elsewhere they see 10 % too many."""
    draw = np.random.default_rng(seed)
    right = np.asarray(accuracy)
    truth = np.where(draw.random(items) < tied, 0, draw.choice((-1, 1), items))
    item = np.repeat(np.arange(items), each)
    who = np.concatenate([draw.permutation(len(right))[:each] for _ in range(items)])
    told = np.where(draw.random(len(item)) < right[who], truth[item], -truth[item])
    told = np.where(draw.random(len(item)) < (0.1 if tied else 0.0), 0, told)
    level = np.where(draw.random(len(item)) < 0.6, 0, draw.choice((-1, 1), len(item)))
    side = np.where(truth[item] == 0, level, told)
    return Votes(item, who, side, items=items, annotators=len(right)), truth


# ---------------------------------------------------------------- agreement


@pytest.mark.parametrize(("metric", "value"), [("nominal", 0.743), ("ordinal", 0.815), ("interval", 0.849)])
def test_alpha_of_the_published_example(metric: votes.Metric, value: float) -> None:
    rows = [[np.nan if cell == "." else float(cell) for cell in line.split()] for line in CODERS.split("\n") if line]
    found = interval(votes.alpha(*columns(np.array(rows)), metric=metric))
    assert found.value == pytest.approx(value, abs=5e-4)
    assert found.n == 11


tables = st.integers(2, 12).flatmap(
    lambda units: st.lists(
        st.lists(st.sampled_from([np.nan, -3.0, -1.0, 0.0, 1.0, 2.0, 3.0]), min_size=units, max_size=units),
        min_size=2,
        max_size=5,
    )
)


@LAW
@given(tables, st.sampled_from(METRICS))
def test_alpha_is_that_of_the_krippendorff_package(rows: list[list[float]], metric: votes.Metric) -> None:
    peer = pytest.importorskip("krippendorff")
    table = np.array(rows)
    found = votes.alpha(*columns(table), metric=metric, resamples=20)
    judged = table[:, np.isfinite(table).sum(0) > 1]
    seen = judged[np.isfinite(judged)]
    if isinstance(found, Undefined):
        assert judged.shape[1] < 2 or len(np.unique(seen)) < 2 or "interval" in found.reason
    else:
        assert found.value == pytest.approx(peer.alpha(judged, level_of_measurement=metric), abs=1e-9)


@LAW
@given(tables, st.sampled_from(METRICS), st.data())
def test_mirrored_alpha_does_not_depend_on_which_response_comes_first(
    rows: list[list[float]], metric: votes.Metric, data: st.DataObject
) -> None:
    table = np.array(rows)
    turned = np.array(data.draw(st.lists(st.sampled_from([-1, 1]), min_size=table.shape[1], max_size=table.shape[1])))
    one = votes.alpha(*columns(table), metric=metric, mirrored=True, resamples=20)
    other = votes.alpha(*columns(table * turned), metric=metric, mirrored=True, resamples=20)
    both = votes.alpha(*columns(np.concatenate([table, -table], axis=1)), metric=metric, resamples=20)
    if isinstance(one, Undefined):
        assert isinstance(other, Undefined)
    else:
        assert interval(other).value == pytest.approx(one.value, abs=1e-12)
        assert interval(both).value == pytest.approx(one.value, abs=1e-12)


def test_alpha_says_why_there_is_none() -> None:
    assert votes.alpha([0, 1], [1, -1], metric="nominal") == Undefined("fewer than two items were judged twice", 0)
    same = votes.alpha([0, 0, 1, 1], [2, 2, 2, 2], metric="ordinal")
    assert isinstance(same, Undefined)
    assert same.reason == "all votes are the same, so nothing tells agreement from habit"
    one_prompt = votes.alpha([0, 0, 1, 1], [1, -1, 1, 1], metric="nominal", cluster_V=[7, 7, 7, 7])
    assert isinstance(one_prompt, Undefined)
    assert "one prompt" in one_prompt.reason


def test_the_interval_of_alpha_covers_the_truth_and_widens_where_items_come_in_clusters() -> None:
    whole, _ = planted([0.8] * 8, items=40_000, each=2, seed=99)
    truth = interval(votes.alpha(whole.item_V, whole.side_V, metric="nominal", resamples=10)).value
    inside = 0
    for seed in range(60):
        some, _ = planted([0.8] * 8, items=150, each=2, seed=seed)
        found = interval(votes.alpha(some.item_V, some.side_V, metric="nominal", seed=seed, resamples=300))
        inside += found.low <= truth <= found.high
    assert inside >= 53  # of 60 expected at 95 %: 57, standard deviation 1.7
    copies = np.concatenate([some.item_V + 150 * i for i in range(10)])
    sides = np.tile(some.side_V, 10)
    narrow = interval(votes.alpha(copies, sides, metric="nominal"))
    honest = interval(votes.alpha(copies, sides, metric="nominal", cluster_V=copies % 150))
    assert honest.value == pytest.approx(narrow.value)
    assert honest.high - honest.low > 2 * (narrow.high - narrow.low)


@pytest.mark.parametrize("each", [2, 3, 5])
def test_noise_is_near_the_truth_and_its_interval_covers_it(each: int) -> None:
    accuracy = np.linspace(0.7, 0.95, 10)
    truth, inside = float(1 - accuracy.mean()), 0
    for seed in range(60):
        found = interval(votes.noise(votes.disagreement(planted(accuracy, items=600, each=each, seed=seed)[0])))
        inside += found.low <= truth <= found.high
    assert inside >= 53
    many = interval(votes.noise(votes.disagreement(planted(accuracy, items=8000, each=each, seed=0)[0])))
    assert many.value == pytest.approx(truth, abs=0.02)


def test_without_a_second_vote_there_is_no_noise_and_without_a_quarrel_there_is_an_interval() -> None:
    assert isinstance(votes.noise(votes.disagreement(Votes([0, 1], [0, 0], [1, 1], items=2, annotators=1))), Undefined)
    calm = interval(votes.disagreement(Votes([0, 0, 1, 1], [0, 1, 0, 1], [1, 1, -1, -1], items=2, annotators=2)))
    assert (calm.value, calm.low, calm.n) == (0, 0, 2)
    assert calm.high > 0.5


def test_kappa_of_a_published_table() -> None:
    """20 yes-yes, 5 yes-no, 10 no-yes, 15 no-no: observed 0.7, by chance 0.5."""
    one, other = np.repeat([1, 1, 0, 0], [20, 5, 10, 15]), np.repeat([1, 0, 1, 0], [20, 5, 10, 15])
    found = interval(votes.kappa(one, other))
    assert found.value == pytest.approx(0.4)
    assert (found.high - found.low) / 2 / stats.Z_95 == pytest.approx(0.1272, abs=5e-4)
    assert isinstance(votes.kappa([1, 1], [1, 1]), Undefined)


# ---------------------------------------------------------------- Dawid-Skene


@pytest.mark.parametrize(("each", "tied"), [(2, 0.0), (3, 0.0), (5, 0.0), (3, 0.15), (5, 0.15)])
def test_planted_accuracies_are_recovered_and_their_intervals_cover_them(each: int, tied: float) -> None:
    accuracy = np.r_[np.linspace(0.6, 0.95, 9), 0.1]
    inside, errors = 0, []
    for seed in range(4):
        made, _ = planted(accuracy, items=3000, each=each, seed=seed, tied=tied)
        found = votes.dawid_skene(made)
        people = [found.reliability(w) for w in range(10)]
        assert people[9].high < 0.5 < min(one.low for one in people[1:9])
        errors += [one.value - right for one, right in zip(people, accuracy, strict=True)]
        inside += sum(one.low <= right <= one.high for one, right in zip(people, accuracy, strict=True))
    assert inside >= 34  # of 40
    assert np.sqrt(np.mean(np.square(errors))) < (0.04 if each == 2 else 0.03)


def test_what_climbs_is_the_log_posterior_and_the_truth_is_found() -> None:
    made, truth = planted([0.9, 0.85, 0.8, 0.75, 0.1], items=2000, each=5, seed=1, tied=0.2)
    found = votes.dawid_skene(made)
    assert found.converged
    assert np.diff(found.climb).min() > -1e-7
    assert found.truth_U3.sum(1) == pytest.approx(1)
    assert (1 - found.truth_U3.argmax(1) == truth).mean() > 0.85
    assert found.tied == pytest.approx(0.2, abs=0.04)
    majority = np.sign(np.bincount(made.item_V, made.side_V))
    assert (1 - found.truth_U3.argmax(1) == truth).mean() > (majority == truth).mean()


@LAW
@given(st.integers(0, 10_000))
def test_order_does_not_matter_to_the_last_bit_nor_do_sides(seed: int) -> None:
    made, _ = planted([0.9, 0.8, 0.7, 0.6], items=40, each=3, seed=seed, tied=0.2)
    draw = np.random.default_rng(seed)
    order, turn_U = draw.permutation(len(made.item_V)), draw.choice((-1, 1), 40)
    found = votes.dawid_skene(made, most=50)
    again = votes.dawid_skene(
        Votes(made.item_V[order], made.annotator_V[order], made.side_V[order], items=40, annotators=4), most=50
    )
    turned = votes.dawid_skene(
        Votes(made.item_V, made.annotator_V, made.side_V * turn_U[made.item_V], items=40, annotators=4), most=50
    )
    assert again.truth_U3.tobytes() == found.truth_U3.tobytes()
    assert again.habit_W5.tobytes() == turned.habit_W5.tobytes() == found.habit_W5.tobytes()
    expected = np.where(turn_U[:, None] == 1, found.truth_U3, found.truth_U3[:, ::-1])
    assert turned.truth_U3.tolist() == expected.tolist()


def test_what_the_votes_leave_open_is_left_open() -> None:
    """Two who only meet each other, and one vote an item."""
    pair, _ = planted([0.9, 0.7], items=2000, each=2, seed=0)
    found = votes.dawid_skene(pair)
    assert all(found.reliability(w).low <= right <= found.reliability(w).high for w, right in ((0, 0.9), (1, 0.7)))
    assert found.reliability(0).high - found.reliability(0).low > 0.1
    alone, _ = planted([0.9, 0.7, 0.6], items=500, each=1, seed=0)
    assert votes.dawid_skene(alone, most=50).worth_W.max() < 3


def test_no_votes_and_an_unjudged_item_have_the_prior() -> None:
    empty = votes.dawid_skene(Votes([], [], [], items=2, annotators=1))
    assert empty.truth_U3.sum(1).tolist() == [1, 1]
    found = votes.dawid_skene(Votes([1, 1], [0, 1], [1, 1], items=2, annotators=2))
    assert found.truth_U3[0].tolist() == [0.5, 0, 0.5]


@pytest.mark.parametrize(
    "given_columns", [([0, 1], [0], [1, 1]), ([0, 2], [0, 0], [1, 1]), ([0, 1], [0, 0], [1, 2]), ([0], [-1], [1])]
)
def test_votes_that_make_no_sense_are_refused(given_columns: tuple[list[int], ...]) -> None:
    with pytest.raises(ValueError, match=r"one length|does not lie in|side of a vote"):
        Votes(*given_columns, items=2, annotators=1)


# ---------------------------------------------------------------- Bradley-Terry


def posterior(worth_K: np.ndarray[Any, Any], wins: np.ndarray[Any, Any], spread: float) -> float:
    apart = worth_K[:, None] - worth_K[None, :]
    return float(-(wins * log_expit(apart)).sum() + (worth_K**2).sum() / 2 / spread**2)


@LAW
@given(st.integers(2, 6), st.integers(0, 1000), st.floats(0.3, 3.0), st.sampled_from([0.5, 3.0, 200.0]))
def test_worths_are_the_mode_and_probabilities_are_whole(K: int, seed: int, spread: float, many: float) -> None:
    draw = np.random.default_rng(seed)
    wins = np.floor(draw.random((K, K)) * many * 2) / 2
    np.fill_diagonal(wins, 0)
    worth, better = votes.bradley_terry(wins[None], spread=spread)
    oracle = minimize(posterior, np.zeros(K), args=(wins, spread), tol=1e-10)
    assert posterior(worth[0], wins, spread) <= oracle.fun + 1e-7
    assert worth[0] == pytest.approx(oracle.x, abs=2e-3)
    assert better[0] + better[0].T == pytest.approx(1, abs=1e-9)
    turned, swapped = votes.bradley_terry(wins[None, ::-1, ::-1], spread=spread)
    assert turned[0, ::-1] == pytest.approx(worth[0], abs=1e-8)
    assert swapped[0, ::-1, ::-1] == pytest.approx(better[0], abs=1e-8)


def test_without_votes_nothing_is_better_and_votes_make_it_more_certain() -> None:
    _, better = votes.bradley_terry(np.zeros((1, 3, 3)))
    assert better == pytest.approx(0.5)
    wins = np.array([[[0.0, 1], [0, 0]], [[0, 5], [0, 0]], [[0, 3], [3, 0]]])
    p = votes.bradley_terry(wins)[1][:, 0, 1]
    assert 0.5 < p[0] < p[1] < 1
    assert p[2] == pytest.approx(0.5)
    with pytest.raises(ValueError, match="finite and not negative"):
        votes.bradley_terry(-wins)


def test_probabilities_of_planted_worths_are_calibrated() -> None:
    draw = np.random.default_rng(0)
    rows, K = 4000, 4
    worth = draw.normal(size=(rows, K))
    wins = np.zeros((rows, K, K))
    for i in range(K):
        for j in range(i):
            won = draw.binomial(3, expit(worth[:, i] - worth[:, j]))
            wins[:, i, j], wins[:, j, i] = won, 3 - won
    p = votes.bradley_terry(wins)[1][:, 0, 1]
    right = worth[:, 0] > worth[:, 1]
    for low, high in ((0.0, 0.1), (0.1, 0.3), (0.3, 0.5), (0.5, 0.7), (0.7, 0.9), (0.9, 1.0)):
        some = (p >= low) & (p < high)
        assert right[some].mean() == pytest.approx(p[some].mean(), abs=0.06)


@pytest.mark.parametrize("rate", [0.12, 0.2, 0.3, 0.4, 0.45])
def test_the_spread_is_that_at_which_votes_disagree_so_often(rate: float) -> None:
    spread = votes.spread_of(Interval(rate, rate, rate, 100))
    x = np.random.default_rng(0).normal(size=100_000) * np.sqrt(2) * spread
    assert float((2 * expit(x) * expit(-x)).mean()) == pytest.approx(rate, abs=0.004)
    assert votes.spread_of(Interval(0.0, 0.0, 0.0, 100)) == 5.0
    assert votes.spread_of(Interval(0.6, 0.6, 0.6, 100)) == 0.2


# ---------------------------------------------------------------- strength


def test_strengths_are_worth_what_was_planted() -> None:
    draw, items = np.random.default_rng(0), 30_000
    right_of = np.array([0, 0.6, 0.8, 0.97])
    level = draw.integers(1, 4, items * 2)
    side = np.where(draw.random(items * 2) < right_of[level], 1, -1)
    made = Votes(np.repeat(np.arange(items), 2), np.tile([0, 1], items), side, items=items, annotators=2)
    found = votes.strengths(made, level)
    assert found.right[1:] == pytest.approx(right_of[1:], abs=0.025)
    assert found.right[0] == pytest.approx(right_of[1:].mean(), abs=0.01)
    assert sum(found.compared[1:]) == found.compared[0] == 2 * items


def test_below_fifty_comparisons_strengths_are_guessed() -> None:
    made, _ = planted([0.9, 0.9], items=24, each=2, seed=0)
    found = votes.strengths(made, np.full(48, 2))
    assert found.right == votes.GUESSED
    assert found.compared == (48, 0, 48, 0)


@LAW
@given(st.integers(0, 1000))
def test_what_a_row_of_wins_is_worth_does_not_depend_on_those_beside_it(seed: int) -> None:
    """Down to the last bit, so that sets are the same however many rows were graded at once."""
    draw = np.random.default_rng(seed)
    wins_RKK = draw.integers(0, 4, size=(5, 3, 3)) * (1 - np.eye(3))
    worth_RK, better_RKK = votes.bradley_terry(wins_RKK)
    for wins, worth, better in zip(wins_RKK, worth_RK, better_RKK, strict=True):
        alone = votes.bradley_terry(wins[None])
        assert (alone[0][0] == worth).all()
        assert (alone[1][0] == better).all()
