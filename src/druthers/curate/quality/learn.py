"""Which pairs DPO can teach at all, by what the reference thinks of them (D10).

With c = log pi_ref(rejected) - log pi_ref(chosen), the policy ranks a pair right exactly where its DPO loss is under
-log sigmoid(beta c) (Chen et al. 2024, arXiv 2405.19534). Where beta c is above 2.25 that takes a loss under 0.1, which
training seldom reaches: such a pair is practically unflippable.

Letters: N pairs.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import exp, log

import numpy as np
from numpy.typing import ArrayLike, NDArray

from druthers.curate.quality import clusters
from druthers.findings import finding
from druthers.records import Finding, Limits, Rows
from druthers.stats import Estimate, Interval, Undefined

LEAST_LOSS = 0.1
BOUND = -log(exp(LEAST_LOSS) - 1)
"""beta c beyond which -log sigmoid(beta c) is under 0.1: 2.2522."""


MANY_STUCK = 0.25
"""Share of stuck pairs from which on a data set is worth changing. Our own default, a guess."""


@dataclass(frozen=True)
class Learnability:
    """Share of pairs that are practically unflippable, share the reference ranks right already, and which are stuck."""

    stuck: Estimate
    ranked: Estimate
    stuck_N: NDArray[np.bool_]


def learnability(chosen_N: ArrayLike, rejected_N: ArrayLike, prompt_N: ArrayLike, *, beta: float) -> Learnability:
    """Of the reference's log-probabilities of both responses in nats, (N,) each; a tie counts half as ranked right.

    Raises ValueError for values that are not finite, and unless beta is positive.

    >>> found = learnability([-10.0, -90.0, -12.0], [-12.0, -10.0, -12.0], [0, 1, 2], beta=0.1)
    >>> found.ranked.value, found.stuck_N.tolist()
    (0.5, [False, True, False])
    """
    difference = np.asarray(rejected_N, dtype=np.float64) - np.asarray(chosen_N, dtype=np.float64)
    if not np.isfinite(difference).all():
        raise ValueError("log-probabilities must be finite; leave out the pairs that could not be scored")
    if not beta > 0:
        raise ValueError(f"beta = {beta} must be positive")
    stuck_N = beta * difference > BOUND
    ranked_N = np.where(difference == 0, 0.5, difference < 0)
    return Learnability(clusters.share(stuck_N, prompt_N), clusters.share(ranked_N, prompt_N), stuck_N)


def findings(found: Learnability, *, rows: Rows | None = None) -> list[Finding]:
    """D10.stuck and D10.ranked; `rows` is where the stuck pairs stand."""

    def per_hundred(estimate: Estimate) -> str:
        return (
            f"{100 * estimate.value:.0f} of 100 pairs"
            if isinstance(estimate, Interval)
            else "An unknown share of pairs"
        )

    return [
        finding(
            "D10.stuck",
            found.stuck,
            f"{per_hundred(found.stuck)} are ranked wrong by the reference too firmly for training to turn them "
            "(the limit of this share is a guess).",
            unit="share",
            limits=Limits(warn=MANY_STUCK),
            rows=rows,
            action="Train on the chosen answers first: that moves the reference; a smaller beta lets DPO go farther.",
        ),
        finding(
            "D10.ranked",
            found.ranked,
            f"{per_hundred(found.ranked)} are ranked right by the reference before any training.",
            unit="share",
        ),
    ]


def turned(reference_CN: ArrayLike, policy_CN: ArrayLike, prompt_N: ArrayLike) -> Finding:
    """D10.turned: of the held-out pairs that the reference ranks wrong, the share that the trained policy ranks right.

    Log-probabilities of chosen and rejected in nats, (2, N) each; a tie of the policy counts half.
    """
    before_N = np.subtract(*np.asarray(reference_CN, dtype=np.float64))
    after_N = np.subtract(*np.asarray(policy_CN, dtype=np.float64))
    wrong_N = before_N < 0
    if not wrong_N.any():
        none = Undefined("the reference ranks no held-out pair wrong", len(before_N))
        return finding("D10.turned", none, "There is nothing that training could turn.", unit="share")
    right_N = np.where(after_N == 0, 0.5, after_N > 0)[wrong_N]
    share = clusters.share(right_N, np.asarray(prompt_N)[wrong_N])
    text = f"Of {int(wrong_N.sum())} held-out pairs that the reference ranks wrong, training turned "
    text += f"{100 * share.value:.0f} of 100." if isinstance(share, Interval) else "an unknown share."
    return finding("D10.turned", share, text, unit="share")
