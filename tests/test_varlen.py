"""One variable-length call over a row of trees, by kernels in plain torch, against the rule written token by token."""

from __future__ import annotations

import inspect
import itertools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn.attention.varlen import varlen_attn

from druthers.attention import Compute, Layout, Terms, Tree, attend, blockwise, sequences
from druthers.varlen import Copied, by_flash_attn, by_torch, over_trees, packed
from tests import varlen_fake as fake
from tests.test_attention import LAYOUTS, LONG, dense

CPU = torch.device("cpu")
LAW = settings(max_examples=40, deadline=None, derandomize=True)
EXACT = over_trees(by_torch(fake.torch_2_13))


def drawn(layout: Layout, *, heads: int = 4, groups: int = 2, dtype: torch.dtype = torch.float64) -> list[torch.Tensor]:
    """Query, key and value (1, heads, T, 8)."""
    torch.manual_seed(0)
    size = sum(tree.size for tree in layout)
    return [torch.randn(1, n, size, 8, dtype=dtype).requires_grad_() for n in (heads, heads // groups, heads // groups)]


def results(compute: Compute, layout: Layout, terms: Terms, given_: list[torch.Tensor]) -> list[torch.Tensor]:
    """Output (1, T, heads, 8) and the gradients of a weighted sum of it."""
    names = {"scaling": terms.scale, "softcap": terms.softcap, "sliding_window": terms.window}
    out, _ = attend(nn.Identity(), *given_, None, layout=layout, compute=compute, **names)
    torch.manual_seed(1)
    return [out, *torch.autograd.grad((out * torch.randn_like(out)).sum(), given_)]


@LAW
@given(LAYOUTS, st.one_of(st.none(), st.integers(1, 6)), st.floats(0.1, 2), st.sampled_from([1, 2, 4]))
def test_a_call_is_the_rule(layout: Layout, window: int | None, scale: float, groups: int) -> None:
    """Prefixes and branches down to one token and none, windows, grouped heads: as a dense mask and block by block."""
    rows, terms = drawn(layout, groups=groups), Terms(scale, None, window)
    ours = results(EXACT, layout, terms, rows)
    torch.testing.assert_close(ours[0], dense(*rows, None, layout, terms), rtol=1e-10, atol=1e-12)
    for mine, other in zip(ours, results(blockwise, layout, terms, rows), strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-9, atol=1e-11)


@LAW
@given(LAYOUTS, st.one_of(st.none(), st.integers(1, 6)))
def test_a_tree_is_its_branches_as_rows_of_their_own(layout: Layout, window: int | None) -> None:
    """Output of every branch, and gradients summed over the rows that repeat a prefix."""
    (q, k, v), terms = drawn(layout), Terms(0.4, None, window)
    ours = results(EXACT, layout, terms, [q, k, v])
    out = torch.zeros_like(ours[0])
    torch.manual_seed(1)
    weight = torch.randn_like(out)
    total = torch.zeros(())
    for prefix, own in sequences(layout):
        index = torch.cat([torch.arange(*prefix), torch.arange(*own)])
        row, _ = attend(nn.Identity(), *(x[:, :, index] for x in (q, k, v)), None, scaling=0.4, sliding_window=window)
        out[:, own[0] : own[1]] = row[:, prefix[1] - prefix[0] :].detach()
        total = total + (row[:, prefix[1] - prefix[0] :] * weight[:, own[0] : own[1]]).sum()
    torch.testing.assert_close(ours[0], out, rtol=1e-10, atol=1e-12)
    for mine, other in zip(ours[1:], torch.autograd.grad(total, [q, k, v]), strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("layout", LONG)
@pytest.mark.parametrize("window", [None, 3, 129])
def test_long_rows_in_float32(layout: Layout, window: int | None) -> None:
    """Longer than a block, within the rounding of float32."""
    rows, terms = drawn(layout, dtype=torch.float32), Terms(0.4, None, window)
    pairs = zip(results(EXACT, layout, terms, rows), results(blockwise, layout, terms, rows), strict=True)
    for mine, other in pairs:
        torch.testing.assert_close(mine, other, rtol=1e-4, atol=1e-5)


ADAPTERS: dict[str, Compute] = {
    "torch 2.11": over_trees(by_torch(fake.torch_2_11)),
    "torch 2.13": EXACT,
    "flash-attn 2": over_trees(by_flash_attn(fake.flash_attn_2)),
    "flash-attn 3": over_trees(by_flash_attn(fake.flash_attn_3)),
}
ROW: Layout = (Tree(5, (2, 3, 1)), Tree(4), Tree(3, (6, 2)))


@pytest.mark.parametrize("name", ADAPTERS)
@pytest.mark.parametrize(("window", "softcap"), list(itertools.product([None, 1, 4], [None, 1.5])))
def test_every_signature_says_the_same_or_refuses(name: str, window: int | None, softcap: float | None) -> None:
    """Scale, groups and windows reach the function whatever it calls them; what it lacks is refused."""
    rows, terms = drawn(ROW), Terms(0.7, softcap, window)
    if softcap is not None and name == "flash-attn 3":
        with pytest.raises(ValueError, match="before"):
            results(ADAPTERS[name], ROW, terms, rows)
        return
    if softcap is not None and name.startswith("torch"):
        return  # refused for every version, where kernels are chosen
    pairs = zip(results(ADAPTERS[name], ROW, terms, rows), results(blockwise, ROW, terms, rows), strict=True)
    for mine, other in pairs:
        torch.testing.assert_close(mine, other, rtol=1e-9, atol=1e-11)


def test_the_installed_torch_has_a_signature_that_is_known() -> None:
    """Its function takes what the adapter passes, by the names of a version that is tested above."""
    own = set(inspect.signature(varlen_attn).parameters)
    assert {"scale", "window_size"} <= own
    assert own in [set(inspect.signature(f).parameters) for f in (fake.torch_2_11, fake.torch_2_13)]


def test_flash_attn_is_deterministic_where_torch_is_asked_to_be(monkeypatch: pytest.MonkeyPatch) -> None:
    """torch's own looks itself."""
    said: list[bool] = []

    def seen(*args: Any, deterministic: bool = False, **rest: Any) -> torch.Tensor:
        said.append(deterministic)
        return fake.flash_attn_2(*args, **rest)

    for wanted in (False, True):
        monkeypatch.setattr(torch, "are_deterministic_algorithms_enabled", lambda wanted=wanted: wanted)
        results(over_trees(by_flash_attn(seen)), ROW, Terms(1.0), drawn(ROW))
    assert said == [False, True]


def test_no_copy_is_made_where_nothing_is_shared() -> None:
    """Plain rows: keys are the row itself."""
    rows: Layout = (Tree(4), Tree(3, (2,)))
    assert packed(rows, CPU).key_S is None
    seen: list[torch.Tensor] = []

    def call(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, *rest: Any) -> torch.Tensor:
        seen.append(key)
        return query

    key = torch.randn(9, 2, 8)
    over_trees(call)(torch.randn(9, 2, 8), key, key, None, rows, Terms(1.0))
    assert seen[0] is key


def test_a_row_is_packed_once() -> None:
    """All layers and the backward take the same tensors; another row others."""
    assert packed(ROW, CPU) is packed(tuple(ROW), CPU)
    assert packed(ROW, CPU) is not packed(ROW[:1], CPU)


def test_copies_are_added_in_float32() -> None:
    """In bfloat16, 2 + 1/256 sixteen times over would stay 2."""
    layout: Layout = (Tree(1, (1,) * 17),)
    row = torch.ones(18, 1, 1, dtype=torch.bfloat16, requires_grad=True)
    copied: Callable[..., torch.Tensor] = Copied.apply
    found = packed(layout, CPU)
    assert found.key_S is not None
    keys = copied(row, found)
    grad = torch.where(found.key_S == 0, 1 / 256, 1.0)
    grad[0] = 2.0
    keys.backward(grad[:, None, None].bfloat16())
    assert row.grad is not None
    assert row.grad[0].item() == 2 + 16 / 256
    assert (row.grad[1:] == 1).all()


def test_gradients_are_the_same_bits_every_time() -> None:
    """Bfloat16, several copies of a prefix."""
    rows = drawn(ROW, dtype=torch.bfloat16)
    once, again = (results(EXACT, ROW, Terms(0.5), rows) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(once, again, strict=True))
