"""Biases: planted ones come back within their interval, clean sets are not flagged, separation stays honest."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy.special import expit, logit

from druthers.curate import surface
from druthers.curate.quality import bias as measured
from druthers.curate.quality import logistic
from druthers.curate.quality.bias import Bias, bias, differences, findings
from druthers.stats import Estimate, Interval, Undefined


def differing(draw: np.random.Generator, count: int) -> NDArray[Any]:
    """Lengths, marks and refusals of pairs, first less second."""
    length = np.round(200 * draw.normal(size=count))
    return np.column_stack(
        [length, draw.integers(-3, 4, count) / 2, draw.integers(-1, 2, count) * (draw.random(count) < 0.3)]
    )


def decided(
    draw: np.random.Generator, difference: NDArray[Any], effect: tuple[float, ...], *, luck: NDArray[Any] | float = 0.0
) -> NDArray[Any]:
    x = measured.design(difference, position=True, models=None)
    return (draw.random(len(x)) < expit(x @ np.array(effect) + luck)).astype(float)


def interval(found: Estimate) -> Interval:
    assert isinstance(found, Interval), found
    return found


def in_points(b: float) -> float:
    return 100 * (float(expit(b)) - 0.5)


def status(found: Bias) -> dict[str, str]:
    return {one.id: one.status for one in findings(found)}


EFFECT = (0.2, 0.5, 0.3, -0.9)


def test_planted_biases_come_back() -> None:
    draw = np.random.default_rng(1)
    difference = differing(draw, 20_000)
    found = bias(difference, decided(draw, difference, EFFECT), np.arange(20_000), position=True)
    for estimate, b in zip((found.position, found.length, found.markdown, found.refusal), EFFECT, strict=True):
        one = interval(estimate)
        assert one.low <= in_points(b) <= one.high
        assert one.high - one.low < 5
    assert status(found) == {
        "D4.position": "warn",
        "D4.length": "warn",
        "D4.length_alone": "warn",
        "D4.markdown": "warn",
        "D4.refusal": "warn",
    }


@pytest.mark.parametrize(
    ("count", "groups", "tied", "spread"), [(200, 200, 0.0, 0.0), (600, 30, 0.2, 0.6), (400, 400, 0.4, 0.0)]
)
def test_the_interval_covers_in_95_of_100_sets(count: int, groups: int, tied: float, spread: float) -> None:
    """300 sets; clusters with luck of their own, ties, few pairs. The target is what endless data would give."""
    draw = np.random.default_rng(9)

    def one(pairs: int, clusters: int) -> tuple[NDArray[Any], NDArray[Any], NDArray[Any]]:
        difference, cluster = differing(draw, pairs), np.arange(pairs) % clusters
        won = decided(draw, difference, EFFECT, luck=spread * draw.normal(size=clusters)[cluster])
        return difference, np.where(draw.random(pairs) < tied, 0.5, won), cluster

    difference, won, _ = one(300_000, 300_000)
    truth = logistic.fit(measured.design(difference, position=True, models=None), won).coefficient_F
    covered = np.zeros(4)
    for _ in range(300):
        found = bias(*one(count, groups), position=True)
        estimates = (found.position, found.length, found.markdown, found.refusal)
        covered += [interval(e).low <= in_points(b) <= interval(e).high for e, b in zip(estimates, truth, strict=True)]
    assert (covered / 300 >= 0.93 - 0.015).all(), covered
    assert covered.mean() / 300 <= 0.97 + 0.01, covered


def test_clean_sets_are_not_flagged() -> None:
    """At least 19 of 20 seeds, with the order known and without."""
    clean = 0
    for seed in range(20):
        draw = np.random.default_rng(seed)
        difference = differing(draw, 1000)
        known = bias(difference, draw.integers(0, 2, 1000), np.arange(1000) // 2, position=True)
        plain = bias(difference, np.ones(1000), np.arange(1000) // 2, position=False)
        clean += set(status(known).values()) | set(status(plain).values()) == {"pass"}
    assert clean >= 19


@pytest.mark.parametrize(("count", "position"), [(200, False), (200, True), (5000, False)])
def test_longer_always_wins_is_flagged_with_a_finite_interval(*, count: int, position: bool) -> None:
    draw = np.random.default_rng(5)
    difference = differing(draw, count)
    difference[:, 0] += difference[:, 0] == 0
    if position:
        won = (difference[:, 0] > 0).astype(float)
    else:
        won, difference = np.ones(count), difference * np.sign(difference[:, :1])
    found = bias(difference, won, np.arange(count), position=position)
    longer, alone = interval(found.longer), interval(found.length)
    assert longer.value == 50
    assert 45 < longer.low < longer.high == 50
    assert alone.value > 45
    assert 40 < alone.low <= alone.high <= 50
    assert status(found)["D4.length"] == "fail"
    assert "D4.position" not in status(found) or status(found)["D4.position"] == "pass"


def test_rows_of_one_annotator_are_no_more_evidence_than_the_annotator() -> None:
    draw = np.random.default_rng(2)
    difference = np.repeat(differing(draw, 60), 20, axis=0)
    won = np.repeat(draw.integers(0, 2, 60), 20).astype(float)
    alone, together = (bias(difference, won, c, position=True) for c in (np.arange(1200), np.repeat(np.arange(60), 20)))
    narrow, wide = interval(alone.position), interval(together.position)
    assert wide.high - wide.low > 3 * (narrow.high - narrow.low)


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 2**32), st.floats(0.1, 1000.0))
def test_exchanging_the_sides_turns_every_sign_and_units_do_not_matter(seed: int, unit: float) -> None:
    draw = np.random.default_rng(seed)
    difference = differing(draw, 300)
    won = np.where(draw.random(300) < 0.2, 0.5, decided(draw, difference, EFFECT))
    cluster = draw.integers(100, size=300)
    one = bias(difference, won, cluster, position=True)
    other = bias(-difference, 1 - won, cluster, position=True)
    assert interval(other.position).value == pytest.approx(-interval(one.position).value, abs=1e-6)
    assert interval(other.position).low == pytest.approx(-interval(one.position).high, abs=1e-5)
    for name in ("longer", "length", "markdown", "refusal"):
        assert interval(getattr(other, name)).value == pytest.approx(interval(getattr(one, name)).value, abs=1e-6)
    scaled = bias(difference * [unit, 1, 1], won, cluster, position=True)
    assert interval(scaled.length).low == pytest.approx(interval(one.length).low, abs=1e-5)


def test_a_column_that_says_nothing_changes_nothing() -> None:
    draw = np.random.default_rng(4)
    difference = differing(draw, 500)
    won = decided(draw, difference, EFFECT)
    difference[:, 2] = 0
    same = np.zeros(500, dtype=np.int64)
    one, other = (bias(difference, won, np.arange(500), position=True, models=m) for m in (None, (same, same)))
    assert one == other
    assert isinstance(one.refusal, Undefined)
    assert one.refusal.reason == "no pair differs in it"


def test_a_better_model_does_not_pass_for_a_taste_for_length() -> None:
    draw = np.random.default_rng(6)
    models = draw.integers(2, size=(2, 4000))
    difference = differing(draw, 4000)
    difference[:, 0] = 300 * (models[0] - models[1]) + 50 * draw.normal(size=4000)
    won = (draw.random(4000) < expit(1.5 * (models[0] - models[1]))).astype(float)
    blamed = interval(bias(difference, won, np.arange(4000), position=True).length)
    cleared = interval(bias(difference, won, np.arange(4000), position=True, models=(models[0], models[1])).length)
    assert blamed.low > 10
    assert cleared.low < 0 < cleared.high or abs(cleared.value) < blamed.low / 2


def test_too_little_is_undefined_with_the_reason() -> None:
    few = bias(np.ones((10, 3)), np.ones(10), np.arange(10), position=True)
    assert isinstance(few.position, Undefined)
    assert "10 pairs are too few" in few.position.reason
    one = bias(np.ones((100, 3)), np.ones(100), np.zeros(100, dtype=int), position=False)
    assert isinstance(one.length, Undefined)
    assert "1 prompts or annotators" in one.length.reason
    assert {f.status for f in findings(one)} == {"undefined"}
    assert isinstance(bias(np.zeros((0, 3)), [], [], position=True).longer, Undefined)


def test_nonsense_is_refused() -> None:
    with pytest.raises(ValueError, match="do not fit"):
        bias(np.ones((3, 2)), np.ones(3), np.arange(3), position=True)
    with pytest.raises(ValueError, match="must be finite"):
        bias(np.full((3, 3), np.nan), np.ones(3), np.arange(3), position=True)


def test_differences_come_from_the_surface() -> None:
    sides = [np.array([surface.surface(text)]) for text in ("- a\n- b\n- c", "I'm sorry, I can't help.")]
    assert differences(*sides).tolist() == [[11 - 24, 2.0, -1.0]]


def test_the_regression_agrees_with_the_closed_form_of_one_constant() -> None:
    found = logistic.fit(np.ones((400, 1)), np.r_[np.ones(300), np.zeros(100)], ridge=1e-9)
    assert found.coefficient_F[0] == pytest.approx(float(logit(0.75)), abs=1e-6)
    covariance, groups = logistic.robust(np.ones((400, 1)), np.r_[np.ones(300), np.zeros(100)], found, np.arange(400))
    assert groups == 400
    assert covariance[0, 0] == pytest.approx(1 / (400 * 0.75 * 0.25), rel=0.01)
