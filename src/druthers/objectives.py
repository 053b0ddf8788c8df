"""Settings of the losses: one frozen section each, with its own knobs and no others, chosen by `name`.

The knobs have the names of the factories in `losses/catalogue.py`, so `LOSSES[name](**knobs)` takes a dumped section.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Annotated, Any, Literal, get_args

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    ValidationInfo,
    field_validator,
    model_serializer,
    model_validator,
)


class Section(BaseModel):
    """A frozen group of settings."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, coerce_numbers_to_str=True)


Divergence = Literal["reverse-kl", "forward-kl", "js", "alpha"]
Reduction = Literal["per-token", "per-sequence", "sum"]

PULL = "strength of the pull to the reference"
FLIPPED = "probability that a label is flipped"
DIVERGENCE: Any = Field("reverse-kl", description="what keeps the policy near the reference")
DIVERGENCE_ALPHA: Any = Field(
    None, description="order of divergence = 'alpha': 1 is the reverse KL, 0 the forward KL; unset: 0.5"
)
REDUCE = "negative log-likelihood of chosen: over the tokens of the step, averaged over each response, or summed"


def alpha_is_read(value: float | None, info: ValidationInfo) -> float | None:
    """The order of the alpha divergence belongs to that one alone."""
    if value is not None and info.data.get("divergence") != "alpha":
        raise ValueError("it is read by divergence = 'alpha' alone; leave one of them out")
    return value


class SigmoidSettings(Section):
    """DPO, the sigmoid loss."""

    name: Literal["sigmoid"] = "sigmoid"
    beta: float = Field(0.1, gt=0, description=PULL)
    divergence: Divergence = DIVERGENCE
    divergence_alpha: float | None = DIVERGENCE_ALPHA
    _read = field_validator("divergence_alpha")(alpha_is_read)


class CDPOSettings(Section):
    """Conservative DPO: labels may be flipped."""

    name: Literal["cdpo"] = "cdpo"
    beta: float = Field(0.1, gt=0, description=PULL)
    smoothing: float = Field(0.1, ge=0, lt=0.5, description=FLIPPED)
    divergence: Divergence = DIVERGENCE
    divergence_alpha: float | None = DIVERGENCE_ALPHA
    _read = field_validator("divergence_alpha")(alpha_is_read)


class RobustSettings(Section):
    """Robust DPO: unbiased under flipped labels."""

    name: Literal["robust"] = "robust"
    beta: float = Field(0.1, gt=0, description=PULL)
    smoothing: float = Field(0.1, ge=0, lt=0.5, description=FLIPPED)
    divergence: Divergence = DIVERGENCE
    divergence_alpha: float | None = DIVERGENCE_ALPHA
    _read = field_validator("divergence_alpha")(alpha_is_read)


class GeometricSettings(Section):
    """GDPO: pairs that are nearly tied teach nearly nothing."""

    name: Literal["geometric"] = "geometric"
    beta: float = Field(0.1, gt=0, description=PULL)


class HingeSettings(Section):
    """The hinge of RSO and SLiC: pairs that are right by enough teach nothing."""

    name: Literal["hinge"] = "hinge"
    beta: float = Field(0.1, gt=0, description="reward of one nat of log-ratio; a gap of 1 / beta is enough")
    divergence: Divergence = DIVERGENCE
    divergence_alpha: float | None = DIVERGENCE_ALPHA
    _read = field_validator("divergence_alpha")(alpha_is_read)


class IPOSettings(Section):
    """IPO: squared distance of the gap of averaged log-ratios from 1 / (2 beta)."""

    name: Literal["ipo"] = "ipo"
    beta: float = Field(0.1, gt=0, description="tau of the paper; log-ratios are averaged over response tokens")
    divergence: Divergence = DIVERGENCE
    divergence_alpha: float | None = DIVERGENCE_ALPHA
    _read = field_validator("divergence_alpha")(alpha_is_read)


class IPOSummedSettings(Section):
    """IPO on summed log-ratios, as in the equation of the paper."""

    name: Literal["ipo-summed"] = "ipo-summed"
    beta: float = Field(0.1, gt=0, description="tau of the paper; log-ratios are summed over response tokens")
    divergence: Divergence = DIVERGENCE
    divergence_alpha: float | None = DIVERGENCE_ALPHA
    _read = field_validator("divergence_alpha")(alpha_is_read)


class DPONormSettings(Section):
    """DPO on log-ratios averaged over each response."""

    name: Literal["dpo-norm"] = "dpo-norm"
    beta: float = Field(5.0, gt=0, description="strength of the pull to the reference, for averages: about 5")
    divergence: Divergence = DIVERGENCE
    divergence_alpha: float | None = DIVERGENCE_ALPHA
    _read = field_validator("divergence_alpha")(alpha_is_read)


class EXOSettings(Section):
    """EXO: reverse KL to the label."""

    name: Literal["exo"] = "exo"
    beta: float = Field(0.1, gt=0, description=PULL)
    smoothing: float = Field(1e-3, gt=0, lt=0.5, description="probability of rejected in the label")
    divergence: Divergence = DIVERGENCE
    divergence_alpha: float | None = DIVERGENCE_ALPHA
    _read = field_validator("divergence_alpha")(alpha_is_read)


class NCASettings(Section):
    """NCA: absolute rewards, chosen kept from falling."""

    name: Literal["nca"] = "nca"
    beta: float = Field(0.1, gt=0, description=PULL)


class SPPOSettings(Section):
    """SPPO: log-ratios towards the probability to win."""

    name: Literal["sppo"] = "sppo"
    beta: float = Field(1e-3, gt=0, description="1 / eta of the paper; the aim of a sure pair is 1 / (2 beta)")


class APOZeroSettings(Section):
    """APO-zero: chosen up, rejected down; for chosen responses better than the model's own."""

    name: Literal["apo-zero"] = "apo-zero"
    beta: float = Field(0.1, gt=0, description=PULL)


class APODownSettings(Section):
    """APO-down: both down, rejected more; for chosen responses worse than the model's own."""

    name: Literal["apo-down"] = "apo-down"
    beta: float = Field(0.1, gt=0, description=PULL)


class DiscoPOPSettings(Section):
    """DiscoPOP: a blend of logistic and exponential loss that a search found."""

    name: Literal["discopop"] = "discopop"
    beta: float = Field(0.1, gt=0, description=PULL)
    tau: float = Field(0.05, gt=0, description="temperature of the blend")
    divergence: Divergence = DIVERGENCE
    divergence_alpha: float | None = DIVERGENCE_ALPHA
    _read = field_validator("divergence_alpha")(alpha_is_read)


class DPOPSettings(Section):
    """DPO-Positive: a penalty where chosen becomes less likely than under the reference."""

    name: Literal["dpop"] = "dpop"
    beta: float = Field(0.3, gt=0, description=PULL)
    penalty: float = Field(50.0, ge=0, description="lambda of the paper")


class RDPOSettings(Section):
    """R-DPO: length explains part of the preference."""

    name: Literal["rdpo"] = "rdpo"
    beta: float = Field(0.1, gt=0, description=PULL)
    alpha: float = Field(0.01, ge=0, description="reward that one more token of chosen explains")


class LDSettings(Section):
    """LD-DPO: tokens beyond the shorter response count less."""

    name: Literal["ld"] = "ld"
    beta: float = Field(0.1, gt=0, description=PULL)
    alpha: float = Field(0.5, ge=0, le=1, description="weight of the tokens beyond the length of the shorter response")
    tail_of: Literal["both", "policy"] = Field("both", description="whose log-probs are weighted so")


class SampSettings(Section):
    """SamPO: as many tokens of the longer response as the shorter has, drawn at random."""

    name: Literal["samp"] = "samp"
    beta: float = Field(0.1, gt=0, description=PULL)


class CalSettings(Section):
    """Cal-DPO: rewards calibrated to plus and minus 1 / (2 beta)."""

    name: Literal["cal"] = "cal"
    beta: float = Field(1e-3, gt=0, description="log-ratios aim at plus and minus 1 / (2 beta)")


class ChiSettings(Section):
    """Chi-squared PO: pessimistic about what the reference rarely writes."""

    name: Literal["chi"] = "chi"
    beta: float = Field(0.1, gt=0, description=PULL)
    clip: float | None = Field(
        None, gt=0, description="largest difference of rewards, 2 R_max of the paper; beyond it a pair teaches nothing"
    )


class TDPO1Settings(Section):
    """TDPO1: DPO with the KL of every token, from both models' full distributions."""

    name: Literal["tdpo1"] = "tdpo1"
    beta: float = Field(0.1, gt=0, description=PULL)


class TDPO2Settings(Section):
    """TDPO2: TDPO with the KL of chosen held fixed."""

    name: Literal["tdpo2"] = "tdpo2"
    beta: float = Field(0.1, gt=0, description=PULL)
    alpha: float = Field(0.5, ge=0, description="weight of the difference of KLs")


class BCOSettings(Section):
    """BCO: chosen above and rejected below the running mean of all rewards."""

    name: Literal["bco"] = "bco"
    beta: float = Field(0.1, gt=0, description=PULL)
    shift: Literal["moving", "mean", "none"] = Field(
        "moving", description="mean reward as an exponential average over steps, over all steps alike, or 0"
    )
    momentum: float | None = Field(
        None, ge=0, lt=1, description="what shift = 'moving' keeps of the past in a step; unset: 0.9"
    )

    @field_validator("momentum")
    @classmethod
    def _momentum_is_read(cls, value: float | None, info: ValidationInfo) -> float | None:
        return momentum_is_read(value, info)

    @field_validator("shift", mode="before")
    @classmethod
    def _none_is_a_name_here(cls, value: object) -> object:
        """On the command line `none` unsets a setting; here it is one of the names."""
        return "none" if value is None else value


def momentum_is_read(value: float | None, info: ValidationInfo) -> float | None:
    """A momentum belongs to the moving shift alone."""
    if value is not None and info.data.get("shift") != "moving":
        raise ValueError("it is read by shift = 'moving' alone; leave one of them out")
    return value


class AOTSettings(Section):
    """AOT: the policy's margins dominate the reference's at every quantile of a step."""

    name: Literal["aot"] = "aot"
    beta: float = Field(0.1, gt=0, description=PULL)
    smoothing: float = Field(0.0, ge=0, lt=0.5, description=FLIPPED)


class AOTUnpairedSettings(Section):
    """AOT that sorts chosen and rejected apart."""

    name: Literal["aot-unpaired"] = "aot-unpaired"
    beta: float = Field(0.1, gt=0, description=PULL)
    smoothing: float = Field(0.0, ge=0, lt=0.5, description=FLIPPED)


class BetaDPOSettings(Section):
    """beta-DPO: beta of each step by its gap, outliers left out."""

    name: Literal["beta-dpo"] = "beta-dpo"
    beta: float = Field(0.1, gt=0, description="strength of the pull to the reference at a gap as usual")
    alpha: float = Field(0.6, ge=0, description="how much beta follows the gap of a step")
    momentum: float = Field(0.9, ge=0, lt=1, description="what the moving mean and deviation keep of the past")
    keep: float = Field(0.8, gt=0, le=1, description="share of the pairs of a step that is kept, rho of the paper")


class DrDPOSettings(Section):
    """Dr. DPO: pairs of a large loss are trusted less."""

    name: Literal["drdpo"] = "drdpo"
    beta: float = Field(0.1, gt=0, description=PULL)
    temperature: float = Field(1.0, gt=0, description="beta' of the paper; the larger, the nearer to the mean")


class SimPOSettings(Section):
    """SimPO: averaged log-probs without a reference, ahead by gamma."""

    name: Literal["simpo"] = "simpo"
    beta: float = Field(2.0, gt=0, description="reward of one nat of average log-probability")
    gamma: float = Field(1.0, ge=0, description="margin in units of reward; gamma / beta from 0.3 to 1.6")


class AlphaPOSettings(Section):
    """AlphaPO: SimPO with a bent reward."""

    name: Literal["alphapo"] = "alphapo"
    beta: float = Field(2.0, gt=0, description="reward of one unit of the bent average log-probability")
    gamma: float = Field(1.0, ge=0, description="margin in units of reward")
    alpha: float = Field(0.25, description="bend; 0 is SimPO")


class CPOSettings(Section):
    """CPO: DPO without a reference, and the likelihood of chosen."""

    name: Literal["cpo"] = "cpo"
    beta: float = Field(0.1, gt=0, description="reward of one nat of log-probability")
    nll_weight: float = Field(1.0, ge=0, description="weight of the likelihood of chosen")
    reduce: Reduction = Field("per-token", description=REDUCE)


class ORPOSettings(Section):
    """ORPO: the likelihood of chosen, and its odds against rejected."""

    name: Literal["orpo"] = "orpo"
    odds_weight: float = Field(0.1, ge=0, description="lambda of the paper; weight of the odds ratio")
    reduce: Reduction = Field("per-sequence", description=REDUCE)


class SLiCSettings(Section):
    """SLiC-HF: a hinge on log-probs without a reference, and the likelihood of chosen."""

    name: Literal["slic"] = "slic"
    delta: float = Field(1.0, ge=0, description="nats by which chosen is to be likelier than rejected")
    nll_weight: float = Field(1.0, ge=0, description="weight of the likelihood of chosen")
    reduce: Reduction = Field("sum", description=REDUCE)


class SFTSettings(Section):
    """Supervised fine-tuning on the chosen responses."""

    name: Literal["sft"] = "sft"
    reduce: Reduction = Field("per-token", description=REDUCE)


class UnlikelihoodSettings(Section):
    """Chosen likelier, rejected unlikelier: a baseline of the DPO paper."""

    name: Literal["unlikelihood"] = "unlikelihood"
    alpha: float = Field(0.5, ge=0, le=1, description="weight of rejected")
    form: Literal["bounded", "direct"] = Field(
        "bounded", description="'bounded': -log(1 - p) of every token of rejected; 'direct': its log-probability"
    )


class KTOSettings(Section):
    """KTO: answers labelled good or bad, against a reference point of the step."""

    name: Literal["kto"] = "kto"
    beta: float = Field(0.1, gt=0, description=PULL)
    desirable: float = Field(1.0, gt=0, description="weight of good answers")
    undesirable: float = Field(1.0, gt=0, description="weight of bad answers")


class BCOUnpairedSettings(Section):
    """BCO on answers labelled good or bad."""

    name: Literal["bco-unpaired"] = "bco-unpaired"
    beta: float = Field(0.1, gt=0, description=PULL)
    shift: Literal["moving", "mean", "none"] = Field(
        "moving", description="mean reward as an exponential average over steps, over all steps alike, or 0"
    )
    momentum: float | None = Field(
        None, ge=0, lt=1, description="what shift = 'moving' keeps of the past in a step; unset: 0.9"
    )

    @field_validator("momentum")
    @classmethod
    def _momentum_is_read(cls, value: float | None, info: ValidationInfo) -> float | None:
        return momentum_is_read(value, info)

    @field_validator("shift", mode="before")
    @classmethod
    def _none_is_a_name_here(cls, value: object) -> object:
        """On the command line `none` unsets a setting; here it is one of the names."""
        return "none" if value is None else value


class APOZeroUnpairedSettings(Section):
    """APO-zero on answers labelled good or bad."""

    name: Literal["apo-zero-unpaired"] = "apo-zero-unpaired"
    beta: float = Field(0.1, gt=0, description=PULL)


Single = (
    SigmoidSettings
    | CDPOSettings
    | RobustSettings
    | GeometricSettings
    | HingeSettings
    | IPOSettings
    | IPOSummedSettings
    | DPONormSettings
    | EXOSettings
    | NCASettings
    | SPPOSettings
    | APOZeroSettings
    | APODownSettings
    | DiscoPOPSettings
    | DPOPSettings
    | RDPOSettings
    | LDSettings
    | SampSettings
    | CalSettings
    | ChiSettings
    | TDPO1Settings
    | TDPO2Settings
    | BCOSettings
    | AOTSettings
    | AOTUnpairedSettings
    | BetaDPOSettings
    | DrDPOSettings
    | SimPOSettings
    | AlphaPOSettings
    | CPOSettings
    | ORPOSettings
    | SLiCSettings
    | SFTSettings
    | UnlikelihoodSettings
    | KTOSettings
    | BCOUnpairedSettings
    | APOZeroUnpairedSettings
)
"""Every loss that is not made of others."""


class PartSettings(Section):
    """One loss of a sum, written flat: `{coefficient = 0.8, name = "sigmoid", beta = 0.1}`."""

    coefficient: float = Field(1.0, gt=0, description="what the loss counts in the sum")
    loss: Annotated[Single, Field(discriminator="name")]

    @model_validator(mode="before")
    @classmethod
    def _from_flat(cls, value: object) -> object:
        """Everything beside the coefficient is the loss's."""
        if not isinstance(value, Mapping) or "loss" in value:
            return value
        beside = {key: knob for key, knob in value.items() if key != "coefficient"}
        return {key: knob for key, knob in value.items() if key == "coefficient"} | {"loss": beside}

    @model_serializer
    def _flat(self) -> dict[str, Any]:
        """As it is written."""
        return {"coefficient": self.coefficient, **self.loss.model_dump()}


class MixedSettings(Section):
    """A weighted sum of losses; by default MPO."""

    name: Literal["mixed"] = "mixed"
    parts: tuple[PartSettings, ...] = Field(
        (
            PartSettings(coefficient=0.8, loss=SigmoidSettings()),
            PartSettings(coefficient=0.2, loss=BCOSettings()),
            PartSettings(coefficient=1.0, loss=SFTSettings()),
        ),
        min_length=1,
        description="losses with their coefficients and settings; each by another name",
    )

    @field_validator("parts")
    @classmethod
    def _parts_fit(cls, value: tuple[PartSettings, ...]) -> tuple[PartSettings, ...]:
        """What one pass over one kind of rows can serve."""
        names = [part.loss.name for part in value]
        twice = next((name for name in names if names.count(name) > 1), None)
        if twice:
            raise ValueError(f"{twice!r} stands there twice; give one part of each name")
        kinds = {name in UNPAIRED for name in names if name != "sft"}
        if len(kinds) > 1:
            raise ValueError(f"{listed(names)} mix losses of pairs with losses of single answers; use one kind")
        if {"ld", "samp"} <= set(names):
            raise ValueError("'ld' and 'samp' read different tokens of the same responses; use one of them")
        return value


UNPAIRED = ("kto", "bco-unpaired", "apo-zero-unpaired")
"""Losses of answers that are labelled good or bad."""
REORDERING = ("aot", "aot-unpaired", "beta-dpo", "drdpo")
"""Losses that sort, select or mix the pairs of a step, so no weight of a pair stays its own."""


class WPOSettings(Section):
    """WPO: pairs count as much as the policy would write them."""

    name: Literal["wpo"] = "wpo"
    inner: Annotated[Single | MixedSettings, Field(discriminator="name")] = Field(
        SigmoidSettings(), description="the loss of pairs that is weighted, by its name with its settings"
    )
    most: float | None = Field(None, gt=0, description="largest weight; unset: none, as in the paper")

    @field_validator("inner")
    @classmethod
    def _weights_stay_with_their_pairs(cls, value: Section) -> Section:
        """A weight belongs to one pair."""
        for one in singles(value):
            if kind_of(one) in UNPAIRED + REORDERING:
                raise ValueError(
                    f"{kind_of(one)!r} sorts, selects or does not have pairs, so no weight would stay its own; "
                    "use a loss of single pairs"
                )
        return value


LossSettings = Annotated[Single | MixedSettings | WPOSettings, Field(discriminator="name")]

SECTIONS: dict[str, type[Section]] = {
    section.model_fields["name"].default: section for section in (*get_args(Single), MixedSettings, WPOSettings)
}
"""The section of every loss by its name."""


ALSO_CALLED = {
    "dpo": "sigmoid",
    "soft": "sigmoid",
    "margin": "sigmoid",
    "odpo": "sigmoid",
    "gdpo": "geometric",
    "rso": "hinge",
    "smaug": "dpop",
    "r-dpo": "rdpo",
    "ld-dpo": "ld",
    "sampo": "samp",
    "tdpo": "tdpo2",
    "cal-dpo": "cal",
    "chipo": "chi",
    "dr-dpo": "drdpo",
    "slic-hf": "slic",
    "rpo": "mixed",
    "mpo": "mixed",
}
"""Other names of the papers, for the hint where one is typed."""


def listed(names: Iterable[str]) -> str:
    """Names in quotes.

    >>> listed(["kto", "ipo"])
    "'kto', 'ipo'"
    """
    return ", ".join(map(repr, names))


def kind_of(loss: Section) -> str:
    """The name of a loss by its settings."""
    return str(type(loss).model_fields["name"].default)


def singles(loss: Section) -> Iterator[Section]:
    """The losses that settings are made of, in order; of one that is not made of others, itself.

    >>> [kind_of(one) for one in singles(MixedSettings())]
    ['sigmoid', 'bco', 'sft']
    """
    if isinstance(loss, MixedSettings):
        for part in loss.parts:
            yield from singles(part.loss)
    elif isinstance(loss, WPOSettings):
        yield from singles(loss.inner)
    else:
        yield loss


REPORTING_BETA = 0.1
"""What a nat of log-ratio is shown as where the loss has no beta of its own."""


def reporting_beta(loss: Section) -> float:
    """The beta of "implicit reward = beta * log-ratio" in metrics and reports; that of the first part which has one.

    >>> reporting_beta(SFTSettings()), reporting_beta(DPOPSettings()), reporting_beta(MixedSettings())
    (0.1, 0.3, 0.1)
    """
    betas = (value for one in singles(loss) for key, value in one if key == "beta")
    return float(next(betas, REPORTING_BETA))


def described(loss: Section) -> str:
    """A loss in a few words.

    >>> described(SigmoidSettings()), described(SFTSettings()), described(MixedSettings())
    ('sigmoid loss, beta 0.1', 'sft loss', '0.8 sigmoid + 0.2 bco + 1 sft loss, beta 0.1')
    """
    name = kind_of(loss)
    if isinstance(loss, MixedSettings):
        name = " + ".join(f"{part.coefficient:g} {part.loss.name}" for part in loss.parts)
    if isinstance(loss, WPOSettings):
        name = f"WPO-weighted {kind_of(loss.inner)}"
    has_beta = any("beta" in type(one).model_fields for one in singles(loss))
    return f"{name} loss, beta {reporting_beta(loss):g}" if has_beta else f"{name} loss"


def owners(knob: str) -> list[str]:
    """The losses that have a knob, in their order.

    >>> owners("clip"), owners("tail_of")
    (['chi'], ['ld'])
    """
    return [name for name, section in SECTIONS.items() if knob in section.model_fields]


def remarks(loss: Section) -> list[str]:
    """What a user should know of values that are allowed and yet easily wrong; the caller prints it.

    >>> remarks(SimPOSettings())
    ['simpo: gamma / beta = 0.5; the paper searched 0.3 to 1.6, and its results turn on the learning rate']
    """
    return [text for one in singles(loss) for text in remarks_of_one(one)]


def remarks_of_one(loss: Section) -> list[str]:
    """The same for a loss that is not made of others."""
    found: list[str] = []
    if isinstance(loss, DPONormSettings) and loss.beta < 1:
        found.append(f"dpo-norm: beta = {loss.beta:g} barely learns, as log-ratios are averaged; 5 is usual")
    if isinstance(loss, SimPOSettings | AlphaPOSettings):
        found.append(
            f"{loss.name}: gamma / beta = {loss.gamma / loss.beta:.3g}; the paper searched 0.3 to 1.6, and its results "
            "turn on the learning rate"
        )
    if isinstance(loss, UnlikelihoodSettings) and loss.form == "direct":
        found.append("unlikelihood: form = 'direct' has no bound below, so text falls apart if it is trained for long")
    if isinstance(loss, SPPOSettings | CalSettings) and loss.beta >= 0.05:
        found.append(f"{loss.name}: beta = {loss.beta:g} aims at log-ratios of {0.5 / loss.beta:.3g}; 0.001 is usual")
    return found
