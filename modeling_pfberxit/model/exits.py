"""Exits: how far two predictions are apart, the evidence exits emit, a rule's memory of it, and the heads themselves.

Shapes: B rows, C classes or labels, m exits looked back on. A prediction is a table of log-probabilities (B, L, K):
single-label L = 1, K = C; multi-label L = C, K = 2 (every label its own two outcomes); regression keeps its values as
(B, 1, C). What follows from evidence is in `scores` and `criteria`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor, logaddexp, nn
from torch.nn.functional import dropout, logsigmoid
from transformers import PreTrainedConfig, PreTrainedModel
from transformers import initialization as init

from .adapters import PLACEMENTS, Adapter
from .backbones import pooler_dense
from .families import exit_heads
from .heads import POOLINGS, null_share, only_real
from .strategies import LearnedWeights, learns_weights
from .validation import refuse

REGRESSION, SINGLE_LABEL, MULTI_LABEL = "regression", "single_label_classification", "multi_label_classification"
ROW_WISE = ("past", "seen", "count")  # what an `ExitState` holds of every row
# The config's field -> what exits emit beside logits.
EMITTED_BY = {"use_lte": "lte", "use_prototypes": "distances", "use_nsp": "nsp"}
NEVER = -1e4  # in place of the log-probability of an outcome that is ruled out: e^NEVER is 0, and 0 * NEVER is no NaN


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


# ---- heads -----------------------------------------------------------------------------------------------------------


class Prototypes(nn.Module):
    """DE3-BERT: one point for every outcome of a prediction, where rows of that outcome gather."""

    def __init__(self, num_labels: int, problem_type: str, hidden_size: int) -> None:
        super().__init__()
        self.points = nn.Parameter(torch.empty(*outcomes(num_labels, problem_type), hidden_size).normal_(std=0.02))

    def forward(self, pooled: Tensor) -> Tensor:
        """(B, d) -> the distances to all of them, (B, L, K)."""
        points = self.points.float().flatten(0, 1)
        # The faster way by matrix products would round differently in batches of another size.
        distances = torch.linalg.vector_norm(pooled.float()[:, None] - points, dim=-1)
        return distances.view(-1, *self.points.shape[:2])


class Exits(nn.Module):
    """All exits of a model: a classifier for each, or one for all (`exit_shared`); poolers and LTE heads likewise."""

    def __init__(self, config: PreTrainedConfig, hidden_size: int, exits: int) -> None:
        super().__init__()
        self.heads = exit_heads(config, config.encoder_config(), exits)
        widths = [head.width(hidden_size) for head in self.heads]
        own_widths = widths if len(widths) == exits else widths * exits
        poolers = self.heads[: int(config.train_pooler)] if config.exit_pooler == "backbone" else self.heads
        problem = (config.num_labels, config.problem_type or SINGLE_LABEL)
        bypassed = [head for head in self.heads if not head.names] if len(self.heads) == exits else own_widths
        self.bypass_adapters = nn.ModuleList(
            Adapter(config, hidden_size) for _ in bypassed if PLACEMENTS[config.adapter_placement].bypass
        )
        self.poolers = only_real(head.new_dense(hidden_size) for head in poolers)
        self.pooler_norms = only_real(head.new_norm(hidden_size) for head in self.heads)
        self.classifiers = nn.ModuleList(nn.Linear(width, config.num_labels) for width in widths)
        ltes = own_widths[: 1 if config.lte_shared else None] if config.use_lte else []
        self.ltes = nn.ModuleList(nn.Linear(width, 1) for width in ltes)
        self.prototypes = nn.ModuleList(Prototypes(*problem, width) for width in own_widths if config.use_prototypes)
        self.emits_nsp = config.use_nsp
        self.loss_weights = LearnedWeights(exits) if learns_weights(config) else None
        self.identity: Any = None  # of a classifier's own head, what it was when it was loaded

    def forward(
        self, number: int, hidden_states: Tensor, weights: Tensor | None, padding_mask: Tensor | None,
        backbone_pooler: nn.Linear | None = None,
    ) -> Evidence:  # fmt: skip
        """The evidence of exit `number` (0-based).

        Args:
            hidden_states: (B, n, d) the layer's output.
            weights: (B, 1, n) from `mean_weights`, or None where every position counts.
            padding_mask: (B, n) 1 for tokens, 0 for padding; None where nothing is padding.
            backbone_pooler: the encoder's own, where exits use it untrained.
        """
        if number < len(self.bypass_adapters):  # a classifier's own head has none
            hidden_states = hidden_states + self.bypass_adapters[number](hidden_states, padding_mask)
        pooled = POOLINGS[_head(self.heads, number).pooling].pool(hidden_states, weights)
        return self.judge(number, pooled, backbone_pooler)

    def judge(self, number: int, pooled: Tensor, backbone_pooler: nn.Linear | None = None) -> Evidence:
        """The evidence of exit `number` (0-based) from what it pools of its rows, (B, read)."""
        head, classifier = _head(self.heads, number), _head(self.classifiers, number)
        # A head that is kept as it was is a teacher: no noise on what it says.
        learning = self.training and (not head.names or classifier.weight.requires_grad)
        dense = _head(self.poolers, number) if len(self.poolers) else backbone_pooler
        norm = _head(self.pooler_norms, number) if len(self.pooler_norms) else None
        pooled = head.project(pooled, dense, norm, learning)  # (B, width)
        evidence = Evidence(classifier(dropout(pooled, head.dropout, learning)))
        if len(self.ltes):  # detached: the LTE head's loss must not move the exit
            score = torch.sigmoid(_head(self.ltes, number)(pooled.detach()).float())
            evidence = evidence._replace(lte=score.squeeze(-1))
        if len(self.prototypes):
            evidence = evidence._replace(distances=_head(self.prototypes, number)(pooled))
        if self.emits_nsp:
            evidence = evidence._replace(nsp=null_share(pooled, classifier))
        return evidence

    def positions(self, number: int) -> int | None:
        """How many of a layer's positions, the first ones, exit `number` reads; None: all."""
        first = POOLINGS[_head(self.heads, number).pooling].positions
        reach = self.bypass_adapters[0].reach if len(self.bypass_adapters) else 0
        return None if first is None or reach is None else first + reach

    def kept_weights(self) -> dict[str, str]:
        """Of a classifier's own head as the last exit: every weight's name here, by its name in that classifier."""
        last = len(self.classifiers) - 1
        return {
            f"{stock}.{leaf}": f"{part}.{last}.{leaf}"
            for part, stock in self.heads[-1].names.items()
            for leaf in getattr(self, part)[last].state_dict()
        }

    def check_prototypes(self, num_labels: int, problem_type: str) -> None:
        """Refuse prototypes that were made for another problem."""
        if len(self.prototypes) and self.prototypes[0].points.shape[:2] != outcomes(num_labels, problem_type):
            refuse("problem_type", problem_type, "set before the model is made: its prototypes are for another problem")

    def keep(self, numbers: list[int]) -> None:
        """Leave only the exits with these numbers (0-based, the last one among them)."""
        self.heads = [self.heads[number] for number in numbers] if len(self.heads) > 1 else self.heads
        for name in ("bypass_adapters", "poolers", "pooler_norms", "classifiers", "ltes", "prototypes"):
            # One is shared by all exits, but a bypass never is.
            if len(parts := getattr(self, name)) > 1 or name == "bypass_adapters":
                setattr(self, name, nn.ModuleList(parts[number] for number in numbers if number < len(parts)))
        if self.loss_weights is not None:
            self.loss_weights.theta = nn.Parameter(self.loss_weights.theta.detach()[numbers[:-1]])

    @torch.no_grad()
    def init_poolers(self, backbone: PreTrainedModel) -> None:
        """Start the exits' own poolers from the encoder's pretrained one, where its checkpoint has one."""
        if getattr(backbone, "pooler", None) is not None:
            dense = pooler_dense(backbone)
            for pooler in self.poolers:
                if getattr(pooler, "in_features", None) == dense.in_features:  # not where exits read two states
                    pooler.load_state_dict(dense.state_dict())


def _head(heads: Sequence | nn.ModuleList, number: int) -> Any:
    """The exit's own head, or the one shared by all."""
    return heads[number if len(heads) > 1 else 0]


@torch.no_grad()
def init_exit_weights(module: nn.Module) -> None:
    """Initialise prototypes and learned weights; `transformers` initialises the linear layers."""
    if isinstance(module, Prototypes):
        init.normal_(module.points, std=0.02)
    elif isinstance(module, LearnedWeights):
        init.constant_(module.theta, 4.0)
