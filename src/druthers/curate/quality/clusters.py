"""Shares and means with 95 % intervals over clusters, for millions of rows: linearised, where `stats` resamples.

A share has Wilson's interval with an effective sample size: the rows it would take, were they independent, to be as
sure as the clusters are (Dean & Pagano 2015, Survey Methodology 41:485, with Student's t for the normal quantile).
A mean has the cluster-robust interval with Student's t.

Letters: N rows, G clusters.
"""

from __future__ import annotations

from math import sqrt

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import stdtrit

from druthers.stats import Z_95, Estimate, Interval, Undefined, paired_score

Floats = NDArray[np.float64]
Codes = NDArray[np.int64]


def codes(cluster_N: ArrayLike) -> tuple[Codes, int]:
    """Clusters as numbers 0 to G - 1, and G.

    >>> codes([7, 3, 7])
    (array([1, 0, 1]), 2)
    """
    labels = np.asarray(cluster_N)
    if labels.size and labels.dtype.kind in "iu" and labels.min() >= 0 and labels.max() < 4 * len(labels):
        seen = np.bincount(labels) > 0
        return (np.cumsum(seen) - 1)[labels].astype(np.int64), int(seen.sum())
    found, index = np.unique(labels, return_inverse=True)
    return index.reshape(-1).astype(np.int64), len(found)


def variance(deviation_N: Floats, code_N: Codes, groups: int) -> float:
    """Variance of the sum of rows that have mean zero, whose clusters are independent, with the factor G / (G - 1)."""
    summed_G = np.bincount(code_N, deviation_N, minlength=groups)
    return float(summed_G @ summed_G) * groups / (groups - 1)


def mean(value_N: ArrayLike, cluster_N: ArrayLike) -> Estimate:
    """Mean of the rows; Undefined with fewer than two clusters.

    >>> i = mean([1.0, 2.0, 3.0, 4.0], [0, 0, 1, 2])
    >>> i.value, round(i.low, 2), round(i.high, 2)
    (2.5, -0.86, 5.86)
    """
    rows = np.asarray(value_N, dtype=np.float64)
    code_N, groups = codes(cluster_N)
    if groups < 2:
        return Undefined("fewer than two prompts or annotators, so no spread between them can be seen", len(rows))
    value = float(rows.mean())
    half = quantile(groups) * sqrt(variance(rows - value, code_N, groups)) / len(rows)
    return Interval(value, value - half, value + half, len(rows))


def share(hit_N: ArrayLike, cluster_N: ArrayLike) -> Estimate:
    """Share of rows that are 1 (a tie may count 1/2).

    Where all rows agree, each cluster counts once: rows of one cluster that agree are no independent evidence.

    >>> i = share([1, 1, 1, 0] * 25, range(100))
    >>> i.value, round(i.low, 2), round(i.high, 2)
    (0.75, 0.66, 0.83)
    >>> round(share([1, 1, 1, 1], [0, 0, 1, 1]).low, 2)
    0.34
    """
    rows = np.asarray(hit_N, dtype=np.float64)
    if len(rows) == 0:
        return Undefined("no rows")
    code_N, groups = codes(cluster_N)
    if groups < 2:
        return Undefined("fewer than two prompts or annotators, so no spread between them can be seen", len(rows))
    value = min(1.0, max(0.0, float(rows.mean())))
    spread = variance(rows - value, code_N, groups) / len(rows) ** 2
    effective = value * (1 - value) / spread if spread > 0 else float(groups)
    low, high = wilson(value, effective, quantile(groups) if spread > 0 else Z_95)
    return Interval(value, min(low, value), max(high, value), len(rows))


def ratio(hit_G: ArrayLike, of_G: ArrayLike) -> Estimate:
    """The hits of all clusters over what there was of them to hit; Undefined with fewer than two clusters.

    >>> i = ratio([1, 0, 0, 1] * 25, [1, 4, 4, 1] * 25)
    >>> i.value, round(i.low, 2), round(i.high, 2), i.n
    (0.2, 0.14, 0.27, 250)
    """
    hits, of = np.asarray(hit_G, dtype=np.float64), np.asarray(of_G, dtype=np.float64)
    total, groups = float(of.sum()), len(of)
    if groups < 2:
        return Undefined("fewer than two prompts, so no spread between them can be seen", round(total))
    value = float(hits.sum()) / total
    spread = variance(hits - value * of, np.arange(groups), groups) / total**2
    effective = value * (1 - value) / spread if spread > 0 else float(groups)
    low, high = wilson(value, effective, quantile(groups) if spread > 0 else Z_95)
    return Interval(value, min(low, value), max(high, value), round(total))


def difference(first_N: ArrayLike, second_N: ArrayLike, cluster_N: ArrayLike) -> Estimate:
    """Share of the first column less that of the second, both of 0 and 1, over the same rows.

    Tango's interval, with the rows divided by what the clusters cost.

    >>> i = difference([1, 0, 0, 0] * 10, [0, 0, 0, 0] * 10, range(40))
    >>> i.value, round(i.low, 2), round(i.high, 2)
    (0.25, 0.14, 0.4)
    """
    change = np.asarray(first_N, dtype=np.float64) - np.asarray(second_N, dtype=np.float64)
    if len(change) == 0:
        return Undefined("no rows")
    code_N, groups = codes(cluster_N)
    if groups < 2:
        return Undefined("fewer than two prompts, so no spread between them can be seen", len(change))
    value = float(change.mean())
    alone = float(((change - value) ** 2).sum()) * len(change) / max(1, len(change) - 1)
    cost = max(1.0, variance(change - value, code_N, groups) / alone) if alone > 0 else len(change) / groups
    wins, losses = (round(float((change == sign).sum()) / cost) for sign in (1, -1))
    found = paired_score(wins, losses, max(wins + losses, int(len(change) / cost)))
    assert isinstance(found, Interval)
    return Interval(value, min(found.low, value), max(found.high, value), len(change))


def wilson(value: float, n: float, z: float) -> tuple[float, float]:
    """Limits of Wilson's interval for a share of `n` rows, which need not be a whole number."""
    k = z * z / n
    centre, half = (value + k / 2) / (1 + k), sqrt(k * (value * (1 - value) + k / 4)) / (1 + k)
    return max(0.0, centre - half), min(1.0, centre + half)


def quantile(groups: int) -> float:
    """Student's t at 97.5 % with G - 1 degrees of freedom."""
    return float(stdtrit(groups - 1, 0.975))
