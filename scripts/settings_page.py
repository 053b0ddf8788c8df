"""Write docs/settings.md from the settings themselves; `--check` only says whether the page is current."""

from __future__ import annotations

import sys
from itertools import groupby
from pathlib import Path

from druthers.doctor import Setting, settings

PAGE = Path(__file__).parents[1] / "docs" / "settings.md"
HEAD = """# Settings

Written by `scripts/settings_page.py` from `src/druthers/config.py` and `online_settings.py`; `druthers doctor
--settings` prints the same list.

A recipe is sparse TOML: what it leaves out has the default below. The same keys stand on the command line as
`dotted.key=value`, and win over the recipe; `none` unsets one. An unknown key stops the run and the nearest known one
is offered. The resolved settings of a run, every default written out, are in its `config.json`.

```toml
# recipe.toml: druthers align --recipe recipe.toml train.epochs=2
run = "runs/mine"

[data]
pairs = "pairs.jsonl"

[train]
learning_rate = 1e-5
```
"""
TITLES = {
    "": "The run",
    "model": "Model",
    "data": "Data",
    "grade": "Grading",
    "loss": "Loss",
    "train": "Training",
    "evaluate": "Evaluation",
    "online": "Training on sampled answers (`druthers reinforce`)",
    "ppo": "PPO",
    "rloo": "RLOO",
}


def group_of(setting: Setting) -> tuple[str, str]:
    """The group a setting stands in, and the loss that owns it."""
    return setting.key.rpartition(".")[0], setting.loss


def row(setting: Setting) -> str:
    """One line of the table."""
    return f"| `{setting.key}` | `{setting.default}` | {setting.allowed} | {setting.about} |"


def page() -> str:
    """The whole page."""
    lines = [HEAD]
    for (group, loss), rows in groupby(settings(), key=group_of):
        lines += [f"## {TITLES.get(group, group)}{f': {loss}' if loss else ''}", ""]
        lines += ["| setting | default | may be | what it does |", "|---|---|---|---|", *map(row, rows), ""]
    return "\n".join(lines)


def main() -> int:
    """Write or check the page."""
    if "--check" not in sys.argv[1:]:
        PAGE.write_text(page(), encoding="utf-8")
        return 0
    current = PAGE.is_file() and PAGE.read_text(encoding="utf-8") == page()
    print(
        "docs/settings.md is current" if current else "docs/settings.md is old; run `python scripts/settings_page.py`"
    )
    return 0 if current else 1


if __name__ == "__main__":
    sys.exit(main())
