"""First tokens and whole distributions against plain dense sums."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from druthers.batching import Rung, collate
from druthers.distributions import certainties, divergences, of_the_first, per_response
from druthers.logprobs import Scorer, head_logps, predicting
from druthers.models import scorer_of
from druthers.tokens import TokenizedPair
from tests import tiny

LAW = settings(max_examples=25, deadline=None, derandomize=True)
SIDE = st.lists(st.integers(1, 9), min_size=1, max_size=6)


def pair(prompt: list[int], chosen: list[int], rejected: list[int]) -> TokenizedPair:
    """All tokens of both responses scored."""
    return TokenizedPair(
        "", tuple(prompt), tuple(chosen), tuple(rejected), (True,) * len(chosen), (True,) * len(rejected)
    )


@LAW
@given(st.lists(st.tuples(SIDE, SIDE, SIDE), min_size=1, max_size=4), st.sampled_from(["shared", "padded"]))
def test_sums_of_all_and_of_the_first_tokens(rows: list[tuple[list[int], list[int], list[int]]], rung: Rung) -> None:
    """Each response by its own tokens, cut at the shorter one of its pair, also where pairs share a response."""
    pairs = [pair(*row) for row in rows]
    batch = collate(pairs, pad_id=0, rung=rung)
    value_N = torch.rand(len(batch.target_N), generator=torch.Generator().manual_seed(0))
    whole_CB, first_CB = per_response(value_N, batch), of_the_first(value_N, batch)
    for b, one in enumerate(pairs):
        least = min(len(one.chosen), len(one.rejected))
        for c in (0, 1):
            own_N = value_N[batch.owner_N == batch.response_CB[c, b]].double()
            assert whole_CB[c, b].item() == pytest.approx(own_N.sum().item(), abs=1e-12)
            assert first_CB[c, b].item() == pytest.approx(own_N[:least].sum().item(), abs=1e-12)


def read(seed: int, pairs: list[TokenizedPair]) -> tuple[Scorer, Tensor, Tensor]:
    """A model, the hidden states that predict the scored tokens, and their log-probabilities."""
    batch, scorer = collate(pairs, pad_id=0), scorer_of(tiny.model(seed, dtype=torch.float64))
    hidden_NH = predicting(scorer, batch)
    return scorer, hidden_NH.detach(), head_logps(hidden_NH, batch, scorer)


PAIRS = [pair([1, 2], [3, 4, 5], [6]), pair([7], [8, 9], [3, 3, 3, 3])]


@pytest.mark.parametrize("chunk", [1, 700, 2**22])
def test_distributions_equal_dense_ones_whatever_the_block(chunk: int) -> None:
    """KL by hand over all words, its gradient by autograd through dense logits, and log p - log sum p^2."""
    (policy, own_NH, logp_N), (reference, other_NH, _) = read(1, PAIRS), read(2, PAIRS)
    own_NH.requires_grad_()
    p_NV, q_NV = policy.head(own_NH).softmax(-1), reference.head(other_NH).softmax(-1).detach()
    dense_N = (q_NV * (q_NV.log() - p_NV.log())).sum(-1)
    (wanted_NH,) = torch.autograd.grad(dense_N.sum(), own_NH)
    found_N = divergences(own_NH, policy, other_NH, reference, chunk=chunk)
    (grad_NH,) = torch.autograd.grad(found_N.sum(), own_NH)
    assert torch.allclose(found_N, dense_N, atol=1e-12)
    assert torch.allclose(grad_NH, wanted_NH, atol=1e-12)
    assert (found_N >= 0).all()
    sure_N = certainties(own_NH, logp_N, policy, chunk=chunk)
    assert torch.allclose(sure_N, logp_N - (p_NV**2).sum(-1).log(), atol=1e-9)
    assert not sure_N.requires_grad
