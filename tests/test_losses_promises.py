"""What each paper promises of its loss: where it is least, what it equals in a limit, what it does not depend on."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable
from dataclasses import replace
from itertools import permutations
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from druthers.losses import LOSSES, Loss, Part, Terms, coupled, divergences, lists, mixed, paired, unpaired, weighting
from druthers.losses.terms import weighted_mean
from druthers.objectives import SECTIONS, Section
from tests.test_losses_against_plain import step_of, tensors

LAW = settings(max_examples=25, deadline=None, derandomize=True)
SEED = st.integers(0, 10**6)
BETA = st.floats(0.02, 2)
GAP = st.floats(-20, 20)


def pair(chosen: float, rejected: float) -> tuple[Tensor, Tensor]:
    """Log-ratios of one pair, against a reference of zeros."""
    return torch.tensor([[chosen], [rejected]], dtype=torch.float64), torch.zeros(2, 1, dtype=torch.float64)


def bound(section: Section) -> Loss:
    """The loss of a section."""
    return LOSSES[section.model_dump()["name"]](**{k: v for k, v in section.model_dump().items() if k != "name"})


def slope(loss: Callable[[Tensor], Tensor], at: Tensor) -> Tensor:
    """The gradient of a loss of one pair."""
    leaf = at.clone().requires_grad_()
    loss(leaf).sum().backward()  # type: ignore[no-untyped-call]
    assert leaf.grad is not None
    return leaf.grad


@LAW
@given(GAP, BETA, st.floats(0, 0.45))
def test_robust_is_dpo_on_the_true_labels_when_labels_are_flipped(gap: float, beta: float, e: float) -> None:
    """(1 - e) l(pair) + e l(pair turned round) = DPO(pair): unbiased."""
    policy, reference = pair(gap, 0)
    kept = paired.robust(policy, reference, beta=beta, smoothing=e)
    flipped = paired.robust(policy.flip(0), reference, beta=beta, smoothing=e)
    right = paired.sigmoid(policy, reference, beta=beta)
    assert ((1 - e) * kept + e * flipped).item() == pytest.approx(right.item(), rel=1e-9, abs=1e-9)


@LAW
@given(GAP, BETA, st.floats(0.01, 0.45))
def test_exo_is_zero_at_the_label_and_above_it_elsewhere(gap: float, beta: float, e: float) -> None:
    """A KL: 0 where s(z) = 1 - e, as conservative DPO is least there; the two are KLs in opposite directions."""
    best = math.log((1 - e) / e) / beta
    assert paired.exo(*pair(best, 0), beta=beta, smoothing=e).item() == pytest.approx(0, abs=1e-9)
    assert paired.exo(*pair(gap, 0), beta=beta, smoothing=e).item() >= -1e-12
    at = slope(lambda x: paired.cdpo(x, pair(0, 0)[1], beta=beta, smoothing=e), pair(best, 0)[0])
    assert at.abs().max().item() < 1e-9


@LAW
@given(BETA, st.floats(-5, 5))
def test_ipo_is_zero_at_its_gap_and_grows_on_both_sides(beta: float, off: float) -> None:
    """1 / (2 beta), whatever the labels' strength: it does not run away on sure pairs."""
    at = 1 / (2 * beta)
    assert paired.ipo(*pair(at, 0), beta=beta).item() == pytest.approx(0, abs=1e-20)
    assert paired.ipo(*pair(at + off, 0), beta=beta).item() == pytest.approx(off**2)


@LAW
@given(BETA, st.floats(0, 1))
def test_sppo_is_zero_at_the_probability_to_win(beta: float, p: float) -> None:
    """Both log-ratios at plus and minus (P - 1/2) / beta; a tie leaves the policy at the reference."""
    aim = (p - 0.5) / beta
    p_B = torch.tensor([p], dtype=torch.float64)
    assert paired.sppo(*pair(aim, -aim), beta=beta, p_B=p_B).item() == pytest.approx(0, abs=1e-20)


@LAW
@given(BETA)
def test_nca_keeps_chosen_where_a_classifier_of_three_draws_would(beta: float) -> None:
    """d/da is 0 at s(beta a) = 2/3 and d/db is below 0 nowhere: rejected falls, chosen stops."""
    stop = math.log(2) / beta
    found = slope(lambda x: paired.nca(x, pair(0, 0)[1], beta=beta), pair(stop, 0)[0])
    assert found[0].item() == pytest.approx(0, abs=1e-12)
    assert found[1].item() > 0


@LAW
@given(BETA, st.floats(0.001, 2))
def test_cal_calibrates_rewards_to_a_half(beta: float, off: float) -> None:
    """The squares vanish at beta a = 1/2 and beta b = -1/2."""
    at = 1 / (2 * beta)
    here, there = paired.cal(*pair(at, -at), beta=beta), paired.cal(*pair(at - off, -at + off), beta=beta)
    assert here.item() == pytest.approx(math.log1p(math.exp(-2 * at)))
    assert there.item() > here.item()


@LAW
@given(GAP, BETA)
def test_a_tie_teaches_geometric_dpo_nothing_and_pulls_the_core_to_zero(gap: float, beta: float) -> None:
    policy, reference = pair(gap, 0)
    half = torch.tensor([0.5], dtype=torch.float64)
    assert not slope(lambda x: paired.geometric(x, reference, beta=beta, p_B=half), policy).any()
    core = slope(lambda x: paired.sigmoid(x, reference, beta=beta, p_B=half), policy)
    assert gap * core[0].item() >= 0


@LAW
@given(GAP, GAP, BETA)
def test_apo_moves_each_side_as_its_name_says(a: float, b: float, beta: float) -> None:
    """Zero: chosen up, rejected down. Down: with both at the reference, both down, rejected more."""
    policy, reference = pair(a, b)
    zero = slope(lambda x: paired.apo_zero(x, reference, beta=beta), policy)
    assert zero[0].item() <= 0 <= zero[1].item()
    down = slope(lambda x: paired.apo_down(x, reference, beta=beta), pair(0, 0)[0])
    assert down[0].item() == pytest.approx(0, abs=1e-15)
    assert down[1].item() > 0
    far = slope(lambda x: paired.apo_down(x, reference, beta=beta), pair(0, -5 / beta)[0])
    assert far[0].item() > 0


@LAW
@given(st.floats(-3, -0.01), BETA)
def test_dpop_pushes_chosen_back_to_the_reference(a: float, beta: float) -> None:
    """Where chosen fell below the reference its pull is (1 + lambda) times that of rejected; above, DPO."""
    found = slope(lambda x: paired.dpop(x, pair(0, 0)[1], beta=beta, penalty=5.0), pair(a, -1)[0])
    assert -found[0].item() / found[1].item() == pytest.approx(6)
    above = pair(-a, -1)
    assert torch.equal(paired.dpop(*above, beta=beta, penalty=5.0), paired.sigmoid(*above, beta=beta))


@LAW
@given(GAP, BETA, st.integers(1, 100), st.integers(1, 100))
def test_length_prices_vanish_where_lengths_are_alike(gap: float, beta: float, n: int, m: int) -> None:
    """R-DPO at equal lengths, LD-DPO at alpha 1, length-normalised DPO at one token: each is DPO."""
    policy, reference = pair(gap, 0.5)
    right = paired.sigmoid(policy, reference, beta=beta)
    same = torch.full((2, 1), float(n), dtype=torch.float64)
    assert torch.equal(paired.rdpo(policy, reference, beta=beta, alpha=0.3, length_CB=same), right)
    assert torch.allclose(paired.desensitized(policy, policy * m, alpha=1.0), policy, rtol=1e-9)
    assert torch.equal(paired.dpo_norm(policy, reference, beta=beta, length_CB=torch.ones_like(same)), right)


@pytest.mark.parametrize(
    "name", ["sigmoid", "cdpo", "robust", "hinge", "ipo", "ipo-summed", "exo", "discopop", "dpo-norm"]
)
def test_the_reverse_kl_is_no_change_and_alpha_tends_to_it(name: str) -> None:
    """alpha -> 1 is the reverse KL, alpha = 0 the forward one; both at every loss that has divergences."""
    policy, reference, terms = tensors(step_of(3))
    knobs = {k: v for k, v in SECTIONS[name]().model_dump().items() if k not in ("name", "divergence_alpha")}

    def of(divergence: str, **more: float) -> Tensor:
        return LOSSES[name](**(knobs | {"divergence": divergence} | more)).of(policy, reference, terms)

    plain = LOSSES[name](**{k: v for k, v in knobs.items() if k != "divergence"}).of(policy, reference, terms)
    assert torch.equal(of("reverse-kl"), plain)
    assert torch.equal(of("alpha", divergence_alpha=1.0), plain)
    assert torch.allclose(of("alpha", divergence_alpha=1 - 1e-6), plain, rtol=1e-3)
    assert torch.allclose(of("alpha", divergence_alpha=0.0), of("forward-kl"), rtol=1e-9)


def test_divergences_stand_only_where_the_normaliser_cancels() -> None:
    """On losses of a difference; those that look at one side alone have no such setting, so it is refused."""
    have = {name for name, section in SECTIONS.items() if "divergence" in section.model_fields}
    assert have == {"sigmoid", "cdpo", "robust", "hinge", "ipo", "ipo-summed", "exo", "discopop", "dpo-norm"}
    with pytest.raises(TypeError):
        LOSSES["nca"](beta=0.1, divergence="js")
    with pytest.raises(ValueError, match=r"divergence_alpha = 0\.5 is read by divergence = 'alpha' alone"):
        LOSSES["sigmoid"](beta=0.1, divergence="js", divergence_alpha=0.5)
    with pytest.raises(ValueError, match="is not one of"):
        LOSSES["sigmoid"](beta=0.1, divergence="tv")


@pytest.mark.parametrize("x", [-1e4, -200.0, 0.0, 200.0, 1e4])
def test_transforms_stay_finite(x: float) -> None:
    """A policy that has left an answer altogether."""
    at = torch.tensor(x, dtype=torch.float64, requires_grad=True)
    for u in (divergences.forward_kl, divergences.js, lambda v: divergences.alpha_divergence(v, alpha=0.3), paired.phi):
        value = u(at)
        assert math.isfinite(value.item())
        assert torch.autograd.grad(value, at)[0].isfinite().all()


@pytest.mark.parametrize("name", list(SECTIONS))
def test_losses_of_very_wrong_and_very_right_pairs_stay_finite(name: str) -> None:
    """Log-probs of thousands of nats, as long responses have, with their gradients."""
    policy, reference, terms = tensors(step_of(5))
    for scale in (-300.0, 300.0):
        leaf = (policy + scale * torch.tensor([[1.0], [-1.0]], dtype=torch.float64)).clamp(max=-1e-3).requires_grad_()
        given_terms = replace(terms, length_CB=terms.length_CB * 10, policy_head_CB=leaf * 0.5)
        value = bound(SECTIONS[name]()).of(leaf, reference, given_terms)
        assert value.isfinite().all(), (name, scale)
        value.sum().backward()  # type: ignore[no-untyped-call]
        assert leaf.grad is not None
        assert leaf.grad.isfinite().all(), (name, scale)


SHIFTED = [
    n
    for n in SECTIONS
    if n not in ("simpo", "alphapo", "cpo", "orpo", "slic", "sft", "unlikelihood", "mixed", "ld", "samp")
]


@pytest.mark.parametrize("name", SHIFTED)
def test_what_depends_on_the_prompt_alone_cancels(name: str) -> None:
    """The same constant on policy and reference, of any size, changes no loss that has a reference."""
    policy, reference, terms = tensors(step_of(11))
    loss, by = bound(SECTIONS[name]()), torch.randn(2, policy.shape[1], dtype=torch.float64)
    if name == "aot":
        by[1] = by[0]
    moved = loss.of(policy + by, reference + by, terms)
    assert torch.allclose(moved, loss.of(policy, reference, terms), rtol=1e-8, atol=1e-8)


DEFAULT = [name for name in SECTIONS if bound(SECTIONS[name]()).coupled]


def shuffled(policy: Tensor, reference: Tensor, terms: Terms, order: Tensor) -> tuple[Tensor, Tensor, Terms]:
    """The step with its pairs in another order."""
    of_B = {n: getattr(terms, n)[order] for n in ("p_B", "margin_B", "weight_B", "draw_B")}
    of_CB = ("length_CB", "policy_head_CB", "reference_head_CB", "divergence_CB", "certainty_CB", "unlikely_CB")
    return (
        policy[:, order],
        reference[:, order],
        replace(terms, **of_B, **{n: getattr(terms, n)[:, order] for n in of_CB}),
    )


@LAW
@given(SEED, st.sampled_from(DEFAULT))
def test_the_order_of_the_pairs_of_a_step_does_not_matter(seed: int, name: str) -> None:
    """Each pair keeps its loss, whatever stands beside it."""
    step = tensors(step_of(seed))
    order = torch.randperm(step[0].shape[1], generator=torch.Generator().manual_seed(seed))
    loss = bound(SECTIONS[name]())
    assert torch.allclose(loss.of(*shuffled(*step, order)), loss.of(*step)[order], rtol=1e-9, atol=1e-12)


@LAW
@given(SEED, st.sampled_from(DEFAULT))
def test_a_pair_of_weight_zero_does_not_exist_for_the_others(seed: int, name: str) -> None:
    """With it or without it, the others' losses are the same."""
    policy, reference, terms = tensors(step_of(seed))
    there = torch.ones(policy.shape[1], dtype=torch.bool)
    there[2] = False
    terms = replace(terms, weight_B=torch.where(there, terms.weight_B.clamp(min=1), 0.0))
    loss, order = bound(SECTIONS[name]()), torch.arange(policy.shape[1])[there]
    alone = loss.of(*shuffled(policy, reference, terms, order))
    assert torch.allclose(loss.of(policy, reference, terms)[there], alone, rtol=1e-9, atol=1e-12)


@LAW
@given(SEED, st.sampled_from([n for n in SECTIONS if n not in DEFAULT]))
def test_an_uncoupled_loss_is_the_same_alone(seed: int, name: str) -> None:
    """So it may be computed in any micro-batches."""
    step = tensors(step_of(seed))
    loss = bound(SECTIONS[name]())
    whole = loss.of(*step)
    for i in range(whole.numel()):
        alone = loss.of(*shuffled(*step, torch.tensor([i])))
        assert alone.item() == pytest.approx(whole[i].item(), rel=1e-12, abs=1e-12)


@LAW
@given(SEED)
def test_aot_sees_how_far_the_policy_dominates_at_every_quantile(seed: int) -> None:
    """Sorted against sorted: a policy ahead at all quantiles is ahead by as much, in any order of pairs."""
    generator = torch.Generator().manual_seed(seed)
    reference = torch.randn(2, 6, generator=generator, dtype=torch.float64)
    ahead = reference[:, torch.randperm(6, generator=generator)] + torch.tensor([[0.2], [-0.2]])
    found = coupled.aot(ahead, reference, beta=1.0, smoothing=0.0, weight_B=torch.ones(6, dtype=torch.float64))
    assert torch.allclose(found, -torch.nn.functional.logsigmoid(torch.full((6,), 0.4, dtype=torch.float64)))


@LAW
@given(SEED, st.sampled_from(["aot", "aot-unpaired"]))
def test_no_other_matching_of_the_same_gaps_has_a_smaller_loss(seed: int, name: str) -> None:
    """Sorting is the optimal transport for a convex cost of the difference."""
    policy, reference, terms = tensors(step_of(seed))
    terms = replace(terms, weight_B=torch.ones_like(terms.weight_B))
    left, right = (policy[0] - policy[1], reference[0] - reference[1]) if name == "aot" else policy - reference
    other = right[torch.randperm(right.numel(), generator=torch.Generator().manual_seed(seed))]
    best = LOSSES[name](beta=0.3).of(policy, reference, terms).mean()
    assert best <= torch.nn.functional.softplus(-0.3 * (left - other)).mean() + 1e-12


def test_dr_dpo_is_the_mean_for_a_large_temperature_and_the_least_for_a_small_one() -> None:
    loss, weight = torch.tensor([0.2, 1.0, 3.0], dtype=torch.float64), torch.ones(3, dtype=torch.float64)
    assert coupled.drdpo(loss, temperature=1e7, weight_B=weight).mean().item() == pytest.approx(1.4, rel=1e-6)
    assert coupled.drdpo(loss, temperature=1e-3, weight_B=weight).mean().item() == pytest.approx(0.2, abs=0.002)


@LAW
@given(SEED, st.floats(0.1, 5))
def test_dr_dpo_trusts_small_losses_more_and_has_the_gradient_of_its_objective(seed: int, temperature: float) -> None:
    """d objective / d l_i = softmax(-l / b) (weighted), of sum 1."""
    loss = torch.rand(5, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) * 3
    weight = torch.tensor([1.0, 2.0, 0.0, 1.0, 3.0], dtype=torch.float64)
    leaf = loss.clone().requires_grad_()
    weighted_mean(coupled.drdpo(leaf, temperature=temperature, weight_B=weight), weight).backward()  # type: ignore[no-untyped-call]
    right = torch.softmax(-loss / temperature + weight.log(), dim=0)
    assert leaf.grad is not None
    assert torch.allclose(leaf.grad, right, atol=1e-12)


def test_bco_follows_the_mean_reward_and_takes_it_from_its_state() -> None:
    """The first step initialises; 0.9 of the past afterwards; 'mean' is that of all steps; `of` reads the state."""
    policy, reference, terms = tensors(step_of(2))
    moving, mean = LOSSES["bco"](beta=0.1), LOSSES["bco"](beta=0.1, shift="mean")
    assert moving.follow is not None
    assert mean.follow is not None
    now = coupled.mean_reward(policy, reference, beta=0.1, weight_B=terms.weight_B)
    first = moving.follow(policy, reference, terms)
    assert first["mean"] == now
    second = moving.follow(policy + 1, reference, replace(terms, state=first))
    assert second["mean"] == pytest.approx(now + 0.1 * 0.1)
    halfway = mean.follow(policy + 1, reference, replace(terms, state=mean.follow(policy, reference, terms)))
    assert halfway["mean"] == pytest.approx(now + 0.05)
    given_state = moving.of(policy, reference, replace(terms, state={"mean": 0.3, "steps": 5.0}))
    assert torch.equal(given_state, coupled.bco(policy, reference, beta=0.1, shift=0.3))
    assert torch.equal(moving.of(policy, reference, terms), moving.of(policy, reference, replace(terms, state=first)))


@LAW
@given(GAP, BETA, st.floats(-2, 2))
def test_bco_bounds_dpo_from_above_for_every_shift(gap: float, beta: float, shift: float) -> None:
    """-log s(x - d) - log s(d - y) >= -log s(x - y): the paper's theorem."""
    policy, reference = pair(gap, gap / 3)
    bound_above = coupled.bco(policy, reference, beta=beta, shift=shift).item()
    assert bound_above >= paired.sigmoid(policy, reference, beta=beta).item() - 1e-12


def test_beta_dpo_keeps_its_share_by_the_density_and_scales_the_mean() -> None:
    """The objective is the mean over the pairs kept; a far outlier is the first to go."""
    policy, reference, terms = tensors(step_of(4))
    policy[0, 0] += 500
    terms = replace(terms, weight_B=torch.ones_like(terms.weight_B))
    loss = LOSSES["beta-dpo"](beta=0.1, alpha=0.0, momentum=0.9, keep=0.8)
    found = loss.of(policy, reference, replace(terms, state={"mean": 0.0, "deviation": 2.0, "steps": 3.0}))
    kept = found != 0
    assert kept.sum() == 5
    assert not kept[0]
    assert found.mean().item() == pytest.approx(paired.sigmoid(policy, reference, beta=0.1)[kept].mean().item())


def test_beta_dpo_draws_by_the_density() -> None:
    """Of two pairs one is kept, with probabilities in the ratio of their densities: exp(-1/2) to 1."""
    draw = torch.rand(2, 20_000, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    h, weight = torch.tensor([1.0, 0.0], dtype=torch.float64), torch.ones(2, dtype=torch.float64)
    first = sum(
        int(coupled.kept(h, mean=0.0, deviation=1.0, share=0.5, draw_B=draw[:, i], weight_B=weight)[0])
        for i in range(2_000)
    )
    expected = math.exp(-0.5) / (1 + math.exp(-0.5))
    assert abs(first / 2_000 - expected) < 4 * math.sqrt(expected * (1 - expected) / 2_000)


def test_beta_dpo_follows_a_larger_gap_with_a_larger_beta_and_never_below_its_floor() -> None:
    policy, reference = pair(2.0, 0.0)
    everything = {"kept_B": torch.tensor([True]), "weight_B": torch.ones(1, dtype=torch.float64)}

    def beta_of(mean: float) -> float:
        value = coupled.beta_dpo(policy, reference, beta=0.1, alpha=0.6, mean=mean, **everything)
        return -math.log(math.expm1(value.item())) / 2.0

    assert beta_of(1.0) == pytest.approx(0.16)
    assert beta_of(2.0) == pytest.approx(0.1)
    assert beta_of(100.0) == pytest.approx(1e-3)


@LAW
@given(SEED, BETA)
def test_a_list_of_two_is_a_pair(seed: int, beta: float) -> None:
    """Plackett-Luce and S-DPO of K = 2 are DPO, LiPO with gains 1 and 0 a multiple of it."""
    policy, reference, _ = tensors(step_of(seed))
    right = paired.sigmoid(policy, reference, beta=beta)
    assert torch.allclose(lists.plackett_luce(policy, reference, beta=beta), right, rtol=1e-9)
    assert torch.allclose(lists.s_dpo(policy, reference, beta=beta), right, rtol=1e-9)
    gains = torch.zeros_like(policy)
    gains[0] = 1
    multiple = 1 / math.log(2) - 1 / math.log(3)
    assert torch.allclose(lists.lipo(policy, reference, beta=beta, gain_KB=gains), multiple * right, rtol=1e-9)


def test_plackett_luce_gives_probabilities_of_all_orders_that_sum_to_one() -> None:
    x = torch.tensor([1.0, 0.3, -0.5, 2.0], dtype=torch.float64)
    total = sum(
        math.exp(-lists.plackett_luce(x[list(o), None], torch.zeros(4, 1, dtype=torch.float64), beta=1.0).item())
        for o in permutations(range(4))
    )
    assert total == pytest.approx(1)


@LAW
@given(SEED, st.floats(0.1, 3))
def test_kto_prefers_good_up_and_bad_down_from_its_reference_point(seed: int, beta: float) -> None:
    """The pull is largest at z0, and equally small far above and far below it; z0 itself is pulled by nothing."""
    policy, reference, terms = tensors(step_of(seed))
    labels = (terms.p_B > 0.5).double()
    loss = LOSSES["kto"](beta=beta, desirable=1.0, undesirable=1.0)
    found = slope(lambda x: loss.of(x, reference, replace(terms, p_B=labels)), policy)
    assert (found[0][labels == 1] <= 0).all()
    assert (found[0][labels == 0] >= 0).all()
    assert not found[1].any()
    z0 = unpaired.reference_point(policy, reference, weight_B=terms.weight_B)
    assert z0 >= 0
    near, far = (
        slope(
            lambda x, at=at: unpaired.kto(
                x, torch.zeros_like(x), beta=beta, desirable=1.0, undesirable=1.0, origin=z0, label_B=torch.ones(1)
            ),
            torch.stack([z0 + at, z0])[:, None],
        )[0].abs()
        for at in (0.0, 5.0)
    )
    assert near > far


@pytest.mark.parametrize("label", [0.0, 1.0])
@pytest.mark.parametrize("name", ["kto", "bco-unpaired", "apo-zero-unpaired"])
def test_steps_of_one_class_alone_are_losses_too(name: str, label: float) -> None:
    policy, reference, terms = tensors(step_of(8))
    alike, loss = replace(terms, p_B=torch.full_like(terms.p_B, label)), bound(SECTIONS[name]())
    assert slope(lambda x: loss.of(x, reference, alike), policy)[0].all()


def test_the_halves_of_apo_zero_are_the_whole() -> None:
    policy, reference, _ = tensors(step_of(8))
    whole = paired.apo_zero(policy, reference, beta=0.1)
    ones = torch.ones_like(whole)
    good = unpaired.apo_zero_unpaired(policy, reference, beta=0.1, label_B=ones)
    bad = unpaired.apo_zero_unpaired(policy.flip(0), reference.flip(0), beta=0.1, label_B=ones * 0)
    assert torch.allclose(good + bad, whole)


def test_wpo_weighs_a_uniform_policy_by_one_and_its_weight_has_no_gradient() -> None:
    """log(1/V) - log(V (1/V)^2) = 0 for any V: the pair counts fully, and the loss is DPO's."""
    policy, reference, terms = tensors(step_of(6))
    loss = LOSSES["wpo"](inner={"name": "sigmoid", "beta": 0.1})
    uniform = replace(terms, certainty_CB=torch.zeros_like(policy))
    assert torch.equal(loss.of(policy, reference, uniform), LOSSES["sigmoid"](beta=0.1).of(policy, reference, terms))
    certainty = torch.zeros_like(policy).requires_grad_()
    assert not weighting.wpo_weight(certainty).requires_grad
    for name in ("aot", "aot-unpaired", "beta-dpo", "drdpo", "kto"):
        with pytest.raises(ValueError, match="WPO weighs pairs"):
            weighting.weighted(bound(SECTIONS[name]()))


@LAW
@given(SEED)
def test_per_token_likelihood_is_that_of_the_step_however_it_is_cut(seed: int) -> None:
    """sum(w l) / sum(w) = nats of all chosen tokens / all chosen tokens, also when the parts are summed apart."""
    policy, reference, terms = tensors(step_of(seed))
    loss = LOSSES["sft"]()
    parts = [loss.of(*shuffled(policy, reference, terms, some)) for some in torch.arange(7).split(3)]
    objective = weighted_mean(torch.cat(parts), terms.weight_B)
    weight = terms.weight_B
    right = -(weight * policy[0]).sum() / (weight * terms.length_CB[0]).sum()
    assert objective.item() == pytest.approx(right.item(), rel=1e-12)


def test_a_sum_joins_what_its_parts_need_and_remember() -> None:
    """Grades are honoured when every part that compares honours them; sft compares nothing."""
    mpo = bound(SECTIONS["mixed"]())
    assert (mpo.p, mpo.margin, mpo.coupled, mpo.reference, mpo.needs) == (False, False, True, True, frozenset())
    policy, reference, terms = tensors(step_of(9))
    assert mpo.follow is not None
    state = mpo.follow(policy, reference, terms)
    assert set(state) == {"bco.mean", "bco.steps"}
    parts = [LOSSES["sigmoid"](beta=0.1), LOSSES["bco"](beta=0.1), LOSSES["sft"]()]
    own = {"mean": state["bco.mean"], "steps": 1.0}
    values = [part.of(policy, reference, replace(terms, state=own)) for part in parts]
    right = 0.8 * values[0] + 0.2 * values[1] + values[2]
    assert torch.allclose(mpo.of(policy, reference, replace(terms, state=state)), right, rtol=1e-12)
    rpo = mixed([Part("sigmoid", 1.0, LOSSES["sigmoid"](beta=0.1)), Part("sft", 1.0, LOSSES["sft"]())])
    assert (rpo.p, rpo.margin, rpo.coupled, rpo.follow) == (True, True, False, None)
    assert not mixed([Part("sft", 1.0, LOSSES["sft"]())]).p


@pytest.mark.parametrize(
    ("names", "sentence"),
    [
        ([], "one part or more"),
        (["sigmoid", "sigmoid"], "each of another name"),
        (["kto", "sigmoid"], "read different rows"),
        (["ld", "samp"], "different tokens"),
    ],
)
def test_sums_that_cannot_be_are_refused(names: list[str], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        mixed([Part(name, 1.0, bound(SECTIONS[name]())) for name in names])


@LAW
@given(SEED, st.floats(0.001, 1))
def test_group_weights_stay_a_distribution_and_rise_for_the_worst_group(seed: int, eta: float) -> None:
    """Equal losses leave q as it is; absent groups keep their relation; the objective is sum q L over the groups."""
    generator = torch.Generator().manual_seed(seed)
    loss, weight = torch.rand(8, generator=generator, dtype=torch.float64), torch.ones(8, dtype=torch.float64)
    group = torch.tensor([0, 0, 0, 1, 1, 2, 2, 2])
    q = torch.softmax(torch.randn(4, generator=generator, dtype=torch.float64), dim=0)
    found, present = weighting.group_losses(loss, weight_B=weight, group_B=group, count=4)
    assert present.tolist() == [True, True, True, False]
    after = weighting.robust_q(q, found, eta=eta, present_G=present)
    assert after.sum().item() == pytest.approx(1)
    worst = int(found.argmax())
    assert (after / q).argmax() == worst
    same = weighting.robust_q(q, torch.full_like(q, 0.7), eta=eta, present_G=torch.ones(4, dtype=torch.bool))
    assert torch.allclose(same, q)
    scaled = weighting.robust_weight(after, weight_B=weight, group_B=group)
    objective = weighted_mean(loss, scaled)
    assert objective.item() == pytest.approx(((after * found)[:3].sum() / after[:3].sum()).item())


def test_group_weights_take_the_size_of_the_groups_into_account_when_asked() -> None:
    """N / N_g: half as many pairs, twice the step."""
    q, loss = torch.tensor([0.5, 0.5], dtype=torch.float64), torch.tensor([1.0, 1.0], dtype=torch.float64)
    both = torch.tensor([True, True])
    importance = torch.tensor([1.5, 3.0], dtype=torch.float64)
    after = weighting.robust_q(q, loss, eta=0.1, present_G=both, importance_G=importance)
    assert (after[1] / after[0]).item() == pytest.approx(math.exp(0.1 * 1.5))


KNOWN: dict[str, Any] = {name: section() for name, section in SECTIONS.items()}


@pytest.mark.parametrize("name", list(KNOWN))
def test_a_dumped_section_makes_its_loss(name: str) -> None:
    """Every knob of the settings is a keyword of the factory, and the other way round."""
    factory = set(inspect.signature(LOSSES[name]).parameters)
    assert factory == set(SECTIONS[name].model_fields) - {"name"}
    assert isinstance(bound(KNOWN[name]), Loss)
