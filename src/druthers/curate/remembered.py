"""Prompts that were held out once, by their hashes: a later run beside it must not train on them unseen.

`heldout-prompts.txt` has one number of 16 hexadecimal digits a line, sorted; it tells nothing of the texts.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from druthers import storage
from druthers.curate.nearness import Hashes
from druthers.findings import finding
from druthers.records import Finding, InputError, Limits

FILE = "heldout-prompts.txt"
MOST = 100
"""Runs beside this one that are looked at, the latest."""
HELD = Limits(warn=0.0)


def remember(folder: Path, asked_H: Hashes) -> None:
    """Write down the prompts that are held out."""
    lines = (f"{number:016x}\n".encode() for number in np.unique(asked_H).tolist())
    with storage.replacing(folder / FILE) as file:
        file.writelines(lines)


def remembered(run: Path) -> dict[str, Hashes]:
    """What the runs beside a run directory hold out, by their names; a damaged file is passed over."""
    found = [path for path in run.parent.glob(f"*/data/{FILE}") if path.parents[1] != run]
    latest = sorted(found, key=lambda path: path.stat().st_mtime, reverse=True)[:MOST]
    return {path.parents[1].name: numbers for path in sorted(latest) if (numbers := numbers_in(path)) is not None}


def numbers_in(path: Path) -> Hashes | None:
    """The numbers of a file, or None where it is not one of ours."""
    try:
        lines = storage.read_bytes(str(path)).split()
        return np.array([int(line, 16) for line in lines], dtype=np.uint64)
    except (InputError, ValueError, OverflowError):
        return None


def held_before(asked_N: Hashes, others: Mapping[str, Hashes], *, run: Path) -> list[Finding]:
    """D1.held_before: training prompts that runs beside this one hold out; nothing where there is no such run."""
    prompts = np.unique(asked_N)
    if not others or not len(prompts):
        return []
    counts = {name: int(np.isin(prompts, numbers).sum()) for name, numbers in others.items()}
    worst = max(counts, key=lambda name: counts[name])
    any_ = np.isin(prompts, np.concatenate(list(others.values())))
    share = float(any_.mean())  # counted and not estimated: these are all prompts there are
    named = ", ".join(f"{name} ({count:,})" for name, count in counts.items() if count)
    many = int(any_.sum())
    text = f"{many:,} training prompt{'s are' if many > 1 else ' is'} held out in runs beside this one: {named}."
    action = f"Compare no model on prompts it was trained on; data.heldout={run.parent / worst}/data/heldout.jsonl"
    action += " holds the same pairs out again."
    said = text if any_.any() else "No training prompt is held out in a run beside this one."
    action = action if any_.any() else ""
    return [finding("D1.held_before", share, said, n=len(prompts), unit="share", limits=HELD, action=action)]
