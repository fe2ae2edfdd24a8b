"""Parts joined to one graph: behind every exit at which rows may leave an `If`, and in it the layers up to the next.

Layers and exits run for the rows that remain. The rule is applied to the whole batch: what an exit says is put at its
rows' places, rows that have left keep what their last exit said, so that this is what they answer in the end, and
nothing of a row's memory has to be gathered. The `If`s stand one behind the other and pass on what they change: of
graphs inside each other ONNX Runtime keeps copies. Where layers share their weights (ALBERT) there is one `Loop`
instead, in `loops`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
import onnx
from onnx import helper

from ..model.criteria import after_comparing, rule_of
from ..model.evidence import outcomes
from ..model.exit_policy import ExitPolicy
from .graphs import KINDS, Graph
from .parts import ROWS, TOKENS, Step, example_state, examples
from .segments import Segment, Segments
from .templates import OPSET, Template

IR_VERSION = 10
ANSWER = {"logits": "float32", "exit_layer": "int64"}  # what is said of every row
ASKED = {"tau": "float32", "patience": "int64"}  # what a request may bring for every row
# Of the values that are made on the way, those that are no float32.
KIND = {"count": "int64", "index": "int64", "layers": "int64", "left": "int64", "stay": "bool", "some": "bool"}
Values = dict[str, str]  # tensors by what they are, each under the name that the graph has for it


class Rule(NamedTuple):
    """A rule, and one step of it as a module and as a graph."""

    policy: ExitPolicy
    problem_type: str
    step: Step
    template: Template


@dataclass
class File:
    """One file under construction.

    Values of the remaining rows are those of `segments.open_axes`, and `index` (N, 1), the numbers of these rows. All
    others are of the whole batch, among them `stay` (B,), which rows go on, and `left`, how many; of one row at a time
    `some`, (1,), whether it does.

    Args:
        single: for one row at a time: nothing is gathered or cut.
        built_in: the policy's tau and patience are in the file, tokens its only inputs.
    """

    segments: Segments
    rule: Rule
    single: bool = False
    built_in: bool = False

    def __post_init__(self) -> None:
        self.exit_depths = self.segments.model.exit_depths
        self.last = len(self.segments.layers)
        self.kinds = {**self.segments.kinds, **KIND}
        rows = example_state(self.rule.step, 1, self.segments.model.num_labels)
        self.row_shapes = {"index": (1, 1), **{name: tuple(value.shape) for name, value in rows.items()}}

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
        found = self.run_all(graph, self.begin(graph, inputs))
        outputs = [graph.rename(value, name) for name, value in found.items()]
        kinds, shapes = [ANSWER.get(name, "float32") for name in found], [self.shape(name) for name in found]
        proto = graph.as_proto("pfberxit", self.declared(inputs), outputs, kinds, shapes)
        return helper.make_model(proto, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR_VERSION,
                                 producer_name="pfberxit")  # fmt: skip

    def declared(self, inputs: Sequence[str]) -> list[onnx.ValueInfoProto]:
        """What the file takes."""
        tokens = [helper.make_tensor_value_info(name, KINDS["int64"], ["batch", "tokens"]) for name in inputs]
        kinds = {} if self.built_in else ASKED
        return tokens + [helper.make_tensor_value_info(name, KINDS[kind], ["batch"]) for name, kind in kinds.items()]

    def shape(self, output: str) -> list[Any] | None:
        """Of an output; None: it is not said."""
        return ["batch", self.segments.model.num_labels] if output == "logits" else ["batch"]

    def begin(self, graph: Graph, inputs: Sequence[str]) -> Values:
        """The batch in front of the first layer: all rows remain, the rule remembers nothing."""
        start = self.segments.start
        found = graph.copy_of(start.template, {name: name for name in inputs}, start.weights, start.template.outputs)
        values = dict(zip(start.template.outputs, found, strict=True))
        rows = graph.op("Shape", "input_ids", end=1)
        values |= {"mask": "attention_mask", **self.asked(graph, rows), **self.memory(graph, rows)}
        return values if self.single else {**values, **self.all_rows(graph, rows)}

    def all_rows(self, graph: Graph, rows: str) -> Values:
        """Which rows remain: all of them."""
        stay = graph.filled(rows, True, "bool")
        return {"stay": stay, "index": graph.op("Transpose", graph.op("NonZero", stay))}

    def asked(self, graph: Graph, rows: str) -> Values:
        """Tau and patience of every row: inputs, or the policy's own."""
        if not self.built_in:
            return {name: name for name in ASKED}
        policy = self.rule.policy
        tau = policy.threshold if isinstance(policy.threshold, float) else 0.0
        return {"tau": graph.filled(rows, tau, "float32"), "patience": graph.filled(rows, policy.patience, "int64")}

    def memory(self, graph: Graph, rows: str) -> Values:
        """What the rule remembers of every row before the first exit."""
        step, labels = self.rule.step, self.segments.model.num_labels
        found = {"count": graph.filled(rows, 0, "int64", *([step.counted] if step.counted else []))}
        if step.memory:
            shape = step.memory, *outcomes(labels, self.rule.problem_type)
            found["past"] = graph.filled(rows, float("nan"), "float32", *shape)
        return found

    def run_all(self, graph: Graph, values: Values) -> Values:
        """The outputs, by their names."""
        for number, stretch in enumerate(self.stretches()):
            values = self.run_if_any(graph, values, stretch) if number else self.run(graph, values, stretch)
        return self.answers(values)

    def stretches(self) -> list[range]:
        """The layers up to each exit at which rows may leave, behind the one before."""
        ends = [depth for depth in range(1, self.last + 1) if self.may_exit(depth)]
        return [range(before + 1, end + 1) for before, end in zip([0, *ends], ends)]

    def answers(self, values: Values) -> Values:
        """The outputs of the whole batch, as they are by now."""
        return {"logits": values.get("answers", values["logits"]), "exit_layer": values["layers"]}

    def run_if_any(self, graph: Graph, values: Values, stretch: range) -> Values:
        """The values behind a stretch; where no rows remain, what is answered as it was, and of the rest nothing."""
        last = stretch.stop > self.last
        names = [name for name in values if name in self.changed(last)]

        def go_on(inner: Graph) -> list[str]:
            after = self.run(inner, self.remaining(inner, values), stretch)
            return [after[name] for name in names]

        def be_done(inner: Graph) -> list[str]:
            kept = self.changed(last=True) | {"some", "left"}
            return [values[name] if name in kept else inner.constant(self.blank(name)) for name in names]

        found = graph.branch(values["some"], go_on, be_done, self.kinds_of(names))
        return {**values, **dict(zip(names, found, strict=True))}

    def kinds_of(self, names: Sequence[str]) -> list[str]:
        """Of some values."""
        return [self.kinds.get(name, "float32") for name in names]

    def blank(self, name: str) -> np.ndarray:
        """In the place of a value that nobody reads any more: of its rank, and as wide, for what ONNX Runtime fuses."""
        shape = self.segments.shapes.get(name) or self.row_shapes.get(name, (1,))
        return np.zeros(shape, self.kinds.get(name, "float32"))

    def read(self) -> set[str]:
        """The values that layers, exits and the rule read."""
        parts = [each.template for each in (*self.segments.layers, *self.segments.exits)]
        return {name for part in (*parts, self.rule.template) for name in part.inputs}

    def changed(self, last: bool) -> set[str]:
        """The values that a stretch changes and that are read behind it."""
        answers = {"layers", "logits" if self.rule.step.own else "answers"}
        if last:
            return answers
        kept = [name.removesuffix("_after") for name in self.rule.template.outputs]
        rows = [] if self.single else self.segments.open_axes
        changes = {"states", *self.segments.exits[0].template.outputs, *kept, *rows}
        return (changes & self.read()) | answers | {"some"} | (set() if self.single else {"left", "index", "stay"})

    def run(self, graph: Graph, values: Values, stretch: range) -> Values:
        """The values behind a stretch's layers and exits."""
        values = dict(values)
        for depth in stretch:
            self.run_layer(graph, values, self.segments.layers[depth - 1])
            number = self.exit_at(depth)
            if number is not None:
                values["seen"], values["depth"] = graph.whole(number), graph.whole(depth)
                self.run_exit(graph, values, self.segments.exits[number], self.asked_of_rule(number, depth))
        self.write(graph, values)
        if depth < self.last:
            self.leave(graph, values)
        return values

    def run_layer(self, graph: Graph, values: Values, segment: Segment) -> None:
        """Put a layer's output in the place of the states."""
        (values["states"],) = graph.copy_of(segment.template, values, segment.weights, segment.template.outputs)

    def asked_of_rule(self, number: int, depth: int) -> list[str]:
        """The results of a rule's step that are read behind an exit: at the last, where all rows leave, the answer."""
        compares = rule_of(self.rule.policy).earliest is after_comparing
        if depth == self.last:
            wanted = {"answer"}
        elif number == 0 and compares and not self.may_exit(depth):
            wanted = {"past_after"}  # there is nothing to compare with: all counts stay 0
        else:
            return self.rule.template.outputs
        return [name for name in self.rule.template.outputs if name in wanted]

    def run_exit(self, graph: Graph, values: Values, segment: Segment, wanted: Sequence[str]) -> None:
        """Run an exit for the remaining rows, and a step of the rule for all: evidence, memory, and which `fire`, (B,).

        Args:
            wanted: the results of the step that are asked for.
        """
        emitted, rule = segment.template.outputs, self.rule.template
        for name, own in zip(emitted, graph.copy_of(segment.template, values, segment.weights, emitted)):
            there = not self.single and name in values  # else all rows are still there
            values[name] = graph.op("ScatterND", values[name], values["index"], own) if there else own
        made = zip(wanted, graph.copy_of(rule, values, {}, wanted))
        values |= {name.removesuffix("_after"): value for name, value in made}

    def write(self, graph: Graph, values: Values) -> None:
        """Note after how many layers the remaining rows would leave here, and with what, if not with their logits."""
        values["layers"] = self.noted(graph, values, "layers", values["depth"])
        if "answer" in values:
            values["answers"] = self.noted(graph, values, "answers", values["answer"])

    def noted(self, graph: Graph, values: Values, name: str, value: str) -> str:
        """A value that is new for the rows that remain."""
        if self.single:
            return value
        stay = values["stay"] if name == "layers" else graph.op("Unsqueeze", values["stay"], graph.whole(1))
        before = values.get(name) or graph.constant([0], self.kinds.get(name, "float32"))
        return graph.op("Where", stay, value, before)

    def leave(self, graph: Graph, values: Values) -> None:
        """The rows that fire are done."""
        stay = graph.op("Not", values["fire"])
        if self.single:
            values["some"] = stay
            return
        values["stay"] = graph.op("And", stay, values["stay"])
        values["left"] = graph.op("Size", graph.op("NonZero", values["stay"]))
        # Here, not in front of the `If` that reads it: OpenVINO would take another output in its place.
        values["some"] = graph.op("Cast", values["left"], to=KINDS["bool"])

    def remaining(self, graph: Graph, values: Values) -> Values:
        """The values of the rows that stay, cut to the longest of them; as they are where none has left."""
        if self.single:
            return values
        wanted = {*self.segments.open_axes} & self.read() | {"index"}
        names = [name for name in values if name in wanted]
        all_stay = graph.op("Equal", values["left"], graph.op("Size", values["index"]))

        def keep(inner: Graph) -> list[str]:
            return [values[name] for name in names]

        def gather(inner: Graph) -> list[str]:
            return self.gathered(inner, values, names)

        found = graph.branch(all_stay, keep, gather, self.kinds_of(names))
        return {**values, **dict(zip(names, found, strict=True))}

    def gathered(self, graph: Graph, values: Values, names: Sequence[str]) -> list[str]:
        """The values of the rows that stay."""
        places = graph.op("NonZero", graph.op("GatherND", values["stay"], values["index"]))  # among those before
        places = graph.op("Squeeze", places, graph.whole(0))
        lengths = graph.op("ReduceSum", "attention_mask", graph.whole(1), keepdims=0)
        longest = graph.op("ReduceMax", graph.op("Where", values["stay"], lengths, graph.whole(0)), keepdims=1)
        return [self.chosen(graph, name, values[name], places, longest) for name in names]

    def chosen(self, graph: Graph, name: str, value: str, places: str, longest: str) -> str:
        """Of one value the rows at some places, (N,), cut to as many tokens as the longest of them has, (1,)."""
        axes = self.segments.open_axes.get(name, {0: ROWS})
        for axis in [axis for axis, kind in axes.items() if kind == ROWS]:
            value = graph.op("Gather", value, places, axis=axis)
        cut = [axis for axis, kind in axes.items() if kind == TOKENS]
        if not cut or name.endswith(".distances"):  # of those, more than occur do no harm
            return value
        ends = longest if len(cut) == 1 else graph.op("Concat", *[longest] * len(cut), axis=0)
        return graph.op("Slice", value, graph.whole(*[0] * len(cut)), ends, graph.whole(*cut))
