"""What was set aside: by reason in words, how often, two rows of each, and how to put the rows back."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup

from druthers.report import figures, wording
from druthers.report.dataset import DataFiles, counts_by_reason, whole_number
from druthers.report.figures import Scale
from druthers.report.findings import fitted, plain
from druthers.report.reading import Tree, branch, text

BEYOND = "beyond_limit"
BACK = "To keep a pair all the same, copy its line of rejected.jsonl to a file and curate with data.keep=FILE."
REASONS = {
    "malformed": ("Not a pair", "Correct the row in the source; the example says what it lacks."),
    "bad_roles": ("Turns out of order", "Put the turns in order: user and assistant alternate, the answer comes last."),
    "empty_response": ("Empty response", "Write the missing response, or leave the row out for good."),
    "same_response": ("Chosen equals rejected", "Find the response that was lost; two equal ones teach nothing."),
    "prompt_mismatch": ("Two different prompts", "Pair responses to one prompt; these answer different ones."),
    "duplicate": ("Duplicate", "Nothing is lost: the first of the equal rows was kept."),
    "near_duplicate": ("Near duplicate", f"Nothing much is lost: the first of the similar rows was kept. {BACK}"),
    "contradiction": ("Contradiction", f"Decide which response is better. {BACK}"),
    "leak": ("Prompt is held out too", "Hold out other prompts with data.heldout, or train on other ones."),
    "held_before": (
        "Prompt was held out before",
        "Train on other prompts: models are compared on these. data.held_before names the files.",
    ),
    "small_margin": ("Margin too small", "Lower data.least_margin; 0 keeps every pair."),
    "prompt_too_long": ("Prompt too long", "Raise data.max_prompt."),
    "control_tokens": ("Control tokens in the text", "Remove the tokens of the chat template from the text."),
    "template": ("Not to be written by the chat template", "Change the row, or use a model whose template takes it."),
    "unsupported": ("Not supported", "The example says what; leave the row out, or write it as text."),
    "no_opinion": ("Nobody judged it", "Have it judged, or leave it out for good."),
    "no_worker_response": ("Answers are missing", "Copy the job's annotations folder beside the manifest."),
    "one_response": ("One response to the prompt", "A pair takes two: collect or sample another response."),
    "unjudged": ("No two responses judged", "Have two responses to the prompt judged."),
    "empty": ("Judged against nothing", "One of two responses has no text; write it, or leave the prompt out."),
    "same_text": ("Equal responses judged", "Equal responses teach nothing; sample others."),
    "tie": ("Tied", "grade.ties=soft keeps ties with p = 0.5; or collect responses that differ more."),
    "below_gap": ("Ratings too close", "Lower grade.least_gap."),
    "both_bad": ("Both responses bad", "Have the prompt answered again: the better of two bad ones is bad."),
    "gate": ("No response passes the gate", "Lower the gate in grade.gates, or collect better responses."),
    "gate_unjudged": ("Gate not judged", "Have the responses judged by the criterion in grade.gates."),
    "gold": ("A gold item", "Nothing is lost: gold items measure those who judge and are never trained on."),
    "between_sides": (
        "Means nearly what is held out",
        "Nothing is lost for the other side; such prompts cannot be told apart.",
    ),
    "personal": ("Personal data", f"data.personal=redact replaces it and keeps the pairs. Where it is none: {BACK}"),
    BEYOND: ("Beyond the limit", "Raise data.limit, or unset it."),
}
"""Titles and remedies by the codes of rejected.jsonl."""
PROMPTS = (
    "one_response",
    "unjudged",
    "empty",
    "same_text",
    "tie",
    "below_gap",
    "both_bad",
    "gate",
    "gate_unjudged",
)
"""Codes of what people said of a prompt, which is no row."""
ELSE = "Read the examples, correct the rows in the source, and curate again."
LONGEST, MOST_KEYS = 700, 6


@dataclass(frozen=True)
class Example:
    """A row as it stood: where, why it was set aside, and its fields."""

    where: str
    why: str
    fields: Sequence[tuple[str, str]]


@dataclass(frozen=True)
class Reason:
    """Rows set aside for one reason."""

    code: str
    title: str
    remedy: str
    count: str
    unit: str
    share: str
    picture: Markup
    examples: Sequence[Example]


def reasons(files: DataFiles) -> list[Reason]:
    """Every reason, the most frequent first, and last the rows beyond the limit."""
    counts = counts_by_reason(files)
    beyond = whole_number(files.summary, BEYOND)
    made = branch(files.summary, "graded")
    rows = whole_number(made, "pairs") + whole_number(made, "unmade") or whole_number(files.summary, "rows")
    rows = rows or sum(counts.values())
    scale = Scale(0, max([*counts.values(), beyond, 1]))
    every = [*counts.items(), *([(BEYOND, beyond)] if beyond else [])]
    return [reason(code, n, files, scale=scale, rows=rows) for code, n in every]


def reason(code: str, n: int, files: DataFiles, *, scale: Scale, rows: int) -> Reason:
    """One reason as it is printed."""
    title, remedy = REASONS.get(code, (wording.capital(code.replace("_", " ")), ELSE))
    share = wording.percent(n / rows if rows else None)
    unit = "prompt" if code in PROMPTS else "row"
    said = wording.counted(n, unit)
    picture = figures.share_row([("base", n), ("rest", scale.high - n)], label=f"{title}: {said}, {share}")
    found = files.refused.get(code)
    examples = [example(row) for row in found.examples] if found else []
    count, _, unit = said.partition(" ")
    return Reason(fitted(code, 80), fitted(title, 120), remedy, count, unit, share, picture, examples)


def unpaired(files: DataFiles) -> list[tuple[str, str, str]]:
    """Title, count and remedy of the comparisons that gave no pair where others of their prompt did."""
    counts = branch(branch(files.summary, "graded"), "unpaired")
    return [(title_of(code), f"{n:,}", REASONS.get(code, ("", ELSE))[1]) for code, n in by_count(counts)]


def by_count(counts: Tree) -> list[tuple[str, int]]:
    """Codes with their counts, the most frequent first."""
    found = [(str(code), n) for code, n in counts.items() if isinstance(n, int) and n > 0]
    return sorted(found, key=lambda one: (-one[1], one[0]))


def title_of(code: str) -> str:
    """The title of a reason."""
    return fitted(REASONS.get(code, (wording.capital(code.replace("_", " ")), ""))[0], 120)


def example(line: Tree) -> Example:
    """A line of rejected.jsonl as it is printed."""
    row = branch(line, "row")
    fields = [(fitted(str(key), 40), fitted(plain(value), LONGEST)) for key, value in list(row.items())[:MOST_KEYS]]
    return Example(fitted(text(line, "where"), 200), fitted(text(line, "why"), LONGEST), fields)


def disagreement(files: DataFiles) -> str:
    """A sentence where rejected.jsonl does not hold the rows that the summary counts."""
    said, held = counts_by_reason(files), {code: of.count for code, of in files.refused.items()}
    if not files.refused or sum(said.values()) == sum(held.values()):
        return ""
    return (
        f"data/rejected.jsonl holds {sum(held.values()):,} rows, but data/summary.json counts {sum(said.values()):,}; "
        "curate again."
    )
