"""The command line starts light: help must answer at once, so nothing heavy may be imported for it."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

HEAVY = ("torch", "transformers", "peft", "pyarrow", "matplotlib", "scipy", "pandas")
PROBE = """
import contextlib, io, sys
{act}
print(sorted(set(sys.modules) & set({heavy!r})))
"""
HELP = """
from druthers import cli
sys.argv = ["druthers", "--help"]
with contextlib.redirect_stdout(io.StringIO()) as out, contextlib.suppress(SystemExit):
    cli.main()
assert "align" in out.getvalue(), out.getvalue()
"""


def heavy_after(act: str) -> str:
    """Names of the heavy packages that are loaded after a piece of code, as a fresh Python prints them."""
    code = PROBE.format(act=act, heavy=HEAVY)
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, check=False, timeout=60
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@pytest.mark.parametrize(
    "module",
    [
        "druthers",
        "druthers.records",
        "druthers.config",
        "druthers.storage",
        "druthers.run",
        "druthers.doctor",
        "druthers.cli",
    ],
)
def test_importing_loads_nothing_heavy(module: str) -> None:
    assert heavy_after(f"import {module}") == "[]"


def test_help_loads_nothing_heavy() -> None:
    assert heavy_after(HELP) == "[]"


def test_the_probe_sees_what_is_loaded() -> None:
    assert heavy_after("import scipy") == "['scipy']"


@pytest.mark.parametrize(("given", "kept"), [(None, "1"), ("0", "0")])
def test_large_tensors_lie_in_huge_pages_unless_the_user_says_otherwise(given: str | None, kept: str) -> None:
    """Torch reads the variable at its first allocation, so it must be set although torch is not loaded yet."""
    name = "THP_MEM_ALLOC_ENABLE"
    env = {key: value for key, value in os.environ.items() if key != name} | ({name: given} if given else {})
    code = f"{HELP}\nimport os\nprint(os.environ[{name!r}], 'torch' in sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", "import contextlib, io, sys\n" + code],
        env=env,
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    assert done.stdout.split() == [kept, "False"]
