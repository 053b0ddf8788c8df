"""The chunked, response-only head against full logits, and what a log-prob may and may not depend on."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from transformers import (
    CohereConfig,
    CohereForCausalLM,
    Gemma2Config,
    Gemma2ForCausalLM,
    GraniteConfig,
    GraniteForCausalLM,
    PhiConfig,
    PhiForCausalLM,
)

from druthers import logprobs
from druthers.batching import Batch, collate
from druthers.logprobs import LinearLogps, Scorer, module_logps, pair_logps, token_logps
from druthers.models import scorer_of
from druthers.tokens import TokenizedPair
from tests import tiny

LAW = settings(max_examples=15, deadline=None, derandomize=True)
VOCAB = 60
CHUNKS = (1, 3, 512)
MODEL = tiny.model(vocab=VOCAB, dtype=torch.float64)
SHAPE: dict[str, Any] = {
    "vocab_size": VOCAB,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 1,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "pad_token_id": 2,
    "initializer_range": 0.3,
}


class Wrapped(nn.Module):
    """A head that is not an `nn.Linear`, as an adapter makes it."""

    def __init__(self, head: nn.Linear) -> None:
        super().__init__()
        self.head = head

    def forward(self, hidden: Tensor) -> Tensor:
        """The same logits."""
        found: Tensor = self.head(hidden)
        return found


def made(prompt: list[int], chosen: list[int], rejected: list[int], *, unscored: int = 0) -> TokenizedPair:
    """A pair of ids; the first `unscored` tokens of each response are not scored."""
    masks = [tuple(i >= min(unscored, len(side) - 1) for i in range(len(side))) for side in (chosen, rejected)]
    return TokenizedPair("", tuple(prompt), tuple(chosen), tuple(rejected), *masks)


IDS = st.lists(st.integers(0, VOCAB - 1), min_size=1, max_size=7)
PAIRS = st.lists(st.builds(made, IDS, IDS, IDS, unscored=st.integers(0, 2)), min_size=1, max_size=4)
THREE = [
    made([5, 9, 2, 7], [3, 4, 5, 6, 1], [8, 1], unscored=1),
    made([5], [40, 1], [41, 42, 43, 44, 45, 1]),
    made([11, 12, 13], [1], [59, 0, 1]),
]


def plain(model: Any, pairs: list[TokenizedPair]) -> Tensor:
    """Pair log-probs from the model's own full logits, row by row, without padding: shape (2, B)."""
    found = torch.zeros(2, len(pairs), dtype=torch.float64)
    for b, pair in enumerate(pairs):
        for c, (ids, scored) in enumerate(((pair.chosen, pair.chosen_scored), (pair.rejected, pair.rejected_scored))):
            row = torch.tensor([[*pair.prompt, *ids]])
            logps = model(input_ids=row).logits[0].double().log_softmax(-1)
            for i, kept in enumerate(scored):
                at = len(pair.prompt) + i
                if kept:
                    found[c, b] = found[c, b] + logps[at - 1, row[0, at]]
    return found


def full(model: Any, batch: Batch) -> Tensor:
    """The same from one forward in the padded layout.

    Some models compute inside in float32, so that only gradients of one layout agree to more than seven digits.
    """
    logits = model(batch.input_ids_ST, position_ids=batch.position_ids_ST).logits
    logps = logits.double().log_softmax(-1).flatten(0, 1)[batch.gather_N, batch.target_N]
    return torch.zeros(2 * batch.size, dtype=torch.float64).index_add(0, batch.owner_N, logps).reshape(2, -1)


def gradients(model: Any, loss: Tensor) -> dict[str, Tensor]:
    """Gradients of a scalar by the names of the weights."""
    names, weights = zip(*model.named_parameters(), strict=True)
    return dict(zip(names, torch.autograd.grad(loss, weights), strict=True))


def apart(a: Tensor, b: Tensor) -> float:
    """Relative distance of two tensors."""
    return float((a - b).norm() / b.norm().clamp_min(1e-300))


def quirky(kind: str) -> Any:
    """One-layer models whose logits are made in a special way."""
    torch.manual_seed(0)
    models: dict[str, Any] = {
        "plain": lambda: tiny.model(vocab=VOCAB),
        "untied": lambda: tiny.model(vocab=VOCAB, tie_word_embeddings=False),
        "bias": lambda: PhiForCausalLM(PhiConfig(**SHAPE)),
        "softcap": lambda: Gemma2ForCausalLM(Gemma2Config(**SHAPE, head_dim=8, final_logit_softcapping=3.0)),
        "multiplied": lambda: CohereForCausalLM(CohereConfig(**SHAPE, logit_scale=0.25)),
        "divided": lambda: GraniteForCausalLM(GraniteConfig(**SHAPE, logits_scaling=4.0)),
    }
    model = models[kind]().double().eval()
    if kind == "bias":
        nn.init.normal_(model.lm_head.bias)
    return model


@pytest.mark.parametrize("kind", ["plain", "untied", "bias", "softcap", "multiplied", "divided"])
def test_log_probs_and_gradients_are_those_of_the_models_own_full_logits(kind: str) -> None:
    """Through the linear path and through the module path, for every way of making logits, in float64."""
    model = quirky(kind)
    scorer, batch = scorer_of(model), collate(THREE, pad_id=2)
    expected = plain(model, THREE)
    slopes = torch.tensor([[0.3, -1.0, 2.0], [0.7, 0.1, -0.4]], dtype=torch.float64)
    expected_grads = gradients(model, (full(model, batch) * slopes).sum())
    for each in (scorer, replace(scorer, head=Wrapped(scorer.head))):
        found = pair_logps(each, batch, chunk=3)
        assert (found - expected).abs().max() < 1e-9
        grads = gradients(model, (found * slopes).sum())
        assert max(apart(grads[name], expected_grads[name]) for name in grads) < 1e-9


@LAW
@given(
    st.integers(0, 11),
    st.sampled_from(["bias", "none"]),
    st.sampled_from([1.0, 0.25]),
    st.sampled_from([None, 3.0]),
    st.integers(0, 9),
)
def test_every_chunk_size_gives_the_same_values_and_gradients(
    count: int, bias_kind: str, scale: float, softcap: float | None, seed: int
) -> None:
    """Chunks of 1, 3 and everything; the linear path, the module path and autograd through full logits; 1e-12."""
    draw = torch.Generator().manual_seed(seed)
    hidden, weight = (torch.randn(n, 8, generator=draw, dtype=torch.float64).requires_grad_() for n in (count, VOCAB))
    bias = torch.randn(VOCAB, generator=draw, dtype=torch.float64).requires_grad_() if bias_kind == "bias" else None
    target = torch.randint(VOCAB, (count,), generator=draw)
    slopes = torch.randn(count, generator=draw, dtype=torch.float64)
    head = nn.Linear(8, VOCAB, bias=bias_kind == "bias", dtype=torch.float64)
    inputs = [hidden, weight] + ([bias] if bias is not None else [])
    head.weight, head.bias = nn.Parameter(weight.detach()), nn.Parameter(bias.detach()) if bias is not None else None  # type: ignore[assignment]
    scorer = Scorer(nn.Identity(), head, scale, softcap)

    logits = nn.functional.linear(hidden, weight, bias) * scale
    logits = logits if softcap is None else softcap * torch.tanh(logits / softcap)
    full = logits.log_softmax(-1).gather(1, target[:, None])[:, 0]
    expected = torch.autograd.grad((full * slopes).sum(), inputs)
    for chunk in CHUNKS:
        found = LinearLogps.apply(hidden, weight, bias, target, scorer, chunk)
        grads = torch.autograd.grad((found * slopes).sum(), inputs)
        through = module_logps(hidden, target, scorer, chunk)
        module_grads = torch.autograd.grad((through * slopes).sum(), [hidden, *head.parameters()])
        for value in (found, through):
            assert torch.allclose(value, full, rtol=1e-12, atol=1e-12)
        for own, module, right in zip(grads, module_grads, expected, strict=True):
            assert torch.allclose(own, right, rtol=1e-12, atol=1e-12)
            assert torch.allclose(module, right, rtol=1e-12, atol=1e-12)


def test_the_head_passes_gradcheck() -> None:
    """Numerical differences agree with the backward written by hand, soft cap and scale included."""
    draw = torch.Generator().manual_seed(0)
    shapes = ((4, 3), (7, 3), (7,))
    inputs = tuple(torch.randn(*shape, generator=draw, dtype=torch.float64).requires_grad_() for shape in shapes)
    scorer, target = Scorer(nn.Identity(), nn.Identity(), 0.5, 2.0), torch.tensor([0, 6, 3, 3])
    assert torch.autograd.gradcheck(lambda h, w, b: LinearLogps.apply(h, w, b, target, scorer, 3), inputs)


def test_frozen_heads_get_no_gradient_and_cost_none() -> None:
    """With an adapter the head is frozen, the hidden states are not."""
    model = tiny.model(vocab=VOCAB, tie_word_embeddings=False)
    model.lm_head.requires_grad_(False)
    pair_logps(scorer_of(model), collate(THREE, pad_id=2)).sum().backward()  # type: ignore[no-untyped-call]
    assert model.lm_head.weight.grad is None
    assert model.model.norm.weight.grad is not None


@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing:FutureWarning")  # peft asks transformers by the old name
def test_lora_on_the_head_goes_through_the_module() -> None:
    """The adapter's share of the logits is scored, and gets its gradient."""
    from peft import LoraConfig, get_peft_model

    config = LoraConfig(r=2, lora_alpha=4, target_modules=["lm_head", "q_proj"], task_type="CAUSAL_LM")
    adapted = get_peft_model(tiny.model(vocab=VOCAB, tie_word_embeddings=False), config).double().eval()
    draw = torch.Generator().manual_seed(1)
    for name, weight in adapted.named_parameters():
        if "lora_B" in name:
            weight.data.normal_(0, 0.3, generator=draw)
    model = adapted.get_base_model()
    scorer = scorer_of(model)
    assert type(scorer.head) is not nn.Linear
    expected = plain(model, THREE)
    found = pair_logps(scorer, collate(THREE, pad_id=2), chunk=3)
    assert (found - expected).abs().max() < 1e-9
    weights = [weight for name, weight in adapted.named_parameters() if weight.requires_grad]
    assert len(weights) == 6
    for own, right in zip(
        torch.autograd.grad(found[0].sum(), weights), torch.autograd.grad(expected[0].sum(), weights), strict=True
    ):
        assert apart(own, right) < 1e-9


def test_a_tied_embedding_gets_the_gradient_of_both_uses() -> None:
    """Tied: the sum of what the two separate matrices of an untied twin get."""
    tied, untied = (
        tiny.model(vocab=VOCAB, dtype=torch.float64),
        tiny.model(vocab=VOCAB, dtype=torch.float64, tie_word_embeddings=False),
    )
    untied.load_state_dict(tied.state_dict())
    batch = collate(THREE, pad_id=2)
    one, two = (gradients(model, pair_logps(scorer_of(model), batch)[0].sum()) for model in (tied, untied))
    both = two["model.embed_tokens.weight"] + two["lm_head.weight"]
    assert "lm_head.weight" not in one
    assert apart(one["model.embed_tokens.weight"], both) < 1e-9
    assert min(two[name].norm() for name in ("model.embed_tokens.weight", "lm_head.weight")) > 1e-3


@LAW
@given(PAIRS)
def test_padding_does_not_matter(pairs: list[TokenizedPair]) -> None:
    """A pair scores the same alone, beside longer ones, and whatever token pads."""
    scorer = scorer_of(MODEL)
    with torch.no_grad():
        together = pair_logps(scorer, collate(pairs, pad_id=2))
        other = pair_logps(scorer, collate(pairs, pad_id=VOCAB - 1))
        alone = torch.cat([pair_logps(scorer, collate([pair], pad_id=2)) for pair in pairs], dim=1)
    assert torch.allclose(together, other, rtol=0, atol=1e-9)
    assert torch.allclose(together, alone, rtol=0, atol=1e-9)


@LAW
@given(PAIRS, st.randoms(use_true_random=False))
def test_the_order_of_pairs_does_not_matter(pairs: list[TokenizedPair], random: Any) -> None:
    """Permuting the batch permutes the result; exchanging the sides exchanges its rows."""
    order = list(range(len(pairs)))
    random.shuffle(order)
    swapped = [
        replace(
            p, chosen=p.rejected, rejected=p.chosen, chosen_scored=p.rejected_scored, rejected_scored=p.chosen_scored
        )
        for p in pairs
    ]
    scorer = scorer_of(MODEL)
    with torch.no_grad():
        found = pair_logps(scorer, collate(pairs, pad_id=2))
        shuffled = pair_logps(scorer, collate([pairs[i] for i in order], pad_id=2))
        exchanged = pair_logps(scorer, collate(swapped, pad_id=2))
    assert torch.allclose(shuffled, found[:, order], rtol=0, atol=1e-9)
    assert torch.allclose(exchanged, found.flip(0), rtol=0, atol=1e-9)


@LAW
@given(st.builds(made, IDS, IDS, IDS), IDS)
def test_neither_branch_sees_the_other(pair: TokenizedPair, other: list[int]) -> None:
    """Another rejected answer of the same length leaves every bit of chosen alone, another length 1e-9 of it."""
    scorer = scorer_of(MODEL)
    turned = tuple((i + 1) % VOCAB for i in pair.rejected)
    with torch.no_grad():
        found = pair_logps(scorer, collate([pair], pad_id=2))
        same_length = pair_logps(scorer, collate([replace(pair, rejected=turned)], pad_id=2))
        replaced = made(list(pair.prompt), list(pair.chosen), other)
        longer = pair_logps(scorer, collate([replaced], pad_id=2))
        prompt = tuple((i + 1) % VOCAB for i in pair.prompt)
        elsewhere = pair_logps(scorer, collate([replace(pair, prompt=prompt)], pad_id=2))
    assert found[0, 0] == same_length[0, 0]
    assert abs(found[0, 0] - longer[0, 0]) < 1e-9
    assert found[1, 0] != same_length[1, 0]
    assert (found != elsewhere).all()


def test_the_first_token_of_both_branches_is_scored_from_the_last_prompt_token() -> None:
    """Responses of one token: each log-prob is the prompt's own next-token distribution."""
    pair = made([5, 9, 2, 7], [3], [8])
    with torch.no_grad():
        found = pair_logps(scorer_of(MODEL), collate([pair], pad_id=2))
        next_token = MODEL(input_ids=torch.tensor([pair.prompt])).logits[0, -1].log_softmax(-1)
    assert torch.allclose(found[:, 0], next_token[[3, 8]], rtol=0, atol=1e-9)


def test_unscored_tokens_are_read_but_not_summed() -> None:
    """A tool turn changes what follows it, and has no log-prob of its own."""
    pair = made([5, 9], [30, 31, 32, 1], [8, 1], unscored=2)
    with torch.no_grad():
        found = pair_logps(scorer_of(MODEL), collate([pair], pad_id=2))
        expected = plain(MODEL, [pair])
        moved = pair_logps(scorer_of(MODEL), collate([replace(pair, chosen=(40, 31, 32, 1))], pad_id=2))
    assert torch.allclose(found, expected, rtol=0, atol=1e-9)
    assert found[0, 0] != moved[0, 0]


def test_sums_of_float32_log_probs_are_float64() -> None:
    """Adding a thousand rounded terms must not round again."""
    batch = collate([made([5], [7] * 999 + [1], [8, 1])], pad_id=2)
    scorer = scorer_of(tiny.model(vocab=VOCAB))
    with torch.no_grad():
        tokens, sums = token_logps(scorer, batch), pair_logps(scorer, batch)
    assert (tokens.dtype, sums.dtype) == (torch.float32, torch.float64)
    assert sums[0, 0] == pytest.approx(sum(tokens[:1000].tolist()), abs=1e-9)


def logits_alive(scorer: Scorer, chunk: int | None, *, learn: bool = True) -> int:
    """The largest number of elements of any block of logits, in forward and backward."""
    from torch.utils._python_dispatch import TorchDispatchMode

    largest = 0
    widths = {16, 32, 64}  # of all else in the tiny model

    class Watch(TorchDispatchMode):
        """Looks at the outputs of every operator."""

        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            nonlocal largest
            found = func(*args, **(kwargs or {}))
            if isinstance(found, Tensor) and found.ndim == 2 and widths.isdisjoint(found.shape):
                largest = max(largest, found.numel())
            return found

    with Watch(), torch.set_grad_enabled(learn):
        found = pair_logps(scorer, collate(THREE, pad_id=2), chunk=chunk).sum()
        if learn:
            found.backward()  # type: ignore[no-untyped-call]
    return largest


@pytest.mark.parametrize("learn", ["learn", "look"])
@pytest.mark.parametrize(("head", "chunk"), [("linear", 200), ("linear", 2000), ("module", 1500)])
def test_no_more_than_one_chunk_of_logits_is_made(head: str, chunk: int, learn: str) -> None:
    """Blocks of logits are as large as the chunk and no larger, in forward and backward."""
    scorer = scorer_of(tiny.model(vocab=500))
    if head == "module":
        wrapped = Wrapped(scorer.head)  # type: ignore[arg-type]
        wrapped.out_features = 500  # type: ignore[assignment]
        scorer = replace(scorer, head=wrapped)
    assert logits_alive(scorer, chunk, learn=learn == "learn") == chunk


def test_logits_alive_do_not_grow_with_the_vocabulary(monkeypatch: pytest.MonkeyPatch) -> None:
    """Four times the words, the same blocks by default."""
    monkeypatch.setattr(logprobs, "CHUNK", 600)
    sizes = [logits_alive(scorer_of(tiny.model(vocab=words)), None) for words in (500, 2000)]
    assert sizes == [500, 600]


@pytest.mark.parametrize("path", ["linear", "module"])
def test_near_certainty_float32_keeps_its_digits(path: str) -> None:
    """Large logits, log-probs of some -1e-3: values and gradients as near to float64 as those of full logits."""
    draw = torch.Generator().manual_seed(0)
    weight = torch.randn(200, 64, generator=draw)
    weight[:, 0] = 1.0
    target = torch.randint(200, (50,), generator=draw)
    hidden = 0.2 * weight[target]
    hidden[:, 0] = 50.0
    head = nn.Linear(64, 200, bias=False)

    def found(kind: torch.dtype, *, full: bool) -> tuple[Tensor, Tensor]:
        h, head.weight = hidden.to(kind).requires_grad_(), nn.Parameter(weight.to(kind))
        scorer = Scorer(nn.Identity(), head)
        if full:
            logps = head(h).log_softmax(-1).gather(1, target[:, None])[:, 0]
        elif path == "linear":
            logps = LinearLogps.apply(h, head.weight, None, target, scorer, 64)
        else:
            logps = module_logps(h, target, scorer, 3)
        return logps.detach().double(), torch.autograd.grad(logps.sum(), h)[0].double()

    exact, plain, own = (
        found(torch.float64, full=True),
        found(torch.float32, full=True),
        found(torch.float32, full=False),
    )
    assert -1e-2 < exact[0].median() < -1e-4
    for right, usual, ours in zip(exact, plain, own, strict=True):
        assert apart(ours, right) < 1.5 * apart(usual, right) + 1e-7


def test_words_that_a_model_rules_out_are_no_trouble() -> None:
    """A bias of minus infinity on whole blocks of words: the others score as if alone."""
    draw = torch.Generator().manual_seed(0)
    hidden, weight = (torch.randn(n, 8, generator=draw, dtype=torch.float64).requires_grad_() for n in (5, 40))
    bias = torch.full((40,), -torch.inf, dtype=torch.float64)
    bias[7:19] = 0.0
    target = torch.tensor([7, 18, 9, 9, 12])
    scorer = Scorer(nn.Identity(), nn.Identity())
    found = LinearLogps.apply(hidden, weight, bias, target, scorer, 20)
    right = (hidden @ weight[7:19].t()).log_softmax(-1).gather(1, target[:, None] - 7)[:, 0]
    assert torch.allclose(found, right, rtol=0, atol=1e-12)
    for own, other in zip(*(torch.autograd.grad(x.sum(), (hidden, weight)) for x in (found, right)), strict=True):
        assert torch.allclose(own, other, rtol=0, atol=1e-12)


@pytest.mark.parametrize("head", ["linear", "module"])
def test_bfloat16_products_leave_log_probs_and_gradients_float32(head: str) -> None:
    """Inside autocast the head multiplies in bfloat16, and sums and master gradients stay in float32."""
    model, batch = tiny.model(vocab=VOCAB, initializer_range=0.05), collate(THREE, pad_id=2)
    scorer = scorer_of(model)
    scorer = scorer if head == "linear" else replace(scorer, head=Wrapped(scorer.head))
    exact = token_logps(scorer, batch)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = token_logps(scorer, batch, chunk=3)
    found.sum().backward()  # type: ignore[no-untyped-call]
    assert found.dtype == torch.float32
    assert 0 < (found - exact).abs().max() < 0.02
    assert {weight.grad.dtype for weight in model.parameters()} == {torch.float32}
    right = gradients(model, exact.sum())
    assert max(apart(weight.grad, right[name]) for name, weight in model.named_parameters()) < 0.05
