"""The online loop: the policy answers prompts, a reward scores the answers, a policy gradient moves the policy.

PPO and RLOO differ in what a token's or an answer's advantage is, and in nothing else. Answers are sampled at
temperature 1 without a nucleus: only then are the log-probabilities of the engine those of what was sampled.

Letters: S answers of a step, N tokens of all of them, M those of a micro-batch, P prompts, K answers to each.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import IO, Any, Literal

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor
from torch.optim import Optimizer

from druthers import devices
from druthers import policygradient as paper
from druthers.allocation import release
from druthers.config import Settings, TrainSettings
from druthers.crew import Crew, crew_of
from druthers.generation import Messages, check_context, transformers_generator
from druthers.memory import fitting, peak_gib
from druthers.models import Loaded, trainable
from druthers.recompute import recomputing
from druthers.records import Exchange, InputError, Prompt, first_line
from druthers.rewards import Reward, rewards_of
from druthers.run import Run
from druthers.tokens import TokenizedPair, encode_prompt
from druthers.train import checkpoint
from druthers.train.checkpoint import EXTRA, Position
from druthers.train.interruption import Interrupted, Interruption
from druthers.train.logs import Row, full_disk, opened_at
from druthers.train.loop import (
    RELEASE_EVERY,
    Schedule,
    choose_recompute,
    learning_rate_at,
    make_optimizer,
    make_schedule,
)
from druthers.train.reference import TOLERANCE, gap, silent
from druthers.train.rollouts import Answers, Frozen, Measured, Part, Values, measure, over, reference_of, width_of

ROLLOUTS = "rollouts.jsonl"
"""Every sampled answer with its reward."""
NEWEST = "newest"
"""What `checkpoints/best.json` names as its metric: the KL is held where it was asked for, so the last policy is it."""
UNREAD = ("pairs_per_step", "order", "compile", "best_metric")
"""Settings of `train` that speak of pairs or of one loss, and that no step here reads."""
Split = Literal["train", "heldout"]


def check_settings(settings: Settings) -> None:
    """Refuse settings that this loop would ignore, and those that cannot be followed."""
    plain = Settings()
    for name in UNREAD:
        value = getattr(settings.train, name)
        if value != getattr(plain.train, name):
            raise InputError(
                f"train.{name} = {value!r} is for pairs, and no step of sampled answers reads it; unset it"
            )
    if settings.loss != plain.loss:
        raise InputError("the settings loss.* are for pairs, and no step of sampled answers reads them; unset them")
    wanted, adapter = settings.train.reference, settings.model.adapter
    if wanted not in ("auto", "copy" if adapter == "none" else "adapter"):
        raise InputError(
            f"train.reference = {wanted!r} does not fit model.adapter = {adapter!r}: answers are new at every step, so "
            "the reference is the adapter switched off, or a copy where there is none; use train.reference=auto"
        )
    if settings.online.method == "rloo" and settings.online.samples < 2:
        raise InputError(
            f"online.samples = {settings.online.samples}, but rloo compares answers to one prompt; use at least 2"
        )


@dataclass(frozen=True)
class Plan:
    """What a method asks of a step."""

    clip: float
    epochs: int
    minibatches: int
    beta: float


def plan_of(settings: Settings) -> Plan:
    """The method's own settings, as far as both have them."""
    own = settings.ppo if settings.online.method == "ppo" else settings.rloo
    return Plan(own.clip, own.epochs, own.minibatches, own.beta)


@dataclass(frozen=True)
class State:
    """Where a run stands: its position and the present price of a nat."""

    position: Position
    beta: float


@dataclass(frozen=True)
class Course:
    """What stays the same from step to step."""

    run: Run
    settings: Settings
    crew: Crew
    frozen: Frozen
    values: Values | None
    optimizer: Optimizer
    prompts: Sequence[Prompt]
    heldout: Sequence[Prompt]
    reward: Reward
    note: Callable[[Row], None]

    @property
    def policy(self) -> Loaded:
        """The model being trained."""
        return self.crew.policy

    @property
    def per_epoch(self) -> int:
        """Steps of a pass over the prompts."""
        return math.ceil(len(self.prompts) / self.settings.online.prompts_per_step)

    def asked(self, step: int) -> list[Messages]:
        """The prompts of step `step` (from 0): every epoch all of them once, in an order of its own."""
        epoch, within = divmod(step, self.per_epoch)
        order = np.random.default_rng([self.settings.seed, epoch]).permutation(len(self.prompts))
        size = self.settings.online.prompts_per_step
        return [self.prompts[i].prompt for i in order[within * size : (within + 1) * size]]

    def extra(self, beta: float) -> dict[str, Tensor]:
        """What a checkpoint holds beside weights and optimizer."""
        head = {} if self.values is None else self.values.head.state_dict()
        own = {f"value.{name}": weight.detach().cpu().contiguous() for name, weight in head.items()}
        return {"beta": torch.tensor(beta, dtype=torch.float64), **own}


@dataclass(frozen=True)
class Rollout:
    """The answers of a step, what they are worth, and what policy and reference say of their tokens.

    `reward_S` has the penalty for a missing end of the turn in it, and 0 where `scored_S` is False.
    """

    exchanges: list[Exchange]
    answers: Answers
    measured: Measured
    reward_S: Tensor
    scored_S: Tensor

    @property
    def kl_S(self) -> Tensor:
        """log pi - log ref of every answer: its mean is the KL (estimator k1)."""
        return paper.sums(self.measured.policy_N - self.measured.reference_N, self.measured.length_S)


def train(
    run: Run,
    settings: Settings,
    policy: Loaded,
    *,
    prompts: Sequence[Prompt],
    heldout: Sequence[Prompt],
    reward: Reward,
    note: Callable[[Row], None] = lambda row: None,
    say: Callable[[str], None] = silent,
) -> Row:
    """Train the policy on its own answers to `prompts`; return the `train` section of the summary.

    `reward` scores answers; `heldout` prompts are answered at every evaluation and never trained on. Continues from the
    newest checkpoint of the run when there is one: weights and metrics are then those of an uninterrupted run, bit for
    bit on a CPU with the same number of threads, where the reward is a function of the answer. Raises Interrupted after
    a signal (the state is saved), InputError for settings that do not fit, prompts that leave no room for an answer, a
    reward that is no number, a policy that has collapsed, or a full disk.
    """
    check_settings(settings)
    schedule = schedule_of(len(prompts), settings)
    encoded = [encode_prompt(one.prompt, policy.tokenizer) for one in (*prompts, *heldout)]
    check_context(encoded, policy, max_new_tokens=settings.online.max_new_tokens)
    crew = crew_of(policy)
    frozen = reference_of(policy, crew)
    optimizer, values = make_optimizer(policy, settings.train, seed=settings.seed), None
    if settings.online.method == "ppo":
        values = Values(width_of(policy), len(crew.members), device=policy.device)
        group = {"params": list(values.head.parameters()), "weight_decay": 0.0, "lr": settings.ppo.value_rate}
        optimizer.add_param_group(group)
    course = Course(run, settings, crew, frozen, values, optimizer, prompts, heldout, reward, note)
    state = restored(course)
    if state.position.step < schedule.total:
        longest = longest_pairs(encoded[: len(prompts)], settings.online.max_new_tokens)
        choice = choose_recompute(crew, optimizer, longest, settings.train)
        say(f"recompute: {choice.text}")
        with recomputing(crew.members, choice.kind), fitting(choice, policy.device):
            state = finish(course, schedule, state)
    return summary(course, state, schedule)


def schedule_of(count: int, settings: Settings) -> Schedule:
    """Steps of the run: passes over the prompts, as `train.epochs` and `train.max_steps` say."""
    t = settings.train.model_copy(update={"pairs_per_step": settings.online.prompts_per_step})
    return make_schedule(count, t)


def longest_pairs(encoded: Sequence[Sequence[int]], longest: int) -> list[TokenizedPair]:
    """Two answers of the greatest length to every prompt, for the memory they would take."""
    a, b, scored = (0,) * longest, (1,) * longest, (True,) * longest
    return [TokenizedPair("", tuple(ids), a, b, scored, scored) for ids in encoded]


def restored(course: Course) -> State:
    """The state of the newest checkpoint, put back; the start where there is none."""
    found = checkpoint.latest(course.run.folder)
    if found is None:
        return State(Position(), plan_of(course.settings).beta)
    position = checkpoint.restore(found, course.policy, course.optimizer)
    try:
        extra = load_file(found / EXTRA)
        if course.values is not None:
            head = {name.removeprefix("value."): weight for name, weight in extra.items() if name != "beta"}
            course.values.head.load_state_dict(head)
            course.values.follow()
        beta = float(extra["beta"])
    except (OSError, SafetensorError, LookupError, RuntimeError) as error:
        raise InputError(
            f"checkpoint {found} is damaged: {first_line(error)}; delete that folder and run the same command again"
        ) from error
    course.crew.follow()
    checkpoint.settle(course.run.folder, position, metric=NEWEST)
    return State(position, beta)


def finish(course: Course, schedule: Schedule, state: State) -> State:
    """All steps from `state` to the end."""
    started = time.monotonic() - state.position.seconds
    with contextlib.closing(Logs(course.run, state.position)) as logs, Interruption() as interruption:
        if state.position.step == 0:
            look(course, state, logs)
        while state.position.step < schedule.total:
            state = advance(course, schedule, state, logs)
            step = state.position.step
            if step in schedule.evaluate:
                look(course, state, logs)
            if step in schedule.save or interruption.signal:
                state = saved(course, state, logs, seconds=time.monotonic() - started)
            if interruption.signal:
                raise Interrupted(step=step, total=schedule.total, signal=interruption.signal)
    return state


def saved(course: Course, state: State, logs: Logs, *, seconds: float) -> State:
    """Write a checkpoint, which is then the one that is kept."""
    metrics_bytes, rollout_bytes = logs.sizes()
    position = replace(state.position, metrics_bytes=metrics_bytes, outcomes_bytes=rollout_bytes, seconds=seconds)
    position = position.with_best(position.step, logs.reward)
    extra = course.extra(state.beta)
    checkpoint.save(course.run.folder, position, course.policy, course.optimizer, metric=NEWEST, extra=extra)
    return replace(state, position=position)


def advance(course: Course, schedule: Schedule, state: State, logs: Logs) -> State:
    """Answers of one step, and the optimizer steps they are worth."""
    step, t = state.position.step + 1, course.settings.train
    rollout = roll_out(course, course.asked(state.position.step), step=step, samples=course.settings.online.samples)
    if not rollout.scored_S.any():
        count = len(rollout.exchanges)
        raise InputError(f"step {step}: the reward could score none of {count} answers, so there is nothing to learn")
    row = facts_of(rollout, beta=state.beta)
    check_reference(rollout, course, first=state.position.step == 0)
    check_alive(row, course, step=step)
    share = learning_rate_at(state.position.step, total=schedule.total, settings=t) / t.learning_rate
    row |= learn(course, rollout, step=step, beta=state.beta, share=share)
    if step % RELEASE_EVERY == 0:
        release()
    row = {"learning_rate": share * t.learning_rate, **row}
    logs.write(course, rollout, row, step=step, split="train")
    own, beta = course.settings.ppo, state.beta
    if course.settings.online.method == "ppo" and own.target_kl is not None:
        beta = paper.adapted(beta, row["kl"], target=own.target_kl)
    return State(replace(state.position, step=step), beta)


def look(course: Course, state: State, logs: Logs) -> None:
    """Answer the held-out prompts, one sample each under the same luck every time, and log what they are worth."""
    asked = [one.prompt for one in course.heldout[: course.settings.evaluate.count]]
    if asked:
        rollout = roll_out(course, asked, step=0, samples=1)
    if asked and rollout.scored_S.any():
        logs.write(course, rollout, facts_of(rollout, beta=state.beta), step=state.position.step, split="heldout")


def seed_of(seed: int, step: int) -> int:
    """The seed of a step's answers: a prompt that comes again meets other luck.

    >>> seed_of(0, 1) != seed_of(0, 2) and seed_of(0, 1) == seed_of(0, 1)
    True
    """
    return int(np.random.SeedSequence([seed, step]).generate_state(1, np.uint64)[0])


def roll_out(course: Course, asked: Sequence[Messages], *, step: int, samples: int) -> Rollout:
    """Answers to some prompts, scored by the reward and read by policy and reference."""
    own, policy = course.settings.online, course.policy
    generate = transformers_generator(policy, batch_size=course.settings.evaluate.batch_size, model_name=policy.name)
    seed = seed_of(course.settings.seed, step)
    found = generate(asked, samples=samples, temperature=1.0, top_p=1.0, max_new_tokens=own.max_new_tokens, seed=seed)
    exchanges = [answer for answers in found for answer in answers]
    values = rewards_of(course.reward, exchanges)
    cost = [0.0 if answer.finished else own.no_end_penalty for answer in exchanges]
    reward = [0.0 if value is None else value - less for value, less in zip(values, cost, strict=True)]
    prompts = [tuple(encode_prompt(prompt, policy.tokenizer)) for prompt in asked for _ in range(samples)]
    answers = Answers(prompts, [answer.ids for answer in exchanges])
    budget = course.settings.train.token_budget
    measured = measure(answers, course.crew, course.frozen, course.values, token_budget=budget)
    scored_S = torch.tensor([value is not None for value in values])
    return Rollout(exchanges, answers, measured, torch.tensor(reward, dtype=torch.float64), scored_S)


def facts_of(rollout: Rollout, *, beta: float) -> Row:
    """What the answers are worth, how far they are from the reference, and what they look like.

    `loss` is what is minimised, beta KL less the reward, by the present beta.
    """
    known_S, kl_S = rollout.scored_S, rollout.kl_S
    reward, kl = float(rollout.reward_S[known_S].mean()), float(kl_S.mean())
    return {
        "loss": beta * kl - reward,
        "reward": reward,
        "reward_sd": float(rollout.reward_S[known_S].std(correction=0)),
        "kl": kl,
        "entropy": -float(rollout.measured.policy_N.mean()),
        "beta": beta,
        "length": float(rollout.measured.length_S.double().mean()),
        "finished": sum(answer.finished for answer in rollout.exchanges) / len(rollout.exchanges),
        "unscored": int((~known_S).sum()),
        "pairs": len(rollout.exchanges),
        "tokens": int(rollout.measured.length_S.sum()),
    }


def check_reference(rollout: Rollout, course: Course, *, first: bool) -> None:
    """Before any update the policy is the reference; raises InputError when their log-probs differ."""
    if not first:
        return
    m = rollout.measured
    error = gap([m.policy_N.numpy()], [m.reference_N.numpy()], [[1] * len(m.policy_N)])
    if not error <= TOLERANCE[course.policy.compute]:
        raise InputError(
            f"before the first update policy and reference differ by {error:.1e} nat a token (limit "
            f"{TOLERANCE[course.policy.compute]:g}), so the reference is not the model being trained; "
            "use model.precision=float32"
        )


def check_alive(row: Row, course: Course, *, step: int) -> None:
    """Stop before a policy that has collapsed is trained on, naming the checkpoint that is still good."""
    own = course.settings.online
    far = f"{row['kl']:.4g} nats an answer from the reference (online.most_kl = {own.most_kl:g})"
    flat = f"at an entropy of {row['entropy']:.2g} nats a token (online.least_entropy = {own.least_entropy:g})"
    why = far if not row["kl"] <= own.most_kl else flat if not row["entropy"] >= own.least_entropy else None
    if why is None:
        return
    kept = checkpoint.latest(course.run.folder)
    last = f"the last good checkpoint is {kept}" if kept else "no checkpoint was saved yet"
    raise InputError(
        f"step {step}: the policy has collapsed, {why}; it was not trained further and {last}; "
        "lower train.learning_rate or raise beta"
    )


@dataclass(frozen=True)
class Targets:
    """What a step learns from: of every token for PPO, of every answer for RLOO; the other is empty.

    `old_N` are log-probabilities of the tokens when they were sampled, `old_S` of whole answers.
    """

    old_N: Tensor
    advantage_N: Tensor
    return_N: Tensor
    value_N: Tensor
    old_S: Tensor
    advantage_S: Tensor


def targets_of(rollout: Rollout, settings: Settings, *, beta: float, samples: int) -> Targets:
    """Advantages (PPO: whitened over all scored tokens of the step), returns and values, float32."""
    m, scored_S = rollout.measured, rollout.scored_S
    old_S = paper.sums(m.policy_N, m.length_S)
    if settings.online.method == "rloo":
        whole_S = rollout.reward_S - beta * rollout.kl_S
        advantage_S = paper.leave_one_out(whole_S.view(-1, samples), scored_S.view(-1, samples)).flatten()
        return Targets(*(x.float() for x in (m.policy_N, *[m.policy_N[:0]] * 3, old_S, advantage_S)))
    reward_N = paper.token_rewards(m.policy_N, m.reference_N, rollout.reward_S, m.length_S, beta=beta)
    advantage_N, return_N = paper.advantages(reward_N, m.value_N, m.length_S, lam=settings.ppo.lam)
    known_N = scored_S.repeat_interleave(m.length_S)
    advantage_N[known_N] = paper.whitened(advantage_N[known_N])
    return Targets(*(x.float() for x in (m.policy_N, advantage_N, return_N, m.value_N, old_S, old_S[:0])))


def learn(course: Course, rollout: Rollout, *, step: int, beta: float, share: float) -> Row:
    """The optimizer steps of one batch of answers; returns what was seen of them. `share` is that of the peak rates."""
    s, samples = course.settings, course.settings.online.samples
    targets = targets_of(rollout, s, beta=beta, samples=samples)
    rates = [s.train.learning_rate * share for _ in course.optimizer.param_groups]
    if course.values is not None:
        rates[-1] = s.ppo.value_rate * share
    for group, rate in zip(course.optimizer.param_groups, rates, strict=True):
        group["lr"] = rate
    seen = [
        update(course, rollout, targets, chosen, step=step)
        for epoch in range(plan_of(s).epochs)
        for chosen in minibatches(rollout, s, step=step, epoch=epoch)
    ]
    row: Row = {name: float(np.mean([one[name] for one in seen])) for name in seen[0]}
    if course.values is not None:
        known_N = rollout.scored_S.repeat_interleave(rollout.measured.length_S)
        explained = paper.explained_variance(targets.value_N[known_N], targets.return_N[known_N])
        row["explained_variance"] = explained
    return row


def minibatches(rollout: Rollout, settings: Settings, *, step: int, epoch: int) -> list[list[int]]:
    """The scored answers of a step in parts of about one size, those to one prompt together, in a seeded order."""
    samples = settings.online.samples
    count = len(rollout.exchanges) // samples
    order = np.random.default_rng([settings.seed, step, epoch]).permutation(count)
    parts = np.array_split(order, min(count, plan_of(settings).minibatches))
    groups = [[int(p) * samples + k for p in part for k in range(samples)] for part in parts]
    kept = [[i for i in group if rollout.scored_S[i]] for group in groups]
    return [group for group in kept if group]


def update(course: Course, rollout: Rollout, targets: Targets, chosen: Sequence[int], *, step: int) -> Row:
    """One optimizer step on some answers.

    The objective is a mean over all their tokens (PPO) or over them (RLOO), whatever micro-batches they are read in.
    """
    s, tokens = course.settings, int(rollout.measured.length_S[list(chosen)].sum())
    clip, device = plan_of(s).clip, course.policy.device
    seen = torch.zeros(3, len(course.crew.members), dtype=torch.float64)  # policy loss, value loss, clipped

    def of_tokens(part: Part, member: int) -> None:
        old_M, advantage_M, return_M, value_M = (
            x[part.at_M.cpu()].to(device)
            for x in (targets.old_N, targets.advantage_N, targets.return_N, targets.value_N)
        )
        loss = paper.clipped_surrogate(part.logp_M, old_M, advantage_M, clip=clip).sum() / tokens
        assert course.values is not None
        now_M = course.values.of(part.hidden_MH, member)
        value_loss = paper.clipped_value_loss(now_M, value_M, return_M, clip=s.ppo.value_clip).sum() / tokens
        (loss + s.ppo.value_coefficient * value_loss).backward()  # type: ignore[no-untyped-call]
        clipped = paper.clipped_share(part.logp_M.detach(), old_M, clip=clip) * len(old_M) / tokens
        seen[:, member] += torch.stack([loss.detach().double(), value_loss.detach().double(), clipped]).cpu()

    def of_answers(part: Part, member: int) -> None:
        policy_S = paper.sums(part.logp_M, part.length_S)
        old_S, advantage_S = (x[part.whose].to(device).double() for x in (targets.old_S, targets.advantage_S))
        loss = paper.clipped_surrogate(policy_S, old_S, advantage_S, clip=clip).sum() / len(chosen)
        loss.backward()  # type: ignore[no-untyped-call]
        clipped = paper.clipped_share(policy_S.detach(), old_S, clip=clip) * len(old_S) / len(chosen)
        seen[:, member] += torch.stack([loss.detach(), torch.zeros_like(loss), clipped]).detach().cpu()

    def use(part: Part, member: int) -> None:
        (of_tokens if s.online.method == "ppo" else of_answers)(part, member)
        course.crew.collect(member)

    over(rollout.answers, chosen, course.crew, use, token_budget=s.train.token_budget, learns="learn")
    norm = move(course, seen, step=step)
    found = dict(zip(("policy_loss", "value_loss", "clip_fraction"), seen.sum(1).tolist(), strict=True))
    if s.online.method != "ppo":
        del found["value_loss"]
    return {**found, "grad_norm": norm}


def move(course: Course, seen: Tensor, *, step: int) -> float:
    """The weights by the gradients they have; the norm before clipping. A broken update never reaches them."""
    course.crew.gather()
    most = course.settings.train.clip_norm
    norm = devices.clip(trainable(course.policy), most=most)
    value_norm = 0.0
    if course.values is not None:
        course.values.gather()
        value_norm = devices.clip(dict(course.values.head.named_parameters()), most=most)
    if not (math.isfinite(norm) and math.isfinite(value_norm) and bool(torch.isfinite(seen).all())):
        kept = checkpoint.latest(course.run.folder)
        raise InputError(
            f"step {step}: the loss or its gradient is not finite (gradient norm {norm}); the weights were not changed"
            f"{f' and the last good checkpoint is {kept}' if kept else ''}; lower train.learning_rate"
        )
    course.optimizer.step()
    course.crew.follow()
    course.optimizer.zero_grad(set_to_none=True)
    if course.values is not None:
        course.values.follow()
    return norm


class Logs:
    """metrics.jsonl and rollouts.jsonl, cut back to the position a run resumes from."""

    def __init__(self, run: Run, position: Position) -> None:
        self.metrics = opened_at(run.path("metrics.jsonl"), position.metrics_bytes)
        self.rollouts = opened_at(run.path(ROLLOUTS), position.outcomes_bytes)
        self.reward = position.best_value or 0.0

    def write(self, course: Course, rollout: Rollout, facts: Row, *, step: int, split: Split) -> None:
        """One line of metrics and one line for every answer."""
        row = {"step": step, "split": split, "epoch": step / course.per_epoch, **facts}
        self.reward = row["reward"]
        with full_disk(self.metrics.name):
            put(self.metrics, [row])
            put(self.rollouts, rollout_rows(rollout, step=step, split=split))
        course.note(row)

    def sizes(self) -> tuple[int, int]:
        """Bytes written to both, which are on the disk before a checkpoint names them."""
        with full_disk(self.metrics.name):
            for file in (self.metrics, self.rollouts):
                os.fsync(file.fileno())
        return self.metrics.tell(), self.rollouts.tell()

    def close(self) -> None:
        """Close both; every write was flushed."""
        for file in (self.metrics, self.rollouts):
            with contextlib.suppress(OSError):
                file.close()


def put(file: IO[bytes], rows: Sequence[Row]) -> None:
    """Lines of JSON, out of the process before this returns."""
    file.writelines(json.dumps(row, allow_nan=False).encode() + b"\n" for row in rows)
    file.flush()


def rollout_rows(rollout: Rollout, *, step: int, split: Split) -> list[Row]:
    """What is worth keeping of every answer."""
    columns: tuple[list[Any], ...] = (rollout.reward_S.tolist(), rollout.scored_S.tolist(), rollout.kl_S.tolist())
    return [
        {
            "step": step,
            "split": split,
            "prompt_id": answer.prompt_id,
            "reward": reward if scored else None,
            "kl": kl,
            "tokens": answer.tokens,
            "finished": answer.finished,
            "response": answer.response,
        }
        for answer, reward, scored, kl in zip(rollout.exchanges, *columns, strict=True)
    ]


def summary(course: Course, state: State, schedule: Schedule) -> Row:
    """The `train` section of summary.json."""
    lines = [row for row in course.run.metrics() if row["split"] == "train"]
    seconds = state.position.seconds
    first, last = lines[0], lines[-1]
    return {
        "method": course.settings.online.method,
        "steps": schedule.total,
        "prompts": min(len(course.prompts), schedule.total * course.settings.online.prompts_per_step),
        "answers": sum(row["pairs"] for row in lines),
        "best_step": state.position.best_step,
        "reference": "adapter" if course.frozen.adapted else "copy",
        "seconds": round(seconds, 2),
        "answers_per_second": round(sum(row["pairs"] for row in lines) / max(seconds, 1e-9), 3),
        "tokens_per_second": round(sum(row["tokens"] for row in lines) / max(seconds, 1e-9), 1),
        "peak_memory_gib": round(peak_gib(course.policy.device), 3),
        "first_loss": first["loss"],
        "reward": {"first": first["reward"], "last": last["reward"]},
        "kl": last["kl"],
        "beta": state.beta,
    }


def settings_line(settings: Settings, t: TrainSettings, *, count: int) -> str:
    """What follows from the settings, before the first step."""
    own, plan = settings.online, plan_of(settings)
    total = schedule_of(count, settings).total
    steered = (
        f", steered to {settings.ppo.target_kl:g} nats an answer"
        if own.method == "ppo" and settings.ppo.target_kl
        else ""
    )
    return (
        f"{total:,} steps of {own.prompts_per_step} prompts with {own.samples} answers each, {plan.epochs} passes in "
        f"{plan.minibatches} parts; {own.method}, beta {plan.beta:g}{steered}, learning rate {t.learning_rate:g}"
    )
