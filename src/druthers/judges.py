"""Which response is better: a rule rubric, written in TOML, that gives the same score to the same text every time.

A rubric is a list of rules. Each has a `kind` (a small pure function of prompt and response), a weight, and the
parameters of its kind. The score of a response is the weight of the rules it keeps over the weight of all rules; a
broken rule marked `gate` makes it 0, and one marked `must` keeps it from being the chosen side of a pair.

    name = "short-and-kind"

    [[rules]]
    name = "short"
    label = "at most 40 words"      # what the report prints
    kind = "word_count"
    weight = 2
    most = 40
"""

from __future__ import annotations

import math
import re
import tomllib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from importlib import resources
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, TypeAdapter, ValidationError, model_validator

from druthers.records import Candidate, Candidates, InputError, Judgement, Message, Prompt
from druthers.storage import explain, offer

Messages = tuple[Message, ...]

# ---------------------------------------------------------------- what a rule sees

SENTENCE_END = re.compile(
    r"""(?: (?<=[.!?…]) | (?<=[.!?…]["'”’)\]*]) )              # behind the mark, or the quote that closes it
        (?<!\b\d\.)(?<!\b\d\d\.)                               # not behind the number of a list
        (?<!\b[DdMm]r\.)(?<!\b[Mm]rs\.)(?<!\be\.g\.)(?<!\bi\.e\.)(?<!\bvs\.)
        \s+ | \s*\n\s*""",
    re.VERBOSE,
)
WORD = re.compile(r"[^\W_]+(?:['’-][^\W_]+)*")
ENDS_WELL = re.compile(r"""[^\W\d_][^\n]*[.!?…]["'”’)\]*]*\s*$""")
COMMON = frozenset(
    """
    a about after again ago all also am an and another any anything are as ask at away back be because been
    before being best better between both but by came can cannot come could day days did do does doing done each
    else even ever every few find first for from gave get gets getting give given go goes going gone good got
    had has have having he hello help her here hi him his how however i if in instead into is it its just keep
    kind know last least left let like likely little long look looking made make makes many may maybe me might
    mine more most much must my myself need needs never new next no nor not nothing now of off often old on once
    one only or other our out over own people place please put quite rather really right said same say says see
    seem seems she should simple since so some someone something soon still such sure take tell than thank
    thanks that the their them then there these they thing things think this those though three through time to
    today together told tomorrow too took tried try two under until up us use used using very want wanted wants
    was way we week weeks well went were what when where whether which while who whole whose why will with
    within without won work works would write year years yes yesterday yet you your yours
    """.split()
)
"""Words that carry little meaning, and verbs of every request."""
SUFFIX = re.compile(r"(?:'s|’s|ings?|edly|ed|ies|es|s|ly|y|e)$")


def sentences_of(text: str) -> tuple[str, ...]:
    """The sentences of a text; a line break ends one too.

    >>> sentences_of('Sorry, Dr. Lee! Here is the plan:\\n1. Rest. "Why?" Just do.')
    ('Sorry, Dr. Lee!', 'Here is the plan:', '1. Rest.', '"Why?"', 'Just do.')
    """
    return tuple(part for part in SENTENCE_END.split(text.strip()) if part)


def stem(word: str) -> str:
    """A word without its common endings, enough to match 'leaking' with 'leaks'; at least three letters stay.

    >>> stem("leaking"), stem("leaks"), stem("deliveries"), stem("delivery"), stem("tie")
    ('leak', 'leak', 'deliver', 'deliver', 'tie')
    """
    short = SUFFIX.sub("", word.lower())
    short = short if len(short) >= 3 else word.lower()
    return short[:-1] if len(short) > 3 and short[-1] == short[-2] else short


def content_stems(text: str) -> frozenset[str]:
    """Stems of the words that carry meaning.

    >>> sorted(content_stems("My new kettle is leaking, what should I do?"))
    ['kettl', 'leak']
    """
    words = (word.lower().replace("’", "'") for word in WORD.findall(text))
    return frozenset(stem(w) for w in words if len(w) > 2 and w not in COMMON and "n't" not in w and w.isascii())


@dataclass(frozen=True)
class Reading:
    """A response and the user's last turn, taken apart once for all rules."""

    asked: str
    text: str

    @cached_property
    def sentences(self) -> tuple[str, ...]:
        """The sentences of the response."""
        return sentences_of(self.text)

    @cached_property
    def words(self) -> tuple[str, ...]:
        """The words of the response, in lower case."""
        return tuple(word.lower() for word in WORD.findall(self.text))


# ---------------------------------------------------------------- rules


def compiled(pattern: str) -> str:
    """The pattern itself, if it is a regular expression."""
    try:
        re.compile(pattern)
    except re.error as error:
        raise ValueError(f"{pattern!r} is not a regular expression: {error}") from None
    return pattern


Patterns = Annotated[tuple[Annotated[str, AfterValidator(compiled)], ...], Field(min_length=1)]
Phrases = Annotated[tuple[Annotated[str, Field(min_length=1)], ...], Field(min_length=1)]


class Rule(BaseModel):
    """What all rules share. A response that breaks a `gate` scores 0; one that breaks a `must` is never chosen."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    name: str = Field(min_length=1)
    label: str = Field(min_length=1)
    kind: str
    weight: float = Field(1.0, ge=0)
    gate: bool = False
    must: bool = False


class FirstSentence(Rule):
    """The first sentence matches one of the patterns."""

    kind: Literal["first_sentence"]
    patterns: Patterns


class LastSentence(Rule):
    """The last sentence matches one of the patterns, and is finished."""

    kind: Literal["last_sentence"]
    patterns: Patterns


class Requires(Rule):
    """One of the patterns occurs."""

    kind: Literal["requires"]
    patterns: Patterns


class Forbids(Rule):
    """None of the patterns occurs."""

    kind: Literal["forbids"]
    patterns: Patterns


class Banned(Rule):
    """None of the phrases occurs as whole words, in whatever case."""

    kind: Literal["banned"]
    phrases: Phrases


class Mentions(Rule):
    """At least `words` content words of the user's last turn come back, within the first `sentences` where given."""

    kind: Literal["mentions"]
    words: int = Field(1, ge=1)
    sentences: int | None = Field(None, ge=1)


class WordCount(Rule):
    """At least `least` and at most `most` words."""

    kind: Literal["word_count"]
    least: int = Field(1, ge=0)
    most: int = Field(ge=1)

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.least > self.most:
            raise ValueError(f"least = {self.least} is above most = {self.most}, so no response could keep the rule")
        return self


class Complete(Rule):
    """The response ends with the mark that ends a sentence, so it was not cut off."""

    kind: Literal["complete"]


class DistinctSentences(Rule):
    """No sentence comes twice."""

    kind: Literal["distinct_sentences"]


class FreshWords(Rule):
    """At most the share `most` of the sequences of `size` words repeats an earlier one."""

    kind: Literal["fresh_words"]
    size: int = Field(4, ge=1)
    most: float = Field(0.0, ge=0, lt=1)


class InRole(Rule):
    """No marks of a chat template, and no turn written for someone else ('User:')."""

    kind: Literal["in_role"]
    roles: Phrases = ("user", "human", "customer", "assistant", "system", "ai")


def found(patterns: tuple[str, ...], text: str) -> bool:
    """Whether one of the patterns occurs, in whatever case."""
    return any(re.search(pattern, text, re.IGNORECASE) for pattern in patterns)


def first_sentence(rule: FirstSentence, reading: Reading) -> bool:
    """The first sentence matches."""
    return bool(reading.sentences) and found(rule.patterns, reading.sentences[0])


def last_sentence(rule: LastSentence, reading: Reading) -> bool:
    """The last sentence matches; one that was cut off does not end anything."""
    return bool(ENDS_WELL.search(reading.text)) and found(rule.patterns, reading.sentences[-1])


def requires(rule: Requires, reading: Reading) -> bool:
    """Some pattern occurs."""
    return found(rule.patterns, reading.text)


def forbids(rule: Forbids, reading: Reading) -> bool:
    """No pattern occurs."""
    return not found(rule.patterns, reading.text)


def banned(rule: Banned, reading: Reading) -> bool:
    """No phrase occurs; curly apostrophes count as straight ones."""
    text = reading.text.replace("’", "'")
    return not any(re.search(rf"(?<!\w){re.escape(phrase)}(?!\w)", text, re.IGNORECASE) for phrase in rule.phrases)


def mentions(rule: Mentions, reading: Reading) -> bool:
    """Enough content words of the question come back; a question that has fewer asks for all of them."""
    asked = content_stems(reading.asked)
    answered = content_stems(" ".join(reading.sentences[: rule.sentences]))
    return bool(reading.sentences) and len(asked & answered) >= min(rule.words, len(asked))


def word_count(rule: WordCount, reading: Reading) -> bool:
    """The number of words is within the limits."""
    return rule.least <= len(reading.words) <= rule.most


def complete(rule: Complete, reading: Reading) -> bool:
    """The last line ends a sentence."""
    return bool(ENDS_WELL.search(reading.text))


def distinct_sentences(rule: DistinctSentences, reading: Reading) -> bool:
    """All sentences differ, punctuation and case aside."""
    plain = [tuple(word.lower() for word in WORD.findall(sentence)) for sentence in reading.sentences]
    said = [words for words in plain if words]
    return len(set(said)) == len(said)


def fresh_words(rule: FreshWords, reading: Reading) -> bool:
    """Few word sequences are repeated."""
    words = reading.words
    grams = [words[i : i + rule.size] for i in range(len(words) - rule.size + 1)]
    return len(grams) - len(set(grams)) <= rule.most * len(grams)


def in_role(rule: InRole, reading: Reading) -> bool:
    """Nothing of the template, no turn of another speaker."""
    speakers = "|".join(map(re.escape, rule.roles))
    return not re.search(
        rf"<\|[^|>]*\|>|</?s>|\[/?INST\]|^\W*(?:{speakers})\s*:|^(?:user|assistant|system)\s*$",
        reading.text,
        re.I | re.M,
    )


KINDS: dict[str, tuple[type[Rule], Callable[[Any, Reading], bool]]] = {
    "first_sentence": (FirstSentence, first_sentence),
    "last_sentence": (LastSentence, last_sentence),
    "requires": (Requires, requires),
    "forbids": (Forbids, forbids),
    "banned": (Banned, banned),
    "mentions": (Mentions, mentions),
    "word_count": (WordCount, word_count),
    "complete": (Complete, complete),
    "distinct_sentences": (DistinctSentences, distinct_sentences),
    "fresh_words": (FreshWords, fresh_words),
    "in_role": (InRole, in_role),
}
"""What may stand as `kind`: the parameters it takes, and whether a response keeps the rule."""

# ---------------------------------------------------------------- rubric


@dataclass(frozen=True)
class Score:
    """`total` in [0, 1]; `rules`: 1 for each rule that was kept, 0 for a broken one."""

    total: float
    rules: dict[str, float]


@dataclass(frozen=True)
class Rubric:
    """Rules with weights; `load_rubric` reads one.

    >>> rubric = parse_rubric({"name": "short", "rules": [
    ...     {"name": "brief", "label": "at most 3 words", "kind": "word_count", "most": 3, "weight": 3},
    ...     {"name": "whole", "label": "ends a sentence", "kind": "complete"}]}, where="example")
    >>> rubric.score((Message(role="user", content="Name a fruit."),), "A ripe plum")
    Score(total=0.75, rules={'brief': 1.0, 'whole': 0.0})
    """

    name: str
    rules: tuple[Rule, ...]

    @property
    def labels(self) -> dict[str, str]:
        """What each rule asks for, in words, by its name."""
        return {rule.name: rule.label for rule in self.rules}

    @property
    def musts(self) -> tuple[str, ...]:
        """Names of the rules that the chosen response of a pair keeps without exception."""
        return tuple(rule.name for rule in self.rules if rule.must)

    def score(self, prompt: Messages, text: str) -> Score:
        """How well a response to the prompt keeps the rules."""
        reading = Reading(asked=last_question(prompt), text=text)
        kept = {rule.name: KINDS[rule.kind][1](rule, reading) for rule in self.rules}
        stopped = any(rule.gate and not kept[rule.name] for rule in self.rules)
        won = math.fsum(rule.weight for rule in self.rules if kept[rule.name])
        total = 0.0 if stopped else round(won / math.fsum(rule.weight for rule in self.rules), 6)
        return Score(total=total, rules={name: float(value) for name, value in kept.items()})


def last_question(prompt: Messages) -> str:
    """The user's last turn ('' where there is none)."""
    return next((message.content for message in reversed(prompt) if message.role == "user"), "")


def rubric_names() -> list[str]:
    """Names of the rubrics that come with druthers."""
    folder = resources.files("druthers") / "data"
    return sorted(entry.name for entry in folder.iterdir() if (entry / "rubric.toml").is_file())


def load_rubric(name_or_path: str) -> Rubric:
    """A packaged rubric by name, or a TOML file.

    Raises InputError naming the rule and the key that is wrong.

    >>> load_rubric("brand-voice").name
    'brand-voice'
    """
    path = Path(name_or_path)
    if name_or_path in rubric_names():
        path = Path(str(resources.files("druthers") / "data" / name_or_path / "rubric.toml"))
    try:
        tree = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(f"rubric {name_or_path!r} is neither a file nor one of {', '.join(rubric_names())}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise InputError(f"{name_or_path}: not valid TOML: {error}") from None
    except OSError as error:
        raise InputError(f"{name_or_path}: cannot be read: {error.strerror}") from None
    return parse_rubric(tree, where=name_or_path)


def parse_rubric(tree: Mapping[str, Any], *, where: str) -> Rubric:
    """A rubric from plain values; `where` begins the text of an InputError."""
    for key in tree:
        if key not in ("name", "rules"):
            raise InputError(f"{where}: {key}: unknown key{offer(key, ['name', 'rules'])}")
    name, rows = tree.get("name"), tree.get("rules")
    if not isinstance(name, str) or not name:
        raise InputError(f'{where}: name: missing; say what the rubric is called, for example name = "short-and-kind"')
    if not isinstance(rows, list) or not rows or not all(isinstance(row, dict) for row in rows):
        raise InputError(f"{where}: rules: a rubric needs at least one rule; write it as a [[rules]] table")
    rules = tuple(
        parse_rule(row, where=f"{where}: rule {row.get('name', number)!r}") for number, row in enumerate(rows, start=1)
    )
    names = [rule.name for rule in rules]
    twice = next((one for one in names if names.count(one) > 1), None)
    if twice is not None:
        raise InputError(f"{where}: rule {twice!r} is written twice; give every rule its own name")
    if not any(rule.weight for rule in rules):
        raise InputError(f"{where}: all weights are 0, so every response would score the same; give one rule a weight")
    return Rubric(name=name, rules=rules)


def parse_rule(row: Mapping[str, Any], *, where: str) -> Rule:
    """One rule from plain values."""
    kind = row.get("kind")
    if kind not in KINDS:
        raise InputError(f"{where}: kind {kind!r} is not a kind of rule{offer(str(kind), KINDS)}")
    model = KINDS[kind][0]
    try:
        return TypeAdapter(model).validate_python(row)
    except ValidationError as error:
        raise InputError(f"{where}: {explain(error, model)}") from None


# ---------------------------------------------------------------- judging


def compare(rubric: Rubric, prompt: Messages, a: str, b: str, *, names: tuple[str, str] = ("a", "b")) -> Judgement:
    """Which of two responses scores higher; equal scores are a tie. `names` says who answered, as Judgement.a and .b.

    A response is scored without sight of the other, so the sides can be exchanged freely.
    """
    score_a, score_b = rubric.score(prompt, a), rubric.score(prompt, b)
    better: Literal["a", "b"] = "a" if score_a.total > score_b.total else "b"
    return Judgement(
        prompt_id=Prompt(prompt=prompt).prompt_id,
        judge=rubric.name,
        a=names[0],
        b=names[1],
        outcome="tie" if score_a.total == score_b.total else better,
        score_a=score_a.total,
        score_b=score_b.total,
        rules_a=score_a.rules,
        rules_b=score_b.rules,
    )


def rate(rubric: Rubric, candidates: Candidates) -> Candidates:
    """The candidates with score, rules and rank; rank 1 is best, equal scores share a rank (1, 2, 2, 4)."""
    scores = [rubric.score(candidates.prompt, response.content) for response in candidates.responses]
    totals = [score.total for score in scores]
    rated = tuple(
        placed(response, score, rank=1 + sum(total > score.total for total in totals))
        for response, score in zip(candidates.responses, scores, strict=True)
    )
    return candidates.model_copy(update={"responses": rated})


def placed(response: Candidate, score: Score, *, rank: int) -> Candidate:
    """A candidate with what the judge found."""
    return response.model_copy(update={"score": score.total, "rank": rank, "rules": score.rules})
