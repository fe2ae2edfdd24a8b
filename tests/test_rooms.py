"""The rooms of the house: who may import whom, no import in a circle, and what a Hub repository carries."""

import ast
import graphlib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
# A room may import those before it, and itself; some stand side by side.
ORDER = {
    "model": 0,
    "data": 1,
    "evaluation": 2,
    "training": 3,
    "studies": 4,
    "export": 4,
    "benchmark": 5,
    "serving": 5,
    "traffic": 6,
    "pfberxit": 7,
}
FRONT_DOORS = {
    "modeling_pfberxit",
    "modeling_pfberxit.__main__",
    "modeling_pfberxit.calibration",
    "modeling_pfberxit.pipeline",
}  # re-exports only
REMOTE = {"torch", "transformers", "huggingface_hub", "safetensors"}


def modules() -> dict[str, Path]:
    """Every module of both packages by its dotted name; a package by its own."""
    files = [*(ROOT / "modeling_pfberxit").rglob("*.py"), *(ROOT / "pfberxit").rglob("*.py")]
    names = {file: ".".join(file.relative_to(ROOT).with_suffix("").parts) for file in files}
    return {name.removesuffix(".__init__"): file for file, name in names.items()}


MODULES = modules()


def imports(name: str, at_once: bool = False) -> set[str]:
    """Everything a module imports by dotted name: at its top, in functions, and for type checkers alone.

    Args:
        at_once: only what it imports when it is imported itself.
    """
    file, found = MODULES[name], set()
    package = name if file.name == "__init__.py" else name.rpartition(".")[0]
    tree = ast.parse(file.read_text(encoding="utf-8"))
    for node in tree.body if at_once else ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = package.split(".")[: len(package.split(".")) + 1 - node.level] if node.level else []
            source = ".".join([*base, *([node.module] if node.module else [])])
            inner = {f"{source}.{alias.name}" for alias in node.names} & MODULES.keys()
            found |= inner or {source}
    return found


def room(name: str) -> str | None:
    """The room a module stands in; None outside the house and for the front doors."""
    if name.split(".")[0] == "pfberxit":
        return "pfberxit"
    parts = name.split(".")
    return parts[1] if parts[0] == "modeling_pfberxit" and len(parts) > 1 and parts[1] in ORDER else None


@pytest.mark.parametrize("name", sorted(MODULES.keys() - FRONT_DOORS))
def test_no_import_runs_back_up(name):
    own = room(name)
    assert own is not None, f"{name} stands in no room"
    for other in map(room, imports(name)):
        assert other is None or other == own or ORDER[other] < ORDER[own], f"{name} imports from {other}"


def test_no_import_runs_in_a_circle():
    graph = {name: imports(name) & MODULES.keys() - {name} for name in MODULES}
    list(graphlib.TopologicalSorter(graph).static_order())  # raises CycleError, which shows the circle


@pytest.mark.parametrize("name", sorted(name for name in MODULES if room(name) == "model"))
def test_files_of_a_hub_repository_import_nothing_that_it_lacks(name):
    import sys

    outside = {other.split(".")[0] for other in imports(name)} - {"modeling_pfberxit"}
    assert outside <= REMOTE | set(sys.stdlib_module_names), outside


def test_exported_files_are_timed_without_what_draws_pictures():
    reached, new = set(), {"modeling_pfberxit.benchmark.exported"}
    while new:
        reached |= new
        new = {other for name in new & MODULES.keys() for other in imports(name, at_once=True)} - reached
    assert "modeling_pfberxit.benchmark.speed" in reached
    assert not [name for name in reached if name.startswith("matplotlib")]


def test_the_command_line_imports_nothing_heavy():
    import subprocess
    import sys

    heavy = "[name for name in ('torch', 'transformers', 'modeling_pfberxit', 'numpy') if name in sys.modules]"
    code = f"import sys, pfberxit.cli; pfberxit.cli.parser(); print({heavy})"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "[]"


def test_the_tour_of_the_model_room_names_every_file_once():
    import re

    files = {name.rpartition(".")[2] for name in MODULES if name.startswith("modeling_pfberxit.model.")}
    tour = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| (\d+) \| `(\w+)\.py` \| ", tour, re.MULTILINE)
    assert [int(number) for number, _ in rows] == list(range(1, len(files) + 1))
    assert sorted(name for _, name in rows) == sorted(files)


@pytest.mark.parametrize("name", ["serving", "traffic"])
def test_the_tour_of_a_room_names_every_file_once(name):
    import re

    inside = {path.stem for path in MODULES[f"modeling_pfberxit.{name}"].parent.glob("*")} - {"__init__", "__pycache__"}
    tour = ast.get_docstring(ast.parse(MODULES[f"modeling_pfberxit.{name}"].read_text(encoding="utf-8")))
    lines = re.findall(r"^- (.+?): ", tour, re.MULTILINE)
    assert sorted(re.findall(r"`(\w+)`", " ".join(lines))) == sorted(inside)
