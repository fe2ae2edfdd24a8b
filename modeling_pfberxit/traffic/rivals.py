"""A stock classifier behind the same engine and routes, at full depth: what early exit is held against when served."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModelForSequenceClassification, AutoTokenizer, PreTrainedModel

from ..data.texts import length_of
from ..evaluation.onnx_stock import FP32, onnx_runtime
from ..export.facts import activation_of
from ..model.backbones import longest_input
from ..model.streams import pad_rows
from ..model.validation import entry_of, label_names, refuse
from ..serving.calls import Found, Point, Tokens
from ..serving.ladder import FULL
from ..serving.predictors import OWN, TorchPredictor

Run = Callable[[dict[str, Tensor]], Tensor]  # a batch of tokens -> logits


def in_torch(model: PreTrainedModel) -> Run:
    """The model as it is."""
    return lambda batch: model(**batch, return_dict=True).logits


def in_onnx_runtime(model: PreTrainedModel) -> Run:
    """Its export in ONNX Runtime, fp32; raises a ValueError where that is not installed."""
    found = onnx_runtime(model)
    return (
        found[FP32] if found else refuse("runtime", "onnxruntime", "installed: pip install 'modeling-pfberxit[onnx]'")
    )


RUNTIMES = {"torch": in_torch, "onnxruntime": in_onnx_runtime}


class FullDepth:
    """A stock classifier as a predictor whose only point is full depth.

    Args:
        name: of a stock `AutoModelForSequenceClassification`, a folder or Hub id.
        runtime: a name in `RUNTIMES`.
        max_length: tokens of a text that are read; None: as its tokenizer was saved.

    Attributes:
        as `calls.Predictor` has them.
    """

    mixes, together = True, None
    read = TorchPredictor.read

    def __init__(self, name: str, runtime: str = "torch", max_length: int | None = None) -> None:
        make = RUNTIMES[entry_of(RUNTIMES)("runtime", runtime)]
        model = AutoModelForSequenceClassification.from_pretrained(name).eval()
        self.tokenizer, self.reading = AutoTokenizer.from_pretrained(name, padding_side="right"), threading.Lock()
        config = model.config
        self.max_length = length_of(self.tokenizer, longest_input(config), max_length)
        self.labels = label_names(config)
        self.activation, self.depth = activation_of(config), config.num_hidden_layers
        self.pad, self.answer = config.pad_token_id or 0, make(model)
        self.points: Mapping[str, Mapping[str, Any]] = {}
        self.facts: dict[str, Any] = {}
        self.known = {name: Point(name, None, float(self.depth)) for name in (FULL, OWN)}

    def point(self, asked: str | Mapping[str, Any] | None) -> Point:
        """Full depth; raises a ValueError where something else is asked for."""
        if asked not in (None, *self.known):
            refuse("exit_policy", asked, "left out: a stock model has one depth")
        return self.known[FULL]

    @torch.inference_mode()
    def run(self, rows: Sequence[Tokens], points: Sequence[Point]) -> Found:
        """Answer a batch."""
        batch = pad_rows([{name: torch.tensor(ids) for name, ids in row.items()} for row in rows], self.pad)
        return Found(self.answer(batch).float().numpy(), [self.depth] * len(rows))
