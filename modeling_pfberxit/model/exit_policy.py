"""The exit policy: which criterion one call uses, with which threshold tau, patience t and window m."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, is_dataclass, replace
from typing import Any

from .criteria import CRITERIA
from .divergences import DIVERGENCE_ALIASES, DIVERGENCES
from .validation import Check, each, either, flag, one_of, optional, real, refuse, whole

POLICY_CHECKS: dict[str, Check] = {
    "criterion": optional(one_of(*CRITERIA)),
    "divergence": one_of(*DIVERGENCES, aliases=DIVERGENCE_ALIASES),
    "threshold": optional(either(real(0.0), each(real(0.0)))),
    "patience": whole(1),
    "window": whole(1),
    "min_layer": whole(1),
    "appointed_layer": optional(whole(1)),
    "normalize": flag,
    "window_rule": one_of("agree", "monotone", "narrow"),
    "window_range": real(0.0, 1.0),
    "ensemble": one_of("none", "run", "all"),
    "distance_weight": real(0.0),
}


@dataclass(frozen=True)
class ExitPolicy:
    """How rows leave during one call. Immutable and checked when made; the config's `exit_*` fields are its defaults.

    Args:
        criterion: a name in `CRITERIA`, or None: every row runs to the last layer.
        divergence: a name in `DIVERGENCES` (s of eq. 6 to 8).
        threshold: tau >= 0, or one for each exit. Where the criterion needs one and has none, early exit is off.
            Rows leave below it; with `max_prob` and `voting`, which measure certainty, at it or above.
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

    Raises:
        ValueError: a value that can never be right; what does not fit a model is refused when a call uses it.

    Example:
        >>> ExitPolicy(threshold=0.3, patience=2)
        >>> model(**batch, exit_policy={"criterion": "patience", "patience": 3})
    """

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

    def __post_init__(self) -> None:
        for name, check in POLICY_CHECKS.items():
            value = check(name, getattr(self, name))
            object.__setattr__(self, name, tuple(value) if isinstance(value, list) else value)

    def is_active(self, problem_type: str) -> bool:
        """False exactly when the criterion is None, or needs a threshold and has none."""
        if self.criterion is None:
            return False
        return self.threshold is not None or not CRITERIA[self.criterion].needs_threshold(problem_type)

    @property
    def floor(self) -> int:
        """No row leaves before this layer."""
        return max(self.min_layer, self.appointed_layer or 0) if self.criterion == "appointed" else self.min_layer


def to_the_end(layers: int) -> ExitPolicy:
    """The policy under which every row runs through all layers and nobody hears the exits before."""
    return ExitPolicy("appointed", appointed_layer=layers)


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
    if not policy.is_active(problem_type):
        return None
    check_fit(policy, exit_depths, problem_type)
    check_evidence(policy, config, problem_type)
    return policy


def requested_policy(request: Any, config: Any) -> ExitPolicy:
    """An `ExitPolicy`, a dict of fields to change in the config's policy, or the name of an operating point."""
    if isinstance(request, str):
        request = operating_point(request, config)
    # Remote code has an ExitPolicy class of its own; any of them will do.
    if is_dataclass(request) and not isinstance(request, type):
        return ExitPolicy(**asdict(request))
    if not isinstance(request, Mapping):
        refuse("exit_policy", request, "an ExitPolicy, a dict of its fields, or the name of an operating point")
    if unknown := sorted(set(request) - set(POLICY_CHECKS), key=str):
        refuse("exit_policy", unknown, "a dict with fields of " + ", ".join(POLICY_CHECKS))
    return replace(configured_policy(config), **request)


def operating_point(name: str, config: Any) -> dict[str, Any]:
    """The policy stored in the config under a name; its measured score and cost are left out."""
    if name not in config.operating_points:
        refuse(
            "exit_policy", name, f"one of this model's operating points: {sorted(config.operating_points) or 'none'}"
        )
    return {field: value for field, value in config.operating_points[name].items() if field in POLICY_CHECKS}


def check_fit(policy: ExitPolicy, exit_depths: list[int], problem_type: str) -> None:
    """Refuse combinations that cannot work, before any layer runs."""
    exits, rule = len(exit_depths), CRITERIA[policy.criterion]
    if problem_type not in rule.problem_types:
        able = [name for name, other in CRITERIA.items() if problem_type in other.problem_types]
        refuse("exit_criterion", policy.criterion, f"a rule for {problem_type}: {', '.join(able)}")
    if policy.patience > exits and rule.counts_exits:
        refuse("exit_patience", policy.patience, f"at most the number of exits, {exits}")
    if rule.memory(policy, exits) > exits:
        refuse("exit_window", policy.window, f"at most the number of exits, {exits}")
    if policy.criterion == "divergence_v3" and policy.patience > policy.window:
        refuse("exit_patience", policy.patience, f"at most exit_window={policy.window}: v3 counts within the window")
    if isinstance(policy.threshold, tuple) and len(policy.threshold) != exits:
        refuse("exit_threshold", list(policy.threshold), f"one number, or {exits}: one for each exit")
    if policy.min_layer > exit_depths[-1]:
        refuse("exit_min_layer", policy.min_layer, f"at most the number of layers, {exit_depths[-1]}")
    if policy.criterion == "appointed" and policy.appointed_layer not in exit_depths:
        refuse("exit_appointed_layer", policy.appointed_layer, f"a layer with an exit: {exit_depths}")


def check_evidence(policy: ExitPolicy, config: Any, problem_type: str) -> None:
    """Refuse a rule that judges what this model's exits do not emit."""
    needed = CRITERIA[policy.criterion].needs_evidence
    if needed and not getattr(config, needed):
        rules = {name: rule for name, rule in CRITERIA.items() if rule.needs_evidence is None}
        able = [name for name, rule in rules.items() if problem_type in rule.problem_types]
        refuse("exit_criterion", policy.criterion, f"one of {', '.join(able)}, or the model trained with {needed}=True")
