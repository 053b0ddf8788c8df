"""What a section of the page is made of; `page.html.j2` knows how each part is laid out."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from markupsafe import Markup

from druthers.report import figures, wording
from druthers.report.figures import EMPTY, Scale
from druthers.stats import Interval

PER_CENT, QUARTERS = Scale(0, 1), (0.0, 0.25, 0.5, 0.75, 1.0)
NINETY_FIVE = "95\u202f% interval"


@dataclass(frozen=True)
class Row:
    """One line of a table: a name, the picture beside it, (column, value) cells, and 'pass', 'warn' or 'worse'."""

    name: str
    picture: Markup
    cells: Sequence[tuple[str, str]]
    note: str = ""
    mark: str = ""


@dataclass(frozen=True)
class Table:
    """Rows under one another with a legend as (class, name), the axis below the pictures, and the grid behind them."""

    caption: str
    rows: Sequence[Row]
    legend: Sequence[tuple[str, str]]
    axis: Markup = EMPTY
    grid: str = ""
    note: str = ""


@dataclass(frozen=True)
class Chart:
    """A picture, its legend as (class, name), and the numbers behind it."""

    title: str
    picture: Markup
    legend: Sequence[tuple[str, str]]
    columns: Sequence[str]
    numbers: Sequence[Sequence[str]]
    note: str = ""


@dataclass(frozen=True)
class Fact:
    """A name with a value and a second, quieter line."""

    name: str
    value: str
    more: str = ""


def share_row(name: str, found: Interval, *, measure: str, unit: str, style: str, note: str = "") -> Row:
    """A share with its interval against one half, counted over `unit`."""
    value, between = wording.percent(found.value), wording.percent_range(found)
    label = f"{name}: {measure} {value}, {NINETY_FIVE} {between}"
    picture = share_picture(found, style=style, label=label)
    return Row(name, picture, [(measure, value), (NINETY_FIVE, between), (unit, wording.count(found.n))], note)


def share_picture(found: Interval, *, style: str, label: str) -> Markup:
    """A share between 0 and 100 % as a dot with its interval."""
    return figures.interval_row(PER_CENT, value=found.value, low=found.low, high=found.high, style=style, label=label)


def share_table(caption: str, rows: Sequence[Row], *, legend: Sequence[tuple[str, str]], of: str, grid: str) -> Table:
    """Rows over an axis from 0 to 100 %."""
    label = f"axis from 0 to 100 per cent of the {of}"
    axis = figures.axis(PER_CENT, QUARTERS, lambda v: wording.percent(v, 0), label=label)
    return Table(caption, rows, legend, axis, grid)


def with_unit(form: Callable[[float], str], value: float | None, unit: str) -> str:
    """A value and what it counts; empty where it is unknown.

    >>> with_unit(str, 3, "steps"), with_unit(str, None, "steps")
    ('3 steps', '')
    """
    return "" if value is None else f"{form(value)} {unit}"


def listed(*parts: str) -> str:
    """The parts that say something, with commas."""
    return ", ".join(part for part in parts if part)
