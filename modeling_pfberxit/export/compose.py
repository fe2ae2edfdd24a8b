"""Parts joined to one graph: after each exit an `If`, in which the rows that remain go on in a smaller batch.

Where layers share their weights (ALBERT) there is one `Loop` instead, in `loops`. Every row that is still there writes
its answer at every exit over its former one, so what stands there in the end is that of the exit it left at.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple

import onnx
from onnx import helper

from ..model.criteria import rule_of
from ..model.evidence import outcomes
from ..model.exit_policy import ExitPolicy
from .graphs import KINDS, Graph
from .parts import ROWS, TOKENS, Step, examples
from .segments import Segment, Segments
from .templates import OPSET, Template

IR_VERSION = 10
ANSWERS = ("float32", "int64")
ASKED = {"tau": "float32", "patience": "int64"}  # what a request may bring for every row
ROW = {0: ROWS}
Values = dict[str, str]  # what is known of the remaining rows, each under the name that the graph has for it


class Rule(NamedTuple):
    """A step of the rule, and at which exits it is taken."""

    policy: ExitPolicy
    problem_type: str
    step: Step
    template: Template


@dataclass
class File:
    """One file under construction.

    Args:
        single: for one row at a time: nothing is gathered or cut.
        built_in: the policy's tau and patience are in the file, tokens its only inputs.
    """

    segments: Segments
    rule: Rule
    single: bool = False
    built_in: bool = False
    axes: dict[str, dict[int, str]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        own = {name: ROW for name in ("index", "tau", "patience", "count", "past", "lengths")}
        self.axes = {**self.segments.open_axes, **own}
        self.exit_depths = self.segments.model.exit_depths
        self.last = len(self.segments.layers)

    # ---- which exits are run -----------------------------------------------------------------------------------

    def exit_at(self, depth: int) -> int | None:
        """The number of the exit (0-based) that is run after a layer; None where none is, or it could tell nothing."""
        if depth not in self.exit_depths:
            return None
        rule, policy = rule_of(self.rule.policy), self.rule.policy
        forgetful = not rule.looks_back(policy, len(self.exit_depths))
        return None if forgetful and not self.may_exit(depth) else self.exit_depths.index(depth)

    def may_exit(self, depth: int) -> bool:
        """Whether a row could leave after this layer with the lowest patience; at the last one all do."""
        if depth == self.last:
            return True
        policy = self.rule.policy
        if depth not in self.exit_depths or depth < policy.floor:
            return False
        return self.exit_depths.index(depth) + 1 >= rule_of(policy).first_exit(replace(policy, patience=1))

    # ---- from inputs to outputs --------------------------------------------------------------------------------

    def build(self) -> onnx.ModelProto:
        """The whole file."""
        graph, inputs = Graph(), list(examples(self.segments.model))
        values = self.begin(graph, inputs)
        outputs = self.run_all(graph, values)
        named = [graph.rename(found, name) for found, name in zip(outputs, ("logits", "exit_layer"), strict=True)]
        proto = graph.as_proto("pfberxit", self.declared(inputs), named, ANSWERS,
                               [["batch", self.segments.model.num_labels], ["batch"]])  # fmt: skip
        return helper.make_model(proto, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR_VERSION,
                                 producer_name="pfberxit")  # fmt: skip

    def declared(self, inputs: Sequence[str]) -> list[onnx.ValueInfoProto]:
        """What the file takes."""
        tokens = [helper.make_tensor_value_info(name, KINDS["int64"], ["batch", "tokens"]) for name in inputs]
        kinds = {} if self.built_in else ASKED
        return tokens + [helper.make_tensor_value_info(name, KINDS[kind], ["batch"]) for name, kind in kinds.items()]

    def begin(self, graph: Graph, inputs: Sequence[str]) -> Values:
        """The batch in front of the first layer, its rule's memory empty."""
        start = self.segments.start
        found = graph.copy_of(start.template, {name: name for name in inputs}, start.weights, start.template.outputs)
        values = dict(zip(start.template.outputs, found, strict=True))
        rows = graph.op("Shape", "input_ids", end=1)
        values |= {"mask": "attention_mask", **self.asked(graph, rows)}
        counted = self.rule.step.counted
        size = graph.op("Concat", rows, graph.whole(counted), axis=0) if counted else rows
        values["count"] = graph.op("Expand", graph.constant([[0]] if counted else [0], "int64"), size)
        if self.rule.step.memory:
            shape = [1, self.rule.step.memory, *outcomes(self.segments.model.num_labels, self.rule.problem_type)]
            size = graph.op("Concat", rows, graph.whole(*shape[1:]), axis=0)
            values["past"] = graph.op("Expand", graph.constant([[[[float("nan")]]]], "float32"), size)
        size = graph.op("Concat", rows, graph.whole(self.segments.model.num_labels), axis=0)
        values["answers"] = graph.op("Expand", graph.constant([[0.0]], "float32"), size)
        values["layers"] = graph.op("Expand", graph.whole(0), rows)
        if not self.single:
            zero, one = graph.constant(0, "int64"), graph.constant(1, "int64")
            values["lengths"] = graph.op("ReduceSum", "attention_mask", graph.whole(1), keepdims=0)
            values["index"] = graph.op("Range", zero, graph.op("Squeeze", rows), one)
        return values

    def asked(self, graph: Graph, rows: str) -> Values:
        """Tau and patience of every row: inputs, or the policy's own."""
        if not self.built_in:
            return {name: name for name in ASKED}
        policy = self.rule.policy
        tau = policy.threshold if isinstance(policy.threshold, float) else 0.0
        numbers = {"tau": graph.constant([tau], "float32"), "patience": graph.constant([policy.patience], "int64")}
        return {name: graph.op("Expand", number, rows) for name, number in numbers.items()}

    def run_all(self, graph: Graph, values: Values) -> list[str]:
        """Logits and layers of the whole batch."""
        return self.descend(graph, values, 1)

    def descend(self, graph: Graph, values: Values, depth: int) -> list[str]:
        """Run layers from `depth` on until an exit at which rows may leave; logits and layers of the whole batch."""
        values = dict(values)
        while True:
            self.run_layer(graph, values, self.segments.layers[depth - 1])
            number = self.exit_at(depth)
            if number is not None:
                place = graph.whole(number), graph.whole(depth)
                fire, answer = self.run_exit(graph, values, self.segments.exits[number], place, depth == self.last)
                if self.may_exit(depth):
                    self.write(graph, values, answer)
                    if depth == self.last:
                        return [values["answers"], values["layers"]]
                    return self.part(graph, values, fire, depth)
            depth += 1

    def run_layer(self, graph: Graph, values: Values, segment: Segment) -> None:
        """Put a layer's output in the place of the states."""
        given = {name: values[name] for name in segment.template.inputs}
        (values["states"],) = graph.copy_of(segment.template, given, segment.weights, segment.template.outputs)

    def run_exit(
        self, graph: Graph, values: Values, segment: Segment, place: tuple[str, str], last: bool = False
    ) -> tuple[str, str]:
        """Which rows fire at an exit, and their answers; what the rule remembers changes.

        Args:
            place: how many exits rows have seen, and layers run, as numbers of rank 1.
            last: all rows leave, whatever the rule says.
        """
        template, outputs = self.rule.template, segment.template.outputs
        given = {name: values[name] for name in segment.template.inputs}
        evidence = dict(zip(outputs, graph.copy_of(segment.template, given, segment.weights, outputs), strict=True))
        if not self.single:
            rows = graph.op("Shape", evidence["logits"], end=1)
            place = graph.op("Expand", place[0], rows), graph.op("Expand", place[1], rows)
        values["seen"], values["depth"] = place
        every = {**values, **evidence}
        wanted = [name for name in template.outputs if not last or name == "answer"]
        found = dict(zip(wanted, graph.copy_of(template, {name: every[name] for name in template.inputs}, {}, wanted)))
        values |= {name: found[f"{name}_after"] for name in ("count", "past") if f"{name}_after" in found}
        return found.get("fire", ""), found.get("answer", evidence["logits"])

    def write(self, graph: Graph, values: Values, answer: str) -> None:
        """Every row's answer so far."""
        if self.single:
            values["answers"], values["layers"] = answer, values["depth"]
            return
        places = graph.op("Unsqueeze", values["index"], graph.whole(1))
        values["answers"] = graph.op("ScatterND", values["answers"], places, answer)
        values["layers"] = graph.op("ScatterND", values["layers"], places, values["depth"])

    def part(self, graph: Graph, values: Values, fire: str, depth: int) -> list[str]:
        """The rows that fire are done; the others go on, if there are any."""
        keep, some = self.staying(graph, fire)

        def go_on(inner: Graph) -> list[str]:
            return self.descend(inner, self.remaining(inner, values, keep), depth + 1)

        return graph.branch(some, go_on, lambda inner: [values["answers"], values["layers"]], ANSWERS)

    def staying(self, graph: Graph, fire: str) -> tuple[str, str]:
        """The numbers of the rows that do not fire, (1, N), and whether there are any."""
        stay = graph.op("Not", fire)
        if self.single:
            return stay, graph.op("Squeeze", stay)
        keep = graph.op("NonZero", stay)
        return keep, graph.op("Cast", graph.op("Size", keep), to=KINDS["bool"])

    def remaining(self, graph: Graph, values: Values, keep: str) -> Values:
        """The rows of these numbers, (1, N), cut to the longest of them; nothing is lost where there are none."""
        if self.single:
            return values
        values, keep = dict(values), graph.op("Squeeze", keep, graph.whole(0))
        moved = [name for name in values if ROWS in self.axes.get(name, {}).values()]
        for name in moved:
            axis = next(axis for axis, kind in self.axes[name].items() if kind == ROWS)
            values[name] = graph.op("Gather", values[name], keep, axis=axis)
        lengths = graph.op("Concat", values["lengths"], graph.whole(1), axis=0)  # one at least: rows may be none
        longest = graph.op("ReduceMax", lengths, keepdims=1)
        for name in values:
            cut = [axis for axis, kind in self.axes.get(name, {}).items() if kind == TOKENS]
            if cut and not name.endswith(".distances"):  # of those, more than occur do no harm
                ends = longest if len(cut) == 1 else graph.op("Concat", *[longest] * len(cut), axis=0)
                values[name] = graph.op("Slice", values[name], graph.whole(*[0] * len(cut)), ends, graph.whole(*cut))
        return values
