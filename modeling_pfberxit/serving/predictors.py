"""Models as the engine asks them: a PyTorch model, or a file that `pfberxit export` wrote.

Rows of a PyTorch model share a batch where they share a policy; an exported file takes a threshold and a patience for
each row. Every row gets the answer that it gets alone.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedTokenizerBase

from ..data.texts import CUT, tokenise
from ..evaluation.certifying import origin
from ..export.facts import activation_of
from ..model.criteria import rule_of
from ..model.evidence import ABSTAIN
from ..model.exit_policy import FULL_DEPTH, ExitPolicy, resolve_policy
from ..model.losses import problem_type_of
from ..model.modeling_pfberxit import PFBerxitForSequenceClassification
from ..model.streams import pad_rows
from ..model.validation import label_names, refuse
from .calls import Found, Point, Tokens
from .ladder import FULL

OWN = "default"  # the name of the model's own rule
NEVER = 1e9  # above every certainty


class TorchPredictor:
    """A saved model behind the engine.

    Args:
        max_length: tokens of a text that are read.

    Attributes:
        as `calls.Predictor` has them.

    Raises:
        ValueError: an operating point with a name that the server needs itself, or that does not fit the model.
    """

    mixes = False
    together = None

    def __init__(
        self, model: PFBerxitForSequenceClassification, tokenizer: PreTrainedTokenizerBase, max_length: int
    ) -> None:
        self.model, self.tokenizer, self.max_length = model.eval(), tokenizer, max_length
        config = model.config
        self.labels = label_names(config)
        self.activation, self.depth = activation_of(config), model.exit_depths[-1]
        self.facts: Mapping[str, Any] = {"max_length": max_length, **origin(model)}
        self.points: Mapping[str, Mapping[str, Any]] = dict(config.operating_points)
        self.reading = threading.Lock()  # a tokenizer cuts as it was last told to
        self.known = known_points(FULL_DEPTH, self.depth, self.points, self.resolved)

    def resolved(self, asked: str | Mapping[str, Any] | None) -> ExitPolicy:
        """The policy of a request, checked against the model, without the fields that make no difference under it."""
        config = self.model.config
        found = resolve_policy(asked, config, self.model.exit_depths, problem_type_of(config))
        return FULL_DEPTH if found is None else ExitPolicy(**found.stated())

    def point(self, asked: str | Mapping[str, Any] | None) -> Point:
        """A name, or fields to change in the model's own rule; raises a ValueError that names what is wrong."""
        name = OWN if asked is None else asked
        if isinstance(name, str) and name in self.known:
            return self.known[name]
        return Point("custom", self.resolved(asked))

    def read(self, texts: Sequence[str | tuple[str, str]]) -> tuple[list[Tokens], list[bool]]:
        """Tokens of texts or pairs, and whether each was cut."""
        tokens: list[Tokens] = [{}] * len(texts)
        cut = [False] * len(texts)
        for pair in (False, True):
            places = [place for place, text in enumerate(texts) if isinstance(text, tuple) is pair]
            if places:
                columns: Any = zip(*(texts[place] if pair else (texts[place],) for place in places))
                with self.reading:
                    found = tokenise(self.tokenizer, list(columns), self.max_length)
                for place, was_cut in zip(places, found.pop(CUT)):
                    cut[place] = was_cut
                for place, row in zip(places, zip(*found.values())):
                    tokens[place] = {name: ids for name, ids in zip(found, row) if name != "attention_mask"}
        return tokens, cut

    @torch.inference_mode()
    def run(self, rows: Sequence[Tokens], points: Sequence[Point]) -> Found:
        """Answer rows that share one point."""
        tensors = [{name: torch.tensor(ids) for name, ids in row.items()} for row in rows]
        batch = pad_rows(tensors, self.model.config.pad_token_id or 0, self.model.device)
        output = self.model(**batch, exit_policy=points[0].policy, return_dict=True)
        return Found(output.logits.float().cpu().numpy(), output.exit_layer.tolist())


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
        self.known = known_points(full_depth(metadata), self.depth, self.points, classifier.point)

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


def known_points(
    full: Any, depth: int, points: Mapping[str, Mapping[str, Any]], policy_of: Callable[[str | None], Any]
) -> dict[str, Point]:
    """The points that have a name: full depth, operating points, and the model's own rule.

    Args:
        full: the policy of full depth; None where there is none.
        policy_of: an operating point's policy, or of None the model's own. Where that is a point's, that point answers.
    """
    found = {} if full is None else {FULL: Point(FULL, full, float(depth))}
    for name, point in points.items():
        if name in (OWN, FULL):
            refuse("operating_points", name, f"named otherwise than {OWN}, {FULL}")
        found[name] = Point(name, policy_of(name), point.get("layers"))
    own = policy_of(None)
    return {**found, OWN: next((point for point in found.values() if point.policy == own), Point(OWN, own))}
