"""Model and `Batch` to `(2, B)` log-probabilities, by a head that sees response positions only, a chunk at a time.

Letters: C pair axis, B pairs, S sequences, T tokens in a row, N scored response tokens, V vocabulary, H hidden.
No tensor of more than `chunk` x V logits is alive at any time, in either direction.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from druthers.batching import Batch

CHUNK = 512
LOOKING = 128
"""Rows of logits at a time where no backward follows, which adds up one gradient of the head a chunk."""


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


def chunks(*tensors_N: Tensor, size: int) -> Iterator[tuple[Tensor, ...]]:
    """The tensors cut alike along N into pieces of at most `size`; one empty piece when N is 0."""
    for start in range(0, max(1, len(tensors_N[0])), size):
        yield tuple(tensor[start : start + size] for tensor in tensors_N)


class LinearLogps(torch.autograd.Function):
    """log softmax(h W^T + b)[target] by chunks; the backward recomputes each chunk's logits instead of keeping them."""

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
        weight = weight_VH.to(hidden_NH.dtype)
        bias = None if bias_V is None else bias_V.to(hidden_NH.dtype)
        logps, lses = [], []
        for hidden, target in chunks(hidden_NH, target_N, size=chunk):
            logits = shaped(F.linear(hidden, weight, bias), scorer.scale, scorer.softcap)
            lse = torch.logsumexp(logits, -1)
            logps.append(logits.gather(1, target[:, None])[:, 0] - lse)
            lses.append(lse)
        ctx.save_for_backward(hidden_NH, weight_VH, bias_V, target_N, torch.cat(lses))
        ctx.scorer, ctx.chunk = scorer, chunk
        return torch.cat(logps)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        hidden_NH, weight_VH, bias_V, target_N, lse_N = ctx.saved_tensors
        scale, softcap = ctx.scorer.scale, ctx.scorer.softcap
        needs_hidden, needs_weight, needs_bias = ctx.needs_input_grad[:3]
        weight = weight_VH.to(hidden_NH.dtype)
        bias = None if bias_V is None else bias_V.to(hidden_NH.dtype)
        d_hidden: list[Tensor] = []
        # Chunks add up in float32 at least; autograd casts the sum to the type of the weight.
        wide = torch.promote_types(weight_VH.dtype, torch.float32)
        d_weight = torch.zeros_like(weight_VH, dtype=wide) if needs_weight else None
        d_bias = torch.zeros_like(bias_V) if needs_bias else None
        for hidden, target, lse, grad in chunks(hidden_NH, target_N, lse_N, grads[0], size=ctx.chunk):
            logits = shaped(F.linear(hidden, weight, bias), scale, softcap)
            slope = None if softcap is None else 1 - (logits / softcap) ** 2
            d_logits = logits.sub_(lse[:, None]).exp_().mul_(-grad[:, None])
            d_logits.scatter_add_(1, target[:, None], grad[:, None].to(d_logits.dtype))
            if slope is not None:
                d_logits.mul_(slope)
            if scale != 1.0:
                d_logits.mul_(scale)
            d_logits = d_logits.to(hidden.dtype)
            if needs_hidden:
                d_hidden.append(d_logits @ weight)
            if d_weight is not None:
                d_weight += d_logits.t() @ hidden
            if d_bias is not None:
                d_bias += d_logits.sum(0)
        return torch.cat(d_hidden) if needs_hidden else None, d_weight, d_bias, None, None, None


def module_logps(hidden_NH: Tensor, target_N: Tensor, scorer: Scorer, chunk: int) -> Tensor:
    """The same through the head module itself (adapters, quantised heads), each chunk recomputed in the backward."""

    def one(hidden: Tensor, target: Tensor) -> Tensor:
        logits = shaped(scorer.head(hidden), scorer.scale, scorer.softcap)
        return torch.log_softmax(logits, -1).gather(1, target[:, None])[:, 0]

    parts = chunks(hidden_NH, target_N, size=chunk)
    return torch.cat([checkpoint(one, hidden, target, use_reentrant=False) for hidden, target in parts])


def rows_at_once() -> int:
    """The chunk of the gradient mode that this thread is in."""
    return CHUNK if torch.is_grad_enabled() else LOOKING


def token_logps(scorer: Scorer, batch: Batch, *, chunk: int | None = None) -> Tensor:
    """Log-probability of every scored response token, shape (N,), float32 (float64 for a float64 model), in nats."""
    chunk = chunk or rows_at_once()
    # No mask: padding stands on the right, where a causal model's real tokens never look, and without one the
    # attention kernel skips the half above the diagonal.
    hidden_STH = scorer.backbone(
        input_ids=batch.input_ids_ST,
        position_ids=batch.position_ids_ST,
        use_cache=False,
        **({} if batch.layout is None else {"layout": batch.layout}),
    ).last_hidden_state
    hidden_NH = hidden_STH.flatten(0, 1).index_select(0, batch.gather_N)
    kind = hidden_NH.device.type
    if torch.is_autocast_enabled(kind):
        hidden_NH = hidden_NH.to(torch.get_autocast_dtype(kind))
    if type(scorer.head) is not nn.Linear:
        return module_logps(hidden_NH, batch.target_N, scorer, chunk)
    with torch.autocast(kind, enabled=False):
        score: Callable[..., Tensor] = LinearLogps.apply
        return score(hidden_NH, scorer.head.weight, scorer.head.bias, batch.target_N, scorer, chunk)


def pair_logps(scorer: Scorer, batch: Batch, *, chunk: int | None = None) -> Tensor:
    """Sums of scored token log-probabilities, shape (2, B), float64: row 0 chosen, row 1 rejected."""
    logp_N = token_logps(scorer, batch, chunk=chunk)
    sums_R = logp_N.new_zeros(len(batch.length_R), dtype=torch.float64).index_add(0, batch.owner_N, logp_N.double())
    return sums_R[batch.response_CB]
