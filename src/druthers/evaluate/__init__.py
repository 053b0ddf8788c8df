"""The stage that measures: held-out pairs, answers of base and aligned model, and the distance between the two.

It reads the run directory and two models, and writes `evaluation/`. The reference is always the base model: where it
carries an adapter, its work is done with the adapter switched off.
"""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import transformers

from druthers import judges, models, storage
from druthers.config import EvaluateSettings, Settings
from druthers.corpus import tokenized
from druthers.evaluate.along import Along, Scorer, rubric_scorer
from druthers.evaluate.answers import (
    AnswerResult,
    Judge,
    Messages,
    Mode,
    Sampling,
    Side,
    answer,
    answer_once,
    choose_prompts,
    evaluate_answers,
    judge_answers,
)
from druthers.evaluate.kl import KL, evaluate_kl
from druthers.evaluate.pairs import PairResult, evaluate_pairs, explain
from druthers.evaluate.scoring import AnswerScorer, Floats, Progress, answer_logps, score_outcomes
from druthers.evaluate.verdict import Verdict, verdict
from druthers.generation import Generator, transformers_generator
from druthers.losses import LOSSES
from druthers.models import Loaded
from druthers.objectives import reporting_beta
from druthers.records import Exchange, Outcome, Pair, Prompt
from druthers.run import Run

__all__ = ["evaluate", "evaluate_answers", "evaluate_kl", "evaluate_pairs", "make_along", "verdict"]

KL_SAMPLES = 2
"""Samples per prompt for the KL: two share a row pair, so the second costs generation only."""
PAIRS, PROMPTS = "data/heldout.jsonl", "data/prompts-heldout.jsonl"
"""What was never trained on: pairs, or the prompts of a run on sampled answers."""
SEED_OF_KL = 1
"""Added to the run's seed, so that the KL's samples are not the judged answers again."""


def evaluate(
    run: Run,
    *,
    settings: Settings,
    policy: Loaded,
    reference: Loaded,
    progress: Progress | None = None,
    cache: Path | None = None,
) -> dict[str, Any]:
    """Measure `policy` (the run's best step) against `reference`, write `evaluation/` and return the headline keys.

    `progress` counts answers; `cache` is a folder of base answers that later runs on the same model reuse.
    Raises InputError for prompts or a rubric that cannot be read, before anything is generated.
    """
    own = settings.evaluate
    pairs = list(storage.read(str(run.path(PAIRS)), Pair)) if run.has(PAIRS) or not run.has(PROMPTS) else []
    asked = held_out_prompts(own.prompts or (str(run.path(PROMPTS)) if run.has(PROMPTS) else None), pairs)
    prompts, kl_prompts = choose_prompts(asked, own.count), choose_prompts(asked, own.kl_prompts)
    rubric = None if own.rubric is None else judges.load_rubric(own.rubric)
    room = Room(run, settings, policy, reference, Bar(progress, total=4 * len(prompts) + KL_SAMPLES * len(kl_prompts)))
    answers = measure_answers(room, prompts=prompts, rubric=rubric, cache=cache)
    kl = measure_kl(room, prompts=kl_prompts)
    found = verdict(answers.sampled, rubric=answers.rubric, prompts=answers.prompts)
    held_out = measure_pairs(room, pairs=pairs, found=found) if pairs else None
    return headline(found, pairs=held_out, answers=answers, kl=kl)


def make_along(
    run: Run,
    *,
    settings: Settings,
    base: Callable[[Loaded], AbstractContextManager[Loaded]],
    scorer: Scorer | None = None,
    cache: Path | None = None,
) -> Along:
    """What is measured at every checkpoint of a run: `evaluate.along` of its held-out prompts.

    The reward is that of the `scorer`; without one it is that of the run's rubric, if it has one. `base` opens the
    reference of a policy. Raises InputError for prompts or a rubric that cannot be read.
    """
    own = settings.evaluate
    pairs = [] if own.prompts else list(storage.read(str(run.path("data/heldout.jsonl")), Pair))
    rubric = None if own.rubric is None else rubric_scorer(judges.load_rubric(own.rubric))
    return Along(
        folder=run.folder,
        prompts=choose_prompts(held_out_prompts(own.prompts, pairs), own.along),
        max_new_tokens=own.max_new_tokens,
        seed=settings.seed + SEED_OF_KL,
        batch_size=own.batch_size,
        token_budget=settings.train.token_budget,
        base=base,
        identity=lambda reference: identity_of(reference, batch_size=own.batch_size),
        scorer=scorer or rubric,
        cache=cache,
    )


class Bar:
    """One progress bar over several pieces of work, each of which counts from zero."""

    def __init__(self, progress: Progress | None, *, total: int) -> None:
        self.progress, self.total, self.start = progress, total, 0

    def part(self, size: int) -> Progress:
        """The callback of the next piece, worth `size` of the total."""
        start = self.start
        self.start += size

        def report(done: int, of: int) -> None:
            if self.progress:
                self.progress(start + (size * done // of if of else size), self.total)

        return report


@dataclass(frozen=True)
class Room:
    """What all three measurements need."""

    run: Run
    settings: Settings
    policy: Loaded
    reference: Loaded
    bar: Bar

    def generator(self, side: Side) -> Generator:
        """The generator of base or aligned answers."""
        loaded = self.reference if side == "base" else self.policy
        return transformers_generator(loaded, batch_size=self.settings.evaluate.batch_size, model_name=side)

    def logps(self, side: Side) -> AnswerScorer:
        """Token log-probabilities under the policy, or under the base model beneath its adapter."""
        budget = self.settings.train.token_budget

        def score(answers: Sequence[Exchange]) -> list[Floats]:
            if side == "aligned":
                return answer_logps(answers, loaded=self.policy, token_budget=budget)
            with underneath(self.reference):
                return answer_logps(answers, loaded=self.reference, token_budget=budget)

        return score


def underneath(reference: Loaded) -> AbstractContextManager[object]:
    """The reference as the base model: its adapter, where it has one, is off inside the block."""
    return models.adapter_off(reference) if reference.adapted else contextlib.nullcontext()


def measure_answers(
    room: Room, *, prompts: Sequence[Messages], rubric: judges.Rubric | None, cache: Path | None
) -> AnswerResult:
    """Greedy and sampled answers of both models, their judgements and all numbers about them, written and returned."""
    modes = {
        mode: answer_both(room, prompts, sampling=sampling, judge=judge_of(rubric), cache=cache)
        for mode, sampling in samplings(room.settings.evaluate, seed=room.settings.seed).items()
    }
    for mode, made in modes.items():
        write_mode(room.run, mode, made)
    result = evaluate_answers(
        sampled=modes["sampled"],
        greedy=modes["greedy"],
        rubric=None if rubric is None else rubric.name,
        labels={} if rubric is None else rubric.labels,
        base_logps=room.logps("base"),
        seed=room.settings.seed,
    )
    storage.write_json(room.run.path("evaluation/answers.json"), result.as_dict())
    return result


def answer_both(
    room: Room, prompts: Sequence[Messages], *, sampling: Sampling, judge: Judge | None, cache: Path | None
) -> Mode:
    """Answers of base and aligned model under the same seed, judged where there is a judge."""
    identity = identity_of(room.reference, batch_size=room.settings.evaluate.batch_size)
    with underneath(room.reference):
        base = answer_once(
            prompts,
            generator=room.generator("base"),
            sampling=sampling,
            identity=identity,
            cache=cache,
            progress=room.bar.part(len(prompts)),
        )
    generator, progress = room.generator("aligned"), room.bar.part(len(prompts))
    aligned = answer(prompts, generator=generator, sampling=sampling, model="aligned", progress=progress)
    return Mode(base, aligned, judge_answers(base, aligned, judge) if judge else ())


def measure_kl(room: Room, *, prompts: Sequence[Messages]) -> KL:
    """Samples of the policy at temperature 1 and their KL to the reference, written and returned."""
    own, seed = room.settings.evaluate, room.settings.seed
    sampling = Sampling(1.0, 1.0, own.max_new_tokens, seed + SEED_OF_KL, KL_SAMPLES)
    generator, progress = room.generator("aligned"), room.bar.part(KL_SAMPLES * len(prompts))
    samples = answer(prompts, generator=generator, sampling=sampling, model="aligned", progress=progress)
    result = evaluate_kl(samples, policy=room.logps("aligned"), reference=room.logps("base"), seed=seed)
    storage.write_json(room.run.path("evaluation/kl.json"), result.as_dict())
    return result


def measure_pairs(room: Room, *, pairs: Sequence[Pair], found: Verdict) -> PairResult:
    """Diagnostics of the held-out pairs at the best step, written and returned."""
    outcomes = held_out_outcomes(room)
    prompts = {pair.id: pair.prompt_id for pair in pairs}
    result = evaluate_pairs(outcomes, prompts=prompts, beta=reporting_beta(room.settings.loss), seed=room.settings.seed)
    result = replace(result, text=explain(result, verdict=found.word))
    storage.write_json(room.run.path("evaluation/pairs.json"), result.as_dict())
    return result


def held_out_outcomes(room: Room) -> list[Outcome]:
    """Outcomes of the best step as training wrote them; scored now where it wrote none."""
    step, settings = best_step(room.run), room.settings
    written = outcomes_of_step(room.run, step)
    if written:
        return written
    pairs = tokenized(
        room.run.path("data/heldout.jsonl"),
        room.policy.tokenizer,
        max_prompt=settings.data.max_prompt,
        max_response=settings.data.max_response,
        workers=torch.get_num_threads(),
    )
    return score_outcomes(
        pairs,
        policy=room.policy,
        reference=room.reference,
        inside=underneath,
        loss=LOSSES[settings.loss.name](**settings.loss.model_dump(exclude={"name"})),
        step=step,
        token_budget=settings.train.token_budget,
    )


def headline(found: Verdict, *, pairs: PairResult | None, answers: AnswerResult, kl: KL) -> dict[str, Any]:
    """The keys of summary.json that belong to this stage; a run on sampled answers has no pairs."""
    names = () if pairs is None else ("accuracy", "margin", "chosen_fell")
    return {
        "verdict": found.word,
        "text": found.text,
        "heldout": {name: getattr(pairs, name).as_dict() for name in names},
        "win_rate": answers.sampled.win_rate.as_dict(),
        "win_rate_greedy": answers.greedy.win_rate.as_dict(),
        "length_ratio": answers.length.ratio,
        "repetition_change": answers.repetition.change,
        "perplexity_ratio": answers.perplexity.ratio,
        "kl_per_sequence": kl.k1_sequence.as_dict(),
    }


def held_out_prompts(path: str | None, pairs: Sequence[Pair]) -> list[Prompt]:
    """The prompts of a file, or those of the held-out pairs."""
    if path is not None:
        return list(storage.read(path, Prompt))
    return [Prompt(prompt=pair.prompt, group=pair.group) for pair in pairs]


def samplings(own: EvaluateSettings, *, seed: int) -> dict[str, Sampling]:
    """The two ways of answering."""
    return {
        "greedy": Sampling(0.0, 1.0, own.max_new_tokens, seed),
        "sampled": Sampling(own.temperature, own.top_p, own.max_new_tokens, seed),
    }


def best_step(run: Run) -> int:
    """The step whose checkpoint was kept; 0 for a run that was never trained."""
    return int(run.json("checkpoints/best.json")["step"]) if run.has("checkpoints/best.json") else 0


def outcomes_of_step(run: Run, step: int) -> list[Outcome]:
    """Held-out outcomes of one step that training wrote; none where it wrote none."""
    if not run.has("outcomes.parquet"):
        return []
    rows = storage.rows(str(run.path("outcomes.parquet")))
    return [
        storage.parse(row, Outcome, where=where)
        for where, row in rows
        if row.get("split") == "heldout" and row.get("step") == step
    ]


def judge_of(rubric: judges.Rubric | None) -> Judge | None:
    """The rubric as a judge of base against aligned answers."""
    if rubric is None:
        return None
    return lambda prompt, a, b: judges.compare(rubric, prompt, a, b, names=("base", "aligned"))


def identity_of(reference: Loaded, *, batch_size: int) -> Mapping[str, str | int]:
    """What base answers depend on beside prompts and sampling."""
    return {
        "model": reference.sha,
        "chat_template": hashlib.sha256(str(reference.tokenizer.chat_template).encode()).hexdigest(),
        "compute": str(reference.compute),
        "device": reference.device.type,
        "batch_size": batch_size,
        "threads": torch.get_num_threads() if reference.device.type == "cpu" else 1,
        "torch": torch.__version__,
        "transformers": transformers.__version__,
    }


def write_mode(run: Run, mode: str, result: Mode) -> None:
    """Answers of both models and, where they were judged, their judgements."""
    storage.write(run.path(f"evaluation/answers-{mode}.jsonl"), [*result.base, *result.aligned])
    judgements = run.path(f"evaluation/judgements-{mode}.jsonl")
    if result.judgements:
        storage.write(judgements, result.judgements)
    else:
        judgements.unlink(missing_ok=True)
