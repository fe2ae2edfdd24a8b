"""A second file whose matrix products are of 8-bit numbers: smaller and faster, and not the same answers.

Activations are quantised as they come, by the range of the whole batch, so that what a row runs beside may change its
answer. How often is measured, and stands in the file.
"""

from __future__ import annotations

import copy
import json
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from onnx import GraphProto, NodeProto
from torch import Tensor

from ..evaluation.replay import same_answers
from ..model.exit_policy import ExitPolicy
from ..model.exits import REGRESSION
from .templates import quietly
from .verification import run


def quantised(proto: onnx.ModelProto) -> onnx.ModelProto:
    """The file with all products by weights in 8 bits but those of classifiers; inside branches and loops as well."""
    from onnxruntime.quantization import QuantType, quantize_dynamic

    # It makes products and sums of them, under this name.
    kept = [f"{node.name}_MatMul" for node in nodes_in(proto.graph) if node.op_type == "Gemm"]
    with tempfile.TemporaryDirectory() as folder, quietly():
        path = Path(folder) / "int8.onnx"
        quantize_dynamic(
            copy.deepcopy(proto), path, op_types_to_quantize=["MatMul"], nodes_to_exclude=kept,
            weight_type=QuantType.QInt8, extra_options={"EnableSubgraph": True},
        )  # fmt: skip
        return onnx.load(path)


def nodes_in(graph: GraphProto) -> Iterator[NodeProto]:
    """All nodes, those of graphs inside it as well."""
    for node in graph.node:
        yield node
        for attribute in node.attribute:
            yield from nodes_in(attribute.g)


def products(proto: onnx.ModelProto) -> int:
    """Matrix products of 8-bit numbers."""
    return sum(node.op_type == "MatMulInteger" for node in nodes_in(proto.graph))


def agreement(
    full: Any, small: Any, batch: Mapping[str, Tensor], policy: ExitPolicy, batch_size: int, problem_type: str
) -> dict[str, Any]:
    """Of rows, how many leave after the same layer and get the same answer: as in float32, and alone as in a batch.

    Of values, how far they are apart at most.
    """
    expected, alone = rows_by(full, batch, policy, 1), rows_by(small, batch, policy, 1)
    together = alone if batch_size == 1 else rows_by(small, batch, policy, batch_size)
    found: dict[str, Any] = {"rows": len(expected[0])}
    for name, one, other in (("as_float32", alone, expected), ("alone_as_in_batch", together, alone)):
        found[f"layer_{name}"] = int((one[1] == other[1]).sum())
        if problem_type == REGRESSION:
            found[f"farthest_{name}"] = float(np.abs(one[0] - other[0]).max())
        else:
            logits, others = torch.as_tensor(one[0]), torch.as_tensor(other[0])
            found[f"label_{name}"] = int(same_answers(logits, others, problem_type, 0.0).sum())
    return found


def rows_by(session: Any, batch: Mapping[str, Tensor], policy: ExitPolicy, size: int) -> list[np.ndarray]:
    """Logits and layers of all rows, in batches of one size."""
    starts = range(0, len(batch["input_ids"]), size)
    parts = [run(session, {name: value[start : start + size] for name, value in batch.items()}, policy)
             for start in starts]  # fmt: skip
    return [np.concatenate(part) for part in zip(*parts)]


def without_certificates(facts: dict[str, Any], measured: dict[str, Any]) -> str:
    """What the second file says of itself, as JSON: certificates speak of float32 alone."""
    points = {
        name: {field: value for field, value in point.items() if field != "certificate"}
        for name, point in facts["operating_points"].items()
    }
    return json.dumps({**facts, "operating_points": points, "int8": measured})
