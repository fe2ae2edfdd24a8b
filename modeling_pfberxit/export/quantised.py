"""Matrix products by weights in 8 bits, inside branches and loops as well, such that no row depends on another.

ONNX Runtime's own dynamic quantisation takes one range for all that a product reads, so that what a row runs beside
changes its answer. Here every token has its own:

    q = floor(x · 127 / max|x| + 128.5)                      uint8, a scale for each token
    y = (q - 128) · W8 · (max|x| / 127) · (max|W| / 63)      the product in whole numbers; a scale for each column

Weights keep 7 bits: sums of two products then fit the 16 bits in which older processors add them, so that all of them
give the same. What has no weights (attention) stays in float32, and so do classifiers: they are no `MatMul` but `Gemm`.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import onnx
from onnx import GraphProto, NodeProto, TensorProto, helper, numpy_helper

from .storage import nodes_in

TOP, MIDDLE, MOST = 127.0, 128, 63.0  # of a token's numbers, what stands for 0, and of weights
TINY = 1e-9  # in the place of a token's range where it is all zeros


class Products(NamedTuple):
    """Matrix products by weights in a file: those of 8-bit numbers, and those that are left."""

    int8: int
    float32: int

    @property
    def share(self) -> float:
        """Of 8-bit numbers."""
        return self.int8 / max(1, self.int8 + self.float32)


def products(proto: onnx.ModelProto) -> Products:
    """Count them through all graphs; those of attention have no weights."""
    float32, int8 = 0, 0
    for graph in graphs_in(proto.graph):
        float32 += len(Quantiser(graph, proto.graph).weighted())
        int8 += sum(node.op_type == "MatMulInteger" for node in graph.node)
    return Products(int8, float32)


def quantised(proto: onnx.ModelProto) -> onnx.ModelProto:
    """A copy in 8 bits."""
    small = onnx.ModelProto()
    small.CopyFrom(proto)
    for number, graph in enumerate(reversed(graphs_in(small.graph))):  # inner ones first: nodes are copied
        Quantiser(graph, small.graph, f"q{number}_").run()
    return small


def graphs_in(graph: GraphProto) -> list[GraphProto]:
    """A graph and all inside it."""
    inner = [attribute.g for node in nodes_in(graph) for attribute in node.attribute if attribute.HasField("g")]
    return [graph, *inner]


class Quantiser:
    """One graph, the graphs inside it apart; weights stand in the outermost one."""

    def __init__(self, graph: GraphProto, outermost: GraphProto, prefix: str = "") -> None:
        self.graph, self.outermost, self.prefix = graph, outermost, prefix
        self.weights = {
            tensor.name: tensor
            for each in (outermost, graph)
            for tensor in each.initializer
            if tensor.data_type == TensorProto.FLOAT
        }
        # Of layers in a loop, weights that differ are taken from a stack of them.
        self.gathers = {
            node.output[0]: node for node in graph.node if node.op_type == "Gather" and node.input[0] in self.weights
        }
        self.made: dict[str, list[str]] = {}  # what is quantised already, under the names of the old values

    def weighted(self) -> list[NodeProto]:
        """The products by a weight."""
        return [node for node in self.graph.node if node.op_type == "MatMul" and self.is_weight(node.input[1])]

    def is_weight(self, name: str) -> bool:
        """Whether a value is a matrix that is known beforehand, or one of a stack of them."""
        if name in self.gathers:
            return len(self.weights[self.gathers[name].input[0]].dims) == 3
        return name in self.weights and len(self.weights[name].dims) == 2

    def run(self) -> None:
        """Put products of whole numbers in the place of all of them."""
        weighted = {node.output[0] for node in self.weighted()}
        nodes: list[NodeProto] = []
        for node in self.graph.node:
            nodes += self.in_8_bits(node) if node.output[0] in weighted else [node]
        nodes = [node for node in nodes if node.output[0] not in self.gathers or node.output[0] in self.read(nodes)]
        copies, read = [copy_of(node) for node in nodes], self.read(nodes)
        del self.graph.node[:]
        self.graph.node.extend(copies)
        for tensor in [tensor for tensor in self.graph.initializer if tensor.name not in read]:
            self.graph.initializer.remove(tensor)

    def read(self, nodes: list[NodeProto]) -> set[str]:
        """All names that nodes, or those of graphs inside them, or the graph's end, read."""
        found = {name for node in nodes for each in (node, *inner_nodes(node)) for name in each.input}
        return found | {output.name for output in self.graph.output}

    def in_8_bits(self, node: NodeProto) -> list[NodeProto]:
        """The nodes that stand for one product."""
        (value, weight), (output,) = node.input, node.output
        before: list[NodeProto] = []
        if weight not in self.made:
            before += self.weight(weight)
        if value not in self.made:
            before += self.tokens(value)
        (whole, token), (matrix, column), name = self.made[value], self.made[weight], f"{self.prefix}{output}"
        return [
            *before,
            helper.make_node(
                "MatMulInteger", [whole, matrix, self.constant("middle", MIDDLE, np.uint8)], [f"{name}_i"]
            ),
            helper.make_node("Cast", [f"{name}_i"], [f"{name}_f"], to=TensorProto.FLOAT),
            helper.make_node("Mul", [f"{name}_f", token], [f"{name}_t"]),
            helper.make_node("Mul", [f"{name}_t", column], [output]),
        ]

    def tokens(self, value: str) -> list[NodeProto]:
        """What quantises a value, every token in its own range."""
        name = f"{self.prefix}{value}"
        self.made[value] = [f"{name}_whole", f"{name}_scale"]
        last = self.constant("last", [-1], np.int64)
        return [
            helper.make_node("Abs", [value], [f"{name}_abs"]),
            helper.make_node("ReduceMax", [f"{name}_abs", last], [f"{name}_high"], keepdims=1),
            helper.make_node("Max", [f"{name}_high", self.constant("tiny", TINY)], [f"{name}_most"]),
            helper.make_node("Div", [self.constant("top", TOP), f"{name}_most"], [f"{name}_steps"]),
            # No `Mul`: ONNX Runtime would take a product of scales as one number for all tokens.
            helper.make_node("Div", [f"{name}_most", self.constant("top", TOP)], [f"{name}_scale"]),
            helper.make_node("Mul", [value, f"{name}_steps"], [f"{name}_wide"]),
            helper.make_node("Add", [f"{name}_wide", self.constant("half", MIDDLE + 0.5)], [f"{name}_moved"]),
            helper.make_node("Cast", [f"{name}_moved"], [f"{name}_whole"], to=TensorProto.UINT8),
        ]

    def weight(self, name: str) -> list[NodeProto]:
        """Keep a weight, or the stack it is taken from, as whole numbers and the scales of its columns."""
        gather = self.gathers.get(name)
        stored = name if gather is None else gather.input[0]
        self.made[name] = found = [f"{stored}_int8", f"{stored}_columns"]
        if not any(tensor.name == found[0] for tensor in self.outermost.initializer):
            values = numpy_helper.to_array(self.weights[stored])
            scales = np.abs(values).max(-2, keepdims=True) / MOST
            scales = np.where(scales == 0, 1, scales).astype(np.float32)
            keep(self.outermost, found[0], np.round(values / scales).astype(np.int8))
            keep(self.outermost, found[1], scales)
        if gather is None:
            return []
        self.made[name] = taken = [f"{self.prefix}{name}_int8_taken", f"{self.prefix}{name}_columns_taken"]
        return [helper.make_node("Gather", [one, gather.input[1]], [other], axis=0)
                for one, other in zip(found, taken)]  # fmt: skip

    def constant(self, name: str, value: float | list[int], kind: type = np.float32) -> str:
        """The name of a number that is kept once."""
        if name not in self.made:
            self.made[name] = [f"{self.prefix}{name}"]
            keep(self.graph, f"{self.prefix}{name}", np.asarray(value, kind))
        return self.made[name][0]


def keep(graph: GraphProto, name: str, values: np.ndarray) -> None:
    """Add a constant to a graph."""
    graph.initializer.append(numpy_helper.from_array(values, name))


def inner_nodes(node: NodeProto) -> list[NodeProto]:
    """All nodes of the graphs inside one."""
    return [each for attribute in node.attribute for each in nodes_in(attribute.g)]


def copy_of(node: NodeProto) -> NodeProto:
    """A node that stays when its graph is emptied."""
    kept = NodeProto()
    kept.CopyFrom(node)
    return kept
