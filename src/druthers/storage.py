"""Records at a path or a URL: JSONL, JSON, CSV and Parquet, gz and zst, read as a stream and written atomically.

Any address fsspec knows is read (`file://`, `memory://`, `s3://`, `hf://`, ...). A fault is an `InputError` whose text
begins with `file:line:` (for Parquet the number of the row). What is written goes to a temporary file in the same
folder and takes its name only when it is complete and on the disk.
"""

from __future__ import annotations

import codecs
import contextlib
import difflib
import errno
import gzip
import hashlib
import http.client
import io
import itertools
import json
import os
import re
import shutil
import sys
import tempfile
import threading
import urllib.error
import urllib.request
import zlib
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import IO, Any, BinaryIO, Protocol, TypeVar, cast, get_args
from urllib.parse import urlsplit

from pydantic import BaseModel, ValidationError

from druthers.records import DEEPEST, InputError, Record, check_depth, first_line
from druthers.tables import BOM, PARQUET, HeaderFault, Table

R = TypeVar("R", bound=Record)
KINDS = (".jsonl", ".ndjson", ".manifest", ".json", ".parquet", ".csv", ".tsv")
JSON_LINES = (".jsonl", ".ndjson", ".manifest")
TABLES = (".csv", ".tsv")
ROWS = 1000
"""Rows of other kinds of files in a run."""
CHUNK = 4 << 20
"""Bytes of a JSON array that are read at once."""
LONGEST_OBJECT = 1 << 28
"""Characters of an array's object; one that is longer has a quote or a brace that is never closed."""
LONGEST_TOKEN = 16
"""Characters within which the decoder tells that a text was cut, but for strings, of which it tells the start."""
BLANK = re.compile(r"[ \t\r\n]*")
PACKINGS = (".gz", ".zst")
TEMPORARY = re.compile(r"\..+\.([1-9][0-9]*)-[0-9]+\.tmp")
"""What `replacing` calls a file that is not complete: the name it will have, process and thread."""
QUIET, DAY = 600.0, 86_400.0
"""Seconds without a write after which a temporary file is left over: of no process known here, and of any."""
SCRATCH = "scratch"
"""What `temporary` makes the name of a folder for temporary files from."""
NO_SPACE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
DAMAGE = (EOFError, OSError, zlib.error, http.client.HTTPException)
TIMEOUT_SECONDS = 60.0
FOREIGN = {
    "httpx": "HTTPError",
    "httpx2": "HTTPError",
    "aiohttp": "ClientError",
    "botocore.exceptions": "BotoCoreError",
}


@dataclass(frozen=True)
class Written:
    """What `write` left behind: where, how many rows, and the SHA-256 of the file's bytes."""

    path: str
    rows: int
    sha256: str


@dataclass(frozen=True)
class Line:
    """One line of a file: its place, and either the row or why there is none (with the text that was there).

    `cells` says that the values are the texts of a table's cells, which may stand for numbers and lists.
    """

    where: str
    row: dict[str, Any]
    fault: str = ""
    cells: bool = False


@dataclass(frozen=True)
class Source:
    """Where training pairs come from, and the held-out parts that belong to them, if any."""

    train: tuple[str, ...]
    heldout: tuple[str, ...] = ()


class Lined(Protocol):
    """Anything that knows how it stands on a line; every Record does."""

    def line(self) -> dict[str, Any]:
        """JSON values by field name."""
        ...


# ---------------------------------------------------------------- reading


def rows(path: str) -> Generator[tuple[str, dict[str, Any]]]:
    """Every row of a file, a folder of files or a URL as ("file:line", row), one at a time.

    Raises InputError at the first line that is not a JSON object, and for a file that is missing, empty, truncated or
    of an unknown kind.
    """
    with contextlib.closing(lines(path)) as found:
        for line in found:
            if line.fault:
                raise InputError(f"{line.where}: {line.fault}")
            yield line.where, line.row


def lines(path: str) -> Generator[Line]:
    """Like `rows`, but a bad line is handed over with its fault and reading goes on; only a bad file raises."""
    for file in files(path):
        with contextlib.closing(_lines_of(file)) as found:
            first = next(found, None)
            if first is None:
                raise InputError(f"{shown(file)}: is empty; give at least one row")
            yield first
            yield from found


def read(path: str, kind: type[R]) -> Generator[R]:
    """Every row of `path` as a record of `kind`; a fault reads `file:line: field: why`."""
    with contextlib.closing(rows(path)) as found:
        for where, row in found:
            yield parse(row, kind, where=where)


@dataclass(frozen=True)
class Lines:
    """Some whole lines of a local JSONL file, the first of them line `first` of it."""

    name: str
    first: int
    data: bytes


Run = Lines | list[Line]
"""Some rows of a file: JSON lines as they stand, to be parsed by whoever gets them, or rows of another kind."""


def runs(path: str, *, size: int) -> Generator[Run]:
    """Every row of a file, a folder or a URL in runs of about `size` bytes of JSON lines, or of a thousand rows.

    Raises InputError as `lines` does; `parsed` gives the lines of a run.
    """
    for file in files(path):
        if _kind(file) in JSON_LINES:
            yield from runs_of_lines(file, size=size)
            continue
        found, blank = _lines_of(file), True
        while run := list(itertools.islice(found, ROWS)):
            blank = False
            yield run
        if blank:
            raise InputError(f"{shown(file)}: is empty; give at least one row")


def parsed(run: Run) -> Iterator[Line]:
    """The lines of a run, good and faulty."""
    return iter(run) if isinstance(run, list) else _json_lines(run.name, io.BytesIO(run.data), first=run.first)


def runs_of_lines(path: str | Path, *, size: int) -> Generator[Lines]:
    """A file of JSON lines in runs of whole lines of about `size` bytes; InputError where all are blank."""
    name, number, blank = str(path), 1, True
    with _reading(name), _open(name) as raw, _unpack(name, raw) as file:
        while data := _whole_lines(file, size, name=name):
            blank = blank and not data.removeprefix(BOM).strip()
            yield Lines(shown(name), number, data)
            number += data.count(b"\n")
    if blank:
        raise InputError(f"{shown(name)}: is empty; give at least one row")


def _whole_lines(file: BinaryIO, size: int, *, name: str) -> bytes:
    try:
        return file.read(size) + file.readline()
    except DAMAGE as error:
        for _ in lines(name):  # line by line, which tells the place
            pass
        raise InputError(f"{shown(name)}: {_damage(error)}") from None


def read_lines(lines: Lines, kind: type[R]) -> Iterator[R]:
    """The rows of some lines as `read` gives them, faults with their place in the file."""
    for line in _json_lines(lines.name, io.BytesIO(lines.data), first=lines.first):
        if line.fault:
            raise InputError(f"{line.where}: {line.fault}")
        yield parse(line.row, kind, where=line.where)


def parse(row: dict[str, Any], kind: type[R], *, where: str) -> R:
    """One row as a record; InputError says `where: field: why` and offers the nearest field for an unknown one.

    >>> from druthers.records import Pair
    >>> parse({"promt": []}, Pair, where="a.jsonl:3")
    Traceback (most recent call last):
    druthers.records.InputError: a.jsonl:3: promt: unknown field; did you mean 'prompt'?
    """
    try:
        return kind.model_validate(row)
    except ValidationError as error:
        raise InputError(f"{where}: {explain(error, kind)}") from None


def explain(error: ValidationError, kind: type[BaseModel]) -> str:
    """The most telling fault of a validation error as `field: why` (an unknown field before a missing one)."""
    faults = sorted(error.errors(), key=lambda fault: fault["type"] != "extra_forbidden")
    fault = faults[0]
    field = ".".join(str(part) for part in fault["loc"])
    prefix = f"{field}: " if field else ""
    if fault["type"] == "extra_forbidden":
        return f"{prefix}unknown field{offer(str(fault['loc'][-1]), _fields_at(kind, fault['loc'][:-1]))}"
    if fault["type"] == "missing":
        return f"{prefix}missing field; every line needs it"
    message = fault["msg"].removeprefix("Value error, ")
    if fault["type"] == "value_error":
        return prefix + message
    return f"{prefix}{message[0].lower()}{message[1:]}, but it is {_brief(fault['input'])}"


def offer(name: str, known: Iterable[str]) -> str:
    """The end of a sentence about an unknown name: the nearest known one, or all of them.

    >>> offer("chosne", ["chosen", "rejected"]), offer("xyz", ["chosen", "rejected"])
    ("; did you mean 'chosen'?", '; known are chosen, rejected')
    """
    options = list(known)
    near = difflib.get_close_matches(name, options, n=1, cutoff=0.6)
    return f"; did you mean {near[0]!r}?" if near else f"; known are {', '.join(options)}"


def files(path: str) -> list[str]:
    """The files a path names: itself, or the readable files of a folder in order of name."""
    with _reading(path):
        names = _listing(path)
    if names is None:
        return [path]
    readable = [name for name in sorted(names) if _kind(name) and not os.path.basename(name).startswith((".", "_"))]
    if not readable:
        raise InputError(f"{shown(path)}: holds no {', '.join(KINDS)} file; give a file or a folder of such files")
    return readable


Names = str | Sequence[str] | None
"""One source, several or none."""


def several(names: Names) -> tuple[str, ...]:
    """The sources that are named.

    >>> several("a.jsonl"), several(["a.jsonl", "b.csv"]), several(None)
    (('a.jsonl',), ('a.jsonl', 'b.csv'), ())
    """
    return (names,) if isinstance(names, str) else tuple(names or ())


def listed(names: Names) -> str:
    """Sources as messages show them.

    >>> listed(["a.jsonl", "https://me:secret@example.org/b.csv?key=1"])
    'a.jsonl and https://example.org/b.csv'
    """
    return " and ".join(map(shown, several(names)))


def locate(pairs: Names, heldout: Names = None) -> Source:
    """Sources of pairs and, where they are named, of held-out ones; otherwise those that come with the pairs.

    A source is a packaged set by name, a folder holding `train.*` and `heldout.*`, or any other path, which is all
    training.

    >>> locate(["my-pairs.jsonl", "more.csv"])
    Source(train=('my-pairs.jsonl', 'more.csv'), heldout=())
    """
    found = [_located(name) for name in several(pairs)]
    train, parts = (tuple(itertools.chain.from_iterable(side)) for side in zip(*found, strict=True))
    return Source(train, several(heldout) or parts)


def _located(source: str) -> tuple[tuple[str, ...], tuple[str, ...]]:
    folder = str(resources.files("druthers") / "data" / source) if source in packaged() else source
    if source not in packaged() and not os.path.isdir(source):
        return (source,), ()
    parts = {os.path.basename(name).split(".")[0]: name for name in files(folder)}
    return ((parts["train"],), several(parts.get("heldout"))) if "train" in parts else ((folder,), ())


def packaged() -> list[str]:
    """Names of the pair sets that come with druthers."""
    folder = resources.files("druthers") / "data"
    return sorted(entry.name for entry in folder.iterdir() if entry.is_dir() and not entry.name.startswith(("_", ".")))


def count(path: str) -> int:
    """How many rows a local path holds, quickly, for progress bars; 0 where that is not known beforehand."""
    counts = [_count(file) for file in files(path)] if "://" not in path else [0]
    return sum(counts) if all(counts) else 0


def _count(file: str) -> int:
    kind = _kind(file)
    if kind in TABLES:
        return 0
    with _reading(file), _open(file) as raw:
        if kind == ".parquet":
            return _parquet_count(raw)
        with contextlib.suppress(*DAMAGE), _unpack(file, raw) as stream:
            return 0 if kind == ".json" else _count_lines(stream)
    return 0


def _count_lines(stream: BinaryIO) -> int:
    """Line ends, and one more where the last line has none."""
    found, last = 0, b"\n"
    while data := stream.read(1 << 20):
        found, last = found + data.count(b"\n"), data[-1:]
    return found + (last != b"\n")


def sha256(path: str | Path) -> str:
    """SHA-256 of the bytes of a file or URL; of a folder: of the names and hashes of its files."""
    name = str(path)
    found = files(name)
    if found == [name]:
        with _reading(name), _open(name) as stream:
            return hashlib.file_digest(cast(Any, stream), "sha256").hexdigest()
    listing = "".join(f"{os.path.basename(file)} {sha256(file)}\n" for file in found)
    return hashlib.sha256(listing.encode()).hexdigest()


@contextlib.contextmanager
def unchanged(paths: Iterable[str]) -> Iterator[Callable[[], None]]:
    """A function that raises InputError where some local paths are not what they were when the block began.

    A fault that is found inside the block in a file which changed is said as that. URLs are not looked at.
    """
    local = [path for path in paths if "://" not in path]
    before = {path: _stamps(path) for path in local}

    def check() -> None:
        for path, stamps in before.items():
            now = _stamps(path)
            if now != stamps:
                other = next((name for name in (*stamps, *now) if stamps.get(name) != now.get(name)), path)
                raise InputError(
                    f"{shown(other)}: changed while it was read; run again when nothing writes to it, or give a copy"
                )

    try:
        yield check
    except InputError:
        check()
        raise


def _stamps(path: str) -> dict[str, tuple[int, ...]]:
    """What tells the state of each file of a path; nothing of one that is not there."""
    found: dict[str, tuple[int, ...]] = {}
    with contextlib.suppress(OSError, InputError):
        for name in files(path):
            state = os.stat(name)
            found[name] = state.st_dev, state.st_ino, state.st_size, state.st_mtime_ns
    return found


def read_bytes(path: str) -> bytes:
    """All bytes of a file or URL; InputError where it cannot be read."""
    with _reading(path), _open(path) as stream:
        return stream.read()


def shown(path: str) -> str:
    """A path as messages show it: a URL without its query and without a password."""
    if not path.startswith(("http://", "https://")):
        return path
    parts = urlsplit(path)
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"


def _lines_of(file: str) -> Generator[Line]:
    kind = _kind(file)
    with _reading(file), _open(file) as raw:
        if not kind:
            raise InputError(
                f"{shown(file)}: unknown kind of file; use {', '.join(KINDS)}, with .gz or .zst after all but .parquet"
            )
        if kind == ".parquet":
            yield from _parquet(shown(file), raw)
            return
        with _unpack(file, raw) as stream:
            if kind in TABLES:
                yield from _table(shown(file), stream, tabs=kind == ".tsv")
                return
            array = kind == ".json" and _is_array(shown(file), stream)
            yield from _array(shown(file), stream) if array else _json_lines(shown(file), stream)


def _kind(file: str) -> str:
    name = shown(file).lower()
    for packing in PACKINGS:
        name = name.removesuffix(packing)
    kind = next((kind for kind in KINDS if name.endswith(kind)), "")
    return "" if kind == ".parquet" and name != shown(file).lower() else kind


def _json_lines(name: str, stream: BinaryIO, *, first: int = 1) -> Iterator[Line]:
    number = first - 1
    try:
        for number, data in enumerate(stream, first):
            if number == 1:
                _refuse_parquet(name, data)
                data = data.removeprefix(BOM)
            if data.strip():
                yield _json_line(f"{name}:{number}", data)
    except DAMAGE as error:
        raise InputError(f"{name}:{number + 1}: {_damage(error)}") from None


def _refuse_parquet(name: str, data: bytes) -> None:
    if data.startswith(PARQUET):
        raise InputError(f"{name}: is a Parquet file under another name; name it .parquet")


def _damage(error: Exception) -> str:
    why = "the compressed data ends early" if isinstance(error, EOFError) else f"cannot be read: {_reason(error)}"
    return f"{why}; fetch or write the file again"


def _json_line(where: str, data: bytes) -> Line:
    try:
        row = _loads(data.decode("utf-8").rstrip())
    except UnicodeDecodeError as error:
        return _faulty(where, data, f"is not UTF-8 (byte {error.start + 1} of the line); save the file as UTF-8")
    except (ValueError, RecursionError) as error:
        return _faulty(where, data, f"is not JSON: {_json_fault(error)}")
    if not isinstance(row, dict):
        return _faulty(where, data, f"is not a JSON object but {_brief(row)}; write one {{…}} a line")
    return Line(where, row)


def _faulty(where: str, data: bytes, fault: str) -> Line:
    return Line(where, {"line": data.decode("utf-8", "replace").rstrip("\r\n")}, fault)


def _json_fault(error: ValueError | RecursionError) -> str:
    if isinstance(error, json.JSONDecodeError):
        return f"{error.msg[0].lower()}{error.msg[1:].removesuffix(' at')} at column {error.colno}"
    if isinstance(error, RecursionError):
        return "it is nested too deeply; write it flatter"
    if "integer string conversion" in str(error):
        return f"it holds a number of more than {sys.get_int_max_str_digits():,} digits; write a shorter one"
    return str(error)


def _loads(text: str) -> object:
    value = _DECODER.decode(text)
    _check(value, text)
    return value


def _check(value: object, text: str) -> None:
    """Raises ValueError for a value of JSON that is too deep or holds half a character; looks first at its text."""
    if text.count("[") + text.count("{") > 2 * DEEPEST:
        check_depth(value, most=2 * DEEPEST)
    if "\\u" in text and "\\ud" in text.lower():
        _check_text(value)


def _check_text(value: object) -> None:
    try:
        json.dumps(value, ensure_ascii=False).encode("utf-8")
    except UnicodeEncodeError:
        raise ValueError("it holds half of a surrogate pair, which is no character; repair the text") from None


def _unique(items: Sequence[tuple[str, object]]) -> dict[str, object]:
    row = dict(items)
    if len(row) != len(items):
        keys = [key for key, _ in items]
        twice = next(key for key in keys if keys.count(key) > 1)
        raise ValueError(f"the key {twice!r} stands twice in one object; keep one")
    return row


def _no_constant(name: str) -> object:
    raise ValueError(f"{name} is not a JSON number; write a finite number")


_DECODER = json.JSONDecoder(object_pairs_hook=_unique, parse_constant=_no_constant)


def _is_array(name: str, stream: BinaryIO) -> bool:
    """Whether a .json file is one array, and not JSON lines; the stream stays where it is."""
    try:
        peeked = cast(io.BufferedReader, stream).peek(4096).removeprefix(BOM).lstrip()
    except DAMAGE as error:
        raise InputError(f"{name}: {_damage(error)}") from None
    return peeked.startswith(b"[")


@dataclass
class _Text:
    """The text of a stream, of which only what is being looked at is held: `held` from the place `at` on, on line
    `number` of the file."""

    name: str
    stream: BinaryIO
    decoder: codecs.IncrementalDecoder = field(default_factory=codecs.getincrementaldecoder("utf-8-sig"))
    held: str = ""
    at: int = 0
    number: int = 1
    read: int = 1
    ended: bool = False

    @property
    def where(self) -> str:
        """File and line of the place."""
        return f"{self.name}:{self.number}"

    def move(self, end: int) -> None:
        """Go on to a place."""
        self.number += self.held.count("\n", self.at, end)
        self.at = end

    def more(self) -> None:
        """Hold as much again as is held, at least a few megabytes; what lies before the place goes."""
        try:
            data = self.stream.read(max(CHUNK, len(self.held) - self.at))
        except DAMAGE as error:
            raise InputError(f"{self.name}:{self.read}: {_damage(error)}") from None
        self.ended = not data
        try:
            text = self.decoder.decode(data, final=self.ended)
        except UnicodeDecodeError as error:
            number = self.read + error.object.count(b"\n", 0, error.start)
            raise InputError(f"{self.name}:{number}: is not UTF-8; save the file as UTF-8") from None
        self.read += data.count(b"\n")
        self.held, self.at = self.held[self.at :] + text, 0

    def next(self) -> str:
        """The next character that is no white space, to which it goes on; "" at the end."""
        while True:
            end = _skip(self.held, self.at)
            self.move(end)
            if end < len(self.held) or self.ended:
                return self.held[end : end + 1]
            self.more()

    def value(self) -> tuple[object, str]:
        """The JSON value at the place, and its text, behind which it goes on; ValueError where there is none."""
        while True:
            try:
                found, end = _DECODER.raw_decode(self.held, self.at)
            except json.JSONDecodeError as error:
                if self.ended or not self._cut(error) or len(self.held) - self.at > LONGEST_OBJECT:
                    raise json.JSONDecodeError(error.msg, self.held[self.at :][:1], 0) from None
            else:
                if end < len(self.held) or self.ended:
                    text = self.held[self.at : end]
                    self.move(end)
                    return found, text
            self.more()

    def _cut(self, error: json.JSONDecodeError) -> bool:
        """Whether a fault may be that the text goes on behind what is held."""
        return error.pos > len(self.held) - LONGEST_TOKEN or error.msg.startswith("Unterminated string")


def _array(name: str, stream: BinaryIO) -> Iterator[Line]:
    """The objects of a JSON array, each with the line it begins on; as much of it is held as one object takes."""
    text = _Text(name, stream)
    mark, where = text.next(), text.where
    text.move(text.at + 1)
    mark = text.next()
    while mark != "]":
        where = text.where
        try:
            row, said = text.value()
            _check(row, said)
        except (ValueError, RecursionError) as error:
            raise InputError(f"{where}: is not JSON: {_json_fault(error)}") from None
        yield Line(where, row) if isinstance(row, dict) else _faulty(where, said.encode(), "is not a JSON object")
        mark = text.next()
        if mark == ",":
            text.move(text.at + 1)
            mark = text.next()
        elif mark != "]":
            raise InputError(
                f"{where}: the array does not go on with ',' or ']' after this object; the file is cut or damaged"
            )
    text.move(text.at + 1)
    if text.next():
        raise InputError(
            f"{text.where}: something stands behind the end of the array; "
            "keep one array in a .json file, or write JSON lines"
        )


def _skip(text: str, at: int) -> int:
    return cast(re.Match[str], BLANK.match(text, at)).end()


def _table(name: str, stream: BinaryIO, *, tabs: bool) -> Iterator[Line]:
    """The rows under the header of a CSV or TSV."""
    table = Table(stream, tabs=tabs)
    try:
        for row in table:
            where = f"{name}:{row.first}"
            yield _faulty(where, row.data, row.fault) if row.fault else Line(where, row.cells, cells=True)
    except HeaderFault as fault:
        raise InputError(f"{name}:1: {fault}") from None
    except DAMAGE as error:
        raise InputError(f"{name}:{table.given + 1}: {_damage(error)}") from None


def _parquet(name: str, stream: BinaryIO) -> Iterator[Line]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    number = 0
    try:
        for batch in pq.ParquetFile(stream).iter_batches(batch_size=1024):
            for row, fault in _rows_of(batch):
                number += 1
                where = f"{name}:{number}"
                yield Line(where, row, fault) if fault else Line(where, _without_nulls(row))
    except (pa.ArrowException, OSError) as error:
        place = f"{name}:{number + 1}" if number else name
        raise InputError(f"{place}: is not readable Parquet: {str(error).splitlines()[0]}") from None


def _rows_of(batch: Any) -> Iterator[tuple[dict[str, Any], str]]:
    """The rows of a batch; one with a value that Python cannot hold has what can be read of it, and a fault."""
    try:
        yield from ((row, "") for row in batch.to_pylist())
    except (ValueError, OverflowError):  # text that is not UTF-8, a year that is none; found before any row was given
        yield from (_row_of(batch.slice(i, 1)) for i in range(batch.num_rows))


def _row_of(one: Any) -> tuple[dict[str, Any], str]:
    row, fault = {}, ""
    for key in one.schema.names:
        try:
            row[key] = one.column(key).to_pylist()[0]
        except UnicodeDecodeError as error:
            fault = fault or f"{key}: is not UTF-8 (byte {error.start + 1} of the text); write the column as UTF-8"
        except (ValueError, OverflowError) as error:
            fault = fault or f"{key}: cannot be read: {first_line(error)}"
    return row, fault


def _parquet_count(stream: BinaryIO) -> int:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        return int(pq.ParquetFile(stream).metadata.num_rows)
    except pa.ArrowException:
        return 0


def _without_nulls(value: Any) -> Any:
    """A column that is null in a row is a field that is not there; nested structs share one schema, so there too."""
    if isinstance(value, dict):
        return {key: _without_nulls(item) for key, item in value.items() if item is not None}
    return [_without_nulls(item) for item in value] if isinstance(value, list) else value


def _fields_at(kind: type[BaseModel], place: Sequence[int | str]) -> list[str]:
    """Names of the fields at a place inside a record: ("prompt", 0) leads to those of Message."""
    for part in place:
        if isinstance(part, str) and part in kind.model_fields:
            kind = next(iter(_models_in(kind.model_fields[part].annotation)), kind)
    return list(kind.model_fields)


def _models_in(annotation: object) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for part in get_args(annotation):
        yield from _models_in(part)


def _brief(value: object) -> str:
    try:
        text = repr(value)
    except RecursionError:
        return "nested too deeply"
    return text if len(text) <= 60 else f"{text[:57]}..."


# ---------------------------------------------------------------- opening


def _open(path: str) -> BinaryIO:
    if path.startswith(("http://", "https://")):
        return _download(path)
    if "://" not in path:
        return open(path, "rb")
    import fsspec

    opened = fsspec.open(path, "rb").open()
    return cast(BinaryIO, opened)


def _download(url: str) -> BinaryIO:
    """The body of an http address in a temporary file, which can seek (Parquet must) and is gone when closed."""
    try:
        with urllib.request.urlopen(url, timeout=TIMEOUT_SECONDS) as answer, contextlib.ExitStack() as undo:
            body = undo.enter_context(tempfile.TemporaryFile())
            shutil.copyfileobj(answer, body)
            body.seek(0)
            undo.pop_all()
            return cast(BinaryIO, body)
    except urllib.error.HTTPError as error:
        error.close()
        raise OSError(str(error)) from None


def _unpack(path: str, raw: BinaryIO) -> BinaryIO:
    """The plain bytes of a stream, by the suffix of its name."""
    name = shown(path).lower()
    if name.endswith(".gz"):
        return cast(BinaryIO, io.BufferedReader(gzip.GzipFile(fileobj=raw)))
    if name.endswith(".zst"):
        import pyarrow as pa

        _need_zstd(path)
        return cast(BinaryIO, io.BufferedReader(cast(Any, pa.CompressedInputStream(pa.PythonFile(raw, "r"), "zstd"))))
    return cast(BinaryIO, io.BufferedReader(cast(Any, raw)))


def _need_zstd(path: str) -> None:
    import pyarrow as pa

    if not pa.Codec.is_available("zstd"):
        raise InputError(
            f"{shown(path)}: this pyarrow reads no zstd; use .gz, or install pyarrow from its official wheel"
        )


def _listing(path: str) -> list[str] | None:
    """Names in a folder, or None when the path is a single file."""
    if "://" not in path:
        return [os.path.join(path, name) for name in os.listdir(path)] if os.path.isdir(path) else None
    if path.startswith(("http://", "https://")) or _kind(path):
        return None
    import fsspec

    system, inner = fsspec.core.url_to_fs(path)
    return [system.unstrip_protocol(name) for name in system.ls(inner, detail=False)] if system.isdir(inner) else None


@contextlib.contextmanager
def _reading(path: str) -> Iterator[None]:
    """Turns what a file system raises into one sentence about the path."""
    try:
        yield
    except FileNotFoundError:
        names = f", or one of the packaged sets {', '.join(packaged())}" if "/" not in path and packaged() else ""
        raise InputError(f"{shown(path)}: no such file; give an existing file, folder or URL{names}") from None
    except ImportError as error:
        raise InputError(
            f"{shown(path)}: this kind of address needs a package that is not installed: {error}"
        ) from None
    except InputError:
        raise
    except _transport_faults() as error:
        remedy = "; check the address, or download the file and name your copy" if "://" in path else ""
        raise InputError(f"{shown(path)}: cannot be read: {_reason(error)}{remedy}") from None
    except ValueError as error:
        if "://" not in path or "rotocol" not in str(error):
            raise
        raise InputError(f"{shown(path)}: cannot be read: {error}") from None


def _transport_faults() -> tuple[type[Exception], ...]:
    """What opening may raise: OSError, and what those network libraries that are loaded raise beside it."""
    loaded = [getattr(sys.modules[module], name) for module, name in FOREIGN.items() if module in sys.modules]
    return (OSError, http.client.HTTPException, *loaded)


def _reason(error: Exception) -> str:
    if isinstance(error, urllib.error.URLError) and isinstance(error.reason, OSError):
        error = error.reason
    return (error.strerror if isinstance(error, OSError) else None) or str(error) or type(error).__name__


# ---------------------------------------------------------------- writing


def write(path: str | Path, records: Iterable[Lined]) -> Written:
    """Records as JSONL (`.gz`, `.zst` after it) or Parquet by the suffix; nothing appears until all of it is written.

    The same records give the same bytes. Parquet is put together in memory.
    """
    name = str(path)
    store = _write_parquet if name.lower().endswith(".parquet") else _write_lines
    return Written(name, store(name, (record.line() for record in records)), sha256(name))


def encode(row: dict[str, Any]) -> bytes:
    r"""One line of JSONL, newline included; a lone surrogate is written as its JSON escape, so the bytes are UTF-8.

    >>> encode({"text": "é\n"}), encode({"text": "\ud800"})
    (b'{"text": "\xc3\xa9\\n"}\n', b'{"text": "\\ud800"}\n')
    """
    return json.dumps(row, ensure_ascii=False, allow_nan=False, default=str).encode("utf-8", "backslashreplace") + b"\n"


def write_json(path: str | Path, value: object) -> None:
    """A value as indented JSON, atomically."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def write_text(path: str | Path, text: str) -> None:
    """Text as UTF-8, atomically."""
    write_bytes(path, text.encode("utf-8"))


def write_bytes(path: str | Path, data: bytes) -> None:
    """Bytes, atomically."""
    with replacing(path) as file:
        file.write(data)


def temporary(target: Path) -> Path:
    """What a file or folder is called while this thread writes it; `sweep` knows such names.

    >>> bool(TEMPORARY.fullmatch(temporary(Path("pairs.jsonl")).name))
    True
    """
    return target.with_name(f".{target.name}.{os.getpid()}-{threading.get_ident()}.tmp")


@contextlib.contextmanager
def scratch(folder: Path) -> Iterator[Path]:
    """A folder for temporary files inside another, gone when the block ends; `sweep` knows its name.

    Raises InputError where it cannot be made.
    """
    path = temporary(folder / SCRATCH)
    with _writing(str(path)):
        path.mkdir(parents=True, exist_ok=True)
    try:
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)


@contextlib.contextmanager
def replacing(path: str | Path) -> Iterator[BinaryIO]:
    """A binary file that takes the name `path` when the block ends well; on any error the old file stays as it was.

    Raises InputError when the disk is full or the place cannot be written. Missing folders are made. To a URL the
    finished file is uploaded whole.
    """
    name = str(path)
    if "://" in name:
        with _uploading(name) as upload:
            yield upload
        return
    target = Path(os.path.realpath(name))
    partial = temporary(target)
    with _writing(name):
        target.parent.mkdir(parents=True, exist_ok=True)
        file = open(partial, "wb")  # noqa: SIM115
    try:
        with full_disk(name):
            yield cast(BinaryIO, file)
            _finish(file)
        with _writing(name):
            os.replace(partial, target)
            _sync_folder(target.parent)
    except BaseException:
        with contextlib.suppress(OSError):
            file.close()
        partial.unlink(missing_ok=True)
        raise


@contextlib.contextmanager
def _uploading(url: str) -> Iterator[BinaryIO]:
    import fsspec

    with tempfile.TemporaryDirectory() as folder:
        local = Path(folder) / "upload"
        with replacing(local) as file:
            yield file
        with _reading(url):
            system, inner = fsspec.core.url_to_fs(url)
            system.makedirs(system._parent(inner), exist_ok=True)
            system.put_file(str(local), inner)


def sweep(folder: Path, *, now: float) -> None:
    """Remove what has a name of `temporary` and was left in a folder by a process that was killed.

    `now` is in Unix seconds.

    One that was written to within `QUIET` seconds stays, also where no process of this machine is known to write it:
    another machine may share the folder.
    """
    for left in folder.glob(".*.tmp"):
        with contextlib.suppress(OSError):  # another process sweeps too, or the folder is read-only
            age = now - max(inside.stat().st_mtime for inside in (left, *left.rglob("*")))
            if (found := TEMPORARY.fullmatch(left.name)) and age > (DAY if _lives(int(found[1])) else QUIET):
                shutil.rmtree(left) if left.is_dir() else left.unlink()


def _lives(pid: int) -> bool:
    """Whether a process of this machine has the number."""
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        pass
    return True


def _finish(file: IO[bytes]) -> None:
    if not file.closed:
        file.flush()
        os.fsync(file.fileno())
        file.close()


def _sync_folder(folder: Path) -> None:
    """Makes the new name itself durable; some file systems do not let a folder be synced, and that is fine."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        with contextlib.suppress(OSError):
            os.fsync(handle)
    finally:
        os.close(handle)


@contextlib.contextmanager
def _writing(name: str) -> Iterator[None]:
    try:
        with full_disk(name):
            yield
    except InputError:
        raise
    except OSError as error:
        raise InputError(f"{name}: cannot be written: {_reason(error)}") from None


@contextlib.contextmanager
def full_disk(name: str) -> Iterator[None]:
    """A disk that is full inside the block, as one sentence."""
    try:
        yield
    except OSError as error:
        if error.errno not in NO_SPACE:
            raise
        raise InputError(
            f"{name}: cannot be written: {_reason(error)}; free some space and run again "
            "(what was there before is untouched)"
        ) from None


@contextlib.contextmanager
def _pack(name: str, raw: BinaryIO) -> Iterator[BinaryIO]:
    """The stream to write plain bytes to, compressed by the suffix; without a time stamp, so equal content is equal."""
    if name.lower().endswith(".gz"):
        with gzip.GzipFile(filename="", mode="wb", fileobj=raw, mtime=0) as packed:
            yield cast(BinaryIO, packed)
    elif name.lower().endswith(".zst"):
        import pyarrow as pa

        _need_zstd(name)
        with pa.CompressedOutputStream(raw, "zstd") as packed:
            yield cast(BinaryIO, packed)
    else:
        yield raw


def _write_lines(name: str, found: Iterable[dict[str, Any]]) -> int:
    written = 0
    with replacing(name) as raw, _pack(name, raw) as file:
        for row in found:
            file.write(encode(row))
            written += 1
    return written


def _write_parquet(name: str, lines: Iterable[dict[str, Any]]) -> int:
    import pyarrow as pa
    import pyarrow.parquet as pq

    found = list(lines)
    keys = list(dict.fromkeys(key for row in found for key in row))
    try:
        table = pa.table({key: [row.get(key) for row in found] for key in keys})
        with replacing(name) as file:
            pq.write_table(table, file)
    except (pa.ArrowInvalid, pa.ArrowTypeError, pa.ArrowNotImplementedError) as error:
        raise InputError(
            f"{name}: these rows do not fit Parquet ({str(error).splitlines()[0]}); write .jsonl instead"
        ) from None
    return len(found)


def cache_folder(*parts: str) -> Path:
    """A folder for what can be computed again: `$DRUTHERS_CACHE`, else `druthers` under the user's cache folder.

    It is made when missing.
    """
    base = os.environ.get("DRUTHERS_CACHE")
    try:
        root = (
            Path(base).expanduser()
            if base
            else Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "druthers"
        )
    except RuntimeError as error:  # a user without an entry and without HOME, as in a container, or ~name of nobody
        raise InputError(
            f"cache folder {base or '~/.cache/druthers'} cannot be found: no home folder is known; "
            "set DRUTHERS_CACHE to a folder you can write"
        ) from error
    folder = root.joinpath(*parts)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(
            f"cache folder {folder} cannot be made: {error.strerror}; set DRUTHERS_CACHE to a folder you can write"
        ) from error
    return folder
