"""A run directory as self-contained HTML pages, a data card, and one screen of text.

The report only reads files: no stage imports it and it imports none.
"""

from __future__ import annotations

from pathlib import Path

from druthers import storage
from druthers.report.data import write_data_page
from druthers.report.datacard import card
from druthers.report.dataset import QUALITY, SUMMARY, tree_of
from druthers.report.layout import template
from druthers.report.page import view
from druthers.report.reading import read_run
from druthers.report.screen import WIDTH, Line, lines

__all__ = ["card", "data_lines", "write_data_page", "write_report"]


def write_report(run_dir: Path) -> Path:
    """Write `report.html` into a run directory, from the files in it alone, and return its path.

    The page needs no network and no script. What the run lacks is named on the page with the reason.
    Raises InputError where `run_dir` is not a run directory or its config.json cannot be read.
    """
    page = run_dir / "report.html"
    storage.write_text(page, template("page.html.j2").render(view(read_run(run_dir))))
    return page


def data_lines(run: Path, *, page: Path, width: int = WIDTH) -> list[Line]:
    """One screen of `width` columns about the data of a run; `page` is what its last line names."""
    summary, quality = (tree_of(run, file, []) for file in (SUMMARY, QUALITY))
    return lines(summary, quality, page=str(page), width=width)
