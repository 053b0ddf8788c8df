"""FlexAttention over trees: its mask and its tiles against the rule, its forward where torch has one on a CPU."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.attention.flex_attention import create_mask

from druthers.attention import Layout, Terms, Tree, blockwise
from druthers.flex import TILE, block_mask, over_trees, places, tiles
from tests.test_attention import LAYOUTS, LONG, visible

CPU = torch.device("cpu")
LAW = settings(max_examples=60, deadline=None, derandomize=True)
WINDOWS = st.one_of(st.none(), st.integers(1, 6))
WIDE = st.lists(
    st.builds(Tree, st.integers(1, 300), st.lists(st.integers(0, 300), max_size=3).map(tuple)), min_size=1, max_size=4
).map(tuple)


def size(layout: Layout) -> int:
    return sum(tree.size for tree in layout)


@LAW
@given(LAYOUTS, WINDOWS)
def test_the_mask_function_is_the_rule(layout: Layout, window: int | None) -> None:
    """Evaluated for every query and key; padding sees padding alone, and itself."""
    T, found = size(layout), block_mask(layout, window, CPU)
    R = found.shape[-1]
    dense = create_mask(found.mask_mod, 1, 1, R, R, device="cpu")[0, 0]
    assert R % TILE == 0
    assert torch.equal(dense[:T, :T], visible(layout, window))
    assert not dense[:T, T:].any()
    assert not dense[T:, :T].any()
    assert dense.diagonal().all()


@LAW
@given(WIDE, st.one_of(st.none(), st.integers(1, 400)))
def test_tiles_leave_nothing_out_and_are_whole_where_they_say_so(layout: Layout, window: int | None) -> None:
    """What is seen lies in a listed tile, a tile listed as whole is, and no tile is listed twice."""
    T, (some, every) = size(layout), tiles(places(layout), window)
    N = len(some)
    seen = torch.zeros(N * TILE, N * TILE, dtype=torch.bool)
    seen[:T, :T] = visible(layout, window)
    by_tile = seen.view(N, TILE, N, TILE).transpose(1, 2).flatten(2)
    some, every = torch.from_numpy(some), torch.from_numpy(every)
    assert not (some & every).any()
    assert not (by_tile.any(-1) & ~(some | every)).any()
    inner = torch.zeros(N, N, dtype=torch.bool)
    inner[: T // TILE, : T // TILE] = True
    assert by_tile.all(-1)[every & inner].all()
    assert not (every & ~inner & ~every.diag().diag()).any() or T % TILE


def test_a_long_row_has_whole_tiles_and_left_out_ones() -> None:
    """Of two long branches neither is listed for the other, and most of what is listed needs no mask."""
    some, every = tiles(places((Tree(4 * TILE, (4 * TILE, 4 * TILE)),)), None)
    assert (some.sum(), every.sum()) == (12, 6 + 2 * (16 + 6))
    some, every = tiles(places((Tree(8 * TILE),)), TILE + 2)
    assert (some.sum() + every.sum(), every.sum()) == (8 + 7 + 6, 0)


def test_the_lists_hold_the_tiles() -> None:
    """Counts and indices as the kernel reads them."""
    layout: Layout = (Tree(2 * TILE + 5, (TILE, 300)), Tree(77))
    found, (some, every) = block_mask(layout, None, CPU), tiles(places(layout), None)
    for flags, count, index in (
        (some, found.kv_num_blocks, found.kv_indices),
        (every, found.full_kv_num_blocks, found.full_kv_indices),
    ):
        assert count is not None
        assert index is not None
        for i, row in enumerate(torch.from_numpy(flags)):
            assert index[0, 0, i, : int(count[0, 0, i])].tolist() == row.nonzero().flatten().tolist()


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
@pytest.mark.parametrize("layout", [LONG[1], (Tree(3, (2, 4)),)])
@pytest.mark.parametrize("terms", [Terms(0.4), Terms(0.3, 1.5, 40)])
@pytest.mark.parametrize("sinks", [False, True])
def test_its_forward_on_a_cpu_is_the_block_wise_one(
    layout: Layout, terms: Terms, *, sinks: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Grouped heads, values wider than keys, soft cap, window, sinks; uncompiled, where torch makes all scores."""
    monkeypatch.setattr("torch.nn.attention.flex_attention._FLEX_ATTENTION_DISABLE_COMPILE_DEBUG", True)
    torch.manual_seed(0)
    T = size(layout)
    q, k, v = torch.randn(T, 4, 8), torch.randn(T, 2, 8), torch.randn(T, 2, 16)
    sink_H = torch.randn(4) if sinks else None
    with torch.no_grad():
        ours, theirs = (compute(q, k, v, sink_H, layout, terms) for compute in (over_trees, blockwise))
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


def test_one_mask_serves_all_layers() -> None:
    """Made once for a row and a window."""
    layout: Layout = (Tree(5, (3, 2)),)
    assert block_mask(layout, 4, CPU) is block_mask(tuple(layout), 4, CPU)
    assert block_mask(layout, 4, CPU) is not block_mask(layout, None, CPU)
