"""Did anything break: length, repetition and fluency against their limits, and the distance from the base."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from druthers.report import figures, wording
from druthers.report.figures import Scale
from druthers.report.parts import NINETY_FIVE, PER_CENT, Row, Table
from druthers.report.reading import RunFiles, estimate, number, text
from druthers.stats import Interval

LENGTH_RATIO = (0.6, 1.4)
PERPLEXITY_RATIO = (0.0, 1.25)
REPETITION_RISE = (-1.0, 0.0005)  # what rounds to 0.0 points is no rise

KL_SCALES = (("per_sequence", "a whole answer", 2), ("per_token", "one token", 4))


@dataclass(frozen=True)
class Limit:
    """A measure that must stay in a range: its scale, where the base stands on it, the range in numbers and words."""

    name: str
    scale: Scale
    base: float
    range: tuple[float, float]
    words: str


LENGTH = Limit("Length", Scale(0, 2), 1, LENGTH_RATIO, "0.6–1.4")
REPETITION = Limit("Repetition", Scale(-0.1, 0.1), 0, REPETITION_RISE, "no rise")
PERPLEXITY = Limit("Perplexity", Scale(0.5, 2), 1, PERPLEXITY_RATIO, "at most 1.25")


def checks(files: RunFiles) -> Table:
    """Every check that was measured."""
    found = (length_check(files), repetition_check(files), perplexity_check(files), finish_check(files))
    legend = [("ring", "base"), ("aligned", "aligned"), ("allowed", "allowed")]
    return Table("Sampled answers of the aligned model against their limits", [row for row in found if row], legend)


def measured(files: RunFiles, measure: str) -> tuple[float | None, float | None]:
    """A measure of base and aligned answers."""
    tree = files.tree("evaluation/answers.json")
    return number(tree, f"{measure}.base"), number(tree, f"{measure}.aligned")


def ratio_of(files: RunFiles, measure: str) -> float | None:
    """Aligned over base, from evaluation/answers.json or its copy in summary.json."""
    found = number(files.tree("evaluation/answers.json"), f"{measure}.ratio")
    return number(files.tree("summary.json"), f"{measure}_ratio") if found is None else found


def check_row(limit: Limit, value: float, *, shown: str, note: str) -> Row:
    """A value on its scale, passed or to be looked at."""
    low, high = limit.range
    inside = low <= value <= high
    label = f"{limit.name}: {shown}, limit {limit.words}, {'passed' if inside else 'outside'}"
    picture = figures.limit_row(limit.scale, base=limit.base, value=value, low=low, high=high, label=label)
    cells = [("value", shown), ("limit", limit.words)]
    return Row(limit.name, picture, cells, note, "pass" if inside else "warn")


def length_check(files: RunFiles) -> Row | None:
    """Mean length, aligned over base."""
    ratio, (base, aligned) = ratio_of(files, "length"), measured(files, "length")
    if ratio is None:
        return None
    note = f"mean tokens of an answer: base {wording.decimal(base, 1)}, aligned {wording.decimal(aligned, 1)}"
    return check_row(LENGTH, ratio, shown=f"×\u202f{wording.decimal(ratio)}", note=note)


def repetition_check(files: RunFiles) -> Row | None:
    """Change in the share of repeated 4-grams."""
    base, aligned = measured(files, "repetition")
    change = number(files.tree("summary.json"), "repetition_change")
    change = aligned - base if base is not None and aligned is not None else change
    if change is None:
        return None
    shares = f"base {wording.percent(base)}, aligned {wording.percent(aligned)}"
    note = f"four-word runs said before in the same answer: {shares}"
    return check_row(REPETITION, change, shown=wording.points(change), note=note)


def perplexity_check(files: RunFiles) -> Row | None:
    """How strange the base finds the aligned answers beside its own."""
    ratio, (base, aligned) = ratio_of(files, "perplexity"), measured(files, "perplexity")
    if ratio is None:
        return None
    note = (
        f"of the base model: on its own answers {wording.decimal(base)}, on the aligned ones {wording.decimal(aligned)}"
    )
    return check_row(PERPLEXITY, ratio, shown=f"×\u202f{wording.decimal(ratio)}", note=note)


def finish_check(files: RunFiles) -> Row | None:
    """Answers cut off at the longest length; told without a limit."""
    base, aligned = measured(files, "unfinished")
    if base is None or aligned is None:
        return None
    shares, longest = f"base {wording.percent(base)}, aligned {wording.percent(aligned)}", "the limit"
    tokens = number(files.config, "evaluate.max_new_tokens")
    note = f"answers that ran into {longest if tokens is None else f'{longest} of {tokens:.0f} tokens'}: {shares}"
    picture = figures.moved_row(PER_CENT, base=base, value=aligned, style="aligned", label=f"Unfinished: {shares}")
    return Row("Unfinished", picture, [("value", wording.percent(aligned)), ("limit", "none set")], note)


def kl(files: RunFiles) -> dict[str, Any]:
    """KL to the reference, per answer and per token, both estimators; empty where it was not measured."""
    tree = files.tree("evaluation/kl.json")
    kinds = [(key, name, digits, k) for key, name, digits in KL_SCALES for k in ("k1", "k3")]
    known = [(f"{name}, {k}", digits, estimate(tree, f"{key}.{k}")) for key, name, digits, k in kinds]
    rows = [
        [name, wording.decimal(found.value, digits), wording.decimal_range(found, digits)]
        for name, digits, found in known
        if isinstance(found, Interval)
    ]
    samples, prompts = (wording.count(number(tree, key)) for key in ("samples", "prompts"))
    drawn = f"{samples} samples on {prompts} prompts at temperature {number(tree, 'temperature') or 1:g}."
    columns = ["nats for", "estimate", NINETY_FIVE]
    return {"columns": columns, "rows": rows, "text": text(tree, "text"), "drawn": drawn} if rows else {}
