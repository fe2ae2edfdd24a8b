"""The frontier of a recording: what every criterion can reach, score against layers and multiply-adds.

Points are policies replayed on recorded rows; the frontier is made of those that no other dominates. Intervals of their
scores come from resampling the rows.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import product
from typing import Any

import numpy as np
from torch import Tensor

from ..data.metrics import score
from ..data.weighted import weighted_scores
from ..model.configuration_pfberxit import PFBerxitConfig
from ..model.criteria import CRITERIA, able, fits, rule_of
from ..model.exit_policy import FIELDS, ExitPolicy
from ..model.validation import refuse
from .elue import pareto
from .macs import depth_macs
from .recording import Recording
from .replay import answered, score_key


@dataclass(frozen=True)
class Point:
    """One policy on recorded rows.

    Args:
        layers: executed, mean over rows.
        saved: the share of layers that was not.
        macs: multiply-adds relative to full depth, mean over rows; None where the encoder's shape is not known.
        low, high: the 95 % bootstrap interval of the score over rows, where it was computed.
        unsure: the share of the rows that left without an answer; the score is of the others.
    """

    policy: ExitPolicy
    score: float
    layers: float
    saved: float
    macs: float | None = None
    low: float | None = None
    high: float | None = None
    unsure: float = 0.0

    @property
    def speed_up(self) -> float:
        """Layer speed-up."""
        return 1 / (1 - self.saved)


def sweep(
    recording: Recording, policies: Iterable[ExitPolicy], metric: str, config: PFBerxitConfig | None = None
) -> list[Point]:
    """Replay policies on a recording with labels; `config` prices them in multiply-adds."""
    replayed = ((policy, *recording.replay(policy)) for policy in policies)
    return measured(replayed, recording, metric, config)


def measured(
    replayed: Iterable[tuple[ExitPolicy, Tensor, Tensor]],
    recording: Recording,
    metric: str,
    config: PFBerxitConfig | None = None,
) -> list[Point]:
    """The points of policies, from their logits (N, C) and executed layers (N,) on the recorded rows."""
    labels, once, points = recording.known_labels.numpy(), np.ones((len(recording), 1)), []
    prices = None if config is None else depth_macs(config, recording.lengths, recording.exit_depths)  # (N, n + 1)
    for policy, answers, layers in replayed:
        mean = layers.double().mean().item()
        cost = None
        if prices is not None:
            cost = (prices.gather(1, layers[:, None]).sum() / prices[:, -1].sum()).item()
        value, unsure = score_of_answered(metric, answers, labels, once).item(), (~answered(answers)).double().mean()
        points.append(Point(policy, value, mean, 1 - mean / recording.layers, cost, unsure=unsure.item()))
    return points


def layer_scores(recording: Recording, metric: str) -> list[float]:
    """The score of every exit, shallowest first."""
    labels = recording.known_labels.numpy()
    return [score(metric, logits.numpy(), labels) for logits in recording.evidence.logits.unbind(1)]


def frontier(points: Sequence[Point]) -> list[Point]:
    """The points that no other dominates, shallowest first."""
    return [points[number] for number in pareto([(point.layers, point.score) for point in points])]


def with_intervals(
    points: Sequence[Point], recording: Recording, metric: str, resamples: int = 500, seed: int = 0
) -> list[Point]:
    """The points with 95 % percentile intervals of their scores, the same resampled rows for all of them."""
    scores = resampled_scores(points, recording, metric, resamples, seed)
    intervals = np.quantile(scores, [0.025, 0.975], axis=0).T
    return [replace(point, low=float(low), high=float(high)) for point, (low, high) in zip(points, intervals)]


def resampled_scores(
    points: Sequence[Point], recording: Recording, metric: str, resamples: int = 500, seed: int = 0
) -> np.ndarray:
    """The points' scores on rows drawn anew with replacement, the same rows for all of them, (resamples, points)."""
    labels, found = recording.known_labels.numpy(), []
    for weights in drawn_weights(len(labels), resamples, seed):
        answers = (recording.replay(point.policy)[0] for point in points)  # one at a time in memory
        found.append(np.hstack([score_of_answered(metric, each, labels, weights) for each in answers]))
    return np.concatenate(found)


def score_of_answered(metric: str, answers: Tensor, labels: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """The score of the rows that did not leave as unsure, logits (N, C), for how often each counts (N, R) -> (R, 1)."""
    given = answered(answers)
    if not given.any():
        return np.zeros((weights.shape[1], 1))
    return weighted_scores(metric, [answers.nan_to_num().numpy()], labels, weights * given[:, None].numpy())


def drawn_weights(rows: int, resamples: int, seed: int, at_once: int = 1_000_000) -> Iterator[np.ndarray]:
    """How often each row is drawn when as many are drawn as there are, (N, R) for some resamples at a time."""
    generator = np.random.default_rng(seed)
    for numbers in np.array_split(np.arange(resamples), -(-resamples * rows // at_once)):
        drawn = generator.integers(0, rows, (len(numbers), rows))
        yield np.stack([np.bincount(each, minlength=rows) for each in drawn], axis=1).astype(np.float64)


# ---- which policies -------------------------------------------------------------------------------------------------


def settings_for(recording: Recording, policy: ExitPolicy, saved: list[float], steps: int = 200) -> list[ExitPolicy]:
    """For each share of layers to be saved, the policy that saves it on the recorded rows, and hardly more.

    Only the field that the rule reads first is varied, mostly its threshold. Where a share is out of reach, the policy
    that saves most.
    """
    tried = by_share(recording, policy, steps)
    return [tried[each][1] for each in nearest(tried, saved)]


def distinct_settings(
    recording: Recording, policy: ExitPolicy, saved: list[float], steps: int = 200
) -> list[ExitPolicy | None]:
    """`settings_for` without two that save the same: the next one is taken instead; None where there are too few."""
    tried = [each for each in by_share(recording, policy, steps) if each[0] > 0]
    places = nearest(tried, saved) if tried else []
    for number in range(1, len(places)):  # up, where the setting before has this place ...
        places[number] = max(places[number], places[number - 1] + 1)
    for number, place in enumerate(places):  # ... and down again, where there is no more room
        places[number] = min(place, len(tried) - len(places) + number)
    return [tried[place][1] if place >= 0 else None for place in places] or [None] * len(saved)


def by_share(recording: Recording, policy: ExitPolicy, steps: int) -> list[tuple[float, ExitPolicy]]:
    """The shares of layers that a policy saves as its first knob varies, each with the most careful setting."""
    policies = varied(recording, policy, first_values(recording, policy, steps))
    found: dict[float, ExitPolicy] = {}
    for each in policies:
        found.setdefault(1 - recording.replay(each)[1].double().mean().item() / recording.layers, each)
    return sorted(found.items(), key=lambda pair: pair[0])


def nearest(tried: list[tuple[float, ExitPolicy]], saved: list[float]) -> list[int]:
    """The numbers of the first that save each share, or of the last."""
    return [next((i for i, (share, _) in enumerate(tried) if share >= goal), len(tried) - 1) for goal in saved]


def first_values(recording: Recording, policy: ExitPolicy, steps: int) -> Sequence[float]:
    """Values of a rule's first knob, from careful to fast; thresholds are `steps` quantiles of the scores."""
    rule = rule_of(policy)
    if not rule.needs_threshold(recording.problem_type):
        return values_of(rule.knobs(recording.problem_type)[0], recording.exit_depths)
    values = recording.scores.of(policy).quantiles(steps)
    return values[::-1] if rule.leaves_above else values


def values_of(name: str, exit_depths: list[int]) -> Sequence[float]:
    """The values of a policy's field worth trying on a model with exits at these layers, from careful to fast."""
    tried = FIELDS[name].tried
    return (
        refuse("knobs", name, "a field whose entry in FIELDS says what to try") if tried is None else tried(exit_depths)
    )


def varied(recording: Recording, policy: ExitPolicy, values: Sequence[float]) -> list[ExitPolicy]:
    """The policy with its rule's first knob at each of the values that fit its other fields."""
    name = rule_of(policy).knobs(recording.problem_type)[0]
    changes: list[dict[str, Any]] = [{name: value} for value in values]
    policies = (replace(policy, **each) for each in changes)
    return [each for each in policies if fits(each, recording.exit_depths, recording.problem_type)]


def grid(
    recording: Recording,
    criterion: str,
    base: ExitPolicy | None = None,
    steps: int = 40,
    patience: Sequence[int] = (1, 2, 3),
    min_layers: Sequence[int] = (1,),
) -> Iterator[ExitPolicy]:
    """Settings of one criterion: every value of its first knob, for each lowest layer and value of its other knobs."""
    depths, names = recording.exit_depths, CRITERIA[criterion].knobs(recording.problem_type)[1:]
    base = replace(base or ExitPolicy(), criterion=criterion)
    base = replace(base, window=min(base.window, len(depths)))
    values = [patience if name == "patience" else values_of(name, depths)[::-1] for name in names]
    first: dict[tuple, Sequence[float]] = {}
    for *chosen, layer in product(*values, min_layers):
        knobs: dict[str, Any] = {**dict(zip(names, chosen)), "min_layer": layer}
        policy = replace(base, **knobs)
        if (key := score_key(policy)) not in first:
            first[key] = first_values(recording, policy, steps)
        yield from varied(recording, policy, first[key])


def judging(recording: Recording) -> list[str]:
    """The criteria whose problem type and evidence the recording has."""
    return able(recording.problem_type, recording.evidence.emitted)
