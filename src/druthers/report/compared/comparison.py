"""What is said of several runs, before it is put into words: settings, points, duels, matches, gaps and remarks."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from druthers.records import InputError
from druthers.report.compared import matches
from druthers.report.compared.entries import NOT_RECORDED, Entry, Point, is_run, read_entry
from druthers.report.compared.matches import Duel, Lead, Match, Method
from druthers.report.compared.trl import read_trl, state_file
from druthers.stats import Estimate, Interval, Undefined, detectable_points

SEED = 0
"""The seed of every interval, so that the same runs give the same page."""
LEAST_RUNS = 2
FEW = 256
"""Prompts below which a page says what so few can show (evaluation on 256 prompts and more is asked for)."""
Measure = Callable[[Point], Estimate]
MEASURES: dict[str, Measure] = {"reward": lambda point: point.reward, "win_rate": lambda point: point.win_rate}


@dataclass(frozen=True)
class Comparison:
    """Everything a table or a page about runs says, before it is put into words.

    `gaps` are differences in accuracy to the first run, by run; `differing` is by setting and run; `measure` is what
    the points are drawn by, with `drawn` the runs whose points can stand in one picture.
    """

    entries: Sequence[Entry]
    differing: Mapping[str, Mapping[str, str]]
    methods: Sequence[Method]
    drawn: Sequence[Entry]
    measure: str
    scorer: str
    front: Mapping[str, Sequence[int]]
    beaten: Mapping[str, tuple[int, int]]
    duels: Sequence[Duel]
    leads: Sequence[Lead]
    matches: Sequence[Match]
    gaps: Mapping[str, Estimate]
    remarks: Sequence[str]

    def as_dict(self) -> dict[str, Any]:
        """JSON values under the documented keys."""
        return {
            "runs": [self.run(entry) for entry in self.entries],
            "settings": {key: dict(values) for key, values in self.differing.items()},
            "frontier": {
                "measure": self.measure,
                "scorer": self.scorer,
                "points": [point for entry in self.drawn for point in self.points(entry)],
            },
            "dominance": [asdict(duel) | {"share": duel.share.as_dict()} for duel in self.duels],
            "at_equal_kl": [asdict(lead) | {"gap": lead.gap.as_dict()} for lead in self.leads],
            "wins": [asdict(match) | {"win_rate": match.win_rate.as_dict()} for match in self.matches],
            "remarks": list(self.remarks),
        }

    def run(self, entry: Entry) -> dict[str, Any]:
        """One run."""
        won = self.beaten.get(entry.name)
        return {
            "name": entry.name,
            "path": str(entry.path),
            "kind": entry.kind,
            "kept_step": entry.kept,
            "measures": {key: found.as_dict() for key, found in entry.measures.items()},
            "accuracy_gap": self.gaps[entry.name].as_dict() if entry.name in self.gaps else None,
            "points": len(entry.trained_points),
            "points_beaten": won[0] if won else None,
        }

    def points(self, entry: Entry) -> list[dict[str, Any]]:
        """The points of a run that are drawn."""
        return [
            {
                "run": entry.name,
                "step": point.step,
                "kl": point.kl.as_dict(),
                "reward": point.reward.as_dict(),
                "win_rate": point.win_rate.as_dict(),
                "length": point.length,
                "on_front": point.step in self.front.get(entry.name, ()),
            }
            for point in entry.points
        ]


def compare(paths: Sequence[Path]) -> Comparison:
    """Compare the runs in some folders; raises InputError for a folder that is no run, and where none is named."""
    entries, remarks = read_entries(paths)
    drawn, scorer = drawable(entries)
    measure = (
        "reward" if any(isinstance(p.reward, Interval) for one in drawn for p in one.trained_points) else "win_rate"
    )
    methods = matches.methods_of([one for one in entries if one.kind == "druthers"])
    found = Comparison(
        entries=entries,
        differing=differing(entries),
        methods=methods,
        drawn=drawn,
        measure=measure,
        scorer=scorer,
        front=matches.on_front(drawn, MEASURES[measure]),
        beaten=matches.beaten_by_any(drawn, MEASURES[measure]),
        duels=matches.duels([m for m in methods if any(run.trained_points for run in m.runs)], seed=SEED),
        leads=matches.leads([m for m in methods if any(run.trained_points for run in m.runs)], seed=SEED),
        matches=matches.matches([one for one in entries if one.judged], seed=SEED),
        gaps={one.name: matches.accuracy_gap(entries[0], one, seed=SEED) for one in entries[1:]},
        remarks=remarks,
    )
    return replace(found, remarks=[*remarks, *said(found)])


# ---------------------------------------------------------------- reading


def read_entries(paths: Sequence[Path]) -> tuple[list[Entry], list[str]]:
    """The runs under names that differ, a folder named twice once; and what there is to say about the folders."""
    if not paths:
        raise InputError("no run is named; name one or more, as in `druthers compare runs/a runs/b`")
    places: dict[Path, Path] = {}
    remarks = []
    for path in paths:
        real = path.resolve()
        if real in places:
            remarks.append(f"{path} is the same folder as {places[real]} and stands here once.")
        places.setdefault(real, path)
    names = names_of(list(places))
    return [read_any(path, name=name) for path, name in zip(places.values(), names, strict=True)], remarks


def names_of(paths: Sequence[Path]) -> list[str]:
    """The shortest ends of the paths that tell them apart.

    >>> names_of([Path("/a/x"), Path("/b/x"), Path("/b/y")])
    ['a/x', 'b/x', 'y']
    """
    found = []
    for path in paths:
        parts, size = path.parts, 1
        while size < len(parts) and sum(other.parts[-size:] == parts[-size:] for other in paths) > 1:
            size += 1
        found.append("/".join(part for part in parts[-size:] if part != "/") or "/")
    return [printable(name) for name in found]


def printable(name: str) -> str:
    """A name that can be written as UTF-8: bytes that are none become question marks."""
    return name.encode("utf-8", "replace").decode("utf-8")


def read_any(path: Path, *, name: str) -> Entry:
    """A run of whichever kind; raises InputError for a folder of another kind."""
    try:
        if is_run(path):
            return read_entry(path, name=name)
        if state_file(path) is not None:
            return read_trl(path, name=name)
    except OSError as fault:
        raise InputError(f"{path}: cannot be read: {fault.strerror}; name a run directory") from None
    raise InputError(
        f"{path}: is neither a run directory (a config.json of druthers) nor a TRL output folder "
        "(trainer_state.json); name one that is"
    )


# ---------------------------------------------------------------- settings and points


def differing(entries: Sequence[Entry]) -> dict[str, dict[str, str]]:
    """The settings in which the runs differ, by setting and run; what a TRL folder does not say is not recorded."""
    keys = dict.fromkeys(key for entry in entries for key in entry.settings)
    own = [entry for entry in entries if entry.kind == "druthers"] or entries
    shown = [key for key in keys if len({one.settings.get(key) for one in own}) > 1 or unlike_others(key, entries)]
    return {key: {one.name: one.settings.get(key, NOT_RECORDED) for one in entries} for key in shown}


def unlike_others(key: str, entries: Sequence[Entry]) -> bool:
    """Whether runs of different kinds say different things of a setting that all of them say."""
    said_there = [one.settings.get(key) for one in entries]
    return None not in said_there and len(set(said_there)) > 1


def drawable(entries: Sequence[Entry]) -> tuple[list[Entry], str]:
    """The runs with points that were measured alike, as most of them were, and the name of their scorer.

    Where no run has points along training, the end of each stands for it: win rate and KL of the evaluation.
    """
    kinds = Counter(entry.points[-1].measured_as for entry in entries if entry.trained_points)
    if not kinds:
        return [with_end(entry) for entry in entries if end_of(entry)], ""
    most = kinds.most_common(1)[0][0]
    alike = [
        replace(entry, points=[point for point in entry.points if point.measured_as == most])
        for entry in entries
        if entry.trained_points and entry.points[-1].measured_as == most
    ]
    return alike, str(most[0] or "")


def with_end(entry: Entry) -> Entry:
    """A run with its end as its one point."""
    point = end_of(entry)
    return replace(entry, points=[point] if point else [])


def end_of(entry: Entry) -> Point | None:
    """Win rate and KL of the kept checkpoint, where both were measured."""
    rate, kl = (entry.measures.get(key, Undefined(NOT_RECORDED)) for key in ("win_rate", "kl"))
    if not isinstance(rate, Interval) or not isinstance(kl, Interval):
        return None
    length = entry.measures["length"]
    tokens = length.value if isinstance(length, Interval) else None
    return Point(int(entry.kept or 1), Undefined(NOT_RECORDED), kl, rate, tokens, {}, ())


# ---------------------------------------------------------------- remarks


def said(found: Comparison) -> list[str]:
    """What a reader must know before taking the numbers for more than they are."""
    return [
        *(f"{entry.name} {remark}." for entry in found.entries for remark in entry.remarks),
        *unlike_data(found.entries),
        *not_drawn(found),
        *copies(found),
        *few_prompts(found),
        *lone_seeds(found),
    ]


def unlike_data(entries: Sequence[Entry]) -> list[str]:
    """Runs that did not learn from the same, are not held against the same, or began elsewhere."""
    remarks = []
    for key, words in (
        ("pairs", "learned from different preferences, so a difference between them is one of the data as well"),
        ("heldout", "hold out different pairs; accuracies are compared on those that two runs share"),
        ("reference", "began from different weights, so their KL is measured from different places"),
    ):
        groups: dict[str, list[str]] = {}
        for entry in entries:
            if entry.data.get(key):
                groups.setdefault(entry.data[key], []).append(entry.name)
        if len(groups) > 1:
            remarks.append(f"{' / '.join(', '.join(names) for names in groups.values())}: {words}.")
    return remarks


def not_drawn(found: Comparison) -> list[str]:
    """Runs whose points are missing in the picture, and why."""
    inside = {entry.name for entry in found.drawn}
    outside = [entry for entry in found.entries if entry.name not in inside and entry.kind == "druthers"]
    apart = [entry.name for entry in outside if entry.trained_points]
    without = [entry.name for entry in outside if not entry.trained_points]
    remarks = []
    if apart:
        remarks.append(
            f"{', '.join(apart)}: measured along training by another scorer, reference or length limit than the "
            "others, so their points are not drawn or compared with them."
        )
    if without:
        remarks.append(
            f"{', '.join(without)}: no points along training; set evaluate.along, or run "
            "`druthers evaluate RUN --along N`."
        )
    return remarks


def copies(found: Comparison) -> list[str]:
    """Runs with the same settings and seed."""
    groups: dict[object, list[str]] = {}
    for entry in found.entries:
        groups.setdefault((matches.likeness(entry), entry.seed), []).append(entry.name)
    return [
        f"{' and '.join(names)} have the same settings and seed, so they should be the same but for the machine."
        for names in groups.values()
        if len(names) > 1
    ]


def few_prompts(found: Comparison) -> list[str]:
    """What so few prompts can show at all."""
    sizes = [one.win_rate.n for one in found.matches if isinstance(one.win_rate, Interval)]
    sizes += [duel.prompts for duel in found.duels if duel.prompts]
    if not sizes or min(sizes) >= FEW:
        return []
    points = detectable_points(min(sizes), 0.0)
    return [
        f"Some comparisons rest on as few as {min(sizes)} prompts: without ties so many show a win rate that is "
        f"{points:.1f} points or more from 50 %, four times of five; a smaller difference may be there and not be seen."
    ]


def lone_seeds(found: Comparison) -> list[str]:
    """Whether the luck of the training is in the intervals."""
    if len(found.methods) < LEAST_RUNS or any(len(method.runs) > 1 for method in found.methods):
        return []
    return [
        "No two runs differ in their seed alone, so the intervals hold the luck of the prompts and not that of the "
        "training; three seeds of the best settings would show it."
    ]
