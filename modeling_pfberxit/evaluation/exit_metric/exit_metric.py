"""A task's score beside its cost in layers, as an `evaluate` metric that loads from this folder, without the Hub."""

import datasets
import evaluate
import numpy as np

from modeling_pfberxit.data.metrics import METRICS, score

_DESCRIPTION = "The score of a task beside where rows exited: mean layer, layers saved, speed-up by layers, histogram."
_INPUTS = """
Args:
    predictions: logits of every row (one value in regression).
    references: classes, a list of 0 and 1 (config `micro_f1`), or values (config `correlation`).
    exit_layers: the layers executed for each row, as in `PFBerxitOutput.exit_layer`.
    layers: of the model.
"""


@evaluate.utils.file_utils.add_start_docstrings(_DESCRIPTION, _INPUTS)
class ExitMetric(evaluate.Metric):
    """Config names are the metrics of `modeling_pfberxit.data.metrics`."""

    def _info(self) -> evaluate.MetricInfo:
        if self.config_name not in METRICS:
            raise ValueError(f"config_name={self.config_name!r}: must be one of {', '.join(METRICS)}.")
        number = datasets.Value("float32")
        features = {
            "predictions": datasets.Sequence(number),
            "references": datasets.Sequence(number) if self.config_name == "micro_f1" else number,
            "exit_layers": datasets.Value("int32"),
        }
        return evaluate.MetricInfo(
            description=_DESCRIPTION, citation="", inputs_description=_INPUTS, features=datasets.Features(features)
        )

    def _compute(
        self,
        predictions: list[list[float]],
        references: list[float] | list[list[float]],
        exit_layers: list[int],
        layers: int,
    ) -> dict[str, object]:
        depths, labels = np.asarray(exit_layers), np.asarray(references)
        if not ((depths >= 1) & (depths <= layers)).all():
            raise ValueError(
                f"exit_layers={depths.min()} to {depths.max()}: must be layers of the model, 1 to {layers}."
            )
        if self.config_name not in ("micro_f1", "correlation"):
            labels = labels.astype(int)
        shares = np.bincount(depths, minlength=layers + 1)[1:] / len(depths)
        mean = float(depths.mean())
        return {
            self.config_name: score(self.config_name, np.asarray(predictions), labels),
            "mean_layer": mean,
            "layers_saved": 1 - mean / layers,
            "speed_up": layers / mean,
            "exits": {layer: float(share) for layer, share in enumerate(shares, start=1) if share},
        }
