"""A peer's options become our loss with the peer's meaning, or are refused with the reason."""

from __future__ import annotations

from typing import Any

import pytest

from druthers import compat, config
from druthers.objectives import SECTIONS
from druthers.records import InputError

TRL = {"compat": "trl-1"}
OLD = {"compat": "trl-0.24"}


def translated(options: dict[str, Any]) -> dict[str, Any]:
    """Our settings, which must be valid ones."""
    tree = compat.translate(options).loss
    SECTIONS[tree["name"]].model_validate(tree)
    return tree


@pytest.mark.parametrize(
    ("options", "loss"),
    [
        (TRL, {"name": "sigmoid", "beta": 0.1}),
        (OLD, {"name": "sigmoid", "beta": 0.1}),
        ({**TRL, "loss_type": "ipo"}, {"name": "ipo", "beta": 0.1}),
        ({"compat": "eric-mitchell", "name": "ipo", "beta": 0.2}, {"name": "ipo-summed", "beta": 0.2}),
        ({"compat": "openrlhf", "ipo_enable": True}, {"name": "ipo-summed", "beta": 0.1}),
        ({**OLD, "label_smoothing": 0.1}, {"name": "cdpo", "beta": 0.1, "smoothing": 0.1}),
        ({"compat": "eric-mitchell", "label_smoothing": 0.1}, {"name": "cdpo", "beta": 0.1, "smoothing": 0.1}),
        ({**TRL, "loss_type": "bco_pair"}, {"name": "bco", "beta": 0.1, "shift": "none"}),
        ({**OLD, "loss_type": "bco_pair"}, {"name": "bco", "beta": 0.1, "shift": "mean"}),
        ({**OLD, "loss_type": "exo_pair"}, {"name": "exo", "beta": 0.1, "smoothing": 1e-3}),
        ({**TRL, "ld_alpha": 0.3}, {"name": "ld", "beta": 0.1, "alpha": 0.3, "tail_of": "both"}),
        ({**TRL, "use_weighting": True}, {"name": "wpo", "inner": {"name": "sigmoid", "beta": 0.1}}),
        (
            {**OLD, "f_divergence_type": "alpha_divergence", "f_divergence_params": {"alpha_divergence_coef": 0.6}},
            {"name": "sigmoid", "beta": 0.1, "divergence": "alpha", "divergence_alpha": 0.4},
        ),
        ({"compat": "eric-mitchell", "name": "sft"}, {"name": "sft", "reduce": "sum"}),
        ({"compat": "eric-mitchell", "reference_free": True}, {"name": "cpo", "beta": 0.1, "nll_weight": 0.0}),
        (
            {**TRL, "loss_type": "simpo", "beta": 2.0, "simpo_gamma": 1.6, "cpo_alpha": 0},
            {"name": "simpo", "beta": 2.0, "gamma": 1.6},
        ),
        (
            {"compat": "openrlhf", "nll_loss_coef": 0.2},
            {
                "name": "mixed",
                "parts": [
                    {"coefficient": 1.0, "name": "sigmoid", "beta": 0.1},
                    {"coefficient": 0.2, "name": "sft", "reduce": "per-sequence"},
                ],
            },
        ),
    ],
)
def test_the_same_name_is_translated_with_the_meaning_it_has_there(
    options: dict[str, Any], loss: dict[str, Any]
) -> None:
    assert translated(options) == loss


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (
            {**TRL, "label_smoothing": 0.1},
            "trl-1 ignores label_smoothing with loss_type 'sigmoid'; leave it out, or use loss_type=robust, "
            "or our own loss.name=cdpo, which is conservative DPO",
        ),
        ({**OLD, "loss_type": "ipo", "label_smoothing": 0.1}, "trl-0.24 ignores label_smoothing with loss_type 'ipo'"),
        ({"compat": "openrlhf", "ipo_enable": True, "label_smoothing": 0.1}, "openrlhf ignores label_smoothing"),
        ({**TRL, "discopop_tau": 0.1}, "trl-1 ignores discopop_tau with loss_type 'sigmoid'; leave it out"),
        ({**TRL, "f_alpha_divergence_coef": 0.9}, "trl-1 ignores f_alpha_divergence_coef"),
        ({**TRL, "loss_type": "exo_pair"}, "trl-1 refuses exo_pair with label_smoothing = 0"),
        ({**TRL, "loss_type": "dpo"}, "loss.loss_type = 'dpo' is not a loss of trl-1; it has sigmoid, "),
        ({**TRL, "loss_tpye": "ipo"}, "loss.loss_tpye is not an option of trl-1; did you mean 'loss_type'?"),
        ({**TRL, "rpo_alpha": 1.0}, "loss.rpo_alpha is not an option of trl-1; "),
        ({"compat": "trl"}, "loss.compat = 'trl' is not one of trl-1, trl-0.24, eric-mitchell, openrlhf"),
        (
            {**TRL, "loss_type": "nca_pair", "f_divergence_type": "js_divergence"},
            "f_divergence_type = 'js_divergence' ",
        ),
        (
            {**OLD, "loss_type": "ipo", "f_divergence_type": "js_divergence"},
            "f_divergence_type = 'js_divergence' with ",
        ),
        ({**OLD, "loss_type": ["ipo", "sigmoid"]}, "trl-0.24 averages the log-probs of every loss beside 'ipo'"),
        ({**OLD, "loss_type": ["exo_pair", "robust"]}, "trl-0.24 sets label_smoothing to 0.001 for all losses after"),
        ({**OLD, "use_weighting": True}, "use_weighting of trl-0.24 sets each token's log-prob against"),
        ({**OLD, "ld_alpha": 0.5}, "ld_alpha of trl-0.24 counts the tokens of the prompt"),
        ({**TRL, "loss_type": "ipo", "ld_alpha": 0.5}, "ld_alpha of trl-1 changes the log-probs of every loss"),
        ({**TRL, "loss_type": ["sigmoid", "sft"], "use_weighting": True}, "use_weighting of trl-1 multiplies the mean"),
        (
            {**TRL, "loss_type": ["sigmoid", "sft"], "loss_weights": [1.0]},
            "loss_weights = [1.0] has 1 numbers for 2 losses",
        ),
        ({**TRL, "loss_weights": [2.0]}, "loss_weights = [2.0] of a single loss only scales it"),
        ({**TRL, "beta": "much"}, "loss.beta = 'much' is not a number"),
        ({**OLD, "loss_type": "aot_unpaired"}, "trl-0.24 calls it 'aot_pair'"),
        ({"compat": "eric-mitchell", "name": "slic"}, "loss.name = 'slic' is not a loss of eric-mitchell"),
        ({"compat": "eric-mitchell", "name": "ipo", "reference_free": True}, "reference_free of eric-mitchell with"),
    ],
)
def test_what_the_peer_ignores_or_we_do_not_have_is_refused(options: dict[str, Any], sentence: str) -> None:
    with pytest.raises(InputError) as caught:
        compat.translate(options)
    assert str(caught.value).startswith(sentence)


@pytest.mark.parametrize(("kind", "count"), [("sft", 1), ("aot", 1), ("kto", 1), ("sigmoid", 0), ("ipo", 0)])
def test_what_hangs_on_the_micro_batch_there_is_said(kind: str, count: int) -> None:
    notes = compat.translate({**TRL, "loss_type": kind}).notes
    assert [("ours is that for one micro-batch" in note) for note in notes] == [True] * count


def test_a_run_takes_the_peers_names_and_writes_down_ours() -> None:
    overrides = ["loss.compat=trl-1", "loss.loss_type=robust", "loss.label_smoothing=0.2", "loss.use_weighting=true"]
    settings = config.load(overrides=overrides)
    assert settings.loss.model_dump(exclude_defaults=False)["inner"]["smoothing"] == 0.2
    assert config.load(
        extra=None, overrides=["loss.name=wpo", "loss.inner.name=robust", "loss.inner.smoothing=0.2"]
    ) == (settings)
    assert config.validate(settings.model_dump(mode="json")) == settings
    assert config.compat_notes(overrides=["loss.compat=trl-1", "loss.loss_type=aot"])[0].startswith("aot: sorting")
