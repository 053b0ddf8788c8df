"""Rows of one prompt come together whole: no opinion is lost or doubled, whatever the memory limit."""

from __future__ import annotations

import tempfile
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from druthers.curate import gather as module
from druthers.curate.gather import Deal, Placed, dealt, joined
from druthers.records import Candidate, Candidates, InputError, Opinion, user

PLUM, FIG, NO = "Plum.", "Fig.", "No."


def gather(items: Iterable[Placed], *, spool: Path, memory: int = module.MEMORY, lot: int = 3) -> Iterator[Placed]:
    """The items of rows that come in lots of so many, before all that is said of a prompt is put together."""
    with tempfile.TemporaryDirectory(dir=spool) as folder:
        deal, given = Deal(Path(folder), memory), list(items)
        for number, begin in enumerate(range(0, len(given), lot)):
            deal.add(dealt(given[begin : begin + lot], lot=number))
        found = [each for part in deal.parts() for each in joined(part.rows())]
    for _, some in sorted(found, key=lambda each: each[0]):
        yield from (Placed(Candidates.model_validate(one.body()), one.where, one.rows) for one in some)


def rows(*items: Candidates) -> list[Placed]:
    return [Placed(item, f"a.jsonl:{number}") for number, item in enumerate(items, 1)]


def item(prompt: str, texts: tuple[str, ...], *opinions: Opinion, **more: Any) -> Candidates:
    responses = tuple(Candidate(content=text) for text in texts)
    return Candidates(prompt=user(prompt), responses=responses, opinions=opinions, **more)


def rated(*worth: float | None, who: str = "") -> Opinion:
    return Opinion(annotator=who, scale="rating", worth=worth)


def chosen(*worth: float, who: str = "") -> Opinion:
    return Opinion(annotator=who, scale="choice", worth=worth)


def test_what_is_said_of_one_prompt_is_one_item_with_each_response_once(tmp_path: Path) -> None:
    given = rows(
        item("Q", (PLUM,), rated(9.0, who="a")),
        item("R", (PLUM,), rated(1.0)),
        item("Q", (FIG, PLUM), rated(4.0, 5.0, who="b")),
        item("Q", (NO,)),
    )
    first, second = gather(given, spool=tmp_path)
    assert (first.where, first.rows, second.where, second.rows) == ("a.jsonl:1", 3, "a.jsonl:2", 1)
    assert first.item == item("Q", (PLUM, FIG, NO), rated(9.0, None, None, who="a"), rated(5.0, 4.0, None, who="b"))
    assert second.item == given[1].item


def test_choices_stay_in_the_order_shown_beside_each_other_and_apart_from_ratings(tmp_path: Path) -> None:
    given = rows(
        item("Q", (PLUM, FIG), chosen(2.0, 0.0, who="a"), rated(7.0, None)),
        item("R", (PLUM, FIG), chosen(0.0, 0.0)),
        item("Q", (FIG, PLUM), chosen(0.0, 1.0, who="b")),
        item("Q", (PLUM, FIG), chosen(0.0, 3.0, who="c")),
        item("Q", (NO, PLUM, FIG), Opinion(scale="choice", worth=(None, 2.0, 0.0))),
    )
    found = list(gather(given, spool=tmp_path))
    assert [one.item for one in found] == [
        item("Q", (PLUM, FIG), rated(7.0, None)),
        item("Q", (PLUM, FIG), chosen(2.0, 0.0, who="a"), chosen(0.0, 3.0, who="c"), chosen(2.0, 0.0)),
        item("Q", (FIG, PLUM), chosen(0.0, 1.0, who="b")),
        item("R", (PLUM, FIG), chosen(0.0, 0.0)),
    ]
    assert [one.rows for one in found] == [1, 2, 1, 1]


def test_tools_and_groups_keep_items_apart_and_texts_are_compared_exactly(tmp_path: Path) -> None:
    tools = [{"name": "clock"}]
    given = rows(
        item("Q", (PLUM,), rated(1.0)),
        item("Q", (PLUM,), rated(1.0), group="de"),
        item("Q", (PLUM,), rated(1.0), tools=tools),
        item("Q ", (PLUM,), rated(1.0)),
    )
    assert [one.item for one in gather(given, spool=tmp_path)] == [one.item for one in given]


def test_a_model_named_once_is_the_source_and_scores_on_responses_are_not_mixed(tmp_path: Path) -> None:
    named = Candidates(prompt=user("Q"), responses=(Candidate(content=PLUM, source="m"),), opinions=(rated(2.0),))
    scored = Candidates(prompt=user("Q"), responses=(Candidate(content=PLUM, score=3.0),))
    (found,) = gather(rows(item("Q", (PLUM,), rated(1.0)), named, scored), spool=tmp_path)
    assert found.item.responses == (Candidate(content=PLUM, source="m"), Candidate(content=PLUM, score=3.0))
    assert [opinion.worth for opinion in found.item.opinions] == [(1.0, None), (2.0, None)]


def test_nothing_gives_nothing_and_nothing_stays_in_the_folder(tmp_path: Path) -> None:
    assert list(gather([], spool=tmp_path)) == []
    given = rows(*(item(f"Q{i}", (PLUM,), rated(1.0)) for i in range(50)))
    assert len(list(gather(given, spool=tmp_path, memory=1000))) == 50
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_is_said_in_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(path: Path, mode: str) -> Any:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "open", full)
    with pytest.raises(InputError, match="No space left on device; free some space"):
        list(gather(rows(item("Q", (PLUM,), rated(1.0))), spool=tmp_path, memory=0))


texts = st.sampled_from([PLUM, FIG, NO, "שלום 🍇", "\n", "\u2028"])
worths = st.none() | st.integers(-5, 5).map(float)
who = st.sampled_from(["", "a", "b"])


@st.composite
def items(draw: st.DrawFn) -> Candidates:
    """An item with some responses (also the same twice) and opinions of every scale."""
    responses = draw(st.lists(texts, min_size=1, max_size=4))
    opinions = []
    for _ in range(draw(st.integers(0, 3))):
        scale = draw(st.sampled_from(["rating", "rank", "choice"]))
        worth = draw(st.lists(worths, min_size=len(responses), max_size=len(responses)))
        known = sum(value is not None for value in worth)
        if known == 2 if scale == "choice" else known:
            opinions.append(Opinion(annotator=draw(who), scale=scale, worth=tuple(worth)))
    prompt, group = draw(st.sampled_from(["Q", "R", "S"])), draw(st.sampled_from(["", "de"]))
    return item(prompt, tuple(responses), *opinions, group=group)


def said(found: list[Candidates]) -> Counter[Any]:
    """Every opinion with the prompt and group it is on and the texts it judges; of a choice, in the order shown."""
    counted: Counter[Any] = Counter()
    for one in found:
        for opinion in one.opinions:
            judged = [(r.content, w) for r, w in zip(one.responses, opinion.worth, strict=True) if w is not None]
            judged = judged if opinion.scale == "choice" else sorted(judged)
            counted[one.prompt_id, one.group, opinion.annotator, opinion.scale, tuple(judged)] += 1
    return counted


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(st.lists(items(), max_size=12), st.integers(0, 4000))
def test_any_limit_gives_the_same_items_and_no_opinion_is_lost_or_doubled(
    tmp_path: Path, given: list[Candidates], memory: int
) -> None:
    whole = list(gather(rows(*given), spool=tmp_path))
    assert list(gather(rows(*given), spool=tmp_path, memory=memory)) == whole
    found = [one.item for one in whole]
    assert said(found) == said(given)
    assert sum(one.rows for one in whole) == len(given)
    assert {(one.prompt_id, r.content) for one in found for r in one.responses} == {
        (one.prompt_id, r.content) for one in given for r in one.responses if _judged_or_alone(one, r)
    }
    prompts = [(one.prompt_id, one.group) for one in found]
    first = list(dict.fromkeys((one.prompt_id, one.group) for one in given))
    assert list(dict.fromkeys(prompts)) == first
    assert prompts == sorted(prompts, key=first.index), "the items of a prompt do not stand together"


def _judged_or_alone(one: Candidates, response: Candidate) -> bool:
    """Whether a response goes along: one of an item with nothing but choices needs to be in a choice."""
    if not one.opinions or any(opinion.scale != "choice" for opinion in one.opinions):
        return True
    return any(
        worth is not None and other.content == response.content
        for opinion in one.opinions
        for other, worth in zip(one.responses, opinion.worth, strict=True)
    )


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(st.lists(items(), min_size=1, max_size=8))
def test_what_is_gathered_gathers_to_itself(tmp_path: Path, given: list[Candidates]) -> None:
    whole = list(gather(rows(*given), spool=tmp_path))
    again = list(gather(whole, spool=tmp_path))
    assert [one.item for one in again] == [one.item for one in whole]
    assert [(one.where, one.rows) for one in again] == [(one.where, one.rows) for one in whole]
