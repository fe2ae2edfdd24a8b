"""A second file in 8 bits: smaller and faster, and not the same answers. How often they are is measured.

Its own thresholds can be chosen, and certified, on what its own exits say (`recertified`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
import torch
from torch import Tensor

from ..evaluation.certificates import Certificate
from ..evaluation.replay import same_answers
from ..model.evidence import REGRESSION
from ..model.exit_policy import ExitPolicy, describe
from ..model.losses import problem_type_of
from ..model.modeling_pfberxit import PFBerxitForSequenceClassification
from ..model.validation import refuse
from .quantised import products
from .verification import Row, batches, run

BESIDE_OTHERS = 8  # rows of a batch in which answers are held against those that rows get alone
LEAST = 0.9  # of the products by weights, in what is called int8


def check_products(proto: onnx.ModelProto, path: str) -> dict[str, int]:
    """How many products by weights there are, in 8 bits and left in float32; refuse a file with too many left."""
    found = products(proto)
    if found.share < LEAST:
        refuse(
            "int8", f"{found.int8} of {found.int8 + found.float32} products in {path}", f"at least {LEAST:g} of them"
        )
    return found._asdict()


def agreement(
    full: Any, small: Any, model: PFBerxitForSequenceClassification, rows: Sequence[Row], policy: ExitPolicy,
    single: bool = False,
) -> dict[str, Any]:  # fmt: skip
    """Of rows, how many leave after the same layer and get the same answer: as in float32, and alone as in a batch.

    Of values, how far they are apart at most.
    """
    expected, alone = (answers(session, model, rows, policy, 1) for session in (full, small))
    together = alone if single else answers(small, model, rows, policy, BESIDE_OTHERS)
    found: dict[str, Any] = {"rows": len(rows)}
    for name, one, other in (("as_float32", alone, expected), ("alone_as_in_batch", together, alone)):
        found |= {f"{key}_{name}": value for key, value in alike(one, other, problem_type_of(model.config)).items()}
    return found


def answers(
    session: Any, model: PFBerxitForSequenceClassification, rows: Sequence[Row], policy: ExitPolicy, size: int
) -> tuple[Tensor, Tensor]:
    """Logits (N, C) and layers (N,) of all rows, in batches of one size."""
    parts = [run(session, batch, policy) for batch in batches(rows, size, model)]
    logits, layers = (torch.as_tensor(np.concatenate(part)) for part in zip(*parts))
    return logits, layers


def alike(one: tuple[Tensor, Tensor], other: tuple[Tensor, Tensor], problem_type: str) -> dict[str, Any]:
    """Rows with the same layer, and with the same answer; of values, the largest distance."""
    (logits, layers), (others, its) = one, other
    found: dict[str, Any] = {"layer": int((layers == its).sum())}
    if problem_type == REGRESSION:
        return {**found, "farthest": float((logits - others).abs().max())}
    return {**found, "label": int(same_answers(logits, others, problem_type, 0.0).sum())}


def without_certificates(facts: dict[str, Any], measured: dict[str, Any]) -> dict[str, Any]:
    """What the second file says of itself: certificates of the model speak of float32 alone."""
    points = {
        name: {field: value for field, value in point.items() if field != "certificate"}
        for name, point in facts["operating_points"].items()
    }
    return {**facts, "operating_points": points, "int8": measured}


def promise_in_words(certificate: Certificate | None) -> str:
    """What is promised of a file in 8 bits, if anything is."""
    words = "its thresholds are those of float32, and no certificate speaks of it."
    if certificate is None:
        return words.capitalize()
    if certificate.passed:
        return f"{certificate.in_words()} Its rule: {describe(certificate.policy)}."
    return f"No setting passed at {100 * certificate.epsilon:g} % on {certificate.rows} texts: {words}"


def in_words(measured: dict[str, Any]) -> str:
    """The measurement in one paragraph."""
    far = measured.get("farthest_as_float32")
    same = "{label_as_float32} get the same answer" if far is None else f"values are up to {far:.2g} apart"
    words = (
        "In 8 bits ({int8} of {total} matrix products by weights), of {rows} {texts} {layer_as_float32} leave after "
        f"the layer that they leave after in float32, {same}; beside others {{layer_alone_as_in_batch}} leave as they "
        "do alone."
    )
    counted = measured["products"]
    return words.format(**measured, **counted, total=sum(counted.values()))
