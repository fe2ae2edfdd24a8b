"""`pfberxit export`: a folder that classifies without this package, of one file, its tokenizer and its runner."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NamedTuple

import onnx
from transformers import PreTrainedTokenizerBase

from ..data.texts import length_of
from ..model.backbones import longest_input
from ..model.exit_policy import ExitPolicy
from ..model.losses import problem_type_of
from ..model.modeling_pfberxit import PFBerxitForSequenceClassification
from ..model.persistence import replacing
from ..model.validation import refuse
from .beside import check_beside, write_beside
from .compose import File, Rule
from .exportable import check_exportable, check_tokenizer, exportable_policy
from .int8 import agreement, products, quantised, without_certificates
from .loops import LoopFile, loops
from .metadata import metadata_of
from .segments import Segments, rule_of_rows, segments_of
from .verification import Compared, check_same, compare, made_up, settings

METADATA = "pfberxit"  # the key of the file's properties under which everything stands, as JSON
MOST_BYTES = 2**31 - 2**20  # of one protobuf file


class Exported(NamedTuple):
    """A file, and how it compares with its model."""

    path: Path
    policy: ExitPolicy
    compared: Compared
    int8: dict[str, Any] | None = None  # of the second file, how it compares with the first


def export_file(
    model: PFBerxitForSequenceClassification, tokenizer: PreTrainedTokenizerBase | None, path: str | Path,
    policy: Any = None, max_length: int | None = None, single: bool = False, int8: bool = False,
    runner: Path | None = None,
) -> Exported:  # fmt: skip
    """Write one ONNX file that exits by itself, with `tokenizer.json` and the runner beside it.

    Args:
        policy: as a call's `exit_policy`; None: the model's own.
        max_length: tokens of a text; None: as the tokenizer was saved.
        single: for one row at a time, a little faster.
        int8: write a second file of 8-bit weights, `..._int8.onnx`.
        runner: a Python file that runs it, copied beside it as `classifier.py`.

    Raises:
        ValueError: what cannot be exported; a folder with another tokenizer or program of the names beside it; a file
            that would differ from the model.
    """
    path = checked(path)
    check_exportable(model)
    check_tokenizer(tokenizer)
    check_beside(path, tokenizer, runner)
    rule = exportable_policy(policy, model)
    longest = longest_input(model.config.encoder_config())
    length = min(longest, 512) if tokenizer is None else length_of(tokenizer, longest, max_length)
    segments = segments_of(model)
    proto = one_file(segments, rule, single)
    facts = {**metadata_of(model, tokenizer, rule, int(length)), "single": single}
    onnx.helper.set_model_props(proto, {METADATA: json.dumps(facts)})
    session = opened(proto, str(path))
    compared = check(session, segments, rule, single, str(path))
    small, measured = in_8_bits(proto, session, segments, rule, facts) if int8 else (None, None)
    write_beside(path, tokenizer, runner)
    write(proto, path)
    if small is not None:
        write(small, path.with_name(f"{path.stem}_int8.onnx"))
    return Exported(path, rule, compared, measured)


def checked(path: str | Path) -> Path:
    """A path for a file, in a folder that is there or can be made."""
    path = Path(path)
    if path.suffix != ".onnx" or path.is_dir():
        refuse("onnx", str(path), "a file's path that ends in .onnx")
    return path


def one_file(segments: Segments, policy: ExitPolicy, single: bool = False) -> onnx.ModelProto:
    """The graph for a policy's rule."""
    problem_type = problem_type_of(segments.model.config)
    rule = Rule(policy, problem_type, *rule_of_rows(segments, policy, problem_type))
    kind = LoopFile if loops(segments) else File
    return kind(segments, rule, single).build()


def opened(proto: onnx.ModelProto, path: str) -> Any:
    """A session of onnxruntime; refuses what one file cannot hold."""
    import onnxruntime

    if proto.ByteSize() > MOST_BYTES:
        refuse("onnx", path, "of less than 2 GB: larger models cannot be exported yet")
    return onnxruntime.InferenceSession(proto.SerializeToString(), providers=["CPUExecutionProvider"])


def check(session: Any, segments: Segments, policy: ExitPolicy, single: bool, path: str) -> Compared:
    """Hold a file against its model; refuse one that differs."""
    model = segments.model
    found = compare(session, model, made_up(model), settings(policy, model), (1,) if single else (1, 7))
    check_same(found, path)
    return found


def in_8_bits(
    proto: onnx.ModelProto, session: Any, segments: Segments, policy: ExitPolicy, facts: dict[str, Any]
) -> tuple[onnx.ModelProto, dict[str, Any]]:
    """The file in 8 bits, and how it compares with the one in float32, which is in its metadata."""
    small, batch = quantised(proto), made_up(segments.model)
    size = 1 if facts["single"] else 8
    measured = agreement(session, opened(small, "int8"), batch, policy, size, facts["problem_type"])
    measured["products"] = products(small)
    onnx.helper.set_model_props(small, {METADATA: without_certificates(facts, measured)})
    return small, measured


def write(proto: onnx.ModelProto, path: Path) -> None:
    """A file, in one move."""
    with replacing(path) as draft:
        draft.write_bytes(proto.SerializeToString())
