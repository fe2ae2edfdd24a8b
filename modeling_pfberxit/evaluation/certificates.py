"""Certificates: with confidence 1 - delta, at most epsilon of the answers to texts like these differ from full depth's.

A rule and one sequence of its settings, from slow to fast, are chosen on some rows; on others, read once, the sequence
is tested in its order until a setting fails (fixed-sequence testing; Angelopoulos et al., Learn then Test, 2021). The
last that passed is taken, and each test may use all of delta. The claim is "at most epsilon", not what the setting that
was taken happened to show. What is counted is in `claims`, the arithmetic in `bounds`.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

from ..model.exit_policy import FULL_DEPTH, ExitPolicy, describe
from ..model.validation import refuse
from .bounds import rows_needed, share
from .claims import CLAIMS, EVERY, ONE_LABEL, Counter, Counts
from .fixed_sequence import AtMost, last_passed, sequence
from .recording import Recording


class Group(NamedTuple):
    """A label's own rows, how many of them missed, and how many it takes where they are too few."""

    rows: int
    missed: float
    needed: int = 0

    @property
    def certified(self) -> bool:
        """Whether the certificate speaks of this label."""
        return not self.needed


@dataclass(frozen=True)
class Certificate:
    """A policy with a promise, or full depth where no setting passed.

    Args:
        name: under which a config stores it: `certified`, or `certified-1%` where there are several.
        policy: the last setting that passed.
        claim: what is bounded, a name in `CLAIMS`.
        confidence: of all certificates that were made together; `delta` is this one's share of what is left of 1.
        rows, missed: that were read to certify, and what was counted on them; None where no setting passed.
        chosen_on: rows on which rule and sequence were chosen.
        tested: settings, the one that failed included.
        layers: executed on the certifying rows, mean; of `depth`.
        labels: each label's own rows, where labels are certified.
    """

    name: str
    policy: ExitPolicy
    claim: str
    epsilon: float
    confidence: float
    delta: float
    rows: int
    missed: float | None
    chosen_on: int
    tested: int
    layers: float
    depth: int
    tolerance: float | None = None
    labels: dict[str, Group] = field(default_factory=dict)

    @property
    def passed(self) -> bool:
        """Whether any setting did."""
        return self.missed is not None

    @property
    def saved(self) -> float:
        """The share of layers that the certifying rows did not run."""
        return 1 - self.layers / self.depth

    def as_point(self, **facts: Any) -> dict[str, Any]:
        """What the config stores: policy, layers saved, and the certificate with further `facts` of the texts."""
        names = ("claim", "epsilon", "confidence", "delta", "rows", "missed", "chosen_on", "tolerance")
        kept = {name: getattr(self, name) for name in names if getattr(self, name) is not None}
        if self.labels:
            kept["labels"] = {name: group._asdict() for name, group in self.labels.items()}
        costs = {"layers": round(self.layers, 3), "layers_saved": round(self.saved, 4)}
        return {**self.policy.stated(), **costs, "certificate": {**kept, **facts}}

    def in_words(self) -> str:
        """The promise, what it rests on and what it does not speak of, for a card or a terminal."""
        if not self.passed:
            return f"No setting passed at {100 * self.epsilon:g} %, on {self.rows} texts: full depth."
        words = (
            f"At most {100 * self.epsilon:g} % of {CLAIMS[self.claim].words}, with "
            f"{100 * self.confidence:g} % confidence, for texts drawn like the {self.rows} it was tested on "
            f"({describe(self.policy)})."
        )
        certain = [name for name, group in self.labels.items() if group.certified]
        if certain:
            words += f" So for each of the labels {', '.join(certain)}."
        if len(certain) < len(self.labels):
            few = (f"{name} ({group.rows} of {group.needed})" for name, group in self.labels.items() if group.needed)
            words += f" Not certified, since too few texts have them: {', '.join(few)}."
        return words


def certify(
    choose: Recording,
    certify: Recording,
    differ: Sequence[float] = (0.01,),
    confidence: float = 0.95,
    *,
    criteria: Sequence[str] | None = None,
    policy: ExitPolicy | None = None,
    tolerance: float | None = None,
    per_label: bool | Sequence[str] = False,
    claim: str = ONE_LABEL,
) -> list[Certificate]:
    """A certificate for each epsilon in `differ`, which share what `confidence` leaves of 1.

    Args:
        choose, certify: recordings of disjoint rows, which did not train the model; `certify` is to be read once.
        criteria: rules to choose among; None: all that can judge what was recorded.
        policy: the rule and its fields, where they are not to be chosen; without a threshold, this alone is.
        tolerance: how far values may lie apart and still be the same; for regression, which must have it.
        per_label: each label's own rows must pass as well, or those of some labels alone.
        claim: what is bounded, a name in `CLAIMS`.

    Returns:
        In the order of `differ`; where no setting passed, `passed` is false and the policy full depth.

    Raises:
        ValueError: values out of range, a claim that cannot be made, fewer rows than any certificate takes.
    """
    if not differ or len(set(differ)) < len(differ):
        refuse("differ", list(differ), "one rate or several, none twice")
    delta = round((1 - share("confidence", confidence)) / len(differ), 12)
    least = rows_needed(min(share("differ", epsilon) for epsilon in differ), 1 - delta)
    if len(certify) < least:
        refuse("certify", f"{len(certify)} rows", f"at least {least} for {min(differ):g} at {1 - delta:.4g}")
    planned, counter = (Counter(part, claim, tolerance, per_label) for part in (choose, certify))
    made = []
    for epsilon in differ:
        test = AtMost(planned.claim, epsilon, delta)
        settings = sequence(choose, planned, test, len(certify) / len(choose), criteria, policy)
        taken, tested = last_passed(certify, settings, counter, test)
        full = counter(certify.evidence.logits[:, -1])
        labels = {name: group(values, test) for name, values in (taken.counts if taken else full).items() if name}
        made.append(
            Certificate(
                "certified" if len(differ) == 1 else f"certified-{100 * epsilon:g}%",
                taken.policy if taken else FULL_DEPTH, claim, epsilon, confidence, delta, len(certify),
                missed(taken.counts) if taken else None, len(choose), tested,
                taken.layers if taken else certify.layers, certify.layers, tolerance, labels,
            )
        )  # fmt: skip
    return made


def group(values: np.ndarray, test: AtMost) -> Group:
    """A label's own rows, what missed of them, and whether they were too few."""
    return Group(len(values), float(values.sum()), 0 if len(values) >= test.least else test.least)


def missed(counts: Counts) -> float:
    """What was counted on all rows, or on those of the labels alone that the claim is about."""
    return float(sum(values.sum() for values in counts.values()) if EVERY not in counts else counts[EVERY].sum())
