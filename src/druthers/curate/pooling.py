"""Rows that hold opinions: read, pooled by prompt, and graded to pairs, out of core, by several processes.

What people said of a prompt may stand anywhere in a source, and what it is worth depends on what they said elsewhere.
So there are four walks, each by all processes: rows are read, and those that belong together dealt to parts; each part
is joined to items, which go to a file; what was said of them is surveyed; and the pairs are made. Between the walks
only numbers stand in memory. What comes out depends on neither the processes nor how much each did at once.
"""

from __future__ import annotations

import json
import os
from array import array
from collections import Counter
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from druthers.curate import gather
from druthers.curate.gather import Deal, Part, Placed, dealt, joined, together
from druthers.curate.grading import UNMADE, Graded, Judge, Policy, Survey, grade_together, judges_of
from druthers.curate.importers import GATHERED, Importer, RowFault
from druthers.curate.ledger import Ledger, Refusal, refusal
from druthers.curate.nearness import Places
from druthers.curate.opinions import Misfit, spoken
from druthers.curate.quality import clusters
from druthers.curate.reading import Job, Made, Read, Reader, jobs
from druthers.curate.survey import Heard
from druthers.processes import Crew
from druthers.records import Candidates, InputError, content_id
from druthers.stats import Estimate, Undefined
from druthers.storage import encode, full_disk, parsed

AT_ONCE = 1000
"""Pairs that can be made of the items that a process gets at once, at most, where it gets more than one."""
BYTES = 1 << 20
"""Bytes of such items."""
HEX = 15
"""Digits of a prompt's hash that tell it from others."""


# ---------------------------------------------------------------- rows to items


@dataclass
class Items:
    """Some items, a line each, with what is to be known of them: the order they stand in, file and line, bytes, and
    from how many pairs of responses pairs can be made; and of choices as shown whether the first won, and the prompt.
    """

    lines: list[bytes] = field(default_factory=list)
    order: array[int] = field(default_factory=lambda: array("q"))
    where: list[str] = field(default_factory=list)
    pairs: array[int] = field(default_factory=lambda: array("I"))
    rows: int = 0
    first: array[int] = field(default_factory=lambda: array("b"))
    prompt: array[int] = field(default_factory=lambda: array("q"))

    def add(self, order: int, where: str, rows: int, body: dict[str, Any]) -> None:
        """One more item."""
        self.lines.append(encode(body))
        self.order.append(order)
        self.where.append(where)
        self.pairs.append(len(body["responses"]) * (len(body["responses"]) - 1) // 2)
        self.rows += rows

    def see(self, prompt: list[dict[str, Any]], opinions: Iterable[dict[str, Any]]) -> None:
        """Count the choices of a prompt whose responses stand in the order shown."""
        key = None
        for opinion in opinions:
            if opinion["scale"] == "choice":
                one, other = (worth for worth in opinion["worth"] if worth is not None)
                if one != other:
                    key = int(content_id(prompt)[:HEX], 16) if key is None else key
                    self.first.append(one > other)
                    self.prompt.append(key)


@dataclass
class Sorted:
    """What became of some rows: items that stand by themselves, rows of others by part, and the refusals."""

    rows: int = 0
    items: Items = field(default_factory=Items)
    parts: dict[int, bytes] = field(default_factory=dict)
    refusals: list[Refusal] = field(default_factory=list)
    ignored: Counter[str] = field(default_factory=Counter)


@dataclass(frozen=True)
class Sorter:
    """What a process does first, with rows of any of some sources."""

    importers: Sequence[Importer]

    def __call__(self, job: tuple[int, int, Job]) -> Sorted:
        """The rows of a lot, whose number comes first, then that of its source; raises the InputError it is given."""
        lot, source, run = job
        if isinstance(run, InputError):
            raise run
        assert not isinstance(run, Made), "pairs are not sorted"
        done, placed, importer = Sorted(), [], self.importers[source]
        for line in parsed(run):
            done.rows += 1
            try:
                read = importer.read(line)
            except RowFault as fault:
                done.refusals.append(refusal(line, reason=fault.reason, why=str(fault)))
                continue
            done.ignored.update(read.ignored)
            for item in read.items:
                assert isinstance(item, Candidates), "the row is a pair"
                placed.append(Placed(item, line.where))
        if importer.form in GATHERED:
            done.parts = dealt(placed, lot=lot)
            return done
        for each in placed:
            body = each.item.line()
            done.items.see(body["prompt"], body.get("opinions", ()))
            done.items.add(lot, each.where, each.rows, body)
        return done


def join(part: Part) -> Items:
    """What a process does next: the items of one part."""
    done = Items()
    for order, items in joined(part.rows()):
        for item in items:
            done.see(item.head["prompt"], (opinion for opinion, _ in item.opinions))
        for item in together(items):
            done.add(order, item.where, item.rows, item.body())
    return done


# ---------------------------------------------------------------- items in a file


@dataclass(frozen=True)
class Span:
    """Items that are taken together: their file, and of each the line in it, and where it stands in the pool."""

    name: str
    lines: Places
    starts: Places
    sizes: Places


@dataclass
class Pool:
    """The items of some sources in a file, where each began, and how often the response shown first was chosen."""

    path: Path
    names: dict[str, int] = field(default_factory=dict)
    name: array[int] = field(default_factory=lambda: array("I"))
    lines: array[int] = field(default_factory=lambda: array("q"))
    order: array[int] = field(default_factory=lambda: array("q"))
    sizes: array[int] = field(default_factory=lambda: array("q"))
    pairs: array[int] = field(default_factory=lambda: array("I"))
    first: array[int] = field(default_factory=lambda: array("b"))
    prompt: array[int] = field(default_factory=lambda: array("q"))
    rows: int = 0

    def add(self, items: Items) -> None:
        """Write some items down; InputError where the disk is full."""
        with full_disk(str(self.path.parent)), self.path.open("ab") as file:
            file.writelines(items.lines)
        self.sizes.extend(map(len, items.lines))
        for where in items.where:
            name, _, line = where.rpartition(":")
            self.name.append(self.names.setdefault(name, len(self.names)))
            self.lines.append(int(line))
        for column in ("order", "pairs", "first", "prompt"):
            getattr(self, column).extend(getattr(items, column))
        self.rows += items.rows

    def __len__(self) -> int:
        return len(self.lines)

    def spans(self) -> Iterator[Span]:
        """All items in their order, as many together as are worth the way to another process."""
        if not len(self):
            return
        size_N = np.frombuffer(self.sizes, dtype=np.int64)
        start_N = np.cumsum(size_N) - size_N
        order_N = np.argsort(np.frombuffer(self.order, dtype=np.int64), kind="stable")
        name_N = np.frombuffer(self.name, dtype=np.uint32)[order_N]
        line_N, start_N = np.frombuffer(self.lines, dtype=np.int64)[order_N], start_N[order_N]
        share_N = np.frombuffer(self.pairs, dtype=np.uint32)[order_N] / AT_ONCE
        size_N = size_N[order_N]
        lot_N = np.floor(np.cumsum(np.maximum(share_N, size_N / BYTES)))
        cuts = np.flatnonzero((lot_N[1:] != lot_N[:-1]) | (name_N[1:] != name_N[:-1])) + 1
        names = list(self.names)
        for begin, end in zip([0, *cuts.tolist()], [*cuts.tolist(), len(order_N)], strict=True):
            some = slice(begin, end)
            yield Span(names[name_N[begin]], line_N[some], start_N[some], size_N[some])

    def position(self) -> Estimate:
        """By how many points more often than half the time the response that was shown first is chosen."""
        if not len(self.first):
            return Undefined("no choice between two responses")
        share = clusters.share(np.frombuffer(self.first, dtype=np.int8), np.frombuffer(self.prompt, dtype=np.int64))
        return share if isinstance(share, Undefined) else share.map(lambda of: 100 * (of - 0.5))


def read_items(path: Path, span: Span) -> list[Candidates]:
    """The items of a span."""
    with path.open("rb", buffering=0) as file:
        places = zip(span.sizes.tolist(), span.starts.tolist(), strict=True)
        return [Candidates.model_validate(json.loads(os.pread(file.fileno(), *place))) for place in places]


def misplaced(fault: Misfit, rows: Sequence[Candidates], span: Span) -> InputError:
    """What a policy cannot be applied to, said with its file and line."""
    at = next(i for i, row in enumerate(rows) if row is fault.row)
    return InputError(f"{span.name}:{span.lines[at]}: {fault}")


def pool(
    sources: Sequence[tuple[str, Importer]],
    ledger: Ledger,
    *,
    crew: Crew,
    folder: Path,
    tell: Callable[[int], None],
    most: int | None = None,
) -> Pool:
    """Everything that is said in some sources, by prompt where their form takes that; bad rows are booked.

    `folder` is an empty one, which must stay while the pool is used. Of each source the first `most` rows are read.
    Raises InputError for a bad file, and for a bad row where those stop the run.
    """
    found, deal = Pool(folder / "items"), Deal(folder, gather.MEMORY)
    found.path.touch()
    # what stands by itself comes first
    ordered = sorted(sources, key=lambda source: source[1].form in GATHERED)
    sorter = Sorter([importer for _, importer in ordered])
    with closing(crew.over(sorter, lots([path for path, _ in ordered], most=most))) as walk:
        for done in walk:
            ledger.rows += done.rows
            for refused in done.refusals:
                ledger.refuse(refused)
            ledger.ignored.update(done.ignored)
            found.add(done.items)
            deal.add(done.parts)
            tell(done.rows)
    with closing(crew.over(join, deal.parts())) as walk_of_parts:
        for items in walk_of_parts:
            found.add(items)
    return found


def lots(paths: Sequence[str], *, most: int | None) -> Iterator[tuple[int, int, Job]]:
    """The rows of some sources, with the number of each lot and that of its source."""
    lot = 0
    for source, path in enumerate(paths):
        for run in jobs(path, most=most):
            yield lot, source, run
            lot += 1


# ---------------------------------------------------------------- items to pairs


@dataclass(frozen=True)
class Hearer:
    """What a process does to survey items."""

    path: Path
    policy: Policy

    def __call__(self, span: Span) -> Heard:
        """What was said of some items; InputError where the policy cannot be applied to one."""
        heard, rows = Heard(self.policy), read_items(self.path, span)
        try:
            for row in rows:
                heard.add(row)
        except Misfit as fault:
            raise misplaced(fault, rows, span) from None
        return heard


def surveyed(found: Pool, policy: Policy, *, crew: Crew, seed: int) -> Survey:
    """What is learned from all items."""
    whole = Heard(policy)
    with closing(crew.over(Hearer(found.path, policy), found.spans())) as walk:
        for heard in walk:
            whole.take(heard)
    return whole.survey(seed=seed)


@dataclass
class Tally:
    """What became of the comparisons of all items: pairs, or the reasons why not.

    `unmade` are the items that gave no pair, `doubted` lines about items by annotator.
    """

    policy: Policy
    items: int = 0
    unmade: int = 0
    pairs: int = 0
    reasons: Counter[str] = field(default_factory=Counter)
    doubted: dict[str, list[bytes]] = field(default_factory=dict)

    def as_dict(self) -> dict[str, Any]:
        """As it is written to `summary.json`."""
        return {
            "items": self.items,
            "unmade": self.unmade,
            "comparisons": self.pairs + sum(self.reasons.values()),
            "pairs": self.pairs,
            "reasons": dict(sorted(self.reasons.items())),
            "policy": self.policy.version,
        }

    def take(self, other: Tally) -> None:
        """What became of the items behind these."""
        self.items += other.items
        self.unmade += other.unmade
        self.pairs += other.pairs
        self.reasons.update(other.reasons)
        for annotator, lines in other.doubted.items():
            self.doubted.setdefault(annotator, []).extend(lines)

    def __add__(self, other: Tally) -> Tally:
        """What became of both; who is doubted is each one's own."""
        return Tally(
            self.policy,
            items=self.items + other.items,
            unmade=self.unmade + other.unmade,
            pairs=self.pairs + other.pairs,
            reasons=self.reasons + other.reasons,
        )

    def add(self, made: Graded, *, where: str) -> None:
        """Count an item, and note the pairs in which somebody is probably wrong."""
        self.items += 1
        self.unmade += not made.pairs
        self.pairs += len(made.pairs)
        self.reasons.update(made.reasons)
        for annotator in made.doubted:
            about = {"where": where, "annotator": annotator, "pair_ids": [pair.id for pair in made.pairs]}
            self.doubted.setdefault(annotator, []).append(encode(about))


@dataclass(frozen=True)
class Grader:
    """What a process does to make pairs of items, and with the pairs."""

    path: Path
    policy: Policy
    known: Survey
    reader: Reader

    @cached_property
    def judges(self) -> dict[str, Judge]:
        """Those of the survey."""
        return judges_of(self.known, self.policy)

    def __call__(self, span: Span) -> tuple[Read, Tally]:
        """The pairs of some items in order; an item that gives none is refused for the reason that is met most.

        Raises InputError for items to which the policy cannot be applied.
        """
        rows, tally, made = read_items(self.path, span), Tally(self.policy), Made(span.name)
        try:
            for line, each in zip(span.lines.tolist(), grade_together(rows, self.policy, self.judges), strict=True):
                where = f"{span.name}:{line}"
                tally.add(each, where=where)
                made.pairs.extend((where, pair) for pair in each.pairs)
                if not each.pairs:
                    reason = max(each.reasons, key=lambda code: (each.reasons[code], code))
                    made.refusals.append(Refusal(where, reason, UNMADE[reason], each.row.line()))
        except Misfit as fault:
            raise misplaced(fault, rows, span) from None
        return self.reader(made), tally


def graded(found: Pool, policy: Policy, known: Survey, tally: Tally, *, crew: Crew, reader: Reader) -> Generator[Read]:
    """The pairs of all items, read; what became of the items goes to `tally`."""
    with closing(crew.over(Grader(found.path, policy, known, reader), found.spans())) as walk:
        for read, part in walk:
            tally.take(part)
            yield read


def annotators(known: Survey) -> list[dict[str, Any]]:
    """Everyone who judged, by the criterion they judged by, as the data page shows them."""
    found = []
    for _, one in sorted(known.judged.items()):
        for _, person in sorted(one.annotators.items()):
            said = person.as_dict() | {"n": person.votes}
            found.append(said if len(known.judged) == 1 else said | {"criterion": spoken(one.criterion)})
    return found
