"""What losses ask of a model beside the log-probability of a response: the first tokens alone, and whole distributions.

Letters: C pair axis, B pairs, N scored response tokens, V vocabulary, H hidden, M rows of a block; R responses. A block
of rows has at most `chunk` logits, in either direction.
"""

from __future__ import annotations

from collections.abc import Collection

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from druthers.batching import Batch
from druthers.logprobs import Scorer, alive, head_logps, predicting, shaped, spans

TOKENWISE = ("head", "unlikely", "divergence", "certainty")


def channels(needs: Collection[str]) -> tuple[str, ...]:
    """What is read of every response for a loss that needs this beside the sum, in order.

    >>> channels({"certainty", "head", "draw"})
    ('sum', 'head', 'certainty')
    """
    return ("sum", *(name for name in TOKENWISE if name in needs))


Other = tuple[Tensor, Scorer]
"""Hidden states of the reference where each scored token is predicted, (N, H), and its head."""


def read(
    scorer: Scorer, batch: Batch, *, needs: Collection[str], other: Other | None = None, chunk: int | None = None
) -> Tensor:
    """What a model says of every response, (K, 2, B), float64, by `channels`: row 0 of the pair axis is chosen.

    'head': the sum over the first tokens; 'unlikely': the sum of -log(1 - p); 'divergence': the sum of KL(reference ||
    policy), for which `other` is wanted; 'certainty': the mean of log p - log sum p^2, without gradient.
    """
    hidden_NH = predicting(scorer, batch)
    logp_N = head_logps(hidden_NH, batch, scorer, chunk=chunk)
    found = [per_response(logp_N, batch)]
    if "head" in needs:
        found.append(of_the_first(logp_N, batch))
    if "unlikely" in needs:
        found.append(per_response(-one_less(logp_N), batch))
    if "divergence" in needs:
        if other is None:
            raise ValueError("a divergence from the reference needs its hidden states; give other")
        found.append(per_response(divergences(hidden_NH, scorer, *other, chunk=chunk), batch))
    if "certainty" in needs:
        sums_CB = per_response(certainties(hidden_NH, logp_N, scorer, chunk=chunk), batch)
        found.append(sums_CB / batch.length_CB.clamp(min=1))
    return torch.stack(found)


SURE = 1e-6
"""A token is taken for at most 1 - this: what is certain would be infinitely unlikely to be avoided."""


def one_less(logp_N: Tensor) -> Tensor:
    """log(1 - p) of log p.

    >>> import math, torch
    >>> round(one_less(torch.tensor([math.log(0.75)], dtype=torch.float64)).exp().item(), 6)
    0.25
    """
    return torch.log(-torch.expm1(logp_N.double().clamp(max=-SURE)))


def per_response(value_N: Tensor, batch: Batch) -> Tensor:
    """Sums over the scored tokens of every response, (2, B), float64.

    >>> import torch
    >>> from druthers.batching import collate
    >>> from druthers.tokens import TokenizedPair
    >>> pair = TokenizedPair("", (1,), (2, 3, 4), (5, 6), (True,) * 3, (True,) * 2)
    >>> per_response(torch.tensor([1.0, 2.0, 3.0, 10.0, 20.0]), collate([pair], pad_id=0)).tolist()
    [[6.0], [30.0]]
    """
    sums_R = value_N.new_zeros(len(batch.length_R), dtype=torch.float64).index_add(0, batch.owner_N, value_N.double())
    return sums_R[batch.response_CB]


def of_the_first(value_N: Tensor, batch: Batch) -> Tensor:
    """The same over the first min(n_chosen, n_rejected) scored tokens of both responses of a pair, (2, B).

    >>> import torch
    >>> from druthers.batching import collate
    >>> from druthers.tokens import TokenizedPair
    >>> pair = TokenizedPair("", (1,), (2, 3, 4), (5, 6), (True,) * 3, (True,) * 2)
    >>> of_the_first(torch.tensor([1.0, 2.0, 3.0, 10.0, 20.0]), collate([pair], pad_id=0)).tolist()
    [[3.0], [30.0]]
    """
    sums_N1 = torch.cat([value_N.new_zeros(1, dtype=torch.float64), value_N.double().cumsum(0)])
    start_R = batch.length_R.cumsum(0) - batch.length_R
    start_CB = start_R[batch.response_CB]
    return sums_N1[start_CB + batch.length_CB.amin(0)] - sums_N1[start_CB]


def certainties(hidden_NH: Tensor, logp_N: Tensor, scorer: Scorer, *, chunk: int | None = None) -> Tensor:
    """log p(y_t) - log sum_j p(j)^2 of every scored token, (N,), without gradient (WPO, arXiv 2406.11827, eq. 2)."""
    with torch.no_grad():
        parts = [
            torch.logsumexp(2 * logits_MV, -1) - 2 * torch.logsumexp(logits_MV, -1)
            for logits_MV in (logits_of(scorer, hidden_NH[m]) for m in rows_of(scorer, hidden_NH, chunk))
        ]
        return logp_N.detach() - torch.cat(parts)


def divergences(
    hidden_NH: Tensor, scorer: Scorer, reference_NH: Tensor, reference: Scorer, *, chunk: int | None = None
) -> Tensor:
    """KL(reference || policy) over the whole vocabulary where each scored token is predicted, (N,), in nats.

    Differentiable in the policy's hidden states and head; logits are made again in the backward.
    """

    def one(own_MH: Tensor, other_MH: Tensor) -> Tensor:
        own_MV = logits_of(scorer, own_MH).log_softmax(-1)
        with torch.no_grad():
            other_MV = logits_of(reference, other_MH).log_softmax(-1)
        return (other_MV.exp() * (other_MV - own_MV)).sum(-1)

    parts = rows_of(scorer, hidden_NH, chunk)
    return torch.cat([checkpoint(one, hidden_NH[m], reference_NH[m], use_reentrant=False) for m in parts])


def logits_of(scorer: Scorer, hidden_MH: Tensor) -> Tensor:
    """Logits of some rows, (M, V), at least float32."""
    return shaped(scorer.head(hidden_MH), scorer.scale, scorer.softcap)


def rows_of(scorer: Scorer, hidden_NH: Tensor, chunk: int | None) -> list[slice]:
    """Blocks of rows with at most `chunk` logits, one row at least."""
    words = int(getattr(scorer.head, "out_features", 2**18))
    return spans(len(hidden_NH), max(1, (chunk or alive(scorer.head, hidden_NH.device)) // words))
