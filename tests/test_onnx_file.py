"""One file that exits by itself: the model's label and layer for every row, alone and in a batch, under every rule."""

import json
import subprocess
import sys
from dataclasses import replace
from functools import cache

import numpy as np
import pytest
import torch
from tiny import rows_of, tiny_batch, tiny_model

from modeling_pfberxit import ExitPolicy
from modeling_pfberxit.model.criteria import CRITERIA

pytest.importorskip("onnxscript")
onnxruntime = pytest.importorskip("onnxruntime")

from modeling_pfberxit.export.files import export_file  # noqa: E402
from modeling_pfberxit.export.made import one_file  # noqa: E402
from modeling_pfberxit.export.quantised import graphs_in, quantised  # noqa: E402
from modeling_pfberxit.export.segments import segments_of  # noqa: E402
from modeling_pfberxit.export.verification import run  # noqa: E402

slow = pytest.mark.slow
BATCHES = [tiny_batch(rows, seed=rows) for rows in (1, 7, 32)]
EMITTING = {"use_lte": True, "use_prototypes": True, "problem_type": "single_label_classification"}


def session_of(proto):
    return onnxruntime.InferenceSession(proto.SerializeToString(), providers=["CPUExecutionProvider"])


@cache
def three_layers():
    """Exits that emit all there is, translated once for all rules."""
    model = tiny_model("bert", num_labels=3, backbone_changes={"num_hidden_layers": 4}, **EMITTING)
    return model, segments_of(model)


@cache
def scores(criterion: str) -> float:
    """A threshold at which some rows leave early."""
    return {"entropy": 0.5, "pcee": 0.7, "max_prob": 0.8, "voting": 0.7, "lte": 0.5, "window": 0.4, "distance": 0.6,
            "dge": 1.0}.get(criterion, 0.9)  # fmt: skip


def compare(session, model, policy, batches=BATCHES):
    """Every row's layer and logits are the model's; the layers that occurred."""
    seen = set()
    for batch in batches:
        with torch.no_grad():
            expected = model(**batch, exit_policy=policy)
        names = [each.name for each in session.get_inputs()]
        given = {**batch, "token_type_ids": torch.zeros_like(batch["input_ids"])}
        logits, layers = run(session, {name: given[name] for name in given if name in names}, policy)
        assert layers.tolist() == expected.exit_layer.tolist()
        np.testing.assert_allclose(logits, expected.logits.numpy(), atol=1e-4)
        seen |= set(layers.tolist())
    return seen


FEW = ("divergence_v1", "divergence_v3", "pcee")


def policies(criterion: str) -> ExitPolicy:
    policy = ExitPolicy(criterion, threshold=scores(criterion), window=2, patience=2)
    if criterion == "appointed":
        return replace(policy, appointed_layer=2)
    return replace(policy, ensemble="run") if criterion == "pcee" else policy


HELD = [name for name in CRITERIA if name != "cap"]  # whose evidence ONNX has no operator for


@pytest.mark.parametrize("criterion", [pytest.param(name, marks=() if name in FEW else slow) for name in HELD])
def test_a_file_has_the_models_layers_and_labels_under_every_rule_whatever_tau_and_patience_a_request_brings(criterion):
    model, segments = three_layers()
    policy = policies(criterion)
    session = session_of(one_file(segments, policy))
    seen = set()
    for tau, patience in ((1.0, 2), (1.6, 1), (0.3, 1), (0.0, 2)):
        asked = replace(policy, threshold=policy.threshold * tau, patience=patience)
        seen |= compare(session, model, asked)
    assert len(seen) > 1 or criterion == "appointed"  # the rows did not all leave at one layer


@pytest.mark.parametrize(
    "built_in",
    [
        {"min_layer": 3},
        pytest.param({"threshold": [0.9, 0.2, 0.8, 0.5]}, marks=slow),
        pytest.param({"label_thresholds": {"0": 0.2, "1": None}}, marks=slow),
        pytest.param({"criterion": "divergence_v2", "divergence": "js_div", "normalize": True}, marks=slow),
    ],
)
def test_what_is_no_number_of_a_row_is_built_in(built_in):
    model, segments = three_layers()
    policy = replace(ExitPolicy("entropy", threshold=0.6), **built_in)
    compare(session_of(one_file(segments, policy)), model, policy)


def test_every_row_of_a_batch_has_its_own_tau_and_patience():
    model, segments = three_layers()
    session, batch = session_of(one_file(segments, policies("divergence_v1"))), BATCHES[2]
    taus, patiences = np.linspace(0, 1.5, 32).astype(np.float32), np.arange(32) % 3 + 1
    given = {name: value.numpy() for name, value in batch.items()}
    given |= {"token_type_ids": np.zeros_like(given["input_ids"]), "tau": taus, "patience": patiences}
    _, layers = session.run(None, given)
    for row, (tau, patience) in enumerate(zip(taus, patiences, strict=True)):
        alone = {name: value[row : row + 1] for name, value in batch.items()}
        asked = {"criterion": "divergence_v1", "threshold": float(tau), "patience": int(patience)}
        assert model(**alone, exit_policy=asked).exit_layer.item() == layers[row]


CLS = {"exit_pooling": "cls", "exit_pooler": "own"}
MODELS = {
    "albert": ("albert", {"num_labels": 3}),
    "mpnet, several labels": ("mpnet", {"num_labels": 3, "problem_type": "multi_label_classification"}),
    "roberta, values, few exits": ("roberta", {"num_labels": 1, "problem_type": "regression", "exit_layers": [2, 4]}),
    "electra, conv, one token": ("electra", {"adapter_sublearner": "conv", **CLS}),
    "distilbert, bypass": ("distilbert", {"adapter_placement": "bypass", "adapter_sublearner": "self_attention"}),
    "albert in groups": ("albert-groups", {"exit_shared": True}),
    "albert, a head of its own": ("albert", {"last_exit": "classifier"}),
    "modernbert": ("modernbert", {"exit_pooling": "both"}),
    "nomic": ("nomic_bert", {"exit_pooler": "bottleneck"}),
    "gte": ("gte", {"num_labels": 3}),
    "jina": ("jina_embeddings_v3", {"num_labels": 3}),
    "eurobert": ("eurobert", {"num_labels": 3, "exit_layers": [1, 4]}),
    "deberta": ("deberta-v2", {"last_exit": "classifier"}),
}


@cache
def translated(name: str):
    family, knobs = MODELS[name]
    changes = {} if family == "albert-groups" else {"n_layers" if family == "distilbert" else "num_hidden_layers": 4}
    model = tiny_model(family, backbone_changes=changes, **knobs)
    return model, segments_of(model)


@pytest.mark.parametrize("name", [pytest.param(name, marks=() if name == "albert" else slow) for name in MODELS])
def test_a_file_has_the_models_layers_and_labels_whatever_the_model_is(name):
    model, segments = translated(name)
    regression = model.config.problem_type == "regression"
    policy = ExitPolicy("patience" if regression else "entropy", threshold=2.0 if regression else 0.5, patience=1)
    session = session_of(one_file(segments, policy))
    for threshold in (policy.threshold, policy.threshold / 3):
        compare(session, model, replace(policy, threshold=threshold))


@slow
@pytest.mark.parametrize("layers", [24, 32])
def test_a_file_of_many_exits_can_be_read_and_has_the_models_layers(layers):
    model = tiny_model("bert", num_labels=3, backbone_changes={"num_hidden_layers": layers})
    policy = ExitPolicy("entropy", threshold=0.3)
    session = session_of(one_file(segments_of(model), policy))
    seen = compare(session, model, replace(policy, threshold=0.02), BATCHES[1:]) | compare(session, model, policy)
    assert len(seen) > 2


@pytest.mark.parametrize("exit_layers", [None, pytest.param([2, 4], marks=slow)])
def test_weights_that_layers_share_stand_in_the_file_once(exit_layers):
    model = tiny_model("albert", num_labels=3, backbone_changes={"num_hidden_layers": 4}, exit_layers=exit_layers)
    file = one_file(segments_of(model), policies("entropy"))
    assert [node.op_type for node in file.graph.node if node.op_type in ("If", "Loop")] == [
        "If" if exit_layers else "Loop"
    ]
    (ffn,) = (
        tensor for graph in graphs_in(file.graph) for tensor in graph.initializer if list(tensor.dims) == [32, 64]
    )
    assert len(ffn.raw_data) == 4 * 32 * 64  # of the first linear layer of the FFN


def test_branches_inside_each_other_hold_no_weights():
    """Of graphs inside each other ONNX Runtime keeps copies, so that memory would grow with the square of the depth."""
    _, segments = three_layers()
    for file in (one_file(segments, policies("entropy")), quantised(one_file(segments, policies("entropy")))):
        outermost, *inner = graphs_in(file.graph)
        assert len(inner) == 12  # of each exit but the last two, and two in which rows are gathered
        assert all(len(tensor.raw_data) <= 1024 for graph in inner for tensor in graph.initializer)
        assert len({tensor.name for tensor in outermost.initializer}) == len(outermost.initializer)


def test_a_file_for_single_rows_has_the_models_layers_and_labels():
    model, segments = three_layers()
    policy = replace(policies("divergence_v1"), threshold=1.4, patience=1)
    alone = [{name: value[row : row + 1] for name, value in BATCHES[2].items()} for row in range(32)]
    assert len(compare(session_of(one_file(segments, policy, single=True)), model, policy, alone)) > 1


# ---- what cannot be -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("knobs", "policy", "message"),
    [
        ({"token_exits": True, "adapter_placement": "none"}, None, "token_exits=True"),
        ({"use_nsp": True}, {"criterion": "cap", "threshold": 0.1}, "exit_criterion='cap': must be one of .*entropy"),
        ({"prompt_generator": "table", "prompt_layer": 1}, None, "prompt_generator='table'"),
        ({}, None, "policy=None: must be a rule .*full depth"),
        ({}, {"criterion": "lte", "threshold": 0.5}, "exit_criterion='lte'"),
    ],
)
def test_what_a_file_cannot_hold_is_refused_by_name(knobs, policy, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        export_file(tiny_model("bert", num_labels=3, **knobs), None, tmp_path / "model.onnx", policy)
    assert not list(tmp_path.iterdir())


def test_a_model_that_could_leave_by_cap_is_exported_under_every_other_rule(tmp_path):
    model = tiny_model("bert", num_labels=3, use_nsp=True, backbone_changes={"num_hidden_layers": 3})
    made = export_file(model, None, tmp_path / "model.onnx", {"criterion": "entropy", "threshold": 0.5})
    assert made.compared.layers_apart == 0 and model.config.use_nsp and model.exits.emits_nsp


def test_a_file_that_differs_from_its_model_is_not_written(tmp_path, monkeypatch):
    from modeling_pfberxit.export import files

    model, segments = three_layers()
    other = tiny_model("bert", seed=5, num_labels=3, backbone_changes={"num_hidden_layers": 4}, **EMITTING)
    monkeypatch.setattr(files, "segments_of", lambda model: replace(segments, model=other))
    with pytest.raises(ValueError, match="leave after another layer.*no file is written"):
        export_file(model, None, tmp_path / "model.onnx", {"criterion": "entropy", "threshold": 0.5})
    assert not list(tmp_path.iterdir())


# ---- the folder -----------------------------------------------------------------------------------------------------

ELSEWHERE = """
import json, sys
sys.path.insert(0, sys.argv[1])
for name in ("torch", "transformers", "modeling_pfberxit", "pfberxit", "onnx", "onnxscript"):
    sys.modules[name] = None  # not installed, as it were
from classifier import Classifier
classify = Classifier(sys.argv[1] + "/model.onnx", threads=1)
texts = json.loads(sys.argv[2])
found = classify.predict(texts, batch_size=3)
print(json.dumps({"layers": found.exit_layer.tolist(), "one": classify(texts[0]), "all": classify(texts, top_k=None),
                  "fast": classify(texts, exit_policy="fast")}))
"""


@pytest.fixture(scope="module")
def exported(tmp_path_factory, local_backbone):
    """A model, its tokenizer, and the folder that the command has made of it."""
    from tiny import enliven
    from transformers import AutoTokenizer

    from modeling_pfberxit import PFBerxitForSequenceClassification
    from pfberxit.cli import main

    folder = tmp_path_factory.mktemp("exported")
    model = PFBerxitForSequenceClassification.from_backbone(
        local_backbone, num_labels=3, id2label={0: "a", 1: "b", 2: "c"}, adapter_dim=8, exit_criterion="entropy",
        exit_threshold=0.7, exit_layers=[2, 4, 6], operating_points={
            "fast": {"criterion": "entropy", "threshold": 0.95, "certificate": {"epsilon": 0.01}},
            "another rule": {"criterion": "patience", "patience": 2},
        },
    )  # fmt: skip
    enliven(model, seed=0)
    tokenizer = AutoTokenizer.from_pretrained(local_backbone)
    model.eval().save_pretrained(folder / "saved")
    tokenizer.save_pretrained(folder / "saved")
    main(["export", folder / "saved", "--onnx", folder / "out" / "model.onnx", "--max-length", "40", "--int8"])
    return model, tokenizer, folder / "out"


def test_an_exported_folder_answers_as_pipeline_does_where_neither_this_package_nor_torch_is(exported):
    from transformers import pipeline

    model, tokenizer, folder = exported
    texts = ["w1 w2", "w3", " ".join(f"w{i}" for i in range(90)), *(f"w{i} w{i + 9} w{i * 3}" for i in range(9))]
    command = [sys.executable, "-c", ELSEWHERE, str(folder), json.dumps(texts)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0 and not done.stderr, done.stderr
    found = json.loads(done.stdout)
    stock = pipeline("text-classification", model=model, tokenizer=tokenizer)
    options = {"truncation": True, "max_length": 40}
    same(found["one"], stock(texts[0], **options))
    same(found["all"], stock(texts, top_k=None, **options))
    same(found["fast"], stock(texts, exit_policy="fast", **options))
    layers = [row["exit_layer"] for row in stock(texts, exit_policy={}, **options)]
    assert found["layers"] == layers and len(set(layers)) > 1


def same(found, expected):
    """Equal but for rounding of the scores."""
    if isinstance(expected, list):
        for one, other in zip(found, expected, strict=True):
            same(one, other)
    else:
        assert found == {**expected, "score": pytest.approx(expected["score"], abs=1e-4)}


@pytest.mark.parametrize("name", ["tokenizer.json", "classifier.py"])
def test_nothing_of_anothers_is_overwritten(exported, tmp_path, name):
    from pfberxit.cli import main

    (tmp_path / name).write_text("{}")
    with pytest.raises(SystemExit, match=f"{name} is another"):
        main(["export", exported[2].parent / "saved", "--onnx", tmp_path / "model.onnx"])
    assert [file.name for file in tmp_path.iterdir()] == [name] and (tmp_path / name).read_text() == "{}"


def test_a_folder_is_exported_into_twice(exported):
    from pathlib import Path

    from modeling_pfberxit.export.beside import check_beside
    from pfberxit import export

    _, tokenizer, folder = exported
    check_beside(folder / "another.onnx", tokenizer, Path(export.__file__).with_name("onnx.py"))


def test_a_file_says_what_it_is(exported):
    from pfberxit.onnx import Classifier

    model, _, folder = exported
    facts = Classifier(folder / "model.onnx").metadata
    assert facts["id2label"] == ["a", "b", "c"] and facts["exit_layers"] == [2, 4, 6] and facts["max_length"] == 40
    assert facts["operating_points"] == {"fast": model.config.operating_points["fast"]}  # those this file serves
    assert facts["base_model"]["sha256"] == model.config.base_model_sha256 and facts["weights_sha256"]


def test_a_point_without_a_patience_has_the_default_and_not_the_files():
    from modeling_pfberxit.export.metadata import points_of

    point = {"criterion": "divergence_v1", "threshold": 0.2}
    model = tiny_model(exit_threshold=0.3, exit_patience=4, operating_points={"mine": point})
    assert points_of(model, model.config.exit_policy, 128) == {"mine": {**point, "patience": 2}}


@pytest.mark.parametrize(
    ("length", "dtype", "kept"), [(40, "float32", True), (16, "float32", False), (40, "bfloat16", False)]
)
def test_a_certificate_of_texts_of_another_length_or_of_other_weights_is_not_in_the_file(length, dtype, kept):
    from modeling_pfberxit.export.metadata import points_of

    point = {
        "criterion": "entropy",
        "threshold": 0.3,
        "certificate": {"epsilon": 0.01, "max_length": 40, "dtype": dtype},
    }
    model = tiny_model("bert", num_labels=3, operating_points={"certified": point})
    found = points_of(model, ExitPolicy("entropy", threshold=0.5), length)
    assert ("certificate" in found["certified"]) is kept and "certificate" in model.config.operating_points["certified"]


def test_answers_of_several_labels_and_values_are_compared_as_what_they_are():
    from modeling_pfberxit.export.int8 import alike

    layers = torch.ones(2)  # arg maxima are the same
    one, other = (torch.tensor([[3.0, -1.0], [2.0, 1.0]]), layers), (torch.tensor([[3.0, 1.0], [2.0, 1.5]]), layers)
    assert alike(one, other, "multi_label_classification") == {"layer": 2, "label": 1}
    assert alike(one, other, "regression") == {"layer": 2, "farthest": 2.0}


@torch.no_grad()
def test_a_decision_that_flips_in_a_file_is_counted(monkeypatch):
    from modeling_pfberxit.export import verification

    model = tiny_model("bert", num_labels=2, problem_type="multi_label_classification")
    policy, rows = ExitPolicy(criterion=None), [{"input_ids": ids} for ids in rows_of(tiny_batch(4))]
    own = model(**tiny_batch(4), exit_policy=policy)
    lowest = own.logits.amin(-1, keepdim=True)
    logits = torch.where(lowest > 0, own.logits - 100, own.logits + 100)  # decisions flip, the arg max stays
    monkeypatch.setattr(verification, "run", lambda *asked: (logits.numpy(), own.exit_layer.numpy()))
    assert verification.compare(None, model, rows, [policy], sizes=(4,)).answers_apart == 4


def test_a_file_of_8_bits_has_them_in_every_layer_says_how_it_compares_and_has_no_certificates(exported):
    import onnx

    from modeling_pfberxit.export.storage import nodes_in
    from pfberxit.onnx import Classifier

    *_, folder = exported
    small = onnx.load(folder / "model_int8.onnx")
    kinds = [node.op_type for node in nodes_in(small.graph)]
    assert kinds.count("MatMulInteger") == 6 * 9  # query, key, value, out, two of the FFN, three of the adapter
    classify = Classifier(folder / "model_int8.onnx")
    assert classify.metadata["operating_points"] == {"fast": {"criterion": "entropy", "threshold": 0.95}}
    assert classify.metadata["int8"]["rows"] == 24 and len(classify.predict(["w1 w2"]).logits) == 1


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"threshold": float("nan")}, "threshold=nan"),
        ({"patience": 2}, r"exit_policy=\['patience'\]: must be among \['threshold'\]"),
        ("another rule", "exit_policy='another rule': must be one of this file's operating points: .*fast"),
    ],
)
def test_a_request_the_file_cannot_serve_ends_in_one_clear_error(exported, asked, message):
    from pfberxit.onnx import Classifier

    with pytest.raises(ValueError, match=message):
        Classifier(exported[2] / "model.onnx").predict(["w1"], asked)


def test_damaged_files_and_wrong_arrays_end_in_one_clear_error(exported, tmp_path):
    from pfberxit.onnx import Classifier

    classify = Classifier(exported[2] / "model.onnx")
    good = {"input_ids": np.full((2, 5), 7), "attention_mask": np.ones((2, 5), int)}
    wrong = {
        "input_ids='rows of 90 tokens'": {name: np.tile(value, 18) for name, value in good.items()},
        "of two dimensions": {name: value[0] for name, value in good.items()},
        "input_ids=120: must be from 0 to 119": {**good, "input_ids": np.full((2, 5), 120)},
        "pad on the right": {**good, "attention_mask": np.array([[0, 1, 1, 1, 1], [1, 1, 1, 1, 1]])},
    }
    for message, arrays in wrong.items():
        with pytest.raises(ValueError, match=message):
            classify.run(arrays)
    (tmp_path / "model.onnx").write_bytes((exported[2] / "model.onnx").read_bytes()[:5000])
    with pytest.raises(ValueError, match="model.onnx: no ONNX file, or a damaged one"):
        Classifier(tmp_path / "model.onnx")


def test_the_quantised_rival_of_the_benchmark_has_its_products_in_8_bits(tmp_path):
    import onnx
    from onnxruntime.quantization import quantize_dynamic

    from modeling_pfberxit.evaluation.onnx_stock import hold_weights

    weight = onnx.numpy_helper.from_array(np.eye(8, dtype=np.float32), "weight")
    nodes = [  # as the exporter leaves a linear layer
        onnx.helper.make_node("Transpose", ["weight"], ["turned"], perm=[1, 0], name="turn"),
        onnx.helper.make_node("MatMul", ["x", "turned"], ["y"], name="product"),
    ]
    ends = [onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, ["rows", 8]) for name in "xy"]
    graph = onnx.helper.make_graph(nodes, "linear", ends[:1], ends[1:], [weight])
    hold_weights(graph)
    assert [tensor.name for tensor in graph.initializer] == ["turned"]
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 20)], ir_version=10)
    quantize_dynamic(model, tmp_path / "int8.onnx")
    assert "MatMulInteger" in [node.op_type for node in onnx.load(tmp_path / "int8.onnx").graph.node]
