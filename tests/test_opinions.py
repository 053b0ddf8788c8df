"""What people and judges say, in every form, becomes the opinions that are meant; every bad row has a reason."""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from druthers import storage
from druthers.curate import importers
from druthers.curate.importers import FORMS, Form, Importer, RowFault, detect, read, read_pair
from druthers.records import Candidate, Candidates, InputError, Opinion, Pair, assistant, user

HEBREW, EMOJI = "שָׁלוֹם\u200f!", "👩‍🌾🍇 \U0001d11e"
TOOLS = [{"type": "function", "function": {"name": "clock", "parameters": {}}}]
TALK = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "Hi"},
    {"role": "assistant", "content": HEBREW},
    {"role": "user", "content": EMOJI},
]


def said(row: dict[str, Any], form: Form, **more: Any) -> tuple[list[str], list[dict[str, Any]]]:
    """The texts of the responses and the opinions on them, each without what it leaves at its default."""
    (item,) = read(row, form, **more).items
    assert isinstance(item, Candidates)
    return [one.content for one in item.responses], [opinion.line() for opinion in item.opinions]


def rating(*worth: float | None, **by: str) -> dict[str, Any]:
    return by | {"scale": "rating", "worth": list(worth)}


def rank(*worth: float | None, **by: str) -> dict[str, Any]:
    return by | {"scale": "rank", "worth": list(worth)}


def choice(*worth: float | None, **by: str) -> dict[str, Any]:
    return by | {"scale": "choice", "worth": list(worth)}


def studio(*results: dict[str, Any], who: Any = 3, data: dict[str, Any] | None = None, **note: Any) -> dict[str, Any]:
    asked = {"prompt": "Q", "answer1": "x", "answer2": "y"} if data is None else data
    return {"id": 1, "data": asked, "annotations": [{"completed_by": who, "result": list(results)} | note]}


def result(kind: str, value: dict[str, Any], *, name: str = "pw", to: str = "t") -> dict[str, Any]:
    return {"id": "r", "type": kind, "value": value, "from_name": name, "to_name": to}


def manifest(label: Any, responses: list[str] | None = None, **meta: Any) -> dict[str, Any]:
    return {
        "source": "Q",
        "responses": responses or ["x", "y"],
        "pref": label,
        "pref-metadata": {"type": "groundTruth/custom"} | meta,
    }


def worker(content: Any, who: str = "w1") -> dict[str, Any]:
    return {"workerId": who, "timeSpentInSeconds": 4.5, "answerContent": content}


def record(responses: dict[str, Any], suggestions: dict[str, Any] | None = None, **fields: Any) -> dict[str, Any]:
    asked = {"prompt": "Q", "response_1": "x", "response_2": "y"} | fields
    return {"id": "r", "fields": asked, "metadata": {}, "responses": responses, "suggestions": suggestions or {}}


XY = {"prompt": "Q", "response_a": "x", "response_b": "y"}
COMPLETIONS = [
    {"model": "m1", "response": "x", "overall_score": 8.0, "annotations": {"honesty": {"Rating": "5"}}},
    {"model": "m2", "response": "y", "annotations": {"honesty": {"Rating": "N/A"}, "tone": {"Rating": "3"}}},
]
DIMENSIONS = {"ordinalRankingDimensions": [{"name": "Clarity", "responseRankings": [2, 3, 1]}]}
GOLDEN: list[tuple[Form, dict[str, Any], list[str], list[dict[str, Any]]]] = [
    # one response a row
    ("ratings", {"prompt": "Q", "response": "x", "rating": 7}, ["x"], [rating(7.0)]),
    (
        "ratings",
        {"instruction": "Q", "input": "I", "completion": "x", "score": "4.5", "user": 3, "criterion": "tone"},
        ["x"],
        [rating(4.5, annotator="3", criterion="tone")],
    ),
    (
        "ratings",
        {"prompt": "Q", "response": "x", "helpfulness": 3, "correctness": 4, "rating.tone": 1},
        ["x"],
        [rating(3.0, criterion="helpfulness"), rating(4.0, criterion="correctness"), rating(1.0, criterion="tone")],
    ),
    (
        "ratings",
        {"prompt": TALK, "response": [{"role": "assistant", "content": EMOJI}], "rating": 1},
        [EMOJI],
        [rating(1.0)],
    ),
    ("unpaired", {"prompt": "Q", "completion": "x", "label": True}, ["x"], [rating(1.0)]),
    ("unpaired", {"prompt": "Q", "response": "x", "thumbs": "👎", "user_id": "u"}, ["x"], [rating(0.0, annotator="u")]),
    (
        "unpaired",
        {"messages": [*TALK, {"role": "assistant", "content": "x"}], "feedback": "👎"},
        ["x"],
        [rating(0.0)],
    ),
    ("unpaired", {"prompt": TALK, "completion": HEBREW, "label": 0, "tools": TOOLS}, [HEBREW], [rating(0.0)]),
    # votes
    ("votes", XY | {"winner": "a"}, ["x", "y"], [choice(2.0, 0.0)]),
    (
        "votes",
        XY | {"winner": "model_b", "strength": "much better", "judge": "j"},
        ["x", "y"],
        [choice(0.0, 3.0, annotator="j")],
    ),
    ("votes", XY | {"winner": "tie (bothbad)"}, ["x", "y"], [choice(0.0, 0.0, tie="both_bad")]),
    ("votes", XY | {"winner": "tie", "tie_kind": "both_good"}, ["x", "y"], [choice(0.0, 0.0, tie="both_good")]),
    ("votes", XY | {"answer": -1, "criterion": "tone"}, ["x", "y"], [choice(0.0, 1.0, criterion="tone")]),
    ("votes", XY | {"answer": 0, "tie_kind": "equal"}, ["x", "y"], [choice(0.0, 0.0)]),
    ("votes", XY | {"winner": "a", "shown_first": "b"}, ["y", "x"], [choice(0.0, 2.0)]),
    (
        "votes",
        {"prompt": "Q", "response_1": "x", "response_2": "y", "preference_strength": -3},
        ["x", "y"],
        [choice(3.0, 0.0)],
    ),
    (
        "votes",
        {
            "context": TALK,
            "response1": "x",
            "response2": EMOJI,
            "overall_preference": 1,
            "individual_preference": [{"score": 2, "reasoning": "…"}, {"score": 0}],
        },
        ["x", EMOJI],
        [choice(0.0, 2.0), choice(0.0, 0.0)],
    ),
    (
        "votes",
        {"conversation_a": [*TALK, *({"role": "assistant", "content": "x"},)]}
        | {"conversation_b": [*TALK, *({"role": "assistant", "content": "y"},)]}
        | {"winner": "model_a", "model_a": "m1", "model_b": "m2"},
        ["x", "y"],
        [choice(2.0, 0.0)],
    ),
    (
        "votes",
        {"conversation_a": [*TALK, *({"role": "assistant", "content": "x"},)]}
        | {"conversation_b": [*TALK, *({"role": "assistant", "content": "y"},)]}
        | {"question_id": "q", "winner": "tie (bothbad)", "judge": "arena_user_7", "turn": 1, "anony": True}
        | {"model_a": "m1", "model_b": "m2", "language": "German", "tstamp": 1682351591.13}
        | {"openai_moderation": {"flagged": False}, "toxic_chat_tag": {"roberta-large": {"flagged": False}}},
        ["x", "y"],
        [choice(0.0, 0.0, annotator="arena_user_7", tie="both_bad")],
    ),
    (
        "votes",
        {"prompt": "Q", "responses": ["x", "y"], "votes": [{"annotator": "a", "winner": "b"}, {"winner": "skip"}]},
        ["x", "y"],
        [choice(0.0, 2.0, annotator="a")],
    ),
    # N responses a row
    (
        "ranking",
        {"prompt": "Q", "responses": ["x", "y", "z"], "ranks": [2, 1, 1]},
        ["x", "y", "z"],
        [rank(-2.0, -1.0, -1.0)],
    ),
    (
        "ranking",
        {"prompt": "Q", "responses": ["x", "y", "z"], "order": [2, [0, 1]]},
        ["x", "y", "z"],
        [rank(-2.0, -2.0, -1.0)],
    ),
    (
        "ranking",
        {
            "prompt": "Q",
            "responses": ["x", "y"],
            "ratings": {"tone": [1, None], "sense": ["N/A", "3"]},
            "annotator": "a",
        },
        ["x", "y"],
        [rating(1.0, None, annotator="a", criterion="tone"), rating(None, 3.0, annotator="a", criterion="sense")],
    ),
    ("ranking", XY | {"rating_a": 3, "rating_b": 4}, ["x", "y"], [rating(3.0, 4.0)]),
    (
        "ranking",
        {
            "prompt": "\n\nHuman: Hi\n\nAssistant: Yes?\n\nHuman: Q\n\nAssistant: ",
            "answers": [{"answer": "x", "model": "m", "rank": 1.0}, {"answer": "y", "rank": 2.0}],
        },
        ["x", "y"],
        [rank(-1.0, -2.0)],
    ),
    ("ranking", {"instruction": "Q", "generations": ["x", "y"], "ratings": ["4", "5"]}, ["x", "y"], [rating(4.0, 5.0)]),
    (
        "ultrafeedback",
        {"instruction": "Q", "completions": COMPLETIONS, "source": "flan"},
        ["x", "y"],
        [rating(8.0, None), rating(5.0, None, criterion="honesty"), rating(None, 3.0, criterion="tone")],
    ),
    (
        "shp",
        {"history": "Q", "human_ref_A": "x", "human_ref_B": "y", "score_A": 9, "score_B": 2, "labels": 1},
        ["x", "y"],
        [rating(9.0, 2.0)],
    ),
    ("shp", {"history": "Q", "human_ref_A": "x", "human_ref_B": "y", "labels": 0}, ["x", "y"], [choice(0.0, 2.0)]),
    # Ground Truth
    ("groundtruth", manifest({"winner": "A", "posterior": 0.94}), ["x", "y"], [choice(2.0, 0.0)]),
    (
        "groundtruth",
        manifest({"winner": "A", "votes": {"A": 1, "B": 1}}),
        ["x", "y"],
        [choice(2.0, 0.0), choice(0.0, 2.0)],
    ),
    ("groundtruth", manifest({"preference": {"label": "both-bad"}}), ["x", "y"], [choice(0.0, 0.0, tie="both_bad")]),
    ("groundtruth", manifest(1, **{"class-name": "B", "confidence": 0.9}), ["x", "y"], [choice(0.0, 2.0)]),
    (
        "groundtruth",
        manifest(
            {"answers": [worker({"preference": {"label": "A"}}), worker({"preference": {"a": False, "b": True}}, "w2")]}
        ),
        ["x", "y"],
        [choice(2.0, 0.0, annotator="w1"), choice(0.0, 2.0, annotator="w2")],
    ),
    (
        "groundtruth",
        manifest([{"workerId": "w1", "annotationData": {"content": json.dumps(DIMENSIONS)}}], ["x", "y", EMOJI]),
        ["x", "y", EMOJI],
        [rank(-2.0, -3.0, -1.0, annotator="w1", criterion="Clarity")],
    ),
    (
        "groundtruth",
        {"source": json.dumps({"prompt": HEBREW, "responses": ["x", "y"]})}
        | {"l": {"tone_1": 4, "tone_2": 2}, "l-metadata": {}},
        ["x", "y"],
        [rating(4.0, None, criterion="tone"), rating(None, 2.0, criterion="tone")],
    ),
    # Label Studio
    ("labelstudio", studio(result("pairwise", {"selected": "right"})), ["x", "y"], [choice(0.0, 2.0, annotator="3")]),
    (
        "labelstudio",
        studio(
            result("rating", {"rating": 4}, name="tone", to="answer2"),
            result("rating", {"rating": 5}, name="rating", to="txt-1"),
            result("textarea", {"text": ["why not"]}, name="why"),
            result("choices", {"choices": ["Tie"]}, name="better"),
            who={"id": 4, "email": "ann@example.org"},
        ),
        ["x", "y"],
        [
            rating(None, 4.0, annotator="ann@example.org", criterion="tone"),
            rating(5.0, None, annotator="ann@example.org"),
            choice(0.0, 0.0, annotator="ann@example.org"),
        ],
    ),
    (
        "labelstudio",
        studio(
            result("ranker", {"ranker": {"rank_1": ["c"], "rank_2": ["a", "b"], "_": []}}, name="sense"),
            data={"prompt": TALK, "items": [{"id": i, "title": i, "body": i + HEBREW} for i in "abc"]},
        ),
        [i + HEBREW for i in "abc"],
        [rank(-2.0, -2.0, -1.0, annotator="3")],
    ),
    # Argilla
    (
        "argilla",
        record({"preference": [{"value": "response_2", "user_id": "u"}], "tone_1": [{"value": 4, "user_id": "u"}]}),
        ["x", "y"],
        [choice(0.0, 2.0, annotator="u"), rating(4.0, None, annotator="u", criterion="tone")],
    ),
    (
        "argilla",
        record({"rank": [{"value": ["response_2", "response_1"], "user_id": "u"}]}),
        ["x", "y"],
        [rank(-2.0, -1.0, annotator="u")],
    ),
    (
        "argilla",
        record({}, {"tone_2": {"value": 3, "score": None, "agent": "m"}}, chat=None),
        ["x", "y"],
        [rating(None, 3.0, annotator="suggestion:m", criterion="tone")],
    ),
    (
        "argilla",
        {"prompt": TALK, "response": EMOJI, "rating.responses": [4, 2, None], "rating.responses.users": ["u", "v", "w"]}
        | {"rating.responses.status": ["submitted", "discarded", "submitted"], "rating.suggestion": 1, "id": "r"},
        [EMOJI],
        [rating(4.0, annotator="u")],
    ),
    (
        "argilla",
        {"prompt": "Q", "reply_1": "x", "reply_2": "y", "reply_3": "z", "external_id": "e", "rank-suggestion": None}
        | {
            "rank": [
                {
                    "user_id": "u",
                    "status": "submitted",
                    "value": {"rank": [1, 1, 2], "value": ["reply_3", "reply_1", "reply_2"]},
                }
            ]
        },
        ["x", "y", "z"],
        [rank(-1.0, -2.0, -1.0, annotator="u")],
    ),
]


@pytest.mark.parametrize(("form", "row", "responses", "opinions"), GOLDEN)
def test_each_form_is_recognised_and_gives_what_is_meant(
    form: Form, row: dict[str, Any], responses: list[str], opinions: list[dict[str, Any]]
) -> None:
    assert detect([row]) == form
    assert said(row, form) == (responses, opinions)


TABLES = ("ratings", "ranking", "votes", "unpaired")
"""Forms that come as CSV."""


@pytest.mark.parametrize(("form", "row", "responses", "opinions"), GOLDEN)
def test_texts_of_json_in_cells_mean_what_they_hold(
    form: Form, row: dict[str, Any], responses: list[str], opinions: list[dict[str, Any]]
) -> None:
    if form in TABLES:
        cells = {
            name: value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
            for name, value in row.items()
        }
        if "completion" in cells or "response" in cells or not isinstance(row.get("ratings"), dict):
            assert said(cells, form, cells=True) == (responses, opinions)


def test_the_prompt_keeps_its_turns_system_prompt_tools_and_group() -> None:
    row = {"prompt": TALK, "response": "x", "rating": 1, "tools": json.dumps(TOOLS), "group": "de", "model": "m"}
    (item,) = read(row, "ratings").items
    assert isinstance(item, Candidates)
    assert [m.template_form() for m in item.prompt] == TALK
    assert (item.tools, item.group, item.responses[0].source) == (TOOLS, "de", "m")
    (item,) = read({"prompt": "Q", "system": "Be brief.", "completion": "x", "label": True}, "unpaired").items
    assert [m.role for m in item.prompt] == ["system", "user"]


def test_models_are_the_sources_of_their_responses() -> None:
    rows: list[tuple[Form, dict[str, Any]]] = [
        ("votes", XY | {"winner": "a", "model_a": "m1", "model_b": "m2"}),
        ("ranking", {"prompt": "Q", "responses": ["x", "y"], "ranks": [1, 2], "models": ["m1", "m2"]}),
        ("ultrafeedback", {"instruction": "Q", "completions": COMPLETIONS}),
    ]
    for form, row in rows:
        (item,) = read(row, form).items
        assert isinstance(item, Candidates)
        assert [one.source for one in item.responses] == ["m1", "m2"]


# ---------------------------------------------------------------- pairs of other services

OPENAI = {
    "input": {
        "messages": [{"role": "developer", "content": "Be brief."}, *TALK[1:]],
        "tools": TOOLS,
        "parallel_tool_calls": True,
    },
    "preferred_output": [{"role": "assistant", "content": [{"type": "text", "text": HEBREW}], "refusal": None}],
    "non_preferred_output": {"role": "assistant", "content": "no"},
}
SAGEMAKER = {
    "schemaVersion": "bedrock-conversation-2024",
    "system": [{"text": "Be "}, {"text": "brief."}],
    "messages": [
        *({"role": turn["role"], "content": [{"text": turn["content"]}]} for turn in TALK[1:]),
        {
            "role": "assistant",
            "candidates": [
                {"content": [{"text": "no"}], "preferenceLabel": "non-preferred"},
                {"content": [{"text": HEBREW}], "preferenceLabel": "preferred"},
            ],
        },
    ],
}


@pytest.mark.parametrize(("form", "row", "tools"), [("openai", OPENAI, TOOLS), ("sagemaker", SAGEMAKER, None)])
def test_rows_of_services_give_the_pair_that_is_meant(form: Form, row: dict[str, Any], tools: Any) -> None:
    expected = {"prompt": TALK, "chosen": assistant(HEBREW), "rejected": assistant("no"), "tools": tools}
    assert detect([row]) == form
    assert read_pair(row, form).pair == Pair.model_validate(expected)


# ---------------------------------------------------------------- bad rows

BAD: list[tuple[Form, dict[str, Any], str, str]] = [
    ("ratings", {"prompt": "Q", "rating": 1}, "malformed", "response: missing field"),
    ("ratings", {"response": "x", "rating": 1}, "malformed", "prompt: missing field"),
    (
        "ratings",
        {"prompt": "Q", "response": "x", "rating": "good"},
        "malformed",
        "rating: must be a number, but it is 'good'",
    ),
    ("ratings", {"prompt": "Q", "response": "x", "rating": "N/A"}, "no_opinion", "nobody judged a response"),
    ("ratings", {"prompt": "Q", "response": " ", "rating": 1}, "empty_response", "response 0: is empty"),
    (
        "ratings",
        {"prompt": 7, "response": "x", "rating": 1},
        "malformed",
        "prompt: must be a text or a list of messages",
    ),
    (
        "ratings",
        {"prompt": "Q", "question": "R", "response": "x", "rating": 1},
        "malformed",
        "question: stands beside 'prompt'",
    ),
    (
        "ratings",
        {"prompt": "Q", "respnse": "x", "rating": 1},
        "malformed",
        "respnse: unknown column; did you mean 'response'?",
    ),
    (
        "ratings",
        {"prompt": "Q", "response": TALK, "rating": 1},
        "unsupported",
        "response: must be a text or one assistant",
    ),
    (
        "ratings",
        {"prompt": "Q", "response": "x", "rating": 1, "tools": "f("},
        "malformed",
        "tools: is a text, but not JSON",
    ),
    (
        "ratings",
        {"prompt": TALK[:3], "response": "x", "rating": 1},
        "bad_roles",
        "prompt: the prompt ends with a turn of",
    ),
    ("unpaired", {"prompt": "Q", "completion": "x", "label": "maybe"}, "malformed", "label: must be true or false"),
    ("unpaired", {"prompt": "Q", "completion": "x"}, "no_opinion", "nobody judged"),
    ("votes", XY | {"winner": "c"}, "malformed", "winner: must be a, b, tie, both_good or both_bad, but it is 'c'"),
    ("votes", XY | {"winner": "a", "strength": 4}, "malformed", "strength: must be 1 (slightly)"),
    ("votes", XY | {"answer": 4}, "malformed", "answer: must be a whole number from -3 to 3, but it is 4"),
    ("votes", XY | {"winner": "can't judge"}, "no_opinion", "nobody judged"),
    ("votes", XY | {"response_b": "x", "winner": "a"}, "same_text", "both responses are the same text"),
    ("votes", XY | {"response_b": "x\n", "winner": "a"}, "same_text", "both responses are the same text"),
    ("votes", XY | {"response_b": "", "winner": "a"}, "empty_response", "response 1: is empty"),
    ("votes", {"prompt": "Q", "response_a": "x", "winner": "a"}, "malformed", "responses: 0 found, but a row needs 2"),
    (
        "votes",
        XY | {"response_c": "z", "winner": "a"},
        "malformed",
        "responses: a vote is between two, but there are 3",
    ),
    ("votes", XY | {"winner": "a", "shown_first": "top"}, "malformed", "shown_first: must be a or b"),
    ("votes", XY | {"votes": {}}, "malformed", "votes: must be a list"),
    (
        "votes",
        {"conversation_a": TALK[1:3], "conversation_b": [TALK[3], TALK[2]], "winner": "a"},
        "prompt_mismatch",
        "conversation_a and conversation_b do not share",
    ),
    (
        "ranking",
        {"prompt": "Q", "responses": ["x", "y"], "ranks": [1]},
        "malformed",
        "ranks: has 1 numbers for 2 responses",
    ),
    ("ranking", {"prompt": "Q", "responses": ["x", "y"], "ranks": [1, "b"]}, "malformed", "ranks.1: must be a number"),
    ("ranking", {"prompt": "Q", "responses": ["x", "y"], "order": [0, 2]}, "malformed", "order: 2 is none of 0, 1"),
    ("ranking", {"prompt": "Q", "responses": ["x", "y"], "order": [0, 0]}, "malformed", "order: 0 stands there twice"),
    ("ranking", {"prompt": "Q", "responses": ["x", "y"]}, "no_opinion", "nobody judged"),
    (
        "ranking",
        {"prompt": "Q", "responses": ["x"], "ranks": [1]},
        "malformed",
        "responses: 1 found, but a row needs 2",
    ),
    ("ranking", {"prompt": "Q", "responses": ["x", 7], "ranks": [1, 2]}, "unsupported", "responses.1: must be a text"),
    (
        "ranking",
        {"prompt": "Q", "responses": ["x", "y"], "ranks": [1, 2], "models": ["m"]},
        "malformed",
        "models: has 1 names",
    ),
    ("ultrafeedback", {"instruction": "Q", "completions": []}, "malformed", "completions: is empty"),
    (
        "ultrafeedback",
        {"instruction": "Q", "completions": [{"model": "m"}]},
        "unsupported",
        "completions.0.response: must be a text",
    ),
    ("ultrafeedback", {"instruction": "Q", "completions": [{"response": "x"}]}, "no_opinion", "nobody judged"),
    ("shp", {"history": "Q", "human_ref_A": "x", "labels": 1}, "malformed", "human_ref_B: missing field"),
    (
        "shp",
        {"history": "Q", "human_ref_A": "x", "human_ref_B": "y", "score_A": 1, "score_B": 2, "labels": 1},
        "malformed",
        "labels: 1 prefers the response with the lower score (1 and 2)",
    ),
    ("openai", OPENAI | {"input": {"message": []}}, "malformed", "input.message: unknown field"),
    ("openai", {**OPENAI, "preferred_output": None}, "malformed", "preferred_output: missing field"),
    (
        "openai",
        OPENAI | {"preferred_output": [{"role": "assistant", "content": [{"type": "image_url"}]}]},
        "unsupported",
        "preferred_output.0.content.0: must be a part with a 'text'",
    ),
    (
        "sagemaker",
        SAGEMAKER | {"schemaVersion": "bedrock-conversation-2027"},
        "unsupported",
        "schemaVersion: must be 'bedrock-conversation-2024', the version that is known here, but it is 'bedrock-conv",
    ),
    (
        "sagemaker",
        {"messages": SAGEMAKER["messages"][:1]},
        "malformed",
        "messages: the last one must hold 'candidates'",
    ),
    (
        "sagemaker",
        {"messages": SAGEMAKER["messages"][-1:] * 2},
        "malformed",
        "messages: candidates may stand in the last one only",
    ),
    (
        "sagemaker",
        {
            "messages": [
                *SAGEMAKER["messages"][:1],
                {"role": "assistant", "candidates": SAGEMAKER["messages"][-1]["candidates"][:1] * 2},
            ]
        },
        "malformed",
        "messages.candidates.1.preferenceLabel: a second candidate is 'non-preferred'",
    ),
    ("groundtruth", {"source": "Q", "responses": ["x", "y"]}, "no_opinion", "nobody judged"),
    ("groundtruth", {"source": "Q", "l": 1, "l-metadata": {}}, "malformed", "responses: none found"),
    (
        "groundtruth",
        manifest({"winner": "A", "votes": {"A": 1.5}}),
        "malformed",
        "pref.votes.A: must be a number of votes",
    ),
    (
        "groundtruth",
        manifest({"answers": [worker(DIMENSIONS)]}),
        "malformed",
        "pref.answers.0.ordinalRankingDimensions.0.response",
    ),
    ("labelstudio", studio(was_cancelled=True), "no_opinion", "nobody judged"),
    ("labelstudio", {"id": 1, "data": {"prompt": "Q"}, "annotations": []}, "malformed", "responses: none found"),
    (
        "labelstudio",
        studio(result("rating", {"rating": 4}, name="tone")),
        "malformed",
        "tone: rates one of 2 responses, but its name",
    ),
    (
        "labelstudio",
        studio(result("ranker", {"ranker": {"best": ["x"], "bad": []}})),
        "malformed",
        "pw.value.ranker: its buckets best, bad",
    ),
    (
        "labelstudio",
        studio(data={"prompt": "Q", "question": "R", "a": "x", "b": "y"}),
        "malformed",
        "question: stands beside 'prompt'",
    ),
    ("argilla", record({}), "no_opinion", "nobody judged"),
    ("argilla", record({"tone": [{"value": 4, "user_id": "u"}]}), "malformed", "tone: rates one of 2 responses"),
    (
        "argilla",
        {"prompt": "Q", "response": "x", "q.responses": [1], "q.responses.users": ["u", "v"]},
        "malformed",
        "q.responses: has 1 answers, 2 users",
    ),
    (
        "candidates",
        {"prompt": [TALK[1]], "responses": [], "opinions": []},
        "malformed",
        "responses: tuple should have at least 1",
    ),
    (
        "candidates",
        {"prompt": [TALK[1]], "responses": [{"content": "x"}], "opinions": [{"scale": "rank", "worth": [1.0, 2.0]}]},
        "malformed",
        "opinion 0 has 2 numbers for 1 responses",
    ),
]


@pytest.mark.parametrize(("form", "row", "reason", "sentence"), BAD)
def test_every_bad_row_has_a_reason_and_a_sentence(form: Form, row: dict[str, Any], reason: str, sentence: str) -> None:
    with pytest.raises(RowFault) as caught:
        read(row, form)
    assert (caught.value.reason, str(caught.value)[: len(sentence)]) == (reason, sentence)
    assert str(pickle.loads(pickle.dumps(caught.value))) == str(caught.value)


def test_opinions_are_no_pairs_yet() -> None:
    with pytest.raises(RowFault, match="a row of the form 'votes' holds opinions"):
        read_pair(XY | {"winner": "a"}, "votes")


# ---------------------------------------------------------------- column maps


def test_a_map_names_columns_and_the_rest_is_left_aside_by_name() -> None:
    row = {
        "frage": "Q",
        "antwort": "x",
        "note": "9",
        "wer": "ann",
        "ton": "3",
        "lang": "de",
        "neu": "true",
        "mail": "@",
    }
    columns = {"frage": "prompt", "antwort": "response", "note": "rating", "wer": "annotator"}
    imported = read(
        row, "ratings", columns=columns | {"ton": "rating.tone", "lang": "group", "neu": "group"}, cells=True
    )
    (item,) = imported.items
    assert isinstance(item, Candidates)
    assert (imported.ignored, item.group) == (("mail",), "lang=de, neu=true")
    assert [opinion.line() for opinion in item.opinions] == [
        rating(9.0, annotator="ann"),
        rating(3.0, annotator="ann", criterion="tone"),
    ]
    assert detect([row], columns=columns) == "ratings"


def test_a_map_of_pairs_and_of_fields_inside_an_export() -> None:
    row = {"system": "Be brief.", "question": "Q", "good": "x", "bad": "y", "p": "0.75", "mail": "@"}
    columns = {"question": "prompt", "good": "chosen", "bad": "rejected"}
    imported = read(row, "trl", columns=columns, cells=True)
    assert (imported.pair.p, len(imported.pair.prompt), imported.ignored) == (0.75, 2, ("mail",))
    data = {"frage": "Q", "links": "x", "rechts": "y", "wer": "kids"}
    columns = {"frage": "prompt", "links": "response_a", "rechts": "response_b", "wer": "group"}
    (item,) = read(studio(result("pairwise", {"selected": "left"}), data=data), "labelstudio", columns=columns).items
    assert isinstance(item, Candidates)
    assert (item.group, item.responses[0].content, item.opinions[0].worth) == ("kids", "x", (2.0, 0.0))


def test_what_a_map_may_not_say() -> None:
    with pytest.raises(InputError, match=r"data\.columns\.q = 'promt': no column of this form; did you mean 'prompt'"):
        Importer.of("a.csv", "ratings", columns={"q": "promt"})
    with pytest.raises(RowFault, match="q: is 'prompt' here, and so is another column"):
        read({"prompt": "Q", "q": "R", "response": "x", "rating": 1}, "ratings", columns={"q": "prompt"})
    with pytest.raises(RowFault, match=r"to leave it aside set data\.columns\.mail=ignore"):
        read({"prompt": "Q", "response": "x", "rating": 1, "mail": "@"}, "ratings")


def test_a_table_of_cells_is_read_like_the_rows_it_stands_for(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text(
        "prompt,response_a,response_b,answer,annotator\n"
        '"[{""role"": ""user"", ""content"": ""Q""}]",x,"[""y""]",-2,ann\n',
        encoding="utf-8",
    )
    reader = pickle.loads(pickle.dumps(Importer.of(str(tmp_path / "a.csv"), "votes")))
    (line,) = storage.lines(str(tmp_path / "a.csv"))
    (item,) = reader.read(line).items
    opinion = Opinion(annotator="ann", scale="choice", worth=(0.0, 2.0))
    assert item == Candidates(
        prompt=user("Q"), responses=(Candidate(content="x"), Candidate(content='["y"]')), opinions=(opinion,)
    )


# ---------------------------------------------------------------- worker responses in files of their own


@pytest.mark.parametrize("place", ["annotations", "manifests/output/annotations", "manifests/output"])
def test_worker_responses_beside_a_manifest_are_read(tmp_path: Path, place: str) -> None:
    tail = "iteration-1/0/2026-10-02_08:15:29.json"
    path = tmp_path / place / "worker-response" / tail
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps({"answers": [worker({"preference": {"label": "B"}})]}), encoding="utf-8")
    output = tmp_path / "manifests/output/output.manifest"
    output.parent.mkdir(parents=True, exist_ok=True)
    ref = f"s3://bucket/job/annotations/worker-response/{tail}"
    rows = [manifest({}, **{"worker-response-ref": ref}), manifest({}, **{"worker-response-ref": f"{ref}x"})]
    output.write_bytes(b"".join(map(storage.encode, rows)))
    reader = Importer.of(str(output), "groundtruth")
    lines = list(storage.lines(str(output)))
    assert detect([line.row for line in lines]) == "groundtruth"
    (item,) = reader.read(lines[0]).items
    assert isinstance(item, Candidates)
    assert item.opinions == (Opinion(annotator="w1", scale="choice", worth=(0.0, 2.0)),)
    with pytest.raises(RowFault, match=r"worker-response-ref: no file .*jsonx in ") as caught:
        reader.read(lines[1])
    assert caught.value.reason == "no_worker_response"


def test_a_reference_that_leads_out_of_the_folder_is_refused(tmp_path: Path) -> None:
    row = manifest({}, **{"worker-response-ref": "s3://b/worker-response/../../../etc/passwd"})
    reader = Importer.of(str(tmp_path / "a.manifest"), "groundtruth")
    with pytest.raises(RowFault, match="leads out of the folder"):
        reader.read(storage.Line("a:1", row))


# ---------------------------------------------------------------- laws

texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=6)
numbers = st.none() | st.booleans() | st.integers(-4, 10**20) | st.floats(allow_nan=False, allow_infinity=False)
values = st.recursive(
    numbers | texts | st.sampled_from(["a", "b", "tie", "user", "N/A", "\n\nHuman: Q\n\nAssistant: x"]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(texts | st.sampled_from(["role", "content", "id"]), inner, max_size=3)
    ),
    max_leaves=8,
)
EXAMPLES = [(form, row) for form, row, _, _ in GOLDEN] + [
    ("openai", OPENAI),
    ("sagemaker", SAGEMAKER),
    ("trl", {"prompt": "Q"}),
]
KNOWN = sorted({name for _, row in EXAMPLES for name in row} | {"chosen", "rejected", "p"})


def changes(row: Any) -> st.SearchStrategy[Any]:
    """The row with some of its values replaced by anything."""
    if isinstance(row, dict):
        whole = st.fixed_dictionaries({name: changes(value) for name, value in row.items()})
    elif isinstance(row, list):
        whole = st.tuples(*map(changes, row)).map(list)
    else:
        whole = st.just(row)
    return whole | values


rows = st.sampled_from([row for _, row in EXAMPLES]).flatmap(changes) | st.dictionaries(
    st.sampled_from(KNOWN) | texts, values, max_size=6
)


@given(
    st.sampled_from(FORMS),
    rows,
    st.dictionaries(st.sampled_from(KNOWN), st.sampled_from(["prompt", "group", "ignore"]), max_size=2),
    st.sampled_from(["cells", "values"]),
)
def test_any_row_of_any_form_is_valid_records_or_a_fault(
    form: Form, row: Any, columns: dict[str, str], kind: str
) -> None:
    row = row if isinstance(row, dict) else {"prompt": row}
    assert detect([row], columns=columns) in FORMS
    try:
        found = read(row, form, columns=columns, cells=kind == "cells")
    except RowFault as fault:
        found = importers.Imported(())
        message = (fault.reason, str(fault))
        assert all(message)
    for item in found.items:
        assert type(item).model_validate(json.loads(storage.encode(item.line()))) == item


opinions = st.builds(
    Opinion,
    annotator=texts,
    criterion=texts,
    scale=st.sampled_from(["rating", "rank"]),
    worth=st.tuples(st.floats(-9, 9), st.none() | st.floats(-9, 9)),
)


@given(st.lists(opinions, max_size=3), texts, st.sampled_from(["", "de"]))
def test_our_own_lines_of_candidates_read_back_as_they_were_written(
    opinions: list[Opinion], text: str, group: str
) -> None:
    responses = (Candidate(content=text, score=1.5, source="m"), Candidate(content="other", rules={"short": 1.0}))
    own = Candidates(prompt=user("Q"), responses=responses, opinions=tuple(opinions), group=group, tools=TOOLS)
    row = json.loads(storage.encode(own.line()))
    assert detect([row]) == "candidates"
    assert read(row, "candidates").items == (own,)


@pytest.mark.parametrize("outer", ["metadata.audience", "team"])
def test_a_map_reaches_what_stands_around_the_fields_of_a_project(outer: str) -> None:
    row = {
        "id": "r1",
        "team": "experts",
        "fields": {"prompt": "Q", "response_1": "x", "response_2": "y"},
        "metadata": {"audience": "experts"},
        "responses": {"preference": [{"value": "response_1", "user_id": "u1"}]},
    }
    (item,) = read(row, "argilla", columns={outer: "group"}).items
    assert (item.group, [r.content for r in item.responses]) == ("experts", ["x", "y"])
    task = studio(result("pairwise", {"selected": "left"})) | {"meta": {"audience": "experts"}}
    (item,) = read(task, "labelstudio", columns={"meta.audience": "group"}).items
    assert item.group == "experts"


def test_a_dotted_name_that_leads_nowhere_changes_nothing() -> None:
    row = {"prompt": "Q", "response": "x", "rating": 3, "metadata": {"audience": 7}}
    (item,) = read(row, "ratings", columns={"metadata.level": "group", "metadata": "ignore"}).items
    assert item.group == ""
