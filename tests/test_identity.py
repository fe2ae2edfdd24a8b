"""An encoder is known by its bytes; models that share one share its weights and nothing else."""

import copy
import gc

import pytest
import torch
from tiny import enliven, save_backbone, tiny_batch
from transformers import BertModel

from modeling_pfberxit import PFBerxitForSequenceClassification

BATCH, LABELS = tiny_batch(4), torch.tensor([0, 1, 2, 0])


def load(folder, **options) -> PFBerxitForSequenceClassification:
    return PFBerxitForSequenceClassification.from_pretrained(folder, **options)


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """An adapter checkpoint on an encoder with dropout. Not to be changed."""
    root = tmp_path_factory.mktemp("identity")
    torch.manual_seed(0)
    encoder = save_backbone(root / "encoder")
    model = PFBerxitForSequenceClassification.from_backbone(encoder, num_labels=3, adapter_dim=8)
    enliven(model)
    model.save_pretrained(root / "saved")
    return root / "saved"


@torch.no_grad()
def answers(model) -> torch.Tensor:
    return model(**BATCH).logits


# ---- what is noticed ------------------------------------------------------------------------------------------------


def train(model, which: str) -> None:
    part = [parameter for name, parameter in model.backbone.named_parameters() if which in name]
    model.config.adapter_only = False
    for parameter in part:
        parameter.requires_grad_(True)
    optimizer = torch.optim.SGD(part, lr=0.5)
    model.train()(**BATCH, labels=LABELS).loss.backward()
    optimizer.step()
    model.eval().backbone.requires_grad_(False)
    model.config.adapter_only = True


def swap_two_words(model) -> None:
    words = model.get_input_embeddings().weight.data
    words[[10, 40]] = words[[40, 10]]


def merge_lora(model) -> None:
    peft = pytest.importorskip("peft")
    config = peft.LoraConfig(target_modules=["query"], init_lora_weights=False)
    peft.get_peft_model(model.backbone, config).merge_and_unload()


def load_other_state(model) -> None:
    state = {name: value.clone() for name, value in model.backbone.state_dict().items()}
    state["encoder.layer.3.output.dense.weight"][0, 0] += 1e-6
    model.backbone.load_state_dict(state)


def permute_columns(model) -> None:
    weight = model.backbone.encoder.layer[0].attention.self.query.weight
    weight.data = weight.data.flip(0)


CHANGES = {
    "all trained": lambda model: train(model, ""),
    "one kind of matrix trained": lambda model: train(model, "output.dense.weight"),
    "trained after a cast": lambda model: train(model.to(torch.bfloat16), ""),
    "cast after training": lambda model: (train(model, ""), model.to(torch.bfloat16)),
    "two words swapped": swap_two_words,
    "LoRA merged": merge_lora,
    "another state loaded": load_other_state,
    "columns permuted": permute_columns,
    "a module added": lambda model: model.backbone.add_module("more", torch.nn.Linear(1, 1).requires_grad_(False)),
    "a buffer": lambda model: model.backbone.embeddings.position_ids[0, 3].zero_(),
    "rounded and back": lambda model: model.half().float(),
}


@pytest.mark.filterwarnings("ignore::FutureWarning")  # PEFT's, when it wraps an encoder
@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_an_encoder_that_changed_is_neither_left_out_of_a_checkpoint_nor_shared(saved, tmp_path, change):
    model = load(saved)
    change(model)
    with pytest.raises(ValueError, match="adapter_only=True.*no longer what was loaded"):
        model.save_pretrained(tmp_path / "new")
    assert not (tmp_path / "new").exists()
    with pytest.raises(ValueError, match="backbone.*no longer what was loaded"):
        load(saved, backbone=model.backbone)


@pytest.mark.parametrize("cast", [torch.bfloat16, torch.float16, torch.float32], ids=str)
def test_a_cast_encoder_is_still_the_one_it_was(saved, tmp_path, cast):
    model = load(saved).to(cast)
    model.save_pretrained(tmp_path)
    again = load(tmp_path)
    assert again.dtype == cast and torch.equal(answers(again), answers(model))
    assert torch.equal(answers(load(saved, dtype=cast)), answers(model))


def test_a_copy_of_a_model_is_known_as_well(saved, tmp_path):
    model = copy.deepcopy(load(saved))
    model.save_pretrained(tmp_path)
    swap_two_words(model)
    with pytest.raises(ValueError, match="word_embeddings"):
        model.save_pretrained(tmp_path)


def test_what_a_wider_dtype_could_not_bring_back_is_refused_before_training(saved):
    model = load(saved, dtype="bfloat16").float().train()
    with pytest.raises(ValueError, match="cast to float32; load with dtype='float32'"):
        model(**BATCH, labels=LABELS)


# ---- what is shared -------------------------------------------------------------------------------------------------


def storages(model) -> list[int]:
    return [tensor.data_ptr() for tensor in (*model.backbone.parameters(), *model.backbone.buffers())]


@pytest.fixture
def pair(saved):
    """Two models on one encoder, the second loaded with the first one's."""
    first = load(saved)
    second = load(saved, backbone=first.backbone)
    assert storages(first) == storages(second)
    return first, second


def test_a_mode_is_a_models_own(pair):
    serving, learning = pair
    before = answers(serving)
    learning.train()
    assert not any(module.training for module in serving.modules())
    assert torch.equal(answers(serving), before)
    serving.train()
    learning.eval()
    assert serving.backbone.training and not learning.backbone.training


def test_a_dtype_is_a_models_own(pair):
    serving, learning = pair
    before = answers(serving)
    learning.half()
    assert torch.equal(answers(serving), before) and answers(learning).dtype == torch.float16
    assert not set(storages(serving)[: len(list(serving.backbone.parameters()))]) & set(storages(learning))


def test_gradients_hooks_and_attention_are_a_models_own(saved, pair):
    serving, learning = pair
    calls = []
    learning.backbone.embeddings.register_forward_hook(lambda *inputs: calls.append("learning"))
    answers(serving)
    third = load(saved, backbone=learning.backbone, attn_implementation="eager")
    answers(third)
    assert calls == [] and storages(third) == storages(serving)
    assert serving.backbone.config._attn_implementation != "eager" == third.backbone.config._attn_implementation
    learning.backbone.requires_grad_(True)
    assert not any(parameter.requires_grad for parameter in serving.backbone.parameters())


@pytest.mark.parametrize("which", [0, 1], ids=["the first", "the second"])
def test_shared_weights_are_not_trained(pair, which):
    model = pair[which]
    model.config.adapter_only = False
    model.backbone.requires_grad_(True)
    model.train()
    with pytest.raises(ValueError, match="backbone.*shares its weights"):
        model(**BATCH, labels=LABELS)
    model.backbone = copy.deepcopy(model.backbone)
    model(**BATCH, labels=LABELS).loss.backward()
    assert all(parameter.grad is None for parameter in pair[1 - which].backbone.parameters())


def test_an_encoder_lives_as_long_as_one_of_its_models(saved):
    first = load(saved)
    before, second = answers(first), load(saved, backbone=first.backbone)
    del first
    gc.collect()
    assert torch.equal(answers(second), before)


def test_a_model_loaded_beside_an_encoder_follows_its_dtype_unless_told_otherwise(saved):
    half = load(saved, dtype="float16")
    follows, own = load(saved, backbone=half.backbone), load(saved, backbone=half.backbone, dtype="float32")
    assert {parameter.dtype for parameter in follows.parameters()} == {torch.float16}
    assert storages(follows) == storages(half)
    assert {parameter.dtype for parameter in own.parameters()} == {torch.float32} and half.dtype == torch.float16


@pytest.mark.parametrize("family", ["albert", "albert-groups", "distilbert", "electra", "roberta"])
def test_every_family_can_be_shared(tmp_path, family):
    encoder = save_backbone(tmp_path / "encoder", family)
    model = PFBerxitForSequenceClassification.from_backbone(encoder, num_labels=3, exit_pooler="none")
    model.save_pretrained(tmp_path / "saved")
    first = load(tmp_path / "saved")
    second = load(tmp_path / "saved", backbone=first.backbone)
    assert storages(second) == storages(first) and torch.equal(answers(second), answers(first))
    second.save_pretrained(tmp_path / "again")


@pytest.mark.parametrize(
    "option, match",
    [
        (lambda model: {"backbone": model}, "backbone='PFBerxit.*another model's"),
        (lambda model: {"backbone": "acme/bert"}, "backbone='str'.*another model's"),
        (lambda model: {"backbone": model.backbone, "train_backbone": True}, "train_backbone=True"),
        (lambda model: {"backbone": model.backbone, "adapter_only": False}, "adapter_only=False"),
    ],
)
def test_what_cannot_be_shared_is_refused_by_name(saved, option, match):
    with pytest.raises(ValueError, match=match):
        load(saved, **option(load(saved)))


def test_a_checkpoint_with_its_own_encoder_shares_none(saved, tmp_path):
    load(saved, adapter_only=False).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="backbone.*holds its encoder"):
        load(tmp_path, backbone=load(saved).backbone)


def test_a_stock_encoder_can_be_shared_and_is_never_left_out(saved, tmp_path):
    stock = BertModel.from_pretrained(saved.parent / "encoder").requires_grad_(False)
    model = load(saved, backbone=stock)
    assert torch.equal(answers(model), answers(load(saved)))
    with pytest.raises(ValueError, match="adapter_only=True"):
        model.save_pretrained(tmp_path)
