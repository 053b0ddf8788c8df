"""Inline SVG that keeps its letters readable at any width.

Across, everything is placed in per cent of the figure's width; down, in pixels. So a figure stretches to the
page while its text, dots and strokes keep their size. Curves stand in a nested SVG that stretches, with strokes that do
not. Colours are the classes of style.css, which turn with light and dark. Every text goes through `Markup.format`,
which escapes it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise

import numpy as np
from markupsafe import Markup
from numpy.typing import NDArray

Format = Callable[[float], str]
EMPTY = Markup("")
ROW, TOP, PLOT, FOOT = 30, 22, 150, 26
MOST_POINTS = 240


@dataclass(frozen=True)
class Scale:
    """A range of values laid over a width or a height."""

    low: float
    high: float

    def share(self, value: float) -> float:
        """Where a value lies, 0 at the low end and 1 at the high end; values outside lie on the end.

        >>> Scale(0, 4).share(1), Scale(0, 4).share(9)
        (0.25, 1.0)
        """
        return min(1.0, max(0.0, (value - self.low) / (self.high - self.low)))

    def across(self, value: float) -> str:
        """The place of a value as per cent of the width."""
        return f"{100 * self.share(value):.2f}%"


@dataclass(frozen=True)
class Series:
    """One line of a chart: (step, value) points, a class of style.css, and whether its points are marked."""

    name: str
    style: str
    points: Sequence[tuple[float, float]]
    dots: bool = False


def joined(parts: Iterable[Markup]) -> Markup:
    """Pieces of SVG one after the other."""
    return EMPTY.join(parts)


def figure(body: Markup, *, height: float, label: str, style: str) -> Markup:
    """An SVG that is one image to a screen reader, described by `label`."""
    return Markup('<svg class="{}" role="img" aria-label="{}" width="100%" height="{:.0f}">{}</svg>').format(
        style, label, height, body
    )


def line(x1: str, y1: float, x2: str, y2: float, style: str) -> Markup:
    """A straight line; x in per cent, y in pixels."""
    return Markup('<line x1="{}" y1="{:.1f}" x2="{}" y2="{:.1f}" class="{}"/>').format(x1, y1, x2, y2, style)


def dot(x: str, y: float, radius: float, style: str) -> Markup:
    """A disc; x in per cent, the rest in pixels."""
    return Markup('<circle cx="{}" cy="{:.1f}" r="{}" class="{}"/>').format(x, y, radius, style)


def bar(scale: Scale, start: float, end: float, *, y: float, height: float, style: str) -> Markup:
    """A rectangle from one value to another."""
    width = 100 * (scale.share(end) - scale.share(start))
    return Markup('<rect x="{}" y="{:.1f}" width="{:.2f}%" height="{:.1f}" class="{}"/>').format(
        scale.across(start), y, width, height, style
    )


def words(x: str, y: float, text: str, *, anchor: str, style: str = "tick") -> Markup:
    """A line of text; `anchor` is 'start', 'middle' or 'end'."""
    return Markup('<text x="{}" y="{:.1f}" text-anchor="{}" class="{}">{}</text>').format(x, y, anchor, style, text)


def ticks(low: float, high: float, *, most: int = 6) -> list[float]:
    """Round values between low and high, at most about `most` of them.

    >>> ticks(0, 60), ticks(0.38, 0.71)
    ([0.0, 20.0, 40.0, 60.0], [0.4, 0.5, 0.6, 0.7])
    """
    rough = (high - low) / max(1, most - 1)
    unit = 10.0 ** math.floor(math.log10(rough))
    step = next((unit * m for m in (1, 2, 5, 10) if unit * m >= rough * 0.999), 10 * unit)
    first = math.ceil(low / step - 1e-9)
    return [round(i * step, 12) for i in range(first, math.floor(high / step + 1e-9) + 1)]


def anchor_of(share: float) -> str:
    """How a label at this share of the width must hang so that it stays inside."""
    return "start" if share < 0.15 else "end" if share > 0.85 else "middle"


# --- rows of a table -------------------------------------------------------------------------------------------------


def axis(scale: Scale, at: Sequence[float], form: Format, *, label: str) -> Markup:
    """The numbers under a column of rows."""
    body = joined(words(scale.across(v), 13, form(v), anchor=anchor_of(scale.share(v))) for v in at)
    return figure(body, height=18, label=label, style="track axis")


def interval_row(scale: Scale, *, value: float, low: float, high: float, style: str, label: str) -> Markup:
    """A dot with its interval as a bar; `style` is 'aligned' or 'base'."""
    middle = ROW / 2
    body = bar(scale, low, high, y=middle - 4, height=8, style=f"band {style}") + dot(
        scale.across(value), middle, 6, f"dot {style}"
    )
    return figure(body, height=ROW, label=label, style="track")


def dumbbell_row(scale: Scale, *, base: float, aligned: float, low: float, high: float, label: str) -> Markup:
    """Base (ring) and aligned (disc) joined, with the interval of the change as a band around the aligned one."""
    middle = ROW / 2
    body = (
        bar(scale, base + low, base + high, y=middle - 7, height=14, style="band")
        + line(scale.across(base), middle, scale.across(aligned), middle, "joint")
        + dot(scale.across(base), middle, 5.5, "dot base")
        + dot(scale.across(aligned), middle, 6, "dot aligned")
    )
    return figure(body, height=ROW, label=label, style="track")


def moved_row(scale: Scale, *, base: float, value: float, style: str, under: Markup = EMPTY, label: str) -> Markup:
    """From the base (ring) to a value (disc) on a line; what lies beyond the scale stands at its end."""
    middle = ROW / 2
    body = (
        under
        + line("0%", middle, "100%", middle, "grid strong")
        + line(scale.across(base), middle, scale.across(value), middle, "joint")
        + dot(scale.across(base), middle, 5.5, "dot base")
        + dot(scale.across(value), middle, 6, f"dot {style}")
    )
    return figure(body, height=ROW, label=label, style="track")


def limit_row(scale: Scale, *, base: float, value: float, low: float, high: float, label: str) -> Markup:
    """Like `moved_row`, over the range the value should stay in."""
    middle, style = ROW / 2, "aligned" if low <= value <= high else "bad"
    inner = [scale.across(v) for v in (low, high) if scale.low < v < scale.high]
    ends = joined(line(at, middle - 8, at, middle + 8, "limit") for at in inner)
    under = bar(scale, low, high, y=middle - 8, height=16, style="allowed") + ends
    return moved_row(scale, base=base, value=value, style=style, under=under, label=label)


def share_row(parts: Sequence[tuple[str, float]], *, label: str) -> Markup:
    """A bar cut into counted parts, each a (class of style.css, count)."""
    scale, at, pieces = Scale(0, sum(n for _, n in parts) or 1), 0.0, []
    for style, n in parts:
        pieces.append(bar(scale, at, at + n, y=4, height=ROW - 8, style=f"part {style}") if n else EMPTY)
        at += n
    return figure(joined(pieces), height=ROW, label=label, style="track")


# --- charts ----------------------------------------------------------------------------------------------------------


def thinned(points: Sequence[tuple[float, float]], *, most: int = MOST_POINTS) -> list[tuple[float, float]]:
    """At most `most` points: neighbours averaged, the last one kept.

    >>> len(thinned([(i, i) for i in range(10_000)])) <= MOST_POINTS + 1
    True
    """
    if len(points) <= most:
        return list(points)
    size = math.ceil(len(points) / most)
    groups = [points[i : i + size] for i in range(0, len(points), size)]
    return [(sum(x for x, _ in g) / len(g), sum(y for _, y in g) / len(g)) for g in groups] + [points[-1]]


def smoothed(points: Sequence[tuple[float, float]], *, window: int) -> list[tuple[float, float]]:
    """The mean of the last `window` values at each point.

    >>> smoothed([(1, 2.0), (2, 4.0), (3, 6.0)], window=2)
    [(1, 2.0), (2, 3.0), (3, 5.0)]
    """
    sums = [0.0, *accumulate(y for _, y in points)]
    starts = [max(0, end - window) for end in range(1, len(sums))]
    return [
        (x, (sums[i + 1] - sums[k]) / (i + 1 - k)) for i, ((x, _), k) in enumerate(zip(points, starts, strict=True))
    ]


def spread(values: Sequence[float], *, include: Sequence[float] = ()) -> Scale:
    """A scale that holds the values with a little air."""
    every = [*values, *include]
    low, high = min(every), max(every)
    air = 0.06 * (high - low) or 0.05 * abs(high) or 1.0
    return Scale(low - air, high + air)


def curve(points: Sequence[tuple[float, float]], x: Scale, y: Scale, style: str) -> Markup:
    """A path in a box of 1000 by 1000 that stretches over the plot."""
    steps = [f"{1000 * x.share(a):.1f},{1000 * (1 - y.share(b)):.1f}" for a, b in thinned(points)]
    path = Markup('<path d="M{}" class="curve {}"/>').format("L".join(steps), style)
    box = 'viewBox="0 0 1000 1000" preserveAspectRatio="none" class="box"'
    return Markup(f'<svg x="0" y="{TOP}" width="100%" height="{PLOT}" {box}>') + path + Markup("</svg>")


def down(y: Scale, value: float) -> float:
    """The pixel row of a value."""
    return TOP + PLOT * (1 - y.share(value))


def frame(y: Scale, form: Format, *, strong: float | None) -> Markup:
    """Horizontal gridlines with their numbers at the left."""
    at = ticks(y.low, y.high)
    grid = joined(line("0%", down(y, v), "100%", down(y, v), "grid strong" if v == strong else "grid") for v in at)
    numbers = joined(
        Markup('<text x="0" dx="-8" y="{:.1f}" text-anchor="end" class="tick">{}</text>').format(
            down(y, v) + 4, form(v)
        )
        for v in at
    )
    return grid + numbers


def feet(x: Scale, at: Sequence[float], form: Format) -> Markup:
    """The numbers under a plot, with their short ticks."""
    low = TOP + PLOT
    return joined(
        line(x.across(v), low, x.across(v), low + 4, "grid strong")
        + words(x.across(v), low + 18, form(v), anchor="middle")
        for v in at
    )


def flag(x: str, share: float, text: str, style: str) -> Markup:
    """A vertical line through a plot with its name on top."""
    return line(x, TOP - 6, x, TOP + PLOT, f"flag {style}") + words(
        x, TOP - 10, text, anchor=anchor_of(share), style=f"label {style}"
    )


def line_chart(
    series: Sequence[Series], *, form: Format, label: str, best: float | None, strong: float | None = None
) -> Markup:
    """Curves over the optimizer steps, the kept checkpoint flagged; nothing where no series has a point."""
    points = [point for one in series for point in one.points]
    if not points:
        return EMPTY
    last = max(x for x, _ in points)
    x = Scale(0, last or 1)
    y = spread([v for _, v in points], include=[] if strong is None else [strong])
    lines = joined(curve(one.points, x, y, one.style) for one in series if len(one.points) > 1)
    dots = joined(
        dot(x.across(a), down(y, b), 3.5, f"point {one.style}")
        for one in series
        if one.dots or len(one.points) == 1
        for a, b in one.points
    )
    kept = EMPTY if best is None else flag(x.across(best), x.share(best), f"kept: step {best:g}", "kept")
    whole = [v for v in ticks(0, x.high, most=4) if v == round(v)]
    body = frame(y, form, strong=strong) + kept + lines + dots + feet(x, whole, lambda v: f"{v:,.0f}")
    return figure(body, height=TOP + PLOT + FOOT, label=label, style="plot")


def bins(values: NDArray[np.float64], *, most: int = 36) -> NDArray[np.float64]:
    """Edges of equal bins over the middle 99 % of the values, one edge at zero."""
    low, high = min(0.0, float(np.quantile(values, 0.005))), max(0.0, float(np.quantile(values, 0.995)))
    width = (high - low) / most or 1.0
    steps = range(math.floor(low / width), math.ceil(high / width) + 1)
    return np.array([i * width for i in steps] if len(steps) > 1 else [-1.0, 0.0, 1.0], dtype=np.float64)


def histogram(before: NDArray[np.float64] | None, after: NDArray[np.float64], *, label: str) -> Markup:
    """Values after training as bars, quiet below zero; before training as `start` draws them."""
    edges = bins(after)
    shares = binned(after, edges)
    x, y = Scale(float(edges[0]), float(edges[-1])), Scale(0, 1.12 * float(shares.max()))
    bars = joined(column(x, y, float(a), float(b), float(h)) for a, b, h in zip(edges, edges[1:], shares, strict=False))
    was = EMPTY if before is None else start(before, edges, x, y)
    zero = line(x.across(0), TOP, x.across(0), TOP + PLOT, "grid strong")
    numbers = feet(x, ticks(x.low, x.high, most=9), lambda v: f"{v:g}".replace("-", "\u2212"))
    body = frame(y, lambda v: f"{100 * v:.3g}\u202f%", strong=0.0) + bars + zero + was + numbers
    return figure(body, height=TOP + PLOT + FOOT, label=label, style="plot")


def binned(values: NDArray[np.float64], edges: NDArray[np.float64]) -> NDArray[np.float64]:
    """Share of the values in each bin; those beyond the edges count in the end bins."""
    counts = np.histogram(np.clip(values, edges[0], edges[-1]), edges)[0]
    return counts / len(values)


def column(x: Scale, y: Scale, left: float, right: float, height: float) -> Markup:
    """One bar of a histogram."""
    top = down(y, height)
    style = "bin right" if right > 1e-9 else "bin wrong"
    return bar(x, left, right, y=top, height=TOP + PLOT - top, style=style) if height > 0 else EMPTY


def start(before: NDArray[np.float64], edges: NDArray[np.float64], x: Scale, y: Scale) -> Markup:
    """The values before training: one flag where they fill less than a bin, otherwise an outline."""
    middle = float(np.median(before))
    if float(before.max() - before.min()) < edges[1] - edges[0]:
        return flag(x.across(middle), x.share(middle), f"before: all at {middle:.2g}".replace("-0", "0"), "base")
    shares = binned(before, edges)
    corners = [(float(edge), float(h)) for a, b, h in zip(edges, edges[1:], shares, strict=False) for edge in (a, b)]
    return curve([(float(edges[0]), 0.0), *corners, (float(edges[-1]), 0.0)], x, y, "base")


# --- limits ----------------------------------------------------------------------------------------------------------


def zones_scale(values: Sequence[float], limits: Sequence[float]) -> Scale:
    """A scale that holds value, interval and limits with air beyond the outer limit; it begins at 0 where it can.

    >>> zones_scale([0.01, 0.02], [0.05]).low, zones_scale([3.0], [2.0, 5.0]).high > 5
    (0.0, True)
    """
    every = [*values, *limits]
    low, high = min(every), max(every)
    reach = max(abs(limit) for limit in limits) if limits else 0.0
    air = 0.3 * max(high - low, 0.3 * reach) or 1.0
    start = -0.15 * air if 0.0 in limits else 0.0
    return Scale(start if low >= 0 else low - air, -start if high <= 0 and low < 0 else high + air)


def zones_row(
    scale: Scale, *, value: float, low: float, high: float, zones: Sequence[tuple[str, float, float]], label: str
) -> Markup:
    """A value with its interval over the zones its limits make, each a (class of style.css, start, end)."""
    middle, style = ROW / 2, zone_of(value, zones)
    under = joined(bar(scale, a, b, y=middle - 9, height=18, style=f"zone {name}") for name, a, b in zones)
    inner = {a for _, a, _ in zones if scale.low < a < scale.high}
    ends = joined(line(scale.across(at), middle - 11, scale.across(at), middle + 11, "edge") for at in sorted(inner))
    width = bar(scale, low, high, y=middle - 2.5, height=5, style="reach") if high > low else EMPTY
    return figure(
        under + ends + width + dot(scale.across(value), middle, 6, f"dot {style}"),
        height=ROW,
        label=label,
        style="track",
    )


def zone_of(value: float, zones: Sequence[tuple[str, float, float]]) -> str:
    """The zone a value lies in.

    >>> zone_of(3, [("fine", 0, 2), ("warned", 2, 9)]), zone_of(1, [])
    ('warned', 'plain')
    """
    return next((name for name, a, b in zones if a <= value <= b), "plain")


# --- counted bins and points -----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Binned:
    """The share of each bin of one series, in the order of the edges."""

    name: str
    style: str
    shares: Sequence[float]


def binned_chart(edges: Sequence[float], series: Sequence[Binned], *, label: str) -> Markup:
    """The first series as bars, the others as outlines; bins of unlike widths are drawn equally wide."""
    even = evenly(edges)
    x_of = list(edges) if even else [float(i) for i in range(len(edges))]
    x, y = Scale(x_of[0], x_of[-1]), Scale(0, 1.12 * (max(max(one.shares) for one in series) or 1))
    first, *rest = series
    bars = joined(
        bar(x, a, b, y=down(y, h), height=TOP + PLOT - down(y, h), style=f"bin {first.style}")
        for a, b, h in zip(x_of, x_of[1:], first.shares, strict=False)
        if h > 0
    )
    outlines = joined(outline(x_of, one, x, y) for one in rest)
    if even:
        foot = feet(x, ticks(x.low, x.high, most=7), plain)
    else:
        at = range(0, len(edges), max(1, math.ceil(len(edges) / 8)))
        foot = feet(x, [float(i) for i in at], lambda i: plain(edges[int(i)]))
    body = frame(y, lambda v: f"{100 * v:.3g}\u202f%", strong=0.0) + bars + outlines + foot
    return figure(body, height=TOP + PLOT + FOOT, label=label, style="plot")


def evenly(edges: Sequence[float]) -> bool:
    """Whether the bins are about equally wide.

    >>> evenly([0, 10, 20]), evenly([0, 10, 100])
    (True, False)
    """
    widths = [b - a for a, b in pairwise(edges)]
    return max(widths) <= 1.01 * min(widths)


def outline(x_of: Sequence[float], one: Binned, x: Scale, y: Scale) -> Markup:
    """A series as a line over its bins."""
    corners = [(edge, h) for a, b, h in zip(x_of, x_of[1:], one.shares, strict=False) for edge in (a, b)]
    return curve([(x_of[0], 0.0), *corners, (x_of[-1], 0.0)], x, y, one.style)


def plain(value: float) -> str:
    """A number at an axis.

    >>> plain(-2500), plain(0.25)
    ('−2,500', '0.25')
    """
    return f"{value:,.6g}".replace("-", "\u2212")


@dataclass(frozen=True)
class Point:
    """A value over a place, with its interval."""

    x: float
    value: float
    low: float
    high: float


def points_chart(
    series: Sequence[tuple[str, Sequence[Point]]], *, form: Format, label: str, level: float | None, joint: bool
) -> Markup:
    """Values with their intervals over a number, each series a (class of style.css, points); `joint` joins them."""
    every = [point for _, points in series for point in points]
    xs = [point.x for point in every]
    x = spread(xs)
    y = spread([v for p in every for v in (p.low, p.high)], include=[] if level is None else [level])
    whiskers = joined(
        line(x.across(p.x), down(y, p.low), x.across(p.x), down(y, p.high), f"whisker {style}")
        for style, points in series
        for p in points
        if p.high > p.low
    )
    lines = joined(
        curve([(p.x, p.value) for p in points], x, y, style) for style, points in series if joint and len(points) > 1
    )
    dots = joined(
        dot(x.across(p.x), down(y, p.value), 3.5, f"point {style}") for style, points in series for p in points
    )
    body = frame(y, form, strong=level) + whiskers + lines + dots + feet(x, ticks(x.low, x.high, most=7), plain)
    return figure(body, height=TOP + PLOT + FOOT, label=label, style="plot")
