"""What stands beside a file: its tokenizer and its runner, none of them over a file that is another's."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from transformers import PreTrainedTokenizerBase

from ..model.persistence import replacing
from ..model.validation import refuse

TOKENIZER, RUNNER = "tokenizer.json", "classifier.py"
PER_CALL = ("truncation", "padding")  # of a tokenizer's file, what every call sets anew


def check_beside(path: Path, tokenizer: PreTrainedTokenizerBase | None, runner: Path | None) -> None:
    """Refuse a folder in which another tokenizer, or another program, has the name of ours."""
    own, there = path.parent / TOKENIZER, path.parent / RUNNER
    if (
        tokenizer is not None
        and own.is_file()
        and kept(own.read_text(encoding="utf-8")) != kept(tokenizer.backend_tokenizer.to_str())
    ):
        refuse("onnx", str(path), f"in another folder: {own} is another tokenizer's")
    if (
        runner is not None
        and there.is_file()
        and there.read_text(encoding="utf-8").splitlines()[:1] != first_line(runner)
    ):
        refuse("onnx", str(path), f"in another folder: {there} is another program")


def kept(text: str) -> object:
    """A tokenizer's file without what every call sets anew; the text where it is no such file."""
    try:
        facts = json.loads(text)
    except json.JSONDecodeError:
        return text
    return {name: value for name, value in facts.items() if name not in PER_CALL}


def first_line(file: Path) -> list[str]:
    """By which a runner is known."""
    return file.read_text(encoding="utf-8").splitlines()[:1]


def write_beside(path: Path, tokenizer: PreTrainedTokenizerBase | None, runner: Path | None) -> None:
    """The tokenizer and the runner, each in one move."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if tokenizer is not None:
        with replacing(path.parent / TOKENIZER) as draft:
            tokenizer.backend_tokenizer.save(str(draft))
    if runner is not None:
        with replacing(path.parent / RUNNER) as draft:
            shutil.copyfile(runner, draft)
