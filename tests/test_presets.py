"""The files of `configuration/` are what the code makes of its systems and encoders."""

import json

import pytest

from modeling_pfberxit import PFBerxitConfig
from modeling_pfberxit.presets import ENCODERS, FOLDER, as_json, files, presets
from modeling_pfberxit.systems import SYSTEMS

PRESETS = presets()


def test_every_file_is_what_the_code_writes():
    for path, text in files().items():
        assert (FOLDER / path).read_text(encoding="utf-8") == text, "run python -m modeling_pfberxit.presets"


def test_every_preset_is_on_disk_and_nothing_else():
    found = {str(path.relative_to(FOLDER).with_suffix("")) for path in FOLDER.rglob("*.json")}
    assert found == set(PRESETS)
    assert {f"systems/{name}" for name in SYSTEMS} <= found


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_loads_as_what_the_code_says(name):
    loaded = PFBerxitConfig.from_pretrained(FOLDER / f"{name}.json")
    assert json.loads(as_json(loaded)) == json.loads(as_json(PRESETS[name]))
    assert loaded.base_model_name_or_path in ENCODERS and loaded.base_model_revision is None


@pytest.mark.parametrize("system", SYSTEMS)
def test_a_systems_file_is_the_system_by_name(system):
    loaded = PFBerxitConfig.from_pretrained(FOLDER / "systems" / f"{system}.json")
    named = PFBerxitConfig.for_system(system, ENCODERS[loaded.base_model_name_or_path])
    knobs = SYSTEMS[system].knobs(12)
    assert loaded.system == system
    assert {name: getattr(loaded, name) for name in knobs} == knobs
    assert {name: getattr(named, name) for name in knobs} == knobs
