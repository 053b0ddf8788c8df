"""Points along training: reward, distance and wins of the policy at every evaluation, always measured in the same way.

At each of them the policy answers the same prompts with the same luck, at temperature 1 without a nucleus, and a scorer
gives every answer a reward; the reference answers the same prompts under the same luck once. So reward against KL is a
line of points, and two runs are compared at equal distance from the reference, not only at their ends
(`evaluation/frontier.jsonl`; Rafailov et al. 2023, arXiv 2305.18290, section 6.1).

The values of every single answer stand on the line too: whoever compares runs resamples whole prompts.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from druthers import storage
from druthers.allocation import release
from druthers.evaluate.answers import Messages, Sampling, answer, answer_once
from druthers.evaluate.kl import k1_sum, k3_sum
from druthers.evaluate.scoring import Floats, answer_logps
from druthers.generation import transformers_generator
from druthers.judges import Rubric
from druthers.models import Loaded
from druthers.records import Exchange, content_id
from druthers.stats import Estimate, Undefined, bootstrap_mean, bootstrap_ratio, win_rate

FRONTIER = "evaluation/frontier.jsonl"
ANSWERS = "evaluation/along"
SAMPLES = 2
"""Answers to a prompt: two share a row pair, so scoring the second is nearly free."""
DIGITS = 6
Watch = Callable[[Loaded, int], None]
"""The policy and the step it stands at."""


@dataclass(frozen=True)
class Scorer:
    """What gives answers their reward: a name, what tells it from others of that name, and the function itself."""

    name: str
    of: Callable[[Sequence[Exchange]], Sequence[float]]
    id: str = ""


def rubric_scorer(rubric: Rubric) -> Scorer:
    """A rule rubric as a scorer: the reward is the share of its weight that an answer keeps, in 0..1.

    >>> from druthers.judges import load_rubric
    >>> rubric_scorer(load_rubric("brand-voice")).name
    'brand-voice'
    """
    rules = [rule.model_dump(mode="json") for rule in rubric.rules]

    def score(answers: Sequence[Exchange]) -> list[float]:
        return [rubric.score(one.prompt, one.response).total for one in answers]

    return Scorer(rubric.name, score, content_id({"name": rubric.name, "rules": rules}))


@dataclass(frozen=True)
class Along:
    """What stays the same from point to point.

    `base` uncovers or loads the reference of a policy; `identity` says what its answers depend on, for the `cache` of
    them. Without a `scorer` there is a distance at every point, but no reward and no win rate.
    """

    folder: Path
    prompts: Sequence[Messages]
    max_new_tokens: int
    seed: int
    batch_size: int
    token_budget: int
    base: Callable[[Loaded], AbstractContextManager[Loaded]]
    identity: Callable[[Loaded], Mapping[str, str | int]]
    scorer: Scorer | None = None
    cache: Path | None = None

    @property
    def sampling(self) -> Sampling:
        """Temperature 1 and no nucleus: truncation of the distribution would bias the KL."""
        return Sampling(1.0, 1.0, self.max_new_tokens, self.seed, SAMPLES)


def measure(along: Along, policy: Loaded, step: int, *, keep: Callable[[int], bool]) -> dict[str, Any]:
    """Measure one point, write it into `evaluation/frontier.jsonl` and return its line.

    `keep` says of which other steps the file's lines stay: in training those before this one, because later ones are
    of a session that was lost.
    """
    since = time.monotonic()
    generator = transformers_generator(policy, batch_size=along.batch_size, model_name="aligned")
    samples = answer(along.prompts, generator=generator, sampling=along.sampling, model="aligned")
    own = answer_logps(samples, loaded=policy, token_budget=along.token_budget)
    far, theirs = seen_from_the_reference(along, policy, samples)
    release()
    rows = rows_of(samples, theirs, scorer=along.scorer)
    gaps = [a - b for a, b in zip(own, far, strict=True)]
    rows |= {"k1": rounded(map(k1_sum, gaps)), "k3": rounded(map(k3_sum, gaps))}
    line = point(rows, step=step, seed=along.seed) | {
        "scorer": None if along.scorer is None else {"name": along.scorer.name, "id": along.scorer.id},
        "reference": policy.sha,
        "temperature": along.sampling.temperature,
        "max_new_tokens": along.max_new_tokens,
        "seed": along.seed,
        "seconds": round(time.monotonic() - since, 2),
        "rows": rows,
    }
    (along.folder / ANSWERS).mkdir(parents=True, exist_ok=True)
    storage.write(along.folder / ANSWERS / f"step-{step:06d}.jsonl", samples)
    put(along.folder / FRONTIER, line, keep=keep)
    return line


def seen_from_the_reference(
    along: Along, policy: Loaded, samples: Sequence[Exchange]
) -> tuple[list[Floats], tuple[Exchange, ...]]:
    """The reference's log-probabilities of the samples, and its own answers where a scorer wants them.

    A reference that was loaded for this is not held by anything when this returns.
    """
    with along.base(policy) as reference:
        far = answer_logps(samples, loaded=reference, token_budget=along.token_budget)
        return far, () if along.scorer is None else base_answers(along, reference)


def base_answers(along: Along, reference: Loaded) -> tuple[Exchange, ...]:
    """The reference's answers to the same prompts under the same luck, from the cache where they are known."""
    return answer_once(
        along.prompts,
        generator=transformers_generator(reference, batch_size=along.batch_size, model_name="base"),
        sampling=along.sampling,
        identity=along.identity(reference),
        cache=along.cache,
    )


def rows_of(samples: Sequence[Exchange], theirs: Sequence[Exchange], *, scorer: Scorer | None) -> dict[str, list[Any]]:
    """A column of values for every measure, one value an answer; rewards where there is a scorer."""
    rows: dict[str, list[Any]] = {
        "prompt_id": [one.prompt_id for one in samples],
        "tokens": [one.tokens for one in samples],
        "finished": [int(one.finished) for one in samples],
    }
    if scorer is not None:
        rows |= {"reward": rounded(scorer.of(samples)), "reward_reference": rounded(scorer.of(theirs))}
    return rows


def rounded(values: Any) -> list[float]:
    """Plain numbers with as many digits as are of use."""
    return [round(float(value), DIGITS) for value in values]


def point(rows: Mapping[str, Sequence[Any]], *, step: int, seed: int) -> dict[str, Any]:
    """The estimates of one point, with intervals over prompts, from the values of its answers.

    >>> rows = {"prompt_id": ["a", "b"], "tokens": [2, 4], "finished": [1, 0], "k1": [0.5, 1.5], "k3": [0.5, 1.0]}
    >>> found = point(rows, step=8, seed=0)
    >>> found["length"], found["finished"], found["kl"]["k1"]["value"], found["reward"]["undefined"]
    (3.0, 0.5, 1.0, 'no scorer is set')
    """
    labels, tokens = rows["prompt_id"], rows["tokens"]
    return {
        "step": step,
        "reward": reward(rows, seed=seed).as_dict(),
        "kl": {name: bootstrap_mean(rows[name], labels, seed=seed).as_dict() for name in ("k1", "k3")},
        "kl_per_token": {
            name: bootstrap_ratio(rows[name], tokens, labels, seed=seed).as_dict() for name in ("k1", "k3")
        },
        **wins(rows, seed=seed),
        "length": float(np.mean(tokens)) if tokens else None,
        "finished": float(np.mean(rows["finished"])) if tokens else None,
        "samples": len(labels),
        "prompts": len(set(labels)),
    }


def reward(rows: Mapping[str, Sequence[Any]], *, seed: int) -> Estimate:
    """Mean reward of the answers."""
    if "reward" not in rows:
        return Undefined("no scorer is set")
    return bootstrap_mean(rows["reward"], rows["prompt_id"], seed=seed)


def wins(rows: Mapping[str, Sequence[Any]], *, seed: int) -> dict[str, Any]:
    """How often an answer has a higher reward than the reference's under the same luck; equal rewards are ties."""
    if "reward" not in rows:
        return {"win_rate": Undefined("no scorer is set").as_dict(), "wins": 0, "ties": 0, "losses": 0}
    ours, theirs = np.asarray(rows["reward"], dtype=float), np.asarray(rows["reward_reference"], dtype=float)
    scores = 0.5 + 0.5 * np.sign(ours - theirs)
    found = win_rate(scores, rows["prompt_id"], seed=seed)
    counts = {name: int((scores == value).sum()) for name, value in (("wins", 1), ("ties", 0.5), ("losses", 0))}
    return {"win_rate": found.as_dict(), **counts}


def put(file: Path, line: dict[str, Any], *, keep: Callable[[int], bool]) -> None:
    """The file with this line in its place by step: whole or as it was, and never two lines of one step."""
    there = [row for _, row in storage.rows(str(file))] if file.exists() else []
    others = [row for row in there if row.get("step") != line["step"] and keep(int(row.get("step", 0)))]
    whole = sorted([*others, line], key=lambda row: int(row["step"]))
    storage.write_bytes(file, b"".join(map(storage.encode, whole)))
