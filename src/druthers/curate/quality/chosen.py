"""Whether the chosen answers are good, and not only better (D11): what DPO learns most from is the chosen side.

Letters: N pairs or judgements.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from druthers.curate.quality import clusters
from druthers.findings import finding
from druthers.records import Finding, Limits
from druthers.stats import Estimate, Interval, Undefined

MOST_POOR = 0.1
LEAST_OF_SOURCE = 20
"""Judgements that a source has at least for a rate of its own."""


@dataclass(frozen=True)
class Chosen:
    """Share of the rated chosen answers under the threshold, how many have no rating, and the threshold."""

    poor: Estimate
    unrated: int
    threshold: float


def chosen(rating_N: ArrayLike, prompt_N: ArrayLike, *, threshold: float) -> Chosen:
    """Of the ratings of chosen answers, NaN where there is none.

    >>> chosen([8.0, 3.0, float("nan"), 9.0], [0, 1, 2, 3], threshold=5).poor.value
    0.3333333333333333
    """
    rating = np.asarray(rating_N, dtype=np.float64)
    rated = ~np.isnan(rating)
    poor: Estimate = Undefined("no chosen answer has a rating", len(rating))
    if rated.any():
        poor = clusters.share(rating[rated] < threshold, np.asarray(prompt_N)[rated])
    return Chosen(poor, int((~rated).sum()), threshold)


def both_bad(bad_N: ArrayLike, source_N: ArrayLike, prompt_N: ArrayLike) -> dict[Any, Estimate]:
    """For every source, the share of judgements that call both answers bad; `bad_N` of 0 and 1.

    >>> both_bad([1, 0] * 20, ["a"] * 40, range(40))["a"].value
    0.5
    """
    bad, prompt = np.asarray(bad_N, dtype=np.float64), np.asarray(prompt_N)
    named, index = np.unique(np.asarray(source_N), return_inverse=True)
    order = np.argsort(index.reshape(-1), kind="stable")
    ends = np.cumsum(np.bincount(index.reshape(-1), minlength=len(named)))
    rates: dict[Any, Estimate] = {}
    for name, rows in zip(named.tolist(), np.split(order, ends[:-1]) if len(named) else [], strict=True):
        enough = len(rows) >= LEAST_OF_SOURCE
        why = f"{len(rows)} judgements are too few; it takes {LEAST_OF_SOURCE}"
        rates[name] = clusters.share(bad[rows], prompt[rows]) if enough else Undefined(why, len(rows))
    return rates


def findings(found: Chosen | None, bad: dict[Any, Estimate] | None = None) -> list[Finding]:
    """D11.chosen, and D11.both_bad for every source."""
    told = []
    if found is not None:
        text = "Whether the chosen answers are good cannot be told."
        if isinstance(found.poor, Interval):
            text = f"{100 * found.poor.value:.0f} of 100 chosen answers are rated under {found.threshold:g}"
            text += f"; {found.unrated} have no rating." if found.unrated else "."
        told.append(
            finding(
                "D11.chosen",
                found.poor,
                text,
                unit="share",
                limits=Limits(warn=MOST_POOR),
                action="Have better answers written or sampled: the better of two poor answers is poor.",
            )
        )
    for source, rate in (bad or {}).items():
        known = isinstance(rate, Interval)
        told.append(
            finding(
                "D11.both_bad",
                rate,
                f"In {100 * rate.value:.0f} of 100 judgements on {source} both answers are called bad."
                if known and isinstance(rate, Interval)
                else f"How often both answers of {source} are bad cannot be told.",
                unit="share",
                about={"source": str(source)},
            )
        )
    return told
