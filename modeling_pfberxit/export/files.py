"""`pfberxit export`: a folder that classifies without this package, of one file, its tokenizer and its runner."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from transformers import PreTrainedTokenizerBase

from ..data.texts import length_of
from ..evaluation.certificates import Certificate
from ..model.backbones import longest_input
from ..model.exit_policy import ExitPolicy
from ..model.modeling_pfberxit import PFBerxitForSequenceClassification
from ..model.validation import refuse
from .beside import check_beside, write_beside
from .exportable import check_exportable, check_tokenizer, exportable_policy
from .made import Form, Promise, Small
from .metadata import metadata_of
from .segments import segments_of
from .storage import write
from .verification import Compared, Row


class Exported(NamedTuple):
    """A file, and how it compares with its model."""

    path: Path
    policy: ExitPolicy
    compared: Compared
    int8: dict[str, Any] | None = None  # of the second file, how it compares with the first
    certificate: Certificate | None = None  # of the second file


def export_file(
    model: PFBerxitForSequenceClassification, tokenizer: PreTrainedTokenizerBase | None, path: str | Path,
    policy: Any = None, max_length: int | None = None, single: bool = False, int8: bool = False,
    runner: Path | None = None, rows: Sequence[Row] = (), promise: Promise | None = None,
) -> Exported:  # fmt: skip
    """Write one ONNX file that exits by itself, with `tokenizer.json` and the runner beside it.

    Args:
        policy: as a call's `exit_policy`; None: the model's own.
        max_length: tokens of a text; None: as the tokenizer was saved.
        single: for one row at a time, a little faster.
        int8: write a second file of 8-bit weights, `..._int8.onnx`.
        runner: a Python file that runs it, copied beside it as `classifier.py`.
        rows: tokens of texts on which the file is held against the model; none: some are drawn.
        promise: choose and certify the second file's threshold on these texts.

    Raises:
        ValueError: what cannot be exported; a folder with another tokenizer or program of the names beside it; a file
            that would differ from the model.
    """
    path = checked(path)
    check_promise(promise, int8, rows)
    form = form_of(model, tokenizer, policy, max_length, rows, single)
    check_beside(path, tokenizer, runner)
    made = form.made(str(path))
    small = form.in_8_bits(made, str(path), promise) if int8 else None
    write_beside(path, tokenizer, runner)
    write(made.proto, path)
    if small is not None:
        write(small.proto, eight_bits(path))
    return exported(path, form, made.compared, small)


def exported(path: Path, form: Form, compared: Compared, small: Small | None) -> Exported:
    """What became of it."""
    return Exported(path, form.policy, compared, small and small.measured, small and small.certificate)


def form_of(
    model: PFBerxitForSequenceClassification, tokenizer: PreTrainedTokenizerBase | None, policy: Any,
    max_length: int | None, rows: Sequence[Row] = (), single: bool = False, built_in: bool = False,
) -> Form:  # fmt: skip
    """What files of a model are made of; refuses by name what cannot be one, before anything is translated."""
    check_exportable(model)
    check_tokenizer(tokenizer)
    rule = exportable_policy(policy, model)
    longest = longest_input(model.config.encoder_config())
    length = int(min(longest, 512) if tokenizer is None else length_of(tokenizer, longest, max_length))
    facts = metadata_of(model, tokenizer, rule, length)
    return Form(segments_of(model), rule, facts, rows, single, built_in)


def checked(path: str | Path) -> Path:
    """A path for a file, in a folder that is there or can be made."""
    path = Path(path)
    if path.suffix != ".onnx" or path.is_dir():
        refuse("onnx", str(path), "a file's path that ends in .onnx")
    return path


def check_promise(promise: Promise | None, int8: bool, rows: Sequence[Row]) -> None:
    """Refuse to certify what is not written, or without texts."""
    if promise is not None and not (int8 and len(rows)):
        refuse("differ", promise.differ, "given together with --int8 and --texts, on which it is certified")


def eight_bits(path: Path) -> Path:
    """Where the second file goes."""
    return path.with_name(f"{path.stem}_int8.onnx")
