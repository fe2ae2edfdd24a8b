"""A run that was cut off goes on as if nothing had happened."""

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from tiny import save_backbone
from train_script import ROOT, new_model, new_trainer, weights

from modeling_pfberxit import PFBerxitForSequenceClassification

STEPS, SAVED, KILLED = 8, 3, 5
# Two adapters a depth and dropout everywhere: without the random state of the cut, the rest of the run would differ.
KNOBS = {"adapter_placement": "both", "adapter_dropout": 0.2, "exit_dropout": 0.2, "use_lte": True}
ARGUMENTS = {"max_steps": STEPS, "save_strategy": "steps", "save_steps": SAVED, "per_device_train_batch_size": 4}


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """The encoder, the weights at the end of an uninterrupted run, and what a killed one left behind."""
    folder = tmp_path_factory.mktemp("resume")
    backbone = save_backbone(folder / "encoder", "albert")
    model = new_model(backbone, **KNOBS)
    new_trainer(model, folder / "uninterrupted", **ARGUMENTS).train()

    settings = folder / "settings.json"
    run = {"knobs": KNOBS, "arguments": ARGUMENTS, "kill_at": KILLED}
    settings.write_text(json.dumps({"backbone": backbone, "output": str(folder), "runs": {"killed": run}}))
    script = Path(__file__).with_name("train_script.py")
    killed = subprocess.run(
        [sys.executable, str(script), str(settings)],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    return backbone, weights(model), folder / "killed"


@pytest.fixture
def cut(runs, tmp_path):
    """A copy of the killed run's folder, to go on in."""
    return shutil.copytree(runs[2], tmp_path / "cut")


def resumed(model, folder) -> dict[str, torch.Tensor]:
    trainer = new_trainer(model, folder, **ARGUMENTS)
    trainer.train(resume_from_checkpoint=True)
    assert trainer.state.global_step == STEPS
    return weights(model)


def differing(found, expected) -> list[str]:
    assert found.keys() == expected.keys()
    return [name for name in expected if not torch.equal(found[name], expected[name])]


def test_a_killed_run_leaves_one_whole_checkpoint(cut):
    assert [path.name for path in cut.glob("checkpoint-*")] == [f"checkpoint-{SAVED}"]
    assert json.loads((cut / f"checkpoint-{SAVED}" / "trainer_state.json").read_text())["global_step"] == SAVED


def test_resume_is_bit_exact(runs, cut):
    backbone, uninterrupted, _ = runs
    assert differing(resumed(new_model(backbone, seed=7, **KNOBS), cut), uninterrupted) == []


def test_resume_of_a_loaded_checkpoint_is_bit_exact(runs, cut):
    model = PFBerxitForSequenceClassification.from_pretrained(cut / f"checkpoint-{SAVED}")
    assert differing(resumed(model, cut), runs[1]) == []


def test_resume_with_early_exit_configured_is_bit_exact(runs, cut):
    backbone, uninterrupted, _ = runs
    assert differing(resumed(new_model(backbone, exit_threshold=0.5, **KNOBS), cut), uninterrupted) == []


def test_without_the_saved_random_state_the_run_would_differ(runs, cut):
    (cut / f"checkpoint-{SAVED}" / "rng_state.pth").unlink()
    different = differing(resumed(new_model(runs[0], seed=7, **KNOBS), cut), runs[1])
    assert different and not any(name.startswith("backbone.") for name in different)
