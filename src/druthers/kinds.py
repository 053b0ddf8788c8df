"""What kind of file it is: by how it begins where that is sure, and else by its name.

People rename files, browsers unpack them, and exports come without a suffix. What a file begins with says more.
"""

from __future__ import annotations

import csv
import io
import json
import re
import zlib
from dataclasses import dataclass
from typing import cast

from druthers.records import InputError
from druthers.tables import BOM, PARQUET, delimiter

KINDS = (".jsonl", ".ndjson", ".manifest", ".json", ".parquet", ".csv", ".tsv")
JSON_LINES = (".jsonl", ".ndjson", ".manifest")
TABLES = (".csv", ".tsv")
PACKINGS = (".gz", ".zst")
HEAD = 1 << 18
"""Bytes at the beginning of a file that are looked at; a block of zstd has half as many at most."""
MAGIC = {b"\x1f\x8b": ".gz", b"\x28\xb5\x2f\xfd": ".zst"}
FOREIGN = (
    (rb"PK\x03\x04", "is a zip archive or an Excel file; unpack it, or save the sheet as CSV"),
    (rb"BZh[1-9]", "is packed by bzip2; unpack it with bunzip2"),
    (rb"\xfd7zXZ", "is packed by xz; unpack it with unxz"),
    (rb"ARROW1|\xff\xff\xff\xff.{4}\x10", "is an Arrow file; write the rows as Parquet or JSON lines"),
    (rb"SQLite format 3", "is an SQLite database; write the table as CSV"),
    (rb"\x80[\x02-\x05]", "is a Python pickle, which may run code when it is read; write the rows as JSON lines"),
    (rb"version https://git-lfs", "is a pointer of Git LFS and not the file itself; fetch that with `git lfs pull`"),
    (rb"\s*<(!doctype|html|\?xml)", "is a web page or XML; download the file itself, or write the rows as JSON lines"),
    (rb"\xff\xfe|\xfe\xff", "is UTF-16, as Excel's Unicode text is; save the file as UTF-8"),
)
"""How files begin that hold no rows this program reads, and what to do about them."""
OBJECT = re.compile(rb'\s*(\[\s*)?\{\s*"')
"""How JSON begins that cannot be the header of a table."""
LONGEST_NAME = 100
"""Characters of the name of a column, in a file whose name does not say that it is a table."""


@dataclass(frozen=True)
class Kind:
    """How the rows of a file stand, one of `KINDS`, and by what they are packed, one of `PACKINGS` or nothing."""

    rows: str
    packing: str = ""


def named(name: str) -> str:
    """The kind that a name says, or nothing.

    >>> named("a.JSONL.gz"), named("a.parquet"), named("a.txt")
    ('.jsonl', '.parquet', '')
    """
    name = name.lower()
    plain = name
    for packing in PACKINGS:
        plain = plain.removesuffix(packing)
    kind = next((kind for kind in KINDS if plain.endswith(kind)), "")
    return "" if kind == ".parquet" and plain != name else kind


def kind_of(name: str, head: bytes) -> Kind:
    r"""The kind of a file by its first `HEAD` bytes, and by its name where those leave it open.

    Raises InputError for what is none.

    >>> kind_of("a.txt", b'{"a": 1}\n').rows, kind_of("a", b"a|b\n1|2\n").rows, kind_of("a.jsonl", b"PAR1").rows
    ('.jsonl', '.csv', '.parquet')
    """
    packing = packed(name, head)
    plain = unpacked(head, packing)
    if plain.startswith(PARQUET):
        if packing:
            raise InputError(f"{name}: is a Parquet file packed once more; unpack it first, Parquet is packed already")
        return Kind(".parquet")
    foreign = next((said for start, said in FOREIGN if re.match(start, plain, re.IGNORECASE | re.DOTALL)), None)
    if foreign is not None:
        raise InputError(f"{name}: {foreign}")
    kind = text_kind(named(name), plain.removeprefix(BOM).lstrip())
    if not kind:
        raise InputError(f"{name}: {beginning(plain)}; give JSON lines, a JSON array, CSV, TSV or Parquet")
    return Kind(kind, packing)


def packed(name: str, head: bytes) -> str:
    """By what a file is packed: as it begins, or as its name says where it begins like nothing that is read."""
    found = next((packing for magic, packing in MAGIC.items() if head.startswith(magic)), "")
    said = next((packing for packing in PACKINGS if name.lower().endswith(packing)), "")
    return found or ("" if OBJECT.match(head.removeprefix(BOM)) or head.startswith(PARQUET) else said)


def unpacked(head: bytes, packing: str) -> bytes:
    """The beginning of what is packed; nothing where it cannot be unpacked, which is said when it is read."""
    try:
        if packing == ".gz":
            return zlib.decompressobj(31).decompress(head, HEAD)
        if packing == ".zst":
            import pyarrow as pa

            return cast(bytes, pa.CompressedInputStream(pa.BufferReader(head), "zstd").read(HEAD))
    except (zlib.error, OSError):
        return b""
    return head


def text_kind(said: str, text: bytes) -> str:
    """How the rows of a text stand, given what its name says; nothing where it is none."""
    if said in TABLES or said == ".parquet":
        found = OBJECT.match(text)
        return said if not found else ".json" if found[1] else ".jsonl"
    if text.startswith(b"["):
        return ".json" if said == ".json" or not listed(text) else ".jsonl"
    if not text or text.startswith(b"{"):
        return ".jsonl"
    return ".csv" if tabular(text) else ".jsonl" if said else ""


def listed(text: bytes) -> bool:
    """Whether the first line is a list by itself and others follow: lines that are no objects, and not one array."""
    first, _, rest = text.partition(b"\n")
    if not rest.strip():
        return False
    try:
        return isinstance(json.loads(first), list)
    except (ValueError, RecursionError):
        return False


def tabular(text: bytes) -> bool:
    """Whether a text begins with a header of two columns or more and a row of as many cells, and holds no JSON."""
    if re.search(rb"^\s*[{\[]", text, re.MULTILINE):
        return False
    shown = text.decode("utf-8", "replace")
    first = shown.partition("\n")[0]
    try:
        reader = csv.reader(io.StringIO(shown, newline=""), delimiter=delimiter(first), strict=True)
        header, row = next(reader), next(reader)
    except (csv.Error, StopIteration):
        return False
    return len(header) == len(row) > 1 and all(0 < len(cell.strip()) < LONGEST_NAME for cell in header)


def beginning(text: bytes) -> str:
    r"""What is seen of a file that is of no kind.

    >>> beginning(b"Name a fruit.\nPlum."), beginning(b"\x00\x01")
    ("is of an unknown kind, it begins with 'Name a fruit.'", 'is of an unknown kind, it begins with bytes of no text')
    """
    first = text.lstrip().partition(b"\n")[0][:40].decode("utf-8", "replace").strip()
    seen = repr(first) if first.isprintable() and "\ufffd" not in first[:-1] else "bytes of no text"
    return f"is of an unknown kind, it begins with {seen}"
