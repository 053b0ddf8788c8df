"""Which layout a loaded model computes exactly: the shared prompt, rows without padding, or plain padded rows.

The plain rows are the definition. The others are taken when the very model in memory, on a made-up pair, gives every
token the log-probability it has there, and when changing one response leaves the other alone.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from druthers.batching import Rung, collate
from druthers.logprobs import Scorer, token_logps
from druthers.tokens import TokenizedPair

RUNGS: tuple[Rung, ...] = ("shared", "padding-free", "padded")
EQUAL = 1e-4
"""Most that a token's log-probability may differ from the plain rows', in nats, in float32."""
LEAK = 1e-6
"""Most that it may move when another response changes."""
SHORT = (23, 11, 17)
"""Tokens of prompt, chosen and rejected in the made-up pair, where no window asks for more."""


@dataclass(frozen=True, slots=True)
class Step:
    """A rung that was tried: its largest difference to plain rows, in nats a token, and why it was left if it was."""

    rung: Rung
    error: float
    why_not: str = ""


@dataclass(frozen=True, slots=True)
class Found:
    """The rung to use, what was tried on the way, and the model's own attention, which its generation keeps."""

    rung: Rung
    tried: tuple[Step, ...] = ()
    native: str = "sdpa"

    @property
    def text(self) -> str:
        """One line for the screen and the record."""
        left = "; ".join(f"not {step.rung}: {step.why_not}" for step in self.tried if step.why_not)
        taken = next((step for step in self.tried if not step.why_not), None)
        said = f"{self.rung} (within {taken.error:.0e} nat a token of plain rows)" if taken else self.rung
        return f"{said}; {left}" if left else said


PLAIN = Found("padded")


def climb(
    scorer: Scorer,
    *,
    vocabulary: int,
    device: torch.device,
    window: int | None,
    switch: Callable[[Rung], None],
    first: Rung = "shared",
) -> Found:
    """Try the rungs from `first` down; `switch` gives the model the attention of a rung, and it keeps the last one.

    `window` is the model's shortest sliding window: the made-up pair is longer.
    """
    pair = made_up(vocabulary, window=window)
    switch("padded")
    plain_N = logps(scorer, pair, "padded", device)
    tried: list[Step] = []
    for rung in RUNGS[RUNGS.index(first) : -1]:
        try:
            switch(rung)
            tried.append(attempt(scorer, pair, rung, plain_N, device))
        except (ValueError, TypeError, RuntimeError, NotImplementedError) as error:
            tried.append(Step(rung, float("nan"), (str(error).splitlines() or [type(error).__name__])[0]))
        if not tried[-1].why_not:
            return Found(rung, tuple(tried))
    switch("padded")
    return Found("padded", tuple(tried))


def made_up(vocabulary: int, *, window: int | None) -> TokenizedPair:
    """A pair of random ids whose two responses begin differently, longer than the window."""
    draw = torch.Generator().manual_seed(0)
    prompt, chosen, rejected = SHORT
    if window is not None and window < 2**14:
        prompt += window
    ids = torch.randint(vocabulary, (prompt + chosen + rejected,), generator=draw).tolist()
    a, b = ids[prompt : prompt + chosen], ids[prompt + chosen :]
    b[0] = (a[0] + 1) % vocabulary
    return TokenizedPair("", tuple(ids[:prompt]), tuple(a), tuple(b), (True,) * chosen, (True,) * rejected)


@torch.no_grad()
def logps(scorer: Scorer, pair: TokenizedPair, rung: Rung, device: torch.device) -> Tensor:
    """Log-probability of every response token, chosen first."""
    return token_logps(scorer, collate([pair], pad_id=0, rung=rung, device=device))


def attempt(scorer: Scorer, pair: TokenizedPair, rung: Rung, plain_N: Tensor, device: torch.device) -> Step:
    """One rung against the plain rows, and its responses against each other."""
    own_N = logps(scorer, pair, rung, device)
    error = (own_N - plain_N).abs().max().item()
    if not error <= EQUAL:
        return Step(rung, error, f"differs from plain rows by {error:.1e} nat a token")
    count = len(pair.chosen)
    turned = (
        dataclasses.replace(pair, chosen=moved(pair.chosen)),
        dataclasses.replace(pair, rejected=moved(pair.rejected)),
    )
    for other, changed, left in zip(turned, ("chosen", "rejected"), (slice(count, None), slice(count)), strict=True):
        leak = (logps(scorer, other, rung, device) - own_N)[left].abs().max().item()
        if not leak <= LEAK:
            return Step(rung, error, f"changing the {changed} response moves the other by {leak:.1e} nat a token")
    return Step(rung, error)


def moved(ids: tuple[int, ...]) -> tuple[int, ...]:
    """Every token another one."""
    return tuple(token - 1 if token else 1 for token in ids)
