"""A stock classifier in ONNX Runtime, in fp32 and dynamically quantised to int8: what early exit is held against."""

import logging
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

INPUTS = ("input_ids", "attention_mask")
FP32, INT8 = "ONNX Runtime", "ONNX Runtime, int8"
Answer = Callable[[dict[str, Tensor]], Tensor]  # a batch of tokens -> logits


class LogitsOnly(torch.nn.Module):
    """A classifier with positional arguments and one output, as the exporter needs it."""

    def __init__(self, model: PreTrainedModel, inputs: Sequence[str]) -> None:
        super().__init__()
        self.model, self.inputs = model, inputs

    def forward(self, *values: Tensor) -> Tensor:
        """(B, n) each -> (B, C)."""
        return self.model(**dict(zip(self.inputs, values)), return_dict=True).logits


def onnx_runtime(stock: PreTrainedModel, inputs: Sequence[str] = INPUTS) -> dict[str, Answer]:
    """The stock model in ONNX Runtime, `FP32` and `INT8`; nothing where it is not installed.

    Args:
        inputs: what the tokenizer makes: pairs may need `token_type_ids`, too.
    """
    if any(find_spec(name) is None for name in ("onnx", "onnxruntime", "onnxscript")) or stock.device.type != "cpu":
        return {}
    import onnx
    from onnxruntime.quantization import quantize_dynamic

    samples = tuple(torch.ones(2, 17, dtype=torch.long) for _ in inputs)
    free = {0: torch.export.Dim.DYNAMIC, 1: torch.export.Dim.DYNAMIC}
    with tempfile.TemporaryDirectory() as folder, errors_only():
        paths = [str(Path(folder) / f"{name}.onnx") for name in ("exported", "plain", "int8")]
        torch.onnx.export(
            LogitsOnly(stock, inputs).eval(), samples, paths[0], input_names=list(inputs), output_names=["logits"],
            dynamic_shapes=((free,) * len(inputs),), dynamo=True, verbose=False,
        )  # fmt: skip
        graph = onnx.load(paths[0])
        hold_weights(graph.graph)
        del graph.graph.value_info[:]  # the quantiser infers shapes itself, and stumbles over those of the exporter
        onnx.save(graph, paths[1])
        quantize_dynamic(*paths[1:])
        return {FP32: session(paths[1]), INT8: session(paths[2])}


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
    read = {each.name for each in runtime.get_inputs()}
    return lambda tokens: torch.from_numpy(runtime.run(None, {k: tokens[k].numpy() for k in read})[0])
