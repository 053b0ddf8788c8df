r"""Rows of other tools to records, each fault with a reason code and a sentence that names the field.

A row that says itself what is chosen and rejected becomes a `Pair`; one in which people or judges rate, rank or choose
becomes `Candidates` with their `Opinion`s, choices in the order shown. `read` is the door for one row, `Importer` the
one for the lines of a source, `detect` finds the form by the looks of several rows.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, get_args

from druthers.config import Form
from druthers.curate.importers import columns as named
from druthers.curate.importers.columns import Names, Row
from druthers.curate.importers.days import day_in_export, take_day
from druthers.curate.importers.exports import (
    ARGILLA,
    GROUND_TRUTH,
    LABEL_STUDIO,
    from_argilla,
    from_ground_truth,
    from_label_studio,
)
from druthers.curate.importers.faults import RowFault
from druthers.curate.importers.looks import looks
from druthers.curate.importers.opinions import (
    RANKING,
    RATINGS,
    SHP,
    ULTRAFEEDBACK,
    UNPAIRED,
    VOTES,
    from_candidates,
    from_ranking,
    from_ratings,
    from_shp,
    from_ultrafeedback,
    from_unpaired,
    from_votes,
)
from druthers.curate.importers.pairs import (
    FIELDS,
    OPENAI,
    SIDES,
    Fields,
    from_druthers,
    from_hh,
    from_openai,
    from_sagemaker,
    from_trl,
    pair,
)
from druthers.curate.importers.rated import RATED, UNRATED, Rated, ratings_of
from druthers.curate.importers.strange import strangeness
from druthers.curate.importers.workers import Beside
from druthers.records import Candidates, Pair
from druthers.storage import Line

__all__ = [
    "FORMS",
    "GATHERED",
    "Form",
    "Imported",
    "Importer",
    "RowFault",
    "check",
    "detect",
    "read",
    "read_pair",
    "recognized",
    "unrecognized",
]

FORMS: tuple[Form, ...] = get_args(Form)


@dataclass(frozen=True)
class Imported:
    """What a row became, the columns that were left aside, whether turns of one speaker were joined, the day on which
    the row was made, where it says so, and how the sides of a pair are rated on it."""

    items: tuple[Pair | Candidates, ...]
    ignored: tuple[str, ...] = ()
    joined: bool = False
    day: int | None = None
    rated: Rated = UNRATED

    @property
    def pair(self) -> Pair:
        """The one pair of a row of pairs."""
        (found,) = self.items
        assert isinstance(found, Pair), "the row holds opinions"
        return found


PAIR = frozenset(("prompt", "system", *SIDES, *FIELDS, *RATED))
PAIR_NAMES = ("prompt", *SIDES, "system", *FIELDS, *(f"{side}_rating" for side in SIDES))
OWN = Names(frozenset(), open=True)
"""Our own lines: what is unknown in them the records themselves refuse."""
RATING = ("trl", "hh")
"""Forms whose rows may hold ratings of both sides."""
OPENAI_NAMES = Names(frozenset(("input", *OPENAI.values(), *FIELDS)))
SAGEMAKER_NAMES = Names(frozenset(("schemaVersion", "system", "messages")))

PAIRS: dict[Form, tuple[Names, Callable[[Row], tuple[Fields, bool]]]] = {
    "druthers": (OWN, from_druthers),
    "trl": (Names(PAIR), from_trl),
    "hh": (Names(PAIR), from_hh),
    "openai": (OPENAI_NAMES, from_openai),
    "sagemaker": (SAGEMAKER_NAMES, from_sagemaker),
}
OPINIONS: dict[Form, tuple[Names, Callable[[Row], Candidates]]] = {
    "candidates": (OWN, from_candidates),
    "ratings": (RATINGS, from_ratings),
    "ranking": (RANKING, from_ranking),
    "votes": (VOTES, from_votes),
    "unpaired": (UNPAIRED, from_unpaired),
    "ultrafeedback": (ULTRAFEEDBACK, from_ultrafeedback),
    "shp": (SHP, from_shp),
    "groundtruth": (GROUND_TRUTH, from_ground_truth),
    "labelstudio": (LABEL_STUDIO, from_label_studio),
    "argilla": (ARGILLA, from_argilla),
}
GATHERED: frozenset[Form] = frozenset(OPINIONS) - {"candidates", "shp"}
"""Forms whose rows of one prompt belong together, wherever in the source they stand: `gather` joins them.

Ours are joined already. SHP compares two answers of one age at a time: more of them would be other comparisons.
"""
NAMES: dict[Form, Names] = {form: names for form, (names, _) in (PAIRS | OPINIONS).items()}
INNER = {"labelstudio": "data", "argilla": "fields"}
"""Where an export keeps the fields of a project, to which a column map then applies."""


def read(row: Row, form: Form, *, columns: Mapping[str, str] = {}, cells: bool = False) -> Imported:
    """One row as records; RowFault says what is wrong with it.

    `columns` says of columns of the source what they are here; `cells` that all values are texts out of a table.

    >>> read({"prompt": "Name a fruit.", "chosen": "Plum.", "rejected": "Carrot.", "id": 7}, "trl").ignored
    ('id',)
    >>> vote = {"frage": "Name a fruit.", "response_a": "Plum.", "response_b": "Carrot.", "winner": "a"}
    >>> read(vote, "votes", columns={"frage": "prompt"}).items[0].opinions[0].worth
    (2.0, 0.0)
    """
    try:
        return _read(row, form, columns, cells=cells)
    except RecursionError:
        raise RowFault("malformed", "the row is nested too deeply to be read") from None


def _read(row: Row, form: Form, columns: Mapping[str, str], *, cells: bool) -> Imported:
    names = NAMES[form]
    aside: list[str] = []
    if columns:
        row, aside = _arranged(row, form, columns)
    made = day_in_export(row, form)
    row, day = take_day(row, form)
    day = day if made is None else made
    if names is not OWN and not names.read.issuperset(row):
        aside += named.unknown(row, names, PAIR_NAMES if form in ("trl", "hh") else sorted(names.read))
    if cells:
        row = named.typed(row)
    if form in PAIRS:
        found, joined = PAIRS[form][1](row)
        return Imported((pair(found),), tuple(aside), joined, day, ratings_of(row) if form in RATING else UNRATED)
    return Imported((OPINIONS[form][1](row),), tuple(aside), day=day)


def _arranged(row: Row, form: Form, columns: Mapping[str, str]) -> tuple[Row, list[str]]:
    """The row under our names; in an export the fields of the project inside it, and what is mapped around them.

    A mapped name with a dot is a field of a column that is an object: metadata.audience.
    """
    inner = INNER.get(form, "")
    within = row[inner] if isinstance(row.get(inner), dict) else row
    inside = {name: value for name in columns if name not in within and (value := reached(row, name)) is not None}
    found, aside = named.arrange({**within, **inside}, NAMES[form], columns)
    return ({**row, inner: found} if within is not row else found), aside


def reached(row: Row, name: str) -> object:
    """The column of a name, or the field of the object that a dotted name leads to; None for neither.

    >>> reached({"metadata": {"for": {"level": "expert"}}}, "metadata.for.level")
    'expert'
    """
    if name in row:
        return row[name]
    head, dot, rest = name.partition(".")
    inner = row.get(head)
    return reached(inner, rest) if dot and isinstance(inner, Mapping) else None


def read_pair(row: Row, form: Form, *, columns: Mapping[str, str] = {}, cells: bool = False) -> Imported:
    """One row as a pair; RowFault also where it holds opinions instead."""
    if form not in PAIRS:
        raise RowFault("not_a_pair", f"a row of the form {form!r} holds opinions, of which pairs are yet to be made")
    return read(row, form, columns=columns, cells=cells)


def check(columns: Mapping[str, str], form: Form) -> None:
    """Raises InputError for a column map that names something the form does not know."""
    if NAMES[form] is not OWN:
        named.check(columns, NAMES[form])


@dataclass(frozen=True)
class Importer:
    """What reads the lines of one source: form, column map, and what lies beside its files.

    It can be sent to other processes.
    """

    form: Form
    columns: Mapping[str, str] = field(default_factory=dict)
    beside: Beside | None = None

    @classmethod
    def of(cls, source: str, form: Form, *, columns: Mapping[str, str] = {}) -> Importer:
        """The reader for a path or URL; InputError where the column map does not fit the form."""
        check(columns, form)
        return cls(form, dict(columns), Beside.of(source) if form == "groundtruth" else None)

    def read(self, line: Line) -> Imported:
        """What a line became; RowFault says why it is nothing, a fault of the line itself included."""
        if line.fault:
            raise RowFault("malformed", line.fault)
        row = self.beside.join(line.row) if self.beside else line.row
        try:
            return read(row, self.form, columns=self.columns, cells=line.cells)
        except RowFault as fault:
            other = recognized([row], columns=self.columns)
            if other in (None, self.form) or {other, self.form} <= {"druthers", "trl"}:
                raise
            seen = f"it looks like a row of the form {other!r}, and is read as {self.form!r}"
            raise RowFault(fault.reason, f"{fault} ({seen}: put rows of one form into one file)") from None


def detect(rows: Sequence[Row], *, columns: Mapping[str, str] = {}) -> Form:
    r"""The form most of several rows look like; "trl" when they look like nothing.

    >>> detect([{"chosen": "\n\nHuman: Hi\n\nAssistant: Hello!", "rejected": "\n\nHuman: Hi\n\nAssistant: What?"}])
    'hh'
    >>> detect([{"prompt": "Name a fruit.", "completion": "Plum.", "label": True}])
    'unpaired'
    """
    return recognized(rows, columns=columns) or "trl"


def recognized(rows: Sequence[Row], *, columns: Mapping[str, str] = {}) -> Form | None:
    """The form most of several rows look like; None when they look like nothing."""
    open_names = Names(frozenset(), open=True)
    found: list[Form] = []
    for row in rows:
        seen = looks(_outer(row, columns, open_names) if columns else row)
        found += [seen] if seen in FORMS else []
    counted = Counter(found)
    if {"druthers", "trl"} <= counted.keys():
        counted["trl"] += counted.pop("druthers")
    return max(counted, key=counted.__getitem__, default=None)


def unrecognized(rows: Sequence[Row]) -> str:
    """What is to be said of rows that look like nothing: what they hold, and what would make them readable."""
    return strangeness(rows, NAMES)


def _outer(row: Row, columns: Mapping[str, str], names: Names) -> Mapping[str, Any]:
    try:
        return named.arrange(row, names, columns)[0]
    except RowFault:
        return row
