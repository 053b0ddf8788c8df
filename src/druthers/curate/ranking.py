"""Rated responses to pairs: the graded comparisons that ratings and rankings hold."""

from __future__ import annotations

from collections.abc import Collection

from druthers.records import Candidate, Candidates, InputError, Pair, assistant


def pairs_from_ranking(
    candidates: Candidates,
    *,
    margin_scale: float = 0.0,
    most: int | None = None,
    must: Collection[str] = (),
    length_cost: float = 0.0,
) -> list[Pair]:
    """Pairs of the responses to one prompt, the clearest first; ties and empty responses give none.

    How clear a pair is: the difference in score, less `length_cost` for every word that chosen has fewer than rejected
    (a preference that comes with brevity teaches brevity first); pairs left with nothing are dropped. `margin_scale`
    is the margin, in units of the reward, of one point of it. `most` keeps that many pairs of a prompt, the clearest;
    1 is best against worst. A response that breaks one of the rules named in `must` is never the chosen one.
    The weights of a prompt's pairs sum to 1, so every prompt counts the same. Scores decide; where they are missing,
    ranks do (1 is best).

    Raises InputError when a response has neither score nor rank, or no score where a margin or a cost of length is
    wanted.

    >>> from druthers.records import user
    >>> rated = Candidates(prompt=user("Name a fruit."), responses=(
    ...     Candidate(content="Plum.", score=3.0), Candidate(content="A carrot.", score=1.0)))
    >>> [(p.chosen[0].content, p.margin) for p in pairs_from_ranking(rated, margin_scale=0.5, length_cost=0.2)]
    [('Plum.', 0.9)]
    """
    worth = _worth(candidates, graded=bool(margin_scale or length_cost))
    usable = [response for response in candidates.responses if response.content.strip()]
    ordered = sorted(usable, key=lambda response: -worth[id(response)])
    fit = {id(response) for response in usable if all(response.rules.get(rule, 1.0) for rule in must)}
    found: dict[tuple[str, str], tuple[float, Candidate, Candidate]] = {}
    for i, best in enumerate(ordered):
        for worst in reversed(ordered[i + 1 :]):
            shorter = max(0, _words(worst) - _words(best))
            clear = worth[id(best)] - worth[id(worst)] - length_cost * shorter
            if id(best) in fit and clear > 0 and best.content != worst.content:
                found[best.content, worst.content] = clear, best, worst
    kept = sorted(found.values(), key=lambda each: -each[0])[:most]
    return [
        Pair(
            prompt=candidates.prompt,
            chosen=assistant(best.content),
            rejected=assistant(worst.content),
            margin=margin_scale * clear,
            weight=1 / len(kept),
            group=candidates.group,
            source=_source(best, worst),
        )
        for clear, best, worst in kept
    ]


def _words(response: Candidate) -> int:
    return len(response.content.split())


def _worth(candidates: Candidates, *, graded: bool) -> dict[int, float]:
    """The worth of each response by its object id: its score, or the negative of its rank."""
    responses = candidates.responses
    if all(response.score is not None for response in responses):
        return {id(response): float(response.score or 0) for response in responses}
    if all(response.rank is not None for response in responses) and not graded:
        return {id(response): -float(response.rank or 0) for response in responses}
    missing = next(i for i, response in enumerate(responses) if response.score is None)
    rule = "a margin needs scores" if graded else "every response needs a score, or every one a rank"
    raise InputError(
        f"prompt {candidates.prompt_id}: response {missing} has no score, but {rule}; rate it with `druthers judge`"
    )


def _source(best: Candidate, worst: Candidate) -> str:
    return best.source if best.source == worst.source else f"{best.source} over {worst.source}"
