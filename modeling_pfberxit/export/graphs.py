"""A graph under construction: operators, constants, copies of templates, branches. Weights stand in the outermost.

ONNX Runtime packs them for its matrix products there as in a graph one level below, and keeps them once.
"""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from itertools import count
from typing import Any

import numpy as np
from onnx import GraphProto, NodeProto, TensorProto, helper, numpy_helper

from .templates import Template

WEIGHT = 1024  # bytes; a constant that has more stands in the outermost graph
KINDS = {"float32": TensorProto.FLOAT, "int64": TensorProto.INT64, "bool": TensorProto.BOOL}


class Graph:
    """Nodes and constants of one graph; graphs inside it share its numbering of names."""

    def __init__(self, outer: Graph | None = None) -> None:
        self.outer = outer
        self.numbers: count[int] = count() if outer is None else outer.numbers
        self.nodes: list[NodeProto] = []
        self.constants: dict[str, np.ndarray] = {}
        self.by_content: dict[tuple, str] = {}

    def name(self, hint: str) -> str:
        """A name that no other value has."""
        return f"{hint}_{next(self.numbers)}"

    def constant(self, value: Any, kind: str | None = None) -> str:
        """The name of a constant; equal ones are kept once, large ones in the outermost graph."""
        array = np.asarray(value, dtype=kind)
        if self.outer is not None and array.nbytes > WEIGHT:
            return self.outer.constant(array)
        key = (array.dtype.str, array.shape, hashlib.sha256(array.tobytes()).digest())
        if key not in self.by_content:
            self.by_content[key] = self.name("constant")
            self.constants[self.by_content[key]] = array
        return self.by_content[key]

    def whole(self, *numbers: int) -> str:
        """A constant of whole numbers, of rank 1."""
        return self.constant(numbers, "int64")

    def filled(self, rows: str, value: Any, kind: str, *shape: int) -> str:
        """A tensor of one value: a row of some shape for each of `rows`, a number of rank 1."""
        size = self.op("Concat", rows, self.whole(*shape), axis=0) if shape else rows
        return self.op("ConstantOfShape", size, value=numpy_helper.from_array(np.array([value], kind)))

    def op(self, kind: str, *inputs: str, **attributes: Any) -> str:
        """Add an operator of one output; the output's name."""
        (output,) = self.ops(kind, *inputs, outputs=1, **attributes)
        return output

    def ops(self, kind: str, *inputs: str, outputs: int, **attributes: Any) -> list[str]:
        """Add an operator; its outputs' names."""
        names = [self.name(kind.lower()) for _ in range(outputs)]
        self.nodes.append(helper.make_node(kind, list(inputs), names, name=self.name(kind), **attributes))
        return names

    def rename(self, value: str, name: str) -> str:
        """The value under a given name."""
        self.nodes.append(helper.make_node("Identity", [value], [name], name=self.name("Identity")))
        return name

    def copy_of(
        self, template: Template, given: Mapping[str, str], weights: Mapping[str, Any], wanted: Sequence[str]
    ) -> list[str]:
        """Add what a template needs for some of its outputs.

        Args:
            given: the names here of its inputs.
            weights: the arrays, or names here, of its weights.
            wanted: names of its outputs.

        Returns:
            Their names here.
        """
        nodes = needed(template.nodes, wanted)
        used = {name for node in nodes for name in node.input}
        names = {"": "", **given}
        for name, value in {**template.constants, **weights}.items():
            if name in used:
                names[name] = value if isinstance(value, str) else self.constant(value)
        for node in nodes:
            names |= {name: self.name(node.op_type.lower()) for name in node.output}
            mine = copy.deepcopy(node)
            mine.name = self.name(node.op_type)
            mine.input[:], mine.output[:] = [names[name] for name in node.input], [names[name] for name in node.output]
            self.nodes.append(mine)
        return [names[name] for name in wanted]

    def branch(
        self, condition: str, then: Callable[[Graph], Sequence[str]], otherwise: Callable[[Graph], Sequence[str]],
        kinds: Collection[str],
    ) -> list[str]:  # fmt: skip
        """An `If`; each branch is built by a function that is given its graph and returns its outputs' names."""
        bodies = {}
        for side, build in (("then_branch", then), ("else_branch", otherwise)):
            inner = Graph(self)
            bodies[side] = inner.as_proto(side, [], build(inner), kinds)
        return self.ops("If", condition, outputs=len(kinds), **bodies)

    def as_proto(
        self, name: str, inputs: Iterable[Any], outputs: Sequence[str], kinds: Iterable[str],
        shapes: Sequence[Sequence | None] | None = None,
    ) -> GraphProto:  # fmt: skip
        """The nodes that outputs hang on, with their constants; outputs of graphs outside are passed on by a node."""
        made = {name for node in self.nodes for name in node.output}
        outputs = [each if each in made or each in self.constants else self.op("Identity", each) for each in outputs]
        nodes = needed(self.nodes, outputs)
        infos = [
            helper.make_tensor_value_info(each, KINDS[kind], shape)
            for each, kind, shape in zip(outputs, kinds, shapes or [None] * len(outputs), strict=True)
        ]
        read = read_by(nodes) | {*outputs}
        kept = [numpy_helper.from_array(value, key) for key, value in self.constants.items() if key in read]
        return helper.make_graph(nodes, name, list(inputs), infos, kept)


def needed(nodes: Sequence[NodeProto], wanted: Iterable[str]) -> list[NodeProto]:
    """The nodes, in their order, that some values hang on."""
    asked, kept = set(wanted), []
    for node in reversed(nodes):
        if asked & set(node.output):
            asked |= read_by([node])
            kept.append(node)
    return kept[::-1]


def read_by(nodes: Iterable[NodeProto]) -> set[str]:
    """The names that nodes read, those inside them as well."""
    found: set[str] = set()
    for node in nodes:
        found |= set(node.input)
        for attribute in node.attribute:
            found |= read_by(attribute.g.node)
    return found
