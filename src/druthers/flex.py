"""Attention over trees by torch's FlexAttention, for soft caps and sinks on CUDA: one mask for all layers of a batch.

Letters: T tokens of the row, R the same rounded up to whole tiles, N tiles, H query heads, K key heads, D width of a
head. Every prefix and every branch is a part with a number. A token sees the tokens before it of its own part and of
the prefix of its tree, which for the prefix is itself.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention.flex_attention import AuxRequest, BlockMask, flex_attention

from druthers.attention import Layout, Terms, sent

TILE = 128
"""Queries and keys of a tile, for which the kernel looks up whether any, all or none of them may see each other."""
Indices = np.ndarray[Any, np.dtype[np.int64]]
Flags = np.ndarray[Any, np.dtype[np.bool_]]


@dataclass(frozen=True, slots=True, eq=False)
class Places:
    """Of every token of a row, rounded up to whole tiles: its part, the prefix of its tree, its position; all (R,)."""

    part: Indices
    root: Indices
    position: Indices


def places(layout: Layout) -> Places:
    """The padding is a part of its own behind the row.

    >>> from druthers.attention import Tree
    >>> found = places((Tree(2, (1, 2)),))
    >>> found.part[:6].tolist(), found.root[:6].tolist(), found.position[:5].tolist()
    ([0, 0, 1, 2, 2, 3], [0, 0, 0, 0, 0, 3], [0, 1, 2, 2, 3])
    """
    lengths: list[int] = []
    roots: list[int] = []
    begins: list[int] = []
    for tree in layout:
        roots += [len(lengths)] * (1 + len(tree.branches))
        begins += [0, *[tree.prefix] * len(tree.branches)]
        lengths += [tree.prefix, *tree.branches]
    lengths.append(-sum(lengths) % TILE)
    roots.append(len(roots))
    begins.append(0)
    position = np.concatenate([start + np.arange(count) for start, count in zip(begins, lengths, strict=True)])
    return Places(np.repeat(np.arange(len(lengths)), lengths), np.repeat(roots, lengths), position)


Rule = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]


def rule(part_R: Tensor, root_R: Tensor, position_R: Tensor, window: int | None) -> Rule:
    """Who may look at whom, as FlexAttention asks for it."""

    def visible(batch: Tensor, head: Tensor, q: Tensor, k: Tensor) -> Tensor:
        return (k <= q) & ((part_R[k] == part_R[q]) | (part_R[k] == root_R[q]))

    if window is None:
        return visible
    limit: int = window

    def near(batch: Tensor, head: Tensor, q: Tensor, k: Tensor) -> Tensor:
        return visible(batch, head, q, k) & (position_R[q] - position_R[k] < limit)

    return near


def tiles(found: Places, window: int | None) -> tuple[Flags, Flags]:
    """Tiles (N, N) of which some queries see some keys, and those of which all see all. The first may be too many."""
    part, root, position = (x.reshape(-1, TILE) for x in (found.part, found.root, found.position))
    low, high = part.min(1), part.max(1)
    order = np.arange(len(part))
    within = (low[:, None] <= high) & (high[:, None] >= low)  # parts are numbered along the row
    above = (root.min(1)[:, None] <= high) & (root.max(1)[:, None] >= low)
    some = (within | above) & (order[:, None] >= order)
    one, below = low == high, root.min(1) == root.max(1)
    every = one & ((one[:, None] & (low[:, None] == low)) | (below[:, None] & (root[:, :1] == low)))
    every &= order[:, None] > order
    if window is not None:
        # A query sees positions behind it, so the nearest of a tile's are the last query's first and the first's last.
        some &= position.min(1)[:, None] - position.max(1) < window
        every &= position.max(1)[:, None] - position.min(1) < window
    return some & ~every, every


def listed(flags_NN: Flags) -> list[Indices]:
    """How many tiles each row of them has and which, those first."""
    return [flags_NN.sum(1), np.argsort(~flags_NN, axis=1, kind="stable")]


@functools.lru_cache(maxsize=8)
def block_mask(layout: Layout, window: int | None, device: torch.device) -> BlockMask:
    """The rule for a row and its tiles, sent to the device in one piece."""
    found = places(layout)
    some, every = tiles(found, window)
    pieces = [found.part, found.root, found.position, *(x.ravel() for x in [*listed(some), *listed(every)])]
    whole = sent(np.concatenate(pieces), device, dtype=np.int32)
    on_device = torch.split(whole, [len(piece) for piece in pieces])
    part, root, position, some_N, some_NN, every_N, every_NN = on_device
    N, R = len(some), len(found.part)
    return BlockMask.from_kv_blocks(
        some_N.view(1, 1, N),
        some_NN.view(1, 1, N, N),
        every_N.view(1, 1, N),
        every_NN.view(1, 1, N, N),
        BLOCK_SIZE=TILE,
        mask_mod=rule(part, root, position, window),
        seq_lengths=(R, R),
    )


@functools.lru_cache(maxsize=1)
def compiled() -> Callable[..., Any]:
    """The kernel, which CUDA needs compiled: uncompiled it makes all scores at once."""
    made: Callable[..., Any] = torch.compile(flex_attention, dynamic=True)
    return made


def capped(cap: float) -> Callable[..., Tensor]:
    """The soft cap of scores."""

    def squash(score: Tensor, batch: Tensor, head: Tensor, q: Tensor, k: Tensor) -> Tensor:
        return cap * torch.tanh(score / cap)

    return squash


def over_trees(
    query_THD: Tensor, key_TKD: Tensor, value_TKD: Tensor, sink_H: Tensor | None, layout: Layout, terms: Terms
) -> Tensor:
    """FlexAttention over a row of trees, (T, H, D); a sink takes its weight by the normaliser that the kernel gives."""
    T = len(query_THD)
    rows = (F.pad(x, (0, 0, 0, 0, 0, -T % TILE)) for x in (query_THD, key_TKD, value_TKD))
    query, key, value = (x.transpose(0, 1)[None] for x in rows)
    kernel: Any = compiled() if query.is_cuda else flex_attention
    found = kernel(
        query,
        key,
        value,
        score_mod=None if terms.softcap is None else capped(terms.softcap),
        block_mask=block_mask(layout, terms.window, query.device),
        scale=terms.scale,
        enable_gqa=query.shape[1] != key.shape[1],
        return_aux=None if sink_H is None else AuxRequest(lse=True),
    )
    if sink_H is None:
        out_HTD: Tensor = found[0, :, :T]
    else:
        attended, aux = found
        kept_HR = torch.sigmoid(aux.lse[0] - sink_H[:, None].to(aux.lse.dtype))
        out_HTD = (attended[0] * kept_HR[..., None].to(attended.dtype))[:, :T]
    return out_HTD.transpose(0, 1)
