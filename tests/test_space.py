"""The Space shows what the server's page shows: it leaves where the model does, whatever labels are called."""

import json
import sys
from pathlib import Path

import pytest

pytest.importorskip("fastapi")
pytest.importorskip("uvicorn")
pytest.importorskip("httpx")

from served import POINTS, saved

from modeling_pfberxit.evaluation.walk import walk
from modeling_pfberxit.serving.layers import described, policy_of, recording_of
from modeling_pfberxit.serving.predictors import OWN
from modeling_pfberxit.serving.start import Loading

SPACE = Path(__file__).parents[1] / "examples" / "space"
NAMES = ("<b>refund</b>", "delivery", "other")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return saved(tmp_path_factory.mktemp("space") / "model", names=NAMES)


@pytest.fixture
def view(monkeypatch):
    monkeypatch.syspath_prepend(str(SPACE))
    import view

    yield view
    sys.modules.pop("view", None)


def test_its_layers_leave_where_the_model_does_and_labels_are_words(view, folder):
    predictor = Loading(device="cpu").first(folder)
    policy = policy_of(predictor, predictor.point(None), OWN)
    tokens = predictor.read(["w1 w2 w3"])[0][0]
    found = walk(recording_of(predictor, tokens), policy)
    walked, left = described(found, predictor, policy, 5), found.outcomes[found.own]
    html = view.layers(walked, NAMES, left.exit_layer, walked.outcomes[found.own].probabilities, policy.threshold)
    assert html.count("<li ") == 6 and html.count("class='leaves'") == 1
    assert f"<li class='leaves'><b>{left.exit_layer}</b>" in html
    assert "<b>refund" not in html
    assert predictor.run([tokens], [predictor.point(None)]).exit_layer == [left.exit_layer]


def test_its_charts_count_visits_of_the_last_minutes(view):
    visits = [(100.0 - 400, 9.0, 6, "old"), *((95.0, 0.1, 2, "quick") for _ in range(20)), (99.0, 0.3, 4, "careful")]
    html = view.charts(visits, 100.0)
    assert html.count("<b>2.1</b>") == 2 and "quick" in html and "old" not in html
    assert "<b>260 ms</b>" in html  # numpy.quantile([0.1] * 20 + [0.3], 0.99)
    assert "–" in view.charts([], 0.0)


def test_its_frontier_has_every_point_with_a_height(view):
    certified = {"layers": 2.0, "certificate": {"epsilon": 0.02}}
    html = view.frontier({**POINTS, "quick": certified}, 6, "quick")
    assert "quick: 98.0% at 2.0" in html and "full-depth: 100.0% at 6.0" in html and "careful" not in html
    assert view.frontier(POINTS, 6, "careful") == ""


def test_its_front_matter_names_files_that_are_there():
    fields = dict(
        line.split(": ", 1) for line in (SPACE / "README.md").read_text().split("---")[1].strip().splitlines()
    )
    assert fields["sdk"] == "gradio" and (SPACE / fields["app_file"]).is_file()
    major = fields["sdk_version"].split(".")[0]
    assert f"gradio>={major}" in (SPACE / "requirements.txt").read_text()


def test_its_app_is_made_of_a_saved_model(folder, monkeypatch):
    pytest.importorskip("gradio")
    monkeypatch.syspath_prepend(str(SPACE))
    import app

    blocks = app.interface(folder)
    labels = {part["props"].get("label") for part in blocks.get_config_file()["components"]}
    assert {"Text", "t, the patience", "Setting"} <= labels, json.dumps(sorted(map(str, labels)))
