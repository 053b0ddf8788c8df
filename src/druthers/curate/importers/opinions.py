"""Rows in which people or judges rate, rank or choose: tables of ratings, votes and thumbs, and lists of responses."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from druthers.curate.importers.choices import (
    Said,
    answers,
    build,
    candidates,
    choice,
    distinct,
    order,
    ranks,
    ratings,
    signed,
    spread,
    thumb,
    word,
)
from druthers.curate.importers.columns import RATING, Names, Row, brief, fields, items, named, number, required, text
from druthers.curate.importers.days import SHP as SHP_DATES
from druthers.curate.importers.faults import RowFault
from druthers.curate.importers.talk import Talk, answer, asked, check_json, messages, split_last
from druthers.records import Candidates

SHARED = ("prompt", "system", "group", "tools")
PROMPTS = ("prompt", "instruction", "question", "query", "history", "context", "input")
JUDGES = (
    *("annotator", "annotator_id", "user", "user_id", "worker", "worker_id"),
    *("rater", "judge", "judge_hash", "labeler"),
)
RESPONSES = ("response", "completion", "answer", "output", "reply")
THUMBS = ("label", "thumbs", "thumb", "feedback", "vote", "reaction")
CRITERIA = ("helpfulness", "correctness", "coherence")
"""Criteria of HelpSteer whose scale runs from worse to better; complexity and verbosity do not."""
LISTED = ("responses", "models", "sources")
STEMS = ("response", "answer", "completion", "output", "reply", "generation", "model")


def _named(*names: str) -> frozenset[str]:
    return frozenset((*SHARED, *PROMPTS, *JUDGES, "criterion", *names))


def _prompt(row: Row, names: Sequence[str] = PROMPTS) -> Talk:
    """The prompt under that of the names that is there; an instruction may have an input beside it."""
    given = [name for name in names if row.get(name) not in (None, "")] or ["prompt"]
    if given == ["instruction", "input"]:
        whole = f"{text('instruction', row['instruction'])}\n\n{text('input', row['input'])}"
        return asked("instruction", {**row, "instruction": whole})
    if len(given) > 1:
        raise RowFault(
            "malformed", f"{given[1]}: stands beside {given[0]!r}, and both may be the prompt; map one to ignore"
        )
    return asked(given[0], row)


def _by(row: Row) -> Said:
    """Who judged by what, for an opinion: what is not said is left out."""
    said = {"annotator": named(row, *JUDGES), "criterion": named(row, "criterion")}
    return {name: value for name, value in said.items() if value}


# ---------------------------------------------------------------- own lines


def from_candidates(row: Row) -> Candidates:
    """Our own lines of N responses, as `druthers sample` and `judge` write them."""
    if row.get("tools"):
        check_json("tools", row["tools"])
    if isinstance(row.get("prompt"), list):
        messages("prompt", row["prompt"])
    return build(dict(row))


# ---------------------------------------------------------------- one response a row

RATINGS = Names(_named(*RESPONSES, "rating", "score", "overall", "model", "source", *CRITERIA))


def from_ratings(row: Row) -> Candidates:
    """One rated response a row; ratings by several criteria stand in columns of their own, or with a `criterion`."""
    response, by = _one(row), _by(row)
    opinions = []
    for criterion, name in _rated(row):
        value = number(name, row[name])
        if value is not None:
            opinions.append(
                {"scale": "rating", "worth": (value,)} | by | ({"criterion": criterion} if criterion else {})
            )
    return candidates(row, _prompt(row), [response], opinions)


def _rated(row: Row) -> Iterator[tuple[str, str]]:
    """Criterion and column of each rating in a row."""
    overall = next((name for name in ("rating", "score", "overall") if row.get(name) is not None), None)
    if overall:
        yield "", overall
    for name in row:
        if name.startswith(RATING) or name in CRITERIA:
            yield name.removeprefix(RATING), name


TALK = "messages"
UNPAIRED = Names(_named(*RESPONSES, *THUMBS, TALK, "model", "source"))


def from_unpaired(row: Row) -> Candidates:
    """A thumb up or down on one response: TRL's unpaired rows, and logs of feedback.

    A whole conversation in `messages` ends in the response.
    """
    if row.get(TALK) is not None and not any(row.get(name) is not None for name in RESPONSES):
        before, last = split_last(messages(TALK, items(TALK, row[TALK])))
        if not before or not last:
            raise RowFault("malformed", "messages: must hold what was asked, and end in the answer that has the thumb")
        rest = {name: value for name, value in row.items() if name not in PROMPTS}
        return from_unpaired(rest | {TALK: None, "prompt": before, "response": last})
    response = _one(row)
    name = next((name for name in THUMBS if row.get(name) is not None), "label")
    worth = thumb(name, row.get(name))
    opinions = [] if worth is None else [{"scale": "rating", "worth": (worth,)} | _by(row)]
    return candidates(row, _prompt(row), [response], opinions)


def _one(row: Row) -> Said:
    name = next((name for name in RESPONSES if row.get(name) is not None), "response")
    found = {"content": answer(name, required(row, name)), "source": named(row, "model", "source")}
    return distinct([found])[0]


# ---------------------------------------------------------------- two responses a row

VOTED = ("winner", "answer", "choice", "preference", "preferred", "preference_strength", "overall_preference")
VOTES = Names(
    _named(*LISTED, *VOTED, "strength", "tie_kind", "shown_first", "votes", "individual_preference")
    | {"conversation_a", "conversation_b"},
    STEMS,
)


def from_votes(row: Row) -> Candidates:
    """Votes between two responses, in the order shown: one annotator a row, or a list of `votes`.

    HelpSteer's rows are votes too: `individual_preference` holds those of the annotators, whose names it does not give,
    and negative numbers are for the first response.
    """
    prompt, two = _compared(row)
    found = [said | _by(row) | _by(vote) for vote in _votes(row) if (said := _vote(vote)) is not None]
    first = word(row.get("shown_first"))
    if first in ("b", "2", "second"):
        two, found = two[::-1], [said | {"worth": said["worth"][::-1]} for said in found]
    elif first not in ("", "a", "1", "first"):
        raise RowFault("malformed", f"shown_first: must be a or b, but it is {brief(row['shown_first'])}")
    return candidates(row, prompt, two, found)


def _compared(row: Row) -> tuple[Talk, Sequence[Said]]:
    """The prompt and the two responses; two whole conversations share all but their last answers."""
    if row.get("conversation_a") is None:
        two = answers({name: value for name, value in row.items() if name not in VOTED})
        prompt = _prompt(row)
    else:
        sides = ("conversation_a", "conversation_b")
        talks = [split_last(messages(side, items(side, required(row, side)))) for side in sides]
        if talks[0][0] != talks[1][0]:
            raise RowFault(
                "prompt_mismatch", "conversation_a and conversation_b do not share the turns before the last answer"
            )
        prompt = talks[0][0]
        two = answers(
            {"responses": [talk[1] for talk in talks]} | {n: v for n, v in row.items() if n.startswith("model")}
        )
    if len(two) != 2:
        raise RowFault(
            "malformed", f"responses: a vote is between two, but there are {len(two)}; give rankings as ranks"
        )
    return prompt, distinct(two)


def _votes(row: Row) -> list[Row]:
    """Each vote of a row as a row of its own."""
    if row.get("individual_preference") is not None:
        given = items("individual_preference", row["individual_preference"])
        each = [fields(f"individual_preference.{i}", vote) for i, vote in enumerate(given)]
        return [{"overall_preference": vote.get("score")} for vote in each]
    if row.get("votes") is not None:
        return [fields(f"votes.{i}", vote) for i, vote in enumerate(items("votes", row["votes"]))]
    return [row]


def _vote(vote: Row) -> Said | None:
    name = next((name for name in VOTED if vote.get(name) is not None), "winner")
    if name == "answer":
        return signed(name, vote[name], toward="a", tie=vote.get("tie_kind"))
    if name in ("preference_strength", "overall_preference"):
        return signed(name, vote[name], toward="b", tie=vote.get("tie_kind"))
    said = choice(name, vote.get(name), strength=vote.get("strength"))
    kind = word(vote.get("tie_kind"))
    return said | {"tie": kind} if said and kind in ("both_good", "both_bad") and len(set(said["worth"])) == 1 else said


SHP = Names(
    frozenset(
        (
            *("history", "human_ref_A", "human_ref_B", "score_A", "score_B", "labels", "group", "prompt", "system"),
            *SHP_DATES,
        )
    ),
    open=True,
)


def from_shp(row: Row) -> Candidates:
    """SHP: two comments on a post with their scores; without scores the label alone is a choice."""
    two = [{"content": answer(name, required(row, name))} for name in ("human_ref_A", "human_ref_B")]
    scores = [number(name, row.get(name)) for name in ("score_A", "score_B")]
    label = None if row.get("labels") is None else word(row["labels"])
    if label not in (None, "0", "1"):
        raise RowFault("malformed", f"labels: must be 1 (A is preferred) or 0 (B is), but it is {brief(row['labels'])}")
    if None not in scores:
        a, b = (score or 0.0 for score in scores)
        if label and a != b and (a > b) != (label == "1"):
            raise RowFault("malformed", f"labels: {label} prefers the response with the lower score ({a:g} and {b:g})")
        said = ratings("score", scores, of=2)
    else:
        said = choice("labels", {"1": "a", "0": "b"}.get(label or "", ""))
    return candidates(row, _prompt(row, ("prompt", "history")), distinct(two), [said] if said else [])


# ---------------------------------------------------------------- N responses a row

RANKING = Names(
    _named(*LISTED, "generations", "answers", "ratings", "scores", "ranks", "order"),
    (*STEMS, "rating", "score", "rank"),
)


def from_ranking(row: Row) -> Candidates:
    """N responses in a row with the rank of each (1 the best, equal ranks tie), a rating of each, or their order.

    Ranks and ratings are lists, or objects of such lists by criterion, or stand on the responses themselves.
    """
    listed = next((row[name] for name in ("responses", "generations", "answers") if row.get(name) is not None), None)
    rest = {name: value for name, value in row.items() if name not in ("generations", "answers")}
    responses = answers(rest if listed is None else rest | {"responses": listed})
    found = list(_lists(row, responses)) or list(_on_responses(row, listed, len(responses)))
    opinions = [_by(row) | said for said in found]
    return candidates(row, _prompt(row), responses, opinions)


def _lists(row: Row, responses: Sequence[Said]) -> Iterator[Said]:
    of = len(responses)
    for name, read in (("ratings", ratings), ("scores", ratings), ("ranks", ranks)):
        if row.get(name) is not None:
            for criterion, given in _by_criterion(name, row[name]):
                if said := read(name, items(name, given), of=of):
                    yield said | criterion
    if row.get("order") is not None:
        yield order("order", items("order", row["order"]), names=[str(i) for i in range(of)])


def _by_criterion(name: str, value: object) -> list[tuple[Said, object]]:
    if isinstance(value, dict):
        return [({"criterion": str(criterion)}, given) for criterion, given in value.items()]
    return [({}, value)]


def _on_responses(row: Row, listed: object, of: int) -> Iterator[Said]:
    """Ratings and ranks that stand on the responses, or in a column for each."""
    given = items("responses", listed) if listed is not None else []
    for name, read in (("rating", ratings), ("score", ratings), ("rank", ranks)):
        column = [value for _, value in spread(row, (name,))]
        if not column and any(isinstance(one, dict) and one.get(name) is not None for one in given):
            column = [one.get(name) if isinstance(one, dict) else None for one in given]
        if column and (said := read(name, column, of=of)):
            yield said


ULTRAFEEDBACK = Names(frozenset(("instruction", "prompt", "completions", "group", "system", "tools")), open=True)
ASPECT = "Rating"


def from_ultrafeedback(row: Row) -> Candidates:
    """UltraFeedback: completions with an overall score, and ratings by aspect, of which "N/A" is none."""
    given = [
        fields(f"completions.{i}", one) for i, one in enumerate(items("completions", required(row, "completions")))
    ]
    if not given:
        raise RowFault("malformed", "completions: is empty; a row needs at least one")
    responses = []
    for i, one in enumerate(given):
        content = answer(f"completions.{i}.response", one.get("response"))
        responses.append({"content": content, "source": named(one, "model")})
    opinions = []
    overall = ratings("completions.overall_score", [one.get("overall_score") for one in given], of=len(given))
    if overall:
        opinions.append(overall)
    for aspect in _aspects(given):
        column = [_aspect(f"completions.{i}.annotations.{aspect}", one, aspect) for i, one in enumerate(given)]
        if said := ratings(f"completions.annotations.{aspect}", column, of=len(given)):
            opinions.append(said | {"criterion": aspect})
    return candidates(row, _prompt(row, ("instruction", "prompt")), responses, opinions)


def _aspects(given: Sequence[Row]) -> list[str]:
    """The aspects in order of first appearance."""
    found = (one.get("annotations") for one in given)
    return list(dict.fromkeys(aspect for each in found if isinstance(each, dict) for aspect in each))


def _aspect(name: str, completion: Row, aspect: str) -> object:
    found = (completion.get("annotations") or {}) if isinstance(completion.get("annotations"), dict) else {}
    value = found.get(aspect)
    if isinstance(value, dict):
        return value.get(ASPECT)
    if value is not None and not isinstance(value, int | float | str):
        raise RowFault("malformed", f"{name}: must be an object with a 'Rating', but it is {brief(value)}")
    return value
