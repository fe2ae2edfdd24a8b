"""What `examples/serving/under_load.py` keeps is taken for the same options only, and nothing of it is passed over."""

from argparse import Namespace
from pathlib import Path

import numpy as np
import pytest

from modeling_pfberxit.traffic.runs import Run


@pytest.fixture
def script(monkeypatch):
    monkeypatch.syspath_prepend(str(Path(__file__).parents[1] / "examples" / "serving"))
    return pytest.importorskip("under_load")


@pytest.fixture
def options(tmp_path):
    for name in ("faster", "stock"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text(name)
    named = {"model": str(tmp_path / "faster"), "stock": str(tmp_path / "stock"), "dataset": "texts.csv"}
    return Namespace(**named, files=str(tmp_path / "files"), output="x", minutes=4.0, repeats=2, policy="careful")


def test_measurements_are_gone_on_with_under_the_same_options_only(script, options):
    folder = script.Kept(options).folder
    assert script.Kept(Namespace(**{**vars(options), "minutes": 9.0, "repeats": 3})).folder == folder
    assert script.Kept(Namespace(**{**vars(options), "policy": "quick"})).folder != folder
    (Path(options.model) / "config.json").write_text("certified anew")
    assert script.Kept(options).folder != folder


def test_how_late_the_generator_was_is_the_worst_of_all_runs(script, options):
    kept, zeros = script.Kept(options), np.zeros(3)
    for number, late in enumerate((0.5, 0.1)):
        run = Run(**{name: zeros for name in Run.__dataclass_fields__})
        run.rungs = np.array(["careful"] * 3)
        kept.put(run, late, "steady", script.OURS, number)
    assert [kept.run("steady", script.OURS, number).rungs[0] for number in (0, 1)] == ["careful"] * 2
    assert kept.late == 0.5


def test_the_exported_file_is_asked_for_the_points_that_it_holds(script, monkeypatch):
    runner, where = pytest.importorskip("pfberxit.onnx"), pytest.importorskip("where_time_goes")
    monkeypatch.setattr(runner, "Classifier", lambda path: Namespace(metadata={"operating_points": {"careful": {}}}))
    cases = where.cases(Namespace(stock="stock", model="faster", policies=["careful", "quick"]), "model.onnx")
    assert list(cases) == [*where.RIVALS, "ours, careful", "ours, ONNX, careful", "ours, quick"]
