"""`pfberxit export`: a folder that classifies without this package, of one file, its tokenizer and its runner."""

from __future__ import annotations

import json
import shutil
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
from .compose import File, Rule
from .exportable import check_exportable, check_tokenizer, exportable_policy
from .loops import LoopFile, loops
from .metadata import metadata_of
from .segments import Segments, rule_of_rows, segments_of
from .verification import Compared, check_same, compare, made_up, settings

METADATA = "pfberxit"  # the key of the file's properties under which everything stands, as JSON
RUNNER = "classifier.py"
MOST_BYTES = 2**31 - 2**20  # of one protobuf file


class Exported(NamedTuple):
    """A file, and how it compares with its model."""

    path: Path
    policy: ExitPolicy
    compared: Compared


def export_file(
    model: PFBerxitForSequenceClassification, tokenizer: PreTrainedTokenizerBase | None, path: str | Path,
    policy: Any = None, max_length: int | None = None, single: bool = False, runner: Path | None = None,
) -> Exported:  # fmt: skip
    """Write one ONNX file that exits by itself, with `tokenizer.json` and the runner beside it.

    Args:
        policy: as a call's `exit_policy`; None: the model's own.
        max_length: tokens of a text; None: as the tokenizer was saved.
        single: for one row at a time, a little faster.
        runner: a Python file that runs it, copied beside it as `classifier.py`.

    Raises:
        ValueError: what cannot be exported; a file that would differ from the model.
    """
    path = checked(path)
    check_exportable(model)
    check_tokenizer(tokenizer)
    rule = exportable_policy(policy, model)
    longest = longest_input(model.config.encoder_config())
    length = min(longest, 512) if tokenizer is None else length_of(tokenizer, longest, max_length)
    segments = segments_of(model)
    proto = one_file(segments, rule, single)
    facts = {**metadata_of(model, tokenizer, rule, int(length)), "single": single}
    onnx.helper.set_model_props(proto, {METADATA: json.dumps(facts)})
    compared = check(proto, segments, rule, single, str(path))
    write(proto, tokenizer, path, runner)
    return Exported(path, rule, compared)


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


def check(proto: onnx.ModelProto, segments: Segments, policy: ExitPolicy, single: bool, path: str) -> Compared:
    """Hold a file against its model; refuse one that differs or that is too large."""
    import onnxruntime

    if proto.ByteSize() > MOST_BYTES:
        refuse("onnx", path, "of less than 2 GB: larger models cannot be exported yet")
    session = onnxruntime.InferenceSession(proto.SerializeToString(), providers=["CPUExecutionProvider"])
    model = segments.model
    sizes = (1,) if single else (1, 7)
    found = compare(session, model, made_up(model), settings(policy, model), sizes)
    check_same(found, path)
    return found


def write(proto: onnx.ModelProto, tokenizer: PreTrainedTokenizerBase | None, path: Path, runner: Path | None) -> None:
    """The file, its tokenizer and its runner, each in one move."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if tokenizer is not None:
        with replacing(path.parent / "tokenizer.json") as draft:
            tokenizer.backend_tokenizer.save(str(draft))
    if runner is not None:
        with replacing(path.parent / RUNNER) as draft:
            shutil.copyfile(runner, draft)
    with replacing(path) as draft:
        draft.write_bytes(proto.SerializeToString())
