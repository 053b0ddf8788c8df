"""Every loss owns its knobs; a knob of another loss, a value out of range and a sum that cannot be are refused."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from pydantic import ValidationError

from druthers import config
from druthers.objectives import (
    ALSO_CALLED,
    SECTIONS,
    DPONormSettings,
    MixedSettings,
    SimPOSettings,
    UnlikelihoodSettings,
    WPOSettings,
    owners,
    remarks,
    reporting_beta,
)
from druthers.records import InputError


def refused(*overrides: str) -> str:
    with pytest.raises(InputError) as caught:
        config.load(overrides=overrides)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("name", list(SECTIONS))
def test_a_loss_is_chosen_by_its_name_and_survives_its_own_json(name: str) -> None:
    settings = config.load(overrides=[f"loss.name={name}"])
    assert settings.loss == SECTIONS[name]()
    assert config.validate(settings.model_dump(mode="json")) == settings


@pytest.mark.parametrize("name", list(SECTIONS))
def test_every_knob_is_described(name: str) -> None:
    """Above the name, which says itself."""
    fields = SECTIONS[name].model_fields
    assert all(field.description for knob, field in fields.items() if knob != "name")
    assert SECTIONS[name].__doc__


@pytest.mark.parametrize(
    ("overrides", "sentence"),
    [
        (["loss.tau=1"], "'loss.tau' is a setting of 'discopop', not of 'sigmoid'; choose one of them with loss.name"),
        (["loss.name=nca", "loss.divergence=js"], "'loss.divergence' is a setting of 'sigmoid', 'cdpo', 'robust', "),
        (["loss.name=sft", "loss.beta=0.1"], "'loss.beta' is a setting of 'sigmoid', "),
        (["loss.loss_type=ipo"], "'loss.loss_type' is an option of 'trl-1', 'trl-0.24'; name the one you mean with "),
        (["loss.name=cdpo", "loss.smothing=0.1"], "unknown setting 'loss.smothing'; did you mean 'loss.smoothing'?"),
        (
            ["loss.name=simpoo"],
            "loss.name: 'simpoo' is not a loss here; did you mean 'simpo'? The losses are 'sigmoid'",
        ),
        (["loss.name=exo", "loss.smoothing=0"], "loss.smoothing = 0: input should be greater than 0"),
        (["loss.name=robust", "loss.smoothing=0.5"], "loss.smoothing = 0.5: input should be less than 0.5"),
        (["loss.divergence=js", "loss.divergence_alpha=0.5"], "loss.divergence_alpha = 0.5: it is read by divergence"),
        (["loss.name=bco", "loss.shift=none", "loss.momentum=0.5"], "loss.momentum = 0.5: it is read by shift = "),
        (["loss.name=wpo", "loss.inner.name=aot"], "loss.inner = {'name': 'aot'}: 'aot' sorts, selects"),
        (["loss.name=wpo", "loss.inner.name=nca", "loss.inner.tau=1"], "'loss.inner.tau' is a setting of 'discopop', "),
        (
            ["loss.name=mixed", 'loss.parts=[{name="sigmoid", betta=1}]'],
            "unknown setting 'loss.parts.0.betta'; did you mean 'loss.parts.0.beta'?",
        ),
        (["loss.name=mixed", 'loss.parts=[{name="nca"}, {name="nca"}]'], "loss.parts = [{'name': 'nca'}, "),
        (["loss.name=mixed", 'loss.parts=[{name="nca"}, {name="kto"}]'], "loss.parts = [{'name': 'nca'}, "),
        (["loss.name=mixed", 'loss.parts=[{name="nope"}]'], "loss.parts.0.name: 'nope' is not a loss here; "),
        (
            ["loss.name=mixed", 'loss.parts=[{name="nca", beta=true}]'],
            "loss.parts.0.beta = true: no setting is true or",
        ),
        (
            ["loss.name=wpo", "loss.inner.name=nca", "loss.inner.beta=true"],
            "loss.inner.beta = true: no setting is true",
        ),
        (["loss.name=mixed", "loss.parts=[]"], "loss.parts = []: tuple should have at least 1 item"),
        (["loss.name=mixed", 'loss.parts=[{name="nca", coefficient=0}]'], "loss.parts.0.coefficient = 0: input should"),
    ],
)
def test_a_wrong_knob_is_said_with_its_owner_or_the_nearest(overrides: list[str], sentence: str) -> None:
    assert refused(*overrides).startswith(sentence)


def test_parts_are_written_flat() -> None:
    parts = '[{coefficient=0.5, name="ipo", beta=0.2}, {name="sft"}]'
    loss = config.load(overrides=["loss.name=mixed", f"loss.parts={parts}"]).loss
    assert loss.model_dump()["parts"] == (
        {
            "coefficient": 0.5,
            "name": "ipo",
            "beta": 0.2,
            "divergence": "reverse-kl",
            "divergence_alpha": None,
        },
        {"coefficient": 1.0, "name": "sft", "reduce": "per-token"},
    )
    assert reporting_beta(loss) == 0.2
    assert reporting_beta(WPOSettings(inner=loss)) == 0.2


def test_what_is_allowed_and_easily_wrong_is_remarked() -> None:
    assert remarks(SECTIONS["sigmoid"]()) == []
    assert "beta = 0.1 barely learns" in remarks(DPONormSettings(beta=0.1))[0]
    assert remarks(DPONormSettings()) == []
    assert "gamma / beta = 0.25" in remarks(SimPOSettings(beta=4.0))[0]
    assert "no bound below" in remarks(UnlikelihoodSettings(form="direct"))[0]
    inside = MixedSettings.model_validate({"parts": [{"name": "dpo-norm", "beta": 0.5}, {"name": "simpo"}]})
    assert len(remarks(inside)) == 2


def test_sections_are_frozen_and_names_point_at_losses() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        SECTIONS["sigmoid"]().beta = 2.0  # type: ignore[attr-defined]
    assert set(ALSO_CALLED.values()) <= set(SECTIONS)
    assert not set(ALSO_CALLED) & set(SECTIONS)
    assert owners("penalty") == ["dpop"]


def test_the_page_of_losses_is_current() -> None:
    """It is written from the code, which asserts that no loss is left out."""
    command = [sys.executable, str(Path(__file__).parents[1] / "scripts" / "losses_page.py"), "--check"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, done.stdout + done.stderr
