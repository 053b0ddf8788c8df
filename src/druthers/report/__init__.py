"""A run directory as one self-contained HTML page.

The report only reads files: no stage imports it and it imports none.
"""

from __future__ import annotations

from functools import cache
from importlib import resources
from pathlib import Path

from jinja2 import Environment, FunctionLoader, StrictUndefined, Template

from druthers import storage
from druthers.report.page import view
from druthers.report.reading import read_run
from druthers.report.wording import whole

__all__ = ["write_report"]


def write_report(run_dir: Path) -> Path:
    """Write `report.html` into a run directory, from the files in it alone, and return its path.

    The page needs no network and no script. What the run lacks is named on the page with the reason.
    Raises InputError where `run_dir` is not a run directory or its config.json cannot be read.
    """
    page = run_dir / "report.html"
    storage.write_text(page, template().render(view(read_run(run_dir))))
    return page


@cache
def template() -> Template:
    """The page with its style sheet; every value is escaped, because model text is not trusted."""
    folder = resources.files(__name__)
    loader = FunctionLoader(lambda name: (folder / name).read_text(encoding="utf-8"))
    environment = Environment(
        loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters["whole"] = whole
    return environment.get_template("page.html.j2")
