"""The page about the data of a run: what it is, what was found in it, what was left out, and whether it is enough."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from markupsafe import Markup

from druthers import storage
from druthers.report import datacharts, figures, findings, provenance, refused, wording
from druthers.report.dataset import QUALITY, DataFiles, counts_by_reason, listed, read_data, source_names, whole_number
from druthers.report.figures import EMPTY
from druthers.report.findings import Found, fitted
from druthers.report.layout import template
from druthers.report.parts import NINETY_FIVE, Fact, Row, Table, share_table, with_unit
from druthers.report.parts import listed as joined
from druthers.report.reading import Tree, branch, estimate, number, text
from druthers.report.wording import NONE
from druthers.stats import Interval

VERDICTS = {
    "pass": ("Fit to train on", "fit", "Everything that was measured lies within its limits."),
    "warn": ("Fit, with warnings", "warned", "Nothing fails, but read the warnings before training."),
    "fail": ("Not fit yet", "unfit", "Repair what fails before training."),
}
NOT_MEASURED = ("Not measured", "not-judged", "These pairs were curated without measuring their quality.")
MOST_ANNOTATORS, MOST_ADVICE = 30, 60
PARTS = ("data/train.jsonl", "data/heldout.jsonl", "data/rejected.jsonl", "data/collect.jsonl", QUALITY)
"""The files of a run that the page leads to."""
COVERAGE = ("coverage", "clusters", "topics", "groups")
"""How the names of the figures begin that say what the data is about."""


@dataclass(frozen=True)
class Top:
    """The verdict, its class in style.css, what went in and came out, and what led to the verdict."""

    verdict: str
    style: str
    sentence: str
    counts: str
    number: str
    of: str
    picture: Markup
    legend: Sequence[tuple[str, str]]


@dataclass(frozen=True)
class Advice:
    """A question with its answer, the rule behind it, and the findings it rests on as (name, anchor or nothing)."""

    question: str
    answer: str
    rule: str
    evidence: Sequence[tuple[str, str]]


def write_data_page(run: Path) -> Path:
    """Write `data.html` into a run directory, from the files in it alone, and return its path.

    The page needs no network and no script, and stays small whatever the data: at most a few rows of each kind are
    shown. Raises InputError where the run has no `data/summary.json`, or it cannot be read.
    """
    page = run / "data.html"
    storage.write_text(page, template("data.html.j2").render(view(read_data(run))))
    return page


def view(files: DataFiles) -> dict[str, Any]:
    """The content of every section of the page."""
    found = findings.shown(files)
    by_state = {state: [one for one in found if one.state == state] for state in findings.STATES}
    charts = datacharts.figures_of(files.quality)
    return {
        "name": files.run.resolve().name,
        "top": top(files),
        "facts": facts(files),
        "found": found,
        "by_state": by_state,
        "unshown": max(0, len(files.findings) - len(found)),
        "advice": advice(files, found),
        "reasons": refused.reasons(files),
        "unpaired": refused.unpaired(files),
        "disagreement": refused.disagreement(files),
        "lengths": lengths(files),
        "charts": [figure for name, figure in charts if not name.startswith(COVERAGE)],
        "coverage": [figure for name, figure in charts if name.startswith(COVERAGE)],
        "coverage_found": [one for one in found if one.id.startswith("D8")],
        "annotators": annotators(files.quality),
        "unlisted": max(0, len(listed(files.quality, "annotators")) - MOST_ANNOTATORS),
        "measured": bool(files.quality),
        "settings": [
            item for item in provenance.settings(files.tree("config.json")) if item[0].startswith(made_by(files))
        ],
        "there": [name for name in PARTS if (files.run / name).is_file()],
        "refused_file": bool(files.refused),
        "missing": files.absent,
        "why": lambda file, key="": why_missing(files, file),
    }


def made_by(files: DataFiles) -> tuple[str, ...]:
    """How the settings begin that made the data: those of grading too where opinions were graded."""
    return ("data.", "seed", "grade.") if graded(files) else ("data.", "seed")


def why_missing(files: DataFiles, file: str) -> str:
    """One sentence about a file that is missing; empty where it is there."""
    return next((f"{one.file} is not in this run: {one.why}." for one in files.absent if one.file == file), "")


# ---------------------------------------------------------------- top


def top(files: DataFiles) -> Top:
    """The verdict of quality.json, and the rows from the source to the two sides."""
    name, style, plain = VERDICTS.get(text(files.quality, "verdict"), NOT_MEASURED)
    parts, kept = flow(files), whole_number(files.summary, "kept")
    rows, of = sum(n for _, _, n in parts), "pairs and prompts" if graded(files) else "rows"
    label = f"{wording.capital(of)}: " + ", ".join(f"{words} {n:,}" for _, words, n in parts)
    picture = figures.share_row([(style, n) for style, _, n in parts], label=label) if rows else EMPTY
    legend = [(style, f"{words} {wording.count(n)}") for style, words, n in parts if n]
    sentence = plain if files.quality or not why_missing(files, QUALITY) else f"{plain} Curate again to measure it."
    share = wording.percent(kept / rows) if rows else ""
    became = "were kept" if graded(files) else "became pairs"
    return Top(name, style, sentence, counts(files), share, f"of {rows:,} {of} {became}", picture, legend)


def graded(files: DataFiles) -> Tree:
    """What became of opinions; empty where the rows were pairs themselves."""
    return branch(files.summary, "graded")


def flow(files: DataFiles) -> list[tuple[str, str, int]]:
    """(class of style.css, words, rows) of everything a row, or a pair that opinions made, can become."""
    summary = files.summary
    aside = sum(counts_by_reason(files).values())
    return [
        ("aligned", "to train on", whole_number(summary, "train")),
        ("held", "held out", whole_number(summary, "heldout")),
        ("base", "set aside", aside),
        ("tie", "beyond the limit", whole_number(summary, refused.BEYOND)),
    ]


def counts(files: DataFiles) -> str:
    """How many findings there are of each state, in words."""
    states = [findings.state_of(one) for one in files.findings]
    words = {
        "fail": "failed",
        "warn": "warned",
        "uncertain": "uncertain",
        "pass": "passed",
        "undefined": "not computed",
    }
    return ", ".join(f"{states.count(state)} {words[state]}" for state in findings.STATES if state in states)


def facts(files: DataFiles) -> list[Fact]:
    """What the data is: the strip under the verdict."""
    tree, prompts = files.summary, branch(files.summary, "prompts")
    aside = sum(counts_by_reason(files).values())
    split = text(tree, "heldout_source")
    form, made = text(tree, "format"), graded(files)
    pooled = f"opinions on {wording.counted(number(made, 'items'), 'prompt')}, " if made else ""
    sha = text(tree, "source_sha256")

    def named(key: str) -> str:
        found = number(prompts, key)
        return "" if found is None else wording.counted(found, "prompt")

    return [
        Fact("Source", fitted(" and ".join(source_names(files)), 120) or NONE, f"sha256 {sha[:12]}…" if sha else ""),
        Fact("Form", wording.FORMS.get(form, fitted(form, 40) or NONE)),
        Fact(
            "Rows read",
            wording.count(number(tree, "rows")),
            f"{pooled}{wording.counted(number(tree, 'kept'), 'pair')} kept",
        ),
        Fact("To train on", wording.counted(number(tree, "train"), "pair"), named("train")),
        Fact(
            "Held out",
            wording.counted(number(tree, "heldout"), "pair"),
            joined(named("heldout"), "from a file of its own" if split else "by prompt"),
        ),
        Fact(
            "Set aside",
            wording.counted(aside, "row or prompt" if made else "row", "rows and prompts" if made else "rows"),
            with_unit(wording.count, number(tree, refused.BEYOND) or None, "beyond the limit"),
        ),
    ]


# ---------------------------------------------------------------- sections


def lengths(files: DataFiles) -> list[Fact]:
    """Lengths, cuts and margins as the summary has them: what an older run knows too."""
    tree = files.summary
    tokens = branch(tree, "tokens")

    def side(name: str) -> str:
        mean, most = (number(tokens, f"{name}_{of}") for of in ("mean", "max"))
        return f"{wording.decimal(mean, 1)} tokens on average, at most {wording.count(most)}"

    cut = f"{wording.count(number(tree, 'cut.chosen'))} chosen, {wording.count(number(tree, 'cut.rejected'))} rejected"
    graded = number(tree, "margin.max")
    margin = f"{wording.decimal(number(tree, 'margin.mean'))} on average, at most {wording.decimal(graded)}"
    ignored = branch(tree, "ignored_columns")
    columns = joined(
        *(f"{fitted(name, 40)} in {wording.counted(number(ignored, name), 'row')}" for name in list(ignored)[:12])
    )
    turns = number(tree, "joined_turns")
    return [
        Fact("Prompts", side("prompt")),
        Fact(
            "Chosen", side("chosen"), f"the longer one in {wording.percent(number(tree, 'longer_chosen'))} of the pairs"
        ),
        Fact("Rejected", side("rejected")),
        Fact("Cut to length", cut, "the end-of-turn token is kept"),
        Fact("Margins", margin if graded else "none: no pair is graded", "in units of the reward" if graded else ""),
        Fact(
            "Left aside",
            f"columns: {columns or 'none'}",
            f"{wording.counted(turns, 'row')} with turns joined" if turns else "",
        ),
    ]


def advice(files: DataFiles, found: Sequence[Found]) -> list[Advice]:
    """The questions quality.json answers, with links to the findings they rest on."""
    anchors = {one.id: one.anchor for one in reversed(found)}
    given = [row for row in listed(files.quality, "advice") if isinstance(row, dict)][:MOST_ADVICE]
    return [
        Advice(
            fitted(text(row, "question"), 200),
            fitted(text(row, "answer"), 1200),
            fitted(text(row, "rule"), 80),
            [(fitted(str(name), 80), anchors.get(str(name), "")) for name in listed(row, "evidence")[:12]],
        )
        for row in given
    ]


def annotators(quality: Tree) -> Table:
    """Who judged, how much, and how reliably; the least reliable first."""
    given = [row for row in listed(quality, "annotators") if isinstance(row, dict)]
    known = [(reliability(row), row) for row in given]
    ordered = sorted(known, key=lambda item: (item[0].value if item[0] else 2.0, text(item[1], "name")))
    rows = [annotator(row, found) for found, row in ordered[:MOST_ANNOTATORS]]
    if any("gold" in row for row in given):
        rows = [
            replace(shown, cells=[*shown.cells, ("right on gold", on_gold(row))])
            for shown, (_, row) in zip(rows, ordered, strict=False)
        ]
    legend = [("aligned", "share of answers that are right"), ("band", NINETY_FIVE)]
    caption = "Reliability of the annotators, the lowest first"
    return share_table(caption, rows, legend=legend, of="answers", grid="quarters halved")


def reliability(row: Tree) -> Interval | None:
    """The reliability of an annotator, given as [value, low, high] or as an estimate."""
    given = row.get("reliability")
    if isinstance(given, list) and len(given) == 3:
        given = dict(zip(("value", "low", "high"), given, strict=True))
    found = estimate({"of": {"n": number(row, "n")} | (given if isinstance(given, dict) else {})}, "of")
    return found if isinstance(found, Interval) else None


def on_gold(row: Tree) -> str:
    """The share of an annotator's answers on gold items that are right, by its posterior."""
    found = estimate(row, "gold")
    return f"{wording.percent(found.value)} of {found.n:,}" if isinstance(found, Interval) else NONE


def annotator(row: Tree, found: Interval | None) -> Row:
    """One annotator."""
    name, n = fitted(text(row, "name"), 80) or "without a name", wording.count(number(row, "n"))
    if found is None:
        return Row(name, EMPTY, [("reliability", NONE), (NINETY_FIVE, NONE), ("answers", n)], "too few answers to tell")
    value, between = wording.percent(found.value), wording.percent_range(found)
    picture = figures.interval_row(
        figures.Scale(0, 1),
        value=found.value,
        low=found.low,
        high=found.high,
        style="aligned",
        label=f"{name}: reliability {value}, {NINETY_FIVE} {between}",
    )
    return Row(name, picture, [("reliability", value), (NINETY_FIVE, between), ("answers", n)])
