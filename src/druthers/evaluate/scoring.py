"""Held-out pairs and generated answers to log-probabilities, in the one layout that training uses."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from druthers import models
from druthers.losses import Loss, Terms, weighted_mean
from druthers.models import Loaded
from druthers.records import Exchange, InputError, Outcome, assistant
from druthers.tokens import TokenizedPair, encode_prompt, encode_response

Floats = NDArray[np.float64]
Progress = Callable[[int, int], None]
AnswerScorer = Callable[[Sequence[Exchange]], list[Floats]]
"""Answers to the log-probabilities of their tokens in nats, one array each; empty for one that cannot be scored."""


def score_outcomes(
    pairs: Sequence[TokenizedPair],
    *,
    policy: Loaded,
    reference: Loaded,
    inside: Callable[[Loaded], AbstractContextManager[object]],
    loss: Loss,
    step: int,
    token_budget: int,
    progress: Progress | None = None,
) -> list[Outcome]:
    """Held-out outcomes of `policy` at `step`, scored now; the same rows that training writes at its evaluations.

    The reference is scored within `inside(reference)`, which uncovers the base model beneath an adapter.
    """
    policy_CB = models.score_pairs(policy, pairs, token_budget=token_budget, progress=progress)
    with inside(reference):
        reference_CB = models.score_pairs(reference, pairs, token_budget=token_budget)
    return outcomes_of(pairs, policy_CB=policy_CB, reference_CB=reference_CB, loss=loss, step=step)


def outcomes_of(
    pairs: Iterable[TokenizedPair], *, policy_CB: Floats, reference_CB: Floats, loss: Loss, step: int
) -> list[Outcome]:
    """Log-probabilities of both models, each (2, B), to one `Outcome` a pair."""
    ids, terms = terms_of(pairs)
    if loss.needs:
        listed = ", ".join(sorted(loss.needs))
        raise InputError(f"this loss asks for more than log-probabilities ({listed}), which training alone makes")
    if loss.follow is not None:
        state = loss.follow(torch.from_numpy(policy_CB), torch.from_numpy(reference_CB), terms)
        terms = replace(terms, state=state)
    loss_B = loss.of(torch.from_numpy(policy_CB), torch.from_numpy(reference_CB), terms).tolist()
    ratio_CB = policy_CB - reference_CB
    return [
        Outcome(
            pair_id=pair_id,
            step=step,
            split="heldout",
            logp_chosen=float(policy_CB[0, i]),
            logp_rejected=float(policy_CB[1, i]),
            logratio_chosen=float(ratio_CB[0, i]),
            logratio_rejected=float(ratio_CB[1, i]),
            length_chosen=int(terms.length_CB[0, i]),
            length_rejected=int(terms.length_CB[1, i]),
            loss=float(loss_B[i]),
        )
        for i, pair_id in enumerate(ids)
    ]


def terms_of(pairs: Iterable[TokenizedPair]) -> tuple[list[str], Terms]:
    """Ids and graded fields (float64) of the pairs, which are looked at once: a lazy sequence makes each anew."""
    rows = [
        (pair.id, pair.p, pair.margin, pair.weight, sum(pair.chosen_scored), sum(pair.rejected_scored))
        for pair in pairs
    ]
    table_B5 = torch.tensor([row[1:] for row in rows], dtype=torch.float64).reshape(-1, 5)
    p_B, margin_B, weight_B, *length_CB = table_B5.unbind(1)
    tokens = float(weighted_mean(length_CB[0], weight_B)) or 1.0
    return [row[0] for row in rows], Terms(p_B, margin_B, weight_B, torch.stack(length_CB), tokens)


def answer_logps(answers: Sequence[Exchange], *, loaded: Loaded, token_budget: int) -> list[Floats]:
    """Log-probability of every token of every answer under the model, in nats.

    The sampled tokens are scored, so two models that score the same answers score the same tokens, and a text that
    would tokenise otherwise cannot bias the KL; the end-of-turn token counts for a finished answer. Two answers to one
    prompt share a row pair, as chosen and rejected do in training.
    """
    found: list[Floats] = [np.empty(0)] * len(answers)
    cells = list(row_pairs(answers, loaded.tokenizer))
    scored = models.score_tokens(loaded, [pair for _, pair in cells], token_budget=token_budget)
    for (whose, _), both in zip(cells, scored, strict=True):
        for i, tokens in zip(whose, both, strict=True):
            if i is not None:
                found[i] = tokens.astype(np.float64)
    return found


def row_pairs(answers: Sequence[Exchange], tokenizer: Any) -> Iterator[tuple[tuple[int, int | None], TokenizedPair]]:
    """Answers two by two where they share a prompt, as (their indices, their tokens); unscorable ones left out."""
    waiting: dict[str, tuple[int, list[int]]] = {}
    for i, answer in enumerate(answers):
        ids = answer_ids(answer, tokenizer)
        if not ids:
            continue
        key = answer.prompt_id
        if key not in waiting:
            waiting[key] = (i, ids)
            continue
        first, first_ids = waiting.pop(key)
        yield (first, i), row_pair(answers[first], first_ids, ids, tokenizer)
    for i, ids in waiting.values():
        yield (i, None), row_pair(answers[i], ids, [], tokenizer)


def row_pair(answer: Exchange, first: list[int], second: list[int], tokenizer: Any) -> TokenizedPair:
    """Two responses to the prompt of `answer`, every token of them scored; the second may be empty."""
    prompt = tuple(encode_prompt(answer.prompt, tokenizer))
    return TokenizedPair("", prompt, tuple(first), tuple(second), (True,) * len(first), (True,) * len(second))


def answer_ids(answer: Exchange, tokenizer: Any) -> list[int]:
    """The tokens that were sampled; for an answer known by its text alone, those the chat template writes.

    Empty when that text spells out a control token.
    """
    if answer.ids:
        return list(answer.ids)
    try:
        ids, _ = encode_response(answer.prompt, assistant(answer.response), tokenizer)
    except InputError:
        return []
    return ids if answer.finished else ids[:-1]
