"""Rows to pairs with everything that later steps ask of them, many at a time, so that several processes can do it.

What is decided about pairs is decided from numbers alone: a row is read, checked, tokenized and hashed once, its line
goes to a file, and only its `Facts` stay in memory.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Generator, Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

from druthers import processes, storage
from druthers.blocks import BlockTokenizer
from druthers.curate.facts import Facts, facts, nothing
from druthers.curate.importers import Imported, Importer, RowFault
from druthers.curate.importers.rated import Rated
from druthers.curate.ledger import Refusal, number, refusal
from druthers.curate.nearness import Hashes
from druthers.curate.repair import kinds_in, redacted
from druthers.records import InputError, Pair
from druthers.storage import Line, Run, encode, parsed

RUN = 4 << 20
"""Bytes of text that are read at once."""


@dataclass(frozen=True)
class Made:
    """Pairs that were made of opinions on some items of one file, each with its place, the mean ratings of their chosen
    responses (NaN where there is none), and the items that gave none."""

    name: str
    pairs: list[tuple[str, Pair]] = field(default_factory=list)
    ratings: list[float] = field(default_factory=list)
    refusals: list[Refusal] = field(default_factory=list)


Job = Run | Made | InputError
"""Rows to be read, pairs that were made of opinions, or the fault of a file, which is raised in its turn."""


@dataclass
class Read:
    """What became of some rows: the pairs among them, as lines and as facts, and the refusals.

    `rows` are none where the pairs were made of opinions (`judged`), whose rows are counted before. `repaired` pairs
    had personal data, of which `redacted` counts the kinds. `days` counts the rows that say when they were
    made.
    """

    name: str
    rows: int
    lines: bytes
    facts: Facts
    refusals: list[Refusal]
    groups: tuple[str, ...] = ()
    ignored: Counter[str] = field(default_factory=Counter)
    joined: int = 0
    judged: bool = False
    repaired: int = 0
    redacted: Counter[str] = field(default_factory=Counter)
    days: Counter[int] = field(default_factory=Counter)


class Found(NamedTuple):
    """A pair with the line it stands on and how its sides are rated there."""

    line: Line
    pair: Pair
    rated: Rated


@dataclass(frozen=True)
class Reader:
    """What a process does with rows of one source; `shared` is what many prompts have (`facts.form_of`).

    `looked_at` are the ids of pairs whose personal data stays, as somebody found that it is none.
    """

    importer: Importer
    tokenizer: BlockTokenizer
    seed: int
    shared: Hashes
    personal: Literal["keep", "redact", "drop"] = "keep"
    looked_at: frozenset[str] = frozenset()

    def __call__(self, job: Job) -> Read:
        """Raises the InputError it is given."""
        if isinstance(job, InputError):
            raise job
        done = Read(name_of(job), 0, b"", nothing(), [])
        if isinstance(job, Made):
            done.judged = True
            done.refusals.extend(job.refusals)
            found = [
                Found(Line(where, {}), pair, Rated(rating))
                for (where, pair), rating in zip(job.pairs, job.ratings, strict=True)
            ]
        else:
            found = self.read(job, done)
        if self.personal != "keep":
            found = self.cleared(found, done)
        block, refused = self.tokenizer.sort([one.pair for one in found])
        for i, error in refused.items():
            line, pair, _ = found[i]
            done.refusals.append(Refusal(line.where, error.reason, str(error), line.row or pair.line()))
        done.refusals.sort(key=lambda each: each.number)
        kept = [each for i, each in enumerate(found) if i not in refused]
        written = [encode(one.pair.line()) for one in kept]
        done.lines = b"".join(written)
        known = facts(
            [one.pair for one in kept], block, seed=self.seed, form=self.shared, rated=[one.rated for one in kept]
        )
        done.facts = known.placed([number(one.line.where) for one in kept], [len(line) for line in written])
        done.groups = block.groups
        return done

    def cleared(self, found: Sequence[Found], done: Read) -> list[Found]:
        """Pairs without personal data: those that hold some are redacted or refused, and then written as pairs of ours.

        So they can be put back.
        """
        clean: list[Found] = []
        for line, pair, rated in found:
            kinds = Counter() if pair.id in self.looked_at else kinds_in(pair)
            try:
                if kinds and self.personal == "drop":
                    listed = ", ".join(f"{count} {kind}" for kind, count in sorted(kinds.items()))
                    raise RowFault("personal", f"holds personal data or secrets ({listed}), see data.personal")
                clean.append(Found(line, redacted(pair) if kinds else pair, rated))
                done.redacted.update(kinds)
                done.repaired += bool(kinds)
            except RowFault as fault:
                done.refusals.append(Refusal(line.where, fault.reason, str(fault), pair.line()))
        return clean

    def read(self, run: Run, done: Read) -> list[Found]:
        """The rows that are pairs; what is to be said of the others goes to `done`."""
        found: list[Found] = []
        for line in parsed(run):
            done.rows += 1
            read = imported(line, self.importer)
            if isinstance(read, RowFault):
                done.refusals.append(refusal(line, reason=read.reason, why=str(read)))
                continue
            done.ignored.update(read.ignored)
            done.joined += read.joined
            if read.day is not None:
                done.days[read.day] += 1
            found.append(Found(line, read.pair, read.rated))
        return found


def name_of(job: Run | Made) -> str:
    """The file of some rows."""
    return job[0].where.rpartition(":")[0] if isinstance(job, list) else job.name


def imported(line: Line, importer: Importer) -> Imported | RowFault:
    """One row, or why it is none."""
    try:
        return importer.read(line)
    except RowFault as fault:
        return fault


def read(jobs: Iterable[Job], reader: Reader, *, workers: int) -> Generator[Read]:
    """All jobs in order, done by `workers` processes; raises InputError for a bad file, in its turn."""
    if workers > 1:
        reader.tokenizer.writer.learn_usual()
    with closing(processes.over(reader, jobs, count=workers)) as found:
        yield from found


def jobs(path: str, *, most: int | None = None) -> Iterator[Job]:
    """The rows of a path in runs, or the first `most` of them; a fault of a file comes behind the rows before it."""
    try:
        if most is not None:
            with closing(storage.lines(path)) as lines:
                yield list(itertools.islice(lines, most))
            return
        yield from storage.runs(path, size=RUN)
    except InputError as error:
        yield error
