"""What a run will take, before it runs: memory, time and cost, by its settings, its data and a minute on this machine.

The standing memory is added up from the model; what a step has alive beyond it is measured by taking steps of the run,
the largest among them, at a learning rate of zero.
"""

from __future__ import annotations

import contextlib
import functools
import gc
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from druthers import batching, models
from druthers.allocation import release
from druthers.batching import Order, layout_of
from druthers.compiled import compiling, prove
from druthers.config import Settings
from druthers.crew import Crew, crew_of
from druthers.evaluate import identity_of, samplings
from druthers.evaluate.along import SAMPLES
from druthers.evaluate.answers import answers_key
from druthers.memory import (
    GIB,
    Choice,
    Standing,
    fitting,
    head_bytes,
    largest,
    peak_gib,
    resident_bytes,
    room_bytes,
    size_of,
    standing,
)
from druthers.models import Loaded, adapter_off, trainable
from druthers.pipeline import check_evaluation, load_model, prepare
from druthers.plan import clock
from druthers.plan.clock import Answering
from druthers.plan.work import Workload, workload
from druthers.recompute import recomputing
from druthers.run import Run, check_folder
from druthers.session import Screen
from druthers.storage import cache_folder
from druthers.tokens import TokenizedPair
from druthers.train import reference
from druthers.train.loop import (
    Schedule,
    choose_recompute,
    make_loss,
    make_optimizer,
    make_schedule,
    used_pairs,
)
from druthers.train.optimizer import state_bytes
from druthers.train.reference import Reference
from druthers.train.reference_cache import Cache, keys_of

SEEN = 256
"""Steps of the schedule, evenly spread, whose tokens are counted."""
TAKEN = (0.5, 1.0, 0.25, 0.75, 0.1, 0.9, 0.4, 0.6)
"""Steps that are taken, by the share of the steps that have fewer tokens; the first warms up and is not timed. As many
as a run takes before it gives freed memory back, for what it holds grows from step to step until then."""
Seconds = dict[str, float]
STAGES = {
    "train": ("load", "reference", "steps", "evaluations", "along", "checkpoints"),
    "evaluate": ("base model", "answers", "scoring"),
}
"""Stages of a run, and the parts of the plan that they take."""


@dataclass(frozen=True)
class Steps:
    """Tokens computed in steps of the schedule, evenly spread over it, and their pairs."""

    total: int
    pairs: list[list[TokenizedPair]]
    tokens: list[int]

    @property
    def mean(self) -> float:
        """Tokens of a step."""
        return sum(self.tokens) / len(self.tokens)

    def at(self, share: float) -> int:
        """The step than which a share of them has fewer tokens."""
        order = sorted(range(len(self.tokens)), key=self.tokens.__getitem__)
        return order[round(share * (len(order) - 1))]


@dataclass(frozen=True)
class Training:
    """What was measured of training: seconds by part, seconds a scored token, peak in GiB, what stands in memory."""

    seconds: Seconds
    pace: float
    peak_gib: float
    standing: Standing
    choice: Choice
    members: int
    head: int


def plan(settings: Settings, *, price_per_hour: float | None, screen: Screen) -> dict[str, Any]:
    """Expected memory, time and cost of `druthers align` with these settings on this machine; only caches are written.

    Raises InputError as the run would, for what it would find before its first step, and when a step does not fit.
    """
    prepare(settings)
    run = Run(Path(settings.run))
    check_folder(run.folder)
    check_evaluation(run, settings)
    screen.stage("plan")
    tokenizer = models.load_tokenizer(settings.model)
    models.check_model(settings.model)
    work = workload(settings, tokenizer)
    screen.say(f"{work.train:,} training pairs, {work.held:,} held out, {work.how}")
    since = time.monotonic()
    policy = load_model(settings)
    load = time.monotonic() - since
    process = process_bytes(policy)
    schedule = make_schedule(work.train, settings.train)
    steps = steps_of(work, schedule, policy, settings)
    screen.say(f"{schedule.total:,} steps of {steps.mean:,.0f} tokens; trying {len(TAKEN)} at a learning rate of zero")
    training = train_a_little(work, schedule, steps, policy, settings, screen=screen)
    gc.collect()
    release()  # as a run does after training
    left = process_bytes(policy)
    screen.say("answering a few prompts")
    talk = clock.answering(policy, work.prompts, settings.evaluate)
    seconds = {"curate": work.seconds, "load": load, **training.seconds}
    seconds |= answer_seconds(work, talk, policy, settings, load=load, pace=training.pace)
    if work.along:
        seconds["along"] = along_seconds(work, talk, policy, settings, load=load, pace=training.pace, schedule=schedule)
    found = report(settings, work, steps, policy, training, talk, seconds, process=process, left=left)
    return found | {"cost": None if price_per_hour is None else round(found["hours"] * price_per_hour, 2)}


def process_bytes(policy: Loaded) -> int:
    """Bytes of everything but tensors: the interpreter, libraries and the pairs; none of it is on a GPU."""
    if policy.device.type == "cuda":
        return 0
    return max(0, resident_bytes() - size_of([*policy.model.parameters(), *policy.model.buffers()]))


def steps_of(work: Workload, schedule: Schedule, policy: Loaded, settings: Settings) -> Steps:
    """Steps of the schedule; those of a sample of the pairs where the workload is one."""
    t = settings.train
    order = Order(work.pairs, kind=t.order, pairs_per_step=t.pairs_per_step, seed=settings.seed)
    whole = max(1, len(work.pairs) // t.pairs_per_step)
    last = schedule.total if work.train == len(work.pairs) else min(schedule.total, whole)
    seen = sorted({round(i * (last - 1) / max(1, min(SEEN, last) - 1)) for i in range(min(SEEN, last))})
    pairs = [[work.pairs[i] for i in order.step(step)] for step in seen]
    return Steps(schedule.total, pairs, [computed(some, policy, t.token_budget) for some in pairs])


def computed(pairs: Sequence[TokenizedPair], policy: Loaded, token_budget: int) -> int:
    """Tokens that a step computes, padding too."""
    rung = policy.layout.rung
    if rung != "padded":
        return sum(tree.size for tree in layout_of(pairs, rung))
    groups = batching.plan(pairs, token_budget=token_budget, crew=1, rung=rung)
    return sum(2 * len(group) * max(pairs[i].longest for i in group) for group in groups)


def train_a_little(
    work: Workload, schedule: Schedule, steps: Steps, policy: Loaded, settings: Settings, *, screen: Screen
) -> Training:
    """Some steps, the largest among them, then some scoring and a checkpoint."""
    t = settings.train
    loss = make_loss(settings, work.pairs, work.heldout)
    scores, missing = scored_by(work, schedule, policy, settings)
    crew, optimizer = crew_of(policy), make_optimizer(policy, t, seed=settings.seed)
    choice = choose_recompute(crew, optimizer, used_of(work, schedule, settings), t)
    screen.say(f"recompute: {choice.text}")
    taken: list[tuple[float, int]] = []
    with (
        compiling(crew.members, wanted=t.compile != "none"),
        recomputing(crew.members, choice.kind),
        fitting(choice, policy.device),
    ):
        if t.compile != "none":
            screen.say(f"compile: {prove(crew, work.pairs)}")
        for at in map(steps.at, TAKEN):
            one = functools.partial(clock.step, steps.pairs[at], crew, optimizer, scores, loss, settings=settings)
            taken.append((clock.timed(one, policy.device), steps.tokens[at]))
    timed = taken[1:]
    each = sum(seconds for seconds, _ in timed) / sum(tokens for _, tokens in timed)
    pace, look = clock.scoring_paces(crew, scores, loss, work.heldout, token_budget=t.token_budget)
    peak = peak_gib(policy.device)
    held = clock.tokens_of(work.heldout, policy) * work.held / len(work.heldout)
    seconds = {
        "reference": missing * pace,
        "steps": steps.total * steps.mean * each,
        "evaluations": len(schedule.evaluate) * held * look,
        "checkpoints": len(schedule.save) * clock.saving(policy, optimizer, beside=Path(settings.run)),
    }
    states = state_bytes(trainable(policy).values(), t.optimizer)
    held_bytes = standing(crew, states=states)
    return Training(seconds, pace, peak, held_bytes, choice, len(crew.members), head_of(crew, work, settings))


def scored_by(work: Workload, schedule: Schedule, policy: Loaded, settings: Settings) -> tuple[Reference, float]:
    """What stands for the reference while steps are taken, and the tokens that are to be scored before them."""
    t = settings.train
    if t.reference in ("copy", "adapter"):
        chosen = reference.choose(t.reference, policy, [], token_budget=t.token_budget)
        return chosen.scores, 0.0
    used, exact = used_of(work, schedule, settings), work.train == len(work.pairs)
    cache = cache_of(policy)
    reached = min(work.train, schedule.total * t.pairs_per_step)
    missing = 0.0
    for some, times in ((used, 1.0 if exact else reached / len(used)), (work.heldout, work.held / len(work.heldout))):
        known_B = np.all(cache.has(keys_of(some)), axis=0)
        lacking = [pair for pair, known in zip(some, list(known_B), strict=True) if not known]
        missing += times * clock.tokens_of(lacking, policy)
    return clock.KNOWN, missing


def used_of(work: Workload, schedule: Schedule, settings: Settings) -> Sequence[TokenizedPair]:
    """The pairs some step will train on; all that are known where they are a sample."""
    t = settings.train
    order = Order(work.pairs, kind=t.order, pairs_per_step=t.pairs_per_step, seed=settings.seed)
    return used_pairs(work.pairs, schedule, order) if work.train == len(work.pairs) else work.pairs


def cache_of(policy: Loaded) -> Cache:
    """The scores that are there already of the policy's reference."""
    with adapter_off(policy) if policy.adapted else contextlib.nullcontext(policy) as base:
        return Cache(cache_folder("reference"), reference.header_for(base))


def head_of(crew: Crew, work: Workload, settings: Settings) -> int:
    """Bytes of the head's chunks, one of every member."""
    rung = crew.policy.layout.rung
    _, scored = largest(work.pairs, token_budget=settings.train.token_budget, crew=len(crew.members), rung=rung)
    return len(crew.members) * max(head_bytes(crew.policy.scorer, scored, crew.policy.compute)[:2])


def answer_seconds(
    work: Workload, talk: Answering, policy: Loaded, settings: Settings, *, load: float, pace: float
) -> Seconds:
    """Loading the base beside the policy, both models' answers (base ones may be known already) and their scoring."""
    own = settings.evaluate
    at_once = own.batch_size * clock.workers_of(policy)
    identity = identity_of(policy, batch_size=own.batch_size)
    keys = [answers_key(work.prompts, sampling, identity) for sampling in samplings(own, seed=settings.seed).values()]
    known = sum((cache_folder("answers") / f"{key}.jsonl").exists() for key in keys)
    both = (2 * len(keys) - known) * talk.seconds(len(work.prompts), at_once=at_once, most=own.max_new_tokens)
    kl = talk.seconds(work.kl_answers, at_once=at_once, most=own.max_new_tokens)
    long = sum(talk.lengths) / len(talk.lengths)
    prompt = sum(len(pair.prompt) for pair in work.heldout) / len(work.heldout)
    scored = len(work.prompts) * (prompt + 2 * long) + 2 * len(work.kl_prompts) * (prompt + 2 * long)
    return {"base model": 0.0 if policy.adapted else load, "answers": both + kl, "scoring": scored * pace}


def along_seconds(
    work: Workload,
    talk: Answering,
    policy: Loaded,
    settings: Settings,
    *,
    load: float,
    pace: float,
    schedule: Schedule,
) -> float:
    """Points along training: each loads the base where it is apart, answers, and scores the answers by both models.

    The base answers once, where there is a rubric to hold its answers against.
    """
    own, points = settings.evaluate, len(schedule.evaluate) + 1
    at_once = own.batch_size * clock.workers_of(policy)
    long = sum(talk.lengths) / len(talk.lengths)
    prompt = sum(len(pair.prompt) for pair in work.heldout) / len(work.heldout)
    scoring = 2 * work.along * (prompt + SAMPLES * long) * pace
    answers = talk.seconds(SAMPLES * work.along, at_once=at_once, most=own.max_new_tokens)
    once = answers if own.rubric is not None else 0.0
    return points * ((0.0 if policy.adapted else load) + answers + scoring) + once


def report(
    settings: Settings,
    work: Workload,
    steps: Steps,
    policy: Loaded,
    training: Training,
    talk: Answering,
    seconds: Seconds,
    *,
    process: int,
    left: int,
) -> dict[str, Any]:
    """All of it under the names of the output; memory in GiB, time in seconds.

    `process` is what is no tensor before training, `left` the same after it: freed memory may stay with the process.
    """
    total = sum(seconds.values())
    return {
        "model": policy.name,
        "device": str(policy.device),
        "rows": policy.layout.rung,
        "pairs": {"train": work.train, "heldout": work.held, "source": work.how},
        "steps": steps.total,
        "tokens_per_step": round(steps.mean),
        "recompute": training.choice.text,
        "memory_gib": memory_of(settings, work, policy, training, talk, process=process, left=left),
        "seconds": {
            "curate": round(seconds["curate"], 1),
            **{stage: round(sum(seconds.get(part, 0.0) for part in parts), 1) for stage, parts in STAGES.items()},
            "total": round(total, 1),
            "parts": {name: round(value, 1) for name, value in seconds.items()},
        },
        "hours": round(total / 3600, 4),
    }


def memory_of(
    settings: Settings,
    work: Workload,
    policy: Loaded,
    training: Training,
    talk: Answering,
    *,
    process: int,
    left: int,
) -> dict[str, Any]:
    """What stands and what is alive at the peak of training and of answering, item by item, in GiB."""
    own, held = settings.evaluate, training.standing
    longest = max(len(pair.prompt) for pair in work.heldout) + own.max_new_tokens
    rows = min(len(work.prompts), own.batch_size * clock.workers_of(policy))
    train = {"process": process, **asdict(held), "head": training.head}
    if settings.train.reference == "copy":
        train["reference"] = held.weights
    train["activations"] = max(0, int(training.peak_gib * GIB) - sum(train.values()))
    answer = {
        "process": left,
        "weights": held.weights * (1 if policy.adapted else 2),
        "copies": twin_bytes(policy),
        "keys_values_logits": int(rows * longest * talk.row_bytes),
    }
    if work.along:  # what training holds stands while the points along it are measured
        answer["training"] = held.copies + held.sums + held.states
    answering, free = sum(answer.values()) / GIB, room_bytes(policy.device)
    return {
        "training": {name: round(size / GIB, 3) for name, size in train.items()},
        "training_peak": round(training.peak_gib, 3),
        "answers": {name: round(size / GIB, 3) for name, size in answer.items()},
        "answers_peak": round(answering, 3),
        "peak": round(max(training.peak_gib, answering), 3),
        "free": None if free is None else round(free / GIB, 3),
    }


def twin_bytes(policy: Loaded) -> int:
    """Bytes of the copy that answers are made with: weights that are not in the compute type already."""
    weights = [w for w in policy.model.parameters() if w.is_floating_point() and w.dtype != policy.compute]
    return sum(int(weight.numel()) for weight in weights) * policy.compute.itemsize
