"""What the exits are trained on: a loss for each of them, and their sum as the training phase weighs it."""

import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import PreTrainedConfig

from .divergences import DIVERGENCES
from .evidence import MULTI_LABEL, REGRESSION, SINGLE_LABEL, Evidence, predictions
from .strategies import Phase
from .validation import refuse


def infer_problem_type(num_labels: int, labels: Tensor) -> str:
    """The problem a model without `problem_type` is trained on, by `transformers`' convention."""
    if num_labels == 1:
        return REGRESSION
    return MULTI_LABEL if isinstance(labels, Tensor) and labels.is_floating_point() else SINGLE_LABEL


def check_labels(labels: Tensor, num_labels: int, rows: int, problem_type: str) -> None:
    """Refuse labels that do not fit the problem, before the loss kernel fails on them in its own words."""
    if not isinstance(labels, Tensor):
        refuse("labels", type(labels).__name__, "a tensor")
    if problem_type == SINGLE_LABEL:
        allowed, shapes = f"integers of shape ({rows},) in [0, {num_labels}), or -100", [(rows,)]
        right_kind = not labels.is_floating_point() and labels.dtype is not torch.bool
    elif problem_type == MULTI_LABEL:
        allowed, shapes = f"floats of shape ({rows}, {num_labels}) in [0, 1]", [(rows, num_labels)]
        right_kind = labels.is_floating_point()
    else:
        shapes = [(rows,), (rows, 1)] if num_labels == 1 else [(rows, num_labels)]
        allowed, right_kind = f"finite numbers of shape {shapes[0]}", True
    fits = right_kind and tuple(labels.shape) in shapes
    if fits and not torch.compiler.is_compiling():
        fits = _in_range(labels, num_labels, problem_type)
    if not fits:
        low_high = f", from {labels.min().item()} to {labels.max().item()}" if labels.numel() else ""
        refuse("labels", f"{labels.dtype} {tuple(labels.shape)}{low_high}", f"{allowed} for {problem_type}")


def _in_range(labels: Tensor, num_labels: int, problem_type: str) -> bool:
    if problem_type == REGRESSION:
        return bool(labels.isfinite().all())
    if problem_type == MULTI_LABEL:
        return bool(((labels >= 0) & (labels <= 1)).all())
    labels = labels.long()
    return bool((((labels >= 0) & (labels < num_labels)) | (labels == -100)).all())


def exit_losses(exit_logits: Tensor, labels: Tensor, problem_type: str, label_smoothing: float = 0.0) -> Tensor:
    """The mean loss of every exit over the rows: logits (B, E, C), labels (B,) or (B, C) -> (E,).

    Cross-entropy, binary cross-entropy averaged over the labels, or squared error, in fp32.

    """
    exit_logits, exits = exit_logits.float(), exit_logits.shape[1]
    if problem_type == REGRESSION:
        targets = labels.to(exit_logits).reshape(exit_logits.shape[0], 1, -1).expand_as(exit_logits)
        return F.mse_loss(exit_logits, targets, reduction="none").mean((0, 2))
    if problem_type == MULTI_LABEL:
        targets = labels.to(exit_logits) * (1 - label_smoothing) + label_smoothing / 2
        targets = targets[:, None].expand_as(exit_logits)
        return F.binary_cross_entropy_with_logits(exit_logits, targets, reduction="none").mean((0, 2))
    labels = labels.long()  # as bytes, -100 would be class 156
    losses = F.cross_entropy(
        exit_logits.transpose(1, 2),
        labels[:, None].expand(-1, exits),
        reduction="none",
        label_smoothing=label_smoothing,
    )  # (B, E); 0 where the label is -100
    return losses.sum(0) / (labels != -100).sum().clamp(min=1)


def training_loss(
    exits: list[Evidence], labels: Tensor, problem_type: str, config: PreTrainedConfig, phase: Phase
) -> Tensor:
    """The losses of the exits that learn, weighted: evidence of all exits, labels (B,) or (B, C) -> scalar.

    l_i of an exit is (1 - g) times its task loss plus g times its distance from the last exit (self-distillation), plus
    alpha times its prototypes' loss. LTE heads, where there are any, learn in every phase.
    """
    learners = Evidence.stack([exits[number] for number in phase.exits])
    losses = exit_losses(learners.logits, labels, problem_type, config.label_smoothing)
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


def check_objective(config: PreTrainedConfig, problem_type: str) -> None:
    """Refuse losses that mean nothing for the problem, before any layer runs."""
    if problem_type == REGRESSION and config.label_smoothing:
        refuse("label_smoothing", config.label_smoothing, "0 for regression")
    if problem_type == REGRESSION and config.use_prototypes:
        refuse("use_prototypes", True, "False for regression, which has no outcomes to make prototypes of")


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
    labels = labels.long()
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
        labels = labels.long()
        counted = labels != -100
        wrong = (answers.argmax(-1) != labels[:, None]).float()[counted]
        return F.mse_loss(lte.float()[counted], wrong, reduction="sum") / max(wrong.numel(), 1)
    if problem_type == REGRESSION:
        targets = labels.to(answers).reshape(answers.shape[0], 1, -1)
        wrong = torch.tanh((answers - targets).abs()).mean(-1)
    else:
        wrong = ((answers > 0) != (labels[:, None] > 0.5)).float().mean(-1)
    return F.mse_loss(lte.float(), wrong)
