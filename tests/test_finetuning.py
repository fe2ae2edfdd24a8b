"""Exits that start with the labels' base rates."""

import numpy as np
import pytest
from scipy.special import logit
from tiny import tiny_model

from modeling_pfberxit.data.tasks import encode, load_task
from modeling_pfberxit.training import start_at_base_rates
from modeling_pfberxit.training.finetuning import new_model, new_tokenizer, new_trainer, training_arguments


def fresh(problem_type: str):
    return tiny_model("bert", num_labels=2, problem_type=problem_type, liven=False)


def biases(model) -> list[list[float]]:
    return [exit.bias.tolist() for exit in model.exits.classifiers]


def test_values_start_at_their_mean_and_exits_that_have_learned_are_left_alone():
    model = fresh("regression")
    start_at_base_rates(model, [[1.0, 4.0], [2.0, 6.0]])
    assert biases(model) == [[1.5, 5.0]] * len(model.exits.classifiers)
    start_at_base_rates(model, [[0.0, 0.0]])
    assert biases(model) == [[1.5, 5.0]] * len(model.exits.classifiers)


def test_labels_start_at_their_log_odds_even_if_no_row_has_them():
    model = fresh("multi_label_classification")
    start_at_base_rates(model, [[1, 0], [0, 0], [0, 0], [0, 0]])
    np.testing.assert_allclose(biases(model)[0], logit([1.5 / 5, 0.5 / 5]), rtol=1e-6)


def test_classes_start_where_they_are():
    model = fresh("single_label_classification")
    start_at_base_rates(model, [0, 0, 0, 1])
    assert not np.any(biases(model))


@pytest.mark.parametrize("config", ["urgency", "topics", "intent"])
def test_tasks_start_there_when_they_are_told_to_and_no_sooner(tmp_path, local_backbone, config):
    task, data = load_task("support_desk", config)
    model, tokenizer = new_model(local_backbone, task), new_tokenizer(local_backbone)
    rows = encode(task, data["train"], tokenizer)
    new_trainer(model, task, tokenizer, training_arguments(str(tmp_path)), rows)
    assert not np.any(biases(model))
    start_at_base_rates(model, rows["labels"])
    labels = np.array(rows["labels"], dtype=float)
    share = (labels.sum(0) + 0.5) / (len(labels) + 1)
    expected = {"urgency": lambda: labels.mean(), "topics": lambda: logit(share), "intent": lambda: 0.0}[config]()
    for each in biases(model):
        np.testing.assert_allclose(each, np.broadcast_to(expected, len(each)), rtol=1e-5)
