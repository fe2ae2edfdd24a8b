"""`pfberxit reproduce gap`: variants beside training all weights, on the same rows and seeds."""

import json
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from tiny import save_backbone

from modeling_pfberxit import PFBerxitConfig
from modeling_pfberxit.evaluation.frontier import drawn_weights
from modeling_pfberxit.evaluation.recording import Recording
from modeling_pfberxit.model.evidence import MULTI_LABEL, REGRESSION, SINGLE_LABEL, Evidence
from modeling_pfberxit.model.exit_policy import FULL_DEPTH
from modeling_pfberxit.studies import gap, runs, trainings
from modeling_pfberxit.studies.gap import VARIANTS
from modeling_pfberxit.studies.paper_study import Study
from modeling_pfberxit.studies.reproduce import reproduce
from modeling_pfberxit.studies.runs import Budget, Run
from modeling_pfberxit.studies.teacher import softened

pytestmark = pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")  # PEFT still asks for it
BUDGET = Budget(rows=24, epochs=1, held_out=40, batch_size=8)


@pytest.fixture(scope="module")
def study(tmp_path_factory) -> Study:
    folder = tmp_path_factory.mktemp("gap")
    return Study("support_desk", ("urgency",), save_backbone(folder / "encoder"), (1, 2), BUDGET, folder)


def test_the_table_tells_how_far_each_variant_is_ahead_on_the_same_rows_and_seeds(study, monkeypatch):
    chosen = gap.chosen(("all weights", "twice as long", "lora"))
    text = gap.gap(study, chosen, "gap")
    found = json.loads((study.folder / "gap.json").read_text())
    assert [each["variant"] for each in found] == [*chosen]
    reference = found[0]
    for each in found[1:]:
        mean, low, high = each["full_ahead"]
        assert mean == pytest.approx(np.mean(each["full"]) - np.mean(reference["full"])) and low <= mean <= high
        assert 0 < each["share"] < reference["share"] and each["seeds"] == [1, 2]
    assert reference["full_ahead"] == [0, 0, 0] and reference["share"] > 1  # the exits come on top
    assert text.count("\n| ") == len(found) - 1 + 1 and "rows and seeds" in text
    assert (study.folder / "gap.png").stat().st_size > 10_000
    monkeypatch.setattr(trainings, "train_and_record", lambda *arguments: pytest.fail("trained again"))
    assert gap.gap(study, chosen, "gap") == text


def test_a_variant_that_does_not_fit_a_task_is_left_out_there_and_unknown_ones_are_refused(study, tmp_path):
    names = ("default", "rows where they leave")
    one = replace(study, tasks=("urgency", "intent"), seeds=(1,), folder=tmp_path, variants=names)
    table = gap.gap(one, gap.chosen(names), "gap").splitlines()
    line = next(line for line in table if line.startswith("| rows where they leave"))
    assert line.count("| - ") == 3 and [each.split("|")[1].strip() for each in table[2:4]] == [*names]
    with pytest.raises(ValueError, match=r"^variants=\['best'\]: must be among all weights; "):
        next(reproduce(["gap"], replace(one, variants=("default", "best"))))
    with pytest.raises(ValueError, match=r"^variants=.* left out without gap"):
        next(reproduce(["table1"], one))


def test_the_interval_is_that_of_rows_drawn_for_both_together(study):
    one = replace(study, seeds=(1,))
    (mine,), (other,) = (gap.models(one, knobs, "intent") for knobs in (VARIANTS["default"], {"system": "pabee"}))
    right = [
        kept.reported_on.replay(FULL_DEPTH)[0].argmax(-1).eq(kept.reported_on.known_labels).double().numpy()
        for kept in (mine, other)
    ]
    (weights,) = drawn_weights(len(right[0]), gap.RESAMPLES, 0)
    drawn = weights.T @ (right[0] - right[1]) / len(right[0])
    mean, low, high = gap.ahead([mine], [gap.full_depth(mine)], [other], [gap.full_depth(other)])
    assert mean == pytest.approx((right[0] - right[1]).mean())
    assert [low, high] == pytest.approx(np.quantile(drawn, [0.025, 0.975]))


def test_a_variant_s_budget_is_part_of_the_key_and_the_usual_one_changes_no_key(study):
    config = PFBerxitConfig.from_backbone(study.backbone)
    run = Run(study.source("intent"), study.backbone, 1, BUDGET)
    keys = [trainings.key_of(replace(run, budget=replace(BUDGET, **each)), config)["budget"] for each in (
        {}, {"learning_rate": 2e-3}, {"depth_rate": 0.7}, {"beside": "lora"},
    )]  # fmt: skip
    assert set(keys[0]) == {"rows", "epochs", "held_out", "batch_size", "dropout"}
    assert len({json.dumps(key) for key in keys}) == 4


def test_layers_learn_at_their_own_rates(study, tmp_path):
    run = Run(study.source("intent"), study.backbone, 1, replace(BUDGET, learning_rate=1e-3, depth_rate=0.5))
    config = PFBerxitConfig.from_backbone(study.backbone)
    tokenizer = runs.new_tokenizer(run.backbone)
    rows = runs.encode(run.source.task, runs.split_rows(run)[1], tokenizer)
    model = runs.new_model(config, run.source.task)
    optimizer = runs.trainer_of(model, run, tokenizer, str(tmp_path), rows).create_optimizer()
    rates = {parameter: group["lr"] for group in optimizer.param_groups for parameter in group["params"]}
    depths = list(model.depths)
    for number, depth in enumerate(depths):
        assert {rates[each] for each in depth.parameters()} == {1e-3 * 0.5 ** (len(depths) - 1 - number)}
    assert {rates[each] for each in model.exits.parameters()} == {1e-3}
    assert sum(len(group["params"]) for group in optimizer.param_groups) == len(rates)
    assert {id(each) for each in rates} == {id(each) for each in model.parameters() if each.requires_grad}


def test_a_teacher_s_answers_are_a_share_of_the_labels():
    logits, lengths = torch.tensor([[[0.0, 9.0], [0.0, math.log(3)]]]), torch.ones(1)
    classes = Recording(Evidence(logits), lengths, torch.tensor([0]), [1, 2], SINGLE_LABEL)
    assert softened(classes, 0.5)[0].tolist() == pytest.approx([0.5 + 0.5 * 0.25, 0.5 * 0.75])
    labels = Recording(Evidence(logits), lengths, torch.tensor([[1.0, 0.0]]), [1, 2], MULTI_LABEL)
    assert softened(labels, 0.5)[0].tolist() == pytest.approx([0.5 + 0.5 * 0.5, 0.5 * 0.75])
    values = Recording(Evidence(logits[..., 1:]), lengths, torch.tensor([2.0]), [1, 2], REGRESSION)
    assert softened(values, 0.25).item() == pytest.approx(0.75 * 2 + 0.25 * math.log(3))


@pytest.mark.parametrize("task", ["intent", "urgency"])
def test_a_taught_model_learns_from_softened_labels_and_is_judged_by_the_true_ones(task, study):
    run = Run(study.source(task), study.backbone, 1, replace(BUDGET, teacher=0.5, beside="lora"))
    held_out, reported = runs.train_and_record(run, PFBerxitConfig.from_backbone(study.backbone))
    assert reported.known_labels.dim() == 1 and len(held_out) == BUDGET.held_out
