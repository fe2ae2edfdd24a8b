"""Distillation from a teacher whose weights were all trained: its answers become part of the labels."""

from datasets import Dataset
from torch import Tensor
from torch.nn import functional as F

from ..evaluation.recording import Recording, record
from ..model.evidence import MULTI_LABEL, REGRESSION
from ..model.modeling_pfberxit import PFBerxitForSequenceClassification

TEACHER = {"system": "pabee"}  # exits trained together with all weights


def softened(kept: Recording, share: float) -> Tensor:
    """Labels of which a share is what the last exit says: values (N,), or probabilities of classes or labels (N, C)."""
    labels, said = kept.known_labels, kept.evidence.logits[:, -1]
    if kept.problem_type == REGRESSION:
        return (1 - share) * labels + share * said[:, 0]
    if kept.problem_type == MULTI_LABEL:
        return (1 - share) * labels + share * said.sigmoid()
    return (1 - share) * F.one_hot(labels.long(), said.shape[-1]) + share * said.softmax(-1)


def taught(rows: Dataset, teacher: PFBerxitForSequenceClassification, share: float) -> Dataset:
    """The rows with softened labels."""
    labels = softened(record(teacher, rows, progress=False), share)
    return rows.remove_columns("labels").add_column("labels", labels.tolist())
