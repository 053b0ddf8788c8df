"""Intervals, win rates and tests for numbers that come in clusters.

The unit that is drawn at random is the prompt, not the row: several rows of one prompt (pairs, samples, orders) share
its luck. Every estimate is therefore an `Interval` over clusters, or `Undefined` with the reason why there is none.

Which interval is used (all 95 %):

* values -1, 0, 1 or 0, 1/2, 1 with one row per cluster: the score interval (Wilson; with ties, Tango). It keeps its
  coverage at boundary rates, where the bootstrap collapses to a point;
* everything else: the cluster bootstrap, percentile, expanded for few clusters (Hesterberg);
* a rate whose rows all agree, in clusters of several rows: the score interval with one row per cluster, because rows of
  one prompt that agree are no independent evidence.

Letters: S rows, G clusters, R resamples.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import asdict, dataclass
from math import isfinite, sqrt

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import bdtr, ndtr, ndtri, stdtrit

Floats = NDArray[np.float64]
Z_95 = float(ndtri(0.975))
POWER_FACTOR = float((ndtri(0.975) + ndtri(0.8)) ** 2)


@dataclass(frozen=True)
class Interval:
    """An estimate, its 95 % limits and the number of rows it was computed from.

    Raises ValueError unless all are finite and low <= value <= high.

    >>> Interval(0.6, 0.5, 0.7, 40).as_dict()
    {'value': 0.6, 'low': 0.5, 'high': 0.7, 'n': 40}
    """

    value: float
    low: float
    high: float
    n: int

    def __post_init__(self) -> None:
        if not all(map(isfinite, (self.value, self.low, self.high))):
            raise ValueError(f"an interval must be finite, not {self.value} in [{self.low}, {self.high}]")
        if not self.low <= self.value <= self.high:
            raise ValueError(f"the estimate {self.value} lies outside its own interval [{self.low}, {self.high}]")

    def as_dict(self) -> dict[str, float | int]:
        """The four numbers as they are written to a file."""
        return asdict(self)

    def map(self, change: Callable[[float], float]) -> Interval:
        """The interval of a monotone function of the estimate (a falling one swaps the limits).

        >>> Interval(0.5, 0.0, 1.0, 4).map(lambda x: -2 * x)
        Interval(value=-1.0, low=-2.0, high=-0.0, n=4)
        """
        ends = sorted((change(self.low), change(self.high)))
        return Interval(change(self.value), ends[0], ends[1], self.n)


@dataclass(frozen=True)
class Undefined:
    """An estimate that does not exist, and why.

    >>> Undefined("no pairs").as_dict()["undefined"]
    'no pairs'
    """

    reason: str
    n: int = 0

    def as_dict(self) -> dict[str, float | int | str | None]:
        """The keys of an interval with null values, and the reason."""
        return {"value": None, "low": None, "high": None, "n": self.n, "undefined": self.reason}


Estimate = Interval | Undefined


def wilson(successes: float, n: int) -> Estimate:
    """Score interval of a proportion of `n` independent trials; Wilson 1927, JASA 22:209.

    Raises ValueError unless 0 <= successes <= n.

    >>> i = wilson(45, 50)
    >>> round(i.value, 3), round(i.low, 4), round(i.high, 4)
    (0.9, 0.7864, 0.9565)
    >>> wilson(0, 0)
    Undefined(reason='no trials', n=0)
    """
    if not 0 <= successes <= n:
        raise ValueError(f"{successes} successes of {n} trials: successes must lie between 0 and the number of trials")
    if n == 0:
        return Undefined("no trials")
    rate, k = successes / n, Z_95**2 / n
    centre, half = (rate + k / 2) / (1 + k), sqrt(k * (rate * (1 - rate) + k / 4)) / (1 + k)
    return Interval(rate, min(rate, max(0.0, centre - half)), max(rate, min(1.0, centre + half)), n)


def paired_score(wins: int, losses: int, n: int) -> Estimate:
    """Score interval of (wins - losses) / n over `n` independent comparisons, the rest ties.

    Tango 1998, Statistics in Medicine 17:891, equations 5-8. Without ties, (1 + difference) / 2 is Wilson's interval.
    Raises ValueError unless wins and losses are counts whose sum is at most n.

    >>> i = paired_score(30, 10, 60)
    >>> round(i.value, 3), round(i.low, 3), round(i.high, 3)
    (0.333, 0.132, 0.506)
    """
    if min(wins, losses) < 0 or wins + losses > n:
        raise ValueError(
            f"{wins} wins and {losses} losses in {n} comparisons: counts must be positive and sum to at most n"
        )
    if n == 0:
        return Undefined("no comparisons")
    return Interval((wins - losses) / n, tango_low(wins, losses, n), -tango_low(losses, wins, n), n)


def tango_low(wins: int, losses: int, n: int) -> float:
    """Lower limit of Tango's interval by bisection: the smallest difference the data do not reject."""
    low, high = -1.0, (wins - losses) / n
    for _ in range(60):
        middle = (low + high) / 2
        excess = wins - losses - n * middle
        rejected = excess > Z_95 * sqrt(n * tango_variance(middle, wins=wins, losses=losses, n=n))
        low, high = (middle, high) if rejected else (low, middle)
    return low


def tango_variance(difference: float, *, wins: int, losses: int, n: int) -> float:
    """Variance of one comparison under the hypothesis, its loss rate at the restricted maximum-likelihood estimate."""
    b = (2 * n - wins + losses) * difference - wins - losses
    c = -losses * difference * (1 - difference)
    loss_rate = (sqrt(max(0.0, b * b - 8 * n * c)) - b) / (4 * n)
    return max(0.0, 2 * loss_rate + difference * (1 - difference))


def bootstrap_mean(values: ArrayLike, clusters: Sequence[Hashable], *, seed: int, resamples: int = 2000) -> Estimate:
    """Mean of the rows with a percentile interval from resampling whole clusters.

    `values` (S,), `clusters` the S cluster labels. Source: cluster bootstrap, Davison & Hinkley 1997, section 3.8;
    limits widened for few clusters after Hesterberg 2015, American Statistician 69:371, section 5.2.

    >>> i = bootstrap_mean([1.0, 2.0, 3.0, 4.0], ["a", "a", "b", "c"], seed=0)
    >>> i.value, i.low < 2 and i.high > 3, i.n
    (2.5, True, 4)
    """
    rows = checked(values, clusters)
    return bootstrap_ratio(rows, np.ones_like(rows), clusters, seed=seed, resamples=resamples)


def bootstrap_ratio(
    numerators: ArrayLike, denominators: ArrayLike, clusters: Sequence[Hashable], *, seed: int, resamples: int = 2000
) -> Estimate:
    """Sum of numerators over sum of denominators (a mean per token, say), resampling whole clusters.

    `numerators`, `denominators` (S,), the latter positive. Undefined with fewer than two clusters: one cluster shows
    nothing of how clusters differ. Raises ValueError for lengths that differ or values that are not finite.

    >>> i = bootstrap_ratio([3.0, 5.0, 2.0], [1.0, 2.0, 2.0], [1, 2, 3], seed=0)
    >>> i.value, i.n
    (2.0, 3)
    """
    top, bottom = checked(numerators, clusters), checked(denominators, clusters)
    if len(top) == 0:
        return Undefined("no rows")
    if (bottom <= 0).any():
        raise ValueError("denominators must be positive; leave out the rows that measure nothing")
    label_S = cluster_index(clusters)
    top_G, bottom_G = (np.bincount(label_S, column).astype(np.float64) for column in (top, bottom))
    if len(top_G) < 2:
        return Undefined("only one prompt, so no spread between prompts can be seen", len(top))
    value = float(top_G.sum() / bottom_G.sum())
    draws_R = resampled(top_G, bottom_G, seed=seed, resamples=resamples)
    tail = expanded_tail(len(top_G))
    low, high = (float(x) for x in np.quantile(draws_R, [tail, 1 - tail]))
    return Interval(value, min(low, value), max(high, value), len(top))


def resampled(top_G: Floats, bottom_G: Floats, *, seed: int, resamples: int) -> Floats:
    """The ratio in each of `resamples` draws of G clusters with replacement, (R,); memory stays below about 32 MB."""
    count = len(top_G)
    chunk = max(1, 1_000_000 // count)
    draw = np.random.default_rng(seed)
    out: list[Floats] = []
    for start in range(0, resamples, chunk):
        drawn_RG = draw.integers(count, size=(min(chunk, resamples - start), count), dtype=np.int32)
        out.append(top_G[drawn_RG].sum(1) / bottom_G[drawn_RG].sum(1))
    return np.concatenate(out)


def expanded_tail(clusters: int) -> float:
    """Tail probability that gives a percentile interval the width of Student's t over `clusters` clusters.

    >>> round(expanded_tail(10_000), 4), expanded_tail(5) < 0.002
    (0.025, True)
    """
    return float(ndtr(-sqrt(clusters / (clusters - 1)) * stdtrit(clusters - 1, 0.975)))


def win_rate(scores: ArrayLike, clusters: Sequence[Hashable], *, seed: int, resamples: int = 2000) -> Estimate:
    """Share of wins, a tie counted half: mean of scores 1 (win), 1/2 (tie), 0 (loss). Also accuracies and shares.

    `scores` (S,). Raises ValueError for any other score; average graded judgements with `bootstrap_mean`.

    >>> i = win_rate([1, 1, 1, 0.5, 0, 1, 1, 1], range(8), seed=0)
    >>> round(i.value, 4), round(i.low, 2), round(i.high, 2)
    (0.8125, 0.49, 0.95)
    >>> win_rate([1] * 40, range(40), seed=0).high
    1.0
    """
    rows = checked(scores, clusters)
    if not np.isin(rows, (0, 0.5, 1)).all():
        raise ValueError("scores of a win rate must be 0, 1/2 or 1")
    found = paired_difference(np.zeros_like(rows), 2 * rows - 1, clusters, seed=seed, resamples=resamples)
    return found if isinstance(found, Undefined) else found.map(lambda d: (1 + d) / 2)


def paired_difference(
    before: ArrayLike, after: ArrayLike, clusters: Sequence[Hashable], *, seed: int, resamples: int = 2000
) -> Estimate:
    """Mean of after - before over rows measured twice, with the interval rule of this module's first lines.

    `before`, `after` (S,).

    >>> i = paired_difference([0, 0, 1, 0], [1, 1, 1, 0], "abcd", seed=0)
    >>> i.value, i.n
    (0.5, 4)
    """
    change_S = checked(after, clusters) - checked(before, clusters)
    steps, groups = np.unique(change_S), len(set(clusters))
    if not np.isin(steps, (-1, 0, 1)).all() or (groups < len(change_S) and len(steps) > 1):
        return bootstrap_mean(change_S, clusters, seed=seed, resamples=resamples)
    units_G = change_S[:groups]  # every row, or as many of the equal rows as there are clusters
    found = paired_score(int((units_G == 1).sum()), int((units_G == -1).sum()), groups)
    return found if isinstance(found, Undefined) else Interval(found.value, found.low, found.high, len(change_S))


def detectable_points(n: int, tie_share: float) -> float:
    """Smallest distance from 50 %, in percentage points, that n prompts show with 80 % power at the 5 % level.

    delta = sqrt((z.975 + z.8)^2 (1 - t) / 4 / n): the variance of a score with tie share t is (1 - t) / 4 at 50 %.
    At least one comparison is taken as decided, and the answer is at most 50. Raises ValueError for n < 1.

    >>> round(detectable_points(785, 0.0), 1), round(detectable_points(160, 0.2), 1)
    (5.0, 9.9)
    """
    if n < 1 or not 0 <= tie_share <= 1:
        raise ValueError(
            f"{n} prompts with tie share {tie_share}: needs at least one prompt and a share between 0 and 1"
        )
    return min(50.0, 100 * sqrt(POWER_FACTOR * max(1 - tie_share, 1 / n) / 4 / n))


def mcnemar(gained: int, lost: int) -> float:
    """Exact two-sided p-value that gains and losses are equally likely; McNemar 1947 with the binomial distribution.

    p = min(1, 2 P[Bin(gained + lost, 1/2) <= min(gained, lost)]); 1 when nothing changed.

    >>> mcnemar(0, 0), round(mcnemar(9, 1), 4), mcnemar(3, 3)
    (1.0, 0.0215, 1.0)
    """
    if min(gained, lost) < 0:
        raise ValueError(f"{gained} gained and {lost} lost: counts cannot be negative")
    total = gained + lost
    return 1.0 if total == 0 else min(1.0, 2 * float(bdtr(min(gained, lost), total, 0.5)))


def correlation(x: ArrayLike, y: ArrayLike) -> float | Undefined:
    """Pearson's correlation of two columns, or Undefined where one of them is constant or there are fewer than 3 rows.

    >>> round(correlation([1, 2, 3], [2, 4, 7]), 3)
    0.993
    >>> correlation([1, 1, 1], [1, 2, 3]).reason
    'one of the columns is constant'
    """
    a, b = (np.asarray(column, dtype=np.float64) for column in (x, y))
    if a.shape != b.shape or a.ndim != 1:
        raise ValueError(f"columns of shape {a.shape} and {b.shape} cannot be correlated; they must be equally long")
    if len(a) < 3:
        return Undefined("fewer than three rows", len(a))
    if np.ptp(a) == 0 or np.ptp(b) == 0:
        return Undefined("one of the columns is constant", len(a))
    return float(np.corrcoef(a, b)[0, 1])


def checked(values: ArrayLike, clusters: Sequence[Hashable]) -> Floats:
    """`values` as (S,) float64, one for each cluster label; ValueError otherwise."""
    rows = np.asarray(values, dtype=np.float64)
    if rows.shape != (len(clusters),):
        raise ValueError(
            f"{rows.shape} values for {len(clusters)} cluster labels: there must be one label for each value"
        )
    if not np.isfinite(rows).all():
        raise ValueError("values must be finite; leave out the rows that could not be measured and say how many")
    return rows


def cluster_index(clusters: Sequence[Hashable]) -> NDArray[np.int64]:
    """Cluster labels as numbers 0..G-1 in sorted order of their text, so that the draw does not depend on row order."""
    order = {label: i for i, label in enumerate(sorted(set(clusters), key=str))}
    return np.fromiter((order[label] for label in clusters), dtype=np.int64, count=len(clusters))
