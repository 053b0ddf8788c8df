"""Tables as CSV and TSV (RFC 4180, also with semicolons or bars): rows of texts under the names of their columns.

Lines are counted as an editor counts them, and a bad row is a fault of its own line.
"""

from __future__ import annotations

import csv
import itertools
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import BinaryIO

BOM = b"\xef\xbb\xbf"
PARQUET = b"PAR1"
MARKS = {",": "commas", ";": "semicolons", "\t": "tabs", "|": "bars"}
"""What may stand between columns."""
LONGEST_CELL = 1 << 24
"""Characters in a cell; one that is longer has a quote that is never closed."""


class HeaderFault(ValueError):
    """Why the first line names no columns."""


@dataclass(frozen=True)
class Row:
    """The line a row begins on, its cells by column (an empty one is not there), or what is wrong and the bytes."""

    first: int
    cells: dict[str, str]
    fault: str = ""
    data: bytes = b""


@dataclass
class Table:
    """The rows of a stream, which can be walked over once; `given` are the lines that were read so far.

    Raises HeaderFault for a bad first line, and what the stream raises.

    >>> import io
    >>> [row.cells for row in Table(io.BytesIO(b"a,b\\n1,2\\n3,\\n"))]
    [{'a': '1', 'b': '2'}, {'a': '3'}]
    """

    stream: BinaryIO
    tabs: bool = False
    given: int = 0
    record: list[bytes] = field(default_factory=list)
    fault: str = ""

    def __iter__(self) -> Iterator[Row]:
        csv.field_size_limit(LONGEST_CELL)
        lines = self.lines()
        first = next((line for line in lines if line.strip()), None)
        if first is None:
            return
        told = re.fullmatch(r"sep=(.)\s*", first)  # as Excel writes it, and hides it
        mark = told[1] if told else "\t" if self.tabs and "\t" in first else delimiter(first)
        reader = csv.reader(lines if told else itertools.chain([first], lines), delimiter=mark, strict=True)
        header = self.header(reader)
        while True:
            start = self.given + 1
            try:
                cells = next(reader, None)
            except csv.Error as error:
                yield Row(start, {}, table_fault(error), self.taken()[0])
                continue
            data, fault = self.taken()
            if cells is None:
                return
            if fault or (cells and len(cells) != len(header)):
                yield Row(start, {}, fault or count_fault(len(cells), len(header), mark), data)
            elif cells:
                yield Row(start, {column: cell for column, cell in zip(header, cells, strict=True) if cell})

    def lines(self) -> Iterator[str]:
        """The lines as texts, as the csv module wants them."""
        for data in self.stream:
            self.given += 1
            yield self.decoded(data.removeprefix(BOM) if self.given == 1 else data)

    def decoded(self, data: bytes) -> str:
        """A line; where it is not UTF-8, that is noted."""
        self.record.append(data)
        try:
            return data.decode("utf-8")
        except UnicodeDecodeError as error:
            self.fault = f"is not UTF-8 (byte {error.start + 1} of line {self.given}); save the file as UTF-8"
            return data.decode("utf-8", "replace")

    def taken(self) -> tuple[bytes, str]:
        """The bytes since the last call and what is wrong with them."""
        data, fault = b"".join(self.record), self.fault
        self.record, self.fault = [], ""
        return data, fault

    def header(self, reader: Iterator[list[str]]) -> list[str]:
        """The names of the columns; one without a name is called by its place."""
        try:
            found = [cell.strip() or f"column_{i}" for i, cell in enumerate(next(reader), 1)]
        except csv.Error as error:
            raise HeaderFault(f"the header {table_fault(error)}") from None
        if fault := self.taken()[1]:
            raise HeaderFault(fault)
        twice = next((column for column in found if found.count(column) > 1), None)
        if twice is not None:
            raise HeaderFault(f"the column {twice!r} stands twice in the header; rename one")
        return found


def delimiter(header: str) -> str:
    """What stands between the columns: the mark that is met most outside quotes, a comma where there is none.

    >>> delimiter("a,b;c"), delimiter('a;"b,c,d";e'), delimiter("a|b"), delimiter("a")
    (',', ';', '|', ',')
    """
    bare = re.sub(r'"[^"]*"', "", header)
    return max(MARKS, key=bare.count)


def table_fault(error: csv.Error) -> str:
    """What is wrong with a row that the csv module cannot read."""
    if "field limit" in str(error) or "unexpected end" in str(error):
        return "holds a quote that is never closed; close it, or write a quote inside quotes twice"
    if "new-line character" in str(error):
        return "holds a line that ends in a bare carriage return, as on old Macs; save the file with line feeds"
    return f"is not CSV: {error}; put a cell with commas, quotes or line breaks in quotes, and write its quotes twice"


def count_fault(cells: int, columns: int, mark: str) -> str:
    """A row that is longer or shorter than the header."""
    named = MARKS.get(mark, repr(mark))
    return f"has {cells} cells, but the header has {columns}; put cells that hold {named} or line breaks in quotes"
