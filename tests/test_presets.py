"""The files of `configuration/` are what the code makes of its systems and encoders."""

import json

import pytest

from modeling_pfberxit import PFBerxitConfig
from modeling_pfberxit.data.tasks import GLUE_TASKS, SUPPORT_DESK_TASKS
from modeling_pfberxit.model.evidence import MULTI_LABEL, REGRESSION, SINGLE_LABEL
from modeling_pfberxit.model.systems import SYSTEMS
from modeling_pfberxit.studies.presets import ENCODERS, FOLDER, RULES_PAGE, as_json, files, presets, rules_page
from modeling_pfberxit.training.finetuning import training_arguments
from modeling_pfberxit.training.recipes import RECIPES, load_recipe, sorted_out

PRESETS = presets()


def test_every_file_is_what_the_code_writes():
    for path, text in files().items():
        assert (FOLDER / path).read_text(encoding="utf-8") == text, "run python -m modeling_pfberxit.studies.presets"


def test_every_preset_is_on_disk_and_nothing_else():
    found = {str(path.relative_to(FOLDER).with_suffix("")) for path in FOLDER.rglob("*.json")}
    assert found == set(PRESETS) | {f"recipes/{name}" for name in RECIPES}
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


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_is_what_train_takes_with_the_encoders_commit_left_open(name):
    recipe = load_recipe(name)
    options, knobs, fields = sorted_out(recipe)
    assert recipe == RECIPES[name] == {**options, **knobs, **fields}
    training_arguments("out", **fields)
    assert set(knobs) <= set(PFBerxitConfig().to_dict())
    assert recipe["revision"] is None and recipe["backbone"]
    task = (SUPPORT_DESK_TASKS if recipe["dataset"] == "support_desk" else GLUE_TASKS)[recipe["config"]]
    assert name.removesuffix("-wide") in (task.name, recipe["config"])


def test_the_recipes_cover_every_kind_of_problem():
    tasks = {**GLUE_TASKS, **SUPPORT_DESK_TASKS}
    kinds = {tasks[recipe["config"]].problem_type for recipe in RECIPES.values()}
    assert kinds == {SINGLE_LABEL, MULTI_LABEL, REGRESSION}


def test_an_unknown_recipe_is_refused_with_those_there_are():
    with pytest.raises(
        ValueError, match="recipe='cola': must be one of sst2, mrpc, stsb, sst2-wide, stsb-wide, topics"
    ):
        load_recipe("cola")


def test_the_page_about_rules_says_what_the_registry_says():
    page = RULES_PAGE.read_text(encoding="utf-8")
    assert rules_page(page) == page, "python -m modeling_pfberxit.studies.presets writes it"
