"""Gold items: two responses of which it is known what is right to say (D6.gold).

Those who judge meet them unawares among the others. What they say of them measures the annotators and is taken out
before anything else is learned of them, and no pair of such responses is trained on or held out.

A gold item is a prompt with two responses, however they are spelled in case and white space; of a gold row with more
responses every two are one. What several gold rows say of the same item is all accepted.
"""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from operator import itemgetter
from typing import Any, NamedTuple

import numpy as np

from druthers import storage
from druthers.curate.facts import between, comparison
from druthers.curate.gather import Body, Placed, gathered
from druthers.curate.importers import GATHERED, Importer, RowFault, detect
from druthers.curate.nearness import Hashes
from druthers.curate.opinions import Policy, View, compared, graded, spoken, views
from druthers.curate.quality import noise
from druthers.curate.repair import kinds_in, redacted
from druthers.curate.split import evened, hashed
from druthers.records import Candidates, Finding, InputError, Message, Pair, Rows, assistant
from druthers.storage import Line, encode

SHOWN = 100
"""Rows of the gold file whose form is looked at."""


class Answer(NamedTuple):
    """The side taken (1, -1, or 0 for a tie), and which tie it is where that is said."""

    side: int
    tie: str = ""

    def turned(self, *, forward: bool) -> Answer:
        """The same with the responses in the order of `facts.comparison`."""
        return self if forward else Answer(-self.side, self.tie)

    def passes(self, accepted: Iterable[Answer]) -> bool:
        """Whether one of the accepted answers is the same; a tie without a word for its kind passes for either.

        >>> Answer(0).passes([Answer(0, "both_bad")]), Answer(0, "both_good").passes([Answer(0, "both_bad")])
        (True, False)
        """
        return any(self.side == one.side and (self.tie == one.tie or "" in (self.tie, one.tie)) for one in accepted)

    def said(self, *, forward: bool = True) -> str:
        """In words, of the responses as they stand in a row."""
        side = self.turned(forward=forward).side
        return (self.tie.replace("_", " ") or "a tie") if not side else "the first" if side > 0 else "the second"


@dataclass
class Score:
    """How many gold answers an annotator gave, how many were right, and the others as lines of a file, each behind the
    number of its item."""

    answered: int = 0
    right: int = 0
    missed: list[tuple[int, bytes]] = field(default_factory=list)


def add_scores(scores: dict[str, Score], more: Mapping[str, Score]) -> None:
    """Add to some scores by annotator those of other answers, which stand behind them."""
    for annotator, other in more.items():
        score = scores.setdefault(annotator, Score())
        score.answered += other.answered
        score.right += other.right
        score.missed += other.missed


@dataclass
class Gold:
    """The accepted answers by comparison and criterion, and what was answered.

    `prompts` are hashes of the prompts, `pairs` the comparisons as `facts.comparison` numbers them, also what they
    become when personal data is redacted. `scores` has each annotator's score over all criteria, by name.
    """

    policy: Policy
    accepted: dict[tuple[int, str], set[Answer]] = field(default_factory=dict)
    prompts: set[int] = field(default_factory=set)
    pairs: set[int] = field(default_factory=set)
    scores: dict[str, Score] = field(default_factory=dict)

    @property
    def numbers(self) -> Hashes:
        """All comparisons that are gold."""
        return np.array(sorted(self.pairs), dtype=np.uint64)

    # -------- the gold file

    def accept(self, pair: Pair, answers: Iterable[Answer], *, criterion: str) -> None:
        """Take answers, given of chosen and rejected in this order, for right."""
        number, forward, *_ = comparison(pair)
        said = {answer.turned(forward=forward) for answer in answers}
        self.accepted.setdefault((number, criterion), set()).update(said)
        self.prompts.add(hashed(evened(pair.prompt)))
        self.pairs.add(number)
        if kinds_in(pair):
            with contextlib.suppress(RowFault):  # without personal data both sides are one text, and give no pair
                self.pairs.add(comparison(redacted(pair)).pair)

    def learn(self, item: Pair | Candidates) -> bool:
        """Take what a gold row says for right; whether it says anything of two responses."""
        if isinstance(item, Pair):
            side = (item.p > 0.5) - (item.p < 0.5)
            self.accept(item, [Answer(side)], criterion=item.criterion)
            return True
        known = False
        for criterion, found in views(item).items():
            for i, j in comparable(item):
                sides = [assistant(item.responses[at].content) for at in (i, j)]
                answers = list(given(found, i, j, least_gap=self.policy.least_gap))
                if answers:
                    pair = Pair(prompt=item.prompt, chosen=sides[0], rejected=sides[1])
                    self.accept(pair, (answer for _, answer in answers), criterion=criterion)
                    known = True
        return known

    # -------- what was judged

    def unscored(self) -> Gold:
        """The same without what was answered, as it goes to other processes."""
        return replace(self, scores={})

    def add(self, scores: Mapping[str, Score]) -> None:
        """The scores of all answers of a source, of which lines go in the order of their items."""
        ordered = {name: replace(one, missed=sorted(one.missed, key=itemgetter(0))) for name, one in scores.items()}
        add_scores(self.scores, ordered)

    def asks(self, prompt: Iterable[Body]) -> bool:
        """Whether a prompt is that of a gold item."""
        return hashed(evened(map(Message.model_validate, prompt))) in self.prompts

    def take(self, placed: Placed, scores: dict[str, Score], *, order: int = 0) -> Placed:
        """The item without its answers on gold items, which are scored; `order` is the number of the item.

        Choices between two gold responses go, and everything where there are no others. Ratings and ranks of more
        responses say something of the others too, so they stay.
        """
        item = placed.item
        found = self.found(item)
        if not found:
            return placed
        self.score(item, found, scores, where=placed.where, order=order)
        body = item.line()
        if len(found) == len(list(comparable(item))):
            body["opinions"] = []
            bare = ("score", "rank")
            body["responses"] = [
                {name: value for name, value in response.items() if name not in bare} for response in body["responses"]
            ]
        else:
            body["opinions"] = [
                one
                for one in body.get("opinions", [])
                if one["scale"] != "choice"
                or tuple(i for i, worth in enumerate(one["worth"]) if worth is not None) not in found
            ]
        return Placed(Candidates.model_validate(body), placed.where, placed.rows)

    def found(self, item: Candidates) -> dict[tuple[int, int], tuple[int, bool]]:
        """The comparisons of an item that are gold: their places, their numbers and the way round they are."""
        prompt = evened(item.prompt)
        if hashed(prompt) not in self.prompts:
            return {}
        texts = [evened(assistant(response.content)) for response in item.responses]
        numbers = {(i, j): between(prompt, texts[i], texts[j])[:2] for i, j in comparable(item)}
        return {places: number for places, number in numbers.items() if number[0] in self.pairs}

    def holds(self, item: Candidates) -> bool:
        """Whether two of its responses are a gold item."""
        return bool(self.found(item))

    def score(
        self,
        item: Candidates,
        found: Mapping[tuple[int, int], tuple[int, bool]],
        scores: dict[str, Score],
        *,
        where: str,
        order: int,
    ) -> None:
        """Hold the answers on gold items against what is accepted; an overall answer may be that of all criteria."""
        said = views(item)
        whole = said if "" in said else said | graded(said, self.policy, row=item)
        for (i, j), (number, forward) in found.items():
            for criterion, views_ in whole.items():
                accepted = self.accepted.get((number, criterion))
                if accepted is None:
                    continue
                for annotator, answer in given(views_, i, j, least_gap=self.policy.least_gap):
                    score = scores.setdefault(annotator, Score())
                    score.answered += 1
                    right = answer.turned(forward=forward).passes(accepted)
                    score.right += right
                    if not right:
                        fine = " or ".join(sorted(one.said(forward=forward) for one in accepted))
                        why = f"said {answer.said()} is better" if answer.side else f"said {answer.said()}"
                        about = {"where": where, "annotator": annotator, "why": f"{why}; right is {fine}"}
                        more = {"criterion": spoken(criterion)} if criterion else {}
                        score.missed.append((order, encode(about | more)))

    # -------- what follows

    def findings(self) -> tuple[list[Finding], dict[str, list[bytes]]]:
        """D6.gold, of all and of each annotator who misses too often, and the files of the answers they missed."""
        people = sorted(self.scores.items())
        poor = [(name, one) for name, one in people if noise.gold(one.right, one.answered).poor]
        lines = {f"D6.gold.{i}": [line for _, line in one.missed] for i, (_, one) in enumerate(poor, 1)}
        told = [
            noise.gold_finding(
                name, one.right, one.answered, rows=Rows(file=f"findings/{file}.jsonl", count=len(one.missed))
            )
            for file, (name, one) in zip(lines, poor, strict=True)
        ]
        counts = [(one.right, one.answered) for _, one in people]
        return [noise.gold_of_all(counts, items=len({number for number, _ in self.accepted})), *told], lines

    def by_annotator(self) -> dict[str, dict[str, Any]]:
        """The posterior of each annotator's accuracy, as the data page shows it."""
        return {name: noise.gold(one.right, one.answered).accuracy.as_dict() for name, one in self.scores.items()}


def comparable(item: Candidates) -> Iterator[tuple[int, int]]:
    """The places of every two responses that can be compared: neither is empty, and they differ."""
    texts = [response.content.strip() for response in item.responses]
    for i, j in itertools.combinations(range(len(texts)), 2):
        if texts[i] and texts[j] and texts[i] != texts[j]:
            yield i, j


def given(found: Iterable[View], i: int, j: int, *, least_gap: float) -> Iterator[tuple[str, Answer]]:
    """Who said what of responses i and j."""
    for view in found:
        for vote in compared([view], i, j, least_gap=least_gap):
            yield vote.annotator, Answer(vote.side, "" if vote.side else view.tie)


# ---------------------------------------------------------------- the gold file


def read_gold(path: str, policy: Policy, *, columns: Mapping[str, str]) -> Gold:
    """The accepted answers in a file of any form of data; of `columns` those count that the file has.

    Raises InputError for a file that cannot be read, and for a row of it that says nothing or is faulty.
    """
    rows = list(storage.lines(path))
    there = {name for line in rows for name in line.row}
    mapped = {theirs: ours for theirs, ours in columns.items() if theirs in there}
    form = detect([line.row for line in rows[:SHOWN] if not line.fault], columns=mapped)
    importer = Importer.of(path, form, columns=mapped)
    gold = Gold(policy)
    items = [(line.where, item) for line in rows for item in answered(line, importer)]
    if form in GATHERED:
        said = (Placed(item, where) for where, item in items if isinstance(item, Candidates))
        items = [(placed.where, placed.item) for placed in gathered(said)]
    for where, item in items:
        if not gold.learn(item):
            raise InputError(f"{where}: no two responses are compared in it, so it is no gold item; take it out")
    return gold


def answered(line: Line, importer: Importer) -> Sequence[Pair | Candidates]:
    """The items of a gold row."""
    try:
        return importer.read(line).items
    except RowFault as fault:
        raise InputError(f"{line.where}: {fault}; correct this row of grade.gold, or take it out") from None
