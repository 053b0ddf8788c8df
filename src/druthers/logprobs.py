"""Model and `Batch` to `(2, B)` log-probabilities, by a head that sees response positions only, a block at a time.

Letters: C pair axis, B pairs, S sequences, T tokens in a row, N scored response tokens, V vocabulary, H hidden; M rows
and W words of a block of logits. No tensor of more than `chunk` logits is alive at any time, in either direction.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from druthers.batching import Batch

CHUNK = 2**22
"""Logits alive at once on a CPU: 16 MiB in float32, near what the caches hold, whatever the vocabulary."""
CHUNK_OF_MODULES = 2**24
"""The same where whole rows are needed."""
CHUNK_OF_GPUS = 2**26
"""Enough for products that fill a GPU."""
LEAST_WORDS = 1024
"""Words of a block, at least; so many rows are taken at once as leave room for them."""
MANY_WORDS = 2**18
"""Words of a head that does not say how many it has."""


@dataclass(frozen=True, slots=True)
class Scorer:
    """The parts of a causal language model that scoring needs.

    `backbone` maps ids to hidden states; `head` maps hidden states to logits, which are multiplied by `scale` and
    squashed by `softcap * tanh(logits / softcap)` where the model does so.
    """

    backbone: nn.Module
    head: nn.Module
    scale: float = 1.0
    softcap: float | None = None


def shaped(logits_NV: Tensor, scale: float, softcap: float | None) -> Tensor:
    """Logits in at least float32, scaled and soft-capped as the model's own forward does."""
    logits_NV = logits_NV.to(torch.promote_types(logits_NV.dtype, torch.float32))
    if scale != 1.0:
        logits_NV = logits_NV * scale
    return logits_NV if softcap is None else softcap * torch.tanh(logits_NV / softcap)


def spans(count: int, size: int) -> list[slice]:
    """`count` cut into ranges of at most `size`; one empty range when there is nothing to cut.

    >>> spans(5, 2)
    [slice(0, 2, None), slice(2, 4, None), slice(4, 5, None)]
    """
    return [slice(start, min(start + size, count)) for start in range(0, max(1, count), size)]


@dataclass(frozen=True, slots=True)
class Linear:
    """A linear head: `weight_VH` and `bias_V`, which any part of the vocabulary can be asked of."""

    weight_VH: Tensor
    bias_V: Tensor | None
    scale: float
    softcap: float | None

    def weight(self, words: slice, kind: torch.dtype) -> Tensor:
        """The weights of some words in the type of the products, (W, H)."""
        return self.weight_VH[words].to(kind)

    def logits(self, hidden_MH: Tensor, weight_WH: Tensor, words: slice) -> Tensor:
        """A block of logits, (M, W), at least float32."""
        bias_W = None if self.bias_V is None else self.bias_V[words].to(hidden_MH.dtype)
        return shaped(F.linear(hidden_MH, weight_WH, bias_W), self.scale, self.softcap)

    def blocks(self, count: int, chunk: int) -> tuple[list[slice], list[slice]]:
        """Ranges of rows and of words that together have at most `chunk` logits."""
        rows = max(1, min(count, chunk // min(LEAST_WORDS, len(self.weight_VH))))
        return spans(count, rows), spans(len(self.weight_VH), max(1, chunk // rows))


def inside(target_M: Tensor, words: slice) -> tuple[Tensor, Tensor]:
    """Which targets are among the words, and each one's place there (0 where it is not)."""
    among_M = (target_M >= words.start) & (target_M < words.stop)
    return among_M, torch.where(among_M, target_M - words.start, 0)[:, None]


def look(logits_MW: Tensor, target_M: Tensor, words: slice) -> tuple[Tensor, Tensor, Tensor]:
    """Logits of the targets (0 where not among the words), the largest logit, and the sum of exp(logit - largest).

    The block is spent.
    """
    among_M, place_M1 = inside(target_M, words)
    picked_M = torch.where(among_M, logits_MW.gather(1, place_M1)[:, 0], 0.0)
    most_M = logits_MW.amax(1).clamp_(min=torch.finfo(logits_MW.dtype).min)
    return picked_M, most_M, logits_MW.sub_(most_M[:, None]).exp_().sum(1)


def slope(
    logits_MW: Tensor, target_M: Tensor, softmax_M2: Tensor, grad_M: Tensor, words: slice, scorer: Linear
) -> Tensor:
    """Gradient of sum(grad log p) by the products that became these logits; the block is spent."""
    squash = None if scorer.softcap is None else 1 - (logits_MW / scorer.softcap) ** 2
    among_M, place_M1 = inside(target_M, words)
    most_M, total_M = softmax_M2.unbind(1)
    d_logits = logits_MW.sub_(most_M[:, None]).exp_().mul_((-grad_M / total_M)[:, None])
    d_logits.scatter_add_(1, place_M1, torch.where(among_M, grad_M, 0.0).to(d_logits.dtype)[:, None])
    if squash is not None:
        d_logits.mul_(squash)
    return d_logits if scorer.scale == 1.0 else d_logits.mul_(scorer.scale)


class LinearLogps(torch.autograd.Function):
    """log softmax(h W^T + b)[target] by blocks of rows and words; the backward makes each block's logits again.

    Largest logit and sum are kept apart: near certainty log p is small beside either, and their log-sum would round it.
    """

    @staticmethod
    def forward(
        ctx: Any,
        hidden_NH: Tensor,
        weight_VH: Tensor,
        bias_V: Tensor | None,
        target_N: Tensor,
        scorer: Scorer,
        chunk: int,
    ) -> Tensor:
        head = Linear(weight_VH, bias_V, scorer.scale, scorer.softcap)
        rows, vocabulary = head.blocks(len(hidden_NH), chunk)
        wide = torch.promote_types(hidden_NH.dtype, torch.float32)
        picked_N = hidden_NH.new_zeros(len(hidden_NH), dtype=wide)
        most_PN, sum_PN = hidden_NH.new_empty(2, len(vocabulary), len(hidden_NH), dtype=wide)
        for words, part_N, part_sum_N in zip(vocabulary, most_PN, sum_PN, strict=True):
            weight_WH = head.weight(words, hidden_NH.dtype)
            for m in rows:
                logits_MW = head.logits(hidden_NH[m], weight_WH, words)
                picked_M, part_N[m], part_sum_N[m] = look(logits_MW, target_N[m], words)
                picked_N[m] += picked_M
                del logits_MW  # before the next block is made
        most_N = most_PN.amax(0)
        total_N: Tensor = (most_PN.sub_(most_N).exp_() * sum_PN).sum(0)
        ctx.save_for_backward(hidden_NH, weight_VH, bias_V, target_N, torch.stack([most_N, total_N], 1))
        ctx.scorer, ctx.chunk = scorer, chunk
        found: Tensor = (picked_N - most_N) - total_N.log()
        return found

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        hidden_NH, weight_VH, bias_V, target_N, softmax_N2 = ctx.saved_tensors
        head = Linear(weight_VH, bias_V, ctx.scorer.scale, ctx.scorer.softcap)
        rows, vocabulary = head.blocks(len(hidden_NH), ctx.chunk)
        # Blocks add up in float32 at least; autograd casts the sums to the types of hidden states and weights.
        wides = [None if x is None else torch.promote_types(x.dtype, torch.float32) for x in ctx.saved_tensors[:3]]
        needs = ctx.needs_input_grad
        d_hidden = torch.zeros_like(hidden_NH, dtype=wides[0]) if needs[0] else None
        d_weight = torch.empty_like(weight_VH, dtype=wides[1]) if needs[1] else None
        d_bias = torch.empty_like(bias_V, dtype=wides[2]) if needs[2] else None
        for words in vocabulary:
            weight_WH = head.weight(words, hidden_NH.dtype)
            for m in rows:
                hidden_MH = hidden_NH[m]
                logits_MW = head.logits(hidden_MH, weight_WH, words)
                d_logits = slope(logits_MW, target_N[m], softmax_N2[m], grads[0][m], words, head).to(hidden_MH.dtype)
                del logits_MW
                if d_hidden is not None:
                    d_hidden[m] += d_logits @ weight_WH
                if d_weight is not None:
                    add(d_weight[words], d_logits.t() @ hidden_MH, first=m.start == 0)
                if d_bias is not None:
                    add(d_bias[words], d_logits.sum(0), first=m.start == 0)
                del d_logits  # before the next block is made
        return None if d_hidden is None else d_hidden.to(hidden_NH.dtype), d_weight, d_bias, None, None, None


def add(total: Tensor, part: Tensor, *, first: bool) -> None:
    """Add to a sum that holds nothing yet when it gets the first part."""
    if first:
        total.copy_(part)
    else:
        total.add_(part)


def module_logps(hidden_NH: Tensor, target_N: Tensor, scorer: Scorer, rows: int) -> Tensor:
    """The same through the head module itself (adapters, quantised heads), some rows at a time, each time anew in the
    backward.
    """

    def one(hidden: Tensor, target: Tensor) -> Tensor:
        logits = shaped(scorer.head(hidden), scorer.scale, scorer.softcap)
        return torch.log_softmax(logits, -1).gather(1, target[:, None])[:, 0]

    parts = spans(len(hidden_NH), rows)
    return torch.cat([checkpoint(one, hidden_NH[m], target_N[m], use_reentrant=False) for m in parts])


def alive(head: nn.Module, device: torch.device) -> int:
    """Logits that are alive at once by default."""
    if device.type != "cpu":
        return CHUNK_OF_GPUS
    return CHUNK if type(head) is nn.Linear else CHUNK_OF_MODULES


def token_logps(scorer: Scorer, batch: Batch, *, chunk: int | None = None) -> Tensor:
    """Log-probability of every scored response token, shape (N,), float32 (float64 for a float64 model), in nats."""
    return head_logps(predicting(scorer, batch), batch, scorer, chunk=chunk)


def predicting(scorer: Scorer, batch: Batch) -> Tensor:
    """The last layer's hidden states that predict the scored tokens of the responses, (N, H)."""
    # No mask: padding stands on the right, where a causal model's real tokens never look, and without one the
    # attention kernel skips the half above the diagonal.
    hidden_STH = scorer.backbone(
        input_ids=batch.input_ids_ST,
        position_ids=batch.position_ids_ST,
        use_cache=False,
        **({} if batch.layout is None else {"layout": batch.layout}),
    ).last_hidden_state
    hidden_NH: Tensor = hidden_STH.flatten(0, 1).index_select(0, batch.gather_N)
    return hidden_NH


def head_logps(hidden_NH: Tensor, batch: Batch, scorer: Scorer, *, chunk: int | None = None) -> Tensor:
    """Log-probability of every scored token of a batch, (N,), from the hidden states that predict them."""
    kind = hidden_NH.device.type
    if torch.is_autocast_enabled(kind):
        hidden_NH = hidden_NH.to(torch.get_autocast_dtype(kind))
    chunk = chunk or alive(scorer.head, hidden_NH.device)
    if type(scorer.head) is not nn.Linear:
        words: Any = getattr(scorer.head, "out_features", MANY_WORDS)
        return module_logps(hidden_NH, batch.target_N, scorer, max(1, chunk // int(words)))
    with torch.autocast(kind, enabled=False):
        score: Callable[..., Tensor] = LinearLogps.apply
        return score(hidden_NH, scorer.head.weight, scorer.head.bias, batch.target_N, scorer, chunk)


def pair_logps(scorer: Scorer, batch: Batch, *, chunk: int | None = None) -> Tensor:
    """Sums of scored token log-probabilities, shape (2, B), float64: row 0 chosen, row 1 rejected."""
    logp_N = token_logps(scorer, batch, chunk=chunk)
    sums_R = logp_N.new_zeros(len(batch.length_R), dtype=torch.float64).index_add(0, batch.owner_N, logp_N.double())
    return sums_R[batch.response_CB]
