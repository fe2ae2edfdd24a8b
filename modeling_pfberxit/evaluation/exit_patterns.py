"""A recording beside its scores: overthinking, wasted depth, where rows exit, and drift."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from scipy.stats import chi2_contingency
from torch import Tensor

from ..model.evidence import MULTI_LABEL, REGRESSION
from ..model.exit_policy import ExitPolicy
from ..model.validation import refuse
from .calibration import agreement
from .recording import Recording
from .replay import answered

# ---- overthinking ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Overthinking:
    """Full depth against earlier exits, in shares of the rows (Kaya et al., ICML 2019).

    Args:
        wasteful: right at the end, and at some earlier exit already.
        destructive: right at some earlier exit, wrong at the end.
        first_right: (N,) the layer of the first exit that is right; 0 where none is.
        wasted: (N,) layers run after the last change of the prediction.
    """

    wasteful: float
    destructive: float
    first_right: Tensor
    wasted: Tensor


def overthinking(recording: Recording, tolerance: float = 0.5) -> Overthinking:
    """Right early and wrong at the end, and depth that changed nothing, for every row of a labelled recording.

    Several labels are right if all are; values, if within `tolerance`. No policy knows which exit is right, so
    `destructive` is not something to be gained.
    """
    right = correct(recording, tolerance)  # (N, E)
    depths = torch.tensor(recording.exit_depths)
    early, end = right[:, :-1].any(1), right[:, -1]
    first = torch.where(right.any(1), depths[right.float().argmax(1)], 0)
    return Overthinking(
        (early & end).float().mean().item(), (early & ~end).float().mean().item(), first,
        recording.layers - settled_depth(recording, tolerance),
    )  # fmt: skip


def correct(recording: Recording, tolerance: float = 0.5, logits: Tensor | None = None) -> Tensor:
    """Whether each exit is right, (N, E); or each of other answers, logits (N, E, C), to the recorded rows."""
    logits, labels = recording.evidence.logits if logits is None else logits, recording.known_labels
    if recording.problem_type == REGRESSION:
        return ((logits - labels.reshape(len(labels), 1, -1)).abs() <= tolerance).all(-1)
    if recording.problem_type == MULTI_LABEL:
        return answered(logits) & ((logits > 0) == (labels[:, None] > 0.5)).all(-1)
    return answered(logits) & (logits.argmax(-1) == labels[:, None])


def settled_depth(recording: Recording, tolerance: float = 0.5) -> Tensor:
    """(N,) the layer from which on every exit predicts as the last one does. Labels are not needed."""
    agrees = agreement(recording, tolerance)
    unsettled = ~agrees.flip(1).cumprod(1).bool().flip(1)  # (N, E) some exit from here on differs
    return torch.tensor(recording.exit_depths)[unsettled.sum(1)]


# ---- where rows exit ------------------------------------------------------------------------------------------------


def exits_by_class(recording: Recording, policy: ExitPolicy, names: Sequence[str]) -> dict[str, np.ndarray]:
    """Executed layers of the rows of each class, or with each label."""
    _, layers = recording.replay(policy)
    if recording.problem_type == REGRESSION:
        refuse("recording", REGRESSION, "one of classes or labels")
    labels = recording.known_labels
    members = labels > 0.5 if labels.dim() == 2 else labels[:, None] == torch.arange(len(names))
    return {name: layers[members[:, number]].numpy() for number, name in enumerate(names)}


def exits_by_length(recording: Recording, policy: ExitPolicy, groups: int = 4) -> dict[str, np.ndarray]:
    """Executed layers of rows of similar length, in groups of about equal size."""
    _, layers = recording.replay(policy)
    order = recording.lengths.argsort(stable=True)
    parts = [part for part in order.tensor_split(groups) if len(part)]
    spans = [(int(recording.lengths[part[0]]), int(recording.lengths[part[-1]])) for part in parts]
    return {f"{low} to {high} tokens": layers[part].numpy() for (low, high), part in zip(spans, parts)}


# ---- drift ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Drift:
    """The exit histograms of two recordings, as shares by layer, and the p-value of their difference."""

    before: dict[int, float]
    after: dict[int, float]
    p_value: float

    def __bool__(self) -> bool:
        """Whether it is unlikely (p < 0.01) that nothing has changed."""
        return self.p_value < 0.01


def drift(before: Recording, after: Recording, policy: ExitPolicy) -> Drift:
    """Compare the exit histograms of two recordings of one model under one policy, by a chi-squared test.

    Layers at which fewer than five rows would be expected are joined with their neighbours, as the test wants it.
    """
    layers = [recording.replay(policy)[1] for recording in (before, after)]
    counts = np.stack([np.bincount(each, minlength=before.layers + 1)[1:] for each in layers])
    earlier, later = (dict(enumerate((row / row.sum()).tolist(), start=1)) for row in counts)
    joined = join_rare(counts)
    return Drift(earlier, later, float(chi2_contingency(joined).pvalue) if joined.shape[1] > 1 else 1.0)


def join_rare(counts: np.ndarray, least: float = 5.0) -> np.ndarray:
    """Join neighbouring columns until each is expected at least five times in every row: (2, n) -> (2, m)."""
    share, columns, open_column = counts.sum(1, keepdims=True) / counts.sum(), [], np.zeros((2, 1))
    for column in counts.T:
        open_column = open_column + column[:, None]
        if (share * open_column.sum()).min() >= least:
            columns.append(open_column)
            open_column = np.zeros((2, 1))
    if open_column.any():
        columns = [*columns[:-1], columns[-1] + open_column] if columns else [open_column]
    return np.concatenate(columns, axis=1)
