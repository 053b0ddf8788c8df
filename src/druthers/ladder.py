"""Which layout a loaded model computes exactly: the shared prompt, rows without padding, or plain padded rows.

The plain rows are the definition. The others are taken when the very model in memory, on a made-up pair, gives every
token the log-probability it has there, and when changing one response leaves the other alone: in float32, by the
block-wise attention. Where the compute type is rougher and there are faster kernels (CUDA), each of them is held
against the float32 plain rows by how far plain rows in the compute type are from those, forward and backward.

Letters: N scored response tokens, G weights whose gradient is looked at.
"""

from __future__ import annotations

import contextlib
import dataclasses
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass

import torch
from torch import Tensor

from druthers.batching import Batch, Rung, collate
from druthers.logprobs import Scorer, token_logps
from druthers.records import first_line
from druthers.tokens import TokenizedPair

RUNGS: tuple[Rung, ...] = ("shared", "padding-free", "padded")
BLOCKWISE = "block"
"""The kernel that computes any layer on any device; the others have names of `kernels.KERNELS`."""
EQUAL = 1e-4
"""Most that a token's log-probability may differ from the plain rows', in nats, in float32."""
LEAK = 1e-6
"""Most that it may move when another response changes."""
ROUGHER = 1.25
"""Most that a kernel's error against float32 may be, as a multiple of the plain rows' own in the same type."""
STEEPER = 2.0
"""The same of the gradient, one sum over few pairs: right kernels were at 0.8 to 1.3 on tiny models, wrong ones far."""
SHORT = (23, 11, 17)
"""Tokens of prompt, chosen and rejected in the made-up pair, where no window asks for more."""
LONG = (40, 120, 90)
"""The same in the pairs for kernels, longer than a kernel's tile."""
FAR = 2**14
"""Tokens of a window from which on it is left out: pairs longer than that would be too long to try."""
MANY, MOST_TOKENS = 16, 2**14
"""Pairs for kernels, fewer where a window makes them so long that they would be more tokens than that."""
FAILURES = (ValueError, TypeError, RuntimeError, NotImplementedError, ImportError)
"""What models, torch and kernels raise for what they cannot do."""


@dataclass(frozen=True, slots=True)
class Step:
    """A rung that was tried: its largest difference to plain rows, in nats a token, and why it was left if it was."""

    rung: Rung
    error: float
    why_not: str = ""


@dataclass(frozen=True, slots=True)
class Trial:
    """A kernel that was tried on a rung: its error as a multiple of the plain rows', and why it was left if it was."""

    rung: Rung
    kernel: str
    error: float
    why_not: str = ""


@dataclass(frozen=True, slots=True)
class Found:
    """The rung and the kernel to use, what was tried, and the model's own attention, which its generation keeps."""

    rung: Rung
    tried: tuple[Step, ...] = ()
    native: str = "sdpa"
    kernel: str = BLOCKWISE
    trials: tuple[Trial, ...] = ()

    @property
    def text(self) -> str:
        """One line for the screen and the record."""
        taken = next((step for step in self.tried if step.rung == self.rung and not step.why_not), None)
        said = f"{self.rung} (within {taken.error:.0e} nat a token of plain rows)" if taken else self.rung
        left = [f"not {step.rung}: {step.why_not}" for step in self.tried if step.why_not]
        for trial in self.trials:
            if trial.why_not:
                left.append(f"not {trial.kernel} for {trial.rung} rows: {trial.why_not}")
            else:
                said += f", {trial.kernel} attention ({trial.error:.2f} times the rounding error of plain rows)"
        return "; ".join([said, *left])

    def why_not(self, rung: Rung) -> str:
        """Why a rung was left, by the rows themselves or by the last kernel tried on them."""
        said = [trial.why_not for trial in self.trials if trial.rung == rung]
        return next((step.why_not for step in self.tried if step.rung == rung and step.why_not), "") or said[-1]


PLAIN = Found("padded")
Switch = Callable[[Rung, str], None]
Rough = Callable[[], AbstractContextManager[None]]


def climb(
    scorer: Scorer,
    *,
    vocabulary: int,
    device: torch.device,
    window: int | None,
    switch: Switch,
    first: Rung = "shared",
    kernels: Sequence[str] = (BLOCKWISE,),
    rough: Rough | None = None,
) -> Found:
    """Try the rungs from `first` down; `switch` gives the model the attention of a rung and a kernel.

    `window` is the model's shortest sliding window: the made-up pair is longer. With `rough`, the context in which the
    model computes in its own type, every rung that is exact is tried with each of the `kernels` in it. The model keeps
    the attention that was switched to last, which is that of the result.
    """
    pair = made_up(vocabulary, window=window)
    switch("padded", BLOCKWISE)
    plain_N = logps(scorer, [pair], "padded", device)
    measure = None if rough is None or first == "padded" else yardstick(scorer, vocabulary, window, device, rough)
    tried: list[Step] = []
    trials: list[Trial] = []
    for rung in RUNGS[RUNGS.index(first) : -1]:
        try:
            switch(rung, BLOCKWISE)
            tried.append(attempt(scorer, pair, rung, plain_N, device))
        except FAILURES as error:
            tried.append(Step(rung, float("nan"), first_line(error)))
        if tried[-1].why_not:
            continue
        if measure is None:
            return Found(rung, tuple(tried))
        for kernel in kernels:
            try:
                switch(rung, kernel)
                trials.append(measure.trial(scorer, rung, kernel))
            except FAILURES as error:
                trials.append(Trial(rung, kernel, float("nan"), first_line(error)))
            if not trials[-1].why_not:
                return Found(rung, tuple(tried), kernel=kernel, trials=tuple(trials))
    switch("padded", BLOCKWISE)
    return Found("padded", tuple(tried), trials=tuple(trials))


def looked_back(window: int | None) -> int:
    """Tokens of a window that a made-up pair is to exceed, 0 where there is none or it is too long to try.

    >>> looked_back(4096), looked_back(32768), looked_back(None)
    (4096, 0, 0)
    """
    return window if window is not None and window < FAR else 0


def made_up(
    vocabulary: int, *, window: int | None, lengths: tuple[int, int, int] = SHORT, seed: int = 0
) -> TokenizedPair:
    """A pair of random ids whose two responses begin differently, longer than the window."""
    draw = torch.Generator().manual_seed(seed)
    prompt, chosen, rejected = lengths
    prompt += looked_back(window)
    ids = torch.randint(vocabulary, (prompt + chosen + rejected,), generator=draw).tolist()
    a, b = ids[prompt : prompt + chosen], ids[prompt + chosen :]
    b[0] = (a[0] + 1) % vocabulary
    return TokenizedPair("", tuple(ids[:prompt]), tuple(a), tuple(b), (True,) * chosen, (True,) * rejected)


def ordered(logp_N: Tensor, batch: Batch) -> Tensor:
    """Tokens in the order of the pairs, all chosen responses first, however the batch is laid out."""
    place_R = torch.empty_like(batch.length_R)
    place_R[batch.response_CB.flatten()] = torch.arange(len(place_R), device=place_R.device)
    return logp_N[place_R[batch.owner_N].argsort(stable=True)]


@torch.no_grad()
def logps(scorer: Scorer, pairs: Sequence[TokenizedPair], rung: Rung, device: torch.device) -> Tensor:
    """Log-probability of every response token, chosen ones first."""
    batch = collate(pairs, pad_id=0, rung=rung, device=device)
    return ordered(token_logps(scorer, batch), batch)


def attempt(scorer: Scorer, pair: TokenizedPair, rung: Rung, plain_N: Tensor, device: torch.device) -> Step:
    """One rung against the plain rows, and its responses against each other."""
    own_N = logps(scorer, [pair], rung, device)
    error = (own_N - plain_N).abs().max().item()
    if not error <= EQUAL:
        return Step(rung, error, f"differs from plain rows by {error:.1e} nat a token")
    for changed, leak in leaks(scorer, [pair], rung, device, own_N).items():
        if not leak <= LEAK:
            return Step(rung, error, leaking(changed, leak))
    return Step(rung, error)


def leaking(changed: str, leak: float) -> str:
    """The sentence for a leak, in nats a token."""
    return f"changing the {changed} response moves the other by {leak:.1e} nat a token"


def leaks(
    scorer: Scorer, pairs: Sequence[TokenizedPair], rung: Rung, device: torch.device, own_N: Tensor
) -> dict[str, float]:
    """How far the tokens of one side move when every token of the other changes, by the side that is changed."""
    count = sum(len(pair.chosen) for pair in pairs)
    turned = {
        "chosen": [dataclasses.replace(pair, chosen=moved(pair.chosen)) for pair in pairs],
        "rejected": [dataclasses.replace(pair, rejected=moved(pair.rejected)) for pair in pairs],
    }
    left = {"chosen": slice(count, None), "rejected": slice(count)}
    found = {}
    for changed, others in turned.items():
        found[changed] = (logps(scorer, others, rung, device) - own_N)[left[changed]].abs().max().item()
    return found


def moved(ids: tuple[int, ...]) -> tuple[int, ...]:
    """Every token another one."""
    return tuple(token - 1 if token else 1 for token in ids)


@dataclass(frozen=True, slots=True)
class Yardstick:
    """Pairs by plain rows: log-probabilities and a gradient in float32, and how far off they are in the compute type.

    `leak` is how far one side moves there when the other changes, which is 0 unless the shapes of products depend on
    the tokens (experts). The gradient is that of few weights on few pairs, so that it fits where training does.
    """

    pairs: list[TokenizedPair]
    few: list[TokenizedPair]
    device: torch.device
    rough: Rough
    exact_N: Tensor
    exact_G: Tensor
    error_N: float
    error_G: float
    leak: dict[str, float]

    def trial(self, scorer: Scorer, rung: Rung, kernel: str) -> Trial:
        """One kernel on one rung, in the compute type."""
        with self.rough():
            own_N = logps(scorer, self.pairs, rung, self.device)
            leak = leaks(scorer, self.pairs, rung, self.device, own_N)
        own_G = slope(scorer, self.few, rung, self.device, self.rough)
        error, steep = times(own_N - self.exact_N, self.error_N), times(own_G - self.exact_G, self.error_G)
        why = ""
        for what, ratio, most in (("log-probabilities", error, ROUGHER), ("gradient", steep, STEEPER)):
            if not ratio <= most:
                why = why or f"its error of the {what} is {ratio:.2f} times that of plain rows"
        for changed, moves in leak.items():
            if not moves <= max(LEAK, ROUGHER * self.leak[changed]):
                why = why or leaking(changed, moves)
        return Trial(rung, kernel, error, why)


def rms(difference: Tensor) -> float:
    """Root of the mean square."""
    return difference.double().square().mean().sqrt().item()


def times(difference: Tensor, error: float) -> float:
    """A difference's root mean square as a multiple of another one's."""
    return rms(difference) / max(error, sys.float_info.min)


def yardstick(scorer: Scorer, vocabulary: int, window: int | None, device: torch.device, rough: Rough) -> Yardstick:
    """Measure the plain rows, whose attention the model has."""
    size = sum(LONG) + LONG[0] + 2 * looked_back(window)
    count = max(2, min(MANY, MOST_TOKENS // size))
    pairs = [made_up(vocabulary, window=window, lengths=LONG, seed=seed) for seed in range(count)]
    few = [made_up(vocabulary, window=None, lengths=LONG, seed=seed) for seed in range(2)]
    exact_N, exact_G = logps(scorer, pairs, "padded", device), slope(scorer, few, "padded", device)
    with rough():
        plain_N = logps(scorer, pairs, "padded", device)
        leak = leaks(scorer, pairs, "padded", device, plain_N)
    plain_G = slope(scorer, few, "padded", device, rough)
    return Yardstick(pairs, few, device, rough, exact_N, exact_G, rms(plain_N - exact_N), rms(plain_G - exact_G), leak)


def slope(
    scorer: Scorer,
    pairs: Sequence[TokenizedPair],
    rung: Rung,
    device: torch.device,
    rough: Rough = contextlib.nullcontext,
) -> Tensor:
    """Gradient (G,) of chosen minus rejected log-probabilities by the vectors among the weights: norms and biases."""
    batch = collate(pairs, pad_id=0, rung=rung, device=device)
    with torch.enable_grad(), only_vectors(scorer) as weights:
        with rough():
            logp_N = ordered(token_logps(scorer, batch), batch)
        count = sum(len(pair.chosen) for pair in pairs)
        grads = torch.autograd.grad(logp_N[:count].sum() - logp_N[count:].sum(), weights, materialize_grads=True)
    return torch.cat([grad.flatten().float() for grad in grads])


@contextlib.contextmanager
def only_vectors(scorer: Scorer) -> Iterator[list[Tensor]]:
    """No gradient but for weights of one dimension, of the embedding where there are none; afterwards as before."""
    weights = [*scorer.backbone.parameters(), *scorer.head.parameters()]
    before = [(weight, weight.requires_grad) for weight in weights]
    chosen = {id(weight): weight for weight in weights if weight.ndim == 1} or {id(weights[0]): weights[0]}
    try:
        for weight in weights:
            weight.requires_grad_(id(weight) in chosen)
        yield list(chosen.values())
    finally:
        for weight, wanted in before:
            weight.requires_grad_(wanted)
