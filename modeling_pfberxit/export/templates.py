"""A module as an ONNX graph that knows its weights by name, so that one translation serves all modules built alike."""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import onnx
import torch
from onnx import NodeProto, numpy_helper
from torch import Tensor, nn

OPSET = 20
Inputs = Mapping[str, tuple[Tensor, Mapping[int, str]]]  # an example of each input, and which of its sizes are open


class Template(NamedTuple):
    """A module's graph.

    Args:
        inputs, outputs: names, in the order of the module's arguments and results.
        weights: the names of parameters and buffers of the module that the nodes read.
        constants: what else they read.
    """

    inputs: list[str]
    outputs: list[str]
    nodes: list[NodeProto]
    weights: list[str]
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
        graph.input.append(onnx.helper.make_tensor_value_info(tensor.name, tensor.data_type, list(tensor.dims)))
        graph.initializer.remove(tensor)
    graph = optimizer.optimize(proto).graph
    used = {name for node in graph.node for name in node.input}
    weights = [each.name for each in graph.input if each.name in known and each.name in used]
    constants = {each.name: numpy_helper.to_array(each) for each in graph.initializer if each.name in used}
    return Template(inputs, outputs, list(graph.node), weights, constants)


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
