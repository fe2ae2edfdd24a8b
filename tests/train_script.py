"""Short fine-tuning runs with the stock `Trainer`, for the tests and for the processes they start.

As a script: `python train_script.py settings.json`, or the same under `torchrun`.
"""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import torch
from datasets import Dataset
from safetensors.torch import save_file
from tiny import tiny_batch
from transformers import Trainer, TrainerCallback, TrainingArguments

from modeling_pfberxit import PFBerxitForSequenceClassification

torch.set_num_threads(1)  # more only wait for each other at these sizes, and equal sums need equal numbers of them

ROOT = Path(__file__).resolve().parents[1]
CLASSES = 3
NO_DROPOUT = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}  # for `save_backbone`
# One step of plain gradient descent on the rows in their order: what a step changes is the gradient itself.
PLAIN_SGD = {
    "optim": "sgd",
    "learning_rate": 0.5,
    "lr_scheduler_type": "constant",
    "max_grad_norm": 0.0,
    "train_sampling_strategy": "sequential",
}


def tiny_data(rows: int = 16, problem_type: str = "single_label_classification", seed: int = 0) -> Dataset:
    """Rows that can be learned: the second and third token say which class it is."""
    batch = tiny_batch(rows, seed=seed)
    classes = torch.arange(rows) % CLASSES
    batch["input_ids"][:, 1:3] = 5 + classes[:, None]
    labels = {
        "single_label_classification": classes,
        "multi_label_classification": (torch.arange(CLASSES) != classes[:, None]).float(),
        "regression": classes.float(),
    }[problem_type]
    return Dataset.from_dict({name: values.tolist() for name, values in {**batch, "labels": labels}.items()})


def new_model(backbone: str, seed: int = 0, **knobs) -> PFBerxitForSequenceClassification:
    """Untrained exits on an encoder in a folder, drawn from a seed."""
    torch.manual_seed(seed)
    knobs = {"adapter_dim": 8, "adapter_num_heads": 2, "num_labels": CLASSES, **knobs}
    return PFBerxitForSequenceClassification.from_backbone(backbone, **knobs)


def new_trainer(
    model, folder, data=None, evaluation=None, callbacks=None, compute_metrics=None, trainer_class=Trainer, given=None,
    **arguments,
) -> Trainer:  # fmt: skip
    """A stock `Trainer` on the CPU, quiet, that logs every step; `given` is what else it is given."""
    defaults = {
        "per_device_train_batch_size": 8,
        "per_device_eval_batch_size": 4,
        "learning_rate": 1e-2,
        "max_steps": 6,
        "logging_steps": 1,
        "save_strategy": "no",
        "use_cpu": True,
        "disable_tqdm": True,
        "report_to": "none",
        "dataloader_pin_memory": False,
    }
    return trainer_class(
        model=model,
        args=TrainingArguments(output_dir=str(folder), **{**defaults, **arguments}),
        train_dataset=tiny_data() if data is None else data,
        eval_dataset=evaluation,
        callbacks=callbacks,
        compute_metrics=compute_metrics,
        **(given or {}),
    )


def weights(model) -> dict[str, torch.Tensor]:
    """A copy of every weight by name."""
    return {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}


def in_two_processes(script: Path, settings: Path) -> None:
    """Run a script on a file of settings under `torchrun`; refuse to go on if it failed."""
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    launched = subprocess.run(
        [sys.executable, *launch, str(script), str(settings)],
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert launched.returncode == 0, launched.stderr


class Kill(TrainerCallback):
    """Ends the process after a step, as a power cut would."""

    def __init__(self, step: int):
        self.step = step

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == self.step:
            os.kill(os.getpid(), signal.SIGKILL)


def main(settings: dict) -> None:
    """Train every run in the settings; each process leaves its weights and its predictions in the output folder."""
    rank, output = os.environ.get("RANK", "0"), Path(settings["output"])
    for name, run in settings["runs"].items():
        model = new_model(settings["backbone"], **run.get("knobs", {}))
        callbacks = [Kill(run["kill_at"])] if "kill_at" in run else None
        trainer = new_trainer(model, output / name, callbacks=callbacks, **run["arguments"])
        trainer.train()
        save_file(weights(model), output / f"{name}-{rank}.safetensors")
        if "policy" in run:
            model.config.update(run["policy"])
            logits, exit_layer = trainer.predict(tiny_data(11, seed=1), ignore_keys=[]).predictions
            found = {"logits": torch.tensor(logits), "exit_layer": torch.tensor(exit_layer)}
            save_file(found, output / f"{name}-{rank}-predictions.safetensors")


if __name__ == "__main__":
    main(json.loads(Path(sys.argv[1]).read_text()))
