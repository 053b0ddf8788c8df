"""On which day a row was made, by its columns or what an export says of it; most rows do not say.

A day is its ordinal (`date.toordinal`, in UTC where the time has a zone). What cannot be read as one is none: it says
how old the data is, and no preference is worth less for a bad date.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from datetime import UTC, date, datetime

from druthers.config import Form
from druthers.curate.importers.columns import DATE, DATES, Row, read_number

EPOCH = date(1970, 1, 1).toordinal()
SOONEST, LATEST = date(2000, 1, 1).toordinal(), date(2100, 1, 1).toordinal()
"""Days before and after which it is a mistake, or another number."""
SECONDS = 1e11
"""A time since 1970 above this is not in seconds but in thousandths of them, or in thousandths of those."""
META = "-metadata"
STUDIO = ("updated_at", "created_at")
SHP = ("created_at_utc_A", "created_at_utc_B")


def take_day(row: Row, form: Form) -> tuple[Row, int | None]:
    """The row without the columns that are dates and the latest day among them, in our own forms of `date` alone."""
    names = {DATE} if form in ("druthers", "candidates") else DATES
    if names.isdisjoint(row):
        return row, None
    given = [row[name] for name in row if name in names]
    return {name: value for name, value in row.items() if name not in names}, latest(given)


def day_in_export(row: Row, form: Form) -> int | None:
    """The latest day that an export says something of its own was made."""
    return latest(dates_in(row, form)) if form in ("groundtruth", "labelstudio", "argilla", "shp") else None


def dates_in(row: Row, form: Form) -> Iterator[object]:
    """What an export gives as dates."""
    if form == "groundtruth":
        for name, meta in row.items():
            if name.endswith(META) and isinstance(meta, dict):
                yield from (meta.get(key) for key in ("creation-date", "creation_date"))
    elif form == "labelstudio":
        yield from inner(row.get("data"))
        notes = row.get("annotations", row.get("completions"))
        for note in notes if isinstance(notes, list) else ():
            if isinstance(note, dict) and note.get("was_cancelled") is not True:
                yield next((note[name] for name in STUDIO if note.get(name) is not None), None)
    elif form == "argilla":
        yield from inner(row.get("fields"))
    else:
        yield from (row.get(name) for name in SHP)


def inner(fields: object) -> Iterator[object]:
    """The dates among the fields of a project."""
    if isinstance(fields, dict):
        yield fields.get(DATE)


def latest(given: Iterable[object]) -> int | None:
    """The latest of some dates; None where none can be read."""
    return max((found for value in given if (found := day(value)) is not None), default=None)


def day(value: object) -> int | None:
    """The day of a date, a time by ISO 8601, or a number of seconds, milli-, micro- or nanoseconds since 1970.

    >>> day("2026-11-02T09:00:00.000Z") == day(1793610000) == day(1793610000000) == date(2026, 11, 2).toordinal()
    True
    >>> day("soon"), day(41.2), day(True), day(None)
    (None, None, None, None)
    """
    found: int | None
    if isinstance(value, datetime):
        found = (value.astimezone(UTC) if value.tzinfo else value).toordinal()
    elif isinstance(value, date):
        found = value.toordinal()
    else:
        found = day_of_text(value.strip()) if isinstance(value, str) else day_of_number(value)
    return found if found is not None and SOONEST <= found < LATEST else None


def day_of_text(text: str) -> int | None:
    """The day that a text says: by ISO 8601, or a number of more than eight digits."""
    seconds = read_number(text)
    if seconds is not None and seconds >= 1e8:
        return day_of_number(seconds)
    try:
        return day(datetime.fromisoformat(text))
    except (ValueError, OverflowError):
        return None


def day_of_number(value: object) -> int | None:
    """The day at a time since 1970."""
    seconds = read_number(value)
    while seconds is not None and seconds > SECONDS:
        seconds /= 1000
    return None if seconds is None else EPOCH + int(seconds // 86_400)
