"""Attention over trees against a dense mask written down token by token, forward and backward."""

from __future__ import annotations

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from druthers.attention import BLOCK, Layout, Terms, Tree, attend, blocks

LAW = settings(max_examples=60, deadline=None, derandomize=True)
TREES = st.builds(Tree, st.integers(1, 9), st.lists(st.integers(0, 7), max_size=4).map(tuple))
LAYOUTS = st.lists(TREES, min_size=1, max_size=3).map(tuple)
LONG: list[Layout] = [
    (Tree(2 * BLOCK + 5, (3, BLOCK + 2, 1)),),
    (Tree(7, (BLOCK, 0)), Tree(BLOCK + 1), Tree(1, (2 * BLOCK + 1, 9))),
]


def visible(layout: Layout, window: int | None) -> Tensor:
    """The rule, (T, T): same tree, not later, the prefix or the own branch, and within the window by position."""
    tree, branch, position = [], [], []
    for number, each in enumerate(layout):
        tree += [number] * each.size
        branch += [0] * each.prefix + [b for b, length in enumerate(each.branches, 1) for _ in range(length)]
        position += [
            *range(each.prefix),
            *itertools.chain(*(range(each.prefix, each.prefix + n) for n in each.branches)),
        ]
    doc, seg, pos, at = (torch.tensor(x) for x in (tree, branch, position, range(len(tree))))
    seen = (at[:, None] >= at) & (doc[:, None] == doc) & ((seg == 0) | (seg[:, None] == seg))
    return seen if window is None else seen & (pos[:, None] - pos < window)


def dense(q: Tensor, k: Tensor, v: Tensor, sinks: Tensor | None, layout: Layout, terms: Terms) -> Tensor:
    """softmax over everything with the mask of the rule: (1, heads, T, D) to (1, T, heads, D)."""
    groups = q.shape[1] // k.shape[1]
    k, v = k.repeat_interleave(groups, 1), v.repeat_interleave(groups, 1)
    scores = q @ k.transpose(2, 3) * terms.scale
    if terms.softcap is not None:
        scores = terms.softcap * torch.tanh(scores / terms.softcap)
    scores = scores.masked_fill(~visible(layout, terms.window), -torch.inf)
    if sinks is not None:
        scores = torch.cat([scores, sinks[None, :, None, None].expand(1, -1, scores.shape[2], 1)], -1)
    return (scores.softmax(-1)[..., : k.shape[2]] @ v).transpose(1, 2)


def inputs(layout: Layout, *, sinks: bool, dtype: torch.dtype = torch.float64) -> list[Tensor]:
    """Query of 4 heads, key and value of 2, values wider than keys, and a sink for each head where wanted."""
    torch.manual_seed(0)
    size = sum(tree.size for tree in layout)
    shapes = [(1, 4, size, 6), (1, 2, size, 6), (1, 2, size, 8), *([(4,)] if sinks else [])]
    return [torch.randn(*shape).to(dtype).requires_grad_() for shape in shapes]


def check(layout: Layout, terms: Terms, *, sinks: bool) -> None:
    """Output and every gradient, float64."""
    given = inputs(layout, sinks=sinks)
    q, k, v, *aux = given
    s_aux = aux[0] if aux else None
    names = {"scaling": terms.scale, "softcap": terms.softcap, "sliding_window": terms.window, "s_aux": s_aux}
    ours, _ = attend(nn.Identity(), q, k, v, None, layout=layout, **names)
    theirs = dense(q, k, v, s_aux, layout, terms)
    torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-12)
    weight = torch.randn_like(theirs)
    for mine, other in zip(
        torch.autograd.grad((ours * weight).sum(), given),
        torch.autograd.grad((theirs * weight).sum(), given),
        strict=True,
    ):
        torch.testing.assert_close(mine, other, rtol=1e-9, atol=1e-11)


@LAW
@given(
    LAYOUTS,
    st.one_of(st.none(), st.integers(1, 6)),
    st.one_of(st.none(), st.floats(0.5, 5)),
    st.floats(0.1, 2),
    st.sampled_from([1.0, 0.0]),
)
def test_every_tree_is_seen_as_the_rule_says(
    layout: Layout, window: int | None, softcap: float | None, scale: float, sinks: float
) -> None:
    """Prefixes, branches (empty ones too), windows, soft caps and sinks in any combination."""
    check(layout, Terms(scale, softcap, window), sinks=bool(sinks))


@pytest.mark.parametrize("layout", LONG)
@pytest.mark.parametrize("window", [None, 3, BLOCK + 1])
def test_rows_longer_than_a_block(layout: Layout, window: int | None) -> None:
    """Blocks end within prefix and branches, and windows reach over them."""
    check(layout, Terms(0.4, None, window), sinks=True)
    seen = blocks(layout, window=window)
    assert sum(block.stop - block.start for block in seen) == sum(tree.size for tree in layout)
    if window is not None:
        assert all(sum(b - a for a, b in block.seen) < block.stop - block.start + window for block in seen)


def test_without_a_layout_every_row_of_a_batch_is_a_sequence() -> None:
    """As torch's own causal attention."""
    torch.manual_seed(0)
    q, k, v = torch.randn(3, 4, 7, 8), torch.randn(3, 2, 7, 8), torch.randn(3, 2, 7, 8)
    ours, _ = attend(nn.Identity(), q, k, v, None)
    theirs = nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
    torch.testing.assert_close(ours, theirs.transpose(1, 2), rtol=1e-5, atol=1e-6)


def test_a_mask_or_a_cache_is_refused() -> None:
    """They would say something the layout does not."""
    q, k = torch.randn(1, 2, 3, 4), torch.randn(1, 2, 5, 4)
    for query, key, mask in ((q, k, None), (k, k, torch.zeros(1, 1, 5, 5))):
        with pytest.raises(ValueError, match="no mask and no cache"):
            attend(nn.Identity(), query, key, key, mask)


def test_bfloat16_stays_near_float32() -> None:
    """Scores are rounded to bfloat16: root mean square errors of output and gradients below 1 % of their size."""
    layout = (Tree(150, (30, 40)),)
    exact = [x.detach().float().requires_grad_() for x in inputs(layout, sinks=False, dtype=torch.bfloat16)]
    reference = dense(*exact, None, layout, Terms(6**-0.5))
    weight = torch.randn_like(reference)
    wanted = [reference, *torch.autograd.grad((reference * weight).sum(), exact)]
    rough = [x.detach().bfloat16().requires_grad_() for x in exact]
    ours, _ = attend(nn.Identity(), *rough, None, layout=layout)
    found = [ours, *torch.autograd.grad((ours * weight.bfloat16()).sum(), rough)]
    for a, b in zip(found, wanted, strict=True):
        assert a.dtype == torch.bfloat16
        assert (a.float() - b).norm() < 0.01 * b.norm()
