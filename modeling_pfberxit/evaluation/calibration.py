"""Calibration: an exit policy for a target, chosen on one set of rows and reported on another.

The target is a speed-up, a largest drop of the score, milliseconds a request, or agreement with the full model, which
comes with a guarantee. Whatever is found can be stored in the config as an operating point and used by its name.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from copy import copy
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from ..model.configuration_pfberxit import PFBerxitConfig
from ..model.criteria import rule_of
from ..model.exit_policy import FULL_DEPTH, ExitPolicy
from ..model.validation import refuse
from .frontier import Point, first_values, frontier, grid, judging, sweep, varied
from .recording import Recording
from .replay import same_answers


@dataclass(frozen=True)
class Calibrated:
    """A policy, measured on the rows it was chosen on and on others."""

    chosen: Point
    reported: Point

    @property
    def policy(self) -> ExitPolicy:
        """The policy that was chosen."""
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
        milliseconds: that a request may take, by `time_of`, which maps mean layers to milliseconds.
        criteria: to choose among; default: all whose evidence was recorded.
        tried: `all_points` of `chosen_on`, where several targets share them; `criteria` is not read then.

    Raises:
        ValueError: no target or several, or one that no policy reaches; nothing is chosen then.
    """
    targets = {"speed_up": speed_up, "max_drop": max_drop, "milliseconds": milliseconds}
    given = {name: value for name, value in targets.items() if value is not None}
    if len(given) != 1:
        refuse("target", given, f"exactly one of {', '.join(targets)}")
    (name, value), points = *given.items(), tried or all_points(chosen_on, metric, criteria)
    if name == "max_drop":
        floor = sweep(chosen_on, [FULL_DEPTH], metric)[0].score - value
        kept = [point for point in points if point.score >= floor]
        best = min(kept, key=lambda point: (point.layers, -point.score), default=None)
    else:
        cost, limit = bounded_cost(name, value, time_of)
        kept = [point for point in points if cost(point) <= limit]
        best = max(kept, key=lambda point: (point.score, -point.layers), default=None)
    if best is None:
        fastest = min(points, key=lambda point: point.layers)
        refuse(name, value, f"within reach: the fastest policy runs {fastest.layers:.2f} layers, {fastest.score:.3f}")
    chosen, reported = (sweep(part, [best.policy], metric, config)[0] for part in (chosen_on, reported_on))
    return Calibrated(chosen, reported)


def bounded_cost(
    name: str, value: float, time_of: Callable[[float], float] | None
) -> tuple[Callable[[Point], float], float]:
    """What a target bounds, as the cost of a point, and the bound: mean layers relative to all, or milliseconds."""
    if name == "speed_up":
        return (lambda point: 1 / point.speed_up), 1 / value
    if time_of is None:
        refuse("time_of", None, "given with milliseconds: a function from mean layers to milliseconds")
    return (lambda point: time_of(point.layers)), value


def all_points(recording: Recording, metric: str, criteria: Sequence[str] | None = None) -> list[Point]:
    """Every setting of the criteria, each also with the second or third exit as the first that may fire."""
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
    """The fastest policy of its rule whose answers are the full model's with probability 1 - epsilon.

    The guarantee is conformal prediction's (CATs, Schuster et al., EMNLP 2021, in the marginal form): on average over
    recordings and new rows that are exchangeable with them, P(answer = full answer) >= 1 - epsilon. What the rule reads
    first, mostly its threshold, is varied from careful to fast; every recorded row has a place up to which its answer
    stays the full model's, and the floor(epsilon (n + 1))-th smallest of these is chosen. The policy's other fields
    stay as they are: fix patience and window first, and on other rows.

    Args:
        recording: of rows that chose neither the model nor the policy's other fields. Labels are not needed.
        tolerance: how far values may lie apart and still agree, in regression.

    Raises:
        ValueError: a rule that is wrong on too many rows even where it is most careful.
    """
    if not 0 < epsilon < 1:
        refuse("epsilon", epsilon, "a number between 0 and 1, both left out")
    if policy.criterion not in judging(recording):
        refuse("criterion", policy.criterion, f"one that judges what was recorded: {', '.join(judging(recording))}")
    rank = math.floor(epsilon * (len(recording) + 1))
    if rule_of(policy).needs_threshold(recording.problem_type):
        threshold = safe_threshold(recording, policy, rank, tolerance)
        found = None if threshold is None else replace(policy, threshold=max(threshold, 0.0))
    else:
        steps = varied(recording, policy, first_values(recording, policy, steps=0))
        kept = safe_steps(recording, (recording.replay(each)[0] for each in steps), tolerance).sort().values
        last = int(kept[rank - 1]) if rank else min(1, int(kept[0]))
        found = steps[last - 1] if last else None
    if found is None:
        careful = "even where it is most careful, too many predictions differ from full depth's"
        refuse("epsilon", epsilon, f"larger for {policy.criterion}: {careful}")
    return found


def safe_steps(recording: Recording, answers: Iterable[Tensor], tolerance: float) -> Tensor:
    """How many of a policy's steps, logits (N, C) each from careful to fast, keep full depth's prediction, (N,)."""
    full = recording.evidence.logits[:, -1]
    same = [same_answers(each, full, recording.problem_type, tolerance) for each in answers]
    return torch.stack(same, dim=1).long().cumprod(1).sum(1)


def safe_threshold(recording: Recording, policy: ExitPolicy, rank: int, tolerance: float) -> float | None:
    """The threshold under which fewer than `rank` predictions differ from full depth's; None: there is none.

    A row's answer changes only where the threshold passes one of its own scores. So every row is replayed under
    thresholds of its own: one that no score passes, then one that its next score passes, and so on.
    """
    above, scores = rule_of(policy).leaves_above, recording.scores.of(policy)
    doubts = torch.cat([score.reshape(len(recording), -1) for score in scores.exits], dim=1)
    doubts = (-doubts if above else doubts).nan_to_num(math.inf, posinf=math.inf, neginf=-math.inf).sort(1).values
    nothing, everything = (doubts.new_full((len(doubts), 1), limit) for limit in (-math.inf, math.inf))
    steps = torch.cat([nothing, doubts], dim=1)
    taus = -steps if above else torch.nextafter(steps, everything)
    answers = (scores.decide(row_wise(policy, tau), recording.exit_depths)[0] for tau in taus.unbind(1))
    kept = safe_steps(recording, answers, tolerance)
    limits = torch.cat([steps, everything], dim=1).gather(1, kept[:, None]).squeeze(1).sort().values
    limit, finite = limits[max(rank - 1, 0)], doubts[doubts.isfinite()]
    if limit == -math.inf:
        return None
    if not rank:  # no prediction may differ
        return torch.nextafter(-finite.min(), everything[0, 0]).item() if above else 0.0
    if limit == math.inf:  # no threshold does harm
        return 0.0 if above or not finite.numel() else finite.max().item() + 1
    return torch.nextafter(-limit, everything[0, 0]).item() if above else limit.item()


def row_wise(policy: ExitPolicy, thresholds: Tensor) -> ExitPolicy:
    """The policy with a threshold for every row, (N,), which only a replay of these rows can use."""
    made = copy(policy)  # `replace` would refuse a tensor, which no user may give
    object.__setattr__(made, "threshold", thresholds)
    return made


def agreement(recording: Recording, tolerance: float = 0.5) -> Tensor:
    """Whether each exit predicts as the last one does, (N, E): equal labels, or values within the tolerance."""
    logits = recording.evidence.logits
    return same_answers(logits, logits[:, -1:], recording.problem_type, tolerance)


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

    Rungs that would score no better than a faster one are left out, so on the chosen rows each scores higher than the
    one before.
    """
    best = frontier(all_points(chosen_on, metric, criteria) + sweep(chosen_on, [FULL_DEPTH], metric))
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
