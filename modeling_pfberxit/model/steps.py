"""One step of a rule: score an exit's evidence, decide by tau and t, answer, remember; labels with a tau of their own.

What a rule is made of is in `criteria`. A step is the same online (`loop`) and in the replay of recorded evidence.
"""

from __future__ import annotations

import math
from dataclasses import replace

import torch
from torch import Tensor

from .criteria import rule_of
from .evidence import ABSTAIN, MULTI_LABEL, Evidence, ExitState, PolicyFields, confidence, predictions


def start(
    rows: int, num_labels: int, policy: PolicyFields, exits: int, problem_type: str, device: torch.device
) -> ExitState:
    """The state before the first of `exits` exits, with room for what the policy's criterion looks back on."""
    memory = rule_of(policy).remembered(policy, exits)
    state = ExitState.start(rows, num_labels, max(memory, 1), problem_type, device)
    if one_by_one(policy, problem_type):
        state.count = state.count[:, None].repeat(1, num_labels)
    return state


def step(evidence: Evidence, state: ExitState, policy: PolicyFields, depth: Tensor) -> tuple[Tensor, Tensor]:
    """One exit: score, decide, remember.

    Args:
        depth: (B,) each row's layer, 1-based.

    Returns:
        Which rows may exit here, (B,), and the logits they answer with, (B, C), NaN where they leave as unsure; at the
        last exit those of all rows. A row whose logits are NaN never fires.
    """
    rule, now = rule_of(policy), predictions(evidence.logits, state.problem_type)
    score, labels = score_of(now, evidence, state, policy), labels_of(now, evidence, state, policy)
    fire = decide(score, labels, state, policy, depth)
    if policy.min_layer > 1:
        fire = fire & (depth >= policy.min_layer)
    answer = rule.answer(fire, now, evidence, state, policy)
    if policy.answer == ABSTAIN:
        quits = unsure(now, state, policy, depth) & ~fire
        fire, answer = fire | quits, answer.masked_fill(quits[:, None], math.nan)
    state.remember(now)
    return fire, answer


def unsure(now: Tensor, state: ExitState, policy: PolicyFields, depth: Tensor) -> Tensor:
    """Which rows' largest probability was too small at this and the m - 1 exits before, (B,)."""
    likely = confidence(state.with_newest(now)[:, : policy.window], policy.normalize)  # (B, m), NaN: there was none
    return (likely < policy.unsure_below).all(1) & (depth >= policy.min_layer)


def chance(state: ExitState, policy: PolicyFields, depth: Tensor, exits: int) -> Tensor:
    """An estimate, before the coming exit is run, of the probability (B,) that a row exits there: 0 never, 1 surely.

    A rule that fires on the lowest and on the highest possible score needs no evidence; one that fires on neither has
    not counted enough exits. Otherwise it is 1/2 for a row whose count of exits in a row has begun, and for the others
    as large as at each of the remaining exits.
    """
    rule, (rows, memory) = rule_of(policy), state.past.shape[:2]
    state = replace(state, count=state.count.reshape(rows, -1).amin(1), label=None)  # the label is not known yet
    lowest = state.past.new_full((rows, memory) if rule.each_exit else (rows,), -math.inf)
    low, high = (rule.decide(score, replace(state), policy, depth) for score in (lowest, -lowest))
    able = (depth >= policy.min_layer) & (state.seen + 1 >= rule.first_exit(policy))
    likely = torch.where(state.count > 0, 0.5, 1 / (exits - state.seen).clamp(min=2))
    return torch.where(low & high, 1.0, likely) * (able & (low | high))


# ---- labels with thresholds of their own ----------------------------------------------------------------------------


def one_by_one(policy: PolicyFields, problem_type: str) -> bool:
    """Whether every label of a row is scored, counted and decided on its own; the row leaves when all have fired."""
    return problem_type == MULTI_LABEL and "label_thresholds" in rule_of(policy).reads(policy)


def labels_of(now: Tensor, evidence: Evidence, state: ExitState, policy: PolicyFields) -> Tensor | None:
    """What each row would answer with here: the label (B,), or of several each that it has, else -1, (B, L).

    None where no label has a threshold of its own.
    """
    rule = rule_of(policy)
    if "label_thresholds" not in rule.reads(policy):
        return None
    everyone = torch.ones_like(state.seen, dtype=torch.bool)
    outcome = predictions(rule.answer(everyone, now, evidence, state, policy), state.problem_type).argmax(-1)  # (B, L)
    if not one_by_one(policy, state.problem_type):
        return outcome[:, 0]
    return torch.where(outcome == 0, torch.arange(outcome.shape[1], device=outcome.device), -1)


def decide(score: Tensor, labels: Tensor | None, state: ExitState, policy: PolicyFields, depth: Tensor) -> Tensor:
    """Which rows may exit by their scores, (B,), (B, m) or for each label of a row in turn, and their `labels_of`."""
    rule = rule_of(policy)
    if not one_by_one(policy, state.problem_type) or labels is None:
        state.label = labels
        return rule.decide(score, state, policy, depth)
    count = state.count if state.count.dim() == 2 else state.count[:, None].expand_as(labels)
    seen = state.seen.repeat_interleave(labels.shape[1])
    each = replace(state, seen=seen, count=count.flatten(), label=labels.flatten())
    fire = rule.decide(score, each, policy, depth)
    state.count = each.count.view_as(labels)
    return fire.view_as(labels).all(1)


def each_label(now: Tensor, evidence: Evidence, state: ExitState) -> tuple[Tensor, Evidence, ExitState]:
    """Every label of every row as a row of its own, (B x L, ...), to be scored."""
    several = now.shape[1]
    lte = None if evidence.lte is None else evidence.lte.repeat_interleave(several)
    distances = None if evidence.distances is None else evidence.distances.flatten(0, 1)[:, None]
    past = state.past.transpose(1, 2).flatten(0, 1)[:, :, None]
    seen = state.seen.repeat_interleave(several)
    single = ExitState(past, seen, torch.zeros_like(seen), state.problem_type)
    return now.flatten(0, 1)[:, None], Evidence(evidence.logits.reshape(-1, 1), lte, distances), single


def score_of(now: Tensor, evidence: Evidence, state: ExitState, policy: PolicyFields) -> Tensor:
    """The criterion's score of every row, (B,) or (B, m); NaN, which is on no side of any tau, where the logits are.

    Where labels are judged one by one, every label's of every row in turn.
    """
    if one_by_one(policy, state.problem_type):
        now, evidence, state = each_label(now, evidence, state)
    score = rule_of(policy).score(now, evidence, state, policy)
    broken = now.sum((-2, -1)).isnan()
    return score.masked_fill(broken if score.dim() == 1 else broken[:, None], math.nan)
