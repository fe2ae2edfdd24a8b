"""A fine-tuned classifier with exits below its own head: the same logits at full depth, on every road."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny import CONFIGS, VOCABULARY, save_backbone, tiny_batch, tiny_config
from transformers import AutoModelForSequenceClassification, AutoTokenizer, BertForTokenClassification

from modeling_pfberxit import PFBerxitForSequenceClassification
from modeling_pfberxit.data.tasks import load_task, targets
from modeling_pfberxit.evaluation.prediction import joined_labels
from modeling_pfberxit.evaluation.recording import record
from modeling_pfberxit.model import heads
from modeling_pfberxit.model.families import FAMILIES, classifier_head
from modeling_pfberxit.model.validation import label_names

from_classifier = PFBerxitForSequenceClassification.from_classifier
PROBLEMS = {
    "single label": {"num_labels": 3, "id2label": {0: "no", 1: "perhaps", 2: "yes"}},
    "several labels": {"num_labels": 4, "problem_type": "multi_label_classification"},
    "a value": {"num_labels": 1, "problem_type": "regression"},
    "a reranker": {"num_labels": 1},
}


def save_classifier(folder: Path, family: str = "bert", seed: int = 3, dtype=torch.float32, **changes) -> str:
    """A stock classifier with random weights, livelier than at the start of training, and a tokenizer."""
    save_backbone(folder, family)
    torch.manual_seed(seed)
    model = AutoModelForSequenceClassification.from_config(tiny_config(family, **{"num_labels": 3, **changes}))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "embedding" not in name and "norm" not in name.lower():
                parameter.normal_(0.0, 0.2)
    model.to(dtype).save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def classifier(tmp_path_factory) -> str:
    """A tiny BERT with three labels. Not to be changed."""
    return save_classifier(tmp_path_factory.mktemp("classifiers") / "bert", **PROBLEMS["single label"])


@torch.no_grad()
def stock_logits(folder: str, batch: dict) -> torch.Tensor:
    """What `transformers` gives."""
    return AutoModelForSequenceClassification.from_pretrained(folder).eval()(**batch).logits


@pytest.mark.parametrize("family", [name for name, make in CONFIGS.items() if FAMILIES[make().model_type].head])
def test_full_depth_gives_the_classifiers_logits_before_and_after_saving(family, tmp_path):
    folder = save_classifier(tmp_path / "classifier", family)
    batch = tiny_batch(6)
    stock, model = stock_logits(folder, batch), from_classifier(folder)
    assert stock.std(0).min() > 1e-3  # rows differ, so agreement means something
    torch.testing.assert_close(model(**batch).logits, stock, rtol=1e-4, atol=1e-5)
    model.save_pretrained(tmp_path / "saved")
    again = PFBerxitForSequenceClassification.from_pretrained(tmp_path / "saved").eval()
    assert torch.equal(again(**batch).exit_logits, model(**batch).exit_logits)
    stored = again.predict([{"input_ids": ids[mask.bool()]} for ids, mask in zip(*batch.values())], progress=False)
    torch.testing.assert_close(stored.logits, stock, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("family", "renamed"), [
    ("gte", lambda name: name.replace("gte.", "new.", 1)),  # as its first checkpoints
    ("gte", lambda name: f"new.{name}"),  # as `transformers` saves a classifier that was loaded from one
    ("bert", lambda name: name.removeprefix("bert.")),
])  # fmt: skip
def test_a_head_is_found_under_every_name_that_transformers_reads_it_by(family, renamed, tmp_path):
    folder, batch = save_classifier(tmp_path / "classifier", family), tiny_batch(4)
    expected, file = stock_logits(folder, batch), Path(folder) / "model.safetensors"
    save_file({renamed(name): each for name, each in load_file(file).items()}, file, metadata={"format": "pt"})
    torch.testing.assert_close(stock_logits(folder, batch), expected)
    from_classifier(folder).save_pretrained(tmp_path / "saved")
    again = PFBerxitForSequenceClassification.from_pretrained(tmp_path / "saved").eval()
    torch.testing.assert_close(again(**batch).logits, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("problem", PROBLEMS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_labels_problem_type_and_dtype_are_the_classifiers(problem, dtype, tmp_path):
    folder = save_classifier(tmp_path, dtype=dtype, **PROBLEMS[problem])
    stock, model = AutoModelForSequenceClassification.from_pretrained(folder).eval(), from_classifier(folder)
    for name in ("id2label", "label2id", "problem_type", "num_labels"):
        assert getattr(model.config, name) == getattr(stock.config, name)
    assert model.dtype == stock.dtype == dtype
    batch, close = tiny_batch(4), {torch.float32: 1e-5, torch.bfloat16: 0.05, torch.float16: 0.005}[dtype]
    torch.testing.assert_close(model(**batch).logits, stock(**batch).logits, rtol=close, atol=close)


@pytest.mark.parametrize("asked", [{}, {"dtype": None}, {"dtype": "auto"}, {"torch_dtype": None}])
@pytest.mark.parametrize(("said", "held"), [("float32", torch.float16), ("float16", torch.float32)])
def test_what_the_classifiers_config_says_of_its_dtype_holds_as_in_transformers(said, held, asked, tmp_path):
    folder = Path(save_classifier(tmp_path, dtype=held))
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "dtype": said}))
    stock, model = AutoModelForSequenceClassification.from_pretrained(folder), from_classifier(folder, **asked)
    assert model.dtype == stock.dtype == getattr(torch, said)
    assert from_classifier(folder, dtype=torch.bfloat16).dtype == torch.bfloat16


def test_a_checkpoint_holds_the_other_exits_alone_and_pins_the_classifier(classifier, tmp_path):
    from safetensors.torch import load_file

    from modeling_pfberxit.model.persistence import sha256_of

    model = from_classifier(classifier)
    model.save_pretrained(tmp_path)
    kept, config = load_file(tmp_path / "model.safetensors"), json.loads((tmp_path / "config.json").read_text())
    assert kept and all(name.startswith("exits.") for name in kept)
    assert not any(f"{part}.5." in name for name in kept for part in ("classifiers", "poolers", "pooler_norms"))
    assert config["base_model_name_or_path"] == classifier
    assert config["base_model_sha256"] == sha256_of(Path(classifier) / "model.safetensors")


def test_the_whole_is_saved_on_request_and_needs_no_classifier(tmp_path):
    import shutil

    folder, batch = save_classifier(tmp_path / "classifier"), tiny_batch(4)
    stock, model = stock_logits(folder, batch), from_classifier(folder, adapter_only=False)
    model.save_pretrained(tmp_path / "whole")
    shutil.rmtree(folder)
    whole = PFBerxitForSequenceClassification.from_pretrained(tmp_path / "whole").eval()
    torch.testing.assert_close(whole(**batch).logits, stock, rtol=1e-4, atol=1e-5)


def test_another_classifier_of_the_same_shape_is_refused(classifier, tmp_path):
    from_classifier(classifier).save_pretrained(tmp_path / "saved")
    other = save_classifier(tmp_path / "other", seed=9)
    with pytest.raises(OSError, match="sha256"):
        PFBerxitForSequenceClassification.from_pretrained(tmp_path / "saved", base_model_name_or_path=other)


@pytest.mark.parametrize("options", [{}, {"dtype": torch.bfloat16}])
def test_another_classifiers_head_is_refused_beside_a_shared_encoder(options, classifier, tmp_path):
    model = from_classifier(classifier)
    model.save_pretrained(tmp_path / "saved")
    options |= {"backbone": model.backbone, "base_model_name_or_path": save_classifier(tmp_path / "other", seed=9)}
    with pytest.raises(OSError, match="sha256"):
        PFBerxitForSequenceClassification.from_pretrained(tmp_path / "saved", **options)


def test_a_moved_head_is_not_saved_without_it(classifier, tmp_path):
    model = from_classifier(classifier)
    with torch.no_grad():
        model.exits.classifiers[-1].bias += 1
    with pytest.raises(ValueError, match=r"adapter_only=True.*last exit.*classifier\.bias"):
        model.save_pretrained(tmp_path)


def test_fewer_exits_and_a_shared_encoder_keep_the_head(classifier, tmp_path):
    model, batch = from_classifier(classifier), tiny_batch(4)
    model.save_pretrained(tmp_path / "saved")
    fewer = PFBerxitForSequenceClassification.from_pretrained(
        tmp_path / "saved", exit_layers=[2, 6], backbone=model.backbone
    )
    assert torch.equal(fewer.eval()(**batch).exit_logits, model(**batch).exit_logits[:, [1, 5]])
    fewer.save_pretrained(tmp_path / "fewer")
    again = PFBerxitForSequenceClassification.from_pretrained(tmp_path / "fewer").eval()
    assert torch.equal(again(**batch).exit_logits, model(**batch).exit_logits[:, [1, 5]])


def test_of_two_exits_the_last_alone_has_no_bypass(classifier, tmp_path):
    batch, knobs = tiny_batch(4), {"adapter_placement": "bypass", "adapter_dim": 8}
    model = from_classifier(classifier, exit_layers=[3, 6], **knobs)
    for parameter in model.exits.bypass_adapters.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    model.save_pretrained(tmp_path)
    alone = PFBerxitForSequenceClassification.from_pretrained(tmp_path, exit_layers=[6]).eval()
    torch.testing.assert_close(alone(**batch).logits, stock_logits(classifier, batch), rtol=1e-4, atol=1e-5)


def test_with_no_exit_beside_the_classifier_s_own_head_it_is_saved_whole_or_not_at_all(classifier, tmp_path):
    model, batch = from_classifier(classifier, exit_layers=[6]), tiny_batch(4)
    with pytest.raises(ValueError, match="adapter_only=True: must be False: .* no weights to save"):
        model.save_pretrained(tmp_path / "saved")
    assert not (tmp_path / "saved").exists()
    model.config.adapter_only = False
    model.save_pretrained(tmp_path / "saved")
    loaded = PFBerxitForSequenceClassification.from_pretrained(tmp_path / "saved").eval()
    torch.testing.assert_close(loaded(**batch).logits, stock_logits(classifier, batch), rtol=1e-4, atol=1e-5)


def test_a_config_that_does_not_say_what_it_is_of_is_a_classifier_s_if_there_is_its_head(
    classifier, local_backbone, tmp_path
):
    for number, made in enumerate((classifier, local_backbone)):
        folder = Path(shutil.copytree(made, tmp_path / str(number)))
        config = json.loads((folder / "config.json").read_text())
        config.pop("architectures")
        (folder / "config.json").write_text(json.dumps(config))
    batch = tiny_batch(4)
    torch.testing.assert_close(
        from_classifier(tmp_path / "0")(**batch).logits, stock_logits(classifier, batch), rtol=1e-4, atol=1e-5
    )
    with pytest.raises(OSError, match="has no .*, so it is no classifier"):
        from_classifier(tmp_path / "1")


def test_training_leaves_the_last_exit_as_it_is(classifier):
    model, batch = from_classifier(classifier).train(), tiny_batch(4)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    model(**batch, labels=torch.tensor([0, 1, 2, 1])).loss.backward()
    optimizer.step()
    moved = {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}
    assert moved and not any(name.startswith("backbone") or ".5." in name for name in moved)


def test_a_loss_of_the_classifiers_own_head_alone_is_refused_by_name(classifier):
    model, labels = from_classifier(classifier).train(), torch.tensor([0, 1, 2, 1])
    answers = torch.nn.functional.cross_entropy(model(**tiny_batch(4)).logits, labels)
    with pytest.raises(ValueError, match="of outputs.logits.*every exit learns from"):
        answers.backward()
    output = model(**tiny_batch(4), labels=labels)
    (output.loss + output.logits.square().mean()).backward()
    assert model.exits.classifiers[0].weight.grad.any() and model.exits.classifiers[5].weight.grad is None


def test_training_resumes_and_loads_its_best_model(classifier, tmp_path):
    from train_script import new_trainer, tiny_data, weights

    every = {"max_steps": 3, "save_strategy": "steps", "save_steps": 1, "per_device_train_batch_size": 4}
    best = {"eval_strategy": "steps", "eval_steps": 1, "load_best_model_at_end": True}
    torch.manual_seed(0)
    model, data = from_classifier(classifier), tiny_data(8)
    trainer = new_trainer(model, tmp_path, evaluation=data, **every, **best)
    trainer.train()
    chosen = PFBerxitForSequenceClassification.from_pretrained(trainer.state.best_model_checkpoint)
    assert all(map(torch.equal, weights(model).values(), weights(chosen).values()))
    again = from_classifier(classifier)
    resumed = new_trainer(again, tmp_path, **every)
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-3"))
    last = PFBerxitForSequenceClassification.from_pretrained(tmp_path / "checkpoint-3")
    assert all(map(torch.equal, weights(again).values(), weights(last).values()))


def test_weights_without_the_kept_head_or_with_it_are_taken_and_others_refused(classifier, tmp_path):
    from safetensors.torch import load_file

    model = from_classifier(classifier)
    model.save_pretrained(tmp_path)
    stored = load_file(tmp_path / "model.safetensors")
    for given in (stored, model.state_dict()):
        model.load_state_dict(given, strict=False)
    with pytest.raises(ValueError, match="exits.classifiers.0.bias, they lack one"):
        model.load_state_dict({name: each for name, each in stored.items() if "s.0.bias" not in name}, strict=False)
    with pytest.raises(ValueError, match="none of its names is one of this model's, 'module.exits"):  # inside DDP
        model.load_state_dict({f"module.{name}": each for name, each in stored.items()}, strict=False)


def test_token_first_reads_one_position_at_the_last_layer_and_answers_alike(classifier):
    batch, policy = tiny_batch(24), {"criterion": "max_prob", "threshold": 0.55, "patience": 1}
    for pooling in ("cls", "mean", "both"):
        torch.manual_seed(0)
        model = from_classifier(classifier, exit_pooling=pooling)
        together = model(**batch, exit_policy=policy)
        for row in range(4):
            size = int(batch["attention_mask"][row].sum())
            alone = model(input_ids=batch["input_ids"][row : row + 1, :size], exit_policy=policy)
            assert alone.exit_layer[0] == together.exit_layer[row]
            torch.testing.assert_close(alone.logits[0], together.logits[row], rtol=1e-4, atol=1e-5)


def test_what_is_no_classifier_or_exits_early_already_is_refused_by_name(classifier, local_backbone, tmp_path):
    from_classifier(classifier).save_pretrained(tmp_path / "early")
    with pytest.raises(ValueError, match="early.*exits early already"):
        from_classifier(tmp_path / "early")
    with pytest.raises(ValueError, match="BertModel.*ForSequenceClassification"):
        from_classifier(local_backbone)
    BertForTokenClassification(tiny_config()).save_pretrained(tmp_path / "tokens")
    with pytest.raises(ValueError, match="BertForTokenClassification"):
        from_classifier(tmp_path / "tokens")


@pytest.mark.parametrize(("name", "value"), [
    ("adapter_placement", "ffn"), ("prompt_generator", "table"), ("last_exit", "alike"), ("num_labels", 5),
    ("problem_type", "regression"), ("exit_shared", True), ("exit_pooler", "backbone"), ("exit_pooler_dimm", 3),
    ("token_exits", True), ("system", "hashee"), ("system", "pabee"),
])  # fmt: skip
def test_knobs_that_would_change_the_classifier_are_refused_by_name(name, value, classifier):
    with pytest.raises(ValueError, match=name):
        from_classifier(classifier, **{name: value})


@pytest.mark.parametrize("pooler", ["none", "own", "bottleneck", "classifier"])
@pytest.mark.parametrize("pooling", ["cls", "mean", "both"])
def test_inner_exits_may_be_other_heads(pooler, pooling, classifier):
    model, batch = from_classifier(classifier, exit_pooler=pooler, exit_pooling=pooling), tiny_batch(4)
    assert model(**batch).exit_logits.shape == (4, 6, 3)
    torch.testing.assert_close(model(**batch).logits, stock_logits(classifier, batch), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("pooling", ["bos", "late"])
def test_eurobert_s_head_reads_what_its_config_says_or_is_refused(pooling, tmp_path):
    folder, batch = save_classifier(tmp_path, "eurobert", classifier_pooling=pooling), tiny_batch(4)
    if pooling == "late":
        with pytest.raises(ValueError, match="classifier_pooling='late'"):
            from_classifier(folder)
    else:
        torch.testing.assert_close(
            from_classifier(folder)(**batch).logits, stock_logits(folder, batch), rtol=1e-4, atol=1e-5
        )


def test_every_description_is_the_stock_heads():
    from transformers import DebertaV2Config, ModernBertConfig

    size = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
    more = {
        heads.deberta_head: DebertaV2Config(
            vocab_size=VOCABULARY, relative_attention=True, pos_att_type=["p2c"], **size
        ),
        heads.modernbert_head: ModernBertConfig(
            vocab_size=VOCABULARY, pad_token_id=0, classifier_pooling="mean", **size
        ),
    }
    known = [make() for make in CONFIGS.values() if FAMILIES[make().model_type].head]
    for config, head in [
        *((each, classifier_head(each)) for each in known),
        *((c, make(c)) for make, c in more.items()),
    ]:
        stock = AutoModelForSequenceClassification.from_config(config)
        weights = stock.state_dict()
        own = {name for part in head.names.values() for name in weights if name.rpartition(".")[0] == part}
        outside = {name for name in weights if not name.startswith(stock.base_model_prefix)}
        assert outside <= own and all(any(name.startswith(part) for name in own) for part in head.names.values())
        assert ("poolers" in head.names) == (head.dense is not None)


def test_pipelines_take_it(tmp_path):
    from transformers import pipeline

    labels = {0: "contradiction", 1: "neutral", 2: "entailment"}
    folder = save_classifier(tmp_path / "classifier", id2label=labels, label2id={v: k for k, v in labels.items()})
    from_classifier(folder).save_pretrained(tmp_path / "saved")
    AutoTokenizer.from_pretrained(folder).save_pretrained(tmp_path / "saved")
    texts = ["w1 w2 w3", "w9 w8"]
    for task, options in (
        ("text-classification", {}),
        ("zero-shot-classification", {"candidate_labels": ["w4", "w5"]}),
    ):
        ours, stock = (
            pipeline(task, model=str(name))(texts, **options) for name in (tmp_path / "saved", folder)
        )  # fmt: skip
        for answer, other in zip(ours, stock, strict=True):
            assert answer == {key: pytest.approx(value, abs=1e-4) if key.startswith("score") else value
                              for key, value in other.items()}  # fmt: skip


@pytest.mark.parametrize("written", ["in its config", "by itself"])
@pytest.mark.parametrize("activation", ["torch.nn.modules.activation.Sigmoid", "torch.nn.modules.linear.Identity"])
def test_cross_encoders_take_a_reranker_with_what_its_values_mean(activation, written, tmp_path):
    cross = pytest.importorskip("sentence_transformers").CrossEncoder
    folder = Path(save_classifier(tmp_path / "classifier", num_labels=1))
    if written == "in its config":
        config = json.loads((folder / "config.json").read_text())
        config["sentence_transformers"] = {"activation_fn": activation, "version": "5.0.0"}
        (folder / "config.json").write_text(json.dumps(config))
    else:
        chosen = torch.nn.Sigmoid() if activation.endswith("Sigmoid") else torch.nn.Identity()
        cross(str(folder), device="cpu", activation_fn=chosen).save_pretrained(str(folder))
    from_classifier(folder).save_pretrained(tmp_path / "saved")
    AutoTokenizer.from_pretrained(folder).save_pretrained(tmp_path / "saved")
    pairs = [("w1 w2", "w3"), ("w4", "w5 w6")]
    ours, stock = (cross(str(name), device="cpu").predict(pairs) for name in (tmp_path / "saved", folder))
    assert ((stock > 0) & (stock < 1)).all() == activation.endswith("Sigmoid")
    torch.testing.assert_close(torch.tensor(ours), torch.tensor(stock), rtol=1e-4, atol=1e-5)


def test_labels_that_are_numbers_stay_so_and_commands_read_them_as_their_names(tmp_path):
    folder = save_classifier(tmp_path / "classifier", id2label={0: 1, 1: 2, 2: 3}, label2id={1: 0, 2: 1, 3: 2})
    model = from_classifier(folder)
    assert model.config.id2label == {0: 1, 1: 2, 2: 3} and label_names(model.config) == ["1", "2", "3"]
    (tmp_path / "data.csv").write_text("text,label\n" + "w1,1\nw2,3\nw3,2\n")
    task, rows = load_task(str(tmp_path / "data.csv"), split="train", model=model)
    assert targets(task, rows["train"], "train") == [0, 2, 1]
    assert joined_labels(torch.tensor([[True, False, True]]), task.labels) == ["1;3"]


def with_fields(classifier: str, folder: Path, **fields) -> str:
    """A copy of a classifier with other fields in its config."""
    shutil.copytree(classifier, folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **fields}))
    return str(folder)


def test_quantised_weights_are_refused_by_their_method(classifier, tmp_path):
    folder = with_fields(classifier, tmp_path / "quantised", quantization_config={"quant_method": "bitsandbytes"})
    for load in (from_classifier, PFBerxitForSequenceClassification.from_backbone):
        with pytest.raises(ValueError, match="quantised' has quantised weights .bitsandbytes., which .* does not read"):
            load(folder)


def test_what_a_classifiers_config_says_of_its_outputs_is_kept_or_said_to_be_left_behind(classifier, tmp_path, caplog):
    batch = tiny_batch(3)
    model = from_classifier(with_fields(classifier, tmp_path / "tuples", return_dict=False))
    assert [each.shape for each in model(**batch)] == [(3, 3)] and "left behind" not in caplog.text
    assert len(model(**batch, return_dict=False)) > 1  # with exit_layer
    assert record(model, [batch]).evidence.logits.shape == (3, 6, 3)
    model = from_classifier(with_fields(classifier, tmp_path / "states", output_hidden_states=True))
    assert model(**batch).hidden_states is None and "output_hidden_states: left behind" in caplog.text


def test_weights_in_pickles_alone_are_refused_with_what_makes_safetensors(classifier, tmp_path):
    shutil.copytree(classifier, tmp_path / "old")
    weights = load_file(tmp_path / "old/model.safetensors")
    torch.save(weights, tmp_path / "old/pytorch_model.bin")
    from_classifier(tmp_path / "old")
    (tmp_path / "old/model.safetensors").unlink()
    with pytest.raises(OSError, match="pytorch_model.bin alone; save_pretrained of its own class makes safetensors"):
        from_classifier(tmp_path / "old")


def test_truncated_it_ends_in_the_exit_there(classifier):
    from modeling_pfberxit.training import truncate

    model, batch = from_classifier(classifier), tiny_batch(4)
    torch.testing.assert_close(truncate(model, 3)(**batch).logits, model(**batch).exit_logits[:, 2])
    torch.testing.assert_close(truncate(model, 6)(**batch).logits, model(**batch).logits)


IN_A_FRESH_PROCESS = """
import torch
from transformers import AutoModelForSequenceClassification
model = AutoModelForSequenceClassification.from_pretrained(sys.argv[2], trust_remote_code=True)
assert type(model).__module__.startswith("transformers_modules.")
batch = torch.load(sys.argv[3])
with torch.no_grad():
    report(model(**batch).logits.tolist())
"""


def test_from_the_hub_it_is_pinned_by_commit_and_loads_as_remote_code(classifier, hub, without_package, tmp_path):
    from hub_server import read_folder

    commit = hub.commit("acme/tiny-classifier", read_folder(classifier))
    model, batch = from_classifier("acme/tiny-classifier"), tiny_batch(4)
    model.save_pretrained(tmp_path / "saved")
    assert model.config.base_model_revision == commit
    torch.save(batch, tmp_path / "batch.pt")
    found = without_package(IN_A_FRESH_PROCESS, str(tmp_path / "saved"), str(tmp_path / "batch.pt"))
    torch.testing.assert_close(torch.tensor(found), stock_logits(classifier, batch), rtol=1e-4, atol=1e-5)
