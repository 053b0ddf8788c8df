"""Reading in every form and naming every fault; writing whole or not at all."""

from __future__ import annotations

import csv
import errno
import gzip
import json
import os
import pwd
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from druthers import storage
from druthers.records import DEEPEST, Candidate, Candidates, InputError, Outcome, Pair, assistant, user

ROWS = [{"a": 1, "text": "é\u2028x"}, {"a": 2, "text": "zwei"}]
JSONL = b"".join(storage.encode(row) for row in ROWS)


def found(path: Path | str) -> list[dict[str, Any]]:
    return [row for _, row in storage.rows(str(path))]


def fault(path: Path | str) -> str:
    with pytest.raises(InputError) as caught:
        list(storage.rows(str(path)))
    assert "\n" not in str(caught.value)
    return str(caught.value)


def put(path: Path, data: bytes) -> Path:
    path.write_bytes(data)
    return path


def zstd(data: bytes) -> bytes:
    sink = pa.BufferOutputStream()
    with pa.CompressedOutputStream(sink, "zstd") as stream:
        stream.write(data)
    return bytes(sink.getvalue())


# ---------------------------------------------------------------- forms that are read


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("a.jsonl", JSONL),
        ("a.ndjson", JSONL),
        ("A.JSONL", JSONL),
        ("a.jsonl", JSONL.replace("é".encode(), b"\\u00e9")),
        ("a.jsonl", JSONL.rstrip(b"\n")),
        ("a.jsonl", JSONL.replace(b"\n", b"\r\n")),
        ("a.jsonl", b"\xef\xbb\xbf" + JSONL),
        ("a.jsonl", JSONL.replace(b"\n", b"\n\n \n")),
        ("a.jsonl.gz", gzip.compress(JSONL)),
        ("a.jsonl.gz", gzip.compress(JSONL[:20]) + gzip.compress(JSONL[20:])),
        ("a.jsonl.zst", zstd(JSONL)),
        ("a.json", json.dumps(ROWS).encode()),
        ("a.json", json.dumps(ROWS, indent=2).encode()),
        ("a.json", b"\xef\xbb\xbf " + json.dumps(ROWS).encode()),
        ("a.json", JSONL),
        ("a.json.gz", gzip.compress(json.dumps(ROWS).encode())),
    ],
)
def test_every_form_gives_the_same_rows(tmp_path: Path, name: str, data: bytes) -> None:
    assert found(put(tmp_path / name, data)) == ROWS


def test_parquet_gives_the_rows_and_nulls_are_absent_fields(tmp_path: Path) -> None:
    table = pa.table(
        {"a": [1, 2], "b": [None, "x"], "m": [[{"role": "user", "name": None}], [{"role": "tool", "name": "f"}]]}
    )
    pq.write_table(table, tmp_path / "a.parquet")
    assert list(storage.rows(str(tmp_path / "a.parquet"))) == [
        (f"{tmp_path}/a.parquet:1", {"a": 1, "m": [{"role": "user"}]}),
        (f"{tmp_path}/a.parquet:2", {"a": 2, "b": "x", "m": [{"role": "tool", "name": "f"}]}),
    ]


TABLE = 'a,text\r\n1,"é, ""so""\r\nund so"\r\n\r\n2,\r\n'
CELLS = [{"a": "1", "text": 'é, "so"\r\nund so'}, {"a": "2"}]


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("a.csv", TABLE.encode()),
        ("A.CSV", TABLE.encode("utf-8-sig")),
        ("a.csv", TABLE.encode().rstrip()),
        ("a.csv", TABLE.replace("a,text", "a;text").replace("1,", "1;").replace("2,", "2;").encode()),
        ("a.tsv", TABLE.replace("a,text", "a\ttext").replace("1,", "1\t").replace("2,", "2\t").encode()),
        ("a.csv.gz", gzip.compress(TABLE.encode())),
        ("a.csv.zst", zstd(TABLE.encode())),
    ],
)
def test_every_kind_of_table_gives_the_same_cells_and_empty_ones_are_absent(
    tmp_path: Path, name: str, data: bytes
) -> None:
    lines = list(storage.lines(str(put(tmp_path / name, data))))
    assert [line.row for line in lines] == CELLS
    assert [line.where.rpartition(":")[2] for line in lines] == ["2", "5"]
    assert all(line.cells and not line.fault for line in lines)


def test_a_bad_row_of_a_table_is_a_fault_of_its_own_line_and_reading_goes_on(tmp_path: Path) -> None:
    rows = [b"a,b", b"1,2", b'"x\ny",3', b"1,2,3", b'1,"2" 3', b"1", b"1,\xff", b'7,"open', b"8,9"]
    lines = list(storage.lines(str(put(tmp_path / "a.csv", b"\n".join(rows)))))
    faults = [(line.where.rpartition(":")[2], line.fault) for line in lines]
    assert [place for place, _ in faults] == ["2", "3", "5", "6", "7", "8", "9"]
    assert [fault for place, fault in faults if place in "23"] == ["", ""]
    assert lines[1].row == {"a": "x\ny", "b": "3"}
    assert faults[2][1].startswith("has 3 cells, but the header has 2; put cells that hold commas")
    assert faults[3][1].startswith("is not CSV: ',' expected after '\"'")
    assert faults[4][1].startswith("has 1 cells, but the header has 2")
    assert faults[5][1] == "is not UTF-8 (byte 3 of line 8); save the file as UTF-8"
    assert faults[6][1].startswith("holds a quote that is never closed")
    assert lines[2].row == {"line": "1,2,3"}


@pytest.mark.parametrize(
    ("data", "sentence"),
    [
        (b"", "is empty; give at least one row"),
        (b"\n\n", "is empty; give at least one row"),
        (b"a,b\n", "is empty; give at least one row"),
        (b"a,b,a\n1,2,3\n", ":1: the column 'a' stands twice in the header; rename one"),
        (b'a,"b\n1,2\n', ":1: the header holds a quote that is never closed"),
        ("a,é\n1,2\n".encode("latin-1"), ":1: is not UTF-8"),
        (b"a,b\r1,2\r3,4\r", ":1: the header holds a line that ends in a bare carriage return, as on old Macs; save"),
    ],
)
def test_a_table_without_a_sound_header_or_rows_is_a_bad_file(tmp_path: Path, data: bytes, sentence: str) -> None:
    assert sentence in fault(put(tmp_path / "a.csv", data))


def test_a_column_without_a_name_is_called_by_its_place(tmp_path: Path) -> None:
    assert found(put(tmp_path / "a.csv", b",text\n0,x\n")) == [{"column_1": "0", "text": "x"}]


cell_texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.tuples(cell_texts, cell_texts), min_size=1, max_size=6), st.sampled_from([".csv", ".tsv"]))
def test_tables_read_back_as_the_csv_module_wrote_them(tmp_path: Path, rows: list[tuple[str, str]], kind: str) -> None:
    path = tmp_path / f"a{kind}"
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, delimiter="\t" if kind == ".tsv" else ",", quoting=csv.QUOTE_ALL)
        writer.writerows([("a", "b"), *rows])
    read = list(storage.lines(str(path)))
    assert [(line.row.get("a", ""), line.row.get("b", "")) for line in read] == rows
    text = path.read_bytes()
    starts = [int(line.where.rpartition(":")[2]) for line in read]
    ends = [*starts[1:], text.count(b"\n") + 1]
    for (a, b), start, end in zip(rows, starts, ends, strict=True):
        assert end - start == 1 + a.count("\n") + b.count("\n")


def test_a_manifest_is_json_lines(tmp_path: Path) -> None:
    assert found(put(tmp_path / "output.manifest", JSONL)) == ROWS


def test_a_place_is_file_and_line_also_behind_blank_lines_and_in_arrays(tmp_path: Path) -> None:
    lines = put(tmp_path / "a.jsonl", b'\n{"a": 1}\n\n{"a": 2}\n')
    array = put(tmp_path / "a.json", b'[\n {"a": 1},\n\n {"a":\n 2}, {"a": 3}]')
    assert [where for where, _ in storage.rows(str(lines))] == [f"{lines}:2", f"{lines}:4"]
    assert [where for where, _ in storage.rows(str(array))] == [f"{array}:2", f"{array}:4", f"{array}:5"]


def test_a_folder_is_its_readable_files_in_order_of_name(tmp_path: Path) -> None:
    put(tmp_path / "b.jsonl", b'{"a": 2}\n')
    put(tmp_path / "a.json", b'[{"a": 1}]')
    put(tmp_path / "README.md", b"not rows")
    put(tmp_path / ".hidden.jsonl", b"not rows")
    assert found(tmp_path) == [{"a": 1}, {"a": 2}]


def test_urls_of_memory_and_file(tmp_path: Path) -> None:
    put(tmp_path / "a.jsonl.gz", gzip.compress(JSONL))
    fsspec.filesystem("memory").pipe({"/set/a.jsonl": JSONL, "/set/b.jsonl": JSONL})
    assert found(f"file://{tmp_path}/a.jsonl.gz") == ROWS
    assert found("memory://set/a.jsonl") == ROWS
    assert found("memory://set") == ROWS + ROWS
    assert "memory://set/none.jsonl: no such file" in fault("memory://set/none.jsonl")


class Shelf(BaseHTTPRequestHandler):
    """Serves the files of a folder; asks no questions about the query."""

    folder: Path

    def do_GET(self) -> None:
        path = self.folder / self.path.split("?")[0].lstrip("/")
        self.send_response(200 if path.is_file() else 404)
        self.end_headers()
        if path.is_file():
            self.wfile.write(path.read_bytes())

    def log_message(self, *args: object) -> None:
        """Say nothing."""


@pytest.fixture
def served(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    server = HTTPServer(("127.0.0.1", 0), type("Here", (Shelf,), {"folder": tmp_path}))
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}).start()
    yield f"127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def test_http_addresses_are_read_and_their_secrets_not_shown(tmp_path: Path, served: str) -> None:
    put(tmp_path / "a.jsonl.gz", gzip.compress(JSONL))
    pq.write_table(pa.table({"a": [1, 2]}), tmp_path / "a.parquet")
    assert found(f"http://{served}/a.jsonl.gz?token=secret") == ROWS
    assert found(f"http://{served}/a.parquet") == [{"a": 1}, {"a": 2}]
    message = fault(f"http://{served}/none.jsonl?token=secret")
    remedy = "check the address, or download the file and name your copy"
    assert message == f"http://{served}/none.jsonl: cannot be read: HTTP Error 404: Not Found; {remedy}"
    with socket.socket() as unheard:  # bound, but it does not listen
        unheard.bind(("127.0.0.1", 0))
        address = f"http://127.0.0.1:{unheard.getsockname()[1]}/a.jsonl"
        assert fault(address) == f"{address}: cannot be read: Connection refused; {remedy}"
    assert storage.shown("https://me:word@host/a.jsonl?sig=1") == "https://host/a.jsonl"


# ---------------------------------------------------------------- bad input


@pytest.mark.parametrize(
    ("name", "data", "sentence"),
    [
        ("a.jsonl", b"", "is empty; give at least one row"),
        ("a.jsonl", b"\n \n", "is empty; give at least one row"),
        ("a.jsonl.gz", b"", "is empty; give at least one row"),
        ("a.jsonl.gz", gzip.compress(b""), "is empty; give at least one row"),
        ("a.json", b"[]", "is empty; give at least one row"),
        ("a.jsonl", b'{"a": 1}\n{"a": \n', ":2: is not JSON: expecting value at column 6"),
        ("a.jsonl", b'{"a": 1}\nnull\n', ":2: is not a JSON object but None; write one {…} a line"),
        ("a.jsonl", b"[1, 2]\n[3]\n", ":1: is not a JSON object but [1, 2]; write one {…} a line"),
        ("a.jsonl", b"[1, 2]\n", ":1: is not a JSON object but 1; write one {…} for each row"),
        ("a.jsonl", b'{\n "a": 1\n}\n', ":1: is not JSON: its object does not end on this line; write one a line"),
        ("a.jsonl", b'{"a": "\xff"}\n', ":1: is not UTF-8 (byte 8 of the line); save the file as UTF-8"),
        ("a.jsonl", '{"a": 1}\n'.encode("utf-16"), ": is UTF-16, as Excel's Unicode text is; save the file as UTF-8"),
        (
            "a.jsonl",
            b'{"a": 1, "b": {"c": 1, "c": 2}}',
            ":1: is not JSON: the key 'c' stands twice in one object; keep one",
        ),
        ("a.jsonl", b'{"a": NaN}', ":1: is not JSON: NaN is not a JSON number; write a finite number"),
        ("a.jsonl", b'{"a": "\\uD83D"}', ":1: is not JSON: it holds half of a surrogate pair"),
        ("a.json", b'[{"a": "\\ud83d"}]', ":1: is not JSON: it holds half of a surrogate pair"),
        ("a.jsonl", b'{"a":' + b"[" * 100_000, ":1: is not JSON: it is nested too deeply"),
        ("a.jsonl", b'{"a": ' + b"9" * 5000 + b"}", ":1: is not JSON: it holds a number of more than 4,300 digits"),
        ("a.json", b'[{"a": 1},\n {"a": }]', ":2: is not JSON: expecting value"),
        ("a.json", b'[{"a": 1},\n {"a": 2}', ":2: the array does not go on with ',' or ']'"),
        ("a.json", b'[{"a": 1}, 7]', ":1: is not a JSON object"),
        ("a.json", b'[{"a": 1},\n {"a": "\xff"}]', ":2: is not UTF-8; save the file as UTF-8"),
        ("a.jsonl.gz", b"plain text", ":1: cannot be read: Not a gzipped file (b'pl'); fetch or write the file again"),
        (
            "a.json.gz",
            gzip.compress(b'[{"a": 1}]')[:-9],
            ": the compressed data ends early; fetch or write the file again",
        ),
        ("a.jsonl.zst", b"plain text", ":1: cannot be read: "),
        ("a.parquet", b"plain text, not Parquet", ": is not readable Parquet: "),
        ("a.parquet", b"", ": is not readable Parquet: "),
        ("a.xlsx", b"PK\x03\x04\x14", ": is a zip archive or an Excel file; unpack it, or save the sheet as CSV"),
        ("a.yaml", b"- a: 1\n", ": is of an unknown kind, it begins with '- a: 1'; give JSON lines, a JSON array, CSV"),
        ("a", b"\x00\x01\xff", ": is of an unknown kind, it begins with bytes of no text; give JSON lines"),
        ("a.jsonl", b"<!DOCTYPE html>\n", ": is a web page or XML; download the file itself"),
        ("a.parquet", b"version https://git-lfs.github.com/spec/v1\n", ": is a pointer of Git LFS and not the file"),
        ("a.parquet.gz", b"", ": is empty; give at least one row"),
    ],
)
def test_bad_files_are_named_with_line_and_reason(tmp_path: Path, name: str, data: bytes, sentence: str) -> None:
    message = fault(put(tmp_path / name, data))
    assert message.startswith(f"{tmp_path / name}:")
    assert sentence in message


@pytest.mark.parametrize(("suffix", "pack"), [(".gz", gzip.compress), (".zst", zstd)])
def test_a_truncated_file_is_named_with_the_line_where_it_ends(
    tmp_path: Path, suffix: str, pack: Callable[[bytes], bytes]
) -> None:
    data = b"".join(b'{"a": %d}\n' % (i * 7919 % 1_000_003) for i in range(20_000))
    whole = pack(data)
    path = put(tmp_path / f"a.jsonl{suffix}", whole[: len(whole) // 2])
    with pytest.raises(InputError) as caught:
        list(storage.rows(str(path)))
    place, line = str(caught.value).split(": ")[0].rsplit(":", 1)
    assert place == str(path)
    assert 1 < int(line) < 20_000
    assert str(caught.value).endswith("; fetch or write the file again")


def test_missing_files_folders_without_rows_and_unknown_addresses(tmp_path: Path) -> None:
    assert (
        fault(tmp_path / "none.jsonl") == f"{tmp_path}/none.jsonl: no such file; give an existing file, folder or URL"
    )
    assert "no such file; give an existing file, folder or URL" in fault("none-such-set")
    assert "holds no .jsonl" in fault(tmp_path)
    assert "nowhere://a.jsonl: cannot be read: Protocol not known" in fault("nowhere://a.jsonl")


@pytest.mark.parametrize("behind", [b"[]", b"x", b"\n\n ]", b',{"a": 3}', b"\xc2\xa0"])
def test_what_stands_behind_an_array_is_not_lost(tmp_path: Path, behind: bytes) -> None:
    path = put(tmp_path / "a.json", b'[{"a": 1},\n{"a": 2}]\n' + behind)
    said = fault(path)
    assert said.startswith(f"{path}:{5 if behind[:1].isspace() else 3}: ")
    assert "stands behind the end of the array; keep one array" in said
    assert found(put(tmp_path / "b.json", b'[{"a": 1}] \r\n\t')) == [{"a": 1}]


JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(
    st.lists(st.dictionaries(st.text(max_size=5), JSON_VALUES, max_size=4), min_size=1, max_size=6),
    st.sampled_from([{"indent": 1, "ensure_ascii": False}, {"indent": None}, {"indent": 1}, {"ensure_ascii": False}]),
    st.integers(1, 40),
)
def test_an_array_read_a_few_bytes_at_a_time_is_the_array(
    tmp_path: Path, rows: list[dict[str, Any]], form: dict[str, Any], chunk: int
) -> None:
    """Wherever the bytes are cut: inside a character, an escape, a number or a word."""
    written = [json.dumps(row, **form) for row in rows]
    path = put(tmp_path / "a.json", b"[\n" + ",\n".join(written).encode() + b"]")
    begun = [2 + sum(text.count("\n") + 1 for text in written[:i]) for i in range(len(rows))]
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(storage, "CHUNK", chunk)
        read = list(storage.rows(str(path)))
    assert read == [(f"{path}:{line}", row) for line, row in zip(begun, rows, strict=True)]


def test_of_an_array_no_more_is_read_than_is_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """So it need not fit in memory, and a fault far behind is told when its turn comes."""
    monkeypatch.setattr(storage, "CHUNK", 100)
    path = put(tmp_path / "a.json", b"[" + b'{"a": 1},\n' * 1000 + b'{"a": "\xff"}]')
    rows = storage.rows(str(path))
    assert [next(rows)[1] for _ in range(900)] == [{"a": 1}] * 900
    with pytest.raises(InputError, match=r"a.json:1001: is not UTF-8"):
        list(rows)


@pytest.mark.parametrize("data", [b'[{"a": 1}, {"a": "open', b'[{"a": 1}, {"a": tru', b'[{"a": 1}, {"a": [1, 2'])
def test_an_array_that_breaks_off_is_said_at_its_last_object(data: bytes, tmp_path: Path) -> None:
    assert fault(put(tmp_path / "a.json", data)).startswith(f"{tmp_path / 'a.json'}:1: is not JSON: ")


def test_a_quote_that_is_never_closed_is_not_looked_for_to_the_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(storage, "CHUNK", 100)
    monkeypatch.setattr(storage, "LONGEST_OBJECT", 1000)
    path = put(tmp_path / "a.json", b'[{"a": "' + b"x" * 100_000)
    assert "is not JSON: unterminated string" in fault(path)


def nested(levels: int) -> str:
    """A row so many levels deep."""
    return '{"a": ' * levels + "1" + "}" * levels


@pytest.mark.parametrize("suffix", [".jsonl", ".json"])
def test_a_row_may_be_so_deep_and_no_deeper(tmp_path: Path, suffix: str) -> None:
    least = 2 * DEEPEST
    for levels in (1, least):
        text = nested(levels) if suffix == ".jsonl" else f"[{nested(levels)}]"
        assert len(found(put(tmp_path / f"{levels}{suffix}", text.encode()))) == 1
    for levels in (least + 1, 300, 900, 100_000):
        text = nested(levels) if suffix == ".jsonl" else f"[{nested(levels)}]"
        said = fault(put(tmp_path / f"{levels}{suffix}", text.encode()))
        assert ":1: is not JSON: it is nested" in said
        assert said.endswith("write it flatter")


def test_parquet_with_text_that_is_not_utf8_has_one_bad_row(tmp_path: Path) -> None:
    texts = pa.array([b"one", b"caf\xe9", b"three"]).view(pa.string())
    pq.write_table(pa.table({"text": texts, "n": [1, 2, 3]}), tmp_path / "a.parquet")
    rows = list(storage.lines(str(tmp_path / "a.parquet")))
    assert [line.row for line in rows] == [{"text": "one", "n": 1}, {"n": 2}, {"text": "three", "n": 3}]
    assert [line.where.rpartition(":")[2] for line in rows] == ["1", "2", "3"]
    assert [line.fault for line in rows] == [
        "",
        "text: is not UTF-8 (byte 4 of the text); write the column as UTF-8",
        "",
    ]
    assert fault(tmp_path / "a.parquet").startswith(f"{tmp_path / 'a.parquet'}:2: text: is not UTF-8")


@pytest.mark.parametrize("name", ["a", "a.jsonl", "a.json", "a.csv", "a.gz"])
def test_parquet_is_read_under_any_name_and_not_packed_once_more(tmp_path: Path, name: str) -> None:
    pq.write_table(pa.table({"a": [1]}), tmp_path / "x.parquet")
    data = (tmp_path / "x.parquet").read_bytes()
    assert found(put(tmp_path / name, data)) == [{"a": 1}]
    assert storage.count(str(tmp_path / name)) == 1
    path = put(tmp_path / name, gzip.compress(data))
    assert fault(path).startswith(f"{path}: is a Parquet file packed once more; unpack it first")


ARRAY = json.dumps(ROWS).encode()


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("a", JSONL),
        ("a.txt", JSONL),
        ("a.csv", JSONL),
        ("a.parquet", JSONL),
        ("a.jsonl.gz", JSONL),
        ("a", gzip.compress(JSONL)),
        ("a.jsonl", gzip.compress(JSONL)),
        ("a.jsonl.gz", zstd(JSONL)),
        ("a", zstd(JSONL)),
        ("a.jsonl", ARRAY),
        ("a.jsonl", json.dumps(ROWS, indent=2).encode()),
        ("a.txt", b"\n " + ARRAY),
        ("a.csv", ARRAY),
        ("a", gzip.compress(ARRAY)),
    ],
)
def test_how_a_file_begins_says_more_than_its_name(tmp_path: Path, name: str, data: bytes) -> None:
    path = put(tmp_path / name, data)
    assert found(path) == ROWS
    assert [line.row for run in storage.runs(str(path), size=1) for line in storage.parsed(run)] == ROWS
    assert storage.count(str(path)) in (0, len(ROWS))


BARS = TABLE.replace("a,text", "a|text").replace("1,", "1|").replace("2,", "2|").encode()


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("a.csv", BARS),
        ("a.csv", b"sep=|\r\n" + BARS),
        ("a.txt", BARS),
        ("a", TABLE.encode("utf-8-sig")),
        ("a.jsonl", TABLE.encode()),
        ("a.tsv", TABLE.encode()),
        ("a.txt", TABLE.replace("a,text", "a\ttext").replace("1,", "1\t").replace("2,", "2\t").encode()),
        ("a", gzip.compress(TABLE.encode())),
    ],
)
def test_a_table_is_read_under_any_name_and_with_any_usual_mark(tmp_path: Path, name: str, data: bytes) -> None:
    assert [line.row for line in storage.lines(str(put(tmp_path / name, data)))] == CELLS


def test_lines_that_are_no_table_are_not_taken_for_one(tmp_path: Path) -> None:
    assert "begins with 'Plums, and figs'" in fault(put(tmp_path / "a.txt", b"Plums, and figs\nFigs\n"))
    assert "begins with 'Plums'" in fault(put(tmp_path / "b.txt", b"Plums\nFigs\n"))
    assert ":1: is not JSON" in fault(put(tmp_path / "a.jsonl", b'made, by x\non, monday\n{"a": 1}\n'))


def test_what_is_read_only_once_is_refused_before_anything_is_lost(tmp_path: Path) -> None:
    pipe = tmp_path / "rows.jsonl"
    os.mkfifo(pipe)
    assert fault(pipe).startswith(f"{pipe}: is no file but a pipe or a device, which is read only once")


def test_a_folder_without_rows_says_what_is_in_it(tmp_path: Path) -> None:
    put(tmp_path / "a.txt", JSONL)
    (tmp_path / "data").mkdir()
    assert fault(tmp_path).endswith(" but a.txt, data; name the file or the folder inside it that has the rows")
    put(tmp_path / "data-00000-of-00001.arrow", b"")
    put(tmp_path / "state.json", b"{}")
    assert "holds an Arrow data set, as save_to_disk writes it; write it as Parquet" in fault(tmp_path)


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ('{"a": ' + "7" * 5000 + "}", "it holds a number of more than 4,300 digits; write a shorter one"),
        ('{"a": "\x01"}', "invalid control character at column 8"),
    ],
)
def test_what_is_not_json_is_said_in_our_words(tmp_path: Path, text: str, why: str) -> None:
    path = put(tmp_path / "a.jsonl", text.encode())
    assert fault(path) == f"{path}:1: is not JSON: {why}"


def test_what_a_killed_process_left_is_swept_files_and_folders(tmp_path: Path) -> None:
    now = time.time()
    for name, age in (("old", 2e5), ("young", 5.0)):
        folder = tmp_path / f".{name}.1-2.tmp"
        folder.mkdir()
        put(folder / "weights", b"x")
        put(tmp_path / f".{name}.txt.1-2.tmp", b"x")
        for path in (folder / "weights", folder, tmp_path / f".{name}.txt.1-2.tmp"):
            os.utime(path, (now - age, now - age))
    (tmp_path / ".theirs.tmp").mkdir()
    storage.sweep(tmp_path, now=now)
    assert {path.name for path in tmp_path.iterdir()} == {".young.1-2.tmp", ".young.txt.1-2.tmp", ".theirs.tmp"}


def test_a_folder_that_is_taken_away_is_one_sentence(tmp_path: Path) -> None:
    def work(*, gone: bool) -> None:
        with storage.scratch(tmp_path / "run") as folder:
            if gone:
                (tmp_path / "run").rename(tmp_path / "elsewhere")
            (folder / "none").read_bytes()

    with pytest.raises(FileNotFoundError):
        work(gone=False)
    with pytest.raises(InputError, match=r"/run: was moved or deleted while it was written to; run again"):
        work(gone=True)


def test_what_is_read_is_not_replaced(tmp_path: Path) -> None:
    path = put(tmp_path / "a.jsonl", JSONL)
    (tmp_path / "b.jsonl").symlink_to(path)
    storage.check_apart(str(path), tmp_path / "c.jsonl")
    for out in (path, tmp_path / "b.jsonl"):
        with pytest.raises(InputError, match="would replace what is read; name another file"):
            storage.check_apart(str(tmp_path), out)


def test_lines_go_on_behind_a_bad_line(tmp_path: Path) -> None:
    path = put(tmp_path / "a.jsonl", b'{"a": 1}\noops \xff\n{"a": 2}\n')
    lines = list(storage.lines(str(path)))
    assert [line.row for line in lines] == [{"a": 1}, {"line": "oops �"}, {"a": 2}]
    assert [bool(line.fault) for line in lines] == [False, True, False]


PAIR = Pair(prompt=user("Q"), chosen=assistant("yes"), rejected=assistant("no")).line()
CHANGES: list[tuple[dict[str, Any], str]] = [
    ({"chosne": 1}, "chosne: unknown field; did you mean 'chosen'?"),
    ({"zzz": 1}, "zzz: unknown field; known are id, prompt, chosen, rejected"),
    ({"chosne": 1, "winner": "a", "b": 1}, "chosne: unknown field, as winner and b; known are id, prompt, chosen"),
    ({"prompt": [{"role": "user", "content": "Q", "nme": "x"}]}, "prompt.0.nme: unknown field; did you mean 'name'?"),
    ({"prompt": [{"role": "user"}]}, "prompt.0.content: missing field; every line needs it"),
    ({"prompt": []}, "prompt: tuple should have at least 1 item"),
    ({"prompt": "Q"}, "prompt: input should be a valid tuple, but it is 'Q'"),
    ({"p": "0.5"}, "p: input should be a valid number, but it is '0.5'"),
    ({"p": 1.5}, "p: input should be less than or equal to 1, but it is 1.5"),
    ({"weight": True}, "weight: input should be a valid number, but it is True"),
    ({"chosen": [{"role": "user", "content": "x"}]}, "chosen: a response must begin and end with an assistant turn"),
    ({"chosen": [{"role": "assistant", "content": " "}]}, "chosen: the response is empty"),
    ({"chosen": PAIR["rejected"]}, "chosen equals rejected"),
    ({"chosen": [{"role": "assistant", "content": "other"}]}, f"id '{PAIR['id']}' is not the hash of the content"),
    (
        {"prompt": [{"role": "robot", "content": "x"}]},
        "prompt.0.role: input should be 'system', 'user', 'assistant' or 'tool'",
    ),
]


@pytest.mark.parametrize(("change", "sentence"), CHANGES)
def test_a_bad_field_is_named_by_file_line_and_field(tmp_path: Path, change: dict[str, Any], sentence: str) -> None:
    path = put(tmp_path / "a.jsonl", storage.encode(PAIR) + storage.encode(PAIR | change))
    with pytest.raises(InputError) as caught:
        list(storage.read(str(path), Pair))
    assert str(caught.value).startswith(f"{path}:2: {sentence}")


def test_a_missing_field_is_named(tmp_path: Path) -> None:
    path = put(tmp_path / "a.jsonl", b'{"prompt": [{"role": "user", "content": "Q"}]}\n')
    with pytest.raises(InputError, match=r"a.jsonl:1: chosen: missing field; every line needs it"):
        list(storage.read(str(path), Pair))


# ---------------------------------------------------------------- writing

texts = st.text(min_size=1).filter(str.strip)
pairs = st.builds(
    lambda prompt, chosen, p, margin, group: Pair(
        prompt=user(prompt), chosen=assistant(chosen), rejected=assistant(chosen + "!"), p=p, margin=margin, group=group
    ),
    st.text(),
    texts,
    st.floats(0, 1),
    st.floats(0, 1e6),
    st.text(),
)


@pytest.mark.parametrize("suffix", [".jsonl", ".jsonl.gz", ".jsonl.zst", ".parquet"])
def test_what_is_written_reads_back_and_has_the_same_bytes_each_time(tmp_path: Path, suffix: str) -> None:
    @settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow])
    @given(st.lists(pairs, min_size=1, max_size=5))
    def law(records: list[Pair]) -> None:
        path = tmp_path / f"a{suffix}"
        first = storage.write(path, records)
        assert list(storage.read(str(path), Pair)) == records
        assert first == storage.write(path, iter(records))
        assert first == storage.Written(str(path), len(records), storage.sha256(path))

    law()


def test_parquet_keeps_maps_and_plain_rows(tmp_path: Path) -> None:
    outcome = Outcome(
        pair_id="x", step=0, split="train", logp_chosen=-1.5, logp_rejected=-2.0,
        logratio_chosen=0.0, logratio_rejected=0.0, length_chosen=3, length_rejected=4, loss=0.69,
    )  # fmt: skip
    rated = Candidates(
        prompt=user("Q"),
        responses=(Candidate(content="a", rules={"short": 1.0}), Candidate(content="b", rules={"kind": 0.0})),
    )
    storage.write(tmp_path / "o.parquet", [outcome, outcome])
    storage.write(tmp_path / "c.parquet", [rated])
    assert list(storage.read(str(tmp_path / "o.parquet"), Outcome)) == [outcome, outcome]
    assert list(storage.read(str(tmp_path / "c.parquet"), Candidates)) == [rated]


def test_rows_that_parquet_cannot_hold_are_refused_and_nothing_appears(tmp_path: Path) -> None:
    pair = Pair(prompt=user("Q"), chosen=assistant("a"), rejected=assistant("b"), tools=[{"parameters": {}}])
    with pytest.raises(InputError, match=r"do not fit Parquet .*; write .jsonl instead"):
        storage.write(tmp_path / "a.parquet", [pair])
    assert list(tmp_path.iterdir()) == []


def test_json_text_and_bytes(tmp_path: Path) -> None:
    storage.write_json(tmp_path / "deep" / "a.json", {"é": [1, None]})
    storage.write_text(tmp_path / "a.txt", "é\n")
    storage.write_bytes(tmp_path / "a.bin", b"\x00")
    assert json.loads((tmp_path / "deep" / "a.json").read_text("utf-8")) == {"é": [1, None]}
    assert (tmp_path / "a.txt").read_bytes() == "é\n".encode()
    assert (tmp_path / "a.bin").read_bytes() == b"\x00"


def test_a_url_is_written_whole() -> None:
    record = Pair(prompt=user("Q"), chosen=assistant("a"), rejected=assistant("b"))
    written = storage.write("memory://out/a.jsonl.gz", [record])
    assert list(storage.read("memory://out/a.jsonl.gz", Pair)) == [record]
    assert written.sha256 == storage.sha256("memory://out/a.jsonl.gz")


def interrupted(path: Path, error: Exception) -> None:
    with storage.replacing(path) as file:
        file.write(b"half of it")
        raise error


def test_an_error_in_the_block_leaves_the_old_file_and_no_temporary(tmp_path: Path) -> None:
    path = put(tmp_path / "a.txt", b"old")
    with pytest.raises(RuntimeError):
        interrupted(path, RuntimeError())
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_record_that_fails_half_way_leaves_the_old_file(tmp_path: Path) -> None:
    def failing() -> Iterator[Pair]:
        yield Pair(prompt=user("Q"), chosen=assistant("a"), rejected=assistant("b"))
        raise InputError("in.jsonl:2: is not JSON")

    path = put(tmp_path / "a.jsonl.gz", b"old")
    with pytest.raises(InputError, match=r"in.jsonl:2"):
        storage.write(path, failing())
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_full_disk_is_said_and_leaves_the_old_file(tmp_path: Path) -> None:
    path = put(tmp_path / "a.txt", b"old")
    with pytest.raises(InputError) as caught:
        interrupted(path, OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)))
    assert str(caught.value) == (
        f"{path}: cannot be written: No space left on device; free some space and run again "
        "(what was there before is untouched)"
    )
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


FILL = """
import resource, sys
from druthers import storage
resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))
try:
    storage.write_bytes(sys.argv[1], b"x" * 100_000)
except storage.InputError as error:
    sys.exit(str(error))
"""


@pytest.mark.skipif(sys.platform == "win32", reason="file size limits are a POSIX thing")
def test_a_real_write_that_hits_a_limit_leaves_the_old_file(tmp_path: Path) -> None:
    path = put(tmp_path / "a.bin", b"old")
    done = subprocess.run([sys.executable, "-c", FILL, str(path)], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr.startswith(f"{path}: cannot be written: File too large; free some space and run again")
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_place_that_cannot_be_written_is_said(tmp_path: Path) -> None:
    put(tmp_path / "file", b"")
    with pytest.raises(InputError, match=r"file/a.txt: cannot be written: "):
        storage.write_text(tmp_path / "file" / "a.txt", "x")


def test_a_link_keeps_pointing_and_its_target_is_replaced(tmp_path: Path) -> None:
    target = put(tmp_path / "target.txt", b"old")
    (tmp_path / "link.txt").symlink_to(target)
    storage.write_text(tmp_path / "link.txt", "new")
    assert (tmp_path / "link.txt").is_symlink()
    assert target.read_bytes() == b"new"


def test_numbers_without_a_json_form_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        storage.write_json(tmp_path / "a.json", {"x": float("nan")})
    assert list(tmp_path.iterdir()) == []


# ---------------------------------------------------------------- sources


def test_a_folder_with_train_and_heldout_is_both_parts(tmp_path: Path) -> None:
    train, heldout = put(tmp_path / "train.jsonl.gz", b""), put(tmp_path / "heldout.jsonl.gz", b"")
    assert storage.locate(str(tmp_path)) == storage.Source((str(train),), (str(heldout),))
    heldout.unlink()
    assert storage.locate(str(tmp_path)) == storage.Source((str(train),))
    train.rename(tmp_path / "a.jsonl.gz")
    assert storage.locate(str(tmp_path)) == storage.Source((str(tmp_path),))


def test_packaged_sets_are_found_by_name() -> None:
    for name in storage.packaged():
        if any((Path(storage.__file__).parent / "data" / name).glob("train.*")):
            source = storage.locate(name)
            assert [Path(path).name for path in source.train] == ["train.jsonl.gz"]
            assert [Path(path).name for path in source.heldout] == ["heldout.jsonl.gz"]


def test_the_hash_of_a_folder_is_of_names_and_contents(tmp_path: Path) -> None:
    path = put(tmp_path / "a.jsonl", JSONL)
    whole = storage.sha256(tmp_path)
    assert whole == storage.sha256(tmp_path)
    path.rename(tmp_path / "b.jsonl")
    assert whole != storage.sha256(tmp_path)


def test_rows_are_counted_quickly_where_that_is_possible(tmp_path: Path) -> None:
    plain, array = put(tmp_path / "a.jsonl", JSONL), put(tmp_path / "b.json", b"[]")
    packed, cut = (
        put(tmp_path / "c.jsonl.gz", gzip.compress(JSONL)),
        put(tmp_path / "d.jsonl.gz", gzip.compress(JSONL)[:20]),
    )
    pq.write_table(pa.table({"a": [1, 2, 3]}), tmp_path / "e.parquet")
    paths = [str(path) for path in (plain, array, packed, cut, tmp_path / "e.parquet")]
    assert [storage.count(path) for path in paths] == [2, 0, 2, 0, 3]
    assert storage.count("memory://set") == 0


@pytest.mark.parametrize("base", ["", "~nobody-of-that-name/cache"])
def test_a_user_without_a_home_is_told_what_to_set(monkeypatch: pytest.MonkeyPatch, base: str) -> None:
    """A container may run as a number without an entry, and without HOME."""

    def unknown(number: int) -> None:
        raise KeyError(f"getpwuid(): uid not found: {number}")

    monkeypatch.setattr(pwd, "getpwuid", unknown)
    for name in ("HOME", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("DRUTHERS_CACHE", base)
    with pytest.raises(InputError, match=r"cannot be found: .*; set DRUTHERS_CACHE to a folder you can write"):
        storage.cache_folder("tokens")
