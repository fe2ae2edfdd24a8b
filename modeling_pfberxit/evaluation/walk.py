"""One text's walk through the layers: what every exit answers, and where it leaves under any threshold and patience.

A row's decision changes with tau only where tau passes one of its scores. So replays at these few values tell what
every other value would do.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np

from ..model.criteria import fits, rule_of
from ..model.exit_policy import ExitPolicy
from ..model.validation import refuse
from .recording import Recording


class Outcome(NamedTuple):
    """Where a text leaves, and the logits it leaves with; NaN where it leaves as unsure."""

    exit_layer: int
    logits: tuple[float, ...]


@dataclass(frozen=True)
class Walk:
    """All that one text can come to under a rule.

    Args:
        layers: those with an exit.
        logits: of each exit.
        scores: of each exit, those that are held against tau: one, or one for each of the last m exits, smallest first;
            where labels are judged one by one, one for each label. NaN: there is nothing to compare with yet.
        outcomes: distinct ones.
        own: which of them the policy itself leads to.
        thresholds: values of tau from small to large; empty where the rule reads none.
        patiences: the values of t that fit; empty where the rule reads none.
        decisions: outcomes by patience and threshold: `[row of t][column of tau]`. A column holds for the values of tau
            above the threshold before it, up to its own; the last one for all above the last threshold.
    """

    layers: Sequence[int]
    logits: Sequence[Sequence[float]]
    scores: Sequence[Sequence[float]]
    outcomes: Sequence[Outcome]
    own: int
    thresholds: Sequence[float]
    patiences: Sequence[int]
    decisions: Sequence[Sequence[int]]

    def at(self, threshold: float = 0.0, patience: int = 1) -> Outcome:
        """The outcome under a tau and a t; a rule that does not read one gives the same for all its values.

        Raises:
            ValueError: a patience that does not fit.
        """
        if self.patiences and patience not in self.patiences:
            refuse("patience", patience, f"one of {list(self.patiences)}")
        row = self.decisions[self.patiences.index(patience) if self.patiences else 0]
        return self.outcomes[row[bisect_left(self.thresholds, np.float32(threshold))]]


def walk(recording: Recording, policy: ExitPolicy) -> Walk:
    """The walk of a recording's only row by a policy's rule; its threshold and patience decide `own` alone.

    Raises:
        ValueError: several rows, or a rule whose evidence was not recorded.
    """
    if len(recording) != 1:
        refuse("recording", f"{len(recording)} rows", "one row")
    outcomes: list[Outcome] = []
    numbers: dict[str, int] = {}

    def number(asked: ExitPolicy) -> int:
        """The number of a policy's outcome."""
        logits, layer = recording.replay(asked)
        outcome = Outcome(int(layer), tuple(logits[0].tolist()))
        if (words := repr(outcome)) not in numbers:  # in words, since NaN equals nothing
            numbers[words] = len(outcomes)
            outcomes.append(outcome)
        return numbers[words]

    own, scores = number(policy), scores_of(recording, policy)
    knobs = rule_of(policy).knobs(recording.problem_type)
    thresholds = borders(scores) if "threshold" in knobs else []
    patiences = fitting(recording, policy) if "patience" in knobs else []
    taus = [*thresholds, thresholds[-1] * 1.01 + 1e-6] if thresholds else [policy.threshold]
    decisions = [
        [number(replace(policy, threshold=tau, patience=t)) for tau in taus] for t in patiences or [policy.patience]
    ]
    logits = recording.evidence.logits[0].tolist()
    return Walk(recording.exit_depths, logits, scores, outcomes, own, thresholds, patiences, decisions)


def scores_of(recording: Recording, policy: ExitPolicy) -> list[list[float]]:
    """Each exit's scores of the only row."""
    return [score.flatten().tolist() for score in recording.scores.of(policy).exits]


def borders(scores: Sequence[Sequence[float]]) -> list[float]:
    """The thresholds at which something changes: zero, and every score that a threshold can be."""
    flat = np.array([score for exit in scores for score in exit])
    return np.unique([0.0, *flat[np.isfinite(flat) & (flat > 0)]]).tolist()


def fitting(recording: Recording, policy: ExitPolicy) -> list[int]:
    """The values of the patience that fit the rule's other fields and the exits."""
    tried = range(1, len(recording.exit_depths) + 1)
    return [t for t in tried if fits(replace(policy, patience=t), recording.exit_depths, recording.problem_type)]
