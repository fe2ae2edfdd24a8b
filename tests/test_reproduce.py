"""`pfberxit reproduce`: ours beside what the paper prints, every training done once."""

import csv
import json
from dataclasses import replace

import numpy as np
import pytest
from tiny import save_backbone

from modeling_pfberxit.model.criteria import CRITERIA
from modeling_pfberxit.studies import paper_values, trainings
from modeling_pfberxit.studies.reproduce import ITEMS, RULES, Study, point_cell, reproduce
from modeling_pfberxit.studies.runs import Budget
from pfberxit.cli import main


@pytest.fixture(scope="module")
def study(tmp_path_factory) -> Study:
    folder = tmp_path_factory.mktemp("reproduced")
    budget = Budget(rows=24, epochs=1, held_out=40, batch_size=8)
    return Study("support_desk", ("intent",), save_backbone(folder / "encoder"), (1, 2), budget, folder)


def cells(text: str) -> list[list[str]]:
    return [[cell.strip() for cell in row.strip("|").split("|")] for row in text.splitlines()[2:]]


def test_our_parameter_counts_are_those_of_table_2(study):
    for name, ours, paper, tuned, tuned_paper in cells(dict(reproduce(["table2"], study))["table2"]):
        assert (ours, tuned) == (paper, tuned_paper), name


def test_tables_and_figures_share_their_trainings(study, monkeypatch):
    study = replace(study, seeds=study.seeds[:1])
    done = dict(reproduce(["table4", "table5", "figure4"], study))
    assert [row[0] for row in cells(done["table4"])] == ["attention", "ffn", "sequential"]
    assert [row[0] for row in cells(done["table5"])] == list(RULES)
    assert (study.folder / "table5.md").read_text().strip() == done["table5"]
    assert (study.folder / "figure4.png").stat().st_size > 10_000
    monkeypatch.setattr(trainings, "train_and_record", lambda *arguments: pytest.fail("trained again"))
    assert dict(reproduce(["table5", "figure4", "figure5"], study))["table5"] == done["table5"]


def test_rows_on_their_own_are_batches_of_one_in_table_6(study):
    ways = [row for row in cells(dict(reproduce(["table6"], study))["table6"]) if row[0] in ("own", "whole", "kept")]
    own = [row for row in ways if row[0] == "own"]
    assert [row[1] for row in own] == [str(size) for size in paper_values.BY_BATCH]
    assert len({tuple(row[2:]) for row in own}) == 1
    ones = {way: row for way, size, *row in ways if size == "1"}
    assert ones["own"] == ones["whole"] == ones["kept"]


def test_frontiers_and_points_tell_every_criterion_of_one_model(study, monkeypatch):
    done = dict(reproduce(["frontiers"], study))
    monkeypatch.setattr(trainings, "train_and_record", lambda *arguments: pytest.fail("trained again"))
    done |= dict(reproduce(["points"], study))
    lines = list(csv.DictReader(open(study.folder / "frontier-intent.csv")))
    assert {each["criterion"] for each in lines} == set(CRITERIA)
    assert all(float(each["low"]) <= float(each["high"]) and each["seeds"] == "2" for each in lines)
    assert (study.folder / "frontier-intent.png").stat().st_size > 10_000
    assert "| entropy |" in done["frontiers"] and "**intent**: accuracy" in done["frontiers"]
    kept = json.loads((study.folder / "points.json").read_text())["intent"]
    assert [run["seed"] for run in kept] == [1, 2] and set(kept[0]["points"]) == {"1.25x", "1.5x", "2x"}
    (row,) = cells(done["points"].split("\n\n")[0])
    assert row[0] == "intent (accuracy)" and row[-1] == "2" and row[-2].count("±") == 2


def test_the_printed_value_stands_beside_ours():
    found = [{"score": 0.8, "saved": 0.5}, {"score": 0.9, "saved": 0.54}]
    assert point_cell(found, (89.4, 53)) == "85.0 ± 7.1 @ 52 % (89.4 @ 53 %)"
    assert point_cell([found[0], None], (89.4, 53)) == "not reachable (89.4 @ 53 %)"


def test_what_is_printed_is_complete():
    assert all(len(values) == len(paper_values.TASKS) for values in paper_values.AVERAGES.values())
    assert all(set(by_task) == set(paper_values.TASKS) for by_task in paper_values.EXITS.values())
    assert set(paper_values.EXITS) == set(RULES)
    assert np.isclose(paper_values.AVERAGES["pf-conv"][1], paper_values.PARAMETERS["pf-conv"][2])


def test_an_unknown_item_is_refused_with_those_there_are():
    with pytest.raises(SystemExit, match="items=.'table9'.: must be among table1, table2"):
        main(["reproduce", "table9", "--backbone", "minilm"])
    tables, figures = {f"table{n}" for n in range(1, 7)}, {f"figure{n}" for n in range(2, 6)}
    assert tables | figures | {"frontiers", "points", "gap", "retrofits", "texts", "speed"} == set(ITEMS)
