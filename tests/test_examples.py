"""The numbered scripts run, one after the other, on what the one before has made."""

import runpy
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModel

MERGED = ("query.weight", "key.weight", "value.weight", "dense.weight")
EXAMPLES = Path(__file__).parents[1] / "examples"


def run(script: str, *arguments: str) -> None:
    before = sys.argv
    sys.argv = [script, *map(str, arguments)]
    try:
        runpy.run_path(str(EXAMPLES / script), run_name="__main__")
    finally:
        sys.argv = before


@pytest.mark.parametrize("config", ["intent", "topics", "urgency"])
def test_fine_tune_then_sweep_then_share(config, hub_backbone, hub, tmp_path, capsys):
    folder = tmp_path / config
    quick = ["--max_steps", "2", "--rows", "40", "--bf16", "False", "--per_device_train_batch_size", "8"]
    run("01_finetune.py", "--backbone", hub_backbone, "--config", config, "--output_dir", folder, *quick)
    printed = capsys.readouterr().out
    assert "by exit layer:" in printed and "trainable params" in printed
    assert (folder / "model.safetensors").stat().st_size < 200_000

    run("02_infer.py", folder, "--config", config, "--steps", "3", "--patience", "1", "2")
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("|")]
    assert len(lines) > 4
    saved = [int(line.split("|")[5].strip(" %")) for line in lines[2:]]
    assert saved[0] == 0 and max(saved) > 0

    run("03_share.py", folder, f"acme/desk-{config}")
    assert "score" in capsys.readouterr().out
    files = hub.files(f"acme/desk-{config}")
    assert {"config.json", "model.safetensors", "modeling_pfberxit.py", "tokenizer.json", "README.md"} <= set(files)


def test_a_stock_classifier_is_fine_tuned_and_retrofitted(local_backbone, tmp_path, capsys):
    beside = ["--backbone", local_backbone, "--rows", "16", "--epochs", "1", "--differ", "0.3", "--max-length", "16"]
    run("05_retrofit.py", *beside, "--classifier", tmp_path / "classifier", "--output", tmp_path / "faster")
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("|")]
    assert [line.split("|")[1].strip() for line in lines][::2][:2] == ["setting", "full depth"]
    assert lines[2].split("|")[3].strip() == "0.0000"
    with pytest.raises(ValueError, match="output.*without a model"):  # and the classifier is not trained again
        run("05_retrofit.py", *beside, "--classifier", tmp_path / "classifier", "--output", tmp_path / "faster")


@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")  # PEFT still asks for it
def test_lora_beside_adapters_is_saved_without_the_encoder_and_comes_back(hub_backbone, tmp_path, capsys):
    pytest.importorskip("peft")
    quick = ["--max_steps", "3", "--bf16", "False", "--per_device_train_batch_size", "8", "--learning_rate", "0.05"]
    run("07_lora.py", "--backbone", hub_backbone, "--config", "intent", "--output_dir", tmp_path, *quick)
    assert "by exit layer:" in capsys.readouterr().out and not (tmp_path / "model.safetensors").exists()
    example = runpy.run_path(str(EXAMPLES / "07_lora.py"))
    kept = load_file(tmp_path / "adapter_model.safetensors")
    model = example["loaded"](str(tmp_path))
    assert not any("backbone" in name and "lora" not in name and "adapter" not in name for name in kept)
    exits = {name: each for name, each in kept.items() if "exits" in name}
    assert exits and all(torch.equal(model.get_parameter(name.removeprefix("base_model.model.")), each)
                         for name, each in exits.items())  # fmt: skip
    stock = AutoModel.from_pretrained(hub_backbone).state_dict()
    moved = {name for name, each in model.backbone.state_dict().items() if not torch.equal(each, stock[name])}
    linear = {name for name in stock if name.startswith("encoder.") and name.endswith(MERGED)}
    assert moved == linear, "LoRA is merged into every linear layer"
