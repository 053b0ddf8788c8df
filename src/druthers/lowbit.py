"""Weights held in fewer bits than float32: matrices in bfloat16, and the linear layers of a frozen base in 4 bits."""

from __future__ import annotations

import importlib.util
import math
from typing import Any

import torch
from torch import Tensor, nn

from druthers.config import ModelSettings
from druthers.records import InputError


def narrow(model: nn.Module) -> None:
    """Every float32 matrix of the model to bfloat16, in place and one at a time; vectors (norms, biases) stay.

    A step moves a norm's weight of about 1 by far less than bfloat16 resolves there, and they weigh nothing.
    """
    for weight in model.parameters():
        if weight.dtype == torch.float32 and weight.ndim >= 2:
            weight.data = weight.data.to(torch.bfloat16)


def widen(model: nn.Module) -> None:
    """Every bfloat16 weight of the model to float32, in place: exact."""
    for weight in model.parameters():
        if weight.dtype == torch.bfloat16:
            weight.data = weight.data.float()


def check_narrow(settings: ModelSettings) -> None:
    """Weights in bfloat16 are multiplied in bfloat16; raises InputError where float32 is asked for."""
    if settings.precision == "float32":
        raise InputError(
            "train.optimizer = 'adamw-8bit' holds the weights in bfloat16, so model.precision = 'float32' cannot be; "
            "use model.precision=auto, or train.optimizer=adamw"
        )


def check_4bit(device: torch.device) -> None:
    """Raises InputError where weights cannot be held in 4 bits: no CUDA device, or no bitsandbytes."""
    if device.type != "cuda":
        raise InputError(
            f"model.adapter = 'qlora' needs a CUDA device and the model is on {str(device)!r}; use model.adapter=lora"
        )
    if importlib.util.find_spec("bitsandbytes") is None:
        raise InputError("model.adapter = 'qlora' needs bitsandbytes; run `pip install 'druthers[qlora]'`")


def plan_4bit() -> Any:
    """transformers' own plan: NF4 in blocks with quantised scales (QLoRA, https://arxiv.org/abs/2305.14314).

    It computes in float32 until `compute_in` says otherwise, so that the checks of a loaded model see no rounding.
    """
    from transformers import BitsAndBytesConfig

    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.float32,
    )


def compute_in(model: nn.Module, kind: torch.dtype) -> None:
    """The type in which the 4-bit layers of a model multiply."""
    from bitsandbytes.nn import Linear4bit

    for module in model.modules():
        if isinstance(module, Linear4bit):
            module.compute_dtype, module.compute_type_is_set = kind, True


def scales(model: nn.Module) -> list[tuple[str, Tensor]]:
    """What the codes of a model are multiplied by, by name; nothing where it has none."""
    return [(n, v) for n, v in model.state_dict().items() if ".weight." in n] if quantized(model) else []


def quantized(model: nn.Module) -> bool:
    """Whether some weight is stored in codes rather than numbers."""
    return any(not weight.is_floating_point() for weight in model.parameters())


@torch.no_grad()
def written_out(adapted: Any, plain: Any) -> Any:
    """The weights that `adapted` computes with as float32 numbers, its adapters added, put into `plain`.

    Both are causal models of one architecture; 4-bit codes are written out. `plain` is changed and returned.
    """
    from peft.tuners.lora import LoraLayer

    state: dict[str, Tensor] = {}
    inside: tuple[str, ...] = ()
    for name, module in adapted.named_modules():
        if name.startswith(inside):
            continue
        if isinstance(module, LoraLayer):
            inside = (*inside, f"{name}.")
            update = sum(module.get_delta_weight(adapter) for adapter in module.active_adapters)
            state[f"{name}.weight"] = numbers(module.base_layer.weight).float() + update
            if module.base_layer.bias is not None:
                state[f"{name}.bias"] = module.base_layer.bias
        else:
            state |= {f"{name}.{key}": numbers(weight) for key, weight in module.named_parameters(recurse=False)}
    found = plain.load_state_dict({name: weight.float() for name, weight in state.items()}, strict=False)
    assert not found.unexpected_keys, found.unexpected_keys
    return plain


def count(weight: Any) -> int:
    """How many numbers a weight is, whether it is stored as numbers or in packed codes."""
    state = getattr(weight, "quant_state", None)
    return math.prod((weight if state is None else state).shape)


def numbers(weight: Any) -> Tensor:
    """A weight as numbers, whether it is stored so or in codes."""
    if weight.is_floating_point():
        return weight  # type: ignore[no-any-return]
    import bitsandbytes

    return bitsandbytes.functional.dequantize_4bit(weight.data, weight.quant_state)  # type: ignore[no-any-return]
