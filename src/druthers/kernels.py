"""Which kernels can compute attention over trees on this machine, under which names transformers finds them.

In the order of preference: flash-attn where it is installed, torch's own variable-length attention, FlexAttention, and
the block-wise products, which compute anything anywhere. What a kernel cannot do it refuses with a sentence; the ladder
tries them in turn on the loaded model.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import AttentionInterface

from druthers import attention, flex, varlen
from druthers.attention import Compute, Layout, Terms
from druthers.ladder import BLOCKWISE

FLASH_ATTN = ("flash_attn_interface", "flash_attn")
"""Packages of flash-attn, that of version 3 first."""
ABSENT = (ImportError, OSError, AttributeError, RuntimeError)
"""What a package raises that is not there, does not fit this torch, or is an empty folder of its name."""
HALF = (torch.bfloat16, torch.float16)


@dataclass(frozen=True, slots=True)
class Kernel:
    """A kernel, what makes it at its first use, and what it can do; `widest` is the widest head, None for any."""

    says: str
    make: Callable[[], Compute]
    softcap: bool = False
    sinks: bool = False
    uneven: bool = False
    kinds: tuple[torch.dtype, ...] = HALF
    widest: int | None = 256


def flash_attn_function() -> Callable[..., Any] | None:
    """flash-attn's function, from the newest of its packages that works; None where none does."""
    for name in FLASH_ATTN:
        with contextlib.suppress(*ABSENT):
            found: Callable[..., Any] = importlib.import_module(name).flash_attn_varlen_func
            return found
    return None


def flash_attn() -> Compute:
    """flash-attn; raises ImportError where there is none that works."""
    function = flash_attn_function()
    if function is None:
        raise ImportError("flash-attn is not installed, or does not load")
    return varlen.over_trees(varlen.by_flash_attn(function))


def torch_varlen() -> Compute:
    """torch's own; raises ImportError where this torch has none."""
    module: Any = importlib.import_module("torch.nn.attention.varlen")
    return varlen.over_trees(varlen.by_torch(module.varlen_attn))


KERNELS = {
    "flash-attn": Kernel("flash-attn", flash_attn, softcap=True),
    "varlen": Kernel("torch's variable-length attention", torch_varlen),
    "flex": Kernel(
        "FlexAttention",
        lambda: flex.over_trees,
        softcap=True,
        sinks=True,
        uneven=True,
        kinds=(*HALF, torch.float32),
        widest=None,
    ),
}
"""By the name that `Found` gives; the block-wise kernel is `attention.attend` itself."""


def candidates(device: torch.device, compute: torch.dtype) -> tuple[str, ...]:
    """Kernels worth a try, the best first: on CUDA in half precision all that load, elsewhere block by block.

    >>> candidates(torch.device("cpu"), torch.bfloat16), candidates(torch.device("cuda"), torch.float32)
    (('block',), ('block',))
    """
    if device.type != "cuda" or compute not in HALF:
        return (BLOCKWISE,)
    here = flash_attn_function() is not None
    return (*(name for name in KERNELS if here or name != "flash-attn"), BLOCKWISE)


def refusal(kernel: Kernel, query_THD: Tensor, value_TKD: Tensor, sink_H: Tensor | None, terms: Terms) -> str | None:
    """Why a kernel cannot compute a layer, None where it can."""
    kind, width, value_width = query_THD.dtype, query_THD.shape[-1], value_TKD.shape[-1]
    if kind not in kernel.kinds:
        return f"does not compute in {str(kind).removeprefix('torch.')}"
    if terms.softcap is not None and not kernel.softcap:
        return "has no soft cap"
    if sink_H is not None and not kernel.sinks:
        return "has no sinks"
    if width != value_width and not kernel.uneven:
        return f"wants keys as wide as values, and they are {width} and {value_width}"
    if kernel.widest is not None and (width > kernel.widest or width % 8):
        return f"wants heads of at most {kernel.widest}, a multiple of 8, and they are {width} wide"
    return None


def guarded(kernel: Kernel) -> Compute:
    """The kernel, made at the first call; raises ValueError with the reason where it cannot do what is asked."""
    make = functools.lru_cache(maxsize=1)(kernel.make)

    def compute(
        query_THD: Tensor, key_TKD: Tensor, value_TKD: Tensor, sink_H: Tensor | None, layout: Layout, terms: Terms
    ) -> Tensor:
        if why := refusal(kernel, query_THD, value_TKD, sink_H, terms):
            raise ValueError(f"{kernel.says} {why}")
        return make()(query_THD, key_TKD, value_TKD, sink_H, layout, terms)

    return compute


def registered(kernel: str) -> str:
    """Name in transformers' registry, which takes any that says 'flash' for its own flash attention.

    >>> registered("block"), registered("flash-attn")
    ('druthers', 'druthers_fa')
    """
    return attention.NAME if kernel == BLOCKWISE else f"{attention.NAME}_{'fa' if kernel == 'flash-attn' else kernel}"


AttentionInterface.register(registered(BLOCKWISE), attention.attend)
for _name, _kernel in KERNELS.items():
    AttentionInterface.register(registered(_name), functools.partial(attention.attend, compute=guarded(_kernel)))
