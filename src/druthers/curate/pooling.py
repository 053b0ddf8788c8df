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
from dataclasses import dataclass, field, replace
from functools import cached_property
from math import nan
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from druthers.curate import gather
from druthers.curate.gather import Body, Deal, Item, Part, Placed, dealt, joined, together
from druthers.curate.gold import Gold, Score, add_scores
from druthers.curate.grading import UNMADE, Aside, Graded, Judge, Policy, Survey, grade_together, judges_of
from druthers.curate.importers import GATHERED, Importer, RowFault
from druthers.curate.ledger import Ledger, Refusal, refusal
from druthers.curate.nearness import Places
from druthers.curate.opinions import Misfit, spoken
from druthers.curate.quality import bias, chosen
from druthers.curate.quality.bias import Bias
from druthers.curate.reading import Job, Made, Read, Reader, jobs
from druthers.curate.surface import surface
from druthers.curate.survey import Heard
from druthers.processes import Crew
from druthers.records import Candidates, Finding, InputError, content_id
from druthers.storage import Run, encode, full_disk, parsed

AT_ONCE = 1000
"""Pairs that can be made of the items that a process gets at once, at most, where it gets more than one."""
BYTES = 1 << 20
"""Bytes of such items."""
HEX = 15
"""Digits of a prompt's hash that tell it from others."""


# ---------------------------------------------------------------- rows to items


@dataclass
class Seen:
    """What choices say of the order in which responses are shown, and of both answers.

    Of every choice: `won`, 1 where the response shown first was chosen and 1/2 for a tie; `differ`, three numbers, how
    the first differs from the second (`bias.differences`); `bad`, whether both were called so; `asked`, the prompt; and
    `writers`, who wrote the two (by the places in `sources`, -1 where nobody is named). `kinds`: whether some tie was
    called good or bad at all.
    """

    won: array[float] = field(default_factory=lambda: array("f"))
    differ: array[float] = field(default_factory=lambda: array("f"))
    bad: array[int] = field(default_factory=lambda: array("b"))
    asked: array[int] = field(default_factory=lambda: array("q"))
    writers: array[int] = field(default_factory=lambda: array("i"))
    sources: dict[str, int] = field(default_factory=dict)
    kinds: bool = False

    def see(self, prompt: list[Body], responses: list[Body], opinions: Iterable[tuple[Body, Sequence[int]]]) -> None:
        """Count the choices of an item; with each opinion go the places of the responses it has a worth for."""
        choices = [each for each in opinions if each[0]["scale"] == "choice"]
        if not choices:
            return
        key, known = int(content_id(prompt)[:HEX], 16), dict[tuple[int, int], list[float]]()
        for opinion, places in choices:
            both = zip(places, opinion["worth"], strict=True)
            (i, one), (j, other) = ((place, worth) for place, worth in both if worth is not None)
            if (i, j) not in known:
                known[i, j] = apart(responses[i]["content"], responses[j]["content"])
            tie = opinion.get("tie", "")
            self.won.append(0.5 if one == other else float(one > other))
            self.differ.extend(known[i, j])
            self.bad.append(tie == "both_bad")
            self.asked.append(key)
            self.writers.extend([self.writer(responses[at].get("source", "")) for at in (i, j)])
            self.kinds |= bool(tie)

    def writer(self, source: str) -> int:
        """The place of a source."""
        return self.sources.setdefault(source, len(self.sources)) if source else -1

    def take(self, other: Seen) -> None:
        """Put the choices of others behind these."""
        place = [*map(self.writer, other.sources), -1]
        self.writers.extend([place[at] for at in other.writers])
        for column in ("won", "differ", "bad", "asked"):
            getattr(self, column).extend(getattr(other, column))
        self.kinds |= other.kinds

    def biases(self) -> Bias | None:
        """What beside their worth decides choices, the place where a response is shown first of all; None for none."""
        if not len(self.won):
            return None
        differ = np.frombuffer(self.differ, dtype=np.float32).reshape(-1, len(bias.FEATURES))
        asked = np.frombuffer(self.asked, dtype=np.int64)
        return bias.bias(differ, np.frombuffer(self.won, dtype=np.float32), asked, position=True)

    def both_bad(self) -> list[Finding]:
        """D11.both_bad; nothing where no tie says of what kind it is, as where nobody was asked."""
        if not self.kinds:
            return []
        writers = np.frombuffer(self.writers, dtype=np.int32).reshape(-1, 2).T
        prompts = np.frombuffer(self.asked, dtype=np.int64)
        return chosen.both_bad(np.frombuffer(self.bad, dtype=np.int8), writers, prompts, names=list(self.sources))


def apart(one: str, other: str) -> list[float]:
    """How one response differs from another on the surface, in the order of `bias.FEATURES`.

    >>> apart("Yes.", "- No.")
    [-1.0, -1.0, 0.0]
    """
    found: list[float] = bias.differences(np.array([surface(one)]), np.array([surface(other)]))[0].tolist()
    return found


@dataclass
class Items:
    """Some items, a line each, with what is to be known of them: the order they stand in, file and line, and from how
    many pairs of responses pairs can be made; and what their choices and the answers on gold items among them say.
    """

    lines: list[bytes] = field(default_factory=list)
    order: array[int] = field(default_factory=lambda: array("q"))
    where: list[str] = field(default_factory=list)
    pairs: array[int] = field(default_factory=lambda: array("I"))
    rows: int = 0
    seen: Seen = field(default_factory=Seen)
    scores: dict[str, Score] = field(default_factory=dict)

    def add(self, order: int, where: str, rows: int, body: Body) -> None:
        """One more item."""
        self.lines.append(encode(body))
        self.order.append(order)
        self.where.append(where)
        self.pairs.append(len(body["responses"]) * (len(body["responses"]) - 1) // 2)
        self.rows += rows


@dataclass
class Sorted:
    """What became of some rows: items that stand by themselves, rows of others by part, and the refusals; `days` counts
    the rows that say when they were made."""

    rows: int = 0
    items: Items = field(default_factory=Items)
    parts: dict[int, bytes] = field(default_factory=dict)
    refusals: list[Refusal] = field(default_factory=list)
    ignored: Counter[str] = field(default_factory=Counter)
    days: Counter[int] = field(default_factory=Counter)


@dataclass(frozen=True)
class Sorter:
    """What a process does first, with rows of any of some sources."""

    importers: Sequence[Importer]
    gold: Gold | None = None

    def __call__(self, job: tuple[int, int, Job]) -> Sorted:
        """The rows of a lot, whose number comes first, then that of its source; raises the InputError it is given."""
        lot, source, run = job
        if isinstance(run, InputError):
            raise run
        assert not isinstance(run, Made), "pairs are not sorted"
        done, importer = Sorted(), self.importers[source]
        placed = list(self.read(run, importer, done))
        if importer.form in GATHERED:
            done.parts = dealt(placed, lot=lot)
        else:
            done.items = self.whole(placed, lot=lot)
        return done

    def read(self, run: Run, importer: Importer, done: Sorted) -> Iterator[Placed]:
        """Every row that is one; what is to be said of the others goes to `done`."""
        for line in parsed(run):
            done.rows += 1
            try:
                read = importer.read(line)
            except RowFault as fault:
                done.refusals.append(refusal(line, reason=fault.reason, why=str(fault)))
                continue
            done.ignored.update(read.ignored)
            if read.day is not None:
                done.days[read.day] += 1
            for item in read.items:
                assert isinstance(item, Candidates), "the row is a pair"
                yield Placed(item, line.where)

    def whole(self, placed: Iterable[Placed], *, lot: int) -> Items:
        """Items that stand by themselves."""
        done = Items()
        for each in placed:
            left = each if self.gold is None else without(each, self.gold, done.scores, order=lot)
            body = left.item.line()
            places = range(len(body["responses"]))
            done.seen.see(body["prompt"], body["responses"], ((said, places) for said in body.get("opinions", ())))
            done.add(lot, left.where, left.rows, body)
        return done


@dataclass(frozen=True)
class Joiner:
    """What a process does next: the items of one part."""

    gold: Gold | None = None

    def __call__(self, part: Part) -> Items:
        """What is said of each prompt, as one item where its responses are not too many."""
        done = Items()
        for order, items in joined(part.rows()):
            left = items
            if self.gold is not None and self.gold.asks(items[0].head["prompt"]):
                left = [Item.of(without(item.placed(), self.gold, done.scores, order=order)) for item in items]
            for item in left:
                done.seen.see(item.head["prompt"], item.responses, item.opinions)
            for item in together(left):
                done.add(order, item.where, item.rows, item.body())
        return done


def without(placed: Placed, gold: Gold, scores: dict[str, Score], *, order: int) -> Placed:
    """An item without its answers on gold items, which go to `scores`; InputError where the policy cannot sum."""
    try:
        return gold.take(placed, scores, order=order)
    except Misfit as fault:
        raise InputError(f"{placed.where}: {fault}") from None


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
    """The items of some sources in a file, where each began, and what their choices and the answers on gold say."""

    path: Path
    names: dict[str, int] = field(default_factory=dict)
    name: array[int] = field(default_factory=lambda: array("I"))
    lines: array[int] = field(default_factory=lambda: array("q"))
    order: array[int] = field(default_factory=lambda: array("q"))
    sizes: array[int] = field(default_factory=lambda: array("q"))
    pairs: array[int] = field(default_factory=lambda: array("I"))
    seen: Seen = field(default_factory=Seen)
    scores: dict[str, Score] = field(default_factory=dict)
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
        self.order.extend(items.order)
        self.pairs.extend(items.pairs)
        self.seen.take(items.seen)
        add_scores(self.scores, items.scores)
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
    gold: Gold | None = None,
) -> Pool:
    """Everything that is said in some sources, by prompt where their form takes that; bad rows are booked.

    `folder` is an empty one, which must stay while the pool is used. Answers on gold items are scored and taken out. Of
    each source the first `most` rows are read. Raises InputError for a bad file, for a bad row where those stop the
    run, and for criteria of a gold item that the policy cannot sum.
    """
    found, deal = Pool(folder / "items"), Deal(folder, gather.MEMORY)
    found.path.touch()
    # what stands by itself comes first
    ordered = sorted(sources, key=lambda source: source[1].form in GATHERED)
    known = None if gold is None else gold.unscored()
    sorter = Sorter([importer for _, importer in ordered], known)
    with closing(crew.over(sorter, lots([path for path, _ in ordered], most=most))) as walk:
        for done in walk:
            ledger.rows += done.rows
            for refused in done.refusals:
                ledger.refuse(refused)
            ledger.ignored.update(done.ignored)
            ledger.days.update(done.days)
            found.add(done.items)
            deal.add(done.parts)
            tell(done.rows)
    with closing(crew.over(Joiner(known), deal.parts())) as walk_of_parts:
        for items in walk_of_parts:
            found.add(items)
    if gold is not None:
        gold.add(found.scores)
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

    `unmade` are the items that gave no pair, `doubted` lines about items by annotator. `unpaired` counts by reason the
    comparisons that gave none where others of their item did, `aside` are lines about those, until they are written.
    Of a source with thumbs (`thumbs`), `alone` counts those that make no pair: thumbs up and down, the answers and the
    prompts.
    """

    policy: Policy
    thumbs: bool = False
    items: int = 0
    unmade: int = 0
    pairs: int = 0
    reasons: Counter[str] = field(default_factory=Counter)
    unpaired: Counter[str] = field(default_factory=Counter)
    aside: list[bytes] = field(default_factory=list)
    alone: Counter[str] = field(default_factory=Counter)
    doubted: dict[str, list[bytes]] = field(default_factory=dict)

    def as_dict(self) -> dict[str, Any]:
        """As it is written to `summary.json`."""
        return {
            "items": self.items,
            "unmade": self.unmade,
            "comparisons": self.pairs + sum(self.reasons.values()),
            "pairs": self.pairs,
            "reasons": dict(sorted(self.reasons.items())),
            "unpaired": dict(sorted(self.unpaired.items())),
            "policy": self.policy.version,
        } | ({"alone": dict(sorted(self.alone.items()))} if self.alone else {})

    def take(self, other: Tally) -> None:
        """What became of the items behind these; lines about comparisons are left to the caller."""
        self.items += other.items
        self.unmade += other.unmade
        self.pairs += other.pairs
        self.reasons.update(other.reasons)
        self.unpaired.update(other.unpaired)
        self.alone.update(other.alone)
        for annotator, lines in other.doubted.items():
            self.doubted.setdefault(annotator, []).extend(lines)

    def __add__(self, other: Tally) -> Tally:
        """What became of both; who is doubted is each one's own."""
        return Tally(
            self.policy,
            self.thumbs or other.thumbs,
            items=self.items + other.items,
            unmade=self.unmade + other.unmade,
            pairs=self.pairs + other.pairs,
            reasons=self.reasons + other.reasons,
            unpaired=self.unpaired + other.unpaired,
            alone=self.alone + other.alone,
        )

    def add(self, made: Graded, *, where: str) -> None:
        """Count an item, and note the pairs in which somebody is probably wrong."""
        self.items += 1
        self.unmade += not made.pairs
        self.pairs += len(made.pairs)
        self.reasons.update(made.reasons)
        for each in made.aside if made.pairs else ():
            self.unpaired[each.reason] += 1
            self.aside.append(encode(unpaired(made.row, each, where=where)))
        if self.thumbs and not made.pairs:
            self.alone.update(thumbs_on(made.row))
        for annotator in made.doubted:
            about = {"where": where, "annotator": annotator, "pair_ids": [pair.id for pair in made.pairs]}
            self.doubted.setdefault(annotator, []).append(encode(about))


def thumbs_on(item: Candidates) -> dict[str, int]:
    """Counts of thumbs up and down on the responses of one prompt, of the responses, and of the prompt itself.

    Nothing where anything else was said of it.

    >>> from druthers.records import user
    >>> said = [{"scale": "rating", "worth": worth} for worth in ((1.0, None), (None, 1.0), (None, 0.0))]
    >>> two = [{"content": "Plum."}, {"content": "Carrot."}]
    >>> thumbs_on(Candidates(prompt=user("Name a fruit."), responses=two, opinions=said))
    {'up': 2, 'down': 1, 'answers': 2, 'prompts': 1}
    """
    known = [[worth for worth in opinion.worth if worth is not None] for opinion in item.opinions]
    if not known or any(worths not in ([0.0], [1.0]) for worths in known):
        return {}
    up = known.count([1.0])
    return {"up": up, "down": len(known) - up, "answers": len(item.responses), "prompts": 1}


def unpaired(row: Candidates, aside: Aside, *, where: str) -> Body:
    """A comparison that gave no pair, as it is written to `unpaired.jsonl`."""
    line = row.line()
    about = {"where": where, "reason": aside.reason, "why": UNMADE[aside.reason]}
    about |= {"criterion": aside.criterion} if aside.criterion else {}
    about |= {name: line[name] for name in ("prompt", "group") if name in line}
    return about | {"responses": [line["responses"][place] for place in (aside.first, aside.second)]}


@dataclass(frozen=True)
class Grader:
    """What a process does to make pairs of items, and with the pairs.

    `thumbs` says whether there are thumbs among the items, `rated` whether the ratings are on a scale on which chosen
    responses can be held against one another.
    """

    path: Path
    policy: Policy
    known: Survey
    reader: Reader
    gold: Gold | None = None
    thumbs: bool = False
    rated: bool = False

    @cached_property
    def judges(self) -> dict[str, Judge]:
        """Those of the survey."""
        return judges_of(self.known, self.policy)

    def __call__(self, span: Span) -> tuple[Read, Tally]:
        """The pairs of some items in order; an item that gives none is refused for the reason that is met most.

        Raises InputError for items to which the policy cannot be applied.
        """
        rows, made = read_items(self.path, span), Made(span.name)
        tally = Tally(self.policy, self.thumbs)
        try:
            for line, each in zip(span.lines.tolist(), grade_together(rows, self.policy, self.judges), strict=True):
                self.put(each, f"{span.name}:{line}", made, tally)
        except Misfit as fault:
            raise misplaced(fault, rows, span) from None
        return self.reader(made), tally

    def put(self, graded: Graded, where: str, made: Made, tally: Tally) -> None:
        """What became of one item; the silence about a gold item is due to its answers being taken out."""
        if self.gold is not None and "unjudged" in graded.reasons and not graded.pairs and self.gold.holds(graded.row):
            graded = replace(graded, reasons={"gold": graded.reasons["unjudged"]})
        tally.add(graded, where=where)
        made.pairs.extend((where, pair) for pair in graded.pairs)
        made.ratings.extend(graded.ratings if self.rated else [nan] * len(graded.pairs))
        if not graded.pairs:
            reason = max(graded.reasons, key=lambda code: (graded.reasons[code], code))
            made.refusals.append(Refusal(where, reason, UNMADE[reason], graded.row.line()))


def graded(
    found: Pool,
    policy: Policy,
    known: Survey,
    tally: Tally,
    *,
    crew: Crew,
    reader: Reader,
    unpaired: BinaryIO,
    gold: Gold | None = None,
    rated: bool = False,
) -> Generator[Read]:
    """The pairs of all items, read; what became of the items goes to `tally`, comparisons without a pair to `unpaired`.

    `unpaired` are those of items of which other comparisons gave a pair; `rated` is that of `Grader`.
    """
    known_gold = None if gold is None else gold.unscored()
    grader = Grader(found.path, policy, known, reader, known_gold, tally.thumbs, rated)
    with closing(crew.over(grader, found.spans())) as walk:
        for read, part in walk:
            unpaired.writelines(part.aside)
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
