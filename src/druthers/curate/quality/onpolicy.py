"""D12: could the model that is to be trained have said these responses itself?

Log-probabilities are those of the reference, sums over the scored tokens of a response, in nats.

Letters: C pair axis (0 chosen, 1 rejected), B pairs, S samples of the model's own.
"""

from __future__ import annotations

from collections.abc import Collection, Hashable, Mapping, Sequence
from datetime import date
from math import hypot

import numpy as np
from numpy.typing import ArrayLike, NDArray

from druthers.findings import finding
from druthers.records import Finding, Limits
from druthers.stats import Estimate, Interval, Undefined, bootstrap_mean

OWN_SHARE = Limits(warn=0.3, bad="below")
AGE_DAYS = Limits(warn=90.0)
APART = Limits(warn=0.5)
"""Nats per token between the model's own samples and the data. Our own default, a guess."""
OVER = " over "
"""What stands between the sources of chosen and rejected in a pair's `source`."""


def likelihood(logp_CB: ArrayLike, length_CB: ArrayLike, *, prompts: Sequence[Hashable], seed: int) -> list[Finding]:
    """D12.logprob, the mean log-probability per token of chosen, and D12.gap, by how much it exceeds rejected's.

    `logp_CB` and `length_CB` (2, B); `prompts` the B prompts' ids, over which the intervals are. Raises ValueError for
    a response without scored tokens.
    """
    chosen_B, rejected_B = per_token(logp_CB, length_CB)
    chosen = bootstrap_mean(chosen_B, prompts, seed=seed)
    gap = bootstrap_mean(chosen_B - rejected_B, prompts, seed=seed)
    said = "How likely a chosen token is by the reference cannot be told."
    if isinstance(chosen, Interval):
        said = f"A chosen token has a log-probability of {chosen.value:.2f} nats by the reference, on average."
    than = "How much likelier a chosen token is than a rejected one cannot be told."
    if isinstance(gap, Interval):
        than = f"A chosen token is {abs(gap.value):.2f} nats {'more' if gap.value >= 0 else 'less'} likely by the "
        than += "reference than a rejected one, on average."
    return [
        finding("D12.logprob", chosen, said, unit="nats/token"),
        finding("D12.gap", gap, than, unit="nats/token"),
    ]


def per_token(logp: ArrayLike, length: ArrayLike) -> NDArray[np.float64]:
    """Mean log-probability of a token of each response, the shape as given.

    >>> per_token([-6.0, -2.0], [3, 1])
    array([-2., -2.])
    """
    sums, counts = np.asarray(logp, dtype=np.float64), np.asarray(length, dtype=np.float64)
    if (counts < 1).any():
        raise ValueError("a response without scored tokens has no log-probability per token; leave it out")
    found: NDArray[np.float64] = sums / counts
    return found


def own_share(sources: Sequence[str], *, models: Collection[str]) -> Finding:
    """D12.onpolicy: how many responses come from one of `models` (the one to be trained, and the one before it).

    `sources` are those of the pairs; "a over b" names two. A model counts under its name and the last part of it. Pairs
    without a source are left out and said. The share is that of the data, counted, so it has no interval.

    >>> found = own_share(["mine over theirs", "org/mine", ""], models=["mine"])
    >>> found.value, found.n
    (0.75, 4)
    """
    wanted = {name.casefold() for model in models for name in (model, last_part(model))}
    named = [responder(source) for source in sources if source.strip()]
    both = [one for pair in named for one in pair]
    own = sum(not wanted.isdisjoint((one.casefold(), last_part(one).casefold())) for one in both)
    share: Estimate | float = own / len(both) if both else Undefined("no pair says where its responses come from")
    unnamed = len(sources) - len(named)
    text = f"{own} of {len(both)} responses come from {' or '.join(sorted(models)) or 'no model at all'}"
    text += f"; {unnamed} pairs do not say where theirs come from." if unnamed else "."
    action = "Sample responses of the model itself (`druthers sample`) and have them judged."
    return finding("D12.onpolicy", share, text, n=len(both), unit="share", limits=OWN_SHARE, action=action)


def responder(source: str) -> tuple[str, str]:
    """Who wrote chosen and rejected.

    >>> responder("a over b"), responder("a")
    (('a', 'b'), ('a', 'a'))
    """
    chosen, _, rejected = source.partition(OVER)
    return chosen.strip(), (rejected or chosen).strip()


def last_part(name: str) -> str:
    """A model's name without its owner or folder.

    >>> last_part("org/model")
    'model'
    """
    return name.rstrip("/").rsplit("/", 1)[-1]


def age(rows: Mapping[int, int], *, today: date) -> Finding | None:
    """D12.age: the median age in days of the rows that say when they were made; nothing where none does.

    `rows` counts them by the ordinal of that day. Counted, so without an interval.

    >>> found = age({date(2026, 1, 1).toordinal(): 2, date(2026, 1, 11).toordinal(): 2}, today=date(2026, 1, 21))
    >>> found.value, found.n
    (20.0, 4)
    """
    if not rows:
        return None
    days, counts = (np.array(column) for column in zip(*sorted(rows.items()), strict=True))
    upto = np.cumsum(counts)
    middle, oldest = (int(days[np.searchsorted(upto, share * upto[-1])]) for share in (0.5, 0.1))
    median, tenth = (max(0, today.toordinal() - day) for day in (middle, oldest))
    text = f"Half of the {upto[-1]:,} rows with a date are {median:,} days old or older "
    text += f"({date.fromordinal(middle)} or earlier), a tenth {tenth:,}."
    action = "Have fresh answers judged: old ones are those of earlier models, to what was asked then."
    n = int(upto[-1])
    return finding("D12.age", float(median), text, n=n, unit="days", limits=AGE_DAYS, action=action)


def own_voice(
    logp_CB: ArrayLike,
    length_CB: ArrayLike,
    own_logp_S: ArrayLike,
    own_length_S: ArrayLike,
    *,
    prompts: Sequence[Hashable],
    own_prompts: Sequence[Hashable],
    seed: int,
) -> Finding:
    """D12.own: by how much the model finds a token of its own samples likelier than one of the data's responses.

    About 0 for on-policy data. The samples must be drawn at temperature 1: colder ones are likelier by their making.
    The interval of the difference is put together from those of the two means; Zou & Donner 2008, Statistics in
    Medicine 27:1693.
    """
    data_B = per_token(logp_CB, length_CB).mean(0)
    theirs = bootstrap_mean(data_B, prompts, seed=seed)
    own = bootstrap_mean(per_token(own_logp_S, own_length_S), own_prompts, seed=seed)
    apart = difference(own, theirs)
    text = "How much likelier the model's own answers are to it than those of the data cannot be told."
    if isinstance(apart, Interval):
        text = f"To the model a token of its own answers is {abs(apart.value):.2f} nats "
        text += f"{'more' if apart.value >= 0 else 'less'} likely than one of the data; at 0 the data would be its own "
        text += "(the limit is a guess)."
    action = "The data are off-policy: sample responses of the model itself and have them judged."
    return finding("D12.own", apart, text, unit="nats/token", limits=APART, action=action)


def difference(one: Estimate, other: Estimate) -> Estimate:
    """one - other for estimates from different samples; Undefined where either is.

    >>> difference(Interval(3.0, 0.0, 7.0, 10), Interval(1.0, -2.0, 5.0, 20))
    Interval(value=2.0, low=-3.0, high=7.0, n=30)
    """
    if isinstance(one, Undefined):
        return one
    if isinstance(other, Undefined):
        return other
    value = one.value - other.value
    low = value - hypot(one.value - one.low, other.high - other.value)
    high = value + hypot(one.high - one.value, other.value - other.low)
    return Interval(value, low, high, one.n + other.n)
