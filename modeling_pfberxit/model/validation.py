"""Checks of single values, of what models call their labels, and when a check may look at a tensor.

A check takes the field's name and its value and returns the value in plain form (a NumPy integer becomes an `int`), or
raises a `ValueError` of one line that names the field, the value and what is allowed. The configuration runs them on
every assignment, the exit policy when it is made: the same table serves both.
"""

from __future__ import annotations

import math
import numbers
from collections.abc import Callable, Iterable, Mapping
from difflib import get_close_matches
from typing import Any, NoReturn

import torch
from torch import Tensor
from torch.fx.experimental.proxy_tensor import get_proxy_mode
from transformers.utils import is_torchdynamo_exporting, is_tracing

Check = Callable[[str, Any], Any]


def refuse(field: str, value: Any, allowed: str) -> NoReturn:
    """Raise the one-line error every check ends in."""
    raise ValueError(f"{field}={value!r}: must be {allowed}.")


PREFIXES = ("exit_", "adapter_", "prompt_", "token_exit", "lte_", "prototype", "distillation")  # of our fields


def no_misspelling(name: str, fields: Iterable[str], policy: Iterable[str]) -> None:
    """Refuse an unknown name that looks like one of our fields: it would be kept and have no effect."""
    if name in policy:
        refuse("config", name, f"written exit_{name}")
    near = get_close_matches(name, list(fields), n=1, cutoff=0.8 if not name.startswith(PREFIXES) else 0.0)
    if near:
        refuse("config", name, f"a field of PFBerxitConfig; is {near[0]} meant?")


def one_of(*names: str) -> Check:
    """A name out of `names`."""
    return entry_of(dict.fromkeys(names))


def entry_of(registry: Mapping[str, Any], aliases: Mapping[str, str] | None = None) -> Check:
    """A name in a registry as it is when a value is checked; an alias is replaced by what it stands for."""
    known = aliases or {}

    def check(field: str, value: Any) -> str:
        """The name, aliases resolved."""
        name = known.get(value, value) if isinstance(value, str) else None
        if name is None or name not in registry:
            refuse(field, value, f"one of {', '.join((*registry, *known))}")
        return name

    return check


def whole(low: int, high: float = math.inf) -> Check:
    """An integer (Python's or NumPy's, not a bool) in `[low, high]`."""

    def check(field: str, value: Any) -> int:
        """The number as an `int`."""
        if isinstance(value, bool) or not isinstance(value, numbers.Integral) or not low <= int(value) <= high:
            refuse(field, value, f"a whole number {_range(low, high)}")
        return int(value)

    return check


def real(low: float, high: float = math.inf) -> Check:
    """A finite number (an integer or a NumPy scalar will do) in `[low, high]`."""

    def check(field: str, value: Any) -> float:
        """The number as a `float`."""
        number = math.nan
        if isinstance(value, numbers.Real) and not isinstance(value, bool):
            try:
                number = float(value)
            except OverflowError:  # an integer beyond the floats
                number = math.inf
        if not (math.isfinite(number) and low <= number <= high):
            refuse(field, value, f"a finite number {_range(low, high)}")
        return number

    return check


def flag(field: str, value: Any) -> bool:
    """True or False."""
    if type(value).__name__ not in ("bool", "bool_", "np.bool"):
        refuse(field, value, "True or False")
    return bool(value)


def optional(check: Check) -> Check:
    """`None`, or what `check` allows."""
    return lambda field, value: None if value is None else check(field, value)


def each(check: Check) -> Check:
    """A non-empty list of values that `check` allows."""

    def check_all(field: str, value: Any) -> list:
        """The values as a list."""
        if isinstance(value, (str, dict)) or not isinstance(value, Iterable):
            refuse(field, value, "a list")
        values = [check(f"{field}[{i}]", item) for i, item in enumerate(value)]
        return values or refuse(field, value, "a list with at least one entry")

    return check_all


def either(single: Check, several: Check) -> Check:
    """One value for all exits, or a list with one per exit."""

    def check(field: str, value: Any) -> Any:
        """By whichever fits what was given."""
        is_list = isinstance(value, Iterable) and not isinstance(value, str) and getattr(value, "ndim", 1) > 0
        return (several if is_list else single)(field, value)

    return check


def by_label(field: str, value: Any) -> dict[str, float | None]:
    """Thresholds for some labels, by name or number, from a dictionary or pairs; None: never below or above it."""
    pairs = list(value.items()) if isinstance(value, Mapping) else value
    allowed = "a dictionary from labels, by name or number, to thresholds or None"
    if isinstance(pairs, str) or not isinstance(pairs, Iterable):
        refuse(field, value, allowed)
    found: dict[str, float | None] = {}
    for pair in pairs:
        if isinstance(pair, str) or not isinstance(pair, Iterable) or len(pair := tuple(pair)) != 2:
            refuse(field, value, allowed)
        label = pair[0] if isinstance(pair[0], str) and pair[0] else str(whole(0)(f"{field}'s label", pair[0]))
        if label in found:
            refuse(field, value, "every label once, by its name or its number")
        found[label] = optional(real(0.0))(f"{field}[{label!r}]", pair[1])
    return found or refuse(field, value, "left out, or with a label at least")


def increasing(field: str, value: Any) -> list[int]:
    """A list of layer numbers (1-based), each above the one before."""
    layers = each(whole(1))(field, value)
    if any(a >= b for a, b in zip(layers, layers[1:])):
        refuse(field, value, "layer numbers in increasing order, none twice")
    return layers


GLOBAL = "global"


def layers_or_global(field: str, value: Any) -> list[int] | str:
    """A list of layer numbers, or `global`."""
    return value if value == GLOBAL else increasing(field, value)


def layer_range(field: str, value: Any) -> list[int]:
    """The lowest and the highest of some layers (1-based)."""
    layers = each(whole(1))(field, value)
    return layers if len(layers) == 2 and layers[0] <= layers[1] else refuse(field, value, "two layers, lowest first")


def above_zero(field: str, value: Any) -> float:
    """A finite number that something can be divided by."""
    number = real(0.0)(field, value)
    return number or refuse(field, value, "a finite number above 0")


def mapping(field: str, value: Any) -> dict:
    """A dictionary."""
    return value if isinstance(value, dict) else refuse(field, value, "a dictionary")


def text(field: str, value: Any) -> str:
    """A non-empty string."""
    return value if isinstance(value, str) and value else refuse(field, value, "a non-empty string")


def _range(low: float, high: float) -> str:
    return f">= {low}" if high == math.inf else f"between {low} and {high}"


# ---- labels ----------------------------------------------------------------------------------------------------------


def label_names(config: Any) -> list[str]:
    """The names of a model's outputs, in their order; those of a classifier may be numbers in its config."""
    return [str(config.id2label[number]) for number in range(config.num_labels)]


def names_by_id(config: Any, given: Mapping[str, Any]) -> dict[int, Any] | None:
    """The names that a config is given for its outputs, by number; None where it is given none.

    Args:
        given: further values that it is made of, of which `num_labels` is read.

    Raises:
        ValueError: they are not the names of 0, 1, 2 ..., or not as many as there are outputs.
    """
    id2label, label2id, num_labels = config.id2label, config.label2id, given.get("num_labels")
    if "num_labels" in given:
        whole(1)("num_labels", num_labels)
    if id2label is None and label2id:
        id2label = {number: name for name, number in mapping("label2id", label2id).items()}
        if num_labels not in (None, len(id2label)):
            refuse("num_labels", num_labels, f"{len(id2label)}, as many as there are names in label2id")
    return None if id2label is None else names_by_number("id2label", id2label)


def names_by_number(field: str, value: Any) -> dict[int, Any]:
    """Names of 0, 1, 2 ... by their numbers, which JSON has as strings."""
    numbers = sorted(map(str, range(len(value)))) if isinstance(value, Mapping) else []
    if not numbers or sorted(map(str, value)) != numbers:
        refuse(field, value, "the names of 0, 1, 2 ... in a dict: {0: 'no', 1: 'yes'}")
    return {int(number): name for number, name in value.items()}


def either_way(options: dict[str, Any]) -> dict[str, Any]:
    """Options of a load; where they name labels by number or numbers by label, they do both."""
    id2label, label2id = options.get("id2label"), options.get("label2id")
    if label2id and id2label is None:
        return {**options, "id2label": {number: name for name, number in mapping("label2id", label2id).items()}}
    if id2label and label2id is None:
        names = names_by_number("id2label", id2label)
        return {**options, "label2id": {name: number for number, name in names.items()}}
    return options


# ---- tracers ---------------------------------------------------------------------------------------------------------


def is_watched(tensor: Tensor) -> bool:
    """Whether the tensor has no values or they belong to a tracer: torch.compile, export, jit, make_fx, CUDA graphs."""
    return is_tracing(tensor) or tensor.is_meta or get_proxy_mode() is not None


def is_recorded(tensor: Tensor) -> bool:
    """Whether one graph is kept for all that follows. `torch.compile` instead comes back where values are asked for."""
    return is_watched(tensor) and (is_torchdynamo_exporting() or not torch.compiler.is_compiling())


def is_readable(tensor: Tensor) -> bool:
    """Whether a check may read the values: they exist, are not traced, and reading them waits for no accelerator."""
    return tensor.device.type == "cpu" and not is_watched(tensor)
