"""What held-out pairs say: does the model prefer the chosen answer, by how much, and what happened to its likelihood.

`a`, `b` are the log-ratios policy / reference of chosen and rejected (sums over response tokens, nats), `h = a - b`,
margin = beta * h. The unit of every interval is the prompt.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from druthers.records import InputError, Outcome
from druthers.stats import Estimate, Undefined, bootstrap_mean, correlation, mcnemar, win_rate

STEEP_FALL = 0.5
"""Mean fall in nats per token beyond which `explain` warns: tokens keep less than 61 % of their probability."""


@dataclass(frozen=True)
class Flips:
    """Pairs by whether reference and policy rank chosen above rejected by plain log-likelihood."""

    kept: int
    gained: int
    lost: int
    never: int


@dataclass(frozen=True)
class PairResult:
    """The diagnostics of one step; shares and accuracies in 0..1, margins in units of reward, changes in nats."""

    step: int
    accuracy: Estimate
    accuracy_base: Estimate
    margin: Estimate
    chosen_fell: Estimate
    chosen_change_per_token: Estimate
    chosen_change: Estimate
    rejected_change: Estimate
    length_correlation: float | Undefined
    flips: Flips
    flips_p: float
    n: int
    prompts: int
    text: str = ""

    def as_dict(self) -> dict[str, Any]:
        """JSON values under the documented keys of evaluation/pairs.json."""
        estimates = {
            k: v.as_dict() for k, v in vars(self).items() if isinstance(v, Estimate) and k != "length_correlation"
        }
        length = None if isinstance(self.length_correlation, Undefined) else self.length_correlation
        return asdict(self) | estimates | {"length_correlation": length}


def evaluate_pairs(outcomes: Iterable[Outcome], *, prompts: Mapping[str, str], beta: float, seed: int) -> PairResult:
    """Diagnostics of the held-out outcomes of one step; `prompts` maps pair ids to prompt ids.

    A pair that stands twice counts once (the later row). Raises InputError for a pair that `prompts` does not know, and
    ValueError when the outcomes are of several steps.
    """
    rows = list({row.pair_id: row for row in outcomes}.values())
    steps = {row.step for row in rows}
    if len(steps) > 1:
        raise ValueError(f"outcomes of the steps {sorted(steps)} cannot be averaged; choose one")
    labels = [prompt_of(row.pair_id, prompts) for row in rows]
    table = columns(rows)
    a, b, change = (
        table["logratio_chosen"],
        table["logratio_rejected"],
        table["logratio_chosen"] / table["length_chosen"],
    )
    base = table["logp_chosen"] - a - (table["logp_rejected"] - b)
    margin = beta * (a - b)
    flips = flip_table(base > 0, table["logp_chosen"] > table["logp_rejected"])
    return PairResult(
        step=steps.pop() if steps else 0,
        accuracy=win_rate(above_zero(a - b), labels, seed=seed),
        accuracy_base=win_rate(above_zero(base), labels, seed=seed),
        margin=bootstrap_mean(margin, labels, seed=seed),
        chosen_fell=win_rate((a < 0).astype(float), labels, seed=seed),
        chosen_change_per_token=bootstrap_mean(change, labels, seed=seed),
        chosen_change=bootstrap_mean(a, labels, seed=seed),
        rejected_change=bootstrap_mean(b, labels, seed=seed),
        length_correlation=correlation(margin, table["length_chosen"] - table["length_rejected"]),
        flips=flips,
        flips_p=mcnemar(flips.gained, flips.lost),
        n=len(rows),
        prompts=len(set(labels)),
    )


def outcomes_at(outcomes: Iterable[Outcome], step: int) -> list[Outcome]:
    """The held-out outcomes of one step."""
    return [row for row in outcomes if row.split == "heldout" and row.step == step]


def prompt_of(pair_id: str, prompts: Mapping[str, str]) -> str:
    """The prompt a pair belongs to."""
    if pair_id not in prompts:
        raise InputError(
            f"outcomes.parquet: pair {pair_id!r} is not among the held-out pairs of this run; "
            "the directory mixes two runs, so train again into an empty one"
        )
    return prompts[pair_id]


def columns(rows: Sequence[Outcome]) -> dict[str, NDArray[np.float64]]:
    """The numeric fields as arrays of shape (B,)."""
    names = ("logp_chosen", "logp_rejected", "logratio_chosen", "logratio_rejected", "length_chosen", "length_rejected")
    return {name: np.array([getattr(row, name) for row in rows], dtype=np.float64) for name in names}


def above_zero(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """1 above zero, 1/2 at zero, 0 below.

    >>> above_zero(np.array([2.0, 0.0, -1.0])).tolist()
    [1.0, 0.5, 0.0]
    """
    half: NDArray[np.float64] = (np.sign(values) + 1) / 2
    return half


def flip_table(before: NDArray[np.bool_], after: NDArray[np.bool_]) -> Flips:
    """Counts of pairs ranked rightly before and after.

    >>> flip_table(np.array([True, False, True, False]), np.array([True, True, False, False]))
    Flips(kept=1, gained=1, lost=1, never=1)
    """
    return Flips(
        kept=int((before & after).sum()),
        gained=int((~before & after).sum()),
        lost=int((before & ~after).sum()),
        never=int((~before & ~after).sum()),
    )


def explain(result: PairResult, *, verdict: str = "not judged") -> str:
    """Why the chosen answers' likelihood moved as it did, when that is normal and when to worry, in this run's numbers.

    `verdict` is what the judged answers of the same run said.
    """
    fell, change, margin = result.chosen_fell, result.chosen_change_per_token, result.margin
    if isinstance(fell, Undefined) or isinstance(change, Undefined) or isinstance(margin, Undefined):
        return f"Nothing can be said about the chosen answers: {reasons(fell, change, margin)}."
    seen = (
        f"On {percent(fell.value)} of {fell.n} held-out pairs "
        f"(95 % interval {percent(fell.low)} to {percent(fell.high)}) the chosen answer "
        "became less likely than under the base model; "
        f"the mean change over all pairs is {change.value:+.3f} nats per token."
    )
    return f"{seen} {meaning(result, change=change.value, grew=margin.low > 0, verdict=verdict)}"


def meaning(result: PairResult, *, change: float, grew: bool, verdict: str) -> str:
    """The second half of the explanation: normal, or which sign of trouble this run shows."""
    a, b = (e.value if not isinstance(e, Undefined) else 0.0 for e in (result.chosen_change, result.rejected_change))
    gap = f"chosen moved {a:+.1f} and rejected {b:+.1f} nats per answer"
    if change >= 0:
        return f"On average they became more likely ({gap}), so there is nothing to explain."
    if verdict == "worse":
        return (
            f"Worry: the judged answers got worse as well ({gap}); "
            "use a lower learning rate, a larger beta or fewer steps."
        )
    if change < -STEEP_FALL:
        return (
            f"Worry: a fall beyond {STEEP_FALL} nats per token ({gap}) means probability went to texts nobody chose; "
            "read the samples, and use a lower learning rate or a larger beta."
        )
    if not grew:
        return (
            f"Worry: it fell without pulling ahead of the rejected answers ({gap}); "
            "check that the pairs are not swapped, and train longer."
        )
    normal = (
        f"That is normal for DPO, whose loss rewards only the gap ({gap}): "
        "both may fall as long as rejected falls further."
    )
    return f"{normal} {RELIEF.get(verdict, RELIEF['not judged'])}"


RELIEF = {
    "better": "The judged answers got better, so it did no harm here.",
    "no difference shown": "The judged answers show no harm; worry if they read worse or ramble.",
    "not judged": "Worry only if the sampled answers read worse or ramble; then lower the learning rate or raise beta.",
}


def reasons(*estimates: Estimate) -> str:
    """The distinct reasons of what is undefined."""
    return ", ".join(dict.fromkeys(e.reason for e in estimates if isinstance(e, Undefined)))


def percent(share: float) -> str:
    """A share as a percentage.

    >>> percent(0.625)
    '62 %'
    """
    return f"{100 * share:.0f} %"
