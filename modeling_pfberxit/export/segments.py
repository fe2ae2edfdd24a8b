"""All parts of a model, translated: one template for all layers that are built alike, one for all exits; weights."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, is_dataclass
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from ..model.exit_policy import ExitPolicy
from ..model.modeling_pfberxit import PFBerxitForSequenceClassification
from .parts import ROWS, TOKENS, Exit, Layer, Start, Step, example_state, examples, open_sizes, prepared
from .templates import Template, translate

EXIT_PARTS = ("bypass_adapters", "poolers", "pooler_norms", "classifiers", "ltes", "prototypes")


class Segment(NamedTuple):
    """A template with the weights of one layer or exit; in a graph, also names there."""

    template: Template
    weights: dict[str, Any]


@dataclass(frozen=True)
class Segments:
    """What files of one model are made of, whatever the rule.

    Args:
        model: the copy of it whose parts they are.
        open_axes: of every tensor that goes from part to part, the axes that are rows and those that are tokens.
        kinds: of the same tensors, float32, int64 or bool.
        shapes: theirs, where open sizes are 1.
    """

    model: PFBerxitForSequenceClassification
    start: Segment
    layers: list[Segment]
    exits: list[Segment]
    open_axes: dict[str, dict[int, str]]
    kinds: dict[str, str]
    shapes: dict[str, tuple[int, ...]]


def segments_of(model: PFBerxitForSequenceClassification) -> Segments:
    """Translate a model's parts; a minute or less on a core, however many layers there are."""
    model = prepared(model)
    start, batch = Start(model), examples(model)
    with torch.no_grad():
        states = dict(zip(start.outputs, start(*batch.values()), strict=True)) | {"mask": batch["attention_mask"]}
        wider = start(*(nn.functional.pad(value, (0, 2, 0, 1), value=1) for value in batch.values()))
    axes = {name: grown(states[name], large) for name, large in zip(start.outputs, wider, strict=True)}
    axes["mask"] = {0: ROWS, 1: TOKENS}
    per_batch = {name: {0: ROWS, 1: TOKENS} for name in batch}
    whole = translate(start, open_sizes(batch, per_batch), start.outputs)
    given = partial(part_inputs, states, axes)
    layers = alike([Layer(model, number, start.fields) for number in range(len(model.depths))], given, layer_built)
    exits = alike([Exit(model, number) for number in range(len(model.exit_depths))], given, exit_built)
    kinds = {name: str(value.dtype).removeprefix("torch.") for name, value in states.items()}
    shapes = {name: tuple(1 if axis in axes[name] else size for axis, size in enumerate(value.shape))
              for name, value in states.items()}  # fmt: skip
    return Segments(model, Segment(whole, weights_of(start, whole, {})), layers, exits, axes, kinds, shapes)


def part_inputs(states: Mapping[str, Tensor], axes: Mapping[str, Mapping[int, str]], part: Layer | Exit) -> Any:
    """Examples of what a layer or exit reads."""
    return open_sizes({name: states[name] for name in part.inputs}, axes)


def grown(small: Tensor, large: Tensor) -> dict[int, str]:
    """The axes that have grown by one row or by two tokens; distances grow by two for each."""
    pairs = enumerate(zip(small.shape, large.shape, strict=True))
    return {axis: ROWS if b - a == 1 else TOKENS for axis, (a, b) in pairs if a != b}


def alike(parts: list[Any], given: Callable, built: Callable[[Any], Any]) -> list[Segment]:
    """Every part with the template of the first that is built as it is."""
    found: list[tuple[Any, Any, Template]] = []
    segments = []
    for part in parts:
        same = next((each for each in found if built_alike(each[0], built(part))), None)
        if same is None:
            outputs = getattr(part, "outputs", ["output"])
            same = (built(part), part, translate(part, given(part), outputs))
            found.append(same)
        segments.append(Segment(same[2], weights_of(part, same[2], renamed(same[0], built(part), part))))
    return segments


def layer_built(part: Layer) -> Any:
    """What a layer is made of."""
    return part.view, part.model.depths[part.number], part.queries


def exit_built(part: Exit) -> Any:
    """What an exit is made of: its head, and its own modules or those it shares."""
    exits = part.model.exits
    own = [getattr(exits, name) for name in EXIT_PARTS]
    modules = [None if not each else each[0] if len(each) == 1 else each[part.number] if part.number < len(each)
               else None for each in own]  # fmt: skip
    if len(exits.bypass_adapters) and part.number >= len(exits.bypass_adapters):
        modules[0] = None
    return exits.heads[part.number if len(exits.heads) > 1 else 0], modules


def built_alike(one: Any, other: Any) -> bool:
    """Whether two objects are made of the same things in all but their weights."""
    if isinstance(one, nn.Module):
        return type(one) is type(other) and shapes(one) == shapes(other) and str(one) == str(other)
    if is_dataclass(one):
        names = [field.name for field in fields(one)]
        return type(one) is type(other) and all(built_alike(getattr(one, n), getattr(other, n)) for n in names)
    if isinstance(one, (tuple, list)):
        return type(one) is type(other) and len(one) == len(other) and all(map(built_alike, one, other))
    return one == other


def shapes(module: nn.Module) -> dict[str, torch.Size]:
    """Of all weights, by name."""
    return {name: value.shape for name, value in module.state_dict().items()}


def modules_in(built: Any) -> list[nn.Module]:
    """The modules in what `layer_built` or `exit_built` returns, in order."""
    if isinstance(built, nn.Module):
        return [built]
    if is_dataclass(built):
        built = [getattr(built, field.name) for field in fields(built)]
    return [module for each in built for module in modules_in(each)] if isinstance(built, (tuple, list)) else []


def renamed(one: Any, other: Any, part: Layer | Exit) -> dict[str, str]:
    """For every weight of one part, under which name the other has its own."""
    paths = {id(module): name for name, module in part.named_modules(remove_duplicate=False)}
    found: dict[str, str] = {}
    for mine, its in zip(modules_in(one), modules_in(other), strict=True):
        if id(mine) in paths and id(its) in paths:
            names = [name for name, _ in [*mine.named_parameters(), *mine.named_buffers()]]
            found |= {f"{paths[id(mine)]}.{name}": f"{paths[id(its)]}.{name}" for name in names}
    return found


def weights_of(part: nn.Module, template: Template, names: Mapping[str, str]) -> dict[str, np.ndarray]:
    """The arrays a template reads, for a part that calls its weights by other names."""
    tensors = {
        **dict(part.named_parameters(remove_duplicate=False)),
        **dict(part.named_buffers(remove_duplicate=False)),
    }
    found = {name: tensors[names.get(own, own)].detach() for name, (own, _) in template.weights.items()}
    return {name: as_read(value, template.weights[name][1]) for name, value in found.items()}


def as_read(weight: Tensor, order: list[int] | None) -> np.ndarray:
    """A weight with its axes in the order in which it is read."""
    return weight.numpy() if order is None else np.ascontiguousarray(weight.permute(order).numpy())


def rule_of_rows(segments: Segments, policy: ExitPolicy, problem_type: str) -> tuple[Step, Template]:
    """A step of a policy's rule, translated."""
    model = segments.model
    names = [name for name in segments.exits[0].template.outputs if name != "logits"]
    step = Step(policy, len(model.exit_depths), model.num_labels, problem_type, names)
    example = example_state(step, 3, model.num_labels)
    axes: dict[str, dict[int, str]] = {name: {} if name in ("seen", "depth") else {0: ROWS} for name in example}
    return step, translate(step, open_sizes(example, axes), step.outputs)
