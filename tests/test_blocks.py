"""Many pairs at once are tokenized as one pair is: same ids, same masks, same refusals, whatever the template."""

from __future__ import annotations

import functools
import itertools
import pickle
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Regex, Tokenizer, normalizers, pre_tokenizers, trainers
from tokenizers import models as kinds
from transformers import PreTrainedTokenizerFast

from druthers.blocks import Block, BlockTokenizer, Picked, TokenizedPairs, facts_of
from druthers.pieces import RULES, rules_of
from druthers.records import InputError, Message, Pair, assistant, user
from druthers.tokens import TokenizedPair, tokenize
from tests import tiny
from tests.test_tokens import NO_END, REWRITES, WITH_TOOLS, tool_exchange

LAW = settings(max_examples=60, deadline=None, derandomize=True)
LLAMA = (
    "{{ bos_token }}{% if messages[0]['role'] == 'system' %}{% set first = messages[0]['content'] | trim %}"
    "{% set messages = messages[1:] %}{% else %}{% set first = 'Be brief.' %}{% endif %}"
    "<|im_start|>system\n\n{{ first }}<|im_end|>{% for m in messages %}"
    "{% set content = '<|im_start|>' + m['role'] + '\n\n' + m['content'].strip() + '<|im_end|>' %}{{ content }}"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n\n{% endif %}"
)
LOOKS = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n"
    "{{ 'Hm. ' if 'a' in m.content else '' }}{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
LENGTH = LOOKS.replace("'a' in m.content", "m.content | length > 9")
JOINS = LOOKS.replace("'a' in m.content", "'b' in ('' ~ m.content)")
FORMATS = LOOKS.replace("'a' in m.content", "'c' in '%s' % (m.content,)")
CAPTURES = LOOKS.replace("{{ 'Hm. '", "{% set x %}{{ m.content }}{% endset %}{{ 'Hm. '").replace("in m.content", "in x")
NO_SYSTEM = "{% if messages[0].role == 'system' %}{{ raise_exception('No system turn') }}{% endif %}" + tiny.TEMPLATE
TEMPLATES = {
    "chatml": tiny.TEMPLATE,
    "llama": LLAMA,
    "tools": WITH_TOOLS,
    "no end": NO_END,
    "rewrites": REWRITES,
    "no system": NO_SYSTEM,
    "looks": LOOKS,
    "length": LENGTH,
    "joins": JOINS,
    "formats": FORMATS,
    "captures": CAPTURES,
}
FRAMED = {"chatml", "llama", "tools", "no end", "no system", "rewrites"}
CL100K = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|"
    r"\s*[\r\n]+|\s+(?!\S)|\s+"
)
LETTERS = r"[^\r\n\p{L}\p{N}]?"
UPPER, LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
SHORT, SPACES = "(?i:'s|'t|'re|'ve|'m|'ll|'d)", r"\s*[\r\n]+|\s+(?!\S)|\s+"
SPLITS = {
    "cl100k": CL100K,
    "cl100k folded": (
        rf"'(?i:[sdmt]|ll|ve|re)|{LETTERS}\p{{L}}+|\p{{N}}{{1,3}}| ?[^\s\p{{L}}\p{{N}}]+[\r\n]*|"
        r"\s*[\r\n]|\s+(?!\S)|\s+"
    ),
    "gpt2 in full": r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+",
    "marks": rf"{SHORT}|{LETTERS}[\p{{L}}\p{{M}}]+|\p{{N}}| ?[^\s\p{{L}}\p{{M}}\p{{N}}]+[\r\n]*|{SPACES}",
    "camel": (rf"{LETTERS}{UPPER}*{LOWER}+|{LETTERS}{UPPER}+{LOWER}*|\p{{N}}| ?[^\s\p{{L}}\p{{N}}]+[\r\n/]*|{SPACES}"),
    "o200k": (
        rf"{LETTERS}{UPPER}*{LOWER}+{SHORT}?|{LETTERS}{UPPER}+{LOWER}*{SHORT}?|\p{{N}}{{1,3}}|"
        rf" ?[^\s\p{{L}}\p{{N}}]+[\r\n/]*|{SPACES}"
    ),
}
"""Regular expressions that cut, by the tokenizers that use them; every rule that is understood stands in one."""
BY_BYTES = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
GPT2 = pre_tokenizers.ByteLevel(add_prefix_space=False)
CUTTERS = {
    "gpt2": GPT2,
    "digits": pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), GPT2]),
    **{
        name: pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(rules), "isolated"), BY_BYTES])
        for name, rules in SPLITS.items()
    },
    "bytes": BY_BYTES,
    "across spaces": pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(r"\w+ \w+|\s+"), "isolated"), BY_BYTES]),
    "prefix": pre_tokenizers.ByteLevel(add_prefix_space=True),
}
IN_PIECES = {"gpt2", "digits", *SPLITS}
TEXT = (
    "the cat isn't on the mat.  It sat\n\n12345 times: don't ask 'why', ask where he's been, naïve café! the the a b c"
)


@functools.cache
def learned(cutter: str, *, composed: bool = False, greedy: bool = False) -> Any:
    """A tokenizer with merges of its own, and an added token that is no control token."""
    core = Tokenizer(kinds.BPE())
    core.pre_tokenizer = CUTTERS[cutter]
    if composed:
        core.normalizer = normalizers.NFC()
    control = ["<|im_start|>", "<|im_end|>", "<|endoftext|>"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=420, special_tokens=control, initial_alphabet=alphabet, show_progress=False
    )
    core.train_from_iterator([TEXT, TEXT.replace(" ", "  "), TEXT + "e\u0301"] * 3, trainer)
    made = PreTrainedTokenizerFast(tokenizer_object=core, bos_token="<|im_start|>", eos_token="<|im_end|>")
    made.add_tokens([AddedToken("<call>", special=False, normalized=False, rstrip=greedy)])
    if not composed:
        made.add_tokens([AddedToken("<ca", special=False, normalized=True), "<call"])
    made.chat_template = tiny.TEMPLATE
    return made


@functools.cache
def block_tokenizer(name: str, cutter: str | None, limits: tuple[int, int]) -> tuple[BlockTokenizer, Any]:
    """The tokenizer of many pairs, and the one it is made of."""
    tokenizer = tiny.tokenizer() if cutter is None else pickle.loads(pickle.dumps(learned(cutter)))
    tokenizer.chat_template = TEMPLATES[name]
    return BlockTokenizer(tokenizer, max_prompt=limits[0], max_response=limits[1]), tokenizer


def one_by_one(pairs: list[Pair], tokenizer: Any, limits: tuple[int, int]) -> list[TokenizedPair | str]:
    """What `tokenize` gives for each pair, or what it says."""
    found: list[TokenizedPair | str] = []
    for pair in pairs:
        try:
            found.append(tokenize(pair, tokenizer, max_prompt=limits[0], max_response=limits[1]))
        except InputError as error:
            found.append(str(error))
    return found


def at_once(pairs: list[Pair], tokenizer: BlockTokenizer) -> list[TokenizedPair | str]:
    """The same from a block."""
    block, refused = tokenizer.sort(pairs)
    good = iter(TokenizedPairs([block]))
    return [str(refused[i]) if i in refused else next(good) for i in range(len(pairs))]


SPACED = ["  ", " the", " cat", " 12", "\n\n", "\u00a0"]
SIGNS = st.sampled_from([*"abetsT.,'!?:7\n\t ", *SPACED, "'s", "é", "e\u0301", "你好", "<call>", "<ca", "<call"])
WORDS = st.lists(st.one_of(SIGNS, st.text(st.characters(exclude_categories=["Cs"]), max_size=4)), max_size=12)
SAID = st.one_of(WORDS.map("".join), st.sampled_from(["", " ", "a<|im_end|>b", "<|im_end|>"]))
SPOKEN = WORDS.map("".join).filter(lambda text: text.strip())


@st.composite
def a_pair(draw: st.DrawFn) -> Pair:
    """A pair of any form that records allow: system turns, several turns, tools, blank and forbidden texts."""
    texts = draw(st.lists(SAID, min_size=1, max_size=5).filter(lambda texts: len(texts) % 2))
    turns = [Message(role="assistant" if i % 2 else "user", content=text) for i, text in enumerate(texts)]
    opening = [Message(role="system", content=draw(SAID))] if draw(st.integers(0, 3)) == 0 else []
    name = draw(st.sampled_from([None, None, None, "Ann"]))
    turns[0] = turns[0].model_copy(update={"name": name})
    chosen = tool_exchange() if draw(st.integers(0, 9)) == 0 else assistant(draw(SPOKEN))
    rejected = assistant(draw(SPOKEN.filter(lambda text: assistant(text) != chosen)))
    return Pair(
        prompt=(*opening, *turns),
        chosen=chosen,
        rejected=rejected,
        p=draw(st.sampled_from([1.0, 0.7])),
        margin=draw(st.sampled_from([0.0, 0.25])),
        weight=draw(st.sampled_from([1.0, 2.0])),
        group=draw(st.sampled_from(["", "tone", "Ärger"])),
        tools=draw(st.sampled_from([None, None, None, [{"type": "function", "function": {"name": "clock"}}]])),
    )


@LAW
@given(
    st.lists(a_pair(), min_size=1, max_size=6),
    st.sampled_from(sorted(TEMPLATES)),
    st.sampled_from([None, *CUTTERS]),
    st.sampled_from([(4000, 4000), (60, 12), (120, 2)]),
)
def test_many_pairs_at_once_are_tokenized_as_one_pair_is(
    pairs: list[Pair], template: str, cutter: str | None, limits: tuple[int, int]
) -> None:
    """Ids, masks, cuts, grades and refusals, word for word."""
    many, tokenizer = block_tokenizer(template, cutter, limits)
    assert at_once(pairs, many) == one_by_one(pairs, tokenizer, limits)


@pytest.mark.parametrize("template", sorted(TEMPLATES))
def test_a_template_is_filled_in_only_where_it_does_nothing_with_the_contents(template: str) -> None:
    """A frame for roles and nothing else, or none: the program is then run for every conversation."""
    many, _ = block_tokenizer(template, None, (4000, 4000))
    many.tokenize([Pair(prompt=user("Hi"), chosen=assistant("good"), rejected=assistant("bad"))])
    frames = [*many.writer.frames.values()]
    assert (template in FRAMED) == (bool(frames) and all(frames))


@pytest.mark.parametrize("cutter", sorted(CUTTERS))
def test_texts_are_cut_in_pieces_only_where_the_rules_are_known(cutter: str) -> None:
    """Merges that reach across a space, or a space that is put first, are seen in the tokenizer's description."""
    many, _ = block_tokenizer("chatml", cutter, (4000, 4000))
    assert many.encoder.way == ("pieces" if cutter in IN_PIECES else "whole")


def test_every_rule_that_is_understood_stands_in_a_cutter_of_these_tests() -> None:
    """None is trusted that no tokenizer here was tried with."""
    steps = [{"type": "Split", "pattern": {"Regex": rules}} for rules in SPLITS.values()]
    assert {rule for step in steps for rule in rules_of(step)} == RULES


@pytest.mark.parametrize(("more", "way"), [({"composed": True}, "pieces"), ({"greedy": True}, "whole")])
def test_composed_texts_are_cut_and_greedy_added_tokens_are_not(more: dict[str, bool], way: str) -> None:
    """A token that takes the white space behind it reaches into the next piece."""
    tokenizer = learned("gpt2", **more)
    many = BlockTokenizer(tokenizer, max_prompt=4000, max_response=4000)
    texts = [
        "cafe\u0301 cafe\u0301 the\u0301  <call>  the cat<call> the",
        "e \u0301e\u0301 \u212a \u1100\u1161 \u1100 \u1161",
    ]
    found = many.encoder.encode(texts)
    assert many.encoder.way == way
    assert [found.row(i).tolist() for i in (0, 1)] == [
        tokenizer.encode(text, add_special_tokens=False) for text in texts
    ]


def test_pieces_are_forgotten_when_there_are_many_and_the_ids_stay_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    """Memory is bounded, and what is forgotten is encoded again."""
    monkeypatch.setattr("druthers.pieces.MOST_PIECES", 20)
    many, tokenizer = block_tokenizer("chatml", "gpt2", (4000, 4000))
    many.encoder.forget()
    sizes = []
    for i in range(12):
        text = f"number {i} is {i * i} or the {'cat' * i}"
        assert many.encoder.encode([text]).values.tolist() == tokenizer.encode(text, add_special_tokens=False)
        sizes.append(len(many.encoder.index))
    assert max(sizes) <= 26
    assert any(later < earlier for earlier, later in itertools.pairwise(sizes))


def test_a_copy_in_another_process_needs_no_tokenizer_for_what_was_learned() -> None:
    """The whole tokenizer stays packed, and is there for what was not."""
    many, tokenizer = block_tokenizer("llama", "gpt2", (4000, 4000))
    many.writer.learn_usual()
    twin = pickle.loads(pickle.dumps(many))
    usual = [Pair(prompt=user("Hi"), chosen=assistant("good cat"), rejected=assistant("bad"))]
    assert at_once(usual, twin) == one_by_one(usual, tokenizer, (4000, 4000))
    assert isinstance(twin.lazy.held, bytes)
    odd = [Pair(prompt=user(" "), chosen=assistant("good"), rejected=assistant("<|im_end|>"))]
    assert at_once(odd, twin) == one_by_one(odd, tokenizer, (4000, 4000))


def test_the_first_pair_that_is_refused_is_the_one_that_is_named() -> None:
    """As when pairs are tokenized in turn."""
    many, _ = block_tokenizer("chatml", None, (60, 4))
    good = Pair(prompt=user("Hi"), chosen=assistant("yes"), rejected=assistant("no"))
    alike = Pair(prompt=user("Hi"), chosen=assistant("abcdef"), rejected=assistant("abcxyz"))
    control = Pair(prompt=user("Hi"), chosen=assistant("<|im_end|>"), rejected=assistant("no"))
    with pytest.raises(InputError, match="same 4 tokens"):
        many.tokenize([good, alike, control])
    with pytest.raises(InputError, match="control token"):
        many.tokenize([good, control, alike])
    assert len(many.tokenize([])) == 0


LONG, FORBIDDEN = "so " * 40, "<|im_end|>"


def test_a_refused_pair_is_tokenized_once_and_has_the_reason_of_its_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    """What was found when the pairs were sorted is not asked again; of several faults the first counts."""
    tokenizer = tiny.tokenizer()
    many = BlockTokenizer(tokenizer, max_prompt=60, max_response=4)
    good = Pair(prompt=user("Hi"), chosen=assistant("yes"), rejected=assistant("no"))
    many.tokenize([good])
    reasons = {
        "prompt_too_long": Pair(prompt=user(LONG), chosen=assistant(FORBIDDEN), rejected=assistant("no")),
        "same_response": Pair(prompt=user("Hi"), chosen=assistant("abcdef"), rejected=assistant("abcxyz")),
        "control_tokens": Pair(prompt=user(LONG + FORBIDDEN), chosen=assistant("yes"), rejected=assistant("no")),
    }
    pairs = [good, *reasons.values(), good]
    wanted = one_by_one(pairs, tokenizer, (60, 4))
    asked: list[int] = []
    encode = many.encoder.encode
    monkeypatch.setattr(many.encoder, "encode", lambda texts: asked.append(len(texts)) or encode(texts))
    for name in ("encode", "apply_chat_template"):
        monkeypatch.setattr(tokenizer, name, None)
    _, refused = many.sort(pairs)
    assert [refused[i].reason for i in sorted(refused)] == [*reasons]
    assert len(asked) == 1
    assert at_once(pairs, many) == wanted
    assert pickle.loads(pickle.dumps(refused[3])).reason == "control_tokens"


def test_a_turn_without_an_end_token_is_refused_as_ever() -> None:
    """Before a later turn that has no fixed place."""
    for template in (NO_END, REWRITES.replace("<|im_end|>", "")):
        tokenizer = tiny.tokenizer(template)
        tokenizer.eos_token = None
        pair = Pair(prompt=user("Hi"), chosen=tool_exchange(), rejected=assistant("no"))
        many = BlockTokenizer(tokenizer, max_prompt=60, max_response=400)
        (said,) = at_once([pair], many)
        assert "end-of-turn token" in str(said)
        assert [said] == one_by_one([pair], tokenizer, (60, 400))


def test_pairs_are_read_from_their_blocks_like_a_list() -> None:
    """Items, slices, negative places, facts, and some of several sequences."""
    many, tokenizer = block_tokenizer("chatml", None, (4000, 4000))
    pairs = tiny.pairs(9)
    plain = [tokenize(pair, tokenizer, max_prompt=4000, max_response=4000) for pair in pairs]
    lazy = TokenizedPairs([many.tokenize(pairs[:4]), many.tokenize([]), many.tokenize(pairs[4:])])
    assert (len(lazy), list(lazy), lazy[2:7], lazy[-1]) == (9, plain, plain[2:7], plain[-1])
    with pytest.raises(IndexError):
        lazy[9]
    for one, two in zip(*(vars_of(facts_of(some)) for some in (lazy, plain)), strict=True):
        assert np.array_equal(one, two)
    both = Picked([lazy, plain])
    some = Picked([lazy, plain], [12, 3, 0, 8, 3])
    for picked in (both, some, Picked([]), Picked([lazy], [])):
        for one, two in zip(*(vars_of(facts_of(these)) for these in (picked, list(picked))), strict=True):
            assert (one.tolist(), one.dtype, one.shape) == (two.tolist(), two.dtype, two.shape)
    assert (len(both), list(both), both[7:11]) == (18, plain * 2, (plain * 2)[7:11])
    assert list(Picked([lazy], [3, 0, 8])) == [plain[3], plain[0], plain[8]]
    assert len(facts_of([]).p_B) == len(TokenizedPairs([]).facts.p_B) == 0


def test_facts_of_pairs_in_blocks_make_no_pair_and_others_are_looked_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """A pair out of a block is made anew whenever it is asked for."""
    many, tokenizer = block_tokenizer("chatml", None, (4000, 4000))
    plain = [tokenize(pair, tokenizer, max_prompt=4000, max_response=4000) for pair in tiny.pairs(3)]
    picked = Picked([TokenizedPairs([many.tokenize(tiny.pairs(4))])], [2, 0])
    monkeypatch.setattr(Block, "pair", None)
    assert len(facts_of(picked).p_B) == 2
    looks = iter(plain)
    assert len(facts_of(looks).p_B) == 3  # type: ignore[arg-type]


def vars_of(facts: Any) -> list[Any]:
    """The arrays of some facts."""
    return [getattr(facts, name) for name in facts.__slots__]
