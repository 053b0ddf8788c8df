"""Columns of a row under our names, by a map of the user's or as they stand, and values as the forms want them.

A map says for a column of the source what it is here: one of the names of the form, `group` (several columns may be
one), `rating.<criterion>`, or `ignore`. Where a map is given, columns that neither it nor the form knows are left
aside and named; without one they are refused, because a misspelt column would go unseen.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from math import isfinite
from typing import Any

from druthers.curate.importers.faults import RowFault
from druthers.records import InputError
from druthers.storage import offer

Row = Mapping[str, Any]

IGNORE, DATE = "ignore", "date"
DATES = frozenset(
    (DATE, "created_at", "creation_date", "submitted_at", "updated_at", "inserted_at", "timestamp", "tstamp")
)
"""Columns that say when a row was made."""
LONGEST_NAME = 60
"""Characters of a column's name from which on it is none: a cell where the names should stand, or damage."""
RATING = "rating."
"""What a column with the ratings by one criterion begins with under our names."""
NUMBERS = frozenset({"p", "m", "margin", "w", "weight"})
TALKS = frozenset({"prompt", "chosen", "rejected", "completion", "response", "response_a", "response_b"})
"""Columns that hold either a text or a list of messages, which in a cell is JSON."""


@dataclass(frozen=True)
class Names:
    """The columns a form knows: those it reads, and whether it knows all there can be.

    `families` are stems of columns that come in numbers: "response" stands for response_a, response_1, response2, ...
    An `open` form is an export in which other columns are a project's own and are left aside, but for those that hold
    the `answers` of a row.
    """

    read: frozenset[str]
    families: tuple[str, ...] = ()
    open: bool = False
    answers: Callable[[Row, str], bool] | None = None

    def knows(self, name: str) -> bool:
        """Whether the form reads a column of this name."""
        return name in self.read or name.startswith(RATING) or name in DATES or member(name, self.families) is not None


def member(name: str, stems: Collection[str]) -> tuple[str, int] | None:
    """Stem and place of one column of a family: numbers as they are, letters from 0 on; None for any other name.

    >>> member("response_b", ["response"]), member("answer2", ["answer"]), member("respond", ["response"])
    (('response', 1), ('answer', 2), None)
    """
    for stem in stems:
        rest = name[len(stem) :].lstrip("_- ")
        if name.startswith(stem) and rest.isascii():
            if rest.isdigit() and len(rest) < 4:
                return stem, int(rest)
            if len(rest) == 1 and rest.isalpha():
                return stem, ord(rest.lower()) - ord("a")
    return None


def check(columns: Mapping[str, str], names: Names) -> None:
    """Raises InputError for a map that names something the form does not know.

    >>> check({"frage": "promt"}, Names(frozenset({"prompt", "chosen"})))
    Traceback (most recent call last):
    druthers.records.InputError: data.columns.frage = 'promt': no column of this form; did you mean 'prompt'?
    """
    for theirs, ours in columns.items():
        if ours not in (IGNORE, "group") and not names.knows(ours) and not names.open:
            known = (*sorted(names.read), *(f"{stem}_a" for stem in names.families), IGNORE)
            raise InputError(f"data.columns.{theirs} = {ours!r}: no column of this form{offer(ours, known)}")


def arrange(row: Row, names: Names, columns: Mapping[str, str]) -> tuple[dict[str, Any], list[str]]:
    """The row under our names by the map, and the columns that were left aside."""
    found: dict[str, Any] = {}
    groups: dict[str, Any] = {}
    aside = []
    for name, value in row.items():
        ours = columns.get(name) or (name if names.open or names.knows(name) else IGNORE)
        if ours == IGNORE:
            aside.append(name)
        elif ours == "group":
            groups[name] = value
        elif ours in found:
            raise RowFault(
                "malformed", f"{name}: is {ours!r} here, and so is another column; map one of them to ignore"
            )
        else:
            found[ours] = value
    if group := group_of(groups):
        found["group"] = group
    return found, aside


def group_of(groups: Row) -> str:
    """What one or several columns say of the slice a row belongs to.

    >>> group_of({"language": "de"}), group_of({"language": "de", "beginner": True, "age": None})
    ('de', 'language=de, beginner=true')
    """
    said = {name: plain(value) for name, value in groups.items() if value is not None}
    if len(said) == 1:
        return next(iter(said.values()))
    return ", ".join(f"{name}={value}" for name, value in said.items())


def plain(value: object) -> str:
    """A value as one would write it in a cell.

    >>> plain("de"), plain(True), plain(3), plain(3.0), plain(["a"])
    ('de', 'true', '3', '3', '["a"]')
    """
    if isinstance(value, str):
        return value
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    return json.dumps(value, ensure_ascii=False, default=str)


def unknown(row: Row, names: Names, known: Sequence[str]) -> list[str]:
    """Columns that carry nothing for us; RowFault for all that nobody knows, with the nearest names and the remedy."""
    aside, strange = [], []
    for name in row:
        if names.open or name in IGNORED:
            if not names.knows(name) and not (names.answers and names.answers(row, name)):
                aside.append(name)
        elif not names.knows(name):
            if len(name) > LONGEST_NAME:
                said = f"{name[:LONGEST_NAME]}…: unknown column of {len(name):,} characters"
                raise RowFault("malformed", f"{said}; if it is a table, its first line must name the columns")
            if not name.strip() or not name.isprintable():
                raise RowFault("malformed", f"{name!r}: is no name of a column; name it, or take it out of the row")
            strange.append(name)
    if len(strange) == 1:
        (name,) = strange
        said = f"{name}: unknown column{offer(name, known)}"
        remedy = f"{'' if said.endswith('?') else ';'} to leave it aside set data.columns.{name}=ignore"
        raise RowFault("malformed", said + remedy)
    if strange:
        near = {name: said for name in strange if "did you mean" in (said := offer(name, known))}
        hints = "".join(f"{said.removesuffix('?')} by {name}?" for name, said in near.items())
        remedy = f"{'' if hints else ';'} to leave them aside set "
        remedy += " ".join(f"data.columns.{name}=ignore" for name in strange)
        raise RowFault("malformed", f"{', '.join(strange)}: unknown columns{hints}{remedy}")
    return aside


IGNORED = frozenset(
    (
        *(
            "id",
            "row_id",
            "prompt_id",
            "messages",
            "score_chosen",
            "score_rejected",
            "chosen_rating",
            "rejected_rating",
        ),
        *("chosen_score", "rejected_score", "chosen_model", "rejected_model"),
        *("split", "domain", "language", "complexity", "verbosity", "preference_statement", "preference_elaboration"),
        *("three_most_similar_preferences", "all_preferences_unprocessed"),
        *("dataset", "chosen-model", "rejected-model"),
        *("question_id", "turn", "anony", "openai_moderation", "toxic_chat_tag", "conv_metadata", "category_tag"),
        *("is_code", "is_refusal", "dedup_tag"),
    )
)
"""Columns that often stand beside the others and carry nothing for us."""


# ---------------------------------------------------------------- cells of a table


def typed(row: Row) -> dict[str, Any]:
    """A row of text cells with numbers as numbers and lists of messages as lists, in the columns where these belong.

    >>> typed({"prompt": '[{"role": "user", "content": "Hi"}]', "p": "0.75", "chosen": "[1, 2]"})
    {'prompt': [{'role': 'user', 'content': 'Hi'}], 'p': 0.75, 'chosen': '[1, 2]'}
    """
    return {name: _cell(name, value) if isinstance(value, str) else value for name, value in row.items()}


def _cell(name: str, text: str) -> object:
    if name in NUMBERS:
        return read_number(text, text)
    if name in TALKS and text.lstrip().startswith("["):
        value = loads(text)
        if isinstance(value, list) and value and all(isinstance(m, dict) and "role" in m for m in value):
            return value
    return text


def loads(text: str) -> object:
    """JSON, or None where it is none; NaN and infinity are none."""
    try:
        return json.loads(text, parse_constant=_refuse)
    except (ValueError, RecursionError):
        return None


def _refuse(name: str) -> object:
    raise ValueError(name)


# ---------------------------------------------------------------- values


def read_number(value: object, default: object = None) -> Any:
    """A finite number, also out of a text; else the default.

    >>> read_number(" 4.5 "), read_number("N/A"), read_number(True), read_number(float("nan"))
    (4.5, None, None, None)
    """
    if isinstance(value, str):
        if "_" in value:
            return default
        try:
            value = float(value)
        except ValueError:
            return default
    if isinstance(value, bool) or not isinstance(value, int | float):
        return default
    try:
        return float(value) if isfinite(value) else default
    except OverflowError:
        return default


MISSING = frozenset({"", "n/a", "na", "nan", "none", "null", "-", "skip", "skipped", "unknown"})


def number(name: str, value: object) -> float | None:
    """A rating or rank; None where nobody gave one. RowFault where it is neither."""
    if value is None or (isinstance(value, str) and value.strip().lower() in MISSING):
        return None
    found = read_number(value)
    if found is None:
        raise RowFault("malformed", f"{name}: must be a number, but it is {brief(value)}")
    return float(found)


def required(row: Row, name: str) -> Any:
    """The value of a column that must be there."""
    value = row.get(name)
    if value is None:
        raise RowFault("malformed", f"{name}: missing field; every line needs it")
    return value


def text(name: str, value: object) -> str:
    """A value that must be a text."""
    if not isinstance(value, str):
        raise RowFault("malformed", f"{name}: must be a text, but it is {brief(value)}")
    return value


def items(name: str, value: object) -> list[Any]:
    """A list, also one written as JSON."""
    found = loads(value) if isinstance(value, str) else value
    if not isinstance(found, list):
        raise RowFault("malformed", f"{name}: must be a list, but it is {brief(value)}")
    return found


def fields(name: str, value: object) -> dict[str, Any]:
    """An object, also one written as JSON."""
    found = loads(value) if isinstance(value, str) else value
    if not isinstance(found, dict):
        raise RowFault("malformed", f"{name}: must be an object, but it is {brief(value)}")
    return found


def named(row: Row, *names: str) -> str:
    """The first of some columns that is there, as a text: who judged, which model; "" for none."""
    value = next((row[name] for name in names if row.get(name) is not None), None)
    return "" if value is None else plain(value)


def brief(value: object) -> str:
    """A value as a sentence can hold it."""
    written = repr(value)
    return written if len(written) <= 60 else f"{written[:57]}..."
