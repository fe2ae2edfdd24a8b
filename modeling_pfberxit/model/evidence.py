"""What a rule is given: an exit's evidence, its memory of earlier exits, and the fields of a policy that it reads.

Shapes: B rows, C classes or labels, m exits looked back on. A prediction is a table of log-probabilities (B, L, K):
single-label L = 1, K = C; multi-label L = C, K = 2 (every label its own two outcomes); regression keeps its values as
(B, 1, C). The modules that emit evidence are in `exits`; what follows from it is in `scores` and `criteria`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field, fields, replace
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor, logaddexp
from torch.nn.functional import logsigmoid

from .validation import refuse

REGRESSION, SINGLE_LABEL, MULTI_LABEL = "regression", "single_label_classification", "multi_label_classification"
ROW_WISE = ("past", "seen", "count")  # what an `ExitState` holds of every row
# The config's field -> what exits emit beside logits.
EMITTED_BY = {"use_lte": "lte", "use_prototypes": "distances", "use_nsp": "nsp"}
NEVER = -1e4  # in place of the log-probability of an outcome that is ruled out: e^NEVER is 0, and 0 * NEVER is no NaN


# ---- predictions -----------------------------------------------------------------------------------------------------


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


# ---- divergences -----------------------------------------------------------------------------------------------------


def kl(i: Tensor, j: Tensor) -> Tensor:
    """Eq. 6, as printed and as run: the cross-entropy CE(p_i, p_j) = -sum p_i ln p_j, i the current exit.

    Two identical coin tosses score ln 2 = 0.693, two identical (0.9, 0.1) score 0.325.
    """
    return -(i.exp() * j.clamp(min=NEVER)).sum(-1)  # an outcome both rule out costs nothing: 0 * -inf would be NaN


def rekl(i: Tensor, j: Tensor) -> Tensor:
    """Eq. 7: the cross-entropy the other way round, CE(p_j, p_i)."""
    return kl(j, i)


def bikl(i: Tensor, j: Tensor) -> Tensor:
    """Eq. 8: CE(p_i, p_j) + CE(p_j, p_i), in [0, inf): two identical coin tosses score 2 ln 2 = 1.386."""
    return kl(i, j) + kl(j, i)


def jskd(i: Tensor, j: Tensor) -> Tensor:
    """F-PABEE's JSKD as released: (CE(p, m) + CE(q, m)) / 2 with m the mean of p and q, which is the entropy of m."""
    mean = logaddexp(i, j) - math.log(2)
    return kl(mean, mean)


def kl_div(i: Tensor, j: Tensor) -> Tensor:
    """The true Kullback-Leibler divergence KL(p_i || p_j): 0 exactly where the predictions are equal."""
    return (kl(i, j) - kl(i, i)).clamp(min=0)  # rounding may leave a hair below


def rekl_div(i: Tensor, j: Tensor) -> Tensor:
    """KL(p_j || p_i)."""
    return kl_div(j, i)


def symkl_div(i: Tensor, j: Tensor) -> Tensor:
    """KL(p_i || p_j) + KL(p_j || p_i)."""
    return kl_div(i, j) + kl_div(j, i)


def js_div(i: Tensor, j: Tensor) -> Tensor:
    """The Jensen-Shannon divergence, in [0, ln 2]."""
    return (jskd(i, j) - (kl(i, i) + kl(j, j)) / 2).clamp(min=0)


class Divergence(NamedTuple):
    """A divergence, and the nats that `normalize` counts as 1 for K outcomes."""

    of: Callable[[Tensor, Tensor], Tensor]
    unit: Callable[[int], float]


# The cross-entropies are measured in what two clueless exits score, so 1 means "agree, but know nothing". The true
# divergences are 0 there; they share the unit of their cross-entropy, and the bounded one is measured in its bound.
DIVERGENCES = {
    "kl": Divergence(kl, math.log),
    "rekl": Divergence(rekl, math.log),
    "bikl": Divergence(bikl, lambda outcomes: 2 * math.log(outcomes)),
    "jskd": Divergence(jskd, math.log),
    "kl_div": Divergence(kl_div, math.log),
    "rekl_div": Divergence(rekl_div, math.log),
    "symkl_div": Divergence(symkl_div, lambda outcomes: 2 * math.log(outcomes)),
    "js_div": Divergence(js_div, lambda outcomes: math.log(2)),
}
DIVERGENCE_ALIASES = {"kd": "kl", "rekd": "rekl", "symkd": "bikl"}  # the names F-PABEE uses for the same formulas


# ---- evidence --------------------------------------------------------------------------------------------------------


class Evidence(NamedTuple):
    """What an exit emits for its rows; of a whole recording, with the exits as a second dimension."""

    logits: Tensor  # (B, C)
    lte: Tensor | None = None  # (B,) learning-to-exit score in [0, 1]: how likely the logits are wrong
    distances: Tensor | None = None  # (B, L, K) to the prototype of every outcome
    nsp: Tensor | None = None  # (B,) in [0, 1]: how much of what the classifier reads no class sees

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

    def required(self, field: str) -> Tensor:
        """What exits emit where the config's `field` is set, for rules that work by it."""
        if (part := getattr(self, EMITTED_BY[field])) is None:
            refuse(field, False, "True: these exits do not emit what the rule reads")
        return part

    @property
    def emitted(self) -> list[str]:
        """What exits were made to emit beside logits, as the config's fields have it."""
        return [field for field, part in EMITTED_BY.items() if getattr(self, part) is not None]


@dataclass
class ExitState:
    """What a criterion remembers of every row from exit to exit."""

    past: Tensor  # (B, m, L, K) the last m predictions, latest first; NaN where there was none
    seen: Tensor  # (B,) exits passed
    count: Tensor  # (B,) exits in a row, up to the latest, whose score was on tau's side
    problem_type: str
    # (B,) the label each row's newest exit would answer with, while a decision asks for it; -1: none
    label: Tensor | None = field(default=None, kw_only=True)

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
        room = self.past.shape[1]
        self.past = now[:, None] if room == 1 else self.with_newest(now)[:, :room]
        self.seen = self.seen + 1

    def with_newest(self, now: Tensor) -> Tensor:
        """The newest prediction before the remembered ones, (B, 1 + m, L, K)."""
        return torch.cat([now[:, None], self.past], dim=1)


# ---- fields of a policy ----------------------------------------------------------------------------------------------

Function = TypeVar("Function", bound=Callable)


@dataclass(frozen=True)
class PolicyFields:
    """How rows leave during one call, unchecked. `exit_policy.ExitPolicy` explains the fields."""

    criterion: str | None = "divergence_v1"
    divergence: str = "kl"
    threshold: float | tuple[float, ...] | None = None
    patience: int = 2
    window: int = 3
    min_layer: int = 1
    appointed_layer: int | None = None
    normalize: bool = False
    window_rule: str = "agree"
    window_range: float = 0.1
    ensemble: str = "none"
    distance_weight: float = 1.0
    nsp_weight: float = 0.1
    label_thresholds: Any = None  # pairs of a label and its threshold, or None
    answer: str = "label"
    unsure_below: float = 0.6


ABSTAIN = "abstain"  # the `answer` under which rows may leave as unsure
ANSWERS = ("label", ABSTAIN)
NAMES = tuple(field.name for field in fields(PolicyFields))


def reads(
    *names: str, also: Callable[[PolicyFields], tuple[str, ...]] = lambda policy: (), above: bool = False
) -> Callable[[Function], Function]:
    """Declare which fields of the policy a function of a rule reads.

    Args:
        names: the fields, of a decision the one that is turned first in front.
        also: fields that are read only under some policies.
        above: of a decision: rows leave at a score of tau or above it, not below.
    """
    if unknown := set(names) - set(NAMES):
        raise ValueError(f"reads={sorted(unknown)}: must be fields of {', '.join(NAMES)}.")

    def declare(function: Function) -> Function:
        vars(function).update(reads=names, also=also, above=above)
        return function

    return declare


def declared(function: Callable) -> tuple[str, ...]:
    """The fields a function reads under every policy, in the order it declares them."""
    return getattr(function, "reads", ())


def read_by(function: Callable, policy: PolicyFields) -> tuple[str, ...]:
    """The fields a function reads under this policy."""
    also = getattr(function, "also", None)
    return declared(function) if also is None else (*declared(function), *also(policy))
