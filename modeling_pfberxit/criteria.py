"""When may a row leave? The exit criteria (eq. 5 and its variants), as arithmetic on what the exits emit.

A criterion works in two steps:

* `score` compares an exit's evidence with the exits before it. It knows neither the threshold tau nor the patience t;
* `decide` holds the score against tau and t, and says which rows stop here and with which answer.

So recorded evidence can be scored once and decided ten thousand times. Rows never see each other: what is remembered
lies in tensors whose first dimension is the row. A new criterion is these two functions and an entry in `CRITERIA`.

Shapes: B rows, C classes or labels, m exits looked back on. A prediction is a table of log-probabilities (B, L, K):
single-label L = 1, K = C; multi-label L = C, K = 2 (every label its own two outcomes); regression keeps its values as
(B, 1, C).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from .divergences import DIVERGENCES

if TYPE_CHECKING:
    from .exit_policy import ExitPolicy

REGRESSION, SINGLE_LABEL, MULTI_LABEL = "regression", "single_label_classification", "multi_label_classification"


class Evidence(NamedTuple):
    """What an exit emits for its rows."""

    logits: Tensor  # (B, C)
    lte: Tensor | None = None  # (B,) learning-to-exit score in [0, 1]: how likely the logits are wrong


def predictions(logits: Tensor, problem_type: str) -> Tensor:
    """Logits (B, C) of any dtype -> fp32 log-probabilities (B, L, K); regression values stay as they are."""
    logits = logits.float()
    if problem_type == REGRESSION:
        return logits[:, None]
    if problem_type == MULTI_LABEL:
        return torch.stack([logsigmoid(logits), logsigmoid(-logits)], dim=-1)
    return logits.log_softmax(-1)[:, None]


# ---- what travels with a row ----------------------------------------------------------------------------------------


@dataclass
class ExitState:
    """What a criterion remembers of every row from exit to exit."""

    past: Tensor  # (B, m, L, K) the last m predictions, latest first; NaN where there was none
    seen: Tensor  # (B,) exits passed
    count: Tensor  # (B,) exits in a row whose score was below tau
    problem_type: str

    @classmethod
    def start(
        cls, rows: int, num_labels: int, policy: ExitPolicy, problem_type: str, device: torch.device
    ) -> ExitState:
        """No exit passed yet."""
        outcomes = (num_labels, 2) if problem_type == MULTI_LABEL else (1, num_labels)
        memory = CRITERIA[policy.criterion].memory(policy)
        past = torch.full((rows, memory, *outcomes), math.nan, device=device)
        zeros = torch.zeros(rows, dtype=torch.long, device=device)
        return cls(past, zeros, zeros, problem_type)

    def select(self, rows: Tensor) -> ExitState:
        """The state of the rows whose numbers are given."""
        return replace(self, **{name: getattr(self, name).index_select(0, rows) for name in ("past", "seen", "count")})

    def remember(self, now: Tensor) -> None:
        """Push the newest prediction (B, L, K), drop the oldest."""
        memory = self.past.shape[1]
        self.past = torch.cat([now[:, None], self.past], dim=1)[:, :memory]
        self.seen = self.seen + 1


def step(evidence: Evidence, state: ExitState, policy: ExitPolicy, depth: Tensor) -> tuple[Tensor, Tensor]:
    """One exit: score, decide, remember.

    Args:
        depth: (B,) the layer each row stands at, 1-based.

    Returns:
        fire (B,) which rows may stop here, and their answers (B, C). A row whose logits are NaN never fires.
    """
    rule = CRITERIA[policy.criterion]
    now = predictions(evidence.logits, state.problem_type)
    score = rule.score(now, evidence, state, policy)
    fire, answer = rule.decide(score, evidence, state, policy, depth)
    state.remember(now)
    return fire & (depth >= policy.min_layer) & ~now.isnan().flatten(1).any(1), answer


# ---- score: free of tau and t ---------------------------------------------------------------------------------------


def divergences_from_past(now: Tensor, state: ExitState, policy: ExitPolicy) -> Tensor:
    """s_{i,i-1} ... s_{i,i-m}, summed over labels: (B, L, K) against (B, m, L, K) -> (B, m); NaN: there was none."""
    divergence = DIVERGENCES[policy.divergence]
    scores = divergence.of(now[:, None].expand_as(state.past), state.past).sum(-1)
    return scores / (now.shape[1] * divergence.unit(now.shape[2])) if policy.normalize else scores


def score_v1(now: Tensor, evidence: Evidence, state: ExitState, policy: ExitPolicy) -> Tensor:
    """The divergence from the exit before, (B,)."""
    return divergences_from_past(now, state, policy)[:, 0]


def score_v2(now: Tensor, evidence: Evidence, state: ExitState, policy: ExitPolicy) -> Tensor:
    """The largest divergence from the last m exits, or as many as there are, (B,)."""
    scores = divergences_from_past(now, state, policy)
    missing = torch.arange(scores.shape[1], device=scores.device) >= state.seen[:, None].clamp(min=1)
    return scores.masked_fill(missing, -math.inf).amax(-1)


def score_v3(now: Tensor, evidence: Evidence, state: ExitState, policy: ExitPolicy) -> Tensor:
    """The divergences from the last m exits, smallest first, (B, m)."""
    return divergences_from_past(now, state, policy).sort(-1).values  # NaN comes last


def score_patience(now: Tensor, evidence: Evidence, state: ExitState, policy: ExitPolicy) -> Tensor:
    """PABEE: the distance from the exit before, (B,). Labels: -inf if all agree, else +inf; regression: |y_i - y_j|."""
    before = state.past[:, 0]
    if state.problem_type == REGRESSION:
        return (now - before).abs().amax((-2, -1))
    agree = (now.argmax(-1) == before.argmax(-1)).all(-1) & ~before.isnan().flatten(1).any(1)
    return torch.where(agree, -math.inf, math.inf)


def score_nothing(now: Tensor, evidence: Evidence, state: ExitState, policy: ExitPolicy) -> Tensor:
    """The rule does not look at predictions, (B,)."""
    return now.new_zeros(now.shape[0])


# ---- decide: which rows stop, with which answer ---------------------------------------------------------------------


def threshold(state: ExitState, policy: ExitPolicy) -> Tensor | float:
    """tau as it applies to each row at the exit it stands at."""
    if isinstance(policy.threshold, tuple):
        return torch.tensor(policy.threshold, device=state.seen.device)[state.seen]
    return 0.0 if policy.threshold is None else policy.threshold


def decide_count(score: Tensor, evidence: Evidence, state: ExitState, policy: ExitPolicy, depth: Tensor):
    """Eq. 5: count the exits in a row whose score is below tau; stop when there are t of them."""
    state.count = torch.where(score < threshold(state, policy), state.count + 1, 0)
    return state.count >= policy.patience, evidence.logits


def decide_number(score: Tensor, evidence: Evidence, state: ExitState, policy: ExitPolicy, depth: Tensor):
    """v3: stop when t of the last m divergences are below tau, in whichever order."""
    return score[:, policy.patience - 1] < threshold(state, policy), evidence.logits


def decide_appointed(score: Tensor, evidence: Evidence, state: ExitState, policy: ExitPolicy, depth: Tensor):
    """Stop at one layer fixed beforehand, whatever is predicted there."""
    return depth >= policy.appointed_layer, evidence.logits


# ---- registry -------------------------------------------------------------------------------------------------------


class Criterion(NamedTuple):
    """A rule, how many earlier exits it looks back on, and what it can judge."""

    score: Callable[[Tensor, Evidence, ExitState, ExitPolicy], Tensor]
    decide: Callable[[Tensor, Evidence, ExitState, ExitPolicy, Tensor], tuple[Tensor, Tensor]]
    memory: Callable[[ExitPolicy], int] = lambda policy: 1
    needs_threshold: Callable[[str], bool] = lambda problem_type: True
    problem_types: tuple[str, ...] = (SINGLE_LABEL, MULTI_LABEL)


def by_window(policy: ExitPolicy) -> int:
    """The rule looks back on m exits."""
    return policy.window


EVERY_PROBLEM = (SINGLE_LABEL, MULTI_LABEL, REGRESSION)
CRITERIA = {
    "divergence_v1": Criterion(score_v1, decide_count),
    "divergence_v2": Criterion(score_v2, decide_count, by_window),
    "divergence_v3": Criterion(score_v3, decide_number, by_window),
    "patience": Criterion(
        score_patience,
        decide_count,
        needs_threshold=lambda problem_type: problem_type == REGRESSION,
        problem_types=EVERY_PROBLEM,
    ),
    "appointed": Criterion(
        score_nothing, decide_appointed, needs_threshold=lambda problem_type: False, problem_types=EVERY_PROBLEM
    ),
}
