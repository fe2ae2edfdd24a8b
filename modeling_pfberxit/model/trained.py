"""What a training step reaches, held against what its strategy teaches and what a checkpoint keeps.

An encoder unfrozen by hand learns and is not saved with the adapters; a loss of one's own is easily made of the last
exit's logits alone, and the others stay as random as they were made. No number of such a run would say so.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from transformers.utils import ModelOutput

from .strategies import Phase
from .tracing import is_watched
from .under_peft import check_peft, in_use, own_parameters, refuse_frozen, saved_by_peft
from .validation import refuse

if TYPE_CHECKING:
    from .modeling_pfberxit import PFBerxitForSequenceClassification

KEPT = ("depths", "exits", "prompts", "token_exits")  # what a checkpoint without the encoder holds


# ---- parameters -----------------------------------------------------------------------------------------------------


def check_trained(model: PFBerxitForSequenceClassification, phase: Phase) -> None:
    """Refuse a step that moves what no checkpoint would hold, or whose exits are all frozen."""
    own = list(own_parameters(model))
    if in_use(model):
        check_peft(model, [each for each in own if each.name.partition(".")[0] in KEPT])
    heads = model.exits.classifiers
    if not any(heads[number if len(heads) > 1 else 0].weight.requires_grad for number in phase.exits):
        refuse_frozen(model, ["exits"])
    strays = [each for each in own if each.trained and each.name.partition(".")[0] not in KEPT]
    strays = [each.name for each in strays if not saved_by_peft(model, each)]
    if model.config.adapter_only and strays:
        names = strays[0] if len(strays) == 1 else f"{strays[0]} and {len(strays) - 1} more parameters"
        refuse("adapter_only", True, f"False to train {names}, which a checkpoint of adapters would not hold")


# ---- gradients ------------------------------------------------------------------------------------------------------


class Noticed(torch.autograd.Function):
    """The identity; calls a function when a gradient comes back this way."""

    @staticmethod
    def forward(ctx, values: Tensor, notice: Callable[[], None]) -> Tensor:
        ctx.notice = notice
        ctx.set_materialize_grads(False)  # zeros for what a loss did not read would be a gradient as well
        return values.clone()

    @staticmethod
    def backward(ctx, gradient: Tensor | None) -> tuple[Tensor | None, None]:
        if gradient is not None:
            ctx.notice()
        return gradient, None


def watch_gradients(output: ModelOutput, phase: Phase) -> None:
    """Have a loss that was made of `output.logits` alone refused in its backward pass, where other exits should learn.

    The engine runs what was made later first, so gradients of `loss` and of `exit_logits` are noticed before those of
    `logits`. A loss of one's own beside these two is welcome. Not while someone traces: no backward pass follows.
    """
    last = output.exit_logits.shape[1] - 1
    if phase.exits == (last,) or not output.logits.requires_grad or is_watched(output.logits):
        return
    reached: list[bool] = []

    def check() -> None:
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
