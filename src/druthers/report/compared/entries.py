"""One run in a comparison: what it was, what was measured of it, and what is needed to pair it with others.

Whatever a folder does not hold is "not recorded" with the reason; only a folder that is no run at all is refused.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from druthers import storage
from druthers.records import InputError, Judgement, Pair
from druthers.report import provenance
from druthers.report.headline import held_out_accuracy, total_seconds, win_rate
from druthers.report.reading import RunFiles, Tree, best_step, branch, estimate, look, number, read_run, text
from druthers.stats import Estimate, Interval, Undefined, wilson

FRONTIER = "evaluation/frontier.jsonl"
NOT_COMPARED = ("run", "threads")
"""Settings that say where and how fast a run went, not what it was."""
NOT_RECORDED = "not recorded"
MARKS = {"run", "data", "train"}
"""What the config.json of a druthers run has, and that of a model folder has not."""
FORWARD, BACKWARD, BACKWARD_OF_ADAPTER = 2, 4, 2
"""Floating-point operations for every parameter and token: products alone, as in Kaplan et al. 2020 (2001.08361)."""


@dataclass(frozen=True)
class Point:
    """One line of frontier.jsonl: its estimates as written, and the mean over the answers to each prompt."""

    step: int
    reward: Estimate
    kl: Estimate
    win_rate: Estimate
    length: float | None
    by_prompt: Mapping[str, tuple[float, float, float]]
    """KL, reward, and reward of the reference."""
    measured_as: tuple[object, ...]
    """Scorer, reference and length limit: points that differ in it are not compared."""


@dataclass(frozen=True)
class Judged:
    """Scores of the sampled answers of a run's aligned model by prompt, and what they are comparable by."""

    judged_as: tuple[object, ...]
    scores: Mapping[str, float]
    rubric: str


@dataclass(frozen=True)
class Entry:
    """A run in a comparison. `right` holds 1, 1/2 or 0 for every held-out pair, `prompts` the prompt of each."""

    name: str
    path: Path
    kind: str
    settings: Mapping[str, str] = field(default_factory=dict)
    measures: Mapping[str, Estimate] = field(default_factory=dict)
    kept: float | None = None
    points: Sequence[Point] = ()
    judged: Judged | None = None
    right: Mapping[str, float] = field(default_factory=dict)
    prompts: Mapping[str, str] = field(default_factory=dict)
    data: Mapping[str, str] = field(default_factory=dict)
    remarks: Sequence[str] = ()

    @property
    def seed(self) -> str:
        """The setting `seed`."""
        return self.settings.get("seed", "")

    @property
    def trained_points(self) -> list[Point]:
        """The points of the run itself: step 0 is the reference."""
        return [point for point in self.points if point.step]


def exactly(value: float | None, why: str = NOT_RECORDED) -> Estimate:
    """A number that was counted or timed, as an estimate without spread."""
    return Undefined(why) if value is None else Interval(value, value, value, 1)


def is_run(path: Path) -> bool:
    """Whether a folder is a run directory of druthers; a model folder has a config.json of another kind."""
    try:
        found = json.loads((path / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return False
    return isinstance(found, dict) and found.keys() >= MARKS


def read_entry(path: Path, *, name: str) -> Entry:
    """A run directory of druthers; files that are missing or damaged leave their rows out."""
    files = read_run(path)
    remarks: list[str] = []
    points = attempt(lambda: read_points(path), [], remarks)
    kept = best_step(files)
    right = attempt(lambda: read_right(path, kept), {}, remarks)
    prompts = attempt(lambda: read_prompts(path), {}, remarks) if right else {}
    settings = dict(provenance.settings(files.config))
    return Entry(
        name=name,
        path=path,
        kind="druthers",
        settings={key: value for key, value in settings.items() if key not in NOT_COMPARED},
        measures=measures(files, points, kept),
        kept=kept,
        points=points,
        judged=judged(files),
        right=right,
        prompts=prompts,
        data={
            "pairs": text(files.tree("data/summary.json"), "source_sha256"),
            "heldout": text(files.tree("inputs.json"), "data.heldout"),
            "reference": text(files.tree("inputs.json"), "model.sha256"),
        },
        remarks=[*remarks, *stage_remarks(files)],
    )


def attempt(read: Any, otherwise: Any, remarks: list[str]) -> Any:
    """What could be read, or what stands for it with a remark."""
    try:
        return read()
    except InputError as fault:
        remarks.append(str(fault))
        return otherwise


def stage_remarks(files: RunFiles) -> list[str]:
    """How far an unfinished run came."""
    summary = files.tree("summary.json")
    if "train" not in summary:
        steps = [number(line, "step") or 0 for line in files.split("train")]
        return [f"is not trained to its end (step {max(steps, default=0):.0f} so far)"]
    return [] if "verdict" in summary else ["is trained but not evaluated"]


# ---------------------------------------------------------------- what was measured


def measures(files: RunFiles, points: Sequence[Point], kept: float | None) -> dict[str, Estimate]:
    """The numbers of a run by the names of the rows they stand in."""
    summary, answers = files.tree("summary.json"), files.tree("evaluation/answers.json")
    at_end = next((point for point in points if point.step == kept), points[-1] if points else None)
    kl = estimate(files.tree("evaluation/kl.json"), "per_sequence.k1")
    nothing = Undefined("no point along training was measured; set evaluate.along")
    return {
        "accuracy": accuracy(files),
        "win_rate": win_rate(files, "sampled"),
        "reward": at_end.reward if at_end else nothing,
        "kl": kl if isinstance(kl, Interval) or at_end is None else at_end.kl,
        "length": exactly(number(answers, "length.aligned"), files.why_missing("evaluation/answers.json")),
        "length_ratio": exactly(number(answers, "length.ratio"), files.why_missing("evaluation/answers.json")),
        "train_seconds": exactly(number(summary, "train.seconds"), files.why_missing("summary.json")),
        "seconds": exactly(total_seconds(files), files.why_missing("summary.json")),
        "flop": flop(files),
        "peak_memory_gib": exactly(number(summary, "train.peak_memory_gib"), files.why_missing("summary.json")),
        "pairs": exactly(number(summary, "train.pairs") or number(summary, "pairs.train")),
        "steps": exactly(number(summary, "train.steps") or last_step(files)),
    }


def last_step(files: RunFiles) -> float | None:
    """How far an unfinished run came."""
    return max((number(line, "step") or 0 for line in files.split("train")), default=None)


def accuracy(files: RunFiles) -> Estimate:
    """Implicit-reward accuracy as evaluated; of an unfinished run that of its last evaluation in training."""
    found = held_out_accuracy(files)
    lines = [line for line in files.split("heldout") if number(line, "step")]
    if isinstance(found, Interval) or not lines:
        return found
    share, pairs = number(lines[-1], "rewards/accuracies"), number(lines[-1], "pairs")
    return found if share is None or not pairs else wilson(share * pairs, int(pairs))


def flop(files: RunFiles) -> Estimate:
    """Operations of training by tokens and parameters: forward and backward of the steps, the evaluations, and the
    reference once for the pairs of the first epoch; attention's own products and generated answers are not counted.
    """
    parameters = number(files.tree("inputs.json"), "model.parameters")
    train, held = files.split("train"), files.split("heldout")
    if parameters is None or not train:
        return Undefined(files.why_missing("inputs.json") or files.why_missing("metrics.jsonl") or NOT_RECORDED)
    backward = BACKWARD if text(files.config, "model.adapter") == "none" else BACKWARD_OF_ADAPTER
    learned = tokens_of(train) * (FORWARD + backward)
    looked = tokens_of(line for line in held if number(line, "step")) * FORWARD
    first = tokens_of(line for line in train if (number(line, "epoch") or 0) <= 1) + tokens_of(held[:1])
    return exactly(parameters * (learned + looked + FORWARD * first))


def tokens_of(lines: Iterable[Tree]) -> float:
    """Tokens computed."""
    return sum(number(line, "tokens") or 0 for line in lines)


# ---------------------------------------------------------------- what is paired with other runs


def read_points(path: Path) -> list[Point]:
    """The points along training, in the order of their steps; none where none were measured."""
    file = path / FRONTIER
    if not file.is_file():
        return []
    found = [point_of(line, where=where) for where, line in storage.rows(str(file))]
    return sorted(found, key=lambda point: point.step)


def point_of(line: Tree, *, where: str) -> Point:
    """One line of the file; raises InputError for one that is none."""
    step, rows = number(line, "step"), branch(line, "rows")
    if step is None:
        raise InputError(f"{where}: is no point along training (it has no step); measure the run again")
    scorer = branch(line, "scorer")
    return Point(
        step=int(step),
        reward=estimate(line, "reward"),
        kl=estimate(line, "kl.k1"),
        win_rate=estimate(line, "win_rate"),
        length=number(line, "length"),
        by_prompt=by_prompt(rows, where=where),
        measured_as=(
            scorer.get("name"),
            scorer.get("id"),
            line.get("reference"),
            line.get("max_new_tokens"),
            line.get("temperature"),
        ),
    )


def by_prompt(rows: Tree, *, where: str) -> dict[str, tuple[float, float, float]]:
    """Means over the answers to each prompt; without rewards there is nothing to pair."""
    if "reward" not in rows:
        return {}
    labels = rows.get("prompt_id")
    columns = [rows.get(name) for name in ("k1", "reward", "reward_reference")]
    if not isinstance(labels, list) or not all(isinstance(c, list) and len(c) == len(labels) for c in columns):
        raise InputError(f"{where}: rows: every column needs one value for each prompt_id; measure the run again")
    try:
        values = np.array(columns, dtype=np.float64)
    except (TypeError, ValueError):
        raise InputError(f"{where}: rows: holds what is no number; measure the run again") from None
    if not np.isfinite(values).all():
        raise InputError(f"{where}: rows: holds what is no number; measure the run again")
    gathered: dict[str, list[int]] = {}
    for i, label in enumerate(labels):
        gathered.setdefault(str(label), []).append(i)
    means = {label: values[:, at].mean(axis=1).tolist() for label, at in gathered.items()}
    return {label: (kl, reward, start) for label, (kl, reward, start) in means.items()}


def judged(files: RunFiles) -> Judged | None:
    """Scores of the aligned model's sampled answers; None where they were not judged by scores."""
    rows = [one for one in files.judgements if one.score_b is not None]
    if not rows:
        return None
    scores = {one.prompt_id: float(one.score_b) for one in rows if one.score_b is not None}
    return Judged(judged_as(files, rows), scores, rows[0].judge)


def judged_as(files: RunFiles, rows: Sequence[Judgement]) -> tuple[object, ...]:
    """Judge with its rules, and how the answers were sampled."""
    rules = tuple(sorted({name for one in rows for name in one.rules_b}))
    how = (look(files.config, f"evaluate.{key}") for key in ("temperature", "top_p", "max_new_tokens"))
    return (rows[0].judge, rules, *how)


OUTCOMES = ("pair_id", "step", "split", "logratio_chosen", "logratio_rejected")


def read_right(path: Path, kept: float | None) -> dict[str, float]:
    """Whether each held-out pair is ranked right by the implicit reward at the kept step: 1, 1/2 for a tie, 0."""
    file = path / "outcomes.parquet"
    if not file.is_file() or kept is None:
        return {}
    try:
        where = [("split", "=", "heldout"), ("step", "=", int(kept))]
        table = pq.read_table(file, columns=list(OUTCOMES), filters=where)
    except (OSError, pa.ArrowException) as fault:
        raise InputError(f"{file}: is not a Parquet file of outcomes: {str(fault).splitlines()[0]}") from None
    columns = (table.column(name).to_pylist() for name in ("pair_id", "logratio_chosen", "logratio_rejected"))
    margins = {pair: chosen - rejected for pair, chosen, rejected in zip(*columns, strict=True)}
    return {pair: 0.5 + 0.5 * float(np.sign(gap)) for pair, gap in margins.items() if math.isfinite(gap)}


def read_prompts(path: Path) -> dict[str, str]:
    """The prompt of every held-out pair."""
    file = path / "data" / "heldout.jsonl"
    if not os.path.isfile(file):
        return {}
    return {pair.id: pair.prompt_id for pair in storage.read(str(file), Pair)}
