"""The curated data of a run as its page sees it: what was measured, and a few rows of each kind.

Files of millions of rows are read once as a stream, and only the rows that are shown are taken apart. Of all files only
`data/summary.json` must be there.
"""

from __future__ import annotations

import json
import re
from collections import Counter, defaultdict
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from druthers import storage
from druthers.records import Finding, InputError
from druthers.report import wording
from druthers.report.reading import Absent, Tree, branch, number, read_tree, reason, text
from druthers.storage import explain

SUMMARY, QUALITY, REJECTED = "data/summary.json", "data/quality.json", "data/rejected.jsonl"
SIDES = ("data/train.jsonl", "data/heldout.jsonl")
OPTIONAL = ("config.json", QUALITY)
EXAMPLES, ROWS, ROWS_IN_ALL = 2, 20, 300
"""Rows shown of each reason, of each finding, and of all findings together."""
MOST_REASONS = 40
OTHER = "other reasons"
UNREADABLE = "unreadable lines"
REFUSED = re.compile(rb'\{"where": ?"(?:[^"\\]|\\.)*", ?"reason": ?"((?:[^"\\]|\\.)*)"')
NAMED = re.compile(rb'\{"id": ?"([0-9a-f]{24})"')


@dataclass(frozen=True)
class Refusals:
    """How many rows were set aside for a reason, and the first of them as they stand in the file."""

    count: int
    examples: Sequence[Tree]


@dataclass(frozen=True)
class DataFiles:
    """Everything the data page and the card are built from.

    `rows` are the first rows of the file of a finding, by that file; `pairs` the kept pairs they name, by id.
    """

    run: Path
    trees: Mapping[str, Tree]
    findings: Sequence[Finding]
    refused: Mapping[str, Refusals]
    rows: Mapping[str, Sequence[Tree]]
    pairs: Mapping[str, Tree]
    absent: Sequence[Absent]

    def tree(self, file: str) -> Tree:
        """The content of a JSON file; empty where it is absent."""
        return self.trees.get(file, {})

    @property
    def summary(self) -> Tree:
        """What went in and what came out."""
        return self.tree(SUMMARY)

    @property
    def quality(self) -> Tree:
        """What was measured; empty for a run that measured nothing."""
        return self.tree(QUALITY)


def read_data(run: Path) -> DataFiles:
    """The files about the data of a run directory; a damaged one is named in `absent` with what is wrong.

    Raises InputError where `run` holds no curated data, or its summary cannot be read.
    """
    if not (run / SUMMARY).is_file():
        raise InputError(f"{run}: has no {SUMMARY}; name a run directory whose pairs `druthers curate` has read")
    absent: list[Absent] = []
    trees = {SUMMARY: read_tree(run / SUMMARY)} | {file: tree_of(run, file, absent) for file in OPTIONAL}
    found = findings(trees[QUALITY], absent)
    rows = rows_of_findings(run, found, absent)
    return DataFiles(
        run=run,
        trees=trees,
        findings=found,
        refused=refusals(run / REJECTED, absent),
        rows=rows,
        pairs=pairs_named(run, {name for some in rows.values() for row in some for name in ids(row)}),
        absent=absent,
    )


def tree_of(run: Path, file: str, absent: list[Absent]) -> Tree:
    """A JSON file that may be missing or damaged."""
    if not (run / file).is_file():
        absent.append(Absent(file, reason(file, {})))
        return {}
    try:
        return read_tree(run / file)
    except InputError as fault:
        absent.append(damaged(run, file, fault))
        return {}


def damaged(run: Path, file: str, fault: InputError) -> Absent:
    """A file that is there and of no use."""
    return Absent(file, f"it is damaged ({str(fault).removeprefix(f'{run}/')})")


def findings(quality: Tree, absent: list[Absent]) -> list[Finding]:
    """The findings of quality.json that are well formed; the others are named."""
    found = []
    for place, row in enumerate(listed(quality, "findings")):
        try:
            found.append(Finding.model_validate(row))
        except ValidationError as error:
            absent.append(Absent(f"{QUALITY}: finding {place}", f"it is damaged ({explain(error, Finding)})"))
    return found


def listed(tree: Tree, key: str) -> list[Any]:
    """The list at a key; empty where there is none."""
    value = tree.get(key)
    return value if isinstance(value, list) else []


# ---------------------------------------------------------------- rows that were set aside


def refusals(path: Path, absent: list[Absent]) -> dict[str, Refusals]:
    """By reason, how many rows stand in rejected.jsonl and the first `EXAMPLES`, most frequent first."""
    if not path.is_file():
        absent.append(Absent(REJECTED, reason(REJECTED, {})))
        return {}
    counts: Counter[str] = Counter()
    lines: defaultdict[str, list[bytes]] = defaultdict(list)
    with path.open("rb") as file:
        for line in file:
            if line.strip():
                code = reason_of(line)
                code = code if code in counts or len(counts) < MOST_REASONS else OTHER
                counts[code] += 1
                if counts[code] <= EXAMPLES:
                    lines[code].append(line)
    return {
        code: Refusals(n, [row for line in lines[code] if (row := parsed(line))]) for code, n in counts.most_common()
    }


def reason_of(line: bytes) -> str:
    """The code on a line of rejected.jsonl; the line is taken apart only where it is not written as curation does.

    >>> reason_of(b'{"where": "a:1", "reason": "leak", "why": ""}'), reason_of(b'{"reason":"leak"}'), reason_of(b"{")
    ('leak', 'leak', 'unreadable lines')
    """
    if (found := REFUSED.match(line)) and b"\\" not in found[1]:
        return found[1].decode("utf-8", "replace")
    code = parsed(line).get("reason")
    return code if isinstance(code, str) else UNREADABLE


def parsed(line: bytes) -> Tree:
    """A line as an object; empty where it is none."""
    try:
        value = json.loads(line)
    except (ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}


# ---------------------------------------------------------------- rows that findings are about


def rows_of_findings(run: Path, found: Sequence[Finding], absent: list[Absent]) -> dict[str, list[Tree]]:
    """The first rows of the file of each finding, fewer of each where many findings have some."""
    names = list(dict.fromkeys(one.rows.file for one in found if one.rows))
    each = max(1, min(ROWS, ROWS_IN_ALL // max(1, len(names))))
    rows: dict[str, list[Tree]] = {}
    for name in names[:ROWS_IN_ALL]:
        file = inside(run / "data", name)
        if file is None or not file.is_file():
            absent.append(Absent(f"data/{name}", "the folder was copied in part" if file else "it lies outside data/"))
            continue
        with file.open("rb") as stream:
            rows[name] = [row for _, line in zip(range(each), stream, strict=False) if (row := parsed(line))]
    return rows


def inside(folder: Path, name: str) -> Path | None:
    """A file by its name below a folder; None for a name that leads out of it.

    >>> inside(Path("/run/data"), "findings/D1.jsonl"), inside(Path("/run/data"), "../../etc/passwd")
    (PosixPath('/run/data/findings/D1.jsonl'), None)
    """
    found = (folder / name).resolve()
    return found if found.is_relative_to(folder.resolve()) else None


def ids(row: Tree) -> list[str]:
    """The ids of pairs that a row names.

    >>> ids({"pair_id": "a"}), ids({"pair_ids": ["a", "b"]}), ids({"where": "x:1"})
    (['a'], ['a', 'b'], [])
    """
    one, several = row.get("pair_id"), row.get("pair_ids")
    return [name for name in [one, *(several if isinstance(several, list) else [])] if isinstance(name, str)]


def pairs_named(run: Path, wanted: Collection[str]) -> dict[str, Tree]:
    """The kept pairs with these ids; reading stops when all are found."""
    missing, found = set(wanted), dict[str, Tree]()
    for file in SIDES:
        if missing and (run / file).is_file():
            for name, line in lines_named(run / file, missing):
                found[name] = parsed(line)
                missing.discard(name)
    return found


def lines_named(path: Path, wanted: Collection[str]) -> Iterator[tuple[str, bytes]]:
    """The lines of a file of pairs whose id is wanted, while any is."""
    with path.open("rb") as file:
        for line in file:
            if not wanted:
                return
            if (head := NAMED.match(line)) and (name := head[1].decode()) in wanted:
                yield name, line


# ---------------------------------------------------------------- counts


def counts_by_reason(files: DataFiles) -> dict[str, int]:
    """Rows set aside by reason as the summary counts them, most frequent first; as the file holds them without it."""
    said = {str(code): int(n) for code, n in branch(files.summary, "rejected").items() if isinstance(n, int)}
    found = said or {code: of.count for code, of in files.refused.items()}
    return dict(sorted(found.items(), key=lambda item: (-item[1], item[0])))


def whole_number(tree: Tree, key: str) -> int:
    """A count at a dotted key; 0 where there is none."""
    return int(number(tree, key) or 0)


def hash_of(path: Path) -> str:
    """SHA-256 of a file; empty where it is missing."""
    return storage.sha256(path) if path.is_file() else ""


def source_names(files: DataFiles) -> list[str]:
    """The sources: files without the way to them, for a card goes to others, and addresses without their secrets."""
    given = branch(files.tree("config.json"), "data").get("pairs")
    names = given if isinstance(given, list) else [given or text(files.summary, "source")]
    return [wording.last_part(storage.shown(name)) for name in names if isinstance(name, str) and name] or ["PAIRS"]
