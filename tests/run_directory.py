"""A synthetic run directory, as the stages write it: plausible numbers that agree with one another.

Nothing is trained: answers are composed from the rules they keep, log-ratios drift apart over the steps, and every
aggregate is counted from the lines beside it. For tests of whatever reads only the run directory.
"""

from __future__ import annotations

import hashlib
import json
import math
import random
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from druthers import config
from druthers.records import Exchange, Judgement, Outcome, Pair, Record, assistant, user


@dataclass(frozen=True)
class Rule:
    """What a rule asks, and how often the base and the aligned model keep it."""

    label: str
    base: float
    aligned: float


RULES = {
    "acknowledges": Rule("Acknowledges the problem in the first sentence", 0.38, 0.86),
    "names_subject": Rule("Names the thing the customer asked about", 0.83, 0.93),
    "short": Rule("At most 80 words", 0.61, 0.93),
    "next_step": Rule("Ends with one concrete next step", 0.22, 0.74),
    "no_inventions": Rule("Invents no order numbers or promises", 0.74, 0.88),
    "no_banned": Rule("Uses none of the banned phrases", 0.62, 0.90),
    "no_repeats": Rule("Repeats no sentence", 0.94, 0.92),
}
SUBJECTS = (
    "kettle",
    "parcel",
    "subscription",
    "invoice",
    "headphones",
    "rain jacket",
    "standing desk",
    "gift card",
    "train ticket",
    "coffee grinder",
    "desk lamp",
    "running shoes",
    "photo book",
    "phone case",
    "garden hose",
    "bike helmet",
    "suitcase",
    "toaster",
    "router",
    "office chair",
    "winter coat",
    "blender",
    "water bottle",
    "keyboard",
    "hotel booking",
    "concert ticket",
    "sleeping bag",
    "air fryer",
    "mattress",
    "wallet",
)
PROBLEMS = (
    "My {s} arrived damaged and I need it by the weekend. What can you do?",
    "I was charged twice for the {s}. Please sort this out.",
    "Can I still return the {s}? I bought it five weeks ago and never used it.",
    "The {s} I ordered is not the one in the picture. I am quite annoyed.",
    "Where is my {s}? The tracking page has not changed since Monday.",
    "I would like to change the delivery address for my {s}, is that still possible?",
)
MONTHS = ("January", "March", "April", "June", "August", "September", "November")


def compose(subject: str, kept: Mapping[str, bool], draw: random.Random) -> str:
    """An answer that keeps exactly the given rules."""
    thing = subject if kept["names_subject"] else "item"
    opening = (
        f"I'm sorry about the trouble with your {thing}."
        if kept["acknowledges"]
        else f"Thank you for contacting us about your {thing}."
    )
    middle = [f"I have looked at what we can do about the {thing}, and there are two ways to put this right."]
    if not kept["no_banned"]:
        middle.append("Please be advised that your satisfaction is our top priority.")
    if not kept["no_inventions"]:
        middle.append(
            f"Your order number is #{draw.randint(10000, 99999)} and you will receive a full refund within 24 hours."
        )
    if not kept["short"]:
        middle.append(
            "There are several things you may want to consider before you decide:\n\n"
            "1. **Check the packaging**: Make sure that you have kept the packaging and all papers that came with it.\n"
            "2. **Take photographs**: Pictures from several angles help our team to understand what has happened.\n"
            "3. **Review the policy**: Our policy explains which steps are open to you and how long each takes.\n"
            "It also helps to keep a record of every message, so that nothing is lost if you write again."
        )
    if not kept["no_repeats"]:
        middle.append(middle[0])
    closing = (
        "Reply with a photo of the label and I will start the exchange today."
        if kept["next_step"]
        else "Let us know if you have any other questions."
    )
    return " ".join([opening, *middle, closing])


def draw_rules(model: str, draw: random.Random) -> dict[str, bool]:
    """Which rules an answer of the base or of the aligned model keeps."""
    return {name: draw.random() < (rule.base if model == "base" else rule.aligned) for name, rule in RULES.items()}


def interval(values: Sequence[float], *, share: bool = False) -> dict[str, float | int]:
    """Mean with a normal 95 % interval; a share stays within 0 and 1."""
    mean, n = statistics.fmean(values), len(values)
    half = 1.96 * statistics.pstdev(values) / math.sqrt(n)
    low, high = (max(0.0, mean - half), min(1.0, mean + half)) if share else (mean - half, mean + half)
    return {"value": mean, "low": low, "high": high, "n": n}


def sha(text: str) -> str:
    """A stand-in for the hash of a file."""
    return hashlib.sha256(text.encode()).hexdigest()


def write_json(path: Path, value: object) -> None:
    """Indented JSON, folders made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")


def write_lines(path: Path, lines: Sequence[Record] | Sequence[dict[str, Any]]) -> None:
    """JSONL."""
    path.parent.mkdir(parents=True, exist_ok=True)
    rows = [line.line() if isinstance(line, Record) else line for line in lines]
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")


@dataclass(frozen=True)
class Question:
    """A prompt of the set and what it is about."""

    subject: str
    text: str


def draw_questions(count: int, draw: random.Random) -> list[Question]:
    """Distinct questions, shuffled."""
    every = [Question(s, p.format(s=s) + f" I ordered it in {m}.") for s in SUBJECTS for p in PROBLEMS for m in MONTHS]
    if count > len(every):
        raise ValueError(f"{count} questions asked for, but there are only {len(every)}")
    return draw.sample(every, count)


def draw_pairs(questions: Sequence[Question], draw: random.Random) -> list[Pair]:
    """Two pairs for each question, each with half the weight."""
    return [draw_pair(question, draw) for question in questions for _ in range(2)]


def draw_pair(question: Question, draw: random.Random) -> Pair:
    """Two responses of the base; the one that keeps more rules is chosen, and ties are drawn again."""
    while True:
        kept = sorted((draw_rules("base", draw), draw_rules("base", draw)), key=lambda rules: sum(rules.values()))
        rejected, chosen = (compose(question.subject, rules, draw) for rules in kept)
        if sum(kept[0].values()) < sum(kept[1].values()):
            prompt, sides = user(question.text), (assistant(chosen), assistant(rejected))
            return Pair(prompt=prompt, chosen=sides[0], rejected=sides[1], weight=0.5)


@dataclass(frozen=True)
class Trait:
    """How one pair behaves in training."""

    pair: Pair
    logp_chosen: float
    logp_rejected: float
    pull: float
    drop: float
    wobble: float

    def outcome(self, step: int, steps: int, split: str, beta: float) -> Outcome:
        """What the pair does at a step: both log-ratios fall, the rejected one faster where `pull` is positive."""
        share = 2.2 * (1 - math.exp(-2.2 * step / steps))
        pull = (self.pull + self.wobble * max(0.75 - step / steps, 1.6 * (step / steps - 0.75))) * share
        chosen, rejected = 0.3 * pull - self.drop * share, -0.7 * pull - self.drop * share
        lengths = [max(2, len(m[-1].content.split()) * 4 // 3) for m in (self.pair.chosen, self.pair.rejected)]
        return Outcome(
            pair_id=self.pair.id,
            step=step,
            split="train" if split == "train" else "heldout",
            logp_chosen=self.logp_chosen + chosen,
            logp_rejected=self.logp_rejected + rejected,
            logratio_chosen=chosen,
            logratio_rejected=rejected,
            length_chosen=lengths[0],
            length_rejected=lengths[1],
            loss=math.log1p(math.exp(-beta * (chosen - rejected))),
        )


def draw_traits(pairs: Sequence[Pair], draw: random.Random) -> list[Trait]:
    """One trait for each pair."""
    return [
        Trait(
            p,
            -draw.uniform(60, 110),
            -draw.uniform(60, 125),
            draw.gauss(13, 14),
            abs(draw.gauss(7, 5)),
            draw.gauss(0, 16),
        )
        for p in pairs
    ]


def metrics_line(
    outcomes: Sequence[Outcome], beta: float, *, step: int, split: str, epoch: float, rate: float | None
) -> dict[str, Any]:
    """One line of metrics.jsonl, counted from the outcomes of the step."""
    gaps = [beta * (o.logratio_chosen - o.logratio_rejected) for o in outcomes]
    line = {
        "step": step,
        "split": split,
        "epoch": epoch,
        "loss": statistics.fmean(o.loss for o in outcomes),
        "rewards/chosen": beta * statistics.fmean(o.logratio_chosen for o in outcomes),
        "rewards/rejected": beta * statistics.fmean(o.logratio_rejected for o in outcomes),
        "rewards/margins": statistics.fmean(gaps),
        "rewards/accuracies": statistics.fmean((gap > 0) + 0.5 * (gap == 0) for gap in gaps),
        "logps/chosen": statistics.fmean(o.logp_chosen for o in outcomes),
        "logps/rejected": statistics.fmean(o.logp_rejected for o in outcomes),
        "pairs": len(outcomes),
        "tokens": sum(o.length_chosen + o.length_rejected for o in outcomes),
        "seconds": 4.1,
    }
    return line if rate is None else {**line, "learning_rate": rate, "grad_norm": 3.5 + math.sin(step)}


def write_training(
    folder: Path, train: Sequence[Pair], heldout: Sequence[Pair], *, steps: int, beta: float, draw: random.Random
) -> list[Outcome]:
    """metrics.jsonl, outcomes.parquet and checkpoints; returns the held-out outcomes at the best step."""
    train_traits, held_traits = draw_traits(train, draw), draw_traits(heldout, draw)
    lines: list[dict[str, Any]] = []
    outcomes: list[Outcome] = []
    evaluations = sorted({round(steps * quarter / 4) for quarter in range(5)})
    for step in range(steps + 1):
        if step:
            batch = [
                t.outcome(step, steps, "train", beta) for t in draw.sample(train_traits, min(16, len(train_traits)))
            ]
            outcomes += batch
            lines.append(
                metrics_line(
                    batch,
                    beta,
                    step=step,
                    split="train",
                    epoch=step / steps,
                    rate=2e-5 * math.sin(math.pi * step / steps),
                )
            )
        if step in evaluations:
            held = [t.outcome(step, steps, "heldout", beta) for t in held_traits]
            outcomes += held
            lines.append(metrics_line(held, beta, step=step, split="heldout", epoch=step / steps, rate=None))
    write_lines(folder / "metrics.jsonl", lines)
    pq.write_table(pa.Table.from_pylist([o.model_dump() for o in outcomes]), folder / "outcomes.parquet")
    held_lines = [line for line in lines if line["split"] == "heldout"]
    best = min(held_lines, key=lambda line: line["loss"])
    (folder / f"checkpoints/step-{best['step']:06}").mkdir(parents=True)
    write_json(folder / "checkpoints/best.json", {"step": best["step"], "metric": "loss", "value": best["loss"]})
    return [o for o in outcomes if o.split == "heldout" and o.step == best["step"]]


def pair_report(outcomes: Sequence[Outcome], beta: float) -> dict[str, Any]:
    """evaluation/pairs.json."""
    right = [o.logp_chosen > o.logp_rejected for o in outcomes]
    was = [o.logp_chosen - o.logratio_chosen > o.logp_rejected - o.logratio_rejected for o in outcomes]
    gaps = [beta * (o.logratio_chosen - o.logratio_rejected) for o in outcomes]
    fell = interval([float(o.logratio_chosen < 0) for o in outcomes], share=True)
    cells = {"kept": (True, True), "gained": (False, True), "lost": (True, False), "never": (False, False)}
    return {
        "step": outcomes[0].step,
        "accuracy": interval([float(gap > 0) for gap in gaps], share=True),
        "accuracy_base": interval([float(w) for w in was], share=True),
        "margin": interval(gaps),
        "chosen_fell": fell,
        "chosen_change_per_token": interval([o.logratio_chosen / o.length_chosen for o in outcomes]),
        "flips_p": 0.0004,
        "length_correlation": statistics.correlation(
            gaps, [float(o.length_chosen - o.length_rejected) for o in outcomes]
        ),
        "flips": {name: sum((a, b) == cell for a, b in zip(was, right, strict=True)) for name, cell in cells.items()},
        "n": len(outcomes),
        "text": f"The log-probability of the chosen response fell for {100 * fell['value']:.0f} % of held-out pairs. "
        "This is normal for DPO: the loss rewards the gap between the two responses, not the height of either, "
        "and the rejected ones fell further.",
    }


def judge_answers(
    questions: Sequence[Question], *, temperature: float, draw: random.Random
) -> tuple[list[Exchange], list[Judgement]]:
    """One answer of each model to each question, and what the rubric says of them."""
    exchanges: list[Exchange] = []
    judgements: list[Judgement] = []
    for i, question in enumerate(questions):
        kept = [draw_rules(model, draw) for model in ("base", "aligned")]
        texts = [compose(question.subject, rules, draw) for rules in kept]
        for model, text in zip(("base", "aligned"), texts, strict=True):
            tokens = len(text.split()) * 4 // 3
            exchanges.append(
                Exchange(
                    prompt=user(question.text),
                    response=text,
                    model=model,
                    seed=i,
                    temperature=temperature,
                    tokens=tokens,
                    finished=tokens < 190,
                )
            )
        scores = [sum(rules.values()) / len(RULES) for rules in kept]
        judgements.append(
            Judgement(
                prompt_id=exchanges[-1].prompt_id,
                judge="brand-voice",
                a="base",
                b="aligned",
                outcome="tie" if scores[0] == scores[1] else "a" if scores[0] > scores[1] else "b",
                score_a=scores[0],
                score_b=scores[1],
                rules_a={name: float(value) for name, value in kept[0].items()},
                rules_b={name: float(value) for name, value in kept[1].items()},
            )
        )
    return exchanges, judgements


UNDEFINED = {"value": None, "low": None, "high": None, "n": 0, "undefined": "no rubric judged the answers"}
UNJUDGED = {"win_rate": UNDEFINED, "wins": 0, "ties": 0, "losses": 0, "detectable_points": None}


def tally(judgements: Sequence[Judgement]) -> dict[str, Any]:
    """Win rate of the aligned model, ties half."""
    outcomes = [j.outcome for j in judgements]
    wins, ties, losses = outcomes.count("b"), outcomes.count("tie"), outcomes.count("a")
    worth = [{"b": 1.0, "tie": 0.5, "a": 0.0}[outcome] for outcome in outcomes]
    detectable = 280 * math.sqrt((1 - ties / len(outcomes)) / 4 / len(outcomes))
    return {
        "win_rate": interval(worth, share=True),
        "wins": wins,
        "ties": ties,
        "losses": losses,
        "detectable_points": detectable,
    }


def rule_changes(judgements: Sequence[Judgement]) -> dict[str, Any]:
    """Share of answers that keep each rule, base and aligned, with the interval of the change."""
    return {
        name: {
            "label": rule.label,
            "base": statistics.fmean(j.rules_a[name] for j in judgements),
            "aligned": statistics.fmean(j.rules_b[name] for j in judgements),
            "change": interval([j.rules_b[name] - j.rules_a[name] for j in judgements]),
        }
        for name, rule in RULES.items()
    }


def write_answers(
    folder: Path, questions: Sequence[Question], draw: random.Random, *, rubric: str | None
) -> dict[str, Any]:
    """The files of generated answers and, with a rubric, their judgements; returns evaluation/answers.json."""
    report: dict[str, Any] = {"rubric": rubric, "prompts": len(questions)}
    for name, temperature in (("greedy", 0.0), ("sampled", 0.7)):
        exchanges, judgements = judge_answers(questions, temperature=temperature, draw=draw)
        write_lines(folder / f"evaluation/answers-{name}.jsonl", exchanges)
        report[name] = tally(judgements) if rubric else UNJUDGED
        if rubric:
            write_lines(folder / f"evaluation/judgements-{name}.jsonl", judgements)
    of = {model: [e for e in exchanges if e.model == model] for model in ("base", "aligned")}
    length = {model: statistics.fmean(e.tokens for e in answers) for model, answers in of.items()}
    report |= {
        "length": {**length, "ratio": length["aligned"] / length["base"]},
        "repetition": {"base": 0.0312, "aligned": 0.0287},
        "unfinished": {model: statistics.fmean(not e.finished for e in answers) for model, answers in of.items()},
        "perplexity": {"base": 4.82, "aligned": 5.31, "ratio": 5.31 / 4.82},
        "rules": rule_changes(judgements) if rubric else {},
    }
    write_json(folder / "evaluation/answers.json", report)
    return report


def write_data(folder: Path, train: Sequence[Pair], heldout: Sequence[Pair]) -> None:
    """data/: the pairs, the rows left out, and their summary."""
    write_lines(folder / "data/train.jsonl", train)
    write_lines(folder / "data/heldout.jsonl", heldout)
    bad = {"prompt": "Where is my parcel?", "chosen": "On its way.", "rejected": "On its way."}
    write_lines(
        folder / "data/rejected.jsonl",
        [
            {"where": f"pairs.jsonl:{line}", "reason": "same", "why": "chosen equals rejected", "row": bad}
            for line in (71, 402, 833)
        ],
    )
    words = [
        [len(side[-1].content.split()) * 4 / 3 for side in (p.prompt, p.chosen, p.rejected)] for p in [*train, *heldout]
    ]
    prompt, chosen, rejected = (list(column) for column in zip(*words, strict=True))
    kept = len(train) + len(heldout)
    write_json(
        folder / "data/summary.json",
        {
            "source": "brand-voice",
            "format": "druthers",
            "rows": kept + 3,
            "kept": kept,
            "train": len(train),
            "heldout": len(heldout),
            "rejected": {"same": 3},
            "prompts": {"train": len({p.prompt_id for p in train}), "heldout": len({p.prompt_id for p in heldout})},
            "tokens": {
                "prompt_mean": statistics.fmean(prompt),
                "chosen_mean": statistics.fmean(chosen),
                "rejected_mean": statistics.fmean(rejected),
                "prompt_max": max(prompt),
                "chosen_max": max(chosen),
                "rejected_max": max(rejected),
            },
            "cut": {"chosen": 0, "rejected": 2},
            "longer_chosen": statistics.fmean(c > r for c, r in zip(chosen, rejected, strict=True)),
            "margin": {"mean": statistics.fmean(p.margin for p in train)},
        },
    )


def write_identity(folder: Path, *, rubric: str | None) -> None:
    """config.json, environment.json, inputs.json and code.diff."""
    own = {"run": "runs/brand-voice", "evaluate.rubric": rubric, "train.learning_rate": 2e-5}
    settings = config.load(extra=own)
    (folder / "config.json").write_text(config.to_json(settings), encoding="utf-8")
    (folder / "code.diff").write_text("", encoding="utf-8")
    write_json(
        folder / "environment.json",
        {
            "python": "3.11.2",
            "torch": "2.13.0+cpu",
            "transformers": "5.23.0",
            "druthers": "0.1.0",
            "platform": "Linux-6.1-x86_64",
            "cpu": "an x86 processor with AMX",
            "threads": 2,
            "device": "cpu",
            "precision": "bfloat16",
            "attention": "druthers",
            "layout": "shared (within 4e-06 nat a token of plain rows)",
            "commit": sha("commit")[:40],
        },
    )
    write_json(
        folder / "inputs.json",
        {
            "pairs": {"path": "brand-voice", "sha256": sha("pairs")},
            "heldout": None,
            "model": {"name": "SmolLM2-135M-Instruct", "sha256": sha("model"), "parameters": 134_515_008},
            "chat_template_sha256": sha("template"),
        },
    )


def write_run(
    folder: Path, *, prompts: int = 160, steps: int = 60, seed: int = 0, rubric: str | None = "brand-voice"
) -> Path:
    """A whole run directory without report.html: `prompts` questions held out, three times as many trained on.

    Without a rubric nothing is judged, as in a run whose `evaluate.rubric` is unset.
    """
    draw, beta = random.Random(seed), 0.1
    folder.mkdir(parents=True, exist_ok=True)
    questions = draw_questions(4 * prompts, draw)
    heldout, train = draw_pairs(questions[:prompts], draw), draw_pairs(questions[prompts:], draw)
    write_identity(folder, rubric=rubric)
    write_data(folder, train, heldout)
    at_best = write_training(folder, train, heldout, steps=steps, beta=beta, draw=draw)
    pairs = pair_report(at_best, beta)
    write_json(folder / "evaluation/pairs.json", pairs)
    answers = write_answers(folder, questions[:prompts], draw, rubric=rubric)
    kl = write_kl(folder)
    counts = {"train": len(train), "heldout": len(heldout), "rejected": 3}
    write_json(folder / "summary.json", headline(counts, steps=steps, pairs=pairs, answers=answers, kl=kl))
    return folder


def write_kl(folder: Path) -> dict[str, Any]:
    """evaluation/kl.json; returned too."""
    value = {
        scale: {k: {"value": v * f, "low": v * f * 0.82, "high": v * f * 1.18, "n": 64} for k, f in FACTORS}
        for scale, v in (("per_sequence", 9.84), ("per_token", 0.131))
    }
    text = "On its own samples the aligned model is 9.8 nats a sequence away from the base."
    whole = {**value, "samples": 64, "prompts": 64, "temperature": 1.0, "text": text}
    write_json(folder / "evaluation/kl.json", whole)
    return whole


FACTORS = (("k1", 1.0), ("k3", 1.03))


def sentence(won: Mapping[str, Any], *, prompts: int) -> str:
    """The verdict in words."""
    if won["value"] is None:
        return "The answers were not judged, because no rubric is set; name one with evaluate.rubric."
    value, low, high = (f"{100 * won[key]:.1f}" for key in ("value", "low", "high"))
    return (
        f"Better: the aligned model's sampled answers win {value} % of {prompts} held-out prompts against the base "
        f"model's (95 % interval {low} % to {high} %, ties half), judged by brand-voice."
    )


def headline(
    counts: Mapping[str, int],
    *,
    steps: int,
    pairs: Mapping[str, Any],
    answers: Mapping[str, Any],
    kl: Mapping[str, Any],
) -> dict[str, Any]:
    """summary.json."""
    won = answers["sampled"]["win_rate"]
    return {
        "verdict": "better" if answers["rubric"] else "not judged",
        "text": sentence(won, prompts=answers["prompts"]),
        "pairs": dict(counts),
        "train": {
            "steps": steps,
            "best_step": pairs["step"],
            "seconds": 251.0,
            "pairs_per_second": 3.9,
            "tokens_per_second": 812.0,
            "peak_memory_gib": 3.42,
            "first_loss": math.log(2),
        },
        "heldout": {key: pairs[key] for key in ("accuracy", "margin", "chosen_fell")},
        "win_rate": won,
        "win_rate_greedy": answers["greedy"]["win_rate"],
        "length_ratio": answers["length"]["ratio"],
        "repetition_change": answers["repetition"]["aligned"] - answers["repetition"]["base"],
        "perplexity_ratio": answers["perplexity"]["ratio"],
        "kl_per_sequence": kl["per_sequence"]["k3"],
        "seconds": {"curate": 3.1, "train": 251.0, "evaluate": 142.0, "report": 0.6},
    }
