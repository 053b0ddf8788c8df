"""What is known of pairs once all of them are read: how much better the ratings of both sides say chosen is, and what a
pair of a prompt weighs. Lines of pairs that this changes are written anew.

Letters: B pairs, N pairs of one source with ratings of both sides.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from druthers.curate.facts import Facts
from druthers.curate.filters import Mask
from druthers.curate.grading import DIGITS
from druthers.curate.opinions import EQUAL, Policy
from druthers.curate.survey import measure
from druthers.records import MOST
from druthers.storage import encode
from druthers.votes import GUESSED

Grades = NDArray[np.float64]
P, MARGIN, WEIGHT = range(3)
"""The columns of `Facts.grades_B3`."""
GAP = 1
"""The column of `Facts.ratings_B2`."""


# ---------------------------------------------------------------- ratings of both sides


def by_ratings(facts: Facts, ends: Sequence[int], policy: Policy) -> Facts:
    """The facts with pairs graded by the ratings of both their sides, each source by its own scale.

    `ends` are the numbers of pairs up to the end of each source. Pairs with a p or margin of their own keep it.
    """
    gap_B = facts.ratings_B2[:, GAP]
    rated_B = ~np.isnan(gap_B) & ~facts.graded_B
    if not rated_B.any():
        return facts
    grades_B3 = np.array(facts.grades_B3)
    for start, end in itertools.pairwise((0, *ends)):
        at = start + np.flatnonzero(rated_B[start:end])
        grades_B3[at, :WEIGHT] = graded(gap_B[at], policy)
    return replace(facts, grades_B3=grades_B3)


def graded(gap_N: Grades, policy: Policy) -> Grades:
    """p and margin by how much higher chosen is rated than rejected, (N, 2), as one person's ratings would give them.

    Ties have p = 0.5. Where rejected is rated higher the label stays, with a margin of 0, or as a slight preference.

    >>> graded(np.array([1.0, 2.0, 4.0, 0.0, -2.0]), Policy()).tolist()
    [[1.0, 0.5], [1.0, 1.0], [1.0, 2.0], [0.5, 0.0], [1.0, 0.0]]
    >>> graded(np.array([1.0, 2.0, 4.0, 0.0]), Policy(strength="p"))[:, 0].tolist()
    [0.65, 0.8, 0.92, 0.5]
    """
    even_N = even(gap_N, policy)
    side_N = np.where(even_N, 0, np.sign(gap_N)).astype(np.int8)
    scale = measure(side_N, np.full(len(gap_N), -1, dtype=np.int8), gap_N)
    found = np.column_stack([np.ones(len(gap_N)), np.zeros(len(gap_N))])
    if policy.strength == "p":
        against_N = (side_N < 0) & (scale.level_V > 0)
        found[:, P] = np.array(GUESSED)[np.where(against_N, 1, scale.level_V)]
    elif policy.strength != "none":
        point = 1 / scale.typical.get("rating", 1.0) if policy.margin_scale is None else policy.margin_scale
        found[:, MARGIN] = np.round(np.clip(point * gap_N, 0, MOST), DIGITS)
    found[even_N] = 0.5, 0.0
    return found


def even(gap_N: Grades, policy: Policy) -> Mask:
    """Whether ratings lie so close that they tell no difference; NaN is no rating."""
    return np.asarray(np.abs(gap_N) < max(policy.least_gap, EQUAL))


def ties(facts: Facts, policy: Policy) -> dict[str, NDArray[np.int64]]:
    """The places of pairs that the policy leaves out because both sides are rated alike, by the reason; ratings beside
    a p or margin of the pair's own make no tie."""
    if policy.ties != "drop":
        return {}
    gap_B = facts.ratings_B2[:, GAP]
    even_B = even(gap_B, policy) & ~facts.graded_B
    same_B = np.abs(gap_B) < EQUAL
    return {"tie": np.flatnonzero(even_B & same_B), "below_gap": np.flatnonzero(even_B & ~same_B)}


# ---------------------------------------------------------------- weights


def once_a_prompt(facts: Facts, stays_B: Mask) -> Facts:
    """The facts with the weights of the pairs that stay scaled, so that those of a prompt and group are 1 together.

    A prompt loses pairs to the filters, and what was said of it may have come in several items.
    """
    at = np.flatnonzero(stays_B)
    _, prompt = np.unique(facts.asked_B[at], return_inverse=True)
    _, of = np.unique(
        prompt.astype(np.int64) * (int(facts.group_B.max(initial=0)) + 1) + facts.group_B[at], return_inverse=True
    )
    weight = facts.grades_B3[at, WEIGHT]
    total = np.bincount(of, weights=weight)[of]
    changed = (np.abs(total - 1) > 1e-9) & (total > 0)
    if not changed.any():
        return facts
    grades_B3 = np.array(facts.grades_B3)
    grades_B3[at[changed], WEIGHT] = [float(f"{w:.12g}") for w in (weight[changed] / total[changed]).tolist()]
    return replace(facts, grades_B3=grades_B3)


# ---------------------------------------------------------------- lines


def regraded(line: bytes, *, p: float, margin: float, weight: float) -> bytes:
    """The line of a pair with another p, margin and weight; what is as usual is not written.

    >>> regraded(b'{"id": "1", "p": 0.9, "weight": 0.5, "group": "de"}', p=1.0, margin=0.25, weight=1.0)
    b'{"id": "1", "margin": 0.25, "group": "de"}\\n'
    """
    row = json.loads(line)
    behind = {name: row.pop(name) for name in AFTER if name in row}
    for name, usual, value in (("p", 1, p), ("margin", 0, margin), ("weight", 1, weight)):
        row.pop(name, None)
        row |= {name: value} if value != usual else {}
    return encode(row | behind)


AFTER = ("group", "criterion", "source", "tools")
"""What stands behind the weight on a line."""
