"""D8 and the semantic part of D1: do the training prompts cover what production asks, and do they repeat themselves?

Everything is computed from unit vectors of prompts (`druthers.embeddings`), one for each distinct prompt, all by one
encoder. Large sets are sampled, seeded, and the intervals are those of the sample.

Letters: N training prompts, M prompts of production, D width of a vector, K topics, Q queries.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.stats import chi2

from druthers.curate.clusters import Floats, Whole, centres, names_of, nearest, topic_of
from druthers.findings import finding
from druthers.records import Finding, InputError, Limits, Prompt
from druthers.stats import Estimate, Undefined, wilson

RANDOM_PAIRS = 20_000
"""Pairs of training prompts that say how alike prompts are that have nothing to do with each other."""
PERCENTILE = 95
COVERED = Limits(warn=0.8, bad="below")
ASKED = 5_000
"""Prompts at most that are compared with all training prompts."""
TOPICS = 50
PER_TOPIC = 40
"""Prompts a topic should have, on average."""
DRAWN = 20_000
"""Prompts of each side at most that topics and their shares are taken from."""
LEAST_SHIFT = 0.02
"""Jensen-Shannon divergence, in nats, from which a shift matters."""
EXPECTED = 10
"""Prompts of a topic to expect of either side, at least; smaller topics count as one."""
VENDI = 2_000
EXAMPLES = 5
SAME = 0.95
"""Cosine from which two prompts mean the same."""
REPEATED = Limits(warn=0.01)
EVERY_PAIR = 50_000
"""Prompts up to which every pair is looked at."""
SHOWN_PAIRS = 1_000
"""Pairs of prompts at most that are listed."""


@dataclass(frozen=True)
class Gap:
    """A topic of production with prompts that no training prompt is near to.

    `uncovered` of the `asked` sampled prompts of it are so; `examples` are the most typical of those, to collect for.
    """

    topic: str
    asked: int
    uncovered: int
    examples: tuple[Prompt, ...]


@dataclass(frozen=True)
class Coverage:
    """What was found, and the topics that lack training prompts, the largest lack first."""

    findings: tuple[Finding, ...]
    gaps: tuple[Gap, ...]

    def wanted(self) -> Iterator[Prompt]:
        """Prompts to collect answers for."""
        for gap in self.gaps:
            yield from gap.examples


@dataclass(frozen=True)
class Same:
    """Two rows that mean the same, and their cosine."""

    first: int
    second: int
    cosine: float


def cover(
    train_ND: Floats,
    asked_MD: Floats,
    *,
    train: Sequence[str],
    asked: Sequence[Prompt],
    texts: Sequence[str],
    seed: int,
) -> Coverage:
    """Findings D8.coverage (of all, and of the topics with gaps) and D8.shift, and the gaps.

    `train` are the N texts of the training prompts, `asked` and `texts` the M prompts of production and their texts.
    Raises InputError where there are fewer than two training prompts or none of production.
    """
    if len(train_ND) < 2 or not len(asked_MD):
        raise InputError(
            f"{len(train_ND)} training prompts and {len(asked_MD)} of production: coverage needs at least 2 and 1; "
            "give a file of prompts that users asked"
        )
    limit = unrelated(train_ND, seed=seed)
    some_M = drawn(len(asked_MD), ASKED, seed=seed)
    cosine_Q, _ = nearest(asked_MD[some_M], train_ND)
    near_Q = cosine_Q >= limit
    topics = divided(train_ND, asked_MD, train=train, texts=texts, seed=seed)
    topic_Q = topic_of(asked_MD[some_M], topics.centre_KD)
    gaps = found_gaps(topic_Q, near_Q, asked_MD[some_M], [asked[i] for i in some_M], topics.names)
    return Coverage((covered(near_Q, limit, gaps), *of_gaps(gaps), shift(topics)), tuple(gaps))


def unrelated(vectors_ND: Floats, *, seed: int) -> float:
    """Cosine that 95 % of the pairs of two different rows, drawn at random, stay below."""
    draw = np.random.default_rng(seed)
    one = draw.integers(len(vectors_ND), size=RANDOM_PAIRS)
    other = (one + draw.integers(1, len(vectors_ND), size=RANDOM_PAIRS)) % len(vectors_ND)
    return float(np.percentile(np.einsum("nd,nd->n", vectors_ND[one], vectors_ND[other]), PERCENTILE))


def drawn(count: int, most: int, *, seed: int) -> Whole:
    """At most so many different rows, in order.

    >>> drawn(3, 5, seed=0)
    array([0, 1, 2])
    """
    if count <= most:
        return np.arange(count)
    return np.sort(np.random.default_rng(seed).choice(count, most, replace=False))


def covered(near_Q: NDArray[np.bool_], limit: float, gaps: Sequence[Gap]) -> Finding:
    """The share of production's prompts that a training prompt is near to."""
    share = wilson(int(near_Q.sum()), len(near_Q))
    worst = f"; most is missing of: {gaps[0].topic}" if gaps else ""
    return finding(
        "D8.coverage",
        share,
        f"{near_Q.mean():.1%} of the prompts of production have a training prompt with a cosine of at least "
        f"{limit:.3f}, which 5 % of random pairs of training prompts have{worst}.",
        limits=COVERED,
        action="Collect answers to the prompts that are not covered." if gaps else "",
    )


def of_gaps(gaps: Sequence[Gap]) -> list[Finding]:
    """The same for each topic that has a gap."""
    return [
        finding(
            "D8.coverage",
            wilson(gap.asked - gap.uncovered, gap.asked),
            f"Of {gap.asked} sampled prompts of production about {gap.topic}, {gap.uncovered} are not covered.",
            limits=COVERED,
            about={"topic": gap.topic},
        )
        for gap in gaps
    ]


def found_gaps(
    topic_Q: Whole, near_Q: NDArray[np.bool_], vectors_QD: Floats, prompts: Sequence[Prompt], names: Sequence[str]
) -> list[Gap]:
    """Topics by how many of their prompts are not covered, with the most typical of those."""
    gaps = []
    for topic, name in enumerate(names):
        rows = np.flatnonzero((topic_Q == topic) & ~near_Q)
        if len(rows):
            typical = rows[np.argsort(-(vectors_QD[rows] @ vectors_QD[rows].mean(0)), kind="stable")]
            distinct = {prompts[i].prompt_id: prompts[i] for i in typical[: 10 * EXAMPLES]}
            gaps.append(Gap(name, int((topic_Q == topic).sum()), len(rows), tuple(distinct.values())[:EXAMPLES]))
    return sorted(gaps, key=lambda gap: -gap.uncovered)


# ---------------------------------------------------------------- shares of topics


@dataclass(frozen=True)
class Topics:
    """Centres of topics, their names, and how many sampled prompts of each side belong to each."""

    centre_KD: Floats
    names: list[str]
    train_K: Whole
    asked_K: Whole


def divided(train_ND: Floats, asked_MD: Floats, *, train: Sequence[str], texts: Sequence[str], seed: int) -> Topics:
    """Topics of both sides together, so that what only one side has is a topic too."""
    some_N, some_M = drawn(len(train_ND), DRAWN, seed=seed), drawn(len(asked_MD), DRAWN, seed=seed)
    both = np.concatenate([train_ND[some_N], asked_MD[some_M]])
    k = max(2, min(TOPICS, len(both) // PER_TOPIC))
    centre_KD = centres(both, k=k, seed=seed)
    topic = topic_of(both, centre_KD)
    names = names_of([train[i] for i in some_N] + [texts[i] for i in some_M], topic, k=len(centre_KD))
    train_K, asked_K = (np.bincount(part, minlength=len(centre_KD)) for part in np.split(topic, [len(some_N)]))
    return Topics(centre_KD, names, train_K, asked_K)


def shift(topics: Topics) -> Finding:
    """How far the shares of topics lie apart, held against what chance alone would do.

    Without a shift 8 JSD / (1/n + 1/m) is about chi squared with K - 1 degrees of freedom; the limit is its 99 % point,
    and at least `LEAST_SHIFT`. The centres are found without knowing the sides, so they favour neither.
    """
    counts_2K = merged(np.stack([topics.train_K, topics.asked_K]))
    n, m = counts_2K.sum(1).tolist()
    apart: Estimate | float = divergence(counts_2K)
    if counts_2K.shape[1] < 2:
        apart = Undefined(f"{n} and {m} prompts are too few to compare topics by", m)
        limits = Limits(warn=LEAST_SHIFT)
    else:
        chance = float(chi2.ppf(0.99, counts_2K.shape[1] - 1)) * (1 / n + 1 / m) / 8
        limits = Limits(warn=max(LEAST_SHIFT, chance))
    excess_K = topics.asked_K / max(1, m) - topics.train_K / max(1, n)
    text = (
        f"The shares of {counts_2K.shape[1]} topics lie {divergence(counts_2K):.3f} nats apart (Jensen-Shannon) "
        f"between {n} training prompts and {m} of production; {topics.names[int(excess_K.argmax())]} is asked "
        f"{100 * excess_K.max():.1f} points more often than it is trained on."
    )
    return finding("D8.shift", apart, text, n=m, unit="nats", limits=limits)


def merged(counts_2K: Whole) -> Whole:
    """Topics of which fewer than `EXPECTED` are to be expected on a side counted as one, (2, K).

    >>> merged(np.array([[90, 5, 5], [80, 10, 10]]))
    array([[90, 10],
           [80, 20]])
    """
    total_K = counts_2K.sum(0)
    order = np.argsort(-total_K, kind="stable")
    least = total_K[order] * min(counts_2K.sum(1)) / max(1, total_K.sum())
    large = int((least >= EXPECTED).sum())
    if least[large:].sum() < EXPECTED and large:
        large -= 1
    rest_21 = counts_2K[:, order[large:]].sum(1, keepdims=True)
    found = np.concatenate([counts_2K[:, order[:large]], rest_21], axis=1)
    return found[:, found.sum(0) > 0]


def divergence(counts_2K: Whole) -> float:
    """Jensen-Shannon divergence of two rows of counts, in nats: 0 for equal shares, ln 2 for nothing in common.

    >>> round(divergence(np.array([[3, 0], [0, 5]])), 4)
    0.6931
    """
    share_2K = counts_2K / np.maximum(1, counts_2K.sum(1, keepdims=True))
    middle_K = share_2K.mean(0)
    ratio_2K = np.where(share_2K > 0, share_2K / np.where(middle_K > 0, middle_K, 1), 1)
    return float((share_2K * np.log(ratio_2K)).sum(1).mean())


# ---------------------------------------------------------------- within the training prompts


def diversity(vectors_ND: Floats, *, seed: int) -> Finding:
    """D8.diversity, the Vendi score: how many prompts that have nothing in common would be as diverse.

    exp of the entropy of the eigenvalues of the sample's cosines over its size; Friedman & Dieng 2022 (2210.02410),
    definition 3.1. A sample of at most `VENDI`: the score grows with n, so compare sets of one size.
    """
    some_ND = vectors_ND[drawn(len(vectors_ND), VENDI, seed=seed)].astype(np.float64)
    n = len(some_ND)
    if not n:
        return finding("D8.diversity", Undefined("no prompts"), "No prompts.", unit="prompts")
    small = some_ND @ some_ND.T if n < some_ND.shape[1] else some_ND.T @ some_ND  # the same eigenvalues but zeros
    share = np.linalg.eigvalsh(small / n)
    share = share[share > 1e-12]
    score = float(np.exp(-(share * np.log(share)).sum()))
    text = f"{n} training prompts are as diverse as {score:.1f} that have nothing in common (Vendi score)."
    return finding("D8.diversity", score, text, n=n, unit="prompts")


def repetition(vectors_ND: Floats, *, seed: int) -> tuple[Finding, list[Same]]:
    """D1.semantic: the share of prompts that another one means the same as, and such pairs, the most alike first.

    Up to `EVERY_PAIR` prompts all pairs are looked at and the share is certain; of more, `ASKED` prompts are compared
    with all, and the share has its interval. At most `SHOWN_PAIRS` pairs are listed.
    """
    whole = len(vectors_ND) <= EVERY_PAIR
    some = np.arange(len(vectors_ND)) if whole else drawn(len(vectors_ND), ASKED, seed=seed)
    again_Q, total, pairs = alike(vectors_ND, some)
    share: Estimate | float = wilson(int(again_Q.sum()), len(some))
    if whole and len(some):
        share = float(again_Q.mean())
    held = f"{len(some)} prompts" if whole else f"{len(some)} sampled prompts of {len(vectors_ND)}"
    text = (
        f"{int(again_Q.sum())} of {held} have another prompt with a cosine of at least {SAME}; "
        f"{total} such pairs were found."
    )
    limits = REPEATED
    action = "Keep one of each, or let them share their weight." if total else ""
    return finding("D1.semantic", share, text, n=len(some), limits=limits, action=action), pairs


def alike(vectors_ND: Floats, some_Q: Whole) -> tuple[NDArray[np.bool_], int, list[Same]]:
    """Which of some rows another row is the same as, how many such pairs there are, and the most alike of them."""
    again_Q = np.zeros(len(some_Q), dtype=bool)
    total, listed = 0, [Same(0, 0, 0.0)][:0]
    asked_N = np.zeros(len(vectors_ND), dtype=bool)
    asked_N[some_Q] = True
    size = max(1, 2**25 // max(1, len(vectors_ND)))
    for start in range(0, len(some_Q), size):
        rows = some_Q[start : start + size]
        cosine = vectors_ND[rows] @ vectors_ND.T
        cosine[np.arange(len(rows)), rows] = -1
        at, other = np.nonzero(cosine >= SAME)
        again_Q[start + at] = True
        once = (rows[at] < other) | ~asked_N[other]  # a pair that is met from both ends counts at its first
        total += int(once.sum())
        value = cosine[at[once], other[once]]
        best = np.argsort(-value, kind="stable")[:SHOWN_PAIRS]
        listed += [
            Same(int(i), int(j), round(float(v), 4))
            for i, j, v in zip(rows[at[once]][best], other[once][best], value[best], strict=True)
        ]
        listed = sorted(listed, key=lambda pair: -pair.cosine)[:SHOWN_PAIRS]
    return again_Q, total, listed
