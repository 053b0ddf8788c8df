"""What was said of one prompt's responses, as votes on pairs of them, by a policy.

A criterion is called by its name; what was said without one is the overall opinion, "" in records and "overall" in a
policy.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from math import fsum
from typing import Literal, NamedTuple

from druthers.config import GradeSettings
from druthers.records import Candidates, InputError, content_id

EQUAL = 1e-9
"""Numbers nearer than this are the same: sums of criteria carry the dust of their additions."""
STEPS = 3
"""The strongest preference there is."""


@dataclass(frozen=True)
class Policy:
    """How opinions become pairs; its fields are the settings of the section `grade`, where each is described.

    >>> Policy().labels, Policy().version == Policy(ties="soft").version
    ('auto', False)
    """

    labels: Literal["auto", "majority", "dawid-skene", "bradley-terry"] = "auto"
    ties: Literal["drop", "soft"] = "drop"
    strength: Literal["auto", "p", "margin", "none"] = "auto"
    least_gap: float = 0.0
    margin_scale: float | None = None
    pairs: Literal["all", "best-worst", "adjacent"] = "all"
    most: int | None = None
    combine: Literal["sum", "apart"] = "sum"
    criteria: tuple[tuple[str, float], ...] = ()
    gates: tuple[tuple[str, float], ...] = ()
    weight: Literal["prompt", "competence"] = "prompt"

    @property
    def version(self) -> str:
        """A hash of the policy: sets made by different policies, other weights of criteria among them, differ in it."""
        return content_id(asdict(self))

    @property
    def as_judged(self) -> bool:
        """Whether a criterion that is graded may be one that was judged, and not made of several."""
        return self.combine == "apart" or not self.criteria


def policy_of(settings: GradeSettings) -> Policy:
    """The policy that the settings describe; criteria in the order of their names.

    >>> policy_of(GradeSettings(criteria={"overall": 1.0, "honesty": 2.0})).criteria
    (('', 1.0), ('honesty', 2.0))
    """
    return Policy(
        labels=settings.labels,
        ties=settings.ties,
        strength=settings.strength,
        least_gap=settings.least_gap,
        margin_scale=settings.margin_scale,
        pairs=settings.pairs,
        most=settings.most,
        combine=settings.combine,
        criteria=tuple(sorted((bare(name), weight) for name, weight in settings.criteria.items())),
        gates=tuple(sorted((bare(name), least) for name, least in settings.gates.items())),
        weight=settings.weight,
    )


def bare(name: str) -> str:
    """A criterion as records call it.

    >>> bare("overall"), bare("honesty")
    ('', 'honesty')
    """
    return "" if name == "overall" else name


def spoken(criterion: str) -> str:
    """A criterion as people call it."""
    return criterion or "overall"


class Misfit(InputError):
    """A row that a policy cannot be applied to, and why."""

    def __init__(self, row: Candidates, why: str) -> None:
        super().__init__(why)
        self.row = row


class View(NamedTuple):
    """What one annotator said by one criterion, without the machinery of a record."""

    annotator: str
    scale: str
    worth: tuple[float | None, ...]
    tie: str = ""


class Vote(NamedTuple):
    """One view on two responses: its side (+1 the first, -1 the second, 0 a tie), the difference in points or steps,
    the strength it was said with (0 where the scale has none), and whether it is a rating, or a tie of two bad ones."""

    annotator: str
    side: int
    gap: float
    level: int
    scale: str
    bad: bool


def views(row: Candidates) -> dict[str, list[View]]:
    """What was said of a row by criterion; scores (or, without them, ranks) of the responses are one nameless view.

    What one annotator said of single responses is one view of them all. Where nobody judged two responses by a
    criterion, as in logs of feedback, the mean ratings of the responses are one nameless view.
    """
    found: dict[str, list[View]] = {}
    for opinion in row.opinions:
        view = View(opinion.annotator, opinion.scale, opinion.worth, opinion.tie)
        found.setdefault(opinion.criterion, []).append(view)
    scores = tuple(response.score for response in row.responses)
    ranks = tuple(None if response.rank is None else -float(response.rank) for response in row.responses)
    for scale, worth in (("rating", scores), ("rank", ranks)):
        if any(number is not None for number in worth):
            found.setdefault("", []).append(View("", scale, worth))
            break
    return {criterion: whole(said) for criterion, said in found.items()} if len(row.responses) > 1 else found


def whole(said: list[View]) -> list[View]:
    """Views of single responses put together, by annotator, or of all where none is of two.

    >>> whole([View("ann", "rating", (3.0, None)), View("ann", "rating", (None, 1.0))])
    [View(annotator='ann', scale='rating', worth=(3.0, 1.0), tie='')]
    >>> whole([View("u1", "rating", (1.0, None)), View("u2", "rating", (None, 0.0)), View("u3", "rating", (0.0, None))])
    [View(annotator='', scale='rating', worth=(0.5, 0.0), tie='')]
    """
    single = [view for view in said if sum(worth is not None for worth in view.worth) == 1]
    if not single:
        return said
    out = [view for view in said if sum(worth is not None for worth in view.worth) > 1]
    begun: dict[tuple[str, str], list[list[float | None]]] = {}
    for view in single:
        lists = begun.setdefault((view.annotator, view.scale), [])
        at = next(i for i, worth in enumerate(view.worth) if worth is not None)
        free = next((worth for worth in lists if worth[at] is None), None)
        if free is None:
            lists.append(list(view.worth))
        else:
            free[at] = view.worth[at]
    out += [View(who, scale, tuple(worth)) for (who, scale), lists in begun.items() for worth in lists]
    known = [at for view in out for at, worth in enumerate(view.worth) if worth is not None]
    alone = all(sum(worth is not None for worth in view.worth) == 1 and view.scale == "rating" for view in out)
    if not alone or len(set(known)) < 2:
        return out
    by = [[worth for view in out if (worth := view.worth[at]) is not None] for at in range(len(out[0].worth))]
    return [View("", "rating", tuple(fsum(some) / len(some) if some else None for some in by))]


def graded(said: Mapping[str, list[View]], policy: Policy, *, row: Candidates) -> dict[str, list[View]]:
    """The views that pairs are made of, by the criterion that the pairs will carry ("" where criteria are summed).

    `row` is what they were said of. Raises Misfit where criteria on different scales would be summed.
    """
    weights = dict(policy.criteria)
    if policy.combine == "apart":
        return {criterion: said[criterion] for criterion in sorted(said) if not weights or criterion in weights}
    if not weights and "" in said:
        return {"": said[""]}
    chosen = {criterion: said[criterion] for criterion in sorted(said) if not weights or criterion in weights}
    if len(chosen) < 2:
        return {"": next(iter(chosen.values()))} if chosen else {}
    return {"": summed(chosen, {criterion: weights.get(criterion, 1.0) for criterion in chosen}, row=row)}


def summed(chosen: Mapping[str, list[View]], weights: Mapping[str, float], *, row: Candidates) -> list[View]:
    """One view of each annotator over all criteria; one of all together where they did not judge the same criteria."""
    scales = {view.scale for found in chosen.values() for view in found}
    if len(scales) > 1:
        raise Misfit(
            row,
            f"criteria {', '.join(map(spoken, chosen))} are judged on the scales "
            f"{' and '.join(sorted(scales))}, which cannot be summed; use grade.combine=apart, or one scale",
        )
    by: dict[str, dict[str, View]] = {}
    for criterion, found in chosen.items():
        for view in found:
            by.setdefault(view.annotator, {})[criterion] = view
    total = sum(map(len, chosen.values()))
    if total == len(by) * len(chosen) and all(len(own) == len(chosen) for own in by.values()):
        return [weighted(annotator, {c: [v] for c, v in own.items()}, weights) for annotator, own in sorted(by.items())]
    return [weighted("", chosen, weights)]


def weighted(annotator: str, by: Mapping[str, list[View]], weights: Mapping[str, float]) -> View:
    """The mean of the criteria by their weights, each the mean of its views; None where one of them has none."""
    size = len(next(iter(by.values()))[0].worth)
    whole = fsum(weights[criterion] for criterion in by)
    worth: list[float | None] = []
    for i in range(size):
        known = {c: [w for view in found if (w := view.worth[i]) is not None] for c, found in by.items()}
        parts = [weights[c] * fsum(numbers) / len(numbers) for c, numbers in known.items() if numbers]
        worth.append(fsum(parts) / whole if len(parts) == len(by) else None)
    first = [view for found in by.values() for view in found]
    bad = all(view.tie == "both_bad" for view in first)
    return View(annotator, first[0].scale, tuple(worth), "both_bad" if bad else "")


def compared(found: Iterable[View], i: int, j: int, *, least_gap: float) -> list[Vote]:
    """The votes of the views on responses i and j; a view that does not know both has none.

    >>> compared([View("ann", "rating", (3.0, 4.0)), View("bob", "choice", (2.0, 0.0))], 0, 1, least_gap=0.0)[0].side
    -1
    """
    votes = []
    for view in found:
        one, other = view.worth[i], view.worth[j]
        if one is None or other is None:
            continue
        gap = one - other
        tied = abs(gap) < (max(least_gap, EQUAL) if view.scale == "rating" else EQUAL)
        side = 0 if tied else 1 if gap > 0 else -1
        level = min(STEPS, max(1, int(abs(gap) + 0.5))) if side and view.scale == "choice" else 0
        votes.append(Vote(view.annotator, side, gap, level, view.scale, view.tie == "both_bad"))
    return votes


def both_bad(votes: list[Vote]) -> bool:
    """Whether as many as half of those who judged two responses, or of an even crowd's ties, call both bad."""
    bad = sum(vote.bad for vote in votes)
    if not bad:
        return False
    sides = Counter(vote.side for vote in votes)
    return 2 * bad >= len(votes) or (2 * bad >= sides[0] and sides[1] == sides[-1])


def passing(said: Mapping[str, list[View]], policy: Policy, *, row: Candidates) -> list[bool | None]:
    """Whether each response passes all gates; None where one that it does not fail was not judged.

    The rating held against a gate is the mean over annotators. Raises Misfit where a gate was not judged by
    ratings.
    """
    out: list[bool | None] = [True] * len(row.responses)
    for criterion, least in policy.gates:
        for view in said.get(criterion, ()):
            if view.scale != "rating":
                raise Misfit(
                    row,
                    f"the gate {spoken(criterion)!r} is judged on the scale {view.scale!r}, "
                    "but a least rating needs ratings; rate it, or take it out of grade.gates",
                )
        for i in range(len(out)):
            known = [w for view in said.get(criterion, ()) if (w := view.worth[i]) is not None]
            if not known:
                out[i] = out[i] and None
            elif fsum(known) / len(known) < least - EQUAL:
                out[i] = False
    return out
