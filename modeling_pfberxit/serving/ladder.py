"""The certified operating points of a model as rungs of a ladder: full depth in front, then from careful to fast."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from ..evaluation.checking import unlike
from ..evaluation.claims import ONE_LABEL
from ..model.validation import real

FULL = "full-depth"  # the name of no early exit


@dataclass(frozen=True)
class Rung:
    """A setting with its promise.

    Args:
        name: of the operating point.
        epsilon: the share of answers that may differ from full depth's; 0 at full depth.
        layers: executed on the texts that certified it, mean; None: all.
        tolerance: how far values may lie apart and still be the same; regression.
    """

    name: str
    epsilon: float
    layers: float | None = None
    tolerance: float = 0.0


FULL_RUNG = Rung(FULL, 0.0)


@dataclass(frozen=True)
class Ladder:
    """Rungs from careful to fast, full depth in front; operating points that are none, by name, with the reason."""

    rungs: tuple[Rung, ...] = (FULL_RUNG,)
    left_out: dict[str, str] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.rungs)

    def __iter__(self) -> Iterator[Rung]:
        return iter(self.rungs)

    def __getitem__(self, number: int) -> Rung:
        return self.rungs[number]

    def lowest(self, differ: float | None = None) -> int:
        """The number of the fastest rung under which at most a share of the answers may differ; None: the last.

        Raises:
            ValueError: a share out of range.
        """
        if differ is None:
            return len(self) - 1
        most = real(0.0, 1.0)("differ", differ)
        return sum(rung.epsilon <= most for rung in self) - 1


def ladder_of(points: Mapping[str, Mapping[str, Any]], facts: Mapping[str, Any] | None = None) -> Ladder:
    """The rungs that a model's operating points make; full depth alone where none of them is certified.

    Args:
        points: as the config, or an exported file, has them.
        facts: what holds now of what a certificate is bound to: weights, dtype, length of texts.
    """
    left_out, able = {}, list[Rung]()
    for name, point in points.items():
        if reason := why_not(dict(point), dict(facts or {})):
            left_out[name] = reason
        else:
            about = point["certificate"]
            able.append(Rung(name, about["epsilon"], point.get("layers"), about.get("tolerance") or 0.0))
    rungs = [FULL_RUNG]
    for rung in sorted(able, key=lambda rung: (rung.epsilon, cost(rung))):
        if cost(rung) < cost(rungs[-1]) or rung.layers is None:
            rungs.append(rung)
        else:
            left_out[rung.name] = f"no faster than {rungs[-1].name}, which promises as much or more"
    return Ladder(tuple(rungs), left_out)


def cost(rung: Rung) -> float:
    """Mean layers; infinite where nobody has measured them."""
    return float("inf") if rung.layers is None else rung.layers


def why_not(point: dict[str, Any], facts: dict[str, Any]) -> str:
    """Why an operating point is no rung; empty where it is one."""
    about = point.get("certificate")
    if about is None:
        return "it has no certificate"
    if about["claim"] != ONE_LABEL or not about.get("whole", True):
        return "its certificate does not speak of all answers that differ from full depth's"
    if changed := unlike(point, facts):
        return "its certificate was made under " + ", ".join(f"{fact} {value}" for fact, value in changed.items())
    return ""
