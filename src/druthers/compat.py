"""Losses by the names and options that another system uses, as settings of ours with that system's meaning.

`loss.compat = "trl-1"` and the peer's own option names (`loss_type`, `label_smoothing`) become a loss of ours.
An option that the peer would accept and not read is refused: what someone asks for happens, or is refused. Where the
peer's number depends on how a step is cut into micro-batches, ours is
the peer's for one micro-batch, and a note says so.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from druthers.objectives import SECTIONS
from druthers.records import InputError

Options = Mapping[str, Any]
Tree = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Translation:
    """A loss of ours as plain settings, and what is to be said about it."""

    loss: Tree
    notes: tuple[str, ...] = ()


@dataclass(slots=True)
class Asked:
    """The options of a peer, and which of them something has read."""

    peer: str
    options: Options
    defaults: Options
    read: set[str] = field(default_factory=set)

    def get(self, name: str) -> Any:
        """An option, or the peer's default."""
        self.read.add(name)
        return self.options.get(name, self.defaults[name])

    def number(self, name: str) -> float:
        """The same as a number; raises InputError for anything else."""
        value = self.get(name)
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise InputError(f"loss.{name} = {value!r} is not a number; give one")
        return float(value)

    def check_known(self) -> None:
        """Raise InputError for an option that the peer does not have, with the nearest one it has."""
        for name in self.options:
            if name not in self.defaults:
                near = difflib.get_close_matches(str(name), self.defaults, n=1)
                raise InputError(
                    f"loss.{name} is not an option of {self.peer}; "
                    + (f"did you mean {near[0]!r}?" if near else f"it has {', '.join(self.defaults)}")
                )

    def check_read(self, kind: str) -> None:
        """Raise InputError for an option that was given, differs from the default, and that nothing has read."""
        for name, value in self.options.items():
            if name not in self.read and value != self.defaults[name]:
                raise InputError(ignored(self.peer, name, kind))


def ignored(peer: str, name: str, kind: str) -> str:
    """Why an option is refused that the peer would accept and not read."""
    remedy = (
        "leave it out, or use loss_type=robust, or our own loss.name=cdpo, which is conservative DPO"
        if name == "label_smoothing"
        else "leave it out"
    )
    return f"{peer} ignores {name} with loss_type {kind!r}; {remedy}"


def translate(options: Options) -> Translation:
    """Our loss for `options`, the group `loss` with its key 'compat'.

    Raises InputError for an unknown peer, option or loss, and for what the peer ignores or we do not have.

    >>> translate({"compat": "openrlhf", "beta": 0.2, "label_smoothing": 0.1}).loss
    {'name': 'cdpo', 'beta': 0.2, 'smoothing': 0.1}
    >>> translate({"compat": "eric-mitchell", "name": "ipo"}).loss
    {'name': 'ipo-summed', 'beta': 0.1}
    """
    peer = options["compat"]
    if peer not in PEERS:
        raise InputError(f"loss.compat = {peer!r} is not one of {', '.join(PEERS)}")
    defaults, translator = PEERS[peer]
    asked = Asked(peer, {key: value for key, value in options.items() if key != "compat"}, defaults)
    asked.check_known()
    return translator(asked)


TRL_1: Tree = {
    "loss_type": "sigmoid",
    "loss_weights": None,
    "beta": 0.1,
    "label_smoothing": 0.0,
    "discopop_tau": 0.05,
    "ld_alpha": None,
    "f_divergence_type": "reverse_kl",
    "f_alpha_divergence_coef": 0.5,
    "use_weighting": False,
    "simpo_gamma": 0.5,
    "cpo_alpha": 1.0,
    "desirable_weight": 1.0,
    "undesirable_weight": 1.0,
}
TRL_0: Tree = {
    **{key: value for key, value in TRL_1.items() if key != "f_alpha_divergence_coef"},
    "f_divergence_params": None,
    "rpo_alpha": None,
    "reference_free": False,
}

PLAIN = {
    "sigmoid": "sigmoid",
    "hinge": "hinge",
    "ipo": "ipo",
    "nca_pair": "nca",
    "sppo_hard": "sppo",
    "apo_zero": "apo-zero",
    "apo_down": "apo-down",
    "apo_zero_unpaired": "apo-zero-unpaired",
}
"""Losses of TRL with a beta and nothing else."""
SMOOTHED = {"robust": "robust", "exo_pair": "exo", "aot": "aot", "aot_unpaired": "aot-unpaired"}
"""Losses of TRL that read label_smoothing."""
DIVERGENCES = {
    "reverse_kl": "reverse-kl",
    "forward_kl": "forward-kl",
    "js_divergence": "js",
    "alpha_divergence": "alpha",
}
ONE_BATCH = "depends on the micro-batch there; ours is that for one micro-batch a step, and the same for any split"
ONE_BATCH_NOTES = {
    "sft": f"sft: the mean over tokens {ONE_BATCH}",
    "simpo": f"simpo: the mean over tokens of its likelihood term {ONE_BATCH}",
    "aot": f"aot: sorting {ONE_BATCH}",
    "aot_unpaired": f"aot_unpaired: sorting {ONE_BATCH}",
    "aot_pair": f"aot_pair: sorting {ONE_BATCH}",
    "kto": f"kto: the reference point {ONE_BATCH}",
}


def trl_1(asked: Asked) -> Translation:
    """TRL 1.x: `DPOConfig`, with 'simpo' of `CPOConfig` and 'kto', 'apo_zero_unpaired' of `KTOConfig`."""
    kinds = kinds_of(asked)
    divergence = divergence_of_1(asked, kinds)
    trees = [one_of_trl(asked, kind, divergence) for kind in kinds]
    trees = desensitized(asked, kinds, trees)
    tree = summed(asked, trees)
    if asked.get("use_weighting"):
        tree = weighed(asked, kinds, tree)
    asked.check_read(kinds[0])
    return Translation(tree, tuple(ONE_BATCH_NOTES[kind] for kind in kinds if kind in ONE_BATCH_NOTES))


def kinds_of(asked: Asked) -> list[str]:
    """The loss types asked for."""
    given = asked.get("loss_type")
    kinds = [given] if isinstance(given, str) else list(given)
    if not kinds or not all(isinstance(kind, str) for kind in kinds):
        raise InputError(f"loss.loss_type = {given!r} is neither a name nor a list of names")
    return kinds


def one_of_trl(asked: Asked, kind: str, divergence: Tree) -> Tree:
    """One loss type with the options it reads, `divergence` among them where it has one."""
    tree: Tree = {"name": PLAIN.get(kind, SMOOTHED.get(kind, kind))}
    if kind != "sft":
        tree["beta"] = asked.number("beta")
    if kind in SMOOTHED:
        tree["smoothing"] = asked.number("label_smoothing")
    elif kind == "bco_pair":
        tree |= {"name": "bco", "shift": "none"}
    elif kind == "discopop":
        tree["tau"] = asked.number("discopop_tau")
    elif kind == "sigmoid_norm":
        tree["name"] = "dpo-norm"
    elif kind == "simpo":
        tree = simpo_of_trl(asked)
    elif kind == "kto":
        tree |= {key.removesuffix("_weight"): asked.number(key) for key in ("desirable_weight", "undesirable_weight")}
    elif kind == "sft":
        tree["reduce"] = "per-token"
    elif kind not in PLAIN:
        raise InputError(
            f"loss.loss_type = {kind!r} is not a loss of {asked.peer}; it has "
            f"{', '.join([*PLAIN, *SMOOTHED, 'bco_pair', 'discopop', 'sigmoid_norm', 'simpo', 'kto', 'sft'])}"
        )
    if kind == "exo_pair" and tree["smoothing"] == 0:
        raise InputError(f"{asked.peer} refuses exo_pair with label_smoothing = 0; use label_smoothing=0.001")
    return tree | (divergence if "divergence" in SECTIONS[tree["name"]].model_fields else {})


def simpo_of_trl(asked: Asked) -> Tree:
    """`CPOTrainer` with loss_type 'simpo': our gamma is theirs, and the likelihood of chosen is added."""
    simpo: Tree = {"name": "simpo", "beta": asked.number("beta"), "gamma": asked.number("simpo_gamma")}
    weight = asked.number("cpo_alpha")
    if weight == 0:
        return simpo
    likelihood = {"coefficient": weight, "name": "sft", "reduce": "per-token"}
    return {"name": "mixed", "parts": [{"coefficient": 1.0, **simpo}, likelihood]}


def divergence_of_1(asked: Asked, kinds: list[str]) -> Tree:
    """TRL 1.x's f-divergence, `f'(t) = (t^(alpha - 1) - 1) / (alpha - 1)`; ours has the same alpha."""
    tree = named_divergence(asked, kinds, valid=(*VALID_OF_0, "ipo", "sigmoid_norm", "discopop", "sft"))
    return (
        tree | {"divergence_alpha": asked.number("f_alpha_divergence_coef")}
        if tree.get("divergence") == "alpha"
        else tree
    )


VALID_OF_0 = ("sigmoid", "hinge", "exo_pair", "robust")
"""Losses whose f-divergence in TRL 0.24 is ours."""


def named_divergence(asked: Asked, kinds: list[str], *, valid: tuple[str, ...]) -> Tree:
    """The divergence by our name; empty for the reverse KL, which every loss has."""
    given = asked.get("f_divergence_type")
    if given not in DIVERGENCES:
        raise InputError(f"loss.f_divergence_type = {given!r} is not one of {', '.join(DIVERGENCES)}")
    if given == "reverse_kl":
        return {}
    wrong = next((kind for kind in kinds if kind not in valid), None)
    if wrong:
        raise InputError(
            f"f_divergence_type = {given!r} with loss_type {wrong!r} of {asked.peer} is not an f-divergence, "
            "or not the one we have; use reverse_kl, or one of " + ", ".join(valid)
        )
    return {"divergence": DIVERGENCES[given]}


def desensitized(asked: Asked, kinds: list[str], trees: list[Tree]) -> list[Tree]:
    """LD-DPO in place of the sigmoid loss where `ld_alpha` is given."""
    if asked.get("ld_alpha") is None:
        return trees
    if kinds != ["sigmoid"] or trees[0]["name"] != "sigmoid" or "divergence" in trees[0]:
        raise InputError(
            f"ld_alpha of {asked.peer} changes the log-probs of every loss; we have LD-DPO as in its paper, on "
            "loss_type=sigmoid without label_smoothing and f_divergence_type"
        )
    return [{"name": "ld", "beta": trees[0]["beta"], "alpha": asked.number("ld_alpha"), "tail_of": "both"}]


def summed(asked: Asked, trees: list[Tree]) -> Tree:
    """Several losses with their weights as one; refused where they are one loss with a weight, which does nothing."""
    weights = asked.get("loss_weights")
    if len(trees) == 1:
        if weights is not None and list(weights) != [1.0]:
            raise InputError(f"loss_weights = {weights!r} of a single loss only scales it; leave it out")
        return trees[0]
    weights = [1.0] * len(trees) if weights is None else list(weights)
    if len(weights) != len(trees):
        raise InputError(
            f"loss_weights = {weights!r} has {len(weights)} numbers for {len(trees)} losses; give one each"
        )
    if any(tree["name"] == "mixed" for tree in trees):
        raise InputError("simpo with a likelihood term is a sum already; write it as loss.name=mixed")
    return {"name": "mixed", "parts": [{"coefficient": w, **tree} for w, tree in zip(weights, trees, strict=True)]}


def weighed(asked: Asked, kinds: list[str], tree: Tree) -> Tree:
    """WPO around a loss; the likelihood of a whole micro-batch, weighed by single pairs, is not a loss we have."""
    if "sft" in kinds or "simpo" in kinds:
        raise InputError(
            f"use_weighting of {asked.peer} multiplies the mean likelihood of a micro-batch by each pair's weight; "
            "leave out sft, or use loss.name=wpo"
        )
    return {"name": "wpo", "inner": tree}


def trl_0(asked: Asked) -> Translation:
    """TRL 0.24: conservative DPO by label_smoothing, BCO with a running shift; what it gets wrong is refused."""
    kinds = kinds_of(asked)
    check_kinds_of_0(asked, kinds)
    notes = [ONE_BATCH_NOTES[kind] for kind in kinds if kind in ONE_BATCH_NOTES]
    divergence = divergence_of_0(asked, kinds)
    trees = [one_of_trl_0(asked, kind, divergence) for kind in kinds]
    rpo = asked.get("rpo_alpha")
    tree = summed(asked, trees)
    if rpo is not None:
        notes.append(ONE_BATCH_NOTES["sft"])
        parts = tree["parts"] if tree["name"] == "mixed" else [{"coefficient": 1.0, **tree}]
        likelihood = {"coefficient": asked.number("rpo_alpha"), "name": "sft", "reduce": "per-token"}
        tree = {"name": "mixed", "parts": [*parts, likelihood]}
    asked.check_read(kinds[0])
    if "bco_pair" in kinds:
        notes.append(
            f"bco_pair: the mean of the shift {ONE_BATCH}; there evaluations move it too, and here they do not"
        )
    return Translation(tree, tuple(notes))


MISTAKES_OF_0 = {
    "use_weighting": "sets each token's log-prob against the distribution at the next position and leaves out the last "
    "token, so it is not WPO; use loss.compat=trl-1, or loss.name=wpo",
    "ld_alpha": "counts the tokens of the prompt as the first of a response and drops as many at its end, so it is not "
    "LD-DPO; use loss.compat=trl-1, or loss.name=ld",
}
"""Found by comparing numbers: scripts/record_trl_losses.py."""


def check_kinds_of_0(asked: Asked, kinds: list[str]) -> None:
    """Raise InputError for what TRL 0.24 does to other losses of the same run, and for what it gets wrong."""
    for option, wrong in MISTAKES_OF_0.items():
        if asked.get(option):
            raise InputError(f"{option} of {asked.peer} {wrong}")
    if "aot_unpaired" in kinds or "sigmoid_norm" in kinds:
        raise InputError(f"{asked.peer} calls it 'aot_pair', and has no 'sigmoid_norm'; use trl-1 for those names")
    if len(kinds) > 1 and "ipo" in kinds:
        raise InputError(f"{asked.peer} averages the log-probs of every loss beside 'ipo'; use loss.name=mixed")
    if len(kinds) > 1 and "exo_pair" in kinds and not asked.options.get("label_smoothing"):
        raise InputError(
            f"{asked.peer} sets label_smoothing to 0.001 for all losses after the first exo_pair; give label_smoothing"
        )


def one_of_trl_0(asked: Asked, kind: str, divergence: Tree) -> Tree:
    """One loss type of TRL 0.24."""
    if kind == "sigmoid":
        smoothing, beta = asked.number("label_smoothing"), asked.number("beta")
        if asked.get("reference_free"):
            return reference_free(asked, kind=kind, smoothing=smoothing, divergence=divergence)
        core: Tree = (
            {"name": "cdpo", "beta": beta, "smoothing": smoothing} if smoothing else {"name": kind, "beta": beta}
        )
        return core | divergence
    if kind == "aot_pair":
        smoothing = asked.number("label_smoothing")
        return {"name": "aot-unpaired", "beta": asked.number("beta"), "smoothing": smoothing}
    if kind == "exo_pair":
        smoothing = asked.number("label_smoothing") or 1e-3
        return {"name": "exo", "beta": asked.number("beta"), "smoothing": smoothing} | divergence
    tree = one_of_trl(asked, kind, divergence)
    return tree | {"shift": "mean"} if kind == "bco_pair" else tree


def reference_free(asked: Asked, *, kind: str, smoothing: float, divergence: Tree) -> Tree:
    """DPO without a reference is the preference term of CPO."""
    if smoothing or divergence:
        raise InputError(
            f"reference_free of {asked.peer} with label_smoothing or an f-divergence is not a loss we have; "
            f"leave them out of loss_type {kind!r}"
        )
    return {"name": "cpo", "beta": asked.number("beta"), "nll_weight": 0.0}


def divergence_of_0(asked: Asked, kinds: list[str]) -> Tree:
    """TRL 0.24's f-divergence: its alpha divergence `(1 - t^-c) / c` is ours with alpha = 1 - c."""
    tree = named_divergence(asked, kinds, valid=VALID_OF_0)
    if tree.get("divergence") == "forward-kl":
        raise InputError(f"{asked.peer} has no forward_kl; alpha_divergence with alpha_divergence_coef 1 is the same")
    if tree.get("divergence") != "alpha":
        return tree
    parameters = asked.get("f_divergence_params") or {}
    return tree | {"divergence_alpha": 1.0 - float(parameters.get("alpha_divergence_coef", 1.0))}


MITCHELL: Tree = {"name": "dpo", "beta": 0.1, "label_smoothing": 0.0, "reference_free": False}
OPENRLHF: Tree = {"beta": 0.1, "label_smoothing": 0.0, "ipo_enable": False, "nll_loss_coef": 0.0}


def mitchell(asked: Asked) -> Translation:
    """The code of the DPO paper: IPO on sums, SFT on sums, conservative DPO by label_smoothing."""
    kind = asked.get("name")
    if kind not in ("dpo", "ipo", "sft"):
        raise InputError(f"loss.name = {kind!r} is not a loss of {asked.peer}; it has dpo, ipo, sft")
    if kind == "sft":
        asked.check_read(kind)
        return Translation({"name": "sft", "reduce": "sum"})
    if kind == "dpo" and asked.get("reference_free"):
        return Translation(reference_free(asked, kind=kind, smoothing=asked.number("label_smoothing"), divergence={}))
    return Translation(conservative(asked, kind, summed_ipo=kind == "ipo"))


def openrlhf(asked: Asked) -> Translation:
    """OpenRLHF: IPO on sums, conservative DPO by label_smoothing, likelihood averaged over each response."""
    tree = conservative(asked, "ipo" if asked.get("ipo_enable") else "dpo", summed_ipo=bool(asked.get("ipo_enable")))
    weight = asked.number("nll_loss_coef")
    if weight == 0:
        return Translation(tree)
    likelihood = {"coefficient": weight, "name": "sft", "reduce": "per-sequence"}
    return Translation({"name": "mixed", "parts": [{"coefficient": 1.0, **tree}, likelihood]})


def conservative(asked: Asked, kind: str, *, summed_ipo: bool) -> Tree:
    """DPO, conservative where labels are smoothed, or IPO, which must not be smoothed."""
    beta = asked.number("beta")
    if summed_ipo:
        if asked.options.get("label_smoothing"):
            raise InputError(ignored(asked.peer, "label_smoothing", kind))
        if asked.options.get("reference_free"):
            raise InputError(f"reference_free of {asked.peer} with {kind!r} is not a loss we have; leave it out")
        return {"name": "ipo-summed", "beta": beta}
    smoothing = asked.number("label_smoothing")
    return {"name": "cdpo", "beta": beta, "smoothing": smoothing} if smoothing else {"name": "sigmoid", "beta": beta}


PEERS: dict[str, tuple[Tree, Callable[[Asked], Translation]]] = {
    "trl-1": (TRL_1, trl_1),
    "trl-0.24": (TRL_0, trl_0),
    "eric-mitchell": (MITCHELL, mitchell),
    "openrlhf": (OPENRLHF, openrlhf),
}
"""Peers by name: their options with defaults, and the translation."""
