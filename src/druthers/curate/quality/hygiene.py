"""Faults of the texts, side by side (D13): what only one side has, a model learns as if it were meant.

Letters: N pairs.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from druthers.curate import hygiene, pii
from druthers.curate.quality import clusters
from druthers.findings import finding, many, verb
from druthers.records import Finding, Limits, Rows
from druthers.stats import Estimate, Undefined

CUT_APART = 1.0
"""Points by which the sides may differ in answers cut off."""
STRANGE = 0.01
"""Share of chosen answers in another language than asked from which on a model may learn to change it."""
NAMES: dict[str, str] = {
    "cut": "stop in the middle of a sentence",
    "fence": "leave a code block open",
    "control": "hold control characters",
    "encoding": "hold garbled characters",
    "template": "hold tokens of a chat template",
    "turn": "go on to speak for the user",
}
ASKED = ("control", "encoding", "template")
"""Faults of a prompt as well."""
ACTIONS: dict[str, str] = {
    "cut": "Sample with more tokens, or leave out pairs of which one side is cut: else the cut decides.",
    "fence": "Leave these pairs out, or close the blocks.",
    "control": "Strip them where the rows are made.",
    "encoding": "Read the source as UTF-8; what was lost cannot be brought back.",
    "template": "Strip them where the rows are made: the model reads them as ends of turns.",
    "turn": "Cut these answers at the first turn that is not theirs.",
}


@dataclass(frozen=True)
class Sides:
    """Shares of chosen and of rejected answers that have something, and their difference."""

    chosen: Estimate
    rejected: Estimate
    apart: Estimate
    count: int


@dataclass(frozen=True)
class Hygiene:
    """Faults by kind for both sides, refusals, answers in another language than asked, and texts with personal data.

    `personal` counts texts (prompts, chosen, rejected) by kind of personal data; `prompts` counts the prompts by fault.
    """

    pairs: int
    faults: dict[str, Sides]
    empty: int
    refusal: Sides
    language: Sides | None
    personal: dict[str, int] = field(default_factory=dict)
    prompts: dict[str, int] = field(default_factory=dict)


def sides(chosen_N: NDArray[Any], rejected_N: NDArray[Any], prompt_N: NDArray[Any]) -> Sides:
    """Of two columns of 0 and 1, compared pair by pair over prompts as clusters."""
    return Sides(
        clusters.share(chosen_N, prompt_N),
        clusters.share(rejected_N, prompt_N),
        clusters.difference(chosen_N, rejected_N, prompt_N),
        int(np.count_nonzero(chosen_N) + np.count_nonzero(rejected_N)),
    )


def check(
    chosen_N: ArrayLike,
    rejected_N: ArrayLike,
    prompt_N: ArrayLike,
    *,
    refused: tuple[ArrayLike, ArrayLike],
    asked_N: ArrayLike | None = None,
    strange: tuple[ArrayLike, ArrayLike] | None = None,
) -> Hygiene:
    """From the bits of `hygiene.faults` of chosen, rejected and (`asked_N`) prompts, and the prompts' codes, (N,) each.

    `refused`: whether chosen and rejected refuse, as `surface` tells; `strange`: whether they are in another language
    than their prompt, where that was looked at.
    """
    chosen, rejected = np.asarray(chosen_N, dtype=np.uint32), np.asarray(rejected_N, dtype=np.uint32)
    asked = np.zeros(len(chosen), np.uint32) if asked_N is None else np.asarray(asked_N, dtype=np.uint32)
    prompt, _ = clusters.codes(prompt_N)
    if not len(chosen) == len(rejected) == len(asked) == len(prompt):
        raise ValueError(
            f"{len(chosen)} chosen, {len(rejected)} rejected, {len(asked)} prompts and {len(prompt)} codes; "
            "give as many of each"
        )

    def has(bits: NDArray[Any], kind: str) -> NDArray[np.bool_]:
        return (bits & np.uint32(hygiene.BIT[kind])) > 0

    def both(pair: tuple[ArrayLike, ArrayLike]) -> Sides:
        return sides(np.asarray(pair[0], dtype=bool), np.asarray(pair[1], dtype=bool), prompt)

    return Hygiene(
        pairs=len(chosen),
        faults={kind: sides(has(chosen, kind), has(rejected, kind), prompt) for kind in NAMES},
        empty=int((has(chosen, "empty") | has(rejected, "empty") | has(asked, "empty")).sum()),
        refusal=both(refused),
        language=None if strange is None else both(strange),
        personal=tally(pii.KINDS, asked, chosen, rejected),
        prompts=tally(ASKED, asked),
    )


def tally(kinds: tuple[str, ...], *bits: NDArray[Any]) -> dict[str, int]:
    """How many texts have each of the kinds, of those that occur."""
    counts = {kind: sum(int(((b & np.uint32(hygiene.BIT[kind])) > 0).sum()) for b in bits) for kind in kinds}
    return {kind: count for kind, count in counts.items() if count}


def findings(found: Hygiene, *, rows: Mapping[str, Rows] | None = None) -> list[Finding]:
    """D13.cut, D13.refusal, D13.language, D13.personal, D13.empty and D13.<fault>; `rows` by the last part of an id."""
    where = rows or {}
    return [*sided(found, where), *faulty(found, where), *private(found, where)]


def sided(found: Hygiene, rows: Mapping[str, Rows]) -> Iterator[Finding]:
    """What one side has more of than the other."""
    yield apart("cut", found.faults["cut"], NAMES["cut"], action=ACTIONS["cut"], warn=CUT_APART, rows=rows.get("cut"))
    action = "Read pairs whose chosen answer refuses; refusing what is harmless is learned as fast as anything."
    yield apart("refusal", found.refusal, "open with a refusal", action=action, rows=rows.get("refusal"))
    if found.language is not None:
        yield strange(found.language, rows=rows.get("language"))


def strange(found: Sides, *, rows: Rows | None = None) -> Finding:
    """D13.language: the share of chosen answers in another language than their prompt, which is what is learned."""
    text = "How many answers are in another language than their prompt cannot be told."
    if not isinstance(found.chosen, Undefined) and not isinstance(found.rejected, Undefined):
        shares = (100 * found.chosen.value, 100 * found.rejected.value)
        text = f"{shares[0]:.1f} of 100 chosen and {shares[1]:.1f} of 100 rejected answers are in another language "
        text += "than their prompt."
        text = text if found.count else "No answer is in another language than its prompt."
    action = "Leave out pairs whose chosen answer is in a language nobody asked for." if found.count else ""
    limits = Limits(warn=STRANGE)
    return finding("D13.language", found.chosen, text, unit="share", limits=limits, rows=rows, action=action)


def faulty(found: Hygiene, rows: Mapping[str, Rows]) -> Iterator[Finding]:
    """What no text should have."""
    for kind in ("fence", "control", "encoding", "template", "turn"):
        count = found.faults[kind].count
        asked = found.prompts.get(kind, 0)
        who = [many(n, noun) for n, noun in ((count, "answer"), (asked, "prompt")) if n]
        text = f"{' and '.join(who) or 'No answer'} {verb(max(1, count + asked), NAMES[kind])}."
        every, n = count + found.prompts.get(kind, 0), (2 + (kind in ASKED)) * found.pairs
        yield counted(kind, every, n, text, warn=0.0, action=ACTIONS[kind], rows=rows.get(kind))


def private(found: Hygiene, rows: Mapping[str, Rows]) -> Iterator[Finding]:
    """Personal data, and answers that are none."""
    kinds = ", ".join(f"{count} {kind}" for kind, count in found.personal.items())
    text = f"Texts that hold personal data or secrets: {kinds}." if kinds else "No text holds personal data we know of."
    action = "Curate again with data.personal=redact (placeholders keep the sense) or data.personal=drop."
    count = sum(found.personal.values())
    yield counted("personal", count, 3 * found.pairs, text, warn=0.0, action=action, rows=rows.get("personal"))
    text = f"{many(found.empty, 'pair')} {verb(found.empty, 'have')} an empty prompt or answer."
    text = text if found.empty else "No pair has an empty prompt or answer."
    yield counted(
        "empty", found.empty, found.pairs, text, fail=0.0, action="Remove these rows.", rows=rows.get("empty")
    )


def apart(
    name: str, found: Sides, what: str, *, action: str, warn: float | None = None, rows: Rows | None = None
) -> Finding:
    """A finding on how far the sides differ in something, in points."""
    if (
        isinstance(found.chosen, Undefined)
        or isinstance(found.rejected, Undefined)
        or isinstance(found.apart, Undefined)
    ):
        return finding(f"D13.{name}", found.apart, f"How many answers {what} cannot be told.", unit="points")
    in_points = found.apart.map(lambda share: 100 * share)
    sign = 1.0 if in_points.value >= 0 else -1.0
    limits = None if warn is None else Limits(warn=sign * warn, bad="above" if sign > 0 else "below")
    shares = (100 * found.chosen.value, 100 * found.rejected.value)
    text = f"{shares[0]:.1f} of 100 chosen and {shares[1]:.1f} of 100 rejected answers {what}."
    text = text if found.count else f"No answer {verb(1, what)}."
    action = action if found.count else ""
    return finding(f"D13.{name}", in_points, text, unit="points", limits=limits, rows=rows, action=action)


def counted(
    name: str,
    count: int,
    n: int,
    text: str,
    *,
    warn: float | None = None,
    fail: float | None = None,
    action: str,
    rows: Rows | None = None,
) -> Finding:
    """A finding on a number of texts that was counted, not estimated."""
    return finding(
        f"D13.{name}",
        count,
        text,
        n=n,
        unit="texts",
        limits=Limits(warn=warn, fail=fail),
        rows=rows,
        action=action if count else "",
    )
