"""Files of checkpoints: hashes of weights, and writing in one move.

An adapter checkpoint is an ordinary `config.json` + `model.safetensors` with adapters and exits only; its config holds
the hash of its own weights. The encoder it refers to is in `base_encoder`.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors import safe_open
from torch import Tensor
from transformers import PreTrainedConfig
from transformers.dynamic_module_utils import get_relative_imports
from transformers.utils import cached_file, logging

from .identity import SECTION, certified_points, leave_behind
from .load_options import AUTO_MAP
from .sources import locate
from .validation import refuse

logger = logging.get_logger(__name__)


def sha256_of(*paths: str | os.PathLike) -> str:
    """One hash over the bytes of the files, in order."""
    digest = hashlib.sha256()
    for path in paths:
        with open(path, "rb") as file:
            while block := file.read(1 << 20):
                digest.update(block)
    return digest.hexdigest()


def weight_files(name: str | os.PathLike, **options: Any) -> list[str]:
    """Local paths of a repository's or folder's safetensors weights, shards in order; empty if it has none."""
    if single := locate(name, "model.safetensors", **options):
        return [single]
    if not (index := locate(name, "model.safetensors.index.json", **options)):
        return []
    shards = sorted(set(json.loads(Path(index).read_text())["weight_map"].values()))
    return [str(cached_file(name, shard, **options)) for shard in shards]


def read_tensors(files: Iterable[str], names: Iterable[str]) -> dict[str, Tensor]:
    """The tensors of these names that the safetensors files hold."""
    wanted, found = set(names), {}
    for path in files:
        with safe_open(path, framework="pt") as file:
            for name in wanted & set(file.keys()):
                found[name] = file.get_tensor(name)
    return found


@contextmanager
def only_new_weights(folder: str | os.PathLike) -> Iterator[None]:
    """Of one file of weights and an index of several, remove that which the block has left as it was, if it wrote one.

    A load would read the old weights: it takes the one file, whatever else is there.
    """
    names = ("model.safetensors", "model.safetensors.index.json")
    before = {path: written(path) for path in (Path(folder) / name for name in names)}
    yield
    left = [path for path in before if written(path) == before[path]]
    for path in left if len(left) < len(before) else []:
        path.unlink(missing_ok=True)


def written(path: Path) -> tuple[int, int] | None:
    """What is another whenever a file is written; None where there is none."""
    return (path.stat().st_ino, path.stat().st_mtime_ns) if path.exists() else None


def record_hashes(config: PreTrainedConfig, folder: str | os.PathLike) -> None:
    """Write the hashes of a saved checkpoint's weights into its config; certificates of other weights go."""
    config.weights_sha256 = {path.name: sha256_of(path) for path in sorted(Path(folder).glob("model*.safetensors"))}
    leave_behind(config, config.weights_sha256)
    update_config(folder, weights_sha256=config.weights_sha256, operating_points=config.operating_points)
    if not certified_points(config):
        clear_card(Path(folder) / "README.md")


def update_config(folder: str | os.PathLike, **fields: Any) -> None:
    """Set fields of a saved model's config.json, in one move."""
    path = Path(folder) / "config.json"
    config = json.loads(path.read_text(encoding="utf-8")) | fields
    with replacing(path) as draft:
        draft.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def clear_card(path: Path) -> None:
    """Take what a card says of certificates out of it."""
    text = path.read_text(encoding="utf-8") if path.exists() else ""
    if SECTION.search(text):
        with replacing(path) as draft:
            draft.write_text(SECTION.sub("", text).rstrip() + "\n", encoding="utf-8")


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """The path of a draft in the same folder, which takes the file's place in one move once the block has written it.

    An interrupted program leaves the old file or none, never half of one.
    """
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        yield draft
        os.replace(draft, path)
    finally:
        draft.unlink(missing_ok=True)


def check_place(config: PreTrainedConfig, folder: str | os.PathLike) -> None:
    """Refuse to write a checkpoint of adapters over the encoder it refers to, or into a file."""
    if os.path.isfile(folder):
        refuse("save_directory", os.fspath(folder), "a folder, not a file")
    base = config.base_model_name_or_path if config.adapter_only else None
    if base and os.path.isdir(base) and os.path.isdir(folder) and os.path.samefile(base, folder):
        refuse("save_directory", os.fspath(folder), "another folder than base_model_name_or_path: this checkpoint "
               "refers to the encoder there, which would be overwritten")  # fmt: skip


@contextmanager
def code_of_one_version(folder: str | os.PathLike) -> Iterator[None]:
    """Where the block saves over another version's code, files that this one no longer has go; no other file does."""
    former = code_in(folder)
    yield
    own = {file.name for file in code_in(Path(__file__).parent)}
    for file in former - code_in(folder):
        if file.name not in own:
            file.unlink(missing_ok=True)


def code_in(folder: str | os.PathLike) -> set[Path]:
    """The files of a folder that its configuration and its models are made of."""
    found, new = set[Path](), {reference.partition(".")[0] for reference in AUTO_MAP.values()}
    while files := {file for name in new if (file := Path(folder, f"{name}.py")).is_file()} - found:
        found |= files
        new = {name for file in files for name in get_relative_imports(file)}
    return found


def carry_code(folder: str | os.PathLike) -> None:
    """Copy the code of models into a folder."""
    os.makedirs(folder, exist_ok=True)
    for file in code_in(Path(__file__).parent):
        shutil.copy(file, folder)


def verify_checkpoint(name: str | os.PathLike, hashes: dict[str, str] | None, **options: Any) -> None:
    """Hold a checkpoint's weights against the hashes that its config has of its files, before they are read.

    Raises:
        OSError: a file is missing, truncated or altered.
    """
    if not hashes:
        logger.warning_once(f"{name}: config.json has no weights_sha256, so its weights cannot be checked for damage.")
        return
    for file, expected in hashes.items():
        found = locate(name, os.path.basename(file), **options)
        if found is None:
            raise OSError(f"{name}: {file} is missing, though config.json lists it in weights_sha256.")
        if (actual := sha256_of(found)) != expected:
            raise OSError(
                f"{name}: {file} is truncated or was altered: its sha256 is {actual}, config.json says {expected}. "
                "Download it again; nothing was loaded."
            )
