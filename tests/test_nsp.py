"""NSP, the share of what a classifier reads that no class of it sees, against scipy's null space."""

import numpy as np
import pytest
import torch
from scipy.linalg import null_space
from torch import nn

from modeling_pfberxit import ExitPolicy, PFBerxitForSequenceClassification
from modeling_pfberxit.evaluation.recording import Recording, record
from modeling_pfberxit.model.exits import null_share
from tests.tiny import tiny_batch, tiny_model


def by_scipy(read: np.ndarray, weight: np.ndarray, bias: np.ndarray) -> np.ndarray:
    """The length in the null space over the whole length, with the zero point where all logits are 0."""
    moved = read + np.linalg.lstsq(weight, bias, rcond=None)[0]
    return np.linalg.norm(moved @ null_space(weight), axis=-1) / np.linalg.norm(moved, axis=-1)


WEIGHTS = {
    "three classes": torch.randn(3, 8, generator=torch.Generator().manual_seed(0)),
    "two opposite classes": torch.randn(1, 8, generator=torch.Generator().manual_seed(1)) * torch.tensor([[1.0], [-1]]),
    "many classes": torch.randn(7, 8, generator=torch.Generator().manual_seed(2)),
}


@pytest.mark.parametrize("weight", WEIGHTS.values(), ids=WEIGHTS)
def test_it_is_the_length_in_the_null_space(weight):
    classifier = nn.Linear(8, len(weight)).requires_grad_(False)
    classifier.weight.copy_(weight)
    read = torch.randn(20, 8)
    expected = by_scipy(read.double().numpy(), weight.double().numpy(), classifier.bias.double().numpy())
    np.testing.assert_allclose(null_share(read, classifier), expected, atol=1e-5)


def test_a_classifier_that_sees_everything_or_nothing():
    classifier = nn.Linear(3, 3).requires_grad_(False)
    torch.testing.assert_close(null_share(torch.randn(5, 3), classifier), torch.zeros(5), atol=1e-4, rtol=0)
    classifier.weight.zero_()
    torch.testing.assert_close(null_share(torch.randn(5, 3), classifier), torch.ones(5))
    classifier.bias.zero_()  # so that the zero point is at zero, as behind a ReLU that lets nothing through
    assert null_share(torch.zeros(2, 3), classifier).tolist() == [0, 0]
    assert null_share(torch.full((1, 3), torch.nan), classifier).isnan().all()


def test_any_checkpoint_emits_it_when_it_is_asked_for(tmp_path):
    batch, policy = tiny_batch(6, seed=1), ExitPolicy("cap", threshold=0.2)
    tiny_model("bert", num_labels=3).save_pretrained(tmp_path)
    plain = PFBerxitForSequenceClassification.from_pretrained(tmp_path)
    with pytest.raises(ValueError, match="exit_criterion='cap': must be .* or the model loaded with use_nsp=True"):
        plain(**batch, exit_policy=policy)
    model = PFBerxitForSequenceClassification.from_pretrained(tmp_path, use_nsp=True)
    read = []
    for classifier in model.exits.classifiers:
        classifier.register_forward_pre_hook(lambda _, inputs: read.append(inputs[0]))
    output = model(**batch)
    torch.testing.assert_close(output.logits, plain(**batch).logits)
    for number, classifier in enumerate(model.exits.classifiers):
        weight, bias = (part.detach().double().numpy() for part in (classifier.weight, classifier.bias))
        expected = by_scipy(read[number].detach().double().numpy(), weight, bias)
        np.testing.assert_allclose(output.exit_nsp[:, number], expected, atol=1e-5)
    record(model, [batch], progress=False).save(tmp_path / "kept.safetensors")
    torch.testing.assert_close(Recording.load(tmp_path / "kept.safetensors").evidence.nsp, output.exit_nsp)


def test_with_a_weight_of_none_cap_is_the_odds_of_a_logit_of_zero():
    model = tiny_model("bert", num_labels=3, use_nsp=True)
    logits = model(**tiny_batch(8)).exit_logits.detach()
    caps = 1 / (1 + logits.exp().sum(-1))
    tau = float(caps[:, 0].sort().values[4])
    layers = model(**tiny_batch(8), exit_policy=ExitPolicy("cap", threshold=tau, nsp_weight=0.0)).exit_layer
    assert layers.eq(1).tolist() == caps[:, 0].lt(tau).tolist() and 0 < int(layers.eq(1).sum()) < 8


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated")  # asked for by PEFT
def test_it_is_of_what_a_classifier_inside_peft_multiplies_by():
    peft = pytest.importorskip("peft")
    model, batch = tiny_model("bert", num_labels=3, use_nsp=True), tiny_batch(8)
    before = model(**batch).exit_nsp
    adapted = peft.LoraConfig(target_modules=r"exits\.classifiers\.\d+", init_lora_weights=False)
    inside = peft.get_peft_model(model, adapted).eval()
    nsp = inside(**batch).exit_nsp
    merged = inside.merge_and_unload()(**batch).exit_nsp
    torch.testing.assert_close(nsp, merged, atol=1e-5, rtol=0)
    assert not torch.allclose(nsp, before, atol=1e-4) and not nsp.requires_grad
