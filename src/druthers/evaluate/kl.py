"""How far the policy has moved: KL(policy || reference) on the policy's own samples.

With `d_t = log pi(y_t) - log pi_ref(y_t)` of a sampled token and `rho_t = exp(-d_t)`:

* k1 = mean of `d_t`: unbiased, may be negative;
* k3 = mean of `(rho_t - 1) + d_t`: unbiased, never negative, steadier near the reference (Schulman 2020, "Approximating
  KL divergence").

By the chain rule the KL of a sequence is the sum of its tokens' KLs at the sampled prefixes, so "per sequence" is the
sum of a sequence's terms and "per token" the same sum divided by its tokens. Summing k3 over tokens avoids the
heavy tail that a ratio of whole sequences has.

Samples come at temperature 1 without a nucleus, because truncation of the distribution biases the estimate; a sample
that runs into the length limit counts with the tokens it has. Both models score the very tokens that were sampled, in
the same layout: their text, tokenised again, would be a sample of another distribution.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from druthers.evaluate.scoring import AnswerScorer, Floats
from druthers.records import Exchange
from druthers.stats import Estimate, Undefined, bootstrap_mean, bootstrap_ratio


@dataclass(frozen=True)
class KL:
    """Estimates in nats with intervals over prompts."""

    k1_sequence: Estimate
    k3_sequence: Estimate
    k1_token: Estimate
    k3_token: Estimate
    samples: int
    prompts: int
    text: str

    def as_dict(self) -> dict[str, Any]:
        """JSON values under the documented keys of evaluation/kl.json."""
        return {
            "per_sequence": {"k1": self.k1_sequence.as_dict(), "k3": self.k3_sequence.as_dict()},
            "per_token": {"k1": self.k1_token.as_dict(), "k3": self.k3_token.as_dict()},
            "samples": self.samples,
            "prompts": self.prompts,
            "temperature": 1.0,
            "text": self.text,
        }


def evaluate_kl(samples: Sequence[Exchange], *, policy: AnswerScorer, reference: AnswerScorer, seed: int) -> KL:
    """KL of policy to reference from samples of the policy (temperature 1, top_p 1), several a prompt allowed.

    Answers that cannot be scored are left out; `samples` counts what was used.
    """
    scored = [
        (s.prompt_id, a, b) for s, a, b in zip(samples, policy(samples), reference(samples), strict=True) if len(a)
    ]
    labels = [label for label, _, _ in scored]
    lengths = np.array([len(a) for _, a, _ in scored], dtype=np.float64)
    k1 = np.array([k1_sum(a - b) for _, a, b in scored])
    k3 = np.array([k3_sum(a - b) for _, a, b in scored])
    prompts = len(set(labels))
    sequence = bootstrap_mean(k1, labels, seed=seed)
    return KL(
        k1_sequence=sequence,
        k3_sequence=bootstrap_mean(k3, labels, seed=seed),
        k1_token=bootstrap_ratio(k1, lengths, labels, seed=seed),
        k3_token=bootstrap_ratio(k3, lengths, labels, seed=seed),
        samples=len(scored),
        prompts=prompts,
        text=explain(sequence, samples=len(scored), prompts=prompts),
    )


def k1_sum(d_T: Floats) -> float:
    """Sum of the k1 terms of one sequence.

    >>> k1_sum(np.array([0.5, -0.25]))
    0.25
    """
    return float(d_T.sum())


def k3_sum(d_T: Floats) -> float:
    """Sum of the k3 terms of one sequence.

    >>> round(k3_sum(np.array([0.5, -0.25])), 4)
    0.1406
    """
    return float((np.expm1(-d_T) + d_T).sum())


def explain(k1: Estimate, *, samples: int, prompts: int) -> str:
    """One sentence about the sequence KL."""
    if samples == 0:
        return "The KL to the reference was not measured: no samples were drawn; set evaluate.kl_prompts above 0."
    if isinstance(k1, Undefined):
        return f"The KL to the reference was not measured: {k1.reason}."
    return (
        f"On its own answers ({samples} samples of {prompts} prompts at temperature 1) the aligned model is "
        f"{k1.value:.2f} nats an answer from the base model (95 % interval {k1.low:.2f} to {k1.high:.2f}); "
        "0 is the base model itself."
    )
