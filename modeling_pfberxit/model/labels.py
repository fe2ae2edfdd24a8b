"""Labels: which problem they pose, and whether they fit it."""

import torch
from torch import Tensor
from transformers import PreTrainedConfig

from .evidence import MULTI_LABEL, REGRESSION, SINGLE_LABEL
from .tracing import is_readable, is_watched
from .validation import refuse


def problem_type_of(config: PreTrainedConfig, labels: Tensor | None = None) -> str:
    """The config's problem type; without one what the labels of a call say, by `transformers`' convention."""
    if config.problem_type is not None:
        return config.problem_type
    if config.num_labels == 1:
        return REGRESSION
    return MULTI_LABEL if isinstance(labels, Tensor) and labels.is_floating_point() else SINGLE_LABEL


def check_labels(labels: Tensor, num_labels: int, rows: int, problem_type: str) -> None:
    """Refuse labels that do not fit the problem, before the loss kernel fails on them in its own words.

    Their values are looked at on the CPU alone, and not while someone traces.
    """
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
    if fits and is_readable(labels):
        fits = _in_range(labels, num_labels, problem_type)
    if not fits:
        told = labels.numel() and not is_watched(labels)
        low_high = f", from {labels.min().item()} to {labels.max().item()}" if told else ""
        refuse("labels", f"{labels.dtype} {tuple(labels.shape)}{low_high}", f"{allowed} for {problem_type}")


def _in_range(labels: Tensor, num_labels: int, problem_type: str) -> bool:
    if problem_type == REGRESSION:
        return bool(labels.isfinite().all())
    if problem_type == MULTI_LABEL:
        return bool(((labels >= 0) & (labels <= 1)).all())
    labels = labels.long()
    return bool((((labels >= 0) & (labels < num_labels)) | (labels == -100)).all())
