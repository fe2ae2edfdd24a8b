"""Who runs in the benchmark: the stock model, shallower ones, ONNX Runtime, and ours with its short cuts one by one."""

import json
import logging
import tempfile
from collections.abc import Callable
from copy import deepcopy
from importlib import resources
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModelForSequenceClassification, PreTrainedModel

from ..model.configuration_pfberxit import PFBerxitConfig
from ..model.exit_policy import ExitPolicy
from ..model.loop import Execution
from ..model.modeling_pfberxit import PFBerxitForSequenceClassification
from .workload import Batch, Script

Answer = Callable[[Batch], Tensor]

# Each with one more short cut than the one before. The first is how PABEE's code treats a batch: it goes on for all.
SHORT_CUTS = {
    "all rows wait for the slowest": Execution(token_first=False, drop_rows=False, trim=False, fused=False),
    "rows leave": Execution(token_first=False, trim=False, fused=False),
    "rows leave, padding with them": Execution(token_first=False, fused=False),
    "and token first": Execution(fused=False),
    "and one activation": Execution(),
}
OURS = "and one activation"  # with all short cuts there are by default
COMPILED = {"and compiled": Execution(compiled=True)}


def configuration(preset: str, **knobs: Any) -> PFBerxitConfig:
    """The library's defaults on the encoder of a preset; `paper` among the knobs takes the preset's layout as well."""
    text = resources.files("modeling_pfberxit.configuration").joinpath(f"{preset}.json").read_text()
    config = PFBerxitConfig.from_dict({**json.loads(text), "base_model_name_or_path": None})
    if knobs.pop("paper", False):
        config.exit_layers = knobs.get("exit_layers")
        return config
    return PFBerxitConfig.from_backbone(config.encoder_config(), **knobs)


def stock_and_ours(
    preset: str, device: str, dtype: torch.dtype, **knobs: Any
) -> tuple[PreTrainedModel, PFBerxitForSequenceClassification]:
    """The stock classifier and ours on one encoder."""
    torch.manual_seed(0)
    stock = AutoModelForSequenceClassification.from_config(configuration(preset).encoder_config())
    ours = PFBerxitForSequenceClassification(configuration(preset, **knobs))
    ours.backbone.load_state_dict(getattr(stock, stock.base_model_prefix).state_dict(), strict=False)
    return stock.to(device, dtype).eval(), ours.to(device, dtype).eval()


def shallower(stock: PreTrainedModel, layers: int) -> PreTrainedModel:
    """The stock model cut to its first layers: the floor that early exit is compared with."""
    config = deepcopy(stock.config)
    config.num_hidden_layers = layers
    smaller = AutoModelForSequenceClassification.from_config(config)
    smaller.load_state_dict(stock.state_dict(), strict=False)
    return smaller.to(stock.device, stock.dtype).eval()


def answers_of(model: PreTrainedModel) -> Answer:
    """The stock model's logits."""
    return lambda batch: model(**batch.tokens).logits


def with_short_cuts(
    model: PFBerxitForSequenceClassification, execution: Execution, policy: ExitPolicy, script: Script
) -> Answer:
    """Our logits under a policy, with certain short cuts, where exits say what was recorded."""

    def answer(batch: Batch) -> Tensor:
        """One batch's logits."""
        model.execution = execution
        with script.spoken(batch.numbers):
            return model(**batch.tokens, exit_policy=policy).logits

    return answer


# ---- ONNX Runtime ---------------------------------------------------------------------------------------------------


class Exported(torch.nn.Module):
    """Positional arguments and one output, as the exporter wants them."""

    def __init__(self, model: PreTrainedModel):
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

    logging.getLogger().setLevel(logging.ERROR)  # the quantiser speaks to the root logger
    sample, free = torch.ones(2, 17, dtype=torch.long), {0: torch.export.Dim.DYNAMIC, 1: torch.export.Dim.DYNAMIC}
    with tempfile.TemporaryDirectory() as folder:
        paths = [str(Path(folder) / f"{name}.onnx") for name in ("exported", "plain", "int8")]
        names = ["input_ids", "attention_mask"]
        torch.onnx.export(
            Exported(stock), (sample, sample), paths[0], input_names=names, output_names=["logits"],
            dynamic_shapes=(free, free), dynamo=True, verbose=False,
        )  # fmt: skip
        graph = onnx.load(paths[0])
        del graph.graph.value_info[:]  # the quantiser infers shapes itself, and stumbles over those of the exporter
        onnx.save(graph, paths[1])
        quantize_dynamic(*paths[1:])
        return {"ONNX Runtime": session(paths[1]), "ONNX Runtime, int8": session(paths[2])}


def session(path: str) -> Answer:
    """A model in a file, run with as many threads as torch."""
    from onnxruntime import InferenceSession, SessionOptions

    options = SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    runtime = InferenceSession(path, options, providers=["CPUExecutionProvider"])
    return lambda batch: torch.from_numpy(runtime.run(None, {k: v.numpy() for k, v in batch.tokens.items()})[0])
