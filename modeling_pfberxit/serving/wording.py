"""Answers in the words that clients expect: labels with their scores, the highest in front."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from .bodies import Asked
from .calls import Answer, Predictor


def worded(answers: Sequence[Answer], asked: Asked, model: Predictor) -> list[Any]:
    """What a request is answered: the labels of each text, or of the only one."""
    rows = [labelled(answer, asked, model) for answer in answers]
    return rows[0] if asked.single else rows


def labelled(answer: Answer, asked: Asked, model: Predictor) -> list[dict[str, Any]]:
    """The labels of one text; of one that left as unsure an empty label without a score, as in the pipeline."""
    more = {"exit_layer": answer.exit_layer, "exit_policy": answer.rung} if asked.terms.details else {}
    if np.isnan(answer.logits).any():
        return [{"label": "", "score": None, **more}]
    scores = scores_of(answer.logits, asked.function or model.activation)
    order = np.argsort(-scores, kind="stable")[: asked.top_k]
    return [{"label": model.labels[number], "score": float(scores[number]), **more} for number in order]


def scores_of(logits: np.ndarray, function: str) -> np.ndarray:
    """Logits (C,) as `pipeline` shows them: probabilities of classes or labels, or as they are."""
    logits = logits.astype(np.float64)
    if function == "none":
        return logits
    if function == "sigmoid":
        return 1 / (1 + np.exp(-logits))
    raised = np.exp(logits - logits.max())
    return raised / raised.sum()
