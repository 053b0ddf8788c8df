"""What was found in the data: worst first, each number over the limits it is held against, with some of its rows."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import inf

from markupsafe import Markup, escape

from druthers.records import Finding, Limits
from druthers.report import figures, wording
from druthers.report.dataset import DataFiles, ids
from druthers.report.figures import EMPTY
from druthers.report.parts import NINETY_FIVE
from druthers.report.reading import Tree
from druthers.report.wording import NONE

TITLES = {
    "D1": "Duplicates and leaks",
    "D2": "Contradictions",
    "D3": "Agreement",
    "D4": "Biases",
    "D5": "Shortcuts",
    "D6": "Label noise",
    "D7": "Margin and information",
    "D8": "Coverage",
    "D9": "Displacement risk",
    "D10": "Learnability",
    "D11": "Quality of the chosen",
    "D12": "On-policy",
    "D13": "Hygiene",
}
"""What the findings whose id begins so are about."""
MEASURES = {
    "alpha": "Krippendorff's α",
    "ches": "how alike the model sees both answers (CHES)",
    "chosen": "poor chosen answers",
    "cut": "cut responses",
    "diversity": "how many unlike prompts these are worth",
    "edit": "pairs of nearly the same text",
    "crowded": "prompts with many pairs",
    "effective": "effective number of pairs",
    "flip": "pairs that training cannot flip",
    "language": "answers in another language than asked",
    "leak": "leaks",
    "logprob": "how likely the chosen answers are to the model",
    "near": "near copies",
    "noise": "wrong labels",
    "onpolicy": "share of the present model",
    "own": "how far the data is from the model's own answers",
    "pii": "personal data",
    "position": "order of showing",
    "prompts": "effective number of prompts",
    "rated": "chosen answers with a poor rating",
    "ratings": "ratings against the label",
    "response_leak": "held-out responses that are trained on",
    "ranked": "pairs the model ranks right already",
    "semantic": "prompts that mean the same",
    "shift": "what is asked more often than trained on",
    "shortcut": "area under the curve",
    "stuck": "pairs that training will hardly turn",
    "suspects": "labels that look wrong",
    "turned": "pairs that training turned",
}
"""What the ids of findings call by a short word."""
OWN_MEASURES = {"D12.gap": "how much likelier chosen is to the model"}
"""The same for a word that means something else in another id."""
SCORES = ("D3.", "D5.", "D8.shift", "D8.diversity", "D9.ches")
"""Findings without a unit that are no shares: agreement, areas under a curve and products of hidden states are told as
plain numbers."""
STATES = ("fail", "warn", "uncertain", "pass", "undefined")
MARKS = {
    "fail": "✕ fail",
    "warn": "⚠ warn",
    "uncertain": "◐ uncertain",
    "pass": "✓ pass",
    "undefined": "– not computed",
}
ZONES = ("fine", "warned", "failed")
MOST_SHOWN = 120
LONGEST_TEXT, LONGEST_CELL, MOST_COLUMNS = 600, 240, 5
HIDDEN = ("pair_ids", "prompt_id")


@dataclass(frozen=True)
class RowTable:
    """Some rows of a finding: the columns, their cells, how many rows there are, and the file that holds them all."""

    file: str
    count: str
    all: bool
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]


@dataclass(frozen=True)
class Found:
    """A finding as it is printed."""

    anchor: str
    id: str
    title: str
    about: str
    state: str
    mark: str
    text: str
    value: str
    interval: str
    n: str
    limits: str
    picture: Markup
    action: str
    why: str
    rows: RowTable | None


def title_of(name: str) -> str:
    """What a finding is about, in words; the second part is left away where it says nothing more.

    >>> title_of("D1.leak"), title_of("D4.length_alone"), title_of("D8.coverage"), title_of("X9.new")
    ('Duplicates and leaks: leaks', 'Biases: length alone', 'Coverage', 'X9: new')
    >>> title_of("D5.gap"), title_of("D12.gap")
    ('Shortcuts: gap', 'On-policy: how much likelier chosen is to the model')
    """
    group, _, measure = name.partition(".")
    title = TITLES.get(group, group)
    words = OWN_MEASURES.get(name) or MEASURES.get(measure, measure.replace("_", " "))
    return title if not words or title.casefold().startswith(words.casefold()) else f"{title}: {words}"


def state_of(finding: Finding) -> str:
    """The status, where a pass on too little evidence is 'uncertain'."""
    return "uncertain" if finding.status == "pass" and finding.uncertain else finding.status


def worst_first(findings: Sequence[Finding]) -> list[Finding]:
    """Failures, warnings, uncertain ones, passes, and what could not be computed; of one state the farthest first."""
    return sorted(
        findings, key=lambda one: (STATES.index(state_of(one)), -beyond(one), one.id, sorted(one.slice.items()))
    )


def beyond(finding: Finding) -> float:
    """How far a number lies beyond its first limit, as a share of the limit; below 0 on the good side.

    >>> beyond(Finding(id="D1", status="warn", text="", value=3.0, limits=Limits(warn=2.0)))
    0.5
    """
    limits = (
        [limit for limit in (finding.limits.warn, finding.limits.fail) if limit is not None] if finding.limits else []
    )
    if finding.value is None or not limits or finding.limits is None:
        return -inf
    apart = (finding.value - limits[0]) * (1 if finding.limits.bad == "above" else -1)
    return apart / abs(limits[0]) if limits[0] else inf if apart > 0 else apart


def shown(files: DataFiles) -> list[Found]:
    """The findings as they are printed, at most `MOST_SHOWN` of them."""
    names: Counter[str] = Counter()
    found = []
    for one in worst_first(files.findings)[:MOST_SHOWN]:
        anchor = anchor_of(one.id)
        names[anchor] += 1
        found.append(show(one, files, anchor=anchor if names[anchor] == 1 else f"{anchor}-{names[anchor]}"))
    return found


def anchor_of(name: str) -> str:
    """The name of a finding in links of the page.

    >>> anchor_of("D1.leak")
    'finding-D1-leak'
    """
    return "finding-" + re.sub(r"[^A-Za-z0-9]+", "-", name)[:60]


def show(one: Finding, files: DataFiles, *, anchor: str) -> Found:
    """One finding as it is printed."""
    state = state_of(one)
    return Found(
        anchor=anchor,
        id=fitted(one.id, 80),
        title=fitted(title_of(one.id), 120),
        about=fitted(", ".join(f"{key} {value}" for key, value in one.slice.items()), 200),
        state=state,
        mark=MARKS[state],
        text=fitted(one.text, LONGEST_TEXT),
        value=told(one, one.value),
        interval=interval(one),
        n=wording.count(one.n) if one.n else NONE,
        limits=limits(one),
        picture=picture(one),
        action=fitted(one.action, LONGEST_TEXT),
        why=why(one),
        rows=row_table(one, files),
    )


# ---------------------------------------------------------------- the number


def is_share(one: Finding) -> bool:
    """Whether a number is a share, told in per cent: its unit says so, or it has none and lies between 0 and 1."""
    if one.unit or one.id.startswith(SCORES):
        return one.unit == "share"
    limits = (one.limits.warn, one.limits.fail) if one.limits else ()
    every = [v for v in (one.value, one.low, one.high, *limits) if v is not None]
    return bool(every) and all(0 <= v <= 1 for v in every) and not whole(every)


def whole(values: Sequence[float]) -> bool:
    """Whether all are whole numbers."""
    return all(v == round(v) for v in values)


def told(one: Finding, value: float | None, *, unit: bool = True, limit: bool = False) -> str:
    """A number of a finding with its unit; a limit is written as it was set."""
    if value is None:
        return NONE
    if is_share(one):
        digits = 1 if abs(value) >= 0.001 or not value else 3
        return f"{figures.plain(100 * value)}{wording.THIN}%" if limit else wording.percent(value, digits)
    every = [v for v in (one.value, one.low, one.high) if v is not None]
    digits = (
        0
        if whole([*every, value]) or abs(value) >= 1000
        else 1
        if max(map(abs, every), default=0.0) > (1 if one.unit else 10)
        else 2
    )
    written = figures.plain(value) if limit else wording.decimal(value, digits)
    named = told_unit(one, written)
    return f"{written}{wording.THIN if named == '%' else ' '}{named}" if named and unit else written


def told_unit(one: Finding, written: str) -> str:
    """The unit that stands behind a number; a share is told in per cent."""
    single = written.lstrip(wording.MINUS) == "1"
    return "" if one.unit == "share" else one.unit.removesuffix("s") if single else one.unit


def interval(one: Finding) -> str:
    """The 95 % interval; a dash where the number is certain or unknown."""
    if one.low is None or one.high is None or one.low == one.high:
        return NONE
    return f"{told(one, one.low, unit=False)} to {told(one, one.high, unit=False)}"


def limits(one: Finding) -> str:
    """The limits in words.

    >>> limits(Finding(id="D4.x", status="pass", text="", value=1.0, unit="points", limits=Limits(warn=2.0, fail=5.0)))
    'warns above 2, fails above 5 points'
    >>> limits(Finding(id="D4.x", status="pass", text="", value=1.0, unit="points", limits=Limits(warn=1.0)))
    'warns above 1 point'
    """
    given = one.limits
    if given is None or (given.warn is None and given.fail is None):
        return ""
    named = [(verb, limit) for verb, limit in (("warns", given.warn), ("fails", given.fail)) if limit is not None]
    said = [
        f"{verb} {given.bad} {told(one, limit, unit=i == len(named) - 1, limit=True)}"
        for i, (verb, limit) in enumerate(named)
    ]
    return ", ".join(said)


def why(one: Finding) -> str:
    """Why there is no number, or why it does not decide."""
    if one.status == "undefined":
        return fitted(one.undefined or "no reason is given", LONGEST_TEXT)
    if not one.uncertain:
        return ""
    more = (
        f"; about {wording.count(one.needed)} would decide, where there are {wording.count(one.n)}"
        if one.needed
        else ""
    )
    return f"The interval lies on both sides of a limit{more}."


def picture(one: Finding) -> Markup:
    """The number over the zones of its limits; nothing where there is no number or no limit."""
    bounds = [v for v in (one.limits.warn, one.limits.fail) if v is not None] if one.limits else []
    if one.value is None or one.limits is None or not bounds:
        return EMPTY
    low, high = (one.value if end is None else end for end in (one.low, one.high))
    scale = figures.zones_scale([one.value, low, high], bounds)
    between = f", {NINETY_FIVE} {interval(one)}" if low < high else ""
    label = f"{title_of(one.id)}: {told(one, one.value)}{between}; {limits(one)}; {state_of(one)}"
    return figures.zones_row(scale, value=one.value, low=low, high=high, zones=zones(one.limits, scale), label=label)


def zones(given: Limits, scale: figures.Scale) -> list[tuple[str, float, float]]:
    """The parts of a scale that are fine, warn and fail.

    >>> zones(Limits(warn=2.0, fail=5.0), figures.Scale(0, 8))
    [('fine', 0, 2.0), ('warned', 2.0, 5.0), ('failed', 5.0, 8)]
    >>> zones(Limits(warn=0.4, bad="below"), figures.Scale(0, 1))
    [('warned', 0, 0.4), ('fine', 0.4, 1)]
    """
    bounds = [(name, v) for name, v in (("warned", given.warn), ("failed", given.fail)) if v is not None]
    names = ["fine", *(name for name, _ in bounds)]
    edges = [v for _, v in bounds]
    if given.bad == "below":
        names, edges = names[::-1], edges[::-1]
    ends = [scale.low, *edges, scale.high]
    return list(zip(names, ends, ends[1:], strict=False))


# ---------------------------------------------------------------- the rows


def row_table(one: Finding, files: DataFiles) -> RowTable | None:
    """Some of the rows a finding is about, with the texts of the pairs they name."""
    if one.rows is None:
        return None
    rows = [told_row(row, files.pairs) for row in files.rows.get(one.rows.file, [])]
    columns = list(dict.fromkeys(column for row in rows for column in row))[:MOST_COLUMNS]
    cells = [[row.get(column, "") for column in columns] for row in rows]
    return RowTable(
        f"data/{fitted(one.rows.file, 200)}",
        wording.counted(one.rows.count, "row"),
        len(rows) == one.rows.count,
        [fitted(c, 60) for c in columns],
        cells,
    )


def told_row(row: Tree, pairs: Mapping[str, Tree]) -> dict[str, str]:
    """A row as it is printed: where, why and the texts of its pair, or else what it holds."""
    pair = next((pairs[name] for name in ids(row) if pairs.get(name)), {})
    places = [row["where"]] if "where" in row else [f"pair {name[:8]}" for name in ids(row)]
    named = {"where": ", ".join(map(str, places))} if places else {}
    why = {"why": row["why"]} if "why" in row else {}
    texts = {key: pair[key] for key in ("prompt", "chosen", "rejected") if key in pair}
    rest = {str(k): v for k, v in row.items() if k not in ("where", "why", "pair_id", *HIDDEN, *texts)}
    every: dict[str, object] = named | why | texts | rest
    return {key: fitted(plain(value, last=key == "prompt"), LONGEST_CELL) for key, value in every.items()}


def plain(value: object, *, last: bool = False) -> str:
    """A value of a row as text: messages as their turns (the last turn alone where asked), the rest as JSON.

    >>> plain([{"role": "user", "content": "Hi"}, {"role": "user", "content": "You?"}], last=True), plain({"a": 1})
    ('You?', '{"a": 1}')
    """
    if isinstance(value, str):
        return value
    if (
        isinstance(value, list)
        and value
        and all(isinstance(m, dict) and isinstance(m.get("content"), str) for m in value)
    ):
        return (
            value[-1]["content"]
            if last or len(value) == 1
            else "\n".join(f"{m.get('role')}: {m['content']}" for m in value)
        )
    return json.dumps(value, ensure_ascii=False, default=str)


def fitted(words: str, size: int) -> str:
    """The beginning of a text that takes at most about `size` bytes on the page, escaped, with a sign where it was cut.

    >>> fitted("plum", 9), fitted("a < b and so on", 9)
    ('plum', 'a < b …')
    """
    words = "".join(c for c in words[: size + 1] if c >= " " or c in "\n\t").encode("utf-8", "replace").decode()
    left = size
    for i, c in enumerate(words):
        left -= len(str(escape(c)).encode())
        if left < 0:
            return words[:i].rstrip() + " …"
    return words
