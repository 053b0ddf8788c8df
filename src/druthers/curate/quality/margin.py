"""How much the pairs say: certainty, margin and weight of each, and how many pairs' worth the weights leave (D7).

Letters: N pairs.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from druthers.curate.quality import clusters
from druthers.findings import finding
from druthers.records import Finding, Limits, Rows
from druthers.stats import Undefined

LEAST_EFFECTIVE = 0.5
MOST_PER_PROMPT = 4
LOWEST = 0.1
BINS = 30
TAIL = 0.995
"""Values beyond this quantile, to either side, fall in the outermost bins."""


@dataclass(frozen=True)
class Histogram:
    """Bins by their edges (one more than counts); the outermost hold what lies beyond them too."""

    edges: tuple[float, ...]
    counts: tuple[int, ...]


@dataclass(frozen=True)
class Information:
    """What the pairs carry.

    `effective` is (sum of weights)^2 / sum of squared weights, in pairs; `prompts` how many there are, which is what an
    interval counts; `crowded` how many of them have more than four pairs, and `crowded_pairs` the pairs of those.
    `lowest_N` marks the tenth of the pairs with the lowest margin, those at the bound included; `bound` is that margin,
    and None where all margins are equal. `implicit` is the histogram of the reference's own margin, where given.
    """

    pairs: int
    effective: float
    prompts: int
    crowded: int
    crowded_pairs: int
    bound: float | None
    lowest_N: NDArray[np.bool_]
    p: Histogram
    margin: Histogram
    weight: Histogram
    implicit: Histogram | None


def information(
    p_N: ArrayLike,
    margin_N: ArrayLike,
    weight_N: ArrayLike,
    prompt_N: ArrayLike,
    *,
    implicit_N: ArrayLike | None = None,
) -> Information:
    """Of pairs with p, margin, weight (not negative) and the code of their prompt, (N,) each, N at least 1.

    `implicit_N`: log pi_ref(chosen) - log pi_ref(rejected), in nats.

    >>> found = information([1, 1, 1], [0.5, 1, 2], [1, 1, 2], [0, 0, 1])
    >>> round(found.effective, 2), found.prompts, found.lowest_N.tolist()
    (2.67, 2, [True, False, False])
    """
    p, margin, weight = (np.asarray(column, dtype=np.float64) for column in (p_N, margin_N, weight_N))
    code_N, groups = clusters.codes(prompt_N)
    if not len(p) == len(margin) == len(weight) == len(code_N) > 0:
        raise ValueError(
            f"{len(p)} p, {len(margin)} margins, {len(weight)} weights and {len(code_N)} prompts; "
            "give as many of each, and at least one"
        )
    each_G = np.bincount(code_N, minlength=groups)
    squared = float(weight @ weight)
    graded = bool(np.ptp(margin) > 0)
    bound = float(np.quantile(margin, LOWEST)) if graded else None
    return Information(
        pairs=len(p),
        effective=float(weight.sum()) ** 2 / squared if squared else 0.0,
        prompts=groups,
        crowded=int((each_G > MOST_PER_PROMPT).sum()),
        crowded_pairs=int(each_G[each_G > MOST_PER_PROMPT].sum()),
        bound=bound,
        lowest_N=margin <= bound if bound is not None else np.zeros(len(p), dtype=bool),
        p=histogram(p, low=0.0, high=1.0),
        margin=histogram(margin),
        weight=histogram(weight),
        implicit=None if implicit_N is None else histogram(np.asarray(implicit_N, dtype=np.float64)),
    )


def histogram(value_N: NDArray[Any], *, low: float | None = None, high: float | None = None) -> Histogram:
    """Thirty bins of equal width from low to high, else between the quantiles that leave out half a percent each.

    >>> histogram(np.array([0.0, 1.0, 1.0]), low=0.0, high=1.0).counts[-1]
    2
    """
    if low is None or high is None:
        low, high = (float(x) for x in np.quantile(value_N, (1 - TAIL, TAIL)))
    high = high if high > low else low + 1.0
    counts, edges = np.histogram(np.clip(value_N, low, high), bins=BINS, range=(low, high))
    return Histogram(tuple(map(float, edges)), tuple(map(int, counts)))


def findings(found: Information, *, rows: Rows | None = None) -> list[Finding]:
    """D7.effective, D7.crowded and D7.lowest; `rows` is where the pairs of the lowest margin stand."""
    lowest = int(found.lowest_N.sum())
    return [
        finding(
            "D7.effective",
            found.effective / found.pairs if found.effective else Undefined("every weight is 0", found.pairs),
            f"{found.pairs} pairs of {found.prompts} prompts; their weights leave {found.effective:.0f} pairs' worth.",
            n=found.pairs,
            unit="share",
            limits=Limits(warn=LEAST_EFFECTIVE, bad="below"),
            action="Look at the heaviest weights, and clip them: a few pairs decide most of the loss.",
        ),
        finding(
            "D7.crowded",
            found.crowded / found.prompts,
            f"{found.crowded} of {found.prompts} prompts have more than {MOST_PER_PROMPT} pairs, "
            f"{found.crowded_pairs} pairs in all.",
            n=found.prompts,
            unit="share",
            action="Weigh the pairs of such a prompt down, or keep its clearest.",
        ),
        finding(
            "D7.lowest",
            Undefined("all margins are equal, so none is the lowest", found.pairs)
            if found.bound is None
            else found.bound,
            "No pair is told to be clearer than another."
            if found.bound is None
            else f"The {lowest} pairs with the lowest margin have {found.bound:g} or less.",
            n=found.pairs,
            unit="margin",
            rows=rows,
            action="" if found.bound is None else "Such pairs teach least; data.least_margin leaves them out.",
        ),
    ]
