"""`pfberxit reproduce retrofits`: classifiers made faster without labels, beside what else would make them so."""

import json
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tiny import save_backbone
from transformers import AutoModelForSequenceClassification, AutoTokenizer, Trainer

from modeling_pfberxit.data.tasks import encode
from modeling_pfberxit.evaluation.bounds import rows_needed
from modeling_pfberxit.evaluation.recording import padded_batches
from modeling_pfberxit.studies import classifiers, retrofit_speed, retrofit_table, retrofits
from modeling_pfberxit.studies.reproduce import Study, reproduce
from modeling_pfberxit.studies.runs import Budget, further_rows, split_rows


@pytest.fixture(scope="module", autouse=True)
def few_rules():
    """Settings of two rules, not of all."""
    with pytest.MonkeyPatch.context() as patched:
        few = partial(retrofit_table.all_points, criteria=("max_prob", "divergence_v1"))
        patched.setattr(retrofit_table, "all_points", few)
        yield


@pytest.fixture(scope="module")
def study(tmp_path_factory) -> Study:
    folder = tmp_path_factory.mktemp("retrofits")
    budget = Budget(rows=160, epochs=1, held_out=60, batch_size=8, max_length=64)
    return Study("support_desk", ("intent",), save_backbone(folder / "encoder"), (1,), budget, folder)


@pytest.fixture(scope="module")
def done(study) -> str:
    """The table, with what int8 answers left to a test of its own: it needs onnxruntime."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(retrofits, "int8_logits", lambda folder, rows: torch.zeros(len(rows), 6))
        return dict(reproduce(["retrofits"], study))["retrofits"]


def test_every_way_stands_beside_the_retrofitted_classifier(study, done):
    (result,) = json.loads((study.folder / "results.json").read_text())
    ways = {(each["way"], each["at"]) for each in result["found"]}
    names = ("retrofitted", "PF-BERxiT, from labels", "first layers, new head")
    assert ways >= {("int8", ""), *((way, share) for way in names for share in ("30 %", "50 %"))}
    assert "At 50 %: most same answers" in done and (study.folder / "retrofits.png").stat().st_size > 5000
    assert result["train_rows"] == 160 and result["texts"] == 600 - 160 - 60


def test_what_is_compared_is_the_stock_classifier_and_its_own_layers(study, done):
    (run,) = study.runs("intent")
    (folder,) = (study.folder / "classifiers").iterdir()
    stock = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    rows = encode(run.source.task, split_rows(run)[2], AutoTokenizer.from_pretrained(folder), 64)
    logits = torch.cat([stock(**{k: v for k, v in batch.items() if k != "labels"}).logits
                        for batch in padded_batches(rows, torch.arange(len(rows)), 32, 0)])  # fmt: skip
    kept = retrofits.retrofitted(study.folder, run, retrofits.TEXTS, print).reported_on
    torch.testing.assert_close(kept.evidence.logits[:, -1], logits, rtol=0, atol=1e-4)
    (result,) = json.loads((study.folder / "results.json").read_text())
    (cut,) = (each for each in result["found"] if each["way"].startswith("first") and each["at"] == "50 %")
    same = (kept.evidence.logits[:, 2].argmax(-1) == logits.argmax(-1)).double().mean().item()
    assert cut["saved"] == 0.5 and cut["agreement"] == pytest.approx(same, abs=0.01)


def test_nothing_is_trained_twice(study, done, monkeypatch):
    for name in ("retrofit", "classifier_of"):
        monkeypatch.setattr(retrofits, name, lambda *arguments, **options: pytest.fail("made again"))
    assert dict(reproduce(["retrofits"], study))["retrofits"] == done


def test_texts_are_of_rows_that_nothing_else_reads(study):
    (run,) = study.runs("intent")
    held_out, rows, _ = split_rows(run)
    parts = [set(part["text"]) for part in (held_out, rows, further_rows(run, 1000))]
    assert sum(map(len, parts)) == len(set.union(*parts)) == 600
    with pytest.raises(ValueError, match="rows=0: must be fewer than the 540 there are"):
        further_rows(replace(run, budget=replace(run.budget, rows=0)), 10)


def test_a_killed_fine_tuning_goes_on_and_ends_in_the_same_weights(study, tmp_path, monkeypatch):
    (run,) = study.runs("intent")
    run = replace(run, budget=replace(run.budget, rows=64, epochs=2.0))  # eight steps an epoch
    classifiers.fine_tune(run, tmp_path / "whole")
    steps, step = [], Trainer.training_step

    def killed(self, *arguments, **options):
        steps.append(1)
        return step(self, *arguments, **options) if len(steps) < 10 else (_ for _ in ()).throw(KeyboardInterrupt)

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(Trainer, "training_step", killed)
        classifiers.fine_tune(run, tmp_path / "killed")
    assert not (tmp_path / "killed").exists()
    classifiers.fine_tune(run, tmp_path / "killed")
    ends = [load_file(tmp_path / name / "model.safetensors") for name in ("whole", "killed")]
    assert all(torch.equal(value, ends[1][name]) for name, value in ends[0].items())
    assert sorted(path.name for path in tmp_path.iterdir()) == ["killed", "whole"]


@pytest.mark.parametrize("rows", [200, 700, 1000, 5000])
def test_only_rates_that_so_many_texts_can_be_certified_at_are_asked_for(rows):
    asked = retrofits.possible(rows)
    least = rows_needed(min(asked), 1 - 0.05 / len(asked)) + 150
    assert least <= rows
    more = [each for each in retrofits.DIFFER if each not in asked]
    assert not more or rows_needed(max(more), 1 - 0.05 / (len(asked) + 1 if asked != [0.1] else 1)) + 150 > rows


def test_int8_answers_stand_in_the_rows_order_and_are_about_the_classifiers_own(study, done):
    pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    (run,) = study.runs("intent")
    (folder,) = (study.folder / "classifiers").iterdir()
    kept = retrofits.retrofitted(study.folder, run, retrofits.TEXTS, print).reported_on
    rows = encode(run.source.task, split_rows(run)[2], AutoTokenizer.from_pretrained(Path(folder)), 64)
    found = classifiers.int8_logits(folder, rows)
    assert (found - kept.evidence.logits[:, -1]).abs().max() < 0.05


def test_the_certified_settings_are_timed_beside_the_stock_model(study, done, monkeypatch):
    monkeypatch.setattr(retrofit_speed, "onnx_runtime", lambda stock, names: {})
    monkeypatch.setattr(retrofit_speed, "REPEATS", 1)
    text = dict(reproduce(["speed"], study))["speed"]
    assert "| stock, PyTorch | 1 |" in text and "| retrofitted, full depth | 32 |" in text
