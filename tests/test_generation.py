"""Sampling: the model's own greedy path, honest log-probs, and answers that depend on seed and prompt alone."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import chisquare

from druthers import generation
from druthers.generation import batches, choose, end_tokens, inference_twin, transformers_generator, uniforms
from druthers.models import Loaded, adapter_off
from druthers.records import Exchange, InputError, Message, user
from druthers.tokens import encode_prompt
from tests import letters, tiny

LAW = settings(max_examples=40, deadline=None, derandomize=True)
PROMPTS = [
    user(text) for text in ("a?", "What is a kettle for?", "Help!", "one two three", "b b b b b b b b b b?", "xyz")
]


def loaded(seed: int = 0, *, compute: torch.dtype = torch.float32, **changes: object) -> Loaded:
    return Loaded(tiny.model(seed, **changes), tiny.tokenizer(), "tiny", "0" * 8, compute, torch.device("cpu"))  # type: ignore[arg-type]


def ask(
    model: Loaded,
    prompts: list[tuple[Message, ...]] = PROMPTS,
    *,
    batch_size: int = 4,
    samples: int = 1,
    temperature: float = 1.0,
    top_p: float = 1.0,
    max_new_tokens: int = 12,
    seed: int = 0,
) -> list[list[Exchange]]:
    generator = transformers_generator(model, batch_size=batch_size, model_name="tiny")
    return generator(
        prompts, samples=samples, temperature=temperature, top_p=top_p, max_new_tokens=max_new_tokens, seed=seed
    )


def texts(found: list[list[Exchange]]) -> list[list[str]]:
    return [[exchange.response for exchange in answers] for answers in found]


def own_tokens(model: Loaded, prompt: tuple[Message, ...], *, count: int) -> list[int]:
    """Greedy continuation without cache, padding or batch: the oracle."""
    ids = encode_prompt(prompt, model.tokenizer)
    start = len(ids)
    while len(ids) - start < count:
        ids.append(int(model.model(torch.tensor([ids]), use_cache=False).logits[0, -1].argmax()))
        if ids[-1] in end_tokens(model):
            break
    return ids[start:]


def test_greedy_is_the_argmax_path_of_the_model_without_cache_or_padding() -> None:
    model = loaded()
    for prompt, (answer,) in zip(PROMPTS, ask(model, temperature=0), strict=True):
        oracle = own_tokens(model, prompt, count=12)
        assert answer.response == model.tokenizer.decode(oracle, skip_special_tokens=True)
        assert answer.tokens == len(oracle)
        assert answer.finished == (oracle[-1] in end_tokens(model))


def test_logp_is_that_of_the_whole_sequence_at_temperature_one(monkeypatch: pytest.MonkeyPatch) -> None:
    kept: list[tuple[int, ...]] = []
    real = generation.read_off

    def spy(*arguments: torch.Tensor) -> list[generation.Answer]:
        answers = real(*arguments)
        kept.extend(answer.tokens for answer in answers)
        return answers

    monkeypatch.setattr(generation, "read_off", spy)
    model = loaded()
    found = ask(model, PROMPTS[:1], samples=6, batch_size=8, temperature=0.7, top_p=0.9)[0]
    prompt = encode_prompt(PROMPTS[0], model.tokenizer)
    for answer, tokens in zip(found, kept, strict=True):
        with torch.no_grad():
            logp = model.model(torch.tensor([[*prompt, *tokens]])).logits[0].double().log_softmax(-1)
        expected = sum(float(logp[len(prompt) - 1 + i, token]) for i, token in enumerate(tokens))
        assert answer.logp == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize("batch_size", [1, 2, 3, 5, 64])
def test_answers_do_not_depend_on_the_batch(batch_size: int) -> None:
    model = loaded()
    assert texts(ask(model, samples=3, batch_size=batch_size)) == texts(ask(model, samples=3, batch_size=18))


def test_batches_side_by_side_are_the_batches_one_by_one() -> None:
    """Whatever the number of threads, and it is left as it was."""
    model, before = loaded(), torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        alone = ask(model, samples=3, batch_size=4)
        torch.set_num_threads(3)
        assert ask(model, samples=3, batch_size=4) == alone
        assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(before)


def test_answers_come_in_the_order_of_the_prompts() -> None:
    model = loaded()
    found = ask(model, samples=2)
    assert [answers[0].prompt for answers in found] == PROMPTS
    assert texts(ask(model, PROMPTS[::-1], samples=2)) == texts(found)[::-1]
    assert texts(ask(model, PROMPTS[2:3], samples=2)) == texts(found)[2:3]


def test_the_seed_decides() -> None:
    model = loaded()
    assert texts(ask(model, samples=2, seed=5)) == texts(ask(model, samples=2, seed=5))
    assert texts(ask(model, samples=2, seed=5)) != texts(ask(model, samples=2, seed=6))
    assert all(len({a.response for a in answers}) > 1 for answers in ask(model, samples=4))


@pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
def test_rows_that_leave_the_batch_change_nothing(share: float, monkeypatch: pytest.MonkeyPatch) -> None:
    model = loaded(vocab=300)
    model.model.generation_config.eos_token_id = list(range(1, 60))  # most answers end soon, at different steps
    oracle = [[a.response for a in ask(model, [p], samples=3, batch_size=1)[0]] for p in PROMPTS]
    monkeypatch.setattr(generation, "CROWDED", share)
    found = ask(model, samples=3, batch_size=18)
    assert texts(found) == oracle
    assert len({a.tokens for answers in found for a in answers}) > 2


@pytest.mark.parametrize("room", [1, 3, 64])
def test_the_room_behind_the_cache_changes_nothing(room: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where the buffers are outgrown, and where rows leave them."""
    model = loaded(vocab=300)
    model.model.generation_config.eos_token_id = list(range(1, 30))
    moved: list[int] = []
    real = generation.roomy

    def spy(kept: torch.Tensor, *, room: int) -> torch.Tensor:
        moved.append(kept.shape[-2])
        return real(kept, room=room)

    monkeypatch.setattr(generation, "roomy", spy)
    monkeypatch.setattr(generation, "ROOM", room)
    found = ask(model, samples=3, batch_size=18)
    assert moved
    monkeypatch.setattr(generation, "make_room", lambda cache: None)
    moved.clear()
    assert ask(model, samples=3, batch_size=18) == found
    assert not moved


def test_end_tokens_are_those_of_tokenizer_and_generation_settings() -> None:
    model = loaded()
    assert end_tokens(model) == (1,)
    model.model.generation_config.eos_token_id = [7, 9]
    assert end_tokens(model) == (1, 7, 9)
    model.model.generation_config.eos_token_id = None
    assert end_tokens(model) == (1,)


def test_an_answer_counts_its_end_token_and_shows_no_special_text() -> None:
    model = loaded()
    model.model.generation_config.eos_token_id = list(range(300))
    for (answer,) in ask(model):
        assert answer.finished
        assert answer.tokens == 1
        assert "<|" not in answer.response


def test_progress_ends_with_all_answers() -> None:
    seen: list[tuple[int, int]] = []
    generate = transformers_generator(loaded(), batch_size=4, model_name="tiny")
    generate(
        PROMPTS,
        samples=3,
        temperature=1,
        top_p=1,
        max_new_tokens=5,
        seed=0,
        progress=lambda done, total: seen.append((done, total)),
    )
    assert seen[-1] == (18, 18)
    assert [done for done, _ in seen] == sorted({done for done, _ in seen})


def test_no_prompts_give_no_answers() -> None:
    assert ask(loaded(), []) == []


# ---------------------------------------------------------------- the model it runs


def test_the_twin_shares_weights_of_the_compute_type_and_casts_the_rest() -> None:
    model = loaded()
    same = inference_twin(model).model
    assert all(a is b for a, b in zip(model.model.parameters(), same.parameters(), strict=True))
    half = inference_twin(replace(model, compute=torch.bfloat16)).model
    assert {weight.dtype for weight in half.parameters()} == {torch.bfloat16}
    assert half.lm_head.weight is half.model.embed_tokens.weight, "tied weights stay tied"
    assert half.model.rotary_emb.inv_freq.dtype == torch.float32
    assert {weight.dtype for weight in model.model.parameters()} == {torch.float32}


def test_generation_leaves_a_model_in_training_alone() -> None:
    model = loaded()
    model.model.train()
    before = [weight.clone() for weight in model.model.parameters()]
    ask(model, PROMPTS[:2])
    assert model.model.training
    assert all(weight.requires_grad for weight in model.model.parameters())
    assert all(torch.equal(a, b) for a, b in zip(before, model.model.parameters(), strict=True))


def test_bfloat16_answers_are_close_to_float32_ones() -> None:
    model = loaded()
    half = replace(model, compute=torch.bfloat16)
    pairs = [(a, b) for (a,), (b,) in zip(ask(model, temperature=0), ask(half, temperature=0), strict=True)]
    same = [(a.logp, b.logp) for a, b in pairs if a.response == b.response]
    assert len(same) >= len(pairs) / 2
    assert all(a == pytest.approx(b, abs=0.5) for a, b in same)


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
def test_an_adapter_switched_off_answers_as_the_base() -> None:
    from peft import LoraConfig, get_peft_model

    base = ask(loaded(), temperature=0)
    adapted = loaded()
    adapted = replace(adapted, model=get_peft_model(adapted.model, LoraConfig(r=2, target_modules="all-linear")))
    with torch.no_grad():
        for name, weight in adapted.model.named_parameters():
            if "lora_B" in name:
                weight.add_(1.0)
    assert texts(ask(adapted, temperature=0)) != texts(base)
    with adapter_off(adapted) as off:
        assert texts(ask(off, temperature=0)) == texts(base)


# ---------------------------------------------------------------- one token


@given(st.integers(0, 10_000), st.floats(0.2, 3), st.floats(0.05, 1), st.floats(0, 1, exclude_max=True))
@LAW
def test_a_draw_falls_in_the_nucleus_and_more_luck_means_a_rarer_token(
    seed: int, temperature: float, top_p: float, luck: float
) -> None:
    logits = torch.randn(1, 400, generator=torch.Generator().manual_seed(seed)) * 2
    lower = choose(logits, torch.tensor([luck / 2]), temperature=temperature, top_p=top_p)
    token = choose(logits, torch.tensor([luck]), temperature=temperature, top_p=top_p)
    prob = (logits / temperature).softmax(-1)[0]
    assert float(prob[prob > prob[token]].sum()) < top_p + 1e-6
    assert prob[lower] >= prob[token]


@pytest.mark.parametrize(("vocabulary", "top_p"), [(5, 1.0), (5, 0.6), (1000, 1.0), (1000, 0.9)])
def test_draws_follow_the_distribution(vocabulary: int, top_p: float) -> None:
    prob = torch.randn(vocabulary, generator=torch.Generator().manual_seed(1)).mul(0.5).softmax(0)
    draws = 20_000
    luck = (torch.arange(draws) + 0.5) / draws  # every stretch of the unit interval, once
    found = choose(prob.log().expand(draws, -1), luck, temperature=1.0, top_p=top_p)
    ranked = prob.sort(descending=True)
    kept = (ranked.values.cumsum(0).clamp(max=top_p)).diff(prepend=torch.zeros(1)) / top_p
    counts = torch.bincount(found, minlength=vocabulary)[ranked.indices] / draws
    assert torch.allclose(counts, kept, atol=1.5 / draws + 1e-5)


def test_sampled_answers_follow_the_exact_distribution_over_whole_answers() -> None:
    """20,000 answers of at most two tokens, rows leaving the batch and all, against every probability there is."""
    model, times = letters.policy(), 20_000
    (found,) = ask(model, [user("ab?")], samples=times, batch_size=7000, max_new_tokens=2)
    answers = letters.every_answer(2)
    with torch.no_grad():
        prob = letters.logps(model, "ab?", answers).exp()
    counts = Counter(answer.ids for answer in found)
    assert set(counts) <= set(answers)
    expected = (prob / prob.sum() * times).numpy()
    assert chisquare([counts[answer] for answer in answers], expected).pvalue > 1e-3


def test_the_two_ways_to_sort_agree(monkeypatch: pytest.MonkeyPatch) -> None:
    logits = torch.randn(50, 300, generator=torch.Generator().manual_seed(3))
    luck = torch.rand(50, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
    short = choose(logits, luck, temperature=1.0, top_p=0.99)
    monkeypatch.setattr(generation, "LIKELY", 300)
    assert torch.equal(short, choose(logits, luck, temperature=1.0, top_p=0.99))


def test_temperature_zero_takes_the_most_probable() -> None:
    logits = torch.tensor([[0.0, 2.0, 1.0], [5.0, 2.0, 1.0]])
    assert choose(logits, torch.tensor([0.99, 0.99]), temperature=0, top_p=1).tolist() == [1, 0]


def test_every_answer_has_its_own_luck() -> None:
    streams = {tuple(uniforms(s, p, i, 3).tolist()) for s in (0, 1) for p in ("a", "b") for i in (0, 1)}
    assert len(streams) == 8


@given(st.lists(st.integers(1, 50), max_size=20), st.integers(1, 9), st.integers(1, 12), st.integers(1, 4))
@LAW
def test_batches_hold_every_answer_once_and_no_more_than_allowed(
    lengths: list[int], samples: int, batch_size: int, workers: int
) -> None:
    seen: Counter[tuple[int, int]] = Counter()
    for chosen, copies in batches(lengths, samples=samples, batch_size=batch_size, workers=workers):
        assert 1 <= len(chosen) * len(copies) <= batch_size
        seen.update((i, j) for i in chosen for j in copies)
    assert seen == Counter((i, j) for i in range(len(lengths)) for j in range(samples))


# ---------------------------------------------------------------- refusals


def test_settings_out_of_range_are_refused() -> None:
    model = loaded()
    with pytest.raises(InputError, match=r"samples = 0, but it must be at least 1"):
        ask(model, samples=0)
    with pytest.raises(InputError, match=r"temperature = -1, but it must be at least 0"):
        ask(model, temperature=-1)
    with pytest.raises(InputError, match=r"max_new_tokens = 0"):
        ask(model, max_new_tokens=0)
    for top_p in (0.0, 1.5):
        with pytest.raises(InputError, match=r"top_p = .* above 0 and at most 1"):
            ask(model, top_p=top_p)


def test_a_prompt_that_leaves_no_room_is_refused() -> None:
    model = loaded(max_position_embeddings=64)
    with pytest.raises(InputError, match=r"a prompt of \d+ tokens and an answer of 12 exceed the 64 tokens"):
        ask(model, [user("long " * 20)])


def test_control_tokens_in_a_prompt_are_refused() -> None:
    with pytest.raises(InputError, match="control token"):
        ask(loaded(), [user("hello <|im_end|> there")])
