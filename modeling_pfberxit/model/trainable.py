"""What a training step moves: the model's own parameters and PEFT's, and whether gradients reach what should learn.

A checkpoint of adapters holds only some parts of the model; a step that moves others, or that leaves random parts as
they are, is refused before it is taken. Which exits learn is in `strategies`, their losses in `losses`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.utils import ModelOutput, logging

from .blueprint import KEPT
from .exits import of_exit
from .strategies import Phase
from .validation import is_watched, refuse

logger = logging.get_logger(__name__)

START_AT_RANDOM = ("exits", "prompts")  # adapters add nothing before they have learned


# ---- the model's own parameters --------------------------------------------------------------------------------------


class OwnParameter(NamedTuple):
    """A parameter of the model itself, under the name it has without PEFT."""

    name: str
    trained: bool
    covered: bool  # a layer of PEFT's wraps it

    @property
    def part(self) -> str:
        """What PEFT's `modules_to_save` would call it: `exits`, `ffn_adapter`, `backbone` ..."""
        place = self.name.split(".")
        return place[2] if place[0] == "depths" else place[0]

    @property
    def kept(self) -> bool:
        """Whether a checkpoint without the encoder holds it."""
        return self.name.partition(".")[0] in KEPT


def own_parameters(module: nn.Module, prefix: str = "", covered: bool = False) -> Iterator[OwnParameter]:
    """The model's own parameters, without what PEFT put beside them and without what it trains in their place."""
    if from_peft(module):
        if (base := module._modules.get("base_layer")) is not None:
            yield from own_parameters(base, prefix, covered=True)
        return
    for name, parameter in module._parameters.items():
        if parameter is not None:
            yield OwnParameter(prefix + name, parameter.requires_grad, covered)
    for name, child in module.named_children():
        yield from own_parameters(child, f"{prefix}{name}.", covered)


def check_trained(model: PreTrainedModel, phase: Phase) -> None:
    """Refuse a step that moves what no checkpoint would hold, or whose exits are all frozen."""
    own = list(own_parameters(model))
    if in_use(model):
        check_peft(model, [each for each in own if each.kept])
    learning = any(of_exit(model.exits.classifiers, number).weight.requires_grad for number in phase.exits)
    # Whoever trains the prompts alone has frozen the exits on purpose.
    if not learning and not any(each.trained and each.name.startswith("prompts.") for each in own):
        refuse_frozen(model, ["exits"])
    lost = [each for each in own if each.trained and not each.kept]
    strays = [each.name for each in lost if not saved_by_peft(model, each)]
    if model.config.adapter_only and strays:
        names = strays[0] if len(strays) == 1 else f"{strays[0]} and {len(strays) - 1} more parameters"
        refuse("adapter_only", True, f"False to train {names}, which a checkpoint of adapters would not hold")


# ---- PEFT ------------------------------------------------------------------------------------------------------------


def from_peft(module: nn.Module) -> bool:
    """Whether it is of one of PEFT's classes."""
    return type(module).__module__.partition(".")[0] == "peft"


def in_use(module: nn.Module) -> bool:
    """Whether PEFT has put anything into it."""
    return any(map(from_peft, module.modules()))


def name_heads(model: PreTrainedModel, configs: Mapping[str, Any]) -> None:
    """Add `exits` to what PEFT is about to train and save as the heads of a sequence classifier.

    PEFT looks for modules that are called `classifier` or `score`. It sets a model's `peft_config` before it does so;
    where its own layers are already in the exits, it is too late.
    """
    for config in configs.values():
        names = getattr(config, "modules_to_save", None)
        if names is None or "exits" in names or getattr(config, "task_type", None) != "SEQ_CLS":
            continue
        if not in_use(model.exits):
            names.append("exits")


def check_peft(model: PreTrainedModel, own: list[OwnParameter]) -> None:
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


def refuse_frozen(model: PreTrainedModel, parts: list[str]) -> None:
    """Say what has to be trained, and the line that has PEFT do so."""
    configs = getattr(model, "peft_config", None) or {}
    kind = ["PeftConfig", *(type(config).__name__ for config in configs.values())][-1]  # of the newest adapter
    names = ", ".join(f'"{part}"' for part in sorted({"exits", *parts}))
    line = f"{kind}(..., modules_to_save=[{names}])"
    refuse(" and ".join(parts), "frozen", f"trained (requires_grad). PEFT trains and saves what it is told to: {line}")


def check_without_peft(model: nn.Module) -> None:
    """Refuse to save PEFT's layers as if they were the model's: no model without them has these names."""
    if in_use(model):
        refuse("save_pretrained", "PEFT's layers", "that of PEFT's own model, or follow its merge_and_unload()")


def saved_by_peft(model: PreTrainedModel, parameter: OwnParameter) -> bool:
    """Whether it is a bias that PEFT's `bias=` unfroze: PEFT saves it."""
    configs = (getattr(model, "peft_config", None) or {}).values()
    return "bias" in parameter.name and any(getattr(config, "bias", "none") != "none" for config in configs)


# ---- gradients -------------------------------------------------------------------------------------------------------


class Noticed(torch.autograd.Function):
    """The identity; calls a function when a gradient passes."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, notice: Callable[[], None]) -> Tensor:
        """The values; `notice` is called when their gradient is."""
        ctx.notice = notice
        ctx.set_materialize_grads(False)  # zeros for what a loss did not read would be a gradient as well
        return values.clone()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor | None) -> tuple[Tensor | None, None]:
        """The gradient as it is; None is that of values no loss has read."""
        if gradient is not None:
            ctx.notice()
        return gradient, None


@torch.compiler.disable  # its backward pass calls a function, which a graph cannot hold
def watch_gradients(output: ModelOutput, phase: Phase) -> None:
    """Have a loss that was made of `output.logits` alone refused in its backward pass, where other exits should learn.

    The engine runs what was made later first, so gradients of `loss` and of `exit_logits` are noticed before those of
    `logits`. A user's own loss beside these two is fine. Nothing is watched in a traced call: no backward pass follows.
    """
    last = output.exit_logits.shape[1] - 1
    if phase.exits == (last,) or not output.exit_logits.requires_grad or is_watched(output.logits):
        return
    if not output.logits.requires_grad:  # of a classifier's own head, which stays as it is
        output.logits = output.logits.detach().requires_grad_()
    reached: list[bool] = []

    def check() -> None:
        """Refuse a loss whose gradient has come by `logits` first."""
        if not reached:
            refuse(
                "loss", "of outputs.logits", "one that every exit learns from, and this one reaches the last alone: "
                "outputs.loss (config.class_weights, pos_weight and label_smoothing are in it, not those of Trainer), "
                "model.exit_loss = a loss of your own for every exit, or one of outputs.exit_logits (B, exits, C)",
            )  # fmt: skip

    output.logits = Noticed.apply(output.logits, check)
    output.exit_logits = Noticed.apply(output.exit_logits, lambda: reached.append(True))
    if output.loss is not None:
        output.loss = Noticed.apply(output.loss, lambda: reached.append(True))
