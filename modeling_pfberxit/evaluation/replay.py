"""Replay: what any policy would have done, from the evidence that one full-depth pass recorded.

The same `step` that runs online is fed with the recorded logits, so the answers and depths are the same.
"""

from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from ..criteria import CRITERIA, own_answer, score_of, start
from ..evidence import Evidence, ExitState, predictions
from ..exit_policy import ExitPolicy
from ..validation import refuse


def replay(evidence: Evidence, policy: ExitPolicy, exit_depths: list[int], problem_type: str) -> tuple[Tensor, Tensor]:
    """The answers (N, C) and executed layers (N,) that the policy gives on recorded evidence, logits (N, E, C)."""
    return decide_all(score_all(evidence, policy, problem_type), evidence, policy, exit_depths)


def replay_many(
    evidence: Evidence, policies: Iterable[ExitPolicy], exit_depths: list[int], problem_type: str
) -> Iterator[tuple[ExitPolicy, Tensor, Tensor]]:
    """`replay` for many policies, the same scores worked out once. Yields policy, answers and layers."""
    known: dict[ExitPolicy, list[Scored]] = {}
    for policy in policies:
        key = replace(policy, threshold=None, min_layer=1, appointed_layer=None, **free_of_patience(policy))
        if key not in known:
            known[key] = score_all(evidence, policy, problem_type)
        yield (policy, *decide_all(known[key], evidence, policy, exit_depths))


class Scored(NamedTuple):
    """One exit's evidence with its score, which no threshold has been held against yet."""

    score: Tensor
    now: Tensor
    evidence: Evidence
    state: ExitState


def score_all(evidence: Evidence, policy: ExitPolicy, problem_type: str) -> list[Scored]:
    """Every exit's scores under the policy's criterion."""
    rows, exits, labels = evidence.logits.shape
    has = {"use_lte": evidence.lte is not None, "use_prototypes": evidence.distances is not None, None: True}
    if not has[needed := CRITERIA[policy.criterion].needs_evidence]:
        refuse("criterion", policy.criterion, f"a rule whose evidence was recorded: this model had no {needed}")
    state = start(rows, labels, policy, exits, problem_type, evidence.logits.device)
    scored = []
    for number in range(exits):
        part = evidence.at(number)
        now = predictions(part.logits, problem_type)
        scored.append(Scored(score_of(now, part, state, policy), now, part, replace(state)))
        state.remember(now)
    return scored


def decide_all(
    scored: list[Scored], evidence: Evidence, policy: ExitPolicy, exit_depths: list[int]
) -> tuple[Tensor, Tensor]:
    """The answers (N, C) and executed layers (N,): `decide` at one exit after the other, as online."""
    rule, count = CRITERIA[policy.criterion], scored[0].state.count
    running, at = torch.ones_like(count, dtype=torch.bool), torch.zeros_like(count)
    for each, depth in zip(scored[:-1], exit_depths):
        state = replace(each.state, count=count)
        fire = rule.decide(each.score, state, policy, torch.tensor(depth))
        count = state.count
        if depth >= policy.min_layer:
            running = running & ~fire
        at += running
    layers = torch.tensor(exit_depths)[at]
    if rule.answer is own_answer:
        return evidence.logits[torch.arange(len(at)), at], layers
    return answers_at(at, scored, policy, exit_depths), layers


def answers_at(at: Tensor, scored: list[Scored], policy: ExitPolicy, exit_depths: list[int]) -> Tensor:
    """What the exits say that the rows stopped at, (N,) -> (N, C), for rules that ask more than one exit."""
    rule, count = CRITERIA[policy.criterion], scored[0].state.count
    answers = torch.empty_like(scored[0].evidence.logits)
    for number, (each, depth) in enumerate(zip(scored, exit_depths, strict=True)):
        state = replace(each.state, count=count)
        fire = rule.decide(each.score, state, policy, torch.tensor(depth)) & (depth >= policy.min_layer)
        count = state.count
        rows = (at == number).nonzero().squeeze(1)
        part = Evidence(*(None if kind is None else kind[rows] for kind in each.evidence))
        answers[rows] = rule.answer(fire[rows], each.now[rows], part, state.select(rows), policy)
    return answers


def free_of_patience(policy: ExitPolicy) -> dict[str, int]:
    """Patience 1 for rules whose scores, and what they look back on, do not know it."""
    return {} if policy.ensemble == "run" else {"patience": 1}


def candidate_thresholds(evidence: Evidence, policy: ExitPolicy, problem_type: str, steps: int) -> list[float]:
    """Quantiles of the scores that occur, and one above all of them."""
    seen = torch.cat([each.score.flatten() for each in score_all(evidence, policy, problem_type)])
    seen = seen[seen.isfinite()].numpy()
    if not seen.size:  # a rule that only agrees or disagrees
        return [0.0]
    return [*np.unique(np.quantile(seen, np.linspace(0, 1, steps))).tolist(), float(seen.max()) * 1.01 + 1e-6]
