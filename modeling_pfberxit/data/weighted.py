"""Scores on weighted rows, for many predictions at once: a bootstrap sample is a weight for every row.

Most metrics are arithmetic on sums over rows, so one matrix product scores hundreds of samples; a rank correlation
takes one sort for all of them. `metrics.score` defines each of them; the two agree to rounding.
"""

from collections.abc import Callable, Iterable
from typing import NamedTuple

import numpy as np

from ..model.validation import refuse


def weighted_scores(metric: str, answers: Iterable[np.ndarray], labels: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Logits (N, C) for each of P answers, labels (N,) or (N, C), how often each row counts (N, R) -> (R, P)."""
    if metric == "correlation":
        values = (np.asarray(each, dtype=np.float64).reshape(-1) for each in answers)
        return weighted_correlations(values, np.asarray(labels, dtype=np.float64).reshape(-1), weights)
    if metric not in SUMMED:
        refuse("metric", metric, f"one of {', '.join([*SUMMED, 'correlation'])}")
    parts, score = SUMMED[metric]
    found = [score(parts(each, labels).T @ weights, weights.sum(0)) for each in answers]
    return np.stack(found, axis=1)


# ---- metrics that are sums over rows --------------------------------------------------------------------------------


class Summed(NamedTuple):
    """A metric in two steps: each row's summands, and the score as a function of the sums."""

    parts: Callable[[np.ndarray, np.ndarray], np.ndarray]  # logits (N, C), labels -> (N, S)
    score: Callable[[np.ndarray, np.ndarray], np.ndarray]  # sums (S, R), rows (R,) -> (R,)


def right(logits: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Whether each row is right, (N, 1)."""
    return (logits.argmax(-1) == labels)[:, None].astype(np.float64)


def right_and_positive(logits: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """For each row, (N, 3): right; a true positive; predicted positive plus labelled positive, 0 to 2."""
    given, true = logits.argmax(-1), labels
    if logits.shape[-1] > 2 or labels.max(initial=0) > 1:
        refuse("metric", "accuracy_f1", "asked of two classes: F1 is that of class 1")
    positive = (given == 1).astype(int) + (true == 1)
    return np.stack([given == true, positive == 2, positive], axis=1).astype(np.float64)


def right_and_classes(logits: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """For each row, (N, 1 + K + K): right, the predicted class one-hot, the labelled class one-hot."""
    given = logits.argmax(-1)
    classes = np.arange(max(logits.shape[-1], labels.max(initial=0) + 1))
    return np.concatenate(
        [(given == labels)[:, None], given[:, None] == classes, labels[:, None] == classes], axis=1
    ).astype(np.float64)


def shared_labels(logits: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """For each row, (N, 2): how many labels are predicted and true; how many are predicted plus how many are true."""
    given, true = logits > 0, labels > 0.5
    return np.stack([(given & true).sum(1), given.sum(1) + true.sum(1)], axis=1).astype(np.float64)


def share(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    """The ratio part / whole, 0 where whole is 0."""
    return np.divide(part, whole, out=np.zeros_like(part), where=whole != 0)


def mean_accuracy_f1(sums: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """The mean of accuracy and F1, from the sums of `right_and_positive`."""
    return (sums[0] / rows + share(2 * sums[1], sums[2])) / 2


def matthews_of(sums: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """Gorodkin's R_K, from the sums of `right_and_classes`; 0 where only one class is predicted or true."""
    given, true = sums[1:].reshape(2, -1, sums.shape[1])
    spread = (rows**2 - (given**2).sum(0)) * (rows**2 - (true**2).sum(0))
    return share(sums[0] * rows - (given * true).sum(0), np.sqrt(spread))


SUMMED = {
    "accuracy": Summed(right, lambda sums, rows: sums[0] / rows),
    "accuracy_f1": Summed(right_and_positive, mean_accuracy_f1),
    "matthews": Summed(right_and_classes, matthews_of),
    "micro_f1": Summed(shared_labels, lambda sums, rows: share(2 * sums[0], sums[1])),
}


# ---- correlation ----------------------------------------------------------------------------------------------------


def weighted_correlations(answers: Iterable[np.ndarray], labels: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Mean of Pearson's and Spearman's, values (N,) for each of P answers, labels (N,), weights (N, R) -> (R, P)."""
    true, found = weighted_ranks(labels, weights), []
    for values in answers:
        ranks = weighted_ranks(values, weights)
        a, b, both = (np.einsum("nr,nr,nr->r", weights, *pair) for pair in pairs(ranks, true))
        with np.errstate(invalid="ignore"):  # values or labels that do not vary score 0 below
            mean = (weighted_pearson(values, labels, weights) + both / np.sqrt(a * b)) / 2
        found.append(np.where((a == 0) | (b == 0), 0.0, mean))  # exact: ranks are whole or half numbers
    return np.stack(found, axis=1)


def pairs(x: np.ndarray, y: np.ndarray) -> tuple[tuple[np.ndarray, np.ndarray], ...]:
    """The factors of two variances and a covariance."""
    return (x, x), (y, y), (x, y)


def weighted_ranks(values: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Each row's rank among the rows drawn, ties at their mean rank, less the mean rank: (N,) -> (N, R)."""
    _, group = np.unique(values, return_inverse=True)
    order = group.argsort(kind="stable")
    starts = np.flatnonzero(np.diff(group[order], prepend=-1))
    times = np.add.reduceat(weights[order], starts)  # (groups of equal values, R)
    return (times.cumsum(0) - (times + weights.sum(0)) / 2)[group]


def weighted_pearson(x: np.ndarray, y: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Pearson's correlation of (N,) and (N,), for each weighting (R,)."""
    x, y = x - x.mean(), y - y.mean()
    sums = np.stack([x, y, x * x, y * y, x * y]) @ weights / weights.sum(0)
    a, b, both = sums[2:] - np.stack([one * other for one, other in pairs(sums[0], sums[1])])
    return both / np.sqrt(a * b)
