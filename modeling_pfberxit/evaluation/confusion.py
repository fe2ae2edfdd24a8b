"""What labelled rows are answered, class by class: who is taken for whom, precision, recall and F1 of every class."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from ..model.evidence import MULTI_LABEL, REGRESSION
from ..model.exit_policy import FULL_DEPTH, ExitPolicy
from ..model.validation import refuse
from .recording import Recording
from .replay import answered
from .tables import table

MOST = 12  # classes whose confusion fits a table; of more, the most frequent confusions are listed


@dataclass(frozen=True)
class ClassScores:
    """Of every class or label, (C,) each: rows that have it, precision, recall and F1; 0 where nothing is divided."""

    names: list[str]
    rows: np.ndarray
    precision: np.ndarray
    recall: np.ndarray
    f1: np.ndarray


def given_and_true(recording: Recording, policy: ExitPolicy | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Whether each row is answered with each class, and whether it has it, (N, C) of booleans.

    A row that leaves as unsure is answered with none.

    Args:
        policy: default: full depth.

    Raises:
        ValueError: a recording without labels, or of values.
    """
    if recording.problem_type == REGRESSION:
        refuse("recording", REGRESSION, "one of classes or labels")
    logits, _ = recording.replay(policy or FULL_DEPTH)
    labels = recording.known_labels
    if recording.problem_type == MULTI_LABEL:
        return (logits > 0).numpy(), (labels > 0.5).numpy()
    classes = np.arange(logits.shape[-1])
    best = torch.where(answered(logits), logits.argmax(-1), -1)
    return best.numpy()[:, None] == classes, labels.numpy()[:, None] == classes


def confusion(recording: Recording, policy: ExitPolicy | None = None) -> np.ndarray:
    """How many rows of each class, down, are answered with each class, across: (C, C); unsure rows with none."""
    if recording.problem_type == MULTI_LABEL:
        refuse("recording", MULTI_LABEL, "one with one label for each row")
    given, true = given_and_true(recording, policy)
    return true.T.astype(np.int64) @ given.astype(np.int64)


def class_scores(recording: Recording, policy: ExitPolicy | None = None) -> ClassScores:
    """Precision, recall and F1 of every class or label."""
    given, true = given_and_true(recording, policy)
    both, said, rows = (given & true).sum(0), given.sum(0), true.sum(0)
    return ClassScores(recording.names, rows, share(both, said), share(both, rows), share(2 * both, said + rows))


def share(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    """The ratio part / whole, 0 where whole is 0."""
    return np.divide(part, whole, out=np.zeros(len(part)), where=whole != 0)


# ---- as tables -------------------------------------------------------------------------------------------------------


def scores_table(found: ClassScores) -> str:
    """A line for every class, and the means over classes and over rows."""
    numbers = np.stack([found.precision, found.recall, found.f1], axis=1)
    rows = [[name, str(count), *shown(each)] for name, count, each in zip(found.names, found.rows, numbers)]
    total = int(found.rows.sum())
    rows.append(["mean over classes", str(total), *shown(numbers.mean(0))])
    if total:
        rows.append(["mean, by rows", str(total), *shown(np.average(numbers, axis=0, weights=found.rows))])
    return table(["class", "rows", "precision", "recall", "F1"], rows)


def shown(numbers: np.ndarray) -> list[str]:
    """Shares with three digits."""
    return [f"{number:.3f}" for number in numbers]


def confusion_table(counts: np.ndarray, names: Sequence[str], unsure: np.ndarray | None = None) -> str:
    """Who is taken for whom: a table, or of more than a dozen classes the most frequent confusions.

    Args:
        unsure: rows of each class without an answer, (C,); a column of the table where there are any.
    """
    if len(names) <= MOST:
        more = [] if unsure is None or not unsure.any() else [unsure]
        lines = np.column_stack([counts, *more]).tolist()
        rows = [[name, *map(str, line)] for name, line in zip(names, lines)]
        return table(["is, down; answered, across", *names, *(["(unsure)"] * len(more))], rows)
    wrong = counts.copy()
    np.fill_diagonal(wrong, 0)
    places = np.argsort(-wrong, axis=None, kind="stable")[:MOST]
    pairs = [divmod(int(place), len(names)) for place in places if wrong.flat[place]]
    rows = [[names[true], names[given], str(wrong[true, given])] for true, given in pairs]
    return table(["is", "answered", "rows"], rows, align="ll")
