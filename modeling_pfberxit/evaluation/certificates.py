"""Certificates: with confidence 1 - delta, at most epsilon of the answers to texts like these differ from full depth's.

A rule and one sequence of its settings, from slow to fast, are chosen on some rows; on others, read once, the sequence
is tested in its order until a setting fails (fixed-sequence testing; Angelopoulos et al., Learn then Test, 2021). The
last that passed is taken, and each test may use all of delta. The claim is "at most epsilon", not what the setting that
was taken happened to show. What is counted is in `claims`, the arithmetic in `bounds`.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch

from ..model.exit_policy import FULL_DEPTH, ExitPolicy
from ..model.validation import refuse
from .bounds import rows_needed, share
from .claims import CLAIMS, EVERY, ONE_LABEL, Counter, Counts
from .fixed_sequence import AtMost, compared, last_passed, sequence
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
        whole: whether the claim is about all rows, or about the labels' own alone.
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
    whole: bool = True

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
            kept |= {"labels": {name: group._asdict() for name, group in self.labels.items()}, "whole": self.whole}
        costs = {"layers": round(self.layers, 3), "layers_saved": round(self.saved, 4)}
        return {**self.policy.stated(), **costs, "certificate": {**kept, **facts}}

    def in_words(self) -> str:
        """The promise in plain words."""
        return (
            in_words(self.as_point())
            if self.passed
            else (f"No setting passed at {100 * self.epsilon:g} %, on {self.rows} texts: full depth.")
        )


def in_words(point: dict[str, Any]) -> str:
    """What a stored certificate promises, on what it rests and what it does not speak of, in plain words."""
    about = point["certificate"]
    what = CLAIMS[about["claim"]].words if about.get("whole", True) else "a label's own texts that get another answer"
    words = (
        f"At most {100 * about['epsilon']:g} % of {what}, with {100 * about['confidence']:g} % confidence, for texts "
        f"drawn like the {about['rows']:,} on which it was tested"
    )
    words += f", cut to {about['max_length']} tokens" if "max_length" in about else ""
    words += f" ({about['missed']:g} counted there"
    words += f"; values up to {about['tolerance']:g} apart are the same)." if "tolerance" in about else ")."
    labels = {name: Group(**group) for name, group in about.get("labels", {}).items()}
    certain = [name for name, group in labels.items() if group.certified]
    few = [f"{name} ({group.rows} of {group.needed})" for name, group in labels.items() if not group.certified]
    words += f" This holds for each of these labels on its own: {', '.join(certain)}." if certain else ""
    words += f" Not certified, since too few texts have them: {', '.join(few)}." if few else ""
    return words


def certify(
    choose: Recording | None,
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
        choose, certify: recordings of disjoint rows, which did not train the model; `certify` is to be read once. A
            whole `policy` needs none to choose on.
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
    names = names_of(differ)
    delta = round((1 - share("confidence", confidence)) / len(differ), 12)
    least = rows_needed(min(share("differ", epsilon) for epsilon in differ), 1 - delta)
    if len(certify) < least:
        refuse("certify", f"{len(certify)} rows", f"at least {least} for {min(differ):g} at {1 - delta:.4g}")
    certify = shuffled(certify)
    counter = Counter(certify, claim, tolerance, per_label)
    if policy is not None and policy.is_active(certify.problem_type):
        settings_for = always(policy)
    else:
        choose = choose or refuse("choose", None, "rows to choose on, where no whole policy is given")
        settings_for = planned(choose, Counter(choose, claim, tolerance, per_label), len(certify), criteria, policy)
    facts: dict[str, Any] = {"claim": claim, "confidence": confidence, "delta": delta, "tolerance": tolerance}
    made = []
    for name, epsilon in zip(names, differ):
        test = AtMost(counter.claim, epsilon, delta)
        found = tested(certify, settings_for(test), counter, test)
        made.append(
            Certificate(name=name, epsilon=epsilon, chosen_on=len(choose or ()), whole=counter.whole, **found, **facts)
        )
    return made


def names_of(differ: Sequence[float]) -> list[str]:
    """What the certificates of these rates are called: `certified`, or `certified-1%` for each of several."""
    if not differ or len(set(differ)) < len(differ):
        refuse("differ", list(differ), "one rate or several, none twice")
    return ["certified"] if len(differ) == 1 else [f"certified-{100 * epsilon:g}%" for epsilon in differ]


def shuffled(recording: Recording) -> Recording:
    """The rows in a random order, always the same one: a file may be sorted, and bets want an order without a plan."""
    return recording.select(torch.randperm(len(recording), generator=torch.Generator().manual_seed(0)))


def always(policy: ExitPolicy) -> Callable[[AtMost], list[ExitPolicy]]:
    """What gives one setting for every test."""
    return lambda test: [policy]


def planned(
    choose: Recording, counter: Counter, rows: int, criteria: Sequence[str] | None, base: ExitPolicy | None
) -> Callable[[AtMost], list[ExitPolicy]]:
    """What gives the settings for a test on so many rows; the rules are replayed once for all tests."""
    tried = compared(choose, counter, criteria, base)
    return lambda test: sequence(choose, counter, test, rows / len(choose), tried)


def tested(certify: Recording, settings: Sequence[ExitPolicy], counter: Counter, test: AtMost) -> dict[str, Any]:
    """What testing the settings in their order comes to, as fields of a certificate."""
    taken, number = last_passed(certify, settings, counter, test)
    found = {"rows": len(certify), "tested": number, "depth": certify.layers}
    if taken is None:
        full = counter(certify.evidence.logits[:, -1])
        return {**found, "policy": FULL_DEPTH, "missed": None, "layers": certify.layers, "labels": groups(full, test)}
    labels = groups(taken.counts, test)
    return {**found, "policy": taken.policy, "missed": missed(taken.counts), "layers": taken.layers, "labels": labels}


def groups(counts: Counts, test: AtMost) -> dict[str, Group]:
    """Each label's own rows, what missed of them, and whether they were too few."""
    return {
        name: Group(len(values), float(values.sum()), 0 if len(values) >= test.least else test.least)
        for name, values in counts.items()
        if name != EVERY
    }


def missed(counts: Counts) -> float:
    """What was counted on all rows, or on those of the labels alone that the claim is about."""
    return float(sum(values.sum() for values in counts.values()) if EVERY not in counts else counts[EVERY].sum())
