"""Every strategy and every published system under the stock `Trainer`: what moves at which step, and what comes of it.

As a script, under `torchrun`: `python test_systems_training.py settings.json` trains the runs of `PROCESSES`.
"""

import json
import os
import sys
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny import enliven, save_backbone
from torch.nn import functional as F
from torch.testing import assert_close
from train_script import CLASSES, NO_DROPOUT, PLAIN_SGD, in_two_processes, new_model, new_trainer, tiny_data, weights
from transformers import TrainerCallback

from modeling_pfberxit import PFBerxitForSequenceClassification
from modeling_pfberxit.model.blueprint import rebuilt
from modeling_pfberxit.model.evidence import MULTI_LABEL, REGRESSION, SINGLE_LABEL
from modeling_pfberxit.model.strategies import TrainingProgress, needs_progress
from modeling_pfberxit.model.systems import SYSTEMS
from modeling_pfberxit.training import StrategyCallback, set_loss_weight_rate, train

LAYERS = 4
EXITS = {1, 2, 3, 4}


@pytest.fixture(scope="module")
def encoders(tmp_path_factory) -> dict[str, str]:
    """Folders with a four-layer encoder: with dropout, and without ("plain")."""
    folder = tmp_path_factory.mktemp("encoders")
    return {
        "bert": save_backbone(folder / "bert", num_hidden_layers=LAYERS),
        "plain": save_backbone(folder / "plain", num_hidden_layers=LAYERS, **NO_DROPOUT),
    }


def lively_model(backbone: str, **knobs) -> PFBerxitForSequenceClassification:
    """A model none of whose gradients vanish at the start, as those behind an adapter that is still zero do."""
    model = new_model(backbone, **knobs)
    enliven(model)
    return model


def counted_trainer(model, folder, *more: TrainerCallback, data=None, **arguments):
    """A stock `Trainer` that counts steps for the model, and weighs down what learns."""
    return new_trainer(model, folder, data, callbacks=[StrategyCallback(), *more], weight_decay=0.1, **arguments)


def moved(before: dict[str, torch.Tensor], after: dict[str, torch.Tensor]) -> set[str]:
    """What is no longer equal bit by bit."""
    assert before.keys() == after.keys()
    return {name for name in before if not torch.equal(before[name], after[name])}


class Steps(TrainerCallback):
    """What every optimiser step moved."""

    def __init__(self):
        self.moved: list[set[str]] = []

    def on_train_begin(self, args, state, control, model=None, **kwargs):
        self.before = weights(model)

    def on_step_end(self, args, state, control, model=None, **kwargs):
        after = weights(model)
        self.moved.append(moved(self.before, after))
        self.before = after


# ---- which parameters move ------------------------------------------------------------------------------------------


def part_of(name: str, depths: list[int]) -> str:
    """What a parameter belongs to, in the words of `expected_parts`."""
    where, _, rest = name.partition(".")
    number = next((int(piece) for piece in rest.split(".") if piece.isdigit()), -1)
    if where == "depths":
        return f"adapter {number + 1}"
    if where == "backbone":
        return f"layer {number + 1}" if rest.startswith("encoder.layer.") else rest.partition(".")[0]
    kind = rest.partition(".")[0]
    return kind if kind in ("ltes", "loss_weights") else f"exit {depths[number]}"


def moved_parts(model: PFBerxitForSequenceClassification, names: set[str]) -> set[str]:
    """The parts of which parameters moved; every parameter of a part moves, or none does."""
    parts: dict[str, set[bool]] = {}
    for name, _ in model.named_parameters():
        if "key.bias" not in name:  # a bias on all keys alike cancels in the softmax
            parts.setdefault(part_of(name, model.exit_depths), set()).add(name in names)
    assert all(len(all_or_none) == 1 for all_or_none in parts.values()), parts
    return {part for part, all_or_none in parts.items() if True in all_or_none}


def expected_parts(reach: int, exits: set[int], knobs: dict) -> set[str]:
    """The parts that learn when gradients reach from layer `reach` down, and the heads of `exits` learn."""
    parts = {f"exit {depth}" for depth in exits}
    if knobs.get("use_lte"):
        parts.add("ltes")
    if knobs.get("exit_weights") == "learned":
        parts.add("loss_weights")
    if reach and knobs.get("adapter_placement", "ffn") == "ffn":
        parts |= {f"adapter {depth}" for depth in range(1, reach + 1)}
    if reach and knobs.get("train_backbone"):
        parts |= {"embeddings", *(f"layer {depth}" for depth in range(1, reach + 1))}
    return parts


GROUPS = [[1, 2], [3], [2, 4]]
PHASES = {  # knobs, and for every step of a cycle how deep gradients start and which layers' exits learn
    "joint": ({}, [(4, EXITS)]),
    "uniform": ({"exit_weights": "uniform"}, [(4, EXITS)]),
    "stage 1": ({"training_strategy": "two_stage"}, [(4, {4})]),
    "stage 2": ({"training_strategy": "two_stage", "training_stage": 2}, [(0, {1, 2, 3})]),
    "stage 2, two exits": (
        {"training_strategy": "two_stage", "training_stage": 2, "exit_layers": [2]}, [(0, {2})],
    ),
    "alternating": ({"training_strategy": "alternating"}, [(4, {4}), (4, EXITS)]),
    "alternating, two exits": ({"training_strategy": "alternating", "exit_layers": [1]}, [(4, {4}), (4, {1, 4})]),
    "groups": ({"exit_groups": GROUPS}, [(2, {1, 2}), (3, {3}), (4, {2, 4})]),
    "learned": ({"exit_weights": "learned"}, [(4, EXITS)]),
    "rising": ({"exit_weights": "rising"}, [(4, EXITS)]),
    "distilled": ({"distillation": 0.9, "distillation_temperature": 3.0}, [(4, EXITS)]),
    "equilibrium": ({"gradient_equilibrium": True, "exit_weights": "uniform"}, [(4, EXITS)]),
}  # fmt: skip
HEADS = {
    "adapters": {},
    "all heads": {"adapter_placement": "bypass", "exit_pooler": "own", "use_lte": True, "use_prototypes": True},
}


@pytest.mark.parametrize(
    "heads, train_backbone",
    [(HEADS["adapters"], False), (HEADS["adapters"], True), (HEADS["all heads"], False)],
    ids=["frozen", "trained", "all heads"],
)
@pytest.mark.parametrize("strategy, cycle", PHASES.values(), ids=PHASES)
def test_every_step_moves_what_its_phase_teaches_and_nothing_else(
    encoders, tmp_path, strategy, cycle, heads, train_backbone
):
    knobs = {"problem_type": SINGLE_LABEL, **strategy, **heads, "train_backbone": train_backbone}
    model, steps = lively_model(encoders["bert"], **knobs), Steps()
    count = max(2, len(cycle) + 1)  # a cycle and the next one's start, when the optimiser has momentum
    counted_trainer(model, tmp_path, steps, max_steps=count).train()
    found = [moved_parts(model, names) for names in steps.moved]
    assert found == [expected_parts(*cycle[step % len(cycle)], knobs) for step in range(count)]


SHARED = {
    "one head": ({"exit_shared": True}, {"exits.classifiers.0.weight", "exits.classifiers.0.bias"}),
    "own copy of the pooler": (
        {"exit_pooler": "backbone", "train_pooler": True}, {"exits.poolers.0.weight", "exits.poolers.0.bias"},
    ),
    "encoder's pooler": (
        {"exit_pooler": "backbone", "train_backbone": True},
        {"backbone.pooler.dense.weight", "backbone.pooler.dense.bias"},
    ),
}  # fmt: skip


@pytest.mark.parametrize("knobs, shared", SHARED.values(), ids=SHARED)
def test_what_all_exits_share_moves_at_every_step_of_alternating_training(encoders, tmp_path, knobs, shared):
    model, steps = lively_model(encoders["bert"], training_strategy="alternating", **knobs), Steps()
    counted_trainer(model, tmp_path, steps, max_steps=4).train()
    assert all(shared <= names for names in steps.moved)


# ---- two stages -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("train_backbone", [False, True], ids=["frozen", "trained"])
@pytest.mark.parametrize("heads", HEADS.values(), ids=HEADS)
def test_two_stages_are_two_runs_first_of_the_last_exit_then_of_the_others(encoders, tmp_path, heads, train_backbone):
    knobs = {**heads, "train_backbone": train_backbone, "training_strategy": "two_stage"}
    model = lively_model(encoders["bert"], problem_type=SINGLE_LABEL, **knobs)
    ran, logits, batch = [], [], inputs_of(tiny_data())

    def new():
        steps = Steps()
        ran.append((steps, weights(model), model.config.training_stage))
        logits.append(model.eval()(**batch).logits)
        return counted_trainer(model, tmp_path, steps, max_steps=3)

    trainers = train(model, new)
    [(first, start, one), (second, middle, two)] = ran
    assert (one, two) == (1, 2) and len(trainers) == 2
    assert trainers[0].optimizer is not trainers[1].optimizer
    assert [trainer.state.global_step for trainer in trainers] == [3, 3]
    assert moved_parts(model, moved(start, middle)) == expected_parts(4, {4}, knobs)
    assert moved_parts(model, moved(middle, weights(model))) == expected_parts(0, {1, 2, 3}, knobs)
    assert len(first.moved) == len(second.moved) == 3
    # The full model's answers are what the first stage made them.
    assert torch.equal(model.eval()(**batch).logits, logits[1]) and not torch.equal(*logits)


def test_training_twice_begins_with_stage_1_again(encoders, tmp_path):
    model, stages = new_model(encoders["bert"], training_strategy="two_stage"), []
    for _ in range(2):
        train(model, lambda: stages.append(model.config.training_stage) or new_trainer(model, tmp_path, max_steps=1))
    assert stages == [1, 2, 1, 2]


@pytest.mark.parametrize("strategy", ["joint", "alternating"])
def test_other_strategies_are_one_run(encoders, tmp_path, strategy):
    model = new_model(encoders["bert"], training_strategy=strategy)
    [trainer] = train(model, lambda: counted_trainer(model, tmp_path, max_steps=2))
    assert trainer.state.global_step == 2 and model.config.training_stage == 1


STAGE_TWO = {"training_strategy": "two_stage", "training_stage": 2}


@pytest.mark.parametrize("knobs", [knobs for knobs, _ in SHARED.values()], ids=SHARED)
@pytest.mark.parametrize("stage", [1, 2])
def test_two_stages_are_refused_where_exits_share_heads(encoders, tmp_path, knobs, stage):
    model = lively_model(encoders["bert"], training_strategy="two_stage", training_stage=stage, **knobs)
    with pytest.raises(ValueError, match="(exit_shared=True|exit_pooler='backbone'): must be .* with two_stage"):
        new_trainer(model, tmp_path, max_steps=2).train()


def test_two_stages_are_refused_where_there_is_one_exit(encoders, tmp_path):
    model = new_model(encoders["bert"], training_strategy="two_stage", exit_layers=[4])
    with pytest.raises(ValueError, match="training_strategy='two_stage': must be joint: this model has one exit"):
        new_trainer(model, tmp_path, max_steps=2).train()


def test_alternating_training_of_one_exit_has_nothing_to_alternate(encoders, tmp_path):
    model = new_model(encoders["bert"], training_strategy="alternating", exit_layers=[4])
    assert not needs_progress(model.config, model.exit_depths)


@pytest.mark.parametrize(
    ("strategy", "checkpointing", "told", "refused"),
    [
        ("alternating", True, None, True), ("alternating", True, True, False), ("alternating", False, None, False),
        ("alternating", False, False, True), ("joint", True, None, False),
    ],
)  # fmt: skip
def test_several_processes_are_told_of_exits_that_sit_out(encoders, strategy, checkpointing, told, refused):
    model = new_model(encoders["bert"], training_strategy=strategy)
    arguments = SimpleNamespace(world_size=2, gradient_checkpointing=checkpointing, ddp_find_unused_parameters=told)
    context = (
        pytest.raises(ValueError, match="ddp_find_unused_parameters=.*: must be True") if refused else nullcontext()
    )
    with context:
        StrategyCallback().on_train_begin(arguments, None, None, model=model)


# ---- learned loss weights -------------------------------------------------------------------------------------------


class Losses(TrainerCallback):
    """What every forward pass of a model in training saw: where the run stood, and the loss of each exit."""

    def __init__(self, model):
        self.progress: list[TrainingProgress | None] = []
        self.losses: list[torch.Tensor] = []
        self.total: list[float] = []
        model.register_forward_hook(self.see, with_kwargs=True)

    def see(self, model, args, kwargs, output):
        if model.training:
            self.progress.append(model.training_progress)
            exits = output.exit_logits.detach().unbind(1)
            self.losses.append(torch.stack([F.cross_entropy(logits, kwargs["labels"]) for logits in exits]))
            self.total.append(output.loss.item())


@pytest.mark.parametrize("given", [None, 0.3], ids=["ELBERT's rate", "another rate"])
def test_learned_loss_weights_have_their_own_learning_rate(encoders, tmp_path, given):
    model = lively_model(encoders["plain"], exit_weights="learned", exit_dropout=0.0)
    theta = torch.tensor([0.0, 1.0, -1.0])
    model.exits.loss_weights.theta.data = theta.clone()
    seen = Losses(model)
    trainer = new_trainer(model, tmp_path, max_steps=1, weight_decay=0.5, **PLAIN_SGD)
    set_loss_weight_rate(trainer, *([] if given is None else [given]))
    trainer.train()
    # d loss / d theta_i = w_i (1 - w_i) (l_i - l_last), one plain step down without decay
    share = theta.sigmoid()
    slope = share * (1 - share) * (seen.losses[0][:-1] - seen.losses[0][-1])
    assert_close(model.exits.loss_weights.theta.data, theta - (given or 1e-2) * slope)
    assert slope.abs().min() > 1e-3


def test_without_their_own_rate_they_learn_at_everyone_s(encoders, tmp_path):
    model = lively_model(encoders["plain"], exit_weights="learned", exit_dropout=0.0)
    theta = torch.tensor([0.0, 1.0, -1.0])
    model.exits.loss_weights.theta.data = theta.clone()
    seen = Losses(model)
    new_trainer(model, tmp_path, max_steps=1, **PLAIN_SGD).train()
    share = theta.sigmoid()
    slope = share * (1 - share) * (seen.losses[0][:-1] - seen.losses[0][-1])
    assert_close(model.exits.loss_weights.theta.data, theta - PLAIN_SGD["learning_rate"] * slope)


def test_every_parameter_is_optimised_once_with_its_rate(encoders, tmp_path):
    model = new_model(encoders["bert"], exit_weights="learned", train_backbone=True)
    trainer = new_trainer(model, tmp_path, max_steps=3, weight_decay=0.1)
    set_loss_weight_rate(trainer)
    trainer.train()
    rates: dict[int, list] = {}
    for group in trainer.optimizer.param_groups:
        for parameter in group["params"]:
            rates.setdefault(id(parameter), []).append((group["initial_lr"], group["weight_decay"]))
    theta = rates.pop(id(model.exits.loss_weights.theta))
    assert theta == [(1e-2, 0.0)]
    others = [p for name, p in model.named_parameters() if "loss_weights" not in name]
    assert rates.keys() == {id(parameter) for parameter in others}
    assert {tuple(rate) for rate in rates.values()} == {((1e-2, 0.1),), ((1e-2, 0.0),)}


def test_a_model_without_learned_weights_keeps_its_optimiser(encoders, tmp_path):
    model = new_model(encoders["bert"])
    trainer = new_trainer(model, tmp_path, max_steps=1)
    set_loss_weight_rate(trainer)
    assert trainer.optimizer is None
    trainer.train()


def test_loss_weights_are_in_trainer_s_checkpoints(encoders, tmp_path):
    model = new_model(encoders["bert"], exit_weights="learned")
    trainer = new_trainer(model, tmp_path, max_steps=2, save_strategy="steps", save_steps=2)
    set_loss_weight_rate(trainer)
    trainer.train()
    theta = model.exits.loss_weights.theta
    assert (theta != 4.0).all()
    reloaded = PFBerxitForSequenceClassification.from_pretrained(tmp_path / "checkpoint-2")
    assert torch.equal(reloaded.exits.loss_weights.theta, theta)


# ---- whose steps count ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rows, size, accumulated, micro_batches", [(16, 4, 2, [2, 2, 2, 2]), (16, 4, 3, [3, 1, 3, 1])])
def test_the_micro_batches_of_a_step_share_its_phase(encoders, tmp_path, rows, size, accumulated, micro_batches):
    model, steps = lively_model(encoders["bert"], training_strategy="alternating"), Steps()
    seen = Losses(model)
    sizes = {"per_device_train_batch_size": size, "gradient_accumulation_steps": accumulated}
    counted_trainer(model, tmp_path, steps, data=tiny_data(rows), max_steps=4, **sizes).train()
    expected = [TrainingProgress(step, 4) for step, count in enumerate(micro_batches) for _ in range(count)]
    assert seen.progress == expected
    for progress, losses, total in zip(seen.progress, seen.losses, seen.total):
        depth_weighted = sum(depth * loss for depth, loss in enumerate(losses.tolist(), start=1)) / 10
        assert total == pytest.approx(depth_weighted if progress.step % 2 else losses[-1].item(), rel=1e-5)
    found = [{part for part in moved_parts(model, names) if "exit" in part} for names in steps.moved]
    assert found == [{"exit 4"}, {"exit 1", "exit 2", "exit 3", "exit 4"}] * 2


ACCUMULATED = {
    "alternating": {"training_strategy": "alternating", "use_lte": True},
    "groups": {"exit_groups": GROUPS, "train_backbone": True},
    "rising": {"exit_weights": "rising"},
    "learned": {"exit_weights": "learned", "gradient_equilibrium": True, "train_backbone": True},
    "distilled": {"distillation": 0.7, "distillation_temperature": 2.0},
}


@pytest.mark.parametrize("knobs", ACCUMULATED.values(), ids=ACCUMULATED)
def test_accumulated_gradients_make_the_steps_of_large_batches(encoders, tmp_path, knobs):
    ends = []
    for size, accumulated in ((8, 1), (4, 2), (4, 1)):
        model = lively_model(encoders["plain"], exit_dropout=0.0, **knobs)
        sizes = {"per_device_train_batch_size": size, "gradient_accumulation_steps": accumulated}
        arguments = {**PLAIN_SGD, **sizes, "learning_rate": 0.05, "max_steps": 4}
        new_trainer(model, tmp_path, tiny_data(32), callbacks=[StrategyCallback()], **arguments).train()
        ends.append(weights(model))
    large, parts, small = ends
    for name in large:
        assert_close(parts[name], large[name], atol=1e-5, rtol=1e-4)
    assert max((small[name] - large[name]).abs().max() for name in large) > 1e-3


def test_the_callback_counts_the_run_and_forgets_it_at_the_end(encoders, tmp_path):
    model = new_model(encoders["bert"], exit_weights="rising")
    seen = Losses(model)
    for steps in (3, 2):
        counted_trainer(model, tmp_path, max_steps=steps).train()
        assert model.training_progress is None
    assert seen.progress == [TrainingProgress(step, 3) for step in range(3)] + [
        TrainingProgress(step, 2) for step in range(2)
    ]


def test_weights_rise_with_the_steps_of_the_run(encoders, tmp_path):
    model = new_model(encoders["bert"], exit_weights="rising")
    seen = Losses(model)
    counted_trainer(model, tmp_path, max_steps=4).train()
    for step, (losses, total) in enumerate(zip(seen.losses, seen.total)):
        rising = [min(share, 0.01 + step / 4 * share) for share in (0.25, 0.5, 0.75)]
        expected = sum(weight * loss for weight, loss in zip([*rising, 1.0], losses.tolist()))
        assert total == pytest.approx(expected, rel=1e-5)


def test_evaluation_in_the_course_of_a_run_needs_no_count(encoders, tmp_path):
    model = new_model(encoders["bert"], training_strategy="alternating")
    arguments = {"eval_strategy": "steps", "eval_steps": 1, "max_steps": 3, "evaluation": tiny_data(8, seed=1)}
    trainer = new_trainer(model, tmp_path, callbacks=[StrategyCallback()], **arguments)
    trainer.train()
    measured = [entry["eval_loss"] for entry in trainer.state.log_history if "eval_loss" in entry]
    assert len(measured) == 3
    batch = {name: torch.tensor(values) for name, values in tiny_data(8, seed=1)[:].items()}
    logits = model.eval()(**batch).exit_logits.unbind(1)
    losses = [F.cross_entropy(one, batch["labels"]).item() for one in logits]
    expected = sum(depth * loss for depth, loss in enumerate(losses, start=1)) / 10
    assert measured[-1] == pytest.approx(expected, abs=1e-4)


COUNTED = {
    "alternating": {"training_strategy": "alternating"},
    "groups": {"exit_groups": GROUPS},
    "rising": {"exit_weights": "rising"},
}


@pytest.mark.parametrize("knobs", COUNTED.values(), ids=COUNTED)
def test_a_run_that_needs_the_callback_and_has_none_stops_at_its_first_step(encoders, tmp_path, knobs):
    model = new_model(encoders["bert"], **knobs)
    before, trainer = weights(model), new_trainer(model, tmp_path)
    with pytest.raises(
        ValueError, match=r"^callbacks=.* callbacks=\[modeling_pfberxit\.training\.StrategyCallback\(\)\]"
    ):
        trainer.train()
    assert trainer.state.global_step == 0 and not moved(before, weights(model))
    counted_trainer(model, tmp_path, max_steps=1).train()
    assert moved(before, weights(model))


UNCOUNTED = {
    **{name: knobs for name, (knobs, cycle) in PHASES.items() if len(cycle) == 1 and name != "rising"},
    "one group": {"exit_groups": [[1, 4]]},
}


@pytest.mark.parametrize("knobs", UNCOUNTED.values(), ids=UNCOUNTED)
def test_a_run_that_does_not_need_the_callback_learns_the_same_with_and_without(encoders, tmp_path, knobs):
    ends = []
    for callbacks in (None, [StrategyCallback()]):
        model = new_model(encoders["bert"], **knobs)
        before = weights(model)
        new_trainer(model, tmp_path, callbacks=callbacks, max_steps=3).train()
        ends.append(weights(model))
    assert moved(before, ends[0]) and not moved(*ends)


# ---- going on after a cut -------------------------------------------------------------------------------------------

RUN = {"max_steps": 6, "save_strategy": "steps", "save_steps": 3, "per_device_train_batch_size": 4}
RESUMED = {
    "alternating": {"training_strategy": "alternating", "use_lte": True, "train_backbone": True},
    "groups": {"exit_groups": [[1, 2], [4]], "adapter_dropout": 0.2},
    "rising": {"exit_weights": "rising"},
    "learned": {"exit_weights": "learned"},
    "stage 2": {**STAGE_TWO, "distillation": 1.0},
}


def savable_trainer(model, folder, *more: TrainerCallback, **changes):
    """A `Trainer` with everything a strategy may need, that keeps a checkpoint of the middle of the run."""
    trainer = new_trainer(model, folder, callbacks=[StrategyCallback(), *more], **{**RUN, **changes})
    set_loss_weight_rate(trainer)
    return trainer


@pytest.mark.parametrize("loaded", [False, True], ids=["a new model", "a loaded checkpoint"])
@pytest.mark.parametrize("knobs", RESUMED.values(), ids=RESUMED)
def test_a_resumed_run_goes_on_in_the_right_phase_and_ends_with_the_same_weights(encoders, tmp_path, knobs, loaded):
    model = new_model(encoders["bert"], **knobs)
    savable_trainer(model, tmp_path).train()
    uninterrupted, middle = weights(model), tmp_path / "checkpoint-3"
    if loaded:
        model = PFBerxitForSequenceClassification.from_pretrained(middle)
    else:
        model = new_model(encoders["bert"], seed=7, **knobs)
    assert moved(uninterrupted, weights(model))
    seen, trainer = Losses(model), savable_trainer(model, tmp_path)
    trainer.train(resume_from_checkpoint=str(middle))
    assert trainer.state.global_step == 6
    assert seen.progress == [TrainingProgress(step, 6) for step in (3, 4, 5)]
    assert not moved(uninterrupted, weights(model))


class Restarted(StrategyCallback):
    """A count that begins anew at the cut."""

    def on_step_begin(self, args, state, control, model=None, **kwargs):
        model.training_progress = TrainingProgress(state.global_step - 3, state.max_steps)


@pytest.mark.parametrize("name", ["alternating", "groups", "rising"])
def test_a_count_that_began_anew_would_end_elsewhere(encoders, tmp_path, name):
    knobs = RESUMED[name]
    model = new_model(encoders["bert"], **knobs)
    savable_trainer(model, tmp_path).train()
    uninterrupted = weights(model)
    model = new_model(encoders["bert"], **knobs)
    trainer = savable_trainer(model, tmp_path, Restarted())
    trainer.train(resume_from_checkpoint=str(tmp_path / "checkpoint-3"))
    assert moved(uninterrupted, weights(model))


# ---- two processes --------------------------------------------------------------------------------------------------

# Adam with a large epsilon is a smooth function of the gradients, and remembers them: a head that does not learn at a
# step would drift if its gradient were zero instead of missing.
MOMENTUM = {"learning_rate": 0.05, "adam_epsilon": 0.1, "max_grad_norm": 0.0, "train_sampling_strategy": "sequential"}
PROCESSES = {
    "alternating": {"training_strategy": "alternating", "use_lte": True, "train_backbone": True},
    "frozen": {"training_strategy": "alternating", "exit_pooler": "own", "adapter_placement": "bypass"},
    "groups": {"exit_groups": GROUPS},
    "learned": {"exit_weights": "learned", "gradient_equilibrium": True, "train_backbone": True},
    "stage 2": {**STAGE_TWO, "distillation": 0.5},
}


def run_all(settings: dict) -> None:
    """Train the runs; each process leaves its weights, and what every step moved, in the output folder."""
    rank, output = os.environ.get("RANK", "0"), Path(settings["output"])
    output.mkdir(exist_ok=True)
    for name, knobs in PROCESSES.items():
        model, steps = lively_model(settings["backbone"], exit_dropout=0.0, **knobs), Steps()
        arguments = {**MOMENTUM, "max_steps": 5, "per_device_train_batch_size": settings["batch"]}
        trainer = new_trainer(model, output / name, callbacks=[StrategyCallback(), steps], **arguments)
        set_loss_weight_rate(trainer)
        trainer.train()
        save_file(weights(model), output / f"{name}-{rank}.safetensors")
        found = [sorted(moved_parts(model, names)) for names in steps.moved]
        (output / f"{name}-{rank}.json").write_text(json.dumps(found))


@pytest.fixture(scope="module")
def folders(encoders, tmp_path_factory):
    """What one process left, and what two did that saw half of the rows each."""
    folder = tmp_path_factory.mktemp("processes")
    run_all({"backbone": encoders["plain"], "output": str(folder / "one"), "batch": 8})
    settings = {"backbone": encoders["plain"], "output": str(folder / "two"), "batch": 4}
    (folder / "settings.json").write_text(json.dumps(settings))
    in_two_processes(Path(__file__), folder / "settings.json")
    return folder


@pytest.mark.parametrize("run", PROCESSES)
def test_two_processes_end_with_the_weights_of_one(folders, run):
    one, *two = (
        load_file(folders / name)
        for name in (f"one/{run}-0.safetensors", *(f"two/{run}-{r}.safetensors" for r in (0, 1)))
    )
    assert one.keys() == two[0].keys() == two[1].keys()
    for name in one:
        assert torch.equal(two[0][name], two[1][name])
        assert_close(two[0][name], one[name], atol=2e-5, rtol=0)


@pytest.mark.parametrize("run", PROCESSES)
def test_two_processes_are_in_the_phase_of_one_at_every_step(folders, run):
    one, *two = (
        json.loads((folders / name).read_text())
        for name in (f"one/{run}-0.json", *(f"two/{run}-{r}.json" for r in (0, 1)))
    )
    assert one == two[0] == two[1] and len(one) == 5
    if run in ("alternating", "frozen"):
        heads = [{part for part in step if part.startswith("exit")} for step in one]
        assert heads == [{"exit 4"} if number % 2 == 0 else {f"exit {depth}" for depth in EXITS} for number in range(5)]


# ---- published systems ----------------------------------------------------------------------------------------------


def inputs_of(data) -> dict[str, torch.Tensor]:
    return {name: torch.tensor(data[:][name]) for name in ("input_ids", "attention_mask")}


def exit_losses(model: PFBerxitForSequenceClassification, data, problem_type: str) -> torch.Tensor:
    """torch's own loss of every exit over a data set, at full depth."""
    with torch.no_grad():
        exits = model.eval()(**inputs_of(data), exit_policy={"criterion": None}).exit_logits.unbind(1)
    labels = torch.tensor(data[:]["labels"])
    if problem_type == SINGLE_LABEL:
        return torch.stack([F.cross_entropy(logits, labels) for logits in exits])
    if problem_type == MULTI_LABEL:
        return torch.stack([F.binary_cross_entropy_with_logits(logits, labels) for logits in exits])
    return torch.stack([F.mse_loss(logits[:, 0], labels) for logits in exits])


def system_model(backbone: str, system: str, problem_type: str, **knobs) -> PFBerxitForSequenceClassification:
    torch.manual_seed(0)
    outputs = 1 if problem_type == REGRESSION else CLASSES
    named = {"system": system, "num_labels": outputs, "problem_type": problem_type, **knobs}
    return PFBerxitForSequenceClassification.from_backbone(backbone, **named)


# Of labels and values by default those systems that differ in what they learn, not in when rows leave.
QUICK = ("pf-berxit", "berxit", "elbert", "de3-bert", "hashee", "late-prompt-tuning", "fastbert")
LEARNED = [
    pytest.param(name, kind, marks=[] if kind == SINGLE_LABEL or name in QUICK else pytest.mark.slow)
    for name in SYSTEMS
    for kind in (SINGLE_LABEL, MULTI_LABEL, REGRESSION)
    if (name, kind) != ("de3-bert", REGRESSION)
]


@pytest.mark.parametrize("system, problem_type", LEARNED)
def test_every_exit_of_every_system_learns(encoders, tmp_path, system, problem_type):
    model, data = system_model(encoders["plain"], system, problem_type, exit_dropout=0.0), tiny_data(16, problem_type)
    before = exit_losses(model, data, problem_type)
    rate = 4e-3 if model.config.train_backbone else 1e-2

    def new():
        arguments = {"max_steps": 16, "per_device_train_batch_size": 16, "learning_rate": rate, "logging_steps": 100}
        trainer = new_trainer(model, tmp_path, data, callbacks=[StrategyCallback()], **arguments)
        set_loss_weight_rate(trainer)
        return trainer

    train(model, new)
    after = exit_losses(model, data, problem_type)
    assert len(after) == len(model.exit_depths)
    assert (after < 0.97 * before).all() and after[-1] < 0.88 * before[-1]


def test_de3_bert_of_values_is_refused_by_name(encoders, tmp_path):
    model = system_model(encoders["bert"], "de3-bert", REGRESSION)
    with pytest.raises(ValueError, match=r"^use_prototypes=True: must be False for regression"):
        new_trainer(model, tmp_path, tiny_data(16, REGRESSION)).train()


MOVED_BY_SYSTEMS = {  # the parts that every step of a cycle moves, of a system whose exits are its own
    "pf-berxit": [(4, EXITS)],
    "badge": [(4, EXITS)],
    "deebert": [(4, {4})],
    "elasticbert": [(4, EXITS)],
    "fastbert": [(4, {4})],
}


@pytest.mark.parametrize("system", MOVED_BY_SYSTEMS)
@pytest.mark.parametrize("train_backbone", [False, True], ids=["frozen", "trained"])
def test_a_system_moves_what_it_says_on_a_frozen_encoder_and_on_a_trained_one(
    encoders, tmp_path, system, train_backbone
):
    model, steps = system_model(encoders["bert"], system, SINGLE_LABEL, train_backbone=train_backbone), Steps()
    enliven(model)
    counted_trainer(model, tmp_path, steps, max_steps=2).train()
    knobs = {
        name: getattr(model.config, name) for name in ("adapter_placement", "train_backbone", "use_lte", "exit_weights")
    }
    assert [moved_parts(model, names) for names in steps.moved] == [
        expected_parts(*MOVED_BY_SYSTEMS[system][0], knobs)
    ] * 2


@pytest.mark.parametrize("train_backbone", [False, True], ids=["frozen", "trained"])
def test_berxit_alternates_and_its_lte_head_learns_at_every_step_without_steering(encoders, tmp_path, train_backbone):
    ends = []
    for heads_learn in (True, False):
        model, steps = system_model(encoders["bert"], "berxit", SINGLE_LABEL, train_backbone=train_backbone), Steps()
        assert len(model.exits.ltes) == 1
        rebuilt(model, use_lte=heads_learn)
        # Clipping by the norm of all gradients would let the heads steer the others' length.
        counted_trainer(model, tmp_path, steps, max_steps=5, max_grad_norm=0.0).train()
        ends.append(weights(model))
    lte = {"exits.ltes.0.weight", "exits.ltes.0.bias"}
    assert moved(*ends) == lte
    model, steps = system_model(encoders["bert"], "berxit", SINGLE_LABEL, train_backbone=train_backbone), Steps()
    counted_trainer(model, tmp_path, steps, max_steps=5).train()
    inner = {f"exits.classifiers.{number}.{part}" for number in range(LAYERS - 1) for part in ("weight", "bias")}
    last = {f"exits.classifiers.{LAYERS - 1}.{part}" for part in ("weight", "bias")}
    for step, names in enumerate(steps.moved):
        assert lte | last <= names
        assert names & inner == (inner if step % 2 else set())
        assert any(name.startswith("backbone.encoder.") for name in names) == train_backbone


def test_badge_learns_without_moving_the_encoder_s_states(encoders, tmp_path):
    model, batch = system_model(encoders["bert"], "badge", SINGLE_LABEL), inputs_of(tiny_data())
    before = model(**batch, output_hidden_states=True, exit_policy={"criterion": None})
    counted_trainer(model, tmp_path, max_steps=3).train()
    after = model.eval()(**batch, output_hidden_states=True, exit_policy={"criterion": None})
    assert all(torch.equal(one, other) for one, other in zip(before.hidden_states, after.hidden_states))
    assert not any(torch.equal(after.exit_logits[:, n], before.exit_logits[:, n]) for n in range(LAYERS))


def test_fastbert_s_students_learn_from_the_teacher_without_labels_of_their_own(encoders, tmp_path):
    ends = []
    for rotated in (0, 1):
        model = system_model(encoders["bert"], "fastbert", SINGLE_LABEL, training_stage=2)
        data = tiny_data(16)
        labels = (torch.tensor(data["labels"]) + rotated) % CLASSES
        data = data.remove_columns("labels").add_column("labels", labels.tolist())
        before = weights(model)
        new_trainer(model, tmp_path, data, max_steps=3).train()
        assert moved_parts(model, moved(before, weights(model))) == {"exit 1", "exit 2", "exit 3"}
        ends.append(weights(model))
    assert not moved(*ends)


if __name__ == "__main__":
    run_all(json.loads(Path(sys.argv[1]).read_text()))
