"""Where certificates are stored: in the saved model itself, or in a copy of it, as a model on the Hub needs it."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from huggingface_hub import snapshot_download

from ..model.validation import refuse

PASS = "certify-pass"  # a folder with what a run that was killed has recorded


def check_place(model: str, output: str | None, check: bool) -> None:
    """Refuse a model on the Hub without a folder for its copy, a place that cannot be one, or one for no copy."""
    if check and output is not None:
        refuse("output", output, "left out with --check: nothing is stored in the model")
    if not check and output is None and not os.path.isdir(model):
        refuse("output", None, f"a folder for a copy of {model}, with its certificates: it is no folder itself")
    if output is not None and (Path(output) / "config.json").exists():
        refuse("output", output, "a folder without a model: nothing is overwritten")
    if output is not None and os.path.isdir(model) and Path(model).resolve() in Path(output).resolve().parents:
        refuse("output", output, f"a folder outside {model}, which is copied whole")


def local_folder(model: str) -> Path:
    """The folder of a saved model; of one on the Hub, that of its files in the cache."""
    return Path(model) if os.path.isdir(model) else Path(snapshot_download(model))


@contextmanager
def stored_in(folder: Path, output: str | None) -> Iterator[Path]:
    """The folder that certificates are to be written to; a copy takes its place once the block has written it."""
    if output is None:
        yield folder
        return
    place = Path(output)
    draft = place / "draft"
    shutil.rmtree(draft, ignore_errors=True)
    shutil.copytree(folder, draft, ignore=shutil.ignore_patterns(PASS, ".cache"))
    yield draft
    move_in(draft, place)


def move_in(draft: Path, place: Path) -> None:
    """Move a finished folder's files to their place, the config last: without it nothing loads half of a model."""
    place.mkdir(parents=True, exist_ok=True)
    for path in sorted(draft.iterdir(), key=lambda path: path.name == "config.json"):
        if path.is_dir():  # of a run that was killed among these lines
            shutil.rmtree(place / path.name, ignore_errors=True)
        os.replace(path, place / path.name)
    draft.rmdir()
