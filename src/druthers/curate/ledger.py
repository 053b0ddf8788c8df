"""The books of a curation: what was refused and why, and what was kept, without holding any text in memory."""

from __future__ import annotations

import json
from array import array
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, BinaryIO

import numpy as np

from druthers.curate.importers import Form, RowFault
from druthers.records import InputError, Pair
from druthers.storage import Line, encode
from druthers.tokens import TokenizedPair

NEVER_A_STOP = ("duplicate", "leak", "small_margin")


@dataclass
class Ledger:
    """Counts of what was read and refused; refused rows are written to `file` with their reason."""

    file: BinaryIO
    stop: bool
    form: Form = "trl"
    rows: int = 0
    beyond_limit: int = 0
    joined: int = 0
    reasons: Counter[str] = field(default_factory=Counter)
    ignored: Counter[str] = field(default_factory=Counter)
    example: str = ""

    def refuse(self, line: Line, fault: RowFault) -> None:
        """Book a bad row, or raise InputError where bad rows stop the run."""
        if self.stop and fault.reason not in NEVER_A_STOP:
            raise InputError(f"{line.where}: {fault}; correct the row, or leave such rows out with data.bad_rows=drop")
        self.reasons[fault.reason] += 1
        self.example = self.example or f"{line.where}: {fault}"
        self.file.write(
            encode({"where": line.where, "reason": fault.reason, "why": str(fault), "row": _plain(line.row)})
        )


@dataclass
class Shelf:
    """Kept pairs: their lines in a temporary file, and for each its prompt's number, token counts and margin."""

    spool: BinaryIO
    ids: set[bytes] = field(default_factory=set)
    draws: array[int] = field(default_factory=lambda: array("Q"))
    counts: array[int] = field(default_factory=lambda: array("I"))
    margins: array[float] = field(default_factory=lambda: array("d"))

    def add(self, pair: Pair, tokens: TokenizedPair, draw: int) -> None:
        """Put a pair on the shelf."""
        self.spool.write(encode(pair.line()))
        self.ids.add(bytes.fromhex(pair.id))
        self.draws.append(draw)
        self.counts.extend(
            (len(tokens.prompt), len(tokens.chosen), len(tokens.rejected), tokens.cut_chosen, tokens.cut_rejected)
        )
        self.margins.append(pair.margin)

    def __len__(self) -> int:
        return len(self.draws)

    def lines(self) -> Iterator[bytes]:
        """The lines in the order they were added."""
        self.spool.seek(0)
        yield from self.spool

    def table(self) -> np.ndarray[Any, np.dtype[np.float64]]:
        """(pairs, 6): tokens of prompt, chosen and rejected, whether chosen and rejected were cut, and the margin."""
        counts = np.array(self.counts, dtype=np.float64).reshape(-1, 5)
        return np.column_stack([counts, np.array(self.margins, dtype=np.float64)])


def _plain(row: dict[str, Any]) -> Any:
    """The row as JSON can hold it: what Parquet knows and JSON does not (dates, bytes, NaN) becomes text."""
    return json.loads(json.dumps(row, default=str), parse_constant=str)
