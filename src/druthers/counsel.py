"""`druthers advise`: what a run directory holds, as evidence; the answers; and the prompts to collect next.

It only reads the run, so it may be asked while the run is trained. What is missing is said by the answers, not by an
error: only a folder that is no run, a broken file, and runs that do not compare are refused.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from math import sqrt
from pathlib import Path
from typing import Any

from rich.markup import escape
from rich.table import Table

from druthers import storage
from druthers.config import Settings, to_json
from druthers.curate.advice import Evidence, Group, advise
from druthers.curate.census import Census, Row, grades
from druthers.curate.gaps import DOUBTS, Gaps
from druthers.curate.rules import QUESTIONS
from druthers.power import Curve, Point, fit_curve
from druthers.records import Finding, InputError, Prompt
from druthers.run import CURATED, TRAINING, Run, flat
from druthers.stats import Z_95, Interval, Undefined, wilson

MEASURED = "data/quality.json"
QUALITY = (MEASURED, "quality.json")
IMPROVEMENT = 0.05
"""What should be seen, where nobody says."""
COVERED = "data/uncovered.jsonl"
SAME = ("run", "threads", "data.limit", "evaluate.")
"""Settings in which runs of one learning curve may differ."""
EVERY = 4096
LEAST_TO_HALVE = 100
"""Training pairs from which on runs on parts of them are worth their time."""

Bar = Callable[[int, int], None]
Bars = Callable[[str], Bar]


def counsel(
    run: Run,
    *,
    improvement: float,
    rounds: int,
    others: Sequence[Run],
    prompts: Path | None,
    most: int,
    bars: Bars,
) -> dict[str, Any]:
    """The answers to every question, and where asked for the prompts to collect, written to `prompts`.

    `improvement` (0..0.5) is what should be seen, `rounds` how often data will be collected, `others` finished runs of
    other sizes. Raises InputError for a folder that is no run, and for runs that do not compare.
    """
    findings, source = read_findings(run)
    counted = count_pairs(run, bars=bars)
    evidence = evidence_of(run, findings, counted, improvement=improvement, rounds=rounds, others=others)
    answers = advise(evidence, QUESTIONS)
    found: dict[str, Any] = {
        "run": str(run.folder),
        "improvement_points": round(100 * improvement, 4),
        "quality": source or "not there; it comes with pairs that are curated anew (druthers curate)",
        "answers": [answer.model_dump(mode="json") for answer in answers],
    }
    if prompts is not None:
        found["prompts"] = write_prompts(run, prompts, findings, scarce=evidence.scarce(), most=most, bars=bars)
    return found


def write_advice(run: Run, *, bars: Bars) -> None:
    """The answers for an improvement of five points in one round, into data/quality.json for the page and the screen.

    Does nothing where the quality was not measured. Raises InputError as `counsel` does.
    """
    if not run.has(MEASURED):
        return
    found = counsel(run, improvement=IMPROVEMENT, rounds=1, others=(), prompts=None, most=1, bars=bars)
    storage.write_json(run.path(MEASURED), run.json(MEASURED) | {"advice": found["answers"]})


# ---------------------------------------------------------------- evidence


def read_findings(run: Run) -> tuple[tuple[Finding, ...], str | None]:
    """The findings on the data and the file they stand in; none where there is no such file."""
    for name in QUALITY:
        if run.has(name):
            listed = run.json(name).get("findings")
            if not isinstance(listed, list):
                raise InputError(f"{run.folder / name}: has no list of findings; delete it and check the data again")
            where = f"{run.folder / name}: findings"
            rows = (row if isinstance(row, dict) else {} for row in listed)
            return tuple(storage.parse(row, Finding, where=f"{where}.{i}") for i, row in enumerate(rows)), name
    return (), None


def count_pairs(run: Run, *, bars: Bars) -> Census | None:
    """What only a pass over the pairs tells; None before they are curated."""
    if not run.has(CURATED):
        return None
    counted, summary = Census(), run.json(CURATED)
    bar, total = bars("pairs read"), summary["train"] + summary["heldout"]
    train, heldout = (graded_of(run, f"data/{side}.jsonl", whole=key) for side, key in WHOLE.items())
    counted.train(told(train, bar, 0, total))
    counted.heldout(told(heldout, bar, summary["train"], total))
    return counted


WHOLE = {"train": ("criterion", "group"), "heldout": ("group",)}
"""On each side, with which keys a pair has to be read with its texts to be counted."""


def graded_of(run: Run, name: str, *, whole: Sequence[str]) -> Iterator[Mapping[str, Any]]:
    """The rows of a file of pairs, without their texts where `census.grades` can do so; none where it is missing."""
    path = run.folder / name
    if not path.is_file():
        return
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            row = grades(line, whole=whole)
            yield storage.row_of(f"{path}:{number}", line) if row is None else row


def lines_of(run: Run, name: str) -> Iterator[dict[str, Any]]:
    """The rows of a file of the run; none where it is missing or empty."""
    path = run.folder / name
    if path.is_file() and path.stat().st_size:
        for _, row in storage.rows(str(path)):
            yield row


def told(rows: Iterable[Row], bar: Bar, done: int, total: int) -> Iterator[Row]:
    """The rows, with a word to the bar now and then."""
    for i, row in enumerate(rows, start=done + 1):
        if i % EVERY == 0:
            bar(i, total)
        yield row


def evidence_of(
    run: Run,
    findings: tuple[Finding, ...],
    counted: Census | None,
    *,
    improvement: float,
    rounds: int,
    others: Sequence[Run],
) -> Evidence:
    """All that is known of a run, as the rules read it."""
    settings = run.settings()
    options = options_of(settings)
    base = Evidence(
        findings=findings,
        run=shlex.quote(str(run.folder)),
        improvement=improvement,
        rounds=rounds,
        options=options,
        fresh=shlex.quote(str(run.folder) + ("-next" if run.has(TRAINING) else "")),
        rubric=shlex.quote(settings.evaluate.rubric or "") if settings.evaluate.rubric else "",
        model=model_of(run, settings),
        exported=trained(run),
        epochs=settings.train.epochs,
        accuracy=interval_of(run.summary().get("heldout", {}).get("accuracy")),
        won=interval_of(run.summary().get("win_rate")),
    )
    if counted is not None:
        base = with_data(base, run.json(CURATED), counted, settings)
        base = replace(base, smaller=smaller_runs(run, options, base.pairs or 0))
    return with_curve(base, run, others)


def with_data(evidence: Evidence, summary: dict[str, Any], counted: Census, settings: Settings) -> Evidence:
    """The evidence with the counts of curation and of the pass over the pairs."""
    kept, rejected, cut = summary["kept"], summary["rejected"], summary["cut"]
    graded = summary.get("graded") or {}
    reasons = graded.get("reasons", {})
    dropped = reasons.get("tie", 0) or rejected.get("tie", 0)
    ties = counted.ties + dropped
    heldout_prompts = summary["prompts"]["heldout"]
    tied = wilson(ties, counted.pairs + dropped) if ties else None
    return replace(
        evidence,
        pairs=summary["train"],
        prompts=summary["prompts"]["train"],
        heldout=summary["heldout"],
        heldout_prompts=heldout_prompts,
        asked=asked(settings, heldout_prompts),
        unpaired=graded.get("alone", {}).get("answers", 0),
        graded=counted.graded,
        ties=tied if isinstance(tied, Interval) else None,
        conflicts=counted.criteria.conflicts(),
        tastes=counted.tastes.conflicts(),
        longer=summary["longer_chosen"],
        cut=(cut["chosen"] / kept, cut["rejected"] / kept),
        groups={
            name: Group(pairs, counted.heldout_groups[name]) for name, pairs in sorted(counted.groups.items()) if name
        },
    )


def model_of(run: Run, settings: Settings) -> str:
    """What `--model` names: the folder for a trained run's model, or the one to be trained; "" for the default."""
    if trained(run):
        return shlex.quote(f"{run.folder}-model")
    return "" if settings.model.path == Settings().model.path else shlex.quote(settings.model.path)


def asked(settings: Settings, heldout_prompts: int) -> int:
    """How many prompts the evaluation of the run answers."""
    own = settings.evaluate
    there = heldout_prompts if own.prompts is None else storage.count(own.prompts)
    return there if own.count is None else min(there, own.count)


def interval_of(found: dict[str, Any] | None) -> Interval | None:
    """An estimate out of a summary, or None where there is none."""
    if not found or found.get("value") is None:
        return None
    return Interval(**{name: found[name] for name in ("value", "low", "high", "n")})


def options_of(settings: Settings) -> str:
    """What to write after a verb to get these settings again, the run directory left out.

    >>> from druthers.config import load
    >>> options_of(load(overrides=["data.pairs=my pairs.jsonl", "model.path=tiny", "seed=3"]))
    "--data 'my pairs.jsonl' --model tiny seed=3"
    """
    own, usual = (flat(json.loads(to_json(tree))) for tree in (settings, Settings()))
    named = {"data.pairs": "--data", "model.path": "--model"}
    pairs = own["data.pairs"]
    words = pairs if isinstance(pairs, list) else ["--data", pairs]
    if own["model.path"] != usual["model.path"]:
        words += [named["model.path"], own["model.path"]]
    for key, value in own.items():
        if key not in (*named, "run", "threads") and value != usual.get(key):
            words.append(f"{key}={'none' if value is None else value}")
    return shlex.join(words)


def smaller_runs(run: Run, options: str, pairs: int) -> str:
    """The commands that train on a quarter, a half and all of the pairs, and ask again."""
    if pairs < LEAST_TO_HALVE:
        return ""
    names = {f"{run.folder}-quarter": pairs // 4, f"{run.folder}-half": pairs // 2}
    train = [f"druthers train {options} --run {shlex.quote(name)} data.limit={n}" for name, n in names.items()]
    if not run.has(TRAINING):
        train.append(f"druthers train {options} --run {shlex.quote(str(run.folder))}")
    ask = shlex.join(["druthers", "advise", str(run.folder), *(word for name in names for word in ("--runs", name))])
    return " && ".join([*train, ask])


# ---------------------------------------------------------------- learning curve


@dataclass(frozen=True)
class Trained:
    """A finished run as a point of a curve, with what has to be the same in all of them."""

    run: Run
    point: Point
    heldout: str
    model: str


def with_curve(evidence: Evidence, run: Run, others: Sequence[Run]) -> Evidence:
    """The evidence with a curve through the run and the others, or why there is none."""
    if not others:
        return evidence
    folders = {other.folder.resolve(): other for other in (run, *others) if other is not run or trained(run)}
    runs = [reached(one) for one in folders.values()]
    for other in runs[1:]:
        check_comparable(runs[0], other)
    noise = evidence.one("D3.noise")
    least = 0.0 if noise is None or noise.low is None or evidence.noise is None else min(noise.low, evidence.noise)
    found = fit_curve([one.point for one in runs], seed=run.settings().seed, top=1 - max(0.0, least))
    if isinstance(found, Curve):
        return replace(evidence, curve=found)
    return replace(evidence, curve_missing=found.reason)


def trained(run: Run) -> bool:
    """Whether the training of a run has ended."""
    return "train" in run.summary()


def reached(run: Run) -> Trained:
    """What a finished run reached on its held-out pairs, as it was evaluated, or else at its best step."""
    if not trained(run):
        raise InputError(f"{run.folder} is not trained to its end; finish it with `druthers train`, or leave it out")
    section = run.summary()["train"]
    accuracy = interval_of(run.summary().get("heldout", {}).get("accuracy"))
    if accuracy is not None:
        value, error = accuracy.value, (accuracy.high - accuracy.low) / (2 * Z_95)
    else:
        value, error = at_best_step(run, section["best_step"])
    return Trained(
        run,
        Point(section["pairs"], value, error),
        storage.sha256(run.folder / "data/heldout.jsonl"),
        run.json("inputs.json")["model"]["sha256"],
    )


def at_best_step(run: Run, step: int) -> tuple[float, float]:
    """Held-out accuracy at a step, and its standard error with each prompt counted once."""
    rows = [row for row in run.metrics() if row["split"] == "heldout" and row["step"] == step]
    if not rows:
        raise InputError(f"{run.folder}: metrics.jsonl has no evaluation at step {step}; run `druthers evaluate` on it")
    value, count = rows[-1]["rewards/accuracies"], min(rows[-1]["pairs"], run.json(CURATED)["prompts"]["heldout"])
    known = wilson(value * count, count)
    assert not isinstance(known, Undefined), "an evaluation without pairs"
    return value, max((known.high - known.low) / (2 * Z_95), sqrt(value * (1 - value) / count))


def check_comparable(one: Trained, other: Trained) -> None:
    """Raises InputError unless two runs differ in their amount of data alone."""
    if one.heldout != other.heldout:
        why = "other held-out pairs"
    elif one.model != other.model:
        why = "other model weights"
    else:
        own, theirs = (flat(json.loads(to_json(each.run.settings()))) for each in (one, other))
        keys = sorted(key for key in own.keys() | theirs.keys() if own.get(key) != theirs.get(key))
        why = ", ".join(key for key in keys if not key.startswith(SAME))
    if why:
        raise InputError(
            f"{other.run.folder} differs from {one.run.folder} in more than its size ({why}); "
            "a learning curve takes runs that differ in data.limit alone"
        )


# ---------------------------------------------------------------- prompts to collect


def write_prompts(
    run: Run, out: Path, findings: Sequence[Finding], *, scarce: Sequence[str], most: int, bars: Bars
) -> dict[str, Any]:
    """The prompts to collect next, ranked; the file is not written where there are none."""
    gaps = Gaps(scarce=frozenset(scarce), doubted=doubted(run, findings), most=most)
    if run.has(COVERED) and (run.folder / COVERED).stat().st_size:
        gaps.uncovered(storage.read(str(run.folder / COVERED), Prompt))
    if run.has(CURATED):
        summary = run.json(CURATED)
        bar, total = bars("pairs looked at"), summary["train"] + summary["heldout"]
        gaps.refused(lines_of(run, "data/rejected.jsonl"), form=summary["format"])
        gaps.pairs(told(lines_of(run, "data/train.jsonl"), bar, 0, total), heldout=False)
        gaps.pairs(told(lines_of(run, "data/heldout.jsonl"), bar, summary["train"], total), heldout=True)
    ranked = gaps.ranked()
    if ranked:
        storage.write(out, ranked)
    return {
        "path": str(out) if ranked else "",
        "count": len(ranked),
        "found": len(gaps.found),
        "beyond": gaps.beyond,
        "reasons": gaps.counts(),
        "unreadable": gaps.unreadable,
    }


def doubted(run: Run, findings: Sequence[Finding]) -> dict[str, str]:
    """Ids of pairs that a finding names as contradicted or doubtful, with the reason."""
    found: dict[str, str] = {}
    for finding in findings:
        if finding.id in DOUBTS and finding.rows is not None:
            name = next((n for n in (f"data/{finding.rows.file}", finding.rows.file) if run.has(n)), "")
            for row in lines_of(run, name) if name else ():
                found.update({row[key]: DOUBTS[finding.id] for key in ("id", "pair_id", "row_id") if key in row})
    return found


# ---------------------------------------------------------------- screen


def table_of(found: dict[str, Any]) -> Table:
    """Question, answer, why, what to do, the rule that fired, and what is missing."""
    table = Table(show_header=False, box=None, pad_edge=False, padding=(0, 2, 1, 0), title_justify="left")
    table.add_column(width=22, style="bold")
    table.add_column(overflow="fold")
    before = ""
    for answer in found["answers"]:
        table.add_row("" if answer["question"] == before else escape(answer["question"]), text_of(answer))
        before = answer["question"]
    table.add_row("Findings", escape(found["quality"]))
    if "prompts" in found:
        table.add_row("Prompts to collect", escape(prompts_text(found["prompts"])))
    return table


def text_of(answer: dict[str, Any]) -> str:
    """One answer as lines with markup."""
    lines = [f"[bold]{escape(answer['answer'])}[/]", escape(answer["why"])]
    if answer["missing"]:
        lines.append(f"[yellow]missing:[/] {escape(', '.join(answer['missing']))}")
    if answer["action"]:
        lines.append(f"[green]do:[/] {escape(answer['action'])}")
    sources = ", ".join(name if name == "default" else f"arXiv {name}" for name in answer["sources"])
    lines.append(f"[dim]rule {answer['rule']}{f' ({sources})' if sources else ''}[/]")
    return "\n".join(line for line in lines if line)


def prompts_text(found: dict[str, Any]) -> str:
    """How many prompts were written, and why they are asked for."""
    if not found["count"]:
        return "none: nothing in the data asks for more of some prompt, so no file was written"
    reasons = ", ".join(f"{count:,} {reason}" for reason, count in found["reasons"].items())
    more = " or more" if found["beyond"] else ""
    left = f" of {found['found']:,}{more}" if found["found"] > found["count"] or more else ""
    return f"{found['count']:,}{left} in {found['path']} ({reasons})"
