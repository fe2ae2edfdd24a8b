"""What abstaining is worth: errors among the answers that are given, against the share of rows that get one.

Rows that leave early as unsure are set beside the usual way, to drop the answers with the smallest largest probability.
Right means the label where rows have one, else full depth's answer.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from torch import Tensor

from ..model.evidence import ANSWERS, confidence, predictions
from ..model.exit_policy import ExitPolicy
from .exit_patterns import correct
from .recording import Recording
from .replay import answered, same_answers
from .tables import table

LEVELS = tuple(step / 20 for step in range(20))  # of `unsure_below`, on the scale from a guess to surely


@dataclass(frozen=True)
class Covered:
    """One setting of `unsure_below`, in shares of the rows.

    Args:
        coverage: rows with an answer.
        risk: of these, the wrong ones; 0 where there are none.
        risk_by_probability: of as many answers, those of the largest probability, with nobody leaving as unsure.
        unsure_anyway: of the rows without an answer, those that full depth is unsure of, too.
        layers, layers_answering: executed on average, with rows that leave as unsure and without.
    """

    unsure_below: float
    coverage: float
    risk: float
    risk_by_probability: float
    unsure_anyway: float
    layers: float
    layers_answering: float


def risk_coverage(recording: Recording, policy: ExitPolicy, levels: Sequence[float] = LEVELS) -> list[Covered]:
    """The curve of a policy, from all rows answered to few; settings that no row tells apart come once."""
    usual, abstaining = (replace(policy, answer=answer) for answer in ANSWERS)
    answers, layers = recording.replay(usual)
    surest = sureness(answers, recording.problem_type).argsort(descending=True, stable=True)
    wrong = ~right(recording, answers)[surest]
    found: dict[float, Covered] = {}
    for level in levels:
        guess = 1 / predictions(answers[:1], recording.problem_type).shape[-1]
        below = level if policy.normalize else guess + level * (1 - guess)
        given, early = recording.replay(replace(abstaining, unsure_below=below))
        has, rows = answered(given), int(answered(given).sum())
        full = sureness(recording.evidence.logits[:, -1], recording.problem_type, policy.normalize) < below
        covered = Covered(
            below, rows / len(has), share(~right(recording, given)[has]), share(wrong[:rows]), share(full[~has]),
            early.double().mean().item(), layers.double().mean().item(),
        )  # fmt: skip
        found.setdefault(covered.coverage, covered)
    return sorted(found.values(), key=lambda each: -each.coverage)


def sureness(logits: Tensor, problem_type: str, normalize: bool = False) -> Tensor:
    """The largest probability of each row's least sure label, (N, C) -> (N,)."""
    return confidence(predictions(logits, problem_type), normalize)


def right(recording: Recording, answers: Tensor) -> Tensor:
    """Whether answers (N, C) are the rows' labels or, without labels, full depth's, (N,)."""
    if recording.labels is None:
        return same_answers(answers, recording.evidence.logits[:, -1], recording.problem_type, 0.0)
    return correct(recording, logits=answers[:, None])[:, 0]


def share(chosen: Tensor) -> float:
    """How many of a tensor of True and False are True, as a share."""
    return chosen.double().mean().item() if len(chosen) else 0.0


def as_table(curve: Sequence[Covered], layers: int) -> str:
    """The curve in Markdown."""
    titles = ["unsure below", "answered", "wrong of these", "wrong by largest probability", "unsure at full depth, too",
              f"layers of {layers}", "if all answer"]  # fmt: skip
    rows = [
        [
            f"{each.unsure_below:.2f}", *(f"{100 * value:.1f} %" for value in (each.coverage, each.risk,
            each.risk_by_probability, each.unsure_anyway)), f"{each.layers:.2f}", f"{each.layers_answering:.2f}",
        ]
        for each in curve
    ]  # fmt: skip
    return table(titles, rows)
