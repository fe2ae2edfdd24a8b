"""A graph as a file: one, or above protobuf's limit a small one and its weights beside it; and as a session."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import onnx
from onnx import GraphProto, NodeProto, TensorProto
from onnx.external_data_helper import set_external_data

MOST_BYTES = 2**31 - 2**20  # of one protobuf file
WORTH_IT = 1024  # bytes of a tensor that goes to the other file
BESIDE = "_data"  # behind the file's name, as `transformers.js` looks for it


def nodes_in(graph: GraphProto) -> Iterator[NodeProto]:
    """All nodes, those of graphs inside it as well."""
    for node in graph.node:
        yield node
        for attribute in node.attribute:
            yield from nodes_in(attribute.g)


def tensors_in(graph: GraphProto) -> Iterator[TensorProto]:
    """The weights and other constants, those of graphs inside it as well."""
    yield from graph.initializer
    for node in graph.node:
        for attribute in node.attribute:
            yield from tensors_in(attribute.g)


def is_large(proto: onnx.ModelProto) -> bool:
    """Whether one file cannot hold it."""
    return sum(len(tensor.raw_data) for tensor in tensors_in(proto.graph)) > MOST_BYTES


def beside(path: Path) -> Path:
    """Where the weights of a large file go."""
    return path.with_name(path.name + BESIDE)


def write(proto: onnx.ModelProto, path: Path) -> None:
    """A file, in one move; of a large one the weights first, so that no file stands there without them."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=f".{path.name}.") as folder:
        draft = Path(folder) / path.name
        save(proto, draft)
        if beside(draft).exists():
            os.replace(beside(draft), beside(path))
            os.replace(draft, path)
        else:
            os.replace(draft, path)
            beside(path).unlink(missing_ok=True)  # a former file's


def save(proto: onnx.ModelProto, path: Path) -> None:
    """Write it as it is; a large one without its weights, which go into a file beside it."""
    if not is_large(proto):
        path.write_bytes(proto.SerializeToString())
        return
    small = onnx.ModelProto()
    small.CopyFrom(proto)
    with open(beside(path), "wb") as file:
        for tensor in tensors_in(small.graph):
            if len(tensor.raw_data) >= WORTH_IT:
                set_external_data(tensor, beside(path).name, file.tell(), len(tensor.raw_data))
                file.write(tensor.raw_data)
                tensor.ClearField("raw_data")
    path.write_bytes(small.SerializeToString())


def opened(proto: onnx.ModelProto) -> Any:
    """A session of onnxruntime, with as many threads as torch."""
    import onnxruntime
    import torch

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.enable_mem_pattern, options.log_severity_level = False, 3  # as the runner has them
    opened_as = {"sess_options": options, "providers": ["CPUExecutionProvider"]}
    if not is_large(proto):
        return onnxruntime.InferenceSession(proto.SerializeToString(), **opened_as)
    with tempfile.TemporaryDirectory() as folder:  # read as a whole before the folder goes
        save(proto, Path(folder) / "model.onnx")
        return onnxruntime.InferenceSession(str(Path(folder) / "model.onnx"), **opened_as)
