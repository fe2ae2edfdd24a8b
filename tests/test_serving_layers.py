"""`POST /layers`: what the model's exits answer, and where the text leaves, as the model itself has it."""

import math
from concurrent.futures import Future

import pytest
import torch

pytest.importorskip("fastapi")
pytest.importorskip("uvicorn")
pytest.importorskip("httpx")

import httpx
from served import POINTS, saved, service_of, serving

from modeling_pfberxit.evaluation.saved_model import load_model
from modeling_pfberxit.serving.layers import MEASURES
from modeling_pfberxit.serving.limits import HttpLimits
from modeling_pfberxit.serving.outcomes import Closed
from modeling_pfberxit.serving.start import Rule

TEXT = "w1 w2 w3 w4 w5"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return saved(tmp_path_factory.mktemp("layers") / "model", use_lte=True)


@pytest.fixture(scope="module")
def service(folder):
    return service_of(folder, http=HttpLimits(characters=400))


@pytest.fixture(scope="module")
def address(service):
    with serving(service) as address:
        yield address


def walked(address, text=TEXT, **asked):
    answer = httpx.post(f"{address}/layers", json={"inputs": text, **asked}, timeout=30)
    assert answer.status_code == 200, answer.text
    return answer.json()


@pytest.mark.parametrize(
    "policy", [None, "careful", "quick", "full-depth", {"criterion": "divergence_v1", "threshold": 1}]
)
def test_layers_answer_as_the_model_does(address, folder, policy):
    model, tokenizer = load_model(folder, "cpu", None)
    tokens = tokenizer(TEXT, return_tensors="pt")
    full = model(**tokens, exit_policy={"criterion": None})
    alone = model(**tokens, exit_policy={"criterion": None} if policy == "full-depth" else policy)
    found = walked(address, exit_policy=policy)
    given = torch.tensor([exit["probabilities"] for exit in found["exits"]])
    torch.testing.assert_close(given, full.exit_logits[0].softmax(-1), atol=1e-5, rtol=1e-4)
    left = found["outcomes"][found["own"]]
    assert left["exit_layer"] == alone.exit_layer.item()
    torch.testing.assert_close(torch.tensor(left["probabilities"]), alone.logits[0].softmax(-1), atol=1e-5, rtol=1e-4)


def test_its_table_is_where_requests_leave(address):
    found = walked(address, exit_policy={"criterion": "divergence_v1"})
    assert (found["measure"], found["above"], found["patiences"]) == ("divergence", False, [1, 2, 3, 4, 5, 6])
    edges = [*found["thresholds"], found["thresholds"][-1] + 1]
    for patience, row in list(zip(found["patiences"], found["decisions"]))[:3]:
        for tau, number in list(zip(edges, row))[::2]:
            policy = {"criterion": "divergence_v1", "threshold": tau, "patience": patience}
            answer = httpx.post(f"{address}/predict", json={"inputs": TEXT, "details": True, "exit_policy": policy})
            assert answer.json()[0]["exit_layer"] == found["outcomes"][number]["exit_layer"]


def test_what_no_number_can_be_has_words(address):
    assert walked(address, exit_policy={"criterion": "divergence_v1"})["exits"][0]["scores"] == [None]
    scores = {
        score for exit in walked(address, exit_policy={"criterion": "patience"})["exits"] for score in exit["scores"]
    }
    assert scores <= {"Infinity", "-Infinity"} and {math.isinf(float(score)) for score in scores} == {True}


def test_the_servers_own_rule_is_the_default(folder):
    with serving(service_of(folder, rule=Rule("quick"))) as address:
        assert walked(address)["policy"] == {**POINTS["quick"], "min_layer": 1}


def test_every_rule_that_is_offered_can_be_asked_for(address):
    rules = walked(address)["rules"]
    assert "lte" in rules and "distance" not in rules
    for rule in set(rules) - {"appointed"}:
        found = walked(address, exit_policy={"criterion": rule, "threshold": None, "label_thresholds": None})
        assert found["measure"] and found["outcomes"][found["own"]]["exit_layer"] <= 6


def test_measures_are_of_rules_that_there_are():
    from modeling_pfberxit.model.criteria import CRITERIA

    assert set(MEASURES) <= set(CRITERIA)


@pytest.mark.parametrize(
    "path, body, status, field",
    [
        ("/layers", {"inputs": ""}, 422, "inputs"),
        ("/layers", {"inputs": [TEXT]}, 422, "inputs"),
        ("/layers", {"inputs": "w" * 401}, 413, "inputs"),
        ("/layers", {"inputs": TEXT, "exit_policy": "unheard-of"}, 422, "exit_policy"),
        ("/layers", {"inputs": TEXT, "exit_policy": {"criterion": "distance"}}, 422, "exit_policy"),
        ("/layers", {"inputs": TEXT, "exit_policy": {"criterion": "divergence_v1", "patience": 7}}, 422, "exit_policy"),
        ("/layers", {"inputs": TEXT, "more": 1}, 422, "more"),
        ("/models/unheard-of/layers", {"inputs": TEXT}, 404, "name"),
    ],
)  # fmt: skip
def test_a_body_that_will_not_do_is_refused_by_its_field(address, path, body, status, field):
    answer = httpx.post(address + path, json=body)
    assert (answer.status_code, answer.json()["field"]) == (status, field), answer.text


def test_a_third_text_at_once_is_told_to_come_back(address, service, monkeypatch):
    from threading import Thread

    from scripted import wait_until

    stuck, calls = Future(), []

    def call(function):
        calls.append(function)
        return stuck

    monkeypatch.setattr(service.engine, "call", call)
    first = [
        Thread(target=httpx.post, args=(f"{address}/layers",), kwargs={"json": {"inputs": TEXT}}) for _ in range(2)
    ]
    for thread in first:
        thread.start()
    wait_until(lambda: len(calls) == 2)
    answer = httpx.post(f"{address}/layers", json={"inputs": TEXT})
    assert (answer.status_code, answer.headers["Retry-After"]) == (429, "1")
    stuck.set_exception(Closed("the server is shutting down"))
    for thread in first:
        thread.join(5)
    monkeypatch.undo()
    walked(address)  # there is room again


def test_an_exported_file_says_that_it_does_not_show_its_layers(service, address, monkeypatch):
    monkeypatch.setattr(service.models.first, "predictor", object())
    answer = httpx.post(f"{address}/layers", json={"inputs": TEXT})
    assert (answer.status_code, answer.json()["error_type"]) == (501, "NotImplemented")


def test_the_page_needs_no_token_but_what_it_shows_does(folder):
    with serving(service_of(folder, http=HttpLimits(token="secret"))) as address:
        assert "<title>" in httpx.get(address).text
        refused = [httpx.post(address, json={"inputs": TEXT}), httpx.post(f"{address}/layers", json={"inputs": TEXT})]
        assert [answer.status_code for answer in refused] == [401, 401]


def test_the_page_may_load_and_run_nothing_that_is_not_in_it(address):
    page = httpx.get(address)
    assert page.headers["Content-Type"] == "text/html; charset=utf-8"
    assert "default-src 'none'" in page.headers["Content-Security-Policy"]
    assert "unsafe" not in page.headers["Content-Security-Policy"]
    assert not any(word in page.text for word in ("https://", "@import", 'src="', "innerHTML"))
