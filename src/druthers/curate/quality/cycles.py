"""D2: whether preferences go round in circles: a over b, b over c, c over a.

Kendall and Babington Smith 1940, "On the method of paired comparisons": of three responses that were all compared, the
preferences either have an order or form a cycle, and the share of cycles says how far no ranking explains them.

Letters: B pairs, G prompts, K responses of a prompt, T three responses that were all compared.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from druthers.curate.quality import clusters
from druthers.findings import finding
from druthers.records import Finding, Limits, Rows
from druthers.stats import Estimate

Codes = NDArray[np.int64]
Numbers = NDArray[np.uint64]
WIDEST = 256
"""Responses of a prompt up to which it is looked at: the work grows with their cube."""
CELLS = 1 << 22
"""Cells of the tables of preferences that are held at once."""
ROUND = Limits(warn=0.1)
"""Share of cycles from which on preferences have no order."""


@dataclass(frozen=True)
class Cycles:
    """The share of cycles among three responses that were all compared, and which of the B pairs are part of one."""

    share: Estimate
    cyclic: int
    complete: int
    inside_B: NDArray[np.bool_]


def cycles(prompt_B: Codes, sides_B2: Numbers, p_B: NDArray[np.float64]) -> Cycles:
    """Cycles of preferences, of chosen over rejected; ties say nothing, and a p below 1/2 is the other way round.

    >>> found = cycles(np.zeros(3, dtype=np.int64), np.array([[1, 2], [2, 3], [3, 1]], dtype=np.uint64), np.ones(3))
    >>> found.cyclic, found.complete, found.inside_B.tolist()
    (1, 1, [True, True, True])
    """
    inside_B = np.zeros(len(prompt_B), dtype=bool)
    counted: list[NDArray[np.float64]] = [np.zeros((2, 0))]
    for at, table_BI, count in tables(prompt_B, sides_B2, p_B):
        g_B, i_B, j_B = table_BI
        ahead_GKK = np.zeros((int(g_B.max()) + 1, count, count), dtype=np.float32)
        ahead_GKK[g_B, i_B, j_B] = 1.0
        ahead_GKK *= 1 - ahead_GKK * ahead_GKK.swapaxes(1, 2)  # what is said both ways is no order
        either_GKK = ahead_GKK + ahead_GKK.swapaxes(1, 2)
        steps_GKK = ahead_GKK @ ahead_GKK
        cyclic_G = np.einsum("gij,gji->g", steps_GKK, ahead_GKK) / 3
        complete_G = np.einsum("gij,gji->g", either_GKK @ either_GKK, either_GKK) / 6
        inside_B[at] = (steps_GKK[g_B, j_B, i_B] > 0) & (ahead_GKK[g_B, i_B, j_B] > 0)
        counted.append(np.stack([cyclic_G, complete_G])[:, complete_G > 0].astype(np.float64))
    cyclic_G, complete_G = np.concatenate(counted, axis=1)
    share = clusters.ratio(cyclic_G, complete_G)
    return Cycles(share, round(cyclic_G.sum()), round(complete_G.sum()), inside_B)


def tables(prompt_B: Codes, sides_B2: Numbers, p_B: NDArray[np.float64]) -> Iterator[tuple[Codes, Codes, int]]:
    """Lots of prompts with equally many responses: places of their pairs, (3, B) of prompt, better and worse, and K.

    Prompts with fewer than three pairs have no three responses that were all compared, and are not looked at.
    """
    _, prompt_B, size = np.unique(prompt_B, return_inverse=True, return_counts=True)
    at = np.flatnonzero((size[prompt_B] >= 3) & (p_B != 0.5))
    if not len(at):
        return
    way = (p_B[at] < 0.5).astype(np.int64)
    every = np.concatenate([sides_B2[at, way], sides_B2[at, 1 - way]])
    whose = np.tile(prompt_B[at], 2)
    order = np.lexsort((every, whose))
    sides, owner = every[order], whose[order]
    new_prompt = np.concatenate([[True], owner[1:] != owner[:-1]])
    new = new_prompt | np.concatenate([[True], sides[1:] != sides[:-1]])
    number = np.cumsum(new) - 1
    group = np.cumsum(new_prompt) - 1
    first = number[new_prompt]
    local = np.empty(len(order), dtype=np.int64)
    local[order] = number - first[group]
    count = np.diff(np.append(first, number[-1] + 1))
    place = np.empty(len(order), dtype=np.int64)
    place[order] = group
    i_B, j_B, g_B = local[: len(at)], local[len(at) :], place[: len(at)]
    for width in np.unique(count[(count >= 3) & (count <= WIDEST)]).tolist():
        mine = np.flatnonzero(count[g_B] == width)
        mine = mine[np.argsort(g_B[mine], kind="stable")]
        _, lot = np.unique(g_B[mine], return_inverse=True)
        for start in range(0, int(lot[-1]) + 1, max(1, CELLS // width**2)):
            part = slice(*np.searchsorted(lot, [start, start + max(1, CELLS // width**2)]))
            some = mine[part]
            yield at[some], np.stack([lot[part] - start, i_B[some], j_B[some]]), width


def findings(found: Cycles, *, rows: Rows | None) -> list[Finding]:
    """D2.cycles; nothing where no three responses were all compared."""
    if not found.complete:
        return []
    said = f"Of {found.complete:,} threes of responses that were all compared, {found.cyclic:,} go in a circle."
    action = "Have these prompts ranked as a whole, or judged by more people." if found.cyclic else ""
    return [finding("D2.cycles", found.share, said, unit="share", limits=ROUND, rows=rows, action=action)]
