"""Displacement: CHES as the paper defines it, whatever the layout of rows, and the edit distance that stands for it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import LlamaForCausalLM

from druthers import models
from druthers.config import ModelSettings
from druthers.curate.quality.displacement import (
    Ches,
    Risk,
    ches,
    displacement,
    distance,
    edit_similarity,
    flagged,
    nearly_same,
    read,
    risks,
    sample,
)
from druthers.records import Pair, assistant, user
from druthers.tokens import TokenizedPair, tokenize
from tests import tiny

PAIRS = [
    *tiny.pairs(9),
    *(  # two pairs of one prompt, and responses that begin alike
        Pair(prompt=user("Name a fruit."), chosen=assistant(good), rejected=assistant(bad))
        for good, bad in [("A ripe plum.", "A ripe carrot, or two."), ("A ripe plum.", "No.")]
    ),
]


def tokenized(swap: str = "no") -> list[TokenizedPair]:
    tokenizer = tiny.tokenizer()
    pairs = [pair.swap() if swap == "yes" else pair for pair in PAIRS]
    return [tokenize(pair, tokenizer, max_prompt=200, max_response=60) for pair in pairs]


def plain(folder: Path, pairs: list[TokenizedPair]) -> tuple[np.ndarray, np.ndarray, list[np.ndarray]]:
    """CHES in float64 by transformers' own forward, one response at a time, and the sums of hidden states."""
    model = LlamaForCausalLM.from_pretrained(folder, dtype=torch.float64).eval()
    whole, normalised, sums = [], [], []
    for pair in pairs:
        both = []
        for response in (pair.chosen, pair.rejected):
            ids = torch.tensor([[*pair.prompt, *response]])
            with torch.no_grad():
                hidden = model(input_ids=ids, output_hidden_states=True).hidden_states[-1][0]
            both.append(hidden[len(pair.prompt) - 1 : -1].sum(0).numpy())
        good, bad = both
        whole.append(good @ bad - good @ good)
        good_mean, bad_mean = good / len(pair.chosen), bad / len(pair.rejected)
        normalised.append(good_mean @ bad_mean - good_mean @ good_mean)
        sums.append(np.stack(both))
    return np.array(whole), np.array(normalised), sums


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.folder(tmp_path_factory.mktemp("model") / "tiny")


def test_one_reading_gives_the_log_probs_that_scoring_gives(folder: Path) -> None:
    loaded = models.load(ModelSettings(path=str(folder), precision="float32", device="cpu"))
    pairs = tokenized()
    found = read(loaded, pairs, token_budget=64)
    np.testing.assert_array_equal(found.logp_CB, models.score_pairs(loaded, pairs, token_budget=64))
    np.testing.assert_array_equal(found.ches.whole_B, ches(loaded, pairs, token_budget=64).whole_B)


@pytest.mark.parametrize("layout", ["shared", "padding-free", "padded"])
def test_ches_is_that_of_one_response_at_a_time(folder: Path, layout: str) -> None:
    settings_ = ModelSettings.model_validate(
        {"path": str(folder), "layout": layout, "precision": "float32", "device": "cpu"}
    )
    told: list[tuple[int, int]] = []
    pairs = tokenized()
    found = ches(models.load(settings_), pairs, token_budget=64, progress=lambda *at: told.append(at))
    whole, normalised, _ = plain(folder, pairs)
    np.testing.assert_allclose(found.whole_B, whole, rtol=1e-4)
    np.testing.assert_allclose(found.normalised_B, normalised, rtol=1e-4, atol=1e-4)
    assert told[-1] == (len(pairs), len(pairs))


def test_bfloat16_ranks_pairs_as_float64_does(folder: Path) -> None:
    settings_ = ModelSettings(path=str(folder), precision="bfloat16", device="cpu")
    pairs = tokenized()
    found = ches(models.load(settings_), pairs, token_budget=4096)
    _, normalised, _ = plain(folder, pairs)
    assert np.corrcoef(found.normalised_B, normalised)[0, 1] > 0.99


def test_swapping_the_sides_changes_it_as_the_formula_says(folder: Path) -> None:
    """CHES(y-, y+) - CHES(y+, y-) is |H+|^2 - |H-|^2."""
    loaded = models.load(ModelSettings(path=str(folder), precision="float32", device="cpu"))
    one, other = (ches(loaded, tokenized(swap), token_budget=4096) for swap in ("no", "yes"))
    _, _, sums = plain(folder, tokenized())
    squares = np.array([(both**2).sum(1) for both in sums])
    scale = np.abs(squares).max()
    np.testing.assert_allclose(other.whole_B - one.whole_B, squares[:, 0] - squares[:, 1], atol=1e-5 * scale)


def naive(one: str, other: str) -> int:
    row = list(range(len(other) + 1))
    for i, a in enumerate(one, 1):
        before, row[0] = row[0], i
        for j, b in enumerate(other, 1):
            before, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, before + (a != b))
    return row[-1]


@settings(max_examples=300, deadline=None)
@given(one=st.text("abc", max_size=80), other=st.text("abcd", max_size=80))
def test_the_distance_is_that_of_the_table(one: str, other: str) -> None:
    assert distance(one, other) == naive(one, other) == distance(other, one)


def test_similarity_is_of_the_longer_text_and_gives_up_early() -> None:
    assert edit_similarity("", "") == 1
    assert edit_similarity("a" * 100, "a" * 95) == 0.95
    assert edit_similarity("a" * 100, "a" * 85, least=0.9) == 0.0
    assert edit_similarity("a" * 100, "a" * 85) == 0.85


def test_the_riskiest_are_flagged_and_said() -> None:
    found = [Risk(f"p{i}", -1.0, i / 100, 0.95 if i < 30 else 0.0) for i in range(100)]
    assert [risk.pair_id for risk in flagged(found)] == ["p99", "p98", "p97", "p96", "p95"]
    mean, similar = displacement(found, prompts=[f"q{i // 2}" for i in range(100)], seed=0)
    assert (mean.id, mean.value, mean.n) == ("D9.ches", pytest.approx(0.495), 100)
    assert mean.low is not None
    assert mean.low < 0.45
    assert "0.95 on are the 5 of 100 pairs" in mean.text
    assert (similar.id, similar.value, similar.status) == ("D9.edit", 0.3, "warn")
    assert [one.status for one in displacement([], prompts=[], seed=0)] == ["undefined"] * 2
    assert nearly_same([0.0] * 100).status == "pass"


def test_rows_name_the_pairs_in_their_order() -> None:
    close = Pair(prompt=user("?"), chosen=assistant("x" * 50 + "a"), rejected=assistant("x" * 50 + "b"))
    found = risks([PAIRS[0], close], Ches(np.array([1.0, 2.0]), np.array([0.1, 0.2])))
    assert [risk.pair_id for risk in found] == [PAIRS[0].id, close.id]
    assert [risk.edit_similarity for risk in found] == [0.0, round(50 / 51, 4)]


def test_a_sample_is_seeded_and_in_order() -> None:
    assert sample(10_000, seed=1) == sorted(set(sample(10_000, seed=1)))
    assert len(sample(10_000, seed=1)) == 512
    assert sample(10_000, seed=1) != sample(10_000, seed=2)
