"""Sampled answers as tokens: laid out in micro-batches, read by the engine, with a value for every token.

Letters: S answers, N tokens of all of them one after another, M those of a micro-batch, R responses of a batch (equal
ones of a prompt are one), H hidden.
"""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from druthers.batching import Batch, collate, plan
from druthers.crew import Crew, crew_of
from druthers.logprobs import head_logps, predicting
from druthers.models import WIDER, Loaded, adapter_off, computing, second_copy
from druthers.threads import side_by_side
from druthers.tokens import TokenizedPair

Ids = tuple[int, ...]
Cells = tuple[int, int | None]
Learn = Literal["learn", "look"]


@dataclass(frozen=True, slots=True)
class Answers:
    """The ids of prompts and of the answers sampled to them, S each; those to one prompt are equal as tuples."""

    prompts: list[Ids]
    responses: list[Ids]

    @property
    def length_S(self) -> Tensor:
        """Tokens of every answer."""
        return torch.tensor([len(ids) for ids in self.responses])

    @property
    def starts(self) -> list[int]:
        """Where the tokens of every answer begin among the N."""
        lengths = self.length_S
        return (lengths.cumsum(0) - lengths).tolist()


@dataclass(frozen=True, slots=True)
class Part:
    """What a member of the crew read of a micro-batch: whole answers, their tokens one after another.

    `whose` are the answers, `at_M` the places of their tokens among the N, all on the device of the log-probabilities.
    """

    whose: list[int]
    at_M: Tensor
    length_S: Tensor
    logp_M: Tensor
    hidden_MH: Tensor


Use = Callable[[Part, int], None]
"""What is done with a part; the number is the member's."""


def row_pairs(answers: Answers, chosen: Sequence[int]) -> list[tuple[Cells, TokenizedPair]]:
    """Some answers two by two where they share a prompt, as the engine takes them; one left over stands alone.

    >>> found = row_pairs(Answers([(1,), (1,), (1,)], [(2, 3), (4,), (5,)]), [0, 1, 2])
    >>> [cells for cells, _ in found], found[1][1].rejected
    ([(0, 1), (2, None)], ())
    """
    by_prompt: dict[Ids, list[int]] = {}
    for i in chosen:
        by_prompt.setdefault(answers.prompts[i], []).append(i)
    found: list[tuple[Cells, TokenizedPair]] = []
    for prompt, members in by_prompt.items():
        for start in range(0, len(members), 2):
            first, *rest = members[start : start + 2]
            second = rest[0] if rest else None
            a, b = answers.responses[first], () if second is None else answers.responses[second]
            pair = TokenizedPair("", prompt, a, b, (True,) * len(a), (True,) * len(b))
            found.append(((first, second), pair))
    return found


def places(batch: Batch, cells: Sequence[Cells], starts: Sequence[int]) -> tuple[list[int], list[int], list[int]]:
    """Whose answers stand in a batch; their tokens' places among its scored ones; and among those of all answers."""
    length_R = batch.length_R.tolist()
    begin_R = (batch.length_R.cumsum(0) - batch.length_R).tolist()
    whose: list[int] = []
    here: list[int] = []
    there: list[int] = []
    for pair, responses in zip(cells, batch.response_CB.T.tolist(), strict=True):
        for i, r in zip(pair, responses, strict=True):
            if i is not None:
                whose.append(i)
                here += range(begin_R[r], begin_R[r] + length_R[r])
                there += range(starts[i], starts[i] + length_R[r])
    return whose, here, there


def over(answers: Answers, chosen: Sequence[int], crew: Crew, use: Use, *, token_budget: int, learns: Learn) -> None:
    """Read some answers in micro-batches side by side and `use` each part; a gradient is made to "learn" alone."""
    pairs = row_pairs(answers, chosen)
    starts, rung, count = answers.starts, crew.policy.layout.rung, len(crew.members)
    groups = plan([pair for _, pair in pairs], token_budget=token_budget, crew=crew.seats, rung=rung)

    def read(group: list[int], member: int) -> None:
        loaded = crew.members[member]
        batch = collate([pairs[i][1] for i in group], pad_id=loaded.pad_id, rung=rung, device=loaded.device)
        with computing(loaded):
            hidden_NH = predicting(loaded.scorer, batch)
            logp_N = head_logps(hidden_NH, batch, loaded.scorer)
        whose, here, there = places(batch, [pairs[i][0] for i in group], starts)
        lengths = torch.tensor([len(answers.responses[i]) for i in whose], device=loaded.device)
        here_M, there_M = (torch.tensor(at, device=loaded.device) for at in (here, there))
        use(Part(whose, there_M, lengths, logp_N[here_M], hidden_NH[here_M]), member)

    def share(member: int) -> None:
        with torch.set_grad_enabled(learns == "learn"):
            for group in crew.turns(groups, member):
                read(group, member)

    side_by_side(share, range(min(count, len(groups))), workers=count)


class Values:
    """The value head: hidden states to the reward still to come, one linear function that begins at 0.

    Every member of a crew has a copy with gradients of its own, which are added in the order of the members.
    """

    def __init__(self, width: int, members: int, *, device: torch.device) -> None:
        self.head = nn.Linear(width, 1, device=device)
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)
        self.copies = [copy.deepcopy(self.head) for _ in range(members)]

    def of(self, hidden_MH: Tensor, member: int) -> Tensor:
        """Values of tokens, (M,), float32."""
        found: Tensor = self.copies[member](hidden_MH.float())[:, 0]
        return found

    def gather(self) -> None:
        """The gradients of the copies, added, as those of the head."""
        for name, weight in self.head.named_parameters():
            grads = [g for one in self.copies if (g := one.get_parameter(name).grad) is not None]
            weight.grad = torch.stack(grads).sum(0) if grads else None
            for one in self.copies:
                one.get_parameter(name).grad = None

    @torch.no_grad()
    def follow(self) -> None:
        """The copies as the head now is."""
        for one in self.copies:
            one.load_state_dict(self.head.state_dict())


def width_of(policy: Loaded) -> int:
    """H, the width of the hidden states that the head reads."""
    return int(policy.causal.get_output_embeddings().weight.shape[1])


@dataclass(frozen=True)
class Frozen:
    """The reference: the crew's own members with the adapter off, or a crew over a copy of the weights."""

    crew: Crew
    adapted: bool

    @contextlib.contextmanager
    def in_place(self) -> Iterator[Crew]:
        """The crew that computes as the reference inside the block."""
        with contextlib.ExitStack() as stack:
            if self.adapted:
                for member in self.crew.members:
                    stack.enter_context(adapter_off(member))
            yield self.crew


def reference_of(policy: Loaded, crew: Crew) -> Frozen:
    """The reference of a policy that has not moved yet; a copy of its weights where there is no adapter."""
    return Frozen(crew, adapted=True) if policy.adapted else Frozen(crew_of(second_copy(policy)), adapted=False)


@dataclass(frozen=True, slots=True)
class Measured:
    """Log-probabilities of every token under policy and reference, and its value: (N,) each, float64 on the CPU."""

    policy_N: Tensor
    reference_N: Tensor
    value_N: Tensor
    length_S: Tensor


def measure(answers: Answers, crew: Crew, frozen: Frozen, values: Values | None, *, token_budget: int) -> Measured:
    """Read all answers without a gradient, by policy and reference alike; values are 0 without a head."""
    every = range(len(answers.responses))
    count = int(answers.length_S.sum())
    policy_N, reference_N, value_N = torch.zeros(3, count, dtype=torch.float64)

    def note_policy(part: Part, member: int) -> None:
        policy_N[part.at_M.cpu()] = part.logp_M.double().cpu()
        if values is not None:
            value_N[part.at_M.cpu()] = values.of(part.hidden_MH, member).double().cpu()

    def note_reference(part: Part, member: int) -> None:
        reference_N[part.at_M.cpu()] = part.logp_M.double().cpu()

    over(answers, every, crew, note_policy, token_budget=WIDER * token_budget, learns="look")
    with frozen.in_place() as reference:
        over(answers, every, reference, note_reference, token_budget=WIDER * token_budget, learns="look")
    return Measured(policy_N, reference_N, value_N, answers.length_S)
