"""Whether the chosen answers are good, and not only better (D11): what DPO learns most from is the chosen side.

Letters: N pairs or judgements.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from druthers.curate.quality import clusters
from druthers.findings import finding
from druthers.records import Finding, Limits, Rows
from druthers.stats import Estimate, Interval, Undefined

MOST_POOR = 0.1
"""Share of poor chosen answers, or of judgements that call both bad, from which on better ones are worth having."""
MOSTLY_POOR = 0.5
"""Share of poor chosen answers above which they should not be trained on, a limit of ours: most of what the model is
taught to say would be poor."""
LEAST_OF_SOURCE, MOST_SOURCES = 20, 20
"""Judgements that a source has at least for a share of its own, and sources that have one at most."""


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


def both_bad(bad_N: ArrayLike, source_2N: ArrayLike, prompt_N: ArrayLike, *, names: Sequence[str]) -> list[Finding]:
    """D11.both_bad: the share of judgements that call both answers bad, of all and by who wrote one of the answers.

    `bad_N` of 0 and 1, `source_2N` the places of both answers' writers in `names`, -1 where none is named; `prompt_N`
    the prompts. A writer has a share of their own from twenty judgements on, the twenty with the most of them.

    >>> [found.value for found in both_bad([1, 0] * 20, [[0] * 40, [0, 1] * 20], range(40), names=["a", "b"])]
    [0.5, 0.5, 0.0]
    """
    bad, prompt = np.asarray(bad_N, dtype=np.float64), np.asarray(prompt_N)
    one_N, other_N = np.asarray(source_2N, dtype=np.int64)
    both_M = np.concatenate([one_N, other_N[other_N != one_N]])
    count_S = np.bincount(both_M[both_M >= 0], minlength=len(names)).tolist()
    order = sorted(range(len(names)), key=lambda place: (-count_S[place], names[place]))
    told = [bad_finding(bad, prompt)]
    for place in order[:MOST_SOURCES] if len(names) > 1 else ():
        if count_S[place] >= LEAST_OF_SOURCE:
            own_N = (one_N == place) | (other_N == place)
            told.append(bad_finding(bad[own_N], prompt[own_N], source=names[place]))
    return told


def bad_finding(bad_N: NDArray[np.float64], prompt_N: NDArray[Any], *, source: str = "") -> Finding:
    """D11.both_bad of some judgements, all of them or those about answers of one source."""
    share = clusters.share(bad_N, prompt_N)
    on = f" on answers of {source}" if source else ""
    text = f"How often both answers{on} are bad cannot be told."
    if isinstance(share, Interval):
        text = f"{int(bad_N.sum()):,} of {len(bad_N):,} judgements{on} call both answers bad."
    return finding(
        "D11.both_bad",
        share,
        text,
        unit="share",
        limits=Limits(warn=MOST_POOR),
        about={"source": source} if source else None,
        action="Have such prompts answered anew; those that gave no pair stand in data/collect.jsonl."
        if bad_N.any()
        else "",
    )


def findings(found: Chosen, *, name: str = "D11.chosen", rows: Rows | None = None) -> list[Finding]:
    """D11.chosen by what a rubric says of the answers, or D11.rated by the ratings that the source has for them."""
    text = "Whether the chosen answers are good cannot be told."
    if isinstance(found.poor, Interval):
        text = f"{100 * found.poor.value:.0f} of 100 chosen answers are rated under {found.threshold:g}"
        text += f"; {found.unrated} have no rating." if found.unrated else "."
    return [
        finding(
            name,
            found.poor,
            text,
            unit="share",
            limits=Limits(warn=MOST_POOR, fail=MOSTLY_POOR),
            rows=rows,
            action="Have better answers written or sampled: the better of two poor answers is poor.",
        )
    ]
