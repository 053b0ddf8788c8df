"""How good an answer is, as one number: what scores answers, the check of what it says, and the best of several.

A reward is any function of answers that gives a number for each of them, higher is better, or None for one that it
cannot score. A rubric is one; a reward model or a classifier becomes one by a function of a line.

Letters: P prompts, K answers to each of them.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Sequence
from itertools import chain

import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from druthers.generation import Generator, Messages, Progress
from druthers.judges import Rubric, load_rubric
from druthers.models import UNREADABLE
from druthers.policygradient import best_of as best_places
from druthers.records import Exchange, InputError, Message, first_line

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


def reward_named(name: str, *, device: torch.device) -> Reward:
    """The reward of a rubric, packaged or a TOML file, or of the folder of a model that gives one score.

    Raises InputError where it is neither or cannot be read.
    """
    if not os.path.isdir(name):
        return rubric_reward(load_rubric(name))
    return classifier_reward(name, device=device)


def classifier_reward(folder: str, *, device: torch.device, batch_size: int = 16) -> Reward:
    """The one logit of a Hugging Face sequence classifier, read on prompt and answer in its own chat template.

    A conversation longer than the model reads cannot be scored. Raises InputError for a folder that is no such model.
    """
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder)
        model, found = AutoModelForSequenceClassification.from_pretrained(
            folder, dtype=torch.float32, output_loading_info=True
        )
    except UNREADABLE as error:
        raise InputError(f"the reward model {folder!r} cannot be loaded: {first_line(error)}") from error
    pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id
    labels = model.config.num_labels
    if found["missing_keys"] or labels != 1 or not tokenizer.chat_template or pad is None:
        lacking = f"has {labels} labels" if labels != 1 else "has no chat template or token to pad with"
        lacking = f"lacks the weights {min(found['missing_keys'])!r}" if found["missing_keys"] else lacking
        raise InputError(
            f"the reward model {folder!r} {lacking}; name a sequence classifier with one label, all its weights and a "
            "chat template"
        )
    model = model.to(device).eval()
    model.config.pad_token_id = pad
    longest = model.config.to_dict().get("max_position_embeddings")

    def ids_of(answer: Exchange) -> list[int]:
        said = [*answer.prompt, Message(role="assistant", content=answer.response)]
        text = tokenizer.apply_chat_template([message.template_form() for message in said], tokenize=False)
        return list(tokenizer.encode(text, add_special_tokens=False))

    @torch.no_grad()
    def score(answers: Sequence[Exchange]) -> list[float | None]:
        rows = [ids_of(answer) for answer in answers]
        known = [i for i, ids in enumerate(rows) if longest is None or len(ids) <= longest]
        values: list[float | None] = [None] * len(rows)
        for start in range(0, len(known), batch_size):
            some = known[start : start + batch_size]
            width = max(len(rows[i]) for i in some)
            ids_ST = torch.tensor([rows[i] + [pad] * (width - len(rows[i])) for i in some], device=device)
            mask_ST = torch.tensor([[1] * len(rows[i]) + [0] * (width - len(rows[i])) for i in some], device=device)
            logits = model(input_ids=ids_ST, attention_mask=mask_ST).logits[:, 0].double().tolist()
            for i, value in zip(some, logits, strict=True):
                values[i] = value
        return values

    return score


def rewards_of(reward: Reward, answers: Sequence[Exchange]) -> list[float | None]:
    """What the reward says of every answer, checked.

    Raises InputError for another number of values than answers, and for a value that is no finite number.
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
