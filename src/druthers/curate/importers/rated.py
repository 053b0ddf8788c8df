"""Ratings of both sides that stand beside a pair, under the names that sets on the hub give them."""

from __future__ import annotations

from math import nan
from typing import NamedTuple

from druthers.curate.importers.columns import Row, number
from druthers.curate.importers.faults import RowFault

SIDES = ("chosen", "rejected")
ROOTS = ("score", "rating", "avg_rating", "average_rating", "reward")
RATED = {
    name: side
    for side in SIDES
    for root in ROOTS
    for name in (f"{side}_{root}", f"{root}_{side}", f"{side}-{root}", f"{root}-{side}")
}
"""The side that a column rates: score_chosen, chosen-rating, chosen_avg_rating, rating_rejected, ..."""
GRADED = ("p", "margin", "m")
"""Columns that say themselves what ratings would be read for."""


class Rated(NamedTuple):
    """The rating of the chosen response, by how much it lies above that of the rejected one (both NaN where nobody
    rated), and whether the row has a p or margin of its own, which then counts."""

    chosen: float = nan
    gap: float = nan
    graded: bool = False


UNRATED = Rated()


def ratings_of(row: Row) -> Rated:
    """What the columns of a pair say of the worth of its sides.

    RowFault where a rating is no number, or a side has two.

    >>> ratings_of({"chosen": "Plum.", "score_chosen": 8.0, "score_rejected": "3.5"})
    Rated(chosen=8.0, gap=4.5, graded=False)
    >>> ratings_of({"chosen-rating": 5, "rejected-rating": None, "margin": 0.5})
    Rated(chosen=5.0, gap=nan, graded=True)
    """
    if RATED.keys().isdisjoint(row):
        return UNRATED
    found: dict[str, tuple[str, float]] = {}
    for name in row:
        side = RATED.get(name)
        value = None if side is None else rating(name, row[name])
        if side is None or value is None:
            continue
        if side in found:
            other = found[side][0]
            raise RowFault(
                "malformed",
                f"{name}: stands beside {other!r}, and both may be the rating of {side}; "
                f"set data.columns.{name}=ignore, or that of the other",
            )
        found[side] = name, value
    chosen, rejected = (found[side][1] if side in found else nan for side in SIDES)
    return Rated(chosen, chosen - rejected, any(row.get(name) is not None for name in GRADED))


def rating(name: str, value: object) -> float | None:
    """A number, or None for none; RowFault, with the way out, for anything else."""
    try:
        return number(name, value)
    except RowFault as fault:
        raise RowFault(fault.reason, f"{fault}; to leave the column aside set data.columns.{name}=ignore") from None
