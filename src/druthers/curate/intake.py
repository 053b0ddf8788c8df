"""Sources to a shelf of pairs: forms are found, rows read by several processes, opinions pooled and graded."""

from __future__ import annotations

import contextlib
import itertools
import os
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from druthers import processes, storage
from druthers.blocks import BlockTokenizer
from druthers.config import DataSettings, Settings
from druthers.curate import pooling
from druthers.curate.facts import form_of
from druthers.curate.gold import Gold, read_gold
from druthers.curate.grading import Survey, check_names, policy_of
from druthers.curate.importers import INNER, OPINIONS, Form, Imported, Importer, reached, recognized, unrecognized
from druthers.curate.importers.columns import Row
from druthers.curate.ledger import Ledger, Shelf
from druthers.curate.nearness import Hashes
from druthers.curate.pooling import Pool, Tally
from druthers.curate.reading import Read, Reader, imported, jobs, read
from druthers.records import InputError, Message
from druthers.storage import Line, Source, offer

SIDES = frozenset(("chosen", "rejected"))
"""Columns that say by themselves what form a row was to have."""
LOOKS, TELLING = 1000, 100
"""Rows in which words are looked for that many prompts have, and rows whose form is looked at."""
ALONE = 32 << 20
"""Bytes of a source up to which starting other processes takes longer than it saves, and for each of which one is."""
OTHER_POINTS = frozenset(("shp", "unpaired"))
"""Forms whose ratings are votes of a site, or thumbs: how good a response is on a scale they do not say."""

Side = Literal["train", "heldout"]


@dataclass(frozen=True)
class Judged:
    """What people said of one side: the pool of it, what was learned of them, and what became of it."""

    side: Side
    pool: Pool
    known: Survey
    tally: Tally


@dataclass
class Desk:
    """What reading takes, and where what is read goes.

    `most` are the rows that are read of each source of training pairs, None for all. `gold` are the gold items, where
    there are any, `looked_at` ids of pairs whose personal data stays. `judged` are the opinions of the held-out part
    and of the rest, where they hold any, and `forms` those of the sources of the rest.
    """

    settings: Settings
    tokenizer: BlockTokenizer
    ledger: Ledger
    shelf: Shelf
    spool: Path
    workers: int
    most: int | None
    tell: Callable[[int], None]
    gold: Gold | None = None
    looked_at: frozenset[str] = frozenset()
    judged: list[Judged] = field(default_factory=list)
    forms: list[Form] = field(default_factory=list)

    def take(self, source: Source) -> tuple[int | None, Hashes]:
        """Read all; how many pairs the held-out part has (None where there is none), and what many prompts have.

        Raises InputError for a bad file, for a bad row where those stop the run, for a column of `data.columns` that is
        nowhere, and for a criterion of `grade` that nobody judged by.
        """
        data, held = self.settings.data, None
        source = Source(by_form(source.train, data), by_form(source.heldout, data))
        if (path := self.settings.grade.gold) is not None:
            policy = policy_of(self.settings.grade)
            self.gold = read_gold(path, policy, columns=data.columns)
        first = {path: first_of(path) for path in (*source.train, *source.heldout)}
        check_columns(data.columns, [line.row for rows in first.values() for line in rows])
        known = {
            path: Importer.of(path, form_in(path, rows, data), columns=data.columns) for path, rows in first.items()
        }
        self.forms = list(dict.fromkeys(known[path].form for path in source.train))
        shared = form_of([prompt for path in source.train for prompt in prompts_of(first[path], known[path])])
        if source.heldout:
            self.fill("heldout", [(path, known[path]) for path in source.heldout], shared)
            held = len(self.shelf)
            self.ledger.days.clear()  # how old the data is that is trained on
        self.fill("train", [(path, known[path]) for path in source.train], shared)
        if self.judged and self.most is None:  # of a part of the rows a criterion may be missing
            check_names(policy_of(self.settings.grade), [each.known for each in self.judged])
        return held, shared

    def fill(self, side: Side, sources: Sequence[tuple[str, Importer]], shared: Hashes) -> None:
        """Read the sources of one side: those of pairs one after the other, then all opinions together."""
        most = self.most if side == "train" else None
        spoken = [(path, importer) for path, importer in sources if importer.form in OPINIONS]
        for path, importer in sources:
            if importer.form not in OPINIONS:
                workers = 1 if most else processes_for(path, self.workers)
                reader = self.reader(importer, shared)
                with contextlib.closing(read(jobs(path, most=most), reader, workers=workers)) as parts:
                    self.put(parts)
        if spoken:
            self.put_graded(side, spoken, self.reader(spoken[0][1], shared), most=most)

    def reader(self, importer: Importer, shared: Hashes) -> Reader:
        """What reads the rows of one form."""
        personal = self.settings.data.personal
        return Reader(importer, self.tokenizer, self.settings.seed, shared, personal, self.looked_at)

    def put(self, parts: Iterable[Read]) -> None:
        """What is read goes to the shelf, what is refused into the books."""
        for part in parts:
            for refused in part.refusals:
                self.ledger.refuse(refused)
            self.ledger.rows += part.rows
            self.ledger.ignored.update(part.ignored)
            self.ledger.joined += part.joined
            self.ledger.days.update(part.days)
            self.ledger.repaired += part.repaired
            self.ledger.redacted.update(part.redacted)
            self.shelf.add(part.name, part.lines, part.facts, part.groups, judged=part.judged)
            self.tell(part.rows)
        self.shelf.ends.append(len(self.shelf))

    def put_graded(
        self, side: Side, sources: Sequence[tuple[str, Importer]], reader: Reader, *, most: int | None
    ) -> None:
        """The pairs that the opinions of some sources make."""
        policy, ledger = policy_of(self.settings.grade), self.ledger
        workers = 1 if most else max(processes_for(path, self.workers) for path, _ in sources)
        if workers > 1:
            reader.tokenizer.writer.learn_usual()
        with tempfile.TemporaryDirectory(dir=self.spool) as folder, processes.crew(workers) as crew:
            rows, refused = ledger.rows, sum(ledger.reasons.values())
            found = pooling.pool(
                sources, ledger, crew=crew, folder=Path(folder), most=most, tell=self.tell, gold=self.gold
            )
            refused = sum(ledger.reasons.values()) - refused
            assert ledger.rows - rows == found.rows + refused, "a row was lost"
            known = pooling.surveyed(found, policy, crew=crew, seed=self.settings.seed)
            forms = {importer.form for _, importer in sources}
            tally = Tally(policy, thumbs="unpaired" in forms)
            walk = pooling.graded(
                found,
                policy,
                known,
                tally,
                crew=crew,
                reader=reader,
                unpaired=ledger.unpaired,
                gold=self.gold,
                rated=forms.isdisjoint(OTHER_POINTS),
            )
            with contextlib.closing(walk) as parts:
                self.put(parts)
        self.judged.append(Judged(side, found, known, tally))


def processes_for(path: str, workers: int) -> int:
    """How many read a path: one more for every `ALONE` bytes, as each takes a while to start."""
    size = sum(os.path.getsize(file) for file in storage.files(path)) if "://" not in path else 0
    return max(1, min(workers, size // ALONE))


def by_form(paths: Sequence[str], data: DataSettings) -> tuple[str, ...]:
    """The sources, and instead of a folder whose files are of several forms those files."""
    found: list[str] = []
    for path in paths:
        files = []
        with contextlib.suppress(InputError):  # of a folder without files, which is said when it is read
            files = storage.files(path)
        split = len(files) > 1 and data.format == "auto" and len(forms_of(files, data)) > 1
        found += files if split else [path]
    return tuple(found)


def forms_of(files: Sequence[str], data: DataSettings) -> set[Form]:
    """The forms that the first rows of some files look like; a file that looks like nothing is of any."""
    seen = {recognized(plain(first_of(file, most=TELLING)), columns=data.columns) for file in files}
    forms = {form for form in seen if form is not None}
    return forms - {"druthers"} if "trl" in forms else forms


def first_of(path: str, *, most: int = LOOKS) -> list[Line]:
    """The first lines of a source, up to a fault of the file, which is said when all are read."""
    found: list[Line] = []
    with contextlib.suppress(InputError), contextlib.closing(storage.lines(path)) as lines:
        found.extend(itertools.islice(lines, most))  # also those before the fault
    return found


def plain(lines: Sequence[Line]) -> list[Row]:
    """The rows of lines without fault."""
    return [line.row for line in lines if not line.fault]


def form_in(path: str, first: Sequence[Line], data: DataSettings) -> Form:
    """The form that is set, or that of the first rows.

    Raises InputError for rows that look like none, unless bad rows are dropped.
    """
    if data.format != "auto":
        return data.format
    rows = plain(first[:TELLING])
    found = recognized(rows, columns=data.columns)
    told = found or not rows or SIDES.intersection(name for row in rows for name in (*row, *data.columns.values()))
    if not told and data.bad_rows == "stop":
        raise InputError(f"{storage.shown(path)}: {unrecognized(rows)}")
    return found or "trl"


def check_columns(columns: Mapping[str, str], rows: Sequence[Row]) -> None:
    """Raises InputError for a mapped column that none of the first rows has: a misspelt one would go unseen.

    >>> check_columns({"frge": "prompt"}, [{"frage": "Name a fruit."}])
    Traceback (most recent call last):
    druthers.records.InputError: data.columns.frge: none of the first rows (1) has that column; did you mean 'frage'?
    """
    there = {name for row in rows for name in names_in(row)}
    for name in columns:
        if there and name not in there and all(reached(row, name) is None for row in rows):
            remedy = offer(name, sorted(there))
            raise InputError(f"data.columns.{name}: none of the first rows ({len(rows):,}) has that column{remedy}")


def names_in(row: Row) -> Iterator[str]:
    """The columns of a row, and those of the fields of a project inside it."""
    yield from row
    for inner in INNER.values():
        if isinstance(row.get(inner), dict):
            yield from row[inner]


def prompts_of(first: Iterable[Line], importer: Importer) -> list[Sequence[Message]]:
    """The prompts of some lines."""
    read = [found.items for line in first if isinstance(found := imported(line, importer), Imported)]
    return [item.prompt for items in read for item in items]
