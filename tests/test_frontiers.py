"""Dominance, fronts and envelopes of constructed points whose answers are known, and what no resample may change."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from druthers.frontiers import Cloud, Method, advantage, beaten, dominated, envelope, front
from druthers.stats import Interval, Undefined

values = st.floats(0, 10, allow_nan=False, width=32)
points = st.lists(st.tuples(values, values), min_size=1, max_size=8)


def cloud(*points: tuple[float, float], prompts: int = 40, spread: float = 0.0, seed: int = 0) -> Cloud:
    """Points of known means: the noise of the prompts sums to zero."""
    noise = np.random.default_rng(seed).standard_normal((len(points), prompts))
    noise = spread * (noise - noise.mean(axis=1, keepdims=True))
    kl, reward = (np.array([[point[i]] for point in points], dtype=float) for i in (0, 1))
    return Cloud(kl + 0.0 * noise, reward + noise)


def columns(found: list[tuple[float, float]]) -> tuple[np.ndarray, np.ndarray]:
    """KL and reward of points."""
    return np.array([p[0] for p in found], dtype=float), np.array([p[1] for p in found], dtype=float)


@given(points, points)
def test_a_point_is_beaten_exactly_by_one_that_is_nearer_and_better(ours: list, theirs: list) -> None:
    found = beaten(*columns(ours), *columns(theirs))
    assert found.tolist() == [any(kl < a and reward > b for kl, reward in theirs) for a, b in ours]


@given(points)
def test_no_point_of_the_front_is_beaten_and_every_other_is(found: list) -> None:
    kl, reward = columns(found)
    best = front(kl, reward)
    assert sorted(best) == [i for i, lost in enumerate(beaten(kl, reward, kl, reward).tolist()) if not lost]
    assert [kl[i] for i in best] == sorted(kl[i] for i in best)


@given(points, values)
def test_an_envelope_lies_above_every_point_and_bends_down_only(found: list, start: float) -> None:
    kl, reward = columns(found)
    assert (envelope(kl, reward, start=start, at=kl) >= reward - 1e-6).all()
    rise = np.diff(envelope(kl, reward, start=start, at=np.linspace(0, float(kl.max()), 20)))
    assert (np.diff(rise) <= 1e-6).all()


def test_shares_of_constructed_points_are_known() -> None:
    low = cloud((1.0, 0.5), (2.0, 0.6), (3.0, 0.7), (4.0, 0.8))
    high = cloud((0.9, 0.55), (1.9, 0.65))
    found = dominated([low], [high], seed=0)
    assert found == Interval(0.5, 0.5, 0.5, 4)  # the first by the first, the second by the second; no noise, no width
    assert dominated([high], [low], seed=0) == Interval(0.0, 0.0, 0.0, 2)
    assert dominated([low], [low], seed=0) == Interval(0.0, 0.0, 0.0, 4)


def test_noise_that_both_share_cancels() -> None:
    shared = np.random.default_rng(1).standard_normal(40)
    far = Cloud(np.full((1, 40), 2.0), 0.5 + shared[None, :])
    near = Cloud(np.full((1, 40), 1.0), 0.51 + shared[None, :])
    assert dominated([far], [near], seed=0) == Interval(1.0, 1.0, 1.0, 1)


def test_what_the_prompts_leave_open_has_a_wide_interval() -> None:
    far, near = cloud((2.0, 0.5), spread=1.0, seed=1), cloud((1.0, 0.51), spread=1.0, seed=2)
    assert dominated([far], [near], seed=0) == Interval(1.0, 0.0, 1.0, 1)


def test_the_order_of_the_points_does_not_matter() -> None:
    a, b = cloud((1.0, 0.5), (2.0, 0.6), spread=0.2), cloud((0.9, 0.52), (1.9, 0.55), spread=0.2, seed=3)
    turned = Cloud(a.kl_KG[::-1], a.reward_KG[::-1])
    assert dominated([a], [b], seed=0) == dominated([turned], [b], seed=0)


def test_runs_of_several_seeds_widen_the_interval_by_their_spread() -> None:
    steady = [cloud((1.0, 0.7))]
    runs: Method = [cloud((2.0, 0.5)), cloud((2.0, 0.6)), cloud((2.0, 0.9))]
    found = dominated(runs, steady, seed=0)
    assert isinstance(found, Interval)
    assert found.value == pytest.approx(2 / 3)
    assert found.low < 0.5
    assert found.high == 1.0


def test_an_advantage_at_equal_kl_is_the_area_between_the_curves() -> None:
    lower, upper = cloud((2.0, 0.4)), cloud((2.0, 0.6), (4.0, 0.6))
    found = advantage([upper], [lower], np.full(40, 0.2), seed=0)
    assert isinstance(found, Interval)
    assert found.value == pytest.approx(0.1)  # rises from 0 to 0.2 over the two nats that both reach
    turned = advantage([lower], [upper], np.full(40, 0.2), seed=0)
    assert isinstance(turned, Interval)
    assert (turned.value, turned.low, turned.high) == pytest.approx((-found.value, -found.high, -found.low))


def test_what_cannot_be_compared_is_undefined_or_refused() -> None:
    here = cloud((0.0, 0.5))
    assert advantage([here], [cloud((1.0, 0.5))], np.zeros(40), seed=0) == Undefined(
        "the two have no range of KL in common"
    )
    assert isinstance(dominated([cloud((1.0, 1.0), prompts=1)], [cloud((1.0, 1.0), prompts=1)], seed=0), Undefined)
    with pytest.raises(ValueError, match="take those that all have"):
        dominated([here], [cloud((1.0, 1.0), prompts=9)], seed=0)
    with pytest.raises(ValueError, match="are no points"):
        Cloud(np.zeros((0, 4)), np.zeros((0, 4)))
    with pytest.raises(ValueError, match="finite"):
        Cloud(np.zeros((1, 4)), np.full((1, 4), np.nan))


@pytest.mark.parametrize("gap", [-0.1, 0.1])
def test_the_intervals_hold_the_truth_in_simulated_runs(gap: float) -> None:
    """A few repetitions; benchmarks/compare/coverage.py has many, and what they gave stands in docs/compare.md."""
    draw, hits, at, repeats = np.random.default_rng(5), 0, np.array([[1.0], [3.0]]), 40
    for repeat in range(repeats):
        level = draw.standard_normal(60) * 0.2
        first, second = (
            Cloud(at + 0 * level, 0.5 + more + level + 0.3 * draw.standard_normal((2, 60))) for more in (0.0, gap)
        )
        found = advantage([second], [first], level + 0.5, seed=repeat, resamples=200)
        assert isinstance(found, Interval)
        kl = at[:, 0]
        grid = np.linspace(0, 3, 41)
        curves = [envelope(kl, np.full(2, 0.5 + more), start=0.5, at=grid) for more in (gap, 0.0)]
        hits += found.low <= float((curves[0] - curves[1]).mean()) <= found.high
    assert hits >= 0.85 * repeats
