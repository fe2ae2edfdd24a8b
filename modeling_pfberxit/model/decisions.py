"""Which rows may stop, and what those that stop are told: the second half of every rule.

A decision holds a score against the threshold tau and the patience t. Most rules answer with the exit's own logits; an
answer of their own have those that ask several exits. Shapes are explained in `evidence`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from .evidence import Evidence, ExitState, as_logits, confidence
from .policy_fields import PolicyFields, declared, reads
from .scores import ballot, has_spoken

# ---- decide: which rows may stop ------------------------------------------------------------------------------------


def threshold(state: ExitState, policy: PolicyFields) -> Tensor | float:
    """tau as it applies to each row at the exit it stands at."""
    if isinstance(policy.threshold, tuple):
        return torch.tensor(policy.threshold, device=state.seen.device)[state.seen]
    return 0.0 if policy.threshold is None else policy.threshold


@reads("threshold")
def decide_below(score: Tensor, state: ExitState, policy: PolicyFields, depth: Tensor) -> Tensor:
    """At the first exit whose score is below tau."""
    return score < threshold(state, policy)


@reads("threshold", above=True)
def decide_above(score: Tensor, state: ExitState, policy: PolicyFields, depth: Tensor) -> Tensor:
    """At the first exit whose score reaches tau."""
    return score >= threshold(state, policy)


@reads("threshold", "patience")
def decide_count(score: Tensor, state: ExitState, policy: PolicyFields, depth: Tensor) -> Tensor:
    """Eq. 5: count the exits in a row whose score is below tau; stop when there are t of them."""
    state.count = (state.count + 1) * (score < threshold(state, policy))
    return state.count >= policy.patience


@reads("threshold", "patience")
def decide_number(score: Tensor, state: ExitState, policy: PolicyFields, depth: Tensor) -> Tensor:
    """v3: when t of the last m divergences are below tau, in whichever order."""
    return score[:, policy.patience - 1] < threshold(state, policy)


@reads("threshold", "patience", above=True)
def decide_votes(score: Tensor, state: ExitState, policy: PolicyFields, depth: Tensor) -> Tensor:
    """When the majority has t votes and a share of at least tau."""
    enough = (score * (state.seen + 1)).round() >= policy.patience
    return enough & (score >= threshold(state, policy))


@reads("appointed_layer")
def decide_appointed(score: Tensor, state: ExitState, policy: PolicyFields, depth: Tensor) -> Tensor:
    """At one layer fixed beforehand, whatever is predicted there."""
    return (depth >= policy.appointed_layer) & ~score.isnan()


def decide_never(score: Tensor, state: ExitState, policy: PolicyFields, depth: Tensor) -> Tensor:
    """Nowhere before the last layer."""
    return torch.zeros_like(score, dtype=torch.bool)


# ---- memory: how many earlier exits a rule looks back on ------------------------------------------------------------


def nothing(policy: PolicyFields, exits: int) -> int:
    """The rule looks at one exit alone."""
    return 0


def one_before(policy: PolicyFields, exits: int) -> int:
    """The rule looks back on the exit before."""
    return 1


def by_window(policy: PolicyFields, exits: int) -> int:
    """The rule looks back on m exits."""
    return policy.window


def all_before(policy: PolicyFields, exits: int) -> int:
    """The rule looks back on every exit."""
    return exits - 1


# ---- answer: what a row that stops is told --------------------------------------------------------------------------


def own_answer(fire: Tensor, now: Tensor, evidence: Evidence, state: ExitState, policy: PolicyFields) -> Tensor:
    """The exit's own logits, (B, C)."""
    return evidence.logits


def surest_answer(fire: Tensor, now: Tensor, evidence: Evidence, state: ExitState, policy: PolicyFields) -> Tensor:
    """Shallow-Deep: the exit's own logits where it fires; where none does, those of the most confident one so far."""
    tables = state.with_newest(now)
    best = confidence(tables).nan_to_num(-1.0).argmax(1)  # (B,) 0 is this exit
    answer = as_logits(tables[torch.arange(len(best), device=best.device), best], state.problem_type)
    return torch.where((fire | (best == 0))[:, None], evidence.logits, answer.to(evidence.logits.dtype))


@reads("patience")
def in_run(heard: Tensor, state: ExitState, policy: PolicyFields) -> Tensor:
    """The last sure exits, at most t: (B, 1 + m) which exits there were, the latest first -> which of them count."""
    length = state.count[:, None].clamp(1, policy.patience)
    return heard & (torch.arange(heard.shape[1], device=heard.device) < length)


def everyone(heard: Tensor, state: ExitState, policy: PolicyFields) -> Tensor:
    """All exits so far."""
    return heard


class Ensemble(NamedTuple):
    """Which exits an answer is a mean of (None: the exit itself), and how far back they may lie."""

    members: Callable[[Tensor, ExitState, PolicyFields], Tensor] | None
    memory: Callable[[PolicyFields, int], int]


ENSEMBLES = {
    "none": Ensemble(None, nothing),
    "run": Ensemble(in_run, lambda policy, exits: policy.patience - 1),
    "all": Ensemble(everyone, lambda policy, exits: exits - 1),
}


@reads("ensemble", also=lambda policy: declared(ENSEMBLES[policy.ensemble].members or own_answer))
def ensemble_answer(fire: Tensor, now: Tensor, evidence: Evidence, state: ExitState, policy: PolicyFields) -> Tensor:
    """PCEE-BERT: the exit's own logits, or the mean over an ensemble of the exits so far."""
    members = ENSEMBLES[policy.ensemble].members
    if members is None:
        return evidence.logits
    return mean_answer(now, evidence, state, members(has_spoken(now, state), state, policy)[:, :, None])


def majority_answer(fire: Tensor, now: Tensor, evidence: Evidence, state: ExitState, policy: PolicyFields) -> Tensor:
    """The mean of those exits that voted for the winner."""
    winners, _ = ballot(now, state)
    voters = (state.with_newest(now).argmax(-1) == winners[:, None]) & has_spoken(now, state)[
        :, :, None
    ]  # (B, 1 + m, L)
    return mean_answer(now, evidence, state, voters)


def mean_answer(now: Tensor, evidence: Evidence, state: ExitState, members: Tensor) -> Tensor:
    """The logits (B, C) of the mean probabilities of this and earlier exits, where members (B, 1 + m, L or 1)."""
    tables = state.with_newest(now).masked_fill(~members[..., None], -math.inf)
    mean = tables.logsumexp(1) - members.sum(1)[..., None].log()
    return as_logits(mean, state.problem_type).to(evidence.logits.dtype)


def by_ensemble(policy: PolicyFields, exits: int) -> int:
    """The rule looks back on the exits its answer is a mean of."""
    return ENSEMBLES[policy.ensemble].memory(policy, exits)
