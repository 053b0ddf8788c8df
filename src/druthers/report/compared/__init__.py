"""Runs side by side: what differs in their settings, reward against KL, who beats whom, and what each took.

Reads run directories of druthers and output folders of TRL, and nothing else; docs/compare.md says what is computed.
"""

from __future__ import annotations

from pathlib import Path

from druthers import storage
from druthers.records import InputError
from druthers.report.compared.comparison import Comparison, compare
from druthers.report.compared.page import sentences, view
from druthers.report.compared.screen import COLUMNS, rows
from druthers.report.layout import template

__all__ = ["COLUMNS", "Comparison", "compare", "rows", "sentences", "write_comparison"]


def write_comparison(found: Comparison, page: Path) -> Path:
    """Write the page about a comparison, which needs no network and no script, and return its path.

    Raises InputError for a page that is no .html file.
    """
    if page.suffix.lower() not in (".html", ".htm"):
        raise InputError(f"{page}: the page is an HTML file; name one that ends in .html")
    storage.write_text(page, template("compare.html.j2").render(view(found)))
    return page
