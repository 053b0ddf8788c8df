"""Coverage-guided fuzzing of every importer with atheris; run by hand, not by CI:

    PYTHONPATH=src:. python scripts/fuzz_importers.py -max_total_time=600 -max_len=600 -len_control=0

A row made of the input's bytes goes to one form: it becomes valid records or a `RowFault` with a reason and a sentence,
and nothing else. Half of the rows begin as an example of docs/data-formats.md of which some values are replaced.
"""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

import atheris

with atheris.instrument_imports(include=["druthers.curate.importers"]):
    from druthers.curate import importers
    from druthers.curate.importers import FORMS, Form, RowFault

from druthers.records import Candidates, Pair

PAGE = (Path(__file__).parents[1] / "docs" / "data-formats.md").read_text(encoding="utf-8")
EXAMPLES: dict[str, list[dict[str, Any]]] = {
    form: [json.loads(line) for line in block.splitlines()]
    for form, block in re.findall(r"^## (\w+)\n.*?```json\n(.*?)```", PAGE, re.DOTALL | re.MULTILINE)
}
NAMES = sorted({name for rows in EXAMPLES.values() for row in rows for name in row})
WORDS = (
    "",
    "a",
    "b",
    "tie",
    "N/A",
    "user",
    "assistant",
    "left",
    "\n\nHuman: Hi\n\nAssistant: a",
    "[1]",
    '{"a": 1}',
    "𝄞‏ש",
)


def value(data: Any, depth: int) -> Any:
    """Any JSON value."""
    kind = data.ConsumeIntInRange(0, 9 if depth else 6)
    if kind < 2:
        return WORDS[data.ConsumeIntInRange(0, len(WORDS) - 1)]
    if kind == 2:
        return data.ConsumeUnicodeNoSurrogates(12)
    if kind < 7:
        return (None, True, data.ConsumeIntInRange(-4, 12), data.ConsumeRegularFloat())[kind - 3]
    if kind == 7:
        return [value(data, depth - 1) for _ in range(data.ConsumeIntInRange(0, 3))]
    return {name(data): value(data, depth - 1) for _ in range(data.ConsumeIntInRange(0, 4))}


def name(data: Any) -> str:
    """A name that some form knows, or any other."""
    known = data.ConsumeIntInRange(0, len(NAMES))
    return NAMES[known] if known < len(NAMES) else data.ConsumeUnicodeNoSurrogates(8)


def changed(data: Any, given: Any, depth: int = 6) -> Any:
    """A value of which some parts are replaced; where the input ends, the rest stays."""
    if data.ConsumeIntInRange(0, 7) == 7 or not depth:
        return value(data, 2)
    if isinstance(given, dict):
        kept = [(key, item) for key, item in given.items() if data.ConsumeIntInRange(0, 15) < 15]
        return {key: changed(data, item, depth - 1) for key, item in kept}
    return [changed(data, item, depth - 1) for item in given] if isinstance(given, list) else given


def one(data_bytes: bytes) -> None:
    """One row to one form."""
    data = atheris.FuzzedDataProvider(data_bytes)
    form: Form = FORMS[data.ConsumeIntInRange(0, len(FORMS) - 1)]
    examples = EXAMPLES[form]
    row = (
        changed(data, examples[data.ConsumeIntInRange(0, len(examples) - 1)]) if data.ConsumeBool() else value(data, 4)
    )
    if not isinstance(row, dict):
        row = {"prompt": row}
    columns = (
        {name(data): ("prompt", "group", "ignore", "rating.x")[data.ConsumeIntInRange(0, 3)]}
        if data.ConsumeBool()
        else {}
    )
    importers.detect([row], columns=columns)
    try:
        found = importers.read(row, form, columns=columns, cells=data.ConsumeBool())
    except RowFault as fault:
        if not (fault.reason and str(fault)):
            raise AssertionError("a fault without a reason") from fault
        return
    for item in found.items:
        kind = type(item)
        assert kind in (Pair, Candidates)
        assert kind.model_validate(json.loads(json.dumps(item.line(), allow_nan=False))) == item, "not valid as a line"


if __name__ == "__main__":
    atheris.Setup(sys.argv, one)
    atheris.Fuzz()
