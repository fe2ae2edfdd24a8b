"""The `evaluate` module: loads from the package's folder without the Hub, scores and says where rows left."""

from pathlib import Path

import numpy as np
import pytest
from sklearn.metrics import f1_score, matthews_corrcoef

import modeling_pfberxit
from modeling_pfberxit.data.metrics import METRICS

evaluate = pytest.importorskip("evaluate")
FOLDER = str(Path(modeling_pfberxit.__file__).parent / "evaluation" / "exit_metric")


@pytest.fixture
def load(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    return lambda name: evaluate.load(FOLDER, name, cache_dir=str(tmp_path))


def test_scores_and_exits_by_hand(load):
    found = load("matthews").compute(
        predictions=[[2.0, 1.0], [0.0, 1.0], [0.0, 3.0], [1.0, 0.0]], references=[0, 1, 0, 0],
        exit_layers=[2, 2, 6, 4], layers=6,
    )  # fmt: skip
    assert found["matthews"] == pytest.approx(matthews_corrcoef([0, 1, 0, 0], [0, 1, 1, 0]))
    assert found["mean_layer"] == 3.5 and found["speed_up"] == pytest.approx(6 / 3.5)
    assert found["layers_saved"] == pytest.approx(1 - 3.5 / 6)
    assert found["exits"] == {2: 0.5, 4: 0.25, 6: 0.25}


def test_batches_can_be_added_one_by_one(load):
    metric, rng = load("micro_f1"), np.random.default_rng(0)
    logits, labels = rng.normal(size=(30, 4)), (rng.random((30, 4)) > 0.5).astype(int)
    for part in range(0, 30, 10):
        metric.add_batch(
            predictions=logits[part : part + 10], references=labels[part : part + 10], exit_layers=[3] * 10
        )
    assert metric.compute(layers=12)["micro_f1"] == pytest.approx(f1_score(labels, logits > 0, average="micro"))


@pytest.mark.parametrize("name", [name for name in METRICS if name != "micro_f1"])
def test_every_metric_has_a_config(load, name):
    values = [[0.1, 0.9], [0.7, 0.3], [0.2, 0.8]] if name != "correlation" else [[0.1], [0.7], [0.4]]
    found = load(name).compute(predictions=values, references=[1, 0, 1], exit_layers=[1, 2, 3], layers=3)
    assert found["mean_layer"] == 2.0 and name in found


def test_an_unknown_metric_and_impossible_layers_are_refused(load):
    with pytest.raises(ValueError, match="config_name='bleu': must be one of accuracy"):
        load("bleu")
    with pytest.raises(ValueError, match="exit_layers=1 to 7: must be layers of the model, 1 to 6"):
        load("accuracy").compute(predictions=[[1.0], [1.0]], references=[0, 0], exit_layers=[1, 7], layers=6)
