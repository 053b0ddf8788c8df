"""How much data it takes: planted improvements are found as often as promised, planted curves lie in the intervals."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from druthers import power
from druthers.power import Curve, Point, fit_curve
from druthers.stats import Undefined, detectable_points, paired_score

SIMULATIONS = 20_000
PROMISED = (0.78, 0.82)

shares = st.floats(0.05, 1.0)
noises = st.floats(0.0, 0.45)


def score_test(better: np.ndarray, worse: np.ndarray) -> float:
    """How often McNemar's score test, two-sided at 5 %, sees a difference; better and worse are counts."""
    with np.errstate(invalid="ignore"):
        z = (better - worse) / np.sqrt(better + worse)
    return float((np.abs(z) > 1.959964).mean())


@pytest.mark.parametrize(
    ("difference", "changed"), [(0.1, 1.0), (0.1, 0.6), (0.06, 0.2), (0.2, 1.0), (0.04, 0.5), (-0.1, 0.8)]
)
def test_planted_differences_are_found_four_times_in_five(difference: float, changed: float) -> None:
    n = power.comparisons_needed(difference, changed=changed)
    draw = np.random.default_rng(1)
    counts = draw.multinomial(n, [(changed + difference) / 2, (changed - difference) / 2, 1 - changed], SIMULATIONS)
    assert PROMISED[0] < score_test(counts[:, 0], counts[:, 1]) < PROMISED[1]


@pytest.mark.parametrize(
    ("gain", "ties", "noise"), [(0.05, 0.0, 0.0), (0.05, 0.3, 0.0), (0.1, 0.0, 0.2), (0.08, 0.4, 0.1)]
)
def test_planted_win_rates_are_found_four_times_in_five_through_ties_and_noisy_verdicts(
    gain: float, ties: float, noise: float
) -> None:
    n = power.win_rate_needed(gain, ties=ties, noise=noise)
    wins = (1 - ties) / 2 + gain
    losses = 1 - ties - wins
    seen = [wins * (1 - noise) + losses * noise, losses * (1 - noise) + wins * noise, ties]
    counts = np.random.default_rng(2).multinomial(n, seen, SIMULATIONS)
    assert PROMISED[0] < score_test(counts[:, 0], counts[:, 1]) < PROMISED[1]


@pytest.mark.parametrize(("before", "after", "noise"), [(0.6, 0.65, 0.0), (0.7, 0.8, 0.1), (0.55, 0.7, 0.0)])
def test_planted_accuracies_of_two_models_are_told_apart_four_times_in_five(
    before: float, after: float, noise: float
) -> None:
    """Each model is right on its own pairs, independently, and the labels are flipped for both at once or the models
    would agree more than the default supposes; so the noise is drawn apart for each, as the default says."""
    n = power.accuracy_needed(before, after, noise=noise)
    draw = np.random.default_rng(3)
    one, two = (power.noisy_accuracy(a, noise) for a in (before, after))
    counts = draw.multinomial(n, [two * (1 - one), one * (1 - two), one * two + (1 - one) * (1 - two)], SIMULATIONS)
    assert PROMISED[0] < score_test(counts[:, 0], counts[:, 1]) < PROMISED[1]


def test_labels_that_are_flipped_for_both_models_make_it_no_harder_than_promised() -> None:
    """The same wrong label meets both models, so fewer comparisons change than for independent ones."""
    noise, before, after = 0.2, 0.6, 0.7
    n = power.accuracy_needed(before, after, noise=noise)
    draw = np.random.default_rng(4)
    found = 0.0
    for _ in range(8):
        flipped = draw.random((500, n)) < noise
        right = [(draw.random((500, n)) < a) != flipped for a in (before, after)]
        better, worse = ((right[1] & ~right[0]).sum(1), (right[0] & ~right[1]).sum(1))
        found += score_test(better, worse) / 8
    assert found > PROMISED[0]


@pytest.mark.parametrize(("size", "correlation"), [(4, 0.3), (8, 0.1)])
def test_the_design_effect_pays_for_rows_that_share_a_prompt(size: int, correlation: float) -> None:
    """Wins of one prompt are beta-binomial; the test is on the means of prompts, as the house's intervals are."""
    gain = 0.08
    n = power.win_rate_needed(gain, design=power.design_effect([size], correlation))
    prompts = math.ceil(n / size)
    rate, concentration = 0.5 + gain, 1 / correlation - 1
    draw = np.random.default_rng(5)
    own = draw.beta(rate * concentration, (1 - rate) * concentration, (4000, prompts))
    mean = draw.binomial(size, own) / size
    z = (mean.mean(1) - 0.5) / (mean.std(1, ddof=1) / np.sqrt(prompts))
    assert PROMISED[0] - 0.01 < (np.abs(z) > 1.959964).mean() < PROMISED[1] + 0.02
    naive = power.win_rate_needed(gain)
    assert n > 1.5 * naive


def test_correlation_within_prompts_is_recovered() -> None:
    draw = np.random.default_rng(6)
    for planted in (0.0, 0.2, 0.6):
        own = np.full(2000, 0.6) if planted == 0 else draw.beta(*(np.array([0.6, 0.4]) * (1 / planted - 1)), 2000)
        sizes = draw.integers(1, 6, 2000)
        values = np.concatenate([draw.binomial(1, p, m) for p, m in zip(own, sizes, strict=True)])
        found = power.correlation_within(values.astype(float), np.repeat(np.arange(2000), sizes).tolist())
        assert found == pytest.approx(planted, abs=0.05)


def test_no_correlation_without_rows_that_share_a_prompt() -> None:
    alone = power.correlation_within([1.0, 0.0], "ab")
    equal = power.correlation_within([1.0, 1.0, 1.0], "aab")
    assert isinstance(alone, Undefined)
    assert isinstance(equal, Undefined)


@example(n=16, changed=1.0, design=5.0)
@given(st.integers(10, 10**6), shares, st.floats(1.0, 6.0))
def test_needed_and_detectable_are_inverse(n: int, changed: float, design: float) -> None:
    found = power.detectable_difference(n, changed=changed, design=design)
    if math.isinf(found):
        assert power.comparisons_needed(changed, changed=changed, design=design) > n
    else:
        assert power.comparisons_needed(found, changed=changed, design=design) in (n, n + 1)


@given(st.floats(0.005, 0.2), st.floats(0.0, 0.5), noises)
def test_more_noise_takes_more_and_more_ties_take_less(gain: float, ties: float, noise: float) -> None:
    base = power.win_rate_needed(gain, noise=noise)
    assert base >= power.win_rate_needed(gain)
    assert power.win_rate_needed(gain, ties=ties, noise=noise) <= base
    assert base == pytest.approx(power.win_rate_needed(gain) * power.noise_inflation(noise), rel=0.25, abs=5)


@given(st.integers(50, 5000), st.floats(0, 0.5))
def test_the_house_number_for_reports_is_nearly_the_same(n: int, ties: float) -> None:
    """`stats.detectable_points` takes the variance at 1/2 on both sides, which asks for a little more."""
    ours, theirs = 100 * power.detectable_gain(n, ties=ties), detectable_points(n, ties)
    assert ours <= theirs + 1e-9
    assert ours == pytest.approx(theirs, rel=0.12)


def test_the_interval_of_the_house_excludes_nothing_at_the_size_that_is_needed() -> None:
    n = power.comparisons_needed(0.2, changed=0.8)
    found = paired_score(round(0.5 * n), round(0.3 * n), n)
    assert not isinstance(found, Undefined)
    assert found.low > 0


@given(st.floats(0.0, 1.0), noises)
def test_noise_and_its_removal_are_inverse(accuracy: float, noise: float) -> None:
    assert power.true_accuracy(power.noisy_accuracy(accuracy, noise), noise) == pytest.approx(accuracy, abs=1e-9)
    assert power.noisy_accuracy(accuracy, noise) <= power.ceiling(noise) + 1e-12


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        (lambda: power.comparisons_needed(0.0), "between 0"),
        (lambda: power.comparisons_needed(0.5, changed=0.4), "between 0"),
        (lambda: power.comparisons_needed(0.1, changed=1.2), "share"),
        (lambda: power.comparisons_needed(0.1, design=0.0), "positive"),
        (lambda: power.comparisons_needed(0.1, power=0.2), "power"),
        (lambda: power.ceiling(0.5), r"\[0, 0.5\)"),
        (lambda: power.design_effect([], 0.1), "clusters"),
        (lambda: power.design_effect([2], 1.1), "correlation"),
        (lambda: fit_curve([Point(n, 0.6, 0.0) for n in (1, 2, 4)], seed=0), "positive error"),
    ],
)
def test_nonsense_is_refused(fault: Callable[[], object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        fault()


# ---------------------------------------------------------------- learning curves


def runs(sizes: tuple[int, ...], *, a: float, b: float, c: float, error: float, seed: int | None = None) -> list[Point]:
    """Points on a curve, with noise where a seed is given."""
    noise = np.zeros(len(sizes)) if seed is None else np.random.default_rng(seed).normal(0, error, len(sizes))
    return [Point(n, a - b * n**-c + e, error) for n, e in zip(sizes, noise, strict=True)]


def curve(points: list[Point], *, top: float = 1.0, resamples: int = 400) -> Curve:
    found = fit_curve(points, seed=0, top=top, resamples=resamples)
    assert isinstance(found, Curve)
    return found


def test_a_curve_without_noise_is_found_again() -> None:
    planted = {"a": 0.8, "b": 1.5, "c": 0.3}
    found = curve(runs((500, 1000, 2000, 4000, 8000), error=1e-6, **planted))
    for n in (500, 4000, 16_000, 80_000):  # exponents are tried in steps of 6 %
        assert found.at(n).value == pytest.approx(0.8 - 1.5 * n**-0.3, abs=2e-3)
    reach = found.needed(0.75)
    assert reach.value == pytest.approx((1.5 / 0.05) ** (1 / 0.3), rel=0.1)
    assert reach.share == 1


def test_the_gain_of_doubling_lies_in_its_interval_as_often_as_it_says() -> None:
    planted = {"a": 0.75, "b": 1.2, "c": 0.35}
    truth = 1.2 * (4000**-0.35 - 8000**-0.35)
    hits = 0
    for seed in range(100):
        found = curve(runs((1000, 2000, 4000), error=0.012, seed=seed, **planted), resamples=200).gain(4000, 8000)
        hits += found.low <= truth <= found.high
    assert hits >= 90


def test_a_level_curve_promises_nothing() -> None:
    found = curve([Point(n, 0.7, 0.005) for n in (1000, 2000, 4000)])
    assert found.gain(4000, 8000).value == pytest.approx(0, abs=1e-9)
    reach = found.needed(0.8)
    assert reach.value == math.inf
    assert reach.share < 0.2


def test_no_fit_rises_above_the_ceiling() -> None:
    found = curve(runs((500, 1000, 2000, 4000), a=0.9, b=2.0, c=0.25, error=0.01, seed=1), top=0.8)
    assert (found.fits_R3[:, 0] <= 0.8).all()
    assert (found.fits_R3[:, 1] >= 0).all()
    assert found.at(40_000).high <= 0.8
    assert found.needed(0.81).share == 0


def test_runs_of_one_size_that_differ_widen_the_interval() -> None:
    alone = [Point(n, 0.75 - 1.2 * n**-0.35, 0.005) for n in (1000, 2000, 4000)]
    again = [Point(p.pairs, p.accuracy + d, p.error) for p in alone for d in (-0.02, 0.0, 0.02)]
    wide, narrow = curve(again), curve(alone)
    assert narrow.spread == 0
    assert wide.spread == pytest.approx(math.sqrt(0.02**2 - 0.005**2), abs=1e-6)
    assert wide.at(8000).high - wide.at(8000).low > narrow.at(8000).high - narrow.at(8000).low


def test_too_few_sizes_too_close_together_and_too_far_ahead_are_said_as_such() -> None:
    few = fit_curve([Point(n, 0.6, 0.01) for n in (500, 500, 1000)], seed=0)
    near = fit_curve([Point(n, 0.6, 0.01) for n in (500, 700, 1000)], seed=0)
    assert isinstance(few, Undefined)
    assert "there are 2" in few.reason
    assert isinstance(near, Undefined)
    assert "close together" in near.reason
    with pytest.raises(ValueError, match="10 times the largest"):
        curve([Point(n, 0.7, 0.005) for n in (1000, 2000, 4000)]).at(50_000)


@settings(deadline=None, max_examples=30)
@given(st.lists(st.floats(0.3, 0.95), min_size=3, max_size=6), st.integers(0, 2**32 - 1))
def test_any_runs_give_a_curve_that_never_falls(accuracies: list[float], seed: int) -> None:
    points = [Point(500 * 2**i, a, 0.02) for i, a in enumerate(accuracies)]
    found = fit_curve(points, seed=seed, resamples=20)
    assert isinstance(found, Curve)
    gain = found.gain(found.largest, 2 * found.largest)
    assert gain.low >= -1e-9
    assert found.at(found.largest).high <= 1 + 1e-9
    reach = found.needed(0.99)
    assert 0 <= reach.share <= 1
    assert reach.low <= reach.value <= reach.high
