"""The data set in the package, and how tasks are read from data sets."""

import re
from collections import Counter
from itertools import combinations

import pytest
from datasets import ClassLabel, Dataset, DatasetDict, Features, Sequence, Value
from tiny import save_backbone

from modeling_pfberxit.data import DIFFICULTIES, INTENTS, TOPICS, read_support_desk
from modeling_pfberxit.data.tasks import encode, load_task
from modeling_pfberxit.training.finetuning import new_tokenizer

ROWS = read_support_desk()


def test_there_are_six_hundred_rows_to_train_on_and_two_hundred_to_test_on():
    splits = Counter(row["split"] for row in ROWS)
    assert splits["train"] >= 600 and splits["test"] >= 200
    assert set(splits) == {"train", "test"}


def test_every_row_is_complete():
    for row in ROWS:
        assert row["intent"] in INTENTS and row["difficulty"] in DIFFICULTIES
        assert 1 <= len(row["topics"]) <= 3 and set(row["topics"]) <= set(TOPICS)
        assert 0 <= row["urgency"] <= 1
        assert 4 <= len(row["text"].split()) <= 60


def test_intents_and_difficulties_are_spread_alike_over_the_splits():
    for split, expected in (("train", {"plain": 40, "contrast": 30, "indirect": 30}), ("test", None)):
        counts = Counter((row["intent"], row["difficulty"]) for row in ROWS if row["split"] == split)
        for intent in INTENTS:
            found = {kind: counts[intent, kind] for kind in DIFFICULTIES}
            assert found == (expected or {"plain": 14, "contrast": 10, "indirect": 10})


def test_no_message_is_a_variant_of_another():
    words = [frozenset(re.findall(r"[a-z']+", row["text"].lower())) for row in ROWS]
    assert len(set(words)) == len(ROWS)
    closest = max(len(a & b) / len(a | b) for a, b in combinations(words, 2))
    assert closest < 0.5
    openings = Counter(tuple(row["text"].lower().split()[:4]) for row in ROWS)
    assert max(openings.values()) <= 3


@pytest.mark.parametrize(
    ("config", "problem", "labels", "metric"),
    [
        ("intent", "single_label_classification", 6, "accuracy"),
        ("topics", "multi_label_classification", 8, "micro_f1"),
        ("urgency", "regression", 1, "correlation"),
    ],
)
def test_the_three_problems_are_read_from_it(config, problem, labels, metric, tmp_path):
    task, data = load_task("support_desk", config)
    assert (task.problem_type, task.num_labels, task.metric) == (problem, labels, metric)
    rows = encode(task, data["test"], new_tokenizer(save_backbone(tmp_path)))
    assert set(rows.column_names) == {"input_ids", "attention_mask", "token_type_ids", "labels"}
    first, original = rows[0]["labels"], [row for row in ROWS if row["split"] == "test"][0]
    if config == "intent":
        assert INTENTS[first] == original["intent"]
    elif config == "topics":
        assert [name for name, given in zip(TOPICS, first, strict=True) if given] == sorted(
            original["topics"], key=TOPICS.index
        )
    else:
        assert first == original["urgency"]


def stored(tmp_path, features: Features, rows: dict) -> str:
    data = Dataset.from_dict(rows, features=features)
    DatasetDict({"train": data, "validation": data})
    data.to_parquet(tmp_path / "train.parquet")
    data.to_parquet(tmp_path / "validation.parquet")
    return str(tmp_path)


def test_any_data_set_with_text_and_label_will_do(tmp_path):
    features = Features(
        {"question": Value("string"), "passage": Value("string"), "label": ClassLabel(names=["no", "yes"])}
    )
    folder = stored(tmp_path, features, {"question": ["a?", "b?"], "passage": ["x", "y"], "label": [0, 1]})
    task, data = load_task(folder)
    assert task.texts == ("question", "passage")
    assert task.labels == ("no", "yes")
    assert task.evaluation_split == "validation"
    assert len(data["train"]) == 2


def test_lists_of_ids_are_several_labels_and_floats_a_value(tmp_path):
    several = Features({"text": Value("string"), "labels": Sequence(Value("int64"))})
    (tmp_path / "several").mkdir()
    task, _ = load_task(stored(tmp_path / "several", several, {"text": ["a", "b"], "labels": [[0, 2], [1]]}))
    assert (task.problem_type, task.labels) == ("multi_label_classification", ("0", "1", "2"))
    value = Features({"text": Value("string"), "label": Value("float32")})
    (tmp_path / "value").mkdir()
    task, _ = load_task(stored(tmp_path / "value", value, {"text": ["a", "b"], "label": [0.5, 2.0]}))
    assert (task.problem_type, task.num_labels) == ("regression", 1)


@pytest.mark.parametrize("column", ["label", "labels"])
def test_several_labels_become_floats_whatever_their_column_is_called(tmp_path, column):
    kind = Features({"text": Value("string"), column: Sequence(ClassLabel(names=["a", "b", "c"]))})
    (tmp_path / "data").mkdir()
    task, data = load_task(stored(tmp_path / "data", kind, {"text": ["x", "y"], column: [[0, 2], [1]]}))
    rows = encode(task, data["train"], new_tokenizer(save_backbone(tmp_path / "encoder")))
    assert rows["labels"][:] == [[1.0, 0.0, 1.0], [0.0, 1.0, 0.0]]
    assert rows.features["labels"].feature.dtype.startswith("float")


def test_a_data_set_without_labels_is_refused_by_its_columns(tmp_path):
    folder = stored(tmp_path, Features({"text": Value("string")}), {"text": ["a"]})
    with pytest.raises(ValueError, match=r"dataset=\['text'\].*`label` or `labels`"):
        load_task(folder)


def test_a_missing_data_set_ends_in_one_clear_error(tmp_path):
    with pytest.raises(OSError, match="dataset='.*nothing', config='sst2': could not be loaded"):
        load_task(str(tmp_path / "nothing"), "sst2")
    with pytest.raises(ValueError, match="config='mood'.*intent, topics, urgency"):
        load_task("support_desk", "mood")
