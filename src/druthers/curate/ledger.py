"""The books of a curation: what was refused and why, and what was kept, without holding any text in memory."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from druthers.curate.columns import Columns
from druthers.curate.facts import Facts
from druthers.curate.grading import UNMADE
from druthers.records import InputError
from druthers.storage import Line, encode

BESIDE_OTHERS = (
    *("duplicate", "near_duplicate", "contradiction", "leak", "held_before", "small_margin", "between_sides"),
)
NEVER_A_STOP = frozenset((*BESIDE_OTHERS, "personal", "no_opinion", *UNMADE))
"""Reasons that say nothing against a row by itself."""
AGAIN = ("one_response", "unjudged", "both_bad", "gate")
"""Reasons that go away when the prompt is answered or judged again."""


@dataclass(frozen=True)
class Refusal:
    """A row that is not used: where it stands, a code to count by, a sentence, and what it says."""

    where: str
    reason: str
    why: str
    row: dict[str, Any]

    @property
    def number(self) -> int:
        """The number of its line."""
        return number(self.where)


def number(where: str) -> int:
    """The number of a line in its file.

    >>> number("pairs.jsonl:12")
    12
    """
    return int(where.rpartition(":")[2])


@dataclass
class Ledger:
    """Counts of what was read and refused; refused rows are written to `file` with their reason.

    `again` takes the prompts among them that should be answered or judged again, `unpaired` the comparisons that gave
    no pair where others of their prompt did; `days` counts rows by the day on which they were made, where they say so.
    """

    file: BinaryIO
    again: BinaryIO
    unpaired: BinaryIO
    stop: bool
    rows: int = 0
    beyond_limit: int = 0
    joined: int = 0
    repaired: int = 0
    redacted: Counter[str] = field(default_factory=Counter)
    reasons: Counter[str] = field(default_factory=Counter)
    ignored: Counter[str] = field(default_factory=Counter)
    days: Counter[int] = field(default_factory=Counter)
    example: str = ""

    def refuse(self, refusal: Refusal) -> None:
        """Book a bad row, or raise InputError where bad rows stop the run."""
        where, reason, why = refusal.where, refusal.reason, refusal.why
        if self.stop and reason not in NEVER_A_STOP:
            raise InputError(f"{where}: {why}; correct the row, or leave such rows out with data.bad_rows=drop")
        self.reasons[reason] += 1
        self.example = self.example or f"{where}: {why}"
        self.file.write(encode({"where": where, "reason": reason, "why": why, "row": _plain(refusal.row)}))
        if reason in AGAIN and "prompt" in refusal.row:
            asked = {name: refusal.row[name] for name in ("prompt", "group") if name in refusal.row}
            self.again.write(encode(asked | {"reason": reason}))


@dataclass
class Shelf:
    """Pairs that may be kept: their lines in a temporary file, their facts in others.

    `ends` are the numbers of pairs up to the end of each source.
    """

    spool: BinaryIO
    columns: Columns
    names: list[str] = field(default_factory=list)
    sizes: list[int] = field(default_factory=list)
    spoken: list[bool] = field(default_factory=list)
    groups: dict[str, int] = field(default_factory=dict)
    ends: list[int] = field(default_factory=list)

    def add(self, name: str, lines: bytes, facts: Facts, groups: Sequence[str], *, judged: bool) -> None:
        """Some pairs of one file; their facts speak of the `groups`, `judged` says that they were made of opinions."""
        self.spool.write(lines)
        self.names.append(name)
        place = np.array([self.groups.setdefault(group, len(self.groups)) for group in groups], dtype=np.int32)
        self.columns.add(replace(facts, group_B=place[facts.group_B]) if len(facts) else facts)
        self.sizes.append(len(facts))
        self.spoken.append(judged)

    def judged(self) -> NDArray[np.bool_]:
        """Which pairs were made of opinions, (B,)."""
        return np.repeat(np.array(self.spoken, dtype=bool), self.sizes)

    def __len__(self) -> int:
        return self.columns.count

    def facts(self) -> Facts:
        """Those of all; the shelf takes no more after that."""
        return self.columns.facts()

    def where(self, facts: Facts, i: int) -> str:
        """File and line of a pair."""
        lot = int(np.searchsorted(np.cumsum(self.sizes), i, side="right"))
        return f"{self.names[lot]}:{facts.line_B[i]}"

    def lines(self) -> Iterator[bytes]:
        """The lines in the order they were added."""
        self.spool.seek(0)
        yield from self.spool

    def line(self, start: int, size: int) -> bytes:
        """The line at a place of the file."""
        self.spool.seek(start)
        return self.spool.read(size)


def refusal(line: Line, *, reason: str, why: str) -> Refusal:
    """The refusal of a line."""
    return Refusal(line.where, reason, why, line.row)


def _plain(row: dict[str, Any]) -> Any:
    """The row as JSON can hold it: what Parquet knows and JSON does not (dates, bytes, NaN) becomes text."""
    return json.loads(json.dumps(row, default=str), parse_constant=str)
