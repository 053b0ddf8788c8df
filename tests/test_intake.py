"""Which form the files of a source have, and what is said where that cannot be told."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from druthers import config, storage
from druthers.curate import CurateSummary, curate
from druthers.records import InputError
from tests import tiny

TOKENIZER = tiny.tokenizer()


def pair(number: int) -> dict[str, Any]:
    return {"prompt": f"question {number}?", "chosen": f"good answer {number}", "rejected": "bad"}


def vote(number: int) -> dict[str, Any]:
    return {"prompt": f"choice {number}?", "response_a": f"{number} a", "response_b": "b", "winner": "a"}


def put(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(b"".join(storage.encode(row) for row in rows))
    return path


def run(source: Path, out: Path, **data: Any) -> CurateSummary:
    extra = {f"data.{key}": value for key, value in data.items()} | {"data.pairs": str(source)}
    return curate(config.load(extra=extra), out=out, tokenizer=TOKENIZER)


def refused(source: Path, **data: Any) -> str:
    with pytest.raises(InputError) as caught:
        run(source, source.parent / "data", **data)
    return str(caught.value)


def test_the_files_of_a_folder_may_be_of_several_forms(tmp_path: Path) -> None:
    put(tmp_path / "set" / "a.jsonl", [pair(i) for i in range(60)])
    put(tmp_path / "set" / "b.jsonl", [vote(i) for i in range(60)])
    (tmp_path / "set" / "c.csv").write_text(
        "prompt|chosen|rejected\n" + "".join(f"word {i}|yes {i}|no\n" for i in range(60)), "utf-8"
    )
    summary = run(tmp_path / "set", tmp_path / "out")
    assert (summary.format, summary.rows, summary.kept) == ("trl, votes", 180, 180)
    folder_of_one_form = tmp_path / "one"
    put(folder_of_one_form / "a.jsonl", [pair(i) for i in range(60)])
    put(folder_of_one_form / "b.jsonl", [{"other": i} for i in range(3)])
    assert refused(folder_of_one_form).startswith(f"{folder_of_one_form}/b.jsonl:1: other: unknown column")


@pytest.mark.parametrize(
    ("row", "sentence"),
    [
        (
            {"data": [pair(1), pair(2)]},
            "one row holds all others as 'data'; write that list itself, as `jq .data`",
        ),
        (
            {"prompt": "question?", "group": "de"},
            "the first rows hold prompts and no answers; druthers sample gives",
        ),
        ({"frage": "x", "gut": "y"}, "their columns are frage, gut; say what each column is here, as data.columns."),
        (
            vote(1) | {"winner": None, "winer": "a"},
            "or set data.format=votes to see what they lack of the nearest form",
        ),
    ],
)
def test_rows_of_no_form_are_said_with_their_columns_and_the_remedy(
    tmp_path: Path, row: dict[str, Any], sentence: str
) -> None:
    path = put(tmp_path / "a.jsonl", [row])
    assert refused(path).startswith(f"{path}: ")
    assert sentence in refused(path)
    assert "winer: unknown column; did you mean 'winner'?" in refused(
        put(tmp_path / "b.jsonl", [vote(1) | {"winner": None, "winer": "a"}]), format="votes"
    )


def test_a_row_of_another_form_is_named_as_such(tmp_path: Path) -> None:
    path = put(tmp_path / "a.jsonl", [*(pair(i) for i in range(60)), vote(1)])
    said = refused(path)
    assert said.startswith(f"{path}:61: response_a, response_b, winner: unknown columns")
    assert "a row of the form 'votes', and is read as 'trl': put rows of one form into one file" in said
    assert run(path, tmp_path / "out", bad_rows="drop").rejected == {"malformed": 1}


def test_rows_of_no_form_before_others_are_only_dropped_where_that_is_asked(tmp_path: Path) -> None:
    path = put(tmp_path / "a.jsonl", [*({"note": i} for i in range(150)), *(pair(i) for i in range(60))])
    assert "their columns are note" in refused(path)
    assert run(path, tmp_path / "out", bad_rows="drop").rejected == {"malformed": 150}
