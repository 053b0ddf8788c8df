"""How many labels are wrong, and which look so (D6).

Suspects, in the way of confident learning (Northcutt et al. 2021, JAIR 70:1373): a model that knows the pair only by
its features, trained on the other prompts, gives the chosen answer a chance p; where p < 0.2 it would have bet against
the label. Pairs that it is surest about, whichever way, show how many labels are wrong: their features leave little
room, so what is labelled the other way is mostly noise. Nothing is deleted: the suspects are for people to look at.

Letters: N pairs, F features.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import betainc, betaincinv, expit

from druthers.curate.quality import clusters, logistic
from druthers.curate.quality.shortcut import folds, sample
from druthers.findings import finding
from druthers.records import Finding, Limits, Rows
from druthers.stats import Estimate, Interval, Undefined

SUSPECT = 0.2
FOLDS, SAMPLE = 5, 20_000
SUREST = 0.1
"""Share of the pairs that the model is surest about."""
LEAST_PAIRS, LEAST_PROMPTS = 200, 20
LEAST_RIGHT = 0.6
"""A model that is right less often than this on prompts it has not seen cannot tell noise from its own ignorance."""
NOISE_WARN, NOISE_FAIL = 0.25, 0.4
GOLD_ACCURACY, GOLD_CERTAIN, GOLD_LEAST = 0.7, 0.9, 10
GOLD = Limits(warn=GOLD_ACCURACY, bad="below")
"""Pause an annotator whose accuracy is below .7 with a probability above .9, from 10 gold answers on."""


@dataclass(frozen=True)
class Noise:
    """`p_N`: the chance that chosen is better, by the models of other folds (empty where it could not be learned).

    `suspects`: rows with p < 0.2, the most suspect first; `right`: how often the model agrees with the label;
    `wrong`: the share of wrong labels as the surest tenth shows it, which bounds it from above.
    """

    p_N: NDArray[np.float32]
    suspects: NDArray[np.int64]
    right: Estimate
    wrong: Estimate


def noise(feature_NF: NDArray[Any], prompt_N: ArrayLike, *, seed: int) -> Noise:
    """Suspects and label noise of pairs with features (N, F), those of chosen less those of rejected.

    Each fold of prompts is judged by a model learned on at most 20 000 pairs of the others. Features may be of any
    float type and mapped from disk; they are read in blocks.
    """
    prompt = np.asarray(prompt_N)
    if feature_NF.ndim != 2 or len(feature_NF) != len(prompt):
        raise ValueError(f"features of shape {feature_NF.shape} for {len(prompt)} prompts; give one row for each pair")
    code_N, groups = clusters.codes(prompt)
    if len(prompt) < LEAST_PAIRS or groups < LEAST_PROMPTS:
        none = Undefined(
            f"{len(prompt)} pairs of {groups} prompts are too few; it takes {LEAST_PAIRS} pairs of {LEAST_PROMPTS}",
            len(prompt),
        )
        return Noise(np.empty(0, np.float32), np.empty(0, np.int64), none, none)
    score_N = scores(feature_NF, folds(groups, FOLDS, seed=seed)[code_N], seed=seed)
    right = clusters.share(np.where(score_N == 0, 0.5, score_N > 0), code_N)
    p_N = expit(score_N).astype(np.float32)
    suspects = np.flatnonzero(p_N < SUSPECT)
    ordered = suspects[np.argsort(p_N[suspects], kind="stable")]
    return Noise(p_N, ordered, right, wrong_share(score_N, code_N, right))


def scores(feature_NF: NDArray[Any], fold_N: NDArray[np.int64], *, seed: int) -> NDArray[np.float64]:
    """The log odds that chosen is better, each row by the model of the other folds."""
    score_N = np.zeros(len(fold_N))
    for fold in range(FOLDS):
        others = np.flatnonzero(fold_N != fold)
        rows = others[sample(len(others), most=SAMPLE, seed=seed)]
        learning = np.asarray(feature_NF[rows], dtype=np.float64)
        size = float(np.sqrt(np.mean(learning * learning))) or 1.0
        ridge = strength(learning / size)
        learned = logistic.fit(learning / size, np.ones(len(rows)), ridge=ridge).coefficient_F / size
        for block in logistic.blocks(len(fold_N)):
            held = np.flatnonzero(fold_N[block] == fold) + block.start
            if len(held):
                score_N[held] = np.asarray(feature_NF[held], dtype=np.float64) @ learned
    return score_N


RIDGES = (1.0, 10.0, 100.0, 1000.0)


def strength(x_NF: NDArray[np.float64]) -> float:
    """The ridge, of a few, whose model of three quarters of the rows foretells the last quarter best."""
    cut = 3 * len(x_NF) // 4
    order = np.random.default_rng(0).permutation(len(x_NF))
    learn, held = x_NF[order[:cut]], x_NF[order[cut:]]
    if cut > 6000:
        learn = learn[:6000]

    def loss(ridge: float) -> float:
        found = logistic.fit(learn, np.ones(len(learn)), ridge=ridge).coefficient_F
        return float(np.logaddexp(0.0, -held @ found).mean())

    best = min(RIDGES, key=loss)
    return best * len(x_NF) / len(learn)


def wrong_share(score_N: NDArray[np.float64], code_N: NDArray[np.int64], right: Estimate) -> Estimate:
    """The share of the surest tenth that is labelled the other way."""
    if isinstance(right, Undefined):
        return right
    if right.low < LEAST_RIGHT:
        why = f"the features tell the winner right {100 * right.value:.0f} times of 100, too seldom to speak of noise"
        return Undefined(why, len(score_N))
    sure_N = np.abs(score_N)
    surest = sure_N >= np.quantile(sure_N, 1 - SUREST)
    return clusters.share((score_N[surest] < 0).astype(np.float64), code_N[surest])


@dataclass(frozen=True)
class Gold:
    """What an annotator's gold answers say: accuracy with its posterior interval, and whether to pause."""

    accuracy: Estimate
    pause: bool

    @property
    def poor(self) -> bool:
        """Whether there is something to say: the accuracy is below the limit, or likely enough to pause."""
        known = isinstance(self.accuracy, Interval) and self.accuracy.high < GOLD_ACCURACY
        return self.pause or known


def gold(right: int, answered: int) -> Gold:
    """Posterior of the accuracy from `right` of `answered` gold answers, uniform before: Beta(1 + right, 1 + wrong).

    >>> found = gold(9, 10)
    >>> round(found.accuracy.value, 3), round(found.accuracy.low, 3), found.pause, gold(5, 10).pause
    (0.833, 0.587, False, True)
    """
    if not 0 <= right <= answered:
        raise ValueError(f"{right} right of {answered} gold answers: right must lie between 0 and those answered")
    if answered == 0:
        return Gold(Undefined("no gold answers"), pause=False)
    a, b = 1 + right, 1 + answered - right
    low, high = (float(betaincinv(a, b, tail)) for tail in (0.025, 0.975))
    value = a / (a + b)
    poor = float(betainc(a, b, GOLD_ACCURACY)) > GOLD_CERTAIN
    return Gold(Interval(value, min(low, value), max(high, value), answered), pause=poor and answered >= GOLD_LEAST)


def findings(found: Noise, *, rows: Rows | None = None) -> list[Finding]:
    """D6.noise, the share of wrong labels, and D6.suspects, how many look wrong; `rows` is where the suspects stand."""
    if isinstance(found.wrong, Undefined):
        text = "How many labels are wrong cannot be told from these features."
    else:
        text = (
            f"Of the pairs whose winner is plainest, {100 * found.wrong.value:.0f} of 100 are labelled the other way; "
            "about as many labels are wrong at most."
        )
    told = [
        finding(
            "D6.noise",
            found.wrong,
            text,
            unit="share",
            limits=Limits(warn=NOISE_WARN, fail=NOISE_FAIL),
            action="Have some of the suspects judged anew, and train with a loss that allows for this noise.",
        )
    ]
    if len(found.p_N):
        share = len(found.suspects) / len(found.p_N)
        told.append(
            finding(
                "D6.suspects",
                share,
                f"{len(found.suspects)} of {len(found.p_N)} labels look wrong: the model would have bet against them.",
                n=len(found.p_N),
                unit="share",
                rows=rows,
                action="Look at them, the most suspect first; none was left out.",
            )
        )
    return told


def gold_finding(name: str, right: int, answered: int, *, rows: Rows | None = None) -> Finding:
    """D6.gold of one annotator; `rows` is where the answers stand that were missed."""
    one = gold(right, answered)
    many = "answer" if answered == 1 else "answers"
    return finding(
        "D6.gold",
        one.accuracy,
        f"{right:,} of {answered:,} {many} of {name or 'the nameless annotator'} on gold items are right.",
        unit="share",
        limits=GOLD,
        about={"annotator": name},
        rows=rows,
        action="Pause this annotator and talk it over." if one.pause else "Look at the answers that were missed.",
    )


def gold_of_all(counts: Sequence[tuple[int, int]], *, items: int) -> Finding:
    """D6.gold of all annotators together, from the right and all gold answers of each; `items` are in the gold file.

    It has no limit: it is single annotators who should pause.
    """
    right, answered = (sum(column) for column in zip(*counts, strict=True)) if counts else (0, 0)
    if not answered:
        none = Undefined(f"nobody judged one of the {items:,} gold items")
        action = "Compare prompts and responses of the gold file with those of the sources: they must be the same."
        return finding("D6.gold", none, "How many answers are right cannot be told.", unit="share", action=action)
    share: Estimate = gold(right, answered).accuracy
    if len(counts) > 1:
        hit_N = np.concatenate([np.repeat((1, 0), (r, n - r)) for r, n in counts])
        share = clusters.share(hit_N, np.repeat(np.arange(len(counts)), [n for _, n in counts]))
    people = f"{len(counts):,} annotators" if len(counts) > 1 else "one annotator"
    text = f"{right:,} of {answered:,} answers of {people} on gold items are right."
    return finding("D6.gold", share, text, unit="share")
