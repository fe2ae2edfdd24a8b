"""How far two predictions are apart (eq. 6 to 8 and their relatives).

A divergence takes two tables of log-probabilities (..., K) and returns nats (...). The paper's "kl", "rekl" and "bikl"
are cross-entropies, CE(p, q) = H(p) + KL(p || q): they are small only where two exits agree *and* are sure, so a small
threshold is a confidence threshold as well. F-PABEE's released code computes the same. They keep the paper's names
here, and the true divergences stand beside them.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

from torch import Tensor, logaddexp


def kl(i: Tensor, j: Tensor) -> Tensor:
    """Eq. 6, as printed and as run: the cross-entropy CE(p_i, p_j) = -sum p_i ln p_j, i the current exit.

    Two identical coin tosses score ln 2 = 0.693, two identical (0.9, 0.1) score 0.325.
    """
    return -(i.exp() * j.clamp(min=-1e4)).sum(-1)  # an outcome both rule out costs nothing: 0 * -inf would be NaN


def rekl(i: Tensor, j: Tensor) -> Tensor:
    """Eq. 7: the cross-entropy the other way round, CE(p_j, p_i)."""
    return kl(j, i)


def bikl(i: Tensor, j: Tensor) -> Tensor:
    """Eq. 8: CE(p_i, p_j) + CE(p_j, p_i), in [0, inf): two identical coin tosses score 2 ln 2 = 1.386."""
    return kl(i, j) + kl(j, i)


def jskd(i: Tensor, j: Tensor) -> Tensor:
    """F-PABEE's JSKD as released: (CE(p, m) + CE(q, m)) / 2 with m the mean of p and q, which is the entropy of m."""
    mean = logaddexp(i, j) - math.log(2)
    return kl(mean, mean)


def kl_div(i: Tensor, j: Tensor) -> Tensor:
    """The true Kullback-Leibler divergence KL(p_i || p_j): 0 exactly where the predictions are equal."""
    return (kl(i, j) - kl(i, i)).clamp(min=0)  # rounding may leave a hair below


def rekl_div(i: Tensor, j: Tensor) -> Tensor:
    """KL(p_j || p_i)."""
    return kl_div(j, i)


def symkl_div(i: Tensor, j: Tensor) -> Tensor:
    """KL(p_i || p_j) + KL(p_j || p_i)."""
    return kl_div(i, j) + kl_div(j, i)


def js_div(i: Tensor, j: Tensor) -> Tensor:
    """The Jensen-Shannon divergence, in [0, ln 2]."""
    return (jskd(i, j) - (kl(i, i) + kl(j, j)) / 2).clamp(min=0)


class Divergence(NamedTuple):
    """A divergence, and the nats that `normalize` counts as 1 for K outcomes."""

    of: Callable[[Tensor, Tensor], Tensor]
    unit: Callable[[int], float]


# The cross-entropies are measured in what two clueless exits score, so 1 means "agree, but know nothing". The true
# divergences are 0 there; they share the unit of their cross-entropy, and the bounded one is measured in its bound.
DIVERGENCES = {
    "kl": Divergence(kl, math.log),
    "rekl": Divergence(rekl, math.log),
    "bikl": Divergence(bikl, lambda outcomes: 2 * math.log(outcomes)),
    "jskd": Divergence(jskd, math.log),
    "kl_div": Divergence(kl_div, math.log),
    "rekl_div": Divergence(rekl_div, math.log),
    "symkl_div": Divergence(symkl_div, lambda outcomes: 2 * math.log(outcomes)),
    "js_div": Divergence(js_div, lambda outcomes: math.log(2)),
}
DIVERGENCE_ALIASES = {"kd": "kl", "rekd": "rekl", "symkd": "bikl"}  # the names F-PABEE uses for the same formulas
