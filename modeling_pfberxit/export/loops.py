"""One `Loop` for layers that share their weights (ALBERT): its body holds them once, and by depth what differs."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx
from onnx import helper

from ..model.evidence import outcomes
from .compose import File, Values
from .graphs import KINDS, Graph
from .segments import Segment, Segments


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

    def begin(self, graph: Graph, inputs: Sequence[str]) -> Values:
        """The batch in front of the first layer, as if all its rows had passed an exit that said 0."""
        values, labels = super().begin(graph, inputs), self.segments.model.num_labels
        rows = graph.op("Shape", "input_ids", end=1)
        shapes = {"logits": [labels], "distances": outcomes(labels, self.rule.problem_type)}
        emitted = self.segments.exits[0].template.outputs
        zeros = {name: graph.filled(rows, 0.0, "float32", *shapes.get(name, [])) for name in emitted}
        zeros |= {"layers": graph.filled(rows, 0, "int64")}
        if not self.rule.step.own:
            zeros["answers"] = graph.filled(rows, 0.0, "float32", labels)
        left = {} if self.single else {"left": graph.op("Size", values["stay"])}
        return {**values, **zeros, **left, "some": graph.constant([True])}

    def run_all(self, graph: Graph, values: Values) -> Values:
        """The outputs, by their names: of the loop, and of the last layer where it is none of its turns."""
        turns = loops(self.segments)
        names = [name for name in values if name in self.changed(last=False)]
        before = [graph.op("Identity", values[name]) for name in names]
        found = graph.ops("Loop", graph.constant(turns, "int64"), graph.constant(True), *before, outputs=len(before),
                          body=self.body(graph, values, names, turns))  # fmt: skip
        values = {**values, **dict(zip(names, found, strict=True))}
        if turns < self.last:
            values = self.run_if_any(graph, values, range(self.last, self.last + 1))
        return self.answers(values)

    def body(self, outer: Graph, values: Values, names: list[str], turns: int) -> onnx.GraphProto:
        """The rows that remain, one layer and its exit; whether any rows go on is said to the loop, and kept."""
        graph = Graph(outer)
        turn, going, *given = (graph.name(f"in_{name}") for name in ("turn", "going", *names))
        values = self.remaining(graph, {**values, **dict(zip(names, given, strict=True))})
        self.run_layer(graph, values, turning(graph, turn, self.segments.layers[:turns]))
        values["seen"] = graph.op("Unsqueeze", turn, graph.whole(0))
        values["depth"] = graph.op("Add", values["seen"], graph.whole(1))
        self.run_exit(graph, values, turning(graph, turn, self.segments.exits[:turns]), self.rule.template.outputs)
        self.write(graph, values)
        self.leave(graph, values)
        kinds = [self.kinds.get(name, "float32") for name in names]
        inputs = [helper.make_tensor_value_info(turn, KINDS["int64"], []),
                  helper.make_tensor_value_info(going, KINDS["bool"], [])]  # fmt: skip
        inputs += [helper.make_tensor_value_info(*pair, None) for pair in zip(given, [KINDS[kind] for kind in kinds])]
        going_on = graph.op("Squeeze", values["some"])
        return graph.as_proto("body", inputs, [going_on, *(values[name] for name in names)], ["bool", *kinds])
