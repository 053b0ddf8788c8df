"""Our losses, through `loss.compat`, against what TRL's own trainers computed (`scripts/record_trl_losses.py`)."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from druthers import compat
from druthers.losses import LOSSES, Terms
from druthers.objectives import SECTIONS
from druthers.records import InputError

RECORD: dict[str, Any] = json.loads((Path(__file__).parent / "trl_losses.json").read_text(encoding="utf-8"))
PEERS = ("trl-1", "trl-0.24")
CASES = [(peer, case) for peer in PEERS for case in RECORD[peer]["cases"]]
NAMES = [
    f"{peer} {case['trainer']} {' '.join(f'{key}={value}' for key, value in case['options'].items())}"
    for peer, case in CASES
]
MISTAKEN = [
    case for peer, case in CASES if peer == "trl-0.24" and case["options"].keys() & {"use_weighting", "ld_alpha"}
]
"""WPO of TRL 0.24 sets each token against the distribution of the next; its LD-DPO counts from the prompt on."""


def column(pairs: list[tuple[float, float]]) -> Tensor:
    return torch.tensor(pairs, dtype=torch.float64).t()


def tensors(rows: list[tuple[dict[str, Any], dict[str, Any]]], *, labels: list[float]) -> tuple[Tensor, Tensor, Terms]:
    """Two responses a row, as the package takes them."""

    def logps(who: str, most: int | None = None) -> Tensor:
        heads = [min(len(r["policy"]["logps"]) for r in row) if most else None for row in rows]
        return column([tuple(sum(r[who]["logps"][:head]) for r in row) for row, head in zip(rows, heads, strict=True)])  # type: ignore[misc]

    def certainty(response: dict[str, Any]) -> float:
        policy = response["policy"]
        gaps = [x - y for x, y in zip(policy["logps"], policy["log_sum_sq"], strict=True)]
        return sum(gaps) / len(gaps)

    length = column([tuple(float(len(r["policy"]["logps"])) for r in row) for row in rows])  # type: ignore[misc]
    ones = torch.ones(len(rows), dtype=torch.float64)
    terms = Terms(
        p_B=torch.tensor(labels, dtype=torch.float64),
        margin_B=ones * 0,
        weight_B=ones,
        length_CB=length,
        mean_length=length[0].mean().item(),
        policy_head_CB=logps("policy", 1),
        reference_head_CB=logps("reference", 1),
        certainty_CB=column([tuple(certainty(r) for r in row) for row in rows]),  # type: ignore[misc]
    )
    return logps("policy"), logps("reference"), terms


def ours(peer: str, case: dict[str, Any]) -> dict[str, Any]:
    """Our settings for a recorded case, every default filled in as a run would."""
    given = case["ours"] or compat.translate({"compat": peer, **case["options"]}).loss
    return SECTIONS[given["name"]].model_validate(given).model_dump()


def rows_of(trainer: str) -> tuple[list[tuple[dict[str, Any], dict[str, Any]]], list[float]]:
    """Pairs, or answers good and bad by turns beside a mismatched one."""
    inputs = RECORD["inputs"]
    if trainer != "labelled":
        return [(pair["chosen"], pair["rejected"]) for pair in inputs], [1.0] * len(inputs)
    sides = ["chosen" if i % 2 == 0 else "rejected" for i in range(len(inputs))]
    return [(p[side], p["other"]) for p, side in zip(inputs, sides, strict=True)], [float(s == "chosen") for s in sides]


def value(settings: dict[str, Any], rows: list[Any], labels: list[float]) -> float:
    """The mean of our loss over some rows, which are the whole step."""
    loss = LOSSES[settings["name"]](**{k: v for k, v in settings.items() if k != "name"})
    return loss.of(*tensors(rows, labels=labels)).mean().item()


@pytest.mark.parametrize(("peer", "case"), CASES, ids=NAMES)
def test_the_loss_is_that_of_the_trainer(peer: str, case: dict[str, Any]) -> None:
    """Of the step as one micro-batch, and of every pair alone; to 1e-6, where TRL rounds to float32."""
    if peer == "trl-0.24" and case in MISTAKEN:
        with pytest.raises(InputError, match=r"so it is not (WPO|LD-DPO)"):
            ours(peer, case)
        return
    settings, (rows, labels) = ours(peer, case), rows_of(case["trainer"])
    odds_only = case["trainer"] == "orpo"
    if odds_only:  # its likelihood takes in the prompt, ours does not; the odds ratio is compared
        rest = value({"name": "sft", "reduce": "per-sequence"}, rows, labels)
        assert value(settings, rows, labels) - rest == pytest.approx(case["step"], rel=1e-6)
        return
    assert value(settings, rows, labels) == pytest.approx(case["step"], rel=1e-6)
    for i, alone in enumerate(case["pairs"]):
        if "bco_pair" in str(case["options"]) and peer == "trl-0.24" and i:
            break  # its running mean goes on from pair to pair
        assert value(settings, rows[i : i + 1], labels[i : i + 1]) == pytest.approx(alone, rel=1e-6)


def test_the_record_says_which_losses_trl_does_not_have() -> None:
    """Every loss was compared with a trainer, or stands in that list."""
    compared: set[str] = set()
    for peer, case in CASES:
        if not (peer == "trl-0.24" and case in MISTAKEN):
            settings = ours(peer, case)
            compared |= {settings["name"]} | {part["name"] for part in settings.get("parts", [])}
    assert compared | set(RECORD["not_in_trl"]) == set(SECTIONS)
    assert not compared & set(RECORD["not_in_trl"])


@pytest.mark.parametrize("peer", PEERS)
def test_the_versions_are_written_down(peer: str) -> None:
    assert RECORD[peer]["versions"]["trl"].startswith(peer.removeprefix("trl-"))
