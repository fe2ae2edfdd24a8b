"""The forms of a file: labels judged one by one, rows without an answer, tokens alone, weights beside it, 8 bits."""

import csv
import json
from functools import cache

import numpy as np
import pytest
import torch
from tiny import rows_of, tiny_batch, tiny_model

from modeling_pfberxit import ExitPolicy

pytest.importorskip("onnxscript")
onnxruntime = pytest.importorskip("onnxruntime")

from modeling_pfberxit.export import storage  # noqa: E402
from modeling_pfberxit.export.evidence import EvidenceFile, in_two, recertified  # noqa: E402
from modeling_pfberxit.export.made import begun, one_file  # noqa: E402
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
    enliven(model)
    export_file(model.eval(), AutoTokenizer.from_pretrained(local_backbone), folder / "model.onnx", max_length=20)
    return Classifier(folder / "model.onnx", threads=1)


TEXTS = [f"w{i} w{i + 9} w{3 * i}" for i in range(12)]


def test_every_text_of_a_list_may_bring_a_policy_of_its_own(classifier):
    never = {"threshold": 0.0}
    found = classifier.predict(TEXTS, [never if i % 2 else {"threshold": 9.0} for i in range(12)])
    assert found.exit_layer.tolist() == [2, 6] * 6
    with pytest.raises(ValueError, match="one for each of 12 texts"):
        classifier.predict(TEXTS, [never])


@pytest.mark.parametrize("ending", [".csv", ".tsv", ".jsonl", ".txt"])
def test_the_rows_of_a_file_are_written_with_their_answers_in_their_order(classifier, tmp_path, ending):
    source, output = tmp_path / f"in{ending}", tmp_path / f"out{'.jsonl' if ending == '.txt' else ending}"
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


def test_a_file_without_texts_is_refused_by_its_row_and_leaves_nothing(classifier, tmp_path):
    (tmp_path / "in.csv").write_text("review\nw1\n")
    with pytest.raises(ValueError, match="row 1=.*one with a text in 'text'"):
        classifier.predict_file(tmp_path / "in.csv", tmp_path / "out.csv")
    assert [file.name for file in tmp_path.iterdir()] == ["in.csv"]


def write(path, ending):
    """The texts as a file of a kind."""
    separator = {".csv": ",", ".tsv": "\t"}.get(ending)
    with open(path, "w", newline="") as file:
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
