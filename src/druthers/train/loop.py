"""The offline training loop: pairs, a pairwise loss, an optimizer, evaluations, checkpoints, exact resume.

Letters: C pair axis (0 chosen, 1 rejected), B pairs of a micro-batch, P pairs of the whole optimizer step.
"""

from __future__ import annotations

import contextlib
import math
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch.optim import Optimizer

from druthers import devices
from druthers.allocation import release
from druthers.batching import Order, step_count
from druthers.blocks import Facts, Picked, facts_of
from druthers.compiled import compiling, prove
from druthers.config import Settings, TrainSettings
from druthers.crew import Crew, crew_of
from druthers.devices import ALONE, World
from druthers.losses import Loss
from druthers.losses.catalogue import made
from druthers.memory import Choice, choose, fitting, free_bytes, largest, peak_gib
from druthers.models import Loaded, trainable
from druthers.objectives import reporting_beta
from druthers.recompute import KINDS, Kind, recomputing
from druthers.records import InputError
from druthers.run import Run
from druthers.tokens import TokenizedPair
from druthers.train import checkpoint, reference
from druthers.train.checkpoint import Position
from druthers.train.interruption import Interrupted, Interruption
from druthers.train.logs import OUTCOME_LOG, Log, Row, Scored, mean_loss, metrics_of, open_logs, write_outcomes
from druthers.train.optimizer import AdamW8bit, state_bytes
from druthers.train.passes import Draw, Learn, run_pairs
from druthers.train.reference import Reference

RELEASE_EVERY = 8
"""Steps after which freed memory goes back to the system: what a step then takes anew costs a sixth of its time."""


def loss_of(settings: Settings) -> Loss:
    """The loss of the settings; raises InputError for one that asks for more than this loop gives."""
    loss, name = made(settings.loss.model_dump()), settings.loss.name
    if loss.unpaired:
        raise InputError(
            f"loss.name = {name!r} learns from single answers that are called good or bad, which this loop is not "
            "given yet; choose a loss of pairs"
        )
    if "sample" in loss.needs:
        raise InputError(f"loss.name = {name!r} draws tokens of responses, which is not done in training yet; use ld")
    return loss


def make_loss(settings: Settings, pairs: Sequence[TokenizedPair], heldout: Sequence[TokenizedPair]) -> Loss:
    """The loss of the settings; refuses graded pairs with a loss that would ignore the grades."""
    loss, name = loss_of(settings), settings.loss.name
    facts = [facts_of(some) for some in (pairs, heldout)]
    check_grades(loss, name, pairs, facts[0])
    check_grades(loss, name, heldout, facts[1])
    for side, of in zip(("training", "held-out"), facts, strict=True):
        if not (of.weight_B > 0).any():
            raise InputError(
                f"every {side} pair has weight 0, so nothing can be learned or measured; raise some weight"
            )
    return loss


def check_grades(loss: Loss, name: str, pairs: Sequence[TokenizedPair], of: Facts) -> None:
    """Refuse pairs with grades that the loss would ignore."""
    for field, found, plain, honoured in (("p", of.p_B, 1.0, loss.p), ("margin", of.margin_B, 0.0, loss.margin)):
        places = [] if honoured else np.flatnonzero(found != plain).tolist()
        if places:
            pair = pairs[places[0]]
            raise InputError(
                f"pair {pair.id} carries {field} = {getattr(pair, field):g}, which the loss {name!r} cannot honour; "
                f"use loss.name=sigmoid, or remove {field} from the pairs"
            )


def learning_rate_at(step: int, *, total: int, settings: TrainSettings) -> float:
    """Learning rate of optimizer step `step` (from 0) of `total`: linear warm-up, then the schedule down to 0.

    >>> ramp = TrainSettings(learning_rate=1.0, warmup_share=0.2, schedule="linear")
    >>> [round(learning_rate_at(step, total=10, settings=ramp), 3) for step in (0, 1, 2, 9)]
    [0.5, 1.0, 1.0, 0.125]
    """
    warmup = math.ceil(settings.warmup_share * total)
    if step < warmup:
        return settings.learning_rate * (step + 1) / warmup
    through = (step - warmup) / max(1, total - warmup)
    shape = {"constant": 1.0, "linear": 1.0 - through, "cosine": 0.5 * (1 + math.cos(math.pi * through))}
    return settings.learning_rate * shape[settings.schedule]


def make_optimizer(policy: Loaded, settings: TrainSettings, *, seed: int = 0) -> Optimizer:
    """AdamW over the trainable weights, torch's fused one or ours with states of 8 bits; decay only on matrices."""
    weights = list(trainable(policy).values())
    groups = [
        {"params": [w for w in weights if w.ndim >= 2], "weight_decay": settings.weight_decay},
        {"params": [w for w in weights if w.ndim < 2], "weight_decay": 0.0},
    ]
    groups = [g for g in groups if g["params"]]
    if settings.optimizer == "adamw-8bit":
        return AdamW8bit(groups, lr=settings.learning_rate, seed=seed)
    return torch.optim.AdamW(groups, lr=settings.learning_rate, fused=True)


def choose_recompute(crew: Crew, optimizer: Optimizer, pairs: Sequence[TokenizedPair], t: TrainSettings) -> Choice:
    """What is made again in the backward, by what the largest micro-batch needs and what memory is free."""
    policy = crew.policy
    states = 0 if optimizer.state else state_bytes(trainable(policy).values(), t.optimizer)
    tokens, scored = largest(pairs, token_budget=t.token_budget, crew=len(crew.members), rung=policy.layout.rung)
    free = free_bytes(policy.device)
    return choose(t.recompute, crew, states=states, tokens=tokens, scored=scored, free=free, kinds=kinds_of(t))


def choose_recompute_of_ranks(policy: Loaded, pairs: Sequence[TokenizedPair], t: TrainSettings, world: World) -> Choice:
    """The same for several ranks, before the weights are split: the rank with the least free memory decides for all."""
    states = state_bytes(trainable(policy).values(), t.optimizer) // world.size
    tokens, scored = largest(pairs, token_budget=t.token_budget, crew=1, rung=policy.layout.rung)
    free = free_bytes(policy.device, sharing=world.here)
    least = -world.most(-math.inf if free is None else -free)
    known = int(least) if math.isfinite(least) else None
    crew = Crew(policy, [policy])
    return choose(t.recompute, crew, states=states, tokens=tokens, scored=scored, free=known, kinds=kinds_of(t))


def kinds_of(t: TrainSettings) -> tuple[Kind, ...]:
    """What 'auto' may recompute: of compiled layers the products cannot be told from the rest."""
    return tuple(kind for kind in KINDS if kind != "selective" or t.compile == "none")


def check_ranks(policy: Loaded, t: TrainSettings, world: World) -> None:
    """Refuse what cannot be split over ranks, before anything is scored."""
    if world.size == 1:
        return
    if t.optimizer != "adamw":
        raise InputError(
            f"train.optimizer = {t.optimizer!r} keeps its states in blocks of whole weights, which {world.size} "
            "processes split; use train.optimizer=adamw, or one process"
        )
    devices.check_float32(policy)


def check_step_0(scored: Scored, *, compute: torch.dtype) -> None:
    """Before any update the policy is the reference; raises InputError when their log-probs differ."""
    error = reference.gap(scored.logp_CP, scored.logp_CP - scored.ratio_CP, scored.length_CP)
    if not error <= reference.TOLERANCE[compute]:
        raise InputError(
            f"before the first update policy and reference differ by {error:.1e} nat a token "
            f"(limit {reference.TOLERANCE[compute]:g}), so the reference is not the model being trained; "
            "delete the reference cache and run again"
        )


def finite(scored: Scored) -> bool:
    """Whether every loss is a number, and their mean."""
    return bool(torch.isfinite(scored.loss_P).all()) and math.isfinite(mean_loss(scored) or 0.0)


def check_finite(scored: Scored, *, norm: float, step: int) -> None:
    """Stop before a broken update reaches the weights."""
    if not (math.isfinite(norm) and finite(scored)):
        raise InputError(
            f"step {step}: the loss or its gradient is not finite (gradient norm {norm}, "
            f"worst pair {worst(scored).id}); the weights were not changed; "
            "lower train.learning_rate or look at that pair"
        )


def check_finite_heldout(scored: Scored, *, step: int) -> None:
    """Stop before a diverged model is logged or saved."""
    if not finite(scored):
        raise InputError(
            f"step {step}: the held-out loss is not finite (worst pair {worst(scored).id}); "
            "nothing of this step was saved; lower train.learning_rate or look at that pair"
        )


def worst(scored: Scored) -> TokenizedPair:
    """The pair with the largest loss, one that is no number before all others."""
    return scored.pairs[int(torch.nan_to_num(scored.loss_P, nan=math.inf).argmax())]


@dataclass(frozen=True, slots=True)
class Schedule:
    """Steps of the run, and after which of them it evaluates and saves."""

    total: int
    evaluate: frozenset[int]
    save: frozenset[int]


def make_schedule(count: int, settings: TrainSettings) -> Schedule:
    """Evaluations every `evaluate_every` steps (four in a run when unset) and after the last; a checkpoint with each.

    >>> sorted(make_schedule(160, TrainSettings(evaluate_every=4)).evaluate)
    [4, 8, 10]
    """
    total = step_count(
        count, pairs_per_step=settings.pairs_per_step, epochs=settings.epochs, max_steps=settings.max_steps
    )
    every = settings.evaluate_every or math.ceil(total / 4)
    evaluate = frozenset(range(every, total, every)) | {total}
    extra = (
        frozenset(range(settings.checkpoint_every, total, settings.checkpoint_every))
        if settings.checkpoint_every
        else frozenset()
    )
    return Schedule(total, evaluate, evaluate | extra)


def used_pairs(pairs: Sequence[TokenizedPair], schedule: Schedule, order: Order) -> Sequence[TokenizedPair]:
    """The pairs some step will train on: all of them, or fewer in a run of less than one epoch."""
    if schedule.total * order.size >= len(pairs):
        return pairs
    return Picked([pairs], [i for s in range(schedule.total) for i in order.step(s)])


def better(value: float, than: float | None, *, metric: str) -> bool:
    """Whether an evaluation beats the best so far: loss falls, accuracy and margin rise."""
    return than is None or (value < than if metric == "loss" else value > than)


METRIC_KEYS = {"loss": "loss", "accuracy": "rewards/accuracies", "margin": "rewards/margins"}


@dataclass(frozen=True)
class Course:
    """What stays the same from step to step."""

    run: Run
    settings: Settings
    crew: Crew
    pairs: Sequence[TokenizedPair]
    order: Order
    heldout: Sequence[TokenizedPair]
    scores: Reference
    loss: Loss
    note: Callable[[Row], None]
    watch: Callable[[Loaded, int], None] | None = None

    @property
    def policy(self) -> Loaded:
        """The model being trained."""
        return self.crew.policy

    @property
    def world(self) -> World:
        """The ranks that train it."""
        return self.crew.world

    def epoch(self, step: int) -> float:
        """Passes over the training pairs after `step` steps."""
        t = self.settings.train
        per_epoch = math.ceil(len(self.pairs) / t.pairs_per_step)
        return step / per_epoch

    def pass_over(self, pairs: Sequence[TokenizedPair], position: Position, *, learn: Learn) -> Scored:
        """Forward, or forward and backward, over some pairs."""
        return run_pairs(
            pairs,
            self.crew,
            self.scores,
            self.loss,
            token_budget=self.settings.train.token_budget,
            learn=learn,
            state=position.loss_state,
            draw=self.draw(position.step) if "draw" in self.loss.needs else None,
        )

    def draw(self, step: int) -> Draw:
        """A number in [0, 1) for each pair of a step, the same in a run that is continued."""
        return lambda pair: random.Random(f"{self.settings.seed} {step} {pair.id}").random()


def train(
    run: Run,
    settings: Settings,
    policy: Loaded,
    *,
    pairs: Sequence[TokenizedPair],
    heldout: Sequence[TokenizedPair],
    note: Callable[[Row], None] = lambda row: None,
    scoring: Callable[[int, int], None] | None = None,
    say: Callable[[str], None] = reference.silent,
    watch: Callable[[Loaded, int], None] | None = None,
    world: World = ALONE,
) -> Row:
    """Train the policy on `pairs`, watching `heldout`; return the `train` section of the summary.

    With other ranks in the `world` every one of them calls this with the same arguments, and the weights of the policy
    are split over them, in place. Continues from the newest checkpoint of the run when there is one: weights and
    metrics are then those of an uninterrupted run, bit for bit on a CPU with the same number of threads and ranks.
    `note` is called with every line of metrics, `watch` with the policy and the step after every evaluation. Raises
    Interrupted after a signal (the state is saved), InputError for pairs the loss cannot honour, a broken reference, a
    loss that is not finite, or a full disk.
    """
    t = settings.train
    check_ranks(policy, t, world)
    loss, schedule = make_loss(settings, pairs, heldout), make_schedule(len(pairs), t)
    order = Order(pairs, kind=t.order, pairs_per_step=t.pairs_per_step, seed=settings.seed)
    used = used_pairs(pairs, schedule, order)
    needed = Picked([used, heldout])
    kind = reference.kind_for(t.reference, policy, loss, world)
    chosen = reference.choose(kind, policy, needed, token_budget=t.token_budget, progress=scoring, say=say, world=world)
    apart = choose_recompute_of_ranks(policy, used, t, world) if world.size > 1 else None
    policy = devices.shard(policy, world)
    optimizer = make_optimizer(policy, t, seed=settings.seed)
    found = world.first(lambda: checkpoint.latest(run.folder))
    position = checkpoint.restore(found, policy, optimizer, world=world) if found else Position()
    if found:
        world.first(lambda: checkpoint.settle(run.folder, position, metric=t.best_metric))
    course = Course(run, settings, crew_of(policy, world), pairs, order, heldout, chosen.scores, loss, note, watch)
    if world.first(lambda: position.step < schedule.total or run.has(OUTCOME_LOG)):
        choice = apart or choose_recompute(course.crew, optimizer, used, t)
        say(f"recompute: {choice.text}")
        members = course.crew.members
        with (
            compiling(members, wanted=t.compile != "none"),
            recomputing(members, choice.kind),
            fitting(choice, policy.device),
        ):
            if t.compile != "none":
                say(f"compile: {prove(course.crew, used)}")
            position = finish(course, schedule, position, optimizer)
        world.first(lambda: write_outcomes(run))
    peak = world.most(peak_gib(policy.device))
    return world.first(lambda: summary(run, position, schedule, used=len(used), kind=chosen.kind, peak=peak))


def finish(course: Course, schedule: Schedule, position: Position, optimizer: Optimizer) -> Position:
    """All steps from `position` to the end; a signal that one rank has heard stops all of them after the same step."""
    logs, started = open_logs(course.run, position, course.world), time.monotonic() - position.seconds
    with contextlib.closing(logs), Interruption() as interruption:
        if position.step == 0:
            position = look(course, position, logs)
        while position.step < schedule.total:
            position = advance(course, schedule, position, optimizer, logs)
            if position.step in schedule.evaluate:
                position = look(course, position, logs)
            asked = int(course.world.most(interruption.signal))
            if position.step in schedule.save or asked:
                metrics_bytes, outcomes_bytes = logs.sizes()
                seconds = time.monotonic() - started
                position = replace(
                    position, metrics_bytes=metrics_bytes, outcomes_bytes=outcomes_bytes, seconds=seconds
                )
                metric = course.settings.train.best_metric
                checkpoint.save(
                    course.run.folder, position, course.policy, optimizer, metric=metric, world=course.world
                )
            if asked:
                raise Interrupted(step=position.step, total=schedule.total, signal=asked)
    return position


def advance(course: Course, schedule: Schedule, position: Position, optimizer: Optimizer, logs: Log) -> Position:
    """One optimizer step."""
    t, step = course.settings.train, position.step + 1
    rate = learning_rate_at(position.step, total=schedule.total, settings=t)
    scored = course.pass_over([course.pairs[i] for i in course.order.step(position.step)], position, learn="learn")
    norm = devices.clip(trainable(course.policy), most=t.clip_norm)
    check_finite(scored, norm=norm, step=step)
    if position.step == 0:
        check_step_0(scored, compute=course.policy.compute)
    move(course.crew, optimizer, rate=rate)
    if step % RELEASE_EVERY == 0:
        release()
    row = {"step": step, "split": "train", "epoch": course.epoch(step), "learning_rate": rate, "grad_norm": norm}
    row |= metrics_of(scored, beta=reporting_beta(course.settings.loss))
    logs.write(row, scored, step=step, split="train")
    course.note(row)
    return replace(position, step=step, loss_state=scored.state)


def move(crew: Crew, optimizer: Optimizer, *, rate: float) -> None:
    """The weights by the gradients they have, which are then gone, and the working copies after them."""
    for group in optimizer.param_groups:
        group["lr"] = rate
    optimizer.step()
    crew.follow()
    optimizer.zero_grad(set_to_none=True)


def look(course: Course, position: Position, logs: Log) -> Position:
    """Evaluate the held-out pairs, log them, and mark the checkpoint to come as the best when it is."""
    scored = course.pass_over(course.heldout, position, learn="look" if position.step else "start")
    check_finite_heldout(scored, step=position.step)
    step, metric = position.step, course.settings.train.best_metric
    row = {
        "step": step,
        "split": "heldout",
        "epoch": course.epoch(step),
        **metrics_of(scored, beta=reporting_beta(course.settings.loss)),
    }
    logs.write(row, scored, step=step, split="heldout")
    course.note(row)
    if course.watch:
        course.watch(course.policy, step)
    value = row[METRIC_KEYS[metric]]
    return position.with_best(step, value) if step and better(value, position.best_value, metric=metric) else position


def summary(run: Run, position: Position, schedule: Schedule, *, used: int, kind: str, peak: float) -> Row:
    """The `train` section of summary.json; `used` is how many different pairs the steps saw, `peak` is in GiB."""
    lines = [row for row in run.metrics() if row["split"] == "train"]
    seconds = position.seconds
    return {
        "steps": schedule.total,
        "pairs": used,
        "best_step": position.best_step,
        "reference": kind,
        "seconds": round(seconds, 2),
        "pairs_per_second": round(sum(row["pairs"] for row in lines) / seconds, 3),
        "tokens_per_second": round(sum(row["tokens"] for row in lines) / seconds, 1),
        "peak_memory_gib": round(peak, 3),
        "first_loss": lines[0]["loss"],
    }
