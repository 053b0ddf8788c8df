"""Points of several runs in one picture: each run by colour and by the form of its marks, with error bars both ways.

Drawn as `report.figures` draws: per cent across, pixels down. The KL lies on a root scale, on which the points of a run
stand about evenly and those near the reference are told apart.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup

from druthers.report import figures
from druthers.report.figures import EMPTY, Format, Scale, joined, line, words

TOP, PLOT, FOOT = 16, 340, 46
COLOURS = 8
FORMS = (
    "M0-5.2A5.2 5.2 0 1 1 0 5.2A5.2 5.2 0 1 1 0-5.2Z",
    "M-4.6-4.6H4.6V4.6H-4.6Z",
    "M0-6L5.6 4.4H-5.6Z",
    "M0-6.4L6.4 0L0 6.4L-6.4 0Z",
    "M0 6L5.6-4.4H-5.6Z",
    "M-1.9-6H1.9V-1.9H6V1.9H1.9V6H-1.9V1.9H-6V-1.9H-1.9Z",
    "M-4.2-6L0-1.8L4.2-6L6-4.2L1.8 0L6 4.2L4.2 6L0 1.8L-4.2 6L-6 4.2L-1.8 0L-6-4.2Z",
)
"""Disc, square, triangle, diamond, triangle down, plus, cross: 7 forms and 8 colours tell 56 runs apart."""


@dataclass(frozen=True)
class Spot:
    """A point: KL and height with their limits, and whether no other point beats it."""

    kl: tuple[float, float, float]
    height: tuple[float, float, float]
    best: bool


@dataclass(frozen=True)
class Track:
    """The points of one run in the order of their steps, and its number, which gives colour and form."""

    number: int
    spots: Sequence[Spot]


def glyph(number: int) -> Markup:
    """The mark of a run beside its name."""
    return Markup('<svg class="glyph c{}" viewBox="-8 -8 16 16" aria-hidden="true"><path d="{}"/></svg>').format(
        number % COLOURS, form_of(number)
    )


def form_of(number: int) -> str:
    """The form of a run's marks."""
    return FORMS[number % len(FORMS)]


def scatter(
    tracks: Sequence[Track], *, level: float | None, form: Format, title: str, label: str, numbered: bool
) -> Markup:
    """Every run's points over the KL; `level` is a height to compare with, `numbered` writes the number at the last."""
    spots = [spot for track in tracks for spot in track.spots]
    if not spots:
        return EMPTY
    reach = max(root(spot.kl[2]) for spot in spots) or 1.0
    x = Scale(0.0, 1.04 * reach)
    y = figures.spread([v for spot in spots for v in spot.height], include=[] if level is None else [level])
    body = (
        grid(y, form, level)
        + feet(x)
        + words("0%", 10, title, anchor="start", style="tick")
        + joined(path(track, x, y) for track in tracks if len(track.spots) > 1)
        + joined(bars(track.number, spot, x, y) for track in tracks for spot in track.spots)
        + joined(mark(track.number, spot, x, y) for track in tracks for spot in track.spots)
        + (joined(number_at(track, x, y) for track in tracks if track.spots) if numbered else EMPTY)
    )
    return figures.figure(body, height=TOP + PLOT + FOOT, label=label, style="plot scatter")


def root(kl: float) -> float:
    """A KL on the axis; an estimate below zero lies at zero."""
    return math.sqrt(max(0.0, kl))


def down(y: Scale, value: float) -> float:
    """The pixel row of a height."""
    return TOP + PLOT * (1 - y.share(value))


def grid(y: Scale, form: Format, level: float | None) -> Markup:
    """Lines across with their numbers at the left."""
    at = figures.ticks(y.low, y.high)
    lines = joined(line("0%", down(y, v), "100%", down(y, v), "grid") for v in at)
    numbers = joined(
        Markup('<text x="0" dx="-8" y="{:.1f}" text-anchor="end" class="tick">{}</text>').format(
            down(y, v) + 4, form(v)
        )
        for v in at
    )
    own = EMPTY if level is None else line("0%", down(y, level), "100%", down(y, level), "grid strong level")
    return lines + own + numbers


def feet(x: Scale) -> Markup:
    """Numbers of nats below, those that would touch left out, and what they are."""
    low, kept = TOP + PLOT, [0.0]
    for value in figures.ticks(0.0, x.high**2, most=7)[1:]:
        if x.share(root(value)) - x.share(root(kept[-1])) > 0.07:
            kept.append(value)
    numbers = joined(
        line(x.across(root(v)), low, x.across(root(v)), low + 4, "grid strong")
        + words(x.across(root(v)), low + 18, figures.plain(v), anchor="middle" if v else "start")
        for v in kept
    )
    return numbers + words("100%", low + 38, "KL to the reference, nats an answer (root scale)", anchor="end")


def path(track: Track, x: Scale, y: Scale) -> Markup:
    """The points of a run joined in the order of training."""
    steps = [f"{1000 * x.share(root(s.kl[0])):.1f},{1000 * (1 - y.share(s.height[0])):.1f}" for s in track.spots]
    curve = Markup('<path d="M{}" class="trail c{}"/>').format("L".join(steps), track.number % COLOURS)
    box = f'x="0" y="{TOP}" width="100%" height="{PLOT}" viewBox="0 0 1000 1000" preserveAspectRatio="none" class="box"'
    return Markup(f"<svg {box}>") + curve + Markup("</svg>")


def bars(number: int, spot: Spot, x: Scale, y: Scale) -> Markup:
    """Error bars of height and KL."""
    (kl, left, right), (height, low, high) = spot.kl, spot.height
    style, at = f"bar c{number % COLOURS}", x.across(root(kl))
    return line(at, down(y, low), at, down(y, high), style) + line(
        x.across(root(left)), down(y, height), x.across(root(right)), down(y, height), style
    )


def mark(number: int, spot: Spot, x: Scale, y: Scale) -> Markup:
    """The mark of a point, ringed where no other beats it."""
    ring = Markup('<circle r="9.5" class="best"/>') if spot.best else EMPTY
    return Markup('<svg x="{}" y="{:.1f}" class="spot c{}"><path d="{}"/>{}</svg>').format(
        x.across(root(spot.kl[0])), down(y, spot.height[0]), number % COLOURS, form_of(number), ring
    )


def number_at(track: Track, x: Scale, y: Scale) -> Markup:
    """The run's number beside its last point."""
    last = track.spots[-1]
    share = x.share(root(last.kl[0]))
    side = ("-12", "end") if share > 0.9 else ("12", "start")
    return Markup('<text x="{}" dx="{}" y="{:.1f}" text-anchor="{}" class="tick number">{}</text>').format(
        x.across(root(last.kl[0])), side[0], down(y, last.height[0]) + 4, side[1], track.number + 1
    )
