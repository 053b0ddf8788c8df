"""The whole path against a plain float64 implementation: loss, all gradients, every way of holding the reference.

The plain implementation shares nothing with druthers but the model: it renders by hand, takes full logits of single
unpadded rows, and loops over tokens in python.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from druthers import models
from druthers.config import ModelSettings
from druthers.crew import Crew, crew_of
from druthers.losses import LOSSES, Loss
from druthers.models import Loaded
from druthers.records import Message, Pair, assistant, user
from druthers.tokens import TokenizedPair, tokenize
from druthers.train import reference
from druthers.train.logs import Scored
from druthers.train.passes import run_pairs
from tests import tiny

BETA = 0.1
WIDE, NARROW = 100_000, 1
TOKENIZER = tiny.tokenizer()
PAIRS = [
    Pair(prompt=user("Why?"), chosen=assistant("Because it rains."), rejected=assistant("No."), p=0.8, weight=2.0),
    Pair(prompt=user("How are you?"), chosen=assistant("Well, thank you for asking."), rejected=assistant("Hm")),
    Pair(prompt=user("Hi"), chosen=assistant("Hello!"), rejected=assistant("What do you want now?"), margin=0.4),
    Pair(prompt=user("Who?"), chosen=assistant("Me."), rejected=assistant("You."), p=0.3, margin=0.1, weight=0.7),
    Pair(
        prompt=(*user("1"), *assistant("2"), *user("3")),
        chosen=(*assistant("look"), Message(role="tool", content="4"), *assistant("It is four.")),
        rejected=assistant("five"),
        weight=1.3,
    ),
]


def loaded(seed: int, dtype: torch.dtype) -> Loaded:
    """A tiny model in memory."""
    model = tiny.model(seed, dtype=dtype)
    return Loaded(model, TOKENIZER, "tiny", models.weights_sha(model), torch.float32, torch.device("cpu"))


def tokenized(pairs: Sequence[Pair], tokenizer: Any = TOKENIZER) -> list[TokenizedPair]:
    """Pairs as the training loop reads them."""
    return [tokenize(pair, tokenizer, max_prompt=500, max_response=500) for pair in pairs]


def plain_logp(model: Any, prompt: Sequence[Message], response: Sequence[Message]) -> tuple[Tensor, int]:
    """Sum and number of the log-probs of the assistant's tokens, one full row of logits and one token after another."""

    def ids(text: str) -> list[int]:
        found: list[int] = TOKENIZER.encode(text, add_special_tokens=False)
        return found

    row = ids("".join(f"<|im_start|>{m.role}\n{m.content}<|im_end|>\n" for m in prompt))
    answered: list[int] = []
    for message in response:
        row += ids(f"<|im_start|>{message.role}\n")
        start = len(row)
        row += ids(f"{message.content}<|im_end|>")
        answered += range(start, len(row)) if message.role == "assistant" else []
        row += ids("\n")
    logits = model(input_ids=torch.tensor([row])).logits[0].double()
    total = torch.zeros((), dtype=torch.float64)
    for at in answered:
        scores = logits[at - 1]
        largest = scores.max()
        total = total + scores[row[at]] - (largest + (scores - largest).exp().sum().log())
    return total, len(answered)


def plain_dpo(gap: Tensor, pair: Pair, lengths: tuple[int, int], ratios: tuple[Tensor, Tensor]) -> Tensor:
    """-p log s(z - m) - (1 - p) log s(m - z)."""
    z = BETA * gap - pair.margin
    return pair.p * torch.log1p(torch.exp(-z)) + (1 - pair.p) * torch.log1p(torch.exp(z))


def plain_ipo(gap: Tensor, pair: Pair, lengths: tuple[int, int], ratios: tuple[Tensor, Tensor]) -> Tensor:
    """(h - 1 / (2 beta)) squared."""
    return (gap - 1 / (2 * BETA)) ** 2


def plain_ipo_mean(gap: Tensor, pair: Pair, lengths: tuple[int, int], ratios: tuple[Tensor, Tensor]) -> Tensor:
    """The same with each log-ratio divided by its number of tokens."""
    return (ratios[0] / lengths[0] - ratios[1] / lengths[1] - 1 / (2 * BETA)) ** 2


def plain_loss(policy: Any, base: Any, pairs: Sequence[Pair], of: Callable[..., Tensor]) -> Tensor:
    """sum(w l) / sum(w) over the pairs."""
    total, weights = torch.zeros((), dtype=torch.float64), 0.0
    for pair in pairs:
        sides = [plain_logp(policy, pair.prompt, side) for side in (pair.chosen, pair.rejected)]
        with torch.no_grad():
            base_sides = [plain_logp(base, pair.prompt, side)[0] for side in (pair.chosen, pair.rejected)]
        a, b = sides[0][0] - base_sides[0], sides[1][0] - base_sides[1]
        total = total + pair.weight * of(a - b, pair, (sides[0][1], sides[1][1]), (a, b))
        weights += pair.weight
    return total / weights


def alone(policy: Loaded) -> Crew:
    """The policy computes for itself."""
    return Crew(policy, [policy], sums=[{}])


def mean_loss(scored: Scored) -> float:
    """The objective of a step from its record."""
    weight_P = torch.tensor([pair.weight for pair in scored.pairs], dtype=torch.float64)
    return float((scored.loss_P * weight_P).sum() / weight_P.sum())


def learned(policy: Loaded, base: Loaded, loss: Loss, *, token_budget: int) -> tuple[float, dict[str, Tensor]]:
    """Loss and gradients through the training path."""
    policy.model.zero_grad(set_to_none=True)
    scores = reference.live(base)
    scored = run_pairs(tokenized(PAIRS), alone(policy), scores, loss, token_budget=token_budget, learn="learn")
    return mean_loss(scored), {name: weight.grad.clone() for name, weight in policy.model.named_parameters()}


def distances(found: dict[str, Tensor], right: dict[str, Tensor]) -> dict[str, float]:
    """Relative distance of every gradient."""
    return {name: float((found[name].double() - right[name]).norm() / right[name].norm()) for name in right}


LOSS_PAIRS = [
    ("sigmoid", LOSSES["sigmoid"](beta=BETA), plain_dpo),
    ("ipo summed", LOSSES["ipo-summed"](beta=BETA), plain_ipo),
    ("ipo averaged", LOSSES["ipo"](beta=BETA), plain_ipo_mean),
]


@pytest.mark.parametrize(("dtype", "bar"), [(torch.float64, 1e-9), (torch.float32, 1e-5)], ids=["float64", "float32"])
@pytest.mark.parametrize(("name", "loss", "plain"), LOSS_PAIRS, ids=[name for name, _, _ in LOSS_PAIRS])
def test_loss_and_gradients_are_those_of_the_plain_implementation(
    name: str, loss: Loss, plain: Callable[..., Tensor], dtype: torch.dtype, bar: float
) -> None:
    """p, margin, weight, several turns and a tool turn included; the reference is another model."""
    policy, base = loaded(0, dtype), loaded(7, dtype)
    oracle, oracle_base = (copy.deepcopy(each.model).double() for each in (policy, base))
    expected = plain_loss(oracle, oracle_base, PAIRS, plain)
    expected.backward()  # type: ignore[no-untyped-call]
    right = {name: weight.grad for name, weight in oracle.named_parameters()}
    value, grads = learned(policy, base, loss, token_budget=400)
    assert grads.keys() == right.keys()
    assert abs(value - expected.item()) / expected.item() <= bar
    worst = distances(grads, right)
    assert max(worst.values()) <= bar, worst


RPO = [{"coefficient": 1.0, "name": "sigmoid", "beta": BETA}, {"coefficient": 0.2, "name": "sft"}]


@pytest.mark.parametrize(
    ("name", "knobs"), [("sigmoid", {"beta": BETA}), ("ipo", {"beta": BETA}), ("sft", {}), ("mixed", {"parts": RPO})]
)
def test_loss_and_gradients_do_not_depend_on_the_micro_batches(name: str, knobs: dict[str, Any]) -> None:
    """One pair at a time, some together, all together; a likelihood per token is of the tokens of the step."""
    loss = LOSSES[name](**knobs)
    policy, base = loaded(0, torch.float64), loaded(7, torch.float64)
    value, grads = learned(policy, base, loss, token_budget=WIDE)
    for budget in (NARROW, 400, 700):
        other, other_grads = learned(policy, base, loss, token_budget=budget)
        assert abs(other - value) / value <= 1e-10
        assert max(distances(other_grads, grads).values()) <= 1e-10


LORA = ModelSettings(adapter="lora", lora_rank=4)


def on_threads(count: int) -> Iterator[None]:
    """torch on so many threads for the time of a test: as many members compute, up to two."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def one_thread() -> Iterator[None]:
    yield from on_threads(1)


@pytest.fixture
def two_threads() -> Iterator[None]:
    yield from on_threads(2)


@pytest.mark.parametrize("budget", [NARROW, 700])
def test_micro_batches_side_by_side_give_the_same_gradient_and_always_the_same_bits(
    budget: int, two_threads: None
) -> None:
    """A crew of two shares the weights; its gradients are summed in one order."""
    loss, scores = LOSSES["sigmoid"](beta=BETA), reference.live(loaded(7, torch.float64))
    policy = loaded(0, torch.float64)
    value, grads = learned(policy, loaded(7, torch.float64), loss, token_budget=WIDE)
    crew = crew_of(policy)
    assert len(crew.members) == 2
    found = []
    for _ in range(3):
        policy.model.zero_grad(set_to_none=True)
        scored = run_pairs(tokenized(PAIRS), crew, scores, loss, token_budget=budget, learn="learn")
        assert abs(mean_loss(scored) - value) / value <= 1e-10
        assert all(weight.grad is None for weight in crew.members[1].model.parameters())
        found.append({name: weight.grad.clone() for name, weight in policy.model.named_parameters()})
    assert max(distances(found[0], grads).values()) <= 1e-10
    assert all(torch.equal(other[name], grad) for other in found for name, grad in found[0].items())
    assert torch.get_num_threads() == 2


def test_the_twin_of_a_policy_follows_its_weights(two_threads: None) -> None:
    """The optimizer moves one tensor, which both of them read."""
    for policy in (loaded(0, torch.float32), models.attach_adapter(loaded(0, torch.float32), LORA)):
        first, second = (models.trainable(member) for member in crew_of(policy).members)
        assert first.keys() == second.keys()
        with torch.no_grad():
            for weight in first.values():
                weight.add_(1.0)
        for name, weight in first.items():
            assert second[name] is not weight
            assert second[name].data_ptr() == weight.data_ptr()


@pytest.mark.parametrize("adapter", [None, LORA])
def test_casting_the_weights_once_gives_the_bits_of_casting_them_in_every_forward(
    adapter: ModelSettings | None, one_thread: None
) -> None:
    """bfloat16 compute: log-probs and gradients of a micro-batch, also after the weights moved."""
    policy = replace(loaded(0, torch.float32), compute=torch.bfloat16)
    if adapter is not None:
        policy = models.attach_adapter(policy, adapter)
    loss, scores = LOSSES["sigmoid"](beta=BETA), reference.live(loaded(7, torch.float32))
    crew, draw = crew_of(policy), torch.Generator().manual_seed(0)
    assert crew.casts
    for _ in range(2):
        with torch.no_grad():
            for weight in models.trainable(policy).values():
                weight.add_(torch.randn(weight.shape, generator=draw), alpha=0.05)
        crew.follow()
        found = []
        for who in (crew, alone(policy)):
            policy.model.zero_grad(set_to_none=True)
            scored = run_pairs(tokenized(PAIRS), who, scores, loss, token_budget=WIDE, learn="learn")
            found.append((scored.logp_CP, {name: w.grad.clone() for name, w in models.trainable(policy).items()}))
        (ours_CP, grads), (plain_CP, expected) = found
        assert torch.equal(ours_CP, plain_CP)
        assert grads.keys() == expected.keys()
        assert all(torch.equal(grad, expected[name]) for name, grad in grads.items())
        assert all(grad.dtype == torch.float32 for grad in grads.values())


def test_looking_leaves_no_gradient_and_gives_the_same_loss() -> None:
    """Evaluation runs the same code without the backward."""
    policy, base = loaded(0, torch.float32), loaded(7, torch.float32)
    loss = LOSSES["sigmoid"](beta=BETA)
    value, _ = learned(policy, base, loss, token_budget=WIDE)
    policy.model.zero_grad(set_to_none=True)
    looked = run_pairs(tokenized(PAIRS), alone(policy), reference.live(base), loss, token_budget=WIDE, learn="look")
    assert mean_loss(looked) == value
    assert all(weight.grad is None for weight in policy.model.parameters())


@pytest.mark.parametrize("budget", [NARROW, WIDE])
def test_the_loss_is_log_two_where_the_policy_is_a_live_reference(budget: int) -> None:
    """In the same layout the log-probs are the same bits."""
    policy = loaded(0, torch.float32)
    hard = [replace(pair, margin=0.0) for pair in tokenized(PAIRS)]
    scores = reference.live(models.second_copy(policy))
    scored = run_pairs(hard, alone(policy), scores, LOSSES["sigmoid"](beta=BETA), token_budget=budget, learn="look")
    assert torch.equal(scored.ratio_CP, torch.zeros_like(scored.ratio_CP))
    assert abs(mean_loss(scored) - math.log(2)) <= 1e-12


def test_the_packaged_model_starts_at_log_two() -> None:
    """SmolLM2-135M in float32 against a second copy, within 1e-6."""
    policy = models.load(ModelSettings(precision="float32"))
    pairs = [
        Pair(prompt=user("Hi"), chosen=assistant("Hello! How can I help?"), rejected=assistant("What?")),
        Pair(prompt=user("2 + 2?"), chosen=assistant("Four."), rejected=assistant("It may be five, or six.")),
    ]
    scores = reference.live(models.second_copy(policy))
    some, loss = tokenized(pairs, policy.tokenizer), LOSSES["sigmoid"](beta=BETA)
    scored = run_pairs(some, alone(policy), scores, loss, token_budget=WIDE, learn="look")
    assert abs(mean_loss(scored) - math.log(2)) <= 1e-6
    assert (scored.logp_CP < -1).all()
    assert policy.tokenizer.decode(some[1].chosen) == "Four.<|im_end|>"


def test_cache_adapter_and_copy_give_the_same_reference(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, two_threads: None
) -> None:
    """Also after the adapter has moved, and when read back from disk: the reference stays the base model."""
    monkeypatch.setenv("DRUTHERS_CACHE", str(tmp_path))
    policy, pairs = models.attach_adapter(loaded(0, torch.float32), LORA), tokenized(PAIRS)
    plans = [reference.choose(kind, policy, pairs, token_budget=150) for kind in ("cache", "adapter", "copy")]
    assert [plan.kind for plan in plans] == ["cache", "adapter", "copy"]
    draw = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for weight in models.trainable(policy).values():
            weight.normal_(0, 0.2, generator=draw)
    plans.append(reference.choose("cache", policy, pairs, token_budget=WIDE))
    loss = LOSSES["sigmoid"](beta=BETA)
    crew = crew_of(policy)
    found = [run_pairs(pairs, crew, plan.scores, loss, token_budget=WIDE, learn="look") for plan in plans]
    references = [scored.logp_CP - scored.ratio_CP for scored in found]
    expected = models.score_pairs(loaded(0, torch.float32), pairs, token_budget=WIDE)
    for each in references:
        assert (each - torch.from_numpy(expected)).abs().max() <= 1e-5
    assert (found[0].ratio_CP.abs() > 1e-3).all()
    assert len(list(tmp_path.rglob("*.parquet"))) == 1
