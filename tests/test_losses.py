"""The equations: published identities, conformance values computed by hand, and the sign of the gradient."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from druthers.losses import LOSSES, PairTerms, ipo, logratios, sigmoid

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


@pytest.mark.parametrize(
    ("found", "at_reference", "expected"),
    [
        (lambda s, f: sigmoid(s, f, beta=0.1), 0.693147, 0.620957),
        (lambda s, f: sigmoid(s, f, beta=0.1, p_B=one(0.9)), 0.693147, 0.635957),
        (lambda s, f: sigmoid(s, f, beta=0.1, p_B=one(0.8)), 0.693147, 0.650957),
        (lambda s, f: sigmoid(s, f, beta=0.1, margin_B=one(0.2)), 0.798139, 0.718460),
        (lambda s, f: ipo(s, f, beta=0.1), 25, 12.25),
        (lambda s, f: ipo(s, f, beta=0.1, length_CB=LENGTH), 25, 23.280625),
    ],
    ids=["sigmoid", "cdpo", "soft", "margin", "ipo summed", "ipo averaged"],
)
def test_conformance_values(found: object, at_reference: float, expected: float) -> None:
    """s = (-10, -13), f = (-11, -12.5), n = (8, 10), beta 0.1; and the value where the policy is the reference."""
    assert callable(found)
    assert found(POLICY, REFERENCE).item() == pytest.approx(expected, abs=5e-7)
    assert found(REFERENCE, REFERENCE).item() == pytest.approx(at_reference, abs=5e-7)


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


def test_the_dictionary_binds_settings_and_honours_the_terms() -> None:
    """`sigmoid` reads p and margin, `ipo` the lengths, and each says whether it honours grades."""
    terms = PairTerms(p_B=one(0.8), margin_B=one(0.0), length_CB=LENGTH)
    dpo, mean, total = (
        LOSSES["sigmoid"](beta=0.1),
        LOSSES["ipo"](beta=0.1, reduce="mean"),
        LOSSES["ipo"](beta=0.1, reduce="sum"),
    )
    assert dpo.of(POLICY, REFERENCE, terms).item() == pytest.approx(0.650957, abs=5e-7)
    assert mean.of(POLICY, REFERENCE, terms).item() == pytest.approx(23.280625, abs=5e-7)
    assert total.of(POLICY, REFERENCE, terms).item() == pytest.approx(12.25)
    assert (dpo.graded, mean.graded, total.graded) == (True, False, False)


@pytest.mark.parametrize("shapes", [((2, 3), (2, 4)), ((3, 2), (3, 2)), ((2, 3), (3,))])
def test_shapes_are_checked(shapes: tuple[tuple[int, ...], tuple[int, ...]]) -> None:
    """No loss may broadcast a mistake away."""
    with pytest.raises(ValueError, match="shape"):
        logratios(torch.zeros(shapes[0]), torch.zeros(shapes[1]))
