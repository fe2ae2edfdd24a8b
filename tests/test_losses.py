"""What exits are trained on, against torch's own losses called exit by exit and weighted by hand."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from tiny import tiny_batch, tiny_model
from torch import Tensor
from torch.nn import functional as F

from modeling_pfberxit import PFBerxitConfig, PFBerxitForSequenceClassification
from modeling_pfberxit.model.blueprint import rebuilt
from modeling_pfberxit.model.criteria import MULTI_LABEL, REGRESSION, SINGLE_LABEL
from modeling_pfberxit.model.losses import check_labels, check_objective, exit_losses, lte_loss, problem_type_of
from modeling_pfberxit.model.strategies import exit_weights

ROWS, LAYERS, NAN, INF = 5, 6, float("nan"), float("inf")
BATCH = tiny_batch(ROWS)
PROBLEMS = (SINGLE_LABEL, MULTI_LABEL, REGRESSION)
OUTPUTS = {SINGLE_LABEL: 3, MULTI_LABEL: 2, REGRESSION: 1}


def some_labels(problem_type: str, seed: int = 0, outputs: int | None = None) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    outputs = outputs or OUTPUTS[problem_type]
    if problem_type == SINGLE_LABEL:
        return torch.randint(outputs, (ROWS,), generator=generator)
    if problem_type == MULTI_LABEL:
        return torch.randint(2, (ROWS, outputs), generator=generator).float()
    values = torch.randn(ROWS, outputs, generator=generator)
    return values[:, 0] if outputs == 1 else values


def some_logits(outputs: int, exits: int = LAYERS) -> Tensor:
    return 2 * torch.randn(ROWS, exits, outputs, generator=torch.Generator().manual_seed(1))


def torch_loss(logits: Tensor, labels: Tensor, problem_type: str, smoothing: float = 0.0) -> Tensor:
    """torch's own loss of one exit: logits (B, C) -> scalar."""
    if problem_type == SINGLE_LABEL:
        return F.cross_entropy(logits, labels, label_smoothing=smoothing)
    if problem_type == MULTI_LABEL:
        smoothed = torch.where(labels == 1, 1 - smoothing / 2, smoothing / 2)
        return F.binary_cross_entropy_with_logits(logits, smoothed)
    return F.mse_loss(logits, labels.reshape(logits.shape))


# ---- each exit ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "problem_type, outputs", [(SINGLE_LABEL, 3), (MULTI_LABEL, 2), (MULTI_LABEL, 1), (REGRESSION, 1), (REGRESSION, 2)]
)
def test_every_exit_has_torch_s_own_loss(problem_type, outputs):
    logits, labels = some_logits(outputs), some_labels(problem_type, outputs=outputs)
    losses = exit_losses(logits, labels, problem_type)
    expected = [torch_loss(logits[:, number], labels, problem_type) for number in range(LAYERS)]
    torch.testing.assert_close(losses, torch.stack(expected))
    assert losses.unique().numel() == LAYERS


def test_exit_losses_by_hand():
    even, sure = [0.0, 0.0], [math.log(9), 0.0]  # (0.5, 0.5) and (0.9, 0.1)
    logits = torch.tensor([[even, sure], [even, sure]])
    losses = exit_losses(logits, torch.tensor([0, 1]), SINGLE_LABEL)
    assert losses.tolist() == pytest.approx([math.log(2), -(math.log(0.9) + math.log(0.1)) / 2])
    losses = exit_losses(torch.tensor([[[0.0, math.log(9)]]]), torch.tensor([[1.0, 0.0]]), MULTI_LABEL)
    assert losses.tolist() == pytest.approx([(math.log(2) - math.log(0.1)) / 2])
    losses = exit_losses(torch.tensor([[[1.0], [2.5]], [[0.0], [0.0]]]), torch.tensor([2.0, 0.0]), REGRESSION)
    assert losses.tolist() == pytest.approx([1.0 / 2, 0.25 / 2])


@pytest.mark.parametrize("problem_type", [SINGLE_LABEL, MULTI_LABEL])
@pytest.mark.parametrize("smoothing", [0.1, 0.5])
def test_label_smoothing_is_torch_s(problem_type, smoothing):
    logits, labels = some_logits(OUTPUTS[problem_type]), some_labels(problem_type)
    losses = exit_losses(logits, labels, problem_type, smoothing)
    expected = [torch_loss(logits[:, number], labels, problem_type, smoothing) for number in range(LAYERS)]
    torch.testing.assert_close(losses, torch.stack(expected))
    assert not torch.allclose(losses, exit_losses(logits, labels, problem_type))


def test_smoothing_one_of_two_labels_is_smoothing_two_classes():
    logits = some_logits(1)
    given = (some_labels(SINGLE_LABEL) > 0).float()[:, None]
    two_classes = torch.cat([torch.zeros_like(logits), logits], dim=-1)
    torch.testing.assert_close(
        exit_losses(logits, given, MULTI_LABEL, 0.2), exit_losses(two_classes, given[:, 0].long(), SINGLE_LABEL, 0.2)
    )


def test_values_have_no_labels_to_smooth():
    config = PFBerxitConfig(label_smoothing=0.1)
    with pytest.raises(ValueError, match=r"^label_smoothing=0\.1: must be 0 for regression\.$"):
        check_objective(config, REGRESSION)
    for problem_type in (SINGLE_LABEL, MULTI_LABEL):
        check_objective(config, problem_type)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_rows_labelled_minus_100_are_left_out(smoothing):
    logits, labels = some_logits(3), some_labels(SINGLE_LABEL)
    labels[[1, 3]] = -100
    kept = [0, 2, 4]
    losses = exit_losses(logits, labels, SINGLE_LABEL, smoothing)
    torch.testing.assert_close(losses, exit_losses(logits[kept], labels[kept], SINGLE_LABEL, smoothing))
    expected = [torch_loss(logits[:, number], labels, SINGLE_LABEL, smoothing) for number in range(LAYERS)]
    torch.testing.assert_close(losses, torch.stack(expected))


def test_a_batch_without_any_label_has_no_loss():
    losses = exit_losses(some_logits(3), torch.full((ROWS,), -100), SINGLE_LABEL)
    assert losses.tolist() == [0.0] * LAYERS


@pytest.mark.parametrize("problem_type", PROBLEMS)
def test_losses_are_single_precision_whatever_the_logits_are(problem_type):
    logits, labels = some_logits(OUTPUTS[problem_type]).bfloat16(), some_labels(problem_type)
    losses = exit_losses(logits, labels, problem_type)
    assert losses.dtype == torch.float32
    torch.testing.assert_close(losses, exit_losses(logits.float(), labels, problem_type))


# ---- weights and losses of one's own ---------------------------------------------------------------------------------

WEIGHTS = {SINGLE_LABEL: ("class_weights", [0.5, 2.0, 3.0]), MULTI_LABEL: ("pos_weight", [4.0, 0.25])}


def weighed_loss(logits: Tensor, labels: Tensor, problem_type: str, smoothing: float = 0.0) -> Tensor:
    """torch's own weighted loss of one exit: logits (B, C) -> scalar."""
    weights = torch.tensor(WEIGHTS[problem_type][1])
    if problem_type == SINGLE_LABEL:
        return F.cross_entropy(logits, labels, weight=weights, label_smoothing=smoothing)
    smoothed = torch.where(labels == 1, 1 - smoothing / 2, smoothing / 2)
    return F.binary_cross_entropy_with_logits(logits, smoothed, pos_weight=weights)


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("smoothing", [0.0, 0.2])
@pytest.mark.parametrize("problem_type", WEIGHTS)
def test_weights_are_torch_s_in_every_exit_s_loss(problem_type, smoothing, training):
    name, weights = WEIGHTS[problem_type]
    knobs = {"problem_type": problem_type, "num_labels": OUTPUTS[problem_type], "label_smoothing": smoothing}
    model = tiny_model("bert", **knobs, **{name: weights}, exit_weights="uniform", exit_dropout=0.0).train(training)
    labels = some_labels(problem_type)
    output = model(**BATCH, labels=labels)
    expected = [weighed_loss(logits, labels, problem_type, smoothing) for logits in output.exit_logits.unbind(1)]
    torch.testing.assert_close(output.loss, sum(expected))
    setattr(model.config, name, None)
    assert not torch.isclose(output.loss, model(**BATCH, labels=labels).loss)


@pytest.mark.parametrize("problem_type", WEIGHTS)
def test_weights_are_in_the_loss_of_answers_that_left_early(problem_type):
    name, weights = WEIGHTS[problem_type]
    model = tiny_model("bert", problem_type=problem_type, num_labels=OUTPUTS[problem_type], **{name: weights})
    labels = some_labels(problem_type)
    output = model(**BATCH, labels=labels, exit_policy={"criterion": "appointed", "appointed_layer": 2})
    torch.testing.assert_close(output.loss, weighed_loss(output.logits, labels, problem_type))


def test_rows_labelled_minus_100_weigh_nothing():
    logits, labels = some_logits(3), some_labels(SINGLE_LABEL)
    labels[[1, 3]] = -100
    weights = WEIGHTS[SINGLE_LABEL][1]
    losses = exit_losses(logits, labels, SINGLE_LABEL, 0.0, weights)
    expected = [F.cross_entropy(each, labels, weight=torch.tensor(weights)) for each in logits.unbind(1)]
    torch.testing.assert_close(losses, torch.stack(expected))


def test_a_batch_whose_classes_weigh_nothing_has_no_loss():
    logits = some_logits(3).requires_grad_()
    losses = exit_losses(logits, torch.zeros(ROWS, dtype=torch.long), SINGLE_LABEL, 0.1, [0.0, 1.0, 1.0])
    losses.sum().backward()
    assert losses.tolist() == [0.0] * LAYERS and not logits.grad.any()


BAD_WEIGHTS = [
    ({"class_weights": [1.0, 2.0]}, SINGLE_LABEL, "class_weights=.*: must be a list of 3 numbers, one for each label"),
    ({"class_weights": [0.0, 0.0, 0.0]}, SINGLE_LABEL, "class_weights=.*: must be .*one of them above 0"),
    ({"class_weights": [1.0, 2.0, 3.0]}, MULTI_LABEL, "class_weights=.*: must be None for multi_label"),
    ({"class_weights": [1.0, 2.0, 3.0]}, REGRESSION, "class_weights=.*: must be None for regression"),
    ({"pos_weight": [1.0] * 4}, MULTI_LABEL, "pos_weight=.*: must be a list of 3 numbers, one for each label"),
    ({"pos_weight": [1.0, 2.0, 3.0]}, SINGLE_LABEL, "pos_weight=.*: must be None for single_label"),
]


@pytest.mark.parametrize("knobs, problem_type, message", BAD_WEIGHTS)
def test_weights_that_do_not_fit_are_refused_by_name(knobs, problem_type, message):
    with pytest.raises(ValueError, match=message):
        tiny_model("bert", num_labels=3, problem_type=problem_type, **knobs)
    model = tiny_model("bert", num_labels=3, problem_type=problem_type)
    for name, value in knobs.items():
        setattr(model.config, name, value)
    ran = count_layers(model)
    with pytest.raises(ValueError, match=message):
        model(**BATCH, labels=some_labels(problem_type, outputs=3))
    assert not ran


@pytest.mark.parametrize("name", ["class_weights", "pos_weight"])
@pytest.mark.parametrize("value", [[1.0, -2.0], [1.0, NAN], "balanced", 2.0, [], {0: 1.0}])
def test_values_that_are_no_weights_are_refused_when_assigned(name, value):
    with pytest.raises(ValueError, match=name):
        PFBerxitConfig(**{name: value})


def test_weights_come_as_arrays_and_travel_with_the_config(tmp_path):
    config = PFBerxitConfig(class_weights=np.array([1, 2.5], dtype=np.float32))
    config.save_pretrained(tmp_path)
    assert PFBerxitConfig.from_pretrained(tmp_path).class_weights == [1.0, 2.5]


def focal(logits: Tensor, labels: Tensor) -> Tensor:
    likely = logits.softmax(-1).gather(1, labels[:, None])
    return -((1 - likely) ** 2 * likely.log()).mean()


@pytest.mark.parametrize("loss", [focal, torch.nn.CrossEntropyLoss(weight=torch.tensor([1.0, 2.0, 3.0]))])
def test_a_loss_of_one_s_own_is_every_exit_s(loss, tmp_path):
    model = tiny_model("bert", num_labels=3, exit_dropout=0.0)
    names, labels = set(model.state_dict()), some_labels(SINGLE_LABEL)
    model.exit_loss = loss
    for training in (False, True):
        output = model.train(training)(**BATCH, labels=labels)
        losses = [loss(logits, labels) for logits in output.exit_logits.unbind(1)]
        torch.testing.assert_close(output.loss, sum(i * each for i, each in enumerate(losses, 1)) / 21)
    output.loss.backward()
    assert all(exit.weight.grad.any() for exit in model.exits.classifiers)
    early = model.eval()(**BATCH, labels=labels, exit_policy={"criterion": "appointed", "appointed_layer": 2})
    torch.testing.assert_close(early.loss, loss(early.logits, labels))
    assert set(model.state_dict()) == names  # none of it is saved
    model.exit_loss = None
    assert not torch.isclose(model(**BATCH, labels=labels).loss, output.loss)


def test_distillation_and_lte_stand_on_a_loss_of_one_s_own():
    labels, losses = some_labels(SINGLE_LABEL), []
    for loss in (None, F.cross_entropy):
        model = tiny_model("bert", num_labels=3, distillation=0.5, use_lte=True)
        model.exit_loss = loss
        losses.append(model(**BATCH, labels=labels).loss)
    torch.testing.assert_close(*losses)


def test_labels_of_a_loss_of_one_s_own_are_its_own_affair():
    model, soft = tiny_model("bert", num_labels=3, problem_type=SINGLE_LABEL), torch.full((ROWS, 3), 1 / 3)
    model.exit_loss = F.cross_entropy
    assert model(**BATCH, labels=soft).loss.isfinite()
    model = tiny_model("bert", num_labels=3, problem_type=SINGLE_LABEL, use_lte=True)
    model.exit_loss = F.cross_entropy
    with pytest.raises(ValueError, match="^labels="):
        model(**BATCH, labels=soft)


def test_losses_of_one_s_own_that_are_none_are_refused_by_name():
    model = tiny_model("bert", num_labels=3)
    with pytest.raises(ValueError, match="^exit_loss='focal': must be a function"):
        model.exit_loss = "focal"
    model.exit_loss = torch.nn.CrossEntropyLoss(reduction="none")
    with pytest.raises(ValueError, match="^exit_loss=.*: must be .* a scalar tensor"):
        model(**BATCH, labels=some_labels(SINGLE_LABEL))
    model.exit_loss, model.config.label_smoothing = F.cross_entropy, 0.1
    with pytest.raises(ValueError, match=r"^label_smoothing=0\.1: must be left out: model\.exit_loss"):
        model(**BATCH, labels=some_labels(SINGLE_LABEL))


# ---- all exits ------------------------------------------------------------------------------------------------------


def test_deeper_exits_weigh_more():
    def weights(depths: list[int]) -> list[float]:
        return exit_weights("depth", depths, depths, None, None).tolist()

    assert weights([1, 2]) == pytest.approx([1 / 3, 2 / 3])
    assert weights([2, 5, 6]) == pytest.approx([2 / 13, 5 / 13, 6 / 13])


# ---- learning to exit -----------------------------------------------------------------------------------------------


def test_lte_loss_of_classes_by_hand():
    # exit 1 is right on row 1 and wrong on row 2, exit 2 the other way round: targets [[0, 1], [1, 0]]
    logits = torch.tensor([[[2.0, 1.0], [1.0, 2.0]], [[2.0, 1.0], [1.0, 2.0]]])
    lte = torch.tensor([[0.1, 0.6], [0.8, 0.5]])
    loss = lte_loss(lte, logits, torch.tensor([0, 1]), SINGLE_LABEL)
    assert loss.item() == pytest.approx((0.1**2 + 0.4**2 + 0.2**2 + 0.5**2) / 4)


def test_lte_loss_of_several_labels_by_hand():
    # one label of four is missed at exit 1, three at exit 2: targets 0.25 and 0.75
    logits = torch.tensor([[[1.0, -1.0, 1.0, -1.0], [-1.0, 1.0, 1.0, -1.0]]])
    loss = lte_loss(torch.tensor([[0.5, 0.5]]), logits, torch.tensor([[1.0, 0.0, 0.0, 0.0]]), MULTI_LABEL)
    assert loss.item() == pytest.approx((0.25**2 + 0.25**2) / 2)
    loss = lte_loss(torch.tensor([[0.25, 0.75]]), logits, torch.tensor([[1.0, 0.0, 0.0, 0.0]]), MULTI_LABEL)
    assert loss.item() == pytest.approx(0.0)


@pytest.mark.parametrize("labels", [torch.tensor([2.0]), torch.tensor([[2.0]])])
def test_lte_loss_of_values_by_hand(labels):
    logits = torch.tensor([[[2.0], [1.0], [4.0]]])  # off by 0, 1 and 2
    targets = [0.0, math.tanh(1), math.tanh(2)]
    loss = lte_loss(torch.tensor([[0.5, 0.5, 0.5]]), logits, labels, REGRESSION)
    assert loss.item() == pytest.approx(sum((0.5 - target) ** 2 for target in targets) / 3)


def test_lte_loss_leaves_out_rows_labelled_minus_100():
    logits, labels = some_logits(3), some_labels(SINGLE_LABEL)
    lte = torch.rand(ROWS, LAYERS, generator=torch.Generator().manual_seed(2))
    labels[[1, 3]] = -100
    kept = [0, 2, 4]
    torch.testing.assert_close(
        lte_loss(lte, logits, labels, SINGLE_LABEL), lte_loss(lte[kept], logits[kept], labels[kept], SINGLE_LABEL)
    )


@pytest.mark.parametrize("problem_type", PROBLEMS)
def test_lte_heads_do_not_steer_the_exits(problem_type):
    model = tiny_model("bert", use_lte=True, problem_type=problem_type, num_labels=OUTPUTS[problem_type])
    labels = some_labels(problem_type)
    with_lte = gradients(model, labels)
    rebuilt(model, use_lte=False)
    without = gradients(model, labels)
    lte = {name for name in with_lte if ".ltes." in name}
    assert lte and set(with_lte) - lte == set(without) - lte
    for name in set(without) - lte:
        torch.testing.assert_close(with_lte[name], without[name])
    assert all(with_lte[name].abs().sum() > 0 for name in lte)


def gradients(model: PFBerxitForSequenceClassification, labels: Tensor) -> dict[str, Tensor]:
    """Of every trained parameter, after one loss."""
    model.zero_grad()
    model(**BATCH, labels=labels).loss.backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


# ---- end to end -----------------------------------------------------------------------------------------------------


def weighted_by_hand(exit_logits: Tensor, depths: list[int], labels: Tensor, problem_type: str, **smoothing: float):
    losses = [torch_loss(exit_logits[:, i], labels, problem_type, **smoothing) for i in range(len(depths))]
    return sum(depth * loss for depth, loss in zip(depths, losses)) / sum(depths)


@pytest.mark.parametrize("exit_layers, depths", [(None, [1, 2, 3, 4, 5, 6]), ([2, 3], [2, 3, 6])])
@pytest.mark.parametrize("family", ["bert", "albert"])
@pytest.mark.parametrize("problem_type", PROBLEMS)
def test_the_loss_is_that_of_all_exits_weighted_by_depth(problem_type, family, exit_layers, depths):
    outputs = OUTPUTS[problem_type]
    model = tiny_model(family, problem_type=problem_type, num_labels=outputs, exit_layers=exit_layers)
    labels = some_labels(problem_type)
    output = model(**BATCH, labels=labels)
    assert output.exit_logits.shape == (ROWS, len(depths), outputs)
    torch.testing.assert_close(output.loss, weighted_by_hand(output.exit_logits, depths, labels, problem_type))
    assert not torch.isclose(output.loss, model(**BATCH, labels=some_labels(problem_type, seed=1)).loss)


@pytest.mark.parametrize("problem_type", PROBLEMS)
def test_every_exit_and_adapter_learns_from_the_loss(problem_type):
    model = tiny_model("bert", problem_type=problem_type, num_labels=OUTPUTS[problem_type]).train()
    learned = gradients(model, some_labels(problem_type))
    for number in range(LAYERS):
        assert learned[f"exits.classifiers.{number}.weight"].abs().sum() > 0
        assert any(grad.abs().sum() > 0 for name, grad in learned.items() if name.startswith(f"depths.{number}."))


def test_the_config_s_label_smoothing_reaches_every_exit():
    labels = some_labels(SINGLE_LABEL)
    model = tiny_model("bert", num_labels=3, label_smoothing=0.2)
    output = model(**BATCH, labels=labels)
    expected = weighted_by_hand(output.exit_logits, model.exit_depths, labels, SINGLE_LABEL, smoothing=0.2)
    torch.testing.assert_close(output.loss, expected)


@pytest.mark.parametrize("lte_shared", [True, False])
@pytest.mark.parametrize("problem_type", PROBLEMS)
def test_lte_heads_add_their_own_loss(problem_type, lte_shared):
    model = tiny_model(
        "bert", problem_type=problem_type, num_labels=OUTPUTS[problem_type], use_lte=True, lte_shared=lte_shared,
        exit_pooling="cls",
    )  # fmt: skip
    labels = some_labels(problem_type)
    output = model(**BATCH, labels=labels, output_hidden_states=True)
    heads = [model.exits.ltes[0 if lte_shared else number] for number in range(LAYERS)]
    read = [states[:, 0] for states in output.hidden_states[1:]]
    lte = torch.cat([head(first).sigmoid() for head, first in zip(heads, read)], dim=1)
    tasks = weighted_by_hand(output.exit_logits, model.exit_depths, labels, problem_type)
    torch.testing.assert_close(output.loss, tasks + lte_loss(lte, output.exit_logits, labels, problem_type))
    assert output.loss > tasks


@pytest.mark.parametrize(
    "problem_type, smoothing",
    [(SINGLE_LABEL, 0.0), (SINGLE_LABEL, 0.2), (MULTI_LABEL, 0.0), (MULTI_LABEL, 0.2), (REGRESSION, 0.0)],
)
def test_where_rows_left_early_the_loss_is_that_of_the_answers(problem_type, smoothing):
    knobs = {"num_labels": OUTPUTS[problem_type], "label_smoothing": smoothing, "use_lte": True}
    model = tiny_model("bert", problem_type=problem_type, **knobs)
    labels = some_labels(problem_type)
    output = model(**BATCH, labels=labels, exit_policy={"criterion": "patience", "patience": 1, "threshold": 0.1})
    assert output.exit_layer.min() < LAYERS and output.exit_logits is None
    torch.testing.assert_close(output.loss, torch_loss(output.logits, labels, problem_type, smoothing))
    assert not torch.isclose(output.loss, model(**BATCH, labels=labels).loss)


# ---- which problem it is --------------------------------------------------------------------------------------------

INFERRED = [
    (1, torch.tensor([0.5] * ROWS), REGRESSION),
    (1, torch.tensor([1] * ROWS), REGRESSION),
    (3, torch.tensor([2] * ROWS), SINGLE_LABEL),
    (3, torch.ones(ROWS, 3), MULTI_LABEL),
    (2, torch.ones(ROWS, 2, dtype=torch.float64), MULTI_LABEL),
]


@pytest.mark.parametrize("num_labels, labels, problem_type", INFERRED)
def test_labels_say_which_problem_it_is(num_labels, labels, problem_type):
    assert problem_type_of(PFBerxitConfig(num_labels=num_labels), labels) == problem_type
    model = tiny_model("bert", num_labels=num_labels)
    output = model(**BATCH, labels=labels)
    expected = weighted_by_hand(output.exit_logits, model.exit_depths, labels, problem_type)
    torch.testing.assert_close(output.loss, expected.float())
    model.train()(**BATCH, labels=labels)
    assert model.config.problem_type == problem_type  # what it was trained for is saved with it


def test_a_call_without_labels_leaves_the_problem_open():
    model = tiny_model("bert", num_labels=3)
    assert model(**BATCH).loss is None
    assert model.train()(**BATCH).loss is None
    assert model.config.problem_type is None


def test_the_config_s_problem_type_outranks_what_labels_look_like():
    model = tiny_model("bert", num_labels=3, problem_type=REGRESSION)
    labels = torch.eye(3)[[0, 1, 2, 0, 1]]
    output = model(**BATCH, labels=labels)
    expected = weighted_by_hand(output.exit_logits, model.exit_depths, labels, REGRESSION)
    torch.testing.assert_close(output.loss, expected)
    assert model.config.problem_type == REGRESSION


@pytest.mark.parametrize("training", [False, True])
def test_labels_that_were_refused_leave_the_problem_open(training):
    model = tiny_model("bert", num_labels=3).train(training)
    with pytest.raises(ValueError):
        model(**BATCH, labels=torch.tensor([0.0, 1.0, 2.0, 0.0, 1.0]))
    assert model(**BATCH, labels=torch.tensor([0, 1, 2, 0, 1])).loss.isfinite()


@pytest.mark.parametrize("dtype", [torch.int8, torch.int16, torch.int32, torch.uint8])
def test_integers_of_any_width_are_class_labels(dtype):
    model = tiny_model("bert", num_labels=3, use_lte=True, use_prototypes=True)
    labels = torch.tensor([0, 1, 2, 0, 1])
    expected = model(**BATCH, labels=labels).loss
    torch.testing.assert_close(model(**BATCH, labels=labels.to(dtype)).loss, expected)
    torch.testing.assert_close(model(**BATCH, labels=labels[:, None].to(dtype)).loss, expected)


def test_class_156_is_not_mistaken_for_a_missing_label():
    labels = torch.tensor([156, 0, 156, 199, 1])
    bytes_ = labels.to(torch.uint8)  # -100 is 156 as a byte
    logits, lte = some_logits(200), torch.full((ROWS, LAYERS), 0.3)
    torch.testing.assert_close(
        exit_losses(logits, bytes_, SINGLE_LABEL), exit_losses(logits, labels, SINGLE_LABEL), msg="exit_losses"
    )
    torch.testing.assert_close(
        lte_loss(lte, logits, bytes_, SINGLE_LABEL), lte_loss(lte, logits, labels, SINGLE_LABEL), msg="lte_loss"
    )


@pytest.mark.parametrize("dtype", [torch.float16, torch.float64, torch.int64])
def test_numbers_of_any_kind_are_values(dtype):
    model, labels = tiny_model("bert", num_labels=1), torch.tensor([0.0, 1.0, 2.0, 0.0, 1.0])
    expected = model(**BATCH, labels=labels).loss
    torch.testing.assert_close(model(**BATCH, labels=labels.to(dtype)).loss, expected)
    torch.testing.assert_close(model(**BATCH, labels=labels[:, None].to(dtype)).loss, expected)


# ---- labels that do not fit -----------------------------------------------------------------------------------------

BAD_LABELS = [
    (SINGLE_LABEL, torch.tensor([0, 1, 2, 3, 0]), "integers of shape (5,) in [0, 3), or -100"),
    (SINGLE_LABEL, torch.tensor([0, 1, 2, -1, 0]), "integers of shape (5,) in [0, 3), or -100"),
    (SINGLE_LABEL, torch.tensor([0.0, 1.0, 2.0, 0.0, 1.0]), "integers of shape (5,)"),
    (SINGLE_LABEL, torch.tensor([0, 1, 2, 0]), "integers of shape (5,)"),
    (SINGLE_LABEL, torch.tensor([[0, 1, 2, 0, 1]]), "integers of shape (5,)"),
    (SINGLE_LABEL, torch.ones(5, 3, dtype=torch.long), "integers of shape (5,)"),
    (SINGLE_LABEL, torch.tensor(1), "integers of shape (5,)"),
    (SINGLE_LABEL, torch.tensor([True, False, True, False, True]), "integers of shape (5,)"),
    (SINGLE_LABEL, torch.zeros(0, dtype=torch.long), "integers of shape (5,)"),
    (MULTI_LABEL, torch.ones(5, 2, dtype=torch.long), "floats of shape (5, 2) in [0, 1]"),
    (MULTI_LABEL, torch.ones(5, 3), "floats of shape (5, 2)"),
    (MULTI_LABEL, torch.ones(5), "floats of shape (5, 2)"),
    (MULTI_LABEL, torch.full((5, 2), 2.0), "floats of shape (5, 2) in [0, 1]"),
    (MULTI_LABEL, torch.full((5, 2), -100.0), "floats of shape (5, 2) in [0, 1]"),
    (MULTI_LABEL, torch.full((5, 2), NAN), "floats of shape (5, 2) in [0, 1]"),
    (REGRESSION, torch.tensor([0.0, 1.0, NAN, 0.0, 1.0]), "finite numbers of shape (5,)"),
    (REGRESSION, torch.tensor([0.0, 1.0, INF, 0.0, 1.0]), "finite numbers of shape (5,)"),
    (REGRESSION, torch.zeros(4), "finite numbers of shape (5,)"),
    (REGRESSION, torch.zeros(5, 2), "finite numbers of shape (5,)"),
]


def count_layers(model: PFBerxitForSequenceClassification) -> list[Any]:
    """A list that grows by one with every layer that runs."""
    ran = []
    for part in (model.backbone.encoder, model.depths):
        for module in part.modules():
            module.register_forward_pre_hook(lambda *_: ran.append(1))
    return ran


@pytest.mark.parametrize("problem_type, labels, allowed", BAD_LABELS)
def test_labels_that_do_not_fit_are_refused_before_any_layer_runs(problem_type, labels, allowed):
    model = tiny_model("bert", problem_type=problem_type, num_labels=OUTPUTS[problem_type])
    ran = count_layers(model)
    for early in (None, {"criterion": "appointed", "appointed_layer": 2}):
        with pytest.raises(ValueError) as error:
            model(**BATCH, labels=labels, exit_policy=early)
        message = str(error.value)
        assert "\n" not in message and message.startswith("labels=")
        assert str(labels.dtype) in message and str(tuple(labels.shape)) in message
        assert f"must be {allowed}" in message and problem_type in message
    assert not ran
    model(**BATCH, labels=some_labels(problem_type))
    assert ran


@pytest.mark.parametrize("criterion", [None, "entropy"])
def test_a_tuple_of_outputs_begins_with_the_loss_as_in_transformers(criterion):
    model, policy = tiny_model("bert", num_labels=3), {"criterion": criterion, "threshold": 9.0}
    call = {**BATCH, "labels": some_labels(SINGLE_LABEL), "exit_policy": policy}
    expected = model(**call)
    loss, logits, exit_layer = model(**call, return_dict=False)[:3]
    assert torch.equal(loss, expected.loss) and torch.equal(logits, expected.logits)
    assert torch.equal(exit_layer, expected.exit_layer) and torch.equal(expected[0], expected.loss)


@pytest.mark.parametrize("values", [NAN, INF])
def test_several_values_are_checked_like_one(values):
    labels = torch.zeros(ROWS, 2)
    check_labels(labels, 2, ROWS, REGRESSION)
    labels[2, 1] = values
    with pytest.raises(ValueError, match=r"must be finite numbers of shape \(5, 2\) for regression"):
        check_labels(labels, 2, ROWS, REGRESSION)


def test_labels_out_of_range_are_refused_with_their_range():
    with pytest.raises(ValueError, match="from 0 to 7"):
        check_labels(torch.tensor([0, 7, 1]), 3, 3, SINGLE_LABEL)
    with pytest.raises(ValueError, match=r"from -0\.5 to 1\.0"):
        check_labels(torch.tensor([[-0.5, 1.0]]), 2, 1, MULTI_LABEL)
    check_labels(torch.tensor([0, 2, -100]), 3, 3, SINGLE_LABEL)
    check_labels(torch.tensor([[0.5, 1.0]]), 2, 1, MULTI_LABEL)


def test_smoothing_a_value_is_refused_before_any_layer_runs():
    model = tiny_model("bert", num_labels=1, label_smoothing=0.1)
    ran = count_layers(model)
    with pytest.raises(ValueError, match="label_smoothing=0.1: must be 0 for regression"):
        model(**BATCH, labels=torch.zeros(5))
    assert not ran


def test_labels_in_a_list_are_refused_by_name():
    with pytest.raises(ValueError, match="labels='list': must be a tensor"):
        tiny_model("bert", num_labels=3)(**BATCH, labels=[0, 1, 2, 0, 1])
