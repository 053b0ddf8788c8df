"""Three ways to one optimum on the language of `letters`: PPO and RLOO by the online loop, DPO by exact preferences."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from druthers.config import Settings, load
from druthers.losses import sigmoid
from druthers.models import trainable
from druthers.records import Prompt
from druthers.run import Run
from druthers.train import online
from tests import letters

Method = Literal["ppo", "rloo", "dpo"]
PROMPT = "ab?"
NO_END = 0.3
"""What an answer loses that the limit cut off."""


@dataclass(frozen=True)
class Case:
    """A policy, every answer it can give, what each is worth, and the price of a nat."""

    longest: int
    beta: float
    seed: int
    adapter: str = "none"


@dataclass(frozen=True)
class Reached:
    """Total variation to the optimum before and after, the objective in per cent of the way there, and the time."""

    before: float
    after: float
    kl: float
    reward: float
    share: float
    seconds: float


def settings_of(case: Case, method: Method, *, steps: int, samples: int, rate: float) -> Settings:
    """One prompt a step, a learning rate that falls to 0, a beta that stays."""
    return load(
        overrides=[
            f"seed={case.seed}",
            f"online.method={method}",
            "online.prompts_per_step=1",
            f"online.samples={samples}",
            f"online.max_new_tokens={case.longest}",
            f"online.no_end_penalty={NO_END}",
            "online.least_entropy=0",
            f"train.epochs={steps}",
            f"train.learning_rate={rate}",
            "train.schedule=linear",
            "train.warmup_share=0",
            f"train.evaluate_every={steps}",
            "train.token_budget=8192",
            "evaluate.batch_size=512",
            f"ppo.beta={case.beta}",
            f"rloo.beta={case.beta}",
            "ppo.target_kl=none",
            "ppo.minibatches=1",
            "ppo.value_rate=1e-2",
            "ppo.value_clip=1",
        ]
    )


def reach(folder: Path, case: Case, method: Method, *, steps: int, samples: int = 256, rate: float) -> Reached:
    """Train from the reference and say how far the optimum is then."""
    policy, answers = letters.policy(case.seed, adapter=case.adapter), letters.every_answer(case.longest)
    reward_S = torch.tensor([letters.worth(a) - NO_END * (a[-1] != letters.END) for a in answers], dtype=torch.float64)
    with torch.no_grad():
        reference_S = letters.logps(policy, PROMPT, answers)
    best_S = letters.optimum(reference_S, reward_S, beta=case.beta)
    since = time.monotonic()
    if method == "dpo":
        prefer(policy, answers, reference_S, reward_S, beta=case.beta, steps=steps, rate=rate)
    else:
        asked = [Prompt(prompt=letters.asked(PROMPT))]
        own = settings_of(case, method, steps=steps, samples=samples, rate=rate)
        online.train(Run(folder), own, policy, prompts=asked, heldout=[], reward=letters.REWARD)
    seconds = time.monotonic() - since
    with torch.no_grad():
        found_S = letters.logps(policy, PROMPT, answers)

    def objective(logp_S: Tensor) -> tuple[float, float]:
        return float((logp_S.exp() * reward_S).sum()), float((logp_S.exp() * (logp_S - reference_S)).sum())

    (start, _), (reward, kl), (top, far) = map(objective, (reference_S, found_S, best_S.log()))
    share = (reward - case.beta * kl - start) / (top - case.beta * far - start)
    before, after = (letters.distance(logp_S.exp(), best_S) for logp_S in (reference_S, found_S))
    return Reached(before, after, kl, reward, share, seconds)


def prefer(
    policy: letters.Loaded,
    answers: list[tuple[int, ...]],
    reference_S: Tensor,
    reward_S: Tensor,
    *,
    beta: float,
    steps: int,
    rate: float,
) -> None:
    """DPO on every pair of answers with the probability that its first one is better, `s(r_a - r_b)`, known exactly."""
    a, b = torch.triu_indices(len(answers), len(answers), offset=1)
    p_B = torch.sigmoid(reward_S[a] - reward_S[b])
    optimizer = torch.optim.AdamW(trainable(policy).values(), lr=rate, weight_decay=0.0)
    for step in range(steps):
        optimizer.param_groups[0]["lr"] = rate * (1 - step / steps)
        policy_S = letters.logps(policy, PROMPT, answers)
        policy_CB, reference_CB = (torch.stack([x[a], x[b]]) for x in (policy_S, reference_S))
        loss = sigmoid(policy_CB, reference_CB, beta=beta, p_B=p_B).mean()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
