"""Reference log-probabilities: scored once and cached on disk, from the adapter switched off, or from a second copy."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from numpy.typing import ArrayLike
from torch import Tensor

from druthers import devices
from druthers.batching import Batch, plan
from druthers.devices import ALONE, World
from druthers.models import Loaded, adapter_off, computing, score_pairs, second_copy
from druthers.records import InputError
from druthers.storage import cache_folder, replacing
from druthers.tokens import TokenizedPair

Reference = Callable[[Batch, Sequence[TokenizedPair], Loaded], Tensor]
"""Batch, its pairs and the policy that runs them to reference log-probs of shape (2, B)."""
Scores = np.ndarray[tuple[int, int], np.dtype[np.float64]]

SCORER = "3"
"""Version of everything between token ids and scores; raise it where scores change."""
SAMPLE = 4
TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 1e-2}
"""Most that two scorings of one model may differ, in nats a token: other batch shapes take other matrix kernels."""


def example_key(pair: TokenizedPair) -> str:
    """Hash of everything about a pair that its log-probs depend on: token ids and which of them are scored."""
    digest = hashlib.sha256()
    for ids in (pair.prompt, pair.chosen, pair.rejected, pair.chosen_scored, pair.rejected_scored):
        digest.update(np.asarray([len(ids), *ids], dtype=np.int64).tobytes())
    return digest.hexdigest()[:32]


def cache_path(reference: Loaded) -> Path:
    """The file that holds scores of this reference: named by weights, compute type, device kind and layout."""
    basis = f"{reference.sha} {reference.compute} {reference.device.type} {reference.layout.rung} {SCORER}"
    return cache_folder("reference") / f"{hashlib.sha256(basis.encode()).hexdigest()[:24]}.parquet"


def read_cache(path: Path) -> dict[str, tuple[float, float]]:
    """Scores by example key; an unreadable file counts as empty and is written anew."""
    if not path.is_file():
        return {}
    try:
        table = pq.read_table(path)
        columns = [table.column(name).to_pylist() for name in ("example", "chosen", "rejected")]
    except (pa.ArrowException, OSError, KeyError):
        return {}
    return {example: (chosen, rejected) for example, chosen, rejected in zip(*columns, strict=True)}


def write_cache(path: Path, scores: dict[str, tuple[float, float]]) -> None:
    """Write the scores atomically, sorted by key."""
    keys = sorted(scores)
    chosen, rejected = ([scores[k][side] for k in keys] for side in (0, 1))
    with replacing(path) as file:
        pq.write_table(pa.table({"example": keys, "chosen": chosen, "rejected": rejected}), file)


def gap(now_CP: ArrayLike, then_CP: ArrayLike, length_CP: ArrayLike) -> float:
    """Mean absolute difference of two scorings, in nats a token, long responses counting by their tokens.

    >>> gap([[-10.0], [-4.0]], [[-10.2], [-4.1]], [[40], [20]])
    0.005
    """
    difference = np.abs(np.asarray(now_CP) - np.asarray(then_CP))
    return round(float(difference.sum() / np.asarray(length_CP).sum()), 12)


def check_cache(
    known: dict[str, tuple[float, float]], pairs: Sequence[TokenizedPair], reference: Loaded, *, path: Path
) -> None:
    """Score a few cached pairs again; raises InputError when they are not what the reference says now."""
    cached = [pair for pair in pairs if example_key(pair) in known]
    sample = cached[:: max(1, len(cached) // SAMPLE)][:SAMPLE]
    if not sample:
        return
    now = score_pairs(reference, sample, token_budget=1)
    then = np.array([known[example_key(pair)] for pair in sample]).T
    error = gap(now, then, np.array([[len(pair.chosen), len(pair.rejected)] for pair in sample]).T)
    if not error <= TOLERANCE[reference.compute]:
        raise InputError(
            f"the reference cache {path} disagrees with the reference by {error:.1e} nat a token; "
            "delete the file and run again"
        )


def score_shares(
    reference: Loaded,
    pairs: Sequence[TokenizedPair],
    *,
    token_budget: int,
    progress: Callable[[int, int], None] | None,
    world: World,
) -> Scores:
    """`score_pairs` with every rank on its share of the tokens; all scores, (2, len(pairs)), stand on every rank."""
    if world.size == 1:
        return score_pairs(reference, pairs, token_budget=token_budget, progress=progress)
    groups = plan(pairs, token_budget=token_budget * world.size, crew=world.size, rung=reference.layout.rung)
    own = [i for group in groups[world.rank :: world.size] for i in group]
    found_CP = torch.zeros(2, len(pairs), dtype=torch.float64)
    scored = score_pairs(reference, [pairs[i] for i in own], token_budget=token_budget, progress=progress)
    found_CP[:, own] = torch.from_numpy(scored)
    return world.sum(found_CP).numpy()


def cached(
    reference: Loaded,
    pairs: Sequence[TokenizedPair],
    *,
    token_budget: int,
    progress: Callable[[int, int], None] | None = None,
    world: World = ALONE,
) -> Reference:
    """Look-up into the cache on disk, after scoring what is missing from it; rank 0 reads, checks and writes it."""
    path = cache_path(reference)

    def read() -> dict[str, tuple[float, float]]:
        found = read_cache(path)
        check_cache(found, pairs, reference, path=path)
        return found

    known = world.first(read)
    missing = list({key: pair for pair in pairs if (key := example_key(pair)) not in known}.values())
    if missing:
        found = score_shares(reference, missing, token_budget=token_budget, progress=progress, world=world)
        known |= {example_key(pair): (float(c), float(r)) for pair, c, r in zip(missing, *found, strict=True)}
        world.first(lambda: write_cache(path, read_cache(path) | known))

    def look_up(batch: Batch, some: Sequence[TokenizedPair], policy: Loaded) -> Tensor:
        values = [known[example_key(pair)] for pair in some]
        return torch.tensor(values, dtype=torch.float64, device=batch.p_B.device).T

    return look_up


def live(reference: Loaded) -> Reference:
    """Scores from a model in memory, on the very batch the policy sees."""

    def score(batch: Batch, some: Sequence[TokenizedPair], policy: Loaded) -> Tensor:
        with torch.no_grad(), computing(reference):
            return reference.logps(batch).double()

    return score


def without_adapter(batch: Batch, some: Sequence[TokenizedPair], policy: Loaded) -> Tensor:
    """Scores from the policy's own base weights, its adapter switched off."""
    with adapter_off(policy) as base:
        return live(base)(batch, some, policy)


@dataclass(frozen=True, slots=True)
class Plan:
    """Which reference is used, and the word for the record."""

    scores: Reference
    kind: str


def choose(
    kind: str,
    policy: Loaded,
    pairs: Sequence[TokenizedPair],
    *,
    token_budget: int,
    progress: Callable[[int, int], None] | None = None,
    world: World = ALONE,
) -> Plan:
    """The reference named by `train.reference`; call it before the policy's weights move or are split over ranks.

    'auto' is the cache.
    """
    if kind == "copy":
        return Plan(live(devices.shard(second_copy(policy), world)), "copy")
    if kind == "adapter":
        with adapter_off(policy):
            return Plan(without_adapter, "adapter")
    if not policy.adapted:
        return Plan(cached(policy, pairs, token_budget=token_budget, progress=progress, world=world), "cache")
    with adapter_off(policy) as base:
        return Plan(cached(base, pairs, token_budget=token_budget, progress=progress, world=world), "cache")
