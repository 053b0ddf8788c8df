"""Points of reward against KL, and which method's points beat which other's: dominance, Pareto front, envelopes.

A point is a checkpoint: how far it is from the reference (KL, nats) and how good its answers are (reward). It is beaten
by a point that is nearer *and* better, both strictly. A method is a set of points, of one run or of several that differ
in their seed alone. Every point is known by its values on the same prompts, so a resample of the prompts moves all
points together: what they share cancels, as it should in a comparison.

Source: the comparison of the DPO paper (arXiv 2305.18290, figure 2, left), with intervals.

Letters: K points, G prompts, R resamples.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from druthers.stats import Estimate, Floats, Interval, Undefined, expanded_tail

LEAST_PROMPTS, RESAMPLES = 2, 1000
ROUNDING = 1e-12
GRID = 41
"""Places of equal KL at which two envelopes are compared."""


@dataclass(frozen=True)
class Cloud:
    """The points of one run on the same prompts: KL in nats and reward of each, both (K, G); means over prompts count.

    Raises ValueError for shapes that differ, nothing in them, or values that are not finite.
    """

    kl_KG: Floats
    reward_KG: Floats

    def __post_init__(self) -> None:
        if self.kl_KG.shape != self.reward_KG.shape or self.kl_KG.ndim != 2 or not self.kl_KG.size:
            raise ValueError(f"KL of shape {self.kl_KG.shape} and reward of {self.reward_KG.shape} are no points")
        if not (np.isfinite(self.kl_KG).all() and np.isfinite(self.reward_KG).all()):
            raise ValueError("values of points must be finite")


Method = Sequence[Cloud]
"""The runs of a method: one, or several that differ in their seed alone."""


@dataclass(frozen=True)
class Drawn:
    """A method in every resample: KL and reward of its points, and how often the run of each was drawn, all (R, K)."""

    kl_RK: Floats
    reward_RK: Floats
    times_RK: Floats


@dataclass(frozen=True)
class Resamples:
    """Weights of the prompts (R, G), the first row that of all prompts once; the draw of the runs; and the tails.

    `tail` is that of the scarcer of prompts and runs, `prompt_tail` that of the prompts alone.
    """

    weight_RG: Floats
    draw: np.random.Generator
    tail: float
    prompt_tail: float

    def of(self, method: Method) -> Drawn:
        """The points of a method in every resample; one that has several runs is resampled by run too."""
        kl_RK, reward_RK = (
            np.concatenate([self.weight_RG @ getattr(cloud, name).T for cloud in method], axis=1)
            for name in ("kl_KG", "reward_KG")
        )
        runs, count = len(method), len(self.weight_RG)
        drawn_RM = self.draw.multinomial(runs, [1 / runs] * runs, size=count).astype(np.float64)
        drawn_RM[0] = 1.0
        sizes = [len(cloud.kl_KG) for cloud in method]
        return Drawn(kl_RK, reward_RK, np.repeat(drawn_RM, sizes, axis=1))


def resamples_for(methods: Sequence[Method], *, seed: int, resamples: int) -> Resamples:
    """Resamples of the prompts that all clouds share; raises ValueError where their numbers of prompts differ.

    Where a method has several runs they are few, and so is what is known of their spread: the tail of the interval is
    then that of as many runs, not of as many prompts.
    """
    prompts = {cloud.kl_KG.shape[1] for method in methods for cloud in method}
    if len(prompts) != 1:
        raise ValueError(f"the points are measured on {sorted(prompts)} prompts; take those that all have")
    count = prompts.pop()
    weight_RG = prompt_weights(count, seed=seed, resamples=resamples)
    several = [len(method) for method in methods if len(method) > 1]
    tails = (expanded_tail(fewest) if fewest > 1 else 0.0 for fewest in (min([count, *several]), count))
    return Resamples(weight_RG, np.random.default_rng([seed, 1]), *tails)


@lru_cache(maxsize=8)
def prompt_weights(count: int, *, seed: int, resamples: int) -> Floats:
    """The weight of every prompt in every resample, (R + 1, G), first all prompts once; shared, so never written to."""
    draw = np.random.default_rng([seed, 0])
    weight_RG = draw.multinomial(count, [1 / count] * count, size=resamples + 1) / count
    weight_RG[0] = 1 / count
    return weight_RG


def beaten(kl_K: Floats, reward_K: Floats, by_kl: Floats, by_reward: Floats) -> NDArray[np.bool_]:
    """Which of K points some other point beats: nearer to the reference and better, both strictly.

    >>> beaten(np.array([2.0, 0.5]), np.array([0.4, 0.4]), np.array([1.0]), np.array([0.6])).tolist()
    [True, False]
    """
    if not len(by_kl):
        return np.zeros(len(kl_K), dtype=bool)
    better = (by_kl[None, :] < kl_K[:, None]) & (by_reward[None, :] > reward_K[:, None])
    return np.asarray(better.any(axis=1))


def front(kl_K: Floats, reward_K: Floats) -> list[int]:
    """The points that no other beats, from near to far.

    >>> front(np.array([0.0, 1.0, 2.0, 1.5]), np.array([0.1, 0.5, 0.4, 0.9]))
    [0, 1, 3]
    """
    free = np.flatnonzero(~beaten(kl_K, reward_K, kl_K, reward_K))
    return [int(i) for i in free[np.lexsort((-reward_K[free], kl_K[free]))]]


def dominated(of: Method, by: Method, *, seed: int, resamples: int = RESAMPLES) -> Estimate:
    """Share of the points of one method that points of another beat, with a conservative 95 % interval.

    Whether a point is beaten turns on two differences, in KL and in reward, to each point of the other method. The
    limits of all of them hold together (largest studentised deviation over resamples of the prompts), so the low limit
    counts points that are surely beaten, and the high one those that may be. The percentiles of the share itself would
    be too narrow where points lie close: there a resample shows whichever point luck put in front. A method of several
    runs is resampled by run too.
    """
    luck = resamples_for((of, by), seed=seed, resamples=resamples)
    ours, theirs = luck.of(of), luck.of(by)
    gap_R2KJ = np.stack(
        [
            ours.kl_RK[:, :, None] - theirs.kl_RK[:, None, :],
            theirs.reward_RK[:, None, :] - ours.reward_RK[:, :, None],
        ],
        axis=1,
    )
    reach_2KJ = together(gap_R2KJ, tail=luck.prompt_tail)
    value, low, high = (
        share_beaten((gap_R2KJ[0] + side * reach_2KJ > 0).all(0), ours.times_RK, theirs.times_RK) for side in (0, -1, 1)
    )
    limits = float(np.quantile(low[1:], luck.tail)), float(np.quantile(high[1:], 1 - luck.tail))
    share_R = np.concatenate([value[:1], limits])
    return interval_of(share_R, replace(luck, tail=0.0), n=ours.kl_RK.shape[1], prompts=of[0].kl_KG.shape[1])


def together(gap_R2KJ: Floats, *, tail: float) -> Floats:
    """How far every difference may be off, so that all of them hold at once; zero where resamples agree."""
    off = np.abs(gap_R2KJ[1:] - gap_R2KJ[0])
    error = gap_R2KJ[1:].std(axis=0)
    worst_R = np.divide(off, error, out=np.zeros_like(off), where=error > ROUNDING).max(axis=(1, 2, 3))
    return np.asarray(float(np.quantile(worst_R, 1 - 2 * tail)) * np.where(error > ROUNDING, error, 0.0))


def share_beaten(beats_KJ: NDArray[np.bool_], times_RK: Floats, by_times_RJ: Floats) -> Floats:
    """Share of K points that some of J points beats, in every draw of the runs they belong to, (R,)."""
    lost_RK = ((by_times_RJ > 0).astype(np.float64) @ beats_KJ.T.astype(np.float64)) > 0
    return np.asarray((lost_RK * times_RK).sum(1) / times_RK.sum(1))


def advantage(of: Method, over: Method, start_G: Floats, *, seed: int, resamples: int = RESAMPLES) -> Estimate:
    """Reward of one method minus that of another at equal KL, the mean over the range of KL that both reach.

    The reward of a method at a KL is its upper concave envelope there, which begins at the reference: `start_G` is the
    reference's reward on the same prompts, at a KL of 0. Undefined where the ranges do not meet. The range is that of
    the points as measured, and stays in every resample.
    """
    most = min(max(float(cloud.kl_KG.mean(axis=1).max()) for cloud in one) for one in (of, over))
    if most <= 0:
        return Undefined("the two have no range of KL in common")
    luck = resamples_for((of, over), seed=seed, resamples=resamples)
    start_R, grid = luck.weight_RG @ start_G, np.linspace(0.0, most, GRID)
    levels = [mean_envelope(luck.of(one), start_R, grid) for one in (of, over)]
    points = sum(len(cloud.kl_KG) for one in (of, over) for cloud in one)
    return interval_of(levels[0] - levels[1], luck, n=points, prompts=len(start_G))


def interval_of(value_R: Floats, luck: Resamples, *, n: int, prompts: int) -> Estimate:
    """The first value with the percentile limits of the others."""
    if prompts < LEAST_PROMPTS:
        return Undefined("only one prompt, so no spread between prompts can be seen", n)
    value = float(value_R[0])
    low, high = (float(x) for x in np.quantile(value_R[1:], [luck.tail, 1 - luck.tail]))
    return Interval(value, min(low, value), max(high, value), n)


def mean_envelope(drawn: Drawn, start_R: Floats, grid: Floats) -> Floats:
    """The mean over the grid of the envelope in every resample, (R,)."""
    rows = zip(drawn.kl_RK, drawn.reward_RK, drawn.times_RK > 0, start_R, strict=True)
    return np.array([envelope(kl[on], reward[on], start=start, at=grid).mean() for kl, reward, on, start in rows])


def envelope(kl_K: Floats, reward_K: Floats, *, start: float, at: Floats) -> Floats:
    """The least concave curve from (0, start) that no point lies above, read at `at`; flat beyond the farthest point.

    >>> points = np.array([1.0, 2.0, 3.0]), np.array([0.5, 0.6, 1.5])
    >>> envelope(*points, start=0.0, at=np.array([0.0, 1.5, 3.0, 4.0])).tolist()
    [0.0, 0.75, 1.5, 1.5]
    """
    hull: list[tuple[float, float]] = []
    for x, y in sorted([(0.0, start), *zip(np.maximum(kl_K, 0.0).tolist(), reward_K.tolist(), strict=True)]):
        if hull and hull[-1][0] == x:
            y = max(y, hull.pop()[1])
        while len(hull) > 1 and rises_more(hull[-2], hull[-1], (x, y)):
            hull.pop()
        hull.append((x, y))
    return np.interp(at, [x for x, _ in hull], [y for _, y in hull])


def rises_more(a: tuple[float, float], b: tuple[float, float], c: tuple[float, float]) -> bool:
    """Whether b lies on or below the line from a to c."""
    return (b[1] - a[1]) * (c[0] - a[0]) <= (c[1] - a[1]) * (b[0] - a[0])
