"""What the README shows is run: its Python as it stands, on a tiny model and a few pairs."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from druthers import config
from tests import calls, tiny

README = Path(__file__).parents[1] / "README.md"
MAIN_JOB, CORE = re.findall(r"^```python\n(.*?)^```$", README.read_text(encoding="utf-8"), flags=re.DOTALL | re.M)
FORMS = re.search(r"^```jsonc\n(.*?)^```$", README.read_text(encoding="utf-8"), flags=re.DOTALL | re.M)


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with a cache of its own."""
    monkeypatch.setenv("DRUTHERS_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    torch.set_num_threads(1)
    return tmp_path


def test_the_main_job_from_python(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = config.load
    small = (*calls.FEW, f"data.pairs={calls.jsonl(place / 'pairs.jsonl', calls.trl_rows())}", "data.least_margin=0")
    model = tiny.folder(place / "model")

    def load(recipe: str, overrides: Sequence[str], extra: dict[str, Any]) -> config.Settings:
        return whole(recipe, [*overrides, *small, f"model.path={model}"], extra)

    monkeypatch.setattr(config, "load", load)
    exec(compile(MAIN_JOB, str(README), "exec"), {})
    assert str(Path("runs/mine/report.html")) in capsys.readouterr().out
    assert (place / "runs" / "mine" / "report.html").is_file()


def test_the_core_from_python(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The packaged model is a hundred megabytes; the tiny one takes its place."""
    assert FORMS
    own = FORMS[1].splitlines()[1]
    calls.jsonl(place / "pairs.jsonl", (json.loads(own.replace("kettle", x)) for x in ("kettle", "tap", "tent")))
    settings = config.ModelSettings(path=str(tiny.folder(place / "model")), precision="float32", device="cpu")
    monkeypatch.setattr(config, "ModelSettings", lambda: settings)
    names: dict[str, Any] = {}
    exec(compile(CORE, str(README), "exec"), names)
    assert names["loss_B"].tolist() == pytest.approx([math.log(2)] * 3, abs=1e-6)
    assert all(weight.grad is not None for weight in names["loaded"].causal.parameters() if weight.requires_grad)
