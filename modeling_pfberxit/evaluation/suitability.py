"""Is there anything to gain from leaving early? An answer before any training, from unlabelled rows."""

from collections.abc import Sequence

import torch
from torch import Tensor

from ..model.exit_policy import FULL_DEPTH
from ..model.exits import mean_weights
from ..model.modeling_pfberxit import PFBerxitForSequenceClassification
from ..model.validation import refuse


@torch.inference_mode()
def suitability(model: PFBerxitForSequenceClassification, batches: Sequence[dict[str, Tensor]]) -> list[float]:
    """How much of what the encoder says at its end is there at each layer already, (n,) in [0, 1].

    For every layer, the share of the variance of the last layer's mean states that a ridge regression foretells from
    that layer's, on rows it was not fitted on. A backbone that works everything out in its last layers has little to
    gain from leaving early, whatever is trained on it; near 1 in the middle there is room.

    Args:
        batches: of unlabelled rows, a few hundred in all.
    """
    states = torch.cat([layer_means(model, batch) for batch in batches])  # (N, n, d)
    if len(states) < 50:
        refuse("batches", f"{len(states)} rows", "at least 50 rows, better a few hundred")
    last = states[:, -1].double()
    return [explained(states[:, layer].double(), last) for layer in range(states.shape[1])]


def layer_means(model: PFBerxitForSequenceClassification, batch: dict[str, Tensor]) -> Tensor:
    """The mean state of every row's tokens after each layer of the bare encoder, (B, n, d)."""
    mask = batch.get("attention_mask", torch.ones_like(batch["input_ids"]))
    output = model(**{**batch, "labels": None}, output_hidden_states=True, exit_policy=FULL_DEPTH)
    weights = mean_weights(mask, output.hidden_states[0].dtype)
    return torch.stack([torch.bmm(weights, states).squeeze(1) for states in output.hidden_states[1:]], dim=1)


def explained(source: Tensor, target: Tensor, folds: int = 5, ridge: float = 1e-1) -> float:
    """The cross-validated share of a target's variance, (N, d), that a ridge regression explains; at least 0."""
    missed = torch.zeros((), dtype=target.dtype)
    for held_out in torch.arange(len(source)).tensor_split(folds):
        fitted = torch.ones(len(source), dtype=torch.bool)
        fitted[held_out] = False
        centre, goal = source[fitted].mean(0), target[fitted].mean(0)
        scale = source[fitted].std(0).mean().clamp(min=1e-9)
        x, y = (source[fitted] - centre) / scale, target[fitted] - goal
        weights = ridge_weights(x, y, ridge * x.square().sum() / len(x))
        missed += (target[held_out] - goal - (source[held_out] - centre) / scale @ weights).square().sum()
    return max(0.0, 1 - (missed / (target - target.mean(0)).square().sum()).item())


def ridge_weights(x: Tensor, y: Tensor, ridge: float | Tensor) -> Tensor:
    """The weights (d, k) of a ridge regression from x (N, d) to y (N, k), by what is fewer: rows or columns."""
    rows, columns = x.shape
    if rows < columns:
        return x.T @ torch.linalg.solve(x @ x.T + ridge * torch.eye(rows, dtype=x.dtype), y)
    return torch.linalg.solve(x.T @ x + ridge * torch.eye(columns, dtype=x.dtype), x.T @ y)
