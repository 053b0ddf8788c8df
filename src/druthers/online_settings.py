"""Settings of training on sampled answers: what both methods share, PPO's own and RLOO's own."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field


class OnlineSection(BaseModel):
    """A frozen group of settings, as those of `config`, which holds these."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, coerce_numbers_to_str=True)


class OnlineSettings(OnlineSection):
    """Answers to the prompts that `data.pairs` names and their reward; read by `druthers reinforce` alone."""

    method: Literal["ppo", "rloo"] = Field("ppo", description="'ppo' learns a value beside the policy, 'rloo' has none")
    reward: str | None = Field(
        None,
        description="what scores the answers: a rule rubric (TOML or packaged), or the folder of a reward model",
    )
    prompts_per_step: int = Field(16, ge=1, description="prompts answered for one step")
    samples: int = Field(4, ge=1, description="answers to each of them; 'rloo' takes at least 2")
    max_new_tokens: int = Field(128, ge=1, description="longest answer in tokens")
    no_end_penalty: float = Field(
        1.0, ge=0, description="reward that an answer loses which the limit cut off before it ended its turn"
    )
    most_kl: float = Field(
        100.0, gt=0, description="nats an answer from the reference at which a run stops as collapsed"
    )
    least_entropy: float = Field(
        0.01, ge=0, description="nats a token below which a run stops as collapsed: the policy says one thing"
    )


class PPOSettings(OnlineSection):
    """Proximal policy optimization with a penalty on the KL to the reference."""

    target_kl: float | None = Field(
        6.0, gt=0, description="nats an answer that beta is steered to; unset: beta stays as it is"
    )
    beta: float = Field(0.05, gt=0, description="reward that a nat of KL costs, at first")
    epochs: int = Field(4, ge=1, description="passes over the answers of a step")
    minibatches: int = Field(4, ge=1, description="optimizer steps of a pass")
    clip: float = Field(0.2, gt=0, lt=1, description="how far a token's probability may move before it counts no more")
    value_clip: float = Field(0.2, gt=0, description="the same for its value, in units of reward")
    value_coefficient: float = Field(0.1, ge=0, description="weight of the value loss beside that of the policy")
    value_rate: float = Field(1e-3, gt=0, description="peak learning rate of the value head")
    lam: float = Field(0.95, ge=0, le=1, description="lambda of the generalised advantages")


class RLOOSettings(OnlineSection):
    """REINFORCE with the other answers to a prompt as the baseline."""

    beta: float = Field(0.05, gt=0, description="reward that a nat of KL costs")
    epochs: int = Field(1, ge=1, description="passes over the answers of a step")
    minibatches: int = Field(1, ge=1, description="optimizer steps of a pass")
    clip: float = Field(0.2, gt=0, lt=1, description="how far an answer's probability may move in later passes")
