"""Checkpoints: weights, optimizer and position of a run, complete or not there at all."""

from __future__ import annotations

import contextlib
import json
import os
import pickle
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch.optim import Optimizer

from druthers.devices import ALONE, World, lost
from druthers.models import Loaded, remove_tree, restore_trainable, save_trainable, trainable
from druthers.records import InputError, first_line
from druthers.storage import write_json
from druthers.train import shards

FOLDER = "checkpoints"
WEIGHTS = "weights.safetensors"
OPTIMIZER = "optimizer.pt"
SHARDS = "shards"
"""Weights and optimizer state of a run on several ranks, in parts."""


@dataclass(frozen=True, slots=True)
class Position:
    """Where a run stands: steps done, bytes written to its two logs, seconds spent, and the best evaluation so far.

    There is no random state: order is a function of seed and step, and nothing else draws.
    """

    step: int = 0
    metrics_bytes: int = 0
    outcomes_bytes: int = 0
    seconds: float = 0.0
    best_step: int | None = None
    best_value: float | None = None

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
    run: Path, position: Position, policy: Loaded, optimizer: Optimizer, *, metric: str, world: World = ALONE
) -> Path:
    """Write a checkpoint under a temporary name, flush it, rename it, then remove what is no longer needed.

    Where the weights are split every rank writes its part, and the whole weights are written only of the best
    checkpoint so far. Raises InputError when the disk is full; the previous checkpoint is then untouched.
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
            complete(folder, partial, position)

    world.first(start)
    fault = shards.write(partial / SHARDS, policy, optimizer)
    best_so_far = position.best_step == position.step
    weights = world.whole(trainable(policy)) if best_so_far and not fault else {}
    world.first(finish)


def begin(partial: Path) -> None:
    """An empty folder."""
    remove_tree(partial)
    partial.mkdir(parents=True)


def complete(folder: Path, partial: Path, position: Position) -> None:
    """Write the position, flush every file and rename the folder."""
    (partial / "position.json").write_text(json.dumps(asdict(position)), encoding="utf-8")
    for file in partial.rglob("*"):
        if file.is_file():
            with file.open("rb") as opened:
                os.fsync(opened.fileno())
    remove_tree(folder)
    partial.rename(folder)


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


def restore(folder: Path, policy: Loaded, optimizer: Optimizer) -> Position:
    """Put weights and optimizer state back and return the position; raises InputError when the files are damaged.

    One process or many may have written it, and one or many may read it.
    """
    try:
        if not (folder / OPTIMIZER).is_file():
            shards.read(folder / SHARDS, policy, optimizer)
        elif policy.whole is not None:
            shards.read_whole(folder / WEIGHTS, folder / OPTIMIZER, policy, optimizer)
        else:
            restore_trainable(policy, folder / WEIGHTS)
            state = torch.load(folder / OPTIMIZER, map_location=policy.device, weights_only=True)
            optimizer.load_state_dict(state)
        return Position(**json.loads((folder / "position.json").read_text(encoding="utf-8")))
    except (OSError, RuntimeError, ValueError, TypeError, LookupError, EOFError, pickle.UnpicklingError) as error:
        if lost(error):
            raise
        raise InputError(
            f"checkpoint {folder} is damaged: {first_line(error)}; delete that folder and run the same command again"
        ) from error


def best(run: Path) -> Path:
    """The folder of the best checkpoint; raises InputError when the run has not trained yet."""
    try:
        note = json.loads((run / FOLDER / "best.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        raise InputError(f"{run} has no trained checkpoint; run `druthers train` or `druthers align` first") from None
    return run / FOLDER / str(note["folder"])
