"""The fields of an exit policy, and which of them a function of a rule reads: it declares so, and all else derives.

Checks of a policy, what a search varies, what replay may share and how a policy is described follow from what is
declared. The fields are explained and checked in `exit_policy`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any, TypeVar

Function = TypeVar("Function", bound=Callable)


@dataclass(frozen=True)
class PolicyFields:
    """How rows leave during one call, unchecked. `exit_policy.ExitPolicy` explains the fields."""

    criterion: str | None = "divergence_v1"
    divergence: str = "kl"
    threshold: float | tuple[float, ...] | None = None
    patience: int = 2
    window: int = 3
    min_layer: int = 1
    appointed_layer: int | None = None
    normalize: bool = False
    window_rule: str = "agree"
    window_range: float = 0.1
    ensemble: str = "none"
    distance_weight: float = 1.0
    nsp_weight: float = 0.1
    label_thresholds: Any = None  # pairs of a label and its threshold, or None
    answer: str = "label"
    unsure_below: float = 0.6


ABSTAIN = "abstain"  # the `answer` under which rows may leave as unsure
ANSWERS = ("label", ABSTAIN)
NAMES = tuple(field.name for field in fields(PolicyFields))


def read_nothing(policy: PolicyFields) -> tuple[str, ...]:
    """No field."""
    return ()


def reads(
    *names: str, also: Callable[[PolicyFields], tuple[str, ...]] = read_nothing, above: bool = False
) -> Callable[[Function], Function]:
    """Declare which fields of the policy a function of a rule reads.

    Args:
        names: the fields, of a decision the one that is turned first in front.
        also: fields that are read only under some policies.
        above: of a decision: rows leave at a score of tau or above it, not below.
    """
    if unknown := set(names) - set(NAMES):
        raise ValueError(f"reads={sorted(unknown)}: must be fields of {', '.join(NAMES)}.")

    def declare(function: Function) -> Function:
        vars(function).update(reads=names, also=also, above=above)
        return function

    return declare


def declared(function: Callable) -> tuple[str, ...]:
    """The fields a function reads under every policy, in the order it declares them."""
    return getattr(function, "reads", ())


def read_by(function: Callable, policy: PolicyFields) -> tuple[str, ...]:
    """The fields a function reads under this policy."""
    return (*declared(function), *getattr(function, "also", read_nothing)(policy))
