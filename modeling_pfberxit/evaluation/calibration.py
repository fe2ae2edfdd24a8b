"""Calibration: an exit policy for a target, chosen on one set of rows and reported on another.

The target is a speed-up, a largest drop of the score, milliseconds a request, or agreement with the full model, which
comes with a guarantee. Whatever is found can be stored in the config as an operating point and used by its name.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from ..model.configuration_pfberxit import PFBerxitConfig
from ..model.criteria import CRITERIA, decide_count, decide_number, own_answer
from ..model.evidence import MULTI_LABEL, REGRESSION
from ..model.exit_policy import ExitPolicy
from ..model.validation import refuse
from .frontier import Point, frontier, grid, judging, never, sweep
from .recording import Recording
from .replay import Scores


@dataclass(frozen=True)
class Calibrated:
    """A policy, what it did on the rows it was chosen on, and what it does on others."""

    chosen: Point
    reported: Point

    @property
    def policy(self) -> ExitPolicy:
        """To be used."""
        return self.chosen.policy


def calibrate(
    chosen_on: Recording,
    reported_on: Recording,
    metric: str,
    *,
    speed_up: float | None = None,
    max_drop: float | None = None,
    milliseconds: float | None = None,
    time_of: Callable[[float], float] | None = None,
    criteria: Sequence[str] | None = None,
    config: PFBerxitConfig | None = None,
    tried: Sequence[Point] | None = None,
) -> Calibrated:
    """The best policy for one target; exactly one of the three is given.

    Args:
        chosen_on, reported_on: recordings of disjoint rows.
        speed_up: by layers, at least; the best score among those that reach it.
        max_drop: of the score, at most, from full depth's; the fewest layers among those that keep to it.
        milliseconds: a request may take, by `time_of`, which maps mean layers to milliseconds.
        criteria: to choose among; default: all that can judge what was recorded.
        tried: `all_points` of `chosen_on`, where several targets share them; `criteria` is not looked at then.

    Raises:
        ValueError: no target or several, or one that no policy reaches; nothing is chosen then.
    """
    targets = {"speed_up": speed_up, "max_drop": max_drop, "milliseconds": milliseconds}
    given = {name: value for name, value in targets.items() if value is not None}
    if len(given) != 1:
        refuse("target", given, f"exactly one of {', '.join(targets)}")
    (name, value), points = *given.items(), tried or all_points(chosen_on, metric, criteria)
    if name == "max_drop":
        floor = sweep(chosen_on, [never(chosen_on)], metric)[0].score - value
        kept = [point for point in points if point.score >= floor]
        best = min(kept, key=lambda point: (point.layers, -point.score), default=None)
    else:
        cost = (lambda point: 1 / point.speed_up) if name == "speed_up" else (lambda point: time_of(point.layers))
        limit = 1 / value if name == "speed_up" else value
        kept = [point for point in points if cost(point) <= limit]
        best = max(kept, key=lambda point: (point.score, -point.layers), default=None)
    if best is None:
        fastest = min(points, key=lambda point: point.layers)
        refuse(name, value, f"within reach: the fastest policy runs {fastest.layers:.2f} layers, {fastest.score:.3f}")
    chosen, reported = (sweep(part, [best.policy], metric, config)[0] for part in (chosen_on, reported_on))
    return Calibrated(chosen, reported)


def all_points(recording: Recording, metric: str, criteria: Sequence[str] | None = None) -> list[Point]:
    """Every setting of the criteria, also with rows kept from leaving before the second or third exit."""
    able = judging(recording)
    if unable := [name for name in criteria or () if name not in able]:
        refuse("criteria", unable, f"rules that can judge what was recorded: {', '.join(able)}")
    floors = recording.exit_depths[:3]
    return [
        point
        for name in criteria or able
        for point in sweep(recording, grid(recording, name, steps=30, min_layers=floors), metric)
    ]


# ---- agreement with a guarantee -------------------------------------------------------------------------------------


def conformal(recording: Recording, policy: ExitPolicy, epsilon: float, tolerance: float = 0.5) -> ExitPolicy:
    """The policy with the largest threshold at which early answers are the full model's with probability 1 - epsilon.

    The guarantee is conformal prediction's (CATs, Schuster et al., EMNLP 2021, in the marginal form): on average over
    recordings and new rows that are exchangeable with them, P(answer = full answer) >= 1 - epsilon. A row cannot go
    wrong as long as no exit fires that disagrees with the last one, so every recorded row has a largest safe threshold;
    the floor(epsilon (n + 1))-th smallest of these is chosen. Beside it, the policy stays as it is: fix patience and
    window first, and on other rows.

    Args:
        recording: of rows that chose neither the model nor the policy's other fields. Labels are not needed.
        tolerance: how far values may lie apart and still agree, in regression.

    Raises:
        ValueError: a rule that has no threshold or whose answers come from several exits, or one that fires whatever
            the threshold is on too many rows it gets wrong.
    """
    if not 0 < epsilon < 1:
        refuse("epsilon", epsilon, "a number between 0 and 1, both left out")
    fires_below, safe = critical_thresholds(recording, policy), agreement(recording, tolerance)  # (N, E) both
    limits = fires_below.masked_fill(safe, math.inf)[:, :-1].amin(1).sort().values  # (N,)
    rank = math.floor(epsilon * (len(limits) + 1))
    tau = limits[rank - 1].item() if rank else 0.0
    if tau == -math.inf:
        refuse("epsilon", epsilon, f"larger: {policy.criterion} leaves whatever the threshold on rows it gets wrong")
    largest = fires_below[fires_below.isfinite()]
    if tau == math.inf:  # no threshold does harm
        tau = largest.max().item() + 1 if largest.numel() else 0.0
    return replace(policy, threshold=max(tau, 0.0))


def critical_thresholds(recording: Recording, policy: ExitPolicy) -> Tensor:
    """The threshold above which each exit would let each row go, (N, E), looked at alone; inf where it never does."""
    rule = CRITERIA[policy.criterion]
    own = rule.answer is own_answer or (policy.criterion == "pcee" and policy.ensemble == "none")
    if not own or not rule.needs_threshold(recording.problem_type):
        able = [name for name, other in CRITERIA.items() if other.answer is own_answer and name in judging(recording)]
        refuse("criterion", policy.criterion, f"one with a threshold and answers of its own exit: {', '.join(able)}")
    scored = Scores(recording.evidence, replace(policy, threshold=0.0), recording.problem_type).exits
    if rule.decide is decide_number:
        scores = torch.stack([each.score[:, policy.patience - 1] for each in scored], dim=1)
    else:
        scores = torch.stack([each.score for each in scored], dim=1)
    scores = scores.nan_to_num(math.inf, posinf=math.inf, neginf=-math.inf)
    if rule.decide is decide_count:
        before = torch.full((len(scores), policy.patience - 1), math.inf)
        scores = torch.cat([before, scores], dim=1).unfold(1, policy.patience, 1).amax(-1)
    early = torch.tensor([depth < policy.min_layer for depth in recording.exit_depths])
    return scores.masked_fill(early, math.inf)


def agreement(recording: Recording, tolerance: float = 0.5) -> Tensor:
    """Whether each exit answers as the last one does, (N, E): the same labels, or values within the tolerance."""
    logits = recording.evidence.logits
    if recording.problem_type == REGRESSION:
        return ((logits - logits[:, -1:]).abs() <= tolerance).all(-1)
    if recording.problem_type == MULTI_LABEL:
        return ((logits > 0) == (logits[:, -1:] > 0)).all(-1)
    return logits.argmax(-1) == logits[:, -1:].argmax(-1)


# ---- a ladder for a server ------------------------------------------------------------------------------------------


def ladder(
    chosen_on: Recording,
    reported_on: Recording,
    metric: str,
    rungs: int = 6,
    criteria: Sequence[str] | None = None,
    config: PFBerxitConfig | None = None,
) -> list[Calibrated]:
    """Points from fast to exact, evenly spaced in layers between the fastest policy and full depth, for changing load.

    Rungs that would score no better than a faster one are left out, so climbing always pays on the chosen rows.
    """
    best = frontier(all_points(chosen_on, metric, criteria) + sweep(chosen_on, [never(chosen_on)], metric))
    goals = np.linspace(best[0].layers, best[-1].layers, rungs)
    numbers = dict.fromkeys(max(i for i, point in enumerate(best) if point.layers <= goal + 1e-9) for goal in goals)
    policies = [best[number].policy for number in numbers]
    return [
        Calibrated(*points)
        for points in zip(sweep(chosen_on, policies, metric, config), sweep(reported_on, policies, metric, config))
    ]


def policy_for(
    rungs: Sequence[Calibrated], latency_budget_ms: float, milliseconds: Callable[[float], float]
) -> ExitPolicy:
    """The most exact rung whose time a request fits the budget; the fastest where none does.

    Args:
        milliseconds: maps mean layers to milliseconds on this machine.
    """
    fitting = [rung for rung in rungs if milliseconds(rung.reported.layers) <= latency_budget_ms]
    chosen = max(fitting, key=lambda rung: rung.chosen.score, default=None)
    return (chosen or min(rungs, key=lambda rung: rung.reported.layers)).policy
