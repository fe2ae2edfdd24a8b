"""Prototypes after training: the means of the classes, so that `distance` works on a model that never learned them."""

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from ..model.blueprint import rebuilt
from ..model.evidence import MULTI_LABEL, REGRESSION
from ..model.exit_policy import FULL_DEPTH
from ..model.exits import Prototypes
from ..model.losses import problem_type_of
from ..model.modeling_pfberxit import PFBerxitForSequenceClassification
from ..model.validation import refuse


@torch.no_grad()
def fit_prototypes(model: PFBerxitForSequenceClassification, loader: DataLoader) -> None:
    """Set every exit's prototypes to the class means of the states it reads; sets `config.use_prototypes`.

    Multi-label: the mean of the rows with the label and the mean of those without it.

    Raises:
        ValueError: regression, or an outcome of which the loader has no row.
    """
    was_training, pooled, labels = model.training, [], []
    model.eval()
    for batch in loader:
        labels.append(batch["labels"].to(model.device))
        inputs = {name: values.to(model.device) for name, values in batch.items() if name != "labels"}
        pooled.append(pooled_states(model, inputs))
    model.train(was_training)
    labels = torch.cat(labels)
    problem_type = problem_type_of(model.config, labels)
    if problem_type == REGRESSION:
        refuse("problem_type", REGRESSION, "a problem with classes or labels to make prototypes of")
    members = memberships(labels, model.num_labels, problem_type)  # (N, L, K)
    if not bool(members.any(0).all()):
        refuse("loader", "no row of some class", "rows of every class, and with and without every label")
    members = members.float() / members.sum(0)
    if not len(model.exits.prototypes):
        size = pooled[0].shape[-1]
        model.exits.prototypes.extend(
            Prototypes(model.num_labels, problem_type, size).to(model.device) for _ in model.exit_depths
        )
    for number, prototypes in enumerate(model.exits.prototypes):
        states = torch.cat([part[:, number] for part in pooled])  # (N, d)
        prototypes.points.copy_(torch.einsum("nlk,nd->lkd", members, states.float()))
    rebuilt(model, use_prototypes=True)
    model.config.problem_type = problem_type


def memberships(labels: Tensor, num_labels: int, problem_type: str) -> Tensor:
    """Which rows have which outcome: labels (N,) or (N, C) -> (N, L, K)."""
    if problem_type == MULTI_LABEL:
        return torch.stack([labels > 0.5, labels <= 0.5], dim=-1)
    return labels[:, None, None] == torch.arange(num_labels, device=labels.device)


def pooled_states(model: PFBerxitForSequenceClassification, batch: dict[str, Tensor]) -> Tensor:
    """The states that the classifier of every exit reads, from one full-depth pass, (B, E, d)."""
    seen = []
    hooks = [
        head.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
        for head in model.exits.classifiers
    ]
    try:
        model(**batch, exit_policy=FULL_DEPTH)
    finally:
        for hook in hooks:
            hook.remove()
    return torch.stack(seen, dim=1)
