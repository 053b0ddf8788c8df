"""What the page about several runs says, by the names `compare.html.j2` prints it under."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from markupsafe import Markup

from druthers.report import figures, wording
from druthers.report.compared.comparison import MEASURES, Comparison
from druthers.report.compared.entries import NOT_RECORDED, Entry, Point
from druthers.report.compared.matches import LEVEL, Duel, Match
from druthers.report.compared.scatter import Spot, Track, glyph, scatter
from druthers.report.parts import NINETY_FIVE, Chart, Row, Table, share_row, share_table
from druthers.report.wording import NONE
from druthers.stats import Estimate, Interval, Undefined

HEIGHTS = {"reward": "Mean reward of its answers", "win_rate": "Win rate over the reference's answers, ties half"}
MOST_NUMBERED, MOST_INTERVALS, MOST_VALUE, MOST_COLUMNS, MOST_LEADS, MOST_TITLE = 10, 6, 60, 5, 12, 48


@dataclass(frozen=True)
class Named:
    """A run as the page names it: its number, its mark, its name and where it lies."""

    number: int
    mark: Markup
    name: str
    path: str
    kind: str
    drawn: bool


@dataclass(frozen=True)
class Cell:
    """One cell of a matrix: what stands in it, a second line, its class in the style sheet, and its words."""

    text: str
    more: str = ""
    style: str = ""
    label: str = ""


@dataclass(frozen=True)
class Head:
    """A run, or several as one method, at the side of a matrix: marks, numbers and name."""

    marks: Markup
    number: str
    name: str


@dataclass(frozen=True)
class Matrix:
    """Runs against runs; the columns are named by mark and number, as the rows are."""

    rows: Sequence[tuple[Head, Sequence[Cell]]]
    columns: Sequence[Head]


def view(found: Comparison) -> dict[str, Any]:
    """The content of every section."""
    names = {entry.name: i for i, entry in enumerate(found.entries)}
    drawn = {entry.name for entry in found.drawn}
    return {
        "title": title(found),
        "runs": [
            Named(i + 1, glyph(i), one.name, str(one.path), one.kind, one.name in drawn)
            for i, one in enumerate(found.entries)
        ],
        "sentences": sentences(found),
        "settings": settings(found),
        "picture": picture(found, names),
        "why_no_picture": why_no_picture(found),
        "front": front(found),
        "duels": duel_matrix(found, names),
        "duel_notes": reasons([duel.share for duel in found.duels]),
        "leads": leads(found),
        "most_leads": MOST_LEADS,
        "methods": [method.name for method in found.methods if len(method.runs) > 1],
        "wins": win_matrix(found, names),
        "win_rows": win_rows(found),
        "win_notes": win_notes(found),
        "accuracy": accuracy(found),
        "gaps": gaps(found),
        "costs": costs(found),
        "missing": missing(found),
        "remarks": found.remarks,
        "why": lambda file, key="": "",
    }


def head_of(runs: Sequence[str], names: Mapping[str, int]) -> Head:
    """Runs by their marks and numbers."""
    at = [names[name] for name in runs]
    return Head(Markup("").join(map(glyph, at)), "+".join(str(i + 1) for i in at), " + ".join(runs))


def title(found: Comparison) -> str:
    """What the page is about."""
    names = [entry.name for entry in found.entries]
    written = " · ".join(names)
    return written if len(names) <= 3 and len(written) <= MOST_TITLE else counted(len(names), "run")


def counted(count: int, noun: str) -> str:
    """A count with its noun.

    >>> counted(1, "run"), counted(3, "run")
    ('1 run', '3 runs')
    """
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


def sentences(found: Comparison) -> list[str]:
    """What the comparison comes to, in a few sentences."""
    if len(found.entries) == 1:
        return [lone_sentence(found.entries[0])]
    said = [accuracy_sentence(found), win_sentence(found), *duel_sentences(found)]
    return [one for one in said if one] or ["Nothing that these runs have in common was measured in all of them."]


def lone_sentence(entry: Entry) -> str:
    """What there is to say of one run alone."""
    right = entry.measures.get("accuracy")
    if not isinstance(right, Interval):
        return f"{entry.name} alone; what is not recorded of it is named below."
    share, between = wording.percent(right.value), wording.percent_range(right)
    return f"{entry.name} alone ranks {share} of its held-out pairs right ({NINETY_FIVE} {between})."


def accuracy_sentence(found: Comparison) -> str:
    """Who ranks pairs better than the first run, as far as it shows."""
    clear = [(name, gap) for name, gap in found.gaps.items() if isinstance(gap, Interval) and gap.low * gap.high > 0]
    if not any(isinstance(gap, Interval) for gap in found.gaps.values()):
        return ""
    first = found.entries[0].name
    if not clear:
        return f"No run ranks held-out pairs differently from {first} by more than the intervals allow."
    name, gap = max(clear, key=lambda pair: abs(pair[1].value))
    more = f", the most of {len(clear)} that differ" if len(clear) > 1 else ""
    return f"{name} ranks {wording.points(gap.value)} of the held-out pairs {'more' if gap.value > 0 else 'fewer'} " + (
        f"right than {first}{more}."
    )


def win_sentence(found: Comparison) -> str:
    """Whose answers win over whose."""
    played = [one for one in found.matches if isinstance(one.win_rate, Interval)]
    shown = [one for one in played if one.p_holm < LEVEL]
    if not played:
        return ""
    if not shown:
        return (
            f"Of {counted(len(played), 'pairing')} of runs, in none do the answers of one win over the other's by more "
            "than chance would, corrected for their number."
        )
    best = max(shown, key=lambda one: abs(estimate_of(one.win_rate) - 0.5))
    winner, loser = (best.a, best.b) if estimate_of(best.win_rate) > 0.5 else (best.b, best.a)
    share = 0.5 + abs(estimate_of(best.win_rate) - 0.5)
    return f"The answers of {winner} win {wording.percent(share)} against those of {loser}" + (
        "." if len(shown) == 1 else f", the clearest of {len(shown)} differences."
    )


def estimate_of(found: Estimate) -> float:
    """The number of an estimate that is there."""
    return found.value if isinstance(found, Interval) else float("nan")


def duel_sentences(found: Comparison) -> list[str]:
    """Which method's points are beaten by which other's, where most of them are."""
    clear = [duel for duel in found.duels if isinstance(duel.share, Interval) and duel.share.low > 0.5]
    said = [
        f"{duel.by} beats {wording.percent(estimate_of(duel.share), 0)} of the points of {duel.of} on both axes "
        f"({NINETY_FIVE} {wording.percent_range(duel.share, 0)})."
        for duel in sorted(clear, key=lambda one: -estimate_of(one.share))[:2]
    ]
    if not said and any(isinstance(duel.share, Interval) for duel in found.duels):
        return ["No run beats most of the points of another on both axes beyond doubt."]
    return said


# ---------------------------------------------------------------- settings


def settings(found: Comparison) -> dict[str, Any]:
    """The settings that differ, a column a run; with many runs a column a setting."""
    keys, names = list(found.differing), [entry.name for entry in found.entries]
    table = [[wording.shorten(found.differing[key][name], MOST_VALUE)[0] for name in names] for key in keys]
    if len(names) > MOST_COLUMNS:
        turned = [[row[i] for row in table] for i in range(len(names))]
        return {"corner": "run", "columns": keys, "rows": list(zip(names, turned, strict=True)) if keys else []}
    return {"corner": "setting", "columns": names, "rows": list(zip(keys, table, strict=True))}


# ---------------------------------------------------------------- points


def picture(found: Comparison, names: Mapping[str, int]) -> Chart | None:
    """Reward, or win rate, against KL."""
    measure = MEASURES[found.measure]
    tracks = [
        Track(names[entry.name], [spot(point, found, entry) for point in entry.points if is_drawn(point, found)])
        for entry in found.drawn
    ]
    if not any(track.spots for track in tracks):
        return None
    title = HEIGHTS[found.measure]
    rows = [number_row(entry, point, found) for entry in found.drawn for point in entry.points]
    count = sum(len(track.spots) for track in tracks)
    start = next((p for entry in found.drawn for p in entry.points if p.step == 0 and is_drawn(p, found)), None)
    level = 0.5 if found.measure == "win_rate" else estimate_of(measure(start)) if start else None
    form = figures.plain if found.measure == "reward" else lambda v: wording.percent(v, 0)
    return Chart(
        title=f"{title}, against the KL to the reference: {counted(count, 'point')} of {counted(len(tracks), 'run')}",
        picture=scatter(
            tracks,
            level=level,
            form=form,
            title="",
            label=f"{title} over KL to the reference, {count} points of {len(tracks)} runs; the numbers stand below",
            numbered=1 < len(found.entries) <= MOST_NUMBERED,
        ),
        legend=[],
        columns=["run", "step", "KL, nats", NINETY_FIVE, found.measure.replace("_", " "), NINETY_FIVE, "tokens"],
        numbers=rows,
        note=picture_note(found),
    )


def picture_note(found: Comparison) -> str:
    """How to read the picture."""
    scored = f" The reward is that of {found.scorer}." if found.scorer and found.measure == "reward" else ""
    if all(len(entry.points) < 2 for entry in found.drawn):
        return "A point a run, its kept checkpoint; no points along training were measured."
    return (
        "Up is better, left is nearer to the reference. A ring marks a point that no other beats on both axes; bars "
        f"are 95\u202f% intervals over prompts.{scored}"
    )


def is_drawn(point: Point, found: Comparison) -> bool:
    """Whether a point has a place in the picture."""
    return isinstance(point.kl, Interval) and isinstance(MEASURES[found.measure](point), Interval)


def spot(point: Point, found: Comparison, entry: Entry) -> Spot:
    """A point in the picture."""
    return Spot(limits(point.kl), limits(MEASURES[found.measure](point)), point.step in found.front.get(entry.name, ()))


def limits(found: Estimate) -> tuple[float, float, float]:
    """Value and limits."""
    return (found.value, found.low, found.high) if isinstance(found, Interval) else (0.0, 0.0, 0.0)


def number_row(entry: Entry, point: Point, found: Comparison) -> list[str]:
    """A point as numbers."""
    height = MEASURES[found.measure](point)
    share = found.measure == "win_rate"
    value = wording.percent(wording.value_of(height)) if share else wording.decimal(wording.value_of(height), 3)
    between = wording.percent_range(height) if share else wording.decimal_range(height, 3)
    star = " on the front" if point.step in found.front.get(entry.name, ()) else ""
    return [
        entry.name,
        f"{point.step}{star}",
        wording.decimal(wording.value_of(point.kl), 2),
        wording.decimal_range(point.kl, 2),
        value,
        between,
        wording.decimal(point.length, 0),
    ]


def why_no_picture(found: Comparison) -> str:
    """Why no points can be drawn."""
    if any(entry.trained_points for entry in found.entries):
        return "The points along training have no reward: the runs have no rubric and no other scorer."
    return "No run has points along training, or win rate and KL at its end; set evaluate.along before a run."


def front(found: Comparison) -> Table | None:
    """How many points of each run no other beats, and how many other runs beat."""
    rows = []
    for entry in found.drawn:
        lost, count = found.beaten.get(entry.name, (0, 0))
        if count:
            best = len(found.front.get(entry.name, ()))
            picture = figures.share_row(
                [("held", best), ("tie", count - best - min(lost, count - best)), ("base", min(lost, count - best))],
                label=f"{entry.name}: {best} of {count} points on the front, {lost} beaten by another run",
            )
            cells = [("points", str(count)), ("on the front", str(best)), ("beaten by another run", str(lost))]
            rows.append(Row(entry.name, picture, cells))
    legend = [("held", "on the front"), ("tie", "beaten by its own run alone"), ("base", "beaten by another run")]
    return Table("Points of each run, and what beats them", rows, legend) if len(rows) > 1 else None


def duel_matrix(found: Comparison, numbers: Mapping[str, int]) -> Matrix | None:
    """Rows are beaten by columns."""
    names = list(dict.fromkeys(duel.of for duel in found.duels))
    by = {(duel.of, duel.by): duel for duel in found.duels}
    if not any(isinstance(duel.share, Interval) for duel in found.duels):
        return None
    rows = [(of, [duel_cell(by.get((of, other)), few=len(names) <= MOST_INTERVALS) for other in names]) for of in names]
    heads = {one.name: head_of([run.name for run in one.runs], numbers) for one in found.methods}
    return Matrix([(heads[of], cells) for of, cells in rows], [heads[of] for of in names])


def duel_cell(duel: Duel | None, *, few: bool) -> Cell:
    """A share of points beaten."""
    if duel is None:
        return Cell("", style="own")
    if not isinstance(duel.share, Interval):
        return Cell(NONE, label=duel.share.reason)
    value, between = wording.percent(duel.share.value, 0), wording.percent_range(duel.share, 0)
    style = "lost" if duel.share.low > 0.5 else "some" if duel.share.low > 0 else ""
    label = (
        f"{duel.by} beats {value} of {duel.points} points of {duel.of}, {NINETY_FIVE} {between}, {duel.prompts} prompts"
    )
    return Cell(value, between if few else "", style, label)


def leads(found: Comparison) -> list[list[str]]:
    """Reward at equal KL, two methods a row, the surest first."""
    known = [one for one in found.leads if isinstance(one.gap, Interval)]
    order = sorted(known, key=lambda one: (one.gap.low * one.gap.high <= 0, -abs(estimate_of(one.gap))))  # type: ignore[union-attr]
    return [
        [
            one.of,
            one.over,
            wording.signed(estimate_of(one.gap), 3),
            wording.decimal_range(one.gap, 3),
            f"0 to {wording.decimal(one.reach, 2)}",
        ]
        for one in order
    ]


def reasons(estimates: Sequence[Estimate]) -> list[str]:
    """Why numbers are missing, each reason once."""
    return list(dict.fromkeys(one.reason for one in estimates if isinstance(one, Undefined)))


# ---------------------------------------------------------------- answers


def win_matrix(found: Comparison, numbers: Mapping[str, int]) -> Matrix | None:
    """Rows win over columns."""
    played = [one for one in found.matches if isinstance(one.win_rate, Interval)]
    if not played:
        return None
    names = [entry.name for entry in found.entries if any(entry.name in (one.a, one.b) for one in played)]
    cells = {(one.a, one.b): one for one in played} | {(one.b, one.a): turned(one) for one in played}
    few = len(names) <= MOST_INTERVALS
    heads = {name: head_of([name], numbers) for name in names}
    rows = [(heads[a], [win_cell(cells.get((a, b)), few=few, own=a == b) for b in names]) for a in names]
    return Matrix(rows, [heads[name] for name in names])


def turned(match: Match) -> Match:
    """The same match seen from the other side."""
    rate = match.win_rate.map(lambda share: 1 - share) if isinstance(match.win_rate, Interval) else match.win_rate
    return Match(
        match.b, match.a, rate, match.losses, match.ties, match.wins, match.p, match.p_holm, match.detectable_points
    )


def win_cell(match: Match | None, *, few: bool, own: bool) -> Cell:
    """A win rate, marked where it is shown to be one."""
    if match is None:
        return Cell("" if own else NONE, style="own" if own else "")
    value, between = wording.percent(estimate_of(match.win_rate), 0), wording.percent_range(match.win_rate, 0)
    style = "" if match.p_holm >= LEVEL else "won" if estimate_of(match.win_rate) > 0.5 else "lost"
    return Cell(value, between if few else "", style, f"{match.a} over {match.b}: {value}, {NINETY_FIVE} {between}")


def win_rows(found: Comparison) -> list[list[str]]:
    """Every match with its counts."""
    return [
        [
            f"{one.a} over {one.b}",
            wording.percent(estimate_of(one.win_rate)),
            wording.percent_range(one.win_rate),
            f"{one.wins}, {one.ties}, {one.losses}",
            "below 0.001" if one.p_holm < 0.001 else wording.decimal(one.p_holm, 3),
            f"{wording.decimal(one.detectable_points, 1)} pts",
        ]
        for one in found.matches
        if isinstance(one.win_rate, Interval)
    ]


def win_notes(found: Comparison) -> list[str]:
    """Why some runs play no match."""
    unjudged = [entry.name for entry in found.entries if entry.judged is None]
    notes = [f"{', '.join(unjudged)}: the answers were not scored, so they win over none."] if unjudged else []
    return notes + [f"{reason[0].upper()}{reason[1:]}." for reason in reasons([one.win_rate for one in found.matches])]


# ---------------------------------------------------------------- pairs and costs


def accuracy(found: Comparison) -> Table | None:
    """Held-out pairs ranked right, run by run, each on its own pairs."""
    rows = [
        share_row(entry.name, rate, measure="right", unit="pairs", style="aligned")
        for entry in found.entries
        if isinstance(rate := entry.measures.get("accuracy"), Interval)
    ]
    legend = [("aligned", "implicit-reward accuracy"), ("band", NINETY_FIVE)]
    caption = "Held-out pairs ranked in the preferred order, each run on its own pairs"
    return share_table(caption, rows, legend=legend, of="pairs", grid="quarters halved") if rows else None


def gaps(found: Comparison) -> list[list[str]]:
    """Differences to the first run on the pairs both hold out."""
    return [
        [name, wording.points(gap.value), points_range(gap), wording.count(gap.n)]
        for name, gap in found.gaps.items()
        if isinstance(gap, Interval)
    ]


def points_range(gap: Interval) -> str:
    """The interval of a difference of shares, in points."""
    return f"{wording.signed(100 * gap.low, 1)} to {wording.signed(100 * gap.high, 1)}"


def costs(found: Comparison) -> list[list[str]]:
    """What each run took, and how long its answers are."""
    return [cost(entry) for entry in found.entries]


COSTS = ("run", "tokens an answer", "to the base", "training", "all stages", "operations", "memory", "pairs", "steps")


def cost(entry: Entry) -> list[str]:
    """One run; what is not recorded is a dash."""
    m = {key: wording.value_of(found) for key, found in entry.measures.items()}
    ratio, memory, flop = m.get("length_ratio"), m.get("peak_memory_gib"), m.get("flop")
    return [
        entry.name,
        wording.decimal(m.get("length"), 0),
        NONE if ratio is None else f"×{wording.decimal(ratio, 2)}",
        wording.duration(m.get("train_seconds")),
        wording.duration(m.get("seconds")),
        powers(flop),
        NONE if memory is None else f"{wording.decimal(memory, 2)} GiB",
        wording.count(m.get("pairs")),
        wording.count(m.get("steps")),
    ]


def powers(value: float | None) -> str:
    """A large number in powers of ten.

    >>> powers(3.2e14), powers(None)
    ('3.2·10¹⁴', '—')
    """
    if value is None:
        return NONE
    digits, _, exponent = f"{value:.1e}".partition("e")
    return f"{digits}·10{str(int(exponent)).translate(RAISED)}"


RAISED = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")


def missing(found: Comparison) -> list[tuple[str, str]]:
    """Which numbers of which runs are not there, and why: a reason with the runs and numbers it stands for."""
    why: dict[str, dict[str, list[str]]] = {}
    for entry in found.entries:
        for key, one in entry.measures.items():
            if isinstance(one, Undefined):
                reason = one.reason.rstrip(".") or NOT_RECORDED
                why.setdefault(reason, {}).setdefault(entry.name, []).append(key.replace("_", " "))
    return [
        ("; ".join(f"{name}: {', '.join(keys)}" for name, keys in runs.items()), reason) for reason, runs in why.items()
    ]
