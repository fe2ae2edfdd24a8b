"""Whether certificates hold in traffic: a share of the rows is answered again at full depth and compared.

Which rows is decided when they arrive, by a hash of their running number: were rows taken when there is time, those
answered in a rush would never be looked at; were it a hash of their tokens, a text that is sent often would be judged
each time or never. Rows wait for full depth in a bounded queue; what does not fit is counted.
"""

import secrets
from collections import deque
from collections.abc import Sequence
from hashlib import blake2b
from itertools import count
from typing import NamedTuple

import numpy as np
import torch

from ..evaluation import betting
from ..evaluation.bounds import share
from ..evaluation.replay import same_answers
from ..model.evidence import MULTI_LABEL, REGRESSION, SINGLE_LABEL
from ..model.validation import entry_of, real, whole
from .calls import Answer, Row
from .ladder import Ladder

PROBLEMS = {"softmax": SINGLE_LABEL, "sigmoid": MULTI_LABEL, "none": REGRESSION}  # by what makes scores of logits
TOGETHER = 8  # rows that run to full depth in a batch: small, for a request may arrive meanwhile


class Shadow(NamedTuple):
    """A row that a rung answered, and when."""

    row: Row
    answer: Answer
    rung: str
    since: float


class CertificateWatcher:
    """Holds the answers of rungs against full depth's. Any thread may call `arrived`, one engine all others.

    Args:
        activation: a name in `PROBLEMS`.
        share: of the rows that are drawn, in [0, 1].
        room: rows that may wait for full depth.
        patience: seconds after which they no longer wait for an idle moment.
        delta: the probability of a false alarm.
        key: of the hash, at most 64 bytes; drawn at random where none is given, so that no client can tell its rows.

    Raises:
        ValueError: an unknown activation, values out of range.
    """

    def __init__(
        self, ladder: Ladder, activation: str = "softmax", share: float = 0.01, room: int = 1024, patience: float = 5.0,
        delta: float = 0.05, key: bytes | None = None,
    ) -> None:  # fmt: skip
        self.problem_type = PROBLEMS[entry_of(PROBLEMS)("activation", activation)]
        self.share, self.room = real(0.0, 1.0)("share", share), whole(1)("room", room)
        self.patience, self.key = real(0.0)("patience", patience), secrets.token_bytes(16) if key is None else key
        self.rungs = [rung for rung in ladder if rung.epsilon]  # full depth needs no second look
        self.numbers = {rung.name: number for number, rung in enumerate(self.rungs)}
        self.alarm = Alarm([rung.epsilon for rung in self.rungs], delta)
        self.serial, self.now = count(), 0.0
        self.waiting, self.asked, self.dropped = deque[Shadow](), dict[Row, Shadow](), 0

    def drawn(self, number: int) -> bool:
        """Whether the row of a running number is one of the share."""
        found = blake2b(number.to_bytes(8, "big"), digest_size=8, key=self.key).digest()
        return int.from_bytes(found, "big") < self.share * 2**64

    def arrived(self, row: Row) -> None:
        """Draw a row, or not."""
        row.watched = self.drawn(next(self.serial))

    def answered(self, row: Row, answer: Answer, rung: str) -> None:
        """Queue a row that was drawn and answered by a rung; one with a policy of its own was not."""
        if not row.watched or row.request.point is not None or rung not in self.numbers:
            return
        if len(self.waiting) >= self.room:
            self.dropped += 1
        else:
            self.waiting.append(Shadow(row, answer, rung, self.now))

    def due(self, now: float, idle: bool) -> list[Row]:
        """The rows to run at full depth now, the oldest first. Those given before that were not judged are dropped.

        Args:
            now: in seconds.
            idle: no request waits. Otherwise only rows that have waited for as long as `patience` are given.
        """
        self.now, self.dropped = now, self.dropped + len(self.asked)
        self.asked = {}
        while self.waiting and len(self.asked) < TOGETHER and (idle or now - self.waiting[0].since >= self.patience):
            shadow = self.waiting.popleft()
            self.asked[shadow.row] = shadow
        return list(self.asked)

    def judged(self, row: Row, full: Answer) -> None:
        """Hold full depth's answer to a row that was due against the one it had, and count it for the alarm."""
        shadow = self.asked.pop(row)
        number = self.numbers[shadow.rung]
        answer, other = (torch.as_tensor(each.logits) for each in (shadow.answer, full))
        alike = same_answers(answer, other, self.problem_type, self.rungs[number].tolerance)
        self.alarm.add(number, not alike.item())

    @property
    def agreement(self) -> float | None:
        """The share of judged answers that are full depth's; None before the first."""
        rows = int(self.alarm.rows.sum())
        return 1 - int(self.alarm.missed.sum()) / rows if rows else None


# ---- the alarm -------------------------------------------------------------------------------------------------------


class Alarm:
    """Counts of answers that were judged, by rung, and whether they ever were too many, however often one looks.

    Each rung has money of its own (`evaluation.betting`), against its own epsilon; the alarm reads the mean.

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
        self.bets, self.most = [(betting.no_bets(), 1.0) for _ in self.epsilons], 1.0

    def add(self, rung: int, differs: bool) -> bool:
        """Count an answer of a rung; whether the alarm rings. Once it does, it rings on."""
        self.bets[rung] = betting.after(*self.bets[rung], int(self.rows[rung]), np.array(differs), self.epsilons[rung])
        self.rows[rung] += 1
        self.missed[rung] += differs
        self.most = max(self.most, self.evidence)
        return self.ringing

    @property
    def evidence(self) -> float:
        """Against the promises of all rungs, now; 1 before the first row."""
        each = [float(betting.money(*bets)) for bets in self.bets]
        return sum(each) / len(each) if each else 1.0

    @property
    def ringing(self) -> bool:
        """Whether the certificates were found broken."""
        return self.most >= self.limit
