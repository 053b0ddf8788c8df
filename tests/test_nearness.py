"""Texts that are nearly the same are found, whatever stands between them; unrelated ones are not compared."""

from __future__ import annotations

import random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from druthers.curate import nearness
from druthers.curate.nearness import (
    Sets,
    both,
    candidates,
    distinct,
    features,
    jaccards,
    runs,
    shingles,
    signatures,
    words,
)

texts = st.lists(st.text(st.sampled_from("ab dé日本ｗ.\n'"), max_size=30), max_size=8)


def sentence(draw: random.Random, count: int) -> list[str]:
    return [f"word{draw.randrange(5000)}" for _ in range(count)]


def index(a: str, b: str) -> float:
    return float(jaccards(distinct(shingles(words([a, b]))), np.array([[0, 1]]))[0])


@given(texts, st.randoms(use_true_random=False), st.integers(1, 40))
def test_the_index_of_many_pairs_is_that_of_their_sets_whatever_the_block(
    found: list[str], draw: random.Random, most: int
) -> None:
    whole = shingles(words(found))
    sets = [set(whole.of(i).tolist()) for i in range(len(whole))]
    pairs = [(draw.randrange(len(sets)), draw.randrange(len(sets))) for _ in range(9)] if sets else []
    wanted = [len(sets[a] & sets[b]) / len(sets[a] | sets[b]) if sets[a] | sets[b] else 1.0 for a, b in pairs]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(nearness, "TOGETHER", most)
        assert jaccards(distinct(whole), np.array(pairs, dtype=np.int64).reshape(-1, 2)).tolist() == wanted


@given(texts)
def test_the_words_of_a_text_do_not_depend_on_its_neighbours(found: list[str]) -> None:
    whole = words(found)
    assert len(whole) == len(found)
    for i, text in enumerate(found):
        assert whole.of(i).tolist() == words([text]).of(0).tolist()
        assert len(whole.of(i)) == len(nearness.split(text))


@given(texts, st.integers(1, 4))
def test_runs_and_unions_stay_with_their_text(found: list[str], length: int) -> None:
    whole = words(found)
    parts = runs(whole, length)
    doubled = both(whole, parts)
    for i, text in enumerate(found):
        alone = runs(words([text]), length)
        assert parts.of(i).tolist() == alone.of(0).tolist()
        assert doubled.of(i).tolist() == [*whole.of(i).tolist(), *parts.of(i).tolist()]


def test_hashes_are_the_same_on_every_machine() -> None:
    found = words(["Plum, kettle"])
    assert found.hash_S.tolist() == [16583067884780624945, 12178856823605620760]
    assert signatures(features(found))[0, :3].tolist() == [146675989, 4011800633, 3844979867]


def test_case_punctuation_and_compatibility_forms_make_no_difference() -> None:
    assert index("Name a fruit!", " name A (fruit)") == 1.0
    assert index("ＰＬＵＭ", "plum") == 1.0
    assert index("plum", "pear") == 0.0
    assert index("", " …") == 1.0


def test_signatures_estimate_the_index_of_their_sets() -> None:
    draw = random.Random(0)
    errors = []
    for _ in range(200):
        one = sentence(draw, 60)
        other = [word if draw.random() < 0.9 else f"word{draw.randrange(5000)}" for word in one]
        found = features(words([" ".join(one), " ".join(other)]))
        a, b = signatures(found)
        errors.append(float((a == b).mean()) - float(jaccards(distinct(found), np.array([[0, 1]]))[0]))
    assert abs(np.mean(errors)) < 0.02
    assert np.std(errors) < 0.09  # sqrt(.25 / 48) = 0.072 at the most


@pytest.mark.parametrize("count", [15, 40, 120])
def test_one_word_in_fifteen_may_differ_and_the_pair_is_found_among_thousands(count: int) -> None:
    draw = random.Random(count)
    lots = [sentence(draw, count) for _ in range(2000)]
    for i in range(300):
        copy = list(lots[i])
        for _ in range(max(1, count // 20)):
            copy[draw.randrange(count)] = "other"
        lots.append(copy)
    found = signatures(features(words([" ".join(lot) for lot in lots])))
    pairs = {tuple(pair) for pair in candidates(found, least=0.4).tolist()}
    near = [i for i in range(300) if index(" ".join(lots[i]), " ".join(lots[2000 + i])) >= nearness.NEAR]
    assert len(near) > 200
    assert sum((i, 2000 + i) in pairs for i in near) >= 0.97 * len(near)
    assert len(pairs) < 400


def test_many_copies_of_one_text_give_few_pairs() -> None:
    found = signatures(features(words(["I am sorry, but I cannot help with that."] * 1000)))
    pairs = candidates(found, least=0.4)
    assert len(pairs) < 2000
    assert set(pairs[:, 1].tolist()) == set(range(1, 1000))
    assert (pairs[:, 0] < pairs[:, 1]).all()


def test_texts_without_words_are_no_candidates() -> None:
    found = signatures(features(words(["", "…", "👍", "a b"])))
    assert candidates(found, least=0.4).tolist() == []
    assert candidates(found[:0], least=0.4).tolist() == []


def test_a_copied_passage_is_sampled_in_both_texts() -> None:
    draw = random.Random(1)
    passage = sentence(draw, 60)
    one = " ".join([*sentence(draw, 200), *passage])
    other = " ".join([*passage, *sentence(draw, 20)])
    found = nearness.passages(words([one, other, " ".join(sentence(draw, 200))]))
    assert len(np.intersect1d(found.of(0), found.of(1))) >= 12  # 48 passages, one in two
    assert len(np.intersect1d(found.of(0), found.of(2))) == 0
    assert Sets(found.hash_S, found.at).of(1).dtype == np.uint64
