"""What exits emit, how it reads as predictions, and what is remembered of it from exit to exit.

Shapes: B rows, C classes or labels, m exits looked back on. A prediction is a table of log-probabilities (B, L, K):
single-label L = 1, K = C; multi-label L = C, K = 2 (every label its own two outcomes); regression keeps its values as
(B, 1, C).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

REGRESSION, SINGLE_LABEL, MULTI_LABEL = "regression", "single_label_classification", "multi_label_classification"
ROW_WISE = ("past", "seen", "count")  # what an `ExitState` holds of every row
EMITTED_BY = {"use_lte": "lte", "use_prototypes": "distances"}  # the config's field -> what exits emit beside logits
NEVER = -1e4  # stands for the log-probability of an outcome that is ruled out: e^NEVER is 0, and 0 * NEVER is no NaN


class Evidence(NamedTuple):
    """What an exit emits for its rows; of a whole recording, with the exits as a second dimension."""

    logits: Tensor  # (B, C)
    lte: Tensor | None = None  # (B,) learning-to-exit score in [0, 1]: how likely the logits are wrong
    distances: Tensor | None = None  # (B, L, K) to the prototype of every outcome

    def at(self, number: int) -> Evidence:
        """One exit's part (0-based) of evidence whose second dimension is the exit."""
        return Evidence(*(None if part is None else part[:, number] for part in self))

    @classmethod
    def stack(cls, exits: list[Evidence]) -> Evidence:
        """The evidence of several exits, with the exit as the second dimension."""
        return cls(*(None if parts[0] is None else torch.stack(parts, dim=1) for parts in zip(*exits)))

    @classmethod
    def cat(cls, rows: list[Evidence]) -> Evidence:
        """The evidence of several groups of rows, one after the other."""
        return cls(*(None if parts[0] is None else torch.cat(parts) for parts in zip(*rows)))

    @property
    def emitted(self) -> list[str]:
        """What exits were made to emit beside logits, as the config's fields have it."""
        return [field for field, part in EMITTED_BY.items() if getattr(self, part) is not None]


def predictions(logits: Tensor, problem_type: str) -> Tensor:
    """Logits (B, C) of any dtype -> fp32 log-probabilities (B, L, K); regression values stay as they are."""
    logits = logits.float()
    if problem_type == REGRESSION:
        return logits[:, None]
    if problem_type == MULTI_LABEL:
        return torch.stack([logsigmoid(logits), logsigmoid(-logits)], dim=-1)
    return logits.log_softmax(-1)[:, None]


def as_logits(tables: Tensor, problem_type: str) -> Tensor:
    """The way back: log-probabilities (B, L, K) -> logits (B, C) that `predictions` reads as the same tables."""
    return tables[..., 0] - tables[..., 1] if problem_type == MULTI_LABEL else tables[:, 0]


def outcomes(num_labels: int, problem_type: str) -> tuple[int, int]:
    """(L, K) of a prediction."""
    return (num_labels, 2) if problem_type == MULTI_LABEL else (1, num_labels)


def entropy(tables: Tensor, normalize: bool = False) -> Tensor:
    """H(p) in nats, summed over the labels: (B, L, K) -> (B,). Normalised: in [0, 1], the mean of H(p) / ln K.

    Example: (0.9, 0.1) has 0.325 nats, normalised 0.469; a coin toss ln 2 = 0.693, normalised 1.
    """
    nats = -(tables.exp() * tables.clamp(min=NEVER)).sum((-2, -1))
    return nats / (tables.shape[-2] * math.log(tables.shape[-1])) if normalize else nats


def confidence(tables: Tensor, normalize: bool = False) -> Tensor:
    """The largest probability, of the least sure label: (..., L, K) -> (...). Normalised: 0 for a guess, 1 for sure."""
    largest = tables.amax(-1).exp().amin(-1)
    guess = 1 / tables.shape[-1]
    return ((largest - guess) / (1 - guess)).clamp(min=0) if normalize else largest


@dataclass
class ExitState:
    """What a criterion remembers of every row from exit to exit."""

    past: Tensor  # (B, m, L, K) the last m predictions, latest first; NaN where there was none
    seen: Tensor  # (B,) exits passed
    count: Tensor  # (B,) exits in a row that spoke for leaving
    problem_type: str

    @classmethod
    def start(cls, rows: int, num_labels: int, memory: int, problem_type: str, device: torch.device) -> ExitState:
        """No exit passed yet."""
        past = torch.full((rows, memory, *outcomes(num_labels, problem_type)), math.nan, device=device)
        zeros = torch.zeros(rows, dtype=torch.long, device=device)
        return cls(past, zeros, zeros, problem_type)

    def select(self, rows: Tensor) -> ExitState:
        """The state of the rows whose numbers are given."""
        return replace(self, **{name: getattr(self, name).index_select(0, rows) for name in ROW_WISE})

    def put(self, rows: Tensor, state: ExitState) -> None:
        """Take over the state of the rows whose numbers are given."""
        for name in ROW_WISE:
            setattr(self, name, getattr(self, name).index_copy(0, rows, getattr(state, name)))

    @classmethod
    def cat(cls, parts: list[ExitState]) -> ExitState:
        """The states of several groups of rows, one after the other."""
        return replace(parts[0], **{name: torch.cat([getattr(part, name) for part in parts]) for name in ROW_WISE})

    def divergences(self, now: Tensor, divergence: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
        """The newest prediction (B, L, K) from each that is remembered, summed over the labels, (B, m)."""
        return divergence(now[:, None].expand_as(self.past), self.past).sum(-1)

    def remember(self, now: Tensor) -> None:
        """Push the newest prediction (B, L, K), drop the oldest."""
        self.past = self.with_newest(now)[:, : self.past.shape[1]]
        self.seen = self.seen + 1

    def with_newest(self, now: Tensor) -> Tensor:
        """The newest prediction before the remembered ones, (B, 1 + m, L, K)."""
        return torch.cat([now[:, None], self.past], dim=1)
