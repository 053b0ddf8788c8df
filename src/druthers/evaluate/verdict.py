"""The headline of a run: a pure function of the sampled win rate."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from druthers.evaluate.answers import WinRate
from druthers.evaluate.pairs import percent
from druthers.stats import Undefined

Word = Literal["better", "no difference shown", "worse", "not judged"]


@dataclass(frozen=True)
class Verdict:
    """One of four words, and a sentence with the numbers behind it."""

    word: Word
    text: str


def verdict(result: WinRate, *, rubric: str | None, prompts: int) -> Verdict:
    """Better or worse when the win rate's whole interval lies on one side of 50 %; without a judge there is no verdict.

    >>> from druthers.stats import Interval
    >>> verdict(WinRate(Interval(0.9, 0.8, 0.95, 50), 45, 0, 5, 19.8), rubric="brand-voice", prompts=50).word
    'better'
    """
    rate = result.win_rate
    if isinstance(rate, Undefined) or rubric is None:
        return Verdict(
            "not judged", "The answers were not judged, because no rubric is set; name one with evaluate.rubric."
        )
    numbers = (
        f"the aligned model's sampled answers win {percent(rate.value)} of {prompts} held-out prompts against the base "
        f"model's (95 % interval {percent(rate.low)} to {percent(rate.high)}, ties half), judged by {rubric}"
    )
    if rate.low > 0.5:
        return Verdict("better", f"Better: {numbers}.")
    if rate.high < 0.5:
        return Verdict("worse", f"Worse: {numbers}.")
    limit = f"so many prompts can show {result.detectable_points:.1f} points or more"
    return Verdict("no difference shown", f"No difference shown: {numbers}; {limit}.")
