"""What was measured, as Markdown: a table for every block, from the files under results/."""

from __future__ import annotations

import statistics
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cell import RUNGS, read_json

EPOCH = 1000
"""Pairs of the epoch that is estimated."""
NAMES = {"druthers": "druthers", "trl-tuned": "TRL, tuned", "trl-default": "TRL, defaults", "plain": "plain loop"}
SHAPES = {"hh": "HH", "uf": "UltraFeedback-like", "tldr": "TL;DR-like", "rag": "retrieval-like, 2k"}
MODES = {"full": "all weights", "lora": "LoRA, rank 16, all linear layers"}
BEGIN, END = "<!-- make bench: begin -->", "<!-- make bench: end -->"
Row = dict[str, Any]


def quartiles(values: Sequence[float]) -> tuple[float, float, float]:
    """First quartile, median, third quartile; of one value, itself.

    >>> quartiles([1.0, 2.0, 3.0, 4.0, 5.0])
    (2.0, 3.0, 4.0)
    """
    if len(values) == 1:
        return values[0], values[0], values[0]
    low, middle, high = statistics.quantiles(values, n=4, method="inclusive")
    return low, middle, high


def spread(values: Sequence[float], form: str = ".2f") -> str:
    """Median with quartiles.

    >>> spread([1.0, 2.0, 3.0])
    '2.00 (1.50 to 2.50)'
    """
    low, middle, high = quartiles(values)
    return f"{middle:{form}} ({low:{form}} to {high:{form}})"


def ratios(slow: Sequence[Row], fast: Sequence[Row]) -> list[float]:
    """Time of `slow` over that of `fast`, step by step on the same pairs, round by round.

    >>> ratios([{"seconds": [6.0]}, {"seconds": [8.0]}], [{"seconds": [2.0, 9.0]}, {"seconds": [2.0, 9.0]}])
    [3.0, 4.0]
    """
    return [
        a / b
        for one, other in zip(slow, fast, strict=True)
        for a, b in zip(one["seconds"], other["seconds"], strict=False)
    ]


def per_pair(rows: Sequence[Row]) -> list[float]:
    """Seconds a pair of every timed step."""
    return [second / row["spec"]["pairs_per_step"] for row in rows for second in row["seconds"]]


def epoch_minutes(rows: Sequence[Row]) -> float:
    """Minutes from the command to the end of an epoch of EPOCH pairs, the reference scored on the way."""
    row = min(rows, key=lambda row: sum(row["seconds"]))
    pairs = row["spec"]["pairs_per_step"] * len(row["seconds"])
    start = row["first_step"] - row["reference"]["seconds"] - row["warm_up"]
    scoring = row["reference"]["seconds"] / row["reference"]["tokens"] * sum(row["naive_tokens"]) / pairs
    return (start + EPOCH * (scoring + sum(row["seconds"]) / pairs)) / 60


def gib(count: float) -> str:
    """Bytes in GiB."""
    return f"{count / 2**30:.2f}"


def read(results: Path, pattern: str) -> list[Row]:
    """Results whose names match, in order; failed ones are left out, and unreadable ones with a sentence."""
    found = []
    for path in sorted(results.glob(pattern)):
        row = read_json(path)
        if row is None:
            print(f"{path} cannot be read and is left out; measure it again", file=sys.stderr)
        elif "failed" not in row:
            found.append(row)
    return found


def brief(result: Row) -> str:
    """A line for the screen."""
    if "failed" in result:
        return f"failed with code {result['failed']}"
    if "spec" in result:
        return f"{statistics.median(per_pair([result])):.3f} s a pair, peak {gib(result['bytes']['peak'])} GiB"
    return f"{statistics.median(result['seconds']):.2f} s a step" if "seconds" in result else ""


def grid(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def block(results: Path, shape: str, mode: str) -> str:
    """All contenders on one shape in one mode; empty when nothing was measured."""
    found = {name: read(results, f"{shape}-{mode}/{name}-[01].json") for name in NAMES}
    found = {name: rows for name, rows in found.items() if len(rows) == 2}
    if "druthers" not in found:
        return ""
    ours = found["druthers"]
    lines = []
    for name, rows in found.items():
        tokens, seconds = (sum(sum(row[key]) for row in rows) for key in ("naive_tokens", "seconds"))
        peak = max(row["bytes"]["peak"] for row in rows)
        over = max(row["bytes"]["peak"] - row["bytes"]["imports"] for row in rows)
        times = per_pair(rows)
        lines.append(
            [
                NAMES[name],
                spread(times, ".3f"),
                f"{1 / statistics.median(times):.2f}",
                f"{tokens / seconds:,.0f}",
                "" if name == "druthers" else spread(ratios(rows, ours)),
                f"{gib(peak)} ({gib(over)})",
                f"{statistics.median(row['first_step'] - row['reference']['seconds'] for row in rows):.0f}",
                f"{epoch_minutes(rows):.1f}",
            ]
        )
    head = ["", "s a pair", "pairs/s", "naive tokens/s", "times druthers' time", "peak GiB (without imports)"]
    head += ["first step, s", f"epoch of {EPOCH:,} pairs, min"]
    size = ours[0]["spec"]["pairs_per_step"]
    title = f"**{SHAPES[shape]}, {MODES[mode]}**, {size} pairs a step, {len(ours[0]['seconds'])} timed steps twice"
    return "\n\n".join([title, grid(head, lines), tuning(results, shape, mode, found), agreement(found)])


def tuning(results: Path, shape: str, mode: str, found: dict[str, list[Row]]) -> str:
    """TRL's settings that were tried, and which was taken."""
    if "trl-tuned" not in found:
        return ""
    chosen = found["trl-tuned"][0]["spec"]
    tried = read(results, f"{shape}-{mode}/trial-*.json")
    what = "; ".join(f"{setting(row['spec'])}: {brief(row)}" for row in tried)
    return f"TRL's settings by trial: {what}. Taken: {setting(chosen)}."


def setting(spec: Row) -> str:
    """The tuned part of a peer's spec."""
    return f"micro-batch {spec['micro_batch']}, {spec['attention']} attention, {spec['memory']}"


def agreement(found: dict[str, list[Row]]) -> str:
    """How far losses and gradient norms of the same steps lie apart from druthers'.

    The first step is from the same weights; what rounding makes different there, updates make larger.
    """
    ours, first, later = found["druthers"][0], [], []
    for name, (other, _) in found.items():
        if name != "druthers":
            loss = [abs(a - b) for a, b in zip(ours["losses"], other["losses"], strict=False)]
            norm = [abs(a / b - 1) for a, b in zip(ours["grad_norms"], other["grad_norms"], strict=False)]
            first.append(f"{NAMES[name]} {loss[0]:.4f} and {norm[0]:.1%}")
            later.append(f"{NAMES[name]} {max(loss):.4f} and {max(norm):.1%}")
    return (
        f"Same work: in the first step loss and gradient norm differ from druthers' by {', '.join(first)}; "
        f"in all of them, updates between, by at most {', '.join(later)}."
    )


def share(results: Path) -> str:
    """Operations really done in a second, over what the box's cores reach in matrix products."""
    rate = read(results, "matmul.json")
    lines = []
    for mode in MODES:
        counted, timed = read(results, f"hh-{mode}/flops.json"), read(results, f"hh-{mode}/druthers-[01].json")
        if rate and counted and timed:
            work = counted[0]["flops"]
            speed = [flop / row["seconds"][i] for row in timed for i, flop in enumerate(work)]
            middle = statistics.median(speed)
            lines.append(
                [
                    MODES[mode],
                    f"{statistics.mean(work) / counted[0]['spec']['pairs_per_step'] / 1e12:.3f}",
                    f"{middle / 1e12:.2f}",
                    f"{rate[0]['peak'] / 1e12:.2f}",
                    f"{middle / rate[0]['peak']:.0%}",
                    f"{rate[0]['model'] / 1e12:.2f}",
                    f"{middle / rate[0]['model']:.0%}",
                ]
            )
    if not lines:
        return ""
    head = ["", "TFLOP a pair", "TFLOP/s in the step", "the box's best", "share", "at the model's shapes", "share"]
    return "**Matrix products of a step (HH) against the box's own bfloat16 rate**\n\n" + grid(head, lines)


def rungs(results: Path) -> str:
    """The ladder from the naive step to ours."""
    timed = {rung: read(results, f"ladder/{i}-*-[01].json") for i, rung in enumerate(RUNGS)}
    equal = read(results, "ladder/equal.json")
    if not all(timed.values()) or not equal:
        return ""
    lines, first, last = [], timed[RUNGS[0]], timed[RUNGS[0]]
    for rung, rows in timed.items():
        error = equal[0]["rungs"][rung]
        lines.append(
            [
                rung,
                f"{statistics.median(s for row in rows for s in row['seconds']):.2f}",
                f"{statistics.median(ratios(last, rows)):.2f}",
                f"{statistics.median(ratios(first, rows)):.2f}",
                gib(max(row["peak"] for row in rows)),
                *(f"{error[kind][what]:.0e}" for kind in ("float32", "bfloat16") for what in ("loss", "gradient")),
            ]
        )
        last = rows
    head = ["rung", "s a step", "faster than the last", "than the first", "peak GiB"]
    head += [f"{what}, {kind}" for kind in ("float32", "bfloat16") for what in ("loss", "gradient")]
    title = (
        f"**Rung by rung (HH, all weights)**; the last four columns are differences from the naive step in float32 on "
        f"{equal[0]['pairs']} pairs: the largest of a pair's loss (mean {equal[0]['loss']:.3f}), and of the gradient, "
        "relative"
    )
    return f"{title}\n\n{grid(head, lines)}"


def scaling(results: Path) -> str:
    """druthers as length, budget and step grow."""
    kinds = {"length": "tokens of a pair", "budget": "token budget (HH)", "pairs": "pairs a step (HH)"}
    lines = []
    for kind, name in kinds.items():
        paths = sorted(results.glob(f"scaling/{kind}-*.json"), key=lambda path: int(path.stem.split("-")[1]))
        for path in paths:
            for row in read(results, str(path.relative_to(results))):
                speed = sum(row["naive_tokens"]) / sum(row["seconds"])
                times = f"{statistics.median(per_pair([row])):.3f}"
                lines.append([f"{name}: {path.stem.split('-')[1]}", times, f"{speed:,.0f}", gib(row["bytes"]["peak"])])
    if not lines:
        return ""
    head = ["druthers, all weights", "s a pair", "naive tokens/s", "peak GiB"]
    return "**As length, budget and step grow**\n\n" + grid(head, lines)


def described(results: Path) -> str:
    """The machine, the versions and the pairs."""
    found = read(results, "machine.json")
    if not found:
        return ""
    m = found[0]
    cells = read(results, "*/druthers-0.json") + read(results, "*/trl-tuned-0.json")
    packages = {name: number for row in cells for name, number in row["packages"].items()}
    versions = ", ".join(f"{name} {number}" for name, number in sorted(packages.items()))
    commits = sorted(
        {row["commit"] for row in [*read(results, "*.json"), *read(results, "*/*.json")] if "commit" in row}
    )
    return (
        f"{m['cpu']}, {m['cores']} cores ({', '.join(m['flags'])}), {m['memory_gib']} GiB, {m['system']}, "
        f"Python {m['python']}; {versions}; measured at commit {', '.join(commits)}."
    )


def whole(results: Path) -> str:
    """Everything that was measured."""
    parts = [described(results)]
    parts += [block(results, shape, mode) for shape in SHAPES for mode in MODES]
    parts += [share(results), rungs(results), scaling(results)]
    return "\n\n".join(part for part in parts if part)


def insert(page: Path, text: str) -> None:
    """Put the text between the two marks of a page; raises ValueError when the page has none."""
    before, begin, rest = page.read_text(encoding="utf-8").partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"{page} has no lines {BEGIN} and {END}")
    page.write_text(f"{before}{BEGIN}\n\n{text}\n\n{END}{after}", encoding="utf-8")
