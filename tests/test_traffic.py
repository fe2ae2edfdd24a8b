"""Traffic on a real server beside the simulated one: the same rows, the same layers, latencies from when due."""

import time
from dataclasses import replace

import numpy as np
import pytest
import torch

pytest.importorskip("fastapi")
pytest.importorskip("aiohttp")
pytest.importorskip("httpx")

from scripted import Scripted  # noqa: E402
from served import saved, service_of, serving  # noqa: E402

from modeling_pfberxit import PFBerxitForSequenceClassification  # noqa: E402
from modeling_pfberxit.model.persistence import update_config  # noqa: E402
from modeling_pfberxit.serving.batching import Limits  # noqa: E402
from modeling_pfberxit.serving.meter import PrometheusMeter  # noqa: E402
from modeling_pfberxit.traffic import load  # noqa: E402
from modeling_pfberxit.traffic.batch_times import BatchTimes, load_times, save_times  # noqa: E402
from modeling_pfberxit.traffic.forecast import KnownModel  # noqa: E402
from modeling_pfberxit.traffic.runs import Outcome, Run  # noqa: E402
from modeling_pfberxit.traffic.side_by_side import MEASURED, SIMULATED, compared  # noqa: E402
from modeling_pfberxit.traffic.sizing import Machine, Plan, sizes  # noqa: E402
from modeling_pfberxit.traffic.traces import steady  # noqa: E402
from pfberxit.cli import main  # noqa: E402

torch.set_num_threads(1)
TIMES = BatchTimes(layer=(0.004, 1e-4, 0.0), fixed=(0.001, 0.0, 0.0))
POINTS = {
    name: {
        "criterion": "entropy", "threshold": threshold, "layers": layers,
        "certificate": {"claim": "differ", "epsilon": epsilon, "confidence": 0.95, "max_length": 40},
    }
    for name, threshold, layers, epsilon in (("certified-1%", 0.75, 4.0, 0.01), ("certified-5%", 0.95, 2.0, 0.05))
}  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> str:
    found = saved(tmp_path_factory.mktemp("traffic") / "intents")
    update_config(found, operating_points=POINTS)
    return found


@pytest.fixture(scope="module")
def texts(tmp_path_factory) -> str:
    path = tmp_path_factory.mktemp("texts") / "texts.csv"
    generator = np.random.default_rng(0)
    lines = [
        " ".join(f"w{word}" for word in generator.integers(100, size=size)) for size in generator.integers(1, 30, 60)
    ]
    path.write_text("\n".join(["text", *lines]) + "\n")
    return str(path)


@pytest.fixture(scope="module")
def forecast(folder, texts):
    from datasets import Dataset

    rows = Dataset.from_csv(texts)
    return KnownModel(folder).forecast(rows, ("text",)), list(rows["text"])


# ---- what is known beforehand ----------------------------------------------------------------------------------------


def test_rows_leave_in_a_simulation_where_the_model_lets_them_leave(forecast, folder):
    from transformers import AutoTokenizer

    found, asked = forecast
    model, tokenizer = (
        PFBerxitForSequenceClassification.from_pretrained(folder).eval(),
        AutoTokenizer.from_pretrained(folder),
    )
    assert [rung.name for rung in found.ladder] == ["full-depth", *POINTS]
    for name in POINTS:
        for row in range(0, 60, 7):
            output = model(**tokenizer(asked[row], truncation=True, return_tensors="pt"), exit_policy=name)
            assert int(output.exit_layer) == found.texts.layers[name][row]
            other = model.config.id2label[int(output.logits.argmax())] != found.answers[row]
            assert other == found.texts.differs[name][row]
    assert len(set(found.texts.layers["certified-1%"].tolist())) > 1, "all rows leave at one layer: nothing is shown"


def test_what_batches_take_is_kept_and_read_back(tmp_path):
    path = tmp_path / "times.json"
    save_times(TIMES, path, {"threads": 1})
    assert load_times(path) == TIMES
    path.write_text("{}")
    with pytest.raises(OSError, match="not what batches take"):
        load_times(path)


def test_a_core_carries_less_of_longer_texts_and_more_on_faster_rungs(forecast):
    found, _ = forecast
    machine = Machine(BatchTimes((0.001, 1e-4, 0.0)), 0.001)
    carried = {
        (length, rung.name): machine.carries(found.texts.of_length(length), found.ladder, rung.name, 500, 5)
        for length in (8, 32) for rung in found.ladder
    }  # fmt: skip
    for length in (8, 32):
        rates = [carried[length, rung.name] for rung in found.ladder]
        assert 0 < rates[0] < rates[1] < rates[2]
    assert carried[8, "full-depth"] > carried[32, "full-depth"]
    table = sizes({("8", "full-depth"): 10.0, ("99", "full-depth"): 0.0}, rates=(60_000,)).splitlines()
    assert table[2].split("|")[-2].strip() == "143" and "too slow" in table[3]  # 1,000 a second / 7 a core


# ---- a real server ---------------------------------------------------------------------------------------------------


def test_a_request_is_late_from_when_it_was_due_and_none_waits_for_another():
    with serving(service_of(Scripted(seconds=0.1), limits=Limits(rows=1))) as address:
        sent = load.send(address, ["1 2", "3"], np.array([0, 1, 0, 1]), np.zeros(4), 1.0, answers=["yes", "no"])
    assert sent.statuses == {200: 4} and (np.sort(sent.run.latency) >= [0.1, 0.2, 0.3, 0.4]).all()
    assert (sent.run.layers == [2, 1, 2, 1]).all() and (sent.run.differs == [False, True, False, True]).all()
    assert (
        (sent.beside > 0).all() and (sent.beside < sent.run.latency - 0.09).all() and set(sent.run.rungs) == {"default"}
    )


def test_refusals_are_counted():
    from modeling_pfberxit.serving.limits import HttpLimits

    small = service_of(Scripted(seconds=0.2), limits=Limits(rows=1, queue=1), http=HttpLimits(texts=1))
    with serving(small) as address:
        sent = load.send(address, ["1"], np.zeros(6, int), np.zeros(6), 1.0)
    assert sent.statuses[429] >= 3 and sent.statuses[200] + sent.statuses[429] == 6
    assert np.isnan(sent.run.latency).sum() == sent.statuses[429]


def test_the_same_traffic_simulated_and_measured(forecast, folder):
    found, asked = forecast
    plan = Plan(rate=10.0, seconds=4.0, shapes=("steady",))
    with (
        serving(service_of(folder)) as address,
        pytest.raises(ValueError, match="url='default': must be a server of this"),
    ):
        list(compared(address, asked, found, Machine(TIMES), plan))
    update_config(folder, exit_threshold=POINTS["certified-1%"]["threshold"])
    with serving(service_of(folder)) as address:
        ((shape, both),) = compared(address, asked, found, Machine(TIMES), plan)
    assert shape == "steady" and both[SIMULATED].requests == both[MEASURED].requests == len(steady(4.0).arrivals(10.0))
    assert both[MEASURED].depth == pytest.approx(both[SIMULATED].depth)
    assert both[MEASURED].agreement == pytest.approx(both[SIMULATED].agreement)
    assert both[MEASURED].refused == 0 and both[MEASURED].p50 > 0


@pytest.mark.parametrize(
    ("seconds", "core"), [((7.0, 7.001), 1e-4), ((7.0, 9.0), None), ((7.0, 6.9), None), ((np.nan, np.nan), None)]
)
def test_a_request_costs_the_core_what_is_computed_beside_batches_and_no_more_than_its_client_waits(
    monkeypatch, seconds, core
):
    told = iter(seconds)
    monkeypatch.setattr(load, "seconds_beside_batches", lambda url: next(told))
    with serving(service_of(Scripted())) as address:
        cost = load.request_cost(address, ["1"], requests=10, apart=0.01)
    assert cost.core == pytest.approx(core) and cost.outside > 0 if core else cost.outside == 0 < cost.core


def test_requests_that_tell_a_cost_leave_time_for_two_answers(monkeypatch):
    monkeypatch.setattr(load, "FEW", 1)
    with serving(service_of(Scripted(seconds=0.3))) as address:
        began = time.perf_counter()
        load.request_cost(address, ["1"], requests=6)
    assert time.perf_counter() - began >= 6 * 2 * 0.3


def test_what_a_server_computes_beside_its_batches_is_read_off_its_metrics():
    with serving(service_of(Scripted(seconds=0.1), meter=PrometheusMeter())) as address:
        before, began = load.seconds_beside_batches(address), time.process_time()
        load.send(address, ["1"], np.zeros(5, int), np.arange(5) * 0.2, 1.0)
        found, most = load.seconds_beside_batches(address) - before, time.process_time() - began
    assert -0.6 < found + 0.5 - most < 0.05  # its batches slept 0.5 s, and this process is server and client
    with serving(service_of(Scripted())) as address:
        assert np.isnan(load.seconds_beside_batches(address))


def test_where_no_server_answers_is_said():
    with pytest.raises(ValueError, match="url="):
        load.send("http://127.0.0.1:9", ["1"], np.zeros(1, int), np.zeros(1), 1.0)


def test_a_core_that_is_not_there_is_refused():
    load.pin(None)
    with pytest.raises(ValueError, match="pin=4096"):
        load.pin(4096)


# ---- the command -----------------------------------------------------------------------------------------------------


def test_the_command_tells_cores_and_what_the_controller_does(folder, texts, tmp_path, capsys):
    times = tmp_path / "times.json"
    save_times(TIMES, times, {})
    main(["traffic", folder, texts, "--times", str(times), "--seconds", "40", "--rate", "10", "--shapes", "burst",
          "--workers", "1"])  # fmt: skip
    out = capsys.readouterr().out
    assert "60 texts, 10.0 requests/s" in out and "cores for 1,000,000/min" in out
    rungs = [line.split("|")[4].strip() for line in out.splitlines() if line.startswith("| burst | poisson")]
    assert rungs == ["full-depth", *POINTS, "controller"]


@pytest.mark.parametrize(
    ("options", "said"),
    [(["--core", "0"], "core=0"), (["--shapes", "tide"], "'tide'"), (["--workers", "0"], "workers"),
     (["--differ", "2"], "differ=2.0")],
)  # fmt: skip
def test_what_is_no_traffic_is_refused_by_name(folder, texts, tmp_path, options, said):
    times = tmp_path / "times.json"
    save_times(TIMES, times, {})
    with pytest.raises(SystemExit, match=said):
        main(["traffic", folder, texts, "--times", str(times), "--rate", "5", *options])


def test_where_full_depth_is_too_slow_a_rate_is_found_all_the_same(folder, texts, tmp_path, capsys):
    times = tmp_path / "times.json"
    save_times(BatchTimes(layer=(0.05, 0.0, 0.0)), times, {})
    main(["traffic", folder, texts, "--times", str(times), "--seconds", "40", "--shapes", "steady", "--workers", "1"])
    out = capsys.readouterr().out
    assert "Full depth takes more than 200 ms" in out and "| full-depth |" in out and "too slow" in out


@pytest.mark.parametrize("kind", ["multi_label_classification", "regression"])
def test_answers_that_are_no_single_labels_are_not_compared_with_a_servers(tmp_path, texts, kind):
    from datasets import Dataset

    names = ("score",) if kind == "regression" else ("a", "b", "c")
    folder = saved(tmp_path / kind, names, problem_type=kind)
    found = KnownModel(folder).forecast(Dataset.from_csv(texts).select(range(5)), ("text",))
    with pytest.raises(ValueError, match="model='several labels or values'"):
        list(compared("http://127.0.0.1:9", ["w1"] * 5, found, Machine(TIMES), Plan(rate=1.0)))


def test_work_that_is_not_known_is_not_zero():
    sent = Outcome.of(replace(Run.of(np.array([0.0]), 1.0), latency=np.array([0.1]), busy=np.nan))
    assert sent.cells()[-1] == "–" and Outcome.of(Run.of(np.array([0.0]), 1.0)).cells()[-1] == "0.0"


def test_watching_is_refused_where_the_rule_promises_nothing(folder):
    from modeling_pfberxit.serving.start import Loading, Rule

    predictor = Loading(device="cpu").first(folder)
    for policy in ("full-depth", {"criterion": "appointed", "appointed_layer": 2}):
        with pytest.raises(ValueError, match="watch=0.5: must be left out where"):
            Rule(policy, watch=0.5).served("m", predictor)
    assert Rule("certified-1%", watch=0.5).served("m", predictor).watcher.share == 0.5
    assert Rule(differ=0.05, watch=0.5).served("m", predictor).watcher.share == 0.5


# ---- what it is held against -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("runtime", ["torch", pytest.param("onnxruntime", marks=pytest.mark.slow)])
def test_a_stock_classifier_behind_the_server_answers_as_itself(tmp_path, runtime):
    from tiny import save_backbone, tiny_config
    from transformers import AutoTokenizer, BertForSequenceClassification

    from modeling_pfberxit.traffic.rivals import FullDepth

    if runtime == "onnxruntime":
        pytest.importorskip("onnxruntime")
    torch.manual_seed(0)
    stock = BertForSequenceClassification(tiny_config("bert", num_labels=3, initializer_range=0.3)).eval()
    stock.save_pretrained(tmp_path / "stock")
    tokenizer = AutoTokenizer.from_pretrained(save_backbone(tmp_path / "encoder"))
    tokenizer.save_pretrained(tmp_path / "stock")
    predictor = FullDepth(str(tmp_path / "stock"), runtime, max_length=40)
    texts = ["w1 w2 w3", "w4", "w5 w6 w7 w8 w9"]
    rows, cut = predictor.read(texts)
    found = predictor.run(rows, [predictor.point(None)] * 3)
    with torch.no_grad():
        alone = [stock(**tokenizer(text, return_tensors="pt")).logits[0] for text in texts]
    assert torch.from_numpy(found.logits) == pytest.approx(torch.stack(alone), abs=1e-4)
    assert found.exit_layer == [6, 6, 6] and cut == [False] * 3
    with pytest.raises(ValueError, match="exit_policy='fast'"):
        predictor.point("fast")
