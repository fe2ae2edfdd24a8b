"""The frontier of a recording: what every criterion can reach, score against layers and multiply-adds.

Points are policies replayed on recorded rows. Those worth having are the ones no other dominates; how sure they are is
told by resampling the rows.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import product

import numpy as np
from torch import Tensor

from ..data.metrics import score
from ..data.weighted import weighted_scores
from ..model.configuration_pfberxit import PFBerxitConfig
from ..model.criteria import CRITERIA
from ..model.exit_policy import ExitPolicy, to_the_end
from .elue import pareto
from .macs import depth_macs
from .recording import Recording
from .replay import candidate_thresholds, replay_many, was_recorded


@dataclass(frozen=True)
class Point:
    """One policy on recorded rows.

    Args:
        layers: executed, mean over rows.
        saved: the share of layers that was not.
        macs: multiply-adds relative to full depth, mean over rows; None where the encoder's shape is not known.
        low, high: the 95 % bootstrap interval of the score over rows, where it was asked for.
    """

    policy: ExitPolicy
    score: float
    layers: float
    saved: float
    macs: float | None = None
    low: float | None = None
    high: float | None = None

    @property
    def speed_up(self) -> float:
        """By layers."""
        return 1 / (1 - self.saved)


def sweep(
    recording: Recording, policies: Iterable[ExitPolicy], metric: str, config: PFBerxitConfig | None = None
) -> list[Point]:
    """Replay policies on a recording with labels; `config` prices them in multiply-adds."""
    replayed = replay_many(recording.evidence, policies, recording.exit_depths, recording.problem_type)
    return measured(replayed, recording, metric, config)


def measured(
    replayed: Iterable[tuple[ExitPolicy, Tensor, Tensor]],
    recording: Recording,
    metric: str,
    config: PFBerxitConfig | None = None,
) -> list[Point]:
    """What policies did, given their answers (N, C) and executed layers (N,) on the recorded rows."""
    labels, once, points = recording.labels.numpy(), np.ones((1, len(recording)), dtype=int), []
    prices = None if config is None else depth_macs(config, recording.lengths, recording.exit_depths)  # (N, n + 1)
    for policy, answers, layers in replayed:
        mean = layers.double().mean().item()
        cost = None
        if prices is not None:
            cost = (prices.gather(1, layers[:, None]).sum() / prices[:, -1].sum()).item()
        value = weighted_scores(metric, [answers.numpy()], labels, once).item()
        points.append(Point(policy, value, mean, 1 - mean / recording.layers, cost))
    return points


def layer_scores(recording: Recording, metric: str) -> list[float]:
    """The score of every exit, shallowest first."""
    labels = recording.labels.numpy()
    return [score(metric, logits.numpy(), labels) for logits in recording.evidence.logits.unbind(1)]


def never(recording: Recording) -> ExitPolicy:
    """The policy under which every row runs to the last layer."""
    return to_the_end(recording.layers)


def frontier(points: Sequence[Point]) -> list[Point]:
    """Those that no other beats at the same or a smaller depth, shallowest first."""
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
    labels, policies = recording.labels.numpy(), [point.policy for point in points]
    replayed = replay_many(recording.evidence, policies, recording.exit_depths, recording.problem_type)
    answers = [each.numpy() for _, each, _ in replayed]
    parts = drawn_weights(len(labels), resamples, seed)
    return np.concatenate([weighted_scores(metric, answers, labels, weights) for weights in parts])


def drawn_weights(rows: int, resamples: int, seed: int, at_once: int = 4_000_000) -> Iterator[np.ndarray]:
    """How often each row is drawn when as many are drawn as there are, (R, N) for some resamples at a time."""
    generator = np.random.default_rng(seed)
    for numbers in np.array_split(np.arange(resamples), -(-resamples * rows // at_once)):
        drawn = generator.integers(0, rows, (len(numbers), rows))
        yield np.stack([np.bincount(each, minlength=rows) for each in drawn])


def thresholds_for(recording: Recording, policy: ExitPolicy, saved: list[float], steps: int = 200) -> list[float]:
    """For each share of layers to be saved, the threshold that saves it on the recorded rows, and hardly more.

    Tries `steps` quantiles of the scores that occur; where a share is out of reach, the threshold that saves most.
    """
    taus = candidate_thresholds(recording.evidence, policy, recording.problem_type, steps)
    policies = (replace(policy, threshold=tau) for tau in taus)
    replayed = replay_many(recording.evidence, policies, recording.exit_depths, recording.problem_type)
    shares = [1 - layers.double().mean().item() / recording.layers for _, _, layers in replayed]
    ranked = sorted(range(len(taus)), key=lambda i: (shares[i], abs(taus[i])))
    return [taus[next((i for i in ranked if shares[i] >= goal), ranked[-1])] for goal in saved]


# ---- which policies -------------------------------------------------------------------------------------------------


def grid(
    recording: Recording,
    criterion: str,
    base: ExitPolicy | None = None,
    steps: int = 40,
    patience: Sequence[int] = (1, 2, 3),
    min_layers: Sequence[int] = (1,),
) -> Iterator[ExitPolicy]:
    """Settings of one criterion: quantiles of its scores as thresholds, for each patience, window and lowest layer."""
    rule, exits = CRITERIA[criterion], recording.evidence.logits.shape[1]
    base = replace(base or ExitPolicy(), criterion=criterion, threshold=0.0)
    if criterion == "appointed":
        yield from (replace(base, appointed_layer=depth) for depth in recording.exit_depths)
        return
    patience = [t for t in patience if t <= exits] if rule.counts_exits else [base.patience]
    windows = range(2, exits + 1) if criterion in ("window", "divergence_v3") else [min(base.window, exits)]
    taus = {  # scores depend on neither patience nor the lowest layer
        m: candidate_thresholds(recording.evidence, replace(base, window=m), recording.problem_type, steps)
        for m in windows
    }
    for t, m, layer in product(patience, windows, min_layers):
        if criterion == "divergence_v3" and t > m:
            continue
        policy = replace(base, patience=t, window=m, min_layer=layer)
        yield from (replace(policy, threshold=tau) for tau in taus[m])


def judging(recording: Recording) -> list[str]:
    """The criteria that can judge what was recorded."""
    return [
        name
        for name, rule in CRITERIA.items()
        if recording.problem_type in rule.problem_types and was_recorded(recording.evidence, rule.needs_evidence)
    ]
