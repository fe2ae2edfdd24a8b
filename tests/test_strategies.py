"""What a training step teaches and how far it reaches: every strategy against its formula, written out once more."""

import math

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from tiny import CHECKPOINTING, tiny_batch, tiny_config, tiny_model
from torch import Tensor
from torch.distributions import Bernoulli, kl_divergence
from torch.nn import functional as F
from torch.testing import assert_close
from train_script import NO_DROPOUT
from transformers import AutoModel

from modeling_pfberxit import PFBerxitConfig, PFBerxitForSequenceClassification
from modeling_pfberxit.model.blueprint import rebuilt
from modeling_pfberxit.model.evidence import MULTI_LABEL, REGRESSION, SINGLE_LABEL
from modeling_pfberxit.model.execution import Execution
from modeling_pfberxit.model.losses import distillation_losses, prototype_losses
from modeling_pfberxit.model.strategies import LearnedWeights, TrainingProgress, where_rows_leave
from modeling_pfberxit.training import fit_prototypes

ROWS, LAYERS, STEPS = 6, 4, 10
BATCH = tiny_batch(ROWS)
PROBLEMS = (SINGLE_LABEL, MULTI_LABEL, REGRESSION)
LABELS = {
    SINGLE_LABEL: torch.tensor([0, 1, 2, 0, 2, 1]),
    MULTI_LABEL: torch.tensor([[1, 0, 0], [0, 1, 1], [1, 1, 1], [0, 0, 0], [1, 0, 1], [0, 1, 0]]).float(),
    REGRESSION: torch.tensor([0.5, -1.0, 2.0, 0.0, 1.5, -0.5]),
}
OTHER_LABELS = {problem: labels.flip(0) for problem, labels in LABELS.items()}
OTHER_LABELS[REGRESSION] = LABELS[REGRESSION] + 1


def model_at(step: int | None = None, family: str = "bert", problem_type: str = SINGLE_LABEL, **knobs):
    """Four layers in training mode without dropout, at a step of a run of ten."""
    changes = {"backbone_changes": {**NO_DROPOUT, "num_hidden_layers": LAYERS}, "exit_dropout": 0.0}
    outputs = 1 if problem_type == REGRESSION else 3
    model = tiny_model(family, problem_type=problem_type, num_labels=outputs, **changes, **knobs).train()
    model.training_progress = None if step is None else TrainingProgress(step, STEPS)
    return model


def task_loss(logits: Tensor, labels: Tensor, problem_type: str) -> Tensor:
    """torch's own loss of one exit: logits (B, C) -> scalar."""
    if problem_type == SINGLE_LABEL:
        return F.cross_entropy(logits, labels)
    if problem_type == MULTI_LABEL:
        return F.binary_cross_entropy_with_logits(logits, labels)
    return F.mse_loss(logits[:, 0], labels)


def weighted(weights: dict[int, float], depths: list[int], losses) -> Tensor:
    """The sum of the losses, one for each exit in order, as layers weigh them; those not named do not count."""
    return sum(weights.get(depth, 0.0) * loss for depth, loss in zip(depths, losses))


def gradients(model: PFBerxitForSequenceClassification, loss: Tensor) -> dict[str, Tensor]:
    model.zero_grad()
    loss.backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


# ---- which exits learn, with which weights --------------------------------------------------------------------------

GROUPS = [[1, 2], [3], [2, 4]]
TAUGHT = {  # knobs, step (None: nobody counts), what the loss of each layer's exit weighs
    "depth": ({}, None, {1: 0.1, 2: 0.2, 3: 0.3, 4: 0.4}),
    "depth, two exits": ({"exit_layers": [2]}, None, {2: 1 / 3, 4: 2 / 3}),
    "uniform": ({"exit_weights": "uniform"}, None, {1: 1, 2: 1, 3: 1, 4: 1}),
    "stage 1": ({"training_strategy": "two_stage"}, None, {4: 1}),
    "stage 1, uniform": ({"training_strategy": "two_stage", "exit_weights": "uniform"}, None, {4: 1}),
    "stage 2": ({"training_strategy": "two_stage", "training_stage": 2}, None, {1: 1 / 6, 2: 2 / 6, 3: 3 / 6}),
    "stage 2, uniform": (
        {"training_strategy": "two_stage", "training_stage": 2, "exit_weights": "uniform"}, None, {1: 1, 2: 1, 3: 1},
    ),
    "stage 2, three exits": (
        {"training_strategy": "two_stage", "training_stage": 2, "exit_layers": [1, 3]}, None, {1: 1 / 4, 3: 3 / 4},
    ),
    "alternating, step 0": ({"training_strategy": "alternating"}, 0, {4: 1}),
    "alternating, step 1": ({"training_strategy": "alternating"}, 1, {1: 0.1, 2: 0.2, 3: 0.3, 4: 0.4}),
    "alternating, step 6": ({"training_strategy": "alternating", "exit_weights": "uniform"}, 6, {4: 1}),
    "alternating, step 7": (
        {"training_strategy": "alternating", "exit_weights": "uniform"}, 7, {1: 1, 2: 1, 3: 1, 4: 1},
    ),
    "groups, step 0": ({"exit_groups": GROUPS}, 0, {1: 1 / 3, 2: 2 / 3}),
    "groups, step 1": ({"exit_groups": GROUPS}, 1, {3: 1}),
    "groups, step 5": ({"exit_groups": GROUPS}, 5, {2: 1 / 3, 4: 2 / 3}),
    "groups outrank the strategy": (
        {"exit_groups": GROUPS, "training_strategy": "alternating"}, 3, {1: 1 / 3, 2: 2 / 3},
    ),
    "one group": ({"exit_groups": [[1, 3]], "exit_weights": "uniform"}, None, {1: 1, 3: 1}),
    # shares 1/4, 2/4, 3/4 of the layers: 0.01 + done * share, at most the share, the last exit 1
    "rising, first step": ({"exit_weights": "rising"}, 0, {1: 0.01, 2: 0.01, 3: 0.01, 4: 1}),
    "rising, half-way": ({"exit_weights": "rising"}, 5, {1: 0.135, 2: 0.26, 3: 0.385, 4: 1}),
    "rising, last step": ({"exit_weights": "rising"}, 9, {1: 0.235, 2: 0.46, 3: 0.685, 4: 1}),
    "rising, at the end": ({"exit_weights": "rising"}, 10, {1: 0.25, 2: 0.5, 3: 0.75, 4: 1}),
    "rising, two exits": ({"exit_weights": "rising", "exit_layers": [3]}, 5, {3: 0.385, 4: 1}),
}  # fmt: skip


@pytest.mark.parametrize("problem_type", PROBLEMS)
@pytest.mark.parametrize("knobs, step, weights", TAUGHT.values(), ids=TAUGHT)
def test_a_step_s_loss_is_that_of_the_exits_that_learn_as_they_weigh(knobs, step, weights, problem_type):
    model = model_at(step, problem_type=problem_type, **knobs)
    output = model(**BATCH, labels=LABELS[problem_type])
    losses = [task_loss(logits, LABELS[problem_type], problem_type) for logits in output.exit_logits.unbind(1)]
    assert torch.stack(losses).unique().numel() == len(model.exit_depths)
    assert_close(output.loss, weighted(weights, model.exit_depths, losses))


STRATEGIES = {name: (knobs, step) for name, (knobs, step, _) in TAUGHT.items()}


@pytest.mark.parametrize("knobs, step", STRATEGIES.values(), ids=STRATEGIES)
def test_every_exit_speaks_at_every_step_whatever_learns(knobs, step):
    model = model_at(step, **knobs)
    assert_close(model(**BATCH).exit_logits, model.eval()(**BATCH).exit_logits)


@pytest.mark.parametrize("train_backbone", [False, True], ids=["frozen", "trained"])
@pytest.mark.parametrize("knobs, step, weights", TAUGHT.values(), ids=TAUGHT)
def test_what_does_not_learn_gets_no_gradient_at_all(knobs, step, weights, train_backbone):
    """Not even zeros, by which an optimiser with momentum or weight decay would move it."""
    model = model_at(step, train_backbone=train_backbone, **knobs)
    found = gradients(model, model(**BATCH, labels=LABELS[SINGLE_LABEL]).loss)
    deepest = 0 if knobs.get("training_stage") == 2 else max(weights)
    expected = {f"exits.classifiers.{model.exit_depths.index(depth)}." for depth in weights}
    expected |= {f"depths.{depth}." for depth in range(deepest)}
    if train_backbone and deepest:
        expected |= {"backbone.embeddings.", *(f"backbone.encoder.layer.{depth}." for depth in range(deepest))}
    assert found.keys() == {name for name, _ in model.named_parameters() if name.startswith(tuple(expected))}
    assert [name for name, grad in found.items() if not grad.any() and "key.bias" not in name] == []


# ---- learned weights ------------------------------------------------------------------------------------------------


def test_learned_weights_by_hand():
    weights = LearnedWeights(4)
    inner = 1 / (1 + math.exp(-4))  # ELBERT's start, 0.982
    assert weights().tolist() == pytest.approx([inner, inner, inner, 4 - 3 * inner])
    weights.theta.data = torch.tensor([0.0, math.log(3), -math.log(3)])
    assert weights().tolist() == pytest.approx([0.5, 0.75, 0.25, 4 - 1.5])
    assert LearnedWeights(1)().tolist() == [1.0]


@pytest.mark.parametrize("problem_type", PROBLEMS)
@pytest.mark.parametrize("exit_layers", [None, [2]])
def test_learned_weights_weigh_the_losses_and_learn_from_them(problem_type, exit_layers):
    model, labels = (
        model_at(exit_weights="learned", problem_type=problem_type, exit_layers=exit_layers),
        LABELS[problem_type],
    )
    theta = torch.tensor([0.0, math.log(3), -math.log(3)] if exit_layers is None else [math.log(3)])
    inner = [0.5, 0.75, 0.25] if exit_layers is None else [0.75]
    model.exits.loss_weights.theta.data = theta
    output = model(**BATCH, labels=labels)
    losses = torch.stack([task_loss(logits, labels, problem_type) for logits in output.exit_logits.unbind(1)]).detach()
    share = torch.tensor(inner)
    assert_close(output.loss, (share * losses[:-1]).sum() + (len(losses) - share.sum()) * losses[-1])
    # d sigmoid / d theta = w (1 - w), and what one exit gains the last one loses
    found = gradients(model, output.loss)["exits.loss_weights.theta"]
    assert_close(found, share * (1 - share) * (losses[:-1] - losses[-1]))


def test_learned_weights_of_a_group_are_its_own():
    model = model_at(1, exit_weights="learned", exit_groups=[[3, 4], [1, 2]])
    model.exits.loss_weights.theta.data = torch.tensor([0.0, math.log(3), -math.log(3)])
    output = model(**BATCH, labels=LABELS[SINGLE_LABEL])
    losses = [F.cross_entropy(logits, LABELS[SINGLE_LABEL]) for logits in output.exit_logits.unbind(1)]
    assert_close(output.loss, 0.5 * losses[0] + 0.75 * losses[1])


def test_a_new_model_s_loss_weights_start_at_elbert_s_and_come_back_from_a_checkpoint(tmp_path, local_backbone):
    def new() -> PFBerxitForSequenceClassification:
        return PFBerxitForSequenceClassification.from_backbone(local_backbone, exit_weights="learned")

    model = new()
    assert model.exits.loss_weights.theta.tolist() == [4.0] * (len(model.exit_depths) - 1)
    model.exits.loss_weights.theta.data = theta = torch.linspace(-2, 3, len(model.exit_depths) - 1)
    model.save_pretrained(tmp_path)
    assert torch.equal(load_file(tmp_path / "model.safetensors")["exits.loss_weights.theta"], theta)
    reloaded = PFBerxitForSequenceClassification.from_pretrained(tmp_path)
    assert torch.equal(reloaded.exits.loss_weights.theta, theta)
    assert reloaded.exits.loss_weights.theta.requires_grad


def test_models_without_learned_weights_have_none_to_learn():
    assert model_at().exits.loss_weights is None
    assert not any("loss_weights" in name for name, _ in model_at(0, exit_weights="rising").named_parameters())


# ---- gradient equilibrium -------------------------------------------------------------------------------------------

EQUILIBRIUM = {  # knobs, step, the layers whose exits learn
    "every layer": ({}, None, [1, 2, 3, 4]),
    "weighted by depth": ({"exit_weights": "depth"}, None, [1, 2, 3, 4]),
    "two exits": ({"exit_layers": [2]}, None, [2, 4]),
    "three exits": ({"exit_layers": [1, 3]}, None, [1, 3, 4]),
    "one exit": ({"exit_layers": [4]}, None, [4]),
    "a group": ({"exit_groups": [[2, 4], [1, 3]]}, 0, [2, 4]),
    "a group below the top": ({"exit_groups": [[2, 4], [1, 3]]}, 1, [1, 3]),
    "alternating, step 0": ({"training_strategy": "alternating"}, 0, [4]),
    "alternating, step 1": ({"training_strategy": "alternating"}, 1, [1, 2, 3, 4]),
    "shared layers": ({"family": "albert"}, None, [1, 2, 3, 4]),
    "bypasses": ({"adapter_placement": "bypass"}, None, [1, 2, 3, 4]),
    "own poolers": ({"exit_pooler": "own"}, None, [1, 2, 3, 4]),
}


def gradients_at_depths(loss: Tensor, hidden_states: tuple[Tensor, ...]) -> list[Tensor]:
    """What reaches the embeddings and every layer's output; zeros where nothing does."""
    found = torch.autograd.grad(loss, hidden_states, retain_graph=True, allow_unused=True)
    return [torch.zeros_like(states) if grad is None else grad for grad, states in zip(found, hidden_states)]


@pytest.mark.parametrize("problem_type", PROBLEMS)
@pytest.mark.parametrize("knobs, step, learners", EQUILIBRIUM.values(), ids=EQUILIBRIUM)
def test_in_equilibrium_a_depth_receives_the_mean_of_the_gradients_of_the_exits_from_there_on(
    knobs, step, learners, problem_type
):
    knobs = {"exit_weights": "uniform", "train_backbone": True, **knobs}
    model, labels = model_at(step, problem_type=problem_type, **knobs), LABELS[problem_type]
    plain = model(**BATCH, labels=labels, output_hidden_states=True)
    weights = dict.fromkeys(learners, 1.0)
    if knobs["exit_weights"] == "depth":
        weights = {depth: depth / sum(learners) for depth in learners}
    alone = {}
    for depth in learners:
        logits = plain.exit_logits[:, model.exit_depths.index(depth)]
        alone[depth] = gradients_at_depths(
            weights[depth] * task_loss(logits, labels, problem_type), plain.hidden_states
        )
    model.config.gradient_equilibrium = True
    output = model(**BATCH, labels=labels, output_hidden_states=True)
    found = gradients_at_depths(output.loss, output.hidden_states)
    assert len(found) == LAYERS + 1
    for depth, gradient in enumerate(found):
        above = [alone[learner][depth] for learner in learners if learner >= depth]
        assert all(single.any() for single in above)
        expected = torch.stack(above).mean(0) if above else torch.zeros_like(gradient)
        assert_close(gradient, expected, atol=1e-5 * expected.abs().max().item(), rtol=1e-4)


@pytest.mark.parametrize("knobs, step, learners", EQUILIBRIUM.values(), ids=EQUILIBRIUM)
def test_without_equilibrium_a_depth_receives_their_sum(knobs, step, learners):
    knobs = {"exit_weights": "uniform", "train_backbone": True, **knobs}
    model, labels = model_at(step, **knobs), LABELS[SINGLE_LABEL]
    output = model(**BATCH, labels=labels, output_hidden_states=True)
    summed = gradients_at_depths(output.loss, output.hidden_states)
    model.config.gradient_equilibrium = True
    output = model(**BATCH, labels=labels, output_hidden_states=True)
    mean = gradients_at_depths(output.loss, output.hidden_states)
    for depth in range(LAYERS + 1):
        above = sum(learner >= depth for learner in learners)
        if knobs["exit_weights"] == "uniform" and above > 1:
            assert not torch.allclose(mean[depth], summed[depth], rtol=1e-2)
        if above == 1:
            assert_close(mean[depth], summed[depth])


def test_equilibrium_changes_gradients_and_nothing_else():
    model, labels = model_at(train_backbone=True), LABELS[SINGLE_LABEL]
    plain = model(**BATCH, labels=labels)
    before = gradients(model, plain.loss)
    model.config.gradient_equilibrium = True
    balanced = model(**BATCH, labels=labels)
    after = gradients(model, balanced.loss)
    assert torch.equal(balanced.exit_logits, plain.exit_logits) and torch.equal(balanced.loss, plain.loss)
    heads = {name for name in before if name.startswith("exits.")}
    assert len(heads) == 2 * LAYERS and all(torch.equal(after[name], before[name]) for name in heads)
    # Below the first exit, four gradients were summed; now their mean arrives.
    lowest = [name for name in before if name.startswith(("backbone.embeddings.", "backbone.encoder.layer.0."))]
    for name in lowest:
        assert_close(after[name], before[name] / 4, atol=1e-8, rtol=1e-4)


def test_equilibrium_is_training_s_alone():
    model, labels = model_at(train_backbone=True), LABELS[SINGLE_LABEL]
    model.eval()
    before = gradients(model, model(**BATCH, labels=labels).loss)
    model.config.gradient_equilibrium = True
    after = gradients(model, model(**BATCH, labels=labels).loss)
    assert all(torch.equal(after[name], before[name]) for name in before)


@pytest.mark.parametrize("use_reentrant", [False, True], ids=["not reentrant", "reentrant"])
@pytest.mark.parametrize(
    "knobs, step",
    [
        ({"gradient_equilibrium": True, "exit_weights": "uniform"}, None),
        ({"training_strategy": "two_stage", "training_stage": 2}, None),
        ({"exit_groups": [[1, 3], [2, 4]], "gradient_equilibrium": True}, 0),
        ({"distillation": 0.5}, None),
    ],
    ids=["equilibrium", "stage 2", "a group", "distillation"],
)
def test_recomputed_activations_teach_the_same(knobs, step, use_reentrant):
    model, labels = model_at(step, train_backbone=True, **knobs), LABELS[SINGLE_LABEL]
    stored = gradients(model, model(**BATCH, labels=labels).loss)
    getattr(model, f"{CHECKPOINTING}_enable")({"use_reentrant": use_reentrant})
    recomputed = gradients(model, model(**BATCH, labels=labels).loss)
    assert stored.keys() == recomputed.keys()
    for name in stored:
        assert_close(recomputed[name], stored[name], atol=1e-6, rtol=1e-4)


# ---- stage 2 --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("equilibrium", [False, True])
def test_in_stage_2_no_gradient_passes_an_exit(equilibrium):
    stage = {"training_strategy": "two_stage", "training_stage": 2, "gradient_equilibrium": equilibrium}
    model = model_at(train_backbone=True, **stage)
    output = model(**BATCH, labels=LABELS[SINGLE_LABEL], output_hidden_states=True)
    assert output.hidden_states[0].requires_grad
    assert torch.autograd.grad(output.loss, output.hidden_states, allow_unused=True) == (None,) * (LAYERS + 1)


# ---- learning to exit -----------------------------------------------------------------------------------------------

LTE_PHASES = {
    **{f"alternating, step {step}": ({"training_strategy": "alternating"}, step) for step in (0, 1)},
    **{f"stage {stage}": ({"training_strategy": "two_stage", "training_stage": stage}, None) for stage in (1, 2)},
    "a group": ({"exit_groups": [[1, 2], [3, 4]]}, 0),
    "joint": ({}, None),
}


@pytest.mark.parametrize("train_backbone", [False, True], ids=["frozen", "trained"])
@pytest.mark.parametrize("problem_type", PROBLEMS)
@pytest.mark.parametrize("knobs, step", LTE_PHASES.values(), ids=LTE_PHASES)
def test_lte_heads_learn_of_all_exits_in_every_phase_and_never_steer_the_rest(
    knobs, step, problem_type, train_backbone
):
    knobs = {**knobs, "train_backbone": train_backbone, "use_lte": True, "lte_shared": False}
    model, labels = model_at(step, problem_type=problem_type, **knobs), LABELS[problem_type]
    output = model(**BATCH, labels=labels)
    answers = output.exit_logits
    if problem_type == SINGLE_LABEL:
        wrong = (answers.argmax(-1) != labels[:, None]).float()
    elif problem_type == MULTI_LABEL:
        wrong = ((answers > 0) != (labels[:, None] == 1)).float().mean(-1)
    else:
        wrong = torch.tanh((answers[..., 0] - labels[:, None]).abs())
    extra = F.mse_loss(output.exit_lte, wrong.detach())
    expected = torch.autograd.grad(extra, [head.weight for head in model.exits.ltes], retain_graph=True)
    found = gradients(model, output.loss)
    for number, gradient in enumerate(expected):
        assert gradient.any()
        assert_close(found[f"exits.ltes.{number}.weight"], gradient)
    rebuilt(model, use_lte=False)
    without = model(**BATCH, labels=labels)
    assert_close(output.loss, without.loss + extra)
    rest = gradients(model, without.loss)
    assert found.keys() - rest.keys() == {
        f"exits.ltes.{n}.{part}" for n in range(LAYERS) for part in ("weight", "bias")
    }
    assert all(torch.equal(found[name], rest[name]) for name in rest)


# ---- self-distillation ----------------------------------------------------------------------------------------------


def distance(student: Tensor, teacher: Tensor, problem_type: str, divergence: str, temperature: float) -> Tensor:
    """Of one exit from the last, by torch's own divergences: logits (B, C) twice -> scalar."""
    if problem_type == REGRESSION:
        return F.mse_loss(student, teacher)
    pair = (teacher, student) if divergence == "rekl_div" else (student, teacher)
    if problem_type == MULTI_LABEL:
        first, second = (Bernoulli(logits=logits / temperature) for logits in pair)
        return temperature**2 * kl_divergence(first, second).mean()
    first, second = ((logits / temperature).log_softmax(-1) for logits in pair)
    return temperature**2 * F.kl_div(second, first, reduction="batchmean", log_target=True)


def test_distillation_by_hand():
    coin, sure = [0.0, 0.0], [math.log(9), 0.0]  # (0.5, 0.5) and (0.9, 0.1)
    logits, teacher = torch.tensor([[coin, sure]]), torch.tensor([sure])

    def found(problem_type: str = SINGLE_LABEL, logits: Tensor = logits, teacher: Tensor = teacher, **knobs):
        return distillation_losses(logits, teacher, problem_type, PFBerxitConfig(**knobs)).tolist()

    teacher_first = 0.9 * math.log(0.9 / 0.5) + 0.1 * math.log(0.1 / 0.5)
    student_first = 0.5 * math.log(0.5 / 0.9) + 0.5 * math.log(0.5 / 0.1)
    assert found() == pytest.approx([teacher_first, 0], abs=1e-6)  # RomeBERT's direction is the default
    assert found(distillation_divergence="kl_div") == pytest.approx([student_first, 0], abs=1e-6)
    # T = 2: ln 9 becomes ln 3, so the teacher says (0.75, 0.25); times T^2
    softened = 4 * (0.75 * math.log(0.75 / 0.5) + 0.25 * math.log(0.25 / 0.5))
    assert found(distillation_temperature=2.0) == pytest.approx([softened, 0], abs=1e-6)
    # two labels: one at 0.9 for the teacher and 0.5 for the student, one at 0.5 for both
    several = found(MULTI_LABEL, torch.tensor([[[0.0, 0.0]]]), torch.tensor([[math.log(9), 0.0]]))
    assert several == pytest.approx([teacher_first / 2], abs=1e-6)
    assert found(REGRESSION, torch.tensor([[[1.0], [2.0]]]), torch.tensor([[2.5]])) == pytest.approx([2.25, 0.25])


DISTILLED = {
    "RomeBERT": {"distillation": 0.9, "distillation_temperature": 3.0, "exit_weights": "uniform"},
    "FastBERT": {"distillation": 1.0, "distillation_divergence": "kl_div", "exit_weights": "uniform"},
    "by depth": {"distillation": 0.3, "distillation_temperature": 0.5},
}
PHASES = {
    "joint": ({}, None, [1, 2, 3, 4]),
    "stage 1": ({"training_strategy": "two_stage"}, None, [4]),
    "stage 2": ({"training_strategy": "two_stage", "training_stage": 2}, None, [1, 2, 3]),
    "a group without the teacher": ({"exit_groups": [[1, 3], [2, 4]]}, 0, [1, 3]),
    "a group with the teacher": ({"exit_groups": [[1, 3], [2, 4]]}, 1, [2, 4]),
    "some exits": ({"exit_layers": [1, 2]}, None, [1, 2, 4]),
}


@pytest.mark.parametrize("problem_type", PROBLEMS)
@pytest.mark.parametrize("distilled", DISTILLED.values(), ids=DISTILLED)
@pytest.mark.parametrize("phase, step, learners", PHASES.values(), ids=PHASES)
def test_inner_exits_learn_from_labels_and_teacher_and_the_teacher_from_labels(
    phase, step, learners, distilled, problem_type
):
    model, labels = model_at(step, problem_type=problem_type, **phase, **distilled), LABELS[problem_type]
    output = model(**BATCH, labels=labels)
    given, teacher = distilled["distillation"], output.exit_logits[:, -1]
    how = distilled.get("distillation_divergence", "rekl_div"), distilled.get("distillation_temperature", 1.0)
    losses = []
    for depth, logits in zip(model.exit_depths, output.exit_logits.unbind(1)):
        loss = task_loss(logits, labels, problem_type)
        if depth < LAYERS:
            loss = (1 - given) * loss + given * distance(logits, teacher, problem_type, *how)
        losses.append(loss)
    weights = dict.fromkeys(learners, 1.0)
    if "exit_weights" not in distilled:
        weights = {depth: depth / sum(learners) for depth in learners}
    assert_close(output.loss, weighted(weights, model.exit_depths, losses))


def of_the_teacher_alone(name: str) -> bool:
    """Whether only the last exit's loss can reach this parameter: its head, and the last layer with its adapter."""
    top = LAYERS - 1
    return name.startswith((f"exits.classifiers.{top}.", f"depths.{top}.", f"backbone.encoder.layer.{top}."))


@pytest.mark.parametrize("train_backbone", [False, True], ids=["frozen", "trained"])
@pytest.mark.parametrize("problem_type", PROBLEMS)
@pytest.mark.parametrize("divergence", ["rekl_div", "kl_div"])
def test_the_teacher_gets_no_gradient_from_its_students(divergence, problem_type, train_backbone):
    model, labels = model_at(problem_type=problem_type, train_backbone=train_backbone), LABELS[problem_type]
    model.config.distillation_divergence = divergence
    before = gradients(model, model(**BATCH, labels=labels).loss)
    model.config.distillation = 0.7
    after = gradients(model, model(**BATCH, labels=labels).loss)
    teacher = {name for name in before if of_the_teacher_alone(name)}
    assert len(teacher) > 2
    for name in teacher:
        assert_close(after[name], before[name], atol=1e-8, rtol=1e-5)
    for number in range(LAYERS - 1):
        name = f"exits.classifiers.{number}.weight"
        assert not torch.allclose(after[name], before[name], rtol=1e-2)


@pytest.mark.parametrize("problem_type", PROBLEMS)
def test_students_of_the_teacher_alone_do_not_look_at_the_labels(problem_type):
    model = model_at(problem_type=problem_type, distillation=1.0)
    of_labels = [gradients(model, model(**BATCH, labels=given[problem_type]).loss) for given in (LABELS, OTHER_LABELS)]
    for number in range(LAYERS - 1):
        name = f"exits.classifiers.{number}.weight"
        assert of_labels[0][name].any() and torch.equal(of_labels[0][name], of_labels[1][name])
    last = f"exits.classifiers.{LAYERS - 1}.weight"
    assert not torch.allclose(of_labels[0][last], of_labels[1][last])


@pytest.mark.parametrize("problem_type", PROBLEMS)
@pytest.mark.parametrize("divergence", ["rekl_div", "kl_div"])
def test_students_come_to_say_what_the_teacher_says(divergence, problem_type):
    stage = {"training_strategy": "two_stage", "training_stage": 2, "exit_weights": "uniform"}
    model = model_at(problem_type=problem_type, distillation=1.0, distillation_divergence=divergence, **stage)
    labels = LABELS[problem_type]
    optimizer = torch.optim.Adam(model.parameters(), lr=0.05)

    def apart() -> Tensor:
        logits = model(**BATCH).exit_logits.detach()
        students = logits[:, :-1].unbind(1)
        return torch.stack([distance(one, logits[:, -1], problem_type, divergence, 1.0) for one in students])

    teacher, before = model(**BATCH).logits.detach(), apart()
    for _ in range(40):
        optimizer.zero_grad()
        model(**BATCH, labels=labels).loss.backward()
        optimizer.step()
    assert (apart() < 0.3 * before).all()
    assert torch.equal(model(**BATCH).logits, teacher)


# ---- prototypes -----------------------------------------------------------------------------------------------------


def pooled_by_hand(model: PFBerxitForSequenceClassification, batch: dict[str, Tensor]) -> list[Tensor]:
    """The mean over the tokens of every exit's layer, (B, d) each."""
    mode = model.training
    with torch.no_grad():
        states = model.eval()(**batch, output_hidden_states=True, exit_policy={"criterion": None}).hidden_states
    model.train(mode)
    mask = batch["attention_mask"][..., None]
    return [(states[depth] * mask).sum(1) / mask.sum(1) for depth in model.exit_depths]


def prototype_loss(distances: Tensor, labels: Tensor, problem_type: str) -> Tensor:
    """torch's own cross-entropy over negative distances of one exit, (B, L, K) -> scalar."""
    if problem_type == SINGLE_LABEL:
        return F.cross_entropy(-distances[:, 0], labels)
    return F.cross_entropy(-distances.flatten(0, 1), 1 - labels.long().flatten())  # outcome 0: has the label


def test_prototype_losses_by_hand():
    # distances 1 and 1 + ln 3 from the two classes: the softmax says (0.75, 0.25)
    near, far = 1.0, 1.0 + math.log(3)
    distances = torch.tensor([[[[near, far]]], [[[near, far]]]])  # two rows, one exit
    losses = prototype_losses(distances, torch.tensor([0, 1]), SINGLE_LABEL)
    assert losses.tolist() == pytest.approx([-(math.log(0.75) + math.log(0.25)) / 2])
    losses = prototype_losses(distances, torch.tensor([0, -100]), SINGLE_LABEL)
    assert losses.tolist() == pytest.approx([-math.log(0.75)])
    assert prototype_losses(distances, torch.tensor([-100, -100]), SINGLE_LABEL).tolist() == [0.0]
    # two labels of one row: close to the prototype of those that have it, and to that of those that do not
    distances = torch.tensor([[[[near, far], [far, near]]]])
    losses = [
        prototype_losses(distances, torch.tensor([labels]), MULTI_LABEL).item()
        for labels in ([1.0, 0.0], [1.0, 1.0], [0.0, 1.0])
    ]
    assert losses == pytest.approx([-math.log(0.75), -(math.log(0.75) + math.log(0.25)) / 2, -math.log(0.25)])


@pytest.mark.parametrize("train_backbone", [False, True], ids=["frozen", "trained"])
@pytest.mark.parametrize("problem_type", [SINGLE_LABEL, MULTI_LABEL])
@pytest.mark.parametrize("prototype_weight", [0.1, 2.0])
def test_prototypes_add_their_loss_to_their_exit_s(prototype_weight, problem_type, train_backbone):
    knobs = {"use_prototypes": True, "prototype_weight": prototype_weight, "train_backbone": train_backbone}
    model, labels = model_at(problem_type=problem_type, **knobs), LABELS[problem_type]
    output = model(**BATCH, labels=labels)
    losses = []
    for number, pooled in enumerate(pooled_by_hand(model, BATCH)):
        points = model.exits.prototypes[number].points
        apart = (pooled[:, None, None] - points).square().sum(-1).sqrt()  # (B, L, K)
        assert_close(output.exit_distances[:, number], apart)
        task = task_loss(output.exit_logits[:, number], labels, problem_type)
        losses.append(task + prototype_weight * prototype_loss(apart, labels, problem_type))
    assert_close(output.loss, weighted({1: 0.1, 2: 0.2, 3: 0.3, 4: 0.4}, model.exit_depths, losses))


@pytest.mark.parametrize("problem_type", [SINGLE_LABEL, MULTI_LABEL])
def test_learning_prototypes_draw_rows_to_the_one_of_their_outcome(problem_type):
    model, labels = model_at(problem_type=problem_type, use_prototypes=True, prototype_weight=1.0), LABELS[problem_type]
    optimizer = torch.optim.Adam(model.parameters(), lr=0.02)
    losses = []
    for _ in range(60):
        optimizer.zero_grad()
        output = model(**BATCH, labels=labels)
        output.loss.backward()
        optimizer.step()
        losses.append(prototype_loss(output.exit_distances[:, -1], labels, problem_type).item())
    assert losses[-1] < 0.3 * losses[0]
    nearest = model.eval()(**BATCH).exit_distances[:, -1].argmin(-1)
    expected = labels[:, None] if problem_type == SINGLE_LABEL else 1 - labels.long()
    assert torch.equal(nearest, expected)


def test_prototypes_do_not_change_the_answers():
    model = model_at(use_prototypes=True)
    logits = model(**BATCH).exit_logits
    for prototypes in model.exits.prototypes:
        prototypes.points.data.zero_()
    assert torch.equal(model(**BATCH).exit_logits, logits)


ROWS_TO_FIT = {
    SINGLE_LABEL: torch.tensor([2, 0, 1, 1, 0, 2, 2, 0, -100, 1]),
    MULTI_LABEL: torch.tensor([[(row >> bit) & 1 for bit in range(3)] for row in range(10)]).float(),
}


def loader_of(batch: dict[str, Tensor], labels: Tensor, sizes: tuple[int, ...] = (3, 6, 1)) -> list[dict[str, Tensor]]:
    """Batches of several sizes."""
    parts = {name: values.split(sizes) for name, values in {**batch, "labels": labels}.items()}
    return [dict(zip(parts, values)) for values in zip(*parts.values())]


def means_by_hand(states: np.ndarray, labels: np.ndarray, problem_type: str) -> np.ndarray:
    """The mean of the rows of every outcome: (N, d) -> (L, K, d)."""
    if problem_type == SINGLE_LABEL:
        return np.stack([states[labels == number].mean(0) for number in range(3)])[None]
    return np.stack([[states[has == 1].mean(0), states[has == 0].mean(0)] for has in labels.T])


FITTED = {
    "new prototypes": {},
    "in place of learned ones": {"use_prototypes": True},
    "some exits": {"exit_layers": [1, 3]},
    "one head for all": {"exit_shared": True},
    "trained backbone": {"train_backbone": True},
}


@pytest.mark.parametrize("problem_type", [SINGLE_LABEL, MULTI_LABEL])
@pytest.mark.parametrize("knobs", FITTED.values(), ids=FITTED)
def test_fitted_prototypes_are_the_means_of_the_classes(knobs, problem_type):
    model, batch, labels = (
        model_at(problem_type=problem_type, **knobs),
        tiny_batch(10, seed=3),
        ROWS_TO_FIT[problem_type],
    )
    logits = model.eval()(**batch).exit_logits
    fit_prototypes(model.train(), loader_of(batch, labels))
    assert model.config.use_prototypes and len(model.exits.prototypes) == len(model.exit_depths)
    pooled = pooled_by_hand(model, batch)
    for number, prototypes in enumerate(model.exits.prototypes):
        expected = means_by_hand(pooled[number].numpy(), labels.numpy(), problem_type)
        np.testing.assert_allclose(prototypes.points.detach().numpy(), expected, atol=1e-5)
    assert torch.equal(model.eval()(**batch).exit_logits, logits)
    assert model(**batch).exit_distances.shape == (10, len(pooled), *expected.shape[:2])


@pytest.mark.parametrize("knobs", [{"exit_pooler": "own"}, {"adapter_placement": "bypass"}, {"exit_pooling": "cls"}])
def test_fitted_prototypes_are_means_of_what_the_heads_read(knobs):
    model, batch, labels = model_at(**knobs), tiny_batch(10, seed=3), ROWS_TO_FIT[SINGLE_LABEL]
    read = [[] for _ in range(LAYERS)]
    hooks = [
        head.register_forward_pre_hook(lambda _, inputs, seen=seen: seen.append(inputs[0].detach()))
        for head, seen in zip(model.exits.classifiers, read)
    ]
    model.eval()(**batch)
    for hook in hooks:
        hook.remove()
    fit_prototypes(model, loader_of(batch, labels))
    for prototypes, [states] in zip(model.exits.prototypes, read):
        expected = means_by_hand(states.numpy(), labels.numpy(), SINGLE_LABEL)
        np.testing.assert_allclose(prototypes.points.detach().numpy(), expected, atol=1e-5)


def test_rows_that_would_leave_early_are_fitted_at_every_exit():
    model, batch, labels = model_at(), tiny_batch(10, seed=3), ROWS_TO_FIT[SINGLE_LABEL]
    fit_prototypes(model, loader_of(batch, labels))
    expected = [prototypes.points.clone() for prototypes in model.exits.prototypes]
    model.config.exit_criterion, model.config.exit_appointed_layer = "appointed", 1
    assert (model.eval()(**batch).exit_layer == 1).all()
    fit_prototypes(model, loader_of(batch, labels))
    assert all(torch.equal(one.points, other) for one, other in zip(model.exits.prototypes, expected))


def test_fitted_prototypes_are_saved_and_loaded(tmp_path, local_backbone):
    model = PFBerxitForSequenceClassification.from_backbone(local_backbone, num_labels=3, problem_type=SINGLE_LABEL)
    batch = tiny_batch(10, seed=3)
    fit_prototypes(model, loader_of(batch, ROWS_TO_FIT[SINGLE_LABEL]))
    model.save_pretrained(tmp_path)
    reloaded = PFBerxitForSequenceClassification.from_pretrained(tmp_path)
    assert reloaded.config.use_prototypes
    assert torch.equal(reloaded(**batch).exit_distances, model(**batch).exit_distances)


@pytest.mark.parametrize(
    "problem_type, labels, message",
    [
        (REGRESSION, torch.zeros(10), "problem_type='regression': must be a problem with classes or labels"),
        (SINGLE_LABEL, torch.tensor([0, 1] * 5), "loader='no row of some class': must be rows of every class"),
        (SINGLE_LABEL, torch.tensor([0, 1, -100, -100, -100] * 2), "loader='no row of some class'"),
        (MULTI_LABEL, torch.tensor([[1.0, 0.0, 1.0], [0.0, 1.0, 1.0]] * 5), "with and without every label"),
    ],
)
def test_prototypes_that_cannot_be_fitted_are_refused_by_name(problem_type, labels, message):
    model = model_at(problem_type=problem_type)
    with pytest.raises(ValueError, match=message):
        fit_prototypes(model, loader_of(tiny_batch(10), labels))
    assert not model.config.use_prototypes and not len(model.exits.prototypes)


# ---- bypasses -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", ["bert", "albert", "distilbert"])
def test_bypasses_leave_the_encoder_s_path_bit_exact(tmp_path, family):
    torch.manual_seed(0)
    AutoModel.from_config(tiny_config(family)).save_pretrained(tmp_path)
    stock = AutoModel.from_pretrained(tmp_path).eval()(**BATCH, output_hidden_states=True).hidden_states
    exact = {}
    for placement in ("none", "bypass", "ffn"):
        model = PFBerxitForSequenceClassification.from_backbone(str(tmp_path), adapter_placement=placement)
        for name, parameter in model.named_parameters():
            if "adapter" in name:
                torch.nn.init.normal_(parameter, std=0.3, generator=torch.Generator().manual_seed(1))
        model.execution = Execution(fused=False)
        output = model(**BATCH, output_hidden_states=True)
        exact[placement] = [torch.equal(found, states) for found, states in zip(output.hidden_states, stock)]
        assert len(exact[placement]) == len(stock)
    assert all(exact["none"]) and all(exact["bypass"])
    assert exact["ffn"] == [True] + [False] * (len(stock) - 1)


def test_an_exit_reads_its_layer_and_its_own_bypass():
    model = model_at(adapter_placement="bypass").eval()
    output = model(**BATCH, output_hidden_states=True)
    mask = BATCH["attention_mask"][..., None]
    for number, adapter in enumerate(model.exits.bypass_adapters):
        states = output.hidden_states[number + 1]
        x = F.layer_norm(states, states.shape[-1:], adapter.norm.weight, adapter.norm.bias)
        x = adapter.sublearner.dense(adapter.down(x).relu())
        states = states + adapter.up(x)
        pooled = (states * mask).sum(1) / mask.sum(1)
        assert_close(output.exit_logits[:, number], model.exits.classifiers[number](pooled), atol=1e-5, rtol=1e-5)


def test_a_bypass_changes_its_own_exit_alone():
    model = model_at(adapter_placement="bypass").eval()
    before = model(**BATCH).exit_logits
    model.exits.bypass_adapters[1].up.weight.data += 0.5
    after = model(**BATCH).exit_logits
    changed = [not torch.equal(after[:, number], before[:, number]) for number in range(LAYERS)]
    assert changed == [False, True, False, False]


# ---- evaluation -----------------------------------------------------------------------------------------------------

EVALUATED = {  # knobs, what the loss of each layer's exit weighs: of those that ever learn, as they weigh in the end
    "depth": TAUGHT["depth"][::2],
    "depth, two exits": TAUGHT["depth, two exits"][::2],
    "uniform": TAUGHT["uniform"][::2],
    "stage 1": TAUGHT["stage 1"][::2],
    "stage 2": TAUGHT["stage 2"][::2],
    "stage 2, uniform": TAUGHT["stage 2, uniform"][::2],
    "alternating": ({"training_strategy": "alternating"}, {1: 0.1, 2: 0.2, 3: 0.3, 4: 0.4}),
    "groups": ({"exit_groups": GROUPS}, {1: 0.1, 2: 0.2, 3: 0.3, 4: 0.4}),
    "groups without layer 2": ({"exit_groups": [[1], [1, 4], [3]], "exit_weights": "uniform"}, {1: 1, 3: 1, 4: 1}),
    "rising": ({"exit_weights": "rising"}, {1: 0.25, 2: 0.5, 3: 0.75, 4: 1}),
    "rising, two exits": ({"exit_weights": "rising", "exit_layers": [3]}, {3: 0.75, 4: 1}),
    "equilibrium": ({"gradient_equilibrium": True, "exit_weights": "uniform"}, {1: 1, 2: 1, 3: 1, 4: 1}),
}


@pytest.mark.parametrize("problem_type", PROBLEMS)
@pytest.mark.parametrize("knobs, weights", EVALUATED.values(), ids=EVALUATED)
def test_evaluation_sums_the_exits_that_learn_as_they_weigh_in_the_end(knobs, weights, problem_type):
    model, labels = model_at(problem_type=problem_type, **knobs).eval(), LABELS[problem_type]
    output = model(**BATCH, labels=labels)  # nobody counts steps
    losses = [task_loss(logits, labels, problem_type) for logits in output.exit_logits.unbind(1)]
    assert_close(output.loss, weighted(weights, model.exit_depths, losses))


MONITORED = {  # strategies whose every step teaches the whole: knobs, the step whose weights are the last ones
    "depth": ({}, None),
    "uniform": ({"exit_weights": "uniform"}, None),
    "learned": ({"exit_weights": "learned"}, None),
    "rising": ({"exit_weights": "rising"}, STEPS),
    "leaving": ({"exit_weights": "leaving"}, STEPS),
    "stage 1": ({"training_strategy": "two_stage"}, None),
    "stage 2": ({"training_strategy": "two_stage", "training_stage": 2, "use_lte": True}, None),
    "alternating": ({"training_strategy": "alternating"}, 1),
    "one group": ({"exit_groups": [[1, 3]]}, None),
    "distillation": ({"distillation": 0.5, "exit_weights": "uniform"}, None),
    "distillation in stage 2": ({"distillation": 0.5, "training_strategy": "two_stage", "training_stage": 2}, None),
    "prototypes": ({"use_prototypes": True}, None),
    "weights": ({"class_weights": [1.0, 2.0, 3.0], "label_smoothing": 0.1}, None),
}


@pytest.mark.parametrize("knobs, step", MONITORED.values(), ids=MONITORED)
def test_what_is_monitored_is_what_is_trained(knobs, step):
    model, labels = model_at(step, **knobs), LABELS[SINGLE_LABEL]
    if model.exits.loss_weights is not None:
        torch.nn.init.normal_(model.exits.loss_weights.theta)
    trained = model(**BATCH, labels=labels).loss
    model.training_progress = None
    assert_close(model.eval()(**BATCH, labels=labels).loss, trained)


@pytest.mark.parametrize("knobs, step", STRATEGIES.values(), ids=STRATEGIES)
def test_where_a_run_stands_does_not_change_evaluation(knobs, step):
    model, labels = model_at(0, **knobs).eval(), LABELS[SINGLE_LABEL]
    losses = []
    for progress in (None, TrainingProgress(0, STEPS), TrainingProgress(5, STEPS)):
        model.training_progress = progress
        losses.append(model(**BATCH, labels=labels).loss)
    assert torch.equal(losses[0], losses[1]) and torch.equal(losses[0], losses[2])


# ---- rows weigh where they would leave -------------------------------------------------------------------------------


def by_hand(signals: list[float], taus: list[float], sharpness: float) -> list[float]:
    """What a row weighs at each exit: E softmax(-s |e - m|), m the first inner exit below tau, mean over tau."""
    found = [0.0] * len(signals)
    for tau in taus:
        leaves = next((e for e, signal in enumerate(signals[:-1]) if signal < tau), len(signals) - 1)
        closeness = [math.exp(-sharpness * abs(e - leaves)) for e in range(len(signals))]
        for e, weight in enumerate(closeness):
            found[e] += len(signals) * weight / sum(closeness) / len(taus)
    return found


@pytest.mark.parametrize("sharpness", [0.0, 1.0, 10.0])
def test_rows_weigh_by_hand_where_they_would_leave(sharpness):
    rows = [[0.95, 0.5, 0.1], [0.15, 0.9, 0.9], [0.95, 0.55, 0.0], [1.0, 1.0, 0.0], [0.0, 0.3, 0.9]]
    taus = [0.1, 0.3, 0.5, 0.7, 0.9]  # evenly between 0 and 1, the range of the two inner exits
    weights = where_rows_leave(torch.tensor(rows), sharpness)
    assert_close(weights, torch.tensor([by_hand(row, taus, sharpness) for row in rows]))
    assert_close(weights.mean(1), torch.ones(5))
    assert_close(where_rows_leave(torch.tensor([[0.3], [0.4]]), sharpness), torch.ones(2, 1))


@pytest.mark.parametrize("problem_type", [SINGLE_LABEL, MULTI_LABEL])
@pytest.mark.parametrize("step, sharpness", [(0, 0.0), (5, 5.0), (STEPS, 10.0)])
def test_a_step_s_loss_is_that_of_its_rows_as_they_weigh(step, sharpness, problem_type):
    labels = LABELS[problem_type]
    model = model_at(step, problem_type=problem_type, exit_weights="leaving")
    output = model(**BATCH, labels=labels)
    logits = output.exit_logits.double()
    chances = logits.softmax(-1) if problem_type == SINGLE_LABEL else logits.sigmoid()
    if problem_type == MULTI_LABEL:
        chances = torch.stack([chances, 1 - chances], -1)
    signals = -(chances * chances.log()).sum(-1) / math.log(chances.shape[-1])
    signals = signals if problem_type == SINGLE_LABEL else signals.mean(-1)
    low, high = signals[:, :-1].min().item(), signals[:, :-1].max().item()
    taus = [low + (high - low) * (number + 0.5) / 5 for number in range(5)]
    expected = [
        weight * task_loss(logits[row, number][None], labels[row][None], problem_type).item() / len(labels)
        for row, own in enumerate(signals.tolist())
        for number, weight in enumerate(by_hand(own, taus, sharpness))
    ]
    assert output.loss.item() == pytest.approx(sum(expected), rel=1e-5)


@pytest.mark.parametrize("why", ["regression", "own loss"])
def test_rows_cannot_weigh_where_they_leave_without_classes_or_under_one_s_own_loss(why):
    problem_type = REGRESSION if why == "regression" else SINGLE_LABEL
    model = model_at(0, problem_type=problem_type, exit_weights="leaving")
    if why == "own loss":
        model.exit_loss = torch.nn.functional.cross_entropy
    with pytest.raises(ValueError, match=r"^exit_weights='leaving': must be another one"):
        model(**BATCH, labels=LABELS[problem_type])


# ---- who counts the steps -------------------------------------------------------------------------------------------

COUNTED = {
    "alternating": {"training_strategy": "alternating"},
    "groups": {"exit_groups": GROUPS},
    "rising": {"exit_weights": "rising"},
    "leaving": {"exit_weights": "leaving"},
    "rising in stage 2": {"exit_weights": "rising", "training_strategy": "two_stage", "training_stage": 2},
}
UNCOUNTED = {name: knobs for name, (knobs, step) in STRATEGIES.items() if step is None} | {
    "learned": {"exit_weights": "learned"},
    "equilibrium": {"gradient_equilibrium": True},
    "distillation": {"distillation": 0.5},
}


@pytest.mark.parametrize("knobs", COUNTED.values(), ids=COUNTED)
def test_a_strategy_that_follows_the_steps_asks_for_the_callback_before_any_layer_runs(knobs):
    model, ran = model_at(**knobs), []
    model.backbone.embeddings.register_forward_pre_hook(lambda *_: ran.append(1))
    with pytest.raises(ValueError, match=r"^callbacks=.*StrategyCallback\(\)") as error:
        model(**BATCH, labels=LABELS[SINGLE_LABEL])
    message = str(error.value)
    assert "\n" not in message and not ran
    assert all(f"{name!r}: {value!r}" in message for name, value in knobs.items() if name != "training_stage")
    model.training_progress = TrainingProgress(0, STEPS)
    assert model(**BATCH, labels=LABELS[SINGLE_LABEL]).loss.isfinite() and ran


@pytest.mark.parametrize("knobs", UNCOUNTED.values(), ids=UNCOUNTED)
def test_a_strategy_that_does_not_follow_the_steps_needs_nobody_to_count_them(knobs):
    model, labels = model_at(**knobs), LABELS[SINGLE_LABEL]
    losses = []
    for progress in (None, TrainingProgress(0, STEPS), TrainingProgress(7, STEPS)):
        model.training_progress = progress
        losses.append(model(**BATCH, labels=labels).loss)
    assert torch.equal(losses[0], losses[1]) and torch.equal(losses[0], losses[2])


# ---- what is refused ------------------------------------------------------------------------------------------------

NAN = float("nan")
REFUSED = [
    *(("distillation", value) for value in (1.5, -0.1, NAN, "half", True, None)),
    *(("distillation_temperature", value) for value in (0, 0.0, -1.0, NAN, float("inf"))),
    *(("distillation_divergence", value) for value in ("cosine", None, "")),
    *(("training_strategy", value) for value in ("jointly", None, "two-stage", 2)),
    *(("training_stage", value) for value in (0, 3, 1.0, True, None)),
    *(("exit_weights", value) for value in ("linear", None, [1, 2])),
    *(("exit_groups", value) for value in ([], [[]], [[2, 1]], [[1, 1]], [[0]], [1, 2], "12", [[1.5]], {1: [2]})),
    *(("gradient_equilibrium", value) for value in (1, "yes", None)),
    *(("use_prototypes", value) for value in (1, None)),
    *(("prototype_weight", value) for value in (-0.1, NAN, float("inf"), None)),
    *(("use_lte", value) for value in (1, None)),
    *(("label_smoothing", value) for value in (-0.1, 1.1)),
    *(("system", value) for value in ("", 3)),
]


@pytest.mark.parametrize("field, value", REFUSED, ids=[f"{field}={value!r}" for field, value in REFUSED])
def test_values_that_can_never_be_right_are_refused_by_name_when_assigned(field, value):
    config = PFBerxitConfig()
    before = getattr(config, field)
    for assign in (lambda: setattr(config, field, value), lambda: PFBerxitConfig(**{field: value})):
        with pytest.raises(ValueError, match=rf"^{field}(\[\d+\])*=.*: must be ") as error:
            assign()
        assert "\n" not in str(error.value)
    assert getattr(config, field) == before


ACCEPTED = [
    ("distillation", 0), ("distillation", 1), ("distillation_temperature", 1e-3), ("training_stage", np.int64(2)),
    ("exit_groups", ((1, 2), (3,))), ("exit_groups", None), ("distillation_divergence", "js_div"),
    ("prototype_weight", 0),
]  # fmt: skip


@pytest.mark.parametrize("field, value", ACCEPTED, ids=[f"{field}={value!r}" for field, value in ACCEPTED])
def test_values_at_the_edge_are_accepted_and_survive_json(field, value, tmp_path):
    PFBerxitConfig(**{field: value}).save_pretrained(tmp_path)
    found = getattr(PFBerxitConfig.from_pretrained(tmp_path), field)
    assert found == ([list(group) for group in value] if isinstance(value, tuple) else value)


@pytest.mark.parametrize(
    "groups, exit_layers, unknown, depths",
    [([[1, 2], [3, 5]], None, [5], [1, 2, 3, 4]), ([[1, 2], [3, 4]], [2, 3], [1], [2, 3, 4]), ([[7]], None, [7], None)],
)
def test_groups_of_layers_without_an_exit_are_refused_by_name_before_any_layer_runs(
    groups, exit_layers, unknown, depths
):
    model, ran = model_at(0, exit_groups=groups, exit_layers=exit_layers), []
    model.backbone.embeddings.register_forward_pre_hook(lambda *_: ran.append(1))
    with pytest.raises(ValueError) as error:
        model(**BATCH, labels=LABELS[SINGLE_LABEL])
    assert str(error.value) == f"exit_groups={unknown}: must be layers that have an exit: {depths or [1, 2, 3, 4]}."
    assert not ran


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize(
    "made, num_labels, labels, message",
    [
        (REGRESSION, 1, REGRESSION, r"^use_prototypes=True: must be False for regression"),
        (None, 1, REGRESSION, r"^use_prototypes=True: must be False for regression"),
        (None, 3, MULTI_LABEL, r"^problem_type='multi_label_classification': must be set before the model is made"),
    ],
    ids=["regression", "inferred regression", "inferred multi-label"],
)
def test_prototypes_of_a_problem_they_do_not_fit_are_refused_before_any_layer_runs(
    made, num_labels, labels, message, training
):
    model, ran = tiny_model(use_prototypes=True, num_labels=num_labels, problem_type=made).train(training), []
    model.backbone.embeddings.register_forward_pre_hook(lambda *_: ran.append(1))
    with pytest.raises(ValueError, match=message):
        model(**BATCH, labels=LABELS[labels])
    assert not ran and model.config.problem_type == made


def test_prototypes_of_an_inferred_single_label_problem_fit():
    model = tiny_model(use_prototypes=True, num_labels=3).train()
    output = model(**BATCH, labels=LABELS[SINGLE_LABEL])
    assert output.exit_distances.shape[2:] == (1, 3) and output.loss.isfinite()
