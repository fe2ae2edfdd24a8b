"""An alarm that may be looked at after every answer: evidence that answers differ more often than was certified.

The evidence is that of `evaluation.bounds`, read as money: who bets on larger rates than epsilon wins, on average,
nothing while the promise is kept, so that the money ever multiplies by 1 / delta has probability delta at most. Bets
placed long ago are lost by the time texts change; so the money is laid out little by little, a part at the beginning
of every `BLOCK` of rows. Each rung has money of its own, against its own epsilon; the alarm reads the mean.
"""

from collections.abc import Sequence

import numpy as np

from ..evaluation.bounds import ALTERNATIVES, likelihood_ratios, share

BLOCK = 100  # judged rows
RICHEST = 1e300  # what bets stay below, so that they remain numbers


def laid_out(block: int) -> float:
    """The part of the money that is laid out when a block of rows begins, from 0: a half, a sixth, a twelfth ..."""
    return 1 / ((block + 1) * (block + 2))


def kept_back(blocks: int) -> float:
    """What is left when so many blocks have begun."""
    return 1 / (blocks + 1)


def after(bets: np.ndarray, row: int, differs: np.ndarray, epsilon: float) -> np.ndarray:
    """The bets (..., A) on every larger rate after a row, from 0, whose answer differs or not, (...)."""
    if row % BLOCK == 0:
        bets = bets + laid_out(row // BLOCK) / len(ALTERNATIVES)
    missed, passed = likelihood_ratios(epsilon)
    return np.minimum(bets * np.where(np.asarray(differs)[..., None], missed, passed), RICHEST)


def evidence_of(bets: np.ndarray, rows: int) -> np.ndarray:
    """The money of one rung after so many rows, (...): its bets (..., A) and what is kept back; 1 at the start."""
    return bets.sum(-1) + kept_back(-(-rows // BLOCK))


class Alarm:
    """Counts of answers that were judged, by rung, and whether they ever were too many.

    Args:
        epsilons: the rates that the rungs promise, above 0.
        delta: the probability of a false alarm, ever.

    Raises:
        ValueError: a rate or a probability outside (0, 1).
    """

    def __init__(self, epsilons: Sequence[float], delta: float = 0.05) -> None:
        self.epsilons = [share("epsilon", epsilon) for epsilon in epsilons]
        self.limit = 1 / share("delta", delta)
        self.rows, self.missed = np.zeros(len(self.epsilons), int), np.zeros(len(self.epsilons), int)
        self.bets, self.most = [np.zeros(len(ALTERNATIVES)) for _ in self.epsilons], 1.0

    def add(self, rung: int, differs: bool) -> bool:
        """Count an answer of a rung; whether the alarm rings. Once it does, it rings on."""
        self.bets[rung] = after(self.bets[rung], int(self.rows[rung]), np.array(differs), self.epsilons[rung])
        self.rows[rung] += 1
        self.missed[rung] += differs
        self.most = max(self.most, self.evidence)
        return self.ringing

    @property
    def evidence(self) -> float:
        """Against the promises of all rungs, now; 1 before the first row."""
        each = [float(evidence_of(bets, rows)) for bets, rows in zip(self.bets, self.rows.tolist())]
        return sum(each) / len(each) if each else 1.0

    @property
    def ringing(self) -> bool:
        """Whether the certificates were found broken."""
        return self.most >= self.limit
