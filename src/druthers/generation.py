"""Prompts to responses: a sampling loop of our own, with a key-value cache and one random stream for each answer.

Letters: P prompts in a batch, S rows (a prompt times its samples), T tokens in a row, N new tokens, V vocabulary,
H hidden, K the most probable tokens.

Every (seed, prompt, sample) has its own uniform numbers, and a number picks a token by the inverse of the distribution
function over the tokens in order of their probability. So an answer does not depend on its neighbours in the batch
beyond float noise, and two models asked with one seed meet the same luck, which makes their comparison sharper.
"""

from __future__ import annotations

import copy
import math
import random
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from transformers.cache_utils import DynamicLayer

from druthers.logprobs import Scorer, shaped
from druthers.models import Loaded
from druthers.records import Exchange, InputError, Message, Prompt
from druthers.threads import side_by_side
from druthers.tokens import encode_prompt

Messages = tuple[Message, ...]
Progress = Callable[[int, int], None]

LIKELY = 128
"""How many of the most probable tokens are sorted first; all are where a draw falls behind them."""
ROOM = 64
"""Tokens a cache can take before it is moved to a larger place."""
CROWDED = 0.75
"""Rows leave the batch when at most this share of it is unfinished: moving the cache costs about one step."""


class Generator(Protocol):
    """Anything that answers prompts."""

    def __call__(
        self,
        prompts: Sequence[Messages],
        *,
        samples: int,
        temperature: float,
        top_p: float,
        max_new_tokens: int,
        seed: int,
        progress: Progress | None = None,
    ) -> list[list[Exchange]]:
        """`samples` answers to each prompt, in the order of the prompts; temperature 0 is greedy.

        `progress` is called with (answers finished, answers wanted).
        """
        ...


@dataclass(frozen=True, slots=True)
class Sampling:
    """How one token is drawn, and when an answer ends."""

    temperature: float
    top_p: float
    max_new_tokens: int
    ends: tuple[int, ...]
    pad_id: int


@dataclass(frozen=True, slots=True)
class Answer:
    """Generated ids (the end token included when `finished`) and their summed log-probability in nats."""

    tokens: tuple[int, ...]
    logp: float
    finished: bool


def transformers_generator(loaded: Loaded, *, batch_size: int, model_name: str) -> Generator:
    """A generator that runs `loaded` here, `batch_size` answers at once; `model_name` is written into every Exchange.

    For the time of a call there is a second copy of the weights where the compute type is not the type they are kept
    in (casting all of them anew for every token is slower). `Exchange.logp` is at temperature 1 without a nucleus,
    whatever the sampling was.

    Raises InputError for a prompt that leaves no room for `max_new_tokens` in the model's context, for text with
    control tokens, and for sampling settings out of range.
    """

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
        check_sampling(samples=samples, temperature=temperature, top_p=top_p, max_new_tokens=max_new_tokens)
        sampling = Sampling(temperature, top_p, max_new_tokens, end_tokens(loaded), loaded.pad_id)
        keys = [Prompt(prompt=prompt).prompt_id for prompt in prompts]
        encoded = [encode_prompt(prompt, loaded.tokenizer) for prompt in prompts]
        check_context(encoded, loaded, max_new_tokens=max_new_tokens)
        scorer = inference_twin(loaded).scorer
        found: dict[tuple[int, int], Answer] = {}
        tick = counter(progress, len(prompts) * samples)

        def answer(job: tuple[list[int], range]) -> None:
            chosen, copies = job
            rows = [(i, j) for i in chosen for j in copies]
            luck_SN = torch.stack([uniforms(seed, keys[i], j, max_new_tokens) for i, j in rows]).to(loaded.device)
            answers = decode(
                scorer, [encoded[i] for i in chosen], copies=len(copies), luck_SN=luck_SN, sampling=sampling, tick=tick
            )
            found.update(zip(rows, answers, strict=True))

        # The products of decoding are too small to share out: on a CPU every thread has batches of its own.
        workers = torch.get_num_threads() if loaded.device.type == "cpu" else 1
        lengths = [len(ids) for ids in encoded]
        jobs = list(batches(lengths, samples=samples, batch_size=batch_size, workers=workers))
        side_by_side(answer, jobs, workers=workers)
        return [
            [
                exchange(prompt, found[i, j], loaded, name=model_name, seed=seed, temperature=temperature)
                for j in range(samples)
            ]
            for i, prompt in enumerate(prompts)
        ]

    return generate


def check_sampling(*, samples: int, temperature: float, top_p: float, max_new_tokens: int) -> None:
    """Refuse settings that no sampling has."""
    for name, value, lowest in (
        ("samples", samples, 1),
        ("temperature", temperature, 0),
        ("max_new_tokens", max_new_tokens, 1),
    ):
        if not value >= lowest:
            raise InputError(f"{name} = {value}, but it must be at least {lowest}")
    if not 0 < top_p <= 1:
        raise InputError(f"top_p = {top_p}, but it must be above 0 and at most 1")


def check_context(encoded: Sequence[Sequence[int]], loaded: Loaded, *, max_new_tokens: int) -> None:
    """Refuse a prompt that does not fit the model's context together with the longest answer."""
    limit = loaded.causal.config.to_dict().get("max_position_embeddings")
    longest = max(map(len, encoded), default=0)
    if limit is not None and longest + max_new_tokens > limit:
        raise InputError(
            f"a prompt of {longest} tokens and an answer of {max_new_tokens} exceed the {limit} tokens "
            f"that {loaded.name!r} reads; drop the prompt or lower max_new_tokens"
        )


def end_tokens(loaded: Loaded) -> tuple[int, ...]:
    """Ids that end an answer: the tokenizer's end token and those of the model's generation settings."""
    own = loaded.causal.generation_config.eos_token_id
    found = {loaded.tokenizer.eos_token_id, *(own if isinstance(own, list) else [own])} - {None}
    return tuple(sorted(found))


def inference_twin(loaded: Loaded) -> Loaded:
    """The model for inference: its weights in the compute type (shared where they are already), buffers as they were.

    A module tree of its own, so that evaluation mode here leaves a model in training alone.
    """
    weights: dict[int, Any] = {id(weight): cast(weight, loaded.compute) for weight in loaded.model.parameters()}
    made = replace(loaded, model=copy.deepcopy(loaded.model, weights).eval())
    made.causal.set_attn_implementation(loaded.layout.native)
    return made


def cast(weight: nn.Parameter, kind: torch.dtype) -> nn.Parameter:
    """The weight itself where the type fits or it is quantised, otherwise a frozen copy of the type."""
    if weight.dtype == kind or not weight.is_floating_point():
        return weight
    return nn.Parameter(weight.detach().to(kind), requires_grad=False)


def batches(
    lengths: Sequence[int], *, samples: int, batch_size: int, workers: int = 1
) -> Iterator[tuple[list[int], range]]:
    """Prompts of like length together, as many as give at most `batch_size` rows; many samples of one prompt are split.

    The batches are of even size, and every worker has the same number of them.

    >>> list(batches([9, 2, 5], samples=2, batch_size=4))
    [([1, 2], range(0, 2)), ([0], range(0, 2))]
    >>> list(batches([9], samples=5, batch_size=4))
    [([0], range(0, 4)), ([0], range(4, 5))]
    >>> [len(chosen) for chosen, _ in batches([9] * 160, samples=1, batch_size=96, workers=2)]
    [80, 80]
    """
    order = sorted(range(len(lengths)), key=lengths.__getitem__)
    copies = min(samples, batch_size)
    rounds = math.ceil(len(order) / max(1, batch_size // samples) / workers)
    prompts = max(1, math.ceil(len(order) / max(1, rounds * workers)))
    for start in range(0, len(order), prompts):
        for first in range(0, samples, copies):
            yield order[start : start + prompts], range(first, min(first + copies, samples))


def uniforms(seed: int, prompt_id: str, sample: int, count: int) -> Tensor:
    """The luck of one answer: `count` numbers in [0, 1), float64; more of them begin with the same ones.

    >>> bool((uniforms(0, "a", 1, 9)[:4] == uniforms(0, "a", 1, 4)).all())
    True
    """
    stream = random.Random(f"{seed} {prompt_id} {sample}")
    return torch.tensor([stream.random() for _ in range(count)], dtype=torch.float64)


def counter(progress: Progress | None, total: int) -> Callable[[int], None]:
    """A callback that adds up what is done."""
    done, alone = 0, threading.Lock()

    def tick(count: int) -> None:
        nonlocal done
        with alone:
            done += count
            if progress and count:
                progress(done, total)

    return tick


@torch.no_grad()
def decode(
    scorer: Scorer,
    prompts: Sequence[Sequence[int]],
    *,
    copies: int,
    luck_SN: Tensor,
    sampling: Sampling,
    tick: Callable[[int], None],
) -> list[Answer]:
    """`copies` answers to each prompt, side by side in one batch; `luck_SN` holds their uniform numbers."""
    S, N = luck_SN.shape
    hidden_SH, cache, mask_ST = prefill(scorer, prompts, copies=copies, pad_id=sampling.pad_id, device=luck_SN.device)
    ends = torch.tensor(sampling.ends, device=luck_SN.device)
    token_SN = torch.full((S, N), -1, device=luck_SN.device)
    logp_SN = torch.zeros(S, N, dtype=torch.float64, device=luck_SN.device)
    place_S = torch.arange(S, device=luck_SN.device)  # which answer a row of the shrinking batch belongs to
    open_S = torch.ones_like(place_S, dtype=torch.bool)
    for step in range(N):
        logits_SV = shaped(scorer.head(hidden_SH), scorer.scale, scorer.softcap)
        token_S = choose(logits_SV, luck_SN[place_S, step], temperature=sampling.temperature, top_p=sampling.top_p)
        writing = place_S[open_S]
        token_SN[writing, step] = token_S[open_S]
        logp_SN[writing, step] = logp_of(logits_SV, token_S)[open_S].double()
        open_S = open_S & ~torch.isin(token_S, ends)
        left = int(open_S.sum())
        tick(len(writing) - left)
        if not left or step + 1 == N:
            break
        mask_ST = nn.functional.pad(mask_ST, (0, 1), value=1)
        if left <= CROWDED * len(open_S):
            keep = open_S.nonzero()[:, 0]
            cache.batch_select_indices(keep)
            place_S, open_S, token_S, mask_ST = place_S[keep], open_S[keep], token_S[keep], mask_ST[keep]
        hidden_SH = forward(scorer, token_S[:, None], mask_ST, cache=cache).last_hidden_state[:, -1]
    tick(int(open_S.sum()))
    return read_off(token_SN, logp_SN, ends)


def prefill(
    scorer: Scorer, prompts: Sequence[Sequence[int]], *, copies: int, pad_id: int, device: torch.device
) -> tuple[Tensor, Any, Tensor]:
    """Each prompt read once, then its cache repeated: last hidden states (S, H), cache, attention mask (S, T)."""
    width = max(map(len, prompts))
    ids_PT = torch.tensor([[pad_id] * (width - len(ids)) + list(ids) for ids in prompts], device=device)
    mask_PT = torch.tensor([[0] * (width - len(ids)) + [1] * len(ids) for ids in prompts], device=device)
    output = forward(scorer, ids_PT, mask_PT)
    make_room(output.past_key_values)
    output.past_key_values.batch_repeat_interleave(copies)
    hidden_PH = output.last_hidden_state[:, -1]
    return hidden_PH.repeat_interleave(copies, 0), output.past_key_values, mask_PT.repeat_interleave(copies, 0)


class Roomy(DynamicLayer):  # type: ignore[misc]
    """Keys and values in buffers with room behind them: a new token is written there, and nothing else is moved."""

    keys: Tensor
    values: Tensor
    buffers: tuple[Tensor, Tensor] | None = None

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Keys and values with the new ones behind them, both (S, heads, T, H of a head)."""
        start = self.get_seq_length()
        end = start + key_states.shape[-2]
        if self.buffers is None or end > self.buffers[0].shape[-2] or not self.in_buffers():
            self.buffers = roomy(self.keys, room=ROOM), roomy(self.values, room=ROOM)
        for buffer, new in zip(self.buffers, (key_states, value_states), strict=True):
            buffer[..., start:end, :] = new
        self.keys, self.values = (buffer[..., :end, :] for buffer in self.buffers)
        return self.keys, self.values

    def in_buffers(self) -> bool:
        """Whether keys and values still are the beginning of the buffers: rows taken out are not."""
        return self.buffers is not None and self.keys.data_ptr() == self.buffers[0].data_ptr()


def roomy(kept: Tensor, *, room: int) -> Tensor:
    """A copy with `room` unwritten places behind the next to last axis."""
    *left, length, width = kept.shape
    buffer = kept.new_empty(*left, length + room, width)
    buffer[..., :length, :] = kept
    return buffer


def make_room(cache: Any) -> None:
    """Give every layer of a filled cache that grows by one token at a time room to do so."""
    for layer in getattr(cache, "layers", ()):
        if type(layer) is DynamicLayer:
            layer.__class__ = Roomy


def forward(scorer: Scorer, ids_ST: Tensor, mask_ST: Tensor, *, cache: Any = None) -> Any:
    """The backbone on new tokens behind a cache; positions count what the mask over all tokens lets through."""
    position_ST = (mask_ST.cumsum(1) - 1).clamp(min=0)[:, -ids_ST.shape[1] :]
    return scorer.backbone(
        input_ids=ids_ST, attention_mask=mask_ST, position_ids=position_ST, past_key_values=cache, use_cache=True
    )


def choose(logits_SV: Tensor, luck_S: Tensor, *, temperature: float, top_p: float) -> Tensor:
    """A token for each row: the most probable one at temperature 0, otherwise the one where the luck falls.

    The tokens lie on the unit interval from the most probable to the least; a number in [0, 1) is scaled to
    [0, top_p) and picks the token it falls on. So the nucleus has exactly the mass top_p: of its last token only the
    part that was needed to reach top_p counts.

    >>> logits = torch.tensor([[1.0, 3.0, 2.0]]).log()
    >>> [choose(logits, torch.tensor([u]), temperature=1.0, top_p=1.0).item() for u in (0.49, 0.51, 0.84)]
    [1, 2, 0]
    >>> choose(logits, torch.tensor([0.99]), temperature=1.0, top_p=0.8).item()
    2
    """
    if temperature == 0:
        return logits_SV.argmax(-1)
    prob_SV = (logits_SV / temperature).softmax(-1)
    prob_SK, token_SK = prob_SV.topk(min(LIKELY, prob_SV.shape[1]))
    mark_S = luck_S.double() * top_p
    beyond_S = prob_SK.double().sum(-1) <= mark_S
    token_S = pick(prob_SK.double().cumsum(-1), token_SK, mark_S)
    if beyond_S.any():
        prob_SV, token_SV = prob_SV[beyond_S].sort(-1, descending=True)
        mass_SV = prob_SV.double().cumsum(-1)
        token_S[beyond_S] = pick(mass_SV / mass_SV[:, -1:], token_SV, mark_S[beyond_S])
    return token_S


def pick(mass_SK: Tensor, token_SK: Tensor, mark_S: Tensor) -> Tensor:
    """The first token whose cumulated mass exceeds the mark (the last one where none does)."""
    place_S = torch.searchsorted(mass_SK, mark_S[:, None], right=True).clamp(max=mass_SK.shape[1] - 1)
    return token_SK.gather(1, place_S)[:, 0]


def logp_of(logits_SV: Tensor, token_S: Tensor) -> Tensor:
    """Log-probability of one token in each row, at temperature 1."""
    return logits_SV.gather(1, token_S[:, None])[:, 0] - logits_SV.logsumexp(-1)


def read_off(token_SN: Tensor, logp_SN: Tensor, ends: Tensor) -> list[Answer]:
    """The answers in the rows; -1 stands behind the end of one."""
    closed_S = torch.isin(token_SN, ends).any(1).tolist()
    sums_S = logp_SN.sum(1).tolist()
    rows = [tuple(token for token in row if token >= 0) for row in token_SN.tolist()]
    return [Answer(*each) for each in zip(rows, sums_S, closed_S, strict=True)]


def exchange(prompt: Messages, answer: Answer, loaded: Loaded, *, name: str, seed: int, temperature: float) -> Exchange:
    """One answer as a record, its text without special tokens."""
    return Exchange(
        prompt=prompt,
        response=loaded.tokenizer.decode(answer.tokens, skip_special_tokens=True),
        model=name,
        seed=seed,
        temperature=temperature,
        tokens=len(answer.tokens),
        finished=answer.finished,
        logp=answer.logp,
        ids=answer.tokens,
    )
