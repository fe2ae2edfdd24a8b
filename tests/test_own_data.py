"""Data of one's own: which columns are read as what, what labels become, and what is refused instead of guessed."""

import csv
import json
from pathlib import Path

import numpy as np
import pytest
from datasets import ClassLabel, Dataset, DatasetDict, Features, List, Value
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import f1_score
from test_examples import run
from tiny import save_backbone, tiny_model
from transformers import set_seed

from modeling_pfberxit.data import readers
from modeling_pfberxit.data.arrow import read_files
from modeling_pfberxit.data.labels import LISTS, VECTORS, label_column, read_form
from modeling_pfberxit.data.targets import read_names, read_targets
from modeling_pfberxit.data.tasks import encode, load_task
from modeling_pfberxit.evaluation.recording import record
from modeling_pfberxit.evaluation.saved_model import model_and_rows
from modeling_pfberxit.training.finetuning import new_model, new_tokenizer, new_trainer, training_arguments
from pfberxit.cli import main

SINGLE, SEVERAL, VALUES = "single_label_classification", "multi_label_classification", "regression"


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    return new_tokenizer(save_backbone(tmp_path_factory.mktemp("encoder")))


def rows(labels: list, /, **columns: list) -> list[dict]:
    """A text and a label each, and other columns."""
    others = [dict(zip(columns, values)) for values in zip(*columns.values())] or [{}] * len(labels)
    return [{"text": f"w{i} w1", "label": label, **more} for i, (label, more) in enumerate(zip(labels, others))]


def folder(path: Path, **splits: list[dict]) -> str:
    """A folder with one JSON Lines file for each split."""
    path.mkdir(exist_ok=True)
    for name, part in splits.items():
        (path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in part))
    return str(path)


def table(path: Path, header: list[str], *body: list) -> str:
    """A CSV file, or TSV by its name."""
    with open(path, "w", newline="") as file:
        csv.writer(file, delimiter="\t" if path.suffix == ".tsv" else ",").writerows([header, *body])
    return str(path)


def targets(path: str, tokenizer, split: str = "train", **named) -> tuple:
    task, data = load_task(path, **named)
    return task, encode(task, data[split], tokenizer)["labels"][:]


# ---- columns --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("columns", "texts"),
    [
        ({"label_text": ["no", "yes"]}, ("text",)),
        ({"id": ["t-1", "t-2"]}, ("text",)),
        ({"text_pair": ["a", "b"], "id": ["t-1", "t-2"]}, ("text", "text_pair")),
    ],
)
def test_a_column_with_the_answer_or_an_id_is_never_read_as_text(tmp_path, tokenizer, columns, texts):
    task, data = load_task(folder(tmp_path / "data", train=rows([0, 1], **columns), test=rows([0, 1], **columns)))
    assert task.texts == texts
    read = tokenizer.decode(encode(task, data["test"], tokenizer)[1]["input_ids"])
    assert "yes" not in read and "t-" not in read and read.count("[SEP]") == len(texts)


def test_the_only_column_beside_the_label_is_the_text(tmp_path):
    path = table(tmp_path / "reviews.csv", ["review", "stars"], ["w1", 1], ["w2", 2])
    assert load_task(path, label="stars")[0].texts == ("review",)


@pytest.mark.parametrize("header", [["a", "b", "label"], ["review", "id", "label"], ["text", "sentence", "label"]])
def test_texts_in_doubt_are_refused_with_the_columns_and_read_once_named(tmp_path, header):
    path = table(tmp_path / "data.csv", header, ["w1", "w2", 0], ["w3", "w4", 1])
    with pytest.raises(ValueError, match=rf"'{header[0]}', '{header[1]}', 'label'.*--text NAME.*text="):
        load_task(path)
    assert load_task(path, text=header[1], pair=header[0])[0].texts == (header[1], header[0])


@pytest.mark.parametrize(
    ("named", "message"),
    [
        ({"text": "body"}, "text='body': must be one of the columns text, other, label"),
        ({"pair": "other"}, "pair='other': must be given together with text"),
        ({"text": "label"}, "text='label': must be a column of strings"),
        ({"text": "text", "label": "text"}, "text='text': must be a column of its own"),
        ({"text": "text", "pair": "text"}, "must be a column of its own"),
        ({"label": ["label", "label"]}, "label=.*each named once"),
        ({"label": "stars"}, "label='stars': must be one of the columns"),
        ({"problem_type": "ranking"}, "problem_type='ranking': must be one of"),
        ({"label_form": "bits"}, "label_form='bits': must be one of lists, vectors"),
        ({"label_form": "lists"}, "label_form='lists': must be left out"),
        ({"problem_type": SEVERAL}, "problem_type='multi_label_classification': must be single_label"),
        ({"config": "sst2"}, "config='sst2': must be left out for files"),
    ],
)
def test_columns_and_readings_that_do_not_fit_are_refused_by_name(tmp_path, named, message):
    path = table(tmp_path / "data.csv", ["text", "other", "label"], ["w1", "w2", 0], ["w3", "w4", 1])
    with pytest.raises(ValueError, match=message):
        load_task(path, **named)


# ---- labels ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("labels", "names", "ids"),
    [
        (["b", "a", "b"], ("a", "b"), [1, 0, 1]),
        (["10", "9", "10"], ("9", "10"), [1, 0, 1]),
        ([True, False, True], ("False", "True"), [1, 0, 1]),
        ([30, 10, 20], ("10", "20", "30"), [2, 0, 1]),
        ([1, -1, 0], ("-1", "0", "1"), [2, 0, 1]),
        ([2, 0, 1], ("0", "1", "2"), [2, 0, 1]),
    ],
)
def test_classes_of_any_kind_become_ids_in_a_stated_order(tmp_path, tokenizer, labels, names, ids):
    task, found = targets(folder(tmp_path / "data", train=rows(labels), test=rows(labels)), tokenizer)
    assert (task.problem_type, task.labels, found) == (SINGLE, names, ids)
    assert new_model(tokenizer.name_or_path, task, adapter_dim=4).config.id2label == dict(enumerate(names))


@pytest.mark.parametrize(
    ("labels", "names", "vectors"),
    [
        ([["b"], ["a", "b"], []], ("a", "b"), [[0, 1], [1, 1], [0, 0]]),
        ([[1], [0, 2], []], ("0", "1", "2"), [[0, 1, 0], [1, 0, 1], [0, 0, 0]]),
        ([[3], [0]], ("0", "1", "2", "3"), [[0, 0, 0, 1], [1, 0, 0, 0]]),
        ([[20], [10, 30]], ("10", "20", "30"), [[0, 1, 0], [1, 0, 1]]),
        ([[0, 1, 0], [0, 1, 1]], ("0", "1", "2"), [[0, 1, 0], [0, 1, 1]]),
        ([[0, 1], [1, 1]], ("0", "1"), [[0, 1], [1, 1]]),
        ([[True, False], [False, True]], ("0", "1"), [[1, 0], [0, 1]]),
        ([[1.0, 0.0], [0.0, 1.0]], ("0", "1"), [[1, 0], [0, 1]]),
    ],
)
def test_lists_of_ids_of_names_and_vectors_are_told_apart(tmp_path, tokenizer, labels, names, vectors):
    task, found = targets(folder(tmp_path / "data", train=rows(labels), test=rows(labels)), tokenizer)
    assert (task.problem_type, task.labels, found) == (SEVERAL, names, vectors)


@pytest.mark.parametrize("labels", [[[0, 1], [1, 0]], [[0], [1]]])
def test_lists_that_both_readings_fit_are_refused_until_told(tmp_path, tokenizer, labels):
    path = folder(tmp_path / "data", train=rows(labels), test=rows(labels))
    with pytest.raises(ValueError, match=r"label=\[0.*both fit; label_form='lists' or 'vectors'.*--label-form"):
        load_task(path)
    assert targets(path, tokenizer, label_form="vectors")[1] == labels
    assert load_task(path, label_form="lists")[0].form == LISTS


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ([[0, 0], [1]], "row 1.*list of different ids|list of different ids.*row 1"),
        ([[0, 2, 2], [1, 0, 0]], "list of different ids"),
        ([[0.5, 0.5], [1.0, 0.0]], r"label\[0\]=\[0.5, 0.5\]"),
        ([["a", "a"], ["b"]], r"label\[0\]=\['a', 'a'\]: must be a list of different labels"),
        ([[0, -1], [1]], r"label\[0\]=\[0, -1\]"),
        ([[0, None], [1]], r"label\[0\]=\[0, None\]: must be given"),
        ([[], []], "type of label='lists of null'"),
        ([[[0]], [[1]]], "type of label='lists of List'"),
        ([{"a": 1}, {"a": 0}], "type of label='dict'"),
        (["[0, 1]", "[1]"], r"label\[0\]='\[0, 1\]': must be no list written as text"),
        (["a", "a"], r"labels of label=\['a'\]: must be at least two"),
        (["a", "a ", "b"], "more than the space around them"),
        (["a", " ", "b"], r"label\[1\]=' ': must be given.*row 1 of train"),
        ([0, None, 1], r"label\[1\]=None: must be given.*row 1 of train"),
        ([-1, -1], r"labels of label=\['-1'\]: must be at least two"),
        ([0, 1, -100], r"label\[2\]=-100: must be a class: -100 marks rows that have none .row 2 of train"),
        ([0.0, 1.0], "label=0.0: must be named as a class or a value.*problem_type=.*--problem-type"),
        (["0.5", "1"], "label='0.5': must be named as a class or a value"),
    ],
)
def test_labels_that_mean_nothing_certain_are_refused_by_row_and_value(tmp_path, labels, message):
    with pytest.raises(ValueError, match=message):
        load_task(folder(tmp_path / "data", train=rows(labels), test=rows(labels)))


def test_whole_floats_are_classes_or_values_once_told_and_whole_numbers_may_be_values(tmp_path, tokenizer):
    path = folder(tmp_path / "floats", train=rows([1.0, 0.0]), test=rows([0.0, 1.0]))
    task, found = targets(path, tokenizer, problem_type=SINGLE)
    assert (task.labels, found) == (("0", "1"), [1, 0])
    assert targets(path, tokenizer, problem_type=VALUES)[1] == [1.0, 0.0]
    path = folder(tmp_path / "whole", train=rows([1, 5]), test=rows([2, 3]))
    task, found = targets(path, tokenizer, "test", problem_type=VALUES)
    assert (task.num_labels, task.metric, found) == (1, "correlation", [2.0, 3.0])
    with pytest.raises(ValueError, match=r"label\[0\]=0.5: must be a whole number, for classes"):
        load_task(folder(tmp_path / "broken", train=rows([0.5, 1.0]), test=rows([1.0])), problem_type=SINGLE)


@pytest.mark.parametrize("label", [("toxic", "spam"), ["toxic,spam"], "toxic, spam"])
@pytest.mark.parametrize(("no", "yes"), [(0, 1), ("False", "True")])
def test_a_column_for_every_label_makes_several_labels_with_their_names(tmp_path, tokenizer, label, no, yes):
    path = table(tmp_path / "data.csv", ["text", "toxic", "spam"], ["w1", no, yes], ["w2", yes, yes], ["w3", no, no])
    task, data = load_task(path, label=label)
    assert (task.problem_type, task.labels) == (SEVERAL, ("toxic", "spam"))
    answers = {row["text"]: [float(str(row[name]) in ("1", "True")) for name in task.labels] for row in data["train"]}
    assert encode(task, data["train"], tokenizer)["labels"][:] == list(answers.values())
    path = table(tmp_path / "bad.csv", ["text", "toxic", "spam"], ["w1", 0, 2], ["w2", 1, 0])
    with pytest.raises(ValueError, match=r"spam\[0\]=2: must be 0 or 1"):
        load_task(path, label=label)


def test_ids_of_a_class_label_are_ids_for_sure_and_known_without_a_row(tmp_path, tokenizer):
    kind = Features({"text": Value("string"), "labels": List(ClassLabel(names=["x", "y", "z"]))})
    Dataset.from_dict({"text": ["w1", "w2"], "labels": [[0, 1], [1, 0]]}, kind).to_parquet(tmp_path / "train.parquet")
    task, found = targets(str(tmp_path), tokenizer)
    assert (task.labels, set(map(tuple, found))) == (("x", "y", "z"), {(1.0, 1.0, 0.0)})
    with pytest.raises(ValueError, match="label_form='vectors': must be lists"):
        load_task(str(tmp_path), label_form="vectors")


@pytest.mark.parametrize(
    ("train", "test", "message"),
    [
        (["a", "b"], ["a", "c"], r"label\[1\]='c': must be one of the known labels a, b \(row 1 of test"),
        ([["a"], ["b"]], [["a"], ["c"]], r"label\[1\]=\['c'\]: must be one of the known labels a, b"),
        ([[0, 0], [1, 1]], [[0, 1, 1]], r"label\[0\]=\[0, 1, 1\]: must be 2 entries of 0 and 1"),
        ([0, 1], [-1, -1], "all rows of test have -1"),
        (["a", "b"], [0, 1], "type of label in test='int64': must be string, as in train"),
        (["a", "b"], [["a"], ["b"]], "label of test="),
    ],
)
def test_labels_that_only_the_evaluation_split_has_are_refused_before_training(tmp_path, train, test, message):
    with pytest.raises(ValueError, match=message):
        load_task(folder(tmp_path / "data", train=rows(train), test=rows(test)))


@settings(max_examples=60, deadline=None)
@given(st.lists(st.lists(st.integers(0, 3), max_size=3), min_size=2, max_size=6))
def test_lists_of_numbers_are_read_one_way_or_not_at_all(labels):
    """Held against the definition, written out: which of the two readings every row allows."""
    features = Features({"labels": List(Value("int64"))})
    column = label_column(Dataset.from_dict({"labels": labels}, features), "labels", "train")
    as_lists = all(len(set(row)) == len(row) for row in labels)
    as_vectors = len({len(row) for row in labels}) == 1 and labels[0] and {x for row in labels for x in row} <= {0, 1}
    if bool(as_lists) == bool(as_vectors):
        with pytest.raises(ValueError):
            read_form(column, None, None, None)
    elif as_vectors:
        assert read_form(column, None, None, None) == VECTORS
        assert read_targets(column, VECTORS, read_names(column, VECTORS)) == labels
    elif any(labels):
        assert read_form(column, None, None, None) == LISTS
        names = read_names(column, LISTS)
        found = read_targets(column, LISTS, names)
        assert [{names[i] for i, given in enumerate(row) if given} for row in found] == [
            {str(x) for x in row} for row in labels
        ]


KINDS = st.integers(-9, 99), st.booleans(), st.text("abc", min_size=1)


@settings(max_examples=60, deadline=None)
@given(st.one_of(st.lists(kind, min_size=2, max_size=8) for kind in KINDS))
def test_a_class_keeps_its_name_and_names_their_order(labels):
    data = Dataset.from_dict({"label": labels})
    column = label_column(data, "label", "train")
    if len(set(labels)) < 2:
        with pytest.raises(ValueError, match="at least two"):
            read_names(column, read_form(column, None, None, None))
        return
    names = read_names(column, read_form(column, None, None, None))
    assert [names[i] for i in read_targets(column, "class", names)] == list(map(str, labels))
    assert list(names) == [str(value) for value in sorted(set(labels))]


# ---- files ----------------------------------------------------------------------------------------------------------


def in_file(path: Path, data: Dataset) -> str:
    """The rows in a file of the kind that its name says."""
    writers = {
        ".csv": data.to_csv,
        ".tsv": lambda to: data.to_csv(to, sep="\t"),
        ".json": lambda to: to.write_text(json.dumps(data.to_list())),
        ".jsonl": data.to_json,
        ".parquet": data.to_parquet,
    }
    writers[path.suffix](path)
    return str(path)


@pytest.mark.parametrize("suffix", [".csv", ".tsv", ".json", ".jsonl", ".parquet"])
def test_one_file_of_any_kind_is_read_and_a_fifth_held_out_the_same_every_time(tmp_path, suffix):
    data = Dataset.from_list(rows(["NA", "None"] * 10))
    path = in_file(tmp_path / f"messages{suffix}", data)
    (task, parts), (_, again) = load_task(path), load_task(path)
    assert (task.name, task.labels, task.evaluation_split) == ("messages", ("NA", "None"), "validation")
    assert (len(parts["train"]), len(parts["validation"])) == (16, 4)
    assert parts["validation"]["text"][:] == again["validation"]["text"][:]
    assert sorted([*parts["train"]["text"], *parts["validation"]["text"]]) == sorted(data["text"])


@pytest.mark.parametrize("place", ["folder", "Hub id"])
def test_a_saved_model_is_evaluated_on_the_rows_its_training_held_out(tmp_path, monkeypatch, place):
    kept = folder(tmp_path / "data", train=rows(["no", "yes"] * 10))
    if place == "Hub id":
        splits = DatasetDict(train=Dataset.from_list(rows(["no", "yes"] * 10)))
        monkeypatch.setattr(readers, "load_dataset", lambda name, config: DatasetDict(splits))
        kept = "someone/messages"
    task, parts = load_task(kept)
    model = tiny_model(id2label={0: "no", 1: "yes"})
    of_model, again = load_task(kept, model=model)
    assert task.evaluation_split == of_model.evaluation_split == "validation"
    assert (len(parts["train"]), len(parts["validation"])) == (16, 4)
    assert again["validation"]["text"][:] == parts["validation"]["text"][:]
    assert not set(again["validation"]["text"]) & set(again["train"]["text"])


def test_a_split_to_evaluate_on_is_left_as_it_is(tmp_path):
    path = folder(tmp_path / "data", train=rows([0, 1]), validation=rows([1]), test=rows([-1, -1]))
    task, data = load_task(path)
    assert task.evaluation_split == "validation" and [len(data[name]) for name in data] == [2, 1, 2]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.csv", "", "a.csv': must be a file with rows"),
        ("a.csv", "text,label\n", "a.csv': must be a file with rows"),
        ("a.jsonl", "\n", "a.jsonl': must be a file with rows"),
        ("a.json", "[]", "a.json': must be a file with rows"),
        ("a.csv", "text,text,label\nw1,w2,1\n", "columns of a.csv=.*different names"),
        ("a.csv", "text,label\nw1,1,3\nw2,0\n", "a.csv, line 2=.*must be 2 cells"),
        ("a.tsv", 'text\tlabel\n"w1\t1\nw2" w3\t2\n', "could not be loaded"),
        ("a.csv", "text,label\nw1,1\n,0\n", r"text\[1\]=None: must be a text.*row 1 of train"),
        ("a.csv", "text,label\nw1,0.5\nw2,nan\n", r"label\[1\]=None: must be given"),
        ("a.csv", "text,label\nw1,1\nw2,\n", r"label\[1\]=None: must be given"),
        ("a.jsonl", '{"text": "w1", "label": 1}\n{"text": "w2"}\n', r"label\[1\]=None: must be given"),
        ("a.jsonl", '{"text": "w1", "label": 1}\n{"text": "w2", oops\n', "a.jsonl.*could not be loaded"),
        ("a.jsonl", '{"text": "w1", "text": "w2", "label": 1}\n', "a.jsonl.*twice"),
        ("a.doc", "w1", r"a.doc': must be a file that ends in .csv, .tsv, .json, .jsonl, .parquet, .txt"),
        ("a.csv", "text,label\n1,0\n2,1\n", "text='text': must be a column of strings; this one holds Value.'int64'"),
        ("a.jsonl", '{"text": " ", "label": 1}\n{"text": "w1", "label": 0}\n', r"text\[0\]=' ': must be a text"),
    ],
)
def test_a_file_in_an_odd_shape_ends_in_one_message(tmp_path, name, content, message):
    (tmp_path / name).write_text(content)
    with pytest.raises((ValueError, OSError), match=message) as caught:
        load_task(str(tmp_path / name))
    assert "\n" not in str(caught.value)


def test_a_split_without_a_column_or_no_train_split_is_refused_by_name(tmp_path):
    path = folder(tmp_path / "data", train=rows([0, 1]), test=[{"text": "w1"}])
    with pytest.raises(ValueError, match=r"columns of test=\['text'\]: must be with label"):
        load_task(path)
    with pytest.raises(ValueError, match=r"splits=\['test'\]: must be with one called train"):
        load_task(folder(tmp_path / "other", test=rows([0, 1])))


CELLS = st.tuples(st.text(min_size=1, max_size=8), st.sampled_from(["x", "None", "007", "1e5", "True"]))


@settings(max_examples=40, deadline=None)
@given(cells=st.lists(CELLS, min_size=1, max_size=6))
def test_a_csv_gives_back_the_texts_that_went_into_it(tmp_path_factory, cells):
    cells = [(f"w {text}".replace("\r", "").replace("\0", ""), label) for text, label in cells]
    try:
        json.dumps(cells, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        return  # half a surrogate pair is in no file
    path = table(tmp_path_factory.mktemp("csv") / "data.csv", ["text", "label"], *cells)
    assert read_files([Path(path)])["text"][:] == [text for text, _ in cells]


def test_rows_without_a_text_and_unknown_labels_are_refused_while_encoding_and_long_texts_cut(tmp_path, tokenizer):
    task, _ = load_task(folder(tmp_path / "data", train=rows(["a", "b"]), test=rows(["a"])))
    for text in (None, "", " \n"):
        bad = Dataset.from_dict({"text": ["w1", text], "label": ["a", "b"]})
        with pytest.raises(ValueError, match=r"text\[1\]=.*row 1 of the rows"):
            encode(task, bad, tokenizer)
    with pytest.raises(ValueError, match=r"label\[0\]='c': must be one of the known labels a, b"):
        encode(task, Dataset.from_dict({"text": ["w1"], "label": ["c"]}), tokenizer)
    long = Dataset.from_dict({"text": ["w1 " * 50], "label": ["b"]})
    found = encode(task, long, tokenizer, max_length=12)
    assert len(found[0]["input_ids"]) == 12 and found[0]["labels"] == 1


# ---- saved models ---------------------------------------------------------------------------------------------------


def saved_as(*names: str, problem_type: str = SINGLE):
    named = {"id2label": dict(enumerate(names)), "label2id": {name: i for i, name in enumerate(names)}}
    return tiny_model(**named, problem_type=problem_type)


@pytest.mark.parametrize(
    ("labels", "names", "expected"),
    [
        (["a", "b"], ("b", "a"), [1, 0]),
        (["b", "b"], ("b", "a"), [0, 0]),
        ([0, 1], ("b", "a"), [0, 1]),
        ([20, 10], ("10", "20", "30"), [1, 0]),
        ([True, False], ("False", "True"), [1, 0]),
    ],
)
def test_labels_are_found_among_those_of_a_saved_model(tmp_path, tokenizer, labels, names, expected):
    path = folder(tmp_path / "data", test=rows(labels))
    assert targets(path, tokenizer, "test", model=saved_as(*names))[1] == expected


def test_class_labels_meet_a_model_by_name_or_by_id_where_it_has_none(tmp_path, tokenizer):
    kind = Features({"text": Value("string"), "label": ClassLabel(names=["no", "yes"])})
    Dataset.from_dict({"text": ["w1", "w2"], "label": [0, 1]}, kind).to_parquet(tmp_path / "test.parquet")
    for names, expected in ((("yes", "no"), [1, 0]), (("0", "1"), [0, 1]), (("LABEL_0", "LABEL_1"), [0, 1])):
        assert targets(str(tmp_path), tokenizer, "test", model=saved_as(*names))[1] == expected
    with pytest.raises(ValueError, match=r"label\[0\]=0: must be one of the known labels good, bad"):
        load_task(str(tmp_path), model=saved_as("good", "bad"))


@pytest.mark.parametrize(
    ("labels", "names", "problem_type", "message"),
    [
        (["a", "x"], ("a", "b"), SINGLE, r"label\[1\]='x': must be one of the known labels a, b"),
        ([0, 1], ("10", "20"), SINGLE, r"label\[0\]=0: must be one of the known labels 10, 20"),
        ([2, 3], ("a", "b"), SINGLE, r"label\[0\]=2: must be one of"),
        (["a", "b"], ("value",), VALUES, "type of label='string': must be numbers, for regression"),
        ([["a"], ["b"]], ("a", "b"), SINGLE, "problem_type='single_label_classification'"),
        ([[0, 1, 1], [0, 0, 0]], ("a", "b"), SEVERAL, r"label\[0\]=\[0, 1, 1\]"),
    ],
)
def test_labels_that_a_saved_model_does_not_have_are_refused(tmp_path, labels, names, problem_type, message):
    path = folder(tmp_path / "data", test=rows(labels))
    with pytest.raises(ValueError, match=message):
        load_task(path, model=saved_as(*names, problem_type=problem_type))


def test_columns_for_every_label_stand_in_the_order_of_a_saved_model(tmp_path, tokenizer):
    path = table(tmp_path / "data.csv", ["text", "toxic", "spam"], ["w1", 0, 1], ["w2", 0, 1])
    model = saved_as("spam", "toxic", problem_type=SEVERAL)
    assert targets(path, tokenizer, label=("toxic", "spam"), model=model)[1] == [[1.0, 0.0]]
    with pytest.raises(ValueError, match="label=.*must be the model's, spam, toxic"):
        load_task(table(tmp_path / "x.csv", ["text", "a", "b"], ["w1", 0, 1], ["w2", 1, 1]), label="a,b", model=model)


# ---- from file to model ---------------------------------------------------------------------------------------------


def test_a_model_learns_the_labels_of_vectors_and_not_their_entries(tmp_path, tokenizer):
    """Topics with a word each; scored by scikit-learn on what the file says."""
    random = np.random.default_rng(0)
    given = random.integers(0, 2, (240, 4))
    texts = [" ".join(f"w{j}" for j in range(4) if row[j]) or "w9" for row in given]
    data = [{"text": text, "labels": row.tolist()} for text, row in zip(texts, given)]
    task, splits = load_task(folder(tmp_path / "data", train=data[:200], test=data[200:]))
    set_seed(0)
    model = new_model(tokenizer.name_or_path, task, adapter_dim=8, exit_pooling="mean")
    train, test = (encode(task, splits[name], tokenizer) for name in ("train", "test"))
    quick = {"max_steps": 60, "learning_rate": 1e-2, "bf16": False, "report_to": "none", "disable_tqdm": True}
    trainer = new_trainer(model, task, tokenizer, training_arguments(str(tmp_path / "out"), **quick), train, test)
    trainer.train()
    answers = record(model, test).evidence.logits[:, -1] > 0  # in the rows' order, which `trainer.predict` is not
    assert f1_score(given[200:], answers, average="micro") > 0.9


def test_one_csv_is_trained_on_and_every_command_on_the_model_reads_its_labels(tmp_path, hub_backbone, capsys):
    body = [[f"w{i % 9} w{20 + i % 2}", f"d{i}", "yes" if i % 2 else "no"] for i in range(60)]
    path, other = table(tmp_path / "mine.csv", ["message", "id", "intent"], *body), tmp_path / "other.csv"
    named, folder = ["--text", "message", "--label", "intent"], str(tmp_path / "model")
    quick = ["--max_steps", "2", "--bf16", "False", "--per_device_train_batch_size", "8", "--report_to", "none"]
    run("01_finetune.py", "--backbone", hub_backbone, "--dataset", path, *named, "--output_dir", folder, *quick)
    assert "accuracy on validation" in capsys.readouterr().out
    assert json.loads(Path(folder, "config.json").read_text())["id2label"] == {"0": "no", "1": "yes"}

    run("02_infer.py", folder, "--dataset", path, *named, "--steps", "2", "--patience", "1")
    calibrated = ["calibrate", folder, "--dataset", path, *named, "--speed-up", "1.1", "--criteria", "appointed"]
    for rows, split in (
        ("chosen on 6 rows, reported on 6", []),
        ("chosen on 30 rows, reported on 30", ["--split", "all"]),
    ):
        main([*calibrated, *split])
        assert rows in capsys.readouterr().out
    assert (
        model_and_rows(folder, path, None, "all", 0, {"text": "message", "label": "intent"})[2]["labels"] == [0, 1] * 30
    )
    main(["precision", folder, "--dataset", path, *named, "--policy", "1.1x"])
    table(other, ["message", "id", "intent"], *([text, number, f"{label}!"] for text, number, label in body))
    for command in ("frontier", "calibrate", "precision"):
        with pytest.raises(SystemExit, match=r"intent\[0\]='no!': must be one of the known labels no, yes"):
            main([command, folder, "--dataset", str(other), *named])
        with pytest.raises(SystemExit, match="dataset=.*'message', 'id', 'intent'.*--label NAME"):
            main([command, folder, "--dataset", path])
