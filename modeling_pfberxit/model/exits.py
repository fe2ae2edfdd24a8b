"""Exits: the heads at every depth, and the evidence they emit for the rows they read.

What a head is made of is in `heads`, what evidence is in `evidence`.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import dropout
from transformers import PreTrainedConfig, PreTrainedModel
from transformers import initialization as init

from .adapters import PLACEMENTS, Adapter
from .backbones import pooler_dense
from .evidence import SINGLE_LABEL, Evidence, outcomes
from .families import exit_heads
from .heads import POOLINGS
from .strategies import LearnedWeights, learns_weights
from .validation import refuse


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
        every_width = widths if len(widths) == exits else widths * exits
        bypassed = exits - 1 if self.heads[-1].names else exits  # a classifier's own head reads its encoder alone
        self.bypass_adapters = nn.ModuleList(
            Adapter(config, hidden_size) for _ in range(bypassed) if PLACEMENTS[config.adapter_placement].bypass
        )
        poolers = self.heads
        if config.exit_pooler == "backbone":  # the encoder's own, or one copy of it that is trained
            poolers = self.heads[:1] if config.train_pooler else []
        self.poolers = only_real(head.new_dense(hidden_size) for head in poolers)
        self.pooler_norms = only_real(head.new_norm(hidden_size) for head in self.heads)
        self.classifiers = nn.ModuleList(nn.Linear(width, config.num_labels) for width in widths)
        lte_widths = every_width[:1] if config.lte_shared else every_width
        self.ltes = nn.ModuleList(nn.Linear(width, 1) for width in lte_widths if config.use_lte)
        problem = (config.num_labels, config.problem_type or SINGLE_LABEL)
        self.prototypes = nn.ModuleList(Prototypes(*problem, width) for width in every_width if config.use_prototypes)
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
        pooled = POOLINGS[of_exit(self.heads, number).pooling].pool(hidden_states, weights)
        return self.judge(number, pooled, backbone_pooler)

    def judge(self, number: int, pooled: Tensor, backbone_pooler: nn.Linear | None = None) -> Evidence:
        """The evidence of exit `number` (0-based) from what it pools of its rows, (B, read)."""
        head, classifier = of_exit(self.heads, number), of_exit(self.classifiers, number)
        # A head that is kept as it was is a teacher: no noise on what it says.
        learning = self.training and (not head.names or classifier.weight.requires_grad)
        dense = of_exit(self.poolers, number) if len(self.poolers) else backbone_pooler
        norm = of_exit(self.pooler_norms, number) if len(self.pooler_norms) else None
        pooled = head.project(pooled, dense, norm, learning)  # (B, width)
        evidence = Evidence(classifier(dropout(pooled, head.dropout, learning)))
        if len(self.ltes):  # detached: the LTE head's loss must not move the exit
            score = torch.sigmoid(of_exit(self.ltes, number)(pooled.detach()).float())
            evidence = evidence._replace(lte=score.squeeze(-1))
        if len(self.prototypes):
            evidence = evidence._replace(distances=of_exit(self.prototypes, number)(pooled))
        if self.emits_nsp:
            evidence = evidence._replace(nsp=null_share(pooled, classifier))
        return evidence

    def positions(self, number: int) -> int | None:
        """How many of a layer's positions, the first ones, exit `number` reads; None: all."""
        first = POOLINGS[of_exit(self.heads, number).pooling].positions
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


def of_exit(parts: Sequence | nn.ModuleList, number: int) -> Any:
    """Exit `number`'s own part (0-based), or the one that all exits share."""
    return parts[number] if len(parts) > 1 else parts[0]


def only_real(parts: Iterable[nn.Module]) -> nn.ModuleList:
    """The modules as a list; an empty one where none of them does anything."""
    modules = list(parts)
    return nn.ModuleList([] if all(isinstance(each, nn.Identity) for each in modules) else modules)


@torch.no_grad()
def null_share(read: Tensor, classifier: nn.Module) -> Tensor:
    """NSP: how much of what a classifier reads no class of it sees, (B, width) -> (B,) in [0, 1].

    The length of the part in the null space of the weights over the whole length, where the zero point is moved to
    that of the logits. (He et al., IJCAI 2025; the pseudo-inverse also where classes have equal weights.)
    """
    weight, bias = products_of(classifier, read)  # (C, width), (C,)
    inverse = torch.linalg.pinv(weight)  # (width, C)
    moved = read.float() + inverse @ bias
    unseen = moved - moved @ weight.T @ inverse.T
    length = torch.linalg.vector_norm
    total = length(moved, dim=-1)
    return (length(unseen, dim=-1) / total.masked_fill(total == 0, 1)).clamp(max=1)  # of nothing, nothing is unseen


def products_of(linear: nn.Module, read: Tensor) -> tuple[Tensor, Tensor]:
    """What a linear layer multiplies by (C, width) and adds (C,), in fp32; `read` (B, width) has its inputs' dtype."""
    if type(linear) is nn.Linear:
        return linear.weight.float(), linear.bias.float()
    # PEFT and quantisation put layers in its place whose `weight` is not, or not all, that they multiply by.
    bias = linear(read.new_zeros(1, read.shape[-1])).float()
    one_each = torch.eye(read.shape[-1], dtype=read.dtype, device=read.device)
    return (linear(one_each).float() - bias).T, bias[0]


@torch.no_grad()
def init_exit_weights(module: nn.Module) -> None:
    """Initialise prototypes and learned weights; `transformers` initialises the linear layers."""
    if isinstance(module, Prototypes):
        init.normal_(module.points, std=0.02)
    elif isinstance(module, LearnedWeights):
        init.constant_(module.theta, 4.0)
