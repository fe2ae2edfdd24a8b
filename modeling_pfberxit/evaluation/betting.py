"""Evidence that answers differ more often than was certified, which may be looked at after every row, for years.

The evidence is that of `bounds`, read as money: who bets on larger rates than epsilon wins, on average, nothing while
the promise is kept, so that the money ever multiplies by 1 / delta has probability delta at most. Bets placed long ago
are lost by the time texts change; so the money is laid out little by little, a part at the beginning of every `BLOCK`
of rows.
"""

import numpy as np

from .bounds import ALTERNATIVES, likelihood_ratios

BLOCK = 100  # rows
RICHEST = 1e300  # what bets stay below, so that they remain numbers
Kept = float  # what is not laid out yet; 1 at the start


def no_bets(*shape: int) -> np.ndarray:
    """Bets on every larger rate before the first row, (..., A)."""
    return np.zeros((*shape, len(ALTERNATIVES)))


def after(bets: np.ndarray, kept: Kept, row: int, differs: np.ndarray, epsilon: float) -> tuple[np.ndarray, Kept]:
    """The bets (..., A) and what is kept back after a row, from 0, whose answer differs or not, (...).

    With every block that begins a half, a third, a quarter ... of what is kept is laid out.
    """
    if row % BLOCK == 0:
        part = kept / (row // BLOCK + 2)
        bets, kept = bets + part / len(ALTERNATIVES), kept - part
    missed, passed = likelihood_ratios(epsilon)
    return np.minimum(bets * np.where(np.asarray(differs)[..., None], missed, passed), RICHEST), kept


def money(bets: np.ndarray, kept: Kept) -> np.ndarray:
    """What bets (..., A) are worth together with what is kept back, (...): the evidence; 1 at the start."""
    return bets.sum(-1) + kept
