"""Compiled layers: the same numbers as the ordinary code, compiled once, and nothing left behind."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from torch import Tensor
from transformers import AttentionInterface

from druthers import attention, compiled, config
from druthers.compiled import compiling, prove
from druthers.crew import Crew, crew_of
from druthers.losses import LOSSES
from druthers.models import Loaded, trainable
from druthers.recompute import Kind, layers_of, recomputing
from druthers.records import InputError
from druthers.train.loop import kinds_of
from druthers.train.passes import run_pairs
from tests.test_recompute import PAIRS, policy, zeros

pytestmark = [
    pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile wants a C++ compiler"),
    pytest.mark.filterwarnings("default"),  # torch's compiler warns of other parts of torch
]

BUDGETS = (500, 120, 300)
"""Rows of many lengths, of one pair to all of them."""


def learned(
    adapter: str, compute: torch.dtype, *, wanted: bool, kind: Kind = "none"
) -> tuple[list[Tensor], dict[str, Tensor], int]:
    """Losses of passes by a crew, the gradient of the last, and graphs made after the proof."""
    crew = crew_of(policy(adapter, compute=compute))
    losses = []
    with compiling(crew.members, wanted=wanted), recomputing(crew.members, kind):
        if wanted:
            prove(crew, PAIRS)
        before = graphs()
        for budget in BUDGETS:
            clear(crew.policy)
            scored = run_pairs(PAIRS, crew, zeros, LOSSES["sigmoid"](beta=0.1), token_budget=budget, learn="learn")
            losses.append(scored.loss_P)
        made = graphs() - before
    return losses, {name: w.grad for name, w in trainable(crew.policy).items() if w.grad is not None}, made


def clear(loaded: Loaded) -> None:
    for weight in trainable(loaded).values():
        weight.grad = None


def graphs() -> int:
    """Graphs that torch.compile has made in this process."""
    from torch._dynamo.utils import counters

    return int(counters["stats"]["unique_graphs"])


def apart(a: dict[str, Tensor], b: dict[str, Tensor]) -> float:
    """Relative distance of two gradients."""
    square = sum(float((a[name] - b[name]).square().sum()) for name in b)
    return float((square / sum(float(x.square().sum()) for x in b.values())) ** 0.5)


@pytest.fixture(autouse=True)
def fresh() -> None:
    """Nothing compiled before."""
    torch.compiler.reset()


@pytest.mark.parametrize(("adapter", "kind"), [("none", "none"), ("none", "layers"), ("lora", "none")])
def test_losses_and_gradients_are_those_of_the_ordinary_code(adapter: str, kind: Kind) -> None:
    """In float32, whatever the lengths of the rows; what the proof compiled serves them all."""
    plain, slope, _ = learned(adapter, torch.float32, wanted=False)
    found, grads, made = learned(adapter, torch.float32, wanted=True, kind=kind)
    for own, right in zip(found, plain, strict=True):
        assert torch.allclose(own, right, rtol=0, atol=1e-5)
    assert grads.keys() == slope.keys()
    assert apart(grads, slope) < 1e-5
    assert made == 0


def test_in_bfloat16_it_is_as_near_to_float32_as_the_ordinary_code() -> None:
    exact, slope, _ = learned("none", torch.float32, wanted=False)
    plain, rough, _ = learned("none", torch.bfloat16, wanted=False)
    found, grads, _ = learned("none", torch.bfloat16, wanted=True)
    errors = [sum(float((a - b).square().sum()) for a, b in zip(x, exact, strict=True)) ** 0.5 for x in (found, plain)]
    assert 0 < errors[0] < 1.25 * errors[1]
    assert apart(grads, slope) < 1.25 * apart(rough, slope)


def test_without_a_backward_the_ordinary_code_runs() -> None:
    crew = crew_of(policy())
    before = graphs()
    with compiling(crew.members, wanted=True):
        run_pairs(PAIRS, crew, zeros, LOSSES["sigmoid"](beta=0.1), token_budget=300, learn="look")
    assert graphs() == before


def test_afterwards_layers_and_attentions_are_as_they_were() -> None:
    crew, registry = crew_of(policy()), AttentionInterface()
    before = {name: registry[name] for name in registry}
    with compiling(crew.members, wanted=True), recomputing(crew.members, "layers"):
        assert all("forward" in vars(layer) for member in crew.members for layer in layers_of(member.model))
        assert registry[attention.NAME] is not before[attention.NAME]
    assert not any("forward" in vars(layer) for member in crew.members for layer in layers_of(member.model))
    assert {name: registry[name] for name in registry} == before


def test_a_proof_leaves_no_gradient() -> None:
    crew = crew_of(policy())
    with compiling(crew.members, wanted=True):
        assert "of the ordinary ones" in prove(crew, PAIRS)
    assert all(weight.grad is None for member in crew.members for weight in member.model.parameters())


def test_what_computes_something_else_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compiled.torch, "compile", lambda own, **_: lambda *a, **k: 1.1 * own(*a, **k))
    crew = crew_of(policy())
    with compiling(crew.members, wanted=True), pytest.raises(InputError, match=r"differ from the ordinary ones .*;"):
        prove(crew, PAIRS)


def test_a_machine_without_a_compiler_is_one_sentence(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from torch._inductor import cpp_builder

    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))  # nothing kept of other runs
    monkeypatch.setenv("PATH", str(tmp_path))
    cpp_builder.cpp_compiler_search.cache_clear()
    crew = crew_of(policy())
    with (
        compiling(crew.members, wanted=True),
        pytest.raises(InputError, match=r"cannot be compiled .*compile=none"),
    ):
        prove(crew, PAIRS)


@pytest.mark.parametrize(
    ("fault", "remedy"),
    [
        (PermissionError(13, "Permission denied", "/tmp/torchinductor_user"), "TORCHINDUCTOR_CACHE_DIR"),
        (ImportError("/tmp/torchinductor_user/qt/cq.main.so: file too short"), "delete that file, which a compiler"),
    ],
)
def test_what_a_compiler_says_has_a_remedy(monkeypatch: pytest.MonkeyPatch, fault: Exception, remedy: str) -> None:
    """Also at the first call of torch.compile in a process, when torch makes its folder."""

    def refuse(*args: object, **how: object) -> None:
        raise fault

    monkeypatch.setattr(compiled.torch, "compile", refuse)
    with (
        pytest.raises(InputError, match=rf"cannot be compiled \({type(fault).__name__}: .*{remedy}.*compile=none"),
        compiling(crew_of(policy()).members, wanted=True),
    ):
        pass


def test_a_model_without_marked_layers_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("druthers.recompute.layers_of", lambda model: [])
    crew: Crew = crew_of(policy())
    with (
        pytest.raises(InputError, match="none of them can be compiled; use"),
        compiling(crew.members, wanted=True),
    ):
        pass


def test_selective_recompute_is_not_for_compiled_layers() -> None:
    with pytest.raises(InputError, match=r"train\.compile = 'layers'.*selective"):
        config.load(overrides=["train.recompute=selective", "train.compile=layers"])
    assert kinds_of(config.load(overrides=["train.compile=layers"]).train) == ("none", "layers")
    assert kinds_of(config.load().train) == ("none", "selective", "layers")
