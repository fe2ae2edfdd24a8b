"""Answers from a PyTorch model: batches whose rows share a policy, each row the same as alone."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from transformers import PreTrainedTokenizerBase

from ..data.texts import CUT, tokenise
from ..evaluation.certifying import origin
from ..export.facts import activation_of
from ..model.exit_policy import FULL_DEPTH, ExitPolicy, resolve_policy
from ..model.losses import problem_type_of
from ..model.modeling_pfberxit import PFBerxitForSequenceClassification
from ..model.streams import pad_rows
from ..model.validation import label_names
from .calls import FULL, OWN, Found, Point, Tokens, named_point, with_own


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
        found = {FULL: Point(FULL, FULL_DEPTH, float(self.depth))}
        for name, point in self.points.items():
            found[named_point(name)] = Point(name, self.resolved(name), point.get("layers"))
        self.known = with_own(found, self.resolved(None))

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
        output = self.model(**batch, exit_policy=points[0].policy)
        return Found(output.logits.float().cpu().numpy(), output.exit_layer.tolist())
