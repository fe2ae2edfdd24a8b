"""The same file, with 24 layers, in OpenVINO, in node, in a browser without a server, and through transformers.js.

`make test-browser` installs what this needs beside Python's packages; each test is skipped where its part is missing.
"""

import json
import os
import runpy
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("onnxscript")
pytest.importorskip("onnxruntime")

ROOT = Path(__file__).parents[1]
SCRIPTS = Path(__file__).with_name("javascript")
MODULES = Path(os.environ.get("NODE_MODULES", ROOT / "node_modules"))
CHROMIUM = os.environ.get("CHROMIUM") or shutil.which("chromium") or ""
FLOAT32 = {"INFERENCE_PRECISION_HINT": "f32"}  # on processors with bfloat16, OpenVINO takes that unasked
TEXTS = [f"w{i} w{i * 3 % 97} w{i * 7 % 101}" + " w5" * (i % 4) for i in range(16)]


def module(name: str) -> None:
    """Skip where node or one of its packages is missing."""
    if shutil.which("node") is None or not (MODULES / name).is_dir():
        pytest.skip(f"{name} is not installed in {MODULES}; `make test-browser` does that")


def node(script: str, *arguments: object) -> dict:
    """What a script printed, as JSON."""
    command = ["node", str(SCRIPTS / script), *map(str, arguments)]
    environment = {**os.environ, "NODE_MODULES": str(MODULES)}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=500)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


@pytest.fixture(scope="module")
def hub_folder(tmp_path_factory, local_backbone):
    """24 layers as the Hub has them, in float32 and 8 bits, and the same beside a checkpoint."""
    from tiny import enliven, save_backbone
    from transformers import AutoTokenizer

    from modeling_pfberxit import PFBerxitForSequenceClassification
    from modeling_pfberxit.export.hub import export_hub
    from pfberxit import export

    folder = tmp_path_factory.mktemp("deep")
    save_backbone(folder / "encoder", seed=1, num_hidden_layers=24)
    model = PFBerxitForSequenceClassification.from_backbone(
        folder / "encoder", num_labels=3, id2label={0: "a", 1: "b", 2: "c"}, adapter_dim=8, exit_criterion="entropy",
        exit_threshold=0.1,
    )  # fmt: skip
    enliven(model)
    tokenizer = AutoTokenizer.from_pretrained(folder / "encoder")
    runner = Path(export.__file__).with_name("onnx.py")
    export_hub(model.eval(), tokenizer, folder / "hub", max_length=12, int8=True, runner=runner)
    model.save_pretrained(folder / "checkpoint")
    tokenizer.save_pretrained(folder / "checkpoint")
    shutil.copytree(folder / "hub" / "onnx", folder / "checkpoint" / "onnx")
    return folder / "hub"


@pytest.fixture(scope="module")
def expected(hub_folder):
    """What the adjustable file answers in Python."""
    from pfberxit.onnx import Classifier

    found = Classifier(hub_folder / "onnx" / "model_adjustable.onnx", threads=1).predict(TEXTS, batch_size=1)
    assert len(set(found.exit_layer.tolist())) > 1
    return found


def test_the_folder_of_the_hub_has_both_files_and_its_card_says_how_they_are_used(hub_folder, expected):
    from pfberxit.onnx import Classifier

    files = {str(path.relative_to(hub_folder)) for path in hub_folder.rglob("*") if path.is_file()}
    beside = {"config.json", "tokenizer.json", "tokenizer_config.json", "README.md"}
    inside = {"onnx/model.onnx", "onnx/model_adjustable.onnx", "onnx/model_int8.onnx", "onnx/classifier.py"}
    assert files == beside | inside
    built_in = Classifier(hub_folder / "onnx" / "model.onnx", threads=1)
    assert built_in.inputs == {"input_ids", "attention_mask", "token_type_ids"}
    assert built_in.predict(TEXTS).exit_layer.tolist() == expected.exit_layer.tolist()
    with pytest.raises(ValueError, match="built into the file"):
        built_in.predict(TEXTS, {"threshold": 0.2})
    card = (hub_folder / "README.md").read_text()
    assert options_in(card) == {"dtype": "fp32"}
    assert "In 8 bits (216 of 216 matrix products" in card and "beside others 24 leave as they do alone" in card


def test_a_folder_of_another_models_config_is_left_alone(tmp_path):
    from tiny import tiny_model

    from modeling_pfberxit.export.hub import export_hub

    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    with pytest.raises(ValueError, match="config.json is another model's"):
        export_hub(tiny_model("bert", num_labels=3), None, tmp_path)
    assert [file.name for file in tmp_path.iterdir()] == ["config.json"]


def test_openvino_gives_every_row_the_layer_and_label_it_has_in_onnx_runtime(hub_folder):
    openvino = pytest.importorskip("openvino")
    from pfberxit.onnx import Classifier

    path = hub_folder / "onnx" / "model_adjustable.onnx"
    classifier, compiled = Classifier(path, threads=1), openvino.compile_model(path, "CPU", FLOAT32)
    taus = [0.1 * (row % 2) for row in range(len(TEXTS))]
    expected = classifier.predict(TEXTS, [{"threshold": tau} for tau in taus], batch_size=1)
    assert len(set(expected.exit_layer.tolist())) > 1
    for size in (1, 7):
        for start in range(0, len(TEXTS), size):
            rows = slice(start, start + size)
            batch = classifier.batch(classifier.tokenizer.encode_batch(TEXTS[rows]))
            number = len(batch["input_ids"])
            asked = {"tau": np.array(taus[rows], np.float32), "patience": np.ones(number, np.int64)}
            found = compiled({**batch, **asked})
            assert found["exit_layer"].tolist() == expected.exit_layer[rows].tolist()
            np.testing.assert_allclose(found["logits"], expected.logits[rows], atol=1e-4)


def options_in(card: str) -> dict:
    """What a card's JavaScript gives to `pipeline`."""
    (line,) = (line for line in card.splitlines() if line.startswith("const classify"))
    return json.loads(line[line.index('", {') + 3 : line.rindex(")")])


ALONE = """
import { Classifier } from %s;
const sizes = [];
class Tensor { constructor(kind, data, dims) { Object.assign(this, { data, dims }); } }
const session = { inputNames: ["input_ids"], run: async ({ input_ids }) => {
  sizes.push(input_ids.dims[0]);
  return { logits: { data: [Number(input_ids.data[0]), 5] }, exit_layer: { data: [1n] } };
} };
const tokenizer = { encode: (text) => ({ ids: [Number(text)] }) };
const metadata = { single: true, reads: [], policy: {}, most_patience: 1, max_length: 8, padding: { id: 0 },
                   id2label: ["a", "b"], activation: "softmax" };
const answers = await new Classifier({ Tensor }, session, tokenizer, metadata).predict(["9", "1", "7"]);
console.log(JSON.stringify({ sizes, labels: answers.map((each) => each.label) }));
"""


@pytest.mark.skipif(shutil.which("node") is None, reason="node is not installed")
def test_a_file_for_single_rows_is_given_one_text_at_a_time_in_javascript():
    module = json.dumps((ROOT / "examples" / "browser" / "classifier.mjs").as_uri())
    command = ["node", "--input-type=module", "-e", ALONE % module]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == {"sizes": [1, 1, 1], "labels": ["a", "b", "a"]}


def test_a_folder_whose_tokenizer_cuts_at_another_length_is_refused(tmp_path, local_backbone):
    from tiny import tiny_model
    from transformers import AutoTokenizer

    from modeling_pfberxit.export.hub import export_hub

    tokenizer = AutoTokenizer.from_pretrained(local_backbone, model_max_length=40)
    tokenizer.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="max_length=12: must be 40, as the tokenizer"):
        export_hub(tiny_model("bert", num_labels=3), tokenizer, tmp_path, max_length=12)


def alike(answers: list[dict], expected) -> None:
    """Answers of JavaScript are those of Python."""
    assert [each["exit_layer"] for each in answers] == expected.exit_layer.tolist()
    np.testing.assert_allclose([each["logits"] for each in answers], expected.logits, atol=1e-4)


def test_node_gives_every_text_the_layer_and_label_it_has_in_python(hub_folder, expected, tmp_path):
    module("onnxruntime-node")
    from pfberxit.onnx import Classifier

    source = hub_folder / "onnx" / "model_adjustable.onnx"
    shutil.copy(source, tmp_path / "model.onnx")
    shutil.copy(hub_folder / "tokenizer.json", tmp_path)
    (tmp_path / "metadata.json").write_text(json.dumps(Classifier(source, threads=1).metadata))
    found = node("node.mjs", tmp_path, ROOT / "examples" / "browser" / "classifier.mjs", json.dumps(TEXTS))
    alike(found["alone"], expected)
    alike(found["together"], expected)


def test_a_page_opened_from_the_disk_classifies_what_is_typed_and_asks_nobody(hub_folder, expected, tmp_path):
    module("onnxruntime-web")
    module("playwright-core")
    if not CHROMIUM:
        pytest.skip("no chromium is installed")
    example = runpy.run_path(str(ROOT / "examples" / "06_browser.py"))
    page = example["page_of"](hub_folder / "onnx" / "model_adjustable.onnx", MODULES)
    (tmp_path / "page.html").write_text(page, encoding="utf-8")
    found = node("page.mjs", tmp_path / "page.html", CHROMIUM, json.dumps(TEXTS))
    assert found["errors"] == []
    assert all(url.startswith(("file:", "blob:", "data:")) for url in found["asked"])
    alike(found["together"], expected)
    assert len(found["shown"]) == len(TEXTS)
    for each in found["shown"]:
        assert 1 <= each["exit_layer"] <= 24 and each["bars"] == each["exit_layer"] and each["label"] in ("a", "b", "c")


@pytest.mark.parametrize("beside_a_checkpoint", [False, True])
def test_transformers_js_answers_through_pipeline_as_python_does(hub_folder, expected, beside_a_checkpoint):
    module("@huggingface/transformers")
    from modeling_pfberxit.export.hub import options_of

    folder, options = hub_folder, options_in((hub_folder / "README.md").read_text())
    if beside_a_checkpoint:  # whose config.json has a model_type that transformers.js does not know
        folder = hub_folder.parent / "checkpoint"
        own, there = (json.loads((each / "config.json").read_text()) for each in (hub_folder, folder))
        options = options_of(there, own)
        assert options["config"]["problem_type"] == "single_label_classification"
    found = node("hub.mjs", folder, json.dumps(options), json.dumps(TEXTS))
    labels = ["abc"[number] for number in expected.logits.argmax(1)]
    assert [each["label"] for each in found["answers"]] == labels
    assert found["layers"] == expected.exit_layer.tolist()
