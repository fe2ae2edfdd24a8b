"""Replay: what any policy would have done, from the evidence that one full-depth pass recorded.

The same `step` that runs online is fed with the recorded logits, so the answers and depths are the same.
"""

from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from ..model.criteria import rule_of, score_of, start
from ..model.evidence import MULTI_LABEL, REGRESSION, Evidence, ExitState, predictions
from ..model.exit_policy import ExitPolicy
from ..model.policy_fields import read_by
from ..model.validation import refuse


def replay(evidence: Evidence, policy: ExitPolicy, exit_depths: list[int], problem_type: str) -> tuple[Tensor, Tensor]:
    """The answers (N, C) and executed layers (N,) that the policy gives on recorded evidence, logits (N, E, C)."""
    return Scores(evidence, policy, problem_type).decide(policy, exit_depths)


def replay_many(
    evidence: Evidence, policies: Iterable[ExitPolicy], exit_depths: list[int], problem_type: str
) -> Iterator[tuple[ExitPolicy, Tensor, Tensor]]:
    """`replay` for many policies, the same scores worked out once. Yields policy, answers and layers."""
    for policy, scores in scored(evidence, policies, problem_type):
        yield (policy, *scores.decide(policy, exit_depths))


def scored(
    evidence: Evidence, policies: Iterable[ExitPolicy], problem_type: str
) -> Iterator[tuple[ExitPolicy, "Scores"]]:
    """Every policy with the evidence scored for it; policies that differ only in what is decided share the scores."""
    known: dict[tuple[Any, ...], Scores] = {}
    for policy in policies:
        if (key := score_key(policy)) not in known:
            known[key] = Scores(evidence, policy, problem_type)
        yield policy, known[key]


def score_key(policy: ExitPolicy) -> tuple[Any, ...]:
    """All that scores and answers may depend on; policies that differ beside it share them."""
    return tuple(getattr(policy, name) for name in rule_of(policy).scored_by(policy))


class Scored(NamedTuple):
    """One exit's evidence with its score, which no threshold has been held against yet."""

    score: Tensor
    now: Tensor
    evidence: Evidence
    state: ExitState


class Scores:
    """Recorded evidence scored by one criterion, to be decided under any threshold, patience and lowest layer."""

    def __init__(self, evidence: Evidence, policy: ExitPolicy, problem_type: str):
        rows, exits, labels = evidence.logits.shape
        self.rule, self.problem_type = rule_of(policy), problem_type
        if (needed := self.rule.needs_evidence) not in (None, *evidence.emitted):
            refuse("criterion", policy.criterion, f"a rule whose evidence was recorded: this model had no {needed}")
        state = start(rows, labels, policy, exits, problem_type, evidence.logits.device)
        self.logits, self.exits, self._told = evidence.logits, [], None
        for number in range(exits):
            part = evidence.at(number)
            now = predictions(part.logits, problem_type)
            self.exits.append(Scored(score_of(now, part, state, policy), now, part, replace(state)))
            state.remember(now)

    def decide(self, policy: ExitPolicy, exit_depths: list[int]) -> tuple[Tensor, Tensor]:
        """The answers (N, C) and executed layers (N,): `decide` at one exit after the other, as online."""
        if not policy.is_active(self.problem_type):
            return self.logits[:, -1], torch.full((len(self.logits),), exit_depths[-1])
        start, counts = self.exits[0].state.count, []
        running, at = torch.ones_like(start, dtype=torch.bool), torch.zeros_like(start, dtype=torch.int16)
        for fire, count in self.fires(policy, exit_depths):
            counts.append(count)
            running = running & ~fire
            at += running
        fired, at = ~running, at.long().clamp(max=len(self.exits) - 1)
        layers, everyone = torch.tensor(exit_depths)[at], torch.arange(len(at))
        if self.rule.own(policy):
            return self.logits[everyone, at], layers
        if "patience" in read_by(self.rule.answer, policy):
            count = torch.stack(counts, dim=1)
            return self._tell(policy, torch.ones_like(fired), count)[everyone, at], layers
        if self._told is None:  # what exits answer depends on whether they fire, not on how the threshold made them
            self._told = torch.stack([self._tell(policy, torch.full_like(fired, value)) for value in (False, True)])
        return self._told[fired.long(), everyone, at], layers

    def fires(self, policy: ExitPolicy, exit_depths: list[int]) -> Iterator[tuple[Tensor, Tensor]]:
        """Exit after exit: which rows it lets go, had none left before, and their counters, (N,) both."""
        count = self.exits[0].state.count
        for each, depth in zip(self.exits, exit_depths, strict=True):
            state = replace(each.state, count=count)
            fire = self.rule.decide(each.score, state, policy, torch.tensor(depth))
            count = state.count
            yield fire if depth >= policy.min_layer else torch.zeros_like(fire), count

    def _tell(self, policy: ExitPolicy, fire: Tensor, counts: Tensor | None = None) -> Tensor:
        """What every exit would answer every row, (N, E, C)."""
        answers = []
        for number, each in enumerate(self.exits):
            state = each.state if counts is None else replace(each.state, count=counts[:, number])
            answers.append(self.rule.answer(fire, each.now, each.evidence, state, policy))
        return torch.stack(answers, dim=1)


def candidate_thresholds(evidence: Evidence, policy: ExitPolicy, problem_type: str, steps: int) -> list[float]:
    """Quantiles of the scores that occur, and one above all of them."""
    seen = torch.cat([each.score.flatten() for each in Scores(evidence, policy, problem_type).exits])
    seen = seen[seen.isfinite()].numpy()
    if not seen.size:  # a rule that only agrees or disagrees
        return [0.0]
    return [*np.unique(np.quantile(seen, np.linspace(0, 1, steps))).tolist(), float(seen.max()) * 1.01 + 1e-6]


def same_answers(logits: Tensor, others: Tensor, problem_type: str, tolerance: float) -> Tensor:
    """Whether answers (..., C) say the same, (...): the same labels, or values within the tolerance."""
    if problem_type == REGRESSION:
        return ((logits - others).abs() <= tolerance).all(-1)
    if problem_type == MULTI_LABEL:
        return ((logits > 0) == (others > 0)).all(-1)
    return logits.argmax(-1) == others.argmax(-1)
