"""How long this machine takes: optimizer steps, scoring, a checkpoint and answers, each measured on the real model."""

from __future__ import annotations

import functools
import math
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch.optim import Optimizer

from druthers import devices
from druthers.config import EvaluateSettings, Settings
from druthers.crew import Crew
from druthers.evaluate.answers import Messages
from druthers.generation import CROWDED, Answer, Sampling, batches, decode, end_tokens, inference_twin, uniforms
from druthers.losses import Loss
from druthers.memory import Living, tokens_alone
from druthers.models import Loaded, score_pairs, trainable
from druthers.records import InputError, first_line
from druthers.threads import side_by_side
from druthers.tokens import TokenizedPair, encode_prompt
from druthers.train import checkpoint
from druthers.train.checkpoint import Position
from druthers.train.loop import move
from druthers.train.passes import run_pairs
from druthers.train.reference import Known, Reference

FEW, SOME = 2, 10
"""Tokens of two short answers: what the second takes longer is eight steps of decoding."""
LOOKED_AT = 32
"""Held-out pairs that are scored to see how long scoring takes."""
TRIED = 16
"""Prompts answered to the end to see how long answers are."""


def tokens_of(pairs: Sequence[TokenizedPair], loaded: Loaded) -> int:
    """Tokens computed for some pairs at once; a prompt, and a response to it, count once where the layout shares them.

    >>> from types import SimpleNamespace
    >>> one, other = ((1, 2, 3), (4, 5), (6,)), ((1, 2, 3), (4, 5), (7, 8))
    >>> pairs = [TokenizedPair("", *ids, (True,) * 2, (True,) * len(ids[2])) for ids in (one, other)]
    >>> tokens_of(pairs, SimpleNamespace(layout=SimpleNamespace(rung="shared")))  # 3 of the prompt, then 2, 1 and 2
    8
    """
    if loaded.layout.rung != "shared":
        return int(tokens_alone(pairs, loaded.layout.rung).sum())
    branches = {(pair.prompt, response) for pair in pairs for response in (pair.chosen, pair.rejected)}
    return sum(map(len, {prompt for prompt, _ in branches})) + sum(len(response) for _, response in branches)


KNOWN = Known()
"""A reference that costs nothing, as one read from the cache."""


def timed(work: Callable[[], object], device: torch.device) -> float:
    """Seconds of some work on a device."""
    since = time.monotonic()
    work()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.monotonic() - since


def step(
    pairs: Sequence[TokenizedPair],
    crew: Crew,
    optimizer: Optimizer,
    scores: Reference,
    loss: Loss,
    *,
    settings: Settings,
) -> None:
    """One optimizer step at a learning rate of zero: all the work, and no weight moves."""
    run_pairs(pairs, crew, scores, loss, token_budget=settings.train.token_budget, learn="learn")
    devices.clip(trainable(crew.policy), most=settings.train.clip_norm)
    move(crew, optimizer, rate=0.0)


def scoring_paces(
    crew: Crew, scores: Reference, loss: Loss, pairs: Sequence[TokenizedPair], *, token_budget: int
) -> tuple[float, float]:
    """Seconds a token of scoring pairs, as the reference is scored and as an evaluation in training looks at them."""
    policy = crew.policy
    some = pairs[:: max(1, len(pairs) // LOOKED_AT)][:LOOKED_AT]
    score = functools.partial(score_pairs, policy, some, token_budget=token_budget)
    look = functools.partial(run_pairs, some, crew, scores, loss, token_budget=token_budget, learn="look")
    reference, evaluation = (timed(work, policy.device) / tokens_of(some, policy) for work in (score, look))
    return reference, evaluation


def saving(policy: Loaded, optimizer: Optimizer, *, beside: Path) -> float:
    """Seconds of one checkpoint, written where those of the run will be and removed.

    Raises InputError where it cannot be written, as the run would at its first one.
    """
    near = next(folder for folder in (beside.absolute(), *beside.absolute().parents) if folder.is_dir())
    try:
        with tempfile.TemporaryDirectory(dir=near, prefix=".plan-") as place:
            write = functools.partial(checkpoint.save, Path(place), Position(step=1), policy, optimizer, metric="loss")
            return timed(write, policy.device)
    except OSError as error:
        raise InputError(
            f"{near} cannot be written: {first_line(error)}; name another place for the run with run=FOLDER"
        ) from error


@dataclass(frozen=True)
class Answering:
    """Seconds of answering: to begin with a batch, and of a step of decoding by rows, half way through an answer.

    `lengths` are those of some answers of the base model, `row_bytes` what a row has alive for every token of it.
    """

    begin: float
    step: float
    step_row: float
    rows: int
    lengths: tuple[int, ...]
    row_bytes: float

    def seconds(self, answers: int, *, at_once: int, most: int) -> float:
        """So many answers, in rounds of at most `at_once`, `most` tokens at the longest."""
        rounds = math.ceil(answers / at_once)
        rows = answers / max(1, rounds)
        decoding = sum(self.step + self.step_row * left for left in self.left(rows, most))
        return rounds * (self.begin * rows / self.rows + decoding)

    def left(self, rows: float, most: int) -> list[float]:
        """Rows in the batch at every step of decoding, as finished ones leave it."""
        found, kept = [], 1.0
        for at in range(1, most):
            going = sum(length > at for length in self.lengths) / len(self.lengths)
            if not going:
                break
            kept = going if going <= CROWDED * kept else kept
            found.append(kept * rows)
        return found


def answering(policy: Loaded, prompts: Sequence[Messages], own: EvaluateSettings) -> Answering:
    """Measured with prompts of the run on the model as it is before training."""
    ids = [encode_prompt(prompt, policy.tokenizer) for prompt in prompts]
    workers = workers_of(policy)
    full = ids[: own.batch_size * workers]
    few = full[: max(workers, len(full) // 4)]
    twin = inference_twin(policy)
    begin = timed(functools.partial(answers, twin, full, own, tokens=1), policy.device)
    paces = [pace(twin, [halfway(row, own) for row in some], own) for some in (few, full)]
    slope = (paces[1] - paces[0]) / (len(full) - len(few)) if len(full) > len(few) else 0.0
    slope = min(max(0.0, slope), paces[1] / len(full))
    tried = answers(twin, ids[:TRIED], own, tokens=own.max_new_tokens)
    return Answering(
        begin,
        paces[1] - slope * len(full),
        slope,
        len(full),
        tuple(len(answer.tokens) for answer in tried),
        row_bytes(twin, few[: max(1, len(few) // workers)], own),
    )


def workers_of(loaded: Loaded) -> int:
    """Batches of answers at once, as `generation` has them."""
    return torch.get_num_threads() if loaded.device.type == "cpu" else 1


def halfway(ids: list[int], own: EvaluateSettings) -> list[int]:
    """A prompt as long as it is with half an answer behind it."""
    more = own.max_new_tokens // 2
    return [*ids, *(ids * math.ceil(more / len(ids)))[:more]]


def pace(twin: Loaded, ids: Sequence[list[int]], own: EvaluateSettings) -> float:
    """Seconds of one step of decoding, all rows at once."""
    short, long = (timed(functools.partial(answers, twin, ids, own, tokens=n), twin.device) for n in (FEW, SOME))
    return max(0.0, long - short) / (SOME - FEW)


def answers(twin: Loaded, ids: Sequence[list[int]], own: EvaluateSettings, *, tokens: int) -> list[Answer]:
    """Sampled answers of at most so many tokens, shared out as `generation` does it."""
    how = Sampling(own.temperature, own.top_p, tokens, end_tokens(twin), twin.pad_id)
    workers = workers_of(twin)

    def answer(job: tuple[list[int], range]) -> list[Answer]:
        luck_SN = torch.stack([uniforms(0, str(i), 0, tokens) for i in job[0]]).to(twin.device)
        return decode(twin.scorer, [ids[i] for i in job[0]], copies=1, luck_SN=luck_SN, sampling=how, tick=nothing)

    jobs = list(batches([len(row) for row in ids], samples=1, batch_size=own.batch_size, workers=workers))
    return [answer for found in side_by_side(answer, jobs, workers=workers) for answer in found]


def nothing(count: int) -> None:
    """Progress that nobody watches."""


def row_bytes(twin: Loaded, ids: Sequence[list[int]], own: EvaluateSettings) -> float:
    """Bytes alive in decoding for every token of every row: keys and values, logits, and what comes in between."""
    how = Sampling(own.temperature, own.top_p, FEW, end_tokens(twin), twin.pad_id)
    luck_SN = torch.stack([uniforms(0, str(i), 0, FEW) for i in range(len(ids))]).to(twin.device)
    with Living() as living:
        decode(twin.scorer, ids, copies=1, luck_SN=luck_SN, sampling=how, tick=nothing)
    return float(living.most) / (len(ids) * (max(map(len, ids)) + FEW))
