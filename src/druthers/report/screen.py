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
from druthers.report.refused import BEYOND, REASONS, by_count, title_of
from druthers.report.wording import THIN

WIDTH, NARROWEST, WIDEST = 96, 40, 120
"""Columns of a screen, and the fewest and most that are used of a terminal."""
MOST = 39
LABEL = 10
MOST_COLUMNS = 8
LONGEST = 3
"""Lines of one sentence."""
KEPT = "\u00a0"
"""A space at which no line is broken."""
STYLES = {"fail": "red", "warn": "yellow", "uncertain": "dim", "undefined": "dim", "pass": "green"}
SHARES = {"data": 6, "found": 11, "done": 7, "enough": 7, "next": 7, "page": 1}
"""The most lines of each part; together they fill a screen of 39."""
AGAIN = ("one_response", "unjudged", "both_bad", "gate")
"""Codes of the prompts that stand in collect.jsonl."""
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
    clean = "".join(c if c.isprintable() or c == KEPT else " " for c in wording.whole(words).replace(THIN, KEPT))
    if whole:
        return [clean.replace(KEPT, " ")]
    found = textwrap.wrap(clean, width, max_lines=LONGEST, placeholder=" …", subsequent_indent="  ")
    return [row.replace(KEPT, " ") for row in found]


def what(summary: Mapping[str, Any]) -> list[str]:
    """What the data is."""
    train, heldout = number(summary, "train"), wording.count(number(summary, "heldout"))
    sides = f"{wording.counted(train, 'pair')} to train on, {heldout} held out"
    longer = number(summary, "longer_chosen")
    said = f"; chosen is the longer one in {wording.percent(longer)}" if longer is not None else ""
    made = branch(summary, "graded")
    pooled = [
        f"what was said of {wording.counted(number(made, 'items'), 'prompt')} makes "
        f"{wording.counted(number(made, 'pairs'), 'pair')}"
    ]
    read = wording.counted(number(summary, "rows"), "row")
    return [
        f"{text(summary, 'source')}: {read}, read as {text(summary, 'format')}",
        *(pooled if made else []),
        f"{sides}{said}",
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
    shown = [told[i] for i in distinct(one for one, _ in bad)[:3]]
    more = len(told) - len(shown)
    others = "1 more warning or failure" if more == 1 else f"{more} more warnings and failures"
    last = ([others] if more > 0 else []) + rest
    return shown + ([(", ".join(last), "green" if not bad else "dim")] if last else []) or [("no findings", "dim")]


def distinct(found: Iterable[Finding]) -> list[int]:
    """The places of findings but for those that say of another metric what an earlier one says."""
    first: dict[tuple[str, tuple[tuple[str, str], ...]], int] = {}
    for i, one in enumerate(found):
        of = tuple(sorted((key, str(value)) for key, value in one.slice.items() if key != "metric"))
        first.setdefault((one.id, of), i)
    return list(first.values())


def about(one: Finding) -> str:
    """The slice of a finding, in parentheses, but for what its text says itself."""
    said = [f"{key} {value}" for key, value in one.slice.items() if str(value) not in one.text]
    return f" ({', '.join(said)})" if said else ""


def done(summary: Mapping[str, Any]) -> list[str]:
    """What was done about it."""
    aside = branch(summary, "rejected")
    counts = sorted(((int(number(aside, name) or 0), name) for name in aside), reverse=True)
    said = [f"{REASONS.get(name, (name.replace('_', ' '), ''))[0].lower()}{KEPT}{n:,}" for n, name in counts]
    again = sum(n for n, name in counts if name in AGAIN)
    total = sum(n for n, _ in counts)
    what = ("row or prompt", "rows and prompts") if branch(summary, "graded") else ("row", "rows")
    beyond, joined = number(summary, BEYOND), number(summary, "joined_turns")
    redacted, left = number(summary, "redacted.pairs"), branch(summary, "ignored_columns")
    alone = number(summary, "graded.alone.answers")
    unlike = "no two answers to one prompt were judged differently"
    dropped = by_count(branch(branch(summary, "graded"), "unpaired"))
    listed_ = ", ".join(f"{n:,} {title_of(name).lower()}" for name, n in dropped)
    many = sum(n for _, n in dropped)
    before = int(number(summary, "held_before.prompts") or 0)
    cut = sum(int(number(summary, f"cut.{side}") or 0) for side in ("chosen", "rejected"))
    return [
        f"{wording.counted(total, *what)} set aside in data/rejected.jsonl: {', '.join(said)}"
        if total
        else "no row was set aside",
        *(
            [f"{wording.counted(again, 'prompt')} to ask again in data/collect.jsonl, for druthers sample"]
            if again
            else []
        ),
        *([f"{wording.counted(many, 'comparison')} gave no pair, in data/unpaired.jsonl: {listed_}"] if many else []),
        *([f"{wording.counted(before, 'prompt')} kept out of training as held out before"] if before else []),
        *([f"{wording.counted(beyond, 'row')} beyond data.limit"] if beyond else []),
        *([f"{wording.counted(cut, 'response')} cut to data.max_response in training"] if cut else []),
        *([f"personal data redacted in {wording.counted(redacted, 'pair')}"] if redacted else []),
        *([f"{wording.counted(joined, 'row')} had turns of one speaker joined"] if joined else []),
        *([f"{wording.counted(alone, 'answer')} with a thumb made no pair: {unlike}"] if alone else []),
        *([f"columns left aside: {named(list(left))}"] if left else []),
    ]


def named(columns: list[str]) -> str:
    """Some columns, and how many others there are.

    >>> named(["id", "date"]), named([f"c{i}" for i in range(10_000)])
    ('id, date', 'c0, c1, c2, c3, c4, c5, c6, c7 and 9,992 more')
    """
    more = len(columns) - MOST_COLUMNS
    return ", ".join(columns[:MOST_COLUMNS]) + (f" and {more:,} more" if more > 0 else "")


def enough(quality: Mapping[str, Any]) -> list[str]:
    """Whether it is enough: what must be done first, to be measured by, and of different prompts; nothing where nobody
    asked."""
    answers = [row for row in listed(quality, "advice") if isinstance(row, dict) and text(row, "answer")]
    first = [row for row in answers if text(row, "rule").endswith(FIRST)]
    by_rule = first + [row for row in answers if text(row, "rule").startswith(ENOUGH)]
    by_question = [row for row in answers if "enough" in text(row, "question").lower()]
    return [f"{text(row, 'question')} {text(row, 'answer')}".strip() for row in by_rule or by_question[:1]]


def follows(rule: str, question: str) -> bool:
    """Whether an answer says what to do next."""
    return rule.startswith(NEXT) and not rule.endswith("unknown") if rule else "enough" not in question.lower()


def action(one: Finding) -> str:
    """What a finding asks for, by what it measures, and where its rows are.

    >>> action(Finding(id="D4.length", status="warn", text="", action="Balance the lengths."))
    'length: Balance the lengths.'
    """
    of = of_findings.title_of(one.id).rpartition(": ")[2]
    return f"{of}: {one.action.removesuffix('.')} (data/{one.rows.file})" if one.rows else f"{of}: {one.action}"


def following(found: list[Finding], quality: Mapping[str, Any]) -> list[str]:
    """What to do next: the actions of what fails and warns, then the other advice."""
    bad = [one for one in found if one.status in ("fail", "warn") and one.action]
    actions = [action(one) for one in bad]
    given = [row for row in listed(quality, "advice") if isinstance(row, dict)]
    others = [text(row, "answer") for row in given if follows(text(row, "rule"), text(row, "question"))]
    every = list(dict.fromkeys(filter(None, [*actions, *others])))
    return [f"{i}. {said}" for i, said in enumerate(every[:3], 1)] or ["druthers train, with the same options"]
