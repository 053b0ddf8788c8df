"""Which prompts to collect next: gaps in coverage first, then what people did not settle, then groups that have little.

No prompt is made up: each comes from the coverage part, or stands in the data already and would say more with other
answers or more judgements. A held-out prompt says so, because what is collected for it belongs on the held-out side.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from pydantic import ValidationError

from druthers.curate.importers import Form, RowFault, read_pair
from druthers.records import Prompt, user

TORN = (0.35, 0.65)
"""Between these, people were torn."""

COVERAGE = "coverage gap"
REASONS = (
    COVERAGE,
    "contradicted",
    "both answers bad",
    "torn",
    "tied",
    "doubtful label",
    "poor chosen answer",
    "ranked wrong by far",
    "group with few pairs",
)
"""Why a prompt is asked for, the most urgent first."""
HELD_OUT = "held out"
REFUSED = {
    "contradiction": "contradicted",
    "tie": "tied",
    "both_bad": "both answers bad",
    "torn": "torn",
}
"""Reason codes of rows that curation set aside, and what they mean here."""
DOUBTS = {
    "D2.ratings": "contradicted",
    "D6.suspects": "doubtful label",
    "D10.stuck": "ranked wrong by far",
    "D11.chosen": "poor chosen answer",
}
"""Findings whose rows name pairs that should be judged again, or whose prompts should be answered anew."""

Row = Mapping[str, Any]


@dataclass
class Gap:
    """One prompt with its reasons, and when it was first met."""

    prompt: Prompt
    place: int
    reasons: set[str] = field(default_factory=set)
    own: str = ""
    heldout: bool = False


@dataclass
class Gaps:
    """Prompts to collect, each once; of each reason at most `most` are kept, and `beyond` counts what met that limit.

    `doubted` are pair ids that a finding names, with the reason; `scarce` the groups with few pairs.
    """

    scarce: Collection[str] = ()
    doubted: Mapping[str, str] = field(default_factory=dict)
    most: int = 1000
    found: dict[str, Gap] = field(default_factory=dict)
    held: Counter[str] = field(default_factory=Counter)
    beyond: int = 0
    unreadable: int = 0

    def uncovered(self, prompts: Iterable[Prompt]) -> None:
        """Those the coverage part wrote, in its order and with its own reasons."""
        for prompt in prompts:
            self.note(prompt, [COVERAGE], own=prompt.reason)

    def pairs(self, rows: Iterable[Row], *, heldout: bool) -> None:
        """Curated pairs, as they stand on their lines."""
        for row in rows:
            if reasons := sorted(set(self.why(row)), key=REASONS.index):
                self.note(Prompt(prompt=row["prompt"], group=row.get("group", "")), reasons, heldout=heldout)

    def why(self, row: Row) -> Iterable[str]:
        """The reasons to ask for the prompt of a pair again."""
        p = row.get("p", 1.0)
        if p == 0.5:
            yield "tied"
        elif TORN[0] <= p <= TORN[1]:
            yield "torn"
        if row.get("id") in self.doubted:
            yield self.doubted[row["id"]]
        if row.get("group") and row["group"] in self.scarce:
            yield REASONS[-1]

    def refused(self, rows: Iterable[Row], *, form: Form) -> None:
        """Lines of rejected.jsonl: of those set aside as contradicted, tied, torn or bad, the prompts."""
        for line in rows:
            if line.get("reason") in REFUSED:
                prompt = prompt_of(line.get("row", {}), form)
                if prompt is None:
                    self.unreadable += 1
                else:
                    self.note(prompt, [REFUSED[line["reason"]]])

    def note(self, prompt: Prompt, reasons: Sequence[str], *, own: str = "", heldout: bool = False) -> None:
        """More reasons for a prompt, the most urgent first; a new prompt is kept while that one has room."""
        gap = self.found.get(prompt.prompt_id)
        if gap is None:
            if self.held[reasons[0]] >= self.most:
                self.beyond += 1
                return
            self.held[reasons[0]] += 1
            gap = self.found[prompt.prompt_id] = Gap(prompt, len(self.found))
        gap.reasons.update(reasons)
        gap.own = gap.own or own
        gap.heldout |= heldout

    def ranked(self) -> list[Prompt]:
        """By the most urgent reason, then those with most reasons, then as they were met; at most `most`."""
        order = {reason: i for i, reason in enumerate(REASONS)}

        def rank(gap: Gap) -> tuple[int, int, int]:
            return min(order[reason] for reason in gap.reasons), -len(gap.reasons), gap.place

        return [written(gap) for gap in sorted(self.found.values(), key=rank)[: self.most]]

    def counts(self) -> dict[str, int]:
        """How many prompts have each reason, before the cut to `most`."""
        return {reason: n for reason in REASONS if (n := sum(reason in g.reasons for g in self.found.values()))}


def written(gap: Gap) -> Prompt:
    """A prompt with its reasons in words."""
    reasons = [gap.own or reason if reason == COVERAGE else reason for reason in REASONS if reason in gap.reasons]
    text = "; ".join([*reasons, *([HELD_OUT] if gap.heldout else [])])
    return Prompt(prompt=gap.prompt.prompt, group=gap.prompt.group, reason=text)


def prompt_of(row: Row, form: Form) -> Prompt | None:
    """The prompt of a row that curation set aside, or None where the row does not show it.

    >>> prompt_of({"prompt": "Name a fruit.", "chosen": "Plum.", "rejected": "Carrot."}, "trl").prompt[0].content
    'Name a fruit.'
    >>> prompt_of({"chosen": "?"}, "trl") is None
    True
    """
    group = row.get("group") if isinstance(row.get("group"), str) else ""
    try:
        return Prompt(prompt=read_pair(row, form).pair.prompt, group=group or "")
    except RowFault:
        asked = row.get("prompt")
    try:
        return Prompt(prompt=user(asked) if isinstance(asked, str) else asked, group=group or "")  # type: ignore[arg-type]
    except ValidationError:
        return None
