"""What pairs made of opinions weigh once it is known which of them stay: those of a prompt count 1 together."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from druthers.curate.facts import Facts
from druthers.curate.filters import Mask
from druthers.storage import encode

Weights = NDArray[np.float64]
WEIGHT = 2
"""The column of `Facts.grades_B3`."""


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


def reweighted(line: bytes, weight: float) -> bytes:
    """The line of a pair with another weight.

    >>> reweighted(b'{"id": "1", "p": 0.9, "weight": 0.5, "group": "de"}', 1.0)
    b'{"id": "1", "p": 0.9, "group": "de"}\\n'
    """
    row = json.loads(line)
    behind = {name: row.pop(name) for name in AFTER if name in row}
    row.pop("weight", None)
    return encode(row | ({} if weight == 1 else {"weight": weight}) | behind)


AFTER = ("group", "criterion", "source", "tools")
"""What stands behind the weight on a line."""
