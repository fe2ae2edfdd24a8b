"""The models of the benchmark: the stock one, shallower ones, ONNX Runtime, and ours with more and more short cuts.

All have random weights, which decide nothing about speed. Nothing is timed here.
"""

import json
from collections.abc import Callable
from copy import deepcopy
from functools import partial
from importlib import resources
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModelForSequenceClassification, BertConfig, PreTrainedModel

from ..evaluation.onnx_stock import onnx_runtime
from ..evaluation.recording import Recording
from ..model.configuration_pfberxit import PFBerxitConfig
from ..model.execution import Execution
from ..model.exit_policy import ExitPolicy
from ..model.modeling_pfberxit import PFBerxitForSequenceClassification
from ..model.validation import whole
from .scripted import scripted
from .workload import Batch

Answer = Callable[[Batch], Tensor]
# BERTs of other shapes than the files of configuration/ have.
SHAPES = {
    "minilm": {"hidden_size": 384, "num_hidden_layers": 6, "num_attention_heads": 12, "intermediate_size": 1536},
    "tiny": {"hidden_size": 32, "num_hidden_layers": 4, "num_attention_heads": 4, "intermediate_size": 64},
}

# Each with one more short cut than the one before. The first runs a batch as PABEE's code does: all rows to the end of
# the slowest one.
SHORT_CUTS = {
    "all rows wait for the slowest": Execution(token_first=False, drop_rows=False, trim=False, fused=False),
    "rows leave": Execution(token_first=False, trim=False, fused=False),
    "rows leave, padding with them": Execution(token_first=False, fused=False),
    "and token first": Execution(fused=False),
    "and one activation": Execution(),
}
OURS = "and one activation"  # all short cuts that are on by default
COMPILED = {"and compiled": Execution(compiled=True)}


def configuration(preset: str, layers: int | None = None, **knobs: Any) -> PFBerxitConfig:
    """The library's defaults on the encoder of a preset; with `paper=True` the preset's own exits and adapters.

    Args:
        layers: of the encoder, the first ones; None: all.
    """
    if preset in SHAPES:
        config = PFBerxitConfig.from_backbone(BertConfig(**SHAPES[preset]))
    else:
        text = resources.files("modeling_pfberxit.configuration").joinpath(f"{preset}.json").read_text()
        config = PFBerxitConfig.from_dict({**json.loads(text), "base_model_name_or_path": None})
    if layers is not None:
        config.num_hidden_layers = whole(1, config.num_hidden_layers)("layers", layers)
    if knobs.pop("paper", False):
        config.exit_layers = knobs.get("exit_layers")
        return config
    return PFBerxitConfig.from_backbone(config.encoder_config(), **knobs)


def stock_and_ours(
    preset: str, device: str, dtype: torch.dtype, layers: int | None = None, **knobs: Any
) -> tuple[PreTrainedModel, PFBerxitForSequenceClassification]:
    """The stock classifier and ours, both with the same encoder weights."""
    torch.manual_seed(0)
    stock = AutoModelForSequenceClassification.from_config(configuration(preset, layers).encoder_config())
    ours = PFBerxitForSequenceClassification(configuration(preset, layers, **knobs))
    ours.backbone.load_state_dict(getattr(stock, stock.base_model_prefix).state_dict(), strict=False)
    return stock.to(device, dtype).eval(), ours.to(device, dtype).eval()


def shallower(stock: PreTrainedModel, layers: int) -> PreTrainedModel:
    """The stock model cut to its first layers: what early exit has to beat."""
    config = deepcopy(stock.config)
    config.num_hidden_layers = layers
    smaller = AutoModelForSequenceClassification.from_config(config)
    smaller.load_state_dict(stock.state_dict(), strict=False)
    return smaller.to(stock.device, stock.dtype).eval()


def answers_of(model: PreTrainedModel) -> Answer:
    """The stock model's logits."""
    return lambda batch: model(**batch.tokens).logits


def with_short_cuts(
    model: PFBerxitForSequenceClassification, execution: Execution, policy: ExitPolicy, recording: Recording
) -> Answer:
    """Our model's logits under a policy, with certain short cuts and exits that answer as recorded."""

    def answer(batch: Batch) -> Tensor:
        """A batch -> (B, C)."""
        return scripted(model, execution, recording, batch.numbers)(**batch.tokens, exit_policy=policy).logits

    return answer


def in_onnx_runtime(stock: PreTrainedModel) -> dict[str, Answer]:
    """The stock model in ONNX Runtime, where it is installed."""
    return {name: partial(of_tokens, answer) for name, answer in onnx_runtime(stock).items()}


def of_tokens(answer: Callable[[dict[str, Tensor]], Tensor], batch: Batch) -> Tensor:
    """The logits of a batch's tokens."""
    return answer(batch.tokens)
