"""Which kernel a layer may have, what each refuses, and where they stand in transformers' registry."""

from __future__ import annotations

import importlib
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from transformers import AttentionInterface
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS

from druthers import attention, kernels
from druthers.attention import Terms, Tree
from druthers.kernels import KERNELS, candidates, guarded, refusal, registered
from tests import varlen_fake as fake

CUDA, CPU = torch.device("cuda"), torch.device("cpu")
PLAIN = Terms(0.5)
CAPPED = Terms(0.5, softcap=30.0)
TABLE: list[tuple[str, dict[str, Any], str]] = [
    ("plain", {}, "flash-attn varlen flex"),
    ("a window", {"terms": Terms(0.5, window=8)}, "flash-attn varlen flex"),
    ("float16", {"kind": torch.float16}, "flash-attn varlen flex"),
    ("float32", {"kind": torch.float32}, "flex"),
    ("a soft cap (Gemma 2)", {"terms": CAPPED}, "flash-attn flex"),
    ("sinks (GPT-OSS)", {"sinks": True}, "flex"),
    ("values wider than keys", {"value_width": 72}, "flex"),
    ("heads of 512", {"width": 512, "value_width": 512}, "flex"),
    ("heads of 20", {"width": 20, "value_width": 20}, "flex"),
]


def layer(
    *,
    kind: torch.dtype = torch.bfloat16,
    width: int = 64,
    value_width: int = 64,
    sinks: bool = False,
    terms: Terms = PLAIN,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None, Terms]:
    """What a kernel is asked about."""
    query, value = torch.empty(3, 4, width, dtype=kind), torch.empty(3, 2, value_width, dtype=kind)
    return query, value, torch.zeros(4) if sinks else None, terms


@pytest.mark.parametrize(("name", "asked", "wanted"), TABLE, ids=[name for name, _, _ in TABLE])
def test_what_a_layer_asks_for_decides(name: str, asked: dict[str, Any], wanted: str) -> None:
    """The kernels that take the layer, in their order; the others say why not."""
    found = {kernel: refusal(each, *layer(**asked)) for kernel, each in KERNELS.items()}
    assert [kernel for kernel, why in found.items() if why is None] == wanted.split()


def test_the_reason_names_the_kernel_and_the_value() -> None:
    """As the ladder shows it."""
    query, value, sinks, terms = layer(width=264, value_width=264)
    with pytest.raises(ValueError, match=r"torch's variable-length attention wants heads of at most 256, .* 264 wide"):
        guarded(KERNELS["varlen"])(query, value, value, sinks, (Tree(3),), terms)
    query, value, sinks, terms = layer(kind=torch.float32)
    with pytest.raises(ValueError, match="flash-attn does not compute in float32"):
        guarded(KERNELS["flash-attn"])(query, value, value, sinks, (Tree(3),), terms)


def test_only_cuda_in_half_precision_has_a_choice(monkeypatch: pytest.MonkeyPatch) -> None:
    """flash-attn where it is installed, before torch's own."""
    for device, kind in ((CPU, torch.bfloat16), (CPU, torch.float32), (CUDA, torch.float32)):
        assert candidates(device, kind) == ("block",)
    have(monkeypatch)
    assert candidates(CUDA, torch.bfloat16) == ("varlen", "flex", "block")
    have(monkeypatch, flash_attn=SimpleNamespace(flash_attn_varlen_func=fake.flash_attn_2))
    assert candidates(CUDA, torch.float16) == ("flash-attn", "varlen", "flex", "block")


def have(monkeypatch: pytest.MonkeyPatch, **packages: SimpleNamespace | Exception) -> None:
    """flash-attn's packages are these, or raise this at their import."""

    def imported(name: str) -> Any:
        if name not in packages:
            raise ModuleNotFoundError(name)
        if isinstance(packages[name], Exception):
            raise packages[name]
        return packages[name]

    monkeypatch.setattr(importlib, "import_module", imported)


@pytest.mark.parametrize("broken", [SimpleNamespace(), ImportError("undefined symbol"), OSError("libcudart.so.11.0")])
def test_a_flash_attn_that_does_not_work_counts_as_absent(
    broken: SimpleNamespace | Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An empty folder of its name is a package too."""
    have(monkeypatch, flash_attn=broken)
    assert candidates(CUDA, torch.bfloat16) == ("varlen", "flex", "block")
    with pytest.raises(ImportError, match="flash-attn is not installed, or does not load"):
        kernels.flash_attn()
    have(monkeypatch, flash_attn_interface=broken, flash_attn=SimpleNamespace(flash_attn_varlen_func=fake.flash_attn_2))
    assert candidates(CUDA, torch.bfloat16)[0] == "flash-attn"


@pytest.mark.parametrize("installed", [("flash_attn",), ("flash_attn_interface", "flash_attn")])
def test_the_newest_flash_attn_is_taken(installed: tuple[str, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    """Version 3 has a package of its own name."""
    asked: list[str] = []

    def package(name: str) -> SimpleNamespace:
        def called(*given: Any, **named: Any) -> torch.Tensor:
            asked.append(name)
            return fake.flash_attn_2(*given, **named)

        return SimpleNamespace(flash_attn_varlen_func=called)

    have(monkeypatch, **{name: package(name) for name in installed})
    row = torch.randn(5, 2, 8)
    found = kernels.flash_attn()(row, row, row, None, (Tree(2, (1, 2)),), PLAIN)
    assert asked == [installed[0]]
    torch.testing.assert_close(found, attention.blockwise(row, row, row, None, (Tree(2, (1, 2)),), PLAIN))


def test_transformers_finds_every_kernel_and_makes_no_mask_for_it() -> None:
    """Nor does a name say 'flash', by which it would take the kernel for its own."""
    for name in ("block", *KERNELS):
        assert registered(name) in AttentionInterface.valid_keys(AttentionInterface())
        assert registered(name) not in ALL_MASK_ATTENTION_FUNCTIONS.valid_keys()
        assert "flash" not in registered(name)


def test_a_kernel_is_made_once() -> None:
    """At its first use."""
    made: list[int] = []

    def make() -> attention.Compute:
        made.append(1)
        return attention.blockwise

    compute = guarded(kernels.Kernel("fake", make, kinds=(torch.float32,)))
    row = torch.randn(4, 2, 8)
    for _ in range(2):
        compute(row, row, row, None, (Tree(4),), PLAIN)
    assert made == [1]
