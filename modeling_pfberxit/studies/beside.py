"""What PEFT trains in the encoder beside adapters and exits: LoRA, or the scales and offsets of its norms."""

from collections.abc import Callable
from typing import Any

from torch import nn

from ..model.modeling_pfberxit import PFBerxitForSequenceClassification

RANK = 8


def lora(parts: dict[type, list[str]]) -> Any:
    """Low-rank updates of every linear layer."""
    from peft import LoraConfig

    return LoraConfig(r=RANK, lora_alpha=2 * RANK, target_modules=parts[nn.Linear], modules_to_save=[])


def norms(parts: dict[type, list[str]]) -> Any:
    """Learned scaling, layer by layer: the weights and biases of the norms."""
    from peft import LNTuningConfig

    return LNTuningConfig(target_modules=parts[nn.LayerNorm], modules_to_save=[])


BESIDE: dict[str, Callable[[dict[type, list[str]]], Any]] = {"lora": lora, "norms": norms}


def with_peft(model: PFBerxitForSequenceClassification, kind: str) -> Any:
    """The model in PEFT's wrapper, which trains an entry of `BESIDE`, the adapters, and the exits."""
    from peft import get_peft_model

    parts: dict[type, list[str]] = {nn.Linear: [], nn.LayerNorm: []}
    for name, module in model.named_modules():
        if name.startswith("backbone.") and ".pooler" not in name and type(module) in parts:
            parts[type(module)].append(name)
    config = BESIDE[kind](parts)
    config.modules_to_save = ["exits", "ffn_adapter", "attention_adapter"]
    return get_peft_model(model, config)
