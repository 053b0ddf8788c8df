"""Opinions to graded pairs: what annotators, ratings and rankings say of responses, by a policy.

Two walks over the rows: `survey` learns whom to believe and what strengths are worth, `grade` makes the pairs of each
row from what was said of it. A pair of responses that gives none has a reason.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from math import exp, fsum, log, nan

import numpy as np

from druthers import votes
from druthers.curate.opinions import (
    Policy,
    View,
    Vote,
    both_bad,
    compared,
    graded,
    passing,
    policy_of,
    spoken,
    views,
)
from druthers.curate.survey import Agreement, Source, Survey, findings, survey
from druthers.records import Candidate, Candidates, InputError, Pair, assistant
from druthers.stats import Floats
from druthers.storage import offer

__all__ = [
    "Graded",
    "Policy",
    "Survey",
    "check_names",
    "findings",
    "grade",
    "pairs_from_ranking",
    "policy_of",
    "survey",
]

AT_ONCE = 1024
"""Rows that are graded together."""
DIGITS = 6
"""Decimals of a probability or margin: more than is known, and few enough that no order of additions shows."""
SHRINK = 2.0
"""Answers at the crowd's own reliability that are added to what is known of an annotator."""
USUAL = (0.75, 0.1, 0.15, 0.4, 0.3)
"""The habit of annotators where too few items were judged twice: right, tie and wrong; a tie seen, a side given."""
LEAST_WEIGHT, MOST_WEIGHT = 0.1, 10.0
"""Limits of the weight of a prompt."""
UNMADE = {
    "one_response": "there is one response to the prompt, and a pair takes two",
    "unjudged": "nobody judged two of its responses, or not by every criterion that is summed",
    "empty": "of two responses that were judged one has no text",
    "same_text": "the responses that were judged have the same text",
    "tie": "what was said does not tell which response is better (grade.ties=soft keeps such a pair with p = 0.5)",
    "below_gap": "the ratings lie closer than grade.least_gap",
    "both_bad": "both responses were called bad, so the prompt should be answered again",
    "gate": "no response passes the gates of grade.gates",
    "gate_unjudged": "a response was not judged by a criterion of grade.gates",
    "gold": "its two responses are a gold item (grade.gold), which is never trained on",
}
"""Why responses gave no pair, by the code in `Graded.reasons`; pairs that the policy does not choose are not told."""


@dataclass(frozen=True)
class Aside:
    """Two responses of a row, by their places, that gave no pair, and the code of the reason."""

    first: int
    second: int
    criterion: str
    reason: str


@dataclass(frozen=True)
class Graded:
    """The pairs of one row, and why its other pairs of responses gave none.

    `reasons` counts them: "one_response", "unjudged", "empty" (a response without text), "same_text", "tie",
    "below_gap" (ratings closer than the policy's least gap), "both_bad" (the prompt should be answered again), "gate"
    (neither response passes), "gate_unjudged", "not_selected" (by the policy's choice of pairs) and "beyond_most".
    Pairs and reasons together are as many as the row has pairs of responses, for each criterion that is graded, and
    at least one. `ratings` are the mean ratings of the chosen responses, NaN where nobody rated. `doubted` are the
    annotators one of whose answers here is probably wrong, or who always answer the wrong way round. `aside` are the
    pairs of responses with one of the reasons in `UNMADE`.
    """

    row: Candidates
    pairs: tuple[Pair, ...]
    reasons: dict[str, int]
    doubted: tuple[str, ...] = ()
    aside: tuple[Aside, ...] = ()
    ratings: tuple[float, ...] = ()


def grade(source: Source, policy: Policy, *, known: Survey | None = None) -> Iterator[Graded]:
    """The rows of the source, graded; `known` is the survey of the same source where it was made before.

    The same rows and policy give the same bytes, whatever the order of opinions within a row. The weights of a
    prompt's pairs sum to 1, or to the competence of its annotators where the policy says so. Raises InputError for rows
    that the policy cannot be applied to.

    >>> from druthers.records import Opinion, user
    >>> answers = Candidate(content="Carrot."), Candidate(content="Fig.")
    >>> said = Opinion(annotator="ann", scale="choice", worth=(0.0, 1.0))
    >>> row = Candidates(prompt=user("Name a fruit."), responses=answers, opinions=(said,))
    >>> [(pair.chosen[0].content, pair.p) for each in grade(lambda: [row], Policy()) for pair in each.pairs]
    [('Fig.', 1.0)]
    """
    judges = judges_of(known or survey(source, policy), policy)
    rows = iter(source())
    while block := list(itertools.islice(rows, AT_ONCE)):
        yield from grade_together(block, policy, judges)


def judges_of(known: Survey, policy: Policy) -> dict[str, Judge]:
    """What `grade_together` has to know of those who judged."""
    return {criterion: Judge(found, policy) for criterion, found in known.graded.items()}


def check_names(policy: Policy, known: Iterable[Survey]) -> None:
    """Raises InputError for a criterion of the policy that is in no survey: unseen, it would decide nothing.

    >>> from druthers.records import Opinion, user
    >>> said = Opinion(criterion="honesty", scale="rating", worth=(1.0, 2.0))
    >>> row = Candidates(prompt=user("Name a fruit."), responses=({"content": "A"}, {"content": "B"}), opinions=(said,))
    >>> wrong = Policy(criteria=(("honsety", 1.0),))
    >>> check_names(wrong, [survey(lambda: [row], wrong)])
    Traceback (most recent call last):
    druthers.records.InputError: grade.criteria.honsety: nobody judged by that criterion; did you mean 'honesty'?
    """
    judged = {name for each in known for name in each.judged}
    for setting, given in (("criteria", policy.criteria), ("gates", policy.gates)):
        for name, _ in given:
            if name not in judged:
                remedy = offer(spoken(name), sorted(map(spoken, judged)))
                raise InputError(f"grade.{setting}.{spoken(name)}: nobody judged by that criterion{remedy}")


# ---------------------------------------------------------------- whom to believe


class Judge:
    """What a survey says of one criterion, in the form in which single votes ask for it."""

    def __init__(self, found: Agreement, policy: Policy) -> None:
        self.found, self.policy = found, policy
        self.average = min(0.99, max(0.51, found.reliable))

    @cached_property
    def habits(self) -> dict[str, tuple[float, ...]]:
        """Logarithms of the habits by annotator, in which "" of nobody stands for one not met among several."""
        return {name: tuple(map(log, one.habit)) for name, one in self.found.annotators.items() if one.habit}

    @cached_property
    def prior(self) -> tuple[float, float]:
        """Logarithms of the probabilities that a given response is better, and that they tie."""
        tied = min(1 - 1e-9, max(0.0, self.found.tied))
        return log((1 - tied) / 2), log(tied) if tied > 0 else -1e300

    def skill(self, annotator: str) -> float:
        """How often a side is right, turned round where the annotator answers so; drawn to the crowd's where little
        is known."""
        person = self.found.annotators.get(annotator)
        if person is None or not person.known:
            return self.average
        right = person.habit[0] / (person.habit[0] + person.habit[2])
        right = 1 - right if self.inverted(annotator) else right
        return (right * person.known + SHRINK * self.average) / (person.known + SHRINK)

    def trust(self, annotator: str) -> float:
        """Lead over a coin, the average annotator's being 1; negative for answers that are the wrong way round."""
        lead = (2 * self.skill(annotator) - 1) / (2 * self.average - 1)
        return -lead if self.inverted(annotator) else lead

    def inverted(self, annotator: str) -> bool:
        """Whether an annotator is known to answer the wrong way round."""
        person = self.found.annotators.get(annotator)
        return person is not None and person.verdict == "inverted"

    def level(self, vote: Vote) -> int:
        """The strength of a vote, 0 where it was not said, or always said alike."""
        if vote.side == 0 or self.policy.strength == "none":
            return 0
        if vote.scale == "rating":
            return 1 + sum(abs(vote.gap) >= cut for cut in self.found.cuts) if self.found.cuts else 0
        return vote.level if self.found.steps else 0

    def points(self, vote: Vote) -> float:
        """The signed difference of a vote as a margin, turned round where the annotator answers so."""
        scale = self.policy.margin_scale
        if scale is None:
            scale = 1 / self.found.typical.get(vote.scale, 1.0)
        return (-1 if self.inverted(vote.annotator) else 1) * scale * vote.gap

    # -------- probabilities that the first is better, that they tie, that the second is

    def alone(self, vote: Vote) -> tuple[float, float, float]:
        """From a single vote: by its strength, and by how reliable the annotator is beside the others."""
        if vote.side == 0:
            return 0.0, 1.0, 0.0
        level, skill = self.level(vote), self.skill(vote.annotator)
        right = self.found.strengths.right[level]
        if self.found.crowd:
            odds = logit(right) + logit(skill) - logit(self.average)
            right = 1 / (1 + exp(-odds)) if level else skill
        first = (vote.side > 0) != self.inverted(vote.annotator)
        return (right, 0.0, 1 - right) if first else (1 - right, 0.0, right)

    def together(self, made: Sequence[Vote]) -> tuple[float, float, float]:
        """From several votes, by Dawid and Skene's model; sums that are exact do not depend on the order of votes."""
        first, tie, second = [], [], []
        for vote in made:
            right, silent, wrong, level, forced = self.habits.get(vote.annotator) or self.anyone
            first.append(right if vote.side > 0 else wrong if vote.side else silent)
            second.append(wrong if vote.side > 0 else right if vote.side else silent)
            tie.append(forced if vote.side else level)
        side, tied = self.prior
        scores = fsum(first) + side, fsum(tie) + tied, fsum(second) + side
        top = max(scores)
        parts = [exp(score - top) for score in scores]
        whole = parts[1] + (parts[0] + parts[2])
        return parts[0] / whole, parts[1] / whole, parts[2] / whole

    @cached_property
    def anyone(self) -> tuple[float, ...]:
        """The habit of somebody of whom nothing is known."""
        return tuple(map(log, self.found.crowd or USUAL))


def logit(p: float) -> float:
    """Log-odds, of a probability held to 0.01 to 0.99."""
    p = min(0.99, max(0.01, p))
    return log(p / (1 - p))


def by_majority(made: Sequence[Vote]) -> tuple[float, float, float]:
    """The side with most votes, or a tie where that has more or the sides are even."""
    count = Counter(vote.side for vote in made)
    if count[1] == count[-1] or count[0] > max(count[1], count[-1]):
        return 0.0, 1.0, 0.0
    return (1.0, 0.0, 0.0) if count[1] > count[-1] else (0.0, 0.0, 1.0)


# ---------------------------------------------------------------- one row


@dataclass(frozen=True)
class Choice:
    """A pair of responses with the first of them preferred; `clear` orders pairs of a row, `lead` responses."""

    best: int
    worst: int
    p: float
    margin: float
    gap: float
    criterion: str

    @property
    def clear(self) -> tuple[float, float, float]:
        """The clearest pair comes first in the order of these."""
        return -self.margin, -self.p, -abs(self.gap)


def grade_together(block: Sequence[Candidates], policy: Policy, judges: dict[str, Judge]) -> Iterator[Graded]:
    """Some rows graded, as `grade` does, whatever rows stand beside them.

    It takes several at once because Bradley and Terry's model is computed for many together.
    """
    said = [views(row) for row in block]
    streams = [graded(found, policy, row=row) for found, row in zip(said, block, strict=True)]
    better = _better(streams, policy, judges)
    for number, row in enumerate(block):
        gate = passing(said[number], policy, row=row) if policy.gates else None
        tables = {criterion: better.get((number, criterion)) for criterion in streams[number]}
        yield _row(row, streams[number], policy, judges, gate=gate, better=tables)


def _by_worth(found: list[View], policy: Policy) -> bool:
    """Whether Bradley and Terry's model is the policy for what was said of a row."""
    several = len(found) > 1 and len(found[0].worth) > 2
    return policy.labels == "bradley-terry" or (policy.labels == "auto" and several)


def _better(
    streams: list[dict[str, list[View]]], policy: Policy, judges: dict[str, Judge]
) -> dict[tuple[int, str], Floats]:
    """How probable it is that one response is better than another, (K, K) by row and criterion."""
    wins: dict[tuple[str, int], list[Floats]] = {}
    places: dict[tuple[str, int], list[int]] = {}
    for number, by in enumerate(streams):
        for criterion, found in by.items():
            if _by_worth(found, policy):
                key = criterion, len(found[0].worth)
                wins.setdefault(key, []).append(_wins(found, judges[criterion]))
                places.setdefault(key, []).append(number)
    out = {}
    for (criterion, K), tables in wins.items():
        _, better_RKK = votes.bradley_terry(np.stack(tables), spread=judges[criterion].found.spread)
        for number, better_KK in zip(places[criterion, K], better_RKK, strict=True):
            out[number, criterion] = better_KK
    return out


def _wins(found: list[View], judge: Judge) -> Floats:
    """How often each response beat each other, (K, K).

    An order of m responses is as much evidence as m - 1 comparisons, so each of its m (m - 1) / 2 pairs counts 2 / m;
    and each as much as its annotator is trusted, turned round where that is negative.
    """
    K = len(found[0].worth)
    parts: list[list[list[float]]] = [[[] for _ in range(K)] for _ in range(K)]
    for view in found:
        known = sum(worth is not None for worth in view.worth)
        if known < 2:  # nothing is compared, and criteria that nobody judged on one response sum to nothing
            continue
        trust = max(-1.0, min(1.0, judge.trust(view.annotator)))
        weight = abs(trust) * 2 / known
        for i, j in itertools.combinations(range(K), 2):
            for vote in compared([view], i, j, least_gap=judge.policy.least_gap):
                side = vote.side if trust > 0 else -vote.side
                parts[i][j].append(weight * (1 + side) / 2)
                parts[j][i].append(weight * (1 - side) / 2)
    return np.array([[fsum(cell) for cell in line] for line in parts])


def _row(
    row: Candidates,
    streams: dict[str, list[View]],
    policy: Policy,
    judges: dict[str, Judge],
    *,
    gate: list[bool | None] | None,
    better: dict[str, Floats | None],
) -> Graded:
    """One row: the pairs of every criterion, chosen and weighed."""
    K = len(row.responses)
    if K < 2 or not streams:
        reason, count = ("unjudged", K * (K - 1) // 2) if K > 1 else ("one_response", 1)
        return Graded(row, (), {reason: count})
    reasons: Counter[str] = Counter()
    doubted: set[str] = set()
    kept: list[Choice] = []
    aside: list[Aside] = []
    for criterion, found in streams.items():
        choices: list[Choice] = []
        for i, j in itertools.combinations(range(K), 2):
            made = compared(found, i, j, least_gap=policy.least_gap)
            reason = _barred(row, i, j, made, gate)
            if not reason:
                judged = _judged(row, i, j, made, judges[criterion], gate=gate, better=better[criterion])
                doubted |= _doubted(made, judged, judges[criterion])
                reason = judged.reason
                choices += [_oriented(row, judged, criterion)] if not reason else []
            reasons[reason] += bool(reason)
            aside += [Aside(i, j, criterion, reason)] if reason else []
        some = _selected(row, choices, policy)
        reasons["not_selected"] += len(choices) - len(some)
        kept += some
    kept.sort(key=lambda each: (each.clear, each.criterion, _texts(row, each)))
    reasons["beyond_most"] += len(kept) - len(kept[: policy.most])
    kept = kept[: policy.most]
    share = _weight(streams, judges, policy) / max(1, len(kept))
    return Graded(
        row,
        tuple(
            _pair(
                row,
                row.responses[each.best],
                row.responses[each.worst],
                p=each.p,
                margin=each.margin,
                weight=share,
                criterion=each.criterion,
            )
            for each in kept
        ),
        {reason: count for reason, count in sorted(reasons.items()) if count},
        tuple(sorted(doubted)),
        tuple(aside),
        tuple(_rating(streams[each.criterion], each.best) for each in kept),
    )


def _rating(found: list[View], place: int) -> float:
    """The mean rating of a response, NaN where nobody rated it."""
    known = [worth for view in found if view.scale == "rating" and (worth := view.worth[place]) is not None]
    return fsum(known) / len(known) if known else nan


def _barred(row: Candidates, i: int, j: int, made: list[Vote], gate: list[bool | None] | None) -> str:
    """Why two responses give no pair whatever the votes say, or nothing."""
    one, other = row.responses[i].content, row.responses[j].content
    if not one.strip() or not other.strip():
        return "empty"
    if one.strip() == other.strip():
        return "same_text"
    if both_bad(made):
        return "both_bad"
    if gate and (gate[i] is None or gate[j] is None):
        return "gate_unjudged"
    if gate and not gate[i] and not gate[j]:
        return "gate"
    decided = gate and gate[i] != gate[j]
    return "" if made or decided else "unjudged"


@dataclass(frozen=True)
class Verdict:
    """What is held of responses i and j: probabilities of the three truths, p that the first is better, the margin by
    which it is (0 where p is not 1), or the reason why they give no pair."""

    i: int
    j: int
    truth: tuple[float, float, float]
    p: float
    margin: float
    gap: float
    reason: str


def _judged(
    row: Candidates,
    i: int,
    j: int,
    made: list[Vote],
    judge: Judge,
    *,
    gate: list[bool | None] | None,
    better: Floats | None,
) -> Verdict:
    """What the votes say of two responses, gates first."""
    if gate and gate[i] != gate[j]:
        first = 1.0 if gate[i] else 0.0
        return Verdict(i, j, (first, 0.0, 1 - first), first, 0.0, 0.0, "")
    policy = judge.policy
    truth = _truth(made, judge, None if better is None else float(better[i, j]))
    gap = fsum(judge.points(vote) for vote in made) / len(made)
    even = truth[0] == truth[2] or (truth[1] > max(truth[0], truth[2]))
    if even and policy.ties == "drop":
        near = all(vote.gap for vote in made if vote.side == 0) and any(vote.side == 0 for vote in made)
        return Verdict(i, j, truth, 0.5, 0.0, gap, "below_gap" if near else "tie")
    p = truth[0] + truth[1] / 2 if policy.ties == "soft" else truth[0] / (truth[0] + truth[2])
    p = round(p, DIGITS)
    if p == 0.5 and policy.ties == "drop":
        return Verdict(i, j, truth, p, 0.0, gap, "tie")
    if not _as_margin(made, policy) or p == 0.5:
        return Verdict(i, j, truth, p, 0.0, gap, "")
    side = 1 if p > 0.5 else -1
    return Verdict(i, j, truth, float(p > 0.5), round(max(0.0, side * gap), DIGITS), gap, "")


def _truth(made: list[Vote], judge: Judge, better: float | None) -> tuple[float, float, float]:
    """Probabilities that the first response is better, that they tie, that the second is, by the policy's labels."""
    labels = judge.policy.labels
    if labels == "majority":
        return by_majority(made)
    if better is not None:
        share = by_majority(made)
        return share if share[1] and len({vote.side for vote in made}) == 1 else (better, 0.0, 1 - better)
    if len(made) == 1 and (labels == "auto" or not judge.found.crowd):
        return judge.alone(made[0])
    return judge.together(made)


def _as_margin(made: list[Vote], policy: Policy) -> bool:
    """Whether the strength of these votes becomes a margin; never p and a margin from one answer."""
    if any(vote.scale == "rank" for vote in made):
        return False
    single_rating = len(made) == 1 and made[0].scale == "rating" and policy.labels in ("auto", "majority")
    return policy.strength == "margin" or (policy.strength == "auto" and single_rating)


def _doubted(made: list[Vote], judged: Verdict, judge: Judge) -> set[str]:
    """The annotators whose side is probably wrong, where others judged too, or always is."""
    first, _, second = judged.truth
    wrong = {1: second > 0.5 and len(made) > 1, -1: first > 0.5 and len(made) > 1, 0: False}
    return {vote.annotator for vote in made if wrong[vote.side] or (vote.side and judge.inverted(vote.annotator))}


def _oriented(row: Candidates, judged: Verdict, criterion: str) -> Choice:
    """The better response first; of two that tie, the one whose text comes first."""
    i, j = judged.i, judged.j
    first = judged.p > 0.5 or (judged.p == 0.5 and row.responses[i].content < row.responses[j].content)
    best, worst = (i, j) if first else (j, i)
    p = judged.p if judged.p >= 0.5 else round(1 - judged.p, DIGITS)
    return Choice(best, worst, p, judged.margin, judged.gap, criterion)


def _texts(row: Candidates, choice: Choice) -> tuple[str, str]:
    return row.responses[choice.best].content, row.responses[choice.worst].content


def _selected(row: Candidates, choices: list[Choice], policy: Policy) -> list[Choice]:
    """Those of the pairs that the policy takes: all, the best response against the worst, or neighbours in order."""
    if policy.pairs == "all" or len(choices) < 2:
        return choices
    lead: dict[int, float] = {}
    for each in choices:
        lead[each.best] = lead.get(each.best, 0.0) + each.p - 0.5
        lead[each.worst] = lead.get(each.worst, 0.0) - (each.p - 0.5)
    order = sorted(lead, key=lambda i: (-round(lead[i], DIGITS), row.responses[i].content))
    place = {i: at for at, i in enumerate(order)}
    if policy.pairs == "adjacent":
        return [each for each in choices if abs(place[each.best] - place[each.worst]) == 1]
    return [min(choices, key=lambda each: (place[each.best] - place[each.worst], each.clear, _texts(row, each)))]


def _weight(streams: dict[str, list[View]], judges: dict[str, Judge], policy: Policy) -> float:
    """What a prompt weighs: 1, or the mean competence of those who judged it, the crowd's being 1, within limits."""
    if policy.weight == "prompt":
        return 1.0
    leads = [abs(judges[criterion].trust(view.annotator)) for criterion, found in streams.items() for view in found]
    return round(min(MOST_WEIGHT, max(LEAST_WEIGHT, fsum(leads) / len(leads))), DIGITS)


# ---------------------------------------------------------------- ratings alone


def pairs_from_ranking(
    candidates: Candidates,
    *,
    margin_scale: float = 0.0,
    most: int | None = None,
    must: Collection[str] = (),
    length_cost: float = 0.0,
) -> list[Pair]:
    """Pairs of the responses to one prompt, the clearest first; ties and empty responses give none.

    How clear a pair is: the difference in score, less `length_cost` for every word that chosen has fewer than rejected
    (a preference that comes with brevity teaches brevity first); pairs left with nothing are dropped. `margin_scale`
    is the margin, in units of the reward, of one point of it. `most` keeps that many pairs of a prompt, the clearest;
    1 is best against worst. A response that breaks one of the rules named in `must` is never the chosen one.
    The weights of a prompt's pairs sum to 1, so every prompt counts the same. Scores decide; where they are missing,
    ranks do (1 is best).

    Raises InputError when a response has neither score nor rank, or no score where a margin or a cost of length is
    wanted.

    >>> from druthers.records import user
    >>> rated = Candidates(prompt=user("Name a fruit."), responses=(
    ...     Candidate(content="Plum.", score=3.0), Candidate(content="A carrot.", score=1.0)))
    >>> [(p.chosen[0].content, p.margin) for p in pairs_from_ranking(rated, margin_scale=0.5, length_cost=0.2)]
    [('Plum.', 0.9)]
    """
    worth = _worth(candidates, graded=bool(margin_scale or length_cost))
    usable = [response for response in candidates.responses if response.content.strip()]
    ordered = sorted(usable, key=lambda response: -worth[id(response)])
    fit = {id(response) for response in usable if all(response.rules.get(rule, 1.0) for rule in must)}
    found: dict[tuple[str, str], tuple[float, Candidate, Candidate]] = {}
    for i, best in enumerate(ordered):
        for worst in reversed(ordered[i + 1 :]):
            shorter = max(0, _words(worst) - _words(best))
            clear = worth[id(best)] - worth[id(worst)] - length_cost * shorter
            if id(best) in fit and clear > 0 and best.content != worst.content:
                found[best.content, worst.content] = clear, best, worst
    kept = sorted(found.values(), key=lambda each: -each[0])[:most]
    return [
        _pair(candidates, best, worst, margin=margin_scale * clear, weight=1 / len(kept)) for clear, best, worst in kept
    ]


def _words(response: Candidate) -> int:
    return len(response.content.split())


def _worth(candidates: Candidates, *, graded: bool) -> dict[int, float]:
    """The worth of each response by its object id: its score, or the negative of its rank."""
    responses = candidates.responses
    if all(response.score is not None for response in responses):
        return {id(response): float(response.score or 0) for response in responses}
    if all(response.rank is not None for response in responses) and not graded:
        return {id(response): -float(response.rank or 0) for response in responses}
    missing = next(i for i, response in enumerate(responses) if response.score is None)
    rule = "a margin needs scores" if graded else "every response needs a score, or every one a rank"
    raise InputError(
        f"prompt {candidates.prompt_id}: response {missing} has no score, but {rule}; rate it with `druthers judge`"
    )


def _pair(
    row: Candidates,
    best: Candidate,
    worst: Candidate,
    *,
    p: float = 1.0,
    margin: float = 0.0,
    weight: float,
    criterion: str = "",
) -> Pair:
    return Pair(
        prompt=row.prompt,
        chosen=assistant(best.content),
        rejected=assistant(worst.content),
        p=p,
        margin=margin,
        weight=weight,
        group=row.group,
        criterion=criterion,
        source=_source(best, worst),
        tools=row.tools,
    )


def _source(best: Candidate, worst: Candidate) -> str:
    return best.source if best.source == worst.source else f"{best.source} over {worst.source}"
