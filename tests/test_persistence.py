"""What an adapter checkpoint holds, which encoder it belongs to, and how damage and mix-ups are noticed."""

import hashlib
import json
import logging
import os
import pickle
import re
import shutil
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from tiny import LAYERS, enliven, save_backbone, tiny_batch, tiny_config, tiny_model
from transformers import AutoConfig, AutoModel, AutoModelForSequenceClassification, Trainer, TrainingArguments

from modeling_pfberxit import PFBerxitConfig, PFBerxitForSequenceClassification

LOADERS = [PFBerxitForSequenceClassification, AutoModelForSequenceClassification]
LABELS = 3


def new_model(backbone: str, seed: int = 0, liven: bool = True, **knobs) -> PFBerxitForSequenceClassification:
    torch.manual_seed(seed)
    knobs = {"adapter_dim": 8, "num_labels": LABELS, **knobs}
    model = PFBerxitForSequenceClassification.from_backbone(backbone, **knobs)
    if liven:
        enliven(model)
    return model.eval()


def load(folder, **options) -> PFBerxitForSequenceClassification:
    return PFBerxitForSequenceClassification.from_pretrained(folder, **options)


@pytest.fixture
def saved(tmp_path, local_backbone) -> Path:
    """An adapter checkpoint beside its own copy of the encoder: `saved`, `encoder`."""
    shutil.copytree(local_backbone, tmp_path / "encoder")
    new_model(str(tmp_path / "encoder")).save_pretrained(tmp_path / "saved")
    return tmp_path / "saved"


@torch.no_grad()
def predict(model) -> torch.Tensor:
    return model(**tiny_batch(4)).logits


def same(first, second) -> bool:
    return torch.equal(predict(first), predict(second))


def keys(folder: Path) -> set[str]:
    with safe_open(Path(folder) / "model.safetensors", "pt") as file:
        return set(file.keys())


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def config_of(folder: Path) -> dict:
    return json.loads((folder / "config.json").read_text())


def edit_config(folder: Path, **changes) -> None:
    (folder / "config.json").write_text(json.dumps(config_of(folder) | changes))


def without(config: dict, field: str) -> dict:
    return {name: value for name, value in config.items() if name != field}


def snapshot(folder: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in folder.rglob("*") if path.is_file()} if folder.exists() else None


def one_line(error: pytest.ExceptionInfo) -> str:
    message = str(error.value)
    assert message and "\n" not in message
    return message


# ---- what is in it --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", ["albert", "bert", "distilbert", "deberta-v2"])
def test_checkpoint_holds_adapters_and_exits_and_no_backbone_weight(tmp_path, family):
    model = new_model(save_backbone(tmp_path / "encoder", family))
    model.save_pretrained(tmp_path / "saved")
    own = {key for key in model.state_dict() if not key.startswith("backbone.")}
    assert own < set(model.state_dict())
    assert keys(tmp_path / "saved") == own


def test_checkpoint_is_small(saved):
    size, encoder = ((saved.parent / name / "model.safetensors").stat().st_size for name in ("saved", "encoder"))
    assert size < encoder / 5


@pytest.mark.parametrize("loader", LOADERS)
def test_checkpoint_loads_to_the_same_predictions(saved, loader):
    model = new_model(str(saved.parent / "encoder"))
    again = loader.from_pretrained(saved)
    assert type(again) is PFBerxitForSequenceClassification
    assert same(again, model)
    assert not same(again, new_model(str(saved.parent / "encoder"), seed=1))


def test_a_loaded_model_is_frozen_but_for_adapters_and_exits(saved):
    model = load(saved)
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert trained == {name for name, _ in model.named_parameters() if not name.startswith("backbone.")}
    assert not any(module.training for module in model.modules())


def test_loading_info_is_clean(saved):
    info = PFBerxitForSequenceClassification.from_pretrained(saved, output_loading_info=True)[1]
    assert not any(info.values())


def test_a_missing_exit_is_reported(saved):
    weights = load_file(saved / "model.safetensors")
    del weights["exits.classifiers.2.weight"]
    save_file(weights, saved / "model.safetensors", {"format": "pt"})
    edit_config(saved, weights_sha256=None)
    info = PFBerxitForSequenceClassification.from_pretrained(saved, output_loading_info=True)[1]
    assert set(info["missing_keys"]) == {"exits.classifiers.2.weight"}


def test_two_loads_in_bfloat16_agree_and_leave_no_trace(saved):
    first, second = load(saved, dtype=torch.bfloat16), load(saved, dtype=torch.bfloat16)
    for model in (first, second):
        assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}
    assert same(first, second)
    assert {parameter.dtype for parameter in load(saved).parameters()} == {torch.float32}


def test_a_config_handed_over_is_used(saved):
    config = AutoConfig.from_pretrained(saved)
    config.exit_threshold = 0.7
    assert load(saved, config=config).config.exit_threshold == 0.7
    assert load(saved, exit_threshold=0.4).config.exit_threshold == 0.4
    assert load(saved).config.exit_threshold is None


# ---- damage ---------------------------------------------------------------------------------------------------------


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


def garble(path: Path) -> None:
    path.write_bytes(b"<!DOCTYPE html><title>503</title>")


def flip_a_bit(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-5] ^= 1
    path.write_bytes(bytes(content))


DAMAGES = {"truncated": truncate, "garbled": garble, "bit-flipped": flip_a_bit, "missing": Path.unlink}


@pytest.mark.parametrize("loader", [*LOADERS, AutoModel])
@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
def test_a_damaged_checkpoint_ends_in_one_clear_error(saved, damage, loader):
    damage(saved / "model.safetensors")
    with pytest.raises(OSError) as error:
        loader.from_pretrained(saved)
    assert "model.safetensors" in one_line(error) and str(saved) in one_line(error)


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
def test_a_damaged_encoder_ends_in_one_clear_error(saved, damage):
    damage(saved.parent / "encoder" / "model.safetensors")
    with pytest.raises(OSError) as error:
        load(saved)
    assert "base_model_name_or_path" in one_line(error) and str(saved.parent / "encoder") in one_line(error)


@pytest.mark.parametrize("field", ["weights_sha256", "base_model_sha256"])
def test_a_missing_hash_warns_once(saved, caplog, field):
    model = load(saved)
    assert not caplog.records
    (saved / "config.json").write_text(json.dumps(without(config_of(saved), field)))
    assert same(load(saved), model) and same(load(saved), model)
    warnings = [record for record in caplog.records if field in record.getMessage()]
    assert [record.levelno for record in warnings] == [logging.WARNING]


class Trap:
    """Leaves a file behind when it is unpickled."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("where", ["saved", "encoder"])
def test_pickle_files_are_never_read(saved, where):
    folder, trap = saved.parent / where, saved.parent / "unpickled"
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps(Trap(trap)))
    edit_config(saved, weights_sha256=None)
    with pytest.raises(OSError, match="safetensors"):
        load(saved)
    assert not trap.exists()
    pickle.loads((folder / "pytorch_model.bin").read_bytes())
    assert trap.exists(), "the trap would not have told"


# ---- the encoder it belongs to --------------------------------------------------------------------------------------


def test_a_local_backbone_is_pinned_by_the_hash_of_its_file(saved):
    encoder, config = saved.parent / "encoder", config_of(saved)
    assert config["base_model_name_or_path"] == str(encoder)
    assert config["base_model_revision"] is None
    assert config["base_model_sha256"] == sha256(encoder / "model.safetensors")
    assert config["weights_sha256"] == {"model.safetensors": sha256(saved / "model.safetensors")}


def test_a_relative_backbone_folder_is_stored_absolute(saved, monkeypatch):
    monkeypatch.chdir(saved.parent)
    assert new_model("encoder").config.base_model_name_or_path == str(saved.parent / "encoder")


def test_a_backbone_in_shards_is_pinned_by_all_of_them(tmp_path, local_backbone):
    encoder = tmp_path / "encoder"
    AutoModel.from_pretrained(local_backbone).save_pretrained(encoder, max_shard_size="60KB")
    shards = sorted(encoder.glob("model-*.safetensors"))
    assert len(shards) > 2
    model = new_model(str(encoder))
    model.save_pretrained(tmp_path / "saved")
    assert same(load(tmp_path / "saved"), model)
    flip_a_bit(shards[-1])
    with pytest.raises(OSError, match=model.config.base_model_sha256):
        load(tmp_path / "saved")
    shards[1].unlink()
    with pytest.raises(OSError, match=shards[1].name):
        load(tmp_path / "saved")


@pytest.mark.parametrize(
    "field, family, value",
    [
        ("model_type", "roberta", "roberta"),
        ("hidden_size", "bert", 64),
        ("num_hidden_layers", "bert", 4),
        ("num_attention_heads", "bert", 2),
        ("intermediate_size", "bert", 96),
        ("vocab_size", "bert", 150),
        ("hidden_act", "bert", "relu"),
    ],
)
def test_an_encoder_of_another_shape_is_refused_by_the_field(tmp_path, saved, field, family, value):
    changes = {} if field == "model_type" else {field: value}
    other = save_backbone(tmp_path / "other", family, **changes)
    with pytest.raises(ValueError, match="base_model_name_or_path") as error:
        load(saved, base_model_name_or_path=other, base_model_sha256=None)
    assert f"{field}={value!r}" in one_line(error) and f"{field}={getattr(tiny_config(), field)!r}" in one_line(error)


def test_a_new_model_from_a_checkpoints_config_stands_on_the_same_encoder(saved):
    config = PFBerxitConfig.from_pretrained(saved)
    model = PFBerxitForSequenceClassification.from_backbone(config, num_labels=2)
    assert model.num_labels == 2 and model.config.base_model_sha256 == config.base_model_sha256
    assert all(torch.equal(*pair) for pair in zip(model.backbone.parameters(), load(saved).backbone.parameters()))
    save_backbone(saved.parent / "encoder", seed=2)
    with pytest.raises(OSError, match="base_model_name_or_path.*sha256"):
        PFBerxitForSequenceClassification.from_backbone(config)


def test_another_encoder_of_the_same_shape_is_refused_with_both_hashes(saved):
    encoder = saved.parent / "encoder"
    pinned = sha256(encoder / "model.safetensors")
    save_backbone(encoder, seed=2)
    with pytest.raises(OSError) as error:
        load(saved)
    message = one_line(error)
    assert pinned != sha256(encoder / "model.safetensors")
    assert str(encoder) in message and pinned in message and sha256(encoder / "model.safetensors") in message


def test_a_missing_backbone_folder_says_what_to_do_and_that_works(saved):
    model = load(saved)
    moved = (saved.parent / "encoder").rename(saved.parent / "moved")
    with pytest.raises(OSError) as error:
        load(saved)
    assert "base_model_name_or_path" in one_line(error) and str(saved.parent / "encoder") in one_line(error)
    again = load(saved, base_model_name_or_path=str(moved))
    assert same(again, model)
    again.save_pretrained(saved.parent / "again")
    assert config_of(saved.parent / "again")["base_model_name_or_path"] == str(moved)
    assert same(load(saved.parent / "again"), model)


def test_a_relative_override_still_works_from_elsewhere(saved, monkeypatch):
    monkeypatch.chdir(saved.parent)
    load(saved, base_model_name_or_path="encoder").save_pretrained(saved.parent / "again")
    monkeypatch.chdir("/")
    assert same(load(saved.parent / "again"), load(saved))


def test_another_serialisation_is_accepted_on_request_and_pinned_anew(saved):
    model, weights = load(saved), saved.parent / "encoder" / "model.safetensors"
    save_file(load_file(weights), weights, {"format": "pt", "note": "written by another tool"})
    with pytest.raises(OSError, match="base_model_sha256=None"):
        load(saved)
    again = load(saved, base_model_sha256=None)
    assert same(again, model)
    again.save_pretrained(saved.parent / "again")
    assert config_of(saved.parent / "again")["base_model_sha256"] == sha256(weights)


def test_a_checkpoint_with_old_heads_serves_as_backbone(tmp_path, local_backbone):
    """Weights of a masked language model, its prefix and head included."""
    from transformers import BertForMaskedLM

    torch.manual_seed(0)
    language_model = BertForMaskedLM(tiny_config())
    language_model.save_pretrained(tmp_path / "encoder")
    model = new_model(str(tmp_path / "encoder"))
    assert torch.equal(
        model.backbone.embeddings.word_embeddings.weight, language_model.bert.embeddings.word_embeddings.weight
    )
    model.save_pretrained(tmp_path / "saved")
    assert same(load(tmp_path / "saved"), model)


# ---- what cannot be saved as adapters alone -------------------------------------------------------------------------


def unfreeze(backbone: str) -> PFBerxitForSequenceClassification:
    model = new_model(backbone)
    next(model.backbone.parameters()).requires_grad_(True)
    return model


def resize(backbone: str) -> PFBerxitForSequenceClassification:
    model = new_model(backbone)
    model.resize_token_embeddings(130, mean_resizing=False)
    return model


def alter(backbone: str) -> PFBerxitForSequenceClassification:
    model = new_model(backbone)
    with torch.no_grad():
        model.backbone.encoder.layer[2].output.dense.weight.mul_(1.01)
    return model


def without_base(backbone: str) -> PFBerxitForSequenceClassification:
    model = tiny_model(num_labels=LABELS)
    model.config.adapter_only = True
    return model


REFUSED = {
    "trained": lambda backbone: new_model(backbone, train_backbone=True, adapter_only=True),
    "unfrozen by hand": unfreeze,
    "altered in place": alter,
    "resized": resize,
    "no base": without_base,
}


@pytest.mark.parametrize("target", ["new", "new/nested", "saved"])
@pytest.mark.parametrize("make", REFUSED.values(), ids=REFUSED)
def test_saving_adapters_of_a_lost_encoder_is_refused_before_anything_is_written(saved, local_backbone, make, target):
    model, before = make(local_backbone), snapshot(saved.parent)
    with pytest.raises(ValueError, match="adapter_only"):
        model.save_pretrained(saved.parent / target)
    assert snapshot(saved.parent) == before
    assert not (saved.parent / "new").exists()


@pytest.mark.parametrize("make", REFUSED.values(), ids=REFUSED)
def test_what_is_refused_as_adapters_can_be_saved_whole(tmp_path, local_backbone, make):
    model = make(local_backbone)
    model.config.adapter_only = False
    model.save_pretrained(tmp_path / "whole")
    assert same(load(tmp_path / "whole"), model)


def test_a_trainer_checkpoint_is_refused_alike(tmp_path, local_backbone):
    trainer = Trainer(unfreeze(local_backbone), TrainingArguments(tmp_path / "run", use_cpu=True))
    with pytest.raises(ValueError, match="adapter_only"):
        trainer.save_model()
    assert not snapshot(tmp_path / "run")


def test_adapters_are_never_saved_over_the_encoder_they_refer_to(tmp_path, local_backbone):
    (tmp_path / "file").touch()
    base = shutil.copytree(local_backbone, tmp_path / "base")
    (tmp_path / "link").symlink_to(base)
    model, before = new_model(str(base)), snapshot(base)
    for place in (base, tmp_path / "link", tmp_path / "file"):
        for part in (model, model.config):
            with pytest.raises(ValueError, match="save_directory=.*: must be a"):
                part.save_pretrained(place)
    assert snapshot(base) == before


def test_weights_given_to_a_save_are_written_or_refused_and_stay_the_caller_s(tmp_path, local_backbone):
    model, other = new_model(local_backbone), new_model(local_backbone)
    enliven(other, seed=1)
    given = other.state_dict()
    names = list(given)
    model.save_pretrained(tmp_path / "saved", state_dict=given)
    assert list(given) == names and same(load(tmp_path / "saved"), other) and not same(model, other)
    given["backbone.encoder.layer.2.output.dense.weight"] = given["backbone.encoder.layer.2.output.dense.weight"] * 2
    with pytest.raises(ValueError, match="state_dict=.*layer.2.output.dense.weight no longer has the weights"):
        model.save_pretrained(tmp_path / "new", state_dict=given)
    assert not (tmp_path / "new").exists()


# ---- self-contained checkpoints -------------------------------------------------------------------------------------


def test_a_self_contained_checkpoint_loads_without_its_base(saved):
    model = load(saved)
    model.config.adapter_only = False
    model.save_pretrained(saved.parent / "whole")
    shutil.rmtree(saved.parent / "encoder")
    with pytest.raises(OSError):
        load(saved)
    again = load(saved.parent / "whole")
    assert same(again, model)
    assert keys(saved.parent / "whole") == set(model.state_dict())
    assert not any(parameter.requires_grad for parameter in again.backbone.parameters())


def test_a_model_without_a_base_can_be_saved_whole(tmp_path):
    model = tiny_model(num_labels=LABELS)
    model.config.adapter_only = False
    model.save_pretrained(tmp_path)
    assert same(load(tmp_path), model)


def test_a_trained_encoder_is_saved_by_default(tmp_path, local_backbone):
    model = new_model(local_backbone, train_backbone=True)
    with torch.no_grad():
        model.backbone.encoder.layer[0].output.dense.weight.add_(0.1)
    model.save_pretrained(tmp_path)
    assert config_of(tmp_path)["adapter_only"] is False
    assert keys(tmp_path) == set(model.state_dict())
    again = load(tmp_path)
    assert same(again, model) and not same(again, new_model(local_backbone))
    assert all(parameter.requires_grad for parameter in again.parameters())


def test_a_self_contained_checkpoint_in_shards_is_checked_shard_by_shard(tmp_path, local_backbone):
    model = new_model(local_backbone, adapter_only=False)
    model.save_pretrained(tmp_path, max_shard_size="60KB")
    shards = sorted(tmp_path.glob("model-*.safetensors"))
    assert len(shards) > 2 and set(config_of(tmp_path)["weights_sha256"]) == {shard.name for shard in shards}
    assert same(load(tmp_path), model)
    flip_a_bit(shards[1])
    with pytest.raises(OSError, match=shards[1].name):
        load(tmp_path)


def test_saving_in_shards_over_one_file_or_the_other_way_round_leaves_the_new_weights_alone(tmp_path, local_backbone):
    model = PFBerxitForSequenceClassification.from_backbone(local_backbone, num_labels=3)
    for options in ({}, {"max_shard_size": "5KB"}, {"max_shard_size": "5KB"}, {}):
        enliven(model)
        model.save_pretrained(tmp_path, **options)
        assert (tmp_path / "model.safetensors").exists() is not bool(options)
        assert (tmp_path / "model.safetensors.index.json").exists() is bool(options)
        loaded = PFBerxitForSequenceClassification.from_pretrained(tmp_path)
        assert all(map(torch.equal, loaded.state_dict().values(), model.state_dict().values()))


def test_saving_again_in_the_same_folder_replaces_the_hashes(tmp_path, local_backbone):
    model = new_model(local_backbone, adapter_only=False)
    model.save_pretrained(tmp_path, max_shard_size="60KB")
    model.config.adapter_only = True
    model.save_pretrained(tmp_path)
    assert config_of(tmp_path)["weights_sha256"] == {"model.safetensors": sha256(tmp_path / "model.safetensors")}
    assert same(load(tmp_path), model)


# ---- poolers --------------------------------------------------------------------------------------------------------


def pooler_weights(folder: str) -> dict[str, torch.Tensor]:
    weights = load_file(Path(folder) / "model.safetensors")
    return {key.split(".")[-1]: value for key, value in weights.items() if "pooler" in key}


@pytest.mark.parametrize("knobs", [{}, {"train_pooler": True}], ids=["read", "trained"])
@pytest.mark.parametrize("family", ["electra", "distilbert", "deberta-v2"])
def test_the_backbones_pooler_is_refused_where_the_family_has_none(tmp_path, family, knobs):
    encoder = save_backbone(tmp_path, family)
    with pytest.raises(ValueError, match=f"exit_pooler.*{family}") as error:
        new_model(encoder, exit_pooler="backbone", **knobs)
    assert one_line(error)
    assert new_model(encoder, exit_pooler="own").exits.poolers


@pytest.mark.parametrize("knobs", [{}, {"train_pooler": True}], ids=["read", "trained"])
@pytest.mark.parametrize("family", ["albert", "bert", "roberta"])
def test_the_backbones_pooler_is_refused_where_the_checkpoint_has_none(tmp_path, family, knobs):
    AutoModel.from_config(tiny_config(family), add_pooling_layer=False).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="exit_pooler.*pooler") as error:
        new_model(str(tmp_path), exit_pooler="backbone", **knobs)
    assert one_line(error)
    assert new_model(str(tmp_path), exit_pooler="own").exits.poolers


@pytest.mark.parametrize(
    "knobs, copies",
    [
        ({"exit_pooler": "backbone", "train_pooler": True}, 1),
        ({"exit_pooler": "own"}, LAYERS),
        ({"exit_pooler": "own", "exit_shared": True}, 1),
    ],
    ids=["trained", "own", "own, shared"],
)
@pytest.mark.parametrize("family", ["albert", "bert"])
def test_trained_poolers_start_from_the_encoders_and_travel(tmp_path, family, knobs, copies):
    encoder = save_backbone(tmp_path / "encoder", family)
    model = new_model(encoder, liven=False, **knobs)
    assert len(model.exits.poolers) == copies
    pretrained = pooler_weights(encoder)
    for pooler in model.exits.poolers:
        assert pretrained["weight"].any() and torch.equal(pooler.weight, pretrained["weight"])
        assert torch.equal(pooler.bias, pretrained["bias"])
        assert pooler.weight.requires_grad
    enliven(model)
    model.save_pretrained(tmp_path / "saved")
    assert {f"exits.poolers.{i}.weight" for i in range(copies)} <= keys(tmp_path / "saved")
    assert same(load(tmp_path / "saved"), model)


def test_the_backbones_own_pooler_is_read_and_does_not_travel(tmp_path, local_backbone):
    model = new_model(local_backbone, exit_pooler="backbone")
    model.save_pretrained(tmp_path)
    assert not [key for key in keys(tmp_path) if "pooler" in key]
    assert torch.equal(model.backbone.pooler.dense.weight, pooler_weights(local_backbone)["weight"])
    assert same(load(tmp_path), model)
    assert not same(model, new_model(local_backbone))


# ---- other labels, other tasks --------------------------------------------------------------------------------------


def test_re_heading_keeps_the_adapters_bit_exact(saved):
    model = load(saved)
    with pytest.raises(RuntimeError, match="mismatch"):
        load(saved, num_labels=5)
    again = load(saved, num_labels=5, ignore_mismatched_sizes=True)
    adapters = {name: value for name, value in model.state_dict().items() if "adapter" in name}
    assert adapters and all(torch.equal(again.state_dict()[name], value) for name, value in adapters.items())
    assert predict(again).shape == (4, 5) and again.num_labels == 5 and len(again.config.id2label) == 5
    again.save_pretrained(saved.parent / "again")
    assert same(load(saved.parent / "again"), again)


def assert_same_storage(first, second) -> None:
    """One encoder in memory, and no tensor or module object of it in both models."""
    for one, other in (
        (dict(first.backbone.named_parameters()), dict(second.backbone.named_parameters())),
        (dict(first.backbone.named_buffers()), dict(second.backbone.named_buffers())),
    ):
        assert one.keys() == other.keys()
        for name, tensor in one.items():
            assert tensor is not other[name] and tensor.data_ptr() == other[name].data_ptr()
    assert not set(map(id, first.modules())) & set(map(id, second.modules()))


@pytest.mark.parametrize("loader", LOADERS)
def test_several_tasks_share_one_backbone_in_memory(saved, loader):
    first, task = load(saved), saved.parent / "task"
    new_model(str(saved.parent / "encoder"), seed=5, num_labels=2).save_pretrained(task)
    shutil.rmtree(saved.parent / "encoder")
    second = loader.from_pretrained(task, backbone=first.backbone)
    assert_same_storage(first, second)
    assert predict(second).shape == (4, 2) and predict(first).shape == (4, LABELS)


@pytest.mark.parametrize("loader", LOADERS)
def test_a_shared_backbone_changes_no_answer(saved, loader):
    new_model(str(saved.parent / "encoder"), seed=5).save_pretrained(saved.parent / "task")
    first, alone = load(saved), load(saved.parent / "task")
    before = predict(first)
    second = loader.from_pretrained(saved.parent / "task", backbone=first.backbone)
    assert same(second, alone) and torch.equal(predict(first), before)
    second.save_pretrained(saved.parent / "again")
    assert same(load(saved.parent / "again"), alone)


@pytest.mark.parametrize("loader", LOADERS)
def test_a_shared_backbone_with_other_weights_is_refused_with_both_hashes(tmp_path, saved, loader):
    other = new_model(save_backbone(tmp_path / "other", seed=2))
    with pytest.raises(ValueError, match="backbone") as error:
        loader.from_pretrained(saved, backbone=other.backbone)
    pinned = config_of(saved)["base_model_sha256"]
    assert pinned in one_line(error) and other.config.base_model_sha256 in one_line(error)


def test_a_shared_backbone_of_another_shape_is_refused_by_the_field(tmp_path, saved):
    other = new_model(save_backbone(tmp_path / "other", intermediate_size=96))
    with pytest.raises(ValueError, match="backbone.*intermediate_size=96.*intermediate_size=64") as error:
        load(saved, backbone=other.backbone)
    assert one_line(error)


def test_a_backbone_in_training_is_not_shared(saved):
    other = load(saved)
    next(other.backbone.parameters()).requires_grad_(True)
    with pytest.raises(ValueError, match="backbone.*frozen"):
        load(saved, backbone=other.backbone)


def test_a_shared_backbone_whose_weights_were_altered_is_refused(saved):
    other = load(saved)
    with torch.no_grad():
        other.backbone.encoder.layer[2].output.dense.weight.mul_(1.01)
    with pytest.raises(ValueError, match="backbone"):
        load(saved, backbone=other.backbone)


# ---- the configuration ----------------------------------------------------------------------------------------------

CHANGED = {
    "backbone_config": {"model_type": "bert", **tiny_config().to_diff_dict()},
    "base_model_name_or_path": "acme/tiny-bert",
    "base_model_revision": "0123456789abcdef",
    "base_model_sha256": "ab" * 32,
    "train_backbone": True,
    "train_pooler": True,
    "adapter_only": True,
    "adapter_sublearner": "conv",
    "adapter_placement": "both",
    "adapter_activation": "tanh",
    "adapter_dim": 12,
    "adapter_layer_norm": "out",
    "adapter_scaling": 0.5,
    "adapter_dropout": 0.25,
    "adapter_conv_kernel": 5,
    "adapter_num_heads": 3,
    "exit_layers": [2, 4],
    "exit_pooling": "cls",
    "exit_pooler": "own",
    "exit_pooler_dim": 64,
    "last_exit": "classifier",
    "exit_shared": True,
    "exit_dropout": 0.3,
    "use_lte": True,
    "lte_shared": False,
    "exit_criterion": None,
    "exit_divergence": "js_div",
    "exit_threshold": [0.1, 0.2, 0.3],
    "exit_patience": 4,
    "exit_window": 5,
    "exit_min_layer": 2,
    "exit_appointed_layer": 4,
    "exit_normalize": True,
    "label_smoothing": 0.1,
    "class_weights": [1.0, 2.5],
    "pos_weight": [0.5, 4.0],
    "operating_points": {"fast": {"threshold": 0.2, "patience": 1, "score": 0.9, "layers_saved": 0.4}},
    "weights_sha256": {"model.safetensors": "cd" * 32},
    "pad_token_id": 1,
    "exit_window_rule": "narrow",
    "exit_window_range": 0.3,
    "exit_ensemble": "run",
    "exit_distance_weight": 0.5,
    "exit_nsp_weight": 0.3,
    "use_nsp": True,
    "use_prototypes": True,
    "prototype_weight": 0.3,
    "training_strategy": "two_stage",
    "training_stage": 2,
    "exit_weights": "uniform",
    "exit_groups": [[1, 3], [2, 4]],
    "gradient_equilibrium": True,
    "distillation": 0.9,
    "distillation_temperature": 3.0,
    "distillation_divergence": "kl_div",
    "token_exits": True,
    "token_exit_range": [2, 4],
    "token_exit_seed": 7,
    "prompt_generator": "npg",
    "prompt_layer": 2,
    "prompt_length": 5,
    "prompt_dim": 64,
    "system": "pabee",
}


def test_the_list_of_changed_fields_is_complete():
    assert set(PFBerxitConfig.__annotations__) - set(CHANGED) == {"format_version"}


@pytest.mark.parametrize("field", CHANGED)
def test_every_field_of_the_config_survives_saving(tmp_path, field):
    assert getattr(PFBerxitConfig(), field) != CHANGED[field]
    encoder = {"backbone_config": CHANGED["backbone_config"]}
    PFBerxitConfig(**{**encoder, field: CHANGED[field]}).save_pretrained(tmp_path)
    for loader in (PFBerxitConfig, AutoConfig):
        assert getattr(loader.from_pretrained(tmp_path), field) == CHANGED[field]


def test_all_fields_together_survive_saving(tmp_path):
    config = PFBerxitConfig(**CHANGED, num_labels=4, problem_type="multi_label_classification")
    config.save_pretrained(tmp_path)
    again = PFBerxitConfig.from_pretrained(tmp_path)
    assert {name: getattr(again, name) for name in CHANGED} == CHANGED
    assert again.to_diff_dict() == config.to_diff_dict()
    assert again.encoder_config().to_dict() == config.encoder_config().to_dict()


def test_a_config_without_an_encoder_survives_saving(tmp_path):
    PFBerxitConfig(adapter_dim=12).save_pretrained(tmp_path)
    assert PFBerxitConfig.from_pretrained(tmp_path).adapter_dim == 12


def test_a_field_assigned_on_a_live_config_is_saved(saved):
    model = load(saved)
    model.config.exit_threshold, model.config.operating_points = 0.3, {"fast": {"threshold": 0.4}}
    model.save_pretrained(saved)
    again = load(saved)
    assert again.config.exit_threshold == 0.3 and again.config.operating_points == {"fast": {"threshold": 0.4}}


@pytest.mark.parametrize("loader", [PFBerxitConfig, AutoConfig, AutoModel, *LOADERS])
def test_a_checkpoint_of_a_newer_format_is_refused(saved, loader):
    edit_config(saved, format_version=2)
    with pytest.raises(ValueError, match="format_version") as error:
        loader.from_pretrained(saved)
    # Whoever reads this has an old package and a new checkpoint; that is what the message has to say.
    assert re.search("newer|update|upgrade", one_line(error), re.IGNORECASE)
