"""Tiny encoders of every family, and batches for them."""

from collections.abc import Callable
from contextlib import contextmanager
from pathlib import Path

import torch
from transformers import (
    AlbertConfig,
    AutoModel,
    BertConfig,
    BertTokenizer,
    CamembertConfig,
    DebertaV2Config,
    DistilBertConfig,
    ElectraConfig,
    EuroBertConfig,
    GteConfig,
    JinaEmbeddingsV3Config,
    ModernBertConfig,
    MPNetConfig,
    NomicBertConfig,
    PreTrainedConfig,
    PreTrainedModel,
    RobertaConfig,
    XLMRobertaConfig,
)

from modeling_pfberxit import PFBerxitForSequenceClassification

# What newer versions of `transformers` call it, and what older ones do.
CHECKPOINTING = (
    f"{'activation' if hasattr(PreTrainedModel, 'activation_checkpointing_enable') else 'gradient'}_checkpointing"
)
VOCABULARY, HIDDEN, LAYERS, HEADS = 120, 32, 6, 4
SIZES = {
    "vocab_size": VOCABULARY,
    "hidden_size": HIDDEN,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": HEADS,
    "intermediate_size": 64,
    "max_position_embeddings": 80,
    "pad_token_id": 0,
}
DEBERTA_V3 = {
    "relative_attention": True, "position_buckets": 8, "norm_rel_ebd": "layer_norm", "share_att_key": True,
    "pos_att_type": ["p2c", "c2p"], "position_biased_input": False, "initializer_range": 0.2,
}  # fmt: skip
CONFIGS = {
    "albert": lambda **changes: AlbertConfig(**{**SIZES, "embedding_size": 16, **changes}),
    "albert-groups": lambda **changes: AlbertConfig(
        **{**SIZES, "embedding_size": 16, "num_hidden_groups": 3, "inner_group_num": 2, **changes}
    ),
    "bert": lambda **changes: BertConfig(**{**SIZES, **changes}),
    "roberta": lambda **changes: RobertaConfig(**{**SIZES, **changes}),
    "xlm-roberta": lambda **changes: XLMRobertaConfig(**{**SIZES, **changes}),
    "camembert": lambda **changes: CamembertConfig(**{**SIZES, **changes}),
    "electra": lambda **changes: ElectraConfig(**{**SIZES, "embedding_size": 16, **changes}),
    "distilbert": lambda **changes: DistilBertConfig(
        **{
            "vocab_size": VOCABULARY, "dim": HIDDEN, "n_layers": LAYERS, "n_heads": HEADS, "hidden_dim": 64,
            "max_position_embeddings": 80, "pad_token_id": 0, **changes,
        }
    ),
    "mpnet": lambda **changes: MPNetConfig(**{**SIZES, **changes}),
    "deberta-v2": lambda **changes: DebertaV2Config(**{**SIZES, **DEBERTA_V3, **changes}),
    "modernbert": lambda **changes: ModernBertConfig(**{**SIZES, "local_attention": 8, **changes}),
    "nomic_bert": lambda **changes: NomicBertConfig(**{**SIZES, **changes}),
    "gte": lambda **changes: GteConfig(**{**SIZES, "type_vocab_size": 2, **changes}),
    "jina_embeddings_v3": lambda **changes: JinaEmbeddingsV3Config(**{**SIZES, "type_vocab_size": 2, **changes}),
    "eurobert": lambda **changes: EuroBertConfig(
        **{**SIZES, "num_key_value_heads": 2, "classifier_pooling": "mean", **changes}
    ),
}  # fmt: skip


# Drawn as `transformers` draws them, masks and rotations would change their states by less than rounding.
PLAIN_AT_FIRST = ("mpnet", "modernbert", "nomic_bert", "gte", "jina_embeddings_v3", "eurobert")


def tiny_config(family: str = "bert", **changes) -> PreTrainedConfig:
    """A six-layer encoder of 32 dimensions (`albert-groups`: twelve executed layers)."""
    return CONFIGS[family](**changes)


def save_backbone(folder: Path, family: str = "bert", seed: int = 0, **changes) -> str:
    """A pretrained encoder (weights drawn from a seed) with its pooler and a tokenizer, in a folder."""
    torch.manual_seed(seed)
    AutoModel.from_config(tiny_config(family, **changes)).save_pretrained(folder)
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *(f"w{i}" for i in range(VOCABULARY - 5))]
    vocabulary = Path(folder) / "vocab.txt"
    vocabulary.write_text("\n".join(words))
    BertTokenizer(str(vocabulary)).save_pretrained(folder)
    return str(folder)


def tiny_model(family: str = "bert", seed: int = 0, liven: bool = True, **knobs) -> PFBerxitForSequenceClassification:
    """A model with random weights and no base. `liven` gives adapters and exits weights large enough to disagree."""
    torch.manual_seed(seed)
    knobs = {"adapter_dim": 8, "adapter_num_heads": 2, **knobs}
    changes = knobs.pop("backbone_changes", {})
    model = PFBerxitForSequenceClassification.from_backbone(tiny_config(family, **changes), **knobs)
    if family in PLAIN_AT_FIRST:
        awaken(model.backbone)
    if liven:
        enliven(model)
    return model.eval()


@torch.no_grad()
def awaken(encoder: PreTrainedModel) -> None:
    """Weights large enough for what attends to what to be seen in the states, as after pretraining."""
    for name, parameter in encoder.named_parameters():
        if parameter.dim() == 2 and "embed" not in name:
            parameter.normal_(0.0, 0.25)


@torch.no_grad()
def enliven(model: PFBerxitForSequenceClassification, seed: int | None = None) -> None:
    """Weights that make adapters change the states and exits differ from each other, as after training.

    Without a seed they follow from the last `torch.manual_seed`: where none is near, from the tests that ran before.
    """
    if seed is not None:
        torch.manual_seed(seed)
    for name, parameter in model.named_parameters():
        if "adapter" in name and "norm" not in name:
            parameter.normal_(0.0, 0.3)
        elif name.startswith("exits."):
            parameter.normal_(0.0, 0.6)


def tiny_batch(rows: int, longest: int = 16, seed: int = 0, shortest: int = 3) -> dict[str, torch.Tensor]:
    """Token ids of mixed length with their mask, padded on the right."""
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randint(shortest, longest + 1, (rows,), generator=generator)
    ids = torch.randint(5, VOCABULARY, (rows, longest), generator=generator)
    mask = (torch.arange(longest) < lengths[:, None]).long()
    return {"input_ids": ids * mask, "attention_mask": mask}


def rows_of(batch: dict[str, torch.Tensor]) -> list[torch.Tensor]:
    """The tokens of every row, without padding."""
    return [ids[mask.bool()] for ids, mask in zip(batch["input_ids"], batch["attention_mask"], strict=True)]


def stock_layers(encoder: torch.nn.Module) -> list[torch.nn.Module]:
    """The layers of a `transformers` encoder, whatever its family calls them."""
    return [module for module in encoder.modules() if type(module).__name__.endswith(("Layer", "TransformerBlock"))]


def final_norm(model: PreTrainedModel) -> Callable[[torch.Tensor], torch.Tensor]:
    """What an encoder that normalises first has behind its last layer; nothing for the others."""
    return getattr(model.backbone, "final_norm", getattr(model.backbone, "norm", lambda states: states))


@contextmanager
def hooked(modules: list[torch.nn.Module], before=None, after=None, by_name: bool = False):
    """Call `before(module, inputs)` and `after(module, inputs, output)` around every forward, for a while.

    With `by_name`, `before(module, inputs, keywords)`.
    """
    hooks = [module.register_forward_pre_hook(before, with_kwargs=by_name) for module in modules if before]
    hooks += [module.register_forward_hook(after) for module in modules if after]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
