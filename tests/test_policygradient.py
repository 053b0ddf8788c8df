"""The equations of the online methods: by hand, against a plain implementation, and by their gradients."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from druthers import policygradient as paper

LAW = settings(max_examples=40, deadline=None, derandomize=True)
LENGTHS = st.lists(st.integers(1, 6), min_size=1, max_size=5)


def drawn(count: int, seed: int) -> Tensor:
    return torch.randn(count, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def answer_by_answer(reward: list[float], value: list[float], gamma: float, lam: float) -> list[float]:
    """Advantages of one answer straight from the sum: every pair of places, no recursion."""
    after = [*value[1:], 0.0]
    delta = [r + gamma * v1 - v for r, v1, v in zip(reward, after, value, strict=True)]
    return [sum((gamma * lam) ** (k - t) * delta[k] for k in range(t, len(delta))) for t in range(len(delta))]


@given(LENGTHS, st.integers(0, 10**6), st.floats(0, 1), st.floats(0, 1))
@LAW
def test_advantages_are_the_sum_of_each_answer_alone(lengths: list[int], seed: int, gamma: float, lam: float) -> None:
    count, length_S = sum(lengths), torch.tensor(lengths)
    reward_N, value_N = drawn(count, seed), drawn(count, seed + 1)
    found_N, return_N = paper.advantages(reward_N, value_N, length_S, gamma=gamma, lam=lam)
    parts = zip(reward_N.split(lengths), value_N.split(lengths), strict=True)
    expected = [x for r, v in parts for x in answer_by_answer(r.tolist(), v.tolist(), gamma, lam)]
    assert torch.allclose(found_N, torch.tensor(expected, dtype=torch.float64), atol=1e-12)
    assert torch.allclose(return_N, found_N + value_N)


def test_with_lambda_1_an_advantage_is_what_is_still_to_come_less_the_value() -> None:
    reward_N, value_N = torch.tensor([1.0, -2.0, 4.0, 8.0]), torch.tensor([0.5, 0.25, 3.0, -1.0])
    found_N, return_N = paper.advantages(reward_N, value_N, torch.tensor([3, 1]), lam=1.0)
    assert return_N.tolist() == [3.0, 2.0, 4.0, 8.0]
    assert found_N.tolist() == [2.5, 1.75, 1.0, 9.0]


def test_nothing_follows_the_last_token() -> None:
    """Neither a padding token nor the next answer lends it a value."""
    reward_N, length_S = torch.zeros(4), torch.tensor([2, 2])
    near, _ = paper.advantages(reward_N, torch.tensor([0.0, 0.0, 100.0, 0.0]), length_S)
    assert near[:2].tolist() == [0.0, 0.0]


def test_the_reward_stands_on_the_answers_own_last_token() -> None:
    policy_N, reference_N = torch.tensor([-1.0, -1.0, -3.0]), torch.tensor([-2.0, -1.0, -1.0])
    found = paper.token_rewards(policy_N, reference_N, torch.tensor([10.0, 20.0]), torch.tensor([2, 1]), beta=0.1)
    assert found.tolist() == pytest.approx([-0.1, 10.0, 20.2])


@given(LENGTHS, st.integers(0, 10**6), st.floats(0.01, 2))
@LAW
def test_token_rewards_sum_to_the_reward_less_the_penalty(lengths: list[int], seed: int, beta: float) -> None:
    length_S, count = torch.tensor(lengths), sum(lengths)
    policy_N, reference_N, reward_S = drawn(count, seed), drawn(count, seed + 1), drawn(len(lengths), seed + 2)
    found_N = paper.token_rewards(policy_N, reference_N, reward_S, length_S, beta=beta)
    kl_S = paper.sums(policy_N - reference_N, length_S)
    assert torch.allclose(paper.sums(found_N, length_S), reward_S - beta * kl_S)


def test_lengths_that_do_not_fit_are_our_own_fault() -> None:
    for lengths in ([2, 2], [3, 0]):
        with pytest.raises(ValueError, match="are not answers of the lengths"):
            paper.advantages(torch.zeros(3), torch.zeros(3), torch.tensor(lengths))


def test_whitening_is_over_everything_and_survives_equal_values() -> None:
    values = drawn(1000, 0) * 7 + 3
    found = paper.whitened(values)
    assert found.mean().item() == pytest.approx(0, abs=1e-9)
    assert found.var(correction=0).item() == pytest.approx(1, abs=1e-6)
    assert paper.whitened(torch.full((4,), 2.0)).tolist() == [0.0] * 4
    assert paper.whitened(torch.tensor([5.0])).tolist() == [0.0]


# ---------------------------------------------------------------- the clipped surrogate


def plain_surrogate(policy: float, old: float, advantage: float, clip: float) -> float:
    """By cases, as the paper's figure 1 draws it."""
    ratio = math.exp(policy - old)
    if advantage >= 0:
        return -advantage * min(ratio, 1 + clip)
    return -advantage * max(ratio, 1 - clip)


@given(st.integers(0, 10**6), st.floats(0.05, 0.5))
@LAW
def test_the_surrogate_is_the_papers_by_cases(seed: int, clip: float) -> None:
    policy, old, advantage = drawn(20, seed), drawn(20, seed + 1), drawn(20, seed + 2)
    found = paper.clipped_surrogate(policy, old, advantage, clip=clip)
    rows = zip(policy.tolist(), old.tolist(), advantage.tolist(), strict=True)
    assert found.tolist() == pytest.approx([plain_surrogate(*row, clip) for row in rows])


def test_at_the_old_policy_the_gradient_is_that_of_reinforce() -> None:
    old, advantage = drawn(9, 1), drawn(9, 2)
    policy = old.clone().requires_grad_()
    paper.clipped_surrogate(policy, old, advantage).sum().backward()  # type: ignore[no-untyped-call]
    assert policy.grad is not None
    assert torch.allclose(policy.grad, -advantage)


def test_what_has_moved_far_enough_moves_no_further_but_may_come_back() -> None:
    ratio = torch.tensor([1.5, 1.5, 0.5, 0.5], dtype=torch.float64)
    policy = ratio.log().requires_grad_()
    loss = paper.clipped_surrogate(policy, torch.zeros(4), torch.tensor([1.0, -1.0, 1.0, -1.0]))
    loss.sum().backward()  # type: ignore[no-untyped-call]
    assert policy.grad is not None
    assert policy.grad.tolist() == pytest.approx([0.0, 1.5, -0.5, 0.0])
    assert paper.clipped_share(policy, torch.zeros(4)).item() == 1.0


def test_gradients_agree_with_differences() -> None:
    old, advantage, returns = drawn(7, 3), drawn(7, 4), drawn(7, 5)
    policy, value = (old + 0.05 * drawn(7, 6)).requires_grad_(), (old + 0.5 * drawn(7, 7)).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: paper.clipped_surrogate(x, old, advantage), (policy,))
    assert torch.autograd.gradcheck(lambda x: paper.clipped_value_loss(x, old, returns), (value,))


def test_a_value_stops_at_the_clip_unless_it_comes_back() -> None:
    value = torch.tensor([0.5, 0.5], dtype=torch.float64, requires_grad=True)
    loss = paper.clipped_value_loss(value, torch.zeros(2), torch.tensor([1.0, -1.0]), clip=0.2)
    assert loss.tolist() == pytest.approx([0.5 * 0.8**2, 0.5 * 1.5**2])
    loss.sum().backward()  # type: ignore[no-untyped-call]
    assert value.grad is not None
    assert value.grad.tolist() == pytest.approx([0.0, 1.5])


def test_explained_variance() -> None:
    returns = torch.tensor([1.0, 2.0, 3.0])
    assert paper.explained_variance(returns, returns) == 1.0
    assert paper.explained_variance(torch.zeros(3), returns) == 0.0
    assert paper.explained_variance(torch.zeros(3), torch.ones(3)) is None


# ---------------------------------------------------------------- beta, baselines, best of N


@pytest.mark.parametrize(
    ("kl", "expected"), [(6.0, 1.0), (0.0, 0.98), (6.6, 1.01), (1000.0, 1.02), (-3.0, 0.98), (5.7, 0.995)]
)
def test_beta_follows_the_kl_by_at_most_two_per_cent(kl: float, expected: float) -> None:
    assert paper.adapted(1.0, kl, target=6.0) == pytest.approx(expected)


@pytest.mark.parametrize("target", [0.0, -1.0, math.nan])
def test_a_target_that_is_none_is_refused(target: float) -> None:
    with pytest.raises(ValueError, match="must be above 0"):
        paper.adapted(1.0, 1.0, target=target)


@given(st.integers(1, 4), st.integers(2, 5), st.integers(0, 10**6))
@LAW
def test_the_baseline_is_the_mean_of_the_others_that_were_scored(prompts: int, samples: int, seed: int) -> None:
    reward_PK = drawn(prompts * samples, seed).view(prompts, samples)
    known_PK = drawn(prompts * samples, seed + 1).view(prompts, samples) > -0.5
    found = paper.leave_one_out(torch.where(known_PK, reward_PK, math.nan), known_PK)
    for p, i in itertools.product(range(prompts), range(samples)):
        others = [reward_PK[p, j].item() for j in range(samples) if j != i and known_PK[p, j]]
        expected = reward_PK[p, i].item() - sum(others) / len(others) if others and known_PK[p, i] else 0.0
        assert found[p, i].item() == pytest.approx(expected, abs=1e-12)


def test_rloo_is_unbiased() -> None:
    """Over all triples of answers of a bandit, weighted by their probability, it is the exact gradient."""
    logits = torch.tensor([0.3, -0.2, 0.9], dtype=torch.float64, requires_grad=True)
    reference, reward, beta = drawn(3, 8).log_softmax(0), torch.tensor([1.0, 0.0, 2.0], dtype=torch.float64), 0.4
    logp = logits.log_softmax(0)
    value = (logp.exp() * (reward - beta * (logp - reference))).sum()
    (exact,) = torch.autograd.grad(value, logits, retain_graph=True)
    total = torch.zeros_like(logits)
    for triple in itertools.product(range(3), repeat=3):
        chosen = torch.tensor(triple)
        whole = (reward - beta * (logp - reference)).detach()[chosen]
        advantage = paper.leave_one_out(whole[None])[0]
        loss = paper.clipped_surrogate(logp[chosen], logp[chosen].detach(), advantage).mean()
        (grad,) = torch.autograd.grad(loss, logits, retain_graph=True)
        total -= logp.detach()[chosen].sum().exp() * grad
    assert torch.allclose(total, exact, atol=1e-12)


def test_at_the_optimum_every_advantage_is_zero() -> None:
    reference, reward, beta = drawn(6, 1).log_softmax(0), drawn(6, 2), 0.7
    best = (reference + reward / beta).log_softmax(0)
    assert paper.leave_one_out((reward - beta * (best - reference))[None]).abs().max().item() < 1e-12


def best_of_exactly(prob: Tensor, reward: Tensor, count: int) -> Tensor:
    """The distribution of the best of N answers, no two of which are worth the same."""
    order = reward.argsort()
    below = torch.cat([torch.zeros(1, dtype=torch.float64), prob[order].cumsum(0)])
    found = torch.zeros_like(prob)
    found[order] = below[1:] ** count - below[:-1] ** count
    return found


@pytest.mark.parametrize("count", [1, 2, 4, 16, 64])
def test_the_kl_of_best_of_n_is_within_its_bound_and_near_it_where_no_answer_has_much_mass(count: int) -> None:
    prob, reward = torch.full((4000,), 1 / 4000, dtype=torch.float64), drawn(4000, 3)
    for some, tight in ((prob, 0.03), (drawn(8, 4).softmax(0), math.inf)):
        made = best_of_exactly(some, reward[: len(some)], count)
        kl = torch.special.xlogy(made, made / some).sum().item()
        assert -1e-12 <= kl <= paper.best_of_bound(count) + 1e-9
        assert paper.best_of_bound(count) - kl <= tight


def test_the_best_is_the_first_of_the_highest_and_never_one_without_a_score() -> None:
    reward = torch.tensor([[1.0, 5.0, 5.0], [9.0, 2.0, 1.0], [0.0, 0.0, 0.0], [-3.0, -2.0, -9.0]])
    scored = torch.tensor([[True, True, True], [False, True, True], [False, False, False], [True, True, True]])
    assert paper.best_of(reward, scored).tolist() == [1, 1, -1, 1]
    with pytest.raises(ValueError, match="at least 1"):
        paper.best_of_bound(0)


@pytest.mark.parametrize("beta", [0.3, 1.0, 5.0])
def test_the_oracle_is_the_enumerated_optimum(beta: float) -> None:
    """Samples that stand for the reference exactly give its tilt exactly."""
    counts, reward = torch.tensor([1, 3, 2, 4]), torch.tensor([2.0, 0.5, -1.0, 0.0], dtype=torch.float64)
    reference = counts.double() / counts.sum()
    best = (reference.log() + reward / beta).softmax(0)
    found_reward, kl, effective = paper.oracle(reward.repeat_interleave(counts)[None], beta=beta)
    assert found_reward.item() == pytest.approx((best * reward).sum().item())
    assert kl.item() == pytest.approx((best * (best / reference).log()).sum().item())
    assert 1 <= effective.item() <= 10
    with pytest.raises(ValueError, match="above 0"):
        paper.oracle(reward[None], beta=0)


def test_no_policy_lies_above_the_oracle() -> None:
    reward = drawn(6, 9)
    reference = drawn(6, 10).softmax(0)
    curve = []
    for beta in (0.2, 0.5, 1.0, 2.0, 8.0):
        best = (reference.log() + reward / beta).softmax(0)
        curve.append((beta, (best * reward).sum().item(), (best * (best / reference).log()).sum().item()))
    for seed in range(200):
        other = (reference.log() + 0.7 * drawn(6, 100 + seed)).softmax(0)
        value, kl = (other * reward).sum().item(), (other * (other / reference).log()).sum().item()
        assert all(value - beta * kl <= top - beta * far + 1e-9 for beta, top, far in curve)
