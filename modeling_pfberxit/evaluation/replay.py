"""Replay: the answers and executed layers of any policy, from the evidence that one full-depth pass recorded.

The same functions that run online are fed with the recorded logits, so the answers and depths are the same.
"""

import math
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..model.criteria import rule_of
from ..model.evidence import ABSTAIN, MULTI_LABEL, REGRESSION, Evidence, read_by
from ..model.exit_policy import ExitPolicy
from ..model.steps import decide, labels_of, score_of, unsure
from ..model.validation import refuse
from .history import History


def replay(evidence: Evidence, policy: ExitPolicy, exit_depths: list[int], problem_type: str) -> tuple[Tensor, Tensor]:
    """The answers (N, C) and executed layers (N,) that the policy gives on recorded evidence, logits (N, E, C)."""
    return Scores(History(evidence, problem_type), policy).decide(policy, exit_depths)


class ScoreBook:
    """A cache of scores of recorded evidence; policies that differ only in what is decided on them share them.

    Args:
        room: bytes above which the scores not asked for longest are dropped, before new ones are made.
    """

    def __init__(self, evidence: Evidence, problem_type: str, room: int = 2**28) -> None:
        self.history, self.room = History(evidence, problem_type), room
        self.known: dict[tuple[Any, ...], Scores] = {}

    def of(self, policy: ExitPolicy) -> "Scores":
        """The scores by a policy's rule, worked out once."""
        if (key := score_key(policy)) in self.known:
            self.known[key] = self.known.pop(key)  # to the end: the first key is the one not asked for longest
            return self.known[key]
        while self.known and sum(each.bytes for each in self.known.values()) > self.room:
            del self.known[next(iter(self.known))]
        self.known[key] = Scores(self.history, policy)
        return self.known[key]


def score_key(policy: ExitPolicy) -> tuple[Any, ...]:
    """The values of a policy's fields that scores and answers depend on; policies with equal keys share both."""
    return tuple(getattr(policy, name) for name in rule_of(policy).scored_by(policy))


class Scores:
    """Recorded evidence scored by one criterion, to be decided under any threshold, patience and lowest layer."""

    def __init__(self, history: History, policy: ExitPolicy) -> None:
        self.history, self.rule = history, rule_of(policy)
        self._labels: dict[int, Tensor | None] = {}  # by exit, what rows would answer with there
        self._answers: tuple[Tensor, Tensor] | None = None  # (N, E, C) where rows exit, (N, C) where none has
        if (needed := self.rule.needs_evidence) not in (None, *history.evidence.emitted):
            refuse("criterion", policy.criterion, f"a rule whose evidence was recorded: this model had no {needed}")
        self.memory = max(1, self.rule.memory(policy, len(history.exits)))
        self.exits = [  # each exit's scores, (N,) or (N, m), which no threshold has been held against yet
            score_of(history.now[number], part, history.state(number, self.memory), policy)
            for number, part in enumerate(history.exits)
        ]

    @property
    def bytes(self) -> int:
        """Memory that scores and answers take."""
        return sum(each.nbytes for each in (*self.exits, *(self._answers or ())))

    def decide(self, policy: ExitPolicy, exit_depths: list[int]) -> tuple[Tensor, Tensor]:
        """The answers (N, C) and executed layers (N,): `decide` at one exit after the other, as online."""
        logits, counts, quits = self.history.evidence.logits, [], []
        if not policy.is_active(self.history.problem_type):
            return logits[:, -1], torch.full((len(logits),), exit_depths[-1])
        remaining, at = torch.ones(len(logits), dtype=torch.bool), torch.zeros(len(logits), dtype=torch.int16)
        for number, (fire, count) in enumerate(self.fires(policy, exit_depths)):
            if policy.answer == ABSTAIN:
                quits.append(self._unsure_at(number, policy, exit_depths[number]) & ~fire)
                fire = fire | quits[-1]
            counts.append(count)
            remaining = remaining & ~fire
            at += remaining
        at = at.long().clamp(max=len(self.exits) - 1)
        layers, rows = torch.tensor(exit_depths)[at], torch.arange(len(at))
        answers = self._answers_at(policy, at, remaining, counts)
        if quits:
            answers = answers.masked_fill(torch.stack(quits, dim=1)[rows, at, None], math.nan)
        return answers, layers

    def _answers_at(self, policy: ExitPolicy, at: Tensor, remaining: Tensor, counts: list[Tensor]) -> Tensor:
        """The logits (N, C) of rows that exit `at` (N,) or, where they are `remaining`, nowhere."""
        rows = torch.arange(len(at))
        if self.rule.own(policy):
            return self.history.evidence.logits[rows, at]
        if "patience" in read_by(self.rule.answer, policy):
            return self._counted(policy, at, counts)
        if self._answers is None:  # an exit's answer depends on whether it fires, not on the threshold behind that
            each = [self._answer_of(policy, number, fired=True) for number in range(len(self.exits))]
            self._answers = torch.stack(each, dim=1), self._answer_of(policy, len(self.exits) - 1, fired=False)
        exited, at_the_end = self._answers
        return torch.where(remaining[:, None], at_the_end, exited[rows, at])

    def _unsure_at(self, number: int, policy: ExitPolicy, depth: int) -> Tensor:
        """Which rows leave one exit as unsure, if they have come so far and it does not let them answer, (N,)."""
        state = self.history.state(number, policy.window)
        return unsure(self.history.now[number], state, policy, torch.tensor(depth))

    def fires(self, policy: ExitPolicy, exit_depths: list[int]) -> Iterator[tuple[Tensor, Tensor]]:
        """For each exit, whether each row fires there, had none exited before, and its counter, (N,) both."""
        state = self.history.state(0, 0)
        for number, (score, depth) in enumerate(zip(self.exits, exit_depths, strict=True)):
            fire = decide(score, self._labels_at(number, policy), state, policy, torch.tensor(depth))
            yield fire if depth >= policy.min_layer else torch.zeros_like(fire), state.count
            state.seen = state.seen + 1

    def _labels_at(self, number: int, policy: ExitPolicy) -> Tensor | None:
        """What rows would answer with at one exit, where labels have thresholds of their own."""
        if number not in self._labels:
            state = self.history.state(number, self.memory)
            self._labels[number] = labels_of(self.history.now[number], self.history.exits[number], state, policy)
        return self._labels[number]

    def _answer_of(self, policy: ExitPolicy, number: int, fired: bool) -> Tensor:
        """The logits (N, C) that one exit gives when all rows fire there, or none."""
        state, now = self.history.state(number, self.memory), self.history.now[number]
        return self.rule.answer(torch.full((len(now),), fired), now, self.history.exits[number], state, policy)

    def _counted(self, policy: ExitPolicy, at: Tensor, counts: list[Tensor]) -> Tensor:
        """The logits (N, C) of rows that exit `at` (N,), by a rule whose answer depends on the counters there."""
        answers = torch.empty_like(self.history.evidence.logits[:, 0])
        for number, count in enumerate(counts):
            rows = (at == number).nonzero().squeeze(1)
            state = replace(self.history.state(number, self.memory), count=count).select(rows)
            part = Evidence(*(None if kind is None else kind[rows] for kind in self.history.exits[number]))
            now = self.history.now[number][rows]
            answers[rows] = self.rule.answer(torch.ones_like(rows, dtype=torch.bool), now, part, state, policy)
        return answers

    def quantiles(self, steps: int) -> list[float]:
        """Thresholds to try: quantiles of the scores that occur, and one above all of them."""
        seen = torch.cat([score.flatten() for score in self.exits])
        seen = seen[seen.isfinite()].numpy()
        if not seen.size:  # a rule that only agrees or disagrees
            return [0.0]
        return [*np.unique(np.quantile(seen, np.linspace(0, 1, steps))).tolist(), float(seen.max()) * 1.01 + 1e-6]


def same_answers(logits: Tensor, others: Tensor, problem_type: str, tolerance: float) -> Tensor:
    """Whether logits (..., C) give the same prediction, (...): equal labels, or values within the tolerance.

    An answer that was not given is none that was.
    """
    alike = answered(logits) == answered(others)
    if problem_type == REGRESSION:
        return alike & ((logits - others).abs() <= tolerance).all(-1)
    if problem_type == MULTI_LABEL:
        return alike & ((logits > 0) == (others > 0)).all(-1)
    return alike & (logits.argmax(-1) == others.argmax(-1))


def answered(logits: Tensor) -> Tensor:
    """Which rows have an answer, logits (..., C) -> (...); those that left as unsure have not."""
    return ~logits.isnan().any(-1)
