"""The equations: published identities, conformance values computed by hand, and the sign of the gradient."""

from __future__ import annotations

import math
from dataclasses import fields
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from druthers.losses import LOSSES, NEEDS, Terms, free, ipo, lists, logratios, paired, sigmoid
from druthers.objectives import SECTIONS

LAW = settings(max_examples=30, deadline=None, derandomize=True)
LOGP = st.floats(-200, -1e-3)
BETA = st.floats(0.01, 5)
P = st.floats(0, 1)


def column(*values: float) -> Tensor:
    """One pair: chosen above rejected, shape (2, 1)."""
    return torch.tensor(values, dtype=torch.float64)[:, None]


POLICY, REFERENCE, LENGTH = column(-10, -13), column(-11, -12.5), column(8, 10)


def one(value: float) -> Tensor:
    """A tensor of one pair."""
    return torch.tensor([value], dtype=torch.float64)


def terms_of(length_CB: Tensor = LENGTH, **given: Any) -> Terms:
    """Terms of some pairs, plain ones unless said otherwise."""
    ones = torch.ones_like(length_CB[0])
    plain = {"p_B": ones, "margin_B": ones * 0, "weight_B": ones, "length_CB": length_CB, "mean_length": 8.0}
    return Terms(**(plain | given))


CONFORMANCE: list[tuple[str, dict[str, Any], dict[str, Any], float, float]] = [
    ("sigmoid", {"beta": 0.1}, {}, 0.620957, 0.693147),
    ("cdpo", {"beta": 0.1, "smoothing": 0.1}, {}, 0.635957, 0.693147),
    ("robust", {"beta": 0.1, "smoothing": 0.1}, {}, 0.602207, 0.693147),
    ("sigmoid", {"beta": 0.1}, {"p_B": one(0.8)}, 0.650957, 0.693147),
    ("geometric", {"beta": 0.1}, {"p_B": one(0.8)}, 0.649159, 0.693147),
    ("sigmoid", {"beta": 0.1}, {"margin_B": one(0.2)}, 0.718460, 0.798139),
    ("hinge", {"beta": 0.1}, {}, 0.85, 1),
    ("ipo-summed", {"beta": 0.1}, {}, 12.25, 25),
    ("ipo", {"beta": 0.1}, {}, 23.280625, 25),
    ("dpo-norm", {"beta": 5.0}, {}, 0.348445, 0.693147),
    ("exo", {"beta": 0.1, "smoothing": 1e-3}, {}, 2.505517, 2.761231),
    ("sigmoid", {"beta": 0.1, "divergence": "forward-kl"}, {}, 0.631154, 0.693147),
    ("sigmoid", {"beta": 0.1, "divergence": "js"}, {}, 0.660652, 0.693147),
    ("sigmoid", {"beta": 0.1, "divergence": "alpha", "divergence_alpha": 0.5}, {}, 0.627691, 0.693147),
    ("apo-zero", {"beta": 0.1}, {}, 0.962523, 1),
    ("apo-down", {"beta": 0.1}, {}, 0.987549, 1),
    ("discopop", {"beta": 0.1, "tau": 0.05}, {}, 0.849338, 0.846574),
    ("dpop", {"beta": 0.1, "penalty": 50.0}, {}, 0.620957, 0.693147),
    ("rdpo", {"beta": 0.1, "alpha": 0.01}, {}, 0.630258, 0.703197),
    ("cal", {"beta": 0.1}, {}, 36.451413, 50.693147),
    ("sppo", {"beta": 0.1}, {}, 36.25, 50),
    ("bco", {"beta": 0.1, "shift": "none"}, {}, 1.312856, 1.386294),
    ("bco", {"beta": 0.1, "shift": "mean"}, {}, 1.312700, 1.386294),
    ("nca", {"beta": 0.1}, {}, 1.350825, 1.386294),
    ("chi", {"beta": 0.1}, {}, 0.528778, 0.693147),
]


@pytest.mark.parametrize(("name", "knobs", "given_terms", "expected", "at_reference"), CONFORMANCE)
def test_conformance_values(
    name: str, knobs: dict[str, Any], given_terms: dict[str, Any], expected: float, at_reference: float
) -> None:
    """s = (-10, -13), f = (-11, -12.5), n = (8, 10), beta 0.1; and the value where the policy is the reference."""
    loss, terms = LOSSES[name](**knobs), terms_of(**given_terms)
    assert loss.of(POLICY, REFERENCE, terms).item() == pytest.approx(expected, abs=5e-7)
    assert loss.of(REFERENCE, REFERENCE, terms).item() == pytest.approx(at_reference, abs=5e-7)


@pytest.mark.parametrize(
    ("name", "knobs", "kl", "expected"),
    [("tdpo1", {"beta": 0.1}, (0.3, 0.6), 0.634946), ("tdpo2", {"beta": 0.1, "alpha": 0.5}, (0.3, 0.6), 0.627924)],
)
def test_conformance_values_of_token_level_dpo(
    name: str, knobs: dict[str, Any], kl: tuple[float, float], expected: float
) -> None:
    """Where policy and reference are one model there is no KL, and the loss is that of DPO."""
    loss = LOSSES[name](**knobs)
    assert loss.of(POLICY, REFERENCE, terms_of(divergence_CB=column(*kl))).item() == pytest.approx(expected, abs=5e-7)
    none = terms_of(divergence_CB=column(0, 0))
    assert loss.of(REFERENCE, REFERENCE, none).item() == pytest.approx(0.693147, abs=5e-7)
    assert torch.equal(loss.of(POLICY, REFERENCE, none), sigmoid(POLICY, REFERENCE, beta=0.1))


def test_conformance_values_without_a_reference_of_labels_and_of_lists() -> None:
    found = [
        free.simpo(POLICY, beta=2.0, gamma=1.0, length_CB=LENGTH),
        free.alphapo(POLICY, beta=2.0, gamma=1.0, alpha=0.25, length_CB=LENGTH),
        free.orpo(POLICY, length_CB=LENGTH),
        free.cpo(POLICY, beta=0.1),
        paired.dpop(column(-11.5, -13), REFERENCE, beta=0.1, penalty=50.0),
        lists.plackett_luce(column(1, 0.3, -0.5), column(0, 0, 0), beta=0.1),
        lists.plackett_luce(column(0, 0, 0), column(0, 0, 0), beta=0.1),
    ]
    expected = [1.241154, 1.214609, 0.659052, 0.554355, 2.578890, 1.681100, 1.791759]
    assert [value.item() for value in found] == pytest.approx(expected, abs=5e-7)


@pytest.mark.parametrize(
    ("label", "logratio", "expected"), [(1.0, 1.0, 0.480011), (0.0, -0.5, 0.482507), (1.0, 0.2, 0.5), (0.0, 0.2, 0.5)]
)
def test_conformance_values_of_kto(label: float, logratio: float, expected: float) -> None:
    """z0 = 0.2 comes from the mismatched answer in row 1; at it the loss is one half."""
    loss = LOSSES["kto"](beta=0.1, desirable=1.0, undesirable=1.0)
    found = loss.of(column(logratio, 0.2), column(0, 0), terms_of(p_B=one(label)))
    assert found.item() == pytest.approx(expected, abs=5e-7)


@LAW
@given(LOGP, LOGP, LOGP, LOGP, BETA, P)
def test_swapping_the_sides_is_the_same_as_one_minus_p(
    w: float, x: float, y: float, z: float, beta: float, p: float
) -> None:
    """loss(chosen, rejected, p) = loss(rejected, chosen, 1 - p), with the sign of a margin turned as well."""
    policy, reference = column(w, x), column(y, z)
    loss = sigmoid(policy, reference, beta=beta, p_B=one(p), margin_B=one(0.3))
    swapped = sigmoid(policy.flip(0), reference.flip(0), beta=beta, p_B=1 - one(p), margin_B=-one(0.3))
    assert loss.item() == pytest.approx(swapped.item(), rel=1e-12)


@LAW
@given(LOGP, LOGP, BETA, P)
def test_the_loss_is_log_two_where_policy_is_reference(chosen: float, rejected: float, beta: float, p: float) -> None:
    """Whatever p is, as long as no margin is asked for."""
    same = column(chosen, rejected)
    assert sigmoid(same, same, beta=beta, p_B=one(p)).item() == pytest.approx(math.log(2), abs=1e-15)


@LAW
@given(LOGP, LOGP, LOGP, LOGP, BETA)
def test_the_gradient_weighs_pairs_by_sigma_of_rejected_minus_chosen_reward(
    w: float, x: float, y: float, z: float, beta: float
) -> None:
    """d loss / d chosen = -beta s(reward rejected - reward chosen): large where the model is wrong."""
    policy, reference = column(w, x).requires_grad_(), column(y, z)
    sigmoid(policy, reference, beta=beta).sum().backward()  # type: ignore[no-untyped-call]
    reward = beta * (policy - reference).detach()
    weight = torch.sigmoid(reward[1] - reward[0]).item()
    assert policy.grad is not None
    assert policy.grad[0].item() == pytest.approx(-beta * weight, rel=1e-9)
    assert policy.grad[1].item() == pytest.approx(beta * weight, rel=1e-9)


@LAW
@given(LOGP, LOGP, LOGP, LOGP, BETA)
def test_p_one_without_a_margin_is_plain_dpo(w: float, x: float, y: float, z: float, beta: float) -> None:
    """The graded form contains equation 7."""
    policy, reference = column(w, x), column(y, z)
    graded = sigmoid(policy, reference, beta=beta, p_B=one(1), margin_B=one(0))
    assert torch.equal(graded, sigmoid(policy, reference, beta=beta))


@LAW
@given(BETA, P, st.floats(0, 2))
def test_the_soft_loss_is_least_where_the_gap_is_the_log_odds_of_p_plus_the_margin(
    beta: float, p: float, margin: float
) -> None:
    """d/dz vanishes at z - m = log(p / (1 - p))."""
    if not 0.01 < p < 0.99:
        return
    gap = (math.log(p / (1 - p)) + margin) / beta
    policy = column(gap, 0).requires_grad_()
    loss = sigmoid(policy, column(0, 0), beta=beta, p_B=one(p), margin_B=one(margin))
    loss.sum().backward()  # type: ignore[no-untyped-call]
    assert policy.grad is not None
    assert abs(policy.grad[0].item()) < 1e-12 * (1 + beta)


def test_an_extreme_gap_stays_finite() -> None:
    """log sigmoid must not be taken as log of sigmoid."""
    policy = column(-5000, -1).requires_grad_()
    loss = sigmoid(policy, column(-1, -5000), beta=1.0, p_B=one(0.9))
    loss.sum().backward()  # type: ignore[no-untyped-call]
    assert math.isfinite(loss.item())
    assert policy.grad is not None
    assert policy.grad.isfinite().all()


@LAW
@given(LOGP, LOGP, LOGP, LOGP, BETA, st.integers(1, 50), st.integers(1, 50))
def test_ipo_averages_each_side_over_its_own_length(
    w: float, x: float, y: float, z: float, beta: float, chosen: int, rejected: int
) -> None:
    """Averaged is summed on log-probs divided beforehand; with lengths of one the two agree."""
    policy, reference, length = column(w, x), column(y, z), column(chosen, rejected)
    averaged = ipo(policy, reference, beta=beta, length_CB=length)
    assert averaged.item() == pytest.approx(ipo(policy / length, reference / length, beta=beta).item(), rel=1e-9)
    single = ipo(policy, reference, beta=beta, length_CB=column(1, 1))
    assert torch.equal(single, ipo(policy, reference, beta=beta))


@pytest.mark.parametrize("shapes", [((2, 3), (2, 4)), ((3, 2), (3, 2)), ((2, 3), (3,))])
def test_shapes_are_checked(shapes: tuple[tuple[int, ...], tuple[int, ...]]) -> None:
    """No loss may broadcast a mistake away."""
    with pytest.raises(ValueError, match="shape"):
        logratios(torch.zeros(shapes[0]), torch.zeros(shapes[1]))


@pytest.mark.parametrize(
    ("name", "knobs", "field"),
    [
        ("ld", {"beta": 0.1, "alpha": 0.5}, "policy_head_CB"),
        ("samp", {"beta": 0.1}, "policy_head_CB"),
        ("tdpo1", {"beta": 0.1}, "divergence_CB"),
        ("tdpo2", {"beta": 0.1, "alpha": 0.5}, "divergence_CB"),
        ("unlikelihood", {"alpha": 0.5}, "unlikely_CB"),
        ("beta-dpo", {"beta": 0.1, "alpha": 0.6, "momentum": 0.9, "keep": 0.8}, "draw_B"),
        ("wpo", {"inner": {"name": "sigmoid", "beta": 0.1}}, "certainty_CB"),
    ],
)
def test_a_term_that_is_needed_and_missing_is_named(name: str, knobs: dict[str, Any], field: str) -> None:
    with pytest.raises(ValueError, match=f"the loss needs '.*{field}"):
        LOSSES[name](**knobs).of(POLICY, REFERENCE, terms_of())


def test_every_need_of_every_loss_has_a_field() -> None:
    made = [LOSSES[name](**section().model_dump(exclude={"name"})) for name, section in SECTIONS.items()]
    assert {need for loss in made for need in loss.needs} == set(NEEDS)
    assert {name for names in NEEDS.values() for name in names} <= {field.name for field in fields(Terms)}
