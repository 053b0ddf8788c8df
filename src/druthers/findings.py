"""Numbers held against their limits: pass, warn or fail, and never on less evidence than that takes.

A warning needs the whole 95 % interval beyond its limit, and so does a failure. An interval that lies on both sides of
a limit passes as uncertain, with the n that would decide.
"""

from __future__ import annotations

from math import ceil
from typing import Literal

from druthers.records import Finding, Limits, Rows
from druthers.stats import Estimate, Interval, Undefined

Status = Literal["pass", "warn", "fail"]


def finding(
    name: str,
    found: Estimate | float,
    text: str,
    *,
    n: int = 0,
    unit: str = "",
    limits: Limits | None = None,
    about: dict[str, str] | None = None,
    rows: Rows | None = None,
    action: str = "",
) -> Finding:
    """A number with its verdict; one given without an interval is certain, `n` being what it was counted from.

    `about` is the slice of the data it belongs to. Without limits nothing is judged, and it passes; what passes for
    certain takes no action.

    >>> from druthers.stats import wilson
    >>> few = finding("D1.leak", wilson(1, 10), "A prompt leaks.", limits=Limits(warn=0.05, fail=0.2))
    >>> few.status, few.uncertain, few.needed
    ('pass', True, 93)
    >>> finding("D1.leak", 3, "3 prompts leak.", n=10, limits=Limits(fail=0), action="Remove them.").status
    'fail'
    >>> finding("D3.alpha", Undefined("nobody judged the same pair"), "No agreement.").status
    'undefined'
    """
    if isinstance(found, Undefined):
        return Finding(
            id=name,
            status="undefined",
            text=text,
            n=found.n,
            unit=unit,
            limits=limits,
            slice=about or {},
            undefined=found.reason,
            action=action,
        )
    value = found if isinstance(found, Interval) else Interval(float(found), float(found), float(found), n)
    status, uncertain, needed = judged(value, limits) if limits else ("pass", False, None)
    if limits and status == "pass" and not uncertain:
        action = ""
    return Finding(
        id=name,
        status=status,
        text=text,
        value=value.value,
        low=value.low,
        high=value.high,
        n=value.n,
        unit=unit,
        limits=limits,
        slice=about or {},
        uncertain=uncertain,
        needed=needed,
        rows=rows,
        action=action,
    )


def judged(value: Interval, limits: Limits) -> tuple[Status, bool, int | None]:
    """Status, whether the interval lies on both sides of a limit, and if so the n that would put it on one.

    >>> judged(Interval(3.0, 2.5, 3.5, 100), Limits(warn=2.0, fail=5.0))
    ('warn', False, None)
    >>> judged(Interval(0.3, 0.1, 0.5, 100), Limits(warn=0.4, bad="below"))
    ('pass', True, 400)
    """
    sign = 1.0 if limits.bad == "above" else -1.0
    nearest = min(sign * value.low, sign * value.high)
    straddled = [
        limit
        for limit in (limits.warn, limits.fail)
        if limit is not None and value.low <= limit <= value.high and value.low < value.high
    ]
    status: Status = "pass"
    for name, limit in (("warn", limits.warn), ("fail", limits.fail)):
        if limit is not None and nearest > sign * limit:
            status = "fail" if name == "fail" else "warn"
    return status, bool(straddled), needed(value, straddled[-1]) if straddled else None


def needed(value: Interval, limit: float) -> int | None:
    """The n at which an interval as wide as the root of n allows would leave the limit outside; None if it lies on it.

    >>> needed(Interval(0.3, 0.1, 0.5, 100), 0.4), needed(Interval(0.4, 0.3, 0.5, 10), 0.4)
    (400, None)
    """
    apart = abs(value.value - limit)
    half = value.high - value.value if limit > value.value else value.value - value.low
    return ceil(value.n * (half / apart) ** 2 - 1e-9) if apart else None


def worst(findings: list[Finding]) -> Status:
    """The verdict on all: that of the worst.

    >>> worst([]), worst([finding("a", 1.0, "One.", limits=Limits(warn=0.5))])
    ('pass', 'warn')
    """
    found = {one.status for one in findings}
    return "fail" if "fail" in found else "warn" if "warn" in found else "pass"


def verb(count: int, plural: str) -> str:
    """What so many things do, given what several do: the first word of it ends in s where it is one.

    >>> verb(1, "go on"), verb(2, "go on"), verb(1, "hold marks"), verb(1, "have none")
    ('goes on', 'go on', 'holds marks', 'has none')
    """
    word, space, rest = plural.partition(" ")
    single = {"have": "has", "go": "goes", "do": "does", "are": "is"}.get(word, f"{word}s")
    return plural if count != 1 else f"{single}{space}{rest}"


def many(count: int, noun: str) -> str:
    """So many of something.

    >>> many(1, "pair"), many(1200, "pair")
    ('1 pair', '1,200 pairs')
    """
    return f"{count:,} {noun}" + ("" if count == 1 else "s")
