"""Which layout a model gets: the real architectures of transformers, tiny and random."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
from typing import Any

import pytest
import torch
import transformers
from transformers import AutoModelForCausalLM

from druthers import attention, kernels, ladder, models, varlen
from druthers.attention import Compute, Layout, Terms, Tree, blockwise
from druthers.batching import Rung, collate
from druthers.ladder import RUNGS, Found, climb
from druthers.logprobs import pair_logps
from druthers.models import Loaded
from druthers.records import InputError
from druthers.tokens import TokenizedPair
from tests import tiny, varlen_fake

VOCAB = 300
SMALL = {
    "vocab_size": VOCAB,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "initializer_range": 0.2,
    "pad_token_id": 2,
    "bos_token_id": 0,
    "eos_token_id": 1,
}
HEADS = {"head_dim": 8}
EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}
WINDOW = {"sliding_window": 8}
SHARED: dict[str, dict[str, Any]] = {
    "Llama": {},
    "Qwen2": {},
    "Qwen3": HEADS,
    "Qwen3Moe": HEADS | EXPERTS,
    "Mistral": WINDOW,
    "Gemma2": HEADS | WINDOW | {"query_pre_attn_scalar": 8},
    "Gemma3Text": HEADS | WINDOW | {"query_pre_attn_scalar": 8},
    "Phi3": {},
    "Olmo2": {},
    "GPTNeoX": {},
    "GPT2": {"n_embd": 32, "n_layer": 3, "n_head": 4, "n_positions": 512},
    "OPT": {"ffn_dim": 48, "word_embed_proj_dim": 32},
    "GptOss": HEADS | WINDOW | {"num_local_experts": 4, "num_experts_per_tok": 2},
    "Cohere2": WINDOW,
    "Granite": {},
    "SmolLM3": {},
}
LINEAR = {
    f"linear_{of}_{what}": 8 if what == "head_dim" else 2 for of in ("key", "value") for what in ("head_dim",)
} | {
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
}
FALLING: dict[str, dict[str, Any]] = {
    "FalconH1": HEADS | {"mamba_d_ssm": 32, "mamba_n_heads": 4, "mamba_d_head": 8, "mamba_d_state": 8},
    "Qwen3Next": HEADS | EXPERTS | LINEAR | {"num_hidden_layers": 4, "shared_expert_intermediate_size": 16},
    "Mamba": {"state_size": 8},
    "Bloom": {"n_head": 4, "n_layer": 3},
}
PAIRS = [
    TokenizedPair("", tuple(range(10, 30)), (40, 41, 42, 1), (40, 51, 1), (True,) * 4, (True, False, True)),
    TokenizedPair("", tuple(range(10, 30)), (40, 41, 42, 1), (60, 61, 62, 63, 64, 1), (True,) * 4, (True,) * 6),
    TokenizedPair("", tuple(range(60, 72)), (70, 71, 1), (80, 81, 82, 83, 1), (True,) * 3, (True,) * 5),
]


def loaded(name: str, changes: dict[str, Any], wanted: str = "auto") -> Loaded:
    """A random model of an architecture, with its layout chosen."""
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(getattr(transformers, f"{name}Config")(**(SMALL | changes))).float().eval()
    models.still(model)
    plain = Loaded(model, tiny.tokenizer(), name, "", torch.float32, torch.device("cpu"))
    return models.choose_layout(plain, wanted)


def computed(model: Loaded, rung: Rung) -> tuple[torch.Tensor, torch.Tensor]:
    """Log-probabilities (2, B) and the gradient of a loss of them, as one vector."""
    model.model.zero_grad()
    models.set_rung(model, rung)
    logp_CB = pair_logps(model.scorer, collate(PAIRS, pad_id=2, rung=rung))
    torch.nn.functional.softplus(logp_CB[1] - logp_CB[0]).sum().backward()  # type: ignore[no-untyped-call]
    grads = [p.grad.flatten() for p in model.model.parameters() if p.grad is not None]
    return logp_CB.detach(), torch.cat(grads)


@pytest.mark.parametrize("name", SHARED)
def test_the_prompt_is_shared_where_that_is_exact(name: str) -> None:
    """Windows shorter than the prompt, soft caps, sinks, experts and learned positions included; gradients as well."""
    model = loaded(name, SHARED[name])
    assert model.layout.rung == "shared", model.layout.text
    wanted_CB, wanted = computed(model, "padded")
    for rung in ("shared", "padding-free"):
        found_CB, found = computed(model, rung)
        lengths = torch.tensor([[4, 4, 3], [2, 6, 5]])
        assert ((found_CB - wanted_CB).abs() / lengths).max() < 1e-5
        assert (found - wanted).norm() < 1e-5 * wanted.norm()


@pytest.mark.parametrize("name", FALLING)
def test_state_that_runs_along_the_row_falls_down_the_ladder(name: str) -> None:
    """Recurrent layers, and positions read from a mask; the reason is said with its number."""
    model = loaded(name, FALLING[name])
    assert model.layout.rung == "padded"
    assert "not shared: " in model.layout.text
    assert model.causal.config._attn_implementation == model.layout.native
    with pytest.raises(
        InputError, match=r"model.layout = 'shared', but model '\w+' does not compute it exactly \(.+\)"
    ):
        loaded(name, FALLING[name], "shared")


def test_a_leak_between_the_responses_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """An attention that lets the rejected response see the chosen one, at its right positions, falls at every rung."""
    model = loaded("Llama", {}, "padded")

    def one_row(*args: Any, layout: attention.Layout | None, **rest: Any) -> Any:
        whole = None if layout is None else (attention.Tree(sum(tree.size for tree in layout)),)
        return attention.attend(*args, layout=whole, **rest)

    transformers.AttentionInterface.register("leaky", one_row)
    monkeypatch.setattr(attention, "NAME", "leaky")
    found = models.choose_layout(dataclasses.replace(model), "auto").layout
    assert found.rung == "padded"
    assert [step.rung for step in found.tried] == ["shared", "padding-free"]
    assert all("differs from plain rows" in step.why_not for step in found.tried)


def test_a_model_without_the_keyword_falls_with_a_reason() -> None:
    """A backbone that knows no `layout` raises a TypeError, which is the reason."""
    model = tiny.model()
    scorer = models.scorer_of(model)

    class Strict(torch.nn.Module):
        def forward(self, input_ids: Any, position_ids: Any, *, use_cache: bool) -> Any:
            return model.model(input_ids=input_ids, position_ids=position_ids, use_cache=use_cache)

    strict = dataclasses.replace(scorer, backbone=Strict())
    found = climb(strict, vocabulary=VOCAB, device=torch.device("cpu"), window=None, switch=lambda rung, kernel: None)
    assert found.rung == "padded"
    assert "layout" in found.tried[0].why_not


def test_a_rung_can_be_asked_for() -> None:
    """Those above it are not tried."""
    for rung in RUNGS:
        found = loaded("Llama", {}, rung).layout
        assert found.rung == rung
        assert [step.rung for step in found.tried] == ([] if rung == "padded" else [rung])


# ---------------------------------------------------------------- kernels, in the compute type


def one_row(q: Any, k: Any, v: Any, sinks: Any, layout: Layout, terms: Terms) -> torch.Tensor:
    """Sees whatever stands before it in the row."""
    return blockwise(q, k, v, sinks, (Tree(len(q)),), terms)


def no_slope(q: Any, k: Any, v: Any, *rest: Any) -> torch.Tensor:
    """Right, and its gradient by the keys is missing."""
    return blockwise(q, k.detach(), v, *rest)


def leaking(q: Any, k: Any, v: Any, *rest: Any) -> torch.Tensor:
    """Right but for a trace of the last token of the row."""
    return blockwise(q, k, v, *rest) + 2**-10 * v[-1:].repeat_interleave(q.shape[1] // v.shape[1], 1)


def absent(*_: Any) -> torch.Tensor:
    """Not installed."""
    raise ImportError("No module named 'absent'")


def no_branches(q: Any, k: Any, v: Any, sinks: Any, layout: Layout, terms: Terms) -> torch.Tensor:
    """Takes plain rows only."""
    if any(len(tree.branches) > 1 for tree in layout):
        raise ValueError("no_branches takes no branches")
    return blockwise(q, k, v, sinks, layout, terms)


FAKES: dict[str, Compute] = {
    "emulated": varlen.over_trees(varlen.by_torch(varlen_fake.torch_2_13)),
    "one_row": one_row,
    "no_slope": no_slope,
    "leaking": leaking,
    "absent": absent,
    "no_branches": no_branches,
}


def climbed(tried: tuple[str, ...], monkeypatch: pytest.MonkeyPatch, name: str = "Llama") -> Found:
    """The ladder as on CUDA, in bfloat16 on the CPU, with kernels of the test; few pairs."""
    for kernel in tried:
        if kernel in FAKES:
            compute = functools.partial(attention.attend, compute=FAKES[kernel])
            transformers.AttentionInterface.register(kernels.registered(kernel), compute)
    monkeypatch.setattr(ladder, "MANY", 4)
    model = loaded(name, SHARED[name], "padded")
    found = climb(
        model.scorer,
        vocabulary=VOCAB,
        device=model.device,
        window=SHARED[name].get("sliding_window"),
        switch=functools.partial(models.set_rung, model),
        kernels=tried,
        rough=functools.partial(models.computing, dataclasses.replace(model, compute=torch.bfloat16)),
    )
    own = model.layout.native if found.rung == "padded" else kernels.registered(found.kernel)
    assert model.causal.config._attn_implementation == own
    assert all(weight.requires_grad for weight in model.model.parameters())
    return found


@pytest.mark.parametrize("name", ["Llama", "Mistral", "Qwen3Moe"])
def test_a_right_kernel_is_taken_first(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Windows, and experts whose products have other shapes when other tokens come."""
    found = climbed(("emulated", "block"), monkeypatch, name)
    assert (found.rung, found.kernel) == ("shared", "emulated"), found.text
    assert len(found.trials) == 1
    assert "emulated attention (" in found.text
    assert "times the rounding error of plain rows)" in found.text


@pytest.mark.parametrize(
    ("kernel", "why"),
    [
        ("one_row", "its error of the log-probabilities is "),
        ("no_slope", "its error of the gradient is "),
        ("leaking", "changing the "),
        ("absent", "No module named 'absent'"),
    ],
)
def test_a_wrong_kernel_falls_to_the_next(kernel: str, why: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """On the same rung, and the reason is said."""
    found = climbed((kernel, "block"), monkeypatch)
    assert (found.rung, found.kernel) == ("shared", "block"), found.text
    assert [trial.kernel for trial in found.trials] == [kernel, "block"]
    assert found.trials[0].why_not.startswith(why)
    assert f"; not {kernel} for shared rows: {why}" in found.text


def test_a_rung_falls_when_all_its_kernels_do(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows without padding by the kernel that took no branches."""
    found = climbed(("absent", "no_branches"), monkeypatch)
    assert (found.rung, found.kernel) == ("padding-free", "no_branches"), found.text
    assert found.why_not("shared") == "no_branches takes no branches"
    assert [trial.rung for trial in found.trials] == ["shared", "shared", "padding-free", "padding-free"]


def test_a_model_keeps_its_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    """Going from one layout to another and back."""
    model = loaded("Llama", {}, "padded")
    model = dataclasses.replace(model, layout=climbed(("emulated",), monkeypatch))
    models.set_rung(model, "shared")
    assert model.causal.config._attn_implementation == "druthers_emulated"
    models.set_rung(model, "padded")
    assert model.causal.config._attn_implementation == model.layout.native


def test_tokens_have_one_order_in_every_layout() -> None:
    """Chosen responses first, pair by pair, also where rows hold several pairs."""
    model = loaded("Llama", {}, "padded")
    pairs = [ladder.made_up(VOCAB, window=None, lengths=(5 + i, 3, 4), seed=i) for i in range(3)]
    found = {}
    for rung in RUNGS:
        models.set_rung(model, rung)
        found[rung] = ladder.logps(model.scorer, pairs, rung, model.device)
    one_by_one = [ladder.logps(model.scorer, [pair], "padded", model.device) for pair in pairs]
    wanted = torch.cat([logp_N[:3] for logp_N in one_by_one] + [logp_N[3:] for logp_N in one_by_one])
    for rung in RUNGS:
        torch.testing.assert_close(found[rung], wanted, rtol=1e-4, atol=1e-5)


def test_text_names_rung_error_and_reasons() -> None:
    """As the screen shows it."""
    assert Found("padded").text == "padded"
    assert loaded("Llama", {}).layout.text.startswith("shared (within ")


def test_a_window_too_long_to_try_costs_no_pairs() -> None:
    """The pairs for kernels are as many as without one, and fewer where they are longer than the window."""
    scorer = loaded("Llama", {}).scorer
    found = {
        window: ladder.yardstick(scorer, VOCAB, window, torch.device("cpu"), contextlib.nullcontext).pairs
        for window in (None, 100, 2**15)
    }
    assert [len(pairs) for pairs in found.values()] == [ladder.MANY] * 3
    assert found[None] == found[2**15] != found[100]
