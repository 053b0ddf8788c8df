"""Prompts that were held out once, by their hashes: they are held out again, and no later run trains on them unseen.

`heldout-prompts.txt` has one number of 16 hexadecimal digits a line, sorted; it tells nothing of the texts.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from druthers import storage
from druthers.curate.nearness import Hashes, among, once
from druthers.findings import finding
from druthers.records import Finding, InputError, Limits
from druthers.storage import Names

FILE = "heldout-prompts.txt"
AUTO, NONE = "auto", "none"
MOST = 100
"""Runs of another seed beside this one that are looked at, the latest."""
HELD = Limits(warn=0.0)


@dataclass(frozen=True)
class Memory:
    """The prompts of one file, sorted, and the name it is told by.

    `named` is one of the settings, any other is of a run beside this one. `binds`: its prompts are not trained on.
    """

    name: str
    path: Path
    asked_H: Hashes
    named: bool
    binds: bool

    def about(self, asked_N: Hashes) -> dict[str, Any]:
        """As it is written to `summary.json`; `asked_N` are the distinct prompts at hand."""
        found = int(among(asked_N, self.asked_H).sum())
        return {"name": self.name, "sha256": storage.sha256(self.path), "prompts": len(self.asked_H), "found": found}


def remember(folder: Path, asked_H: Hashes) -> None:
    """Write down the prompts that are held out."""
    lines = (f"{number:016x}\n".encode() for number in once(asked_H).tolist())
    with storage.replacing(folder / FILE) as file:
        file.writelines(lines)


def memories(given: Names, *, beside: Path | None, seed: int) -> list[Memory]:
    """The files that `data.held_before` names and those of the runs beside a run directory, in the order of names.

    Of those beside, the ones with the same seed bind where `given` is or holds "auto"; damaged ones are passed over.
    Raises InputError for a file that is named and is none.
    """
    names = storage.several(given)
    found = [Memory(storage.shown(path), file, read_named(path), True, True) for path, file in named_files(given)]
    there = {memory.path.resolve() for memory in found}
    if beside is not None:
        other = [one for one in runs_beside(beside, seed, binds=AUTO in names) if one.path.resolve() not in there]
        found += other
    return found


def named_files(given: Names) -> Iterator[tuple[str, Path]]:
    """What is named, each with its file: itself, or that of the run directory or of its data."""
    for name in storage.several(given):
        if name not in (AUTO, NONE):
            places = [Path(name), Path(name) / "data" / FILE, Path(name) / FILE]
            yield name, next((place for place in places if place.is_file()), places[0])


def read_named(name: str) -> Hashes:
    """The prompts of a file or run that is named; raises InputError where there are none."""
    ((_, path),) = named_files(name)
    numbers = numbers_in(path)
    if numbers is None:
        what = "is not there" if not path.exists() else f"holds no {FILE}" if path.is_dir() else f"is no {FILE}"
        raise InputError(f"data.held_before: {name} {what}; name such a file or the run that wrote it, or use auto")
    return numbers


def runs_beside(run: Path, seed: int, *, binds: bool) -> Iterator[Memory]:
    """What the other runs in the folder of a run directory hold out; of those with other seeds the latest."""
    found = [path for path in run.parent.glob(f"*/data/{FILE}") if path.parents[1] != run]
    alike = {path for path in found if seed_of(path.parents[1]) == seed}
    others = sorted((path for path in found if path not in alike), key=lambda path: path.stat().st_mtime, reverse=True)
    for path in sorted(alike.union(others[:MOST])):
        if (numbers := numbers_in(path)) is not None:
            yield Memory(path.parents[1].name, path, numbers, False, binds and path in alike)


def seed_of(run: Path) -> int | None:
    """The seed of a run, or None where its settings cannot be read."""
    try:
        settings = json.loads((run / "config.json").read_bytes())
        return int(settings["seed"])
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return None


def numbers_in(path: Path) -> Hashes | None:
    """The numbers of a file, sorted, or None where it is not one of ours."""
    try:
        lines = storage.read_bytes(str(path)).split()
        if any(len(line) != 16 for line in lines):
            return None
        return once(np.frombuffer(bytes.fromhex(b"".join(lines).decode("ascii")), dtype=">u8").astype(np.uint64))
    except (InputError, ValueError):
        return None


def binding(known: Sequence[Memory], *, all_: bool) -> Hashes:
    """The prompts that bind, sorted: of all such files, or of those alone that are named in the settings."""
    return once(np.concatenate([np.zeros(0, np.uint64), *(each.asked_H for each in of_those(known, all_=all_))]))


def of_those(known: Sequence[Memory], *, all_: bool) -> list[Memory]:
    """The files that bind."""
    return [memory for memory in known if memory.binds and (all_ or memory.named)]


def bound(known: Sequence[Memory], asked_N: Hashes, *, all_: bool) -> dict[str, Any] | None:
    """The files that bind and how many prompts of theirs are here, as `summary.json` has it; None without any."""
    files, prompts = of_those(known, all_=all_), once(asked_N)
    found = int(among(prompts, binding(known, all_=all_)).sum())
    return {"prompts": found, "files": [each.about(prompts) for each in files]} if files else None


def held_before(asked_N: Hashes, known: Sequence[Memory], *, run: Path) -> list[Finding]:
    """D1.held_before: training prompts that runs beside this one hold out; nothing where there is no such run."""
    prompts, others = once(asked_N), [memory for memory in known if not memory.named]
    if not others or not len(prompts):
        return []
    counts = {memory.name: int(among(prompts, memory.asked_H).sum()) for memory in others}
    worst = max(counts, key=lambda name: counts[name])
    any_ = among(prompts, once(np.concatenate([memory.asked_H for memory in others])))
    share = float(any_.mean())  # counted and not estimated: these are all prompts there are
    named = ", ".join(f"{name} ({count:,})" for name, count in counts.items() if count)
    many = int(any_.sum())
    text = f"{many:,} training prompt{'s are' if many > 1 else ' is'} held out in runs beside this one: {named}."
    action = f"Compare no model on prompts it was trained on; data.held_before={run.parent / worst} keeps them out of"
    action += f" training, and data.heldout={run.parent / worst}/data/heldout.jsonl holds the same pairs out again."
    said = text if any_.any() else "No training prompt is held out in a run beside this one."
    action = action if any_.any() else ""
    return [finding("D1.held_before", share, said, n=len(prompts), unit="share", limits=HELD, action=action)]
