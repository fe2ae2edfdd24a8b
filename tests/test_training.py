"""Fine-tuning with the stock `Trainer`: what learns, what stays, what is saved and what comes back."""

import logging
from itertools import product
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from tiny import CHECKPOINTING, CONFIGS, LAYERS, save_backbone, tiny_model
from torch.nn import functional as F
from torch.testing import assert_close
from train_script import CLASSES, NO_DROPOUT, PLAIN_SGD, new_model, new_trainer, tiny_data, weights
from transformers import AutoModel, Trainer, set_seed
from transformers.utils.logging import warning_once

from modeling_pfberxit import PFBerxitForSequenceClassification
from modeling_pfberxit.model.adapters import OutputNorm
from modeling_pfberxit.model.blueprint import rebuilt

PROBLEMS = ["single_label_classification", "multi_label_classification", "regression"]
EARLY = {"criterion": "patience", "patience": 1}


@pytest.fixture(scope="module")
def encoders(tmp_path_factory):
    """Folders with a tiny encoder: with dropout, and without ("-plain")."""
    folder = tmp_path_factory.mktemp("encoders")
    dropout = {name: 0.1 for name in NO_DROPOUT}
    return {
        f"{family}{kind}": save_backbone(folder / f"{family}{kind}", family, **rates)
        for family, (kind, rates) in product(("albert", "bert"), (("", dropout), ("-plain", NO_DROPOUT)))
    }


@pytest.fixture
def warnings(caplog):
    """What the library warned of during this test, whatever warned once before."""
    warning_once.cache_clear()
    caplog.set_level(logging.WARNING)
    return lambda text: [record.getMessage() for record in caplog.records if text in record.getMessage()]


def batch_of(data, rows: int | None = None) -> dict[str, torch.Tensor]:
    return {name: torch.tensor(values) for name, values in data[: rows or len(data)].items()}


def logits_of(model, data, policy) -> np.ndarray:
    inputs = {name: values for name, values in batch_of(data).items() if name != "labels"}
    with torch.no_grad():
        return model.eval()(**inputs, exit_policy=policy).logits.numpy()


def losses(trainer) -> list[float]:
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]


def gradients(model, **batch) -> dict[str, torch.Tensor]:
    model.zero_grad()
    model(**batch).loss.backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def moved(before: dict, after: dict) -> set[str]:
    return {name for name in before if not torch.equal(before[name], after[name])}


# ---- what learns ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", ["albert", "bert"])
@pytest.mark.parametrize("problem_type", PROBLEMS)
def test_the_loss_goes_down(encoders, tmp_path, family, problem_type):
    knobs = {"num_labels": 1} if problem_type == "regression" else {}
    model = new_model(encoders[family], use_lte=True, **knobs)
    data = tiny_data(16, problem_type)
    trainer = new_trainer(model, tmp_path, data, max_steps=30, per_device_train_batch_size=16)
    trainer.train()
    assert model.config.problem_type == problem_type
    assert losses(trainer)[-1] < 0.7 * losses(trainer)[0]


@pytest.mark.parametrize("family", ["albert", "bert"])
def test_fine_tuning_leaves_the_frozen_backbone_bit_identical(encoders, tmp_path, family):
    model = new_model(encoders[family], exit_pooler="own", use_lte=True, adapter_placement="both")
    before = weights(model)
    new_trainer(model, tmp_path).train()
    stock = AutoModel.from_pretrained(encoders[family]).state_dict()
    backbone = model.backbone.state_dict()
    assert backbone and all(torch.equal(tensor, stock[name]) for name, tensor in backbone.items())
    assert moved(before, weights(model)) == {name for name in before if not name.startswith("backbone.")}


@pytest.mark.parametrize("family", ["albert", "bert"])
def test_train_backbone_moves_it(encoders, tmp_path, family):
    model = new_model(encoders[family], train_backbone=True)
    before = weights(model)
    new_trainer(model, tmp_path).train()
    assert {name for name in before if "key.bias" not in name} <= moved(before, weights(model))


def test_an_exit_threshold_does_not_change_what_is_learned(encoders, tmp_path):
    learned = []
    for knobs in ({}, {"exit_threshold": 100.0, "exit_patience": 1}):
        model = new_model(encoders["bert"], **knobs)
        new_trainer(model, tmp_path).train()
        learned.append(weights(model))
    assert not moved(*learned)
    assert (model.eval()(**batch_of(tiny_data())).exit_layer < LAYERS).all()


HEADS = {
    "plain": {},
    "backbone pooler": {"exit_pooler": "backbone"},
    "trained pooler": {"exit_pooler": "backbone", "train_pooler": True},
    "own pooler": {"exit_pooler": "own"},
    "shared": {"exit_shared": True, "exit_pooler": "own"},
    "lte": {"use_lte": True},
    "lte per exit": {"use_lte": True, "lte_shared": False},
    "some layers": {"exit_layers": [2, 3], "use_lte": True, "lte_shared": False, "exit_pooler": "own"},
    "one exit": {"exit_layers": [LAYERS]},
    "cls": {"exit_pooling": "cls"},
}
ADAPTERS = {
    **{
        f"{place}, {module}": {"adapter_placement": place, "adapter_sublearner": module}
        for place in ("ffn", "attention", "both", "sequential")
        for module in ("identity", "self_attention", "conv", "mlp")
    },
    "no adapter": {"adapter_placement": "none"},
    "kernel 1": {"adapter_sublearner": "conv", "adapter_conv_kernel": 1},
    "norm out": {"adapter_layer_norm": "out"},
    "norm none": {"adapter_layer_norm": "none"},
}
TRAINED = {
    **{family: {"family": family} for family in CONFIGS},
    "backbone pooler": {"exit_pooler": "backbone"},
    "own pooler": {"exit_pooler": "own"},
    "trained pooler": {"exit_pooler": "backbone", "train_pooler": True},
}


def trained_names(model) -> set[str]:
    return {name for name, parameter in model.named_parameters() if parameter.requires_grad}


@pytest.mark.parametrize("knobs", [*HEADS.values(), *ADAPTERS.values()], ids=[*HEADS, *ADAPTERS])
def test_every_adapter_and_every_exit_gets_a_gradient_and_nothing_else_does(knobs):
    model = tiny_model("bert", num_labels=CLASSES, **knobs).train()
    for norm in (module for module in model.modules() if isinstance(module, OutputNorm)):
        torch.nn.init.ones_(norm.weight)
    found = gradients(model, **batch_of(tiny_data()))
    assert found.keys() == trained_names(model) == {n for n, _ in model.named_parameters() if "backbone." not in n}
    # A bias on all keys alike cancels in the softmax, so its gradient is zero but for rounding.
    assert [name for name, grad in found.items() if not grad.any() and "key.bias" not in name] == []


@pytest.mark.parametrize("knobs", TRAINED.values(), ids=TRAINED)
def test_every_parameter_of_a_trained_backbone_gets_a_gradient(knobs):
    model = tiny_model(**{"family": "bert", "num_labels": CLASSES, "train_backbone": True, **knobs}).train()
    names = {name for name, _ in model.named_parameters()}
    assert gradients(model, **batch_of(tiny_data())).keys() == trained_names(model) == names


@pytest.mark.parametrize("knobs", [{"exit_pooler": "own"}, {"exit_pooler": "backbone"}], ids=["own", "backbone"])
@pytest.mark.parametrize("train_backbone", [False, True], ids=["frozen", "trained"])
def test_a_pretrained_encoder_brings_no_parameter_that_stays_unused(encoders, tmp_path, knobs, train_backbone):
    model = new_model(encoders["bert"], train_backbone=train_backbone, **knobs)
    model.save_pretrained(tmp_path)
    for one in (model, PFBerxitForSequenceClassification.from_pretrained(tmp_path)):
        assert gradients(one.train(), **batch_of(tiny_data())).keys() == trained_names(one)
        assert any(name.startswith("backbone.") for name in trained_names(one)) == train_backbone


# ---- accumulation, checkpointing, precision -------------------------------------------------------------------------


@pytest.mark.parametrize("knobs", [{}, {"use_lte": True, "exit_shared": True}], ids=["plain", "lte"])
def test_accumulated_gradients_make_the_step_of_one_large_batch(encoders, tmp_path, knobs):
    runs = {}
    for name, size, steps in (("large", 16, 1), ("accumulated", 4, 4), ("small", 4, 1)):
        model = new_model(encoders["bert-plain"], exit_dropout=0.0, **knobs)
        sizes = {"per_device_train_batch_size": size, "gradient_accumulation_steps": steps}
        trainer = new_trainer(model, tmp_path, tiny_data(16), max_steps=1, **PLAIN_SGD, **sizes)
        trainer.train()
        log = trainer.state.log_history[0]
        runs[name] = weights(model), torch.tensor([log["loss"], log["grad_norm"]])
    (large, large_log), (accumulated, accumulated_log), (small, _) = runs.values()
    for name in large:
        assert_close(accumulated[name], large[name], atol=1e-6, rtol=1e-5)
    assert_close(accumulated_log, large_log, atol=1e-4, rtol=1e-4)
    assert max((small[name] - large[name]).abs().max() for name in large) > 1e-3


@pytest.mark.parametrize("family", ["albert", "bert"])
@pytest.mark.parametrize("use_reentrant", [False, True, None], ids=["not reentrant", "reentrant", "default"])
@pytest.mark.parametrize("train_backbone", [False, True], ids=["frozen", "trained"])
def test_activation_checkpointing_gives_the_same_gradients(family, use_reentrant, train_backbone):
    changes = {name: 0.1 for name in NO_DROPOUT}
    knobs = {"adapter_dropout": 0.1, "adapter_sublearner": "self_attention", "train_backbone": train_backbone}
    model = tiny_model(family, num_labels=CLASSES, use_lte=True, backbone_changes=changes, **knobs).train()
    ran = []
    model.depths[0].ffn_adapter.register_forward_hook(lambda *_: ran.append(1))

    set_seed(0)
    expected = gradients(model, **batch_of(tiny_data()))
    assert len(ran) == 1
    getattr(model, f"{CHECKPOINTING}_enable")(None if use_reentrant is None else {"use_reentrant": use_reentrant})
    set_seed(0)
    found = gradients(model, **batch_of(tiny_data()))
    assert len(ran) == 3  # once more in the backward pass

    assert found.keys() == expected.keys() == trained_names(model)
    for name in expected:
        assert_close(found[name], expected[name], atol=1e-6, rtol=1e-4)
    set_seed(1)
    other = gradients(model, **batch_of(tiny_data()))
    assert max((other[name] - expected[name]).abs().max() for name in expected) > 1e-4


@pytest.mark.parametrize("family", ["albert", "bert"])
@pytest.mark.parametrize("use_reentrant", [False, True])
def test_trainer_with_activation_checkpointing_learns_the_same(encoders, tmp_path, family, use_reentrant):
    learned = []
    for on in (False, True):
        model = new_model(encoders[family])
        before = weights(model)
        kwargs = {"use_reentrant": use_reentrant}
        options = {CHECKPOINTING: on, f"{CHECKPOINTING}_kwargs": kwargs if on else None}
        new_trainer(model, tmp_path, max_steps=2, **PLAIN_SGD, **options).train()
        assert getattr(model, f"is_{CHECKPOINTING}") == on
        learned.append(weights(model))
    assert moved(before, learned[0])
    for name in before:
        assert_close(learned[1][name], learned[0][name], atol=1e-6, rtol=1e-5)


def exact_loss(exit_logits, labels, problem_type) -> torch.Tensor:
    """The exits' losses weighted by their depth, in the logits' own precision."""
    criterion = dict(zip(PROBLEMS, (F.cross_entropy, F.binary_cross_entropy_with_logits, F.mse_loss)))[problem_type]
    labels = labels.to(exit_logits.dtype) if labels.is_floating_point() else labels
    depths = range(1, LAYERS + 1)
    return sum(i * criterion(exit_logits[:, i - 1], labels) for i in depths) / sum(depths)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=["fp16", "bf16"])
@pytest.mark.parametrize("problem_type", PROBLEMS)
@pytest.mark.parametrize("checkpointing", [False, True], ids=["stored", "recomputed"])
def test_losses_and_gradients_are_fp32_under_autocast(dtype, problem_type, checkpointing):
    knobs = {"exit_dropout": 0.0, "backbone_changes": NO_DROPOUT}
    model = tiny_model(num_labels=CLASSES, problem_type=problem_type, use_lte=True, **knobs).train()
    if checkpointing:
        getattr(model, f"{CHECKPOINTING}_enable")()
    batch = batch_of(tiny_data(16, problem_type))
    if problem_type == "regression":
        batch["labels"] = torch.linspace(-1, 1, 16 * CLASSES).view(16, CLASSES)
    with torch.autocast("cpu", dtype=dtype):
        output = model(**batch)
    output.loss.backward()
    assert output.logits.dtype == output.exit_logits.dtype == dtype
    assert output.loss.dtype == torch.float32
    found = {name: parameter.grad for name, parameter in model.named_parameters() if parameter.grad is not None}
    assert found.keys() == trained_names(model)
    assert all(grad.dtype == torch.float32 and grad.isfinite().all() for grad in found.values())

    rebuilt(model, use_lte=False)
    with torch.autocast("cpu", dtype=dtype):
        loss = model(**batch).loss.double()
    exact = exact_loss(output.exit_logits.double(), batch["labels"], problem_type)
    rough = exact_loss(output.exit_logits, batch["labels"], problem_type).double()
    assert (loss - exact).abs() < 1e-6 * exact < 1e-5 * exact < (rough - exact).abs()


def test_a_bf16_model_has_an_fp32_loss():
    model = tiny_model(num_labels=CLASSES).to(torch.bfloat16).train()
    output = model(**batch_of(tiny_data()))
    output.loss.backward()
    assert output.loss.dtype == torch.float32 and output.logits.dtype == torch.bfloat16
    assert {name for name, p in model.named_parameters() if p.grad is not None} == trained_names(model)


def test_trainer_trains_in_bf16(encoders, tmp_path):
    model = new_model(encoders["bert"], use_lte=True)
    before = weights(model)
    trainer = new_trainer(model, tmp_path, bf16=True, max_steps=20)
    trainer.train()
    assert {tensor.dtype for tensor in weights(model).values() if tensor.is_floating_point()} == {torch.float32}
    assert moved(before, weights(model)) == trained_names(model)
    assert losses(trainer)[-1] < losses(trainer)[0]


# ---- labels and their smoothing -------------------------------------------------------------------------------------


def of_the_last_exit(outputs, labels, **kwargs) -> torch.Tensor:
    return F.cross_entropy(outputs.logits, labels, weight=torch.tensor([1.0, 2.0, 3.0]))


def of_every_exit(outputs, labels, **kwargs) -> torch.Tensor:
    return sum(F.cross_entropy(logits, labels) for logits in outputs.exit_logits.unbind(1))


class Weighted(Trainer):
    """Weighs classes as the `Trainer`'s documentation does."""

    def compute_loss(self, model, inputs, return_outputs=False, **kwargs):
        outputs = model(**inputs)
        loss = of_the_last_exit(outputs, inputs["labels"])
        return (loss, outputs) if return_outputs else loss


LAST_EXIT_ALONE = {
    "compute_loss": (Weighted, {}, {}),
    "compute_loss_func": (Trainer, {"compute_loss_func": of_the_last_exit}, {}),
    "label smoothing": (Trainer, {}, {"label_smoothing_factor": 0.1}),
    "autocast": (Trainer, {"compute_loss_func": of_the_last_exit}, {"bf16": True}),
    "checkpointing": (Weighted, {}, {CHECKPOINTING: True}),
    "accumulation": (Weighted, {}, {"gradient_accumulation_steps": 2}),
}


@pytest.mark.parametrize("trainer_class, given, arguments", LAST_EXIT_ALONE.values(), ids=LAST_EXIT_ALONE)
def test_a_loss_that_reaches_the_last_exit_alone_is_refused_at_the_first_step(
    encoders, tmp_path, trainer_class, given, arguments
):
    model = new_model(encoders["bert"])
    before = weights(model)
    trainer = new_trainer(model, tmp_path, trainer_class=trainer_class, given=given, **arguments)
    with pytest.raises(ValueError, match=r"every exit learns from.*class_weights.*model\.exit_loss.*exit_logits"):
        trainer.train()
    assert not moved(before, weights(model))


EVERY_EXIT = {
    "its own": lambda output, labels: output.loss,
    "accumulated": lambda output, labels: output.loss / 4,
    "of all logits": lambda output, labels: of_every_exit(output, labels),
    "its own and one of the answers": lambda output, labels: output.loss + F.cross_entropy(output.logits, labels) / 2,
    "the answers' first": lambda output, labels: output.logits.square().mean() + 0.5 * output.loss.exp(),
    "of all logits and one of the answers": lambda output, labels: (
        of_the_last_exit(output, labels) + of_every_exit(output, labels)
    ),
}


@pytest.mark.parametrize("loss", EVERY_EXIT.values(), ids=EVERY_EXIT)
def test_a_loss_of_one_s_own_that_reaches_every_exit_is_welcome(loss):
    model, batch = tiny_model(num_labels=CLASSES).train(), batch_of(tiny_data())
    loss(model(**batch), batch["labels"]).backward()
    assert {name for name, p in model.named_parameters() if p.grad is not None} == trained_names(model)


@pytest.mark.parametrize(
    "knobs", [{"exit_layers": [LAYERS]}, {"training_strategy": "two_stage"}], ids=["one exit", "stage 1"]
)
def test_where_only_the_last_exit_learns_a_loss_of_its_logits_will_do(knobs):
    model, batch = tiny_model(num_labels=CLASSES, **knobs).train(), batch_of(tiny_data())
    of_the_last_exit(model(**batch), batch["labels"]).backward()
    assert model.exits.classifiers[-1].weight.grad.any()


def test_gradients_of_the_answers_can_be_had_in_evaluation():
    model, batch = tiny_model(num_labels=CLASSES), batch_of(tiny_data())
    of_the_last_exit(model(**batch), batch["labels"]).backward()
    assert model.exits.classifiers[-1].weight.grad.any()


def test_training_with_labels_does_not_warn(encoders, tmp_path, warnings):
    new_trainer(new_model(encoders["bert"], label_smoothing=0.1), tmp_path, max_steps=1).train()
    assert warnings("labels") == []


@pytest.mark.parametrize("problem_type", PROBLEMS[:2])
def test_label_smoothing_reaches_every_exit(problem_type):
    model = tiny_model(num_labels=CLASSES, exit_dropout=0.0, backbone_changes=NO_DROPOUT).train()
    batch = batch_of(tiny_data(16, problem_type))
    plain = gradients(model, **batch)
    assert not moved(plain, gradients(model, **batch))
    model.config.label_smoothing = 0.2
    smoothed = gradients(model, **batch)
    for depth in range(LAYERS):
        name = f"exits.classifiers.{depth}.weight"
        assert (plain[name] - smoothed[name]).abs().max() > 1e-3


# ---- what is saved --------------------------------------------------------------------------------------------------

SAVING = {"max_steps": 4, "save_strategy": "steps", "save_steps": 2}


def checkpoint_names(folder) -> list[str]:
    return sorted(path.name for path in Path(folder).glob("checkpoint-*"))


def test_checkpoints_hold_no_backbone_weight(encoders, tmp_path):
    model = new_model(encoders["albert"], use_lte=True, exit_pooler="own")
    new_trainer(model, tmp_path, **SAVING).train()
    assert checkpoint_names(tmp_path) == ["checkpoint-2", "checkpoint-4"]
    for checkpoint in tmp_path.glob("checkpoint-*"):
        [file] = checkpoint.glob("*.safetensors")
        assert load_file(file).keys() == trained_names(model)
        optimizer = torch.load(checkpoint / "optimizer.pt", weights_only=True)
        assert len(optimizer["state"]) == len(trained_names(model))
    reloaded = PFBerxitForSequenceClassification.from_pretrained(tmp_path / "checkpoint-4")
    assert not moved(weights(model), weights(reloaded))


def test_checkpoints_of_a_trained_backbone_hold_all_of_it(encoders, tmp_path):
    model = new_model(encoders["albert"], train_backbone=True)
    new_trainer(model, tmp_path, **SAVING).train()
    held = load_file(tmp_path / "checkpoint-4" / "model.safetensors")
    assert {name for name, _ in model.named_parameters()} <= held.keys()
    reloaded = PFBerxitForSequenceClassification.from_pretrained(tmp_path / "checkpoint-4")
    assert not moved(weights(model), weights(reloaded))


@pytest.mark.parametrize("train_backbone", [False, True], ids=["frozen", "trained"])
def test_the_best_model_is_loaded_at_the_end(encoders, tmp_path, warnings, monkeypatch, train_backbone):
    scores = iter([0.9, 0.1])
    trainer = new_trainer(
        model := new_model(encoders["bert"], train_backbone=train_backbone),
        tmp_path,
        evaluation=tiny_data(8, seed=1),
        compute_metrics=lambda prediction: {"score": next(scores)},
        eval_strategy="steps",
        eval_steps=2,
        load_best_model_at_end=True,
        metric_for_best_model="score",
        **SAVING,
    )
    monkeypatch.setattr(logging.getLogger("transformers"), "propagate", True)
    trainer.train()
    assert warnings("missing keys") == []
    load = PFBerxitForSequenceClassification.from_pretrained
    best, last = (load(tmp_path / f"checkpoint-{step}") for step in (2, 4))
    assert not moved(weights(model), weights(best))
    assert moved(weights(model), weights(last))


def files(folder) -> list[Path]:
    return [path for path in Path(folder).rglob("*") if path.is_file()]


UNFROZEN = {
    "backbone": lambda model: model.backbone,
    "embeddings": lambda model: model.backbone.embeddings,
    "one norm": lambda model: model.backbone.encoder.layer[2].output.LayerNorm,
}


@pytest.mark.parametrize("part", UNFROZEN.values(), ids=UNFROZEN)
def test_an_encoder_unfrozen_by_hand_is_refused_by_name_before_it_moves(encoders, tmp_path, part):
    model = new_model(encoders["bert"])
    part(model).requires_grad_(True)
    name = next(name for name, parameter in model.backbone.named_parameters("backbone") if parameter.requires_grad)
    before, trainer = weights(model), new_trainer(model, tmp_path, **SAVING)
    with pytest.raises(ValueError, match=f"^adapter_only=True: must be False to train {name}"):
        trainer.train()
    assert not moved(before, weights(model)) and files(tmp_path) == []

    model.config.adapter_only = False
    trainer.train()
    trainer.save_model(tmp_path / "whole")
    reloaded = PFBerxitForSequenceClassification.from_pretrained(tmp_path / "whole")
    assert moved(before, weights(model)) >= {name} and not moved(weights(model), weights(reloaded))


def test_an_encoder_unfrozen_in_the_course_of_a_run_is_refused_as_well(encoders):
    model, batch = new_model(encoders["bert"]).train(), batch_of(tiny_data())
    model(**batch).loss.backward()
    model.backbone.encoder.layer[5].requires_grad_(True)
    with pytest.raises(ValueError, match="adapter_only=True"):
        model(**batch)


def test_exits_frozen_by_hand_are_refused_by_name_where_they_should_learn():
    model, batch = tiny_model(num_labels=CLASSES).train(), batch_of(tiny_data())
    model.exits.requires_grad_(False)
    with pytest.raises(ValueError, match="^exits='frozen': must be trained"):
        model(**batch)
    with torch.no_grad():  # nothing learns here
        model(**batch)
    model.exits.classifiers[1].requires_grad_(True)
    model(**batch).loss.backward()
    model.eval()(**batch)


def test_a_backbone_that_was_trained_and_frozen_again_is_refused_as_well(encoders, tmp_path):
    model = new_model(encoders["bert"])
    before = weights(model)
    model.backbone.requires_grad_(True)
    model.config.adapter_only = False
    trainer = new_trainer(model, tmp_path, max_steps=2)
    trainer.train()
    model.backbone.requires_grad_(False)
    model.config.adapter_only = True
    assert any(name.startswith("backbone.") for name in moved(before, weights(model)))
    with pytest.raises(ValueError, match="adapter_only=True"):
        trainer.save_model(tmp_path / "adapters")
    assert files(tmp_path) == []


# ---- what comes back ------------------------------------------------------------------------------------------------


def test_predict_returns_plain_logits(encoders, tmp_path):
    model, data = new_model(encoders["bert"]), tiny_data(10, seed=1)
    prediction = new_trainer(model, tmp_path).predict(data)
    assert isinstance(prediction.predictions, np.ndarray) and prediction.predictions.shape == (10, CLASSES)
    assert_close(prediction.predictions, logits_of(model, data, None), atol=1e-5, rtol=0)
    assert np.array_equal(prediction.label_ids, data["labels"])


@pytest.mark.parametrize("early", [False, True], ids=["full depth", "early"])
def test_predict_returns_the_rest_when_nothing_is_ignored(encoders, tmp_path, early):
    model, data = new_model(encoders["bert"]), tiny_data(10, seed=1)
    trainer = new_trainer(model, tmp_path)
    trainer.train()
    if early:
        model.config.update({f"exit_{name}": value for name, value in EARLY.items()})
    logits, exit_layer, *rest = trainer.predict(data, ignore_keys=[]).predictions
    assert logits.shape == (10, CLASSES) and exit_layer.shape == (10,)
    if early:
        assert rest == [] and exit_layer.min() < LAYERS
    else:
        [exit_logits] = rest
        assert (exit_layer == LAYERS).all() and exit_logits.shape == (10, LAYERS, CLASSES)
        assert np.array_equal(exit_logits[:, -1], logits)


@pytest.mark.parametrize("early", [False, True], ids=["full depth", "early"])
def test_evaluation_during_training_runs_at_the_depth_the_config_says(encoders, tmp_path, early):
    data, seen = tiny_data(10, seed=1), []

    def keep(prediction):
        seen.append(prediction.predictions)
        return {"accuracy": float((prediction.predictions.argmax(-1) == prediction.label_ids).mean())}

    policy = {"threshold": 100.0, "patience": 1}
    model = new_model(encoders["bert"], **{f"exit_{name}": value for name, value in policy.items()} if early else {})
    trainer = new_trainer(
        model, tmp_path, evaluation=data, compute_metrics=keep, eval_strategy="steps", eval_steps=3, max_steps=6
    )
    trainer.train()
    assert len(seen) == 2 and not np.array_equal(*seen)
    full, quick = logits_of(model, data, {"criterion": None}), logits_of(model, data, policy)
    assert np.abs(full - quick).max() > 1e-3
    assert_close(seen[-1], quick if early else full, atol=1e-5, rtol=0)
    [*_, log] = [entry for entry in trainer.state.log_history if "eval_loss" in entry]
    losses_of = [F.cross_entropy(torch.tensor(x), torch.tensor(data["labels"])).item() for x in (full, quick)]
    assert abs(losses_of[1] - losses_of[0]) > 1e-3
    # At full depth the loss is that of all exits.
    expected = losses_of[1] if early else model(**batch_of(data)).loss.item()
    assert log["eval_loss"] == pytest.approx(expected, abs=1e-4)
