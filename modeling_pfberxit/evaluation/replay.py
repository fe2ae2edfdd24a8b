"""Replay: what any policy would have done, from the evidence that one full-depth pass recorded.

The same `step` that runs online is fed with the recorded logits, so the answers and depths are the same.
"""

from dataclasses import replace

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from ..criteria import CRITERIA, Evidence, ExitState, predictions, step
from ..exit_policy import ExitPolicy


@torch.no_grad()
def record(model: torch.nn.Module, loader: DataLoader) -> tuple[Tensor, Tensor]:
    """Every exit's logits (N, E, C) and the labels, in one full-depth pass over the loader."""
    logits, labels = [], []
    for batch in loader:
        labels.append(batch.pop("labels").cpu())
        batch = {name: values.to(model.device) for name, values in batch.items()}
        logits.append(model(**batch, exit_policy={"criterion": None}).exit_logits.float().cpu())
    return torch.cat(logits), torch.cat(labels)


def replay(exit_logits: Tensor, policy: ExitPolicy, exit_depths: list[int], problem_type: str) -> tuple[Tensor, Tensor]:
    """The answers (N, C) and executed layers (N,) that the policy gives on recorded logits (N, E, C)."""
    rows, exits, labels = exit_logits.shape
    state = ExitState.start(rows, labels, policy, problem_type, exit_logits.device)
    answers, layers = exit_logits[:, -1].clone(), torch.zeros(rows, dtype=torch.long)
    for number, depth in enumerate(exit_depths):
        fire, answer = step(Evidence(exit_logits[:, number]), state, policy, torch.full((rows,), depth))
        stops = (fire | (number == exits - 1)) & (layers == 0)
        answers[stops], layers[stops] = answer[stops], depth
    return answers, layers


def thresholds_for(
    exit_logits: Tensor,
    policy: ExitPolicy,
    exit_depths: list[int],
    problem_type: str,
    saved: list[float],
    steps: int = 200,
) -> list[float]:
    """For each share of layers to be saved, the smallest threshold that saves it on the recorded rows.

    Tries `steps` quantiles of the scores that occur; where a share is out of reach, the threshold that saves most.
    """
    taus = candidate_thresholds(exit_logits, policy, problem_type, steps)
    shares = []
    for tau in taus:
        _, layers = replay(exit_logits, with_threshold(policy, tau), exit_depths, problem_type)
        shares.append(1 - layers.float().mean().item() / exit_depths[-1])
    return [next((tau for tau, share in zip(taus, shares) if share >= goal), taus[-1]) for goal in saved]


def candidate_thresholds(exit_logits: Tensor, policy: ExitPolicy, problem_type: str, steps: int) -> list[float]:
    """Quantiles of the scores between adjacent exits, and one above all of them."""
    rule, rows = CRITERIA[policy.criterion], exit_logits.shape[0]
    state = ExitState.start(rows, exit_logits.shape[2], policy, problem_type, exit_logits.device)
    scores = []
    for logits in exit_logits.unbind(1):
        now = predictions(logits, problem_type)
        scores.append(rule.score(now, Evidence(logits), state, policy).flatten())
        state.remember(now)
    seen = torch.cat(scores)
    seen = seen[seen.isfinite()].numpy()
    if not seen.size:  # a rule that only agrees or disagrees
        return [0.0]
    return [*np.unique(np.quantile(seen, np.linspace(0, 1, steps))).tolist(), float(seen.max()) * 1.01 + 1e-6]


def with_threshold(policy: ExitPolicy, tau: float) -> ExitPolicy:
    """The same policy at another threshold."""
    return replace(policy, threshold=tau)
