"""What else decides which answer wins: its side, its length, its format, a refusal (D4).

One logistic regression, `logit P(first wins) = b0 + b1 z(dlength) + b2 dmarkdown + b3 drefusal + sum of models`,
d for first less second, takes them apart, so that a taste for long answers is not read as one for bullets. b0 is the
bias of position; where the display order is unknown (plain chosen and rejected) there is none, and chosen is first.

Everything is given in points: how far from 50 of 100 one step of a feature moves an even choice.

Letters: N pairs, F features.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import copysign, sqrt
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import chdtri, expit

from druthers.curate import surface
from druthers.curate.quality import clusters, logistic
from druthers.findings import finding
from druthers.records import Finding, Limits
from druthers.stats import Estimate, Interval, Undefined

FEATURES: tuple[str, ...] = ("length", "markdown", "refusal")
"""The columns of the differences, in their order."""
MARKDOWN = ("bullets", "numbered", "bold", "headings", "tables", "fences")
POSITION_WARN, POSITION_FAIL = 2.0, 5.0
"""Points; a side that wins too often is always a fault of collection."""
TASTE_WARN, LENGTH_FAIL = 2.0, 25.0
"""Points; length, format and refusals may be what people want, so they are flagged and do not fail, but for length
where three of four choices go to the longer answer: that data set teaches length."""
LEAST_PAIRS, LEAST_CLUSTERS, LEAST_DIFFERENT = 50, 10, 20
MODELS = 15
"""Models that have a column of their own, the most frequent first; the others share the level of none."""
CLIP = 0.995
"""Length differences beyond this quantile count as that: one answer of a million letters is no yardstick."""
WEAK = 0.01
"""A coefficient of which the ridge knows more than this share has no interval by the sandwich: the outcomes are all but
separated, and the likelihood says how far."""
PROFILED = 20_000
"""Rows that the likelihood is followed on."""


@dataclass(frozen=True)
class Bias:
    """Biases in points (share less a half, times 100), each with its interval, and the pairs they were measured on.

    `longer`: how much more often than half the longer answer wins, other things as they are. `length` (one standard
    deviation of length difference), `markdown` (twice the marks) and `refusal`: each with the others held still.
    """

    position: Estimate
    longer: Estimate
    length: Estimate
    markdown: Estimate
    refusal: Estimate
    pairs: int


def differences(first_NS: NDArray[Any], second_NS: NDArray[Any]) -> NDArray[np.float64]:
    """The features of pairs, first less second, (N, 3), from the numbers of `surface` for both sides.

    Length in characters; markdown as the logarithm to base 2 of one more than its marks; refusal 0 or 1.
    """
    place = {name: i for i, name in enumerate(surface.NAMES)}
    marks = [place[name] for name in MARKDOWN]

    def columns(side_NS: NDArray[Any]) -> NDArray[np.float64]:
        of_format = np.log2(1.0 + side_NS[:, marks].sum(1))
        return np.column_stack([side_NS[:, place["characters"]], of_format, side_NS[:, place["refusal"]]])

    return columns(first_NS) - columns(second_NS)


def bias(
    difference_NF: NDArray[Any],
    won_N: ArrayLike,
    cluster_N: ArrayLike,
    *,
    position: bool,
    models: tuple[NDArray[Any], NDArray[Any]] | None = None,
) -> Bias:
    """The biases of pairs whose first answer won (1), tied (1/2) or lost (0).

    `difference_NF` (N, 3) first less second, as `differences` makes it; `cluster_N` whoever's luck rows share, the
    annotator or the prompt. `position`: whether first is where it was shown; else there is no intercept, and `won_N` of
    plain chosen and rejected is 1 throughout. `models`: codes of the models that wrote first and second, (N,) each.
    Raises ValueError for columns that do not fit together.
    """
    difference = np.asarray(difference_NF, dtype=np.float64)
    won = np.asarray(won_N, dtype=np.float64)
    cluster = np.asarray(cluster_N)
    if difference.shape != (len(won), len(FEATURES)) or cluster.shape != won.shape:
        raise ValueError(
            f"differences of shape {difference.shape}, {len(won)} outcomes and {len(cluster)} clusters do not fit; "
            f"give ({len(won)}, {len(FEATURES)}) and one of each for every pair"
        )
    if not (np.isfinite(difference).all() and ((won >= 0) & (won <= 1)).all()):
        raise ValueError("differences must be finite and outcomes lie between 0 and 1; leave out what was not measured")
    longer = prefers_longer(difference[:, 0], won, cluster)
    if too_few := lacks(won, cluster):
        none = Undefined(too_few, len(won))
        return Bias(none if position else NO_ORDER, longer, none, none, none, len(won))
    x_NF = design(difference, position=position, models=models)
    found = logistic.fit(x_NF, won)
    covariance_FF, groups = logistic.robust(x_NF, won, found, cluster)
    place = int(position)
    estimates = [points(x_NF, won, found, covariance_FF, groups, place=i) for i in range(place + len(FEATURES))]
    length, markdown, refusal = estimates[place:]
    return Bias(estimates[0] if position else NO_ORDER, longer, length, markdown, refusal, len(won))


NO_ORDER = Undefined("the order in which the answers were shown is not known")


def lacks(won_N: NDArray[Any], cluster_N: NDArray[Any]) -> str:
    """Why there is too little for a regression, or nothing."""
    if len(won_N) < LEAST_PAIRS:
        return f"{len(won_N)} pairs are too few; it takes {LEAST_PAIRS}"
    groups = clusters.codes(cluster_N)[1]
    return f"{groups} prompts or annotators are too few; it takes {LEAST_CLUSTERS}" if groups < LEAST_CLUSTERS else ""


def prefers_longer(length_N: NDArray[Any], won_N: NDArray[Any], cluster_N: NDArray[Any]) -> Estimate:
    """Points by which the longer answer wins more often than half, over the pairs whose lengths differ."""
    unequal = length_N != 0
    first_longer = length_N[unequal] > 0
    found = clusters.share(np.where(first_longer, won_N[unequal], 1 - won_N[unequal]), cluster_N[unequal])
    return Undefined("no pair has answers of different length", len(won_N)) if not unequal.any() else in_points(found)


def in_points(found: Estimate) -> Estimate:
    """A share as points from a half."""
    return found if isinstance(found, Undefined) else found.map(lambda share: 100 * (share - 0.5))


def design(
    difference_NF: NDArray[np.float64], *, position: bool, models: tuple[NDArray[Any], NDArray[Any]] | None
) -> NDArray[np.float64]:
    """The columns of the regression: the intercept if wanted, the features, the models.

    Length is divided by its root mean square, and not centred: exchanging the sides must turn the sign, no more.
    """
    length = difference_NF[:, 0]
    bound = float(np.quantile(np.abs(length), CLIP))
    length = np.clip(length, -bound, bound) if bound else length
    scale = sqrt(float(np.mean(length * length))) or 1.0
    columns = [length / scale, difference_NF[:, 1], difference_NF[:, 2]]
    if models is not None:
        named, count = np.unique(np.concatenate(models), return_counts=True)
        frequent = named[np.argsort(-count, kind="stable")][: min(MODELS, len(named) - 1)]
        columns += [(models[0] == code).astype(np.float64) - (models[1] == code) for code in frequent]
    return np.column_stack([np.ones(len(length)), *columns] if position else columns)


def points(
    x_NF: NDArray[np.float64],
    won_N: NDArray[np.float64],
    found: logistic.Fit,
    covariance_FF: NDArray[np.float64],
    groups: int,
    *,
    place: int,
) -> Estimate:
    """The coefficient at a place as points from a half, sigmoid(b) - 1/2, with its interval."""
    different = int(np.count_nonzero(x_NF[:, place]))
    if not different:
        return Undefined(ALIKE, len(won_N))
    if different < LEAST_DIFFERENT:
        pairs = "1 pair differs" if different == 1 else f"{different} pairs differ"
        return Undefined(f"only {pairs} in it; it takes {LEAST_DIFFERENT}", len(won_N))
    value = float(found.coefficient_F[place])
    known = 1 / float(np.linalg.inv(found.curvature_FF)[place, place])
    if WEAK * known < logistic.RIDGE:
        low, high = profile(x_NF, won_N, groups, place=place)
    else:
        half = clusters.quantile(groups) * sqrt(float(covariance_FF[place, place]))
        low, high = value - half, value + half
    interval = Interval(value, min(low, value), max(high, value), len(won_N))
    return interval.map(lambda b: 100 * (float(expit(b)) - 0.5))


ALIKE = "no pair differs in it"
FAR = 50.0
"""A coefficient that is as good as infinite: sigmoid(50) is 1 in float64."""


def profile(x_NF: NDArray[np.float64], won_N: NDArray[np.float64], groups: int, *, place: int) -> tuple[float, float]:
    """Limits where the likelihood, the other coefficients at their best, has fallen by half of chi square at 95 %.

    For outcomes that a feature all but separates: the sandwich sees no spread there, and the ridge alone would speak.
    Rows of one cluster that agree are no independent evidence, so all rows weigh as much as there are clusters.
    """
    thin = slice(None, None, max(1, len(won_N) // PROFILED))
    x, won = x_NF[thin], won_N[thin]
    weight = min(1.0, groups / len(won))
    best = logistic.fit(x, won, weight=weight)
    drop = float(chdtri(1, 0.05)) / 2

    def fallen(value: float) -> bool:
        return (
            logistic.fit(x, won, weight=weight, held=(place, value), start_F=best.coefficient_F).loss > best.loss + drop
        )

    centre = float(best.coefficient_F[place])
    limits = []
    for sign in (-1.0, 1.0):
        near, far = centre, centre + sign * FAR
        if fallen(far):
            for _ in range(30):
                middle = (near + far) / 2
                near, far = (near, middle) if fallen(middle) else (middle, far)
        limits.append(far)
    return limits[0], limits[1]


def findings(found: Bias) -> list[Finding]:
    """D4.position where the order is known, D4.length, D4.length_alone, D4.markdown and D4.refusal."""
    told = [
        position_finding(found.position),
        taste_finding(
            "D4.length",
            found.longer,
            "The longer answer wins {wins} times of 100 (without a preference 50).",
            what="length",
            fail=LENGTH_FAIL,
            action="Judge pairs of like length, or train with a loss that pays for length; see the shortcut score.",
        ),
        taste_finding(
            "D4.length_alone",
            found.length,
            "An answer that is longer by one standard deviation, and else alike, wins {wins} times of 100.",
            what="length by itself",
            action="Compare with D4.length: what is left here is length itself.",
        ),
        taste_finding(
            "D4.markdown",
            found.markdown,
            "With lengths alike, an answer with twice the marks of format wins {wins} times of 100.",
            what="format",
            action="Look whether lists and headings are wanted, or only look thorough.",
        ),
        taste_finding(
            "D4.refusal",
            found.refusal,
            "An answer that refuses wins {wins} times of 100 against one that does not.",
            what="refusing",
            action="Read some of these pairs: a model trained on them learns to refuse, or never to.",
        ),
    ]
    return [one for one in told if one is not None]


def position_finding(found: Estimate) -> Finding | None:
    """D4.position; nothing where the order is not known."""
    if found is NO_ORDER:
        return None
    if isinstance(found, Undefined):
        text = "Whether the side on which an answer is shown decides cannot be told."
    else:
        text = f"The answer shown first is chosen {wins(found)} times of 100."
    return finding(
        "D4.position",
        found,
        text,
        unit="points",
        limits=two_sided(found, warn=POSITION_WARN, fail=POSITION_FAIL),
        action="Show every pair in a balanced order, and leave out annotators who press one side.",
    )


def wins(found: Interval) -> str:
    """How often of 100 times a side wins, by its points from a half.

    >>> wins(Interval(-3.0, -5.0, -1.0, 100)), wins(Interval(11.84, 9.0, 14.0, 100))
    ('47', '61.8')
    """
    return f"{50 + found.value:.1f}".removesuffix(".0")


def taste_finding(
    name: str, found: Estimate, text: str, *, what: str, fail: float | None = None, action: str
) -> Finding:
    """One of the preferences, told by how often it wins; where no pair differs there is none."""
    if isinstance(found, Undefined) and found.reason == ALIKE:
        none = f"The answers of no pair differ in {what}."
        return finding(name, 0.0, none, n=found.n, unit="points", limits=Limits(warn=TASTE_WARN, fail=fail))
    if isinstance(found, Undefined):
        return finding(name, found, f"Whether {what} decides cannot be told.", unit="points")
    said = text.format(wins=wins(found))
    return finding(name, found, said, unit="points", limits=two_sided(found, warn=TASTE_WARN, fail=fail), action=action)


def two_sided(found: Estimate, *, warn: float, fail: float | None) -> Limits:
    """Limits on the side of zero on which the estimate lies: a bias is as bad to the left as to the right."""
    sign = copysign(1.0, found.value) if isinstance(found, Interval) else 1.0
    return Limits(warn=sign * warn, fail=None if fail is None else sign * fail, bad="above" if sign > 0 else "below")
