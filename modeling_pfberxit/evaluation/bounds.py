"""Bounds with a confidence: exact for rates, by betting for means of a known range; and evidence against a rate.

A test wants confidence 1 - delta that a rate, or a mean, is at most epsilon; it holds for every number of rows, not
only for many. What is counted is in `claims`, which settings are tested in which order in `fixed_sequence`.
"""

import math
from functools import cache

import numpy as np
from scipy.stats import beta, binom

from ..model.validation import refuse

LARGEST_BET = 0.75  # of what a single row could lose: betting all of it would end with the first surprise
ALTERNATIVES = (1.1, 1.25, 1.5, 2.0, 3.0, 5.0, 10.0)  # how many times epsilon a broken rate is suspected to be


def upper_bound(misses: int, rows: int, delta: float) -> float:
    """Clopper and Pearson's exact upper bound of a rate in [0, 1]: above it with probability `delta` at most.

    Example: no miss in 299 rows bounds the rate by 0.00997 at delta = 0.05.
    """
    return 1.0 if misses >= rows else float(beta.ppf(1 - delta, misses + 1, rows - misses))


def rate_p_value(misses: int, rows: int, epsilon: float) -> float:
    """How probable so few misses are where the rate is above epsilon; at most delta exactly if `upper_bound` passes."""
    return float(binom.cdf(misses, rows, epsilon))


def most_misses(rows: int, epsilon: float, delta: float) -> int:
    """The most misses with which a rate passes; -1 where there are too few rows even without any."""
    misses = int(binom.ppf(delta, rows, epsilon))
    return misses if rate_p_value(misses, rows, epsilon) <= delta else misses - 1


@cache
def rows_needed(epsilon: float, confidence: float = 0.95, misses: int = 0) -> int:
    """How many rows a certificate takes at least: the fewest that pass with so many misses.

    Example: epsilon 0.01 at 95 % takes 299 rows without a miss, 473 with one.

    Raises:
        ValueError: an epsilon or a confidence outside (0, 1).
    """
    delta = round(1 - share("confidence", confidence), 12)
    low, high = 0, math.ceil((misses + 1) / share("epsilon", epsilon))
    while rate_p_value(misses, high, epsilon) > delta:
        low, high = high, 2 * high
    while high - low > 1:  # passes at `high`, not at `low`
        middle = (low + high) // 2
        low, high = (low, middle) if rate_p_value(misses, middle, epsilon) <= delta else (middle, high)
    return high


def share(name: str, value: float) -> float:
    """A number between 0 and 1, both left out."""
    return value if 0 < value < 1 else refuse(name, value, "a number between 0 and 1, both left out")


# ---- means of a known range ------------------------------------------------------------------------------------------


def mean_p_value(values: np.ndarray, low: float, high: float, epsilon: float, delta: float) -> float:
    """How improbable these values (N,) in [low, high] are where their mean is above epsilon, by betting against it.

    Who bets on values below epsilon wins little where the mean is larger: the money never multiplies by 1 / p with a
    probability above p (Ville). Bets are sized by the variance so far (Waudby-Smith and Ramdas, 2023), so that values
    that seldom leave zero are worth more than their range says. The rows must be in an order that does not depend on
    their values.
    """
    if not len(values):
        return 1.0
    unit, mean = (values - low) / (high - low), (epsilon - low) / (high - low)
    seen = np.arange(1, len(unit) + 1)
    centre = (0.5 + unit.cumsum()) / (seen + 1)
    spread = (0.25 + ((unit - centre) ** 2).cumsum()) / (seen + 1)
    before = np.concatenate([[0.25], spread[:-1]])  # a bet knows the rows before it alone
    bets = np.minimum(np.sqrt(2 * math.log(1 / delta) / (len(unit) * before)), LARGEST_BET / (1 - mean))
    wealth = np.log1p(-bets * (unit - mean)).cumsum()
    return min(1.0, math.exp(-wealth.max()))


# ---- evidence against a certificate ----------------------------------------------------------------------------------


def evidence(misses: np.ndarray | int, rows: np.ndarray | int, epsilon: float) -> np.ndarray:
    """Evidence for each larger rate against "at most epsilon" after so many rows and misses: (...) -> (..., A).

    Likelihood ratios, 1 at the start. Under every rate up to epsilon each is a supermartingale, and so is their mean:
    that it ever reaches 1 / delta has probability delta at most, however often one looks and whenever one stops.
    """
    hits, passed = np.log(likelihood_ratios(epsilon))
    misses, rows = np.asarray(misses, float)[..., None], np.asarray(rows, float)[..., None]
    logs = misses * hits + (rows - misses) * passed
    return np.exp(np.minimum(logs, 690))


def likelihood_ratios(epsilon: float) -> tuple[np.ndarray, np.ndarray]:
    """What a row that misses, and one that does not, says for each larger rate and against epsilon, (A,) both."""
    rates = np.minimum(epsilon * np.array(ALTERNATIVES), (1 + epsilon) / 2)
    return rates / epsilon, (1 - rates) / (1 - epsilon)
