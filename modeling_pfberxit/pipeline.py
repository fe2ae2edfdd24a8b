"""Pipelines whose calls take an exit policy.

With the package imported, `pipeline("text-classification", ...)`, `pipeline("zero-shot-classification", ...)` and
`pipeline("feature-extraction", ...)`, which has no use for one and says so, make these; for any other model they are
the stock pipelines. Without the package the stock ones pass over arguments that they do not know; set
`pipe.model.config.exit_policy` there, or `model_kwargs={"exit_policy": ...}` when it is made.
"""

from collections.abc import Callable
from typing import Any

from transformers import FeatureExtractionPipeline, TextClassificationPipeline, ZeroShotClassificationPipeline
from transformers.pipelines import PIPELINE_REGISTRY

from .model.configuration_pfberxit import PFBerxitConfig
from .model.validation import refuse


class TakesPolicy:
    """What a stock pipeline is mixed with."""

    model: Any

    @property
    def exits_early(self) -> bool:
        """Whether the model is one of this library's, with or without the package."""
        return self.model.config.model_type == PFBerxitConfig.model_type

    def _sanitize_parameters(self, **options: Any) -> tuple[dict, dict, dict]:
        stock: Callable[..., tuple[dict, dict, dict]] = super()._sanitize_parameters  # type: ignore[misc]  # of the pipeline
        if not self.exits_early:
            return stock(**options)
        exit_policy = options.pop("exit_policy", None)
        for name in options:
            if name.startswith("exit_"):
                refuse(name, options[name], f"a field of exit_policy: exit_policy={{{name[5:]!r}: ...}}")
        before, _, after = stock(**options)
        if exit_policy is None:
            return before, {}, after
        return before, {"exit_policy": exit_policy}, {**after, "with_layer": True}


class EarlyExitPipeline(TakesPolicy, TextClassificationPipeline):
    """Text classification; under a policy its answers come with the `exit_layer` they are from.

    A row that left as unsure has an empty label and no score.

    Example:
        >>> pipe = pipeline("text-classification", model=model, tokenizer=tokenizer)
        >>> pipe("where is my parcel", exit_policy={"threshold": 0.3})
        [{"label": "delivery", "score": 0.93, "exit_layer": 4}]
    """

    def _forward(self, model_inputs: dict, **options: Any) -> Any:
        if not self.exits_early:
            return super()._forward(model_inputs, **options)
        return self.model(**model_inputs, **options)

    def postprocess(self, model_outputs: Any, with_layer: bool = False, **options: Any) -> Any:
        """The labels of one row with their scores, as in `transformers`; under a policy also their layer."""
        answers = super().postprocess(model_outputs, **options)
        if self.exits_early and model_outputs["logits"].isnan().any():  # it left as unsure
            unsure = {"label": "", "score": None}
            answers = unsure if isinstance(answers, dict) else [unsure]
        if not with_layer:
            return answers
        layer = {"exit_layer": int(model_outputs["exit_layer"][0])}
        return {**answers, **layer} if isinstance(answers, dict) else [{**answer, **layer} for answer in answers]


class EarlyExitZeroShotPipeline(TakesPolicy, ZeroShotClassificationPipeline):
    """Zero-shot classification; under a policy `exit_layers` says for every label where its score is from.

    Example:
        >>> pipe = pipeline("zero-shot-classification", model=model, tokenizer=tokenizer)
        >>> pipe("where is my parcel", ["delivery", "refund"], exit_policy={"threshold": 0.3})["exit_layers"]
        [4, 6]
    """

    def _forward(self, inputs: dict, **options: Any) -> Any:
        if not self.exits_early:
            return super()._forward(inputs)
        output = self.model(**{name: inputs[name] for name in self.tokenizer.model_input_names}, **options)
        if output.logits.isnan().any():
            refuse("exit_answer", "abstain", "label: labels are put in order by the scores of all of them")
        return {**{name: inputs[name] for name in ("candidate_label", "sequence", "is_last")}, **output}

    def postprocess(self, model_outputs: Any, with_layer: bool = False, **options: Any) -> Any:
        """The labels of one text in order, as in `transformers`; under a policy also their layers."""
        answer = super().postprocess(model_outputs, **options)
        layers = {output["candidate_label"]: int(output["exit_layer"][0]) for output in model_outputs if with_layer}
        return {**answer, "exit_layers": [layers[label] for label in answer["labels"]]} if with_layer else answer


class FullDepthFeaturesPipeline(FeatureExtractionPipeline):
    """Features of the tokens, from all layers; it takes no exit policy."""

    def _sanitize_parameters(self, **options: Any) -> tuple[dict, dict, dict]:
        if self.model.config.model_type == PFBerxitConfig.model_type:
            for name in options:
                if name.startswith("exit_"):
                    refuse(name, options[name], "left out: features are read off all layers")
        return super()._sanitize_parameters(**options)


def register() -> None:
    """Make them what `pipeline(task, ...)` builds, without `register_pipeline`'s warning."""
    PIPELINE_REGISTRY.supported_tasks["text-classification"]["impl"] = EarlyExitPipeline
    PIPELINE_REGISTRY.supported_tasks["zero-shot-classification"]["impl"] = EarlyExitZeroShotPipeline
    PIPELINE_REGISTRY.supported_tasks["feature-extraction"]["impl"] = FullDepthFeaturesPipeline
