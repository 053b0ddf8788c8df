"""Read it yourself: which answers the page shows, chosen by a stated rule and a seed, never by hand."""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from druthers.records import Exchange, Judgement, Message
from druthers.report import wording
from druthers.report.reading import RunFiles, branch, number, text
from druthers.report.wording import NONE

BEST, WORST, RANDOM = 4, 4, 2
WORTH = {"b": 1.0, "tie": 0.0, "a": -1.0}
SAID = {"b": "aligned won", "a": "base won", "tie": "tie"}
LONGEST_ANSWER, LONGEST_TURN, MOST_TURNS = 2400, 1600, 4


@dataclass(frozen=True)
class Comparison:
    """The two answers to one prompt, and the judgement if there is one."""

    base: Exchange
    aligned: Exchange
    judgement: Judgement | None

    @property
    def gain(self) -> float:
        """Score of the aligned answer minus that of the base; the bare outcome where the judge gave no scores."""
        found = self.judgement
        if found is None:
            return 0.0
        if found.score_a is None or found.score_b is None:
            return WORTH[found.outcome]
        return found.score_b - found.score_a


@dataclass(frozen=True)
class Picked:
    """A comparison and why it is shown: 'best', 'worst' or 'random'."""

    why: str
    comparison: Comparison


@dataclass(frozen=True)
class Mark:
    """What an answer did with one rule: 'kept', 'broken' or 'partly'."""

    rule: str
    state: str


@dataclass(frozen=True)
class Answer:
    """One side of a sample, at most `LONGEST_ANSWER` characters of it."""

    text: str
    left_out: int
    tokens: int
    finished: bool
    score: str
    marks: Sequence[Mark]


@dataclass(frozen=True)
class Sample:
    """A prompt as (role, text, characters left out) turns with both answers."""

    why: str
    turns: Sequence[tuple[str, str, int]]
    hidden_turns: int
    verdict: str
    base: Answer
    aligned: Answer


def compare(exchanges: Sequence[Exchange], judgements: Sequence[Judgement]) -> list[Comparison]:
    """Answers joined by prompt: its k-th base answer, k-th aligned answer and k-th judgement belong together."""
    answers: dict[tuple[str, str], list[Exchange]] = defaultdict(list)
    for exchange in exchanges:
        answers[exchange.prompt_id, exchange.model].append(exchange)
    judged: dict[str, list[Judgement]] = defaultdict(list)
    for judgement in judgements:
        judged[judgement.prompt_id].append(judgement)
    found: list[Comparison] = []
    for prompt in dict.fromkeys(prompt for prompt, _ in answers):
        sides = zip(answers.get((prompt, "base"), []), answers.get((prompt, "aligned"), []), strict=False)
        verdicts = judged.get(prompt, [])
        for k, (base, aligned) in enumerate(sides):
            found.append(Comparison(base, aligned, verdicts[k] if k < len(verdicts) else None))
    return found


def pick(comparisons: Sequence[Comparison], *, seed: int) -> list[Picked]:
    """The largest gains, the smallest (smallest first), and a seeded draw from the rest; none twice.

    Equal gains go by the prompt's id. Unjudged comparisons can only be drawn at random.
    """
    ranked = sorted((c for c in comparisons if c.judgement), key=lambda c: (-c.gain, c.base.prompt_id))
    best = ranked[:BEST]
    worst = ranked[BEST:][::-1][:WORST]
    shown = {id(c) for c in best + worst}
    rest = sorted((c for c in comparisons if id(c) not in shown), key=lambda c: c.base.prompt_id)
    wanted = RANDOM if ranked else BEST + RANDOM
    some = random.Random(seed).sample(rest, min(wanted, len(rest)))
    return [Picked(why, c) for why, part in (("best", best), ("worst", worst), ("random", some)) for c in part]


def shown_samples(files: RunFiles) -> list[Sample]:
    """The picked comparisons as they are printed."""
    rules = branch(files.tree("evaluation/answers.json"), "rules")
    labels = {key: wording.capital(text(rule, "label") or key) for key, rule in rules.items()}
    picked = pick(compare(files.exchanges, files.judgements), seed=int(number(files.config, "seed") or 0))
    return [show(one.comparison, why=one.why, labels=labels) for one in picked]


def show(found: Comparison, *, why: str, labels: Mapping[str, str]) -> Sample:
    """One comparison as it is printed: the last turns of the prompt, both answers cut to a length, marks in words."""
    turns = [turn(message) for message in found.base.prompt]
    judged = found.judgement
    if judged is None:
        base, aligned = (answer(side, None, {}, labels=labels) for side in (found.base, found.aligned))
    else:
        base = answer(found.base, judged.score_a, judged.rules_a, labels=labels)
        aligned = answer(found.aligned, judged.score_b, judged.rules_b, labels=labels)
    return Sample(why, turns[-MOST_TURNS:], max(0, len(turns) - MOST_TURNS), said(found), base, aligned)


def said(found: Comparison) -> str:
    """Who won, and by how much."""
    if found.judgement is None:
        return "not judged"
    scored = found.judgement.score_a is not None and found.judgement.score_b is not None
    return SAID[found.judgement.outcome] + (f", score {wording.signed(found.gain)}" if scored else "")


def answer(exchange: Exchange, score: float | None, rules: Mapping[str, float], *, labels: Mapping[str, str]) -> Answer:
    """One side: its text, its length and what it did with each rule."""
    marks = [
        Mark(labels.get(rule, rule), "kept" if kept >= 1 else "broken" if kept <= 0 else "partly")
        for rule, kept in rules.items()
    ]
    shown = NONE if score is None else wording.decimal(score)
    return Answer(*wording.shorten(exchange.response, LONGEST_ANSWER), exchange.tokens, exchange.finished, shown, marks)


def turn(message: Message) -> tuple[str, str, int]:
    """(role, text, characters left out) of one turn of a prompt."""
    return (message.role, *wording.shorten(message.content, LONGEST_TURN))


def sample_rule(files: RunFiles) -> str:
    """How the samples were picked, in words."""
    seed = f"{number(files.config, 'seed') or 0:.0f}"
    if not files.judgements:
        return f"Nobody judged these answers, so they were drawn at random with seed {seed}."
    return (
        f"Picked by rule, never by hand: the {BEST} sampled answers whose score rose most over the base's, "
        f"the {WORST} where it fell most or rose least, and {RANDOM} drawn from the rest with seed {seed}."
    )
