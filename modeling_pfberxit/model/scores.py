"""The functions that rules are made of: scores, decisions, how far a rule looks back, and the answers of exiting rows.

A score condenses an exit's evidence to a number per row, without the threshold tau and the patience t; a decision
compares it with them. What holds for one label must hold for all: entropies and divergences are summed over the labels,
shares and probabilities are those of the least certain label. Shapes are explained in `evidence`; which functions make
a rule is in `criteria`, the order in which they are called in `steps`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import one_hot

from .evidence import (
    DIVERGENCES,
    REGRESSION,
    Evidence,
    ExitState,
    PolicyFields,
    as_logits,
    confidence,
    declared,
    entropy,
    reads,
)

EPSILON = 1e-6  # keeps a harmonic mean finite


def divergences_from_past(now: Tensor, state: ExitState, policy: PolicyFields) -> Tensor:
    """s_{i,i-1} ... s_{i,i-m}, summed over labels: (B, L, K) against (B, m, L, K) -> (B, m); NaN: there was none."""
    divergence = DIVERGENCES[policy.divergence]
    scores = state.divergences(now, divergence.of)
    return scores / (now.shape[1] * divergence.unit(now.shape[2])) if policy.normalize else scores


@reads("divergence", "normalize")
def score_v1(now: Tensor, evidence: Evidence, state: ExitState, policy: PolicyFields) -> Tensor:
    """The divergence from the exit before, (B,)."""
    return divergences_from_past(now, state, policy)[:, 0]


@reads("divergence", "normalize", "window")
def score_v2(now: Tensor, evidence: Evidence, state: ExitState, policy: PolicyFields) -> Tensor:
    """The largest divergence from the last m exits, or as many as there are, (B,)."""
    scores = divergences_from_past(now, state, policy)
    missing = torch.arange(scores.shape[1], device=scores.device) >= state.seen[:, None].clamp(min=1)
    return scores.masked_fill(missing, -math.inf).amax(-1)


@reads("divergence", "normalize", "window")
def score_v3(now: Tensor, evidence: Evidence, state: ExitState, policy: PolicyFields) -> Tensor:
    """The divergences from the last m exits, smallest first, (B, m)."""
    return divergences_from_past(now, state, policy).sort(-1).values  # NaN comes last


@reads("divergence", "normalize", "window")
def score_dge(now: Tensor, evidence: Evidence, state: ExitState, policy: PolicyFields) -> Tensor:
    """BADGE: the mean divergence from the last m exits, or as many as there are, (B,).

    No formula is public; the abstract speaks of the divergence between an exit and the previous ones. Our reading is
    their mean, since with m = 1 it is the "adjacent layers" of the abstract's other version.
    """
    scores = divergences_from_past(now, state, policy)
    missing = torch.arange(scores.shape[1], device=scores.device) >= state.seen[:, None]
    return scores.masked_fill(missing, 0.0).sum(-1) / (~missing).sum(-1)  # 0 / 0 at the first exit: NaN


def score_patience(now: Tensor, evidence: Evidence, state: ExitState, policy: PolicyFields) -> Tensor:
    """PABEE: the distance from the exit before, (B,). Labels: -inf if all agree, else +inf; regression: |y_i - y_j|."""
    before = state.past[:, 0]
    if state.problem_type == REGRESSION:
        return (now - before).abs().amax((-2, -1))
    agree = (now.argmax(-1) == before.argmax(-1)).all(-1) & ~before.isnan().flatten(1).any(1)
    return torch.where(agree, -math.inf, math.inf)


@reads("normalize")
def score_entropy(now: Tensor, evidence: Evidence, state: ExitState, policy: PolicyFields) -> Tensor:
    """BranchyNet, DeeBERT; normalised FastBERT and PCEE-BERT: H(p), (B,)."""
    return entropy(now, policy.normalize)


@reads("normalize")
def score_confidence(now: Tensor, evidence: Evidence, state: ExitState, policy: PolicyFields) -> Tensor:
    """Shallow-Deep: the largest probability, (B,)."""
    return confidence(now, policy.normalize)


def score_lte(now: Tensor, evidence: Evidence, state: ExitState, policy: PolicyFields) -> Tensor:
    """BERxiT: how likely the exit is wrong, as its learning-to-exit head has it, (B,)."""
    return evidence.required("use_lte").float()


def agree(likely: Tensor, policy: PolicyFields) -> Tensor:
    """Nothing more than the same label: its probability at the last m exits (B, m, L) -> (B, L)."""
    return torch.ones_like(likely[:, 0], dtype=torch.bool)


def monotone(likely: Tensor, policy: PolicyFields) -> Tensor:
    """The label's probability only rises or only falls."""
    changes = likely[:, :-1] - likely[:, 1:]
    return (changes >= 0).all(1) | (changes <= 0).all(1)


@reads("window_range")
def narrow(likely: Tensor, policy: PolicyFields) -> Tensor:
    """The label's probability varies by at most `window_range`."""
    return likely.amax(1) - likely.amin(1) <= policy.window_range


WINDOW_RULES = {"agree": agree, "monotone": monotone, "narrow": narrow}


@reads("normalize", "window", "window_rule", also=lambda policy: declared(WINDOW_RULES[policy.window_rule]))
def score_window(now: Tensor, evidence: Evidence, state: ExitState, policy: PolicyFields) -> Tensor:
    """ELBERT's two stages, (B,): the entropy; -inf where the last m exits, this one included, settled on an answer.

    They settled if all predict the same label and its probability does what `window_rule` asks. With two classes these
    are ELBERT's three rules on P(class 0); following the predicted label's probability carries them over to many.
    """
    tables = state.with_newest(now)[:, : policy.window]  # (B, m, L, K)
    labels = tables.argmax(-1)  # (B, m, L)
    likely = tables.gather(-1, labels[:, :1, :, None].expand(*labels.shape, 1)).squeeze(-1).exp()  # (B, m, L)
    settled = (labels == labels[:, :1]).all(1) & ~likely.isnan().any(1)  # (B, L)
    settled = settled & WINDOW_RULES[policy.window_rule](likely, policy)
    return entropy(now, policy.normalize).masked_fill(settled.all(-1), -math.inf)


@reads("normalize", "distance_weight")
def score_distance(now: Tensor, evidence: Evidence, state: ExitState, policy: PolicyFields) -> Tensor:
    """DE3-BERT: the harmonic mean of distance ratio and entropy, (lambda + 1) / (lambda / DR + 1 / H), (B,).

    DR = (1 + (r1 - r2) / max(r1, r2)) / 2 in [0, 1], averaged over labels. What r1 and r2 are is not public. Our
    reading: the distances to the prototype of the predicted outcome and to the nearest other one; with "nearest and
    second nearest" r1 could never exceed r2, and the maximum in the formula would be idle.
    """
    distances = evidence.required("use_prototypes").float()
    predicted = now.argmax(-1, keepdim=True)
    own = distances.gather(-1, predicted).squeeze(-1)
    other = distances.scatter(-1, predicted, math.inf).amin(-1)
    ratio = (1 + (own - other) / torch.maximum(own, other).clamp(min=EPSILON)).mean(-1) / 2
    weight = policy.distance_weight
    doubt = entropy(now, policy.normalize).clamp(min=EPSILON)
    return (weight + 1) / (weight / ratio.clamp(min=EPSILON) + 1 / doubt)


def ballot(now: Tensor, state: ExitState) -> tuple[Tensor, Tensor]:
    """Every exit so far casts a vote: the winning outcomes (B, L) and their shares of the votes (B, L).

    Of tied outcomes this exit's own wins, or else the first; an exit whose logits are NaN does not vote.
    """
    tables = state.with_newest(now)
    votes = one_hot(tables.argmax(-1), now.shape[-1]) * present(now, state)[:, :, None, None]
    counts = votes.sum(1)  # (B, L, K)
    winners = (counts + 0.5 * votes[:, 0]).argmax(-1)
    return winners, counts.amax(-1) / (state.seen[:, None] + 1)


def score_votes(now: Tensor, evidence: Evidence, state: ExitState, policy: PolicyFields) -> Tensor:
    """The share of the exits so far that back the majority's answer, (B,)."""
    return ballot(now, state)[1].amin(-1)


@reads("normalize")
def score_beem(now: Tensor, evidence: Evidence, state: ExitState, policy: PolicyFields) -> Tensor:
    """BEEM: the confidences of the exits that, up to this one, each gave the label of the one before, weighted, (B,).

    The i-th exit weighs i / 10, as in a figure of the paper, and the first of those that agree adds nothing, as in the
    released code. The paper has other weights too, by the exits' accuracy; they are not offered here.
    """
    tables, there = state.with_newest(now), present(now, state)
    labels = tables.argmax(-1)
    same = (labels[:, :-1] == labels[:, 1:]).all(-1) & there[:, :-1] & there[:, 1:]
    in_a_row = (~same).long().cumsum(1) == 0
    numbers = state.seen[:, None] + 1 - torch.arange(same.shape[1], device=now.device)  # 1 for the first exit
    weighted = numbers / 10 * confidence(tables[:, :-1], policy.normalize)
    return weighted.masked_fill(~in_a_row, 0.0).sum(1)


@reads("nsp_weight")
def score_cap(now: Tensor, evidence: Evidence, state: ExitState, policy: PolicyFields) -> Tensor:
    """CAPEE: the certainty-aware probability, (B,): of the weighted NSP as one more logit beside the others."""
    doubt = policy.nsp_weight * evidence.required("use_nsp").float()
    return torch.cat([evidence.logits.float(), doubt[:, None]], dim=-1).softmax(-1)[:, -1]


def score_nothing(now: Tensor, evidence: Evidence, state: ExitState, policy: PolicyFields) -> Tensor:
    """The rule does not look at predictions, (B,)."""
    return now.new_zeros(now.shape[0])


def present(now: Tensor, state: ExitState) -> Tensor:
    """(B, 1 + m) which of this exit and the remembered ones there are with logits that are not NaN."""
    return ~state.with_newest(now).isnan().flatten(2).any(2)


# ---- decide: which rows may exit ------------------------------------------------------------------------------------


def threshold(state: ExitState, policy: PolicyFields, never: float = -math.inf) -> Tensor | float:
    """The threshold tau at each row's exit, that of its label where it has one; `never` is on no score's side."""
    usual: Any = max(never, 0.0) if policy.threshold is None else policy.threshold
    if isinstance(usual, tuple):
        usual = torch.tensor(usual, device=state.seen.device)[state.seen]
    if not policy.label_thresholds or state.label is None:
        return usual
    taus = torch.as_tensor(usual, dtype=torch.float, device=state.label.device)
    if taus.dim():  # of every row, where several labels are judged one by one
        taus = taus.repeat_interleave(len(state.label) // len(taus))
    for label, tau in policy.label_thresholds:
        taus = torch.where(state.label == int(label), never if tau is None else tau, taus)
    return taus


def own_labels(policy: PolicyFields) -> tuple[str, ...]:
    """Read where labels have thresholds of their own."""
    return ("label_thresholds",) if policy.label_thresholds else ()


@reads("threshold", also=own_labels)
def decide_below(score: Tensor, state: ExitState, policy: PolicyFields, depth: Tensor) -> Tensor:
    """At the first exit whose score is below tau."""
    return score < threshold(state, policy)


@reads("threshold", also=own_labels, above=True)
def decide_above(score: Tensor, state: ExitState, policy: PolicyFields, depth: Tensor) -> Tensor:
    """At the first exit whose score reaches tau."""
    return score >= threshold(state, policy, never=math.inf)


@reads("threshold", "patience", also=own_labels)
def decide_count(score: Tensor, state: ExitState, policy: PolicyFields, depth: Tensor) -> Tensor:
    """Eq. 5: count the exits in a row whose score is below tau; stop when there are t of them."""
    state.count = torch.where(score < threshold(state, policy), state.count + 1, 0)
    return state.count >= policy.patience


@reads("threshold", "patience", also=own_labels)
def decide_number(score: Tensor, state: ExitState, policy: PolicyFields, depth: Tensor) -> Tensor:
    """v3: when t of the last m divergences are below tau, in whichever order."""
    rows = torch.arange(score.shape[0], device=score.device)
    return score[rows, policy.patience - 1] < threshold(state, policy)


@reads("threshold", "patience", also=own_labels, above=True)
def decide_votes(score: Tensor, state: ExitState, policy: PolicyFields, depth: Tensor) -> Tensor:
    """When the majority has t votes and a share of at least tau."""
    enough = (score * (state.seen + 1)).round() >= policy.patience
    return enough & (score >= threshold(state, policy, never=math.inf))


@reads("appointed_layer")
def decide_appointed(score: Tensor, state: ExitState, policy: PolicyFields, depth: Tensor) -> Tensor:
    """At one layer fixed beforehand, whatever is predicted there."""
    return (depth >= policy.appointed_layer) & ~score.isnan()


def decide_never(score: Tensor, state: ExitState, policy: PolicyFields, depth: Tensor) -> Tensor:
    """Nowhere before the last layer."""
    return torch.zeros_like(score, dtype=torch.bool)


# ---- answer: the logits of a row that exits -------------------------------------------------------------------------


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
def in_run(exits: Tensor, state: ExitState, policy: PolicyFields) -> Tensor:
    """The exits of the current run below tau, at most t: (B, 1 + m) of those there are -> of those that count."""
    length = state.count.clamp(min=1).minimum(torch.as_tensor(policy.patience, device=state.count.device))
    return exits & (torch.arange(exits.shape[1], device=exits.device) < length[:, None])


def all_exits(exits: Tensor, state: ExitState, policy: PolicyFields) -> Tensor:
    """All exits so far."""
    return exits


class Ensemble(NamedTuple):
    """Which exits an answer is a mean of (None: the exit itself), and how far back they may lie."""

    members: Callable[[Tensor, ExitState, PolicyFields], Tensor] | None
    memory: Callable[[PolicyFields, int], int]


ENSEMBLES = {
    "none": Ensemble(None, lambda policy, exits: 0),
    "run": Ensemble(in_run, lambda policy, exits: policy.patience - 1),
    "all": Ensemble(all_exits, lambda policy, exits: exits - 1),
}


@reads("ensemble", also=lambda policy: declared(ENSEMBLES[policy.ensemble].members or own_answer))
def ensemble_answer(fire: Tensor, now: Tensor, evidence: Evidence, state: ExitState, policy: PolicyFields) -> Tensor:
    """PCEE-BERT: the exit's own logits, or the mean over an ensemble of the exits so far."""
    members = ENSEMBLES[policy.ensemble].members
    if members is None:
        return evidence.logits
    return mean_answer(now, evidence, state, members(present(now, state), state, policy)[:, :, None])


def majority_answer(fire: Tensor, now: Tensor, evidence: Evidence, state: ExitState, policy: PolicyFields) -> Tensor:
    """The mean of those exits that voted for the winner."""
    winners, _ = ballot(now, state)
    backing = state.with_newest(now).argmax(-1) == winners[:, None]
    voters = backing & present(now, state)[:, :, None]  # (B, 1 + m, L)
    return mean_answer(now, evidence, state, voters)


def mean_answer(now: Tensor, evidence: Evidence, state: ExitState, members: Tensor) -> Tensor:
    """The logits (B, C) of the mean probabilities of this and earlier exits, where members (B, 1 + m, L or 1)."""
    tables = state.with_newest(now).masked_fill(~members[..., None], -math.inf)
    mean = tables.logsumexp(1) - members.sum(1)[..., None].log()
    return as_logits(mean, state.problem_type).to(evidence.logits.dtype)


def by_ensemble(policy: PolicyFields, exits: int) -> int:
    """The rule looks back on the exits its answer is a mean of."""
    return ENSEMBLES[policy.ensemble].memory(policy, exits)
