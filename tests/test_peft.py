"""LoRA and its relatives by PEFT: exits learn with them, are saved with them, or are refused by name."""

import logging

import pytest
import torch
from peft import (
    IA3Config,
    LNTuningConfig,
    LoraConfig,
    PeftConfig,
    PeftModel,
    PromptTuningConfig,
    get_peft_model,
    inject_adapter_in_model,
)
from tiny import LAYERS, save_backbone, tiny_batch
from torch.testing import assert_close
from train_script import CLASSES, NO_DROPOUT, new_trainer, tiny_data, weights
from transformers.utils.logging import warning_once

from modeling_pfberxit import PFBerxitForSequenceClassification
from modeling_pfberxit.training import StrategyCallback

pytestmark = pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")  # PEFT still asks for it
QUERY_VALUE = {"r": 4, "target_modules": ["query", "value"]}
BATCH = tiny_batch(8)
LABELS = torch.arange(8) % CLASSES


@pytest.fixture(scope="module")
def encoder(tmp_path_factory) -> str:
    return save_backbone(tmp_path_factory.mktemp("encoders") / "bert", "bert", **NO_DROPOUT)


def new(encoder: str, seed: int = 0, **knobs) -> PFBerxitForSequenceClassification:
    torch.manual_seed(seed)
    knobs = {"adapter_dim": 8, "num_labels": CLASSES, "exit_dropout": 0.0, **knobs}
    return PFBerxitForSequenceClassification.from_backbone(encoder, **knobs)


def fit(model: torch.nn.Module, steps: int = 8) -> list[float]:
    """The loss before every step."""
    optimizer, losses = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], 2e-2), []
    for _ in range(steps):
        loss = model.train()(**BATCH, labels=LABELS).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


@torch.no_grad()
def answers(model: torch.nn.Module) -> torch.Tensor:
    return model.eval()(**BATCH).exit_logits


def learned(model: torch.nn.Module) -> set[str]:
    """The parts of the model that learn: `lora`, `exits`, `ffn_adapter` ..."""
    names = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    parts = ("lora_", "ia3_", "exits.", "ffn_adapter.", "attention_adapter.", "prompts.", "ln_tuning", "prompt_encoder")
    assert all(any(part in name for part in parts) for name in names)
    return {part.strip("._") for part in parts if any(part in name for name in names)}


NONE, BOTH = {"adapter_placement": "none"}, {"adapter_placement": "both", "use_lte": True, "exit_pooler": "own"}
EVERYTHING = ["exits", "ffn_adapter", "attention_adapter"]
PROMPTS = {"num_layers": LAYERS, "token_dim": 32, "num_attention_heads": 4, "num_transformer_submodules": 1}
LEARN = {  # config, knobs of the model, what learns beside the exits
    "a classifier": (lambda: LoraConfig(task_type="SEQ_CLS", **QUERY_VALUE), {}, {"lora"}),
    "a classifier without adapters": (lambda: LoraConfig(task_type="SEQ_CLS", **QUERY_VALUE), NONE, {"lora"}),
    "exits named": (lambda: LoraConfig(task_type="SEQ_CLS", modules_to_save=["exits"], **QUERY_VALUE), {}, {"lora"}),
    "no task": (lambda: LoraConfig(modules_to_save=["exits"], **QUERY_VALUE), {}, {"lora"}),
    "features": (
        lambda: LoraConfig(task_type="FEATURE_EXTRACTION", modules_to_save=["exits"], **QUERY_VALUE), {}, {"lora"},
    ),
    "adapters as well": (
        lambda: LoraConfig(task_type="SEQ_CLS", modules_to_save=EVERYTHING, **QUERY_VALUE), BOTH,
        {"lora", "ffn_adapter", "attention_adapter"},
    ),
    "all linear": (
        lambda: LoraConfig(
            task_type="SEQ_CLS", r=4, target_modules="all-linear", modules_to_save=["exits", "ffn_adapter"]
        ), {}, {"lora", "ffn_adapter"},
    ),
    "all linear without adapters": (
        lambda: LoraConfig(task_type="SEQ_CLS", r=4, target_modules="all-linear", modules_to_save=["exits"]), NONE,
        {"lora"},
    ),
    "late prompts": (
        lambda: LoraConfig(task_type="SEQ_CLS", modules_to_save=["prompts"], **QUERY_VALUE),
        {"prompt_generator": "table", "prompt_layer": 2, **NONE}, {"lora", "prompts"},
    ),
    "ia3": (
        lambda: IA3Config(task_type="SEQ_CLS", target_modules=["key", "value"], feedforward_modules=[]), {}, {"ia3"},
    ),
    "norms": (lambda: LNTuningConfig(task_type="SEQ_CLS", target_modules=["LayerNorm"]), {}, {"ln_tuning"}),
    "prompts of PEFT's": (
        lambda: PromptTuningConfig(task_type="SEQ_CLS", num_virtual_tokens=3, modules_to_save=["exits"], **PROMPTS), {},
        {"prompt_encoder"},
    ),
}  # fmt: skip


@pytest.mark.parametrize("config, knobs, beside", LEARN.values(), ids=LEARN)
def test_exits_learn_and_come_back(encoder, tmp_path, config, knobs, beside):
    model = get_peft_model(new(encoder, **knobs), config())
    assert learned(model) == {"exits", *beside}
    before = weights(model)
    losses = fit(model)
    assert losses[-1] < 0.98 * losses[0]
    after = weights(model)
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert all(any(f"{part}" in name for name in moved) for part in ("exits", *beside))
    for number in range(LAYERS):
        assert any(name.endswith(f"classifiers.{number}.weight") for name in moved)
    found = answers(model)
    model.save_pretrained(tmp_path)
    again = PeftModel.from_pretrained(new(encoder, seed=1, **knobs), tmp_path)
    assert not torch.allclose(answers(new(encoder, seed=1, **knobs)), found, atol=1e-3)
    assert_close(answers(again), found)


def test_what_lora_learned_acts_in_every_layer(encoder):
    model = get_peft_model(new(encoder, **NONE), LoraConfig(task_type="SEQ_CLS", **QUERY_VALUE))
    plain = answers(model)
    layers = model.get_base_model().backbone.encoder.layer
    for number, layer in enumerate(layers):
        with torch.no_grad():
            layer.attention.self.value.lora_B["default"].weight.normal_()
        changed = [not torch.equal(a, b) for a, b in zip(answers(model).unbind(1), plain.unbind(1))]
        assert changed == [exit >= number for exit in range(LAYERS)]
        torch.nn.init.zeros_(layer.attention.self.value.lora_B["default"].weight)
    with model.disable_adapter():
        assert_close(answers(model), plain)


REFUSED = {  # config, knobs, the line that the refusal says to write
    "no task": (lambda **more: LoraConfig(**QUERY_VALUE, **more), {}, ["exits"]),
    "features": (lambda **more: LoraConfig(task_type="FEATURE_EXTRACTION", **QUERY_VALUE, **more), {}, ["exits"]),
    "all linear": (
        lambda **more: LoraConfig(task_type="SEQ_CLS", r=4, target_modules="all-linear", **more), {},
        ["exits", "ffn_adapter"],
    ),
    "all linear without adapters": (
        lambda **more: LoraConfig(task_type="SEQ_CLS", r=4, target_modules="all-linear", **more), NONE, ["exits"],
    ),
    "ia3": (
        lambda **more: IA3Config(target_modules=["key", "value"], feedforward_modules=[], **more), {}, ["exits"],
    ),
    "late prompts": (
        lambda **more: LoraConfig(task_type="SEQ_CLS", **QUERY_VALUE, **more),
        {"prompt_generator": "npg", "prompt_layer": 2}, ["exits", "prompts"],
    ),
    "prompts of PEFT's": (
        lambda **more: PromptTuningConfig(task_type="SEQ_CLS", num_virtual_tokens=3, **PROMPTS, **more), {}, ["exits"],
    ),
}  # fmt: skip


@pytest.mark.parametrize("config, knobs, names", REFUSED.values(), ids=REFUSED)
def test_exits_that_peft_leaves_behind_are_refused_with_the_line_that_helps(encoder, config, knobs, names):
    model = get_peft_model(new(encoder, **knobs), config())
    before = weights(model)
    with pytest.raises(ValueError, match="='frozen': must be trained") as error:
        fit(model)
    line = ", ".join(f'"{name}"' for name in names)
    kinds = (type(config()).__name__, "PeftConfig")  # the model is not told of PEFT's prompts
    assert any(f": {kind}(..., modules_to_save=[{line}])" in str(error.value) for kind in kinds)
    assert all(torch.equal(before[name], each) for name, each in weights(model).items())
    losses = fit(get_peft_model(new(encoder, **knobs), config(modules_to_save=names)))
    assert losses[-1] < losses[0]


def test_layers_injected_by_hand_are_refused_in_the_same_way(encoder):
    model = inject_adapter_in_model(LoraConfig(**QUERY_VALUE), new(encoder))
    with pytest.raises(ValueError, match=r'LoraConfig\(\.\.\., modules_to_save=\["exits"\]\)'):
        fit(model)
    model = inject_adapter_in_model(LoraConfig(modules_to_save=["exits"], **QUERY_VALUE), new(encoder))
    losses = fit(model)
    assert losses[-1] < losses[0]


@pytest.mark.parametrize("adapter_only", [True, False])
def test_peft_s_layers_are_not_saved_as_if_they_were_ours(encoder, tmp_path, adapter_only):
    model = inject_adapter_in_model(LoraConfig(modules_to_save=["exits"], **QUERY_VALUE), new(encoder))
    model.config.adapter_only = adapter_only
    for save in (model.save_pretrained, model.push_to_hub):
        with pytest.raises(ValueError, match="PEFT's layers.*merge_and_unload"):
            save(str(tmp_path / "saved"))
    assert not list(tmp_path.iterdir())


def test_adapters_that_peft_freezes_are_spoken_of_once(encoder, caplog):
    warning_once.cache_clear()
    caplog.set_level(logging.WARNING)
    said = lambda: [each.getMessage() for each in caplog.records if "adapters frozen" in each.getMessage()]  # noqa: E731
    fit(get_peft_model(new(encoder, **NONE), LoraConfig(task_type="SEQ_CLS", **QUERY_VALUE)), 2)
    everything = LoraConfig(task_type="SEQ_CLS", modules_to_save=["ffn_adapter"], **QUERY_VALUE)
    fit(get_peft_model(new(encoder), everything), 2)
    assert said() == []
    fit(get_peft_model(new(encoder), LoraConfig(task_type="SEQ_CLS", **QUERY_VALUE)), 2)
    assert len(said()) == 1 and "ffn_adapter" in said()[0] and "adapter_placement='none'" in said()[0]


def test_an_encoder_unfrozen_beside_peft_is_refused_by_name(encoder):
    model = get_peft_model(new(encoder), LoraConfig(task_type="SEQ_CLS", **QUERY_VALUE))
    model.get_base_model().backbone.embeddings.requires_grad_(True)
    with pytest.raises(ValueError, match=r"^adapter_only=True: .*backbone\.embeddings\.word_embeddings\.weight"):
        fit(model)


@pytest.mark.parametrize("more", [{"bias": "all"}, {"bias": "lora_only"}, {"modules_to_save": ["word_embeddings"]}])
def test_what_peft_unfreezes_and_saves_itself_may_learn(encoder, tmp_path, more):
    model = get_peft_model(new(encoder, **NONE), LoraConfig(task_type="SEQ_CLS", **QUERY_VALUE, **more))
    losses = fit(model)
    assert losses[-1] < losses[0]
    model.save_pretrained(tmp_path)
    assert_close(answers(PeftModel.from_pretrained(new(encoder, seed=1, **NONE), tmp_path)), answers(model))


def test_a_merged_model_answers_the_same_and_is_saved_whole(encoder, tmp_path):
    model = get_peft_model(new(encoder), LoraConfig(task_type="SEQ_CLS", **QUERY_VALUE))
    fit(model)
    expected = answers(model)
    merged = model.merge_and_unload()
    assert_close(answers(merged), expected, atol=1e-5, rtol=1e-5)
    with pytest.raises(ValueError, match="adapter_only=True"):
        merged.save_pretrained(tmp_path / "adapters")
    assert not (tmp_path / "adapters").exists()
    merged.config.adapter_only = False
    merged.save_pretrained(tmp_path / "whole")
    again = PFBerxitForSequenceClassification.from_pretrained(tmp_path / "whole")
    assert_close(answers(again), expected, atol=1e-5, rtol=1e-5)


def test_the_line_peft_saves_names_the_exits(encoder, tmp_path):
    get_peft_model(new(encoder), LoraConfig(task_type="SEQ_CLS", **QUERY_VALUE)).save_pretrained(tmp_path)
    assert "exits" in PeftConfig.from_pretrained(tmp_path).modules_to_save


@pytest.mark.parametrize("knobs", [{}, {"training_strategy": "alternating"}], ids=["joint", "alternating"])
def test_trainer_trains_a_model_inside_peft(encoder, tmp_path, knobs):
    model = get_peft_model(new(encoder, **knobs, **NONE), LoraConfig(task_type="SEQ_CLS", **QUERY_VALUE))
    arguments = {"max_steps": 12, "save_strategy": "steps", "save_steps": 12}
    trainer = new_trainer(model, tmp_path, tiny_data(), callbacks=[StrategyCallback()], **arguments)
    trainer.train()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert losses[-1] < losses[1]
    again = PeftModel.from_pretrained(new(encoder, seed=1, **knobs, **NONE), tmp_path / "checkpoint-12")
    assert_close(answers(again), answers(model))


def test_early_exit_inside_peft_is_early_exit_of_the_merged_model(encoder):
    model = get_peft_model(new(encoder), LoraConfig(task_type="SEQ_CLS", **QUERY_VALUE))
    fit(model)
    policy = {"criterion": "patience", "patience": 2}
    with torch.no_grad():
        inside = model.eval()(**BATCH, exit_policy=policy)
        merged = model.merge_and_unload()(**BATCH, exit_policy=policy)
    assert inside.exit_layer.min() < LAYERS
    assert torch.equal(inside.exit_layer, merged.exit_layer)
    assert_close(inside.logits, merged.logits, atol=1e-5, rtol=1e-5)
