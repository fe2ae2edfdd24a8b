"""An alarm that may be looked at after every answer: evidence that answers differ more often than was certified.

The evidence is that of `evaluation.betting`. Each rung has money of its own, against its own epsilon; the alarm reads
the mean.
"""

from collections.abc import Sequence

import numpy as np

from ..evaluation.betting import after, money, no_bets
from ..evaluation.bounds import share


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
        self.bets, self.most = [(no_bets(), 1.0) for _ in self.epsilons], 1.0

    def add(self, rung: int, differs: bool) -> bool:
        """Count an answer of a rung; whether the alarm rings. Once it does, it rings on."""
        self.bets[rung] = after(*self.bets[rung], int(self.rows[rung]), np.array(differs), self.epsilons[rung])
        self.rows[rung] += 1
        self.missed[rung] += differs
        self.most = max(self.most, self.evidence)
        return self.ringing

    @property
    def evidence(self) -> float:
        """Against the promises of all rungs, now; 1 before the first row."""
        each = [float(money(*bets)) for bets in self.bets]
        return sum(each) / len(each) if each else 1.0

    @property
    def ringing(self) -> bool:
        """Whether the certificates were found broken."""
        return self.most >= self.limit
