"""Several adapters over one encoder, exported files, certified points, and the command itself."""

import os
import shutil
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path

import pytest
import torch
from tiny import enliven, save_backbone
from transformers import AutoTokenizer

pytest.importorskip("fastapi")
pytest.importorskip("uvicorn")
httpx = pytest.importorskip("httpx")

from scripted import wait_until  # noqa: E402
from served import free_port, healthy, saved, service_of, serving  # noqa: E402

from modeling_pfberxit import PFBerxitForSequenceClassification  # noqa: E402
from modeling_pfberxit.serving.batching import Limits  # noqa: E402
from modeling_pfberxit.serving.limits import HttpLimits  # noqa: E402
from modeling_pfberxit.serving.meter import PrometheusMeter  # noqa: E402
from modeling_pfberxit.serving.predictors import full_depth  # noqa: E402
from modeling_pfberxit.serving.routes import info_of  # noqa: E402
from modeling_pfberxit.serving.start import Loading, Rule, make_service  # noqa: E402
from pfberxit.serve import said_of  # noqa: E402

torch.set_num_threads(1)
ASKED = {"inputs": "w1 w2 w3", "details": True}


@cache
def loaded(folder: str):
    tokenizer = AutoTokenizer.from_pretrained(folder, padding_side="right")
    return PFBerxitForSequenceClassification.from_pretrained(folder).eval(), tokenizer


def alone(folder: str, text: str = "w1 w2 w3", policy=None) -> tuple[dict[str, float], int]:
    """What the model of a folder says to one text."""
    model, tokenizer = loaded(folder)
    with torch.no_grad():
        output = model(**tokenizer(text, return_tensors="pt"), exit_policy=policy)
    names = model.config.id2label.values()
    return dict(zip(names, output.logits[0].softmax(-1).tolist())), int(output.exit_layer)


def same(response, expected: tuple[dict[str, float], int]) -> None:
    assert response.status_code == 200, response.text
    scores, layer = expected
    assert {each["label"]: each["score"] for each in response.json()} == pytest.approx(scores, abs=1e-5)
    assert {each["exit_layer"] for each in response.json()} == {layer}


# ---- several adapters over one encoder -------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    """A folder of three adapters: `intents` and `mood` on one encoder, `stranger` on another."""
    root = tmp_path_factory.mktemp("adapters")
    encoders = {seed: save_backbone(root / f"encoder-{seed}", seed=seed) for seed in (0, 1)}
    for name, seed, labels in (("intents", 0, "abc"), ("mood", 0, "xy"), ("stranger", 1, "xy")):
        numbered = dict(enumerate(labels))
        model = PFBerxitForSequenceClassification.from_backbone(
            encoders[seed], id2label=numbered, label2id={v: k for k, v in numbered.items()}, adapter_dim=8,
            adapter_num_heads=2,
        )  # fmt: skip
        torch.manual_seed(len(name))
        enliven(model)
        model.config.exit_criterion, model.config.exit_threshold = "entropy", 0.6
        model.save_pretrained(root / name)
        AutoTokenizer.from_pretrained(encoders[seed]).save_pretrained(root / name)
    return root


def test_adapters_over_one_encoder_come_and_go_without_a_restart(root):
    first, second = str(root / "intents"), str(root / "mood")
    service = service_of(first, root=str(root))
    with serving(service) as address, httpx.Client(base_url=address, timeout=30) as client:
        same(client.post("/predict", json=ASKED), alone(first))
        assert client.post("/models/mood/predict", json=ASKED).status_code == 404
        assert client.put("/models/mood", json={"folder": "mood"}).status_code == 200
        assert set(client.get("/models").json()) == {"default", "mood"}
        same(client.post("/models/mood/predict", json=ASKED), alone(second))
        same(client.post("/models/default/predict", json=ASKED), alone(first))
        encoders = [served.predictor.model.backbone for served in service.models]
        assert len({each.data_ptr() for encoder in encoders for each in encoder.parameters()}) == len(
            list(encoders[0].parameters())
        )
        assert client.delete("/models/mood").status_code == 204
        assert client.post("/models/mood", json={"inputs": "w1"}).status_code == 404
        assert client.delete("/models/mood").status_code == 404
        same(client.post("/predict", json=ASKED), alone(first))


def test_an_adapter_of_another_encoder_or_from_elsewhere_is_refused_and_nothing_changes(root, tmp_path):
    shutil.copytree(root / "mood", tmp_path / "outside")
    (root / "link").symlink_to(tmp_path / "outside")
    with serving(service_of(str(root / "intents"), root=str(root))) as address:
        for name, folder in (
            ("x", "stranger"), ("x", "../outside"), ("x", str(tmp_path / "outside")), ("x", "link"), ("x", "."),
            ("x", "nowhere"), ("x", "mood\0"), ("default", "mood"), ("a b", "mood"), ("x", "encoder-0"),
        ):  # fmt: skip
            response = httpx.put(f"{address}/models/{name}", json={"folder": folder}, timeout=30)
            assert response.status_code == 422, (folder, response.text)
        assert httpx.delete(f"{address}/models/default").status_code == 422
        assert set(httpx.get(f"{address}/models").json()) == {"default"}
    (root / "link").unlink()


def test_without_a_folder_to_load_from_none_can_be_loaded(root):
    with serving(service_of(str(root / "intents"))) as address:
        response = httpx.put(f"{address}/models/mood", json={"folder": "mood"})
        assert response.status_code == 422 and "folder" in response.json()["error"]


def test_traffic_for_several_adapters_is_never_mixed_up(root):
    folders = {"default": str(root / "intents"), "mood": str(root / "mood")}
    texts = [f"w{number} w{number + 1}" for number in range(20)]
    calls = [(name, text) for text in texts for name in folders]
    with serving(service_of(folders["default"], more={"mood": folders["mood"]})) as address:
        with httpx.Client(timeout=30) as client, ThreadPoolExecutor(8) as pool:
            found = list(pool.map(lambda call: ask(client, address, *call), calls))
    for (name, text), response in zip(calls, found):
        same(response, alone(folders[name], text))


def ask(client, address: str, name: str, text: str):
    return client.post(f"{address}/models/{name}/predict", json={"inputs": text, "details": True})


# ---- certified points ------------------------------------------------------------------------------------------------


def certificate(epsilon: float) -> dict:
    return {"claim": "differ", "epsilon": epsilon, "confidence": 0.95, "rows": 1000, "missed": 1.0}


@pytest.fixture(scope="module")
def certified(tmp_path_factory) -> str:
    folder = saved(tmp_path_factory.mktemp("certified") / "model")
    model = PFBerxitForSequenceClassification.from_pretrained(folder)
    model.config.operating_points = {
        f"certified-{percent}%": {
            "criterion": "appointed", "appointed_layer": layer, "layers": float(layer), "layers_saved": 0.5,
            "certificate": certificate(percent / 100),
        }
        for percent, layer in ((1, 4), (5, 2))
    }  # fmt: skip
    model.config.exit_criterion, model.config.exit_appointed_layer = "appointed", 4
    model.save_pretrained(folder)
    return folder


def test_the_floor_is_never_passed_and_each_request_may_bring_its_own(certified):
    with serving(service_of(certified, rule=Rule(differ=0.05, step=60.0))) as address:

        def rung(**asked) -> str:
            response = httpx.post(f"{address}/predict", json={"inputs": "w1 w2", **asked})
            assert response.status_code == 200, response.text
            return response.headers["x-exit-policy"]

        assert rung() == "certified-1%"
        assert rung(differ=0) == "full-depth"
        assert rung(latency_budget_ms=1e6) == "full-depth"
        assert rung(latency_budget_ms=0.001) == "certified-5%"
        assert rung(latency_budget_ms=0.001, differ=0.02) == "certified-1%"
        assert rung(exit_policy="full-depth") == "full-depth"
        assert httpx.get(f"{address}/info").json()["ladder"] == ["full-depth", "certified-1%", "certified-5%"]
    service = service_of(certified, rule=Rule(differ=0.01))
    assert list(service.models.first.controller.within()) == ["full-depth", "certified-1%"]


def test_the_models_own_rule_goes_by_its_operating_points_name(certified):
    service = service_of(certified)
    assert service.models.first.point.name == "certified-1%"
    assert list(service.models.first.controller.within()) == ["full-depth", "certified-1%"]


@pytest.mark.parametrize(
    "rule, said, now, ladder",
    [
        ({}, "leaves by certified-1%", "certified-1%", None),
        ({"policy": "full-depth"}, "leaves by full-depth", "full-depth", None),
        ({"differ": 0.001}, "leaves by full-depth", "full-depth", None),
        ({"differ": 0.05}, "moves between certified-1%, certified-5%", "certified-1%",
         ["full-depth", "certified-1%", "certified-5%"]),
    ],
)  # fmt: skip
def test_a_server_says_the_rule_that_it_follows(certified, rule, said, now, ladder):
    service = service_of(certified, rule=Rule(**rule))
    info = info_of(service, service.models.first)
    assert said_of(service.models.first).splitlines()[0].endswith(said)
    assert (info.exit_policy, info.ladder) == (now, ladder) and service.models.first.rule.name == now


def test_metrics_count_requests_layers_and_what_was_held_against_full_depth(certified):
    loading = Loading(device="cpu")
    service = make_service(loading.first(certified), Rule(watch=1.0), loading, {}, meter=PrometheusMeter())
    with serving(service) as address:
        for number in range(5):
            httpx.post(f"{address}/predict", json={"inputs": f"w{number}"})
        httpx.get(f"{address}/nowhere")
        watcher = service.models.first.watcher
        wait_until(lambda: watcher.alarm.rows.sum() == 5)
        told = httpx.get(f"{address}/metrics").text
    assert 'pfberxit_requests_total{route="/predict",status="200"} 5.0' in told
    assert 'pfberxit_requests_total{route="other",status="404"} 1.0' in told
    assert 'pfberxit_exit_layer_total{layer="4",model="default"} 5.0' in told
    assert "pfberxit_queue_rows 0.0" in told


def test_what_cannot_be_steered_or_watched_is_refused_by_name(tmp_path):
    plain = saved(tmp_path / "plain")
    for rule in ({"differ": 0.02}, {"watch": 0.1}):
        with pytest.raises(ValueError, match="no certified points"):
            service_of(plain, rule=Rule(**rule))
    for rule in ({"differ": 2.0}, {"policy": "a", "differ": 0.1}, {"step": 0.1}, {"watch": -1.0}):
        with pytest.raises(ValueError, match=next(reversed(rule))):
            Rule(**rule)
    with pytest.raises(ValueError, match="queue"):
        service_of(plain, Limits(queue=3), HttpLimits(texts=4))


def test_a_file_whose_rows_may_leave_as_unsure_has_no_full_depth():
    policy = {"criterion": "entropy", "threshold": 0.3}
    facts = {"reads": ["threshold"], "most_patience": 3}
    assert full_depth({**facts, "policy": policy}) == (0.0, 3)
    assert full_depth({**facts, "policy": {**policy, "answer": "abstain"}}) is None
    assert full_depth({**facts, "policy": {**policy, "label_thresholds": {"a": 0.1}}}) is None


# ---- an exported file ------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def file(tmp_path_factory) -> tuple[str, str]:
    pytest.importorskip("onnxscript")
    from modeling_pfberxit.export.files import export_file

    folder = tmp_path_factory.mktemp("exported")
    model = saved(folder / "model", backbone_changes={"num_hidden_layers": 3})
    loaded = PFBerxitForSequenceClassification.from_pretrained(model).eval()
    tokenizer = AutoTokenizer.from_pretrained(model, padding_side="right")
    loaded.config.operating_points = {
        "careful": {"criterion": "entropy", "threshold": 0.3}, "quick": {"criterion": "entropy", "threshold": 1.0},
    }  # fmt: skip
    loaded.save_pretrained(model)
    export_file(loaded, tokenizer, folder / "model.onnx")
    return model, str(folder / "model.onnx")


@pytest.mark.slow
def test_an_exported_file_answers_each_row_of_a_batch_under_its_own_point(file):
    from modeling_pfberxit.serving.start import open_file
    from pfberxit.onnx import Classifier

    model, path = file
    texts = [f"w{number} w{2 * number}" for number in range(12)]
    policies = {None: None, "careful": "careful", "quick": "quick", "full-depth": {"criterion": None}}
    calls = [(text, policy) for text in texts for policy in policies]
    service = service_of(open_file(Classifier(path), Loading()))
    with serving(service) as address, httpx.Client(timeout=30) as client, ThreadPoolExecutor(8) as pool:

        def asked(call):
            return client.post(f"{address}/predict", json={"inputs": call[0], "exit_policy": call[1], "details": True})

        found = list(pool.map(asked, calls))
        response = client.post(f"{address}/predict", json={"inputs": "w1", "exit_policy": {"criterion": "patience"}})
        assert response.status_code == 422 and response.json()["field"] == "exit_policy"
        long = client.post(f"{address}/predict", json={"inputs": "w1 " * 50})
        assert long.status_code == 413
    for (text, policy), response in zip(calls, found):
        same(response, alone(model, text, policies[policy]))
    assert len({tuple(each["exit_layer"] for each in response.json()) for response in found}) > 1


@pytest.mark.slow
def test_options_of_saved_models_are_refused_for_a_file(file):
    from modeling_pfberxit.serving.start import open_file
    from pfberxit.onnx import Classifier

    with pytest.raises(ValueError, match="device"):
        open_file(Classifier(file[1]), Loading(device="cpu"))
    service = service_of(open_file(Classifier(file[1]), Loading()))
    with pytest.raises(ValueError, match="stands on no encoder"):
        service.models.add("mood", file[0])


# ---- the command -----------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_the_command_serves_until_it_is_told_to_end_and_answers_what_it_has(tmp_path):
    folder, port = saved(tmp_path / "model"), free_port()
    (tmp_path / "token").write_text("sesame\n")
    command = [sys.executable, "-m", "pfberxit", "serve", folder, "--port", str(port), "--threads", "1",
               "--device", "cpu", "--token-file", str(tmp_path / "token"), "--policy", "quick"]  # fmt: skip
    server = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env={**os.environ})
    try:
        address = f"http://127.0.0.1:{port}"
        wait_until(lambda: healthy(address), 90)
        told = {"Authorization": "Bearer sesame"}
        response = httpx.post(f"{address}/predict", json=ASKED, headers=told)
        same(response, alone(folder, policy="quick"))
        server.send_signal(signal.SIGTERM)
        output, _ = server.communicate(timeout=30)
    finally:
        server.kill()
    assert "leaves by quick" in output and "w1" not in output and "Traceback" not in output


def test_the_command_refuses_what_it_cannot_do_before_it_loads_anything(tmp_path):
    from pfberxit.cli import main

    for options, word in (
        (["--port", "70000"], "port"), (["--batch-tokens", "0"], "tokens"), (["--deadline", "0"], "deadline"),
        (["--model", "x"], "NAME=FOLDER"), (["--models-from", str(tmp_path / "none")], "models-from"),
        (["--policy", "a", "--differ", "0.1"], "differ"), (["--step-ms", "50"], "step"),
        (["--threads", "0"], "threads"),
    ):  # fmt: skip
        with pytest.raises(SystemExit) as refused:
            main(["serve", str(tmp_path / "nothing-there"), *options])
        assert word in str(refused.value), refused.value
