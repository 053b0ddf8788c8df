"""Layers made again in the backward: the same loss and gradient to the last bit, with less kept."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import CheckpointPolicy

from druthers import models, recompute
from druthers.batching import Rung
from druthers.config import ModelSettings
from druthers.crew import crew_of
from druthers.losses import LOSSES
from druthers.memory import footprint
from druthers.models import Loaded, attach_adapter, choose_layout, trainable
from druthers.recompute import Kind, recomputing
from druthers.records import InputError
from druthers.tokens import tokenize
from druthers.train.passes import run_pairs
from tests import tiny

TOKENIZER = tiny.tokenizer()
PAIRS = [tokenize(pair, TOKENIZER, max_prompt=100, max_response=100) for pair in tiny.pairs(8)]
OTHERS: tuple[Kind, ...] = ("selective", "layers")


@pytest.fixture(autouse=True, scope="module")
def two_threads() -> Iterator[None]:
    """So that a crew has two members, side by side."""
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


def policy(adapter: str = "none", rung: Rung = "shared", compute: torch.dtype = torch.float32) -> Loaded:
    """The tiny model in a layout; an adapter that already does something."""
    made = tiny.model(vocab=259, hidden_size=128, intermediate_size=192, num_hidden_layers=3)
    plain = choose_layout(Loaded(made, TOKENIZER, "tiny", "", compute, torch.device("cpu")), rung)
    if adapter == "none":
        return plain
    found = attach_adapter(plain, ModelSettings(adapter="lora", lora_rank=4))
    draw = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for weight in trainable(found).values():
            weight.add_(0.05 * torch.randn(weight.shape, generator=draw))
    return found


def zeros(batch: Any, some: Any, member: Any) -> Tensor:
    """A reference."""
    return torch.zeros(2, batch.size, dtype=torch.float64)


def learned(member_of: Loaded, kind: Kind) -> tuple[Tensor, dict[str, Tensor]]:
    """Losses and gradients of one step by a crew of two."""
    crew = crew_of(member_of)
    assert len(crew.members) == 2
    with recomputing(crew.members, kind):
        scored = run_pairs(PAIRS, crew, zeros, LOSSES["sigmoid"](beta=0.1), token_budget=300, learn="learn")
    return scored.loss_P, {name: w.grad for name, w in trainable(member_of).items() if w.grad is not None}


@pytest.mark.parametrize("kind", OTHERS)
@pytest.mark.parametrize("compute", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("rung", ["shared", "padding-free", "padded"])
@pytest.mark.parametrize("adapter", ["none", "lora"])
def test_loss_and_gradient_are_the_same_bit_for_bit(adapter: str, rung: Rung, compute: torch.dtype, kind: Kind) -> None:
    loss_P, grads = learned(policy(adapter, rung, compute), "none")
    again_P, found = learned(policy(adapter, rung, compute), kind)
    assert torch.equal(again_P, loss_P)
    assert found.keys() == grads.keys() != set()
    assert [name for name in grads if not torch.equal(found[name], grads[name])] == []
    assert all(grad.any() for grad in grads.values())


@pytest.mark.parametrize("adapter", ["none", "lora"])
def test_less_is_kept_from_kind_to_kind(adapter: str) -> None:
    kept = [footprint(policy(adapter), kind).at(1000)[0] for kind in recompute.KINDS]
    assert kept[0] > 1.5 * kept[1] > 1.5 * 1.5 * kept[2] > 0


def test_layers_are_computed_again_only_in_a_backward(monkeypatch: pytest.MonkeyPatch) -> None:
    member, calls = policy(), list[bool]()
    layer = recompute.layers_of(member.model)[0]
    monkeypatch.setattr(layer.mlp, "forward", counting(layer.mlp, calls))
    crew = replace(crew_of(member), members=[member], sums=[{}])
    for learn, expected in (("look", 1), ("learn", 2)):
        calls.clear()
        with recomputing(crew.members, "layers"):
            run_pairs(PAIRS[:1], crew, zeros, LOSSES["sigmoid"](beta=0.1), token_budget=300, learn=learn)  # type: ignore[arg-type]
        assert len(calls) == expected


def counting(module: nn.Module, calls: list[bool]) -> Any:
    """The module's forward, which notes that it was called."""
    own = type(module).forward

    def forward(*args: Any, **kwargs: Any) -> Any:
        calls.append(True)
        return own(module, *args, **kwargs)

    return forward


def test_the_outermost_layers_are_found_through_an_adapter() -> None:
    assert len(recompute.layers_of(policy("lora").model)) == len(recompute.layers_of(policy().model)) == 3


def test_afterwards_the_layers_are_as_they_were() -> None:
    member = policy()
    with recomputing([member], "layers"):
        assert all("forward" in vars(layer) for layer in recompute.layers_of(member.model))
    assert not any("forward" in vars(layer) for layer in recompute.layers_of(member.model))


def test_a_copy_of_a_model_that_recomputes_is_its_own() -> None:
    member = policy()
    with recomputing([member], "layers"):
        twin = models.second_copy(member)
    layer = recompute.layers_of(twin.model)[0]
    assert layer.forward.args[0].__self__ is layer


def test_selective_keeps_products_that_cost_much() -> None:
    wide, narrow = torch.zeros(3, 128), torch.zeros(3, 16)
    mm = torch.ops.aten.mm.default
    assert recompute.policy_of(None, mm, wide, torch.zeros(128, 5)) == CheckpointPolicy.MUST_SAVE
    assert recompute.policy_of(None, mm, narrow, torch.zeros(16, 5)) == CheckpointPolicy.PREFER_RECOMPUTE
    assert recompute.policy_of(None, torch.ops.aten.bmm.default, wide, wide) == CheckpointPolicy.PREFER_RECOMPUTE
    bias = torch.ops.aten.addmm.default
    assert recompute.policy_of(None, bias, torch.zeros(5), wide, torch.zeros(128, 5)) == CheckpointPolicy.MUST_SAVE


class Unmarked(nn.Module):
    """A model whose layers are not transformers' own."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(2, 2)
        self.config = tiny.model().config


def test_a_model_without_marked_layers_is_refused_by_name() -> None:
    member = Loaded(Unmarked(), TOKENIZER, "odd", "", torch.float32, torch.device("cpu"))
    with (
        pytest.raises(InputError, match=r"'odd' .* does not mark its layers") as caught,
        recomputing([member], "layers"),
    ):
        pass
    assert "train.recompute=none" in str(caught.value)
    with recomputing([member], "none"):
        pass
