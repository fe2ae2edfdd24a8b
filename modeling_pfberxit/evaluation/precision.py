"""Lower precision against fp32: the share of rows whose exit or prediction changes, and the time of a pass."""

from collections.abc import Sequence
from copy import deepcopy
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from statistics import median

import torch
from datasets import Dataset
from torch import nn

from ..model.exit_policy import ExitPolicy
from ..model.modeling_pfberxit import PFBerxitForSequenceClassification
from ..model.validation import refuse
from .recording import Recording, record
from .replay import same_answers
from .tables import table
from .timing import interleaved, median_ratio

PRECISIONS = ("float32", "bfloat16", "float16", "int8")


@dataclass(frozen=True)
class Changed:
    """A precision against fp32.

    Args:
        exits, labels: shares of the rows whose exit, and whose prediction, is another one.
        milliseconds: per row of a full-depth pass.
        ratio: that time over fp32's, the median of pairs.
    """

    precision: str
    exits: float
    labels: float
    milliseconds: float
    ratio: float


def converted(model: PFBerxitForSequenceClassification, precision: str) -> PFBerxitForSequenceClassification:
    """A copy of the model in another precision. int8: the encoder's linear layers, inputs as well, by torchao.

    Raises:
        ValueError: an unknown precision, or int8 without torchao.
    """
    if precision not in PRECISIONS:
        refuse("precision", precision, f"one of {', '.join(PRECISIONS)}")
    copy = deepcopy(model)
    if precision != "int8":
        return copy.to(getattr(torch, precision))
    if find_spec("torchao") is None:
        refuse("precision", precision, "another one, or torchao installed: pip install torchao")
    from torchao.quantization import Int8DynamicActivationInt8WeightConfig, quantize_

    quantize_(copy.backbone, Int8DynamicActivationInt8WeightConfig(), lambda module, _: isinstance(module, nn.Linear))
    return copy


def compare_precisions(
    model: PFBerxitForSequenceClassification, rows: Dataset, policy: ExitPolicy, precisions: Sequence[str],
    repeats: int = 3,
) -> list[Changed]:  # fmt: skip
    """Record the rows in every precision, replay the policy on each recording, and time the passes."""
    models = [converted(model, name) for name in dict.fromkeys(["float32", *precisions])]
    recordings = [record(each, rows) for each in models]
    times = interleaved([partial(record, each, rows) for each in models], repeats, warmups=0)
    names = list(dict.fromkeys(["float32", *precisions]))
    return [
        Changed(name, *differences(recordings[0], own, policy), 1000 * median(t) / len(rows), median_ratio(t, times[0]))
        for name, own, t in zip(names, recordings, times, strict=True)
    ]


def differences(before: Recording, after: Recording, policy: ExitPolicy) -> tuple[float, float]:
    """The shares of rows whose exit, and whose prediction, is another one."""
    (answers, layers), (others, elsewhere) = before.replay(policy), after.replay(policy)
    changed = ~same_answers(answers, others, before.problem_type, tolerance=0.05)  # a twentieth of a unit
    return (layers != elsewhere).double().mean().item(), changed.double().mean().item()


def as_markdown(found: list[Changed]) -> str:
    """One row per precision."""
    rows = [
        [
            each.precision,
            f"{100 * each.exits:.2f} %",
            f"{100 * each.labels:.2f} %",
            f"{each.milliseconds:.2f}",
            f"{each.ratio:.2f}",
        ]
        for each in found
    ]
    return table(["precision", "other exit", "other label", "ms/row, full depth", "over fp32"], rows)
