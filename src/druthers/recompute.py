"""Activations made again in the backward instead of kept: decoder layer by decoder layer, all of them or all but
matrix products.

The backward runs the very kernels of the forward on the very inputs, so loss and gradient are the same, bit for bit.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Literal

import torch
from torch import nn
from torch.utils.checkpoint import CheckpointPolicy, checkpoint, create_selective_checkpoint_contexts
from transformers.modeling_layers import GradientCheckpointingLayer

from druthers.models import Loaded
from druthers.records import InputError

Kind = Literal["none", "selective", "layers"]
KINDS: tuple[Kind, ...] = ("none", "selective", "layers")
"""From the most memory and the least work to the least memory and the most work."""
PRODUCTS = {torch.ops.aten.mm.default: 0, torch.ops.aten.addmm.default: 1}
"""Matrix products, and which of their arguments is the left factor."""
WORTH = 128
"""Multiply-adds of one value of a product from which 'selective' keeps it: it makes the second half of an adapter
again, which are as large as the layer's own product and much cheaper."""


def layers_of(model: nn.Module) -> list[nn.Module]:
    """The decoder layers, as transformers marks them; of nested ones the outermost."""
    found: list[nn.Module] = []
    inside: tuple[str, ...] = ()
    for name, module in model.named_modules():
        if isinstance(module, GradientCheckpointingLayer) and not f"{name}.".startswith(inside or "\0"):
            found.append(module)
            inside = (*inside, f"{name}.")
    return found


def check_layers(loaded: Loaded, *, done: str = "made again in the backward", by: str = "train.recompute") -> None:
    """Raises InputError for a model whose layers are not marked."""
    if not layers_of(loaded.model):
        raise InputError(
            f"model {loaded.name!r} ({loaded.causal.config.model_type}) does not mark its layers, so none of them can "
            f"be {done}; use {by}=none"
        )


def policy_of(context: Any, operation: Any, *args: Any, **kwargs: Any) -> CheckpointPolicy:
    """What 'selective' keeps of a layer: matrix products that cost enough."""
    left = PRODUCTS.get(operation)
    kept = left is not None and args[left].shape[-1] >= WORTH
    return CheckpointPolicy.MUST_SAVE if kept else CheckpointPolicy.PREFER_RECOMPUTE


SELECTIVE = functools.partial(create_selective_checkpoint_contexts, policy_of)


Forward = Callable[..., Any]


def again(own: Forward, *args: Any, **kwargs: Any) -> Any:
    """A layer's forward, kept or made again."""
    if not torch.is_grad_enabled():
        return own(*args, **kwargs)
    # Nothing draws in a forward, so the state of the generators needs no keeping.
    how: dict[str, Any] = {"use_reentrant": False, "preserve_rng_state": False}
    return checkpoint(own, *args, **how, **kwargs)


def again_selectively(own: Forward, *args: Any, **kwargs: Any) -> Any:
    """The same with matrix products kept."""
    if not torch.is_grad_enabled():
        return own(*args, **kwargs)
    how: dict[str, Any] = {"use_reentrant": False, "preserve_rng_state": False, "context_fn": SELECTIVE}
    return checkpoint(own, *args, **how, **kwargs)


@contextmanager
def recomputing(members: Sequence[Loaded], kind: Kind) -> Iterator[None]:
    """Inside the block the layers of the models are made again in the backward as `kind` says.

    Raises InputError where a model has no layers that could be.
    """
    if kind == "none":
        yield
        return
    how = {"layers": again, "selective": again_selectively}[kind]
    for member in members:
        check_layers(member)
    layers = [layer for member in members for layer in layers_of(member.model)]
    before = [vars(layer).get("forward") for layer in layers]
    try:
        for layer in layers:
            layer.forward = functools.partial(how, layer.forward)
        yield
    finally:
        for layer, own in zip(layers, before, strict=True):
            if own is None:
                del layer.forward
            else:
                layer.forward = own
