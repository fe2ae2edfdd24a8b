"""The ELUE score: how far a method's points lie above a reference frontier, and who is better on every axis.

ELUE (Liu et al., NAACL 2022) scores a method by the mean vertical gap between its points (cost, score) and a
reference: the static truncations of one backbone, joined by straight lines. It is a mean of gaps, not an area, so it
depends on which points are handed in; outside the reference's range it is not defined.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ..model.validation import refuse

Points = Sequence[tuple[float, float]]  # (cost, score)


@dataclass(frozen=True)
class ElueScore:
    """The mean gap, the gap of every point inside the reference's range, and the points outside it."""

    score: float
    gaps: list[float]
    left_out: list[tuple[float, float]]


def elue_score(points: Points, reference: Points) -> ElueScore:
    """The mean of score - reference(cost) over the points whose cost the reference covers.

    Args:
        points: the method's (cost, score), costs in any unit the reference shares: layers, multiply-adds, milliseconds.
        reference: at least two (cost, score), joined by straight lines in the order of their costs.

    Raises:
        ValueError: no reference line, two reference points of the same cost, or no point within its range.

    Example: the reference (2, 0.5), (4, 0.7) is 0.6 at cost 3; a point (3, 0.65) lies 0.05 above it.
    """
    costs, scores = np.asarray(sorted(reference), dtype=float).reshape(-1, 2).T
    if len(costs) < 2 or (np.diff(costs) == 0).any():
        refuse("reference", list(reference), "at least two points of different costs")
    inside = [(cost, score) for cost, score in points if costs[0] <= cost <= costs[-1]]
    outside = [(cost, score) for cost, score in points if not costs[0] <= cost <= costs[-1]]
    if not inside:
        refuse("points", list(points), f"some with costs between {costs[0]:g} and {costs[-1]:g}, the reference's range")
    gaps = [float(score - np.interp(cost, costs, scores)) for cost, score in inside]
    return ElueScore(float(np.mean(gaps)), gaps, outside)


def dominates(a: tuple[float, float], b: tuple[float, float]) -> bool:
    """Pareto improvement: `a` costs no more and scores no less than `b`, and one of the two is better."""
    return a[0] <= b[0] and a[1] >= b[1] and a != b


def improves(points: Points, reference: Points) -> bool:
    """Pareto improvement of a set: some of its points improve on the reference's, and none is improved on by them."""
    better = any(dominates(point, other) for point in points for other in reference)
    return better and not any(dominates(other, point) for point in points for other in reference)


def pareto(points: Points) -> list[int]:
    """The numbers of the points that no other dominates, cheapest first; of equal points the first one."""
    best, kept = -np.inf, []
    for number in sorted(range(len(points)), key=lambda i: (points[i][0], -points[i][1])):
        if points[number][1] > best:
            best = points[number][1]
            kept.append(number)
    return kept


def dynamic_flops_file(lengths: Sequence[int], layers: Sequence[int]) -> str:
    """The lines ELUE's server measures dynamic FLOPs from: a row's length and its executed layers, tab between them."""
    return "".join(f"{length}\t{depth}\n" for length, depth in zip(lengths, layers, strict=True))
