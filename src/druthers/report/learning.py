"""Did it learn: held-out ranking, curves over the steps, margins before and after, and where the probability went."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from druthers.report import figures, wording
from druthers.report.figures import Series
from druthers.report.headline import held_out_accuracy
from druthers.report.parts import NINETY_FIVE, Chart, Table, share_row, share_table
from druthers.report.reading import RunFiles, Tree, best_step, branch, estimate, number, text
from druthers.report.wording import NONE
from druthers.stats import Interval

PAIRS = "evaluation/pairs.json"
FLIPS = ("kept", "gained", "lost", "never")
MOST_DOTS = 60
ROUNDING = 1e-4


@dataclass(frozen=True)
class Curve:
    """A metric drawn over the steps: key, name, how it is written in a table and at an axis, and a level of note."""

    key: str
    title: str
    form: figures.Format
    tick: figures.Format
    strong: float | None


def short(value: float) -> str:
    """A number at an axis."""
    return f"{value:g}".replace("-", wording.MINUS)


CURVES = (
    Curve("loss", "Loss", lambda v: wording.decimal(v, 3), short, None),
    Curve("rewards/accuracies", "Pairs ranked right", wording.percent, lambda v: wording.percent(v, 0), 0.5),
    Curve("rewards/margins", "Reward margin", wording.decimal, short, 0.0),
    Curve("reward", "Reward of sampled answers", lambda v: wording.decimal(v, 3), short, None),
    Curve("kl", "KL to the reference, nats an answer", wording.decimal, short, 0.0),
    Curve("entropy", "Entropy, nats a token", wording.decimal, short, None),
)


def accuracy(files: RunFiles) -> Table:
    """Held-out ranking: implicit reward of the aligned model beside log-probability under the base."""
    learned, before = held_out_accuracy(files), estimate(files.tree(PAIRS), "accuracy_base")
    known = [
        (learned, "aligned", "Aligned model, implicit reward", "chosen gained more log-probability than rejected"),
        (before, "base", "Base model, log-probability", "chosen is likelier than rejected"),
    ]
    rows = [
        share_row(name, found, measure="right", unit="pairs", style=style, note=note)
        for found, style, name, note in known
        if isinstance(found, Interval)
    ]
    legend = [("ring", "base"), ("aligned", "aligned"), ("band", NINETY_FIVE)]
    caption = "Held-out pairs ranked in the preferred order"
    return share_table(caption, rows, legend=legend, of="pairs", grid="quarters halved")


def flips(files: RunFiles) -> dict[str, str]:
    """The flip table: kept, gained, lost, never, and a note on its test; empty where it was not counted."""
    pairs = files.tree(PAIRS)
    counts, p = branch(pairs, "flips"), number(pairs, "flips_p")
    if any(number(counts, name) is None for name in FLIPS):
        return {}
    shown = NONE if p is None else "below 0.001" if p < 0.001 else wording.decimal(p, 3)
    note = "" if p is None else f"Gained against lost, exact McNemar test: p {shown}."
    return {name: wording.count(number(counts, name)) for name in FLIPS} | {"note": note}


def curves(files: RunFiles) -> list[Chart]:
    """Loss, accuracy and margin over the steps."""
    return [chart for chart in (training_chart(files, curve) for curve in CURVES) if chart.picture]


def points_of(lines: Sequence[Tree], key: str) -> list[tuple[float, float]]:
    """(step, value) of every metrics line that has the value."""
    every = [(number(line, "step"), number(line, key)) for line in lines]
    return [(step, value) for step, value in every if step is not None and value is not None]


def training_chart(files: RunFiles, curve: Curve) -> Chart:
    """Training batches faint, their running mean, and the held-out pairs bold."""
    train, held = (points_of(files.split(name), curve.key) for name in ("train", "heldout"))
    window = max(1, len(train) // 8)
    series = [
        Series("training, each step", "faint", train),
        Series(
            f"training, mean of {window} steps", "quiet", figures.smoothed(train, window=window) if window > 1 else []
        ),
        Series("held out", "aligned", held, dots=len(held) <= MOST_DOTS),
    ]
    ends = f"; held out {curve.form(held[0][1])} at first and {curve.form(held[-1][1])} at last" if held else ""
    label = f"{curve.title} over {len(train)} training steps{ends}"
    picture = figures.line_chart(series, form=curve.tick, label=label, best=best_step(files), strong=curve.strong)
    legend = [(one.style, one.name) for one in series if one.points]
    numbers = [[wording.count(step), curve.form(value)] for step, value in held]
    return Chart(curve.title, picture, legend, ["step", f"{curve.title.lower()}, held out"], numbers)


def margins(files: RunFiles) -> Chart | None:
    """Histogram of held-out reward margins before training and at the kept checkpoint; None where none were kept."""
    steps, beta = files.margins.steps, number(files.config, "loss.beta")
    if not steps or beta is None:
        return None
    first, kept = steps[0], best_step(files)
    after = next((step for step in steps if step == kept), steps[-1])
    before = files.margins.gaps[first] * beta if first != after else None
    reached = files.margins.gaps[after] * beta
    low = wording.percent(below_zero(reached))
    label = f"Histogram of {len(reached)} held-out reward margins at step {after}: {low} below zero"
    legend = [("right", f"step {after}, right order"), ("wrong", f"step {after}, wrong order")]
    legend += [] if before is None else [("base", f"step {first}, before training")]
    return Chart(
        title="Reward margins of the held-out pairs",
        picture=figures.histogram(before, reached, label=label),
        legend=legend,
        columns=["margin", "mean", "10th pct", "median", "90th pct", "below zero"],
        numbers=[margin_line(f"step {s}", files.margins.gaps[s] * beta) for s in dict.fromkeys((first, after))],
        note=margin_note(number(files.tree(PAIRS), "length_correlation")),
    )


def margin_note(correlation: float | None) -> str:
    """What a margin is, and how far it follows the length of the responses."""
    meaning = (
        "Margin: β times the log-ratio of chosen minus that of rejected; the outermost bars hold what lies beyond."
    )
    if correlation is None:
        return meaning
    return f"{meaning} Its correlation with how much longer chosen is than rejected: {wording.signed(correlation)}."


def below_zero(margins: NDArray[np.float64]) -> float:
    """Share of pairs in the wrong order; the rounding of a policy that still equals its reference is no order."""
    return float(np.mean(margins < -ROUNDING))


def margin_line(name: str, margins: NDArray[np.float64]) -> list[str]:
    """Mean, spread and share below zero."""
    values = [float(margins.mean()), *(float(q) for q in np.quantile(margins, [0.1, 0.5, 0.9]))]
    return [name, *(wording.decimal(v) for v in values), wording.percent(below_zero(margins))]


def fell(files: RunFiles) -> dict[str, str]:
    """Share of pairs whose chosen response became less likely, with the sentence that explains it."""
    pairs = files.tree(PAIRS)
    share, change = estimate(pairs, "chosen_fell"), estimate(pairs, "chosen_change_per_token")
    if not isinstance(share, Interval):
        return {}
    notes = [f"{wording.count(share.n)} held-out pairs, {NINETY_FIVE} {wording.percent_range(share)}."]
    if isinstance(change, Interval):
        mean, between = wording.signed(change.value, 3), wording.decimal_range(change, 3)
        notes.append(f"The chosen response changed by {mean} nats a token on average ({NINETY_FIVE} {between}).")
    return {"share": wording.percent(share.value), "text": text(pairs, "text"), "note": " ".join(notes)}


def rewards(files: RunFiles) -> Chart | None:
    """Implicit rewards of chosen and rejected on held-out pairs: their gap is the margin."""
    held = files.split("heldout")
    chosen, rejected = points_of(held, "rewards/chosen"), points_of(held, "rewards/rejected")
    if not chosen or not rejected:
        return None
    dots = len(chosen) <= MOST_DOTS
    series = [Series("chosen", "aligned", chosen, dots=dots), Series("rejected", "quiet", rejected, dots=dots)]
    ends = f"chosen ends at {wording.decimal(chosen[-1][1])}, rejected at {wording.decimal(rejected[-1][1])}"
    label = f"Held-out rewards over the steps: {ends}"
    numbers = [
        [wording.count(step), wording.decimal(a), wording.decimal(b)]
        for (step, a), (_, b) in zip(chosen, rejected, strict=False)
    ]
    return Chart(
        title="Implicit reward of chosen and rejected, held out",
        picture=figures.line_chart(series, form=short, label=label, best=best_step(files), strong=0.0),
        legend=[(one.style, one.name) for one in series],
        columns=["step", "chosen", "rejected"],
        numbers=numbers,
    )
