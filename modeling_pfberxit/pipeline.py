"""A pipeline whose calls take an exit policy.

The stock pipeline hands unknown arguments to the tokenizer, which drops them; there, set
`pipe.model.config.exit_policy`, or pass `model_kwargs={"exit_policy": ...}` when it is made.
"""

from typing import Any

from transformers import TextClassificationPipeline

from .model.validation import refuse


class EarlyExitPipeline(TextClassificationPipeline):
    """Text classification, its answers with the `exit_layer` they come from.

    Example:
        >>> pipe = pipeline("text-classification", model=model, tokenizer=tokenizer, pipeline_class=EarlyExitPipeline)
        >>> pipe("where is my parcel", exit_policy={"threshold": 0.3})
        [{"label": "delivery", "score": 0.93, "exit_layer": 4}]
    """

    def _sanitize_parameters(self, exit_policy: Any = None, **options: Any) -> tuple[dict, dict, dict]:
        for name in options:
            if name.startswith("exit_"):
                refuse(name, options[name], f"a field of exit_policy: exit_policy={{{name[5:]!r}: ...}}")
        before, _, after = super()._sanitize_parameters(**options)
        return before, {} if exit_policy is None else {"exit_policy": exit_policy}, after

    def _forward(self, model_inputs: dict, exit_policy: Any = None) -> Any:
        return self.model(**model_inputs, exit_policy=exit_policy)

    def postprocess(self, model_outputs: Any, **options: Any) -> Any:
        """The labels of one row with their scores, as in `transformers`, and the layer its answer comes from."""
        answers = super().postprocess(model_outputs, **options)
        layer = {"exit_layer": int(model_outputs["exit_layer"][0])}
        return {**answers, **layer} if isinstance(answers, dict) else [{**answer, **layer} for answer in answers]
