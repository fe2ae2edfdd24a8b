"""Scores of predictions, as GLUE counts them. The arithmetic is scikit-learn's and scipy's."""

from collections.abc import Callable

import numpy as np
from scipy.stats import pearsonr, spearmanr
from sklearn.metrics import accuracy_score, f1_score, matthews_corrcoef

from ..model.validation import refuse


def accuracy(logits: np.ndarray, labels: np.ndarray) -> float:
    """Share of rows whose label is right."""
    return float(accuracy_score(labels, logits.argmax(-1)))


def accuracy_f1(logits: np.ndarray, labels: np.ndarray) -> float:
    """Mean of accuracy and F1 (MRPC, QQP)."""
    answers = logits.argmax(-1)
    return float(accuracy_score(labels, answers) + f1_score(labels, answers, zero_division=0.0)) / 2


def matthews(logits: np.ndarray, labels: np.ndarray) -> float:
    """Matthews correlation (CoLA)."""
    return float(matthews_corrcoef(labels, logits.argmax(-1)))


def correlation(logits: np.ndarray, labels: np.ndarray) -> float:
    """Mean of Pearson and Spearman correlation (STS-B); 0 where the values or the labels do not vary."""
    values = logits.reshape(-1)
    if np.ptp(values) == 0 or np.ptp(labels) == 0:
        return 0.0
    return float(pearsonr(values, labels).statistic + spearmanr(values, labels).statistic) / 2


def micro_f1(logits: np.ndarray, labels: np.ndarray) -> float:
    """Micro-averaged F1 over several labels, each counted as given where its logit is above 0."""
    return float(f1_score(labels > 0.5, logits > 0, average="micro", zero_division=0.0))


METRICS: dict[str, Callable[[np.ndarray, np.ndarray], float]] = {
    "accuracy": accuracy,
    "accuracy_f1": accuracy_f1,
    "matthews": matthews,
    "correlation": correlation,
    "micro_f1": micro_f1,
}


def score(metric: str, logits: np.ndarray, labels: np.ndarray) -> float:
    """A metric by its name: logits (N, C), labels (N,) or (N, C)."""
    if metric not in METRICS:
        refuse("metric", metric, f"one of {', '.join(METRICS)}")
    return METRICS[metric](np.asarray(logits, dtype=np.float64), np.asarray(labels))


def majority_score(metric: str, labels: np.ndarray) -> float:
    """The score of always answering the most frequent label: an exit at this score has learned nothing."""
    labels = np.asarray(labels)
    if metric == "correlation":
        return 0.0
    if metric == "micro_f1":
        return score(metric, np.tile(labels.mean(0) - 0.5, (len(labels), 1)), labels)
    counts = np.bincount(labels)
    return score(metric, np.tile(counts, (len(labels), 1)), labels)


def majority_in_words(metric: str, majority: float) -> str:
    """That score, by what is answered: "majority class 0.509"; where values are, "one value for all 0.000"."""
    return f"{'one value for all' if metric == 'correlation' else 'majority class'} {majority:.3f}"
