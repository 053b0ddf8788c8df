"""Runs against one another, pair by pair: whose answers win, whose points are beaten, who ranks more pairs right.

Every comparison is paired by what both runs share (prompts, held-out pairs). Where they share too little, or were not
measured in the same way, there is no number but a reason.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations, permutations

import numpy as np

from druthers.frontiers import Cloud, advantage, beaten, dominated, front
from druthers.report.compared.entries import Entry, Point
from druthers.stats import (
    Estimate,
    Floats,
    Interval,
    Undefined,
    detectable_points,
    mcnemar,
    paired_difference,
    win_rate,
)

LEAST = 2
"""Prompts or pairs in common below which nothing is compared."""
LEVEL = 0.05


@dataclass(frozen=True)
class Match:
    """One run's answers against another's on the same prompts; `p_holm` is corrected for all matches of the matrix."""

    a: str
    b: str
    win_rate: Estimate
    wins: int = 0
    ties: int = 0
    losses: int = 0
    p: float = 1.0
    p_holm: float = 1.0
    detectable_points: float | None = None


@dataclass(frozen=True)
class Method:
    """One run, or several that differ in `seed` alone."""

    name: str
    runs: Sequence[Entry]


@dataclass(frozen=True)
class Duel:
    """Which share of the points of a method another beats on both axes, on how many prompts."""

    of: str
    by: str
    share: Estimate
    points: int
    prompts: int


@dataclass(frozen=True)
class Lead:
    """Reward of a method minus that of another at equal KL, the mean over the range that both reach."""

    of: str
    over: str
    gap: Estimate
    reach: float


# ---------------------------------------------------------------- answers


def matches(entries: Sequence[Entry], *, seed: int) -> list[Match]:
    """Every two runs whose answers were judged alike, with Holm's correction over all of them."""
    found = [match(a, b, seed=seed) for a, b in combinations(entries, 2)]
    played = [one for one in found if isinstance(one.win_rate, Interval)]
    corrected = iter(holm([one.p for one in played]))
    return [replace(one, p_holm=next(corrected)) if isinstance(one.win_rate, Interval) else one for one in found]


def match(a: Entry, b: Entry, *, seed: int) -> Match:
    """How often a's answer scores higher than b's to the same prompt, ties half."""
    why = why_no_match(a, b)
    if why or a.judged is None or b.judged is None:
        return Match(a.name, b.name, Undefined(why))
    common = sorted(a.judged.scores.keys() & b.judged.scores.keys())
    if len(common) < LEAST:
        return Match(a.name, b.name, Undefined("they answered no prompts in common"))
    gaps = np.array([a.judged.scores[prompt] - b.judged.scores[prompt] for prompt in common])
    won, lost = int((gaps > 0).sum()), int((gaps < 0).sum())
    ties = len(common) - won - lost
    rate = win_rate(0.5 + 0.5 * np.sign(gaps), common, seed=seed)
    p = mcnemar(won, lost)
    return Match(a.name, b.name, rate, won, ties, lost, p, p, detectable_points(len(common), ties / len(common)))


def why_no_match(a: Entry, b: Entry) -> str:
    """Why the answers of two runs cannot be compared; empty where they can."""
    for one in (a, b):
        if one.judged is None:
            return f"the answers of {one.name} were not scored"
    if a.judged and b.judged and a.judged.judged_as != b.judged.judged_as:
        if a.judged.judged_as[:2] != b.judged.judged_as[:2]:
            return "they were judged by different rubrics"
        return "their answers were sampled in different ways"
    return ""


def holm(p_values: Sequence[float]) -> list[float]:
    """P-values corrected for as many tests; Holm 1979, Scandinavian Journal of Statistics 6:65.

    >>> [round(p, 3) for p in holm([0.01, 0.04, 0.03])]
    [0.03, 0.06, 0.06]
    """
    order, found, so_far = sorted(range(len(p_values)), key=p_values.__getitem__), [0.0] * len(p_values), 0.0
    for place, i in enumerate(order):
        so_far = max(so_far, min(1.0, (len(p_values) - place) * p_values[i]))
        found[i] = so_far
    return found


# ---------------------------------------------------------------- held-out pairs


def accuracy_gap(first: Entry, other: Entry, *, seed: int) -> Estimate:
    """Accuracy of `other` minus that of `first` on the held-out pairs of both, resampled by prompt."""
    if not first.right or not other.right:
        name = first.name if not first.right else other.name
        return Undefined(f"{name} has no outcomes of held-out pairs at its kept step")
    common = sorted(first.right.keys() & other.right.keys())
    if len(common) < LEAST:
        return Undefined("they hold out no pairs in common")
    before, after = ([one.right[pair] for pair in common] for one in (first, other))
    labels = [first.prompts.get(pair, other.prompts.get(pair, pair)) for pair in common]
    return paired_difference(before, after, labels, seed=seed)


# ---------------------------------------------------------------- points


def methods_of(entries: Sequence[Entry]) -> list[Method]:
    """Runs that differ in their seed alone as one method, in the order of the runs."""
    groups: dict[object, list[Entry]] = {}
    for entry in entries:
        groups.setdefault(likeness(entry), []).append(entry)
    found: list[Method] = []
    for runs in groups.values():
        if len({run.seed for run in runs}) == len(runs):
            found.append(Method(" + ".join(run.name for run in runs), runs))
        else:  # the same settings and seed twice: copies, whose spread would say nothing
            found += [Method(run.name, [run]) for run in runs]
    order = {entry.name: i for i, entry in enumerate(entries)}
    return sorted(found, key=lambda method: order[method.runs[0].name])


def likeness(entry: Entry) -> object:
    """What two runs share that differ in their seed alone."""
    if not entry.settings:
        return entry.path
    settings = tuple(sorted((key, value) for key, value in entry.settings.items() if key != "seed"))
    return settings, entry.data.get("pairs"), entry.data.get("reference")


def duels(methods: Sequence[Method], *, seed: int) -> list[Duel]:
    """Every method's points against every other's."""
    return [duel(of, by, seed=seed) for of, by in permutations(methods, 2)]


def duel(of: Method, by: Method, *, seed: int) -> Duel:
    """Which share of the points of `of` is beaten by `by`."""
    common = common_prompts([*of.runs, *by.runs])
    if isinstance(common, str):
        return Duel(of.name, by.name, Undefined(common), 0, 0)
    ours, theirs = clouds(of.runs, common), clouds(by.runs, common)
    count = sum(len(cloud.kl_KG) for cloud in ours)
    return Duel(of.name, by.name, dominated(ours, theirs, seed=seed), count, len(common))


def leads(methods: Sequence[Method], *, seed: int) -> list[Lead]:
    """Every two methods at equal KL."""
    found = []
    for of, over in combinations(methods, 2):
        common = common_prompts([*of.runs, *over.runs])
        if isinstance(common, str):
            found.append(Lead(of.name, over.name, Undefined(common), 0.0))
            continue
        both = clouds(of.runs, common), clouds(over.runs, common)
        reach = min(max(float(cloud.kl_KG.mean(axis=1).max()) for cloud in one) for one in both)
        gap = advantage(*both, start_of(of.runs[0], common), seed=seed)
        found.append(Lead(of.name, over.name, gap, reach))
    return found


def common_prompts(runs: Sequence[Entry]) -> list[str] | str:
    """The prompts that every point of the runs was measured on, or why the points cannot be compared."""
    for run in runs:
        if not run.trained_points:
            return f"{run.name} has no points along training"
    points = [point for run in runs for point in run.trained_points]
    kinds = {point.measured_as for point in points}
    if len(kinds) > 1:
        return unlike(points)
    if not all(point.by_prompt for point in points):
        return "the points along training have no reward"
    common = set.intersection(*(set(point.by_prompt) for point in points))
    return sorted(common) if len(common) >= LEAST else "the points were measured on no prompts in common"


def unlike(points: Sequence[Point]) -> str:
    """In what the points of several runs were not measured alike."""
    names = ("scorer", "scorer", "reference", "longest answer", "temperature")
    columns = zip(*(point.measured_as for point in points), strict=True)
    differ = dict.fromkeys(name for name, column in zip(names, columns, strict=True) if len(set(column)) > 1)
    return f"their points were not measured alike ({', '.join(differ)})"


def clouds(runs: Sequence[Entry], prompts: Sequence[str]) -> list[Cloud]:
    """The points of runs on the prompts."""
    found = []
    for run in runs:
        values = np.array([[point.by_prompt[prompt] for prompt in prompts] for point in run.trained_points])
        found.append(Cloud(values[:, :, 0], values[:, :, 1]))
    return found


def start_of(run: Entry, prompts: Sequence[str]) -> Floats:
    """The reward of the reference's answers to the prompts."""
    point = run.trained_points[0]
    return np.array([point.by_prompt[prompt][2] for prompt in prompts], dtype=np.float64)


def on_front(entries: Sequence[Entry], measure: Callable[[Point], Estimate]) -> dict[str, list[int]]:
    """The steps of each run's points that no point of any run beats, by the estimates as they are drawn."""
    drawn = [
        (entry.name, point.step, point.kl.value, found.value)
        for entry in entries
        for point in entry.trained_points
        if isinstance(point.kl, Interval) and isinstance(found := measure(point), Interval)
    ]
    if not drawn:
        return {}
    kl, height = (np.array([row[i] for row in drawn], dtype=np.float64) for i in (2, 3))
    steps: dict[str, list[int]] = {}
    for i in front(kl, height):
        steps.setdefault(drawn[i][0], []).append(drawn[i][1])
    return steps


def beaten_by_any(entries: Sequence[Entry], measure: Callable[[Point], Estimate]) -> Mapping[str, tuple[int, int]]:
    """How many of each run's points some point of another run beats, and how many it has."""
    found = {}
    for entry in entries:
        own = drawn_points([entry], measure)
        others = drawn_points([other for other in entries if other is not entry], measure)
        if len(own[0]):
            found[entry.name] = int(beaten(*own, *others).sum()), len(own[0])
    return found


def drawn_points(entries: Sequence[Entry], measure: Callable[[Point], Estimate]) -> tuple[Floats, Floats]:
    """KL and height of the points of runs."""
    both = [
        (point.kl.value, found.value)
        for entry in entries
        for point in entry.trained_points
        if isinstance(point.kl, Interval) and isinstance(found := measure(point), Interval)
    ]
    values = np.array(both, dtype=np.float64).reshape(-1, 2)
    return values[:, 0], values[:, 1]
