"""The top of the page: the verdict, the number that decided it, and what was trained on what."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup

from druthers.report import wording
from druthers.report.figures import EMPTY
from druthers.report.parts import NINETY_FIVE, Fact, Row, listed, share_picture, with_unit
from druthers.report.reading import RunFiles, best_step, estimate, number, text
from druthers.report.wording import NONE
from druthers.stats import Estimate, Interval

VERDICTS = {
    "better": ("Better", "The aligned model is better than its base."),
    "no difference shown": ("No difference shown", "This run does not show a difference from the base."),
    "worse": ("Worse", "The aligned model is worse than its base."),
    "not judged": ("Not judged", "No judge compared the two models in this run."),
}
DECIDERS = (
    ("win rate over the base on sampled answers, ties half", "no difference"),
    ("of held-out pairs ranked in the preferred order", "chance"),
)
STAGES = ("curate", "train", "evaluate")


@dataclass(frozen=True)
class Headline:
    """The verdict, its class in style.css, its sentence, the deciding number, and the checks outside their limits."""

    verdict: str
    style: str
    sentence: str
    number: str
    of: str
    picture: Markup
    warnings: Sequence[str]


def headline(files: RunFiles, checked: Sequence[Row]) -> Headline:
    """Verdict and sentence of summary.json with the number that decided: the win rate, else held-out accuracy."""
    summary = files.tree("summary.json")
    said = text(summary, "verdict")
    verdict = said if said in VERDICTS else "not judged"
    name, plain = VERDICTS[verdict]
    sentence = trimmed(text(summary, "text"), name) or (
        plain if said in VERDICTS else f"{plain} {why_no_verdict(files)}"
    )
    return Headline(
        name,
        verdict.replace(" ", "-"),
        sentence,
        *decider(files),
        [row.name for row in checked if row.mark == "warn"],
    )


def trimmed(sentence: str, name: str) -> str:
    """The sentence without the verdict it begins with, which the page says in large letters already.

    >>> trimmed("Better: it wins.", "Better"), trimmed("It wins.", "Better")
    ('It wins.', 'It wins.')
    """
    return wording.capital(sentence.removeprefix(f"{name}: "))


def decider(files: RunFiles) -> tuple[str, str, Markup]:
    """The deciding number, what it is, and its picture; empty where nothing was measured."""
    for found, (of, half) in zip((win_rate(files, "sampled"), held_out_accuracy(files)), DECIDERS, strict=True):
        if isinstance(found, Interval):
            value, of = wording.percent(found.value), f"{of}; {NINETY_FIVE} {wording.percent_range(found)}"
            label = f"{value} {of}; 50 per cent is {half}"
            return value, of, share_picture(found, style="aligned", label=label)
    return "", "", EMPTY


def why_no_verdict(files: RunFiles) -> str:
    """Why summary.json carries no verdict."""
    missing = (files.why_missing(file) for file in ("summary.json", "evaluation/answers.json"))
    return next(filter(None, missing), "The run's summary.json carries no verdict.")


def win_rate(files: RunFiles, decoding: str) -> Estimate:
    """Win rate from evaluation/answers.json, or from summary.json where that file is absent."""
    answers = files.tree("evaluation/answers.json")
    if answers:
        return estimate(answers, f"{decoding}.win_rate")
    return estimate(files.tree("summary.json"), "win_rate" if decoding == "sampled" else f"win_rate_{decoding}")


def held_out_accuracy(files: RunFiles) -> Estimate:
    """Implicit-reward accuracy from evaluation/pairs.json, or from summary.json where that file is absent."""
    pairs = files.tree("evaluation/pairs.json")
    return estimate(pairs, "accuracy") if pairs else estimate(files.tree("summary.json"), "heldout.accuracy")


def facts(files: RunFiles) -> list[Fact]:
    """What was trained on what, how long it took and what it needed: the strip under the verdict."""
    summary, inputs, config = files.tree("summary.json"), files.tree("inputs.json"), files.config
    online, adapter, kept = text(summary, "train.method"), text(config, "model.adapter"), best_step(files)
    beta = number(summary, "train.beta") if online else number(config, "loss.beta")
    source = text(files.tree("data/summary.json"), "source") or text(config, "data.pairs")
    model = text(inputs, "model.name") or text(config, "model.path")
    size = with_unit(wording.amount, number(inputs, "model.parameters"), "parameters")
    learned = pairs_learned(files)
    held = with_unit(wording.count, pair_count(files, "heldout"), "held out")
    weights = {"none": "every weight", "lora": "LoRA adapter", "qlora": "QLoRA adapter"}.get(adapter, adapter)
    trained = number(summary, "train.seconds")
    memory = with_unit(lambda v: wording.decimal(v, 1), number(summary, "train.peak_memory_gib"), "GiB")
    return [
        Fact("Model", wording.last_part(model) or NONE, size),
        Fact("Preferences", wording.last_part(source) or NONE, listed(learned, held)),
        Fact(
            "Method",
            online.upper() if online else f"DPO, {text(config, 'loss.name') or 'unknown'} loss",
            listed("" if beta is None else f"β {beta:g}", weights),
        ),
        Fact(
            "Training",
            with_unit(wording.count, number(summary, "train.steps"), "steps") or NONE,
            "" if kept is None else f"step {wording.count(kept)} kept",
        ),
        Fact(
            "Time",
            wording.duration(total_seconds(files)),
            "" if trained is None else f"training {wording.duration(trained)}",
        ),
        Fact("Peak memory", memory or NONE, text(files.tree("environment.json"), "precision")),
    ]


def pairs_learned(files: RunFiles) -> str:
    """How many pairs the steps saw, of how many where it was not all of them."""
    answers = number(files.tree("summary.json"), "train.answers")
    if answers is not None:
        return f"{wording.count(answers)} sampled answers learned from"
    there, seen = pair_count(files, "train"), number(files.tree("summary.json"), "train.pairs")
    if seen is None or there is None or seen >= there:
        return with_unit(wording.count, there, "pairs to learn from")
    return f"{wording.count(seen)} of {wording.count(there)} pairs learned from"


def pair_count(files: RunFiles, part: str) -> float | None:
    """How many pairs were trained on or held out."""
    found = number(files.tree("data/summary.json"), part)
    return number(files.tree("summary.json"), f"pairs.{part}") if found is None else found


def total_seconds(files: RunFiles) -> float | None:
    """The time of all stages; of training alone, or None, where the stages are not timed."""
    known = [number(files.tree("summary.json"), f"seconds.{stage}") for stage in STAGES]
    timed = [seconds for seconds in known if seconds is not None]
    return sum(timed) if timed else number(files.tree("summary.json"), "train.seconds")
