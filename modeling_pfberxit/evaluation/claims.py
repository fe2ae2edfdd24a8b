"""What a certificate counts: answers that differ, rows newly wrong, accuracy lost, decisions that flip; by label."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from ..data.metrics import METRICS
from ..model.evidence import MULTI_LABEL, REGRESSION, SINGLE_LABEL
from ..model.validation import refuse
from .bounds import mean_p_value, rate_p_value
from .exit_patterns import correct
from .recording import Recording
from .replay import answered, same_answers


def differs(recording: Recording, answers: Tensor, tolerance: float) -> Tensor:
    """(N, C) -> (N,) 1 where the answer is not full depth's: another label, none, a flipped decision, a far value."""
    full = recording.evidence.logits[:, -1]
    return (~same_answers(answers, full, recording.problem_type, tolerance)).double()


def newly_wrong(recording: Recording, answers: Tensor, tolerance: float) -> Tensor:
    """(N, C) -> (N,) 1 where full depth is right and the answer is not. Their rate bounds the drop of accuracy."""
    return accuracy_lost(recording, answers, tolerance).clamp(min=0)


def accuracy_lost(recording: Recording, answers: Tensor, tolerance: float) -> Tensor:
    """(N, C) -> (N,) 1 where the answer is newly wrong, -1 where it is newly right, else 0."""
    full, now = correct(recording, tolerance, torch.stack([recording.evidence.logits[:, -1], answers], 1)).unbind(1)
    return full.double() - now.double()


def flips(recording: Recording, answers: Tensor, tolerance: float) -> Tensor:
    """(N, C) -> (N,) the share of a row's decisions that are not full depth's; all, where there is no answer."""
    flipped = (answers > 0) != (recording.evidence.logits[:, -1] > 0)
    return (flipped | ~answered(answers)[:, None]).double().mean(1)


class Claim(NamedTuple):
    """What is bounded, in words, and what a row adds to it: 0 or 1 (`counted`), or a number from `low` to 1."""

    words: str
    of: Callable[[Recording, Tensor, float], Tensor]
    counted: bool = True
    low: float = 0.0
    needs_labels: bool = False
    problem_types: tuple[str, ...] = (SINGLE_LABEL, MULTI_LABEL, REGRESSION)

    def p_value(self, values: np.ndarray, epsilon: float, delta: float) -> float:
        """How improbable the rows' values (N,) are where their mean is above epsilon."""
        if self.counted:
            return rate_p_value(int(values.sum()), len(values), epsilon)
        return mean_p_value(values, self.low, 1.0, epsilon, delta)


CLAIMS = {
    "differ": Claim("answers that differ from full depth's", differs),
    "newly_wrong": Claim("rows that full depth has right and the answer wrong", newly_wrong, needs_labels=True),
    "accuracy_drop": Claim("accuracy lost against full depth", accuracy_lost, False, -1.0, needs_labels=True),
    "flips": Claim("decisions about a label that differ from full depth's", flips, False, problem_types=(MULTI_LABEL,)),
}
ONE_LABEL = "differ"  # the claim that can be made of single labels


def needs_labels(name: str) -> bool:
    """Whether a claim reads labels; an unknown one is refused where it is made."""
    return name in CLAIMS and CLAIMS[name].needs_labels


def claim_for(
    name: str, problem_type: str, tolerance: float | None, per_label: bool | Sequence[str], labels: Sequence[str]
) -> Claim:
    """A claim that can be made for a problem, checked before any row is read.

    Args:
        per_label: as `Counter` takes it; `labels`: the names there are.

    Raises:
        ValueError: an unknown claim or label, or a claim that needs a tolerance or is for another problem.
    """
    if name not in CLAIMS:
        why = ": F1, Matthews, correlations are no means over rows and get no bound" if name in METRICS else ""
        refuse("claim", name, f"one of {', '.join(CLAIMS)}{why}")
    claim = CLAIMS[name]
    if problem_type not in claim.problem_types:
        refuse("claim", name, f"another for {problem_type}: it is for {', '.join(claim.problem_types)}")
    if problem_type == REGRESSION and tolerance is None:
        refuse("tolerance", None, "given for regression: how far values may lie apart and still be the same")
    if tolerance is not None and problem_type != REGRESSION:
        refuse("tolerance", tolerance, f"left out for {problem_type}: labels are equal or not")
    if per_label and (name != ONE_LABEL or problem_type == REGRESSION):
        refuse("per_label", per_label, f"left out for {name} and {problem_type}: it is for {ONE_LABEL} and labels")
    if unknown := [label for label in ([] if per_label is True else per_label or []) if label not in labels]:
        refuse("per_label", unknown, f"labels of {', '.join(labels)}")
    return claim


# ---- which rows ------------------------------------------------------------------------------------------------------

EVERY = ""  # the group of all rows
Counts = dict[str, np.ndarray]  # what each row of a group adds


class Counter:
    """What is counted on a recording, for any policy: of all rows, and of each label's own.

    A label's own rows are those that full depth gives it. There another label counts; with several labels, that this
    one is lost, as it is where there is no answer.

    Args:
        per_label: True: all rows and every label's; names: those labels' rows alone.
    """

    def __init__(
        self, recording: Recording, name: str, tolerance: float | None, per_label: bool | Sequence[str]
    ) -> None:
        labels, full = recording.names, recording.evidence.logits[:, -1]
        self.claim = claim_for(name, recording.problem_type, tolerance, per_label, labels)
        if self.claim.needs_labels and recording.labels is None:
            refuse("claim", name, "made on labelled rows")
        self.recording, self.tolerance = recording, tolerance or 0.0
        self.several = recording.problem_type == MULTI_LABEL
        given = full > 0 if self.several else full.argmax(1)[:, None] == torch.arange(full.shape[1])
        wanted = labels if per_label is True else list(per_label or ())
        self.own = {label: given[:, labels.index(label)] for label in wanted}
        self.numbers = {label: labels.index(label) for label in wanted}
        self.whole = per_label in (True, False) or not wanted

    def __call__(self, answers: Tensor) -> Counts:
        """What each row adds under answers (N, C), by group."""
        values = self.claim.of(self.recording, answers, self.tolerance)
        found = {EVERY: values.numpy()} if self.whole else {}
        for label, rows in self.own.items():
            lost = (~(answers[:, self.numbers[label]] > 0)).double() if self.several else values
            found[label] = lost[rows].numpy()
        return found

    def worst(self, answers: Tensor) -> Counts:
        """What each row would add were every answer (N, C) that differs from full depth's a miss, by group."""
        if self.claim is CLAIMS[ONE_LABEL]:
            return self(answers)
        return {EVERY: differs(self.recording, answers, self.tolerance).numpy()}
