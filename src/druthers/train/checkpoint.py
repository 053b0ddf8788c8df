"""Checkpoints: weights, optimizer and position of a run, complete or not there at all."""

from __future__ import annotations

import contextlib
import json
import os
import pickle
import re
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, BinaryIO

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor
from torch.optim import Optimizer

from druthers.devices import ALONE, World, lost
from druthers.models import Loaded, remove_tree, restore_trainable, save_trainable, trainable
from druthers.records import InputError, first_line
from druthers.run import Run
from druthers.storage import write_json
from druthers.train import shards

FOLDER = "checkpoints"
WEIGHTS = "weights.safetensors"
OPTIMIZER = "optimizer.pt"
POSITION = "position.json"
EXTRA = "extra.safetensors"
"""What a method has to remember beside the weights and their optimizer."""
PIECE = 1 << 20
"""Bytes that are summed at once."""
SHARDS = "shards"
"""Weights and optimizer state of a run on several ranks, in parts."""


@dataclass(frozen=True, slots=True)
class Position:
    """Where a run stands: steps done, bytes written to its two logs, seconds spent, and the best evaluation so far.

    `loss_state` is what the loss remembers, as a running mean.

    There is no random state: order is a function of seed and step, and nothing else draws.
    """

    step: int = 0
    metrics_bytes: int = 0
    outcomes_bytes: int = 0
    seconds: float = 0.0
    best_step: int | None = None
    best_value: float | None = None
    loss_state: Mapping[str, float] = field(default_factory=dict)

    def with_best(self, step: int, value: float) -> Position:
        """The position with a new best evaluation."""
        return replace(self, best_step=step, best_value=value)


def name(step: int) -> str:
    """Folder name of a checkpoint.

    >>> name(40)
    'step-000040'
    """
    return f"step-{step:06d}"


def save(
    run: Path,
    position: Position,
    policy: Loaded,
    optimizer: Optimizer,
    *,
    metric: str,
    world: World = ALONE,
    extra: dict[str, Tensor] | None = None,
) -> Path:
    """Write a checkpoint under a temporary name, flush it, rename it, then remove what is no longer needed.

    Where the weights are split every rank writes its part, and the whole weights are written only of the best
    checkpoint so far. `extra` is what else there is to remember, in one process alone. Raises InputError when the disk
    is full; the previous checkpoint is then untouched.
    """
    folder = run / FOLDER / name(position.step)
    partial = folder.with_name(f".{folder.name}.partial")
    if world.size > 1:
        save_split(folder, partial, position, policy, optimizer, world)
    else:
        with saving(folder, partial):
            begin(partial)
            save_trainable(policy, partial / WEIGHTS)
            torch.save(optimizer.state_dict(), partial / OPTIMIZER)
            if extra is not None:
                save_file(extra, partial / EXTRA)
            complete(folder, partial, position)
    world.first(lambda: settle(run, position, metric=metric))
    return folder


def save_split(
    folder: Path, partial: Path, position: Position, policy: Loaded, optimizer: Optimizer, world: World
) -> None:
    """The same by all ranks: rank 0 begins, all write, rank 0 gathers, writes the rest and renames."""

    def start() -> None:
        with saving(folder, partial):
            begin(partial)

    def finish() -> None:
        with saving(folder, partial):
            if fault:
                raise OSError(fault)
            if weights:
                save_file(weights, partial / WEIGHTS)
            complete(folder, partial, position, sums=sums)

    world.first(start)
    fault = shards.write(partial / SHARDS, policy, optimizer)
    own: dict[str, int] = {}
    with contextlib.suppress(OSError):  # all ranks meet below; a part that cannot be read is the reader's to refuse
        own = {} if fault else sums_of(partial, (partial / SHARDS).glob(f"__{world.rank}_*"))
    sums = world.union(own)
    best_so_far = position.best_step == position.step
    weights = world.whole(trainable(policy)) if best_so_far and not fault else {}
    world.first(finish)


def begin(partial: Path) -> None:
    """An empty folder."""
    remove_tree(partial)
    partial.mkdir(parents=True)


def complete(folder: Path, partial: Path, position: Position, *, sums: Mapping[str, int] | None = None) -> None:
    """Write the position and the checksums (`sums` are known already), flush every file and rename the folder."""
    files = [file for file in sorted(partial.rglob("*")) if file.is_file()]
    missing = (file for file in files if file.relative_to(partial).as_posix() not in (sums or {}))
    note = asdict(position) | {"crc32": {**(sums or {}), **sums_of(partial, missing)}}
    (partial / POSITION).write_text(json.dumps(note), encoding="utf-8")
    for file in (*files, partial / POSITION):
        with file.open("rb") as opened:
            os.fsync(opened.fileno())
    remove_tree(folder)
    partial.rename(folder)


def sums_of(folder: Path, files: Iterator[Path]) -> dict[str, int]:
    """Checksums by the names of files below a folder."""
    found = {}
    for path in files:
        with path.open("rb") as file:
            found[path.relative_to(folder).as_posix()] = checksum(file)
    return found


def checksum(file: BinaryIO) -> int:
    """CRC-32 of a file: a bit that flipped on the disk or on the way to it changes it."""
    found = 0
    while data := file.read(PIECE):
        found = zlib.crc32(data, found)
    return found


def check(folder: Path, note: Mapping[str, Any], *, world: World = ALONE) -> None:
    """Raises ValueError on every rank for a file that is not what was written; each rank reads its share of them.

    What was removed since, or written by a version that took no checksums, is not looked at.
    """
    wanted = note.get("crc32", {})
    if not isinstance(wanted, dict):
        raise ValueError(f"{POSITION} holds no checksums")
    names, bad = sorted(name for name in wanted if (folder / name).is_file()), -1
    for i in range(world.rank, len(names), world.size):
        try:
            right = sums_of(folder, iter([folder / names[i]])) == {names[i]: wanted[names[i]]}
        except OSError:
            right = False
        bad = bad if right else i
    worst = int(world.most(bad))
    if worst >= 0:
        raise ValueError(f"{names[worst]} is not what was written")


@contextlib.contextmanager
def saving(folder: Path, partial: Path) -> Iterator[None]:
    """A checkpoint that cannot be written is removed and said in one sentence."""
    try:
        yield
    except (OSError, SafetensorError, RuntimeError) as error:
        remove_tree(partial)
        kept = latest(folder.parent.parent)
        raise InputError(
            f"checkpoint {folder} cannot be saved: {first_line(error)}; "
            f"{f'{kept.name} is kept' if kept else 'no earlier one exists'}; "
            "free some space and run the same command again"
        ) from error


def settle(run: Path, position: Position, *, metric: str) -> None:
    """Note which checkpoint is best and remove the others; done again on resume, as a kill may fall before it."""
    if position.best_step is not None:
        best = {
            "step": position.best_step,
            "metric": metric,
            "value": position.best_value,
            "folder": name(position.best_step),
        }
        write_json(run / FOLDER / "best.json", best)
    prune(run, position)


def prune(run: Path, position: Position) -> None:
    """Keep the newest checkpoint and the best one (of which only the whole weights are still needed)."""
    keep = {name(position.step)} | ({name(position.best_step)} if position.best_step is not None else set())
    for folder in (*(run / FOLDER).glob("step-*"), *(run / FOLDER).glob(".step-*.partial")):
        if folder.name not in keep:
            remove_tree(folder)
        elif folder.name != name(position.step):
            (folder / OPTIMIZER).unlink(missing_ok=True)
            (folder / SHARDS / shards.INDEX).unlink(missing_ok=True)
            remove_tree(folder / SHARDS)


def latest(run: Path) -> Path | None:
    """The newest checkpoint a run can continue from."""
    whole = [folder for folder in (run / FOLDER).glob("step-*") if can_continue(folder)]
    return max(whole, default=None, key=lambda folder: folder.name)


def can_continue(folder: Path) -> bool:
    """Whether a checkpoint still has its optimizer."""
    return (folder / OPTIMIZER).is_file() or (folder / SHARDS / shards.INDEX).is_file()


def restore(folder: Path, policy: Loaded, optimizer: Optimizer, *, world: World = ALONE) -> Position:
    """Put weights and optimizer state back and return the position; raises InputError when the files are damaged.

    One process or many may have written it, and one or many may read it.
    """
    try:
        note = json.loads((folder / POSITION).read_text(encoding="utf-8"))
        position = Position(**{key: value for key, value in note.items() if key != "crc32"})
        check(folder, note, world=world)
        if not (folder / OPTIMIZER).is_file():
            shards.read(folder / SHARDS, policy, optimizer)
        elif policy.whole is not None:
            shards.read_whole(folder / WEIGHTS, folder / OPTIMIZER, policy, optimizer)
        else:
            restore_trainable(policy, folder / WEIGHTS)
            state = torch.load(folder / OPTIMIZER, map_location=policy.device, weights_only=True)
            optimizer.load_state_dict(state)
        return position
    except (
        OSError,
        RuntimeError,
        AttributeError,
        ValueError,
        TypeError,
        LookupError,
        EOFError,
        pickle.UnpicklingError,
    ) as error:
        if lost(error):
            raise
        raise InputError(
            f"checkpoint {folder} is damaged: {first_line(error)}; delete that folder and run the same command again"
        ) from error


def best(run: Path) -> Path:
    """The folder of the best checkpoint; raises InputError when the run has not trained yet or best.json is damaged."""
    file, opened = f"{FOLDER}/best.json", Run(run)
    if not opened.has(file):
        raise InputError(f"{run} has no trained checkpoint; run `druthers train` or `druthers align` first")
    note = opened.json(file)
    folder, step = note.get("folder"), note.get("step")
    if not isinstance(folder, str) or not isinstance(step, int) or not re.fullmatch(r"step-[0-9]+", folder):
        raise opened.damaged(file, "names no checkpoint")
    return run / FOLDER / folder


def best_weights(run: Path) -> Path:
    """The weights file of the best checkpoint; raises InputError as `best`, and when it is not what was written."""
    folder = best(run)
    place = folder / POSITION
    try:
        sums = json.loads(place.read_text(encoding="utf-8")).get("crc32", {}) if place.exists() else {}
        check(folder, {"crc32": {name: sums[name] for name in (WEIGHTS,) if name in sums}})
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise InputError(
            f"checkpoint {folder} is damaged: {first_line(error)}; restore it from a copy, or start a new run with "
            "run=FOLDER"
        ) from error
    return folder / WEIGHTS
