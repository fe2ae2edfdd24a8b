"""`pfberxit serve`, asked as real clients ask: every answer is the model's own for that text alone."""

import json
import random
import subprocess
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from tiny import VOCABULARY

pytest.importorskip("fastapi")
pytest.importorskip("uvicorn")
httpx = pytest.importorskip("httpx")

from huggingface_hub import InferenceClient  # noqa: E402
from served import saved, service_of, serving  # noqa: E402
from transformers import AutoTokenizer  # noqa: E402

from modeling_pfberxit import PFBerxitForSequenceClassification  # noqa: E402

torch.set_num_threads(1)
SEVERAL = "multi_label_classification"


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> str:
    return saved(tmp_path_factory.mktemp("served") / "intents")


@pytest.fixture(scope="module")
def address(folder):
    with serving(service_of(folder)) as found:
        yield found


@pytest.fixture(scope="module")
def alone(folder):
    """What the model itself says to one text or pair: label -> score, and the layer."""
    model = PFBerxitForSequenceClassification.from_pretrained(folder).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder, padding_side="right")

    @torch.no_grad()
    def answer(text, policy=None, raw: bool = False) -> tuple[dict[str, float], int]:
        texts = text if isinstance(text, (list, tuple)) else [text]
        output = model(**tokenizer(*texts, truncation=True, return_tensors="pt"), exit_policy=policy)
        scores = output.logits[0] if raw else output.logits[0].softmax(-1)
        return dict(zip(model.config.id2label.values(), scores.tolist())), int(output.exit_layer)

    return answer


def text_of(random_: random.Random, longest: int = 20) -> str:
    return " ".join(f"w{random_.randrange(VOCABULARY - 5)}" for _ in range(random_.randint(1, longest)))


def same(labels: list[dict], expected: dict[str, float]) -> None:
    """Labels with their scores, the highest in front."""
    assert [label["score"] for label in labels] == sorted((label["score"] for label in labels), reverse=True)
    assert {label["label"]: label["score"] for label in labels} == pytest.approx(expected, abs=1e-5)


# ---- the two formats -------------------------------------------------------------------------------------------------


def test_the_hubs_own_client_gets_every_label_of_a_text(address, alone):
    found = InferenceClient(model=address).text_classification("w1 w2 w3")
    same([{"label": each.label, "score": each.score} for each in found], alone("w1 w2 w3")[0])
    (best,) = InferenceClient(model=address).text_classification("w1 w2 w3", top_k=1)
    assert best.label == found[0].label
    raw = InferenceClient(model=address).text_classification("w1 w2 w3", function_to_apply="none")
    same([{"label": each.label, "score": each.score} for each in raw], alone("w1 w2 w3", raw=True)[0])


def curl(*arguments: str) -> str:
    return subprocess.run(["curl", "-s", *arguments], capture_output=True, text=True, check=True).stdout


def test_plain_curl_gets_its_answer(address, alone):
    same(json.loads(curl(f"{address}/predict", "-d", '{"inputs": "w1 w2"}')), alone("w1 w2")[0])
    told = curl("-i", f"{address}/predict", "-H", "Content-Type: application/json", "-d", '{"inputs": "w1 w2"}')
    assert f"x-exit-layer: {alone('w1 w2')[1]}" in told.lower()


def test_predict_takes_a_text_a_pair_and_batches_of_both(address, alone):
    def ask(inputs, **more):
        return httpx.post(f"{address}/predict", json={"inputs": inputs, **more}).json()

    same(ask("w1 w2"), alone("w1 w2")[0])
    same(ask(["w1 w2", "w3"]), alone(["w1 w2", "w3"])[0])
    single, pair = ask([["w1 w2"], ["w1", "w3 w4"]])
    same(single, alone("w1 w2")[0])
    same(pair, alone(["w1", "w3 w4"])[0])
    same(ask("w1 w2", raw_scores=True), alone("w1 w2", raw=True)[0])


def test_at_the_root_a_list_is_a_batch(address, alone):
    first, second = httpx.post(address, json={"inputs": ["w1 w2", {"text": "w3", "text_pair": "w4"}]}).json()
    same(first, alone("w1 w2")[0])
    same(second, alone(["w3", "w4"])[0])


def test_answers_say_where_they_left_and_why(address, alone):
    asked = {"inputs": "w5 w6", "exit_policy": "quick", "details": True}
    response = httpx.post(f"{address}/predict", json=asked)
    assert response.headers["x-exit-layer"] == "2" and response.headers["x-exit-policy"] == "quick"
    assert {(each["exit_layer"], each["exit_policy"]) for each in response.json()} == {(2, "quick")}
    same(response.json(), alone("w5 w6", "quick")[0])
    own = {"criterion": "patience", "patience": 2}
    response = httpx.post(f"{address}/predict", json={"inputs": "w5 w6", "exit_policy": own})
    same(response.json(), alone("w5 w6", own)[0])
    assert response.headers["x-exit-policy"] == "custom"
    full = httpx.post(f"{address}/predict", json={"inputs": "w5 w6", "exit_policy": "full-depth"})
    assert full.headers["x-exit-layer"] == "6"


def test_several_labels_come_through_sigmoid(tmp_path):
    service = service_of(saved(tmp_path / "toxic", problem_type=SEVERAL))
    with serving(service) as address:
        labels = httpx.post(f"{address}/predict", json={"inputs": "w1 w2 w3"}).json()
        raw = httpx.post(f"{address}/predict", json={"inputs": "w1 w2 w3", "raw_scores": True}).json()
    expected = {each["label"]: torch.tensor(each["score"]).sigmoid().item() for each in raw}
    same(labels, expected)


# ---- invariant 13 ----------------------------------------------------------------------------------------------------


def test_what_else_is_in_flight_changes_no_answer(address, alone):
    drawn = random.Random(0)
    policies = [None, "quick", "careful", "full-depth", {"criterion": "patience", "patience": 3}]
    calls = [([text_of(drawn) for _ in range(drawn.choice((1, 1, 1, 5)))], drawn.choice(policies)) for _ in range(150)]

    def ask(client, call) -> list:
        texts, policy = call
        parameters = {"details": True} | ({} if policy is None else {"exit_policy": policy})
        response = client.post(address, json={"inputs": texts, "parameters": parameters})
        assert response.status_code == 200, response.text
        return response.json()

    with httpx.Client(timeout=30) as client, ThreadPoolExecutor(12) as pool:
        found = list(pool.map(lambda call: ask(client, call), calls))
    for (texts, policy), answers in zip(calls, found):
        policy = {"criterion": None} if policy == "full-depth" else policy
        assert len(answers) == len(texts)
        for text, labels in zip(texts, answers):
            expected, layer = alone(text, policy)
            same(labels, expected)
            assert {each["exit_layer"] for each in labels} == {layer}
