"""Answers from a file that `pfberxit export` wrote: every row of a batch with a threshold and patience of its own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ..model.criteria import rule_of
from ..model.exit_policy import ExitPolicy
from ..model.policy_fields import ABSTAIN
from ..model.validation import refuse
from .calls import FULL, OWN, Found, Point, Tokens, named_point, with_own

NEVER = 1e9  # above every certainty


class OnnxPredictor:
    """An exported file behind the engine.

    Args:
        classifier: `pfberxit.onnx.Classifier`, opened.

    Attributes:
        as `calls.Predictor` has them.
    """

    mixes = True

    def __init__(self, classifier: Any) -> None:
        self.classifier, metadata = classifier, classifier.metadata
        self.labels, self.activation = list(metadata["id2label"]), metadata["activation"]
        self.depth, self.max_length = metadata["layers"], metadata["max_length"]
        self.together = 1 if metadata["single"] else None
        self.facts = {name: metadata[name] for name in ("max_length", "weights_sha256")}
        self.points: Mapping[str, Mapping[str, Any]] = metadata["operating_points"]
        found = {} if (full := full_depth(metadata)) is None else {FULL: Point(FULL, full, float(self.depth))}
        for name, point in self.points.items():
            found[named_point(name)] = Point(name, classifier.point(name), point.get("layers"))
        self.known = with_own(found, classifier.point(None))

    def point(self, asked: str | Mapping[str, Any] | None) -> Point:
        """A name, or threshold and patience; raises a ValueError that names what is wrong."""
        name = OWN if asked is None else asked
        if isinstance(name, str) and name in self.known:
            return self.known[name]
        if name == FULL:
            refuse("exit_policy", FULL, "left out: this file's rule lets rows leave under every threshold")
        return Point("custom", self.classifier.point(asked))

    def read(self, texts: Sequence[str | tuple[str, str]]) -> tuple[list[Tokens], list[bool]]:
        """Tokens of texts or pairs, and whether each was cut."""
        encoded = self.classifier.tokenizer.encode_batch(list(texts))
        tokens: list[Tokens] = [{"input_ids": each.ids, "token_type_ids": each.type_ids} for each in encoded]
        return tokens, [bool(each.overflowing) for each in encoded]

    def run(self, rows: Sequence[Tokens], points: Sequence[Point]) -> Found:
        """Answer rows, each under its own point."""
        batch = padded(rows, self.classifier.metadata)
        self.classifier.check(batch)
        tau, patience = zip(*(point.policy for point in points))
        batch |= {"tau": np.array(tau, np.float32), "patience": np.array(patience, np.int64)}
        wanted = {name: value for name, value in batch.items() if name in self.classifier.inputs}
        logits, layers = self.classifier.session.run(None, wanted)
        return Found(logits, layers.tolist())


def padded(rows: Sequence[Tokens], metadata: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """Rows as arrays (B, n), padded on the right."""
    longest = max(len(row["input_ids"]) for row in rows)
    ids = np.full((len(rows), longest), metadata["padding"]["id"], np.int64)
    mask, types = np.zeros_like(ids), np.zeros_like(ids)
    for number, row in enumerate(rows):
        length = len(row["input_ids"])
        ids[number, :length], mask[number, :length] = row["input_ids"], 1
        if metadata["token_types"]:
            types[number, :length] = row["token_type_ids"]
    return {"input_ids": ids, "attention_mask": mask, "token_type_ids": types}


def full_depth(metadata: Mapping[str, Any]) -> tuple[float, int] | None:
    """The threshold and patience under which no row of a file leaves early; None where there are none."""
    policy = ExitPolicy(**metadata["policy"])
    if "threshold" not in metadata["reads"] or policy.label_thresholds or policy.answer == ABSTAIN:
        return None
    return (NEVER if rule_of(policy).leaves_above else 0.0), metadata["most_patience"]
