"""Dates of rows: found where each form has them, taken as they are written, and counted for the age of the data."""

from __future__ import annotations

import json
from datetime import UTC, date, datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from druthers import config
from druthers.config import Form
from druthers.curate import curate
from druthers.curate.importers import read
from druthers.curate.importers.days import day
from tests import tiny
from tests.test_opinions import manifest
from tests.test_pooling import put

DAY = date(2026, 11, 2)
TODAY = date(2026, 11, 28)
PAIR = {"prompt": "Name a fruit.", "chosen": "Plum.", "rejected": "Carrot."}
VOTE = {"prompt": "Name a fruit.", "response_a": "Plum.", "response_b": "Carrot.", "winner": "a"}
TASK = {"prompt": "Name a fruit.", "answer1": "Plum.", "answer2": "Carrot."}
SIDE = {"from_name": "pw", "to_name": "answer1,answer2", "type": "pairwise", "value": {"selected": "left"}}
TALK = {
    "prompt": [{"role": "user", "content": "Name a fruit."}],
    "chosen": [{"role": "assistant", "content": "Plum."}],
    "rejected": [{"role": "assistant", "content": "Carrot."}],
}
ROWS: list[tuple[Form, dict[str, Any], dict[str, str]]] = [
    ("trl", PAIR | {"created_at": "2026-11-02T23:59:59Z"}, {}),
    ("trl", PAIR | {"wann": "2026-11-02"}, {"wann": "date"}),
    ("druthers", TALK | {"date": "2026-11-02"}, {}),
    ("votes", VOTE | {"tstamp": 1793610000.5}, {}),
    ("votes", VOTE | {"timestamp": datetime(2026, 11, 2, 9)}, {}),
    ("ratings", {"prompt": "Name a fruit.", "response": "Plum.", "rating": 3, "date": DAY}, {}),
    ("groundtruth", manifest({"winner": "A"}, **{"creation-date": "2026-11-02T09:00:00.123"}), {}),
    ("groundtruth", manifest({"winner": "A"}, creation_date="2026-11-02T09:00:00"), {}),
    (
        "labelstudio",
        {
            "data": TASK,
            "created_at": "2026-10-01T00:00:00Z",
            "annotations": [
                {"completed_by": 3, "created_at": "2026-11-02T12:00:00.5Z", "result": [SIDE]},
                {"completed_by": 4, "created_at": "2026-11-01T12:00:00Z", "result": [SIDE]},
                {"completed_by": 5, "created_at": "2026-11-20T12:00:00Z", "was_cancelled": True, "result": []},
            ],
        },
        {},
    ),
    ("labelstudio", {"data": TASK | {"wann": "2026-11-02"}, "annotations": [{"result": [SIDE]}]}, {"wann": "date"}),
    (
        "argilla",
        {
            "fields": {"prompt": "Name a fruit.", "response_1": "Plum.", "response_2": "Carrot."},
            "responses": {"preference": [{"value": "response_1", "user_id": "u1"}]},
            "updated_at": "2026-11-02T09:00:00",
        },
        {},
    ),
    (
        "shp",
        {
            "history": "Name a fruit.",
            "human_ref_A": "Plum.",
            "human_ref_B": "Carrot.",
            "labels": 1,
            "created_at_utc_A": 1793500000,
            "created_at_utc_B": 1793610000,
        },
        {},
    ),
]


@pytest.mark.parametrize(("form", "row", "columns"), ROWS, ids=lambda value: value if isinstance(value, str) else "")
def test_a_row_says_when_it_was_made_as_its_form_does(form: Form, row: dict[str, Any], columns: dict[str, str]) -> None:
    found = read(row, form, columns=columns)
    assert found.day == DAY.toordinal()
    assert found.ignored == ()


def test_what_is_no_date_is_none_and_costs_no_row() -> None:
    assert read(PAIR | {"timestamp": "soon"}, "trl").day is None
    assert read(PAIR, "trl").day is None
    assert read(VOTE | {"date": 41.2}, "votes").items == read(VOTE, "votes").items


@given(st.datetimes(datetime(2000, 1, 2), datetime(2099, 12, 30)), st.integers(-12, 12))
def test_a_moment_is_on_one_day_however_it_is_written(moment: datetime, hours: int) -> None:
    moment = moment.replace(tzinfo=UTC, microsecond=0)
    abroad = moment.astimezone(timezone(timedelta(hours=hours)))
    seconds = int(moment.timestamp())
    written = (abroad, abroad.isoformat(), seconds, str(seconds), seconds * 1000, seconds * 10**9, float(seconds))
    assert {day(value) for value in written} == {moment.toordinal()}


@given(st.one_of(st.text(), st.floats(), st.integers(), st.booleans(), st.none(), st.lists(st.integers())))
def test_anything_else_is_a_day_of_this_century_or_none(value: object) -> None:
    assert day(value) is None or date(2000, 1, 1).toordinal() <= (day(value) or 0) < date(2100, 1, 1).toordinal()


def quality(folder: Path, rows: list[dict[str, Any]], *, today: date | None, **extra: Any) -> dict[str, Any]:
    settings = config.load(extra={"data.pairs": str(put(folder / "rows.jsonl", rows))} | extra)
    curate(settings, out=folder / "data", tokenizer=tiny.tokenizer(), today=today)
    told = json.loads((folder / "data/quality.json").read_text("utf-8"))["findings"]
    return {one["id"]: one for one in told}


def test_old_rows_warn(tmp_path: Path) -> None:
    dates = ["2026-07-01", "2026-11-02", None]
    rows = [
        {**PAIR, "prompt": f"Name fruit {i}.", **({"date": when} if when else {})}
        for i in range(60)
        for when in [dates[i % 3] if i else "2026-07-01"]
    ]
    found = quality(tmp_path, rows, today=TODAY)["D12.age"]
    assert (found["value"], found["n"], found["status"]) == (150, 40, "warn")
    assert "Half of the 40 rows with a date are 150 days old" in found["text"]
    assert "D12.age" not in quality(tmp_path, rows, today=None)
    assert "D12.age" not in quality(tmp_path, [{**PAIR, "prompt": f"Name fruit {i}."} for i in range(9)], today=TODAY)


def test_opinions_have_an_age_and_what_is_held_out_has_none(tmp_path: Path) -> None:
    held = put(tmp_path / "held.jsonl", [VOTE | {"prompt": f"Held {i}?", "date": "2020-01-01"} for i in range(50)])
    rows = [VOTE | {"prompt": f"Name fruit {i}.", "date": "2026-11-18"} for i in range(20)]
    found = quality(tmp_path, rows, today=TODAY, **{"data.heldout": str(held)})["D12.age"]
    assert (found["value"], found["n"], found["status"]) == (10, 20, "pass")
