"""One `Loop` for layers that share their weights (ALBERT): its body holds them once, and by depth what differs."""

from __future__ import annotations

import numpy as np
import onnx
from onnx import helper

from .compose import ANSWERS, File, Values
from .graphs import KINDS, Graph
from .segments import Segment, Segments

WHOLE = ("mask", "count", "index", "lengths", "patience", "layers")  # of the values in a loop, whole numbers


def loops(segments: Segments) -> int:
    """How many layers, the first ones, can be turns of one loop; 0: their weights are their own.

    All of them where the exits are alike; all but the last where its exit is a head of its own.
    """
    layers, exits = segments.layers, segments.exits
    biggest = max(layers[0].weights, key=lambda name: layers[0].weights[name].size)
    same = all(one.template is layers[0].template for one in layers)
    if not same or len(layers) < 3 or len(exits) != len(layers) or not alike(layers, biggest):
        return 0
    number = len(layers) if exits[-1].template is exits[0].template else len(layers) - 1
    return number if all(each.template is exits[0].template for each in exits[:number]) else 0


def alike(parts: list[Segment], name: str) -> bool:
    """Whether parts have a weight in common."""
    first = parts[0].weights[name]
    return all(np.array_equal(first, each.weights[name]) for each in parts[1:])


def turning(graph: Graph, turn: str, parts: list[Segment]) -> Segment:
    """A part inside a loop: common weights as they are, others from a stack of all depths."""
    weights = {
        name: value if alike(parts, name)
        else graph.op("Gather", graph.constant(np.stack([each.weights[name] for each in parts])), turn, axis=0)
        for name, value in parts[0].weights.items()
    }  # fmt: skip
    return Segment(parts[0].template, weights)


class LoopFile(File):
    """A file whose first layers are turns of one loop."""

    def run_all(self, graph: Graph, values: Values) -> list[str]:
        """The loop, and the last layer where it is none of its turns."""
        turns = loops(self.segments)
        names = [name for name in values if name in self.carried()]
        before = [graph.constant(True), *(graph.op("Identity", values[name]) for name in names)]
        some, *after = graph.ops("Loop", graph.constant(turns, "int64"), graph.constant(True), *before,
                                 outputs=len(before), body=self.body(graph, names, turns))  # fmt: skip
        values = dict(zip(names, after, strict=True))
        if turns == self.last:
            return [values["answers"], values["layers"]]
        return graph.branch(
            some, lambda inner: self.descend(inner, values, self.last),
            lambda inner: [values["answers"], values["layers"]], ANSWERS,
        )  # fmt: skip

    def carried(self) -> set[str]:
        """The values that the parts of a turn read or change."""
        templates = [self.segments.layers[0].template, *(each.template for each in self.segments.exits)]
        read = {name for template in [*templates, self.rule.template] for name in template.inputs}
        return read | {"states", "answers", "layers", "lengths", "index"}

    def body(self, outer: Graph, names: list[str], turns: int) -> onnx.GraphProto:
        """One layer, its exit, and the rows that remain; whether there are any goes on twice, to be read at the end."""
        graph = Graph(outer)
        turn, going, before, *given = (graph.name(f"in_{name}") for name in ("turn", "going", "some", *names))
        values = dict(zip(names, given, strict=True))
        self.run_layer(graph, values, turning(graph, turn, self.segments.layers[:turns]))
        seen = graph.op("Unsqueeze", turn, graph.whole(0))
        depth = graph.op("Add", seen, graph.whole(1))
        fire, answer = self.run_exit(graph, values, turning(graph, turn, self.segments.exits[:turns]), (seen, depth))
        self.write(graph, values, answer)
        keep, some = self.staying(graph, fire)
        values = self.remaining(graph, values, keep)
        kinds = ["bool", *("int64" if name in WHOLE else "float32" for name in names)]
        numbered = [helper.make_tensor_value_info(turn, KINDS["int64"], []),
                    helper.make_tensor_value_info(going, KINDS["bool"], [])]  # fmt: skip
        own = [
            helper.make_tensor_value_info(*pair, None)
            for pair in zip([before, *given], [KINDS[kind] for kind in kinds])
        ]
        outputs = [some, graph.op("Identity", some), *(values[name] for name in names)]
        return graph.as_proto("body", [*numbered, *own], outputs, ["bool", *kinds])
