"""The models of the benchmark: the stock one, shallower ones, ONNX Runtime, and ours with more and more short cuts.

All have random weights, which decide nothing about speed. Nothing is timed here.
"""

import json
import logging
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from copy import deepcopy
from importlib import resources
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModelForSequenceClassification, PreTrainedModel

from ..evaluation.recording import Recording
from ..model.configuration_pfberxit import PFBerxitConfig
from ..model.exit_policy import ExitPolicy
from ..model.loop import Execution
from ..model.modeling_pfberxit import PFBerxitForSequenceClassification
from ..model.validation import whole
from .scripted import scripted
from .workload import Batch

Answer = Callable[[Batch], Tensor]

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


# ---- ONNX Runtime ---------------------------------------------------------------------------------------------------


class LogitsOnly(torch.nn.Module):
    """A classifier with positional arguments and one output, as the exporter needs it."""

    def __init__(self, model: PreTrainedModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """(B, n) twice -> (B, C)."""
        return self.model(input_ids=input_ids, attention_mask=attention_mask).logits


def onnx_runtime(stock: PreTrainedModel) -> dict[str, Answer]:
    """The stock model in ONNX Runtime, fp32 and dynamically quantised to int8; nothing where it is not installed."""
    if any(find_spec(name) is None for name in ("onnx", "onnxruntime", "onnxscript")) or stock.device.type != "cpu":
        return {}
    import onnx
    from onnxruntime.quantization import quantize_dynamic

    sample, free = torch.ones(2, 17, dtype=torch.long), {0: torch.export.Dim.DYNAMIC, 1: torch.export.Dim.DYNAMIC}
    with tempfile.TemporaryDirectory() as folder, errors_only():
        paths = [str(Path(folder) / f"{name}.onnx") for name in ("exported", "plain", "int8")]
        names = ["input_ids", "attention_mask"]
        torch.onnx.export(
            LogitsOnly(stock).eval(), (sample, sample), paths[0], input_names=names, output_names=["logits"],
            dynamic_shapes=(free, free), dynamo=True, verbose=False,
        )  # fmt: skip
        graph = onnx.load(paths[0])
        hold_weights(graph.graph)
        del graph.graph.value_info[:]  # the quantiser infers shapes itself, and stumbles over those of the exporter
        onnx.save(graph, paths[1])
        quantize_dynamic(*paths[1:])
        return {"ONNX Runtime": session(paths[1]), "ONNX Runtime, int8": session(paths[2])}


def hold_weights(graph: Any) -> None:
    """Transpose weights in the file, not when it runs: the quantiser looks for products by constants alone."""
    from onnx import helper, numpy_helper

    weights = {tensor.name: tensor for tensor in graph.initializer}
    for node in [each for each in graph.node if each.op_type == "Transpose" and each.input[0] in weights]:
        turned = numpy_helper.to_array(weights[node.input[0]]).transpose(helper.get_node_attr_value(node, "perm"))
        graph.initializer.append(numpy_helper.from_array(turned.copy(), node.output[0]))
        graph.node.remove(node)
    read = {name for node in graph.node for name in node.input}
    for tensor in [each for name, each in weights.items() if name not in read]:
        graph.initializer.remove(tensor)


@contextmanager
def errors_only() -> Iterator[None]:
    """Silence warnings of the root logger, to which the quantiser writes."""
    root = logging.getLogger()
    level = root.level
    root.setLevel(logging.ERROR)
    try:
        yield
    finally:
        root.setLevel(level)


def session(path: str) -> Answer:
    """The logits of an exported model, run with as many threads as torch."""
    from onnxruntime import InferenceSession, SessionOptions

    options = SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    runtime = InferenceSession(path, options, providers=["CPUExecutionProvider"])
    return lambda batch: torch.from_numpy(runtime.run(None, {k: v.numpy() for k, v in batch.tokens.items()})[0])
