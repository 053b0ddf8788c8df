"""Holds the table of docs/architecture.md against the imports of every file, lazy ones and those for types included."""

from __future__ import annotations

import ast
import graphlib
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SOURCE = ROOT / "src"
ROWS = ("edges", "reader", "stages", "tools", "paper", "nouns")
PAPER_MAY = {"torch", "numpy", "scipy", "jinja2"}
OF_TEMPLATES = {"druthers.tokens", "druthers.templates"}
"""Who imports jinja2: chat templates are its programs."""
NOUNS_MAY_NOT = {"torch", "transformers", "peft", "scipy", "rich", "typer"}
READER_MAY = {"records", "config", "storage", "stats", "frontiers"}
LAZY = ("importlib.import_module", "import_module", "__import__")


@dataclass(frozen=True)
class Table:
    """Row of every room, and the rooms that are planned but do not stand yet (in parentheses on the page)."""

    row: dict[str, str]
    planned: frozenset[str]


@dataclass(frozen=True, order=True)
class Import:
    """One module importing another at a line."""

    source: str
    target: str
    line: int

    def __str__(self) -> str:
        return f"{self.source}:{self.line} imports {self.target}"


def read_table(page: str) -> Table:
    """The first block of the page whose lines begin with the names of the rows."""
    row: dict[str, str] = {}
    planned = set()
    for line in page.splitlines():
        cells = re.split(r"\s{2,}", line.strip())
        if cells[0] in ROWS and line.startswith(" "):
            for cell in cells[1:]:
                if re.fullmatch(r"\w+", name := cell.strip("()")):
                    assert name not in row, f"{name} stands twice in the table of rows"
                    row[name] = cells[0]
                    planned |= {name} if cell.startswith("(") else set()
    return Table(row, frozenset(planned))


def module_files() -> dict[str, Path]:
    """Dotted name of every module of the package, with its file."""
    found = {}
    for file in sorted((SOURCE / "druthers").rglob("*.py")):
        parts = file.relative_to(SOURCE).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = file
    return found


def imports_of(source: str, text: str, known: set[str]) -> Iterator[Import]:
    """Every import in a file, wherever it stands; a name imported from a package is the module where it is one."""
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import):
            yield from (Import(source, alias.name, node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{source}:{node.lineno} is a relative import"
            for alias in node.names:
                inner = f"{node.module}.{alias.name}"
                if node.module == "druthers" and alias.name == "__version__":
                    continue
                yield Import(source, inner if inner in known else str(node.module), node.lineno)
        elif isinstance(node, ast.Call) and ast.unparse(node.func) in LAZY and isinstance(node.args[0], ast.Constant):
            yield Import(source, str(node.args[0].value), node.lineno)


def room(module: str) -> str:
    """The room a module belongs to: the part after the package's name."""
    return module.split(".")[1] if "." in module else ""


TABLE = read_table((ROOT / "docs" / "architecture.md").read_text(encoding="utf-8"))
FILES = module_files()
IMPORTS = sorted(
    {i for name, file in FILES.items() for i in imports_of(name, file.read_text(encoding="utf-8"), set(FILES))}
)
OURS = [i for i in IMPORTS if i.target.split(".")[0] == "druthers"]
BETWEEN = [i for i in OURS if room(i.source) != room(i.target) and room(i.source)]


def row(module: str) -> str:
    return TABLE.row.get(room(module), "no row")


def shown(offences: list[Import]) -> list[str]:
    return [str(offence) for offence in offences]


def test_every_room_has_a_row_and_what_is_planned_does_not_stand_yet() -> None:
    rooms = {room(name) for name in FILES} - {""}
    assert rooms == set(TABLE.row) - TABLE.planned


def test_no_place_is_listed_twice() -> None:
    places = re.findall(r"^\| `([\w/.]+)` \|", (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8"), re.M)
    assert [place for place in places if places.count(place) > 1] == []
    assert len(places) > len(ROWS)
    with pytest.raises(AssertionError, match="config stands twice"):
        read_table(" nouns    records  config  config\n")


def test_arrows_go_down() -> None:
    order = {name: i for i, name in enumerate(ROWS)}
    assert shown([i for i in BETWEEN if order.get(row(i.target), -1) < order[row(i.source)]]) == []


def test_stages_never_import_one_another_nor_does_the_report_import_them() -> None:
    apart = ("stages", "reader")
    assert shown([i for i in BETWEEN if row(i.source) in apart and row(i.target) in apart]) == []


def test_the_report_reads_files_only() -> None:
    assert shown([i for i in BETWEEN if row(i.source) == "reader" and room(i.target) not in READER_MAY]) == []
    assert shown([i for i in IMPORTS if row(i.source) == "reader" and i.target.split(".")[0] == "torch"]) == []


def test_the_paper_row_imports_only_tensors_records_and_itself() -> None:
    standard = sys.stdlib_module_names
    rest = [i for i in IMPORTS if row(i.source) == "paper" and i.target.split(".")[0] not in standard]
    third_party = [i for i in rest if i not in OURS and i.target.split(".")[0] not in PAPER_MAY]
    ours = [i for i in rest if i in OURS and row(i.target) != "paper" and room(i.target) != "records"]
    assert shown(third_party) == []
    assert shown(ours) == []


def test_only_those_who_run_chat_templates_import_jinja2_in_the_paper_row() -> None:
    users = {i.source for i in IMPORTS if row(i.source) == "paper" and i.target.split(".")[0] == "jinja2"}
    assert users == OF_TEMPLATES


def test_the_nouns_need_no_tensors() -> None:
    assert shown([i for i in IMPORTS if row(i.source) == "nouns" and i.target.split(".")[0] in NOUNS_MAY_NOT]) == []


def test_only_the_edges_know_the_command_line() -> None:
    edge_only = {"typer", "rich"}
    assert shown([i for i in IMPORTS if row(i.source) != "edges" and i.target.split(".")[0] in edge_only]) == []


def test_there_are_no_cycles() -> None:
    arrows: dict[str, set[str]] = {name: set() for name in FILES}
    for i in OURS:
        assert i.target in FILES, f"{i}, which does not exist"
        arrows[i.source].add(i.target)
    list(graphlib.TopologicalSorter(arrows).static_order())  # raises CycleError, which names the cycle


def test_the_walk_sees_lazy_imports() -> None:
    text = """
from typing import TYPE_CHECKING
from druthers import __version__, models
if TYPE_CHECKING:
    from druthers.train import loop
def load():
    import torch
    from druthers.curate import curate
    return importlib.import_module("druthers.report")
"""
    known = {"druthers", "druthers.models", "druthers.curate", "druthers.train", "druthers.train.loop"}
    found = {i.target for i in imports_of("druthers.x", text, known)}
    assert found == {"typing", "druthers.models", "druthers.train.loop", "torch", "druthers.curate", "druthers.report"}


def test_a_relative_import_is_refused() -> None:
    with pytest.raises(AssertionError, match="relative import"):
        list(imports_of("druthers.x", "from . import models", set()))


def test_the_table_is_read_as_people_read_it() -> None:
    table = read_table("```\n edges    cli  (aws)       may import everything below\n nouns    records  config\n```\n")
    assert table == Table({"cli": "edges", "aws": "edges", "records": "nouns", "config": "nouns"}, frozenset({"aws"}))
