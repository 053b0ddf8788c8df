"""Pairs whose sources rate both responses: how often the ratings contradict the label (D2.ratings), and a figure.

Letters: N pairs.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from druthers.curate.quality import clusters
from druthers.findings import finding
from druthers.records import Finding, Limits, Rows

AGAINST = Limits(warn=0.02)
"""Share of rated pairs whose rejected response is rated higher; a limit of ours. It never fails: ratings of a model
beside the labels of people differ more, and either may be right."""
BINS = 40


def against(gap_N: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Whether rejected is rated higher than chosen; NaN is no rating."""
    return np.asarray(gap_N < 0)


def findings(
    gap_N: NDArray[np.float64], graded_N: NDArray[np.bool_], prompt_N: ArrayLike, *, rows: Rows | None = None
) -> list[Finding]:
    """D2.ratings, from by how much chosen is rated higher; nothing where no pair has ratings of both sides.

    `graded_N` are pairs that have a p or margin of their own.

    >>> [told] = findings(np.array([1.0, -1.0, np.nan, 2.0]), np.array([False, False, False, True]), range(4))
    >>> round(told.value, 2), told.n
    (0.33, 3)
    """
    rated = ~np.isnan(gap_N)
    if not rated.any():
        return []
    hit_N = against(gap_N[rated])
    share = clusters.share(hit_N, np.asarray(prompt_N)[rated])
    own = int(graded_N[rated].sum())
    text = f"Ratings of both sides, which {len(hit_N):,} pairs have, never prefer the rejected one."
    if hit_N.any():
        text = f"{int(hit_N.sum()):,} of {len(hit_N):,} pairs with ratings of both sides rate the rejected one higher; "
        text += "the label stays, and the ratings add nothing to it."
    if own:
        text += f" {own:,} have a p or margin of their own, which counts before the ratings."
    action = "Look which is right, labels or ratings; grade.strength=none leaves the ratings out."
    action = action if hit_N.any() else ""
    return [finding("D2.ratings", share, text, unit="share", limits=AGAINST, rows=rows, action=action)]


def figure(rating_N: NDArray[np.float64]) -> dict[str, Any]:
    """A histogram of the ratings of chosen responses; nothing where none has one. NaN is no rating."""
    rated = rating_N[~np.isnan(rating_N)]
    if not len(rated):
        return {}
    low, high = float(rated.min()), float(rated.max())
    counts, edges = np.histogram(rated, BINS, (low, high) if low < high else (low - 0.5, high + 0.5))
    return {
        "name": "ratings_chosen",
        "kind": "histogram",
        "title": "Ratings of the chosen responses",
        "unit": "points",
        "edges": edges.tolist(),
        "counts": {"chosen": counts.tolist()},
    }
