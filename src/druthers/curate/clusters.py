"""Prompts that say nearly the same, kept together: on one side of the split, for ever; and topics, for reports.

A cluster is a prompt that came first (its leader) with those whose cosine to it is at least the threshold. Leaders are
never moved or removed, what was assigned once is remembered by the prompt's hash, and so data that grow change nothing
for the prompts that were there. docs/decisions/0022-clusters-and-splits.md says which of this is exact.

Letters: N rows, D width of a vector, G clusters, M prompts that are remembered, K centres (of topics or cells), P cells
that are looked into, Q queries, B rows of a block.
"""

from __future__ import annotations

import hashlib
import io
import json
import re
import zipfile
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from math import log
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from druthers import storage
from druthers.curate.split import WHOLE
from druthers.records import InputError, first_line

Floats = NDArray[np.float32]
Whole = NDArray[np.int64]
Keys = NDArray[np.uint64]
Sides = NDArray[np.uint8]

NEAR = 0.9
"""Cosine from which two prompts say nearly the same (all-MiniLM-L6-v2; docs/decisions/0022 has what was measured)."""
TRAIN, HELDOUT, LEFT_OUT, OPEN = 0, 1, 2, 255
"""Where a prompt is: trained on, held out, near prompts of the other side and on neither, or not decided yet."""
LARGEST = 0.25
"""Share of the held-out prompts that one cluster may be: more of one thing would be what is measured."""
EXACT = 2**31
"""Comparisons up to which every prompt is compared with every other; beyond, with those in the nearest cells."""
PROBES = 8
"""Cells that are looked into."""
BLOCK = 16_384
"""Rows at once."""
AT_ONCE = 2**25
"""Cosines in memory at once."""
PER_CENTRE = 64
"""Rows a centre of a cell is made of."""
NAMING = 20_000
"""Texts at most that topics are named by."""
WORD = re.compile(r"[^\W\d_]{3,}")


@dataclass(frozen=True)
class Clusters:
    """All that is remembered of the clusters, in the order of their age.

    `encoder` is the identity of what made the vectors, `key_G` the leaders' own keys. `key_M` is sorted; `cluster_M`
    and `side_M` belong to it.
    """

    encoder: str
    threshold: float
    leader_GD: NDArray[np.float16]
    key_G: Keys
    side_G: Sides
    key_M: Keys
    cluster_M: Whole
    side_M: Sides

    def __len__(self) -> int:
        """G, the number of clusters."""
        return len(self.leader_GD)


def assign(
    vectors_ND: Floats, *, keys_N: Keys, known: Clusters | None = None, threshold: float = NEAR, encoder: str = ""
) -> tuple[Whole, Clusters]:
    """The cluster of every row, (N,), and what is to be remembered for the next time.

    `vectors_ND` are unit vectors, `keys_N` the hash of each row's prompt; rows of one key are one prompt, and their
    vectors must be the same. A prompt that is known keeps its cluster. New ones are taken in the order of their keys:
    each joins the nearest leader whose cosine is at least the threshold, or leads a new cluster. The result does not
    depend on the order of the rows. Raises InputError where the known clusters were made with another encoder or
    threshold.

    >>> two = np.array([[1.0, 0.0], [0.0, 1.0]], dtype=np.float32)
    >>> cluster_N, first = assign(two, keys_N=np.array([7, 3], dtype=np.uint64))
    >>> cluster_N, len(first)
    (array([1, 0]), 2)
    >>> assign(two[:1], keys_N=np.array([1], dtype=np.uint64), known=first)[0]
    array([1])
    """
    known = known or _none(vectors_ND.shape[1], encoder=encoder, threshold=threshold)
    _check(known, vectors_ND.shape[1], encoder=encoder, threshold=threshold)
    key_U, first_U, prompt_N = np.unique(keys_N, return_index=True, return_inverse=True)
    cluster_U = _looked_up(known.cluster_M, known, key_U, absent=-1)
    new_U = cluster_U < 0
    cluster_U[new_U], leader_GD = _led(vectors_ND, first_U[new_U], known.leader_GD, threshold)
    born = len(leader_GD) - len(known)
    _, leader_B = np.unique(cluster_U[new_U & (cluster_U >= len(known))], return_index=True)  # leaders came first
    key_M = np.concatenate([known.key_M, key_U[new_U]])
    order = np.argsort(key_M)
    found = Clusters(
        encoder,
        threshold,
        leader_GD,
        np.concatenate([known.key_G, key_U[new_U & (cluster_U >= len(known))][leader_B]]),
        np.concatenate([known.side_G, np.full(born, OPEN, dtype=np.uint8)]),
        key_M[order],
        np.concatenate([known.cluster_M, cluster_U[new_U]])[order],
        np.concatenate([known.side_M, np.full(new_U.sum(), OPEN, dtype=np.uint8)])[order],
    )
    return cluster_U[prompt_N], found


def deal(
    vectors_ND: Floats,
    *,
    keys_N: Keys,
    clusters: Clusters,
    share: float,
    seed: int,
    again_N: NDArray[np.bool_] | None = None,
) -> tuple[Sides, Clusters]:
    """The side of every row, (N,), and the clusters with all sides decided; the rows are those last assigned.

    A cluster is held out by a seeded hash of its leader's key, unless it is larger than `LARGEST` of what is to be held
    out. What was decided before stays as it is, whatever share and seed are now. A new prompt whose cosine to one of
    the other side is at least the threshold is on neither (`LEFT_OUT`): a held-out one near an older one in training,
    and one for training near any that is held out. The rows of `again_N` were held out elsewhere: so are they here,
    with their clusters where those are new; one that these clusters train on is on neither side from now on. Raises
    InputError when there are fewer than two clusters.
    """
    again_N = np.zeros(len(keys_N), dtype=bool) if again_N is None else again_N
    home_N = _looked_up(clusters.cluster_M, clusters, keys_N, absent=0)
    again_G = np.zeros(len(clusters), dtype=bool)
    again_G[home_N[again_N]] = True
    side_G = _sides(clusters, share=share, seed=seed, again_G=again_G)
    decided_M = np.where(clusters.side_M == OPEN, side_G[clusters.cluster_M], clusters.side_M)
    key_U, first_U, prompt_N = np.unique(keys_N, return_index=True, return_inverse=True)
    vector_UD = vectors_ND[first_U]
    old_U = _looked_up(clusters.side_M.astype(np.int64), clusters, key_U, absent=OPEN) != OPEN
    side_U = _looked_up(decided_M.astype(np.int64), clusters, key_U, absent=LEFT_OUT).astype(np.uint8)
    again_U = again_N[first_U]
    side_U[again_U & old_U & (side_U == TRAIN)] = LEFT_OUT
    side_U[again_U & ~old_U] = HELDOUT
    for own, other, older in ((HELDOUT, TRAIN, True), (TRAIN, HELDOUT, False)):
        mine = np.flatnonzero((side_U == own) & ~old_U)
        theirs = np.flatnonzero((side_U == other) & (old_U | (not older)))
        near = reaching(vector_UD[mine], vector_UD[theirs], threshold=clusters.threshold)
        side_U[mine[near]] = LEFT_OUT
    decided_M[np.searchsorted(clusters.key_M, key_U)] = side_U
    return side_U[prompt_N], replace(clusters, side_G=side_G, side_M=decided_M)


def _sides(clusters: Clusters, *, share: float, seed: int, again_G: NDArray[np.bool_]) -> Sides:
    """Sides of all clusters: the old ones as they were, and neither side empty."""
    if len(clusters) < 2:
        raise InputError(
            f"the prompts fall into {len(clusters)} cluster{'s' * (len(clusters) != 1)} of near-identical ones, but a "
            "split into training and held-out needs at least 2; give more prompts, or a held-out file as data.heldout"
        )
    size_G = np.bincount(clusters.cluster_M, minlength=len(clusters))
    new_G = clusters.side_G == OPEN
    draw_G = np.array(
        [_draw(key, seed) if new else 1.0 for key, new in zip(clusters.key_G.tolist(), new_G, strict=True)]
    )
    most = max(2.0, LARGEST * share * size_G[new_G].sum())
    held_G = again_G | ((draw_G < share) & (size_G <= most))
    side_G = np.where(new_G, np.where(held_G, HELDOUT, TRAIN), clusters.side_G)
    new_G &= ~again_G
    if new_G.any() and not (side_G == HELDOUT).any():
        side_G[np.argmin(np.where(new_G, draw_G + (size_G > size_G[new_G].min()), np.inf))] = HELDOUT
    if new_G.any() and not (side_G == TRAIN).any():
        side_G[np.argmax(np.where(new_G, draw_G, -1.0))] = TRAIN
    return side_G.astype(np.uint8)


def _draw(key: int, seed: int) -> float:
    """The number of a cluster in [0, 1), by its leader."""
    return int.from_bytes(hashlib.blake2b(f"{seed} {key}".encode(), digest_size=8).digest(), "big") / WHOLE


def _none(width: int, *, encoder: str, threshold: float) -> Clusters:
    """No clusters yet."""
    keys, sides = np.empty(0, dtype=np.uint64), np.empty(0, dtype=np.uint8)
    leaders, clusters = np.empty((0, width), dtype=np.float16), np.empty(0, dtype=np.int64)
    return Clusters(encoder, threshold, leaders, keys, sides, keys, clusters, sides)


def _check(known: Clusters, width: int, *, encoder: str, threshold: float) -> None:
    """The vectors must be of the kind that the leaders are."""
    if (known.encoder, known.leader_GD.shape[1]) != (encoder, width):
        raise InputError(
            f"the clusters were made with encoder {known.encoder[:12]!r}, not {encoder[:12]!r}, and vectors of two "
            "encoders cannot be compared; use the same encoder, or begin a new split without the old clusters"
        )
    if known.threshold != threshold:
        raise InputError(
            f"the clusters were made with a threshold of {known.threshold:g}, not {threshold:g}; use the same, or "
            "begin a new split without the old clusters"
        )


def _looked_up(value_M: Whole, clusters: Clusters, key_U: Keys, *, absent: int) -> Whole:
    """What is remembered of each key, or `absent`."""
    if not len(clusters.key_M):
        return np.full(len(key_U), absent, dtype=np.int64)
    at_U = np.minimum(np.searchsorted(clusters.key_M, key_U), len(clusters.key_M) - 1)
    return np.where(clusters.key_M[at_U] == key_U, value_M[at_U], absent)


def save(clusters: Clusters, path: str | Path) -> None:
    """Write clusters as an `.npz` file: 2 D + 9 bytes for a leader and 17 for a prompt."""
    about = json.dumps({"encoder": clusters.encoder, "threshold": clusters.threshold})
    with storage.replacing(path) as file:
        np.savez(
            file,
            about=np.array(about),
            leader=clusters.leader_GD,
            key_of_leader=clusters.key_G,
            side_of_cluster=clusters.side_G,
            key=clusters.key_M,
            cluster=clusters.cluster_M,
            side=clusters.side_M,
        )


def load(path: str | Path) -> Clusters:
    """What `save` wrote; raises InputError for any other file."""
    try:
        with np.load(io.BytesIO(Path(path).read_bytes()), allow_pickle=False) as a:
            about = json.loads(str(a["about"]))
            names = ("leader", "key_of_leader", "side_of_cluster", "key", "cluster", "side")
            return Clusters(about["encoder"], about["threshold"], *(a[name] for name in names))
    except (OSError, ValueError, KeyError, TypeError, EOFError, zipfile.BadZipFile) as error:
        raise InputError(
            f"{path}: is not a file of clusters ({first_line(error)}); name the one that the last curation wrote"
        ) from error


# ---------------------------------------------------------------- who is near whom


@dataclass
class Cell:
    """Vectors that grow in number, and whose they are."""

    vectors: Floats
    ids: Whole
    count: int = 0

    def add(self, vectors_BD: Floats, ids_B: Whole) -> None:
        """Put vectors in; when room runs out there is half as much again."""
        end = self.count + len(ids_B)
        if end > len(self.ids):
            room = max(end, len(self.ids) * 3 // 2)
            self.vectors = np.resize(self.vectors, (room, vectors_BD.shape[1]))
            self.ids = np.resize(self.ids, room)
        self.vectors[self.count : end], self.ids[self.count : end] = vectors_BD, ids_B
        self.count = end


class Cells:
    """Vectors by the centre they are nearest to, so that a query is compared with those of a few cells only."""

    def __init__(self, centre_KD: Floats) -> None:
        self.centre_KD = centre_KD
        self.cells = [Cell(np.empty((0, centre_KD.shape[1]), np.float32), np.empty(0, np.int64)) for _ in centre_KD]

    def places(self, vectors_BD: Floats) -> Whole:
        """The nearest cells of each vector, the nearest first, (B, P)."""
        probes = min(PROBES, len(self.centre_KD))
        if probes == 1:
            return np.zeros((len(vectors_BD), 1), dtype=np.int64)
        cosine_BK = vectors_BD @ self.centre_KD.T
        place_BP = np.empty((len(vectors_BD), probes), dtype=np.int64)
        for p in range(probes):  # many times faster than a partial sort of every row
            place_BP[:, p] = cosine_BK.argmax(1)
            np.put_along_axis(cosine_BK, place_BP[:, p : p + 1], -np.inf, axis=1)
        return place_BP

    def add(self, vectors_BD: Floats, ids_B: Whole, home_B: Whole) -> None:
        """Put vectors into their cells."""
        for cell, rows in _by_cell(home_B):
            self.cells[cell].add(vectors_BD[rows], ids_B[rows])

    def nearest(self, vectors_BD: Floats, place_BP: Whole) -> tuple[Floats, Whole]:
        """Cosine to the nearest vector found and its id (of equals the first put in); -2 and -1 where there is none."""
        best = np.full(place_BP.size, -2.0, dtype=np.float32)
        who = np.full(place_BP.size, -1, dtype=np.int64)
        for cell, slots in _by_cell(place_BP.ravel()):
            held = self.cells[cell]
            if held.count:
                rows, base_ND = slots // place_BP.shape[1], held.vectors[: held.count]
                best[slots], at = nearest(vectors_BD[rows], base_ND)
                who[slots] = held.ids[at]
        best_BP, who_BP = best.reshape(place_BP.shape), who.reshape(place_BP.shape)
        at_B1 = best_BP.argmax(1)[:, None]
        return np.take_along_axis(best_BP, at_B1, 1)[:, 0], np.take_along_axis(who_BP, at_B1, 1)[:, 0]


def _by_cell(cell_S: Whole) -> Iterator[tuple[int, Whole]]:
    """Each cell that occurs, with the places where it does."""
    if not len(cell_S):
        return
    order = np.argsort(cell_S, kind="stable")
    found, starts = np.unique(cell_S[order], return_index=True)
    yield from zip(found.tolist(), np.split(order, starts[1:]), strict=True)


def cells_for(sample_ND: Floats, *, comparisons: int, count: int) -> Cells:
    """Cells for about `count` vectors: one where so few comparisons are due that all are made.

    `sample_ND` is a random sample of them, in an order that does not depend on how they came.
    """
    if comparisons <= EXACT:
        return Cells(np.zeros((1, sample_ND.shape[1]), dtype=np.float32))
    k = 2 ** round(np.log2(np.sqrt(count)))
    return Cells(centres(sample_ND[: PER_CENTRE * k], k=k, seed=0, rounds=3, start="drawn"))


def nearest(query_QD: Floats, base_ND: Floats) -> tuple[Floats, Whole]:
    """Cosine of each query to the nearest unit vector of the base and its row (the first of equals), (Q,) each.

    All are compared with all. Without a base the cosine is -2 and the row -1.

    >>> base = np.eye(3, dtype=np.float32)
    >>> nearest(np.array([[0.6, 0.8, 0.0]], dtype=np.float32), base)
    (array([0.8], dtype=float32), array([1]))
    """
    best_Q, who_Q = np.full(len(query_QD), -2.0, dtype=np.float32), np.full(len(query_QD), -1, dtype=np.int64)
    if len(base_ND):
        for rows in _spans(len(query_QD), max(1, AT_ONCE // len(base_ND))):
            cosine = query_QD[rows] @ base_ND.T
            who_Q[rows] = cosine.argmax(1)
            best_Q[rows] = np.take_along_axis(cosine, who_Q[rows, None], 1)[:, 0]
    return best_Q, who_Q


def reaching(query_QD: Floats, base_ND: Floats, *, threshold: float) -> NDArray[np.bool_]:
    """Which queries have a cosine of at least the threshold to one of the base, (Q,).

    Exact up to `EXACT` comparisons; beyond, by those in the `PROBES` nearest cells. The base is in random order.
    """
    if len(query_QD) * len(base_ND) <= EXACT:
        return nearest(query_QD, base_ND)[0] >= threshold
    cells = cells_for(base_ND, comparisons=EXACT + 1, count=len(base_ND))
    for rows in _spans(len(base_ND), BLOCK):
        cells.add(base_ND[rows], np.arange(rows.start, rows.stop), cells.places(base_ND[rows])[:, 0])
    parts = [cells.nearest(query_QD[rows], cells.places(query_QD[rows]))[0] for rows in _spans(len(query_QD), BLOCK)]
    return np.concatenate(parts) >= threshold


def _spans(count: int, size: int) -> list[slice]:
    return [slice(start, min(start + size, count)) for start in range(0, count, size)]


def _led(
    vectors_ND: Floats, turn_U: Whole, old_GD: NDArray[np.float16], threshold: float
) -> tuple[Whole, NDArray[np.float16]]:
    """The cluster of the vectors whose turn it is, one after another, and all leaders, old and new.

    Blocks grow, so that many vectors that are alike find their leader before a block is full of them.
    """
    count = len(old_GD) + len(turn_U)
    sample_ND = vectors_ND[turn_U[: 2 * PER_CENTRE * int(np.sqrt(count) + 1)]]
    cells = cells_for(sample_ND, comparisons=count * len(turn_U), count=count)
    for rows in _spans(len(old_GD), BLOCK):
        old = old_GD[rows].astype(np.float32)
        cells.add(old, np.arange(rows.start, rows.stop), cells.places(old)[:, 0])
    parts, leaders, total, start, size = [np.empty(0, np.int64)], [old_GD], len(old_GD), 0, 512
    while start < len(turn_U):
        block_BD = vectors_ND[turn_U[start : start + size]]
        place_BP = cells.places(block_BD)
        cosine_B, cluster_B = cells.nearest(block_BD, place_BP)
        free = np.flatnonzero(cosine_B < threshold)
        half_FD = block_BD[free].astype(np.float16)  # as it is kept, so that what is kept gives the same answers
        own_FD = half_FD.astype(np.float32)
        leader_F = _greedy(block_BD[free], own_FD, place_BP[free], threshold)
        leads = np.flatnonzero(leader_F == np.arange(len(free)))
        number_F = np.full(len(free), -1, dtype=np.int64)
        number_F[leads] = total + np.arange(len(leads))
        cluster_B[free] = number_F[leader_F]
        cells.add(own_FD[leads], number_F[leads], place_BP[free[leads], 0])
        leaders.append(half_FD[leads])
        parts.append(cluster_B)
        total, start, size = total + len(leads), start + len(block_BD), min(2 * size, BLOCK)
    return np.concatenate(parts), np.concatenate(leaders)


def _greedy(vectors_FD: Floats, rounded_FD: Floats, place_FP: Whole, threshold: float) -> Whole:
    """For each of some vectors that no leader is near to, in turn: itself, or the nearest earlier one that leads."""
    leader_F = np.arange(len(vectors_FD))
    near: dict[int, list[tuple[float, int]]] = {}
    here = dict(_by_cell(place_FP[:, 0]))
    for cell, slots in _by_cell(place_FP.ravel()):
        if (base := here.get(cell)) is None:
            continue
        rows = slots // place_FP.shape[1]
        for part in _spans(len(rows), max(1, AT_ONCE // len(base))):
            cosine = vectors_FD[rows[part]] @ rounded_FD[base].T
            later, earlier = np.nonzero((cosine >= threshold) & (base[None, :] < rows[part][:, None]))
            for i, j, value in zip(rows[part][later], base[earlier], cosine[later, earlier], strict=True):
                near.setdefault(int(i), []).append((float(value), -int(j)))
    for i in sorted(near):
        able = [(value, j) for value, j in near[i] if leader_F[-j] == -j]
        if able:
            leader_F[i] = -max(able)[1]
    return leader_F


# ---------------------------------------------------------------- topics


def centres(
    vectors_ND: Floats, *, k: int, seed: int, rounds: int = 20, start: Literal["spread", "drawn"] = "spread"
) -> Floats:
    """Unit vectors of at most k centres, (K, D): spherical k-means.

    It starts from rows that lie far apart (k-means++, Arthur & Vassilvitskii 2007) or from rows drawn at random. A
    centre that is left without rows is dropped.
    """
    random = np.random.default_rng(seed)
    if start == "spread":
        centre_KD = _spread(vectors_ND, min(k, len(vectors_ND)), random)
    else:
        centre_KD = vectors_ND[np.sort(random.permutation(len(vectors_ND))[:k])].copy()
    for _ in range(rounds):
        topic_N = topic_of(vectors_ND, centre_KD)
        order = np.argsort(topic_N, kind="stable")
        found, starts = np.unique(topic_N[order], return_index=True)
        sums_KD = np.add.reduceat(vectors_ND[order], starts, axis=0)
        moved_KD = sums_KD / np.maximum(np.linalg.norm(sums_KD, axis=1, keepdims=True), 1e-9)
        if len(found) == len(centre_KD) and np.abs(moved_KD - centre_KD).max() < 1e-4:
            break
        centre_KD = moved_KD
    return centre_KD


def _spread(vectors_ND: Floats, k: int, random: np.random.Generator) -> Floats:
    """Rows drawn one after another, each by its squared distance to those drawn before."""
    picked = [int(random.integers(len(vectors_ND)))]
    far_N = 2 - 2 * vectors_ND @ vectors_ND[picked[0]]
    while len(picked) < k:
        chance_N = np.cumsum(np.maximum(far_N, 0), dtype=np.float64)
        if chance_N[-1] < 1e-6:
            break
        picked.append(min(int(np.searchsorted(chance_N, random.random() * chance_N[-1], "right")), len(chance_N) - 1))
        far_N = np.minimum(far_N, 2 - 2 * vectors_ND @ vectors_ND[picked[-1]])
    return vectors_ND[picked]


def topic_of(vectors_ND: Floats, centre_KD: Floats) -> Whole:
    """The nearest centre of every vector, (N,)."""
    parts = [(vectors_ND[rows] @ centre_KD.T).argmax(1) for rows in _spans(len(vectors_ND), BLOCK)]
    return np.concatenate([np.empty(0, np.int64), *parts])


def names_of(texts: Sequence[str], topic_N: Whole, *, k: int, words: int = 3) -> list[str]:
    """For each of k topics the words most typical of it, such as "lock, door, key".

    A word counts once a text. It is worth its share of the topic's texts times the logarithm of how many times that is
    its share of all texts, so words that are everywhere are worth nothing.

    >>> names_of(["pick a lock", "open the lock", "bake a cake", "the cake"], np.array([0, 0, 1, 1]), k=2, words=1)
    ['lock', 'cake']
    """
    step = max(1, len(texts) // NAMING)
    of_topic: list[Counter[str]] = [Counter() for _ in range(k)]
    size: Counter[int] = Counter()
    for text, topic in zip(texts[::step], topic_N[::step].tolist(), strict=True):
        of_topic[topic].update(set(WORD.findall(text.casefold())))
        size[topic] += 1
    everywhere: Counter[str] = Counter()
    for found in of_topic:
        everywhere.update(found)
    total = sum(size.values())
    return [_name(found, size[topic], everywhere, total, words) for topic, found in enumerate(of_topic)]


def _name(found: Counter[str], size: int, everywhere: Counter[str], total: int, words: int) -> str:
    """The words of one topic."""
    worth = {
        word: count / size * log(count / size * total / everywhere[word])
        for word, count in found.items()
        if count * total > everywhere[word] * size
    }
    return ", ".join(sorted(worth, key=lambda word: (-worth[word], word))[:words]) or "(no words)"
