"""What training minimises: a loss for each exit, and their weighted sum.

Which exits learn at a step, and how much each weighs, is in `strategies`; which parameters a step may move, in
`trainable`.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import PreTrainedConfig

from .evidence import (
    ABSTAIN,
    DIVERGENCES,
    MULTI_LABEL,
    REGRESSION,
    SINGLE_LABEL,
    Evidence,
    PolicyFields,
    entropy,
    predictions,
)
from .strategies import EXIT_WEIGHTS, Phase, where_rows_leave
from .validation import is_readable, is_watched, refuse

ExitLoss = Callable[[Tensor, Tensor], Tensor]  # logits (B, C) of one exit, the labels -> its loss, a scalar
WEIGHTS = {"class_weights": SINGLE_LABEL, "pos_weight": MULTI_LABEL}  # fields of the config, and for which problem


# ---- labels ---------------------------------------------------------------------------------------------------------


def problem_type_of(config: PreTrainedConfig, labels: Tensor | None = None) -> str:
    """The config's problem type; without one that of a call's labels, by `transformers`' convention."""
    if config.problem_type is not None:
        return config.problem_type
    if config.num_labels == 1:
        return REGRESSION
    return MULTI_LABEL if isinstance(labels, Tensor) and labels.is_floating_point() else SINGLE_LABEL


def check_labels(labels: Tensor, num_labels: int, rows: int, problem_type: str) -> None:
    """Refuse labels that do not fit the problem, before the loss kernel fails on them in its own words.

    Their values are read on the CPU alone, and not while a call is traced.
    """
    if not isinstance(labels, Tensor):
        refuse("labels", type(labels).__name__, "a tensor")
    shapes: list[tuple[int, ...]] = [(rows, num_labels)]
    if problem_type == SINGLE_LABEL:
        shapes = [(rows,), (rows, 1)]
        allowed = f"integers of shape ({rows},) in [0, {num_labels}), or -100"
        right_kind = not labels.is_floating_point() and labels.dtype is not torch.bool
    elif problem_type == MULTI_LABEL:
        allowed = f"floats of shape ({rows}, {num_labels}) in [0, 1]"
        right_kind = labels.is_floating_point()
    else:
        shapes = [(rows,), (rows, 1)] if num_labels == 1 else shapes
        allowed, right_kind = f"finite numbers of shape {shapes[0]}", True
    fits = right_kind and tuple(labels.shape) in shapes
    if fits and is_readable(labels):
        fits = _in_range(labels, num_labels, problem_type)
    if not fits:
        readable = labels.numel() and not is_watched(labels)
        low_high = f", from {labels.min().item()} to {labels.max().item()}" if readable else ""
        refuse("labels", f"{labels.dtype} {tuple(labels.shape)}{low_high}", f"{allowed} for {problem_type}")


def class_ids(labels: Tensor) -> Tensor:
    """The ids of classes, (B,) or (B, 1), as (B,); as bytes, -100 would be class 156."""
    return labels.long().reshape(-1)


def _in_range(labels: Tensor, num_labels: int, problem_type: str) -> bool:
    if problem_type == REGRESSION:
        return bool(labels.isfinite().all())
    if problem_type == MULTI_LABEL:
        return bool(((labels >= 0) & (labels <= 1)).all())
    labels = class_ids(labels)
    return bool((((labels >= 0) & (labels < num_labels)) | (labels == -100)).all())


# ---- a loss for each exit --------------------------------------------------------------------------------------------


def exit_losses(
    exit_logits: Tensor, labels: Tensor, problem_type: str, label_smoothing: float = 0.0,
    weights: list[float] | None = None, rows: Tensor | None = None,
) -> Tensor:  # fmt: skip
    """The mean loss of every exit over the rows: logits (B, E, C), labels (B,) or (B, C) -> (E,).

    Cross-entropy, binary cross-entropy averaged over the labels, or squared error, in fp32. `weights` are torch's
    `weight=` of the classes, or its `pos_weight=` of several labels; values have none. `rows` (B, E): what each row's
    loss weighs at each exit, beside them.
    """
    exit_logits = exit_logits.float()
    weighing = None if weights is None else exit_logits.new_tensor(weights)
    if problem_type == REGRESSION:
        targets = labels.to(exit_logits).reshape(exit_logits.shape[0], 1, -1).expand_as(exit_logits)
        return _weighed(F.mse_loss(exit_logits, targets, reduction="none"), rows).mean((0, 2))
    if problem_type == MULTI_LABEL:
        targets = labels.to(exit_logits) * (1 - label_smoothing) + label_smoothing / 2
        targets = targets[:, None].expand_as(exit_logits)
        losses = F.binary_cross_entropy_with_logits(exit_logits, targets, reduction="none", pos_weight=weighing)
        return _weighed(losses, rows).mean((0, 2))
    labels = class_ids(labels)
    return _class_losses(exit_logits, labels, label_smoothing, weighing, rows)


def _weighed(losses: Tensor, rows: Tensor | None) -> Tensor:
    """Losses (B, E) or (B, E, C), each times what its row weighs at the exit (B, E)."""
    return losses if rows is None else losses * rows.reshape(*rows.shape, *[1] * (losses.dim() - 2))


def _class_losses(
    exit_logits: Tensor, labels: Tensor, label_smoothing: float, weighing: Tensor | None, rows: Tensor | None
) -> Tensor:
    """Cross-entropy (E,), a mean over the rows that are labelled, each as its class weighs; 0 where none does."""
    every_exit = labels[:, None].expand(-1, exit_logits.shape[1])
    losses = F.cross_entropy(
        exit_logits.transpose(1, 2), every_exit, weighing, reduction="none", label_smoothing=label_smoothing
    )  # (B, E); 0 where the label is -100
    labelled = (labels != -100).to(losses)
    total = (labelled if weighing is None else labelled * weighing[labels.clamp(min=0)]).sum()
    return _weighed(losses, rows).sum(0) * (total > 0) / total.masked_fill(total == 0, 1)


def distillation_losses(exit_logits: Tensor, teacher: Tensor, problem_type: str, config: PreTrainedConfig) -> Tensor:
    """How far each exit is from the last one: logits (B, E, C), the teacher's (B, C) -> (E,).

    T^2 times the divergence of predictions softened by T, mean over rows and labels; `kl_div` puts the student first
    (FastBERT), `rekl_div` the teacher (RomeBERT). Regression: the squared difference. The teacher is not moved.
    """
    teacher, temperature = teacher.detach(), config.distillation_temperature
    if problem_type == REGRESSION:
        return (exit_logits.float() - teacher[:, None].float()).square().mean((0, 2))
    goal = predictions(teacher / temperature, problem_type)[:, None]  # (B, 1, L, K)
    students = predictions(exit_logits.flatten(0, 1) / temperature, problem_type)
    students = students.unflatten(0, exit_logits.shape[:2])  # (B, E, L, K)
    apart = DIVERGENCES[config.distillation_divergence].of(students, goal.expand_as(students))  # (B, E, L)
    return temperature**2 * apart.mean((0, 2))


def prototype_losses(distances: Tensor, labels: Tensor, problem_type: str) -> Tensor:
    """DE3-BERT: rows are drawn to their outcome's prototype, away from the others: (B, E, L, K) -> (E,).

    The cross-entropy of a softmax over negative distances. The paper's distance-aware term and its weight are not
    public; this is our reading, since it is the prototypical network's own loss and does both in one term.
    """
    closeness = (-distances).log_softmax(-1)
    if problem_type == MULTI_LABEL:  # outcome 0 is "has the label"
        target = (labels <= 0.5).long()[:, None, :, None].expand(-1, distances.shape[1], -1, -1)
        return -closeness.gather(-1, target).mean((0, 2, 3))
    labels = class_ids(labels)
    counted = labels != -100
    target = labels.clamp(min=0)[:, None, None, None].expand(-1, distances.shape[1], 1, 1)
    missed = -closeness.gather(-1, target)[:, :, 0, 0] * counted[:, None]
    return missed.sum(0) / counted.sum().clamp(min=1)


def lte_loss(lte: Tensor, exit_logits: Tensor, labels: Tensor, problem_type: str) -> Tensor:
    """BERxiT: how well each LTE score (B, E) foretells that its exit is wrong; squared error, mean over rows and exits.

    The target is 1 where the label is missed (multi-label: the share of labels missed) and tanh |y' - y| in regression.
    """
    answers = exit_logits.detach().float()
    if problem_type == SINGLE_LABEL:
        labels = class_ids(labels)
        counted = (labels != -100)[:, None]
        wrong = (answers.argmax(-1) != labels[:, None]).float()
        missed = F.mse_loss(lte.float(), wrong, reduction="none") * counted
        return missed.sum() / (counted.sum() * lte.shape[1]).clamp(min=1)
    if problem_type == REGRESSION:
        targets = labels.to(answers).reshape(answers.shape[0], 1, -1)
        wrong = torch.tanh((answers - targets).abs()).mean(-1)
    else:
        wrong = ((answers > 0) != (labels[:, None] > 0.5)).float().mean(-1)
    return F.mse_loss(lte.float(), wrong)


# ---- their sum ------------------------------------------------------------------------------------------------------


def training_loss(
    exits: list[Evidence], labels: Tensor, problem_type: str, config: PreTrainedConfig, phase: Phase,
    exit_loss: ExitLoss | None = None,
) -> Tensor:  # fmt: skip
    """The losses of the exits that learn, weighted: evidence of all exits, labels (B,) or (B, C) -> scalar.

    l_i of an exit is (1 - g) times its task loss plus g times its distance from the last exit (self-distillation), plus
    alpha times its prototypes' loss. LTE heads, where there are any, learn in every phase.
    """
    learners = Evidence.stack([exits[number] for number in phase.exits])
    losses = task_losses(learners.logits, labels, problem_type, config, exit_loss, phase.sharpness)
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
    exit_logits: Tensor, labels: Tensor, problem_type: str, config: PreTrainedConfig, exit_loss: ExitLoss | None,
    sharpness: float | None = None,
) -> Tensor:  # fmt: skip
    """The loss of every exit on the labels: logits (B, E, C), labels (B,) or (B, C) -> (E,)."""
    if exit_loss is None:
        weights = {kind: getattr(config, name) for name, kind in WEIGHTS.items()}.get(problem_type)
        rows = None if sharpness is None else where_rows_leave(unsureness(exit_logits, problem_type), sharpness)
        return exit_losses(exit_logits, labels, problem_type, config.label_smoothing, weights, rows)
    losses = [exit_loss(logits, labels) for logits in exit_logits.float().unbind(1)]
    if any(not isinstance(loss, Tensor) or loss.dim() for loss in losses):
        allowed = "a function of logits (B, C) and labels that returns one number, a scalar tensor"
        refuse("exit_loss", exit_loss, allowed)
    return torch.stack(losses).float()


def unsureness(exit_logits: Tensor, problem_type: str) -> Tensor:
    """How unsure every exit is of every row, normalised entropy in [0, 1]: logits (B, E, C) -> (B, E)."""
    tables = predictions(exit_logits.flatten(0, 1), problem_type)
    return entropy(tables, normalize=True).unflatten(0, exit_logits.shape[:2])


def answer_loss(
    logits: Tensor, labels: Tensor, problem_type: str, config: PreTrainedConfig, exit_loss: ExitLoss | None,
    policy: PolicyFields,
) -> Tensor:  # fmt: skip
    """The loss of the answers where rows leave early: logits (B, C), labels (B,) or (B, C) -> scalar.

    Under a policy that abstains it is that of the rows with an answer, and 0 where none has one.
    """
    if policy.answer == ABSTAIN:
        kept = (~logits.isnan().any(-1)).nonzero().squeeze(1)  # on an accelerator it waits, as the exits did before
        if not len(kept):
            return logits.new_zeros((), dtype=torch.float)
        logits, labels = logits[kept], labels[kept]
    return task_losses(logits[:, None], labels, problem_type, config, exit_loss)[0]


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
    if EXIT_WEIGHTS[config.exit_weights].by_row and (problem_type == REGRESSION or exit_loss is not None):
        allowed = "another one for regression or with model.exit_loss: this reads how sure classes are, row by row"
        refuse("exit_weights", config.exit_weights, allowed)
    unread = [name for name in ("label_smoothing", *WEIGHTS) if getattr(config, name)]
    if exit_loss is not None and unread:
        refuse(unread[0], getattr(config, unread[0]), "left out: model.exit_loss is the whole loss of an exit")
