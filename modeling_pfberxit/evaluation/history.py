"""Predictions and divergences of earlier exits in a recording, worked out once for all rules and settings."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import pad

from ..model.evidence import Evidence, ExitState, predictions


class History:
    """Every exit's predictions on the recorded rows, and their divergences from those of earlier exits."""

    def __init__(self, evidence: Evidence, problem_type: str) -> None:
        self.evidence, self.problem_type = evidence, problem_type
        self.exits = [evidence.at(number) for number in range(evidence.logits.shape[1])]
        self.now = [predictions(part.logits, problem_type) for part in self.exits]  # (N, L, K) of each
        self._nothing = torch.full_like(self.now[0], math.nan)
        self._apart: dict[tuple[Callable, int], Tensor] = {}

    def state(self, number: int, memory: int) -> "RecordedState":
        """The state of a rule at exit `number` (0-based) that keeps the predictions of `memory` exits before it."""
        before = self.now[max(0, number - memory) : number][::-1]
        nothing = self._nothing[:, None].expand(-1, memory - len(before), -1, -1)
        past = torch.cat([*(each[:, None] for each in before), nothing], dim=1)
        zeros = torch.zeros(len(past), dtype=torch.long, device=past.device)
        return RecordedState(past, zeros + number, zeros, self.problem_type, self, number)

    def apart(self, divergence: Callable[[Tensor, Tensor], Tensor], number: int) -> Tensor:
        """The divergences of an exit from those before it, the nearest first, summed over labels, (N, number)."""
        if (key := (divergence, number)) not in self._apart:
            self._apart[key] = ExitState.divergences(self.state(number, number), self.now[number], divergence)
        return self._apart[key]


@dataclass
class RecordedState(ExitState):
    """The state of recorded rows at one exit, whose divergences are looked up instead of computed."""

    history: History
    number: int

    def divergences(self, now: Tensor, divergence: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
        """As online, (N, m)."""
        memory = self.past.shape[1]
        found = self.history.apart(divergence, self.number)[:, :memory]
        return pad(found, (0, memory - found.shape[1]), value=math.nan)
