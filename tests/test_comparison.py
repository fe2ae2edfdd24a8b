"""`pfberxit compare`: every system trained once, its rule set on some rows and measured on others, all of it kept."""

import json

import pytest
import torch
from tiny import save_backbone

from modeling_pfberxit.data.source import Source
from modeling_pfberxit.evaluation.frontier import Point
from modeling_pfberxit.evaluation.recording import Recording
from modeling_pfberxit.model.evidence import SINGLE_LABEL, Evidence
from modeling_pfberxit.model.exit_policy import ExitPolicy
from modeling_pfberxit.model.systems import SYSTEMS
from modeling_pfberxit.studies import trainings
from modeling_pfberxit.studies.compare import compare
from modeling_pfberxit.studies.compared import compared_config
from modeling_pfberxit.studies.comparison_table import as_markdown, points, setting_near, system_row
from modeling_pfberxit.studies.runs import Budget, Run
from modeling_pfberxit.studies.trainings import Trained, key_of
from pfberxit.cli import main

BUDGET = Budget(rows=24, epochs=1, held_out=40, batch_size=8)
GOALS = [0.6, 0.5, 0.25]
ONE_MODEL = ("f-pabee", "pabee", "branchynet", "pcee-bert", "appointed")


@pytest.fixture(scope="module")
def backbone(tmp_path_factory) -> str:
    return save_backbone(tmp_path_factory.mktemp("encoder"), "bert")


@pytest.fixture(scope="module")
def finished(backbone, tmp_path_factory):
    folder = tmp_path_factory.mktemp("compared")
    return folder, compare(
        list(SYSTEMS), [("support_desk", "intent")], backbone, [1], BUDGET, GOALS, str(folder), None, print
    )


def test_every_system_gets_a_line_and_its_numbers_are_kept(finished):
    folder, results = finished
    assert (folder / "comparison.png").read_bytes().startswith(b"\x89PNG")
    table = (folder / "table.md").read_text()
    assert all(f"| {system} |" in table for system in SYSTEMS)
    assert [each["system"] for each in json.loads((folder / "results.json").read_text())] == list(SYSTEMS)
    for each in results:
        assert len(each["points"]) == len(GOALS) and each["full"] == each["layers"][-1]
        assert (each["train_rows"], each["seed"]) == (24, 1)
        stages = 2 if SYSTEMS[each["system"]].knobs(6).get("training_strategy") == "two_stage" else 1
        assert each["steps"] == 3 * stages, "24 rows, 8 in a batch"


def test_systems_that_differ_only_in_their_rule_share_one_trained_model(finished, backbone):
    folder, _ = finished
    run = Run(Source.read("support_desk", "intent"), backbone, 1, BUDGET)
    keys = {system: json.dumps(key_of(run, compared_config(system, backbone))) for system in SYSTEMS}
    assert len({keys[system] for system in ONE_MODEL}) == 1
    others = {key for system, key in keys.items() if system not in ONE_MODEL}
    assert len(others) == len(SYSTEMS) - len(ONE_MODEL)
    # HashEE's tokens are told where to leave before training, so each share of layers is a training of its own.
    assert len(list((folder / "recordings").iterdir())) == 1 + len(others) + len(GOALS) - 1


def test_nothing_is_trained_twice(finished, backbone, monkeypatch):
    folder, results = finished
    monkeypatch.setattr(trainings, "train_and_record", lambda *arguments: pytest.fail("trained again"))
    again = compare(list(SYSTEMS), [("support_desk", "intent")], backbone, [1], BUDGET, GOALS, str(folder), None, print)
    assert again == results


def test_results_of_other_tasks_and_seeds_stay_in_the_folder(backbone, tmp_path):
    for config, seed in (("intent", 1), ("topics", 1), ("intent", 2)):
        compare(["pf-berxit"], [("support_desk", config)], backbone, [seed], BUDGET, GOALS, str(tmp_path), None, print)
    kept = json.loads((tmp_path / "results.json").read_text())
    assert [(each["task"], each["seed"]) for each in kept] == [("intent", 1), ("intent", 2), ("topics", 1)]
    table = (tmp_path / "table.md").read_text()
    assert "**intent** (accuracy" in table and "**topics** (micro_f1" in table


# ---- points ---------------------------------------------------------------------------------------------------------


def recorded(held_out: torch.Tensor, reported: torch.Tensor, labels: torch.Tensor) -> Trained:
    lengths, facts = torch.ones_like(labels), {"metric": "accuracy", "token_layers": None}
    parts = (
        Recording(Evidence(logits), lengths, labels, [1, 2, 3, 4], SINGLE_LABEL, facts)
        for logits in (held_out, reported)
    )
    return Trained(*parts)


def sure_from(layer: int, labels: torch.Tensor, right: bool = True) -> torch.Tensor:
    """Logits (B, 4 exits, 2): undecided before `layer`, then sure of the label, or of the other one."""
    target = labels if right else 1 - labels
    sure = 8.0 * torch.nn.functional.one_hot(target, 2).float()
    exits = torch.arange(1, 5)[None, :, None]
    return torch.where(exits >= layer, sure[:, None], 0.1 * sure[:, None])


def test_settings_are_chosen_on_held_out_rows_and_reported_on_the_others(backbone):
    labels = torch.arange(40) % 2
    right, wrong = sure_from(2, labels), sure_from(2, labels, right=False)
    config = compared_config("branchynet", backbone)
    (point,) = points(config, recorded(right, wrong, labels), [0.5])
    assert point["score"] == 0.0 and point["saved"] == 0.5
    (point,) = points(config, recorded(wrong, right, labels), [0.5])
    assert point["score"] == 1.0 and point["saved"] == 0.5


def tried(saved: float, score: float, patience: int) -> Point:
    return Point(ExitPolicy(threshold=0.1, patience=patience), score, 6 * (1 - saved), saved)


def test_of_the_settings_about_equally_near_the_best_one_is_taken():
    near = [tried(0.5, 0.8, 1), tried(0.515, 0.9, 2), tried(0.48, 0.7, 3)]
    assert setting_near(0.5, near).patience == 2
    assert setting_near(0.5, [*near, tried(0.53, 0.99, 4)]).patience == 2, "too far to compete with the nearest"
    assert setting_near(0.45, near).patience == 3
    assert setting_near(0.38, near) is None and setting_near(0.62, near) is None and setting_near(0.5, []) is None


def test_a_share_that_a_rule_never_comes_near_is_not_reachable(backbone):
    labels = torch.arange(40) % 2
    late = sure_from(4, labels)
    kept = recorded(late, late, labels)
    at = dict(zip((0.75, 0.5, 0.0), points(compared_config("f-pabee", backbone), kept, [0.75, 0.5, 0.0])))
    assert at[0.75] is None, "patience 1 needs two exits: no row can leave before layer 2"
    assert at[0.0]["saved"] == 0.0 and at[0.0]["score"] == 1.0
    fixed = points(compared_config("appointed", backbone), kept, [0.75, 0.6, 0.5])
    assert [point and point["appointed_layer"] for point in fixed] == [1, None, 2]


def result(**changes) -> dict:
    run = {"budget": {"epochs": 3}, "backbone": "encoder"}
    return {
        "system": "pabee", "task": "mrpc", "metric": "accuracy", "seed": 1, "majority": 0.7, "full": 0.8,
        "average": 0.75, "points": [{"saved": 0.5, "score": 0.78}], "train_rows": 100, "run": run, **changes,
    }  # fmt: skip


def test_a_line_is_mean_and_spread_over_seeds():
    runs = [result(), result(seed=2, full=0.9, points=[{"saved": 0.52, "score": 0.8}]), result(seed=3, full=0.7)]
    assert system_row(runs, [0.5]) == ["pabee", "0.750 ± 0.000", "0.800 ± 0.100", "0.787 ± 0.012 @ 51 %", "3"]
    assert "not reachable" in system_row([*runs, result(points=[None])], [0.5])


def test_a_rule_that_cannot_judge_the_task_is_told_from_one_that_saves_nothing(backbone, tmp_path):
    task = [("support_desk", "urgency")]
    values = compare(["pf-berxit", "pabee"], task, backbone, [1], BUDGET, [0.0], str(tmp_path), None, print)
    assert [each["judged"] for each in values] == [False, True], "divergence compares probabilities, patience values"
    assert system_row(values[:1], [0.0])[3] == "cannot judge"


def test_values_have_no_majority_class_to_compare_with():
    assert "majority class 0.700" in as_markdown([result()], [0.5])
    assert "one value for all 0.000" in as_markdown([result(metric="correlation", majority=0.0)], [0.5])


def test_a_full_depth_at_the_majority_class_is_marked():
    assert "| 0.700* |" in as_markdown([result(full=0.7)], [0.5])
    assert "*" not in " ".join(system_row([result()], [0.5]))


def test_an_unknown_system_is_refused_before_anything_is_loaded(capsys):
    with pytest.raises(SystemExit, match="system='pabbee': must be one of pf-berxit"):
        main(["compare", "--systems", "pabbee", "--tasks", "nowhere:mrpc"])
