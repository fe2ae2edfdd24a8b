"""Ray Serve: one answer for each request id, replicas by the age of the queue, weights in memory once."""

import asyncio
import json
import os
import re
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from pkgutil import resolve_name
from types import SimpleNamespace

import pytest

httpx = pytest.importorskip("httpx")
pytest.importorskip("fastapi", reason="needs the extra `serve`")

from test_predict import TEXTS, saved  # noqa: E402

from modeling_pfberxit.serving.cluster import queue_age  # noqa: E402
from modeling_pfberxit.serving.cluster.ledger import Kept, Ledger  # noqa: E402
from modeling_pfberxit.serving.cluster.one_answer import OneAnswer  # noqa: E402
from modeling_pfberxit.serving.cluster.queue_age import BUSY, OLDEST_WAIT, QueueAge  # noqa: E402
from modeling_pfberxit.serving.limits import Guard, HttpLimits  # noqa: E402

EXAMPLE = Path(__file__).parents[1] / "examples" / "ray" / "serve.yaml"


# ---- the ledger ------------------------------------------------------------------------------------------------------


def kept(body: str, asked: str = "q") -> Kept:
    return Kept(asked, 200, [("x-exit-layer", "3")], body.encode())


def test_the_first_answer_is_accepted_and_whoever_offers_another_is_told_the_first():
    ledger = Ledger()
    assert ledger.find("a") is None
    assert ledger.accept("a", kept("first")) == kept("first") == ledger.accept("a", kept("second")) == ledger.find("a")
    assert ledger.accept("b", kept("other")) == kept("other") and len(ledger) == 2


def test_a_ledger_in_a_file_remembers_what_a_killed_process_had_accepted(tmp_path):
    code = """
import os, signal, sys
from modeling_pfberxit.serving.cluster.ledger import Kept, Ledger
Ledger(sys.argv[1]).accept("a", Kept("q", 200, [], b"first"))
os.kill(os.getpid(), signal.SIGKILL)
"""
    subprocess.run([sys.executable, "-c", code, str(tmp_path / "ledger")])
    assert Ledger(tmp_path / "ledger").accept("a", kept("second")).body == b"first"


def test_answers_are_remembered_for_their_time_and_the_newest_of_them():
    now = [0.0]
    ledger = Ledger(seconds=10, kept=3, clock=lambda: now[0])
    ledger.accept("a", kept("1"))
    now[0] = 9.9
    assert ledger.find("a") == kept("1")
    now[0] = 10.0
    assert ledger.find("a") is None and ledger.accept("a", kept("2")) == kept("2")
    for name in "bcde":
        ledger.accept(name, kept(name))
    assert [name for name in "abcde" if ledger.find(name)] == ["c", "d", "e"] and len(ledger) == 3


# ---- one answer for each id ------------------------------------------------------------------------------------------


class Counting:
    """An application whose every answer is another, and a ledger that takes its time."""

    def __init__(self, status: int = 200) -> None:
        self.answered, self.status, self.ledger = 0, status, Ledger()

    async def __call__(self, scope, receive, send) -> None:
        message = await receive()
        self.answered += 1
        number = self.answered
        await asyncio.sleep(0.02)
        body = f"{number} {message['body'].decode()}".encode()
        await send({"type": "http.response.start", "status": self.status, "headers": [(b"x-number", b"%d" % number)]})
        await send({"type": "http.response.body", "body": body})

    async def find(self, id):
        await asyncio.sleep(0.001)
        return self.ledger.find(id)

    async def accept(self, id, answer):
        await asyncio.sleep(0.001)
        return self.ledger.accept(id, answer)

    def asked(self, *requests: dict) -> list:
        """The answers to requests that are under way together."""
        app = Guard(OneAnswer(self, self), HttpLimits(body=1000))

        async def all_of_them():
            async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://x") as client:
                return await asyncio.gather(*(client.post("/predict", **request) for request in requests))

        return asyncio.run(all_of_them())


def bearing(id: str, body: str = "w1", **headers: str) -> dict:
    return {"content": body, "headers": {"Idempotency-Key": id, **headers}}


def test_a_retry_gets_the_same_answer_byte_for_byte_and_is_not_computed_again():
    app = Counting()
    (first,) = app.asked(bearing("a"))
    (again,) = app.asked(bearing("a"))
    assert first.text == again.text == "1 w1" and app.answered == 1
    assert first.headers["x-number"] == again.headers["x-number"] == "1"
    assert "idempotent-replayed" not in first.headers and again.headers["idempotent-replayed"] == "true"


def test_of_tries_that_are_under_way_together_one_answer_is_accepted_and_all_get_it():
    app = Counting()
    found = app.asked(*[bearing("a")] * 5, bearing("b"))
    assert app.answered == 6 and len({each.text for each in found[:5]}) == 1
    assert [each.headers.get("idempotent-replayed") for each in found[:5]].count(None) == 1
    assert found[5].text != found[0].text


def test_requests_without_an_id_are_answered_as_they_come():
    app = Counting()
    assert {each.text for each in app.asked({"content": "w1"}, {"content": "w1"})} == {"1 w1", "2 w1"}
    assert len(app.ledger) == 0


@pytest.mark.parametrize("status", [422, 429, 503, 504])
def test_what_is_no_answer_is_not_accepted_and_a_retry_may_get_one(status):
    app = Counting(status)
    assert app.asked(bearing("a"))[0].status_code == status and len(app.ledger) == 0
    app.status = 200
    assert app.asked(bearing("a"))[0].text == "2 w1"


def test_an_id_belongs_to_one_request_of_one_client():
    app = Counting()
    app.asked(bearing("a", "w1", Authorization="Bearer mine"))
    (other,) = app.asked(bearing("a", "w2", Authorization="Bearer mine"))
    assert other.status_code == 409 and "idempotency-key" in other.json()["error"]
    (theirs,) = app.asked(bearing("a", "w1", Authorization="Bearer theirs"))
    assert theirs.text == "2 w1"
    assert app.asked(bearing("a" * 201))[0].status_code == 422
    assert app.asked(bearing("b", "w" * 1001))[0].status_code == 413 and app.answered == 2


# ---- replicas --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("replicas", "wait", "busy", "wanted"),
    [
        (4, 0.07, 4.0, 6), (4, 0.051, 4.0, 5), (4, 9.0, 4.0, 8),  # longer than 0.05 s: more, at most twice as many
        (4, 0.05, 3.9, 4), (4, 0.0, 2.4, 4), (4, 0.0, 1.9, 4),  # none waits too long, and all are needed
        (4, 0.01, 0.8, 2), (4, 0.0, 0.0, 1), (1, 0.0, 0.0, 1),  # fewer would do
    ],
)  # fmt: skip
def test_replicas_follow_the_age_of_the_queue_up_and_the_load_down(replicas, wait, busy, wanted):
    waits, shares = {"r0": wait, "r1": 0.0}, {"r0": busy / 2, "r1": busy / 2}
    context = SimpleNamespace(
        current_num_replicas=replicas, aggregated_metrics={OLDEST_WAIT: waits, BUSY: shares}
    )  # fmt: skip
    assert QueueAge(target=0.05, busy=0.6)(context) == (wanted, {})


def test_a_target_of_nothing_is_refused():
    for asked in ({"target": 0.0}, {"busy": 0.0}, {"busy": 1.5}):
        with pytest.raises(ValueError, match="must be"):
            QueueAge(**asked)


def test_a_replica_reports_its_queues_age_and_the_share_of_the_time_it_computed():
    pytest.importorskip("ray", reason="needs the extra `ray`")
    from modeling_pfberxit.serving.cluster.meter import RayMeter

    now = [0.0]
    meter = RayMeter(lambda: now[0])
    meter.follow(SimpleNamespace(waiting=3, oldest_wait=lambda at: at / 2), {})
    for seconds in (0.5, 1.0):
        meter.batch("default", [], [], 64, seconds)
    now[0] = 2.0
    assert meter.load() == {OLDEST_WAIT: 1.0, BUSY: 0.75}
    now[0] = 4.0
    assert meter.load() == {OLDEST_WAIT: 2.0, BUSY: 0.0}


def test_a_replicas_models_are_counted_by_its_meter_and_stay_as_it_was_started_with(tmp_path, monkeypatch):
    pytest.importorskip("ray", reason="needs the extra `ray`")
    from modeling_pfberxit.serving.ray import Answers, Settings

    monkeypatch.delenv("PFBERXIT_TOKEN", raising=False)
    folder = saved(tmp_path / "model", ("a", "b"))
    replica, started = Answers.func_or_class.__mro__[1], SimpleNamespace()  # below what `serve.ingress` puts around it
    replica.__init__(started, Settings(model=folder), None)
    assert set(started.meter.models) == {"default"} and started.meter.load()[OLDEST_WAIT] == 0.0
    with pytest.raises(ValueError, match="name='more': must be left alone: this is one server of several"):
        started.service.models.drop("more")
    with pytest.raises(ValueError, match="without a folder to load models from"):
        started.service.models.inside("x")


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="reads what is mapped from /proc")
def test_weights_are_pages_of_the_saved_file_so_that_the_replicas_of_a_node_share_them(tmp_path):
    from modeling_pfberxit.serving.start import Loading

    folder = saved(tmp_path / "model", ("a", "b"))
    model = Loading(device="cpu").first(folder).model
    spans = [line.split() for line in Path("/proc/self/maps").read_text().splitlines() if folder in line]
    ranges = [[int(end, 16) for end in span[0].split("-")] for span in spans]
    for name, weight in model.named_parameters():
        assert any(low <= weight.data_ptr() < high for low, high in ranges), f"{name} is a copy"


# ---- what is configured ----------------------------------------------------------------------------------------------


def test_settings_that_are_not_known_are_refused_by_name_before_anything_is_deployed(monkeypatch):
    pytest.importorskip("ray", reason="needs the extra `ray`")
    from modeling_pfberxit.serving.ray import Settings, app

    monkeypatch.delenv("PFBERXIT_MODEL", raising=False)
    for given, message in (
        ({}, "model='': must be a folder or Hub id"),
        ({"model": "m", "limits": {"size": 3}}, "limits.size=3: must be left out: limits has tokens, rows"),
        ({"model": "m", "limits": {"rows": 0}}, "rows=0: must be"),
        ({"model": "m", "http": {"token": "secret"}}, "http.token='...': must be left out: no secret in a file"),
        ({"model": "m", "ledger": {"kept": 0}}, "ledger.kept=0: must be"),
        ({"model": "m", "ledger": {"size": 0}}, "ledger.size=0: must be left out: ledger has path, seconds, kept"),
        ({"models": "m"}, "models\n.*Extra inputs are not permitted"),
    ):
        with pytest.raises(ValueError, match=message):
            app(Settings.model_validate(given))


def test_the_ledgers_process_starts_without_this_package_and_torch():
    cloudpickle = pytest.importorskip("ray.cloudpickle", reason="needs the extra `ray`")
    from modeling_pfberxit.serving.ray import LedgerDeployment

    code = """
import asyncio, sys
sys.modules["modeling_pfberxit"] = None  # cannot be imported
import ray.cloudpickle
ledger = ray.cloudpickle.loads(sys.stdin.buffer.read())(":memory:", 9.0, 3)
answer = ("asked", 200, [("x-exit-layer", "3")], b"first")
assert asyncio.run(ledger.find("a")) is None
assert asyncio.run(ledger.accept("a", answer)) == answer == asyncio.run(ledger.find("a"))
assert asyncio.run(ledger.accept("a", ("asked", 200, [], b"second"))) == answer
assert "torch" not in sys.modules
"""
    copied = cloudpickle.dumps(LedgerDeployment.func_or_class)
    assert subprocess.run([sys.executable, "-c", code], input=copied).returncode == 0


def test_the_example_of_a_config_file_is_one_that_ray_and_the_application_take():
    yaml, schema = pytest.importorskip("yaml"), pytest.importorskip("ray.serve.schema")
    from modeling_pfberxit.serving.ray import Settings, app

    found = schema.ServeDeploySchema.model_validate(yaml.safe_load(EXAMPLE.read_text(encoding="utf-8")))
    (application,) = found.applications
    app(Settings.model_validate({"model": "m", **application.args}))
    names = {each.name: each for each in application.deployments}
    assert names.keys() == {"answers", "ledger"} and names["ledger"].num_replicas == 1
    assert resolve_name(names["answers"].autoscaling_config["policy"]["policy_function"]) is QueueAge


@pytest.mark.parametrize("file", [EXAMPLE, EXAMPLE.parents[1] / "kubernetes" / "ray-service.yaml", queue_age.__file__])
def test_the_policy_is_named_where_it_is(file):
    (path,) = re.findall(r"policy_function: ([\w.:]+)", Path(file).read_text(encoding="utf-8"))
    assert resolve_name(path) is QueueAge


# ---- a cluster -------------------------------------------------------------------------------------------------------

PORT = 8237


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> str:
    return saved(tmp_path_factory.mktemp("models") / "intents", ("refund", "delivery", "other"))


@pytest.fixture(scope="module")
def served(model, tmp_path_factory):
    """`serve run` of the example's file, with a small target, so that two replicas are wanted as soon as rows wait."""
    pytest.importorskip("ray", reason="needs the extra `ray`")
    yaml = pytest.importorskip("yaml")
    import ray
    from ray_cluster import cluster, workers

    folder = tmp_path_factory.mktemp("serve")
    config = yaml.safe_load(EXAMPLE.read_text(encoding="utf-8"))
    config["http_options"]["port"] = PORT
    (application,) = config["applications"]
    application["args"] |= {"model": model, "ledger": {"path": str(folder / "ledger")}}
    scaling = application["deployments"][0]["autoscaling_config"]
    scaling |= {"max_replicas": 2, "upscale_delay_s": 0}
    scaling["policy"]["policy_kwargs"] = {"target": 1e-3}
    (folder / "serve.yaml").write_text(yaml.safe_dump(config))
    with cluster():
        environment = {**os.environ, "RAY_ADDRESS": ray.get_runtime_context().gcs_address}
        command = [sys.executable, "-c", "from ray.serve.scripts import cli; cli()", "run", str(folder / "serve.yaml")]
        process = subprocess.Popen(command, env=environment, cwd=folder, stderr=open(folder / "log", "w"))
        try:
            wait(lambda: process.poll() is None and healthy(), 180)
            yield lambda: workers("ServeReplica:pfberxit:answers"), folder / "ledger"
        finally:
            process.terminate()
            process.wait(30)


def wait(until, seconds: float = 120) -> None:
    """Until something is so."""
    end = time.monotonic() + seconds
    while not until():
        assert time.monotonic() < end, "nothing happened"
        time.sleep(0.1)


def healthy() -> bool:
    """Whether a replica answers."""
    try:
        return httpx.get(f"http://127.0.0.1:{PORT}/health", timeout=5).status_code == 200
    except httpx.HTTPError:
        return False


def insist(client, id: str, text: str) -> tuple:
    """Ask until there is an answer; it, and how many tries it took."""
    for tried in range(1, 200):
        try:
            found = client.post("/predict", json={"inputs": text}, headers={"Idempotency-Key": id})
            if found.status_code == 200:
                return found, tried
            assert found.status_code in (429, 500, 502, 503, 504), found.text
        except httpx.TransportError:
            pass
        time.sleep(0.2)
    raise AssertionError(f"no answer to {id}")


@pytest.mark.slow
def test_replicas_are_added_as_rows_wait_and_one_that_is_killed_loses_no_request_and_doubles_none(served, model):
    from ray_cluster import killing

    replicas, ledger = served
    with httpx.Client(base_url=f"http://127.0.0.1:{PORT}", timeout=60) as client, ThreadPoolExecutor(8) as pool:

        def crowd() -> bool:
            list(pool.map(lambda text: client.post("/predict", json={"inputs": [[text]] * 60}), TEXTS[:8]))
            return len(replicas()) == 2

        wait(crowd, 180)
        wait(lambda: all("init" not in each.cmdline()[0] for each in replicas()), 60)
        before, answers = len(Ledger(ledger)), []

        def ask(number: int) -> tuple:
            answers.append(insist(client, f"id-{number}", TEXTS[number % len(TEXTS)]))
            return answers[-1]

        with killing("ServeReplica:pfberxit:answers", lambda: len(answers) > 60) as killed:
            found = list(pool.map(ask, range(300)))
        assert len(killed) == 1, "no replica was killed while it mattered"
        assert len(Ledger(ledger)) - before == 300, "one accepted answer for each id"
        assert max(tries for _, tries in found) >= 1
        for number in range(300):
            again, _ = insist(client, f"id-{number}", TEXTS[number % len(TEXTS)])
            assert again.content == found[number][0].content and again.headers["idempotent-replayed"] == "true"
    for (answer, _), expected in zip(found, alone(model)):
        labels = {each["label"]: each["score"] for each in answer.json()}
        assert labels == pytest.approx(expected, abs=2e-5)


def alone(model: str) -> list[dict[str, float]]:
    """The scores of the 300 requests' texts, each called alone."""
    from modeling_pfberxit.evaluation.saved_model import load_model

    loaded, tokenizer = load_model(model, "cpu")
    known = []
    for text in TEXTS:
        scores = loaded(**tokenizer(text, return_tensors="pt")).logits.softmax(-1)[0].tolist()
        known.append(dict(zip(("refund", "delivery", "other"), scores)))
    return [known[number % len(TEXTS)] for number in range(300)]


@pytest.mark.slow
def test_what_was_accepted_stays_accepted_when_the_ledgers_process_is_killed(served):
    from ray_cluster import workers

    with httpx.Client(base_url=f"http://127.0.0.1:{PORT}", timeout=60) as client:
        first, _ = insist(client, "kept", "w1 w2 w3")
        (ledger,) = workers("ServeReplica:pfberxit:ledger")
        ledger.kill()
        ledger.wait(10)
        again, _ = insist(client, "kept", "w1 w2 w3")
        assert again.content == first.content and again.headers["idempotent-replayed"] == "true"
        assert json.loads(again.content)
