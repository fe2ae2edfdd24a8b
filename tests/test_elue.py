"""The ELUE score and Pareto improvement, by hand."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from modeling_pfberxit.evaluation.elue import dominates, dynamic_flops_file, elue_score, pareto

REFERENCE = [(2, 0.5), (4, 0.7), (6, 0.8)]
numbers = st.floats(-100, 100).map(lambda value: round(value, 3))
clouds = st.lists(st.tuples(numbers, numbers), min_size=1, max_size=30)


def test_the_score_is_the_mean_gap_to_the_line_by_hand():
    # the line is 0.6 at 3 and 0.75 at 5: gaps 0.05 and -0.03
    found = elue_score([(3, 0.65), (5, 0.72)], REFERENCE)
    assert found.gaps == pytest.approx([0.05, -0.03]) and found.score == pytest.approx(0.01)
    assert found.left_out == []


def test_the_reference_scores_zero_against_itself():
    assert elue_score(REFERENCE, REFERENCE).score == pytest.approx(0.0)


def test_points_outside_the_reference_are_reported_and_left_out():
    found = elue_score([(1, 0.9), (3, 0.65), (7, 0.9)], REFERENCE)
    assert found.score == pytest.approx(0.05) and found.left_out == [(1, 0.9), (7, 0.9)]


def test_the_ends_of_the_reference_belong_to_it():
    found = elue_score([(2, 0.6), (6, 0.9)], REFERENCE)
    assert found.gaps == pytest.approx([0.1, 0.1]) and found.left_out == []


@given(st.permutations(REFERENCE), st.floats(0.1, 100))
def test_neither_the_order_nor_the_unit_of_cost_matters(reference, unit):
    points = [(3, 0.65), (5.5, 0.7)]
    scaled = elue_score([(c * unit, s) for c, s in points], [(c * unit, s) for c, s in reference])
    assert scaled.score == pytest.approx(elue_score(points, REFERENCE).score)


@pytest.mark.parametrize("reference", [[], [(2, 0.5)], [(2, 0.5), (2, 0.6)]])
def test_a_reference_without_a_line_is_refused(reference):
    with pytest.raises(ValueError, match="reference=.* must be at least two points of different costs"):
        elue_score([(2, 0.5)], reference)


def test_no_point_in_range_is_refused():
    with pytest.raises(ValueError, match="between 2 and 6"):
        elue_score([(1, 0.5)], REFERENCE)


@given(clouds)
def test_the_frontier_is_what_nobody_dominates(points):
    kept = pareto(points)
    frontier = {points[number] for number in kept}
    assert frontier == {p for p in points if not any(dominates(other, p) for other in points)}
    assert len(frontier) == len(kept)
    costs = [points[number][0] for number in kept]
    assert costs == sorted(costs)


def test_being_better_on_one_axis_and_no_worse_on_the_other_is_an_improvement():
    assert dominates((1, 0.5), (2, 0.5)) and dominates((1, 0.6), (1, 0.5)) and dominates((1, 0.6), (2, 0.5))
    assert not dominates((1, 0.5), (1, 0.5)) and not dominates((1, 0.4), (2, 0.5))


def test_the_dynamic_flops_file_has_a_length_and_a_depth_per_row():
    assert dynamic_flops_file(np.array([17, 5]), np.array([12, 3])) == "17\t12\n5\t3\n"
