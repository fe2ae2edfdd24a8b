"""Checks for the values users give.

A check takes the field's name and its value and returns the value in plain form (a NumPy integer becomes an `int`), or
raises a `ValueError` of one line that names the field, the value and what is allowed. The configuration runs them on
every assignment, the exit policy when it is made: the same table serves both.
"""

import math
import numbers
from collections.abc import Callable, Iterable, Mapping
from difflib import get_close_matches
from typing import Any, NoReturn

Check = Callable[[str, Any], Any]


def refuse(field: str, value: Any, allowed: str) -> NoReturn:
    """Raise the one-line error every check ends in."""
    raise ValueError(f"{field}={value!r}: must be {allowed}.")


OWN = ("exit_", "adapter_", "prompt_", "token_exit", "lte_", "prototype", "distillation")  # how our fields begin


def no_misspelling(name: str, fields: Iterable[str], policy: Iterable[str]) -> None:
    """Refuse a name that nobody knows where it looks like one of ours: it would be kept and have no effect."""
    if name in policy:
        refuse("config", name, f"written exit_{name}")
    near = get_close_matches(name, list(fields), n=1, cutoff=0.8 if not name.startswith(OWN) else 0.0)
    if near:
        refuse("config", name, f"a field of PFBerxitConfig; is {near[0]} meant?")


def one_of(*names: str) -> Check:
    """A name out of `names`."""
    return entry_of(dict.fromkeys(names))


def entry_of(registry: Mapping[str, Any], aliases: Mapping[str, str] | None = None) -> Check:
    """A name in a registry as it is when a value is checked; an alias is replaced by what it stands for."""

    def check(field: str, value: Any) -> str:
        """The name, aliases resolved."""
        value = (aliases or {}).get(value, value) if isinstance(value, str) else value
        if not isinstance(value, str) or value not in registry:
            refuse(field, value, "one of " + ", ".join((*registry, *(aliases or ()))))
        return value

    return check


def whole(low: int, high: float = math.inf) -> Check:
    """An integer (Python's or NumPy's, not a bool) in `[low, high]`."""

    def check(field: str, value: Any) -> int:
        """The number as an `int`."""
        if isinstance(value, bool) or not isinstance(value, numbers.Integral) or not low <= value <= high:
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


def increasing(field: str, value: Any) -> list[int]:
    """A list of layer numbers (1-based), each above the one before."""
    layers = each(whole(1))(field, value)
    if any(a >= b for a, b in zip(layers, layers[1:])):
        refuse(field, value, "layer numbers in increasing order, none twice")
    return layers


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
