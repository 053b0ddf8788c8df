"""How much the pairs say: certainty, margin and weight of each, and how many pairs' worth that leaves (D7).

At the reference the loss of a pair pulls with w |2p - 1|: a tie (p = 1/2) says nothing of which response is better and
holds the policy to the reference, whatever it weighs. So that is what a pair counts for.

Letters: N pairs, G prompts.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from druthers.curate.quality import clusters
from druthers.findings import finding, many
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

    `effective` is (sum of c)^2 / (sum of c^2) over c = weight |2p - 1| of the pairs, in pairs, and `ties` how many have
    p = 1/2. `prompts` is how many there are, which is what an interval counts, `effective_prompts` the same over what
    the pairs of each prompt weigh together, ties or not; `crowded` prompts have more than four pairs each and
    `crowded_pairs` in all.
    `lowest_N` marks the tenth of the pairs with the lowest margin, those at the bound included; `bound` is that margin,
    and None where all margins are equal. `implicit` is the histogram of the reference's own margin, where given.
    """

    pairs: int
    effective: float
    ties: int
    prompts: int
    effective_prompts: float
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
    >>> found = information([1, 0.5, 0.5, 0.5], [0, 0, 0, 0], [1, 1, 1, 1], [0, 1, 2, 3])
    >>> found.effective, found.ties
    (1.0, 3)
    """
    p, margin, weight = (np.asarray(column, dtype=np.float64) for column in (p_N, margin_N, weight_N))
    code_N, groups = clusters.codes(prompt_N)
    if not len(p) == len(margin) == len(weight) == len(code_N) > 0:
        raise ValueError(
            f"{len(p)} p, {len(margin)} margins, {len(weight)} weights and {len(code_N)} prompts; "
            "give as many of each, and at least one"
        )
    each_G = np.bincount(code_N, minlength=groups)
    counts_N = weight * np.abs(2 * p - 1)
    graded = bool(np.ptp(margin) > 0)
    bound = float(np.quantile(margin, LOWEST)) if graded else None
    return Information(
        pairs=len(p),
        effective=effective(counts_N),
        ties=int((p == 0.5).sum()),
        prompts=groups,
        effective_prompts=effective(np.bincount(code_N, weight, minlength=groups)),
        crowded=int((each_G > MOST_PER_PROMPT).sum()),
        crowded_pairs=int(each_G[each_G > MOST_PER_PROMPT].sum()),
        bound=bound,
        lowest_N=margin <= bound if bound is not None else np.zeros(len(p), dtype=bool),
        p=histogram(p, low=0.0, high=1.0),
        margin=histogram(margin),
        weight=histogram(weight),
        implicit=None if implicit_N is None else histogram(np.asarray(implicit_N, dtype=np.float64)),
    )


def effective(count_N: NDArray[Any]) -> float:
    """As how many alike these count, (sum)^2 / (sum of squares); 0 where all are 0.

    >>> effective(np.array([1.0, 1.0, 0.0])), effective(np.zeros(2))
    (2.0, 0.0)
    """
    squared = float(count_N @ count_N)
    return float(count_N.sum()) ** 2 / squared if squared else 0.0


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
    """D7.effective, D7.prompts, D7.crowded and D7.lowest; `rows` is where the pairs of the lowest margin stand."""
    lowest = int(found.lowest_N.sum())
    return [
        effective_finding(found),
        finding(
            "D7.prompts",
            found.effective_prompts / found.prompts
            if found.effective_prompts
            else Undefined("every weight is 0", found.pairs),
            f"By the weight of all pairs of each, {many(found.prompts, 'prompt')} count as "
            f"{found.effective_prompts:,.0f} alike ones.",
            n=found.prompts,
            unit="share",
            limits=Limits(warn=LEAST_EFFECTIVE, bad="below"),
            action="Let each prompt weigh the same in all, or keep its clearest pairs: a few decide most of the loss."
            if 0 < 2 * found.effective_prompts < found.prompts
            else "",
        ),
        finding(
            "D7.crowded",
            found.crowded / found.prompts,
            f"{found.crowded:,} of {many(found.prompts, 'prompt')} {'has' if found.crowded == 1 else 'have'} more than "
            f"{MOST_PER_PROMPT} pairs, {many(found.crowded_pairs, 'pair')} in all."
            if found.crowded
            else f"No prompt has more than {MOST_PER_PROMPT} pairs.",
            n=found.prompts,
            unit="share",
            action="Where they do not share the weight of one, weigh them down or keep the clearest."
            if found.crowded
            else "",
        ),
        finding(
            "D7.lowest",
            Undefined("all margins are equal, so none is the lowest", found.pairs)
            if found.bound is None
            else found.bound,
            "No pair is told to be clearer than another."
            if found.bound is None
            else f"The {many(lowest, 'pair')} with the lowest margin have {found.bound:g} or less.",
            n=found.pairs,
            unit="margin",
            rows=rows,
            action="" if found.bound is None else "Such pairs teach least; data.least_margin leaves them out.",
        ),
    ]


def effective_finding(found: Information) -> Finding:
    """D7.effective: what weights that differ and ties leave of the pairs."""
    share = found.effective / found.pairs
    ties = f" {found.ties:,} of them are ties" if found.ties > 1 else " One of them is a tie"
    ties += " (p = 0.5), and say nothing of which response is better." if found.ties > 1 else " (p = 0.5)."
    text = f"By their weights and by how sure they are, {many(found.pairs, 'pair')} of {many(found.prompts, 'prompt')} "
    text += f"count as {found.effective:,.0f} alike ones."
    action = ""
    if share < LEAST_EFFECTIVE:
        action = "Look at the heaviest weights, and clip them: a few pairs decide most of the loss."
        if 2 * found.ties >= found.pairs:
            action = "Collect responses that differ more, or leave the ties out (grade.ties=drop)."
    return finding(
        "D7.effective",
        share,
        text + (ties if found.ties else ""),
        n=found.pairs,
        unit="share",
        limits=Limits(warn=LEAST_EFFECTIVE, bad="below"),
        action=action,
    )
