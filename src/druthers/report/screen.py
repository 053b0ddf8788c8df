"""What one screen of a terminal says about curated data: what it is, what was wrong, what was done, and what next."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from druthers.records import Finding
from druthers.report import findings as of_findings
from druthers.report import wording
from druthers.report.dataset import findings, listed
from druthers.report.reading import branch, number, text
from druthers.report.refused import BEYOND, REASONS

WIDTH, NARROWEST, WIDEST = 96, 40, 120
"""Columns of a screen, and the fewest and most that are used of a terminal."""
MOST = 24
LABEL = 10
STYLES = {"fail": "red", "warn": "yellow", "uncertain": "dim", "undefined": "dim", "pass": "green"}
SHARES = {"data": 4, "found": 8, "done": 4, "enough": 2, "next": 4, "page": 2}
"""The most lines of each part; together they fill a screen of 24."""
FIRST, ENOUGH, NEXT = "-first", ("A3h.", "A3p."), "A5."
"""How the rules of advice end that say what keeps one from training, and how those begin that say whether it is enough
and what to collect next."""


@dataclass(frozen=True)
class Line:
    """One line of the screen: the name of its part (empty where it goes on), its text, and its colour."""

    name: str
    text: str
    style: str = ""


def lines(summary: Mapping[str, Any], quality: Mapping[str, Any], *, page: str = "", width: int = WIDTH) -> list[Line]:
    """The screen, at most `MOST` lines of `width` columns (the path of the page alone may be longer).

    Of a terminal wider than `WIDEST` only so much is used, and one narrower than `NARROWEST` breaks the lines itself.

    `summary` and `quality` are `data/summary.json` and `data/quality.json`; quality may be empty.

    >>> lines({"source": "a.jsonl", "format": "trl", "rows": 2, "train": 1, "heldout": 1}, {})[0].text
    'a.jsonl: 2 rows, read as trl'
    """
    width = min(WIDEST, max(NARROWEST, width))
    found = of_findings.worst_first(findings(quality, []))
    parts: dict[str, Iterable[tuple[str, str]]] = {
        "data": [(said, "") for said in what(summary)],
        "found": wrong(found, quality),
        "done": [(said, "") for said in done(summary)],
        "enough": [(said, "") for said in enough(quality)],
        "next": [(said, "") for said in following(found, quality)],
        "page": [(page, "bold")] if page else [("druthers report RUN writes data.html", "dim")],
    }
    return [line for name, said in parts.items() for line in part(name, said, width=width)]


def part(name: str, said: Iterable[tuple[str, str]], *, width: int) -> list[Line]:
    """The lines of a part; where they are more than it may have, the last one says so."""
    wrapped = [(row, style) for words, style in said for row in rows(words, width=width - LABEL, whole=name == "page")]
    most = SHARES[name]
    if len(wrapped) > most:
        wrapped = [*wrapped[: most - 1], ("… the page has the rest", "dim")]
    return [Line(name if i == 0 else "", row, style) for i, (row, style) in enumerate(wrapped)]


def rows(words: str, *, width: int, whole: bool) -> list[str]:
    """A text as lines of at most `width` columns, nothing but printable characters."""
    clean = "".join(c if c.isprintable() else " " for c in words)
    return [clean] if whole else textwrap.wrap(clean, width, max_lines=2, placeholder=" …", subsequent_indent="  ")


def what(summary: Mapping[str, Any]) -> list[str]:
    """What the data is."""
    sides = [
        f"{wording.count(number(summary, key))} {words}"
        for key, words in (("train", "pairs to train on"), ("heldout", "held out"))
    ]
    longer = number(summary, "longer_chosen")
    said = f"; chosen is the longer one in {wording.percent(longer)}" if longer is not None else ""
    made = branch(summary, "graded")
    pooled = [
        f"what was said of {wording.count(number(made, 'items'))} prompts makes "
        f"{wording.count(number(made, 'pairs'))} pairs"
    ]
    return [
        f"{text(summary, 'source')}: {wording.count(number(summary, 'rows'))} rows, read as {text(summary, 'format')}",
        *(pooled if made else []),
        f"{', '.join(sides)}{said}",
    ]


def wrong(found: list[Finding], quality: Mapping[str, Any]) -> list[tuple[str, str]]:
    """What is wrong, worst first, and how many findings are not."""
    if not quality:
        return [("the quality of these pairs was not measured", "dim")]
    states = [of_findings.state_of(one) for one in found]
    bad = [(one, state) for one, state in zip(found, states, strict=True) if state in ("fail", "warn")]
    told = [
        (f"{of_findings.MARKS[state]}  {of_findings.title_of(one.id)}{about(one)}: {one.text}", STYLES[state])
        for one, state in bad
    ]
    words = (("uncertain", "uncertain"), ("pass", "within limits"), ("undefined", "not computed"))
    rest = [f"{states.count(state)} {said}" for state, said in words if state in states]
    shown, more = told[:3], len(told) - 3
    others = "1 more warning or failure" if more == 1 else f"{more} more warnings and failures"
    last = ([others] if more > 0 else []) + rest
    return shown + ([(", ".join(last), "green" if not bad else "dim")] if last else []) or [("no findings", "dim")]


def about(one: Finding) -> str:
    """The slice of a finding, in parentheses."""
    return f" ({', '.join(f'{key} {value}' for key, value in one.slice.items())})" if one.slice else ""


def done(summary: Mapping[str, Any]) -> list[str]:
    """What was done about it."""
    aside = branch(summary, "rejected")
    counts = sorted(((int(number(aside, name) or 0), name) for name in aside), reverse=True)
    said = [f"{n:,} {REASONS.get(name, (name.replace('_', ' '), ''))[0].lower()}" for n, name in counts]
    total = sum(n for n, _ in counts)
    what = "rows and prompts" if branch(summary, "graded") else f"row{'s' * (total != 1)}"
    beyond, joined = number(summary, BEYOND), number(summary, "joined_turns")
    redacted, left = number(summary, "redacted.pairs"), branch(summary, "ignored_columns")
    alone = number(summary, "graded.alone.answers")
    unlike = "no two answers to one prompt were judged differently"
    cut = sum(int(number(summary, f"cut.{side}") or 0) for side in ("chosen", "rejected"))
    return [
        f"{total:,} {what} set aside in data/rejected.jsonl: {', '.join(said)}" if total else "no row was set aside",
        *([f"{wording.count(beyond)} rows beyond data.limit"] if beyond else []),
        *([f"{cut:,} response{'s' * (cut != 1)} cut to data.max_response in training"] if cut else []),
        *([f"personal data redacted in {wording.count(redacted)} pairs"] if redacted else []),
        *([f"{wording.count(joined)} rows had turns of one speaker joined"] if joined else []),
        *([f"{wording.count(alone)} answers with a thumb made no pair: {unlike}"] if alone else []),
        *([f"columns left aside: {', '.join(left)}"] if left else []),
    ]


def enough(quality: Mapping[str, Any]) -> list[str]:
    """Whether it is enough: what must be done first, to be measured by, and of different prompts; nothing where nobody
    asked."""
    answers = [row for row in listed(quality, "advice") if isinstance(row, dict) and text(row, "answer")]
    by_rule = [text(row, "answer") for row in answers if text(row, "rule").endswith(FIRST)]
    by_rule += [text(row, "answer") for row in answers if text(row, "rule").startswith(ENOUGH)]
    by_question = [text(row, "answer") for row in answers if "enough" in text(row, "question").lower()]
    return by_rule or by_question[:1]


def follows(rule: str, question: str) -> bool:
    """Whether an answer says what to do next."""
    return rule.startswith(NEXT) and not rule.endswith("unknown") if rule else "enough" not in question.lower()


def following(found: list[Finding], quality: Mapping[str, Any]) -> list[str]:
    """What to do next: the actions of what fails and warns, then the other advice."""
    actions = [one.action for one in found if one.status in ("fail", "warn") and one.action]
    given = [row for row in listed(quality, "advice") if isinstance(row, dict)]
    others = [text(row, "answer") for row in given if follows(text(row, "rule"), text(row, "question"))]
    every = list(dict.fromkeys(filter(None, [*actions, *others])))
    return [f"{i}. {said}" for i, said in enumerate(every[:3], 1)] or ["druthers train, with the same options"]
