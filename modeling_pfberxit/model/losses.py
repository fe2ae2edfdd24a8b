"""Losses of exits: on the labels, against the last exit, of their prototypes and of their LTE heads."""

import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import PreTrainedConfig

from .divergences import DIVERGENCES
from .evidence import MULTI_LABEL, REGRESSION, SINGLE_LABEL, predictions


def exit_losses(
    exit_logits: Tensor,
    labels: Tensor,
    problem_type: str,
    label_smoothing: float = 0.0,
    weights: list[float] | None = None,
) -> Tensor:
    """The mean loss of every exit over the rows: logits (B, E, C), labels (B,) or (B, C) -> (E,).

    Cross-entropy, binary cross-entropy averaged over the labels, or squared error, in fp32. `weights` are torch's
    `weight=` of the classes, or its `pos_weight=` of several labels; values have none.
    """
    exit_logits = exit_logits.float()
    weighing = None if weights is None else exit_logits.new_tensor(weights)
    if problem_type == REGRESSION:
        targets = labels.to(exit_logits).reshape(exit_logits.shape[0], 1, -1).expand_as(exit_logits)
        return F.mse_loss(exit_logits, targets, reduction="none").mean((0, 2))
    if problem_type == MULTI_LABEL:
        targets = labels.to(exit_logits) * (1 - label_smoothing) + label_smoothing / 2
        targets = targets[:, None].expand_as(exit_logits)
        return F.binary_cross_entropy_with_logits(exit_logits, targets, reduction="none", pos_weight=weighing).mean(
            (0, 2)
        )
    return _class_losses(exit_logits, labels.long(), label_smoothing, weighing)  # as bytes, -100 would be class 156


def _class_losses(exit_logits: Tensor, labels: Tensor, label_smoothing: float, weighing: Tensor | None) -> Tensor:
    """Cross-entropy (E,), a mean over the rows that are labelled, each as its class weighs; 0 where none does."""
    every_exit = labels[:, None].expand(-1, exit_logits.shape[1])
    losses = F.cross_entropy(
        exit_logits.transpose(1, 2), every_exit, weighing, reduction="none", label_smoothing=label_smoothing
    )  # (B, E); 0 where the label is -100
    labelled = (labels != -100).to(losses)
    total = (labelled if weighing is None else labelled * weighing[labels.clamp(min=0)]).sum()
    return losses.sum(0) * (total > 0) / total.masked_fill(total == 0, 1)


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
