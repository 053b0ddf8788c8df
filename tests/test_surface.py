"""What is counted on the surface of an answer, on known texts and by laws."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from druthers.curate.surface import BUCKETS, NAMES, surface

ANSWER = """# Soup

**Leek** soup is quick! See [this](https://a.example/soup).

1. Wash 3 leeks.
2) Cut them.
- salt
* pepper

| a | b |

```sh
boil
```
Is it GOOD? 🙂"""


def seen(text: str) -> dict[str, float]:
    return dict(zip(NAMES, surface(text), strict=True))


def test_an_answer_with_all_marks() -> None:
    found = seen(ANSWER)
    wanted = {
        "headings": 1, "bold": 1, "links": 1, "numbered": 2, "bullets": 2, "tables": 1, "fences": 2, "emoji": 1,
        "exclamations": 1, "questions": 1, "digits": 3, "apology": 0, "refusal": 0, "lines": 11,
    }  # fmt: skip
    assert {name: found[name] for name in wanted} == wanted
    assert found["characters"] == len(ANSWER)
    assert found["words"] == len(ANSWER.split())
    assert found["capitals"] == pytest.approx(1 / found["words"])


REFUSALS = [
    "I'm sorry, but I can't help with that.",
    "I’m sorry, I cannot assist you with this request.",
    "As an AI language model, I have no feelings.",
    "Unfortunately, I'm not able to provide medical advice.",
    "I won't help with this.",
    "I'm not comfortable discussing that.",
    "Dabei kann ich leider nicht helfen.",
    "Es tut mir leid, ich kann Ihnen dabei nicht weiterhelfen.",
    "Je ne peux pas vous aider.",
    "Lo siento, no puedo ayudar con eso.",
    "Non posso aiutarti con questo.",
    "К сожалению, я не могу помочь.",
    "抱歉，我无法提供帮助。",
    "申し訳ありませんが、お手伝いできません。",
]
ANSWERS = [
    "I can't wait to help you plan the party!",
    "You can't do that with a hammer.",
    "We could use butter instead.",
    "I am glad you asked. As an aside, soup freezes well.",
    "Das ist nicht schwer zu erstellen.",
    "It isn't hard: cut the leeks, and boil them.",
    "No, come in March.",
    "",
]


@pytest.mark.parametrize("text", REFUSALS)
def test_refusals_are_known(text: str) -> None:
    assert seen(text)["refusal"] == 1


@pytest.mark.parametrize("text", ANSWERS)
def test_answers_are_no_refusals(text: str) -> None:
    assert seen(text)["refusal"] == 0


@pytest.mark.parametrize(
    "text", ["I apologize for the delay.", "Oh, I'm so sorry!", "Es tut mir leid.", "Désolé, non."]
)
def test_apologies_at_the_start_are_known(text: str) -> None:
    assert seen(text)["apology"] == 1
    assert seen("The guest said: " + text)["apology"] == 0


def test_repeats_rise_as_a_text_goes_in_circles() -> None:
    once = "the cat sat on a mat and then went home "
    assert seen(once)["repeats"] == 0
    assert 0 < seen(once * 2)["repeats"] < seen(once * 8)["repeats"] < 1


@settings(deadline=None)
@given(st.text(alphabet=st.characters(codec=None), max_size=200))
def test_every_text_has_its_numbers(text: str) -> None:
    found = seen(text)
    assert all(value >= 0 for value in found.values())
    assert found["first_word"] < BUCKETS
    assert max(found["apology"], found["refusal"], found["capitals"], found["repeats"]) <= 1


@settings(deadline=None)
@given(st.lists(st.sampled_from(["one.", "- two", "3. three", "# four", "**five**!"]), max_size=8))
def test_counts_of_lines_add_up(lines: list[str]) -> None:
    found = seen("\n".join(lines))
    assert found["lines"] == len(lines)
    assert found["bullets"] == lines.count("- two")
    assert found["numbered"] == lines.count("3. three")
    assert found["headings"] == lines.count("# four")
    assert found["bold"] == found["exclamations"] == lines.count("**five**!")
