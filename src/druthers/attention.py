"""Who may look at whom in a packed row, and the attention over it, behind transformers' registry of attentions.

Letters: T tokens of the row, K key heads, G query heads of each key head, Q queries of a block, S keys of a block,
D width of a head. A row holds trees end to end: a prefix once, and behind it every branch that continues it. A branch
sees the prefix and itself, never another branch, so its log-probabilities are those of a row of its own.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

NAME = "druthers"
"""Name of `attend` in transformers' registry, which has no mask function of that name, so that no mask is built."""
BLOCK = 128
"""Queries that are worked on at once; no more rows of scores than these are alive."""


@dataclass(frozen=True, slots=True)
class Tree:
    """Lengths in tokens of a prefix and of the branches behind it; no branch makes it a plain row."""

    prefix: int
    branches: tuple[int, ...] = ()

    @property
    def size(self) -> int:
        """Tokens of the tree in the row."""
        return self.prefix + sum(self.branches)


Layout = tuple[Tree, ...]


@dataclass(frozen=True, slots=True)
class Block:
    """Queries start:stop of the row and the ranges of it that they may see, the last one up to `stop`.

    Put together the ranges are one sequence that ends with the queries. Query i of them sees the keys up to itself,
    with a `window` only the last so many of them.
    """

    start: int
    stop: int
    seen: tuple[tuple[int, int], ...]


@functools.lru_cache(maxsize=64)
def blocks(layout: Layout, *, window: int | None = None, size: int = BLOCK) -> tuple[Block, ...]:
    """The row in blocks of at most `size` queries, each with no more keys than its queries may see.

    >>> blocks((Tree(3, (2, 1)),), size=8)
    (Block(start=0, stop=5, seen=((0, 5),)), Block(start=5, stop=6, seen=((0, 3), (5, 6))))
    >>> blocks((Tree(4),), window=2, size=2)
    (Block(start=0, stop=2, seen=((0, 2),)), Block(start=2, stop=4, seen=((1, 4),)))
    """
    return tuple(
        Block(start, stop, tuple(latest(prefix, (own, stop), count=stop - start + (window or stop) - 1)))
        for prefix, (own, end) in sequences(layout)
        for start in range(own, end, size)
        for stop in [min(start + size, end)]
    )


Span = tuple[int, int]


def sequences(layout: Layout) -> Iterator[tuple[Span, Span]]:
    """What every query belongs to: a prefix seen before it (which may be empty) and a range of the row of its own."""
    at = 0
    for tree in layout:
        first, *others = tree.branches or (0,)
        stop = at + tree.prefix + first
        yield (at, at), (at, stop)
        for length in others:
            yield (at, at + tree.prefix), (stop, stop + length)
            stop += length
        at = stop


def latest(prefix: Span, own: Span, *, count: int) -> Iterator[Span]:
    """The last `count` tokens of the two ranges, as ranges."""
    before = min(prefix[1] - prefix[0], max(0, count - (own[1] - own[0])))
    if before:
        yield prefix[1] - before, prefix[1]
    yield max(own[0], own[1] - count), own[1]


@functools.lru_cache(maxsize=256)
def mask(queries: int, keys: int, window: int | None, device: torch.device) -> Tensor | None:
    """What is added to scores (Q, S): 0 where query i may see, minus infinity elsewhere; None where all is seen."""
    distance_QS = (
        torch.arange(keys - queries, keys, device=device)[:, None] - torch.arange(keys, device=device)[None, :]
    )
    hidden_QS = distance_QS < 0 if window is None else (distance_QS < 0) | (distance_QS >= window)
    if not hidden_QS.any():
        return None
    return torch.zeros(queries, keys, device=device).masked_fill_(hidden_QS, -torch.inf)


@dataclass(frozen=True, slots=True)
class Terms:
    """What a layer asks of its scores: `scale`, tanh soft cap (Gemma 2), and a sliding window in tokens."""

    scale: float
    softcap: float | None = None
    window: int | None = None


def score(query_KQD: Tensor, key_KSD: Tensor, terms: Terms, *, groups: int) -> Tensor:
    """Scores of a block as (K, G, Q, S), at least float32, minus infinity where a query may not look."""
    raw = torch.bmm(query_KQD, key_KSD.transpose(1, 2))
    score_KQS = raw.to(torch.promote_types(raw.dtype, torch.float32)).mul_(terms.scale)
    if terms.softcap is not None:
        score_KQS.div_(terms.softcap).tanh_().mul_(terms.softcap)
    K, rows, S = score_KQS.shape
    score_KGQS = score_KQS.view(K, groups, rows // groups, S)
    if (hidden := mask(rows // groups, S, terms.window, raw.device)) is not None:
        score_KGQS.add_(hidden)
    return score_KGQS


def gather(row_KTD: Tensor, seen: tuple[Span, ...]) -> Tensor:
    """Ranges of the row put together, (K, S, D)."""
    parts = [row_KTD[:, start:stop] for start, stop in seen]
    return parts[0] if len(parts) == 1 else torch.cat(parts, 1)


def weigh(score_KGQS: Tensor, sink_KG: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """Softmax over the keys, and the weight (K, G, Q) that went to the sink where there is one."""
    if sink_KG is None:
        return score_KGQS.softmax(-1), None
    lost_KGQ = torch.sigmoid(sink_KG[..., None].to(score_KGQS.dtype) - score_KGQS.logsumexp(-1))
    return score_KGQS.softmax(-1).mul_(1 - lost_KGQ[..., None]), lost_KGQ


class BlockAttention(torch.autograd.Function):
    """softmax(scale q k^T) v block by block, as plain matrix products; the backward makes the weights again.

    On a CPU torch's fused attention is slow in bfloat16, most of all its backward (docs/log.md has times). Products
    are in the type of the inputs, softmax and sums of gradients in float32. A sink is a score that every query of a
    head has beside those of its keys, without a value (GPT-OSS).
    """

    @staticmethod
    def forward(
        ctx: Any,
        query_KGTD: Tensor,
        key_KTD: Tensor,
        value_KTD: Tensor,
        sink_KG: Tensor | None,
        layout: Layout,
        terms: Terms,
    ) -> Tensor:
        K, G, T, D = query_KGTD.shape
        out_TKGD = query_KGTD.new_empty(T, K, G, value_KTD.shape[-1])
        for block in blocks(layout, window=terms.window):
            here = slice(block.start, block.stop)
            rows_KQD = query_KGTD[:, :, here].reshape(K, -1, D)
            weight_KGQS, _ = weigh(score(rows_KQD, gather(key_KTD, block.seen), terms, groups=G), sink_KG)
            found_KQD = torch.bmm(weight_KGQS.flatten(1, 2).to(key_KTD.dtype), gather(value_KTD, block.seen))
            out_TKGD[here] = found_KQD.view(K, G, -1, found_KQD.shape[-1]).permute(2, 0, 1, 3)
        ctx.save_for_backward(query_KGTD, key_KTD, value_KTD, sink_KG, out_TKGD)
        ctx.layout, ctx.terms = layout, terms
        return out_TKGD

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        query_KGTD, key_KTD, value_KTD, sink_KG, out_TKGD = ctx.saved_tensors
        K, G, _, D = query_KGTD.shape
        kind, terms = query_KGTD.dtype, ctx.terms
        wide = torch.promote_types(kind, torch.float32)
        d_query = torch.empty_like(query_KGTD)
        d_key, d_value = (torch.zeros_like(x, dtype=wide) for x in (key_KTD, value_KTD))
        d_sink = None if sink_KG is None else torch.zeros_like(sink_KG, dtype=wide)
        dot_KGT = torch.linalg.vecdot(grads[0].to(wide), out_TKGD.to(wide)).permute(1, 2, 0)
        for block in blocks(ctx.layout, window=terms.window):
            here = slice(block.start, block.stop)
            rows_KQD = query_KGTD[:, :, here].reshape(K, -1, D)
            key_KSD, value_KSD = gather(key_KTD, block.seen), gather(value_KTD, block.seen)
            d_out_KQD = grads[0][here].permute(1, 2, 0, 3).reshape(K, -1, value_KTD.shape[-1]).to(kind)
            score_KGQS = score(rows_KQD, key_KSD, terms, groups=G)
            weight_KGQS, lost_KGQ = weigh(score_KGQS, sink_KG)
            d_score = torch.bmm(d_out_KQD, value_KSD.transpose(1, 2)).view_as(weight_KGQS).to(wide)
            d_score.sub_(dot_KGT[:, :, here, None]).mul_(weight_KGQS).mul_(terms.scale)
            if terms.softcap is not None:
                d_score.mul_((1 - (score_KGQS / terms.softcap).square_()).nan_to_num_(0.0, neginf=0.0))
            d_score_KQS = d_score.flatten(1, 2).to(kind)
            d_query[:, :, here] = torch.bmm(d_score_KQS, key_KSD).view(K, G, -1, D)
            spread(d_key, torch.bmm(d_score_KQS.transpose(1, 2), rows_KQD), block.seen)
            spread(d_value, torch.bmm(weight_KGQS.flatten(1, 2).to(kind).transpose(1, 2), d_out_KQD), block.seen)
            if d_sink is not None and lost_KGQ is not None:
                d_sink.sub_((lost_KGQ * dot_KGT[:, :, here]).sum(-1))
        return d_query, d_key.to(kind), d_value.to(kind), d_sink, None, None


def spread(row_KTD: Tensor, part_KSD: Tensor, seen: tuple[Span, ...]) -> None:
    """Add what belongs to ranges put together to the ranges of the row."""
    done = 0
    for start, stop in seen:
        row_KTD[:, start:stop] += part_KSD[:, done : done + stop - start]
        done += stop - start


def blockwise(
    query_THD: Tensor, key_TKD: Tensor, value_TKD: Tensor, sink_H: Tensor | None, layout: Layout, terms: Terms
) -> Tensor:
    """`BlockAttention` over a row, (T, heads, D): any device, any type, soft caps and sinks."""
    T, H, D = query_THD.shape
    K = key_TKD.shape[1]
    attention: Callable[..., Tensor] = BlockAttention.apply
    out_TKGD = attention(
        query_THD.view(T, K, H // K, D).permute(1, 2, 0, 3),
        key_TKD.transpose(0, 1),
        value_TKD.transpose(0, 1),
        None if sink_H is None else sink_H.view(K, H // K),
        layout,
        terms,
    )
    return out_TKGD.flatten(1, 2)


Compute = Callable[[Tensor, Tensor, Tensor, Tensor | None, Layout, Terms], Tensor]
"""Attention over one row: query (T, heads, D), key and value (T, key heads, D), sinks (heads,) to (T, heads, D)."""


def attend(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    scaling: float | None = None,
    layout: Layout | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    s_aux: Tensor | None = None,
    compute: Compute = blockwise,
    **_: Any,
) -> tuple[Tensor, None]:
    """transformers' attention function: query (B, heads, T, D), key and value (B, key heads, T, D) to (B, T, heads, D).

    `layout` comes as a keyword of the model's forward; without one every row of the batch is a sequence. `compute` is
    the kernel. Raises ValueError where a mask or earlier keys say more than the layout does: generation takes another
    attention.
    """
    if attention_mask is not None or query.shape[2] != key.shape[2]:
        raise ValueError("this attention takes whole rows and a layout, no mask and no cache")
    if torch.is_autocast_enabled(query.device.type):
        kind = torch.get_autocast_dtype(query.device.type)
        query, key, value = query.to(kind), key.to(kind), value.to(kind)
    B, H, T, D = query.shape
    terms = Terms(D**-0.5 if scaling is None else scaling, softcap, sliding_window)
    q_THD, k_TKD, v_TKD = (x.transpose(1, 2).reshape(B * T, x.shape[1], x.shape[3]) for x in (query, key, value))
    with torch.autocast(query.device.type, enabled=False):
        out_THD = compute(q_THD, k_TKD, v_TKD, s_aux, (Tree(T),) * B if layout is None else layout, terms)
    return out_THD.reshape(B, T, H, -1), None


def sent(values: object, device: torch.device | str, *, dtype: type[np.generic] = np.int64) -> Tensor:
    """Numbers as a tensor on a device; to a GPU they go without waiting for what it has still to do."""
    found = torch.from_numpy(np.asarray(values, dtype=dtype))
    if torch.device(device).type == "cuda":
        return found.pin_memory().to(device, non_blocking=True)
    return found.to(device)
