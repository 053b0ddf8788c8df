"""Rows that hold opinions: read, pooled by prompt, and graded to pairs, out of core.

What people said of a prompt may stand anywhere in a source, and what it is worth depends on what they said elsewhere.
So all items go to a file first; then one walk over it learns whom to believe and another makes the pairs.
"""

from __future__ import annotations

import contextlib
import itertools
import json
from array import array
from bisect import bisect_right
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from math import nan
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from druthers import storage
from druthers.curate.gather import Placed, gather, together
from druthers.curate.gold import Gold
from druthers.curate.grading import UNMADE, Graded, Policy, Survey, grade
from druthers.curate.importers import GATHERED, Importer, RowFault
from druthers.curate.ledger import Ledger, Refusal, number, refusal
from druthers.curate.opinions import Misfit, spoken
from druthers.curate.quality import bias, chosen
from druthers.curate.quality.bias import Bias
from druthers.curate.surface import surface
from druthers.records import Candidates, Finding, InputError, Pair
from druthers.storage import encode

AT_ONCE = 1000
"""Pairs that are handed on together."""


@dataclass
class Pool:
    """The items of a source in a file, where each began, and what their choices say of the order and of both answers.

    Of every choice: `won`, 1 where the response shown first was chosen and 1/2 for a tie; `differ`, three numbers, how
    the first differs from the second (`bias.differences`); `bad`, whether both were called so; `asked`, the prompt; and
    `writers`, who wrote the two (by the places in `sources`, -1 where nobody is named). `kinds`: whether some tie was
    called good or bad at all.
    """

    file: BinaryIO
    lines: array[int] = field(default_factory=lambda: array("q"))
    starts: list[int] = field(default_factory=list)
    names: list[str] = field(default_factory=list)
    won: array[float] = field(default_factory=lambda: array("f"))
    differ: array[float] = field(default_factory=lambda: array("f"))
    bad: array[int] = field(default_factory=lambda: array("b"))
    asked: array[int] = field(default_factory=lambda: array("q"))
    writers: array[int] = field(default_factory=lambda: array("i"))
    sources: dict[str, int] = field(default_factory=dict)
    kinds: bool = False
    rows: int = 0

    def add(self, placed: Placed) -> None:
        """Write an item down."""
        name = placed.where.rpartition(":")[0]
        if not self.names or self.names[-1] != name:
            self.names.append(name)
            self.starts.append(len(self.lines))
        self.lines.append(number(placed.where))
        self.rows += placed.rows
        self.file.write(encode(placed.item.line()))

    def see(self, item: Candidates) -> None:
        """Count the choices of an item whose responses stand in the order shown."""
        key, known = int(item.prompt_id[:15], 16), dict[tuple[int, int], list[float]]()
        for opinion in item.opinions:
            if opinion.scale == "choice":
                i, j = (at for at, worth in enumerate(opinion.worth) if worth is not None)
                one, other = opinion.worth[i] or 0.0, opinion.worth[j] or 0.0
                if (i, j) not in known:
                    known[i, j] = apart(item.responses[i].content, item.responses[j].content)
                self.won.append(0.5 if one == other else float(one > other))
                self.differ.extend(known[i, j])
                self.bad.append(opinion.tie == "both_bad")
                self.asked.append(key)
                self.writers.extend([self.writer(item.responses[at].source) for at in (i, j)])
                self.kinds |= bool(opinion.tie)

    def writer(self, source: str) -> int:
        """The place of a source."""
        return self.sources.setdefault(source, len(self.sources)) if source else -1

    def items(self) -> Iterator[Candidates]:
        """All items, from the first on; one walk at a time."""
        self.file.seek(0)
        for line in self.file:
            yield Candidates.model_validate(json.loads(line))

    @contextlib.contextmanager
    def placing(self) -> Iterator[None]:
        """What a policy cannot be applied to inside the block, said with its file and line."""
        try:
            yield
        except Misfit as fault:
            at = next(place for place, item in enumerate(self.items()) if item == fault.row)
            raise InputError(f"{self.where(at)}: {fault}") from None

    def where(self, place: int) -> str:
        """File and line of an item's first row."""
        return f"{self.names[bisect_right(self.starts, place) - 1]}:{self.lines[place]}"

    def biases(self) -> Bias | None:
        """What beside their worth decides choices, the place where a response is shown first of all; None for none."""
        if not len(self.won):
            return None
        differ = np.frombuffer(self.differ, dtype=np.float32).reshape(-1, len(bias.FEATURES))
        asked = np.frombuffer(self.asked, dtype=np.int64)
        return bias.bias(differ, np.frombuffer(self.won, dtype=np.float32), asked, position=True)


def apart(one: str, other: str) -> list[float]:
    """How one response differs from another on the surface, in the order of `bias.FEATURES`.

    >>> apart("Yes.", "- No.")
    [-1.0, -1.0, 0.0]
    """
    found: list[float] = bias.differences(np.array([surface(one)]), np.array([surface(other)]))[0].tolist()
    return found


def both_bad(found: Pool) -> list[Finding]:
    """D11.both_bad; nothing where no tie says of what kind it is, as where nobody was asked."""
    if not found.kinds:
        return []
    writers = np.frombuffer(found.writers, dtype=np.int32).reshape(-1, 2).T
    prompts = np.frombuffer(found.asked, dtype=np.int64)
    return chosen.both_bad(np.frombuffer(found.bad, dtype=np.int8), writers, prompts, names=list(found.sources))


def pool(
    sources: Iterable[tuple[str, Importer]],
    ledger: Ledger,
    *,
    spool: Path,
    into: BinaryIO,
    tell: Callable[[int], None],
    most: int | None = None,
    gold: Gold | None = None,
) -> Pool:
    """Everything that is said in some sources, by prompt where their form takes that; bad rows are booked.

    Answers on gold items are scored and taken out. Of each source the first `most` rows are read. Raises InputError for
    a bad file, for a bad row where those stop the run, and for criteria that the policy cannot sum.
    """
    found = Pool(into)
    scattered: list[Iterator[Placed]] = []
    whole: list[Iterator[Placed]] = []
    for path, importer in sources:
        (scattered if importer.form in GATHERED else whole).append(_read(path, importer, ledger, tell, most))
    for placed in _seen(itertools.chain.from_iterable(whole), found, gold):
        found.add(placed)
    for placed in together(_seen(gather(itertools.chain.from_iterable(scattered), spool=spool), found, gold)):
        found.add(placed)
    return found


def _seen(items: Iterable[Placed], found: Pool, gold: Gold | None) -> Iterator[Placed]:
    for placed in items:
        if gold is not None:
            try:
                placed = gold.take(placed)
            except Misfit as fault:
                raise InputError(f"{placed.where}: {fault}") from None
        found.see(placed.item)
        yield placed


def _read(
    path: str, importer: Importer, ledger: Ledger, tell: Callable[[int], None], most: int | None
) -> Iterator[Placed]:
    """Every row that is one."""
    with contextlib.closing(storage.lines(path)) as lines:
        for line in itertools.islice(lines, most):
            ledger.rows += 1
            if not ledger.rows % AT_ONCE:
                tell(AT_ONCE)
            try:
                read = importer.read(line)
            except RowFault as fault:
                ledger.refuse(refusal(line, reason=fault.reason, why=str(fault)))
                continue
            ledger.ignored.update(read.ignored)
            if read.day is not None:
                ledger.days[read.day] += 1
            for item in read.items:
                assert isinstance(item, Candidates), "the row is a pair"
                yield Placed(item, line.where)


# ---------------------------------------------------------------- items to pairs


@dataclass(frozen=True)
class Made:
    """Pairs of some items of one file, each with its place, the mean ratings of their chosen responses (NaN where there
    is none), and the items that gave none."""

    name: str
    pairs: list[tuple[str, Pair]] = field(default_factory=list)
    ratings: list[float] = field(default_factory=list)
    refusals: list[Refusal] = field(default_factory=list)

    @property
    def full(self) -> bool:
        """Whether it is enough to be handed on."""
        return len(self.pairs) + len(self.refusals) >= AT_ONCE


@dataclass
class Tally:
    """What became of the comparisons of all items: pairs, or the reasons why not.

    `unmade` are the items that gave no pair, `doubted` lines about items by annotator. Of a source with thumbs
    (`thumbs`), `alone` counts those that make no pair: thumbs up and down, the answers and the prompts.
    """

    policy: Policy
    thumbs: bool = False
    items: int = 0
    unmade: int = 0
    pairs: int = 0
    reasons: Counter[str] = field(default_factory=Counter)
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
            "policy": self.policy.version,
        } | ({"alone": dict(sorted(self.alone.items()))} if self.alone else {})

    def __add__(self, other: Tally) -> Tally:
        """What became of both; who is doubted is each one's own."""
        return Tally(
            self.policy,
            self.thumbs or other.thumbs,
            items=self.items + other.items,
            unmade=self.unmade + other.unmade,
            pairs=self.pairs + other.pairs,
            reasons=self.reasons + other.reasons,
            alone=self.alone + other.alone,
        )

    def add(self, made: Graded, *, where: str) -> None:
        """Count an item, and note the pairs in which somebody is probably wrong."""
        self.items += 1
        self.unmade += not made.pairs
        self.pairs += len(made.pairs)
        self.reasons.update(made.reasons)
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


def pairs(
    found: Pool, policy: Policy, known: Survey, tally: Tally, *, gold: Gold | None = None, rated: bool = False
) -> Iterator[Made]:
    """The pairs of all items in order; an item that gives none is refused for the reason that is met most.

    `rated` says whether the ratings are on a scale on which chosen responses can be held against one another. Raises
    InputError for items to which the policy cannot be applied.
    """
    lot = Made(found.names[0] if found.names else "")
    for place, made in enumerate(grade(found.items, policy, known=known)):
        where = found.where(place)
        name = where.rpartition(":")[0]
        if name != lot.name or lot.full:
            yield lot
            lot = Made(name)
        if gold is not None and "unjudged" in made.reasons and not made.pairs and gold.holds(made.row):
            made = replace(made, reasons={"gold": made.reasons["unjudged"]})
        tally.add(made, where=where)
        lot.pairs.extend((where, pair) for pair in made.pairs)
        lot.ratings.extend(made.ratings if rated else [nan] * len(made.pairs))
        if not made.pairs:
            reason = max(made.reasons, key=lambda code: (made.reasons[code], code))
            lot.refusals.append(Refusal(where, reason, UNMADE[reason], made.row.line()))
    yield lot


def annotators(known: Survey) -> list[dict[str, Any]]:
    """Everyone who judged, by the criterion they judged by, as the data page shows them."""
    found = []
    for _, one in sorted(known.judged.items()):
        for _, person in sorted(one.annotators.items()):
            said = person.as_dict() | {"n": person.votes}
            found.append(said if len(known.judged) == 1 else said | {"criterion": spoken(one.criterion)})
    return found
