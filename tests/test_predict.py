"""`pfberxit predict`: every row with the model's own answer, in order, whatever the file, after any interruption."""

import csv
import datetime
import io
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from datasets import Dataset
from tiny import save_backbone, tiny_config, tiny_model
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from modeling_pfberxit import PFBerxitForSequenceClassification
from modeling_pfberxit.data import outputs
from modeling_pfberxit.data.survey import open_rows
from modeling_pfberxit.evaluation.prediction import worded
from pfberxit.cli import main

POLICY = '{"threshold": 0.6, "patience": 1}'
SINGLE, SEVERAL, VALUES = "single_label_classification", "multi_label_classification", "regression"


def saved(folder: Path, names: tuple[str, ...], problem_type: str = SINGLE, **more) -> str:
    """A model of random weights with a tokenizer of the words w0, w1 ..., in a folder."""
    named = {"id2label": dict(enumerate(names)), "label2id": {name: i for i, name in enumerate(names)}}
    tiny_model(**named, problem_type=problem_type, **more).save_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(save_backbone(folder.with_name(f"{folder.name}-encoder")))
    tokenizer.model_max_length = 40
    tokenizer.save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> str:
    return saved(tmp_path_factory.mktemp("models") / "intents", ("refund", "delivery", "other"))


TEXTS = [" ".join(f"w{(i * j) % 97}" for j in range(1, 3 + i % 9)) for i in range(1, 31)]


def csv_of(path: Path, header: list[str], rows: list) -> str:
    with open(path, "w", newline="", encoding="utf-8") as file:
        csv.writer(file, delimiter="\t" if path.suffix == ".tsv" else ",").writerows([header, *rows])
    return str(path)


def read(path: Path) -> list[dict]:
    """The rows of an output."""
    if path.suffix == ".jsonl":
        return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    with open(path, newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file, delimiter="\t" if path.suffix == ".tsv" else ","))


def alone(folder: str, *texts: str, policy: str = POLICY):
    """The model's output for one text, by the call and not by `predict`."""
    model = PFBerxitForSequenceClassification.from_pretrained(folder).eval()
    tokens = AutoTokenizer.from_pretrained(folder)(*texts, return_tensors="pt", truncation=True, max_length=40)
    with torch.inference_mode():
        return model(**tokens, exit_policy=json.loads(policy))


def predict(model: str, data: str, output: Path, *more: str) -> list[dict]:
    main(["predict", model, data, "--output", str(output), "--device", "cpu", *more])
    return read(output)


def test_every_row_has_the_label_score_and_layer_of_a_call_for_it_alone_and_keeps_its_columns(tmp_path, model, capsys):
    rows = [[f"00{i}", text, 'x, y\n"z"' if i % 2 else ""] for i, text in enumerate(TEXTS)]
    data = csv_of(tmp_path / "new.csv", ["id", "message", "note"], rows)
    found = predict(model, data, tmp_path / "answers.csv", "--text", "message", "--policy", POLICY)
    assert list(found[0]) == ["id", "message", "note", "label", "score", "exit_layer"]
    assert [[row["id"], row["message"], row["note"]] for row in found] == rows
    for row, text in zip(found, TEXTS):
        output = alone(model, text)
        best = output.logits.softmax(-1)[0].max(-1)
        assert row["label"] == ("refund", "delivery", "other")[best.indices]
        assert float(row["score"]) == pytest.approx(best.values.item(), abs=2e-5)
        assert int(row["exit_layer"]) == output.exit_layer.item()
    assert len({row["exit_layer"] for row in found}) > 1
    assert "30 rows" in (printed := capsys.readouterr().out) and "a second" in printed


def test_an_answer_of_broken_weights_is_not_said_to_be_unsure(tmp_path, model, capsys):
    folder = shutil.copytree(model, tmp_path / "broken")
    broken = PFBerxitForSequenceClassification.from_pretrained(folder)
    torch.nn.init.constant_(broken.exits.classifiers[-1].weight, torch.nan)
    broken.save_pretrained(folder)
    found = predict(str(folder), csv_of(tmp_path / "new.csv", ["text"], [["w1"], ["w2 w3"]]), tmp_path / "a.csv")
    assert [row["label"] for row in found] == ["", ""]
    assert "2 rows have no answer" in (printed := capsys.readouterr().out) and "unsure" not in printed


@pytest.mark.parametrize("ending", [".tsv", ".jsonl", ".json", ".parquet", ".txt"])
def test_files_of_every_kind_get_the_same_answers(tmp_path, model, ending):
    data = tmp_path / f"new{ending}"
    table = Dataset.from_dict({"text": TEXTS, "label": list(range(len(TEXTS)))})
    writers = {
        ".tsv": lambda: table.to_csv(data, sep="\t"), ".jsonl": lambda: table.to_json(data),
        ".json": lambda: data.write_text(json.dumps(table.to_list())), ".parquet": lambda: table.to_parquet(data),
        ".txt": lambda: data.write_text("\n".join(TEXTS)),
    }  # fmt: skip
    writers[ending]()
    reference = predict(model, csv_of(tmp_path / "x.csv", ["text"], [[t] for t in TEXTS]), tmp_path / "x.jsonl")
    found = predict(model, str(data), tmp_path / "answers.jsonl")
    answer = [(row["text"], row["label"], row["score"], row["exit_layer"]) for row in reference]
    assert [(row["text"], row["label"], row["score"], row["exit_layer"]) for row in found] == answer
    assert ending == ".txt" or [row["input_label"] for row in found] == [*map(type(found[0]["input_label"]), range(30))]


def test_columns_called_like_ours_are_kept_under_other_names(tmp_path, model):
    header = ["text", "label", "input_label", "score", "exit_layer"]
    data = csv_of(tmp_path / "new.csv", header, [["w1", "gold", "older", "9", "7"]])
    (row,) = predict(model, data, tmp_path / "a.csv")
    assert list(row) == ["text", "input_input_label", "input_label", "input_score", "input_exit_layer",
                         "label", "score", "exit_layer"]  # fmt: skip
    assert (row["input_input_label"], row["input_label"], row["input_score"]) == ("gold", "older", "9")
    assert row["label"] in ("refund", "delivery", "other")


def test_several_labels_are_joined_and_values_are_numbers(tmp_path):
    data = csv_of(tmp_path / "new.csv", ["text"], [[text] for text in TEXTS])
    several = saved(tmp_path / "several", ("a", "b;c", "d"), SEVERAL)
    values = saved(tmp_path / "values", ("urgency",), VALUES)
    full = '{"criterion": null}'
    for row in predict(several, data, tmp_path / "several.csv", "--policy", full):
        sure = alone(several, row["text"], policy=full).logits[0].sigmoid()
        names = [name for name, each in zip(("a", "b;c", "d"), sure) if each > 0.5]
        assert row["label"] == "|".join(names)
        assert float(row["score"]) == pytest.approx(torch.maximum(sure, 1 - sure).min().item(), abs=2e-5)
    for row in predict(values, data, tmp_path / "values.csv", "--policy", full):
        assert float(row["label"]) == pytest.approx(alone(values, row["text"], policy=full).logits.item(), abs=2e-5)
        assert row["score"] == "" and row["exit_layer"] == "6"


def test_labels_whose_names_have_every_separator_are_a_list_in_json():
    answers = worded(tiny_model(id2label={0: "a;b", 1: "c|d", 2: "e, f"}, problem_type=SEVERAL),
                     torch.tensor([[1.0, -1, 2], [-1, -1, -1]]), [3, 6])  # fmt: skip
    assert [json.loads(label) for label, _, _ in answers] == [["a;b", "e, f"], []]


def test_labels_with_thresholds_of_their_own_are_said_by_name(model, tmp_path, capsys):
    rule = '{"criterion": "entropy", "threshold": 0.6, "label_thresholds": {"other": null}}'
    predict(model, csv_of(tmp_path / "new.csv", ["text"], [["w1"]]), tmp_path / "a.csv", "--policy", rule)
    assert "entropy, threshold 0.6, other never" in capsys.readouterr().out


def test_pairs_are_read_together(tmp_path, model):
    data = csv_of(tmp_path / "new.csv", ["a", "b"], [["w1 w2", "w3"], ["w4", "w5 w6"]])
    for row in predict(model, data, tmp_path / "a.csv", "--text", "a", "--pair", "b", "--policy", POLICY):
        output = alone(model, row["a"], row["b"])
        assert float(row["score"]) == pytest.approx(output.logits.softmax(-1).max().item(), abs=2e-5)


def test_rows_without_a_text_get_an_empty_answer_and_cut_texts_are_counted(tmp_path, model, capsys):
    (tmp_path / "new.txt").write_text("w1 w2\n\n  \n" + "w3 " * 60 + "\nw4")
    found = predict(model, str(tmp_path / "new.txt"), tmp_path / "a.jsonl")
    assert [row["label"] is None for row in found] == [False, True, True, False, False]
    assert found[1]["score"] is None and found[1]["exit_layer"] is None and len(found) == 5
    printed = capsys.readouterr().out
    assert "2 rows have no text" in printed and "1 texts are longer than 40 tokens and were cut" in printed


def test_what_comes_through_a_pipe_is_read_as_a_table_once_columns_are_named(tmp_path, model, monkeypatch):
    from modeling_pfberxit.data import readers

    for number, (content, named) in enumerate([
        ("id,message\n7,w1 w2\n", ["--text", "message"]), ("w1 w2\n", []), ('{"text": "w1 w2"}\n', []),
    ]):  # fmt: skip
        readers.spooled.cache_clear()
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(content.encode())))
        (row,) = predict(model, "-", tmp_path / f"{number}.csv", *named)
        assert row["label"] == predict(model, csv_of(tmp_path / "x.csv", ["text"], [["w1 w2"]]),
                                       tmp_path / f"same-{number}.csv")[0]["label"]  # fmt: skip
    readers.spooled.cache_clear()


# ---- restarts --------------------------------------------------------------------------------------------------------


def interrupted(monkeypatch, after: int, junk: bytes = b"") -> None:
    """Kill the next run after so many chunks, perhaps in the middle of a row."""
    append, count = outputs.GrowingFile.append, iter(range(100))

    def stop(self, rows):
        if next(count) == after:
            with open(self.part, "ab") as file:
                file.write(junk)
            raise KeyboardInterrupt
        append(self, rows)

    monkeypatch.setattr(outputs.GrowingFile, "append", stop)


@pytest.mark.parametrize(("after", "junk"), [(0, b""), (1, b""), (2, b'w1,"ref')])
@pytest.mark.parametrize("ending", [".csv", ".jsonl"])
def test_a_run_that_was_killed_goes_on_and_ends_byte_for_byte_as_one_that_was_not(
    tmp_path, model, monkeypatch, capsys, after, junk, ending
):
    monkeypatch.setattr("modeling_pfberxit.evaluation.prediction.WINDOW", 4)
    data = csv_of(tmp_path / "new.csv", ["text"], [[text] for text in TEXTS])
    asked = ["--policy", POLICY, "--batch-size", "2"]
    predict(model, data, tmp_path / f"whole{ending}", *asked)
    with monkeypatch.context() as patched:
        interrupted(patched, after, junk)
        with pytest.raises(KeyboardInterrupt):
            predict(model, data, tmp_path / f"again{ending}", *asked)
    assert not (tmp_path / f"again{ending}").exists(), "a file of this name is whole"
    capsys.readouterr()
    predict(model, data, tmp_path / f"again{ending}", *asked)
    assert (f"behind row {8 * after}" in capsys.readouterr().out) is bool(after)
    assert (tmp_path / f"again{ending}").read_bytes() == (tmp_path / f"whole{ending}").read_bytes()
    assert not list(tmp_path.glob("*.part*"))


def test_files_of_others_and_of_other_runs_are_left_as_they_are(tmp_path, model, monkeypatch):
    data = csv_of(tmp_path / "new.csv", ["text"], [[text] for text in TEXTS])
    other = csv_of(tmp_path / "other.csv", ["text"], [["w1"]])
    mine = tmp_path / "mine.csv"
    mine.write_text("precious")
    with pytest.raises(SystemExit, match="output=.*mine.csv.*nothing is overwritten"):
        predict(model, data, mine)
    assert mine.read_text() == "precious"
    with monkeypatch.context() as patched:
        interrupted(patched, 0)
        with pytest.raises(KeyboardInterrupt):
            predict(model, data, tmp_path / "a.csv")
    begun = (tmp_path / "a.csv.part").read_bytes()
    for source, more, name in (
        (other, [], "input"), (data, ["--policy", POLICY], "policy"), (data, ["--max-length", "9"], "max_length"),
    ):  # fmt: skip
        with pytest.raises(SystemExit, match=f"a.csv.part was begun with another {name}"):
            predict(model, source, tmp_path / "a.csv", *more)
    assert (tmp_path / "a.csv.part").read_bytes() == begun
    (tmp_path / "b.csv.part").write_text("precious")
    with pytest.raises(SystemExit, match="b.csv.part is there, and not of this command"):
        predict(model, data, tmp_path / "b.csv")
    for bad, why in (("b.xlsx", "a file that ends in .csv, .tsv, .jsonl"), ("mine.csv", "nothing is overwritten")):
        with pytest.raises(SystemExit, match=why):  # before anything is loaded
            predict("nowhere", "nothing.csv", tmp_path / bad)


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        (["--policy", "fast"], "exit_policy='fast': must be one of this model's operating points"),
        (["--policy", '{"treshold": 1}'], "exit_policy=.'treshold'.: must be a dict with fields of"),
        (["--policy", "{broken"], "policy='{broken': must be the name of an operating point or a JSON object"),
        (["--device", "cuda:7"], "device='cuda:7': must be one that this machine has"),
        (["--device", "gpu"], "device='gpu': must be one that this machine has"),
        (["--max-length", "100"], "max_length=100: must be between 3 and 80"),
        (["--text", "body"], "text='body': must be one of the columns text, id"),
        (["--split", "test"], "split='test': must be one of train, or all"),
        (["--batch-size", "0"], "batch_size=0: must be a whole number >= 1"),
    ],
)
def test_what_cannot_be_done_is_said_before_anything_is_written(tmp_path, model, asked, message):
    if "cuda" in str(asked) and torch.cuda.device_count() > 7:
        pytest.skip("there is one")
    data = csv_of(tmp_path / "new.csv", ["text", "id"], [["w1", "1"]])
    with pytest.raises(SystemExit, match=message):
        predict(model, data, tmp_path / "a.csv", *asked)
    assert [file.name for file in tmp_path.iterdir()] == ["new.csv"]


def test_a_text_that_is_no_string_and_a_broken_line_are_named_before_the_first_answer(tmp_path, model):
    data = tmp_path / "new.jsonl"
    data.write_text('{"text": "w1"}\n{"text": 7}\n')
    with pytest.raises(SystemExit, match=r"text\[1\]=7: must be a string \(row 1"):
        predict(model, str(data), tmp_path / "a.csv")
    data.write_text('{"text": 7}\n')
    with pytest.raises(SystemExit, match=r"text\[0\]=7: must be a string"):
        predict(model, str(data), tmp_path / "a.csv")
    data.write_bytes(b'{"text": "w1"}\n{"text": "caf\xe9"}\n')
    with pytest.raises(SystemExit, match="new.jsonl, line 2=.*must be UTF-8"):
        predict(model, str(data), tmp_path / "a.csv")
    assert [file.name for file in tmp_path.iterdir()] == ["new.jsonl"]


def test_dates_of_parquet_are_written_as_they_are_and_lists_as_json(tmp_path, model):
    day = datetime.date(2024, 5, 1)
    pq.write_table(pa.table({"text": ["w1"], "day": [day], "many": [[1, 2]]}), tmp_path / "new.parquet")
    (row,) = predict(model, str(tmp_path / "new.parquet"), tmp_path / "a.csv", "--text", "text")
    assert (row["day"], row["many"]) == ("2024-05-01", "[1, 2]")


@pytest.mark.parametrize("separator", [";", "\t"])
def test_a_table_with_other_separators_is_no_column_of_text_unless_it_is_named(tmp_path, model, separator):
    data = tmp_path / "new.csv"
    data.write_text(f"text{separator}id\nw1 w2{separator}7\n")
    with pytest.raises(SystemExit, match="dataset=.*must be a table with commas between cells"):
        predict(model, str(data), tmp_path / "a.csv")
    assert len(predict(model, str(data), tmp_path / "a.csv", "--text", f"text{separator}id")) == 1


def test_half_of_a_surrogate_pair_is_named_by_its_row_before_the_first_answer(tmp_path, model):
    data = tmp_path / "new.jsonl"
    data.write_text('{"text": "w1"}\n{"text": "w2", "note": "a\\ud83d"}\n')
    with pytest.raises(SystemExit, match=r"row 1='.ud83d': must be characters of UTF-8"):
        predict(model, str(data), tmp_path / "a.csv")
    assert [file.name for file in tmp_path.iterdir()] == ["new.jsonl"]


def test_a_stock_classifier_is_refused_and_told_of_retrofit(tmp_path):
    folder = save_backbone(tmp_path / "stock")
    AutoModelForSequenceClassification.from_config(tiny_config()).save_pretrained(folder)
    data = csv_of(tmp_path / "new.csv", ["text"], [["w1"]])
    with pytest.raises(SystemExit, match="model=.*must be a PF-BERxiT model; this is a plain bert.*pfberxit retrofit"):
        predict(folder, data, tmp_path / "a.csv")


def test_a_model_that_is_nowhere_or_has_no_tokenizer_is_named(tmp_path):
    data = csv_of(tmp_path / "new.csv", ["text"], [["w1"]])
    with pytest.raises(SystemExit, match="model='/nowhere' is no folder here"):
        predict("/nowhere", data, tmp_path / "a.csv")
    tiny_model().save_pretrained(tmp_path / "bare")
    with pytest.raises(SystemExit, match="bare': its tokenizer could not be loaded .*puts one beside") as why:
        predict(str(tmp_path / "bare"), data, tmp_path / "a.csv")
    assert "\n" not in str(why.value)


# ---- size ------------------------------------------------------------------------------------------------------------

SURVEY = """
import re, sys, threading, time
from pathlib import Path
from modeling_pfberxit.data.survey import open_rows
from modeling_pfberxit.data.tasks import load_task
from modeling_pfberxit.data.texts import load_texts

def held():  # memory of one's own, in kB: pages of mapped files can be dropped at any time
    return int(re.search(r"RssAnon:\\s+(\\d+)", Path("/proc/self/status").read_text())[1])

def watch():
    while True:
        highest[0] = max(highest[0], held())
        time.sleep(0.01)

before = held()
highest = [before]
threading.Thread(target=watch, daemon=True).start()
source = open_rows(sys.argv[1], text="text")
rows = sum(1 for _ in source.read())
texts = len(load_texts(sys.argv[1], text="text"))
task, data = load_task(sys.argv[1], text="text", label="kind")
assert sum(map(len, data.values())) == rows and task.labels == ("a", "b", "c")
print(rows, texts, (highest[0] - before) // 1024)
"""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="tells a process's own memory from mapped files")
@pytest.mark.parametrize("ending", [".csv", ".jsonl", ".json", ".parquet"])
def test_a_file_of_a_hundred_megabytes_is_read_with_a_few_tens_of_memory(tmp_path, ending):
    path, rows = tmp_path / f"big{ending}", 100_000
    texts = ((i, " ".join(f"w{(i * j) % 9973}" for j in range(150))) for i in range(rows))
    lines = {
        ".csv": lambda i, text: f"{i},{text},{'abc'[i % 3]}\n",
        ".jsonl": lambda i, text: json.dumps({"id": i, "text": text, "kind": "abc"[i % 3]}) + "\n",
        ".json": lambda i, text: ("," if i else "[") + json.dumps({"text": text, "kind": "abc"[i % 3]}),
    }  # fmt: skip
    if ending == ".parquet":
        _, words = zip(*texts)
        kinds = ["abc"[i % 3] for i in range(rows)]
        pq.write_table(pa.table({"text": words, "kind": kinds}), path, row_group_size=10_000)
    else:
        with open(path, "w") as file:
            file.write("id,text,kind\n" if ending == ".csv" else "")
            file.writelines(lines[ending](*row) for row in texts)
            file.write("]" if ending == ".json" else "")
        assert path.stat().st_size > 75e6
    done = subprocess.run([sys.executable, "-c", SURVEY, str(path)], capture_output=True, text=True, env=os.environ)
    seen, read, grown = map(int, done.stdout.split())
    assert seen == read == rows and grown < 100, (grown, done.stderr)


def test_rows_are_counted_and_hashed_by_content(tmp_path):
    first = open_rows(csv_of(tmp_path / "a.csv", ["text"], [["w1"], ["w2"]]))
    same = open_rows(csv_of(tmp_path / "b.csv", ["text"], [["w1"], ["w2"]]))
    other = open_rows(csv_of(tmp_path / "c.csv", ["text"], [["w2"], ["w1"]]))
    assert first.survey.sha256 == same.survey.sha256 != other.survey.sha256
