"""The dictionary: every loss by name, bound to its knobs. The equations stand in the modules that are imported here.

Keyword names are those of the settings (`objectives.py`), so `LOSSES[name](**knobs)` works on a dumped section.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

from torch import Tensor

from druthers.losses import coupled, free, paired, supervised, unpaired
from druthers.losses.divergences import Transform, transform
from druthers.losses.mixture import Part, mixed
from druthers.losses.terms import Equation, Loss, State, Terms, given
from druthers.losses.weighting import weighted


def sigmoid_loss(*, beta: float, divergence: str = "reverse-kl", divergence_alpha: float | None = None) -> Loss:
    """DPO, with graded pairs."""
    u = transform(divergence, alpha=divergence_alpha)
    return Loss(
        of=lambda policy, reference, t: paired.sigmoid(
            policy, reference, beta=beta, p_B=t.p_B, margin_B=t.margin_B, u=u
        ),
        p=True,
        margin=True,
    )


def cdpo_loss(
    *, beta: float, smoothing: float, divergence: str = "reverse-kl", divergence_alpha: float | None = None
) -> Loss:
    """Conservative DPO."""
    u = transform(divergence, alpha=divergence_alpha)
    return Loss(
        of=lambda policy, reference, t: paired.cdpo(
            policy, reference, beta=beta, smoothing=smoothing, margin_B=t.margin_B, u=u
        ),
        margin=True,
    )


def robust_loss(
    *, beta: float, smoothing: float, divergence: str = "reverse-kl", divergence_alpha: float | None = None
) -> Loss:
    """Robust DPO."""
    return plain(paired.robust, beta=beta, smoothing=smoothing, u=transform(divergence, alpha=divergence_alpha))


def geometric_loss(*, beta: float) -> Loss:
    """GDPO."""
    return Loss(of=lambda policy, reference, t: paired.geometric(policy, reference, beta=beta, p_B=t.p_B), p=True)


def hinge_loss(*, beta: float, divergence: str = "reverse-kl", divergence_alpha: float | None = None) -> Loss:
    """The hinge of RSO and SLiC."""
    u = transform(divergence, alpha=divergence_alpha)
    return Loss(
        of=lambda policy, reference, t: paired.hinge(policy, reference, beta=beta, margin_B=t.margin_B, u=u),
        margin=True,
    )


def ipo_loss(*, beta: float, divergence: str = "reverse-kl", divergence_alpha: float | None = None) -> Loss:
    """IPO on log-ratios averaged over each response."""
    return measured(paired.ipo, beta=beta, u=transform(divergence, alpha=divergence_alpha))


def ipo_summed_loss(*, beta: float, divergence: str = "reverse-kl", divergence_alpha: float | None = None) -> Loss:
    """IPO on summed log-ratios."""
    return plain(paired.ipo, beta=beta, u=transform(divergence, alpha=divergence_alpha))


def dpo_norm_loss(*, beta: float, divergence: str = "reverse-kl", divergence_alpha: float | None = None) -> Loss:
    """Length-normalised DPO."""
    return measured(paired.dpo_norm, beta=beta, u=transform(divergence, alpha=divergence_alpha))


def exo_loss(
    *, beta: float, smoothing: float, divergence: str = "reverse-kl", divergence_alpha: float | None = None
) -> Loss:
    """EXO; raises ValueError where `smoothing` is not above 0, which would be the logarithm of 0."""
    if smoothing <= 0:
        raise ValueError(f"smoothing = {smoothing:g} would be the logarithm of 0 in EXO; use 0.001")
    return plain(paired.exo, beta=beta, smoothing=smoothing, u=transform(divergence, alpha=divergence_alpha))


def nca_loss(*, beta: float) -> Loss:
    """NCA."""
    return plain(paired.nca, beta=beta)


def sppo_loss(*, beta: float) -> Loss:
    """SPPO, with p as the probability to win."""
    return Loss(of=lambda policy, reference, t: paired.sppo(policy, reference, beta=beta, p_B=t.p_B), p=True)


def apo_zero_loss(*, beta: float) -> Loss:
    """APO-zero."""
    return plain(paired.apo_zero, beta=beta)


def apo_down_loss(*, beta: float) -> Loss:
    """APO-down."""
    return plain(paired.apo_down, beta=beta)


def discopop_loss(
    *, beta: float, tau: float, divergence: str = "reverse-kl", divergence_alpha: float | None = None
) -> Loss:
    """DiscoPOP."""
    return plain(paired.discopop, beta=beta, tau=tau, u=transform(divergence, alpha=divergence_alpha))


def dpop_loss(*, beta: float, penalty: float) -> Loss:
    """DPO-Positive."""
    return plain(paired.dpop, beta=beta, penalty=penalty)


def rdpo_loss(*, beta: float, alpha: float) -> Loss:
    """R-DPO."""
    return measured(paired.rdpo, beta=beta, alpha=alpha)


def ld_loss(*, beta: float, alpha: float, tail_of: str = "both") -> Loss:
    """LD-DPO; `tail_of` is 'both' models, or the 'policy' alone. Raises ValueError for another name."""
    if tail_of not in ("both", "policy"):
        raise ValueError(f"tail_of = {tail_of!r} is not 'both' or 'policy'")

    def of(policy_CB: Tensor, reference_CB: Tensor, t: Terms) -> Tensor:
        policy_CB = paired.desensitized(policy_CB, given(t.policy_head_CB, need="head"), alpha=alpha)
        if tail_of == "both":
            reference_CB = paired.desensitized(reference_CB, given(t.reference_head_CB, need="head"), alpha=alpha)
        return paired.sigmoid(policy_CB, reference_CB, beta=beta, p_B=t.p_B, margin_B=t.margin_B)

    return Loss(of=of, p=True, margin=True, needs=frozenset({"head"}))


def samp_loss(*, beta: float) -> Loss:
    """SamPO: DPO on as many tokens of both sides (Lu et al. 2024, arXiv 2406.10957)."""

    def of(policy_CB: Tensor, reference_CB: Tensor, t: Terms) -> Tensor:
        policy_CB, reference_CB = given(t.policy_head_CB, need="sample"), given(t.reference_head_CB, need="sample")
        return paired.sigmoid(policy_CB, reference_CB, beta=beta, p_B=t.p_B, margin_B=t.margin_B)

    return Loss(of=of, p=True, margin=True, needs=frozenset({"sample"}))


def cal_loss(*, beta: float) -> Loss:
    """Cal-DPO."""
    return plain(paired.cal, beta=beta)


def chi_loss(*, beta: float, clip: float | None = None) -> Loss:
    """Chi-squared PO."""
    return plain(paired.chi, beta=beta, clip=clip)


def tdpo1_loss(*, beta: float) -> Loss:
    """TDPO1."""

    def of(policy_CB: Tensor, reference_CB: Tensor, t: Terms) -> Tensor:
        k_CB = given(t.divergence_CB, need="divergence")
        return paired.tdpo1(policy_CB, reference_CB, beta=beta, divergence_CB=k_CB)

    return Loss(of=of, needs=frozenset({"divergence"}))


def tdpo2_loss(*, beta: float, alpha: float) -> Loss:
    """TDPO2."""

    def of(policy_CB: Tensor, reference_CB: Tensor, t: Terms) -> Tensor:
        k_CB = given(t.divergence_CB, need="divergence")
        return paired.tdpo2(policy_CB, reference_CB, beta=beta, alpha=alpha, divergence_CB=k_CB)

    return Loss(of=of, needs=frozenset({"divergence"}))


def bco_loss(*, beta: float, shift: str = "moving", momentum: float | None = None) -> Loss:
    """BCO on pairs; `shift` 'moving' (an exponential average over steps), 'mean' (of all steps), or 'none'."""

    def of(policy_CB: Tensor, reference_CB: Tensor, t: Terms) -> Tensor:
        return coupled.bco(policy_CB, reference_CB, beta=beta, shift=t.state["mean"])

    return shifted(of, partial(coupled.mean_reward, beta=beta), shift=shift, momentum=momentum)


def bco_unpaired_loss(*, beta: float, shift: str = "moving", momentum: float | None = None) -> Loss:
    """BCO on labelled answers, with the same shifts."""

    def of(policy_CB: Tensor, reference_CB: Tensor, t: Terms) -> Tensor:
        return unpaired.bco_unpaired(policy_CB, reference_CB, beta=beta, shift=t.state["mean"], label_B=t.p_B)

    found = shifted(of, partial(unpaired.mean_answer_reward, beta=beta), shift=shift, momentum=momentum)
    return replace(found, p=True, unpaired=True)


MOMENTUM = 0.9
"""What a moving shift keeps of the past, where nothing is said."""


def shifted(of: Equation, mean: Callable[..., float], *, shift: str, momentum: float | None) -> Loss:
    """A loss whose threshold, `mean` in its state, follows the mean reward of the steps.

    Raises ValueError for an unknown shift, and for a momentum that it does not read.
    """
    if shift not in ("moving", "mean", "none"):
        raise ValueError(f"shift = {shift!r} is not 'moving', 'mean' or 'none'")
    if momentum is not None and shift != "moving":
        raise ValueError(f"momentum = {momentum:g} is read by shift = 'moving' alone; leave one of them out")
    if shift == "none":
        return Loss(of=lambda policy, reference, t: of(policy, reference, replace(t, state={"mean": 0.0})))
    past = None if shift == "mean" else MOMENTUM if momentum is None else momentum

    def follow(policy_CB: Tensor, reference_CB: Tensor, t: Terms) -> State:
        now = mean(policy_CB, reference_CB, weight_B=t.weight_B)
        return coupled.followed(t.state, {"mean": now}, momentum=past)

    return Loss(of=following(of, follow), coupled=True, follow=follow)


def following(of: Equation, follow: Callable[[Tensor, Tensor, Terms], State]) -> Equation:
    """The equation with a state in its terms: the one given, or what it follows to on this set alone."""

    def value(policy_CB: Tensor, reference_CB: Tensor, t: Terms) -> Tensor:
        state = t.state or follow(policy_CB, reference_CB, t)
        return of(policy_CB, reference_CB, replace(t, state=state))

    return value


def aot_loss(*, beta: float, smoothing: float = 0.0) -> Loss:
    """AOT on pairs."""
    return Loss(
        of=lambda policy, reference, t: coupled.aot(
            policy, reference, beta=beta, smoothing=smoothing, weight_B=t.weight_B
        ),
        coupled=True,
    )


def aot_unpaired_loss(*, beta: float, smoothing: float = 0.0) -> Loss:
    """AOT that sorts chosen and rejected apart; its data are pairs all the same, of which the pairing is not used."""
    return Loss(
        of=lambda policy, reference, t: coupled.aot_unpaired(
            policy, reference, beta=beta, smoothing=smoothing, weight_B=t.weight_B
        ),
        coupled=True,
    )


def beta_dpo_loss(*, beta: float, alpha: float, momentum: float, keep: float) -> Loss:
    """beta-DPO with a `keep` share of every step."""

    def follow(policy_CB: Tensor, reference_CB: Tensor, t: Terms) -> State:
        mean, deviation = coupled.gap_moments(policy_CB, reference_CB, weight_B=t.weight_B)
        return coupled.followed(t.state, {"mean": mean, "deviation": deviation}, momentum=momentum)

    def of(policy_CB: Tensor, reference_CB: Tensor, t: Terms) -> Tensor:
        kept_B = coupled.kept(
            paired.gap(policy_CB.detach(), reference_CB),
            mean=t.state["mean"],
            deviation=t.state["deviation"],
            share=keep,
            draw_B=given(t.draw_B, need="draw"),
            weight_B=t.weight_B,
        )
        return coupled.beta_dpo(
            policy_CB,
            reference_CB,
            beta=beta,
            alpha=alpha,
            mean=t.state["mean"],
            kept_B=kept_B,
            weight_B=t.weight_B,
        )

    return Loss(of=following(of, follow), needs=frozenset({"draw"}), coupled=True, follow=follow)


def drdpo_loss(*, beta: float, temperature: float) -> Loss:
    """Dr. DPO over graded core losses."""

    def of(policy_CB: Tensor, reference_CB: Tensor, t: Terms) -> Tensor:
        core_B = paired.sigmoid(policy_CB, reference_CB, beta=beta, p_B=t.p_B, margin_B=t.margin_B)
        return coupled.drdpo(core_B, temperature=temperature, weight_B=t.weight_B)

    return Loss(of=of, p=True, margin=True, coupled=True)


def simpo_loss(*, beta: float, gamma: float) -> Loss:
    """SimPO; the margin of a pair is added to gamma."""
    return Loss(
        of=lambda policy, reference, t: free.simpo(
            policy, beta=beta, gamma=gamma, length_CB=t.length_CB, margin_B=t.margin_B
        ),
        margin=True,
        reference=False,
    )


def alphapo_loss(*, beta: float, gamma: float, alpha: float) -> Loss:
    """AlphaPO."""
    return Loss(
        of=lambda policy, reference, t: free.alphapo(
            policy, beta=beta, gamma=gamma, alpha=alpha, length_CB=t.length_CB
        ),
        reference=False,
    )


def cpo_loss(*, beta: float, nll_weight: float, reduce: str = "per-token") -> Loss:
    """CPO with its likelihood term."""
    return with_nll(lambda policy, t: free.cpo(policy, beta=beta), weight=nll_weight, reduce=reduce)


def slic_loss(*, delta: float, nll_weight: float, reduce: str = "sum") -> Loss:
    """SLiC-HF with its likelihood term."""
    return with_nll(lambda policy, t: free.slic(policy, delta=delta), weight=nll_weight, reduce=reduce)


def orpo_loss(*, odds_weight: float, reduce: str = "per-sequence") -> Loss:
    """ORPO: the likelihood of chosen, and the odds ratio with its weight."""
    return with_nll(lambda policy, t: odds_weight * free.orpo(policy, length_CB=t.length_CB), weight=1.0, reduce=reduce)


def with_nll(preference: Callable[[Tensor, Terms], Tensor], *, weight: float, reduce: str) -> Loss:
    """A reference-free preference term plus `weight` times the negative log-likelihood of chosen."""
    likelihood = sft_loss(reduce=reduce).of
    return Loss(
        of=lambda policy, reference, t: preference(policy, t) + weight * likelihood(policy, reference, t),
        reference=False,
    )


def sft_loss(*, reduce: str = "per-token") -> Loss:
    """Supervised fine-tuning on chosen. Raises ValueError for an unknown reduction."""
    if reduce not in supervised.REDUCTIONS:
        raise ValueError(f"reduce = {reduce!r} is not one of {', '.join(supervised.REDUCTIONS)}")
    return Loss(
        of=lambda policy, reference, t: supervised.nll(
            policy, reduce=reduce, length_CB=t.length_CB, mean_length=t.mean_length
        ),
        reference=False,
    )


def unlikelihood_loss(*, alpha: float, form: str = "bounded") -> Loss:
    """Unlikelihood of rejected, token by token ('bounded') or as a whole ('direct')."""
    if form not in ("bounded", "direct"):
        raise ValueError(f"form = {form!r} is not 'bounded' or 'direct'")
    if form == "direct":
        return Loss(
            of=lambda policy, reference, t: supervised.unlikelihood_direct(policy, alpha=alpha), reference=False
        )

    def of(policy_CB: Tensor, reference_CB: Tensor, t: Terms) -> Tensor:
        unlikely_CB = given(t.unlikely_CB, need="unlikely")
        return supervised.unlikelihood(policy_CB, alpha=alpha, unlikely_CB=unlikely_CB)

    return Loss(of=of, reference=False, needs=frozenset({"unlikely"}))


def kto_loss(*, beta: float, desirable: float, undesirable: float) -> Loss:
    """KTO, its reference point from the mismatched answers of the step."""

    def of(policy_CB: Tensor, reference_CB: Tensor, t: Terms) -> Tensor:
        return unpaired.kto(
            policy_CB,
            reference_CB,
            beta=beta,
            desirable=desirable,
            undesirable=undesirable,
            origin=unpaired.reference_point(policy_CB, reference_CB, weight_B=t.weight_B),
            label_B=t.p_B,
        )

    return Loss(of=of, p=True, coupled=True, unpaired=True)


def apo_zero_unpaired_loss(*, beta: float) -> Loss:
    """APO-zero on labelled answers."""
    return Loss(
        of=lambda policy, reference, t: unpaired.apo_zero_unpaired(policy, reference, beta=beta, label_B=t.p_B),
        p=True,
        unpaired=True,
    )


def wpo_loss(*, inner: Mapping[str, Any], most: float | None = None) -> Loss:
    """WPO's weights on the loss `inner`, a name with its knobs."""
    return weighted(made(inner), most=most)


def mixed_loss(*, parts: Sequence[Mapping[str, Any]]) -> Loss:
    """A sum of losses; every part is a coefficient, a name and its knobs."""
    return mixed([Part(str(part["name"]), float(part["coefficient"]), made(part)) for part in parts])


def made(settings: Mapping[str, Any]) -> Loss:
    """The loss of a mapping with its name and knobs; a coefficient beside them is not read."""
    return LOSSES[settings["name"]](**{k: v for k, v in settings.items() if k not in ("name", "coefficient")})


def plain(equation: Callable[..., Tensor], *, u: Transform | None = None, **knobs: float | None) -> Loss:
    """A loss of the log-probabilities and its knobs alone."""
    given_knobs = knobs if u is None else {**knobs, "u": u}
    return Loss(of=lambda policy, reference, t: equation(policy, reference, **given_knobs))


def measured(equation: Callable[..., Tensor], *, u: Transform | None = None, **knobs: float) -> Loss:
    """The same, of the lengths as well."""
    given_knobs = knobs if u is None else {**knobs, "u": u}
    return Loss(of=lambda policy, reference, t: equation(policy, reference, length_CB=t.length_CB, **given_knobs))


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
    "apo-zero": apo_zero_loss,
    "apo-down": apo_down_loss,
    "discopop": discopop_loss,
    "dpop": dpop_loss,
    "rdpo": rdpo_loss,
    "ld": ld_loss,
    "samp": samp_loss,
    "cal": cal_loss,
    "chi": chi_loss,
    "tdpo1": tdpo1_loss,
    "tdpo2": tdpo2_loss,
    "bco": bco_loss,
    "aot": aot_loss,
    "aot-unpaired": aot_unpaired_loss,
    "beta-dpo": beta_dpo_loss,
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
    "wpo": wpo_loss,
    "mixed": mixed_loss,
}
