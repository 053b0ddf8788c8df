"""Checkpoints: weights, optimizer and position of a run, complete or not there at all."""

from __future__ import annotations

import json
import os
import pickle
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch
from safetensors import SafetensorError
from torch.optim import Optimizer

from druthers.models import Loaded, first_line, remove_tree, restore_trainable, save_trainable
from druthers.records import InputError
from druthers.storage import write_json

FOLDER = "checkpoints"


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


def save(run: Path, position: Position, policy: Loaded, optimizer: Optimizer, *, metric: str) -> Path:
    """Write a checkpoint under a temporary name, flush it, rename it, then remove what is no longer needed.

    Raises InputError when the disk is full; the previous checkpoint is then untouched.
    """
    folder = run / FOLDER / name(position.step)
    partial = folder.with_name(f".{folder.name}.partial")
    remove_tree(partial)
    try:
        partial.mkdir(parents=True)
        save_trainable(policy, partial / "weights.safetensors")
        torch.save(optimizer.state_dict(), partial / "optimizer.pt")
        (partial / "position.json").write_text(json.dumps(asdict(position)), encoding="utf-8")
        for file in partial.iterdir():
            with file.open("rb") as opened:
                os.fsync(opened.fileno())
        remove_tree(folder)
        partial.rename(folder)
    except (OSError, SafetensorError, RuntimeError) as error:
        remove_tree(partial)
        kept = latest(run)
        raise InputError(
            f"checkpoint {folder} cannot be saved: {first_line(error)}; "
            f"{f'{kept.name} is kept' if kept else 'no earlier one exists'}; "
            "free some space and run the same command again"
        ) from error
    settle(run, position, metric=metric)
    return folder


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
    """Keep the newest checkpoint and the best one (of which only the weights are still needed)."""
    keep = {name(position.step)} | ({name(position.best_step)} if position.best_step is not None else set())
    for folder in (*(run / FOLDER).glob("step-*"), *(run / FOLDER).glob(".step-*.partial")):
        if folder.name not in keep:
            remove_tree(folder)
        elif folder.name != name(position.step):
            (folder / "optimizer.pt").unlink(missing_ok=True)


def latest(run: Path) -> Path | None:
    """The newest checkpoint a run can continue from."""
    whole = [folder for folder in (run / FOLDER).glob("step-*") if (folder / "optimizer.pt").is_file()]
    return max(whole, default=None, key=lambda folder: folder.name)


def restore(folder: Path, policy: Loaded, optimizer: Optimizer) -> Position:
    """Put weights and optimizer state back and return the position; raises InputError when the files are damaged."""
    try:
        restore_trainable(policy, folder / "weights.safetensors")
        optimizer.load_state_dict(torch.load(folder / "optimizer.pt", map_location=policy.device, weights_only=True))
        return Position(**json.loads((folder / "position.json").read_text(encoding="utf-8")))
    except (OSError, RuntimeError, ValueError, TypeError, LookupError, EOFError, pickle.UnpicklingError) as error:
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
