"""On-policy-ness: per-token log-probabilities with their intervals, sources, ages, and the model's own voice."""

from __future__ import annotations

from collections import Counter
from datetime import date

import numpy as np
import pytest

from druthers.curate.quality.onpolicy import age, likelihood, own_share, own_voice, per_token
from druthers.records import Finding
from druthers.stats import bootstrap_mean


def drawn(count: int, *, mean: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Sums of log-probabilities about a mean per token, and lengths."""
    draw = np.random.default_rng(seed)
    length = draw.integers(5, 60, size=count)
    return length * (mean + 0.3 * draw.standard_normal(count)), length


def test_means_per_token_and_their_gap_have_intervals_over_prompts() -> None:
    good, good_length = drawn(400, mean=-1.5, seed=0)
    bad, bad_length = drawn(400, mean=-1.9, seed=1)
    prompts = [f"p{i // 4}" for i in range(400)]
    chosen, gap = likelihood([good, bad], [good_length, bad_length], prompts=prompts, seed=3)
    assert chosen.value == pytest.approx(np.mean(good / good_length))
    assert gap.value == pytest.approx(np.mean(good / good_length - bad / bad_length))
    same = bootstrap_mean(per_token(good, good_length), prompts, seed=3)
    assert (chosen.low, chosen.high) == (same.as_dict()["low"], same.as_dict()["high"])
    assert gap.low is not None
    assert gap.high is not None
    assert gap.low < 0.4 < gap.high


def test_a_response_without_tokens_has_none() -> None:
    with pytest.raises(ValueError, match="without scored tokens"):
        per_token([-1.0], [0])


@pytest.mark.parametrize(
    ("sources", "share", "status"),
    [
        (["me over you", "you", "you over me", "you"], 2 / 8, "warn"),
        (["org/me", "ME over org/me"], 1.0, "pass"),
        (["", " "], None, "undefined"),
        (["me too over me2"], 0.0, "warn"),
    ],
)
def test_the_share_of_the_model_is_counted_by_name(sources: list[str], share: float | None, status: str) -> None:
    found = own_share(sources, models=["me"])
    assert (found.value, found.status) == (share, status)


def test_the_model_may_be_named_with_its_owner() -> None:
    assert own_share(["small over old"], models=["org/small", "org/old"]).value == 1
    assert "2 pairs do not say" in own_share(["a", "", ""], models=["a"]).text


def test_age_is_the_median() -> None:
    def of(*days: int) -> Finding:
        today = date(2026, 11, 28)
        found = age(Counter(today.toordinal() - day for day in days), today=today)
        assert found is not None
        return found

    assert (of(1, 2, 300).value, of(1, 2, 300).status) == (2, "pass")
    assert of(91, 92, 10).status == "warn"
    assert of(90, 90, 90).status == "pass"
    assert of(-3).value == 0
    assert of(*range(1, 101)).text == (
        "Half of the 100 rows with a date are 51 days old or older (2026-10-08 or earlier), a tenth 91."
    )
    assert age({}, today=date(2026, 11, 28)) is None


@pytest.mark.parametrize(("mean", "status"), [(-1.0, "pass"), (-2.5, "warn")])
def test_data_of_another_voice_are_told_from_the_models_own(mean: float, status: str) -> None:
    (good, good_length), (bad, bad_length) = drawn(300, mean=mean, seed=0), drawn(300, mean=mean, seed=1)
    own, own_length = drawn(200, mean=-1.0, seed=2)
    found = own_voice(
        [good, bad], [good_length, bad_length], own, own_length,
        prompts=range(300), own_prompts=range(200), seed=0,
    )  # fmt: skip
    assert (found.id, found.status) == ("D12.own", status)
    assert found.low is not None
    assert found.high is not None
    assert found.low < -1.0 - mean < found.high


def test_no_samples_no_difference() -> None:
    found = own_voice([[-1.0], [-2.0]], [[1], [1]], [], [], prompts=["a"], own_prompts=[], seed=0)
    assert found.status == "undefined"
