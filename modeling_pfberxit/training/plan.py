"""The plan of a fine-tuning: its options, its `TrainingArguments`, its checkpoints, and how a killed run goes on."""

import json
import os
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from transformers import TrainingArguments
from transformers.trainer_utils import get_last_checkpoint

from ..model.persistence import replacing
from ..model.validation import refuse
from .finetuning import training_arguments

# Knobs of a new model that are not set as such: what says them instead.
ELSEWHERE = {
    **dict.fromkeys(("num_labels", "id2label", "label2id"), "the labels of the data"),
    "problem_type": "the data, or --problem-type", "backbone": "--backbone", "revision": "--revision",
}  # fmt: skip


@dataclass(frozen=True)
class Plan:
    """What is trained, on what, and where it goes.

    Args:
        dataset, config, columns, split: as `load_task` takes them.
        knobs: fields of the config, with `system` for a published one.
        policy: fields of the exit policy that differ from the system's.
        rows: to train on, at most; 0: all.
        held_out: rows of the training split to choose on; default: a tenth, 1,000 at most.
        balanced: weigh every class (or having each of several labels) by how rare it is.
        early_stopping: evaluations without a better score after which the run ends; 0: never.
        fields: of `TrainingArguments`.
    """

    dataset: str
    output: str
    backbone: str
    config: str | None = None
    columns: dict[str, Any] = field(default_factory=dict)
    split: str | None = None
    revision: str | None = None
    knobs: dict[str, Any] = field(default_factory=dict)
    policy: dict[str, Any] = field(default_factory=dict)
    max_length: int | None = None
    rows: int = 0
    held_out: int | None = None
    balanced: bool = False
    early_stopping: int = 3
    fields: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name in self.knobs.keys() & ELSEWHERE:
            refuse(name, self.knobs[name], f"left out of the fields to set: {ELSEWHERE[name]} says it")

    @property
    def name(self) -> str:
        """The folder's own name."""
        return Path(self.output).resolve().name

    @property
    def scratch(self) -> Path:
        """Where checkpoints are."""
        return Path(f"{os.path.normpath(self.output)}.training")


def arguments_of(
    plan: Plan, folder: Path | None = None, train_backbone: bool = False, metric: str = ""
) -> TrainingArguments:
    """The `TrainingArguments`: evaluated and saved every epoch, the best of them kept, unless fields say otherwise."""
    chosen = {"eval_strategy": "epoch", "save_strategy": "epoch", "save_total_limit": 2, **plan.fields}
    chosen.pop("resume_from_checkpoint", None)
    follows = chosen["eval_strategy"] == chosen["save_strategy"] != "no"
    best = {"load_best_model_at_end": follows, "metric_for_best_model": metric or None, "greater_is_better": True}
    if plan.fields.get("metric_for_best_model"):
        best.pop("greater_is_better")  # it follows from the metric
    return training_arguments(str(folder or plan.scratch), train_backbone, **{**best, **chosen})


def execution_fields(device: str | None, dtype: str | None) -> dict[str, Any]:
    """What `--device` and `--dtype` mean for a training: half precision is mixed, weights stay in fp32."""
    fields: dict[str, Any] = {}
    if device is not None:
        if device not in ("cpu", "cuda") or device == "cuda" and not torch.cuda.is_available():
            refuse("device", device, "cpu, or cuda where there is a GPU; CUDA_VISIBLE_DEVICES chooses among several")
        fields["use_cpu"] = device == "cpu"
    if dtype is not None:
        fields |= {"bf16": dtype == "bfloat16", "fp16": dtype == "float16"}
    return fields


def check_folder(plan: Plan) -> None:
    """Refuse a folder with a model in it, and checkpoints of a run that is not to be gone on with."""
    if Path(plan.output, "config.json").exists():
        refuse("output", plan.output, "a folder without a model; nothing is overwritten")
    if plan.scratch.exists() and any(plan.scratch.rglob("checkpoint-*")) and not resumes(plan):
        say = f"--resume_from_checkpoint true goes on with {plan.scratch}, deleting it begins anew"
        refuse("output", plan.output, f"another: a run has begun there. {say}")


def resumes(plan: Plan) -> bool:
    """Whether the run is to go on from a checkpoint."""
    return str(plan.fields.get("resume_from_checkpoint") or "false").lower() not in ("false", "no", "0")


# ---- checkpoints -----------------------------------------------------------------------------------------------------


def stage_folder(plan: Plan, stage: int | None) -> Path:
    """Where the checkpoints of a stage are."""
    return plan.scratch / f"stage-{stage or 1}"


def facts_of(plan: Plan, rows: str) -> dict[str, Any]:
    """What a run is made of, in values of JSON, with the hash of its rows; a run that goes on has the same."""
    fields = {name: value for name, value in plan.fields.items() if name != "resume_from_checkpoint"}
    about = {name: getattr(plan, name) for name in plan.__dataclass_fields__ if name not in ("output", "fields")}
    return json.loads(json.dumps({**about, "fields": fields, "data": rows}, default=str))


def checkpoint_to_resume(plan: Plan, facts: dict[str, Any]) -> Callable[[int], str | None]:
    """For each stage the checkpoint it goes on from; a new run leaves a note of what it is made of.

    Raises:
        ValueError: there is no checkpoint, or one of another plan.
    """
    note = plan.scratch / "plan.json"
    if not resumes(plan):
        plan.scratch.mkdir(parents=True, exist_ok=True)
        with replacing(note) as draft:
            draft.write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")
        return lambda stage: None
    asked = str(plan.fields["resume_from_checkpoint"])
    begun = json.loads(note.read_text(encoding="utf-8")) if note.exists() else None
    if begun is None:
        refuse("resume_from_checkpoint", asked, f"left out: no run has begun in {plan.scratch}")
    if other := sorted(name for name in {*begun, *facts} if begun.get(name) != facts.get(name)):
        refuse("resume_from_checkpoint", asked, f"asked with what the run began with; other: {', '.join(other)}")
    if asked.lower() != "true":
        named = Path(asked)
        if not (named / "trainer_state.json").exists():
            refuse("resume_from_checkpoint", asked, "true, or the folder of a checkpoint")
        return lambda stage: asked if named.parent.name == stage_folder(plan, stage).name else None
    return lambda stage: last_checkpoint(stage_folder(plan, stage))


def last_checkpoint(folder: Path) -> str | None:
    """The newest checkpoint in a folder, if there is any."""
    return get_last_checkpoint(str(folder)) if folder.is_dir() else None
