"""A plan as people read it."""

from __future__ import annotations

from typing import Any

from rich.markup import escape
from rich.table import Table

MEMORY = {
    "process": "process (interpreter, libraries, pairs)",
    "weights": "weights",
    "copies": "copies for computing",
    "sums": "gradient sums of every member",
    "states": "optimizer states",
    "reference": "reference",
    "head": "chunks of the head",
    "activations": "activations of the largest micro-batches",
    "keys_values_logits": "keys, values and logits",
    "training": "what training holds meanwhile",
}


def table_of(found: dict[str, Any]) -> Table:
    """Rows for the run, memory item by item, time part by part, and the cost."""
    table = Table(show_header=False, min_width=60)
    pairs, memory, seconds = found["pairs"], found["memory_gib"], found["seconds"]
    table.add_row("model", f"{found['model']} on {found['device']}, rows: {found['rows']}")
    table.add_row("pairs", f"{pairs['train']:,} to train, {pairs['heldout']:,} held out")
    table.add_row("", escape(pairs["source"]))
    table.add_row("steps", f"{found['steps']:,} of {found['tokens_per_step']:,} tokens")
    table.add_row("recompute", escape(found["recompute"]), end_section=True)
    for stage in ("training", "answers"):
        for name, size in memory[stage].items():
            table.add_row(MEMORY[name], f"{size:.2f} GiB")
        table.add_row(f"[bold]{stage}, at the peak[/]", f"[bold]{memory[f'{stage}_peak']:.2f} GiB[/]", end_section=True)
    if memory["free"] is not None:
        fits = "" if memory["peak"] < memory["free"] else " [red](it may not fit: lower train.token_budget)[/]"
        table.add_row("room here for this process", f"{memory['free']:.2f} GiB{fits}", end_section=True)
    for name, value in seconds["parts"].items():
        table.add_row(name, f"{value:,.0f} s")
    table.add_row("[bold]time[/]", f"[bold]{seconds['total']:,.0f} s[/] ({found['hours']:.2f} h)")
    if found["cost"] is not None:
        table.add_row("[bold]cost[/]", f"[bold]{found['cost']:.2f}[/]")
    return table
