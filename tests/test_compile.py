"""How far `torch.compile` and `torch.export` reach: full depth is one graph, early exit is several."""

import pytest
import torch
from tiny import tiny_batch, tiny_model

FAMILIES = ["albert", "bert", "distilbert"]
BATCH = tiny_batch(4)


@pytest.mark.parametrize("family", FAMILIES)
def test_full_depth_compiles_as_one_graph(family):
    model = tiny_model(family, num_labels=3)
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(**BATCH).exit_logits, model(**BATCH).exit_logits, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("family", FAMILIES)
def test_full_depth_exports(family):
    model = tiny_model(family, num_labels=3)
    program = torch.export.export(model, (), kwargs=dict(BATCH), strict=False)
    torch.testing.assert_close(program.module()(**BATCH).logits, model(**BATCH).logits, atol=1e-5, rtol=1e-5)


def test_early_exit_compiles_in_parts_and_answers_the_same():
    model = tiny_model("bert", num_labels=3)
    policy = {"threshold": 0.5, "patience": 1}
    expected = model(**BATCH, exit_policy=policy)
    assert expected.exit_layer.min() < 6
    found = torch.compile(model, backend="aot_eager")(**BATCH, exit_policy=policy)
    assert torch.equal(found.exit_layer, expected.exit_layer)
    torch.testing.assert_close(found.logits, expected.logits, atol=1e-5, rtol=1e-5)
