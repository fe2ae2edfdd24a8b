"""A Hub of our own on this machine, set up before anything reads where the Hub is; encoders on it and beside it."""

import gc
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hub_server import Hub, HubServer, read_folder

if "huggingface_hub" in sys.modules:
    raise pytest.UsageError("huggingface_hub was imported before tests/conftest.py could say where its Hub is.")

SERVER, HOME = HubServer(), tempfile.TemporaryDirectory(prefix="pfberxit-tests-")
for name in [name for name in os.environ if name.startswith(("HF_", "HUGGINGFACE_", "TRANSFORMERS_"))]:
    del os.environ[name]
os.environ |= {
    "HF_ENDPOINT": SERVER.url,
    "HF_HOME": HOME.name,
    "HF_TOKEN": "hf_of_the_tests",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "NO_PROXY": "127.0.0.1",
    "no_proxy": "127.0.0.1",
}
# On matrices this small, threads spend their time waiting for each other; on a busy machine, minutes.
os.environ.setdefault("OMP_NUM_THREADS", "1")

WITHOUT_PACKAGE = """
import sys
sys.modules["modeling_pfberxit"] = None  # however it is installed, it cannot be imported
try:
    import modeling_pfberxit
except ImportError:
    pass
else:
    raise SystemExit("the package can still be imported")
"""


def pytest_collection_finish() -> None:
    """What was imported stays: `Trainer` collects garbage in every training, half of whose time went by in there."""
    gc.collect()
    gc.freeze()


def pytest_unconfigure() -> None:
    """The server's thread dies with the process; the cache has to be removed."""
    HOME.cleanup()


@pytest.fixture
def hub() -> Hub:
    """The Hub, its log of requests empty."""
    SERVER.hub.requests.clear()
    return SERVER.hub


@pytest.fixture(scope="session")
def local_backbone(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A tiny BERT in a folder. Not to be changed: copy it, or make another."""
    from tiny import save_backbone

    return save_backbone(tmp_path_factory.mktemp("backbones") / "tiny-bert", seed=1)


@pytest.fixture(scope="session")
def hub_backbone(local_backbone: str) -> str:
    """The same encoder as a repository on the Hub. Not to be changed: `hub.commit` a copy."""
    SERVER.hub.commit("acme/tiny-bert", read_folder(local_backbone))
    return "acme/tiny-bert"


@pytest.fixture(scope="session")
def without_package(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Any]:
    """Run a script in a fresh process that cannot import the package; returns what `report(...)` in it was given."""

    def run(script: str, *arguments: str, **environment: str) -> Any:
        folder: Path = tmp_path_factory.mktemp("elsewhere")
        (folder / "script.py").write_text(f"{WITHOUT_PACKAGE}{REPORT}{script}")
        command = [sys.executable, "-I", str(folder / "script.py"), str(folder / "report.json"), *arguments]
        done = subprocess.run(
            command, cwd=folder, env={**os.environ, **environment}, capture_output=True, text=True, timeout=300
        )
        assert done.returncode == 0, done.stderr[-4000:]
        return json.loads((folder / "report.json").read_text())

    return run


REPORT = """
def report(results):
    import json
    with open(sys.argv[1], "w") as file:
        json.dump(results, file)
"""
