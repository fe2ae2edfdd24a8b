"""When may a row leave? The exit criteria (eq. 5, its variants and its relatives), as arithmetic on what exits emit.

A criterion works in two steps:

* `score` condenses an exit's evidence, held against the exits before it. It knows neither threshold tau nor patience t;
* `decide` holds the score against tau and t, and says which rows stop here and with which answer.

So recorded evidence can be scored once and decided ten thousand times. Rows never see each other: what is remembered
lies in tensors whose first dimension is the row. A new criterion is these two functions and an entry in `CRITERIA`.
Shapes are explained in `evidence`. What holds for one label must hold for all of them: entropies and divergences are
summed over the labels, shares and probabilities are those of the least certain label.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import one_hot

from .divergences import DIVERGENCES
from .evidence import (
    MULTI_LABEL,
    REGRESSION,
    SINGLE_LABEL,
    Evidence,
    ExitState,
    as_logits,
    confidence,
    entropy,
    predictions,
)

if TYPE_CHECKING:
    from .exit_policy import ExitPolicy

EPSILON = 1e-6  # keeps a harmonic mean finite


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
    rule = CRITERIA[policy.criterion]
    now = predictions(evidence.logits, state.problem_type)
    score = rule.score(now, evidence, state, policy)
    fire, answer = rule.decide(score, now, evidence, state, policy, depth)
    state.remember(now)
    return fire & (depth >= policy.min_layer) & ~now.isnan().flatten(1).any(1), answer


# ---- score: free of tau and t ---------------------------------------------------------------------------------------


def divergences_from_past(now: Tensor, state: ExitState, policy: ExitPolicy) -> Tensor:
    """s_{i,i-1} ... s_{i,i-m}, summed over labels: (B, L, K) against (B, m, L, K) -> (B, m); NaN: there was none."""
    divergence = DIVERGENCES[policy.divergence]
    scores = divergence.of(now[:, None].expand_as(state.past), state.past).sum(-1)
    return scores / (now.shape[1] * divergence.unit(now.shape[2])) if policy.normalize else scores


def score_v1(now: Tensor, evidence: Evidence, state: ExitState, policy: ExitPolicy) -> Tensor:
    """The divergence from the exit before, (B,)."""
    return divergences_from_past(now, state, policy)[:, 0]


def score_v2(now: Tensor, evidence: Evidence, state: ExitState, policy: ExitPolicy) -> Tensor:
    """The largest divergence from the last m exits, or as many as there are, (B,)."""
    scores = divergences_from_past(now, state, policy)
    missing = torch.arange(scores.shape[1], device=scores.device) >= state.seen[:, None].clamp(min=1)
    return scores.masked_fill(missing, -math.inf).amax(-1)


def score_v3(now: Tensor, evidence: Evidence, state: ExitState, policy: ExitPolicy) -> Tensor:
    """The divergences from the last m exits, smallest first, (B, m)."""
    return divergences_from_past(now, state, policy).sort(-1).values  # NaN comes last


def score_dge(now: Tensor, evidence: Evidence, state: ExitState, policy: ExitPolicy) -> Tensor:
    """BADGE: the mean divergence from the last m exits, or as many as there are, (B,).

    No formula is public; the abstract speaks of the divergence between an exit and the previous ones. Our reading is
    their mean, since with m = 1 it is the "adjacent layers" of the abstract's other version.
    """
    scores = divergences_from_past(now, state, policy)
    missing = torch.arange(scores.shape[1], device=scores.device) >= state.seen[:, None]
    return scores.masked_fill(missing, 0.0).sum(-1) / (~missing).sum(-1)  # 0 / 0 at the first exit: NaN


def score_patience(now: Tensor, evidence: Evidence, state: ExitState, policy: ExitPolicy) -> Tensor:
    """PABEE: the distance from the exit before, (B,). Labels: -inf if all agree, else +inf; regression: |y_i - y_j|."""
    before = state.past[:, 0]
    if state.problem_type == REGRESSION:
        return (now - before).abs().amax((-2, -1))
    agree = (now.argmax(-1) == before.argmax(-1)).all(-1) & ~before.isnan().flatten(1).any(1)
    return torch.where(agree, -math.inf, math.inf)


def score_entropy(now: Tensor, evidence: Evidence, state: ExitState, policy: ExitPolicy) -> Tensor:
    """BranchyNet, DeeBERT; normalised FastBERT and PCEE-BERT: H(p), (B,)."""
    return entropy(now, policy.normalize)


def score_confidence(now: Tensor, evidence: Evidence, state: ExitState, policy: ExitPolicy) -> Tensor:
    """Shallow-Deep: the largest probability, (B,)."""
    return confidence(now, policy.normalize)


def score_lte(now: Tensor, evidence: Evidence, state: ExitState, policy: ExitPolicy) -> Tensor:
    """BERxiT: how likely the exit is wrong, as its learning-to-exit head has it, (B,)."""
    return evidence.lte.float()


def score_window(now: Tensor, evidence: Evidence, state: ExitState, policy: ExitPolicy) -> Tensor:
    """ELBERT's two stages, (B,): the entropy; -inf where the last m exits, this one included, settled on an answer.

    They settled if all predict the same label and, by `window_rule`, nothing more (`agree`), its probability only rises
    or only falls (`monotone`), or varies by at most `window_range` (`narrow`). With two classes these are ELBERT's
    three rules on P(class 0); following the predicted label's probability carries them over to many.
    """
    tables = state.with_newest(now)[:, : policy.window]  # (B, m, L, K)
    labels = tables.argmax(-1)  # (B, m, L)
    likely = tables.exp().gather(-1, labels[:, :1, :, None].expand(*labels.shape, 1)).squeeze(-1)  # (B, m, L)
    settled = (labels == labels[:, :1]).all(1) & ~likely.isnan().any(1)  # (B, L)
    if policy.window_rule == "monotone":
        changes = likely[:, :-1] - likely[:, 1:]
        settled = settled & ((changes >= 0).all(1) | (changes <= 0).all(1))
    if policy.window_rule == "narrow":
        settled = settled & (likely.amax(1) - likely.amin(1) <= policy.window_range)
    return entropy(now, policy.normalize).masked_fill(settled.all(-1), -math.inf)


def score_distance(now: Tensor, evidence: Evidence, state: ExitState, policy: ExitPolicy) -> Tensor:
    """DE3-BERT: the harmonic mean of distance ratio and entropy, (lambda + 1) / (lambda / DR + 1 / H), (B,).

    DR = (1 + (r1 - r2) / max(r1, r2)) / 2 in [0, 1], averaged over labels. What r1 and r2 are is not public. Our
    reading: the distances to the prototype of the predicted outcome and to the nearest other one; with "nearest and
    second nearest" r1 could never exceed r2, and the maximum in the formula would be idle.
    """
    distances = evidence.distances.float()
    predicted = now.argmax(-1, keepdim=True)
    own = distances.gather(-1, predicted).squeeze(-1)
    other = distances.scatter(-1, predicted, math.inf).amin(-1)
    ratio = (1 + (own - other) / torch.maximum(own, other).clamp(min=EPSILON)).mean(-1) / 2
    weight = policy.distance_weight
    doubt = entropy(now, policy.normalize).clamp(min=EPSILON)
    return (weight + 1) / (weight / ratio.clamp(min=EPSILON) + 1 / doubt)


def ballot(now: Tensor, state: ExitState) -> tuple[Tensor, Tensor]:
    """Every exit so far casts a vote: the winners (B, L), a tie going to the newest, and their shares (B, L)."""
    tables = state.with_newest(now)
    votes = one_hot(tables.argmax(-1), now.shape[-1]) * has_voted(state)[:, :, None, None]
    counts = votes.sum(1)  # (B, L, K)
    winners = (counts + 0.5 * votes[:, 0]).argmax(-1)
    return winners, counts.amax(-1) / (state.seen[:, None] + 1)


def score_votes(now: Tensor, evidence: Evidence, state: ExitState, policy: ExitPolicy) -> Tensor:
    """The share of the exits so far that back the majority's answer, (B,)."""
    return ballot(now, state)[1].amin(-1)


def score_nothing(now: Tensor, evidence: Evidence, state: ExitState, policy: ExitPolicy) -> Tensor:
    """The rule does not look at predictions, (B,)."""
    return now.new_zeros(now.shape[0])


# ---- decide: which rows stop, with which answer ---------------------------------------------------------------------


def threshold(state: ExitState, policy: ExitPolicy) -> Tensor | float:
    """tau as it applies to each row at the exit it stands at."""
    if isinstance(policy.threshold, tuple):
        return torch.tensor(policy.threshold, device=state.seen.device)[state.seen]
    return 0.0 if policy.threshold is None else policy.threshold


def decide_below(score: Tensor, now: Tensor, evidence: Evidence, state: ExitState, policy: ExitPolicy, depth: Tensor):
    """Stop at the first exit whose score is below tau."""
    return score < threshold(state, policy), evidence.logits


def decide_count(score: Tensor, now: Tensor, evidence: Evidence, state: ExitState, policy: ExitPolicy, depth: Tensor):
    """Eq. 5: count the exits in a row whose score is below tau; stop when there are t of them."""
    state.count = torch.where(score < threshold(state, policy), state.count + 1, 0)
    return state.count >= policy.patience, evidence.logits


def decide_number(score: Tensor, now: Tensor, evidence: Evidence, state: ExitState, policy: ExitPolicy, depth: Tensor):
    """v3: stop when t of the last m divergences are below tau, in whichever order."""
    return score[:, policy.patience - 1] < threshold(state, policy), evidence.logits


def decide_sure(score: Tensor, now: Tensor, evidence: Evidence, state: ExitState, policy: ExitPolicy, depth: Tensor):
    """Shallow-Deep: stop where the score reaches tau; where no exit does, the most confident of all has the answer."""
    fire = score >= threshold(state, policy)
    tables = state.with_newest(now)
    best = confidence(tables).nan_to_num(-1.0).argmax(1)  # (B,) 0 is this exit
    answer = as_logits(tables[torch.arange(len(best), device=best.device), best], state.problem_type)
    answer = answer.to(evidence.logits.dtype)
    return fire, torch.where((fire | (best == 0))[:, None], evidence.logits, answer)


def decide_ensemble(
    score: Tensor, now: Tensor, evidence: Evidence, state: ExitState, policy: ExitPolicy, depth: Tensor
):
    """PCEE-BERT: `decide_count`, the answer a mean over the sure exits in a row (`run`), or all so far, if wished."""
    fire, answer = decide_count(score, now, evidence, state, policy, depth)
    if policy.ensemble == "none":
        return fire, answer
    members = has_voted(state)
    if policy.ensemble == "run":
        members = torch.arange(members.shape[1], device=members.device) < state.count[:, None].clamp(1, policy.patience)
    return fire, mean_answer(now, evidence, state, members[:, :, None])


def decide_votes(score: Tensor, now: Tensor, evidence: Evidence, state: ExitState, policy: ExitPolicy, depth: Tensor):
    """Stop when the majority has t votes and a share of at least tau; its voters' mean is the answer."""
    winners, _ = ballot(now, state)
    voters = (state.with_newest(now).argmax(-1) == winners[:, None]) & has_voted(state)[:, :, None]  # (B, 1 + m, L)
    enough = (score * (state.seen + 1)).round() >= policy.patience
    return enough & (score >= threshold(state, policy)), mean_answer(now, evidence, state, voters)


def decide_appointed(
    score: Tensor, now: Tensor, evidence: Evidence, state: ExitState, policy: ExitPolicy, depth: Tensor
):
    """Stop at one layer fixed beforehand, whatever is predicted there."""
    return depth >= policy.appointed_layer, evidence.logits


def has_voted(state: ExitState) -> Tensor:
    """(B, 1 + m) True for this exit and the remembered ones that there were."""
    return torch.arange(state.past.shape[1] + 1, device=state.seen.device) <= state.seen[:, None]


def mean_answer(now: Tensor, evidence: Evidence, state: ExitState, members: Tensor) -> Tensor:
    """The logits (B, C) of the mean probabilities of this and earlier exits, where members (B, 1 + m, L or 1)."""
    tables = state.with_newest(now).masked_fill(~members[..., None], -math.inf)
    mean = tables.logsumexp(1) - members.sum(1)[..., None].log()
    return as_logits(mean, state.problem_type).to(evidence.logits.dtype)


# ---- registry -------------------------------------------------------------------------------------------------------


def one_before(policy: ExitPolicy, exits: int) -> int:
    """The rule looks back on the exit before."""
    return 1


def by_window(policy: ExitPolicy, exits: int) -> int:
    """The rule looks back on m exits."""
    return policy.window


def all_before(policy: ExitPolicy, exits: int) -> int:
    """The rule looks back on every exit."""
    return exits - 1


def by_ensemble(policy: ExitPolicy, exits: int) -> int:
    """The rule looks back on the exits its answer is a mean of."""
    return {"none": 1, "run": policy.patience - 1, "all": exits - 1}[policy.ensemble]


class Criterion(NamedTuple):
    """A rule, how many earlier exits it looks back on, and what it can judge."""

    score: Callable[[Tensor, Evidence, ExitState, ExitPolicy], Tensor]
    decide: Callable[[Tensor, Tensor, Evidence, ExitState, ExitPolicy, Tensor], tuple[Tensor, Tensor]]
    memory: Callable[[ExitPolicy, int], int] = one_before
    problem_types: tuple[str, ...] = (SINGLE_LABEL, MULTI_LABEL)
    needs_threshold: Callable[[str], bool] = lambda problem_type: True
    needs_evidence: str | None = None  # the config's field that makes exits emit it
    counts_exits: bool = True  # whether it knows patience


EVERY_PROBLEM = (SINGLE_LABEL, MULTI_LABEL, REGRESSION)
CRITERIA = {
    "divergence_v1": Criterion(score_v1, decide_count),
    "divergence_v2": Criterion(score_v2, decide_count, by_window),
    "divergence_v3": Criterion(score_v3, decide_number, by_window),
    "patience": Criterion(
        score_patience, decide_count, problem_types=EVERY_PROBLEM,
        needs_threshold=lambda problem_type: problem_type == REGRESSION,
    ),
    "entropy": Criterion(score_entropy, decide_below, counts_exits=False),
    "max_prob": Criterion(score_confidence, decide_sure, all_before, counts_exits=False),
    "lte": Criterion(
        score_lte, decide_below, problem_types=EVERY_PROBLEM, needs_evidence="use_lte", counts_exits=False
    ),
    "window": Criterion(score_window, decide_below, by_window, counts_exits=False),
    "pcee": Criterion(score_entropy, decide_ensemble, by_ensemble),
    "dge": Criterion(score_dge, decide_count, by_window),
    "distance": Criterion(score_distance, decide_below, needs_evidence="use_prototypes", counts_exits=False),
    "voting": Criterion(score_votes, decide_votes, all_before),
    "appointed": Criterion(
        score_nothing, decide_appointed, problem_types=EVERY_PROBLEM,
        needs_threshold=lambda problem_type: False, counts_exits=False,
    ),
}  # fmt: skip
