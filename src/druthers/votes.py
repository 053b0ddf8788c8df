"""What several people said of the same things: how far they agree, whom to believe, and what is then probably true.

A vote is one annotator's answer to which of two responses is better: +1 the first (A), -1 the second (B), 0 a tie.
Which response comes first is arbitrary, so everything here is the same, sides exchanged, when all votes are turned
round. Nothing loops over items: items whose votes are alike are computed once and counted.

Letters: V votes, U units (items), W annotators, G groups of units that are alike, R resamples or rows, K responses.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import sqrt
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.optimize import brentq
from scipy.sparse import csr_matrix
from scipy.special import betaincinv, expit, logsumexp, ndtr

from druthers.stats import Z_95, Estimate, Floats, Interval, Undefined, expanded_tail, wilson

Ints = NDArray[np.int64]
Metric = Literal["nominal", "ordinal", "interval"]

LEVELS = 4
"""Strengths of a preference: 0 not said, 1 slightly, 2 clearly, 3 much better."""
GUESSED = (1.0, 0.65, 0.80, 0.92)
"""Probability that a preference of each strength is right where nothing measures it; one without is taken as it is."""
FEWEST = 50
"""Comparisons from which on a strength is measured and no longer guessed."""
WIDEST = 2000
"""Annotators up to which the reliabilities are inverted together; beyond, each by itself."""


@dataclass(frozen=True)
class Votes:
    """Votes in flat columns: `item_V`, `annotator_V` and `side_V` (+1, 0, -1), all (V,); items and annotators number.

    Raises ValueError for columns that differ in length, numbers out of range and other sides.

    >>> Votes(item_V=[0, 0, 1], annotator_V=[0, 1, 0], side_V=[1, -1, 0], items=2, annotators=2).item_V.shape
    (3,)
    """

    item_V: NDArray[Any]
    annotator_V: NDArray[Any]
    side_V: NDArray[Any]
    items: int
    annotators: int

    def __post_init__(self) -> None:
        for name in ("item_V", "annotator_V", "side_V"):
            column = np.asarray(getattr(self, name))
            object.__setattr__(self, name, column if len(column) else column.astype(np.int64))
        if not len(self.item_V) == len(self.annotator_V) == len(self.side_V):
            raise ValueError("items, annotators and sides of votes must be columns of one length")
        for column, count in ((self.item_V, self.items), (self.annotator_V, self.annotators)):
            if len(column) and not 0 <= column.min() <= column.max() < count:
                raise ValueError(f"a number of {column.min()} to {column.max()} does not lie in 0 to {count - 1}")
        if len(self.side_V) and np.abs(self.side_V).max() > 1:
            raise ValueError("the side of a vote is +1 (the first is better), -1 (the second) or 0 (a tie)")

    def of_items(self, kept_U: NDArray[np.bool_]) -> Votes:
        """The votes of some items only; the numbers stay."""
        kept_V = kept_U[self.item_V]
        return Votes(self.item_V[kept_V], self.annotator_V[kept_V], self.side_V[kept_V], self.items, self.annotators)


# ---------------------------------------------------------------- units that are alike


@dataclass(frozen=True)
class Alike:
    """Units in groups of the same content: the group of each unit, one unit of each group, and their number."""

    group_U: Ints
    example_G: Ints
    count_G: Ints


def mixed(code_V: NDArray[Any], salt: int) -> NDArray[np.uint64]:
    """64 bits that look random for each code (the finaliser of splitmix64, Steele, Lea & Flood 2014)."""
    x = code_V.astype(np.uint64) + np.uint64(salt)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


SALTS = (0x9E3779B97F4A7C15, 0x3C6EF372FE94F82A)


def digests(start_U: Ints, code_V: NDArray[Any]) -> NDArray[np.uint64]:
    """128 bits for what each unit holds, whatever its order: (2, U). Codes sorted by unit, none of which is empty."""
    out: NDArray[np.uint64] = np.stack([np.add.reduceat(mixed(code_V, salt), start_U) for salt in SALTS])
    return out


def alike(digest_2U: NDArray[np.uint64]) -> Alike:
    """Units of the same digest, the groups in the order of their digests."""
    order_U = np.lexsort((digest_2U[1], digest_2U[0]))
    sorted_2U = digest_2U[:, order_U]
    new_U = np.ones(len(order_U), dtype=bool)
    new_U[1:] = (sorted_2U[:, 1:] != sorted_2U[:, :-1]).any(0)
    group_U = np.empty(len(order_U), dtype=np.int64)
    group_U[order_U] = np.cumsum(new_U) - 1
    return Alike(group_U, order_U[new_U], np.bincount(group_U))


def starts(sorted_V: NDArray[Any]) -> Ints:
    """Where each run of equal numbers begins."""
    return np.flatnonzero(np.r_[True, sorted_V[1:] != sorted_V[:-1]]) if len(sorted_V) else np.zeros(0, dtype=np.int64)


# ---------------------------------------------------------------- agreement


def alpha(
    unit_V: ArrayLike,
    value_V: ArrayLike,
    *,
    metric: Metric,
    mirrored: bool = False,
    cluster_V: ArrayLike | None = None,
    seed: int = 0,
    resamples: int = 1000,
) -> Estimate:
    """Krippendorff's alpha of the values that units got, with a 95 % interval from resampling units; n is the units.

    `unit_V`, `value_V` (V,). Units with one value say nothing of agreement and are left out. `mirrored` counts every
    unit a second time with its values negated: for comparisons of two responses, whose order is arbitrary, so that
    alpha does not depend on it. `cluster_V` (V,) names what is resampled instead of the unit (the prompt, where it has
    several units). Undefined where fewer than two units were judged twice or all values are the same.

    alpha = 1 - D_o / D_e; Krippendorff 2011, "Computing Krippendorff's Alpha-Reliability". The interval is a
    percentile one, widened for few units; resampling groups of units that are alike is the same as resampling units.

    >>> found = alpha([0, 0, 1, 1, 2, 2, 3, 3], [1, 1, -1, -1, 1, -1, -1, -1], metric="nominal")
    >>> round(found.value, 4), found.n
    (0.5333, 4)
    >>> alpha([0, 0, 1, 1], [1, 1, 1, 1], metric="nominal").reason
    'all votes are the same, so nothing tells agreement from habit'
    """
    unit, raw = np.asarray(unit_V), np.asarray(value_V, dtype=np.float64)
    cluster = unit if cluster_V is None else np.asarray(cluster_V)
    order = np.lexsort((raw, unit))
    unit, raw, cluster = unit[order], raw[order], cluster[order]
    start_U = starts(unit)
    size_U = np.diff(np.r_[start_U, len(unit)])
    judged_V = np.repeat(size_U > 1, size_U)
    unit, raw, cluster = unit[judged_V], raw[judged_V], cluster[judged_V]
    units = int((size_U > 1).sum())
    if units < 2:
        return Undefined("fewer than two items were judged twice", units)
    values = np.unique(np.r_[raw, -raw] if mirrored else raw)
    if len(values) < 2:
        return Undefined("all votes are the same, so nothing tells agreement from habit", units)
    groups, row_V, code_V = alike_units(unit, np.searchsorted(values, raw))
    feature_GF = contributions(row_V, code_V, values, metric=metric, mirrored=mirrored)
    whole = alphas((groups.count_G @ feature_GF)[None], values, metric=metric)[0]
    weights, feature_GF = of_clusters(cluster[starts(unit)], groups, feature_GF)
    if weights.sum() < 2:
        return Undefined("all items judged twice are of one prompt", units)
    draws_R = resampled_alphas(weights, feature_GF, values, metric=metric, seed=seed, resamples=resamples)
    if not len(draws_R):
        return Undefined("too few votes differ for an interval", units)
    tail = expanded_tail(int(weights.sum()))
    low, high = (float(x) for x in np.quantile(draws_R, [tail, 1 - tail]))
    return Interval(float(whole), min(low, float(whole)), max(high, float(whole)), units)


def alike_units(unit_V: NDArray[Any], code_V: Ints) -> tuple[Alike, Ints, Ints]:
    """Groups of units with the same values, and the values of each group as (group, code) columns."""
    start_U = starts(unit_V)
    groups = alike(digests(start_U, code_V))
    size_G = np.diff(np.r_[start_U, len(unit_V)])[groups.example_G]
    place_P = stretches(start_U[groups.example_G], size_G)
    return groups, np.repeat(np.arange(len(size_G)), size_G), code_V[place_P]


def stretches(first: Ints, size: Ints) -> Ints:
    """The places first, first + 1, ... of several stretches, one after another."""
    ends = np.cumsum(size)
    out: Ints = np.arange(ends[-1] if len(ends) else 0) + np.repeat(first - (ends - size), size)
    return out


def contributions(row_P: Ints, code_P: Ints, values: Floats, *, metric: Metric, mirrored: bool) -> Floats:
    """What a unit of each group adds to the sums that alpha is made of, (G, F); which sums, `alphas` says."""
    size_G = np.bincount(row_P).astype(np.float64)
    if metric == "interval":
        x_P = values[code_P] - (0.0 if mirrored else values.mean())
        sum_G, square_G = np.bincount(row_P, x_P), np.bincount(row_P, x_P * x_P)
        apart_G = 2 * (size_G * square_G - sum_G**2) / (size_G - 1)
        columns = np.stack([apart_G, size_G, sum_G, square_G], axis=1)
        return columns * (2, 2, 0, 2) if mirrored else columns
    count_GC = np.zeros((len(size_G), len(values)))
    np.add.at(count_GC, (row_P, code_P), 1.0)
    if mirrored:
        return coincidences(count_GC, metric=metric) + coincidences(count_GC[:, ::-1], metric=metric)
    return coincidences(count_GC, metric=metric)


def coincidences(count_GC: Floats, *, metric: Metric) -> Floats:
    """Counts of values, and which values met: their total for a nominal alpha, each two of them for an ordinal one."""
    size_G = count_GC.sum(1)
    if metric == "nominal":
        met = ((size_G**2 - (count_GC**2).sum(1)) / (size_G - 1))[:, None]
    else:
        one, other = np.triu_indices(count_GC.shape[1], 1)
        met = 2 * count_GC[:, one] * count_GC[:, other] / (size_G - 1)[:, None]
    return np.concatenate([count_GC, met], axis=1)


def of_clusters(cluster_U: NDArray[Any], groups: Alike, feature_GF: Floats) -> tuple[Ints, Floats]:
    """Weights and features by what is resampled: groups of clusters that hold alike units."""
    order = np.argsort(cluster_U, kind="stable")
    start = starts(cluster_U[order])
    if len(start) == len(cluster_U):
        return groups.count_G, feature_GF
    held = groups.group_U[order]
    of = alike(digests(start, held))
    size = np.diff(np.r_[start, len(order)])[of.example_G]
    place = stretches(start[of.example_G], size)
    ends = np.cumsum(size)
    return of.count_G, np.add.reduceat(feature_GF[held[place]], ends - size, axis=0)


def alphas(sum_RF: Floats, values: Floats, *, metric: Metric) -> Floats:
    """Alpha from the sums of each resample, NaN where all values are the same."""
    if metric == "interval":
        apart, n, total, square = sum_RF.T
        expected = 2 * (n * square - total**2)
    else:
        count_RC, met = sum_RF[:, : len(values)], sum_RF[:, len(values) :]
        n = count_RC.sum(1)
        if metric == "nominal":
            apart, expected = met[:, 0], n**2 - (count_RC**2).sum(1)
        else:
            one, other = np.triu_indices(len(values), 1)
            below_RC = np.cumsum(count_RC, axis=1) - count_RC / 2
            distance = (below_RC[:, other] - below_RC[:, one]) ** 2
            apart = (met * distance).sum(1)
            expected = 2 * (count_RC[:, one] * count_RC[:, other] * distance).sum(1)
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.asarray(1 - (n - 1) * apart / np.where(expected > 0, expected, np.nan))


def resampled_alphas(
    weight_G: Ints, feature_GF: Floats, values: Floats, *, metric: Metric, seed: int, resamples: int
) -> Floats:
    """Alphas of resamples (fewer where many units are unlike); those with one value only have none and are left out."""
    draw, count = np.random.default_rng(seed), int(weight_G.sum())
    resamples = min(resamples, max(200, 50_000_000 // len(weight_G)))
    chunk = max(1, 4_000_000 // max(len(weight_G), feature_GF.shape[1]))
    out: list[Floats] = []
    for begun in range(0, resamples, chunk):
        drawn_RG = draw.multinomial(count, weight_G / count, size=min(chunk, resamples - begun))
        out.append(alphas(drawn_RG @ feature_GF, values, metric=metric))
    found = np.concatenate(out)
    return found[np.isfinite(found)]


def kappa(one_U: ArrayLike, other_U: ArrayLike) -> Estimate:
    """Cohen's kappa of two who labelled the same units, nominal, with the interval of Fleiss, Cohen & Everitt 1969.

    `one_U`, `other_U` (U,). Undefined without variation or with fewer than two units.

    >>> found = kappa([1, 1, 0, 0, 1, 0, 1, 0], [1, 1, 0, 0, 1, 0, 0, 1])
    >>> found.value, found.n
    (0.5, 8)
    """
    a, b = np.asarray(one_U), np.asarray(other_U)
    if a.shape != b.shape or a.ndim != 1:
        raise ValueError(f"labels of shape {a.shape} and {b.shape}: both must have labelled the same units")
    values, code = np.unique(np.r_[a, b], return_inverse=True)
    if len(a) < 2 or len(values) < 2:
        return Undefined("fewer than two items" if len(a) < 2 else "both always said the same", len(a))
    share_CC = np.bincount(code[: len(a)] * len(values) + code[len(a) :], minlength=len(values) ** 2) / len(a)
    share_CC = share_CC.reshape(len(values), -1)
    rows, columns = share_CC.sum(1), share_CC.sum(0)
    seen, chance = float(np.trace(share_CC)), float(rows @ columns)
    found = (seen - chance) / (1 - chance)
    own = np.diag(share_CC) @ (1 - (rows + columns) * (1 - found)) ** 2
    off = share_CC * (columns[:, None] + rows[None, :]) ** 2
    spread = own + (1 - found) ** 2 * (off.sum() - np.trace(off)) - (found - chance * (1 - found)) ** 2
    half = Z_95 * sqrt(max(0.0, float(spread)) / len(a)) / (1 - chance)
    return Interval(found, max(-1.0, found - half), min(1.0, found + half), len(a))


def disagreement(votes: Votes, *, cluster_U: ArrayLike | None = None) -> Estimate:
    """How often two votes on one item, neither a tie, take different sides; n is the items judged so twice.

    Score interval (Wilson) with as many trials as the spread between items is worth: votes of one item are not
    independent. `cluster_U` (U,) are the prompts of the items, where a prompt has several.

    >>> votes = Votes([0, 0, 1, 1, 2, 2, 3], [0, 1, 0, 1, 0, 1, 0], [1, 1, -1, -1, 1, -1, 1], items=4, annotators=2)
    >>> found = disagreement(votes)
    >>> round(found.value, 3), found.n
    (0.333, 3)
    """
    first_U, second_U = (np.bincount(votes.item_V, votes.side_V == side, votes.items) for side in (1, -1))
    apart_U: Floats = (first_U * second_U).astype(np.float64)
    met_U: Floats = (first_U + second_U) * (first_U + second_U - 1) / 2
    judged = int((met_U > 0).sum())
    if cluster_U is not None:
        apart_U, met_U = (np.bincount(cluster_U, of_U).astype(np.float64) for of_U in (apart_U, met_U))
    apart_U, met_U = apart_U[met_U > 0], met_U[met_U > 0]
    if not judged:
        return Undefined("no item was judged twice without a tie")
    rate = float(apart_U.sum() / met_U.sum())
    spread = float(((apart_U - rate * met_U) ** 2).sum() / met_U.sum() ** 2)
    worth = rate * (1 - rate) / spread if spread > 0 else len(met_U)
    trials = max(1, int(min(worth, met_U.sum())))
    found = wilson(min(trials, rate * trials), trials)
    assert isinstance(found, Interval)
    return Interval(rate, min(rate, found.low), max(rate, found.high), judged)


def noise(apart: Estimate) -> Estimate:
    """The share of answers on the wrong side that a disagreement d shows: (1 - sqrt(1 - 2 d)) / 2.

    Two who err independently with probability e disagree with 2 e (1 - e). A model that is judged by such answers is
    right in at most 1 - e of them. A disagreement above one half is taken as one half.

    >>> round(noise(Interval(0.25, 0.2, 0.3, 100)).value, 3)
    0.146
    """
    if isinstance(apart, Undefined):
        return apart
    return apart.map(lambda d: (1 - sqrt(max(0.0, 1 - 2 * d))) / 2)


def with_the_rest(votes: Votes) -> list[Estimate]:
    """For each annotator how often a vote for a side agrees with most of the others' on that item (Wilson); (W,).

    Items on which the others are even, or alone with a tie, do not count.

    >>> votes = Votes([0, 0, 0, 1, 1, 1], [0, 1, 2, 0, 1, 2], [1, 1, -1, -1, -1, -1], items=2, annotators=3)
    >>> [found.value for found in with_the_rest(votes)]
    [1.0, 1.0, 0.5]
    """
    total_U = np.bincount(votes.item_V, votes.side_V, votes.items)
    rest_V = np.sign(total_U[votes.item_V] - votes.side_V)
    counts_V = (votes.side_V != 0) & (rest_V != 0)
    of_V, agrees_V = votes.annotator_V[counts_V], (rest_V == votes.side_V)[counts_V]
    met_W, agreed_W = np.bincount(of_V, minlength=votes.annotators), np.bincount(of_V, agrees_V, votes.annotators)
    return [wilson(float(good), int(n)) for good, n in zip(agreed_W, met_W, strict=True)]


# ---------------------------------------------------------------- Dawid-Skene


@dataclass(frozen=True)
class Crowd:
    """What Dawid and Skene's model says of annotators and items.

    `truth_U3` (U, 3): probability that the first is better, that they tie, that the second is. Of annotators:
    `habit_W5` (W, 5), the probabilities of the right side, a tie and the wrong side where one is better, and of a tie
    and a given side where they tie; `right_W` the share of right ones among their sides, `worth_W` the number of
    checked answers that would tell as much of it. `climb` is the log-posterior at every round.
    """

    truth_U3: Floats
    habit_W5: Floats
    right_W: Floats
    worth_W: Floats
    tied: float
    climb: tuple[float, ...]
    converged: bool

    def reliability(self, annotator: int) -> Interval:
        """How often a side that an annotator takes is right, with the 95 % interval of a Beta posterior."""
        right, worth = float(self.right_W[annotator]), float(self.worth_W[annotator])
        a, b = right * worth + 1, (1 - right) * worth + 1
        low, high = (float(betaincinv(a, b, tail)) for tail in (0.025, 0.975))
        return Interval(right, min(low, right), max(high, right), round(worth))


def dawid_skene(votes: Votes, *, smoothing: float = 1.0, most: int = 2000) -> Crowd:
    """Truth of the items and habits of the annotators, each from the other, by EM.

    Dawid & Skene 1979, Applied Statistics 28:20, with three truths (first better, tie, second better) of which the two
    sides are tied: an annotator errs alike in both directions. `smoothing` answers are added to every cell, so what
    climbs at each round is the log-posterior. It begins with the shares of the votes, which settles that most
    annotators are mostly right; the data alone do not say. Where nobody ever said tie, no item is one. At most `most`
    rounds.

    The same to the last bit whatever the order of the votes, and with all sides exchanged the same, sides exchanged.

    >>> sides = [1, 1, -1] * 20 + [-1, -1, 1] * 20
    >>> crowd = dawid_skene(Votes(np.repeat(range(40), 3), [0, 1, 2] * 40, sides, items=40, annotators=3))
    >>> [round(crowd.reliability(w).value, 2) for w in range(3)], round(float(crowd.truth_U3[0, 0]), 3)
    ([0.98, 0.98, 0.02], 1.0)
    """
    votes = by_item(votes)
    start_U = starts(votes.item_V)
    judged = votes.item_V[start_U]
    code_V = votes.annotator_V.astype(np.int64) * 3 + 1
    plain, turned = (digests(start_U, code_V - s * votes.side_V) for s in (1, -1))
    turn_U = (turned[0] < plain[0]) | ((turned[0] == plain[0]) & (turned[1] < plain[1]))
    groups = alike(np.where(turn_U, turned, plain))
    patterns = patterns_of(votes, groups, start_U, turn_U)
    truth_G3, habit_W5, tied, climb, converged = climbed(patterns, smoothing=smoothing, most=most)
    truth_U3 = np.tile([(1 - tied) / 2, tied, (1 - tied) / 2], (votes.items, 1))
    found_U3 = truth_G3[groups.group_U]
    truth_U3[judged] = np.where(turn_U[:, None], found_U3[:, ::-1], found_U3)
    right_W = habit_W5[:, 0] / (habit_W5[:, 0] + habit_W5[:, 2])
    worth_W = known_as_from(patterns, truth_G3, right_W)
    return Crowd(truth_U3, habit_W5, right_W, worth_W, tied, climb, converged)


def by_item(votes: Votes) -> Votes:
    """The votes in the order of their items; as they are where they stand so."""
    if not (np.diff(votes.item_V) < 0).any():
        return votes
    order = np.argsort(votes.item_V, kind="stable")
    return Votes(votes.item_V[order], votes.annotator_V[order], votes.side_V[order], votes.items, votes.annotators)


@dataclass(frozen=True)
class Patterns:
    """The votes of one item of each group, turned so that both directions are one, and how many items are like it."""

    group_P: Ints
    annotator_P: Ints
    side_P: Ints
    count_G: Floats
    annotators: int


def patterns_of(votes: Votes, groups: Alike, start_U: Ints, turn_U: NDArray[np.bool_]) -> Patterns:
    """The votes of the example of each group, in an order that does not depend on how they were given."""
    size_G = np.diff(np.r_[start_U, len(votes.item_V)])[groups.example_G]
    place_P = stretches(start_U[groups.example_G], size_G)
    group_P = np.repeat(np.arange(len(size_G)), size_G)
    side_P = np.repeat(np.where(turn_U, -1, 1)[groups.example_G], size_G) * votes.side_V[place_P]
    annotator_P = votes.annotator_V[place_P].astype(np.int64)
    order = np.lexsort((side_P, annotator_P, group_P))
    count_G = groups.count_G.astype(np.float64)
    return Patterns(group_P, annotator_P[order], side_P[order], count_G, votes.annotators)


def climbed(
    patterns: Patterns, *, smoothing: float, most: int
) -> tuple[Floats, Floats, float, tuple[float, ...], bool]:
    """EM to its end: truth (G, 3), habits (W, 5), share of ties, log-posterior by round, whether it came to rest."""
    p, groups = patterns, len(patterns.count_G)
    size_G = np.maximum(1, np.bincount(p.group_P, minlength=groups))
    truth_G3 = np.stack([np.bincount(p.group_P, p.side_P == s, groups) / size_G for s in (1, 0, -1)], axis=1)
    ties = bool((p.side_P == 0).any())
    climb: list[float] = []
    habit_W5, tied = habits(p, truth_G3, smoothing=smoothing)
    for _ in range(most):
        truth_G3, reached = truths(p, habit_W5, tied if ties else 0.0)
        climb.append(reached + smoothing * float((np.log(habit_W5) * (1, 1, 1, 1, 2)).sum()))
        before, (habit_W5, tied) = habit_W5, habits(p, truth_G3, smoothing=smoothing)
        if len(before) == 0 or np.abs(habit_W5 - before).max() < 1e-7:
            return truth_G3, habit_W5, tied, tuple(climb), True
    return truth_G3, habit_W5, tied, tuple(climb), False


def habits(patterns: Patterns, truth_G3: Floats, *, smoothing: float) -> tuple[Floats, float]:
    """The M step: habits (W, 5) and the share of ties."""
    p = patterns
    weight_P = p.count_G[p.group_P]
    truth_P3 = truth_G3[p.group_P]
    own_P, other_P = (np.where(p.side_P == s, truth_P3[:, 0], truth_P3[:, 2]) for s in (1, -1))
    decided_P = p.side_P != 0

    def total(of_P: Floats) -> Floats:
        return np.bincount(p.annotator_P, weight_P * of_P, p.annotators).astype(np.float64)

    right, wrong = total(decided_P * own_P), total(decided_P * other_P)
    silent = total(~decided_P * (truth_P3[:, 0] + truth_P3[:, 2]))
    level, forced = total(~decided_P * truth_P3[:, 1]), total(decided_P * truth_P3[:, 1])
    one, two = right + wrong + silent + 3 * smoothing, level + forced + 3 * smoothing
    columns = [(right, one), (silent, one), (wrong, one), (level, two), (forced / 2, two)]
    tied = float(p.count_G @ truth_G3[:, 1] / max(1.0, p.count_G.sum()))
    return np.stack([(top + smoothing) / bottom for top, bottom in columns], axis=1), tied


def truths(patterns: Patterns, habit_W5: Floats, tied: float) -> tuple[Floats, float]:
    """The E step: truth (G, 3) and the log-likelihood of all items."""
    p = patterns
    right, silent, wrong, level, forced = np.log(habit_W5).T[:, p.annotator_P]
    for_first = np.where(p.side_P == 1, right, np.where(p.side_P == 0, silent, wrong))
    for_second = np.where(p.side_P == -1, right, np.where(p.side_P == 0, silent, wrong))
    for_tie = np.where(p.side_P == 0, level, forced)
    score_G3 = np.stack(
        [np.bincount(p.group_P, column, len(p.count_G)) for column in (for_first, for_tie, for_second)],
        axis=1,
        dtype=np.float64,
    )
    with np.errstate(divide="ignore"):
        score_G3 += np.log([(1 - tied) / 2, tied, (1 - tied) / 2])
    whole_G = logsumexp(score_G3, axis=1)
    return np.exp(score_G3 - whole_G[:, None]), float(p.count_G @ whole_G)


def known_as_from(patterns: Patterns, truth_G3: Floats, right_W: Floats) -> Floats:
    """For each annotator the number of checked answers that would tell as much of its reliability, (W,).

    From the observed information about all reliabilities together: what the answers would tell if the truths were
    known, less what is not known of them (Louis 1982, JRSS B 44:226). Expected counts would take guesses at the truth
    for the truth. What the votes leave open (one vote an item; two annotators who only ever meet each other) is so left
    open. The unit is one answer of each annotator, in which a flat prior is worth two.
    """
    p, W = patterns, patterns.annotators
    if not len(p.count_G):
        return np.zeros(W)
    truth_P3, weight_P = truth_G3[p.group_P], p.count_G[p.group_P]
    decided_P = p.side_P != 0
    told_W = np.bincount(p.annotator_P, weight_P * decided_P * (truth_P3[:, 0] + truth_P3[:, 2]), W)
    right_P = right_W[p.annotator_P]
    unit_P = np.sqrt(right_P * (1 - right_P))
    score_2P = np.stack([np.where(p.side_P == s, 1 - right_P, -right_P) * decided_P / unit_P for s in (1, -1)])
    mean_P = score_2P[0] * truth_P3[:, 0] + score_2P[1] * truth_P3[:, 2]
    if W > WIDEST:
        square_P = score_2P[0] ** 2 * truth_P3[:, 0] + score_2P[1] ** 2 * truth_P3[:, 2]
        return np.asarray(np.clip(told_W - np.bincount(p.annotator_P, weight_P * (square_P - mean_P**2), W), 0, told_W))

    def product(column_P: Floats, weight_G: Floats) -> Floats:
        score_GW = csr_matrix((column_P, (p.group_P, p.annotator_P)), shape=(len(p.count_G), W))
        return np.asarray((score_GW.T @ score_GW.multiply(weight_G[:, None]).tocsr()).toarray())

    open_WW = sum(product(score_2P[k], p.count_G * truth_G3[:, 2 * k]) for k in (0, 1)) - product(mean_P, p.count_G)
    value_W, vector_WW = np.linalg.eigh(np.diag(told_W) - open_WW + 2 * np.eye(W))
    spread_W = (vector_WW**2 / np.maximum(value_W, 2.0)).sum(1)
    return np.asarray(np.clip(1 / spread_W - 2, 0.0, told_W))


# ---------------------------------------------------------------- Bradley-Terry


def bradley_terry(wins_RKK: ArrayLike, *, spread: float = 1.0, most: int = 100) -> tuple[Floats, Floats]:
    """Worth of K responses in each of R rows, and how probable it is that one is better than another.

    `wins_RKK` (R, K, K): how often i beat j, a tie half a win each. Returns the worths (R, K), log-odds at the mode of
    the posterior under independent normal priors of deviation `spread`, and (R, K, K) the probability that i is worth
    more than j, in the normal approximation at the mode. Bradley & Terry 1952, Biometrika 39:324.

    >>> worth, better = bradley_terry([[[0, 3, 2], [1, 0, 0.5], [0, 0.5, 0]]])
    >>> worth.round(2).tolist(), better[0, 0].round(2).tolist()
    ([[0.66, -0.22, -0.44]], [0.5, 0.86, 0.88])
    """
    wins = np.asarray(wins_RKK, dtype=np.float64)
    if wins.ndim != 3 or wins.shape[1] != wins.shape[2] or (wins < 0).any() or not np.isfinite(wins).all():
        raise ValueError(f"wins of shape {wins.shape} must be (R, K, K), finite and not negative")
    rows, K = wins.shape[:2]
    prior_KK = np.eye(K) / spread**2
    met_RKK = wins + wins.transpose(0, 2, 1)
    worth_RK = np.zeros((rows, K))
    moving_R = np.ones(rows, dtype=bool)  # a row that is done stays as it is, whatever others take
    for _ in range(most):
        apart_RKK = worth_RK[:, :, None] - worth_RK[:, None, :]
        expected_RKK = met_RKK * expit(apart_RKK)
        slope_RK = (wins - expected_RKK).sum(2) - worth_RK / spread**2
        step_RK = np.linalg.solve(curvature(met_RKK, apart_RKK) + prior_KK, slope_RK[:, :, None])[:, :, 0]
        worth_RK = worth_RK + np.where(moving_R[:, None], np.clip(step_RK, -1, 1), 0.0)
        moving_R &= np.abs(step_RK).max(1, initial=0.0) >= 1e-10
        if not moving_R.any():
            break
    apart_RKK = worth_RK[:, :, None] - worth_RK[:, None, :]
    inverse_RKK = np.linalg.inv(curvature(met_RKK, apart_RKK) + prior_KK)
    own_RK = np.diagonal(inverse_RKK, axis1=1, axis2=2)
    spread_RKK = own_RK[:, :, None] + own_RK[:, None, :] - inverse_RKK - inverse_RKK.transpose(0, 2, 1)
    better_RKK = ndtr(apart_RKK / np.sqrt(spread_RKK + np.eye(K)))
    return worth_RK, better_RKK


def curvature(met_RKK: Floats, apart_RKK: Floats) -> Floats:
    """The negative second derivative of the log-likelihood, (R, K, K)."""
    bend_RKK = met_RKK * expit(apart_RKK) * expit(-apart_RKK)
    diagonal = np.arange(bend_RKK.shape[1])
    out: Floats = -bend_RKK
    out[:, diagonal, diagonal] += bend_RKK.sum(2)
    return out


def spread_of(apart: Estimate, *, least: float = 0.2, greatest: float = 5.0) -> float:
    """The deviation of worths at which two votes disagree as often as was seen; 1 where it was not seen.

    The difference x of two worths is normal with twice the variance, and two votes disagree with 2 s(x) s(-x), s the
    logistic function.

    >>> round(spread_of(Interval(0.25, 0.2, 0.3, 100)), 2), spread_of(Undefined("one vote each"))
    (1.89, 1.0)
    """
    if isinstance(apart, Undefined):
        return 1.0
    node_N, weight_N = np.polynomial.hermite_e.hermegauss(61)
    weight_N = weight_N / weight_N.sum()

    def excess(spread: float) -> float:
        x_N = sqrt(2) * spread * node_N
        return float(weight_N @ (2 * expit(x_N) * expit(-x_N))) - apart.value

    if excess(least) <= 0:
        return least
    return greatest if excess(greatest) >= 0 else float(brentq(excess, least, greatest))


# ---------------------------------------------------------------- strength


@dataclass(frozen=True)
class Strengths:
    """How probable it is that a preference said with each strength (1, 2, 3; 0 whatever its strength) is right, and
    from how many comparisons with others that is known; below `FEWEST` it is guessed."""

    right: tuple[float, ...]
    compared: tuple[int, ...]


def strengths(votes: Votes, level_V: ArrayLike) -> Strengths:
    """From how often a second vote on the item takes the side that the first one took with strength k.

    With q_k that share and e the noise of all, the first is wrong with ((1 - e) - q_k) / (1 - 2 e), held to 0.01 to
    0.5. `level_V` (V,) are whole numbers 0 to 3.

    >>> strengths(Votes([0], [0], [1], items=1, annotators=1), [2]).right
    (1.0, 0.65, 0.8, 0.92)
    """
    level = np.asarray(level_V)
    count_2U = np.stack([np.bincount(votes.item_V, votes.side_V == side, votes.items) for side in (1, -1)])
    decided_V = votes.side_V != 0
    item_V, side_V, level = votes.item_V[decided_V], votes.side_V[decided_V], level[decided_V]
    others_V = count_2U.sum(0)[item_V] - 1
    same_V = count_2U[np.where(side_V == 1, 0, 1), item_V] - 1
    compared = np.bincount(level, others_V, LEVELS)
    agreed = np.bincount(level, same_V, LEVELS)
    compared[0], agreed[0] = others_V.sum(), same_V.sum()
    found = noise(disagreement(votes))
    wrong = found.value if isinstance(found, Interval) else 0.5
    right = list(GUESSED)
    for k in range(LEVELS):
        if compared[k] >= FEWEST and wrong < 0.49:
            own = ((1 - wrong) - agreed[k] / compared[k]) / (1 - 2 * wrong)
            right[k] = 1 - min(0.5, max(0.01, float(own)))
    return Strengths(tuple(right), tuple(int(n) for n in compared))
