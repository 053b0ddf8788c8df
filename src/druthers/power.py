"""How much data it takes: to show an improvement, to make one, and what noise in the labels hides of it.

Two sides of data are told apart. The held-out side decides what can be seen: that is arithmetic, done before a run. The
training side decides what can be reached: that is known only from runs at several sizes, and is fitted to them here,
never guessed. Accuracies, rates, shares and noise are in 0..1; a difference of 0.05 is five points.

Letters: P points of a learning curve, R resamples, C exponents tried.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from math import ceil, inf, sqrt

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import ndtri

from druthers.stats import Interval, Undefined, checked, cluster_index

Floats = NDArray[np.float64]
POWER, LEVEL = 0.8, 0.05
"""An improvement counts as detectable when four of five evaluations would show it at the 5 % level, two-sided."""
EXPONENTS = np.geomspace(0.05, 2.0, 60)
LEAST_POINTS, LEAST_SPAN = 3, 3.9
"""A curve takes three sizes, the largest about four times the smallest: a quarter, a half and all."""
REACH = 10.0
"""A curve is read up to so many times the largest size that was measured."""
RESAMPLES = 2000


# ---------------------------------------------------------------- the held-out side


def comparisons_needed(
    difference: float, *, changed: float = 1.0, design: float = 1.0, power: float = POWER, level: float = LEVEL
) -> int:
    """How many paired comparisons show that better and worse differ by `difference` in their shares.

    `changed` is the share of comparisons that are not ties, so that better = (changed + difference) / 2; `design` the
    design effect of comparisons that share a prompt. n = design (z_a sqrt(q) + z_b sqrt(q - d^2))^2 / d^2, Miettinen
    1968, Biometrics 24:339; Connor 1987, Biometrics 43:207. Raises ValueError for a difference of 0 or one greater
    than `changed`, which no data can show.

    >>> comparisons_needed(0.1), comparisons_needed(0.1, changed=0.6), comparisons_needed(0.1, design=2.0)
    (783, 469, 1566)
    """
    check_comparison(changed=changed, design=design, power=power, level=level)
    if not 0 < abs(difference) <= changed:
        raise ValueError(
            f"a difference of {difference} among {changed} changed comparisons: it lies between 0 and that"
        )
    ends = quantile(1 - level / 2) * sqrt(changed) + quantile(power) * sqrt(changed - difference**2)
    return ceil(design * (ends / difference) ** 2 - 1e-9)


def detectable_difference(
    n: float, *, changed: float = 1.0, design: float = 1.0, power: float = POWER, level: float = LEVEL
) -> float:
    """The smallest difference that n comparisons show: `comparisons_needed` the other way round.

    Infinite where not even a difference of `changed`, all better and none worse, would be seen.

    >>> round(detectable_difference(783), 3), detectable_difference(2)
    (0.1, inf)
    """
    check_comparison(changed=changed, design=design, power=power, level=level)
    alpha, beta, own = quantile(1 - level / 2), quantile(power), n / design
    inner = own + beta**2 - alpha**2
    if n <= 0 or inner < 0:
        return inf
    found = sqrt(changed) * (alpha * sqrt(own) + beta * sqrt(inner)) / (own + beta**2)
    solves = found * sqrt(own) >= alpha * sqrt(changed) - 1e-9  # squaring the equation has brought in another root
    return found if solves and found <= changed else inf


def check_comparison(*, changed: float, design: float, power: float, level: float) -> None:
    """Raises ValueError for shares that are none."""
    if not 0 < changed <= 1 or design <= 0:
        raise ValueError(f"changed = {changed}, design = {design}: a share in (0, 1] and a positive number are needed")
    if not (0.5 <= power < 1 and 0 < level < 1):
        raise ValueError(f"power {power} at level {level}: power lies in [0.5, 1), the level in (0, 1)")


def quantile(share: float) -> float:
    """Of the normal distribution."""
    return float(ndtri(share))


def win_rate_needed(gain: float, *, ties: float = 0.0, noise: float = 0.0, design: float = 1.0) -> int:
    """How many prompts show a win rate of 1/2 + gain, a tie counted half, against 1/2.

    `noise` is the share of verdicts that are the wrong way round: it leaves (1 - 2 noise) of the gain to be seen.

    >>> win_rate_needed(0.05), win_rate_needed(0.05, ties=0.4), win_rate_needed(0.05, noise=0.2)
    (783, 469, 2178)
    """
    return comparisons_needed(2 * gain * visible(noise), changed=1 - ties, design=design)


def detectable_gain(n: float, *, ties: float = 0.0, noise: float = 0.0, design: float = 1.0) -> float:
    """The smallest gain in win rate over 1/2 that n prompts show; infinite where none would be.

    The same holds for the accuracy of a first run on held-out pairs: the reference decides none of them, so it is
    compared with 1/2.

    >>> round(detectable_gain(160), 3), round(detectable_gain(160, ties=0.2), 3)
    (0.11, 0.098)
    """
    return detectable_difference(n, changed=1 - ties, design=design) / 2 / visible(noise)


def accuracy_needed(
    before: float, after: float, *, changed: float | None = None, noise: float = 0.0, design: float = 1.0
) -> int:
    """How many held-out pairs show that accuracy went from `before` to `after`, both models on the same pairs.

    `changed` is the share of pairs on which the two differ in the noisy labels; unset, they differ as two independent
    models would, before (1 - after) + after (1 - before), which is on the safe side: models of one family agree more.

    >>> accuracy_needed(0.6, 0.65), accuracy_needed(0.6, 0.65, changed=0.15)
    (1474, 469)
    """
    seen = [noisy_accuracy(accuracy, noise) for accuracy in (before, after)]
    apart = seen[0] * (1 - seen[1]) + seen[1] * (1 - seen[0])
    return comparisons_needed(seen[1] - seen[0], changed=apart if changed is None else changed, design=design)


def design_effect(sizes: ArrayLike, correlation: float) -> float:
    """By what factor rows in clusters of these sizes say less than as many single rows: 1 + (m' - 1) correlation.

    m' = sum m^2 / sum m, the mean size as a row sees it. Kish 1965, Survey Sampling, section 8.1-8.2.

    >>> design_effect([4, 4, 4], 0.5), design_effect([1, 1], 0.9), design_effect([3, 1], 1.0)
    (2.5, 1.0, 2.5)
    """
    size_G = np.asarray(sizes, dtype=np.float64)
    if size_G.size == 0 or (size_G < 1).any() or not 0 <= correlation <= 1:
        raise ValueError("a design effect needs clusters of at least one row and a correlation between 0 and 1")
    return float(1 + ((size_G**2).sum() / size_G.sum() - 1) * correlation)


def correlation_within(values: ArrayLike, clusters: Sequence[Hashable]) -> float | Undefined:
    """How alike rows of one cluster are (intraclass correlation), cut to 0..1; analysis of variance.

    Donner 1986, International Statistical Review 54:67. Undefined where no cluster has two rows, or nothing varies.

    >>> correlation_within([1, 1, 0, 0], "aabb"), correlation_within([1, 0, 1, 0], "aabb")
    (1.0, 0.0)
    """
    rows, label_S = checked(values, clusters), cluster_index(clusters)
    size_G = np.bincount(label_S).astype(np.float64)
    total, groups = size_G.sum(), len(size_G)
    if groups < 2 or groups == len(rows):
        return Undefined("no two prompts of which one has several rows", len(rows))
    mean_G = np.bincount(label_S, rows) / size_G
    within = ((rows - mean_G[label_S]) ** 2).sum() / (total - groups)
    between = (size_G * (mean_G - rows.mean()) ** 2).sum() / (groups - 1)
    usual = (total - (size_G**2).sum() / total) / (groups - 1)
    if within == between == 0:
        return Undefined("all rows are equal", len(rows))
    return float(np.clip((between - within) / (between + (usual - 1) * within), 0, 1))


# ---------------------------------------------------------------- noise in the labels


def ceiling(noise: float) -> float:
    """The highest accuracy that can be measured on labels of which the share `noise` is the wrong way round.

    >>> ceiling(0.2)
    0.8
    """
    check_noise(noise)
    return 1 - noise


def noisy_accuracy(accuracy: float, noise: float) -> float:
    """What a true accuracy measures on labels flipped at random: noise + (1 - 2 noise) accuracy.

    >>> noisy_accuracy(1.0, 0.2), noisy_accuracy(0.5, 0.2)
    (0.8, 0.5)
    """
    return noise + visible(noise) * accuracy


def true_accuracy(measured: float, noise: float) -> float:
    """The accuracy behind a measured one; above 1 where more was measured than the noise allows (look for a leak).

    >>> round(true_accuracy(0.71, 0.2), 3), round(true_accuracy(0.9, 0.2), 3)
    (0.85, 1.167)
    """
    return (measured - noise) / visible(noise)


def noise_inflation(noise: float) -> float:
    """How many times as many noisy labels are worth as much as clean ones: 1 / (1 - 2 noise)^2.

    Differences shrink by 1 - 2 noise, so what it takes to see them grows by its square. The same factor stands in the
    bound on what robust DPO loses, of the order sqrt(d / n) / (1 - 2 noise) (arXiv 2403.00409).

    >>> round(noise_inflation(0.1), 2), round(noise_inflation(0.25), 2)
    (1.56, 4.0)
    """
    return visible(noise) ** -2


def visible(noise: float) -> float:
    """The part of a difference that noise leaves to be seen."""
    check_noise(noise)
    return 1 - 2 * noise


def check_noise(noise: float) -> None:
    """Raises ValueError for noise at which labels say nothing, or the opposite."""
    if not 0 <= noise < 0.5:
        raise ValueError(f"noise {noise}: it must lie in [0, 0.5); at one half labels say nothing")


# ---------------------------------------------------------------- the training side


@dataclass(frozen=True)
class Point:
    """What one run reached: accuracy on held-out pairs after training on so many, and its standard error."""

    pairs: int
    accuracy: float
    error: float


@dataclass(frozen=True)
class Reach:
    """How many pairs a curve takes to a target: the median over resamples, 95 % limits, and the share that get there.

    Infinite where the curve levels off below the target.
    """

    value: float
    low: float
    high: float
    share: float


@dataclass(frozen=True)
class Curve:
    """accuracy(n) = a - b n^-c fitted to runs, and R fits to resampled runs; n in units of the smallest run.

    `spread` is how far runs of one size lie apart beyond the error of each, where a size has several.
    """

    points: tuple[Point, ...]
    best: Floats
    fits_R3: Floats
    spread: float

    @property
    def largest(self) -> int:
        """The largest size that was measured."""
        return max(point.pairs for point in self.points)

    @property
    def smallest(self) -> int:
        """The smallest size that was measured."""
        return min(point.pairs for point in self.points)

    def at(self, pairs: float) -> Interval:
        """The accuracy expected from so many pairs; ValueError beyond `REACH` times the largest run."""
        self.check(pairs)
        return spread_of(
            *(height(fits, pairs / self.smallest) for fits in (self.best, self.fits_R3)), n=len(self.points)
        )

    def gain(self, before: float, after: float) -> Interval:
        """The change in accuracy expected from training on `after` pairs instead of `before`."""
        self.check(max(before, after))
        low, high = before / self.smallest, after / self.smallest
        changes = (height(fits, high) - height(fits, low) for fits in (self.best, self.fits_R3))
        return spread_of(*changes, n=len(self.points))

    def needed(self, target: float) -> Reach:
        """How many pairs bring the accuracy to `target`. Far from what was measured this is a guess; see `REACH`."""
        pairs_R = self.smallest * size_for(self.fits_R3, target)
        low, middle, high = (float(np.quantile(pairs_R, q, method="nearest")) for q in (0.025, 0.5, 0.975))
        return Reach(middle, low, high, float(np.isfinite(pairs_R).mean()))

    def check(self, pairs: float) -> None:
        """Raises ValueError for a size the runs say nothing about."""
        if not 0 < pairs <= REACH * self.largest:
            raise ValueError(
                f"{pairs:,.0f} pairs are over {REACH:g} times the largest run ({self.largest:,}); measure nearer to it"
            )


def fit_curve(points: Sequence[Point], *, seed: int, top: float = 1.0, resamples: int = RESAMPLES) -> Curve | Undefined:
    """A power law with a ceiling through runs of several sizes: accuracy(n) = a - b n^-c, b >= 0, a <= top.

    The shape is the one learning curves were found to have between the region where little is learned and the
    irreducible error (Hestness et al. 2017, arXiv 1712.00409); that preferences follow it is an assumption which the
    runs can contradict. Intervals come from resampling each run within its error (and the spread between runs of one
    size). Runs judged on the same held-out pairs err together, so the interval of a gain is on the wide side.
    Undefined for fewer than three sizes or sizes too close together.

    >>> curve = fit_curve([Point(n, 0.75 - 0.4 * n**-0.25, 0.01) for n in (500, 1000, 2000, 4000)], seed=0)
    >>> round(curve.at(4000).value, 2), curve.gain(4000, 8000).low < 0.008 < curve.gain(4000, 8000).high
    (0.7, True)
    >>> fit_curve([Point(500, 0.6, 0.01)], seed=0).reason
    'a learning curve takes runs of at least 3 sizes, and there is 1'
    """
    sizes = sorted({point.pairs for point in points})
    if len(sizes) < LEAST_POINTS:
        return Undefined(
            f"a learning curve takes runs of at least {LEAST_POINTS} sizes, and there "
            f"{'is 1' if len(sizes) == 1 else f'are {len(sizes)}'}",
            len(points),
        )
    if sizes[-1] < LEAST_SPAN * sizes[0]:
        return Undefined(
            f"the sizes {sizes[0]:,} to {sizes[-1]:,} lie too close together; let them span 4 times", len(points)
        )
    size_P, accuracy_P, error_P = (
        np.array([getattr(point, name) for point in points], dtype=np.float64)
        for name in ("pairs", "accuracy", "error")
    )
    if not (error_P > 0).all() or not np.isfinite(accuracy_P).all():
        raise ValueError("each point of a curve needs a finite accuracy and a positive error")
    spread = extra_spread(size_P, accuracy_P, error_P)
    error_P = np.hypot(error_P, spread)
    size_P = size_P / sizes[0]
    best = fitted(size_P, accuracy_P[None], error_P, top=top)[0]
    noise_RP = np.random.default_rng(seed).standard_normal((resamples, len(points))) * error_P
    fits_R3 = fitted(size_P, height(best, size_P) + noise_RP, error_P, top=top)
    return Curve(tuple(points), best, fits_R3, spread)


def extra_spread(size_P: Floats, accuracy_P: Floats, error_P: Floats) -> float:
    """Standard deviation between runs of one size beyond their own errors; 0 where no size has two runs."""
    _, group_P = np.unique(size_P, return_inverse=True)
    count = np.bincount(group_P)
    free = len(size_P) - len(count)
    if not free:
        return 0.0
    residual_P = accuracy_P - (np.bincount(group_P, accuracy_P) / count)[group_P]
    twice_P = count[group_P] > 1
    return sqrt(max(0.0, float((residual_P**2).sum()) / free - float((error_P[twice_P] ** 2).mean())))


def fitted(size_P: Floats, accuracy_RP: Floats, error_P: Floats, *, top: float) -> Floats:
    """Weighted least squares: the best (a, b, c) of each row, (R, 3). For each c the rest is a straight line."""
    weight_P = error_P**-2 / (error_P**-2).sum()
    mean_R = accuracy_RP @ weight_P
    found = np.tile(np.array([0.0, 0.0, 1.0]), (len(accuracy_RP), 1))
    least_R = np.full(len(accuracy_RP), np.inf)
    for c in EXPONENTS:
        x_P = size_P**-c
        middle = x_P @ weight_P
        b_R = np.maximum(0, -((accuracy_RP - mean_R[:, None]) @ (weight_P * (x_P - middle))))
        b_R = b_R / (weight_P @ (x_P - middle) ** 2)
        a_R = mean_R + b_R * middle
        over_R = a_R > top
        b_R = np.where(over_R, np.maximum(0, (top - accuracy_RP) @ (weight_P * x_P) / (weight_P @ x_P**2)), b_R)
        a_R = np.minimum(a_R, top)
        loss_R = (accuracy_RP - a_R[:, None] + b_R[:, None] * x_P) ** 2 @ weight_P
        better_R = loss_R < least_R
        least_R = np.where(better_R, loss_R, least_R)
        found[better_R] = np.stack([a_R, b_R, np.full_like(a_R, c)], axis=1)[better_R]
    return found


def height(fits: Floats, size: float | Floats) -> Floats:
    """a - b size^-c of each fit."""
    a, b, c = np.moveaxis(fits, -1, 0)
    return np.asarray(a - b * np.asarray(size, dtype=np.float64) ** -c)


def size_for(fits_R3: Floats, target: float) -> Floats:
    """Where each fit reaches the target, infinite where it does not."""
    a_R, b_R, c_R = fits_R3.T
    room_R = a_R - target
    with np.errstate(divide="ignore", over="ignore", invalid="ignore"):
        size_R = np.where(b_R > 0, (b_R / np.where(room_R > 0, room_R, np.nan)) ** (1 / c_R), 0.0)
    return np.where(room_R > 0, size_R, np.inf)


def spread_of(value: Floats, values_R: Floats, *, n: int) -> Interval:
    """The fit's own value with the 95 % limits of the resamples."""
    low, high = (float(limit) for limit in np.quantile(values_R, [0.025, 0.975]))
    own = float(value)
    return Interval(own, min(low, own), max(high, own), n)
