"""Certificates held against new texts, day after day: evidence that a rate is above what was certified, kept in a file.

Evidence is a supermartingale under every rate up to epsilon (`betting`), so one may look whenever one likes, and it
wakes up after years without a miss. It can show that a certificate is broken; that it holds, no number of texts shows.
A text counts once, whenever it comes.
"""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..model.criteria import numbered
from ..model.exit_policy import POLICY_CHECKS, ExitPolicy
from ..model.persistence import replacing
from ..model.validation import refuse
from .betting import after, money, no_bets
from .bounds import ALTERNATIVES, evidence, share
from .claims import CLAIMS, EVERY, Counter
from .recording import Recording


@dataclass
class Evidence:
    """What has been seen of one certificate so far.

    Args:
        point: the operating point, as the config has it.
        rows, missed: by group: all rows (an empty name), and each certified label's own.
        bets, kept: by group, on larger rates (A,), and what is not laid out yet.
        now, most: the evidence after the last text, and at its highest.
    """

    point: dict[str, Any]
    rows: dict[str, int] = field(default_factory=dict)
    missed: dict[str, int] = field(default_factory=dict)
    bets: dict[str, list[float]] = field(default_factory=dict)
    kept: dict[str, float] = field(default_factory=dict)
    now: float = 1.0
    most: float = 1.0

    def add(self, name: str, own: np.ndarray, missed: np.ndarray, epsilon: float) -> list[float]:
        """Bet on the rows of a group, (N,) whether each is one and whether it missed: the evidence after each row.

        A state without bets is of a version that placed all of them in front of the first row.
        """
        rows, misses = self.rows.get(name, 0), self.missed.get(name, 0)
        if rows and name not in self.bets:
            bets, kept = evidence(misses, rows, epsilon) / len(ALTERNATIVES), 0.0
        else:
            bets, kept = np.array(self.bets.get(name, no_bets())), self.kept.get(name, 1.0)
        path = []
        for belongs, miss in zip(own.tolist(), missed.tolist()):
            if belongs:
                bets, kept = after(bets, kept, rows, np.array(bool(miss)), epsilon)
                rows, misses = rows + 1, misses + int(miss)
            path.append(float(money(bets, kept)))
        self.rows[name], self.missed[name] = rows, misses
        self.bets[name], self.kept[name] = bets.tolist(), kept
        return path

    def in_words(self, certificates: int, confidence: float) -> str:
        """What was counted, and how far the evidence has come."""
        counts = (f"{self.missed[k]} of {n:,}" + (f" {k}" if k else " texts") for k, n in self.rows.items())
        limit = limit_of(certificates, confidence)
        return (
            f"{', '.join(counts)}; evidence {self.now:.3g}, at most {self.most:.3g} so far, broken from {limit:.3g} on"
        )


@dataclass
class State:
    """What has been seen of all certificates of a model, and of which texts."""

    model: Any = None  # hashes of the weights
    certificates: dict[str, Evidence] = field(default_factory=dict)
    texts: list[str] = field(default_factory=list)

    @classmethod
    def load(cls, path: str | None, model: Any) -> "State":
        """Read a file; an empty state where there is none yet.

        Raises:
            ValueError: it is of another model. OSError: it is damaged.
        """
        if path is None or not Path(path).exists():
            return cls(model)
        try:
            kept = json.loads(Path(path).read_text(encoding="utf-8"))
            found = cls(kept["model"], {k: Evidence(**v) for k, v in kept["certificates"].items()}, kept["texts"])
        except (json.JSONDecodeError, KeyError, TypeError) as error:
            raise OSError(f"{path}: truncated, or no state of a check ({error}).") from error
        return found if found.model == model else refuse("state", path, "a file of this model; it is of another one")

    def save(self, path: str) -> None:
        """Write it, in one move."""
        with replacing(Path(path)) as draft:
            draft.write_text(json.dumps(asdict(self), indent=1) + "\n", encoding="utf-8")

    @property
    def seen(self) -> Tensor:
        """The hashes of all texts so far."""
        return torch.tensor([as_number(text) for text in self.texts], dtype=torch.int64)


def as_text(number: int) -> str:
    """A text's hash as a file keeps it."""
    return f"{number & (2**64 - 1):016x}"


def as_number(text: str) -> int:
    """The way back."""
    return int.from_bytes(bytes.fromhex(text), "big", signed=True)


def certified_points(points: dict[str, dict[str, Any]], named: str | None = None) -> dict[str, dict[str, Any]]:
    """The operating points whose certificates can be held against texts: all, or the one that is named.

    Raises:
        ValueError: there is none of that name, or none at all.
    """
    able = {
        name: point
        for name, point in points.items()
        if "certificate" in point and CLAIMS[point["certificate"]["claim"]].counted
    }
    if named is not None and named not in able:
        refuse("policy", named, f"one of the certificates of a rate: {', '.join(able) or 'none'}")
    if not able:
        refuse("model", list(points), "one with a certificate of a rate among its operating points")
    return able if named is None else {named: able[named]}


def check_alike(points: dict[str, dict[str, Any]], now: dict[str, Any]) -> None:
    """Refuse to check certificates under other facts: weights, dtype, length or columns of texts."""
    for name, point in points.items():
        for fact, value in unlike(point, now).items():
            refuse(fact, now[fact], f"as {name} was certified, {value}")


def unlike(point: dict[str, Any], now: dict[str, Any]) -> dict[str, Any]:
    """The facts that a certificate was made under, by name, where they are not as they are now."""
    about = point["certificate"]
    return {fact: about[fact] for fact in now if fact in about and about[fact] != now[fact]}


def void(
    points: dict[str, dict[str, Any]], rule: ExitPolicy, now: dict[str, Any], labels: Sequence[str]
) -> dict[str, dict[str, Any]]:
    """The certificates of a rule that do not hold now, by name, with the facts that they were made under.

    Args:
        rule: with numbers in the place of `labels`, as a call has it.
    """
    certified = {name: point for name, point in points.items() if "certificate" in point}
    certified = {name: point for name, point in certified.items() if numbered(policy_of(point), labels) == rule}
    return {name: facts for name, point in certified.items() if (facts := unlike(point, now))}


def policy_of(point: dict[str, Any]) -> ExitPolicy:
    """The policy of an operating point."""
    return ExitPolicy(**{name: value for name, value in point.items() if name in POLICY_CHECKS})


def look(state: State, recording: Recording, numbers: Tensor, points: dict[str, dict[str, Any]]) -> None:
    """Add new texts to the evidence against each certificate, in the order of their hashes: a file may be sorted.

    Args:
        recording: of texts that are new to the state, with their hashes (N,).
    """
    numbers, order = numbers.sort()
    recording = recording.select(order)
    for name, point in points.items():
        known = state.certificates.setdefault(name, Evidence(point))
        if known.point != point:
            refuse("state", name, "of the certificate that the model now has; it was made anew since")
        add(known, recording)
    state.texts += [as_text(number) for number in numbers.tolist()]


def add(known: Evidence, recording: Recording) -> None:
    """Add rows to the evidence against one certificate: the mean of that against every group's rate."""
    about = known.point["certificate"]
    policy = policy_of(known.point)
    labels = [name for name, group in about.get("labels", {}).items() if not group["needed"]]
    per_label = bool(labels) if about.get("whole", True) else labels
    counter = Counter(recording, about["claim"], about.get("tolerance"), per_label)
    counts, paths = counter(recording.replay(policy)[0]), []
    for name in counts.keys() & {EVERY, *labels}:
        own = np.ones(len(recording), bool) if name == EVERY else counter.own[name].numpy()
        missed = np.zeros(len(recording))
        missed[own] = counts[name]
        paths.append(known.add(name, own, missed, about["epsilon"]))
    path = np.mean(paths, axis=0)
    known.now, known.most = float(path[-1]), max(known.most, float(path.max()))


def verdicts(state: State, names: Sequence[str], confidence: float) -> dict[str, bool]:
    """Whether each certificate is broken; all verdicts together are right with this confidence."""
    limit = limit_of(len(names), confidence)
    return {name: name in state.certificates and state.certificates[name].most >= limit for name in names}


def limit_of(certificates: int, confidence: float) -> float:
    """The evidence that breaks one of so many certificates."""
    return certificates / (1 - share("confidence", confidence))
