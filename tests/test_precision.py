"""What lower precision changes is told row by row."""

from importlib.util import find_spec

import pytest
import torch
from datasets import Dataset
from tiny import rows_of, tiny_batch, tiny_model

from modeling_pfberxit import ExitPolicy
from modeling_pfberxit.evaluation import precision
from modeling_pfberxit.evaluation.precision import as_markdown, compare_precisions, converted, differences
from modeling_pfberxit.evaluation.recording import Recording
from modeling_pfberxit.model.evidence import MULTI_LABEL, REGRESSION, SINGLE_LABEL, Evidence


def recording(logits: list, problem_type: str = SINGLE_LABEL) -> Recording:
    logits = torch.tensor(logits)
    return Recording(Evidence(logits), torch.full((len(logits),), 4), None, [1, 2], problem_type, {})


def test_differences_by_hand():
    policy = ExitPolicy("entropy", threshold=0.3)
    # sure at exit 1 in both; unsure at exit 1 in the second alone; the same depths, another answer
    before = recording([[[4.0, 0], [4, 0]], [[4.0, 0], [4, 0]], [[4.0, 0], [4, 0]]])
    after = recording([[[4.0, 0], [4, 0]], [[0.1, 0], [4, 0]], [[0.0, 4], [4, 0]]])
    assert differences(before, after, policy) == pytest.approx((1 / 3, 1 / 3))


def test_several_labels_differ_if_one_does_and_values_by_more_than_a_twentieth():
    policy = ExitPolicy("appointed", appointed_layer=2)
    before, after = ([[[0.0, 0], [1, -1]]], [[[0.0, 0], [1, 0.1]]])
    assert differences(recording(before, MULTI_LABEL), recording(after, MULTI_LABEL), policy) == (0, 1)
    values = [recording([[[0.0], [value]]], REGRESSION) for value in (1.0, 1.04, 1.06)]
    assert [differences(values[0], other, policy)[1] for other in values] == [0, 0, 1]


def test_precisions_are_compared_with_fp32_on_the_same_rows_and_the_model_stays_as_it_was():
    model = tiny_model(num_labels=3).eval()
    rows = Dataset.from_dict({"input_ids": [row.tolist() for row in rows_of(tiny_batch(12))]})
    found = compare_precisions(model, rows, ExitPolicy(threshold=0.5, patience=1), ["bfloat16", "float32"], repeats=1)
    assert [each.precision for each in found] == ["float32", "bfloat16"]
    assert (found[0].exits, found[0].labels, found[0].ratio) == (0, 0, 1)
    assert 0 <= found[1].exits <= 1 and found[1].milliseconds > 0
    assert model.dtype == torch.float32
    assert as_markdown(found).count("\n") == 3


def test_a_ratio_above_one_is_slower_than_fp32(monkeypatch):
    rows = Dataset.from_dict({"input_ids": [[7, 8, 9]] * 4})
    monkeypatch.setattr(precision, "interleaved", lambda calls, repeats, warmups: [[0.1, 0.2], [0.3, 0.8]])
    policy = ExitPolicy(threshold=0.5, patience=1)
    plain, half = compare_precisions(tiny_model(), rows, policy, ["bfloat16"], repeats=2)
    assert (plain.ratio, half.ratio) == pytest.approx((1.0, 3.5))
    assert (plain.milliseconds, half.milliseconds) == pytest.approx((1000 * 0.15 / 4, 1000 * 0.55 / 4))


def test_an_unknown_precision_and_a_missing_library_are_refused():
    model = tiny_model()
    with pytest.raises(ValueError, match="precision='int4'.*float32, bfloat16, float16, int8"):
        converted(model, "int4")
    if find_spec("torchao") is None:
        with pytest.raises(ValueError, match="precision='int8'.*pip install torchao"):
            converted(model, "int8")
