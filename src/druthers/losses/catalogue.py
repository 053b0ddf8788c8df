"""Every loss by name, bound to its settings.

Letters: C pair axis (0 chosen, 1 rejected), B pairs.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from druthers.losses import coupled, free, paired, supervised, unpaired
from druthers.losses.divergences import Divergence
from druthers.losses.supervised import Reduction
from druthers.losses.terms import Loss, State, Terms, wanted
from druthers.losses.weighting import wpo

# ---------------------------------------------------------------- pairs against a reference


def sigmoid_loss(*, beta: float, divergence: Divergence = "reverse-kl", alpha: float = 0.5) -> Loss:
    """DPO."""

    def of(policy_CB: Tensor, reference_CB: Tensor, t: Terms) -> Tensor:
        return paired.sigmoid(
            policy_CB, reference_CB, beta=beta, p_B=t.p_B, margin_B=t.margin_B, divergence=divergence, alpha=alpha
        )

    return Loss(of, p=True, margin=True)


def cdpo_loss(*, beta: float, epsilon: float) -> Loss:
    """Conservative DPO."""
    return Loss(lambda policy, reference, t: paired.cdpo(policy, reference, beta=beta, epsilon=epsilon))


def robust_loss(*, beta: float, epsilon: float, divergence: Divergence = "reverse-kl", alpha: float = 0.5) -> Loss:
    """Robust DPO."""

    def of(policy_CB: Tensor, reference_CB: Tensor, t: Terms) -> Tensor:
        return paired.robust(policy_CB, reference_CB, beta=beta, epsilon=epsilon, divergence=divergence, alpha=alpha)

    return Loss(of)


def geometric_loss(*, beta: float) -> Loss:
    """Geometric-averaged DPO."""
    return Loss(lambda policy, reference, t: paired.geometric(policy, reference, beta=beta, p_B=t.p_B), p=True)


def hinge_loss(*, beta: float, divergence: Divergence = "reverse-kl", alpha: float = 0.5) -> Loss:
    """Hinge."""

    def of(policy_CB: Tensor, reference_CB: Tensor, t: Terms) -> Tensor:
        return paired.hinge(policy_CB, reference_CB, beta=beta, margin_B=t.margin_B, divergence=divergence, alpha=alpha)

    return Loss(of, margin=True)


def ipo_loss(*, beta: float, divergence: Divergence = "reverse-kl", alpha: float = 0.5) -> Loss:
    """IPO with log-ratios averaged over their tokens."""

    def of(policy_CB: Tensor, reference_CB: Tensor, t: Terms) -> Tensor:
        return paired.ipo(policy_CB, reference_CB, beta=beta, length_CB=t.length_CB, divergence=divergence, alpha=alpha)

    return Loss(of)


def ipo_summed_loss(*, beta: float, divergence: Divergence = "reverse-kl", alpha: float = 0.5) -> Loss:
    """IPO with log-ratios summed over their tokens."""
    return Loss(
        lambda policy, reference, t: paired.ipo(policy, reference, beta=beta, divergence=divergence, alpha=alpha)
    )


def dpo_norm_loss(*, beta: float, divergence: Divergence = "reverse-kl", alpha: float = 0.5) -> Loss:
    """Length-normalised DPO."""

    def of(policy_CB: Tensor, reference_CB: Tensor, t: Terms) -> Tensor:
        return paired.dpo_norm(
            policy_CB,
            reference_CB,
            beta=beta,
            length_CB=t.length_CB,
            p_B=t.p_B,
            margin_B=t.margin_B,
            divergence=divergence,
            alpha=alpha,
        )

    return Loss(of, p=True, margin=True)


def exo_loss(*, beta: float, epsilon: float, divergence: Divergence = "reverse-kl", alpha: float = 0.5) -> Loss:
    """EXO."""

    def of(policy_CB: Tensor, reference_CB: Tensor, t: Terms) -> Tensor:
        return paired.exo(policy_CB, reference_CB, beta=beta, epsilon=epsilon, divergence=divergence, alpha=alpha)

    return Loss(of)


def nca_loss(*, beta: float) -> Loss:
    """NCA for pairs."""
    return Loss(lambda policy, reference, t: paired.nca(policy, reference, beta=beta))


def sppo_loss(*, beta: float) -> Loss:
    """SPPO, with the p of the pairs as the probability that chosen wins."""
    return Loss(lambda policy, reference, t: paired.sppo(policy, reference, beta=beta, p_B=t.p_B), p=True)


def apo_zero_loss(*, beta: float) -> Loss:
    """APO-zero."""
    return Loss(lambda policy, reference, t: paired.apo_zero(policy, reference, beta=beta))


def apo_down_loss(*, beta: float) -> Loss:
    """APO-down."""
    return Loss(lambda policy, reference, t: paired.apo_down(policy, reference, beta=beta))


def discopop_loss(*, beta: float, tau: float, divergence: Divergence = "reverse-kl", alpha: float = 0.5) -> Loss:
    """DiscoPOP."""

    def of(policy_CB: Tensor, reference_CB: Tensor, t: Terms) -> Tensor:
        return paired.discopop(policy_CB, reference_CB, beta=beta, tau=tau, divergence=divergence, alpha=alpha)

    return Loss(of)


def dpop_loss(*, beta: float, penalty: float) -> Loss:
    """DPO-Positive."""
    return Loss(lambda policy, reference, t: paired.dpop(policy, reference, beta=beta, penalty=penalty))


def rdpo_loss(*, beta: float, alpha: float) -> Loss:
    """R-DPO."""
    return Loss(
        lambda policy, reference, t: paired.rdpo(policy, reference, beta=beta, alpha=alpha, length_CB=t.length_CB)
    )


def ld_loss(*, beta: float, alpha: float, on_reference: bool = True) -> Loss:
    """LD-DPO; where `on_reference` is false the reference keeps all of its tokens, as in some trainers."""

    def of(policy_CB: Tensor, reference_CB: Tensor, t: Terms) -> Tensor:
        policy_CB = paired.desensitized(policy_CB, wanted(t.policy_head_CB, "policy_head_CB"), alpha=alpha)
        if on_reference:
            head_CB = wanted(t.reference_head_CB, "reference_head_CB")
            reference_CB = paired.desensitized(reference_CB, head_CB, alpha=alpha)
        return paired.sigmoid(policy_CB, reference_CB, beta=beta, p_B=t.p_B, margin_B=t.margin_B)

    return Loss(of, p=True, margin=True, needs=frozenset({"head"}))


def tdpo1_loss(*, beta: float) -> Loss:
    """TDPO1."""

    def of(policy_CB: Tensor, reference_CB: Tensor, t: Terms) -> Tensor:
        return paired.tdpo1(policy_CB, reference_CB, beta=beta, divergence_CB=wanted(t.divergence_CB, "divergence_CB"))

    return Loss(of, needs=frozenset({"divergence"}))


def tdpo2_loss(*, beta: float, alpha: float) -> Loss:
    """TDPO2."""

    def of(policy_CB: Tensor, reference_CB: Tensor, t: Terms) -> Tensor:
        divergence_CB = wanted(t.divergence_CB, "divergence_CB")
        return paired.tdpo2(policy_CB, reference_CB, beta=beta, alpha=alpha, divergence_CB=divergence_CB)

    return Loss(of, needs=frozenset({"divergence"}))


def cal_loss(*, beta: float) -> Loss:
    """Cal-DPO."""
    return Loss(lambda policy, reference, t: paired.cal(policy, reference, beta=beta))


def chi_loss(*, beta: float, clip: float) -> Loss:
    """chi-PO."""
    return Loss(lambda policy, reference, t: paired.chi(policy, reference, beta=beta, clip=clip))


# ---------------------------------------------------------------- the whole step at once


def bco_loss(*, beta: float, momentum: float) -> Loss:
    """BCO for pairs, with its running shift; a momentum of 1 keeps it at 0, as trainers without one do."""

    def of(policy_CB: Tensor, reference_CB: Tensor, t: Terms) -> Tensor:
        return coupled.bco(policy_CB, reference_CB, beta=beta, shift=t.state.get("shift", 0.0))

    def follow(policy_CB: Tensor, reference_CB: Tensor, t: Terms) -> State:
        return coupled.shifted(t.state, policy_CB, reference_CB, beta=beta, momentum=momentum, weight_B=t.weight_B)

    return Loss(of) if momentum == 1 else Loss(of, coupled=True, follow=follow)


def aot_loss(*, beta: float, epsilon: float) -> Loss:
    """AOT for pairs."""
    return Loss(lambda policy, reference, t: coupled.aot(policy, reference, beta=beta, epsilon=epsilon), coupled=True)


def aot_unpaired_loss(*, beta: float, epsilon: float) -> Loss:
    """AOT over all chosen and all rejected."""
    return Loss(
        lambda policy, reference, t: coupled.aot_unpaired(policy, reference, beta=beta, epsilon=epsilon), coupled=True
    )


def beta_dpo_loss(*, beta: float, alpha: float, share: float, momentum: float) -> Loss:
    """beta-DPO."""

    def of(policy_CB: Tensor, reference_CB: Tensor, t: Terms) -> Tensor:
        return coupled.beta_dpo(
            policy_CB,
            reference_CB,
            beta=beta,
            alpha=alpha,
            share=share,
            weight_B=t.weight_B,
            draw_B=wanted(t.draw_B, "draw_B"),
            centre=t.state["centre"],
            spread=t.state["spread"],
        )

    def follow(policy_CB: Tensor, reference_CB: Tensor, t: Terms) -> State:
        return coupled.usual(t.state, policy_CB, reference_CB, momentum=momentum, weight_B=t.weight_B)

    return Loss(of, needs=frozenset({"draw"}), coupled=True, follow=follow)


def drdpo_loss(*, beta: float, temper: float) -> Loss:
    """Dr. DPO over the sigmoid loss."""
    core = sigmoid_loss(beta=beta)

    def of(policy_CB: Tensor, reference_CB: Tensor, t: Terms) -> Tensor:
        return coupled.drdpo(core.of(policy_CB, reference_CB, t), weight_B=t.weight_B, temper=temper)

    return replace(core, of=of, coupled=True)


# ---------------------------------------------------------------- without a reference


def simpo_loss(*, beta: float, gamma: float) -> Loss:
    """SimPO."""

    def of(policy_CB: Tensor, reference_CB: Tensor, t: Terms) -> Tensor:
        return free.simpo(policy_CB, beta=beta, gamma=gamma, length_CB=t.length_CB, margin_B=t.margin_B)

    return Loss(of, margin=True, reference=False)


def alphapo_loss(*, beta: float, gamma: float, alpha: float) -> Loss:
    """AlphaPO."""

    def of(policy_CB: Tensor, reference_CB: Tensor, t: Terms) -> Tensor:
        return free.alphapo(policy_CB, beta=beta, gamma=gamma, alpha=alpha, length_CB=t.length_CB)

    return Loss(of, reference=False)


def with_likelihood(
    preference: Callable[[Tensor, Terms], Tensor], *, times: float, likelihood: float, reduce: Reduction
) -> Loss:
    """A preference without a reference, and the likelihood of chosen."""

    def of(policy_CB: Tensor, reference_CB: Tensor, t: Terms) -> Tensor:
        chosen_B = supervised.sft(policy_CB, length_CB=t.length_CB, mean_length=t.mean_length, reduce=reduce)
        return times * preference(policy_CB, t) + likelihood * chosen_B

    return Loss(of, reference=False)


def cpo_loss(*, beta: float, likelihood: float, reduce: Reduction = "token") -> Loss:
    """CPO."""
    return with_likelihood(
        lambda policy, t: free.cpo(policy, beta=beta), times=1.0, likelihood=likelihood, reduce=reduce
    )


def orpo_loss(*, odds: float, reduce: Reduction = "token") -> Loss:
    """ORPO: likelihood of chosen and `odds` times the preference."""
    return with_likelihood(
        lambda policy, t: free.orpo(policy, length_CB=t.length_CB), times=odds, likelihood=1.0, reduce=reduce
    )


def slic_loss(*, delta: float, likelihood: float, reduce: Reduction = "token") -> Loss:
    """SLiC-HF with the chosen response as its target."""
    return with_likelihood(
        lambda policy, t: free.slic(policy, delta=delta), times=1.0, likelihood=likelihood, reduce=reduce
    )


def sft_loss(*, reduce: Reduction = "token") -> Loss:
    """Likelihood of chosen: SFT, and Preferred-FT of the DPO paper."""

    def of(policy_CB: Tensor, reference_CB: Tensor, t: Terms) -> Tensor:
        return supervised.sft(policy_CB, length_CB=t.length_CB, mean_length=t.mean_length, reduce=reduce)

    return Loss(of, reference=False)


def unlikelihood_loss(*, alpha: float, form: str = "bounded") -> Loss:
    """Unlikelihood; 'direct' subtracts the log-probability of rejected, which has no lower bound."""
    bounded = form == "bounded"

    def of(policy_CB: Tensor, reference_CB: Tensor, t: Terms) -> Tensor:
        unlikely_CB = wanted(t.unlikely_CB, "unlikely_CB") if bounded else None
        return supervised.unlikelihood(policy_CB, alpha=alpha, unlikely_CB=unlikely_CB)

    return Loss(of, reference=False, needs=frozenset({"unlikely"}) if bounded else frozenset())


# ---------------------------------------------------------------- single answers


def kto_loss(*, beta: float, good: float, bad: float) -> Loss:
    """KTO."""

    def of(policy_CB: Tensor, reference_CB: Tensor, t: Terms) -> Tensor:
        z0 = unpaired.anchor(policy_CB, reference_CB, weight_B=t.weight_B)
        return unpaired.kto(policy_CB, reference_CB, beta=beta, good=good, bad=bad, p_B=t.p_B, z0=z0)

    return Loss(of, p=True, coupled=True, unpaired=True)


def bco_unpaired_loss(*, beta: float, momentum: float) -> Loss:
    """BCO of single answers."""

    def of(policy_CB: Tensor, reference_CB: Tensor, t: Terms) -> Tensor:
        shift = t.state.get("shift", 0.0)
        return unpaired.bco_unpaired(policy_CB, reference_CB, beta=beta, p_B=t.p_B, shift=shift)

    def follow(policy_CB: Tensor, reference_CB: Tensor, t: Terms) -> State:
        answers = [side_CB[:1].expand(2, -1) for side_CB in (policy_CB, reference_CB)]
        return coupled.shifted(t.state, *answers, beta=beta, momentum=momentum, weight_B=t.weight_B)

    return Loss(of, p=True, coupled=True, unpaired=True, follow=follow)


def apo_zero_unpaired_loss(*, beta: float) -> Loss:
    """APO-zero of single answers."""
    return Loss(
        lambda policy, reference, t: unpaired.apo_zero_unpaired(policy, reference, beta=beta, p_B=t.p_B),
        p=True,
        unpaired=True,
    )


# ---------------------------------------------------------------- of other losses


def mixed(parts: Sequence[tuple[float, Loss]]) -> Loss:
    """A weighted sum of losses, as MPO (0.8 sigmoid + 0.2 bco + 1.0 sft, arXiv 2411.10442) or RPO (sigmoid + sft).

    p and margin are honoured where a part does; the others go by which response is chosen. State stands under the
    number of its part. Raises ValueError for parts of single answers and of pairs together.
    """
    if len({part.unpaired for _, part in parts}) > 1:
        raise ValueError("losses of single answers and of pairs cannot be summed; take one kind")

    def own(state: State, place: int) -> State:
        return {key.partition(".")[2]: value for key, value in state.items() if key.startswith(f"{place}.")}

    def of(policy_CB: Tensor, reference_CB: Tensor, t: Terms) -> Tensor:
        found = [
            weight * part.of(policy_CB, reference_CB, replace(t, state=own(t.state, i)))
            for i, (weight, part) in enumerate(parts)
        ]
        return torch.stack(found).sum(0)

    def follow(policy_CB: Tensor, reference_CB: Tensor, t: Terms) -> State:
        found: dict[str, float] = {}
        for i, (_, part) in enumerate(parts):
            if part.follow is not None:
                new = part.follow(policy_CB, reference_CB, replace(t, state=own(t.state, i)))
                found |= {f"{i}.{key}": value for key, value in new.items()}
        return found

    losses = [part for _, part in parts]
    return Loss(
        of,
        p=any(part.p for part in losses),
        margin=any(part.margin for part in losses),
        reference=any(part.reference for part in losses),
        needs=frozenset().union(*(part.needs for part in losses)),
        coupled=any(part.coupled for part in losses),
        unpaired=losses[0].unpaired,
        follow=follow if any(part.follow for part in losses) else None,
    )


def weighted_by_policy(loss: Loss) -> Loss:
    """WPO over a loss of pairs; raises ValueError for one that sorts its step or is of single answers."""

    def of(policy_CB: Tensor, reference_CB: Tensor, t: Terms) -> Tensor:
        return loss.of(policy_CB, reference_CB, t) * wpo(wanted(t.certainty_CB, "certainty_CB"))

    return replace(loss, of=of, needs=loss.needs | {"certainty"})


LOSSES: dict[str, Callable[..., Loss]] = {
    "sigmoid": sigmoid_loss,
    "cdpo": cdpo_loss,
    "robust": robust_loss,
    "geometric": geometric_loss,
    "hinge": hinge_loss,
    "ipo": ipo_loss,
    "ipo-summed": ipo_summed_loss,
    "dpo-norm": dpo_norm_loss,
    "exo": exo_loss,
    "nca": nca_loss,
    "sppo": sppo_loss,
    "bco": bco_loss,
    "aot": aot_loss,
    "aot-unpaired": aot_unpaired_loss,
    "apo-zero": apo_zero_loss,
    "apo-down": apo_down_loss,
    "discopop": discopop_loss,
    "dpop": dpop_loss,
    "rdpo": rdpo_loss,
    "ld": ld_loss,
    "tdpo1": tdpo1_loss,
    "tdpo2": tdpo2_loss,
    "cal": cal_loss,
    "beta-dpo": beta_dpo_loss,
    "chi": chi_loss,
    "drdpo": drdpo_loss,
    "simpo": simpo_loss,
    "alphapo": alphapo_loss,
    "cpo": cpo_loss,
    "orpo": orpo_loss,
    "slic": slic_loss,
    "sft": sft_loss,
    "unlikelihood": unlikelihood_loss,
    "kto": kto_loss,
    "bco-unpaired": bco_unpaired_loss,
    "apo-zero-unpaired": apo_zero_unpaired_loss,
}
