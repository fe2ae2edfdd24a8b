"""Sharded training and early exits under `torchrun`, beside the same in one piece; writes how far they are apart."""

import json
import os
import sys
from pathlib import Path

import torch
import torch.distributed as dist
from tiny import stock_layers, tiny_batch, tiny_model
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

LABELS = torch.tensor([0, 1, 2, 0])
NO_DROPOUT = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}


def new_model(family: str):
    return tiny_model(family, num_labels=3, exit_dropout=0.0, train_backbone=True, backbone_changes=NO_DROPOUT)


def train(model) -> list[float]:
    """Three steps on one batch; the loss before each."""
    optimizer, losses = torch.optim.SGD(model.parameters(), lr=0.02), []
    for _ in range(3):
        loss = model.train()(**tiny_batch(4), labels=LABELS).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    model.eval()
    return losses


def apart(sharded, whole: dict[str, torch.Tensor]) -> float:
    """How far the weights of a sharded model are from those of one in one piece, at most."""
    sharded.reshard()  # the root keeps its own together after a call
    return max((value.full_tensor() - whole[name]).abs().max().item() for name, value in sharded.named_parameters())


def early_policy(whole, rows) -> dict:
    """Half of the rows are sure enough to leave at the first exit: the threshold lies midway between two of them."""
    sure = whole(**rows).exit_logits[:, 0].softmax(-1).amax(-1).sort().values
    return {"criterion": "max_prob", "threshold": sure[len(sure) // 2 - 1 : len(sure) // 2 + 1].mean().item()}


def difference(family: str, mesh) -> dict:
    """Losses, weights and answers of a sharded model against one in one piece."""
    whole, sharded = new_model(family), new_model(family)
    for module in [*dict.fromkeys(stock_layers(sharded.backbone)), *sharded.depths, sharded.backbone.embeddings]:
        fully_shard(module, mesh=mesh)
    fully_shard(sharded, mesh=mesh)
    losses = [train(whole), train(sharded)]
    weights = dict(whole.named_parameters())
    rows = tiny_batch(12, seed=dist.get_rank())  # every process has rows of its own, which leave where they do
    with torch.no_grad():
        policy = early_policy(whole, rows)
        early = [model(**rows, exit_policy=policy) for model in (whole, sharded)]
    try:
        sharded.predict([{"input_ids": [2, 7, 3]}])
    except ValueError as error:
        refused = str(error)
    return {
        "losses": losses,
        "weights": apart(sharded, weights),
        "logits": (early[0].logits - early[1].logits).abs().max().item(),
        "layers": [each.exit_layer.tolist() for each in early],
        "predict": refused,
    }


if __name__ == "__main__":
    dist.init_process_group("gloo")
    settings = json.loads(Path(sys.argv[1]).read_text())
    mesh = init_device_mesh("cpu", (2,))
    found = {family: difference(family, mesh) for family in settings["families"]}
    Path(settings["output"], f"{dist.get_rank()}.json").write_text(json.dumps(found))
    dist.barrier()
    dist.destroy_process_group()
    os._exit(0)  # threads of gloo that are still ending would abort an interpreter that shuts down, now and then
