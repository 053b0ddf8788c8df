"""One pass over a set of pairs: forward and, where it is learned from, backward, micro-batch by micro-batch.

Letters: C pair axis (0 chosen, 1 rejected), B pairs of a micro-batch, P pairs of the whole set, K what is read of every
response (`distributions.channels`: the sum of log-probabilities first).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from druthers.batching import Batch, collate, plan
from druthers.crew import Crew
from druthers.distributions import channels
from druthers.losses import Loss, State, Terms
from druthers.models import Loaded, computing
from druthers.threads import side_by_side
from druthers.tokens import TokenizedPair
from druthers.train.logs import Scored
from druthers.train.reference import Known, Reference

Learn = Literal["learn", "look", "start"]
"""Backward too; forward alone; or not even that: before the first step the policy is the reference."""
FIELDS = {
    "head": "policy_head_CB",
    "unlikely": "unlikely_CB",
    "divergence": "divergence_CB",
    "certainty": "certainty_CB",
}
"""What is read of a response, and the term of the loss that it is."""
Draw = Callable[[TokenizedPair], float]


@dataclass(frozen=True)
class Pass:
    """What stays the same over the micro-batches of one set."""

    pairs: Sequence[TokenizedPair]
    crew: Crew
    scores: Reference
    loss: Loss
    token_budget: int

    @property
    def names(self) -> tuple[str, ...]:
        """What is read of every response."""
        return channels(self.loss.needs)

    def table(self) -> Table:
        """Room for all that is found."""
        K, P = len(self.names), len(self.pairs)
        return Table(self.names, torch.zeros(2 * K + 7, P, dtype=torch.float64))

    def over(self, table: Table, learn: Learn, objective: Callable[[list[int], Read], Tensor]) -> int:
        """Fill the table; to "learn", also the backward of `objective`, of every micro-batch. Returns its tokens."""
        crew, learns = self.crew, learn == "learn"

        def backward(value: Tensor, member: int) -> None:
            if learns:
                value.backward()  # type: ignore[no-untyped-call]
                crew.collect(member)

        def run(group: list[int], member: int) -> int:
            if not group:  # the shortest pair, counted nowhere: all ranks ask for the weights equally often
                shortest = min(self.pairs, key=lambda pair: pair.longest)
                backward(0.0 * self.read([shortest], crew.members[member], learn).policy_KCB.sum(), member)
                return 0
            found = self.read([self.pairs[i] for i in group], crew.members[member], learn)
            backward(objective(group, found), member)
            table.put(group, found)
            return found.batch.tokens

        world, count = crew.world, len(crew.members)
        budget, rung = self.token_budget * world.size, crew.policy.layout.rung
        groups = plan(self.pairs, token_budget=budget, crew=crew.seats, rung=rung)

        def share(member: int) -> int:
            with torch.set_grad_enabled(learns):
                return sum(run(group, member) for group in crew.turns(groups, member))

        tokens = sum(side_by_side(share, range(min(count, len(groups))), workers=count))
        crew.gather()
        world.sum(table.rows)
        return int(world.sum(torch.tensor(tokens)))

    def read(self, some: Sequence[TokenizedPair], policy: Loaded, learn: Learn) -> Read:
        """One micro-batch, by policy and reference."""
        batch = collate(some, pad_id=policy.pad_id, rung=policy.layout.rung, device=policy.device)
        needs = self.loss.needs
        reference_CB = self.scores(batch, some, policy)
        head_CB = self.scores.head(batch, some, policy) if "head" in needs else None
        if learn == "start" and not needs:
            return Read(batch, reference_CB[None], reference_CB)
        other = self.scores.hidden(batch, policy) if "divergence" in needs else None
        with computing(policy):
            policy_KCB = policy.read(batch, needs=needs, other=other).double()
        return Read(batch, policy_KCB, reference_CB, head_CB)


@dataclass(frozen=True, slots=True)
class Read:
    """A micro-batch with what the policy (K, 2, B) and the reference (2, B) say of it."""

    batch: Batch
    policy_KCB: Tensor
    reference_CB: Tensor
    head_CB: Tensor | None = None


@dataclass(frozen=True)
class Table:
    """What was found of all pairs, a column each: policy (K, 2, P), reference, its first tokens, lengths, losses."""

    names: tuple[str, ...]
    rows: Tensor

    @property
    def policy_KCP(self) -> Tensor:
        """What the policy says, by `names`."""
        return self.rows[: 2 * len(self.names)].view(len(self.names), 2, -1)

    @property
    def others_3CP(self) -> Tensor:
        """The reference's sums and those of the first tokens, and lengths."""
        return self.rows[2 * len(self.names) : -1].view(3, 2, -1)

    @property
    def loss_P(self) -> Tensor:
        """The losses."""
        return self.rows[-1]

    def put(self, group: list[int], found: Read) -> None:
        """A micro-batch in its columns."""
        self.policy_KCP[:, :, group] = found.policy_KCB.detach().cpu()
        self.others_3CP[0][:, group] = found.reference_CB.cpu()
        if found.head_CB is not None:
            self.others_3CP[1][:, group] = found.head_CB.cpu()
        self.others_3CP[2][:, group] = found.batch.length_CB.double().cpu()

    def scored(self, pairs: Sequence[TokenizedPair], tokens: int, state: State) -> Scored:
        """As the logs take it."""
        logp_CP, (reference_CP, _, length_CP) = self.policy_KCP[0], self.others_3CP
        return Scored(pairs, logp_CP, logp_CP - reference_CP, length_CP, self.loss_P, tokens, state)


def run_pairs(
    pairs: Sequence[TokenizedPair],
    crew: Crew,
    scores: Reference,
    loss: Loss,
    *,
    token_budget: int,
    learn: Learn,
    state: State | None = None,
    draw: Draw | None = None,
) -> Scored:
    """Forward (and, to "learn", backward) over all micro-batches of a set; to "start", the policy is the reference.

    The objective is sum(w l) / sum(w) over the whole set, so it does not depend on how the set is cut. A loss that
    depends on other pairs of the set is computed once on the scores of all, and a second pass brings its gradient by
    those scores back to the weights. Every member of the crew, on every rank, has its own share of the micro-batches,
    so the gradient is summed in one order, whoever is faster; what was found of all pairs stands on every rank.

    `state` is what the loss remembers; `draw` gives it a number in [0, 1) a pair.
    """
    weight_P = torch.tensor([pair.weight for pair in pairs], dtype=torch.float64)
    total = float(weight_P.sum())
    learn = "look" if learn == "learn" and not total > 0 else learn
    terms = Terms(
        p_B=torch.tensor([pair.p for pair in pairs], dtype=torch.float64),
        margin_B=torch.tensor([pair.margin for pair in pairs], dtype=torch.float64),
        weight_B=weight_P,
        length_CB=torch.zeros(2, len(pairs), dtype=torch.float64),
        mean_length=mean_length(pairs, total),
        draw_B=torch.tensor([draw(pair) for pair in pairs], dtype=torch.float64) if draw else None,
        state=state or {},
    )
    whole = Pass(pairs, crew, scores, loss, token_budget)
    table = whole.table()
    if loss.coupled or loss.follow is not None:
        return together(whole, table, terms, learn, total=total)

    def objective(group: list[int], found: Read) -> Tensor:
        batch = found.batch
        own = replace(
            terms,
            p_B=batch.p_B.double(),
            margin_B=batch.margin_B.double(),
            weight_B=batch.weight_B.double(),
            length_CB=batch.length_CB.double(),
            draw_B=None if terms.draw_B is None else terms.draw_B[group].to(batch.p_B.device),
            reference_head_CB=found.head_CB,
        )
        loss_B = loss.of(found.policy_KCB[0], found.reference_CB, with_read(own, whole.names, found.policy_KCB))
        table.loss_P[group] = loss_B.detach().cpu()
        return (loss_B * batch.weight_B).sum() / (total or 1.0)

    tokens = whole.over(table, learn, objective)
    return table.scored(pairs, tokens, terms.state)


def together(whole: Pass, table: Table, terms: Terms, learn: Learn, *, total: float) -> Scored:
    """A loss that sees all pairs of the set at once: their scores, its gradient by these, and that of the weights."""
    loss, nothing = whole.loss, torch.zeros(())
    tokens = whole.over(table, "start" if learn == "start" else "look", lambda group, found: nothing)
    reference_CP, head_CP, length_CP = table.others_3CP
    policy_KCP = table.policy_KCP.clone().requires_grad_(learn == "learn")
    terms = replace(terms, length_CB=length_CP, reference_head_CB=head_CP)
    if loss.follow is not None and (learn == "learn" or not terms.state):
        with torch.no_grad():
            found = with_read(terms, whole.names, policy_KCP)
            state = loss.follow(policy_KCP[0], reference_CP, found)
        terms = replace(terms, state=state)
    loss_P = loss.of(policy_KCP[0], reference_CP, with_read(terms, whole.names, policy_KCP))
    table.loss_P.copy_(loss_P.detach())
    scored = table.scored(whole.pairs, tokens, terms.state)
    if learn == "learn":
        (grad_KCP,) = torch.autograd.grad((loss_P * terms.weight_B).sum() / total, policy_KCP)
        again = replace(whole, scores=Known(whole.scores))
        again.over(again.table(), "learn", lambda group, found: by_scores(grad_KCP[:, :, group], found.policy_KCB))
    return scored


def by_scores(grad_KCB: Tensor, policy_KCB: Tensor) -> Tensor:
    """What has this gradient by the scores."""
    return (grad_KCB.to(policy_KCB.device) * policy_KCB).sum()


def with_read(terms: Terms, names: Sequence[str], policy_KCB: Tensor) -> Terms:
    """The terms with what was read of the policy beside the sums."""
    found: Mapping[str, Tensor] = {
        FIELDS[name]: value.detach() if name == "certainty" else value
        for name, value in zip(names[1:], policy_KCB[1:], strict=True)
    }
    return replace(terms, **found)  # type: ignore[arg-type]


def mean_length(pairs: Sequence[TokenizedPair], total: float) -> float:
    """The weighted mean of the scored tokens of the chosen responses; 1 where no pair has a weight."""
    return sum(pair.weight * sum(pair.chosen_scored) for pair in pairs) / total if total > 0 else 1.0
