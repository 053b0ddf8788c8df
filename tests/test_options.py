"""Few settings, all of them described, all of them on the page."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from druthers import config
from druthers.doctor import Setting, settings

ROOT = Path(__file__).parents[1]
MOST_SETTINGS = 52
OWN = ("loss.", "grade.", "online.", "ppo.", "rloo.")
"""What only some runs read."""
PAGE = (ROOT / "docs" / "settings.md").read_text(encoding="utf-8")


def test_there_are_at_most_52_settings_besides_those_of_losses_grading_and_online_methods() -> None:
    shared = {key for key in config.known_keys() if not key.startswith(OWN)}
    assert len(shared | {"loss.name"}) <= MOST_SETTINGS


def test_the_list_of_settings_is_complete() -> None:
    assert {setting.key for setting in settings()} == set(config.known_keys())


@pytest.mark.parametrize("setting", list(settings()), ids=lambda s: f"{s.loss}:{s.key}")
def test_every_setting_is_described_and_on_the_page(setting: Setting) -> None:
    assert setting.about
    assert f"| `{setting.key}` | `{setting.default}` | {setting.allowed} | {setting.about} |" in PAGE


def test_the_page_is_current() -> None:
    command = [sys.executable, str(ROOT / "scripts" / "settings_page.py"), "--check"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("recipe", config.recipe_names())
def test_every_packaged_recipe_loads(recipe: str) -> None:
    assert isinstance(config.load(recipe), config.Settings)
