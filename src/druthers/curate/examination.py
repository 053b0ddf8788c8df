"""What takes embeddings or the model to know of curated pairs: noise, coverage, displacement, learnability, language.

`druthers curate` measures what numbers alone tell; this is the rest, on a seeded sample, merged into `quality.json`.
The texts of at most `MOST` pairs are looked at, and a tenth of them is read by the model, before any training: the
reference, whatever the run has trained since. Each finding says where it saw a sample only.

Letters: N sampled pairs, B pairs that the model reads, C pair axis (0 chosen, 1 rejected), D width of a vector,
F features.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from druthers import embeddings, storage
from druthers.config import Settings
from druthers.curate import language as languages
from druthers.curate.clusters import Floats, centres, names_of, topic_of
from druthers.curate.facts import seen
from druthers.curate.quality import chosen as quality_of_chosen
from druthers.curate.quality import clusters, coverage, displacement, hygiene, learn, noise, onpolicy, shortcut
from druthers.embeddings import Encoder
from druthers.findings import finding, worst
from druthers.generation import transformers_generator
from druthers.judges import Rubric
from druthers.models import Loaded
from druthers.objectives import reporting_beta
from druthers.records import Finding, InputError, Pair, Prompt, Rows, asked, text_of
from druthers.stats import Undefined
from druthers.tokens import tokenize

MOST = 1500
"""Pairs whose texts are looked at."""
SHARE_READ = 10
"""One in so many of them is read by the model, which takes far longer."""
OWN_ANSWERS, OWN_TOKENS = 24, 48
"""Answers that the model gives itself, and their tokens: what its own voice sounds like to it."""
ANSWERS_AT_ONCE = 16
POOR = 0.5
"""Share of a rubric's weight under which a chosen answer is poor."""
LEAST_TOPICS, MOST_TOPICS = 2, 20

IDS = (
    *("D1.semantic", "D6.noise", "D6.suspects", "D8.coverage", "D8.shift", "D8.diversity", "D9.ches", "D9.edit"),
    *("D10.stuck", "D10.ranked", "D10.turned", "D11.chosen"),
    *("D12.logprob", "D12.gap", "D12.onpolicy", "D12.own", "D13.language"),
)
"""The findings that are made here; those of the same ids in `quality.json` are replaced."""
FIGURES = ("topics_train", "coverage_gaps")
MARK = "examined"
"""The key of `quality.json` that says what was looked at with what."""
QUALITY, UNCOVERED, FINDINGS = "quality.json", "uncovered.jsonl", "findings"
MISSING = (
    f"{embeddings.WANTED}, name another encoder with --encoder FOLDER, "
    "or compare by wording alone with --encoder lexical"
)

Row = dict[str, Any]
Bar = Callable[[int, int], None]
Bars = Callable[[str], Bar]


@dataclass(frozen=True)
class Sample:
    """Some pairs of a file in its order, the number of each one's line, and how many pairs the file holds."""

    file: str
    pairs: Sequence[Pair]
    lines: Sequence[int]
    total: int

    def __len__(self) -> int:
        return len(self.pairs)

    @property
    def prompts(self) -> list[str]:
        """The ids of the prompts."""
        return [pair.prompt_id for pair in self.pairs]

    def part(self, places: Sequence[int]) -> Sample:
        """Some of the pairs."""
        return Sample(self.file, [self.pairs[i] for i in places], [self.lines[i] for i in places], self.total)

    def about(self, places: Iterable[int], why: Callable[[int], str]) -> list[Row]:
        """The rows that a finding is about."""
        return [{"pair_id": self.pairs[i].id, "where": f"{self.file}:{self.lines[i]}", "why": why(i)} for i in places]


@dataclass
class Examined:
    """Findings, by the id of each the rows it is about, figures, and prompts to collect answers for."""

    findings: list[Finding] = field(default_factory=list)
    rows: dict[str, list[Row]] = field(default_factory=dict)
    figures: list[dict[str, Any]] = field(default_factory=list)
    wanted: list[Prompt] = field(default_factory=list)
    made_with: dict[str, Any] = field(default_factory=dict)

    def place(self, name: str, rows: list[Row]) -> Rows | None:
        """Keep the rows of a finding; where they will stand, None where there is none."""
        if not rows:
            return None
        self.rows[name] = rows
        return Rows(file=f"{FINDINGS}/{name}.jsonl", count=len(rows))

    def add(self, findings: Iterable[Finding], *, note: str) -> None:
        """Keep findings, each with a note behind its text."""
        self.findings += [one.model_copy(update={"text": f"{one.text}{note}"}) for one in findings]


def examine(
    data: Path,
    settings: Settings,
    *,
    loaded: Loaded,
    encoder: str = "default",
    prompts: str | None = None,
    rubric: Rubric | None = None,
    outcomes: tuple[Path, int] | None = None,
    most: int = MOST,
    bars: Bars,
) -> Examined:
    """Everything about the pairs in the folder `data` of a run; nothing is written.

    `loaded` is the model before training, `prompts` a file of `Prompt` lines from production, `outcomes` those of a
    trained run with the step of its checkpoint. The same files and seed give the same result on one machine. Raises
    InputError for a file that cannot be read, an encoder that is not there and a prompt file without prompts.
    """
    seed = settings.seed
    production = None if prompts is None else asked_in_production(prompts, most=most, seed=seed)
    sample = drawn(data / "train.jsonl", most=most, seed=seed)
    reader = encoder_named(encoder, sample, device=settings.model.device)
    found = Examined()
    examine_texts(found, sample, production, reader, seed=seed, bars=bars)
    note = sampled(len(sample), sample.total)
    found.add([rated(found, sample, rubric)], note=note)
    found.add([onpolicy.own_share([pair.source for pair in sample.pairs], models=[loaded.name])], note=note)
    found.add([spoken(found, sample)], note=note)
    by_model = sample.part(displacement.sample(len(sample), seed=seed, most=max(1, most // SHARE_READ)))
    examine_by_model(found, by_model, settings, loaded=loaded, bars=bars)
    if outcomes is not None:
        held = drawn(data / "heldout.jsonl", most=most, seed=seed)
        found.add([turned(*outcomes, held)], note=sampled(len(held), held.total, kind="held-out pairs"))
    found.findings.sort(key=lambda one: IDS.index(one.id))
    found.made_with = {
        "pairs": len(sample),
        "of": sample.total,
        "by_model": len(by_model),
        "seed": seed,
        "encoder": {"name": reader.name, "sha256": reader.sha},
        "model": {"name": loaded.name, "sha256": loaded.sha},
        "train_sha256": storage.sha256(data / "train.jsonl"),
        "prompts": None if prompts is None else storage.shown(prompts),
    }
    return found


# ---------------------------------------------------------------- what is looked at


def drawn(path: Path, *, most: int, seed: int) -> Sample:
    """A seeded sample of the pairs of a file, which is read as a stream: only the lines that are drawn are parsed."""
    with path.open("rb") as file:
        total = sum(1 for line in file if line.strip())
    wanted = set(coverage.drawn(total, most, seed=seed).tolist())
    name = f"{path.parent.name}/{path.name}"
    pairs: list[Pair] = []
    lines: list[int] = []
    met = 0
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            if line.strip():
                if met in wanted:
                    pairs += storage.read_lines(storage.Lines(name, number, line), Pair)
                    lines.append(number)
                met += 1
    if not pairs:
        raise InputError(f"{path}: is empty; curate pairs first")
    return Sample(name, pairs, lines, total)


@dataclass(frozen=True)
class Production:
    """Some of the prompts that users asked, the file's name, and how many it holds."""

    name: str
    prompts: Sequence[Prompt]
    total: int


def asked_in_production(path: str, *, most: int, seed: int) -> Production:
    """A seeded sample of a file of prompts; every line is checked. Raises InputError for an empty or faulty file."""
    total = storage.count(path)
    wanted = set(coverage.drawn(total, most, seed=seed).tolist())
    prompts = [prompt for i, prompt in enumerate(storage.read(path, Prompt)) if i in wanted]
    return Production(storage.shown(path), prompts, total)


def encoder_named(name: str, sample: Sample, *, device: str) -> Encoder:
    """The encoder, which says what to install where it is not there; one without weights learns from the sample."""
    if name == "default" and embeddings.installed() is None:
        raise InputError(MISSING)
    corpus = (text for pair in sample.pairs for text in (asked(pair.prompt), text_of(pair.chosen)))
    return embeddings.load(name, corpus=corpus, device=device)


def sampled(n: int, total: int, *, kind: str = "training pairs") -> str:
    """What a finding says behind its text where it saw a sample only.

    >>> sampled(20, 20), sampled(20, 4000)
    ('', ' Looked at: 20 of 4,000 training pairs, drawn at random.')
    """
    return f" Looked at: {n:,} of {total:,} {kind}, drawn at random." if n < total else ""


# ---------------------------------------------------------------- by their texts


def examine_texts(
    found: Examined, sample: Sample, production: Production | None, encoder: Encoder, *, seed: int, bars: Bars
) -> None:
    """D1.semantic, D6, D8 and the topics, from embeddings; and D9.edit, from the texts as they are."""
    embed = partial(embeddings.embed, encoder=encoder, cache=storage.cache_folder("embeddings"))
    first: dict[str, int] = {}
    for i, pair in enumerate(sample.pairs):
        first.setdefault(asked(pair.prompt), i)
    texts, place = list(first), list(first.values())
    prompt_ND = embed(texts, progress=bars("prompts embedded"))
    sides = [
        [text_of(side) for side in one] for one in zip(*((p.chosen, p.rejected) for p in sample.pairs), strict=True)
    ]
    both = embed([*sides[0], *sides[1]], progress=bars("answers embedded"))
    note = sampled(len(sample), sample.total)
    if not encoder.learned:
        note = f" Texts were compared by wording alone ({encoder.name}).{note}"
    found.add(noisy(found, sample, sides, both[: len(sample)] - both[len(sample) :], seed=seed), note=note)
    found.add([repeated(found, sample, place, prompt_ND, seed=seed)], note=note)
    found.add([coverage.diversity(prompt_ND, seed=seed)], note=note)
    found.figures += topics(texts, prompt_ND, seed=seed)
    found.add(covered(found, texts, prompt_ND, production, embed=embed, seed=seed), note=note)
    found.add([edited(found, sample, sides)], note=sampled(len(sample), sample.total))


def noisy(
    found: Examined, sample: Sample, sides: Sequence[Sequence[str]], apart_ND: Floats, *, seed: int
) -> list[Finding]:
    """D6: what a model of surface and meaning, learned on the other prompts, says of each label."""
    seen_N2F = seen(sides).astype(np.float64)
    surface_NF, _ = shortcut.features(seen_N2F[:, 0], seen_N2F[:, 1])
    feature_NF = np.concatenate([of_one_size(surface_NF), of_one_size(apart_ND.astype(np.float64))], axis=1)
    told = noise.noise(feature_NF, np.array(sample.prompts), seed=seed)
    suspects = sample.about(
        told.suspects.tolist(), lambda i: f"the chance that chosen is better is put at {told.p_N[i]:.2f}"
    )
    return noise.findings(told, rows=found.place("D6.suspects", suspects))


def of_one_size(feature_NF: NDArray[np.float64]) -> NDArray[np.float64]:
    """Features scaled together, so that the rows have length 1 on average: neither lot drowns the other."""
    size = math.sqrt(float((feature_NF * feature_NF).sum(1).mean())) if len(feature_NF) else 0.0
    return feature_NF / size if size else feature_NF


def repeated(found: Examined, sample: Sample, place: Sequence[int], prompt_ND: Floats, *, seed: int) -> Finding:
    """D1.semantic: prompts that mean the same; `place` is the first pair of each."""
    one, same = coverage.repetition(prompt_ND, seed=seed)
    rows = [
        {"pair_ids": [sample.pairs[place[i]].id for i in (pair.first, pair.second)], "why": f"cosine {pair.cosine:.3f}"}
        for pair in same
    ]
    return one.model_copy(update={"unit": "share", "rows": found.place("D1.semantic", rows)})


def topics(texts: Sequence[str], prompt_ND: Floats, *, seed: int) -> Iterator[dict[str, Any]]:
    """What the training prompts are about, the largest topics first; nothing where there are too few prompts."""
    k = min(MOST_TOPICS, len(texts) // coverage.PER_TOPIC)
    if k < LEAST_TOPICS:
        return
    centre_KD = centres(prompt_ND, k=k, seed=seed)
    topic_N = topic_of(prompt_ND, centre_KD)
    names, count_K = names_of(texts, topic_N, k=len(centre_KD)), np.bincount(topic_N, minlength=len(centre_KD))
    order = np.argsort(-count_K, kind="stable").tolist()
    yield bars_of("topics_train", "Topics of the training prompts", [(names[i], int(count_K[i])) for i in order])


def bars_of(name: str, title: str, values: Sequence[tuple[str, int]]) -> dict[str, Any]:
    """A figure of bars, in prompts."""
    labels, counts = [label for label, _ in values], [count for _, count in values]
    return {"name": name, "kind": "bars", "title": title, "unit": "prompts", "labels": labels, "values": counts}


def covered(
    found: Examined,
    texts: Sequence[str],
    prompt_ND: Floats,
    production: Production | None,
    *,
    embed: Callable[[Sequence[str]], Floats],
    seed: int,
) -> list[Finding]:
    """D8.coverage and D8.shift against production's prompts, and the prompts to collect; undefined without them."""
    if production is None:
        none = Undefined("no prompts of production were given (--prompts FILE)")
        text = "Nothing was compared: held-out prompts come from the same source, so they do not stand for production."
        return [finding("D8.coverage", none, text, action="Give a file of prompts that users asked (--prompts FILE).")]
    words = [asked(prompt.prompt) for prompt in production.prompts]
    told = coverage.cover(prompt_ND, embed(words), train=texts, asked=production.prompts, texts=words, seed=seed)
    found.wanted = [
        prompt.model_copy(update={"reason": f"not covered: {gap.topic}"})
        for gap in told.gaps
        for prompt in gap.examples
    ]
    rows: list[Row] = [{"why": one.reason, **one.line()} for one in found.wanted]
    whole, *rest = told.findings
    text = f"{whole.text} Compared with {production.name}{sampled(len(words), production.total, kind='prompts in it')}"
    text = text if text.endswith(".") else f"{text}."
    if told.gaps:
        gaps = [(gap.topic, gap.uncovered) for gap in told.gaps[:MOST_TOPICS]]
        found.figures.append(bars_of("coverage_gaps", "Prompts of production that are not covered, by topic", gaps))
    return [whole.model_copy(update={"text": text, "rows": found.place("D8.coverage", rows)}), *rest]


def edited(found: Examined, sample: Sample, sides: Sequence[Sequence[str]]) -> Finding:
    """D9.edit: pairs whose sides are nearly the same text."""
    least = displacement.ALIKE
    similar_N = [displacement.edit_similarity(*both, least=least) for both in zip(*sides, strict=True)]
    alike = sorted((i for i, similar in enumerate(similar_N) if similar > least), key=lambda i: -similar_N[i])
    rows = sample.about(alike, lambda i: f"edit similarity {similar_N[i]:.3f}")
    return displacement.nearly_same(similar_N, rows=found.place("D9.edit", rows))


def rated(found: Examined, sample: Sample, rubric: Rubric | None) -> Finding:
    """D11.chosen: chosen answers that the run's rubric rates poor, or that break a rule which has no exception."""
    if rubric is None:
        none = Undefined("the run has no rubric (evaluate.rubric); what the source rates itself is D11.rated")
        text = (
            "Whether the chosen answers are good was not measured: a margin says how much better one is, not how good."
        )
        return finding("D11.chosen", none, text, unit="share")
    rating_N = []
    for pair in sample.pairs:
        score = rubric.score(pair.prompt, text_of(pair.chosen))
        rating_N.append(0.0 if any(not score.rules[name] for name in rubric.musts) else score.total)
    poor = sorted((i for i, rating in enumerate(rating_N) if rating < POOR), key=rating_N.__getitem__)
    rows = sample.about(poor, lambda i: f"the chosen answer keeps {rating_N[i]:.2f} of the rubric's weight")
    (told,) = quality_of_chosen.findings(quality_of_chosen.chosen(rating_N, np.array(sample.prompts), threshold=POOR))
    text = f"{told.text} The rating is that of the rubric {rubric.name!r}."
    return told.model_copy(update={"text": text, "rows": found.place("D11.chosen", rows)})


def spoken(found: Examined, sample: Sample) -> Finding:
    """D13.language: answers in another language than their prompt."""
    strange_N2 = np.array(
        [
            [languages.is_strange(asked(pair.prompt), text_of(side)) for side in (pair.chosen, pair.rejected)]
            for pair in sample.pairs
        ]
    )
    said = {(True, True): "both answers", (True, False): "chosen", (False, True): "rejected"}
    places = np.flatnonzero(strange_N2.any(1)).tolist()
    rows = sample.about(places, lambda i: f"in another language: {said[strange_N2[i, 0], strange_N2[i, 1]]}")
    code_N, _ = clusters.codes(np.array(sample.prompts))
    sides = hygiene.sides(strange_N2[:, 0], strange_N2[:, 1], code_N)
    return hygiene.strange(sides, rows=found.place("D13.language", rows))


# ---------------------------------------------------------------- by the model


def examine_by_model(found: Examined, sample: Sample, settings: Settings, *, loaded: Loaded, bars: Bars) -> None:
    """D9.ches, D10 and D12, from one reading of the pairs by the model, and from answers of its own."""
    own, seed, prompts = settings.data, settings.seed, sample.prompts
    tokens = [
        tokenize(pair, loaded.tokenizer, max_prompt=own.max_prompt, max_response=own.max_response)
        for pair in sample.pairs
    ]
    length_CB = np.array([[sum(pair.chosen_scored), sum(pair.rejected_scored)] for pair in tokens]).T
    budget = settings.train.token_budget
    seen_B = displacement.read(loaded, tokens, token_budget=budget, progress=bars("pairs read by the model"))
    note = f"{sampled(len(sample), sample.total)} Read by {loaded.name}, as it is before training."
    found.add(alike_to_the_model(found, sample, seen_B.ches, seed=seed), note=note)
    chosen_B, rejected_B = seen_B.logp_CB
    told = learn.learnability(chosen_B, rejected_B, np.array(prompts), beta=reporting_beta(settings.loss))
    apart_B = rejected_B - chosen_B
    stuck = sample.about(
        sorted(np.flatnonzero(told.stuck_N).tolist(), key=lambda i: -apart_B[i]),
        lambda i: f"rejected is {apart_B[i]:.0f} nats likelier than chosen",
    )
    found.add(learn.findings(told, rows=found.place("D10.stuck", stuck)), note=note)
    found.add(onpolicy.likelihood(seen_B.logp_CB, length_CB, prompts=prompts, seed=seed), note=note)
    found.add([voice(seen_B.logp_CB, length_CB, sample, loaded=loaded, seed=seed, bars=bars)], note=note)


def alike_to_the_model(found: Examined, sample: Sample, ches: displacement.Ches, *, seed: int) -> list[Finding]:
    """D9.ches, and the pairs whose sides the model sees as most alike."""
    risks = displacement.risks(sample.pairs, ches)
    place = {risk.pair_id: i for i, risk in enumerate(risks)}
    worst_of = [place[risk.pair_id] for risk in displacement.flagged(risks)]
    rows = sample.about(worst_of, lambda i: f"length-normalised CHES {risks[i].normalised:.3g}")
    told = displacement.displacement(risks, prompts=sample.prompts, seed=seed, rows=found.place("D9.ches", rows))
    return [one for one in told if one.id == "D9.ches"]  # D9.edit is known of more pairs


def voice(
    logp_CB: NDArray[np.float64],
    length_CB: NDArray[np.int64],
    sample: Sample,
    *,
    loaded: Loaded,
    seed: int,
    bars: Bars,
) -> Finding:
    """D12.own: the model's own answers to some of the prompts, and how likely it finds them beside the data's."""
    distinct = {pair.prompt_id: pair for pair in sample.pairs}
    pairs = [pair for pair in distinct.values() if not pair.tools][:OWN_ANSWERS]
    if not pairs:
        none = Undefined("every sampled prompt has tools, which are not sampled with")
        return finding("D12.own", none, "The model's own answers were not sampled.", unit="nats/token")
    answers = transformers_generator(loaded, batch_size=ANSWERS_AT_ONCE, model_name=loaded.name)(
        [pair.prompt for pair in pairs],
        samples=1,
        temperature=1.0,
        top_p=1.0,
        max_new_tokens=OWN_TOKENS,
        seed=seed,
        progress=bars("answers of the model's own"),
    )
    own = [(one.logp, one.tokens, pair.prompt_id) for pair, (one,) in zip(pairs, answers, strict=True) if one.tokens]
    logp_S, length_S, prompts = zip(*own, strict=True)
    return onpolicy.own_voice(
        logp_CB, length_CB, logp_S, length_S, prompts=sample.prompts, own_prompts=prompts, seed=seed
    )


def turned(outcomes: Path, step: int, held: Sample) -> Finding:
    """D10.turned, from the outcomes of held-out pairs at the step of a checkpoint."""
    prompt_of = dict(zip((pair.id for pair in held.pairs), held.prompts, strict=True))
    reference, policy, prompts = [], [], []
    for _, row in storage.rows(str(outcomes)):
        if row["split"] == "heldout" and row["step"] == step and row["pair_id"] in prompt_of:
            both = np.array([row["logp_chosen"], row["logp_rejected"]])
            policy.append(both)
            reference.append(both - [row["logratio_chosen"], row["logratio_rejected"]])
            prompts.append(prompt_of[row["pair_id"]])
    if not prompts:
        none = Undefined(f"no held-out pair has an outcome at step {step}")
        return finding("D10.turned", none, "What training turned cannot be told.", unit="share")
    return learn.turned(np.array(reference).T, np.array(policy).T, np.array(prompts))


# ---------------------------------------------------------------- what is written


def write(found: Examined, data: Path) -> dict[str, Any]:
    """Put what was found beside what curation measured, and return the whole of `quality.json`.

    The rows come first and `quality.json` last, whole or not at all; rows and prompts of an earlier examination that
    have no successor go. Raises InputError where `quality.json` is damaged.
    """
    whole = merged(read_quality(data), found)
    for name, rows in found.rows.items():
        with storage.replacing(data / FINDINGS / f"{name}.jsonl") as file:
            for row in rows:
                file.write(storage.encode(row))
    if found.wanted:
        storage.write(data / UNCOVERED, found.wanted)
    storage.write_json(data / QUALITY, whole)
    for name in set(IDS) - found.rows.keys():
        (data / FINDINGS / f"{name}.jsonl").unlink(missing_ok=True)
    if not found.wanted:
        (data / UNCOVERED).unlink(missing_ok=True)
    return whole


def merged(quality: Mapping[str, Any], found: Examined) -> dict[str, Any]:
    """`quality.json` with these findings and figures in place of those of an earlier examination, and a new verdict.

    >>> merged({"verdict": "fail", "findings": [], "figures": []}, Examined())
    {'verdict': 'pass', 'findings': [], 'figures': [], 'examined': {}}
    """
    kept = [row for row in quality["findings"] if not (isinstance(row, dict) and row.get("id") in IDS)]
    known = [
        storage.parse(row if isinstance(row, dict) else {}, Finding, where=f"{QUALITY}: findings.{i}")
        for i, row in enumerate(kept)
    ]
    figures = quality.get("figures")
    rest = [one for one in figures if one.get("name") not in FIGURES] if isinstance(figures, list) else []
    return {
        **quality,
        "verdict": worst([*known, *found.findings]),
        "findings": [*kept, *(one.model_dump(mode="json", exclude_defaults=True) for one in found.findings)],
        "figures": [*rest, *found.figures],
        MARK: found.made_with,
    }


def read_quality(data: Path) -> dict[str, Any]:
    """What curation measured; nothing where an older version measured nothing. Raises InputError for a damaged file."""
    path = data / QUALITY
    if not path.is_file():
        return {"verdict": "pass", "findings": [], "figures": []}
    with path.open("rb") as file:
        text = file.read()
    try:
        quality = json.loads(text)
    except (ValueError, RecursionError):
        quality = None
    if not isinstance(quality, dict) or not isinstance(quality.get("findings"), list):
        raise InputError(f"{path}: is damaged: it has no list of findings; restore it, or delete it and go on without")
    return quality


def forget(data: Path) -> str:
    """Call it before pairs are curated anew: what was examined of the old ones goes with them.

    Returns what to tell the user; empty where nothing was examined. The findings themselves go as curation writes
    `quality.json`; the prompts to collect were found against the old pairs and are removed here.
    """
    try:
        examined = MARK in read_quality(data)
    except InputError:
        return ""
    if not examined:
        return ""
    (data / UNCOVERED).unlink(missing_ok=True)
    return "what `druthers inspect` had found was about the earlier pairs and is left out; run it again"
