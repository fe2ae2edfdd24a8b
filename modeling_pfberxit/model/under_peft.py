"""A model inside PEFT: it freezes everything but its own layers, and saves these and what `modules_to_save` names.

PEFT is never imported: its layers are known by the package of their class, its configs by what they hold.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

from torch import nn
from transformers.utils import logging

from .validation import refuse

if TYPE_CHECKING:
    from .modeling_pfberxit import PFBerxitForSequenceClassification

logger = logging.get_logger(__name__)

START_AT_RANDOM = ("exits", "prompts")  # adapters add nothing before they have learned


class Own(NamedTuple):
    """A parameter of the model itself, under the name it has without PEFT."""

    name: str
    trained: bool
    covered: bool  # a layer of PEFT's stands in front of it

    @property
    def part(self) -> str:
        """What PEFT's `modules_to_save` would call it: `exits`, `ffn_adapter`, `backbone` ..."""
        place = self.name.split(".")
        return place[2] if place[0] == "depths" else place[0]


def own_parameters(module: nn.Module, prefix: str = "", covered: bool = False) -> Iterator[Own]:
    """The model's own parameters, without what PEFT put beside them and without what it trains in their place."""
    if from_peft(module):
        if (base := module._modules.get("base_layer")) is not None:
            yield from own_parameters(base, prefix, True)
        return
    for name, parameter in module._parameters.items():
        if parameter is not None:
            yield Own(prefix + name, parameter.requires_grad, covered)
    for name, child in module.named_children():
        yield from own_parameters(child, f"{prefix}{name}.", covered)


def from_peft(module: nn.Module) -> bool:
    """Whether it is of one of PEFT's classes."""
    return type(module).__module__.partition(".")[0] == "peft"


def in_use(module: nn.Module) -> bool:
    """Whether PEFT has put anything into it."""
    return any(map(from_peft, module.modules()))


def name_heads(model: PFBerxitForSequenceClassification, configs: Mapping[str, Any]) -> None:
    """Add `exits` to what PEFT is about to train and save as the heads of a sequence classifier.

    PEFT looks for modules that are called `classifier` or `score`. It tells a model its configs, as `peft_config`,
    before it does; where its own layers are already in the exits it is too late.
    """
    for config in configs.values():
        names = getattr(config, "modules_to_save", None)
        heads = getattr(config, "task_type", None) == "SEQ_CLS" and names is not None
        if heads and "exits" not in names and not in_use(model.exits):
            names.append("exits")


def check_peft(model: PFBerxitForSequenceClassification, own: list[Own]) -> None:
    """Refuse what PEFT would leave behind: random parts of `own` that it neither trains nor saves."""
    frozen = [each for each in own if not each.trained]
    lost = {each.part for each in frozen if each.part in START_AT_RANDOM or each.covered}
    if lost:
        refuse_frozen(model, sorted(lost))
    if frozen:
        parts = ", ".join(sorted({each.part for each in frozen}))
        logger.warning_once(
            f"PEFT keeps the adapters frozen, as they are. Name them in modules_to_save as well ({parts}), or make the "
            "model with adapter_placement='none'."
        )


def refuse_frozen(model: PFBerxitForSequenceClassification, parts: list[str]) -> None:
    """Say what has to be trained, and the line that has PEFT do so."""
    configs = getattr(model, "peft_config", None) or {}
    kind = next((type(config).__name__ for config in configs.values()), "LoraConfig")
    names = ", ".join(f'"{part}"' for part in sorted({"exits", *parts}))
    line = f"{kind}(..., modules_to_save=[{names}])"
    refuse(" and ".join(parts), "frozen", f"trained (requires_grad). PEFT trains and saves what it is told to: {line}")


def check_without_peft(model: nn.Module) -> None:
    """Refuse to save PEFT's layers as if they were the model's: no model without them has these names."""
    if in_use(model):
        refuse("save_pretrained", "PEFT's layers", "that of PEFT's own model, or follow its merge_and_unload()")


def saved_by_peft(model: PFBerxitForSequenceClassification, parameter: Own) -> bool:
    """Whether it is a bias that PEFT's `bias=` unfroze: PEFT saves it."""
    configs = (getattr(model, "peft_config", None) or {}).values()
    return "bias" in parameter.name and any(getattr(config, "bias", "none") != "none" for config in configs)
