"""A pipeline whose calls take an exit policy.

With the package imported, `pipeline("text-classification", ...)` makes this one; for any other model it is the stock
pipeline. Without the package the stock one hands unknown arguments to the tokenizer, which drops them; there, set
`pipe.model.config.exit_policy`, or pass `model_kwargs={"exit_policy": ...}` when it is made.
"""

from typing import Any

from transformers import TextClassificationPipeline
from transformers.pipelines import PIPELINE_REGISTRY

from .model.configuration_pfberxit import PFBerxitConfig
from .model.validation import refuse


class EarlyExitPipeline(TextClassificationPipeline):
    """Text classification; under a policy its answers come with the `exit_layer` they are from.

    A row that left as unsure has an empty label and no score.

    Example:
        >>> pipe = pipeline("text-classification", model=model, tokenizer=tokenizer)
        >>> pipe("where is my parcel", exit_policy={"threshold": 0.3})
        [{"label": "delivery", "score": 0.93, "exit_layer": 4}]
    """

    @property
    def exits_early(self) -> bool:
        """Whether the model is one of this library's, with or without the package."""
        return self.model.config.model_type == PFBerxitConfig.model_type

    def _sanitize_parameters(self, **options: Any) -> tuple[dict, dict, dict]:
        if not self.exits_early:
            return super()._sanitize_parameters(**options)
        exit_policy = options.pop("exit_policy", None)
        for name in options:
            if name.startswith("exit_"):
                refuse(name, options[name], f"a field of exit_policy: exit_policy={{{name[5:]!r}: ...}}")
        before, _, after = super()._sanitize_parameters(**options)
        if exit_policy is None:
            return before, {}, after
        return before, {"exit_policy": exit_policy}, {**after, "with_layer": True}

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


def register() -> None:
    """Make it what `pipeline("text-classification", ...)` builds, without `register_pipeline`'s warning."""
    PIPELINE_REGISTRY.supported_tasks["text-classification"]["impl"] = EarlyExitPipeline
