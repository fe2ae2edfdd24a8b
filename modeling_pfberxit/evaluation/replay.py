"""Replay: what any policy would have done, from the evidence that one full-depth pass recorded.

The same `step` that runs online is fed with the recorded logits, so the answers and depths are the same.
"""

from dataclasses import replace

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from ..criteria import CRITERIA, start, step
from ..evidence import Evidence, predictions
from ..exit_policy import ExitPolicy


@torch.no_grad()
def record(model: torch.nn.Module, loader: DataLoader) -> tuple[Evidence, Tensor]:
    """Every exit's evidence, logits (N, E, C) first, and the labels, in one full-depth pass over the loader."""
    parts, labels = [], []
    for batch in loader:
        labels.append(batch.pop("labels").cpu())
        batch = {name: values.to(model.device) for name, values in batch.items()}
        output = model(**batch, exit_policy={"criterion": None})
        parts.append((output.exit_logits, output.exit_lte, output.exit_distances))
    joined = (None if kind[0] is None else torch.cat([part.float().cpu() for part in kind]) for kind in zip(*parts))
    return Evidence(*joined), torch.cat(labels)


def replay(evidence: Evidence, policy: ExitPolicy, exit_depths: list[int], problem_type: str) -> tuple[Tensor, Tensor]:
    """The answers (N, C) and executed layers (N,) that the policy gives on recorded evidence, logits (N, E, C)."""
    rows, exits, labels = evidence.logits.shape
    state = start(rows, labels, policy, exits, problem_type, evidence.logits.device)
    answers, layers = evidence.logits[:, -1].clone(), torch.zeros(rows, dtype=torch.long)
    for number, depth in enumerate(exit_depths):
        fire, answer = step(evidence.at(number), state, policy, torch.full((rows,), depth))
        stops = (fire | (number == exits - 1)) & (layers == 0)
        answers[stops], layers[stops] = answer[stops], depth
    return answers, layers


def thresholds_for(
    evidence: Evidence,
    policy: ExitPolicy,
    exit_depths: list[int],
    problem_type: str,
    saved: list[float],
    steps: int = 200,
) -> list[float]:
    """For each share of layers to be saved, the threshold that saves it on the recorded rows, and hardly more.

    Tries `steps` quantiles of the scores that occur; where a share is out of reach, the threshold that saves most.
    """
    taus = candidate_thresholds(evidence, policy, problem_type, steps)
    shares = []
    for tau in taus:
        _, layers = replay(evidence, with_threshold(policy, tau), exit_depths, problem_type)
        shares.append(1 - layers.float().mean().item() / exit_depths[-1])
    ranked = sorted(range(len(taus)), key=lambda i: (shares[i], abs(taus[i])))
    return [taus[next((i for i in ranked if shares[i] >= goal), ranked[-1])] for goal in saved]


def candidate_thresholds(evidence: Evidence, policy: ExitPolicy, problem_type: str, steps: int) -> list[float]:
    """Quantiles of the scores that occur, and one above all of them."""
    rule, (rows, exits, labels) = CRITERIA[policy.criterion], evidence.logits.shape
    state = start(rows, labels, policy, exits, problem_type, evidence.logits.device)
    scores = []
    for number in range(exits):
        now = predictions(evidence.logits[:, number], problem_type)
        scores.append(rule.score(now, evidence.at(number), state, policy).flatten())
        state.remember(now)
    seen = torch.cat(scores)
    seen = seen[seen.isfinite()].numpy()
    if not seen.size:  # a rule that only agrees or disagrees
        return [0.0]
    return [*np.unique(np.quantile(seen, np.linspace(0, 1, steps))).tolist(), float(seen.max()) * 1.01 + 1e-6]


def with_threshold(policy: ExitPolicy, tau: float) -> ExitPolicy:
    """The same policy at another threshold."""
    return replace(policy, threshold=tau)
