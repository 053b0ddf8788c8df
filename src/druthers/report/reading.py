"""A run directory as the report sees it: what is there, and for what is not, why.

Only `config.json` makes a folder a run. Any other file may be missing or damaged; its section of the page then says so.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from druthers import storage
from druthers.records import Exchange, InputError, Judgement, Record
from druthers.stats import Estimate, Interval, Undefined

T = TypeVar("T")
R = TypeVar("R", bound=Record)
Tree = Mapping[str, Any]

PAIRS_FILE = "evaluation/pairs.json"
TREES = (
    "environment.json",
    "inputs.json",
    "data/summary.json",
    "checkpoints/best.json",
    PAIRS_FILE,
    "evaluation/answers.json",
    "evaluation/kl.json",
    "summary.json",
)
COLUMNS = ("pair_id", "step", "split", "logratio_chosen", "logratio_rejected")
WRITERS = {
    "data": "the curate stage has not run here",
    "data/quality.json": "the pairs were curated without measuring them",
    "metrics.jsonl": "the train stage has not taken a step here",
    "outcomes.parquet": "the train stage has not finished here",
    "checkpoints": "the train stage has kept no checkpoint here",
    "evaluation": "the evaluate stage has not finished here",
    "summary.json": "no stage has finished here",
}


@dataclass(frozen=True)
class Absent:
    """A file the page would have used, and why it could not."""

    file: str
    why: str


@dataclass(frozen=True)
class HeldoutMargins:
    """Log-ratio of chosen minus that of rejected, in nats, of the held-out pairs: one array for each step evaluated."""

    gaps: Mapping[int, NDArray[np.float64]]

    @property
    def steps(self) -> list[int]:
        """The steps evaluated, in order."""
        return sorted(self.gaps)


@dataclass(frozen=True)
class RunFiles:
    """Everything the page is built from."""

    path: Path
    config: Tree
    trees: Mapping[str, Tree]
    metrics: Sequence[Tree]
    margins: HeldoutMargins
    exchanges: Sequence[Exchange]
    judgements: Sequence[Judgement]
    absent: Sequence[Absent]
    code_changed: bool

    def tree(self, file: str) -> Tree:
        """The content of a JSON file; empty where it is absent."""
        return self.trees.get(file, {})

    def why_missing(self, file: str, key: str = "") -> str:
        """One sentence about a missing file, or about the estimate at `key` of a file that is there.

        Empty where file and estimate are there.
        """
        for absent in self.absent:
            if absent.file == file:
                return f"{file} is not in this run: {absent.why}."
        found = estimate(self.tree(file), key) if key else None
        return f"{file} says why: {found.reason}." if isinstance(found, Undefined) else ""

    def split(self, name: str) -> list[Tree]:
        """The lines of metrics.jsonl of one split."""
        return [line for line in self.metrics if line.get("split") == name and number(line, "step") is not None]


def read_run(path: Path) -> RunFiles:
    """The files of a run directory.

    Raises InputError where `path` is no run directory or its config.json cannot be read.
    """
    if not os.path.isfile(path / "config.json"):  # which knows no fault: a name may be too long for a file system
        raise InputError(
            f"{path}: is not a run directory, because it has no config.json; name a folder that `druthers align` made"
        )
    absent: list[Absent] = []
    config = read_tree(path / "config.json")

    def attempt(file: str, read: Callable[[Path], T], otherwise: T) -> T:
        if not (path / file).is_file():
            absent.append(Absent(file, reason(file, config)))
            return otherwise
        try:
            return read(path / file)
        except InputError as fault:
            absent.append(Absent(file, f"it is damaged ({str(fault).removeprefix(str(path) + '/')})"))
            return otherwise

    return RunFiles(
        path=path,
        config=config,
        trees={file: attempt(file, read_tree, {}) for file in TREES},
        metrics=attempt("metrics.jsonl", read_metrics, []),
        margins=attempt("outcomes.parquet", read_margins, HeldoutMargins({})),
        exchanges=attempt("evaluation/answers-sampled.jsonl", lambda file: read_records(file, Exchange), []),
        judgements=attempt("evaluation/judgements-sampled.jsonl", lambda file: read_records(file, Judgement), []),
        absent=absent,
        code_changed=(path / "code.diff").is_file() and (path / "code.diff").stat().st_size > 0,
    )


def reason(file: str, config: Tree) -> str:
    """Why a run of this config lacks a file."""
    judged = file.startswith("evaluation/judgements")
    if judged and "evaluate" in config and look(config, "evaluate.rubric") is None:
        return "the setting evaluate.rubric is unset, so no answers were judged"
    return WRITERS.get(file) or WRITERS.get(file.partition("/")[0], "the folder was copied in part")


def read_tree(path: Path) -> Tree:
    """A JSON file that holds one object."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as fault:
        raise InputError(f"{path}: is not JSON: {fault}; write the run again") from None
    except OSError as fault:
        raise InputError(f"{path}: cannot be read: {fault.strerror}") from None
    if not isinstance(value, dict):
        raise InputError(f"{path}: must hold a JSON object, not {type(value).__name__}")
    return value


def read_metrics(path: Path) -> list[Tree]:
    """The lines of metrics.jsonl."""
    return [row for _, row in storage.rows(str(path))]


def read_records(path: Path, kind: type[R]) -> list[R]:
    """The lines of a file as records."""
    return list(storage.read(str(path), kind))


def read_margins(path: Path) -> HeldoutMargins:
    """Gaps of the held-out pairs by step; a pair written twice at a step counts once, as last written."""
    try:
        table = pq.read_table(path, columns=list(COLUMNS), filters=[("split", "=", "heldout")])
    except (OSError, pa.ArrowException) as fault:
        raise InputError(f"{path}: is not a Parquet file of outcomes: {str(fault).splitlines()[0]}") from None
    by_step: dict[int, dict[str, float]] = {}
    rows = zip(*(table.column(name).to_pylist() for name in COLUMNS), strict=True)
    for pair, step, _, chosen, rejected in rows:
        by_step.setdefault(step, {})[pair] = chosen - rejected
    arrays = {step: np.array([gap for gap in gaps.values() if math.isfinite(gap)]) for step, gaps in by_step.items()}
    return HeldoutMargins({step: gaps for step, gaps in arrays.items() if gaps.size})


def look(tree: object, key: str) -> object:
    """The value at a dotted key; None where a part of the way is missing.

    >>> look({"sampled": {"wins": 3}}, "sampled.wins"), look({"sampled": 1}, "sampled.wins")
    (3, None)
    """
    for part in key.split("."):
        tree = tree.get(part) if isinstance(tree, Mapping) else None
    return tree


def number(tree: object, key: str) -> float | None:
    """The finite number at a dotted key, or None."""
    value = look(tree, key)
    plain = isinstance(value, int | float) and not isinstance(value, bool)
    return float(value) if plain and math.isfinite(value) else None  # type: ignore[arg-type]


def text(tree: object, key: str) -> str:
    """The text at a dotted key; empty where there is none."""
    value = look(tree, key)
    return value if isinstance(value, str) else ""


def branch(tree: object, key: str) -> Tree:
    """The object at a dotted key; empty where there is none."""
    value = look(tree, key)
    return value if isinstance(value, Mapping) else {}


def estimate(tree: object, key: str) -> Estimate:
    """The estimate written at a dotted key, or why there is none.

    >>> estimate({"a": {"value": 0.5, "low": 0.4, "high": 0.6, "n": 10}}, "a")
    Interval(value=0.5, low=0.4, high=0.6, n=10)
    >>> estimate({"a": {"value": None, "undefined": "no trials"}}, "a")
    Undefined(reason='no trials', n=0)
    """
    value, low, high = (number(tree, f"{key}.{part}") for part in ("value", "low", "high"))
    n = int(number(tree, f"{key}.n") or 0)
    if value is None or low is None or high is None:
        return Undefined(text(tree, f"{key}.undefined") or "the run gives no number for it", n)
    if not low <= value <= high:
        return Undefined(f"the run gives {value:g} outside its own interval [{low:g}, {high:g}]", n)
    return Interval(value, low, high, n)


def best_step(files: RunFiles) -> float | None:
    """The step whose checkpoint was kept."""
    places = (("checkpoints/best.json", "step"), ("summary.json", "train.best_step"), (PAIRS_FILE, "step"))
    known = (number(files.tree(file), key) for file, key in places)
    return next((step for step in known if step is not None), None)


def undefined(tree: object, at: str = "") -> Iterator[tuple[str, str]]:
    """Every (dotted key, reason) of a tree whose number is marked undefined.

    >>> list(undefined({"kl": {"k1": {"value": None, "undefined": "no samples"}}}))
    [('kl.k1', 'no samples')]
    """
    if not isinstance(tree, Mapping):
        return
    if isinstance(tree.get("undefined"), str):
        yield at, tree["undefined"]
    for key, value in tree.items():
        yield from undefined(value, f"{at}.{key}" if at else str(key))
