"""Variable-length attention in plain torch, sequence by sequence, under the signatures of torch and of flash-attn.

As the kernels do, the last query of a sequence is set against its last key, and `window_size` counts the tokens to the
left and right of that diagonal.
"""

from __future__ import annotations

import torch
from torch import Tensor

Window = tuple[int, int]


def computed(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    starts: tuple[Tensor, Tensor],
    *,
    scale: float,
    window: Window,
    cap: float,
) -> Tensor:
    """(T, H, D) from (T, H, D) and (S, K, D); inside at least float32."""
    assert all(start.dtype == torch.int32 and start[0] == 0 for start in starts)
    assert starts[0][-1] == len(query)
    assert starts[1][-1] == len(key)
    kind, groups = query.dtype, query.shape[1] // key.shape[1]
    query, key, value = (x.to(torch.promote_types(kind, torch.float32)) for x in (query, key, value))
    rows = []
    spans = [list(zip(start.tolist()[:-1], start.tolist()[1:], strict=True)) for start in starts]
    for (a, b), (c, d) in zip(*spans, strict=True):
        k, v = (x[c:d].repeat_interleave(groups, 1) for x in (key, value))
        scores = torch.einsum("qhd,khd->hqk", query[a:b], k) * scale
        if cap:
            scores = cap * torch.tanh(scores / cap)
        ahead = torch.arange(d - c) - (torch.arange(b - a)[:, None] + (d - c) - (b - a))
        left, right = window
        hidden = (ahead > right) if right >= 0 else torch.zeros_like(ahead, dtype=torch.bool)
        if left >= 0:
            hidden = hidden | (-ahead > left)
        rows.append(torch.einsum("hqk,khd->qhd", scores.masked_fill(hidden, -torch.inf).softmax(-1), v))
    return torch.cat(rows).to(kind)


def longest(starts: Tensor) -> int:
    return int(starts.diff().max())


def torch_2_11(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    cu_seq_q: Tensor,
    cu_seq_k: Tensor,
    max_q: int,
    max_k: int,
    *,
    return_aux: object = None,
    scale: float | None = None,
    window_size: Window = (-1, -1),
) -> Tensor:
    """torch 2.11: no groups."""
    assert query.shape[1] == key.shape[1]
    return torch_2_13(query, key, value, cu_seq_q, cu_seq_k, max_q, max_k, scale=scale, window_size=window_size)


def torch_2_13(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    cu_seq_q: Tensor,
    cu_seq_k: Tensor | None,
    max_q: int,
    max_k: int,
    *,
    return_aux: object = None,
    scale: float | None = None,
    window_size: Window = (-1, -1),
    enable_gqa: bool = False,
    seqused_k: Tensor | None = None,
    block_table: Tensor | None = None,
    num_splits: int | None = None,
) -> Tensor:
    """torch 2.12 and 2.13."""
    assert cu_seq_k is not None
    assert enable_gqa or query.shape[1] == key.shape[1]
    assert (max_q, max_k) == (longest(cu_seq_q), longest(cu_seq_k))
    assert type(window_size) is tuple  # torch compares it with (-1, 0)
    scale = query.shape[-1] ** -0.5 if scale is None else scale
    return computed(query, key, value, (cu_seq_q, cu_seq_k), scale=scale, window=window_size, cap=0.0)


def flash_attn_2(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cu_seqlens_q: Tensor,
    cu_seqlens_k: Tensor,
    max_seqlen_q: int,
    max_seqlen_k: int,
    dropout_p: float = 0.0,
    softmax_scale: float | None = None,
    causal: bool = False,  # noqa: FBT001, FBT002 - flash-attn's signature
    window_size: Window = (-1, -1),
    softcap: float = 0.0,
    alibi_slopes: Tensor | None = None,
    deterministic: bool = False,  # noqa: FBT001, FBT002
    return_attn_probs: bool = False,  # noqa: FBT001, FBT002
    block_table: Tensor | None = None,
) -> Tensor:
    """flash-attn 2.6 and later."""
    assert (max_seqlen_q, max_seqlen_k) == (longest(cu_seqlens_q), longest(cu_seqlens_k))
    assert softmax_scale is not None
    window = (window_size[0], 0) if causal else window_size
    return computed(q, k, v, (cu_seqlens_q, cu_seqlens_k), scale=softmax_scale, window=window, cap=softcap)


def flash_attn_3(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cu_seqlens_q: Tensor,
    cu_seqlens_k: Tensor,
    max_seqlen_q: int,
    max_seqlen_k: int,
    seqused_q: Tensor | None = None,
    seqused_k: Tensor | None = None,
    softmax_scale: float | None = None,
    causal: bool = False,  # noqa: FBT001, FBT002 - flash-attn's signature
    window_size: Window = (-1, -1),
) -> tuple[Tensor, None]:
    """The first releases of flash-attn 3: no soft cap, and a pair for a result."""
    sizes = (cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k)
    return flash_attn_2(q, k, v, *sizes, softmax_scale=softmax_scale, causal=causal, window_size=window_size), None
