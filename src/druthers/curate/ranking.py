"""Rated responses to pairs: the graded comparisons that ratings and rankings hold."""

from __future__ import annotations

from itertools import combinations
from typing import Literal

from druthers.records import Candidate, Candidates, InputError, Pair, assistant

Pick = Literal["all", "extremes"]


def pairs_from_ranking(candidates: Candidates, *, margin_scale: float = 0.0, pick: Pick = "all") -> list[Pair]:
    """Pairs of the responses to one prompt, best against worst first; ties and empty responses give none.

    `margin_scale` is the margin, in units of the reward, of one point of score. `pick="extremes"` takes only the best
    and the worst response. The weights of a prompt's pairs sum to 1, so every prompt counts the same. Scores decide;
    where they are missing, ranks do (1 is best), and then a margin cannot be had.

    Raises InputError when a response has neither score nor rank.

    >>> from druthers.records import user
    >>> rated = Candidates(prompt=user("Name a fruit."), responses=(
    ...     Candidate(content="Plum.", score=3.0), Candidate(content="Carrot.", score=1.0)))
    >>> [(pair.chosen[0].content, pair.margin, pair.weight) for pair in pairs_from_ranking(rated, margin_scale=0.5)]
    [('Plum.', 1.0, 1.0)]
    """
    worth = _worth(candidates, margin_scale=margin_scale)
    usable = [response for response in candidates.responses if response.content.strip()]
    ordered = sorted(usable, key=lambda response: -worth[id(response)])
    choices = [(ordered[0], ordered[-1])] if pick == "extremes" and ordered else combinations(ordered, 2)
    unlike = {
        (a.content, b.content): (a, b) for a, b in choices if worth[id(a)] > worth[id(b)] and a.content != b.content
    }
    return [
        Pair(
            prompt=candidates.prompt,
            chosen=assistant(best.content),
            rejected=assistant(worst.content),
            margin=margin_scale * (worth[id(best)] - worth[id(worst)]),
            weight=1 / len(unlike),
            group=candidates.group,
            source=_source(best, worst),
        )
        for best, worst in unlike.values()
    ]


def _worth(candidates: Candidates, *, margin_scale: float) -> dict[int, float]:
    """The worth of each response by its object id: its score, or the negative of its rank."""
    responses = candidates.responses
    if all(response.score is not None for response in responses):
        return {id(response): float(response.score or 0) for response in responses}
    if all(response.rank is not None for response in responses) and not margin_scale:
        return {id(response): -float(response.rank or 0) for response in responses}
    missing = next(i for i, response in enumerate(responses) if response.score is None)
    rule = "a margin needs scores" if margin_scale else "every response needs a score, or every one a rank"
    raise InputError(
        f"prompt {candidates.prompt_id}: response {missing} has no score, but {rule}; rate it with `druthers judge`"
    )


def _source(best: Candidate, worst: Candidate) -> str:
    return best.source if best.source == worst.source else f"{best.source} over {worst.source}"
