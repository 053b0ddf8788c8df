"""Reference log-probabilities: scored once and cached on disk, from the adapter switched off, or from a second copy.

Letters: C pair axis (0 chosen, 1 rejected), B pairs.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import platform
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
import transformers
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from druthers import __version__, devices
from druthers.allocation import release
from druthers.batching import Batch, side
from druthers.devices import ALONE, World
from druthers.distributions import Other
from druthers.logprobs import predicting
from druthers.losses import Loss
from druthers.models import WIDER, Floats, Loaded, adapter_off, computing, forward_config, score_tokens, second_copy
from druthers.records import InputError
from druthers.run import flat
from druthers.storage import cache_folder
from druthers.tokens import TokenizedPair
from druthers.train.reference_cache import KEY, Asked, Cache, Header, Keys, asked_of, differences, keys_of, unused


class Reference(Protocol):
    """What a policy is measured against, asked with a batch, its pairs and the policy that runs them."""

    def __call__(self, batch: Batch, some: Sequence[TokenizedPair], policy: Loaded) -> Tensor:
        """Sums of log-probs, (2, B), float64."""
        ...

    def head(self, batch: Batch, some: Sequence[TokenizedPair], policy: Loaded) -> Tensor:
        """The same over the first min(n_chosen, n_rejected) scored tokens of a pair."""
        ...

    def hidden(self, batch: Batch, policy: Loaded) -> Other:
        """Hidden states where each scored token is predicted, and the head they go to."""
        ...


Progress = Callable[[int, int], None]
Say = Callable[[str], None]

SCORER = "4"
"""Version of everything between token ids and scores; raise it where scores change."""
SAMPLE = 8
"""Pairs that are scored again when a cache is opened."""
TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 1e-2}
"""Most that two scorings of one model may differ, in nats a token: other batch shapes take other matrix kernels."""
ROUNDS = 4
"""Micro-batches that every member of a crew has in a window, about; at the end of one the faster wait."""
EVERY = 20.0
"""Seconds after which what was scored is written, at the end of the window: a kill costs these and that window."""


NO_DISTRIBUTIONS = (
    "this loss compares whole distributions with the reference's, which a cache does not hold; "
    "use train.reference=auto, copy, or adapter where model.adapter=lora"
)


def silent(text: str) -> None:
    """Where nobody listens."""


def header_for(reference: Loaded) -> Header:
    """What the scores of this reference depend on, and what they are made with; tokens are in the key of a response."""
    depends_on = {
        "weights": reference.sha,
        "compute": str(reference.compute).removeprefix("torch."),
        "device": reference.device.type,
        "rows": reference.layout.rung,
        "attention": reference.causal.config._attn_implementation,
        "scorer": SCORER,
        **flat({"config": forward_config(reference.causal)}),
    }
    made_with = {
        "model": reference.name,
        "druthers": __version__,
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "machine": platform.machine(),
    }
    found: Header = json.loads(json.dumps({"depends_on": depends_on, "made_with": made_with}, default=str))
    return found


def gap(now_CP: ArrayLike, then_CP: ArrayLike, length_CP: ArrayLike) -> float:
    """Mean absolute difference of two scorings, in nats a token, long responses counting by their tokens.

    >>> gap([[-10.0], [-4.0]], [[-10.2], [-4.1]], [[40], [20]])
    0.005
    """
    difference = np.abs(np.asarray(now_CP) - np.asarray(then_CP))
    return round(float(difference.sum() / np.asarray(length_CP).sum()), 12)


def check_cache(
    cache: Cache, reference: Loaded, pairs: Sequence[TokenizedPair], keys_CB: Keys, *, token_budget: int
) -> None:
    """Score a few pairs of the cache again, of all its parts alike; raises InputError when the reference says other.

    A copy from another machine is taken by this, and one that is no longer what was scored is not.
    """
    known_CB = cache.has(keys_CB)
    chosen = sample_of(np.flatnonzero(known_CB.any(0)), cache.part_of(keys_CB).max(0))
    if not len(chosen):
        return
    now = score_tokens(reference, [pairs[i] for i in chosen], token_budget=token_budget)
    again = [
        (tokens.sum(dtype=np.float64), key, len(tokens))
        for i, both in zip(chosen, now, strict=True)
        for tokens, key, known in zip(both, keys_CB[:, i], known_CB[:, i], strict=True)
        if known
    ]
    logps, keys, lengths = (np.array(column) for column in zip(*again, strict=True))
    keys = keys.astype(KEY)  # numpy sizes a column of bytes by its longest, zero bytes at the end not counted
    sums = [tokens.sum(dtype=np.float64) for tokens in cache.tokens(keys)]
    error = float(np.max([gap(logps, then, lengths) for then in (cache.logps(keys), sums)]))
    limit = TOLERANCE[reference.compute]
    if not error <= limit:
        made = differences(cache.made_with(keys[0]), cache.header["made_with"])
        raise InputError(
            f"the reference cache {cache.folder} disagrees with the reference by {error:.1e} nat a token in "
            f"{len(chosen)} pairs scored again (limit {limit:g}{', made with ' + made if made else ''}); "
            "delete the folder and run again"
        )


def sample_of(places: NDArray[np.int64], part_B: NDArray[np.int64]) -> NDArray[np.int64]:
    """At most `SAMPLE` of the places, drawn with a fixed seed and spread over the parts in which they stand."""
    random = np.random.default_rng(0)
    ordered = places[np.argsort(part_B[places], kind="stable")]
    strata = np.array_split(ordered, min(SAMPLE, len(ordered))) if len(ordered) else []
    return np.array([random.choice(stratum) for stratum in strata], dtype=np.int64)


Cells = NDArray[np.int64]
"""Rows of (c, b): which response of which pair."""


def windows(asked: Asked, wanted_CB: NDArray[np.bool_], *, tokens: int) -> Iterator[Cells]:
    """Every wanted response once, those to one prompt side by side, long rows first, in windows of about `tokens`.

    The order is that of the responses themselves and windows are filled from its front. So scoring that was interrupted
    after some of them goes on with the same windows, and its numbers are those of scoring that was not.
    """
    _, first = np.unique(asked.keys_CB[wanted_CB], return_index=True)
    cells = np.argwhere(wanted_CB)[first]
    size = asked.size_CB[wanted_CB][first]
    prompts, prompt = np.unique(asked.prompt_B[cells[:, 1]], return_inverse=True)
    longest = np.zeros(len(prompts), dtype=np.int64)
    np.maximum.at(longest, prompt, size)
    order = np.lexsort((prompt, -longest[prompt]))
    spent = np.concatenate([[0], np.cumsum(size[order])])
    heads = np.flatnonzero(np.diff(prompt[order], prepend=-1))
    before = spent[heads]
    start = 0
    while start < len(cells):
        enough = np.searchsorted(before, spent[start] + tokens)
        stop = int(heads[enough]) if enough < len(heads) else len(cells)
        yield cells[order[start:stop]]
        start = stop


def rows_of(pairs: Sequence[TokenizedPair], cells: Cells) -> tuple[list[TokenizedPair], list[tuple[int, int]]]:
    """Responses two by two where they stand side by side and share a prompt, and in which row and side each is.

    One that is left over has an empty one beside it.
    """
    rows: list[TokenizedPair] = []
    places: list[tuple[int, int]] = []
    for prompt, group in itertools.groupby(cells.tolist(), key=lambda cell: pairs[cell[1]].prompt):
        sides = [side(pairs[b], c) for c, b in group]
        for at in range(0, len(sides), 2):
            (chosen, chosen_scored), (rejected, rejected_scored) = (*sides[at : at + 2], ((), ()))[:2]
            places += [(len(rows), c) for c in range(len(sides[at : at + 2]))]
            rows.append(TokenizedPair("", prompt, chosen, rejected, chosen_scored, rejected_scored))
    return rows, places


def fill(
    cache: Cache,
    reference: Loaded,
    pairs: Sequence[TokenizedPair],
    asked: Asked,
    *,
    token_budget: int,
    progress: Progress | None = None,
    world: World = ALONE,
) -> None:
    """Score this rank's windows of what the cache lacks, written part after part; `progress` counts responses."""
    wanted_CB = ~cache.has(asked.keys_CB)
    every = windows(asked, wanted_CB, tokens=ROUNDS * WIDER * token_budget)
    mine = list(itertools.islice(every, world.rank, None, world.size))
    total, done, since = sum(map(len, mine)), 0, time.monotonic()
    keys: list[Keys] = []
    tokens: list[Floats] = []

    def tick(part: int, whole: int) -> None:
        if progress:
            progress(done + part * len(cells) // whole, total)

    for cells in mine:
        rows, places = rows_of(pairs, cells)
        found = score_tokens(reference, rows, token_budget=token_budget, progress=tick)
        keys.append(asked.keys_CB[cells[:, 0], cells[:, 1]])
        tokens += [found[row][c] for row, c in places]
        done += len(cells)
        if done == total or time.monotonic() - since >= EVERY:
            cache.add(np.concatenate(keys), tokens)
            keys, tokens, since = [], [], time.monotonic()
    cache.refresh()


@dataclass(frozen=True, slots=True)
class Cached:
    """A reference whose scores stand in a cache; raises InputError for a pair that it was not asked to score."""

    cache: Cache

    def __call__(self, batch: Batch, some: Sequence[TokenizedPair], policy: Loaded) -> Tensor:
        """Sums of the pairs' log-probs, (2, B), float64."""
        return torch.from_numpy(self.cache.logps(keys_of(some))).to(batch.p_B.device)

    def head(self, batch: Batch, some: Sequence[TokenizedPair], policy: Loaded) -> Tensor:
        """The same over the first min(n_chosen, n_rejected) scored tokens of a pair."""
        sums = [
            [float(side[: min(map(len, both))].sum(dtype=np.float64)) for side in both] for both in self.tokens(some)
        ]
        return torch.tensor(sums, dtype=torch.float64, device=batch.p_B.device).reshape(-1, 2).T

    def hidden(self, batch: Batch, policy: Loaded) -> Other:
        """Hidden states are not kept."""
        raise InputError(NO_DISTRIBUTIONS)

    def tokens(self, some: Sequence[TokenizedPair]) -> list[tuple[NDArray[np.float32], NDArray[np.float32]]]:
        """Log-probs of the scored tokens of both responses of every pair, in nats, for losses that look at tokens.

        They are those of a causal model, so what remains of an array cut on the right still holds.
        """
        found = self.cache.tokens(keys_of(some).T)
        return list(zip(found[::2], found[1::2], strict=True))


def cached(
    reference: Loaded,
    pairs: Sequence[TokenizedPair],
    *,
    token_budget: int,
    progress: Progress | None = None,
    say: Say = silent,
    world: World = ALONE,
) -> Cached:
    """Look-up into the cache on disk, after scoring what is missing from it; `say` hears what of it is not used.

    Every rank scores its share. What another rank scored and this one cannot read (on another machine's disk) it scores
    as well.
    """
    root = cache_folder("reference")
    cache, asked = Cache(root, header_for(reference)), asked_of(pairs)
    for fault in cache.index.faults:
        say(f"reference cache: {fault}; what it holds is scored again")
    world.first(lambda: check_cache(cache, reference, pairs, asked.keys_CB, token_budget=token_budget))
    if not cache.has(asked.keys_CB).all() and (why := unused(root, cache.header, asked.keys_CB)):
        say(f"reference cache: {why}; they are scored again into {cache.folder}, and the old ones stay")
    for sharing in (world, ALONE):
        if not cache.has(asked.keys_CB).all():
            fill(cache, reference, pairs, asked, token_budget=token_budget, progress=progress, world=sharing)
        world.most(0)  # all have written
        cache.refresh()
    release()  # training has rows of another size
    return Cached(cache)


@dataclass(frozen=True, slots=True)
class Live:
    """A model in memory, asked with the very batch the policy sees; without one, the policy's own base weights."""

    model: Loaded | None

    @contextlib.contextmanager
    def asked(self, policy: Loaded) -> Iterator[Loaded]:
        """The reference, ready for a forward without gradients."""
        own = contextlib.nullcontext(self.model) if self.model is not None else adapter_off(policy)
        with own as reference, torch.no_grad(), computing(reference):
            yield reference

    def __call__(self, batch: Batch, some: Sequence[TokenizedPair], policy: Loaded) -> Tensor:
        """Sums of log-probs, (2, B), float64."""
        with self.asked(policy) as reference:
            return reference.logps(batch).double()

    def head(self, batch: Batch, some: Sequence[TokenizedPair], policy: Loaded) -> Tensor:
        """The same over the first min(n_chosen, n_rejected) scored tokens of a pair."""
        with self.asked(policy) as reference:
            return reference.read(batch, needs=("head",))[1].double()

    def hidden(self, batch: Batch, policy: Loaded) -> Other:
        """Hidden states where each scored token is predicted, and the head they go to."""
        with self.asked(policy) as reference:
            return predicting(reference.scorer, batch), reference.scorer


def live(reference: Loaded) -> Reference:
    """Scores from a model in memory."""
    return Live(reference)


@dataclass(frozen=True, slots=True)
class Known:
    """Zeros in the place of log-probs that nobody reads, and the hidden states of the reference itself."""

    scores: Reference | None = None

    def __call__(self, batch: Batch, some: Sequence[TokenizedPair], policy: Loaded) -> Tensor:
        """Zeros, (2, B)."""
        return torch.zeros_like(batch.length_CB, dtype=torch.float64)

    head = __call__

    def hidden(self, batch: Batch, policy: Loaded) -> Other:
        """Those of the reference."""
        assert self.scores is not None, "nobody has hidden states"
        return self.scores.hidden(batch, policy)


without_adapter = Live(None)
"""Scores from the policy's own base weights, its adapter switched off."""


@dataclass(frozen=True, slots=True)
class Plan:
    """Which reference is used, and the word for the record."""

    scores: Reference
    kind: str


def kind_for(kind: str, policy: Loaded, loss: Loss, world: World = ALONE) -> str:
    """The kind of reference that a loss can do with: one that looks at whole distributions needs a model in memory.

    Raises InputError for a cache, and for several ranks, where the loss needs such a model.
    """
    if "divergence" not in loss.needs:
        return kind
    if kind == "cache":
        raise InputError(NO_DISTRIBUTIONS)
    if world.size > 1:
        raise InputError("a loss that compares whole distributions with the reference's takes one process; start one")
    return ("adapter" if policy.adapted else "copy") if kind == "auto" else kind


def choose(
    kind: str,
    policy: Loaded,
    pairs: Sequence[TokenizedPair],
    *,
    token_budget: int,
    progress: Progress | None = None,
    say: Say = silent,
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
    with adapter_off(policy) if policy.adapted else contextlib.nullcontext(policy) as base:
        scores = cached(base, pairs, token_budget=token_budget, progress=progress, say=say, world=world)
        return Plan(scores, "cache")
