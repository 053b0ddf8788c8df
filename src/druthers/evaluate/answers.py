"""Answers of base and aligned model to held-out prompts: who wins, how long they are, how they read.

Both models answer the same prompts under the same seeds, once greedily and once sampled. The headline numbers come
from the sampled answers.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from druthers import storage
from druthers.evaluate.scoring import AnswerScorer, Floats, Progress
from druthers.generation import Generator
from druthers.records import Exchange, Judgement, Message, Prompt, content_id
from druthers.stats import Estimate, Undefined, detectable_points, paired_difference, win_rate

Messages = tuple[Message, ...]
Judge = Callable[[Messages, str, str], Judgement]
"""Prompt, base answer, aligned answer to a judgement with a = "base", b = "aligned"."""
Side = Literal["base", "aligned"]
SCORES = {"a": 0.0, "tie": 0.5, "b": 1.0}


@dataclass(frozen=True)
class Sampling:
    """How answers are drawn; temperature 0 is greedy."""

    temperature: float
    top_p: float
    max_new_tokens: int
    seed: int
    samples: int = 1


@dataclass(frozen=True)
class BothSides:
    """One number for each model."""

    base: float | None
    aligned: float | None

    @property
    def ratio(self) -> float | None:
        """aligned / base; None where either is missing or base is zero."""
        return self.aligned / self.base if self.aligned is not None and self.base else None

    @property
    def change(self) -> float | None:
        """aligned - base; None where either is missing."""
        return self.aligned - self.base if self.aligned is not None and self.base is not None else None


@dataclass(frozen=True)
class Mode:
    """Base and aligned answers to the same prompts under one way of sampling; no judgements means not judged."""

    base: tuple[Exchange, ...]
    aligned: tuple[Exchange, ...]
    judgements: tuple[Judgement, ...] = ()


@dataclass(frozen=True)
class WinRate:
    """How often the aligned answer won."""

    win_rate: Estimate
    wins: int
    ties: int
    losses: int
    detectable_points: float | None

    def as_dict(self) -> dict[str, Any]:
        """JSON values."""
        return asdict(self) | {"win_rate": self.win_rate.as_dict()}


@dataclass(frozen=True)
class RuleChange:
    """Share of answers that keep one rule, before and after."""

    label: str
    base: float
    aligned: float
    change: Estimate

    def as_dict(self) -> dict[str, Any]:
        """JSON values."""
        return asdict(self) | {"change": self.change.as_dict()}


@dataclass(frozen=True)
class AnswerResult:
    """What evaluation/answers.json holds; lengths in tokens, the rest shares, perplexities of the base model."""

    rubric: str | None
    prompts: int
    sampled: WinRate
    greedy: WinRate
    length: BothSides
    repetition: BothSides
    unfinished: BothSides
    greedy_length: BothSides
    greedy_repetition: BothSides
    greedy_unfinished: BothSides
    perplexity: BothSides
    rules: dict[str, RuleChange]

    def as_dict(self) -> dict[str, Any]:
        """JSON values under the documented keys."""
        return {
            "rubric": self.rubric,
            "prompts": self.prompts,
            "sampled": self.sampled.as_dict(),
            "greedy": self.greedy.as_dict()
            | {
                "length": with_ratio(self.greedy_length),
                "repetition": asdict(self.greedy_repetition),
                "unfinished": asdict(self.greedy_unfinished),
            },
            "length": with_ratio(self.length),
            "repetition": asdict(self.repetition),
            "unfinished": asdict(self.unfinished),
            "perplexity": with_ratio(self.perplexity),
            "rules": {name: rule.as_dict() for name, rule in self.rules.items()},
        }


def evaluate_answers(
    *, sampled: Mode, greedy: Mode, rubric: str | None, labels: Mapping[str, str], base_logps: AnswerScorer, seed: int
) -> AnswerResult:
    """All numbers about the answers. `labels` names the rubric's rules; `base_logps` scores with the base model."""
    return AnswerResult(
        rubric=rubric,
        prompts=len({answer.prompt_id for answer in sampled.base}),
        sampled=judged(sampled.judgements, seed=seed),
        greedy=judged(greedy.judgements, seed=seed),
        length=both(sampled, lambda answer: float(answer.tokens)),
        repetition=both(sampled, lambda answer: repetition(answer.response)),
        unfinished=both(sampled, lambda answer: float(not answer.finished)),
        greedy_length=both(greedy, lambda answer: float(answer.tokens)),
        greedy_repetition=both(greedy, lambda answer: repetition(answer.response)),
        greedy_unfinished=both(greedy, lambda answer: float(not answer.finished)),
        perplexity=perplexities(sampled, base_logps),
        rules=rule_changes(sampled.judgements, labels, seed=seed),
    )


def choose_prompts(prompts: Iterable[Prompt], count: int | None) -> list[Messages]:
    """The first `count` distinct prompts in the order of their ids: the same choice whatever the order of the file."""
    distinct = {prompt.prompt_id: prompt.prompt for prompt in prompts}
    return [distinct[key] for key in sorted(distinct)[:count]]


def answer(
    prompts: Sequence[Messages],
    *,
    generator: Generator,
    sampling: Sampling,
    model: Side,
    progress: Progress | None = None,
) -> tuple[Exchange, ...]:
    """The answers of one model, in the order of the prompts, labelled with `model`."""
    if not prompts:
        return ()
    found = generator(
        prompts,
        samples=sampling.samples,
        temperature=sampling.temperature,
        top_p=sampling.top_p,
        max_new_tokens=sampling.max_new_tokens,
        seed=sampling.seed,
        progress=progress,
    )
    return tuple(exchange.model_copy(update={"model": model}) for answers in found for exchange in answers)


def answer_once(
    prompts: Sequence[Messages],
    *,
    generator: Generator,
    sampling: Sampling,
    identity: Mapping[str, str | int],
    cache: Path | None,
    progress: Progress | None = None,
) -> tuple[Exchange, ...]:
    """Base answers, from the cache folder when the same ones were generated before.

    `identity` says what the answers depend on beside prompts and sampling: weights, chat template, precision, device,
    library versions. A damaged cache file raises InputError naming it.
    """
    if cache is None or not prompts:
        return answer(prompts, generator=generator, sampling=sampling, model="base", progress=progress)
    file = cache / f"{answers_key(prompts, sampling, identity)}.jsonl"
    if file.exists():
        return tuple(storage.read(str(file), Exchange))
    made = answer(prompts, generator=generator, sampling=sampling, model="base", progress=progress)
    storage.write(file, made)
    return made


def answers_key(prompts: Sequence[Messages], sampling: Sampling, identity: Mapping[str, str | int]) -> str:
    """Hash of everything generated answers depend on.

    >>> sampling = Sampling(temperature=0.7, top_p=0.95, max_new_tokens=8, seed=0)
    >>> answers_key([], sampling, {"model": "x"}) == answers_key([], sampling, {"model": "y"})
    False
    """
    asked = [[message.template_form() for message in prompt] for prompt in prompts]
    return content_id({"prompts": asked, "sampling": asdict(sampling), "identity": dict(identity)})


def judge_answers(base: Sequence[Exchange], aligned: Sequence[Exchange], judge: Judge) -> tuple[Judgement, ...]:
    """One judgement for each pair of answers to the same prompt."""
    return tuple(judge(a.prompt, a.response, b.response) for a, b in zip(base, aligned, strict=True))


def judged(judgements: Sequence[Judgement], *, seed: int) -> WinRate:
    """Win rate of "b" (the aligned model) over "a", ties half, with the smallest effect so many prompts can show."""
    counts = Counter(judgement.outcome for judgement in judgements)
    labels = [judgement.prompt_id for judgement in judgements]
    prompts = len(set(labels))
    if not judgements:
        return WinRate(Undefined("no rubric judged the answers"), 0, 0, 0, None)
    return WinRate(
        win_rate=win_rate([SCORES[judgement.outcome] for judgement in judgements], labels, seed=seed),
        wins=counts["b"],
        ties=counts["tie"],
        losses=counts["a"],
        detectable_points=detectable_points(prompts, counts["tie"] / len(judgements)),
    )


def rule_changes(judgements: Sequence[Judgement], labels: Mapping[str, str], *, seed: int) -> dict[str, RuleChange]:
    """Pass rate of every rule before and after, over the prompts where both sides were scored on it."""
    found = {}
    for name, label in labels.items():
        rows = [j for j in judgements if name in j.rules_a and name in j.rules_b]
        before, after = [j.rules_a[name] for j in rows], [j.rules_b[name] for j in rows]
        if rows:
            change = paired_difference(before, after, [j.prompt_id for j in rows], seed=seed)
            found[name] = RuleChange(label, float(np.mean(before)), float(np.mean(after)), change)
    return found


def both(mode: Mode, measure: Callable[[Exchange], float]) -> BothSides:
    """Mean of a measure over each model's answers."""
    return BothSides(
        *(float(np.mean([measure(e) for e in side])) if side else None for side in (mode.base, mode.aligned))
    )


def repetition(text: str, *, size: int = 4) -> float:
    """Share of the word n-grams of a text that stood in it before; 0 for a text too short to have two.

    >>> repetition("a b c d a b c d"), repetition("all words differ in this one")
    (0.2, 0.0)
    """
    words = text.lower().split()
    grams = [tuple(words[i : i + size]) for i in range(len(words) - size + 1)]
    return (len(grams) - len(set(grams))) / len(grams) if grams else 0.0


def perplexities(mode: Mode, logps: AnswerScorer) -> BothSides:
    """Perplexity of the scoring model on each side's answers."""
    found = logps([*mode.base, *mode.aligned])
    return BothSides(perplexity(found[: len(mode.base)]), perplexity(found[len(mode.base) :]))


def perplexity(logps: Sequence[Floats]) -> float | None:
    """exp(- sum of log-probabilities / tokens) over all answers; None without tokens.

    >>> round(perplexity([np.log([0.5, 0.25]), np.log([0.5])]) or 0, 6)
    2.519842
    """
    tokens = sum(len(one) for one in logps)
    return math.exp(-sum(float(one.sum()) for one in logps) / tokens) if tokens else None


def with_ratio(sides: BothSides) -> dict[str, float | None]:
    """Both numbers and aligned / base."""
    return asdict(sides) | {"ratio": sides.ratio}
