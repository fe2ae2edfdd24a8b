"""Training strategies on the stock `Trainer`: counting its steps, learned loss weights, runs of two stages."""

from collections.abc import Callable
from typing import Any

from torch import nn
from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from ..model.modeling_pfberxit import PFBerxitForSequenceClassification
from ..model.strategies import STRATEGIES, TrainingProgress, exit_groups
from ..model.validation import refuse

LOSS_WEIGHT_LEARNING_RATE = 1e-2  # ELBERT's, for theta


class StrategyCallback(TrainerCallback):
    """Sets `model.training_progress` at every step, for strategies that change in the course of a run.

    Counts optimiser steps, so accumulated gradients belong to one phase, every process of a distributed run is in the
    same, and a resumed run goes on in the right one. Other strategies ignore it.

    Example:
        >>> Trainer(model, arguments, train_dataset=train, callbacks=[StrategyCallback()])
    """

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, *, model: nn.Module, **kwargs: Any
    ) -> None:
        """Refuse a distributed run in which some heads get no gradient at a step, though the reduction expects all."""
        unused = any(len(group) < len(model.exit_depths) for group in exit_groups(model.config, model.exit_depths))
        searched = args.ddp_find_unused_parameters  # None: True, unless activations are recomputed
        searched = not args.gradient_checkpointing if searched is None else searched
        if args.world_size > 1 and unused and not searched:
            refuse("ddp_find_unused_parameters", args.ddp_find_unused_parameters, "True: some exits sit out some steps")

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, *, model: nn.Module, **kwargs: Any
    ) -> None:
        """Before the first forward pass of an optimiser step."""
        without_peft(model).training_progress = TrainingProgress(state.global_step, state.max_steps)

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, *, model: nn.Module, **kwargs: Any
    ) -> None:
        """Forget the progress: the next run counts from its own start."""
        without_peft(model).training_progress = None


def without_peft(model: nn.Module) -> PFBerxitForSequenceClassification:
    """The model inside PEFT's wrapper; one without a wrapper as it is."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def set_loss_weight_rate(trainer: Trainer, learning_rate: float = LOSS_WEIGHT_LEARNING_RATE) -> None:
    """Give learned loss weights (`exit_weights="learned"`), if the model has any, their own learning rate.

    Call it on a new `Trainer`, before `train()`. Without it they learn as slowly as everything else.
    """
    weights = trainer.model.exits.loss_weights
    if weights is None:
        return
    optimizer, own = trainer.create_optimizer(), list(weights.parameters())
    for group in optimizer.param_groups:
        group["params"] = [parameter for parameter in group["params"] if all(parameter is not other for other in own)]
    optimizer.add_param_group({"params": own, "lr": learning_rate, "weight_decay": 0.0})


def train(
    model: PFBerxitForSequenceClassification, trainer: Callable[[], Trainer],
    resume: Callable[[int], str | None] = lambda stage: None, **options: Any,
) -> list[Trainer]:  # fmt: skip
    """Run the trainings of the model's strategy: one, or the two of `two_stage`.

    Args:
        trainer: makes a new `Trainer` for the model; called once per run, since optimiser and schedule start afresh.
        resume: the checkpoint that a stage goes on from, if it has one; earlier stages are in it and do not run again.
        options: of `Trainer.train`.

    Returns:
        The trainers, after their runs.
    """
    several = STRATEGIES[model.config.training_strategy].runs > 1
    stages = (1, 2) if several else (model.config.training_stage,)
    begun = max((stage for stage in stages if resume(stage)), default=stages[0])
    runs = []
    for stage in stages[stages.index(begun) :]:
        model.config.training_stage = stage
        runs.append(trainer())
        runs[-1].train(resume_from_checkpoint=resume(stage), **options)
    return runs
