"""Metrics, exit reports, the layer table, the benchmark, the card and the command line."""

import json
import logging
import subprocess
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from huggingface_hub import ModelCard
from tiny import save_backbone, tiny_batch, tiny_config, tiny_model

from modeling_pfberxit import ExitPolicy, PFBerxitConfig, PFBerxitForSequenceClassification
from modeling_pfberxit.benchmark import profiling
from modeling_pfberxit.benchmark.baselines import with_short_cuts
from modeling_pfberxit.benchmark.scripted import scripted
from modeling_pfberxit.benchmark.workload import of_one_length, recorded, settled
from modeling_pfberxit.data.metrics import METRICS, majority_score, score
from modeling_pfberxit.data.source import Source
from modeling_pfberxit.evaluation.frontier import settings_for
from modeling_pfberxit.evaluation.onnx_stock import errors_only
from modeling_pfberxit.evaluation.recording import record
from modeling_pfberxit.evaluation.settings import Setting, as_table, earlier, histogram
from modeling_pfberxit.evaluation.timing import interleaved, median_ratio
from modeling_pfberxit.model import layers as sublayers
from modeling_pfberxit.model.execution import Execution
from modeling_pfberxit.studies import layer_table, trainings
from modeling_pfberxit.studies.quickstart import difficulty_note
from modeling_pfberxit.studies.runs import Budget, Run
from pfberxit import cli


def test_metrics_by_hand():
    logits, labels = np.array([[2.0, 1], [0, 3], [1, 0], [0, 1]]), np.array([0, 1, 1, 0])
    assert score("accuracy", logits, labels) == 0.5
    assert score("accuracy_f1", logits, labels) == 0.5  # precision 1/2, recall 1/2
    assert score("matthews", logits, labels) == 0.0
    assert score("correlation", np.array([[1.0], [2], [3]]), np.array([2.0, 4, 6])) == pytest.approx(1.0)
    given = np.array([[1.0, -1, 1], [-1, -1, -1]])  # 2 labels given, 1 of them right, 1 missed
    assert score("micro_f1", given, np.array([[1, 0, 0], [0, 1, 0]])) == pytest.approx(0.5)
    with pytest.raises(ValueError, match="metric='bleu'.*accuracy"):
        score("bleu", logits, labels)


def test_metrics_of_two_parts_are_the_mean_of_both():
    answers, labels = np.eye(2)[[0, 1, 1, 1, 0]], np.array([0, 1, 1, 0, 1])  # 2 found, 1 wrongly, 1 missed
    assert score("accuracy_f1", answers, labels) == pytest.approx((3 / 5 + 2 / 3) / 2)
    assert score("matthews", answers, labels) == pytest.approx((2 * 1 - 1 * 1) / 6)
    values = np.array([[1.0], [2], [3], [10]])  # in order, but not on a line
    assert score("correlation", values, np.array([1.0, 2, 3, 4])) == pytest.approx((14 / 250**0.5 + 1) / 2)
    assert score("correlation", 0 * values, np.array([1.0, 2, 3, 4])) == 0.0
    assert score("correlation", values, np.ones(4)) == 0.0


@pytest.mark.parametrize("metric", ["accuracy", "accuracy_f1", "matthews"])
def test_the_majority_score_is_that_of_a_constant_answer(metric):
    labels = np.array([1, 1, 1, 0, 0])
    always = np.tile([0.0, 1.0], (5, 1))
    assert majority_score(metric, labels) == METRICS[metric](always, labels)
    assert majority_score("correlation", labels) == 0.0


def test_of_several_labels_the_majority_gives_those_that_most_rows_have():
    labels = np.array([[1, 0, 0], [1, 1, 0], [1, 0, 0], [0, 0, 0]])  # 3, 1 and 0 of 4 rows
    assert majority_score("micro_f1", labels) == pytest.approx(2 * 3 / (2 * 3 + 1 + 1))  # 1 wrongly given, 1 missed
    assert majority_score("micro_f1", labels[:, 1:]) == 0.0


def test_thresholds_save_what_was_asked():
    torch.manual_seed(0)
    model = tiny_model("bert", num_labels=2)
    recording = record(model, [tiny_batch(300)])
    policy = ExitPolicy("divergence_v1", "js_div", threshold=0.0, patience=1)
    wanted = [0.1, 0.3, 0.5]
    policies = settings_for(recording, policy, wanted)
    assert (taus := [each.threshold for each in policies]) == sorted(taus)
    for share, chosen in zip(wanted, policies, strict=True):
        _, layers = recording.replay(chosen)
        assert 1 - layers.float().mean() / 6 >= share


def test_the_interval_of_a_clear_difference_excludes_zero():
    rng = np.random.default_rng(0)
    easy, hard = rng.integers(2, 4, 200), rng.integers(4, 6, 200)
    mean, low, high = earlier(easy, hard)
    assert mean == pytest.approx(hard.mean() - easy.mean())
    assert 0 < low < mean < high
    mean, low, high = earlier(easy, easy)
    assert low < 0 < high


@pytest.mark.parametrize(("shift", "word"), [(2, " earlier."), (-2, " later."), (0, "neither earlier nor later")])
def test_the_difficulty_note_tells_the_sign_it_found(shift, word):
    depths = np.array([3, 4] * 40)
    note = difficulty_note({"plain": depths, "contrast": depths + shift, "indirect": depths + shift})
    assert word in note


def test_tables_and_bars_show_what_was_measured():
    depths = np.array([2, 2, 4, 6])
    setting = Setting("fast", ExitPolicy(threshold=0.1), 0.75, depths, 6, {1: 2.0, 32: 0.5})
    assert setting.saved == pytest.approx(1 - 3.5 / 6)
    assert "| fast | 0.750 | 3.50 of 6 | 42 % | 2.00 | 0.50 |" in as_table([setting], "accuracy")
    bars = histogram({"all": depths}, 6)
    assert "layer  2" in bars and "50 %" in bars and "layer  3" not in bars


def test_times_are_taken_in_turn():
    order = []
    times = interleaved([lambda: order.append("a"), lambda: order.append("b")], repeats=2, warmups=1)
    assert order == ["a", "b"] * 3
    assert [len(series) for series in times] == [2, 2]
    assert median_ratio([2.0, 6.0, 3.0], [1.0, 2.0, 1.0]) == 3.0
    order.clear()
    interleaved([lambda: order.append("a"), lambda: order.append("b")], repeats=2, warmups=0, settled=True)
    assert order == ["a", "a", "b", "b"] * 2


def run_cli(*arguments: str) -> str:
    done = subprocess.run([sys.executable, "-m", "pfberxit", *arguments], capture_output=True, text=True)
    return done.stdout + done.stderr


@pytest.mark.parametrize("from_recording", [False, True])
def test_the_benchmark_compares_with_the_stock_model(tmp_path, capsys, from_recording):
    sizes = ["--preset", "tiny", "--batch-sizes", "2", "--lengths", "4", "--repeats", "1", "--saved", "0.5"]
    sizes += ["--no-rivals"]
    files = []
    if from_recording:
        evidence = settled(4, rows=40)
        replace(evidence, lengths=torch.arange(40) % 7 + 2, labels=None).save(tmp_path / "four.safetensors")
        files = ["--recordings", str(tmp_path / "four.safetensors"), "--mix-rows", "4"]
    cli.main(["benchmark", *sizes, *files, "--output", str(tmp_path / "out")])
    lines = json.loads((tmp_path / "out" / "benchmark.json").read_text())
    ours = [
        "all rows wait for the slowest",
        "rows leave",
        "rows leave, padding with them",
        "and token first",
        "and one activation",
        "predict",
    ]
    workloads = ["4 tokens", "real lengths"] if from_recording else ["4 tokens"]
    for workload in workloads:
        found = {line["case"]: line for line in lines if line["workload"] == workload}
        saved = {found[name]["saved"] for name in ours}
        assert len(saved) == 1 and 0.2 < saved.pop() < 0.8
        assert found["full depth, and token first"]["saved"] == found["full depth, and one activation"]["saved"] == 0
    for line in lines:
        assert line["efficiency"] == pytest.approx(line["speed_up"] * (1 - line["saved"]))
    assert (tmp_path / "out" / "benchmark.png").stat().st_size > 5000
    assert (tmp_path / "out" / "benchmark.md").read_text().strip() in capsys.readouterr().out


@pytest.mark.slow
def test_the_profile_s_parts_add_up(tmp_path, capsys):
    settled(6, rows=40).save(tmp_path / "six.safetensors")
    sizes = ["--batch-sizes", "1", "2", "--lengths", "4", "--repeats", "2", "--saved", "0.5", "--mix-rows", "4"]
    files = ["--recordings", str(tmp_path / "six.safetensors"), "--output", str(tmp_path)]
    cli.main(["benchmark", "--profile", *sizes, *files])
    text = (tmp_path / "profile.md").read_text()
    assert text.strip() in capsys.readouterr().out and text.count("**batch") == 5  # 1: a call; 2: a call, predict; mix
    for table in text.split("**batch")[1:]:
        lines = [[cell.strip() for cell in line.split("|")[1:-1]] for line in table.splitlines() if "|" in line][2:]
        times = {name: float(ms) for name, _, ms, _ in lines}
        *parts, whole, _, _ = times.values()
        assert sum(parts) == pytest.approx(whole, abs=0.01) and min(parts) >= 0
        assert times["exits"] > 0 and times["criterion"] > 0 and times["embeddings"] > 0
        assert times["whole layers"] + times["layers for the exit's token"] > whole / 3
        calls = {name: float(count) for name, count, *_ in lines[:-3]}
        assert (calls["rows that wait"] > 0) == (calls["rows that join"] > 0) == ("predict" in table)


@pytest.mark.slow
def test_translated_contestants_stand_beside_the_others_where_they_are_asked_for(tmp_path, monkeypatch):
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="eager"))
    sublayers.compiled.cache_clear()
    sizes = ["--batch-sizes", "2", "--lengths", "4", "--repeats", "1", "--saved", "0.5", "--no-rivals"]
    cli.main(["benchmark", *sizes, "--compiled", "--output", str(tmp_path)])
    sublayers.compiled.cache_clear()
    found = {line["case"]: line for line in json.loads((tmp_path / "benchmark.json").read_text())}
    assert found["and compiled"]["saved"] == found["and token first"]["saved"]
    assert found["stock, compiled"]["saved"] == found["full depth, and compiled"]["saved"] == 0


def test_rows_leave_the_benchmark_where_the_recorded_model_lets_them():
    recording = settled(6, rows=40)
    workload = of_one_length(recording, 8, 5, 100)
    config = tiny_config("albert", num_hidden_layers=12)
    exits = [2, 4, 6, 8, 10, 12]
    model = PFBerxitForSequenceClassification(PFBerxitConfig.from_backbone(config, exit_layers=exits)).eval()
    spread = replace(workload.recording, exit_depths=exits)
    workload = replace(workload, recording=spread)
    policy, left = workload.policy(0.5)
    assert len(set(left.tolist())) > 3
    for batch in workload.batches("cpu"):
        view = scripted(model, Execution(), spread, batch.numbers)
        assert torch.equal(view(**batch.tokens, exit_policy=policy).exit_layer, left[batch.numbers])
    rows = [{"input_ids": row} for row in workload.rows]
    view = scripted(model, Execution(), spread)
    assert torch.equal(view.predict(rows, policy, 4, progress=False).exit_layer, left)


def test_the_benchmark_leaves_the_model_and_the_loggers_as_they_were():
    recording, model = settled(6, rows=8), tiny_model("bert", num_labels=2).eval()
    workload, execution, level = of_one_length(recording, 8, 5, 100), model.execution, logging.getLogger().level
    (batch, *_) = workload.batches("cpu")
    before = model(**batch.tokens).logits
    policy, _ = workload.policy(0.5)
    answers = with_short_cuts(model, Execution(token_first=False), policy, workload.recording)(batch)
    assert not torch.allclose(answers, before)
    assert torch.equal(model(**batch.tokens).logits, before) and model.execution is execution
    with pytest.raises(ZeroDivisionError), errors_only():
        assert logging.getLogger().level == logging.ERROR
        raise ZeroDivisionError
    assert logging.getLogger().level == level


def test_the_profile_names_what_was_moved(monkeypatch):
    monkeypatch.setitem(profiling.PARTS, "exits", ("exits:Exits.backward", None))
    with pytest.raises(ValueError, match="PARTS.*'exits:Exits.backward', which is not in"):
        profiling.profile(lambda: None, 1, 1)


def test_a_recording_of_another_depth_is_refused(tmp_path):
    settled(5).save(tmp_path / "five.safetensors")
    with pytest.raises(ValueError, match="recording=.*divides 12"):
        recorded([str(tmp_path / "five.safetensors")], 12)


@pytest.fixture
def glue_like(tmp_path):
    from datasets import ClassLabel, Dataset, Features, Value

    features = Features({"sentence": Value("string"), "label": ClassLabel(names=["bad", "good"])})
    rows = {"sentence": [f"w{i % 9} w{i % 7}" for i in range(80)], "label": [i % 2 for i in range(80)]}
    folder = tmp_path / "glue"
    folder.mkdir()
    for split in ("train", "validation"):
        Dataset.from_dict(rows, features=features).to_parquet(folder / f"{split}.parquet")
    return str(folder)


def test_the_layer_table_goes_on_where_it_stopped(glue_like, tmp_path, monkeypatch):
    run = Run(Source.read(glue_like), save_backbone(tmp_path / "encoder"), 1, Budget(rows=16, epochs=1, held_out=20))
    first = layer_table.measured(tmp_path / "runs", run, "frozen", {}, [0.2, 0.4], print)
    assert len(first["layers"]) == 6 and len(first["points"]) == 2
    assert first["train_rows"] == 16
    monkeypatch.setattr(trainings, "train_and_record", lambda *_: pytest.fail("trained again"))
    assert layer_table.measured(tmp_path / "runs", run, "frozen", {}, [0.2, 0.4], print) == first
    assert len(layer_table.measured(tmp_path / "runs", run, "frozen", {}, [0.3], print)["points"]) == 1
    for other in ("trained", {}), ("frozen", {"exit_pooling": "cls"}):
        with pytest.raises(pytest.fail.Exception, match="trained again"):
            layer_table.measured(tmp_path / "runs", run, *other, [0.2, 0.4], print)
    table = layer_table.as_markdown([{**first, "majority": 2.0}])
    assert table.splitlines()[-1].count("*") == 6, "exits below the majority are marked"


def test_bad_values_on_the_command_line_end_in_one_line(tmp_path):
    printed = run_cli("quickstart", "--dataset", str(tmp_path / "nothing"), "--backbone", str(tmp_path))
    assert "Traceback" not in printed
    assert printed.strip().splitlines()[-1].startswith("pfberxit: dataset=")


@pytest.mark.parametrize(
    "config",
    ["intent", pytest.param("topics", marks=pytest.mark.slow), pytest.param("urgency", marks=pytest.mark.slow)],
)
def test_the_quickstart_tells_the_whole_story(config, tmp_path):
    encoder = save_backbone(tmp_path / "encoder")
    printed = run_cli(
        "quickstart", "--backbone", encoder, "--config", config, "--epochs", "0.2", "--output", str(tmp_path / "out")
    )
    folder = tmp_path / "out" / f"pfberxit-{config}"
    assert "| full depth |" in printed and "| balanced |" in printed and "Where rows left" in printed
    assert "95 % bootstrap interval" in printed
    assert printed.count(" after layer ") == 3 and "model class from transformers_modules" in printed
    assert (folder / "exit_depths.png").stat().st_size > 5_000
    check_card(folder, config)


def check_card(folder: Path, config: str) -> None:
    card = ModelCard.load(folder / "README.md")
    assert card.data.to_dict().items() >= {"base_model_relation": "adapter", "library_name": "transformers"}.items()
    assert len(card.data.eval_results) == 4
    assert "{{" not in card.content and "{%" not in card.content
    code = card.content.split("```python\n")[1].split("```")[0].replace(f'"{folder.name}"', f'"{folder}"')
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count(" after layer ") == 3, config
