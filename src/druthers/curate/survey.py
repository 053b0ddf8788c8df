"""The first walk over what was said: how far annotators agree, whom to believe, what their strengths are worth.

Only numbers are held: of a vote on two responses six bytes (fourteen where it is a rating), of the two responses six.
"""

from __future__ import annotations

from array import array
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from druthers import votes
from druthers.curate.opinions import Policy, View, Vote, compared, graded, spoken, views
from druthers.findings import finding
from druthers.records import Candidates, Finding, Limits
from druthers.stats import Estimate, Floats, Undefined, wilson
from druthers.votes import Strengths, Votes

Source = Callable[[], Iterable[Candidates]]
"""What gives the rows anew at each call."""

FEWEST_ITEMS = 50
"""Items judged twice from which on annotators are told apart; below, all are taken to be alike."""
WEAK = 0.7
"""Least share of right sides of an annotator; the least score on gold items is the same."""
HABIT = ("right", "tie", "wrong", "tie_seen", "side_of_tie")
ALPHA = Limits(warn=0.4, fail=0.2, bad="below")


@dataclass(frozen=True)
class Annotator:
    """What is known of one annotator by one criterion, from the items that others judged too.

    `reliability` is the share of right sides among those taken, by Dawid and Skene's model; `with_rest` how often they
    are those of most others. `habit` has the probabilities of the right side, a tie and the wrong side where one is
    better, and of a tie and of a given side where they tie. `verdict` is "inverted" where the whole interval of the
    reliability lies below one half (the answers are the wrong way round), "weak" where it lies below `limit`: 0.7, or
    where the errors are twice as many as those of the others and more by 5 points.
    """

    name: str
    votes: int
    reliability: Estimate
    with_rest: Estimate
    habit: tuple[float, ...]
    known: float
    limit: float
    verdict: str

    def as_dict(self) -> dict[str, Any]:
        """As it is written to a data card."""
        return {
            "name": self.name,
            "votes": self.votes,
            "verdict": self.verdict,
            "limit": self.limit,
            "reliability": self.reliability.as_dict(),
            "with_rest": self.with_rest.as_dict(),
            "habit": dict(zip(HABIT, self.habit, strict=True)) if self.habit else {},
        }


@dataclass(frozen=True)
class Agreement:
    """How far annotators agree by one criterion.

    Alphas are Krippendorff's over every item (a criterion and two responses) that two annotators judged, taken in both
    orders, since which response comes first is arbitrary: `nominal` over the sides and ties, `ordinal` over -3 to 3,
    `interval` over differences of ratings. `noise` is the share of wrong answers that the disagreement shows; no model
    can agree with such answers in more than `ceiling`. `steps` says whether choices were of different strengths, `cuts`
    the differences of ratings from which on a preference has strength 2 and 3 (thirds of all; empty where all are
    alike), `typical` the median difference by scale, `spread` the deviation of worths in Bradley and Terry's model,
    `tied` the share of ties. `crowd` is the habit of all annotators together, empty where fewer than 50 items were
    judged twice, and `reliable` their reliability. Strengths, spread and reliability see the answers of
    annotators who answer the wrong way round turned; the agreements and the noise are those of the answers as given.
    """

    criterion: str
    votes: int
    items: int
    overlapped: int
    nominal: Estimate
    ordinal: Estimate
    interval: Estimate
    disagreement: Estimate
    noise: Estimate
    ceiling: Estimate
    strengths: Strengths
    steps: bool
    cuts: tuple[float, ...]
    typical: dict[str, float]
    spread: float
    tied: float
    crowd: tuple[float, ...]
    reliable: float
    annotators: dict[str, Annotator]

    def as_dict(self) -> dict[str, Any]:
        """As it is written to a data card."""
        estimates = ("nominal", "ordinal", "interval", "disagreement", "noise", "ceiling")
        plain = ("votes", "items", "overlapped", "steps", "cuts", "typical", "spread", "tied", "reliable")
        return (
            {"criterion": spoken(self.criterion)}
            | {name: getattr(self, name) for name in plain}
            | {name: getattr(self, name).as_dict() for name in estimates}
            | {"strengths": asdict(self.strengths)}
            | {"annotators": [one.as_dict() for _, one in sorted(self.annotators.items())]}
        )


@dataclass(frozen=True)
class Survey:
    """What the first walk found: agreement by criterion as it was judged, agreement of what becomes pairs ("" where
    criteria are summed), and how often each criterion takes another side than the overall preference."""

    policy: Policy
    rows: int
    judged: dict[str, Agreement]
    graded: dict[str, Agreement]
    conflicts: dict[str, Estimate]

    def as_dict(self) -> dict[str, Any]:
        """As it is written to a data card."""
        return {
            "policy": asdict(self.policy) | {"version": self.policy.version},
            "rows": self.rows,
            "judged": [one.as_dict() for _, one in sorted(self.judged.items())],
            "graded": [one.as_dict() for _, one in sorted(self.graded.items())],
            "conflicts": {spoken(name): found.as_dict() for name, found in sorted(self.conflicts.items())},
        }


@dataclass
class Columns:
    """The votes by one criterion in flat columns, as they come: of an item (a row's two responses) how many votes and
    which row, of a vote annotator, side and strength (-1: a rating, whose difference stands in `gap`)."""

    size: array[int] = field(default_factory=lambda: array("H"))
    row: array[int] = field(default_factory=lambda: array("I"))
    annotator: array[int] = field(default_factory=lambda: array("i"))
    side: array[int] = field(default_factory=lambda: array("b"))
    level: array[int] = field(default_factory=lambda: array("b"))
    gap: array[float] = field(default_factory=lambda: array("d"))

    def add(self, number: int, found: list[View], names: dict[str, int], *, least_gap: float) -> None:
        """The votes on all pairs of a row's responses."""
        K = len(found[0].worth)
        for i in range(K):
            for j in range(i + 1, K):
                made = compared(found, i, j, least_gap=least_gap)
                if not made:
                    continue
                self.size.append(len(made))
                self.row.append(number)
                self.annotator.extend([names.setdefault(vote.annotator, len(names)) for vote in made])
                self.side.extend([vote.side for vote in made])
                self.level.extend([-1 if vote.scale == "rating" else vote.level for vote in made])
                self.gap.extend([vote.gap for vote in made if vote.scale == "rating"])

    def extend(self, other: Columns) -> Columns:
        """These and then the others."""
        names = ("size", "row", "annotator", "side", "level", "gap")
        return Columns(**{name: getattr(self, name) + getattr(other, name) for name in names})

    def moved(self, rows: int, number_W: NDArray[np.int32]) -> Columns:
        """The same of rows behind so many others, and with other numbers of the annotators."""
        row, annotator = array("I"), array("i")
        row.frombytes((np.frombuffer(self.row, dtype=np.uint32) + np.uint32(rows)).tobytes())
        annotator.frombytes(number_W[np.frombuffer(self.annotator, dtype=np.int32)].tobytes())
        return replace(self, row=row, annotator=annotator)

    def take(self, other: Columns) -> None:
        """Put the others behind these."""
        for name in ("size", "row", "annotator", "side", "level", "gap"):
            getattr(self, name).extend(getattr(other, name))


class Conflicts:
    """How often most of those who judged by a criterion take another side than most of those who judged overall."""

    def __init__(self) -> None:
        self.met: Counter[str] = Counter()
        self.against: Counter[str] = Counter()

    def add(self, said: dict[str, list[View]], overall: list[View], *, least_gap: float) -> None:
        """The pairs of responses of one row."""
        if not overall:
            return
        K = len(overall[0].worth)
        for i in range(K):
            for j in range(i + 1, K):
                whole = lean(compared(overall, i, j, least_gap=least_gap))
                for criterion in said if whole else ():
                    own = lean(compared(said[criterion], i, j, least_gap=least_gap)) if criterion else 0
                    self.met[criterion] += own != 0
                    self.against[criterion] += own * whole < 0

    def rates(self) -> dict[str, Estimate]:
        """By criterion, over the pairs on which both take a side."""
        return {criterion: wilson(self.against[criterion], n) for criterion, n in sorted(self.met.items()) if criterion}


def lean(made: list[Vote]) -> int:
    """The side that most votes take, 0 where they are even."""
    total = sum(vote.side for vote in made)
    return (total > 0) - (total < 0)


@dataclass
class Heard:
    """What was said of some rows, as numbers: by criterion as it was judged and as it becomes pairs (`made`).

    `as_judged` are the criteria of which both are the same. Annotators are numbers, in the order in which they came.
    """

    policy: Policy
    rows: int = 0
    names: dict[str, int] = field(default_factory=dict)
    judged: dict[str, Columns] = field(default_factory=dict)
    made: dict[str, Columns] = field(default_factory=dict)
    as_judged: set[str] = field(default_factory=set)
    conflicts: Conflicts = field(default_factory=Conflicts)

    def add(self, row: Candidates) -> None:
        """One more row; raises Misfit where the policy cannot be applied to it."""
        said = views(row)
        streams = graded(said, self.policy, row=row)
        least_gap = self.policy.least_gap
        for criterion, found in said.items():
            self.judged.setdefault(criterion, Columns()).add(self.rows, found, self.names, least_gap=least_gap)
        for criterion, found in streams.items():
            if self.policy.as_judged and found is said.get(criterion):
                self.as_judged.add(criterion)
            else:
                self.made.setdefault(criterion, Columns()).add(self.rows, found, self.names, least_gap=least_gap)
        if len(said) > 1:
            self.conflicts.add(said, said.get("") or streams.get("", []), least_gap=least_gap)
        self.rows += 1

    def take(self, other: Heard) -> None:
        """What was said of the rows behind these."""
        number_W = np.array([self.names.setdefault(name, len(self.names)) for name in other.names], dtype=np.int32)
        for mine, theirs in ((self.judged, other.judged), (self.made, other.made)):
            for criterion, columns in theirs.items():
                mine.setdefault(criterion, Columns()).take(columns.moved(self.rows, number_W))
        self.as_judged |= other.as_judged
        self.conflicts.met.update(other.conflicts.met)
        self.conflicts.against.update(other.conflicts.against)
        self.rows += other.rows

    def survey(self, *, seed: int) -> Survey:
        """What is learned from all of it; `seed` draws the resamples behind the intervals of alpha."""
        tables = self.made | {c: self.judged[c].extend(self.made[c]) for c in self.as_judged & self.made.keys()}
        name = sorted(self.names)
        place = {annotator: i for i, annotator in enumerate(name)}
        number_W = np.array([place[annotator] for annotator in self.names], dtype=np.int32)
        known = {c: agreement(c, one, name, number_W, seed=seed) for c, one in sorted(self.judged.items())}
        new = {c: agreement(c, one, name, number_W, seed=seed) for c, one in sorted(tables.items())}
        found = {c: known[c] for c in sorted(self.as_judged)} | new
        return Survey(self.policy, self.rows, known, found, self.conflicts.rates())


def survey(source: Source, policy: Policy, *, seed: int = 0) -> Survey:
    """One walk over the rows; `seed` draws the resamples behind the intervals of alpha.

    Raises InputError for rows that the policy cannot be applied to.
    """
    heard = Heard(policy)
    for row in source():
        heard.add(row)
    return heard.survey(seed=seed)


# ---------------------------------------------------------------- one criterion


def agreement(
    criterion: str, columns: Columns, names: list[str], number_W: NDArray[np.int32], *, seed: int
) -> Agreement:
    """Everything about the votes by one criterion."""
    size_U = np.frombuffer(columns.size, dtype=np.uint16).astype(np.int64)
    table = Votes(
        item_V=np.repeat(np.arange(len(size_U), dtype=np.int32), size_U),
        annotator_V=number_W[np.frombuffer(columns.annotator, dtype=np.int32)],
        side_V=np.frombuffer(columns.side, dtype=np.int8),
        items=len(size_U),
        annotators=len(names),
    )
    said_V, gaps = np.frombuffer(columns.level, dtype=np.int8), np.frombuffer(columns.gap, dtype=np.float64)
    scale = measure(table.side_V, said_V, gaps)
    row_U = np.frombuffer(columns.row, dtype=np.uint32)
    cluster_U = row_U if len(row_U) > 1 and (row_U[1:] == row_U[:-1]).any() else None
    apart = votes.disagreement(table, cluster_U=cluster_U)
    wrong = votes.noise(apart)
    twice = table.of_items(size_U > 1)
    overlapped = int((size_U > 1).sum())
    fitted = votes.dawid_skene(twice) if overlapped >= FEWEST_ITEMS else None
    people = annotators_of(table, twice, fitted, names)
    share_W = np.bincount(twice.annotator_V, minlength=len(names)) / max(1, len(twice.item_V))
    inverted_W = np.array([name in people and people[name].verdict == "inverted" for name in names], dtype=bool)
    side_V = np.where(inverted_W[table.annotator_V], -table.side_V, table.side_V)
    turned = replace(table, side_V=side_V)
    return Agreement(
        criterion=criterion,
        votes=len(table.item_V),
        items=table.items,
        overlapped=overlapped,
        **alphas_of(table, scale, said_V, gaps, cluster_U, seed=seed),
        disagreement=apart,
        noise=wrong,
        ceiling=wrong if isinstance(wrong, Undefined) else wrong.map(lambda e: 1 - e),
        strengths=votes.strengths(turned, scale.level_V),
        steps=scale.steps,
        cuts=scale.cuts,
        typical=scale.typical,
        spread=votes.spread_of(votes.disagreement(turned)),
        tied=fitted.tied if fitted else float((table.side_V == 0).sum() / max(1, len(table.side_V))),
        crowd=tuple(float(x) for x in share_W @ fitted.habit_W5) if fitted else (),
        reliable=float(share_W @ np.where(inverted_W, 1 - fitted.right_W, fitted.right_W)) if fitted else 0.5,
        annotators=people,
    )


@dataclass(frozen=True)
class Scale:
    """Strengths of the votes 0 to 3, and what they were read from."""

    level_V: NDArray[np.int8]
    steps: bool
    cuts: tuple[float, ...]
    typical: dict[str, float]


def measure(side_V: NDArray[np.int8], said_V: NDArray[np.int8], gaps: Floats) -> Scale:
    """Choices have the strength they were said with, where not all were said with the same; ratings that of their
    difference among all differences, by thirds."""
    level_V = np.where(side_V == 0, 0, said_V).astype(np.int8)
    chosen = level_V[level_V > 0]
    steps = len(np.unique(chosen)) > 1
    typical = {"choice": float(np.median(chosen))} if len(chosen) else {}
    if not steps:
        level_V[level_V > 0] = 0
    apart = np.abs(gaps)
    decided = apart[side_V[said_V == -1] != 0]
    cuts: tuple[float, ...] = ()
    if len(decided):
        typical["rating"] = float(np.median(decided))
    if len(decided) and decided.min() < decided.max():
        cuts = tuple(float(x) for x in np.quantile(decided, [1 / 3, 2 / 3], method="higher"))
    rated = np.flatnonzero(level_V == -1)
    level_V[rated] = 1 + np.searchsorted(cuts, decided, side="right") if cuts else 0
    return Scale(level_V, steps, cuts, typical)


def alphas_of(
    table: Votes,
    scale: Scale,
    said_V: NDArray[np.int8],
    gaps: Floats,
    cluster_U: NDArray[Any] | None,
    *,
    seed: int,
) -> dict[str, Estimate]:
    """The three alphas."""

    def of(unit_V: NDArray[Any], value_V: NDArray[Any], metric: votes.Metric) -> Estimate:
        cluster_V = None if cluster_U is None else cluster_U[unit_V]
        return votes.alpha(unit_V, value_V, metric=metric, mirrored=True, cluster_V=cluster_V, seed=seed)

    signed_V = table.side_V * np.maximum(1, scale.level_V)
    rated: Estimate = Undefined("no ratings")
    if len(gaps):
        rated = of(table.item_V[said_V == -1], gaps, "interval")
    return {
        "nominal": of(table.item_V, table.side_V, "nominal"),
        "ordinal": of(table.item_V, signed_V, "ordinal"),
        "interval": rated,
    }


def annotators_of(table: Votes, twice: Votes, fitted: votes.Crowd | None, names: list[str]) -> dict[str, Annotator]:
    """What is known of each annotator who judged by this criterion."""
    given_W = np.bincount(table.annotator_V, minlength=table.annotators)
    shared_W = np.bincount(twice.annotator_V, twice.side_V != 0, minlength=table.annotators)
    rest = votes.with_the_rest(twice)
    limit_W = limits_of(fitted, np.asarray(shared_W, dtype=np.float64)) if fitted else np.full(len(names), WEAK)
    alone = Undefined("too few items that others judged too")
    found = {}
    for w in np.flatnonzero(given_W).tolist():
        met = fitted if shared_W[w] else None
        known = met.reliability(w) if met else alone
        found[names[w]] = Annotator(
            name=names[w],
            votes=int(given_W[w]),
            reliability=known,
            with_rest=rest[w],
            habit=tuple(float(x) for x in met.habit_W5[w]) if met else (),
            known=float(met.worth_W[w]) if met else 0.0,
            limit=float(limit_W[w]),
            verdict=verdict(known, limit=float(limit_W[w])),
        )
    return found


def limits_of(fitted: votes.Crowd, shared_W: NDArray[Any]) -> Floats:
    """Below what reliability each annotator is weak: 0.7, or twice the errors of the others and 5 points more."""
    skill_W = np.maximum(fitted.right_W, 1 - fitted.right_W)
    weight_W = shared_W.sum() - shared_W
    others_W = ((shared_W @ skill_W) - shared_W * skill_W) / np.maximum(1, weight_W)
    apart_W = np.minimum(others_W - 0.05, 1 - 2 * (1 - others_W))
    return np.asarray(np.where(weight_W > 0, np.maximum(WEAK, apart_W), WEAK))


def verdict(reliability: Estimate, *, limit: float) -> str:
    """What the whole interval of a reliability says of an annotator: "", "weak" or "inverted"."""
    if isinstance(reliability, Undefined) or reliability.high >= limit:
        return ""
    return "inverted" if reliability.high < 0.5 else "weak"


# ---------------------------------------------------------------- findings


def findings(found: Survey) -> list[Finding]:
    """D3: agreement and noise by criterion, and each annotator whose answers are weak or the wrong way round."""
    tables = found.judged | {c: one for c, one in found.graded.items() if one is not found.judged.get(c)}
    return [each for _, one in sorted(tables.items()) for each in of_agreement(one)]


def of_agreement(one: Agreement) -> list[Finding]:
    """The findings about one criterion."""
    about = {"criterion": spoken(one.criterion)}
    share = one.overlapped / max(1, one.items)
    out = []
    for metric, estimate, what in (
        ("nominal", one.nominal, "which response is better"),
        ("ordinal", one.ordinal, "which is better and by how much"),
    ):
        if metric == "ordinal" and not (one.steps or one.cuts):
            continue  # nobody said by how much
        text, action = f"how far annotators agree on {what} cannot be told.", ""
        if not isinstance(estimate, Undefined):
            text = f"annotators agree on {what} with an alpha of {estimate.value:.2f} "
            text += f"({share:.0%} of the comparisons have several answers)."
            action = "Sharpen the guideline where annotators part, or treat them as groups."
        slice_ = about | {"metric": metric}
        out.append(finding("D3.alpha", estimate, by(about, text), limits=ALPHA, about=slice_, action=action))
    text = "how many of the answers are wrong cannot be told."
    if not isinstance(one.noise, Undefined):
        text = f"{one.noise.value:.0%} of the answers are wrong, so no model can agree with more than "
        text += f"{1 - one.noise.value:.0%} of them."
        text = text if one.noise.value >= 0.005 else "nobody contradicts the others, so no answer shows to be wrong."
    out.append(finding("D3.noise", one.noise, by(about, text), about=about))
    named = [person for _, person in sorted(one.annotators.items()) if person.verdict]
    return out + [of_annotator(person, about=about) for person in named]


def of_annotator(person: Annotator, *, about: dict[str, str]) -> Finding:
    """The finding about one annotator."""
    name, known = person.name or "the nameless annotator", person.reliability
    often = "an unknown share" if isinstance(known, Undefined) else f"{known.value:.0%}"
    text = f"{name} takes the right side in {often} of the answers"
    text = text if one_only(about) else by(about, text)
    if person.verdict == "inverted":
        text += ": they are the wrong way round."
        action = "Ask how the answers were recorded; grading reads them turned round."
    else:
        text, action = f"{text}.", "Look at the answers together; grading trusts them little."
    about = about | {"annotator": person.name}
    limits = Limits(warn=round(person.limit, 2), fail=0.5, bad="below")
    return finding("D3.annotator", known, text, limits=limits, about=about, action=action)


def by(about: dict[str, str], text: str) -> str:
    """A sentence about a criterion; of the overall opinion that is not said."""
    return text[0].upper() + text[1:] if one_only(about) else f"By {about['criterion']!r}, {text}"


def one_only(about: dict[str, str]) -> bool:
    """Whether something is about the overall opinion."""
    return about["criterion"] == spoken("")
