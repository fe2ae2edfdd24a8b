"""The layer table and the budget: thresholds from held-out rows, every stage with the steps of what it moves."""

from dataclasses import replace

import pytest
import torch
from tiny import save_backbone

from modeling_pfberxit import PFBerxitConfig
from modeling_pfberxit.data.source import Source
from modeling_pfberxit.data.tasks import encode
from modeling_pfberxit.evaluation.recording import Recording
from modeling_pfberxit.model.evidence import REGRESSION, SINGLE_LABEL, Evidence
from modeling_pfberxit.studies.compared import compared_config
from modeling_pfberxit.studies.layer_table import as_markdown, measure
from modeling_pfberxit.studies.runs import Budget, Run, split_rows, train_and_record, trainer_of
from modeling_pfberxit.studies.trainings import Trained
from modeling_pfberxit.training.finetuning import new_model, new_tokenizer


def said(logits: torch.Tensor, labels: torch.Tensor, problem_type: str = SINGLE_LABEL) -> Recording:
    facts = {"task": "planted", "metric": "accuracy" if problem_type == SINGLE_LABEL else "correlation"}
    facts |= {"train_rows": 7, "run": {"seed": 1}}
    exits = list(range(1, logits.shape[1] + 1))
    return Recording(Evidence(logits), torch.ones_like(labels), labels, exits, problem_type, facts)


def pointing(ways: list[int], labels: torch.Tensor) -> torch.Tensor:
    """Logits (B, exits, 2), each exit sure of the label (1) or of the other one (0), a little surer from row to row."""
    right = torch.nn.functional.one_hot(labels, 2).float()[:, None]
    ways = torch.tensor(ways)[None, :, None].bool()
    return torch.where(ways, right, 1 - right) * (4.0 + 0.1 * torch.arange(len(labels))[:, None, None])


def test_thresholds_of_the_layer_table_come_from_the_held_out_rows():
    labels = torch.arange(40) % 2
    # The exits of held-out rows agree and are wrong. Those of reported rows never agree, and the last one is right.
    kept = Trained(said(pointing([0, 0, 0, 0], labels), labels), said(pointing([0, 1, 0, 1], labels), labels))
    found = measure(kept, "frozen", [0.3])
    assert (found["points"][0]["saved"], found["points"][0]["score"]) == (0.0, 1.0)
    (point,) = measure(Trained(kept.reported_on, kept.chosen_on), "frozen", [0.3])["points"]
    assert point["saved"] >= 0.3 and point["score"] == 0.0, "so these rows can tell"
    assert found["layers"] == [0.0, 1.0, 0.0, 1.0]
    assert (found["task"], found["mode"], found["train_rows"], found["evaluation_rows"]) == ("planted", "frozen", 7, 40)


def test_a_value_leaves_by_its_distance_to_the_one_before():
    values = torch.rand(40, generator=torch.Generator().manual_seed(0))
    exits = values[:, None, None] + torch.tensor([0.5, 0.05, 0.0, 0.0])[None, :, None]
    kept = Trained(said(exits, values, REGRESSION), said(exits, values, REGRESSION))
    (point,) = measure(kept, "frozen", [0.25])["points"]
    assert point["saved"] == pytest.approx(0.25)
    assert point["score"] == pytest.approx(1.0)


def test_a_line_is_the_mean_over_seeds():
    one = {
        "task": "mrpc",
        "mode": "frozen",
        "majority": 0.6,
        "layers": [0.5, 0.8],
        "points": [{"score": 0.7, "saved": 0.3}],
    }
    two = one | {"layers": [0.6, 0.9], "points": [{"score": 0.8, "saved": 0.4}]}
    *_, line = as_markdown([one, two]).splitlines()
    assert line == "| mrpc | frozen | 0.600 | 0.550* | 0.850 | 0.750 @ 35 % |"


# ---- budgets --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Run:
    backbone = save_backbone(tmp_path_factory.mktemp("budget") / "encoder")
    return Run(Source.read("support_desk", "intent"), backbone, 3, Budget(rows=24, epochs=2, batch_size=4, held_out=9))


@pytest.mark.parametrize(
    ("system", "stage", "rate"),
    [("deebert", 1, 5e-5), ("deebert", 2, 1e-3), ("pabee", 1, 5e-5), ("pf-berxit", 1, 1e-3)],
)
def test_a_stage_that_moves_exits_alone_takes_large_steps(run, tmp_path, system, stage, rate):
    config = PFBerxitConfig.from_backbone(compared_config(system, run.backbone), training_stage=stage)
    task, tokenizer = run.source.task, new_tokenizer(run.backbone)
    model = new_model(config, task)
    arguments = trainer_of(model, run, tokenizer, str(tmp_path), encode(task, split_rows(run)[1], tokenizer)).args
    assert arguments.learning_rate == rate
    assert (arguments.per_device_train_batch_size, arguments.num_train_epochs, arguments.seed) == (4, 2.0, 3)


def test_a_budget_without_dropout_has_none_in_the_encoder(run, monkeypatch):
    seen = []

    class Enough(Exception):
        pass

    def look(model, trainer):
        seen.append({m.p for m in model.backbone.modules() if isinstance(m, torch.nn.Dropout)})
        raise Enough

    monkeypatch.setattr("modeling_pfberxit.studies.runs.train", look)
    for dropout in (True, False):
        with pytest.raises(Enough):
            train_and_record(
                replace(run, budget=replace(run.budget, dropout=dropout)), compared_config("pabee", run.backbone)
            )
    assert seen == [{0.1}, {0.0}]
