"""Every loss by the loop: the same losses and gradients as plain autograd over the whole set, however it is cut."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from druthers import models
from druthers.batching import Rung, collate
from druthers.config import ModelSettings
from druthers.crew import Crew, crew_of
from druthers.distributions import channels
from druthers.losses import Loss, Terms
from druthers.losses.catalogue import made
from druthers.models import Loaded, attach_adapter, choose_layout, trainable
from druthers.objectives import SECTIONS
from druthers.tokens import TokenizedPair, tokenize
from druthers.train import reference
from druthers.train.passes import FIELDS, run_pairs
from tests import tiny

TOKENIZER = tiny.tokenizer()
PARTS = [
    {"coefficient": 0.8, "name": "sigmoid", "beta": 0.1},
    {"coefficient": 0.2, "name": "bco", "beta": 0.1},
    {"coefficient": 1.0, "name": "sft"},
]
OF_OTHERS = {"mixed": {"parts": PARTS}, "wpo": {"inner": {"name": "sigmoid", "beta": 0.1}}}
BOUND: dict[str, Callable[[], Loss]] = {
    name: functools.partial(made, {"name": name, **OF_OTHERS.get(name, {})})
    if name in OF_OTHERS
    else functools.partial(made, kind().model_dump())
    for name, kind in SECTIONS.items()
    if name != "samp"
}
"""Every loss with the settings it has by itself; one draws tokens, which no pass does yet."""


def graded(loss: Loss) -> list[TokenizedPair]:
    """Pairs of several lengths, two of them of one prompt, with the grades that the loss honours."""
    made = [tokenize(pair, TOKENIZER, max_prompt=100, max_response=100) for pair in tiny.pairs(7)]
    made[3] = replace(made[3], prompt=made[2].prompt)
    return [
        replace(
            pair,
            weight=1.0 + 0.5 * (i % 3),
            p=(1.0 if i % 3 else 0.0) if loss.unpaired else (0.7 if loss.p and i % 2 else 1.0),
            margin=0.3 if loss.margin and i % 2 else 0.0,
        )
        for i, pair in enumerate(made)
    ]


def loaded(seed: int, rung: Rung = "padded") -> Loaded:
    """A tiny model in float64."""
    model = tiny.model(seed, dtype=torch.float64)
    made = Loaded(model, TOKENIZER, "tiny", "", torch.float32, torch.device("cpu"))
    return made if rung == "padded" else choose_layout(made, rung)


def draw(pair: TokenizedPair) -> float:
    """A number that a pair always has."""
    return (hash(pair.chosen) % 997) / 997


def plain(loss: Loss, pairs: list[TokenizedPair], policy: Loaded, other: Loaded) -> tuple[Tensor, dict[str, Tensor]]:
    """All pairs in one batch, the loss once, and autograd."""
    batch = collate(pairs, pad_id=policy.pad_id)
    beside = reference.live(other)
    hidden = beside.hidden(batch, policy) if "divergence" in loss.needs else None
    policy_KCB = policy.read(batch, needs=loss.needs, other=hidden).double()
    weight_B = batch.weight_B
    terms = Terms(
        batch.p_B,
        batch.margin_B,
        weight_B,
        batch.length_CB.double(),
        mean_length=((weight_B * batch.length_CB[0]).sum() / weight_B.sum()).item(),
        reference_head_CB=beside.head(batch, pairs, policy),
        draw_B=torch.tensor([draw(pair) for pair in pairs], dtype=torch.float64),
        **{FIELDS[n]: v for n, v in zip(channels(loss.needs)[1:], policy_KCB[1:], strict=True)},  # type: ignore[arg-type]
    )
    reference_CB = beside(batch, pairs, policy)
    if loss.follow:
        terms = replace(terms, state=loss.follow(policy_KCB[0].detach(), reference_CB, terms))
    loss_B = loss.of(policy_KCB[0], reference_CB, terms)
    ((loss_B * weight_B).sum() / weight_B.sum()).backward()  # type: ignore[no-untyped-call]
    return loss_B.detach(), grads(policy)


def grads(policy: Loaded) -> dict[str, Tensor]:
    """The gradients, which are then gone."""
    found = {name: w.grad.clone() for name, w in trainable(policy).items() if w.grad is not None}
    policy.model.zero_grad(set_to_none=True)
    return found


def by_the_loop(loss: Loss, pairs: list[TokenizedPair], policy: Loaded, scores: Any, budget: int, count: int) -> Any:
    """Losses, gradients and state of one step by a crew of so many."""
    crew = crew_of(policy)
    crew = Crew(policy, crew.members[:count], crew.casts, crew.sums[:count])
    scored = run_pairs(pairs, crew, scores, loss, token_budget=budget, learn="learn", draw=draw)
    return scored, grads(policy)


CUTS: tuple[tuple[Rung, int, int, float], ...] = (
    ("padded", 100_000, 1, 1e-10),
    ("padded", 1, 1, 1e-10),
    ("shared", 300, 2, 1e-5),
)
"""Layout, budget of tokens, members of the crew, and how far gradients may lie apart: rotary angles are float32."""


@pytest.mark.parametrize("name", BOUND)
def test_a_step_is_that_of_plain_autograd_however_it_is_cut(name: str) -> None:
    loss, other = BOUND[name](), loaded(7)
    pairs = graded(loss)
    wanted_B, wanted = plain(loss, pairs, loaded(1), other)
    assert torch.isfinite(wanted_B).all()
    assert any(bool(grad.any()) for grad in wanted.values())
    for rung, budget, count, error in CUTS:
        policy = loaded(1, rung)
        scored, found = by_the_loop(loss, pairs, policy, reference.live(loaded(7, rung)), budget, count)  # type: ignore[arg-type]
        assert torch.allclose(scored.loss_P, wanted_B, atol=10 * error, rtol=max(1e-7, error)), (rung, budget)
        assert found.keys() == wanted.keys()
        for key, grad in wanted.items():
            assert torch.allclose(found[key], grad, atol=error * max(1, grad.abs().max()), rtol=error), (rung, key)


@pytest.mark.parametrize("name", BOUND)
def test_the_order_of_the_pairs_changes_nothing(name: str) -> None:
    loss, scores = BOUND[name](), reference.live(loaded(7))
    pairs = graded(loss)
    one, grads_one = by_the_loop(loss, pairs, loaded(1), scores, 200, 1)
    two, grads_two = by_the_loop(loss, pairs[::-1], loaded(1), scores, 200, 1)
    assert torch.allclose(one.loss_P, two.loss_P.flip(0), atol=1e-9)
    assert one.state == pytest.approx(two.state)
    for key, grad in grads_one.items():
        assert torch.allclose(grad, grads_two[key], atol=1e-10)


@pytest.mark.parametrize("name", [name for name, make in BOUND.items() if make().needs <= {"head", "draw"}])
def test_a_cached_reference_gives_what_one_in_memory_gives(name: str, shared_cache: Any) -> None:
    loss, other = BOUND[name](), loaded(7)
    pairs = graded(loss)
    own = replace(other, sha=models.weights_sha(other.model))
    kept = reference.cached(own, pairs, token_budget=500)
    one, grads_one = by_the_loop(loss, pairs, loaded(1), reference.live(other), 200, 1)
    two, grads_two = by_the_loop(loss, pairs, loaded(1), kept, 200, 1)
    assert torch.allclose(one.loss_P, two.loss_P, atol=1e-4, rtol=1e-4)  # a cache holds float32 tokens
    for key, grad in grads_one.items():
        assert torch.allclose(grad, grads_two[key], atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize("name", ["tdpo1", "tdpo2"])
def test_an_adapter_switched_off_is_a_reference_of_whole_distributions(name: str) -> None:
    loss = BOUND[name]()
    policy = attach_adapter(loaded(1), ModelSettings(adapter="lora", lora_rank=2), seed=0)
    pairs = graded(loss)
    assert reference.kind_for("auto", policy, loss) == "adapter"
    scored = run_pairs(pairs, crew_of(policy), reference.without_adapter, loss, token_budget=300, learn="look")
    assert torch.allclose(scored.ratio_CP, torch.zeros(2, len(pairs), dtype=torch.float64), atol=1e-9)
    assert torch.allclose(scored.loss_P, torch.full((len(pairs),), math.log(2), dtype=torch.float64), atol=1e-9)
