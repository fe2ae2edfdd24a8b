"""Recordings: one pass keeps what any policy needs, in the rows' order, and says where it came from."""

import json

import pytest
import torch
from datasets import Dataset
from safetensors.torch import save_file
from tiny import tiny_batch, tiny_model

from modeling_pfberxit import ExitPolicy
from modeling_pfberxit.evaluation.recording import Recording, record
from modeling_pfberxit.evaluation.replay import replay, score_key
from modeling_pfberxit.model.evidence import SINGLE_LABEL


def rows_of(batch: dict[str, torch.Tensor], labels: list[int]) -> Dataset:
    """The batch as an encoded data set: token lists without padding."""
    lists = [ids[mask == 1].tolist() for ids, mask in zip(batch["input_ids"], batch["attention_mask"])]
    return Dataset.from_dict(
        {"input_ids": lists, "attention_mask": [[1] * len(ids) for ids in lists], "labels": labels}
    )


@pytest.fixture(scope="module")
def model():
    return tiny_model("bert", num_labels=3, use_lte=True, use_prototypes=True, use_nsp=True)


@pytest.fixture(scope="module")
def batch():
    return tiny_batch(50, seed=4)


def test_rows_come_back_in_their_order_whatever_their_length(model, batch):
    labels = [number % 3 for number in range(50)]
    kept = record(model, rows_of(batch, labels), batch_size=7)
    expected = model(**batch)
    torch.testing.assert_close(kept.evidence.logits, expected.exit_logits, atol=2e-5, rtol=1e-4)
    torch.testing.assert_close(kept.evidence.lte, expected.exit_lte, atol=2e-5, rtol=1e-4)
    torch.testing.assert_close(kept.evidence.distances, expected.exit_distances, atol=2e-5, rtol=1e-4)
    assert kept.labels.tolist() == labels
    assert torch.equal(kept.lengths, batch["attention_mask"].sum(1))
    assert (kept.exit_depths, kept.layers, kept.problem_type) == ([1, 2, 3, 4, 5, 6], 6, SINGLE_LABEL)


@pytest.mark.parametrize("ensemble", ["none", "run", "all"])
@pytest.mark.parametrize("criterion", ["divergence_v1", "entropy", "max_prob", "lte", "distance", "voting", "pcee"])
def test_online_equals_the_replay_of_a_recording(model, batch, criterion, ensemble):
    kept = record(model, rows_of(batch, [0] * 50))
    tau = 0.9 if criterion in ("max_prob", "voting") else 0.5
    policy = ExitPolicy(criterion, threshold=tau, patience=1 + (criterion == "pcee"), ensemble=ensemble)
    answers, layers = kept.replay(policy)
    online = model(**batch, exit_policy=policy)
    assert torch.equal(online.exit_layer, layers)
    torch.testing.assert_close(online.logits, answers, atol=2e-5, rtol=1e-4)


def test_many_policies_at_once_are_what_each_is_alone(model, batch):
    kept = record(model, rows_of(batch, [0] * 50))
    rules = ("divergence_v1", "divergence_v3", "entropy", "pcee", "max_prob", "voting", "appointed")
    policies = [
        ExitPolicy(rule, threshold=tau, patience=t, window=3, min_layer=low, appointed_layer=3, ensemble=ensemble)
        for rule in rules
        for tau in (0.2, 0.7)
        for t in (1, 2)
        for low in (1, 3)
        for ensemble in ("none", "run", "all")
    ]
    kept.scores.room = 20_000  # some of the scores are forgotten, and worked out again
    for policy in policies:
        answers, layers = kept.replay(policy)
        expected, depths = replay(kept.evidence, policy, kept.exit_depths, SINGLE_LABEL)
        assert torch.equal(layers, depths) and torch.equal(answers, expected)
    assert len(kept.scores.known) < len({score_key(policy) for policy in policies})


def test_batches_are_left_as_they_are(model):
    given = {**tiny_batch(4), "labels": torch.tensor([0, 1, 1, 0])}
    first, second = (record(model, [given], progress=False) for _ in range(2))
    assert first.known_labels.tolist() == second.known_labels.tolist() == given["labels"].tolist()


def test_a_recording_says_where_it_came_from(model, batch):
    kept = record(model, rows_of(batch, [0] * 50), dataset="acme/letters", split="validation")
    assert kept.source["dataset"] == "acme/letters" and kept.source["split"] == "validation"
    assert {"model", "weights_sha256", "backbone", "backbone_sha256", "dtype", "device", "torch"} <= set(kept.source)


def test_a_recording_says_what_autocast_made_of_it(model, batch):
    with torch.autocast("cpu", dtype=torch.bfloat16):
        kept = record(model, [batch])
    assert kept.source["dtype"] == "float32 under autocast to bfloat16"
    assert record(model, [batch]).source["dtype"] == "float32"


def test_a_recording_is_read_back_as_it_was(model, batch, tmp_path):
    kept = record(model, rows_of(batch, [1] * 50), split="test")
    path = tmp_path / "deeper" / "kept.safetensors"
    kept.save(path)
    found = Recording.load(path)
    for one, other in zip((*kept.evidence, kept.lengths, kept.labels), (*found.evidence, found.lengths, found.labels)):
        assert torch.equal(one, other)
    assert (found.exit_depths, found.problem_type, found.source) == (kept.exit_depths, kept.problem_type, kept.source)
    assert [file.name for file in path.parent.iterdir()] == ["kept.safetensors"]


def test_a_recording_knows_what_the_model_calls_its_labels(tmp_path):
    model = tiny_model("bert", id2label={0: "refund", 1: "delivery", 2: "other"})
    record(model, [tiny_batch(4)]).save(tmp_path / "kept.safetensors")
    kept = Recording.load(tmp_path / "kept.safetensors")
    assert kept.label_names == kept.select(torch.tensor([0])).label_names == ["refund", "delivery", "other"]


def test_a_recording_from_before_labels_had_names_is_read(model, tmp_path):
    about = {"exit_depths": [1, 2], "problem_type": SINGLE_LABEL, "source": {}}
    parts = {"lengths": torch.tensor([3, 4]), "evidence.logits": torch.randn(2, 2, 3)}
    save_file(parts, tmp_path / "old.safetensors", {"recording": json.dumps(about)})
    assert Recording.load(tmp_path / "old.safetensors").label_names == []


def test_rows_without_labels_can_be_recorded_too(model, batch, tmp_path):
    kept = record(model, [dict(batch)])
    kept.save(tmp_path / "kept.safetensors")
    assert kept.labels is None and Recording.load(tmp_path / "kept.safetensors").labels is None


def test_a_damaged_or_foreign_file_is_one_clear_error(model, batch, tmp_path):
    path = tmp_path / "kept.safetensors"
    record(model, [dict(batch)]).save(path)
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(OSError, match="truncated, or not a recording"):
        Recording.load(path)
    path.write_text("no safetensors at all")
    with pytest.raises(OSError, match="truncated, or not a recording"):
        Recording.load(path)
    with pytest.raises(OSError):
        Recording.load(tmp_path / "missing.safetensors")


def test_parts_are_disjoint_and_together_everything(model, batch):
    kept = record(model, rows_of(batch, list(range(50))[:50]))
    one, other = kept.split(0.3, seed=2)
    assert len(one) == 15 and len(other) == 35
    assert sorted([*one.labels.tolist(), *other.labels.tolist()]) == list(range(50))
    assert torch.equal(one.evidence.logits, kept.evidence.logits[one.labels])
    with pytest.raises(ValueError, match="share=0.001"):
        kept.split(0.001)
