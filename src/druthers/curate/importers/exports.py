"""Exports of annotation tools: Label Studio, Argilla, and the manifests of Ground Truth.

In all three a project names its own fields. The prompt and the responses are found by their names (prompt, question,
...; response_a, answer1, reply_2, ...), and where those say nothing by a column map.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from druthers.curate.importers.choices import (
    NOTHING,
    SIDE,
    TIES,
    Said,
    answers,
    candidates,
    choice,
    distinct,
    order,
    ranks,
    spread,
    word,
)
from druthers.curate.importers.columns import Names, Row, brief, fields, items, loads, named, number, plain
from druthers.curate.importers.faults import RowFault
from druthers.curate.importers.talk import Talk, answer, asked
from druthers.records import Candidates

PROMPTS = (
    "prompt",
    "question",
    "instruction",
    "query",
    "messages",
    "conversation",
    "chat",
    "history",
    "context",
    "source",
)
STEMS = ("response", "answer", "completion", "output", "reply", "generation", "candidate", "option", "text", "txt")
SINGLE = ("response", "completion", "output", "reply", "generation", "answer", "text")
PLAIN = frozenset(
    (
        "",
        "rating",
        "score",
        "overall",
        "preference",
        "rank",
        "ranking",
        "pairwise",
        "pw",
        "choice",
        "label",
        "winner",
        "answer",
        "better",
    )
)
"""Names of questions that ask for nothing in particular: the overall opinion."""
OPEN = Names(
    frozenset(("prompt", "system", "group", "tools", "responses", "response_a", "response_b")), STEMS, open=True
)


class Task:
    """The prompt and the responses of a task, with the names by which annotations point at the responses."""

    def __init__(self, data: Row) -> None:
        prompts = [name for name in PROMPTS if isinstance(data.get(name), str | list)] or ["prompt"]
        if len(prompts) > 1 and prompts[1] != "source":
            why = f"stands beside {prompts[0]!r}, and both may be the prompt"
            raise RowFault("malformed", f"{prompts[1]}: {why}; set data.columns.{prompts[1]}=ignore, or the other")
        self.prompt: Talk = asked(prompts[0], data)
        self.names, self.responses = _responses(data)
        self.base: int | None = None

    def place(self, *names: str) -> int | None:
        """Which response a name points at: its own name, or one that ends in its number or letter."""
        for name in names:
            if name in self.names:
                return self.names.index(name)
        if len(self.responses) == 1:
            return 0
        found = [place for name in names if (end := _end(name)) and (place := self._place(*end)) is not None]
        return found[0] if found else None

    def _place(self, kind: str, end: int) -> int | None:
        """Which response a number or letter means; numbers into a list only where it is clear from where they count."""
        ends = [_end(name) for name in self.names]
        if ends:
            return ends.index((kind, end)) if None not in ends and (kind, end) in ends else None
        place = end - ord("a") if kind == "letter" else None if self.base is None else end - self.base
        return place if place is not None and 0 <= place < len(self.responses) else None

    def count(self, names: Iterable[str]) -> None:
        """Learn from all names in a row whether they count a list of responses from 0 or from 1."""
        numbers = {end[1] for name in names if (end := _end(name)) and end[0] == "number"}
        zero, last = 0 in numbers, len(self.responses) in numbers
        self.base = None if zero == last else int(last)

    def rating(self, value: object, name: str, *names: str) -> Said | None:
        """A rating of the response that the names point at."""
        place = self.place(name, *names)
        if place is None:
            raise RowFault(
                "malformed", f"{name}: rates one of {len(self.responses)} responses, but its name does not say which"
            )
        score = number(name, value)
        if score is None:
            return None
        worth = [score if i == place else None for i in range(len(self.responses))]
        return {"scale": "rating", "worth": worth} | self.criterion(_stem(name))

    def choice(self, value: object, name: str) -> Said | None:
        """A choice between two responses, in words or by the name of one of them; None for a label of another kind."""
        if len(self.responses) != 2:
            return None
        if isinstance(value, str) and value in self.names:
            value = "ab"[self.names.index(value)]
        said = word(value).lstrip("_")
        if said == "0":
            raise RowFault("malformed", f"{name}: is 0, which says no side; call the sides a and b, or 1 and 2")
        if SIDE.fullmatch(said) or said in TIES or said in NOTHING:
            found = choice(name, value)
            return found and found | self.criterion(name)
        return None

    @staticmethod
    def criterion(name: str) -> Said:
        """The criterion a question asks for, left out where it is the overall one."""
        return {} if name.lower().replace("-", "_") in PLAIN else {"criterion": name}


def _responses(data: Row) -> tuple[list[str], Sequence[Said]]:
    """The names of the responses (none where they stand in a list), and the responses."""
    listed = data.get("responses")
    if listed is None:
        columns = {name: value for name, value in data.items() if isinstance(value, str | list | dict)}
        found = spread(columns, STEMS) or [
            (name, data[name]) for name in ("a", "b", "left", "right") if name in columns
        ]
        if len(found) > 1:
            return [name for name, _ in found], distinct([{"content": answer(name, value)} for name, value in found])
        single = next((name for name in SINGLE if isinstance(data.get(name), str | list)), None)
        if single is None:
            raise RowFault(
                "malformed", "responses: none found; name their fields in data.columns, as response_a and response_b"
            )
        return [single], distinct([{"content": answer(single, data[single])}])
    given = answers(data, least=1)
    return [], distinct(given)


def _end(name: str) -> tuple[str, int] | None:
    """The number or letter a name ends in, and which of the two it is."""
    tail = name.rstrip("0123456789")
    if tail != name:
        return "number", int(name[len(tail) :][:4])
    return ("letter", ord(name[-1].lower())) if len(name) > 1 and name[-2] in "-_ " and name[-1].isalpha() else None


def _stem(name: str) -> str:
    """A question's name without what says which response it is about.

    >>> _stem("quality_2"), _stem("tone-a"), _stem("helpfulness"), _stem("rating_response_b")
    ('quality', 'tone', 'helpfulness', 'rating')
    """
    if _end(name) is None:
        return name
    bare = name.rstrip("0123456789")
    bare = (bare if bare != name else name[:-1]).rstrip("-_ ")
    for stem in STEMS:
        bare = bare.removesuffix(stem).rstrip("-_ ")
    return bare


# ---------------------------------------------------------------- Label Studio

LABEL_STUDIO = Names(OPEN.read | {"data", "annotations"}, STEMS, open=True)


def from_label_studio(row: Row) -> Candidates:
    """A task of Label Studio's JSON export with its annotations: Pairwise, Rating, Ranker and Choices.

    Cancelled annotations are no opinions, and predictions are a model's and left aside.
    """
    given = row.get("annotations", row.get("completions"))
    notes = [fields(f"annotations.{i}", note) for i, note in enumerate(items("annotations", given))]
    data = fields("data", row.get("data"))
    task, listed = _studio_task(data)
    opinions = [said for note in notes if note.get("was_cancelled") is not True for said in _note(note, task, listed)]
    shared = {name: row[name] for name in ("group", "tools") if name in row}
    return candidates({**data, **shared}, task.prompt, task.responses, opinions)


def _note(note: Row, task: Task, listed: list[str]) -> Iterator[Said]:
    """What one person said in an annotation."""
    given = items("annotations.result", note.get("result") or [])
    results = [fields(f"annotations.result.{i}", one) for i, one in enumerate(given)]
    task.count(name for one in results for key in ("from_name", "to_name") for name in named(one, key).split(","))
    for one in results:
        if said := _studio_result(one, task, listed):
            yield said | {"annotator": _completed_by(note.get("completed_by"))}


def _studio_task(data: Row) -> tuple[Task, list[str]]:
    """The task, and the ids of its responses where they stand in a list for a Ranker."""
    for name, value in data.items():
        if (
            name not in PROMPTS
            and isinstance(value, list)
            and value
            and all(isinstance(one, dict) and "id" in one for one in value)
        ):
            contents = [
                next((one[k] for k in ("body", "text", "content", "html", "title") if one.get(k) is not None), None)
                for one in value
            ]
            return Task({**data, "responses": contents}), [plain(one["id"]) for one in value]
    return Task(data), []


def _completed_by(value: object) -> str:
    if isinstance(value, dict):
        return named(value, "email", "id", "username")
    return "" if value is None else plain(value)


def _studio_result(result: Row, task: Task, listed: list[str]) -> Said | None:
    name, kind = named(result, "from_name"), result.get("type")
    value = fields(f"{name}.value", result.get("value") or {})
    if kind == "pairwise":
        return task.choice(value.get("selected"), name)
    if kind == "rating":
        to = result.get("to_name")
        return task.rating(value.get("rating"), name, *(to.split(",") if isinstance(to, str) else ()))
    if kind == "choices":
        chosen = items(f"{name}.value.choices", value.get("choices") or [])
        return task.choice(chosen[0], name) if len(chosen) == 1 else None
    if kind == "ranker":
        return _buckets(f"{name}.value.ranker", fields(name, value.get("ranker")), listed or task.names)
    return None


def _buckets(name: str, given: Mapping[str, Any], names: Sequence[str]) -> Said:
    """An order of responses: one list from best to worst, or buckets with ranks as names, in which responses tie."""
    buckets = {bucket: items(f"{name}.{bucket}", held) for bucket, held in given.items() if bucket != "_"}
    if len(buckets) == 1 and _end(next(iter(buckets))) is None:
        return order(name, next(iter(buckets.values())), names=names)
    numbers = {bucket: end[1] for bucket in buckets if (end := _end(bucket)) and end[0] == "number"}
    if len(numbers) < len(buckets) or not buckets:
        raise RowFault(
            "malformed", f"{name}: its buckets {', '.join(buckets)} say no order; end their names in ranks, as rank_1"
        )
    return order(name, [buckets[bucket] for bucket in sorted(buckets, key=numbers.__getitem__)], names=names)


# ---------------------------------------------------------------- Argilla

FLAT = (".responses", ".users", ".status", ".suggestion", ".agent", ".score", "-suggestion", "-suggestion-metadata")
"""What the columns of a flattened record end in that belong to a question."""


def _answered(value: object) -> bool:
    """Whether a column holds the answers of people, as version 1 wrote them."""
    return isinstance(value, list) and bool(value) and all(isinstance(one, dict) and "user_id" in one for one in value)


ARGILLA = Names(
    OPEN.read | {"fields", "responses", "suggestions", *PROMPTS},
    STEMS,
    open=True,
    answers=lambda row, name: name.endswith(FLAT) or _answered(row[name]),
)
TAKEN = ("submitted", None)
"""Status of a response that counts; drafts and discarded ones do not. An export with nesting gives none."""


def from_argilla(row: Row) -> Candidates:
    """A record of Argilla: as `to_list` and `to_json` nest it, flattened as in `to_datasets`, or of version 1.

    Suggestions are the opinions of their agents where no person answered the record.
    """
    said = list(_argilla_said(row))
    data = row["fields"] if isinstance(row.get("fields"), dict) else _argilla_fields(row, {name for name, *_ in said})
    task = Task(data)
    task.count(name for name, _, value in said for name in (name, *(_names(value) if isinstance(value, list) else ())))
    people = [one for one in said if not one[1].startswith(SUGGESTED)]
    opinions = []
    for name, annotator, value in people or said:
        if found := _argilla_value(name, value, task):
            opinions.append(found | {"annotator": annotator})
    return candidates(
        {**data, **{name: row[name] for name in ("group", "tools") if name in row}},
        task.prompt,
        task.responses,
        opinions,
    )


SUGGESTED = "suggestion:"


def _argilla_fields(row: Row, questions: set[str]) -> dict[str, Any]:
    """The fields of a flattened record: what is no question and no answer."""
    return {
        name: value
        for name, value in row.items()
        if name not in questions and "." not in name and not name.endswith(("-suggestion", "-suggestion-metadata"))
    }


def _argilla_said(row: Row) -> Iterator[tuple[str, str, object]]:
    """Question, who answered and what, of every response and suggestion in a record."""
    if isinstance(row.get("responses"), dict) or isinstance(row.get("suggestions"), dict):
        for name, given in fields("responses", row.get("responses") or {}).items():
            yield from _argilla_responses(name, given)
        for name, one in fields("suggestions", row.get("suggestions") or {}).items():
            yield from _argilla_suggestion(name, fields(f"suggestions.{name}", one or {}))
        return
    for name, value in row.items():
        if name.endswith(".responses"):
            yield from _argilla_columns(name, value, row)
        elif name.endswith((".suggestion", "-suggestion")) and value is not None:
            question = name[: -len(".suggestion")]
            more = row.get(f"{name}-metadata")
            agent = more.get("agent") if isinstance(more, dict) else row.get(f"{name}.agent")
            yield from _argilla_suggestion(question, {"value": value, "agent": agent})
        elif _answered(value):
            yield from _argilla_responses(name, value)


def _argilla_responses(name: str, given: object) -> Iterator[tuple[str, str, object]]:
    for i, one in enumerate(items(f"responses.{name}", given or [])):
        response = fields(f"responses.{name}.{i}", one)
        if response.get("status") in TAKEN and response.get("value") is not None:
            yield name, named(response, "user_id"), response["value"]


def _argilla_columns(name: str, given: object, row: Row) -> Iterator[tuple[str, str, object]]:
    """A flattened question: answers, users and states side by side."""
    values = items(name, given or [])
    users = items(f"{name}.users", row.get(f"{name}.users") or [None] * len(values))
    states = items(f"{name}.status", row.get(f"{name}.status") or [None] * len(values))
    if not len(values) == len(users) == len(states):
        raise RowFault(
            "malformed",
            f"{name}: has {len(values)} answers, {len(users)} users and {len(states)} states; give one each",
        )
    for value, who, state in zip(values, users, states, strict=True):
        if state in TAKEN and value is not None:
            yield name.removesuffix(".responses"), "" if who is None else plain(who), value


def _argilla_suggestion(name: str, one: Row) -> Iterator[tuple[str, str, object]]:
    if one.get("value") is not None:
        yield name, SUGGESTED + named(one, "agent"), one["value"]


def _argilla_value(name: str, value: object, task: Task) -> Said | None:
    """A rating, a ranking or a label; None for a label or text that says nothing of two responses."""
    if isinstance(value, bool) or value is None:
        return None
    if isinstance(value, int | float):
        return task.rating(value, name)
    if isinstance(value, str):
        return task.choice(value, name)
    ranked = _argilla_ranking(value)
    if ranked is None:
        return None
    names = [each for group in ranked for each in group]
    pointed = {each: place for each in names if isinstance(each, str) and (place := task.place(each)) is not None}
    if len(pointed) < len(names) or len(task.responses) < 2:
        return None
    groups = [[str(pointed[each]) for each in group] for group in ranked]
    said = order(name, groups, names=[str(i) for i in range(len(task.responses))])
    return said | task.criterion(name)


def _names(value: list[Any]) -> list[str]:
    """The names in a ranking."""
    return [
        one for one in (each.get("value") if isinstance(each, dict) else each for each in value) if isinstance(one, str)
    ]


def _argilla_ranking(value: object) -> list[list[Any]] | None:
    """Names of responses from best to worst, with those that tie in one group: a list of names, of names with ranks,
    or (in a Hugging Face data set of version 1) two lists side by side."""
    if isinstance(value, dict) and isinstance(value.get("rank"), list) and isinstance(value.get("value"), list):
        value = [{"rank": rank, "value": one} for rank, one in zip(value["rank"], value["value"], strict=False)]
    if not isinstance(value, list):
        return None
    if all(isinstance(one, dict) and "value" in one for one in value):
        given = [number("rank", one.get("rank", i)) or 0.0 for i, one in enumerate(value)]
        return [
            [one["value"] for rank, one in zip(given, value, strict=True) if rank == place]
            for place in sorted(set(given))
        ]
    return [[one] for one in value] if all(isinstance(one, str) for one in value) else None


# ---------------------------------------------------------------- Ground Truth

META = "-metadata"
GROUND_TRUTH = Names(
    OPEN.read | {"source"},
    STEMS,
    open=True,
    answers=lambda row, name: name.endswith(META) or f"{name}{META}" in row,
)
VOTED = ("winner", "preference", "choice", "answer", "label", "better")
SURE = ("posterior", "confidence", "probability")
"""Numbers that say how sure a consolidation is, and rate nothing."""
HELD = ("answers", "annotations", "workerAnswers", "worker-responses", "responses")
"""Where the answers of single workers stand in a label that holds them."""


def from_ground_truth(row: Row) -> Candidates:
    """A line of an output manifest of SageMaker Ground Truth: a prompt with its responses, and a label.

    The label holds single workers' answers, or what a consolidation made of them (a winner, perhaps with votes), or is
    the class of a built-in job. The responses are in the order shown, as the manifest has them.
    """
    source = (
        loads(row["source"]) if isinstance(row.get("source"), str) and row["source"].lstrip().startswith("{") else None
    )
    attributes = labels(row)
    data = {name: value for name, value in row.items() if name not in attributes and not name.endswith(META)}
    task = Task({**data, **source} if isinstance(source, dict) else data)
    opinions: list[Said] = []
    for name in attributes:
        meta = row.get(name + META)
        found = list(_label(name, row[name], meta if isinstance(meta, dict) else {}, task))
        opinions += found if len(attributes) == 1 else [{"criterion": name} | said for said in found]
    return candidates(data, task.prompt, task.responses, opinions)


def labels(row: Row) -> list[str]:
    """The label attributes of a manifest line: those with metadata beside them."""
    return [name for name in row if f"{name}{META}" in row]


def _label(name: str, label: object, meta: Row, task: Task) -> Iterator[Said]:
    label = loads(label) if isinstance(label, str) and label.lstrip()[:1] in ("{", "[") else label
    if isinstance(label, list):
        yield from _workers(name, label, task)
    elif isinstance(label, dict):
        held = next((key for key in HELD if isinstance(label.get(key), list)), None)
        yield from _workers(f"{name}.{held}", label[held], task) if held else _consolidated(name, label, task)
    elif label is not None:
        said = choice(name, meta.get("class-name", label)) if len(task.responses) == 2 else None
        if said:
            yield said


def _consolidated(name: str, label: Row, task: Task) -> Iterator[Said]:
    """A winner with the votes behind it, each an opinion of nobody in particular; or an answer as it was given."""
    votes = label.get("votes")
    if isinstance(votes, dict) and len(task.responses) == 2:
        for side, count in votes.items():
            times = number(f"{name}.votes.{side}", count) or 0.0
            if not (times.is_integer() and 0 <= times <= 1000):
                raise RowFault("malformed", f"{name}.votes.{side}: must be a number of votes, but it is {brief(count)}")
            said = choice(f"{name}.votes", side)
            yield from [said] * int(times) if said else ()
    else:
        yield from worker_opinions(name, label, task)


def _workers(name: str, given: Iterable[Any], task: Task) -> Iterator[Said]:
    """The answers of single workers, in the shape of a worker-response file or of a Lambda's event."""
    for i, one in enumerate(given):
        place = f"{name}.{i}"
        worker = fields(place, one)
        data = worker.get("answerContent", worker.get("annotationData", worker.get("answer")))
        data = data["content"] if isinstance(data, dict) and "content" in data else data
        if isinstance(data, dict | str):
            for said in worker_opinions(place, fields(place, data), task):
                yield said | {"annotator": named(worker, "workerId")}
        elif data is not None:
            raise RowFault("malformed", f"{place}: must hold an answer, but it is {brief(data)}")


def worker_opinions(name: str, content: Row, task: Task) -> Iterator[Said]:
    """What one answer says: rankings by dimension, a label, radio buttons, or numbers named for their responses."""
    task.count(content)
    for key, value in content.items():
        place = f"{name}.{key}"
        if key == "ordinalRankingDimensions":
            yield from _dimensions(place, value, task)
        elif isinstance(value, dict) and "ordinalRankingDimensions" in value:
            yield from _dimensions(place, value["ordinalRankingDimensions"], task)
        elif isinstance(value, dict):
            if said := task.choice(_pressed(value), key):
                yield said
        elif key in VOTED and isinstance(value, str | int) and len(task.responses) == 2:
            if said := task.choice(value, key):
                yield said
        elif _rates(key, value, task) and (said := task.rating(value, key)):
            yield said


def _rates(key: str, value: object, task: Task) -> bool:
    """Whether a number in an answer is the rating of a response."""
    numeric = isinstance(value, int | float) and not isinstance(value, bool)
    return numeric and key not in SURE and task.place(key) is not None


def _pressed(value: Row) -> object:
    """The label of a classifier, or the one radio button that is pressed."""
    pressed = [name for name, state in value.items() if state is True]
    return value["label"] if "label" in value else pressed[0] if len(pressed) == 1 else None


def _dimensions(name: str, given: object, task: Task) -> Iterator[Said]:
    """Rankings: entry k is the rank of response k, and equal ranks tie."""
    for i, one in enumerate(items(name, given)):
        dimension = fields(f"{name}.{i}", one)
        rankings = items(f"{name}.{i}.responseRankings", dimension.get("responseRankings"))
        if said := ranks(f"{name}.{i}.responseRankings", rankings, of=len(task.responses)):
            yield said | task.criterion(named(dimension, "name"))
