"""What the curated pairs are like: every number that can be had from `Facts`, held against its limits.

Letters: B pairs, N training pairs, F numbers that `surface` gives.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from druthers.curate import hygiene
from druthers.curate.facts import Facts
from druthers.curate.filters import Mask
from druthers.curate.quality import bias, chosen, cycles, margin, ratings, shortcut
from druthers.curate.quality import hygiene as texts
from druthers.curate.surface import NAMES as SURFACE
from druthers.findings import finding, many, verb, worst
from druthers.records import Finding, Limits, Rows
from druthers.stats import wilson

NEAR_SHARE = Limits(warn=0.01)
"""Share of near-duplicates from which on a source repeats itself."""
TORN_SHARE = Limits(warn=0.02, fail=0.1)
"""Share of pairs that another one contradicts."""
BINS = 40


@dataclass(frozen=True)
class Inspection:
    """Findings, the places of the pairs that some of them are about, and figures for the page.

    `lines` are files about items that are no pairs, ready to be written, and `annotators` those who judged.
    """

    findings: list[Finding]
    about: Mapping[str, NDArray[np.int64]] = field(default_factory=dict)
    figures: list[dict[str, Any]] = field(default_factory=list)
    lines: Mapping[str, list[bytes]] = field(default_factory=dict)
    annotators: list[dict[str, Any]] = field(default_factory=list)

    @property
    def verdict(self) -> str:
        """That of the worst finding."""
        return worst(self.findings)

    def with_lines(self, name: str, lines: list[bytes]) -> Inspection:
        """With a file about a finding, where there is something to say."""
        return replace(self, lines={**self.lines, name: lines}) if lines else self

    def rows(self, name: str) -> Rows | None:
        """Where the lines about a finding will stand."""
        return Rows(file=f"findings/{name}.jsonl", count=len(self.lines[name])) if name in self.lines else None

    def as_dict(self) -> dict[str, Any]:
        """As it is written to `quality.json`."""
        return {
            "verdict": self.verdict,
            "findings": [found.model_dump(mode="json", exclude_defaults=True) for found in self.findings],
            "figures": self.figures,
        } | ({"annotators": self.annotators} if self.annotators else {})


def inspect(
    facts: Facts,
    *,
    train: Mask,
    heldout: Mask,
    reasons: Counter[str],
    groups: Iterable[str],
    seed: int,
    good: float | None = None,
) -> Inspection:
    """The quality of the pairs that are kept; `reasons` counts what was left out, from the rating `good` on a response
    is good."""
    kept = np.flatnonzero(train)
    _, prompt_N = np.unique(facts.prompt_B[kept], return_inverse=True)
    chosen_NF, rejected_NF = (facts.surface_B2F[kept, side] for side in (0, 1))
    p_N, margin_N, weight_N = facts.grades_B3[kept].T
    grades = margin.information(p_N, margin_N, weight_N, prompt_N)
    bits_N3 = facts.faults_B3[kept]
    counts_N5 = facts.counts_B5[kept]
    slice_N = np.unique(facts.slice_B[kept], return_inverse=True)[1]
    asked_N = prompt_N * (int(slice_N.max(initial=0)) + 1) + slice_N
    rounds = cycles.cycles(asked_N, facts.sides_B2[kept], p_N)
    rating_N, gap_N = facts.ratings_B2[kept].T
    about = about_texts(kept, bits_N3) | {
        "D2.ratings": kept[ratings.against(gap_N)],
        "D11.rated": kept[:0] if good is None else kept[rating_N < good],
        "D2.cycles": kept[rounds.inside_B],
        "D13.limit": kept[counts_N5[:, 3:].any(1)],
        "D7.lowest": kept[grades.lowest_N],
    }
    refusal = SURFACE.index("refusal")
    faults = texts.check(
        bits_N3[:, 1],
        bits_N3[:, 2],
        prompt_N,
        refused=(chosen_NF[:, refusal] > 0, rejected_NF[:, refusal] > 0),
        asked_N=bits_N3[:, 0],
    )
    biases = bias.bias(bias.differences(chosen_NF, rejected_NF), p_N, prompt_N, position=False)
    where = {name: Rows(file=f"findings/{name}.jsonl", count=len(at)) for name, at in about.items() if len(at)}
    found = [
        *repeated(reasons, len(facts)),
        *cycles.findings(rounds, rows=where.get("D2.cycles")),
        *ratings.findings(gap_N, facts.graded_B[kept], prompt_N, rows=where.get("D2.ratings")),
        *rated(rating_N, prompt_N, good=good, rows=where.get("D11.rated")),
        *bias.findings(biases),
        *shortcut.findings(shortcut.shortcut(chosen_NF, rejected_NF, prompt_N, seed=seed)),
        *margin.findings(grades, rows=where.get("D7.lowest")),
        *texts.findings(faults, rows={name.partition(".")[2]: file for name, file in where.items()}),
        cut(counts_N5, prompt_N, rows=where.get("D13.limit")),
    ]
    figures = [*lengths(facts, train, heldout), *grade_figures(grades), ratings.figure(rating_N)]
    figures.append(of_groups(facts.group_B[kept], groups))
    return Inspection(found, {name: about[name] for name in where}, [each for each in figures if each])


def rated(
    rating_N: NDArray[np.float64], prompt_N: NDArray[np.int64], *, good: float | None, rows: Rows | None
) -> list[Finding]:
    """D11.rated; nothing where nobody says which rating is good, or no chosen response has one."""
    if good is None or np.isnan(rating_N).all():
        return []
    return chosen.findings(chosen.chosen(rating_N, prompt_N, threshold=good), name="D11.rated", rows=rows)


def repeated(reasons: Counter[str], pairs: int) -> Iterator[Finding]:
    """D1 and D2: what was left out of so many pairs because of another one."""
    for name, reason, text, limits, action in (
        ("D1.duplicate", "duplicate", "stand word for word in an earlier one", None, ""),
        ("D1.near", "near_duplicate", "are nearly an earlier one", NEAR_SHARE, "Look where the source repeats."),
        ("D1.leak", "leak", "ask what a held-out prompt asks", None, ""),
        ("D2.contradiction", "contradiction", "contradict another one", TORN_SHARE, "Have them judged again."),
    ):
        count = reasons[reason]
        left = "was set aside" if count == 1 else "were set aside"
        said = f"{count:,} of {many(pairs, 'pair')} {verb(count, text)}, and {left}."
        said = said if count else f"No pair {verb(1, text)}."
        share = wilson(count, pairs) if count else 0.0  # that there is none is certain
        yield finding(name, share, said, n=pairs, unit="share", limits=limits, action=action if count else "")


def cut(counts_N5: NDArray[np.uint32], prompt_N: NDArray[np.int64], *, rows: Rows | None) -> Finding:
    """D13.limit: responses that are longer than `data.max_response`."""
    what = "are longer than data.max_response, and cut"
    action = "Raise data.max_response: where one side is cut oftener, its end is what tells them apart."
    both = texts.sides(counts_N5[:, 3] > 0, counts_N5[:, 4] > 0, prompt_N)
    return texts.apart("limit", both, what, action=action, warn=texts.CUT_APART, rows=rows)


def about_texts(kept: NDArray[np.int64], bits_N3: NDArray[np.uint32]) -> dict[str, NDArray[np.int64]]:
    """The pairs that have a fault, by the id of the finding."""
    of = {
        f"D13.{kind}": bits_N3[:, 0 if kind in texts.ASKED else 1 :] & np.uint32(hygiene.BIT[kind])
        for kind in texts.NAMES
    }
    of["D13.empty"] = bits_N3 & np.uint32(hygiene.BIT["empty"])
    of["D13.personal"] = bits_N3 & np.uint32(hygiene.PERSONAL)
    return {name: kept[bits.any(1)] for name, bits in of.items()}


def of_annotators(
    found: list[Finding], doubted: Mapping[str, list[bytes]]
) -> tuple[list[Finding], dict[str, list[bytes]]]:
    """Findings about annotators with the answers that are probably wrong, and the file of each annotator."""
    lines: dict[str, list[bytes]] = {}
    told = []
    for one in found:
        wrong = doubted.get(one.slice.get("annotator", ""), []) if one.id == "D3.annotator" else []
        if wrong:
            name = f"{one.id}.{len(lines) + 1}"
            lines[name] = wrong
            one = one.model_copy(update={"rows": Rows(file=f"findings/{name}.jsonl", count=len(wrong))})
        told.append(one)
    return told, lines


# ---------------------------------------------------------------- figures


def histogram(name: str, title: str, unit: str, lots: Mapping[str, NDArray[Any]]) -> dict[str, Any]:
    """One histogram of several lots over the same bins; what lies beyond the last half percent counts in the last."""
    every = np.concatenate(list(lots.values()))
    high = max(float(np.quantile(every, 0.995)), 1.0) if len(every) else 1.0
    edges = np.linspace(0, high, BINS + 1)
    counts = {lot: np.histogram(np.minimum(values, high), edges)[0].tolist() for lot, values in lots.items()}
    return {"name": name, "kind": "histogram", "title": title, "unit": unit, "edges": edges.tolist(), "counts": counts}


def lengths(facts: Facts, train: Mask, heldout: Mask) -> Iterator[dict[str, Any]]:
    """Tokens of the responses, and of the prompts of both sides."""
    tokens = facts.counts_B5
    both = {"chosen": tokens[train, 1], "rejected": tokens[train, 2]}
    yield histogram("tokens_responses", "Length of the responses", "tokens", both)
    asked = {"train": tokens[train, 0], "heldout": tokens[heldout, 0]}
    yield histogram("tokens_prompts", "Length of the prompts", "tokens", asked)


def grade_figures(grades: margin.Information) -> Iterator[dict[str, Any]]:
    """Histograms of p, margin and weight, where they differ."""
    for name, title, of in (
        ("p", "How sure it is that chosen is better", grades.p),
        ("margin", "How much better chosen is", grades.margin),
        ("weight", "How much pairs count", grades.weight),
    ):
        if np.count_nonzero(of.counts) > 1:
            lots = {"train": list(of.counts)}
            yield {
                "name": name,
                "kind": "histogram",
                "title": title,
                "unit": "",
                "edges": list(of.edges),
                "counts": lots,
            }


def of_groups(group_N: NDArray[np.int32], groups: Iterable[str]) -> dict[str, Any]:
    """Pairs of each group, the largest twenty; nothing where there is but one."""
    names = list(groups)
    counts = np.bincount(group_N, minlength=len(names))
    largest = [i for i in np.argsort(-counts, kind="stable")[:20].tolist() if counts[i]]
    if len(largest) < 2:
        return {}
    labels = [names[i] or "(none)" for i in largest]
    values = [int(counts[i]) for i in largest]
    return {"name": "groups", "kind": "bars", "title": "Groups", "unit": "pairs", "labels": labels, "values": values}
