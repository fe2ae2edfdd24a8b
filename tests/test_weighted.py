"""Many scores at once: scikit-learn's and scipy's, row by drawn row, and intervals are what resampling says."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from modeling_pfberxit import ExitPolicy
from modeling_pfberxit.benchmark.commands import benchmark_commands
from modeling_pfberxit.data.metrics import METRICS, score
from modeling_pfberxit.data.weighted import weighted_scores
from modeling_pfberxit.evaluation.frontier import drawn_weights, grid, resampled_scores, sweep, with_intervals
from modeling_pfberxit.evaluation.history import History
from modeling_pfberxit.evaluation.recording import Recording
from modeling_pfberxit.evaluation.replay import Scores
from modeling_pfberxit.model.evidence import (
    DIVERGENCES,
    MULTI_LABEL,
    REGRESSION,
    ROW_WISE,
    SINGLE_LABEL,
    Evidence,
    ExitState,
)

pytestmark = pytest.mark.filterwarnings("ignore::scipy.stats.ConstantInputWarning", "ignore::RuntimeWarning")


def rows_of(metric: str, rows: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Logits and labels a metric can judge; values are coarse, so that there are ties."""
    rng = np.random.default_rng(seed)
    if metric == "correlation":
        return rng.integers(-3, 4, (rows, 1)) / 2, rng.integers(0, 11, rows) / 2
    if metric == "micro_f1":
        return rng.normal(size=(rows, 5)) - 1, (rng.random((rows, 5)) < 0.2).astype(np.float32)
    classes = 2 if metric == "accuracy_f1" else 4
    return rng.normal(size=(rows, classes)), rng.integers(0, classes, rows)


@pytest.mark.parametrize("metric", METRICS)
@settings(max_examples=20, deadline=None)
@given(rows=st.integers(2, 30), seed=st.integers(0, 10**6))
def test_a_row_that_counts_twice_is_a_row_that_is_there_twice(metric, rows, seed):
    (logits, labels), (others, _) = rows_of(metric, rows, seed), rows_of(metric, rows, seed + 1)
    drawn = np.random.default_rng(seed).integers(0, rows, (6, rows))
    weights = np.stack([np.bincount(each, minlength=rows) for each in drawn], axis=1).astype(float)
    found = weighted_scores(metric, [logits, others], labels, weights)
    expected = [[score(metric, each[rows], labels[rows]) for each in (logits, others)] for rows in drawn]
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("constant", [0, 1])
def test_answers_that_do_not_vary_score_as_one_by_one(metric, constant):
    logits, labels = rows_of(metric, 40, 1)
    logits = np.zeros_like(logits) - constant
    found = weighted_scores(metric, [logits], labels, np.ones((40, 1)))
    assert found.item() == pytest.approx(score(metric, logits, labels), abs=1e-12)


def test_values_have_no_correlation_with_labels_that_do_not_vary():
    values, labels = np.arange(6.0)[:, None], np.ones(6)
    assert weighted_scores("correlation", [values], labels, np.ones((6, 2))).tolist() == [[0.0], [0.0]]
    assert score("correlation", values, labels) == 0.0


def test_values_far_from_zero_correlate_as_those_around_it():
    rng = np.random.default_rng(0)
    values, labels, weights = rng.normal(size=(500, 1)), rng.normal(size=500), np.ones((500, 1))
    found = weighted_scores("correlation", [values, 1e6 + values], labels + 1e4, weights)[0]
    np.testing.assert_allclose(found, score("correlation", values, labels), rtol=0, atol=1e-9)


def test_more_than_two_classes_have_no_f1_and_an_unknown_metric_none_at_all():
    logits, labels = rows_of("accuracy", 20, 0)
    with pytest.raises(ValueError, match="metric='accuracy_f1'.*two classes"):
        weighted_scores("accuracy_f1", [logits], labels, np.ones((20, 1)))
    with pytest.raises(ValueError, match="metric='bleu'.*accuracy"):
        weighted_scores("bleu", [logits], labels, np.ones((20, 1)))


def recording(problem_type: str, rows: int = 60, exits: int = 4) -> tuple[Recording, str]:
    """Random exits of a kind of task, and its metric."""
    torch.manual_seed(0)
    answers, labels, metric = {
        SINGLE_LABEL: (3, torch.randint(0, 3, (rows,)), "matthews"),
        MULTI_LABEL: (5, (torch.rand(rows, 5) < 0.3).float(), "micro_f1"),
        REGRESSION: (1, torch.rand(rows), "correlation"),
    }[problem_type]
    evidence, depths = Evidence(torch.randn(rows, exits, answers)), list(range(1, exits + 1))
    return Recording(evidence, torch.randint(3, 9, (rows,)), labels, depths, problem_type), metric


@pytest.mark.parametrize("problem_type", [SINGLE_LABEL, MULTI_LABEL, REGRESSION])
def test_a_sweep_scores_every_setting_as_it_scores_alone(problem_type):
    kept, metric = recording(problem_type)
    points = sweep(kept, grid(kept, "patience", steps=5), metric)
    expected = [score(metric, kept.replay(point.policy)[0].numpy(), kept.labels.numpy()) for point in points]
    assert [point.score for point in points] == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("problem_type", [SINGLE_LABEL, MULTI_LABEL, REGRESSION])
def test_resampled_scores_are_those_of_rows_drawn_one_by_one(problem_type):
    kept, metric = recording(problem_type)
    points, labels = sweep(kept, grid(kept, "appointed"), metric), kept.labels.numpy()
    answers = [kept.replay(point.policy)[0].numpy() for point in points]
    drawn = np.random.default_rng(3).integers(0, len(labels), (20, len(labels)))
    expected = [[score(metric, each[rows], labels[rows]) for each in answers] for rows in drawn]
    np.testing.assert_allclose(resampled_scores(points, kept, metric, 20, seed=3), expected, rtol=0, atol=1e-12)


def test_what_is_drawn_does_not_depend_on_how_much_is_drawn_at_once():
    whole, parts = (list(drawn_weights(50, 20, seed=1, at_once=size)) for size in (10**6, 150))
    assert len(whole) == 1 and len(parts) == 7 and max(each.size for each in parts) <= 150
    assert (np.concatenate(parts, axis=1) == whole[0]).all() and (whole[0].sum(0) == 50).all()


def test_a_grid_its_sweep_and_its_intervals_score_the_evidence_once(monkeypatch):
    made, original = [], Scores.__init__

    def counted(self: Scores, history: History, policy: ExitPolicy) -> None:
        made.append(policy.window)
        original(self, history, policy)

    monkeypatch.setattr(Scores, "__init__", counted)
    kept, metric = recording(SINGLE_LABEL)
    with_intervals(sweep(kept, grid(kept, "divergence_v3", steps=4), metric), kept, metric, resamples=5)
    assert len(made) == len(set(made)) > 1


@pytest.mark.parametrize("problem_type", [SINGLE_LABEL, MULTI_LABEL])
@pytest.mark.parametrize("memory", [1, 2, 5])
def test_what_is_looked_up_is_what_the_exits_remember_online(problem_type, memory):
    evidence, divergence = recording(problem_type)[0].evidence, DIVERGENCES["js_div"].of
    history, labels = History(evidence, problem_type), evidence.logits.shape[2]
    online = ExitState.start(60, labels, memory, problem_type, "cpu")
    for number, now in enumerate(history.now):
        state = history.state(number, memory)
        for name in ROW_WISE:
            torch.testing.assert_close(getattr(state, name), getattr(online, name), rtol=0, atol=0, equal_nan=True)
        expected = online.divergences(now, divergence)
        torch.testing.assert_close(state.divergences(now, divergence), expected, rtol=0, atol=1e-6, equal_nan=True)
        online.remember(now)


def test_every_command_on_a_recording_is_timed():
    said = []
    found = benchmark_commands(60, 4, said.append)
    assert {command for _, command in found} == {"write_and_read", "frontier", "calibrate", "ladder", "elue", "report"}
    lines = "\n".join(said).splitlines()
    assert all(any(line.startswith(f"| {kind} | {command} |") for line in lines) for kind, command in found)
    assert sum(line.endswith("|") for line in lines) == len(found) + 2
