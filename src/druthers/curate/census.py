"""Counts of curated pairs that only a pass over them gives: groups, grading, ties, and criteria that disagree."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from druthers.records import CANONICAL
from druthers.stats import Interval, Undefined, wilson

SAMPLED = 200_000
"""Comparisons that are remembered at once; of more, those of a share of the prompts."""

Row = Mapping[str, Any]


@dataclass
class Census:
    """What was counted: training pairs by group, graded ones and ties among them, held-out prompts by group."""

    groups: Counter[str] = field(default_factory=Counter)
    graded: int = 0
    ties: int = 0
    pairs: int = 0
    heldout_groups: Counter[str] = field(default_factory=Counter)
    criteria: Orders = field(default_factory=lambda: Orders())
    tastes: Orders = field(default_factory=lambda: Orders())

    def train(self, rows: Iterable[Row]) -> None:
        """Training pairs, as they stand on their lines."""
        for row in rows:
            p = row.get("p", 1.0)
            self.pairs += 1
            self.ties += p == 0.5
            self.graded += p != 1.0 or row.get("margin", 0.0) > 0
            self.groups[row.get("group", "")] += 1
            criterion, group = row.get("criterion", ""), row.get("group", "")
            if criterion and p != 0.5:
                self.criteria.add(row, criterion, forward=p > 0.5)
            if group and p != 0.5:
                self.tastes.add(row, group, forward=p > 0.5, within=criterion)

    def heldout(self, rows: Iterable[Row]) -> None:
        """Held-out pairs; a prompt is counted once in its group."""
        seen: set[tuple[str, bytes]] = set()
        for row in rows:
            if group := row.get("group", ""):
                seen.add((group, digest(row["prompt"])))
        self.heldout_groups.update(group for group, _ in seen)


@dataclass
class Orders:
    """For each comparison of two responses, in which order several criteria, or several groups, put them."""

    orders: dict[bytes, dict[str, bool]] = field(default_factory=dict)
    bits: int = 0

    def add(self, row: Row, by: str, *, forward: bool, within: str = "") -> None:
        """What one criterion or group says of one comparison; another word of the same one changes nothing."""
        prompt = digest(row["prompt"])
        if not self.kept(prompt):
            return
        sides = [digest(row[side]) for side in ("chosen", "rejected")]
        compared = hashlib.blake2b(min(sides) + max(sides) + within.encode("utf-8", "surrogatepass"), digest_size=8)
        said = self.orders.setdefault(prompt + compared.digest(), {})
        said.setdefault(by, (sides[0] < sides[1]) == forward)
        if len(self.orders) > SAMPLED:
            self.bits += 1
            self.orders = {key: said for key, said in self.orders.items() if self.kept(key)}

    def kept(self, key: bytes) -> bool:
        """Whether a comparison belongs to the share that is remembered, by the hash of its prompt."""
        return int.from_bytes(key[:8]) & ((1 << self.bits) - 1) == 0

    def conflicts(self) -> Interval | None:
        """The share of comparisons by several of them on which these do not agree; None where there is none."""
        several = [set(said.values()) for said in self.orders.values() if len(said) > 1]
        found = wilson(sum(len(orders) > 1 for orders in several), len(several))
        return None if isinstance(found, Undefined) else found


GRADES = tuple(f'"{name}":'.encode() for name in ("p", "margin", "group", "criterion", "tools"))


def grades(line: bytes, *, whole: Sequence[str]) -> Row | None:
    """What stands behind the texts on the line of a pair, without reading these; None where all must be read.

    That is so where a key of `whole` stands there, and where the line is not one that curation wrote.

    >>> grades(b'{"id": "1", "prompt": [], "chosen": [], "rejected": [], "p": 0.5}', whole=("criterion",))
    {'p': 0.5}
    >>> grades(b'{"p": 0.5, "prompt": [], "chosen": [], "rejected": []}', whole=()) is None
    True
    """
    at = line.rfind(b"]") + 1
    if not at or any(line.find(key, 0, at) >= 0 for key in GRADES):
        return None
    try:
        row = json.loads(b"{" + line[at:].lstrip(b", "))
    except ValueError:
        return None
    return None if any(row.get(key) for key in whole) else row


def digest(content: object) -> bytes:
    """A short hash of a part of a row.

    >>> digest([{"role": "user", "content": "Hi"}]) == digest([{"content": "Hi", "role": "user"}])
    True
    """
    return hashlib.blake2b(CANONICAL.encode(content).encode("utf-8", "surrogatepass"), digest_size=8).digest()
