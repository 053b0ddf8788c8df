"""The figures of quality.json: histograms, bars, and values over a number, each as its numbers describe it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import accumulate, pairwise
from typing import Any

from druthers.report import figures, wording
from druthers.report.dataset import listed
from druthers.report.figures import Binned, Point, Scale
from druthers.report.findings import fitted
from druthers.report.parts import Chart, Row, Table
from druthers.report.reading import Tree, branch, number, text

MOST_FIGURES, MOST_BINS, MOST_BARS, MOST_SERIES, MOST_POINTS = 24, 60, 20, 4, 120
STYLES = ("right", "base", "quiet", "faint")
"""Classes of style.css for the first, second, third and fourth series."""
SIDES = ("_chosen", "_rejected")


def figures_of(quality: Tree) -> list[tuple[str, Chart | Table]]:
    """Every figure that can be drawn by its name; chosen and rejected in one where their bins are the same."""
    found = [figure for figure in listed(quality, "figures") if isinstance(figure, dict)]
    drawn = [(text(figure, "name"), picture_of(figure)) for figure in beside(found)[:MOST_FIGURES]]
    return [(name, picture) for name, picture in drawn if picture]


def picture_of(figure: Tree) -> Chart | Table | None:
    """One figure by its kind; None where its numbers do not fit together."""
    kind = text(figure, "kind")
    if kind == "histogram":
        return histogram(figure)
    if kind == "bars":
        return bars(figure)
    return points(figure, joint=kind == "curve") if kind in ("curve", "points") else None


def title(figure: Tree) -> str:
    """The title of a figure."""
    return fitted(text(figure, "title") or text(figure, "name") or "Figure", 160)


def note(figure: Tree) -> str:
    """What a figure says in words."""
    return fitted(text(figure, "text"), 600)


def numbers(values: object) -> list[float]:
    """A list of finite numbers; empty where it holds anything else.

    >>> numbers([1, 2.5]), numbers([1, None]), numbers("12")
    ([1.0, 2.5], [], [])
    """
    if not isinstance(values, list):
        return []
    found = [number({"v": value}, "v") for value in values]
    return [value for value in found if value is not None] if None not in found else []


# ---------------------------------------------------------------- histograms


def beside(found: Sequence[Tree]) -> list[Tree]:
    """Histograms `X_chosen` and `X_rejected` over the same edges as one figure of two series, where the first stood."""
    named = {text(figure, "name"): figure for figure in found if text(figure, "kind") == "histogram"}
    out: list[Tree] = []
    for figure in found:
        name = text(figure, "name")
        stem, side = next(((name.removesuffix(s), s) for s in SIDES if name.endswith(s)), (name, ""))
        good, bad = (named.get(stem + s) for s in SIDES)
        if not side or good is None or bad is None or good.get("edges") != bad.get("edges"):
            out.append(figure)
        elif side == SIDES[0]:
            out.append({**good, "counts": {"chosen": summed(good), "rejected": summed(bad)}, "text": both(good, bad)})
    return out


def both(good: Tree, bad: Tree) -> str:
    """The texts of two figures that are drawn as one."""
    return " ".join(dict.fromkeys(said for said in (text(good, "text"), text(bad, "text")) if said))


def summed(figure: Tree) -> list[float]:
    """The counts of all series together."""
    rows = [numbers(counts) for counts in branch(figure, "counts").values()]
    return [sum(column) for column in zip(*rows, strict=False)]


def histogram(figure: Tree) -> Chart | None:
    """Counts over edges, each series as shares of itself, since one is often much larger than the other."""
    edges = numbers(figure.get("edges"))
    given = {str(name): numbers(counts) for name, counts in branch(figure, "counts").items()}
    series = {name: n for name, n in given.items() if len(n) == len(edges) - 1 and sum(n) > 0 and min(n) >= 0}
    series = dict(list(series.items())[:MOST_SERIES])
    if not series or any(b <= a for a, b in pairwise(edges)):
        return None
    quantiles = {name: [quantile(edges, n, q) for q in (0.1, 0.5, 0.9)] for name, n in series.items()}
    few, bins = merged(edges, series)
    drawn = [
        Binned(name, style, [c / sum(n) for c in n]) for (name, n), style in zip(bins.items(), STYLES, strict=False)
    ]
    unit = fitted(text(figure, "unit"), 40)
    middles = ", ".join(f"{name} {figures.plain(q[1])}" for name, q in quantiles.items())
    label = f"{title(figure)}: histogram; median {middles} {unit}"
    rows = [
        [fitted(called(name), 60), wording.count(sum(series[name])), *map(short, q)] for name, q in quantiles.items()
    ]
    columns = ["", "pairs", "10th pct", f"median{', ' + unit if unit else ''}", "90th pct"]
    legend = [(one.style, fitted(called(one.name), 60)) for one in drawn]
    return Chart(title(figure), figures.binned_chart(few, drawn, label=label), legend, columns, rows, note(figure))


def called(name: str) -> str:
    """A series in words."""
    return {"train": "to train on", "heldout": "held out"}.get(name, name)


def short(value: float) -> str:
    """A number read off a histogram: no finer than its bins."""
    return wording.decimal(value, 0 if abs(value) >= 10 else 2)


def quantile(edges: Sequence[float], counts: Sequence[float], share: float) -> float:
    """The value below which a share lies, evenly spread within each bin.

    >>> quantile([0, 10, 20], [5, 5], 0.5), quantile([0, 10, 20], [0, 4], 0.25)
    (10.0, 12.5)
    """
    wanted, sums = share * sum(counts), [0.0, *accumulate(counts)]
    i = next(i for i, total in enumerate(sums[1:]) if total >= wanted and counts[i] > 0)
    return edges[i] + (edges[i + 1] - edges[i]) * (wanted - sums[i]) / counts[i]


def merged(edges: list[float], series: dict[str, list[float]]) -> tuple[list[float], dict[str, list[float]]]:
    """At most `MOST_BINS` bins: neighbours counted together."""
    size = math.ceil((len(edges) - 1) / MOST_BINS)
    few = [*edges[:-1:size], edges[-1]]
    return few, {name: [sum(n[i : i + size]) for i in range(0, len(n), size)] for name, n in series.items()}


# ---------------------------------------------------------------- bars


def bars(figure: Tree) -> Table | None:
    """Named counts, the largest first, those beyond `MOST_BARS` together."""
    labels, values = listed(figure, "labels"), numbers(figure.get("values"))
    if not values or len(labels) != len(values) or min(values) < 0:
        return None
    ordered = sorted(zip(map(str, labels), values, strict=True), key=lambda item: -item[1])
    kept, rest = ordered[:MOST_BARS], ordered[MOST_BARS:]
    if rest:
        kept.append((f"{len(rest):,} others", sum(value for _, value in rest)))
    unit, total = fitted(text(figure, "unit"), 40), sum(values)
    scale = Scale(0, max(value for _, value in kept) or 1)
    rows = [bar_row(name, value, scale=scale, total=total, unit=unit) for name, value in kept]
    return Table(title(figure), rows, [], note=note(figure))


def bar_row(name: str, value: float, *, scale: Scale, total: float, unit: str) -> Row:
    """One bar with its count, and its share where the values are counts."""
    name = fitted(name, 120) or "no name"
    counts = value == round(value)
    said = wording.count(value) if counts else wording.decimal(value)
    cells = [(unit or "count", said), ("share", wording.percent(value / total))] if total else [(unit or "count", said)]
    picture = figures.share_row([("aligned", value), ("rest", scale.high - value)], label=f"{name}: {said} {unit}")
    return Row(name, picture, cells)


# ---------------------------------------------------------------- values over a number


def points(figure: Tree, *, joint: bool) -> Chart | None:
    """Values with intervals over a number; a share is told in per cent."""
    given = {str(name): read_points(row) for name, row in branch(figure, "series").items()}
    named = [(name, found) for name, found in given.items() if found][:MOST_SERIES]
    if not named:
        return None
    share = text(figure, "unit") == "share"
    form = (lambda v: wording.percent(v, 0)) if share else figures.plain
    drawn = [(style, found) for style, (_, found) in zip(STYLES, named, strict=False)]
    label = f"{title(figure)}: {sum(len(found) for _, found in named)} values over {text(figure, 'over') or 'a number'}"
    picture = figures.points_chart(drawn, form=form, label=label, level=number(figure, "level"), joint=joint)
    legend = [(style, fitted(name, 60)) for style, (name, _) in zip(STYLES, named, strict=False)]
    rows = [[figures.plain(p.x), *told(p, share=share)] for _, found in named for p in found]
    columns = [
        fitted(text(figure, "over"), 80) or "at",
        fitted(text(figure, "unit"), 40) or "value",
        "95\u202f% interval",
    ]
    foot = f"Across: {fitted(text(figure, 'over'), 80)}." if text(figure, "over") else ""
    return Chart(title(figure), picture, legend, columns, rows, f"{note(figure)} {foot}".strip())


def told(point: Point, *, share: bool) -> list[str]:
    """A value and its interval in words."""
    value, low, high = (wording.percent(v) if share else figures.plain(v) for v in (point.value, point.low, point.high))
    return [value, f"{low} to {high}" if point.low < point.high else wording.NONE]


def read_points(rows: Any) -> list[Point]:
    """Points given as {"x", "value", "low", "high"}, in the order of x; those without a value are left out."""
    found = []
    for row in rows[:MOST_POINTS] if isinstance(rows, list) else []:
        x, value, low, high = (number(row, key) for key in ("x", "value", "low", "high"))
        if x is not None and value is not None:
            found.append(
                Point(x, value, value if low is None else min(low, value), value if high is None else max(high, value))
            )
    return sorted(found, key=lambda point: point.x)
