"""Exits: the heads at each chosen depth, and the evidence they emit."""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel

from .adapters import PLACEMENTS, Adapter
from .backbones import pooler_dense
from .evidence import SINGLE_LABEL, Evidence, outcomes
from .strategies import LearnedWeights
from .validation import refuse


def mean_weights(attention_mask: Tensor, dtype: torch.dtype) -> Tensor:
    """What each token weighs in the mean over its sentence: (B, n) of 1 and 0 -> (B, 1, n), each row summing to 1."""
    weights = attention_mask.to(torch.float32)
    return (weights / weights.sum(-1, keepdim=True)).to(dtype)[:, None]


def first_token(hidden_states: Tensor, weights: Tensor | None) -> Tensor:
    """(B, n, d) -> (B, d): the state of the first token."""
    return hidden_states[:, 0]


def mean_token(hidden_states: Tensor, weights: Tensor | None) -> Tensor:
    """(B, n, d) and what each token weighs (B, 1, n), None where all weigh the same -> (B, d)."""
    return hidden_states.mean(1) if weights is None else torch.bmm(weights, hidden_states).squeeze(1)


class Pooling(NamedTuple):
    """How an exit reads a row."""

    pool: Callable[[Tensor, Tensor | None], Tensor]  # states (B, n, d), and weights that are 0 at padding and prompts
    words: str  # "reading the ... of the tokens"
    positions: int | None = None  # how many of them, the first ones, it reads; None: all


POOLINGS = {"cls": Pooling(first_token, "first", 1), "mean": Pooling(mean_token, "mean")}
# How many poolers a model has of its own, of as many as it has heads.
POOLERS: dict[str, Callable[[PreTrainedConfig, int], int]] = {
    "none": lambda config, heads: 0,
    "backbone": lambda config, heads: int(config.train_pooler),
    "own": lambda config, heads: heads,
}


class Prototypes(nn.Module):
    """DE3-BERT: one point for every outcome of a prediction, where rows of that outcome gather."""

    def __init__(self, num_labels: int, problem_type: str, hidden_size: int):
        super().__init__()
        self.points = nn.Parameter(torch.empty(*outcomes(num_labels, problem_type), hidden_size).normal_(std=0.02))

    def forward(self, pooled: Tensor) -> Tensor:
        """(B, d) -> the distances to all of them, (B, L, K)."""
        points = self.points.float().flatten(0, 1)
        # The faster way by matrix products would round differently in batches of another size.
        distances = torch.cdist(pooled.float(), points, compute_mode="donot_use_mm_for_euclid_dist")
        return distances.view(-1, *self.points.shape[:2])


class Exits(nn.Module):
    """All exits of a model: a classifier for each, or one for all (`exit_shared`); poolers and LTE heads likewise."""

    def __init__(self, config: PreTrainedConfig, hidden_size: int, exits: int):
        super().__init__()
        heads = 1 if config.exit_shared else exits
        poolers = POOLERS[config.exit_pooler](config, heads)
        ltes = (1 if config.lte_shared else exits) if config.use_lte else 0
        bypasses = exits if PLACEMENTS[config.adapter_placement].bypass else 0
        prototypes = exits if config.use_prototypes else 0
        problem_type = config.problem_type or SINGLE_LABEL
        self.pooling = POOLINGS[config.exit_pooling]
        self.bypass_adapters = nn.ModuleList(Adapter(config, hidden_size) for _ in range(bypasses))
        self.poolers = nn.ModuleList(nn.Linear(hidden_size, hidden_size) for _ in range(poolers))
        self.classifiers = nn.ModuleList(nn.Linear(hidden_size, config.num_labels) for _ in range(heads))
        self.ltes = nn.ModuleList(nn.Linear(hidden_size, 1) for _ in range(ltes))
        self.prototypes = nn.ModuleList(
            Prototypes(config.num_labels, problem_type, hidden_size) for _ in range(prototypes)
        )
        self.loss_weights = LearnedWeights(exits) if config.exit_weights == "learned" else None
        self.dropout = nn.Dropout(config.exit_dropout)

    def forward(
        self,
        number: int,
        hidden_states: Tensor,
        weights: Tensor | None,
        padding_mask: Tensor | None,
        backbone_pooler: nn.Linear | None = None,
    ) -> Evidence:
        """What exit `number` (0-based) says of the rows.

        Args:
            hidden_states: (B, n, d) the layer's output.
            weights: (B, 1, n) from `mean_weights`, or None where every position counts.
            padding_mask: (B, n) 1 for tokens, 0 for padding; None where nothing is padding.
            backbone_pooler: the encoder's own, where exits use it untrained.
        """
        if len(self.bypass_adapters):
            hidden_states = hidden_states + self.bypass_adapters[number](hidden_states, padding_mask)
        pooled = self.pooling.pool(hidden_states, weights)  # (B, d)
        pooler = _head(self.poolers, number) or backbone_pooler
        pooled = pooled if pooler is None else torch.tanh(pooler(pooled))
        lte, prototypes = _head(self.ltes, number), _head(self.prototypes, number)
        # The LTE head watches the exits learn; it must not steer them.
        score = None if lte is None else torch.sigmoid(lte(pooled.detach()).float()).squeeze(-1)
        distances = None if prototypes is None else prototypes(pooled)
        return Evidence(_head(self.classifiers, number)(self.dropout(pooled)), score, distances)

    @property
    def positions(self) -> int | None:
        """How many of a layer's positions, the first ones, the exits read; None: all."""
        first = self.pooling.positions
        reach = self.bypass_adapters[0].reach if len(self.bypass_adapters) else 0
        return None if first is None or reach is None else first + reach

    def check_prototypes(self, num_labels: int, problem_type: str) -> None:
        """Refuse to judge a problem by prototypes that were made for another."""
        if len(self.prototypes) and self.prototypes[0].points.shape[:2] != outcomes(num_labels, problem_type):
            refuse("problem_type", problem_type, "set before the model is made: its prototypes are for another problem")

    def keep(self, numbers: list[int]) -> None:
        """Leave only the exits with these numbers (0-based, the last one among them)."""
        for name in ("bypass_adapters", "poolers", "classifiers", "ltes", "prototypes"):
            if len(parts := getattr(self, name)) > 1:  # one is shared by all exits
                setattr(self, name, nn.ModuleList(parts[number] for number in numbers))
        if self.loss_weights is not None:
            self.loss_weights.theta = nn.Parameter(self.loss_weights.theta.detach()[numbers[:-1]])

    @torch.no_grad()
    def init_poolers(self, backbone: PreTrainedModel) -> None:
        """Start the exits' own poolers from the encoder's pretrained one, where its checkpoint has one."""
        if getattr(backbone, "pooler", None) is not None:
            for pooler in self.poolers:
                pooler.load_state_dict(pooler_dense(backbone).state_dict())


def _head(heads: nn.ModuleList, number: int) -> nn.Module | None:
    """The exit's own head, the one shared by all, or none."""
    return heads[number if len(heads) > 1 else 0] if len(heads) else None


@torch.no_grad()
def init_exit_weights(module: nn.Module, init) -> None:
    """Parameters of the exits that are no linear layers."""
    if isinstance(module, Prototypes):
        init.normal_(module.points, std=0.02)
    elif isinstance(module, LearnedWeights):
        init.constant_(module.theta, 4.0)
