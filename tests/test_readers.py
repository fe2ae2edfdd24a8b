"""Every way of giving data is read the same: files, folders, globs and stdin; what was done to rows is said."""

import csv
import gzip
import io
import json
import os
import platform
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets import Dataset, DatasetDict
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import save_backbone, tiny_model

from modeling_pfberxit.data import arrow, files, readers
from modeling_pfberxit.data import texts as texts_module
from modeling_pfberxit.data.arrow import read_files
from modeling_pfberxit.data.files import BLOCK, rows_of
from modeling_pfberxit.data.splits import drawn, hold_out, quotas
from modeling_pfberxit.data.survey import open_rows
from modeling_pfberxit.data.tasks import encode, load_task
from modeling_pfberxit.data.texts import encode_texts, length_of, load_texts, tokenise
from modeling_pfberxit.training.finetuning import new_tokenizer

SEVERAL, SINGLE = "multi_label_classification", "single_label_classification"
LABELS = ["refund", "delivery"] * 10


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    return new_tokenizer(save_backbone(tmp_path_factory.mktemp("encoder")))


@pytest.fixture
def said(caplog):
    """What was said so far, in one string."""
    return lambda: " ".join(record.getMessage() for record in caplog.records)


def csv_of(path: Path, header: list[str], rows: list) -> str:
    with open(path, "w", newline="", encoding="utf-8") as file:
        csv.writer(file, delimiter="\t" if path.suffix == ".tsv" else ",").writerows([header, *rows])
    return str(path)


def labelled(path: Path, labels: list = LABELS, start: int = 0) -> str:
    return csv_of(path, ["text", "label"], [[f"w{start + i} w1", label] for i, label in enumerate(labels)])


def piped(monkeypatch, content: str | bytes) -> None:
    """What comes through stdin."""
    readers.spooled.cache_clear()
    content = content.encode() if isinstance(content, str) else content
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(content)))


# ---- forms -----------------------------------------------------------------------------------------------------------


def test_a_file_a_folder_a_glob_and_stdin_give_the_same_rows(tmp_path, monkeypatch):
    file = labelled(tmp_path / "train.csv")
    expected = load_task(file)[1]
    piped(monkeypatch, Path(file).read_bytes())
    others = {"folder": {"dataset": str(tmp_path)}, "glob": {"dataset": str(tmp_path / "tr*.csv")},
              "stdin": {"dataset": "-", "text": "text", "label": "label"}}  # fmt: skip
    for name, asked in others.items():
        task, data = load_task(**asked)
        for split in ("train", "validation"):
            assert data[split].to_list() == expected[split].to_list(), name
    assert task.name == "stdin"


@pytest.mark.parametrize("kind", [".csv", ".tsv", ".jsonl", ".json", ".txt"])
def test_a_packed_file_is_read_as_what_is_in_it_alone_and_in_a_folder(tmp_path, kind):
    rows = [{"text": f"w{i}\u00e9 007"} for i in range(4)]
    lines = {".jsonl": "\n".join(map(json.dumps, rows)), ".json": json.dumps(rows)}
    text = lines.get(kind, "\n".join([*(["text"] if kind != ".txt" else []), *(row["text"] for row in rows)]))
    packed = tmp_path / f"train{kind}.gz"
    packed.write_bytes(gzip.compress(text.encode()))
    for name in (packed, tmp_path, tmp_path / "*.gz"):
        assert load_texts(str(name)).rows.to_list() == rows
    assert list(open_rows(str(packed)).read()) == rows and {
        readers.name_of(f"train{kind}{end}") for end in ("", ".gz", ".GZ")
    } == {"train"}


def test_a_packed_file_that_is_cut_off_or_no_such_file_is_refused_by_its_name(tmp_path):
    packed = gzip.compress(b"text\n" + os.urandom(4000).hex().encode())
    for content in (packed[:-100], b"text\nw1\n", packed[:200] + b"\0" * 50 + packed[250:]):
        (tmp_path / "a.csv.gz").write_bytes(content)
        with pytest.raises(OSError, match="a.csv.gz'.*could not be loaded"):
            load_texts(str(tmp_path / "a.csv.gz"))
    (tmp_path / "a.csv.gz").write_bytes(gzip.compress(b"text\nw1\n\xff\n"))
    with pytest.raises(ValueError, match="a.csv.gz, line 3=b'.xff': must be UTF-8"):
        load_texts(str(tmp_path / "a.csv.gz"))
    with pytest.raises(ValueError, match="a.parquet.gz': must be a file that ends in"):
        (tmp_path / "a.parquet.gz").write_bytes(packed)
        load_texts(str(tmp_path / "a.parquet.gz"))


@pytest.mark.parametrize("first", ["not half bad", "Terrible!"])
def test_a_first_text_is_not_taken_for_a_column_s_name(tmp_path, first):
    file = csv_of(tmp_path / "a.csv", [first], [["w1"], ["w2"]])
    for read in (load_texts, open_rows):
        with pytest.raises(ValueError, match="must be a table with a first line that names the columns"):
            read(file)
        assert len(list(read(file, text=first).rows if read is load_texts else read(file, text=first).read())) == 2
    assert load_texts(csv_of(tmp_path / "b.csv", ["review"], [["w1"]])).names == ("review",)
    beside_labels = csv_of(tmp_path / "c.csv", [first, "label"], [["w1", "a"]])  # so there is a header
    assert load_texts(beside_labels).names == (first,)
    pq.write_table(pa.table({first: ["w1"]}), tmp_path / "d.parquet")  # whose columns have names for sure
    (tmp_path / "e.jsonl").write_text(json.dumps({first: "w1"}) + "\n")
    for name in ("d.parquet", "e.jsonl"):
        assert load_texts(str(tmp_path / name)).names == open_rows(str(tmp_path / name)).names == (first,)


def test_long_texts_are_worked_on_so_many_characters_at_a_time(tmp_path, tokenizer, monkeypatch):
    texts = [f"w{i} " * (1 + 40 * (i % 5)) for i in range(60)]
    once = tokenise(tokenizer, [texts, texts[::-1]], 16)
    file = csv_of(tmp_path / "a.csv", ["text"], [[text] for text in texts])
    seen, stock = [], type(tokenizer).__call__

    def counted(own, *columns, **options):
        """The tokenizer, which notes how many characters it is given."""
        seen.append(sum(len(text) for column in columns for text in column))
        return stock(own, *columns, **options)

    monkeypatch.setattr(type(tokenizer), "__call__", counted)
    monkeypatch.setattr(texts_module, "PIECE", 2000)
    assert tokenise(tokenizer, [texts, texts[::-1]], 16) == once
    assert len(seen) > 20 and max(seen) <= 2000
    monkeypatch.setattr(files, "MOST", 2000)
    sizes = [sum(len(row["text"]) for row in chunk) for chunk in files.chunks(rows_of([Path(file)]))]
    assert len(sizes) > 5 and max(sizes) < 2000 + max(map(len, texts)) and sum(sizes) == sum(map(len, texts))
    assert load_texts(file).rows["text"][:] == texts


def test_rows_are_worked_on_together_by_all_that_stands_in_their_cells():
    word, few = "w" * 1000, files.MOST // 10_000
    for cell in (word * 10, [word] * 10, {"a": [word] * 9, "b": word}, [0.5] * (10_000 // files.NUMBER)):
        sizes = [len(chunk) for chunk in files.chunks({"text": cell} for _ in range(2 * few))]
        assert len(sizes) in (2, 3) and max(sizes) <= 1.01 * few
    assert [len(chunk) for chunk in files.chunks({"n": 1} for _ in range(2 * files.CHUNK))] == [files.CHUNK] * 2


def test_rows_of_parquet_are_decoded_so_many_characters_at_a_time(tmp_path, monkeypatch):
    pq.write_table(
        pa.table({"text": ["w" * 1000] * 100}), tmp_path / "a.parquet", use_dictionary=False, compression="NONE"
    )
    sizes, stock = [], pq.ParquetFile.iter_batches

    def noted(own, size, **options):
        """The reader, which notes how many rows it is asked for."""
        sizes.append(size)
        return stock(own, size, **options)

    monkeypatch.setattr(pq.ParquetFile, "iter_batches", noted)
    monkeypatch.setattr(files, "MOST", 10_000)
    assert len(list(files.read_parquet(tmp_path / "a.parquet"))) == 100 and 5 <= sizes[0] <= 10


def test_files_of_a_glob_are_sorted_into_splits_by_their_names(tmp_path):
    for number, name in enumerate(["a-train", "dev_1", "dev_2", "my.test", "b", "attestation"]):
        labelled(tmp_path / f"{name}.csv", LABELS[:4], 10 * number)
    (tmp_path / "notes.md").write_text("no data")
    task, data = load_task(str(tmp_path / "*.csv"))
    assert {split: len(rows) for split, rows in data.items()} == {"train": 12, "validation": 8, "test": 4}
    assert task.evaluation_split == "validation"
    with pytest.raises(ValueError, match="notes.md': must be a file that ends in .csv"):
        load_task(str(tmp_path / "*"))


def test_a_split_that_is_called_dev_is_evaluated_on_and_any_other_if_asked_for(tmp_path, monkeypatch, said):
    splits = {"train": LABELS, "dev": LABELS[:4], "extra": LABELS[:6]}
    found = {name: Dataset.from_dict({"text": [f"{name} {i}" for i in range(len(part))], "label": part})
             for name, part in splits.items()}  # fmt: skip
    monkeypatch.setattr(readers, "load_dataset", lambda *_: DatasetDict(found))
    assert load_task("someone/messages")[0].evaluation_split == "dev"
    assert load_task("someone/messages", split="extra")[0].evaluation_split == "extra"
    with pytest.raises(ValueError, match="split='test': must be one of train, dev, extra"):
        load_task("someone/messages", split="test")
    assert "held out" not in said() and "No split" not in said()


@pytest.mark.parametrize(
    ("content", "named", "columns"),
    [
        ("text,label\nw1,a\n", ("text",), ["text", "label"]),
        ("text\tlabel\nw1\ta\n", ("text",), ["text", "label"]),
        ("text,label\nw1,a\n", (), ["text"]),
        ('\n{"text": "w1"}\n{"text": "w2"}', (), ["text"]),
        ('[{"text": "w1"}]', ("text",), ["text"]),
    ],
)
def test_a_pipe_is_a_table_where_columns_are_named_and_else_texts_or_json(monkeypatch, content, named, columns):
    piped(monkeypatch, content)
    assert readers.read_splits("-", None, named)["train"].column_names == columns


@pytest.mark.parametrize(("content", "named", "columns"), [
    ("text\nw1\n", {"text": "text"}, ["text"]), ("w1\nw2\n", {}, ["text"]), ('{"a": "w1"}\n', {}, ["a"]),
    ("text,b,a\nw1,1,0\n", {"text": "text", "label": "a,b"}, ["text", "b", "a"]),
])  # fmt: skip
def test_what_gzip_packed_comes_through_a_pipe_as_what_is_in_it(monkeypatch, content, named, columns):
    for packed in (content, gzip.compress(content.encode())):
        piped(monkeypatch, packed)
        assert load_texts("-", **named).rows.column_names == columns


def test_packed_parquet_and_what_is_cut_off_are_refused_by_name_from_a_pipe(monkeypatch):
    whole = gzip.compress(os.urandom(4000).hex().encode())
    for content, message in ((gzip.compress(b"PAR1..."), "must be Parquet as it is"), (whole[:-900], "could not be")):
        piped(monkeypatch, content)
        with pytest.raises((ValueError, OSError), match=message):
            load_texts("-")


def test_a_pipe_without_the_named_column_or_with_nothing_in_it_is_refused(monkeypatch):
    piped(monkeypatch, "body,label\nw1,a\n")
    with pytest.raises(ValueError, match="dataset='-': must be a table with a header that has text"):
        load_texts("-", text="text")
    piped(monkeypatch, "")
    with pytest.raises(ValueError, match="a file with rows; this one is empty"):
        load_texts("-")


# ---- files -----------------------------------------------------------------------------------------------------------


def test_a_json_file_is_read_across_its_blocks_whatever_its_layout(tmp_path):
    rows = [{"text": f"w{i} " * 400, "n": [i, {"deep": "]},{"}]} for i in range(2500)]
    for layout in (json.dumps(rows), json.dumps(rows, indent=2), "\n".join(map(json.dumps, rows))):
        (tmp_path / "a.json").write_text(layout)
        assert len(layout) > 2 * BLOCK
        assert list(rows_of([tmp_path / "a.json"])) == rows


JSON = st.dictionaries(st.text(max_size=3), st.one_of(st.text(), st.integers(), st.none(), st.lists(st.text())))


@settings(max_examples=60, deadline=None)
@given(rows=st.lists(JSON, max_size=5))
def test_json_gives_back_what_went_into_it(tmp_path_factory, rows):
    try:
        text = json.dumps(rows, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        return  # half a surrogate pair is in no file
    folder = tmp_path_factory.mktemp("json")
    (folder / "a.json").write_bytes(text)
    (folder / "a.jsonl").write_bytes(b"\n".join(json.dumps(row, ensure_ascii=False).encode() for row in rows))
    assert list(rows_of([folder / "a.json"])) == list(rows_of([folder / "a.jsonl"])) == rows


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.csv", b"text,label\nw1,a\ncaf\xe9,b\n", r"a.csv, line 3=b'\\xe9': must be UTF-8; `iconv"),
        ("a.csv", "text,label\nw1,a\n".encode("utf-16"), r"a.csv, line 1=b'\\xff': must be UTF-8"),
        ("a.txt", b"w1\nw\xff2\n", "a.txt, line 2="),
        ("a.jsonl", b'{"text": "w1"}\n{"text": "\xe9"}\n', "a.jsonl, line 2="),
        ("a.json", b'[{"text": "w1"}, {"text": "w2"', "a.json', row 1: could not be loaded"),
        ("a.json", b'[{"text": "w1"}, ', "a.json', row 1: could not be loaded .the list has no end"),
        ("a.jsonl", b'{"text": "w1"}\n7\n', "a.jsonl, line 2=7: must be a JSON object"),
        ("a.jsonl", b'{"text": "w1"}\n{"text": 5}\n', "could not be loaded"),
        ("a.jsonl", b'{"text": "w1", "label": 1}\n{"text": "w2", "label": "b"}\n', "a.jsonl', column label: could not"),
        ("a.parquet", b"PAR1 but not for long", "a.parquet'.*could not be loaded"),
    ],
)
def test_a_broken_file_is_named_with_the_line(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises((ValueError, OSError), match=message) as caught:
        load_texts(tmp_path / name, text="text")
    assert "\n" not in str(caught.value)


def test_a_column_has_one_type_in_all_files_and_other_columns_are_refused(tmp_path):
    first = csv_of(tmp_path / "a.csv", ["text", "n"], [["w1", "1"], ["w2", "2"]])
    second = csv_of(tmp_path / "b.csv", ["n", "text"], [["0.5", "w3"], ["", "w4"]])
    assert read_files([Path(first), Path(second)]).to_dict() == {
        "text": ["w1", "w2", "w3", "w4"], "n": [1.0, 2.0, 0.5, None],
    }  # fmt: skip
    third = csv_of(tmp_path / "c.csv", ["text", "m"], [["w5", "x"]])
    with pytest.raises(ValueError, match=r"columns of c.csv=\['text', 'm'\]: must be those of a.csv, text, n"):
        read_files([Path(first), Path(third)])


@settings(max_examples=80, deadline=None)
@given(st.lists(st.sampled_from(["", "1", "-2", "007", "0.5", "1e3", "nan", "NA", "true", "False", "x"]), min_size=1))
def test_a_column_of_cells_is_numbers_flags_or_strings_by_the_written_rule(tmp_path_factory, cells):
    path = csv_of(tmp_path_factory.mktemp("cells") / "a.csv", ["text", "n"], [["w", cell] for cell in cells])
    found = read_files([Path(path)])["n"][:]
    filled = [cell for cell in cells if cell]
    numbers = [cell for cell in filled if cell not in ("nan", "NA")]
    if numbers and set(numbers) <= {"1", "-2", "0.5", "1e3"}:
        expected = [float(cell) if cell not in ("", "nan", "NA") else None for cell in cells]
    elif filled and set(filled) <= {"true", "False"}:
        expected = [cell == "true" if cell else None for cell in cells]
    else:
        expected = [cell or None for cell in cells]
    assert found == expected


def test_categories_of_pandas_are_the_strings_they_stand_for(tmp_path):
    columns = {"text": [f"w{i}" for i in range(20)], "label": LABELS}
    kept = {name: pa.array(values).dictionary_encode() for name, values in columns.items()}
    pq.write_table(pa.table({**kept, "view": pa.array(LABELS, pa.string_view())}), tmp_path / "rows.parquet")
    rows = read_files([tmp_path / "rows.parquet"])
    assert rows[:] == {**columns, "view": LABELS}
    assert load_task(str(tmp_path / "rows.parquet"))[0].labels == ("delivery", "refund")
    assert len(load_texts(str(tmp_path / "rows.parquet"), text="text", split="train")) == 20


def test_a_document_longer_than_the_csv_modules_limit_is_read(tmp_path):
    text = "w1 " * 100_000
    assert load_texts(csv_of(tmp_path / "a.csv", ["text"], [[text]])).rows["text"][:] == [text]


def test_what_a_killed_process_left_on_disk_is_removed_and_what_a_living_one_has_is_not(tmp_path, monkeypatch):
    import datasets

    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path)
    left, living, other = (
        tmp_path / f"pfberxit-{host}-{process}-x" for host, process in (
            (platform.node(), ended.pid), (platform.node(), os.getpid()), ("elsewhere", ended.pid),
        )
    )  # fmt: skip
    for folder in (left, living, other):
        folder.mkdir()
    made = arrow.scratch.__wrapped__()
    assert (left.exists(), living.exists(), other.exists(), made.is_dir()) == (False, True, True, True)


# ---- texts without labels --------------------------------------------------------------------------------------------


def test_texts_keep_their_columns_and_rows_without_one_are_left_out_and_counted(tmp_path, said):
    path = csv_of(tmp_path / "a.csv", ["id", "text", "label"], [["1", "w1", "x"], ["2", "", "y"], ["3", "  ", ""]])
    found = load_texts(path)
    assert (found.names, found.label, found.split, len(found)) == (("text",), None, "train", 1)
    assert found.rows.to_list() == [{"id": 1, "text": "w1", "label": "x"}]
    assert "2 of 3 rows have no text and are left out." in said()
    assert load_texts(path, label="label").label == "label"


def test_texts_of_several_splits_are_one_that_is_named_or_all(tmp_path):
    for split, start in (("train", 0), ("test", 50)):
        labelled(tmp_path / f"{split}.csv", start=start)
    with pytest.raises(ValueError, match="split=None: must be one of train, test, or all"):
        load_texts(tmp_path)
    assert len(load_texts(tmp_path, split="test")) == 20 and len(load_texts(tmp_path, split="all")) == 40


def test_the_only_column_beside_a_label_is_the_text_and_pairs_are_named(tmp_path):
    path = csv_of(tmp_path / "a.csv", ["message", "label"], [["w1", "x"]])
    assert load_texts(path).names == ("message",)
    path = csv_of(tmp_path / "b.csv", ["question", "hint"], [["w1", "w2"]])
    assert load_texts(path, text="question", pair="hint").names == ("question", "hint")
    with pytest.raises(ValueError, match="one whose text is certain by its name"):
        load_texts(path)
    with pytest.raises(ValueError, match="label='stars': must be one of the columns question, hint"):
        load_texts(path, text="question", label="stars")


# ---- several labels in one string ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("labels", "named", "names", "vectors"),
    [
        (["a;b", "a", "b; c"], {}, ("a", "b", "c"), [[1, 1, 0], [1, 0, 0], [0, 1, 1]]),
        (["a|b", "b", ""], {}, ("a", "b"), [[1, 1], [0, 1], [0, 0]]),
        (["a,b", "b"], {"label_form": ","}, ("a", "b"), [[1, 1], [0, 1]]),
        (["a", "b"], {"problem_type": SEVERAL}, ("a", "b"), [[1, 0], [0, 1]]),
        (["x;y", "z"], {"problem_type": SEVERAL}, ("x", "y", "z"), [[1, 1, 0], [0, 0, 1]]),
    ],
)
def test_several_labels_in_one_string(tmp_path, tokenizer, labels, named, names, vectors):
    folder = tmp_path / "data"
    folder.mkdir()
    for split in ("train", "test"):
        labelled(folder / f"{split}.csv", labels)
    task, data = load_task(str(folder), **named)
    assert (task.problem_type, task.labels) == (SEVERAL, names)
    assert encode(task, data["train"], tokenizer)["labels"][:] == vectors


@pytest.mark.parametrize(
    ("labels", "named"), [(["x;y", "z"], {}), (["a,b", "b"], {}), (["a;b", "a"], {"problem_type": SINGLE})]
)
def test_strings_that_are_not_recombined_or_told_to_be_one_are_one_label(tmp_path, labels, named):
    assert load_task(labelled(tmp_path / "a.csv", labels * 5), **named)[0].labels == tuple(sorted(set(labels)))


def test_reading_several_labels_is_said_and_two_separators_are_refused(tmp_path, said):
    load_task(labelled(tmp_path / "a.csv", ["a;b", "a", "b"] * 4))
    load_task(labelled(tmp_path / "d.csv", ["a,b", "a", "b"] * 4))
    assert "read as several labels, separated by ';'" in said() and "each string is one label; --label-form ," in said()
    with pytest.raises(ValueError, match="label label='; and |': must be separated by one of them: --label-form"):
        load_task(labelled(tmp_path / "b.csv", ["a;b", "a|b", "a", "b"]))
    with pytest.raises(ValueError, match="label_form=';': must be left out: label holds no strings"):
        load_task(labelled(tmp_path / "c.csv", [0, 1]), label_form=";")


def test_a_model_of_several_labels_finds_them_in_strings(tmp_path, tokenizer):
    names = {"id2label": {0: "b", 1: "a"}, "label2id": {"b": 0, "a": 1}}
    path = labelled(tmp_path / "a.csv", ["a", "a|b", "b", ""])
    task, data = load_task(path, model=tiny_model(**names, problem_type=SEVERAL))
    rows = Dataset.from_list([*data["train"], *data["validation"]])
    assert sorted(encode(task, rows, tokenizer)["labels"]) == [[0, 0], [0, 1], [1, 0], [1, 1]]


# ---- splits ----------------------------------------------------------------------------------------------------------


def test_a_made_split_has_a_fifth_of_every_class_the_same_every_time_and_is_said(tmp_path, said):
    path = labelled(tmp_path / "a.csv", ["common"] * 60 + ["rare"] * 10 + ["once"])
    data, again = load_task(path)[1], load_task(path)[1]
    assert Counter(data["validation"]["label"]) == {"common": 12, "rare": 2}
    assert data["validation"].to_list() == again["validation"].to_list()
    assert "14 of 71 rows, drawn with seed 0, a fifth of every class, are validation." in said()
    assert "One row alone, so none to evaluate on, of: once." in said()


@settings(max_examples=100, deadline=None)
@given(st.lists(st.sampled_from("aaaaabbc"), min_size=2, max_size=80), st.integers(0, 3))
def test_classes_give_their_share_and_keep_a_row(classes, seed):
    count = max(1, round(0.2 * len(classes)))
    chosen = drawn(len(classes), count, seed, classes)
    assert len(set(chosen)) == len(chosen) <= count
    given = Counter(classes[i] for i in chosen)
    for name, size in Counter(classes).items():
        assert given[name] < size and abs(given[name] - count * size / len(classes)) <= 1 + (size == 1)
    assert sum(quotas(Counter(classes), count / len(classes), count).values()) == len(chosen)


def test_a_file_of_one_row_has_nothing_to_hold_out():
    with pytest.raises(ValueError, match="dataset='1 row'"):
        hold_out(Dataset.from_dict({"text": ["w"]}))
    assert len(hold_out(Dataset.from_dict({"text": ["v", "w"]}), ["a", "b"])["train"]) >= 1


def test_rows_that_two_splits_share_are_counted_by_all_of_their_texts(tmp_path, said):
    header = ["text", "text_pair", "label"]
    csv_of(tmp_path / "train.csv", header, [["w1", "w2", "a"], ["w3", "w4", "b"], ["w5", "w6", "a"]])
    csv_of(tmp_path / "test.csv", header, [["w1", "w2", "b"], ["w3", "w9", "b"], ["w5", "w6", "a"]])
    load_task(str(tmp_path))
    assert "2 of 3 rows of test have texts that are in train, too." in said()


# ---- tokens ----------------------------------------------------------------------------------------------------------


def test_cut_texts_are_counted_and_those_that_just_fit_are_not(tokenizer, said):
    rows = Dataset.from_dict({"text": ["w1 " * n for n in (5, 6, 7, 30)], "pair": ["w2"] * 4})
    found = encode_texts(rows, ("text",), tokenizer, 8)
    assert [len(ids) for ids in found["input_ids"]] == [7, 8, 8, 8] and "cut" not in found.column_names
    assert "2 of 4 texts are longer than 8 tokens and were cut to that." in said()
    found = encode_texts(rows, ("text", "pair"), tokenizer, 10)
    assert [len(ids) for ids in found["input_ids"]] == [9, 10, 10, 10]


def test_how_many_tokens_are_read(tokenizer):
    tokenizer.model_max_length = 30
    assert (length_of(tokenizer, 80), length_of(tokenizer, 20), length_of(tokenizer, 80, 50)) == (30, 20, 50)
    for asked in (81, 2, 0, -1):
        with pytest.raises(ValueError, match=f"max_length={asked}: must be between 3 and 80"):
            length_of(tokenizer, 80, asked)
    assert np.isfinite(length_of(tokenizer, 512))
