"""Is there anything to gain from early exits? An answer before any training, from texts without labels."""

from collections.abc import Sequence

import torch
from sklearn.linear_model import Ridge
from sklearn.model_selection import KFold, cross_val_predict
from torch import Tensor

from ..model.exit_policy import FULL_DEPTH
from ..model.heads import mean_weights
from ..model.modeling_pfberxit import PFBerxitForSequenceClassification
from ..model.validation import refuse


@torch.inference_mode()
def suitability(model: PFBerxitForSequenceClassification, batches: Sequence[dict[str, Tensor]]) -> list[float]:
    """How much of the last layer's states can be predicted from each layer's, (n,) in [0, 1].

    For every layer, the share of the variance of the last layer's mean states that a ridge regression explains from
    that layer's, on rows it was not fitted on. An encoder that computes everything in its last layers has little to
    gain from early exits, whatever is trained on it; near 1 in the middle there is room.

    Args:
        batches: of unlabelled rows, a few hundred in all.

    Raises:
        ValueError: fewer than 50 rows.
    """
    states = torch.cat([layer_means(model, batch) for batch in batches])  # (N, n, d)
    if len(states) < 50:
        refuse("batches", f"{len(states)} rows", "at least 50 rows, better a few hundred")
    last = states[:, -1].double()
    return [explained(states[:, layer].double(), last) for layer in range(states.shape[1])]


def layer_means(model: PFBerxitForSequenceClassification, batch: dict[str, Tensor]) -> Tensor:
    """The mean state of every row's tokens after each layer of the bare encoder, (B, n, d)."""
    mask = batch.get("attention_mask", torch.ones_like(batch["input_ids"]))
    output = model(**{**batch, "labels": None}, output_hidden_states=True, exit_policy=FULL_DEPTH, return_dict=True)
    weights = mean_weights(mask, output.hidden_states[0].dtype)
    return torch.stack([torch.bmm(weights, states).squeeze(1) for states in output.hidden_states[1:]], dim=1)


def explained(source: Tensor, target: Tensor, folds: int = 5, ridge: float = 1e-1) -> float:
    """The cross-validated share of a target's variance, (N, k), that a ridge regression on (N, d) explains; at least 0.

    Args:
        ridge: the penalty, relative to the variance of the source summed over its dimensions.
    """
    x, y = source.cpu().numpy(), target.cpu().numpy()
    # Layers differ in the scale of their states by orders of magnitude; the penalty goes along with it.
    penalty = max(ridge * x.var(axis=0).sum(), 1e-9)
    predicted = cross_val_predict(Ridge(alpha=penalty), x, y, cv=KFold(folds))
    return max(0.0, 1 - float(((y - predicted) ** 2).sum() / ((y - y.mean(axis=0)) ** 2).sum()))
