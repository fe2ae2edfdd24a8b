"""Fixed-sequence testing: one rule and one order of its settings, chosen on some rows and tested in it on others.

Every test may use all of delta, since the order is fixed before the testing rows are read and a failure ends it. So
a sequence should begin where passing is likely, and the rule be the one that is fastest where it will probably end.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import groupby, takewhile
from typing import Any, NamedTuple

import numpy as np

from ..model.criteria import rule_of
from ..model.evidence import PolicyFields
from ..model.exit_policy import ExitPolicy
from ..model.validation import refuse
from .bounds import rows_needed
from .claims import EVERY, Claim, Counter, Counts
from .frontier import first_values, grid, judging, varied
from .recording import Recording

MARGINS = (1.0, 0.5, 0.0)  # rows counted as missed beside those that were: rules are compared where they surely pass
COARSE, FINE = 30, 300  # values of a rule's first knob: where rules are compared, and in the sequence
NOWHERE = float("inf")  # layers of a family none of whose settings can be expected to pass
HOPELESS = 3.0  # a setting that missed so many times epsilon where it was chosen is worth no test


class AtMost(NamedTuple):
    """A test of a setting: whether every group's rate is at most epsilon, at level delta.

    A setting passes if every group's own test does; that the claim of any of them is wrong then has probability delta
    at most (an intersection of tests), so groups share nothing. Groups that could not pass even without a miss are
    left out.
    """

    claim: Claim
    epsilon: float
    delta: float

    def passed(self, counts: Counts) -> bool:
        """Whether all groups with enough rows pass, and there is one."""
        able = [values for name, values in counts.items() if name == EVERY or len(values) >= self.least]
        return bool(able) and all(self.claim.p_value(each, self.epsilon, self.delta) <= self.delta for each in able)

    def expected(self, counts: Counts, scale: float, margin: float) -> bool:
        """Whether a setting will probably pass on `scale` times as many rows, were `margin` of these missed as well."""
        return self.passed({name: enlarged(values, scale, margin, self.claim) for name, values in counts.items()})

    @property
    def least(self) -> int:
        """The fewest rows that can pass."""
        return rows_needed(self.epsilon, 1 - self.delta)


def enlarged(values: np.ndarray, scale: float, margin: float, claim: Claim) -> np.ndarray:
    """As many values as `scale` times the rows, with their mean and a margin, in a random order: (N,) -> (N',)."""
    size = round(scale * len(values))
    if not claim.counted:  # a bet is over once it is won: what comes last would not count
        return np.random.default_rng(0).permutation(np.resize(np.append(values, margin), size))
    rate = (values.sum() + margin) / (len(values) + margin) if len(values) else 0.0
    return (np.arange(size) < np.ceil(size * rate - 1e-9)).astype(float)


# ---- chosen ----------------------------------------------------------------------------------------------------------


class Setting(NamedTuple):
    """A policy, the mean layers it runs, what is counted of its answers, and at worst: were all that differ missed."""

    policy: ExitPolicy
    layers: float
    counts: Counts
    worst: Counts


Tried = list[tuple[ExitPolicy, list[Setting]]]  # by family: one of its policies, and its settings from slow to fast


def compared(
    recording: Recording, counter: Counter, criteria: Sequence[str] | None = None, base: ExitPolicy | None = None
) -> Tried:
    """What the rules to choose among do on some rows, in coarse steps.

    Args:
        criteria: rules to choose among; None: all that can judge what was recorded.
        base: where given, its rule and other fields alone.
    """
    names = criteria or [] if base is None else [base.criterion]
    refuse_unable("criteria" if base is None else "policy", names, recording)
    found = families(recording, criteria) if base is None else [varied_finely(recording, base, COARSE)]
    tried = ((family, list(ever_faster(recording, family, counter))) for family in found if family)
    return [(family[0], settings) for family, settings in tried if settings]


def sequence(recording: Recording, counter: Counter, test: AtMost, scale: float, tried: Tried) -> list[ExitPolicy]:
    """The settings to test, in their order: of the rule that will probably be fastest where it ends.

    Args:
        scale: how many times as many rows the test will have.
    """
    chosen = fastest_family(tried, test, scale)
    if chosen is None:
        return []
    settings = ever_faster(recording, varied_finely(recording, chosen, FINE), counter)
    return [each.policy for each in takewhile(lambda each: rate(each.counts) <= HOPELESS * test.epsilon, settings)]


def fastest_family(tried: list[tuple[ExitPolicy, list[Setting]]], test: AtMost, scale: float) -> ExitPolicy | None:
    """A policy of the family that gets farthest with the largest margin at which any can be expected to pass.

    Where some will pass at their slowest at worst, it is one of them: what is gained and lost in turn may come out
    otherwise on other rows, and who fails at the first setting has nothing. Where none can be expected to pass, it is
    of the family that misses least where it is slowest; None where no family saves a layer.
    """
    safe = [each for each in tried if test.expected(each[1][0].worst, scale, MARGINS[0])]
    tried = safe or tried
    for margin in MARGINS:
        layers, policy = min(
            ((reach(each, test, scale, margin), policy) for policy, each in tried),
            key=lambda pair: pair[0],
            default=(NOWHERE, None),
        )
        if layers < NOWHERE:
            return policy
    return min(tried, key=lambda pair: rate(pair[1][0].counts), default=(None, []))[0]


def families(recording: Recording, criteria: Sequence[str] | None) -> Iterator[list[ExitPolicy]]:
    """Policies that differ in nothing but their rule's first knob, from slow to fast."""
    for name in criteria or judging(recording):
        policies = grid(recording, name, steps=COARSE, min_layers=recording.exit_depths[:3])
        for _, members in groupby(policies, key=lambda policy: without_first_knob(recording, policy)):
            yield list(members)


def refuse_unable(field: str, names: Iterable[str | None], recording: Recording) -> None:
    """Refuse rules that cannot judge what was recorded."""
    able = judging(recording)
    if unable := [name for name in names if name not in able]:
        refuse(field, unable, f"rules that can judge what was recorded: {', '.join(able)}")


def without_first_knob(recording: Recording, policy: ExitPolicy) -> ExitPolicy:
    """What a policy shares with its family."""
    name = rule_of(policy).knobs(recording.problem_type)[0]
    changes: dict[str, Any] = {name: getattr(PolicyFields, name)}
    return replace(policy, **changes)


def varied_finely(recording: Recording, policy: ExitPolicy, steps: int) -> list[ExitPolicy]:
    """The policy's family in so many steps, from slow to fast."""
    return varied(recording, policy, first_values(recording, policy, steps))


def ever_faster(recording: Recording, policies: Iterable[ExitPolicy], counter: Counter) -> Iterator[Setting]:
    """Of policies from slow to fast, each that is faster than full depth and all before."""
    fewest = float(recording.layers)
    for policy in policies:
        answers, layers = recording.replay(policy)
        if (mean := layers.double().mean().item()) < fewest:
            fewest = mean
            yield Setting(policy, mean, counter(answers), counter.worst(answers))


def reach(settings: list[Setting], test: AtMost, scale: float, margin: float) -> float:
    """The fewest mean layers of a family before the first setting that cannot be expected to pass."""
    passing = takewhile(lambda setting: test.expected(setting.counts, scale, margin), settings)
    return min((setting.layers for setting in passing), default=NOWHERE)


def rate(counts: Counts) -> float:
    """The mean over the largest group, mostly all rows."""
    return float(max(counts.values(), key=len).mean())


# ---- tested ----------------------------------------------------------------------------------------------------------


def last_passed(
    recording: Recording, policies: Sequence[ExitPolicy], counter: Counter, test: AtMost
) -> tuple[Setting | None, int]:
    """The last setting before the first that fails, with what was counted, and how many were tested."""
    passed = None
    for number, policy in enumerate(policies):
        answers, layers = recording.replay(policy)
        counts = counter(answers)
        if not test.passed(counts):
            return passed, number + 1
        passed = Setting(policy, layers.double().mean().item(), counts, counts)
    return passed, len(policies)
