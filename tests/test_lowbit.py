"""Weights in fewer bits: what is narrowed and what is not, what is refused, and what is written out again."""

from __future__ import annotations

import copy
import importlib.util
from pathlib import Path

import pytest
import torch

from druthers import lowbit, models
from druthers.config import ModelSettings
from druthers.models import Loaded, attach_adapter, trainable
from druthers.pipeline import load_model, prepare
from druthers.records import InputError
from tests import tiny


def settings(path: Path, **changes: object) -> ModelSettings:
    """A model in a folder."""
    return ModelSettings.model_validate({"path": str(path), "device": "cpu", **changes})


def test_matrices_are_held_in_bfloat16_and_vectors_stay(tmp_path: Path) -> None:
    plain = models.load(settings(tiny.folder(tmp_path)))
    found = models.load(settings(tmp_path), held=torch.bfloat16)
    assert {w.dtype for w in found.model.parameters() if w.ndim >= 2} == {torch.bfloat16}
    assert {w.dtype for w in found.model.parameters() if w.ndim < 2} == {torch.float32}
    assert found.compute == torch.bfloat16
    assert found.sha != plain.sha
    assert found.layout.rung == plain.layout.rung == "shared"
    assert plain.sha == models.load(settings(tmp_path)).sha


def test_a_narrow_model_under_an_adapter_and_merged_into_float32(tmp_path: Path) -> None:
    found = models.load(settings(tiny.folder(tmp_path), adapter="lora", lora_rank=3), held=torch.bfloat16)
    assert {weight.dtype for weight in trainable(found).values()} == {torch.float32}
    with torch.no_grad():
        for weight in trainable(found).values():
            weight.fill_(1e-3)
    merged = models.merged(found)
    base = models.load(settings(tmp_path), held=torch.bfloat16).model
    layer, own = (m.model.layers[0].mlp.up_proj.weight for m in (merged, base))
    assert layer.dtype == torch.float32
    torch.testing.assert_close(layer, own.float() + 3e-6 * 32 / 3, rtol=0, atol=1e-8)


def test_the_whole_run_holds_its_weights_alike(tmp_path: Path) -> None:
    from druthers.config import load

    tiny.folder(tmp_path)
    own = load(overrides=[f"model.path={tmp_path}", "model.device=cpu", "train.optimizer=adamw-8bit"])
    assert load_model(own).sha == models.load(own.model, held=torch.bfloat16).sha
    plain = load(overrides=[f"model.path={tmp_path}", "model.device=cpu"])
    assert load_model(plain).sha == models.load(own.model).sha


def test_float32_products_with_bfloat16_weights_are_refused(tmp_path: Path) -> None:
    from druthers.config import load

    own = load(overrides=["model.precision=float32", "train.optimizer=adamw-8bit"])
    with pytest.raises(InputError, match=r"model\.precision = 'float32' cannot be; use model\.precision=auto"):
        prepare(own)
    with pytest.raises(InputError, match="adamw-8bit"):
        models.load(settings(tiny.folder(tmp_path), precision="float32"), held=torch.bfloat16)


def test_without_bitsandbytes_the_command_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"needs bitsandbytes; run `pip install 'druthers\[qlora\]'`"):
        lowbit.check_4bit(torch.device("cuda"))


def test_four_bits_on_a_cpu_are_refused_before_anything_is_read(tmp_path: Path) -> None:
    from druthers.config import load

    own = settings(tiny.folder(tmp_path), adapter="qlora")
    with pytest.raises(InputError, match=r"needs a CUDA device and the model is on 'cpu'; use model.adapter=lora"):
        models.load(own)
    with pytest.raises(InputError, match="needs a CUDA device"):
        prepare(load(overrides=["model.adapter=qlora", "model.device=cpu"]))


def test_no_recomputing_is_named_none() -> None:
    from druthers.config import load

    assert load(overrides=["train.recompute=none"]).train.recompute == "none"


@pytest.mark.parametrize("bias", [True, False])
def test_what_an_adapted_model_computes_with_is_written_out(bias: bool) -> None:  # noqa: FBT001
    made = tiny.model(vocab=259, attention_bias=bias)
    base = Loaded(made, tiny.tokenizer(), "tiny", "", torch.float32, torch.device("cpu"))
    found = attach_adapter(base, ModelSettings(adapter="lora", lora_rank=3))
    draw = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for weight in found.model.parameters():
            weight.add_(0.1 * torch.randn(weight.shape, generator=draw))
    plain = tiny.model(seed=7, vocab=259, attention_bias=bias)
    lowbit.written_out(found.causal, plain)
    merged = copy.deepcopy(found.model).merge_and_unload()
    ids = torch.tensor([[0, 40, 41, 42, 1, 7]])
    torch.testing.assert_close(plain(input_ids=ids).logits, merged(input_ids=ids).logits, rtol=1e-5, atol=1e-5)


@pytest.mark.skipif(
    not torch.cuda.is_available() or importlib.util.find_spec("bitsandbytes") is None,
    reason="4-bit weights need a CUDA device and bitsandbytes",
)
def test_an_adapter_over_four_bits_is_written_out_as_it_computes(tmp_path: Path) -> None:
    made = tiny.tokenizer()
    made.save_pretrained(tmp_path)
    wide = tiny.model(vocab=len(made), hidden_size=128, intermediate_size=256, tie_word_embeddings=False)
    wide.save_pretrained(tmp_path)
    found = models.load(settings(tmp_path, adapter="qlora", device="cuda", lora_rank=4))
    assert found.layout.rung == "shared"
    assert models.load(settings(tmp_path, adapter="qlora", device="cuda", lora_rank=4)).sha == found.sha
    with torch.no_grad():
        for weight in trainable(found).values():
            weight.fill_(0.01)
    lowbit.compute_in(found.model, torch.float32)
    ids = torch.tensor([[0, 40, 41, 42, 1, 7]], device="cuda")
    plain = models.merged(found).cuda()
    with torch.no_grad():
        torch.testing.assert_close(
            plain(input_ids=ids).logits, found.causal(input_ids=ids).logits, rtol=1e-3, atol=1e-3
        )
