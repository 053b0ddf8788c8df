"""Clusters: near-identical prompts together, whatever the order of rows, and nothing that was decided ever changes."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from druthers.curate import clusters as module
from druthers.curate.clusters import (
    HELDOUT,
    LEFT_OUT,
    TRAIN,
    Floats,
    Keys,
    assign,
    centres,
    deal,
    load,
    names_of,
    nearest,
    reaching,
    save,
    topic_of,
)
from druthers.records import InputError


def made(count: int, *, groups: int, noise: float, width: int = 12, seed: int = 0) -> tuple[Floats, Keys]:
    """Unit vectors that lie about as many directions, and keys."""
    draw = np.random.default_rng(seed)
    middle = draw.standard_normal((groups, width))
    found = middle[draw.integers(groups, size=count)] + noise * draw.standard_normal((count, width))
    found /= np.linalg.norm(found, axis=1, keepdims=True)
    return found.astype(np.float32), draw.permutation(count).astype(np.uint64) * np.uint64(2**40) + np.uint64(seed)


def split(
    vectors: Floats, keys: Keys, known: module.Clusters | None = None, **how: float
) -> tuple[NDArray[np.int64], NDArray[np.uint8], module.Clusters]:
    cluster, found = assign(vectors, keys_N=keys, known=known)
    side, found = deal(vectors, keys_N=keys, clusters=found, share=how.get("share", 0.2), seed=int(how.get("seed", 0)))
    return cluster, side, found


NOISE = st.sampled_from([0.02, 0.2, 0.35, 0.6])


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 10**6), groups=st.integers(1, 60), noise=NOISE)
def test_the_order_of_rows_does_not_matter(seed: int, groups: int, noise: float) -> None:
    vectors, keys = made(200, groups=groups + 1, noise=noise, seed=seed)
    order = np.random.default_rng(seed).permutation(200)
    cluster, side, _ = split(vectors, keys)
    cluster_too, side_too, _ = split(vectors[order], keys[order])
    np.testing.assert_array_equal(cluster_too, cluster[order])
    np.testing.assert_array_equal(side_too, side[order])


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 10**6), first=st.integers(20, 180), noise=NOISE, share=st.floats(0.05, 0.6))
def test_growth_changes_nothing_for_what_was_there(seed: int, first: int, noise: float, share: float) -> None:
    vectors, keys = made(300, groups=40, noise=noise, seed=seed)
    cluster, side, known = split(vectors[:first], keys[:first])
    order = np.random.default_rng(seed).permutation(300)  # the old rows come back, in another order
    grown_cluster, grown_side, _ = split(vectors[order], keys[order], known, share=share, seed=seed)
    where = np.argsort(order)[:first]
    np.testing.assert_array_equal(grown_cluster[where], cluster)
    np.testing.assert_array_equal(grown_side[where], side)


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 10**6), first=st.integers(20, 180), noise=NOISE)
def test_no_new_prompt_is_near_one_of_the_other_side(seed: int, first: int, noise: float) -> None:
    vectors, keys = made(300, groups=40, noise=noise, seed=seed)
    _, side, known = split(vectors[:first], keys[:first])
    assert not crossing(vectors[:first], side).any()
    _, side, _ = split(vectors, keys, known)
    assert not crossing(vectors, side).any()
    assert {TRAIN, HELDOUT} <= set(side.tolist()) <= {TRAIN, HELDOUT, LEFT_OUT}


def crossing(vectors: Floats, side: NDArray[np.uint8]) -> NDArray[np.bool_]:
    found: NDArray[np.bool_] = vectors[side == TRAIN] @ vectors[side == HELDOUT].T >= module.NEAR
    return found


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 10**6), noise=NOISE)
def test_members_are_near_their_leader_and_leaders_are_not_near_each_other(seed: int, noise: float) -> None:
    vectors, keys = made(250, groups=30, noise=noise, seed=seed)
    cluster, found = assign(vectors, keys_N=keys)
    leaders = found.leader_GD.astype(np.float32)
    assert (np.einsum("nd,nd->n", vectors, leaders[cluster]) > module.NEAR - 1e-3).all()  # half-precision leaders
    between = leaders @ leaders.T - 2 * np.eye(len(leaders))
    assert between.max() < module.NEAR + 1e-3
    assert set(found.key_G.tolist()) <= set(keys.tolist())
    by_key = dict(zip(keys.tolist(), cluster.tolist(), strict=True))
    assert [by_key[key] for key in found.key_G.tolist()] == list(range(len(found)))


def test_groups_that_lie_apart_are_found_whole() -> None:
    vectors, keys = made(500, groups=25, noise=0.02, width=32)
    cluster, found = assign(vectors, keys_N=keys)
    assert len(found) == len(np.unique(cluster)) <= 25
    assert (vectors @ vectors.T >= 0.9)[cluster[:, None] != cluster[None]].sum() == 0


def test_rows_of_one_key_are_one_prompt() -> None:
    vectors, keys = made(50, groups=50, noise=0.0)
    cluster, side, found = split(np.tile(vectors, (3, 1)), np.tile(keys, 3))
    assert (cluster.reshape(3, 50) == cluster[:50]).all()
    assert (side.reshape(3, 50) == side[:50]).all()
    assert len(found.key_M) == 50


def test_cells_find_what_looking_at_all_finds(monkeypatch: pytest.MonkeyPatch) -> None:
    vectors, keys = made(4000, groups=1200, noise=0.1, width=48)
    exact, all_found = assign(vectors, keys_N=keys)
    cosine, _ = nearest(vectors[:500], vectors[500:])
    monkeypatch.setattr(module, "EXACT", 0)
    cluster, found = assign(vectors, keys_N=keys)
    assert abs(len(found) - len(all_found)) <= 12
    same = found.leader_GD[cluster] == all_found.leader_GD[exact]
    assert same.all(1).mean() > 0.97
    quick = reaching(vectors[:500], vectors[500:], threshold=module.NEAR)
    near = cosine >= module.NEAR
    assert near.sum() > 300
    assert quick[near].mean() > 0.99
    assert not quick[cosine < module.NEAR - 1e-6].any()


def test_growth_with_cells_changes_nothing_either(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "EXACT", 0)
    vectors, keys = made(1500, groups=400, noise=0.1, width=24)
    cluster, side, known = split(vectors[:700], keys[:700])
    grown_cluster, grown_side, _ = split(vectors, keys, known)
    np.testing.assert_array_equal(grown_cluster[:700], cluster)
    np.testing.assert_array_equal(grown_side[:700], side)


def test_many_of_one_kind_are_never_held_out_and_neither_side_is_empty() -> None:
    vectors, keys = made(1000, groups=300, noise=0.001, width=24)
    vectors[:600] = vectors[0]
    for seed in range(20):
        cluster, side, _ = split(vectors, keys, share=0.1, seed=seed)
        assert set(side[cluster == cluster[0]]) == {TRAIN}
    two = np.eye(2, dtype=np.float32)
    for share in (1e-9, 1.0):
        assert sorted(split(two, np.array([4, 9], np.uint64), share=share)[1]) == [TRAIN, HELDOUT]
    with pytest.raises(InputError, match="fall into 1 cluster of"):
        split(two[[0, 0]], np.array([4, 9], np.uint64))


def test_about_the_share_is_held_out() -> None:
    vectors, keys = made(6000, groups=6000, noise=0.0, width=64)
    _, side, _ = split(vectors, keys, share=0.1)
    assert 0.085 < (side == HELDOUT).mean() < 0.115
    assert (side == LEFT_OUT).mean() < 0.01


def test_what_was_held_out_stays_so_when_the_share_is_lowered() -> None:
    vectors, keys = made(400, groups=400, noise=0.0, width=32)
    _, side, known = split(vectors, keys, share=0.5)
    _, again, _ = split(vectors, keys, known, share=0.01, seed=9)
    np.testing.assert_array_equal(again, side)


def test_written_and_read_again(tmp_path: Path) -> None:
    vectors, keys = made(100, groups=30, noise=0.2)
    _, _, known = split(vectors, keys)
    save(known, tmp_path / "clusters.npz")
    again = load(tmp_path / "clusters.npz")
    assert (again.encoder, again.threshold) == (known.encoder, known.threshold)
    for name in ("leader_GD", "key_G", "side_G", "key_M", "cluster_M", "side_M"):
        one, other = getattr(again, name), getattr(known, name)
        assert one.dtype == other.dtype
        np.testing.assert_array_equal(one, other)
    (tmp_path / "bad.npz").write_text("no")
    with pytest.raises(InputError, match="is not a file of clusters"):
        load(tmp_path / "bad.npz")


def test_clusters_of_another_encoder_or_threshold_are_refused() -> None:
    vectors, keys = made(20, groups=20, noise=0.0)
    _, known = assign(vectors, keys_N=keys, encoder="one")
    with pytest.raises(InputError, match="encoder 'one', not 'two'"):
        assign(vectors, keys_N=keys, known=known, encoder="two")
    with pytest.raises(InputError, match=r"threshold of 0\.9, not 0\.8"):
        assign(vectors, keys_N=keys, known=known, encoder="one", threshold=0.8)
    with pytest.raises(InputError, match="begin a new split"):
        assign(vectors[:, :5], keys_N=keys, known=known, encoder="one")
    assert len(replace(known, encoder="two")) == len(known)


def test_nothing_is_near_nothing() -> None:
    cosine, who = nearest(np.eye(2, dtype=np.float32), np.empty((0, 2), np.float32))
    assert (cosine == -2).all()
    assert (who == -1).all()


def test_topics_are_found_and_named() -> None:
    vectors, _ = made(600, groups=6, noise=0.05, width=32)
    centre = centres(vectors, k=6, seed=1)
    topic = topic_of(vectors, centre)
    assert (vectors @ vectors.T > 0.8)[topic[:, None] == topic[None]].all()
    subjects = ["lock", "cake", "poem", "engine", "garden", "tax"]
    texts = [
        f"please tell me about the {subjects[t]} and the {subjects[t]} number {i % 9}" for i, t in enumerate(topic)
    ]
    assert names_of(texts, topic, k=6, words=1) == subjects
    assert len(centres(vectors[:3], k=6, seed=1)) == 3
    np.testing.assert_array_equal(centres(np.tile(vectors[:1], (9, 1)), k=4, seed=0)[0], vectors[0])


def test_what_was_held_out_elsewhere_takes_its_new_cluster_along_and_leaves_training_where_the_cluster_is_old() -> None:
    vectors_ND, keys_N = made(40, groups=40, noise=0.0)
    _, found = module.assign(vectors_ND, keys_N=keys_N)
    plain_N, ledger = module.deal(vectors_ND, keys_N=keys_N, clusters=found, share=0.2, seed=0)
    again_N = np.zeros(40, dtype=bool)
    again_N[np.flatnonzero(plain_N == module.TRAIN)[:5]] = True
    side_N, _ = module.deal(vectors_ND, keys_N=keys_N, clusters=found, share=0.2, seed=0, again_N=again_N)
    assert (side_N[again_N] == module.HELDOUT).all()
    assert (side_N[plain_N == module.HELDOUT] == module.HELDOUT).all()
    old_N, later = module.deal(vectors_ND, keys_N=keys_N, clusters=ledger, share=0.2, seed=0, again_N=again_N)
    assert (old_N[again_N] == module.LEFT_OUT).all()
    assert (old_N[~again_N] == plain_N[~again_N]).all()
    assert (later.side_M[np.isin(later.key_M, keys_N[again_N])] == module.LEFT_OUT).all()
