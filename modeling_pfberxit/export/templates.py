"""A module as an ONNX graph that knows its weights by name, so that one translation serves all modules built alike."""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import onnx
import torch
from onnx import NodeProto, helper, numpy_helper
from torch import Tensor, nn

OPSET = 20
Inputs = Mapping[str, tuple[Tensor, Mapping[int, str]]]  # an example of each input, and which of its sizes are open


class Template(NamedTuple):
    """A module's graph.

    Args:
        inputs, outputs: names, in the order of the module's arguments and results.
        weights: by the name under which the nodes read it, a parameter or buffer of the module, and in which order
            they read its axes; None: as it is.
        constants: what else they read.
    """

    inputs: list[str]
    outputs: list[str]
    nodes: list[NodeProto]
    weights: dict[str, tuple[str, list[int] | None]]
    constants: dict[str, np.ndarray]


def translate(module: nn.Module, inputs: Inputs, outputs: Sequence[str]) -> Template:
    """Export a module of tensors by `torch.onnx`; its weights stay open.

    Args:
        inputs: by name, in the order of its `*arguments`.
    """
    module = module.eval()
    open_sizes = tuple({axis: torch.export.Dim.DYNAMIC for axis in axes} for _, axes in inputs.values())
    with torch.no_grad(), quietly():
        program = torch.onnx.export(
            module, tuple(example for example, _ in inputs.values()), dynamo=True, verbose=False, optimize=False,
            input_names=list(inputs), output_names=list(outputs), dynamic_shapes=(open_sizes,), opset_version=OPSET,
        )  # fmt: skip
        assert program is not None  # with dynamo, it never is
        return of_weights_open(program.model_proto, module, list(inputs), list(outputs))


def of_weights_open(proto: onnx.ModelProto, module: nn.Module, inputs: list[str], outputs: list[str]) -> Template:
    """The optimised graph, in which what the module's weights are is not known."""
    from onnxscript import optimizer

    known = {**dict(module.named_parameters(remove_duplicate=False)), **dict(module.named_buffers())}
    graph = proto.graph
    for tensor in [each for each in graph.initializer if each.name in known]:
        graph.input.append(helper.make_tensor_value_info(tensor.name, tensor.data_type, list(tensor.dims)))
        graph.initializer.remove(tensor)
    graph = optimizer.optimize(proto).graph
    # A transposed weight is a weight: were it transposed in the graph, quantisation would not find its product.
    turned = [node for node in graph.node if node.op_type == "Transpose" and node.input[0] in known]
    nodes = [node for node in graph.node if node not in turned]
    used = {name for node in nodes for name in node.input}
    weights: dict[str, Any] = {each.name: (each.name, None) for each in graph.input if each.name in known}
    weights |= {node.output[0]: (node.input[0], helper.get_node_attr_value(node, "perm")) for node in turned}
    constants = {each.name: numpy_helper.to_array(each) for each in graph.initializer if each.name in used}
    return Template(inputs, outputs, nodes, {name: weights[name] for name in weights if name in used}, constants)


@contextlib.contextmanager
def quietly() -> Iterator[None]:
    """The exporter prints its steps, and warns of packages that are not needed."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
