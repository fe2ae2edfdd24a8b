"""Ray Data: every row of Parquet files once, with the answer of `pfberxit predict`, whatever is killed on the way."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from test_predict import POLICY, saved

from modeling_pfberxit.data.parquet import open_parquet, parts_of
from modeling_pfberxit.data.parts import GrowingFolder, about, write_part
from modeling_pfberxit.data.survey import open_rows
from modeling_pfberxit.evaluation.prediction import Predictor
from modeling_pfberxit.evaluation.saved_model import asked_policy

ROWS, PART = 600, 50
TEXTS = [" ".join(f"w{(i * j) % 97}" for j in range(1, 3 + i % 9)) if i % 50 else None for i in range(1, ROWS + 1)]
ASKED = {"policy": asked_policy(POLICY), "batch_size": 8}


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> str:
    return saved(tmp_path_factory.mktemp("models") / "intents", ("refund", "delivery", "other"))


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    """Two files whose row groups fit no part."""
    folder = tmp_path_factory.mktemp("data")
    for number in range(2):
        rows = slice(number * 320, 320 + number * 280)
        table = pa.table({"id": range(ROWS), "text": TEXTS, "label": ["gold"] * ROWS})
        pq.write_table(table.slice(rows.start, rows.stop - rows.start), folder / f"{number}.parquet", row_group_size=70)
    return folder


def by_predict(model: str, data: Path, folder: Path) -> list[dict]:
    """The rows of `pfberxit predict` for the same files."""
    import json

    Predictor.load(model, **ASKED).run(open_rows(str(data), text="text"), str(folder / "reference.jsonl"))
    return [json.loads(line) for line in (folder / "reference.jsonl").read_text().splitlines()]


# ---- parts, without a cluster ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("rows", [1, 50, 70, 319, 320, 1000])
def test_parts_hold_all_rows_of_all_files_once_in_their_order(data, rows):
    parts = parts_of(sorted(data.iterdir()), rows)
    assert [id for part in parts for id in part.read()["id"].to_pylist()] == list(range(ROWS))
    assert all(part.read().num_rows == part.rows <= rows for part in parts)
    assert [part.name for part in parts] == sorted({part.name for part in parts})


def answered(folder: GrowingFolder, *numbers: int) -> None:
    """Write some parts of a folder, with no answers."""
    for number in numbers:
        part = folder.parts[number]
        write_part(folder.growing / part.name, part.read(), {"cut": 1})


def test_a_folder_that_is_gone_on_with_keeps_the_parts_it_has_and_gets_its_name_when_it_has_all(data, tmp_path):
    _, parts = open_parquet(str(data), text="text", rows_per_part=200)
    first = GrowingFolder(tmp_path / "out", parts, {"policy": 1})
    answered(first, 0, 2)
    (first.growing / ".part-000001.parquet.17").write_bytes(b"half of it")  # a writer that was killed
    second = GrowingFolder(tmp_path / "out", parts, {"policy": 1})
    assert [part.name for part in second.missing()] == ["part-000001.parquet", "part-000003.parquet"]
    with pytest.raises(OSError, match="part-000001"):
        second.finish()
    answered(second, 1, 3)
    assert not (tmp_path / "out").exists() and second.missing() == []
    second.finish()
    assert [entry.name for entry in tmp_path.iterdir()] == ["out"]
    assert sorted(os.listdir(tmp_path / "out")) == [part.name for part in parts]
    assert pq.read_table(tmp_path / "out")["id"].to_pylist() == list(range(ROWS))
    assert about(tmp_path / "out" / parts[0].name) == {"cut": 1, "rows": 200}


def test_a_part_with_too_few_rows_is_named_and_the_folder_stays_unfinished(data, tmp_path):
    _, parts = open_parquet(str(data), text="text", rows_per_part=400)
    folder = GrowingFolder(tmp_path / "out", parts, {})
    answered(folder, 0)
    write_part(folder.growing / parts[1].name, parts[1].read().slice(1), {})
    with pytest.raises(OSError, match="part-000001.parquet: has 279 rows instead of 280; delete it"):
        folder.finish()
    assert not (tmp_path / "out").exists()


def test_folders_of_others_and_of_other_runs_are_left_as_they_are(data, tmp_path):
    _, parts = open_parquet(str(data), text="text", rows_per_part=400)
    answered(GrowingFolder(tmp_path / "out", parts, {"policy": 1, "input": "a"}), 0)
    with pytest.raises(ValueError, match="out.part was begun with another input, policy"):
        GrowingFolder(tmp_path / "out", parts, {"policy": 2, "input": "b"})
    (tmp_path / "mine").mkdir()
    with pytest.raises(ValueError, match="output=.*mine.*nothing is overwritten"):
        GrowingFolder(tmp_path / "mine", parts, {})
    (tmp_path / "theirs.part").mkdir()
    with pytest.raises(ValueError, match="theirs.part is there, and not of this command"):
        GrowingFolder(tmp_path / "theirs", parts, {})


def test_what_is_no_parquet_file_with_a_text_is_refused_before_anything_is_written(tmp_path):
    def file(name: str, **columns) -> str:
        pq.write_table(pa.table(columns), tmp_path / name)
        return str(tmp_path / name)

    (tmp_path / "a.csv").write_text("text\nw1\n")
    for dataset, asked, message in (
        (str(tmp_path / "a.csv"), {}, "dataset=.*a.csv.*must be a file, a folder or a glob of Parquet files"),
        (file("empty.parquet", text=pa.array([], pa.string())), {}, "dataset=.*must be one with rows"),
        (file("numbers.parquet", text=[1, 2]), {}, "text='text': must be"),
        (file("two.parquet", a=["w1"], b=["w2"]), {}, "must be one whose text is certain by its name"),
        (file("two.parquet", a=["w1"], b=["w2"]), {"text": "c"}, "text='c': must be one of the columns a, b"),
        (file("two.parquet", a=["w1"], b=["w2"]), {"text": "a", "rows_per_part": 0}, "rows_per_part=0: must be"),
    ):
        with pytest.raises(ValueError, match=message):
            open_parquet(dataset, **{"rows_per_part": 10, **asked})
    file("x-1.parquet", text=["w1"])
    file("x-2.parquet", text=["w1"], more=[1])
    with pytest.raises(ValueError, match="columns of x-2.parquet='text: string, more: int64': must be those of x-1"):
        open_parquet(str(tmp_path / "x-*.parquet"), rows_per_part=10)
    (tmp_path / "broken.parquet").write_bytes(b"PAR1 no more")
    with pytest.raises(OSError, match="broken.parquet.*could not be loaded"):
        open_parquet(str(tmp_path / "broken.parquet"), rows_per_part=10)


def test_a_string_that_is_not_utf8_is_named_with_its_file(tmp_path):
    bad = pa.Array.from_buffers(pa.string(), 1, pa.array([b"caf\xe9"]).buffers())
    pq.write_table(pa.table({"text": bad}), tmp_path / "bad.parquet")
    _, (part,) = open_parquet(str(tmp_path / "bad.parquet"), rows_per_part=10)
    with pytest.raises(OSError, match="bad.parquet.*could not be loaded"):
        part.read()


# ---- a cluster -------------------------------------------------------------------------------------------------------

JOB = """
import json, sys
import ray
from modeling_pfberxit.serving.ray import predict_parquet
ray.init(address=sys.argv[4], log_to_driver=False)
predict_parquet(*sys.argv[1:4], text="text", rows_per_part=int(sys.argv[5]), **json.loads(sys.argv[6]))
"""


@pytest.fixture(scope="module")
def rayed():
    pytest.importorskip("ray", reason="needs the extra `ray`")
    from ray_cluster import cluster

    with cluster():
        yield


def wait(until, seconds: float = 120) -> None:
    """Until something is so."""
    end = time.monotonic() + seconds
    while not until():
        assert time.monotonic() < end, "nothing happened"
        time.sleep(0.02)


@pytest.mark.slow
def test_every_row_is_written_once_though_the_job_is_killed_and_then_one_of_its_two_workers(
    rayed, model, data, tmp_path
):
    import json

    import ray
    from ray_cluster import killing

    from modeling_pfberxit.serving.ray import predict_parquet

    growing = tmp_path / "out.part"
    places = [model, str(data), str(tmp_path / "out"), ray.get_runtime_context().gcs_address, str(PART)]
    job = subprocess.Popen([sys.executable, "-c", JOB, *places, json.dumps(ASKED)], cwd=tmp_path)
    wait(lambda: len(list(growing.glob("part-*"))) >= 2)
    job.send_signal(signal.SIGKILL)
    job.wait()
    wait(lambda: not [each for each in ray_workers() if each.is_running()])
    early = {file.name: file.stat().st_ino for file in growing.glob("part-*")}
    assert 2 <= len(early) < 13 and not (tmp_path / "out").exists()

    with killing("PartWriter", lambda: len(list(growing.glob("part-*"))) > len(early)) as killed:
        totals = predict_parquet(model, str(data), tmp_path / "out", text="text", rows_per_part=PART, **ASKED)
    assert len(killed) == 1, "no worker was killed while it mattered"
    assert {name: (tmp_path / "out" / name).stat().st_ino for name in early} == early, "what was written is kept"
    assert totals.before + totals.rows == ROWS and totals.before >= 2 * PART
    found = pq.read_table(tmp_path / "out").to_pylist()
    assert [row["id"] for row in found] == list(range(ROWS))
    reference = by_predict(model, data, tmp_path)
    keys = ("id", "text", "input_label", "label", "exit_layer")
    assert [[row[key] for key in keys] for row in found] == [[row[key] for key in keys] for row in reference]
    assert [row["score"] for row in found] == pytest.approx([row["score"] for row in reference], abs=2e-5, nan_ok=True)
    assert sum(row["label"] is None for row in found) == ROWS // 50 and len({row["exit_layer"] for row in found}) > 2
    assert [entry.name for entry in tmp_path.iterdir() if entry.name.startswith("out")] == ["out"]


def ray_workers() -> list:
    """Processes that write parts."""
    from ray_cluster import workers

    return workers("PartWriter")


@pytest.mark.slow
def test_a_pipeline_of_ones_own_gives_the_same_answers(rayed, model, data, tmp_path):
    import ray

    from modeling_pfberxit.serving.ray import PFBerxitPredictor

    (
        ray.data.read_parquet(str(data))
        .map_batches(
            PFBerxitPredictor, batch_format="pyarrow", batch_size=100, compute=ray.data.ActorPoolStrategy(size=2),
            num_cpus=0.5,  # of two cores, one is left to those who read and write
            fn_constructor_kwargs={"model": model, "text": "text", **ASKED},
        )
        .write_parquet(str(tmp_path / "out"))
    )  # fmt: skip
    found = sorted(pq.read_table(tmp_path / "out").to_pylist(), key=lambda row: row["id"])
    reference = by_predict(model, data, tmp_path)
    keys = ("id", "text", "input_label", "label", "exit_layer")
    assert [[row[key] for key in keys] for row in found] == [[row[key] for key in keys] for row in reference]


@pytest.mark.slow
def test_what_cannot_be_done_is_said_by_the_job_as_by_the_command_and_nothing_is_written(rayed, model, data, tmp_path):
    from modeling_pfberxit.serving.ray import predict_parquet

    for asked, message in (
        ({"policy": "fast"}, "exit_policy='fast': must be one of this model's operating points"),
        ({"max_length": 100}, "max_length=100: must be between 3 and 80"),
        ({"workers": 0}, "workers=0: must be a whole number >= 1"),
    ):
        with pytest.raises(ValueError, match=message):
            predict_parquet(model, str(data), tmp_path / "out", text="text", **asked)
    assert list(tmp_path.iterdir()) == []


def test_tables_of_another_kind_and_columns_that_are_not_there_are_refused_by_name(model):
    pytest.importorskip("ray", reason="needs the extra `ray`")
    from modeling_pfberxit.serving.ray import PFBerxitPredictor

    predictor = PFBerxitPredictor(model, text="text")
    with pytest.raises(ValueError, match="batch_format='dict': must be pyarrow"):
        predictor({"text": ["w1"]})
    with pytest.raises(ValueError, match="text='text': must be one of the columns body"):
        predictor(pa.table({"body": ["w1"]}))
    assert (
        predictor(pa.table({"text": pa.array([], pa.string())})).schema == predictor(pa.table({"text": ["w"]})).schema
    )
