"""Pictures show what they are given: their figures' data, looked at before they become files."""

import subprocess
import sys

import numpy as np
import pytest
from matplotlib.figure import Figure

from modeling_pfberxit.evaluation import plots
from modeling_pfberxit.evaluation.frontier import Point
from modeling_pfberxit.model.exit_policy import ExitPolicy


@pytest.fixture
def drawn(monkeypatch) -> list[Figure]:
    """Every figure that is saved from now on."""
    figures, save = [], Figure.savefig
    monkeypatch.setattr(Figure, "savefig", lambda self, *args, **how: (figures.append(self), save(self, *args, **how)))
    return figures


def line_of(axes, label: str) -> np.ndarray:
    """The points (k, 2) of a line by its name in the legend."""
    (found,) = [line for line in axes.get_lines() if line.get_label() == label]
    return np.column_stack(found.get_data())


def test_bars_stand_at_the_layer_rows_left_at_and_are_as_high_as_their_share(drawn, tmp_path):
    groups = {"plain": np.array([1, 1, 1, 3]), "indirect": np.array([2, 3])}
    path = plots.exit_depths(groups, 3, tmp_path / "depths.png", "Depths")
    (axes,) = drawn[0].axes
    found = {
        bars.get_label(): [(round(bar.get_x() + bar.get_width() / 2), bar.get_height()) for bar in bars]
        for bars in axes.containers
    }
    assert found["plain (mean 1.50)"] == [(1, 75.0), (2, 0.0), (3, 25.0)]
    assert found["indirect (mean 2.50)"] == [(1, 0.0), (2, 50.0), (3, 50.0)]
    assert not axes.xaxis_inverted() and not axes.yaxis_inverted()
    assert path.read_bytes().startswith(b"\x89PNG")


def test_a_frontier_goes_right_with_layers_saved_and_up_with_the_score(drawn, tmp_path):
    points = [
        Point(ExitPolicy(), 0.7, 3, 0.5, low=0.6, high=0.8),
        Point(ExitPolicy(), 0.9, 5, 0.2, low=0.85, high=0.95),
    ]
    found = {"entropy": points, "patience": points[1:], "voting": points[:1], "kl": points, "window": points}
    plots.frontiers(found, 0.93, "accuracy", tmp_path / "frontier.png", "Frontier")
    panels = [axes for axes in drawn[0].axes if axes.get_visible()]
    assert [axes.get_title() for axes in panels] == list(found)
    for axes, own in zip(panels, found.values(), strict=True):
        (line,) = [line for line in axes.get_lines() if line.get_marker() == "o"]
        assert np.column_stack(line.get_data()).tolist() == [[100 * each.saved, each.score] for each in own]
        behind = [line.get_xydata().tolist() for line in axes.get_lines() if line.get_alpha()]
        assert behind == [[[100 * each.saved, each.score] for each in points] for points in found.values()]
        assert not axes.xaxis_inverted() and not axes.yaxis_inverted()
        assert [line.get_ydata()[0] for line in axes.get_lines() if line.get_linestyle() == ":"] == [0.93]
    band = panels[0].collections[0].get_paths()[0].vertices
    assert {(round(x), round(y, 2)) for x, y in band} == {(50, 0.6), (50, 0.8), (20, 0.85), (20, 0.95)}
    assert (drawn[0].get_supxlabel(), drawn[0].get_supylabel()) == ("layers saved (%)", "accuracy")


def test_curves_are_the_mean_over_seeds_within_their_range(drawn, tmp_path):
    scores = np.array([[0.5, 0.8], [0.7, 0.9]])
    found = {"mrpc": {"joint": (np.array([1, 2]), scores)}, "rte": {"joint": (np.array([1, 2]), scores - 0.1)}}
    plots.curves(found, "exit after layer", tmp_path / "curves.png", "Curves")
    first, second = drawn[0].axes
    assert (first.get_title(), second.get_title()) == ("mrpc", "rte")
    assert line_of(first, "joint") == pytest.approx(np.array([[1, 0.6], [2, 0.85]]))
    assert line_of(second, "joint") == pytest.approx(np.array([[1, 0.5], [2, 0.75]]))
    band = first.collections[0].get_paths()[0].vertices
    assert {(round(x), round(y, 2)) for x, y in band} == {(1, 0.5), (1, 0.7), (2, 0.8), (2, 0.9)}
    assert not first.yaxis_inverted()


class Measured:
    def __init__(self, batch: int, case: str, saved: float, efficiency: float):
        self.batch, self.case, self.saved, self.efficiency = batch, case, saved, efficiency


def test_efficiency_is_drawn_for_every_batch_size_and_case_that_saves(drawn, tmp_path):
    lines = [
        Measured(1, "rows leave", 0.5, 0.9), Measured(1, "rows leave", 0.501, 1.0),
        Measured(1, "rows leave", 0.25, 0.8), Measured(8, "rows leave", 0.5, 0.7),
        Measured(1, "first 6 layers", 0.5, 1.1), Measured(1, "stock", 0.0, 1.0),
    ]  # fmt: skip
    plots.efficiencies(lines, tmp_path / "efficiency.png", "Efficiency")
    one, eight = drawn[0].axes
    assert (one.get_title(), eight.get_title()) == ("batch 1", "batch 8")
    assert line_of(one, "rows leave") == pytest.approx(np.array([[25, 0.8], [50, 0.95]]))
    assert line_of(one, "first k layers") == pytest.approx(np.array([[50, 1.1]]))
    assert line_of(eight, "rows leave") == pytest.approx(np.array([[50, 0.7]]))
    assert not [line for line in one.get_lines() if line.get_label() == "stock"]


def result(system: str, seed: int, full: float, point: float | None) -> dict:
    points = [None if point is None else {"saved": 0.5, "score": point}]
    return {"system": system, "seed": seed, "metric": "accuracy", "majority": 0.4, "full": full, "points": points}


def test_the_first_system_stands_on_top_and_better_scores_to_the_right(drawn, tmp_path):
    runs = [result("pf-berxit", 1, 0.8, 0.7), result("pf-berxit", 2, 0.9, 0.5), result("pabee", 1, 0.6, None)]
    plots.comparison({"mrpc": runs, "rte": runs[:1]}, [0.5], tmp_path / "comparison.png", "Comparison")
    mrpc, _ = drawn[0].axes
    assert mrpc.yaxis_inverted() and not mrpc.xaxis_inverted()
    assert [label.get_text() for label in mrpc.get_yticklabels()] == ["pf-berxit", "pabee"]
    bars = [bar for bar in mrpc.containers]
    found = {(round(float(x), 2), round(float(y))) for bar in bars for x, y in zip(*bar.lines[0].get_data())}
    assert found == {(0.6, 0), (0.85, 0), (0.6, 1)}, "0.5 of the layers saved and full depth; pabee in full alone"
    colours = {round(float(bar.lines[0].get_xdata()[0]), 2): bar.lines[0].get_color() for bar in bars if len(bars)}
    named = {line.get_label(): line.get_color() for line in mrpc.get_lines()}
    assert colours[0.85] == named["full depth"]
    (majority,) = [line for line in mrpc.get_lines() if line.get_linestyle() == ":"]
    assert list(majority.get_xdata()) == [pytest.approx(0.4)] * 2


def test_importing_the_pictures_leaves_the_backend_alone():
    code = "import sys, matplotlib, modeling_pfberxit.evaluation.plots; sys.exit('matplotlib.pyplot' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
