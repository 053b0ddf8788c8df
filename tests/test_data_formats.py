"""The page on forms of data says what is true: every example is detected and imported, every form has its section."""

from __future__ import annotations

import json
import re
import tomllib
from pathlib import Path

import pytest

from druthers.config import load
from druthers.curate.importers import FORMS, GATHERED, Form, Importer, detect, read
from druthers.records import Candidates, Pair

PAGE = (Path(__file__).parents[1] / "docs" / "data-formats.md").read_text(encoding="utf-8")
SECTIONS = dict(re.findall(r"^## (\w+)\n.*?```json\n(.*?)```", PAGE, re.DOTALL | re.MULTILINE))
BECOMES = dict(re.findall(r"^\| \[`(\w+)`\]\(#\w+\) \| .* \| (.*) \|$", PAGE, re.MULTILINE))


def test_every_form_has_a_section_with_two_lines_and_a_row_in_the_table() -> None:
    assert tuple(SECTIONS) == tuple(BECOMES) == FORMS
    assert {form: len(block.splitlines()) for form, block in SECTIONS.items()} == dict.fromkeys(FORMS, 2)


@pytest.mark.parametrize("form", FORMS)
def test_every_example_is_detected_and_becomes_what_the_table_says(form: Form) -> None:
    rows = [json.loads(line) for line in SECTIONS[form].splitlines()]
    assert [detect([row]) for row in rows] == [form, form]
    for row in rows:
        (item,) = read(row, form).items
        assert isinstance(item, Pair if BECOMES[form] == "pairs" else Candidates)
    assert (BECOMES[form] == "opinions, joined by prompt") == (form in GATHERED)


def test_the_column_map_of_the_page_is_one() -> None:
    (block,) = re.findall(r"```toml\n(.*?)```", PAGE, re.DOTALL)
    columns = tomllib.loads(block)["data"]["columns"]
    assert Importer.of("survey.csv", "ratings", columns=columns).columns == columns
    overrides = ["data.columns.frage=prompt", "data.columns.quality.responses=ignore"]
    assert load(overrides=overrides).data.columns == {"frage": "prompt", "quality.responses": "ignore"}
