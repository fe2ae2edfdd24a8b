"""When may a row leave? The exit criteria (eq. 5, its variants and its relatives), as arithmetic on what exits emit.

A criterion works in two steps:

* `score` (file `scores`) condenses an exit's evidence. It knows neither the threshold tau nor the patience t;
* `decide` holds the score against tau and t, and says which rows may stop here.

So recorded evidence can be scored once and decided ten thousand times. Most rules answer with the exit's own logits; an
`answer` of their own have those that ask several exits. Rows never see each other: what is remembered lies in tensors
whose first dimension is the row. A new criterion is these functions and an entry in `CRITERIA`.
Shapes are explained in `evidence`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from .evidence import MULTI_LABEL, REGRESSION, SINGLE_LABEL, Evidence, ExitState, as_logits, confidence, predictions
from .scores import (
    ballot,
    has_spoken,
    score_confidence,
    score_dge,
    score_distance,
    score_entropy,
    score_lte,
    score_nothing,
    score_patience,
    score_v1,
    score_v2,
    score_v3,
    score_votes,
    score_window,
)

if TYPE_CHECKING:
    from .exit_policy import ExitPolicy


def start(
    rows: int, num_labels: int, policy: ExitPolicy, exits: int, problem_type: str, device: torch.device
) -> ExitState:
    """The state before the first of `exits` exits, with room for what the policy's criterion looks back on."""
    memory = CRITERIA[policy.criterion].memory(policy, exits)
    return ExitState.start(rows, num_labels, max(memory, 1), problem_type, device)


def step(evidence: Evidence, state: ExitState, policy: ExitPolicy, depth: Tensor) -> tuple[Tensor, Tensor]:
    """One exit: score, decide, remember.

    Args:
        depth: (B,) the layer each row stands at, 1-based.

    Returns:
        fire (B,) which rows may stop here, and their answers (B, C); at the last exit the answers of the others count
        as well. A row whose logits are NaN never fires.
    """
    rule, now = CRITERIA[policy.criterion], predictions(evidence.logits, state.problem_type)
    fire = rule.decide(score_of(now, evidence, state, policy), state, policy, depth) & (depth >= policy.min_layer)
    answer = rule.answer(fire, now, evidence, state, policy)
    state.remember(now)
    return fire, answer


def chance(state: ExitState, policy: ExitPolicy, depth: Tensor, exits: int) -> Tensor:
    """How likely rows are to stop at the coming exit, whatever it says, (B,): 0 they cannot, 1 they must.

    A rule that fires on the lowest and on the highest score there is asks for no evidence; one that fires on neither
    has not seen enough. Of the others, a row that its last exit spoke for is as likely to stop as not, and any row as
    likely here as at each of the exits to come.
    """
    rule, (rows, memory) = CRITERIA[policy.criterion], state.past.shape[:2]
    lowest = state.past.new_full((rows, memory) if rule.each_exit else (rows,), -math.inf)
    low, high = (rule.decide(score, replace(state), policy, depth) for score in (lowest, -lowest))
    able = (depth >= policy.min_layer) & (state.seen + 1 >= rule.earliest(policy))
    likely = torch.where(state.count > 0, 0.5, 1 / (exits - state.seen).clamp(min=2))
    return torch.where(low & high, 1.0, likely) * (able & (low | high))


def score_of(now: Tensor, evidence: Evidence, state: ExitState, policy: ExitPolicy) -> Tensor:
    """The criterion's score of every row, (B,) or (B, m); NaN, which is on no side of any tau, where the logits are."""
    score = CRITERIA[policy.criterion].score(now, evidence, state, policy)
    broken = now.isnan().flatten(1).any(1)
    return score.masked_fill(broken.view(-1, *[1] * (score.dim() - 1)), math.nan)


# ---- decide: which rows may stop ------------------------------------------------------------------------------------


def threshold(state: ExitState, policy: ExitPolicy) -> Tensor | float:
    """tau as it applies to each row at the exit it stands at."""
    if isinstance(policy.threshold, tuple):
        return torch.tensor(policy.threshold, device=state.seen.device)[state.seen]
    return 0.0 if policy.threshold is None else policy.threshold


def decide_below(score: Tensor, state: ExitState, policy: ExitPolicy, depth: Tensor) -> Tensor:
    """At the first exit whose score is below tau."""
    return score < threshold(state, policy)


def decide_above(score: Tensor, state: ExitState, policy: ExitPolicy, depth: Tensor) -> Tensor:
    """At the first exit whose score reaches tau."""
    return score >= threshold(state, policy)


def decide_count(score: Tensor, state: ExitState, policy: ExitPolicy, depth: Tensor) -> Tensor:
    """Eq. 5: count the exits in a row whose score is below tau; stop when there are t of them."""
    state.count = (state.count + 1) * (score < threshold(state, policy))
    return state.count >= policy.patience


def decide_number(score: Tensor, state: ExitState, policy: ExitPolicy, depth: Tensor) -> Tensor:
    """v3: when t of the last m divergences are below tau, in whichever order."""
    return score[:, policy.patience - 1] < threshold(state, policy)


def decide_votes(score: Tensor, state: ExitState, policy: ExitPolicy, depth: Tensor) -> Tensor:
    """When the majority has t votes and a share of at least tau."""
    enough = (score * (state.seen + 1)).round() >= policy.patience
    return enough & (score >= threshold(state, policy))


def decide_appointed(score: Tensor, state: ExitState, policy: ExitPolicy, depth: Tensor) -> Tensor:
    """At one layer fixed beforehand, whatever is predicted there."""
    return (depth >= policy.appointed_layer) & ~score.isnan()


# ---- answer: what a row that stops is told --------------------------------------------------------------------------


def own_answer(fire: Tensor, now: Tensor, evidence: Evidence, state: ExitState, policy: ExitPolicy) -> Tensor:
    """The exit's own logits, (B, C)."""
    return evidence.logits


def surest_answer(fire: Tensor, now: Tensor, evidence: Evidence, state: ExitState, policy: ExitPolicy) -> Tensor:
    """Shallow-Deep: the exit's own logits where it fires; where none does, those of the most confident one so far."""
    tables = state.with_newest(now)
    best = confidence(tables).nan_to_num(-1.0).argmax(1)  # (B,) 0 is this exit
    answer = as_logits(tables[torch.arange(len(best), device=best.device), best], state.problem_type)
    return torch.where((fire | (best == 0))[:, None], evidence.logits, answer.to(evidence.logits.dtype))


def ensemble_answer(fire: Tensor, now: Tensor, evidence: Evidence, state: ExitState, policy: ExitPolicy) -> Tensor:
    """PCEE-BERT: the exit's own logits, or a mean over the last sure exits (`run`, at most t), or over all so far."""
    if policy.ensemble == "none":
        return evidence.logits
    members = has_spoken(now, state)
    if policy.ensemble == "run":
        in_run = state.count[:, None].clamp(1, policy.patience)
        members = members & (torch.arange(members.shape[1], device=members.device) < in_run)
    return mean_answer(now, evidence, state, members[:, :, None])


def majority_answer(fire: Tensor, now: Tensor, evidence: Evidence, state: ExitState, policy: ExitPolicy) -> Tensor:
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


# ---- registry -------------------------------------------------------------------------------------------------------


def nothing(policy: ExitPolicy, exits: int) -> int:
    """The rule looks at one exit alone."""
    return 0


def one_before(policy: ExitPolicy, exits: int) -> int:
    """The rule looks back on the exit before."""
    return 1


def by_window(policy: ExitPolicy, exits: int) -> int:
    """The rule looks back on m exits."""
    return policy.window


def all_before(policy: ExitPolicy, exits: int) -> int:
    """The rule looks back on every exit."""
    return exits - 1


def at_once(policy: ExitPolicy) -> int:
    """The rule may fire at the first exit."""
    return 1


def after_patience(policy: ExitPolicy) -> int:
    """The rule wants t exits to speak for leaving."""
    return policy.patience


def after_comparing(policy: ExitPolicy) -> int:
    """The rule wants t exits to agree with the one before."""
    return policy.patience + 1


def by_ensemble(policy: ExitPolicy, exits: int) -> int:
    """The rule looks back on the exits its answer is a mean of."""
    return {"none": 1, "run": policy.patience - 1, "all": exits - 1}[policy.ensemble]


class Criterion(NamedTuple):
    """A rule, how many earlier exits it looks back on, and what it can judge."""

    score: Callable[[Tensor, Evidence, ExitState, ExitPolicy], Tensor]
    decide: Callable[[Tensor, ExitState, ExitPolicy, Tensor], Tensor]
    answer: Callable[[Tensor, Tensor, Evidence, ExitState, ExitPolicy], Tensor] = own_answer
    memory: Callable[[ExitPolicy, int], int] = one_before
    earliest: Callable[[ExitPolicy], int] = at_once  # the number of the first exit at which it may fire
    problem_types: tuple[str, ...] = (SINGLE_LABEL, MULTI_LABEL)
    needs_threshold: Callable[[str], bool] = lambda problem_type: True
    needs_evidence: str | None = None  # the config's field that makes exits emit it
    counts_exits: bool = True  # whether it knows patience
    each_exit: bool = False  # whether its score is one for each of the earlier exits, (B, m), instead of one, (B,)


EVERY_PROBLEM = (SINGLE_LABEL, MULTI_LABEL, REGRESSION)
CRITERIA = {
    "divergence_v1": Criterion(score_v1, decide_count, earliest=after_comparing),
    "divergence_v2": Criterion(score_v2, decide_count, memory=by_window, earliest=after_comparing),
    "divergence_v3": Criterion(
        score_v3, decide_number, memory=by_window, earliest=after_comparing, each_exit=True
    ),
    "patience": Criterion(
        score_patience, decide_count, earliest=after_comparing, problem_types=EVERY_PROBLEM,
        needs_threshold=lambda problem_type: problem_type == REGRESSION,
    ),
    "entropy": Criterion(score_entropy, decide_below, memory=nothing, counts_exits=False),
    "max_prob": Criterion(score_confidence, decide_above, surest_answer, all_before, counts_exits=False),
    "lte": Criterion(
        score_lte, decide_below, memory=nothing, problem_types=EVERY_PROBLEM, needs_evidence="use_lte",
        counts_exits=False,
    ),
    "window": Criterion(score_window, decide_below, memory=by_window, counts_exits=False),
    "pcee": Criterion(score_entropy, decide_count, ensemble_answer, by_ensemble, after_patience),
    "dge": Criterion(score_dge, decide_count, memory=by_window, earliest=after_comparing),
    "distance": Criterion(
        score_distance, decide_below, memory=nothing, needs_evidence="use_prototypes", counts_exits=False
    ),
    "voting": Criterion(score_votes, decide_votes, majority_answer, all_before, after_patience),
    "appointed": Criterion(
        score_nothing, decide_appointed, memory=nothing, problem_types=EVERY_PROBLEM,
        needs_threshold=lambda problem_type: False, counts_exits=False,
    ),
}  # fmt: skip
