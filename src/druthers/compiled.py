"""Decoder layers as compiled code (torch.compile) while a policy learns, attention outside of it.

What is element by element between the matrix products is fused, and less is kept for the backward. Compiling takes
its time at the start of every run, so it is asked for by `train.compile`. The code is made for any row length, once
for each kind of layer; torch gives a layer up to its ordinary code after eight versions of it.
"""

from __future__ import annotations

import copy
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import AttentionInterface

from druthers import attention
from druthers.batching import collate
from druthers.crew import Crew
from druthers.models import Loaded, computing, trainable
from druthers.recompute import check_layers, layers_of
from druthers.records import InputError, first_line
from druthers.threads import side_by_side
from druthers.tokens import TokenizedPair

NEAR = {torch.float32: 1e-4, torch.bfloat16: 5e-2}
"""Most that a response's mean log-probability may differ from that of the ordinary code, in nats a token."""
WANTED = (
    "torch.compile wants a C++ compiler (Debian: g++), on a GPU Triton, and a folder that it may write "
    "(TORCHINDUCTOR_CACHE_DIR)"
)
HALF = "delete that file, which a compiler left that was killed, and run the same command again"
"""torch takes half a library in its cache for a whole one in every run to come."""


@dataclass(frozen=True, eq=False)
class Boxed:
    """A layout out of the compiler's sight, which would make new code for every tuple of another length."""

    layout: Any


class Twofold:
    """A layer's forward: compiled where a backward will follow, else its own."""

    def __init__(self, own: Callable[..., Any]) -> None:
        self.own = own
        self.made = torch.compile(own, dynamic=True)

    def __deepcopy__(self, memo: dict[int, Any]) -> Callable[..., Any]:
        """A copy of the layer is for inference: it takes the layer's own forward along."""
        return copy.deepcopy(self.own, memo)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Call one of the two."""
        if not torch.is_grad_enabled():
            return self.own(*args, **kwargs)
        if kwargs.get("layout") is not None:
            kwargs["layout"] = Boxed(kwargs["layout"])
        return self.made(*args, **kwargs)


def unboxed(attend: Callable[..., Any]) -> Callable[..., Any]:
    """An attention that the compiler does not look into, with the layout taken out of its box."""

    def outside(*args: Any, layout: Boxed | attention.Layout | None = None, **kwargs: Any) -> Any:
        return attend(*args, layout=layout.layout if isinstance(layout, Boxed) else layout, **kwargs)

    disable: Any = torch.compiler.disable
    outer: Callable[..., Any] = disable(outside, recursive=True)
    return outer


@contextmanager
def attention_outside() -> Iterator[None]:
    """Inside the block our attentions, which build tables from the layout, run as they are written."""
    registry = AttentionInterface()
    before = {name: registry[name] for name in registry if name.startswith(attention.NAME)}
    try:
        for name, attend in before.items():
            AttentionInterface.register(name, unboxed(attend))
        yield
    finally:
        for name, attend in before.items():
            AttentionInterface.register(name, attend)


@contextmanager
def compiling(members: Sequence[Loaded], *, wanted: bool) -> Iterator[None]:
    """Inside the block the layers of the models are compiled at their first forward that a backward follows.

    Raises InputError where a model does not mark its layers. Enter it before `recompute.recomputing`.
    """
    if not wanted:
        yield
        return
    for member in members:
        check_layers(member, done="compiled", by="train.compile")
    layers = [layer for member in members for layer in layers_of(member.model)]
    with one_sentence(members[0]):
        made = [Twofold(layer.forward) for layer in layers]
    with attention_outside():
        try:
            for layer, forward in zip(layers, made, strict=True):
                layer.forward = forward
            yield
        finally:
            for layer in layers:
                del layer.forward


@contextmanager
def one_sentence(policy: Loaded) -> Iterator[None]:
    """What a compiler says, also before it compiles anything: torch makes a folder for it first."""
    try:
        yield
    except torch.OutOfMemoryError:  # nothing of the compiler's
        raise
    except Exception as raised:  # whatever a compiler may say
        why = f"{type(raised).__name__}: {first_line(raised)}"
        raise InputError(
            f"the layers of {policy.name!r} cannot be compiled ({why}); {HALF if '.so: ' in why else WANTED}; "
            "or set train.compile=none"
        ) from raised


def prove(crew: Crew, pairs: Sequence[TokenizedPair]) -> str:
    """Compile inside `compiling`, forward and backward, and hold a pair's log-probabilities against the ordinary code.

    Member by member, in threads like those of a step. Returns a line for the screen; raises InputError where nothing
    can be compiled here or what was compiled computes something else.
    """
    pair, one, since = min(pairs, key=lambda pair: pair.longest), threading.Lock(), time.perf_counter()

    def work(member: Loaded) -> float:
        with one:
            return gap(member, pair)

    with one_sentence(crew.policy):
        error = max(side_by_side(work, crew.members, workers=len(crew.members)))
    if not error <= NEAR[crew.policy.compute]:
        raise InputError(
            f"the compiled layers of {crew.policy.name!r} differ from the ordinary ones by {error:.1e} nat a token "
            f"(limit {NEAR[crew.policy.compute]:g}); set train.compile=none"
        )
    return f"layers in {time.perf_counter() - since:.0f} s, within {error:.0e} nat a token of the ordinary ones"


def gap(member: Loaded, pair: TokenizedPair) -> float:
    """How far compiled and ordinary code are apart on a pair, in nats a token; the gradient is made and dropped."""
    batch = collate([pair], pad_id=member.pad_id, rung=member.layout.rung, device=member.device)

    def scored() -> Tensor:
        with computing(member):
            return member.logps(batch)

    with torch.no_grad():
        plain_CB = scored()
    with torch.enable_grad():
        found_CB = scored()
        found_CB.sum().backward()  # type: ignore[no-untyped-call]
    for weight in trainable(member).values():
        weight.grad = None
    return ((found_CB.detach() - plain_CB).abs() / batch.length_CB.clamp_min(1)).max().item()
