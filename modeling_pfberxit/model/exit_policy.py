"""`ExitPolicy`: criterion, tau, t, m ... of one call, checked and put in words.

What a rule does with its fields is in `criteria`; the values of published methods are in `systems`.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, is_dataclass, replace
from typing import Any, NamedTuple

from .criteria import CRITERIA, ENSEMBLES, STATIC, check_evidence, check_fit, numbered, rule_of
from .evidence import ABSTAIN, ANSWERS, DIVERGENCE_ALIASES, DIVERGENCES, PolicyFields
from .scores import WINDOW_RULES
from .validation import (
    Check,
    by_label,
    each,
    either,
    entry_of,
    flag,
    label_names,
    one_of,
    optional,
    real,
    refuse,
    whole,
)


class Field(NamedTuple):
    """A field of the policy: what it may be, how it reads in a sentence, what a search tries, the papers' symbol.

    Args:
        words: behind the criterion's name, with its own comma.
        tried: from careful to fast, given the layers that have an exit; thresholds come from the scores that occur.
    """

    check: Check
    words: str | Callable[[Any], str] = ""
    tried: Callable[[list[int]], Sequence] | None = None
    symbol: str = ""


def thresholds_in_words(threshold: float | tuple[float, ...]) -> str:
    """One number, or one for each exit."""
    if isinstance(threshold, tuple):
        return f", thresholds {' / '.join(f'{tau:.4g}' for tau in threshold)}"
    return f", threshold {threshold:.4g}"


def labels_in_words(thresholds: dict[str, float | None]) -> str:
    """Labels with thresholds of their own."""
    return "".join(f", {label} {'never' if tau is None else f'{tau:.4g}'}" for label, tau in thresholds.items())


FIELDS = {
    "criterion": Field(optional(entry_of(CRITERIA))),
    "divergence": Field(entry_of(DIVERGENCES, DIVERGENCE_ALIASES), " of {}"),
    "threshold": Field(optional(either(real(0.0), each(real(0.0)))), thresholds_in_words, symbol="τ"),
    "patience": Field(whole(1), ", patience {}", lambda depths: range(len(depths), 0, -1), "t"),
    "window": Field(whole(1), ", window {}", lambda depths: range(len(depths), 1, -1), "m"),
    "min_layer": Field(whole(1), lambda layer: f", from layer {layer}" if layer > 1 else ""),
    "appointed_layer": Field(optional(whole(1)), ", layer {}", lambda depths: depths[::-1]),
    "normalize": Field(flag, lambda normalized: ", normalised" if normalized else ""),
    "window_rule": Field(entry_of(WINDOW_RULES), ", {}"),
    "window_range": Field(real(0.0, 1.0), " within {:g}"),
    "ensemble": Field(entry_of(ENSEMBLES), lambda kind: f", ensemble {kind}" if ENSEMBLES[kind].members else ""),
    "distance_weight": Field(real(0.0), ", distance weight {:g}"),
    "nsp_weight": Field(real(0.0), ", NSP weight {:g}"),
    "label_thresholds": Field(optional(by_label), labels_in_words),
    "answer": Field(one_of(*ANSWERS), lambda answer: ", unsure" if answer == ABSTAIN else ""),
    "unsure_below": Field(real(0.0, 1.0), " below {:g}"),
}
POLICY_CHECKS: dict[str, Check] = {name: field.check for name, field in FIELDS.items()}


@dataclass(frozen=True)
class ExitPolicy(PolicyFields):
    """How rows leave during one call. Immutable and checked when made; the config's `exit_*` fields are its defaults.

    Args:
        criterion: a name in `CRITERIA`, or None: every row runs to the last layer.
        divergence: a name in `DIVERGENCES` (s of eq. 6 to 8).
        threshold: tau >= 0, or one for each exit. Where the criterion needs one and has none, early exit is off.
            Rows leave below it; with `max_prob`, `voting` and `beem`, which measure certainty, at it or above.
        patience: t >= 1, counted in exits; `voting`: votes for the majority.
        window: m >= 1, how many earlier exits v2, v3 and dge look back on; `window`: how many must settle, itself
            included.
        min_layer: no row leaves before this layer (1-based).
        appointed_layer: the layer at which `appointed` stops.
        normalize: divide divergences and entropies by their unit and put probabilities on a scale from guess to sure,
            so that one threshold means the same for 2 and for 77 classes.
        window_rule: what `window` asks of the last m exits: `agree` on the label, its probability also `monotone`, or
            `narrow`, within `window_range`.
        ensemble: what `pcee` answers: the exit itself (`none`), the mean over the sure exits in a `run`, or over `all`.
        distance_weight: lambda of `distance`, what the distance ratio weighs against entropy.
        nsp_weight: alpha of `cap`, the factor on what no class sees.
        label_thresholds: tau for the labels, by name or number, that an exit would answer with: {"attack": None} never
            leaves early as an attack. Of several labels each is scored on its own, and all must be on tau's side; the
            labels that a row would not get, and those not named, by `threshold`. What is answered in the end is still
            the rule's: under `max_prob`, `voting` and ensembles not the last exit's word alone.
        answer: `label`, or `abstain`: a row that the rule keeps leaves as unsure where its largest probability, of the
            least sure label, was below `unsure_below` at each of the last m exits. Its logits are NaN, its label empty.
        unsure_below: on the scale of `normalize`.

    Raises:
        ValueError: a value that can never be right; what does not fit a model is refused when a call uses it.

    Example:
        >>> ExitPolicy(threshold=0.3, patience=2)
        >>> model(**batch, exit_policy={"criterion": "patience", "patience": 3})
    """

    def __post_init__(self) -> None:
        for name, check in POLICY_CHECKS.items():
            value = check(name, getattr(self, name))
            value = list(value.items()) if isinstance(value, dict) else value
            object.__setattr__(self, name, tuple(value) if isinstance(value, list) else value)

    def is_active(self, problem_type: str) -> bool:
        """False exactly when the criterion is None, or needs a threshold and has none."""
        known = (self.threshold, *(tau for _, tau in self.label_thresholds or ()))
        needed = rule_of(self).needs_threshold(problem_type)
        return self.criterion is not None and (not needed or any(tau is not None for tau in known))

    @property
    def floor(self) -> int:
        """No row leaves before this layer."""
        return rule_of(self).floor(self)

    def stated(self) -> dict[str, Any]:
        """The fields that make a difference under this policy, as an operating point keeps them."""
        values = {name: getattr(self, name) for name in ("criterion", *rule_of(self).reads(self))}
        values["label_thresholds"] = dict(self.label_thresholds or ()) or None
        return {name: value for name, value in values.items() if value is not None or name == "criterion"}


FULL_DEPTH = ExitPolicy(criterion=None)


def static(layer: int) -> ExitPolicy:
    """The policy under which every row exits at one layer, whatever is predicted there."""
    return ExitPolicy(STATIC, appointed_layer=layer)


def describe(policy: ExitPolicy) -> str:
    """A policy in words: its rule, the fields that the rule reads, and where it comes from.

    Example: "divergence_v1 of kl, threshold 0.3, patience 2"; "patience 3 (PABEE)"; "full depth".
    """
    if policy.criterion is None:
        return "full depth"
    rule = rule_of(policy)
    parts = [in_words(name, value) for name, value in policy.stated().items()]
    words = policy.criterion + "".join(parts)
    if parts and parts[1].startswith(f", {policy.criterion} "):  # a rule that is named after its field
        words = "".join(parts).removeprefix(", ")
    off = not any(policy.is_active(problem_type) for problem_type in rule.problem_types)
    return words + (f" ({rule.source})" if rule.source else "") + ("; full depth without a threshold" if off else "")


def in_words(name: str, value: Any) -> str:
    """A field's part of the description."""
    words = FIELDS[name].words
    return words.format(value) if isinstance(words, str) else words(value)


def configured_policy(config: Any) -> ExitPolicy:
    """The policy that a config's `exit_*` fields make."""
    return ExitPolicy(**{name: getattr(config, f"exit_{name}") for name in POLICY_CHECKS})


def resolve_policy(request: Any, config: Any, exit_depths: list[int], problem_type: str) -> ExitPolicy | None:
    """What a call asked for, over the config's defaults; None when early exit is off.

    Args:
        request: None (the config's policy), an `ExitPolicy`, a dict of the fields to change, or the name of an
            operating point stored in the config.
        exit_depths: the layers that have an exit, 1-based, the last layer included.

    Raises:
        ValueError: an unknown field or name, or fields that do not fit each other or this model.
    """
    policy = configured_policy(config) if request is None else requested_policy(request, config)
    by_number = numbered(policy, label_names(config))  # messages name labels as they were given
    if not policy.is_active(problem_type):
        check_abstains(policy, inherited=request is None or isinstance(request, Mapping) and "answer" not in request)
        return None
    check_fit(policy, exit_depths, problem_type)
    check_evidence(policy, config, problem_type)
    return by_number


def check_abstains(policy: ExitPolicy, inherited: bool) -> None:
    """Refuse to abstain while early exit is off; only a config's answer may wait while its criterion is None."""
    if policy.answer == ABSTAIN and not (inherited and policy.criterion is None):
        allowed = "label without a criterion, or without the threshold it needs: early exit is off"
        refuse("exit_answer", ABSTAIN, allowed)


def requested_policy(request: Any, config: Any) -> ExitPolicy:
    """An `ExitPolicy`, a dict of fields to change in the config's policy, or the name of an operating point."""
    if isinstance(request, str):
        return operating_point(request, config)
    # Remote code has an ExitPolicy class of its own; any of them will do.
    if is_dataclass(request) and not isinstance(request, type):
        return request if isinstance(request, ExitPolicy) else ExitPolicy(**asdict(request))
    if not isinstance(request, Mapping):
        refuse("exit_policy", request, "an ExitPolicy, a dict of its fields, or the name of an operating point")
    if unknown := sorted(set(request) - set(POLICY_CHECKS), key=str):
        refuse("exit_policy", unknown, "a dict with fields of " + ", ".join(POLICY_CHECKS))
    return replace(configured_policy(config), **request)


def operating_point(name: str, config: Any) -> ExitPolicy:
    """The policy stored in the config under a name; its measured score and cost are left out.

    One that names its criterion, as all that were measured do, is whole: what it leaves out has its default, whatever
    the config says by now. One without a criterion changes the config's policy, as a dict does.
    """
    if name not in config.operating_points:
        points = sorted(config.operating_points) or "none"
        refuse("exit_policy", name, f"one of this model's operating points: {points}")
    point = {field: value for field, value in config.operating_points[name].items() if field in POLICY_CHECKS}
    return ExitPolicy(**point) if "criterion" in point else replace(configured_policy(config), **point)
