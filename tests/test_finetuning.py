"""What a `Trainer` for a task begins with: exits whose values start at the labels' mean."""

import numpy as np
import pytest
from tiny import tiny_model

from modeling_pfberxit.training import start_at_mean
from modeling_pfberxit.training.finetuning import new_model, new_tokenizer, new_trainer, training_arguments
from modeling_pfberxit.training.tasks import encode, load_task


def test_fresh_exits_answer_with_the_labels_mean_and_learned_ones_are_left_alone():
    model = tiny_model("bert", num_labels=2, problem_type="regression", liven=False)
    start_at_mean(model, [[1.0, 4.0], [2.0, 6.0]])
    assert all(exit.bias.tolist() == [1.5, 5.0] for exit in model.exits.classifiers)
    start_at_mean(model, [[0.0, 0.0]])
    assert all(exit.bias.tolist() == [1.5, 5.0] for exit in model.exits.classifiers)


@pytest.mark.parametrize("config", ["urgency", "intent"])
def test_a_trainer_for_values_starts_there_and_one_for_classes_does_not(tmp_path, local_backbone, config):
    task, data = load_task("support_desk", config)
    model, tokenizer = new_model(local_backbone, task), new_tokenizer(local_backbone)
    rows = encode(task, data["train"], tokenizer)
    new_trainer(model, task, tokenizer, training_arguments(str(tmp_path)), rows)
    expected = np.mean(rows["labels"]) if config == "urgency" else 0.0
    for exit in model.exits.classifiers:
        np.testing.assert_allclose(exit.bias.detach(), expected, rtol=1e-6)
