"""Intervals: closed forms, laws, and coverage on planted truths."""

from __future__ import annotations

import math
import random
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import optimize
from scipy import stats as oracle

from druthers import stats
from druthers.stats import Interval, Undefined

counts = st.tuples(st.integers(0, 60), st.integers(0, 60), st.integers(0, 60)).filter(lambda c: sum(c) > 0)


def interval(found: stats.Estimate) -> Interval:
    assert isinstance(found, Interval)
    return found


def undefined(found: stats.Estimate) -> Undefined:
    assert isinstance(found, Undefined)
    return found


@given(st.integers(1, 400), st.data())
def test_wilson_agrees_with_scipy(n: int, data: st.DataObject) -> None:
    k = data.draw(st.integers(0, n))
    ours, theirs = interval(stats.wilson(k, n)), oracle.binomtest(k, n).proportion_ci(method="wilson")
    assert [ours.low, ours.high] == pytest.approx([theirs.low, theirs.high], abs=1e-12)


@given(counts)
def test_without_ties_the_paired_score_is_wilson(c: tuple[int, int, int]) -> None:
    wins, losses = c[0], c[1]
    if wins + losses == 0:
        return
    paired, plain = (
        interval(stats.paired_score(wins, losses, wins + losses)),
        interval(stats.wilson(wins, wins + losses)),
    )
    assert (1 + paired.low) / 2 == pytest.approx(plain.low, abs=1e-9)
    assert (1 + paired.high) / 2 == pytest.approx(plain.high, abs=1e-9)


@given(counts)
def test_swapping_the_sides_mirrors_the_interval(c: tuple[int, int, int]) -> None:
    wins, losses, n = c[0], c[1], sum(c)
    one, other = interval(stats.paired_score(wins, losses, n)), interval(stats.paired_score(losses, wins, n))
    assert (one.low, one.high) == (-other.high, -other.low)


@settings(max_examples=20)
@given(counts)
def test_the_paired_score_limit_solves_its_own_equation(c: tuple[int, int, int]) -> None:
    """At the limit the score statistic equals the normal quantile, its nuisance found by numerical maximisation."""
    wins, losses, n = c[0] + 1, c[1] + 1, sum(c) + 2
    low = interval(stats.paired_score(wins, losses, n)).low
    ties = n - wins - losses

    def loss(rate: float) -> float:
        rest = max(1 - 2 * rate - low, 1e-300)
        return -(wins * math.log(rate + low) + losses * math.log(rate) + (ties * math.log(rest) if ties else 0.0))

    found = optimize.minimize_scalar(
        loss, bounds=(max(1e-12, -low + 1e-12), (1 - low) / 2), method="bounded", options={"xatol": 1e-12}
    )
    z = (wins - losses - n * low) / math.sqrt(n * (2 * found.x + low - low**2))
    assert z == pytest.approx(stats.Z_95, abs=1e-3)


def test_all_ties_all_wins_and_one_comparison_keep_a_width() -> None:
    for scores in ([0.5] * 20, [1.0] * 20, [0.0] * 20, [1.0], [0.5]):
        found = interval(stats.win_rate(scores, range(len(scores)), seed=0))
        assert found.value == scores[0]
        assert found.high - found.low > 0.1
        assert found.low >= 0
        assert found.high <= 1


def test_rows_of_one_prompt_that_all_agree_count_once() -> None:
    """40 wins in 10 prompts are as sure as 10 wins, not as 40."""
    found = interval(stats.win_rate([1.0] * 40, [i // 4 for i in range(40)], seed=0))
    alone = interval(stats.win_rate([1.0] * 10, range(10), seed=0))
    assert (found.low, found.high, found.n, alone.n) == (alone.low, alone.high, 40, 10)


def test_nothing_to_average_is_undefined_with_a_reason() -> None:
    for found in (
        stats.wilson(0, 0),
        stats.paired_score(0, 0, 0),
        stats.win_rate([], [], seed=0),
        stats.bootstrap_mean([], [], seed=0),
        stats.paired_difference([], [], [], seed=0),
    ):
        assert undefined(found).reason
        assert found.as_dict()["value"] is None
    alone = undefined(stats.bootstrap_mean([1.0, 2.0], ["same", "same"], seed=0))
    assert alone.n == 2
    assert "one prompt" in alone.reason


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        (lambda: Interval(math.nan, 0, 1, 3), "finite"),
        (lambda: Interval(2.0, 0, 1, 3), "outside its own interval"),
        (lambda: stats.wilson(4, 3), "4 successes of 3 trials"),
        (lambda: stats.paired_score(2, 2, 3), "sum to at most n"),
        (lambda: stats.win_rate([0.7], ["a"], seed=0), "0, 1/2 or 1"),
        (lambda: stats.bootstrap_mean([1.0], ["a", "b"], seed=0), "one label for each value"),
        (lambda: stats.bootstrap_mean([math.nan, 1.0], ["a", "b"], seed=0), "finite"),
        (lambda: stats.bootstrap_ratio([1.0, 1.0], [1.0, 0.0], ["a", "b"], seed=0), "positive"),
        (lambda: stats.mcnemar(-1, 2), "negative"),
        (lambda: stats.detectable_points(0, 0.0), "at least one prompt"),
        (lambda: stats.detectable_points(10, 1.5), "between 0 and 1"),
        (lambda: stats.correlation([1.0], [1.0, 2.0]), "equally long"),
    ],
)
def test_nonsense_is_refused(fault: Callable[[], object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        fault()


rows = st.lists(st.tuples(st.floats(-5, 5), st.integers(0, 5)), min_size=2, max_size=40).filter(
    lambda r: len({c for _, c in r}) > 1
)


@settings(max_examples=40)
@given(rows, st.randoms(use_true_random=False))
def test_the_bootstrap_does_not_depend_on_the_order_of_rows(
    table: list[tuple[float, int]], order: random.Random
) -> None:
    shuffled = list(table)
    order.shuffle(shuffled)
    one, other = (
        interval(stats.bootstrap_mean([v for v, _ in t], [c for _, c in t], seed=3, resamples=200))
        for t in (table, shuffled)
    )
    assert one.value == pytest.approx(other.value, abs=1e-12)
    assert [one.low, one.high] == pytest.approx([other.low, other.high], abs=1e-9)


@settings(max_examples=40)
@given(rows, st.floats(-3, 3), st.floats(0.1, 4))
def test_the_bootstrap_moves_and_stretches_with_the_values(
    table: list[tuple[float, int]], shift: float, scale: float
) -> None:
    labels = [c for _, c in table]
    plain = interval(stats.bootstrap_mean([v for v, _ in table], labels, seed=1, resamples=200))
    moved = interval(stats.bootstrap_mean([scale * v + shift for v, _ in table], labels, seed=1, resamples=200))
    for before, after in ((plain.value, moved.value), (plain.low, moved.low), (plain.high, moved.high)):
        assert scale * before + shift == pytest.approx(after, abs=1e-9)


def test_the_bootstrap_is_seeded_and_chunks_do_not_matter() -> None:
    values, labels = np.arange(5000) % 7, list(range(5000))
    one, again, other = (stats.bootstrap_mean(values, labels, seed=s) for s in (1, 1, 2))
    assert one == again != other


def test_mcnemar_agrees_with_the_exact_binomial_test() -> None:
    for gained, lost in ((10, 2), (5, 5), (0, 7), (31, 18)):
        exact = oracle.binomtest(gained, gained + lost).pvalue
        assert stats.mcnemar(gained, lost) == pytest.approx(exact) == stats.mcnemar(lost, gained)


@pytest.mark.parametrize(("n", "ties", "points"), [(4906, 0, 2), (1745, 0.2, 3), (471, 0.4, 5), (197, 0, 10)])
def test_detectable_points_agree_with_the_published_table(n: int, ties: float, points: float) -> None:
    assert stats.detectable_points(n, ties) == pytest.approx(points, rel=2e-3)


def test_detectable_points_never_promise_the_impossible() -> None:
    assert stats.detectable_points(1, 0.0) == 50
    assert stats.detectable_points(100, 1.0) > 0


def test_correlation() -> None:
    x = np.array([1.0, 4.0, 2.0, 8.0])
    assert stats.correlation(x, 3 - 2 * x) == pytest.approx(-1)
    assert isinstance(stats.correlation(x, np.ones(4)), Undefined)
    assert isinstance(stats.correlation([1, 2], [1, 2]), Undefined)


def covered(truth: float, found: stats.Estimate) -> bool:
    return isinstance(found, Interval) and found.low <= truth <= found.high


def planted(*, win: float, tie: float, prompts: int, rows_each: int, spread: float, runs: int, seed: int) -> float:
    """Coverage of the win rate when prompts differ by Beta(spread) in how often they are won."""
    draw = np.random.default_rng(seed)
    truth, hits = win + tie / 2, 0
    for run in range(runs):
        ease = (
            np.full(prompts, win / (1 - tie))
            if rows_each == 1
            else draw.beta(spread * win, spread * (1 - tie - win), prompts)
        )
        tied = draw.random((prompts, rows_each)) < tie
        won = draw.random((prompts, rows_each)) < ease[:, None]
        scores = np.where(tied, 0.5, won.astype(float))
        labels = np.repeat(np.arange(prompts), rows_each).tolist()
        hits += covered(truth, stats.win_rate(scores.ravel(), labels, seed=run, resamples=600))
    return hits / runs


@pytest.mark.parametrize(
    ("win", "tie", "prompts", "rows_each"),
    [(0.5, 0.0, 160, 1), (0.45, 0.3, 150, 1), (0.9, 0.06, 160, 1), (0.55, 0.0, 100, 4), (0.6, 0.2, 60, 3)],
)
def test_planted_win_rates_are_covered(win: float, tie: float, prompts: int, rows_each: int) -> None:
    """500 simulations: 95 % plus or minus 2 points, widened by a point for the simulation's own noise."""
    share = planted(win=win, tie=tie, prompts=prompts, rows_each=rows_each, spread=3.0, runs=500, seed=11)
    assert 0.93 - 0.01 <= share <= 0.97 + 0.01


def test_ignoring_the_prompt_would_be_wrong() -> None:
    """Rows of one prompt share their luck: the clustered interval is honest, the plain one far too narrow."""
    draw, hits, naive = np.random.default_rng(5), 0, 0
    labels = np.repeat(np.arange(40), 6).tolist()
    for run in range(200):
        values = np.repeat(draw.normal(size=40), 6) + 0.3 * draw.normal(size=240)
        hits += covered(0.0, stats.bootstrap_mean(values, labels, seed=run, resamples=400))
        naive += covered(0.0, stats.bootstrap_mean(values, range(240), seed=run, resamples=400))
    assert hits / 200 > 0.91
    assert naive / 200 < 0.75
