"""Scores and confusions of classes are scikit-learn's, at full depth and under a policy, and `report` prints them."""

import numpy as np
import pytest
import torch
from sklearn.metrics import confusion_matrix, precision_recall_fscore_support

from modeling_pfberxit import ExitPolicy
from modeling_pfberxit.evaluation.confusion import class_scores, confusion, confusion_table
from modeling_pfberxit.evaluation.recording import Recording
from modeling_pfberxit.model.evidence import MULTI_LABEL, REGRESSION, SINGLE_LABEL, Evidence
from pfberxit.cli import main

POLICY = ExitPolicy(criterion="appointed", appointed_layer=2)


def recording(problem_type: str = SINGLE_LABEL, classes: int = 3, rows: int = 60, **more) -> Recording:
    """Random answers at three exits; the first class is never the label, the last never an answer."""
    random = torch.Generator().manual_seed(classes)
    logits = torch.randn(rows, 3, classes, generator=random)
    logits[..., -1] = -9.0
    labels = torch.randint(1, classes, (rows,), generator=random)
    if problem_type == MULTI_LABEL:
        labels = (torch.rand(rows, classes, generator=random) > 0.6).float()
    return Recording(Evidence(logits), torch.full((rows,), 5), labels, [2, 4, 6], problem_type, **more)


@pytest.mark.parametrize(("policy", "exit"), [(None, 2), (POLICY, 0)])
@pytest.mark.parametrize("problem_type", [SINGLE_LABEL, MULTI_LABEL])
def test_every_class_has_scikit_learns_precision_recall_and_f1(problem_type, policy, exit):
    kept = recording(problem_type, 4)
    logits = kept.evidence.logits[:, exit]
    given = (logits > 0).int() if problem_type == MULTI_LABEL else logits.argmax(-1)
    expected = precision_recall_fscore_support(kept.labels.int(), given, labels=range(4), zero_division=0.0)
    found = class_scores(kept, policy)
    np.testing.assert_allclose([found.precision, found.recall, found.f1, found.rows], expected)


def test_the_confusion_is_scikit_learns_with_the_true_class_down():
    kept = recording()
    expected = confusion_matrix(kept.labels, kept.evidence.logits[:, -1].argmax(-1), labels=range(3))
    np.testing.assert_array_equal(confusion(kept), expected)
    assert (expected != expected.T).any(), "or down and across could be swapped"


def test_a_row_that_leaves_as_unsure_is_answered_with_no_class():
    kept, policy = recording(), ExitPolicy("entropy", threshold=0.3, answer="abstain", unsure_below=0.8, window=1)
    logits, _ = kept.replay(policy)
    given = np.where(logits.isnan().any(1), -1, logits.argmax(1))
    assert 0 < (given < 0).sum() < len(given)
    expected = confusion_matrix(kept.labels, given, labels=[-1, 0, 1, 2])
    np.testing.assert_array_equal(confusion(kept, policy), expected[1:, 1:])
    scores = precision_recall_fscore_support(kept.labels, given, labels=range(3), zero_division=0.0)
    found = class_scores(kept, policy)
    np.testing.assert_allclose([found.precision, found.recall, found.f1, found.rows], scores)
    line = confusion_table(confusion(kept, policy), ["a", "b", "c"], expected[1:, 0]).splitlines()[3]
    assert line == f"| b | {' | '.join(map(str, [*expected[2, 1:], expected[2, 0]]))} |"


def test_of_many_classes_the_most_frequent_confusions_are_listed():
    counts = np.eye(20, dtype=int) * 7
    counts[3, 5], counts[5, 3], counts[0, 1] = 4, 9, 1
    lines = confusion_table(counts, [f"c{i}" for i in range(20)]).splitlines()
    assert lines[2:] == ["| c5 | c3 | 9 |", "| c3 | c5 | 4 |", "| c0 | c1 | 1 |"]


def test_report_prints_them_by_name_and_by_policy(tmp_path, capsys):
    path = str(tmp_path / "a.safetensors")
    recording(label_names=["refund", "delivery", "other"]).save(path)
    for words, asked in ((["report", path], None), (["report", path, "--policy", '{"criterion": "appointed", '
                                                     '"appointed_layer": 2}'], POLICY)):  # fmt: skip
        main(words)
        printed = capsys.readouterr().out
        found = class_scores(recording(), asked)
        assert f"| delivery | {found.rows[1]} | {found.precision[1]:.3f} | {found.recall[1]:.3f}" in printed
        assert "| delivery | " + " | ".join(map(str, confusion(recording(), asked)[1])) + " |" in printed
        assert ("full depth" in printed) is (asked is None)


def test_values_have_no_classes(tmp_path, capsys):
    kept = Recording(Evidence(torch.randn(4, 3, 1)), torch.full((4,), 5), torch.randn(4), [2, 4, 6], REGRESSION)
    with pytest.raises(ValueError, match="recording='regression': must be one of classes or labels"):
        class_scores(kept)
    kept.save(tmp_path / "a.safetensors")
    main(["report", str(tmp_path / "a.safetensors")])
    assert "precision" not in capsys.readouterr().out
