"""A comparison on the terminal: one row a run, as plain cells."""

from __future__ import annotations

from druthers.report import wording
from druthers.report.compared.comparison import Comparison
from druthers.report.compared.entries import Entry
from druthers.report.wording import NONE
from druthers.stats import Estimate, Interval

COLUMNS = ("run", "ranked right", "to the first", "win rate", "reward", "KL", "tokens", "train", "GiB", "pairs")


def rows(found: Comparison) -> list[tuple[str, ...]]:
    """The cells of every run, in the order of COLUMNS."""
    return [row(found, entry) for entry in found.entries]


def row(found: Comparison, entry: Entry) -> tuple[str, ...]:
    """One run."""
    m, gap = entry.measures, found.gaps.get(entry.name)
    return (
        entry.name,
        short(m.get("accuracy")),
        points(gap),
        short(m.get("win_rate")),
        written(m.get("reward"), 3),
        written(m.get("kl"), 2),
        written(m.get("length"), 0),
        wording.duration(value(m.get("train_seconds"))),
        written(m.get("peak_memory_gib"), 1),
        written(m.get("pairs"), 0),
    )


def value(found: Estimate | None) -> float | None:
    """A number, or None."""
    return found.value if isinstance(found, Interval) else None


def written(found: Estimate | None, digits: int) -> str:
    """A number, or a dash."""
    return wording.decimal(value(found), digits)


def short(found: Estimate | None) -> str:
    """A share with the half width of its interval, in per cent."""
    if not isinstance(found, Interval):
        return NONE
    half = 50 * (found.high - found.low)
    return f"{100 * found.value:.1f} ±{half:.1f}" if half else f"{100 * found.value:.1f}"


def points(found: Estimate | None) -> str:
    """A difference in points, with a star where the interval leaves zero out."""
    if not isinstance(found, Interval):
        return NONE
    star = "*" if found.low > 0 or found.high < 0 else ""
    return f"{wording.signed(100 * found.value, 1)}{star}"
