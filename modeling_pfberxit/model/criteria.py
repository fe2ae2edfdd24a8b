"""When may a row leave? The registry of exit criteria (eq. 5, its variants and its relatives), and what fits them.

A criterion works in two steps:

* a score condenses an exit's evidence, without the threshold tau and the patience t;
* a decision compares the score with tau and t, and says which rows may exit here.

So recorded evidence is scored once and decided ten thousand times. Rows are independent of each other: a rule's memory
(`evidence.ExitState`) is tensors whose first dimension is the row. A new criterion is a score and an entry in
`CRITERIA`; both kinds of functions are in `scores`, the values users set in `exit_policy`.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Collection, Sequence
from dataclasses import replace
from typing import Any, NamedTuple, TypeVar

from torch import Tensor

from .evidence import (
    ABSTAIN,
    EMITTED_BY,
    MULTI_LABEL,
    NAMES,
    REGRESSION,
    SINGLE_LABEL,
    Evidence,
    ExitState,
    PolicyFields,
    declared,
    read_by,
)
from .scores import (
    ENSEMBLES,
    by_ensemble,
    decide_above,
    decide_appointed,
    decide_below,
    decide_count,
    decide_never,
    decide_number,
    decide_votes,
    ensemble_answer,
    majority_answer,
    own_answer,
    score_beem,
    score_cap,
    score_confidence,
    score_dge,
    score_distance,
    score_entropy,
    score_lte,
    score_nothing,
    score_patience,
    score_v1,
    score_v2,
    score_v3,
    score_votes,
    score_window,
    surest_answer,
)
from .validation import refuse


def after_patience(policy: PolicyFields) -> int:
    """The rule fires at the t-th exit at the earliest: t of them must be on tau's side."""
    return policy.patience


def after_comparing(policy: PolicyFields) -> int:
    """The rule fires at the exit behind the t-th at the earliest: t of them are compared with the one before."""
    return policy.patience + 1


def one_before(policy: PolicyFields, exits: int) -> int:
    """The rule looks back on the exit before."""
    return 1


def by_window(policy: PolicyFields, exits: int) -> int:
    """The rule looks back on m exits."""
    return policy.window


def all_before(policy: PolicyFields, exits: int) -> int:
    """The rule looks back on every exit."""
    return exits - 1


def from_appointed(policy: PolicyFields) -> int:
    """Rows may leave from the appointed layer."""
    return max(policy.min_layer, policy.appointed_layer or 0)


def within_window(policy: PolicyFields, exit_depths: list[int]) -> None:
    """Refuse a patience that the window cannot hold."""
    if policy.patience > policy.window:
        refuse("exit_patience", policy.patience, f"at most exit_window={policy.window}: it counts within the window")


def at_an_exit(policy: PolicyFields, exit_depths: list[int]) -> None:
    """Refuse an appointed layer without an exit."""
    if policy.appointed_layer not in exit_depths:
        refuse("exit_appointed_layer", policy.appointed_layer, f"a layer with an exit: {exit_depths}")


Policy = TypeVar("Policy", bound=PolicyFields)
EVERY_PROBLEM = (SINGLE_LABEL, MULTI_LABEL, REGRESSION)


class Criterion(NamedTuple):
    """A rule: when a row leaves, in words and in functions, for which problems, and by which evidence.

    Which fields of the policy a rule reads, its functions declare. From this derive the checks of a policy, what a
    search varies, what replay may share, how a policy is described, and the table in docs/rules.md.
    """

    when: str  # "a row leaves when ..."
    score: Callable[[Tensor, Evidence, ExitState, PolicyFields], Tensor]
    decide: Callable[[Tensor, ExitState, PolicyFields, Tensor], Tensor]
    answer: Callable[[Tensor, Tensor, Evidence, ExitState, PolicyFields], Tensor] = own_answer
    source: str = ""  # the systems that leave by it
    memory: Callable[[PolicyFields, int], int] = lambda policy, exits: 0  # how many earlier exits it looks back on
    earliest: Callable[[PolicyFields], int] = lambda policy: 1  # the number of the first exit at which it may fire
    floor: Callable[[PolicyFields], int] = lambda policy: policy.min_layer  # no row leaves before this layer
    problem_types: tuple[str, ...] = (SINGLE_LABEL, MULTI_LABEL)
    threshold_for: tuple[str, ...] = EVERY_PROBLEM  # where its decision hangs on tau, if it reads one
    needs_evidence: str | None = None  # the config's field that makes exits emit it
    # Whether a row's answer is always the logits of the exit it exits at, which replay may then take as they are.
    own: Callable[[PolicyFields], bool] = lambda policy: True
    each_exit: bool = False  # whether its score is one for each of the earlier exits, (B, m), instead of one, (B,)
    varied: tuple[str, ...] = ()  # what a search varies beside the fields that the decision reads
    # Refuses fields that do not fit each other or the layers that have an exit.
    fits: Callable[[PolicyFields, list[int]], None] = lambda policy, exit_depths: None

    def reads(self, policy: PolicyFields) -> tuple[str, ...]:
        """The fields that make a difference under this policy, in their order."""
        read = {"min_layer"}
        for part in (self.score, self.decide, self.answer):
            read.update(read_by(part, policy))
        if policy.answer == ABSTAIN:
            read |= {"window", "normalize", "answer", "unsure_below"}
        return tuple(name for name in NAMES if name in read)

    def scored_by(self, policy: PolicyFields) -> tuple[str, ...]:
        """The fields that scores and answers may depend on: all but those that the decision alone declares."""
        shared = {name for part in (self.score, self.answer) for name in read_by(part, policy)}
        decided = {"min_layer", "answer", "unsure_below", *read_by(self.decide, policy)} - shared
        return tuple(name for name in NAMES if name not in decided)

    def needs_threshold(self, problem_type: str) -> bool:
        """Whether its decision hangs on tau."""
        return "threshold" in declared(self.decide) and problem_type in self.threshold_for

    def looks_back(self, policy: PolicyFields, exits: int) -> bool:
        """Whether it needs the evidence of exits at which no row may exit."""
        return self.remembered(policy, exits) > 0 or "patience" in declared(self.decide)

    def remembered(self, policy: PolicyFields, exits: int) -> int:
        """How many earlier exits the rule or its abstaining looks back on."""
        return max(self.memory(policy, exits), policy.window - 1 if policy.answer == ABSTAIN else 0)

    def first_exit(self, policy: PolicyFields) -> int:
        """The number of the first exit at which rows may leave, with an answer or as unsure."""
        earliest = self.earliest(policy)
        return min(earliest, policy.window) if policy.answer == ABSTAIN else earliest

    @property
    def leaves_above(self) -> bool:
        """Whether rows leave at tau and above it, not below."""
        return bool(getattr(self.decide, "above", False))

    def knobs(self, problem_type: str) -> tuple[str, ...]:
        """What is turned to go from careful to fast, the first in front."""
        names = (*declared(self.decide), *self.varied)
        return tuple(name for name in names if name != "threshold" or self.needs_threshold(problem_type))


CRITERIA = {
    "divergence_v1": Criterion(
        "the divergence between adjacent exits was below τ for t exits in a row",
        score_v1, decide_count, memory=one_before, earliest=after_comparing,
    ),
    "divergence_v2": Criterion(
        "the divergence from each of the last m exits was below τ for t exits in a row",
        score_v2, decide_count, memory=by_window, earliest=after_comparing,
    ),
    "divergence_v3": Criterion(
        "t of the divergences from the last m exits are below τ, in any order; t ≤ m",
        score_v3, decide_number, memory=by_window, earliest=after_comparing, each_exit=True, varied=("window",),
        fits=within_window,
    ),
    "patience": Criterion(
        "t exits in a row gave the same labels; in regression, values closer than τ",
        score_patience, decide_count, source="PABEE", memory=one_before, earliest=after_comparing,
        problem_types=EVERY_PROBLEM, threshold_for=(REGRESSION,),
    ),
    "entropy": Criterion(
        "the exit's entropy is below τ", score_entropy, decide_below, source="BranchyNet, DeeBERT, FastBERT",
    ),
    "max_prob": Criterion(
        "its largest probability reaches τ; if none does, the surest exit answers",
        score_confidence, decide_above, surest_answer, "Shallow-Deep", memory=all_before, own=lambda policy: False,
    ),
    "lte": Criterion(
        "its learning-to-exit head doubts it less than τ",
        score_lte, decide_below, source="BERxiT", problem_types=EVERY_PROBLEM, needs_evidence="use_lte",
    ),
    "window": Criterion(
        "its entropy is below τ, or the last m exits have settled on a label",
        score_window, decide_below, source="ELBERT", memory=by_window, varied=("window",),
    ),
    "pcee": Criterion(
        "the entropy was below τ for t exits in a row",
        score_entropy, decide_count, ensemble_answer, "PCEE-BERT", by_ensemble, after_patience,
        own=lambda policy: ENSEMBLES[policy.ensemble].members is None,
    ),
    "dge": Criterion(
        "the mean divergence from the last m exits was below τ for t exits in a row",
        score_dge, decide_count, source="BADGE", memory=by_window, earliest=after_comparing,
    ),
    "distance": Criterion(
        "entropy and distance to the class prototypes, in a harmonic mean, are below τ",
        score_distance, decide_below, source="DE³-BERT", needs_evidence="use_prototypes",
    ),
    "voting": Criterion(
        "the exits' majority has t votes and a share of τ",
        score_votes, decide_votes, majority_answer, memory=all_before, earliest=after_patience,
        own=lambda policy: False,
    ),
    "beem": Criterion(
        "the confidences of exits that agree in a row, the i-th times i / 10, add up to τ",
        score_beem, decide_above, source="BEEM", memory=all_before, problem_types=(SINGLE_LABEL,),
    ),
    "cap": Criterion(
        "the logit that stands for what none of its classes sees has a probability below τ",
        score_cap, decide_below, source="CAPEE", problem_types=(SINGLE_LABEL,), needs_evidence="use_nsp",
    ),
    "appointed": Criterion(
        "it reaches a given layer",
        score_nothing, decide_appointed, floor=from_appointed, problem_types=EVERY_PROBLEM, fits=at_an_exit,
    ),
}  # fmt: skip
STATIC = "appointed"  # the rule that cuts a model off at a layer
FULL = Criterion("it has passed all layers", score_nothing, decide_never, floor=lambda policy: sys.maxsize)


def rule_of(policy: PolicyFields) -> Criterion:
    """The policy's rule; without a criterion, the one by which no row leaves early."""
    return FULL if policy.criterion is None else CRITERIA[policy.criterion]


def able(problem_type: str, emitted: Collection[str] = ()) -> list[str]:
    """The rules that can judge a problem by logits, and by what exits `emitted` beside them (the config's fields)."""
    evidence = (None, *emitted)
    rules = CRITERIA.items()
    return [name for name, rule in rules if problem_type in rule.problem_types and rule.needs_evidence in evidence]


# ---- which policies fit a model --------------------------------------------------------------------------------------


def check_fit(policy: PolicyFields, exit_depths: list[int], problem_type: str) -> None:
    """Refuse combinations that cannot work, before any layer runs."""
    exits, rule = len(exit_depths), rule_of(policy)
    read = rule.reads(policy)
    if problem_type not in rule.problem_types:
        rules = ", ".join(able(problem_type, EMITTED_BY))
        refuse("exit_criterion", policy.criterion, f"a rule for {problem_type}: {rules}")
    if policy.answer == ABSTAIN and (problem_type == REGRESSION or rule.floor(policy) != policy.min_layer):
        allowed = f"label for values, and with {policy.criterion} where all rows answer at a layer"
        refuse("exit_answer", ABSTAIN, allowed)
    for name in ("patience", "window"):
        if name in read and getattr(policy, name) > exits:
            refuse(f"exit_{name}", getattr(policy, name), f"at most the number of exits, {exits}")
    if isinstance(policy.threshold, tuple) and len(policy.threshold) != exits:
        refuse("exit_threshold", list(policy.threshold), f"one number, or {exits}: one for each exit")
    if policy.min_layer > exit_depths[-1]:
        refuse("exit_min_layer", policy.min_layer, f"at most the number of layers, {exit_depths[-1]}")
    rule.fits(policy, exit_depths)
    check_labels(policy, problem_type)


def fits(policy: PolicyFields, exit_depths: list[int], problem_type: str) -> bool:
    """Whether `check_fit` lets a policy pass."""
    try:
        check_fit(policy, exit_depths, problem_type)
    except ValueError:
        return False
    return True


def check_evidence(policy: PolicyFields, config: Any, problem_type: str) -> None:
    """Refuse a rule that judges what this model's exits do not emit."""
    needed = rule_of(policy).needs_evidence
    emitted = [name for name in EMITTED_BY if getattr(config, name)]
    if needed and needed not in emitted:
        names = ", ".join(able(problem_type, emitted))
        made = "loaded" if needed == "use_nsp" else "trained"  # NSP has no weights
        refuse("exit_criterion", policy.criterion, f"one of {names}, or the model {made} with {needed}=True")


def check_labels(policy: PolicyFields, problem_type: str) -> None:
    """Refuse thresholds of labels where there are no labels, or where no decision reads them."""
    if not policy.label_thresholds:
        return
    rule, given = rule_of(policy), dict(policy.label_thresholds)
    if problem_type == REGRESSION or "label_thresholds" not in rule.reads(policy):
        refuse("exit_label_thresholds", given, f"left out for values, and with {policy.criterion}, which reads none")
    if "patience" in read_by(rule.answer, policy):
        allowed = "left out with a run's mean: what it answers is known only behind the decision"
        refuse("exit_label_thresholds", given, allowed)


def numbered(policy: Policy, names: Sequence[str]) -> Policy:
    """The policy with numbers in the place of its labels' names."""
    if not policy.label_thresholds:
        return policy
    numbers = [str(number) for number in range(len(names))]
    number_of = {**dict(zip(numbers, numbers)), **dict(zip(names, numbers))}
    for label, _ in policy.label_thresholds:
        if label not in number_of:
            refuse("exit_label_thresholds", label, f"a label, {', '.join(map(str, names))}, or its number")
        if label in numbers and number_of[label] != label:
            refuse("exit_label_thresholds", label, "a name or a number, not one label's name and another's number")
    thresholds = [(number_of[label], tau) for label, tau in policy.label_thresholds]
    if len(dict(thresholds)) < len(thresholds):
        refuse("exit_label_thresholds", dict(policy.label_thresholds), "every label once, by its name or its number")
    return replace(policy, label_thresholds=thresholds)
