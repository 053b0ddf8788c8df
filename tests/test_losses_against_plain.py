"""Every loss against its second writing in `plain_losses.py`, and its gradient against central differences."""

from __future__ import annotations

import random
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from druthers.losses import LOSSES, Terms
from druthers.losses.lists import lipo, plackett_luce, s_dpo
from druthers.objectives import SECTIONS
from tests import plain_losses
from tests.plain_losses import PLAIN, Row

KNOBS: dict[str, list[dict[str, Any]]] = {
    "sigmoid": [{"beta": 0.1}, {"beta": 0.2, "divergence": "alpha", "divergence_alpha": 0.3}],
    "cdpo": [{"beta": 0.1, "smoothing": 0.1}, {"beta": 0.4, "smoothing": 0.3, "divergence": "js"}],
    "robust": [{"beta": 0.1, "smoothing": 0.1}, {"beta": 0.4, "smoothing": 0.3, "divergence": "forward-kl"}],
    "geometric": [{"beta": 0.3}],
    "hinge": [{"beta": 0.3}, {"beta": 0.3, "divergence": "js"}],
    "ipo": [{"beta": 0.1}, {"beta": 0.1, "divergence": "forward-kl"}],
    "ipo-summed": [{"beta": 0.2}, {"beta": 0.2, "divergence": "alpha"}],
    "dpo-norm": [{"beta": 5.0}, {"beta": 2.0, "divergence": "js"}],
    "exo": [{"beta": 0.1, "smoothing": 1e-3}, {"beta": 0.5, "smoothing": 0.1, "divergence": "alpha"}],
    "nca": [{"beta": 0.1}],
    "sppo": [{"beta": 0.01}],
    "apo-zero": [{"beta": 0.1}],
    "apo-down": [{"beta": 0.1}],
    "discopop": [{"beta": 0.1, "tau": 0.05}, {"beta": 0.1, "tau": 0.5, "divergence": "js"}],
    "dpop": [{"beta": 0.3, "penalty": 5.0}],
    "rdpo": [{"beta": 0.1, "alpha": 0.01}],
    "ld": [{"beta": 0.1, "alpha": 0.5}, {"beta": 0.1, "alpha": 0.25, "tail_of": "policy"}],
    "samp": [{"beta": 0.1}],
    "cal": [{"beta": 0.05}],
    "chi": [{"beta": 0.1}, {"beta": 0.1, "clip": 0.3}],
    "tdpo1": [{"beta": 0.1}],
    "tdpo2": [{"beta": 0.1, "alpha": 0.5}],
    "bco": [{"beta": 0.1}, {"beta": 0.1, "shift": "mean"}, {"beta": 0.1, "shift": "none"}],
    "aot": [{"beta": 0.2}, {"beta": 0.2, "smoothing": 0.1}],
    "aot-unpaired": [{"beta": 0.2}, {"beta": 0.2, "smoothing": 0.1}],
    "beta-dpo": [{"beta": 0.1, "alpha": 0.6, "momentum": 0.9, "keep": 0.6}],
    "drdpo": [{"beta": 0.3, "temperature": 0.5}],
    "simpo": [{"beta": 2.0, "gamma": 1.0}],
    "alphapo": [{"beta": 2.0, "gamma": 1.0, "alpha": 0.25}, {"beta": 2.0, "gamma": 0.5, "alpha": 0.0}],
    "cpo": [{"beta": 0.1, "nll_weight": 1.0}, {"beta": 0.1, "nll_weight": 0.5, "reduce": "sum"}],
    "orpo": [{"odds_weight": 0.1}, {"odds_weight": 0.5, "reduce": "per-token"}],
    "slic": [{"delta": 3.0, "nll_weight": 0.1}, {"delta": 1.0, "nll_weight": 0.5, "reduce": "per-sequence"}],
    "sft": [{}, {"reduce": "per-sequence"}, {"reduce": "sum"}],
    "unlikelihood": [{"alpha": 0.5}, {"alpha": 0.5, "form": "direct"}],
    "kto": [{"beta": 0.1, "desirable": 1.0, "undesirable": 1.3}],
    "bco-unpaired": [{"beta": 0.1}, {"beta": 0.1, "shift": "none"}],
    "apo-zero-unpaired": [{"beta": 0.1}],
    "wpo": [
        {"inner": {"name": "hinge", "beta": 0.1}},
        {"inner": {"name": "sigmoid", "beta": 0.1}, "most": 0.9},
        {"inner": {"name": "bco", "beta": 0.1}},
    ],
    "mixed": [
        {
            "parts": [
                {"coefficient": 0.8, "name": "sigmoid", "beta": 0.1},
                {"coefficient": 0.2, "name": "bco", "beta": 0.1},
                {"coefficient": 1.0, "name": "sft"},
            ]
        }
    ],
}
CASES = [(name, knobs) for name, sets in KNOBS.items() for knobs in sets]
NAMES = [f"{name}-{i}" for name, sets in KNOBS.items() for i in range(len(sets))]


def step_of(seed: int, *, pairs: int = 7) -> list[Row]:
    """Pairs as they come: other lengths, grades, weights 0 to 3, and everything a loss may ask for."""
    draw = random.Random(seed)

    def two(low: float, high: float) -> tuple[float, float]:
        return draw.uniform(low, high), draw.uniform(low, high)

    def one() -> Row:
        pi = two(-30, -5)
        ref = (pi[0] + draw.gauss(0, 2), pi[1] + draw.gauss(0, 2))
        heads = [two(-5, -1), two(-5, -1)]
        grades = {"p": draw.random(), "m": draw.uniform(-1, 1)}
        row = Row(*pi, *ref, n_w=draw.randint(4, 20), n_l=draw.randint(4, 20), w=draw.randint(0, 3), **grades)
        extras = {"pi_head": heads[0], "ref_head": heads[1], "kl": two(0, 1), "certainty": two(-1, 0.5)}
        return replace(row, unlikely=two(0, 5), draw=draw.random(), **extras)

    rows = [one() for _ in range(pairs)]
    return [*rows[:-1], replace(rows[-1], w=2)]


def column(values: list[Any]) -> Tensor:
    """Numbers to (B,), two of each to (2, B)."""
    return torch.tensor(values, dtype=torch.float64).t()


def tensors(step: list[Row]) -> tuple[Tensor, Tensor, Terms]:
    """What the package takes."""
    weight_B, length_CB = column([r.w for r in step]), column([(r.n_w, r.n_l) for r in step])
    terms = Terms(
        p_B=column([r.p for r in step]),
        margin_B=column([r.m for r in step]),
        weight_B=weight_B,
        length_CB=length_CB,
        mean_length=float((weight_B * length_CB[0]).sum() / weight_B.sum()),
        policy_head_CB=column([r.pi_head for r in step]),
        reference_head_CB=column([r.ref_head for r in step]),
        divergence_CB=column([r.kl for r in step]),
        certainty_CB=column([r.certainty for r in step]),
        unlikely_CB=column([r.unlikely for r in step]),
        draw_B=column([r.draw for r in step]),
    )
    return column([(r.pi_w, r.pi_l) for r in step]), column([(r.ref_w, r.ref_l) for r in step]), terms


def test_every_loss_is_written_twice_and_tried_here() -> None:
    assert set(LOSSES) == set(PLAIN) == set(KNOBS) == set(SECTIONS)


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize(("name", "knobs"), CASES, ids=NAMES)
def test_the_loss_of_every_pair_is_that_of_the_plain_writing(name: str, knobs: dict[str, Any], seed: int) -> None:
    """Pairs of weight 0 are not in the papers: their own value is not compared where it hangs on a rank."""
    step = step_of(seed)
    found = LOSSES[name](**knobs).of(*tensors(step)).tolist()
    expected = PLAIN[name](step, **knobs)
    for r, mine, theirs in zip(step, found, expected, strict=True):
        if r.w or "aot" not in name:
            assert mine == pytest.approx(theirs, rel=1e-9, abs=1e-9)


def moved(tensor: Tensor, place: tuple[int, ...], by: float) -> Tensor:
    other = tensor.clone()
    other[place] += by
    return other


FIXED = {"kto": 1}
"""Rows of the policy that the loss reads without a gradient."""


SUMMED = [(name, knobs) for name, knobs in CASES if name != "samp"]
"""Losses that read the summed log-probs; samp reads those of drawn tokens alone."""


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(("name", "knobs"), SUMMED, ids=[name for name in NAMES if not name.startswith("samp")])
def test_the_gradient_of_the_step_is_that_of_central_differences(name: str, knobs: dict[str, Any], seed: int) -> None:
    """Of `sum(w l) / sum(w)` by every log-prob; what a loss holds fixed (state, beta', z0) stays where it is."""
    loss = LOSSES[name](**knobs)
    policy, reference, terms = tensors(step_of(seed))
    if loss.follow is not None:
        terms = replace(terms, state=loss.follow(policy, reference, terms))
    if name == "beta-dpo":
        knobs = {**knobs, "alpha": 0.0}
        loss = LOSSES[name](**knobs)

    def objective(scores: Tensor) -> Tensor:
        return (terms.weight_B * loss.of(scores, reference, terms)).sum() / terms.weight_B.sum()

    leaf = policy.clone().requires_grad_()
    objective(leaf).backward()  # type: ignore[no-untyped-call]
    assert leaf.grad is not None
    grad = leaf.grad
    eps = 1e-5
    expected = torch.zeros_like(policy)
    for c in range(2):
        for b in range(policy.shape[1]):
            up, down = (objective(moved(policy, (c, b), by)) for by in (eps, -eps))
            expected[c, b] = (up - down) / (2 * eps)
    if name in FIXED:
        assert not grad[FIXED[name]].any()
        expected[FIXED[name]] = 0
    assert (grad - expected).norm() <= 1e-6 * expected.norm() + 1e-9


@pytest.mark.parametrize(
    ("name", "knobs", "term", "fixed"),
    [
        ("ld", {"beta": 0.1, "alpha": 0.5}, "policy_head_CB", None),
        ("samp", {"beta": 0.1}, "policy_head_CB", None),
        ("tdpo1", {"beta": 0.1}, "divergence_CB", None),
        ("tdpo2", {"beta": 0.1, "alpha": 0.5}, "divergence_CB", 0),
        ("unlikelihood", {"alpha": 0.5}, "unlikely_CB", None),
    ],
)
def test_the_gradient_flows_through_the_other_terms_of_the_policy(
    name: str, knobs: dict[str, Any], term: str, fixed: int | None
) -> None:
    """TDPO2 stops it at the KL of chosen."""
    loss = LOSSES[name](**knobs)
    policy, reference, terms = tensors(step_of(1))
    start = getattr(terms, term)

    def objective(values: Tensor) -> Tensor:
        return loss.of(policy, reference, replace(terms, **{term: values})).sum()

    leaf = start.clone().requires_grad_()
    objective(leaf).backward()  # type: ignore[no-untyped-call]
    for c in range(2):
        up, down = (objective(moved(start, (c, 2), by)) for by in (1e-5, -1e-5))
        expected = 0.0 if c == fixed else ((up - down) / 2e-5).item()
        assert leaf.grad[c, 2].item() == pytest.approx(expected, rel=1e-6, abs=1e-9)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("k", [2, 3, 5])
def test_lists_are_those_of_the_plain_writing(k: int, seed: int) -> None:
    """Also where some prompts have fewer responses."""
    torch.manual_seed(seed)
    policy, reference = torch.randn(2, k, 4, dtype=torch.float64) * 3
    gains = torch.randint(0, 4, (k, 4)).double()
    present = torch.ones(k, 4, dtype=torch.bool)
    present[k - 1, 0] = k == 2
    policy.requires_grad_()
    found = [
        plackett_luce(policy, reference, beta=0.5, present_KB=present),
        s_dpo(policy, reference, beta=0.5, present_KB=present),
        lipo(policy, reference, beta=0.5, gain_KB=gains, present_KB=present),
    ]
    for b in range(4):
        x = [0.5 * (policy[i, b] - reference[i, b]).item() for i in range(k) if present[i, b]]
        gain = [gains[i, b].item() for i in range(k) if present[i, b]]
        expected = [plain_losses.plackett_luce(x), plain_losses.s_dpo(x), plain_losses.lipo(x, gain)]
        assert [each[b].item() for each in found] == pytest.approx(expected, rel=1e-9)
    sum(found).sum().backward()  # type: ignore[union-attr]
    assert policy.grad is not None
    assert policy.grad.isfinite().all()
    assert not policy.grad[~present].any()
