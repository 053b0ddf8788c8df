"""How far the winner can be told without reading (D5): a model that sees only the surface of two answers.

A logistic model without intercept on the differences of the surface features, trained on four fifths of the prompts and
tried on the fifth. Its AUC counts every pair in both orientations, so it needs no display order: 1/2 says that the
surface tells nothing, 1 that it tells all, and whatever it tells a model can learn in place of what was meant.

Letters: N pairs, S numbers of `surface`, F features, K folds.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import exp, log, sqrt
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from druthers.curate import surface
from druthers.curate.quality import clusters, logistic
from druthers.findings import finding
from druthers.records import Finding, Limits
from druthers.stats import Estimate, Interval, Undefined

GOOD, WARN, FAIL = 0.55, 0.65, 0.75
SAMPLE, FOLDS = 20_000, 5
RIDGE = 3.0
LEAST_PAIRS, LEAST_PROMPTS = 100, 20
FAMILIES: dict[str, tuple[str, ...]] = {
    "length": ("characters", "words", "lines"),
    "format": ("bullets", "numbered", "bold", "headings", "tables", "fences", "links"),
    "tone": ("emoji", "exclamations", "questions", "capitals"),
    "digits": ("digits",),
    "apology or refusal": ("apology", "refusal"),
    "first word": ("first_word",),
    "repetition": ("repeats",),
}
"""What the numbers of `surface` are about; words and characters move together, so blame falls on a family."""
AS_THEY_ARE = ("apology", "refusal", "capitals", "repeats")
"""Numbers that are compared as they are; counts are compared by their logarithm."""


@dataclass(frozen=True)
class Shortcut:
    """The AUC, what each family adds on average to the log odds of the right answer, and the gap in length.

    `gap` is the mean of characters of chosen less rejected.
    """

    auc: Estimate
    pull: dict[str, float]
    gap: Estimate


def shortcut(chosen_NS: NDArray[Any], rejected_NS: NDArray[Any], prompt_N: ArrayLike, *, seed: int) -> Shortcut:
    """The shortcut score of pairs, from the numbers of `surface` of both sides.

    At most 20 000 pairs are used, drawn by `seed`. `prompt_N` are the prompts' codes: pairs of one prompt stand in one
    fold. Raises ValueError for columns that do not fit together.
    """
    prompt = np.asarray(prompt_N)
    if chosen_NS.shape != rejected_NS.shape or chosen_NS.shape != (len(prompt), len(surface.NAMES)):
        raise ValueError(
            f"sides of shape {chosen_NS.shape} and {rejected_NS.shape} for {len(prompt)} prompts do not fit; "
            f"give ({len(prompt)}, {len(surface.NAMES)}) each"
        )
    rows = sample(len(prompt), most=SAMPLE, seed=seed)
    chosen, rejected = (np.asarray(side[rows], dtype=np.float64) for side in (chosen_NS, rejected_NS))
    code_N, groups = clusters.codes(prompt[rows])
    gap = clusters.mean(chosen[:, 0] - rejected[:, 0], code_N)
    if len(rows) < LEAST_PAIRS or groups < LEAST_PROMPTS:
        why = f"{len(rows)} pairs of {groups} prompts are too few; it takes {LEAST_PAIRS} pairs of {LEAST_PROMPTS}"
        return Shortcut(Undefined(why, len(rows)), {}, gap)
    x_NF, family_F = features(chosen, rejected)
    if not x_NF.any():
        return Shortcut(Undefined("the answers of every pair look alike", len(rows)), {}, gap)
    return judge(x_NF, family_F, code_N, groups, gap=gap, seed=seed)


def judge(
    x_NF: NDArray[np.float64], family_F: list[str], code_N: NDArray[np.int64], groups: int, *, gap: Estimate, seed: int
) -> Shortcut:
    """Each fold judged by the model of the others."""
    fold_N = folds(groups, FOLDS, seed=seed)[code_N]
    beats_N, pull_F = np.empty(len(x_NF)), np.zeros(x_NF.shape[1])
    for fold in range(FOLDS):
        held = fold_N == fold
        learned = logistic.fit(x_NF[~held], np.ones(int((~held).sum())), ridge=RIDGE).coefficient_F
        beats_N[held] = beaten(x_NF[held] @ learned)
        pull_F += x_NF[held].sum(0) * learned / len(x_NF)
    pull = {family: float(sum(pull_F[i] for i, of in enumerate(family_F) if of == family)) for family in FAMILIES}
    return Shortcut(auc(beats_N, fold_N, code_N, groups), pull, gap)


def sample(count: int, *, most: int, seed: int) -> NDArray[np.int64]:
    """At most so many of the rows, drawn without replacement, in their order."""
    if count <= most:
        return np.arange(count)
    return np.sort(np.random.default_rng(seed).choice(count, most, replace=False, shuffle=False))


def folds(groups: int, count: int, *, seed: int) -> NDArray[np.int64]:
    """The fold of each cluster, as equal as can be, drawn by `seed`."""
    return np.random.default_rng(seed).permutation(groups) % count


def features(chosen_NS: NDArray[np.float64], rejected_NS: NDArray[np.float64]) -> tuple[NDArray[np.float64], list[str]]:
    """The columns of the model, chosen less rejected and of unit size, and the family of each; none is constant 0."""
    of = {name: family for family, names in FAMILIES.items() for name in names}
    columns, family_F = [], []
    for i, name in enumerate(surface.NAMES):
        first, second = chosen_NS[:, i], rejected_NS[:, i]
        if name == "first_word":
            for bucket in np.union1d(first, second):
                columns.append((first == bucket).astype(np.float64) - (second == bucket))
                family_F.append(of[name])
        else:
            columns.append(first - second if name in AS_THEY_ARE else np.log1p(first) - np.log1p(second))
            family_F.append(of[name])
    size = [sqrt(float(np.mean(column * column))) for column in columns]
    kept = [i for i, s in enumerate(size) if s > 0]
    scaled = [columns[i] / max(size[i], 0.05) for i in kept]
    return np.column_stack(scaled) if kept else np.zeros((len(chosen_NS), 1)), [family_F[i] for i in kept] or ["length"]


def beaten(score_N: NDArray[np.float64]) -> NDArray[np.float64]:
    """For each pair, the share of pairs j with score_i + score_j > 0, a sum of 0 counted half: its part of the AUC.

    The AUC of every pair in both orientations, scores s and -s, is the mean of these.
    """
    ordered = np.sort(score_N)
    below, upto = np.searchsorted(ordered, -score_N, "left"), np.searchsorted(ordered, -score_N, "right")
    return 1 - (below + upto) / (2 * len(score_N))


def auc(beats_N: NDArray[np.float64], fold_N: NDArray[np.int64], code_N: NDArray[np.int64], groups: int) -> Estimate:
    """Mean over pairs of the AUC within folds, with the interval of DeLong et al. 1988 over prompts.

    Biometrics 44:837. A pair stands twice in the U statistic, so its influence is twice its own part. Limits are made
    on the logit scale.
    """
    mean_K = np.bincount(fold_N, beats_N) / np.bincount(fold_N)
    value = float(beats_N.mean())
    spread = 4 * clusters.variance(beats_N - mean_K[fold_N], code_N, groups) / len(beats_N) ** 2
    inner = min(max(value, 0.5 / len(beats_N)), 1 - 0.5 / len(beats_N))
    half = clusters.quantile(groups) * max(sqrt(spread), 1 / len(beats_N)) / (inner * (1 - inner))
    low, high = (1 / (1 + exp(-(log(inner / (1 - inner)) + sign * half))) for sign in (-1, 1))
    return Interval(value, min(low, value), max(high, value), len(beats_N))


def findings(found: Shortcut) -> list[Finding]:
    """D5.shortcut, and D5.gap, the mean gap in length beside it."""
    gap = found.gap
    told = "The gap in length cannot be told."
    if isinstance(gap, Interval):
        direction = "longer" if gap.value >= 0 else "shorter"
        told = f"The chosen answer is {abs(gap.value):.0f} characters {direction} on average."
    return [
        finding(
            "D5.shortcut",
            found.auc,
            sentence(found),
            unit="AUC",
            limits=Limits(warn=WARN, fail=FAIL),
            action="Balance what drives it: pair answers that are alike in it, or leave out the easiest pairs."
            if isinstance(found.auc, Interval)
            else "",
        ),
        finding("D5.gap", gap, told, unit="characters"),
    ]


def sentence(found: Shortcut) -> str:
    """What the score means, and what drives it."""
    if isinstance(found.auc, Undefined):
        return "Whether the winner can be told without reading cannot be said."
    rate = f"Without reading, by looks alone, the winner is told right {100 * found.auc.value:.0f} times of 100"
    if found.auc.value <= GOOD:
        return f"{rate}: hardly better than a coin."
    family = max(found.pull, key=found.pull.__getitem__)
    return f"{rate} (a coin: 50); {family} tells most."
