"""AdamW with 8-bit states: rounding that is right on average, steps that follow float32, a resume bit for bit."""

from __future__ import annotations

import io
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from druthers import lowbit
from druthers.config import ModelSettings, Settings, TrainSettings, load
from druthers.models import Loaded, attach_adapter, trainable, weights_sha
from druthers.run import Run
from druthers.tokens import tokenize
from druthers.train import loop, train
from druthers.train.optimizer import (
    BLOCK,
    PIECE,
    SMALL,
    AdamW8bit,
    pack_mean,
    pack_root,
    state_bytes,
    to_bfloat16,
    unpack_mean,
    unpack_root,
)
from tests import tiny

pytestmark = pytest.mark.usefixtures("own_cache", "one_thread")


def noise(*shape: int, seed: int) -> Tensor:
    """Random bits, as the optimizer draws them."""
    return torch.empty(shape, dtype=torch.int64).random_(generator=torch.Generator().manual_seed(seed))


def spread(*shape: int, octaves: float, seed: int = 0) -> Tensor:
    """Random values over so many octaves below 1."""
    draw = torch.Generator().manual_seed(seed)
    return torch.exp2(-octaves * torch.rand(shape, generator=draw))


# ---------------------------------------------------------------- rounding


@given(st.integers(0, 2**30), st.floats(1e-20, 1e20))
def test_a_stored_state_that_does_not_change_is_stored_as_it_was(seed: int, scale: float) -> None:
    signs = torch.where(noise(3, BLOCK, seed=seed + 3) % 2 == 0, 1.0, -1.0)
    values = scale * spread(3, BLOCK, octaves=15, seed=seed)
    root = unpack_root(*pack_root(values, noise(3, BLOCK, seed=seed + 1)))
    mean = unpack_mean(*pack_mean(values * signs, noise(3, BLOCK, seed=seed + 2)))
    assert torch.equal(unpack_root(*pack_root(root, noise(3, BLOCK, seed=seed + 4))), root)
    assert torch.equal(unpack_mean(*pack_mean(mean, noise(3, BLOCK, seed=seed + 5))), mean)


@given(st.integers(0, 2**30))
def test_a_state_is_rounded_to_a_neighbour_on_its_grid(seed: int) -> None:
    values = spread(4, BLOCK, octaves=14, seed=seed)
    root = unpack_root(*pack_root(values, noise(4, BLOCK, seed=seed + 1)))
    mean = unpack_mean(*pack_mean(-values, noise(4, BLOCK, seed=seed + 2)))
    assert ((root - values).abs() <= values / 16).all()
    assert ((mean + values).abs() <= values / 8).all()


def test_rounding_is_right_on_average() -> None:
    values = spread(1, BLOCK, octaves=12).expand(4000, BLOCK).contiguous()
    found = {
        "root": unpack_root(*pack_root(values, noise(4000, BLOCK, seed=1))),
        "mean": unpack_mean(*pack_mean(-values, noise(4000, BLOCK, seed=2))).neg(),
        "bfloat16": to_bfloat16(values, noise(4000, BLOCK, seed=3)).float(),
    }
    for widest, rounded in zip((1 / 16, 1 / 8, 1 / 128), found.values(), strict=True):
        off = (rounded.double().mean(0) / values[0].double() - 1).abs()
        assert off.max() < 5 * widest / 2 / 4000**0.5
    assert len(found["root"][:, 0].unique()) == 2


def test_what_is_far_below_the_largest_is_a_zero_mean_and_the_smallest_root() -> None:
    values = torch.ones(1, BLOCK)
    values[0, 1:] = 1e-9
    root, mean = pack_root(values, noise(1, BLOCK, seed=0)), pack_mean(values, noise(1, BLOCK, seed=0))
    assert unpack_root(*root)[0, 1:].unique().tolist() == [2.0**-16 * (1 + 1 / 16)]
    assert unpack_mean(*mean)[0, 1:].unique().tolist() == [0.0]


def test_a_block_of_zeros_stays_zero() -> None:
    zeros = torch.zeros(2, BLOCK)
    assert not unpack_root(*pack_root(zeros, noise(2, BLOCK, seed=0))).any()
    assert not unpack_mean(*pack_mean(zeros, noise(2, BLOCK, seed=0))).any()


# ---------------------------------------------------------------- steps


def optimizer_of(weight: Tensor, *, lr: float, seed: int = 0, decay: float = 0.0) -> AdamW8bit:
    return AdamW8bit([{"params": [weight], "weight_decay": decay}], lr=lr, seed=seed)


def size_of(state: dict[str, Tensor]) -> int:
    """Bytes of the states, their count of steps aside."""
    return sum(t.numel() * t.element_size() for name, t in state.items() if name != "steps")


def test_steps_below_the_resolution_of_bfloat16_move_the_mean_by_the_right_amount() -> None:
    ours, nearest = (torch.full((256, 256), 0.02, dtype=torch.bfloat16) for _ in range(2))
    start = ours[0, 0].item()
    optimizer, plain = optimizer_of(ours, lr=1e-6), torch.optim.AdamW([nearest], lr=1e-6, weight_decay=0.0)
    for _ in range(100):
        ours.grad = nearest.grad = torch.full_like(ours, 0.5)
        optimizer.step()
        plain.step()
    assert (ours.double().mean() - start).item() == pytest.approx(-1e-4, rel=0.05)
    assert nearest.double().mean().item() == start


def problem(seed: int) -> tuple[Tensor, Tensor]:
    """Inputs of very different size and the answers of a linear map to them, with noise."""
    draw = torch.Generator().manual_seed(seed)
    inputs = torch.randn(512, 128, generator=draw) * torch.logspace(-2, 0, 128)
    return inputs, inputs @ torch.randn(128, 64, generator=draw) + 0.1 * torch.randn(512, 64, generator=draw)


def trained(kind: str, dtype: torch.dtype, *, steps: int = 200, lr: float = 1e-2) -> tuple[Tensor, list[float]]:
    """A linear map fitted by minibatches: the weights and the loss over all data at every step."""
    inputs, answers = problem(0)
    weight = torch.nn.Parameter(torch.zeros(64, 128, dtype=dtype))
    groups = [{"params": [weight], "weight_decay": 0.01}]
    optimizer = AdamW8bit(groups, lr=lr, seed=0) if kind == "adamw-8bit" else torch.optim.AdamW(groups, lr=lr)
    losses = []
    for step in range(steps):
        some = slice(64 * (step % 8), 64 * (step % 8 + 1))
        (inputs[some] @ weight.float().t() - answers[some]).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append((inputs @ weight.detach().float().t() - answers).square().mean().item())
    return weight.detach().float(), losses


@pytest.mark.parametrize(("dtype", "apart"), [(torch.float32, 0.05), (torch.bfloat16, 0.08)])
def test_two_hundred_steps_follow_those_of_float32(dtype: torch.dtype, apart: float) -> None:
    exact, losses = trained("adamw", torch.float32)
    ours, found = trained("adamw-8bit", dtype)
    assert losses[-1] < losses[0] / 3
    assert ((ours - exact).norm() / exact.norm()).item() < apart
    assert max(abs(a - b) for a, b in zip(losses, found, strict=True)) < 0.01 * losses[0]


def test_small_tensors_in_float32_take_the_very_steps_of_torch() -> None:
    draw = torch.Generator().manual_seed(0)
    ours, theirs = (torch.linspace(-1, 1, SMALL - 1).clone() for _ in range(2))
    optimizer, plain = optimizer_of(ours, lr=1e-3, decay=0.1), torch.optim.AdamW([theirs], lr=1e-3, weight_decay=0.1)
    for _ in range(20):
        ours.grad = theirs.grad = torch.randn(SMALL - 1, generator=draw)
        optimizer.step()
        plain.step()
    torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-7)


def test_a_rate_of_zero_moves_nothing() -> None:
    weight = torch.randn(80, 100, generator=torch.Generator().manual_seed(0)).to(torch.bfloat16)
    before, optimizer = weight.clone(), optimizer_of(weight, lr=0.0, decay=0.1)
    for _ in range(3):
        weight.grad = torch.ones_like(weight)
        optimizer.step()
    assert torch.equal(weight, before)


@pytest.mark.parametrize("shape", [(5, 1000), (1, PIECE + 1000), (SMALL - 1,)])
def test_states_of_any_shape_take_what_was_said(shape: tuple[int, ...]) -> None:
    weight = torch.zeros(shape)
    optimizer = optimizer_of(weight, lr=1e-2)
    weight.grad = torch.ones_like(weight)
    optimizer.step()
    assert size_of(optimizer.state[weight]) == state_bytes([weight], "adamw-8bit")
    torch.testing.assert_close(weight, torch.full_like(weight, -1e-2), rtol=1e-5, atol=0)


@pytest.mark.parametrize("first", [1, 2, 10, 100])
def test_the_first_gradient_of_a_weight_moves_it_as_torch_would_however_late(first: int) -> None:
    ours, theirs = (torch.zeros(16, requires_grad=True) for _ in range(2))
    optimizers = optimizer_of(ours, lr=1e-2), torch.optim.AdamW([theirs], lr=1e-2, weight_decay=0.0)
    for step in range(1, first + 1):
        for weight, optimizer in zip((ours, theirs), optimizers, strict=True):
            weight.grad = torch.ones(16) if step == first else None
            optimizer.step()
    assert torch.allclose(ours, theirs, rtol=1e-5)


def test_a_step_does_not_depend_on_the_steps_of_other_seeds_only_on_its_own() -> None:
    def moved(seed: int) -> Tensor:
        weight = torch.full((64, 128), 0.02, dtype=torch.bfloat16)
        weight.grad = torch.ones_like(weight)
        optimizer_of(weight, lr=1e-5, seed=seed).step()
        return weight

    assert torch.equal(moved(1), moved(1))
    assert not torch.equal(moved(1), moved(2))


def test_it_continues_from_its_state_bit_for_bit() -> None:
    def steps(weight: Tensor, optimizer: AdamW8bit, numbers: range) -> None:
        for number in numbers:
            weight.grad = torch.randn(100, 99, generator=torch.Generator().manual_seed(number)).to(weight.dtype)
            optimizer.step()

    whole = torch.full((100, 99), 0.02, dtype=torch.bfloat16)
    part = whole.clone()
    steps(whole, optimizer_of(whole, lr=1e-4), range(8))
    first = optimizer_of(part, lr=1e-4)
    steps(part, first, range(5))
    saved = io.BytesIO()
    torch.save(first.state_dict(), saved)
    saved.seek(0)
    second = optimizer_of(part, lr=1.0)
    second.load_state_dict(torch.load(saved, weights_only=True))
    assert second.state[part]["root"].dtype == torch.uint8
    steps(part, second, range(5, 8))
    assert torch.equal(part, whole)


# ---------------------------------------------------------------- in a run

TOKENIZER = tiny.tokenizer()
PAIRS = [tokenize(pair, TOKENIZER, max_prompt=100, max_response=100) for pair in tiny.pairs(12)]


def policy(adapter: str = "none") -> Loaded:
    """The tiny model with its matrices in bfloat16, as `models.load` holds them for this optimizer."""
    made = tiny.model(vocab=259, hidden_size=64, intermediate_size=128)
    lowbit.narrow(made)
    found = Loaded(made, TOKENIZER, "tiny", weights_sha(made), torch.bfloat16, torch.device("cpu"))
    return found if adapter == "none" else attach_adapter(found, ModelSettings(adapter="lora", lora_rank=64))


def settings(*changes: str) -> Settings:
    """Six steps of four pairs, a checkpoint every second."""
    few = ("pairs_per_step=4", "epochs=3", "evaluate_every=6", "checkpoint_every=2", "learning_rate=1e-3")
    return load(overrides=[*(f"train.{change}" for change in few), "train.optimizer=adamw-8bit", *changes])


class PowerCut(BaseException):
    """Nothing in the code may catch this."""


def run_to_end(folder: Path, adapter: str, *, cut_at: int | None = None) -> list[dict[str, Any]]:
    def note(row: dict[str, Any]) -> None:
        if row["step"] == cut_at and row["split"] == "train":
            raise PowerCut

    pairs, heldout = PAIRS[:8], PAIRS[8:]
    train(Run(folder), settings(), policy(adapter), pairs=pairs, heldout=heldout, note=note)
    return Run(folder).metrics()


@pytest.mark.parametrize("adapter", ["none", "lora"])
def test_a_run_learns_and_a_resumed_one_is_the_same_bit_for_bit(tmp_path: Path, adapter: str) -> None:
    whole = run_to_end(tmp_path / "whole", adapter)
    with pytest.raises(PowerCut):
        run_to_end(tmp_path / "cut", adapter, cut_at=5)
    assert run_to_end(tmp_path / "cut", adapter) == whole
    assert whole[-1]["loss"] < whole[0]["loss"] - 0.01
    last = "checkpoints/step-000006"
    for name in ("weights.safetensors", "optimizer.pt"):
        assert (tmp_path / "cut" / last / name).read_bytes() == (tmp_path / "whole" / last / name).read_bytes()


def test_the_default_is_torchs_own_in_float32() -> None:
    made = tiny.model(vocab=259)
    plain = Loaded(made, TOKENIZER, "tiny", "", torch.float32, torch.device("cpu"))
    optimizer = loop.make_optimizer(plain, TrainSettings())
    assert type(optimizer) is torch.optim.AdamW
    assert all(weight.dtype == torch.float32 for weight in trainable(plain).values())


def test_gradients_of_narrow_weights_are_those_of_float32_rounded() -> None:
    """The head adds its chunks up in float32, whatever the weights are held in."""
    from druthers.batching import collate
    from druthers.logprobs import pair_logps

    narrow = replace(policy(), compute=torch.bfloat16)
    wide = tiny.model(vocab=259, hidden_size=64, intermediate_size=128)
    lowbit.narrow(wide)
    lowbit.widen(wide)
    exact = replace(narrow, model=wide, compute=torch.float32)
    batch = collate(PAIRS[:3], pad_id=2)
    grads = []
    for loaded in (narrow, exact):
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=loaded is narrow, cache_enabled=False):
            logp_CB = pair_logps(loaded.scorer, batch, chunk=7)
        (logp_CB[0] - logp_CB[1]).sum().backward()
        grads.append(torch.cat([w.grad.float().flatten() for w in trainable(loaded).values() if w.grad is not None]))
    assert ((grads[0] - grads[1]).norm() / grads[1].norm()).item() < 0.03


def test_a_checkpoint_of_this_optimizer_keeps_two_bytes_a_weight(tmp_path: Path) -> None:
    run_to_end(tmp_path, "none")
    saved = torch.load(tmp_path / "checkpoints/step-000006/optimizer.pt", weights_only=True)
    assert sum(map(size_of, saved["state"].values())) == state_bytes(trainable(policy()).values(), "adamw-8bit")
    assert json.loads((tmp_path / "checkpoints/step-000006/position.json").read_text())["step"] == 6
