"""Coverage: planted gaps are found and named, intervals are those of the sample, and a shift needs more than chance."""

from __future__ import annotations

from math import log

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from druthers.curate.quality import coverage as module
from druthers.curate.quality.coverage import Topics, alike, cover, divergence, diversity, merged, repetition, shift
from druthers.records import InputError, Prompt, user
from druthers.stats import Interval, wilson

SUBJECTS = ["lock", "cake", "poem", "engine", "garden", "tax"]


def asked(topics: list[int], *, seed: int) -> tuple[NDArray[np.float32], list[str]]:
    """Vectors about the direction of each topic, and texts that name it."""
    draw = np.random.default_rng(seed)
    middle = np.random.default_rng(99).standard_normal((len(SUBJECTS), 24))
    found = middle[topics] + 0.5 * draw.standard_normal((len(topics), 24))
    found /= np.linalg.norm(found, axis=1, keepdims=True)
    return found.astype(np.float32), [f"what about the {SUBJECTS[t]} of number {i}" for i, t in enumerate(topics)]


def test_topics_that_only_production_has_are_found_named_and_exemplified() -> None:
    train, train_texts = asked([i % 4 for i in range(400)], seed=0)
    production, texts = asked([i % 4 for i in range(200)] + [4] * 120 + [5] * 60, seed=1)
    prompts = [Prompt(prompt=user(text)) for text in texts]
    found = cover(train, production, train=train_texts, asked=prompts, texts=texts, seed=0)
    whole, *of_topics, moved = found.findings
    assert whole.id == "D8.coverage"
    assert whole.status == "warn"
    assert whole.value == pytest.approx(200 / 380, abs=0.05)
    assert whole.value is not None
    interval = wilson(round(whole.value * 380), 380)
    assert isinstance(interval, Interval)
    assert (whole.low, whole.high, whole.n) == (interval.low, interval.high, 380)
    named = [gap for gap in found.gaps if "garden" in gap.topic or "tax" in gap.topic]
    assert found.gaps[0] in named
    assert sum(gap.uncovered for gap in named) > 170
    assert sum(gap.uncovered for gap in found.gaps if gap not in named) < 20
    assert [gap.uncovered for gap in found.gaps] == sorted((gap.uncovered for gap in found.gaps), reverse=True)
    assert all(len(gap.examples) == min(5, gap.uncovered) for gap in named)
    wanted = [prompt.prompt[0].content for prompt in found.wanted()]
    assert sum("garden" in text or "tax" in text for text in wanted) >= 10
    assert {finding.slice["topic"] for finding in of_topics} == {gap.topic for gap in found.gaps}
    assert (moved.id, moved.status) == ("D8.shift", "warn")
    assert "garden" in moved.text or "tax" in moved.text


def test_production_like_the_training_prompts_is_covered_and_has_not_shifted() -> None:
    train, train_texts = asked([i % 6 for i in range(600)], seed=0)
    production, texts = asked([i % 6 for i in range(400)], seed=1)
    prompts = [Prompt(prompt=user(text)) for text in texts]
    whole, *_, moved = cover(train, production, train=train_texts, asked=prompts, texts=texts, seed=0).findings
    assert whole.status == moved.status == "pass"
    assert whole.value is not None
    assert whole.value > 0.9


def test_a_sample_says_how_large_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "ASKED", 50)
    train, train_texts = asked([i % 3 for i in range(100)], seed=0)
    production, texts = asked([i % 3 for i in range(300)], seed=1)
    prompts = [Prompt(prompt=user(text)) for text in texts]
    found = cover(train, production, train=train_texts, asked=prompts, texts=texts, seed=3)
    assert found.findings[0].n == 50
    assert found == cover(train, production, train=train_texts, asked=prompts, texts=texts, seed=3)
    with pytest.raises(InputError, match="0 of production"):
        cover(train, production[:0], train=train_texts, asked=[], texts=[], seed=3)


def test_the_limit_of_a_shift_is_seldom_passed_by_chance() -> None:
    draw = np.random.default_rng(0)
    share = draw.dirichlet(np.full(12, 5.0))
    alarms = 0
    for _ in range(400):
        one, other = draw.multinomial(600, share), draw.multinomial(500, share)
        found = shift(Topics(np.eye(12, dtype=np.float32), [str(i) for i in range(12)], one, other))
        alarms += found.status != "pass"
    assert alarms <= 12  # 1 % are expected


@settings(max_examples=60, deadline=None)
@given(
    counts=st.lists(st.tuples(st.integers(0, 90), st.integers(0, 90)), min_size=1, max_size=12).filter(
        lambda rows: sum(a for a, _ in rows) > 0 and sum(b for _, b in rows) > 0
    )
)
def test_merging_keeps_every_prompt_and_divergence_keeps_to_its_bounds(counts: list[tuple[int, int]]) -> None:
    table = np.array(counts).T
    small = merged(table)
    np.testing.assert_array_equal(small.sum(1), table.sum(1))
    expected = small.sum(0) * min(small.sum(1)) / small.sum()
    assert small.shape[1] == 1 or (expected >= 10 - 1e-9).all()
    assert -1e-12 <= divergence(small) <= divergence(table) + 1e-12 <= log(2) + 1e-9
    assert divergence(table[::-1]) == pytest.approx(divergence(table))
    assert divergence(np.stack([table[0], 3 * table[0]])) == pytest.approx(0, abs=1e-12)


def test_too_few_prompts_have_no_shift() -> None:
    found = shift(Topics(np.eye(2, dtype=np.float32), ["a", "b"], np.array([5, 2]), np.array([3, 1])))
    assert found.status == "undefined"


def test_diversity_counts_what_has_nothing_in_common() -> None:
    apart = np.eye(40, dtype=np.float32)
    assert diversity(apart, seed=0).value == pytest.approx(40)
    assert diversity(np.tile(apart[:7], (20, 1)), seed=0).value == pytest.approx(7)
    assert diversity(np.tile(apart[:1], (9, 1)), seed=0).value == pytest.approx(1)
    assert diversity(apart[:0], seed=0).status == "undefined"


def test_prompts_that_mean_the_same_are_counted_and_listed(monkeypatch: pytest.MonkeyPatch) -> None:
    vectors = np.eye(100, dtype=np.float32)
    vectors[[10, 20, 90]] = vectors[3]
    found, pairs = repetition(vectors, seed=0)
    assert (found.value, found.status, found.low) == (0.04, "warn", 0.04)
    assert {(pair.first, pair.second) for pair in pairs} == {
        (3, 10), (3, 20), (3, 90), (10, 20), (10, 90), (20, 90),
    }  # fmt: skip
    assert repetition(np.eye(50, dtype=np.float32), seed=0)[0].status == "pass"
    monkeypatch.setattr(module, "EVERY_PAIR", 10)
    monkeypatch.setattr(module, "ASKED", 60)
    sampled, _ = repetition(vectors, seed=0)
    assert (sampled.n, sampled.low != sampled.high) == (60, True)
    assert repetition(vectors[:0], seed=0)[0].status == "undefined"


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 10**6), some=st.sets(st.integers(0, 59), min_size=1))
def test_pairs_are_counted_once(seed: int, some: set[int]) -> None:
    draw = np.random.default_rng(seed)
    vectors = np.eye(12, dtype=np.float32)[draw.integers(12, size=60)]
    rows = np.array(sorted(some))
    again, total, listed = alike(vectors, rows)
    same = (vectors @ vectors.T > 0.99) & ~np.eye(60, dtype=bool)
    np.testing.assert_array_equal(again, same[rows].any(1))
    pairs = {frozenset((i, j)) for i in some for j in range(60) if same[i, j]}
    assert total == len(pairs) == len(listed)
    assert {frozenset((pair.first, pair.second)) for pair in listed} == pairs
