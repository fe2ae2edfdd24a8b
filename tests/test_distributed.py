"""Two processes learn what one learns."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tiny import CHECKPOINTING, LAYERS, save_backbone
from torch.testing import assert_close
from train_script import NO_DROPOUT, PLAIN_SGD, in_two_processes, main

BATCH, TOLERANCE = 8, 1e-5
# Every head there is, depths without an exit, and heads that several depths share.
KNOBS = {
    "heads": {"use_lte": True, "lte_shared": False, "exit_pooler": "own", "exit_layers": [1, 2, 4]},
    "shared": {"use_lte": True, "exit_shared": True, "adapter_placement": "both", "adapter_sublearner": "conv"},
    "backbone": {"train_backbone": True},
}
ARGUMENTS = {"max_steps": 4, "ddp_find_unused_parameters": False}
EXTRA = {"backbone": {CHECKPOINTING: True}}


def settings(backbone: str, output: Path, batch: int) -> dict:
    """The runs, for one process that sees `batch` rows at each step."""
    output.mkdir()
    arguments = {**PLAIN_SGD, **ARGUMENTS, "per_device_train_batch_size": batch}
    runs = {
        name: {
            "knobs": {"exit_dropout": 0.0, **knobs},
            "arguments": {**arguments, **EXTRA.get(name, {})},
            "policy": {"exit_criterion": "patience", "exit_patience": 1},
        }
        for name, knobs in KNOBS.items()
    }
    return {"backbone": backbone, "output": str(output), "runs": runs}


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """What one process left, what two did, and what one did that saw half of the rows."""
    folder = tmp_path_factory.mktemp("distributed")
    backbone = save_backbone(folder / "encoder", "bert", **NO_DROPOUT)
    main(settings(backbone, folder / "one", BATCH))
    main(settings(backbone, folder / "half", BATCH // 2))
    (folder / "settings.json").write_text(json.dumps(settings(backbone, folder / "two", BATCH // 2)))
    in_two_processes(Path(__file__).with_name("train_script.py"), folder / "settings.json")
    return folder


@pytest.mark.parametrize("run", KNOBS)
def test_two_processes_end_with_the_same_weights(folders, run):
    first, second = (load_file(folders / "two" / f"{run}-{rank}.safetensors") for rank in (0, 1))
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize("run", KNOBS)
def test_two_processes_learn_what_one_does_at_the_same_global_batch(folders, run):
    one, two, half = (load_file(folders / name / f"{run}-0.safetensors") for name in ("one", "two", "half"))
    assert one.keys() == two.keys()
    for name in one:
        assert_close(two[name], one[name], atol=TOLERANCE, rtol=0)
    assert max((half[name] - one[name]).abs().max() for name in one) > 100 * TOLERANCE


@pytest.mark.parametrize("run", KNOBS)
def test_two_processes_predict_what_one_does(folders, run):
    one, two = (load_file(folders / name / f"{run}-0-predictions.safetensors") for name in ("one", "two"))
    assert two["logits"].shape == (11, 3) and two["exit_layer"].shape == (11,)
    assert two["exit_layer"].min() < LAYERS
    assert torch.equal(one["exit_layer"], two["exit_layer"])
    assert_close(one["logits"], two["logits"], atol=10 * TOLERANCE, rtol=0)
