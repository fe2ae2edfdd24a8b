"""Table 6: rows that leave on their own, and batches that leave as a whole."""

from dataclasses import replace

import pytest
import torch
from tiny import tiny_config

from modeling_pfberxit import ExitPolicy, PFBerxitConfig
from modeling_pfberxit.evaluation.frontier import grid, sweep
from modeling_pfberxit.evaluation.recording import Recording
from modeling_pfberxit.model.evidence import REGRESSION, SINGLE_LABEL, Evidence
from modeling_pfberxit.model.exit_policy import configured_policy
from modeling_pfberxit.studies import batch_sizes, paper_values
from modeling_pfberxit.studies.batch_sizes import at_batch_sizes, beside, sweep_whole, together, whole_batches
from modeling_pfberxit.studies.comparison_table import points, setting_near
from modeling_pfberxit.studies.trainings import Trained


def recording(rows: int = 200, exits: int = 6, seed: int = 0) -> Recording:
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, 3, (rows,), generator=generator)
    logits = torch.randn(rows, exits, 3, generator=generator) + 4 * torch.nn.functional.one_hot(labels, 3)[:, None]
    return Recording(Evidence(logits), torch.full((rows,), 9), labels, list(range(1, exits + 1)), SINGLE_LABEL)


def layers_as_released(answers: torch.Tensor, patience: int) -> int:
    """PABEE on one batch, in its own terms: one counter, raised where every row's label stays, else set to 0."""
    counter, before = 0, None
    for layer, labels in enumerate(answers.T.tolist(), start=1):
        counter = counter + 1 if labels == before else 0
        before = labels
        if counter == patience:
            return layer
    return answers.shape[1]


@pytest.mark.parametrize("patience", [1, 2, 3])
@pytest.mark.parametrize("size", [1, 2, 4, 16])
def test_a_batch_leaves_as_in_the_released_code(patience, size):
    kept = recording()
    ((_, answers, layers),) = whole_batches(kept, [ExitPolicy("patience", patience=patience)], size)
    labels = kept.evidence.logits.argmax(-1)
    expected = [layers_as_released(batch, patience) for batch in labels.split(size) for _ in batch]
    assert layers.tolist() == expected and len(set(expected)) > 1
    assert torch.equal(answers, kept.evidence.logits[torch.arange(len(kept)), layers - 1])


def test_a_batch_of_one_is_a_row_on_its_own():
    kept = recording()
    for criterion in ("divergence_v1", "divergence_v3", "entropy", "appointed"):
        policies = list(grid(kept, criterion, steps=8))
        assert sweep_whole(kept, policies, "accuracy", 1) == sweep(kept, policies, "accuracy")


def test_a_batch_never_leaves_before_its_last_row_may():
    kept, policies = recording(), [ExitPolicy("divergence_v1", threshold=0.8, patience=1)]
    ((_, _, alone),) = whole_batches(kept, policies, 1)
    ((_, _, joined),) = whole_batches(kept, policies, 4)
    latest = torch.cat([batch.max().expand(len(batch)) for batch in alone.split(4)])
    assert (joined >= latest).all() and (joined > alone).any()


def test_rows_leave_together_where_all_may_at_once_or_at_the_end():
    fires = torch.tensor([[0, 1, 1, 0], [1, 0, 1, 0], [1, 0, 0, 0], [0, 1, 0, 0], [0, 1, 0, 0]]).bool()
    assert together(fires, 2).tolist() == [2, 2, 3, 3, 1]  # the last batch is a row short
    assert together(fires, 1).tolist() == [1, 0, 0, 1, 1] and together(fires, 8).tolist() == [3] * 5


def test_a_rule_that_asks_several_exits_is_refused():
    with pytest.raises(ValueError, match="criterion='voting': must be one whose predictions are those of the exit"):
        list(whole_batches(recording(), [ExitPolicy("voting", threshold=0.5)], 2))


def test_settings_of_table_6_are_chosen_on_held_out_rows_at_the_size_their_line_names():
    kept = Trained(*(replace(recording(seed=seed), source={"metric": "accuracy"}) for seed in (1, 2)))
    config = PFBerxitConfig.from_backbone(tiny_config(), exit_criterion="entropy")
    policies = list(grid(kept.chosen_on, "entropy", configured_policy(config), steps=60))

    def expected(part: Recording, chosen_at: int, reported_at: int) -> list[dict]:
        chosen = [setting_near(goal, sweep_whole(part, policies, "accuracy", chosen_at)) for goal in batch_sizes.GOALS]
        found = (policy and sweep_whole(kept.reported_on, [policy], "accuracy", reported_at)[0] for policy in chosen)
        return [point and {"score": point.score, "saved": point.saved} for point in found]

    found = at_batch_sizes(config, kept, [1, 4])
    assert found["own", 1] == found["own", 4] == found["whole", 1] == found["kept", 1] == expected(kept.chosen_on, 1, 1)
    assert found["kept", 4] == expected(kept.chosen_on, 1, 4)
    assert found["whole", 4] == expected(kept.chosen_on, 4, 4) != found["kept", 4]
    assert found["whole", 4] != expected(kept.reported_on, 4, 4), "or these rows could not tell"


def test_the_doubtful_printed_values_are_marked_and_no_others():
    marked = [
        (size, task, number)
        for size, tasks in paper_values.BY_BATCH.items()
        for task in tasks
        for number in range(3)
        if "†" in beside("own", size, task, number)
    ]
    assert marked == [(1, "mrpc", 0), (1, "qnli", 0)]
    assert beside("own", 1, "qnli", 0) == " (91.1 @ 75 %†)" and beside("own", 16, "rte", 2) == " (74.7 @ 28 %)"
    assert beside("whole", 1, "qnli", 0) == beside("own", 1, "cola", 0) == ""


def test_what_table_6_prints_is_complete():
    assert list(paper_values.BY_BATCH) == [1, 2, 4, 8, 16]
    for tasks in paper_values.BY_BATCH.values():
        assert set(tasks) == set(paper_values.TASKS) - {"cola"}
        assert all(len(values) == len(batch_sizes.GOALS) for values in tasks.values())


def test_a_rule_that_cannot_judge_values_is_near_no_share():
    values = Recording(Evidence(torch.randn(20, 6, 1)), torch.full((20,), 9), torch.randn(20), [1, 2, 3, 4, 5, 6],
                       REGRESSION, {"metric": "correlation", "token_layers": None})  # fmt: skip
    config, kept = PFBerxitConfig.from_backbone(tiny_config()), Trained(values, values)
    assert at_batch_sizes(config, kept, [1, 2])["whole", 2] == points(config, kept, [0.5, 0.25, 0.1]) == [None] * 3
