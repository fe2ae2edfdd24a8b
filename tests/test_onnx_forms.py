"""The forms of a file: labels judged one by one, rows without an answer, tokens alone, weights beside it, 8 bits."""

import csv
import gzip
import json
from dataclasses import replace
from functools import cache

import numpy as np
import pytest
import torch
from tiny import rows_of, tiny_batch, tiny_model

from modeling_pfberxit import ExitPolicy
from modeling_pfberxit.evaluation.certificates import Certificate
from modeling_pfberxit.model.exit_policy import FULL_DEPTH

pytest.importorskip("onnxscript")
onnxruntime = pytest.importorskip("onnxruntime")

from modeling_pfberxit.export import storage  # noqa: E402
from modeling_pfberxit.export.evidence import EvidenceFile, in_two, recertified  # noqa: E402
from modeling_pfberxit.export.int8 import promise_in_words  # noqa: E402
from modeling_pfberxit.export.made import Form, Promise, begun, one_file  # noqa: E402
from modeling_pfberxit.export.metadata import metadata_of  # noqa: E402
from modeling_pfberxit.export.quantised import products, quantised  # noqa: E402
from modeling_pfberxit.export.segments import segments_of  # noqa: E402
from modeling_pfberxit.export.verification import Compared, answers, check_same, compare, run  # noqa: E402

slow = pytest.mark.slow
ROWS = [{"input_ids": ids} for ids in rows_of(tiny_batch(32))]


@cache
def several_labels():
    model = tiny_model(
        "bert", num_labels=3, problem_type="multi_label_classification", backbone_changes={"num_hidden_layers": 3}
    )
    return model, segments_of(model)


POLICIES = {
    "labels": ExitPolicy("entropy", threshold=1.2, label_thresholds={"0": 0.5, "1": None}),
    "labels, counted": ExitPolicy("divergence_v1", threshold=1.9, patience=1, label_thresholds={"0": 2.5}),
    "labels alone": ExitPolicy("max_prob", label_thresholds={"0": 0.5, "1": 0.6, "2": 0.5}),
    "unsure": ExitPolicy("divergence_v1", threshold=0.5, patience=1, answer="abstain", window=1, unsure_below=0.7),
}


@slow
@pytest.mark.parametrize("name", POLICIES)
def test_labels_with_thresholds_of_their_own_and_rows_that_leave_as_unsure_are_the_models(name):
    model, segments = several_labels()
    session = storage.opened(one_file(segments, POLICIES[name]))
    found = compare(session, model, ROWS, [POLICIES[name]], (1, 7))
    assert found == Compared(64, 0, 0, 0, found.farthest) and found.farthest < 1e-4
    logits, layers = answers(model, ROWS, POLICIES[name])
    assert len(set(layers.tolist())) > 1 and bool(logits.isnan().any()) is (name == "unsure")


@slow
def test_a_file_of_tokens_alone_has_the_policys_threshold_built_in():
    model, segments = several_labels()
    session = storage.opened(one_file(segments, POLICIES["labels"], built_in=True))
    assert [each.name for each in session.get_inputs()] == ["input_ids", "attention_mask", "token_type_ids"]
    assert compare(session, model, ROWS, [POLICIES["labels"]], (7,)).layers_apart == 0


@slow
def test_weights_that_one_file_cannot_hold_stand_beside_it(tmp_path, monkeypatch):
    model, segments = several_labels()
    proto = one_file(segments, POLICIES["labels"])
    monkeypatch.setattr(storage, "MOST_BYTES", 100_000)
    storage.write(proto, tmp_path / "model.onnx")
    assert sorted(file.name for file in tmp_path.iterdir()) == ["model.onnx", "model.onnx_data"]
    session = onnxruntime.InferenceSession(str(tmp_path / "model.onnx"))
    for each in (session, storage.opened(proto)):
        assert compare(each, model, ROWS, [POLICIES["labels"]], (7,)).layers_apart == 0
    (tmp_path / "model.onnx_data").unlink()
    with pytest.raises(Exception, match="model.onnx_data"):
        onnxruntime.InferenceSession(str(tmp_path / "model.onnx"))
    monkeypatch.undo()
    storage.write(proto, tmp_path / "model.onnx")
    assert [file.name for file in tmp_path.iterdir()] == ["model.onnx"]


def test_a_row_within_rounding_of_a_threshold_is_no_difference_and_many_are_one():
    check_same(Compared(1000, 5, 0, 0, 1e-6), "model.onnx")
    for found in (Compared(1000, 6, 0, 0, 0.0), Compared(9, 0, 1, 0, 0.0), Compared(9, 0, 0, 1, 0.0)):
        with pytest.raises(ValueError, match="no file is written"):
            check_same(found, "model.onnx")


# ---- 8 bits ----------------------------------------------------------------------------------------------------------


@slow
@pytest.mark.parametrize("family", ["bert", "albert"])
def test_in_8_bits_no_row_of_a_batch_changes_anothers_answer(family):
    model = tiny_model(family, num_labels=3, backbone_changes={"num_hidden_layers": 3})
    policy = ExitPolicy("entropy", threshold=0.8)
    proto = quantised(one_file(segments_of(model), policy))
    assert products(proto).share == 1.0
    session, batch = storage.opened(proto), tiny_batch(32)
    every = {**batch, "token_type_ids": torch.zeros_like(batch["input_ids"])}
    logits, layers = run(session, every, policy)
    for row in range(32):
        alone = {name: value[row : row + 1, : batch["attention_mask"][row].sum()] for name, value in every.items()}
        own, its = run(session, alone, policy)
        assert its[0] == layers[row]
        np.testing.assert_allclose(own[0], logits[row], atol=1e-5)


@slow
def test_a_certificate_in_8_bits_counts_answers_of_that_file_that_differ_from_full_depth_in_float32():
    model = tiny_model("bert", num_labels=3, backbone_changes={"num_hidden_layers": 3})
    segments, policy = segments_of(model), ExitPolicy("entropy", threshold=0.5)
    file = begun(EvidenceFile, segments, policy)
    rows = [{"input_ids": ids} for ids in rows_of(tiny_batch(300, seed=3))]
    with pytest.raises(ValueError, match="texts='300 rows': must be at least"):
        recertified(file, rows, policy, 0.01, 0.95)
    made = recertified(file, rows, policy, 0.3, 0.95)
    assert made.passed and made.rows == 210 and made.chosen_on == 90
    session = storage.opened(quantised(one_file(segments, made.policy)))
    certify = [rows[number] for number in in_two(300)[1].tolist()]
    found = [run(session, batch, made.policy) for batch in each_alone(certify)]
    full = answers(model, certify, ExitPolicy(criterion=None))[0].argmax(-1)
    assert made.missed == sum(int(logits.argmax()) != int(label) for (logits, _), label in zip(found, full))
    assert made.layers == pytest.approx(np.mean([layers[0] for _, layers in found]))


def each_alone(rows):
    """Batches of one row."""
    for row in rows:
        ids = row["input_ids"][None]
        yield {"input_ids": ids, "attention_mask": torch.ones_like(ids), "token_type_ids": torch.zeros_like(ids)}


def test_a_promise_that_no_setting_keeps_is_announced_as_none():
    failed = Certificate("certified-int8", FULL_DEPTH, "differ", 0.01, 0.95, 0.05, 500, None, 200, 1, 6.0, 6)
    none = "its thresholds are those of float32, and no certificate speaks of it."
    assert promise_in_words(failed) == f"No setting passed at 1 % on 500 texts: {none}"
    assert promise_in_words(None) == none.capitalize()


@slow
def test_a_file_of_a_threshold_of_its_own_is_compared_with_float32_at_that_threshold(monkeypatch):
    model, segments = several_labels()
    policy = ExitPolicy("entropy", threshold=0.0)
    other = replace(policy, threshold=1.5)
    passed = Certificate("certified-int8", other, "differ", 0.3, 0.95, 0.05, 500, 9.0, 200, 4, 2.0, 3)
    monkeypatch.setattr(Form, "certified", lambda form, promise: passed)
    form = Form(segments, policy, metadata_of(model, None, policy, 64), ROWS, built_in=True)
    small = form.in_8_bits(form.made("model.onnx"), "model.onnx", Promise(0.3))
    assert len(set(answers(model, ROWS, other)[1].tolist())) > 1
    assert small.measured["layer_as_float32"] >= 29 and small.measured["layer_alone_as_in_batch"] == 32


def test_texts_that_a_model_has_used_are_left_out_only_where_a_promise_is_made_on_them(local_backbone, tmp_path):
    from transformers import AutoTokenizer

    from modeling_pfberxit.evaluation.used_texts import hashes, remember
    from modeling_pfberxit.export.texts import read_texts

    (tmp_path / "texts.csv").write_text("text\nw1\nw2\nw3\n")
    remember(tmp_path, train=hashes(["w1", "w2"]))
    asked = (tmp_path, None, AutoTokenizer.from_pretrained(local_backbone), 16, str(tmp_path / "texts.csv"), None, None)
    assert len(read_texts(*asked, {}).rows) == 3
    fresh = read_texts(*asked, {}, unused=True)
    assert len(fresh.rows) == 1 and fresh.left_out == {"used to train": 2}
    remember(tmp_path, certify=hashes(["w3"]))
    with pytest.raises(ValueError, match="texts=.*left out: 1 used to certify, 2 used to train"):
        read_texts(*asked, {}, unused=True)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--confidence", "0.9"], "confidence=0.9: must be given together with --differ"),
        (["--differ", "0.1", "--int8"], "differ=0.1: must be given together with --int8 and --texts"),
        (["--text", "review"], "texts=None: must be given together with --text"),
    ],
)
def test_options_that_would_do_nothing_are_refused_before_a_model_is_read(options, message):
    from pfberxit.cli import main

    with pytest.raises(SystemExit, match=message):
        main(["export", "nothing-there", "--onnx", "model.onnx", *options])


# ---- the runner ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def classifier(tmp_path_factory, local_backbone):
    from tiny import enliven
    from transformers import AutoTokenizer

    from modeling_pfberxit import PFBerxitForSequenceClassification
    from modeling_pfberxit.export.files import export_file
    from pfberxit.onnx import Classifier

    folder = tmp_path_factory.mktemp("runner")
    model = PFBerxitForSequenceClassification.from_backbone(
        local_backbone, num_labels=3, adapter_dim=8, exit_criterion="entropy", exit_threshold=0.7, exit_layers=[2, 6]
    )
    enliven(model, seed=0)
    export_file(model.eval(), AutoTokenizer.from_pretrained(local_backbone), folder / "model.onnx", max_length=20)
    return Classifier(folder / "model.onnx", threads=1)


TEXTS = [f"w{i} w{i + 9} w{3 * i}" for i in range(12)]


def test_every_text_of_a_list_may_bring_a_policy_of_its_own(classifier):
    never = {"threshold": 0.0}
    found = classifier.predict(TEXTS, [never if i % 2 else {"threshold": 9.0} for i in range(12)])
    assert found.exit_layer.tolist() == [2, 6] * 6
    with pytest.raises(ValueError, match="one for each of 12 texts"):
        classifier.predict(TEXTS, [never])


@pytest.mark.parametrize("ending", [".csv", ".tsv", ".jsonl", ".txt", ".csv.gz"])
def test_the_rows_of_a_file_are_written_with_their_answers_in_their_order(classifier, tmp_path, ending):
    source, output = (
        tmp_path / f"in{ending}",
        tmp_path / f"out{'.jsonl' if ending == '.txt' else ending.removesuffix('.gz')}",
    )
    write(source, ending)
    assert classifier.predict_file(source, output, batch_size=5) == 12
    rows = read(output)
    assert [row["text"] for row in rows] == TEXTS
    expected = classifier(TEXTS, exit_policy={})
    assert [(row["label"], int(row["exit_layer"])) for row in rows] == [
        (each["label"], each["exit_layer"]) for each in expected
    ]
    with pytest.raises(ValueError, match="not there yet"):
        classifier.predict_file(source, output)


def test_columns_called_as_answers_are_keep_their_values_and_all_columns_their_places(
    classifier, tmp_path, monkeypatch
):
    from pfberxit import onnx

    monkeypatch.setattr(onnx, "CHUNK", 2)
    rows = [{"text": "w1", "label": "x", "id": "1"}, {"text": "w2", "id": "2", "label": "y"}]
    rows += [{"id": "3", "label": "z", "text": "w3"}]
    (tmp_path / "in.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    classifier.predict_file(tmp_path / "in.jsonl", tmp_path / "out.csv")
    found = read(tmp_path / "out.csv")
    assert [(row["text"], row["input_label"], row["id"]) for row in found] == [
        ("w1", "x", "1"), ("w2", "y", "2"), ("w3", "z", "3")
    ]  # fmt: skip
    assert all(row["label"].startswith("LABEL") for row in found)
    (tmp_path / "in.jsonl").write_text("".join(json.dumps(row) + "\n" for row in [*rows, {"text": "w4", "more": 1}]))
    with pytest.raises(ValueError, match="without \\['more'\\]"):
        classifier.predict_file(tmp_path / "in.jsonl", tmp_path / "out2.csv")


def test_a_file_without_texts_is_refused_by_its_row_and_leaves_nothing(classifier, tmp_path):
    (tmp_path / "in.csv").write_text("review\nw1\n")
    with pytest.raises(ValueError, match="row 1=.*one with a text in 'text'"):
        classifier.predict_file(tmp_path / "in.csv", tmp_path / "out.csv")
    assert [file.name for file in tmp_path.iterdir()] == ["in.csv"]


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("in.csv.gz", gzip.compress(b"text\nw1\nw2\n", mtime=0)[:-9]),
        ("in.jsonl", b'{"text": "w1"}\n{"text'),
        ("in.txt", b"w1\n\xff"),
    ],
)
def test_a_damaged_file_of_texts_ends_in_one_clear_error_and_leaves_nothing(classifier, tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=f"{name}: damaged behind row"):
        classifier.predict_file(tmp_path / name, tmp_path / "out.csv")
    assert [file.name for file in tmp_path.iterdir()] == [name]


def write(path, ending):
    """The texts as a file of a kind."""
    separator = {".csv": ",", ".tsv": "\t"}.get(ending.removesuffix(".gz"))
    with (gzip.open if ending.endswith(".gz") else open)(path, "wt", newline="") as file:
        if separator:
            csv.writer(file, delimiter=separator).writerows([["text"], *([text] for text in TEXTS)])
        else:
            file.writelines((json.dumps({"text": text}) if ending == ".jsonl" else text) + "\n" for text in TEXTS)


def read(path):
    """The rows of a file of answers."""
    with open(path, newline="") as file:
        if path.suffix == ".jsonl":
            return [json.loads(line) for line in file]
        return list(csv.DictReader(file, delimiter="\t" if path.suffix == ".tsv" else ","))
