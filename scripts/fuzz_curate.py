"""Coverage-guided fuzzing of the whole of `curate` with atheris; run by hand, not by CI:

    PYTHONPATH=src:. python scripts/fuzz_curate.py -max_total_time=600 -max_len=1500 -len_control=0

A few rows made of the input's bytes, most of them one form's examples of docs/data-formats.md of which some values are
replaced, go to a file (JSON lines, with now and then a line that is none, or CSV), and perhaps others to a held-out
one. Whatever they hold, curate ends with an InputError and leaves no file behind, or every row and every pair is
accounted for, each once, and what it wrote can be read.
"""

from __future__ import annotations

import csv
import io
import json
import sys
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

import atheris

with atheris.instrument_imports(include=["druthers.curate"]):
    from druthers.curate import CurateSummary, curate
    from druthers.curate.importers import FORMS, OPINIONS

from tests import tiny

from druthers import config, storage
from druthers.records import InputError, Pair
from fuzz_importers import EXAMPLES, changed, name, value

TOKENIZER = tiny.tokenizer()
ASKED = "Name a fruit."
"""What the examples ask."""
QUESTIONS = (
    "Who wrote the oldest letter in this museum?",
    "How many bridges cross that river today?",
    "When does the next train leave for the coast?",
    "Why is bread dough left to rest overnight?",
    "Which tools do carpenters sharpen most often?",
    ASKED,
)


def rows(data: Any, form: str) -> list[dict[str, Any]]:
    """One to six rows of a form, which ask different things and are changed, or anything else; with four that are left
    as they are behind them in seven of eight files, so that something can be trained on and held out."""
    examples, made = EXAMPLES[form], []
    for i in range(1 + data.ConsumeIntInRange(0, 5)):
        example = asking(examples[i % len(examples)], QUESTIONS[i])
        row = changed(data, example) if data.ConsumeIntInRange(0, 9) < 9 else value(data, 4)
        made.append(row if isinstance(row, dict) else {"prompt": row})
    plain = range(4 if data.ConsumeIntInRange(0, 7) < 7 else 0)
    return made + [asking(examples[i % len(examples)], QUESTIONS[i]) for i in plain]


def asking(example: dict[str, Any], question: str) -> dict[str, Any]:
    """An example with another prompt."""
    made: dict[str, Any] = json.loads(json.dumps(example).replace(ASKED, question))
    return made


def written(data: Any, folder: Path, name: str, found: list[dict[str, Any]]) -> Path:
    """The rows as a file; in a table what is no text is JSON."""
    if data.ConsumeIntInRange(0, 3) == 3:
        path = folder / f"{name}.csv"
        with path.open("w", encoding="utf-8", newline="") as file:
            table = csv.DictWriter(file, list(dict.fromkeys(key for row in found for key in row)) or ["prompt"])
            table.writeheader()
            table.writerows({key: cell(item) for key, item in row.items()} for row in found)
        return path
    path, lines = folder / f"{name}.jsonl", io.BytesIO()
    for row in found:
        lines.write(json.dumps(row, ensure_ascii=data.ConsumeBool()).encode("utf-8", "replace") + b"\n")
        if data.ConsumeIntInRange(0, 15) == 15:
            lines.write(data.ConsumeBytes(12) + b"\n")
    path.write_bytes(lines.getvalue())
    return path


def cell(item: object) -> str:
    """A value in a table."""
    return item if isinstance(item, str) else "" if item is None else json.dumps(item)


def one(data_bytes: bytes) -> None:
    """One file, or two, through everything."""
    data = atheris.FuzzedDataProvider(data_bytes)
    form = FORMS[data.ConsumeIntInRange(0, len(FORMS) - 1)]
    with tempfile.TemporaryDirectory() as place:
        folder, keys = Path(place), dict[str, Any]()
        keys["data.pairs"] = str(written(data, folder, "pairs", rows(data, form)))
        if data.ConsumeIntInRange(0, 7) == 7:
            other = FORMS[data.ConsumeIntInRange(0, len(FORMS) - 1)]
            keys["data.heldout"] = str(written(data, folder, "heldout", rows(data, other)))
        keys["data.bad_rows"] = "stop" if data.ConsumeIntInRange(0, 3) == 3 else "drop"
        keys["data.format"] = form if data.ConsumeBool() else "auto"
        keys["data.heldout_share"] = 0.3
        keys["data.limit"] = 2 if data.ConsumeIntInRange(0, 7) == 7 else None
        if data.ConsumeIntInRange(0, 7) == 7:
            keys["data.columns"] = {name(data): ("prompt", "group", "ignore")[data.ConsumeIntInRange(0, 2)]}
        keys["grade.ties"] = "soft" if data.ConsumeBool() else "drop"
        out = folder / "data"
        out.mkdir()
        try:
            summary = curate(config.load(extra=keys), out=out, tokenizer=TOKENIZER)
        except InputError:
            left = sorted(path.name for path in out.iterdir())
        else:
            left = []
            check(summary, out)
        assert not left, f"left behind: {left}"


def check(summary: CurateSummary, out: Path) -> None:
    """Every row and pair is somewhere, once, and can be read."""
    sides = {side: list(storage.read(str(out / f"{side}.jsonl"), Pair)) for side in ("train", "heldout")}
    assert {side: len(found) for side, found in sides.items()} == {"train": summary.train, "heldout": summary.heldout}
    refused = [json.loads(line) for line in (out / "rejected.jsonl").read_bytes().splitlines()]
    assert Counter(row["reason"] for row in refused) == summary.rejected, "the books do not agree"
    assert len({row["where"] for row in refused}) <= summary.rows
    whole = summary.train + summary.heldout + len(refused) + summary.beyond_limit
    assert whole == summary.rows or summary.graded or summary.format in OPINIONS, "a row was lost"
    for path in (out / "quality.json", out / "summary.json"):
        json.loads(path.read_bytes(), parse_constant=fail)
    told = json.loads((out / "quality.json").read_bytes())["findings"]
    for one_finding in told:
        if "rows" in one_finding:
            lines = (out / one_finding["rows"]["file"]).read_bytes().splitlines()
            assert len(lines) == one_finding["rows"]["count"], "a finding counts other rows than its file has"


def fail(constant: str) -> None:
    """No NaN in JSON."""
    raise AssertionError(f"{constant} in a file")


if __name__ == "__main__":
    atheris.Setup(sys.argv, one)
    atheris.Fuzz()
