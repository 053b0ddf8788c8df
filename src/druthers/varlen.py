"""Attention over trees as one variable-length call a layer: packed queries, and for every sequence its keys gathered.

Letters: T tokens of the row, S keys of all sequences end to end, H query heads, K key heads, D width of a head. A
branch is a sequence of its own: its queries stand in the row already, its keys are the prefix before it and itself.
Only keys and values of a prefix are copied, once for every branch after the first. Kernels align the causal mask with
the last query and the last key of a sequence, so query i of a branch sees the whole prefix and the branch up to i.
"""

from __future__ import annotations

import functools
import inspect
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from druthers.attention import Compute, Layout, Terms, sent, sequences

Indices = np.ndarray[Any, np.dtype[np.int64]]


@dataclass(frozen=True, slots=True, eq=False)
class Packed:
    """Where the sequences of a row begin, and which token of the row each of their keys is; int32, on one device.

    `query_starts` and `key_starts` hold one entry more than there are sequences, `longest_query` and `longest_key`
    their largest lengths. `key_S` is None where the keys are the row as it stands. `own_T` says where among the keys a
    token of the row stands as part of its own sequence; `copies` are further places of some tokens, as (tokens,
    places), no token twice in one of them.
    """

    query_starts: Tensor
    key_starts: Tensor
    longest_query: int
    longest_key: int
    key_S: Tensor | None
    own_T: Tensor
    copies: tuple[tuple[Tensor, Tensor], ...]


@functools.lru_cache(maxsize=8)
def packed(layout: Layout, device: torch.device) -> Packed:
    """The sequences of a row, made once for all layers and sent to the device in one piece.

    >>> from druthers.attention import Tree
    >>> found = packed((Tree(2, (1, 2)),), torch.device("cpu"))
    >>> found.query_starts.tolist(), found.key_starts.tolist(), found.key_S.tolist()
    ([0, 3, 5], [0, 3, 7], [0, 1, 2, 0, 1, 3, 4])
    """
    spans = [(prefix, own) for prefix, own in sequences(layout) if own[1] > own[0]]
    queries = np.array([own[1] - own[0] for _, own in spans])
    before = np.array([prefix[1] - prefix[0] for prefix, _ in spans])
    starts = np.concatenate([[0], np.cumsum(queries + before)])
    keys = [np.arange(*span) for pair in spans for span in pair]
    own = [start + size + np.arange(count) for start, size, count in zip(starts, before, queries, strict=False)]
    rounds: list[list[tuple[Indices, Indices]]] = []
    seen: Counter[int] = Counter()
    for (prefix, _), start in zip(spans, starts, strict=False):
        if prefix[1] > prefix[0]:
            if seen[prefix[0]] == len(rounds):
                rounds.append([])
            rounds[seen[prefix[0]]].append((np.arange(*prefix), start + np.arange(prefix[1] - prefix[0])))
            seen[prefix[0]] += 1
    copies = [np.concatenate(part) for one in rounds for part in zip(*one, strict=True)]
    pieces = [np.concatenate([[0], np.cumsum(queries)]), starts, np.concatenate(own), np.concatenate(keys), *copies]
    whole = sent(np.concatenate(pieces), device, dtype=np.int32)
    query_starts, key_starts, own_T, key_S, *rest = torch.split(whole, [len(piece) for piece in pieces])
    return Packed(
        query_starts,
        key_starts,
        int(queries.max()),
        int((queries + before).max()),
        key_S if rounds else None,
        own_T,
        tuple(zip(rest[::2], rest[1::2], strict=True)),
    )


class Copied(torch.autograd.Function):
    """Keys or values (T, K, D) of a row, gathered for every sequence, (S, K, D).

    The backward adds what the copies of a token got in one fixed order and in float32, so it is the same every time,
    which `index_select`'s own is not on CUDA.
    """

    @staticmethod
    def forward(ctx: Any, row_TKD: Tensor, found: Packed) -> Tensor:
        ctx.found = found
        assert found.key_S is not None
        return row_TKD.index_select(0, found.key_S)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        found: Packed = ctx.found
        wide = torch.promote_types(grads[0].dtype, torch.float32)
        d_row = grads[0].index_select(0, found.own_T).to(wide)
        for tokens, places in found.copies:
            d_row.index_add_(0, tokens, grads[0].index_select(0, places).to(wide))
        return d_row.to(grads[0].dtype), None


Call = Callable[[Tensor, Tensor, Tensor, Packed, Terms], Tensor]
"""A kernel behind its adapter: query (T, H, D), gathered key and value (S, K, D) to (T, H, D)."""


def over_trees(call: Call) -> Compute:
    """A variable-length kernel as an attention over rows of trees; it knows no sinks."""

    def compute(
        query_THD: Tensor, key_TKD: Tensor, value_TKD: Tensor, sink_H: Tensor | None, layout: Layout, terms: Terms
    ) -> Tensor:
        found = packed(layout, query_THD.device)
        if found.key_S is not None:
            copied: Callable[..., Tensor] = Copied.apply
            key_TKD, value_TKD = copied(key_TKD, found), copied(value_TKD, found)
        return call(query_THD, key_TKD, value_TKD, found, terms)

    return compute


def reach(terms: Terms) -> tuple[int, int]:
    """Tokens to the left and to the right of itself that a query sees, -1 for all: what the kernels call window_size.

    >>> reach(Terms(1.0)), reach(Terms(1.0, window=8))
    ((-1, 0), (7, 0))
    """
    return (-1, 0) if terms.window is None else (terms.window - 1, 0)


def by_torch(function: Callable[..., Any]) -> Call:
    """`torch.nn.attention.varlen.varlen_attn` as it is in the installed torch.

    Keys and values are repeated for their groups of queries where it has no `enable_gqa` (2.11).
    """
    grouped = "enable_gqa" in inspect.signature(function).parameters

    def call(query_THD: Tensor, key_SKD: Tensor, value_SKD: Tensor, found: Packed, terms: Terms) -> Tensor:
        groups = query_THD.shape[1] // key_SKD.shape[1]
        if groups > 1 and not grouped:
            key_SKD, value_SKD = key_SKD.repeat_interleave(groups, 1), value_SKD.repeat_interleave(groups, 1)
        said: dict[str, Any] = {"window_size": reach(terms), "scale": terms.scale}
        said |= {"enable_gqa": groups > 1} if grouped else {}
        sizes = (found.query_starts, found.key_starts, found.longest_query, found.longest_key)
        out: Tensor = function(query_THD, key_SKD, value_SKD, *sizes, **said)
        return out

    return call


def by_flash_attn(function: Callable[..., Any]) -> Call:
    """`flash_attn_varlen_func` of flash-attn 2 or 3; with torch's deterministic mode on, so is its backward."""
    takes = inspect.signature(function).parameters

    def call(query_THD: Tensor, key_SKD: Tensor, value_SKD: Tensor, found: Packed, terms: Terms) -> Tensor:
        if terms.softcap is not None and "softcap" not in takes:
            raise ValueError("flash-attn has no soft cap before 2.6")
        said: dict[str, Any] = {} if terms.softcap is None else {"softcap": terms.softcap}
        if "deterministic" in takes:
            said["deterministic"] = torch.are_deterministic_algorithms_enabled()
        out = function(
            query_THD,
            key_SKD,
            value_SKD,
            cu_seqlens_q=found.query_starts,
            cu_seqlens_k=found.key_starts,
            max_seqlen_q=found.longest_query,
            max_seqlen_k=found.longest_key,
            softmax_scale=terms.scale,
            causal=True,
            window_size=reach(terms),
            **said,
        )
        attended: Tensor = out[0] if isinstance(out, tuple) else out
        return attended

    return call
