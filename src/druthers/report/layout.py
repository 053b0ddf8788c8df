"""The templates of the pages; every value is escaped, because neither model text nor data is trusted."""

from __future__ import annotations

from functools import cache
from importlib import resources

from jinja2 import Environment, FunctionLoader, StrictUndefined, Template

from druthers.report.wording import whole


@cache
def template(name: str) -> Template:
    """A page with its style sheet; what the pages share stands in `parts.html.j2` and `style.css`."""
    return environment().get_template(name)


@cache
def environment() -> Environment:
    """Jinja reading from this package."""
    folder = resources.files("druthers.report")
    loader = FunctionLoader(lambda name: (folder / name).read_text(encoding="utf-8"))
    made = Environment(loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    made.filters["whole"] = whole
    return made
