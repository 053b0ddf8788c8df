"""How good an answer is, as one number: what scores answers, the check of what it says, and the best of several.

A reward is any function of answers that gives a number for each of them, higher is better, or None for one that it
cannot score. A rubric is one; a reward model or a classifier becomes one by a function of a line.

Letters: P prompts, K answers to each of them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import chain

import torch

from druthers.generation import Generator, Messages, Progress
from druthers.judges import Rubric
from druthers.policygradient import best_of as best_places
from druthers.records import Exchange, InputError

Reward = Callable[[Sequence[Exchange]], Sequence[float | None]]
"""Answers to their rewards, in their order; None for an answer that cannot be scored."""


def rubric_reward(rubric: Rubric) -> Reward:
    """The score of a rule rubric, in [0, 1].

    >>> from druthers.judges import parse_rubric
    >>> from druthers.records import user
    >>> rules = [{"name": "brief", "label": "at most 2 words", "kind": "word_count", "most": 2}]
    >>> reward = rubric_reward(parse_rubric({"name": "short", "rules": rules}, where="example"))
    >>> said = dict(prompt=user("A fruit?"), model="m", seed=0, temperature=1.0, tokens=3, finished=True)
    >>> reward([Exchange(response="A plum.", **said), Exchange(response="A ripe plum.", **said)])
    [1.0, 0.0]
    """
    return lambda answers: [rubric.score(answer.prompt, answer.response).total for answer in answers]


def rewards_of(reward: Reward, answers: Sequence[Exchange]) -> list[float | None]:
    """What the reward says of every answer, checked.

    Raises InputError for another number of values than answers, a value that is no finite number, and for a reward that
    could score none of them.
    """
    found = list(reward(answers)) if answers else []
    if len(found) != len(answers):
        raise InputError(
            f"the reward gave {len(found)} values for {len(answers)} answers, but it must give one each, in order; "
            "give None for an answer that cannot be scored"
        )
    for value, answer in zip(found, answers, strict=True):
        number = isinstance(value, int | float) and not isinstance(value, bool)
        if value is not None and not (number and math.isfinite(value)):
            raise InputError(
                f"the reward of the answer {shown(answer.response)} is {value!r}, but it must be a finite number; "
                "give None for an answer that cannot be scored"
            )
    if answers and all(value is None for value in found):
        raise InputError(f"the reward could score none of {len(answers)} answers, so there is nothing to learn from")
    return [None if value is None else float(value) for value in found]


def shown(text: str, *, most: int = 40) -> str:
    """The beginning of a text, quoted.

    >>> shown("word " * 20, most=9)
    "'word word…'"
    """
    return repr(text if len(text) <= most else text[:most] + "…")


def best_of(generator: Generator, reward: Reward, *, count: int) -> Generator:
    """A generator whose every answer is the best of `count` by the reward: the first of equal ones.

    Its answers are at most `policygradient.best_of_bound(count)` nats from the generator's. Of a prompt none of whose
    answers can be scored, the first one is given. Raises InputError for a count below 1 and for greedy answers, which
    are all the same.
    """
    if count < 1:
        raise InputError(f"best of {count} answers, but it must be at least 1")

    def generate(
        prompts: Sequence[Messages],
        *,
        samples: int,
        temperature: float,
        top_p: float,
        max_new_tokens: int,
        seed: int,
        progress: Progress | None = None,
    ) -> list[list[Exchange]]:
        if temperature == 0 and count > 1:
            raise InputError(
                f"temperature = 0 makes the {count} answers to choose from the same; raise it, or take the best of 1"
            )
        found = generator(
            prompts,
            samples=samples * count,
            temperature=temperature,
            top_p=top_p,
            max_new_tokens=max_new_tokens,
            seed=seed,
            progress=progress,
        )
        groups = [row[start : start + count] for row in found for start in range(0, len(row), count)]
        chosen = iter(chosen_of(reward, groups))
        return [[next(chosen) for _ in range(samples)] for _ in prompts]

    return generate


def chosen_of(reward: Reward, groups: Sequence[Sequence[Exchange]]) -> list[Exchange]:
    """The best answer of each group, all of which are of one size."""
    if not groups:
        return []
    values = rewards_of(reward, list(chain.from_iterable(groups)))
    reward_PK = torch.tensor([value or 0.0 for value in values], dtype=torch.float64).view(len(groups), -1)
    scored_PK = torch.tensor([value is not None for value in values]).view(len(groups), -1)
    places = best_places(reward_PK, scored_PK).clamp(min=0).tolist()
    return [group[place] for group, place in zip(groups, places, strict=True)]
