"""Is it better, and in what: win rates, tallies and the rules of the rubric."""

from __future__ import annotations

from druthers.report import figures, wording
from druthers.report.headline import win_rate
from druthers.report.parts import NINETY_FIVE, PER_CENT, Row, Table, share_row, share_table
from druthers.report.reading import RunFiles, branch, estimate, number, text
from druthers.report.wording import NONE
from druthers.stats import Estimate, Interval

DECODINGS = (("sampled", "Sampled answers"), ("greedy", "Greedy answers"))
ANSWERS = "evaluation/answers.json"


def wins(files: RunFiles) -> Table:
    """Win rate with its interval, sampled and greedy."""
    rates = [(name, win_rate(files, key), decoding_note(files, key)) for key, name in DECODINGS]
    rows = [
        share_row(name, rate, measure="win rate", unit="prompts", style="aligned", note=note)
        for name, rate, note in rates
        if isinstance(rate, Interval)
    ]
    caption, legend = (
        "Win rate of the aligned model over its base, ties half",
        [("aligned", "win rate"), ("band", NINETY_FIVE)],
    )
    return share_table(caption, rows, legend=legend, of="prompts", grid="quarters halved")


def decoding_note(files: RunFiles, key: str) -> str:
    """How the answers were drawn."""
    if key == "greedy":
        return "the likeliest token each time"
    temperature, top_p = (number(files.config, f"evaluate.{name}") for name in ("temperature", "top_p"))
    return f"temperature {temperature:g}, top-p {top_p:g}" if temperature is not None and top_p is not None else ""


def tallies(files: RunFiles) -> Table:
    """Wins, ties and losses as one bar."""
    rows = [row for key, name in DECODINGS if (row := tally_row(files, key, name))]
    legend = [("aligned", "aligned wins"), ("tie", "tie"), ("base", "base wins")]
    return Table("Prompts on which the aligned answer won, tied and lost", rows, legend)


def tally_row(files: RunFiles, key: str, name: str) -> Row | None:
    """One bar cut into wins, ties and losses; None where nothing was judged."""
    answers = files.tree(ANSWERS)
    won, tied, lost = (number(answers, f"{key}.{part}") for part in ("wins", "ties", "losses"))
    if won is None or tied is None or lost is None or not won + tied + lost:
        return None
    label = f"{name}: {won:.0f} wins, {tied:.0f} ties, {lost:.0f} losses"
    picture = figures.share_row([("aligned", won), ("tie", tied), ("base", lost)], label=label)
    counts = [("wins", won), ("ties", tied), ("losses", lost)]
    return Row(name, picture, [(column, wording.count(n)) for column, n in counts])


def detectable(files: RunFiles) -> str:
    """The smallest effect this evaluation could have seen, as a sentence."""
    smallest = number(files.tree(ANSWERS), "sampled.detectable_points")
    if smallest is None:
        return ""
    points = wording.decimal(smallest, 1)
    return f"With this many prompts the evaluation can detect a difference of {points} points or more from 50\u202f%."


def rules(files: RunFiles) -> Table:
    """Share of sampled answers that keep each rule, base and aligned, largest gain first."""
    found: list[tuple[float, Row]] = []
    for key, rule in branch(files.tree(ANSWERS), "rules").items():
        base, aligned = number(rule, "base"), number(rule, "aligned")
        if base is not None and aligned is not None:
            name = wording.capital(text(rule, "label") or key)
            found.append((aligned - base, rule_row(name, base, aligned, change=estimate(rule, "change"))))
    rows = [row for _, row in sorted(found, key=lambda pair: -pair[0])]
    legend = [("ring", "base"), ("aligned", "aligned"), ("band", f"{NINETY_FIVE} of the change")]
    return share_table(
        "Share of sampled answers that keep each rule", rows, legend=legend, of="answers", grid="quarters"
    )


def rule_row(name: str, base: float, aligned: float, *, change: Estimate) -> Row:
    """One rule as a dumbbell; marked where the whole interval of the change lies below zero."""
    gain = aligned - base
    low, high = (change.low, change.high) if isinstance(change, Interval) else (gain, gain)
    label = f"{name}: base {wording.percent(base)}, aligned {wording.percent(aligned)}, change {wording.points(gain)}"
    picture = figures.dumbbell_row(PER_CENT, base=base, aligned=aligned, low=low, high=high, label=label)
    between = f"{wording.signed(100 * low, 1)} to {wording.signed(100 * high, 1)}"
    cells = [
        ("base", wording.percent(base, 0)),
        ("aligned", wording.percent(aligned, 0)),
        ("change", wording.points(gain)),
        (NINETY_FIVE, between if isinstance(change, Interval) else NONE),
    ]
    return Row(name, picture, cells, mark="worse" if isinstance(change, Interval) and high < 0 else "")
