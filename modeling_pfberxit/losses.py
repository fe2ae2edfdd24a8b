"""What the exits are trained on: one task loss per exit, weighted by depth."""

import torch
from torch import Tensor
from torch.nn import functional as F

from .criteria import MULTI_LABEL, REGRESSION, SINGLE_LABEL
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

    Raises:
        ValueError: `label_smoothing` for regression, which has no labels to smooth.
    """
    exit_logits, exits = exit_logits.float(), exit_logits.shape[1]
    if problem_type == REGRESSION:
        if label_smoothing:
            refuse("label_smoothing", label_smoothing, "0 for regression")
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


def depth_weighted(losses: Tensor, depths: list[int]) -> Tensor:
    """sum_i i l_i / sum_i i over the exits' layers i (PABEE, F-PABEE): (E,) -> scalar.

    Example: losses (3, 1) at layers 1 and 2 make (1 * 3 + 2 * 1) / 3 = 5/3.
    """
    weights = losses.new_tensor(depths)
    return (losses * weights).sum() / weights.sum()


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
