"""Faults of a text: each is found where it was planted among ordinary texts, and hardly anywhere else."""

from __future__ import annotations

import random
import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from druthers.curate import hygiene
from druthers.curate.hygiene import BIT, KINDS, faults, is_cut, named

SENTENCES = (
    "Leave the dough to rest for an hour, or overnight in the fridge.",
    "You might ask at the town hall whether a permit is needed.",
    "That depends on how much time you have and what you like.",
    "The battery usually lasts for two days if the screen is dim.",
    "Start with the first chapter, because the later ones build on it.",
    "Most people find it easier to write a list the night before.",
    "It was built in 1889 and stands about 330 metres tall!",
    "Would you rather travel by train, or is a car more practical?",
    "I would keep the receipt until the warranty has run out.",
    "Both answers are right, although the second is harder to check.",
)
WHOLE = (
    "Plum", "42", "Yes", "Sure, hold on", "Paris, France", "You're welcome :)", "Great question! 🙂",
    "Dear Ann,\n\nI shall come on Friday. Please wait for me.\n\nBest regards,\nBob",
    "You need:\n- flour\n- two eggs\n- a little milk", "1. Paris\n2. Rome\n3. Berlin",
    "Try this:\n\n```py\nx = 1\nprint(x)\n```", "| a | b |\n|---|---|\n| 1 | 2 |", "See https://a.example/page",
    "She said: “Come in.”", "It is 10 °C", "**Answer:** B", "# Title\n\nAll is said.\n\n## Thanks",
    "Schritt eins ist fertig. Danach geht es weiter.", "第一步完成了。然后继续。", "What now?",
)  # fmt: skip


def ordinary(draw: random.Random) -> str:
    if draw.random() < 0.3:
        return draw.choice(WHOLE)
    parts = draw.choices(SENTENCES, k=draw.randrange(1, 7))
    if draw.random() < 0.3:
        return "\n".join(f"{i}. {part}" for i, part in enumerate(parts, 1))
    return draw.choice([" ", "\n\n"]).join(parts)


def cut(draw: random.Random) -> str:
    """An answer of at least two sentences that stops within its last one, at least three words in, maybe in a word."""
    parts = draw.choices(SENTENCES, k=draw.randrange(2, 7))
    words = parts[-1].split()
    kept = " ".join(words[: draw.randrange(3, len(words) - 1)])
    parts[-1] = kept + (" " + words[-1][:2] if draw.random() < 0.3 else "")
    if draw.random() < 0.3:
        return "\n".join(f"{i}. {part}" for i, part in enumerate(parts, 1))
    return " ".join(parts)


def with_token(draw: random.Random) -> str:
    token = draw.choice(
        ["<|im_start|>user", "<|im_end|>", "[INST]", "[/INST]", "<<SYS>>", "</s>", "<|eot_id|>", "<end_of_turn>",
         "<start_of_turn>", "<|endoftext|>", "<｜end▁of▁sentence｜>", "<bos>", "<|start_header_id|>"]
    )  # fmt: skip
    return draw.choice(
        [f"{ordinary(draw)}{token}", f"{token} {ordinary(draw)}", f"{ordinary(draw)} {token} {ordinary(draw)}"]
    )


PLANTS = {
    "cut": cut,
    "template": with_token,
    "empty": lambda draw: draw.choice(["", " ", "\n\n", "\t \n", "\u00a0"]),
    "fence": lambda draw: f"{ordinary(draw)}\n\n```py\nx = {draw.random()}\n",
    "control": lambda draw: ordinary(draw).replace(" ", draw.choice(["\x00", "\x0b ", "\u202e"]), 1) + "\x1b",
    "encoding": lambda draw: (
        ordinary(draw) + draw.choice(["Itâ€™s cafÃ© time.", " lost \ufffd here.", " schÃ¶n.", " naÃ¯ve."])
    ),
    "turn": lambda draw: f"{ordinary(draw)}\n\n{draw.choice(['Human', 'User', 'Assistant'])}: {ordinary(draw)}",
}


def test_planted_faults_are_found_among_ordinary_texts() -> None:
    """Precision and recall at least 0.95 with 200 of each kind among 20 000 ordinary texts."""
    draw = random.Random(3)
    false = hygiene.count(faults(ordinary(draw)) for _ in range(20_000))
    for kind, make in PLANTS.items():
        right = sum(kind in named(faults(make(draw))) for _ in range(200))
        assert right >= 190, (kind, right)
        assert right / (right + false.get(kind, 0)) >= 0.95, (kind, false)


@pytest.mark.parametrize("end", ["<|im_start|>user", "<start_of_turn>model\n", "\x1b[0m", "<|eot_id|><|user|> Ann"])
def test_what_a_template_left_behind_an_answer_does_not_cut_it(end: str) -> None:
    assert "cut" not in named(faults(f"It is warm here in June. Then it rains.{end}"))
    assert "cut" in named(faults(f"It is warm here in June. Then in July it gets a lot warm{end}"))


@pytest.mark.parametrize("text", WHOLE)
def test_whole_answers_are_whole(text: str) -> None:
    assert not is_cut(text)
    assert not faults(text)


@pytest.mark.parametrize(
    "text",
    [
        "It is warm here in June. Then in July it gets a lot warm",
        "First, soak the beans. After that,",
        "I think they call it that because",
        "1. Boil the water.\n2. Add the rice.\n3. Let it stand for ten",
        "1. Boil the water.\n2. Add the rice.\n3. Stir it once.\n4. Let it",
        "Das Wetter ist gut. Morgen soll es aber leider wieder",
        "第一步完成了。然后我们继续把水倒进锅里再",
        "It depends. You could say (as many",
        "Some are liked. Others are well-",
    ],
)
def test_cut_answers_are_cut(text: str) -> None:
    assert named(faults(text)) == ("cut",)


@settings(deadline=None)
@given(st.integers(0, 2**32))
def test_a_mark_at_its_end_makes_any_answer_whole(seed: int) -> None:
    assert not is_cut(cut(random.Random(seed)) + ".")


@pytest.mark.parametrize(
    ("text", "kinds"),
    [
        ("a\u202eb שלום", ()),
        ("a\u202eb.", ("control",)),
        ("Tabs\tand\r\nlines.", ()),
        ("👩\u200d👩\u200d👧 and نعم.", ()),
        ("Ã is a letter, Â too, São Paulo is a city.", ()),
        ("Use <s>old</s> new words.", ()),
        ("Use <b>bold</b> and a[0] < b[1].", ()),
        ("The end.</s>", ("template",)),
        ("[CLS] first [SEP]", ("template",)),
        ("```\ncode\n```\n\nDone.", ()),
        ("````\n```\n````\nDone.", ()),
        ("Inline ```code``` here.", ()),
        ("~~~\ncode", ("fence",)),
        ("Q&A: no.", ()),
    ],
)
def test_edges(text: str, kinds: tuple[str, ...]) -> None:
    assert named(faults(text)) == kinds


def test_the_tokens_of_the_tokenizer_at_hand_count() -> None:
    special = frozenset({"<extra_0>", "the", "▁", "<s>"})
    assert named(faults("Here <extra_0> it is.", special=special)) == ("template",)
    assert faults("Here it is, the end.", special=special) == 0


@settings(deadline=None)
@given(st.text(alphabet=st.characters(codec=None), max_size=200))
def test_every_text_has_known_faults(text: str) -> None:
    bits = faults(text)
    assert 0 <= bits < 1 << len(KINDS)
    assert sum(BIT[kind] for kind in named(bits)) == bits


@settings(deadline=None)
@given(st.text(alphabet="äöüßéèçñ ", min_size=1, max_size=30).filter(lambda t: re.search(r"[^ ]", t)))
def test_doubly_encoded_text_is_found_and_plain_text_is_not(text: str) -> None:
    assert "encoding" not in named(faults(text))
    assert "encoding" in named(faults(text.encode().decode("latin-1")))
