"""Exits: the heads at each chosen depth, and the evidence they emit."""

import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel

from .backbones import pooler_dense
from .criteria import Evidence


def mean_weights(attention_mask: Tensor, dtype: torch.dtype) -> Tensor:
    """What each token weighs in the mean over its sentence: (B, n) of 1 and 0 -> (B, 1, n), each row summing to 1."""
    weights = attention_mask.to(torch.float32)
    return (weights / weights.sum(-1, keepdim=True)).to(dtype)[:, None]


def pool(hidden_states: Tensor, weights: Tensor | None, pooling: str) -> Tensor:
    """(B, n, d) -> (B, d): the first token (`cls`), or the mean over the tokens."""
    if pooling == "cls":
        return hidden_states[:, 0]
    return hidden_states.mean(1) if weights is None else torch.bmm(weights, hidden_states).squeeze(1)


class Exits(nn.Module):
    """All exits of a model: a classifier for each, or one for all (`exit_shared`); poolers and LTE heads likewise."""

    def __init__(self, config: PreTrainedConfig, hidden_size: int, exits: int):
        super().__init__()
        heads = 1 if config.exit_shared else exits
        poolers = {"none": 0, "backbone": int(config.train_pooler), "own": heads}[config.exit_pooler]
        ltes = (1 if config.lte_shared else exits) if config.use_lte else 0
        self.pooling = config.exit_pooling
        self.poolers = nn.ModuleList(nn.Linear(hidden_size, hidden_size) for _ in range(poolers))
        self.classifiers = nn.ModuleList(nn.Linear(hidden_size, config.num_labels) for _ in range(heads))
        self.ltes = nn.ModuleList(nn.Linear(hidden_size, 1) for _ in range(ltes))
        self.dropout = nn.Dropout(config.exit_dropout)

    def forward(
        self, number: int, hidden_states: Tensor, weights: Tensor | None, backbone_pooler: nn.Linear | None = None
    ) -> Evidence:
        """What exit `number` (0-based) says of the rows.

        Args:
            hidden_states: (B, n, d) the layer's output.
            weights: (B, 1, n) from `mean_weights`, or None where no token is padding.
            backbone_pooler: the encoder's own, where exits use it untrained.
        """
        pooled = pool(hidden_states, weights, self.pooling)  # (B, d)
        pooler = _head(self.poolers, number) or backbone_pooler
        if pooler is not None:
            pooled = torch.tanh(pooler(pooled))
        lte = _head(self.ltes, number)
        # The LTE head watches the exits learn; it must not steer them.
        score = None if lte is None else torch.sigmoid(lte(pooled.detach()).float()).squeeze(-1)
        return Evidence(_head(self.classifiers, number)(self.dropout(pooled)), score)

    @torch.no_grad()
    def init_poolers(self, backbone: PreTrainedModel) -> None:
        """Start the exits' own poolers from the encoder's pretrained one, where its checkpoint has one."""
        if getattr(backbone, "pooler", None) is not None:
            for pooler in self.poolers:
                pooler.load_state_dict(pooler_dense(backbone).state_dict())


def _head(heads: nn.ModuleList, number: int) -> nn.Module | None:
    """The exit's own head, the one shared by all, or none."""
    return heads[number if len(heads) > 1 else 0] if len(heads) else None
