"""Overthinking, who leaves where, drift and suitability, on recordings whose answers are known."""

import numpy as np
import pytest
import torch
from scipy.stats import chi2_contingency
from tiny import tiny_batch, tiny_model

from modeling_pfberxit import ExitPolicy
from modeling_pfberxit.evaluation.exit_patterns import (
    correct,
    drift,
    exits_by_class,
    exits_by_length,
    join_rare,
    overthinking,
    settled_depth,
)
from modeling_pfberxit.evaluation.recording import Recording
from modeling_pfberxit.evaluation.suitability import explained, suitability
from modeling_pfberxit.evaluation.tables import table
from modeling_pfberxit.model.evidence import MULTI_LABEL, REGRESSION, SINGLE_LABEL, Evidence
from pfberxit.cli import main


def answers(table: list[list[int]], labels: list[int] | None, depths: list[int] | None = None) -> Recording:
    """A recording whose exits predict these classes."""
    logits = torch.nn.functional.one_hot(torch.tensor(table), 3).float()
    depths = depths or list(range(1, len(table[0]) + 1))
    lengths = torch.arange(len(table)) + 5
    return Recording(Evidence(logits), lengths, None if labels is None else torch.tensor(labels), depths, SINGLE_LABEL)


ROWS = [[0, 0, 0, 0], [1, 0, 0, 0], [0, 1, 0, 1], [2, 2, 1, 1], [1, 2, 1, 2]]
LABELS = [0, 0, 0, 1, 0]


def test_overthinking_by_hand():
    found = overthinking(answers(ROWS, LABELS))
    assert found.first_right.tolist() == [1, 2, 1, 3, 0]
    assert found.wasteful == pytest.approx(3 / 5)  # the first, second and fourth row
    assert found.destructive == pytest.approx(1 / 5)  # the third was right at layers 1 and 3
    assert found.wasted.tolist() == [3, 2, 0, 1, 0]


def test_layers_are_counted_not_exits():
    found = overthinking(answers(ROWS, LABELS, depths=[2, 3, 6, 12]))
    assert found.first_right.tolist() == [2, 3, 2, 6, 0]
    assert found.wasted.tolist() == [10, 9, 0, 6, 0]


def test_several_labels_must_all_be_right_and_values_be_close():
    logits = torch.tensor([[[1.0, -1.0], [1.0, 1.0]]])
    kept = Recording(Evidence(logits), torch.ones(1), torch.tensor([[1.0, 1.0]]), [1, 2], MULTI_LABEL)
    assert correct(kept).tolist() == [[False, True]]
    values = Recording(Evidence(torch.tensor([[[1.0], [1.4]]])), torch.ones(1), torch.tensor([1.8]), [1, 2], REGRESSION)
    assert correct(values).tolist() == [[False, True]] and correct(values, tolerance=1.0).all()


def test_labels_are_needed_to_be_right_but_not_to_settle():
    kept = answers(ROWS, None)
    assert settled_depth(kept).tolist() == [1, 2, 4, 3, 4]
    with pytest.raises(ValueError, match="recording='no labels': must be one of labelled rows"):
        overthinking(kept)


def test_every_row_is_in_the_group_of_its_class_and_of_its_length():
    kept, policy = answers(ROWS, LABELS), ExitPolicy("patience", patience=1)
    _, layers = kept.replay(policy)
    by_class = exits_by_class(kept, policy, ["a", "b", "c"])
    assert by_class["a"].tolist() == layers[[0, 1, 2, 4]].tolist() and by_class["b"].tolist() == [layers[3]]
    assert len(by_class["c"]) == 0
    by_length = exits_by_length(kept, policy, groups=2)
    assert list(by_length) == ["5 to 7 tokens", "8 to 9 tokens"]
    assert np.concatenate(list(by_length.values())).tolist() == layers.tolist()


# ---- drift ----------------------------------------------------------------------------------------------------------


def entropies(rows: int, sharpness: float, seed: int) -> Recording:
    generator = torch.Generator().manual_seed(seed)
    logits = sharpness * torch.randn(rows, 6, 3, generator=generator)
    return Recording(Evidence(logits), torch.ones(rows), None, [1, 2, 3, 4, 5, 6], SINGLE_LABEL)


POLICY = ExitPolicy("entropy", threshold=0.6)


def test_rows_of_the_same_kind_are_no_drift_more_often_than_chance_allows():
    alarms = [bool(drift(entropies(300, 1, 2 * n), entropies(300, 1, 2 * n + 1), POLICY)) for n in range(100)]
    assert sum(alarms) <= 5  # one in a hundred is expected


def test_rows_of_another_kind_are_noticed():
    found = drift(entropies(300, 1.0, 1), entropies(300, 1.5, 2), POLICY)
    assert found and found.p_value < 1e-4 and found.after[1] > found.before[1]
    assert sum(found.before.values()) == pytest.approx(1) and list(found.after) == [1, 2, 3, 4, 5, 6]


def test_the_test_is_scipys_on_the_joined_counts():
    counts = np.array([[40, 3, 2, 55], [30, 2, 3, 65]])
    assert join_rare(counts).tolist() == [[40, 5, 55], [30, 5, 65]]
    assert join_rare(np.array([[50, 49, 1], [40, 59, 1]])).tolist() == [[50, 50], [40, 60]]
    one, other = entropies(300, 1, 5), entropies(200, 1.1, 6)
    table = [np.bincount(part.replay(POLICY)[1], minlength=7)[1:] for part in (one, other)]
    assert drift(one, other, POLICY).p_value == chi2_contingency(join_rare(np.stack(table))).pvalue


def test_rows_that_all_leave_at_one_layer_cannot_drift():
    everywhere = ExitPolicy("appointed", appointed_layer=2)
    assert drift(entropies(50, 1, 1), entropies(50, 2, 2), everywhere).p_value == 1.0


# ---- suitability ----------------------------------------------------------------------------------------------------


@torch.no_grad()
def scale_upper_layers(factor: float):
    """A bare encoder whose upper half does nothing (0), or works everything over (large)."""
    model = tiny_model("bert", liven=False, adapter_placement="none")
    for layer in model.backbone.encoder.layer[3:]:
        for dense in (layer.attention.output.dense, layer.intermediate.dense, layer.output.dense):
            dense.weight.mul_(factor)
    for layer in model.backbone.encoder.layer[:3]:
        layer.output.dense.weight.mul_(20)
    return model


def test_a_backbone_with_room_ranks_above_one_made_without_any():
    batches = [tiny_batch(100, seed=seed) for seed in range(3)]
    room, none = (suitability(scale_upper_layers(factor), batches) for factor in (0.0, 60.0))
    assert room[-1] == pytest.approx(1.0, abs=0.05) and none[-1] == pytest.approx(1.0, abs=0.05)
    assert room[2] > 0.9 > none[2] + 0.2


def test_what_is_explained_is_what_a_linear_map_can_carry_over():
    generator = torch.Generator().manual_seed(0)
    source = torch.randn(300, 20, generator=generator, dtype=torch.float64)
    mixing, noise = (torch.randn(*shape, generator=generator, dtype=torch.float64) for shape in ((20, 8), (300, 8)))
    assert explained(source, source @ mixing, ridge=1e-6) == pytest.approx(1.0, abs=1e-6)
    assert explained(source, noise) < 0.05
    assert 0.3 < explained(source, source @ mixing + noise * mixing.norm(dim=0)) < 0.7


def test_too_few_rows_are_refused():
    with pytest.raises(ValueError, match="batches='20 rows': must be at least 50"):
        suitability(scale_upper_layers(0.0), [tiny_batch(20)])


def test_half_way_up_is_told_of_the_middle_layer(local_backbone, monkeypatch, capsys):
    shares = [0.1, 0.2, 0.3, 0.4, 0.5, 1.0]
    monkeypatch.setattr("modeling_pfberxit.evaluation.suitability.suitability", lambda model, batches: shares)
    main(["suitability", local_backbone, "--rows", "60"])
    printed = capsys.readouterr().out
    assert "60 rows" in printed and "Half-way up: 0.30." in printed
    assert "layer  2 ████████ " in printed and f"layer  6 {'█' * 40} 1.00" in printed


def test_a_table_is_aligned_to_the_left_as_far_as_it_says_and_to_the_right_from_there():
    rows = [["entropy", "sst2", "0.9"], ["kl", "rte", "0.6"]]
    expected = "| rule | task | score |\n|---|{}|---:|\n| entropy | sst2 | 0.9 |\n| kl | rte | 0.6 |"
    assert table(["rule", "task", "score"], rows) == expected.format("---:")
    assert table(["rule", "task", "score"], rows, align="ll") == expected.format("---")
