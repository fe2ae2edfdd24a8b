"""What a step is trained on: the losses of the exits that learn, as the training phase weighs them.

Every exit has the same task loss: the problem's own with the config's smoothing and weights, or one that the user sets.
"""

from collections.abc import Callable

import torch
from torch import Tensor
from transformers import PreTrainedConfig

from .evidence import MULTI_LABEL, REGRESSION, SINGLE_LABEL, Evidence
from .losses import distillation_losses, exit_losses, lte_loss, prototype_losses
from .strategies import Phase
from .validation import refuse

ExitLoss = Callable[[Tensor, Tensor], Tensor]  # logits (B, C) of one exit, the labels -> its loss, a scalar
WEIGHTS = {"class_weights": SINGLE_LABEL, "pos_weight": MULTI_LABEL}  # fields of the config, and for which problem


def training_loss(
    exits: list[Evidence], labels: Tensor, problem_type: str, config: PreTrainedConfig, phase: Phase,
    exit_loss: ExitLoss | None = None,
) -> Tensor:  # fmt: skip
    """The losses of the exits that learn, weighted: evidence of all exits, labels (B,) or (B, C) -> scalar.

    l_i of an exit is (1 - g) times its task loss plus g times its distance from the last exit (self-distillation), plus
    alpha times its prototypes' loss. LTE heads, where there are any, learn in every phase.
    """
    learners = Evidence.stack([exits[number] for number in phase.exits])
    losses = task_losses(learners.logits, labels, problem_type, config, exit_loss)
    if config.distillation:
        taught = distillation_losses(learners.logits, exits[-1].logits, problem_type, config)
        share = torch.full_like(losses, config.distillation)
        if phase.exits[-1] == len(exits) - 1:  # the teacher itself learns from the labels alone
            share[-1] = 0.0
        losses = (1 - share) * losses + share * taught
    if config.use_prototypes:
        losses = losses + config.prototype_weight * prototype_losses(learners.distances, labels, problem_type)
    loss = (losses * phase.weights.to(losses)).sum()
    if config.use_lte:
        everyone = Evidence.stack(exits)
        loss = loss + lte_loss(everyone.lte, everyone.logits, labels, problem_type)
    return loss


def task_losses(
    exit_logits: Tensor, labels: Tensor, problem_type: str, config: PreTrainedConfig, exit_loss: ExitLoss | None
) -> Tensor:
    """The loss of every exit on the labels: logits (B, E, C), labels (B,) or (B, C) -> (E,)."""
    if exit_loss is None:
        weights = {kind: getattr(config, name) for name, kind in WEIGHTS.items()}.get(problem_type)
        return exit_losses(exit_logits, labels, problem_type, config.label_smoothing, weights)
    losses = [exit_loss(logits, labels) for logits in exit_logits.float().unbind(1)]
    if any(not isinstance(loss, Tensor) or loss.dim() for loss in losses):
        refuse(
            "exit_loss", exit_loss, "a function of logits (B, C) and labels that returns one number, a scalar tensor"
        )
    return torch.stack(losses).float()


def check_weights(config: PreTrainedConfig, problem_type: str | None) -> None:
    """Refuse weights that are not one for each label, or not for this problem (None: it is still open)."""
    for name, kind in WEIGHTS.items():
        if (weights := getattr(config, name)) is None:
            continue
        if len(weights) != config.num_labels or not any(weights):
            refuse(name, weights, f"a list of {config.num_labels} numbers, one for each label, one of them above 0")
        if problem_type not in (None, kind):
            refuse(name, weights, f"None for {problem_type}: it is for {kind}")


def check_objective(config: PreTrainedConfig, problem_type: str, exit_loss: ExitLoss | None = None) -> None:
    """Refuse losses that mean nothing for the problem, or that nothing would read, before any layer runs."""
    check_weights(config, problem_type)
    if problem_type == REGRESSION and config.label_smoothing:
        refuse("label_smoothing", config.label_smoothing, "0 for regression")
    if problem_type == REGRESSION and config.use_prototypes:
        refuse("use_prototypes", True, "False for regression, which has no outcomes to make prototypes of")
    unread = [name for name in ("label_smoothing", *WEIGHTS) if getattr(config, name)]
    if exit_loss is not None and unread:
        refuse(unread[0], getattr(config, unread[0]), "left out: model.exit_loss is the whole loss of an exit")
