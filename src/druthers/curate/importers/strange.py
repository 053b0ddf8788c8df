"""What is said of rows that look like no form: what they hold, and what would make them readable."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from druthers.config import Form
from druthers.curate.importers.columns import LONGEST_NAME, Names, Row

ASKING = frozenset({"prompt", "system", "group", "id", "source", "tools", "reason"})
"""Columns that answer nothing."""
MOST = 8
"""Columns that are named."""


def strangeness(rows: Sequence[Row], forms: Mapping[Form, Names]) -> str:
    """A sentence about rows of no form, without the name of the file.

    >>> strangeness([{"data": [{"prompt": "Name a fruit."}, {"prompt": "Name a root."}]}], {})
    "one row holds all others as 'data'; write that list itself, as `jq .data` does"
    >>> strangeness([{"frage": "Name a fruit.", "gut": "Plum."}], {}).partition(";")[0]
    'the first rows look like none of the forms, their columns are frage, gut'
    """
    columns = list(dict.fromkeys(name for row in rows for name in row))
    inside = wrapped(rows)
    if inside:
        return f"one row holds all others as {inside!r}; write that list itself, as `jq .{inside}` does"
    if "prompt" in columns and ASKING.issuperset(columns):
        return "the first rows hold prompts and no answers; druthers sample gives some, druthers judge compares them"
    named = ", ".join(name[:LONGEST_NAME] for name in columns[:MOST]) + (", …" if len(columns) > MOST else "")
    seen = f"the first rows look like none of the forms, their columns are {named}"
    said = f"{seen}; say what each column is here, as data.columns.COLUMN=NAME (docs/data-formats.md)"
    near = nearest(columns, forms)
    return f"{said}, or set data.format={near} to see what they lack of the nearest form" if near else said


def wrapped(rows: Sequence[Mapping[str, Any]]) -> str:
    """The key under which a single object holds all rows, or nothing."""
    if len(rows) != 1:
        return ""
    lists = [name for name, value in rows[0].items() if isinstance(value, list)]
    several = len(lists) == 1 and len(rows[0][lists[0]]) > 1
    return lists[0] if several and all(isinstance(one, dict) for one in rows[0][lists[0]]) else ""


def nearest(columns: Sequence[str], forms: Mapping[Form, Names]) -> Form | None:
    """The form that knows the most of what some columns answer; None where none knows two of them."""
    known = {
        form: sum(names.knows(name) for name in columns if name not in ASKING)
        for form, names in reversed(list(forms.items()))
        if not names.open
    }
    form = max(known, key=known.__getitem__, default=None)
    return form if form and known[form] > 1 else None
