"""Write docs/advice.md from the rules themselves; `--check` only says whether the page is current."""

from __future__ import annotations

import sys
from pathlib import Path

from druthers.curate.advice import Question, Rule
from druthers.curate.rules import QUESTIONS, SOURCES

PAGE = Path(__file__).parents[1] / "docs" / "advice.md"
HEAD = """# Advice

Written by `scripts/advice_page.py` from `src/druthers/curate/rules.py`.

`druthers advise RUN` says what a curated data set can teach. It reads `data/summary.json`, the pairs, the findings in
`data/quality.json` and, where the run is trained, what it reached; it changes nothing. Each answer names the rule that
fired, the findings and counts it saw with their intervals, and what to do. An answer may be *not known*, with what is
missing.

| option | what it does |
|---|---|
| `--improvement POINTS` | the improvement that should be seen (5 points of accuracy or win rate) |
| `--runs RUN`, again for more | runs of other sizes, for the learning curve; they may differ in `data.limit` alone |
| `--rounds N` | how often data will be collected and a model trained (once) |
| `--prompts OUT.jsonl` | write the prompts to collect next |
| `--most N` | at most so many of them (1,000) |
| `--json` | everything as JSON: `answers` are `Advice` lines |

## How it is decided

A question whose answers exclude one another takes the first rule that fires; of the others all are given. A finding
counts as bad where its own check warns or fails, for which its whole 95 % interval has to lie beyond the limit: a
number that rests on too few rows fires nothing. Rules are plain conditions over findings and counts. They were not
fitted to outcomes of runs, and the thresholds marked *default* are ours. More evidence never turns an answer into *not
known*. An answer whose question wants more than is known lists that as missing: an earlier rule may have had a reason
to fire.

**What an evaluation can show.** `n` prompts show a difference `d` between the shares of better and worse, with 80 %
power at the 5 % level, from `n = (1.96 sqrt(q) + 0.84 sqrt(q - d^2))^2 / d^2` on, `q` being the share that is not tied.
A win rate of 1/2 + g is `d = 2 g`. Two runs on the same pairs are taken to differ as independent ones, which asks for
more than runs of one family need. A prompt counts once, however many rows it has. Label noise e leaves 1 - 2 e of a
difference, so it takes 1 / (1 - 2 e)^2 times as many; e comes from D3.noise, and is taken as 0 where it was not
measured. The noise of a judge is not known and not counted.

**What more pairs would bring** is read off runs of at least three sizes: `accuracy(n) = a - b n^-c`, with b >= 0 and a
at most 1 - e. Intervals come from drawing each run anew within its error (and the spread between runs of one size). As
the curve cannot fall, noise reads as a small gain: the upper limits are to be trusted more than the lower ones. Nothing
is said beyond ten times the largest run. Without such runs the answer is *not known*, with the commands that would
tell.

## Prompts to collect

`--prompts` writes `Prompt` lines (`prompt`, `group`, `reason`), which `druthers sample` reads. No prompt is made up:
first those of `data/uncovered.jsonl` (coverage, by `druthers inspect`), then prompts of the data whose pairs contradict
one another (also where curation set them aside), whose answers were both bad, on which people were torn (p from 0.35 to
0.65) or tied, whose label is in doubt (D6.suspects), whose chosen answer is poor by the rubric (D11.chosen), which the
model ranks wrong by far (D10.stuck), and of groups with less than half of an equal share. Each stands once, with all
its reasons, the most urgent first. *held out* marks a prompt of the held-out side: what is collected for it belongs
there, and `druthers curate` puts it there or refuses it. `druthers sample` reads pairs as well, and asks each prompt of
theirs once: that is how fresh answers to the prompts of `data/train.jsonl` are made.
"""
TAIL_HEAD = """## Papers

What is said of them is what their abstracts say, of 2305.18290 also section 4, and of 1712.00409 and 2405.19534 also
summaries by their authors. The papers were not read in full.

| arXiv | what it found |
|---|---|"""


def section(question: Question) -> list[str]:
    """A question with its rules."""
    how = "the first rule that fires" if question.exclusive else "every rule that fires"
    wants = ", ".join(" or ".join(f"`{name}`" for name in options) for options in question.wants)
    lines = [f"### {question.text}", "", f"Takes {how}. To be known in full it wants:", "", wants + ".", ""]
    lines += ["| rule | fires when | answer | because | source |", "|---|---|---|---|---|"]
    return [*lines, *map(row, question.every), ""]


def row(rule: Rule) -> str:
    """One line of the table."""
    sources = ", ".join(rule.sources) or "—"
    return f"| `{rule.id}` | {rule.fires} | {rule.answer} | {rule.because} | {sources} |"


def page() -> str:
    """The whole page."""
    lines = [HEAD, "## Questions and rules", "", "In braces: what is filled in.", ""]
    for question in QUESTIONS:
        lines += section(question)
    papers = [f"| {name} | {SOURCES[name]} |" for name in sorted(SOURCES)]
    return "\n".join([*lines, TAIL_HEAD, *papers, ""])


def main() -> int:
    """Write or check the page."""
    if "--check" not in sys.argv[1:]:
        PAGE.write_text(page(), encoding="utf-8")
        return 0
    current = PAGE.is_file() and PAGE.read_text(encoding="utf-8") == page()
    print("docs/advice.md is current" if current else "docs/advice.md is old; run `python scripts/advice_page.py`")
    return 0 if current else 1


if __name__ == "__main__":
    sys.exit(main())
