"""Languages of prompts and answers: mismatches are named, translations and short texts are not."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from druthers.curate.language import is_strange, language, script

TEXTS = {
    "en": "The kettle leaks at the bottom when the water boils, so I would send it back and ask for another.",
    "de": "Der Kessel tropft unten, wenn das Wasser kocht, darum würde ich ihn zurückschicken und einen neuen wollen.",
    "fr": "La bouilloire fuit par le bas quand l'eau bout, je la renverrais donc pour en demander une autre.",
    "es": "La tetera pierde agua por debajo cuando hierve, así que la devolvería a la tienda y pediría otra nueva.",
    "ru": "Чайник протекает снизу, когда вода закипает, поэтому я бы вернул его в магазин и попросил другой.",
    "zh": "水烧开的时候水壶底部会漏水，所以我会把它退回商店，要求换一个新的水壶，这样比较好。",
    "ja": "お湯が沸くとやかんの底から水が漏れるので、お店に返品して新しいものに交換してもらうと良いでしょう。",
    "ar": "تتسرب المياه من أسفل الغلاية عندما تغلي، لذلك سأعيدها إلى المتجر وأطلب واحدة أخرى جديدة.",
}


@pytest.mark.parametrize("code", TEXTS)
def test_languages_are_known(code: str) -> None:
    assert language(TEXTS[code])[0] == code


@pytest.mark.parametrize("asked", TEXTS)
@pytest.mark.parametrize("said", TEXTS)
def test_an_answer_is_strange_exactly_where_the_language_differs(asked: str, said: str) -> None:
    assert is_strange(TEXTS[asked], TEXTS[said]) == (asked != said and {asked, said} != {"zh", "ja"})


@pytest.mark.parametrize(
    ("prompt", "response"),
    [
        ("Translate this sentence about my kettle, please.", TEXTS["fr"]),
        ("How would you put that in German to a shop assistant?", TEXTS["de"]),
        ("Wie heißt das auf Englisch? Ich brauche einen Brief.", TEXTS["en"]),
        ("My kettle leaks, what should I do about it now?", "Oui, bien sûr."),
        ("Ok?", TEXTS["de"]),
        ("My kettle leaks, what should I do about it now?", "```\nfür = wenn + dann\nnicht = und oder aber\n```"),
        ("My kettle leaks, what should I do about it now?", ""),
        ("", TEXTS["de"]),
    ],
)
def test_what_was_asked_for_or_is_too_short_is_not_strange(prompt: str, response: str) -> None:
    assert not is_strange(prompt, response)


@settings(deadline=None)
@given(st.text(max_size=100))
def test_a_text_is_never_strange_beside_itself(text: str) -> None:
    assert not is_strange(text, text)
    assert isinstance(script(text), str)
